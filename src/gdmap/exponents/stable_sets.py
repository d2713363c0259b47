"""Which minima of a family gradient descent and SGD can end in, over step sizes, batch sizes and sampling laws."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from gdmap.exponents.exponent import Exponent
from gdmap.exponents.gd_exponent import gd_exponent_at
from gdmap.exponents.interpolation import interpolating_minima
from gdmap.exponents.mean_square import mean_square_threshold_at
from gdmap.exponents.sgd_exponent import checked_sampling, sgd_exponent_at
from gdmap.maps.gradient_descent import checked_step_size
from gdmap.maps.stochastic_gradient_descent import batches_of
from gdmap.objectives import AbstractObjective

STABILITY = {"stable": 1, "unstable": -1, "undecided": 0}


def stable_sets(
    objective: AbstractObjective,
    minima: Any,
    step_sizes: Any,
    batch_sizes: Any = (1,),
    probabilities: Any = None,
    replace: bool = False,
    *,
    shuffle: bool = False,
    confidence: float = 0.95,
    tolerance: float | None = None,
    max_steps: int = 2**13,
    replicas: int = 256,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """The GD-stable and SGD-stable sets among given minima: exponents and verdicts for every combination.

    Parameters
    ----------
    objective
        A loss that is a mean over samples.
    minima
        Points of shape ``(minima, dim)``, as `minima_curve` gives, or a Dataset with ``theta``, as `sample_minima`
        does; each is verified to be an interpolating minimum.
    step_sizes, batch_sizes
        One or several.
    probabilities
        One sampling law, shape ``(n_samples,)``, or several, shape ``(laws, n_samples)``; by default the
        objective's own weights. GD descends the loss with the mean weights of the batches:
        ``objective.weighted(p)``, with replacement or single samples.
    replace, shuffle, confidence, tolerance, max_steps, replicas, seed
        See `sgd_exponent`; the confidence is that of each interval alone.
    progress
        Called as ``progress(finished, total)``.

    Returns
    -------
    xarray.Dataset
        Over ``(minimum, step_size, batch_size, law)``: ``gd_exponent`` and ``sgd_exponent`` with ``_lower`` and
        ``_upper`` ends, ``sgd_standard_error`` (NaN where computed), ``sgd_estimated``, ``gd_stability`` and
        ``sgd_stability`` (flags: 1 stable, -1 unstable, 0 undecided); over ``(minimum, batch_size, law)``
        ``mean_square_threshold`` (NaN for epochs); ``theta``, ``sharpness`` of the mean loss over ``(minimum,
        batch_size, law)``; ``probability`` over ``(law, sample)``. Status *computed* where ``sgd_estimated`` is
        false, elsewhere *estimated*.

    Raises
    ------
    TypeError, ValueError
        As for `sgd_exponent`, naming the first point that is no interpolating minimum.
    """
    sampling = checked_sampling(confidence, tolerance, max_steps, replicas, seed)
    etas = [checked_step_size(eta) for eta in np.atleast_1d(np.asarray(step_sizes))]
    sizes = [
        int(size) if float(size).is_integer() else size for size in np.atleast_1d(np.asarray(batch_sizes)).tolist()
    ]
    laws: Sequence[Any] = (
        [None] if probabilities is None else list(np.atleast_2d(np.asarray(probabilities, float)))
    )
    theta = np.atleast_2d(np.asarray(minima["theta"] if isinstance(minima, xr.Dataset) else minima, dtype=float))
    shape = (len(theta), len(etas), len(sizes), len(laws))
    mu, lam = (np.full((3, *shape), np.nan) for _ in range(2))
    error = np.full(shape, np.nan)
    estimated = np.zeros(shape, bool)
    verdicts = {name: np.zeros(shape, np.int8) for name in ("gd", "sgd")}
    mean_square, sharpness = (np.full((len(theta), *shape[2:]), np.nan) for _ in range(2))
    chances = np.zeros((len(laws), 0))
    finished, total = 0, int(np.prod(shape))
    for k, p in enumerate(laws):
        first = batches_of(objective, 1, p)
        chances = np.zeros((len(laws), first.n_samples)) if not chances.size else chances
        chances[k] = first.mean()
        points = interpolating_minima(objective, theta, first.probabilities)
        for b, size in enumerate(sizes):
            batches = batches_of(objective, size, p, replace, shuffle)
            for m, point in enumerate(points):
                sharpness[m, b, k] = np.linalg.eigvalsh(point.mean_matrix(batches.mean()))[-1]
                if not shuffle:
                    mean_square[m, b, k] = mean_square_threshold_at(point, batches).value
                for e, eta in enumerate(etas):
                    at = (m, e, b, k)
                    descent = gd_exponent_at(point, batches.mean(), eta)
                    stochastic = sgd_exponent_at(point, batches, eta, sampling)
                    for name, ends, found in (("gd", mu, descent), ("sgd", lam, stochastic)):
                        ends[(slice(None), *at)] = found.value, found.lower, found.upper
                        verdicts[name][at] = STABILITY[found.verdict]
                    estimated[at] = stochastic.status == "estimated"
                    error[at] = _standard_error(stochastic)
                    finished += 1
                    if progress is not None:
                        progress(finished, total)
    dims = ("minimum", "step_size", "batch_size", "law")
    names = {"gd": "mu of gradient descent", "sgd": "lambda of stochastic gradient descent"}
    variables: dict[str, Any] = {}
    for name, ends in (("gd", mu), ("sgd", lam)):
        for suffix, values, words in zip(
            ("", "_lower", "_upper"), ends, ("", ", lower end", ", upper end"), strict=True
        ):
            attributes = {"long_name": f"exponent {names[name]}{words}", "units": "per step"}
            variables[f"{name}_exponent{suffix}"] = (dims, values, attributes)
        flags = {
            "long_name": f"verdict on {names[name]}",
            "flag_values": list(STABILITY.values()),
            "flag_meanings": " ".join(STABILITY),
        }
        variables[f"{name}_stability"] = (dims, verdicts[name], flags)
    law_dims = ("minimum", "batch_size", "law")
    variables |= {
        "sgd_standard_error": (dims, error, {"long_name": "standard error of lambda", "units": "per step"}),
        "sgd_estimated": (dims, estimated, {"long_name": "lambda is estimated by sampling"}),
        "mean_square_threshold": (law_dims, mean_square, {"long_name": "critical step size in mean square"}),
        "sharpness": (law_dims, sharpness, {"long_name": "largest Hessian eigenvalue of the mean loss"}),
        "theta": (("minimum", "component"), theta),
        "probability": (("law", "sample"), chances, {"long_name": "probability of picking the sample"}),
    }
    record: dict[str, Any] = {
        "status": "estimated" if estimated.any() else "computed",
        "confidence": confidence if estimated.any() else "none: nothing was sampled",
        "method": "gd_exponent and sgd_exponent at every minimum",
        "replace": str(bool(replace)),
        "shuffle": str(bool(shuffle)),
        "seed": seed,
    }
    return xr.Dataset(variables, coords={"step_size": etas, "batch_size": sizes}, attrs=record)


def _standard_error(found: Exponent) -> float:
    return np.nan if found.standard_error is None else found.standard_error

"""Which minima of a family gradient descent and SGD can end in, over step sizes, batch sizes and sampling laws."""

import itertools
from collections.abc import Callable
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
DIMS = ("minimum", "step_size", "batch_size", "law")
OF_LAW = ("minimum", "batch_size", "law")


def _contents() -> dict[str, tuple[tuple[str, ...], dict[str, Any]]]:
    """Dimensions and attributes of what is computed, by name."""
    rate = {"units": "per step"}
    contents: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {}
    for name, words in (("gd", "mu of gradient descent"), ("sgd", "lambda of stochastic gradient descent")):
        contents |= {
            f"{name}_exponent": (DIMS, {"long_name": f"exponent {words}", **rate}),
            f"{name}_exponent_lower": (DIMS, {"long_name": f"exponent {words}, lower end", **rate}),
            f"{name}_exponent_upper": (DIMS, {"long_name": f"exponent {words}, upper end", **rate}),
            f"{name}_standard_error": (DIMS, {"long_name": f"standard error of {words}", **rate}),
            f"{name}_stability": (
                DIMS,
                {
                    "long_name": f"verdict on {words}",
                    "flag_values": list(STABILITY.values()),
                    "flag_meanings": " ".join(STABILITY),
                },
            ),
        }
    contents["mean_square_threshold"] = (OF_LAW, {"long_name": "critical step size in mean square"})
    contents["sharpness"] = (OF_LAW, {"long_name": "largest Hessian eigenvalue of the mean loss"})
    return contents


CONTENTS = _contents()


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
    sizes = list(np.atleast_1d(np.asarray(batch_sizes)).tolist())
    given: list[Any] = [None] if probabilities is None else list(np.atleast_2d(np.asarray(probabilities, float)))
    theta = np.atleast_2d(np.asarray(minima["theta"] if isinstance(minima, xr.Dataset) else minima, dtype=float))
    laws = [[batches_of(objective, size, p, replace, shuffle) for size in sizes] for p in given]
    chances = np.stack([batches_of(objective, 1, p).mean() for p in given])

    if not (theta.size and etas and sizes and given):
        raise ValueError("stable_sets needs at least one minimum, step size, batch size and sampling law")
    shape = (len(theta), len(etas), len(sizes), len(given))
    table = {
        name: np.full([shape[DIMS.index(dim)] for dim in dims], np.nan) for name, (dims, _) in CONTENTS.items()
    }
    points = {k: interpolating_minima(objective, theta, chance) for k, chance in enumerate(chances)}
    cells = itertools.product(enumerate(etas), range(len(sizes)), range(len(given)), range(len(theta)))
    for finished, ((e, eta), b, k, m) in enumerate(cells):
        point, batches = points[k][m], laws[k][b]
        if e == 0:
            mean = point.mean_matrix(batches.mean())
            table["sharpness"][m, b, k] = np.linalg.eigvalsh(mean)[-1]
            if not shuffle:
                table["mean_square_threshold"][m, b, k] = mean_square_threshold_at(point, batches).value
        found = {
            "gd": gd_exponent_at(point, batches.mean(), eta),
            "sgd": sgd_exponent_at(point, batches, eta, sampling),
        }
        for name, one in found.items():
            for part, value in _parts(one).items():
                table[f"{name}_{part}"][m, e, b, k] = value
        if progress is not None:
            progress(finished + 1, int(np.prod(shape)))
    sampled = ~np.isnan(table["sgd_standard_error"])
    variables: dict[str, Any] = {
        name: (CONTENTS[name][0], values, CONTENTS[name][1]) for name, values in table.items()
    }
    for name in ("gd_stability", "sgd_stability"):
        variables[name] = (DIMS, table[name].astype(np.int8), CONTENTS[name][1])
    del variables["gd_standard_error"]
    variables |= {
        "sgd_estimated": (DIMS, sampled, {"long_name": "lambda is estimated by sampling"}),
        "theta": (("minimum", "component"), theta),
        "probability": (("law", "sample"), chances, {"long_name": "probability of picking the sample"}),
    }
    record = {
        "status": "estimated" if sampled.any() else "computed",
        "confidence": confidence if sampled.any() else "none: nothing was sampled",
        "method": "gd_exponent and sgd_exponent at every minimum",
        "replace": str(bool(replace)),
        "shuffle": str(bool(shuffle)),
        "seed": seed,
    }
    return xr.Dataset(variables, coords={"step_size": etas, "batch_size": sizes}, attrs=record)


def _parts(found: Exponent) -> dict[str, float]:
    error = np.nan if found.standard_error is None else found.standard_error
    return {
        "exponent": found.value,
        "exponent_lower": found.lower,
        "exponent_upper": found.upper,
        "standard_error": error,
        "stability": STABILITY[found.verdict],
    }

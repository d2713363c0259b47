"""Escape from a minimum, or return to it: the check of a predicted exponent by simulation."""

from enum import IntEnum
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy.stats import binomtest

from gdmap.engines.random import gaussian_starts
from gdmap.engines.xla import ESCAPED, OVERFLOWN, STATIONARY, UNDEFINED, block_size, on_lanes
from gdmap.ensembles.ensemble import RANDOM_STEP_TOLERANCE, environment
from gdmap.ensembles.fates import Reason
from gdmap.ensembles.random_iteration import (
    RandomLanes,
    SameSteps,
    Steps,
    fresh_lanes,
    is_negligible,
    iterate_random,
    lengths,
    possible_steps,
    sampled_steps,
)
from gdmap.ensembles.verdicts import Verdicts
from gdmap.exponents.exponent import Exponent
from gdmap.exponents.gd_exponent import gd_exponent
from gdmap.exponents.interpolation import interpolating_minimum
from gdmap.exponents.sgd_exponent import looked_at, sgd_exponent
from gdmap.flags import flag_attributes, flag_names
from gdmap.maps import GradientDescent, Map, RandomMap, StochasticGradientDescent
from gdmap.maps.batches import trajectory_key
from gdmap.maps.stochastic_gradient_descent import checked_counter
from gdmap.minima import verified_minimum
from gdmap.minima.critical_points import DENSE_LIMIT
from gdmap.minima.minimum import checked_point

# Relative to the size of theta: where the growth rate is measured; the error of a rate there, of curvature beyond
# the Hessian and of rounding.
LINEAR_DISTANCE, LINEAR_ERROR = 1e-8, 1e-6
# Steps of the growth measurement that are left out, and that count.
ALIGNING, MEASURED = 512, 1024
# A start that returned ends where all steps have shrunk by this factor, and are rounding noise or this share of
# the way. (Close to the threshold a contraction amplifies rounding: the noise of a map that is not random can be
# that large.)
SHRUNK, AT_REST = 1e-3, 1e-9
NEAREST, FARTHEST = 1e-9, 1e-1
FEWEST = 10
# Standard errors by which the growth rate may differ from the prediction.
AGREES_WITHIN = 4.0


class Destination(IntEnum):
    """What became of a start near a minimum."""

    UNDECIDED = 0
    RETURNED = 1
    ESCAPED = 2


class Neighbourhood(NamedTuple):
    """A minimum, refined, with its size and an orthonormal basis ``(dim, r)`` of the normal space.

    ``slowest``, shape ``(r,)``: the direction of least curvature, in coordinates of that basis.
    """

    theta: np.ndarray
    size: float
    normal: np.ndarray
    slowest: np.ndarray


def escape_or_return(
    map: GradientDescent | StochasticGradientDescent,  # noqa: A002 - the name of the concept
    theta: Any,
    *,
    distance: float = 1e-3,
    starts: int = 200,
    max_steps: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    prediction: Exponent | None = None,
) -> xr.Dataset:
    """Simulate starts near a minimum under the full map, and compare with the exponent there.

    The theorems (Chemnitz & Engel, JMLR 26(134), 2025, A and B): with a negative exponent a start returns with a
    probability that tends to 1 as the distance tends to 0; with a positive one it does so with probability 0.

    *Growth rate.* Beside the minimum, at 1e-8 of its size, steps of the full map are made with the batches of a
    trajectory, and after each the part of the displacement in the normal space is brought back to that distance.
    So no trajectory leaves the linear regime, and none is selected for staying in it. 512 steps are left out, the
    mean logarithm of the growth over the next 1,024 is the rate of a start.

    *Outcome.* From ``distance`` the map is run freely. A start has ``escaped`` when it first is farther from the
    minimum than ``sqrt(distance)`` times its size (the neighbourhood shrinks with the distance, but excursions
    within it may grow without bound), when an update is not finite, or when it comes to rest farther away than it
    started: at another minimum, flatter as a rule. (A start that returns ends at a distance of the order of the
    square of its largest excursion.) It has ``returned`` when it comes to rest nearer: the step of every sample is
    rounding noise (for maps that are not random: or 1e-9 of the way), and a thousandth at most of that at the
    start. Otherwise it is ``undecided``.

    Parameters
    ----------
    map
        ``GradientDescent`` or ``StochasticGradientDescent``.
    theta
        The minimum, shape ``(dim,)``, verified and refined; for random batches every sample's gradient vanishes.
    distance
        Of the starts, relative to the size of ``theta`` (absolute at 0), from 1e-9 to 0.1, in random directions of
        the normal space.
    starts
        Their number, at least 10.
    max_steps
        The horizon.
    seed
        Of the directions and the batches; start ``i`` depends on ``(seed, i)`` alone.
    confidence
        Of the Wilson intervals of the shares.
    prediction
        The exponent, where it has been computed; by default `gd_exponent` or `sgd_exponent`.

    Returns
    -------
    xarray.Dataset
        Over ``start``: ``outcome`` (flags; `gdmap.ensembles.outcome_names`), ``steps`` to it, ``growth_rate``, and
        ``final_distance`` relative to the size of ``theta``. Scalars: ``share_returned``, ``share_escaped`` with
        ``_lower`` and ``_upper`` (status *estimated*), ``mean_growth_rate`` with ``mean_growth_rate_error``
        (standard error over the starts; for a map that is not random the drift between the halves of the
        measurement and the linearisation count too), ``predicted_exponent`` with ``_lower`` and ``_upper``,
        ``growth_rate_z`` (difference over the joint error; NaN where the prediction has no finite interval, as at
        a multiplier of 0), and ``agrees``: ``|z| <= 4`` and the outcomes are no contradiction. They are one if of
        a stable minimum starts escaped and none returned; if of an unstable one some returned, or under random
        batches not certainly less than half did (rounding catches a share of them).

    Raises
    ------
    TypeError
        For other maps, or a prediction that is no `Exponent`.
    ValueError
        If ``theta`` is not such a minimum, and for arguments out of range, naming them.
    """
    steps = _checked_map(map)
    _check(distance, starts, max_steps, confidence)
    checked_counter(seed, "seed")
    if prediction is not None and not isinstance(prediction, Exponent):
        raise TypeError(f"prediction must be an Exponent, from gd_exponent or sgd_exponent, got {prediction!r}")
    near = _neighbourhood(map, theta)
    predicted = predicted_exponent(map, near.theta) if prediction is None else prediction
    is_random = isinstance(map, StochasticGradientDescent) and not map.batches.is_deterministic
    directions = gaussian_starts(starts, near.normal.shape[1], seed)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    step_size = np.full(starts, float(map.step_size))
    # Mostly along what contracts most slowly, where a stable product ends up; the rest finds what grows.
    mixed = near.slowest + directions / 2
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    halves = growth_rates(steps, near, step_size, mixed, np.arange(starts) + starts, seed)
    at_rest = RANDOM_STEP_TOLERANCE if is_random else AT_REST
    outcome, taken, final = outcomes(steps, near, step_size, directions, distance, max_steps, seed, at_rest)

    rate = halves.mean(axis=1)
    look = looked_at(halves[:, :, None])
    mean = look.mean
    doubt = look.bias if is_random else abs(look.drift)
    error = float(np.hypot(look.standard_error + doubt, LINEAR_ERROR))
    z = _z(mean, error, predicted)
    returned, escaped = (int(np.sum(outcome == kind)) for kind in (Destination.RETURNED, Destination.ESCAPED))
    share = {
        name: _wilson(count, starts, confidence) for name, count in (("returned", returned), ("escaped", escaped))
    }
    possible = {
        "stable": returned > 0 or escaped == 0,
        "unstable": share["returned"][2] < 0.5 if is_random else returned == 0,
        "undecided": True,
    }[predicted.verdict]
    dataset = xr.Dataset(
        {
            "outcome": ("start", outcome),
            "steps": ("start", taken),
            "growth_rate": ("start", rate),
            "final_distance": ("start", final),
            "mean_growth_rate": mean,
            "mean_growth_rate_error": error,
            "predicted_exponent": predicted.value,
            "predicted_exponent_lower": predicted.lower,
            "predicted_exponent_upper": predicted.upper,
            "growth_rate_z": z,
            "agrees": bool(possible and not abs(z) > AGREES_WITHIN),
        },
        coords={"start": np.arange(starts)},
    )
    for name, values in share.items():
        for suffix, value in zip(("", "_lower", "_upper"), values, strict=True):
            dataset[f"share_{name}{suffix}"] = value
    dataset.attrs = {
        "map": repr(map),
        "distance": float(distance),
        "max_steps": int(max_steps),
        "seed": int(seed),
        "verdict": predicted.verdict,
        "status": "estimated",
        **environment(),
    }
    return _annotate(dataset, starts, confidence, predicted)


def predicted_exponent(map_: GradientDescent | StochasticGradientDescent, theta: np.ndarray) -> Exponent:
    """The exponent mu of gradient descent, lambda of stochastic gradient descent."""
    eta = float(map_.step_size)
    if isinstance(map_, GradientDescent):
        return gd_exponent(map_.objective, theta, eta)
    law = map_.batches
    p = _probabilities(map_)
    return sgd_exponent(map_.objective, theta, eta, law.size, p, law.replace, shuffle=law.shuffle)


def _probabilities(map_: StochasticGradientDescent) -> np.ndarray:
    """Those of the map, also where the objective has weights of its own."""
    law = map_.batches
    return np.full(law.n_samples, 1 / law.n_samples) if law.probabilities is None else law.probabilities


class NearGrowth(eqx.Module):
    """The growth of one displacement kept at a small length, per step, over the two halves of what is measured."""

    steps: Steps
    seed: np.ndarray
    theta: np.ndarray
    normal: np.ndarray
    length: np.ndarray

    def __call__(self, parameter: Any, direction: Any, trajectory: Any) -> Any:
        """Means of the logarithm of the growth, shape ``(2,)``."""
        key = trajectory_key(self.seed, trajectory)
        # A displacement that a step wipes out is seen at the size of rounding.
        floor = jnp.finfo(jnp.float64).eps / LINEAR_DISTANCE

        def one_step(direction: Any, time: Any) -> tuple[Any, Any]:
            state = self.theta + self.length * (self.normal @ direction)
            moved = self.normal.T @ (self.steps.update(parameter, state, key, time) - self.theta) / self.length
            growth = lengths(moved)
            lives = growth > floor
            direction = jnp.where(lives, moved / jnp.where(lives, growth, 1.0), direction)
            return direction, jnp.log(jnp.maximum(growth, floor))

        _, rates = jax.lax.scan(one_step, direction, jnp.arange(ALIGNING + MEASURED))
        return rates[ALIGNING:].reshape(2, -1).mean(axis=1)


def growth_rates(
    steps: Steps,
    near: Neighbourhood,
    parameter: np.ndarray,
    directions: np.ndarray,
    trajectory: np.ndarray,
    seed: int,
) -> np.ndarray:
    """`NearGrowth` from every direction (a unit vector in coordinates of the normal space), ``(starts, 2)``."""
    length = np.asarray(LINEAR_DISTANCE * near.size)
    growth = NearGrowth(steps, np.asarray(seed, np.int64), near.theta, near.normal, length)
    arguments = (parameter, directions, trajectory.astype(np.int64))
    return np.asarray(on_lanes(growth, arguments, block_size(64 * len(near.theta))))


def outcomes(
    steps: Steps,
    near: Neighbourhood,
    parameter: np.ndarray,
    directions: np.ndarray,
    distance: float,
    max_steps: int,
    seed: int,
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`Destination` codes, steps to them and final distances of the free runs."""
    count = len(directions)
    state = near.theta + distance * near.size * (directions @ near.normal.T)
    radius = np.full(count, np.sqrt(distance) * near.size)
    centre = np.broadcast_to(near.theta, state.shape)
    lanes = fresh_lanes(parameter, state, np.arange(count), centre, radius, max_steps)

    def judge(lanes: RandomLanes) -> Verdicts:
        verdicts = Verdicts.none(len(lanes.state), Reason.SLOW_CONVERGENCE)
        longest, _ = possible_steps(steps, lanes.parameter, lanes.state)
        at_start, _ = possible_steps(steps, lanes.parameter, lanes.start)
        way = np.linalg.norm(lanes.state - lanes.start, axis=1)
        size = np.linalg.norm(lanes.state, axis=1)
        noise = is_negligible(longest, way, size, tolerance, float(np.finfo(float).eps))
        verdicts.given[:] = noise & (longest <= SHRUNK * at_start)
        return verdicts

    lanes, verdicts = iterate_random(steps, lanes, seed, tolerance, judge)
    final = np.linalg.norm(lanes.state - near.theta, axis=1) / near.size
    outcome = np.full(count, Destination.UNDECIDED, np.int8)
    at_rest = verdicts.given
    outcome[at_rest] = np.where(final[at_rest] <= distance, Destination.RETURNED, Destination.ESCAPED)
    outcome[np.isin(lanes.signal, (ESCAPED, OVERFLOWN, UNDEFINED))] = Destination.ESCAPED
    taken = np.where(at_rest & (lanes.signal == STATIONARY), lanes.steps - lanes.streak, lanes.steps)
    return outcome, taken, final


def outcome_names(dataset: xr.Dataset) -> np.ndarray:
    """The outcomes in ``dataset.outcome`` as strings, same shape."""
    return flag_names(dataset["outcome"])


def _neighbourhood(map_: GradientDescent | StochasticGradientDescent, theta: Any) -> Neighbourhood:
    theta = checked_point(map_.objective, theta)
    if isinstance(map_, StochasticGradientDescent):
        point: Any = interpolating_minimum(map_.objective, theta, _probabilities(map_))
        found, normal = point.theta, point.basis
        slowest = slowest_direction(point, map_.batches.mean())
    elif map_.objective.dim > DENSE_LIMIT:
        point = interpolating_minimum(map_.objective, theta)
        found, normal = point.theta, point.basis
        slowest = slowest_direction(point, point.probabilities)
    else:
        minimum = verified_minimum(map_.objective, theta)
        found, normal = minimum.theta, minimum.normal_basis
        curvature = minimum.eigenvalues[minimum.nullity :]
        slowest = np.eye(len(curvature))[np.argmin(curvature)] if len(curvature) else np.zeros(0)
    if not normal.shape[1]:
        raise ValueError("the normal space is zero: the Hessian vanishes at theta, so nothing returns or escapes")
    return Neighbourhood(found, float(np.linalg.norm(found)) or 1.0, np.ascontiguousarray(normal), slowest)


def slowest_direction(point: Any, weights: np.ndarray) -> np.ndarray:
    """The direction of least curvature of the loss with these weights, in coordinates of the normal space."""
    return np.asarray(np.linalg.eigh(point.mean_matrix(weights))[1][:, 0])


def _checked_map(map_: Any) -> Steps:
    if isinstance(map_, StochasticGradientDescent):
        return sampled_steps(map_)
    if isinstance(map_, GradientDescent):
        return SameSteps(map_)
    what = "this map has no exponent here" if isinstance(map_, (Map, RandomMap)) else "it is no map"
    raise TypeError(f"map must be a GradientDescent or a StochasticGradientDescent, got {map_!r}: {what}")


def _check(distance: Any, starts: Any, max_steps: Any, confidence: Any) -> None:
    numbers = (int, float, np.number)
    if not isinstance(distance, numbers) or not NEAREST <= distance <= FARTHEST:
        raise ValueError(
            f"distance must be from {NEAREST} to {FARTHEST}, relative to the size of theta, got {distance!r}"
        )
    for name, value, least in (("starts", starts, FEWEST), ("max_steps", max_steps, 1)):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if not isinstance(confidence, numbers) or not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence!r}")


def _z(mean: float, error: float, predicted: Exponent) -> float:
    if not np.isfinite([predicted.lower, predicted.upper]).all():
        return float("nan")
    if predicted.standard_error is not None:
        doubt = predicted.standard_error
    else:
        doubt = max(predicted.upper - predicted.value, predicted.value - predicted.lower)
    return float((mean - predicted.value) / np.hypot(error, doubt))


def _wilson(count: int, number: int, confidence: float) -> tuple[float, float, float]:
    interval = binomtest(count, number).proportion_ci(confidence, method="wilson")
    return count / number, float(interval.low), float(interval.high)


def _annotate(dataset: xr.Dataset, starts: int, confidence: float, predicted: Exponent) -> xr.Dataset:
    rate = {"units": "1/step", "status": "estimated"}
    wilson = {
        "units": "1",
        "status": "estimated",
        "confidence": confidence,
        "method": f"Wilson score interval over {starts} starts",
    }
    given = {"units": "1/step", "status": predicted.status, "method": predicted.method}
    attributes: dict[str, dict[str, Any]] = {
        "outcome": {"long_name": "what became of the start", "status": "computed", **flag_attributes(Destination)},
        "steps": {"long_name": "steps to the outcome", "status": "computed", "units": "steps"},
        "growth_rate": {"long_name": "mean growth of the logarithm of a small distance", **rate},
        "final_distance": {
            "long_name": "final distance from the minimum, relative to its size",
            "status": "computed",
            "units": "1",
        },
        "mean_growth_rate": {"long_name": "mean growth rate over the starts", **rate},
        "mean_growth_rate_error": {"long_name": "its standard error", **rate},
        "predicted_exponent": {"long_name": "predicted exponent", **given},
        "predicted_exponent_lower": {"long_name": "lower end of the predicted exponent", **given},
        "predicted_exponent_upper": {"long_name": "upper end of the predicted exponent", **given},
        "growth_rate_z": {"long_name": "growth rate minus prediction, in joint standard errors", "units": "1"},
        "agrees": {"long_name": "whether the simulation agrees with the prediction", "status": "estimated"},
        "start": {"long_name": "index of the start"},
    }
    for name in ("returned", "escaped"):
        attributes[f"share_{name}"] = {"long_name": f"share of the starts that {name}", **wilson}
        for side in ("lower", "upper"):
            long_name = f"{side} end of its confidence interval"
            attributes[f"share_{name}_{side}"] = {"long_name": long_name, **wilson}
    for name, attribute in attributes.items():
        dataset[name].attrs.update(attribute)
    return dataset

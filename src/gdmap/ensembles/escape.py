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
from gdmap.exponents.interpolation import InterpolatingMinimum, interpolating_minimum
from gdmap.exponents.sgd_exponent import (
    QUARTERS,
    Look,
    invariant_blocks,
    looked_at,
    sgd_exponent,
    slow_and_random,
)
from gdmap.flags import flag_attributes, flag_names
from gdmap.maps import GradientDescent, Map, RandomMap, StochasticGradientDescent
from gdmap.maps.batches import trajectory_key
from gdmap.maps.stochastic_gradient_descent import checked_counter
from gdmap.minima import verified_minimum
from gdmap.minima.critical_points import DENSE_LIMIT
from gdmap.minima.minimum import checked_point

# Relative to the size of theta: where the growth rate is measured; the error of a rate there, of curvature beyond
# the Hessian.
LINEAR_DISTANCE, LINEAR_ERROR = 1e-8, 1e-6
# Rounding there, relative to the displacement; one that a step makes shorter than FLOOR of itself is seen as that.
NOISE = 4 * float(np.finfo(float).eps) / LINEAR_DISTANCE
FLOOR = 16 * NOISE
# Steps of the growth measurement that are left out (not on lines, where nothing turns), and that count.
ALIGNING, MEASURED = 512, 1024
# A start that returned ends where all steps have shrunk by this factor, and are rounding noise or this share of
# the way. (Close to the threshold a contraction amplifies rounding: the noise of a map that is not random can be
# that large.)
SHRUNK, AT_REST = 1e-3, 1e-9
NEAREST, FARTHEST = 1e-9, 1e-1
FEWEST = 10
SHORTEST_HORIZON, LONGEST_HORIZON = 10_000, 200_000
# Standard errors by which the growth rate may differ from the prediction.
AGREES_WITHIN = 4.0


class Destination(IntEnum):
    """What became of a start near a minimum."""

    UNDECIDED = 0
    RETURNED = 1
    ESCAPED = 2


class Neighbourhood(NamedTuple):
    """A minimum, refined, with its size and an orthonormal basis ``(dim, r)`` of the normal space.

    ``eigenvectors``, shape ``(r, r)``: those of the Hessian, as rows in coordinates of that basis. ``point``: the
    minimum with its sample Hessians, where batches are random.
    """

    theta: np.ndarray
    size: float
    normal: np.ndarray
    eigenvectors: np.ndarray
    point: InterpolatingMinimum | None = None


class Rate(NamedTuple):
    """A measured growth rate per step: its mean, its standard error and those beside it.

    The truth may be lower than the mean by ``excess`` or higher by ``memory``; where a step was ``floored`` it may
    be lower by any amount. ``of_starts``: the rate of each start.
    """

    mean: float
    error: float
    excess: float
    memory: float
    floored: bool
    of_starts: np.ndarray


def escape_or_return(
    map: GradientDescent | StochasticGradientDescent,  # noqa: A002 - the name of the concept
    theta: Any,
    *,
    distance: float = 1e-3,
    starts: int = 200,
    max_steps: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    prediction: Exponent | None = None,
) -> xr.Dataset:
    """Simulate starts near a minimum under the full map, and compare with the exponent there.

    The theorems (Chemnitz & Engel, JMLR 26(134), 2025, A and B): with a negative exponent a start returns with a
    probability that tends to 1 as the distance tends to 0; with a positive one it does so with probability 0.

    *Growth rate.* Beside the minimum, at 1e-8 of its size, steps of the full map are made, and after each the part
    of the displacement in the normal space is brought back to that distance. So no trajectory leaves the linear
    regime, and none is selected for staying in it. A map that is not random makes one step from every eigenvector
    of the Hessian, and the largest logarithm of the growth is the rate. Under random batches each start draws
    those of a trajectory, once in every subspace that all sample Hessians leave invariant (as in `sgd_exponent`),
    with two displacements: 512 steps are left out (none on lines), the mean over the next 1,024 is the rate of the
    start, and the subspace with the largest mean counts.

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
        The horizon; by default 40 / |exponent|, from 10,000 to 200,000 steps.
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
        ``_lower`` and ``_upper`` (status *estimated*; the undecided may be either), ``share_undecided``,
        ``mean_growth_rate`` with ``mean_growth_rate_error`` (standard error over the starts, linearisation and
        rounding) and the attributes ``excess`` and ``memory`` (by how much the rate may be too large because two
        exponents are not told apart, and too small because the displacement has not turned yet),
        ``predicted_exponent`` with ``_lower`` and ``_upper``, ``growth_rate_z``: by how much the rate differs,
        beyond ``excess`` and ``memory``, over the joint error. A prediction with one finite end is compared with
        that end alone. A step that wipes a displacement out, up to rounding, makes the rate an upper bound
        (attribute ``floored``), which only a larger prediction contradicts; where there is none a prediction of
        minus infinity is wrong (z is infinite). NaN: no finite end. ``agrees``: ``|z| <= 4`` and the outcomes are
        no contradiction. They are one if every start escaped from a stable minimum; if some start returned to an
        unstable one, or under random batches certainly more than half did (rounding catches a share of them).

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
    horizon = enough_steps(predicted.value) if max_steps is None else max_steps
    directions = gaussian_starts(starts, near.normal.shape[1], seed)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    step_size = np.full(starts, float(map.step_size))
    is_random = isinstance(map, StochasticGradientDescent) and not map.batches.is_deterministic
    if isinstance(map, StochasticGradientDescent) and is_random:
        rate = random_rate(steps, near, map, starts, seed)
    else:
        rate = single_rate(steps, near, map, starts)
    at_rest = RANDOM_STEP_TOLERANCE if is_random else AT_REST
    outcome, taken, final = outcomes(steps, near, step_size, directions, distance, horizon, seed, at_rest)

    z = _z(rate, predicted)
    returned, escaped = (int(np.sum(outcome == kind)) for kind in (Destination.RETURNED, Destination.ESCAPED))
    undecided = starts - returned - escaped
    share = {
        name: _share(count, undecided, starts, confidence)
        for name, count in (("returned", returned), ("escaped", escaped))
    }
    possible = {
        "stable": escaped < starts,
        "unstable": share["returned"][1] <= 0.5 if is_random else returned == 0,
        "undecided": True,
    }[predicted.verdict]
    dataset = xr.Dataset(
        {
            "outcome": ("start", outcome),
            "steps": ("start", taken),
            "growth_rate": ("start", rate.of_starts),
            "final_distance": ("start", final),
            "share_undecided": undecided / starts,
            "mean_growth_rate": rate.mean,
            "mean_growth_rate_error": rate.error,
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
        "max_steps": int(horizon),
        "seed": int(seed),
        "verdict": predicted.verdict,
        "status": "estimated",
        **environment(),
    }
    _annotate(dataset, starts, confidence, predicted)
    dataset.mean_growth_rate.attrs |= {
        "excess": rate.excess,
        "memory": rate.memory,
        "floored": int(rate.floored),
    }
    return dataset


def enough_steps(exponent: float) -> int:
    """A horizon in which a displacement shrinks to rounding at this rate, within bounds."""
    slowest, fastest = LONGEST_HORIZON, SHORTEST_HORIZON
    wanted = 40 / abs(exponent) if exponent else np.inf
    return int(np.clip(wanted, fastest, slowest))


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
    """The growth of displacements kept at a small length, per step, over the quarters of what is measured.

    ``basis``, shape ``(dim, r)``: of an invariant subspace, to which the images are projected.
    """

    steps: Steps
    seed: np.ndarray
    theta: np.ndarray
    basis: np.ndarray
    length: np.ndarray
    aligning: int = eqx.field(static=True)

    def __call__(self, parameter: Any, directions: Any, trajectory: Any) -> tuple[Any, Any, Any]:
        """From one or two directions ``(k, r)``: means of the logarithm of the growth, ``(QUARTERS, k)``; the mean
        error of the first by rounding; whether any step of it was shorter than can be seen.
        """
        key = trajectory_key(self.seed, trajectory)

        def unit(vector: Any, before: Any) -> tuple[Any, Any]:
            length = lengths(vector)
            lives = length > FLOOR
            return jnp.where(lives, vector / jnp.where(lives, length, 1.0), before), jnp.maximum(length, FLOOR)

        def one_step(directions: Any, time: Any) -> tuple[Any, Any]:
            def image(direction: Any) -> Any:
                state = self.theta + self.length * (self.basis @ direction)
                moved = self.steps.update(parameter, state, key, time) - self.theta
                return self.basis.T @ moved / self.length

            moved = jax.vmap(image)(directions)
            first, length = unit(moved[0], directions[0])
            units, growths = [first], [length]
            if len(directions) > 1:
                aside = moved[1] - (moved[1] @ first) * first
                second, length = unit(aside - (aside @ first) * first, directions[1])
                units.append(second)
                growths.append(length)
            return jnp.stack(units), jnp.stack(growths)

        _, growth = jax.lax.scan(one_step, directions, jnp.arange(self.aligning + MEASURED))
        growth = growth[self.aligning :]
        rates = jnp.log(growth).reshape(QUARTERS, -1, len(directions)).mean(axis=1)
        return rates, jnp.mean(NOISE / growth[:, 0]), jnp.any(growth[:, 0] <= FLOOR)


def growth_rates(
    steps: Steps,
    near: Neighbourhood,
    basis: np.ndarray,
    parameter: np.ndarray,
    directions: np.ndarray,
    trajectory: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`NearGrowth` from directions ``(starts, k, r)`` in the subspace with that basis, one row for each start."""
    length = np.asarray(LINEAR_DISTANCE * near.size)
    aligning = ALIGNING if basis.shape[1] > 1 else 0
    growth = NearGrowth(
        steps, np.asarray(seed, np.int64), near.theta, np.ascontiguousarray(basis), length, aligning
    )
    directions = directions / np.linalg.norm(directions, axis=2, keepdims=True)
    arguments = (parameter, directions, trajectory.astype(np.int64))
    rates, noise, floored = on_lanes(growth, arguments, block_size(128 * len(near.theta)))
    return np.asarray(rates), np.asarray(noise), np.asarray(floored)


def random_rate(
    steps: Steps, near: Neighbourhood, map_: StochasticGradientDescent, starts: int, seed: int
) -> Rate:
    """The largest mean rate over the invariant blocks, for random batches."""
    assert near.point is not None
    step_size = np.full(starts, float(map_.step_size))
    found = []
    for block in invariant_blocks(near.point):
        assert block.basis is not None
        directions = slow_and_random(block, map_.batches, starts)
        rates, noise, floored = growth_rates(
            steps, near, block.basis, step_size, directions, np.arange(starts) + starts, seed
        )
        look = looked_at(rates, ALIGNING, block.rank)
        found.append(_rate(look, rates, float(noise.mean()), bool(floored.any())))
    return max(found, key=lambda rate: rate.mean)


def _rate(look: Look, rates: np.ndarray, noise: float, floored: bool) -> Rate:
    error = float(np.hypot(look.standard_error + look.bias, LINEAR_ERROR + noise))
    return Rate(look.mean, error, look.excess, look.memory, floored, rates[:, :, 0].mean(axis=1))


class OneStep(eqx.Module):
    """The logarithm of the growth of one displacement in one step of a map that is not random."""

    steps: Steps
    theta: np.ndarray
    basis: np.ndarray

    def __call__(self, parameter: Any, direction: Any, length: Any) -> Any:
        """A scalar, from a direction of shape ``(r,)``."""
        state = self.theta + length * (self.basis @ direction)
        moved = self.steps.update(parameter, state, trajectory_key(0, 0), 0) - self.theta
        return jnp.log(jnp.maximum(lengths(self.basis.T @ moved / length), FLOOR))


def single_rate(
    steps: Steps, near: Neighbourhood, map_: GradientDescent | StochasticGradientDescent, starts: int
) -> Rate:
    """The largest growth along the eigenvectors of the Hessian, and at half the distance, which is its error."""
    one_step = OneStep(steps, near.theta, near.normal)
    count = len(near.eigenvectors)
    growth = []
    for length in (LINEAR_DISTANCE * near.size, LINEAR_DISTANCE * near.size / 2):
        arguments = (np.full(count, float(map_.step_size)), near.eigenvectors, np.full(count, length))
        growth.append(float(np.max(on_lanes(one_step, arguments, block_size(128 * len(near.theta))))))
    mean = growth[0]
    error = LINEAR_ERROR + NOISE / np.exp(mean) + abs(growth[0] - growth[1])
    return Rate(mean, float(error), 0.0, 0.0, bool(mean <= np.log(FLOOR)), np.full(starts, mean))


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
    point = None
    if isinstance(map_, StochasticGradientDescent):
        point = interpolating_minimum(map_.objective, theta, _probabilities(map_))
        found, normal = point.theta, point.basis
        eigenvectors = np.linalg.eigh(point.mean_matrix(map_.batches.mean()))[1].T
    elif map_.objective.dim > DENSE_LIMIT:
        point = interpolating_minimum(map_.objective, theta)
        found, normal = point.theta, point.basis
        eigenvectors = np.linalg.eigh(point.mean_matrix(point.probabilities))[1].T
    else:
        minimum = verified_minimum(map_.objective, theta)
        found, normal = minimum.theta, minimum.normal_basis
        eigenvectors = np.eye(normal.shape[1])
    if normal is None or not normal.shape[1]:
        raise ValueError("the normal space is zero: the Hessian vanishes at theta, so nothing returns or escapes")
    size = float(np.linalg.norm(found)) or 1.0
    return Neighbourhood(found, size, np.ascontiguousarray(normal), np.ascontiguousarray(eigenvectors), point)


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
    counts = [("starts", starts, FEWEST)] + ([] if max_steps is None else [("max_steps", max_steps, 1)])
    for name, value, least in counts:
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if not isinstance(confidence, numbers) or not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence!r}")


def _z(rate: Rate, predicted: Exponent) -> float:
    """The difference over the joint error, where there is something to compare: see `escape_or_return`."""
    below, above = np.isfinite(predicted.lower), np.isfinite(predicted.upper)
    if predicted.upper == -np.inf:
        return 0.0 if rate.floored else np.inf
    if not below and not above:
        return float("nan")
    if below and above:
        difference = rate.mean - predicted.value
        width = predicted.upper - predicted.value if difference > 0 else predicted.value - predicted.lower
        doubt = width if predicted.standard_error is None else predicted.standard_error
        # An interval can be wider on one side than sampling makes it.
        slack = max(0.0, width - AGREES_WITHIN * doubt)
    else:
        difference = max(0.0, rate.mean - predicted.upper) if above else min(0.0, rate.mean - predicted.lower)
        doubt, slack = predicted.standard_error or 0.0, 0.0
    if difference > 0 and rate.floored:
        return 0.0
    slack += rate.excess if difference > 0 else rate.memory
    beyond = max(0.0, abs(difference) - slack)
    return float(np.copysign(beyond / np.hypot(rate.error, doubt), difference))


def _share(count: int, undecided: int, number: int, confidence: float) -> tuple[float, float, float]:
    """The share, and the ends of Wilson's interval if no one, or everyone, of the undecided belongs to it."""

    def interval(successes: int) -> Any:
        return binomtest(successes, number).proportion_ci(confidence, method="wilson")

    return count / number, float(interval(count).low), float(interval(count + undecided).high)


def _annotate(dataset: xr.Dataset, starts: int, confidence: float, predicted: Exponent) -> None:
    rate = {"units": "1/step", "status": "estimated"}
    wilson = {
        "units": "1",
        "status": "estimated",
        "confidence": confidence,
        "method": f"Wilson score interval over {starts} starts; those undecided may be either",
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
        "share_undecided": {"long_name": "share of the starts undecided at the horizon", "status": "computed"},
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

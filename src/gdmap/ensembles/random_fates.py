"""The fates of trajectories of stochastic gradient descent."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from gdmap.engines.xla import ESCAPED, OVERFLOWN, RUNNING, UNDEFINED, block_size, on_lanes
from gdmap.ensembles.fates import Fate, Reason
from gdmap.ensembles.iteration import Criteria, Outcome
from gdmap.ensembles.random_iteration import (
    RECORDED,
    STREAK,
    RandomLanes,
    Steps,
    fresh_lanes,
    is_negligible,
    iterate_random,
    lengths,
    possible_steps,
    sampled_steps,
)
from gdmap.ensembles.verdicts import FIXED_POINT_BASIN, Verdicts, in_double, observe
from gdmap.exponents.interpolation import interpolating_minimum
from gdmap.maps import ConstantFamily, GradientDescent, StochasticGradientDescent
from gdmap.maps.batches import trajectory_key
from gdmap.minima.critical_points import (
    DENSE_LIMIT,
    OF_MINIMA,
    OF_SADDLES,
    Evidence,
    loss_and_gradient,
    refine_critical_points,
)
from gdmap.minima.descent import descend
from gdmap.orbits.cycles import NULL
from gdmap.spectra.dense import for_each

# An excursion of a trajectory that ends at a minimum can be this long.
ESCAPE_RADIUS = 1e100
# The growth along the limit is watched over so many blocks of so many steps, the first two left out.
GROWTH_BLOCKS, GROWTH_STEPS, ALIGNING = 18, 128, 2
MOST_GROWTH, PROJECTED_EVERY = 16, 8
SURE = 4.0
# Every sample must be expected to be drawn so often, unless its probability is at least this share of the mean.
DRAWN, RARE = 8.0, 0.25
# A block of fewer steps says nothing.
SHORTEST_BLOCK = 4
# Bounded: over half the horizon the steps changed by less than this factor, the distances by less than that one,
# and the distance from the state halfway is at most this multiple of that from recent states. (Of a random walk it
# is about 3.3 times as large.)
STEADY_STEPS, STEADY_WAY, SPREADS = float(np.log(2)), 0.3, 2.0
# Nothing keeps a trajectory moving if below it all samples' steps are this much shorter than at its end.
FADES, FAR_BELOW, DESCENT_STEPS = 1e-2, 10.0, 4000
# Losses of samples that are zero up to rounding, relative to those at the start.
NO_LOSS = 1e-20


def iterate_to_random_fate(
    map_: StochasticGradientDescent,
    step_size: np.ndarray,
    state: np.ndarray,
    trajectory: np.ndarray,
    seed: int,
    criteria: Criteria,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Iterate each row of ``state`` under ``map_`` with the step size of its row, until it has a fate.

    Row ``i`` draws the batches of ``trajectory[i]``. A trajectory has converged where *every* sample's step is
    rounding noise, Newton's method finds a critical point of the mean loss there, and a small displacement shrinks
    on average under the batches to come.
    """
    steps = sampled_steps(map_)
    mean = map_.mean_map
    radius = criteria.escape_radius * (1 + np.linalg.norm(state.astype(np.float64), axis=1))
    lanes = fresh_lanes(step_size, state, trajectory, np.zeros_like(state), radius, criteria.max_steps)

    def judge(lanes: RandomLanes) -> Verdicts:
        return judge_limits(steps, mean, lanes, seed, criteria.step_tolerance)

    lanes, verdicts = iterate_random(steps, lanes, seed, criteria.step_tolerance, judge, progress)
    _judge_escapes(verdicts, lanes)
    _judge_horizon(verdicts, lanes, criteria.max_steps)
    _judge_bounded(verdicts, steps, mean, lanes)
    converged = verdicts.given & (lanes.signal != ESCAPED) & (lanes.streak >= STREAK)
    observed = observe(ConstantFamily(mean), np.zeros(len(state), state.dtype), lanes.state)
    overflown = verdicts.reason == Reason.OVERFLOW
    return Outcome(
        fate=verdicts.fate,
        reason=verdicts.reason,
        period=verdicts.period,
        # A convergence falls where the noise began.
        steps=np.where(converged, lanes.steps - lanes.streak, lanes.steps),
        loss=np.where(overflown & np.isnan(observed.loss), np.inf, observed.loss),
        gradient_norm=np.where(overflown & np.isnan(observed.gradient_norm), np.inf, observed.gradient_norm),
        state=lanes.state,
    )


def judge_limits(steps: Steps, mean: GradientDescent, lanes: RandomLanes, seed: int, tolerance: float) -> Verdicts:
    """Verdicts on states whose last steps were negligible: is every sample at rest, can the trajectory stay?"""
    verdicts = Verdicts.none(len(lanes.state), Reason.SLOW_CONVERGENCE)
    eps = float(np.finfo(lanes.state.dtype).eps)
    state, start = in_double(lanes.state, lanes.start)
    size, way = np.linalg.norm(state, axis=1), np.linalg.norm(state - start, axis=1)
    longest, still = possible_steps(steps, lanes.parameter, lanes.state)
    rests = np.flatnonzero(is_negligible(longest, way, size, tolerance, eps))
    if not rests.size:
        return verdicts
    if state.shape[1] > DENSE_LIMIT:
        interpolates = _interpolates(steps, mean, start[rests], state[rests])
        verdicts.reason[rests] = Reason.TOO_LARGE_TO_CONFIRM
        verdicts.given[rests] = still[rests]
        at_minimum = rests[interpolates]
        bases = [
            _normal_basis(steps, one) if far > 0 else None
            for one, far in zip(state[at_minimum], way[at_minimum], strict=True)
        ]
        known = np.array([basis is not None for basis in bases], bool) | (way[at_minimum] == 0)
        at_minimum = at_minimum[known]
        verdicts.fate[at_minimum], verdicts.reason[at_minimum] = Fate.MINIMUM, Reason.INTERPOLATING_MINIMUM
        verdicts.given[at_minimum] = True
        tested = at_minimum[way[at_minimum] > 0]
        _judge_growth(verdicts, steps, lanes, tested, [basis for basis in bases if basis is not None], still, seed)
        return verdicts
    points = refine_critical_points(mean.objective, state[rests], way[rests])
    near = points.displacement <= FIXED_POINT_BASIN * way[rests] + 64 * eps * size[rests]
    known = near & (points.evidence != Evidence.NOT_CRITICAL)
    evidence = points.evidence[known]
    minimum, saddle = np.isin(evidence, OF_MINIMA), np.isin(evidence, OF_SADDLES)
    chosen = rests[known]
    verdicts.reason[chosen] = [Reason[Evidence(code).name] for code in evidence]
    verdicts.fate[chosen[minimum]], verdicts.fate[chosen[saddle]] = Fate.MINIMUM, Fate.SADDLE
    at_minimum = chosen[minimum]
    # No sample moves the state: nothing will change any more. A start that is such a point is what it is.
    verdicts.given[chosen] = still[chosen]
    verdicts.given[at_minimum] = True
    tested = np.flatnonzero(way[at_minimum] > 0)
    hessians = points.hessian[known][minimum][tested]
    _judge_growth(verdicts, steps, lanes, at_minimum[tested], curved_directions(hessians), still, seed)
    passing = chosen[saddle & ~still[chosen]]
    verdicts.fate[passing], verdicts.reason[passing] = Fate.UNDECIDED, Reason.NEAR_UNSTABLE_ORBIT
    return verdicts


def _judge_growth(
    verdicts: Verdicts,
    steps: Steps,
    lanes: RandomLanes,
    tested: np.ndarray,
    bases: list[np.ndarray],
    still: np.ndarray,
    seed: int,
) -> None:
    """Take back the verdict of minimum, in place, on tested lanes along which displacements do not shrink."""
    if not tested.size:
        return
    sign = np.zeros(tested.size, np.int8)
    ranks = np.array([basis.shape[1] for basis in bases])
    for rank in np.unique(ranks):
        same = np.flatnonzero(ranks == rank)
        rows = RandomLanes(*(field[tested[same]] for field in lanes))
        sign[same] = sign_of_growth(steps, rows, np.stack([bases[lane] for lane in same]), seed)
    for chosen, reason in ((sign > 0, Reason.NEAR_UNSTABLE_ORBIT), (sign == 0, Reason.MARGINAL_MULTIPLIER)):
        unsure = tested[chosen]
        verdicts.fate[unsure], verdicts.reason[unsure] = Fate.UNDECIDED, reason
        verdicts.given[unsure] = still[unsure]


def curved_directions(hessians: np.ndarray) -> list[np.ndarray]:
    """A basis of the range of each Hessian, filled up with zeros to shape ``(dim, dim)``."""
    bases = []
    for values, vectors in for_each(np.linalg.eigh, hessians):
        bases.append(vectors * (np.abs(values) > NULL * np.abs(values).max()))
    return bases


def _normal_basis(steps: Any, theta: np.ndarray) -> np.ndarray | None:
    """A basis ``(dim, r)`` of the normal space at an interpolating minimum; ``None`` where none is seen."""
    law = steps.map.batches
    p = np.full(law.n_samples, 1 / law.n_samples) if law.probabilities is None else law.probabilities
    try:
        return interpolating_minimum(steps.map.objective, theta, p).basis
    except ValueError:
        return None


class Growth(eqx.Module):
    """The growth of a small displacement along one trajectory at rest: means of log per step, block by block."""

    steps: Steps
    seed: np.ndarray

    def __call__(
        self, parameter: Any, state: Any, basis: Any, displacement: Any, trajectory: Any, step: Any
    ) -> tuple[Any, Any]:
        """The displacement, of length 1, after all blocks, and the rates, shape ``(GROWTH_BLOCKS,)``."""
        key = trajectory_key(self.seed, trajectory)
        tiny = jnp.finfo(jnp.float64).tiny

        def one_step(carry: Any, now: Any) -> tuple[Any, Any]:
            vector, total = carry
            image = jax.jvp(lambda state: self.steps.update(parameter, state, key, now), (state,), (vector,))[1]
            # What rounding puts along the minima does not shrink and would prevail.
            image = jax.lax.cond(
                now % PROJECTED_EVERY == 0, lambda image: basis @ (basis.T @ image), lambda image: image, image
            )
            length = lengths(image)
            lives = length > tiny
            vector = jnp.where(lives, image / jnp.where(lives, length, 1.0), vector)
            return (vector, total + jnp.log(jnp.maximum(length, tiny))), None

        def block(vector: Any, number: Any) -> tuple[Any, Any]:
            times = step + number * GROWTH_STEPS + jnp.arange(GROWTH_STEPS)
            (vector, total), _ = jax.lax.scan(one_step, (vector, jnp.zeros(())), times)
            return vector, total / GROWTH_STEPS

        return jax.lax.scan(block, displacement, jnp.arange(GROWTH_BLOCKS))


def sign_of_growth(steps: Any, lanes: RandomLanes, bases: np.ndarray, seed: int) -> np.ndarray:
    """The sign of the mean growth of a displacement in the spaces with these bases; 0 within four standard errors.

    With a positive exponent almost no trajectory converges: one at rest came to it by rounding, or will leave. The
    batches are those that would follow, as many as it takes, up to `MOST_GROWTH` times `GROWTH_BLOCKS` blocks. The
    spread says nothing of samples that were not drawn: each must be expected `DRAWN` times. (Of very many samples
    with about the same probability those drawn stand for the others.)
    """
    state = lanes.state.astype(np.float64)
    dim = state.shape[1]
    displacement = np.einsum("lik,ljk,j->li", bases, bases, np.random.default_rng(0).standard_normal(dim))
    growth = Growth(steps, np.asarray(seed, np.int64))
    block = block_size(16 * dim * (bases.shape[2] + 4), largest=64)
    law = steps.map.batches
    p = np.full(law.n_samples, 1 / law.n_samples) if law.probabilities is None else law.probabilities
    rarest = float(p[p > 0].min())
    needed = DRAWN / (rarest * law.size)
    if needed > (MOST_GROWTH * GROWTH_BLOCKS - ALIGNING) * GROWTH_STEPS:
        if rarest * np.count_nonzero(p) < RARE:
            return np.zeros(len(state), np.int8)
        needed = (MOST_GROWTH * GROWTH_BLOCKS - ALIGNING) * GROWTH_STEPS
    rates = np.zeros((len(state), 0))
    sign = np.zeros(len(state), np.int8)
    open_ = np.arange(len(state))
    for chunk in range(MOST_GROWTH):
        time = lanes.steps[open_] + chunk * GROWTH_BLOCKS * GROWTH_STEPS
        arguments = (lanes.parameter[open_], state[open_], bases[open_], displacement, lanes.trajectory[open_])
        displacement, found = on_lanes(growth, (*arguments, time), block)
        rates = np.concatenate([rates, found if chunk else found[:, ALIGNING:]], axis=1)
        if rates.shape[1] * GROWTH_STEPS < needed:
            continue
        mean, error = rates.mean(axis=1), rates.std(axis=1, ddof=1) / np.sqrt(rates.shape[1])
        decided = np.abs(mean) > SURE * error + 1e-12
        sign[open_[decided]] = np.sign(mean[decided])
        open_, rates, displacement = open_[~decided], rates[~decided], displacement[~decided]
        if not open_.size:
            break
    return sign


def _interpolates(steps: Any, mean: GradientDescent, start: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Whether every sample's loss is zero up to rounding, or the mean loss is the known optimum."""
    objective = mean.objective
    if objective.knows_optimum:
        loss, _, excess = loss_and_gradient(objective, state)
        return np.asarray(excess <= 16 * np.finfo(float).eps * np.abs(loss))
    at = SampleLossSizes(steps.map, steps.samples)
    block = block_size(64 * state.shape[1])
    before, after = (on_lanes(at, (theta,), block) for theta in (start, state))
    return np.asarray(after <= NO_LOSS * before)


class SampleLossSizes(eqx.Module):
    """The largest modulus of the loss of a sample."""

    map: StochasticGradientDescent
    samples: np.ndarray

    def __call__(self, theta: Any) -> Any:
        """A scalar."""
        values = jax.lax.map(
            lambda sample: self.map.sample_losses.value(theta, sample), jnp.asarray(self.samples, jnp.int32)
        )
        return jnp.max(jnp.abs(values))


def _judge_escapes(verdicts: Verdicts, lanes: RandomLanes) -> None:
    """Fill in the verdicts of lanes that escaped or whose update is not finite, in place."""
    with np.errstate(over="ignore"):
        large = np.abs(lanes.state).max(axis=1) > np.sqrt(np.finfo(lanes.state.dtype).max)
    for chosen, reason in (
        (lanes.signal == ESCAPED, Reason.BEYOND_ESCAPE_RADIUS),
        ((lanes.signal == OVERFLOWN) | ((lanes.signal == UNDEFINED) & large), Reason.OVERFLOW),
        ((lanes.signal == UNDEFINED) & ~large, Reason.UPDATE_UNDEFINED),
    ):
        verdicts.fate[chosen], verdicts.reason[chosen] = Fate.DIVERGED, reason
        verdicts.given[chosen] = True


def _judge_horizon(verdicts: Verdicts, lanes: RandomLanes, max_steps: int) -> None:
    """Fill in the verdicts of lanes still moving at the horizon, in place: bounded, or what speaks against it."""
    moving = ~verdicts.given & (lanes.signal == RUNNING) & (lanes.streak < STREAK)
    where = np.flatnonzero(moving)
    verdicts.reason[where] = Reason.HORIZON_REACHED
    half = max_steps // 2
    if not where.size or max_steps - half < SHORTEST_BLOCK * RECORDED:
        return
    blocks = (np.arange(max_steps - half) * RECORDED) // (max_steps - half)
    count = np.bincount(blocks, minlength=RECORDED)
    with np.errstate(divide="ignore"):
        step = np.log(lanes.squares[where] / count) / 2
        way = np.log(lanes.way[where] / count)
    shown = np.all(np.isfinite(step), axis=1) & np.all(np.isfinite(way), axis=1)
    where, step, way = where[shown], step[shown], way[shown]
    if not where.size:
        return
    (steps_change, steps_error), (way_change, way_error) = trend(step), trend(way)
    shrinks = steps_change < -SURE * steps_error - 1e-9
    grows = (steps_change > SURE * steps_error + 1e-9) | (way_change - SURE * way_error > STEADY_WAY / 3)
    steady = ~shrinks & ~grows
    steady &= np.abs(steps_change) + SURE * steps_error <= STEADY_STEPS
    steady &= np.abs(way_change) + SURE * way_error <= STEADY_WAY
    second = max_steps - half
    late = lanes.far[where] / (second - second // 4)
    steady &= late <= SPREADS * lanes.near[where] / second
    verdicts.reason[where[grows]] = Reason.STILL_GROWING
    verdicts.reason[where[shrinks]] = Reason.STILL_CONVERGING
    verdicts.reason[where[steady]] = Reason.NO_TREND
    verdicts.fate[where[steady]] = Fate.BOUNDED
    verdicts.given[where[steady]] = True


def _judge_bounded(verdicts: Verdicts, steps: Steps, mean: GradientDescent, lanes: RandomLanes) -> None:
    """Take back the verdict of bounded, in place, where the trajectory may be converging slowly after all.

    Something keeps it moving if below it, at a minimum of the mean loss, single samples still make steps. There is
    none where Newton's method (or descent, where Newton's method finds no minimum) comes to a point at which every
    sample's step fades, be it at a finite distance or on the way to infinity.
    """
    bounded = np.flatnonzero(verdicts.fate == Fate.BOUNDED)
    if not bounded.size:
        return
    state, halfway = in_double(lanes.state[bounded], lanes.halfway[bounded])
    parameter = lanes.parameter[bounded]
    moved = np.linalg.norm(state - halfway, axis=1)
    longest, _ = possible_steps(steps, parameter, state)

    def fades(rows: np.ndarray, points: np.ndarray) -> np.ndarray:
        return np.asarray(possible_steps(steps, parameter[rows], points)[0] <= FADES * longest[rows])

    fading = np.zeros(bounded.size, bool)
    below = state.copy()
    open_ = np.arange(bounded.size)
    if state.shape[1] <= DENSE_LIMIT:
        points = refine_critical_points(mean.objective, state, np.maximum(moved, np.finfo(float).tiny))
        found = np.flatnonzero(points.is_minimum)
        if found.size:
            below[found] = points.theta[found]
            fading[found] = fades(found, points.theta[found])
        # A minimum far away says nothing where samples move there: another one may be nearer.
        settled = points.is_minimum & (fading | (points.displacement <= FAR_BELOW * moved))
        open_ = np.flatnonzero(~settled)
    if open_.size:
        below[open_] = _descended(mean, state[open_])
        finite = np.all(np.isfinite(below[open_]), axis=1)
        fading[open_[~finite]] = True
        if finite.any():
            fading[open_[finite]] = fades(open_[finite], below[open_[finite]])
    with np.errstate(invalid="ignore"):
        near = np.linalg.norm(below - state, axis=1) <= moved
    for chosen, reason in ((fading & near, Reason.STILL_CONVERGING), (fading & ~near, Reason.HORIZON_REACHED)):
        rows = bounded[chosen]
        verdicts.fate[rows], verdicts.reason[rows], verdicts.given[rows] = Fate.UNDECIDED, reason, False


def _descended(mean: GradientDescent, state: np.ndarray) -> np.ndarray:
    """Where quasi-Newton methods for the mean loss lead from each row; NaN towards infinity."""
    if state.shape[1] <= DENSE_LIMIT:
        return descend(mean.objective, state)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient, _ = loss_and_gradient(mean.objective, theta[None])
        return float(value[0]), gradient[0]

    options = {"maxiter": DESCENT_STEPS, "ftol": 0.0, "gtol": 0.0}
    return np.stack([minimize(loss, one, jac=True, method="L-BFGS-B", options=options).x for one in state])


def trend(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The change of each row over its length by linear regression, with its standard error.

    The error counts the correlation of neighbouring residuals, so that a random walk is not taken for steady.
    """
    length = series.shape[1]
    time = (np.arange(length) - (length - 1) / 2) / length
    slope = series @ time / (time @ time)
    residual = series - series.mean(axis=1, keepdims=True) - slope[:, None] * time
    variance = np.sum(residual**2, axis=1)
    neighbours = np.sum(residual[:, 1:] * residual[:, :-1], axis=1)
    correlation = np.clip(neighbours / np.maximum(variance, 1e-300), 0.0, 0.99)
    error = np.sqrt(variance / (length - 2) / (time @ time) * (1 + correlation) / (1 - correlation))
    return slope, error

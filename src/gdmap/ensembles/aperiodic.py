"""Verdicts on trajectories that are still moving at the horizon: chaotic, quasiperiodic, or at a threshold.

Each is followed further with one tangent vector, for the verdict alone. Nothing here rests on a small exponent by
itself: a drift, a slow approach and a slow departure have small exponents too.
"""

from copy import copy
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.long_run import long_run
from gdmap.engines.precision import for_tracing
from gdmap.engines.xla import block_size, compiled, in_blocks, norms, on_lanes
from gdmap.ensembles.fates import Fate, Reason
from gdmap.ensembles.verdicts import (
    CYCLE_DEFECT,
    MULTIPLIER_MARGIN,
    Verdicts,
    in_double,
    radii_off_one,
    without_rounding,
)
from gdmap.maps import Family, Torus
from gdmap.minima.critical_points import DENSE_LIMIT
from gdmap.orbits import is_on_a_family, refine_cycles
from gdmap.orbits.cycles import Cycles, Orbit, null_basis
from gdmap.orbits.lyapunov import drifts
from gdmap.orbits.multipliers import Verdict, multipliers_of
from gdmap.orbits.shooting import linearise
from gdmap.spectra.dense import for_each

# The orbit is seen through so many coordinates: the state itself, or random projections of it.
SEEN = 4
# Parameters up to which orbits are examined in wide blocks.
NARROW = 8
CHUNK = 1024
# Windows, in chunks, each tried if the one before did not decide; GROUP trajectories at a time.
WINDOWS, GROUP = (4, 16, 64), 64
BLOCKS = 64
# The extra run is at most so many times the horizon, but never less than the shortest window; what is chaotic is
# followed so far, FOLLOWED trajectories at a time.
MOST_OF_HORIZON, FOLLOWED = 8, 16
ERRORS = 4.0
# In each half of the window a tangent vector must grow by exp(40) > 1e16: no departure from an unstable point or
# cycle through rounding lasts so long.
GROWTH = 40.0
# Two halves of a window are alike if their spreads differ by less than this factor, and their centres by less than
# this share of the spread.
ALIKE, CENTRED = 1.5, 0.5
# A mean over half a chaotic orbit is that over the other half within so many standard errors.
STEADY = 6.0
# Smooth averages of a quasiperiodic orbit over two halves agree up to this share of the spread; tangent vectors
# change by no more than a power of time: by this in the logarithm when it doubles.
AGREEMENT, SUBEXPONENTIAL = 1e-8, 2.0
# An orbit that is back this close (as a share of its spread) after at most LONGEST steps is not called
# quasiperiodic: it may be drifting.
NEARLY_BACK, LONGEST = 1e-4, 64
# On a torus the best return becomes worse when the time is doubled. In a cascade of period doublings (on a long
# cycle, or the attractor at the end) it becomes better, by 2.5 each time: after two doublings by more than this.
BETTER = 2.0
# An attractor takes a displacement by this share of its spread back.
DISPLACEMENT = 1e-8
# A cycle nearby is looked for if the orbit nearly returns, and where its points are this near, as a share of the
# way.
NEARLY_PERIODIC, NEAR = 1e-2, 0.1
# A trajectory that has come nearer by less than this is not seen to approach.
APPROACH = 1e-6
# Marginal multipliers are looked at more closely within this distance of the unit circle.
CLOSE_LOOK = 100 * MULTIPLIER_MARGIN
# A straight way, not much shorter than its steps together.
STRAIGHT, DIRECT = 0.95, 0.5


class Seen(NamedTuple):
    """One chunk: the projected states, ``(lanes, CHUNK, seen)``, and the logarithmic growth of the tangent vector
    in every step, ``(lanes, CHUNK)``; not finite from where the state is not.
    """

    points: Any
    growth: Any


class Examination(eqx.Module):
    """A compiled chunk of an orbit and one tangent vector, for a block of lanes."""

    step: Any

    def __call__(self, parameter: Any, state: Any, vector: Any, projection: Any) -> tuple[Any, Any, Seen]:
        """The state and unit tangent vector after the chunk, and what was seen."""

        def one(parameter: Any, state: Any, vector: Any) -> Any:
            return jax.jvp(lambda state: self.step(parameter, state), (state,), (vector,))

        def advance(carry: Any, _: None) -> Any:
            state, vector = carry
            image, pushed = jax.vmap(one)(parameter, state, vector)
            size = norms(pushed)
            # A vector that is annihilated begins anew: the exponent is below zero, whatever comes.
            unit = jnp.where((size > 0)[:, None], pushed / jnp.where(size > 0, size, 1.0)[:, None], vector)
            growth = jnp.log(jnp.maximum(size, jnp.finfo(size.dtype).tiny))
            return (image, unit), (image @ projection.T, growth)

        (state, vector), (points, growth) = jax.lax.scan(advance, (state, vector), None, length=CHUNK)
        return state, vector, Seen(points.swapaxes(0, 1), growth.swapaxes(0, 1))


class Follow(eqx.Module):
    """The states after so many steps, for a block of lanes; NaN if one on the way is not finite."""

    step: Any

    def __call__(self, parameter: Any, state: Any, steps: Any) -> Any:
        """The last states, shape ``(lanes, dim)``."""

        def go_on(carry: Any) -> Any:
            state, done = carry
            image = jax.vmap(self.step)(parameter, state)
            inside = jnp.isfinite(state).all(axis=1) & jnp.isfinite(image).all(axis=1)
            return jnp.where(inside[:, None], image, jnp.nan), done + 1

        def unfinished(carry: Any) -> Any:
            state, done = carry
            return (done < steps) & jnp.any(jnp.isfinite(state))

        return jax.lax.while_loop(unfinished, go_on, (state, jnp.zeros_like(steps)))[0]


class Examined:
    """Trajectories under examination; `go_on` follows them for one more chunk."""

    def __init__(self, family: Family, parameter: np.ndarray, state: np.ndarray) -> None:
        lanes, dim = state.shape
        rng = np.random.default_rng(0)
        self.kernel = for_tracing(Examination(family.step))
        self.follow = for_tracing(Follow(family.step))
        self.parameter, self.state = parameter, state
        vector = rng.standard_normal(dim)
        self.vector = np.broadcast_to(vector / np.linalg.norm(vector), (lanes, dim)).copy()
        self.projection = np.eye(dim) if dim <= SEEN else rng.standard_normal((SEEN, dim)) / np.sqrt(dim)
        direction = rng.standard_normal(dim)
        self.direction = direction / np.linalg.norm(direction)
        map_ = family(parameter[0])
        self.periods = map_.periods if isinstance(map_, Torus) and dim <= SEEN else np.full(dim, np.inf)
        # Few orbits of many parameters are examined: wide blocks would be mostly padding.
        largest = GROUP if dim <= NARROW else GROUP // 8
        self.block = block_size(8 * (12 * dim + CHUNK * (len(self.projection) + 1)), largest)

    def go_on(self) -> Seen:
        """What is seen in the next chunk."""
        self.state, self.vector, seen = in_blocks(
            lambda lanes: compiled(self.kernel, (*lanes, self.projection)),
            (self.parameter, self.state, self.vector),
            self.block,
        )
        return seen._replace(points=on_circles(seen.points, self.periods))

    def skip(self, steps: int) -> None:
        """Follow the states alone; tangent vectors stay what they are."""
        count = np.asarray(steps, np.int64)
        self.state = in_blocks(
            lambda lanes: compiled(self.follow, (*lanes, count)),
            (self.parameter, self.state),
            block_size(64 * self.state.shape[1], largest=FOLLOWED),
        )

    def displace(self, distance: np.ndarray) -> None:
        """Move every state by a distance of its own in one random direction."""
        self.state = self.state + distance[:, None] * self.direction

    def keep(self, lanes: np.ndarray) -> None:
        """Go on with some lanes only."""
        self.parameter, self.state, self.vector = self.parameter[lanes], self.state[lanes], self.vector[lanes]

    def some(self, lanes: np.ndarray) -> "Examined":
        """Some of the lanes, to be followed by themselves."""
        part = copy(self)
        part.keep(lanes)
        return part


def judge_aperiodic(
    family: Family, parameter: np.ndarray, state: np.ndarray, start: np.ndarray, max_steps: int
) -> Verdicts:
    """Verdicts on moving states that have no fate after ``max_steps`` steps from ``start``.

    *Marginal*: Newton's method finds a fixed point or cycle which the orbit is at, or approaches and is within a
    tenth of the way it has come; none of its multipliers is outside the unit circle by three times its error, and
    some multiplier (those along a verified family left out) is within three times its error of it.

    The others are displaced by 1e-8 of their spread, so that an orbit on an invariant set that repels it shows
    that, given 1024 steps to settle, and followed over windows of 4096, 16,384 and 65,536 steps (at most eight
    times the horizon) until one decides.

    *Chaotic*: the top exponent is above zero by four standard errors (`long_run`, 64 blocks), in each half of the
    window a tangent vector grows by more than ``e^40``, centre and spread of the orbit are like those of the other
    half, and the means of growth, coordinates and their squares are the same within six standard errors: chaos on
    a slow drift, which may end it, is undecided. What is chaotic is followed for eight times the horizon; if it
    leaves on the way, or in a last window no longer expands or lies elsewhere, it is undecided. A chaotic
    transient that lasts longer than that is called chaotic.

    *Quasiperiodic*: in each half a tangent vector changes by no more than a factor ``e^2`` (a power of time);
    smooth weighted averages of the coordinates and of their squares over both halves agree to 1e-8 of the spread,
    which chaos, drifts and spirals do not do; the orbit does not nearly return within 64 steps, as one does that
    drifts along a family of cycles, nor when the time of its best return is doubled again and again, up to a
    quarter of the window; and that return does not become better by doubling its time, as it does in a cascade of
    period doublings (on long cycles, and on the attractor at the end). On a line nothing is quasiperiodic, unless
    the map is a `Torus`: a smooth map of a line has no invariant torus. A spiral whose radius changes by less than
    about 1e-12 in one step would pass.

    *Exactly at a fold* nothing is marginal: Newton's method does not find the cycle, and the orbit, which tends to
    it or passes by, is undecided (most often ``CYCLE_NOT_CONFIRMED``).
    """
    verdicts = Verdicts.none(len(state), Reason.HORIZON_REACHED)
    parameter, state, start = in_double(parameter, state, start)
    # Orbits that leave are followed to the end of the chunk: infinities and what comes of them are data here.
    with np.errstate(all="ignore"):
        for begin in range(0, len(state), GROUP):
            lanes = np.arange(begin, min(begin + GROUP, len(state)))
            found = _judge_group(family, parameter[lanes], state[lanes], start[lanes], max_steps)
            verdicts.fill(lanes, found)
    return verdicts


def on_circles(points: np.ndarray, periods: np.ndarray) -> np.ndarray:
    """The points with every angle replaced by two coordinates on a circle, where it does not jump."""
    angles = np.isfinite(periods)
    if not angles.any():
        return points
    radius = periods[angles] / (2 * np.pi)
    angle = points[..., angles] / radius
    return np.concatenate([points[..., ~angles], radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def is_straight(states: np.ndarray, step: np.ndarray, between: int) -> np.ndarray:
    """Whether orbits just go on in one direction: no motion that could be anything but a transient.

    ``states`` are those after every ``between`` steps, shape ``(lanes, samples, dim)``; ``step`` the lengths of
    the steps there, shape ``(lanes, samples)``.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        parts = np.linalg.norm(np.diff(states, axis=1), axis=2)
        way = parts.sum(axis=1)
        net = np.linalg.norm(states[:, -1] - states[:, 0], axis=1)
        return (net >= STRAIGHT * way) & (way >= DIRECT * between * step[:, 1:].sum(axis=1))


def _judge_group(
    family: Family, parameter: np.ndarray, state: np.ndarray, start: np.ndarray, max_steps: int
) -> Verdicts:
    verdicts = Verdicts.none(len(state), Reason.HORIZON_REACHED)
    examined = Examined(family, parameter, state)
    seen = examined.go_on().points
    finite = np.isfinite(seen).all(axis=(1, 2))
    spread = _spread(seen)
    # What is smaller is rounding.
    moving = finite & (spread > 1e-12 * np.linalg.norm(seen[:, -1], axis=1))
    closed = np.zeros(len(state), bool)
    if state.shape[1] <= DENSE_LIMIT:
        lanes = np.flatnonzero(moving)
        if lanes.size:
            marginal, closed[lanes] = _at_threshold(
                family, parameter[lanes], state[lanes], start[lanes], seen[lanes], spread[lanes]
            )
            decided = lanes[marginal]
            verdicts.fate[decided], verdicts.reason[decided] = Fate.MARGINAL, Reason.MARGINAL_MULTIPLIER
            verdicts.given[decided] = True
    pending = np.flatnonzero(moving & ~closed & _stationary(seen, 3.0, 1.0))
    if pending.size:
        examined.keep(pending)
        examined.displace(DISPLACEMENT * spread[pending])
        _follow(verdicts, pending, examined, max_steps, may_have_tori(family, parameter))
    return verdicts


def may_have_tori(family: Family, parameter: np.ndarray) -> bool:
    """Whether an orbit can be quasiperiodic at all: not on a line."""
    map_ = family(parameter[0])
    return map_.state_dim > 1 or isinstance(map_, Torus)


def _follow(verdicts: Verdicts, pending: np.ndarray, examined: Examined, max_steps: int, tori: bool) -> None:
    """Fill in the verdicts of the pending lanes from longer and longer windows, in place."""
    examined.go_on()
    points: list[Any] = []
    growth: list[Any] = []
    for window in WINDOWS:
        if window > WINDOWS[0] and window * CHUNK > MOST_OF_HORIZON * max_steps:
            break
        while len(points) < window:
            seen = examined.go_on()
            points.append(seen.points)
            growth.append(seen.growth)
        orbit = np.concatenate(points, axis=1)
        fate, reason, hopeless = _verdict_on(orbit, np.concatenate(growth, axis=1), tori)
        chaotic = np.flatnonzero(fate == Fate.CHAOTIC)
        if chaotic.size:
            rest = MOST_OF_HORIZON * max_steps - 2 * window * CHUNK
            ends = chaotic[~_remains(examined.some(chaotic), orbit[chaotic], rest)]
            fate[ends], hopeless[ends] = Fate.UNDECIDED, True
        decided = fate != Fate.UNDECIDED
        verdicts.fate[pending[decided]] = fate[decided]
        verdicts.reason[pending[decided]] = reason[decided]
        verdicts.given[pending[decided]] = True
        go_on = np.flatnonzero(~decided & ~hopeless)
        if not go_on.size:
            break
        pending = pending[go_on]
        examined.keep(go_on)
        points = [part[go_on] for part in points]
        growth = [part[go_on] for part in growth]


def _remains(examined: Examined, orbit: np.ndarray, steps: int) -> np.ndarray:
    """Whether chaotic orbits, after so many steps more, still expand and are where they were."""
    examined.skip(max(steps, 0))
    seen = [examined.go_on() for _ in range(orbit.shape[1] // CHUNK)]
    points = np.concatenate([part.points for part in seen], axis=1)
    growth = np.concatenate([part.growth for part in seen], axis=1)
    finite = np.isfinite(points).all(axis=(1, 2)) & np.isfinite(growth).all(axis=1)
    both = np.where(finite[:, None, None], np.concatenate([orbit, points], axis=1), 0.0)
    return finite & (growth.sum(axis=1) > 0) & _stationary(both, 3.0, 1.0)


def _verdict_on(points: np.ndarray, growth: np.ndarray, tori: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fates and reasons from one window, and for which lanes a longer one would not help."""
    lanes, window, _ = points.shape
    half = window // 2
    finite = np.isfinite(points).all(axis=(1, 2)) & np.isfinite(growth).all(axis=1)
    points = np.where(finite[:, None, None], points, 0.0)
    growth = np.where(finite[:, None], growth, 0.0)
    grown = growth.reshape(lanes, 2, half).sum(axis=2)
    run = long_run(growth.reshape(lanes, BLOCKS, -1).sum(axis=2), np.full(BLOCKS, window // BLOCKS))
    alike = finite & _stationary(points, ALIKE, CENTRED)
    chaotic = alike & (run.mean > ERRORS * run.standard_error) & np.all(grown >= GROWTH, axis=1)
    chaotic[chaotic] = _is_steady(points[chaotic], growth[chaotic])
    regular = tori & alike & np.all(np.abs(grown) <= SUBEXPONENTIAL, axis=1)
    regular[regular] = _disagreement(points[regular]) <= AGREEMENT
    regular[regular] = [_returns_as_on_a_torus(orbit) for orbit in points[regular]]
    fate = np.select([chaotic, regular], [Fate.CHAOTIC, Fate.QUASIPERIODIC], Fate.UNDECIDED).astype(np.int8)
    reason = np.select([chaotic, regular], [Reason.POSITIVE_EXPONENT, Reason.REGULAR_RECURRENCE]).astype(np.int8)
    shrinks = (run.mean < -ERRORS * run.standard_error) & (grown[:, 1] < -4 * SUBEXPONENTIAL)
    return fate, reason, ~finite | shrinks


def _halves(points: np.ndarray) -> np.ndarray:
    lanes, steps, seen = points.shape
    return points.reshape(lanes, 2, steps // 2, seen)


def _spread(points: np.ndarray) -> np.ndarray:
    """The root mean square distance from the mean, of points along the last axis but one."""
    centred = points - points.mean(axis=-2, keepdims=True)
    return np.sqrt(np.mean(np.sum(centred**2, axis=-1), axis=-1))


def _stationary(points: np.ndarray, factor: float, share: float) -> np.ndarray:
    """Whether spreads and centres of the two halves are alike."""
    halves = _halves(points)
    spreads, centres = _spread(halves), halves.mean(axis=2)
    shift = np.linalg.norm(centres[:, 1] - centres[:, 0], axis=1)
    return (spreads.max(axis=1) <= factor * spreads.min(axis=1)) & (shift <= share * spreads.max(axis=1))


def _is_steady(points: np.ndarray, growth: np.ndarray) -> np.ndarray:
    """Whether no mean over the second half differs from that over the first by more than chance."""
    lanes, window, _ = points.shape
    if not lanes:
        return np.zeros(0, bool)
    centred = points - points.mean(axis=1, keepdims=True)
    series = np.concatenate([growth[..., None], centred, centred**2], axis=2)
    sums = series.reshape(lanes, BLOCKS, -1, series.shape[2]).sum(axis=2)
    lengths = np.full(BLOCKS, window // BLOCKS)
    return np.all(np.abs(drifts(sums, lengths)) <= STEADY, axis=1)


def _disagreement(points: np.ndarray) -> np.ndarray:
    """By how much smooth averages over both halves differ, relative to the spread (its square for squares).

    The weights ``exp(-1 / (t (1 - t)))`` make the averages of a quasiperiodic orbit converge faster than any
    power.
    """
    scale = _spread(points)[:, None, None]
    scale = np.where(scale > 0, scale, 1.0)
    centred = (points - points.mean(axis=1, keepdims=True)) / scale
    halves = _halves(centred)
    halves = np.concatenate([halves, halves**2, halves[..., :1] * halves[..., 1:]], axis=-1)
    length = halves.shape[2]
    time = (np.arange(length) + 0.5) / length
    weights = np.exp(-1 / (time * (1 - time)))
    averages = np.einsum("n,lhnq->lhq", weights / weights.sum(), halves)
    return np.abs(averages[:, 1] - averages[:, 0]).max(axis=1, initial=0.0)


def _returns_as_on_a_torus(orbit: np.ndarray) -> bool:
    """Whether an orbit, ``(steps, seen)``, is never nearly back, after `LONGEST` steps at most or the best such
    time doubled again and again, up to a quarter of the steps, and is not nearer after two doublings.
    """
    recent = orbit[-CHUNK // 2 :]
    scale = _spread(recent)
    # The farthest that a point is from where it was.
    short = _return_distances(recent[None], LONGEST)[0]
    lags = [int(short.argmin()) + 1]
    while 2 * lags[-1] <= len(orbit) // 4:
        lags.append(2 * lags[-1])
    doubled = [np.linalg.norm(recent - orbit[-CHUNK // 2 - lag : -lag], axis=1).max() for lag in lags]
    return bool(min(short.min(), *doubled) >= NEARLY_BACK * scale and doubled[2] * BETTER >= doubled[0])


def _return_distances(points: np.ndarray, longest: int) -> np.ndarray:
    """For each period from 1 on the largest distance of points of the orbit that are so far apart in time."""
    distances = [np.linalg.norm(points[:, p:] - points[:, :-p], axis=2).max(axis=1) for p in range(1, longest + 1)]
    return np.stack(distances, axis=1)


# At a threshold --------------------------------------------------------------------------------------------------


class Centre(eqx.Module):
    """The mean of the next states, and the state halfway between the first and the one ``lag`` steps on."""

    step: Any

    def __call__(self, parameter: Any, state: Any, lag: Any) -> tuple[Any, Any]:
        def add(index: Any, carry: Any) -> Any:
            current, total, later = carry
            later = jnp.where(index == lag, current, later)
            return self.step(parameter, current), total + current, later

        _, total, later = jax.lax.fori_loop(0, CHUNK, add, (state, jnp.zeros_like(state), state))
        return total / CHUNK, (state + later) / 2


def _at_threshold(
    family: Family,
    parameter: np.ndarray,
    state: np.ndarray,
    start: np.ndarray,
    seen: np.ndarray,
    spread: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each orbit is at a marginal fixed point or cycle; whether it is at, or approaches, any.

    Candidates: the fixed point near the mean of the orbit; for an orbit that nearly returns after ``p`` steps the
    cycle of period ``p``, and that of period ``p / 2`` halfway between the two branches (as after a flip).
    """
    lanes = len(state)
    marginal, closed = np.zeros(lanes, bool), np.zeros(lanes, bool)
    returns = _return_distances(seen[:, -CHUNK // 2 :], LONGEST) <= NEARLY_PERIODIC * spread[:, None]
    period = np.where(returns.any(axis=1), returns.argmax(axis=1) + 1, 0)
    centre, halfway = on_lanes(
        Centre(family.step), (parameter, state, period // 2), block_size(64 * state.shape[1])
    )
    way = np.linalg.norm(state - start, axis=1)
    even = (period % 2 == 0) & (period > 2)
    for guesses, periods in (
        (centre, np.ones(lanes, int)),
        (halfway, np.where(even, period // 2, 0)),
        (state, np.where(period > 1, period, 0)),
    ):
        for p in np.unique(periods[~marginal]):
            chosen = np.flatnonzero(~marginal & (periods == p) & np.isfinite(guesses).all(axis=1))
            if p == 0 or not chosen.size:
                continue
            found = _marginal_cycles(
                family, parameter[chosen], guesses[chosen], state[chosen], int(p), way[chosen]
            )
            marginal[chosen], closed[chosen] = found[0], closed[chosen] | found[1]
    return marginal, closed


def _marginal_cycles(
    family: Family, parameter: np.ndarray, guess: np.ndarray, state: np.ndarray, period: int, way: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    lanes = len(state)
    cycles = without_rounding(refine_cycles(family, parameter, guess, period, way))
    size = np.maximum(cycles.diameter(), way)
    good = cycles.converged & np.isfinite(cycles.jacobian).all(axis=(1, 2))
    good &= np.linalg.norm(cycles.defect, axis=1) <= CYCLE_DEFECT * size
    near = np.zeros(lanes, bool)
    chosen = np.flatnonzero(good)
    if chosen.size:
        near[chosen] = _approaches(family, parameter[chosen], state[chosen], cycles.take(chosen), way[chosen])
    marginal = np.zeros(lanes, bool)
    for lane in np.flatnonzero(near):
        marginal[lane] = _is_marginal(family, parameter[lane], cycles.take(np.array([lane])), size[lane])
    return marginal, near


def _approaches(
    family: Family, parameter: np.ndarray, state: np.ndarray, cycles: Cycles, way: np.ndarray
) -> np.ndarray:
    """Whether orbits are at their cycles, or have come nearer by the end of a chunk."""
    period = cycles.points.shape[1]
    rounds = CHUNK // period
    block = block_size(8 * state.shape[1] * CHUNK, largest=16)
    orbit = on_lanes(Orbit(family, rounds * period), (parameter, state), block)
    # The cycle may be run through with any lag.
    first = orbit[:, :period]
    lag = np.array(
        [
            np.argmin([np.linalg.norm(points - np.roll(cycle, -s, axis=0)) for s in range(period)])
            for points, cycle in zip(first, cycles.points, strict=True)
        ]
    )
    cycle = np.stack([np.roll(points, -s, axis=0) for points, s in zip(cycles.points, lag, strict=True)])
    rolled = orbit.reshape(len(state), rounds, period, -1)
    distance = np.sqrt(np.mean(np.sum((rolled - cycle[:, None]) ** 2, axis=3), axis=2))
    quarter = max(1, rounds // 4)
    before, after = distance[:, :quarter].mean(axis=1), distance[:, -quarter:].mean(axis=1)
    noise = 1e-12 * np.maximum(way, np.linalg.norm(state, axis=1))
    return (before <= noise) | ((after < (1 - APPROACH) * before) & (before <= NEAR * way))


def _is_marginal(family: Family, parameter: float, cycle: Cycles, size: float) -> bool:
    jacobian, points = cycle.jacobian[0], cycle.points[0]
    basis = null_basis(jacobian)
    neutral = len(basis)
    if abs(radii_off_one(cycle.jacobian, np.array([neutral]))[0] - 1) > CLOSE_LOOK:
        return False
    one = np.full(1, parameter)
    if neutral and not is_on_a_family(family, one, cycle, [basis], np.full(1, size))[0][0]:
        return False
    singular = for_each(lambda matrix: np.linalg.svd(matrix - np.eye(len(matrix)), compute_uv=False), [jacobian])[
        0
    ]
    smallest = singular[len(singular) - neutral - 1] if neutral < len(singular) else 1.0
    rounding = 4 * np.finfo(float).eps * np.linalg.norm(points[0])
    error = (float(np.linalg.norm(cycle.defect[0])) + rounding) / smallest
    values, errors = multipliers_of(family, parameter, points, linearise(family, parameter, points), float(error))
    return Verdict.of(values, errors, neutral).stability == "marginal"

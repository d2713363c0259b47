"""Iterating many trajectories of a random map: compiled rounds over fixed blocks of lanes."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.precision import for_tracing
from gdmap.engines.xla import (
    ESCAPED,
    OVERFLOWN,
    RUNNING,
    STATIONARY,
    UNDEFINED,
    block_size,
    compiled,
    in_blocks,
    on_lanes,
)
from gdmap.ensembles.fates import Reason
from gdmap.ensembles.verdicts import Verdicts
from gdmap.maps import Map, StochasticGradientDescent
from gdmap.maps.batches import trajectory_key

ROUND = 256
# So many negligible steps in a row make a candidate, which all samples must confirm; at the horizon fewer do.
STREAK, LAST_STREAK = 16, 3
# Steps up to this many units in the last place of the state are rounding noise.
ROUNDING = 16
# The second half of the horizon is recorded as means over so many blocks of steps.
RECORDED = 32
# Distances from a recent state are measured from one that is renewed so many times over it.
ANCHORED = 8
SAMPLES_AT_ONCE = 32


class Steps(eqx.Module):
    """The steps of a trajectory, by the parameter of its lane; subclasses say what is random and what is not."""

    @abstractmethod
    def update(self, parameter: Any, state: Any, key: Any, step: Any) -> Any:
        """The next state, traceable."""

    @abstractmethod
    def possible(self, parameter: Any, state: Any) -> tuple[Any, Any]:
        """The longest step that any sample makes from ``state``, and whether none of them changes it by a bit."""


class SampledSteps(Steps):
    """Those of stochastic gradient descent; the parameter is the step size.

    ``samples`` are the numbers of the samples that can be drawn.
    """

    map: StochasticGradientDescent
    samples: np.ndarray

    def update(self, parameter: Any, state: Any, key: Any, step: Any) -> Any:
        """The step on the batch that the trajectory with this key draws."""
        return self._map(parameter).random_update(state, key, step)

    def possible(self, parameter: Any, state: Any) -> tuple[Any, Any]:
        """The steps on single samples; that of a batch is a mean of them."""
        map_ = self._map(parameter)

        def alone(sample: Any) -> tuple[Any, Any]:
            image = map_.batch_update(state, sample[None], jnp.ones(1, state.dtype))
            return lengths(image - state), jnp.all(image == state)

        batch = min(SAMPLES_AT_ONCE, len(self.samples))
        length, still = jax.lax.map(alone, jnp.asarray(self.samples, jnp.int32), batch_size=batch)
        return jnp.max(length), jnp.all(still)

    def _map(self, parameter: Any) -> StochasticGradientDescent:
        made: StochasticGradientDescent = eqx.tree_at(lambda map_: map_.step_size, self.map, parameter)
        return made


class SameSteps(Steps):
    """Those of a map that is not random; the parameter is not used."""

    map: Map

    def update(self, parameter: Any, state: Any, key: Any, step: Any) -> Any:
        """The image of the state."""
        return self.map.update(state)

    def possible(self, parameter: Any, state: Any) -> tuple[Any, Any]:
        """The one step there is."""
        image = self.map.update(state)
        return lengths(image - state), jnp.all(image == state)


def sampled_steps(map_: StochasticGradientDescent) -> SampledSteps:
    """The steps of ``map_``, on the samples that have a positive probability."""
    p = map_.batches.probabilities
    samples = np.arange(map_.batches.n_samples) if p is None else np.flatnonzero(p)
    return SampledSteps(map_, samples)


class RandomLanes(NamedTuple):
    """The trajectories being iterated, one per row.

    ``trajectory`` the number that, with the seed, makes the key of its randomness; ``radius`` the distance from
    ``centre`` beyond which it has escaped; ``streak`` consecutive negligible steps; ``retry_at`` the step before
    which they do not stop the lane; ``squares`` and ``way`` sums over `RECORDED` blocks of the second half of
    the ``horizon``: of the squared lengths of the steps, and of the distances from the start; ``near`` and
    ``far`` sums of the distances from a state ``anchor``, renewed `ANCHORED` times in that half, and, over its
    last three quarters, from the state ``halfway``.
    """

    parameter: Any
    start: Any
    state: Any
    centre: Any
    radius: Any
    trajectory: Any
    steps: Any
    streak: Any
    retry_at: Any
    horizon: Any
    halfway: Any
    anchor: Any
    near: Any
    far: Any
    squares: Any
    way: Any
    signal: Any


def fresh_lanes(
    parameter: np.ndarray,
    state: np.ndarray,
    trajectory: np.ndarray,
    centre: np.ndarray,
    radius: np.ndarray,
    horizon: int,
) -> RandomLanes:
    """Trajectories at their starts."""
    count = len(state)
    return RandomLanes(
        parameter=np.asarray(parameter, np.float64),
        start=state,
        state=state,
        centre=np.asarray(centre, state.dtype),
        radius=np.asarray(radius, np.float64),
        trajectory=np.asarray(trajectory, np.int64),
        steps=np.zeros(count, np.int64),
        streak=np.zeros(count, np.int64),
        retry_at=np.zeros(count, np.int64),
        horizon=np.full(count, horizon, np.int64),
        halfway=state,
        anchor=state,
        near=np.zeros(count),
        far=np.zeros(count),
        squares=np.zeros((count, RECORDED)),
        way=np.zeros((count, RECORDED)),
        signal=np.zeros(count, np.int8),
    )


class RandomAdvance(eqx.Module):
    """A compiled round: iterate each lane to its ``until``."""

    steps: Steps
    seed: np.ndarray
    tolerance: np.ndarray

    def __call__(self, lanes: RandomLanes, until: Any) -> RandomLanes:
        """The lanes after the round."""
        keys = jax.vmap(lambda number: trajectory_key(self.seed, number))(lanes.trajectory)

        def active(lanes: RandomLanes) -> Any:
            return (lanes.signal == RUNNING) & (lanes.steps < until)

        def one_step(lanes: RandomLanes) -> RandomLanes:
            proposed = jax.vmap(self.steps.update)(lanes.parameter, lanes.state, keys, lanes.steps)
            size = lengths(proposed)
            finite = jnp.isfinite(size)
            moved = active(lanes) & finite
            step = lengths(proposed - lanes.state)
            way = lengths(proposed - lanes.start)
            negligible = is_negligible(step, way, size, self.tolerance, float(jnp.finfo(lanes.state.dtype).eps))
            streak = jnp.where(negligible, lanes.streak + 1, 0)
            signal = jnp.where((streak >= STREAK) & (lanes.steps + 1 >= lanes.retry_at), STATIONARY, RUNNING)
            signal = jnp.where(lengths(proposed - lanes.centre) > lanes.radius, ESCAPED, signal)
            signal = jnp.where(finite, signal, jnp.where(jnp.isnan(size), UNDEFINED, OVERFLOWN))
            half = lanes.horizon // 2
            halfway = jnp.where((lanes.steps == half)[:, None], lanes.state, lanes.halfway)
            second = lanes.horizon - half
            since = lanes.steps - half
            renewed = (since >= 0) & (since % jnp.maximum(second // ANCHORED, 1) == 0)
            anchor = jnp.where(renewed[:, None], lanes.state, lanes.anchor)
            late = moved & (since >= second // 4)
            block = (lanes.steps - half) * RECORDED // jnp.maximum(lanes.horizon - half, 1)
            here = (block[:, None] == jnp.arange(RECORDED)) & (lanes.steps >= half)[:, None] & moved[:, None]
            steps = jnp.where(active(lanes), lanes.steps + 1, lanes.steps)
            return lanes._replace(
                state=jnp.where(moved[:, None], proposed, lanes.state),
                steps=steps,
                streak=jnp.where(moved, streak, lanes.streak),
                halfway=halfway,
                anchor=anchor,
                near=lanes.near + jnp.where(moved & (since >= 0), lengths(proposed - anchor), 0.0),
                far=lanes.far + jnp.where(late, lengths(proposed - halfway), 0.0),
                squares=lanes.squares + jnp.where(here, step[:, None] ** 2, 0.0),
                way=lanes.way + jnp.where(here, way[:, None], 0.0),
                signal=jnp.where(active(lanes), signal, lanes.signal).astype(lanes.signal.dtype),
            )

        return jax.lax.while_loop(lambda lanes: jnp.any(active(lanes)), one_step, lanes)


def lengths(vectors: Any) -> Any:
    """Euclidean norms along the last axis in double precision, without overflow or underflow on the way."""
    vectors = vectors.astype(jnp.float64)
    largest = jnp.max(jnp.abs(vectors), axis=-1)
    scale = jnp.where(jnp.isfinite(largest) & (largest > 0), largest, 1.0)
    return scale * jnp.sqrt(jnp.sum((vectors / scale[..., None]) ** 2, axis=-1))


def is_negligible(step: Any, way: Any, size: Any, tolerance: Any, eps: float) -> Any:
    """Whether steps are rounding noise: of the way travelled, or of the size of the state."""
    return step <= tolerance * way + ROUNDING * eps * size


def possible_steps(steps: Steps, parameter: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`Steps.possible` of many states, one per row."""
    block = block_size(64 * SAMPLES_AT_ONCE * state.shape[1])
    length, still = on_lanes(steps.possible, (np.asarray(parameter, np.float64), state), block)
    return length, still


# What makes of candidates, given their lanes, the verdicts on them.
Judge = Callable[[RandomLanes], Verdicts]


def iterate_random(
    steps: Steps,
    lanes: RandomLanes,
    seed: int,
    tolerance: float,
    judge: Judge,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[RandomLanes, Verdicts]:
    """Iterate every lane until ``judge`` gives a verdict on it, it escapes, or its horizon is reached.

    Returns the lanes where they ended, with the verdicts on those that became candidates.
    """
    count = len(lanes.state)
    advance = for_tracing(RandomAdvance(steps, np.asarray(seed, np.int64), np.asarray(tolerance)))
    block = block_size(lanes.state.itemsize * lanes.state.shape[1] * 20 + 32 * RECORDED)
    ended = RandomLanes(*(np.array(field) for field in lanes))
    verdicts = Verdicts.none(count, Reason.HORIZON_REACHED)
    rows = np.arange(count)
    while rows.size:
        until = np.minimum((lanes.steps // ROUND + 1) * ROUND, lanes.horizon)
        lanes = in_blocks(lambda arrays: compiled(advance, arrays), (lanes, until), block)
        final = lanes.steps >= lanes.horizon
        candidate = (lanes.signal == STATIONARY) | (
            final & (lanes.signal == RUNNING) & (lanes.streak >= LAST_STREAK)
        )
        found = Verdicts.none(rows.size, Reason.HORIZON_REACHED)
        where = np.flatnonzero(candidate)
        if where.size:
            found.fill(where, judge(RandomLanes(*(field[where] for field in lanes))))
        stopped = np.isin(lanes.signal, (ESCAPED, OVERFLOWN, UNDEFINED))
        finished = found.given | stopped | final
        done = np.flatnonzero(finished)
        for field, values in zip(ended, lanes, strict=True):
            field[rows[done]] = values[done]
        verdicts.fill(rows[done], Verdicts(*(field[done] for field in found)))
        # A sample that still moves may be drawn soon; a point where the trajectory cannot stay is left slowly.
        at_rest = found.reason != Reason.SLOW_CONVERGENCE
        lanes = lanes._replace(
            signal=np.where(candidate, RUNNING, lanes.signal).astype(np.int8),
            retry_at=np.where(candidate, np.where(at_rest, 2 * lanes.steps, lanes.steps) + ROUND, lanes.retry_at),
        )
        lanes = RandomLanes(*(field[~finished] for field in lanes))
        rows = rows[~finished]
        if progress is not None:
            progress(count - rows.size, count)
    return ended, verdicts

"""Iterating a traced map on many states at once with XLA.

Every kernel runs on blocks of one fixed shape, padded where needed, so that what happens to a trajectory
depends neither on the others in its batch nor on how the batch was cut (XLA compiled for batches of 1 and of
1000 already differs in the last bit).
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.precision import float64, for_tracing

RUNNING, STATIONARY, ESCAPED, OVERFLOWN, UNDEFINED = range(5)
CONSECUTIVE = 3
GROWING_STEPS = 8
BLOCK_BYTES = 2**27


class Lanes(NamedTuple):
    """The trajectories being iterated, one per row.

    ``steps`` counts the updates made, ``streak`` the consecutive ones with a negligible step, ``outside`` the
    consecutive ones beyond the escape radius in which neither the norm nor the step shrank; ``last_step`` is
    the length of the last step; ``retry_at`` the step before which a negligible step does not stop the lane,
    ``reference`` three earlier states that a long period is compared with; ``signal`` says why a lane stopped.
    """

    parameter: Any
    start: Any
    state: Any
    last_step: Any
    steps: Any
    streak: Any
    outside: Any
    escape_radius: Any
    retry_at: Any
    reference: Any
    signal: Any


class Tolerances(NamedTuple):
    """When a step is negligible and when two states are the same."""

    step: float
    period: float


class Advance(eqx.Module):
    """A compiled round: iterate each lane to its ``until`` and look for a period in the last states."""

    step: Callable[[Any, Any], Any]
    window: int = eqx.field(static=True)
    tolerances: Tolerances = eqx.field(static=True)

    def __call__(self, lanes: Lanes, until: Any) -> tuple[Lanes, Any, Any, Any]:
        """The lanes after the round; the smallest short period (0: none); whether the reference states
        recurred; the last three states (newest first), meaningful where the window was completed.
        """

        def one_step(lanes: Lanes, limit: Any) -> Lanes:
            active = (lanes.signal == RUNNING) & (lanes.steps < limit)
            proposed = jax.vmap(self.step)(lanes.parameter, lanes.state)
            size, before = norms(proposed), norms(lanes.state)
            finite = jnp.isfinite(size)
            last_step = norms(proposed - lanes.state)
            # Relative to the way travelled: neither the origin nor the unit of the parameters matters.
            travelled = norms(proposed - lanes.start)
            rounding = 2 * jnp.finfo(size.dtype).eps * size
            streak = jnp.where(last_step <= self.tolerances.step * travelled + rounding, lanes.streak + 1, 0)
            grows = (size > lanes.escape_radius) & (size > before) & (last_step >= lanes.last_step)
            outside = jnp.where(grows, lanes.outside + 1, 0)
            steps = lanes.steps + 1
            signal = jnp.where((streak >= CONSECUTIVE) & (steps >= lanes.retry_at), STATIONARY, RUNNING)
            signal = jnp.where(outside >= GROWING_STEPS, ESCAPED, signal)
            signal = jnp.where(finite, signal, jnp.where(jnp.isnan(size), UNDEFINED, OVERFLOWN))
            signal = signal.astype(lanes.signal.dtype)
            moved = active & finite
            return lanes._replace(
                state=jnp.where(moved[:, None], proposed, lanes.state),
                last_step=jnp.where(moved, last_step, lanes.last_step),
                steps=jnp.where(active, steps, lanes.steps),
                streak=jnp.where(moved, streak, lanes.streak),
                outside=jnp.where(moved, outside, lanes.outside),
                signal=jnp.where(active, signal, lanes.signal),
            )

        begin_window = until - self.window
        lanes = jax.lax.while_loop(
            lambda lanes: jnp.any((lanes.signal == RUNNING) & (lanes.steps < begin_window)),
            lambda lanes: one_step(lanes, begin_window),
            lanes,
        )
        starts_window = lanes.steps == begin_window

        def recorded(lanes: Lanes, _: None) -> tuple[Lanes, Any]:
            lanes = one_step(lanes, until)
            return lanes, lanes.state

        lanes, history = jax.lax.scan(recorded, lanes, None, length=self.window)
        complete = starts_window & (lanes.signal == RUNNING) & (lanes.steps == until)
        newest = history[::-1]
        diameter = jnp.max(jax.vmap(lambda past: norms(past - newest[0]))(newest), axis=0)
        close = self.tolerances.period * diameter + 16 * jnp.finfo(diameter.dtype).eps * norms(newest[0])
        period = jnp.where(complete, smallest_period(newest, close), 0)
        recurs = complete & jnp.all(
            norms(newest[:CONSECUTIVE].swapaxes(0, 1) - lanes.reference) <= close[:, None], 1
        )
        return lanes, period, recurs, (complete, newest[:CONSECUTIVE].swapaxes(0, 1))


def norms(vectors: Any) -> Any:
    """Euclidean norms along the last axis."""
    return jnp.sqrt(jnp.sum(vectors * vectors, axis=-1))


def smallest_period(newest: Any, close: Any) -> Any:
    """The smallest ``p >= 2`` with three consecutive matches ``newest[k] ~ newest[k + p]``; 0 if none."""

    def test(found: Any, period: Any) -> tuple[Any, None]:
        past = jax.lax.dynamic_slice_in_dim(newest, period, CONSECUTIVE)
        matches = jnp.all(norms(newest[:CONSECUTIVE] - past) <= close, axis=0)
        return jnp.where((found == 0) & matches, period, found), None

    periods = jnp.arange(2, len(newest) - CONSECUTIVE + 1)
    found, _ = jax.lax.scan(test, jnp.zeros(newest.shape[1], periods.dtype), periods)
    return found


def block_size(bytes_per_lane: int, largest: int = 256) -> int:
    """Lanes in one block: a power of two that depends on the size of a lane alone."""
    lanes = largest
    while lanes > 1 and lanes * bytes_per_lane > BLOCK_BYTES:
        lanes //= 2
    return lanes


def in_blocks(function: Callable[..., Any], lane_arrays: Any, block: int, threads: int | None = None) -> Any:
    """``function`` of a pytree of arrays with a leading lane axis, evaluated block by block.

    Blocks are padded by repeating the last lane and run in as many threads as there are processors, or as
    given; the result is a pytree of NumPy arrays with the same leading length.
    """
    count = len(jax.tree.leaves(lane_arrays)[0])

    def run(begin: int) -> Any:
        rows = np.minimum(np.arange(begin, begin + block), count - 1)
        with float64():
            result = function(jax.tree.map(lambda array: array[rows], lane_arrays))
            kept = min(block, count - begin)
            return jax.tree.map(lambda array: np.array(array)[:kept], result)

    begins = range(0, count, block)
    if len(begins) == 1:
        return run(0)
    if threads == 1:
        results = [run(begin) for begin in begins]
    else:
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            results = list(pool.map(run, begins))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


@eqx.filter_jit
def compiled(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """``function(*arguments)``, compiled once per function structure and shapes.

    ``function`` may be an Equinox module or a bound method of one: its arrays are arguments of the program.
    """
    return function(*arguments)


class Batched(eqx.Module):
    """``function`` of one lane, applied to a block of them."""

    function: Callable[..., Any]

    def __call__(self, *lane_arrays: Any) -> Any:
        """``function`` row by row."""
        return jax.vmap(self.function)(*lane_arrays)


def on_lanes(
    function: Callable[..., Any], lane_arrays: tuple[Any, ...], block: int, threads: int | None = None
) -> Any:
    """``function`` (an Equinox module or a method of one, of a single lane) on every lane, in fixed blocks.

    Programs with linear algebra (eigenvalues, QR, linear solves) need ``threads=1``: two of them side by side can
    wait for each other forever in XLA's thread pool.
    """
    batched = for_tracing(Batched(function))
    return in_blocks(lambda block_arrays: compiled(batched, block_arrays), lane_arrays, block, threads)

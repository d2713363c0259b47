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

RUNNING, STATIONARY, ESCAPED, OVERFLOWN, UNDEFINED, RECURRENT = range(6)
CONSECUTIVE = 3
# Steps between two searches for a period, and the longest period that is looked for.
ROUND, LONGEST_PERIOD = 256, 4096
GROWING_STEPS = 8
BLOCK_BYTES = 2**27


class Lanes(NamedTuple):
    """The trajectories being iterated, one per row.

    ``steps`` counts the updates made, ``streak`` the consecutive ones with a negligible step, ``outside`` the
    consecutive ones beyond the escape radius in which neither the norm nor the step shrank; ``last_step`` is
    the length of the last step; ``retry_at`` the step before which a negligible step does not stop the lane,
    ``reference`` three earlier states that a long period is compared with, at ``reference_step``; ``signal`` says
    why a lane stopped, ``period`` after how many steps it seems to come back (0: it does not).
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
    reference_step: Any
    period: Any
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
            proposed = jax.vmap(self.step)(lanes.parameter, lanes.state)
            before = {**lanes._asdict(), "until": limit}
            after = jax.vmap(lambda lane, proposed: watched_step(lane, proposed, self.tolerances.step))(before, proposed)
            return lanes._replace(**after)

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


def watched_step(lane: dict[str, Any], proposed: Any, tolerance: float) -> dict[str, Any]:
    """What changes of one lane, by the names of `Lanes`, in a step to ``proposed``; nothing once it has stopped."""
    active = (lane["signal"] == RUNNING) & (lane["steps"] < lane["until"])
    size, before = norms(proposed), norms(lane["state"])
    finite = jnp.isfinite(size)
    last_step = norms(proposed - lane["state"])
    # Relative to the way travelled: neither the origin nor the unit of the parameters matters.
    travelled = norms(proposed - lane["start"])
    rounding = 2 * jnp.finfo(size.dtype).eps * size
    streak = jnp.where(last_step <= tolerance * travelled + rounding, lane["streak"] + 1, 0)
    grows = (size > lane["escape_radius"]) & (size > before) & (last_step >= lane["last_step"])
    outside = jnp.where(grows, lane["outside"] + 1, 0)
    steps = lane["steps"] + 1
    signal = jnp.where((streak >= CONSECUTIVE) & (steps >= lane["retry_at"]), STATIONARY, RUNNING)
    signal = jnp.where(outside >= GROWING_STEPS, ESCAPED, signal)
    signal = jnp.where(finite, signal, jnp.where(jnp.isnan(size), UNDEFINED, OVERFLOWN))
    moved = active & finite
    return {
        "state": jnp.where(moved, proposed, lane["state"]),
        "last_step": jnp.where(moved, last_step, lane["last_step"]),
        "steps": jnp.where(active, steps, lane["steps"]),
        "streak": jnp.where(moved, streak.astype(lane["streak"].dtype), lane["streak"]),
        "outside": jnp.where(moved, outside.astype(lane["outside"].dtype), lane["outside"]),
        "signal": jnp.where(active, signal.astype(lane["signal"].dtype), lane["signal"]),
    }


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


class BlockedRun:
    """One family of maps, compiled by XLA to take trajectories from event to event, in fixed blocks."""

    def __init__(self, step: Callable[[Any, Any], Any], dim: int, window: int, tolerances: Tolerances) -> None:
        self.program = for_tracing(Advance(step, window, tolerances))
        self.window, self.dim = window, dim
        self.name = f"xla-{jax.default_backend()}"

    def to(self, lanes: Lanes, until: np.ndarray) -> Any:
        """Iterate each lane to its ``until``, unless it stops before; see `Advance`."""
        bytes_per_lane = lanes.state.itemsize * self.dim * (self.window + 9)
        return in_blocks(lambda block: compiled(self.program, block), (lanes, until), block_size(bytes_per_lane))

    def advance(self, lanes: Lanes, max_steps: int) -> Lanes:
        """Every lane one round further, to an event in it, or at the horizon."""
        until = (lanes.steps // ROUND + 1) * ROUND
        # A last round shorter than the window could not be searched for a period: it joins the one before.
        until = np.where(until + self.window > max_steps, max_steps, until)
        lanes, period, recurs, (complete, tail) = self.to(lanes._replace(signal=np.zeros_like(lanes.signal)), until)
        final = lanes.steps >= max_steps
        long_period = np.where(recurs, lanes.steps - lanes.reference_step, 0)
        period = np.where(period > 0, period, np.where(long_period <= LONGEST_PERIOD, long_period, 0))
        period[((lanes.steps < lanes.retry_at) & ~final) | (lanes.streak >= CONSECUTIVE)] = 0
        rounds = lanes.steps // ROUND
        anew = complete & (lanes.steps % ROUND == 0) & (rounds & (rounds - 1) == 0)
        reference = np.where(anew[:, None, None], tail, lanes.reference)
        signal = np.where((period > 0) & (lanes.signal == RUNNING), RECURRENT, lanes.signal).astype(np.int8)
        return lanes._replace(
            reference=reference,
            reference_step=np.where(anew, lanes.steps, lanes.reference_step),
            period=period.astype(np.int32),
            signal=signal,
        )


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

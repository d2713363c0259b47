"""Iterating a traced map on many states at once with XLA.

Every kernel runs on blocks of one fixed shape, padded where needed, so that what happens to a trajectory
depends neither on the others in its batch nor on how the batch was cut (XLA compiled for batches of 1 and of
1000 already differs in the last bit).
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
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
# A stretch ended with a look that was not plain.
ALERT = 9
# From this age on the search for periods becomes rarer: so many rounds, then none until the age has doubled.
ROUNDS_BEFORE_DOUBLING = 16
# Lanes are packed anew when fewer than this share of those in their block still run.
FULL = 0.75
# The cache that the intermediate results of a block stay in, and the fewest and most lanes of a block.
CACHE_BYTES, FEWEST_LANES, LARGEST_BLOCK = 3 * 2**19, 16, 1024
# On a device that is no processor: the most lanes, and the memory for them where the device does not say.
LARGEST_ON_DEVICE, DEVICE_BYTES = 2**16, 2**30
# Components of a short sum.
WRITTEN_OUT = 8
NEVER = np.iinfo(np.int64).max


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


class Watched(eqx.Module):
    """A compiled round with a look at every step: iterate each lane to its ``until``, then search for a period."""

    step: Callable[[Any, Any], Any]
    window: int = eqx.field(static=True)
    tolerances: Tolerances = eqx.field(static=True)

    def __call__(self, lanes: Lanes, until: Any, searched: Any, max_steps: Any) -> Lanes:
        """The lanes at their ``until``, unless they stop before; recurrent only where ``searched``."""

        def one_step(lanes: Lanes, limit: Any) -> Lanes:
            proposed = jax.vmap(self.step)(lanes.parameter, lanes.state)
            before = {**lanes._asdict(), "until": limit}
            after = jax.vmap(lambda lane, proposed: watched_step(lane, proposed, self.tolerances.step))(
                before, proposed
            )
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
        complete = searched & starts_window & (lanes.signal == RUNNING) & (lanes.steps == until)
        return searched_for_period(lanes, history, complete, max_steps, self.tolerances.period)


class Advance(eqx.Module):
    """Compiled rounds of plain steps, many to a *stretch*, with one look at the last of each; see `BlockedRun`."""

    step: Callable[[Any, Any], Any]
    window: int = eqx.field(static=True)
    tolerances: Tolerances = eqx.field(static=True)

    def __call__(self, lanes: Lanes, max_steps: Any) -> Lanes:
        """Rounds until fewer than `FULL` of the lanes that could be moved still can.

        Those whose look was not plain come out before that stretch, with the signal `ALERT`.
        """

        def able(lanes: Lanes) -> Any:
            need = next_stretch(lanes.steps, max_steps, self.window)
            return (lanes.signal == RUNNING) & (need >= 0)

        enough = jnp.maximum(FULL * jnp.sum(able(lanes)), 1)
        return jax.lax.while_loop(
            lambda lanes: jnp.sum(able(lanes)) >= enough, lambda lanes: self._round(lanes, max_steps), lanes
        )

    def straight(self, lanes: Lanes, until: Any) -> Lanes:
        """Each lane to its ``until``, without a search."""

        def behind(lanes: Lanes) -> Any:
            return (lanes.signal == RUNNING) & (lanes.steps < until)

        def stretch(lanes: Lanes) -> Lanes:
            need = jnp.where(behind(lanes), (until - lanes.steps - 1) % ROUND + 1, 0)
            return self._stretch(lanes, need, NEVER)

        return jax.lax.while_loop(lambda lanes: jnp.any(behind(lanes)), stretch, lanes)

    def _round(self, lanes: Lanes, max_steps: Any) -> Lanes:
        def needs(lanes: Lanes) -> Any:
            return jnp.where(lanes.signal == RUNNING, next_stretch(lanes.steps, max_steps, self.window), -1)

        lanes = jax.lax.while_loop(
            lambda lanes: jnp.any(needs(lanes) > 0),
            lambda lanes: self._stretch(lanes, needs(lanes), max_steps),
            lanes,
        )
        here = needs(lanes) == 0

        def recorded(state: Any, _: None) -> tuple[Any, Any]:
            state = jax.vmap(self.step)(lanes.parameter, state)
            return state, state

        last, history = jax.lax.scan(recorded, lanes.state, None, length=self.window)
        lanes = self._looked_at(lanes, here, last, history[-2], self.window, max_steps)
        complete = here & (lanes.signal == RUNNING)
        return searched_for_period(lanes, history, complete, max_steps, self.tolerances.period)

    def _stretch(self, lanes: Lanes, needs: Any, max_steps: Any) -> Lanes:
        """The lanes that need the most steps take them; what a lane goes through does not depend on the others."""
        count = jnp.max(needs)
        step = jax.vmap(self.step)
        previous = jax.lax.fori_loop(0, count - 1, lambda _, state: step(lanes.parameter, state), lanes.state)
        newest = step(lanes.parameter, previous)
        return self._looked_at(lanes, needs == count, newest, previous, count, max_steps)

    def _looked_at(self, lanes: Lanes, here: Any, newest: Any, previous: Any, count: Any, max_steps: Any) -> Lanes:
        """The lanes ``here`` at ``newest``, ``count`` steps later, or where they were if that is not plain."""
        size, last_step, travelled = norms(newest), norms(newest - previous), norms(newest - lanes.start)
        rounding = 2 * jnp.finfo(size.dtype).eps * size
        # Wherever a step counts as negligible, whatever the rounding errors of these norms.
        small = last_step <= 1.5 * (self.tolerances.step * travelled + rounding)
        steps = lanes.steps + count
        due = (steps + CONSECUTIVE > lanes.retry_at) | (steps >= max_steps)
        plain = (size <= lanes.escape_radius) & jnp.isfinite(size) & ~(small & due)
        moves = here & plain
        return lanes._replace(
            state=jnp.where(moves[:, None], newest, lanes.state),
            last_step=jnp.where(moves, last_step, lanes.last_step),
            steps=jnp.where(moves, steps, lanes.steps),
            streak=jnp.where(moves, 0, lanes.streak),
            outside=jnp.where(moves, 0, lanes.outside),
            signal=jnp.where(here & ~plain, ALERT, lanes.signal).astype(lanes.signal.dtype),
        )


def next_search(steps: Any, max_steps: Any, window: int) -> Any:
    """The step after which the last states are searched for a period: of NumPy or traced integers."""
    rounds = steps // ROUND
    doubled = rounds
    for shift in (1, 2, 4, 8, 16, 32):
        doubled = doubled | (doubled >> shift)
    doubled = doubled + 1
    rare = rounds - doubled // 2 >= ROUNDS_BEFORE_DOUBLING
    until = (rounds + 1 + rare * (doubled - rounds - 1)) * ROUND
    # A last round shorter than the window could not be searched for a period: it joins the one before.
    return until + (until + window > max_steps) * (max_steps - until)


def next_stretch(steps: Any, max_steps: Any, window: int) -> Any:
    """Steps to the next look; 0 where the window begins, -1 where looks at every step must come first.

    Stretches end where those of a fresh trajectory do, so that trajectories share them.
    """
    left = next_search(steps, max_steps, window) - window - steps
    odd = left % ROUND
    begins = (odd == 0) | (odd == -window % ROUND) | (odd == (max_steps - window) % ROUND)
    # The remainder first, then whole stretches.
    need = odd + ((odd == 0) & (left > 0)) * ROUND
    return need - ~((left >= 0) & begins & (steps < max_steps)) * (need + 1)


def searched_for_period(lanes: Lanes, history: Any, complete: Any, max_steps: Any, tolerance: float) -> Lanes:
    """The ``complete`` lanes with the period and the signal that a search of their last states gives.

    The reference states are renewed whenever the age is a power of two, in rounds.
    """
    last = history[-1]
    tail = history[-1 : -CONSECUTIVE - 1 : -1].swapaxes(0, 1)
    apart = distances(history, last)
    close = tolerance * jnp.max(apart, axis=0) + 16 * jnp.finfo(apart.dtype).eps * norms(last)
    # Almost no round needs the whole search.
    short = jax.lax.cond(
        jnp.any(complete & jnp.any(apart[:-2] <= 1.5 * close, axis=0)),
        lambda history, close: smallest_period(history[::-1], close).astype(lanes.steps.dtype),
        lambda history, _: jnp.zeros(history.shape[1], lanes.steps.dtype),
        history,
        close,
    )
    recurs = complete & jnp.all(norms(tail - lanes.reference) <= close[:, None], 1)
    long = jnp.where(recurs, lanes.steps - lanes.reference_step, 0)
    long = jnp.where(long <= LONGEST_PERIOD, long, 0)
    due = (lanes.steps >= lanes.retry_at) | (lanes.steps >= max_steps)
    searched = complete & due & (lanes.streak < CONSECUTIVE)
    period = jnp.where(searched, jnp.where(short > 0, short, long), 0)
    rounds = lanes.steps // ROUND
    anew = complete & (lanes.steps % ROUND == 0) & (rounds & (rounds - 1) == 0)
    return lanes._replace(
        period=jnp.where(complete, period, lanes.period).astype(lanes.period.dtype),
        signal=jnp.where(period > 0, RECURRENT, lanes.signal).astype(lanes.signal.dtype),
        reference=jnp.where(anew[:, None, None], tail, lanes.reference),
        reference_step=jnp.where(anew, lanes.steps, lanes.reference_step),
    )


def watched_step(lane: dict[str, Any], proposed: Any, tolerance: float) -> dict[str, Any]:
    """What a step to ``proposed`` changes of one lane, by the names of `Lanes`; nothing once it has stopped."""
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
    if vectors.shape[-1] == 1:
        return jnp.abs(vectors[..., 0])  # the square may overflow
    return jnp.sqrt(jnp.sum(vectors * vectors, axis=-1))


def distances(history: Any, point: Any) -> Any:
    """Euclidean distances of states (time, lane, component) from one of each lane.

    XLA's sums over a short last axis are several times slower than the same sum written out.
    """
    if point.shape[-1] > WRITTEN_OUT:
        return jax.vmap(lambda past: norms(past - point))(history)
    return jnp.sqrt(sum((history[..., k] - point[..., k]) ** 2 for k in range(point.shape[-1])))


def smallest_period(newest: Any, close: Any) -> Any:
    """The smallest ``p >= 2`` with three consecutive matches ``newest[k] ~ newest[k + p]``; 0 if none."""

    def test(found: Any, period: Any) -> tuple[Any, None]:
        past = jax.lax.dynamic_slice_in_dim(newest, period, CONSECUTIVE)
        matches = jnp.all(norms(newest[:CONSECUTIVE] - past) <= close, axis=0)
        return jnp.where((found == 0) & matches, period, found), None

    periods = jnp.arange(2, len(newest) - CONSECUTIVE + 1)
    found, _ = jax.lax.scan(test, jnp.zeros(newest.shape[1], periods.dtype), periods)
    return found


class Straight(eqx.Module):
    """Stretches without searches, each lane to its ``until``."""

    advance: Advance

    def __call__(self, lanes: Lanes, until: Any) -> Lanes:
        """The lanes there, unless they stop before; see `Advance.straight`."""
        return self.advance.straight(lanes, until)


class BlockedRun:
    """One family of maps, compiled by XLA to take trajectories from event to event, in fixed blocks.

    A *stretch* of many steps is followed by one look at the last of them; a trajectory for which that look is not
    plain (a negligible step, a state beyond the escape radius or not finite) is taken through it again with a look
    at every step. So every event falls at the step at which a run that looks at every step finds it.
    """

    def __init__(self, step: Callable[[Any, Any], Any], dim: int, window: int, tolerances: Tolerances) -> None:
        self.stretches = for_tracing(Advance(step, window, tolerances))
        self.straight = for_tracing(Straight(self.stretches))
        self.watched = for_tracing(Watched(step, window, tolerances))
        self.window, self.dim = window, dim
        self.name = f"xla-{jax.default_backend()}"
        self._blocks: dict[Any, int] = {}

    def block(self, lanes: Lanes) -> int:
        """Lanes in a block: of the map and the device alone, not of how many there are; see `fitting_block`."""
        dtype = lanes.state.dtype
        if dtype not in self._blocks:
            one = [jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for array in (lanes.parameter, lanes.state)]
            with float64():
                trace = jax.make_jaxpr(lambda parameter, state: self.stretches.step(parameter, state))(*one)
            kept = dtype.itemsize * self.dim * (self.window + 9)
            self._blocks[dtype] = fitting_block(intermediate_bytes(trace.jaxpr), kept)
        return self._blocks[dtype]

    def to(self, lanes: Lanes, until: np.ndarray) -> tuple[Lanes, np.ndarray]:
        """Iterate each lane to its ``until``, unless it stops or has stopped before; and which arrived.

        Periods are not looked for, and streaks of negligible steps are not counted long before ``retry_at``.
        """
        lanes = Lanes(*(np.array(field) for field in lanes))
        going = np.flatnonzero((lanes.signal == RUNNING) & (lanes.steps < until))
        while going.size:
            put(lanes, going, self._run(self.straight, (take(lanes, going), until[going])))
            alert = going[lanes.signal[going] == ALERT]
            odd = (until[alert] - lanes.steps[alert] - 1) % ROUND + 1
            self._look_at_each(lanes, alert, lanes.steps[alert] + odd, np.zeros(alert.size, bool), NEVER)
            going = alert[(lanes.signal[alert] == RUNNING) & (lanes.steps[alert] < until[alert])]
        return lanes, lanes.steps >= until

    def advance(self, lanes: Lanes, max_steps: int) -> Lanes:
        """Every lane at its next event, or at the horizon."""
        lanes = Lanes(*(np.array(field) for field in lanes))
        lanes.signal[...], lanes.period[...] = RUNNING, 0
        rows = np.flatnonzero(lanes.steps < max_steps)
        while rows.size:
            fast = rows
            while (fast := fast[self._able(take(lanes, fast), max_steps)]).size:
                # Lanes of the same age share blocks.
                fast = fast[np.argsort(lanes.steps[fast], kind="stable")]
                put(lanes, fast, self._run(self.stretches, (take(lanes, fast),), np.int64(max_steps)))
            slow = rows[np.isin(lanes.signal[rows], (RUNNING, ALERT)) & (lanes.steps[rows] < max_steps)]
            steps = lanes.steps[slow]
            end = next_search(steps, max_steps, self.window)
            left = end - self.window - steps
            near = left <= ROUND
            until = np.where(near, end, steps + (left - 1) % ROUND + 1)
            self._look_at_each(lanes, slow, until, near, max_steps)
            rows = slow[(lanes.signal[slow] == RUNNING) & (lanes.steps[slow] < max_steps)]
        return lanes

    def _able(self, lanes: Lanes, max_steps: int) -> np.ndarray:
        """Which lanes have plain steps before them."""
        need = next_stretch(lanes.steps, max_steps, self.window)
        return np.asarray((lanes.signal == RUNNING) & (need >= 0))

    def _look_at_each(
        self, lanes: Lanes, rows: np.ndarray, until: np.ndarray, searched: np.ndarray, max_steps: int
    ) -> None:
        """Take lanes to ``until`` with a look at every step, in place."""
        if rows.size:
            lanes.signal[rows] = RUNNING
            order = np.argsort(until - lanes.steps[rows], kind="stable")
            rows, until, searched = rows[order], until[order], searched[order]
            put(lanes, rows, self._run(self.watched, (take(lanes, rows), until, searched), np.int64(max_steps)))

    def _run(self, program: Any, lane_arrays: Any, *rest: Any) -> Any:
        """A program on all lanes, in blocks."""
        block = self.block(lane_arrays[0])
        return in_blocks(lambda arrays: compiled(program, (*arrays, *rest)), lane_arrays, block)


def take(lanes: Lanes, rows: np.ndarray) -> Lanes:
    """Some of the lanes."""
    return Lanes(*(field[rows] for field in lanes))


def put(lanes: Lanes, rows: np.ndarray, found: Lanes) -> None:
    """Write lanes back, in place."""
    for field, values in zip(lanes, found, strict=True):
        field[rows] = values


def fitting_block(step_bytes: int, kept_bytes: int) -> int:
    """Lanes in one block, a power of two.

    On a processor as many as make all intermediate results of a step, ``step_bytes`` a lane, fit into its cache,
    but enough to share the work of a matrix product; on other devices as many as fit a quarter of their memory.
    What is kept of a lane through a round, ``kept_bytes``, limits both.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        cached = block_size(step_bytes, LARGEST_BLOCK, CACHE_BYTES)
        return min(max(cached, FEWEST_LANES), block_size(kept_bytes, LARGEST_BLOCK))
    limit = (device.memory_stats() or {}).get("bytes_limit", 4 * DEVICE_BYTES)
    return block_size(step_bytes + kept_bytes, LARGEST_ON_DEVICE, limit // 4)


def block_size(bytes_per_lane: int, largest: int = 256, memory: int = BLOCK_BYTES) -> int:
    """Lanes in one block: a power of two that depends on the size of a lane alone."""
    lanes = largest
    while lanes > 1 and lanes * bytes_per_lane > memory:
        lanes //= 2
    return lanes


def intermediate_bytes(jaxpr: Any) -> int:
    """The size of every result in a jaxpr, those of the programs it calls included."""
    total = 0
    for equation in jaxpr.eqns:
        total += sum(variable.aval.size * variable.aval.dtype.itemsize for variable in equation.outvars)
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                total += intermediate_bytes(inner)
    return total


def in_blocks(function: Callable[..., Any], lane_arrays: Any, block: int, threads: int | None = None) -> Any:
    """``function`` of a pytree of arrays with a leading lane axis, evaluated block by block.

    Blocks are padded by repeating the last lane and run in as many threads as there are processors, or as
    given; the result is a pytree of NumPy arrays with the same leading length.
    """
    count = len(jax.tree.leaves(lane_arrays)[0])
    guard = Lock()
    whole: list[Any] = []

    def run(begin: int) -> None:
        rows, kept = np.minimum(np.arange(begin, begin + block), count - 1), min(block, count - begin)
        with float64():
            result = jax.tree.map(np.asarray, function(jax.tree.map(lambda array: array[rows], lane_arrays)))
        with guard:
            if not whole:
                whole.append(jax.tree.map(lambda part: np.empty((count, *part.shape[1:]), part.dtype), result))
        for target, part in zip(jax.tree.leaves(whole[0]), jax.tree.leaves(result), strict=True):
            target[begin : begin + kept] = part[:kept]

    begins = range(0, count, block)
    if threads == 1 or len(begins) == 1:
        for begin in begins:
            run(begin)
    else:
        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            list(pool.map(run, begins))
    return whole[0]


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

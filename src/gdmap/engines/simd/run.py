"""Taking trajectories from event to event with native kernels.

A *stretch* of many steps is followed by one look at the last of them; a trajectory for which that look is not
plain (a negligible step, a state beyond the escape radius or not finite) goes back to where the stretch began and
is taken through it again with a look at every step, together with all others like it. So every event falls at the
step at which a run that looks at every step finds it. Now and then the last states are recorded and searched for a
period.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.simd.kernel import Kernel, Layout, layout_for
from gdmap.engines.simd.native import host
from gdmap.engines.xla import (
    ALERT,
    CONSECUTIVE,
    LONGEST_PERIOD,
    RECURRENT,
    ROUND,
    ROUNDS_BEFORE_DOUBLING,
    RUNNING,
    Lanes,
    Tolerances,
    watched_step,
)

# Steps between two looks, in straight-line code and in loops over arrays.
STRETCH_SMALL, STRETCH = 128, 64
# Stretches of the first call, and how long a call should take, in seconds: short enough that lanes which have
# stopped are soon noticed, long enough that noticing costs little.
FIRST_CALL, SHORT_CALL, LONG_CALL = 16, 2e-3, 8e-3
# Steps that are looked at one by one after a stretch that was not plain; doubled each time one trajectory needs
# it.
PATIENCE = 256
# In place of whether a search renews the reference: it is the last, and whether its look matters.
AT_END, WHATEVER = -1, -2


class NativeRun:
    """One family of maps, compiled to take trajectories from event to event.

    ``name`` says with what: as ``simd-8``, eight numbers in a register.

    Raises
    ------
    Unsupported
        If the compiler cannot translate the map.
    """

    def __init__(self, step: Callable[[Any, Any], Any], dim: int, window: int, tolerances: Tolerances) -> None:
        self.step, self.dim, self.tolerances = step, dim, tolerances
        number, vector = np.zeros(()), np.zeros(dim)
        self.layout: Layout = layout_for(step, number, vector)
        self.name = f"simd-{host().width}"
        self.stretch = STRETCH_SMALL if self.layout.small else STRETCH
        self.searched = window
        # The search for a period ends a round, whose rest is whole stretches.
        self.window = ROUND - (ROUND - window) // self.stretch * self.stretch if window < ROUND else window
        whole = np.int64(0)
        self.fields: dict[str, Any] = {
            "parameter": number,
            "start": vector,
            "state": vector,
            "escape": number,
            "reference": np.zeros((CONSECUTIVE, dim)),
            **dict.fromkeys(("retry_at", "steps", "limit", "reference_step", "period", "renew"), whole),
            "signal": np.int32(0),
            "halted": np.int32(0),
        }
        self._stretch = self._kernel(self._one_stretch)
        self._windows = {self.window: self._kernel(partial(self._one_window, self.window))}
        self.watched: dict[str, Any] = {
            "parameter": number,
            "start": vector,
            "state": vector,
            "last_step": number,
            "escape_radius": number,
            **dict.fromkeys(("steps", "retry_at", "until", "streak", "outside"), whole),
            "signal": np.int32(0),
            "halted": np.int32(0),
        }
        self._watch = self._kernel(self._one_watched, self.watched)

    def _kernel(
        self, function: Callable[[dict[str, Any]], dict[str, Any]], fields: dict[str, Any] | None = None
    ) -> Kernel:
        """A function of one trajectory, compiled: of all its fields to those that change."""
        fields = fields or self.fields

        def on_fields(*values: Any) -> Any:
            lane = dict(zip(fields, values, strict=True))
            lane |= function(lane)
            return tuple(lane.values())

        return Kernel(on_fields, list(fields.values()), list(fields).index("halted"), self.layout)

    # -- what the kernels compute, for one trajectory -----------------------------------------------------------

    def _steps(self, lane: dict[str, Any], state: Any, count: int) -> Any:
        return jax.lax.fori_loop(0, count, lambda _, state: self.step(lane["parameter"], state), state)

    def _looked_at(self, lane: dict[str, Any], newest: Any, previous: Any, count: int) -> tuple[Any, Any]:
        """Whether the lane moves on to ``newest``, ``count`` steps later, and whether the look was not plain."""
        size, move, way = squares(newest), squares(newest - previous), squares(newest - lane["start"])
        eps = jnp.finfo(newest.dtype).eps
        # The square of |move| <= tolerance |way| + 2 eps |size|, with room for its rounding.
        a, b = self.tolerances.step**2 * way, 4 * eps**2 * size
        small = move <= (1 + 1e-9) * (a + b + 2 * jnp.sqrt(a * b))
        due = (lane["steps"] + count >= lane["retry_at"]) | (lane["renew"] < 0)
        alert = (~(size <= lane["escape"]) | (small & due)) & (lane["renew"] > WHATEVER)
        here = (lane["signal"] == RUNNING) & (lane["steps"] + count <= lane["limit"])
        return here & ~alert, here & alert

    def _one_stretch(self, lane: dict[str, Any]) -> dict[str, Any]:
        count = self.stretch
        previous = self._steps(lane, lane["state"], count - 1)
        newest = self._steps(lane, previous, 1)
        moves, alert = self._looked_at(lane, newest, previous, count)
        steps = jnp.where(moves, lane["steps"] + count, lane["steps"])
        room = steps + min(count, self.window) <= lane["limit"]
        return {
            "state": jnp.where(moves, newest, lane["state"]),
            "steps": steps,
            "signal": jnp.where(alert, jnp.int32(ALERT), lane["signal"]),
            "halted": jnp.where(alert | ~room, jnp.int32(1), lane["halted"]),
        }

    def _one_window(self, count: int, lane: dict[str, Any]) -> dict[str, Any]:
        early = self._steps(lane, lane["state"], count - self.searched)
        last, history = jax.lax.scan(
            lambda state, _: (self.step(lane["parameter"], state),) * 2, early, None, length=self.searched
        )
        moves, alert = self._looked_at(lane, last, history[-2], count)
        steps = jnp.where(moves, lane["steps"] + count, lane["steps"])
        newest = history[::-1]
        apart = jnp.sum((newest - newest[0]) ** 2, axis=1)
        eps = jnp.finfo(last.dtype).eps
        close = (self.tolerances.period * jnp.sqrt(jnp.max(apart)) + 16 * eps * jnp.sqrt(squares(last))) ** 2
        number = self.searched - CONSECUTIVE - 1
        back = apart[2 : 2 + number] <= close

        def shortest() -> Any:
            returns = back
            for k in range(1, CONSECUTIVE):
                returns &= jnp.sum((newest[k + 2 : k + 2 + number] - newest[k]) ** 2, axis=1) <= close
            return jnp.min(jnp.where(returns, jnp.arange(2, number + 2), LONGEST_PERIOD + 1))

        # A state that is back is rare: the ones before it are compared only then.
        short = jax.lax.cond(jnp.any(back), shortest, lambda: LONGEST_PERIOD + 1)
        recurs = jnp.all(jnp.sum((newest[:CONSECUTIVE] - lane["reference"]) ** 2, axis=1) <= close)
        long = jnp.where(recurs, steps - lane["reference_step"], LONGEST_PERIOD + 1)
        period = jnp.where(short <= LONGEST_PERIOD, short, long)
        due = (steps >= lane["retry_at"]) | (lane["renew"] < 0)
        found = moves & due & (period <= LONGEST_PERIOD)
        renew = moves & (lane["renew"] > 0)
        room = steps + min(self.stretch, count) <= lane["limit"]
        return {
            "state": jnp.where(moves, last, lane["state"]),
            "steps": steps,
            "signal": jnp.where(alert, jnp.int32(ALERT), jnp.where(found, jnp.int32(RECURRENT), lane["signal"])),
            "period": jnp.where(found, period, lane["period"]),
            "reference": jnp.where(renew, newest[:CONSECUTIVE], lane["reference"]),
            "reference_step": jnp.where(renew, steps, lane["reference_step"]),
            "halted": jnp.where(alert | found | ~room, jnp.int32(1), lane["halted"]),
        }

    def _one_watched(self, lane: dict[str, Any]) -> dict[str, Any]:
        proposed = self.step(lane["parameter"], lane["state"])
        after = watched_step(lane, proposed, self.tolerances.step)
        over = (after["signal"] != RUNNING) | (after["steps"] >= lane["until"])
        return {**after, "halted": over.astype(jnp.int32)}

    # -- taking many from event to event -------------------------------------------------------------------------

    def advance(self, lanes: Lanes, max_steps: int) -> Lanes:
        """Every lane at its next event, or at the horizon."""
        lanes = Lanes(*(np.array(field) for field in lanes))
        lanes.signal[...] = RUNNING
        lanes.period[...] = 0
        lanes.last_step[...] = 0
        patience = np.full(len(lanes.state), PATIENCE)
        pending = np.flatnonzero(lanes.steps < max_steps)
        while pending.size:
            alert = self._in_stretches(lanes, pending, max_steps)
            if not alert.size:
                break
            until = np.minimum(lanes.steps[alert] + patience[alert], max_steps)
            self._watched(lanes, alert, until)
            patience[alert] *= 2
            running = (lanes.signal[alert] == RUNNING) & (lanes.steps[alert] < max_steps)
            pending = alert[running]
        return lanes

    def _in_stretches(self, lanes: Lanes, rows: np.ndarray, max_steps: int) -> np.ndarray:
        """Take lanes to the horizon or an event; those whose look was not plain stay before it, returned."""
        last = max_steps - self.window
        alerts = [rows[:0]]
        main = rows[lanes.steps[rows] + min(self.stretch, self.window) <= last]
        if main.size:
            alerts.append(self._packed(lanes, main, last, self._rounds(), self.window))
        at_end = np.setdiff1d(rows, alerts[-1], assume_unique=True)
        at_end = at_end[(lanes.signal[at_end] == RUNNING) & (lanes.steps[at_end] < max_steps)]
        self._to_the_end(lanes, at_end, max_steps)
        return alerts[-1]

    def _to_the_end(self, lanes: Lanes, rows: np.ndarray, max_steps: int) -> None:
        """Take lanes to the horizon or an event, with a search there wherever it fits.

        What is left before the search is looked at step by step; so is all of it where none fits any more.
        """
        whole = lanes.steps[rows] <= max_steps - self.window
        last = max_steps - np.where(whole, self.window, self.searched)
        fits = lanes.steps[rows] <= last
        target = np.where(fits, last, max_steps)
        behind = lanes.steps[rows] < target
        if behind.any():
            self._watched(lanes, rows[behind], target[behind])
        fits &= lanes.signal[rows] == RUNNING
        for group, window in ((rows[fits & whole], self.window), (rows[fits & ~whole], self.searched)):
            if group.size:
                alert = self._packed(lanes, group, max_steps, iter([(0, AT_END)]), window)
                if alert.size:
                    self._watched_and_searched(lanes, alert, max_steps, window)

    def _watched_and_searched(self, lanes: Lanes, rows: np.ndarray, max_steps: int, window: int) -> None:
        """Take lanes through the last window with a look at every step; then a search, whatever the looks."""
        before = Lanes(*(field[rows] for field in lanes))
        self._watched(lanes, rows, np.full(rows.size, max_steps))
        still = (lanes.signal[rows] == RUNNING) & (lanes.streak[rows] < CONSECUTIVE)
        if still.any():
            self._packed(before, np.flatnonzero(still), max_steps, iter([(0, WHATEVER)]), window)
            recur = before.signal == RECURRENT
            lanes.signal[rows[recur]], lanes.period[rows[recur]] = RECURRENT, before.period[recur]

    def _rounds(self) -> Iterator[tuple[int, int | None]]:
        """How many stretches lead to each search for a period, and whether it renews the reference."""
        age = 0
        while True:
            length = ROUND
            if age >= ROUNDS_BEFORE_DOUBLING * ROUND:
                doubling = 2 ** (age.bit_length() - 1)
                since = (age - doubling) // ROUND
                # Every period that divides one of the first 16 multiples of a round divides one of the last 8.
                if since == 0:
                    length = 9 * ROUND
                elif since >= ROUNDS_BEFORE_DOUBLING:
                    length = 2 * doubling - age
            age += length
            rounds = age // ROUND
            yield (length - self.window) // self.stretch, int(rounds & (rounds - 1) == 0)

    def _packed(
        self,
        lanes: Lanes,
        rows: np.ndarray,
        limit: int,
        rounds: Iterator[tuple[int, int | None]],
        window: int,
    ) -> np.ndarray:
        """Run stretches and searches on packed lanes until all have halted; the rows whose look was not plain.

        Running lanes take the places of those that have halted when these waste as much time as moving them takes.
        """
        packed, alerts, call = self._pack(lanes, rows, limit), [rows[:0]], FIRST_CALL
        wasted, moving = 0.0, 0.0
        stretches, renew = next(rounds)
        while packed.rows.size and renew is not None:
            begin = time.perf_counter()
            if stretches:
                part = min(call, stretches)
                self._stretch(list(packed.blocks.values()), part)
                stretches -= part
                call = next_call(call, part, time.perf_counter() - begin)
            else:
                self._search(packed.blocks, renew, window)
                stretches, renew = next(rounds, (0, None))
            halted = packed.column("halted") != 0
            wasted += self.layout.idle(halted) * (time.perf_counter() - begin)
            if halted.all() or wasted > moving:
                begin = time.perf_counter()
                alerts.append(self._unpack(lanes, packed, np.flatnonzero(halted)))
                packed = packed.without(halted)
                wasted, moving = 0.0, time.perf_counter() - begin
        alerts.append(self._unpack(lanes, packed, np.arange(packed.rows.size)))
        found = np.concatenate(alerts)
        lanes.signal[found] = RUNNING
        return found

    def _search(self, blocks: dict[str, np.ndarray], renew: int, window: int) -> None:
        """A search for a period in every lane that runs, and after it a new reference, or none, or the end."""
        if window not in self._windows:
            self._windows[window] = self._kernel(partial(self._one_window, window))
        blocks["renew"][...] = renew
        if renew < 0:
            blocks["halted"][...] = blocks["signal"] != RUNNING
        self._windows[window](list(blocks.values()), 1)

    def _pack(self, lanes: Lanes, rows: np.ndarray, limit: int) -> "Packed":
        count = len(rows)
        with np.errstate(over="ignore"):
            escape = lanes.escape_radius[rows] ** 2
        whole = np.zeros(count, np.int64)
        values = {
            "parameter": lanes.parameter[rows],
            "start": lanes.start[rows],
            "state": lanes.state[rows],
            "escape": np.minimum(escape, np.finfo(float).max),
            "reference": lanes.reference[rows],
            "retry_at": lanes.retry_at[rows],
            "steps": lanes.steps[rows],
            "limit": np.full(count, limit),
            "reference_step": lanes.reference_step[rows],
            "period": whole,
            "renew": whole,
            "signal": np.zeros(count, np.int32),
            "halted": np.zeros(count, np.int32),
        }
        blocks = {
            name: self.layout.packed(np.asarray(values[name], np.asarray(example).dtype))
            for name, example in self.fields.items()
        }
        return Packed(rows, blocks, self.layout)

    def _unpack(self, lanes: Lanes, packed: "Packed", places: np.ndarray) -> np.ndarray:
        """Write the lanes at some places back; the rows of those whose look was not plain."""
        rows = packed.rows[places]
        moved = rows[packed.at("steps", places)[:, 0] != lanes.steps[rows]]
        lanes.streak[moved], lanes.outside[moved] = 0, 0
        for name in ("state", "steps", "signal", "reference", "reference_step", "period"):
            field = getattr(lanes, name)
            field[rows] = packed.at(name, places).reshape(rows.size, *field.shape[1:])
        return np.asarray(rows[lanes.signal[rows] == ALERT])

    def _watched(self, lanes: Lanes, rows: np.ndarray, until: np.ndarray) -> None:
        """Take lanes to ``until`` with a look at every step, in place."""
        # Lanes with about as far to go share blocks, which end together.
        rows, until = (array[np.argsort(until - lanes.steps[rows], kind="stable")] for array in (rows, until))
        values = {name: getattr(lanes, name)[rows] for name in self.watched if name not in ("until", "halted")}
        values["until"] = until
        values["halted"] = (lanes.steps[rows] >= until).astype(np.int32)
        names = list(self.watched)
        blocks = {
            name: self.layout.packed(np.asarray(values[name], np.asarray(self.watched[name]).dtype))
            for name in names
        }
        self._watch([blocks[name] for name in names], int((until - lanes.steps[rows]).max(initial=0)))
        for name in ("state", "last_step", "steps", "streak", "outside", "signal"):
            found = self.layout.unpacked(blocks[name], rows.size)
            field = getattr(lanes, name)
            field[rows] = found.reshape(rows.size, *field.shape[1:])


class Packed(NamedTuple):
    """Lanes in blocks, and which rows they are; the last block is filled up."""

    rows: np.ndarray
    blocks: dict[str, np.ndarray]
    layout: Layout

    def column(self, name: str) -> np.ndarray:
        """A field of one number, lane by lane."""
        return self.layout.unpacked(self.blocks[name], self.rows.size)[:, 0]

    def at(self, name: str, places: np.ndarray) -> np.ndarray:
        """A field at some places, shape ``(places, size)``."""
        block, lane = np.divmod(places, self.layout.lanes)
        return np.asarray(self.blocks[name][block, :, lane])

    def without(self, halted: np.ndarray) -> "Packed":
        """The others alone, on the same memory: the last take the places of the first that have halted."""
        left = int(np.count_nonzero(~halted))
        holes, sources = np.flatnonzero(halted[:left]), left + np.flatnonzero(~halted[left:])
        block, lane = np.divmod(holes, self.layout.lanes)
        kept = -(-left // self.layout.lanes)
        blocks = {}
        for name, field in self.blocks.items():
            field[block, :, lane] = self.at(name, sources)
            blocks[name] = field[:kept]
        rows = self.rows.copy()
        rows[holes] = rows[sources]
        # Behind the last lane nothing is to be done.
        blocks["halted"].transpose(0, 2, 1).reshape(-1)[left:] = 1
        return Packed(rows[:left], blocks, self.layout)


def next_call(call: int, made: int, spent: float) -> int:
    """Stretches of the next call, by what the last one took."""
    if spent < SHORT_CALL:
        return 2 * call if made == call else call
    return max(FIRST_CALL, call // 2) if spent > LONG_CALL else call


def squares(vector: Any) -> Any:
    """The squared Euclidean norm."""
    return jnp.sum(vector * vector)

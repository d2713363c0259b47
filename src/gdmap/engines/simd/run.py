"""Taking trajectories from event to event with native kernels.

A *stretch* of many steps is followed by one look at the last of them; a trajectory for which that look is not
plain (a negligible step, a state beyond the escape radius or not finite) goes back to where the stretch began and
is taken through it again with a look at every step, together with all others like it. So every event falls at the
step at which a run that looks at every step finds it. Now and then the last states are recorded and searched for a
period.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.simd.kernel import Kernel, Layout, layout_for
from gdmap.engines.simd.native import host
from gdmap.engines.xla import (
    CONSECUTIVE,
    LONGEST_PERIOD,
    RECURRENT,
    ROUND,
    RUNNING,
    Lanes,
    Tolerances,
    watched_step,
)

# In kernels only: the look after a stretch was not plain.
ALERT = 9
# Steps between two looks, in straight-line code and in loops over arrays.
STRETCH_SMALL, STRETCH = 128, 64
# From this age on the search for periods becomes rarer: so many rounds, then none until the age has doubled.
ROUNDS_BEFORE_DOUBLING = 16
# Lanes are packed anew when fewer than this share of them still run.
FULL = 0.875
# Stretches between two counts of the lanes that still run, at least.
SLICE = 16
# Steps that are looked at one by one after a stretch that was not plain; doubled each time one trajectory needs
# it.
PATIENCE = 256


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
        names = list(self.fields)
        stop = names.index("halted")
        self._stretch = Kernel(self._as_fields(self._one_stretch), list(self.fields.values()), stop, self.layout)
        self._window = Kernel(self._as_fields(self._one_window), list(self.fields.values()), stop, self.layout)
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
        self._watch = Kernel(
            self._as_fields(self._one_watched),
            list(self.watched.values()),
            list(self.watched).index("halted"),
            self.layout,
        )

    # -- what the kernels compute, for one trajectory -----------------------------------------------------------

    def _as_fields(self, function: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[..., Any]:
        names = list(self.watched if function == self._one_watched else self.fields)

        def on_fields(*values: Any) -> Any:
            lane = dict(zip(names, values, strict=True))
            lane |= function(lane)
            return tuple(lane[name] for name in names)

        return on_fields

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
        alert = ~(size <= lane["escape"]) | (small & due)
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

    def _one_window(self, lane: dict[str, Any]) -> dict[str, Any]:
        count = self.window
        early = self._steps(lane, lane["state"], count - self.searched)
        last, history = jax.lax.scan(
            lambda state, _: (self.step(lane["parameter"], state),) * 2, early, None, length=self.searched
        )
        moves, alert = self._looked_at(lane, last, history[-2], count)
        steps = jnp.where(moves, lane["steps"] + count, lane["steps"])
        newest = history[::-1]
        reach = jnp.sqrt(jnp.max(jnp.sum((newest - newest[0]) ** 2, axis=1)))
        eps = jnp.finfo(last.dtype).eps
        close = (self.tolerances.period * reach + 16 * eps * jnp.sqrt(squares(last))) ** 2
        number = self.searched - CONSECUTIVE - 1
        returns = jnp.ones(number, bool)
        for k in range(CONSECUTIVE):
            apart = newest[k + 2 : k + 2 + number] - newest[k]
            returns = returns & (jnp.sum(apart**2, axis=1) <= close)
        short = jnp.min(jnp.where(returns, jnp.arange(2, number + 2), LONGEST_PERIOD + 1))
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
            alerts.append(self._packed(lanes, main, last, self._rounds()))
        at_end = np.setdiff1d(rows, alerts[-1], assume_unique=True)
        at_end = at_end[(lanes.signal[at_end] == RUNNING) & (lanes.steps[at_end] < max_steps)]
        # What is left before the last search is looked at step by step; so is all of it where none fits any more.
        searched = lanes.steps[at_end] <= last
        target = np.where(searched, last, max_steps)
        behind = lanes.steps[at_end] < target
        if behind.any():
            self._watched(lanes, at_end[behind], target[behind])
        ends = at_end[searched & (lanes.signal[at_end] == RUNNING)]
        if ends.size:
            alerts.append(self._packed(lanes, ends, max_steps, iter([(0, -1)])))
        return np.concatenate(alerts)

    def _rounds(self) -> Iterator[tuple[int, int | None]]:
        """Stretches, and whether a search for a period follows that renews the reference (none: no search)."""
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
            left = (length - self.window) // self.stretch
            part = max(SLICE, left // 8)
            while left > part:
                yield part, None
                left -= part
            rounds = age // ROUND
            yield left, int(rounds & (rounds - 1) == 0)

    def _packed(
        self, lanes: Lanes, rows: np.ndarray, limit: int, rounds: Iterator[tuple[int, int | None]]
    ) -> np.ndarray:
        """Run stretches and searches on packed lanes until all have halted; the rows whose look was not plain."""
        alerts = [rows[:0]]
        while rows.size:
            blocks = self._pack(lanes, rows, limit)
            active = rows.size
            names = list(blocks)
            while active and (active >= FULL * rows.size):
                following = next(rounds, None)
                if following is None:
                    break
                stretches, renew = following
                if stretches:
                    self._stretch([blocks[name] for name in names], stretches)
                if renew is not None:
                    blocks["renew"][...] = renew
                    if renew < 0:
                        blocks["halted"][...] = blocks["signal"] != RUNNING
                    self._window([blocks[name] for name in names], 1)
                active = rows.size - int(np.count_nonzero(self._column(blocks["halted"], rows.size)))
            self._unpack(lanes, rows, blocks)
            halted = self._column(blocks["halted"], rows.size) != 0
            signal = self._column(blocks["signal"], rows.size)
            alerts.append(rows[signal == ALERT])
            rows = rows[~halted]
            if following is None:
                break
        found = np.concatenate(alerts)
        lanes.signal[found] = RUNNING
        return found

    def _column(self, blocks: np.ndarray, count: int) -> np.ndarray:
        return self.layout.unpacked(blocks, count)[:, 0]

    def _pack(self, lanes: Lanes, rows: np.ndarray, limit: int) -> dict[str, np.ndarray]:
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
        return {
            name: self.layout.packed(np.asarray(values[name], np.asarray(example).dtype))
            for name, example in self.fields.items()
        }

    def _unpack(self, lanes: Lanes, rows: np.ndarray, blocks: dict[str, np.ndarray]) -> None:
        for name in ("state", "steps", "signal", "reference", "reference_step", "period"):
            values = self.layout.unpacked(blocks[name], rows.size)
            field = getattr(lanes, name)
            field[rows] = values.reshape(rows.size, *field.shape[1:])
        lanes.streak[rows], lanes.outside[rows] = 0, 0

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


def squares(vector: Any) -> Any:
    """The squared Euclidean norm."""
    return jnp.sum(vector * vector)

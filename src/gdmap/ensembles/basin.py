"""Basins of attraction: the fate and the attractor of every start on a plane."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import xarray as xr
from scipy.ndimage import binary_dilation
from scipy.stats import binomtest

from gdmap.engines.choice import checked_engine, chosen_stride
from gdmap.engines.precision import for_tracing
from gdmap.engines.strips import (
    Strip,
    fresh_strip,
    in_strips,
    strip_width,
    take,
)
from gdmap.engines.xla import (
    ESCAPED,
    OVERFLOWN,
    RECURRENT,
    RUNNING,
    STATIONARY,
    UNDEFINED,
    Tolerances,
    compiled,
)
from gdmap.ensembles.attractors import (
    APERIODIC,
    CONFIDENCE,
    IDENTITY_ATTRIBUTES,
    NO_ATTRACTOR,
    TOLERANCE,
    Registry,
    checked_tolerance,
    described,
    extent,
    numbered,
)
from gdmap.ensembles.ensemble import ATTRIBUTES, checked_criteria, environment, map_criteria
from gdmap.ensembles.fates import Fate, Reason
from gdmap.ensembles.iteration import Criteria, engine_for, iterate_to_fate
from gdmap.ensembles.verdicts import judge_cycles, judge_fixed_points
from gdmap.maps import ConstantFamily, Map, RandomMap
from gdmap.orbits.symmetries import checked_symmetries

FIRST_ROUND = 32
# Starts that end in one cell are judged by those farthest out in it; cells have this share of the diagonal of
# the plane and are halved where these disagree. Small groups are judged one by one.
CELL, HALVINGS, SMALL = 1 / 32, 7, 8
# Aperiodic orbits: from this age on; so many are given to the full judge each time; the others are compared over
# so many states with where the judged attractor goes, on a grid of so many cells across.
APERIODIC_AGE, PROBES, TAIL, OCCUPANCY, OCCUPANCY_ORBIT = 1024, 4, 32, 64, 2**17
# Starts left at the horizon are judged one by one up to this number, otherwise by cells.
LEFT = 1024
MOST_BYTES = 6e9
# A warning is given where the share of disagreeing pixels is larger, at the lower end of its interval.
DOUBTFUL = 0.02


class Pixels(NamedTuple):
    """What became of each pixel; one entry per pixel, the last axis of ``state``."""

    fate: np.ndarray
    reason: np.ndarray
    period: np.ndarray
    steps: np.ndarray
    label: np.ndarray
    state: np.ndarray


def basin(
    map: Map,  # noqa: A002 - the name of the concept
    plane: Any,
    resolution: int | tuple[int, int] = 500,
    max_steps: int = 10_000,
    *,
    origin: Any = None,
    directions: Any = None,
    symmetries: Sequence[Any] = (),
    tolerance: float = TOLERANCE,
    verify: int = 500,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    step_tolerance: float | None = None,
    period_tolerance: float = Criteria().period_tolerance,
    max_period: int = Criteria().max_period,
    escape_radius: float | None = None,
    engine: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """The fate and the attractor of every start on a grid in a plane of parameter space.

    The starts are ``origin + x u + y v`` at the centres of ``n_x`` by ``n_y`` equal pixels.

    Parameters
    ----------
    map
        ``GradientDescent(objective, step_size)`` or an `Optimiser`.
    plane
        ``((x_low, x_high), (y_low, y_high))``.
    resolution
        Pixels along x and y: ``(n_x, n_y)``, or one number for both.
    max_steps
        The horizon.
    origin
        The parameters at ``x = y = 0``; by default 0.
    directions
        The pair ``(u, v)`` of vectors of shape ``(dim,)``, or of indices of parameters. They are used as they are:
        in units of their own lengths. By default the two parameters of an objective of two; needed for others.
    symmetries, tolerance
        See `gdmap.attractors`.
    verify
        The number of pixels, drawn with ``seed``, that are iterated again by the full ensemble to measure how
        often the picture disagrees; 0 for none.
    seed
        Of the draw of these pixels.
    confidence
        Of the intervals.
    step_tolerance, period_tolerance, max_period, escape_radius
        See `Criteria`. Recurrences of every period that fits are found; ``max_period`` concerns the pixels given
        to the full ensemble.
    engine
        See `gdmap.ensemble`.
    progress
        Called as ``progress(finished, total)`` in pixels, from time to time.

    Returns
    -------
    xarray.Dataset
        Over (``y``, ``x``): ``fate`` and ``reason`` (flag variables), ``attractor`` (identity from 1, by falling
        share; -1: none), ``period``, ``steps`` and ``judged`` (how the fate was found: 1 by its own judgement, 0
        by that of others in its cell, see Notes). Over ``id`` the description of the attractors, as from
        `gdmap.attractors`. Over ``fate_name``: ``fraction`` with its interval. Attributes: ``verified``,
        ``disagreements`` (pixels checked and found different), ``error_rate`` with ``error_rate_lower`` and
        ``error_rate_upper`` (Wilson).

    Raises
    ------
    TypeError
        If ``map`` is no map that is not random.
    ValueError
        For a bad plane, resolution, origin or pair of directions, a picture too large for memory, and a
        symmetry that changes the loss.

    Notes
    -----
    *How.* All pixels are iterated by a kernel that applies the criteria of `gdmap.ensemble` to a negligible step,
    to escape and to non-finite updates at every step; recurrences are found by comparison with one reference
    state, renewed when the age doubles: the orbit must come back to it three times after as many steps, within
    ``period_tolerance`` of its size. Divergence is a verdict of this kernel. Other pixels are grouped by what
    stopped them, by the lag of the recurrence, and by the cell of state space (1/32 of the diagonal of the plane)
    that holds their last state. In a group of up to 8 each pixel is judged; in larger ones those farthest out in
    each direction are, at their own last states, by Newton's method, multipliers and Hessian as in the ensemble.
    If all of them agree in fate, reason, period and attractor, the group takes their verdict; otherwise the cell
    is halved, up to 7 times, and what then is left is judged one by one. Where the judge gives no verdict (as near
    an unstable point) the pixel is iterated by the full ensemble. From step 1024 on, whenever the age doubles, a
    few running pixels are given to the full ensemble; if it finds them aperiodic, others take this verdict if
    their next 32 states lie where the judged orbit goes (on a grid of 64 cells in its two principal directions,
    one cell of slack, and within its bounds otherwise). More than 1024 pixels that still run at the horizon are
    judged by cells through the full ensemble, which is no proof that their neighbours would not be judged
    otherwise.

    *Status.* A judged pixel is *computed* like a fate of the ensemble, an inherited verdict is *estimated*; how
    far to trust it is measured by the verified pixels. These disagree, too, where the ensemble's arithmetic, which
    rounds differently, sends a start near a fractal basin boundary elsewhere. The shares are exact counts of the
    pixels; as estimates of areas they are those of a systematic sample. Their Wilson intervals are those of as
    many independent starts, which a regular grid usually beats, and does not where the basins have structure
    aligned with it.

    *Reproducible.* A pixel's orbit depends on its start alone, to the last bit, not on the grid that it is part
    of.
    """
    if isinstance(map, RandomMap) or not isinstance(map, Map):
        raise TypeError(f"map must be a map such as GradientDescent(objective, step_size), got {map!r}")
    checked_engine(engine)
    criteria = checked_criteria(
        map_criteria(max_steps, step_tolerance, period_tolerance, max_period, escape_radius)
    )
    symmetries = checked_symmetries(symmetries)
    tolerance, confidence = checked_tolerance(tolerance), checked_tolerance(confidence, "confidence")
    ends = _checked_plane(plane)
    shape = _checked_resolution(resolution)
    centre, u, v = _checked_directions(map.objective.dim, origin, directions)
    _check_memory(shape, map.state_dim)
    verify = _checked_count(verify, "verify")
    x, y = (_centres(low, high, n) for (low, high), n in zip(ends, shape, strict=True))
    # The same arithmetic for every grid: a pixel's start is a function of its x and y alone.
    theta = [centre[i] + (x[None, :] * u[i] + y[:, None] * v[i]) for i in range(len(centre))]
    starts = np.stack([part.ravel() for part in theta])
    picture = _Picture(map, starts, criteria, symmetries, tolerance, progress, engine)
    picture.iterate()
    pixels = picture.pixels
    checks = _verified(picture, verify, seed, confidence)
    if checks.get("error_rate_lower", 0.0) > DOUBTFUL:
        warnings.warn(
            f"{checks['disagreements']} of {checks['verified']} pixels checked have another fate or attractor in "
            "the full ensemble (attrs error_rate): do not trust single pixels. More max_steps help where orbits "
            "were still on their way; gdmap.ensemble with gdmap.attractors judges every start by itself",
            stacklevel=2,
        )
    identity, order = numbered(picture.registry, pixels.label)

    size = (len(y), len(x))
    variables: dict[str, Any] = {
        "fate": pixels.fate,
        "reason": pixels.reason,
        "attractor": identity,
        "period": pixels.period,
        "steps": pixels.steps,
        "judged": picture.judged.astype(np.int8),
    }
    dataset = xr.Dataset(
        {name: (("y", "x"), values.reshape(size)) for name, values in variables.items()},
        coords={"x": x, "y": y},
    )
    for name in ("fate", "reason", "period", "steps"):
        dataset[name].attrs.update(ATTRIBUTES[name])
    dataset["attractor"].attrs.update(IDENTITY_ATTRIBUTES)
    dataset["judged"].attrs.update(
        long_name="whether the verdict is the pixel's own (1) or that of others in its cell (0)",
        flag_values=[0, 1],
        flag_meanings="inherited own",
    )
    for name in ("fate", "reason", "attractor", "period"):
        dataset[name].attrs["status"] = "computed where judged is 1, otherwise estimated"
    dataset["x"].attrs["long_name"] = _direction_name(directions, 0)
    dataset["y"].attrs["long_name"] = _direction_name(directions, 1)
    dataset = dataset.merge(described(picture.registry, identity, order, confidence))
    dataset = dataset.merge(_fractions(pixels.fate, confidence))
    dataset.attrs = {
        "map": repr(map),
        "status": "estimated",
        "method": "judged representatives of cells of last states; a sample of pixels verified by the ensemble",
        "origin": centre.tolist(),
        "direction_x": u.tolist(),
        "direction_y": v.tolist(),
        "plane": [float(end) for pair in ends for end in pair],
        "tolerance": tolerance,
        **criteria._asdict(),
        **checks,
        **environment(picture.stride.name),
    }
    return dataset


class _InitialStates(eqx.Module):
    map: Map

    def __call__(self, thetas: Any) -> Any:
        return jax.vmap(self.map.initial_state, in_axes=-1, out_axes=-1)(thetas)


class _Tail(eqx.Module):
    """The next states of every lane, ``(length, dim, lanes)``."""

    step: Callable[[Any], Any]
    length: int = eqx.field(static=True)

    def __call__(self, states: Any) -> Any:
        update = jax.vmap(self.step, in_axes=-1, out_axes=-1)
        return jax.lax.scan(lambda state, _: (update(state),) * 2, states, None, length=self.length)[1]


class _Picture:
    """The pixels of one plane while they find their fates."""

    def __init__(
        self,
        map_: Map,
        thetas: np.ndarray,
        criteria: Criteria,
        symmetries: Any,
        tolerance: float,
        progress: Callable[[int, int], None] | None,
        engine: str | None,
    ) -> None:
        self.criteria, self.progress, self.engine = criteria, progress, engine
        self.map = for_tracing(map_)
        self.family = ConstantFamily(map_)
        initial = _InitialStates(self.map)
        width = strip_width(map_.state_dim)
        self.start = in_strips(lambda block: compiled(initial, (block,)), thetas, width)
        self.stride = chosen_stride(
            self.map.update,
            map_.state_dim,
            self.start.dtype,
            Tolerances(criteria.step_tolerance, criteria.period_tolerance),
            criteria.escape_radius,
            engine,
        )
        self.run = engine_for(self.family, map_.state_dim, self.start.dtype, criteria, engine)
        count = self.start.shape[1]
        diagonal = extent(self.start.T)
        self.cell = CELL * diagonal
        self.registry = Registry(map_, diagonal, symmetries, tolerance)
        self.judged = np.zeros(count, bool)
        # Judged where it ended: what others that ended there can rely on.
        self.evident = np.zeros(count, bool)
        self.finished = 0
        self.pixels = Pixels(
            np.full(count, Fate.UNDECIDED, np.int8),
            np.full(count, Reason.HORIZON_REACHED, np.int8),
            np.zeros(count, np.int32),
            np.zeros(count, np.int32),
            np.full(count, NO_ATTRACTOR, np.int32),
            np.array(self.start),
        )

    def iterate(self) -> None:
        """Give every pixel its fate."""
        criteria = self.criteria
        running = np.arange(self.start.shape[1])
        strip = fresh_strip(self.start)
        age, until = 0, min(FIRST_ROUND, criteria.max_steps)
        stopped: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        while running.size:
            strip = self.stride(strip, age, until)
            self.pixels.state[:, running] = strip.state
            self.pixels.steps[running] = strip.steps
            done = strip.signal != RUNNING
            self._diverge(running, strip)
            ended = np.isin(strip.signal, (STATIONARY, RECURRENT))
            stopped.append((running[ended], strip.signal[ended], strip.lag[ended]))
            keep = np.flatnonzero(~done)
            running, strip = running[keep], take(strip, keep)
            self._report(done.sum())
            age = until
            if age >= criteria.max_steps:
                break
            if age >= APERIODIC_AGE and running.size > LEFT:
                left = ~self._aperiodic(running, age)
                running, strip = running[left], take(strip, np.flatnonzero(left))
            until = min(2 * age, criteria.max_steps)
        lanes, signal, lag = (np.concatenate(parts) for parts in zip(*stopped, strict=True))
        self._judge_by_cells(lanes, signal, np.where(signal == RECURRENT, lag, 0), self._judge)
        if running.size > LEFT:
            none = np.zeros(running.size, np.int32)
            self._judge_by_cells(running, none, none, self._judge_at_horizon)
        else:
            self._judge_in_full(running)

    def _report(self, more: Any) -> None:
        self.finished += int(more)
        if self.progress is not None:
            self.progress(self.finished, self.start.shape[1])

    def _diverge(self, lanes: np.ndarray, strip: Strip) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            size = np.linalg.norm(strip.state, axis=0)
            large = size > self.criteria.escape_radius * (1 + np.linalg.norm(strip.start, axis=0))
        for chosen, reason in (
            (strip.signal == ESCAPED, Reason.NORM_KEEPS_GROWING),
            ((strip.signal == OVERFLOWN) | ((strip.signal == UNDEFINED) & large), Reason.OVERFLOW),
            ((strip.signal == UNDEFINED) & ~large, Reason.UPDATE_UNDEFINED),
        ):
            self.pixels.fate[lanes[chosen]], self.pixels.reason[lanes[chosen]] = Fate.DIVERGED, reason
            self.judged[lanes[chosen]] = True

    def _judge_by_cells(
        self, lanes: np.ndarray, signal: np.ndarray, lag: np.ndarray, judge: Callable[[np.ndarray], None]
    ) -> None:
        """Let ``judge`` decide on the outermost pixels of each cell, and give the others what they agree on."""
        kinds = {"signal": signal, "lag": lag}
        self.lag = np.zeros(self.start.shape[1], np.int32)
        self.lag[lanes] = lag
        for halving in range(HALVINGS + 1):
            if not lanes.size:
                return
            groups = _Groups.of(self.pixels.state[:, lanes], list(kinds.values()), self.cell / 2**halving)
            chosen = groups.outermost()
            new = lanes[chosen]
            judge(new[~self.judged[new]])
            agreed = groups.unanimous(lanes, self.evident, self._verdicts(lanes), chosen)
            inherits = agreed >= 0
            self._inherit(lanes[inherits & ~self.judged[lanes]], lanes[agreed[inherits & ~self.judged[lanes]]])
            open_ = ~inherits & ~self.judged[lanes]
            lanes = lanes[open_]
            kinds = {name: values[open_] for name, values in kinds.items()}
        judge(lanes)

    def _verdicts(self, lanes: np.ndarray) -> np.ndarray:
        pixels = self.pixels
        labels = self.registry.roots(pixels.label[lanes])
        return np.stack([pixels.fate[lanes], pixels.reason[lanes], pixels.period[lanes], labels])

    def _inherit(self, lanes: np.ndarray, source: np.ndarray) -> None:
        for field in (self.pixels.fate, self.pixels.reason, self.pixels.period, self.pixels.label):
            field[lanes] = field[source]

    def _judge(self, lanes: np.ndarray) -> None:
        """Judge pixels at their last states; those without a verdict there by the full ensemble."""
        if not lanes.size:
            return
        pixels = self.pixels
        state, start = pixels.state[:, lanes].T, self.start[:, lanes].T
        parameter, lag = np.zeros(len(lanes)), self.lag[lanes]
        given = np.zeros(len(lanes), bool)
        for chosen, judge, extra in (
            (lag == 0, judge_fixed_points, start),
            (lag > 0, judge_cycles, lag),
        ):
            rows = np.flatnonzero(chosen)
            if not rows.size:
                continue
            verdicts = judge(self.family, parameter[rows], state[rows], extra[rows])
            rows, found = rows[verdicts.given], np.flatnonzero(verdicts.given)
            given[rows] = True
            pixels.fate[lanes[rows]] = verdicts.fate[found]
            pixels.reason[lanes[rows]] = verdicts.reason[found]
            pixels.period[lanes[rows]] = verdicts.period[found]
        self._identify(lanes[given])
        self.evident[lanes[given]] = True
        self._judge_in_full(lanes[~given])

    def _judge_at_horizon(self, lanes: np.ndarray) -> None:
        self._judge_in_full(lanes)
        self.evident[lanes] = True

    def _judge_in_full(self, lanes: np.ndarray) -> None:
        """Iterate pixels from their starts by the full ensemble."""
        if not lanes.size:
            return
        outcome = iterate_to_fate(
            self.family, np.zeros(len(lanes)), self.start[:, lanes].T.copy(), self.criteria, engine=self.run
        )
        pixels = self.pixels
        for field, values in (
            (pixels.fate, outcome.fate),
            (pixels.reason, outcome.reason),
            (pixels.period, outcome.period),
            (pixels.steps, outcome.steps),
        ):
            field[lanes] = values
        pixels.state[:, lanes] = outcome.state.T
        self._identify(lanes)

    def _identify(self, lanes: np.ndarray) -> None:
        self.judged[lanes] = True
        if lanes.size:
            pixels = self.pixels
            state, start = pixels.state[:, lanes].T, self.start[:, lanes].T
            with np.errstate(over="ignore", invalid="ignore"):
                travelled = np.linalg.norm(state - start, axis=1)
            pixels.label[lanes] = self.registry.identify(
                state, travelled, pixels.fate[lanes], pixels.period[lanes]
            )

    def _aperiodic(self, running: np.ndarray, age: int) -> np.ndarray:
        """Which of the running pixels were found on aperiodic attractors, or judged as probes."""
        tail = _Tail(self.map.update, TAIL)
        probes = running[np.linspace(0, len(running) - 1, PROBES).astype(int)]
        probes = probes[~self.judged[probes]]
        self._judge_in_full(probes)
        done = self.judged[running]
        for probe in probes:
            open_ = np.flatnonzero(~done)
            if self.pixels.fate[probe] not in APERIODIC or not open_.size:
                continue
            where = Occupied.by(self.registry.orbit(self.pixels.state[:, probe][None], OCCUPANCY_ORBIT)[0])
            states = self.pixels.state[:, running[open_]]
            inside = in_strips(
                lambda block, where=where: where.holds(np.asarray(compiled(tail, (block,)))),
                states,
                strip_width(len(states)),
            )
            found = running[open_[inside]]
            self._inherit(found, np.full(found.size, probe))
            self.pixels.steps[found] = age
            done[open_[inside]] = True
        self._report(done.sum())
        return done


class Occupied(NamedTuple):
    """Where an orbit goes: cells of a grid in its two principal directions, and its bounds in all of them."""

    centre: np.ndarray
    axes: np.ndarray
    low: np.ndarray
    high: np.ndarray
    cells: np.ndarray

    @classmethod
    def by(cls, orbit: np.ndarray) -> "Occupied":
        """The cells that the states of an orbit visit, and their neighbours."""
        centre = orbit.mean(axis=0)
        axes = np.linalg.svd((orbit - centre)[:: max(1, len(orbit) // 4096)], full_matrices=False)[2]
        projected = (orbit - centre) @ axes.T
        spread = projected.max(axis=0) - projected.min(axis=0)
        margin = np.maximum(spread, spread.max() * 1e-3) / OCCUPANCY
        low, high = projected.min(axis=0) - margin, projected.max(axis=0) + margin
        cells = np.zeros((OCCUPANCY,) * min(2, len(low)), bool)
        cells[cls(centre, axes, low, high, cells).cell_of(projected)] = True
        return cls(centre, axes, low, high, binary_dilation(cells, np.ones((3,) * cells.ndim, bool)))

    def cell_of(self, projected: np.ndarray) -> tuple[np.ndarray, ...]:
        """The cell of each row."""
        share = (projected - self.low) / (self.high - self.low)
        cells = np.clip((share * OCCUPANCY).astype(int), 0, OCCUPANCY - 1)
        return tuple(cells[:, axis] for axis in range(self.cells.ndim))

    def holds(self, tail: np.ndarray) -> np.ndarray:
        """Whether all states of each lane, ``(length, dim, lanes)``, lie there."""
        answer = np.ones(tail.shape[2], bool)
        for states in tail:
            with np.errstate(all="ignore"):
                projected = (states.T - self.centre) @ self.axes.T
                within = np.all((projected >= self.low) & (projected <= self.high), axis=1)
            answer &= within
            rows = np.flatnonzero(answer)
            answer[rows] = self.cells[self.cell_of(projected[rows])]
        return answer


class _Groups(NamedTuple):
    """Lanes grouped by kind and cell: their order, where each group begins in it, and the group of each lane."""

    states: np.ndarray
    order: np.ndarray
    begins: np.ndarray
    group: np.ndarray

    @classmethod
    def of(cls, states: np.ndarray, kinds: list[np.ndarray], cell: float) -> "_Groups":
        key = np.zeros(states.shape[1], np.uint64)
        # Not at round numbers: attractors like to be there.
        coordinates = [np.floor(component / cell + 0.38196601125).astype(np.int64) for component in states]
        for values in (*kinds, *coordinates):
            key = _mixed(key ^ values.astype(np.int64).view(np.uint64))
        order = np.argsort(key, kind="stable")
        changes = np.flatnonzero(np.diff(key[order])) + 1
        begins = np.concatenate([[0], changes])
        group = np.empty(len(key), np.int64)
        group[order] = np.repeat(np.arange(len(begins)), np.diff([*begins, len(key)]))
        return cls(states, order, begins, group)

    def outermost(self) -> np.ndarray:
        """All lanes of small groups; of others the first, and those with the extreme values of up to three
        components.
        """
        sizes = np.diff([*self.begins, len(self.order)])
        chosen = np.zeros(len(self.order), bool)
        chosen[self.order[self.begins]] = True
        chosen |= (sizes <= SMALL)[self.group]
        for component in self.states[:3]:
            ordered = component[self.order]
            for reduce in (np.minimum, np.maximum):
                extreme = reduce.reduceat(ordered, self.begins)
                hits = np.flatnonzero(ordered == extreme[self.group[self.order]])
                _, first = np.unique(self.group[self.order[hits]], return_index=True)
                chosen[self.order[hits[first]]] = True
        return np.flatnonzero(chosen)

    def unanimous(
        self, lanes: np.ndarray, evident: np.ndarray, verdicts: np.ndarray, chosen: np.ndarray
    ) -> np.ndarray:
        """For each lane the position of one of its group, if all chosen are evident and agree; otherwise -1."""
        source = np.full(len(self.begins), -1)
        source[self.group[chosen][::-1]] = chosen[::-1]
        differs = np.any(verdicts[:, chosen] != verdicts[:, source[self.group[chosen]]], axis=0)
        differs |= ~evident[lanes[chosen]]
        source[self.group[chosen[differs]]] = -1
        return np.asarray(source[self.group])


def _mixed(key: np.ndarray) -> np.ndarray:
    """A bijective mixing of 64-bit numbers (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (key ^ (key >> np.uint64(31))) + np.uint64(0x9E3779B97F4A7C15)


def _verified(picture: _Picture, number: int, seed: int, confidence: float) -> dict[str, Any]:
    """Random pixels iterated by the full ensemble: how many have another fate, period or attractor there."""
    count = len(picture.judged)
    number = min(number, count)
    if not number:
        return {"verified": 0, "disagreements": 0}
    lanes = np.sort(np.random.default_rng(seed).choice(count, number, replace=False))
    start = picture.start[:, lanes].T.copy()
    outcome = iterate_to_fate(picture.family, np.zeros(number), start, picture.criteria, engine=picture.run)
    with np.errstate(over="ignore", invalid="ignore"):
        travelled = np.linalg.norm(outcome.state - start, axis=1)
    labels = picture.registry.identify(outcome.state, travelled, outcome.fate, outcome.period)
    pixels = picture.pixels
    differs = outcome.fate != pixels.fate[lanes]
    differs |= outcome.period != pixels.period[lanes]
    differs |= picture.registry.roots(labels) != picture.registry.roots(pixels.label[lanes])
    interval = binomtest(int(differs.sum()), number).proportion_ci(confidence, method="wilson")
    return {
        "verified": number,
        "disagreements": int(differs.sum()),
        "error_rate": float(differs.mean()),
        "error_rate_lower": float(interval.low),
        "error_rate_upper": float(interval.high),
        "confidence": confidence,
        "verify_seed": seed,
    }


def _fractions(fate: np.ndarray, confidence: float) -> xr.Dataset:
    counts = [int(np.sum(fate == int(member))) for member in Fate]
    intervals = [binomtest(k, fate.size).proportion_ci(confidence, method="wilson") for k in counts]
    how = {
        "status": "estimated",
        "confidence": confidence,
        "method": f"systematic sample of {fate.size} pixels; Wilson interval of as many independent starts",
        "units": "1",
    }
    values = {
        "fraction": np.array(counts) / fate.size,
        "fraction_lower": np.array([float(interval.low) for interval in intervals]),
        "fraction_upper": np.array([float(interval.high) for interval in intervals]),
    }
    dataset = xr.Dataset(
        {name: ("fate_name", numbers) for name, numbers in values.items()},
        coords={"fate_name": [member.name.lower() for member in Fate]},
    )
    for name, long_name in (
        ("fraction", "share of the plane with this fate"),
        ("fraction_lower", "lower end of its confidence interval"),
        ("fraction_upper", "upper end of its confidence interval"),
    ):
        dataset[name].attrs = {"long_name": long_name, **how}
    return dataset


def _checked_plane(plane: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    try:
        ends = np.asarray(plane, dtype=np.float64)
    except (TypeError, ValueError):
        ends = np.zeros(0)
    if ends.shape != (2, 2):
        raise ValueError(f"plane must be ((x_low, x_high), (y_low, y_high)), got {plane!r}")
    if not np.all(np.isfinite(ends)) or np.any(ends[:, 0] >= ends[:, 1]):
        raise ValueError(f"plane must have finite ends with low < high on both axes, got {plane!r}")
    return (float(ends[0, 0]), float(ends[0, 1])), (float(ends[1, 0]), float(ends[1, 1]))


def _centres(low: float, high: float, number: int) -> np.ndarray:
    """The centres of equal intervals; exactly symmetric where the ends are, so that invariant lines stay so."""
    upper = np.arange(number) + 0.5
    return (low * upper[::-1] + high * upper) / number


def _checked_count(number: Any, name: str, least: int = 0) -> int:
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {number!r}")
    return int(number)


def _checked_resolution(resolution: Any) -> tuple[int, int]:
    numbers = resolution if isinstance(resolution, (tuple, list)) else (resolution, resolution)
    if len(numbers) != 2:
        raise ValueError(f"resolution must be one number of pixels or a pair (n_x, n_y), got {resolution!r}")
    return _checked_count(numbers[0], "resolution", 1), _checked_count(numbers[1], "resolution", 1)


def _checked_directions(dim: int, origin: Any, directions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if directions is None:
        if dim != 2:
            raise ValueError(
                f"the objective has {dim} parameters: give directions=(u, v), two vectors of shape ({dim},) or "
                "two indices of parameters, and origin"
                if dim > 2
                else "the objective has one parameter, no plane: use gdmap.attractors on a line of starts"
            )
        directions = (0, 1)
    if not isinstance(directions, (tuple, list, np.ndarray)) or len(directions) != 2:
        raise ValueError(f"directions must be a pair (u, v), got {directions!r}")
    u, v = (_checked_direction(direction, dim) for direction in directions)
    cosine = abs(u @ v) / (np.linalg.norm(u) * np.linalg.norm(v))
    if cosine > 1 - 1e-12:
        raise ValueError("directions u and v are parallel: they span no plane")
    centre = np.zeros(dim) if origin is None else np.asarray(origin, dtype=np.float64)
    if centre.shape != (dim,) or not np.all(np.isfinite(centre)):
        raise ValueError(f"origin must be a finite parameter vector of shape ({dim},), got shape {centre.shape}")
    return centre, u, v


def _checked_direction(direction: Any, dim: int) -> np.ndarray:
    if isinstance(direction, (int, np.integer)) and not isinstance(direction, bool):
        if not 0 <= direction < dim:
            raise ValueError(f"a direction is parameter {direction}, but the parameters are 0 to {dim - 1}")
        return np.asarray(np.eye(dim)[direction])
    vector = np.asarray(direction, dtype=np.float64)
    if vector.shape != (dim,) or not np.all(np.isfinite(vector)) or not np.any(vector):
        raise ValueError(
            f"a direction must be a finite nonzero vector of shape ({dim},) or the index of a parameter, "
            f"got {direction!r}"
        )
    return vector


def _check_memory(shape: tuple[int, int], state_dim: int) -> None:
    needed = shape[0] * shape[1] * 8.0 * (6 * state_dim + 12)
    if needed > MOST_BYTES:
        raise ValueError(
            f"{shape[0]} x {shape[1]} pixels with states of dimension {state_dim} need about "
            f"{needed / 1e9:.0f} GB, more than {MOST_BYTES / 1e9:.0f}: lower the resolution"
        )


def _direction_name(directions: Any, axis: int) -> str:
    if directions is None:
        return f"parameter {axis}"
    direction = directions[axis]
    return f"parameter {direction}" if np.ndim(direction) == 0 else f"along direction {'uv'[axis]}"

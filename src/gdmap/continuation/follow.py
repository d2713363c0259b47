"""Continuation of periodic orbits in a parameter of the map, through folds, with their bifurcations on the way."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from gdmap.continuation.arclength import Curve, Point, as_large_a_step
from gdmap.continuation.branch import Branch, End, concrete
from gdmap.continuation.event import Event, Kind
from gdmap.continuation.events import (
    Located,
    between,
    described,
    events_between,
    hidden_events,
    merged,
    mismatch,
)
from gdmap.maps import Family, Map, family_along
from gdmap.orbits.periodic_orbit import NoOrbitError, PeriodicOrbit, orbit_at
from gdmap.orbits.shooting import DENSE_LIMIT

Direction = Literal["both", "up", "down"]

# Tangents may turn by this much in a step (cosine), corrections take this share of it.
TURN, OFF = 0.9, 0.3
# Multipliers near the unit circle may move by so much in a step; a step grows only if they moved by less than
# half.
MOVE = 0.25
# Inside steps longer than LONG one more point is looked at, and how far multipliers are from where both ends put
# them.
LONG, INSIDE, UNEVEN = 0.02, 0.38, 0.02
DIVERGES = 1e6
# A jump of the Jacobian that is as large after so many bisections is one.
BISECTIONS = 20
JUMP = 0.02
# Steps that are made shorter because an event in them could not be located, on one branch.
RETRIES = 8
GROWTH, EASY = 0.5, 10
LOST = 1e-6
# Halves of an orbit that come together by this factor in one step are the same.
HALVED = 1e-5


@dataclass(frozen=True)
class Controls:
    """How a branch is followed; steps are relative to the size of the orbit and the width of the bounds."""

    step: float = 0.01
    smallest_step: float = 1e-10
    largest_step: float = 0.1
    max_points: int = 2000
    until: str | None = None


class Trace(NamedTuple):
    """One direction of a branch: points of the curve, what lies between them, why it ended.

    ``beyond`` is the first point past an orbit of half the period.
    """

    points: list[Point]
    events: list[Located]
    reason: str
    beyond: Point | None = None


def continue_orbit(
    orbit: PeriodicOrbit,
    parameter: str | Callable[[Any], Map] = "step_size",
    bounds: tuple[float, float] | None = None,
    *,
    value: float | None = None,
    direction: Direction = "both",
    step: float = 0.01,
    smallest_step: float = 1e-10,
    largest_step: float = 0.1,
    max_points: int = 2000,
    until: Kind | None = None,
) -> Branch:
    """The branch of periodic orbits through ``orbit``, followed in a parameter of its map.

    Pseudo-arclength continuation of the shooting equation in the product of the points and the parameter, so that
    folds are no obstacle. Steps are halved where Newton's method fails, the curve turns or a multiplier near the
    unit circle moves by more than 0.25, and grow again. Folds, period doublings, branch points and Neimark-Sacker
    bifurcations are located on the curve and described (`Event`). On a family of orbits (a manifold of minima, the
    cycles of an overparameterised network) steps and corrections are orthogonal to the family, whose dimension
    `PeriodicOrbit.neutral_dimension` is kept; where it changes, the branch ends and says so.

    Parameters
    ----------
    orbit
        Where to begin, as `gdmap.orbit_at` or `gdmap.periodic_orbits` return it.
    parameter
        The name of a number of the map (``'step_size'``, any floating keyword of an `Optimiser`), or a traceable
        function ``value -> map`` (a weight decay, a data parameter).
    bounds
        ``(lowest, highest)`` value; the present one must lie between.
    value
        The present value, needed with a function.
    direction
        ``'up'`` or ``'down'``: begin towards larger or smaller values only.
    step, smallest_step, largest_step
        Arclength of the first step, and its limits, relative to the size of the orbit and the width of the bounds.
    max_points
        At most so many points in each direction.
    until
        Stop after the first event of this kind in each direction.

    Returns
    -------
    Branch

    Raises
    ------
    TypeError, ValueError
        If ``orbit`` is no `PeriodicOrbit`, the map has no such parameter, bounds make no sense or leave the
        present value out; above 2,000 unknowns (``period * state_dim``), where no dense derivative is formed; at
        an orbit that is itself at a bifurcation, where no branch begins in a definite direction.

    Notes
    -----
    Events are detected by counting multipliers at both ends of a step. Two that undo each other within one step (a
    multiplier that leaves the unit circle and returns) are looked for where the distances to the unit circle over
    three points, or a point inside a long step, suggest them; a very short excursion can still be missed, and a
    kink of the loss is seen only where it moves a multiplier across the unit circle or by more than 0.25: lower
    ``largest_step``.
    """
    if not isinstance(orbit, PeriodicOrbit):
        raise TypeError(
            f"orbit must be a PeriodicOrbit, as gdmap.orbit_at(map, points) or gdmap.periodic_orbits return, got "
            f"{orbit!r}"
        )
    family, present = family_along(orbit.map, parameter, value)
    name = parameter if isinstance(parameter, str) else getattr(parameter, "__name__", "value")
    bounds = checked_bounds(bounds, name, present)
    controls = checked_controls(Controls(step, smallest_step, largest_step, max_points, until))
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be 'both', 'up' or 'down', got {direction!r}")
    if orbit.points.size > DENSE_LIMIT:
        raise ValueError(
            f"continuation forms dense derivatives, for up to {DENSE_LIMIT} unknowns; this orbit has "
            f"period * state_dim = {orbit.points.size}. Larger ones can be refined at single parameter values "
            f"(orbit_at)"
        )
    curve = Curve(family, orbit.points, present, bounds[1] - bounds[0], orbit.neutral_dimension or 0)
    first = curve.first_point(orbit.points, present)
    if isinstance(first, str):
        raise ValueError(STARTS[first].format(name=name, present=present))
    if first.lost > LOST:
        raise ValueError(
            f"the family of dimension {curve.nullity} that the orbit belongs to does not persist when {name} "
            f"changes: there is no branch to follow through this member of it"
        )
    upward = first if first.tangent[-1] >= 0 else first._replace(tangent=-first.tangent)
    starts = {"up": [upward], "down": [turned(upward)], "both": [turned(upward), upward]}[direction]
    traces: list[Trace] = []
    for start in starts:
        if traces and traces[0].reason == "closed":
            break
        traces.append(trace(curve, start, bounds, controls))
    backward = traces[0] if direction != "up" else None
    forward = traces[-1] if direction == "up" or len(traces) == 2 else None
    return joined(orbit.map, name, family, curve, bounds, controls, first, backward, forward)


STARTS = {
    "undefined": "the map or its derivative by {name} has no finite value at the orbit",
    "singular Jacobian": "the orbit is at a bifurcation ({name} = {present:.10g}): no branch begins there in a "
    "definite direction. Start from an orbit a little away from it, or continue to it and use switch_branch",
    "residual": "the points of the orbit do not satisfy its equation: refine them with gdmap.orbit_at(map, "
    "points)",
}


def turned(point: Point) -> Point:
    """The same point, facing the other way."""
    return point._replace(tangent=-point.tangent)


def joined(
    map_: Map,
    name: str,
    family: Family,
    curve: Curve,
    bounds: tuple[float, float],
    controls: Controls,
    first: Point,
    backward: Trace | None,
    forward: Trace | None,
) -> Branch:
    """One branch of its two halves."""
    behind = backward.points[:0:-1] if backward else []
    ahead = forward.points[1:] if forward else []
    points = [*behind, first, *ahead]
    values = np.array([curve.parameter(point.u) for point in points])
    ends = {
        "start": End.of(backward.reason if backward else "not followed", name, float(values[0])),
        "end": End.of(forward.reason if forward else "not followed", name, float(values[-1])),
    }
    if any(side is not None and side.reason == "closed" for side in (backward, forward)):
        ends = {
            "start": End.of("closed", name, float(values[0])),
            "end": End.of("closed", name, float(values[-1])),
        }
    events: list[Event] = []
    branch = Branch(
        map_,
        name,
        values,
        np.stack([curve.points(point.u) for point in points]),
        np.stack([point.multipliers for point in points]),
        curve.nullity,
        np.array([point.defect for point in points]),
        np.array([point.error for point in points]),
        events,
        ends,
        len(behind),
        bounds,
        family,
        curve,
        controls,
    )
    located = [*(reversed(backward.events) if backward else []), *(forward.events if forward else [])]
    for item in located:
        events.append(described(curve, item, name, lambda value: concrete(family, value), branch))
    events[:] = merged(events)
    for side, followed in (("start", backward), ("end", forward)):
        event = halving(branch, followed) if followed is not None and followed.beyond is not None else None
        if event is not None:
            events.insert(0 if side == "start" else len(events), event)
            ends[side] = End.of("period halves", name, event.parameter)
    return branch


def halving(branch: Branch, followed: Trace) -> Event | None:
    """The period doubling of the orbit of half the period at which a branch ends, found on its own branch."""
    curve, (here, beyond) = branch.curve, (followed.points[-1], followed.beyond)
    assert beyond is not None
    p, low, high = curve.shape[0], *branch.bounds
    values = [curve.parameter(point.u) for point in (*followed.points[-2:], beyond)]
    points = curve.points(beyond.u)
    try:
        parent = orbit_at(concrete(branch.family, values[-1]), (points[: p // 2] + points[p // 2 :]) / 2)
    except NoOrbitError:
        return None
    if parent.period != p // 2:
        return None
    reach = 4 * (max(values) - min(values)) + 1e-9 * (high - low)
    window = max(low, values[-1] - reach), min(high, values[-1] + reach)
    along = Curve(branch.family, parent.points, values[-1], high - low, parent.neutral_dimension or 0)
    first = along.first_point(parent.points, values[-1])
    if isinstance(first, str):
        return None
    controls = Controls(until="period-doubling", step=float(np.linalg.norm(beyond.u - here.u)))
    sides = [trace(along, start, window, controls) for start in (turned(first), first)]
    own = joined(branch.map, branch.parameter_name, branch.family, along, window, controls, first, *sides)
    found = [event for event in own.events if event.kind == "period-doubling"]
    if not found:
        return None
    nearest = min(found, key=lambda event: abs(event.parameter - values[-1]))
    wider = replace(own, bounds=branch.bounds, controls=branch.controls)
    return replace(nearest, at=nearest.at._replace(branch=wider))


def trace(curve: Curve, start: Point, bounds: tuple[float, float], controls: Controls) -> Trace:
    """Follow the curve from ``start`` the way it faces."""
    points: list[Point] = [start]
    stretches: list[list[Located]] = []
    length, reason, beyond, retries = controls.step, "max_points", None, RETRIES
    value, upward = curve.parameter(start.u), start.tangent[-1] > 0
    if (value >= bounds[1] and upward) or (value <= bounds[0] and not upward):
        return Trace(points, [], "bound")
    while len(points) <= controls.max_points:
        here = points[-1]
        new, failure, length = attempted(curve, here, length, bounds, controls)
        if new is None:
            reason = failure
            break
        if passes_half_period(curve, here, new):
            reason, beyond = "period halves", new
            break
        found = events_between(curve, here, new)
        if any(mismatch(curve, item) for item in found):
            edge = before_jump(curve, here, new)
            if edge is not None:
                points.extend([edge] if edge is not here else [])
                reason = "kink"
                break
            length = float(np.linalg.norm(new.u - here.u)) / 4
            if length >= controls.smallest_step and retries:
                retries -= 1
                continue
            reason = "not located"
            break
        points.append(new)
        stretches.append(found)
        for back in (2, 1):
            if len(points) > 2 and not stretches[-back]:
                stretches[-back] = hidden_events(curve, points[-3:], 2 - back)
        if any(item.kind == controls.until for stretch in stretches[-2:] for item in stretch):
            reason = "event"
            break
        value = curve.parameter(new.u)
        if value in bounds:
            reason = "bound"
            break
        if np.abs(curve.points(new.u)).max() > DIVERGES * curve.length:
            reason = "diverging"
            break
        if len(points) > 3 and comes_back(curve, start, here, new):
            reason = "closed"
            break
    return Trace(points, [item for stretch in stretches for item in stretch], reason, beyond)


def attempted(
    curve: Curve, here: Point, length: float, bounds: tuple[float, float], controls: Controls
) -> tuple[Point | None, str, float]:
    """The next point, or why there is none, and the length of the step to try after it."""
    failure = "step too small"
    new: Point | str = failure
    # An orbit that grows is followed in steps that grow with it.
    length = min(length, controls.largest_step * max(1.0, float(np.linalg.norm(here.u[:-1]))))
    while length >= controls.smallest_step:
        new = curve.corrected(here.u + length * here.tangent, here.tangent, here.right, here.left)
        if isinstance(new, Point) and not bounds[0] < curve.parameter(new.u) < bounds[1]:
            new = landed(curve, here, new, bounds)
        if isinstance(new, str):
            failure = new
        else:
            failure = too_far(here, new, length) or uneven(curve, here, new, length)
            if not failure:
                moved = as_large_a_step(here.multipliers, new.multipliers)
                if moved < MOVE / 2:
                    length *= 1 + GROWTH * max(0.0, (EASY - new.iterations) / EASY) ** 2
                return new, "", length
        length /= 2
    if failure == "kink" and isinstance(new, Point) and before_jump(curve, here, new) is None:
        failure = "step too small"
    return None, failure, length


def before_jump(curve: Curve, one: Point, other: Point) -> Point | None:
    """The last point before a jump of the Jacobian: multipliers move as much however near two points come."""
    whole = as_large_a_step(one.multipliers, other.multipliers)
    for _ in range(BISECTIONS):
        middle = between(curve, one, other, 0.5)
        if isinstance(middle, str):
            break
        first = as_large_a_step(one.multipliers, middle.multipliers)
        second = as_large_a_step(middle.multipliers, other.multipliers)
        one, other = (one, middle) if first >= second else (middle, other)
    else:
        return one if as_large_a_step(one.multipliers, other.multipliers) > max(whole * JUMP, 1e-9) else None
    return None


def too_far(here: Point, new: Point, length: float) -> str:
    """What is wrong with a step, or nothing."""
    if new.lost > LOST:
        return "family changes"
    off = new.u - here.u - ((new.u - here.u) @ here.tangent) * here.tangent
    if new.tangent @ here.tangent < TURN or np.linalg.norm(off) > OFF * length:
        return "step too small"
    if as_large_a_step(here.multipliers, new.multipliers) > MOVE:
        return "kink"
    return ""


def uneven(curve: Curve, here: Point, new: Point, length: float) -> str:
    """What is wrong with a long step: multipliers inside it are not between those at its ends; or nothing."""
    if length <= LONG:
        return ""
    middle = between(curve, here, new, INSIDE)
    if isinstance(middle, str) or not middle.multipliers.size:
        return ""
    nearest = new.multipliers[np.abs(here.multipliers[:, None] - new.multipliers).argmin(axis=1)]
    expected = (1 - INSIDE) * here.multipliers + INSIDE * nearest
    critical = middle.multipliers[np.abs(np.abs(middle.multipliers) - 1) < MOVE]
    allowed = UNEVEN + 0.5 * as_large_a_step(here.multipliers, new.multipliers)
    return "step too small" if as_large_a_step(expected, critical) > allowed else ""


def landed(curve: Curve, here: Point, beyond: Point, bounds: tuple[float, float]) -> Point | str:
    """The point of the curve at the bound that lies between two points."""
    value = bounds[1] if curve.parameter(beyond.u) >= bounds[1] else bounds[0]
    old, new = curve.parameter(here.u), curve.parameter(beyond.u)
    share = (value - old) / (new - old) if new != old else 1.0
    guess = here.u + share * (beyond.u - here.u)
    guess[-1] = value / curve.parameter_scale
    normal = np.zeros_like(guess)
    normal[-1] = 1.0 if value == bounds[1] else -1.0
    point = curve.corrected(guess, normal, here.right, here.left)
    if isinstance(point, str):
        return point
    exact = point.u.copy()
    exact[-1] = value / curve.parameter_scale
    tangent = point.tangent if point.tangent @ here.tangent >= 0 else -point.tangent
    return point._replace(u=exact, tangent=tangent)


def passes_half_period(curve: Curve, here: Point, new: Point) -> bool:
    """Whether the two halves of the orbit have passed through each other: it has shrunk onto half its period."""
    p = curve.shape[0]
    if p % 2:
        return False

    def difference(u: np.ndarray) -> np.ndarray:
        points = curve.points(u)
        return (points[: p // 2] - points[p // 2 :]).ravel()

    before, after = difference(here.u), difference(new.u)
    # Newton's method may also have come down on the branch of half the period itself.
    collapsed = np.linalg.norm(after) < HALVED * np.linalg.norm(before)
    return bool(collapsed or float(before @ after) < 0)


def comes_back(curve: Curve, start: Point, here: Point, new: Point) -> bool:
    """Whether the start lies between two points of the curve, up to a shift of phase."""
    reach = 1.5 * float(np.linalg.norm(new.u - here.u))
    points = curve.points(start.u)
    nearest = int(np.argmin(np.linalg.norm(points - curve.points(new.u)[0], axis=1)))
    for shift in {0, nearest}:
        first = curve.vector(np.roll(points, -shift, axis=0), curve.parameter(start.u))
        facing = np.append(
            np.roll(start.tangent[:-1].reshape(curve.shape), -shift, axis=0).ravel(), start.tangent[-1]
        )
        near = np.linalg.norm(new.u - first) <= reach and np.linalg.norm(here.u - first) <= reach
        if near and (here.u - first) @ facing < 0 <= (new.u - first) @ facing and new.tangent @ facing > TURN:
            return True
    return False


def checked_bounds(bounds: Any, name: str, present: float) -> tuple[float, float]:
    """Bounds as two floats around the present value."""
    if bounds is None or np.shape(bounds) != (2,):
        raise ValueError(f"bounds must be two numbers (lowest, highest {name}), got {bounds!r}")
    try:
        low, high = float(bounds[0]), float(bounds[1])
    except (TypeError, ValueError):
        raise ValueError(f"bounds must be two numbers (lowest, highest {name}), got {bounds!r}") from None
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"bounds must be finite and increasing, got ({low}, {high})")
    if name in ("step_size", "learning_rate") and low <= 0:
        raise ValueError(
            f"the lower bound of {name} must be positive, got {low}: at 0 every state is a fixed point"
        )
    if not low <= present <= high:
        raise ValueError(
            f"bounds ({low}, {high}) leave out the present {name}, {present:.10g}: widen them to contain it"
        )
    return low, high


def checked_controls(controls: Controls) -> Controls:
    """Step lengths in order, or an error."""
    lengths = controls.smallest_step, controls.step, controls.largest_step
    if not all(isinstance(length, Real) and not isinstance(length, bool) for length in lengths):
        raise ValueError(
            f"step, smallest_step and largest_step must be numbers, got {lengths[1]!r}, {lengths[0]!r}, "
            f"{lengths[2]!r}"
        )
    if not all(np.isfinite(length) and length > 0 for length in lengths):
        raise ValueError("step, smallest_step and largest_step must be positive and finite")
    if not controls.smallest_step <= controls.largest_step:
        raise ValueError(f"smallest_step {lengths[0]} exceeds largest_step {lengths[2]}")
    if (
        isinstance(controls.max_points, bool)
        or not isinstance(controls.max_points, Integral)
        or controls.max_points < 1
    ):
        raise ValueError(f"max_points must be a positive integer, got {controls.max_points!r}")
    if controls.until is not None and controls.until not in get_args(Kind):
        raise ValueError(
            f"until must be one of {', '.join(map(repr, get_args(Kind)))} or None, got {controls.until!r}"
        )
    step = float(np.clip(controls.step, controls.smallest_step, controls.largest_step))
    return replace(controls, step=step)

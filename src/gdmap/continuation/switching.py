"""From a bifurcation onto what branches off there: the orbit of twice the period, or the crossing branch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gdmap.continuation.arclength import Curve, Point
from gdmap.continuation.branch import Branch, concrete
from gdmap.continuation.event import Event
from gdmap.continuation.events import events_between, mismatch, return_map
from gdmap.continuation.follow import Controls, Trace, checked_bounds, checked_controls, joined, trace, turned
from gdmap.continuation.normal_forms import DRIFT
from gdmap.orbits.multipliers import return_jacobian
from gdmap.orbits.periodic_orbit import NoOrbitError, PeriodicOrbit, orbit_at
from gdmap.spectra.dense import multipliers

# How far beyond a period doubling the new orbit is looked for: eps = -(mu + 1), the nearer the smaller it is.
EXCESSES = (0.1, 0.03, 0.01, 3e-3, 1e-3)
# Amplitudes tried where no coefficient predicts them, relative to the size of the orbit.
AMPLITUDES = (0.02, 0.05, 0.01, 0.003, 1e-3, 3e-4)
# At most so many steps back from an orbit found to the event.
BACKWARDS = 200
# The first step onto a crossing branch.
FIRST_STEPS = (0.005, 1e-3, 2e-4)
# The new orbit is accepted if its amplitude is the predicted one up to this factor.
FACTOR = 2.0


def switch_branch(
    event: Event,
    bounds: tuple[float, float] | None = None,
    *,
    step: float | None = None,
    smallest_step: float | None = None,
    largest_step: float | None = None,
    max_points: int | None = None,
    until: Any = None,
) -> Branch:
    """The branch that leaves another one at a period doubling or a branch point.

    *Period doubling*: the orbit of twice the period, predicted at ``x_0 +- sqrt(eps / b) q`` with the normal form
    coefficient ``b`` on the side of the event that its sign says, so super- and subcritical ones alike; refined,
    its family verified, and followed away from the event. The branch begins at the event, with the orbit run
    through twice. *Branch point*: the other curve through it, followed to both sides.

    Parameters
    ----------
    event
        An event of kind ``'period-doubling'`` or ``'branch-point'`` of a `Branch`.
    bounds
        ``(lowest, highest)`` value of the parameter; those of the branch of the event unless given.
    step, smallest_step, largest_step, max_points, until
        As for `continue_orbit`; as there unless given.

    Returns
    -------
    Branch

    Raises
    ------
    ValueError
        For folds (nothing branches off: the branch itself turns), Neimark-Sacker bifurcations (an invariant
        circle, no orbit), events where several multipliers cross together, a degenerate coefficient or a drift
        along the family.
    NoOrbitError
        If Newton's method finds no new orbit near the event.
    """
    if not isinstance(event, Event):
        raise TypeError(f"event must be an Event of a branch (branch.events), got {event!r}")
    refuse_unswitchable(event)
    origin: Branch = event.at.branch
    present = event.parameter
    bounds = origin.bounds if bounds is None else checked_bounds(bounds, event.parameter_name, present)
    given = {"step": step, "smallest_step": smallest_step, "largest_step": largest_step, "max_points": max_points}
    controls = replace(
        origin.controls, until=until, **{name: value for name, value in given.items() if value is not None}
    )
    controls = checked_controls(controls)
    if event.kind == "period-doubling":
        return doubled_branch(event, origin, bounds, controls)
    return crossing_branch(event, origin, bounds, controls)


def refuse_unswitchable(event: Event) -> None:
    """An error for events at which no orbit branches off in one predictable direction."""
    at = f"at {event.parameter_name} = {event.parameter:.10g}"
    if event.kind == "fold":
        raise ValueError(f"no other branch leaves at a fold ({at}): the branch itself turns there and continues")
    if event.kind == "neimark-sacker":
        raise ValueError(
            f"an invariant circle, no periodic orbit, branches off at a Neimark-Sacker bifurcation ({at})"
        )
    if event.multiplicity > 1 and not has_one_eigenvector(event):
        raise ValueError(
            f"{event.multiplicity} multipliers cross together {at}: the directions in which orbits branch off are "
            f"not determined by one eigenvector. A small change of the loss usually separates them"
        )
    if event.kind == "period-doubling" and event.drift > DRIFT:
        raise ValueError(
            f"the period doubling {at} is degenerate: the state drifts along the family of orbits, so that no "
            f"small cycle exists beside this member of it; start from the member where the sharpness is stationary"
        )
    if event.kind == "branch-point" and event.at.other is None:
        raise ValueError(f"the direction of the crossing branch {at} could not be determined")


def has_one_eigenvector(event: Event) -> bool:
    """Whether the multipliers that cross together have a single eigenvector (one Jordan block)."""
    curve = event.at.curve
    _, across = curve.across(event.at.right)
    jacobian = across.T @ return_jacobian(curve.linearise(event.at.u).jacobians) @ across
    sign = -1.0 if event.kind == "period-doubling" else 1.0
    values = np.linalg.svd(jacobian - sign * np.eye(len(jacobian)))[1]
    return event.kind == "period-doubling" and bool(values[-2:][0] > 1e-4 * max(values[0], 1.0))


def doubled_orbit(
    event: Event, origin: Branch, bounds: tuple[float, float], excesses: Sequence[float]
) -> tuple[PeriodicOrbit, float]:
    """An orbit of twice the period next to a period doubling, and its parameter value."""
    wave = return_map(event.at.curve, event.at).carried(event.eigenvector.real)
    if event.criticality == "degenerate" or event.coefficient is None:
        return orbit_of_amplitude(event, origin, wave, bounds)
    b, curve, points = event.coefficient.value, event.at.curve, event.points
    failure = ""
    for excess in excesses:
        eps = np.copysign(excess, b)
        amplitude = np.sqrt(eps / b)
        value = event.parameter - eps / event.speed.real
        if not bounds[0] <= value <= bounds[1]:
            failure = f"it would lie beyond the bounds {bounds}: widen them"
            continue
        # Where the amplitude is no longer small beside the orbit, the expansion says nothing.
        if amplitude * np.abs(wave).max() > 0.5 * curve.length and excess > excesses[-1]:
            continue
        guess = np.concatenate([points + amplitude * wave, points - amplitude * wave])
        map_ = concrete(origin.family, value)
        try:
            orbit = orbit_at(map_, guess)
        except NoOrbitError as error:
            failure = str(error)
            continue
        if orbit.period != 2 * event.period:
            failure = f"Newton's method came back to an orbit of period {orbit.period}"
            continue
        found = np.linalg.norm(orbit.points[: event.period] - orbit.points[event.period :]) / 2
        share = found / (amplitude * np.linalg.norm(wave))
        if 1 / FACTOR < share < FACTOR:
            return orbit, value
        failure = f"the orbit found has {share:.2g} times the predicted amplitude"
    try:
        # Near a degenerate doubling the expansion holds for amplitudes too small to be solved for.
        return orbit_of_amplitude(event, origin, wave, bounds)
    except NoOrbitError:
        raise NoOrbitError(
            f"no orbit of period {2 * event.period} was found beside {event.parameter_name} = "
            f"{event.parameter:.10g}: {failure}"
        ) from None


def orbit_of_amplitude(
    event: Event, origin: Branch, wave: np.ndarray, bounds: tuple[float, float]
) -> tuple[PeriodicOrbit, float]:
    """An orbit of twice the period with a given small amplitude, whatever parameter value it has in the bounds."""
    points, curve = event.points, event.at.curve
    twice = np.concatenate([points, points])
    doubled = Curve(origin.family, twice, event.parameter, curve.parameter_scale, curve.nullity)
    centre = doubled.vector(twice, event.parameter)
    normal = np.append(np.concatenate([wave, -wave]).ravel(), 0.0)
    normal /= np.linalg.norm(normal)
    along, left = event.at.right[:-1], event.at.left
    right = np.vstack([along, along, np.zeros((1, curve.nullity))]) / np.sqrt(2)
    left = np.vstack([left, left]) / np.sqrt(2)
    for amplitude in AMPLITUDES:
        point = doubled.corrected(centre + amplitude * normal, normal, right, left, steps=25)
        if isinstance(point, str):
            continue
        value = doubled.parameter(point.u)
        if not bounds[0] <= value <= bounds[1]:
            continue
        try:
            orbit = orbit_at(concrete(origin.family, value), doubled.points(point.u))
        except NoOrbitError:
            continue
        if orbit.period == 2 * event.period:
            return orbit, value
    raise NoOrbitError(
        f"no orbit of period {2 * event.period} was found beside {event.parameter_name} = {event.parameter:.10g}, "
        f"where the normal form does not predict one, inside the bounds {bounds}"
    )


def doubled_branch(event: Event, origin: Branch, bounds: tuple[float, float], controls: Controls) -> Branch:
    """The branch of twice the period, from the event on.

    An orbit of it is followed back to the event first, so that nothing between them is passed over; where it does
    not lead there, one nearer to the event is taken.
    """
    for excesses in (EXCESSES, EXCESSES[2:], EXCESSES[4:]):
        orbit, value = doubled_orbit(event, origin, bounds, excesses)
        curve = Curve(origin.family, orbit.points, value, bounds[1] - bounds[0], orbit.neutral_dimension or 0)
        found = curve.first_point(orbit.points, value)
        if isinstance(found, str):
            raise NoOrbitError(f"the new orbit cannot be followed: {found}")
        start: Point = found
        half = event.period
        difference = orbit.points[:half] - orbit.points[half:]
        moving = curve.points(start.tangent)
        if np.sum((moving[:half] - moving[half:]) * difference) < 0:
            start = turned(start)
        # In the phase in which the new orbit was found.
        u = curve.vector(np.concatenate([event.points, event.points]), event.parameter)
        distance = float(np.linalg.norm(start.u - u))
        back = towards_event(curve, turned(start), u, bounds, controls, distance)
        if leads_to(curve, back, u, distance):
            break
    else:
        # The orbit nearest to the event is joined to it directly.
        back = Trace([turned(start)], [], back.reason)
    at = curve.linearise(u)
    squared = multipliers(return_jacobian(at.jacobians)).astype(complex)
    across = squared[np.sort(np.argsort(np.abs(squared - 1), kind="stable")[curve.nullity :])]
    beginning = start._replace(u=u, at=at, multipliers=across, defect=float(np.linalg.norm(at.defect)))
    points, events = [beginning, *(turned(point) for point in back.points[::-1])], back.events[::-1]
    first = [i for i, item in enumerate(events) if item.kind == controls.until]
    if first:
        # What was asked for lies between the event and the orbit found.
        events = events[: first[0] + 1]
        reached = np.linalg.norm(events[-1].point.u - u)
        points = [point for point in points if np.linalg.norm(point.u - u) <= reached] + [events[-1].point]
        forward = Trace(points, events, "event")
    else:
        step = float(np.clip(distance, controls.smallest_step, controls.largest_step))
        followed = trace(curve, start, bounds, replace(controls, step=step))
        forward = Trace([*points, *followed.points[1:]], [*events, *followed.events], *followed[2:])
    backward = Trace([beginning], [], "period halves")
    return joined(
        orbit.map, origin.parameter_name, origin.family, curve, bounds, controls, beginning, backward, forward
    )


def towards_event(
    curve: Curve, start: Point, u: np.ndarray, bounds: tuple[float, float], controls: Controls, distance: float
) -> Trace:
    """The branch followed from an orbit of it back to the event at ``u``, which may lie at a bound."""
    room = max(abs(curve.parameter(start.u) - curve.parameter(u)), 1e-9 * (bounds[1] - bounds[0]))
    wider = bounds[0] - room, bounds[1] + room
    step = float(np.clip(distance / 4, controls.smallest_step, controls.largest_step))
    return trace(curve, start, wider, replace(controls, step=step, until=None, max_points=BACKWARDS))


def leads_to(curve: Curve, back: Trace, u: np.ndarray, distance: float) -> bool:
    """Whether a branch followed backwards ends at the event at ``u``."""
    if back.reason != "period halves" or back.beyond is None:
        return False
    p = curve.shape[0] // 2
    half = curve.points(back.beyond.u)
    middle = np.concatenate([(half[:p] + half[p:]) / 2] * 2)
    off = np.linalg.norm(curve.vector(middle, curve.parameter(back.beyond.u)) - u)
    return bool(off < 0.5 * distance)


def crossing_branch(event: Event, origin: Branch, bounds: tuple[float, float], controls: Controls) -> Branch:
    """The other branch through a branch point, to both sides of it."""
    situation, curve = event.at, event.at.curve
    assert situation.other is not None
    at = curve.linearise(situation.u)
    beginning = Point(
        situation.u,
        situation.other,
        situation.right,
        situation.left,
        at,
        curve.multipliers(at, situation.right),
        float(np.linalg.norm(at.defect)),
        event.error,
        0.0,
        0,
    )
    sides = []
    for sign in (-1.0, 1.0):
        facing = beginning._replace(tangent=sign * situation.other)
        first = first_step(curve, facing)
        if isinstance(first, str):
            sides.append(Trace([facing], [], first))
            continue
        passed = [item for item in events_between(curve, like(facing, first), first) if not mismatch(curve, item)]
        if any(item.kind == controls.until for item in passed):
            sides.append(Trace([facing, first], passed, "event"))
            continue
        step = float(np.linalg.norm(first.u - facing.u))
        followed = trace(curve, first, bounds, replace(controls, step=min(step, controls.largest_step)))
        sides.append(Trace([facing, *followed.points], [*passed, *followed.events], *followed[2:]))
    if all(len(side.points) == 1 for side in sides):
        raise NoOrbitError(
            f"no step onto the crossing branch at {event.parameter_name} = {event.parameter:.10g} succeeded "
            f"(cause: {sides[0].reason})"
        )
    return joined(
        origin.map, origin.parameter_name, origin.family, curve, bounds, controls, beginning, sides[0], sides[1]
    )


def like(facing: Point, first: Point) -> Point:
    """The branch point as a point of the crossing curve: the undecided signs are those of the next point."""
    values, tangent = facing.multipliers.copy(), facing.tangent.copy()
    values[np.argmin(np.abs(values - 1))] = first.multipliers[np.argmin(np.abs(first.multipliers - 1))]
    if abs(tangent[-1]) < 1e-6:
        tangent[-1] = np.copysign(1e-12, first.tangent[-1])
    return facing._replace(multipliers=values, tangent=tangent)


def first_step(curve: Curve, facing: Point) -> Point | str:
    """A point of the crossing curve next to the branch point."""
    failure = "residual"
    for length in FIRST_STEPS:
        new = curve.corrected(facing.u + length * facing.tangent, facing.tangent, facing.right, facing.left)
        if isinstance(new, str):
            failure = new
        elif abs(new.tangent @ facing.tangent) > 0.8:
            return new
        else:
            failure = "step too small"
    return failure

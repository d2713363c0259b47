"""What happens to the stability of an orbit along a curve: detected between two of its points, located, described.

*Detection* counts: real multipliers below -1 (the parity of their number is the sign of ``det(M + I)``), real ones
above 1, all outside the unit circle, and the sign of the parameter component of the tangent. Complex pairs that
meet on the real axis change none of these parities, so they are no events. Where more than one thing changes
between two points the stretch is halved until each has its own, or none of it is left.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq

from gdmap.bracket import Bracket
from gdmap.continuation.arclength import Curve, Point
from gdmap.continuation.branch_points import located_branch_point
from gdmap.continuation.event import Criticality, Event, Kind, Situation
from gdmap.continuation.normal_forms import (
    DRIFT,
    Form,
    Return,
    branch_point_form,
    flip_form,
    fold_form,
    neimark_sacker_form,
    slope_of_multiplier,
)
from gdmap.maps import Map
from gdmap.orbits.multipliers import multipliers_of
from gdmap.orbits.shooting import EPS

# A multiplier is outside the unit circle if its modulus exceeds 1 by more than rounding.
OUTSIDE = 1e-11
HALVINGS = 40
# Pairs that become real outside the circle are looked at in so many halvings, if a multiplier is this near to it.
PAIRS, NEAR = 5, 0.3
# Between points a test function is examined if a parabola predicts a minimum below this share of its values.
SUSPICIOUS = 0.2
# Multipliers this close to the critical one at an event cross with it.
TOGETHER = 1e-9
# Two that meet in one Jordan block (as in maps that preserve area) are only known to the root of the rounding.
MEETING = 1e-6
# An angle this close to that of a root of unity of order up to 4 is a strong resonance.
RESONANCE = 1e-3
# Multipliers at an event differ from the critical value by no more than this, and by their errors.
CRITICAL = 1e-6
# A modulus this far from 1 at an event found by its counts is corrected once more.
MOVED = 1e-13
# Events farther apart on the curve than this are not the same.
NEARBY = 1e-3
# The step of the differences that tell whether there is a second derivative, relative to the size of the orbit.
KINK = 1e-6
# Rounding of a coefficient in units of eps times the terms it is the sum of.
ROUNDING = 32
# Coefficients are compared with those at points moved by this share of the size of the orbit.
PERTURBATION = 1e-5


class Signature(NamedTuple):
    """What is counted at a point of the curve."""

    outside: int
    below: int
    above: int
    forward: bool

    @classmethod
    def of(cls, point: Point, tolerance: float = OUTSIDE) -> "Signature":
        """Count the multipliers of a point: outside the unit circle by more than the tolerance."""
        values, limit = point.multipliers, 1 + tolerance
        real = values.real[values.imag == 0]
        outside = int(np.sum(np.abs(values) > limit))
        return cls(outside, int(np.sum(real < -limit)), int(np.sum(real > limit)), bool(point.tangent[-1] > 0))


class Change(NamedTuple):
    """What differs between two points: differences of the counts, and whether the curve turns."""

    outside: int
    below: int
    above: int
    turns: bool

    @classmethod
    def between(cls, a: Point, b: Point) -> "Change":
        """The differences of the counts."""
        one, other = Signature.of(a), Signature.of(b)
        return cls(
            other.outside - one.outside,
            other.below - one.below,
            other.above - one.above,
            one.forward != other.forward,
        )

    @property
    def nothing(self) -> bool:
        """Whether no event lies between: complex pairs meet on the real axis in twos."""
        return not (self.outside or self.below % 2 or self.above % 2 or self.turns)

    @property
    def may_hide_events(self) -> bool:
        """Whether two events could undo each other: two real multipliers leave the circle as a pair enters it."""
        return bool(self.below or self.above)

    @property
    def kind(self) -> Kind | None:
        """The one event that explains the change, or ``None``."""
        outside, below, above, turns = self
        if abs(outside) == 1 and below == outside and above == 0 and not turns:
            return "period-doubling"
        if abs(outside) == 1 and above == outside and below == 0:
            return "fold" if turns else "branch-point"
        if turns and outside == below == above == 0:
            return "branch-point"
        if abs(outside) == 2 and below == above == 0 and not turns:
            return "neimark-sacker"
        return None


def events_between(curve: Curve, a: Point, b: Point, halvings: int = HALVINGS) -> list["Located"]:
    """The events on the curve between two of its points, in order."""
    change = Change.between(a, b)
    if change.nothing and not (halvings > HALVINGS - PAIRS and change.may_hide_events and is_critical(a, b)):
        return []
    if change.nothing or change.kind is None or (change.kind == "neimark-sacker" and not crosses_as_pair(a, b)):
        length = float((b.u - a.u) @ a.tangent)
        if halvings and length > 1e-13:
            middle = between(curve, a, b, 0.5)
            if isinstance(middle, Point):
                first = events_between(curve, a, middle, halvings - 1)
                return first + events_between(curve, middle, b, halvings - 1)
        if change.nothing:
            return []
        if change.kind is None:
            kind: Kind = (
                "period-doubling" if change.below % 2 else "branch-point" if change.above % 2 else "neimark-sacker"
            )
            return [Located(kind, nearer(a, b), a, b)]
    located = locate(curve, a, b, change.kind)
    return [located] if located is not None else []


def hidden_events(curve: Curve, three: list[Point], stretch: int) -> list["Located"]:
    """Events that undo each other between two of three points (``stretch`` 0 or 1), where a parabola suggests
    them.

    The counts at both ends are the same, so no event was seen there: the function that vanishes at events may
    still dip below zero in between.
    """
    steps = [float(np.linalg.norm(b.u - a.u)) for a, b in itertools.pairwise(three)]
    if min(steps) <= 0:
        return []
    places = np.array([-steps[0], 0.0, steps[1]]) / max(steps)
    kinds: list[tuple[Kind, bool]] = [
        ("period-doubling", False),
        ("branch-point", False),
        ("neimark-sacker", False),
        ("fold", True),
    ]
    for kind, turns in kinds:
        values = np.array([distance_to_critical(kind, point, turns) for point in three])
        if np.any(values * values[0] <= 0):
            continue
        slopes = np.diff(np.abs(values)) / np.diff(places)
        bend = (slopes[1] - slopes[0]) / (places[2] - places[0])
        slope, value = slopes[0] - bend * places[0], abs(values[1])
        if bend <= 0:
            continue
        lowest = -slope / (2 * bend)
        begin, end = places[stretch], places[stretch + 1]
        if not begin < lowest < end or value - slope**2 / (4 * bend) > SUSPICIOUS * np.abs(values).min():
            continue
        a, b = three[stretch], three[stretch + 1]
        middle = between(curve, a, b, (lowest - begin) / (end - begin))
        if isinstance(middle, Point):
            found = [*events_between(curve, a, middle), *events_between(curve, middle, b)]
            if found:
                return found
    return []


def is_critical(a: Point, b: Point) -> bool:
    """Whether a multiplier at either end is near the unit circle."""
    values = np.abs(np.concatenate([a.multipliers, b.multipliers]))
    return bool(np.abs(values - 1).min(initial=np.inf) < NEAR)


def crosses_as_pair(a: Point, b: Point) -> bool:
    """Whether the multipliers nearest to the unit circle on either side are complex."""
    values = np.concatenate([a.multipliers, b.multipliers])
    nearest = np.argsort(np.abs(np.abs(values) - 1))[:2]
    return bool(np.all(values[nearest].imag != 0))


class Located(NamedTuple):
    """An event as a point of the curve between two others; ``other`` is the tangent of a crossing curve."""

    kind: Kind
    point: Point
    before: Point
    after: Point
    error: float | None = None
    other: np.ndarray | None = None


def nearer(a: Point, b: Point) -> Point:
    """The middle of a stretch that cannot be told from its ends."""
    return a if np.abs(np.abs(a.multipliers) - 1).min() <= np.abs(np.abs(b.multipliers) - 1).min() else b


def between(curve: Curve, a: Point, b: Point, share: float) -> Point | str:
    """The point of the curve a share of the way from ``a`` to ``b``, measured along the tangent at ``a``."""
    step = b.u - a.u
    length = float(step @ a.tangent)
    # Hermite's cubic through both points and tangents.
    slope_a, slope_b = a.tangent * length, b.tangent * length / max(float(b.tangent @ a.tangent), 0.1)
    s = share
    guess = a.u + s * slope_a + s**2 * (3 * step - 2 * slope_a - slope_b) + s**3 * (slope_a + slope_b - 2 * step)
    guess += (s * length - (guess - a.u) @ a.tangent) * a.tangent
    return curve.corrected(guess, a.tangent, a.right, a.left)


def distance_to_critical(kind: Kind, point: Point, turns: bool) -> float:
    """A function on the curve that changes its sign at the event."""
    values = point.multipliers
    signature = Signature.of(point, 0.0)
    if turns:
        return float(point.tangent[-1])
    if kind == "period-doubling":
        return float(np.abs(values + 1).min(initial=2.0)) * (-1) ** signature.below
    if kind == "branch-point":
        return float(np.abs(values - 1).min(initial=2.0)) * (-1) ** signature.above
    complex_ones = values[values.imag != 0]
    moduli = np.abs(complex_ones if complex_ones.size else values)
    if not moduli.size:
        return -1.0
    return float(moduli[np.argmin(np.abs(moduli - 1))]) - 1


class _NoPointError(Exception):
    """The curve could not be followed between two of its points."""


def locate(curve: Curve, a: Point, b: Point, kind: Kind) -> Located | None:
    """The event between two points by Brent's method along the curve, branch points by their own equations."""
    turns = Change.between(a, b).turns
    found: dict[float, Point] = {0.0: a, 1.0: b}

    def test(share: float) -> float:
        if share not in found:
            point = between(curve, a, b, share)
            if isinstance(point, str):
                raise _NoPointError
            found[share] = point
        value = distance_to_critical(kind, found[share], turns)
        return 0.0 if abs(value) <= 4 * EPS else value

    one, other = test(0.0), test(1.0)
    if kind == "branch-point":
        start = a.u + abs(one) / (abs(one) + abs(other)) * (b.u - a.u) if one or other else a.u
        branch_point = located_branch_point(curve, start, a)
        if branch_point is not None and np.linalg.norm(branch_point.u - a.u) <= 3 * np.linalg.norm(b.u - a.u):
            at = curve.linearise(branch_point.u)
            nearest = a if np.linalg.norm(a.u - branch_point.u) < np.linalg.norm(b.u - branch_point.u) else b
            # Of the two curves through it the one followed is nearer in direction to the points on either side.
            ours, theirs = branch_point.tangents
            chord = (b.u - a.u) / np.linalg.norm(b.u - a.u)
            if abs(theirs @ chord) > abs(ours @ chord):
                ours, theirs = theirs, ours
            ours = ours if ours @ chord > 0 else -ours
            values = curve.multipliers(at, nearest.right)
            point = nearest._replace(u=branch_point.u, tangent=ours, at=at, multipliers=values)
            return Located(kind, point, a, b, branch_point.error, theirs)
    if one * other > 0:
        # The counts differ by what is rounding at one end: the event is there.
        end, value = (a, one) if abs(one) <= abs(other) else (b, other)
        return Located(kind, end, a, b) if abs(value) <= 2 * OUTSIDE else None
    try:
        share = float(brentq(test, 0.0, 1.0, xtol=1e-15, rtol=4 * EPS, maxiter=60, disp=False))
        test(share)
    except _NoPointError:
        share = min(found, key=lambda share: abs(test(share)))
    return Located(kind, found[share], a, b)


def described(
    curve: Curve, located: Located, name: str, make: Callable[[float], Map], branch: Any = None
) -> Event:
    """The event with its error and its normal form; ``make`` gives the map at a parameter value."""
    kind, point = actual_kind(located), located.point
    at, target = return_map(curve, point), critical_target(kind, point.multipliers)
    shift = located.error / curve.parameter_scale * curve.state_scale if located.error else point.error
    form, speed = form_of(kind, at, target, shift), complex(np.nan)
    if kind != "fold" and abs(point.tangent[-1]) > 1e-9:
        speed = speed_of(curve, point, at, form)
        left = left_to_critical(form, speed)
        if located.error is None and abs(abs(form.multiplier) - 1) > MOVED and np.isfinite(left):
            moved = moved_along(curve, point, left)
            if moved is not None:
                point, at = moved, return_map(curve, moved)
                target = critical_target(kind, point.multipliers)
                form = form_of(kind, at, target, shift)
                speed = speed_of(curve, point, at, form)
    points, parameter = at.points, at.parameter
    error = located.error
    if error is None:
        error = error_of_location(curve, located._replace(point=point), parameter, points, form, speed)
    multiplicity = multiplicity_of(at, point.multipliers, target, float(error) / curve.parameter_scale)
    smooth = form.is_finite and is_smooth(curve, at, form.right.real)
    angle = abs(float(np.angle(form.multiplier))) if kind == "neimark-sacker" else None
    resonance = resonance_of(angle)
    complex_pair = kind != "neimark-sacker" and form.multiplier.imag != 0
    undecided = multiplicity > 1 or resonance in (1, 2, 3) or complex_pair or not np.isfinite(error)
    decided = smooth and form.is_finite and not undecided
    coefficient = coefficient_of(kind, at, form, target, curve, point, float(error), shift) if decided else None
    situation = Situation(
        curve,
        point.u,
        point.tangent,
        point.right,
        point.left,
        form if multiplicity == 1 and form.is_finite else None,
        located.other,
        branch,
    )
    is_branch = kind == "branch-point"
    pitchfork = is_branch and form.quadratic == 0
    shown = is_branch and coefficient is not None
    return Event(
        kind,
        name,
        parameter,
        float(error),
        points,
        form.multiplier,
        multiplicity,
        form.right,
        speed,
        coefficient,
        criticality_of(kind, coefficient, pitchfork, form.drift),
        ("pitchfork" if pitchfork else "transcritical") if shown else None,
        angle,
        resonance,
        form.drift if kind in ("period-doubling", "branch-point") else 0.0,
        make(parameter),
        situation,
        smooth,
    )


def return_map(curve: Curve, point: Point | Situation) -> Return:
    """The return map at a point of the curve."""
    along, across = curve.across(point.right)
    jacobians = point.at.jacobians if isinstance(point, Point) else curve.linearise(point.u).jacobians
    return Return(curve.family, curve.parameter(point.u), curve.points(point.u), jacobians, along, across)


def critical_target(kind: Kind, values: np.ndarray) -> complex:
    """Where the critical multiplier is looked for."""
    if kind != "neimark-sacker":
        return -1.0 + 0j if kind == "period-doubling" else 1.0 + 0j
    pairs = values[values.imag > 0]
    candidates = pairs if pairs.size else values
    return complex(candidates[np.argmin(np.abs(np.abs(candidates) - 1))])


def speed_of(curve: Curve, point: Point, at: Return, form: Form) -> complex:
    """The derivative of the critical multiplier by the parameter along the curve."""
    rates = point.tangent * np.append(np.full(len(point.u) - 1, curve.state_scale), curve.parameter_scale)
    return slope_of_multiplier(at, form, rates[: curve.shape[1]], rates[-1]) / rates[-1]


def left_to_critical(form: Form, speed: complex) -> float:
    """How far the parameter still is from the place where the multiplier has modulus 1, to first order."""
    crossing = (speed * np.conj(form.multiplier)).real
    return (1 - abs(form.multiplier)) * abs(form.multiplier) / crossing if crossing else np.nan


def moved_along(curve: Curve, point: Point, change: float) -> Point | None:
    """The point of the curve at a parameter value a little farther."""
    u = point.u + point.tangent * (change / curve.parameter_scale / point.tangent[-1])
    moved = curve.corrected(u, point.tangent, point.right, point.left)
    if isinstance(moved, str) or np.linalg.norm(moved.u - point.u) > NEARBY:
        return None
    return moved


def mismatch(curve: Curve, located: Located) -> bool:
    """Whether the critical multiplier at the point found is not critical: the counts jump, or it was not found."""
    kind, point = actual_kind(located), located.point
    target = critical_target(kind, point.multipliers)
    nearest = point.multipliers[np.argmin(np.abs(point.multipliers - target))]
    off = abs(abs(nearest) - 1) if kind == "neimark-sacker" else abs(nearest - target)
    if off <= CRITICAL:
        return False
    values, errors = multipliers_of(
        curve.family, curve.parameter(point.u), curve.points(point.u), point.at, point.error
    )
    return bool(off > CRITICAL + 4 * errors[np.argmin(np.abs(values - nearest))])


def merged(events: list[Event]) -> list[Event]:
    """Events without repetitions: neighbours of one kind that their errors do not tell apart are one."""
    kept: list[Event] = []
    for event in events:
        last = kept[-1] if kept else None
        if last is not None and (last.kind, last.period) == (event.kind, event.period):
            reach = last.error + event.error + 16 * EPS * abs(event.parameter)
            distance = np.linalg.norm(last.at.u - event.at.u)
            if abs(last.parameter - event.parameter) <= reach and distance <= NEARBY:
                if (event.multiplicity, -event.error) > (last.multiplicity, -last.error):
                    kept[-1] = event
                continue
        kept.append(event)
    return kept


def actual_kind(located: Located) -> Kind:
    """The kind, where a pair crosses that is no complex one: two equal multipliers at -1 or 1."""
    if located.kind != "neimark-sacker":
        return located.kind
    values = located.point.multipliers
    nearest = values[np.argmin(np.abs(np.abs(values) - 1))]
    if abs(nearest.imag) > TOGETHER:
        return "neimark-sacker"
    return "period-doubling" if nearest.real < 0 else "branch-point"


def multiplicity_of(at: Return, values: np.ndarray, target: complex, error: float) -> int:
    """How many multipliers cross together at ``target``, where the parameter has this relative error."""
    together = int(np.sum(np.abs(values - target) <= TOGETHER))
    # In a Jordan block multipliers part with the root of the distance to it.
    reach = min(max(MEETING, 2 * np.sqrt(error)), 1e-2)
    nearby = int(np.sum(np.abs(values - target) <= reach))
    if together > 1 or nearby == 1:
        return max(1, together)
    _, q, p = at.critical(target)
    meets = np.linalg.norm(p) * np.linalg.norm(q) > 0.1 / reach
    return nearby if meets else 1


def is_smooth(curve: Curve, at: Return, direction: np.ndarray) -> bool:
    """Whether the derivative of the map has itself a derivative along a direction at the orbit.

    At a smooth point the second difference of the derivative falls with the square of the step, at a kink of the
    derivative (``|x|`` in it) with the step.
    """
    if not np.linalg.norm(direction):
        return True
    wave = at.carried(direction)
    unit = KINK * curve.length / np.abs(wave).max() * wave

    def derivative(share: float) -> np.ndarray:
        moved = curve.linearise(curve.vector(at.points + share * unit, at.parameter)).jacobians
        return np.einsum("pij,pj->pi", moved, wave)

    here = np.einsum("pij,pj->pi", at.jacobians, wave)
    sizes = [np.linalg.norm(derivative(share) + derivative(-share) - 2 * here) for share in (1.0, 0.25)]
    if not np.all(np.isfinite(sizes)):
        return False
    rounding = 1e3 * EPS * (float(np.linalg.norm(here)) + float(np.linalg.norm(wave)))
    return bool(sizes[1] <= rounding or sizes[0] > 8 * sizes[1])


def form_of(kind: Kind, at: Return, target: complex, error: float) -> Form:
    """The normal form of an event of this kind; ``error`` is that of the points."""
    if kind == "period-doubling":
        return flip_form(at)
    if kind == "fold":
        return fold_form(at)
    if kind == "branch-point":
        return branch_point_form(at, error)
    return neimark_sacker_form(at, target)


def coefficient_of(
    kind: Kind, at: Return, form: Form, target: complex, curve: Curve, point: Point, error: float, shift: float
) -> Bracket | None:
    """The coefficient with its error: of its rounding, of the orbit's error, and of that of the parameter.

    The last two are what moving the orbit, and moving along the curve, by a small amount changes, scaled down.
    """
    value = float(form.coefficient.real)
    small = PERTURBATION * curve.length
    moved = max(point.error, 8 * EPS * curve.length)
    direction = np.random.default_rng(0).standard_normal(at.points.shape)
    direction *= max(moved, small) / np.linalg.norm(direction)
    changes = [(at.points + direction, at.parameter, moved / max(moved, small) * np.sqrt(at.points.size))]
    if abs(point.tangent[-1]) > 1e-9:
        step = PERTURBATION * point.tangent
        along = PERTURBATION * abs(point.tangent[-1]) * curve.parameter_scale
        changes.append((curve.points(point.u + step), curve.parameter(point.u + step), error / along))
    total = ROUNDING * EPS * len(at.points) * (abs(value) + form.scale)
    for points, parameter, share in changes:
        jacobians = curve.linearise(curve.vector(points, parameter)).jacobians
        if not np.all(np.isfinite(jacobians)):
            return None
        other = form_of(kind, at._replace(points=points, parameter=parameter, jacobians=jacobians), target, shift)
        other_value = float(other.coefficient.real)
        if kind == "branch-point":
            other_value = other.cubic if form.quadratic == 0 else other.quadratic or value
        total += abs(other_value - value) * share
    if not np.isfinite(total):
        return None
    return Bracket(value, value - total, value + total, "computed", "normal form by directional derivatives")


def criticality_of(kind: Kind, coefficient: Bracket | None, pitchfork: bool, drift: float) -> Criticality | None:
    """What the sign of the coefficient says."""
    if kind == "fold" or (kind == "branch-point" and not pitchfork and coefficient is not None):
        return None
    if coefficient is None or coefficient.lower <= 0 <= coefficient.upper or drift > DRIFT:
        return "degenerate"
    good = coefficient.value > 0 if kind == "period-doubling" else coefficient.value < 0
    return "supercritical" if good else "subcritical"


def resonance_of(angle: float | None) -> int | None:
    """The order of a strong resonance at this angle, or ``None``."""
    if angle is None:
        return None
    for order, exact in ((1, 0.0), (2, np.pi), (3, 2 * np.pi / 3), (4, np.pi / 2)):
        if abs(angle - exact) < RESONANCE:
            return order
    return None


def error_of_location(
    curve: Curve, located: Located, parameter: float, points: np.ndarray, form: Form, speed: complex
) -> float:
    """How far the parameter value may be off."""
    point = located.point
    rounding = 2 * EPS * abs(parameter)
    if located.kind == "fold":
        # The parameter is stationary there: only what shifts the whole curve counts.
        left = np.linalg.svd(curve.jacobian(point.at)[:, :-1])[0][:, -1 - curve.nullity]
        sensitivity = abs(float(left @ point.at.along.ravel()))
        return rounding + point.at.noise(points) / max(sensitivity, EPS)
    values, errors = multipliers_of(curve.family, parameter, points, point.at, point.error)
    uncertain = float(errors[np.argmin(np.abs(values - form.multiplier))])
    crossing = (speed * np.conj(form.multiplier)).real
    off = 0.0 if located.kind == "neimark-sacker" else abs(abs(form.multiplier) - 1)
    if crossing and np.isfinite(crossing):
        return float(rounding + (uncertain + off) / abs(crossing))
    return rounding + abs(curve.parameter(located.after.u) - curve.parameter(located.before.u))

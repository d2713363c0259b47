"""What happens to the stability of an orbit along a curve: detected between two of its points, located, described.

*Detection* counts: real multipliers below -1 (the parity of their number is the sign of ``det(M + I)``), real ones
above 1, all outside the unit circle, and the sign of the parameter component of the tangent. Complex pairs that
meet on the real axis change none of these parities, so they are no events. Where more than one thing changes
between two points the stretch is halved until each has its own, or none of it is left.
"""

import itertools
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
from gdmap.orbits.multipliers import multipliers_of, return_jacobian
from gdmap.orbits.shooting import EPS

# A multiplier is outside the unit circle if its modulus exceeds 1 by more than rounding.
OUTSIDE = 1e-11
HALVINGS = 40
# Between points a test function is examined if a parabola predicts a minimum below this share of its values.
SUSPICIOUS = 0.2
# Multipliers this close to the critical one at an event cross with it.
TOGETHER = 1e-9
# Two that meet in one Jordan block (as in maps that preserve area) are only known to the root of the rounding.
MEETING = 1e-6
# An angle this close to that of a root of unity of order up to 4 is a strong resonance.
RESONANCE = 1e-3
# Coefficients are compared with those at points moved by this share of the size of the orbit.
PERTURBATION = 1e-5


class Signature(NamedTuple):
    """What is counted at a point of the curve."""

    outside: int
    below: int
    above: int
    forward: bool

    @classmethod
    def of(cls, point: Point) -> "Signature":
        """Count the multipliers of a point."""
        values = point.multipliers
        real = values.real[values.imag == 0]
        outside = int(np.sum(np.abs(values) > 1 + OUTSIDE))
        return cls(outside, int(np.sum(real < -1)), int(np.sum(real > 1)), bool(point.tangent[-1] > 0))


class Change(NamedTuple):
    """What differs between two points."""

    outside: int
    below: bool
    above: bool
    turns: bool

    @classmethod
    def between(cls, a: Point, b: Point) -> "Change":
        """The differences of the counts."""
        one, other = Signature.of(a), Signature.of(b)
        return cls(
            abs(one.outside - other.outside),
            (one.below - other.below) % 2 == 1,
            (one.above - other.above) % 2 == 1,
            one.forward != other.forward,
        )

    @property
    def nothing(self) -> bool:
        """Whether no event lies between."""
        return not (self.outside or self.below or self.above or self.turns)

    @property
    def kind(self) -> Kind | None:
        """The one event that explains the change, or ``None``."""
        single: dict[tuple[int, bool, bool, bool], Kind] = {
            (1, True, False, False): "period-doubling",
            (1, False, True, True): "fold",
            (1, False, True, False): "branch-point",
            (0, False, False, True): "branch-point",
            (2, False, False, False): "neimark-sacker",
        }
        return single.get((self.outside, self.below, self.above, self.turns))


def events_between(curve: Curve, a: Point, b: Point, halvings: int = HALVINGS) -> list["Located"]:
    """The events on the curve between two of its points, in order."""
    change = Change.between(a, b)
    if change.nothing:
        return []
    if change.kind is None or (change.kind == "neimark-sacker" and not crosses_as_pair(a, b)):
        length = float((b.u - a.u) @ a.tangent)
        if halvings and length > 1e-13:
            middle = between(curve, a, b, 0.5)
            if isinstance(middle, Point):
                first = events_between(curve, a, middle, halvings - 1)
                return first + events_between(curve, middle, b, halvings - 1)
        if change.kind is None:
            kind: Kind = (
                "period-doubling" if change.below else "branch-point" if change.above else "neimark-sacker"
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
    signature = Signature.of(point)
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
    return float(moduli[np.argmin(np.abs(moduli - 1))]) - 1 - OUTSIDE


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
        return None
    try:
        share = float(brentq(test, 0.0, 1.0, xtol=1e-15, rtol=4 * EPS, maxiter=60, disp=False))
        test(share)
    except _NoPointError:
        share = min(found, key=lambda share: abs(test(share)))
    return Located(kind, found[share], a, b)


def described(curve: Curve, located: Located, name: str, map_: Map, branch: Any = None) -> Event:
    """The event with its error and its normal form."""
    kind, point = actual_kind(located), located.point
    points, parameter = curve.points(point.u), curve.parameter(point.u)
    along, across = curve.across(point.right)
    at = Return(curve.family, parameter, points, return_jacobian(point.at.jacobians), along, across)
    target = -1.0 + 0j if kind == "period-doubling" else 1.0 + 0j
    if kind == "neimark-sacker":
        pairs = point.multipliers[point.multipliers.imag > 0]
        candidates = pairs if pairs.size else point.multipliers
        target = complex(candidates[np.argmin(np.abs(np.abs(candidates) - 1))])
    multiplicity = multiplicity_of(at, point.multipliers, target)
    form = form_of(kind, at, target, curve.length)
    speeds = point.tangent * np.append(np.full(len(point.u) - 1, curve.state_scale), curve.parameter_scale)
    d = curve.shape[1]
    speed = complex(np.nan)
    if kind != "fold" and abs(point.tangent[-1]) > 1e-9:
        speed = slope_of_multiplier(at, form, speeds[:d], speeds[-1]) / speeds[-1]
    u = point.u
    crossing = (speed * np.conj(form.multiplier)).real
    if located.kind == "neimark-sacker" and crossing and np.isfinite(crossing):
        # What is left after the search, whose ends are told apart up to OUTSIDE only.
        left = (1 - abs(form.multiplier)) * abs(form.multiplier) / crossing
        u = u + point.tangent * (left / curve.parameter_scale / point.tangent[-1])
        points, parameter = curve.points(u), curve.parameter(u)
    error = located.error
    if error is None:
        error = error_of_location(curve, located, parameter, points, form, speed)
    single = multiplicity == 1
    coefficient = coefficient_of(kind, at, form, target, curve, point) if single else None
    situation = Situation(
        curve, u, point.tangent, point.right, point.left, form if single else None, located.other, branch
    )
    is_branch = kind == "branch-point"
    angle = abs(float(np.angle(form.multiplier))) if kind == "neimark-sacker" else None
    pitchfork = is_branch and form.quadratic == 0
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
        ("pitchfork" if pitchfork else "transcritical") if is_branch and single else None,
        angle,
        resonance_of(angle),
        form.drift if kind in ("period-doubling", "branch-point") else 0.0,
        map_,
        situation,
    )


def actual_kind(located: Located) -> Kind:
    """The kind, where a pair crosses that is no complex one: two equal multipliers at -1 or 1."""
    if located.kind != "neimark-sacker":
        return located.kind
    values = located.point.multipliers
    nearest = values[np.argmin(np.abs(np.abs(values) - 1))]
    if abs(nearest.imag) > TOGETHER:
        return "neimark-sacker"
    return "period-doubling" if nearest.real < 0 else "branch-point"


def multiplicity_of(at: Return, values: np.ndarray, target: complex) -> int:
    """How many multipliers cross together at ``target``."""
    together = int(np.sum(np.abs(values - target) <= TOGETHER))
    if together > 1 or int(np.sum(np.abs(values - target) <= MEETING)) == 1:
        return max(1, together)
    # Further ones within the root of the rounding: do they belong to one Jordan block with it?
    _, q, p = at.critical(target)
    meets = np.linalg.norm(p) * np.linalg.norm(q) > 1 / MEETING
    return int(np.sum(np.abs(values - target) <= MEETING)) if meets else 1


def form_of(kind: Kind, at: Return, target: complex, length: float) -> Form:
    """The normal form of an event of this kind."""
    if kind == "period-doubling":
        return flip_form(at)
    if kind == "fold":
        return fold_form(at)
    if kind == "branch-point":
        return branch_point_form(at, length)
    return neimark_sacker_form(at, target)


def coefficient_of(
    kind: Kind, at: Return, form: Form, target: complex, curve: Curve, point: Point
) -> Bracket | None:
    """The coefficient with the change that moving the orbit by a small amount makes, scaled to its error."""
    value = float(form.coefficient.real)
    if not np.isfinite(value):
        return None
    moved = max(point.error, 8 * EPS * curve.length)
    shift = max(moved, PERTURBATION * curve.length)
    direction = np.random.default_rng(0).standard_normal(at.points.shape)
    direction *= shift / np.linalg.norm(direction)
    points = at.points + direction
    jacobians = curve.linearise(curve.vector(points, at.parameter)).jacobians
    other = form_of(kind, at._replace(points=points, jacobian=return_jacobian(jacobians)), target, curve.length)
    other_value = other.cubic if kind == "branch-point" and form.quadratic == 0 else other.coefficient.real
    if kind == "branch-point" and form.quadratic != 0:
        other_value = other.quadratic or value
    error = abs(float(other_value) - value) * (moved / shift) * np.sqrt(points.size)
    error += 64 * EPS * len(points) * (abs(value) + abs(float(other_value)))
    return Bracket(value, value - error, value + error, "computed", "normal form by directional derivatives")


def criticality_of(kind: Kind, coefficient: Bracket | None, pitchfork: bool, drift: float) -> Criticality | None:
    """What the sign of the coefficient says."""
    if kind == "fold" or (kind == "branch-point" and not pitchfork):
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

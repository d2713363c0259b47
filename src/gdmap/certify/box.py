"""Proofs that the Jacobian of a map is invertible on a whole box, or that somewhere in it it is not.

A box is proved if every matrix in an enclosure of ``DG`` over it is non-singular; otherwise it is halved. Two
points with determinants of opposite sign prove a zero between them if ``DG`` is continuous on a path from one to
the other: if it has bounded enclosures on boxes that cover the path, none of them crossed by a kink.
"""

import itertools
import json
from collections import deque
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import flint
import numpy as np
from flint import arb, arb_mat, ctx

from gdmap.certify.ball_map import BallMap, checked_bits, checked_map, checked_points, exact, read_float
from gdmap.engines.balls.arithmetic import UndecidedError, filled
from gdmap.engines.balls.matrices import determinant_sign, midpoint_radius, positive_definite, regularity
from gdmap.maps import GradientDescent, Map

Array = np.ndarray
Verdict = Literal["invertible", "not invertible", "undecided"]

KIND = "invertible box"
# Up to this dimension determinants are enclosed and boxes halved; above, one test of the whole box is the default.
SMALL_DIM = 4
MOST_BOXES = 10_000
# Corners are tried for a determinant of the other sign up to this dimension.
CORNER_DIM = 10
# Pairs of points of opposite sign that are tried, and how often the path between two is cut.
PATHS, PATH_CUTS = 16, 6


@dataclass(frozen=True)
class BoxCertificate:
    """What is proved about the Jacobian ``DG`` of a map on a box.

    Attributes
    ----------
    verdict
        ``'invertible'``: ``DG`` is proved non-singular at every point of the closed box, so there ``G`` is a local
        diffeomorphism, and preimages of null sets are null. ``'not invertible'``: a point of the box with
        ``det DG = 0`` is proved to exist. ``'undecided'``: neither, see ``reason``.
    one_to_one
        Whether ``G`` is also proved injective on the box: for gradient descent, where ``I - eta H`` is positive
        definite throughout, ``<G(x) - G(y), x - y>`` is positive. ``False`` means not proved.
    lower, upper
        The corners of the box, float64, shape ``(state_dim,)``.
    boxes
        How many boxes were tested.
    witnesses
        For ``'not invertible'`` the point at which the determinant is exactly zero, or two with proved opposite
        signs, shape ``(1 or 2, state_dim)``; for ``'undecided'`` the centre of a box that was not decided;
        otherwise empty.
    bits
        Binary digits of the ball arithmetic.
    reason
        Why the verdict is ``'undecided'``; empty otherwise.
    proof
        A JSON record from which `check_invertible` proves it again; ``None`` if nothing is proved.
    """

    verdict: Verdict
    one_to_one: bool
    lower: Array
    upper: Array
    boxes: int
    witnesses: Array
    bits: int
    reason: str
    proof: dict[str, Any] | None = field(repr=False)

    def explain(self) -> str:
        """What is proved, in words."""
        tested = f"{self.boxes} box{'' if self.boxes == 1 else 'es'} tested"
        footing = (
            "The proof concerns the formula of the map over the real numbers, in ball arithmetic of "
            f"{self.bits} bits ({tested}); floating-point iteration is not covered."
        )
        if self.verdict == "undecided":
            return f"Undecided: {self.reason}"
        if self.verdict == "invertible":
            more = (
                "It is also one-to-one there, because its Jacobian is positive definite."
                if self.one_to_one
                else "That it is one-to-one on the whole box is not proved."
            )
            return (
                "Proved: the Jacobian of the map is non-singular at every point of the box, so the map is a local "
                f"diffeomorphism there. {more}\n{footing}"
            )
        where = (
            f"at {self.witnesses[0]} the determinant is exactly zero"
            if len(self.witnesses) == 1
            else f"its determinant has opposite signs at {self.witnesses[0]} and {self.witnesses[1]}"
        )
        return f"Proved: the Jacobian of the map is singular somewhere in the box: {where}.\n{footing}"


def certify_invertible(
    map_: Map, lower: Any, upper: Any, max_boxes: int | None = None, bits: int = 64
) -> BoxCertificate:
    """Prove that ``det DG`` vanishes nowhere on the box ``lower <= x <= upper``, or that it does somewhere.

    Enclosures of ``DG`` over boxes in ball arithmetic are tested by their determinant (up to dimension 4) and by
    ``||I - R DG|| < 1`` with ``R`` near the inverse of the midpoint; a box that does not pass is halved, the
    coordinate that is widest relative to the whole first.

    Parameters
    ----------
    map_
        A `GradientDescent`, an `Optimiser`, or any other `Map` that does not depend on time.
    lower, upper
        Shape ``(state_dim,)``, or one number for all coordinates. Floats mean exactly these binary numbers.
    max_boxes
        How many boxes may be tested: 10,000 by default up to dimension 4, and one above.
    bits
        Binary digits, 53 at least.

    Raises
    ------
    TypeError
        If ``map_`` is no map, or the corners are not real numbers.
    ValueError
        If the map depends on time, for corners of the wrong shape, not finite or not in order, or for a bad budget
        or precision.
    UnsupportedProgramError
        If the map's trace cannot be read as a formula over the reals.
    """
    map_, bits = checked_map(map_), checked_bits(bits)
    low, high = corners(lower, upper, map_.state_dim)
    if max_boxes is None:
        max_boxes = MOST_BOXES if map_.state_dim <= SMALL_DIM else 1
    if isinstance(max_boxes, bool) or not isinstance(max_boxes, (int, np.integer)) or max_boxes < 1:
        raise ValueError(f"max_boxes must be a whole number from 1, got {max_boxes!r}")
    balls = BallMap(map_, bits)
    with ctx.workprec(bits):
        outcome = searched(balls, low, high, int(max_boxes))
        one_to_one = outcome.verdict == "invertible" and is_monotone(balls, map_, low, high)
    proof = None if outcome.verdict == "undecided" else record_of(low, high, outcome, one_to_one, bits)
    return BoxCertificate(
        outcome.verdict,
        one_to_one,
        low,
        high,
        outcome.boxes,
        outcome.witnesses,
        bits,
        outcome.reason,
        proof,
    )


def check_invertible(map_: Map, record: Any) -> tuple[bool, str]:
    """Prove a record of `certify_invertible` again, from the map and the record alone.

    Returns
    -------
    (bool, str)
        Whether the record is proved for this map; and what was proved, or what fails. Bad records are not errors.

    Raises
    ------
    TypeError, ValueError
        If ``map_`` is no map, or depends on time.
    """
    map_ = checked_map(map_)
    try:
        low, high, witnesses, verdict, one_to_one, boxes, bits = read_record(record, map_.state_dim)
    except (ValueError, TypeError, KeyError, OverflowError) as problem:
        return False, f"this is no record of a box of this map: {problem}"
    balls = BallMap(map_, bits)
    with ctx.workprec(bits):
        if verdict == "not invertible":
            return checked_witnesses(balls, low, high, witnesses)
        outcome = searched(balls, low, high, boxes)
        if outcome.verdict != "invertible":
            return False, outcome.reason or "the Jacobian is singular somewhere in the box"
        if one_to_one and not is_monotone(balls, map_, low, high):
            return False, "it is not proved that the map is one-to-one on the box"
    return True, f"the Jacobian is proved non-singular on the box ({outcome.boxes} boxes tested)"


class Outcome(NamedTuple):
    """A verdict with what it rests on."""

    verdict: Verdict
    boxes: int
    witnesses: Array
    reason: str


def searched(balls: BallMap, lower: Array, upper: Array, max_boxes: int) -> Outcome:
    """Halve the box until every part, or a zero of the determinant, is proved, or ``max_boxes`` are tested."""
    waiting, tested = deque([(lower, upper)]), 0
    corners_of_box = itertools.product(*zip(lower, upper, strict=True)) if balls.dim <= CORNER_DIM else []
    witnesses = Witnesses(balls)
    while waiting:
        low, high = waiting.popleft()
        if tested == max_boxes:
            return left_open(balls, low, high, tested)
        tested += 1
        if is_regular(balls, hull(low, high)):
            continue
        points = [centre(low, high)]
        if tested == 1:
            points += [np.array(corner) for corner in corners_of_box]
        for point in points:
            if witnesses.found_with(point):
                return Outcome("not invertible", tested, witnesses.points, "")
        halves = halved(low, high, upper / 2 - lower / 2)
        if halves is None:
            return left_open(balls, low, high, tested)
        waiting.extend(halves)
    return Outcome("invertible", tested, np.empty((0, balls.dim)), "")


class Witnesses:
    """Points at which the sign of the determinant is proved, until some of them prove a zero."""

    def __init__(self, balls: BallMap) -> None:
        self.balls = balls
        self.latest: dict[int, Array] = {}
        self.attempts = 0
        self.points = np.empty((0, balls.dim))

    def found_with(self, point: Array) -> bool:
        """Whether this point proves a zero: at `points` if that is one, between them if it is two."""
        sign = sign_at(self.balls, point)
        if sign is None:
            self.points = point[None]
            return True
        if sign == 0:
            return False
        self.latest[sign] = point
        other = self.latest.get(-sign)
        if other is None or self.attempts == PATHS:
            return False
        self.attempts += 1
        self.points = np.stack([point, other])
        return is_continuous_between(self.balls, point, other)


def is_continuous_between(balls: BallMap, start: Array, end: Array, cuts: int = PATH_CUTS) -> bool:
    """Whether ``DG`` is shown continuous on the segment, or on a path of segments through rounded midpoints."""
    try:
        balls.jacobian(hull(np.minimum(start, end), np.maximum(start, end)))
    except UndecidedError:
        if not cuts:
            return False
        between = start / 2 + end / 2
        return is_continuous_between(balls, start, between, cuts - 1) and is_continuous_between(
            balls, between, end, cuts - 1
        )
    return True


def is_regular(balls: BallMap, x: Array) -> bool:
    """Whether ``DG`` is proved non-singular on the whole of ``x``."""
    try:
        jacobian = balls.jacobian(x)
    except UndecidedError:
        return False
    if len(x) <= SMALL_DIM and determinant_sign(jacobian) != 0:
        return True
    return regularity(*midpoint_radius(jacobian)) < 1


def sign_at(balls: BallMap, point: Array) -> int | None:
    """The proved sign of the determinant at a point, ``None`` if it is exactly zero, 0 if nothing is proved."""
    try:
        jacobian = arb_mat(balls.jacobian(exact(point)).tolist())
    except UndecidedError:
        return 0
    return None if jacobian.det() == 0 else determinant_sign(jacobian)


def is_monotone(balls: BallMap, map_: Map, lower: Array, upper: Array) -> bool:
    """Whether ``DG`` is symmetric and positive definite throughout a box on which it is proved non-singular.

    Its eigenvalues are continuous and never zero there, so that it is enough to know them at one point. (Each
    closed part of the box was shown to lie on one piece, and neighbours share points: all of it lies on one
    piece.)
    """
    if not isinstance(map_, GradientDescent):
        return False
    return positive_definite(*midpoint_radius(balls.jacobian(exact(centre(lower, upper)))))


def hull(lower: Array, upper: Array) -> Array:
    """The box as balls."""
    return filled(lower.shape, [arb(a).union(arb(b)) for a, b in zip(lower.tolist(), upper.tolist(), strict=True)])


def centre(lower: Array, upper: Array) -> Array:
    """A point in the middle of the box, inside it whatever the rounding."""
    return np.clip(lower / 2 + upper / 2, lower, upper)


def halved(lower: Array, upper: Array, whole: Array) -> list[tuple[Array, Array]] | None:
    """Two boxes that cover the box, cut where it is widest relative to the whole; ``None`` if it cannot be cut."""
    middle = centre(lower, upper)
    with np.errstate(invalid="ignore", over="ignore"):
        width = np.where((lower < middle) & (middle < upper), (upper / 2 - lower / 2) / whole, -1.0)
    axis = int(np.argmax(width))
    if not width[axis] > 0:
        return None
    left, right = upper.copy(), lower.copy()
    left[axis] = right[axis] = middle[axis]
    return [(lower, left), (right, upper)]


def left_open(balls: BallMap, lower: Array, upper: Array, tested: int) -> Outcome:
    """The verdict of a search that ends with this box undecided."""
    point, width = centre(lower, upper), 2 * float(np.max(upper / 2 - lower / 2))
    why = (
        f"{tested} box{' was' if tested == 1 else 'es were'} tested, and of those left one has its centre at "
        f"{point} and width {width:.3g}: "
    )
    if balls.is_on_one_piece(hull(lower, upper)):
        why += "an eigenvalue of the Jacobian vanishes nearby, or more boxes are needed (max_boxes)"
    else:
        why += "a kink crosses it, where the Jacobian jumps. Choose a box that lies on one piece"
    return Outcome("undecided", tested, point[None], why)


def corners(lower: Any, upper: Any, dim: int) -> tuple[Array, Array]:
    """The corners of a box as float64 vectors, or an error."""
    low, high = checked_points(lower, "lower"), checked_points(upper, "upper")
    if low.shape not in ((), (dim,)) or high.shape not in ((), (dim,)):
        raise ValueError(
            f"lower and upper have shapes {low.shape} and {high.shape}, expected ({dim},), or one number for all"
        )
    low, high = np.broadcast_to(low, (dim,)).copy(), np.broadcast_to(high, (dim,)).copy()
    if not np.all(low <= high):
        raise ValueError("lower must not exceed upper in any coordinate")
    return low, high


def checked_witnesses(balls: BallMap, lower: Array, upper: Array, witnesses: Array) -> tuple[bool, str]:
    """Whether these points prove a zero of the determinant in the box."""
    if not np.all((lower <= witnesses) & (witnesses <= upper)):
        return False, "the points of the record lie outside the box"
    signs = [sign_at(balls, point) for point in witnesses]
    if None in signs:
        return True, "the determinant is exactly zero at a point of the box"
    if sorted(sign for sign in signs if sign is not None) != [-1, 1]:
        return False, "opposite signs of the determinant are not proved at the points of the record"
    if not is_continuous_between(balls, witnesses[0], witnesses[1]):
        return False, "the Jacobian is not shown continuous between the points of the record"
    return True, "the determinant is proved to have opposite signs at two points of the box"


def record_of(lower: Array, upper: Array, outcome: Outcome, one_to_one: bool, bits: int) -> dict[str, Any]:
    """The JSON record of a verdict."""
    return {
        "kind": KIND,
        "verdict": outcome.verdict,
        "one_to_one": one_to_one,
        "lower": [float(x).hex() for x in lower],
        "upper": [float(x).hex() for x in upper],
        "witnesses": [[float(x).hex() for x in point] for point in outcome.witnesses],
        "boxes": outcome.boxes,
        "bits": bits,
        "versions": {"gdmap": version("gdmap"), "python-flint": flint.__version__, "jax": version("jax")},
    }


def read_record(record: Any, dim: int) -> tuple[Array, Array, Array, str, bool, int, int]:
    """The parts of a record, or ``ValueError``, ``TypeError`` or ``KeyError``."""
    if isinstance(record, (str, bytes)):
        record = json.loads(record)
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise ValueError("its kind is another")
    verdict, boxes, one_to_one = record["verdict"], record["boxes"], record["one_to_one"]
    if verdict not in ("invertible", "not invertible"):
        raise ValueError(f"unknown verdict {verdict!r}")
    if isinstance(boxes, bool) or not isinstance(boxes, int) or boxes < 1 or not isinstance(one_to_one, bool):
        raise ValueError("the number of boxes, or one_to_one, is missing or wrong")
    if one_to_one and verdict != "invertible":
        raise ValueError("a map that is not invertible is not shown one-to-one")
    points = [record["lower"], record["upper"], *record["witnesses"]]
    if any(not isinstance(point, list) or len(point) != dim for point in points):
        raise ValueError("its points do not have the dimension of the state")
    values = np.array([[read_float(text) for text in point] for point in points])
    low, high = corners(values[0], values[1], dim)
    return low, high, values[2:], verdict, one_to_one, boxes, checked_bits(record["bits"])

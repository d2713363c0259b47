"""All periodic orbits in a box, each proved, with a proof that there are no others.

An orbit ``x_0, ..., x_{p-1}`` is a zero of ``F(x)_i = x_{i+1} - G(x_i)`` (indices mod ``p``) in the product of
``p`` boxes. A list of such products that covers all orbits is worked off. Each is contracted: forward (``x_{i+1}``
lies in an enclosure of ``G(X_i)``, natural and by the mean value theorem), backward (``x_i`` solves
``G(x_i) = x_{i+1}``, an interval Newton step with gaps), and all together by Krawczyk's operator
``K(X) = c - Y F(c) + (I - Y DF(X)) (X - c)``, ``Y`` near ``DF^{-1}``, which contains all zeros of ``F`` in ``X``.
What becomes empty holds no orbit. Where ``K(V)`` lies inside a box ``V`` round a point found by Newton's method,
``V`` holds exactly one orbit (Krawczyk 1969; Rump, Acta Numerica 2010, section 13), and products inside ``V`` are
done with. The rest is halved. (Branch and prune: Van Hentenryck, McAllester, Kapur 1997; for cycles of maps:
Galias, Int. J. Bifurcation and Chaos 11, 2001.)

Each orbit is searched for once: from its point with the largest first coordinate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gdmap.maps import Map

Array = np.ndarray


class CycleEnclosure(NamedTuple):
    """A periodic orbit that is proved to exist.

    Attributes
    ----------
    mid, rad
        float64, shape ``(period, state_dim)``: the true points lie within ``rad`` of ``mid``. The first point has
        the largest first coordinate (within ``rad``).
    uniqueness
        Half-widths, shape ``(period, state_dim)``: within them of ``mid`` there is no other orbit of this length.
    inside
        Whether the points are proved to lie in the box searched; otherwise some lie within ``rad`` of its
        boundary, on either side.
    """

    mid: Array
    rad: Array
    uniqueness: Array
    inside: bool


@dataclass(frozen=True, eq=False)
class AllCycles:
    """All periodic orbits of one length in a box.

    Attributes
    ----------
    period
        The length ``p``.
    orbits
        The orbits of minimal period ``p``, pairwise distinct, in ascending order of their first points.
    shorter
        Those whose minimal period is a proper divisor of ``p``, by that period.
    unresolved_lower, unresolved_upper
        Corners of the boxes that could be neither excluded nor proved to hold exactly one orbit, shape
        ``(k, p, state_dim)``: they may hold any number of orbits.
    complete
        Whether these are all orbits with ``p`` points in the box, proved; then ``unresolved`` is empty.
    boxes
        How many boxes were examined.
    reason
        Why the list is not complete; empty if it is.
    """

    period: int
    orbits: list[CycleEnclosure]
    shorter: dict[int, list[CycleEnclosure]]
    unresolved_lower: Array
    unresolved_upper: Array
    complete: bool
    boxes: int
    reason: str

    @property
    def unresolved(self) -> Array:
        """The unresolved boxes, lower and upper corners, shape ``(k, 2, p, state_dim)``."""
        return np.stack([self.unresolved_lower, self.unresolved_upper], 1)

    @property
    def count(self) -> int:
        """How many orbits of minimal period ``period`` are proved; all there are in the box, if `complete`."""
        return len(self.orbits)

    @property
    def n_points(self) -> int:
        """How many points ``x`` with ``G^period(x) = x`` are proved (each point of each orbit)."""
        return self.period * len(self.orbits) + sum(d * len(found) for d, found in self.shorter.items())

    def explain(self) -> str:
        """What is proved, in words."""
        many = self.count != 1
        text = f"{'Exactly' if self.complete else 'At least'} {self.count} orbit{'s' if many else ''} of minimal "
        text += f"period {self.period} {'lie' if many else 'lies'} in the box, proved"
        edge = sum(not orbit.inside for orbit in self.orbits)
        if edge:
            text += f" ({edge} of them with a point on its boundary, or within rounding of it)"
        if self.shorter:
            shorter = ", ".join(f"{len(found)} of period {d}" for d, found in sorted(self.shorter.items()))
            text += f"; and of shorter ones whose period divides it, {shorter}"
        text += f". {self.boxes} boxes were examined."
        return text if self.complete else f"{text} The list may be incomplete: {self.reason}"


def enclose_all_cycles(
    map_: Map,
    period: int,
    lower: Any,
    upper: Any,
    *,
    max_boxes: int = 1_000_000,
    progress: Callable[[int, int, int], None] | None = None,
) -> AllCycles:
    """Enclose all periodic orbits ``G(x_i) = x_{i+1}``, ``G(x_{p-1}) = x_0`` whose points all lie in a box.

    The proof concerns the formula of the map over the real numbers. Intervals have rounded ends in double
    precision (see `gdmap.engines.balls.lanes`); elementary functions are enclosed by Arb (python-flint). The work
    grows with the number of orbits, so with ``exp(period * entropy)``, and with ``(period * state_dim)^2``; one to
    three dimensions are practical.

    Degenerate orbits (a multiplier 1: folds, families of orbits; a multiplier that is a root of unity for shorter
    orbits) cannot be proved so, and are left as unresolved boxes.

    Parameters
    ----------
    map_
        A map that does not depend on time, and has no kinks. On a `gdmap.maps.Torus` orbits that wind round count,
        too; none should lie on the ends of the ranges, where it would be found on both.
    period
        ``p``; orbits of its divisors are found, too.
    lower, upper
        Corners of the box, shape ``(state_dim,)``, or one number for all coordinates. The box is closed.
    max_boxes
        How many boxes are examined at most.
    progress
        Called as ``progress(boxes examined, boxes waiting, orbits proved)``.

    Raises
    ------
    ImportError
        Without python-flint (``pip install 'gdmap[proofs]'``).
    TypeError, ValueError
        For a map that depends on time or has kinks, a formula without enclosures, and bad arguments.
    """
    try:
        from gdmap.orbits.box_search import Search
        from gdmap.orbits.enclosing import EnclosedMap
    except ModuleNotFoundError as missing:
        if missing.name != "flint":
            raise
        raise ImportError("enclose_all_cycles needs python-flint: pip install 'gdmap[proofs]'") from missing

    period = checked_count(period, "period")
    max_boxes = checked_count(max_boxes, "max_boxes")
    enclosed = EnclosedMap(map_)
    low, high = checked_box(lower, upper, enclosed.dim)
    low, high = np.maximum(low, enclosed.least), np.minimum(high, enclosed.most)
    if not np.all(low <= high):
        raise ValueError("the box does not meet the ranges of the angles of the torus (its `lower` and `periods`)")
    search = Search(enclosed, period, low, high)
    with np.errstate(all="ignore"):
        reason = search.run(max_boxes, progress)
        unresolved = search.unresolved()
        if len(unresolved[0]):
            reason = f"{reason} {search.observed(*unresolved)}".strip()
    by_period: dict[int, list[CycleEnclosure]] = {}
    for orbit in sorted(search.found, key=lambda orbit: orbit.mid[0].tolist()):
        by_period.setdefault(len(orbit.mid), []).append(orbit)
    orbits = by_period.pop(period, [])
    complete = not len(unresolved[0])
    shorter = dict(sorted(by_period.items()))
    return AllCycles(period, orbits, shorter, *unresolved, complete, search.boxes, "" if complete else reason)


def checked_count(value: Any, name: str) -> int:
    """A positive whole number, or an error."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1, got {value!r}")
    return int(value)


def checked_box(lower: Any, upper: Any, dim: int) -> tuple[Array, Array]:
    """The corners of a box as float64 vectors, or an error."""
    corners = []
    for value, name in ((lower, "lower"), (upper, "upper")):
        array = np.asarray(value)
        if array.dtype.kind not in "fiu" or array.shape not in ((), (dim,)):
            raise ValueError(f"{name} must be one number, or an array of shape ({dim},), got {value!r}")
        corners.append(np.broadcast_to(array.astype(np.float64), (dim,)).copy())
    low, high = corners
    if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high)) and np.all(low <= high)):
        raise ValueError("lower and upper must be finite, and lower must not exceed upper in any coordinate")
    if not np.all(np.isfinite(high - low)):
        raise ValueError("the box is too wide")
    return low, high

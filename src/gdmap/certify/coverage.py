"""For which step sizes something is proved."""

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple

# An enclosure of curvatures that holds zero and nothing above this is the rounding of zeros.
NEGLIGIBLE_CURVATURE = 1e-9
# A closed interval of curvatures; end points are floats (infinite ones included) or exact rationals.
Interval = tuple[Any, Any]


class Coverage(NamedTuple):
    """The step sizes ``eta`` for which a claim proves non-singularity.

    ``excluded``: all ``eta`` are proved but those with ``1 / eta`` in one of these closed intervals, sorted and
    disjoint (curvatures that could be an eigenvalue of the Hessian everywhere). ``only``: single step sizes that
    are proved besides.
    """

    excluded: tuple[Interval, ...]
    only: frozenset[Fraction] = frozenset()

    def covers(self, step_size: Fraction) -> bool:
        """Whether this step size is proved."""
        curvature = 1 / step_size
        return step_size in self.only or not any(
            at_most(low, curvature) and at_most(curvature, high) for low, high in self.excluded
        )

    def covers_all(self, step_sizes: Iterable[Fraction]) -> bool:
        """Whether all of them are proved."""
        return all(self.covers(step_size) for step_size in step_sizes)

    def both(self, other: "Coverage") -> "Coverage":
        """What two proofs on the same part of parameter space prove together: either suffices."""
        return Coverage(intersected(self.excluded, other.excluded), self.only | other.only)

    def each(self, other: "Coverage") -> "Coverage":
        """What is proved on two parts of parameter space: both are needed."""
        only = {s for s in self.only | other.only if self.covers(s) and other.covers(s)}
        return Coverage(united([*self.excluded, *other.excluded]), frozenset(only))

    @property
    def reach(self) -> float | None:
        """Up to which step size *every* one is proved: infinity, or the reciprocal of what is not told from zero.

        ``None`` if an interval of larger curvatures, or of curvatures that are not near zero, is left out.
        """
        small = [high for low, high in self.positive if is_negligible(low, high)]
        if len(small) < len(self.positive):
            return None
        return math.nextafter(1 / float(max(small)), 0.0) if small else math.inf

    @property
    def positive(self) -> tuple[Interval, ...]:
        """The excluded intervals that reach above zero."""
        return tuple(interval for interval in self.excluded if interval[1] > 0)


def is_negligible(low: Any, high: Any) -> bool:
    """Whether an enclosure of curvatures is that of zeros, to rounding."""
    return at_most(low, 0.0) and float(high) < NEGLIGIBLE_CURVATURE


EVERYTHING = Coverage(())
NOTHING = Coverage(((-float("inf"), float("inf")),))


def at_most(a: Any, b: Any) -> bool:
    """``a <= b`` exactly, for floats (infinite ones included) and rationals."""
    if isinstance(a, float) and a in (float("inf"), -float("inf")):
        return a < 0 or b == a
    if isinstance(b, float) and b in (float("inf"), -float("inf")):
        return b > 0
    return Fraction(a) <= Fraction(b)


def united(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """The union of closed intervals, sorted and disjoint."""
    merged: list[Interval] = []
    for low, high in sorted(intervals):
        if merged and at_most(low, merged[-1][1]):
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def intersected(a: Iterable[Interval], b: Iterable[Interval]) -> tuple[Interval, ...]:
    """The intersection of two sorted unions of closed intervals."""
    a, b = list(a), list(b)
    found: list[Interval] = []
    i = j = 0
    while i < len(a) and j < len(b):
        low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if at_most(low, high):
            found.append((low, high))
        if at_most(a[i][1], b[j][1]):
            i += 1
        else:
            j += 1
    return tuple(found)

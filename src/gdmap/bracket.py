"""Numbers that know how far they can be trusted."""

import math
from dataclasses import dataclass
from typing import Literal

Status = Literal["proved", "computed", "estimated"]


@dataclass(frozen=True)
class Bracket:
    """A number together with an interval that contains it, and why one may believe so.

    Attributes
    ----------
    value
        The best single number.
    lower, upper
        End points with ``lower <= value <= upper``; infinite where nothing is known on that side.
    status
        ``'proved'``: the end points come from exact or ball arithmetic. ``'computed'``: floating-point
        evaluation, the interval being a formula's value widened by its rounding error, or two-sided
        bounds evaluated so. ``'estimated'``: sampling or a search that proves nothing about optimality.
    method
        How the number was obtained, in words.
    confidence
        The confidence level of the interval where it is a sampling statement, otherwise ``None``.

    ``float(bracket)`` is ``value``.
    """

    value: float
    lower: float
    upper: float
    status: Status
    method: str
    confidence: float | None = None

    def __post_init__(self) -> None:
        if self.status not in ("proved", "computed", "estimated"):
            raise ValueError(f"status must be 'proved', 'computed' or 'estimated', not {self.status!r}")
        if self.confidence is not None and self.status != "estimated":
            raise ValueError("confidence belongs to estimated numbers only")
        if not self.lower <= self.value <= self.upper:
            raise ValueError(
                f"a bracket needs lower <= value <= upper, not {self.lower!r}, {self.value!r}, {self.upper!r}"
            )

    def __float__(self) -> float:
        return self.value

    @property
    def relative_width(self) -> float:
        """``(upper - lower) / |value|``; 0 for a closed bracket, also at infinity."""
        if self.lower == self.upper:
            return 0.0
        if self.value == 0 or not math.isfinite(self.value):
            return math.inf
        return (self.upper - self.lower) / abs(self.value)

    def reciprocal(self, numerator: float, method: str) -> "Bracket":
        """The bracket of ``numerator / self`` (``numerator > 0``, ``self`` non-negative), end points swapped.

        The quotient of two doubles is rounded, so finite end points move outward by one unit in the last
        place.
        """

        def divide(denominator: float) -> float:
            return math.inf if denominator == 0 else numerator / denominator

        value, lower, upper = divide(self.value), divide(self.upper), divide(self.lower)
        return Bracket(
            value=value,
            lower=lower if math.isinf(lower) else math.nextafter(lower, 0.0),
            upper=math.nextafter(upper, math.inf),
            status=self.status,
            method=method,
            confidence=self.confidence,
        )

    def __str__(self) -> str:
        if math.isinf(self.value):
            return f"{self.value} ({self.status})"
        if self.relative_width < 1e-12:
            return f"{self.value:.10g} ({self.status}, to rounding)"
        return f"{self.value:.7g} in [{self.lower:.7g}, {self.upper:.7g}] ({self.status})"

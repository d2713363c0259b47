"""Intervals of real numbers with open and closed ends, element by element, their ends rounded outward."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

UNIT = 2.0**-53
TINY = float(np.finfo(np.float64).tiny)
LEAST = float(np.nextafter(0.0, 1.0))
LARGEST = float(np.finfo(np.float64).max)
# NumPy's and SciPy's elementary functions are taken to be accurate to this relative error (about 40 ulp).
FUNCTION_ERROR = 1e-14


class Range(NamedTuple):
    """An interval; an end that is not ``attained`` is never reached.

    An infinite end that is ``attained`` says that the value may be infinite or undefined there (a constant
    ``inf`` or ``nan`` in the program).
    """

    lower: float
    upper: float
    lower_attained: bool
    upper_attained: bool

    @property
    def is_positive(self) -> bool:
        """Whether every value is > 0."""
        return self.lower > 0 or (self.lower == 0 and not self.lower_attained)

    @property
    def is_negative(self) -> bool:
        """Whether every value is < 0."""
        return self.upper < 0 or (self.upper == 0 and not self.upper_attained)

    @property
    def is_nonzero(self) -> bool:
        """Whether no value is 0."""
        return self.is_positive or self.is_negative

    @property
    def is_bounded(self) -> bool:
        """Whether both ends are finite."""
        return math.isfinite(self.lower) and math.isfinite(self.upper)

    @property
    def is_real(self) -> bool:
        """Whether no value is infinite or undefined."""
        return not (
            (self.lower_attained and math.isinf(self.lower)) or (self.upper_attained and math.isinf(self.upper))
        )

    @property
    def magnitude(self) -> float:
        """The largest modulus, infinite if there is none."""
        return max(abs(self.lower), abs(self.upper))


class Interval(NamedTuple):
    """Lower and upper ends and whether they are attained: arrays of one shape, that of the variable or ``()``.

    With shape ``()`` it holds for every element of the variable.
    """

    lower: np.ndarray
    upper: np.ndarray
    lower_in: np.ndarray
    upper_in: np.ndarray


def exactly(value: np.ndarray) -> Interval:
    """The interval of one number, or array of numbers."""
    yes = np.ones(np.shape(value), bool)
    return Interval(value, value, yes, yes)


REALS = Interval(*(np.asarray(x) for x in (-np.inf, np.inf, False, False)))
ANYTHING = Interval(*(np.asarray(x) for x in (-np.inf, np.inf, True, True)))


def constant_interval(value: Any, decimals: bool = False) -> Interval:
    """The interval of a constant, element by element; nan may be anything.

    With ``decimals`` a float stands for the decimal number that it prints as, which lies between its neighbours.
    """
    try:
        array = np.asarray(value).astype(np.float64)
    except (TypeError, ValueError):  # random keys
        return ANYTHING
    undefined = np.isnan(array)
    yes = np.ones(array.shape, bool)
    low = high = array
    if decimals:
        whole_number = ~np.isfinite(array) | ((array == np.round(array)) & (np.abs(array) < 2.0**53))
        low = np.where(whole_number, array, np.nextafter(array, -np.inf))
        high = np.where(whole_number, array, np.nextafter(array, np.inf))
    return Interval(np.where(undefined, -np.inf, low), np.where(undefined, np.inf, high), yes, yes)


def whole(lower: float, upper: float, lower_in: bool, upper_in: bool) -> Interval:
    """One interval for every element."""
    return Interval(*(np.asarray(x) for x in (lower, upper, lower_in, upper_in)))


def is_exact(interval: Interval) -> bool:
    """Whether an interval is one finite number per element."""
    return bool(np.all(interval.lower == interval.upper) and np.all(np.isfinite(interval.lower)))


def is_real(interval: Interval) -> bool:
    """Whether no value is infinite or undefined."""
    low = interval.lower_in & np.isinf(interval.lower)
    return not np.any(low | (interval.upper_in & np.isinf(interval.upper)))


def hull(interval: Interval) -> Range:
    """The smallest range that holds every element."""
    lower, upper, lower_in, upper_in = interval
    if not np.size(lower):
        return Range(0.0, 0.0, True, True)
    low, high = float(np.min(lower)), float(np.max(upper))
    return Range(low, high, bool(np.any(lower_in & (lower == low))), bool(np.any(upper_in & (upper == high))))


def as_interval(bounds: Range) -> Interval:
    """A range as an interval for every element."""
    return Interval(*(np.asarray(x) for x in bounds))


def collapsed(interval: Interval) -> Interval:
    """One interval for every element."""
    return as_interval(hull(interval))


def union(a: Interval, b: Interval) -> Interval:
    """The hull of two intervals, element by element."""
    lower, upper = np.minimum(a.lower, b.lower), np.maximum(a.upper, b.upper)
    return Interval(
        lower,
        upper,
        (a.lower_in & (a.lower == lower)) | (b.lower_in & (b.lower == lower)),
        (a.upper_in & (a.upper == upper)) | (b.upper_in & (b.upper == upper)),
    )


def bounded_to(interval: Interval, others: Sequence[Interval]) -> Interval:
    """The intersection of intervals that hold the same values (where it is empty, the first)."""
    for other in others:
        lower, upper = np.maximum(interval.lower, other.lower), np.minimum(interval.upper, other.upper)
        keep = lower <= upper
        both = Interval(
            lower,
            upper,
            (interval.lower_in | (interval.lower < lower)) & (other.lower_in | (other.lower < lower)),
            (interval.upper_in | (interval.upper > upper)) & (other.upper_in | (other.upper > upper)),
        )
        interval = Interval(*(np.where(keep, new, old) for new, old in zip(both, interval, strict=True)))
    return interval


def down(value: Any, error: Any) -> np.ndarray:
    """``value - error`` or less; zero stays zero where the error is zero."""
    shifted = value - error
    return np.where((error == 0) | np.isinf(value), value, np.nextafter(shifted, -np.inf))


def up(value: Any, error: Any) -> np.ndarray:
    """``value + error`` or more; zero stays zero where the error is zero."""
    return -down(-value, error)


def rounded_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``a + b`` and a bound of its rounding error (zero where it is exact)."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)  # Knuth's two-sum: the error itself
    return total, np.where(np.isfinite(total), np.abs(error), 0.0)


def without_overflow(result: Interval, *operands: Interval) -> Interval:
    """``result`` with ends that are infinite by overflow alone made true bounds of real numbers."""
    if not all(map(is_real, operands)):
        return result
    lower, upper = np.minimum(result.lower, LARGEST), np.maximum(result.upper, -LARGEST)
    return Interval(lower, upper, result.lower_in & np.isfinite(lower), result.upper_in & np.isfinite(upper))


def added(a: Interval, b: Interval) -> Interval:
    """The sum."""
    lower, below = rounded_sum(a.lower, b.lower)
    upper, above = rounded_sum(a.upper, b.upper)
    result = Interval(down(lower, below), up(upper, above), a.lower_in & b.lower_in, a.upper_in & b.upper_in)
    return without_overflow(result, a, b)


def negated(a: Interval) -> Interval:
    """The negative."""
    return Interval(-a.upper, -a.lower, a.upper_in, a.lower_in)


def multiplied(a: Interval, b: Interval) -> Interval:
    """The product. An open infinite end times zero is zero."""
    a = Interval(*map(np.asarray, a))
    b = Interval(*map(np.asarray, b))
    lows, highs, ins = [], [], []
    for x, x_in in ((a.lower, a.lower_in), (a.upper, a.upper_in)):
        for y, y_in in ((b.lower, b.lower_in), (b.upper, b.upper_in)):
            zero = (x == 0) | (y == 0)
            product = np.where(zero, 0.0, x * y)
            exact = zero | (np.abs(x) == 1) | (np.abs(y) == 1) | np.isinf(product)
            error = np.where(exact, 0.0, np.abs(product) * (2 * UNIT) + LEAST)
            low, high = down(product, error), up(product, error)
            # Rounding never changes the sign of a product.
            positive = (x > 0) == (y > 0)
            lows.append(np.where(positive & ~zero, np.maximum(low, 0.0), low))
            highs.append(np.where(~positive & ~zero, np.minimum(high, 0.0), high))
            undefined = (np.isinf(x) & x_in & may_be_zero(b)) | (np.isinf(y) & y_in & may_be_zero(a))
            lows[-1] = np.where(undefined, np.nan, lows[-1])
            ins.append((x_in & y_in) | ((x == 0) & x_in) | ((y == 0) & y_in))
    lower, upper = np.minimum.reduce(np.broadcast_arrays(*lows)), np.maximum.reduce(np.broadcast_arrays(*highs))
    at_lower = [(x == lower) & i for x, i in zip(lows, ins, strict=True)]
    at_upper = [(x == upper) & i for x, i in zip(highs, ins, strict=True)]
    lower_in = np.logical_or.reduce(np.broadcast_arrays(*at_lower))
    upper_in = np.logical_or.reduce(np.broadcast_arrays(*at_upper))
    return without_overflow(Interval(lower, upper, lower_in, upper_in), a, b)


def may_be_zero(a: Interval) -> np.ndarray:
    """Whether zero lies in an interval."""
    above = (a.lower < 0) | ((a.lower == 0) & a.lower_in)
    return above & ((a.upper > 0) | ((a.upper == 0) & a.upper_in))


def reciprocal(b: Interval) -> Interval:
    """One over ``b``, wherever that is defined."""
    lower, upper, lower_in, upper_in = map(np.asarray, b)

    def outward(value: np.ndarray, turn: Callable[[Any, Any], np.ndarray]) -> np.ndarray:
        result = np.where(value == 0, np.nan, 1 / value)
        exact = np.isinf(value) | (np.abs(value) == 1)
        error = np.where(exact, 0.0, np.abs(result) * (2 * UNIT) + LEAST)
        moved_out = turn(result, error)
        return np.where(result > 0, np.maximum(moved_out, 0.0), np.minimum(moved_out, 0.0))

    positive, negative = lower >= 0, upper <= 0
    low = np.where(positive, outward(upper, down), np.where(upper == 0, -np.inf, outward(upper, down)))
    high = np.where(negative, outward(lower, up), np.where(lower == 0, np.inf, outward(lower, up)))
    mixed = ~(positive | negative) | ((lower == 0) & (upper == 0))
    result = Interval(
        np.where(mixed, -np.inf, low),
        np.where(mixed, np.inf, high),
        np.where(mixed, False, upper_in & (upper != 0)),
        np.where(mixed, False, lower_in & (lower != 0)),
    )
    return without_overflow(result, b)


def powered(a: Interval, exponent: int) -> Interval:
    """An integer power."""
    if exponent < 0:
        return reciprocal(powered(a, -exponent))
    if exponent == 0:
        return exactly(np.ones(np.shape(a.lower)))
    if exponent % 2:
        low = [np.asarray(x) for x in a]
        lower, upper = signed_power(low[0], exponent, down), signed_power(low[1], exponent, up)
        return without_overflow(Interval(lower, upper, *low[2:]), a)
    size = magnitudes(a)
    lower, upper = signed_power(size.lower, exponent, down), signed_power(size.upper, exponent, up)
    return without_overflow(Interval(lower, upper, size.lower_in, size.upper_in), a)


def signed_power(x: np.ndarray, exponent: int, turn: Callable[[Any, Any], np.ndarray]) -> np.ndarray:
    """``x**exponent`` rounded by ``turn``, sign kept."""
    value = np.asarray(x, float) ** exponent
    exact = (x == 0) | (np.abs(x) == 1) | np.isinf(value) | (exponent == 1)
    error = np.where(exact, 0.0, np.abs(value) * (2 * exponent + 16) * UNIT + TINY)
    result = turn(value, error)
    return np.where(np.asarray(x) >= 0, np.maximum(result, 0.0), np.minimum(result, 0.0))


def magnitudes(a: Interval) -> Interval:
    """The modulus."""
    lower, upper, lower_in, upper_in = map(np.asarray, a)
    inside = (lower <= 0) & (upper >= 0)
    touches = may_be_zero(a)
    low = np.where(inside, 0.0, np.minimum(np.abs(lower), np.abs(upper)))
    low_in = np.where(inside, touches, np.where(lower > 0, lower_in, upper_in))
    high = np.maximum(np.abs(lower), np.abs(upper))
    high_in = ((np.abs(lower) == high) & lower_in) | ((np.abs(upper) == high) & upper_in)
    return Interval(low, high, low_in, high_in)


def repeated(a: Interval, least: int, most: int) -> Interval:
    """The sum of between ``least`` and ``most`` values in ``a``."""
    if most == 0:
        return exactly(np.zeros(np.shape(a.lower)))
    low = multiplied(a, exactly(np.asarray(float(least))))
    return low if least == most else union(low, multiplied(a, exactly(np.asarray(float(most)))))


def increasing(
    function: Callable[..., Any], bottom: float = -np.inf, top: float = np.inf, exact: float | None = None
) -> Callable[..., Interval]:
    """The rule of a strictly increasing function whose values lie in the open interval (bottom, top).

    At ``exact`` the function returns its true value.
    """

    def rule(_: Any, a: Interval, *rest: Any) -> Interval:
        def end(x: np.ndarray, turn: Callable[[Any, Any], np.ndarray]) -> np.ndarray:
            value = np.asarray(function(x), float)
            settled_ = np.isinf(value) & np.isinf(x) | (np.isinf(x) & ((value == bottom) | (value == top)))
            if exact is not None:
                settled_ = settled_ | (x == exact)
            value = np.where(np.isinf(value) & ~np.isinf(x), np.copysign(LARGEST, value), value)
            error = np.where(settled_, 0.0, np.abs(value) * FUNCTION_ERROR + 2 * TINY)
            moved_out = turn(value, error)
            if exact is not None:  # keep the side on which the exact point lies
                pivot = float(function(np.asarray(exact)))
                moved_out = np.where(x > exact, np.maximum(moved_out, pivot), moved_out)
                moved_out = np.where(x < exact, np.minimum(moved_out, pivot), moved_out)
            return moved_out

        lower, upper = end(np.asarray(a.lower), down), end(np.asarray(a.upper), up)
        big_low = np.isfinite(a.lower) & (lower >= LARGEST)
        lower = np.where(big_low, LARGEST / 2, lower)
        infinite_low, infinite_high = np.isinf(a.lower) & a.lower_in, np.isinf(a.upper) & a.upper_in
        lower_in = a.lower_in & ((lower > bottom) | infinite_low)
        upper_in = a.upper_in & ((upper < top) | infinite_high)
        return Interval(np.maximum(lower, bottom), np.minimum(upper, top), lower_in, upper_in)

    return rule


def decreasing(function: Callable[..., Any], bottom: float, top: float) -> Callable[..., Interval]:
    """The rule of a strictly decreasing function."""
    rule = increasing(lambda x: -function(x), -top, -bottom)
    return lambda equation, a: negated(rule(equation, a))


def on_domain(rule: Callable[..., Interval], bottom: float, top: float = np.inf) -> Callable[..., Interval]:
    """``rule`` on the part of an interval that lies in the domain."""

    def restricted(equation: Any, a: Interval) -> Interval:
        lower, upper = np.asarray(a.lower), np.asarray(a.upper)
        outside = (upper < bottom) | (lower > top)
        inner = Interval(
            np.clip(lower, bottom, top),
            np.clip(upper, bottom, top),
            np.where(lower < bottom, True, a.lower_in),
            np.where(upper > top, True, a.upper_in),
        )
        result = rule(equation, inner)
        return Interval(*(np.where(outside, none, end) for none, end in zip(ANYTHING, result, strict=True)))

    return restricted


def midpoint_radius(a: Interval) -> tuple[np.ndarray, np.ndarray]:
    """Midpoint and radius of bounded intervals."""
    middle = a.lower + (a.upper - a.lower) / 2
    radius = np.maximum(a.upper - middle, middle - a.lower)
    return middle, np.where(radius > 0, np.nextafter(radius, np.inf), 0.0)

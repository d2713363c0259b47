"""Many boxes at once: intervals given by their ends, each number an array over lanes.

A value of shape ``s`` holds ``lower`` and ``upper`` of shape ``(*s, lanes)``; ``lanes`` is 1 for constants. One
run of a flat program, traced for one point, then encloses its results on all lanes at the speed of NumPy. Unlike
midpoints and radii, ends keep products and squares of wide intervals tight.

IEEE double precision, rounding to nearest, is assumed. An end ``s`` of a sum or product errs by at most ``u |s|``
(``u = 2^-53``) and, for products, by underflow; it is moved outward by ``2 u |s|`` (and `TINY`), which is at least
one unit in the last place. Elementary functions are enclosed by Arb at the ends. Lanes where a denominator may
vanish, or a function is undefined, come out as nan: nothing is known of them. What depends on a comparison
between lanes is refused (`UndecidedError`).
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from flint import arb, ctx

from gdmap.engines.balls.arb import ARB_FUNCTIONS
from gdmap.engines.balls.arithmetic import UNDECIDED, Arithmetic, UndecidedError

UNIT = 2.0**-53
TINY = 2.0**-400
# Bits in which elementary functions are enclosed.
FUNCTION_BITS = 64

INCREASING = {
    *("exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "sinh", "asin", "atan", "asinh", "acosh"),
    *("atanh", "sqrt", "cbrt", "erf"),
}
DECREASING = {"acos", "erfc", "rsqrt"}
# Position, in turns, of the maximum of the periodic functions; the minimum is half a turn on.
CREST = {"cos": 0.0, "sin": 0.25}
# Farther out turns are not counted.
FARTHEST = 1e9
# More than the rounding of a position in turns.
SLACK = 1e-12

Array = np.ndarray


class Ends(NamedTuple):
    """Lower and upper ends, arrays of one shape ``(*shape, lanes)``."""

    lower: Array
    upper: Array


def down(x: Array) -> Array:
    """Below every number that rounds to ``x`` in an addition."""
    return x - np.abs(x) * (2 * UNIT)


def up(x: Array) -> Array:
    """Above every number that rounds to ``x`` in an addition."""
    return x + np.abs(x) * (2 * UNIT)


def is_all(a: Ends, number: float) -> bool:
    """Whether a constant (one lane) is this number throughout."""
    return a.lower.shape[-1] == 1 and bool(np.all(a.lower == number) and np.all(a.upper == number))


class Lanes(Arithmetic):
    """Intervals with ends in float64, over lanes."""

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Overflow and undefined values show in the result; they are no warnings."""
        with np.errstate(all="ignore"):
            yield

    def constant(self, array: Array) -> Ends:
        ends = np.asarray(array, float)[..., None]
        return Ends(ends, ends)

    def shape(self, value: Any) -> tuple[int, ...]:
        return value.lower.shape[:-1]

    def rearrange(self, function: Callable[..., Array], *values: Any) -> Ends:
        sizes = [math.prod(self.shape(value)) for value in values]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        positions = [
            np.arange(start, start + size).reshape(self.shape(value))
            for start, size, value in zip(starts, sizes, values, strict=False)
        ]
        moved = np.asarray(function(*positions))
        lanes = max((value.lower.shape[-1] for value in values), default=1)
        return Ends(*(gathered(parts, moved, lanes) for parts in zip(*values, strict=True)))

    def add(self, a: Any, b: Any) -> Ends:
        if is_all(a, 0):
            return broadcast(b, a)
        if is_all(b, 0):
            return broadcast(a, b)
        return Ends(down(a.lower + b.lower), up(a.upper + b.upper))

    def sub(self, a: Any, b: Any) -> Ends:
        return self.add(a, self.neg(b))

    def neg(self, a: Any) -> Ends:
        return Ends(-a.upper, -a.lower)

    def mul(self, a: Any, b: Any) -> Ends:
        for x, y in ((a, b), (b, a)):
            if is_all(x, 1):
                return broadcast(y, x)
            # Zeros stay one lane, so that tangents stay sparse; not where the other factor may be no number.
            if is_all(x, 0) and np.all(np.isfinite(y.lower)) and np.all(np.isfinite(y.upper)):
                return broadcast(x, y)
            if x.lower.shape[-1] == 1 and np.array_equal(x.lower, x.upper):
                return scaled(y, x.lower)
        if a is b or (a.lower is b.lower and a.upper is b.upper):
            return self.power(a, 2)
        products = (a.lower * b.lower, a.lower * b.upper, a.upper * b.lower, a.upper * b.upper)
        low = np.minimum(np.minimum(products[0], products[1]), np.minimum(products[2], products[3]))
        high = np.maximum(np.maximum(products[0], products[1]), np.maximum(products[2], products[3]))
        return Ends(down(low) - TINY, up(high) + TINY)

    def div(self, a: Any, b: Any) -> Ends:
        bounded = (b.lower > 0) | (b.upper < 0)
        low, high = np.where(bounded, b.lower, np.nan), np.where(bounded, b.upper, np.nan)
        quotients = (a.lower / low, a.lower / high, a.upper / low, a.upper / high)
        least = np.minimum(np.minimum(quotients[0], quotients[1]), np.minimum(quotients[2], quotients[3]))
        most = np.maximum(np.maximum(quotients[0], quotients[1]), np.maximum(quotients[2], quotients[3]))
        return Ends(down(least) - TINY, up(most) + TINY)

    def matmul(self, a: Any, b: Any) -> Ends:
        inner = a.lower.shape[-2]
        if inner == 0:
            return self.zeros((*self.shape(a)[:-1], self.shape(b)[-1]))
        terms = [
            self.mul(
                Ends(*(part[..., :, k, None, :] for part in a)), Ends(*(part[..., None, k, :, :] for part in b))
            )
            for k in range(inner)
        ]
        total = terms[0]
        for term in terms[1:]:
            total = self.add(total, term)
        return total

    def sum(self, a: Any, axes: tuple[int, ...]) -> Ends:
        axes = tuple(axes)
        count = math.prod(a.lower.shape[axis] for axis in axes)
        if count == 1:
            return Ends(np.sum(a.lower, axes), np.sum(a.upper, axes))
        error = 2 * (count + 2) * UNIT
        low, high = np.sum(a.lower, axes), np.sum(a.upper, axes)
        return Ends(low - error * np.sum(np.abs(a.lower), axes), high + error * np.sum(np.abs(a.upper), axes))

    def power(self, a: Any, exponent: int) -> Ends:
        if exponent < 0:
            return self.div(self.constant(np.ones(self.shape(a))), self.power(a, -exponent))
        if exponent == 0:
            return self.constant(np.ones(self.shape(a)))
        if exponent == 1:
            return a
        low, high = raised(a.lower, exponent), raised(a.upper, exponent)
        # The product of so many factors errs by one u less, relatively, whatever their order.
        error = 4 * (exponent + 4) * UNIT
        if exponent % 2:
            return Ends(low - np.abs(low) * error - TINY, high + np.abs(high) * error + TINY)
        most = np.maximum(low, high)
        least = np.where((a.lower <= 0) & (a.upper >= 0), 0.0, np.minimum(low, high))
        # Not a number stays none.
        least = least + 0.0 * most if not np.all(np.isfinite(most)) else least
        return Ends(np.maximum(least * (1 - error) - TINY, 0.0), most * (1 + error) + TINY)

    def function(self, name: str, *operands: Any) -> Ends:
        if len(operands) == 1:
            (a,) = operands
            if name in INCREASING:
                return at_ends(name, a.lower, a.upper)
            if name in DECREASING:
                return at_ends(name, a.upper, a.lower)
            if name in CREST:
                return periodic(name, a)
        shape = np.broadcast_shapes(*(operand.lower.shape for operand in operands))
        parts = [np.broadcast_to(end, shape).ravel().tolist() for operand in operands for end in operand]
        lower, upper = np.empty(len(parts[0])), np.empty(len(parts[0]))
        with ctx.workprec(FUNCTION_BITS):
            for index, ends in enumerate(zip(*parts, strict=True)):
                balls = [arb(ends[i]).union(arb(ends[i + 1])) for i in range(0, len(ends), 2)]
                lower[index], upper[index] = float_ends(ARB_FUNCTIONS[name](*balls))
        return Ends(lower.reshape(shape), upper.reshape(shape))

    def sign(self, a: Any) -> Array:
        signs = np.where(a.lower > 0, 1, np.where(a.upper < 0, -1, UNDECIDED)).astype(np.int8)
        signs = np.where((a.lower == 0) & (a.upper == 0), 0, signs)
        first = signs[..., 0]
        return np.where(np.all(signs == first[..., None], -1), first, UNDECIDED).astype(np.int8)

    def select(self, mask: Array, if_true: Any, if_false: Any) -> Ends:
        mask = np.asarray(mask)[..., None]
        low = np.minimum(if_true.lower, if_false.lower)
        high = np.maximum(if_true.upper, if_false.upper)
        return Ends(
            np.select([mask == 1, mask == 0], [if_true.lower, if_false.lower], low),
            np.select([mask == 1, mask == 0], [if_true.upper, if_false.upper], high),
        )

    def midpoint(self, a: Any) -> Array:
        raise UndecidedError("lanes have no common midpoint")

    def is_finite(self, a: Any) -> bool:
        """Lanes about which nothing is known are the caller's to see."""
        return True


def gathered(parts: tuple[Array, ...], moved: Array, lanes: int) -> Array:
    """The elements ``moved`` (positions in all parts, one after the other) with their lanes."""
    if len(parts) == 1:
        flat = parts[0].reshape(-1, parts[0].shape[-1])
    else:
        flat = np.concatenate(
            [np.broadcast_to(x, (*x.shape[:-1], lanes)).reshape(math.prod(x.shape[:-1]), lanes) for x in parts]
        )
    if moved.size == len(flat) and np.array_equal(moved.ravel(), np.arange(moved.size)):
        return flat.reshape(*moved.shape, flat.shape[-1])
    return flat[moved]


def broadcast(a: Ends, b: Ends) -> Ends:
    """``a`` in the common shape of both, its lanes kept."""
    shape = np.broadcast_shapes(a.lower.shape[:-1], b.lower.shape[:-1])
    if a.lower.shape[:-1] == shape:
        return a
    return Ends(*(np.broadcast_to(part, (*shape, part.shape[-1])) for part in a))


def scaled(a: Ends, factor: Array) -> Ends:
    """``factor a`` for exact constants; exactly zero where they are."""
    first, second = a.lower * factor, a.upper * factor
    low, high = np.minimum(first, second), np.maximum(first, second)
    rounded = (np.abs(factor) != 1) & (factor != 0)
    unit, tiny = np.where(rounded, 2 * UNIT, 0.0), np.where(rounded, TINY, 0.0)
    return Ends(low - (np.abs(low) * unit + tiny), high + (np.abs(high) * unit + tiny))


def raised(x: Array, exponent: int) -> Array:
    """``x ** exponent`` by squaring."""
    if exponent == 1:
        return x
    half = raised(x, exponent // 2)
    return half * half * x if exponent % 2 else half * half


def at_ends(name: str, low: Array, high: Array) -> Ends:
    """A monotone function of the arguments that give its lower and its upper end."""
    lower, upper = values_at(name, low)
    return Ends(lower, upper if np.array_equal(low, high, equal_nan=True) else values_at(name, high)[1])


def values_at(name: str, x: Array) -> tuple[Array, Array]:
    """Floats below and above a function at float arguments; nan where it is undefined."""
    function = ARB_FUNCTIONS[name]
    lower, upper = np.empty(x.size), np.empty(x.size)
    with ctx.workprec(FUNCTION_BITS):
        for index, number in enumerate(x.ravel().tolist()):
            lower[index], upper[index] = float_ends(function(arb(number)))
    return lower.reshape(x.shape), upper.reshape(x.shape)


def float_ends(ball: arb) -> tuple[float, float]:
    """Floats below and above a ball, nan if it is not finite."""
    if not ball.is_finite():
        return math.nan, math.nan
    middle = float(ball.mid())
    # The midpoint has more bits than a float, and the radius is far below the last one.
    distance = float((ball - arb(middle)).abs_upper()) * (1 + 8 * UNIT) + TINY
    return (
        math.nextafter(middle - distance, -math.inf),
        math.nextafter(middle + distance, math.inf),
    )


def periodic(name: str, a: Ends) -> Ends:
    """``sin`` or ``cos``: the values at both ends, and 1 or -1 if a crest or a trough may lie between."""
    first = values_at(name, a.lower)
    second = first if np.array_equal(a.lower, a.upper, equal_nan=True) else values_at(name, a.upper)
    low, high = np.minimum(first[0], second[0]), np.maximum(first[1], second[1])
    start, end = a.lower / (2 * math.pi) - CREST[name], a.upper / (2 * math.pi) - CREST[name]
    slack = SLACK * (1 + np.maximum(np.abs(start), np.abs(end)))
    start, end = start - slack, end + slack
    far = ~(np.maximum(np.abs(start), np.abs(end)) < FARTHEST)
    crest = (np.ceil(start) <= end) | far
    trough = (np.ceil(start - 0.5) <= end - 0.5) | far
    high, low = np.where(crest, 1.0, high), np.where(trough, -1.0, low)
    nothing = np.isnan(a.lower + a.upper)
    return Ends(np.where(nothing, np.nan, np.maximum(low, -1.0)), np.where(nothing, np.nan, np.minimum(high, 1.0)))

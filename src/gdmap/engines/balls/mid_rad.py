"""Verified double precision: arrays of intervals, each a midpoint and a radius, at the speed of BLAS.

Every bound below assumes IEEE double precision rounded to nearest, and matrix products that sum the ordinary
products in any order (no Strassen scheme); then a sum of ``k`` terms has an error of at most
``gamma_k = k u / (1 - k u)`` times the sum of the moduli, ``u = 2^-53`` (Higham, Accuracy and Stability of
Numerical Algorithms, section 3.1). Radii are themselves computed in double precision: each is inflated by
``1 + 8u`` per operation and by `TINY`, which covers underflow.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from flint import arb, ctx, fmpq

from gdmap.engines.balls.arb import ARB_FUNCTIONS
from gdmap.engines.balls.arithmetic import (
    EITHER,
    UNDECIDED,
    Arithmetic,
    decimal,
    filled,
)

UNIT = 2.0**-53
# Far above the underflow threshold and far below any number that matters; denormals would slow the products.
TINY = 2.0**-400
INFLATION = 1 + 8 * UNIT
# Bits in which elementary functions are enclosed.
FUNCTION_BITS = 80


class Intervals(NamedTuple):
    """Arrays of midpoints and radii of one shape."""

    mid: np.ndarray
    rad: np.ndarray


class MidRad(Arithmetic):
    """Midpoint-radius intervals in float64; elementary functions are enclosed by Arb."""

    def __init__(self, exact_decimals: bool = False) -> None:
        self.exact_decimals = exact_decimals

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Overflow and undefined values show in the result; they are no warnings."""
        with np.errstate(all="ignore"):
            yield

    def constant(self, array: np.ndarray) -> Intervals:
        mid = np.asarray(array, float)
        rad = np.zeros(mid.shape)
        if self.exact_decimals:
            for index, x in enumerate(mid.ravel().tolist()):
                if np.isfinite(x) and decimal(x) != fmpq(*x.as_integer_ratio()):
                    rad.reshape(-1)[index] = abs(x) * 2 * UNIT + TINY
        return Intervals(mid, rad)

    def rearrange(self, function: Callable[..., np.ndarray], *values: Any) -> Intervals:
        mids = function(*(value.mid for value in values))
        return Intervals(mids, function(*(value.rad for value in values)))

    def shape(self, value: Any) -> tuple[int, ...]:
        return value.mid.shape

    def add(self, a: Any, b: Any) -> Intervals:
        mid = a.mid + b.mid
        return Intervals(mid, (a.rad + b.rad + UNIT * np.abs(mid)) * INFLATION)

    def sub(self, a: Any, b: Any) -> Intervals:
        mid = a.mid - b.mid
        return Intervals(mid, (a.rad + b.rad + UNIT * np.abs(mid)) * INFLATION)

    def neg(self, a: Any) -> Intervals:
        return Intervals(-a.mid, a.rad)

    def mul(self, a: Any, b: Any) -> Intervals:
        mid = a.mid * b.mid
        size_a, size_b = np.abs(a.mid), np.abs(b.mid)
        rad = size_a * b.rad + a.rad * (size_b + b.rad) + UNIT * np.abs(mid)
        # Zero times a finite number is exactly zero; keeping it so keeps tangents sparse and radii tight.
        zero = (is_zero(a) & np.isfinite(b.mid) & np.isfinite(b.rad)) | (
            is_zero(b) & np.isfinite(a.mid) & np.isfinite(a.rad)
        )
        return Intervals(mid, np.where(zero, 0.0, rad * INFLATION + TINY))

    def div(self, a: Any, b: Any) -> Intervals:
        # A lower bound of the modulus of the denominator.
        distance = (np.abs(b.mid) * (1 - UNIT) - b.rad) * (1 - 4 * UNIT)
        bounded = (distance > 0) & np.isfinite(distance)
        distance = np.where(bounded, distance, 1.0)
        mid = np.where(bounded, a.mid / np.where(bounded, b.mid, 1.0), 0.0)
        size = np.abs(mid) * (1 + 4 * UNIT) + TINY
        rad = (a.rad + size * b.rad) / distance + 2 * UNIT * np.abs(mid)
        exact = (b.rad == 0) & (a.rad == 0) & (np.abs(np.frexp(b.mid)[0]) == 0.5) & (np.abs(mid) > TINY)
        rad = np.where(is_zero(a) | exact, 0.0, rad * INFLATION + TINY)
        # A denominator that may be zero: no number at all, which no later function (tanh) may make one of again.
        return Intervals(np.where(bounded, mid, np.nan), np.where(bounded, rad, np.inf))

    def matmul(self, a: Any, b: Any) -> Intervals:
        k = a.mid.shape[-1]
        mid = np.matmul(a.mid, b.mid)
        gamma = (k + 4) * UNIT / (1 - (k + 4) * UNIT)
        size_a, size_b = np.abs(a.mid), np.abs(b.mid)
        rad = np.matmul(size_a, b.rad + gamma * size_b)
        if np.any(a.rad):
            rad = rad + np.matmul(a.rad, size_b + b.rad)
        # The products of radii are sums of k non-negative terms: relative error at most gamma_k.
        return Intervals(mid, rad * ((1 + gamma) * (1 + gamma) * INFLATION) + k * TINY)

    def sum(self, a: Any, axes: tuple[int, ...]) -> Intervals:
        count = int(np.prod([a.mid.shape[axis] for axis in axes], dtype=int))
        gamma = (count + 2) * UNIT / (1 - (count + 2) * UNIT)
        if count == 1:
            return Intervals(np.sum(a.mid, axes), np.sum(a.rad, axes))
        rad = np.sum(a.rad, axes) + gamma * np.sum(np.abs(a.mid), axes)
        rad = np.where(rad == 0, 0.0, rad * ((1 + gamma) * (1 + gamma) * INFLATION) + TINY)
        return Intervals(np.sum(a.mid, axes), rad)

    def power(self, a: Any, exponent: int) -> Intervals:
        if exponent < 0:
            return self.div(self.constant(np.ones(a.mid.shape)), self.power(a, -exponent))
        if exponent == 0:
            return self.constant(np.ones(a.mid.shape))
        if exponent == 1:
            return a
        half = self.power(a, exponent // 2)
        return self.mul(self.mul(half, half), a) if exponent % 2 else self.mul(half, half)

    def function(self, name: str, *operands: Any) -> Intervals:
        function = ARB_FUNCTIONS[name]
        shape = np.broadcast_shapes(*(operand.mid.shape for operand in operands))
        parts = [
            np.broadcast_to(part, shape).ravel().tolist()
            for operand in operands
            for part in (operand.mid, operand.rad)
        ]
        mids, rads = np.empty(len(parts[0])), np.empty(len(parts[0]))
        with ctx.workprec(FUNCTION_BITS):
            for index, numbers in enumerate(zip(*parts, strict=True)):
                balls = [arb(numbers[i], numbers[i + 1]) for i in range(0, len(numbers), 2)]
                mids[index], rads[index] = mid_rad(function(*balls))
        return Intervals(mids.reshape(shape), rads.reshape(shape))

    def sign(self, a: Any) -> np.ndarray:
        out = np.full(a.mid.shape, UNDECIDED, np.int8)
        out[a.mid > a.rad] = 1
        out[-a.mid > a.rad] = -1
        out[is_zero(a)] = 0
        return out

    def select(self, mask: np.ndarray, if_true: Any, if_false: Any) -> Intervals:
        mid = np.where(mask == 1, if_true.mid, if_false.mid)
        rad = np.where(mask == 1, if_true.rad, if_false.rad)
        if np.any(mask == EITHER):
            middle = if_true.mid / 2 + if_false.mid / 2
            reach = np.maximum(
                np.abs(if_true.mid - middle) + if_true.rad, np.abs(if_false.mid - middle) + if_false.rad
            )
            reach = np.where(reach == 0, 0.0, reach * INFLATION + TINY)
            mid, rad = np.where(mask == EITHER, middle, mid), np.where(mask == EITHER, reach, rad)
        return Intervals(mid, rad)

    def midpoint(self, a: Any) -> np.ndarray:
        return np.where(np.isfinite(a.mid), a.mid, 0.0)

    def is_finite(self, a: Any) -> bool:
        return bool(np.all(np.isfinite(a.mid)) and np.all(np.isfinite(a.rad)))


def is_zero(a: Intervals) -> np.ndarray:
    """Which elements are exactly zero."""
    return (a.mid == 0) & (a.rad == 0)


def mid_rad(ball: arb) -> tuple[float, float]:
    """Doubles ``m, r`` with ``|x - m| <= r`` for all ``x`` of the ball; an infinite radius if not finite.

    ``m`` is nan where the ball is no number (a logarithm outside its domain), so that it stays none.
    """
    if ball.is_nan():
        return np.nan, np.inf
    mid = float(ball.mid())
    if not ball.is_finite() or not np.isfinite(mid):
        return 0.0, np.inf
    distance = (ball - arb(mid)).abs_upper()
    rad = 0.0 if distance == 0 else float(distance.upper()) * (1 + 4 * UNIT) + TINY
    return mid, rad if np.isfinite(rad) else np.inf


def outward(balls: np.ndarray) -> Intervals:
    """An array of Arb balls as `Intervals` that contain them."""
    pairs = np.array([mid_rad(ball) for ball in balls.ravel()], float).reshape(*balls.shape, 2)
    return Intervals(pairs[..., 0], pairs[..., 1])


def as_balls(intervals: Intervals) -> np.ndarray:
    """`Intervals` as an array of Arb balls that contain them."""
    pairs = zip(intervals.mid.ravel().tolist(), intervals.rad.ravel().tolist(), strict=True)
    return filled(intervals.mid.shape, [arb(mid, rad) for mid, rad in pairs])

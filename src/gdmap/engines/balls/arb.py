"""Real balls of arbitrary precision: Arb, through python-flint."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from flint import arb, arb_mat, ctx

from gdmap.engines.balls.arithmetic import UNDECIDED, ObjectArithmetic, boxed, decimal, filled


class Arb(ObjectArithmetic):
    """Real balls of arbitrary precision (Arb, through python-flint): ``bits`` binary digits of midpoint."""

    def __init__(self, bits: int = 128, exact_decimals: bool = False) -> None:
        super().__init__(exact_decimals)
        self.bits = bits

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with ctx.workprec(self.bits):
            yield

    def number(self, x: float) -> arb:
        if self.exact_decimals and math.isfinite(x):
            return arb(decimal(x))
        return arb(x)

    def element(self, name: str, *operands: Any) -> arb:
        return ARB_FUNCTIONS[name](*operands)

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        left = arb_mat(a.shape[0], a.shape[1], a.ravel().tolist())
        right = arb_mat(b.shape[0], b.shape[1], b.ravel().tolist())
        return filled((a.shape[0], b.shape[1]), (left * right).entries())

    def div(self, a: Any, b: Any) -> np.ndarray:
        return boxed(a / b)

    def power(self, a: Any, exponent: int) -> np.ndarray:
        return self.elementwise(lambda x: integer_power(x, int(exponent)), a)

    def sign_of(self, x: arb) -> int:
        if x > 0:
            return 1
        if x < 0:
            return -1
        return 0 if x == 0 else UNDECIDED

    def hull(self, x: arb, y: arb) -> arb:
        return x.union(y)

    def float_of(self, x: arb) -> float:
        value = float(x.mid())
        return value if math.isfinite(value) else 0.0

    def is_finite(self, a: Any) -> bool:
        return all(x.is_finite() for x in a.ravel())


def integer_power(x: arb, exponent: int) -> arb:
    """``x ** exponent``; on balls that contain zero its range, where FLINT's general power has no value."""
    if exponent <= 0 or not x.contains(0) or not x.is_finite():
        return x**exponent
    low, high = (-x.lower()).max(arb(0)) ** exponent, x.upper().max(arb(0)) ** exponent
    return low.max(high).union(arb(0)) if exponent % 2 == 0 else (-low).union(high)


def logistic(x: arb) -> arb:
    """``1 / (1 + exp(-x))``."""
    return 1 / (1 + (-x).exp())


def cube_root(x: arb) -> arb:
    """The real cube root, of negative numbers too."""
    if x >= 0:
        return x.root(3)
    if x <= 0:
        return -((-x).root(3))
    if not x.is_finite():
        return arb("nan")
    return cube_root(x.lower()).union(cube_root(x.upper()))


ARB_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": lambda x: x.exp(),
    "exp2": lambda x: arb(2) ** x,
    "expm1": lambda x: x.expm1(),
    "log": lambda x: x.log(),
    "log1p": lambda x: x.log1p(),
    "tanh": lambda x: x.tanh(),
    "logistic": logistic,
    "sin": lambda x: x.sin(),
    "cos": lambda x: x.cos(),
    "tan": lambda x: x.tan(),
    "sinh": lambda x: x.sinh(),
    "cosh": lambda x: x.cosh(),
    "asin": lambda x: x.asin(),
    "acos": lambda x: x.acos(),
    "atan": lambda x: x.atan(),
    "asinh": lambda x: x.asinh(),
    "acosh": lambda x: x.acosh(),
    "atanh": lambda x: x.atanh(),
    "sqrt": lambda x: x.sqrt(),
    "rsqrt": lambda x: x.rsqrt(),
    "cbrt": cube_root,
    "erf": lambda x: x.erf(),
    "erfc": lambda x: x.erfc(),
    "lgamma": lambda x: x.lgamma(),
    "digamma": lambda x: x.digamma(),
    "pow": lambda x, y: x**y,
}

"""Exact rational numbers, and one token for every number that is not known to be a certain rational."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from flint import fmpq, fmpq_mat

from gdmap.engines.balls.anything import ANY
from gdmap.engines.balls.arithmetic import UNDECIDED, ObjectArithmetic, UndecidedError, decimal, filled


class Rational(ObjectArithmetic):
    """Exact rational numbers, and `ANY` for everything that is not one: some real number, not known which.

    Evaluated at a rational point, a polynomial program gives exact rationals; evaluated at ``ANY``, a program
    gives rationals where its value is the same for all inputs.
    """

    def number(self, x: float) -> Any:
        """``x`` as a fraction; infinities and nan are refused: ``0 * inf`` is not 0."""
        if not math.isfinite(x):
            raise UndecidedError(f"the number {x} in the loss has no exact rational value")
        return decimal(x) if self.exact_decimals else fmpq(*x.as_integer_ratio())

    def element(self, name: str, *operands: Any) -> Any:
        """The value where it is rational at a rational argument, else ``ANY``."""
        if any(x is ANY for x in operands):
            return ANY
        if name in DOMAINS and not DOMAINS[name](*operands):
            raise UndecidedError(f"{name} of a number outside its domain")
        for argument, value in EXACT_VALUES.get(name, ()):
            if operands[0] == argument:
                return fmpq(value)
        return ANY

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        entries = [a.ravel().tolist(), b.ravel().tolist()]
        if any(x is ANY for part in entries for x in part):
            return product_with_unknowns(a, b)
        return known_product(a, b)

    def sign_of(self, x: Any) -> int:
        if x is ANY:
            return UNDECIDED
        return int(x > 0) - int(x < 0)

    def hull(self, x: Any, y: Any) -> Any:
        return x if x is not ANY and y is not ANY and x == y else ANY

    def float_of(self, x: Any) -> float:
        return 0.0 if x is ANY else float(Fraction(int(x.p), int(x.q)))


def known_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of two matrices of rationals."""
    left = fmpq_mat(a.shape[0], a.shape[1], a.ravel().tolist())
    right = fmpq_mat(b.shape[0], b.shape[1], b.ravel().tolist())
    return filled((a.shape[0], b.shape[1]), (left * right).entries())


def product_with_unknowns(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A product of matrices of rationals and `ANY`: zero times anything is zero."""
    unknown_a = np.array([x is ANY for x in a.ravel()], bool).reshape(a.shape)
    unknown_b = np.array([x is ANY for x in b.ravel()], bool).reshape(b.shape)
    nonzero_a = np.array([x is ANY or x != 0 for x in a.ravel()], bool).reshape(a.shape)
    nonzero_b = np.array([x is ANY or x != 0 for x in b.ravel()], bool).reshape(b.shape)
    unknown = (unknown_a.astype(int) @ nonzero_b.astype(int) + nonzero_a.astype(int) @ unknown_b.astype(int)) > 0
    known_a, known_b = a.copy(), b.copy()
    known_a[unknown_a] = known_b[unknown_b] = fmpq(0)
    out = known_product(known_a, known_b)
    out[unknown] = ANY
    return out


# Where functions are defined and finite.
DOMAINS: dict[str, Callable[..., bool]] = {
    "log": lambda x: x > 0,
    "log1p": lambda x: x > -1,
    "sqrt": lambda x: x >= 0,
    "rsqrt": lambda x: x > 0,
    "asin": lambda x: abs(x) <= 1,
    "acos": lambda x: abs(x) <= 1,
    "acosh": lambda x: x >= 1,
    "atanh": lambda x: abs(x) < 1,
    "lgamma": lambda x: x > 0 or x.q != 1,
    "digamma": lambda x: x > 0 or x.q != 1,
    "pow": lambda x, y: x > 0 or (x == 0 and y > 0) or (x != 0 and y.q == 1),
}
# Rational values at rational arguments, which no other argument need be known for.
EXACT_VALUES: dict[str, list[tuple[int, Any]]] = {
    "exp": [(0, 1)],
    "exp2": [(0, 1), (1, 2)],
    "expm1": [(0, 0)],
    "log": [(1, 0)],
    "log1p": [(0, 0)],
    "tanh": [(0, 0)],
    "sin": [(0, 0)],
    "cos": [(0, 1)],
    "tan": [(0, 0)],
    "sinh": [(0, 0)],
    "cosh": [(0, 1)],
    "asin": [(0, 0)],
    "atan": [(0, 0)],
    "asinh": [(0, 0)],
    "atanh": [(0, 0)],
    "sqrt": [(0, 0), (1, 1)],
    "rsqrt": [(1, 1)],
    "cbrt": [(0, 0), (1, 1)],
    "erf": [(0, 0)],
    "erfc": [(0, 1)],
    "logistic": [(0, fmpq(1, 2))],
}

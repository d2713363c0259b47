"""Exact multivariate polynomials with rational coefficients: a program evaluated symbolically."""

import math
from typing import Any

import numpy as np
from flint import Ordering, fmpq, fmpq_mpoly, fmpq_mpoly_ctx

from gdmap.engines.balls.arithmetic import UNDECIDED, ObjectArithmetic, UndecidedError, decimal


class Polynomials(ObjectArithmetic):
    """Polynomials in the inputs of a program. Only sums, products and natural powers are defined."""

    def __init__(self, n_variables: int, exact_decimals: bool = False) -> None:
        super().__init__(exact_decimals)
        names = tuple(f"x{k}" for k in range(n_variables))
        self.context = fmpq_mpoly_ctx.get(names, Ordering.degrevlex)

    def variables(self) -> np.ndarray:
        """The inputs themselves, shape (n_variables,)."""
        out = np.empty(len(self.context.gens()), object)
        for index, variable in enumerate(self.context.gens()):
            out[index] = variable
        return out

    def number(self, x: float) -> fmpq_mpoly:
        if not math.isfinite(x):
            raise UndecidedError("an infinite constant in a polynomial")
        return self.context.constant(decimal(x) if self.exact_decimals else fmpq(*x.as_integer_ratio()))

    def element(self, name: str, *operands: Any) -> Any:
        raise UndecidedError(f"{name} is no polynomial")

    def div(self, a: Any, b: Any) -> np.ndarray:
        def quotient(x: Any, y: Any) -> Any:
            if not y.is_constant() or y == 0:
                raise UndecidedError("a quotient of polynomials")
            return x * (1 / y.leading_coefficient())

        return self.elementwise(quotient, a, b)

    def sign_of(self, x: Any) -> int:
        if not x.is_constant():
            return UNDECIDED
        value = x.leading_coefficient() if x != 0 else fmpq(0)
        return int(value > 0) - int(value < 0)

    def hull(self, x: Any, y: Any) -> Any:
        if x == y:
            return x
        raise UndecidedError("a choice between two polynomials")

    def float_of(self, x: Any) -> float:
        return 0.0

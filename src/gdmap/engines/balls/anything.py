"""Exact constants among unknowns: rational arithmetic with one more number, ``ANY``, "some finite real number".

A program evaluated on inputs ``ANY`` shows which of its results are the same rational number whatever the inputs:
those that come out as numbers. What comes out as ``ANY`` may vary, or may be a constant that was not recognised.
"""

import math
from fractions import Fraction
from typing import Any

import numpy as np
from flint import acb, arb, fmpq, fmpz

NUMBERS = (int, float, np.integer, np.floating, np.bool_, Fraction, fmpz, fmpq, arb, acb)


class Anything:
    """Some finite real number, nothing else being known; the one instance is `ANY`.

    ``0 * ANY = 0``, ``0 / ANY = 0``, ``ANY ** 0 = 1``, ``1 ** ANY = 1``; every other operation with a finite
    number gives ``ANY``, ``ANY - ANY`` included (two unknowns are not known to be equal). A statement reached so
    holds at every input at which all operations of the program are defined.

    Raises
    ------
    TypeError
        For comparisons and truth values, ``==`` included: they cannot be decided. Ask ``x is ANY``.
    ZeroDivisionError
        For the division by an exact 0.
    ValueError
        For operations with infinities or nan.
    """

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]
    _instance: "Anything | None" = None

    def __new__(cls) -> "Anything":
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __reduce__(self) -> str:
        return "ANY"

    def __repr__(self) -> str:
        return "ANY"

    def __add__(self, other: Any) -> Any:
        return self if is_operand(other) else NotImplemented

    __radd__ = __sub__ = __rsub__ = __add__

    def __mul__(self, other: Any) -> Any:
        if other is self:
            return self
        if not is_operand(other):
            return NotImplemented
        return fmpq(0) if other == 0 else self

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        if other is self:
            return self
        if not is_operand(other):
            return NotImplemented
        if other == 0:
            raise ZeroDivisionError("division of an unknown number by 0")
        return self

    def __rtruediv__(self, other: Any) -> Any:
        return self.__mul__(other)

    def __pow__(self, exponent: Any, modulus: None = None) -> Any:
        if exponent is self:
            return self
        if modulus is not None or not is_operand(exponent):
            return NotImplemented
        return fmpq(1) if exponent == 0 else self

    def __rpow__(self, base: Any, modulus: None = None) -> Any:
        if modulus is not None or not is_operand(base):
            return NotImplemented
        return fmpq(1) if base == 1 else self

    def __neg__(self) -> "Anything":
        return self

    __pos__ = __abs__ = __neg__

    def _undecided(self, *_: Any) -> Any:
        raise TypeError("ANY is an unknown number: comparisons with it are not decided (ask `x is ANY`)")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __float__ = __int__ = _undecided


ANY = Anything()


def is_operand(other: Any) -> bool:
    """Whether ``other`` is a number that arithmetic with ``ANY`` accepts; infinities and nan are refused."""
    if other is ANY:
        return True
    if not isinstance(other, NUMBERS):
        return False
    if isinstance(other, (float, np.floating)):
        finite = math.isfinite(other)
    else:
        finite = not isinstance(other, (arb, acb)) or other.is_finite()
    if not finite:
        raise ValueError(f"ANY stands for finite numbers; it cannot be combined with {other}")
    return True


def unknowns(shape: int | tuple[int, ...]) -> np.ndarray:
    """An object array of this shape, every entry ``ANY``."""
    array = np.empty(shape, dtype=object)
    array.fill(ANY)
    return array


def is_known(array: Any) -> np.ndarray:
    """Which entries of an object array are numbers, not ``ANY``: a boolean array of its shape."""
    values = np.asarray(array, dtype=object)
    return np.fromiter((value is not ANY for value in values.flat), dtype=bool, count=values.size).reshape(
        values.shape
    )


def exact_rational(value: Any) -> fmpq:
    """An integer, ``fmpq``, ``Fraction`` or finite float as the rational number that it is, exactly.

    Raises
    ------
    ValueError
        For infinities and nan.
    TypeError
        For what is not a real number; strings are not read.
    """
    if isinstance(value, fmpq):
        return value
    if isinstance(value, (bool, np.bool_)):
        return fmpq(int(value))
    if isinstance(value, (int, np.integer)):
        return fmpq(int(value))
    if isinstance(value, fmpz):
        return fmpq(value)
    if isinstance(value, (float, np.floating)):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no rational number; all numbers must be finite")
        return fmpq(*value.as_integer_ratio())
    if isinstance(value, Fraction):
        return fmpq(value.numerator, value.denominator)
    raise TypeError(f"expected an integer, fmpq, Fraction or float, not {type(value).__name__}")

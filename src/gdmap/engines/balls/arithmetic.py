"""What an arithmetic offers to the evaluator of flat programs, and the arithmetics on arrays of Python objects."""

import abc
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from flint import fmpq

# The third value of a mask: either branch.
EITHER = 2
# The sign of a number that cannot be told.
UNDECIDED = 2
# Products of matrices with fewer multiplications than this are cheaper element by element.
SMALL_PRODUCT = 32


class UndecidedError(ArithmeticError):
    """A comparison, or the domain of a function, that this precision does not decide."""


class Arithmetic(abc.ABC):
    """Numbers in which a program is evaluated. Values are arrays of them, opaque to the evaluator.

    Every operation encloses: if the operands contain the true real numbers, so does the result.
    """

    exact_decimals: bool = False

    @abc.abstractmethod
    def constant(self, array: np.ndarray) -> Any:
        """The value that holds exactly these float64 numbers (the decimals they print, if ``exact_decimals``)."""

    @abc.abstractmethod
    def rearrange(self, function: Callable[..., np.ndarray], *values: Any) -> Any:
        """``function``, which only moves elements of arrays, applied to the components of ``values``."""

    @abc.abstractmethod
    def shape(self, value: Any) -> tuple[int, ...]:
        """The shape of a value."""

    @abc.abstractmethod
    def add(self, a: Any, b: Any) -> Any: ...

    @abc.abstractmethod
    def neg(self, a: Any) -> Any: ...

    @abc.abstractmethod
    def mul(self, a: Any, b: Any) -> Any: ...

    @abc.abstractmethod
    def div(self, a: Any, b: Any) -> Any: ...

    @abc.abstractmethod
    def matmul(self, a: Any, b: Any) -> Any:
        """``(..., i, k) @ (..., k, j)`` with equal leading dimensions."""

    @abc.abstractmethod
    def sum(self, a: Any, axes: tuple[int, ...]) -> Any: ...

    @abc.abstractmethod
    def power(self, a: Any, exponent: int) -> Any: ...

    @abc.abstractmethod
    def function(self, name: str, *operands: Any) -> Any:
        """A transcendental function, elementwise; ``name`` is that of the JAX primitive."""

    @abc.abstractmethod
    def sign(self, a: Any) -> np.ndarray:
        """Elementwise -1, 0, 1, or `UNDECIDED`; 0 only where the number is exactly zero."""

    @abc.abstractmethod
    def select(self, mask: np.ndarray, if_true: Any, if_false: Any) -> Any:
        """Elementwise choice; an element of ``mask`` that is `EITHER` encloses both."""

    @abc.abstractmethod
    def midpoint(self, a: Any) -> np.ndarray:
        """Floating-point numbers near the value, finite."""

    @abc.abstractmethod
    def is_finite(self, a: Any) -> bool:
        """Whether every element is a bounded enclosure of a real number."""

    def sub(self, a: Any, b: Any) -> Any:
        return self.add(a, self.neg(b))

    def zeros(self, shape: tuple[int, ...]) -> Any:
        """Exact zeros."""
        return self.constant(np.zeros(shape))

    def take(self, value: Any, indices: np.ndarray, fill: Any = None) -> Any:
        """``value.ravel()[indices]``, with ``fill`` (zero) where an index is -1."""
        filling = self.zeros((1,)) if fill is None else fill
        return self.rearrange(lambda a, z: np.concatenate([a.ravel(), z.ravel()])[indices], value, filling)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The context in which this arithmetic works (its precision)."""
        yield


class ObjectArithmetic(Arithmetic):
    """Arithmetic on NumPy arrays of Python numbers; subclasses say what a number is."""

    def __init__(self, exact_decimals: bool = False) -> None:
        self.exact_decimals = exact_decimals

    @abc.abstractmethod
    def number(self, x: float) -> Any:
        """The element that is the float ``x``."""

    @abc.abstractmethod
    def element(self, name: str, *operands: Any) -> Any:
        """A transcendental function of elements."""

    @abc.abstractmethod
    def sign_of(self, x: Any) -> int: ...

    @abc.abstractmethod
    def hull(self, x: Any, y: Any) -> Any:
        """An element that encloses both."""

    @abc.abstractmethod
    def float_of(self, x: Any) -> float: ...

    @functools.cached_property
    def known(self) -> dict[float, Any]:
        return {}

    def constant(self, array: np.ndarray) -> np.ndarray:
        array = np.asarray(array)
        known = self.known
        out = np.empty(array.shape, object)
        flat = out.reshape(-1)
        for index, x in enumerate(array.ravel().tolist()):
            element = known.get(x)
            if element is None:
                element = known[x] = self.number(float(x))
            flat[index] = element
        return out

    def rearrange(self, function: Callable[..., np.ndarray], *values: Any) -> np.ndarray:
        return boxed(function(*values))

    def shape(self, value: Any) -> tuple[int, ...]:
        return value.shape

    def add(self, a: Any, b: Any) -> np.ndarray:
        return boxed(a + b)

    def sub(self, a: Any, b: Any) -> np.ndarray:
        return boxed(a - b)

    def neg(self, a: Any) -> np.ndarray:
        return boxed(-a)

    def mul(self, a: Any, b: Any) -> np.ndarray:
        return boxed(a * b)

    def div(self, a: Any, b: Any) -> np.ndarray:
        try:
            return boxed(a / b)
        except ZeroDivisionError:
            raise UndecidedError("a division by zero") from None

    def matmul(self, a: Any, b: Any) -> np.ndarray:
        if a.size == 0 or b.size == 0:
            return self.zeros((*a.shape[:-1], b.shape[-1]))
        if a.shape[-2] * a.shape[-1] * b.shape[-1] < SMALL_PRODUCT:
            return boxed(np.matmul(a, b))
        leading = a.shape[:-2]
        a3, b3 = a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:])
        out = np.empty((len(a3), a.shape[-2], b.shape[-1]), object)
        for index in range(len(a3)):
            out[index] = self.product(a3[index], b3[index])
        return out.reshape(*leading, a.shape[-2], b.shape[-1])

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The product of two matrices."""
        return np.matmul(a, b)

    def sum(self, a: Any, axes: tuple[int, ...]) -> np.ndarray:
        if a.size == 0:
            return self.zeros(tuple(n for axis, n in enumerate(a.shape) if axis not in axes))
        return boxed(np.add.reduce(a, axis=axes))

    def power(self, a: Any, exponent: int) -> np.ndarray:
        try:
            return self.elementwise(lambda x: x**exponent, a)
        except ZeroDivisionError:
            raise UndecidedError("a division by zero") from None

    def function(self, name: str, *operands: Any) -> np.ndarray:
        return self.elementwise(lambda *xs: self.element(name, *xs), *operands)

    def elementwise(self, function: Callable[..., Any], *operands: Any) -> np.ndarray:
        operands = np.broadcast_arrays(*operands)
        out = np.empty(operands[0].shape, object)
        flat = out.reshape(-1)
        for index, xs in enumerate(zip(*(operand.ravel() for operand in operands), strict=True)):
            flat[index] = function(*xs)
        return out

    def sign(self, a: Any) -> np.ndarray:
        return np.array([self.sign_of(x) for x in a.ravel()], np.int8).reshape(a.shape)

    def select(self, mask: np.ndarray, if_true: Any, if_false: Any) -> np.ndarray:
        mask, if_true, if_false = np.broadcast_arrays(mask, if_true, if_false)
        out = np.where(mask == 1, if_true, if_false)
        for index in np.argwhere(mask == EITHER):
            key = tuple(index)
            out[key] = self.hull(if_true[key], if_false[key])
        return boxed(out)

    def midpoint(self, a: Any) -> np.ndarray:
        return np.array([self.float_of(x) for x in a.ravel()], float).reshape(a.shape)

    def is_finite(self, a: Any) -> bool:
        return True


def boxed(value: Any) -> np.ndarray:
    """NumPy's scalars of object arrays as arrays of shape ``()`` again."""
    if isinstance(value, np.ndarray):
        return value
    out = np.empty((), object)
    out[()] = value
    return out


def filled(shape: tuple[int, ...], entries: Sequence[Any]) -> np.ndarray:
    """An object array of these entries."""
    out = np.empty(len(entries), object)
    out[:] = entries
    return out.reshape(shape)


def decimal(x: float) -> fmpq:
    """The exact decimal number that the shortest printed form of ``x`` names."""
    fraction = Fraction(repr(float(x)))
    return fmpq(fraction.numerator, fraction.denominator)

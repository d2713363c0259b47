"""An arithmetic that also remembers which numbers depend on the parameters.

Two equal numbers that do not depend on them (the zeros of two dead units in one pooling window) are no kink.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from gdmap.engines.balls.arithmetic import EITHER, Arithmetic


class TrackedValue(NamedTuple):
    """Numbers of another arithmetic and, for each, whether it depends on the parameters."""

    value: Any
    depends: np.ndarray


class Tracked(Arithmetic):
    """``base`` with dependence on the parameters; exact zeros absorb what they multiply."""

    def __init__(self, base: Arithmetic) -> None:
        self.base = base
        self.exact_decimals = base.exact_decimals

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with self.base.active():
            yield

    def variable(self, value: Any) -> TrackedValue:
        """Numbers that are parameters."""
        return TrackedValue(value, np.ones(self.base.shape(value), bool))

    def constant(self, array: np.ndarray) -> TrackedValue:
        return TrackedValue(self.base.constant(array), np.zeros(np.shape(array), bool))

    def depends(self, a: TrackedValue) -> np.ndarray:
        """Which numbers depend on the parameters."""
        return a.depends

    def shape(self, value: Any) -> tuple[int, ...]:
        return value.depends.shape

    def rearrange(self, function: Callable[..., np.ndarray], *values: Any) -> TrackedValue:
        return TrackedValue(
            self.base.rearrange(function, *(v.value for v in values)), function(*(v.depends for v in values))
        )

    def nonzero(self, a: TrackedValue) -> np.ndarray:
        return a.depends | (self.base.sign(a.value) != 0)

    def add(self, a: Any, b: Any) -> TrackedValue:
        return TrackedValue(self.base.add(a.value, b.value), np.asarray(a.depends | b.depends))

    def sub(self, a: Any, b: Any) -> TrackedValue:
        return TrackedValue(self.base.sub(a.value, b.value), np.asarray(a.depends | b.depends))

    def neg(self, a: Any) -> TrackedValue:
        return TrackedValue(self.base.neg(a.value), a.depends)

    def mul(self, a: Any, b: Any) -> TrackedValue:
        depends = np.asarray((a.depends & self.nonzero(b)) | (b.depends & self.nonzero(a)))
        return TrackedValue(self.base.mul(a.value, b.value), depends)

    def div(self, a: Any, b: Any) -> TrackedValue:
        depends = np.asarray(a.depends | (b.depends & self.nonzero(a)))
        return TrackedValue(self.base.div(a.value, b.value), depends)

    def matmul(self, a: Any, b: Any) -> TrackedValue:
        left = np.matmul(a.depends.astype(np.float32), self.nonzero(b).astype(np.float32))
        right = np.matmul(self.nonzero(a).astype(np.float32), b.depends.astype(np.float32))
        return TrackedValue(self.base.matmul(a.value, b.value), (left + right) > 0)

    def sum(self, a: Any, axes: tuple[int, ...]) -> TrackedValue:
        return TrackedValue(self.base.sum(a.value, axes), np.asarray(np.any(a.depends, axes)))

    def power(self, a: Any, exponent: int) -> TrackedValue:
        return TrackedValue(self.base.power(a.value, exponent), a.depends & (exponent != 0))

    def function(self, name: str, *operands: Any) -> TrackedValue:
        depends = np.asarray(np.any(np.broadcast_arrays(*(o.depends for o in operands)), 0))
        return TrackedValue(self.base.function(name, *(o.value for o in operands)), depends)

    def sign(self, a: Any) -> np.ndarray:
        return self.base.sign(a.value)

    def select(self, mask: np.ndarray, if_true: Any, if_false: Any) -> TrackedValue:
        depends = np.where(mask == 1, if_true.depends, if_false.depends)
        depends = np.where(mask == EITHER, if_true.depends | if_false.depends, depends)
        return TrackedValue(self.base.select(mask, if_true.value, if_false.value), depends)

    def midpoint(self, a: Any) -> np.ndarray:
        return self.base.midpoint(a.value)

    def is_finite(self, a: Any) -> bool:
        return self.base.is_finite(a.value)

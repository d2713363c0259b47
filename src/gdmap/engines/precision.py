"""Double precision without a global switch, and the border between the user's arrays and traced code."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np


def float64() -> Any:
    """A context in which JAX computes in double precision, whatever the caller has configured."""
    return jax.enable_x64(True)


def is_traced(*values: Any) -> bool:
    """Whether any array in the given pytrees is being traced by JAX."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


Method = TypeVar("Method", bound=Callable[..., Any])


def entry_point(method: Method) -> Method:
    """Make ``method(self, *arrays)`` callable from plain NumPy code and from inside a JAX transformation.

    Called with concrete arrays it is compiled once per shape and computed in double precision (the dtype
    follows the arrays: float32 stays float32); NumPy in gives NumPy out, JAX arrays in give JAX arrays out.
    Called while JAX is tracing it is simply part of the trace.
    """
    return EntryPoint(method)  # type: ignore[return-value]


class EntryPoint:
    """The descriptor behind `entry_point`."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        self.compiled = eqx.filter_jit(method)
        self.__doc__ = method.__doc__
        self.__wrapped__ = method

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else BoundEntryPoint(self, instance)


class BoundEntryPoint:
    """An entry point of one object; hashable by identity, so that ``jax.jit(objective.value)`` works."""

    def __init__(self, entry: EntryPoint, instance: Any) -> None:
        self.entry = entry
        self.instance = instance
        self.__doc__ = entry.__doc__
        self.__name__ = entry.method.__name__
        self.__wrapped__ = functools.partial(entry.method, instance)

    def __call__(self, *arrays: Any) -> Any:
        if is_traced(self.instance, arrays):
            return self.entry.method(self.instance, *arrays)
        with float64():
            result = self.entry.compiled(for_tracing(self.instance), *map(as_floating, arrays))
            if any(isinstance(array, jax.Array) for array in arrays):
                return result
            return jax.tree.map(lambda leaf: np.asarray(leaf)[()], result)

    def __hash__(self) -> int:
        return hash((id(self.entry), id(self.instance)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BoundEntryPoint) and self.entry is other.entry and self.instance is other.instance


def for_tracing(tree: Any) -> Any:
    """``tree`` with every node that has a method ``for_tracing`` replaced by what that returns.

    Objects drop there what a trace must not depend on, so that equal shapes share one compilation.
    """

    def has_own_form(node: Any) -> bool:
        return hasattr(type(node), "for_tracing")

    return jax.tree.map(
        lambda node: node.for_tracing() if has_own_form(node) else node, tree, is_leaf=has_own_form
    )


def as_floating(array: Any) -> Any:
    """``array`` as a real floating array; JAX arrays pass through, anything else becomes NumPy.

    Raises
    ------
    TypeError
        For integer, boolean or complex numbers: parameters of a differentiable loss are real; for a pytree,
        a `Minimum` or anything else that is no array.
    """
    if not isinstance(array, jax.Array):
        try:
            converted = np.asarray(array)
        except ValueError:  # arrays of several shapes in a list
            converted = np.asarray(None)
        if converted.dtype == object:
            raise TypeError(
                f"expected one flat vector of floating-point numbers, got {type(array).__name__}: "
                "pass objective.ravel(params), or minimum.theta"
            )
        array = converted
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(
            f"expected real floating-point numbers, got dtype {array.dtype}: "
            "write integers as floats (1.0, or .astype(float)); complex parameters are not supported"
        )
    return array

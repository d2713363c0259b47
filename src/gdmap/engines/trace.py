"""Identity of a traced computation: equal programs on equal numbers hash alike."""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from gdmap.engines.precision import float64


def trace_fingerprint(function: Callable[..., Any], *shapes: tuple[int, ...]) -> str:
    """A hash of the float64 trace of ``function`` on arrays of these shapes, and of every number in it.

    ``function`` may be an Equinox module or a method of one; its arrays and those it closes over count.
    """
    arrays, rest = eqx.partition(function, eqx.is_array)

    def call(arrays: Any, *arguments: Any) -> Any:
        return eqx.combine(arrays, rest)(*arguments)

    with float64():
        trace = jax.make_jaxpr(call)(arrays, *(jax.ShapeDtypeStruct(shape, np.float64) for shape in shapes))
    # Printed traces name functions by address; the address is not part of the computation.
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(trace.jaxpr)).encode())
    for leaf in [*jax.tree.leaves(arrays), *trace.consts, *inner_constants(trace.jaxpr)]:
        digest.update(array_digest(np.asarray(leaf)).encode())
    return digest.hexdigest()


def inner_constants(jaxpr: Any) -> Iterator[Any]:
    """Every constant inside a jaxpr: literals, and the constants of the programs it calls, at any depth.

    Raises
    ------
    TypeError
        If the program calls back into Python: what that computes is not part of the trace.
    """
    for equation in jaxpr.eqns:
        if "callback" in equation.primitive.name:
            raise TypeError("the loss calls back into Python (pure_callback); write it in JAX")
        for operand in equation.invars:
            if isinstance(operand, Literal):
                yield operand.val
        for parameter in jax.tree.leaves(list(equation.params.values())):
            if isinstance(parameter, ClosedJaxpr):
                yield from parameter.consts
                yield from inner_constants(parameter.jaxpr)
            elif isinstance(parameter, Jaxpr):
                yield from inner_constants(parameter)


def array_digest(array: np.ndarray) -> str:
    """A hash of the dtype, shape and bytes of an array."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

"""A traced function as one flat list of equations: calls inlined, constants computed, what is unused left out."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from gdmap.engines.precision import float64

# Primitives that only wrap another program, and the parameter that holds it.
CALLS = {
    "pjit": "jaxpr",
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_lin": "call_jaxpr",
}


class Unsupported(Exception):  # noqa: N818 - the other engine takes over
    """The compiler cannot translate this program; the message names what it does not know."""


class Name:
    """A value of the flat program, told from others by identity."""

    __slots__ = ("dtype", "shape")

    def __init__(self, aval: Any) -> None:
        self.shape: tuple[int, ...] = tuple(aval.shape)
        if not isinstance(aval.dtype, np.dtype):
            raise Unsupported(f"numbers of type {aval.dtype}")
        self.dtype = aval.dtype


Operand = Name | np.ndarray


class Equation(NamedTuple):
    """One primitive applied to names and constants."""

    primitive: str
    operands: tuple[Operand, ...]
    params: Mapping[str, Any]
    results: tuple[Name, ...]


class Program(NamedTuple):
    """A function of arrays of fixed shapes: inputs, equations in order, and what it returns."""

    inputs: tuple[Name, ...]
    equations: tuple[Equation, ...]
    outputs: tuple[Operand, ...]


def traced(function: Callable[..., Any], *examples: Any) -> ClosedJaxpr:
    """The float64 trace of ``function`` on arrays (or shapes) like the examples."""
    with float64():
        return jax.make_jaxpr(function)(*examples)


def flat(closed: ClosedJaxpr, known: Mapping[int, np.ndarray] | None = None) -> Program:
    """The flat program of a trace; inputs at the positions in ``known`` have these values."""
    inputs = tuple(Name(var.aval) for var in closed.jaxpr.invars)
    arguments = [(known or {}).get(position, name) for position, name in enumerate(inputs)]
    equations: list[Equation] = []
    with float64():
        consts = [constant(const) for const in closed.consts]
        outputs = _inline(closed.jaxpr, consts, arguments, equations)
    return Program(inputs, tuple(_needed(equations, outputs)), tuple(outputs))


def constant(value: Any) -> Any:
    """A known value as a NumPy array, one number repeated where all are the same to the bit.

    Keys of random numbers stay what they are.
    """
    if isinstance(value, jax.Array) and not isinstance(value.dtype, np.dtype):
        return value
    array = np.asarray(value)
    if array.size > 1 and any(array.strides):
        bits = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.size, -1)
        if (bits == bits[0]).all():
            return np.broadcast_to(array.reshape(-1)[0], array.shape)
    return array


def _inline(
    jaxpr: Jaxpr, consts: list[np.ndarray], arguments: list[Operand], equations: list[Equation]
) -> list[Operand]:
    known: dict[Var, Operand] = dict(zip(jaxpr.constvars, consts, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Operand:
        return np.asarray(atom.val, cast(Any, atom.aval).dtype) if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        primitive = equation.primitive.name
        results: list[Operand]
        if primitive in CALLS:
            inner = equation.params[CALLS[primitive]]
            if isinstance(inner, ClosedJaxpr):
                results = _inline(inner.jaxpr, [constant(c) for c in inner.consts], operands, equations)
            else:
                results = _inline(inner, [], operands, equations)
        elif equation.effects:
            raise Unsupported(
                f"the primitive {primitive} with its effects ({', '.join(map(str, equation.effects))})"
            )
        elif not any(isinstance(operand, Name) for operand in operands):
            bound = equation.primitive.bind(*operands, **equation.params)
            values = bound if equation.primitive.multiple_results else [bound]
            results = [constant(value) for value in values]
        else:
            names = tuple(Name(var.aval) for var in equation.outvars)
            equations.append(Equation(primitive, tuple(operands), equation.params, names))
            results = list(names)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def identity_of(program: Program) -> tuple[Any, ...]:
    """What a program computes, as a key: equal for programs that differ in the names of their values alone.

    (The text of a trace is no such key: it leaves out the constants that inner functions closed over.)
    """
    numbers = {id(name): number for number, name in enumerate(program.inputs)}

    def seen(operand: Any) -> Any:
        if isinstance(operand, Name):
            return numbers[id(operand)]
        array = np.asarray(operand)
        return array.dtype.str, array.shape, array.tobytes()

    equations = []
    for equation in program.equations:
        operands = tuple(map(seen, equation.operands))
        for result in equation.results:
            numbers[id(result)] = len(numbers)
        params = tuple((key, _param_key(value)) for key, value in sorted(equation.params.items()))
        equations.append(
            (equation.primitive, operands, params, tuple(result.shape for result in equation.results))
        )
    kinds = tuple((name.shape, name.dtype.str) for name in program.inputs)
    return kinds, tuple(equations), tuple(map(seen, program.outputs))


def _param_key(value: Any) -> Any:
    if isinstance(value, ClosedJaxpr):
        return identity_of(flat(value))
    if isinstance(value, tuple | list):
        return tuple(map(_param_key, value))
    return str(value)


def _needed(equations: list[Equation], outputs: list[Operand]) -> Iterator[Equation]:
    needed = {id(output) for output in outputs}
    kept = []
    for equation in reversed(equations):
        if any(id(result) in needed for result in equation.results):
            kept.append(equation)
            needed.update(id(operand) for operand in equation.operands)
    return reversed(kept)

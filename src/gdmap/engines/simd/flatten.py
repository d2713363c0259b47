"""A traced function as one flat list of equations: calls inlined, what is constant computed, what is unused left out."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

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
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_lin": "call_jaxpr",
}


class Unsupported(Exception):
    """The compiler cannot translate this program; the message names what it does not know."""


class Name:
    """A value of the flat program, told from others by identity."""

    __slots__ = ("dtype", "shape")

    def __init__(self, aval: Any) -> None:
        self.shape: tuple[int, ...] = tuple(aval.shape)
        self.dtype = np.dtype(aval.dtype)


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


def flat(closed: ClosedJaxpr) -> Program:
    """The flat program of a trace."""
    inputs = tuple(Name(var.aval) for var in closed.jaxpr.invars)
    equations: list[Equation] = []
    with float64():
        consts = [np.asarray(const) for const in closed.consts]
        outputs = _inline(closed.jaxpr, consts, list(inputs), equations)
    return Program(inputs, tuple(_needed(equations, outputs)), tuple(outputs))


def _inline(
    jaxpr: Jaxpr, consts: list[np.ndarray], arguments: list[Operand], equations: list[Equation]
) -> list[Operand]:
    known: dict[Var, Operand] = dict(zip(jaxpr.constvars, consts, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Operand:
        return np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        primitive = equation.primitive.name
        results: list[Operand]
        if primitive in CALLS:
            inner = equation.params[CALLS[primitive]]
            if isinstance(inner, ClosedJaxpr):
                results = _inline(inner.jaxpr, [np.asarray(c) for c in inner.consts], operands, equations)
            else:
                results = _inline(inner, [], operands, equations)
        elif all(isinstance(operand, np.ndarray) for operand in operands) and not equation.effects:
            bound = equation.primitive.bind(*operands, **equation.params)
            values = bound if equation.primitive.multiple_results else [bound]
            results = [np.asarray(value) for value in values]
        else:
            names = tuple(Name(var.aval) for var in equation.outvars)
            equations.append(Equation(primitive, tuple(operands), equation.params, names))
            results = list(names)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _needed(equations: list[Equation], outputs: list[Operand]) -> Iterator[Equation]:
    needed = {id(output) for output in outputs}
    kept = []
    for equation in reversed(equations):
        if any(id(result) in needed for result in equation.results):
            kept.append(equation)
            needed.update(id(operand) for operand in equation.operands)
    return reversed(kept)

"""Flat programs: a traced function as one straight list of primitive operations, nothing called, nothing looped.

What is proved about a loss is proved about this list, read as a formula over the real numbers.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, DropVar, Literal, Var
from jax.interpreters import partial_eval

from gdmap.engines.precision import float64

# Primitives that only call another program.
CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "core_closed_call",
    "remat",
    "remat2",
    "checkpoint",
    "composite",
}
CUSTOM_RULES = {
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
# A loop longer than this is refused: its program is written out.
LONGEST_LOOP = 10_000


class UnsupportedProgramError(TypeError):
    """The trace holds an operation that cannot be read as a formula over the reals, or that is not known here."""


def flat_program(function: Callable[..., Any], *shapes: tuple[int, ...]) -> ClosedJaxpr:
    """The float64 trace of ``function`` on arrays of these shapes, inlined, loops unrolled, dead code removed.

    Functions with their own derivative rules (``jax.custom_jvp``, such as ``jax.nn.relu``) are replaced by
    their formula, and ``logaddexp(a, b)`` (softplus) by the equal ``b - log(logistic(b - a))``, which shows
    that it is analytic.

    Raises
    ------
    UnsupportedProgramError
        For loops with a data-dependent number of steps, branches (``cond``), and calls back into Python.
    """
    with float64():
        arguments = [jax.ShapeDtypeStruct(shape, np.float64) for shape in shapes]
        traced = jax.make_jaxpr(function)(*arguments)
        return flattened(traced)


def flattened(traced: ClosedJaxpr) -> ClosedJaxpr:
    """``traced`` inlined, loops unrolled, dead code removed; call it inside `float64`."""
    arguments = [
        jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype) for variable in traced.jaxpr.invars
    ]
    flat = jax.make_jaxpr(lambda *inputs: replay(traced.jaxpr, traced.consts, inputs))(*arguments)
    merged = without_repetitions(flat.jaxpr)
    jaxpr, _ = partial_eval.dce_jaxpr(merged, [True] * len(merged.outvars), instantiate=True)
    return ClosedJaxpr(jaxpr, flat.consts)


def without_repetitions(jaxpr: Any) -> Any:
    """``jaxpr`` with equal operations on equal operands done once."""
    alias: dict[Any, Any] = {}
    seen: dict[Any, Any] = {}
    kept = []
    for equation in jaxpr.eqns:
        invars = [atom if isinstance(atom, Literal) else alias.get(atom, atom) for atom in equation.invars]
        key = (
            equation.primitive.name,
            tuple((frozen(a.val), str(a.aval)) if isinstance(a, Literal) else id(a) for a in invars),
            frozen(equation.params),
        )
        former = seen.get(key)
        if former is not None and not equation.effects:
            alias.update(
                (new, old)
                for new, old in zip(equation.outvars, former.outvars, strict=True)
                if not isinstance(new, DropVar) and not isinstance(old, DropVar)
            )
            if all(isinstance(new, DropVar) or new in alias for new in equation.outvars):
                continue
        seen.setdefault(key, equation)
        kept.append(equation.replace(invars=invars))
    outvars = [atom if isinstance(atom, Literal) else alias.get(atom, atom) for atom in jaxpr.outvars]
    return jaxpr.replace(eqns=kept, outvars=outvars)


def frozen(value: Any) -> Any:
    """A hashable form of a literal or of parameters of an equation: equal only if the same bit for bit."""
    if isinstance(value, dict):
        return tuple((name, frozen(value[name])) for name in sorted(value))
    if isinstance(value, (list, tuple)):
        return (type(value), *map(frozen, value))
    if isinstance(value, (float, complex, np.generic, np.ndarray, jax.Array)) and not is_opaque(value):
        array = np.asarray(value)
        return (str(array.dtype), array.shape, array.tobytes())
    if value is None or isinstance(value, (bool, int, str, bytes)):
        return (type(value), value)
    if isinstance(value, Hashable):
        return value
    return (type(value), id(value))


def is_opaque(value: Any) -> bool:
    """Whether an array holds what NumPy has no numbers for (random keys)."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.extended)


Rule = Callable[[Any, Sequence[Any]], Sequence[Any] | None]


def replay(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any], rule: Rule | None = None) -> list[Any]:
    """The outputs of ``jaxpr`` in traceable JAX, with every call opened and every loop unrolled.

    ``rule(equation, operands)`` may return the results of an equation to put in their place, or ``None``.
    """
    values: dict[Var, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        results = None if rule is None else rule(equation, operands)
        if results is None:
            results = results_of(equation, operands, rule)
        for variable, result in zip(equation.outvars, results, strict=True):
            if not isinstance(variable, DropVar):
                values[variable] = result
    return [read(atom) for atom in jaxpr.outvars]


def results_of(equation: Any, operands: Sequence[Any], rule: Rule | None) -> Sequence[Any]:
    """The results of one equation; programs it calls are replayed."""
    name = equation.primitive.name
    if name in CALLS:
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        return replay(*opened(inner), operands, rule)
    if name in CUSTOM_RULES:
        if is_logaddexp(equation):
            a, b = jnp.broadcast_arrays(*operands)
            return [b - jax.lax.log(jax.lax.logistic(b - a))]
        return replay(*opened(equation.params[CUSTOM_RULES[name]]), operands, rule)
    if name == "scan":
        return unrolled_scan(equation.params, operands, rule)
    if name == "cond":
        raise UnsupportedProgramError(
            "the loss branches with jax.lax.cond or switch, which is not supported: use jnp.where"
        )
    if name == "while":
        raise UnsupportedProgramError(
            "the loss loops with jax.lax.while_loop, which is not supported: "
            "write loops of a fixed number of steps (lax.scan, or fori_loop with fixed bounds)"
        )
    if "callback" in name:
        raise UnsupportedProgramError("the loss calls back into Python (pure_callback); write it in JAX")
    if name in REWRITTEN:
        return REWRITTEN[name](operands, equation.params)
    results = equation.primitive.bind(*operands, **equation.params)
    return results if equation.primitive.multiple_results else [results]


def stacked(operands: Sequence[Any], parameters: dict[str, Any]) -> list[Any]:
    """``jnp.stack`` as a concatenation."""
    axis = parameters["axis"]
    return [jax.lax.concatenate([jax.lax.expand_dims(x, [axis]) for x in operands], axis)]


def unstacked(operands: Sequence[Any], parameters: dict[str, Any]) -> list[Any]:
    """``jnp.unstack`` as slices."""
    (array,), axis = operands, parameters["axis"]
    slices = [jax.lax.slice_in_dim(array, i, i + 1, axis=axis) for i in range(array.shape[axis])]
    return [jax.lax.squeeze(part, [axis]) for part in slices]


def tiled(operands: Sequence[Any], parameters: dict[str, Any]) -> list[Any]:
    """``jnp.tile`` as concatenations."""
    (array,) = operands
    for axis, count in enumerate(parameters["reps"]):
        array = (
            jax.lax.concatenate([array] * count, axis) if count else jax.lax.slice_in_dim(array, 0, 0, axis=axis)
        )
    return [array]


# Primitives written with others, so that everything that reads flat programs has fewer to know.
REWRITTEN: dict[str, Callable[[Sequence[Any], dict[str, Any]], list[Any]]] = {
    "stack": stacked,
    "unstack": unstacked,
    "tile": tiled,
}


def opened(inner: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants, of either kind of jaxpr that a call may hold."""
    return (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())


def is_logaddexp(equation: Any) -> bool:
    """Whether a function with its own derivative rule is JAX's ``logaddexp``."""
    return equation.primitive.name == "custom_jvp_call" and data_flow(equation) == flow_of_logaddexp()


@functools.cache
def flow_of_logaddexp() -> list[Any]:
    """The data flow of JAX's formula of ``logaddexp``."""
    scalar = jax.ShapeDtypeStruct((), np.float64)
    with float64():
        return data_flow(jax.make_jaxpr(jnp.logaddexp)(scalar, scalar).jaxpr.eqns[0])


def data_flow(equation: Any) -> list[Any]:
    """Which primitive feeds which in a called program, whatever the shapes."""
    inner, consts = opened(equation.params["call_jaxpr"])
    return flow_of(inner, consts)


def flow_of(jaxpr: Any, consts: Sequence[Any]) -> list[Any]:
    """Which primitive feeds which in a program, and every number in it, whatever the shapes."""
    number: dict[Any, Any] = {variable: index for index, variable in enumerate(jaxpr.invars)}
    number |= {v: number_in_words(c) for v, c in zip(jaxpr.constvars, consts, strict=True)}
    flow: list[Any] = []
    for step in jaxpr.eqns:
        operands = [number_in_words(a.val) if isinstance(a, Literal) else number[a] for a in step.invars]
        if step.primitive.name == "broadcast_in_dim" or is_idle_conversion(step):
            number[step.outvars[0]] = operands[0]
            continue
        flow.append((step.primitive.name, *operands))
        for variable in step.outvars:
            number[variable] = (len(flow), step.primitive.name)
    outputs = [number_in_words(a.val) if isinstance(a, Literal) else number[a] for a in jaxpr.outvars]
    return [*flow, outputs]


def number_in_words(value: Any) -> str:
    """A constant as text: one number if all its elements are the same."""
    array = np.asarray(value)
    same = array.size > 0 and bool(np.all(array == array.ravel()[0]))
    return repr(array.ravel()[0].item()) if same else f"{array.dtype}{array.shape}{array.tobytes().hex()}"


def is_idle_conversion(equation: Any) -> bool:
    """Whether an equation converts float64 numbers to float64 numbers."""
    return equation.primitive.name == "convert_element_type" and (
        equation.invars[0].aval.dtype == equation.outvars[0].aval.dtype == np.float64
    )


def unrolled_scan(parameters: dict[str, Any], operands: Sequence[Any], rule: Rule | None) -> list[Any]:
    """The results of a scan, its steps written out."""
    length, n_consts, n_carry = parameters["length"], parameters["num_consts"], parameters["num_carry"]
    if length > LONGEST_LOOP:
        raise UnsupportedProgramError(
            f"a loop of {length} steps is too long to be written out ({LONGEST_LOOP} at most)"
        )
    body, consts = opened(parameters["jaxpr"])
    fixed = list(operands[:n_consts])
    carry = list(operands[n_consts : n_consts + n_carry])
    sequences = operands[n_consts + n_carry :]
    collected: list[list[Any]] = []
    for step in reversed(range(length)) if parameters["reverse"] else range(length):
        slices = [jax.lax.squeeze(jax.lax.slice_in_dim(s, step, step + 1), [0]) for s in sequences]
        results = replay(body, consts, [*fixed, *carry, *slices], rule)
        carry = results[:n_carry]
        collected.append(results[n_carry:])
    if parameters["reverse"]:
        collected.reverse()
    if length == 0:
        shapes = [(0, *v.aval.shape) for v in body.outvars[n_carry:]]
        return [
            *carry,
            *(jnp.zeros(shape, v.aval.dtype) for shape, v in zip(shapes, body.outvars[n_carry:], strict=True)),
        ]
    stacked = [
        jnp.concatenate([jnp.expand_dims(item, 0) for item in items]) for items in zip(*collected, strict=True)
    ]
    return [*carry, *stacked]

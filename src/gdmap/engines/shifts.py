"""Shifts by a maximum that leave the result as it is (softmax, log-sum-exp): no kinks, whatever the maximum is.

A maximum ``c = max(x)`` is such a shift if the outputs of the program stay the same when any other number is put
in its place. That is shown by following ``c``: a value may be free of it, contain it as a term ``+ k c`` or as a
factor ``exp(k c)``, and every operation must turn these into one another.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from gdmap.engines.balls import structure
from gdmap.engines.balls.evaluate import discrete, is_discrete, numpy_array

FREE, TERM, FACTOR = 0, 1, 2
# How often a shift is contained is counted in multiples of 2^-10 below 2^15: sums and products are exact.
FINEST, LARGEST = 2.0**10, 2.0**15

COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")


class Trace(NamedTuple):
    """How each element of an array contains the shift: as what, which element of it, how many times.

    ``bare`` marks elements that are the shift itself.
    """

    kind: np.ndarray
    element: np.ndarray
    times: np.ndarray
    bare: np.ndarray


class NotAShift(Exception):  # noqa: N818
    """The program depends on the number put in place of the maximum."""


class Shifts(NamedTuple):
    """The equations that are shifts, and the ``stop_gradient`` of them, by position in the program."""

    maxima: tuple[int, ...]
    stopped: frozenset[int]


def shifts(program: ClosedJaxpr) -> Shifts:
    """The maxima of a flat program (``reduce_max``, ``reduce_min``) on whose value its outputs do not depend."""
    maxima, stopped = [], set()
    candidates = [
        index for index, equation in enumerate(program.jaxpr.eqns)
        if equation.primitive.name in ("reduce_max", "reduce_min")
        and np.issubdtype(equation.outvars[0].aval.dtype, np.floating)
    ]  # fmt: skip
    if candidates:
        indices = integers(program)
        for index in candidates:
            try:
                stopped |= followed(program, index, indices)
            except NotAShift:
                continue
            maxima.append(index)
    return Shifts(tuple(maxima), frozenset(stopped))


def integers(program: ClosedJaxpr) -> dict[Any, np.ndarray]:
    """The integers and booleans of a flat program that depend on nothing but its constants (indices)."""
    known = {
        variable: value
        for variable, value in zip(program.jaxpr.constvars, map(numpy_array, program.consts), strict=True)
        if is_discrete(value)
    }
    for equation in program.jaxpr.eqns:
        atoms = [*equation.invars, *equation.outvars]
        if any(np.issubdtype(atom.aval.dtype, np.floating) for atom in atoms if not is_key(atom)):
            continue
        if all(isinstance(atom, Literal) or atom in known for atom in equation.invars):
            operands = [numpy_array(a.val) if isinstance(a, Literal) else known[a] for a in equation.invars]
            known.update(zip(equation.outvars, discrete(equation, operands), strict=True))
    return known


def is_key(atom: Any) -> bool:
    """Whether an operand is an array of random keys."""
    return jnp.issubdtype(atom.aval.dtype, jax.dtypes.extended)


def followed(program: ClosedJaxpr, origin: int, indices: dict[Any, np.ndarray]) -> set[int]:
    """The ``stop_gradient`` equations through which the shift passes bare, or `NotAShift`."""
    (source,) = program.jaxpr.eqns[origin].outvars
    shape = source.aval.shape
    values: dict[Any, Trace] = {
        source: Trace(
            np.full(shape, TERM),
            np.arange(int(np.prod(shape, dtype=int))).reshape(shape),
            np.ones(shape),
            np.ones(shape, bool),
        )
    }
    certain: set[Any] = set()
    stopped: set[int] = set()
    zeros = zero_arrays(program)
    for index in range(origin + 1, len(program.jaxpr.eqns)):
        equation = program.jaxpr.eqns[index]
        operands = [None if isinstance(a, Literal) else values.get(a) for a in equation.invars]
        if all(operand is None for operand in operands):
            if equation.primitive.name in structure.RULES and all(
                not isinstance(a, Literal) and a in certain for a in equation.invars
            ):
                certain.update(equation.outvars)
            continue
        name = equation.primitive.name
        if name == "stop_gradient":
            stopping = traced(operands[0], equation.invars[0])
            require(stopping.bare)
            stopped.add(index)
            result: Trace | None = stopping
        elif name == "is_finite":
            certain.update(equation.outvars)
            continue
        elif name == "select_n" and not isinstance(equation.invars[0], Literal) and equation.invars[0] in certain:
            result = operands[2]
        elif name == "select_n":
            result = chosen(equation, operands, zeros)
        elif name in COMPARISONS and any(is_zero(atom, zeros) for atom in equation.invars):
            # The sign of what contains the shift as a factor.
            for operand, atom in zip(operands, equation.invars, strict=True):
                require(traced(operand, atom).kind != TERM)
            continue
        elif name in structure.RULES:
            moved = [
                structure.RULES[name](
                    equation,
                    [moving(o, a, part, indices) for o, a in zip(operands, equation.invars, strict=True)],
                    structure.PlainMover(),
                )
                for part in range(len(Trace._fields))
            ]
            for position, variable in enumerate(equation.outvars):
                values[variable] = Trace(*(part[position] for part in moved))
            continue
        else:
            rule = RULES.get(name)
            if rule is None:
                raise NotAShift
            result = rule(equation, operands)
        if result is not None and np.any(result.kind != FREE):
            values[equation.outvars[0]] = result
    for atom in program.jaxpr.outvars:
        if not isinstance(atom, Literal) and atom in values and np.any(values[atom].kind != FREE):
            raise NotAShift
    return stopped


def zero_arrays(program: ClosedJaxpr) -> set[Any]:
    """Variables that are plain zeros, spread from a literal."""
    return {
        equation.outvars[0]
        for equation in program.jaxpr.eqns
        if equation.primitive.name == "broadcast_in_dim" and is_zero(equation.invars[0], set())
    }


def is_zero(atom: Any, zeros: set[Any]) -> bool:
    """Whether an operand is known to be zero."""
    return not np.any(np.asarray(atom.val)) if isinstance(atom, Literal) else atom in zeros


def chosen(equation: Any, operands: Sequence[Trace | None], zeros: set[Any]) -> Trace | None:
    """A choice that is itself free of the shift, among cases that contain it alike; zero has every factor."""
    require(operands[0] is None)
    cases = [
        traced(operand, atom)
        for operand, atom in zip(operands[1:], equation.invars[1:], strict=True)
        if not is_zero(atom, zeros)
    ]
    for case in cases:
        require((case.kind == cases[0].kind) & (case.times == cases[0].times))
        require((case.kind == FREE) | (case.element == cases[0].element))
        require((len(cases) == len(operands) - 1) | (case.kind != TERM))
    return result_of(*cases[0][:3]) if cases else None


def moving(operand: Trace | None, atom: Any, part: int, indices: dict[Any, np.ndarray]) -> np.ndarray:
    """A part of an operand's trace; of an index the index itself."""
    if operand is None and np.issubdtype(atom.aval.dtype, np.integer):
        if isinstance(atom, Literal):
            return np.asarray(atom.val)
        if atom not in indices:
            raise NotAShift
        return indices[atom]
    return traced(operand, atom)[part]


def traced(operand: Trace | None, atom: Any) -> Trace:
    """An operand's trace, arrays of zeros where it is free of the shift."""
    if operand is not None:
        return operand
    shape = np.shape(atom.val) if isinstance(atom, Literal) else atom.aval.shape
    return Trace(np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape), np.zeros(shape, bool))


def pair(equation: Any, operands: Sequence[Trace | None]) -> tuple[Trace, Trace]:
    """Two operands' traces, of one shape."""
    shape = equation.outvars[0].aval.shape
    a, b = (traced(o, atom) for o, atom in zip(operands, equation.invars, strict=True))
    return (
        Trace(*(np.broadcast_to(part, shape) for part in a)),
        Trace(*(np.broadcast_to(part, shape) for part in b)),
    )


def result_of(kind: np.ndarray, element: np.ndarray, times: np.ndarray) -> Trace:
    """A trace that is no longer bare; what contains the shift zero times is free of it."""
    require((np.rint(times * FINEST) == times * FINEST) & (np.abs(times) <= LARGEST))
    return Trace(np.where(times == 0, FREE, kind), element, times, np.zeros(kind.shape, bool))


def scaled(a: Trace, factor: float) -> Trace:
    """A trace that contains the shift so many times as often."""
    return result_of(a.kind, a.element, a.times * factor)


def require(condition: Any) -> None:
    """Raise `NotAShift` unless the condition holds everywhere."""
    if not np.all(condition):
        raise NotAShift


def added(a: Trace, b: Trace) -> Trace:
    """The trace of a sum."""
    one_free = (a.kind == FREE) | (b.kind == FREE)
    terms = (a.kind != FACTOR) & (b.kind != FACTOR) & (one_free | (a.element == b.element))
    factors = (a.kind == FACTOR) & (b.kind == FACTOR) & (a.element == b.element) & (a.times == b.times)
    require(terms | factors)
    kind = np.maximum(a.kind, b.kind)
    return result_of(
        kind, np.where(a.kind != FREE, a.element, b.element), np.where(factors, a.times, a.times + b.times)
    )


def multiplied(a: Trace, b: Trace) -> Trace:
    """The trace of a product."""
    one_free = (a.kind == FREE) | (b.kind == FREE)
    require((a.kind != TERM) & (b.kind != TERM) & (one_free | (a.element == b.element)))
    return result_of(np.maximum(a.kind, b.kind), np.where(a.kind != FREE, a.element, b.element), a.times + b.times)


def add_rule(equation: Any, operands: Sequence[Trace | None]) -> Trace:
    """Sums."""
    return added(*pair(equation, operands))


def sub_rule(equation: Any, operands: Sequence[Trace | None]) -> Trace:
    """Differences."""
    a, b = pair(equation, operands)
    return added(a, Trace(b.kind, b.element, np.where(b.kind == TERM, -b.times, b.times), b.bare))


def mul_rule(equation: Any, operands: Sequence[Trace | None]) -> Trace:
    """Products; terms may be multiplied by numbers."""
    a, b = pair(equation, operands)
    for trace, other in ((a, equation.invars[1]), (b, equation.invars[0])):
        if isinstance(other, Literal) and np.ndim(other.val) == 0:
            return times_number(trace, float(other.val))
    return multiplied(a, b)


def div_rule(equation: Any, operands: Sequence[Trace | None]) -> Trace:
    """Quotients."""
    a, b = pair(equation, operands)
    if isinstance(equation.invars[1], Literal) and np.ndim(equation.invars[1].val) == 0:
        divisor = float(equation.invars[1].val)
        # Only the reciprocals of powers of two are exact.
        require(abs(np.frexp(divisor)[0]) == 0.5 or not np.any(a.kind == TERM))
        return times_number(a, 1 / divisor if divisor else 1.0)
    return multiplied(a, scaled_factor(b, -1))


def times_number(a: Trace, factor: float) -> Trace:
    """The trace of a multiple: terms are multiplied, factors ``exp(k c)`` stay."""
    if np.any(a.kind == TERM):
        require(np.rint(factor * FINEST) == factor * FINEST and abs(factor) <= LARGEST)
    return result_of(a.kind, a.element, np.where(a.kind == TERM, a.times * factor, a.times))


def scaled_factor(a: Trace, factor: float) -> Trace:
    """The trace of a power of a factor."""
    require(a.kind != TERM)
    return scaled(a, factor)


def exp_rule(equation: Any, operands: Sequence[Trace | None]) -> Trace:
    """Terms become factors."""
    a = traced(operands[0], equation.invars[0])
    require(a.kind != FACTOR)
    return result_of(np.where(a.kind == TERM, FACTOR, FREE), a.element, a.times)


def log_rule(equation: Any, operands: Sequence[Trace | None]) -> Trace:
    """Factors become terms."""
    a = traced(operands[0], equation.invars[0])
    require(a.kind != TERM)
    return result_of(np.where(a.kind == FACTOR, TERM, FREE), a.element, a.times)


def power_rule(exponent: Callable[[Any], float]) -> Callable[..., Trace]:
    """The rule of a power with a fixed exponent."""
    return lambda equation, operands: scaled_factor(traced(operands[0], equation.invars[0]), exponent(equation))


def neg_rule(equation: Any, operands: Sequence[Trace | None]) -> Trace:
    """Opposite numbers."""
    a = traced(operands[0], equation.invars[0])
    return times_number(a, -1)


def abs_rule(equation: Any, operands: Sequence[Trace | None]) -> Trace:
    """Moduli of factors."""
    return scaled_factor(traced(operands[0], equation.invars[0]), 1)


def sign_rule(equation: Any, operands: Sequence[Trace | None]) -> None:
    """The sign of a factor is free of it."""
    require(traced(operands[0], equation.invars[0]).kind != TERM)


def extremum_rule(equation: Any, operands: Sequence[Trace | None]) -> Trace:
    """The larger of two that contain the shift alike."""
    for position, atom in enumerate(equation.invars):
        infinite = -np.inf if equation.primitive.name == "max" else np.inf
        if isinstance(atom, Literal) and np.all(np.asarray(atom.val) == infinite):
            return traced(operands[1 - position], equation.invars[1 - position])
    a, b = pair(equation, operands)
    require((a.kind == b.kind) & (a.element == b.element) & (a.times == b.times))
    return result_of(a.kind, a.element, a.times)


def comparison_rule(equation: Any, operands: Sequence[Trace | None]) -> None:
    """Comparisons of two that contain the shift alike are free of it."""
    a, b = pair(equation, operands)
    require((a.kind == b.kind) & ((a.kind == FREE) | ((a.element == b.element) & (a.times == b.times))))


def sum_rule(equation: Any, operands: Sequence[Trace | None]) -> Trace:
    """Sums of terms, or of equal factors."""
    a = traced(operands[0], equation.invars[0])
    axes = tuple(int(axis) for axis in equation.params["axes"])

    def first(part: np.ndarray) -> np.ndarray:
        return np.moveaxis(part, axes, range(-len(axes), 0)).reshape(*equation.outvars[0].aval.shape, -1)

    kind, element, times = map(first, (a.kind, a.element, a.times))
    if kind.shape[-1] == 0:
        raise NotAShift
    same = (kind == kind[..., :1]) & ((kind == FREE) | (element == element[..., :1]))
    require(same & ((kind != FACTOR) | (times == times[..., :1])))
    total = np.where(kind[..., 0] == TERM, times.sum(-1), times[..., 0])
    return result_of(kind[..., 0], element[..., 0], total)


def dot_rule(equation: Any, operands: Sequence[Trace | None]) -> Trace:
    """A weighted sum of elements that all contain the shift as one factor contains it so too."""
    if operands[0] is not None and operands[1] is not None:
        raise NotAShift
    side = 0 if operands[0] is not None else 1
    contract, batch = (part[side] for part in equation.params["dimension_numbers"])
    a = traced(operands[side], equation.invars[side])
    free = [axis for axis in range(a.kind.ndim) if axis not in contract and axis not in batch]
    n_other = len(equation.outvars[0].aval.shape) - len(batch) - len(free)

    def arranged(part: np.ndarray) -> np.ndarray:
        moved = np.transpose(part, [*batch, *free, *contract])
        return moved.reshape(*moved.shape[: len(batch) + len(free)], -1)

    kind, element, times = map(arranged, (a.kind, a.element, a.times))
    require(kind.shape[-1] > 0)
    require((kind == FREE) | ((kind == FACTOR) & (element == element[..., :1]) & (times == times[..., :1])))
    require(kind == kind[..., :1])
    out = []
    for part in (kind[..., 0], element[..., 0], times[..., 0]):
        inner = part.shape[: len(batch)] + ((1,) * n_other if side == 1 else ()) + part.shape[len(batch) :]
        inner += (1,) * n_other if side == 0 else ()
        out.append(np.broadcast_to(part.reshape(inner), equation.outvars[0].aval.shape))
    return result_of(*out)


def same_rule(equation: Any, operands: Sequence[Trace | None]) -> Trace:
    """What changes nothing."""
    return traced(operands[0], equation.invars[0])


RULES: dict[str, Callable[..., Trace | None]] = {
    "add": add_rule,
    "add_any": add_rule,
    "sub": sub_rule,
    "mul": mul_rule,
    "div": div_rule,
    "neg": neg_rule,
    "exp": exp_rule,
    "log": log_rule,
    "abs": abs_rule,
    "sign": sign_rule,
    "square": power_rule(lambda equation: 2),
    "sqrt": power_rule(lambda equation: 0.5),
    "rsqrt": power_rule(lambda equation: -0.5),
    "integer_pow": power_rule(lambda equation: equation.params["y"]),
    "max": extremum_rule,
    "min": extremum_rule,
    "reduce_sum": sum_rule,
    "dot_general": dot_rule,
    "copy": same_rule,
    "convert_element_type": same_rule,
    **dict.fromkeys(COMPARISONS, comparison_rule),
}

"""Bounds of the polynomial degree of every variable of a flat program in its inputs."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Literal, Var

from gdmap.engines.identities import MOVES, constant_value, shape_of
from gdmap.engines.ranges import COMPARISONS, dependent

Degree = int | None


def degrees(program: ClosedJaxpr, kinks: bool = False) -> dict[Var, Degree]:
    """For every variable of a flat program a bound of its degree as a polynomial in the inputs.

    0 says that it does not depend on them, ``None`` that it is not shown to be a polynomial. With ``kinks`` it is
    the degree once the kinks are decided: ``max(x, 0)`` is ``x`` or ``0``, a comparison is constant.
    """
    varying = dependent(program)
    known: dict[Var, Degree] = dict.fromkeys(program.jaxpr.constvars, 0)
    known |= dict.fromkeys(program.jaxpr.invars, 1)
    for equation in program.jaxpr.eqns:
        operands = [0 if isinstance(atom, Literal) else known[atom] for atom in equation.invars]
        if not any(isinstance(atom, Var) and atom in varying for atom in equation.invars):
            degree: Degree = 0
        else:
            degree = degree_of(equation, operands, kinks)
        known |= dict.fromkeys(equation.outvars, degree)
    return known


def is_masked_polynomial(program: ClosedJaxpr) -> bool:
    """Whether the outputs are polynomials once the kinks (``max``, ``abs``, comparisons ...) are decided."""
    known = degrees(program, kinks=True)
    return all(isinstance(atom, Literal) or known[atom] is not None for atom in program.jaxpr.outvars)


def degree_of(equation: Any, operands: Sequence[Degree], kinks: bool) -> Degree:
    """The degree of the results of one equation."""
    name = equation.primitive.name
    if name in PIECES and kinks:
        return largest(operands) if name in WINNERS else 0
    if name == "select_n":
        which, *branches = operands
        return largest(branches) if which == 0 or kinks else None
    if name in WITH_INDICES:
        arrays, indices = WITH_INDICES[name]
        if any(degree != 0 for degree in operands[indices]):
            return None
        return largest(operands[arrays])
    if name in MOVES or name in LINEAR:
        return largest(operands)
    if None in operands:
        return None
    rule = PRODUCTS.get(name)
    return None if rule is None else rule(equation, [degree or 0 for degree in operands])


def largest(degrees_: Sequence[Degree]) -> Degree:
    """The largest of some degrees, None if one is unknown."""
    return None if None in degrees_ else max((degree or 0 for degree in degrees_), default=0)


def power(exponent: Any, degree: int) -> Degree:
    """The degree of a power with a natural exponent."""
    return (
        int(exponent) * degree if exponent is not None and exponent >= 0 and float(exponent).is_integer() else None
    )


def scalar(atom: Any) -> Any:
    """The one number that a literal is, or None."""
    value = constant_value(atom)
    return None if value is None or value.size != 1 else value.item()


def length(equation: Any) -> int:
    """How many elements are reduced, or accumulated, into one."""
    parameters, shape = equation.params, shape_of(equation.invars[0])
    axes = parameters["axes"] if "axes" in parameters else (parameters["axis"],)
    return math.prod(shape[axis] for axis in axes)


# Sums, moves and changes of dtype.
LINEAR = {"add", "add_any", "sub", "neg", "reduce_sum", "cumsum", "reduce_window_sum", "concatenate", "pad"}
# Of these the operands in the first slice are arrays, those in the second indices.
WITH_INDICES = {
    "gather": (slice(0, 1), slice(1, None)),
    "dynamic_slice": (slice(0, 1), slice(1, None)),
    "dynamic_update_slice": (slice(0, 2), slice(2, None)),
    "scatter": (slice(0, 3, 2), slice(1, 2)),
    "scatter-add": (slice(0, 3, 2), slice(1, 2)),
    "scatter_add": (slice(0, 3, 2), slice(1, 2)),
}
PRODUCTS: dict[str, Callable[[Any, list[int]], Degree]] = {
    **{name: lambda _, degrees_: sum(degrees_) for name in ("mul", "dot_general", "conv_general_dilated")},
    "div": lambda _, degrees_: degrees_[0] if degrees_[1] == 0 else None,
    "square": lambda _, degrees_: 2 * degrees_[0],
    "integer_pow": lambda equation, degrees_: power(equation.params["y"], degrees_[0]),
    "pow": lambda equation, degrees_: power(scalar(equation.invars[1]), degrees_[0]),
    "reduce_prod": lambda equation, degrees_: length(equation) * degrees_[0],
    "cumprod": lambda equation, degrees_: length(equation) * degrees_[0],
    "convert_element_type": lambda equation, degrees_: degrees_[0] if is_real_kept(equation) else None,
}
# Once the kinks are decided these are one of their operands (up to a sign) ...
WINNERS = {
    *("max", "min", "clamp", "abs", "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min"),
    *("cummax", "cummin"),
}
# ... and these constants.
PIECES = WINNERS | set(COMPARISONS) | {"sign", "is_finite", "and", "or", "not", "xor", "reduce_and", "reduce_or"}


def is_real_kept(equation: Any) -> bool:
    """Whether a change of dtype leaves every real number as it is."""
    source, target = (v.aval.dtype for v in (equation.invars[0], equation.outvars[0]))
    return target == "float64" and source in ("float64", "bool")

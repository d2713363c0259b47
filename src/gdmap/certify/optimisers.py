"""Optimisers that treat every parameter alike and affinely: their Jacobian determinant in closed form.

Let one update take, for every coordinate ``k`` alike, the column ``s_k`` of the numbers it keeps of that parameter
(``theta_k`` first, then momenta) and the gradient ``g_k`` to ``A s_k + b g_k + d_k``, with a constant matrix ``A``
and column ``b``. With the gradient taken at ``theta_k = e' s_k`` the Jacobian is ``A (x) I + (b e') (x) H``, ``H``
the Hessian there. In an orthonormal basis of eigenvectors of ``H`` it falls into blocks ``A + h_i b e'``, and a
determinant is affine along a matrix of rank one, so

    det DG = prod_i (alpha + kappa h_i),    alpha = det A,    kappa = det(A + b e') - det A = e' adj(A) b.

Heavy ball has ``kappa = 0`` and ``alpha`` the momentum: a local diffeomorphism for every step size. Where both are
non-zero the map is as singular as gradient descent with the effective step size ``-kappa / alpha``; for Nesterov's
momentum that is the step size itself.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from gdmap.engines.balls import structure
from gdmap.engines.degrees import degrees
from gdmap.engines.identities import shape_of
from gdmap.engines.precision import is_traced
from gdmap.engines.program import UnsupportedProgramError, flat_program
from gdmap.maps.base import Map
from gdmap.maps.gradient_descent import GradientDescent
from gdmap.maps.optimiser import Optimiser

# In the limit of many updates a number below 1 to this power or more is zero.
NEARLY_INFINITE = 2**28
LARGEST_EXPONENT = 1000


class AffineUpdate(NamedTuple):
    """One update of every coordinate, ``s_k -> matrix s_k + gradient g_k + const``, exact; see the module."""

    matrix: tuple[tuple[Fraction, ...], ...]
    gradient: tuple[Fraction, ...]

    @property
    def alpha(self) -> Fraction:
        """``det A``: the determinant along directions without curvature."""
        return determinant(self.matrix)

    @property
    def kappa(self) -> Fraction:
        """``e' adj(A) b``: how the determinant changes with the curvature."""
        moved = tuple((row[0] + b, *row[1:]) for row, b in zip(self.matrix, self.gradient, strict=True))
        return determinant(moved) - self.alpha

    @property
    def effective_step_size(self) -> Fraction | None:
        """``eta`` with ``det DG = alpha^n det(I - eta H)``; None if ``alpha = 0``. 0: the Hessian does not matter.

        Negative for maps that climb.
        """
        return -self.kappa / self.alpha if self.alpha else None

    @property
    def is_always_invertible(self) -> bool:
        """Whether the Jacobian is invertible everywhere, whatever the loss (heavy ball)."""
        return self.alpha != 0 and self.kappa == 0

    @property
    def is_never_invertible(self) -> bool:
        """Whether the Jacobian is singular everywhere, whatever the loss."""
        return self.alpha == 0 and self.kappa == 0

    def explain(self) -> str:
        """The determinant in words."""
        if self.is_never_invertible:
            return "det DG = 0 everywhere: the update forgets a part of its state, whatever the loss"
        if self.is_always_invertible:
            return f"det DG = ({self.alpha})^n everywhere: a local diffeomorphism for every step size and loss"
        if self.alpha == 0:
            return f"det DG = prod ({self.kappa}) h_i over the eigenvalues of the Hessian: singular where H is"
        return (
            f"det DG = ({self.alpha})^n det(I - eta H) with eta = {self.effective_step_size}: "
            "as gradient descent with that step size"
        )


def affine_update(map_: Map, exact_decimals: bool = False) -> AffineUpdate | None:
    """The update of a map as an affine one, the same for every coordinate; None if that is not shown.

    It is read from the trace of the update in exact rational arithmetic, the gradient being an input of its own.
    Floating numbers mean the binary numbers they are; with ``exact_decimals`` the decimals that they are printed
    as (``0.1`` is 1/10). None too for maps that depend on time.
    """
    exact: Callable[[float], Fraction] = decimal if exact_decimals else Fraction
    if is_traced(map_):
        return None
    if isinstance(map_, GradientDescent):
        return AffineUpdate(((Fraction(1),),), (-exact(float(map_.step_size)),))
    if not isinstance(map_, Optimiser) or map_.depends_on_time:
        return None
    n = map_.objective.dim
    slots, rest = divmod(map_.state_dim, n)
    if rest or any(map_.layout.leaves[place].shape != (n,) for place in map_.layout.of_kind("float")):
        return None
    try:
        program = flat_program(
            lambda state, gradient: map_.update_given(state, gradient, jnp.zeros((), int)), (map_.state_dim,), (n,)
        )
        if degrees(program)[program.jaxpr.outvars[0]] not in (0, 1):
            return None
        return uniform_rows(AffineForms(program, n, exact, map_.limit).output(), n, slots)
    except (UnsupportedProgramError, NotAffineError, KeyError):
        return None


def decimal(number: float) -> Fraction:
    """The decimal number as which a float is printed."""
    return Fraction(repr(float(number)))


def uniform_rows(output: "Forms", n: int, slots: int) -> AffineUpdate | None:
    """The matrix and gradient column, if they are the same for every coordinate."""
    coordinate, label = output.coordinate.reshape(slots, n), output.label.reshape(slots, n)
    rows = []
    for slot in range(slots):
        found = {output.table[index][:-1] for index in np.unique(label[slot])}
        constant = coordinate[slot] == FREE
        if len(found) != 1 or np.any((coordinate[slot] != np.arange(n)) & ~constant):
            return None
        (row,) = found
        if np.any(constant) and any(row):
            return None
        rows.append(row)
    return AffineUpdate(tuple(row[:-1] for row in rows), tuple(row[-1] for row in rows))


def determinant(matrix: Sequence[Sequence[Fraction]]) -> Fraction:
    """A determinant in exact arithmetic, by elimination."""
    rows = [list(row) for row in matrix]
    result = Fraction(1)
    for column in range(len(rows)):
        pivot = next((i for i in range(column, len(rows)) if rows[i][column]), None)
        if pivot is None:
            return Fraction(0)
        if pivot != column:
            rows[column], rows[pivot] = rows[pivot], rows[column]
            result = -result
        result *= rows[column][column]
        for i in range(column + 1, len(rows)):
            factor = rows[i][column] / rows[column][column]
            rows[i] = [x - factor * y for x, y in zip(rows[i], rows[column], strict=True)]
    return result


class NotAffineError(Exception):
    """The update is not shown to be affine, coordinate by coordinate."""


# The coordinate of elements that depend on no input.
FREE = -1


class Forms(NamedTuple):
    """The elements of a variable as affine functions of the inputs of one coordinate each.

    ``table[label]`` holds the coefficients: of the kept numbers, of the gradient, and a constant.
    """

    coordinate: np.ndarray
    label: np.ndarray
    table: list[tuple[Fraction, ...]]

    @property
    def is_constant(self) -> bool:
        """Whether no element depends on an input."""
        return bool(np.all(self.coordinate == FREE))


class AffineForms:
    """Evaluation of an update's program ``(state, gradient) -> state`` in affine forms."""

    def __init__(self, program: ClosedJaxpr, n: int, exact: Callable[[float], Fraction], limit: bool) -> None:
        self.program, self.exact, self.limit = program, exact, limit
        state, gradient = program.jaxpr.invars
        self.slots = math.prod(shape_of(state)) // n
        width = self.slots + 2
        units = [tuple(Fraction(int(i == j)) for j in range(width)) for i in range(width)]
        labels = np.repeat(np.arange(self.slots), n)
        self.values: dict[Any, Forms] = {
            state: Forms(np.tile(np.arange(n), self.slots), labels, units),
            gradient: Forms(np.arange(n), np.full(n, self.slots), units),
        }
        for variable, value in zip(program.jaxpr.constvars, program.consts, strict=True):
            self.values[variable] = self.constant(value)

    def output(self) -> Forms:
        """The next state."""
        for equation in self.program.jaxpr.eqns:
            operands = [
                self.constant(atom.val) if isinstance(atom, Literal) else self.values[atom]
                for atom in equation.invars
            ]
            for variable, result in zip(equation.outvars, self.results(equation, operands), strict=True):
                self.values[variable] = result
        (output,) = self.program.jaxpr.outvars
        return self.constant(output.val) if isinstance(output, Literal) else self.values[output]

    def constant(self, value: Any) -> Forms:
        """Constants, exactly."""
        array = np.asarray(value)
        if array.dtype.kind not in "fiub" or not np.all(np.isfinite(array)):
            raise NotAffineError
        if array.dtype.kind == "f" and array.dtype != np.float64:
            array = array.astype(np.float64)
        numbers, label = np.unique(array, return_inverse=True)
        convert = self.exact if array.dtype.kind == "f" else Fraction
        return self.exactly(label.reshape(array.shape), [convert(x.item()) for x in numbers])

    def exactly(self, label: np.ndarray, numbers: Sequence[Fraction]) -> Forms:
        """Exact numbers, by label."""
        zeros = (Fraction(0),) * (self.slots + 1)
        return Forms(np.full(label.shape, FREE), label, [(*zeros, Fraction(x)) for x in numbers])

    def results(self, equation: Any, operands: list[Forms]) -> list[Forms]:
        """The results of one equation."""
        name = equation.primitive.name
        if name in structure.RULES:
            return self.moved(equation, operands)
        if name in ("add", "add_any", "sub"):
            sign = -1 if name == "sub" else 1

            def total(x: tuple[Fraction, ...], y: tuple[Fraction, ...]) -> tuple[Fraction, ...]:
                return tuple(a + sign * b for a, b in zip(x, y, strict=True))

            return [self.paired(equation, operands[0], operands[1], total)]
        if name == "mul":
            if not any(operand.is_constant for operand in operands):
                raise NotAffineError
            one, other = operands if operands[1].is_constant else operands[::-1]
            return [self.paired(equation, one, other, lambda x, y: tuple(a * y[-1] for a in x))]
        if name == "div" and operands[1].is_constant:
            return [self.paired(equation, operands[0], operands[1], over)]
        if name == "neg":
            return [each(operands[0], lambda x: tuple(-a for a in x))]
        if name in ("copy", "copy_p", "stop_gradient", "optimization_barrier"):
            return operands
        if name == "convert_element_type":
            target = np.dtype(equation.params["new_dtype"])
            source = np.dtype(equation.invars[0].aval.dtype)
            if target == np.float64 or (source.kind in "iub" and target.kind in "iub"):
                return operands
            raise NotAffineError
        if name == "select_n" and operands[0].is_constant:
            return [self.selected(equation, operands)]
        if name == "integer_pow" and equation.params["y"] == 1:
            return operands
        return [self.of_constants(equation, operands)]

    def moved(self, equation: Any, operands: list[Forms]) -> list[Forms]:
        """Primitives that move elements; the tables of several operands are joined."""
        n_arrays = {"concatenate": len(operands), "pad": 2, "dynamic_update_slice": 2, "iota": 0}.get(
            equation.primitive.name, 1
        )
        indices = []
        for operand, atom in zip(operands[n_arrays:], equation.invars[n_arrays:], strict=True):
            if not operand.is_constant:
                raise NotAffineError
            numbers = np.array([int(row[-1]) for row in operand.table])
            indices.append(numbers[operand.label].astype(np.dtype(atom.aval.dtype)))
        rule, mover = structure.RULES[equation.primitive.name], structure.PlainMover()
        if n_arrays == 0:
            return [self.constant(value) for value in rule(equation, [], mover)]
        starts = np.cumsum([0, *(len(operand.table) for operand in operands[:n_arrays])])
        arrays = operands[:n_arrays]
        labels = rule(
            equation, [*(a.label + start for a, start in zip(arrays, starts[:-1], strict=True)), *indices], mover
        )
        coordinates = rule(equation, [*(a.coordinate for a in arrays), *indices], mover)
        table = [row for a in arrays for row in a.table]
        return [Forms(c, label, table) for c, label in zip(coordinates, labels, strict=True)]

    def paired(
        self, equation: Any, one: Forms, other: Forms, operation: Callable[..., tuple[Fraction, ...]]
    ) -> Forms:
        """An operation on two operands, of one coordinate each."""
        shape = shape_of(equation.outvars[0])
        a, b, p, q = (
            np.broadcast_to(x, shape) for x in (one.label, other.label, one.coordinate, other.coordinate)
        )
        if np.any((p != q) & (p != FREE) & (q != FREE)):
            raise NotAffineError
        pairs, label = np.unique(a * len(other.table) + b, return_inverse=True)
        table = [operation(one.table[i // len(other.table)], other.table[i % len(other.table)]) for i in pairs]
        return Forms(np.maximum(p, q), label.reshape(shape), table)

    def selected(self, equation: Any, operands: list[Forms]) -> Forms:
        """A choice by constants."""
        which, *branches = operands
        shape = shape_of(equation.outvars[0])
        numbers = np.array([int(row[-1]) for row in which.table])
        choice = np.broadcast_to(numbers[which.label], shape)
        starts = np.cumsum([0, *(len(branch.table) for branch in branches)])
        labels = [np.broadcast_to(b.label + start, shape) for b, start in zip(branches, starts[:-1], strict=True)]
        coordinates = [np.broadcast_to(b.coordinate, shape) for b in branches]
        table = [row for branch in branches for row in branch.table]
        return Forms(np.choose(choice, coordinates), np.choose(choice, labels), table)

    def of_constants(self, equation: Any, operands: list[Forms]) -> Forms:
        """Other operations, on constants alone, where they are exact."""
        rule = ON_CONSTANTS.get(equation.primitive.name)
        if rule is None or not all(operand.is_constant for operand in operands):
            raise NotAffineError
        zeros = (Fraction(0),) * (self.slots + 1)

        def apply(*rows: tuple[Fraction, ...]) -> tuple[Fraction, ...]:
            value = rule(equation, self.limit, *(row[-1] for row in rows))
            if value is None:
                raise NotAffineError
            return (*zeros, Fraction(value))

        if len(operands) == 1:
            return each(operands[0], apply)
        return self.paired(equation, operands[0], operands[1], apply)


def each(operand: Forms, operation: Callable[..., tuple[Fraction, ...]]) -> Forms:
    """An operation on every row of the table."""
    return operand._replace(table=[operation(row) for row in operand.table])


def over(x: tuple[Fraction, ...], y: tuple[Fraction, ...]) -> tuple[Fraction, ...]:
    """A quotient by a constant."""
    if y[-1] == 0:
        raise NotAffineError
    return tuple(a / y[-1] for a in x)


def power(base: Fraction, exponent: Fraction, limit: bool) -> Fraction | None:
    """An integer power; zero where the exponent stands for infinitely many updates."""
    if exponent.denominator != 1 or (base == 0 and exponent <= 0):
        return None
    if limit and exponent >= NEARLY_INFINITE and abs(base) < 1:
        return Fraction(0)
    return base ** int(exponent) if abs(exponent) <= LARGEST_EXPONENT else None


def square_root(x: Fraction) -> Fraction | None:
    """A square root, if it is rational."""
    if x < 0:
        return None
    root = Fraction(math.isqrt(x.numerator), math.isqrt(x.denominator))
    return root if root * root == x else None


ON_CONSTANTS: dict[str, Callable[..., Any]] = {
    "integer_pow": lambda equation, limit, x: power(x, Fraction(equation.params["y"]), limit),
    "pow": lambda equation, limit, x, y: power(x, y, limit),
    "square": lambda equation, limit, x: x * x,
    "sqrt": lambda equation, limit, x: square_root(x),
    "abs": lambda equation, limit, x: abs(x),
    "sign": lambda equation, limit, x: (x > 0) - (x < 0),
    "max": lambda equation, limit, x, y: max(x, y),
    "min": lambda equation, limit, x, y: min(x, y),
    "lt": lambda equation, limit, x, y: x < y,
    "le": lambda equation, limit, x, y: x <= y,
    "gt": lambda equation, limit, x, y: x > y,
    "ge": lambda equation, limit, x, y: x >= y,
    "eq": lambda equation, limit, x, y: x == y,
    "ne": lambda equation, limit, x, y: x != y,
    "and": lambda equation, limit, x, y: int(x) & int(y),
    "or": lambda equation, limit, x, y: int(x) | int(y),
    "is_finite": lambda equation, limit, x: 1,
}

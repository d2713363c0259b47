"""Which variables of a flat program hold the same elements, moved about: value numbering and index arrays."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, DropVar, Literal, Var

from gdmap.engines.balls import structure

# Primitives that only move elements of their first operand.
MOVES = {
    "broadcast_in_dim",
    "copy",
    "copy_p",
    "expand_dims",
    "optimization_barrier",
    "reshape",
    "rev",
    "slice",
    "split",
    "squeeze",
    "stop_gradient",
    "transpose",
}


# Larger arrays are not followed element by element.
LARGEST_INDEX = 10_000_000
ELEMENTWISE = {"add", "sub", "mul", "div", "neg", "integer_pow", "square", "sqrt", "rsqrt", "exp", "log", "tanh"}


class Identities:
    """Which variables hold the same elements, moved about: value numbering and index arrays."""

    def __init__(self, program: ClosedJaxpr) -> None:
        self.program = program
        self.makers: dict[Var, Any] = {}
        for equation in program.jaxpr.eqns:
            for variable in equation.outvars:
                self.makers[variable] = equation
        self.canonical: dict[Var, Var] = {}
        self.number(program)
        self.origins: dict[Var, tuple[Var, np.ndarray | None]] = {}
        self.alike: dict[Any, Var] = {}
        for equation in program.jaxpr.eqns:
            for variable in equation.outvars:
                if self.canonical.get(variable, variable) is variable and not isinstance(variable, DropVar):
                    self.origins[variable] = self.traced(equation, variable)

    def number(self, program: ClosedJaxpr) -> None:
        """Give variables that are computed alike one representative."""
        seen: dict[Any, Sequence[Var]] = {}
        for equation in program.jaxpr.eqns:
            inputs = tuple(
                ("literal", np.asarray(atom.val).tobytes(), str(atom.aval))
                if isinstance(atom, Literal)
                else self.canonical.get(atom, atom)
                for atom in equation.invars
            )
            key = (equation.primitive.name, inputs, str(sorted(equation.params.items(), key=str)))
            if any(has_program(x) or isinstance(x, np.ndarray) for x in equation.params.values()):
                continue
            outputs = seen.setdefault(key, equation.outvars)
            for variable, representative in zip(equation.outvars, outputs, strict=True):
                if not isinstance(variable, DropVar) and not isinstance(representative, DropVar):
                    self.canonical[variable] = representative

    def maker(self, atom: Any) -> Any:
        """The equation that computes a variable, or None."""
        return None if isinstance(atom, Literal) else self.makers.get(self.canonical.get(atom, atom))

    def origin(self, atom: Any) -> tuple[Var, np.ndarray | None] | None:
        """The variable whose elements these are, and the flat index of each (None: all in order)."""
        if isinstance(atom, Literal):
            return None
        atom = self.canonical.get(atom, atom)
        return self.origins.get(atom, (atom, None))

    def traced(self, equation: Any, variable: Var) -> tuple[Var, np.ndarray | None]:
        """`origin` from those of the operands."""
        step = self.step(variable)
        if step is not None and size_of(variable) <= LARGEST_INDEX and size_of(step[1]) <= LARGEST_INDEX:
            mover, source = step
            found = self.indices(source)
            assert found is not None
            root, index = found
            return root, index if mover is None else rearranged(mover, index)[equation.outvars.index(variable)]
        if equation.primitive.name in ELEMENTWISE and size_of(variable) <= LARGEST_INDEX:
            key, is_uniform = self.key(equation, variable)
            first = self.alike.setdefault(key, variable)
            if first is not variable:
                return first, np.zeros(shape_of(variable), int) if is_uniform else None
        return variable, None

    def key(self, equation: Any, variable: Var) -> tuple[Any, bool]:
        """A name for the elements of an elementwise result, and whether they are one number repeated."""
        parts: list[Any] = []
        places: list[np.ndarray] = []
        for atom in equation.invars:
            found = self.indices(atom)
            if found is None:
                parts.append((np.asarray(atom.val).tobytes(), str(atom.aval)))
                places.append(np.arange(size_of(atom)).reshape(shape_of(atom)))
            else:
                parts.append(found[0])
                places.append(found[1])
        is_uniform = size_of(variable) > 0 and all(np.all(place == place.flat[0]) for place in places)
        shape = () if is_uniform else shape_of(variable)
        indices = (np.broadcast_to(p.flat[0] if is_uniform else p, shape).tobytes() for p in places)
        parameters = str(sorted(equation.params.items(), key=str))
        return (equation.primitive.name, parameters, shape, *parts, *indices), is_uniform

    def step(self, variable: Var) -> tuple[Any, Var] | None:
        """One move back: the equation that moves elements (None: it leaves them as they are) and its source."""
        equation = self.makers.get(variable)
        if equation is None:
            return None
        name, inputs = equation.primitive.name, equation.invars
        if name in MOVES and isinstance(inputs[0], Var):
            return equation, inputs[0]
        if name == "convert_element_type":
            return (None, inputs[0]) if is_float64(inputs[0]) and is_float64(variable) else None
        if name == "max":  # max(-inf, x) is x
            for one, other in (inputs, reversed(inputs)):
                constant = isinstance(one, Literal) and bool(np.all(np.asarray(one.val) == -np.inf))
                if constant and isinstance(other, Var) and shape_of(other) == shape_of(variable):
                    return None, other
        if name == "select_n" and len(inputs) == 3 and isinstance(inputs[2], Var):
            test = self.maker(inputs[0])
            if test is not None and test.primitive.name == "is_finite":  # where(is_finite(x), x, .) is x
                kept = self.canonical.get(inputs[2], inputs[2])
                if self.canonical.get(test.invars[0], test.invars[0]) is kept:
                    return None, inputs[2]
        return None

    def are_same(self, one: Any, other: Any) -> bool:
        """Whether two atoms hold the same elements in the same places."""
        if isinstance(one, Literal) or isinstance(other, Literal) or one.aval.shape != other.aval.shape:
            return False
        left, right = self.indices(one), self.indices(other)
        return left is not None and right is not None and left[0] is right[0] and np.array_equal(left[1], right[1])

    def indices(self, atom: Any) -> tuple[Var, np.ndarray] | None:
        """`origin` with the indices written out."""
        found = self.origin(atom)
        if found is None:
            return None
        root, index = found
        return root, np.arange(size_of(root)).reshape(shape_of(root)) if index is None else index

    def group_rows(self, equation: Any) -> tuple[Var, np.ndarray] | None:
        """For a reduction over axes: the source of its operand and, row by row, the indices reduced together."""
        found = self.indices(equation.invars[0])
        if found is None:
            return None
        root, index = found
        axes = tuple(equation.params["axes"])
        rest = [axis for axis in range(index.ndim) if axis not in axes]
        count = math.prod(index.shape[axis] for axis in axes)
        groups = math.prod(index.shape[axis] for axis in rest)
        return root, np.transpose(index, (*rest, *axes)).reshape(groups, count)


def contained(elements: np.ndarray, groups: np.ndarray, rows: np.ndarray) -> bool:
    """Whether each element occurs in the row of its group."""
    base = int(max(np.max(elements, initial=0), np.max(rows, initial=0))) + 1
    return bool(np.all(np.isin(groups * base + elements, np.arange(len(rows))[:, None] * base + rows)))


def constant_value(atom: Any) -> np.ndarray | None:
    """The value of a literal, None for a variable."""
    return np.asarray(atom.val) if isinstance(atom, Literal) else None


def is_float64(atom: Any) -> bool:
    """Whether an operand is a variable of doubles."""
    return isinstance(atom, Var) and np.dtype(atom.aval.dtype) == np.float64  # type: ignore[attr-defined]


def has_program(parameter: Any) -> bool:
    """Whether a parameter of a primitive is a program."""
    return hasattr(parameter, "eqns") or hasattr(parameter, "jaxpr")


def shape_of(atom: Any) -> tuple[int, ...]:
    """The shape of a variable or literal."""
    return atom.aval.shape


def size_of(atom: Any) -> int:
    """The number of elements."""
    return math.prod(shape_of(atom))


def rearranged(equation: Any, array: np.ndarray) -> list[np.ndarray]:
    """The results of a primitive that only moves elements of its first operand, for an array of any dtype."""
    rule = structure.RULES.get(equation.primitive.name)
    return [array] if rule is None else rule(equation, [array], structure.PlainMover())

"""Evaluating a flat program in an arithmetic that encloses: balls, verified doubles, exact rationals."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, DropVar, Literal, Var

from gdmap.engines.balls import structure
from gdmap.engines.balls.arithmetic import EITHER, UNDECIDED, Arithmetic, UndecidedError
from gdmap.engines.precision import float64
from gdmap.engines.program import UnsupportedProgramError


class Decide(Protocol):
    """What is asked at an equation that a piece of the program turns on (see `gdmap.engines.pieces`)."""

    def __call__(self, index: int, equation: Any, operands: Sequence[Any], evaluator: "Evaluator") -> list[Any] | None:
        """The results of the equation, or ``None`` to have it evaluated as it stands."""
        ...


def evaluate(program: ClosedJaxpr, inputs: Sequence[Any], arithmetic: Arithmetic, decide: Decide | None = None) -> list[Any]:
    """The outputs of a flat program in ``arithmetic``.

    ``inputs`` are values of the arithmetic; booleans and integers are NumPy arrays (masks as int8 with 0, 1 and
    2 for either), float64 NumPy arrays are exact numbers. So are the outputs.

    Raises
    ------
    UndecidedError
        Where a comparison, a denominator or the domain of a function is not decided at this precision.
    UnsupportedProgramError
        For a primitive that has no rule, by name.
    """
    evaluator = Evaluator(program, arithmetic)
    with arithmetic.active():
        return evaluator.run(inputs, decide)


class Evaluator:
    """One program in one arithmetic; equations that do not depend on the ``moving`` inputs are evaluated once."""

    def __init__(self, program: ClosedJaxpr, arithmetic: Arithmetic, moving: Sequence[int] = ()) -> None:
        self.program, self.arithmetic = program, arithmetic
        self.values: dict[Var, Any] = dict(zip(program.jaxpr.constvars, map(numpy_array, program.consts), strict=True))
        moved: set[Any] = {program.jaxpr.invars[index] for index in moving}
        self.fixed_equations, self.moving_equations = [], []
        for index, equation in enumerate(program.jaxpr.eqns):
            if any(not isinstance(atom, Literal) and atom in moved for atom in equation.invars):
                moved.update(equation.outvars)
                self.moving_equations.append((index, equation))
            else:
                self.fixed_equations.append((index, equation))
        self.moved = moved

    def run(self, inputs: Sequence[Any], decide: Decide | None = None) -> list[Any]:
        """The outputs for these inputs."""
        self.start(inputs, decide)
        return self.outputs(inputs)

    def start(self, inputs: Sequence[Any], decide: Decide | None = None) -> None:
        """Evaluate what does not depend on the moving inputs."""
        for variable, value in zip(self.program.jaxpr.invars, inputs, strict=True):
            if variable not in self.moved:
                self.values[variable] = value
        self.execute(self.fixed_equations, self.values, decide)

    def outputs(self, inputs: Sequence[Any]) -> list[Any]:
        """The outputs for these moving inputs, after `start`."""
        values = dict(self.values)
        for variable, value in zip(self.program.jaxpr.invars, inputs, strict=True):
            values[variable] = value
        self.execute(self.moving_equations, values, None)
        return [self.read(values, atom) for atom in self.program.jaxpr.outvars]

    def execute(self, equations: Sequence[tuple[int, Any]], values: dict[Var, Any], decide: Decide | None) -> None:
        last = last_uses(equations) if equations is self.moving_equations else {}
        for position, (index, equation) in enumerate(equations):
            operands = [self.read(values, atom) for atom in equation.invars]
            results = None if decide is None else decide(index, equation, operands, self)
            if results is None:
                results = self.apply(equation, operands)
            for variable, result in zip(equation.outvars, results, strict=True):
                if not isinstance(variable, DropVar):
                    values[variable] = result
            for variable in last.get(position, ()):
                if variable not in self.program.jaxpr.outvars:
                    values.pop(variable, None)

    def read(self, values: dict[Var, Any], atom: Any) -> Any:
        """The value of an operand."""
        if isinstance(atom, Literal):
            return np.asarray(atom.val)
        value = values[atom]
        if isinstance(value, np.ndarray) and value.dtype == np.float64 and value.size > 64 and atom in self.values:
            # Large constants (the data) become numbers of the arithmetic once, not at each use.
            value = values[atom] = self.values[atom] = self.arithmetic.constant(value)
        return value

    def apply(self, equation: Any, operands: Sequence[Any]) -> list[Any]:
        """The results of one equation."""
        name = equation.primitive.name
        if all(is_discrete(operand) for operand in operands) and all(
            not np.issubdtype(variable.aval.dtype, np.floating) for variable in equation.outvars
        ):
            return discrete(equation, operands)
        rule = RULES.get(name)
        if rule is None:
            raise UnsupportedProgramError(
                f"the trace uses the primitive '{name}', which has no rule in ball arithmetic: "
                "write the loss without it, or ask for it"
            )
        results = rule(self, equation, *operands)
        return results if isinstance(results, list) else [results]

    def number(self, operand: Any) -> Any:
        """An operand as a value of the arithmetic: float64 arrays are exact constants."""
        return self.arithmetic.constant(operand) if is_plain(operand) else operand

    def decided(self, signs: np.ndarray) -> np.ndarray:
        """``signs``, or an error if some are not decided."""
        if np.any(signs == UNDECIDED):
            raise UndecidedError("a comparison that this precision does not decide")
        return signs


def last_uses(equations: Sequence[tuple[int, Any]]) -> dict[int, list[Any]]:
    """Which variables are used for the last time by which equation."""
    last: dict[Any, int] = {}
    for position, (_, equation) in enumerate(equations):
        for atom in equation.invars:
            if not isinstance(atom, Literal):
                last[atom] = position
    made = {variable for _, equation in equations for variable in equation.outvars}
    by_position: dict[int, list[Any]] = {}
    for variable, position in last.items():
        if variable in made:
            by_position.setdefault(position, []).append(variable)
    return by_position


def numpy_array(value: Any) -> np.ndarray:
    """A constant of a program as a NumPy array; float32 numbers are float64 numbers too."""
    array = np.asarray(value)
    return array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array


def is_plain(operand: Any) -> bool:
    """Whether an operand is an array of plain numbers and not a value of an arithmetic."""
    return isinstance(operand, np.ndarray) and operand.dtype != object


def is_discrete(operand: Any) -> bool:
    """Whether an operand is an array of booleans, masks or integers."""
    return is_plain(operand) and not np.issubdtype(operand.dtype, np.floating)


# Booleans and integers --------------------------------------------------------------------------------------------


def discrete(equation: Any, operands: Sequence[np.ndarray]) -> list[Any]:
    """The results of an equation on booleans, masks and integers alone."""
    name = equation.primitive.name
    if name in LOGIC and equation.outvars[0].aval.dtype == bool:
        return [LOGIC[name](*(operand.astype(np.int8) for operand in operands))]
    if name == "select_n" and operands[0].dtype == np.int8:
        if np.any(operands[0] == EITHER):
            raise UndecidedError("an integer that depends on an undecided comparison")
    rule = structure.RULES.get(name)
    if rule is not None:
        return rule(equation, operands, structure.PlainMover())
    return with_jax(equation, operands)


def with_jax(equation: Any, operands: Sequence[np.ndarray]) -> list[Any]:
    """The results of an equation on concrete arrays, by JAX itself; exact for booleans and integers."""
    with float64(), jax.ensure_compile_time_eval():
        arguments = [
            operand.astype(atom.aval.dtype) if operand.dtype != atom.aval.dtype else operand
            for operand, atom in zip(operands, equation.invars, strict=True)
        ]
        results = equation.primitive.bind(*map(jax.numpy.asarray, arguments), **equation.params)
        if not equation.primitive.multiple_results:
            results = [results]
        return [np.asarray(result) for result in results]


def logical_not(a: np.ndarray) -> np.ndarray:
    return np.where(a == EITHER, EITHER, 1 - a).astype(np.int8)


def logical_and(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    either = np.where((a == EITHER) | (b == EITHER), EITHER, 1)
    return np.where((a == 0) | (b == 0), 0, either).astype(np.int8)


def logical_or(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return logical_not(logical_and(logical_not(a), logical_not(b)))


def logical_xor(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where((a == EITHER) | (b == EITHER), EITHER, a ^ b).astype(np.int8)


LOGIC: dict[str, Callable[..., np.ndarray]] = {
    "not": logical_not,
    "and": logical_and,
    "or": logical_or,
    "xor": logical_xor,
}


# Rules ------------------------------------------------------------------------------------------------------------

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the primitives of these names."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def unary(method: str) -> Rule:
    return lambda e, equation, a: getattr(e.arithmetic, method)(e.number(a))


def binary(method: str) -> Rule:
    def apply(e: Evaluator, equation: Any, a: Any, b: Any) -> Any:
        return getattr(e.arithmetic, method)(e.number(a), e.number(b))

    return apply


for names, method in {("add", "add_any"): "add", ("sub",): "sub", ("mul",): "mul", ("div",): "div"}.items():
    rule(*names)(binary(method))
rule("neg")(unary("neg"))

FUNCTIONS = (
    "exp exp2 expm1 log log1p tanh logistic sin cos tan sinh cosh asin acos atan asinh acosh atanh "
    "sqrt rsqrt cbrt erf erfc lgamma digamma"
).split()


def elementary(name: str) -> Rule:
    return lambda e, equation, a: e.arithmetic.function(name, e.number(a))


for function_name in FUNCTIONS:
    rule(function_name)(elementary(function_name))


@rule("pow")
def pow_rule(e: Evaluator, equation: Any, a: Any, b: Any) -> Any:
    if is_plain(b) and b.size and np.all(b == b.ravel()[0]) and float(b.ravel()[0]).is_integer():
        return broadcast(e, e.arithmetic.power(e.number(a), int(b.ravel()[0])), equation)
    return e.arithmetic.function("pow", e.number(a), e.number(np.asarray(b, float) if is_plain(b) else b))


def broadcast(e: Evaluator, value: Any, equation: Any) -> Any:
    shape = equation.outvars[0].aval.shape
    return e.arithmetic.rearrange(lambda a: np.broadcast_to(a, shape), value)


@rule("integer_pow")
def integer_pow(e: Evaluator, equation: Any, a: Any) -> Any:
    return e.arithmetic.power(e.number(a), equation.params["y"])


@rule("square")
def square(e: Evaluator, equation: Any, a: Any) -> Any:
    return e.arithmetic.power(e.number(a), 2)


@rule("reduce_sum")
def reduce_sum(e: Evaluator, equation: Any, a: Any) -> Any:
    return e.arithmetic.sum(e.number(a), tuple(int(axis) for axis in equation.params["axes"]))


@rule("cumsum")
def cumsum(e: Evaluator, equation: Any, a: Any) -> Any:
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    n = equation.invars[0].aval.shape[axis]
    ones = np.tril(np.ones((n, n))) if reverse else np.triu(np.ones((n, n)))
    moved = e.arithmetic.rearrange(lambda x: np.moveaxis(x, axis, -1), e.number(a))
    shape = e.arithmetic.shape(moved)
    flat = e.arithmetic.rearrange(lambda x: x.reshape(-1, n), moved)
    summed = e.arithmetic.matmul(flat, e.arithmetic.constant(ones))
    return e.arithmetic.rearrange(lambda x: np.moveaxis(x.reshape(shape), -1, axis), summed)


@rule("dot_general")
def dot_general(e: Evaluator, equation: Any, a: Any, b: Any) -> Any:
    (contract_a, contract_b), (batch_a, batch_b) = equation.params["dimension_numbers"]
    shape_a, shape_b = equation.invars[0].aval.shape, equation.invars[1].aval.shape
    free_a = [i for i in range(len(shape_a)) if i not in contract_a and i not in batch_a]
    free_b = [i for i in range(len(shape_b)) if i not in contract_b and i not in batch_b]
    batch = [shape_a[i] for i in batch_a]
    k = int(np.prod([shape_a[i] for i in contract_a], dtype=int))
    rows = int(np.prod([shape_a[i] for i in free_a], dtype=int))
    columns = int(np.prod([shape_b[i] for i in free_b], dtype=int))
    n_batch = int(np.prod(batch, dtype=int))
    left = e.arithmetic.rearrange(
        lambda x: np.transpose(x, [*batch_a, *free_a, *contract_a]).reshape(n_batch, rows, k), e.number(a)
    )
    right = e.arithmetic.rearrange(
        lambda x: np.transpose(x, [*batch_b, *contract_b, *free_b]).reshape(n_batch, k, columns), e.number(b)
    )
    shape = [*batch, *(shape_a[i] for i in free_a), *(shape_b[i] for i in free_b)]
    return e.arithmetic.rearrange(lambda x: x.reshape(shape), e.arithmetic.matmul(left, right))


@rule("conv_general_dilated")
def conv_general_dilated(e: Evaluator, equation: Any, a: Any, b: Any) -> Any:
    patches, kernel, shape, order = structure.convolution(equation)
    groups, outputs, window = kernel.shape
    taken = e.arithmetic.take(e.number(a), patches.reshape(-1, groups, window).swapaxes(0, 1))
    weights = e.arithmetic.take(e.number(b), kernel.swapaxes(1, 2))
    out = e.arithmetic.matmul(taken, weights)  # (groups, positions, outputs)
    return e.arithmetic.rearrange(
        lambda x: np.transpose(x.reshape(groups, *shape, outputs), order).reshape(equation.outvars[0].aval.shape), out
    )


@rule("reduce_window_sum")
def reduce_window_sum(e: Evaluator, equation: Any, a: Any) -> Any:
    windows = structure.windows(equation.invars[0].aval.shape, equation.params)
    return e.arithmetic.sum(e.arithmetic.take(e.number(a), windows), (windows.ndim - 1,))


@rule("scatter-add", "scatter_add")
def scatter_add(e: Evaluator, equation: Any, operand: Any, indices: Any, updates: Any) -> Any:
    targets = structure.scatter_targets(equation, indices).ravel()
    shape = equation.invars[0].aval.shape
    total = e.arithmetic.rearrange(np.ravel, e.number(operand))
    updates = e.arithmetic.rearrange(np.ravel, e.number(updates))
    # Updates that meet at one target are added in rounds.
    order = np.argsort(targets, kind="stable")
    sorted_targets = targets[order]
    starts = np.searchsorted(sorted_targets, sorted_targets)
    turns = np.arange(len(targets)) - starts
    for turn in range(int(turns.max(initial=-1)) + 1):
        chosen = order[(turns == turn) & (sorted_targets >= 0)]
        source = np.full(int(np.prod(shape, dtype=int)), -1)
        source[targets[chosen]] = chosen
        total = e.arithmetic.add(total, e.arithmetic.take(updates, source))
    return e.arithmetic.rearrange(lambda x: x.reshape(shape), total)


@rule("select_n")
def select_n(e: Evaluator, equation: Any, which: Any, *cases: Any) -> Any:
    if len(cases) == 2 and (which.dtype == bool or which.dtype == np.int8):
        mask = which.astype(np.int8)
        if all(map(is_plain, cases)) and not np.any(mask == EITHER):
            return np.where(mask == 1, cases[1], cases[0])
        shape = equation.outvars[0].aval.shape
        false, true = (
            e.arithmetic.rearrange(lambda x: np.broadcast_to(x, shape), e.number(case)) for case in cases
        )
        return e.arithmetic.select(np.broadcast_to(mask, shape), true, false)
    result = e.number(cases[0])
    for position, case in enumerate(cases[1:], 1):
        result = e.arithmetic.select(np.asarray(which == position, np.int8), e.number(case), result)
    return result


COMPARISONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gt": lambda s: s > 0,
    "ge": lambda s: s >= 0,
    "lt": lambda s: s < 0,
    "le": lambda s: s <= 0,
    "eq": lambda s: s == 0,
    "ne": lambda s: s != 0,
}


def comparison(name: str) -> Rule:
    def apply(e: Evaluator, equation: Any, a: Any, b: Any) -> Any:
        if is_plain(a) and is_plain(b):
            with np.errstate(invalid="ignore"):
                return np.asarray(getattr(np, NUMPY_COMPARISONS[name])(a, b)).astype(np.int8)
        difference = e.arithmetic.sub(e.number(a), e.number(b))
        return np.asarray(COMPARISONS[name](e.decided(e.arithmetic.sign(difference))), np.int8)

    return apply


NUMPY_COMPARISONS = {
    "gt": "greater",
    "ge": "greater_equal",
    "lt": "less",
    "le": "less_equal",
    "eq": "equal",
    "ne": "not_equal",
}
for comparison_name in COMPARISONS:
    rule(comparison_name)(comparison(comparison_name))


@rule("max", "min")
def extremum(e: Evaluator, equation: Any, a: Any, b: Any) -> Any:
    choose_larger = equation.primitive.name == "max"
    if is_plain(a) and is_plain(b):
        return np.maximum(a, b) if choose_larger else np.minimum(a, b)
    shape = equation.outvars[0].aval.shape
    a, b = (e.arithmetic.rearrange(lambda x: np.broadcast_to(x, shape), e.number(x)) for x in (a, b))
    signs = e.arithmetic.sign(e.arithmetic.sub(a, b))
    larger = np.where(signs == UNDECIDED, EITHER, signs > 0).astype(np.int8)
    return e.arithmetic.select(larger if choose_larger else logical_not(larger), a, b)


@rule("abs")
def absolute(e: Evaluator, equation: Any, a: Any) -> Any:
    value = e.number(a)
    signs = e.arithmetic.sign(value)
    mask = np.where(signs == UNDECIDED, EITHER, signs > 0).astype(np.int8)
    return e.arithmetic.select(mask, value, e.arithmetic.neg(value))


@rule("sign")
def sign(e: Evaluator, equation: Any, a: Any) -> Any:
    return e.decided(e.arithmetic.sign(e.number(a))).astype(float)


@rule("is_finite")
def is_finite(e: Evaluator, equation: Any, a: Any) -> Any:
    if is_plain(a):
        return np.isfinite(a).astype(np.int8)
    return np.ones(equation.outvars[0].aval.shape, np.int8)


@rule("clamp")
def clamp(e: Evaluator, equation: Any, low: Any, a: Any, high: Any) -> Any:
    return extremum_of("min", e, equation, extremum_of("max", e, equation, a, low), high)


def extremum_of(name: str, e: Evaluator, equation: Any, a: Any, b: Any) -> Any:
    shape = equation.outvars[0].aval.shape
    a, b = (e.arithmetic.rearrange(lambda x: np.broadcast_to(x, shape), e.number(x)) for x in (a, b))
    signs = e.arithmetic.sign(e.arithmetic.sub(a, b))
    larger = np.where(signs == UNDECIDED, EITHER, signs > 0).astype(np.int8)
    return e.arithmetic.select(larger if name == "max" else logical_not(larger), a, b)


@rule("convert_element_type")
def convert_element_type(e: Evaluator, equation: Any, a: Any) -> Any:
    new, old = np.dtype(equation.params["new_dtype"]), equation.invars[0].aval.dtype
    if is_discrete(a):
        if not np.issubdtype(new, np.floating):
            return a.astype(new)
        if np.any((a == EITHER) & (old == bool)):
            shape = np.shape(a)
            ones, zeros = e.arithmetic.constant(np.ones(shape)), e.arithmetic.zeros(shape)
            return e.arithmetic.select(a, ones, zeros)
        return a.astype(float)
    if not np.issubdtype(new, np.floating):
        if is_plain(a):
            return a.astype(new)
        raise UnsupportedProgramError("the trace turns a real number into an integer, which is no smooth function")
    if np.finfo(new).nmant < np.finfo(old).nmant:
        raise UnsupportedProgramError(
            f"the trace rounds numbers to {new.name} on the way: over the real numbers that is no formula. "
            "Write the loss in one precision"
        )
    return a


@rule("stop_gradient", "copy", "copy_p", "optimization_barrier", "reduce_precision")
def identity(e: Evaluator, equation: Any, *operands: Any) -> Any:
    if equation.primitive.name == "reduce_precision":
        raise UnsupportedProgramError("the trace rounds numbers on the way (reduce_precision)")
    return list(operands)


class ValueMover:
    """Moves elements of values of an arithmetic (see `structure`)."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def rearrange(self, function: Callable[..., np.ndarray], *operands: Any) -> Any:
        if all(map(is_plain, operands)):
            return function(*operands)
        return self.evaluator.arithmetic.rearrange(function, *map(self.evaluator.number, operands))


def structural(name: str) -> Rule:
    def apply(e: Evaluator, equation: Any, *operands: Any) -> Any:
        return structure.RULES[name](equation, operands, ValueMover(e))

    return apply


for structural_name in structure.RULES:
    rule(structural_name)(structural(structural_name))

"""Evaluating a flat program in an arithmetic that encloses: balls, verified doubles, exact rationals."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, DropVar, Literal, Var

from gdmap.engines.balls import structure
from gdmap.engines.balls.arithmetic import EITHER, UNDECIDED, Arithmetic, UndecidedError
from gdmap.engines.precision import float64
from gdmap.engines.program import UnsupportedProgramError, is_opaque


class Decide(Protocol):
    """What is asked at an equation that a piece of the program turns on (see `gdmap.engines.pieces`)."""

    def __call__(
        self, index: int, equation: Any, operands: Sequence[Any], evaluator: "Evaluator"
    ) -> list[Any] | None:
        """The results of the equation, or ``None`` to have it evaluated as it stands."""
        ...


def evaluate(
    program: ClosedJaxpr, inputs: Sequence[Any], arithmetic: Arithmetic, decide: Decide | None = None
) -> list[Any]:
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
        self.values: dict[Var, Any] = dict(
            zip(program.jaxpr.constvars, map(numpy_array, program.consts), strict=True)
        )
        moved: set[Any] = {program.jaxpr.invars[index] for index in moving}
        self.fixed_equations, self.moving_equations = [], []
        for index, equation in enumerate(program.jaxpr.eqns):
            if any(not isinstance(atom, Literal) and atom in moved for atom in equation.invars):
                moved.update(equation.outvars)
                self.moving_equations.append((index, equation))
            else:
                self.fixed_equations.append((index, equation))
        self.moved = moved
        self.converted: dict[int, tuple[np.ndarray, Any]] = {}

    def run(self, inputs: Sequence[Any], decide: Decide | None = None) -> list[Any]:
        """The outputs for these inputs."""
        self.start(inputs, decide)
        return self.outputs(inputs)

    def start(self, inputs: Sequence[Any], decide: Decide | None = None) -> None:
        """Evaluate what does not depend on the moving inputs."""
        for variable, value in zip(self.program.jaxpr.invars, inputs, strict=True):
            if variable not in self.moved:
                self.values[variable] = normal(value, variable.aval.dtype)
        self.execute(self.fixed_equations, self.values, decide)

    def outputs(self, inputs: Sequence[Any]) -> list[Any]:
        """The outputs for these moving inputs, after `start`."""
        values = dict(self.values)
        for variable, value in zip(self.program.jaxpr.invars, inputs, strict=True):
            values[variable] = normal(value, variable.aval.dtype)
        self.execute(self.moving_equations, values, None)
        return [self.read(values, atom) for atom in self.program.jaxpr.outvars]

    def execute(self, equations: Sequence[tuple[int, Any]], values: dict[Var, Any], decide: Decide | None) -> None:
        last = self.last_uses if equations is self.moving_equations else {}
        for position, (index, equation) in enumerate(equations):
            operands = [self.read(values, atom) for atom in equation.invars]
            results = None if decide is None else decide(index, equation, operands, self)
            if results is None:
                results = self.apply(equation, operands)
            for variable, result in zip(equation.outvars, results, strict=True):
                if not isinstance(variable, DropVar):
                    values[variable] = result
            for variable in last.get(position, ()):
                values.pop(variable, None)

    @functools.cached_property
    def last_uses(self) -> dict[int, list[Any]]:
        """Which variables are used for the last time by which moving equation, and are no outputs."""
        outputs = {atom for atom in self.program.jaxpr.outvars if not isinstance(atom, Literal)}
        return last_uses(self.moving_equations, outputs)

    def read(self, values: dict[Var, Any], atom: Any) -> Any:
        """The value of an operand."""
        return numpy_array(atom.val) if isinstance(atom, Literal) else values[atom]

    def apply(self, equation: Any, operands: Sequence[Any]) -> list[Any]:
        """The results of one equation."""
        name = equation.primitive.name
        if all(is_discrete(operand) for operand in operands) and all(
            not jnp.issubdtype(variable.aval.dtype, np.floating) for variable in equation.outvars
        ):
            return discrete(equation, operands)
        if name in EXACT_IN_FLOAT and all(map(is_plain, operands)):
            return with_jax(equation, operands)
        refuse_narrow(equation)
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
        if not is_plain(operand):
            return operand
        if operand.size <= 64:
            return self.arithmetic.constant(operand)
        # Large constants (the data) become numbers of the arithmetic once, not at each use.
        found = self.converted.get(id(operand))
        if found is None or found[0] is not operand:
            found = self.converted[id(operand)] = (operand, self.arithmetic.constant(operand))
        return found[1]

    def decided(self, signs: np.ndarray) -> np.ndarray:
        """``signs``, or an error if some are not decided."""
        if np.any(signs == UNDECIDED):
            raise UndecidedError("a comparison that this precision does not decide")
        return signs


def last_uses(equations: Sequence[tuple[int, Any]], kept: set[Any]) -> dict[int, list[Any]]:
    """Which variables (but those ``kept``) are used for the last time by which equation."""
    last: dict[Any, int] = {}
    for position, (_, equation) in enumerate(equations):
        for atom in equation.invars:
            if not isinstance(atom, Literal):
                last[atom] = position
    made = {variable for _, equation in equations for variable in equation.outvars} - kept
    by_position: dict[int, list[Any]] = {}
    for variable, position in last.items():
        if variable in made:
            by_position.setdefault(position, []).append(variable)
    return by_position


def numpy_array(value: Any) -> Any:
    """A constant of a program as a NumPy array: masks as int8, floats (of any precision) as float64."""
    if is_opaque(value):
        return value
    array = np.asarray(value)
    if array.dtype == np.bool_:
        return array.astype(np.int8)
    return array.astype(np.float64) if jnp.issubdtype(array.dtype, np.floating) else array


def normal(value: Any, dtype: Any) -> Any:
    """An input as the evaluator holds it: booleans as int8 masks."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.astype(np.int8, copy=False) if dtype == np.bool_ else numpy_array(value)
    return value


def refuse_narrow(equation: Any) -> None:
    """Refuse to compute in less than double precision: over the real numbers that is another formula."""
    name = equation.primitive.name
    if name in structure.RULES or name in EXACT_IN_FLOAT or name in ("select_n", "convert_element_type"):
        return
    for variable in equation.outvars:
        dtype = variable.aval.dtype
        if jnp.issubdtype(dtype, np.complexfloating):
            raise UnsupportedProgramError(
                f"the trace computes with complex numbers ({name}), which are not supported"
            )
        if jnp.issubdtype(dtype, np.floating) and dtype != np.float64:
            raise UnsupportedProgramError(
                f"the trace computes in {dtype} on the way ({name}): over the reals that is another formula. "
                "Write the loss in one precision: let numbers be float64 (data.astype(float)) before they are used"
            )


def is_plain(operand: Any) -> bool:
    """Whether an operand is an array of plain numbers and not a value of an arithmetic."""
    return isinstance(operand, np.ndarray) and operand.dtype != object


def is_discrete(operand: Any) -> bool:
    """Whether an operand is an array of booleans, masks or integers, or random keys."""
    return is_opaque(operand) or (is_plain(operand) and not np.issubdtype(operand.dtype, np.floating))


# Booleans and integers -------------------------------------------------------------------------------------------


def discrete(equation: Any, operands: Sequence[np.ndarray]) -> list[Any]:
    """The results of an equation on booleans, masks and integers alone."""
    name = equation.primitive.name
    masks = [operand for operand, atom in zip(operands, equation.invars, strict=True) if atom.aval.dtype == bool]
    if len(masks) == len(operands) and equation.outvars[0].aval.dtype == bool:
        if name in LOGIC:
            return [LOGIC[name](*operands)]
        if name in ("reduce_or", "reduce_and"):
            return [reduced_logic(name, operands[0], equation.params["axes"])]
        if name == "select_n":
            which, if_false, if_true = (np.broadcast_to(operand, operands[1].shape) for operand in operands)
            either = np.where(if_false == if_true, if_false, EITHER)
            return [np.select([which == 0, which == 1], [if_false, if_true], either).astype(np.int8)]
    rule = structure.RULES.get(name)
    if rule is not None and not any(map(is_opaque, operands)):
        return rule(equation, operands, structure.PlainMover())
    if any(np.any(mask == EITHER) for mask in masks):
        raise UndecidedError("an integer or a choice that depends on an undecided comparison")
    return with_jax(equation, operands)


def reduced_logic(name: str, mask: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Whether any, or all, of the elements of a mask with 0, 1 and 2 (either) hold."""
    axes = tuple(int(axis) for axis in axes)
    strong = 1 if name == "reduce_or" else 0
    found = np.where(np.any(mask == EITHER, axes), EITHER, 1 - strong)
    return np.where(np.any(mask == strong, axes), strong, found).astype(np.int8)


def with_jax(equation: Any, operands: Sequence[np.ndarray]) -> list[Any]:
    """The results of an equation on concrete arrays, by JAX itself; for operations without rounding."""
    with float64(), jax.ensure_compile_time_eval():
        arguments = [
            operand if is_opaque(operand) else jnp.asarray(operand.astype(atom.aval.dtype, copy=False))
            for operand, atom in zip(operands, equation.invars, strict=True)
        ]
        results = equation.primitive.bind(*arguments, **equation.params)
        return [numpy_array(result) for result in (results if equation.primitive.multiple_results else [results])]


def logical_not(a: np.ndarray) -> np.ndarray:
    """Three-valued "not"."""
    return np.where(a == EITHER, EITHER, 1 - a).astype(np.int8)


def logical_and(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Three-valued "and"."""
    either = np.where((a == EITHER) | (b == EITHER), EITHER, 1)
    return np.where((a == 0) | (b == 0), 0, either).astype(np.int8)


def logical_or(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Three-valued "or"."""
    return logical_not(logical_and(logical_not(a), logical_not(b)))


def logical_xor(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Three-valued "exclusive or"."""
    return np.where((a == EITHER) | (b == EITHER), EITHER, a ^ b).astype(np.int8)


LOGIC: dict[str, Callable[..., np.ndarray]] = {
    "not": logical_not,
    "and": logical_and,
    "or": logical_or,
    "xor": logical_xor,
}


# Rules -----------------------------------------------------------------------------------------------------------

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
# Operations that are exact on floating-point numbers; done so where all operands are constants.
EXACT_IN_FLOAT = {
    *(
        "floor",
        "ceil",
        "round",
        "sort",
        "top_k",
        "argmax",
        "argmin",
        "reduce_max",
        "reduce_min",
        "cummax",
        "cummin",
    ),
    *("is_finite", "sign", "reduce_window_max", "reduce_window_min", "bitcast_convert_type"),
}


rule = structure.registrar(RULES)


def unary(method: str) -> Rule:
    """The rule of a primitive that is one operation of the arithmetic on one operand."""
    return lambda e, equation, a: getattr(e.arithmetic, method)(e.number(a))


def binary(method: str) -> Rule:
    """The rule of a primitive that is one operation of the arithmetic on two operands."""

    def apply(e: Evaluator, equation: Any, a: Any, b: Any) -> Any:
        return getattr(e.arithmetic, method)(e.number(a), e.number(b))

    return apply


for names, method in {("add", "add_any"): "add", ("sub",): "sub", ("mul",): "mul", ("div",): "div"}.items():
    rule(*names)(binary(method))
rule("neg")(unary("neg"))

FUNCTIONS = [
    "exp",
    "exp2",
    "expm1",
    "log",
    "log1p",
    "tanh",
    "logistic",
    "sin",
    "cos",
    "tan",
    "sinh",
    "cosh",
    "asin",
    "acos",
    "atan",
    "asinh",
    "acosh",
    "atanh",
    "sqrt",
    "rsqrt",
    "cbrt",
    "erf",
    "erfc",
    "lgamma",
    "digamma",
]


def elementary(name: str) -> Rule:
    """The rule of an elementary function."""
    return lambda e, equation, a: e.arithmetic.function(name, e.number(a))


for function_name in FUNCTIONS:
    rule(function_name)(elementary(function_name))


@rule("pow")
def pow_rule(e: Evaluator, equation: Any, a: Any, b: Any) -> Any:
    """Powers; with one small integer exponent by multiplication."""
    if is_plain(b):
        b = b.astype(float)
        exponent = float(b.ravel()[0]) if b.size else 1.0
        if np.all(b == exponent) and exponent.is_integer() and abs(exponent) <= LARGEST_POWER:
            return spread(e, equation, e.arithmetic.power(e.number(a), int(exponent)))
    return e.arithmetic.function("pow", *spread(e, equation, a, b))


# Powers with a larger exponent go through the logarithm.
LARGEST_POWER = 1024


@rule("integer_pow")
def integer_pow(e: Evaluator, equation: Any, a: Any) -> Any:
    """Powers with a fixed integer exponent."""
    return e.arithmetic.power(e.number(a), equation.params["y"])


@rule("square")
def square(e: Evaluator, equation: Any, a: Any) -> Any:
    """Squares."""
    return e.arithmetic.power(e.number(a), 2)


@rule("reduce_sum")
def reduce_sum(e: Evaluator, equation: Any, a: Any) -> Any:
    """Sums over axes."""
    return e.arithmetic.sum(e.number(a), tuple(int(axis) for axis in equation.params["axes"]))


@rule("reduce_prod")
def reduce_prod(e: Evaluator, equation: Any, a: Any) -> Any:
    """Products over axes."""
    return folded(e, equation, e.arithmetic.mul, a, np.ones(()))


@rule("reduce_max", "reduce_min")
def reduce_extremum(e: Evaluator, equation: Any, a: Any) -> Any:
    """The largest or smallest elements over axes; hulls where not decided."""
    larger = equation.primitive.name == "reduce_max"
    return folded(e, equation, lambda x, y: extremum_of(e, larger, x, y), a, None)


@rule("reduce_window_max")
def reduce_window_max(e: Evaluator, equation: Any, a: Any) -> Any:
    """The largest elements of windows; hulls where not decided."""
    windows = structure.windows_without_padding(equation)
    result, *others = (e.arithmetic.take(e.number(a), windows[..., i]) for i in range(windows.shape[-1]))
    for other in others:
        result = extremum_of(e, True, result, other)
    return result


def folded(e: Evaluator, equation: Any, operation: Callable[..., Any], a: Any, neutral: np.ndarray | None) -> Any:
    """The elements of ``a`` over the axes of a reduction joined by an operation of two numbers."""
    axes = tuple(int(axis) for axis in equation.params["axes"])
    shape = equation.outvars[0].aval.shape
    rows = e.arithmetic.rearrange(
        lambda x: np.moveaxis(x, axes, range(len(axes))).reshape(-1, *shape) if x.size else x.reshape(0, *shape),
        e.number(a),
    )
    (count, *_) = e.arithmetic.shape(rows)
    if count == 0:
        if neutral is None:
            raise UnsupportedProgramError("the maximum of no numbers")
        return np.broadcast_to(neutral, shape)
    result = e.arithmetic.rearrange(lambda x: x[0], rows)
    for position in range(1, count):
        result = operation(result, e.arithmetic.rearrange(lambda x, i=position: x[i], rows))
    return result


@rule("cumsum")
def cumsum(e: Evaluator, equation: Any, a: Any) -> Any:
    """Running sums, by a product with a triangular matrix."""
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
    """Products of matrices, in batches, over any axes."""
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
    """Convolutions, as products of matrices."""
    patches, kernel, shape, order = structure.convolution(equation)
    groups, outputs, window = kernel.shape
    taken = e.arithmetic.take(e.number(a), patches.reshape(-1, groups, window).swapaxes(0, 1))
    weights = e.arithmetic.take(e.number(b), kernel.swapaxes(1, 2))
    out = e.arithmetic.matmul(taken, weights)  # (groups, positions, outputs)
    return e.arithmetic.rearrange(
        lambda x: np.transpose(x.reshape(groups, *shape, outputs), order).reshape(equation.outvars[0].aval.shape),
        out,
    )


@rule("reduce_window_sum")
def reduce_window_sum(e: Evaluator, equation: Any, a: Any) -> Any:
    """Sums of windows."""
    windows = structure.windows(equation.invars[0].aval.shape, equation.params)
    return e.arithmetic.sum(e.arithmetic.take(e.number(a), windows), (windows.ndim - 1,))


@rule("scatter-add", "scatter_add")
def scatter_add(e: Evaluator, equation: Any, operand: Any, indices: Any, updates: Any) -> Any:
    """Additions into elements named by indices."""
    targets = structure.scatter_targets(equation, indices).ravel()
    shape = equation.invars[0].aval.shape
    total = e.arithmetic.rearrange(np.ravel, e.number(operand))
    updates = e.arithmetic.rearrange(np.ravel, e.number(updates))
    # Updates that meet at one target are added in rounds.
    order = np.argsort(targets, kind="stable")
    sorted_targets = targets[order]
    starts = np.searchsorted(sorted_targets, sorted_targets)
    turns = np.arange(len(targets)) - starts
    for turn in range(int(turns[sorted_targets >= 0].max(initial=-1)) + 1):
        chosen = order[(turns == turn) & (sorted_targets >= 0)]
        source = np.full(int(np.prod(shape, dtype=int)), -1)
        source[targets[chosen]] = chosen
        total = e.arithmetic.add(total, e.arithmetic.take(updates, source))
    return e.arithmetic.rearrange(lambda x: x.reshape(shape), total)


@rule("select_n")
def select_n(e: Evaluator, equation: Any, which: Any, *cases: Any) -> Any:
    """Choices by masks or by integers."""
    if not is_discrete(which):
        raise UnsupportedProgramError("a choice by a number that depends on the parameters")
    shape = equation.outvars[0].aval.shape
    which = np.broadcast_to(which, shape)
    if equation.invars[0].aval.dtype == bool:
        if all(map(is_plain, cases)) and not np.any(which == EITHER):
            return np.where(which == 1, cases[-1], cases[0])
        numbers = spread(e, equation, *cases)
        return e.arithmetic.select(which, numbers[-1], numbers[0])
    result, *others = spread(e, equation, *cases)
    for position, case in enumerate(others, 1):
        result = e.arithmetic.select((which == position).astype(np.int8), case, result)
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
    """The rule of a comparison; `UndecidedError` where it is not decided."""

    def apply(e: Evaluator, equation: Any, a: Any, b: Any) -> Any:
        if is_plain(a) and is_plain(b):
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
    """The larger or smaller of two numbers."""
    larger = equation.primitive.name == "max"
    if is_plain(a) and is_plain(b):
        return np.maximum(a, b) if larger else np.minimum(a, b)
    for bound, other in ((a, b), (b, a)):
        if is_plain(bound) and np.all(bound == (-np.inf if larger else np.inf)):
            return spread(e, equation, other)
    return extremum_of(e, larger, *spread(e, equation, a, b))


def spread(e: Evaluator, equation: Any, *operands: Any) -> list[Any]:
    """Numbers of the arithmetic in the shape of the result."""
    shape = equation.outvars[0].aval.shape
    return [e.arithmetic.rearrange(lambda x: np.broadcast_to(x, shape), e.number(x)) for x in operands]


def extremum_of(e: Evaluator, larger: bool, a: Any, b: Any) -> Any:
    """The larger (smaller) of two numbers; a hull where it is not decided which."""
    signs = e.arithmetic.sign(e.arithmetic.sub(a, b))
    mask = np.where(signs == UNDECIDED, EITHER, signs > 0).astype(np.int8)
    return e.arithmetic.select(mask if larger else logical_not(mask), a, b)


@rule("abs")
def absolute(e: Evaluator, equation: Any, a: Any) -> Any:
    """Moduli; hulls where the sign is not decided."""
    value = e.number(a)
    signs = e.arithmetic.sign(value)
    mask = np.where(signs == UNDECIDED, EITHER, signs > 0).astype(np.int8)
    return e.arithmetic.select(mask, value, e.arithmetic.neg(value))


@rule("sign")
def sign(e: Evaluator, equation: Any, a: Any) -> Any:
    """Signs, decided."""
    return e.decided(e.arithmetic.sign(e.number(a))).astype(float)


@rule("is_finite")
def is_finite(e: Evaluator, equation: Any, a: Any) -> Any:
    """Finite: all real numbers are."""
    if is_plain(a):
        return np.isfinite(a).astype(np.int8)
    return np.ones(equation.outvars[0].aval.shape, np.int8)


@rule("clamp")
def clamp(e: Evaluator, equation: Any, low: Any, a: Any, high: Any) -> Any:
    """Numbers held between bounds."""
    low, a, high = spread(e, equation, low, a, high)
    return extremum_of(e, False, extremum_of(e, True, a, low), high)


@rule("convert_element_type")
def convert_element_type(e: Evaluator, equation: Any, a: Any) -> Any:
    """Conversions without rounding."""
    refuse_rounding(equation)
    new, old = equation.params["new_dtype"], equation.invars[0].aval.dtype
    if is_discrete(a):
        if old == np.bool_ and np.any(a == EITHER):
            ones, zeros = e.arithmetic.constant(np.ones(np.shape(a))), e.arithmetic.zeros(np.shape(a))
            return e.arithmetic.select(a, ones, zeros)
        exact = a.astype(float)
        if np.any(exact.astype(new).astype(float) != exact) or np.any(np.abs(exact) >= 2.0**53):
            raise UnsupportedProgramError(f"the trace rounds large integers to {new}")
        return exact
    return a


def refuse_rounding(equation: Any) -> None:
    """Refuse conversions of real numbers to integers, or to fewer digits."""
    new, old = equation.params["new_dtype"], equation.invars[0].aval.dtype
    if not jnp.issubdtype(old, np.floating):
        return
    if not jnp.issubdtype(new, np.floating):
        raise UnsupportedProgramError(f"the trace turns a real number into {new}, which is no smooth function")
    if jnp.finfo(new).nmant < jnp.finfo(old).nmant:
        raise UnsupportedProgramError(
            f"the trace rounds numbers to {new} on the way: over the real numbers that is no formula. "
            "Write the loss in one precision"
        )


@rule("stop_gradient", "copy", "copy_p", "optimization_barrier")
def identity(e: Evaluator, equation: Any, *operands: Any) -> Any:
    """Primitives that hand on their operands."""
    return list(operands)


@rule("reduce_precision")
def reduce_precision(e: Evaluator, equation: Any, a: Any) -> Any:
    """Only the precision that is there already."""
    if equation.params["exponent_bits"] >= 11 and equation.params["mantissa_bits"] >= 52:
        return a
    raise UnsupportedProgramError("the trace rounds numbers on the way (reduce_precision)")


class ValueMover:
    """Moves elements of values of an arithmetic (see `structure`)."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def rearrange(self, function: Callable[..., np.ndarray], *operands: Any) -> Any:
        if all(map(is_plain, operands)):
            return function(*operands)
        return self.evaluator.arithmetic.rearrange(function, *map(self.evaluator.number, operands))


def structural(name: str) -> Rule:
    """The rule of a primitive that moves elements."""

    def apply(e: Evaluator, equation: Any, *operands: Any) -> Any:
        return structure.RULES[name](equation, operands, ValueMover(e))

    return apply


for structural_name in structure.RULES:
    rule(structural_name)(structural(structural_name))

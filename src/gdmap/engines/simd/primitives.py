"""JAX primitives as tensor expressions: which ones the compiler knows, and what they mean."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gdmap.engines.precision import float64
from gdmap.engines.simd.flatten import Equation, Name, Operand, Program, Unsupported, flat, identity_of
from gdmap.engines.simd.nests import Index, Module, Writer, cost_of, reshaped_in
from gdmap.engines.simd.operations import COST
from gdmap.engines.simd.tensors import (
    Apply,
    Buffer,
    Constant,
    Expression,
    Fold,
    NeedsBuffer,
    Pieces,
    Take,
    View,
    boxes_around,
    buffers_of,
    combined,
)
from gdmap.engines.simd.vector_math import FUNCTIONS

ELEMENTWISE = {
    name: name
    for name in (
        *(
            "add",
            "sub",
            "mul",
            "div",
            "neg",
            "max",
            "min",
            "abs",
            "sign",
            "rem",
            "floor",
            "ceil",
            "sqrt",
            "is_finite",
        ),
        *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not"),
        *("shift_left", "shift_right_arithmetic", "shift_right_logical"),
        *FUNCTIONS,
    )
} | {"add_any": "add"}
IDENTITIES = ("copy", "copy_p", "stop_gradient", "optimization_barrier", "name")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "is_finite")
FOLDS = {
    "reduce_sum": "add",
    "reduce_prod": "mul",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_and": "and",
    "reduce_or": "or",
    "reduce_xor": "xor",
}
# Up to so many operations are done again where a result is needed, rather than stored and read.
CHEAP = 4
# Larger tables of which element goes where are no job for straight-line code.
LONGEST_TAKE = 4096
# Branches of fewer operations are computed always, and the results selected.
LONG_BRANCH = 256
# What lies deeper than so many operations is stored: the translation recurs.
DEEPEST = 100


class Builder:
    """Translates flat programs into the instructions of one function."""

    def __init__(self, writer: Writer) -> None:
        self.writer, self.module = writer, writer.module
        # Inside branches, what the program around them reads must stay.
        self.branches = 0

    def run(
        self, program: Program, inputs: Sequence[Expression], into: Sequence[View | None] = ()
    ) -> list[Expression]:
        """The outputs of a program as expressions; those with a place in ``into`` are stored there."""
        uses: dict[int, int] = {}
        for equation in program.equations:
            for operand in equation.operands:
                uses[id(operand)] = uses.get(id(operand), 0) + 1
        for output in program.outputs:
            uses[id(output)] = uses.get(id(output), 0) + 1
        values: dict[int, Expression] = {
            id(name): value for name, value in zip(program.inputs, inputs, strict=True)
        }

        def read(operand: Operand) -> Expression:
            return Constant(operand) if isinstance(operand, np.ndarray) else values[id(operand)]

        left = dict(uses)
        for equation in program.equations:
            operands = [read(operand) for operand in equation.operands]
            results = self.equation(equation, operands)
            for name, result in zip(equation.results, results, strict=True):
                count = uses.get(id(name), 0)
                if (count > 1 and not self.is_cheap(result)) or result.depth > DEEPEST:
                    result = self.stored(result)
                if count:
                    values[id(name)] = result
            for operand in equation.operands:
                left[id(operand)] -= 1
                if not left[id(operand)]:
                    values.pop(id(operand), None)
            self._release(values, results, inputs)
        outputs = []
        for position, output in enumerate(program.outputs):
            found = read(output)
            place = into[position] if position < len(into) else None
            if place is not None:
                self.writer.store(found, place)
                found = place
            outputs.append(found)
        return outputs

    def _release(
        self, values: dict[int, Expression], results: Sequence[Expression], inputs: Sequence[Expression]
    ) -> None:
        """Memory that nothing reads any more may be used again."""
        if self.branches:
            return
        live = {buffer.pointer for value in (*values.values(), *results, *inputs) for buffer in buffers_of(value)}
        owned = self.writer.owned
        for pointer in list(owned):
            if pointer not in live:
                self.writer.free.append(owned.pop(pointer))

    def is_cheap(self, expression: Expression) -> bool:
        """Whether computing an expression wherever it is needed costs less than storing it."""
        return is_elementwise(expression) and cost_of(expression) <= (0 if self.module.small else CHEAP)

    def stored(self, expression: Expression) -> View:
        """The expression in memory; a view is there already."""
        if isinstance(expression, View):
            return expression
        view = self.writer.stored(expression)
        self.writer.owned[view.buffer.pointer] = view.buffer
        return view

    def moved(self, expression: Expression, move: Callable[[Expression], Expression]) -> Expression:
        """A view of the expression, which is stored first where that is needed."""
        try:
            return move(expression)
        except NeedsBuffer:
            stored = self.stored(expression)
            try:
                return move(stored)
            except NeedsBuffer:  # strided: only a dense copy has this shape
                copy = self.writer.stored(Apply("convert", (stored,), stored.dtype))
                self.writer.owned[copy.buffer.pointer] = copy.buffer
                return move(copy)

    # -- one equation ------------------------------------------------------------------------------------------

    def equation(self, equation: Equation, operands: list[Expression]) -> list[Expression]:
        """The results of one primitive."""
        primitive, params = equation.primitive, equation.params
        if primitive in IDENTITIES:
            return operands
        if primitive in ("scan", "cond", "split", "unstack"):
            return getattr(self, f"_{primitive}")(equation, operands)
        result = equation.results[0]
        method: Any = getattr(self, f"_{primitive.replace('-', '_')}", None)
        if method is not None:
            return [method(equation, *operands)]
        if primitive in ELEMENTWISE:
            return [self.elementwise(ELEMENTWISE[primitive], operands, result)]
        if primitive in FOLDS:
            return [self._fold(FOLDS[primitive], operands[0], params["axes"])]
        raise Unsupported(f"the primitive {primitive}")

    def elementwise(self, operation: str, operands: Sequence[Expression], result: Name) -> Expression:
        """An operation on operands of one shape, scalars, or shapes with axes of length 1."""
        dtype = result.dtype
        arguments = [self.aligned(operand, result.shape) for operand in operands]
        return self.combined(lambda parts: simplified(operation, tuple(parts), dtype), arguments)

    def combined(
        self, make: Callable[[Sequence[Expression]], Expression], arguments: Sequence[Expression]
    ) -> Expression:
        """An elementwise operation box by box, on stored arguments where they cannot be cut."""
        try:
            return combined(make, arguments)
        except NeedsBuffer:
            return make([self.operand(argument) for argument in arguments])

    def aligned(self, operand: Expression, shape: tuple[int, ...]) -> Expression:
        """An operand in the shape of the result."""
        if operand.shape == shape:
            return operand
        if cost_of(operand):
            operand = self.stored(operand)
        axes = range(len(shape) - len(operand.shape), len(shape))
        return self.moved(operand, lambda value: value.broadcast(shape, axes))

    def _fold(self, operation: str, operand: Expression, axes: Sequence[int]) -> Expression:
        kept = [axis for axis in range(len(operand.shape)) if axis not in axes]
        operand = self.plain(operand)
        argument = self.moved(operand, lambda value: value.permuted((*kept, *axes)))
        return Fold(operation, argument, tuple(argument.shape[: len(kept)]))

    def plain(self, operand: Expression) -> Expression:
        """The operand, stored if it is not elementwise in what is in memory."""
        if isinstance(operand, View | Constant | Take):
            return operand
        if isinstance(operand, Apply) and is_elementwise(operand):
            return operand
        return self.stored(operand)

    # -- arithmetic --------------------------------------------------------------------------------------------

    def _square(self, equation: Equation, x: Expression) -> Expression:
        return self._power(x, 2, equation.results[0])

    def _integer_pow(self, equation: Equation, x: Expression) -> Expression:
        return self._power(x, equation.params["y"], equation.results[0])

    def _power(self, x: Expression, exponent: int, result: Name) -> Expression:
        if exponent == 1:
            return x
        one = Constant(np.broadcast_to(np.ones((), x.dtype), x.shape))
        if exponent == 0:
            return one
        if not self.is_cheap(x):
            x = self.stored(x)
        power, rest, found = x, abs(exponent), None
        while rest:
            if rest & 1:
                found = power if found is None else simplified("mul", (found, power), x.dtype)
            rest >>= 1
            if rest:
                power = simplified("mul", (power, power), x.dtype)
                if rest > 1:
                    power = self.stored(power)
        assert found is not None
        return found if exponent > 0 else self.elementwise("div", [one, found], result)

    def _pow(self, equation: Equation, x: Expression, y: Expression) -> Expression:
        result = equation.results[0]
        return self.elementwise("pow", [self.converted(x, result.dtype), self.converted(y, result.dtype)], result)

    def _reduce_precision(self, equation: Equation, x: Expression) -> Expression:
        if (equation.params["exponent_bits"], equation.params["mantissa_bits"]) != (11, 52):
            raise Unsupported("the primitive reduce_precision")
        return x

    def _round(self, equation: Equation, x: Expression) -> Expression:
        away = int(equation.params["rounding_method"]) == 0
        return self.elementwise("round_away" if away else "round_even", [x], equation.results[0])

    def _clamp(self, equation: Equation, low: Expression, x: Expression, high: Expression) -> Expression:
        result = equation.results[0]
        return self.elementwise("min", [self.elementwise("max", [x, low], result), high], result)

    def _select_n(self, equation: Equation, which: Expression, *cases: Expression) -> Expression:
        result = equation.results[0]
        if which.dtype.kind != "b":
            found = cases[0]
            which = self.stored(which) if not isinstance(which, View | Constant) else which
            for number, case in enumerate(cases[1:], 1):
                at = Constant(np.broadcast_to(np.asarray(number, which.dtype), which.shape))
                test = Apply("ge", (which, at), np.dtype(bool))
                found = self._selected(test, case, found, result)
            return found
        return self._selected(which, cases[1], cases[0], result)

    def _selected(self, test: Expression, yes: Expression, no: Expression, result: Name) -> Expression:
        arguments = [self.aligned(operand, result.shape) for operand in (test, yes, no)]
        return self.combined(lambda parts: Apply("select", tuple(parts), result.dtype), arguments)

    def _convert_element_type(self, equation: Equation, x: Expression) -> Expression:
        return self.converted(x, equation.results[0].dtype)

    def converted(self, x: Expression, dtype: np.dtype) -> Expression:
        """The numbers in another type."""
        if dtype == x.dtype:
            return x
        return self.combined(lambda parts: Apply("convert", tuple(parts), dtype), [x])

    def _dot_general(self, equation: Equation, left: Expression, right: Expression) -> Expression:
        (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
        dtype = equation.results[0].dtype
        left, right = (self.operand(self.converted(side, dtype)) for side in (left, right))
        left_free = [a for a in range(len(left.shape)) if a not in (*left_sum, *left_batch)]
        right_free = [a for a in range(len(right.shape)) if a not in (*right_sum, *right_batch)]
        batch = [left.shape[a] for a in left_batch]
        rows, columns = [left.shape[a] for a in left_free], [right.shape[a] for a in right_free]
        extents = [left.shape[a] for a in left_sum]
        shape = (*batch, *rows, *columns, *extents)
        b, r, c, k = len(batch), len(rows), len(columns), len(extents)
        ends = [*range(b + r + c, b + r + c + k)]
        left = left.permuted((*left_batch, *left_free, *left_sum)).broadcast(shape, [*range(b + r), *ends])
        right = right.permuted((*right_batch, *right_free, *right_sum))
        right = right.broadcast(shape, [*range(b), *range(b + r, b + r + c), *ends])
        product = Apply("mul" if left.dtype.kind != "b" else "and", (left, right), left.dtype)
        return Fold("add", product, shape[: b + r + c]) if k else product

    def operand(self, side: Expression) -> Expression:
        """An operand that is read many times: in memory, or constant."""
        if isinstance(side, View | Constant | Take):
            return side
        return self.stored(side)

    # -- shapes ------------------------------------------------------------------------------------------------

    def _reshape(self, equation: Equation, x: Expression) -> Expression:
        return self._reshaped(x, equation.results[0].shape)

    def _reshaped(self, x: Expression, shape: tuple[int, ...]) -> Expression:
        return x if shape == x.shape else self.moved(x, lambda value: value.reshaped(shape))

    _squeeze = _expand_dims = _reshape

    def _transpose(self, equation: Equation, x: Expression) -> Expression:
        return self.moved(x, lambda value: value.permuted(equation.params["permutation"]))

    def _rev(self, equation: Equation, x: Expression) -> Expression:
        return self.moved(x, lambda value: value.flipped(equation.params["dimensions"]))

    def _broadcast_in_dim(self, equation: Equation, x: Expression) -> Expression:
        shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
        if math.prod(shape) == x.size:
            return self._reshape(equation, x)
        if cost_of(x):
            x = self.stored(x)
        return self.moved(x, lambda value: value.broadcast(tuple(shape), axes))

    def _slice(self, equation: Equation, x: Expression) -> Expression:
        params = equation.params
        starts, stops = params["start_indices"], params["limit_indices"]
        steps = params["strides"] or (1,) * len(starts)
        return self.moved(x, lambda value: value.sliced(starts, stops, steps))

    def _split(self, equation: Equation, operands: list[Expression]) -> list[Expression]:
        (x,), axis = operands, equation.params["axis"]
        if not isinstance(x, View | Constant):
            x = self.stored(x)
        parts: list[Expression] = []
        start = 0
        for size in equation.params["sizes"]:
            starts, stops = [0] * len(x.shape), list(x.shape)
            starts[axis], stops[axis] = start, start + size
            parts.append(x.sliced(starts, stops, [1] * len(starts)))
            start += size
        return parts

    def _dynamic_slice(self, equation: Equation, x: Expression, *starts: Expression) -> Expression:
        sizes = equation.params["slice_sizes"]
        begin = self._known_starts(starts, x.shape, sizes)
        stops = [a + n for a, n in zip(begin, sizes, strict=True)]
        return self.moved(x, lambda value: value.sliced(begin, stops, [1] * len(begin)))

    def _dynamic_update_slice(
        self, equation: Equation, x: Expression, update: Expression, *starts: Expression
    ) -> Expression:
        begin = self._known_starts(starts, x.shape, update.shape)
        return self._placed(update, begin, self.plain_box(x))

    def plain_box(self, x: Expression) -> Expression:
        """An expression that can be cut into boxes."""
        whole = isinstance(x, Apply) and not any(True for _ in reshaped_in(x))
        return x if whole or isinstance(x, View | Constant) else self.stored(x)

    def _known_starts(
        self, starts: Sequence[Expression], shape: Sequence[int], sizes: Sequence[int]
    ) -> tuple[int, ...]:
        if not all(isinstance(start, Constant) for start in starts):
            raise Unsupported("the primitive dynamic_slice where the numbers say")
        known = [int(start.array) for start in starts if isinstance(start, Constant)]
        return tuple(min(max(a, 0), n - m) for a, n, m in zip(known, shape, sizes, strict=True))

    def _placed(self, box: Expression, begin: tuple[int, ...], around: Expression) -> Expression:
        """``around`` with a box of it replaced."""
        end = tuple(a + n for a, n in zip(begin, box.shape, strict=True))
        pieces: list[tuple[tuple[int, ...], Expression]] = []
        if box.size:
            pieces.append((begin, box))
        for corner, size in boxes_around(around.shape, begin, end):
            if math.prod(size):
                stops = [a + n for a, n in zip(corner, size, strict=True)]
                pieces.append((corner, around.sliced(corner, stops, [1] * len(stops))))
        if len(pieces) == 1:
            return pieces[0][1]
        return Pieces(tuple(pieces), around.shape, around.dtype) if pieces else around

    def _pad(self, equation: Equation, x: Expression, filling: Expression) -> Expression:
        shape = equation.results[0].shape
        config = [(int(low), int(high), int(inner)) for low, high, inner in equation.params["padding_config"]]
        if any(inner for _, _, inner in config):
            return self._padded_inside(equation, x, filling, config)
        starts = [max(0, -low) for low, _, _ in config]
        stops = [n - max(0, -high) for n, (_, high, _) in zip(x.shape, config, strict=True)]
        if any(starts) or stops != list(x.shape):
            x = self.moved(x, lambda value: value.sliced(starts, stops, [1] * len(starts)))
        around = self.moved(filling, lambda value: value.broadcast(shape, ()))
        return self._placed(x, tuple(max(0, low) for low, _, _ in config), around)

    def _padded_inside(
        self, equation: Equation, x: Expression, filling: Expression, config: list[tuple[int, int, int]]
    ) -> Expression:
        numbers = np.arange(x.size, dtype=np.int32).reshape(x.shape)
        padded = np.asarray(jax.lax.pad(numbers, np.int32(-1), config))
        taken = self._taken(x, padded)
        if isinstance(filling, Constant) and not filling.array.any():
            return taken
        return self._selected(Constant(padded >= 0), taken, filling, equation.results[0])

    def _concatenate(self, equation: Equation, *parts: Expression) -> Expression:
        axis, at, pieces = equation.params["dimension"], 0, []
        for part in parts:
            corner = [0] * len(part.shape)
            corner[axis] = at
            at += part.shape[axis]
            if part.size:
                pieces.append((tuple(corner), part))
        shape = equation.results[0].shape
        if not pieces:
            return Constant(np.zeros(shape, parts[0].dtype))
        return pieces[0][1] if len(pieces) == 1 else Pieces(tuple(pieces), shape, parts[0].dtype)

    def _stack(self, equation: Equation, *parts: Expression) -> Expression:
        shape, axis = equation.results[0].shape, equation.params["axis"]
        thin = (*shape[:axis], 1, *shape[axis + 1 :])
        pieces = tuple(
            (tuple(number * (a == axis) for a in range(len(shape))), self.moved(part, lambda x: x.reshaped(thin)))
            for number, part in enumerate(parts)
        )
        if not math.prod(shape):
            return Constant(np.zeros(shape, parts[0].dtype))
        return pieces[0][1] if len(pieces) == 1 else Pieces(pieces, shape, parts[0].dtype)

    def _unstack(self, equation: Equation, operands: list[Expression]) -> list[Expression]:
        (x,), axis = operands, equation.params["axis"]
        x = x if isinstance(x, Constant) else self.stored(x)
        found = []
        for number, result in enumerate(equation.results):
            starts = [number * (a == axis) for a in range(len(x.shape))]
            stops = [number + 1 if a == axis else n for a, n in enumerate(x.shape)]
            found.append(self._reshaped(x.sliced(starts, stops, [1] * len(starts)), result.shape))
        return found

    def _tile(self, equation: Equation, x: Expression) -> Expression:
        reps = equation.params["reps"]
        wide = tuple(n for pair in zip(reps, x.shape, strict=True) for n in pair)
        x = self.stored(x) if cost_of(x) else x
        repeated = self.moved(x, lambda value: value.broadcast(wide, range(1, len(wide), 2)))
        return self.moved(repeated, lambda value: value.reshaped(equation.results[0].shape))

    def _taken(self, x: Expression, numbers: np.ndarray) -> Expression:
        if numbers.size > LONGEST_TAKE:
            raise Unsupported(f"gathering {numbers.size} elements one by one")
        if not x.size:
            return Constant(np.zeros(numbers.shape, x.dtype))
        source = self.moved(x, lambda value: value.reshaped((x.size,)))
        if isinstance(source, Constant):
            return Constant(np.where(numbers < 0, np.zeros((), x.dtype), source.array[numbers]))
        return Take(self.stored(source), numbers)

    def _gather(self, equation: Equation, x: Expression, indices: Expression) -> Expression:
        if not isinstance(indices, Constant):
            raise Unsupported("the primitive gather where the numbers say")
        params = dict(equation.params)
        if "FILL" in str(params["mode"]) and x.dtype.kind == "f":
            # What lies outside becomes the fill value: only where nothing does is this a choice of elements.
            params["fill_value"] = -1
        numbers = np.arange(x.size, dtype=np.int64).reshape(x.shape)
        taken = np.asarray(jax.lax.gather_p.bind(numbers, indices.array, **params))
        if (taken < 0).any():
            raise Unsupported("gathering outside the array")
        return self._taken(x, taken)

    def _scatter_add(
        self, equation: Equation, x: Expression, indices: Expression, updates: Expression
    ) -> Expression:
        if not isinstance(indices, Constant) or x.dtype.kind != "f":
            raise Unsupported("the primitive scatter where the numbers say")
        if x.size * updates.size > 2**22:
            raise Unsupported(f"scattering {updates.size} elements over {x.size}")
        # The linear map from updates to sums, column by column: where each update goes.
        columns = np.eye(updates.size).reshape(updates.size, *updates.shape)
        zeros = np.zeros(x.shape)

        def placed(column: Any) -> Any:
            return jax.lax.scatter_add_p.bind(zeros, indices.array, column, **equation.params)

        with float64():
            goes = np.asarray(jax.vmap(placed)(columns)).reshape(updates.size, x.size)
        updates = self.operand(updates)
        sources = [np.flatnonzero(goes[:, number]) for number in range(x.size)]
        found = x
        for turn in range(max((len(source) for source in sources), default=0)):
            numbers = np.array([source[turn] if turn < len(source) else -1 for source in sources])
            taken = self._taken(updates, numbers.reshape(x.shape))
            found = self.elementwise("add", [found, taken], equation.results[0])
        return found

    def _scatter(self, equation: Equation, x: Expression, indices: Expression, updates: Expression) -> Expression:
        if not isinstance(indices, Constant):
            raise Unsupported("the primitive scatter where the numbers say")
        before = np.full(x.shape, -1, np.int32)
        order = np.arange(updates.size, dtype=np.int32).reshape(updates.shape)
        with float64():
            goes = np.asarray(jax.lax.scatter_p.bind(before, indices.array, order, **equation.params))
        taken = self._taken(updates, goes)
        return self._selected(Constant(goes >= 0), taken, x, equation.results[0])

    # -- control -----------------------------------------------------------------------------------------------

    def _cond(self, equation: Equation, operands: list[Expression]) -> list[Expression]:
        which, *arguments = operands
        arguments = [self.operand(argument) for argument in arguments]
        known = {p: value.array for p, value in enumerate(arguments) if isinstance(value, Constant)}
        which = self.operand(which)
        self.branches += 1
        branches = [
            self._branch(flat(branch, known), number, len(equation.params["branches"]), which, arguments)
            for number, branch in enumerate(equation.params["branches"])
        ]
        self.branches -= 1
        found = list(branches[0])
        for number, branch in enumerate(branches[1:], 1):
            for position, result in enumerate(equation.results):
                at = Constant(np.asarray(number, which.dtype))
                test = which if which.dtype.kind == "b" else Apply("ge", (which, at), np.dtype(bool))
                found[position] = self._selected(test, branch[position], found[position], result)
        return found

    def _branch(
        self, program: Program, number: int, count: int, which: Expression, arguments: list[Expression]
    ) -> list[Expression]:
        """The results of a branch, computed in all lanes; one that is long only where some lane takes it."""
        if operations_of(program) < LONG_BRANCH or isinstance(which, Constant):
            return self.run(program, arguments)
        # Beyond the first and the last branch the number is clamped.
        clamped = {0: "le", count - 1: "ge"} if which.dtype.kind != "b" else {}
        test = (which, Constant(np.asarray(number, which.dtype)))
        taken = self.stored(Apply(clamped.get(number, "eq"), test, np.dtype(bool)))
        kinds = [kind_of(output) for output in program.outputs]
        places = [View.whole(self.writer.allocate(math.prod(shape), dtype), shape) for shape, dtype in kinds]
        with self.writer.where_any(taken):
            self.run(program, arguments, places)
        return list(places)

    def _scan(self, equation: Equation, operands: list[Expression]) -> list[Expression]:
        params = equation.params
        consts, carries = params["num_consts"], params["num_carry"]
        shared = [value if isinstance(value, Constant) else self.stored(value) for value in operands[:consts]]
        known = {position: value.array for position, value in enumerate(shared) if isinstance(value, Constant)}
        length, body = int(params["length"]), flat(params["jaxpr"], known)
        initial, sequences = operands[consts : consts + carries], operands[consts + carries :]
        return Scan(self, body, shared, initial, sequences, length, params["reverse"]).write(identity_of(body))


def is_elementwise(expression: Expression) -> bool:
    """Whether an expression combines elements of what is in memory at one place only."""
    if isinstance(expression, Apply):
        return all(map(is_elementwise, expression.arguments))
    return isinstance(expression, View | Constant | Take)


def simplified(operation: str, arguments: tuple[Expression, ...], dtype: np.dtype) -> Expression:
    """An elementwise operation, without what does not change the result: zeros added, factors that cancel."""
    if dtype.kind == "f" and operation in ("add", "mul"):
        neutral = 0 if operation == "add" else 1
        for known, other in (arguments, arguments[::-1]):
            number = number_of(known)
            if number is not None and number == neutral:
                return other
            if operation == "mul" and number is not None and is_power_of_two(number):
                rescaled = rescaling(number, other)
                if rescaled is not None:
                    return rescaled
    if all(number_of(argument) is not None for argument in arguments):
        values = [number_of(argument) for argument in arguments]
        functions = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative}
        if operation in functions:
            with np.errstate(all="ignore"):
                found = np.asarray(functions[operation](*values), dtype)
            return Constant(np.broadcast_to(found, arguments[0].shape))
    return Apply(operation, arguments, dtype if operation not in COMPARISONS else np.dtype(bool))


def number_of(expression: Expression) -> Any:
    """The number that all elements of a constant are, if there is one."""
    if isinstance(expression, Constant) and expression.is_uniform and expression.size:
        return expression.array.reshape(-1)[0]
    return None


def is_power_of_two(number: Any) -> bool:
    """Whether multiplying by a number changes the exponent alone."""
    return bool(np.isfinite(number)) and abs(np.frexp(number)[0]) == 0.5


def rescaling(factor: Any, expression: Expression) -> Expression | None:
    """``factor * (other * x)`` with one multiplication or none, where both are powers of two.

    The same numbers, unless ``other * x`` overflows; ``other`` is at least one, so nothing underflows. Squares
    over two make such pairs: their derivative is ``(2 x) / 2``.
    """
    if isinstance(expression, Apply) and expression.operation == "mul":
        for first, second in (expression.arguments, expression.arguments[::-1]):
            other = number_of(first)
            if other is not None and is_power_of_two(other) and abs(other) >= 1:
                product = np.asarray(factor * other, expression.dtype)
                if np.isfinite(product) and abs(product) >= np.finfo(expression.dtype).tiny:
                    constant = Constant(np.broadcast_to(product, expression.shape))
                    return simplified("mul", (constant, second), expression.dtype)
    return None


class Scan:
    """A loop of fixed length over a body in a function of its own, between two copies of what it carries."""

    def __init__(
        self,
        builder: Builder,
        body: Program,
        shared: Sequence[Expression],
        initial: Sequence[Expression],
        sequences: Sequence[Expression],
        length: int,
        reverse: bool,
    ) -> None:
        self.builder, self.writer, self.module = builder, builder.writer, builder.writer.module
        self.body, self.length, self.reverse = body, length, reverse
        self.shared, self.initial, self.sequences = list(shared), list(initial), list(sequences)

    def write(self, identity: Any) -> list[Expression]:
        """The results of the loop: what it carried last, and what it recorded."""
        writer, module, body = self.writer, self.module, self.body
        n_shared, n_carried = len(self.shared), len(self.initial)
        names = body.inputs[n_shared : n_shared + n_carried]
        # What the body passes on unchanged is read where it is.
        moving = [p for p, name in enumerate(names) if body.outputs[p] is not name]
        results = [
            value if p in moving or isinstance(value, Constant) else self.builder.stored(value)
            for p, value in enumerate(self.initial)
        ]
        recorded = body.outputs[n_carried:]
        histories = [
            View.whole(writer.allocate(self.length * math.prod(shape), dtype), (self.length, *shape))
            for shape, dtype in map(kind_of, recorded)
        ]
        if not self.length:
            return [*results, *histories]
        sequences = [
            View.whole(module.table(value.array), value.shape)
            if isinstance(value, Constant)
            else dense(self.builder, value)
            for value in self.sequences
        ]
        first = [View.whole(writer.allocate(results[p].size, results[p].dtype), results[p].shape) for p in moving]
        second = [View.whole(writer.allocate(view.size, view.dtype), view.shape) for view in first]
        for position, view in zip(moving, first, strict=True):
            writer.store(results[position], view)

        parameters = Parameters()
        inputs = [parameters.add(value) for value in self.shared]
        for position, value in enumerate(results):
            moves = position in moving
            inputs.append(parameters.view(first[moving.index(position)], "in") if moves else parameters.add(value))
        inputs += [parameters.view(turn_of(view), view) for view in sequences]
        outputs: list[View | None] = [None] * len(body.outputs)
        for position, view in zip(moving, second, strict=True):
            outputs[position] = parameters.view(view, "out")
        for position, view in enumerate(histories):
            outputs[n_carried + position] = parameters.view(turn_of(view), view)
        function = function_of(module, identity, body, inputs, outputs, parameters)

        def pointers(ins: Sequence[str], outs: Sequence[str], turn: str) -> str:
            if self.reverse and turn:
                turn = writer.emit(f"sub nsw i64 {self.length - 1}, {turn}", "i")
            first_turn = self.length - 1 if self.reverse and not turn else 0
            into, out = iter(ins), iter(outs)
            found = []
            for pointer, role in zip(parameters.pointers, parameters.roles, strict=True):
                if role == "in":
                    at = next(into)
                elif role == "out":
                    at = next(out)
                elif isinstance(role, View):
                    rest = len(role.shape) - 1
                    at = writer.address(role, Index((first_turn, *(0,) * rest), (turn, *("",) * rest)))
                else:
                    at = pointer
                found.append(f"ptr {at}")
            return ", ".join(found)

        starts, ends = ([view.buffer.pointer for view in views] for views in (first, second))
        if self.length == 1:
            writer.do(f"call void {function}({pointers(starts, ends, '')})")
            last = ends
        elif module.small:
            with writer.loop(self.length) as loop:
                writer.do(f"call void {function}({pointers(starts, ends, loop.variable)})")
                for source, target in zip(second, first, strict=True):
                    writer.copy(source, target)
            last = starts
        else:
            carried = [("ptr", pointer) for pointer in (*starts, *ends)]
            with writer.loop(self.length, carried=carried) as loop:
                ins, outs = loop.names[: len(starts)], loop.names[len(starts) :]
                writer.do(f"call void {function}({pointers(ins, outs, loop.variable)})")
                loop.following = [*outs, *ins]
            last = outs
        for position, pointer, view in zip(moving, last, first, strict=True):
            results[position] = View.whole(Buffer(pointer, view.size, view.dtype), view.shape)
        return [*results, *histories]


class Parameters:
    """The pointers that a function is given: what they point to in the caller, and what role they play."""

    def __init__(self) -> None:
        self.pointers: list[str] = []
        self.roles: list[str | View] = []

    def add(self, value: Expression) -> Expression:
        """A value of the caller as the function reads it."""
        if isinstance(value, Constant) or (isinstance(value, View) and value.buffer.pointer.startswith("@")):
            return value
        if not isinstance(value, View):
            raise AssertionError("only what is in memory can be passed on")
        return self.view(value, "read")

    def view(self, view: View, role: str | View) -> View:
        """A view of the caller as the function reads or writes it."""
        self.pointers.append(view.buffer.pointer)
        self.roles.append(role)
        buffer = Buffer(f"%a{len(self.pointers) - 1}", view.buffer.size, view.dtype, view.buffer.table)
        return View(buffer, view.offset, view.strides, view.shape)

    @property
    def signature(self) -> str:
        """The parameters in the definition of the function."""
        return ", ".join(f"ptr noalias %a{number}" for number in range(len(self.pointers)))


def function_of(
    module: Module,
    identity: Any,
    body: Program,
    inputs: Sequence[Expression],
    outputs: Sequence[View | None],
    parameters: Parameters,
) -> str:
    """The name of a function that computes ``body``; written once for equal programs on equal inputs."""
    key = (identity, parameters.signature, *map(fingerprint, inputs), *map(fingerprint, outputs))
    if key not in module.known:
        writer = Writer(module)
        Builder(writer).run(body, inputs, outputs)
        writer.do("ret void")
        name = module.known[key] = f"@f{len(module.known)}"
        writer.check_stack()
        inlined = "alwaysinline" if module.small else "noinline"
        module.functions.append(
            writer.text(f"internal void {name}({parameters.signature})", f"{inlined} {module.attributes}")
        )
    return module.known[key]


def fingerprint(expression: Expression | None) -> Any:
    """What of an input or output a function depends on."""
    if isinstance(expression, View):
        return (
            expression.buffer.pointer,
            expression.offset,
            expression.strides,
            expression.shape,
            expression.dtype,
        )
    if isinstance(expression, Constant):
        return (expression.array.dtype, expression.array.shape, expression.array.tobytes())
    return None


def kind_of(output: Operand) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and type of an output."""
    return tuple(output.shape), output.dtype


def turn_of(view: View) -> View:
    """What one turn of a loop reads or writes of a sequence; the pointer it is given points there."""
    return View(view.buffer, 0, view.strides[1:], view.shape[1:])


def operations_of(program: Program) -> int:
    """About how many operations a program takes; of a loop inside it those of one turn."""
    total = 0
    for equation in program.equations:
        size = sum(math.prod(result.shape) for result in equation.results)
        if equation.primitive == "scan":
            total += operations_of(flat(equation.params["jaxpr"]))
        elif equation.primitive == "cond":
            total += sum(operations_of(flat(branch)) for branch in equation.params["branches"])
        elif equation.primitive == "dot_general":
            left = equation.operands[0]
            total += size * math.prod(left.shape[axis] for axis in equation.params["dimension_numbers"][0][0])
        elif equation.primitive in FOLDS:
            total += math.prod(equation.operands[0].shape)
        elif equation.primitive in ELEMENTWISE or equation.primitive in ("integer_pow", "select_n", "square"):
            total += size * COST.get(ELEMENTWISE.get(equation.primitive, ""), 1)
    return total


def dense(builder: Builder, value: Expression) -> View:
    """The value in memory of its own, in order."""
    return builder.stored(value)

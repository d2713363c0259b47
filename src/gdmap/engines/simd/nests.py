"""Text of LLVM functions that store tensor expressions: loops outside, straight-line code on lanes inside.

A tile of neighbouring elements is computed at once, so that independent operations fill the pipelines and every
number loaded serves all of the tile. The generator unrolls; LLVM is not asked to.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import numpy as np

from gdmap.engines.simd.flatten import Unsupported
from gdmap.engines.simd.operations import COST, apply, literal
from gdmap.engines.simd.tensors import (
    Apply,
    Buffer,
    Constant,
    Expression,
    Fold,
    NeedsBuffer,
    Pieces,
    Reshaped,
    Take,
    View,
)

# Vectors of a tile: accumulators of sums and values of elementwise code that are in flight together, for one
# register in each vector.
ACCUMULATORS, IN_FLIGHT = 16, 8
# Operations that are written out without loops: in one store, in a small module, in one turn of a loop over axes.
STRAIGHT, STRAIGHT_SMALL, TURN = 256, 100, 128
# Memory of one function for one block of lanes.
STACK = 2**20


class Module:
    """The text of one LLVM module in the making: functions, tables of constants, what it needs declared."""

    def __init__(self, lanes: int, registers: int, fused: bool, small: bool, width: int) -> None:
        """``lanes`` fill ``registers`` vector registers; in a ``small`` module all functions become one."""
        self.lanes, self.registers, self.fused, self.small = lanes, registers, fused, small
        widths = f'"prefer-vector-width"="{width}" "min-legal-vector-width"="{width}"'
        self.attributes = f'nounwind {widths} "no-trapping-math"="true"'
        self.known: dict[Any, str] = {}
        self.functions: list[str] = []
        self.tables: dict[tuple[str, bytes], Buffer] = {}
        self.table_text: list[str] = []
        self.declarations: dict[str, None] = {}
        self.mathematics: dict[str, None] = {}
        self.names = itertools.count()

    def table(self, array: np.ndarray) -> Buffer:
        """The numbers of an array in read-only memory, shared by all lanes."""
        array = np.ascontiguousarray(array)
        key = (array.dtype.str, array.tobytes())
        if key not in self.tables:
            name = f"@table{len(self.tables)}"
            kind = element_type(array.dtype, memory=True)
            numbers = ", ".join(f"{kind} {literal(number)}" for number in array.ravel())
            self.table_text.append(
                f"{name} = private unnamed_addr constant [{array.size} x {kind}] [{numbers}], align 64"
            )
            self.tables[key] = Buffer(name, array.size, array.dtype, table=True)
        return self.tables[key]

    def vector(self, dtype: np.dtype, memory: bool = False) -> str:
        """The type of one element in all lanes."""
        return f"<{self.lanes} x {element_type(dtype, memory)}>"

    def element_bytes(self, dtype: np.dtype) -> int:
        """The bytes of one element in all lanes."""
        return self.lanes * (1 if dtype.kind == "b" else dtype.itemsize)


def element_type(dtype: np.dtype, memory: bool = False) -> str:
    """The LLVM type of one number."""
    if dtype == np.float64:
        return "double"
    if dtype.kind == "b":
        return "i8" if memory else "i1"
    if dtype.kind in "iu":
        return f"i{8 * dtype.itemsize}"
    raise Unsupported(f"numbers of type {dtype}")


class Writer:
    """The body of one function: instructions, and the memory of its own."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.lines: list[str] = []
        self.entry: list[str] = []
        self.free: list[Buffer] = []
        self.owned: dict[str, Buffer] = {}
        self.bytes = 0
        self.block = "entry"
        self._numbers = itertools.count()
        self._loads: dict[Any, str] = {}
        self._addresses: list[dict[Any, str]] = [{}]

    def name(self, stem: str = "v") -> str:
        """A new local name."""
        return f"%{stem}{next(self._numbers)}"

    def emit(self, text: str, stem: str = "v") -> str:
        """An instruction with a result."""
        name = self.name(stem)
        self.lines.append(f"  {name} = {text}")
        return name

    def do(self, text: str) -> None:
        """An instruction without a result."""
        self.lines.append(f"  {text}")

    def open_block(self, label: str) -> None:
        """Begin a basic block."""
        self.lines.append(f"{label}:")
        self.block = label

    # -- memory ------------------------------------------------------------------------------------------------

    def allocate(self, size: int, dtype: np.dtype) -> Buffer:
        """Memory for ``size`` elements, taken from what was released where it fits."""
        for place, buffer in enumerate(self.free):
            if buffer.size == size and buffer.dtype == dtype:
                return self.free.pop(place)
        pointer = self.name("b")
        kind = self.module.vector(dtype, memory=True)
        self.entry.append(f"  {pointer} = alloca [{max(size, 1)} x {kind}], align 64")
        self.bytes += size * self.module.element_bytes(dtype)
        return Buffer(pointer, size, dtype)

    def stored(self, expression: Expression) -> View:
        """The expression in memory of its own."""
        view = View.whole(self.allocate(expression.size, expression.dtype), expression.shape)
        self.store(expression, view)
        return view

    def copy(self, source: View, target: View) -> None:
        """Element by element, from one place to another."""
        self.store(source, target)

    # -- loops -------------------------------------------------------------------------------------------------

    @contextmanager
    def loop(self, count: int, step: int = 1, carried: Sequence[tuple[str, str]] = ()) -> Iterator["Loop"]:
        """A loop over ``0, step, ..., (count - 1) step``; ``carried`` pairs types with initial values."""
        label = self.name("loop")[1:]
        before = self.block
        self.do(f"br label %{label}")
        self.open_block(label)
        variable = self.name("i")
        names = [self.name("c") for _ in carried]
        place = len(self.lines)
        state = Loop(variable, names)
        self._addresses.append({})
        loads, self._loads = self._loads, {}
        yield state
        following = self.emit(f"add nuw nsw i64 {variable}, {step}", "i")
        more = self.emit(f"icmp ult i64 {following}, {count * step}", "t")
        latch, after = self.block, self.name("end")[1:]
        self.do(f"br i1 {more}, label %{label}, label %{after}, !llvm.loop !0")
        phis = [f"  {variable} = phi i64 [ 0, %{before} ], [ {following}, %{latch} ]"]
        for name, (kind, initial), final in zip(names, carried, state.following, strict=True):
            phis.append(f"  {name} = phi {kind} [ {initial}, %{before} ], [ {final}, %{latch} ]")
        self.lines[place:place] = phis
        self._addresses.pop()
        self._loads = loads
        self.open_block(after)

    @contextmanager
    def where_any(self, test: Expression) -> Iterator[None]:
        """Instructions that are carried out if the test holds in some lane."""
        lanes = self.module.lanes
        function = f"@llvm.vector.reduce.or.v{lanes}i1"
        self.module.declarations[f"declare i1 {function}(<{lanes} x i1>)"] = None
        holds = self.element(test, Index((), ()), {})
        some = self.emit(f"call i1 {function}(<{lanes} x i1> {holds})", "t")
        inside, after = self.name("some")[1:], self.name("all")[1:]
        self.do(f"br i1 {some}, label %{inside}, label %{after}")
        self.open_block(inside)
        self._addresses.append({})
        loads, self._loads = self._loads, {}
        yield
        self._addresses.pop()
        self._loads = loads
        self.do(f"br label %{after}")
        self.open_block(after)

    def address(self, view: View, index: "Index") -> str:
        """The pointer to an element."""
        buffer = view.buffer
        kind = element_type(buffer.dtype, True) if buffer.table else self.module.vector(buffer.dtype, True)
        terms = tuple(
            (stride, variable)
            for stride, variable in zip(view.strides, index.variables, strict=True)
            if variable and stride
        )
        constant = view.offset + sum(s * c for s, c in zip(view.strides, index.constants, strict=True))
        base = buffer.pointer
        if terms:
            key = (buffer.pointer, terms)
            known = next((scope[key] for scope in reversed(self._addresses) if key in scope), None)
            if known is None:
                total = ""
                for stride, variable in terms:
                    term = variable if stride == 1 else self.emit(f"mul nsw i64 {variable}, {stride}", "n")
                    total = self.emit(f"add nsw i64 {total}, {term}", "n") if total else term
                known = self.emit(f"getelementptr {kind}, ptr {base}, i64 {total}", "p")
                self._addresses[-1][key] = known
            base = known
        if not constant:
            return base
        return self.emit(f"getelementptr {kind}, ptr {base}, i64 {constant}", "p")

    # -- elements ----------------------------------------------------------------------------------------------

    def load(self, view: View, index: "Index") -> str:
        """The vector of lanes of an element; loaded once in a tile."""
        key = (
            view.buffer.pointer,
            view.offset + sum(s * c for s, c in zip(view.strides, index.constants, strict=True)),
            tuple((s, v) for s, v in zip(view.strides, index.variables, strict=True) if s and v),
        )
        if key not in self._loads:
            pointer = self.address(view, index)
            dtype, module = view.dtype, self.module
            if view.buffer.table:
                number = self.emit(f"load {element_type(dtype, True)}, ptr {pointer}")
                self._loads[key] = self.splat(number, dtype)
            else:
                align = min(64, module.element_bytes(dtype))
                found = self.emit(f"load {module.vector(dtype, True)}, ptr {pointer}, align {align}")
                if dtype.kind == "b":
                    found = self.emit(f"trunc {module.vector(dtype, True)} {found} to {module.vector(dtype)}")
                self._loads[key] = found
        return self._loads[key]

    def splat(self, number: str, dtype: np.dtype) -> str:
        """One number in all lanes (from memory)."""
        kind, vector = element_type(dtype, True), self.module.vector(dtype, True)
        first = self.emit(f"insertelement {vector} poison, {kind} {number}, i64 0")
        found = self.emit(
            f"shufflevector {vector} {first}, {vector} poison, <{self.module.lanes} x i32> zeroinitializer"
        )
        if dtype.kind == "b":
            found = self.emit(f"trunc {vector} {found} to {self.module.vector(dtype)}")
        return found

    def immediate(self, number: Any, dtype: np.dtype) -> str:
        """A known number in all lanes."""
        if dtype.kind == "b":
            return f"splat (i1 {'true' if number else 'false'})"
        return f"splat ({element_type(dtype)} {literal(dtype.type(number))})"

    def element(self, expression: Expression, index: "Index", known: dict[Any, str]) -> str:
        """The vector of one element of an elementwise expression, or of a fold computed before."""
        if isinstance(expression, View):
            return self.load(expression, index)
        key = (id(expression), index.constants)
        if key in known:
            return known[key]
        if isinstance(expression, Constant):
            if expression.is_uniform:
                return self.immediate(expression.array.reshape(-1)[0], expression.dtype)
            if not any(index.variables):
                return self.immediate(expression.array[index.constants], expression.dtype)
            table = self.module.table(expression.array)
            return self.load(View.whole(table, expression.shape), index)
        if isinstance(expression, Take):
            number = int(expression.numbers[index.constants])
            if number < 0:
                return self.immediate(0, expression.dtype)
            return self.load(expression.source, Index((number,), ("",)))
        if isinstance(expression, Apply):
            arguments = [self.element(argument, index, known) for argument in expression.arguments]
            found = apply(self, expression, arguments)
            known[key] = found
            return found
        raise AssertionError(f"{type(expression).__name__} is not elementwise")

    # -- stores ------------------------------------------------------------------------------------------------

    def store(self, expression: Expression, target: View) -> None:
        """Compute the expression into ``target``, which nothing in the expression reads."""
        if not target.size:
            return
        if isinstance(expression, Pieces):
            for at, piece in expression.pieces:
                stops = [a + n for a, n in zip(at, piece.shape, strict=True)]
                self.store(piece, target.sliced(at, stops, [1] * len(at)))
            return
        reshaped = list(reshaped_in(expression))
        if reshaped:
            inner, *others = reshaped
            if not others and not any(True for _ in folds_in(expression)):
                try:
                    self.store(_unreshaped(expression, inner), target.reshaped(inner.argument.shape))
                except NeedsBuffer:
                    pass
                else:
                    return
            self.store(_replaced(expression, inner, self.stored(inner.argument).reshaped(inner.shape)), target)
            return
        _Nest(self, expression, target).write()

    def check_stack(self) -> None:
        """Refuse what would not stay in the cache, nor on a thread's stack."""
        if self.bytes > STACK:
            raise Unsupported(f"a program that needs {self.bytes:,} bytes for {self.module.lanes} trajectories")

    def text(self, signature: str, attributes: str) -> str:
        """The function."""
        return "\n".join([f"define {signature} {attributes} {{", "entry:", *self.entry, *self.lines, "}"])


class Loop:
    """The counter of a loop, the values it carries, and what they become in the next turn."""

    def __init__(self, variable: str, names: list[str]) -> None:
        self.variable, self.names = variable, names
        self.following: list[str] = list(names)


class Index:
    """Where an element is: on each axis a known number and, inside loops, a variable (or an empty string)."""

    __slots__ = ("constants", "variables")

    def __init__(self, constants: tuple[int, ...], variables: tuple[str, ...]) -> None:
        self.constants, self.variables = constants, variables


class _Nest:
    """The loops over the elements of one store."""

    def __init__(self, writer: Writer, expression: Expression, target: View) -> None:
        self.writer, self.expression, self.target = writer, expression, target
        self.folds = list(folds_in(expression))
        self.scattered = any(True for _ in takes_in(expression))
        self.cost = cost_of(expression)

    def write(self) -> None:
        shape = self.target.shape
        self.tile = self._tile(shape)
        self.straight = self.scattered or self.target.size * self.cost <= writer_limit(self.writer)
        self._axis(0, (), ())

    def _tile(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        registers = self.writer.module.registers
        limit = max(1, (ACCUMULATORS if self.folds else IN_FLIGHT) // registers)
        tile = [1] * len(shape)
        wide = 8 if self.folds and sum(n > 1 for n in shape) > 1 else limit
        for axis in reversed(range(len(shape))):
            most = max(1, min(limit, wide))
            tile[axis] = -(-shape[axis] // -(-shape[axis] // most))
            limit //= tile[axis]
            wide = limit
        return tuple(tile)

    def _axis(self, axis: int, constants: tuple[int, ...], variables: tuple[str, ...]) -> None:
        """Loops over the tiles along the axes from ``axis`` on."""
        if axis == len(self.tile):
            self._write_tile(constants, variables)
            return
        length, wide = self.target.shape[axis], self.tile[axis]
        whole = length // wide
        if self.straight or whole == 1:
            for start in range(0, length, wide):
                self._axis(axis + 1, (*constants, start), (*variables, ""))
            return
        with self.writer.loop(whole, wide) as loop:
            self._axis(axis + 1, (*constants, 0), (*variables, loop.variable))
        if whole * wide < length:
            self._axis(axis + 1, (*constants, whole * wide), (*variables, ""))

    def _write_tile(self, starts: tuple[int, ...], variables: tuple[str, ...]) -> None:
        writer, shape = self.writer, self.target.shape
        ranges = []
        for start, wide, length, variable in zip(starts, self.tile, shape, variables, strict=True):
            ranges.append(range(start, start + wide if variable else min(start + wide, length)))
        places = list(itertools.product(*ranges))
        known: dict[Any, str] = {}
        writer._loads = {}
        for fold in self.folds:
            for place, folded in zip(places, self._fold(fold, places, variables), strict=True):
                known[id(fold), place] = folded
        dtype = self.expression.dtype
        kind, align = writer.module.vector(dtype, True), min(64, writer.module.element_bytes(dtype))
        found = [writer.element(self.expression, Index(place, variables), known) for place in places]
        for place, value in zip(places, found, strict=True):
            if dtype.kind == "b":
                value = writer.emit(f"zext {writer.module.vector(dtype)} {value} to {kind}")
            pointer = writer.address(self.target, Index(place, variables))
            writer.do(f"store {kind} {value}, ptr {pointer}, align {align}")

    def _fold(self, fold: Fold, places: list[tuple[int, ...]], variables: tuple[str, ...]) -> list[str]:
        """The folded values of the elements of a tile."""
        writer, extents = self.writer, fold.extents
        terms = math.prod(extents)
        cost = max(1, cost_of(fold.argument))
        if not terms:
            return [writer.immediate(identity(fold), fold.dtype)] * len(places)
        unrolled = takes_anywhere(fold.argument) or terms * len(places) * cost <= (
            writer_limit(writer) if self.straight else TURN // writer.module.registers
        )
        # A single sum would wait for each addition: several partial ones do not.
        ways = max(1, min(terms, IN_FLIGHT // writer.module.registers // len(places)))
        if unrolled:
            sums: list[list[str]] = [[] for _ in places]
            for number, inner in enumerate(itertools.product(*map(range, extents))):
                self._accumulate(fold, sums, number % ways, places, inner, variables, ("",) * len(inner))
            return [self._joined(fold, partial) for partial in sums]
        return self._rolled(fold, places, variables, cost)

    def _rolled(
        self, fold: Fold, places: list[tuple[int, ...]], variables: tuple[str, ...], cost: int
    ) -> list[str]:
        writer, extents = self.writer, fold.extents
        kind = writer.module.vector(fold.dtype)
        # From the last axis on, axes are written out while a turn stays short; the rest are loops.
        inner, turn = len(extents), len(places) * cost
        while inner > 1 and turn * extents[inner - 1] <= TURN // writer.module.registers:
            inner -= 1
            turn *= extents[inner]
        ways = max(1, min(extents[inner - 1], IN_FLIGHT // writer.module.registers // max(turn, 1)))
        start = writer.immediate(identity(fold), fold.dtype)

        def turns(axis: int, counters: tuple[str, ...], sums: list[str]) -> list[str]:
            if axis == inner:
                kept = [[value] for value in sums]
                for rest in itertools.product(*map(range, extents[inner:])):
                    at = (*(0,) * inner, *rest)
                    self._accumulate(fold, kept, 0, places, at, variables, (*counters, *("",) * len(rest)))
                return [value for (value,) in kept]
            with writer.loop(extents[axis], carried=[(kind, value) for value in sums]) as loop:
                loop.following = turns(axis + 1, (*counters, loop.variable), loop.names)
            # After the loop its last values hold.
            return loop.following

        def split(sums: list[str]) -> list[str]:
            # The innermost loop takes `ways` terms in each turn, into sums of their own.
            length = extents[inner - 1]
            whole = length // ways
            carried = [(kind, value) for value in sums] + [(kind, start)] * (len(places) * (ways - 1))
            counters = outer_counters

            def once(base: str, offset: int, partial: list[str]) -> list[str]:
                kept = [[value] for value in partial]
                for rest in itertools.product(*map(range, extents[inner:])):
                    at = (*(0,) * (inner - 1), offset, *rest)
                    names = (*counters, base, *("",) * len(rest))
                    self._accumulate(fold, kept, 0, places, at, variables, names)
                return [value for (value,) in kept]

            with writer.loop(whole, ways, carried) as loop:
                following = []
                for way in range(ways):
                    part = loop.names[way * len(places) : (way + 1) * len(places)]
                    following += once(loop.variable, way, part)
                loop.following = following
            for left in range(whole * ways, length):
                following[: len(places)] = once("", left, following[: len(places)])
            return [
                self._joined(fold, [following[way * len(places) + place] for way in range(ways)])
                for place in range(len(places))
            ]

        outer_counters: tuple[str, ...] = ()
        if ways > 1 and inner == 1:
            return split([start] * len(places))
        return turns(0, (), [start] * len(places))

    def _accumulate(
        self,
        fold: Fold,
        sums: list[list[str]],
        way: int,
        places: list[tuple[int, ...]],
        inner: tuple[int, ...],
        variables: tuple[str, ...],
        counters: tuple[str, ...],
    ) -> None:
        writer, argument = self.writer, fold.argument
        known: dict[Any, str] = {}
        for place, partial in zip(places, sums, strict=True):
            index = Index((*place, *inner), (*variables, *counters))
            if way == len(partial):
                partial.append(writer.element(argument, index, known))
            elif fold.operation == "add" and fold.dtype.kind == "f" and is_product(argument):
                a, b = (writer.element(factor, index, known) for factor in argument.arguments)
                partial[way] = multiply_add(writer, a, b, partial[way])
            else:
                value = writer.element(argument, index, known)
                partial[way] = combine(writer, fold, partial[way], value)

    def _joined(self, fold: Fold, partial: list[str]) -> str:
        while len(partial) > 1:
            pairs = [combine(self.writer, fold, a, b) for a, b in zip(partial[::2], partial[1::2], strict=False)]
            partial = pairs + partial[len(partial) // 2 * 2 :]
        return partial[0]


def writer_limit(writer: Writer) -> int:
    """Operations that one store may write out without loops."""
    return STRAIGHT_SMALL if writer.module.small else STRAIGHT


def is_product(expression: Expression) -> TypeGuard[Apply]:
    """Whether the expression multiplies two others."""
    return isinstance(expression, Apply) and expression.operation == "mul"


def multiply_add(writer: Writer, a: str, b: str, c: str) -> str:
    """``a * b + c``, rounded once where the processor can."""
    kind = writer.module.vector(np.dtype(np.float64))
    if writer.module.fused:
        name = f"@llvm.fma.v{writer.module.lanes}f64"
        writer.module.declarations[f"declare {kind} {name}({kind}, {kind}, {kind})"] = None
        return writer.emit(f"call {kind} {name}({kind} {a}, {kind} {b}, {kind} {c})")
    product = writer.emit(f"fmul contract {kind} {a}, {b}")
    return writer.emit(f"fadd contract {kind} {product}, {c}")


def combine(writer: Writer, fold: Fold, a: str, b: str) -> str:
    """Two partial results of a fold in one."""
    # Of unknown value: nothing may be assumed about it.
    dummy = Constant(np.asarray(np.nan if fold.dtype.kind == "f" else 0, fold.dtype))
    return apply(writer, Apply(fold.operation, (dummy, dummy), fold.dtype), [a, b])


def identity(fold: Fold) -> Any:
    """The neutral element of a fold."""
    kind = fold.dtype.kind
    lowest, highest = (-np.inf, np.inf) if kind == "f" else (False, True)
    if kind in "iu":
        lowest, highest = np.iinfo(fold.dtype).min, np.iinfo(fold.dtype).max
    ones = {"b": True, "i": -1, "u": highest}.get(kind)
    return {"add": 0, "mul": 1, "max": lowest, "min": highest, "and": ones, "or": 0, "xor": 0}[fold.operation]


def cost_of(expression: Expression) -> int:
    """About how many operations one element takes."""
    if isinstance(expression, Apply):
        return COST.get(expression.operation, 1) + sum(map(cost_of, expression.arguments))
    if isinstance(expression, Fold):
        return max(1, cost_of(expression.argument)) * max(1, math.prod(expression.extents))
    if isinstance(expression, Reshaped):
        return cost_of(expression.argument)
    return 0


def parts_of(expression: Expression) -> tuple[Expression, ...]:
    """What an elementwise expression is made of."""
    return expression.arguments if isinstance(expression, Apply) else ()


def folds_in(expression: Expression) -> Iterator[Fold]:
    """The folds that an elementwise expression combines."""
    if isinstance(expression, Fold):
        yield expression
    for part in parts_of(expression):
        yield from folds_in(part)


def reshaped_in(expression: Expression) -> Iterator[Reshaped]:
    """The reshaped folds that an elementwise expression combines."""
    if isinstance(expression, Reshaped):
        yield expression
    for part in parts_of(expression):
        yield from reshaped_in(part)


def takes_in(expression: Expression) -> Iterator[Take]:
    """The gathered elements in an elementwise expression."""
    if isinstance(expression, Take):
        yield expression
    for part in parts_of(expression):
        yield from takes_in(part)
    if isinstance(expression, Fold):
        yield from takes_in(expression.argument)


def takes_anywhere(expression: Expression) -> bool:
    """Whether elements are gathered anywhere in the expression."""
    return any(True for _ in takes_in(expression))


def _unreshaped(expression: Expression, inner: Reshaped) -> Expression:
    """The elementwise expression in the shape of the fold that ``inner`` shows reshaped."""
    if expression is inner:
        return inner.argument
    if isinstance(expression, Apply):
        return expression.of(lambda argument: _unreshaped(argument, inner))
    return expression.reshaped(inner.argument.shape)


def _replaced(expression: Expression, old: Expression, new: Expression) -> Expression:
    """The elementwise expression with one part replaced."""
    if expression is old:
        return new
    if isinstance(expression, Apply):
        return expression.of(lambda argument: _replaced(argument, old, new))
    return expression

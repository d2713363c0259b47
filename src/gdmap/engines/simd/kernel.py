"""Native programs that repeat a function of one trajectory on blocks of them, one in each vector lane."""

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from gdmap.engines.simd.flatten import Program, Unsupported, flat, traced
from gdmap.engines.simd.native import Target, host, loaded
from gdmap.engines.simd.nests import Module, Writer
from gdmap.engines.simd.primitives import Parameters, function_of, operations_of
from gdmap.engines.simd.tensors import Buffer, View
from gdmap.engines.simd.vector_math import module_of

# Programs of so many operations a step are straight-line code on wide blocks; larger ones are loops over arrays.
SMALL = 100
WIDE = 64
LINE = 64


class Field(NamedTuple):
    """What is kept of each trajectory under one name: shape and type."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Kernel:
    """``function`` of the fields of one lane, compiled to run on blocks of lanes until each has stopped.

    Parameters
    ----------
    function
        ``function(*fields) -> fields``, traceable; as many out as in, of the same shapes and types.
    fields
        Examples of the fields of one lane: arrays or shapes.
    stop
        The position of the field (an integer) that is not zero in a lane that has stopped.
    step
        The program whose size decides how wide the blocks are: what is repeated most.

    Raises
    ------
    Unsupported
        If the trace has a primitive or a type that the compiler does not know, or is too large.
    """

    def __init__(self, function: Callable[..., Any], fields: Sequence[Any], stop: int, layout: "Layout") -> None:
        closed = traced(function, *fields)
        program = flat(closed)
        self.layout = layout
        self.fields = [Field(name.shape, name.dtype) for name in program.inputs]
        found = [Field(tuple(output.shape), output.dtype) for output in program.outputs]
        if found != self.fields:
            raise ValueError(f"the function returns {found}, expected the fields it is given: {self.fields}")
        self.text = module_text(program, str(closed.jaxpr), stop, layout)
        self.code = loaded(self.text, layout.small)
        address = self.code.address("run")
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(
            address
        )

    def __call__(self, blocks: Sequence[np.ndarray], times: int = 1) -> None:
        """Repeat the function up to ``times`` on every block, in place, until all its lanes have stopped."""
        count = len(blocks[0])
        pointers = np.array([block.ctypes.data for block in blocks], np.uintp)
        queue = np.zeros(1, np.int64)

        def work(_: int = 0) -> None:
            self._run(pointers.ctypes.data, queue.ctypes.data, count, times)

        workers = min(os.cpu_count() or 1, count)
        if workers <= 1:
            work()
        else:
            list(_workers().map(work, range(workers)))


class Layout(NamedTuple):
    """How lanes lie in vectors: so many lanes in a block, so many vector registers for each number of a block."""

    lanes: int
    registers: int
    small: bool

    @classmethod
    def of(cls, operations: int) -> "Layout":
        """The layout for steps of so many operations on this machine."""
        width = host().width
        if operations <= SMALL:
            return cls(max(WIDE, width), max(WIDE, width) // width, True)
        return cls(width, 1, False)

    def packed(self, values: np.ndarray) -> np.ndarray:
        """Rows of lanes as blocks ``(blocks, size, lanes)``; the last block is filled up with its last lane."""
        count = len(values)
        blocks = -(-count // self.lanes)
        rows = values.reshape(count, -1)
        if count < blocks * self.lanes:
            rows = np.concatenate([rows, np.repeat(rows[-1:], blocks * self.lanes - count, axis=0)])
        if rows.dtype == bool:
            rows = rows.astype(np.int8)
        found = aligned((blocks, rows.shape[1], self.lanes), rows.dtype)
        found[...] = rows.reshape(blocks, self.lanes, -1).transpose(0, 2, 1)
        return found

    def unpacked(self, blocks: np.ndarray, count: int) -> np.ndarray:
        """The first ``count`` lanes of blocks as rows ``(count, size)``."""
        return blocks.transpose(0, 2, 1).reshape(-1, blocks.shape[1])[:count]

    def idle(self, stopped: np.ndarray) -> float:
        """The share of the blocks still at work that packing the lanes anew would save."""
        blocks = -(-len(stopped) // self.lanes)
        running = np.zeros(blocks * self.lanes, bool)
        running[: len(stopped)] = ~stopped
        at_work = int(np.count_nonzero(running.reshape(blocks, -1).any(axis=1)))
        needed = -(-int(np.count_nonzero(running)) // self.lanes)
        return (at_work - needed) / at_work if at_work else 0.0


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array that begins at a cache line, as kernels need."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size].view(dtype).reshape(shape)


_pool: ThreadPoolExecutor | None = None
_guard = threading.Lock()


def _workers() -> ThreadPoolExecutor:
    """The threads that run kernels; started when first needed."""
    global _pool
    with _guard:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="gdmap")
        return _pool


def module_text(program: Program, identity: str, stop: int, layout: Layout) -> str:
    """The LLVM module of a kernel, as text."""
    target: Target = host()
    module = Module(layout.lanes, layout.registers, target.fused, layout.small, 64 * target.width)
    parameters = Parameters()
    fields = [Field(name.shape, name.dtype) for name in program.inputs]
    views = [
        View.whole(Buffer(f"%x{number}", int(np.prod(field.shape)), field.dtype), field.shape)
        for number, field in enumerate(fields)
    ]
    inputs = [parameters.view(view, "read") for view in views]
    changed = [p for p, name in enumerate(program.inputs) if program.outputs[p] is not name]
    writer = Writer(module)
    writer.block = "work"
    results = {p: View.whole(writer.allocate(views[p].size, views[p].dtype), views[p].shape) for p in changed}
    outputs = [parameters.view(results[p], "out") if p in results else None for p in range(len(fields))]
    lane = function_of(module, identity, program, inputs, outputs, parameters)

    writer.check_stack()

    # One block: its fields, then up to `times` repetitions while a lane has not stopped.
    signals, kind = f"<{module.lanes} x i32>", fields[stop].dtype
    if kind != np.int32 or fields[stop].shape:
        raise Unsupported("a stop field that is not one 32-bit integer")
    module.declarations[f"declare i1 @llvm.vector.reduce.and.v{module.lanes}i1(<{module.lanes} x i1>)"] = None
    fetch = []
    for number, field in enumerate(fields):
        size = int(np.prod(field.shape)) * module.element_bytes(field.dtype)
        fetch += [
            f"  %s{number} = getelementptr ptr, ptr %fields, i64 {number}",
            f"  %q{number} = load ptr, ptr %s{number}",
            f"  %o{number} = mul nsw i64 %block, {size}",
            f"  %x{number} = getelementptr i8, ptr %q{number}, i64 %o{number}",
        ]
    writer.do(f"call void {lane}({', '.join(f'ptr {pointer}' for pointer in parameters.pointers)})")
    for position, view in results.items():
        writer.store(view, views[position])
    run = [
        f"define void @run(ptr %fields, ptr %queue, i64 %blocks, i64 %times) {module.attributes} {{",
        "entry:",
        *writer.entry,
        "  br label %next",
        "next:",
        "  %block = atomicrmw add ptr %queue, i64 1 monotonic",
        "  %some = icmp slt i64 %block, %blocks",
        "  br i1 %some, label %fetch, label %done",
        "fetch:",
        *fetch,
        "  br label %test",
        "test:",
        f"  %turn = phi i64 [ 0, %fetch ], [ %more, %{writer.block} ]",
        f"  %signal = load {signals}, ptr %x{stop}, align 4",
        f"  %stops = icmp ne {signals} %signal, zeroinitializer",
        f"  %all = call i1 @llvm.vector.reduce.and.v{module.lanes}i1(<{module.lanes} x i1> %stops)",
        "  %left = icmp slt i64 %turn, %times",
        "  %over = xor i1 %left, true",
        "  %end = or i1 %all, %over",
        "  br i1 %end, label %next, label %work",
        "work:",
        *writer.lines,
        "  %more = add nsw i64 %turn, 1",
        "  br label %test",
        "done:",
        "  ret void",
        "}",
    ]
    declared, definitions = module_of(module.mathematics, module.lanes)
    declarations = sorted({*module.declarations, *declared})
    return "\n".join(
        [
            *module.table_text,
            *declarations,
            definitions,
            *module.functions,
            *run,
            "!0 = distinct !{!0, !1}",
            '!1 = !{!"llvm.loop.unroll.disable"}',
        ]
    )


def layout_for(step: Callable[..., Any], *examples: Any) -> Layout:
    """The layout for a kernel that repeats ``step`` most."""
    return Layout.of(operations_of(flat(traced(step, *examples))))

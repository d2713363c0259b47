"""Programs on blocks of lanes that keep within a budget of memory, as the compiler counts it."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from gdmap.engines.precision import float64, for_tracing

SHAPE = jax.ShapeDtypeStruct
# Lanes in the widest block. More do not pay: networks are no faster by 32 or 128 than by 16.
FEWEST_WIDE, MOST_WIDE, WIDE_NUMBERS = 16, 256, 2**13
KEPT_PROGRAMS = 16


class Fitted(NamedTuple):
    """A compiled program with the block it was compiled for, the threads that run it, and the bytes of one."""

    program: Any
    block: int
    threads: int
    bytes_of_one: int


_programs: OrderedDict[Hashable, Fitted] = OrderedDict()
_guard = threading.Lock()


def widest_block(dim: int) -> int:
    """Lanes in the widest block that pays for states of ``dim`` numbers: a power of two, of ``dim`` alone."""
    return int(np.clip(2 ** int(np.log2(max(WIDE_NUMBERS // dim, 1))), FEWEST_WIDE, MOST_WIDE))


class BudgetedProgram:
    """``function`` of a block of lanes, compiled for the largest block that keeps within ``memory`` bytes.

    As many blocks run side by side as there are processors; ``memory`` is for all of them. What the program needs
    is asked of XLA after compilation: arguments (the arrays of ``function`` itself, data, among them), results and
    temporaries. Results depend on the block in the last bits, hence on ``memory`` and the number of processors,
    but on nothing else: neither on the number of lanes nor on their order. Equal programs are compiled once.

    Attributes
    ----------
    block
        Lanes in a block, a power of two.
    bytes
        What all blocks that run side by side need together.
    """

    def __init__(
        self, function: Callable[..., Any], lane: Any, memory: int, largest: int, threads: int | None = None
    ) -> None:
        """``lane``: the arguments of one lane as shapes and dtypes (a tuple of pytrees).

        Raises
        ------
        ValueError
            If one lane alone needs more than ``memory``; the message says how much.
        """
        arrays, rest = eqx.partition(for_tracing(function), eqx.is_array)
        fitted = fit(arrays, rest, lane, memory, largest, threads or os.cpu_count() or 1)
        self.program, self.block, self.threads, one = fitted
        self.bytes = self.threads * one
        with float64():
            # Once: all blocks read the same data.
            self.arrays = jax.tree.map(jax.numpy.asarray, arrays)

    def __call__(self, lanes: Any) -> Any:
        """The results of all lanes, NumPy arrays with the lanes first; blocks are padded with the last lane."""
        count = len(jax.tree.leaves(lanes)[0])
        results = jax.tree.map(lambda leaf: np.empty((count, *leaf.shape[1:]), leaf.dtype), self.program.out_info)

        def run(begin: int) -> None:
            rows = np.minimum(np.arange(begin, begin + self.block), count - 1)
            with float64():
                result = self.program(self.arrays, jax.tree.map(lambda array: array[rows], lanes))
            kept = min(self.block, count - begin)
            for into, found in zip(jax.tree.leaves(results), jax.tree.leaves(result), strict=True):
                into[begin : begin + kept] = np.asarray(found)[:kept]

        begins = range(0, count, self.block)
        if len(begins) == 1 or self.threads == 1:
            for begin in begins:
                run(begin)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(run, begins))
        return results


def fit(arrays: Any, rest: Any, lane: Any, memory: int, largest: int, threads: int) -> Fitted:
    """The program for the largest block within ``memory``, from the last 16 that were compiled if it is there."""
    shapes = jax.tree.map(lambda leaf: (np.shape(leaf), str(leaf.dtype)), (arrays, lane))
    leaves, structure = jax.tree.flatten((rest, shapes))
    key = (structure, tuple(leaves), memory, largest, threads)
    try:
        hash(key)
        with _guard:
            known = _programs.pop(key, None)
    except (TypeError, ValueError):  # something in the function has no hash, or cannot be compared
        return fitted_anew(arrays, rest, lane, memory, largest, threads)
    fitted = known or fitted_anew(arrays, rest, lane, memory, largest, threads)
    with _guard:
        _programs[key] = fitted
        while len(_programs) > KEPT_PROGRAMS:
            _programs.popitem(last=False)
    return fitted


def fitted_anew(arrays: Any, rest: Any, lane: Any, memory: int, largest: int, threads: int) -> Fitted:
    """Compile for smaller and smaller blocks until ``memory`` is kept."""

    def call(arrays: Any, lanes: Any) -> Any:
        return eqx.combine(arrays, rest)(*lanes)

    block = largest
    while True:
        with float64():
            shapes = jax.tree.map(lambda leaf, block=block: SHAPE((block, *leaf.shape), leaf.dtype), lane)
            program = jax.jit(call).lower(arrays, shapes).compile()
        one = bytes_of(program)
        if threads * one <= memory:
            return Fitted(program, block, threads, one)
        if block == 1 and threads == 1:
            raise ValueError(
                f"not enough memory: the program of one trajectory needs {one:,} bytes and was given {memory:,}; "
                "allow more with memory=, or take fewer samples or a smaller network"
            )
        share = memory / (threads * one)
        if block == 1:
            threads = max(1, int(threads * share))
        else:
            block = 2 ** max(0, min(int(np.log2(block * share)), int(np.log2(block)) - 1))


def bytes_of(program: Any) -> int:
    """What a compiled program needs while it runs: arguments, results and temporaries."""
    analysis = program.memory_analysis()
    return int(
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )

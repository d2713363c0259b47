"""Programs on blocks of lanes that keep within a budget of memory, as the compiler counts it."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import equinox as eqx
import jax
import numpy as np

from gdmap.engines.precision import float64, for_tracing

SHAPE = jax.ShapeDtypeStruct


class BudgetedProgram:
    """``function`` of a block of lanes, compiled for the largest block that keeps within ``memory`` bytes.

    As many blocks run side by side as there are processors; ``memory`` is for all of them. What the program needs
    is asked of XLA after compilation: arguments, results and temporaries. The arrays of ``function`` itself (data)
    are counted too.

    Attributes
    ----------
    block
        Lanes in a block, a power of two. Results depend on it in the last bits, and on nothing else of a batch.
    bytes
        What all blocks that run side by side need together.
    """

    def __init__(
        self, function: Callable[..., Any], lane: Any, memory: int, largest: int, threads: int | None = None
    ) -> None:
        """``lane``: the arguments of one lane as shapes and dtypes (a tuple of pytrees)."""
        self.threads = threads or os.cpu_count() or 1
        arrays, rest = eqx.partition(for_tracing(function), eqx.is_array)
        self.arrays = arrays

        def call(arrays: Any, lanes: Any) -> Any:
            return eqx.combine(arrays, rest)(*lanes)

        self.block = largest
        while True:
            with float64():
                shapes = jax.tree.map(lambda leaf: SHAPE((self.block, *leaf.shape), leaf.dtype), lane)
                self.program = jax.jit(call).lower(arrays, shapes).compile()
            one = bytes_of(self.program)
            self.bytes = self.threads * one
            if self.bytes <= memory:
                return
            if self.block == 1 and self.threads == 1:
                raise ValueError(
                    f"memory={memory:,} bytes are not enough: one trajectory alone needs {one:,} bytes; "
                    "allow that much, or take fewer samples or a smaller network"
                )
            self._shrink(memory / self.bytes)

    def _shrink(self, share: float) -> None:
        if self.block == 1:
            self.threads = max(1, int(self.threads * share))
        else:
            self.block = 2 ** max(0, min(int(np.log2(self.block * share)), int(np.log2(self.block)) - 1))

    def __call__(self, lanes: Any) -> Any:
        """The results of all lanes, NumPy arrays with the lanes first; blocks are padded by repeating the last lane."""
        count = len(jax.tree.leaves(lanes)[0])

        def run(begin: int) -> Any:
            rows = np.minimum(np.arange(begin, begin + self.block), count - 1)
            with float64():
                result = self.program(self.arrays, jax.tree.map(lambda array: array[rows], lanes))
            kept = min(self.block, count - begin)
            return jax.tree.map(lambda array: np.array(array)[:kept], result)

        begins = range(0, count, self.block)
        if len(begins) == 1 or self.threads == 1:
            results = [run(begin) for begin in begins]
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                results = list(pool.map(run, begins))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def bytes_of(program: Any) -> int:
    """What a compiled program needs while it runs: arguments, results and temporaries."""
    analysis = program.memory_analysis()
    return int(
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )

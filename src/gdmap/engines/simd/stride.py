"""The strips of `engines.strips` with native kernels."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gdmap.engines.simd.kernel import Kernel, aligned, layout_for
from gdmap.engines.simd.native import host
from gdmap.engines.strips import Stride, Strip, renewed, watched_stride
from gdmap.engines.xla import RUNNING, Tolerances

# Lanes that are packed, run and unpacked together.
CHUNK = 2**16


class NativeStride:
    """A stretch of the iteration of a strip: what `Stride` does, with a trajectory in each vector lane.

    Raises
    ------
    Unsupported
        If the compiler cannot translate the map.
    """

    def __init__(self, step: Callable[[Any], Any], dim: int, tolerances: Tolerances, escape_radius: float) -> None:
        vector, number, whole = np.zeros(dim), np.zeros(()), np.int32(0)
        self.name = f"simd-{host().width}"
        self.layout = layout_for(step, vector)
        self._escape = Stride(step, tolerances, np.asarray(escape_radius)).escape
        example = Strip(vector, vector, number, vector, number, whole, whole, whole)

        def one_step(*fields: Any) -> tuple[Any, ...]:
            *lane, now, age, escape = fields
            strip = watched_stride(Strip(*lane), step(lane[1]), now, age, escape, tolerances)
            return (*strip, now + 1, age, escape)

        fields = (*example, whole, whole, number)
        self._dtypes = [np.asarray(field).dtype for field in fields]
        self._kernel = Kernel(one_step, fields, Strip._fields.index("signal"), self.layout)

    def __call__(self, strip: Strip, age: int, until: int) -> Strip:
        """The strip after the stretch from ``age`` to ``until``; every lane by itself."""
        strip = renewed(strip)
        count = strip.state.shape[1]
        parts = [
            self._part(Strip(*(f[..., a : a + CHUNK] for f in strip)), age, until) for a in range(0, count, CHUNK)
        ]
        if len(parts) == 1:
            return parts[0]
        return Strip(*(np.concatenate(pieces, axis=-1) for pieces in zip(*parts, strict=True)))

    def _part(self, strip: Strip, age: int, until: int) -> Strip:
        count = strip.state.shape[1]
        with np.errstate(over="ignore"):
            escape = np.asarray(self._escape(strip.start))
        fields = [*strip, np.full(count, age), np.full(count, age), np.minimum(escape, np.finfo(float).max)]
        blocks = [self._packed(np.asarray(f), dtype) for f, dtype in zip(fields, self._dtypes, strict=True)]
        # What fills up the last block has stopped.
        blocks[Strip._fields.index("signal")].reshape(-1)[count:] = RUNNING + 1
        self._kernel(blocks, until - age)
        found = []
        for values, block in zip(strip, blocks[: len(strip)], strict=True):
            rows = block.transpose(1, 0, 2).reshape(block.shape[1], -1)[:, :count]
            found.append(np.ascontiguousarray(rows).reshape(np.shape(values)))
        return Strip(*found)

    def _packed(self, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
        lanes = self.layout.lanes
        rows = values.reshape(-1, values.shape[-1])
        blocks = -(-rows.shape[1] // lanes)
        found = aligned((blocks, len(rows), lanes), dtype)
        whole = rows.shape[1] // lanes
        found[:whole] = rows[:, : whole * lanes].reshape(len(rows), whole, lanes).transpose(1, 0, 2)
        if whole < blocks:
            found[whole] = rows[:, -1:]
            found[whole, :, : rows.shape[1] - whole * lanes] = rows[:, whole * lanes :]
        return found

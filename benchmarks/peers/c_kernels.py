"""The kernels written in C, built in a temporary folder where a compiler exists.

One trajectory per lane of a vector, the state in registers or the first-level cache, steps and nothing else.
"""

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

KERNELS = Path(__file__).parents[1] / "kernels"
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-mprefer-vector-width=512")
FUSED = 10**-9, 0.999


def compiler() -> str | None:
    """The C compiler found first, or none."""
    return next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)


@cache
def library(key: str) -> ctypes.CDLL:
    """The kernel of a problem; ``LookupError`` if there is none, ``OSError`` if it cannot be built."""
    source, command = KERNELS / f"{key}.c", compiler()
    if not source.exists():
        raise LookupError("no kernel written")
    if command is None:
        raise OSError("no C compiler found")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / f"{key}.so"
        call = [command, *FLAGS, "-shared", "-fPIC", "-pthread", "-o", str(built), str(source)]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{command} failed: {done.stderr.strip().splitlines()[0]}")
        return ctypes.CDLL(str(built))


class Kernel:
    """A kernel with its starts, ready to run."""

    def __init__(self, key: str, starts: np.ndarray, step_size: float, constants: np.ndarray) -> None:
        self.library, self.step_size, self.count = library(key), step_size, len(starts)
        lanes = self.library.lanes()
        filled = np.resize(np.arange(self.count), -(-self.count // lanes) * lanes)
        self.starts = np.ascontiguousarray(starts[filled].T)
        self.constants = np.append(constants, 0.0)
        self.ends = self.starts

    def run(self, steps: int) -> None:
        self.ends = self.starts.copy()
        status = self.library.iterate(
            self.ends.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_long(self.ends.shape[1]),
            ctypes.c_long(steps),
            ctypes.c_double(self.step_size),
            self.constants.ctypes.data_as(ctypes.c_void_p),
            os.cpu_count() or 1,
        )
        assert status == 0

    def states(self) -> np.ndarray:
        """Where the last run ended, one row per start."""
        return self.ends.T[: self.count]


def peak_kernel() -> Kernel:
    """Fused multiply-adds in registers: two operations per lane and 'step'."""
    step_size, factor = FUSED
    return Kernel("peak", np.ones((8192, 1)), step_size, np.array([factor]))

import os

# Before NumPy is imported: the threads of OpenBLAS in two workers at once fight for the processors.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from pathlib import Path

import jax
import numpy as np
import pytest

from gdmap import LinearNetwork

MEMORY_MAPS = Path("/proc/self/maps")


@pytest.fixture(scope="module", autouse=True)
def _room_for_compiled_programs():
    """Each compiled program maps memory, and Linux ends a process at 65,530 maps."""
    yield
    if MEMORY_MAPS.exists() and MEMORY_MAPS.read_bytes().count(b"\n") > 45_000:
        jax.clear_caches()


def random_network(seed: int, widths, samples: int = 40, spread: float = 1.0) -> LinearNetwork:
    """A linear network on random data whose input columns differ in scale by up to ``10**spread``."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(samples, widths[0])) * 10 ** rng.uniform(-spread / 2, spread / 2, widths[0])
    targets = inputs @ rng.normal(size=(widths[0], widths[-1])) + rng.normal(size=(samples, widths[-1]))
    return LinearNetwork(widths, inputs, targets)


@pytest.fixture(scope="session")  # one object, so that what is compiled for it is compiled once
def two_factors():
    from gdmap import Function

    return Function(lambda w: 0.5 * (w[0] * w[1] - 1) ** 2, 2)

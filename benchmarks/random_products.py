"""Time of products of random matrices, all Lyapunov exponents and the top one alone, beside a NumPy loop.

    python benchmarks/random_products.py [--json]

SGD's factors I - (eta / B) sum over the batch of g_i g_i^T for 32 random vectors g_i in R^32, 1,000 replicas,
4,000 factors. The NumPy loop multiplies all replicas at once by gathered rows and orthonormalises them with the
batched np.linalg.qr as often as gdmap does (one vector: normalised); it runs for a share of the steps and its
time is scaled up. gdmap is timed with its pilot run, which finds how often to orthonormalise. Both are run
several times in turn, compiled beforehand; seconds are medians.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from gdmap.exponents.random_products import BatchProducts, advance, begin
from gdmap.maps import Batches

DIM = SAMPLES = 32
REPLICAS, STEPS = 1000, 4000
NUMPY_STEPS = 64
STEP_SIZE = 0.02
REPETITIONS = 3
CASES = [(size, k) for size in (1, 8) for k in (DIM, 1)]


def seconds(function: Callable[[], object]) -> float:
    begin_ = time.perf_counter()
    function()
    return time.perf_counter() - begin_


def numpy_loop(factors: np.ndarray, size: int, k: int, stretch: int) -> np.ndarray:
    """Growth per step of each replica, shape ``(REPLICAS, k)``."""
    rng = np.random.default_rng(0)
    frames = np.linalg.qr(rng.normal(size=(REPLICAS, DIM, k)))[0]
    growth = np.zeros((REPLICAS, k))
    for step in range(NUMPY_STEPS):
        batch = rng.random((REPLICAS, SAMPLES)).argpartition(size - 1, axis=1)[:, :size]
        rows = factors[batch]
        frames -= STEP_SIZE / size * rows.swapaxes(1, 2) @ (rows @ frames)
        if (step + 1) % stretch == 0 or step + 1 == NUMPY_STEPS:
            if k == 1:
                lengths = np.linalg.norm(frames, axis=1)
                frames /= lengths[:, None]
                growth += np.log(lengths)
            else:
                frames, upper = np.linalg.qr(frames)
                growth += np.log(np.abs(np.diagonal(upper, axis1=1, axis2=2)))
    return growth / NUMPY_STEPS


def measure(size: int, k: int) -> dict[str, float]:
    factors = np.random.default_rng(0).normal(size=(SAMPLES, DIM))
    law = BatchProducts(factors, np.ones(SAMPLES), np.arange(SAMPLES), Batches(SAMPLES, size), STEP_SIZE)
    cold = seconds(lambda: advance(law, begin(law, REPLICAS, k), 1))
    warm = seconds(lambda: advance(law, begin(law, REPLICAS, k), 1))
    stretch = begin(law, REPLICAS, k).stretch

    def ours() -> np.ndarray:
        return advance(law, begin(law, REPLICAS, k), STEPS)[1]

    def theirs() -> np.ndarray:
        return numpy_loop(factors, size, k, stretch)

    pairs = [(seconds(ours), seconds(theirs) * STEPS / NUMPY_STEPS) for _ in range(REPETITIONS)]
    determinants = np.log(np.abs(1 - STEP_SIZE * np.sum(factors**2, axis=1))).mean() if size == 1 else np.nan
    return {
        "batch size": size,
        "exponents": k,
        "gdmap s": statistics.median(first for first, _ in pairs),
        "numpy s": statistics.median(second for _, second in pairs),
        "numpy / gdmap": statistics.median(second / first for first, second in pairs),
        "compilation s": cold - warm,
        "factors per QR": stretch,
        "sum minus E log|det|": float(ours().sum(axis=2).mean() / STEPS - determinants) if k == DIM else np.nan,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [measure(size, k) for size, k in CASES]
    environment = {"machine": platform.processor() or platform.machine(), "jax": jax.__version__}
    if arguments.json:
        print(json.dumps({"environment": environment, "rows": rows}))
        return
    print(
        f"{environment['machine']}, jax {environment['jax']}, {REPLICAS} replicas, {STEPS} factors {DIM} x {DIM}"
    )
    names = list(rows[0])
    print("".join(f"{name:>{len(name) + 3}}" for name in names))
    for row in rows:
        print("".join(f"{row[name]:>{len(name) + 3}.3g}" for name in names))


if __name__ == "__main__":
    main()

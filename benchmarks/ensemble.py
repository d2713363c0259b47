"""Gradient steps per second of gdmap.ensemble beside a plain JAX loop and the GEMM peak, in one run.

    python benchmarks/ensemble.py [--json]

The plain loop iterates the same map a fixed number of steps and does nothing else. gdmap.ensemble is
timed as a user calls it: with its checks at every step, the period search, confirmation of every fate and
packing. Step sizes are such that most starts run to the horizon (chaos, or slow convergence), so that both
do about the same steps; those of gdmap are counted from its result. Rates are medians over interleaved
repetitions, compiled beforehand.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import gdmap

REPETITIONS = 5
CASES = {
    "product of 2": (gdmap.Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2), 1.5, 0.3, 8192, 4000),
    "double well": (gdmap.Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1), 1.5, 0.3, 8192, 4000),
    "linear 5-5-5-5": (
        gdmap.LinearNetwork.whitened((5, 5, 5, 5), np.diag([1, 0.8, 0.6, 0.4, 0.2])), 0.02, 0.2, 1024, 1000,
    ),
    "linear 8-8-10 on digits": (gdmap.data.digits(components=8).linear_network([8]), 0.02, 0.1, 1024, 1000),
}  # fmt: skip


def seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def plain_loop(objective, step_size: float, starts: np.ndarray, steps: int) -> Callable[[], object]:
    map_ = gdmap.GradientDescent(objective, step_size)

    @jax.jit
    def run(states):
        return jax.lax.fori_loop(0, steps, lambda _, states: jax.vmap(map_.update)(states), states)

    def call():
        with jax.enable_x64(True):
            return jax.block_until_ready(run(jnp.asarray(starts)))

    return call


def gemm_peak(size: int = 1024) -> float:
    """Float64 matrix-multiplication rate of this machine, in flop/s."""
    with jax.enable_x64(True):
        a = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)))
        multiply = jax.jit(jnp.matmul)
        jax.block_until_ready(multiply(a, a))
        best = min(seconds(lambda: jax.block_until_ready(multiply(a, a))) for _ in range(REPETITIONS))
    return 2 * size**3 / best


def flops_per_step(objective) -> float:
    """Floating-point operations of one gradient step, as XLA counts them for the compiled step."""
    with jax.enable_x64(True):
        step = jax.jit(gdmap.GradientDescent(objective, 0.1).step)
        return float(step.lower(jnp.zeros(objective.dim)).compile().cost_analysis()["flops"])


def measure(name: str, peak: float) -> dict[str, float | str]:
    objective, step_size, scale, count, steps = CASES[name]
    starts = gdmap.gaussian_starts(count, objective.dim, scale=scale)
    plain = plain_loop(objective, step_size, starts, steps)
    map_ = gdmap.GradientDescent(objective, step_size)
    result = gdmap.ensemble(map_, starts, steps)
    taken = int(result.steps.sum())
    plain()
    pairs = [(seconds(lambda: gdmap.ensemble(map_, starts, steps)), seconds(plain)) for _ in range(REPETITIONS)]
    ours = statistics.median(taken / first for first, _ in pairs)
    theirs = statistics.median(count * steps / second for _, second in pairs)
    flops = flops_per_step(objective)
    return {
        "objective": name,
        "starts": count,
        "horizon": steps,
        "share of steps taken": taken / (count * steps),
        "gdmap steps/s": ours,
        "plain steps/s": theirs,
        "gdmap / plain": statistics.median((taken / a) / (count * steps / b) for a, b in pairs),
        "gdmap / GEMM peak": ours * flops / peak,
        "plain / GEMM peak": theirs * flops / peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    peak = gemm_peak()
    rows = [measure(name, peak) for name in CASES]
    environment = {
        "machine": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        "GEMM flop/s": peak,
    }
    if arguments.json:
        print(json.dumps({"environment": environment, "rows": rows}))
        return
    print(f"float64 GEMM peak {peak / 1e9:.1f} Gflop/s, {environment['machine']}, jax {jax.__version__}")
    print(
        f"{'objective':26}{'gdmap M/s':>11}{'plain M/s':>11}{'ratio':>8}"
        f"{'gdmap/peak':>12}{'plain/peak':>12}{'steps':>7}"
    )
    for row in rows:
        print(
            f"{row['objective']:26}{row['gdmap steps/s'] / 1e6:11.3g}{row['plain steps/s'] / 1e6:11.3g}"
            f"{row['gdmap / plain']:8.3f}{row['gdmap / GEMM peak']:12.2%}{row['plain / GEMM peak']:12.2%}"
            f"{row['share of steps taken']:7.0%}"
        )


if __name__ == "__main__":
    main()

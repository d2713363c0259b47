"""Training many networks at once: gdmap beside plain jit(vmap(grad)) and the GEMM peak, in one run.

    python benchmarks/network.py [--json] [--dtype float32 float64] [--networks 1 4 16] [--steps 512]

The network is fully connected, 784-32-10, tanh, squared loss, on 1,000 samples. "program" is the compiled training
loop of gdmap.asymptotics; "asymptotics" is the call as a user makes it, for the last number of networks: training,
the record of the window, the ends of the Hessian spectra (up to 312 Hessian-vector products each) and the
verdicts, compiled beforehand, of which only the gradient steps are counted. The flops of a gradient are those of
its products of matrices (2 a b c each) and nothing else: 784 x 32 and 32 x 10 forward, 784 x 32 once and 32 x 10
twice backward, for each sample. The peak is the best rate of a product of two matrices of several sizes, those of
the network among them, on all processors. All is timed in turn, several times over; rates are the best ones, as
the machine may be busy with other things.
"""

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gdmap
from gdmap.engines.budget import BudgetedProgram, widest_block
from gdmap.ensembles.horizon import Train
from gdmap.maps import StepSizeFamily

INPUTS, WIDTH, OUTPUTS, SAMPLES = 784, 32, 10, 1000
GEMM_SHAPES = (
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (512, 512, 512),
    (SAMPLES, INPUTS, 512),
    (INPUTS, SAMPLES, 512),
)
ROUNDS, PROGRAM_STEPS, STEP_SIZE = 5, 16, 0.01
FLOPS_OF_GRADIENT = 2 * SAMPLES * (2 * INPUTS * WIDTH + 3 * WIDTH * OUTPUTS)


def seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def gemms(dtype: Any) -> list[tuple[float, Callable[[], object]]]:
    """Flops and calls of products of matrices."""
    rng = np.random.default_rng(0)
    multiply = jax.jit(jnp.matmul)
    calls = []
    for a, b, c in GEMM_SHAPES:
        left, right = jnp.asarray(rng.normal(size=(a, b)), dtype), jnp.asarray(rng.normal(size=(b, c)), dtype)
        calls.append((2.0 * a * b * c, lambda left=left, right=right: multiply(left, right).block_until_ready()))
    return calls


def plain(network: gdmap.Network, thetas: np.ndarray) -> Callable[[], object]:
    """One gradient of each network, by hand: jit(vmap(grad)) of the loss written as a user would."""
    x, y = jnp.asarray(network.inputs, thetas.dtype), jnp.asarray(network.targets, thetas.dtype)
    first, bias = INPUTS * WIDTH, INPUTS * WIDTH + WIDTH
    second = bias + WIDTH * OUTPUTS

    def loss(theta: Any) -> Any:
        hidden = jnp.tanh(x @ theta[:first].reshape(WIDTH, INPUTS).T + theta[first:bias])
        output = hidden @ theta[bias:second].reshape(OUTPUTS, WIDTH).T + theta[second:]
        return jnp.sum((output - y) ** 2) / (2 * SAMPLES)

    gradient = jax.jit(jax.vmap(jax.grad(loss)))
    given = jnp.asarray(thetas)
    return lambda: gradient(given).block_until_ready()


def training(network: gdmap.Network, thetas: np.ndarray) -> tuple[Callable[[], object], int]:
    """Some steps of the training program of asymptotics; lanes in its block."""
    dtype, count = thetas.dtype, len(thetas)
    number, vector, integer = (
        jax.ShapeDtypeStruct(shape, kind) for shape, kind in (((), dtype), ((network.dim,), dtype), ((), np.int64))
    )
    family = StepSizeFamily(network, gdmap.GradientDescent)
    program = BudgetedProgram(
        Train(family), (number, vector, number, integer, integer), 2**29, widest_block(network.dim)
    )
    lanes = (
        np.full(count, STEP_SIZE, dtype),
        thetas,
        np.full(count, 1e6, dtype),
        np.zeros(count, np.int64),
        np.full(count, PROGRAM_STEPS, np.int64),
    )
    return lambda: program(lanes), program.block


def measure(dtype: str, networks: list[int], steps: int) -> tuple[float, list[dict[str, Any]]]:
    rng = np.random.default_rng(0)
    module = gdmap.models.FullyConnected((INPUTS, WIDTH, OUTPUTS), "tanh")
    images, labels = rng.normal(size=(SAMPLES, INPUTS)), np.eye(OUTPUTS)[rng.integers(OUTPUTS, size=SAMPLES)]
    network = gdmap.Network(module, images, labels)
    with jax.enable_x64(True):
        timed: dict[Any, tuple[float, Callable[[], object]]] = dict(enumerate(gemms(dtype)))
        blocks = {}
        for count in networks:
            thetas = (0.05 * rng.normal(size=(count, network.dim))).astype(dtype)
            flops = FLOPS_OF_GRADIENT * count
            timed[count, "plain"] = (flops, plain(network, thetas))
            run, blocks[count] = training(network, thetas)
            timed[count, "program"] = (flops * PROGRAM_STEPS, run)

        timed["asymptotics"] = (
            flops * steps,
            lambda: gdmap.asymptotics(network, [STEP_SIZE], thetas, steps, exponent=False),
        )
        best = dict.fromkeys(timed, 0.0)
        for again in range(ROUNDS + 1):
            for name, (flops, function) in timed.items():
                # The call of a user takes long: twice is enough.
                if again <= 1 or name != "asymptotics":
                    rate = flops / seconds(function)
                    best[name] = max(best[name], rate) if again else 0.0
    peak = max(best[index] for index in range(len(GEMM_SHAPES)))
    rows = []
    for count in networks:
        row: dict[str, Any] = {"dtype": dtype, "networks": count, "block": blocks[count]}
        for name in ("plain", "program"):
            row[f"{name} flop/s"] = best[count, name]
            row[f"{name} / GEMM peak"] = best[count, name] / peak
        rows.append(row)
    rows[-1] |= {"asymptotics flop/s": best["asymptotics"], "asymptotics / GEMM peak": best["asymptotics"] / peak}
    return peak, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "float64"), default=["float32", "float64"])
    parser.add_argument("--networks", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--steps", type=int, default=512, help="of asymptotics, at least 128")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "the starts are float32", UserWarning)
    found = {dtype: measure(dtype, arguments.networks, arguments.steps) for dtype in arguments.dtype}
    environment = {
        "machine": platform.processor() or platform.machine(),
        "jax": jax.__version__,
        "flops of a gradient": FLOPS_OF_GRADIENT,
        "GEMM flop/s": {dtype: peak for dtype, (peak, _) in found.items()},
    }
    if arguments.json:
        print(
            json.dumps({"environment": environment, "rows": [row for _, rows in found.values() for row in rows]})
        )
        return
    for dtype, (peak, rows) in found.items():
        print(f"{dtype} GEMM peak {peak / 1e9:.1f} Gflop/s, {environment['machine']}, jax {jax.__version__}")
        names = ("plain", "program", "asymptotics")
        print(f"{'networks':>10}{'block':>7}" + "".join(f"{name + ' Gflop/s':>22}{'share':>8}" for name in names))
        for row in rows:
            shown = (
                f"{row[f'{name} flop/s'] / 1e9:22.1f}{row[f'{name} / GEMM peak']:8.0%}"
                for name in names
                if f"{name} flop/s" in row
            )
            print(f"{row['networks']:10}{row['block']:7}" + "".join(shown))


if __name__ == "__main__":
    main()

"""Time of gdmap.sharpness in gradient evaluations, and its error, on a network of about 100,000 parameters.

    python benchmarks/sharpness.py [--json]

A tanh network 64-280-280-10 on scikit-learn's 1,797 digits, cross-entropy and squared loss, at initialisation
and after gradient descent. The sharpness is computed in float32 as a user calls it (start, rounding test and
checks included) and divided by the time of one compiled float32 gradient with all data on the device; the
reference is the float64 sharpness at the same point. Times are medians over interleaved warm repetitions;
compilation is reported apart.
"""

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import gdmap
from gdmap.spectra import sharpness

REPETITIONS = 9
WIDTHS = (64, 280, 280, 10)
TRAINING_STEPS = 300


def outputs(params, x):
    *hidden, (matrix, bias) = params
    for weights, shift in hidden:
        x = jnp.tanh(weights @ x + shift)
    return matrix @ x + bias


def cross_entropy(params, x, y):
    return -jnp.sum(y * jax.nn.log_softmax(outputs(params, x)))


def squared(params, x, y):
    return jnp.sum((outputs(params, x) - y) ** 2) / 2


LOSSES = {"cross-entropy": cross_entropy, "squared": squared}


def digits_network(loss: Callable) -> tuple[gdmap.Objective, np.ndarray]:
    """The objective and its initial parameters (normal with variance 1 / fan-in, no bias), float64."""
    data = load_digits()
    rng = np.random.default_rng(0)
    sizes = list(itertools.pairwise(WIDTHS))
    params = [(rng.normal(size=(out, into)) / np.sqrt(into), np.zeros(out)) for into, out in sizes]
    objective = gdmap.Objective(loss, params, (data.data / 16, np.eye(10)[data.target]))
    return objective, objective.ravel(params)


@eqx.filter_jit
def trained(objective, theta, step_size):
    """``theta`` after gradient descent."""
    step = gdmap.GradientDescent(objective, step_size).update
    return jax.lax.fori_loop(0, TRAINING_STEPS, lambda _, state: step(state), theta)


@eqx.filter_jit
def compiled_gradient(objective, theta):
    return jax.grad(objective.evaluate)(theta)


def seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def measure(name: str, phase: str, objective: gdmap.Objective, theta: np.ndarray) -> dict[str, float | str]:
    single = theta.astype(np.float32)

    with jax.enable_x64(True):
        on_device = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, np.float32) if eqx.is_array(leaf) else leaf, objective
        )
        here = jnp.asarray(single)

    def gradient():
        with jax.enable_x64(True):
            return jax.block_until_ready(compiled_gradient(on_device, here))

    def top():
        return sharpness(objective, single)

    gradient()
    first = seconds(top)
    pairs = [(seconds(gradient), seconds(top)) for _ in range(REPETITIONS)]
    found, reference = top(), sharpness(objective, single.astype(float))
    warm = statistics.median(second for _, second in pairs)
    return {
        "loss": name,
        "phase": phase,
        "parameters": objective.dim,
        "value of the loss": float(objective.value(theta)),
        "sharpness": found.value,
        "reference": reference.value,
        "relative difference": abs(found.value / reference.value - 1),
        "relative width": found.relative_width,
        "inside the bracket": found.lower <= reference.value <= found.upper,
        "gradient s": statistics.median(first for first, _ in pairs),
        "sharpness s": warm,
        "gradients": statistics.median(second / first for first, second in pairs),
        "compilation s": first - warm,
        "method": found.method,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for name, loss in LOSSES.items():
        objective, start = digits_network(loss)
        rows.append(measure(name, "start", objective, start))
        with jax.enable_x64(True):
            step_size = np.asarray(1 / rows[-1]["reference"])
            end = np.asarray(trained(objective, jnp.asarray(start), step_size))
        rows.append(measure(name, "trained", objective, end))
    environment = {"machine": platform.processor() or platform.machine(), "jax": jax.__version__}
    if arguments.json:
        print(json.dumps({"environment": environment, "rows": rows}))
        return
    print(f"{environment['machine']}, jax {environment['jax']}, {rows[0]['parameters']} parameters, float32")
    print(
        f"{'loss':15}{'phase':9}{'loss value':>11}{'sharpness':>11}{'difference':>12}{'width':>10}{'inside':>8}"
        f"{'gradient ms':>13}{'gradients':>11}{'compile s':>11}"
    )
    for row in rows:
        print(
            f"{row['loss']:15}{row['phase']:9}{row['value of the loss']:11.4g}{row['sharpness']:11.5g}"
            f"{row['relative difference']:12.1e}{row['relative width']:10.1e}{row['inside the bracket']!s:>8}"
            f"{row['gradient s'] * 1e3:13.2f}{row['gradients']:11.1f}{row['compilation s']:11.2f}"
        )
        print(f"{'':15}{row['method']}")


if __name__ == "__main__":
    main()

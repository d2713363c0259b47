"""Where can SGD end, and gradient descent not, or the other way round? A network that interpolates 32 digits.

A two-layer tanh network is fitted to 32 of the digits until every sample's loss is zero. At this minimum: mu,
A two-layer tanh network is fitted to 32 of the digits until the loss of each is zero. At this minimum: mu,
it at step sizes on both sides of the almost-sure one. Two minutes on two cores.

Writes sgd-on-digits.png, sgd-on-digits.md and the minimum into the folder given as the only argument (default: the
current one).
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import gdmap

SAMPLES, HIDDEN, TRAINING_STEPS = 32, 16, 4000
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
STEP_SIZE = 0.05
BELOW, ABOVE = 0.85, 1.15


def loss(params, x, y):
    """The square loss of one sample."""
    return (params["v"] @ jnp.tanh(params["W"] @ x + params["b"]) + params["c"] - y) ** 2 / 2


def fitted_network():
    """The network on the first 32 digits (is the digit odd?), and a minimum that interpolates them."""
    digits = gdmap.data.digits(components=8)
    inputs = digits.inputs[:SAMPLES]
    odd = 2.0 * (np.argmax(digits.targets[:SAMPLES], axis=1) % 2) - 1
    rng = np.random.default_rng(0)
    params = {
        "W": rng.normal(size=(HIDDEN, inputs.shape[1])) / np.sqrt(inputs.shape[1]),
        "b": np.zeros(HIDDEN),
        "v": rng.normal(size=HIDDEN) / np.sqrt(HIDDEN),
        "c": np.zeros(()),
    }
    network = gdmap.Objective(loss, params, data=(inputs, odd))
    descent = gdmap.GradientDescent(network, 0.2)
    with jax.enable_x64(True):
        run = jax.jit(lambda theta: jax.lax.fori_loop(0, TRAINING_STEPS, lambda _, t: descent.update(t), theta))
        trained = np.asarray(run(network.ravel(params)))
    return network, gdmap.find_minimum(network, trained)


def shown(number):
    """A bracket or exponent with half the width of its interval."""
    half = (number.upper - number.lower) / 2
    return f"{number.value:.5f} +- {half:.1g}" if number.status == "estimated" else f"{number.value:.5f}"


def main(folder):
    network, minimum = fitted_network()
    theta = minimum.theta
    np.savez(folder / "minimum.npz", theta=theta)
    print(f"loss {minimum.loss:.2g}, sharpness {minimum.sharpness}, normal space {network.dim - minimum.nullity}")
    mu = gdmap.gd_exponent(network, theta, STEP_SIZE)
    lines = [
        f"mu at step size {STEP_SIZE}: {shown(mu)} ({mu.verdict})",
        "",
        f"| batch size | lambda at {STEP_SIZE} | mean square | almost surely | returned below | returned above |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    bounds = gdmap.sgd_step_size_bounds(network, theta, batch_sizes=BATCH_SIZES)
    thresholds = []
    for size in BATCH_SIZES:
        exponent = gdmap.sgd_exponent(network, theta, STEP_SIZE, size)
        threshold = gdmap.almost_sure_threshold(network, theta, size)
        thresholds.append(threshold)
        shares = []
        for factor in (BELOW, ABOVE):
            map_ = gdmap.StochasticGradientDescent(network, factor * threshold.value, batch_size=size)
            runs = gdmap.escape_or_return(map_, theta, distance=1e-4, starts=100, max_steps=40_000)
            low, high = float(runs.share_returned_lower), float(runs.share_returned_upper)
            shares.append(
                f"{float(runs.share_returned):.2f} [{low:.2f}, {high:.2f}] (z {float(runs.growth_rate_z):+.1f})"
            )
        mean_square = float(bounds.mean_square.sel(batch_size=size))
        lines.append(
            f"| {size} | {shown(exponent)} ({exponent.verdict}) | {mean_square:.5f} | {shown(threshold)} "
            f"| {shares[0]} | {shares[1]} |"
        )
        print(lines[-1], flush=True)
    lines += [
        "",
        f"Runs: 100 starts at 1e-4 of the size of the minimum, at {BELOW} and {ABOVE} times the almost-sure",
        "critical step size, with Wilson intervals of 95 %; z compares their growth rate with lambda.",
    ]
    (folder / "sgd-on-digits.md").write_text("\n".join(lines) + "\n")
    draw(bounds, thresholds).savefig(folder / "sgd-on-digits.png", dpi=150)


def draw(bounds, thresholds):
    """The critical step sizes against the batch size."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    values = np.array([threshold.value for threshold in thresholds])
    ends = np.abs(np.array([[t.lower, t.upper] for t in thresholds]).T - values)
    axes.errorbar(BATCH_SIZES, values, ends, fmt="o", color="C3", capsize=3, label="almost surely (lambda = 0)")
    styles = {
        "mean_square": ("C0", "-"),
        "necessary_trace": ("C1", ":"),
        "necessary_top_direction": ("C2", ":"),
        "wu_ma_e": ("C4", "--"),
        "gradient_descent": ("0.3", "--"),
    }
    for name, (color, line) in styles.items():
        axes.plot(bounds.batch_size, bounds[name], line, color=color, marker=".", label=name.replace("_", " "))
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="critical step size")
    axes.set_xticks(BATCH_SIZES, [str(size) for size in BATCH_SIZES])
    axes.legend(frameon=False, fontsize=8)
    axes.set_title("A tanh network that interpolates 32 digits", fontsize=10)
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))

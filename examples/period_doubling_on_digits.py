"""What happens to a network at the step size 2 / sharpness? The first period doubling of a tanh network on digits.

A tanh network with 502 parameters is fitted to 256 digits with a little weight decay, so that its minimum is
isolated. As a fixed point of gradient descent it is continued in the step size up to its period doubling, at 2 /
sharpness; the coefficient of the normal form says whether a stable cycle of period two is born there. The branch
of that cycle is followed, and checked by plain iteration: runs started next to the minimum, at step sizes on both
sides. Two minutes on two cores.

Writes period_doubling_on_digits.png and period_doubling_on_digits.md into the folder given as the only argument
(default: the current one).
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import minimize

import gdmap

SAMPLES, COMPONENTS, HIDDEN, DECAY = 256, 30, 12, 4e-3
# Where continuation begins and how far the cycle is followed, as shares of 2 / sharpness.
BEGIN, BEYOND = 0.98, 1.04
# Where runs are compared with the branches, and how they begin: this far from the minimum, for so many steps.
COMPARED = (0.99, 1.005, 1.01, 1.02, 1.03)
NUDGE, STEPS = 1e-3, 30_000


def loss(params, x, y):
    """Half the squared error of one sample, and weight decay."""
    output = params["V"] @ jnp.tanh(params["W"] @ x + params["b"]) + params["c"]
    decay = sum(jnp.sum(block**2) for block in params.values())
    return jnp.sum((output - y) ** 2) / 2 + DECAY * decay / 2


def fitted_network():
    """The network on the first digits (which one is it?), and its minimum."""
    digits = gdmap.data.digits(components=COMPONENTS)
    inputs, targets = digits.inputs[:SAMPLES], digits.targets[:SAMPLES]
    rng = np.random.default_rng(0)
    params = {
        "W": rng.normal(size=(HIDDEN, COMPONENTS)) / np.sqrt(COMPONENTS),
        "b": np.zeros(HIDDEN),
        "V": rng.normal(size=(targets.shape[1], HIDDEN)) / np.sqrt(HIDDEN),
        "c": np.zeros(targets.shape[1]),
    }
    network = gdmap.Objective(loss, params, data=(inputs, targets))
    with jax.enable_x64(True):
        both = jax.jit(jax.value_and_grad(network.value))
        trained = minimize(
            lambda theta: tuple(np.asarray(part) for part in both(theta)),
            np.asarray(network.ravel(params)),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 20_000, "maxfun": 30_000, "gtol": 1e-9, "ftol": 0.0, "maxcor": 50},
        ).x
    return network, gdmap.find_minimum(network, trained)


def shown(bracket):
    """A bracket with half the width of its interval and its status."""
    return f"{bracket.value:.12g} +- {(bracket.upper - bracket.lower) / 2:.1e} ({bracket.status})"


def iterated(network, start, step_size):
    """The last two states of a run of gradient descent."""
    map_ = gdmap.GradientDescent(network, step_size)
    return gdmap.trajectory(map_, start, STEPS, "state", every=STEPS - 1)["state"].values[-2:]


def amplitude(points):
    """Half the distance between the two points of a cycle."""
    return float(np.linalg.norm(points[0] - points[1])) / 2


def main(folder):
    network, minimum = fitted_network()
    theta, sharpness = minimum.theta, minimum.sharpness
    threshold = 2 / sharpness.value
    bounds = (BEGIN * threshold * 0.99, BEYOND * threshold)
    lines = [
        f"{network.dim} parameters, loss {minimum.loss:.6f}, sharpness {shown(sharpness)}, "
        f"2 / sharpness = {threshold:.12g}"
    ]
    fixed = gdmap.orbit_at(gdmap.GradientDescent(network, BEGIN * threshold), theta)
    branch = gdmap.continue_orbit(fixed, bounds=bounds, direction="up", until="period-doubling")
    doubling = next(event for event in branch.events if event.kind == "period-doubling")
    lines.append(
        f"period doubling at step size {shown(doubling.bracket)}, {doubling.parameter - threshold:+.1e} from "
        f"2 / sharpness; multiplier {doubling.multiplier.real:.12g}"
    )
    flip = gdmap.flip_coefficient(network, theta)
    lines.append(
        f"coefficient {shown(doubling.coefficient)}, {doubling.criticality}; by flip_coefficient "
        f"{shown(flip.coefficient)}, {flip.kind}"
    )
    for line in lines:
        print(line, flush=True)
    cycles = gdmap.switch_branch(doubling)
    lines.append(
        f"cycle of period 2 followed from step size {cycles.parameter[0]:.6f} to {cycles.parameter[-1]:.6f}, "
        f"{len(cycles.parameter)} orbits, {int(cycles.stable.sum())} of them stable; it ends "
        f"{cycles.ended['end'].message}"
    )
    print(lines[-1], flush=True)
    step_sizes = threshold * np.array(COMPARED)
    start = theta + NUDGE * doubling.eigenvector.real
    ends = [iterated(network, start, float(step_size)) for step_size in step_sizes]
    lines += [
        "",
        "| step size x sharpness / 2 | amplitude predicted | cycle | run | distance | largest multiplier |",
    ]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    followed = list(zip(cycles.parameter, cycles.points, strict=True))
    for share, step_size, states in zip(COMPARED, step_sizes, ends, strict=True):
        excess = step_size * sharpness.value - 2
        orbit = fixed if excess < 0 else cycles.at(step_size)[0]
        points = np.vstack([orbit.points, orbit.points])[:2]
        if excess > 0:
            followed.append((step_size, points))
        distance = min(np.linalg.norm(states - np.roll(points, k, axis=0), axis=1).max() for k in range(2))
        predicted = np.sqrt(max(excess, 0) / flip.coefficient.value)
        top = f"{orbit.multipliers[0].real:.8f} +- {orbit.multiplier_errors[0]:.0e}"
        lines.append(
            f"| {share} | {predicted:.6f} | {amplitude(points):.6f} | {amplitude(states):.6f} | {distance:.1e} "
            f"| {top} |"
        )
        print(lines[-1], flush=True)
    (folder / "period_doubling_on_digits.md").write_text("\n".join(lines) + "\n")
    draw(network, branch, followed, doubling, flip, step_sizes, ends).savefig(
        folder / "period_doubling_on_digits.png", dpi=150
    )


def draw(network, branch, cycles, doubling, flip, step_sizes, ends):
    """Amplitude and loss of minimum and cycle against the step size, with the runs."""
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    low, high = branch.parameter[0], max(step_size for step_size, _ in cycles)
    order = np.argsort([step_size for step_size, _ in cycles])
    at = np.array([step_size for step_size, _ in cycles])[order]
    sizes = np.array([amplitude(points) for _, points in cycles])[order]
    losses = np.array([[network.value(theta) for theta in points] for _, points in cycles])[order]
    grid = np.linspace(doubling.parameter, high, 200)
    excess = grid * flip.sharpness.value - 2
    left.plot([low, doubling.parameter], [0, 0], color="C0", lw=2, label="minimum, stable")
    left.plot([doubling.parameter, high], [0, 0], color="C0", ls="--", lw=1, label="minimum, unstable")
    # The square of the amplitude is smooth at the doubling: it is what is interpolated between the orbits.
    left.plot(grid, np.sqrt(np.interp(grid, at, sizes**2)), color="C3", lw=1.5)
    left.plot(at, sizes, ".", color="C3", label="cycle of period 2")
    left.plot(grid, np.sqrt(excess / flip.coefficient.value), "k:", lw=1, label="normal form")
    left.plot(step_sizes, [amplitude(states) for states in ends], "o", mfc="none", color="black", label="runs")
    left.set(xlabel="step size", ylabel="half the distance of the two points")
    right.plot([low, high], np.full(2, losses[0, 0]), color="C0", ls="--", lw=1)
    right.plot([low, doubling.parameter], np.full(2, losses[0, 0]), color="C0", lw=2)
    right.plot(at, losses, ".-", color="C3", lw=1.5)
    right.plot(step_sizes, [[network.value(x) for x in states] for states in ends], "o", mfc="none", color="black")
    right.set(xlabel="step size", ylabel="loss at both points")
    left.legend(frameon=False, fontsize="small", loc="lower right", bbox_to_anchor=(1, 0.08))
    for axes in (left, right):
        axes.axvline(doubling.parameter, color="0.6", lw=0.8, ls=":")
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))

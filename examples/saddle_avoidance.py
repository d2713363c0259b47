"""Gradient descent avoids strict saddles at large step sizes too (arXiv:2510.24466), and where it does not.

Ensembles started around a strict saddle, at step sizes up to several times 2 / sharpness there, where the
classical argument (a step size below 1 / Lipschitz constant of the gradient) does not apply. What decides is
whether the map is non-singular: `certify_nonsingular` proves it for these very step sizes. The control is the
loss of Figure 1 of that paper: at its singular step size gradient descent converges to a *maximum* from a set of
positive measure.

Writes saddle-avoidance.png into the folder given as the only argument (default: the current one).
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import gdmap

STARTS = 300
FACTORS = (0.25, 0.9, 1.5, 3.0)

rng = np.random.default_rng(0)
x = rng.normal(size=20)
y = np.sin(1.5 * x)


def network_loss(params, x, y):
    """log cosh of the residual of a tanh network; with all weights zero it is at a strict saddle."""
    residual = params["v"] @ jnp.tanh(params["w"] * x) - y
    return jnp.logaddexp(residual, -residual)


def figure_1(theta):
    """A loss with a maximum at 0 and parabolas outside [-2, 2]."""
    t = theta[0]
    return jnp.where(jnp.abs(t) <= 2, t**4 / 2 - 3 * t**2 + 8, t**2)


LOSSES = {
    "two tanh factors": gdmap.Function(lambda w: (jnp.tanh(w[0]) * jnp.tanh(w[1]) - 0.5) ** 2 / 2, 2),
    "tanh network, 4 units": gdmap.Objective(network_loss, {"w": np.zeros(4), "v": np.zeros(4)}, data=(x, y)),
}


def run(objective, step_size, scale):
    """The share of starts around 0 that end on a saddle or a maximum, what else they do, and the certificate."""
    starts = gdmap.gaussian_starts(STARTS, objective.dim, scale=scale)
    fates = gdmap.ensemble(gdmap.GradientDescent(objective, step_size), starts, max_steps=3000)
    shares = gdmap.fate_fractions(fates.fate)
    share = [
        float(shares[name].sel(fate_name="saddle")) for name in ("fraction", "fraction_lower", "fraction_upper")
    ]
    others = [
        f"{name} {float(shares.fraction.sel(fate_name=name)):.2f}"
        for name in shares.fate_name.values
        if name != "saddle" and shares.fraction.sel(fate_name=name) > 0
    ]
    others.append(f"nearest to it at the end {np.linalg.norm(fates.state, axis=1).min():.2g}")
    return share, ", ".join(others), gdmap.certify_nonsingular(objective, step_size)


def told(name, share, others, certificate):
    """One line of the table."""
    value, lower, upper = share
    verdict = f"{certificate.verdict} on {certificate.scope} ({certificate.status})"
    print(f"{name}: {value:.3f} ({lower:.3f} to {upper:.3f}); {others}; map {verdict}")


figure = Figure(figsize=(7.6, 3.6), layout="constrained")
left, right = figure.subplots(1, 2, width_ratios=(2, 1), sharey=True)
print(f"{STARTS} starts around a critical point: share that ends on a saddle or a maximum (95 % interval)")
for (name, objective), colour, marker in zip(LOSSES.items(), ("#0072B2", "#E69F00"), "os", strict=True):
    sharpness = np.linalg.eigvalsh(objective.hessian(np.zeros(objective.dim)))[-1]
    for factor in FACTORS:
        step_size = float(factor * 2 / sharpness)
        result = (share, lower, upper), *_ = run(objective, step_size, scale=0.01)
        told(f"{name}, {factor} x 2 / sharpness", *result)
        place = factor if marker == "o" else factor + 0.05  # beside each other
        label = name if factor == FACTORS[0] else None
        spread = [[share - lower], [upper - share]]
        left.errorbar(place, share, spread, fmt=marker, color=colour, capsize=5, mfc="none", label=label)
control = gdmap.Function(figure_1, 1)
for position, step_size in enumerate((0.25, 0.5)):
    result = (share, lower, upper), *_, certificate = run(control, step_size, scale=3.0)
    told(f"control, step size {step_size}", *result)
    right.errorbar(position, share, [[share - lower], [upper - share]], fmt="D", color="#D55E00", capsize=3)
    right.annotate(
        certificate.verdict,
        (position, share),
        (0, -18 if share > 0.5 else 12),
        textcoords="offset points",
        ha="center",
    )
left.set_ylim(-0.04, 1.08)
left.set_xlabel("step size, in units of 2 / sharpness of the saddle")
left.set_ylabel("share that converges to it")
left.set_title("strict saddles, map proved non-singular", fontsize="medium")
left.legend(frameon=False)
right.set_xlim(-0.6, 1.6)
right.set_xticks([0, 1], ["0.25", "0.5"])
right.set_xlabel("step size")
right.set_title("control: a maximum", fontsize="medium")
for axes in (left, right):
    axes.grid(alpha=0.25, linewidth=0.6)
folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
figure.savefig(folder / "saddle-avoidance.png", dpi=110)

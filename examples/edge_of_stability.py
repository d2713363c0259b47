"""Progressive sharpening, then the edge of stability: one run of gradient descent on a small network.

Writes edge-of-stability.png into the folder given as the only argument (default: the current one).
"""

import itertools
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import gdmap

rng = np.random.default_rng(0)
x = np.linspace(-1, 1, 32)[:, None]
y = np.sin(4 * x)


def loss(params, x, y):
    """The square loss of a tanh network with two hidden layers."""
    hidden = x
    for weights, bias in params[:-1]:
        hidden = jnp.tanh(weights @ hidden + bias)
    weights, bias = params[-1]
    return jnp.sum((weights @ hidden + bias - y) ** 2) / 2


widths = (1, 12, 12, 1)
params = [(rng.normal(size=(b, a)) / np.sqrt(a), np.zeros(b)) for a, b in itertools.pairwise(widths)]
objective = gdmap.Objective(loss, params, data=(x, y))
run = gdmap.trajectory(gdmap.GradientDescent(objective, 0.1), objective.ravel(params), 5000, every=10)
folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
gdmap.plots.plot_trajectory(run, "tanh network, widths 1-12-12-1, 32 points").savefig(
    folder / "edge-of-stability.png", dpi=110
)
print(run)

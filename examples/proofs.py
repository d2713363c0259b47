"""Proofs on demand: is the gradient-descent map of this network non-singular at this step size?

Prints what is proved, with its scope and its method, checks a record again, lists exceptional step sizes, and
draws the sign of det(I - eta H) for a ReLU network. Writes proof.json, determinant-sign.png and distances.png into
the folder given as the only argument (default: the current one).
"""

import sys
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import gdmap

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
rng = np.random.default_rng(0)
x = rng.normal(size=(12, 2))
y = np.sin(x[:, 0]) * x[:, 1]


def network(activation, width, decay=0.0):
    """A network with one hidden layer and biases, half the mean square loss, weight decay."""

    def loss(p, x, y):
        hidden = activation(p["W"] @ x + p["b"])
        size = sum(jnp.sum(part**2) for part in p.values())
        return (p["v"] @ hidden + p["c"] - y) ** 2 / 2 + decay / 2 * size

    params = {"W": np.zeros((width, 2)), "b": np.zeros(width), "v": np.zeros(width), "c": np.zeros(())}
    return gdmap.Objective(loss, params, data=(x, y))


# A smooth network: one proof for all of parameter space. The record is checked from the loss alone.
smooth = network(jnp.tanh, 16)
certificate = gdmap.certify_nonsingular(smooth, 0.1)
print(certificate.explain())
certificate.save(folder / "proof.json")
print("Checked again:", gdmap.check_proof(smooth, folder / "proof.json").reason)

# Bounded activations and cross-entropy grow at most linearly: every step size at once.
labels = (y > 0).astype(float)
logits = gdmap.Objective(
    lambda p, x, t: jnp.logaddexp(0.0, p["v"] @ jnp.tanh(p["W"] @ x)) - t * (p["v"] @ jnp.tanh(p["W"] @ x)),
    {"W": np.zeros((8, 2)), "v": np.zeros(8)},
    data=(x, labels),
)
print("\n" + gdmap.certify_nonsingular(logits).explain())

# A ReLU network falls into pieces. Where all units are dead the output bias sees a parabola: 1 is exceptional.
points = np.array([0.9, 2.5, -1.0]), np.array([0.5, 1.0, -0.3])
relu = gdmap.Objective(
    lambda p, x, y: (jax.nn.relu(p["w"] * x + p["b"]) @ p["v"] + p["c"] - y) ** 2 / 2,
    {"w": np.zeros(2), "b": np.zeros(2), "v": np.zeros(2), "c": np.zeros(())},
    data=points,
)
print("\n" + gdmap.exceptional_step_sizes(relu).explain())

# Near misses: with weight decay the double 0.1, ten steps of it are not exactly 1.
decayed = gdmap.Function(lambda w: jnp.tanh(w[0]) ** 2 / 2 + 0.1 / 2 * jnp.sum(w**2), 2)
print("\n" + gdmap.certify_nonsingular(decayed, 10.0).explain())
print("\n" + gdmap.certify_nonsingular(decayed, Fraction(10), exact_decimals=True).explain())

# Pictures: computed in floating point; they show what the proofs say, and prove nothing.


def weights(w, b, v, c):
    """A vector of all parameters."""
    return relu.ravel({"w": np.array(w), "b": np.array(b), "v": np.array(v), "c": np.array(c)})


corner = weights([0.0, 0.1], [0.0, -0.5], [0.7, -0.9], 0.0)  # the second unit is dead
first_weight, first_bias = (weights([k, 0.0], [1 - k, 0.0], [0.0, 0.0], 0.0) for k in (1.0, 0.0))
plane = (corner, first_weight, first_bias)
gdmap.plots.plot_determinant_sign(relu, 1.0, plane, extent=2.5, title="ReLU network, 3 samples").savefig(
    folder / "determinant-sign.png", dpi=110
)
distances = gdmap.singularity_distance(smooth, 0.1, gdmap.gaussian_starts(400, smooth.dim))
gdmap.plots.plot_singularity_distance(distances, "tanh network, random weights").savefig(
    folder / "distances.png", dpi=110
)

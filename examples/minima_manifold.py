"""Do minima of non-linear networks that do not interpolate form a manifold? (an open question of arXiv:2402.13108)

At minima found from many starts: the nullity of the Hessian against the dimension found by moving along it.
"""

import jax.numpy as jnp
import numpy as np

import gdmap

rng = np.random.default_rng(0)
x = np.repeat(rng.normal(size=6), 2)
y = np.sin(2 * x) + 0.5 * rng.normal(size=12)  # two targets for every input: nothing interpolates


def network(activation, width, decay=0.0):
    """A network with one hidden layer and no biases: theta = (a, v)."""

    def loss(params, x, y):
        return (params["v"] @ activation(params["a"] * x) - y) ** 2 / 2 + decay * sum(
            jnp.sum(part**2) for part in params.values()
        )

    return gdmap.Objective(loss, {"a": np.zeros(width), "v": np.zeros(width)}, data=(x, y))


def squared_units(preactivation):
    """A positively homogeneous, smooth activation: every unit can be rescaled."""
    return preactivation * jnp.abs(preactivation)


CASES = {
    "tanh, width 2": network(jnp.tanh, 2),
    "tanh, width 8": network(jnp.tanh, 8),
    "tanh, width 8, weight decay": network(jnp.tanh, 8, decay=1e-3),
    "z|z|, width 2": network(squared_units, 2),
}

print("minima: number, loss; nullity and dimension found by moving; share where both agree")
for name, objective in CASES.items():
    try:
        minima = gdmap.sample_minima(objective, 12)
    except ValueError as error:
        print(f"{name:>28}: {error}")
        continue
    found = gdmap.minima_manifold(objective, minima.theta)
    nullity, dimension = (sorted(set(found[key].values.tolist())) for key in ("nullity", "dimension"))
    print(
        f"{name:>28}: {found.sizes['minimum']:>3}, {float(found.loss.min()):.6f}; nullity {nullity}, "
        f"dimension {dimension}; agree {float(found.agrees.mean()):.2f}"
    )

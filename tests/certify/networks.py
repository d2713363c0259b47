"""Small networks of every kind, as objectives on random data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import gdmap


def objective(module, predict, inputs, targets, loss):
    """``mean loss(predict(module, x_i), y_i)`` of an Equinox module (or tuple of modules)."""
    params, static = eqx.partition(module, eqx.is_inexact_array)

    def sample_loss(p, x, y):
        return loss(predict(eqx.combine(p, static), x), y)

    return gdmap.Objective(sample_loss, params, data=(inputs, targets))


def squared(output, target):
    return 0.5 * jnp.sum((output - target) ** 2)


def cross_entropy(output, label):
    return -jax.nn.log_softmax(output)[label]


def data(loss, m, shape, outputs, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((m, *shape))
    targets = rng.integers(0, outputs, m) if loss is cross_entropy else rng.standard_normal((m, outputs))
    return inputs, targets


def mlp(widths, activation=jnp.tanh, loss=squared, m=8, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(widths))
    layers = [eqx.nn.Linear(a, b, key=k) for a, b, k in zip(widths, widths[1:], keys, strict=False)]

    def predict(layers, x):
        for layer in layers[:-1]:
            x = activation(layer(x))
        return layers[-1](x)

    return objective(layers, predict, *data(loss, m, widths[:1], widths[-1], seed), loss)


def convolutional(activation=jax.nn.gelu, pool=eqx.nn.AvgPool2d, m=4, channels=3, outputs=3):
    keys = jax.random.split(jax.random.key(1), 2)
    module = (eqx.nn.Conv2d(1, channels, 3, key=keys[0]), eqx.nn.Linear(channels * 9, outputs, key=keys[1]))

    def predict(module, x):
        return module[1](pool(2, 2)(activation(module[0](x))).ravel())

    return objective(module, predict, *data(cross_entropy, m, (1, 8, 8), outputs), cross_entropy)


def attention(m=4, width=4, length=5, hidden=8, outputs=3, loss=cross_entropy):
    keys = jax.random.split(jax.random.key(2), 4)
    module = (
        eqx.nn.LayerNorm(width),
        eqx.nn.MultiheadAttention(1, width, key=keys[0]),
        eqx.nn.Linear(width, hidden, key=keys[1]),
        eqx.nn.Linear(hidden, outputs, key=keys[2]),
    )

    def predict(module, x):
        norm, attend, first, last = module
        normed = jax.vmap(norm)(x)
        mixed = jnp.mean(x + attend(normed, normed, normed), 0)
        return last(jax.nn.gelu(first(mixed), approximate=False))

    return objective(module, predict, *data(loss, m, (length, width), outputs), loss)


def recurrent(m=4, length=6, inputs=2, hidden=5):
    keys = jax.random.split(jax.random.key(3), 2)
    module = (eqx.nn.GRUCell(inputs, hidden, key=keys[0]), eqx.nn.Linear(hidden, 1, key=keys[1]))

    def predict(module, x):
        state, _ = jax.lax.scan(lambda h, part: (module[0](part, h), None), jnp.zeros(hidden, x.dtype), x)
        return module[1](state)

    return objective(module, predict, *data(squared, m, (length, inputs), 1), squared)

"""Complete Hessians of small networks: JAX's float64 values lie in inflated balls, which lie in intervals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdmap
from gdmap.engines.balls.arb import Arb
from gdmap.engines.balls.arithmetic import UndecidedError
from gdmap.engines.balls.mid_rad import MidRad, outward
from gdmap.engines.pieces import PiecewiseProgram
from gdmap.engines.precision import float64

RNG = np.random.default_rng(11)
KEY = jax.random.key(0)
# The reference is compiled in a hurry: it runs a few times only.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu by tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}


def square(prediction, y):
    return 0.5 * jnp.sum((prediction - y) ** 2)


def cross_entropy(logits, y):
    return -jax.nn.log_softmax(logits)[y]


def objective(make, loss, x, y, decay=0.0):
    """The loss of a model; its initial weights do not matter, and are not drawn, which takes JAX long."""
    shapes = eqx.filter_eval_shape(make)
    model = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf, shapes
    )
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def of_sample(p, x, y):
        penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))
        return loss(eqx.combine(p, static)(x), y) + (decay * penalty if decay else 0.0)

    return gdmap.Objective(of_sample, params, data=(x, y))


def mlp(activation):
    return objective(
        lambda: eqx.nn.MLP(2, 1, 3, 2, activation=activation, key=KEY),
        square,
        RNG.normal(size=(3, 2)),
        RNG.normal(size=(3, 1)),
    )


class Convolution(eqx.Module):
    conv: eqx.nn.Conv2d
    out: eqx.nn.Linear
    activation: object = eqx.field(static=True)
    pool: object = eqx.field(static=True)

    def __call__(self, x):
        return self.out(self.pool(self.activation(self.conv(x))).ravel())


def convolution(activation, pool, **parameters):
    channels = parameters.pop("in_channels", 1)

    def make():
        conv = eqx.nn.Conv2d(channels, 2, 2, key=KEY, **parameters)
        size = jax.eval_shape(lambda x: pool(conv(x)).ravel(), jnp.zeros((channels, 5, 5))).shape[0]
        return Convolution(conv, eqx.nn.Linear(size, 3, key=KEY), activation, pool)

    return objective(make, cross_entropy, RNG.normal(size=(2, channels, 5, 5)), np.array([2, 0]))


class Attention(eqx.Module):
    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    masked: bool = eqx.field(static=True)

    def __call__(self, x):
        x = jax.vmap(self.norm)(x)
        q, k, v = (jax.vmap(part)(x) for part in (self.query, self.key, self.value))
        logits = q @ k.T / np.sqrt(2.0)
        if self.masked:
            logits = jnp.where(np.tril(np.ones((3, 3), bool)), logits, -1e30)
        return jnp.mean(x + jax.nn.softmax(logits) @ v, 0)


def attention(masked):
    def make():
        parts = [eqx.nn.Linear(2, 2, use_bias=False, key=KEY) for _ in range(3)]
        return Attention(*parts, eqx.nn.LayerNorm(2, eps=1e-2), masked)

    return objective(make, cross_entropy, RNG.normal(size=(2, 3, 2)), np.array([1, 0]))


class Recurrent(eqx.Module):
    cell: eqx.Module
    size: int = eqx.field(static=True)

    def __call__(self, x):
        start = jnp.zeros(self.size)
        return jnp.sum(jax.lax.scan(lambda h, x: (self.cell(x, h), None), start, x)[0], keepdims=True)


class SimpleCell(eqx.Module):
    inner: eqx.nn.Linear
    outer: eqx.nn.Linear

    def __call__(self, x, h):
        return jnp.tanh(self.inner(x) + self.outer(h))


def recurrent(kind):
    def make():
        if kind == "gru":
            return Recurrent(eqx.nn.GRUCell(1, 2, key=KEY), 2)
        cell = SimpleCell(eqx.nn.Linear(1, 2, key=KEY), eqx.nn.Linear(2, 2, use_bias=False, key=KEY))
        return Recurrent(cell, 2)

    return objective(make, square, RNG.normal(size=(2, 3, 1)), RNG.normal(size=(2, 1)))


def avg_pool(x):
    return eqx.nn.AvgPool2d(2, 2)(x)


def max_pool(x):
    return eqx.nn.MaxPool2d(2, 2)(x)


def padded_max_pool(x):
    return eqx.nn.MaxPool2d(3, 2, padding=1)(x)


MODELS = {
    **{f"mlp, {name}": lambda activation=activation: mlp(activation) for name, activation in ACTIVATIONS.items()},
    "conv, gelu, average pool": lambda: convolution(ACTIVATIONS["gelu"], avg_pool),
    "conv, relu, max pool": lambda: convolution(jax.nn.relu, max_pool),
    "strided conv, tanh, padded max pool": lambda: convolution(jnp.tanh, padded_max_pool, padding=1, stride=2),
    "grouped conv, silu, average pool": lambda: convolution(
        jax.nn.silu, avg_pool, in_channels=2, groups=2, use_bias=False
    ),
    "attention, layer norm": lambda: attention(False),
    "causal attention, layer norm": lambda: attention(True),
    "gru": lambda: recurrent("gru"),
    "simple recurrent": lambda: recurrent("simple"),
    "cross-entropy": lambda: objective(
        lambda: eqx.nn.MLP(2, 3, 3, 1, activation=jnp.tanh, key=KEY),
        cross_entropy,
        RNG.normal(size=(4, 2)),
        np.array([0, 2, 1, 1]),
    ),
    "weight decay": lambda: objective(
        lambda: eqx.nn.MLP(2, 1, 3, 1, activation=jnp.tanh, key=KEY),
        square,
        RNG.normal(size=(3, 2)),
        RNG.normal(size=(3, 1)),
        0.1,
    ),
    "linear network": lambda: gdmap.LinearNetwork((3, 2, 2), RNG.normal(size=(5, 3)), RNG.normal(size=(5, 2))),
    "float32 data": lambda: objective(
        lambda: eqx.nn.MLP(2, 1, 3, 1, activation=jnp.tanh, key=KEY),
        square,
        RNG.normal(size=(3, 2)).astype(np.float32),
        RNG.normal(size=(3, 1)).astype(np.float32),
    ),
}


def check(name, n_points):
    net = MODELS[name]()
    pieces = PiecewiseProgram(net.evaluate, net.dim)
    rng = np.random.default_rng(sum(map(ord, name)))
    points = rng.normal(size=(n_points, net.dim)) * rng.choice([0.3, 1.0], (n_points, 1))
    with float64():
        hessian = jax.jit(jax.hessian(net.evaluate), compiler_options=QUICKLY)
        floats = np.array([hessian(point) for point in points])
    decided = 0
    for point, hessian in zip(points, floats, strict=True):
        try:
            pattern = pieces.pattern(point, MidRad())
        except UndecidedError:
            pattern = pieces.pattern(point, Arb(256))
        intervals = pieces.hessian(point, pattern, MidRad())
        # Rounding errors of JAX: where terms cancel (saturated attention), the radii tell of it.
        size = np.maximum(1e-12 * np.abs(hessian).max(), 1e-4 * intervals.rad)
        balls = outward(pieces.hessian(point, pattern, Arb(128)))
        assert np.all(np.abs(balls.mid - hessian) <= balls.rad + size)
        # Balls are tight, ...
        assert np.all(balls.rad <= 1e-15 * np.abs(hessian).max())
        assert np.all(np.abs(intervals.mid - hessian) <= intervals.rad + size)
        # ... and the verified doubles hold them, and are of use.
        assert np.all(np.abs(intervals.mid - balls.mid) <= intervals.rad + balls.rad)
        assert np.all(intervals.rad <= 1e-4 * np.abs(hessian).max())
        decided += 1
    return decided


# The others are in the thousand points below: compiling the references takes long.
SHORT = [
    *(f"mlp, {name}" for name in ("relu", "gelu", "softplus", "tanh")),
    *("conv, relu, max pool", "attention, layer norm", "simple recurrent", "linear network", "weight decay"),
]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("conv")) for name in SHORT]
)
def test_hessians_lie_in_their_enclosures(name):
    assert check(name, 4) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_hessians_lie_in_their_enclosures_at_a_thousand_points(name):
    n_points = -(-1000 // len(MODELS))
    assert check(name, n_points) * len(MODELS) >= 1000


def test_max_pooling_of_dead_units_is_no_tie():
    net = convolution(jax.nn.relu, max_pool)
    pieces = PiecewiseProgram(net.evaluate, net.dim)
    bias = 8
    for seed in range(5):
        point = 0.1 * np.random.default_rng(seed).normal(size=net.dim)
        # A bias of the convolution far below zero: every unit of its channel is dead.
        point[bias] = -20.0
        pattern = pieces.pattern(point, MidRad())
        hessian = outward(pieces.hessian(point, pattern, Arb(128)))
        assert np.all(hessian.mid[bias] == 0) and np.all(hessian.rad[bias] == 0)
        assert np.any(hessian.mid != 0)

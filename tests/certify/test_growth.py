"""Upper bounds of the growth of losses: they hold far out, are close where they can be, and are not invented."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from scipy.optimize import minimize

from gdmap.certify.growth import growth, largest_eigenvalue
from gdmap.engines.precision import float64
from gdmap.engines.program import flat_program
from gdmap.engines.ranges import ranges

DIM = 17
rng = np.random.default_rng(0)
X = rng.standard_normal((4, 3))
Y = rng.standard_normal((4, 3))
LABELS = np.array([0, 1, 2, 1])


def net(t, activation=jnp.tanh):
    return activation(X @ t[:6].reshape(3, 2) + t[6:8]) @ t[8:14].reshape(2, 3) + t[14:17]


def cross_entropy(z):
    return -jnp.mean(jax.nn.log_softmax(z)[jnp.arange(4), LABELS])


def layer_norm(z):
    return (z - z.mean(-1, keepdims=True)) / jnp.sqrt(z.var(-1, keepdims=True) + 1e-5)


def attention(t):
    query, key, value = (jnp.asarray(X) @ t[i : i + 3].reshape(3, 1) for i in (0, 3, 6))
    mixed = jax.nn.softmax(query @ key.T) @ value + X
    return cross_entropy(layer_norm(mixed) @ t[8:17].reshape(3, 3))


def recurrent(t):
    def step(state, x):
        return jnp.tanh(x @ t[:6].reshape(3, 2) + state @ t[6:10].reshape(2, 2)), None

    state, _ = jax.lax.scan(step, jnp.zeros(2), X)
    return jax.nn.logsumexp(state @ t[10:16].reshape(2, 3)) - state[0] * t[16]


def convolution(t):
    image = X.reshape(1, 1, 4, 3)
    out = (
        jax.lax.conv_general_dilated(image, t[:8].reshape(2, 1, 2, 2), (1, 1), "SAME")
        + t[8:10][None, :, None, None]
    )
    pooled = jax.lax.reduce_window(jnp.tanh(out), 0.0, jax.lax.add, (1, 1, 2, 1), (1, 1, 2, 1), "VALID") / 2
    return jnp.sum(jax.nn.softplus(pooled.reshape(-1)[:7] * t[10:17]))


# Each loss with the curvature expected, as (least, most).
LOSSES = {
    "cross-entropy": (lambda t: cross_entropy(net(t)), 0, 0),
    "weight decay": (lambda t: cross_entropy(net(t)) + 0.05 * jnp.sum(t**2), 0.1, 0.1 * (1 + 1e-12)),
    "vdot": (lambda t: cross_entropy(net(t)) + 0.05 * jnp.vdot(t, t), 0.1, 0.1 * (1 + 1e-12)),
    "decay in parts": (
        lambda t: recurrent(t) + 0.05 * (jnp.sum(t[:8] * t[:8]) + jnp.sum(jnp.square(t[8:].reshape(3, 3)))),
        0.1,
        0.1 * (1 + 1e-12),
    ),
    "decay of some": (lambda t: cross_entropy(net(t)) + 0.5 * jnp.sum(t[:6] ** 2), 1, 1 + 1e-12),
    "decay twice": (lambda t: 0.5 * jnp.sum(t**2) + 0.5 * jnp.sum(t[::-1] ** 2), 2, 2 + 1e-12),
    "one-hot": (lambda t: -jnp.mean(jnp.sum(jax.nn.one_hot(LABELS, 3) * jax.nn.log_softmax(net(t)), -1)), 0, 0),
    "logsumexp": (lambda t: jnp.mean(jax.nn.logsumexp(net(t), -1) - net(t)[:, 0]), 0, 0),
    "integer labels": (lambda t: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(net(t), LABELS)), 0, 0),
    "binary": (lambda t: jnp.mean(optax.sigmoid_binary_cross_entropy(net(t), 0.3)), 0, 0),
    "log sigmoid": (
        lambda t: -jnp.mean(0.3 * jnp.log(jax.nn.sigmoid(net(t))) + 0.7 * jnp.log(1 - jax.nn.sigmoid(net(t)))),
        0,
        0,
    ),
    "log of softmax": (lambda t: -jnp.mean(jnp.log(jax.nn.softmax(net(t)))[:, 0]), 0, 0),
    "softplus by hand": (lambda t: jnp.mean(jnp.log1p(jnp.exp(net(t)))), 0, 0),
    "squared error": (lambda t: jnp.sum((net(t) - Y) ** 2) / 8, 3, 3 + 1e-12),  # |h| <= 1: width + 1
    "sigmoid units": (lambda t: jnp.sum((net(t, jax.nn.sigmoid) - Y) ** 2) / 8, 3, 3 + 1e-12),
    "huber": (lambda t: jnp.mean(optax.huber_loss(net(t), Y)), 0, 0),
    "bounded": (lambda t: jnp.mean(jnp.tanh(net(t)) ** 2), 0, 0),
    "gelu": (lambda t: cross_entropy(net(t, jax.nn.gelu)), 1, 5),
    "silu": (lambda t: cross_entropy(net(t, jax.nn.silu)), 1, 5),
    "softplus": (lambda t: cross_entropy(net(t, jax.nn.softplus)), 1, 5),
    "attention": (attention, 0, 0),
    "recurrent": (recurrent, 0, 0),
    "convolution": (convolution, 0, 0),
    "regression": (lambda t: jnp.sum((X @ t[:3] - Y[:, 0]) ** 2) / 8, np.linalg.norm(X, 2) ** 2 / 4, 5),
    "product": (lambda t: t[0] * t[1], 1, 1 + 1e-12),
    "norm": (lambda t: jnp.sqrt(1 + jnp.sum(t**2)), 0, 0),
    "cauchy": (lambda t: jnp.sum(jnp.log1p(t**2)), 0, 0),
    "kinks": (lambda t: jnp.max(t) - jnp.min(jnp.abs(t)) + jnp.sum(jnp.where(t > 0, t, 0.1 * t)), 0, 0),
    "running": (
        lambda t: jnp.max(jnp.cumsum(t)) + jnp.sum(jnp.zeros(3).at[jnp.array([0, 0, 1])].add(t[:3])),
        0,
        0,
    ),
    "quotients": (
        lambda t: jnp.sum(t / (1 + jnp.exp(-t))) + jnp.sum(jnp.arctan(t) * t[0] - jnp.clip(t, -1, 9)),
        0,
        0,
    ),
    "padded": (lambda t: jnp.sum(jnp.pad(t, 2) ** 2) + t[jnp.array([0, 5])].sum(), 2, 2 + 1e-12),
    "falling": (lambda t: -jnp.sum(t**4) - jnp.sum(jnp.exp(t)) + t[0], 0, 0),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_bound_holds_and_is_as_small_as_it_should_be(name):
    loss, least, most = LOSSES[name]
    program = flat_program(loss, (DIM,))
    found = growth(program)
    assert least <= found.curvature <= most, found
    draw = np.random.default_rng(1)
    directions = draw.standard_normal((1000, DIM)) * np.exp(2 * draw.standard_normal((1000, DIM)))  # some lopsided
    radius = 10.0 ** draw.uniform(-2, 6, 1000)
    with float64():
        theta = jnp.asarray(directions / np.linalg.norm(directions, axis=1)[:, None] * radius[:, None])
        values = np.asarray(jax.jit(jax.vmap(loss))(theta))
    representable = np.isfinite(values)  # logarithms of underflowed numbers are not
    assert representable.sum() > 400
    bound = found.at(radius)
    assert np.all(values[representable] <= (bound + 1e-9 * np.abs(bound) + 1e-12)[representable])


@pytest.mark.parametrize(
    "loss",
    [
        lambda t: jnp.sum(t**4),
        lambda t: t[0] ** 4 + t[1] ** 2 / 2,
        lambda t: jnp.sum(jnp.abs(t) ** 3),
        lambda t: jnp.sum(jnp.abs(t) ** 2.5),
        lambda t: jnp.exp(t[0]),
        lambda t: jnp.cosh(t[0]),
        lambda t: jnp.sum((t[:4].reshape(2, 2) @ t[4:6] - 1) ** 2),
        lambda t: jnp.sum((net(t, lambda x: x) - Y) ** 2),
        lambda t: jnp.sum((net(t, jax.nn.gelu) - Y) ** 2),
        lambda t: t[0] * t[1] * t[2],
        lambda t: t[0] ** 2 * t[1],
        lambda t: 1 / (t[0] ** 2),
        lambda t: -jnp.log(t[0] ** 2),
        lambda t: -jnp.log(1 - jnp.tanh(t[0])),
        lambda t: jnp.log(jnp.exp(jnp.exp(t[0]))),
        lambda t: jnp.sinh(t[0]),
        lambda t: jnp.prod(t),
    ],
)
def test_faster_growth_is_not_bounded(loss):
    found = growth(flat_program(loss, (DIM,)))
    assert found.curvature == math.inf and not found.bounded
    assert found.steps[-1] == "no bound by a square is shown"


UNARY = [
    *(jnp.tanh, jax.nn.sigmoid, jax.nn.gelu, jax.nn.softplus, jax.nn.relu, jnp.abs, jnp.square, jnp.sin, jnp.exp),
    *(jnp.arctan, jax.nn.softmax, jax.nn.log_softmax, layer_norm, jnp.transpose, jnp.negative, jnp.flip),
    *(lambda x: jnp.log1p(x * x), lambda x: jnp.sqrt(1 + x * x), lambda x: 1 / (1 + x * x), lambda x: x / -0.3),
    *(lambda x: jnp.cumsum(x, 0), lambda x: jnp.where(x > 0, x, 0.1 * x), lambda x: jnp.clip(x, -2, 1)),
    *(
        lambda x: x * jnp.array([1.0, -2.0, 0.5]),
        lambda x: x[jnp.array([2, 0, 0])],
        lambda x: x.at[0].add(2 * x[1]),
    ),
    *(lambda x: x - jnp.max(x, -1, keepdims=True), lambda x: jax.nn.logsumexp(x, -1, keepdims=True) + 0 * x),
    *(lambda x: jnp.concatenate([x[:1], jnp.ones_like(x[:2])]), lambda x: x**3, lambda x: x + jnp.sum(x)),
]
BINARY = [
    *(jnp.add, jnp.subtract, jnp.multiply, jnp.matmul, jnp.maximum, jnp.minimum, jnp.logaddexp),
    *(lambda a, b: jnp.where(a > b, a, -b), lambda a, b: a / (1 + b * b), lambda a, b: jnp.outer(a[0], b[1])),
]


def random_loss(draw):
    """A composition of random operations on 3 by 3 matrices."""
    plan = [
        (draw.integers(len(UNARY)), draw.integers(len(BINARY)), *draw.random(3))
        for _ in range(draw.integers(1, 9))
    ]
    final = [jnp.sum, jnp.mean, jnp.max][draw.integers(3)]

    def loss(t):
        pool = [t[:9].reshape(3, 3), t[9:12] + jnp.zeros((3, 3)), jnp.asarray(X[:3])]
        for unary, binary, kind, one, other in plan:
            a, b = pool[int(one**0.5 * len(pool))], pool[int(other**0.7 * len(pool))]
            pool.append(UNARY[unary](a) if kind < 0.55 else BINARY[binary](a, b))
        return final(pool[-1])

    return loss


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(s, marks=pytest.mark.slow) for s in range(20, 60))])
def test_random_programs_stay_in_their_bounds(seed):
    draw = np.random.default_rng(seed)
    program = flat_program(random_loss(draw), (12,))
    known, found = ranges(program), growth(program)
    variables = [v for e in program.jaxpr.eqns for v in e.outvars if v.aval.dtype == np.float64]
    inner = ClosedJaxpr(program.jaxpr.replace(outvars=[*variables, *program.jaxpr.outvars]), program.consts)
    radius = 10.0 ** draw.uniform(-2, 1, 100)  # farther out rounding saturates sigmoids
    directions = draw.standard_normal((100, 12))
    with float64():
        theta = jnp.asarray(directions / np.linalg.norm(directions, axis=1)[:, None] * radius[:, None])
        *values, losses = (np.asarray(x) for x in jax.vmap(jaxpr_as_fun(inner))(theta))
    for variable, value in zip(variables, values, strict=True):
        finite = value[np.isfinite(value)]
        slack = 1e-7 * (1 + np.abs(finite))
        assert np.all(finite >= known[variable].lower - slack) and np.all(finite <= known[variable].upper + slack)
    bound = found.at(radius)
    assert not np.any(np.isfinite(losses) & (losses > bound + 1e-7 * (1 + np.abs(bound))))


def test_bounded_losses_are_recognised():
    assert growth(flat_program(LOSSES["bounded"][0], (DIM,))).bounded
    one_sided = growth(flat_program(lambda t: -jnp.sum(t**2), (DIM,)))
    assert one_sided.curvature == 0 and not one_sided.bounded and one_sided.a0 == 0
    probability = growth(flat_program(lambda t: -jnp.mean(jax.nn.softmax(net(t))[:, 0]), (DIM,)))
    assert probability.bounded and "between" in probability.steps[0]


@pytest.mark.slow
def test_the_largest_value_less_a_parabola_has_small_curvature():
    """The argument behind it: where ``L - (c'/2) r^2`` is largest, the Hessian's eigenvalues are at most c'."""
    loss, slope = LOSSES["cross-entropy"][0], 0.05
    with float64():
        value = jax.jit(jax.value_and_grad(lambda t: slope / 2 * jnp.sum(t**2) - loss(t)))
        start = np.random.default_rng(3).standard_normal(DIM)
        top = minimize(lambda t: [np.asarray(x) for x in value(t)], start, jac=True, method="L-BFGS-B", tol=1e-12)
        curvatures = np.linalg.eigvalsh(jax.hessian(loss)(jnp.asarray(top.x)))
    assert growth(flat_program(loss, (DIM,))).curvature < slope
    assert curvatures.max() <= slope + 1e-6


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 10**6), st.floats(0.1, 1))
def test_the_largest_eigenvalue_is_bounded_closely(rows, columns, seed, density):
    draw = np.random.default_rng(seed)
    matrix = draw.random((rows, columns)) * (draw.random((rows, columns)) < density)
    true = np.linalg.norm(matrix, 2) ** 2
    found = largest_eigenvalue(sp.csr_array(matrix))
    assert true * (1 - 1e-12) <= found <= true * 1.05 + 1e-200


def test_a_larger_network_is_quick():
    data = np.random.default_rng(0).standard_normal((128, 64))

    def loss(t):
        hidden = jnp.tanh(data @ t[: 64 * 64].reshape(64, 64) + t[4096:4160])
        z = hidden @ t[4160:4800].reshape(64, 10) + t[4800:4810]
        return jnp.mean(jax.nn.logsumexp(z, -1) - z[:, 0]) + 0.5e-3 * jnp.sum(t**2)

    found = growth(flat_program(loss, (4810,)))
    assert 1e-3 <= found.curvature <= 1e-3 * (1 + 1e-12)


def test_only_scalar_functions_of_one_vector():
    with pytest.raises(ValueError, match="one input, a vector, and one output, a number"):
        growth(flat_program(lambda t: t, (3,)))
    with pytest.raises(ValueError, match="one input"):
        growth(flat_program(lambda s, t: jnp.sum(s * t), (3,), (3,)))

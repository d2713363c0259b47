"""Bounds of polynomial degrees, smooth and with kinks decided."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdmap.engines.degrees import degrees, is_masked_polynomial
from gdmap.engines.precision import float64
from gdmap.engines.program import flat_program

DIM = 9
X = np.random.default_rng(0).standard_normal((4, 3))


def relu_net(theta):
    return jax.nn.relu(X @ theta[:6].reshape(3, 2)) @ theta[6:8] + theta[8]


CASES = [
    (lambda t: 3.0 + 0 * t[0], 1, 1),
    (lambda t: jnp.sum(t) - 2 * t[0], 1, 1),
    (lambda t: jnp.sum(t**2), 2, 2),
    (lambda t: jnp.vdot(t, t) * t[0], 3, 3),
    (lambda t: jnp.sum((X @ t[:3] - 1.0) ** 2) / 8, 2, 2),
    (lambda t: jnp.sum((X @ t[:6].reshape(3, 2) @ t[6:8]) ** 2), 4, 4),
    (lambda t: jnp.sum(jax.lax.conv(t.reshape(1, 1, 3, 3), t[:4].reshape(1, 1, 2, 2), (1, 1), "SAME")), 2, 2),
    (lambda t: jnp.prod(t[:4]), 4, 4),
    (lambda t: jnp.sum(jnp.cumsum(t)[::2] * jnp.concatenate([t[:2], jnp.ones(3)])), 2, 2),
    (lambda t: jnp.sum(jnp.zeros(4).at[jnp.array([1, 1])].add(t[:2]) ** 3), 3, 3),
    (lambda t: jnp.where(jnp.arange(3.0).sum() > 2, t[0] ** 2, t[0]), 2, 2),
    (lambda t: jnp.sum((relu_net(t) - 1) ** 2), None, 4),
    (lambda t: jnp.max(t) * jnp.abs(t[0]) + jnp.sign(t[1]) * jnp.clip(t[2], -1, 1), None, 2),
    (lambda t: jnp.sum(jnp.where(t > 1, t**3, t)), None, 3),
    (lambda t: jnp.sum(jnp.tanh(t)), None, None),
    (lambda t: 1 / t[0], None, None),
    (lambda t: t[0] ** -2, None, None),
    (lambda t: jnp.abs(t[0]) ** 1.5, None, None),
    (lambda t: jnp.sum(jnp.floor(t)), None, None),
    (lambda t: t[jnp.argmax(t)], None, None),
    (lambda t: jnp.sum(t.astype(jnp.float32)).astype(jnp.float64), None, None),
    (lambda t: jnp.sum(jax.nn.elu(t)), None, None),
    (lambda t: jnp.sum(jax.nn.leaky_relu(t)) * jnp.tanh(X).sum(), None, 1),
]


@pytest.mark.parametrize(("loss", "smooth", "masked"), CASES)
def test_degrees(loss, smooth, masked):
    program = flat_program(loss, (DIM,))
    (output,) = program.jaxpr.outvars
    assert degrees(program)[output] == smooth
    assert degrees(program, kinks=True)[output] == masked
    assert is_masked_polynomial(program) == (masked is not None)


@pytest.mark.parametrize("loss", [loss for loss, smooth, _ in CASES if smooth is not None])
def test_the_next_difference_vanishes(loss):
    """A polynomial of degree d along a line has zero differences of order d + 1."""
    program = flat_program(loss, (DIM,))
    degree = degrees(program)[program.jaxpr.outvars[0]]
    with float64():
        start, direction = np.random.default_rng(1).standard_normal((2, DIM))
        values = [float(loss(jnp.asarray(start + k * direction))) for k in range(degree + 2)]
    assert abs(np.diff(values, degree + 1)[0]) < 1e-9 * (1 + np.abs(values).max())

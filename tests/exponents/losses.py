"""Losses whose interpolating minima and sample Hessians are known by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from gdmap import Objective


def two_points(probabilities=None):
    """Two samples, one ReLU unit; minima ``theta_1 theta_2 = 1``, sample Hessians ``x_i^2 s v v^T``."""
    x = np.array([0.9, 2.5])
    return Objective(relu_loss, np.zeros(2), data=(x, x), probabilities=probabilities)


def relu_loss(theta, x, y):
    return (jax.nn.relu(theta[1] * jax.nn.relu(theta[0] * x)) - y) ** 2 / 2


def on_the_hyperbola(s):
    """The minimum of `two_points` with ``theta_1^2 + theta_2^2 = s``, ``theta_1 >= theta_2``."""
    first = np.sqrt((s + np.sqrt(s * s - 4)) / 2)
    return np.array([first, 1 / first])


def regression_loss(theta, x, y):
    return (theta @ x - y) ** 2 / 2


def regression(inputs, solution=None, probabilities=None):
    """Scalar linear regression that ``solution`` interpolates: sample Hessians ``x_i x_i^T``."""
    inputs = np.asarray(inputs, dtype=float)
    solution = np.ones(inputs.shape[1]) if solution is None else solution
    return Objective(
        regression_loss, np.zeros(inputs.shape[1]), data=(inputs, inputs @ solution), probabilities=probabilities
    )


def with_gram(gram):
    """Scalar regression whose inputs have this Gram matrix, in coordinates with two idle parameters."""
    rows = np.linalg.cholesky(np.asarray(gram, dtype=float))
    return regression(np.hstack([rows, np.zeros((len(rows), 2))]))


def form_loss(theta, matrix):
    return theta @ matrix @ theta / 2


def quadratic_forms(matrices, probabilities=None):
    """Samples ``1/2 theta^T H_i theta``; they interpolate at the origin."""
    matrices = np.asarray(matrices, dtype=float)
    return Objective(form_loss, np.zeros(matrices.shape[1]), data=(matrices,), probabilities=probabilities)


def tanh_loss(params, x, y):
    first, bias, second = params
    return jnp.sum((second @ jnp.tanh(first @ x + bias) - y) ** 2) / 2


def tanh_network(seed, inputs, hidden, outputs, samples):
    """A two-layer tanh network on the samples of a teacher of the same shape, and the teacher's parameters."""
    rng = np.random.default_rng(seed)
    teacher = (
        rng.normal(size=(hidden, inputs)) / np.sqrt(inputs),
        rng.normal(size=hidden) / 4,
        rng.normal(size=(outputs, hidden)) / np.sqrt(hidden),
    )
    x = rng.normal(size=(samples, inputs))
    y = np.tanh(x @ teacher[0].T + teacher[1]) @ teacher[2].T
    objective = Objective(tanh_loss, teacher, data=(x, y))
    return objective, objective.ravel(teacher)


def projected(objective, theta, minimum):
    """Dense sample Hessians by automatic differentiation, restricted to the normal space of a point."""
    losses = objective.sample_losses
    with jax.enable_x64(True):
        hessians = jax.jit(jax.vmap(jax.hessian(losses.value), (None, 0)))(theta, np.arange(losses.n_samples))
    return np.einsum("da,ide,eb->iab", minimum.basis, np.asarray(hessians), minimum.basis)

"""Losses whose minima are known by hand; their numbers are arrays, so that all of a kind share one compilation."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np


class TanhNeuron(eqx.Module):
    """``factor/2 (w_2 tanh(w_1) - y)^2`` in rotated coordinates (theory 6.3)."""

    y: Any
    factor: Any
    rotation: Any

    def __init__(self, y, factor=1.0, angle=0.0):
        self.y, self.factor = np.asarray(float(y)), np.asarray(float(factor))
        self.rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def __call__(self, theta):
        w = self.rotation @ theta
        return self.factor * (w[1] * jnp.tanh(w[0]) - self.y) ** 2 / 2

    def smallest_sharpness(self):
        y = float(self.y)
        return float(self.factor) * (2 * y * np.sqrt(1 + y * y) - 2 * y * y)


class Product(eqx.Module):
    """``1/2 (x_1 ... x_N - w)^2`` (theory 6.1)."""

    w: Any

    def __init__(self, w=1.0):
        self.w = np.asarray(float(w))

    def __call__(self, theta):
        return (jnp.prod(theta) - self.w) ** 2 / 2


class TwoHidden(eqx.Module):
    """Two tanh units and one output on a few points, hidden units in a given order; theta = (a, v)."""

    order: Any
    inputs: Any
    targets: Any

    def __init__(self, order=(0, 1)):
        self.order = np.asarray(order)
        self.inputs = np.array([-1.0, 0.4, 2.0])
        self.targets = np.array([-0.7, 0.5, 0.6])

    def __call__(self, theta):
        weights = theta.reshape(2, 2)[:, self.order]
        hidden = jnp.tanh(self.inputs[:, None] * weights[0])
        return jnp.mean((hidden @ weights[1] - self.targets) ** 2) / 2


def matrix_product(target):
    """``1/2 ||A B - target||_F^2`` for square matrices, as a plain function of the flat vector."""
    size = len(target)

    def loss(theta):
        first, second = theta.reshape(2, size, size)
        return jnp.sum((first @ second - jnp.asarray(target)) ** 2) / 2

    return loss

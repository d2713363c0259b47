import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import dblquad, quad
from scipy.special import psi
from scipy.stats import chi2, poisson

from gdmap.exponents.random_products import (
    BatchProducts,
    MatrixLaw,
    SampledMatrices,
    advance,
    begin,
    log_norms,
    mean_and_error,
    random_product_exponents,
    stretch_of,
)
from gdmap.maps.batches import Batches, trajectory_key

# Laws whose numbers are arrays, so that they share compilations ---------------------------------------------------


class Gaussian(eqx.Module):
    """``shift I + scale X`` with standard normal entries; complex: mean square modulus 1."""

    dim: int = eqx.field(static=True)
    dtype: Any = eqx.field(static=True, default=np.float64)
    shift: Any = eqx.field(default_factory=lambda: np.asarray(0.0))
    scale: Any = eqx.field(default_factory=lambda: np.asarray(1.0))

    def __call__(self, key):
        return self.shift * jnp.eye(self.dim) + self.scale * jax.random.normal(key, (self.dim, self.dim), self.dtype)


class LeastSquares(MatrixLaw):
    """``I - eta x x^T`` with a standard normal ``x``."""

    dim: int = eqx.field(static=True)
    step_size: Any

    def apply(self, keys, step, frames):
        def sample(key):
            return jax.random.normal(jax.random.fold_in(key, step), (self.dim,), jnp.float64)

        x = jax.vmap(sample)(keys)
        return frames - self.step_size * jnp.einsum("rkd,rd,re->rke", frames, x, x)


class Given(MatrixLaw):
    """The same matrix always."""

    dim: int = eqx.field(static=True)
    matrix: Any

    def apply(self, keys, step, frames):
        return jnp.einsum("ij,rkj->rki", self.matrix, frames)


def gram_law(gram, step_size) -> BatchProducts:
    """Two samples of equal probability, batch size 1, gradients with this Gram matrix."""
    factors = np.linalg.cholesky(np.asarray(gram, float))
    return BatchProducts(factors, np.ones(2), np.arange(2), Batches(2), step_size)


def rates(law, replicas, steps, k, *, seed=0, warm_up=0):
    state = begin(law, replicas, k, seed)
    state, _ = advance(law, state, warm_up)
    return advance(law, state, steps)[1][:, 0] / steps


def z_scores(values, exact):
    mean, error = mean_and_error(values)
    return (mean - exact) / error


# What is known exactly --------------------------------------------------------------------------------------------


def ginibre(d):
    return (math.log(2) + psi((d - np.arange(d)) / 2)) / 2


def shifted_ginibre_top(d, sigma):
    j = np.arange(400)
    return (math.log(2 * sigma**2) + np.sum(poisson.pmf(j, 1 / (2 * sigma**2)) * psi(d / 2 + j))) / 2


def least_squares_sum(d, k, eta):
    """``(1/2) E log |1 - (2 eta - eta^2 R) S|``, ``S ~ chi2_k``, ``R = S + chi2_{d-k}``."""

    def integrand(s, rest):
        return math.log(abs(1 - (2 * eta - eta**2 * (s + rest)) * s)) * chi2.pdf(s, k) / 2

    if k == d:  # log|1 - eta S|, split at its singularity
        def whole(s):
            return math.log(abs(1 - eta * s)) * chi2.pdf(s, d)

        return sum(quad(whole, *ends, limit=400)[0] for ends in ((0, 1 / eta), (1 / eta, np.inf)))

    def weighted(s, rest):
        return integrand(s, rest) * chi2.pdf(rest, d - k)

    # The argument of the logarithm is a square where rest = 0 and positive beyond: smooth inside.
    return dblquad(weighted, 0, np.inf, 0, np.inf, epsabs=1e-8, epsrel=1e-8)[0]


def least_squares(d, eta):
    return np.diff([0.0, *(least_squares_sum(d, k, eta) for k in range(1, d + 1))])

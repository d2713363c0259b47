"""Multipliers of periodic orbits, the eigenvalues of the derivative over one round, with their errors."""

from typing import Literal, NamedTuple

import numpy as np
from scipy.linalg import eig
from scipy.sparse.linalg import LinearOperator, eigs

from gdmap.engines.xla import block_size, on_lanes
from gdmap.maps import Family
from gdmap.orbits.shooting import EPS, Linearised, Tangent, linearise, size_of
from gdmap.spectra.dense import is_symmetric, multipliers, one_thread

Stability = Literal["stable", "unstable", "marginal"]

# A multiplier is off the unit circle if it is so by this many times its error.
CLEARLY = 3.0
NOISE_OF_PRODUCT = 4
# Relative tolerance of Arnoldi's method.
ARNOLDI_TOLERANCE = 1e-10
# Up to this dimension the derivative over a long round is formed instead.
SMALL = 64


class Verdict(NamedTuple):
    """What multipliers say about stability."""

    stability: Stability
    margin: float

    @classmethod
    def of(cls, values: np.ndarray, errors: np.ndarray, neutral: int) -> "Verdict":
        """Judge by all but the ``neutral`` multipliers nearest to 1."""
        order = np.argsort(np.abs(values - 1), kind="stable")[neutral:]
        moduli, errors = np.abs(values[order]), errors[order]
        margin = float(1 - moduli.max(initial=0.0))
        if np.any(moduli - CLEARLY * errors > 1):
            return cls("unstable", margin)
        if np.all(moduli + CLEARLY * errors < 1):
            return cls("stable", margin)
        return cls("marginal", margin)


def return_jacobian(jacobians: np.ndarray) -> np.ndarray:
    """``DG^p`` at the first point: the product of the Jacobians, shape ``(d, d)``."""
    product = np.eye(jacobians.shape[1])
    with one_thread():
        for jacobian in jacobians:
            product = jacobian @ product
    return product


def multipliers_of(
    family: Family, parameter: float, points: np.ndarray, at: Linearised, error: float
) -> tuple[np.ndarray, np.ndarray]:
    """All multipliers, largest modulus first, and their absolute errors; ``error`` is that of the points."""
    jacobians = at.jacobians
    product = return_jacobian(jacobians)
    # What the product can be off by: rounding in every factor, and what moving the points does to it.
    rounding = rounding_of_product(jacobians)
    direction = np.random.default_rng(0).standard_normal(points.shape)
    step = 1e-7 * max(size_of(points), float(np.linalg.norm(points)) * 1e-3, 1e-12)
    if np.isfinite(error):
        step = max(step, error)
    direction /= np.linalg.norm(direction)
    with np.errstate(over="ignore", invalid="ignore"):
        moved = return_jacobian(linearise(family, parameter, points + step * direction).jacobians)
    slope = float(np.linalg.norm(moved - product)) / step * np.sqrt(points.size)
    uncertain = rounding + (slope * error if np.isfinite(slope) else np.inf)
    with one_thread():
        if len(points) == 1 and is_symmetric(product):
            values = multipliers(product).astype(complex)
            return values, np.full(len(values), uncertain)
        values, left, right = eigen(product)
    overlap = np.abs(np.sum(left.conj() * right, axis=0))
    condition = 1 / np.maximum(overlap, np.sqrt(EPS))
    order = np.argsort(-np.abs(values), kind="stable")
    return values[order].astype(complex), (uncertain * condition)[order]


def rounding_of_product(jacobians: np.ndarray) -> float:
    """A bound, to first order, for the rounding of `return_jacobian` in the Frobenius norm.

    What is rounded off at a factor is at most ``eps`` times the norms of that factor and of the product before it,
    and is carried on by the product of the factors after it.
    """
    before, after = [np.eye(jacobians.shape[1])], [np.eye(jacobians.shape[1])]
    with one_thread():
        for jacobian in jacobians[:-1]:
            before.append(jacobian @ before[-1])
        for jacobian in jacobians[:0:-1]:
            after.append(after[-1] @ jacobian)
    sizes = [
        np.linalg.norm(one) * np.linalg.norm(factor) * np.linalg.norm(other)
        for one, factor, other in zip(after[::-1], jacobians, before, strict=True)
    ]
    return NOISE_OF_PRODUCT * EPS * float(np.sum(sizes))


def eigen(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues with unit left and right eigenvectors as columns."""
    values, left, right = eig(matrix, left=True, right=True)
    return values, left / np.linalg.norm(left, axis=0), right / np.linalg.norm(right, axis=0)


def leading_multipliers(
    family: Family, parameter: float, points: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` multipliers of largest modulus by Arnoldi's method on Jacobian-vector products.

    The errors are the residuals ``|DG^p v - mu v|``: bounds where ``DG^p`` is normal, estimates otherwise.
    """
    d = points.shape[1]
    if d <= SMALL:
        product_ = return_jacobian(linearise(family, parameter, points).jacobians)
        with one_thread():
            values, left, right = eigen(product_)
        condition = 1 / np.maximum(np.abs(np.sum(left.conj() * right, axis=0)), np.sqrt(EPS))
        order = np.argsort(-np.abs(values), kind="stable")[:count]
        rounding = NOISE_OF_PRODUCT * EPS * len(points) * float(np.linalg.norm(product_))
        return values[order].astype(complex), (rounding * condition)[order]
    value, block = np.full(1, float(parameter)), block_size(128 * d, largest=16)

    def product(vector: np.ndarray) -> np.ndarray:
        vector = vector.reshape(1, d)
        for point in points:
            vector = on_lanes(Tangent(family), (value, point[None], vector), block)
        return vector[0]

    operator = LinearOperator((d, d), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(d)
    values, vectors = eigs(operator, k=count, which="LM", v0=start, tol=ARNOLDI_TOLERANCE)
    order = np.argsort(-np.abs(values), kind="stable")
    values, vectors = values[order], vectors[:, order]
    errors = [
        np.linalg.norm(product(v.real) + 1j * product(v.imag) - mu * v)
        for mu, v in zip(values, vectors.T, strict=True)
    ]
    return values, np.array(errors) + NOISE_OF_PRODUCT * EPS * np.abs(values)

"""Lanczos iteration with full reorthogonalisation, thick restarts and deflation.

Why not ARPACK (`scipy.sparse.linalg.eigsh`): it looks at its Ritz values only when its basis is full, which for
the sharpness of a network took 21 to 31 products where 9 to 24 are enough; it stops on the residual alone, which
may belong to the second eigenvalue; it fails on the zero matrix; and its restarts hide the recurrence that
`random_start_bound` needs. Why not `matfree`: its recurrence goes on past an invariant space and returns
coefficients that are not numbers, or not those of the matrix, for the low-rank Hessians of interpolating minima.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh_tridiagonal
from scipy.special import betaincinv

FAILURE = 1e-3
BOUND_GRID = np.geomspace(1e-16, 1e12, 281)
BASIS_SIZE = 128
BASIS_BYTES = 2**31
CHECK_EVERY_STEP_UNTIL = 32


class KrylovResult(NamedTuple):
    """Ritz pairs of one run, largest first.

    ``values`` has shape ``(k,)``, float64; ``vectors`` ``(k, dim)``, one in each row; ``residuals`` are the norms
    ``||A x - value x||`` by the Lanczos relation; ``scale`` is the largest modulus of a Ritz value; ``beyond`` a
    bound on all eigenvalues (`random_start_bound`) from the steps before the first restart.
    """

    values: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray
    scale: float
    beyond: float
    restarted: bool
    converged: bool


def lanczos(
    product: Callable[[np.ndarray], np.ndarray],
    locked: np.ndarray,
    k: int,
    enough: Callable[[np.ndarray], float],
    max_products: int,
    rng: np.random.Generator,
    scale: float = 0.0,
) -> KrylovResult:
    """The ``k`` largest eigenpairs of a symmetric matrix restricted to the complement of the rows of ``locked``.

    From one random start: of a multiple eigenvalue it finds one copy. It stops when the residuals of the ``k``
    largest Ritz pairs, and the distance of the largest to `random_start_bound`, are at most ``enough(values)`` or
    rounding (``4 eps`` of the size of the matrix, for which ``scale`` is a lower bound), or after ``max_products``
    products. A small residual alone may belong to the second eigenvalue. After a restart it has to do.

    ``locked`` has shape ``(m, dim)`` and orthonormal rows; its dtype is that of the vectors.
    """
    m, dim = locked.shape
    dtype = locked.dtype
    eps = float(np.finfo(dtype).eps)
    room = dim - m
    size = min(room, max(min(BASIS_SIZE, BASIS_BYTES // (dim * dtype.itemsize)), 2 * k + 20))
    rows = np.empty((m + size + 1, dim), dtype)
    rows[:m] = locked
    projected, lengths = np.zeros((size, size)), np.zeros(size)
    rows[m] = random_direction(rng, rows[:m])
    filled, beyond = 0, math.inf
    restarted = exhausted = False
    for count in range(1, max_products + 1):
        coefficients, rest, length = orthogonalised(product(rows[m + filled]), rows[: m + filled + 1])
        filled += 1
        projected[:filled, filled - 1] = projected[filled - 1, :filled] = coefficients[m:]
        lengths[filled - 1] = length
        scale = max(scale, float(np.abs(coefficients[m:]).max()))
        invariant = length <= 4 * eps * scale or filled == room
        exhausted = exhausted or (invariant and not restarted)
        full, last = filled == size, count == max_products
        if filled <= CHECK_EVERY_STEP_UNTIL or filled % 4 == 0 or invariant or full or last:
            values, Y = np.linalg.eigh(projected[:filled, :filled])
            values, Y = values[::-1], Y[:, ::-1]
            scale = max(scale, float(np.abs(values).max()))
            residuals = np.zeros(filled) if invariant else length * np.abs(Y[-1])
            allowed = max(enough(values[:k]), 4 * eps * scale)
            small = bool(filled >= min(k, room) and np.all(residuals[:k] <= allowed))
            if not restarted and (small or full or last):
                # An invariant space that a random vector generates holds every distinct eigenvalue.
                diagonal = projected.diagonal()[:filled]
                top = float(values[0])
                beyond = top if exhausted else random_start_bound(diagonal, lengths[:filled], top, scale, room)
            converged = small and (restarted or beyond - float(values[0]) <= allowed)
            if converged or last:
                vectors = Y[:, :k].T.astype(dtype) @ rows[m : m + filled]
                return KrylovResult(values[:k], vectors, residuals[:k], scale, beyond, restarted, converged)
            if full:
                kept = k + (size - k) // 3
                rows[m : m + kept] = Y[:, :kept].T.astype(dtype) @ rows[m : m + filled]
                projected[:] = 0
                projected[np.arange(kept), np.arange(kept)] = values[:kept]
                filled, restarted = kept, True
        rows[m + filled] = random_direction(rng, rows[: m + filled]) if invariant else rest / dtype.type(length)
    raise ValueError(f"max_products must be at least 1, got {max_products}")


def random_start_bound(
    diagonal: np.ndarray, beside: np.ndarray, top: float, scale: float, dim: int, failure: float = FAILURE
) -> float:
    """An upper bound on all eigenvalues that fails with probability ``failure`` over the random start.

    ``p_0, ..., p_k``, the Lanczos polynomials, are orthonormal for the spectral measure of the start ``v``, so
    an eigenvalue ``x`` with unit eigenvector ``u`` has ``<v, u>^2 <= 1 / sum_j p_j(x)^2`` (Christoffel). The left
    side is ``Beta(1/2, (dim - 1)/2)`` distributed for a start uniform on the sphere, and beyond the largest Ritz
    value ``top`` the right side falls quickly. Source: van Dorsselaer, Hochstenbach & van der Vorst (2000). It
    needs no more than the coefficients at hand, and is much sharper than the bound for the worst matrix
    (Kuczynski & Wozniakowski 1992).

    ``diagonal`` and ``beside`` have shape ``(k,)``: the recurrence, with the last length ``beta_k``.
    """
    if dim == 1:
        return top
    needed = -math.log(betaincinv(0.5, (dim - 1) / 2, failure))
    distances = scale * BOUND_GRID
    # Ratios of successive polynomials are positive beyond the largest Ritz value; logarithms do not overflow.
    logarithm = np.zeros(len(distances))
    total, pull = np.zeros(len(distances)), np.zeros(len(distances))
    usable = np.ones(len(distances), bool)
    for alpha, beta in zip(diagonal, beside, strict=True):
        step = top - alpha + distances - pull
        usable &= step > np.finfo(float).eps * scale  # otherwise rounding has the word
        step = np.where(usable, step, scale)
        logarithm = logarithm + np.log(step / beta)
        total = np.logaddexp(total, 2 * logarithm)
        pull = beta**2 / step
    possible = np.flatnonzero(~usable | (total < needed))
    first_excluded = possible[-1] + 1 if len(possible) else 0
    return top + float(distances[first_excluded]) if first_excluded < len(distances) else math.inf


def quadrature(
    product: Callable[[np.ndarray], np.ndarray], start: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the Gauss quadrature of ``sum_i <start, u_i>^2 f(lambda_i)``, ``start`` a unit vector.

    ``depth`` nodes, fewer where the Krylov space is exhausted before.
    """
    dim = len(start)
    rows = np.empty((min(depth, dim), dim), start.dtype)
    diagonal, beside = np.zeros(len(rows)), np.zeros(len(rows))
    scale, eps = 0.0, float(np.finfo(start.dtype).eps)
    rows[0] = start
    for j in range(len(rows)):
        coefficients, rest, length = orthogonalised(product(rows[j]), rows[: j + 1])
        diagonal[j], beside[j] = coefficients[j], length
        scale = max(scale, abs(diagonal[j]), beside[j])
        if j + 1 == len(rows) or length <= 4 * eps * scale:
            break
        rows[j + 1] = rest / start.dtype.type(length)
    nodes, Y = eigh_tridiagonal(diagonal[: j + 1], beside[:j])
    return nodes, Y[0] ** 2


def orthogonalised(w: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """``w`` minus its projection on the orthonormal rows of ``basis``: coefficients, the rest, its length.

    Projected again where the first projection cancels most of the vector (twice is enough).
    """
    w = w.astype(basis.dtype, copy=False)
    coefficients = basis @ w
    rest = w - coefficients @ basis
    after = float(np.linalg.norm(rest))
    if after < 0.7 * float(np.linalg.norm(w)):
        again = basis @ rest
        rest -= again @ basis
        coefficients += again
        after = float(np.linalg.norm(rest))
    return np.asarray(coefficients, dtype=float), rest, after


def random_direction(rng: np.random.Generator, basis: np.ndarray) -> np.ndarray:
    """A uniformly distributed unit vector orthogonal to the rows of ``basis``."""
    v = np.asarray(rng.standard_normal(basis.shape[1]), dtype=basis.dtype)
    for _ in range(2):
        v = v - (basis @ v) @ basis
        v = v / np.linalg.norm(v)
    return v

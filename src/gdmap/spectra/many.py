"""The ends of the Hessian spectrum at many points at once, with error bars, from Hessian-vector products alone."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import eigh_tridiagonal

from gdmap.engines.budget import BudgetedProgram, widest_block
from gdmap.engines.random import random_direction
from gdmap.objectives import AbstractObjective
from gdmap.spectra.lanczos import FAILURE, random_start_bound

DEPTHS = (24, 72, 216)
RELATIVE = 1e-3
# Rounding in a Ritz value, in units in the last place of the largest one.
ROUNDING = 32.0


class Sharpnesses(NamedTuple):
    """One end of the Hessian spectrum at many points: the Ritz value and an interval, each of shape ``(points,)``.

    Of the largest eigenvalue (the sharpness) ``lower`` is the Ritz value less rounding: a Rayleigh quotient is
    never above it. ``upper`` holds with confidence 99.9 % over the random start of the iteration. Of the smallest
    eigenvalue it is the other way round. NaN where the Hessian is not finite.
    """

    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class Ends(NamedTuple):
    """Both ends of the Hessian spectrum at many points; ``bytes`` is what the programs needed, at most."""

    largest: Sharpnesses
    smallest: Sharpnesses
    bytes: int


class LanczosRun(eqx.Module):
    """Lanczos iteration of fixed depth with full reorthogonalisation, for a block of points."""

    objective: AbstractObjective
    depth: int = eqx.field(static=True)

    def __call__(self, theta: Any, start: Any) -> tuple[Any, Any]:
        """The recurrence coefficients ``alpha``, ``beta`` of each point, shape ``(block, depth)``."""
        return jax.vmap(self.one)(theta, start)

    def one(self, theta: Any, start: Any) -> tuple[Any, Any]:
        """The coefficients at one point."""
        # Linearised once: a product costs two thirds of what the derivative of the gradient does.
        _, product = jax.linearize(jax.grad(self.objective.evaluate), theta)
        basis = jnp.zeros((self.depth + 1, theta.shape[0]), theta.dtype).at[0].set(start)

        def extend(basis: Any, j: Any) -> tuple[Any, tuple[Any, Any]]:
            w = product(basis[j])
            first = basis @ w
            rest = w - first @ basis
            again = basis @ rest
            rest = rest - again @ basis
            length = jnp.sqrt(jnp.sum(rest * rest))
            following = jnp.where(length > 0, rest / jnp.where(length > 0, length, 1), 0)
            return basis.at[j + 1].set(following), ((first + again)[j], length)

        _, (alpha, beta) = jax.lax.scan(extend, basis, jnp.arange(self.depth))
        return alpha, beta


def sharpnesses(
    objective: AbstractObjective,
    theta: np.ndarray,
    memory: int,
    seed: int = 0,
    numbers: np.ndarray | None = None,
) -> Sharpnesses:
    """The largest Hessian eigenvalue at each row of ``theta``, shape ``(points, dim)``; see `spectral_ends`."""
    return spectral_ends(objective, theta, memory, seed, numbers).largest


def spectral_ends(
    objective: AbstractObjective,
    theta: np.ndarray,
    memory: int,
    seed: int = 0,
    numbers: np.ndarray | None = None,
) -> Ends:
    """Both ends of the Hessian spectrum at each row of ``theta``, shape ``(points, dim)`` (status *estimated*).

    Lanczos iteration in blocks of points that keep within ``memory`` bytes; points whose interval of the
    largest eigenvalue is wider than a thousandth of the value are iterated again, deeper (24, 72, at last 216
    products). The interval of the smallest one is what comes of that. The random start of a row is a function
    of ``seed`` and its entry of ``numbers`` (by default its index): nothing else of the other rows matters.
    Source of the outer ends: `gdmap.spectra.lanczos.random_start_bound`. In double precision whatever the
    dtype: products with the Hessian in single precision have errors of their own, which no interval would
    hold.
    """
    theta = theta.astype(np.float64)
    count, dim = theta.shape
    numbers = np.arange(count) if numbers is None else numbers
    largest, smallest = (Sharpnesses(*np.full((3, count), np.nan)) for _ in range(2))
    needed = 0
    todo = np.flatnonzero(np.isfinite(theta).all(axis=1))
    lane = jax.ShapeDtypeStruct((dim,), theta.dtype)
    eps = float(np.finfo(theta.dtype).eps)
    for depth in sorted({min(depth, dim) for depth in DEPTHS}):
        if not todo.size:
            break
        program = BudgetedProgram(LanczosRun(objective, depth), (lane, lane), memory, widest_block(dim))
        needed = max(needed, program.bytes)
        starts = np.empty((todo.size, dim), theta.dtype)
        for i, row in enumerate(todo):
            starts[i] = random_direction(dim, seed, depth, int(numbers[row]), 1)
        alpha, beta = program((theta[todo], starts))
        again = []
        for row, diagonal, beside in zip(todo, alpha.astype(float), beta.astype(float), strict=True):
            value, lower, upper = largest_eigenvalue(diagonal, beside, dim, eps)
            least, below, above = largest_eigenvalue(-diagonal, beside, dim, eps)
            largest.value[row], largest.lower[row], largest.upper[row] = value, lower, upper
            smallest.value[row], smallest.lower[row], smallest.upper[row] = -least, -above, -below
            if np.isfinite(value) and not upper - lower <= RELATIVE * abs(value):
                again.append(row)
        todo = np.array(again, dtype=int)
    return Ends(largest, smallest, needed)


def largest_eigenvalue(
    diagonal: np.ndarray, beside: np.ndarray, dim: int, eps: float
) -> tuple[float, float, float]:
    """The largest Ritz value of a Lanczos recurrence, and an interval for the largest eigenvalue."""
    if not (np.all(np.isfinite(diagonal)) and np.all(np.isfinite(beside))):
        return np.nan, np.nan, np.nan
    scale = float(max(np.abs(diagonal).max(), beside.max()))
    noise = ROUNDING * eps * scale
    exhausted = np.flatnonzero(beside <= noise)
    length = int(exhausted[0]) + 1 if exhausted.size else len(diagonal)
    diagonal, beside = diagonal[:length], beside[:length]
    value = float(eigh_tridiagonal(diagonal, beside[:-1], eigvals_only=True)[-1])
    if exhausted.size or length == dim:
        return value, value - noise, value + noise
    return value, value - noise, random_start_bound(diagonal, beside, value, scale, dim, FAILURE) + noise

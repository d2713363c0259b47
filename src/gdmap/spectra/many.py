"""The sharpness at many points at once, with error bars, from products with the Hessian alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import eigh_tridiagonal

from gdmap.engines.budget import BudgetedProgram
from gdmap.engines.random import random_direction
from gdmap.objectives import AbstractObjective
from gdmap.spectra.lanczos import FAILURE, random_start_bound

DEPTHS = (24, 72, 216)
RELATIVE = 1e-3


class Sharpnesses(NamedTuple):
    """The largest Hessian eigenvalue at many points: the Ritz value and an interval, each of shape ``(points,)``.

    ``lower`` is the Ritz value less rounding: a Rayleigh quotient is never above the largest eigenvalue. ``upper``
    holds with confidence 99.9 % over the random start of the iteration. NaN where the Hessian is not finite.
    """

    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class LanczosRun(eqx.Module):
    """Lanczos iteration of fixed depth with full reorthogonalisation, for a block of points."""

    objective: AbstractObjective
    depth: int = eqx.field(static=True)

    def __call__(self, theta: Any, start: Any) -> tuple[Any, Any]:
        """The recurrence coefficients ``alpha``, ``beta`` of each point, shape ``(block, depth)``."""
        return jax.vmap(self.one)(theta, start)

    def one(self, theta: Any, start: Any) -> tuple[Any, Any]:
        """The coefficients at one point."""
        product: Callable[[Any], Any] = lambda v: jax.jvp(jax.grad(self.objective.evaluate), (theta,), (v,))[1]  # noqa: E731
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


def sharpnesses(objective: AbstractObjective, theta: np.ndarray, memory: int, seed: int = 0) -> Sharpnesses:
    """The largest Hessian eigenvalue at each row of ``theta``, shape ``(points, dim)`` (status *estimated*).

    Lanczos iteration in blocks of points that keep within ``memory`` bytes; points whose interval is wider than a
    thousandth of the value are iterated again, deeper (24, 72, at last 216 products). Source of the upper end:
    `gdmap.spectra.lanczos.random_start_bound`.
    """
    count, dim = theta.shape
    found = Sharpnesses(*(np.full(count, np.nan) for _ in Sharpnesses._fields))
    todo = np.flatnonzero(np.isfinite(theta).all(axis=1))
    for depth in DEPTHS:
        depth = min(depth, dim)
        if not todo.size:
            break
        lane = jax.ShapeDtypeStruct((dim,), theta.dtype)
        program = BudgetedProgram(LanczosRun(objective, depth), (lane, lane), memory, 32)
        starts = np.stack([random_direction(dim, seed, depth, int(row)) for row in todo]).astype(theta.dtype)
        alpha, beta = program((theta[todo], starts))
        again = []
        for row, diagonal, beside in zip(todo, alpha.astype(float), beta.astype(float), strict=True):
            value, lower, upper = largest_eigenvalue(diagonal, beside, dim, float(np.finfo(theta.dtype).eps))
            found.value[row], found.lower[row], found.upper[row] = value, lower, upper
            if np.isfinite(value) and not upper - lower <= RELATIVE * abs(value):
                again.append(row)
        todo = np.array(again, dtype=int)
        if depth == dim:
            break
    return found


def largest_eigenvalue(
    diagonal: np.ndarray, beside: np.ndarray, dim: int, eps: float
) -> tuple[float, float, float]:
    """The largest Ritz value of a Lanczos recurrence, and an interval for the largest eigenvalue."""
    if not (np.all(np.isfinite(diagonal)) and np.all(np.isfinite(beside))):
        return np.nan, np.nan, np.nan
    scale = float(max(np.abs(diagonal).max(), beside.max()))
    noise = 8 * eps * scale
    exhausted = np.flatnonzero(beside <= noise)
    length = int(exhausted[0]) + 1 if exhausted.size else len(diagonal)
    diagonal, beside = diagonal[:length], beside[:length]
    value = float(eigh_tridiagonal(diagonal, beside[:-1], eigvals_only=True)[-1])
    if exhausted.size or length == dim:
        return value, value - noise, value + noise
    return value, value - noise, random_start_bound(diagonal, beside, value, scale, dim, FAILURE) + noise

"""Searching along the set of minima: a function of the point and its Hessian made smaller, chart by chart."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from gdmap.engines.xla import block_size, on_lanes
from gdmap.minima.critical_points import POSITION_ERROR
from gdmap.minima.manifold import RETRACTED, Chart
from gdmap.objectives import AbstractObjective

CHART_RADIUS = 0.5
CHART_STEPS = 60
# An eigenvalue below minus this share of the largest is no rounding: the point is a saddle.
NEGATIVE = 1e-7
# A loss that differs by this share of what the curvature allows over the way moved is another loss.
LEVEL = 1e-9


@jax.custom_jvp
def log_spectral_norm(matrix: Any, exponent: Any) -> Any:
    """``log (sum_i |lambda_i|^p)^{1/p}`` of a symmetric matrix: smooth, and ``log lambda_max`` as ``p`` grows."""
    return _log_norm(jnp.linalg.eigvalsh(matrix), exponent)


def _log_norm(eigenvalues: Any, exponent: Any) -> Any:
    size = jnp.abs(eigenvalues)
    top = jnp.max(size)
    return jnp.log(top) + jnp.log(jnp.sum((size / top) ** exponent)) / exponent


@log_spectral_norm.defjvp
def _log_spectral_norm_jvp(primals: Any, tangents: Any) -> Any:
    # Written with eigenvectors but finite where eigenvalues coincide: the weights are a function of the matrix.
    matrix, exponent = primals
    eigenvalues, modes = jnp.linalg.eigh(matrix)
    share = (jnp.abs(eigenvalues) / jnp.max(jnp.abs(eigenvalues))) ** exponent
    safe = jnp.where(eigenvalues == 0, 1.0, eigenvalues)
    weight = jnp.where(eigenvalues == 0, 0.0, share / jnp.sum(share) / safe)
    tangent = jnp.sum(((modes * weight) @ modes.T) * tangents[0])
    return _log_norm(eigenvalues, exponent), tangent


class Extent(NamedTuple):
    """Where minima lie and how far apart: what lengths are measured by, whatever the origin."""

    centre: np.ndarray
    length: float

    @classmethod
    def of(cls, theta: np.ndarray) -> "Extent":
        """The median of the points and their median distance from it (for equal points, their norm)."""
        centre = np.median(theta, axis=0)
        distances = np.linalg.norm(theta - centre, axis=1)
        length = float(np.median(distances)) or float(distances.max())
        return cls(centre, length or float(np.linalg.norm(centre)) or 1.0)

    def distance(self, theta: np.ndarray) -> np.ndarray:
        """The distance of each row from the centre."""
        return np.asarray(np.linalg.norm(theta - self.centre, axis=1))


class Lower(eqx.Module):
    """One minimum moved, within a ball of its chart, to where ``goal(theta, H(theta), settings)`` is smaller.

    By BFGS in tangent coordinates; points that are no minima of the same loss count as infinitely high.
    """

    objective: AbstractObjective
    goal: Callable[[Any, Any, Any], Any]
    nullity: int = eqx.field(static=True)

    def __call__(self, base: Any, settings: Any, radius: Any) -> Any:
        """The minimum reached from ``base``; ``base`` itself where nothing better was found."""
        chart = Chart.at(self.objective, base, radius, self.nullity)
        base_loss = self.objective.evaluate(base)

        def point(u: Any) -> tuple[Any, Any]:
            return chart(radius * u / jnp.sqrt(1 + jnp.sum(u * u)))

        def is_minimum(theta: Any, last: Any, hessian: Any) -> Any:
            # Newton's method may land on another set of critical points, of saddles or of another loss.
            spectrum = jnp.linalg.eigvalsh(jax.lax.stop_gradient(hessian))
            rise = jnp.abs(self.objective.evaluate(theta) - base_loss)
            reach = jnp.sum((theta - base) ** 2) + POSITION_ERROR * (jnp.sum(base**2) + radius**2)
            level = rise <= 1e-12 * jnp.abs(base_loss) + LEVEL * spectrum[-1] * reach
            return (last <= 1e3 * RETRACTED) & (spectrum[0] >= -NEGATIVE * spectrum[-1]) & level

        def height(u: Any, _: Any) -> Any:
            theta, last = point(u)
            hessian = self.objective.hessian(theta)
            return jnp.where(is_minimum(theta, last, hessian), self.goal(theta, hessian, settings), jnp.inf)

        solver: Any = optx.BFGS(rtol=1e-12, atol=1e-12)
        start = jnp.zeros(self.nullity, base.dtype)
        found = optx.minimise(height, solver, start, max_steps=CHART_STEPS, throw=False).value
        theta, last = point(found)
        return jnp.where(is_minimum(theta, last, self.objective.hessian(theta)), theta, base)


def lowered(
    objective: AbstractObjective,
    goal: Callable[[Any, Any, Any], Any],
    theta: np.ndarray,
    nullity: np.ndarray,
    settings: np.ndarray,
    extent: Extent,
) -> np.ndarray:
    """`Lower` on every row of ``theta`` with the same ``settings``; isolated minima stay where they are.

    The radius of a chart is half the distance from the centre of the extent, and at least half its length.
    """
    result = np.array(theta)
    radius = CHART_RADIUS * np.maximum(extent.distance(result), extent.length)
    # The work of a lane grows with the third power and more: few lanes to a block, so that none is padding.
    block = block_size(64 * objective.dim**3, largest=16)
    for size in np.unique(nullity[nullity > 0]):
        lanes = np.flatnonzero(nullity == size)
        each = np.broadcast_to(settings, (len(lanes), len(settings)))
        result[lanes] = on_lanes(
            Lower(objective, goal, int(size)), (theta[lanes], each, radius[lanes]), block, threads=1
        )
    return result


class _Sharpness(eqx.Module):
    """The largest Hessian eigenvalue of one lane."""

    objective: AbstractObjective

    def __call__(self, theta: Any) -> Any:
        return jnp.linalg.eigvalsh(self.objective.hessian(theta))[-1]


def sharpness_of(objective: AbstractObjective, theta: np.ndarray) -> np.ndarray:
    """The largest Hessian eigenvalues at many points, without error bars."""
    return np.asarray(
        on_lanes(_Sharpness(objective), (theta,), block_size(64 * objective.dim**2, largest=16), threads=1)
    )

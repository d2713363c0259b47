"""The set of minima as a manifold: charts, moving along it, its local dimension.

Near a minimum ``theta_0`` with tangent basis ``T`` and normal basis ``N`` the set is the graph
``theta(z) = theta_0 + T z + N y(z)`` with ``N^T grad L(theta(z)) = 0``; ``y`` is found by Newton's method.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from gdmap.engines.precision import float64
from gdmap.engines.xla import block_size, on_lanes
from gdmap.flags import flag_attributes
from gdmap.minima.critical_points import (
    OF_MINIMA,
    Evidence,
    hessians_at,
    loss_and_gradient,
    loss_noise,
    refine_critical_points,
)
from gdmap.minima.descent import descend
from gdmap.minima.minimum import Minimum, checked_point, described_minimum, refuse_large, verified_minimum
from gdmap.objectives import AbstractObjective, LinearNetwork

RETRACTION_STEPS = 12
RETRACTED = 1e-13
# The local dimension is read off displacements of these sizes relative to the minimum, the first two that agree.
PROBES = (1e-2, 1e-3, 1e-4, 1e-5)
PROBES_PER_DIRECTION = 2
# A displacement within the manifold shrinks with the probe; a bend out of it shrinks with its square.
RANK_SHARE = 0.1
BENT = 0.1


class Chart(eqx.Module):
    """Coordinates of the set of minima around a base point, in traceable JAX."""

    objective: AbstractObjective
    base: Any
    length: Any
    tangent: Any
    normal: Any

    @classmethod
    def at(cls, objective: AbstractObjective, base: Any, length: Any, nullity: int) -> "Chart":
        """The chart at a minimum: its ``nullity`` least curved directions are tangent; moves have ``length``."""
        curvature, modes = jnp.linalg.eigh(objective.hessian(base))
        modes = modes[:, jnp.argsort(jnp.abs(curvature))]
        return cls(objective, base, length, modes[:, :nullity], modes[:, nullity:])

    def __call__(self, z: Any) -> tuple[Any, Any]:
        """``theta(z)`` and the length of the last Newton correction, relative to the size of the point.

        Derivatives with respect to ``z`` are those of the implicit function.
        """
        gradient = jax.grad(self.objective.evaluate)

        def point(z: Any, y: Any) -> Any:
            return self.base + self.tangent @ z + self.normal @ y

        def correction(z: Any, y: Any) -> Any:
            theta = point(z, y)
            slope = self.normal.T @ self.objective.hessian(theta) @ self.normal
            return jnp.linalg.solve(jax.lax.stop_gradient(slope), self.normal.T @ gradient(theta))

        fixed = jax.lax.stop_gradient(z)
        size = jnp.linalg.norm(self.base) + self.length

        def body(carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            y, steps, _ = carry
            change = correction(fixed, y)
            return y - change, steps + 1, jnp.linalg.norm(change) / size

        def goes_on(carry: tuple[Any, Any, Any]) -> Any:
            return (carry[1] < RETRACTION_STEPS) & (carry[2] > RETRACTED)

        y, _, last = jax.lax.while_loop(
            goes_on, body, (jnp.zeros(self.normal.shape[1], z.dtype), 0, jnp.full((), jnp.inf, z.dtype))
        )
        y = jax.lax.stop_gradient(y)
        return point(z, y - correction(z, y)), last


class _Moved(eqx.Module):
    """One minimum moved along the manifold by the tangential part of a displacement."""

    objective: AbstractObjective
    nullity: int = eqx.field(static=True)

    def __call__(self, base: Any, displacement: Any) -> tuple[Any, Any]:
        chart = Chart.at(self.objective, base, jnp.linalg.norm(displacement), self.nullity)
        return chart(chart.tangent.T @ displacement)


def moved_along(
    objective: AbstractObjective, theta: np.ndarray, displacement: np.ndarray, nullity: int
) -> tuple[np.ndarray, np.ndarray]:
    """Minima moved along their manifold, row by row: the points, and whether the retraction converged."""
    block = block_size(64 * objective.dim**2, largest=16)
    points, last = on_lanes(_Moved(objective, nullity), (theta, displacement), block, threads=1)
    return points, np.isfinite(points).all(axis=1) & (last <= 1e3 * RETRACTED)


def move(minimum: Minimum, displacement: Any) -> Minimum:
    """The minimum reached from ``minimum`` by the tangential part of ``displacement``, retracted onto the set.

    Long displacements are cut into steps of a tenth of the size of the point. Verified like any other minimum.

    Raises
    ------
    ValueError
        If the minimum is isolated, or the set bends away so that no minimum lies above the tangent space there.
    """
    displacement = np.asarray(displacement, dtype=float)
    minimum.objective.checked(displacement, "displacement")
    if minimum.nullity == 0:
        raise ValueError("the minimum is isolated (its Hessian is positive definite): there is nowhere to move")
    along = minimum.tangent_projector @ displacement
    size = float(np.linalg.norm(minimum.theta)) or 1.0
    pieces = max(1, int(np.ceil(np.linalg.norm(along) / (0.1 * size))))
    theta = minimum.theta
    for _ in range(pieces):
        reached, kept = moved_along(minimum.objective, theta[None], along[None] / pieces, minimum.nullity)
        if not kept[0]:
            raise ValueError("the set of minima bends away: no minimum lies above this tangent displacement")
        theta = reached[0]
    return verified_minimum(minimum.objective, theta)


def minima_curve(
    objective: AbstractObjective, theta: Any, direction: Any = None, *, length: float, points: int = 50
) -> np.ndarray:
    """Minima along a curve on the set of minima, shape ``(2 points + 1, dim)``, the given one in the middle.

    From ``theta`` the curve goes ``length`` both ways; at each step the last direction is projected on the tangent
    space and the point retracted. It ends early where the set does. Without a ``direction`` the gradient of the
    sharpness along the set is not asked for: the first tangent vector is taken.
    """
    minimum = verified_minimum(objective, theta)
    if minimum.nullity == 0:
        raise ValueError("the minimum is isolated: there is no curve of minima through it")
    if not length > 0 or points < 1:
        raise ValueError(f"length must be positive and points at least 1, got {length} and {points}")
    first = minimum.tangent_basis[:, 0] if direction is None else np.asarray(direction, dtype=float)
    objective.checked(first, "direction")
    first = minimum.tangent_projector @ first
    if np.linalg.norm(first) < 1e-12:
        raise ValueError("direction is normal to the set of minima: give one with a tangential part")
    halves = [_half_curve(objective, minimum, sign * first, length, points) for sign in (-1.0, 1.0)]
    return np.stack([*halves[0][::-1], minimum.theta, *halves[1]])


def _half_curve(
    objective: AbstractObjective, minimum: Minimum, direction: np.ndarray, length: float, points: int
) -> list[np.ndarray]:
    theta, found = minimum.theta, []
    heading = direction / np.linalg.norm(direction)
    for _ in range(points):
        reached, kept = moved_along(objective, theta[None], (length / points) * heading[None], minimum.nullity)
        step = reached[0] - theta
        if not kept[0] or not 0 < np.linalg.norm(step) < 3 * length / points:
            break
        heading, theta = step / np.linalg.norm(step), reached[0]
        found.append(theta)
    return found


class LocalDimension(NamedTuple):
    """The dimension of the set of minima near one, as found by moving, and how clear the count is."""

    dimension: int
    clear: bool


def local_dimension(minimum: Minimum, seed: int = 0) -> LocalDimension:
    """The local dimension of the set of minima, found by moving along null directions and going down again.

    Displacements along random null directions are brought back to minima of equal loss by descent; the dimension
    is the rank of where they land. It is clear if two lengths a factor ten apart give the same, with descents that
    end there and landing points that depend linearly on the displacements.
    """
    if minimum.nullity == 0:
        return LocalDimension(0, True)
    before: LocalDimension | None = None
    for scale in PROBES:
        found = _landing_rank(minimum, scale, seed)
        # More dimensions than null directions are the bend of the manifold: the probe is too long.
        found = LocalDimension(found.dimension, found.clear and found.dimension <= minimum.nullity)
        if before is not None and found.clear and found == before:
            return found
        before = found
    return LocalDimension(found.dimension, False)


def _landing_rank(minimum: Minimum, scale: float, seed: int) -> LocalDimension:
    objective, theta = minimum.objective, minimum.theta
    length = scale * (float(np.linalg.norm(theta)) or 1.0)
    count = PROBES_PER_DIRECTION * minimum.nullity + 2
    weights = np.random.default_rng(seed).standard_normal((count, minimum.nullity))
    directions = (weights / np.linalg.norm(weights, axis=1, keepdims=True)) @ minimum.tangent_basis.T
    landed = descend(objective, theta + length * directions)
    near = np.linalg.norm(landed - theta, axis=1) <= 3 * length
    loss = loss_and_gradient(objective, np.where(near[:, None], landed, theta))[0]
    noise = loss_noise(objective, theta[None], np.array([minimum.loss]))[0]
    curvature = np.abs(hessians_at(objective, theta + length * directions)).sum(axis=2).max()
    equal = near & (np.abs(loss - minimum.loss) <= 1e3 * noise + curvature * (1e-6 * length) ** 2)
    if not equal.any():
        return LocalDimension(0, False)
    probes, landings = (directions @ minimum.tangent_basis)[equal], (landed[equal] - theta) / length
    rank = int(np.sum(np.linalg.svd(landings, compute_uv=False) > RANK_SHARE * smallest_singular_value(probes)))
    # Onto a manifold the way back is a projection, linear in the probe; onto crossing branches it is not.
    linear = np.linalg.lstsq(probes, landings, rcond=None)[0]
    bent = float(np.linalg.norm(landings - probes @ linear) / np.sqrt(len(landings)))
    return LocalDimension(rank, bool(equal.mean() > 0.5 and bent < BENT))


def smallest_singular_value(matrix: np.ndarray) -> float:
    """The smallest singular value of a matrix."""
    return float(np.linalg.svd(matrix, compute_uv=False).min())


def minima_manifold(objective: AbstractObjective, theta: Any, *, seed: int = 0) -> xr.Dataset:
    """Do the minima form a manifold here? Hessian nullity against the dimension found by moving (*computed*).

    At a smooth manifold of minima whose Hessian is non-degenerate on the normal space the two agree. A nullity
    larger than the dimension shows a degenerate minimum: the set there may be no manifold, or one along which the
    Hessian loses rank. (The second open question of arXiv:2402.13108 asks this for non-interpolating networks.)

    Parameters
    ----------
    objective
        The loss, of at most 1,000 parameters.
    theta
        One point ``(dim,)`` or several ``(minima, dim)``, each at (or close to) a minimum.
    seed
        Of the random directions.

    Returns
    -------
    xarray.Dataset
        Over ``minimum``: ``nullity`` and ``null_gap`` (ratio of the smallest non-zero to the largest zero
        eigenvalue), ``dimension`` found by moving, ``dimension_clear`` (two probe sizes agree), ``agrees``;
        ``evidence``; ``loss``; ``eigenvalue`` over ``(minimum, index)``, descending. For linear networks under the
        square loss also ``expected_dimension`` where theory gives it.
    """
    points = np.atleast_2d(np.asarray(theta, dtype=float))
    with float64():
        minima = [_null_geometry(objective, checked_point(objective, point)) for point in points]
    dimensions = [local_dimension(minimum, seed) for minimum in minima]
    nullity = np.array([minimum.nullity for minimum in minima])
    dimension = np.array([found.dimension for found in dimensions])
    clear = np.array([found.clear for found in dimensions])
    dataset = xr.Dataset(
        {
            "theta": (("minimum", "component"), np.stack([minimum.theta for minimum in minima])),
            "loss": ("minimum", [minimum.loss for minimum in minima]),
            "evidence": ("minimum", np.array([m.evidence for m in minima], np.int8), flag_attributes(Evidence)),
            "eigenvalue": (("minimum", "index"), np.stack([np.sort(m.eigenvalues)[::-1] for m in minima])),
            "nullity": ("minimum", nullity, {"method": "Hessian eigenvalues below 1e-10 of the largest"}),
            "null_gap": ("minimum", [minimum.null_gap for minimum in minima]),
            "dimension": ("minimum", dimension, {"method": "rank of displacements brought back by descent"}),
            "dimension_clear": ("minimum", clear),
            "agrees": ("minimum", clear & (nullity == dimension)),
        },
        attrs={
            "status": "computed",
            "method": "Hessian nullity; probes of 1e-2 to 1e-5 of the size of the point",
        },
    )
    expected = expected_dimension(objective)
    if expected is not None:
        dataset.attrs["expected_dimension"] = expected
    return dataset


def _null_geometry(objective: AbstractObjective, theta: np.ndarray) -> Minimum:
    """The Hessian geometry of a critical point that may also be degenerate; saddles and others are refused."""
    refuse_large(objective)
    size = float(np.linalg.norm(theta)) or 1.0
    points = refine_critical_points(objective, theta[None], np.array([size]))
    if points.evidence[0] in (*OF_MINIMA, Evidence.DEGENERATE_CRITICAL_POINT):
        return described_minimum(objective, points, 0)
    return verified_minimum(objective, theta)


def expected_dimension(objective: AbstractObjective) -> int | None:
    """The dimension of the set of global minima where theory gives it: ``n - r (d_0 + d_N - r)``.

    For linear networks under the square loss with an optimum of full rank ``r = min(widths)`` and inputs that
    span (arXiv:2402.13108); ``None`` otherwise.
    """
    if not isinstance(objective, LinearNetwork) or not getattr(objective, "is_squared", True):
        return None
    rank, inputs, outputs = min(objective.widths), objective.widths[0], objective.widths[-1]
    full = objective.target_rank >= rank and np.linalg.matrix_rank(objective.input_covariance) == inputs
    return objective.dim - rank * (inputs + outputs - rank) if full else None

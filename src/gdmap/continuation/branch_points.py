"""Where two curves of orbits cross: solved for by equations that are regular there.

At a branch point the derivative ``J`` of the shooting equation by points and parameter has one null direction more
than elsewhere, so that Newton's method for the curve itself loses half its digits. With bordering columns and
rows,

    [ J  W ] [ Phi ]   [ 0 ]           [ J  W ]T [ psi ]   [ 0 ]
    [ C  0 ] [  h  ] = [ I ],          [ C  0 ]  [  g  ] = [ e ],

the two numbers ``g`` that belong to the last rows of ``C`` vanish just there, and ``dg_j = -psi^T dJ Phi_j``. The
equations ``F + W c = 0``, ``g = 0`` for the point, the parameter and ``c`` are regular at simple crossings; ``c =
0`` says that it is one (where it is not, two curves pass by each other).
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from gdmap.continuation.arclength import CONVERGED, Curve, Point, factors, inverse_norm
from gdmap.engines.xla import block_size, on_lanes
from gdmap.maps import Family
from gdmap.orbits.shooting import EPS, is_finite
from gdmap.spectra.dense import one_thread

STEPS = 12
# What is left of the unfolding, relative, at a true crossing.
UNFOLDED = 1e-9


class BranchPoint(NamedTuple):
    """A crossing of two curves: ``u``, the two unit tangents, and the error of the parameter."""

    u: np.ndarray
    tangents: tuple[np.ndarray, np.ndarray]
    error: float


class Curvature(eqx.Module):
    """The gradient by ``(parameter, x)`` of ``psi . (DG(x) v + m dG/dparameter)``."""

    family: Family

    def __call__(self, parameter: Any, state: Any, psi: Any, vector: Any, rate: Any) -> tuple[Any, Any]:
        """A number and a vector of shape ``(d,)``."""

        def along(parameter: Any, state: Any) -> Any:
            return psi @ jax.jvp(self.family.step, (parameter, state), (rate, vector))[1]

        gradient: tuple[Any, Any] = jax.grad(along, argnums=(0, 1))(parameter, state)
        return gradient


def located_branch_point(curve: Curve, start: np.ndarray, near: Point) -> BranchPoint | None:
    """The crossing that Newton's method finds from ``start``; ``near`` is a point of one of the curves."""
    k = curve.nullity
    u, n, last = start.copy(), len(start) - 1, np.inf
    for _ in range(STEPS):
        at = curve.linearise(u)
        if not is_finite(at):
            return None
        jacobian = curve.jacobian(at)
        with one_thread():
            U, _, Vt = np.linalg.svd(jacobian)
        columns, rows = U[:, n - k - 1 :], Vt[n - k - 1 :]
        bordered = np.block([[jacobian, columns], [rows, np.zeros((k + 2, k + 1))]])
        with one_thread():
            try:
                inverse = np.linalg.inv(bordered)
            except np.linalg.LinAlgError:
                return None
        # Of the k + 2 near-null directions k are along the family.
        phi, psi = inverse[: n + 1, n:], inverse[n + 1 :, :n]
        if k:
            family = near.right
            rest = phi - family @ (family.T @ phi)
            phi = np.linalg.svd(rest, full_matrices=False)[0][:, :2]
            cofamily = near.left
            left = np.linalg.svd(psi.T - cofamily @ (cofamily.T @ psi.T), full_matrices=False)[0][:, 0]
        else:
            family, left = phi[:, :0], psi[0]
        g = left @ jacobian @ phi
        # d(psi^T J phi) = psi^T dJ phi at vectors that are null up to second order.
        slopes = np.stack([curvature(curve, u, left, phi[:, j]) for j in range(2)])
        matrix = np.block(
            [
                [jacobian, columns],
                [family.T, np.zeros((k, k + 1))],
                [slopes, np.zeros((2, k + 1))],
            ]
        )
        solved = factors(matrix)
        if solved is None:
            return None
        defect = at.defect.ravel() / curve.state_scale
        with one_thread():
            solution = np.linalg.solve(matrix, np.concatenate([-defect, np.zeros(k), -g]))
        correction, unfolding = solution[: n + 1], solution[n + 1 :]
        length = float(np.linalg.norm(correction))
        if not np.isfinite(length) or length > 10:
            return None
        u = u + correction
        # Quadratic convergence: a small correction that is no longer much smaller than the last one is rounding.
        size = 1 + float(np.linalg.norm(u))
        settled, last = length <= CONVERGED * size or (last / 10 < length <= 1e-8 * size), length
        if settled:
            if float(np.abs(unfolding).max()) > UNFOLDED:
                return None
            tangents = crossing_tangents(slopes, phi)
            noise = curve.noise(u, at) + 8 * EPS * (1 + float(np.abs(jacobian).max()))
            error = curve.parameter_scale * (length + noise * inverse_norm(solved))
            return None if tangents is None else BranchPoint(u, tangents, float(error))
    return None


def curvature(curve: Curve, u: np.ndarray, psi: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """The gradient by ``u`` of ``psi^T J(u) phi``, shape ``(n + 1,)``."""
    points = curve.points(u)
    p, d = points.shape
    scales = curve.state_scale, curve.parameter_scale
    vectors = phi[:-1].reshape(p, d) * scales[0]
    arrays = (
        np.full(p, curve.parameter(u)),
        points,
        psi.reshape(p, d) / scales[0],
        vectors,
        np.full(p, phi[-1] * scales[1]),
    )
    by_parameter, by_state = on_lanes(Curvature(curve.family), arrays, block_size(256 * d, largest=16))
    # F = roll(x) - G(x).
    return -np.append(by_state.ravel() * scales[0], by_parameter.sum() * scales[1])


def crossing_tangents(slopes: np.ndarray, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The two directions spanned by ``phi`` in which ``psi^T D^2 F`` vanishes, or ``None`` if not real."""
    form = slopes @ phi
    form = (form + form.T) / 2
    values, vectors = np.linalg.eigh(form)
    if values[0] * values[1] >= 0:
        return None
    weights = np.sqrt(np.abs(values[::-1]))
    directions = [phi @ (vectors @ (weights * signs)) for signs in ([1, 1], [1, -1])]
    one, other = (direction / np.linalg.norm(direction) for direction in directions)
    return one, other

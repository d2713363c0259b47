"""The curve of periodic orbits in the product of states and parameter, and Newton's method back to it.

An orbit of period ``p`` and its parameter value are one vector ``u = (points / (sqrt(p) X), parameter / Lambda)``
with typical lengths ``X`` and ``Lambda``. Orbits are the zeros of the shooting equation ``F(u)``, a curve; next
to a point of it, with unit tangent ``t``, another one is the solution of the bordered system

    F(u) = 0,   t . (u - guess) = 0.

On a family of dimension ``k`` the derivative of ``F`` has ``k`` null directions more at every point. They are held
fixed, ``W^T (u - guess) = 0``, and ``k`` columns of left null vectors make the matrix regular (and must not be
used: what the solution puts into them says that the family is lost).
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack, lu_solve, null_space

from gdmap.continuation.normal_forms import Return
from gdmap.maps import Family
from gdmap.orbits.multipliers import return_jacobian
from gdmap.orbits.shooting import EPS, Linearised, is_finite, linearise
from gdmap.spectra.dense import multipliers, one_thread

NEWTON_STEPS = 10
CONVERGED = 1e-13
# Newton's method is given up when the defect grows by this factor.
EXPLODES = 1e3
# Orbits smaller than this may be the origin up to rounding: they are if smaller than this share of what bends.
NOTHING, ROUNDED = 1e-9, 1e-6
# What a regular family puts into the bordering columns is rounding; above this share the family is lost.
LOST_FAMILY = 1e-6


class Point(NamedTuple):
    """A point of the curve.

    ``u`` and the unit ``tangent`` have shape ``(n + 1,)``; ``right``, shape ``(n + 1, k)``, spans the family at
    this parameter (last row zero), ``left``, shape ``(n, k)``, the left null space; ``at`` is the linearisation;
    ``multipliers`` are those across the family, largest modulus first; ``defect`` the norm of ``F`` and ``error``
    the estimated distance to the curve, both in the units of the state; ``lost`` is how far the null directions
    are from being null, relative; ``iterations`` counts Newton's steps.
    """

    u: np.ndarray
    tangent: np.ndarray
    right: np.ndarray
    left: np.ndarray
    at: Linearised
    multipliers: np.ndarray
    defect: float
    error: float
    lost: float
    iterations: int


class Curve:
    """The orbits of one period of a one-parameter family of maps."""

    def __init__(
        self, family: Family, points: np.ndarray, parameter: float, range_of_parameter: float, nullity: int
    ) -> None:
        self.family, self.shape, self.nullity = family, points.shape, nullity
        spread = float(np.abs(points - points.mean(axis=0)).max())
        self.length = max(spread, float(np.abs(points).max()))
        if self.length < NOTHING:
            # At the origin the orbit itself has no length: that over which the map bends takes its place.
            natural = bending_length(family, parameter, points)
            self.length = self.length if self.length > ROUNDED * natural else natural
        self.state_scale = self.length * np.sqrt(points.size)
        # A power of two, so that values of the parameter go in and out unrounded.
        self.parameter_scale = float(2.0 ** np.round(np.log2(range_of_parameter)))

    def vector(self, points: np.ndarray, parameter: float) -> np.ndarray:
        """``u`` of an orbit."""
        return np.append(points.ravel() / self.state_scale, parameter / self.parameter_scale)

    def points(self, u: np.ndarray) -> np.ndarray:
        """The orbit in ``u``, shape ``(p, d)``."""
        return u[:-1].reshape(self.shape) * self.state_scale

    def parameter(self, u: np.ndarray) -> float:
        """The parameter value in ``u``."""
        return float(u[-1] * self.parameter_scale)

    def linearise(self, u: np.ndarray) -> Linearised:
        """The shooting equation at ``u``."""
        with np.errstate(over="ignore", invalid="ignore"):
            return linearise(self.family, self.parameter(u), self.points(u))

    def jacobian(self, at: Linearised) -> np.ndarray:
        """The derivative of ``F / state_scale`` by ``u``, shape ``(n, n + 1)``."""
        slope = -at.along.reshape(-1, 1) * (self.parameter_scale / self.state_scale)
        return np.hstack([at.matrix(), slope])

    def noise(self, u: np.ndarray, at: Linearised) -> float:
        """A bound for the rounding of ``F / state_scale``."""
        return at.noise(self.points(u)) / self.state_scale

    def across(self, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Orthonormal columns along the family and across it at the first point of the orbit."""
        d = self.shape[1]
        if not right.shape[1]:
            return np.zeros((d, 0)), np.eye(d)
        along, _, _ = np.linalg.svd(right[:d], full_matrices=True)
        return along[:, : right.shape[1]], along[:, right.shape[1] :]

    def multipliers(self, at: Linearised, right: np.ndarray) -> np.ndarray:
        """The multipliers across the family, largest modulus first."""
        product = return_jacobian(at.jacobians)
        _, across = self.across(right)
        with one_thread():
            reduced = across.T @ product @ across if right.shape[1] else product
            return multipliers(reduced).astype(complex)

    def first_point(self, points: np.ndarray, parameter: float) -> Point | str:
        """The point of the curve at an orbit that is known, or why there is none."""
        u, k = self.vector(points, parameter), self.nullity
        at = self.linearise(u)
        if not is_finite(at):
            return "undefined"
        jacobian = self.jacobian(at)
        with one_thread():
            U, values, Vt = np.linalg.svd(jacobian)
        n = len(values)
        if n - k - 1 >= 0 and values[n - k - 1] <= 1e-9 * values[0]:
            return "singular Jacobian"
        null, left = Vt[n - k :].T, U[:, n - k :]
        tangent, right, _ = split_null_space(null, None)
        return self.corrected(u, tangent, right, left)

    def corrected(
        self, guess: np.ndarray, normal: np.ndarray, right: np.ndarray, left: np.ndarray, steps: int = NEWTON_STEPS
    ) -> Point | str:
        """Newton's method from ``guess`` in the plane through it across ``normal``, or why it fails.

        'residual' (it does not converge), 'singular Jacobian' or 'undefined'. The tangent of the point found makes
        an acute angle with ``normal``.
        """
        u, last, first = guess.copy(), np.inf, np.inf
        n = len(u) - 1
        for iteration in range(1, steps + 1):
            at = self.linearise(u)
            if not is_finite(at):
                return "undefined"
            defect = at.defect.ravel() / self.state_scale
            size, noise = float(np.linalg.norm(defect)), self.noise(u, at)
            first = min(first, max(size, noise))
            if size > EXPLODES * max(first, noise):
                return "residual"
            solved = self.factorised(at, normal, right, left)
            if solved is None:
                return "singular Jacobian"
            rhs = np.concatenate([-defect, [-normal @ (u - guess)], -right.T @ (u - guess)])
            with one_thread():
                correction = lu_solve(solved, rhs)[: n + 1]
            length = float(np.linalg.norm(correction))
            if not np.isfinite(length) or length > 1e3:
                return "singular Jacobian"
            if size <= noise and length > last / 4:
                return self.finished(u, at, normal, right, left, iteration)
            u = u + correction
            if length <= CONVERGED * (1 + np.linalg.norm(u)):
                at = self.linearise(u)
                return self.finished(u, at, normal, right, left, iteration) if is_finite(at) else "undefined"
            if iteration > 3 and length > last:
                return "residual"
            last = length
        return "residual"

    def factorised(
        self, at: Linearised, normal: np.ndarray, right: np.ndarray, left: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The LU factors of the bordered matrix, or ``None`` where it is singular or not finite."""
        jacobian = self.jacobian(at)
        rows = np.vstack([normal, right.T])
        return factors(np.block([[jacobian, left], [rows, np.zeros((1 + self.nullity, self.nullity))]]))

    def finished(
        self,
        u: np.ndarray,
        at: Linearised,
        normal: np.ndarray,
        right: np.ndarray,
        left: np.ndarray,
        iterations: int,
    ) -> Point | str:
        """The point at ``u`` with its tangent, null spaces and multipliers."""
        solved = self.factorised(at, normal, right, left)
        if solved is None:
            return "singular Jacobian"
        n, k = len(u) - 1, self.nullity
        borders = np.vstack([np.zeros((n, k + 1)), np.eye(k + 1)])  # rows: the equation, the normal, the family
        with one_thread():
            null = lu_solve(solved, borders)
            cokernel = lu_solve(solved, borders[:, 1:], trans=1)[:n] if k else np.zeros((n, 0))
            basis = np.linalg.qr(null[: n + 1])[0]
        if not np.all(np.isfinite(basis)):
            return "singular Jacobian"
        tangent, right, lost = split_null_space(basis, right)
        if k:
            lost = max(lost, float(np.linalg.norm(null[n + 1 :])) / (1 + float(np.linalg.norm(null[: n + 1]))))
            cokernel = np.linalg.qr(cokernel)[0]
        tangent = tangent if tangent @ normal >= 0 else -tangent
        noise = self.noise(u, at)
        error = self.state_scale * noise * inverse_norm(solved)
        defect = float(np.linalg.norm(at.defect))
        values = self.multipliers(at, right)
        return Point(u, tangent, right, cokernel, at, values, defect, error, lost, iterations)


def bending_length(family: Family, parameter: float, points: np.ndarray) -> float:
    """The displacement at which second or third derivatives of the map matter as much as the first; 1 if never."""
    d = points.shape[1]
    directions = np.random.default_rng(0).standard_normal((3, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    at = Return(family, parameter, points[:1], np.eye(d)[None], np.zeros((d, 0)), np.eye(d))
    first, second, third = np.linalg.norm(at.jets(directions), axis=2).max(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        lengths = np.array([first / second, np.sqrt(first / third)])
    lengths = lengths[np.isfinite(lengths) & (lengths > 0)]
    return float(lengths.min()) if lengths.size else 1.0


def split_null_space(basis: np.ndarray, former: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, float]:
    """The unit tangent of the curve, the directions along the family, and the parameter component these keep.

    ``basis`` are orthonormal columns of shape ``(n + 1, k + 1)``. The family is the part of their span at constant
    parameter, the tangent is orthogonal to it. At a fold the whole span is at constant parameter: the family then
    is the part nearest to the ``former`` one.
    """
    k = basis.shape[1] - 1
    if k == 0:
        return basis[:, 0], basis[:, :0], 0.0
    slopes = basis[-1]
    steepness = float(np.linalg.norm(slopes))
    if steepness > 1e-6 or former is None:
        weights = slopes / steepness
        tangent = basis @ weights
        family = basis @ null_space(weights[None])
        return tangent, family, float(np.abs(family[-1]).max())
    nearest, _, _ = np.linalg.svd(basis.T @ former, full_matrices=True)
    family, tangent = basis @ nearest[:, :k], basis @ nearest[:, k]
    return tangent, family, float(np.abs(family[-1]).max())


def factors(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """LU factors of a matrix, or ``None`` if it is singular or not finite."""
    if not np.all(np.isfinite(matrix)):
        return None
    with one_thread():
        # Not lu_factor: it warns of the singular matrices that are told apart here.
        lu, pivots, info = lapack.dgetrf(matrix)
    diagonal = np.abs(np.diag(lu))
    return (lu, pivots) if info == 0 and diagonal.min() > EPS**2 * diagonal.max() else None


def inverse_norm(solved: tuple[np.ndarray, np.ndarray]) -> float:
    """An estimate of the norm of the inverse of a matrix from its LU factors (LAPACK's condition estimator)."""
    rcond, _ = lapack.dgecon(solved[0], 1.0)
    return 1 / rcond if rcond > 0 else np.inf


def as_large_a_step(old: np.ndarray, new: np.ndarray) -> float:
    """How far multipliers have moved: each new one to the nearest old one, relative outside the unit circle."""
    if not new.size or not old.size:
        return 0.0
    nearest = np.abs(new[:, None] - old[None]).min(axis=1)
    return float((nearest / np.maximum(1.0, np.abs(new))).max())

"""Multiple shooting: periodic orbits as zeros of one equation in the product space.

The points ``x_0, ..., x_{p-1}`` are all unknowns, and the equation is

    F(x)_i = x_{i+1} - G(x_i) = 0      (indices mod p).

Unlike ``G^p(x) = x`` it does not multiply errors by the growth over a whole round. On a family of cycles its
derivative is singular; corrections then have minimum norm.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from scipy.sparse.linalg import LinearOperator, gmres

from gdmap.engines.xla import block_size, on_lanes
from gdmap.maps import Family
from gdmap.orbits.cycles import rank_above_gap
from gdmap.spectra.dense import one_thread

# Beyond so many unknowns the equation is solved by GMRES with Jacobian-vector products.
DENSE_LIMIT = 2_000
NEWTON_STEPS = 40
# Newton's correction has converged below this share of the size of the orbit.
CONVERGED = 1e-12
EPS = float(np.finfo(np.float64).eps)
# Rounding of one evaluation of the map, in units of eps times what goes into it.
NOISE = 16
BACKTRACKS = 12
# See `refine_orbit`.
FLOOR = 1e-3
GMRES_TOLERANCE = 1e-10


class Linearisation(eqx.Module):
    """``(G(x), DG(x), dG/dparameter)`` at one point."""

    family: Family

    def __call__(self, parameter: Any, state: Any) -> tuple[Any, Any, Any]:
        """Shapes ``(d,)``, ``(d, d)`` and ``(d,)``."""
        image, along = jax.jvp(
            lambda value: self.family.step(value, state), (parameter,), (jax.numpy.ones_like(parameter),)
        )
        return image, jax.jacfwd(lambda state: self.family.step(parameter, state))(state), along


class Step(eqx.Module):
    """``G(x)`` at one point."""

    family: Family

    def __call__(self, parameter: Any, state: Any) -> Any:
        """Shape ``(d,)``."""
        return self.family.step(parameter, state)


class Tangent(eqx.Module):
    """``DG(x) v`` at one point."""

    family: Family

    def __call__(self, parameter: Any, state: Any, vector: Any) -> Any:
        """Shape ``(d,)``."""
        return jax.jvp(lambda state: self.family.step(parameter, state), (state,), (vector,))[1]


class Linearised(NamedTuple):
    """The shooting equation at points of shape ``(p, d)``.

    ``defect`` is ``F``, shape ``(p, d)``; ``jacobians`` are the ``DG(x_i)``, shape ``(p, d, d)``; ``along`` the
    derivatives of ``G(x_i)`` by the parameter, shape ``(p, d)``.
    """

    defect: np.ndarray
    jacobians: np.ndarray
    along: np.ndarray

    def matrix(self) -> np.ndarray:
        """``DF``, shape ``(p d, p d)``: minus the Jacobians on the diagonal, the identity beside it."""
        p, d, _ = self.jacobians.shape
        matrix = np.zeros((p, d, p, d))
        for i in range(p):
            matrix[i, :, i] -= self.jacobians[i]
            matrix[i, :, (i + 1) % p] += np.eye(d)
        return matrix.reshape(p * d, p * d)

    def noise(self, points: np.ndarray, length: float = 0.0) -> float:
        """A bound for the rounding error of the defect, in the Euclidean norm; ``length`` as in `refine_orbit`."""
        growth = 1 + np.abs(self.jacobians).sum(axis=2).max(initial=0.0)
        largest = max(float(np.abs(points).max(initial=0.0)), length)
        return float(NOISE * EPS * growth * largest * np.sqrt(points.size))


def linearise(family: Family, parameter: float, points: np.ndarray) -> Linearised:
    """The shooting equation and its derivatives at ``points``, shape ``(p, d)``; NaN where the map has none."""
    d = points.shape[1]
    values = np.full(len(points), float(parameter))
    # Padding is negligible for small Jacobians only.
    largest = 16 if d <= 32 else min(16, 1 << (len(points) - 1).bit_length())
    block = block_size(8 * d * (4 * d + 8), largest)
    image, jacobians, along = on_lanes(Linearisation(family), (values, points), block)
    return Linearised(np.roll(points, -1, axis=0) - image, jacobians, along)


def images(family: Family, parameter: float, points: np.ndarray) -> np.ndarray:
    """``G`` of every point, shape ``(p, d)``."""
    values = np.full(len(points), float(parameter))
    return on_lanes(Step(family), (values, points), block_size(64 * points.shape[1], largest=64))


def defect_of(family: Family, parameter: float, points: np.ndarray) -> np.ndarray:
    """``F`` alone, shape ``(p, d)``."""
    return np.roll(points, -1, axis=0) - images(family, parameter, points)


class Refined(NamedTuple):
    """What Newton's method came to.

    ``points`` has shape ``(p, d)``; ``defect`` is the norm of ``F`` there, ``error`` the estimated distance to the
    exact orbit (the last correction, plus what the rounding of ``F`` can move the zero by); ``nullity`` the number
    of null directions of ``DF`` left out of the corrections; ``failure`` is empty, or says what went wrong:
    'guess', 'residual', 'singular Jacobian' or 'undefined'; ``length`` is where accuracy stops being relative.
    """

    points: np.ndarray
    linearised: Linearised | None
    defect: float
    error: float
    nullity: int | None
    failure: str
    length: float = 0.0


def refine_orbit(
    family: Family,
    parameter: float,
    points: np.ndarray,
    nullity: int | None = None,
    steps: int = NEWTON_STEPS,
    length: float = 0.0,
) -> Refined:
    """Newton's method with backtracking for the shooting equation from ``points``, shape ``(p, d)``.

    ``length`` is a length that matters (of the starts): a thousandth of it, or of the guess, is where accuracy
    stops being relative to the points themselves, which may lie at the origin. With ``nullity`` given, so many of
    the smallest singular values of ``DF`` are left out of every correction; otherwise those that a gap sets apart
    (none above `DENSE_LIMIT` unknowns).
    """
    points = np.array(points, dtype=np.float64)
    floor = FLOOR * max(length, float(np.abs(points).max()))
    if points.size > DENSE_LIMIT:
        return refine_large_orbit(family, parameter, points, steps, floor)
    at, skipped, smallest, last = linearise(family, parameter, points), 0, 0.0, np.inf
    if not is_finite(at):
        return Refined(points, None, np.inf, np.inf, None, "undefined")
    for attempt in range(steps):
        defect, scale = float(np.linalg.norm(at.defect)), size_of(points)
        correction, skipped, smallest = solve(at, nullity)
        if correction is None:
            return Refined(points, at, defect, np.inf, None, "singular Jacobian")
        size, noise = float(np.linalg.norm(correction)), at.noise(points, floor)
        negligible = size <= CONVERGED * scale + NOISE * EPS * max(float(np.linalg.norm(points)), floor)
        stalled = defect <= noise and (negligible or size > last / 4 or defect == 0)
        if negligible or stalled:
            moved = points + correction if negligible else points
            final = linearise(family, parameter, moved)
            if not is_finite(final) or np.linalg.norm(final.defect) > max(defect, noise):
                moved, final = points, at
            end = float(np.linalg.norm(final.defect))
            if end > max(noise, 1e-10 * scale):
                return Refined(moved, final, end, np.inf, skipped, "residual")
            error = min(size, CONVERGED * scale) + noise / smallest if smallest > 0 else np.inf
            return Refined(moved, final, end, error, skipped, "", floor)
        share = 1.0
        for _ in range(BACKTRACKS):
            trial = points + share * correction
            value = defect_of(family, parameter, trial)
            new = float(np.linalg.norm(value)) if np.all(np.isfinite(value)) else np.inf
            if new < (1 - 1e-4 * share) * defect or new <= noise:
                break
            share /= 2
        else:
            reason = "guess" if attempt < 3 else "residual"
            return Refined(points, at, defect, np.inf, skipped, reason)
        points, last = trial, size
        at = linearise(family, parameter, points)
        if not is_finite(at):
            return Refined(points, None, np.inf, np.inf, None, "undefined")
    return Refined(points, at, float(np.linalg.norm(at.defect)), np.inf, skipped, "residual")


def refine_large_orbit(family: Family, parameter: float, points: np.ndarray, steps: int, floor: float) -> Refined:
    """`refine_orbit` with GMRES on Jacobian-vector products."""
    p, d = points.shape
    values = np.full(p, float(parameter))
    block = block_size(128 * d, largest=16)
    for attempt in range(steps):
        defect = defect_of(family, parameter, points)
        norm, scale = float(np.linalg.norm(defect)), size_of(points)
        if not np.isfinite(norm):
            return Refined(points, None, np.inf, np.inf, None, "undefined")

        def product(vector: np.ndarray, points: np.ndarray = points) -> np.ndarray:
            vectors = vector.reshape(p, d)
            moved = on_lanes(Tangent(family), (values, points, vectors), block)
            return (np.roll(vectors, -1, axis=0) - moved).ravel()

        rounding = NOISE * EPS * max(float(np.linalg.norm(points)), floor)
        if norm == 0:
            return Refined(points, None, norm, rounding, None, "")
        operator = LinearOperator((p * d, p * d), matvec=product, dtype=np.float64)
        solution, left = gmres(operator, -defect.ravel(), rtol=GMRES_TOLERANCE, restart=200, maxiter=10)
        correction = solution.reshape(p, d)
        size = float(np.linalg.norm(correction))
        if norm <= rounding * np.sqrt(d):
            return Refined(points, None, norm, np.inf if left else size, None, "")
        if size <= CONVERGED * scale + rounding:
            failure = "singular Jacobian" if left else ""
            return Refined(points, None, norm, size if not left else np.inf, None, failure)
        share = 1.0
        for _ in range(BACKTRACKS):
            value = defect_of(family, parameter, points + share * correction)
            if np.all(np.isfinite(value)) and np.linalg.norm(value) < (1 - 1e-4 * share) * norm:
                break
            share /= 2
        else:
            return Refined(points, None, norm, np.inf, None, "guess" if attempt < 3 else "residual")
        points = points + share * correction
    return Refined(points, None, norm, np.inf, None, "residual")


def solve(
    at: Linearised, nullity: int | None, rule: Callable[[np.ndarray], int] = rank_above_gap
) -> tuple[np.ndarray | None, int, float]:
    """The minimum-norm Newton correction, how many null directions it leaves out, the smallest value kept."""
    matrix = at.matrix()
    with one_thread():
        U, values, Vt = np.linalg.svd(matrix)
    if values[0] <= NOISE * EPS:
        # A plateau: every point is fixed, and known as it is.
        return np.zeros_like(at.defect), len(values), 1.0
    rank = rule(values) if nullity is None else len(values) - nullity
    if rank <= 0 or values[rank - 1] <= EPS * values[0]:
        return None, len(values) - max(rank, 0), 0.0
    correction = -Vt[:rank].T @ ((U[:, :rank].T @ at.defect.ravel()) / values[:rank])
    return correction.reshape(at.defect.shape), len(values) - rank, float(values[rank - 1])


def size_of(points: np.ndarray) -> float:
    """The length that matters for an orbit: its diameter, or the norm of a fixed point."""
    diameter = float(np.linalg.norm(points - points[0], axis=1).max())
    return diameter if diameter > 0 else float(np.linalg.norm(points[0]))


def is_finite(at: Linearised) -> bool:
    """Whether the map and its derivatives have values at all points."""
    return all(bool(np.all(np.isfinite(values))) for values in at[:2])

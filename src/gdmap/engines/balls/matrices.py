"""Verified float64 linear algebra on interval matrices, given by midpoints and radii.

``(mid, rad)`` stands for all real matrices ``A`` with ``|A - mid| <= rad`` entry by entry. Every bound below holds
for each of them. What is assumed of the machine: IEEE double precision, rounding to nearest, and sums that BLAS
may form in any order and with fused operations, but from the usual products (no Strassen). Then a sum of ``k``
products has an error of at most ``gamma_k = k u / (1 - k u)`` times the sum of their moduli, ``u = 2**-53``, and
underflow adds at most ``k 2**-1022``.

How the bounds are rounded. Each is built of sums of products of non-negative numbers, a level at a time. The exact
value of a level with at most ``k`` roundings on any way through it is at most ``fl / (1 - u)**k`` plus underflow,
and `upward` exceeds that. No level is computed from another that was not itself rounded upward.

Non-finite numbers anywhere give the answer that claims nothing: an infinite bound, an infinite interval,
``False``.
"""

from collections.abc import Callable
from typing import Any

import flint
import numpy as np

UNIT = 2.0**-53
# More than any underflow here can add up to, and far from the range of slow (denormal) arithmetic.
TINY = 2.0**-400
# Inner dimensions are cut into pieces: an error bound of CHUNK + n / CHUNK roundings instead of n.
CHUNK = 256
# Rounds of the power method for weights, and the smallest weight.
ROUNDS = 5
SMALLEST_WEIGHT = 2.0**-30
LARGEST = 2**24

Array = np.ndarray
Apply = Callable[[Array], Array]


def upward(value: Any, roundings: int) -> Any:
    """An upper bound of an exact ``y >= 0`` from its floating-point ``value`` with so many roundings on any way.

    ``y <= value (1 - u)**-k + underflow <= value (1 + 2 k u) + underflow`` for ``k u <= 1/2``; the two roundings
    made here are covered by the further ``8 u``, and ``1 + (2 k + 8) u`` is itself a double.
    """
    return value * (1 + (2 * roundings + 8) * UNIT) + TINY


def gamma(roundings: int) -> float:
    """An upper bound of ``k u / (1 - k u)``: numerator and denominator are exact."""
    return roundings * UNIT / (1 - roundings * UNIT) * (1 + 4 * UNIT)


def product(a: Array, b: Array) -> tuple[Array, int]:
    """``a b`` in floating point and the ``k`` with ``|fl(a b) - a b| <= gamma_k |a| |b|`` (and underflow).

    A product of entries passes at most ``CHUNK`` roundings inside its piece and one for each piece added.
    """
    inner = a.shape[1]
    if inner <= 2 * CHUNK:
        return a @ b, inner
    result = np.zeros((a.shape[0], b.shape[1]))
    piece = np.empty_like(result)
    starts = range(0, inner, CHUNK)
    for start in starts:
        np.matmul(a[:, start : start + CHUNK], b[start : start + CHUNK], out=piece)
        result += piece
    return result, CHUNK + len(starts)


def weighted_norm(apply: Apply, n: int, enough: float = 0.0) -> float:
    """An upper bound of ``max_i (M v)_i / v_i`` for some ``v > 0``, the ``v``-weighted maximum norm of ``M >= 0``.

    ``apply(v)`` bounds ``M v`` from above. A few rounds of the power method choose ``v`` (whatever they give, the
    bound holds for it), until it is at most ``enough``. It bounds the spectral radius of ``M``, hence that of
    every matrix below ``M`` in modulus, and the spectral norm of the symmetric ones.
    """
    v, best = np.ones(n), np.inf
    for _ in range(ROUNDS):
        image = apply(v)
        bound = float(np.max(upward(image / v, 1)))
        if not np.isfinite(bound):
            break
        best = min(best, bound)
        if best <= enough:
            break
        v = np.maximum(image / np.max(image), SMALLEST_WEIGHT)
    return best


def spectral_norm(n: int, *factors: Array) -> float:
    """An upper bound of ``||M||`` for ``M >= 0``; the product of ``factors``, the last one first, is ``M^T M``."""

    def apply(v: Array) -> Array:
        for factor in factors:
            v = upward(factor @ v, n)
        return v

    return float(upward(np.sqrt(weighted_norm(apply, n)), 1))


def regularity(mid: Array, rad: Array) -> float:
    """A verified upper bound of ``||I - R A||`` over all ``A`` with ``|A - mid| <= rad``; ``R`` is near
    ``mid^-1``.

    Below 1 it proves that every such ``A`` is non-singular (for ``A x = 0``, ``x = (I - R A) x`` would be shorter
    than itself). The norm is the maximum norm, or one with weights where that gives less than 1 and the plain one
    does not. With ``C = fl(R mid)``: ``|I - R A| <= |I - C| + |R| (gamma |mid| + rad)``; of the last two only
    products with a vector are formed, so the work is one inverse and one matrix product.

    Parameters
    ----------
    mid, rad
        float64, shape ``(n, n)``, ``rad >= 0``; neither needs to be symmetric.

    Returns
    -------
    float
        The bound; infinite if ``mid`` is singular to working precision or anything is not finite.
    """
    mid, rad, n = checked(mid, rad)
    with np.errstate(all="ignore"):
        try:
            absolute_inverse = np.linalg.inv(mid)
        except np.linalg.LinAlgError:
            return np.inf
        defect, roundings = product(absolute_inverse, mid)
        defect.flat[:: n + 1] -= 1  # one more rounding
        np.abs(defect, out=defect)
        np.abs(absolute_inverse, out=absolute_inverse)
        absolute, error = np.abs(mid), gamma(roundings)

        def apply(v: Array) -> Array:
            inner = upward(error * (absolute @ v) + rad @ v, n + 2)
            return upward(defect @ v + absolute_inverse @ inner, n + 2)

        return weighted_norm(apply, n, enough=0.5)


def norm_bound(mid: Array, rad: Array) -> float:
    """A verified upper bound of the spectral norm of every symmetric ``A`` with ``|A - mid| <= rad``.

    The least of the Frobenius norm and of weighted maximum norms of ``|mid| + rad``: for symmetric ``A``,
    ``||A|| = rho(A) <= rho(|A|) <= || |mid| + rad ||``. Infinite if anything is not finite.
    """
    mid, rad, n = checked(mid, rad)
    with np.errstate(all="ignore"):
        modulus = np.abs(mid) + rad
        weighted = weighted_norm(lambda v: upward(modulus @ v, n + 1), n)
        # Square (two factors rounded once each, and the product), sum; then the root.
        frobenius = float(upward(np.sqrt(upward(np.sum(modulus * modulus), n * n + 3)), 1))
    return min(weighted, frobenius) if np.isfinite(weighted) else np.inf


def symmetrised(mid: Array, rad: Array) -> tuple[Array, Array]:
    """Midpoints, exactly symmetric, and radii of all symmetric ``A`` with ``|A - mid| <= rad``.

    ``A = (A + A^T)/2`` lies within ``(rad + rad^T)/2`` of ``(mid + mid^T)/2``, whose rounding is added where there
    was one to make.
    """
    centre = 0.5 * mid + 0.5 * mid.T
    radius = 0.5 * rad + 0.5 * rad.T
    if np.array_equal(mid, mid.T) and np.array_equal(rad, rad.T):
        return mid, rad
    return centre, upward(radius + 2 * UNIT * np.abs(centre), 4)


def spectrum_enclosure(mid: Array, rad: Array) -> tuple[Array, Array]:
    """Verified intervals, one for each eigenvalue in ascending order, of every symmetric ``A``, ``|A - mid| <=
    rad``.

    With ``Q`` the computed eigenvectors of ``mid``, ``T = Q^T A Q`` is enclosed. Its ``k``-th eigenvalue lies
    within ``||T - D||`` of the ``k``-th entry of ``D``, the sorted diagonal (Weyl), and ``m`` Gershgorin discs
    that hang together hold ``m`` eigenvalues; both are used. The ``k``-th eigenvalue of ``A`` is that of ``T``
    divided by a number within ``||Q^T Q - I||`` of 1 (Ostrowski).

    Parameters
    ----------
    mid, rad
        float64, shape ``(n, n)``, ``rad >= 0``. ``mid`` may be unsymmetric as long as symmetric matrices are
        meant: only those are covered.

    Returns
    -------
    lower, upper
        float64, shape ``(n,)``, both ascending; infinite where nothing can be said.
    """
    mid, rad, n = checked(mid, rad)
    nothing = np.full(n, -np.inf), np.full(n, np.inf)
    with np.errstate(all="ignore"):
        mid, rad = symmetrised(mid, rad)
        if not (np.all(np.isfinite(mid)) and np.all(np.isfinite(rad))):
            return nothing
        try:
            _, Q = np.linalg.eigh(mid)
        except np.linalg.LinAlgError:
            return nothing
        image, image_roundings = product(mid, Q)
        T, roundings = product(Q.T, image)
        gram, gram_roundings = product(Q.T, Q)
        gram.flat[:: n + 1] -= 1
        centres = T.diagonal().copy()
        T.flat[:: n + 1] = 0
        for matrix in (T, gram, Q, image):
            np.abs(matrix, out=matrix)
        absolute = np.abs(mid)
        inner_error, outer_error, gram_error = gamma(image_roundings), gamma(roundings), gamma(gram_roundings)

        def deviation(v: Array) -> Array:
            """Bounds ``|T - D| v``; T errs by ``|Q^T| (gamma |mid| |Q| + rad |Q| + gamma |fl(mid Q)|)``."""
            w = upward(Q @ v, n)
            inner = upward(inner_error * (absolute @ w) + rad @ w, n + 2)
            inner = upward(inner + outer_error * (image @ v), n + 2)
            return upward(T @ v + Q.T @ inner, n + 2)

        def skewness(v: Array) -> Array:
            """Bounds ``|Q^T Q - I| v``."""
            w = upward(gram_error * upward(Q @ v, n), 1)
            return upward(gram @ v + Q.T @ w, n + 2)

        delta = weighted_norm(skewness, n)
        least, most = np.nextafter(1 - delta, -np.inf), np.nextafter(1 + delta, np.inf)
        if not least > 0:
            return nothing

        # The same error in the spectral norm, where ||Q||^2 <= 1 + delta takes the place of || |Q| ||^2 = O(n).
        first = inner_error * spectral_norm(n, Q, absolute, absolute, Q.T)
        second = outer_error * spectral_norm(n, image, Q.T, Q, image.T)
        # fl(T) is not quite symmetric, but what it stands for is: the mean of its two halves is as near.
        offdiagonal = weighted_norm(lambda v: upward(0.5 * (T @ v) + 0.5 * (T.T @ v), n + 2), n)
        spread = weighted_norm(lambda v: upward(rad @ v, n), n)
        distance = float(upward(offdiagonal + most * (spread + first) + second, 8))
        distance = min(distance, weighted_norm(deviation, n))

        lower, upper = gershgorin(centres, deviation(np.ones(n)))
        ordered = np.sort(centres)
        lower = np.maximum(lower, np.nextafter(ordered - distance, -np.inf))
        upper = np.minimum(upper, np.nextafter(ordered + distance, np.inf))
        lower = np.nextafter(lower / np.where(lower >= 0, most, least), -np.inf)
        upper = np.nextafter(upper / np.where(upper >= 0, least, most), np.inf)
    if np.any(np.isnan(lower)) or np.any(np.isnan(upper)):
        return nothing
    return lower, upper


def gershgorin(centres: Array, radii: Array) -> tuple[Array, Array]:
    """The ends of the connected group of discs that holds the ``k``-th eigenvalue, for each ``k``.

    ``m`` discs that meet no other hold exactly ``m`` eigenvalues, and groups on the real line are in order.
    """
    if not np.all(np.isfinite(radii)):
        return np.full(len(centres), -np.inf), np.full(len(centres), np.inf)
    low, high = np.nextafter(centres - radii, -np.inf), np.nextafter(centres + radii, np.inf)
    order = np.argsort(low)
    group = groups(low[order], high[order])
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    return low[order][starts][group], np.maximum.reduceat(high[order], starts)[group]


def groups(lower: Array, upper: Array) -> Array:
    """The number, from 0, of the connected group each interval is in; ``lower`` is ascending."""
    reach = np.maximum.accumulate(upper)
    return np.concatenate([[0], np.cumsum(lower[1:] > reach[:-1])])


def union(lower: Array, upper: Array) -> Array:
    """The closed intervals ``[lower_i, upper_i]`` merged: disjoint, ascending, shape ``(k, 2)``.

    Intervals that touch become one. Raises ``ValueError`` for NaN or ``lower > upper``.
    """
    lower, upper = np.asarray(lower, np.float64).ravel(), np.asarray(upper, np.float64).ravel()
    if lower.shape != upper.shape or not np.all(lower <= upper):
        raise ValueError("intervals need as many lower as upper ends, and lower <= upper")
    if not lower.size:
        return np.empty((0, 2))
    order = np.argsort(lower, kind="stable")
    lower, upper = lower[order], upper[order]
    starts = np.flatnonzero(np.diff(groups(lower, upper), prepend=-1))
    return np.stack([lower[starts], np.maximum.reduceat(upper, starts)], axis=1)


def intersection(a: Array, b: Array) -> Array:
    """What two unions of intervals have in common, as a union; all of them as `union` returns them.

    An interval of ``a`` meets a run of consecutive intervals of ``b``; all runs together are no longer than both
    lists. Ends that touch have that point in common.
    """
    a, b = np.asarray(a, np.float64).reshape(-1, 2), np.asarray(b, np.float64).reshape(-1, 2)
    first = np.searchsorted(b[:, 1], a[:, 0], side="left")
    count = np.maximum(np.searchsorted(b[:, 0], a[:, 1], side="right") - first, 0)
    which = np.repeat(np.arange(len(a)), count)
    run = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    other = np.repeat(first, count) + run
    return np.stack([np.maximum(a[which, 0], b[other, 0]), np.minimum(a[which, 1], b[other, 1])], axis=1)


def positive_definite(mid: Array, rad: Array) -> bool:
    """Whether every symmetric ``A`` with ``|A - mid| <= rad`` is proved positive definite.

    ``L L^T`` is the computed Cholesky factorisation of ``mid - s I``. Whatever ``L`` is, ``L L^T`` is positive
    semidefinite, so ``A = L L^T + s I + E`` is positive definite if ``||E|| < s``, which is verified. Nothing is
    assumed of the factorisation. ``False`` means not proved: not positive definite, or too close to tell.
    """
    mid, rad, n = checked(mid, rad)
    with np.errstate(all="ignore"):
        mid, rad = symmetrised(mid, rad)
        if not (np.all(np.isfinite(mid)) and np.all(np.isfinite(rad))):
            return False
        spread = weighted_norm(lambda v: upward(rad @ v, n), n)
        shift = 1.1 * spread + 4 * gamma(min(n, 2 * CHUNK) + 8) * float(np.trace(np.abs(mid)))
        for _ in range(2):
            error = cholesky_error(mid, rad, shift)
            if error < shift:
                return True
            shift = 1.1 * error
            if not np.isfinite(shift):
                return False
    return False


def cholesky_error(mid: Array, rad: Array, shift: float) -> float:
    """A bound of ``||A - s I - L L^T||`` over the symmetric ``A`` in ``(mid, rad)``; infinite without a factor."""
    n = len(mid)
    shifted = mid.copy()
    shifted.flat[:: n + 1] -= shift
    try:
        L = np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return np.inf
    square, roundings = product(L, L.T)
    # mid - fl(L L^T), then - s on the diagonal: 2 u times the first difference bounds the rounding of that.
    defect = mid - square
    first = 2 * UNIT * np.abs(defect.diagonal())
    defect.flat[:: n + 1] -= shift
    np.abs(defect, out=defect)
    np.abs(L, out=L)
    factor = gamma(roundings)

    def apply(v: Array) -> Array:
        inner = upward(factor * upward(L.T @ v, n), 1)
        return upward(defect @ v + L @ inner + rad @ v + first * v, n + 6)

    return weighted_norm(apply, n)


def midpoint_radius(matrix: Any) -> tuple[Array, Array]:
    """float64 midpoints and radii that contain an array of ``arb`` (any shape); overflow becomes infinite."""
    balls = np.asarray(matrix, dtype=object)
    mid = np.array([float(ball) for ball in balls.flat], np.float64).reshape(balls.shape)
    # A non-finite midpoint has no distance: its radius says that nothing is known.
    gaps = [
        float((ball - m).abs_upper()) if np.isfinite(m) else np.inf
        for ball, m in zip(balls.flat, mid.flat, strict=True)
    ]
    return mid, np.nextafter(np.array(gaps, np.float64).reshape(balls.shape), np.inf)


def determinant_sign(matrix: Any) -> int:
    """The proved sign of the determinant of a square matrix of ``arb``; 0 if its enclosure contains zero.

    ``matrix`` is a ``flint.arb_mat`` or an object array of ``arb``; the precision is flint's current one.
    """
    if not isinstance(matrix, flint.arb_mat):
        matrix = flint.arb_mat([list(row) for row in np.asarray(matrix, dtype=object)])
    determinant = matrix.det()
    return 1 if determinant > 0 else -1 if determinant < 0 else 0


def checked(mid: Any, rad: Any) -> tuple[Array, Array, int]:
    """Midpoints and radii as float64 arrays of one square shape, and its side."""
    mid, rad = np.asarray(mid, np.float64), np.asarray(rad, np.float64)
    if mid.ndim != 2 or mid.shape[0] != mid.shape[1] or mid.shape != rad.shape or not len(mid):
        raise ValueError(f"expected square midpoints and radii of one shape, got {mid.shape} and {rad.shape}")
    if np.any(rad < 0):
        raise ValueError("radii must not be negative")
    if len(mid) > LARGEST:
        raise ValueError(f"matrices larger than {LARGEST} have no rounding error bounds here")
    return mid, rad, len(mid)

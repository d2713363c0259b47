"""Stability of SGD in mean square at an interpolating minimum: the exact threshold, and the bounds in use.

SGD linearised on the normal space, ``x+ = (I - eta A_w) x``, moves the second moment ``S = E x x^T`` by
``T(S) = S - 2 eta C(S) + eta^2 D(S)`` with ``C(S) = (M S + S M) / 2``, ``M = E A_w`` and ``D(S) = E A_w S A_w``.
``T`` is self-adjoint on symmetric matrices and keeps the positive semidefinite ones, so its spectral radius is
its largest eigenvalue (Krein-Rutman), and that is below 1 if and only if ``eta < 2 / lambda_max(C^-1 D)``. In the
eigenbasis of ``M``, ``C`` multiplies entry by entry; ``D(S) = F^T s (W o F S F^T) s F`` with the rows ``F`` of
all sample Hessians, their signs ``s`` and the second moment ``W`` of the batch weights. No matrix over pairs of
coordinates is formed.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.sparse.linalg import LinearOperator

from gdmap.bracket import Bracket, Status
from gdmap.exponents.interpolation import EPS, InterpolatingMinimum, interpolating_minimum
from gdmap.maps.batches import Batches
from gdmap.maps.gradient_descent import checked_step_size
from gdmap.objectives import AbstractObjective
from gdmap.orbits.cycles import NULL
from gdmap.spectra.dense import one_thread
from gdmap.spectra.extreme import CONFIDENCE, Extremes, extreme_eigenvalues

MULAYOFF = "Mulayoff & Michaeli, Exact mean square linear stability analysis for SGD, COLT 2024"
WU = "Wu, Ma & E, How SGD selects the global minima in over-parameterized learning, NeurIPS 2018"
GD = "linear stability of gradient descent"

# name -> (long name, kind, source)
BOUNDS = {
    "mean_square": ("largest step size of mean-square stability", "exact", MULAYOFF),
    "gradient_descent": ("2 / largest eigenvalue of the mean Hessian", "necessary", GD),
    "necessary_trace": ("2 tr M / E ||A_w||_F^2 (second moment I)", "necessary", MULAYOFF),
    "necessary_top_direction": ("2 lambda_max / E (v^T A_w v)^2 (second moment v v^T)", "necessary", MULAYOFF),
    "wu_ma_e": ("2 / lambda_max(M^-1/2 E[A_w^2] M^-1/2)", "sufficient", WU),
}
# Step sizes in units of 1 / curvature whose squares are still finite.
FARTHEST = 1e100


def mean_square_threshold(
    objective: AbstractObjective, theta: Any, batch_size: int = 1, probabilities: Any = None, replace: bool = False
) -> Bracket:
    """``eta_ms = 2 / lambda_max(C^-1 D)``: SGD is stable in mean square below it (status *computed*).

    Below ``eta_ms`` the second moment of the distance to the minima, of SGD linearised there, tends to zero;
    above, it grows without bound from almost all starts, though almost every trajectory may still converge:
    mean-square stability is sufficient for ``lambda < 0``, not necessary. For uniform batches without replacement
    it is the formula of Mulayoff and Michaeli and does not decrease with the batch size; the full batch gives
    ``2 / lambda_max(H)``.

    The largest eigenvalue is found by Lanczos iteration on ``C^-1/2 D C^-1/2``, dense for normal spaces of up to
    ten dimensions. The interval adds its residual and bound over the random start (confidence 99.9 %, as in
    `sharpness`) to the measured rounding of the sample Hessians.

    Parameters
    ----------
    objective, theta
        A loss with samples and an interpolating minimum of it.
    batch_size, probabilities, replace
        The law of the batches, as for `StochasticGradientDescent`.

    Raises
    ------
    ValueError
        If ``theta`` is not an interpolating minimum (see there), the batches make no sense, or the mean sample
        Hessian is not positive definite on the normal space.

    Source: arXiv:2306.07850 (uniform batches); here for any law of independent batches.
    """
    point, batches = point_and_batches(objective, theta, batch_size, probabilities, replace)
    return mean_square_threshold_at(point, batches)


def mean_square_radius(
    objective: AbstractObjective,
    theta: Any,
    step_size: float,
    batch_size: int = 1,
    probabilities: Any = None,
    replace: bool = False,
) -> Bracket:
    """``rho(T)``: ``E ||x_t||^2`` grows like ``rho^t`` for SGD linearised at a minimum (status *computed*).

    ``(1/2) log rho`` is at least ``lambda``, the exponent of almost every trajectory. Parameters and errors as for
    `mean_square_threshold`, with the ``step_size``; dimensionless.
    """
    eta = checked_step_size(step_size)
    point, batches = point_and_batches(objective, theta, batch_size, probabilities, replace)
    return mean_square_radius_at(point, batches, eta)


def sgd_step_size_bounds(
    objective: AbstractObjective,
    theta: Any,
    batch_sizes: Sequence[int] = (1,),
    probabilities: Any = None,
    replace: bool = False,
) -> xr.Dataset:
    """The mean-square threshold beside the bounds that people use for it, over the batch size (status *computed*).

    Always ``wu_ma_e <= mean_square <= necessary_trace`` and ``mean_square <= necessary_top_direction <=
    gradient_descent``; ``necessary_trace`` may exceed ``gradient_descent``.

    Parameters
    ----------
    objective, theta, probabilities, replace
        As for `mean_square_threshold`.
    batch_sizes
        The batch sizes.

    Returns
    -------
    xarray.Dataset
        Over ``batch_size``: ``mean_square``, ``gradient_descent``, ``necessary_trace``,
        ``necessary_top_direction`` and ``wu_ma_e``, each with ``_lower`` and ``_upper``; attributes
        ``long_name``, ``kind`` (``'exact'``, ``'necessary'``, ``'sufficient'``) and ``source``.
    """
    sizes = [*np.atleast_1d(np.asarray(batch_sizes, dtype=object))]
    if not sizes:
        raise ValueError("batch_sizes is empty: give at least one batch size")
    point, first = point_and_batches(objective, theta, sizes[0], probabilities, replace)
    laws = [first] + [Batches(point.n_samples, size, first.probabilities, replace) for size in sizes[1:]]
    found = [step_size_bounds_at(point, batches) for batches in laws]
    variables: dict[str, Any] = {}
    for name, (long_name, kind, source) in BOUNDS.items():
        brackets = [bounds[name] for bounds in found]
        statuses = {bracket.status for bracket in brackets}
        attributes = {
            "units": "step size",
            "long_name": long_name,
            "kind": kind,
            "source": source,
            "status": "estimated" if "estimated" in statuses else "computed",
            "method": brackets[0].method,
        }
        variables[name] = ("batch_size", [bracket.value for bracket in brackets], attributes)
        for end in ("lower", "upper"):
            values = [getattr(bracket, end) for bracket in brackets]
            variables[f"{name}_{end}"] = (
                "batch_size",
                values,
                {"units": "step size", "long_name": f"{end} end point"},
            )
    return xr.Dataset(
        variables,
        coords={"batch_size": ("batch_size", [batches.size for batches in laws], {"units": "samples"})},
        attrs={
            "normal_dimension": point.rank,
            "replace": int(replace),
            "evidence": point.evidence,
            "status": "computed",
        },
    )


def point_and_batches(
    objective: AbstractObjective, theta: Any, batch_size: int, probabilities: Any, replace: bool
) -> tuple[InterpolatingMinimum, Batches]:
    """The interpolating minimum and the law of the batches, the batch size checked first."""
    if probabilities is None:
        probabilities = getattr(objective, "probabilities", None)
    try:
        n = int(objective.n_samples)  # type: ignore[attr-defined]
    except (AttributeError, ValueError):
        n = 0  # what is missing is named below
    batches = Batches(n, batch_size, probabilities, replace) if n else None
    point = interpolating_minimum(objective, theta, probabilities)
    return point, batches or Batches(point.n_samples, batch_size, probabilities, replace)


class SecondMoments(NamedTuple):
    """``C`` and ``D`` in the eigenbasis of ``M``: its eigenvalues, the rows there, and the weights of their pairs.

    ``eigenvalues`` ``(r,)`` ascending; ``factors`` ``(m, r)``; ``weights`` ``(m, m)``, ``s_a W_ij s_b`` for rows
    ``a`` of sample ``i`` and ``b`` of ``j``; ``error`` bounds the rounding of ``A_w``, ``largest`` the norm of
    any ``A_w``.
    """

    eigenvalues: np.ndarray
    factors: np.ndarray
    weights: np.ndarray
    error: float
    largest: float

    def moment(self, second: np.ndarray) -> np.ndarray:
        """``D(S) = E A_w S A_w`` for symmetric ``S``, shape ``(r, r)``."""
        inner = self.weights * (self.factors @ second @ self.factors.T)
        moved = self.factors.T @ inner @ self.factors
        return np.asarray(moved + moved.T) / 2

    def relative_error(self, quotient: float) -> float:
        """By how much rounding of the ``A_w`` changes a quotient ``<S, D S> / <S, C S>`` of this size, at most.

        The root of the numerator is a norm that changes by at most ``error ||S||``, and ``<S, C S> >= lambda_min
        ||S||^2``.
        """
        lowest = float(self.eigenvalues[0])
        share = 2 * self.error / math.sqrt(quotient * lowest) + self.error / lowest
        return share + 16 * len(self.eigenvalues) * EPS

    def step_size(self, quotient: float, method: str) -> Bracket:
        """``2 / quotient`` with its rounding."""
        share = min(self.relative_error(quotient), 1.0)
        return Bracket(
            2 / quotient, 2 / quotient / (1 + share), 2 / quotient * (1 + 2 * share), "computed", method
        )


def second_moments(point: InterpolatingMinimum, batches: Batches) -> SecondMoments:
    """`SecondMoments` of SGD with these batches at an interpolating minimum.

    Raises
    ------
    ValueError
        For epochs, and where ``M`` is not positive definite.
    """
    W = batches.second_moment()
    eigenvalues, Q = np.linalg.eigh(point.mean_matrix(batches.mean()))
    if not eigenvalues[0] > max(NULL**2 * eigenvalues[-1], 2 * point.error):
        raise ValueError(
            f"the mean of the sample Hessians is not positive definite on their normal space (eigenvalues from "
            f"{eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g}): some sample's loss is not minimal at theta, and "
            f"linear stability in mean square does not decide"
        )
    weights = W[np.ix_(point.sample, point.sample)] * np.outer(point.signs, point.signs)
    return SecondMoments(eigenvalues, point.factors @ Q, weights, point.error, float(point.sizes.max()))


class _Symmetric:
    """Symmetric matrices of order ``r`` as vectors of length ``r (r + 1) / 2``, isometrically."""

    def __init__(self, r: int) -> None:
        self.r = r
        self.rows, self.columns = np.triu_indices(r)
        self.stretch = np.where(self.rows == self.columns, 1.0, math.sqrt(2.0))
        self.dim = len(self.rows)

    def matrix(self, v: np.ndarray) -> np.ndarray:
        S = np.zeros((self.r, self.r))
        S[self.rows, self.columns] = S[self.columns, self.rows] = np.reshape(v, -1) / self.stretch
        return S

    def vector(self, S: np.ndarray) -> np.ndarray:
        return np.asarray(S[self.rows, self.columns] * self.stretch)


def _largest(r: int, image: Any) -> Extremes:
    """The largest eigenvalue of a self-adjoint map of symmetric matrices of order ``r``."""
    space = _Symmetric(r)
    operator: Any = LinearOperator(
        (space.dim, space.dim), matvec=lambda v: space.vector(image(space.matrix(v))), dtype=np.float64
    )
    with one_thread():  # rounding would depend on the number of threads
        return extreme_eigenvalues(operator)


def _words(found: Extremes) -> tuple[Status, str, float | None]:
    """Status, method and confidence of the largest eigenvalue found."""
    if found.is_dense:
        return "computed", "dense symmetric eigensolver", None
    words = f"Lanczos, {found.products} products, bound over the random start with confidence {CONFIDENCE:.1%}"
    if found.converged:
        return "computed", words, None
    return "estimated", f"{words}; NOT CONVERGED", CONFIDENCE


def mean_square_threshold_at(point: InterpolatingMinimum, batches: Batches) -> Bracket:
    """`mean_square_threshold` at a verified point, for a law of batches."""
    return _threshold(second_moments(point, batches))


def _threshold(moments: SecondMoments) -> Bracket:
    eigenvalues = moments.eigenvalues
    root = 1 / np.sqrt((eigenvalues[:, None] + eigenvalues) / 2)
    found = _largest(len(eigenvalues), lambda S: root * moments.moment(root * S))
    status, words, confidence = _words(found)
    value = float(found.values[0])
    share = moments.relative_error(value)
    top = value + float(found.radii[0]) + found.rounding
    if not found.converged:
        top = max(top, found.beyond)
    lower = 2 / (top * (1 + share) * (1 + EPS))
    remaining = value - found.rounding - share * value
    upper = 2 / remaining if remaining > 0 else math.inf
    method = f"2 / lambda_max(C^-1 D) on the normal space of dimension {len(eigenvalues)}: {words}"
    return Bracket(2 / value, min(lower, 2 / value), max(upper, 2 / value), status, method, confidence)


def mean_square_radius_at(point: InterpolatingMinimum, batches: Batches, step_size: float) -> Bracket:
    """`mean_square_radius` at a verified point, for a law of batches."""
    moments = second_moments(point, batches)
    eta, eigenvalues = checked_step_size(step_size), moments.eigenvalues
    if eta * moments.largest > FARTHEST:
        raise ValueError(
            f"step_size {eta:g} is {eta * moments.largest:.2g} times what the curvature allows: it overflows"
        )
    kept = 1 - eta * (eigenvalues[:, None] + eigenvalues)
    found = _largest(len(eigenvalues), lambda S: kept * S + eta**2 * moments.moment(S))
    status, words, confidence = _words(found)
    reach = 1 + eta * moments.largest
    error = 2 * eta * moments.error * reach + 8 * len(eigenvalues) * EPS * reach**2 + found.rounding
    value = max(float(found.values[0]), 0.0)
    top = value + float(found.radii[0])
    if not found.converged:
        top = max(top, found.beyond)
    method = f"lambda_max of S -> E (I - eta A_w) S (I - eta A_w), dimension {len(eigenvalues)}: {words}"
    return Bracket(value, max(value - error, 0.0), top + error, status, method, confidence)


def step_size_bounds_at(point: InterpolatingMinimum, batches: Batches) -> dict[str, Bracket]:
    """The bounds of `sgd_step_size_bounds` at a verified point, for a law of batches."""
    moments = second_moments(point, batches)
    eigenvalues, r = moments.eigenvalues, len(moments.eigenvalues)
    top = float(eigenvalues[-1])
    squares = moments.moment(np.eye(r))
    along = moments.factors[:, -1] ** 2
    scaled = squares / np.sqrt(np.outer(eigenvalues, eigenvalues))
    quotients = {
        "necessary_trace": (float(np.trace(squares)) / float(eigenvalues.sum()), "quotient at S = I"),
        "necessary_top_direction": (
            float(along @ moments.weights @ along) / top,
            "quotient at S = v v^T, v the top eigenvector of M as computed",
        ),
        "wu_ma_e": (float(np.linalg.eigvalsh((scaled + scaled.T) / 2)[-1]), "dense symmetric eigensolver"),
    }
    descent = Bracket(
        top, top - moments.error - r * EPS * top, top + moments.error + r * EPS * top, "computed", ""
    )
    return {
        "mean_square": _threshold(moments),
        "gradient_descent": descent.reciprocal(2.0, "2 / lambda_max(M), dense symmetric eigensolver"),
        **{name: moments.step_size(*found) for name, found in quotients.items()},
    }

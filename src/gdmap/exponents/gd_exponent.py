"""mu, the exponent of gradient descent at a minimum, on the normal space of the minima around it."""

import math
from typing import Any

import numpy as np

from gdmap.exponents.exponent import Exponent
from gdmap.exponents.interpolation import EPS, InterpolatingMinimum, interpolating_minimum
from gdmap.maps.gradient_descent import checked_step_size
from gdmap.minima import verified_minimum
from gdmap.minima.critical_points import DENSE_LIMIT, JITTERS, hessians_at, jitters
from gdmap.minima.minimum import checked_point
from gdmap.objectives import AbstractObjective
from gdmap.orbits.cycles import NULL


def gd_exponent(objective: AbstractObjective, theta: Any, step_size: float) -> Exponent:
    """``mu = log rho((I - eta H)|_N) = max_j log|1 - eta lambda_j|`` at a minimum (status *computed*).

    ``N`` is the normal space of the minima around ``theta``, spanned by the eigenvectors of the Hessian's non-zero
    eigenvalues ``lambda_j``: along the minima gradient descent neither contracts nor expands. ``mu < 0`` (stable)
    if and only if ``eta < 2 / lambda_max``. The value is minus infinity where every multiplier may be 0. For
    weighted samples pass ``objective.weighted(p)``.

    Parameters
    ----------
    objective
        The loss; above 1,000 parameters one with samples, and ``theta`` must interpolate them.
    theta
        The minimum, shape ``(dim,)``; it is verified and refined.
    step_size
        ``eta``.

    Raises
    ------
    ValueError
        If ``theta`` is not a verified minimum, lies on a kink, or the Hessian vanishes there (zero normal space).

    Source: Chemnitz & Engel, JMLR 26(134), 2025, for the criterion.
    """
    eta = checked_step_size(step_size)
    theta = checked_point(objective, theta)
    if objective.dim > DENSE_LIMIT:
        try:
            point = interpolating_minimum(objective, theta)
        except ValueError as reason:
            raise ValueError(
                f"above {DENSE_LIMIT} parameters the normal space is found through the samples of an "
                f"interpolating minimum only: {reason}"
            ) from None
        return gd_exponent_at(point, point.probabilities, eta)
    minimum = verified_minimum(objective, theta)
    eigenvalues = minimum.eigenvalues[minimum.nullity :]
    if not len(eigenvalues):
        raise ValueError(
            "the normal space is zero: the Hessian vanishes at theta, so gradient descent has no exponent there"
        )
    moved = minimum.theta + jitters(objective.dim)[:JITTERS] * np.spacing(minimum.theta)
    spectrum = np.sort(minimum.eigenvalues)
    change = np.abs(np.linalg.eigvalsh(hessians_at(objective, moved)) - spectrum).max()
    error = objective.dim * EPS * float(np.abs(eigenvalues).max()) + 2 * float(change)
    gap = f", gap {minimum.null_gap:.2g}" if math.isfinite(minimum.null_gap) else ""
    method = f"dense Hessian on the normal space of dimension {len(eigenvalues)} (nullity {minimum.nullity}{gap})"
    return exponent_of_multipliers(eigenvalues, error, eta, method)


def gd_exponent_at(point: InterpolatingMinimum, weights: np.ndarray, step_size: float) -> Exponent:
    """The exponent at an interpolating minimum of the loss with these weights of the samples, shape ``(n,)``."""
    eigenvalues = np.linalg.eigvalsh(point.mean_matrix(weights))
    zero = np.abs(eigenvalues) <= NULL * np.abs(eigenvalues).max()
    kept = eigenvalues[~zero]
    gap = float(np.abs(kept).min()) / max(float(np.abs(eigenvalues[zero]).max(initial=0.0)), point.error)
    method = (
        f"mean of the sample Hessians on the normal space of dimension {len(kept)} "
        f"(nullity {point.objective.dim - len(kept)}, gap {gap:.2g}); {point.evidence}"
    )
    return exponent_of_multipliers(kept, point.error, step_size, method)


def exponent_of_multipliers(eigenvalues: np.ndarray, error: float, eta: float, method: str) -> Exponent:
    """``max_j log|1 - eta lambda_j|`` for eigenvalues known to ``error``."""
    multipliers = np.abs(1 - eta * eigenvalues)
    radius = eta * error + 2 * EPS * (1 + eta * np.abs(eigenvalues))
    value, lower, upper = (
        logarithm(float(np.max(edge))) for edge in (multipliers, multipliers - radius, multipliers + radius)
    )
    return Exponent(value, widened(lower, -1), widened(upper, 1), "computed", method)


def logarithm(x: float) -> float:
    """``log x``, minus infinity for what is not positive."""
    return math.log(x) if x > 0 else -math.inf


def widened(x: float, sign: int) -> float:
    """``x`` moved outward by the rounding of a logarithm."""
    return x if math.isinf(x) else x + sign * 2 * EPS * abs(x)

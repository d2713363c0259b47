"""A verified minimum: where it is, its Hessian spectrum, its tangent and normal spaces; and how to find one."""

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gdmap.bracket import Bracket
from gdmap.minima.critical_points import (
    DENSE_LIMIT,
    OF_SADDLES,
    CriticalPoints,
    Evidence,
    refine_critical_points,
)
from gdmap.minima.descent import MAX_STEPS, METHODS, descend
from gdmap.minima.kinks import find_kink
from gdmap.objectives import AbstractObjective
from gdmap.orbits.cycles import NULL
from gdmap.spectra import sharpness

# A given point may be this share of its size away from the minimum that Newton's method finds.
NEARBY = 1e-3
# A gradient above this share of that at the start is no rounding; parameters that run off grow by this factor.
SLOPE_LEFT, GROWN = 1e-8, 1.2
NUDGES = 4
NUDGE = 1e-2


@dataclass(frozen=True, eq=False)
class Minimum:
    """A point shown to be a minimum, with the geometry of the set of minima around it (status *computed*).

    Attributes
    ----------
    theta
        The minimum, refined by Newton's method, shape ``(dim,)``.
    loss, gradient_norm
        Floating-point values there.
    evidence
        What shows it: `Evidence` ``KNOWN_OPTIMUM``, ``POSITIVE_DEFINITE_HESSIAN`` or ``MANIFOLD_OF_MINIMA``.
    eigenvalues, eigenvectors
        Of the Hessian; ascending in modulus up to ``nullity``, then ascending. Eigenvectors are columns.
    nullity
        How many eigenvalues are zero: below 1e-10 of the largest. At a manifold of minima this is its
        dimension.
    null_gap
        The smallest eigenvalue counted as non-zero over the largest counted as zero (or over rounding): the
        larger, the clearer the nullity. Infinite if all or none are zero.
    """

    objective: AbstractObjective = field(repr=False)
    theta: np.ndarray
    loss: float
    gradient_norm: float
    evidence: Evidence
    eigenvalues: np.ndarray = field(repr=False)
    eigenvectors: np.ndarray = field(repr=False)
    nullity: int
    null_gap: float

    @functools.cached_property
    def sharpness(self) -> Bracket:
        """The largest Hessian eigenvalue with its error."""
        return sharpness(self.objective, self.theta)

    @property
    def tangent_basis(self) -> np.ndarray:
        """Orthonormal columns spanning the tangent space of the minima, shape ``(dim, nullity)``."""
        return self.eigenvectors[:, : self.nullity]

    @property
    def normal_basis(self) -> np.ndarray:
        """Orthonormal columns spanning the normal space, shape ``(dim, dim - nullity)``."""
        return self.eigenvectors[:, self.nullity :]

    @property
    def tangent_projector(self) -> np.ndarray:
        """The orthogonal projector on the tangent space, shape ``(dim, dim)``."""
        return self.tangent_basis @ self.tangent_basis.T

    @property
    def normal_projector(self) -> np.ndarray:
        """The orthogonal projector on the normal space, shape ``(dim, dim)``."""
        return self.normal_basis @ self.normal_basis.T


def verified_minimum(objective: AbstractObjective, theta: Any) -> Minimum:
    """``theta`` as a `Minimum`, if it is one (status *computed*).

    Newton's method must find a critical point within a thousandth of the size of ``theta``, where the gradient
    is rounding noise and the Hessian positive definite, or singular only along a verified manifold of
    equal-loss critical points. The point returned is the refined one.

    Raises
    ------
    ValueError
        If ``theta`` is a saddle or a maximum, not critical, degenerate, or lies on a kink of the loss; or above
        1,000 parameters, where the dense Hessian is out of reach.
    """
    theta = checked_point(objective, theta)
    refuse_large(objective)
    size = float(np.linalg.norm(theta)) or 1.0
    points = refine_critical_points(objective, theta[None], np.array([size]))
    code = Evidence(points.evidence[0])
    kink = find_kink(objective, points.theta[0], size)
    if kink is not None:
        raise ValueError(
            f"the loss has a kink at theta: its {kink.derivative} jumps by {kink.jump:.3g} within a distance of "
            f"{kink.distance:.1g}, so what follows from the Hessian there does not hold. Use gdmap.ensemble from "
            "starts nearby to see which step sizes return, or choose a minimum off the kink"
        )
    if code == Evidence.NOT_CRITICAL or points.displacement[0] > NEARBY * size:
        norm = float(np.linalg.norm(objective.gradient(theta)))
        raise ValueError(
            f"theta is not a minimum that can be verified: the gradient norm there is {norm:.3g} and Newton's "
            "method does not settle on a critical point close by. If the gradient is large, "
            "gdmap.find_minimum(objective, theta) looks for a minimum from there; if it is tiny, the minimum is "
            "degenerate (as for x^4) or infinitely far"
        )
    if code in OF_SADDLES:
        raise ValueError(f"theta is not a minimum: {saddle_words(points.hessian[0], code)}")
    if code == Evidence.DEGENERATE_CRITICAL_POINT:
        raise ValueError(degenerate_words(points.hessian[0]))
    return described_minimum(objective, points, 0)


def saddle_words(hessian: np.ndarray, code: Evidence) -> str:
    """What kind of critical point a saddle or maximum is, in words."""
    eigenvalues = np.linalg.eigvalsh(hessian)
    negative = int(np.sum(eigenvalues < -NULL * np.abs(eigenvalues).max()))
    if negative == 0 and code == Evidence.CRITICAL_POINT_ABOVE_OPTIMUM:
        return "it is a critical point whose loss is above the optimum, with no descent direction of second order"
    kind = "a maximum" if negative == len(eigenvalues) else "a saddle"
    return (
        f"it is {kind}: {negative} of {len(eigenvalues)} Hessian eigenvalues are negative ({eigenvalues[0]:.4g})"
    )


def degenerate_words(hessian: np.ndarray) -> str:
    """Why a degenerate critical point cannot be called a minimum."""
    eigenvalues = np.linalg.eigvalsh(hessian)
    zero = int(np.sum(np.abs(eigenvalues) <= NULL * np.abs(eigenvalues).max()))
    if not np.any(hessian):
        return (
            "the Hessian vanishes altogether at theta: the loss is flat there, or the minimum is degenerate (as "
            "for x^4). No step size makes such a point unstable to first order, and none can be called critical"
        )
    return (
        f"theta is a degenerate critical point: {zero} of {len(eigenvalues)} Hessian eigenvalues vanish and no "
        "manifold of minima of equal loss passes along them (as for x^4), or they are too small beside the "
        f"largest ({np.abs(eigenvalues).max():.3g}) to tell; linear stability does not decide"
    )


def described_minimum(objective: AbstractObjective, points: CriticalPoints, lane: int) -> Minimum:
    """The `Minimum` at one verified point."""
    theta, hessian = points.theta[lane], points.hessian[lane]
    eigenvalues, eigenvectors = np.linalg.eigh(hessian)
    size = np.abs(eigenvalues)
    null = size <= NULL * size.max()
    order = np.concatenate([np.flatnonzero(null), np.flatnonzero(~null)])
    nullity = int(null.sum())
    gap = np.inf
    if 0 < nullity < len(size):
        rounding = np.finfo(float).eps * size.max()
        gap = float(size[~null].min() / max(size[null].max(), rounding))
    return Minimum(
        objective=objective,
        theta=theta,
        loss=float(objective.value(theta)),
        gradient_norm=float(np.linalg.norm(objective.gradient(theta))),
        evidence=Evidence(points.evidence[lane]),
        eigenvalues=eigenvalues[order],
        eigenvectors=eigenvectors[:, order],
        nullity=nullity,
        null_gap=gap,
    )


def find_minimum(
    objective: AbstractObjective, theta: Any, *, method: str | None = None, max_steps: int = MAX_STEPS
) -> Minimum:
    """The minimum that a descent from ``theta`` ends in, verified (status *computed*).

    Optimistix goes down, damped Newton steps finish, and the point is verified as in `verified_minimum`. A saddle
    met on the way is left along its most negative direction. The minimum is a local one unless the objective
    knows its optimum.

    Parameters
    ----------
    objective
        The loss, of at most 1,000 parameters.
    theta
        The start, shape ``(dim,)``.
    method
        ``'bfgs'``; for objectives with ``residuals`` (square losses) also ``'levenberg-marquardt'``, the default
        there, and ``'gauss-newton'``.
    max_steps
        Solver steps at most.

    Raises
    ------
    ValueError
        If no minimum can be verified: the message says whether the parameters run off (an infimum that is not
        attained, as for the logistic loss on separable data), a kink is in the way, or the point is degenerate.
    """
    theta = checked_point(objective, theta)
    refuse_large(objective)
    method = checked_method(objective, method)
    if not np.isfinite(objective.value(theta)) or not np.all(np.isfinite(objective.gradient(theta))):
        raise ValueError("the loss or its gradient is not finite at theta: start elsewhere")
    reached = theta
    for _ in range(NUDGES):
        reached = descend(objective, reached[None], method, max_steps)[0]
        if not np.all(np.isfinite(reached)):
            raise ValueError(
                "no minimum found: the descent left the finite numbers; the loss may be unbounded below"
            )
        size = float(np.linalg.norm(reached)) or 1.0
        points = refine_critical_points(objective, reached[None], np.array([size]))
        if points.evidence[0] not in OF_SADDLES:
            break
        direction = np.linalg.eigh(points.hessian[0])[1][:, 0]
        reached = points.theta[0] + NUDGE * size * direction
    try:
        return verified_minimum(objective, reached)
    except ValueError as error:
        raise ValueError(
            f"no minimum found from this start: {what_is_in_the_way(objective, theta, reached, error)}"
        ) from None


def what_is_in_the_way(
    objective: AbstractObjective, start: np.ndarray, reached: np.ndarray, error: ValueError
) -> str:
    """Why a descent from ``start`` that ended at ``reached`` gave no minimum, in words."""
    kink = find_kink(objective, reached, float(np.linalg.norm(reached - start)) or 1.0, farthest=1e-2)
    if kink is not None:
        return (
            f"the descent ends at a kink of the loss, where its {kink.derivative} jumps by {kink.jump:.3g}; "
            "thresholds from the Hessian do not apply there"
        )
    loss, norm = float(objective.value(reached)), float(np.linalg.norm(reached))
    if runs_off(objective, reached):
        return (
            f"the loss still decreases (to {loss:.3g}) while the parameters grow (norm {norm:.3g}): the infimum "
            "may not be attained, as for the logistic loss on separable data. With weight decay a minimum exists"
        )
    slope = float(np.linalg.norm(objective.gradient(reached)))
    if slope > SLOPE_LEFT * float(np.linalg.norm(objective.gradient(start))):
        return (
            f"the descent ended at loss {loss:.6g} with a gradient norm of {slope:.3g}, which is not rounding: "
            "the loss may not be smooth, or needs more than max_steps"
        )
    if "gradient norm there" in str(error):
        return (
            f"the descent ended with a gradient norm of {slope:.3g}, but Newton's method does not settle there: "
            "the minimum is degenerate (as for x^4), where linear stability does not decide, or infinitely far"
        )
    return str(error)


def runs_off(objective: AbstractObjective, theta: np.ndarray) -> bool:
    """Whether a further descent from ``theta`` lowers the loss and carries the parameters clearly outwards."""
    farther = descend(objective, theta[None] * (1 + NUDGE), "bfgs", MAX_STEPS)[0]
    grown = np.abs(farther).max() > GROWN * np.abs(theta).max()
    return bool(grown and float(objective.value(farther)) < float(objective.value(theta)))


def checked_point(objective: AbstractObjective, theta: Any) -> np.ndarray:
    """``theta`` as a finite float64 vector of the right shape."""
    if not isinstance(objective, AbstractObjective):
        raise TypeError(f"objective must be a gdmap objective such as Function(f, dim), got {objective!r}")
    if isinstance(theta, Minimum):
        theta = theta.theta
    try:
        theta = np.array(theta, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"theta must be one flat vector of numbers, got {type(theta).__name__}: pass objective.ravel(params)"
        ) from None
    objective.checked(theta)
    if not np.all(np.isfinite(theta)):
        raise ValueError("theta holds values that are not finite")
    return theta


def refuse_large(objective: AbstractObjective) -> None:
    """Refuse what needs the dense Hessian of too many parameters."""
    if objective.dim > DENSE_LIMIT:
        raise ValueError(
            f"the objective has {objective.dim} parameters; verifying a minimum needs the dense Hessian, at most "
            f"{DENSE_LIMIT}. gdmap.sharpness and gdmap.spectrum(k=) work matrix-free at any size"
        )


def checked_method(objective: AbstractObjective, method: str | None) -> str:
    """The solver to use, by default the one that suits the objective."""
    has_residuals = bool(getattr(objective, "has_residuals", False))
    if method is None:
        return "levenberg-marquardt" if has_residuals else "bfgs"
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method != "bfgs" and not has_residuals:
        raise ValueError(f"{method} needs an objective with residuals (a square loss): use method='bfgs'")
    return method

"""What a critical point is: many points at once, never judged by a small gradient alone.

A point counts as critical if Newton's method finds it and the gradient there is no more than measured rounding
noise. It is a minimum by its Hessian if that is positive definite, or if the null directions are tangent to a
manifold of critical points of equal loss; anything flatter is degenerate.
"""

from enum import IntEnum
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from gdmap.engines.xla import block_size, on_lanes
from gdmap.maps import Family, GradientDescent, StepSizeFamily
from gdmap.objectives import AbstractObjective
from gdmap.orbits import Cycles, is_on_a_family, refine_cycles
from gdmap.orbits.cycles import CONVERGED, NULL, SHIFT, rank_above_null
from gdmap.spectra.dense import for_each

DENSE_LIMIT = 1000
# Rounding noise is taken from this many copies moved by a few ulps, and exceeded by at most this factor; a
# refined point is known to this share of its norm.
JITTERS = 4
NOISE = 16
POSITION_ERROR = 1e-12
# Null directions that are level only up to the rounding of the curvature are tried this many times farther out.
FAR = 300.0


class Evidence(IntEnum):
    """By what a point is known for what it is.

    A minimum: ``KNOWN_OPTIMUM`` (the loss is the known optimal value), ``POSITIVE_DEFINITE_HESSIAN``,
    ``MANIFOLD_OF_MINIMA`` (the null directions are verified tangent to a manifold of critical points of equal
    loss). A saddle or maximum: ``NEGATIVE_HESSIAN_EIGENVALUE``, ``CRITICAL_POINT_ABOVE_OPTIMUM``. Neither could
    be shown: ``DEGENERATE_CRITICAL_POINT``. The gradient does not vanish there: ``NOT_CRITICAL``.
    """

    NOT_CRITICAL = 0
    KNOWN_OPTIMUM = 1
    POSITIVE_DEFINITE_HESSIAN = 2
    MANIFOLD_OF_MINIMA = 3
    NEGATIVE_HESSIAN_EIGENVALUE = 4
    CRITICAL_POINT_ABOVE_OPTIMUM = 5
    DEGENERATE_CRITICAL_POINT = 6


OF_MINIMA = (Evidence.KNOWN_OPTIMUM, Evidence.POSITIVE_DEFINITE_HESSIAN, Evidence.MANIFOLD_OF_MINIMA)
OF_SADDLES = (Evidence.NEGATIVE_HESSIAN_EIGENVALUE, Evidence.CRITICAL_POINT_ABOVE_OPTIMUM)


class LossAndGradient(eqx.Module):
    """``theta -> (L, grad L, L - L*)`` for one lane; the excess is NaN where ``L*`` is unknown."""

    objective: AbstractObjective

    def __call__(self, theta: Any) -> tuple[Any, Any, Any]:
        """Loss, gradient and excess at ``theta``."""
        loss, gradient = jax.value_and_grad(self.objective.evaluate)(theta)
        excess = self.objective.excess(theta) if self.objective.knows_optimum else loss * np.nan
        return loss, gradient, excess


class HessianAt(eqx.Module):
    """``theta -> H(theta)`` for one lane."""

    objective: AbstractObjective

    def __call__(self, theta: Any) -> Any:
        """``H(theta)``, shape ``(dim, dim)``."""
        return self.objective.hessian(theta)


def loss_and_gradient(
    objective: AbstractObjective, theta: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses, gradients and excesses over a known optimum at many points, one per row."""
    loss, gradient, excess = on_lanes(LossAndGradient(objective), (theta,), block_size(16 * theta.shape[1]))
    return loss, gradient, excess


def hessians_at(objective: AbstractObjective, theta: np.ndarray) -> np.ndarray:
    """Hessians at many points, shape ``(lanes, dim, dim)``."""
    block = block_size(32 * objective.dim**2, largest=16)
    return np.asarray(on_lanes(HessianAt(objective), (theta,), block))


class CriticalPoints(NamedTuple):
    """Points refined by Newton's method, one per row, and what they are.

    ``theta`` the refined points; ``hessian``; ``evidence`` codes of `Evidence`; ``displacement`` how far Newton's
    method went.
    """

    theta: np.ndarray
    hessian: np.ndarray
    evidence: np.ndarray
    displacement: np.ndarray

    @property
    def is_minimum(self) -> np.ndarray:
        """Which of the points are verified minima."""
        return np.isin(self.evidence, OF_MINIMA)


def refine_critical_points(objective: AbstractObjective, theta: np.ndarray, scale: np.ndarray) -> CriticalPoints:
    """Newton's method for ``grad L = 0`` from each row of ``theta``, and what is found there.

    ``scale`` is the length that matters in each lane. Corrections have minimum norm; where they do not contract
    the evidence is ``NOT_CRITICAL`` and the point is returned as it came.
    """
    with np.errstate(all="ignore"):  # points may lie where the loss overflows
        cycles = refine_cycles(*descent_at(objective, hessians_at(objective, theta)), theta, 1, scale)
    refined = np.where(cycles.converged[:, None], cycles.points[:, 0], theta)
    hessians = hessians_at(objective, refined)
    evidence = np.full(len(theta), Evidence.NOT_CRITICAL, np.int8)
    precision = CONVERGED * scale + 64 * np.finfo(float).eps * np.linalg.norm(theta, axis=1)
    finite = cycles.converged & np.all(np.isfinite(hessians), axis=(1, 2))
    lanes = np.flatnonzero(finite)
    if lanes.size:
        lanes = lanes[gradient_vanishes(objective, refined[lanes], hessians[lanes], precision[lanes])]
    if lanes.size:
        evidence[lanes] = classify_critical_points(objective, refined[lanes], hessians[lanes])
    return CriticalPoints(refined, hessians, evidence, cycles.displacement)


def descent_at(objective: AbstractObjective, hessians: np.ndarray) -> tuple[Family, np.ndarray]:
    """Gradient descent, whose fixed points are the critical points, with step sizes of the order of 1 / curvature.

    Any step size has the same fixed points; this one keeps rounding in balance whatever the units of the loss.
    """
    curvature = row_sum_norms(hessians)
    step_size = np.where((curvature > 0) & np.isfinite(curvature), 1 / np.maximum(curvature, 1e-300), 1.0)
    return StepSizeFamily(objective, GradientDescent), step_size


def row_sum_norms(hessians: np.ndarray) -> np.ndarray:
    """The largest absolute row sum of each matrix: a bound on its spectral norm."""
    return np.abs(hessians).sum(axis=2).max(axis=1)


def gradient_vanishes(
    objective: AbstractObjective, theta: np.ndarray, hessians: np.ndarray, precision: np.ndarray
) -> np.ndarray:
    """Whether the gradient is rounding noise at points known to ``precision``, also along null directions.

    A step can round to nothing on a plateau, and directions left out of Newton's correction were never tested.
    """
    gradient, noise = gradient_and_noise(objective, theta)
    tolerance = NOISE * (np.linalg.norm(noise, axis=2).max(axis=0) + row_sum_norms(hessians) * precision)
    spaces = for_each(null_space, hessians)
    return (np.linalg.norm(gradient, axis=1) <= tolerance) & is_level(gradient, noise, spaces)


class NullSpace(NamedTuple):
    """The null space of a Hessian: orthonormal rows, and how far rounding tilts them, as an angle."""

    basis: np.ndarray
    tilt: float


def null_space(hessian: np.ndarray) -> NullSpace:
    """The null space of a Hessian (singular values below `NULL` of the largest)."""
    _, singular_values, Vt = np.linalg.svd(hessian)
    rank = rank_above_null(singular_values)
    condition = singular_values[0] / singular_values[rank - 1] if rank else 1.0
    return NullSpace(Vt[rank:], float(np.finfo(float).eps * condition))


def gradient_and_noise(objective: AbstractObjective, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients ``(lanes, dim)`` and their changes ``(copies, lanes, dim)`` on copies moved by a few ulps."""
    gradient = loss_and_gradient(objective, theta)[1]
    moved = [theta + jitter * np.spacing(theta) for jitter in jitters(theta.shape[1])]
    return gradient, np.stack([loss_and_gradient(objective, near)[1] - gradient for near in moved])


def is_level(
    gradient: np.ndarray, noise: np.ndarray, spaces: list[NullSpace], floor: np.ndarray | float = 0.0
) -> np.ndarray:
    """Whether the gradient along the null directions is no more than rounding noise, lane by lane.

    An exponentially flat valley has a tiny but clean slope. ``floor`` is noise known to be there besides what is
    measured.
    """
    floors = np.broadcast_to(floor, len(spaces))
    answer = np.ones(len(spaces), bool)
    for lane, (basis, tilt) in enumerate(spaces):
        along = basis @ gradient[lane]
        slope = np.linalg.norm(along)
        across = np.linalg.norm(gradient[lane] - along @ basis)
        measured = max((np.linalg.norm(basis @ change) for change in noise[:, lane]), default=0.0)
        answer[lane] = slope <= NOISE * (measured + tilt * across + floors[lane])
    return answer


def jitters(dim: int) -> np.ndarray:
    """Small integers, the same every time: displacements in units in the last place."""
    return np.random.default_rng(0).integers(-3, 4, (JITTERS, dim))


def classify_critical_points(objective: AbstractObjective, theta: np.ndarray, hessians: np.ndarray) -> np.ndarray:
    """The `Evidence` for critical points ``theta``, one per row, with their Hessians."""
    spectra = np.stack(for_each(np.linalg.eigvalsh, hessians))
    curvature = np.abs(spectra).max(axis=1)
    threshold = NULL * curvature
    loss, _, excess = loss_and_gradient(objective, theta)
    evidence = np.full(len(theta), Evidence.DEGENERATE_CRITICAL_POINT, np.int8)

    def assign(lanes: np.ndarray, found: Evidence) -> None:
        evidence[lanes & (evidence == Evidence.DEGENERATE_CRITICAL_POINT)] = found

    if objective.critical_gap is not None:
        # All critical values are known: the loss alone tells.
        at_optimum = excess <= objective.critical_gap / 2
        assign(at_optimum, Evidence.KNOWN_OPTIMUM)
        assign(~at_optimum, Evidence.CRITICAL_POINT_ABOVE_OPTIMUM)
    assign(spectra[:, 0] < -threshold, Evidence.NEGATIVE_HESSIAN_EIGENVALUE)
    if objective.knows_optimum:
        rounding = loss_noise(objective, theta, loss)
        position = curvature * np.sum((POSITION_ERROR * theta) ** 2, axis=1)
        assign(excess <= NOISE * rounding + position, Evidence.KNOWN_OPTIMUM)
    assign(spectra[:, 0] > threshold, Evidence.POSITIVE_DEFINITE_HESSIAN)
    flat = np.flatnonzero((evidence == Evidence.DEGENERATE_CRITICAL_POINT) & (curvature > 0))
    if flat.size:
        manifold = np.zeros(len(theta), bool)
        manifold[flat] = on_manifold_of_equal_loss(objective, theta[flat], hessians[flat])
        assign(manifold, Evidence.MANIFOLD_OF_MINIMA)
    return evidence


def on_manifold_of_equal_loss(objective: AbstractObjective, theta: np.ndarray, hessians: np.ndarray) -> np.ndarray:
    """Whether the null directions of critical points are tangent to a manifold of critical points of equal loss.

    At the point found some way along them, too, gradient and change of loss must be rounding noise, so flat
    directions of any order do not pass. Where they are that only beside the rounding of the curvature itself (a
    quadratic form with a null direction), they must be so much farther out as well.
    """
    spaces = for_each(null_space, hessians)
    answer = np.zeros(len(spaces), bool)
    lanes = np.flatnonzero([len(space.basis) > 0 for space in spaces])
    if not lanes.size:
        return answer
    answer[lanes] = level_along(objective, theta[lanes], hessians[lanes], [spaces[k] for k in lanes], 1.0, False)
    doubtful = lanes[~answer[lanes]]
    for reach in (1.0, FAR):
        if doubtful.size:
            chosen = [spaces[k] for k in doubtful]
            doubtful = doubtful[level_along(objective, theta[doubtful], hessians[doubtful], chosen, reach, True)]
    answer[doubtful] = True
    return answer


def level_along(
    objective: AbstractObjective,
    theta: np.ndarray,
    hessians: np.ndarray,
    spaces: list[NullSpace],
    reach: float,
    with_floor: bool,
) -> np.ndarray:
    """Whether there are critical points of equal loss ``reach`` times `SHIFT` along the null directions.

    ``with_floor``: up to the rounding of the curvature over that way, too.
    """
    size = np.linalg.norm(theta, axis=1)
    length = np.where(size > 0, size, 1.0)
    loss, gradient, _ = loss_and_gradient(objective, theta)
    descent, step_size = descent_at(objective, hessians)
    points = Cycles(
        points=theta[:, None],
        jacobian=np.eye(theta.shape[1]) - step_size[:, None, None] * hessians,
        defect=-step_size[:, None] * gradient,
        displacement=np.zeros(len(theta)),
        converged=np.ones(len(theta), bool),
    )
    bases = [space.basis for space in spaces]
    on_family, moved = is_on_a_family(descent, step_size, points, bases, reach * length)
    moved_loss = loss_and_gradient(objective, moved)[0]
    noise = loss_noise(objective, theta, loss)
    curvature = np.array([np.abs(np.linalg.eigvalsh(hessian)).max() for hessian in hessians])
    shift = reach * SHIFT * length
    floor = np.finfo(float).eps * curvature * shift if with_floor else np.zeros(len(theta))
    tolerance = NOISE * (noise + floor * shift) + curvature * (POSITION_ERROR * length) ** 2
    equal = np.abs(moved_loss - loss) <= tolerance
    return on_family & equal & is_level(*gradient_and_noise(objective, moved), spaces, floor)


def loss_noise(objective: AbstractObjective, theta: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The rounding noise of the loss at many points: its largest change on copies moved by a few ulps."""
    noise = np.finfo(theta.dtype).eps * np.abs(loss)
    for jitter in jitters(theta.shape[1]):
        near = loss_and_gradient(objective, theta + jitter * np.spacing(theta))[0]
        noise = np.maximum(noise, np.abs(near - loss))
    return noise

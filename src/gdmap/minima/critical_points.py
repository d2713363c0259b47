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

from gdmap.maps import Family, GradientDescent, StepSizeFamily
from gdmap.objectives import AbstractObjective
from gdmap.orbits import Cycles, refine_cycles
from gdmap.orbits.cycles import (
    CONTRACTION,
    CONVERGED,
    NEWTON_STEPS,
    NULL,
    SHIFT,
    apply,
    evaluate_lanes,
    generic_combinations,
    is_on_family_with,
    moves_along_a_family,
)
from gdmap.spectra.dense import in_slabs

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
    loss, gradient, excess = evaluate_lanes(LossAndGradient(objective), (theta,))
    return loss, gradient, excess


def hessians_at(objective: AbstractObjective, theta: np.ndarray) -> np.ndarray:
    """Hessians at many points, shape ``(lanes, dim, dim)``."""
    return np.asarray(evaluate_lanes(HessianAt(objective), (theta,)))


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
        evidence[lanes] = evidence_at(objective, refined[lanes], hessians[lanes], precision[lanes])
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


class Spectra(NamedTuple):
    """The eigenvalues of Hessians, ``(lanes, dim)``, ascending; their orthonormal eigenvectors as rows, ``(lanes,
    dim, dim)``; and which of them are null (moduli below `NULL` of the largest).
    """

    eigenvalues: np.ndarray
    rows: np.ndarray
    null: np.ndarray

    @classmethod
    def of(cls, hessians: np.ndarray) -> "Spectra":
        """The spectra of finite Hessians."""
        eigenvalues, vectors = in_slabs(np.linalg.eigh, hessians)
        moduli = np.abs(eigenvalues)
        null = ~(moduli > NULL * moduli.max(axis=1, keepdims=True))
        return cls(eigenvalues, vectors.swapaxes(1, 2), null)

    def take(self, lanes: np.ndarray) -> "Spectra":
        """The spectra of some lanes."""
        return Spectra(*(field[lanes] for field in self))

    @property
    def curvature(self) -> np.ndarray:
        """The largest modulus of an eigenvalue."""
        return np.asarray(np.abs(self.eigenvalues).max(axis=1))

    @property
    def tilt(self) -> np.ndarray:
        """How far rounding tilts the null spaces, as an angle."""
        smallest = np.where(self.null, np.inf, np.abs(self.eigenvalues)).min(axis=1)
        return np.finfo(float).eps * np.where(np.isfinite(smallest), self.curvature / smallest, 1.0)

    def along(self, vectors: np.ndarray) -> np.ndarray:
        """The lengths of the parts of vectors, ``(lanes, dim)``, in the null spaces."""
        return np.asarray(np.linalg.norm(np.where(self.null, apply(self.rows, vectors), 0.0), axis=1))

    def across(self, vectors: np.ndarray) -> np.ndarray:
        """The lengths of the other parts."""
        return np.asarray(np.linalg.norm(np.where(self.null, 0.0, apply(self.rows, vectors)), axis=1))

    def null_last(self) -> tuple[np.ndarray, np.ndarray]:
        """The eigenvectors with the null ones last, and the number of these in each lane."""
        order = np.argsort(self.null, axis=1, kind="stable")
        return np.take_along_axis(self.rows, order[:, :, None], axis=1), self.null.sum(axis=1)

    def correction(self, gradients: np.ndarray) -> np.ndarray:
        """``-H^+ g`` of each gradient, null directions left out."""
        inverse = np.where(self.null, 0.0, 1 / np.where(self.null, 1.0, self.eigenvalues))
        return -apply(self.rows.swapaxes(1, 2), inverse * apply(self.rows, gradients))


class Jittered(NamedTuple):
    """Losses, gradients ``(lanes, dim)`` and excesses over a known optimum at many points, and their rounding
    noise: the changes of the gradients, ``(copies, lanes, dim)``, and the largest change of each loss, on copies
    moved by a few ulps.
    """

    loss: np.ndarray
    gradient: np.ndarray
    excess: np.ndarray
    gradient_noise: np.ndarray
    loss_noise: np.ndarray

    @classmethod
    def at(cls, objective: AbstractObjective, theta: np.ndarray) -> "Jittered":
        """What is found at each row of ``theta``."""
        copies = jitters(theta.shape[1])[:, None] * np.spacing(theta)
        places = np.concatenate([theta[None], theta + copies])
        found = loss_and_gradient(objective, places.reshape(-1, theta.shape[1]))
        loss, gradient, excess = (values.reshape(len(places), *theta.shape[: values.ndim]) for values in found)
        noise = np.abs(loss[1:] - loss[0]).max(axis=0)
        noise = np.maximum(noise, np.finfo(theta.dtype).eps * np.abs(loss[0]))
        return cls(loss[0], gradient[0], excess[0], gradient[1:] - gradient[0], noise)

    def take(self, lanes: np.ndarray) -> "Jittered":
        """What was found at some of the points."""
        loss, gradient, excess, gradient_noise, loss_noise = self
        return Jittered(loss[lanes], gradient[lanes], excess[lanes], gradient_noise[:, lanes], loss_noise[lanes])


def jitters(dim: int) -> np.ndarray:
    """Small integers, the same every time: displacements in units in the last place."""
    return np.random.default_rng(0).integers(-3, 4, (JITTERS, dim))


def loss_noise(objective: AbstractObjective, theta: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The rounding noise of the loss at many points: its largest change on copies moved by a few ulps."""
    noise = np.finfo(theta.dtype).eps * np.abs(loss)
    for jitter in jitters(theta.shape[1]):
        near = loss_and_gradient(objective, theta + jitter * np.spacing(theta))[0]
        noise = np.maximum(noise, np.abs(near - loss))
    return noise


@np.errstate(all="ignore")  # corrections may lead where the loss overflows
def simplified_newton(
    objective: AbstractObjective, theta: np.ndarray, spectra: Spectra, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Newton's method for ``grad L = 0`` with the Hessians of ``spectra`` throughout; whether it converged.

    It needs only gradients, and converges, as `refine_cycles` must, where the second correction is a tenth of the
    first at most. Where it does not, Newton's method itself may.
    """
    x = np.array(theta)
    precision = CONVERGED * scale + 4 * np.finfo(float).eps * np.linalg.norm(x, axis=1)
    converged = np.zeros(len(x), bool)
    pending, first_length = np.arange(len(x)), np.full(len(x), np.inf)
    for attempt in range(NEWTON_STEPS):
        everywhere = pending.size == len(x)
        gradients = loss_and_gradient(objective, x[pending])[1]
        corrections = (spectra if everywhere else spectra.take(pending)).correction(gradients)
        length = np.linalg.norm(corrections, axis=1)
        good = np.isfinite(length)
        if attempt == 0:
            first_length[pending] = length
        elif attempt == 1:
            good &= (length <= precision[pending]) | (length <= CONTRACTION * first_length[pending])
        pending, length = pending[good], length[good]
        x[pending] += corrections[good]
        small = length <= precision[pending]
        converged[pending[small]] = True
        pending = pending[~small]
        if not pending.size:
            break
    return x, converged


def evidence_at(
    objective: AbstractObjective,
    theta: np.ndarray,
    hessians: np.ndarray,
    precision: np.ndarray,
    spectra: Spectra | None = None,
) -> np.ndarray:
    """The `Evidence` for points refined by Newton's method, one per row, known to ``precision``, whose Hessians
    are finite (and have these spectra).
    """
    spectra = Spectra.of(hessians) if spectra is None else spectra
    found = Jittered.at(objective, theta)
    evidence = np.full(len(theta), Evidence.NOT_CRITICAL, np.int8)
    lanes = np.flatnonzero(gradient_vanishes(found, spectra, hessians, precision))
    if lanes.size:
        evidence[lanes] = classify_critical_points(
            objective, theta[lanes], hessians[lanes], spectra.take(lanes), found.take(lanes)
        )
    return evidence


def gradient_vanishes(
    found: Jittered, spectra: Spectra, hessians: np.ndarray, precision: np.ndarray
) -> np.ndarray:
    """Whether the gradient is rounding noise at points known to ``precision``, also along null directions.

    A step can round to nothing on a plateau, and directions left out of Newton's correction were never tested.
    """
    noise = np.linalg.norm(found.gradient_noise, axis=2).max(axis=0)
    tolerance = NOISE * (noise + row_sum_norms(hessians) * precision)
    return (np.linalg.norm(found.gradient, axis=1) <= tolerance) & is_level(found, spectra)


def is_level(found: Jittered, spectra: Spectra, floor: np.ndarray | float = 0.0) -> np.ndarray:
    """Whether the gradient along the null directions is no more than rounding noise, lane by lane.

    An exponentially flat valley has a tiny but clean slope. ``floor`` is noise known to be there besides what is
    measured.
    """
    measured = np.max([spectra.along(change) for change in found.gradient_noise], axis=0)
    allowed = NOISE * (measured + spectra.tilt * spectra.across(found.gradient) + floor)
    return np.asarray(spectra.along(found.gradient) <= allowed)


def classify_critical_points(
    objective: AbstractObjective, theta: np.ndarray, hessians: np.ndarray, spectra: Spectra, found: Jittered
) -> np.ndarray:
    """The `Evidence` for critical points ``theta``, one per row, with their Hessians and what was found there."""
    curvature, lowest = spectra.curvature, spectra.eigenvalues[:, 0]
    threshold = NULL * curvature
    evidence = np.full(len(theta), Evidence.DEGENERATE_CRITICAL_POINT, np.int8)

    def assign(lanes: np.ndarray, known_by: Evidence) -> None:
        evidence[lanes & (evidence == Evidence.DEGENERATE_CRITICAL_POINT)] = known_by

    gap = objective.critical_gap
    if gap is not None:
        # All critical values are known: the loss alone tells.
        at_optimum = found.excess <= gap / 2
        assign(at_optimum, Evidence.KNOWN_OPTIMUM)
        assign(~at_optimum, Evidence.CRITICAL_POINT_ABOVE_OPTIMUM)
    assign(lowest < -threshold, Evidence.NEGATIVE_HESSIAN_EIGENVALUE)
    if objective.knows_optimum:
        position = curvature * np.sum((POSITION_ERROR * theta) ** 2, axis=1)
        assign(found.excess <= NOISE * found.loss_noise + position, Evidence.KNOWN_OPTIMUM)
    assign(lowest > threshold, Evidence.POSITIVE_DEFINITE_HESSIAN)
    flat = np.flatnonzero((evidence == Evidence.DEGENERATE_CRITICAL_POINT) & (curvature > 0))
    if flat.size:
        manifold = np.zeros(len(theta), bool)
        manifold[flat] = on_manifold_of_equal_loss(
            objective, theta[flat], hessians[flat], spectra.take(flat), found.take(flat)
        )
        assign(manifold, Evidence.MANIFOLD_OF_MINIMA)
    return evidence


def on_manifold_of_equal_loss(
    objective: AbstractObjective, theta: np.ndarray, hessians: np.ndarray, spectra: Spectra, found: Jittered
) -> np.ndarray:
    """Whether the null directions of critical points are tangent to a manifold of critical points of equal loss.

    At the point found some way along them, too, gradient and change of loss must be rounding noise, so flat
    directions of any order do not pass. Where they are that only beside the rounding of the curvature itself (a
    quadratic form with a null direction), they must be so much farther out as well.
    """
    answer = np.zeros(len(theta), bool)

    def level(lanes: np.ndarray, reach: float, with_floor: bool) -> np.ndarray:
        return level_along(
            objective, theta[lanes], hessians[lanes], spectra.take(lanes), found.take(lanes), reach, with_floor
        )

    lanes = np.flatnonzero(spectra.null.any(axis=1))
    if not lanes.size:
        return answer
    answer[lanes] = level(lanes, 1.0, False)
    doubtful = lanes[~answer[lanes]]
    for reach in (1.0, FAR):
        if doubtful.size:
            doubtful = doubtful[level(doubtful, reach, True)]
    answer[doubtful] = True
    return answer


def _moved_along(
    objective: AbstractObjective, points: Cycles, spectra: Spectra, step_size: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`moves_along_a_family` by the simplified Newton method: it needs no other Hessians, but finds fewer."""
    theta = points.points[:, 0]
    directions = generic_combinations(*spectra.null_last())
    moved, converged = simplified_newton(objective, theta + (SHIFT * scale)[:, None] * directions, spectra, scale)
    defect = -step_size[:, None] * loss_and_gradient(objective, moved)[1]
    return converged & is_on_family_with(points, moved, defect, directions, scale), moved


def level_along(
    objective: AbstractObjective,
    theta: np.ndarray,
    hessians: np.ndarray,
    spectra: Spectra,
    found: Jittered,
    reach: float,
    with_floor: bool,
) -> np.ndarray:
    """Whether there are critical points of equal loss ``reach`` times `SHIFT` along the null directions.

    ``with_floor``: up to the rounding of the curvature over that way, too.
    """
    size = np.linalg.norm(theta, axis=1)
    length = np.where(size > 0, size, 1.0)
    descent, step_size = descent_at(objective, hessians)
    points = Cycles(
        points=theta[:, None],
        jacobian=np.eye(theta.shape[1]) - step_size[:, None, None] * hessians,
        defect=-step_size[:, None] * found.gradient,
        displacement=np.zeros(len(theta)),
        converged=np.ones(len(theta), bool),
    )
    on_family, moved = _moved_along(objective, points, spectra, step_size, reach * length)
    others = np.flatnonzero(~on_family)
    if others.size:
        rows, nullity = spectra.take(others).null_last()
        on_family[others], moved[others] = moves_along_a_family(
            descent, step_size[others], points.take(others), rows, nullity, reach * length[others]
        )
    there = Jittered.at(objective, moved)
    shift = reach * SHIFT * length
    floor = np.finfo(float).eps * spectra.curvature * shift if with_floor else np.zeros(len(theta))
    tolerance = NOISE * (found.loss_noise + floor * shift) + spectra.curvature * (POSITION_ERROR * length) ** 2
    equal = np.abs(there.loss - found.loss) <= tolerance
    return on_family & equal & is_level(there, spectra, floor)

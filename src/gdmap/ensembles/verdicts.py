"""Verdicts on candidate fixed points and cycles: never by the gradient norm alone.

A candidate is refined by Newton's method, judged by its multipliers and, for fixed points, by the Hessian. A
verdict is *given* only if the orbit can stay there: an orbit that passes near an unstable point is iterated
on.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from gdmap.engines.xla import block_size, norms, on_lanes
from gdmap.ensembles.fates import Fate, Reason
from gdmap.maps import Family
from gdmap.objectives import AbstractObjective
from gdmap.orbits import Cycles, is_on_a_family, refine_cycles
from gdmap.orbits.cycles import CONVERGED, NULL, near_period, null_basis
from gdmap.spectra.dense import for_each, is_symmetric, multipliers

DENSE_LIMIT = 1000
# How far Newton may carry a candidate: relative to the way it has come, for cycles to the diameter.
FIXED_POINT_BASIN = 1e-4
CYCLE_BASIN = 1e-2
CYCLE_DEFECT = 1e-10
MULTIPLIER_MARGIN = 1e-6
# Rounding noise is taken from this many copies moved by a few ulps, and exceeded by at most this factor; a
# refined point is known to this share of its norm.
JITTERS = 4
NOISE = 16
POSITION_ERROR = 1e-12


class Verdicts(NamedTuple):
    """One verdict per lane; where ``given`` is false the lane should be iterated on."""

    fate: np.ndarray
    reason: np.ndarray
    period: np.ndarray
    given: np.ndarray

    @classmethod
    def none(cls, count: int, reason: Reason) -> "Verdicts":
        """Nothing decided, for one reason."""
        return cls(
            np.full(count, Fate.UNDECIDED, np.int8),
            np.full(count, reason, np.int8),
            np.zeros(count, np.int32),
            np.zeros(count, bool),
        )

    def fill(self, lanes: np.ndarray, found: "Verdicts") -> None:
        """Put the verdicts found for some lanes in their places."""
        for field, values in zip(self, found, strict=True):
            field[lanes] = values


class Observed(NamedTuple):
    """What is recorded of a state: the loss, its excess over a known optimum, the gradient norm at its
    parameters, and whether the map leaves the state unchanged to the last bit.
    """

    loss: Any
    excess: Any
    gradient_norm: Any
    stationary: Any


class Observer(eqx.Module):
    """`Observed` of one lane."""

    family: Family

    def __call__(self, parameter: Any, state: Any) -> Observed:
        """Loss, excess, gradient norm and stationarity at ``state``."""
        map_, objective = self.family(parameter), self.family.objective
        theta = map_.parameters(state)
        excess = objective.excess(theta) if objective.knows_optimum else jnp.full((), jnp.nan, state.dtype)
        return Observed(
            objective.evaluate(theta),
            excess,
            norms(objective.gradient(theta)),
            jnp.all(map_.update(state) == state),
        )


class LossAndGradient(eqx.Module):
    """The loss and its gradient at the parameters of a state, for one lane."""

    family: Family

    def __call__(self, parameter: Any, state: Any) -> tuple[Any, Any]:
        """``L(theta)`` and ``grad L(theta)``."""
        theta = self.family(parameter).parameters(state)
        return self.family.objective.evaluate(theta), self.family.objective.gradient(theta)


def loss_and_gradient(family: Family, parameter: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses and gradients at many states."""
    block = block_size(16 * state.shape[1])
    loss, gradient = on_lanes(LossAndGradient(family), (parameter, state), block)
    return loss, gradient


class HessianAt(eqx.Module):
    """The Hessian of the objective at the parameters of a state, for one lane."""

    family: Family

    def __call__(self, parameter: Any, state: Any) -> Any:
        """``H(theta)``, shape ``(dim, dim)``."""
        return self.family.objective.hessian(self.family(parameter).parameters(state))


def hessians_at(family: Family, parameter: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Hessians at many states, shape ``(lanes, dim, dim)``."""
    block = block_size(32 * family.objective.dim**2, largest=16)
    return np.asarray(on_lanes(HessianAt(family), (parameter, state), block))


def observe(family: Family, parameter: np.ndarray, state: np.ndarray) -> Observed:
    """Losses, gradient norms and stationarity of many states."""
    return Observed(*on_lanes(Observer(family), (parameter, state), block_size(16 * state.shape[1])))


def judge_fixed_points(family: Family, parameter: np.ndarray, state: np.ndarray, start: np.ndarray) -> Verdicts:
    """Verdicts on states, reached from ``start``, whose steps have become negligible."""
    verdicts = Verdicts.none(len(state), Reason.SLOW_CONVERGENCE)
    stays = observe(family, parameter, state).stationary
    rounding = 64 * np.finfo(state.dtype).eps * np.linalg.norm(state, axis=1)
    parameter, state, start = in_double(parameter, state, start)
    if state.shape[1] > DENSE_LIMIT:
        return _judge_large(family, parameter, state)
    scale = np.linalg.norm(state - start, axis=1)
    cycles = refine_cycles(family, parameter, state, 1, scale)
    verdicts.reason[~cycles.converged] = Reason.DEGENERATE_CRITICAL_POINT
    near = cycles.converged & (cycles.displacement <= FIXED_POINT_BASIN * scale + rounding)
    critical = np.flatnonzero(near)
    if critical.size:
        precision = CONVERGED * scale[critical] + rounding[critical]
        points = cycles.take(critical)
        hessians = hessians_at(family, parameter[critical], points.points[:, 0])
        vanishes = _is_critical(family, parameter[critical], points, hessians, precision)
        critical, points, hessians = critical[vanishes], points.take(vanishes), hessians[vanishes]
    if critical.size:
        fate, reason = _classify_critical_points(family, parameter[critical], points, hessians)
        radius = np.array([np.abs(values[0]) for values in for_each(multipliers, points.jacobian)])
        attracts = (radius <= 1 + MULTIPLIER_MARGIN) & (fate == Fate.MINIMUM)
        decided = fate != Fate.UNDECIDED
        given = decided & (stays[critical] | attracts)
        passing = np.flatnonzero(decided & ~given)
        offset = state[critical[passing]] - points.points[passing, 0]
        unstable = np.array(for_each(unstable_component, points.jacobian[passing], offset))
        given[passing[unstable == 0]] = True
        verdicts.fate[critical], verdicts.given[critical] = fate, given
        verdicts.reason[critical] = np.where(decided & ~given, Reason.NEAR_UNSTABLE_ORBIT, reason)
    return verdicts


def in_double(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """The arrays in float64: single-precision orbits are judged by the map in double precision near them."""
    return tuple(array.astype(np.float64) for array in arrays)


def unstable_component(jacobian: np.ndarray, offset: np.ndarray) -> float:
    """How far ``offset`` reaches into the unstable eigenspace of a symmetric Jacobian; infinite for others.

    Zero only for an orbit exactly on the stable manifold of a point, where it stays although others leave.
    """
    if not is_symmetric(jacobian):
        return float("inf")
    eigenvalues, vectors = np.linalg.eigh(jacobian)
    # Not the Euclidean norm: the squares of components that matter may underflow.
    return float(np.abs(vectors[:, np.abs(eigenvalues) > 1 + 1e-14].T @ offset).max(initial=0.0))


def _is_critical(
    family: Family, parameter: np.ndarray, points: Cycles, hessians: np.ndarray, precision: np.ndarray
) -> np.ndarray:
    """Whether the gradient itself vanishes at fixed points that Newton's method found to ``precision``.

    A step can round to nothing on a plateau, and directions left out of the correction were never tested.
    """
    state = points.points[:, 0]
    gradient, noise = gradient_and_noise(family, parameter, state)
    # The largest absolute row sum bounds the spectral norm.
    curvature = np.abs(hessians).sum(axis=2).max(axis=1)
    tolerance = NOISE * (np.linalg.norm(noise, axis=2).max(axis=0) + curvature * precision)
    bases = for_each(null_basis, points.jacobian)
    return (np.linalg.norm(gradient, axis=1) <= tolerance) & is_level(gradient, noise, bases)


def gradient_and_noise(family: Family, parameter: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients ``(lanes, dim)`` and their changes ``(copies, lanes, dim)`` on copies moved by a few ulps."""
    _, gradient = loss_and_gradient(family, parameter, state)
    moved = [state + jitter * np.spacing(state) for jitter in jitters(state.shape[1])]
    return gradient, np.stack([loss_and_gradient(family, parameter, near)[1] - gradient for near in moved])


def is_level(gradient: np.ndarray, noise: np.ndarray, bases: list[np.ndarray]) -> np.ndarray:
    """Whether the gradient along the given directions is no more than rounding noise, lane by lane.

    An exponentially flat valley has a tiny but clean slope.
    """
    answer = np.ones(len(bases), bool)
    eps = np.finfo(gradient.dtype).eps
    for lane, basis in enumerate(bases):
        along = basis @ gradient[lane]
        slope = np.linalg.norm(along)
        across = np.linalg.norm(gradient[lane] - along @ basis)
        measured = max((np.linalg.norm(basis @ change) for change in noise[:, lane]), default=0.0)
        answer[lane] = slope <= NOISE * (measured + eps * across)
    return answer


def jitters(dim: int) -> np.ndarray:
    """Small integers, the same every time: displacements in units in the last place."""
    return np.random.default_rng(0).integers(-3, 4, (JITTERS, dim))


def _classify_critical_points(
    family: Family, parameter: np.ndarray, points: Cycles, hessians: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    state = points.points[:, 0]
    spectra = np.stack(for_each(np.linalg.eigvalsh, hessians))
    curvature = np.abs(spectra).max(axis=1)
    threshold = NULL * curvature
    excess = observe(family, parameter, state).excess
    fate = np.full(len(state), Fate.UNDECIDED, np.int8)
    reason = np.full(len(state), Reason.DEGENERATE_CRITICAL_POINT, np.int8)

    def assign(lanes: np.ndarray, given_fate: Fate, given_reason: Reason) -> None:
        lanes = lanes & (fate == Fate.UNDECIDED)
        fate[lanes], reason[lanes] = given_fate, given_reason

    size = np.linalg.norm(state, axis=1)
    at_optimum = _is_at_optimum(family.objective, excess, curvature * size**2)
    assign(at_optimum, Fate.MINIMUM, Reason.KNOWN_OPTIMUM)
    if family.objective.critical_gap is not None:
        assign(~at_optimum, Fate.SADDLE, Reason.CRITICAL_POINT_ABOVE_OPTIMUM)
    assign(spectra[:, 0] < -threshold, Fate.SADDLE, Reason.NEGATIVE_HESSIAN_EIGENVALUE)
    assign(spectra[:, 0] > threshold, Fate.MINIMUM, Reason.POSITIVE_DEFINITE_HESSIAN)
    flat = np.flatnonzero((fate == Fate.UNDECIDED) & (curvature > 0))
    if flat.size:
        manifold = np.zeros(len(state), bool)
        manifold[flat] = _on_manifold_of_equal_loss(family, parameter[flat], points.take(flat), curvature[flat])
        assign(manifold, Fate.MINIMUM, Reason.MANIFOLD_OF_MINIMA)
    return fate, reason


def _on_manifold_of_equal_loss(
    family: Family, parameter: np.ndarray, points: Cycles, curvature: np.ndarray
) -> np.ndarray:
    """Whether the null directions of critical points are tangent to a manifold of critical points of equal loss.

    At the point found some way along them, too, gradient and change of loss must be rounding noise, so flat
    directions of any order do not pass.
    """
    bases = for_each(null_basis, points.jacobian)
    lanes = np.flatnonzero([len(basis) > 0 for basis in bases])
    answer = np.zeros(len(bases), bool)
    if not lanes.size:
        return answer
    parameter, curvature = parameter[lanes], curvature[lanes]
    points, bases = points.take(lanes), [bases[lane] for lane in lanes]
    state = points.points[:, 0]
    size = np.linalg.norm(state, axis=1)
    length = np.where(size > 0, size, 1.0)
    on_family, moved = is_on_a_family(family, parameter, points, bases, length)
    loss, _ = loss_and_gradient(family, parameter, state)
    moved_loss, _ = loss_and_gradient(family, parameter, moved)
    noise = np.finfo(state.dtype).eps * np.abs(loss)
    for jitter in jitters(state.shape[1]):
        near, _ = loss_and_gradient(family, parameter, state + jitter * np.spacing(state))
        noise = np.maximum(noise, np.abs(near - loss))
    equal = np.abs(moved_loss - loss) <= NOISE * noise + curvature * (POSITION_ERROR * length) ** 2
    answer[lanes] = on_family & equal & is_level(*gradient_and_noise(family, parameter, moved), bases)
    return answer


def _is_at_optimum(objective: AbstractObjective, excess: np.ndarray, scale: np.ndarray) -> np.ndarray:
    gap = objective.critical_gap
    if gap is not None:
        return excess <= gap / 2
    return excess <= 1e-10 * scale  # False where the optimum, hence the excess, is unknown (NaN)


def _judge_large(family: Family, parameter: np.ndarray, state: np.ndarray) -> Verdicts:
    # Without a dense Jacobian only the loss itself can decide, where its critical values are known.
    verdicts = Verdicts.none(len(state), Reason.TOO_LARGE_TO_CONFIRM)
    if family.objective.knows_optimum:
        observed = observe(family, parameter, state)
        gap = family.objective.critical_gap
        # Zero up to the rounding of the loss, unless the critical values say how small is small.
        small = 16 * np.finfo(float).eps * np.abs(observed.loss)
        at_optimum = observed.excess <= (1e-8 * gap if gap is not None and np.isfinite(gap) else small)
        verdicts.fate[at_optimum], verdicts.reason[at_optimum] = Fate.MINIMUM, Reason.KNOWN_OPTIMUM
        verdicts.given[at_optimum] = True
    return verdicts


def judge_cycles(family: Family, parameter: np.ndarray, state: np.ndarray, period: np.ndarray) -> Verdicts:
    """Verdicts on states that recurred after ``period`` steps (not necessarily the minimal period)."""
    verdicts = Verdicts.none(len(state), Reason.CYCLE_NOT_CONFIRMED)
    parameter, state = in_double(parameter, state)
    if state.shape[1] > DENSE_LIMIT:
        verdicts.reason[:] = Reason.TOO_LARGE_TO_CONFIRM
        return verdicts
    shortest, scale = near_period(family, parameter, state, period)
    # First the shortest period the orbit nearly has; just after a period doubling only the full one is right.
    for candidates in (shortest, period):
        for candidate in np.unique(candidates[~verdicts.given]):
            lanes = np.flatnonzero(~verdicts.given & (candidates == candidate))
            found = _judge_cycles_of_period(family, parameter[lanes], state[lanes], scale[lanes], int(candidate))
            verdicts.fill(lanes, found)
        if np.array_equal(shortest, period):
            break
    return verdicts


def _judge_cycles_of_period(
    family: Family, parameter: np.ndarray, state: np.ndarray, scale: np.ndarray, period: int
) -> Verdicts:
    verdicts = Verdicts.none(len(state), Reason.CYCLE_NOT_CONFIRMED)
    cycles = refine_cycles(family, parameter, state, period, scale)
    closes = np.linalg.norm(cycles.defect, axis=1) <= CYCLE_DEFECT * cycles.diameter()
    near = cycles.converged & closes & (cycles.displacement <= CYCLE_BASIN * cycles.diameter())
    minimal = np.array([cycles.minimal_period(lane) if near[lane] else 1 for lane in range(len(state))])
    for shorter in np.unique(minimal[(minimal > 1) & (minimal < period)]):
        lanes = np.flatnonzero(minimal == shorter)
        found = _judge_cycles_of_period(family, parameter[lanes], state[lanes], scale[lanes], int(shorter))
        verdicts.fill(lanes, found)
    proper = np.flatnonzero(minimal == period)
    if proper.size:
        reason = _judge_multipliers(family, parameter[proper], cycles.take(proper))
        confirmed = reason == Reason.CYCLE_CONFIRMED
        verdicts.reason[proper] = reason
        verdicts.fate[proper[confirmed]] = Fate.PERIODIC
        verdicts.period[proper[confirmed]] = period
        verdicts.given[proper[confirmed]] = True
    return verdicts


def _judge_multipliers(family: Family, parameter: np.ndarray, cycles: Cycles) -> np.ndarray:
    bases = for_each(null_basis, cycles.jacobian)
    neutral = np.array([len(basis) for basis in bases])
    verified = neutral == 0
    flat = np.flatnonzero(~verified)
    if flat.size:
        candidates = cycles.take(flat)
        verified[flat], _ = is_on_a_family(
            family, parameter[flat], candidates, [bases[lane] for lane in flat], candidates.diameter()
        )
    radius = np.array(for_each(radius_off_one, cycles.jacobian, neutral))
    reason = np.full(len(radius), Reason.CYCLE_CONFIRMED, np.int8)
    reason[radius > 1 - MULTIPLIER_MARGIN] = Reason.MARGINAL_MULTIPLIER
    reason[radius > 1 + MULTIPLIER_MARGIN] = Reason.NEAR_UNSTABLE_ORBIT
    reason[~verified] = Reason.CYCLE_NOT_CONFIRMED
    return reason


def radius_off_one(jacobian: np.ndarray, neutral: int) -> float:
    """The largest modulus of a multiplier once the ``neutral`` ones nearest to 1 are left out."""
    values = multipliers(jacobian)
    judged = values[np.argsort(np.abs(values - 1), kind="stable")[neutral:]]
    return float(np.abs(judged).max(initial=0.0))

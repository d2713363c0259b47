"""Verdicts on candidate fixed points and cycles: never by the gradient norm alone.

A candidate is refined by Newton's method, judged by its multipliers and, for fixed points, by the Hessian. A
verdict is *given* only if the orbit can stay there: an orbit that passes near an unstable point is iterated
on.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.xla import norms
from gdmap.ensembles.fates import Fate, Reason
from gdmap.maps import ConstantFamily, Family, GradientDescent, NumberFamily, StepSizeFamily
from gdmap.minima.critical_points import (
    DENSE_LIMIT,
    OF_MINIMA,
    OF_SADDLES,
    Evidence,
    Spectra,
    evidence_at,
    hessians_at,
    simplified_newton,
)
from gdmap.objectives import AbstractObjective
from gdmap.orbits import Cycles, refine_cycles
from gdmap.orbits.cycles import (
    CONTRACTION,
    CONVERGED,
    NEWTON_STEPS,
    apply,
    evaluate_lanes,
    moves_along_a_family,
    near_period,
    ranks_above_null,
    singular_of_return,
)
from gdmap.spectra.dense import are_symmetric, in_slabs, multipliers_of_each

# How far Newton may carry a candidate: relative to the way it has come, for cycles to the diameter.
FIXED_POINT_BASIN = 1e-4
CYCLE_BASIN = 1e-2
CYCLE_DEFECT = 1e-10
MULTIPLIER_MARGIN = 1e-6
# A derivative this near the identity differs from it by rounding: then every direction may be neutral.
IDENTITY = 1e-12
# A correction that leaves more than this share of the residuals has not solved its equation.
SOLVED = 1e-6
# A step size times curvature this far below 2, or less, is below 2 at a point close by, too.
CLEARLY_BELOW = 1.9
# The matrices of so many lanes at once: what is judged takes no more memory however many lanes there are.
SLAB_BYTES = 2**26


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


class ParametersAt(eqx.Module):
    """The parameters in the state of one lane."""

    family: Family

    def __call__(self, parameter: Any, state: Any) -> Any:
        """``theta``, shape ``(dim,)``."""
        return self.family(parameter).parameters(state)


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


class StepSizeOf(eqx.Module):
    """The step size of the gradient descent of one lane."""

    family: Family

    def __call__(self, parameter: Any) -> Any:
        """``eta``."""
        return jnp.asarray(self.family(parameter).step_size, parameter.dtype)  # type: ignore[attr-defined]


class ResidualsAt(eqx.Module):
    """``theta -> (r, J)``: residuals, shape ``(m,)``, and their Jacobian, ``(m, dim)``, for one lane."""

    objective: AbstractObjective

    def __call__(self, theta: Any) -> tuple[Any, Any]:
        """``r(theta)`` and ``J(theta)``."""

        def residuals(theta: Any) -> tuple[Any, Any]:
            r = self.objective.residuals(theta)  # type: ignore[attr-defined]
            return r, r

        jacobian, r = jax.jacrev(residuals, has_aux=True)(theta)
        return r, jacobian


class ResidualsOf(eqx.Module):
    """``theta -> r(theta)`` for one lane."""

    objective: AbstractObjective

    def __call__(self, theta: Any) -> Any:
        """``r(theta)``, shape ``(m,)``."""
        return self.objective.residuals(theta)  # type: ignore[attr-defined]


def observe(family: Family, parameter: np.ndarray, state: np.ndarray) -> Observed:
    """Losses, gradient norms and stationarity of many states."""
    return Observed(*evaluate_lanes(Observer(family), (parameter, state)))


def judge_fixed_points(family: Family, parameter: np.ndarray, state: np.ndarray, start: np.ndarray) -> Verdicts:
    """Verdicts on states, reached from ``start``, whose steps have become negligible."""
    verdicts = Verdicts.none(len(state), Reason.SLOW_CONVERGENCE)
    stays = observe(family, parameter, state).stationary
    rounding = 64 * np.finfo(state.dtype).eps * np.linalg.norm(state, axis=1)
    parameter, state, start = in_double(parameter, state, start)
    if state.shape[1] > DENSE_LIMIT:
        return _judge_large(family, parameter, state)
    for lanes in slabs(len(state), state.shape[1]):
        scale = np.linalg.norm(state[lanes] - start[lanes], axis=1)
        zeros = at_zero_residual(family, parameter[lanes], state[lanes], scale, rounding[lanes], stays[lanes])
        decided = lanes[zeros]
        verdicts.fate[decided], verdicts.reason[decided] = Fate.MINIMUM, Reason.KNOWN_OPTIMUM
        verdicts.given[decided] = True
        rest, scale = lanes[~zeros], scale[~zeros]
        for judge in (_judge_descent, _judge_by_newton) if is_gradient_descent(family) else (_judge_by_newton,):
            if not rest.size:
                break
            found = judge(family, parameter[rest], state[rest], scale, rounding[rest], stays[rest])
            verdicts.fill(rest, found)
            undecided = found.fate == Fate.UNDECIDED
            rest, scale = rest[undecided], scale[undecided]
    return verdicts


def slabs(lanes: int, dim: int) -> list[np.ndarray]:
    """The lanes in groups whose matrices fit `SLAB_BYTES`."""
    size = max(1, SLAB_BYTES // (8 * dim**2))
    return [np.arange(begin, min(begin + size, lanes)) for begin in range(0, lanes, size)]


@np.errstate(all="ignore")  # what overflows where J is nearly singular is no zero
def at_zero_residual(
    family: Family,
    parameter: np.ndarray,
    state: np.ndarray,
    scale: np.ndarray,
    rounding: np.ndarray,
    stays: np.ndarray,
) -> np.ndarray:
    """Whether states of gradient descent are at a regular zero of the residuals ``r``, where it can stay.

    For a loss that is a constant plus ``||r||^2 / 2``, so that every zero is a global minimum. The simplified
    Newton method, with corrections ``-J^T (J J^T)^{-1} r`` and ``J`` of the state throughout, must contract and
    converge near the state, as Newton's method for a critical point must; it tests all directions that change the
    loss. At a zero the eigenvalues of the Hessian other than 0 are those of ``J J^T``, a smaller matrix; none may
    be above ``2 / eta``. False says nothing.
    """
    lanes, dim = state.shape
    answer = np.zeros(lanes, bool)
    objective = family.objective
    if not is_gradient_descent(family) or not getattr(objective, "has_residuals", False):
        return answer
    residuals, jacobian = evaluate_lanes(ResidualsAt(objective), (state,))
    if residuals.shape[1] > dim:
        return answer
    product = in_slabs(_gram, jacobian)
    trace = np.trace(product, axis1=1, axis2=2)
    usable = (trace > 0) & np.isfinite(trace) & np.isfinite(residuals).all(axis=1)
    # Just regular where the Jacobian is not of full rank; what is left of the residuals then shows it.
    shift = np.where(usable, 1e-15 * trace, 1.0)
    product[~usable] = 0.0
    shifted = product + shift[:, None, None] * np.eye(product.shape[1])
    x = np.array(state)
    precision = CONVERGED * scale + 4 * np.finfo(float).eps * np.linalg.norm(x, axis=1)
    nearby = FIXED_POINT_BASIN * scale + rounding
    pending, first_length = np.flatnonzero(usable), np.full(lanes, np.inf)
    for attempt in range(NEWTON_STEPS):
        if attempt > 0:
            residuals[pending] = evaluate_lanes(ResidualsOf(objective), (x[pending],))
        chosen = slice(None) if pending.size == lanes else pending
        r = residuals[pending]
        solved = in_slabs(_solve, shifted[chosen], r)
        correction = -apply(jacobian[chosen].swapaxes(1, 2), solved)
        length = np.linalg.norm(correction, axis=1)
        small = length <= precision[pending]
        unsolved = np.linalg.norm(r - apply(product[chosen], solved), axis=1)
        good = unsolved <= SOLVED * np.linalg.norm(r, axis=1)
        if attempt == 0:
            first_length[pending] = length
        elif attempt == 1:
            good &= small | (length <= CONTRACTION * first_length[pending])
        pending, small = pending[good], small[good]
        x[pending] += correction[good]
        near = np.linalg.norm(x[pending] - state[pending], axis=1) <= nearby[pending]
        answer[pending[near & small]] = True
        pending = pending[near & ~small]
        if not pending.size:
            break
    zeros = np.flatnonzero(answer)
    if zeros.size:
        step_size = np.zeros(lanes)
        step_size[zeros] = evaluate_lanes(StepSizeOf(family), (parameter[zeros],))
        # Frobenius norms bound the largest eigenvalue; at the state they are nearly what they are at the zero.
        unsure = zeros[step_size[zeros] * np.linalg.norm(product[zeros], axis=(1, 2)) > CLEARLY_BELOW]
        unsure = unsure[~stays[unsure]]
        if unsure.size:
            squares = np.linalg.norm(in_slabs(_gram, product[unsure]), axis=(1, 2))
            unsure = unsure[step_size[unsure] * np.sqrt(squares) > CLEARLY_BELOW]
        if unsure.size:
            product = in_slabs(_gram, evaluate_lanes(ResidualsAt(objective), (x[unsure],))[1])
            largest = in_slabs(np.linalg.eigvalsh, product)[:, -1]
            answer[unsure] = step_size[unsure] * largest <= 2 + MULTIPLIER_MARGIN
    return answer


def is_gradient_descent(family: Family) -> bool:
    """Whether every map of the family is gradient descent on the objective of the family."""
    if isinstance(family, StepSizeFamily):
        return family.make is GradientDescent
    return isinstance(family, ConstantFamily | NumberFamily) and type(family.map) is GradientDescent


@np.errstate(all="ignore")  # also in threads, which have settings of their own
def _gram(jacobian: np.ndarray) -> np.ndarray:
    return np.asarray(jacobian @ jacobian.swapaxes(1, 2))


def _solve(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(np.linalg.solve(matrices, vectors[:, :, None])[:, :, 0])
    except np.linalg.LinAlgError:
        # One singular matrix must not change what becomes of the others.
        if len(matrices) == 1:
            return np.full_like(vectors, np.nan)
        return np.concatenate([_solve(matrices[k : k + 1], vectors[k : k + 1]) for k in range(len(matrices))])


def _judge_descent(
    family: Family,
    parameter: np.ndarray,
    state: np.ndarray,
    scale: np.ndarray,
    rounding: np.ndarray,
    stays: np.ndarray,
) -> Verdicts:
    """What the simplified Newton method, which needs few Hessians, can decide about states of gradient descent."""
    verdicts = Verdicts.none(len(state), Reason.SLOW_CONVERGENCE)
    objective = family.objective
    hessians = hessians_at(objective, state)
    lanes = np.flatnonzero(np.isfinite(hessians).all(axis=(1, 2)))
    if not lanes.size:
        return verdicts
    spectra = Spectra.of(hessians[lanes])
    theta, converged = simplified_newton(objective, state[lanes], spectra, scale[lanes])
    moved = np.linalg.norm(theta - state[lanes], axis=1)
    near = converged & (moved <= FIXED_POINT_BASIN * scale[lanes] + rounding[lanes])
    lanes, theta = lanes[near], theta[near]
    if not lanes.size:
        return verdicts
    hessians = hessians_at(objective, theta)
    curved = np.isfinite(hessians).all(axis=(1, 2))
    lanes, theta, hessians = lanes[curved], theta[curved], hessians[curved]
    if not lanes.size:
        return verdicts
    spectra = Spectra.of(hessians)
    precision = CONVERGED * scale[lanes] + rounding[lanes]
    evidence = evidence_at(objective, theta, hessians, precision, spectra)
    step_size = evaluate_lanes(StepSizeOf(family), (parameter[lanes],))
    moduli = np.abs(1 - step_size[:, None] * spectra.eigenvalues)
    parts = np.abs(apply(spectra.rows, state[lanes] - theta))
    unstable = np.where(moduli > 1 + 1e-14, parts, 0.0).max(axis=1)
    verdicts.fill(lanes, _by_evidence(evidence, stays[lanes], moduli.max(axis=1), unstable))
    return verdicts


def _by_evidence(evidence: np.ndarray, stays: np.ndarray, radius: np.ndarray, unstable: np.ndarray) -> Verdicts:
    """Verdicts on critical points near states: by their evidence, whether the map leaves the state unchanged, the
    largest modulus of a multiplier, and how far the state reaches into the unstable directions.
    """
    verdicts = Verdicts.none(len(evidence), Reason.SLOW_CONVERGENCE)
    is_minimum, is_saddle = np.isin(evidence, OF_MINIMA), np.isin(evidence, OF_SADDLES)
    verdicts.fate[is_minimum], verdicts.fate[is_saddle] = Fate.MINIMUM, Fate.SADDLE
    reasons = [
        Reason.SLOW_CONVERGENCE if code is Evidence.NOT_CRITICAL else Reason[code.name] for code in Evidence
    ]
    verdicts.reason[:] = np.array(reasons, np.int8)[evidence]
    decided = is_minimum | is_saddle
    attracts = is_minimum & (radius <= 1 + MULTIPLIER_MARGIN)
    verdicts.given[:] = decided & (stays | attracts | (unstable == 0))
    verdicts.reason[decided & ~verdicts.given] = Reason.NEAR_UNSTABLE_ORBIT
    return verdicts


def _judge_by_newton(
    family: Family,
    parameter: np.ndarray,
    state: np.ndarray,
    scale: np.ndarray,
    rounding: np.ndarray,
    stays: np.ndarray,
) -> Verdicts:
    verdicts = Verdicts.none(len(state), Reason.SLOW_CONVERGENCE)
    cycles = refine_cycles(family, parameter, state, 1, scale)
    smooth = np.isfinite(cycles.jacobian).all(axis=(1, 2))
    verdicts.reason[~cycles.converged] = Reason.DEGENERATE_CRITICAL_POINT
    verdicts.reason[~smooth] = Reason.NOT_DIFFERENTIABLE
    near = cycles.converged & smooth & (cycles.displacement <= FIXED_POINT_BASIN * scale + rounding)
    critical = np.flatnonzero(near)
    if not critical.size:
        return verdicts
    points = cycles.take(critical)
    theta = evaluate_lanes(ParametersAt(family), (parameter[critical], points.points[:, 0]))
    hessians = hessians_at(family.objective, theta)
    curved = np.isfinite(hessians).all(axis=(1, 2))
    verdicts.reason[critical[~curved]] = Reason.NOT_DIFFERENTIABLE
    critical, points, theta, hessians = critical[curved], points.take(curved), theta[curved], hessians[curved]
    if not critical.size:
        return verdicts
    precision = CONVERGED * scale[critical] + rounding[critical]
    evidence = evidence_at(family.objective, theta, hessians, precision)
    decided = np.flatnonzero(np.isin(evidence, OF_MINIMA + OF_SADDLES))
    radius, unstable = np.full(len(critical), np.inf), np.full(len(critical), np.inf)
    if decided.size:
        jacobian = points.jacobian[decided]
        radius[decided] = np.abs(multipliers_of_each(jacobian)[:, 0])
        offset = state[critical[decided]] - points.points[decided, 0]
        unstable[decided] = unstable_components(jacobian, offset)
    verdicts.fill(critical, _by_evidence(evidence, stays[critical], radius, unstable))
    return verdicts


def in_double(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """The arrays in float64: single-precision orbits are judged by the map in double precision near them."""
    return tuple(array.astype(np.float64) for array in arrays)


def unstable_components(jacobians: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """How far each offset reaches into the unstable eigenspace of a symmetric Jacobian; infinite for others.

    Zero only for an orbit exactly on the stable manifold of a point, where it stays although others leave.
    """
    reach = np.full(len(jacobians), np.inf)
    symmetric = are_symmetric(jacobians)
    if symmetric.any():
        eigenvalues, vectors = in_slabs(np.linalg.eigh, jacobians[symmetric])
        parts = np.abs(apply(vectors.swapaxes(1, 2), offsets[symmetric]))
        # Not the Euclidean norm: the squares of components that matter may underflow.
        reach[symmetric] = np.where(np.abs(eigenvalues) > 1 + 1e-14, parts, 0.0).max(axis=1)
    return reach


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
    cycles = without_rounding(refine_cycles(family, parameter, state, period, scale))
    closes = np.linalg.norm(cycles.defect, axis=1) <= CYCLE_DEFECT * cycles.diameter()
    smooth = np.isfinite(cycles.jacobian).all(axis=(1, 2))
    verdicts.reason[~smooth] = Reason.NOT_DIFFERENTIABLE
    near = cycles.converged & smooth & closes & (cycles.displacement <= CYCLE_BASIN * cycles.diameter())
    minimal = np.where(near, cycles.minimal_periods(), 1)
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
    _, values, right = singular_of_return(cycles.jacobian)
    neutral = values.shape[1] - ranks_above_null(values)
    verified = neutral == 0
    flat = np.flatnonzero(~verified)
    if flat.size:
        candidates = cycles.take(flat)
        verified[flat], _ = moves_along_a_family(
            family, parameter[flat], candidates, right[flat], neutral[flat], candidates.diameter()
        )
    radius = radii_off_one(cycles.jacobian, neutral)
    reason = np.full(len(radius), Reason.CYCLE_CONFIRMED, np.int8)
    reason[radius > 1 - MULTIPLIER_MARGIN] = Reason.MARGINAL_MULTIPLIER
    reason[radius > 1 + MULTIPLIER_MARGIN] = Reason.NEAR_UNSTABLE_ORBIT
    reason[~verified] = Reason.CYCLE_NOT_CONFIRMED
    return reason


def without_rounding(cycles: Cycles) -> Cycles:
    """The cycles with derivatives ``DG^p`` that are the identity up to rounding made the identity.

    Null directions are told by their share of the largest singular value of ``DG^p - I``, which is then rounding.
    """
    identity = np.eye(cycles.jacobian.shape[1])
    near = np.abs(cycles.jacobian - identity).max(axis=(1, 2), keepdims=True) <= IDENTITY
    return cycles._replace(jacobian=np.where(near, identity, cycles.jacobian))


def radii_off_one(jacobians: np.ndarray, neutral: np.ndarray) -> np.ndarray:
    """The largest modulus of a multiplier of each lane once the ``neutral`` ones nearest to 1 are left out."""
    values = multipliers_of_each(jacobians)
    order = np.argsort(np.abs(values - 1), axis=1, kind="stable")
    moduli = np.take_along_axis(np.abs(values), order, axis=1)
    return np.asarray(np.where(np.arange(moduli.shape[1]) >= neutral[:, None], moduli, 0.0).max(axis=1))

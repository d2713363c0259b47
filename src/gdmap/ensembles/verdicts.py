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
from gdmap.minima.critical_points import (
    DENSE_LIMIT,
    OF_MINIMA,
    OF_SADDLES,
    Evidence,
    classify_critical_points,
    gradient_vanishes,
    hessians_at,
)
from gdmap.orbits import Cycles, is_on_a_family, refine_cycles
from gdmap.orbits.cycles import CONVERGED, near_period, null_basis
from gdmap.spectra.dense import for_each, is_symmetric, multipliers

# How far Newton may carry a candidate: relative to the way it has come, for cycles to the diameter.
FIXED_POINT_BASIN = 1e-4
CYCLE_BASIN = 1e-2
CYCLE_DEFECT = 1e-10
MULTIPLIER_MARGIN = 1e-6
# A derivative this near the identity differs from it by rounding: then every direction may be neutral.
IDENTITY = 1e-12


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
    smooth = np.isfinite(cycles.jacobian).all(axis=(1, 2))
    verdicts.reason[~cycles.converged] = Reason.DEGENERATE_CRITICAL_POINT
    verdicts.reason[~smooth] = Reason.NOT_DIFFERENTIABLE
    near = cycles.converged & smooth & (cycles.displacement <= FIXED_POINT_BASIN * scale + rounding)
    critical = np.flatnonzero(near)
    if critical.size:
        precision = CONVERGED * scale[critical] + rounding[critical]
        points = cycles.take(critical)
        theta = on_lanes(
            ParametersAt(family), (parameter[critical], points.points[:, 0]), block_size(16 * state.shape[1])
        )
        hessians = hessians_at(family.objective, theta)
        curved = np.isfinite(hessians).all(axis=(1, 2))
        verdicts.reason[critical[~curved]] = Reason.NOT_DIFFERENTIABLE
        critical, precision, theta, hessians = (
            values[curved] for values in (critical, precision, theta, hessians)
        )
        points = points.take(curved)
    if critical.size:
        vanishes = gradient_vanishes(family.objective, theta, hessians, precision)
        critical, points, theta, hessians = (
            critical[vanishes],
            points.take(vanishes),
            theta[vanishes],
            hessians[vanishes],
        )
    if critical.size:
        evidence = classify_critical_points(family.objective, theta, hessians)
        reason = np.array([Reason[Evidence(code).name] for code in evidence], np.int8)
        fate = np.select(
            [np.isin(evidence, OF_MINIMA), np.isin(evidence, OF_SADDLES)],
            [Fate.MINIMUM, Fate.SADDLE],
            Fate.UNDECIDED,
        ).astype(np.int8)
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


def without_rounding(cycles: Cycles) -> Cycles:
    """The cycles with derivatives ``DG^p`` that are the identity up to rounding made the identity.

    Null directions are told by their share of the largest singular value of ``DG^p - I``, which is then rounding.
    """
    identity = np.eye(cycles.jacobian.shape[1])
    near = np.abs(cycles.jacobian - identity).max(axis=(1, 2), keepdims=True) <= IDENTITY
    return cycles._replace(jacobian=np.where(near, identity, cycles.jacobian))


def radius_off_one(jacobian: np.ndarray, neutral: int) -> float:
    """The largest modulus of a multiplier once the ``neutral`` ones nearest to 1 are left out."""
    values = multipliers(jacobian)
    judged = values[np.argsort(np.abs(values - 1), kind="stable")[neutral:]]
    return float(np.abs(judged).max(initial=0.0))

"""Iterating many trajectories until each has its fate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np

from gdmap.engines.choice import chosen_run
from gdmap.engines.xla import (
    CONSECUTIVE,
    ESCAPED,
    OVERFLOWN,
    RECURRENT,
    ROUND,
    RUNNING,
    STATIONARY,
    UNDEFINED,
    Lanes,
    Tolerances,
    block_size,
    on_lanes,
)
from gdmap.ensembles.aperiodic import is_straight, judge_aperiodic
from gdmap.ensembles.fates import Fate, Reason
from gdmap.ensembles.verdicts import Verdicts, judge_cycles, judge_fixed_points, observe
from gdmap.maps import Family
from gdmap.maps.base import StateSpace

# States of a trajectory that still moves at the horizon are compared at so many moments, so many steps apart.
MOMENTS, BETWEEN = 8, 128
MOVING = (
    Reason.HORIZON_REACHED,
    Reason.CYCLE_NOT_CONFIRMED,
    Reason.MARGINAL_MULTIPLIER,
    Reason.NEAR_UNSTABLE_ORBIT,
    Reason.TOO_LARGE_TO_CONFIRM,
)


class Criteria(NamedTuple):
    """When a trajectory counts as finished.

    Attributes
    ----------
    max_steps
        The horizon: trajectories without a fate by then are undecided.
    step_tolerance
        A state whose steps stay below this share of the distance from the start (or below rounding) three
        times running is a candidate fixed point; Newton's method and the Hessian decide.
    period_tolerance
        States closer than this share of the diameter of the recent orbit are candidates for a recurrence.
    max_period
        Periods up to this are looked for directly; longer ones, up to 4096, through recurrences at
        multiples of 256 steps.
    escape_radius
        Beyond ``escape_radius (1 + ||start||)``, with neither the norm nor the step shrinking in eight
        consecutive steps, a trajectory has diverged.
    """

    max_steps: int = 10_000
    step_tolerance: float = 1e-8
    period_tolerance: float = 1e-6
    max_period: int = 64
    escape_radius: float = 1e6


class Outcome(NamedTuple):
    """What became of each trajectory; one entry per lane."""

    fate: np.ndarray
    reason: np.ndarray
    period: np.ndarray
    steps: np.ndarray
    loss: np.ndarray
    gradient_norm: np.ndarray
    state: np.ndarray


def iterate_to_fate(
    family: Family,
    parameter: np.ndarray,
    state: np.ndarray,
    criteria: Criteria,
    progress: Callable[[int, int], None] | None = None,
    engine: Any = None,
) -> Outcome:
    """Iterate each row of ``state`` under ``family(parameter[row])`` until it has a fate.

    Stages (per trajectory, at step counts of its own): the ``engine`` (see `engine_for`) iterates to an event, a
    negligible step, an escape, a non-finite update, or a period found in the last states (looked for once in 256
    steps, and less often late in the run); Newton's method, the multipliers and the Hessian confirm it. A
    candidate that is not confirmed, or at which the orbit cannot stay, is iterated on and tested again at twice
    its age.
    """
    engine = engine or engine_for(family, state.shape[1], state.dtype, criteria)
    count = len(state)
    result = Outcome(
        fate=np.full(count, Fate.UNDECIDED, np.int8),
        reason=np.full(count, Reason.HORIZON_REACHED, np.int8),
        period=np.zeros(count, np.int32),
        steps=np.zeros(count, np.int64),
        loss=np.full(count, np.nan),
        gradient_norm=np.full(count, np.nan),
        state=np.array(state),
    )
    lanes = _fresh_lanes(parameter, state, criteria)
    rows = np.arange(count)
    while rows.size:
        lanes = engine.advance(lanes, criteria.max_steps)
        final = lanes.steps >= criteria.max_steps
        verdicts = Verdicts.none(rows.size, Reason.HORIZON_REACHED)
        still = (lanes.signal == STATIONARY) | (final & (lanes.signal == RUNNING) & (lanes.streak >= CONSECUTIVE))
        recurrent = lanes.signal == RECURRENT
        _judge(verdicts, still, judge_fixed_points, family, lanes, lanes.start)
        _judge(verdicts, recurrent, judge_cycles, family, lanes, lanes.period)
        _judge_divergence(verdicts, lanes)

        finished = verdicts.given | final
        retry_at = np.where(still | recurrent, np.maximum(2 * lanes.steps, ROUND), lanes.retry_at)
        done = np.flatnonzero(finished)
        for field, values in (
            (result.fate, np.where(verdicts.given, verdicts.fate, Fate.UNDECIDED)),
            (result.reason, verdicts.reason),
            (result.period, verdicts.period),
            (result.steps, lanes.steps),
            (result.state, lanes.state),
        ):
            field[rows[done]] = values[done]
        keep = np.flatnonzero(~finished)
        lanes = Lanes(*(field[keep] for field in lanes._replace(retry_at=retry_at)))
        rows = rows[keep]
        if progress is not None:
            progress(count - rows.size, count)
    _judge_leftovers(result, family, parameter, state, criteria)
    observed = observe(family, parameter, result.state)
    overflown = result.reason == Reason.OVERFLOW
    return result._replace(
        loss=np.where(overflown & np.isnan(observed.loss), np.inf, observed.loss),
        gradient_norm=np.where(overflown & np.isnan(observed.gradient_norm), np.inf, observed.gradient_norm),
    )


def _judge_leftovers(
    result: Outcome,
    family: Family,
    parameter: np.ndarray,
    start: np.ndarray,
    criteria: Criteria,
) -> None:
    """Fill in the fates of trajectories that still move at the horizon and are aperiodic or marginal."""
    rows = np.flatnonzero((result.fate == Fate.UNDECIDED) & np.isin(result.reason, MOVING))
    if rows.size:
        rows = rows[_may_recur(parameter[rows], result.state[rows], family, criteria)]
    if rows.size:
        found = judge_aperiodic(family, parameter[rows], result.state[rows], start[rows], criteria.max_steps)
        decided = rows[found.given]
        result.fate[decided], result.reason[decided] = found.fate[found.given], found.reason[found.given]


class InitialState(eqx.Module):
    """The state in which the run of one lane begins."""

    family: Any

    def __call__(self, parameter: Any, theta: Any) -> Any:
        """The initial state of the map at ``parameter`` for the parameters ``theta``."""
        return self.family(parameter).initial_state(theta)


def initial_states(family: Family, parameter: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """The states in which the runs of many parameters ``theta`` begin, shape ``(lanes, state_dim)``."""
    if type(family(parameter[0])).initial_state is StateSpace.initial_state:
        return np.array(theta)  # the state is theta
    return np.asarray(on_lanes(InitialState(family), (parameter, theta), block_size(16 * theta.shape[1])))


def engine_for(family: Any, state_dim: int, dtype: np.dtype, criteria: Criteria, engine: str | None = None) -> Any:
    """What iterates the states of a family: ``engine``, or the one that suits the map (see `chosen_run`)."""
    tolerances = Tolerances(criteria.step_tolerance, criteria.period_tolerance)
    return chosen_run(family.step, state_dim, dtype, criteria.max_period + 3, tolerances, engine)


def _may_recur(parameter: np.ndarray, state: np.ndarray, family: Family, criteria: Criteria) -> np.ndarray:
    """Whether trajectories do more than go straight on."""
    run = engine_for(family, state.shape[1], state.dtype, criteria, "xla")
    lanes = _fresh_lanes(parameter, state, criteria)
    lanes = lanes._replace(retry_at=np.full(len(state), np.iinfo(np.int64).max))
    states, steps = [state], [lanes.last_step]
    for moment in range(1, MOMENTS + 1):
        lanes, *_ = run.to(lanes, np.full(len(state), moment * BETWEEN, np.int64))
        states.append(lanes.state)
        steps.append(lanes.last_step)
    straight = is_straight(np.stack(states, axis=1), np.stack(steps, axis=1), BETWEEN)
    return (lanes.signal == RUNNING) & (lanes.last_step > 0) & ~straight


def _fresh_lanes(parameter: np.ndarray, state: np.ndarray, criteria: Criteria) -> Lanes:
    count, dim = state.shape
    return Lanes(
        parameter=parameter,
        start=state,
        state=state,
        last_step=np.zeros(count, state.dtype),
        steps=np.zeros(count, np.int64),
        streak=np.zeros(count, np.int32),
        outside=np.zeros(count, np.int32),
        escape_radius=(criteria.escape_radius * (1 + np.linalg.norm(state, axis=1))).astype(state.dtype),
        retry_at=np.zeros(count, np.int64),
        reference=np.full((count, CONSECUTIVE, dim), np.inf, state.dtype),
        reference_step=np.zeros(count, np.int64),
        period=np.zeros(count, np.int32),
        signal=np.zeros(count, np.int8),
    )


def _judge(
    verdicts: Verdicts,
    chosen: np.ndarray,
    judge: Callable[..., Verdicts],
    family: Family,
    lanes: Lanes,
    extra: Any,
) -> None:
    """Fill in the verdicts of the chosen lanes, in place."""
    where = np.flatnonzero(chosen)
    if where.size:
        found = judge(family, lanes.parameter[where], lanes.state[where], extra[where])
        verdicts.fill(where, found)


def _judge_divergence(verdicts: Verdicts, lanes: Lanes) -> None:
    """Fill in the verdicts of lanes that escaped or whose update is not finite, in place."""
    with np.errstate(over="ignore"):
        large = np.linalg.norm(lanes.state, axis=1) > lanes.escape_radius
    for chosen, reason in (
        (lanes.signal == ESCAPED, Reason.NORM_KEEPS_GROWING),
        ((lanes.signal == OVERFLOWN) | ((lanes.signal == UNDEFINED) & large), Reason.OVERFLOW),
        ((lanes.signal == UNDEFINED) & ~large, Reason.UPDATE_UNDEFINED),
    ):
        verdicts.fate[chosen], verdicts.reason[chosen] = Fate.DIVERGED, reason
        verdicts.given[chosen] = True

"""What a run of finite length shows of where it is going: medians, trends, recurrences."""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy.stats import binom, norm

from gdmap.engines.long_run import long_run
from gdmap.ensembles.horizon import Horizon, row_norms
from gdmap.flags import flag_names

BLOCKS = 16
# Of the intervals of slopes and of medians over the blocks.
CONFIDENCE = 0.99
# A verdict on many runs needs more: a gradient that falls by chance alone is called so once in 10,000 runs.
FALSE_FALL = 1e-4
# The longest period looked for, and how much less states a period apart differ than states in general.
LONGEST_PERIOD, RECURS = 64, 1e-3
# A run has converged if another one as long, at the last pace, would move it by no more than this share of its
# way; or if its steps are rounding, in units in the last place of the state.
NEGLIGIBLE, ROUNDING = 1e-6, 4.0
# A trend that changes the gradient norm by less than this factor over the window is none to speak of.
SLIGHT = 2.0
# A loss has fallen at a step if it is lower, or higher by no more than so many units in the last place.
LOSS_ROUNDING = 8.0
# ... and a descent has slowed down if its pace is below this share of the mean pace on its way.
SLOWED = 0.5
# The sum of the squared gradient norms of a descent is finite, so they fall faster than t^(-1/2) in the long run.
# A gradient that does not even fall like the square root of that may go to a positive level, as near a cycle.
SLOWEST = 0.25
# Blocks of the growth of a tangent vector, for the error of its mean.
GROWTH_BLOCKS = 32


class Tendency(IntEnum):
    """What the last steps of a finite run show: statements about the record, not about limits.

    ``CONVERGED``: another run as long, at the last pace, would move the state by less than 1e-6 of the way it has
    come (or the steps are rounding in the precision of the run), and the Hessian there has no eigenvalue so
    negative that such a run would leave along it; that the point is a minimum is not shown.
    ``CONVERGING``: the gradient norm falls, beyond chance (one in 10,000, blocks of the window taken to be
    independent) and at least like ``t^(-1/4)`` at the horizon ``t``; in the long run no descent on a loss bounded
    below has gradients that fall more slowly than ``t^(-1/2)``. Where to is not said: to a minimum, to a saddle
    that a run may stay near for long, or for ever outwards where a loss flattens out (cross-entropy on separable
    data); a fall that is one half of an oscillation longer than the window cannot be told from it. Or the loss
    fell at every single step of the window, at less than half the mean pace of the way: a descent that has slowed
    down, whose gradient vanishes if it goes on so and the loss is bounded below. The sharpness may still be rising
    towards the limit: a longer run may then be at the edge of stability.
    Both only where the largest Hessian eigenvalue at the end is shown to be below the map's stability limit (2 /
    step size for gradient descent), if it has one (`Map.stability_limit`; Adam has none).
    ``PERIODIC``: the states recur after two or more steps, to a thousandth of how much they differ otherwise, over
    a quarter of the window, and no tangent vector grows; what goes to a point, or away from it, by turns, but by
    less than a thousandth in all that time passes for periodic.
    ``SUSTAINED``: neither the gradient norm (by a factor of 2 over the window) nor the loss has a tendency left.
    ``UNSTABLE``: tangent vectors grow, beyond four standard errors and by more than a factor of ``e`` over the
    window, and the gradient does not fall: nearby runs part, as in chaos and at the edge of stability; whether the
    run settles later is not said.
    ``DIVERGED``: beyond the escape radius, or not finite. ``UNDECIDED``: none of these could be shown.
    """

    UNDECIDED = 0
    CONVERGED = 1
    CONVERGING = 2
    PERIODIC = 3
    SUSTAINED = 4
    DIVERGED = 5
    UNSTABLE = 6


class Cause(IntEnum):
    """Why a tendency was given, or could not be.

    Of undecided runs: ``SHARPNESS_ABOVE_LIMIT`` (the gradient is small or falls, but the sharpness is not shown to
    be below the stability limit: at its edge, or above), ``NEGATIVE_CURVATURE`` (the steps are negligible, but at
    a saddle or a maximum), ``STILL_CHANGING`` (the gradient norm or the loss still changes, without a clear
    direction towards zero).
    """

    STILL_CHANGING = 0
    NEGLIGIBLE_STEPS = 1
    FALLING_GRADIENT = 2
    RECURRENCE = 3
    NO_TREND = 4
    LEFT_FOR_INFINITY = 5
    SHARPNESS_ABOVE_LIMIT = 6
    NEGATIVE_CURVATURE = 7
    FALLING_LOSS = 8
    GROWING_TANGENTS = 9


def tendency_names(dataset: xr.Dataset) -> np.ndarray:
    """The tendencies in ``dataset.tendency`` as strings, same shape (read from its ``flag_meanings``)."""
    return flag_names(dataset["tendency"])


class Trend(NamedTuple):
    """The Theil-Sen slope of block medians against the step, in 1/step, with its interval (Kendall's tau).

    ``falls``: whether the slope is negative beyond chance (one in 10,000).
    """

    slope: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    falls: np.ndarray


class Level(NamedTuple):
    """The median of the block medians, with the interval that their order statistics give."""

    median: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def block_medians(history: np.ndarray) -> np.ndarray:
    """Medians over 16 blocks of the window, shape ``(runs, 16)``; steps that fill no block are left out."""
    runs, window = history.shape
    length = window // BLOCKS
    return np.median(history[:, window - BLOCKS * length :].reshape(runs, BLOCKS, length), axis=2)


def level(history: np.ndarray) -> Level:
    """The median of the block medians; the interval covers that of blocks like these, if they have no trend."""
    ordered = np.sort(block_medians(history).astype(float), axis=1)
    outside = int(binom.ppf((1 - CONFIDENCE) / 2, BLOCKS, 0.5)) - 1
    return Level(np.median(ordered, axis=1), ordered[:, outside], ordered[:, BLOCKS - 1 - outside])


def trend(values: np.ndarray, spacing: float) -> Trend:
    """The Theil-Sen slope of ``values`` ``(runs, n)`` at ``n`` moments ``spacing`` steps apart."""
    first, second = np.triu_indices(values.shape[1], 1)
    slopes = np.sort((values[:, second] - values[:, first]) / ((second - first) * spacing), axis=1)
    pairs = slopes.shape[1]
    below = left_out(values.shape[1], (1 - CONFIDENCE) / 2)
    rarely = left_out(values.shape[1], FALSE_FALL)
    falls = slopes[:, pairs - 1 - rarely] < 0
    return Trend(np.median(slopes, axis=1), slopes[:, below], slopes[:, pairs - 1 - below], falls)


def left_out(number: int, chance: float) -> int:
    """How many of the extreme slopes of ``number`` values an interval leaves out at one end.

    So many that a series of independent, equally distributed values has more slopes of one sign with probability
    at most ``chance``: by the normal approximation of Kendall's statistic, whose tails are lighter.
    Source: Sen (1968).
    """
    pairs = number * (number - 1) / 2
    spread = norm.isf(chance) * np.sqrt(number * (number - 1) * (2 * number + 5) / 18)
    return max(int(np.floor((pairs - spread) / 2)) - 1, 0)


def periods(projections: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest period of states seen through projections (0: none), and how well they recur.

    Periods from 2 to `longest_period` are tried. The median distance of states that far apart, at the end of the
    window, is compared with the largest for shorter lags; a run that goes slowly on without swinging has no
    smaller one. States must recur as well after as many periods as fit into a quarter of the window.
    """
    window = projections.shape[1]
    longest = longest_period(window)
    last = projections[:, -3 * longest :]
    distances = np.stack([distance(last, lag) for lag in range(1, longest + 1)], axis=1)
    before = np.maximum.accumulate(distances, axis=1)
    with np.errstate(all="ignore"):
        share = distances[:, 1:] / before[:, :-1]
    share = np.where(np.isfinite(share), share, np.inf)
    recurs = share <= RECURS
    first = np.argmax(recurs, axis=1)
    rows = np.arange(len(share))
    period = np.where(recurs.any(axis=1), first + 2, 0)
    recurrence = np.where(period > 0, share[rows, first], share.min(axis=1))
    half = projections[:, window // 2 :]
    for p in np.unique(period[period > 0]):
        of = np.flatnonzero(period == p)
        recurrence[of] = np.maximum(
            recurrence[of], distance(half[of], int(window // 4 // p * p)) / before[of, p - 2]
        )
    return np.where(recurrence <= RECURS, period, 0), recurrence


def distance(states: np.ndarray, lag: int) -> np.ndarray:
    """The median distance of states ``lag`` steps apart; ``states`` has shape ``(runs, steps, k)``."""
    moved = states[:, lag:] - states[:, :-lag]
    return np.sqrt(np.median(np.einsum("ijk,ijk->ij", moved, moved), axis=1))


def longest_period(window: int) -> int:
    """The longest period looked for in a window: 64, or an eighth of a short one."""
    return min(LONGEST_PERIOD, window // 8)


def mean_growth(growth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean growth of a tangent vector per step and its standard error, after the first quarter of the window.

    The error is `gdmap.engines.long_run`'s. A vector that was mapped to zero has ``-inf`` and no error.
    """
    kept = growth[:, growth.shape[1] // 4 :].astype(float)
    length = kept.shape[1] // GROWTH_BLOCKS
    sums = kept[:, kept.shape[1] - GROWTH_BLOCKS * length :].reshape(len(kept), GROWTH_BLOCKS, length).sum(axis=2)
    mean = sums.sum(axis=1) / (GROWTH_BLOCKS * length)
    error = np.full(len(sums), np.nan)
    rows = np.flatnonzero(np.isfinite(sums).all(axis=1))
    if rows.size:
        found = long_run(sums[rows], np.full(GROWTH_BLOCKS, float(length)))
        mean[rows], error[rows] = found.mean, found.standard_error
    return mean, error


def falls_at_every_step(loss: np.ndarray) -> np.ndarray:
    """Whether the loss never rose in the window, but for rounding, and fell over it beyond that."""
    slack = LOSS_ROUNDING * np.finfo(loss.dtype).eps * np.abs(loss).max(axis=1)
    return np.all(np.diff(loss, axis=1) <= slack[:, None], axis=1) & (loss[:, 0] - loss[:, -1] > 4 * slack)


class Judged(NamedTuple):
    """The tendency of each run, its cause, and the numbers it rests on."""

    tendency: np.ndarray
    cause: np.ndarray
    gradient_norm: Level
    gradient_trend: Trend
    loss: Level
    loss_trend: Trend
    period: np.ndarray
    recurrence: np.ndarray


def judge(
    horizon: Horizon,
    start: np.ndarray,
    steps: int,
    stable: np.ndarray,
    leaves: np.ndarray | None = None,
    grows: np.ndarray | None = None,
) -> Judged:
    """The tendency of every run.

    ``stable``: whether the sharpness at its end is below the stability limit; ``leaves``: whether it would have
    left along a direction of negative curvature, ``grows`` whether tangent vectors grow (by default none).
    """
    window = horizon.loss.shape[1]
    eps = np.finfo(horizon.theta.dtype).eps
    with np.errstate(all="ignore"):
        logarithms = block_medians(np.log(horizon.gradient_norm)).astype(float)
        spacing = window // BLOCKS
        falling = trend(logarithms, spacing)
        loss_trend = trend(block_medians(horizon.loss).astype(float), spacing)
        period, recurrence = periods(horizon.projections)
        way = row_norms(horizon.theta - start)
        pace = np.median(horizon.step_length, axis=1)
        rounding = eps * row_norms(horizon.theta)
        loss_steady = (loss_trend.lower <= 0) & (loss_trend.upper >= 0)
        # Steps that are rounding may add up: only where nothing has a trend do they lead nowhere.
        rounds = (pace <= ROUNDING * rounding) & loss_steady & ~(falling.upper < 0)
        still = (way > 0) | (np.max(horizon.gradient_norm, axis=1) == 0)
        negligible = ((pace * steps <= NEGLIGIBLE * way) | rounds) & still
        steady = np.maximum(np.abs(falling.lower), np.abs(falling.upper)) * window < np.log(SLIGHT)
        recurs = (period > 0) & (RECURS * pace > rounding)
        falls = falling.falls & (falling.upper * steps < -SLOWEST)
        descends = falls_at_every_step(horizon.loss) & (pace * steps < SLOWED * way) & ~(falling.lower > 0)
        gradient_norm, loss = level(horizon.gradient_norm), level(horizon.loss)
    leaves, grows = (np.zeros(len(way), bool) if given is None else given for given in (leaves, grows))
    small = negligible | falls
    cases = (
        (horizon.escaped_at >= 0, Tendency.DIVERGED, Cause.LEFT_FOR_INFINITY),
        (negligible & stable & leaves, Tendency.UNDECIDED, Cause.NEGATIVE_CURVATURE),
        (negligible & stable, Tendency.CONVERGED, Cause.NEGLIGIBLE_STEPS),
        (falls & stable, Tendency.CONVERGING, Cause.FALLING_GRADIENT),
        (descends & stable, Tendency.CONVERGING, Cause.FALLING_LOSS),
        (recurs & ~grows & ~negligible, Tendency.PERIODIC, Cause.RECURRENCE),
        (small & ~stable, Tendency.UNDECIDED, Cause.SHARPNESS_ABOVE_LIMIT),
        (steady & loss_steady & (falling.lower <= 0) & (falling.upper >= 0), Tendency.SUSTAINED, Cause.NO_TREND),
        (grows, Tendency.UNSTABLE, Cause.GROWING_TANGENTS),
    )
    conditions = [condition for condition, _, _ in cases]
    tendency = np.select(conditions, [tendency for _, tendency, _ in cases], Tendency.UNDECIDED).astype(np.int8)
    # What goes to a point by turns from both sides recurs, too, but has no period.
    settles = np.isin(tendency, (Tendency.CONVERGED, Tendency.CONVERGING, Tendency.DIVERGED)) | negligible
    settles |= (rounding >= RECURS * pace) | grows
    return Judged(
        tendency,
        np.select(conditions, [cause for _, _, cause in cases], Cause.STILL_CHANGING).astype(np.int8),
        gradient_norm,
        falling,
        loss,
        loss_trend,
        np.where(settles, 0, period),
        recurrence,
    )

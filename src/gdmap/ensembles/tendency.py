"""What a run of finite length shows of where it is going: medians, trends, recurrences."""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy.stats import binom

from gdmap.ensembles.horizon import Horizon
from gdmap.flags import flag_names

BLOCKS = 16
# Of Theil-Sen slopes, and of medians over the blocks.
CONFIDENCE = 0.99
NORMAL_QUANTILE = 2.5758293035489004
# The longest period looked for, and how much less states a period apart differ than states in general.
LONGEST_PERIOD, RECURS = 64, 1e-3
# A run has converged if another one as long, at the last pace, would move it by no more than this share of its
# way.
NEGLIGIBLE = 1e-6
# A trend that changes the gradient norm by less than this factor over the window is none to speak of.
SLIGHT = 2.0


class Tendency(IntEnum):
    """What the last steps of a finite run show.

    ``CONVERGED``: another run as long, at the last pace, would move the state by less than 1e-6 of the way it has
    come. ``CONVERGING``: the gradient norm falls, beyond chance. Both only where the sharpness at the end is below
    2 / step size. ``PERIODIC``: the states recur after two or more steps, and the gradient norm does not fall.
    ``SUSTAINED``: neither the gradient norm (by a factor of 2 over the window) nor the loss has a tendency left.
    ``DIVERGED``: beyond the escape radius, or not finite. ``UNDECIDED``: none of these could be shown.
    """

    UNDECIDED = 0
    CONVERGED = 1
    CONVERGING = 2
    PERIODIC = 3
    SUSTAINED = 4
    DIVERGED = 5


class Cause(IntEnum):
    """Why a tendency was given, or could not be.

    Of undecided runs: ``SHARPNESS_ABOVE_LIMIT`` (the gradient is small or falls, but the sharpness is not below 2
    / step size: at the edge of stability), ``STILL_CHANGING`` (the gradient norm or the loss still changes,
    without a clear direction towards zero).
    """

    STILL_CHANGING = 0
    NEGLIGIBLE_STEPS = 1
    FALLING_GRADIENT = 2
    RECURRENCE = 3
    NO_TREND = 4
    LEFT_FOR_INFINITY = 5
    SHARPNESS_ABOVE_LIMIT = 6


def tendency_names(dataset: xr.Dataset) -> np.ndarray:
    """The tendencies in ``dataset.tendency`` as strings, same shape (read from its ``flag_meanings``)."""
    return flag_names(dataset["tendency"])


class Trend(NamedTuple):
    """The Theil-Sen slope of block medians against the step, in 1/step, with its interval (Kendall's tau)."""

    slope: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class Level(NamedTuple):
    """A median over the window, with the interval that the order statistics of the block medians give."""

    median: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def block_medians(history: np.ndarray) -> np.ndarray:
    """Medians over 16 blocks of the window, shape ``(runs, 16)``; steps that do not fill the blocks are left out."""
    runs, window = history.shape
    length = window // BLOCKS
    return np.median(history[:, window - BLOCKS * length :].reshape(runs, BLOCKS, length), axis=2)


def level(history: np.ndarray) -> Level:
    """The median over the window; the interval covers the median of blocks like these, if they have no trend."""
    ordered = np.sort(block_medians(history), axis=1)
    left_out = int(binom.ppf((1 - CONFIDENCE) / 2, BLOCKS, 0.5)) - 1
    return Level(np.median(history, axis=1), ordered[:, left_out], ordered[:, BLOCKS - 1 - left_out])


def trend(values: np.ndarray, spacing: float) -> Trend:
    """The Theil-Sen slope of ``values`` ``(runs, n)`` at ``n`` moments ``spacing`` steps apart."""
    number = values.shape[1]
    first, second = np.triu_indices(number, 1)
    slopes = np.sort((values[:, second] - values[:, first]) / ((second - first) * spacing), axis=1)
    spread = NORMAL_QUANTILE * np.sqrt(number * (number - 1) * (2 * number + 5) / 18)
    pairs = slopes.shape[1]
    below = max(int(np.floor((pairs - spread) / 2)) - 1, 0)
    return Trend(np.median(slopes, axis=1), slopes[:, below], slopes[:, pairs - 1 - below])


def periods(projections: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest period from 2 to 64 of states seen through projections (0: none), and how well it recurs.

    The median distance of states ``p`` steps apart, over the last half of the window, is compared with the largest
    of such distances for shorter lags; a run that goes slowly on without swinging has no smaller one.
    """
    half = projections[:, projections.shape[1] // 2 :]
    longest = min(LONGEST_PERIOD, half.shape[1] // 4)
    distances = np.stack(
        [
            np.median(np.linalg.norm(half[:, lag:] - half[:, :-lag], axis=2), axis=1)
            for lag in range(1, longest + 1)
        ],
        axis=1,
    )
    before = np.maximum.accumulate(distances, axis=1)
    with np.errstate(all="ignore"):
        share = distances[:, 1:] / before[:, :-1]
    share = np.where(np.isfinite(share), share, np.inf)
    recurs = share <= RECURS
    first = np.argmax(recurs, axis=1)
    period = np.where(recurs.any(axis=1), first + 2, 0)
    return period, np.where(period > 0, share[np.arange(len(share)), first], share.min(axis=1))


def mean_growth(growth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean growth of a tangent vector per step and its standard error, from blocks after the first quarter."""
    kept = growth[:, growth.shape[1] // 4 :]
    length = kept.shape[1] // BLOCKS
    means = kept[:, kept.shape[1] - BLOCKS * length :].reshape(len(kept), BLOCKS, length).mean(axis=2)
    return means.mean(axis=1), means.std(axis=1, ddof=1) / np.sqrt(BLOCKS)


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


def judge(horizon: Horizon, start: np.ndarray, steps: int, stable: np.ndarray) -> Judged:
    """The tendency of every run; ``stable``: whether the sharpness at its end is below 2 / step size."""
    window = horizon.loss.shape[1]
    with np.errstate(all="ignore"):
        logarithms = block_medians(np.log(horizon.gradient_norm))
        spacing = window // BLOCKS
        falling = trend(logarithms, spacing)
        loss_trend = trend(block_medians(horizon.loss), spacing)
        period, recurrence = periods(horizon.projections)
        way = np.linalg.norm(horizon.state - start, axis=1)
        negligible = np.median(horizon.step_length, axis=1) * steps <= NEGLIGIBLE * way
        falls = falling.upper < 0
        slight = np.log(SLIGHT) / window
        steady = (np.abs(falling.lower) < slight) & (np.abs(falling.upper) < slight)
        loss_steady = (loss_trend.lower <= 0) & (loss_trend.upper >= 0)
    small = negligible | falls
    cases = (
        (horizon.escaped_at >= 0, Tendency.DIVERGED, Cause.LEFT_FOR_INFINITY),
        (negligible & stable, Tendency.CONVERGED, Cause.NEGLIGIBLE_STEPS),
        (falls & stable, Tendency.CONVERGING, Cause.FALLING_GRADIENT),
        ((period > 0) & steady, Tendency.PERIODIC, Cause.RECURRENCE),
        (small & ~stable, Tendency.UNDECIDED, Cause.SHARPNESS_ABOVE_LIMIT),
        (steady & loss_steady, Tendency.SUSTAINED, Cause.NO_TREND),
    )
    conditions = [condition for condition, _, _ in cases]
    return Judged(
        np.select(conditions, [tendency for _, tendency, _ in cases], Tendency.UNDECIDED).astype(np.int8),
        np.select(conditions, [cause for _, _, cause in cases], Cause.STILL_CHANGING).astype(np.int8),
        level(horizon.gradient_norm),
        falling,
        level(horizon.loss),
        loss_trend,
        period,
        recurrence,
    )

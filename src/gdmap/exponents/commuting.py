"""Commuting Jacobians: where the normal space splits into lines, exponents are means of logarithms.

On a line on which sample ``i`` has curvature ``a_i`` a batch multiplies by ``1 - eta x`` with ``x = sum_i w_i
a_i``, and by the law of large numbers the exponent is ``E log|1 - eta x|`` (theory of one-dimensional normal
spaces: arXiv:2510.24466, Chemnitz & Engel 2025).
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq, minimize_scalar

from gdmap.engines.xla import compiled, in_blocks
from gdmap.maps import Batches
from gdmap.maps.batches import trajectory_key

# Batches are summed over if there are at most so many (and so many numbers in all their weights); else drawn.
MOST_BATCHES, MOST_NUMBERS = 2**16, 2**24
DRAWS = 2**15
DRAWN_AT_ONCE = 2**12
MOST_POLES, SCAN_OF_LINES = 4096, 1.002
EPS = float(np.finfo(float).eps)


class BatchWeights(NamedTuple):
    """Weights of batches ``(K, n)`` with their ``probability (K,)``: all there are, or independent draws.

    Where they are ``drawn``, every probability is ``1/K``.
    """

    weights: np.ndarray
    probability: np.ndarray
    drawn: bool


def batch_weights(batches: Batches, seed: int, draws: int = DRAWS, most: int = MOST_BATCHES) -> BatchWeights:
    """All possible batches where they can be listed, otherwise independent draws of them."""
    support = batches.support(min(most, MOST_NUMBERS // batches.n_samples))
    if support is not None:
        return BatchWeights(*support, drawn=False)
    draws = max(256, min(draws, MOST_NUMBERS // batches.n_samples))

    def weights_of(trajectories: np.ndarray) -> jax.Array:
        return compiled(_drawn_weights, (batches, jnp.asarray(seed), trajectories))

    weights = in_blocks(weights_of, np.arange(draws, dtype=np.uint32), min(draws, DRAWN_AT_ONCE))
    return BatchWeights(weights, np.full(draws, 1 / draws), drawn=True)


def _drawn_weights(batches: Batches, seed: jax.Array, trajectories: jax.Array) -> jax.Array:
    # Different trajectories, so that the draws are independent also where epochs are shuffled.
    def one(trajectory: jax.Array) -> jax.Array:
        key = trajectory_key(seed, trajectory)
        step = jax.random.randint(jax.random.fold_in(key, 2**31 - 1), (), 0, batches.steps_per_epoch)
        return batches.sample_weights(key, step)

    return jax.vmap(one)(trajectories)


class MeanLog(NamedTuple):
    """``E log|1 - eta x|`` with its rounding interval and, where the batches were drawn, its standard error."""

    value: float
    lower: float
    upper: float
    standard_error: float


def mean_log_multiplier(
    curvature: np.ndarray, probability: np.ndarray, step_size: float, error: float, drawn: bool = False
) -> MeanLog:
    """``sum_k p_k log|1 - eta x_k|`` for curvatures known up to ``error`` (absolute).

    The interval encloses the rounding; it reaches down to ``-inf`` where a multiplier may be zero.
    """
    possible = probability > 0
    curvature, probability = curvature[possible], probability[possible]
    multiplier = np.abs(1 - step_size * curvature)
    uncertainty = step_size * error + 4 * EPS * (1 + step_size * np.abs(curvature))
    with np.errstate(divide="ignore"):
        # A multiplier that may be zero is taken for zero: its logarithm would be that of rounding.
        logs = np.where(multiplier > uncertainty, np.log(multiplier), -np.inf)
        lower = float(probability @ np.log(np.maximum(multiplier - uncertainty, 0.0)))
        upper = float(probability @ np.log(multiplier + uncertainty))
        value = float(probability @ logs)
    spread = 0.0
    if drawn and np.all(np.isfinite(logs)):
        spread = float(logs.std(ddof=1) / math.sqrt(len(logs)))
    slack = 8 * EPS * float(probability @ np.abs(np.where(np.isfinite(logs), logs, 0.0)))
    return MeanLog(value, min(lower, value) - slack, max(upper, value) + slack, spread)


def first_unstable_step_size(curvature: np.ndarray, probability: np.ndarray) -> float:
    """The step size at which ``E log|1 - eta x|`` first becomes positive, for curvatures ``x >= 0`` not all zero.

    Between two neighbouring poles ``1/x`` the function is concave and tends to ``-inf`` at both, so it is positive
    there if and only if its maximum is; before the first pole it is negative, and after the last it grows without
    bound. So the first crossing is found exactly (to rounding), if there are at most `MOST_POLES` poles; beyond,
    by a scan in steps of `SCAN_OF_LINES` from the mean-square threshold, below which there is none.

    Raises
    ------
    ValueError
        If a curvature is negative (that sample's loss has no minimum there) or all are zero.
    """
    chosen = (probability > 0) & (curvature != 0)
    x, p = curvature[chosen], probability[chosen]
    if not len(x):
        raise ValueError("all curvatures are zero: no step size makes this direction unstable")
    if np.any(x < 0):
        raise ValueError(
            "a batch has negative curvature at this point: it is no minimum of the loss of that batch"
        )

    def mean_log(step_size: float) -> float:
        with np.errstate(divide="ignore"):
            return float(p @ np.log(np.abs(1 - step_size * x)))

    poles = np.unique(1 / x)
    if len(poles) > MOST_POLES:
        below = above = 2 * float(p @ x) / float(p @ x**2)
        while mean_log(above) <= 0:
            below, above = above, above * SCAN_OF_LINES
        return _root(mean_log, below, above)
    for left, right in itertools.pairwise(poles):
        if right - left > 64 * EPS * right:
            top = minimize_scalar(
                lambda step_size: -mean_log(step_size),
                bounds=(left, right),
                method="bounded",
                options={"xatol": 1e-12 * right},
            )
            if -top.fun > 0:
                return _root(mean_log, left * (1 + 4 * EPS), float(top.x))
    above = 2 * float(poles[-1])
    while mean_log(above) <= 0:
        above *= 2
    return _root(mean_log, float(poles[-1]) * (1 + 4 * EPS), above)


def _root(function: Callable[[float], float], below: float, above: float) -> float:
    # A pole of tiny probability may be narrower than the spacing of the floating-point numbers.
    if function(below) >= 0:
        return below
    if not np.isfinite(function(below)):
        below = math.nextafter(below, above)
    return float(brentq(function, below, above, xtol=1e-300, rtol=4 * EPS))

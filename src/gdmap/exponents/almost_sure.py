"""The critical step size of SGD at a minimum in the almost-sure sense: where lambda becomes positive."""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq

from gdmap.bracket import Bracket
from gdmap.exponents.commuting import (
    MOST_POLES,
    SCAN_OF_LINES,
    batch_weights,
    first_unstable_step_size,
    mean_log_multiplier,
)
from gdmap.exponents.interpolation import InterpolatingMinimum, interpolating_minimum
from gdmap.exponents.mean_square import mean_square_threshold_at
from gdmap.exponents.sgd_exponent import (
    QUARTERS,
    Look,
    PairProducts,
    Sampling,
    checked_sampling,
    critical_value,
    curvatures,
    invariant_blocks,
    looked_at,
)
from gdmap.maps import Batches
from gdmap.maps.stochastic_gradient_descent import batches_of
from gdmap.objectives import AbstractObjective

# A scan upwards for the first unstable step size, coarse in steps; its crossing is then refined with longer
# products.
SCAN = 1.15
COARSE_WINDOW = 512
CLEARLY = 3.0
SECANTS = 6


class Threshold(NamedTuple):
    """The first unstable step size on one block."""

    value: float
    lower: float
    upper: float
    sampled: bool
    method: str


def almost_sure_threshold(
    objective: AbstractObjective,
    theta: Any,
    batch_size: int = 1,
    probabilities: Any = None,
    replace: bool = False,
    *,
    shuffle: bool = False,
    confidence: float = 0.95,
    tolerance: float = 0.02,
    max_steps: int = 2**14,
    replicas: int = 256,
    seed: int = 0,
) -> Bracket:
    """The critical step size of SGD at a minimum, almost surely: where ``lambda`` first becomes positive.

    Below it a small displacement from the minimum dies out almost surely (in the linearisation), although its mean
    square may grow: the threshold is at least `mean_square_threshold`. Beyond it ``lambda`` may become negative
    again at larger step sizes (theory: the exponent is not monotone in the step size); `stable_sets` shows such
    bands.

    Where the Jacobians commute the root is computed (status *computed*); elsewhere it is found by root finding
    with common random numbers: the same batches at every step size, so that the estimate is a continuous function
    of it. The interval is that of ``lambda`` at the root, divided by the slope. Status *estimated*.

    Parameters
    ----------
    objective, theta, batch_size, probabilities, replace, shuffle, confidence, replicas, seed
        See `sgd_exponent`.
    tolerance
        Longer products are followed until the half-width is at most this share of the value, or up to
        ``max_steps``.
    max_steps
        Factors of each product at most.

    Raises
    ------
    TypeError, ValueError
        As for `sgd_exponent`; where a direction on which all Jacobians are numbers has negative curvature under
        some batch.
    """
    batches = batches_of(objective, batch_size, probabilities, replace, shuffle)
    sampling = checked_sampling(confidence, tolerance, max_steps, replicas, seed)
    point = interpolating_minimum(objective, theta, batches.probabilities)
    return almost_sure_threshold_at(point, batches, sampling)


def almost_sure_threshold_at(point: InterpolatingMinimum, batches: Batches, sampling: Sampling) -> Bracket:
    """`almost_sure_threshold` at a verified point; the tolerance is relative."""
    blocks = invariant_blocks(point)
    sampled = sum(block.rank > 1 for block in blocks)
    shared = sampling._replace(confidence=1 - (1 - sampling.confidence) / max(sampled, 1))
    best = Threshold(math.inf, math.inf, math.inf, False, "")
    lower = upper = math.inf
    estimated = False
    for block in blocks:
        found = block_threshold(block, batches, shared, best.value)
        estimated = estimated or found.sampled
        lower, upper = min(lower, found.lower), min(upper, found.upper)
        best = min(best, found, key=lambda one: one.value)
    return Bracket(
        best.value,
        lower,
        upper,
        "estimated" if estimated else "computed",
        best.method,
        sampling.confidence if estimated else None,
    )


def block_threshold(
    block: InterpolatingMinimum, batches: Batches, sampling: Sampling, enough: float = math.inf
) -> Threshold:
    """The first unstable step size on one block; only a lower bound where that is above ``enough``."""
    if batches.is_deterministic:
        largest = float(np.linalg.eigvalsh(block.mean_matrix(batches.mean()))[-1])
        error = block.error / largest
        value = 2 / largest
        words = "there is only one batch: 2 over the sharpness of its loss"
        return Threshold(value, value * (1 - 2 * error), value * (1 + 2 * error), False, words)
    if block.rank == 1:
        return _of_a_line(block, batches, sampling)
    safe = safe_step_size(block, batches)
    if safe > enough:
        return Threshold(safe, safe, math.inf, False, "stable at least up to the mean-square threshold")
    return _sampled(block, batches, sampling, safe)


def safe_step_size(block: InterpolatingMinimum, batches: Batches) -> float:
    """A step size up to which ``lambda <= 0`` for certain: the mean-square threshold.

    For epochs ``2 / max_i ||A_i||``, up to which no batch expands anything.
    """
    if batches.shuffle:
        weights = np.eye(block.n_samples)[np.unique(block.sample)]
        return 2 / max(float(np.linalg.eigvalsh(block.mean_matrix(w))[-1]) for w in weights)
    return mean_square_threshold_at(block, batches).lower


def _of_a_line(block: InterpolatingMinimum, batches: Batches, sampling: Sampling) -> Threshold:
    support = batch_weights(batches, sampling.seed)
    x, p = support.weights @ curvatures(block), support.probability
    value = first_unstable_step_size(x, p)
    # At a pole narrower than the spacing of numbers there is no slope; next to it there is.
    near = mean_log_multiplier(x, p, value * (1 + 1e-9), block.error, support.drawn)
    multiplier = 1 - value * (1 + 1e-9) * x
    slope = abs(float(p @ (-x / np.where(multiplier == 0, np.inf, multiplier))))
    noise = max(near.upper - near.value, 0.0) + 1e-15
    error = noise / slope + 1e-15 * value
    words = f"root of the mean of log|1 - eta x| over all {len(p)} batches (commuting Jacobians)"
    if support.drawn:
        error += critical_value(sampling.confidence, len(p)) * near.standard_error / slope
        words = f"root of the mean of log|1 - eta x| over {len(p)} independent batches (commuting Jacobians)"
    scanned = len(np.unique(x[p > 0])) > MOST_POLES
    if scanned:
        words += f"; first crossing of a scan by {SCAN_OF_LINES}"
    return Threshold(value, max(value - error, 0.0), value + error, support.drawn or scanned, words)


def _sampled(block: InterpolatingMinimum, batches: Batches, sampling: Sampling, safe: float) -> Threshold:
    quantile = critical_value(sampling.confidence, sampling.replicas)

    def look(step_size: float, window: int) -> Look:
        products = PairProducts(block, batches, step_size, sampling)
        if window > products.steps:
            products.advance(window - products.steps, 1)
        before = products.steps
        return looked_at(products.advance(window, QUARTERS), before, block.rank)

    def interval(step_size: float, window: int) -> tuple[float, float]:
        found = look(step_size, window)
        return found.interval(quantile * found.standard_error)

    def rate(step_size: float) -> float:
        return look(step_size, COARSE_WINDOW).mean

    below, above = safe, safe * SCAN
    while True:
        found = look(above, COARSE_WINDOW)
        if found.mean - CLEARLY * found.standard_error > 0:
            break
        below, above = (above if found.mean <= 0 else below), above * SCAN
    root = below if rate(below) >= 0 else float(brentq(rate, below, above, rtol=1e-3))
    apart = 0.02 * root
    slope = max((rate(root + apart) - rate(root - apart)) / (2 * apart), 0.0)
    window = 2 * COARSE_WINDOW
    while True:
        found = look(root, window)
        low, high = found.interval(quantile * found.standard_error)
        error = max(high - found.mean, found.mean - low) / slope if slope > 0 else math.inf
        if slope > 0:
            root = min(max(root - found.mean / slope, safe), above)
        if error <= (sampling.tolerance or 0.0) * root or 2 * window > sampling.max_steps:
            break
        window *= 2
    error = min(error, above - safe)
    # The slope is an estimate and the curve may be flat below the root: the ends must show their signs themselves.
    lower, upper = root, root
    reach = error
    while lower > safe:
        lower = max(root - reach, safe)
        if lower == safe or interval(lower, window)[1] < 0:
            break
        reach *= 2
    reach = error
    while upper < above:
        upper = min(root + reach, above)
        if upper == above or interval(upper, window)[0] > 0:
            break
        reach *= 2
    words = (
        f"root with common random numbers: {sampling.replicas} products of {2 * window} factors, the later half "
        f"measured; slope {slope:.3g}; first crossing of a scan by {SCAN} from the mean-square threshold"
    )
    if not found.settled:
        words += "; not settled, so the interval was widened"
    return Threshold(root, lower, upper, True, words)

"""lambda: the top Lyapunov exponent of stochastic gradient descent linearised at an interpolating minimum."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student_t

from gdmap.exponents.commuting import EPS, batch_weights, mean_log_multiplier
from gdmap.exponents.exponent import Exponent
from gdmap.exponents.interpolation import InterpolatingMinimum, interpolating_minimum
from gdmap.exponents.mean_square import mean_square_radius_at
from gdmap.exponents.random_products import MIXED, BatchProducts, advance, begin, memory_bound
from gdmap.exponents.regularity import blocks_at, regularity_at
from gdmap.maps import Batches
from gdmap.maps.gradient_descent import checked_step_size
from gdmap.maps.stochastic_gradient_descent import batches_of, checked_counter
from gdmap.objectives import AbstractObjective

# The first look is at this many steps; each further one at twice as many. Of the steps up to a look the later half
# is measured, in quarters that must agree.
FIRST_LOOK = 1024
QUARTERS = 4
# The two halves of what is measured may differ by so many standard errors; beyond, the interval is widened by so
# many times their difference, which covers a bias that falls as slowly as one over the square root of the number
# of steps.
DRIFT, DRIFT_FACTOR = 3.0, 6.0
# Two exponents are told apart if their gap in one replica is this many times its standard deviation.
TOLD_APART = 2.0
# Step sizes in units of 1 / curvature.
FARTHEST = 1e60
# Rounding of a rate per step.
ROUNDING = 64 * EPS
DECIDED_WIDTH = 0.1
MOST_DETERMINANTS = 2**28


class Sampling(NamedTuple):
    """How exponents are estimated: see `sgd_exponent`."""

    confidence: float
    tolerance: float | None
    max_steps: int
    replicas: int
    seed: int


class BlockExponent(NamedTuple):
    """The top exponent on one block with its interval; ``standard_error`` is ``None`` if nothing was sampled."""

    value: float
    lower: float
    upper: float
    standard_error: float | None
    method: str


def sgd_exponent(
    objective: AbstractObjective,
    theta: Any,
    step_size: float,
    batch_size: int = 1,
    probabilities: Any = None,
    replace: bool = False,
    *,
    shuffle: bool = False,
    confidence: float = 0.95,
    tolerance: float | None = None,
    max_steps: int = 2**15,
    replicas: int = 256,
    seed: int = 0,
) -> Exponent:
    """``lambda``: the growth rate of a small displacement from a minimum under stochastic gradient descent.

    The top Lyapunov exponent of the products of ``I - eta sum_i w_i Hess l_i(theta)``, ``w`` the random weights of
    the batches, restricted to the normal space of the minima (on the whole space it is never below 0, because
    nothing happens along the minima). Natural logarithm per step. Chemnitz & Engel (JMLR 26(134), 2025), theorem
    B: below 0 the minimum can be the limit of SGD, above 0 it is not, for almost every start, if their hypotheses
    hold; those that fail are named in ``failed_hypotheses`` (`regularity` explains).

    Where the normal space splits into lines on which all Jacobians act as numbers, ``lambda`` is a mean of
    logarithms, status *computed*; so it is where there is only one batch. Otherwise independent replicas of the
    product are followed (each a vector, the first half of the steps being warm-up), and looked at after 1024,
    2048, 4096, ... steps; the confidence of each look is raised so that all looks together keep the stated one. It
    stops when the sign is decided and the half-width is at most a tenth of the value, or at ``max_steps``. The
    interval is cut at ``(1/2) log`` of the mean-square radius (an upper bound on ``lambda``) and at the mean of
    all exponents, ``E log|det| / dim`` (a lower bound), where these can be computed. It is widened where the two
    halves of what was measured disagree, where the second exponent is not told apart, and where its gap has had no
    time to act (slow directions, small step sizes); ``method`` says so. Status *estimated*.

    Parameters
    ----------
    objective
        A loss that is a mean over samples (`Objective` with data, `LinearNetwork` of samples).
    theta
        A minimum at which every sample's gradient vanishes, shape ``(dim,)``; it is verified and refined.
    step_size
        ``eta``.
    batch_size, probabilities, replace, shuffle
        The law of the batches; see `StochasticGradientDescent`.
    confidence
        Of the interval, where it is estimated.
    tolerance
        Go on until the half-width is at most this (absolute), instead.
    max_steps
        Steps of each replica at most.
    replicas
        Independent products; at least 16.
    seed
        Of the batches; replica ``i`` depends on ``(seed, i)`` alone.

    Raises
    ------
    TypeError, ValueError
        If ``theta`` is no minimum, or single samples' gradients do not vanish there, or the normal space is zero;
        for an objective without samples, a batch larger than the data, probabilities that are no distribution.
    """
    eta = checked_step_size(step_size)
    batches = batches_of(objective, batch_size, probabilities, replace, shuffle)
    sampling = checked_sampling(confidence, tolerance, max_steps, replicas, seed)
    point = interpolating_minimum(objective, theta, batches.probabilities)
    return sgd_exponent_at(point, batches, eta, sampling)


def sgd_exponent_at(
    point: InterpolatingMinimum, batches: Batches, step_size: float, sampling: Sampling
) -> Exponent:
    """`sgd_exponent` at a verified point."""
    check_reach(point, step_size)
    bases = blocks_at(point)
    blocks = invariant_blocks(point, bases)
    sampled = sum(block.rank > 1 for block in blocks)
    shared = sampling._replace(confidence=1 - (1 - sampling.confidence) / max(sampled, 1))
    found: list[BlockExponent] = []
    for block in blocks:
        best = max((one.lower for one in found), default=-math.inf)
        found.append(block_exponent(block, batches, step_size, shared, enough=best))
    leading = max(found, key=lambda one: one.value)
    estimated = any(one.standard_error is not None for one in found)
    dims = [block.rank for block in blocks]
    split = f"; the normal space of dimension {sum(dims)} splits into blocks of dimension {dims}"
    failed = tuple(h.name for h in regularity_at(point, batches, step_size, bases).hypotheses if h.holds is False)
    return Exponent(
        value=leading.value,
        lower=max(one.lower for one in found),
        upper=max(one.upper for one in found),
        status="estimated" if estimated else "computed",
        method=leading.method + (split if 1 < len(dims) <= 8 else ""),
        confidence=sampling.confidence if estimated else None,
        standard_error=leading.standard_error,
        failed_hypotheses=failed,
    )


def invariant_blocks(
    point: InterpolatingMinimum, bases: list[np.ndarray] | None = None
) -> list[InterpolatingMinimum]:
    """The point with the sample Hessians on each of their orthogonal blocks alone, small ones first."""
    blocks = []
    for basis in blocks_at(point) if bases is None else bases:
        factors = point.factors @ basis
        # Rows of other blocks are rounding noise here.
        kept = np.linalg.norm(factors, axis=1) > math.sqrt(EPS) * np.linalg.norm(point.factors, axis=1)
        block = dataclasses.replace(
            point,
            rank=basis.shape[1],
            factors=factors[kept],
            signs=point.signs[kept],
            sample=point.sample[kept],
            basis=None if point.basis is None else point.basis @ basis,
        )
        blocks.append(block)
    return sorted(blocks, key=lambda block: block.rank)


def curvatures(block: InterpolatingMinimum) -> np.ndarray:
    """On a line: the curvature ``a_i`` of each sample, shape ``(n,)``."""
    return np.bincount(block.sample, block.signs * block.factors[:, 0] ** 2, minlength=block.n_samples)


def block_exponent(
    block: InterpolatingMinimum, batches: Batches, step_size: float, sampling: Sampling, enough: float = -math.inf
) -> BlockExponent:
    """The top exponent on one block; only its upper bound where that is below ``enough``."""
    if batches.is_deterministic:
        return _of_one_matrix(block, batches, step_size)
    if block.rank == 1:
        return _of_a_line(block, batches, step_size, sampling)
    upper = mean_square_bound(block, batches, step_size)
    if upper < enough:
        return BlockExponent(upper, -math.inf, upper, None, "bounded by the mean-square radius")
    lower = determinant_bound(block, batches, step_size)
    return _sampled(block, batches, step_size, sampling, lower, upper)


def _of_one_matrix(block: InterpolatingMinimum, batches: Batches, step_size: float) -> BlockExponent:
    eigenvalues = np.linalg.eigvalsh(block.mean_matrix(batches.mean()))
    found = [mean_log_multiplier(np.array([x]), np.ones(1), step_size, block.error) for x in eigenvalues]
    value, lower, upper = (max(getattr(one, name) for one in found) for name in ("value", "lower", "upper"))
    return BlockExponent(value, lower, upper, None, "there is only one batch: lambda = mu of its loss")


def _of_a_line(
    block: InterpolatingMinimum, batches: Batches, step_size: float, sampling: Sampling
) -> BlockExponent:
    support = batch_weights(batches, sampling.seed)
    found = mean_log_multiplier(
        support.weights @ curvatures(block), support.probability, step_size, block.error, support.drawn
    )
    if not support.drawn:
        method = f"commuting Jacobians: mean of log|1 - eta x| over all {len(support.probability)} batches"
        return BlockExponent(found.value, found.lower, found.upper, None, method)
    half = critical_value(sampling.confidence, len(support.probability)) * found.standard_error
    method = f"commuting Jacobians: mean of log|1 - eta x| over {len(support.probability)} independent batches"
    return BlockExponent(found.value, found.lower - half, found.upper + half, found.standard_error, method)


def mean_square_bound(block: InterpolatingMinimum, batches: Batches, step_size: float) -> float:
    """``(1/2) log`` of the mean-square radius, an upper bound (Jensen); infinite where it has none."""
    try:
        radius = mean_square_radius_at(block, batches, step_size)
    except ValueError:  # epochs, or a mean curvature that is not positive
        return math.inf
    return math.log(radius.upper) / 2 if radius.upper > 0 else -math.inf


def determinant_bound(block: InterpolatingMinimum, batches: Batches, step_size: float) -> float:
    """``E log|det| / dim``, the mean of all exponents, a lower bound on the top one; ``-inf`` if not summable."""
    support = batches.support(max(1, MOST_DETERMINANTS // (block.rank**3 + batches.n_samples * block.rank)))
    if support is None:
        return -math.inf
    return mean_log_determinant(block, support[0], support[1], step_size)[1] / block.rank


def mean_log_determinant(
    block: InterpolatingMinimum, weights: np.ndarray, probability: np.ndarray, step_size: float
) -> tuple[float, float, float]:
    """``E log|det(I - eta A_w)|`` over batches with these weights: value, lower and upper end for its rounding."""
    value = lower = upper = 0.0
    for w, p in zip(weights, probability, strict=True):
        if p > 0:
            one = mean_log_multiplier(
                np.linalg.eigvalsh(block.mean_matrix(w)), np.full(block.rank, 1.0), step_size, block.error
            )
            value, lower, upper = value + p * one.value, lower + p * one.lower, upper + p * one.upper
    return value, lower, upper


# Sampling
# ---------------------------------------------------------------------------------------------------------


class Look(NamedTuple):
    """What the replicas say at one look at the two leading exponents.

    ``mean`` growth rate of the leading vector and its ``standard_error``; how its two halves differ (``drift``);
    and, where the second exponent is not told apart, by how much the ``mean`` exceeds that of the pair
    (``excess``): two vectors that take turns in leading make the larger rate come out too large, but not the sum.
    ``memory`` bounds what the first vectors, of which a part lies aside, may still take off the rate.
    """

    mean: float
    standard_error: float
    drift: float
    drift_error: float
    excess: float
    memory: float

    @property
    def settled(self) -> bool:
        """Whether the two halves of what was measured agree."""
        return abs(self.drift) <= DRIFT * self.drift_error

    @property
    def bias(self) -> float:
        """By how much to widen the interval: nothing where it is settled."""
        return 0.0 if self.settled else DRIFT_FACTOR * abs(self.drift)

    def interval(self, half: float) -> tuple[float, float]:
        """The interval of half-width ``half``, widened by what biases the mean."""
        return self.mean - half - self.bias - self.excess, self.mean + half + self.bias + self.memory


def looked_at(rates: np.ndarray, before: float = math.inf, dim: int = 1) -> Look:
    """The look at growth rates per step of each replica, ``(replicas, quarters, exponents)``.

    The vectors, of dimension ``dim``, were followed for ``before`` steps that are not measured; where the gap to
    the second exponent has not had time to act, the leading one may be larger by `memory_bound`.
    """
    count = len(rates)
    leading = rates[:, :, 0]
    halves = leading.reshape(count, 2, -1).mean(axis=2)
    difference = halves[:, 1] - halves[:, 0]
    means = leading.mean(axis=1)
    excess = memory = 0.0
    if rates.shape[2] > 1:
        with np.errstate(invalid="ignore"):
            gaps = means - rates[:, :, 1].mean(axis=1)
        if np.all(np.isfinite(gaps)):
            gap = float(gaps.mean())
            excess = gap / 2 if gap < TOLD_APART * gaps.std(ddof=1) else 0.0
            memory = memory_bound(before, dim) if gap * before < MIXED else 0.0
    with np.errstate(invalid="ignore"):  # -inf where every direction was annihilated
        return Look(
            float(means.mean()),
            float(means.std(ddof=1) / math.sqrt(count)),
            float(difference.mean()),
            float(difference.std(ddof=1) / math.sqrt(count)),
            excess,
            memory,
        )


def critical_value(confidence: float, count: int) -> float:
    """Student's quantile for a two-sided interval from ``count`` independent values."""
    return float(student_t.ppf((1 + confidence) / 2, count - 1))


def confidence_at(confidence: float, look: int) -> float:
    """The confidence of look ``1, 2, ...`` such that all of them together keep the one stated."""
    return 1 - (1 - confidence) / (look * (look + 1))


def slow_and_random(block: InterpolatingMinimum, batches: Batches, replicas: int, k: int = 2) -> np.ndarray:
    """Vectors to begin with, ``(replicas, k, dim)``: random ones added to those of least mean curvature.

    These directions contract most slowly, so a stable product ends up near them; the random part finds what grows.
    """
    slowest = np.linalg.eigh(block.mean_matrix(batches.mean()))[1][:, :k].T
    directions = np.random.default_rng(0).standard_normal((replicas, *slowest.shape))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    return slowest + directions / 2


def _sampled(
    block: InterpolatingMinimum,
    batches: Batches,
    step_size: float,
    sampling: Sampling,
    lowest: float,
    highest: float,
) -> BlockExponent:
    products = PairProducts(block, batches, step_size, sampling)
    window = products.steps
    look = 0
    while True:
        look += 1
        before = products.steps
        found = looked_at(products.advance(window, QUARTERS), before, block.rank)
        quantile = critical_value(confidence_at(sampling.confidence, look), sampling.replicas)
        half = quantile * found.standard_error + ROUNDING
        lower, upper = found.interval(half)
        lower, upper = max(lower, lowest), min(upper, highest)
        if sampling.tolerance is not None:
            enough = (upper - lower) / 2 <= sampling.tolerance
        else:
            enough = (upper < 0 or lower > 0) and half <= DECIDED_WIDTH * abs(found.mean)
        window = products.steps
        if (found.settled and enough) or 2 * window > sampling.max_steps or found.mean == -math.inf:
            break
    return combined(found, half, products, lowest, highest)


def combined(found: Look, half: float, products: "PairProducts", lowest: float, highest: float) -> BlockExponent:
    """The estimate with its interval, cut at the bounds that hold for certain."""
    words = [f"{products.replicas} independent products of {products.steps} factors, the later half measured"]
    if found.mean == -math.inf:
        return BlockExponent(-math.inf, -math.inf, -math.inf, 0.0, f"{words[0]}: every direction was annihilated")
    lower, upper = found.interval(half)
    if not found.settled:
        words.append(
            f"not settled: the halves of what was measured differ by {found.drift:.2g}, so the interval was "
            "widened (a small gap to the next exponent mixes slowly)"
        )
    if found.excess > 0:
        words.append("not told apart from the next exponent, so the lower end is that of their mean")
    if found.memory > 0:
        words.append("the gap to the next exponent has not had time to act, so the upper end was raised")
    if upper > highest:
        upper = max(highest, lower)
        words.append("the upper end is half the logarithm of the mean-square radius")
    if lower < lowest:
        lower = min(lowest, upper)
        words.append("the lower end is the mean logarithm of |det| per dimension")
    value = min(max(found.mean, lower), upper)
    return BlockExponent(value, lower, upper, found.standard_error, "; ".join(words))


class PairProducts:
    """Independent replicas of the random product acting on two vectors each, which can be continued.

    The same seed gives the same batches whatever the step size (common random numbers).
    """

    def __init__(
        self, block: InterpolatingMinimum, batches: Batches, step_size: float, sampling: Sampling
    ) -> None:
        self.replicas = sampling.replicas
        self.law = BatchProducts(block.factors, block.signs, block.sample, batches, step_size)
        self.epoch = batches.steps_per_epoch if batches.shuffle else 1
        vectors = slow_and_random(block, batches, sampling.replicas)
        self.state = begin(self.law, sampling.replicas, vectors.shape[1], sampling.seed, vectors=vectors)
        self.advance(FIRST_LOOK // 2, 1)

    @property
    def steps(self) -> int:
        """The number of factors multiplied so far."""
        return self.state.step

    def advance(self, steps: int, parts: int) -> np.ndarray:
        """Growth rates per step over the next ``parts`` equal parts of ``steps`` steps, ``(replicas, parts, 2)``.

        Parts are whole epochs where the batches come in epochs.
        """
        part = -(-steps // (parts * self.epoch)) * self.epoch
        self.state, growth = advance(self.law, self.state, parts * part, parts)
        return growth / part


def check_reach(point: InterpolatingMinimum, step_size: float) -> None:
    """Refuse step sizes at which products of a few steps leave the range of floating-point numbers."""
    largest = float(point.sizes.max())
    if step_size * largest > FARTHEST:
        raise ValueError(
            f"step_size {step_size:g} is {step_size * largest:.2g} times what the curvature of a sample "
            f"({largest:.3g}) allows: a few steps leave the range of floating-point numbers"
        )


def checked_sampling(confidence: Any, tolerance: Any, max_steps: Any, replicas: Any, seed: Any) -> Sampling:
    """How to sample, or an error naming the number that makes no sense."""
    numbers = (int, float, np.number)
    if isinstance(confidence, bool) or not isinstance(confidence, numbers) or not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence!r}")
    fine = isinstance(tolerance, numbers) and not isinstance(tolerance, bool) and 0 < tolerance < math.inf
    if tolerance is not None and not fine:
        raise ValueError(f"tolerance must be positive and finite, got {tolerance!r}")
    for name, number, least in (("max_steps", max_steps, FIRST_LOOK), ("replicas", replicas, 16)):
        whole = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
        if not whole or number < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {number!r}")
    checked_counter(seed, "seed")
    return Sampling(
        float(confidence),
        None if tolerance is None else float(tolerance),
        int(max_steps),
        int(replicas),
        int(seed),
    )

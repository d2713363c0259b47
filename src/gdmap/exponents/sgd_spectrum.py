"""All Lyapunov exponents of SGD linearised at an interpolating minimum, with the sum rule as a control."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from gdmap.exponents.interpolation import InterpolatingMinimum, interpolating_minimum
from gdmap.exponents.random_products import BatchProducts, advance, begin, upper_bounds
from gdmap.exponents.sgd_exponent import (
    MOST_DETERMINANTS,
    ROUNDING,
    BlockExponent,
    Sampling,
    block_exponent,
    check_reach,
    checked_sampling,
    critical_value,
    invariant_blocks,
    looked_at,
    mean_log_determinant,
    mean_square_bound,
    slow_and_random,
)
from gdmap.maps import Batches
from gdmap.maps.gradient_descent import checked_step_size
from gdmap.maps.stochastic_gradient_descent import batches_of
from gdmap.objectives import AbstractObjective

# Subadditive upper bounds are estimated from products of up to so many factors.
LONGEST_BOUND = 128


class BlockSpectrum(NamedTuple):
    """Exponents on one block, descending, and the comparison of their sum with ``E log|det|`` (NaN: not made)."""

    exponents: list[BlockExponent]
    total: float
    log_determinant: float
    z: float


def sgd_lyapunov_spectrum(
    objective: AbstractObjective,
    theta: Any,
    step_size: float,
    batch_size: int = 1,
    probabilities: Any = None,
    replace: bool = False,
    *,
    k: int | None = None,
    shuffle: bool = False,
    confidence: float = 0.95,
    steps: int = 4000,
    replicas: int = 256,
    seed: int = 0,
) -> xr.Dataset:
    """The Lyapunov exponents of SGD at a minimum, on the normal space, largest first; the first is `sgd_exponent`.

    Independent replicas of the product are followed with frames that are orthonormalised by QR; the first half of
    the steps is warm-up. On lines (commuting Jacobians) the exponents are computed. As a control the sum of all
    exponents is compared with ``E log|det(I - eta A_w)|``, which it equals exactly.

    Parameters
    ----------
    objective, theta, step_size, batch_size, probabilities, replace, shuffle, confidence, replicas, seed
        See `sgd_exponent`; the confidence is that of each interval alone.
    k
        How many exponents; all of them, as many as the normal space has dimensions, by default.
    steps
        Factors of each product, half of them measured.

    Returns
    -------
    xarray.Dataset
        Over ``length`` (1, 2, 4, ...): ``upper_bound``, the mean of ``(1/n) log`` of the spectral norm of ``n``
        factors, with its standard error: it falls to the top exponent (subadditivity). Over ``k``:
        ``exponent`` (natural logarithm per step), ``standard_error`` (0 where computed), ``lower``, ``upper``,
        ``estimated``, ``block`` (the invariant block of the normal space it belongs to). With all exponents also
        ``sum``, ``log_determinant`` (``E log|det|``, computed over all batches; NaN if there are too many) and
        ``log_determinant_z``, their difference in standard errors (the sum over the replicas is of the same
        draws).

    Raises
    ------
    TypeError, ValueError
        As for `sgd_exponent`; for ``k`` beyond the dimension of the normal space.
    """
    eta = checked_step_size(step_size)
    batches = batches_of(objective, batch_size, probabilities, replace, shuffle)
    sampling = checked_sampling(confidence, None, steps, replicas, seed)
    point = interpolating_minimum(objective, theta, batches.probabilities)
    check_reach(point, eta)
    wanted = point.rank if k is None else k
    if isinstance(wanted, bool) or not isinstance(wanted, (int, np.integer)) or not 1 <= wanted <= point.rank:
        raise ValueError(
            f"k must be an integer from 1 to the dimension of the normal space, {point.rank}, got {k!r}"
        )
    found = [block_spectrum(block, batches, eta, sampling, int(wanted)) for block in invariant_blocks(point)]
    rows = [(one, number) for number, block in enumerate(found) for one in block.exponents]
    rows = sorted(rows, key=lambda row: -row[0].value)[: int(wanted)]
    variables: dict[str, Any] = {}
    words = {
        "value": ("exponent", "Lyapunov exponent of SGD on the normal space"),
        "lower": ("lower", "lower end of the interval"),
        "upper": ("upper", "upper end of the interval"),
    }
    for field, (name, long_name) in words.items():
        values = [getattr(one, field) for one, _ in rows]
        variables[name] = ("k", np.array(values), {"long_name": long_name, "units": "per step"})
    errors = np.array([one.standard_error or 0.0 for one, _ in rows])
    variables["standard_error"] = (
        "k",
        errors,
        {"long_name": "standard error across replicas", "units": "per step"},
    )
    estimated = np.array([one.standard_error is not None for one, _ in rows])
    variables["estimated"] = ("k", estimated, {"long_name": "estimated by sampling, not computed"})
    variables["block"] = ("k", np.array([number for _, number in rows]), {"long_name": "invariant block"})
    if k is None or int(wanted) == point.rank:
        total, expected = math.fsum(b.total for b in found), sum(b.log_determinant for b in found)
        checks = [b.z for b in found if not math.isnan(b.z)]
        z = math.sqrt(len(checks)) * float(np.mean(checks)) if checks else math.nan
        variables["sum"] = ((), total, {"long_name": "sum of the exponents", "units": "per step"})
        variables["log_determinant"] = ((), expected, {"long_name": "E log|det|", "status": "computed"})
        variables["log_determinant_z"] = ((), z, {"long_name": "their difference in standard errors"})
    law = BatchProducts(point.factors, point.signs, point.sample, batches, eta)
    bounded = {"units": "per step", "status": "estimated"}
    variables |= upper_bounds(law, sampling.replicas, LONGEST_BOUND, sampling.seed, bounded)
    return xr.Dataset(
        variables,
        coords={"k": ("k", np.arange(1, len(rows) + 1), {"long_name": "rank of the exponent, largest first"})},
        attrs={
            "status": "estimated" if estimated.any() else "computed",
            "confidence": confidence if estimated.any() else "none: nothing was sampled",
            "method": f"{replicas} independent products of {steps} factors, QR, the later half measured",
            "replicas": replicas,
            "steps": steps,
            "seed": seed,
            "step_size": eta,
            "normal_dimension": point.rank,
        },
    )


def block_spectrum(
    block: InterpolatingMinimum, batches: Batches, step_size: float, sampling: Sampling, k: int
) -> BlockSpectrum:
    """The ``k`` largest exponents on one block (all of them if it has fewer dimensions)."""
    if batches.is_deterministic:
        directions = np.linalg.eigh(block.mean_matrix(batches.mean()))[1].T
        lines = [on_line(block, direction) for direction in directions]
        exponents = sorted(
            (block_exponent(line, batches, step_size, sampling) for line in lines), key=lambda one: -one.value
        )
        total = math.fsum(one.value for one in exponents)
        return BlockSpectrum(exponents[:k], total, total, math.nan)
    if block.rank == 1:
        one = block_exponent(block, batches, step_size, sampling)
        return BlockSpectrum([one], one.value, one.value, math.nan)
    # One more vector than exponents, to see whether the last one is told apart from the next.
    followed = min(k + 1, block.rank)
    law = BatchProducts(block.factors, block.signs, block.sample, batches, step_size)
    vectors = slow_and_random(block, batches, sampling.replicas, followed)
    state = begin(law, sampling.replicas, followed, sampling.seed, vectors=vectors)
    epoch = batches.steps_per_epoch if batches.shuffle else 1
    part = max(-(-sampling.max_steps // (8 * epoch)), 1) * epoch
    state, _ = advance(law, state, 4 * part)
    _, growth = advance(law, state, 4 * part, 4)
    rates = growth / part
    exponents = []
    method = f"{sampling.replicas} independent products of {8 * part} factors, QR, the later half measured"
    quantile = critical_value(sampling.confidence, sampling.replicas)
    excess = memory = 0.0
    highest = mean_square_bound(block, batches, step_size)
    for j in range(min(k, block.rank)):
        if not np.all(np.isfinite(rates[:, :, j])):
            exponents.append(BlockExponent(-math.inf, -math.inf, -math.inf, 0.0, f"{method}: annihilated"))
            continue
        look = looked_at(rates[:, :, j : j + 2], 4 * part, block.rank)
        lower, upper = look.interval(quantile * look.standard_error + ROUNDING)
        # What biases an exponent upwards biases the next one downwards.
        lower, upper = lower - memory, upper + excess
        upper = max(min(upper, highest), lower)
        value = min(look.mean, upper)
        exponents.append(BlockExponent(value, lower, upper, look.standard_error, method))
        excess, memory = look.excess, look.memory
    return BlockSpectrum(exponents, *_sum_rule(block, batches, step_size, rates))


def on_line(block: InterpolatingMinimum, direction: np.ndarray) -> InterpolatingMinimum:
    """The sample Hessians seen along one direction of the block, a unit vector."""
    return dataclasses.replace(block, rank=1, factors=block.factors @ direction[:, None])


def _sum_rule(
    block: InterpolatingMinimum, batches: Batches, step_size: float, rates: np.ndarray
) -> tuple[float, float, float]:
    sums = rates.sum(axis=2).mean(axis=1)
    total = float(sums.mean())
    if rates.shape[2] < block.rank:
        return total, math.nan, math.nan
    support = batches.support(max(1, MOST_DETERMINANTS // (block.rank**3 + batches.n_samples * block.rank)))
    if support is None:
        return total, math.nan, math.nan
    expected = mean_log_determinant(block, *support, step_size)[0]
    error = float(sums.std(ddof=1) / math.sqrt(len(sums)))
    return total, expected, (total - expected) / error if error > 0 else math.nan

"""The critical step size: above it no minimum is stable under gradient descent."""

import math
from dataclasses import dataclass, field

import numpy as np

from gdmap.bracket import Bracket
from gdmap.minima import (
    SharpnessBound,
    aligned_minimum,
    balanced_minimum,
    minimal_sharpness_bound,
    search_flattest_minimum,
)
from gdmap.objectives import AbstractObjective, LinearNetwork
from gdmap.spectra import largest_eigenvalue

CLOSED = 1e-9


@dataclass(frozen=True, eq=False)
class CriticalStepSize:
    """The answer of `critical_step_size`.

    Attributes
    ----------
    step_size
        ``eta_crit = 2 / min_sharpness``; infinite if minima become arbitrarily flat.
    min_sharpness
        The smallest top Hessian eigenvalue over all global minima: ``lower`` bounds the sharpness of every
        global minimum from below, ``upper`` is the sharpness of ``minimum``.
    minimum
        The explicit global minimum with that sharpness, a flat vector.
    reason
        Which theorem or search gives the answer.
    """

    step_size: Bracket
    min_sharpness: Bracket
    minimum: np.ndarray | None = field(repr=False)
    reason: str

    def explain(self) -> str:
        """What the number says, what it does not say, and how far to trust it, in a few sentences."""
        if math.isinf(self.step_size.value):
            return (
                f"There is no critical step size: {self.reason} "
                "For every step size there are minima that are not unstable."
            )
        above = "Above it"
        if self.step_size.status == "estimated":
            upper = f"{self.step_size.upper:.7g}"
            above = f"Between it and {upper} no stable minimum was found, which proves nothing; above that"
        return (
            f"Critical step size {self.step_size}: 2 over the smallest sharpness of a global minimum, "
            f"{self.min_sharpness}. {self.reason} "
            "Below it some minima are stable and attract starts near them; that is necessary for "
            "convergence, not sufficient: starts far out may still diverge. "
            f"{above} every minimum is unstable, and the starts that converge to one have measure zero, unless "
            "the step size is one of the exceptional ones for which the map is singular."
        )


def critical_step_size(objective: AbstractObjective, *, restarts: int = 5, seed: int = 0) -> CriticalStepSize:
    """``eta_crit = 2 / min lambda_max(H)`` over the global minima of ``objective``.

    For a `LinearNetwork` whose optimum is the least-squares map (no bottleneck below the rank of the target),
    and for whitened data with any bottleneck, the smallest sharpness is a formula and an explicit minimum
    attains it, so the bracket closes to rounding (status *computed*). With a bottleneck and a general
    covariance the formula is only a lower bound; the flattest minimum is searched from ``restarts`` starts
    (status *estimated*: the interval is certain to rounding, that the value is the minimum is not).

    Source: arXiv:2402.13108 for the statement; docs/critical-step-size.md for the formula with proofs.

    Raises
    ------
    TypeError
        For objectives other than `LinearNetwork`, for which no method is implemented.
    ValueError
        If the inputs are all zero, so that the loss is constant.
    """
    if isinstance(restarts, bool) or not isinstance(restarts, int) or restarts < 1:
        raise ValueError(f"restarts must be a positive integer, got {restarts!r}")
    if not isinstance(objective, LinearNetwork):
        raise TypeError(
            f"critical_step_size knows LinearNetwork only, not {type(objective).__name__}: "
            "for another loss, sweep the step size with gdmap.sweep"
        )
    if not np.any(objective.input_covariance):
        raise ValueError("the inputs are all zero: the loss is constant and every point is a minimum")
    if objective.target_rank == 0 and objective.depth >= 2:
        return _arbitrarily_flat(objective)
    bound = minimal_sharpness_bound(objective)
    if objective.is_whitened:
        minimum = balanced_minimum(objective)
        reason = "Whitened data: N sigma_1^(2-2/N), attained at the balanced minimum."
    elif objective.reaches_least_squares:
        minimum = aligned_minimum(objective, bound.scale)
        reason = (
            "General input covariance: N max_v |S v|^(2/N) |W* S v|^(2-2/N), attained at a minimum whose "
            "upper layers are multiples of an isometry."
            if objective.depth > 1
            else "Linear regression: the largest eigenvalue of the input covariance."
        )
    else:
        return _searched(objective, bound, restarts, seed)
    sharpness = largest_eigenvalue(objective, minimum)
    margin = bound.relative_error * bound.value
    bracket = Bracket(
        bound.value,
        min(bound.value - margin, sharpness.upper),
        max(bound.value, sharpness.upper) + margin,
        "computed",
        reason,
    )
    return CriticalStepSize(bracket.reciprocal(2.0, "2 / min sharpness"), bracket, minimum, reason)


def _arbitrarily_flat(network: LinearNetwork) -> CriticalStepSize:
    reason = (
        "the optimum is zero (targets uncorrelated with inputs), so with two or more layers the origin is a "
        "global minimum where the Hessian vanishes."
    )
    zero = Bracket(0.0, 0.0, 0.0, "computed", reason)
    return CriticalStepSize(zero.reciprocal(2.0, reason), zero, np.zeros(network.dim), reason)


def _searched(network: LinearNetwork, bound: SharpnessBound, restarts: int, seed: int) -> CriticalStepSize:
    minima = search_flattest_minimum(network, restarts, seed)
    sharpness = [largest_eigenvalue(network, theta) for theta in minima]
    best, worst = sharpness[0], sharpness[-1]
    closed = best.upper - bound.value <= CLOSED * bound.value
    reason = (
        "Bottleneck with a general input covariance: flattest of "
        f"{restarts} searched minima (their sharpness spreads from {best.value:.7g} to {worst.value:.7g}), "
        f"above the lower bound {bound.value:.7g}."
    )
    margin = bound.relative_error * bound.value
    lower = min(bound.value - margin, best.value)
    bracket = Bracket(best.value, lower, best.upper + margin, "computed" if closed else "estimated", reason)
    return CriticalStepSize(bracket.reciprocal(2.0, "2 / min sharpness"), bracket, minima[0], reason)

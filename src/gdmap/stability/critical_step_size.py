"""The critical step size: above it no minimum is stable under gradient descent."""

import math
from dataclasses import dataclass, field

import numpy as np

from gdmap.bracket import Bracket
from gdmap.minima import (
    FlattestMinimum,
    SharpnessBound,
    aligned_minimum,
    balanced_minimum,
    flattest_minimum,
    minimal_sharpness_bound,
)
from gdmap.objectives import AbstractObjective, LinearNetwork
from gdmap.objectives.least_squares import rank_cutoff
from gdmap.spectra import sharpness

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
    search
        What the numerical search found, where there was one (`FlattestMinimum`), otherwise ``None``.
    """

    step_size: Bracket
    min_sharpness: Bracket
    minimum: np.ndarray | None = field(repr=False)
    reason: str
    search: FlattestMinimum | None = field(default=None, repr=False)

    def explain(self) -> str:
        """What the number says, what it does not say, and how far to trust it, in a few sentences."""
        if math.isinf(self.step_size.value):
            if math.isfinite(self.step_size.lower):
                lower = f"{self.step_size.lower:.7g}"
                return f"A critical step size below {lower} is excluded, and none may exist: {self.reason}"
            return (
                f"There is no critical step size: {self.reason} "
                "For every step size there are minima that are not unstable."
            )
        if self.search is not None and self.search.falling:
            stable = (
                f"The minima found are stable up to step size {self.step_size.value:.4g}; flatter ones allow more."
            )
            if self.search.degenerate:
                stable = "At these points linear stability does not decide."
            return f"No critical step size was found, and none may exist (estimated): {self.reason} {stable}"
        below = (
            "Below it some minima are stable and attract starts near them; that is necessary for "
            "convergence, not sufficient: starts far out may still diverge. "
        )
        if self.search is not None and self.search.degenerate:
            below = "Below it linear stability does not decide, since the points are degenerate. "
        elif self.search is not None and not self.search.verified:
            below = (
                "Below it the candidate found is stable, if it is a minimum; starts far out may still diverge. "
            )
        return (
            f"Critical step size {self.step_size}: 2 over the smallest sharpness of a global minimum, "
            f"{self.min_sharpness}. {self.reason} "
            f"{below}{self._above()}"
        )

    def _above(self) -> str:
        null_set = (
            "every minimum is unstable, and the starts that converge to one have measure zero, unless "
            "the step size is one of the exceptional ones for which the map is singular."
        )
        if self.step_size.status != "estimated":
            return f"Above it {null_set}"
        if math.isinf(self.step_size.upper):
            return (
                "Above it no stable minimum was found, which proves nothing: a flatter one may have been missed. "
                f"If none was, then above it {null_set}"
            )
        return (
            f"Between it and {self.step_size.upper:.7g} no stable minimum was found, which proves nothing; "
            f"above that {null_set}"
        )


def critical_step_size(
    objective: AbstractObjective, *, starts: int = 16, seed: int = 0, scale: float = 1.0
) -> CriticalStepSize:
    """``eta_crit = 2 / min lambda_max(H)`` over the global minima of ``objective``.

    For a `LinearNetwork` under the square loss whose optimum is the least-squares map (no bottleneck below the
    rank of the target), and for whitened data with any bottleneck, the smallest sharpness is a formula and an
    explicit minimum attains it, so the bracket closes to rounding (status *computed*). With a bottleneck and a
    general covariance the formula is only a lower bound, and the flattest minimum is searched (status
    *estimated*: the interval is certain to rounding, that the value is the minimum is not).

    For any other objective `flattest_minimum` searches (status *estimated*). Up to 1,000 parameters the lower end
    of the step size is certain to rounding: the minimum found is verified, and stable up to there (above, the
    minimum is only a candidate, see there). The upper end is infinite, since no bound on
    the sharpness of minima not found is known. Where the sharpness keeps falling along the set of minima the
    answer says so, with the sequence: that suggests that no critical step size exists, and does not prove it.

    Source: arXiv:2402.13108 for the statement; docs/critical-step-size.md for the formula with proofs.

    Parameters
    ----------
    objective
        The loss. A search takes seconds for tens of parameters, minutes for a hundred or more.
    starts, seed, scale
        Number, seed and standard deviation of the starts of a search.

    Raises
    ------
    ValueError
        If the loss is constant or has no minimum that can be found.
    """
    if isinstance(starts, bool) or not isinstance(starts, (int, np.integer)) or starts < 1:
        raise ValueError(f"starts must be a positive integer, got {starts!r}")
    if not isinstance(objective, AbstractObjective):
        raise TypeError(f"objective must be a gdmap objective such as Function(f, dim), got {objective!r}")
    if not isinstance(objective, LinearNetwork) or not objective.is_squared:
        return _searched(objective, flattest_minimum(objective, starts=int(starts), seed=seed, scale=scale))
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
        return _searched(objective, flattest_minimum(objective, starts=int(starts), seed=seed, scale=scale), bound)
    found = sharpness(objective, minimum)
    margin = bound.relative_error * bound.value
    bracket = Bracket(
        bound.value,
        min(bound.value - margin, found.upper),
        max(bound.value, found.upper) + margin,
        "computed",
        reason,
    )
    return CriticalStepSize(bracket.reciprocal(2.0, "2 / min sharpness"), bracket, minimum, reason)


def _arbitrarily_flat(network: LinearNetwork) -> CriticalStepSize:
    """The answer for an optimum that is zero: exactly, or to the rounding of the data's statistics."""
    reason = (
        "the optimum is zero (targets uncorrelated with inputs), so with two or more layers the origin is a "
        "global minimum where the Hessian vanishes."
    )
    C, N = network.whitened_target, network.depth
    doubt = float(np.linalg.norm(C)) + rank_cutoff(C, network.target_energy)
    inputs = 1.0 if network.covariance_factor is None else float(np.linalg.norm(network.covariance_factor, 2))
    upper = N * inputs ** (2 / N) * doubt ** (2 - 2 / N)
    if upper > 0:
        reason = f"to the rounding of the data {reason}"
    bracket = Bracket(0.0, 0.0, upper, "computed", reason)
    return CriticalStepSize(bracket.reciprocal(2.0, reason), bracket, np.zeros(network.dim), reason)


def _searched(
    objective: AbstractObjective, search: FlattestMinimum, bound: SharpnessBound | None = None
) -> CriticalStepSize:
    """The answer of a search, with the lower bound on the sharpness where one is known."""
    bracket, reason = search.sharpness, search.reason
    if bound is not None:
        reason = f"Bottleneck with a general input covariance, lower bound {bound.value:.7g}. {reason}"
        margin = bound.relative_error * bound.value
        closed = bracket.upper - bound.value <= CLOSED * bound.value
        bracket = Bracket(
            bracket.value,
            min(bound.value - margin, bracket.value),
            bracket.upper + margin,
            "computed" if closed else "estimated",
            reason,
        )
    return CriticalStepSize(bracket.reciprocal(2.0, "2 / min sharpness"), bracket, search.theta, reason, search)

"""The flattest minimum of any objective: the top Hessian eigenvalue minimised over the set of minima.

Where the top eigenvalue is multiple it is not differentiable, so a smooth bound takes its place: the p-norm of the
Hessian's spectrum, with ``p`` raised until it is the top eigenvalue to rounding.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from gdmap.bracket import Bracket
from gdmap.engines.random import gaussian_starts
from gdmap.minima.along import Extent, log_spectral_norm, lowered, sharpness_of
from gdmap.minima.critical_points import DENSE_LIMIT, refine_critical_points
from gdmap.minima.kinks import find_kink
from gdmap.minima.sampling import sampled_minima
from gdmap.objectives import AbstractObjective
from gdmap.spectra import sharpness

EXPONENTS = 8.0 * 4.0 ** np.arange(10)
# Changes of chart at most: on the way with the smallest exponent, and for each later one.
TRAVELS, REFINEMENTS = 40, 4
# Above the dense limit a start takes so long that no more than these are made.
LARGE_STARTS = 4
# A search goes on to another chart if the last one changed the sharpness by more than this share.
ON_THE_WAY, IMPROVED = 1e-3, 1e-10
# Starts within this relative distance of the best are said to agree with it.
AGREES = 1e-6
# A search that in its last charts on the way still lost this share each time has not settled.
STILL_FALLING = 1e-2
# A sharpness of this share of the smallest at a start is taken to vanish.
VANISHED = 1e-12
# Ends that cannot be verified, but are flatter by this factor than all that can, tell that something is falling.
LOST = 1e-3


def spectral_height(theta: Any, hessian: Any, settings: Any) -> Any:
    """The logarithm of the p-norm of the Hessian's spectrum; ``settings`` holds ``p``."""
    return log_spectral_norm(hessian, settings[0])


@dataclass(frozen=True, eq=False)
class FlattestMinimum:
    """The answer of `flattest_minimum`.

    Attributes
    ----------
    theta
        The flattest minimum found, a verified global minimum as far as the search can tell.
    sharpness
        Its largest Hessian eigenvalue: an upper bound on the smallest sharpness (status *estimated*: that
        nothing flatter exists is not shown; ``lower`` is 0).
    search
        What every start found: ``first_theta`` (where its search began), ``theta``, ``sharpness``, ``norm`` and
        ``loss`` over ``start``, and the way there, ``history_sharpness`` and ``history_norm`` over
        ``(start, chart)``, with the exponent ``p`` of each chart.
    agreeing
        The number of starts that found this sharpness, to 1e-6.
    degenerate
        Whether the points are degenerate critical points, not verified minima: then nothing is said of stability
        below ``2 / sharpness``.
    falling
        Whether the sharpness was still falling when the search of the best start ended: then the infimum may not
        be attained, or may be zero.
    reason
        The above in words.
    verified
        Whether ``theta`` is a verified minimum; not where it is degenerate or above 1,000 parameters.
    """

    theta: np.ndarray = field(repr=False)
    sharpness: Bracket
    search: xr.Dataset = field(repr=False)
    agreeing: int
    falling: bool
    degenerate: bool
    reason: str
    verified: bool = True


def flattest_minimum(
    objective: AbstractObjective, *, starts: int = 16, seed: int = 0, scale: float = 1.0
) -> FlattestMinimum:
    """Minimise ``lambda_max(H)`` over the global minima of any objective, from many starts (*estimated*).

    Descents from ``starts`` Gaussian starts give minima; those of smallest loss count as global. From each the
    p-norm of the Hessian spectrum is minimised along the set of minima, with ``p`` from 8 to 2e6: in charts
    (tangent coordinates with the normal part solved for by Newton's method), by BFGS, from chart to chart.

    Parameters
    ----------
    objective
        The loss. Up to 1,000 parameters minima are verified with dense Hessians (seconds for tens of parameters,
        minutes for a hundred, cost growing with the fourth power). Above, Hessian-vector products alone serve:
        at most 4 starts, candidates for minima instead of verified ones, and a penalty method moves the two
        flattest of them; the reason says what was and was not shown.
    starts, seed, scale
        Number, seed and standard deviation of the starts; start ``i`` depends on ``(seed, i)`` alone.

    Raises
    ------
    ValueError
        If no start leads to a minimum; the message says what they lead to.
    """
    if objective.dim > DENSE_LIMIT:
        from gdmap.minima.large import flattest_large  # it gives a FlattestMinimum too

        return flattest_large(objective, starts=min(starts, LARGE_STARTS), seed=seed, scale=scale)
    found = sampled_minima(objective, starts, seed, scale)
    extent = Extent.of(found.theta)
    theta, history = flattened(objective, found.theta, found.nullity, extent)
    size = np.maximum(np.linalg.norm(theta, axis=1), extent.length)
    points = refine_critical_points(objective, theta, size)
    ends = np.where(found.is_degenerate | points.is_minimum, np.inf, sharpness_of(objective, theta))
    theta = np.where(points.is_minimum[:, None], points.theta, found.theta)
    theta, values, words = off_kinks(objective, theta, found.theta, extent.length)
    best = int(np.argmin(values))
    bracket = sharpness(objective, theta[best])
    agreeing = int(np.sum(values <= values[best] * (1 + AGREES)))
    told = best if values[best] <= ends.min() else int(np.argmin(ends))
    way = history.sharpness[told][history.exponent == EXPONENTS[0]]
    usual = np.min(np.abs(sharpness_of(objective, gaussian_starts(starts, objective.dim, seed, scale))))
    vanished = values[best] <= VANISHED * usual or ends.min() <= LOST * values[best]
    falling = bool(vanished) or is_falling(way)
    if np.isfinite(ends.min()) and ends.min() < values[best]:
        words += (
            f" {int(np.sum(np.isfinite(ends)))} searches ended at points that could not be verified as minima, "
            f"with sharpness down to {ends.min():.3g}, and are not counted."
        )
    sequence = list(zip(way, history.norm[told], strict=False)) if falling else []
    reason = search_words(values, agreeing, sequence, scale, f"{words} {found.remark}".strip())
    search = xr.Dataset(
        {
            "theta": (("start", "component"), theta),
            "first_theta": (("start", "component"), found.theta, {"long_name": "the minimum the search began at"}),
            "sharpness": ("start", values, {"long_name": "largest Hessian eigenvalue"}),
            "norm": ("start", np.linalg.norm(theta, axis=1), {"long_name": "distance from the origin"}),
            "loss": ("start", [float(objective.value(row)) for row in theta]),
            "history_sharpness": (("start", "chart"), history.sharpness),
            "history_norm": (("start", "chart"), history.norm),
        },
        coords={"exponent": ("chart", history.exponent)},
        attrs={"status": "estimated", "method": reason, "seed": seed, "scale": scale},
    )
    # Zero is never reported: a Hessian that vanishes in floating point is zero to rounding at best.
    smallest = np.finfo(float).eps * float(np.median(history.sharpness[:, 0])) if bracket.value <= 0 else 0.0
    upper = max(bracket.upper, smallest)
    value = max(bracket.value, smallest)
    return FlattestMinimum(
        theta=theta[best],
        sharpness=Bracket(value, 0.0, upper, "estimated", reason),
        search=search,
        agreeing=agreeing,
        falling=falling,
        degenerate=found.is_degenerate,
        verified=not found.is_degenerate,
        reason=reason,
    )


def off_kinks(
    objective: AbstractObjective, theta: np.ndarray, first: np.ndarray, length: float
) -> tuple[np.ndarray, np.ndarray, str]:
    """The ends of searches, or their beginnings where the end lies on a kink; the sharpness; and words about it.

    On a kink the Hessian is one-sided and says nothing of stability. Where the beginning lies on one too, the
    sharpness is infinite.

    Raises
    ------
    ValueError
        If all lie on kinks.
    """
    values = sharpness_of(objective, theta)
    theta = np.array(theta)
    kinked = [lane for lane in range(len(theta)) if lies_on_a_kink(objective, theta[lane], length)]
    if not kinked:
        return theta, values, ""
    lowest = values[kinked].min()
    theta[kinked] = first[kinked]
    values = sharpness_of(objective, theta)
    for lane in kinked:
        if lies_on_a_kink(objective, theta[lane], length):
            values[lane] = np.inf
    if np.all(np.isinf(values)):
        raise ValueError(
            "every minimum found lies on a kink of the loss (as of ReLU), where thresholds from the Hessian do "
            "not apply: sweep the step size with gdmap.sweep, or smooth the loss"
        )
    words = (
        f"In {len(kinked)} searches the way down ended on a kink of the loss, with sharpness down to {lowest:.7g} "
        "beside it, where the Hessian jumps; smooth minima come close to that."
    )
    return theta, values, words


def lies_on_a_kink(objective: AbstractObjective, theta: np.ndarray, length: float) -> bool:
    """Whether a derivative jumps at ``theta``, on the scale of its size or of ``length``."""
    return find_kink(objective, theta, max(float(np.linalg.norm(theta)), length)) is not None


class History(NamedTuple):
    """Sharpness and norm ``(start, chart)`` of a search after every chart, and the exponents used."""

    sharpness: np.ndarray
    norm: np.ndarray
    exponent: np.ndarray


def flattened(
    objective: AbstractObjective, theta: np.ndarray, nullity: np.ndarray, extent: Extent
) -> tuple[np.ndarray, History]:
    """Minima moved to smaller sharpness, row by row, and the way they went."""
    theta = np.array(theta)
    values = sharpness_of(objective, theta)
    best, best_values = theta.copy(), values.copy()
    records = [(values, np.linalg.norm(theta, axis=1), EXPONENTS[0])]
    for stage, exponent in enumerate(EXPONENTS):
        active = np.flatnonzero(nullity > 0)
        for _ in range(REFINEMENTS if stage else TRAVELS):
            if not active.size:
                break
            theta[active] = lowered(
                objective, spectral_height, theta[active], nullity[active], np.array([exponent]), extent
            )
            before = values
            values = sharpness_of(objective, theta)
            better = values < best_values
            best[better], best_values[better] = theta[better], values[better]
            records.append((values, np.linalg.norm(theta, axis=1), exponent))
            goes_on = np.abs(values - before) > (IMPROVED if stage else ON_THE_WAY) * before
            active = active[goes_on[active]]
    sharpness_history, norms, exponents = zip(*records, strict=True)
    return best, History(np.stack(sharpness_history, 1), np.stack(norms, 1), np.array(exponents))


def is_falling(way: np.ndarray) -> bool:
    """Whether the sharpness of one search still fell clearly, chart by chart, when its way was cut short."""
    last = way[-6:]
    return len(way) > TRAVELS and bool(np.all(last[1:] < (1 - STILL_FALLING) * last[:-1]))


def search_words(
    values: np.ndarray, agreeing: int, sequence: list[tuple[float, float]], scale: float, remark: str
) -> str:
    """What the search found, in words; ``sequence`` is (sharpness, norm) on a way that did not end."""
    finite = values[np.isfinite(values)]
    words = (
        f"Flattest of the minima found by {len(values)} searches along the set of minima (starts of standard "
        f"deviation {scale:g}): {agreeing} agree to {AGREES:g}, all lie in "
        f"[{values.min():.7g}, {finite.max():.7g}]."
    )
    if sequence:
        shown = [sequence[k] for k in np.unique(np.linspace(0, len(sequence) - 1, 5).astype(int))]
        steps = ", ".join(f"{height:.3g} at {norm:.3g}" for height, norm in shown)
        words += (
            f" The sharpness was still falling when the search ended (at distances from the origin: {steps}): "
            "minima seem to become flatter without end, which suggests, and does not prove, that no critical "
            "step size exists."
        )
    return f"{words} {remark}".strip()

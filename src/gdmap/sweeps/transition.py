"""Where, along the step size, training stops converging."""

import math
from typing import Literal

import numpy as np
import xarray as xr
from scipy.stats import binomtest

from gdmap.bracket import Bracket
from gdmap.ensembles.tendency import Tendency

CONFIDENCE = 0.95
Undecided = Literal["either", "not converging"]
CONVERGENT = (Tendency.CONVERGED, Tendency.CONVERGING)


def transition_step_size(
    dataset: xr.Dataset,
    undecided: Undecided = "either",
    *,
    confidence: float = CONFIDENCE,
) -> Bracket:
    """The step size at which the share of converging starts falls through one half (`asymptotics`).

    The interval runs from the largest step size at which the share is above one half beyond chance, with
    undecided runs counted as not converging, to the smallest above which it is below one half beyond chance at
    all step sizes, with undecided runs counted as converging (Clopper-Pearson intervals of each share, at
    ``confidence``; step sizes share their starts, and each is judged on its own). So it holds sampling, the
    resolution of the step sizes and what was left undecided. With fewer than six starts nothing is beyond
    chance at 95 %, and the interval is open. The value is the geometric mean of the two step sizes between
    which the share falls below one half for the last time, undecided runs counted as not converging. Status
    *estimated*.

    With ``undecided='not converging'`` it is the transition of the runs that *show* convergence by the horizon.

    Raises
    ------
    TypeError, ValueError
        If ``dataset`` is not the result of `asymptotics`, or for another confidence than a number between 0 and 1.
    """
    if not isinstance(dataset, xr.Dataset) or "tendency" not in dataset or "step_size" not in dataset.dims:
        raise TypeError("transition_step_size takes the result of gdmap.asymptotics over step_size and start")
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise ValueError(f"confidence must be a number between 0 and 1, got {confidence!r}")
    ordered = dataset.sortby("step_size").transpose("step_size", "start", ...)
    etas = ordered["step_size"].values
    tendency = ordered["tendency"].values
    surely = np.isin(tendency, [int(kind) for kind in CONVERGENT])
    if undecided not in ("either", "not converging"):
        raise ValueError(f"undecided must be 'either' or 'not converging', got {undecided!r}")
    perhaps = surely | (tendency == int(Tendency.UNDECIDED)) if undecided == "either" else surely
    number = surely.shape[1]
    above = np.flatnonzero([binomial_interval(k, number, confidence)[0] > 0.5 for k in surely.sum(axis=1)])
    not_below = np.flatnonzero([binomial_interval(k, number, confidence)[1] >= 0.5 for k in perhaps.sum(axis=1)])
    lower = float(etas[above[-1]]) if above.size else 0.0
    next_one = int(not_below[-1]) + 1 if not_below.size else 0
    upper = float(etas[next_one]) if next_one < len(etas) else math.inf
    below, beyond = crossing(etas, surely.mean(axis=1))
    value = math.sqrt(below * beyond) if below > 0 and math.isfinite(beyond) else (below or beyond)
    method = f"share of converging starts falls through 1/2; {number} starts, {len(etas)} step sizes"
    return Bracket(value, min(lower, value), max(upper, value), "estimated", method, confidence)


def binomial_interval(count: int, number: int, confidence: float) -> tuple[float, float]:
    """The Clopper-Pearson interval of a share."""
    ends = binomtest(int(count), number).proportion_ci(confidence, method="exact")
    return float(ends.low), float(ends.high)


def crossing(etas: np.ndarray, share: np.ndarray) -> tuple[float, float]:
    """The last step size with a share of at least one half, and the next one; 0 and infinity outside."""
    reached = np.flatnonzero(share >= 0.5)
    last = int(reached[-1]) if reached.size else -1
    below = float(etas[last]) if last >= 0 else 0.0
    return below, float(etas[last + 1]) if last + 1 < len(etas) else math.inf

"""Where, along the step size, training stops converging."""

import math
from typing import Literal

import numpy as np
import xarray as xr

from gdmap.bracket import Bracket
from gdmap.ensembles.tendency import Tendency

CONFIDENCE = 0.95
RESAMPLES = 2000
Undecided = Literal["either", "not converging"]
CONVERGENT = (Tendency.CONVERGED, Tendency.CONVERGING)


def transition_step_size(
    dataset: xr.Dataset,
    undecided: Undecided = "either",
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Bracket:
    """The step size at which the share of converging starts falls through one half, in a result of `asymptotics`.

    The crossing is the last pair of neighbouring step sizes between which the share falls below one half. The
    interval runs from the lower step size of that pair, with undecided runs counted as not converging, to the
    upper one, with undecided runs counted as converging; both ends are percentiles over bootstrap resamples of the
    starts (which all step sizes share). So it holds sampling, the resolution of the step sizes and what was left
    undecided; the value is the geometric mean of the pair when undecided runs count as not converging. Status
    *estimated*.

    With ``undecided='not converging'`` it is the transition of the runs that *show* convergence by the horizon.

    Infinite, or zero, ends: at the largest step size half of the starts still converge, or at the smallest they
    do not.
    """
    ordered = dataset.sortby("step_size").transpose("step_size", "start", ...)
    etas = ordered["step_size"].values
    tendency = ordered["tendency"].values
    surely = np.isin(tendency, [int(kind) for kind in CONVERGENT])
    if undecided not in ("either", "not converging"):
        raise ValueError(f"undecided must be 'either' or 'not converging', got {undecided!r}")
    perhaps = surely | (tendency == int(Tendency.UNDECIDED)) if undecided == "either" else surely
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, surely.shape[1], (resamples, surely.shape[1]))
    ends = []
    for converging, side in ((surely, 0), (perhaps, 1)):
        shares = converging[:, drawn].mean(axis=2)  # (step sizes, resamples)
        ends.append(np.array([crossing(etas, share)[side] for share in shares.T]))
    outside = (1 - confidence) / 2
    lower = float(np.quantile(ends[0], outside, method="lower"))
    upper = float(np.quantile(ends[1], 1 - outside, method="higher"))
    below, above = crossing(etas, surely.mean(axis=1))
    value = math.sqrt(below * above) if below > 0 and math.isfinite(above) else (below or above)
    sizes = f"{surely.shape[1]} starts, {len(etas)} step sizes"
    method = f"share of converging starts falls through 1/2; bootstrap over {sizes}"
    return Bracket(value, min(lower, value), max(upper, value), "estimated", method, confidence)


def crossing(etas: np.ndarray, share: np.ndarray) -> tuple[float, float]:
    """The last step size with a share of at least one half, and the next one; 0 and infinity outside."""
    reached = np.flatnonzero(share >= 0.5)
    last = int(reached[-1]) if reached.size else -1
    below = float(etas[last]) if last >= 0 else 0.0
    return below, float(etas[last + 1]) if last + 1 < len(etas) else math.inf

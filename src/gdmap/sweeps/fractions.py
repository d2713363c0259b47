"""Shares of the fates over the starts, with confidence intervals."""

from enum import IntEnum

import numpy as np
import xarray as xr
from scipy.stats import binomtest

from gdmap.bracket import Bracket
from gdmap.ensembles.fates import Fate

CONFIDENCE = 0.95


def fate_fractions(fate: xr.DataArray, confidence: float = CONFIDENCE) -> xr.Dataset:
    """The share of every fate over the dimension ``start``, with its Wilson score interval.

    Returns the variables ``fraction``, ``fraction_lower`` and ``fraction_upper`` over the other dimensions
    and ``fate_name``. Status *estimated*: the starts are a sample of their law; each interval holds at the
    stated confidence on its own, not jointly, and the starts are shared between step sizes.
    """
    return shares(fate, Fate, "fate_name", confidence)


def shares(flags: xr.DataArray, kinds: type[IntEnum], dim: str, confidence: float = CONFIDENCE) -> xr.Dataset:
    """The share of every kind of a flag variable over ``start``, as in `fate_fractions`; kinds over ``dim``."""
    number = flags.sizes["start"]
    names = [member.name.lower() for member in kinds]
    counts = xr.concat([(flags == int(member)).sum("start") for member in kinds], dim=dim)
    counts = counts.assign_coords({dim: names}).transpose(..., dim)
    intervals = {
        count: binomtest(count, number).proportion_ci(confidence, method="wilson")
        for count in map(int, np.unique(counts.values))
    }
    lower = np.vectorize(lambda count: float(intervals[count].low), otypes=[float])(counts.values)
    upper = np.vectorize(lambda count: float(intervals[count].high), otypes=[float])(counts.values)
    how = {
        "status": "estimated",
        "confidence": confidence,
        "method": f"Wilson score interval over {number} starts, pointwise",
        "units": "1",
    }
    fractions = xr.Dataset(
        {
            "fraction": counts / number,
            "fraction_lower": (counts.dims, lower),
            "fraction_upper": (counts.dims, upper),
        }
    )
    for name, long_name in (
        ("fraction", "share of the starts"),
        ("fraction_lower", "lower end of its confidence interval"),
        ("fraction_upper", "upper end of its confidence interval"),
    ):
        fractions[name].attrs = {"long_name": long_name, **how}
    return fractions


def share_of(count: int, number: int, what: str = "starts", confidence: float = CONFIDENCE) -> Bracket:
    """The share ``count / number`` with its Wilson score interval (status *estimated*)."""
    if not number:
        return Bracket(0.0, 0.0, 1.0, "estimated", f"no {what}", confidence)
    ends = binomtest(int(count), int(number)).proportion_ci(confidence, method="wilson")
    share = count / number
    method = f"{count} of {number} {what}, Wilson score interval"
    return Bracket(
        share, min(float(ends.low), share), max(float(ends.high), share), "estimated", method, confidence
    )


def observed_transition(dataset: xr.Dataset) -> tuple[float, float]:
    """The largest step size at which some start reached a minimum, and the next one above it in the sweep.

    ``-inf`` for the first if no start did at any step size, ``inf`` for the second if some did at the largest.
    """
    ordered = dataset.sortby("step_size")
    step_size = ordered["step_size"].values
    others = [dim for dim in ordered["fate"].dims if dim != "step_size"]
    reached = (ordered["fate"] == int(Fate.MINIMUM)).any(others).values
    if not reached.any():
        return -np.inf, float(step_size[0])
    last = int(np.flatnonzero(reached)[-1])
    return float(step_size[last]), float(step_size[last + 1]) if last + 1 < len(step_size) else np.inf

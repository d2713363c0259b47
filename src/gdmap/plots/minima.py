"""Hessian eigenvalues over the set of minima, beside the stability limit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

# A sharpness this close to 2 / eta, relative to it, is drawn as neither stable nor unstable.
AT_LIMIT = 1e-6
# Places that differ by less than this share of their size are drawn as the same.
SAME = 1e-3


def plot_minima(
    dataset: xr.Dataset, step_size: float | None = None, title: str = "", *, against: str = "norm"
) -> Figure:
    """Eigenvalues at many minima against their distance from the origin, with the line ``2 / eta``.

    Minima whose largest eigenvalue lies below the line are stable for that step size; those on the line, to one
    part in a million, are marked as being at the limit. Zero eigenvalues (the ``nullity``) are not drawn.

    Parameters
    ----------
    dataset
        The result of `gdmap.minima_spectra` or `gdmap.stable_minima`.
    step_size
        ``eta``; by default the one of the dataset, if it has one.
    title
        A line above the picture.
    against
        The horizontal axis: ``'norm'``, or ``'minimum'`` for the position along a curve of minima.
    """
    for needed in ("eigenvalue", "sharpness", "norm"):
        if needed not in dataset:
            raise ValueError(f"plot_minima draws the result of gdmap.minima_spectra: this dataset has no {needed}")
    if against not in ("norm", "minimum"):
        raise ValueError(f"against must be 'norm' or 'minimum', got {against!r}")
    eta = dataset.attrs.get("step_size") if step_size is None else float(step_size)
    place = dataset["norm"].values if against == "norm" else np.arange(dataset.sizes["minimum"])
    eigenvalues = dataset["eigenvalue"].transpose("minimum", "index").values
    top = dataset["sharpness"].values
    if "nullity" in dataset:
        nullity = dataset["nullity"].values
        zero = np.abs(eigenvalues).argsort(axis=1).argsort(axis=1) < nullity[:, None]
    else:
        zero = np.abs(eigenvalues) <= 1e-10 * top[:, None]
        nullity = zero.sum(axis=1)
    figure = Figure(figsize=(6.6, 4.4), layout="constrained")
    axes = figure.subplots()
    others = ~zero
    others[:, 0] = False
    rows, _ = np.nonzero(others)
    if rows.size:
        axes.plot(place[rows], eigenvalues[others], ".", ms=4, color="#56B4E9", label="other non-zero eigenvalues")
    if eta is None:
        axes.plot(place, top, "o", ms=4, color="#0072B2", label="sharpness (largest eigenvalue)")
    else:
        limit = 2 / eta
        at_limit = np.abs(top - limit) <= AT_LIMIT * limit
        stable = ~at_limit & (top < limit)
        unstable = ~at_limit & ~stable
        for chosen, colour, words in ((stable, "#0072B2", "stable"), (unstable, "#D55E00", "unstable")):
            if chosen.any():
                axes.plot(place[chosen], top[chosen], "o", ms=4, color=colour, label=f"sharpness, {words}")
        axes.axhline(limit, color="black", ls="--", lw=1.2, label=f"2 / step size = {limit:.4g}")
        if at_limit.any():
            axes.plot(
                place[at_limit],
                top[at_limit],
                "o",
                ms=7,
                color="#009E73",
                zorder=3,
                label="sharpness, at the limit",
            )
    positive = eigenvalues[~zero]
    if positive.size and positive.min() > 0 and positive.max() > 30 * positive.min():
        axes.set_yscale("log")
    else:
        seen = np.append(positive, [] if eta is None else 2 / eta)
        widen(axes.set_ylim, seen)
    if against == "minimum":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(place) == 1:
            axes.set_xticks([0])
            axes.set_xlim(-0.5, 0.5)
    else:
        widen(axes.set_xlim, place)
    if against == "norm" and place.min() > 0 and place.max() > 30 * place.min():
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(
        "distance of the minimum from the origin" if against == "norm" else "position along the minima"
    )
    axes.set_ylabel("Hessian eigenvalue")
    axes.grid(alpha=0.25, linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    note = caption(nullity)
    axes.set_title(f"{title}\n{note}" if title else note, fontsize="small")
    return figure


def widen(set_limits: Callable[..., Any], values: np.ndarray) -> None:
    """Limits from zero to twice the value where all values are the same but for rounding."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    size = max(abs(low), abs(high))
    if high - low <= SAME * size:
        set_limits((min(0.0, 2 * low), max(0.0, 2 * high)) if size > 0 else (-1.0, 1.0))


def caption(nullity: np.ndarray) -> str:
    """How many minima are drawn and how many zero eigenvalues are not."""
    many, least, most = len(nullity), nullity.min(), nullity.max()
    minima = "1 minimum" if many == 1 else f"{many} minima"
    if most == 0:
        return minima
    count = f"{most}" if least == most else f"{least} to {most}"
    noun = "zero eigenvalue" if most == 1 else "zero eigenvalues"
    return f"{minima}, {'with' if many == 1 else 'each with'} {count} {noun} (not shown)"

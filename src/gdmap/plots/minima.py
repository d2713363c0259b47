"""Hessian eigenvalues over the set of minima, beside the stability limit."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter


def plot_minima(
    dataset: xr.Dataset, step_size: float | None = None, title: str = "", *, against: str = "norm"
) -> Figure:
    """Eigenvalues at many minima against their distance from the origin, with the line ``2 / eta``.

    Minima whose largest eigenvalue lies below the line are stable for that step size.

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
    zero = np.abs(eigenvalues) <= 1e-10 * top[:, None]
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
        stable = top < 2 / eta
        for chosen, colour, words in ((stable, "#0072B2", "stable"), (~stable, "#D55E00", "unstable")):
            if chosen.any():
                axes.plot(place[chosen], top[chosen], "o", ms=4, color=colour, label=f"sharpness, {words}")
        axes.axhline(2 / eta, color="black", ls="--", lw=1.2, label=f"2 / step size = {2 / eta:.4g}")
    positive = eigenvalues[~zero]
    if positive.size and positive.min() > 0 and positive.max() > 30 * positive.min():
        axes.set_yscale("log")
    if against == "norm" and place.min() > 0 and place.max() > 30 * place.min():
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(
        "distance of the minimum from the origin" if against == "norm" else "position along the minima"
    )
    axes.set_ylabel("Hessian eigenvalue")
    axes.grid(alpha=0.25, linewidth=0.6)
    nullity = dataset["nullity"].values if "nullity" in dataset else zero.sum(axis=1)
    count = f"{nullity.min()}" if nullity.min() == nullity.max() else f"{nullity.min()} to {nullity.max()}"
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    note = f"{dataset.sizes['minimum']} minima, {count} zero eigenvalues each not shown"
    axes.set_title(f"{title}\n{note}" if title else note, fontsize="small")
    return figure

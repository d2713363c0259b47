"""One orbit: loss and gradient norm above, sharpness beside the stability limit below."""

import textwrap
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

LOSS, GRADIENT, SHARPNESS, LIMIT, DIVERGED = "#0072B2", "#E69F00", "#009E73", "black", "#D55E00"
# A sharpness whose values spread by more than this factor is drawn on a logarithmic scale.
WIDE = 300.0
# Of a diverged orbit, values beyond this multiple of the usual ones leave the panel, unless they are so large a
# share of all values that nothing usual is left to see.
RUNAWAY, RUNAWAY_SHARPNESS = 1e6, 5.0
FEW = 1 / 4
HUGE = 1e100
# The step axis goes on after divergence by this share, which leaves room for the words beside the line.
AFTER = 0.08


def plot_trajectory(dataset: xr.Dataset, title: str = "") -> Figure:
    """Progressive sharpening and the edge of stability in one picture.

    Above the loss and the gradient norm on logarithmic scales (the loss on a linear one where it is negative
    somewhere), below the sharpness with its bracket as a band and the dashed stability limit, ``2 / eta`` for
    gradient descent. What was not recorded is left out. Where the orbit diverged, the step is marked, the
    picture ends soon after it, and the last values before it leave the panels if they are few.

    Parameters
    ----------
    dataset
        The result of `gdmap.trajectory` with at least one of loss, gradient norm and sharpness.
    title
        A title above all panels.
    """
    above = [name for name in ("loss", "gradient_norm") if name in dataset]
    below = "sharpness" in dataset
    if "step" not in dataset.dims or not (above or below):
        raise ValueError(
            "plot_trajectory draws the result of gdmap.trajectory with record= at least one of 'loss', "
            "'gradient_norm' and 'sharpness'"
        )
    rows = bool(above) + below
    figure = Figure(figsize=(7.2, 1.0 + 2.6 * rows), layout="constrained")
    panels = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    for axes in panels:
        axes.grid(alpha=0.25, linewidth=0.6)
    if above:
        draw_descent(panels[0], dataset, above)
    if below:
        draw_sharpness(panels[-1], dataset)
    for axes in panels:
        draw_divergence(axes, dataset)
    panels[-1].set_xlabel("step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    first, last = dataset["step"].values[[0, -1]]
    when = divergence(dataset)
    if when is not None:
        last = when + AFTER * (when - first)
    if first < last:
        panels[-1].set_xlim(first, last)
    if title:
        figure.suptitle(textwrap.fill(title, 85), fontsize="small")
    return figure


def draw_descent(axes: Axes, dataset: xr.Dataset, names: list[str]) -> None:
    """Loss on the left axis and gradient norm on the right one, each in its colour."""
    labels = {"loss": "loss", "gradient_norm": "gradient norm"}
    colours = {"loss": LOSS, "gradient_norm": GRADIENT}
    for name in names:
        panel: Any = axes
        if name != names[0]:
            panel = axes.twinx()
            # The loss in front: its spikes are what matters.
            axes.set_zorder(panel.get_zorder() + 1)
            axes.patch.set_visible(False)
        drawn = finite_or_nan(dataset[name])
        positive = not np.any(drawn < 0)
        if positive:
            drawn[drawn == 0] = np.nan
        values = drawn[np.isfinite(drawn)]
        shown = without_runaways(dataset, values, RUNAWAY)
        set_scale(panel, shown, logarithmic=positive, clipped=shown.size < values.size)
        panel.plot(dataset["step"], drawn, color=colours[name], lw=1.2, label=labels[name], **marker(dataset))
        panel.set_ylabel(labels[name], color=colours[name])
        panel.tick_params(axis="y", which="both", colors=colours[name])


def draw_sharpness(axes: Axes, dataset: xr.Dataset) -> None:
    """The sharpness with its bracket and the stability limit."""
    step = dataset["step"].values
    value = finite_or_nan(dataset["sharpness"])
    limit = np.broadcast_to(
        dataset["stability_limit"].values if "stability_limit" in dataset else np.nan, step.shape
    )
    known = np.isfinite(value)
    # Of the limit only what stands beside a sharpness: a diverged orbit has none for most of its steps.
    limits = limit[known & np.isfinite(limit)]
    shown = without_runaways(dataset, value[known], RUNAWAY_SHARPNESS)
    seen = np.concatenate([shown, limits])
    wide = seen.size > 0 and seen.min() > 0 and seen.max() > WIDE * seen.min()
    set_scale(axes, seen, logarithmic=wide, clipped=bool(shown.size < known.sum()))
    if "sharpness_lower" in dataset and "sharpness_upper" in dataset:
        lower, upper = (finite_or_nan(dataset[name]) for name in ("sharpness_lower", "sharpness_upper"))
        axes.fill_between(step, lower, upper, color=SHARPNESS, alpha=0.25, lw=0)
    axes.plot(step, value, color=SHARPNESS, lw=1.3, label="sharpness", **marker(dataset))
    if np.any(np.isfinite(limit)):
        of_step_size = str(dataset["stability_limit"].attrs.get("method")).startswith("2 / step size")
        what = "2 / step size" if of_step_size else "stability limit"
        constant = np.ptp(limit) == 0
        label = f"{what} = {limit[0]:.5g}" if constant else what
        axes.plot(step, limit, color=LIMIT, ls="--", lw=1.2, label=label)
    axes.set_ylabel("sharpness\n(largest Hessian eigenvalue)")
    axes.legend(
        frameon=False,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=2,
        borderaxespad=0.1,
        fontsize="small",
    )


def finite_or_nan(column: xr.DataArray) -> np.ndarray:
    """The values with those that cannot be drawn replaced by NaN."""
    return np.where(np.isfinite(column.values), column.values, np.nan)


def without_runaways(dataset: xr.Dataset, values: np.ndarray, factor: float) -> np.ndarray:
    """The values to show: of a diverged orbit, without those far above the usual ones if these are few."""
    if "diverged_at" not in dataset.attrs or not values.size:
        return values
    magnitude = np.abs(values)
    kept = values[magnitude <= factor * float(np.median(magnitude))]
    return kept if values.size - kept.size < FEW * values.size else values


def set_scale(axes: Axes, values: np.ndarray, *, logarithmic: bool, clipped: bool) -> None:
    """The scale of the vertical axis and, where values leave the panel or are huge, its limits; before drawing."""
    if logarithmic:
        axes.set_yscale("log")
    if not values.size:
        return
    low, high = float(values.min()), float(values.max())
    largest = max(abs(low), abs(high))
    if logarithmic:
        # Limits and ticks by hand: those of values near the largest number overflow.
        ends = np.log10([low, high])
        margin = max(0.05 * float(np.ptp(ends)), 0.3)
        ends = np.clip(ends + np.array([-margin, margin]), -307, 308.25)
        if clipped or largest > HUGE:
            axes.set_ylim(*10**ends)
        if largest > HUGE:
            decades = MaxNLocator(6, integer=True).tick_values(*ends)
            axes.set_yticks(10.0 ** decades[(decades >= ends[0]) & (decades <= ends[1])])
            axes.yaxis.set_minor_locator(NullLocator())
    elif not clipped and largest > WIDE**2 * float(np.median(np.abs(values))) > 0:
        # A tenth of the panel for what is near zero, so that the ticks there stay apart.
        threshold = float(np.abs(values[values != 0]).min())
        axes.set_yscale(
            "symlog", linthresh=threshold, linscale=0.1 * float(np.log10(largest) - np.log10(threshold))
        )
        locator: Any = axes.yaxis.get_major_locator()
        locator.set_params(numticks=6)
    elif clipped:
        margin = 0.05 * (high - min(low, 0.0))
        axes.set_ylim(min(low, 0.0) - margin, high + margin)


def divergence(dataset: xr.Dataset) -> int | None:
    """The step of divergence if it lies within the steps of the dataset."""
    when = dataset.attrs.get("diverged_at")
    first, last = dataset["step"].values[[0, -1]]
    return int(when) if when is not None and first < when <= last else None


def draw_divergence(axes: Axes, dataset: xr.Dataset) -> None:
    """A line at the step of divergence, if there is one, with words on the empty side."""
    when = divergence(dataset)
    if when is not None:
        axes.axvline(when, color=DIVERGED, lw=1.2, ls=":")
        axes.annotate(
            f"diverged at step {when}",
            (when, 0.96),
            xycoords=axes.get_xaxis_transform(),
            xytext=(3, 0),
            textcoords="offset points",
            rotation=90,
            va="top",
            color=DIVERGED,
            fontsize="small",
        )


def marker(dataset: xr.Dataset) -> dict[str, Any]:
    """Markers where there are so few points that a line hides them."""
    when = divergence(dataset)
    steps = dataset["step"].values
    return {"marker": "o", "ms": 3} if np.sum(steps <= (steps[-1] if when is None else when)) <= 40 else {}

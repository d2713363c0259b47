"""One orbit: loss and gradient norm above, sharpness beside the stability limit below."""

import textwrap
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LOSS, GRADIENT, SHARPNESS, LIMIT, DIVERGED = "#0072B2", "#E69F00", "#009E73", "black", "#D55E00"
# A sharpness whose values spread by more than this factor is drawn on a logarithmic scale.
WIDE = 300.0
# Of a diverged orbit, values beyond this multiple of the usual ones leave the panel.
RUNAWAY, RUNAWAY_SHARPNESS = 1e6, 5.0


def plot_trajectory(dataset: xr.Dataset, title: str = "") -> Figure:
    """Progressive sharpening and the edge of stability in one picture.

    Above the loss and the gradient norm on logarithmic scales (the loss on a linear one where it is negative
    somewhere), below the sharpness with its bracket as a band and the dashed stability limit, ``2 / eta`` for
    gradient descent. What was not recorded is left out. Where the orbit diverged, the step is marked and the
    last values before it leave the panels.

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
    panels[-1].set_xlim(dataset["step"].values[[0, -1]])
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
        if not np.any(drawn < 0):
            panel.set_yscale("log")
            drawn[drawn == 0] = np.nan
        panel.plot(dataset["step"], drawn, color=colours[name], lw=1.2, label=labels[name], **marker(dataset))
        keep_in_view(panel, dataset, drawn[np.isfinite(drawn)], RUNAWAY)
        panel.set_ylabel(labels[name], color=colours[name])
        panel.tick_params(axis="y", which="both", colors=colours[name])


def draw_sharpness(axes: Axes, dataset: xr.Dataset) -> None:
    """The sharpness with its bracket and the stability limit."""
    step = dataset["step"].values
    value = finite_or_nan(dataset["sharpness"])
    limit = np.broadcast_to(
        dataset["stability_limit"].values if "stability_limit" in dataset else np.nan, step.shape
    )
    seen = np.concatenate([value[np.isfinite(value)], limit[np.isfinite(limit)]])
    seen = seen[seen <= keep_in_view(axes, dataset, seen, RUNAWAY_SHARPNESS)]
    if seen.size and seen.min() > 0 and seen.max() > WIDE * seen.min():
        axes.set_yscale("log")
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
    axes.legend(frameon=False, loc="best")


def finite_or_nan(column: xr.DataArray) -> np.ndarray:
    """The values with those that cannot be drawn replaced by NaN."""
    return np.where(np.isfinite(column.values), column.values, np.nan)


def keep_in_view(axes: Axes, dataset: xr.Dataset, values: np.ndarray, factor: float) -> float:
    """Let values far above the usual ones leave the panel if the orbit diverged; the largest value in view."""
    if "diverged_at" not in dataset.attrs or not values.size:
        return np.inf
    largest = factor * float(np.median(np.abs(values)))
    if 0 < largest < values.max():
        low = float(values.min())
        axes.set_ylim(low / 2 if axes.get_yscale() == "log" else min(low, 0.0) - 0.05 * largest, largest)
        return largest
    return np.inf


def draw_divergence(axes: Axes, dataset: xr.Dataset) -> None:
    """A line at the step of divergence, if there is one."""
    when = dataset.attrs.get("diverged_at")
    if when is not None:
        axes.axvline(when, color=DIVERGED, lw=1.2, ls=":")
        axes.text(
            when,
            0.9,
            f" diverged at step {when} ",
            transform=axes.get_xaxis_transform(),
            ha="right" if when > dataset["step"].values[-1] / 2 else "left",
            color=DIVERGED,
            fontsize="small",
        )


def marker(dataset: xr.Dataset) -> dict[str, Any]:
    """Markers where there are so few points that a line hides them."""
    return {"marker": "o", "ms": 3} if dataset.sizes["step"] <= 40 else {}

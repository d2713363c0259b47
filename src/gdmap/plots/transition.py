"""Fates and gradient norms against the step size, with the predicted critical step size."""

import textwrap
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gdmap.bracket import Bracket
from gdmap.ensembles import Fate
from gdmap.stability import CriticalStepSize

# Okabe & Ito's palette: distinguishable with colour-blind eyes.
COLOURS = {
    "minimum": "#0072B2",
    "saddle": "#CC79A7",
    "periodic": "#E69F00",
    "quasiperiodic": "#F0E442",
    "chaotic": "#56B4E9",
    "diverged": "#D55E00",
    "marginal": "#009E73",
    "bounded": "#000000",
    "undecided": "#808080",
}
MARKERS = dict(zip(COLOURS, "osD<>^vP.", strict=True))


def plot_transition(
    dataset: xr.Dataset, critical: CriticalStepSize | Bracket | None = None, title: str = ""
) -> Figure:
    """Share of every fate with its interval, and the final gradient norm, against the step size.

    The lower panels show median and quartiles over the starts that did not diverge.

    Parameters
    ----------
    dataset
        The result of `gdmap.sweep`; one column of panels for each scale.
    critical
        The predicted critical step size, drawn as a line (and a band where its bracket is open).
    title
        A title above all panels.
    """
    if "step_size" not in dataset.dims:
        raise ValueError("plot_transition draws the result of gdmap.sweep: this dataset has no step_size")
    if isinstance(critical, CriticalStepSize):
        critical = critical.step_size
    scales = dataset["scale"].values if "scale" in dataset.dims else [None]
    figure = Figure(figsize=(1.2 + 5.0 * len(scales), 6.2), layout="constrained")
    panels = figure.subplots(2, len(scales), sharex=True, sharey="row", squeeze=False)
    ordered = dataset.sortby("step_size")
    for column, scale in enumerate(scales):
        chosen = ordered if scale is None else ordered.sel(scale=scale)
        top, bottom = panels[:, column]
        draw_fractions(top, chosen)
        draw_gradient_norms(bottom, chosen)
        for axes in (top, bottom):
            draw_prediction(axes, critical)
            axes.grid(alpha=0.25, linewidth=0.6)
        number = dataset.sizes["start"]
        top.set_title(f"{number} starts" + ("" if scale is None else f" of standard deviation {scale:g}"))
        bottom.set_xlabel("step size")
    panels[0, 0].set_ylabel("share of starts (95 % interval)")
    panels[1, 0].set_ylabel("final gradient norm\n(median and quartiles,\nstarts that did not diverge)")
    handles: dict[str, Any] = {}
    for axes in panels[0]:
        handles.update(
            {str(label): handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        )
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=3 if len(scales) == 1 else 5,
        frameon=False,
    )
    if title:
        figure.suptitle(textwrap.fill(title, 62 * len(scales)), fontsize="small")
    return figure


def draw_fractions(axes: Axes, chosen: xr.Dataset) -> None:
    """One line with a shaded interval for every fate that occurs."""
    step_size = chosen["step_size"].values
    for name, colour in COLOURS.items():
        one = chosen.sel(fate_name=name)
        if float(one["fraction"].max()) > 0:
            axes.fill_between(
                step_size, one["fraction_lower"], one["fraction_upper"], color=colour, alpha=0.2, lw=0
            )
            axes.plot(step_size, one["fraction"], color=colour, marker=MARKERS[name], ms=4, lw=1.4, label=name)
    axes.set_ylim(-0.03, 1.03)


def draw_gradient_norms(axes: Axes, chosen: xr.Dataset) -> None:
    """Median and quartiles of the final gradient norm over the starts that did not diverge, on a log scale."""
    step_size = chosen["step_size"].values
    quartiles = bounded_gradient_norms(chosen)
    some = np.isfinite(quartiles[:, 1])
    axes.set_yscale("log")
    if some.any():
        low, median, high = np.maximum(quartiles[some], 1e-17).T
        axes.fill_between(step_size[some], low, high, color="black", alpha=0.15, lw=0)
        axes.plot(step_size[some], median, color="black", marker="o", ms=4, lw=1.4)
    if not some.all():
        for position in step_size[~some]:
            axes.plot(
                position, 0.04, marker="x", color=COLOURS["diverged"], ms=5, transform=axes.get_xaxis_transform()
            )
        axes.text(
            0.98,
            0.08,
            "x: all starts diverged",
            transform=axes.transAxes,
            ha="right",
            fontsize="small",
            color=COLOURS["diverged"],
        )


def bounded_gradient_norms(chosen: xr.Dataset) -> np.ndarray:
    """Quartiles of the final gradient norm over the starts that did not diverge, shape ``(step_size, 3)``."""
    bounded = chosen["gradient_norm"].where(chosen["fate"] != int(Fate.DIVERGED))
    norms = bounded.transpose("step_size", "start").values
    return np.array(
        [
            np.percentile(row[~np.isnan(row)], [25, 50, 75]) if not np.isnan(row).all() else [np.nan] * 3
            for row in norms
        ]
    )


def draw_prediction(axes: Axes, critical: Bracket | None) -> None:
    """The predicted critical step size as a dashed line, with a band where its bracket is open."""
    if critical is None or not np.isfinite(critical.value):
        return
    if critical.relative_width > 1e-6 and np.isfinite(critical.upper):
        axes.axvspan(critical.lower, critical.upper, color="black", alpha=0.08, lw=0)
    label = f"critical step size {critical.value:.5g} ({critical.status})"
    axes.axvline(critical.value, color="black", ls="--", lw=1.2, label=label)

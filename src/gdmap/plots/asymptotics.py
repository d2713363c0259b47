"""What training to a finite horizon shows, against the step size."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gdmap.bracket import Bracket
from gdmap.ensembles import Tendency, tendency_names

# Okabe & Ito's palette: distinguishable with colour-blind eyes.
COLOURS = {
    "converged": "#0072B2",
    "converging": "#56B4E9",
    "periodic": "#E69F00",
    "sustained": "#CC79A7",
    "unstable": "#F0E442",
    "diverged": "#D55E00",
    "undecided": "#808080",
}
# Ratios above are drawn at the upper edge.
HIGHEST_RATIO = 2.0


def plot_asymptotics(
    datasets: xr.Dataset | Mapping[str, xr.Dataset],
    transitions: Bracket | Sequence[Bracket] = (),
    limits: float | Sequence[float] = (),
) -> Figure:
    """Shares of the tendencies, asymptotic gradient norms and sharpness ratios of `asymptotics`, by step size.

    Parameters
    ----------
    datasets
        The result of `asymptotics`, or several by title: one column of panels each.
    transitions
        For each dataset (or the one) the transition (`gdmap.transition_step_size`): its interval is shaded.
    limits
        For each dataset a step size to be marked, such as 2 / (smallest sharpness found).
    """
    named = {"": datasets} if isinstance(datasets, xr.Dataset) else dict(datasets)
    if not all(isinstance(one, xr.Dataset) and "tendency" in one for one in named.values()):
        raise TypeError("plot_asymptotics draws the result of gdmap.asymptotics, or several by title")
    transitions = [transitions] if isinstance(transitions, Bracket) else transitions
    limits = [limits] if isinstance(limits, (int, float)) else limits
    for given, what in ((transitions, "transitions"), (limits, "limits")):
        if given and len(given) != len(named):
            raise ValueError(f"{what} holds {len(given)} entries for {len(named)} datasets: give one for each")
    figure = Figure(figsize=(1.4 + 4.0 * len(named), 8.0), layout="constrained")
    rows = 3 if all("sharpness_ratio" in one for one in named.values()) else 2
    panels = figure.subplots(rows, len(named), sharex="col", sharey="row", squeeze=False)
    for column, (title, dataset) in enumerate(named.items()):
        ordered = dataset.sortby("step_size")
        draw_shares(panels[0, column], ordered)
        draw_levels(panels[1, column], ordered, "gradient_norm")
        if rows == 3:
            draw_ratios(panels[2, column], ordered)
        for axes in panels[:, column]:
            mark(axes, transitions[column] if transitions else None, limits[column] if limits else None)
            axes.set_xscale("log")
            axes.grid(alpha=0.25, linewidth=0.6)
        panels[0, column].set_title(title, fontsize="medium")
        panels[-1, column].set_xlabel("step size")
    panels[0, 0].set_ylabel("share of starts (95 % interval)")
    panels[1, 0].set_ylabel("asymptotic gradient norm\n(each start; median)")
    if rows == 3:
        panels[2, 0].set_ylabel("step size x sharpness / 2\nat the end of each run")
    handles: dict[str, Any] = {}
    for axes in panels.flat:
        handles |= {str(label): handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=2 if len(named) == 1 else 4,
        frameon=False,
    )
    return figure


def draw_shares(axes: Axes, dataset: xr.Dataset) -> None:
    """One line for every tendency that occurs, its interval where the share is not 0; and all that converge."""
    step_size = dataset["step_size"].values
    for name, colour in COLOURS.items():
        one = dataset.sel(tendency_name=name)
        some = one["share"].values > 0
        if some.any():
            axes.fill_between(
                step_size, one["share_lower"], one["share_upper"], where=some, color=colour, alpha=0.15, lw=0
            )
            axes.plot(step_size, one["share"], color=colour, marker="o", ms=3.5, lw=1.4, label=name)
    both = dataset["share"].sel(tendency_name=["converged", "converging"]).sum("tendency_name")
    axes.plot(step_size, both, color="black", lw=1, ls="-.", label="converged or converging")
    axes.set_ylim(-0.03, 1.03)


def draw_levels(axes: Axes, dataset: xr.Dataset, variable: str) -> None:
    """The values of all starts as points in the colour of their tendency, and the median of those not diverged."""
    draw_points(axes, dataset, variable)
    values = dataset[variable].where(dataset["tendency"] != int(Tendency.DIVERGED)).transpose("step_size", "start")
    some = np.isfinite(values.values).any(axis=1)
    median = np.nanmedian(values.values[some], axis=1)
    axes.plot(dataset["step_size"].values[some], np.maximum(median, 1e-17), color="black", lw=1.2, label="median")
    axes.set_yscale("log")
    if not some.all():
        axes.plot(
            dataset["step_size"].values[~some],
            np.full(int((~some).sum()), 0.95),
            "x",
            color=COLOURS["diverged"],
            ms=5,
            transform=axes.get_xaxis_transform(),
            label="all diverged",
        )


def draw_ratios(axes: Axes, dataset: xr.Dataset) -> None:
    """Sharpness ratios with the limit of stability at 1; those above the panel as triangles at its edge."""
    draw_points(axes, dataset, "sharpness_ratio")
    axes.axhline(1, color="black", ls=":", lw=1.2, label="limit of stability")
    values = dataset["sharpness_ratio"].transpose("step_size", "start").values
    top = float(np.nanmax(np.append(values[values <= HIGHEST_RATIO], 1.0)))
    above = np.nansum(values > HIGHEST_RATIO, axis=1) > 0
    axes.set_ylim(0, 1.15 * top)
    if above.any():
        step_size = dataset["step_size"].values[above]
        axes.plot(step_size, np.full(len(step_size), 1.1 * top), "^", color="black", ms=5, label="some above")


def draw_points(axes: Axes, dataset: xr.Dataset, variable: str) -> None:
    """The values of all starts that did not diverge, coloured by tendency."""
    names = tendency_names(dataset)
    step_size = np.broadcast_to(dataset["step_size"].values[:, None], names.shape)
    values = dataset[variable].transpose("step_size", "start").values
    for name, colour in COLOURS.items():
        chosen = (names == name) & np.isfinite(values)
        if name != "diverged" and chosen.any():
            axes.plot(
                step_size[chosen], np.maximum(values[chosen], 1e-17), "o", ms=3.5, mew=0, alpha=0.6, color=colour
            )


def mark(axes: Axes, transition: Bracket | None, limit: float | None) -> None:
    """The interval of the transition as a band, a limit as a dashed line."""
    if transition is not None and np.isfinite(transition.upper) and transition.lower > 0:
        axes.axvspan(
            transition.lower, transition.upper, color="black", alpha=0.12, lw=0, label="transition (95 %)"
        )
    if limit is not None and np.isfinite(limit):
        axes.axvline(limit, color="black", ls="--", lw=1.2, label="2 / smallest sharpness found")

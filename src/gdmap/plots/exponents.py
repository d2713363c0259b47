"""Exponents with their error bars, and who can end at which minimum."""

import itertools
from collections.abc import Iterator

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, StrMethodFormatter

# In the order of the legend; the last one is hatched.
KINDS = {
    "GD- and SGD-stable": "#009E73",
    "GD-stable only": "#0072B2",
    "SGD-stable only": "#D55E00",
    "neither": "#BBBBBB",
    "undecided": "#FFFFFF",
}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MOST_PANELS = 12
MOST_LABELS = 16
SUFFIXES = ("", "_lower", "_upper")


def plot_stable_sets(dataset: xr.Dataset, title: str = "", *, against: str = "minimum") -> Figure:
    """Which minima of a family gradient descent and SGD can end in, as bands in colour.

    A row for each step size (or, where there is one step size, for each batch size), a panel for everything else.
    Where one of the two verdicts is undecided the band is hatched. Each minimum reaches half-way to the next.

    Parameters
    ----------
    dataset
        The result of `gdmap.exponents.stable_sets`.
    title
        A line above the picture.
    against
        The horizontal axis: ``'minimum'``, the position in the family; ``'norm'``, the distance from the origin;
        or the name of a variable of the dataset with one number for each minimum.

    Raises
    ------
    ValueError
        For a dataset without these verdicts, an axis that is none, or more than 12 panels.
    """
    for needed in ("gd_stability", "sgd_stability"):
        if needed not in dataset:
            raise ValueError(
                f"plot_stable_sets draws the result of gdmap.exponents.stable_sets: this dataset has no {needed}"
            )
    place, label = places(dataset, against)
    order = np.argsort(place, kind="stable")
    edges = cell_edges(place[order])
    row_dim = "step_size" if sizes(dataset, "step_size") > 1 or sizes(dataset, "batch_size") == 1 else "batch_size"
    panels = list(panels_of(dataset.isel(minimum=order), row_dim))
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    height = 0.9 + 0.28 * min(max(sizes(dataset, row_dim), 4), 14)
    figure = Figure(figsize=(1.6 + 4.2 * columns, 0.9 + height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    seen: set[str] = set()
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (words, chosen) in zip(grid.flat, panels, strict=False):
        values = np.atleast_1d(chosen[row_dim].values)
        for row in range(len(values)):
            one = chosen.isel({row_dim: row}) if row_dim in chosen.dims else chosen
            seen |= draw_row(axes, edges, row, kinds(one))
        axes.set_ylim(-0.5, len(values) - 0.5)
        step = -(-len(values) // MOST_LABELS)
        axes.set_yticks(range(0, len(values), step), [f"{value:.4g}" for value in values[::step]])
        axes.set_ylabel(row_dim.replace("_", " "))
        axes.set_title(words, fontsize="small")
        axes.set_xlim(edges[0], edges[-1])
    if against == "minimum":
        locator = MaxNLocator(integer=True) if len(place) > 1 else FixedLocator(place.tolist())
        grid[-1, 0].xaxis.set_major_locator(locator)
        grid[-1, 0].xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    for axes in grid[-1]:
        axes.set_xlabel(label)
    handles = [
        Patch(facecolor=colour, edgecolor="#555555", hatch="////" if name == "undecided" else None, label=name)
        for name, colour in KINDS.items()
        if name in seen
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    if title:
        figure.suptitle(title)
    return figure


def plot_exponents(dataset: xr.Dataset, title: str = "", *, against: str | None = None) -> Figure:
    """``mu`` and ``lambda`` of one minimum against the batch size or the step size, with error bars.

    Parameters
    ----------
    dataset
        The result of `gdmap.exponents.stable_sets` at one minimum and for one sampling law
        (``dataset.isel(minimum=3, law=0)``).
    title
        A line above the picture.
    against
        ``'batch_size'`` or ``'step_size'``; by default the batch size where there are several.

    Raises
    ------
    ValueError
        For several minima or laws, another axis, or a dataset without exponents.
    """
    for name in ("gd_exponent", "sgd_exponent"):
        for suffix in SUFFIXES:
            if name + suffix not in dataset:
                raise ValueError(
                    "plot_exponents draws the result of gdmap.exponents.stable_sets: this dataset has no "
                    f"{name + suffix}"
                )
    for dim in ("minimum", "law"):
        if sizes(dataset, dim) != 1:
            raise ValueError(
                f"plot_exponents draws one {dim}, this dataset has {sizes(dataset, dim)}: choose one with "
                f"dataset.isel({dim}=...), or draw them all with plot_stable_sets"
            )
    if against is None:
        against = (
            "batch_size" if sizes(dataset, "batch_size") > 1 or sizes(dataset, "step_size") == 1 else "step_size"
        )
    if against not in ("batch_size", "step_size"):
        raise ValueError(f"against must be 'batch_size' or 'step_size', got {against!r}")
    other = "step_size" if against == "batch_size" else "batch_size"
    names = [name + suffix for name in ("gd_exponent", "sgd_exponent") for suffix in SUFFIXES]
    chosen = dataset[names]
    chosen = chosen.isel({dim: 0 for dim in ("minimum", "law") if dim in chosen.dims})
    chosen = chosen.expand_dims([dim for dim in (against, other) if dim not in chosen.dims]).sortby(against)
    figure = Figure(figsize=(6.6, 4.4), layout="constrained")
    axes = figure.subplots()
    finite = [values[np.isfinite(values)] for values in (chosen[name].values for name in names)]
    low = min((float(values.min()) for values in finite if values.size), default=-1.0)
    high = max((float(values.max()) for values in finite if values.size), default=1.0)
    margin = 0.08 * max(high - low, abs(high), abs(low), 1e-12)
    low, high = min(low, 0.0) - margin, max(high, 0.0) + margin
    several = chosen.sizes[other] > 1
    for number in range(chosen.sizes[other]):
        one = chosen.isel({other: number})
        words = f", {other.replace('_', ' ')} {float(one[other]):.4g}" if several else ""
        colour = SERIES[number % len(SERIES)]
        draw_exponent(axes, one, "sgd", against, low, colour, "o-", f"lambda of SGD{words}")
        draw_exponent(axes, one, "gd", against, low, colour if several else "#000000", "s--", f"mu of GD{words}")
    axes.axhline(0, color="black", lw=1)
    axes.set_ylim(low, high)
    values = chosen[against].values
    if against == "batch_size" or (values.min() > 0 and values.max() > 30 * values.min()):
        axes.set_xscale("log")
        if against == "batch_size":
            step = -(-len(values) // MOST_LABELS)
            axes.set_xticks(values[::step], [str(int(value)) for value in values[::step]])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.minorticks_off()
    if len(values) == 1:
        centre = float(values[0])
        axes.set_xlim(*((centre / 2, centre * 2) if axes.get_xscale() == "log" else (centre * 0.5, centre * 1.5)))
    axes.set_xlabel(against.replace("_", " "))
    axes.set_ylabel("exponent per step (below 0: stable)")
    axes.grid(alpha=0.25, linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    if title:
        axes.set_title(title, fontsize="small")
    return figure


def draw_exponent(
    axes: Axes, one: xr.Dataset, kind: str, against: str, floor: float, colour: str, style: str, label: str
) -> None:
    """One curve with its intervals; what is minus infinity is a triangle at the bottom."""
    value, lower, upper = (one[f"{kind}_exponent{suffix}"].values for suffix in SUFFIXES)
    x = one[against].values
    there = np.isfinite(value)
    below = value[there] - np.where(np.isfinite(lower), lower, floor)[there]
    above = upper[there] - value[there]
    face = "none" if kind == "gd" else colour
    bars = [np.maximum(below, 0), np.maximum(np.where(np.isfinite(above), above, 0), 0)]
    axes.errorbar(
        x[there], value[there], yerr=bars, fmt=style, ms=5, lw=1.2, capsize=3, color=colour, label=label, mfc=face
    )
    if not there.all():
        axes.plot(x[~there], np.full((~there).sum(), floor), "v", ms=8, color=colour, clip_on=False, zorder=3)


def draw_row(axes: Axes, edges: np.ndarray, row: int, names: np.ndarray) -> set[str]:
    """One row of bands; neighbours of one kind are drawn as one. The kinds that occur."""
    starts = np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1]]))
    ends = np.append(starts[1:], len(names))
    for start, end in zip(starts, ends, strict=True):
        name = str(names[start])
        axes.broken_barh(
            [(edges[start], edges[end] - edges[start])],
            (row - 0.42, 0.84),
            facecolor=KINDS[name],
            hatch="////" if name == "undecided" else None,
            edgecolor="#555555" if name == "undecided" else KINDS[name],
            linewidth=0.0 if name != "undecided" else 0.4,
        )
    return set(np.unique(names).tolist())


def kinds(one: xr.Dataset) -> np.ndarray:
    """The kind of every minimum, as strings."""
    gd, sgd = (one[f"{name}_stability"].values for name in ("gd", "sgd"))
    words = list(KINDS)
    stable = np.where(gd > 0, np.where(sgd > 0, words[0], words[1]), np.where(sgd > 0, words[2], words[3]))
    return np.where((gd == 0) | (sgd == 0), words[4], stable)


def panels_of(dataset: xr.Dataset, row_dim: str) -> Iterator[tuple[str, xr.Dataset]]:
    """One dataset over ``(minimum, row_dim)`` for each combination of the other dimensions, with its title."""
    others = [
        dim for dim in ("step_size", "batch_size", "law") if dim != row_dim and dim in dataset["gd_stability"].dims
    ]
    number = int(np.prod([dataset.sizes[dim] for dim in others])) if others else 1
    if number > MOST_PANELS:
        several = [dim for dim in others if dataset.sizes[dim] > 1]
        raise ValueError(
            f"the dataset has {number} combinations of {' and '.join(several)}, at most {MOST_PANELS} are drawn: "
            "choose some with dataset.isel(...)"
        )
    verdicts = dataset[["gd_stability", "sgd_stability"]]
    for combination in itertools.product(*(range(dataset.sizes[dim]) for dim in others)):
        chosen = verdicts.isel(dict(zip(others, combination, strict=True)))
        words = []
        for dim, index in zip(others, combination, strict=True):
            if dim == "law":
                if dataset.sizes["law"] > 1:
                    words.append(f"sampling law {index}")
            else:
                words.append(f"{dim.replace('_', ' ')} {dataset[dim].values[index]:.4g}")
        yield ", ".join(words), chosen.transpose(..., "minimum")


def places(dataset: xr.Dataset, against: str) -> tuple[np.ndarray, str]:
    """Where each minimum is drawn, and the label of that axis."""
    if against == "minimum":
        return np.arange(dataset.sizes["minimum"], dtype=float), "number of the minimum"
    if against == "norm" and "norm" not in dataset and "theta" in dataset:
        return np.linalg.norm(dataset["theta"].values, axis=1), "distance of the minimum from the origin"
    if against not in dataset.variables or dataset[against].dims != ("minimum",):
        raise ValueError(
            f"against must be 'minimum', 'norm' or a variable with one number for each minimum, got {against!r}"
        )
    return np.asarray(dataset[against].values, dtype=float), str(dataset[against].attrs.get("long_name", against))


def cell_edges(place: np.ndarray) -> np.ndarray:
    """The ends of the cells around sorted places: half-way between neighbours."""
    if len(place) == 1:
        return np.array([place[0] - 0.5, place[0] + 0.5])
    between = (place[1:] + place[:-1]) / 2
    return np.concatenate([[2 * place[0] - between[0]], between, [2 * place[-1] - between[-1]]])


def sizes(dataset: xr.Dataset, dim: str) -> int:
    """The length of a dimension, 1 where it has been chosen from already."""
    return int(dataset.sizes.get(dim, 1))

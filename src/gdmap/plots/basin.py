"""Basins of attraction, coloured by attractor and shaded by the time to reach it."""

import textwrap
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gdmap.ensembles import Fate

# Okabe & Ito's palette, without black and the greys that fates without an attractor have here.
ATTRACTORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442", "#D55E00")
WITHOUT = {
    "diverged": "#BDBDBD",
    "saddle": "#5B2A86",
    "marginal": "#7F5539",
    "bounded": "#404040",
    "undecided": "#000000",
}
# How far a colour goes towards white for the fastest starts.
LIGHTEST = 0.65
SHOWN = 12
OFF_PLANE = 1e-6
# Up to so many coordinates of a minimum stand in the legend.
COORDINATES = 3
PALE = "#D0D0D0"


def plot_basin(dataset: xr.Dataset, title: str | None = None) -> Figure:
    """The picture of `gdmap.basin`: one colour for each attractor, paler where it is reached sooner.

    Fates without an attractor have their own colours. The attractors that lie in the plane are drawn: minima as
    circles, cycles as squares, sets of minima and aperiodic attractors as dots. The legend has the shares; below
    the picture is said how often checked pixels disagree with the full ensemble.

    Parameters
    ----------
    dataset
        The result of `gdmap.basin`.
    title
        A title above the picture; by default the map.

    Raises
    ------
    ValueError
        If the dataset is not such a result.
    """
    if not {"x", "y"} <= set(dataset.dims) or "attractor" not in dataset:
        raise ValueError("plot_basin draws the result of gdmap.basin: this dataset has no attractors over (y, x)")
    left, right, bottom, top = dataset.attrs["plane"]
    figure = Figure(figsize=(7.4, 5.6), layout="compressed")
    axes = figure.subplots()
    axes.imshow(
        coloured(dataset),
        origin="lower",
        extent=(left, right, bottom, top),
        interpolation="nearest",
        aspect="equal",
    )
    axes.set_xlabel(str(dataset["x"].attrs.get("long_name", "x")))
    axes.set_ylabel(str(dataset["y"].attrs.get("long_name", "y")))
    draw_attractors(axes, dataset)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    figure.legend(handles=legend_entries(dataset), loc="outside right upper", frameon=False, fontsize="small")
    figure.supxlabel(trust(dataset), fontsize="small")
    title = str(dataset.attrs.get("map", "")) if title is None else title
    if title:
        axes.set_title(textwrap.fill(title, 60), fontsize="medium")
    return figure


def attractor_colours(number: int) -> list[Any]:
    """One colour for each attractor; beyond seven from a continuous map."""
    if number <= len(ATTRACTORS):
        return [to_rgb(colour) for colour in ATTRACTORS[:number]]
    return [colormaps["turbo"](share)[:3] for share in np.linspace(0.05, 0.95, number)]


def coloured(dataset: xr.Dataset) -> np.ndarray:
    """The picture as RGB values, shape ``(n_y, n_x, 3)``."""
    fate, identity = dataset["fate"].values, dataset["attractor"].values
    image = np.zeros((*fate.shape, 3))
    for name, colour in WITHOUT.items():
        image[fate == int(Fate[name.upper()])] = to_rgb(colour)
    reached = identity > 0
    for number, colour in enumerate(attractor_colours(dataset.sizes["id"]), start=1):
        image[identity == number] = to_rgb(colour)
    for shaded in (reached, fate == int(Fate.DIVERGED)):
        pale = paleness(dataset["steps"].values[shaded])
        image[shaded] += (1 - image[shaded]) * (LIGHTEST * pale)[:, None]
    return image


def paleness(steps: np.ndarray) -> np.ndarray:
    """1 for the fastest starts to 0 for the slowest, by the logarithm of the steps (the outer 2 per cent cut)."""
    pace = np.log(np.maximum(steps, 1.0))
    low, high = np.percentile(pace, [2, 98]) if pace.size else (0.0, 0.0)
    if high <= low:
        return np.full(steps.shape, 0.5)
    return np.asarray(np.clip((high - pace) / (high - low), 0, 1))


def draw_attractors(axes: Axes, dataset: xr.Dataset) -> None:
    """The points of the attractors that lie in the plane, in its coordinates."""
    origin = np.asarray(dataset.attrs["origin"])
    directions = np.stack([dataset.attrs["direction_x"], dataset.attrs["direction_y"]], axis=1)
    for number in range(dataset.sizes["id"]):
        one = dataset.isel(id=number)
        points = one["points"].values[: int(one["n_points"])] - origin
        coordinates, *_ = np.linalg.lstsq(directions, points.T, rcond=None)
        off = np.linalg.norm(points.T - directions @ coordinates, axis=0)
        x, y = coordinates[
            :, off <= OFF_PLANE * (np.linalg.norm(points, axis=1) + np.linalg.norm(origin) + 1e-300)
        ]
        single = one["neutral_dimension"] == 0
        if single and one["attractor_fate"] == int(Fate.MINIMUM):
            style: dict[str, Any] = {"marker": "o", "ms": 6}
        elif single and one["attractor_fate"] == int(Fate.PERIODIC):
            style = {"marker": "s", "ms": 5}
        else:
            style = {"marker": ".", "ms": 4, "mew": 0}
        face = "black" if style["marker"] == "." else "white"
        axes.plot(x, y, ls="none", mfc=face, mec="black", **style)


def trust(dataset: xr.Dataset) -> str:
    """How often checked pixels disagree with the full ensemble, in words."""
    attrs = dataset.attrs
    status = f"status: {attrs.get('status', 'estimated')}"
    checked = int(attrs.get("verified", 0))
    if not checked:
        return f"{status}; no pixel was checked against the full ensemble"
    rate, low, high = (f"{100 * float(attrs[f'error_rate{end}']):.2g}" for end in ("", "_lower", "_upper"))
    pixels = "pixel" if checked == 1 else "pixels"
    return f"{status}\n{rate} % [{low}, {high}] of {checked} checked {pixels} disagree with the full ensemble"


def legend_entries(dataset: xr.Dataset) -> list[Patch]:
    """One entry for every attractor and every other fate that occurs, with its share of the plane."""
    entries = []
    colours = attractor_colours(dataset.sizes["id"])
    tiny = OFF_PLANE * float(np.abs(dataset.attrs["plane"]).max())
    for number, colour in enumerate(colours[:SHOWN]):
        one = dataset.isel(id=number)
        entries.append(Patch(color=colour, label=f"{described(one, tiny)}: {percent(float(one['share']))}"))
    if len(colours) > SHOWN:
        counted = len(colours) - SHOWN
        rest = float(dataset["share"].values[SHOWN:].sum())
        entries.append(Patch(color="none", label=f"{counted} more: {percent(rest)}"))
    for name, hue in WITHOUT.items():
        share = float(dataset["fraction"].sel(fate_name=name))
        if share > 0:
            entries.append(Patch(color=hue, label=f"{name}: {percent(share)}"))
    if len(colours) or float(dataset["fraction"].sel(fate_name="diverged")) > 0:
        entries.append(Patch(color=PALE, label="paler = sooner"))
    return entries


def described(one: xr.Dataset, tiny: float) -> str:
    """An attractor in words: its number, what it is, and where a minimum is; coordinates below ``tiny`` are 0."""
    number, fate, neutral = int(one["id"]), Fate(int(one["attractor_fate"])), int(one["neutral_dimension"])
    if fate == Fate.MINIMUM:
        what = "minimum" if neutral == 0 else "set of minima"
    elif fate == Fate.PERIODIC:
        what = f"cycle of period {int(one['attractor_period'])}" + ("" if neutral == 0 else ", a family")
    else:
        what = fate.name.lower()
    place = one["points"].values[0]
    if fate == Fate.MINIMUM and neutral == 0 and place.size <= COORDINATES:
        what += f" ({', '.join(f'{value:.3g}' if abs(value) > tiny else '0' for value in place)})"
    return f"{number}  {what}"


def percent(share: float) -> str:
    """A share in per cent; small ones as a bound instead of 0."""
    return f"{share:.1%}" if share >= 0.0005 or share == 0 else "< 0.1%"

"""Orbits against a parameter: continued branches, and states sampled on attractors."""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.interpolate import CubicSpline

from gdmap.flags import flag_names

# Okabe & Ito's palette: periods in order of appearance.
PERIODS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B2A86", "#7F5539")
SWEEPS = {"fresh": "#333333", "up": "#0072B2", "down": "#D55E00"}
DOTS, DIVERGED, LEFT = "#9A9A9A", "#D55E00", "#F3D9C9"
STYLES: dict[str, Any] = {"stable": "-", "unstable": (0, (4, 2.5)), "marginal": (0, (1, 1.5))}
WIDTHS = {"stable": 1.9, "unstable": 1.1, "marginal": 1.4}
MARKERS = {"fold": "<", "period-doubling": "o", "branch-point": "s", "neimark-sacker": "D"}
# So many values of one kind of bifurcation are written out.
WRITTEN = 6
# Beyond this many times the usual range, what is drawn leaves the panel.
WIDE = 4.0
# Dots closer than the panel divided by so many are one.
CELLS = 1_500
# So many different dots at one value, at most, are those of cycles.
CYCLE = 64

# What changes by no more than this share of its size is constant up to rounding.
FLAT = 1e-9
# Points drawn between two points of a branch.
BETWEEN = 12
HALVES = "period halves"
# Multipliers of larger modulus are drawn on this circle; so many orbits are named in the legend.
RIM, LISTED = 2.5, 12

Shown = int | Literal["norm", "observable"] | None


def plot_bifurcation_diagram(
    dataset: xr.Dataset, component: Shown = None, orbit_diagram: xr.Dataset | None = None, title: str = ""
) -> Figure:
    """Branches of periodic orbits against the parameter: stable ones solid, unstable ones dashed.

    Every point of an orbit is a line, coloured by the period. Bifurcations are marked by their kind, with their
    values in the legend. What runs off far beyond the rest leaves the panel.

    Parameters
    ----------
    dataset
        The result of `gdmap.bifurcation_diagram`.
    component
        What is drawn: a component of the state, ``'norm'``, the norm of the state, or ``'observable'``; by default
        the observable if there is one, otherwise component 0.
    orbit_diagram
        The result of `gdmap.orbit_diagram` along the same parameter, drawn as dots behind.
    title
        A title above the picture.

    Raises
    ------
    ValueError
        If the datasets are not such results, or have no such component.
    """
    if "event_kind" not in dataset or not {"branch", "position"} <= set(dataset.dims):
        raise ValueError(
            "plot_bifurcation_diagram draws the result of gdmap.bifurcation_diagram: this dataset has no branches"
        )
    values = shown_values(dataset, component)
    marked = shown_values(dataset, component, "event_")
    figure = Figure(figsize=(8.6, 4.8), layout="constrained")
    axes = figure.subplots()
    handles: list[Any] = []
    drawn = [values[np.isfinite(values)]]
    if orbit_diagram is not None:
        refuse_other_parameter(dataset, orbit_diagram)
        dots = shown_values(checked_orbit_diagram(orbit_diagram), component)
        drawn.append(dots[np.isfinite(dots)])
    limits = usual_limits(drawn, 10 * accuracy(dataset["error"].values))
    if orbit_diagram is not None and draw_dots(
        axes, orbit_diagram["value"].values, np.moveaxis(dots, 1, 0), DOTS, limits
    ):
        handles.append(dot(DOTS, "states after a transient"))
    periods = list(dict.fromkeys(sorted(dataset["period"].values.tolist())))
    colours = {period: PERIODS[i % len(PERIODS)] for i, period in enumerate(periods)}
    seen: set[str] = set()
    for row in range(dataset.sizes["branch"]):
        colour = colours[int(dataset["period"].values[row])]
        seen |= draw_branch(axes, dataset, row, values[row], colour)
    handles = [
        *(Line2D([], [], color=colours[period], lw=2, label=f"period {period}") for period in periods),
        *(
            Line2D([], [], color="black", ls=STYLES[name], lw=WIDTHS[name], label=name)
            for name in STYLES
            if name in seen
        ),
        *handles,
        *draw_events(axes, dataset, marked),
    ]
    low, high = value_range(dataset["parameter"].values, dataset.attrs.get("bounds"))
    finish(figure, axes, dataset["parameter"], (low, high), limits, label_of(dataset, component), title)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize="small")
    return figure


def plot_orbit_diagram(dataset: xr.Dataset, component: Shown = None, title: str = "") -> Figure:
    """States on the attractors against the parameter as dots, a colour for each sweep.

    Values at which a start diverged are marked at the bottom, those at which every start did are shaded.

    Parameters
    ----------
    dataset
        The result of `gdmap.orbit_diagram`.
    component
        What is drawn: a component of the state, ``'norm'`` or ``'observable'``; by default the observable if there
        is one, otherwise component 0.
    title
        A title above the picture.

    Raises
    ------
    ValueError
        If the dataset is not such a result, or has no such component.
    """
    values = shown_values(checked_orbit_diagram(dataset), component)
    figure = Figure(figsize=(8.2, 4.6), layout="constrained")
    axes = figure.subplots()
    limits = usual_limits([values[np.isfinite(values)]])
    handles: list[Any] = []
    sweeps = [str(name) for name in dataset["sweep"].values]
    for row, sweep in enumerate(sweeps):
        if not draw_dots(axes, dataset["value"].values, values[row], SWEEPS[sweep], limits, offset=row):
            continue
        words = "fresh starts" if sweep == "fresh" else f"going {sweep}"
        handles.append(dot(SWEEPS[sweep], words if len(sweeps) > 1 else f"states after a transient,\n{words}"))
    handles += draw_divergence(axes, dataset)
    if bool(dataset["diverged"].all()):
        axes.text(0.5, 0.5, "every start diverged", transform=axes.transAxes, ha="center", va="center")
    reach = value_range(dataset["value"].values, None)
    finish(figure, axes, dataset["value"], reach, limits, label_of(dataset, component), title)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize="small")
    return figure


def plot_periodic_orbits(dataset: xr.Dataset, title: str = "") -> Figure:
    """Periodic orbits of one map: their points on the left, their multipliers and the unit circle on the right.

    In one dimension a point is drawn against the next one, beyond that in its first two components. Stable orbits
    are filled, others open; multipliers far outside the unit circle lie on the rim, with their values in the
    legend.

    Parameters
    ----------
    dataset
        Orbits over ``orbit``: ``state`` with ``point`` and ``component``, ``multiplier`` with ``mode``,
        ``stability``, ``period`` (as ``gdmap orbits`` stores them).
    title
        A title above the picture.

    Raises
    ------
    ValueError
        If the dataset holds no such orbits.
    """
    if "orbit" not in dataset.dims or not {"state", "multiplier", "stability", "period"} <= set(dataset):
        raise ValueError("plot_periodic_orbits draws periodic orbits over 'orbit': this dataset has none")
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    states, flat = dataset["state"].values, dataset.sizes["component"] == 1
    stability = flag_names(dataset["stability"])
    handles: list[Any] = []
    for row, name in enumerate(stability):
        colour = PERIODS[row % len(PERIODS)]
        face = colour if name == "stable" else "white"
        period = int(dataset["period"].values[row])
        points = states[row, :period]
        x, y = points[:, 0], np.roll(points[:, 0], -1) if flat else points[:, 1]
        order = np.append(np.arange(period), 0)
        left.plot(x[order], y[order], color=colour, lw=0.7, alpha=0.6)
        left.plot(x, y, ls="none", marker="o", ms=5, color=colour, mfc=face)
        multipliers = dataset["multiplier"].values[row]
        multipliers = multipliers[np.isfinite(multipliers)]
        inside = np.clip(np.abs(multipliers), None, RIM) * np.exp(1j * np.angle(multipliers))
        # Smaller ones on larger ones: equal multipliers are seen to be several.
        size = 4 + 4 * (1 - row / len(stability))
        right.plot(inside.real, inside.imag, ls="none", marker="o", ms=size, color=colour, mfc=face, clip_on=False)
        if row < LISTED:
            words = f"{row}: period {period}, {name}"
            if multipliers.size and abs(multipliers[0]) > RIM:
                words += f", |multiplier| {abs(multipliers[0]):.4g}"
            handles.append(Line2D([], [], ls="none", marker="o", ms=5, color=colour, mfc=face, label=words))
    if flat:
        ends = [float(np.nanmin(states)), float(np.nanmax(states))]
        left.plot(ends, ends, color="#888888", lw=0.8, ls=":", zorder=0)
    left.set_xlabel("state" if flat else "component 0 of the state")
    left.set_ylabel("next state" if flat else "component 1 of the state")
    angles = np.linspace(0, 2 * np.pi, 181)
    right.plot(np.cos(angles), np.sin(angles), color="black", lw=1)
    if np.any(np.abs(dataset["multiplier"].values[np.isfinite(dataset["multiplier"].values)]) > RIM):
        right.plot(RIM * np.cos(angles), RIM * np.sin(angles), color="#BBBBBB", lw=0.8, ls=":", zorder=0)
        handles.append(Line2D([], [], color="#BBBBBB", lw=0.8, ls=":", label=f"rim: |multiplier| above {RIM:g}"))
    right.set_aspect("equal")
    right.set_xlim(-1.05 * RIM, 1.05 * RIM)
    right.set_ylim(-1.05 * RIM, 1.05 * RIM)
    right.set_xlabel("multiplier, real part")
    right.set_ylabel("imaginary part")
    for axes in (left, right):
        axes.grid(alpha=0.25, linewidth=0.6)
    if len(stability) > LISTED:
        handles.append(Line2D([], [], ls="none", label=f"and {len(stability) - LISTED} more"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    if title:
        figure.suptitle(textwrap.fill(title, 95), fontsize="medium")
    return figure


# What is drawn ---------------------------------------------------------------------------------------------------


def checked_orbit_diagram(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset itself if it is an orbit diagram."""
    if not {"sweep", "value", "start", "sample"} <= set(dataset.dims):
        raise ValueError("an orbit diagram is the result of gdmap.orbit_diagram: this dataset has no samples")
    return dataset


def refuse_other_parameter(dataset: xr.Dataset, orbit_diagram: xr.Dataset) -> None:
    """An error if the two are drawn against different parameters."""
    one, other = dataset.attrs.get("parameter"), orbit_diagram.attrs.get("parameter")
    if "parameter" in orbit_diagram.attrs and one != other and other != "parameter":
        raise ValueError(f"the branches are those along {one}, the orbit diagram is along {other}")


def shown_values(dataset: xr.Dataset, component: Shown, prefix: str = "") -> np.ndarray:
    """The numbers to draw, without the dimension of components."""
    if component is None:
        component = "observable" if f"{prefix}observable" in dataset else 0
    if component == "observable":
        if f"{prefix}observable" not in dataset:
            raise ValueError("this dataset has no observable: draw a component of the state, or 'norm'")
        return np.asarray(dataset[f"{prefix}observable"].values)
    name = f"{prefix}state"
    if name not in dataset:
        raise ValueError("this dataset has no states, only an observable: component='observable' draws it")
    state = dataset[name].values
    if component == "norm":
        return np.asarray(np.linalg.norm(state, axis=-1))
    if isinstance(component, bool) or not isinstance(component, (int, np.integer)):
        raise ValueError(f"component must be a number, 'norm' or 'observable', got {component!r}")
    if not 0 <= component < state.shape[-1]:
        raise ValueError(f"component {component} is none of the {state.shape[-1]} of the state (0, 1, ...)")
    return np.asarray(state[..., component])


def label_of(dataset: xr.Dataset, component: Shown) -> str:
    """The vertical axis in words."""
    if component == "observable" or (component is None and "observable" in dataset):
        return "observable"
    if component == "norm":
        return "norm of the state"
    return "state" if dataset.sizes["component"] == 1 else f"component {component or 0} of the state"


def usual_limits(parts: Sequence[np.ndarray], least: float = 0.0) -> tuple[float, float]:
    """The range of what is drawn, without the few values that run off far beyond the others.

    Values that differ by no more than ``least``, or by rounding, are one.
    """
    values = np.concatenate(parts)
    if not values.size:
        return -1.0, 1.0
    low, high = float(values.min()), float(values.max())
    inner = [float(bound) for bound in np.quantile(values, [0.05, 0.95])]
    width = inner[1] - inner[0]
    if width > 0:
        low, high = max(low, inner[0] - WIDE * width), min(high, inner[1] + WIDE * width)
    size = max(abs(low), abs(high))
    if high - low <= max(FLAT * size, least):
        margin = 0.05 * size if size > least else 0.05
    else:
        margin = 0.05 * (high - low)
    return low - margin, high + margin


def value_range(values: np.ndarray, bounds: Any) -> tuple[float, float]:
    """The horizontal axis: the bounds if given, otherwise the values."""
    if bounds is not None:
        return float(bounds[0]), float(bounds[1])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.01 * (high - low) or 0.05 * abs(high) or 0.05
    return low - margin, high + margin


def finish(
    figure: Figure,
    axes: Axes,
    parameter: xr.DataArray,
    reach: tuple[float, float],
    limits: tuple[float, float],
    label: str,
    title: str,
) -> None:
    """Limits, words and the grid."""
    axes.set_xlim(*reach)
    axes.set_ylim(*limits)
    axes.set_xlabel(str(parameter.attrs.get("long_name", "parameter")))
    axes.set_ylabel(label)
    axes.grid(alpha=0.25, linewidth=0.6)
    if title:
        figure.suptitle(textwrap.fill(title, 85), fontsize="medium")


# Branches --------------------------------------------------------------------------------------------------------


def draw_branch(axes: Axes, dataset: xr.Dataset, row: int, values: np.ndarray, colour: str) -> set[str]:
    """One branch, in pieces of one stability that meet at its bifurcations; the stabilities that occur."""
    n, period = int(dataset["length"].values[row]), int(dataset["period"].values[row])
    parameter, lines = dataset["parameter"].values[row, :n], values[:n, :period]
    stability = flag_names(dataset["stability"][row, :n])
    # A single marginal point is a bifurcation: it belongs to the pieces that meet there.
    for i in np.flatnonzero(stability == "marginal") if n > 2 else ():
        around = {str(stability[k]) for k in (i - 1, i + 1) if 0 <= k < n}
        if "marginal" not in around:
            stability[i] = stability[i + 1 if i + 1 < n else i - 1]
    reasons = [str(dataset.attrs[f"{end}_reasons"][row]) for end in ("start", "end")]
    curve = smooth_curve(parameter, lines, reasons, 10 * accuracy(dataset["error"].values[row, :n]))
    own = np.flatnonzero((dataset["event_branch"].values == row) & (dataset["event_period"].values == period))
    places = np.sort(dataset["event_position"].values[own])
    seen: set[str] = set()
    begin = 0
    while begin < n:
        end = begin
        while end + 1 < n and stability[end + 1] == stability[begin]:
            end += 1
        name = str(stability[begin])
        seen.add(name)
        # From half-way in the segment before (or the bifurcation in it) to that in the segment after.
        before = places[(places >= begin - 1) & (places <= begin)]
        after = places[(places >= end) & (places <= end + 1)]
        first = (before[-1] if before.size else begin - 0.5) if begin else 0.0
        last = (after[0] if after.size else end + 0.5) if end < n - 1 else n - 1.0
        drawn = curve(
            np.unique(np.concatenate([np.arange(begin, end + 1), np.linspace(first, last, fine(first, last))]))
        )
        axes.plot(
            drawn[:, 0],
            drawn[:, 1:],
            color=colour,
            ls=STYLES.get(name, "-"),
            lw=WIDTHS.get(name, 1.4),
            zorder=3 if name == "stable" else 2.5,
            solid_capstyle="butt",
        )
        begin = end + 1
    return seen


def accuracy(errors: np.ndarray) -> float:
    """The largest known error of the points."""
    known = errors[np.isfinite(errors)]
    return float(known.max()) if known.size else 0.0


def fine(first: float, last: float) -> int:
    """How many points a stretch of a curve is drawn with."""
    return int(np.ceil(BETWEEN * (last - first))) + 2


def smooth_curve(
    parameter: np.ndarray, lines: np.ndarray, ends: Sequence[str], least: float = 0.0
) -> Callable[[np.ndarray], np.ndarray]:
    """The curve through ``(parameter, lines)`` as a function of positions along the branch, shape ``(m, 1 + p)``.

    A cubic spline over the chord length; what changes by no more than ``least``, or by rounding, counts as
    constant there. At a period doubling the curve goes on through it with the phases half a period apart
    exchanged, so that it has its vertical tangent there; the square root of the parameter's distance from the
    doubling, which grows as the amplitude does, then takes the parameter's part in the length.
    """
    n, p = lines.shape
    data = np.column_stack([parameter, lines])
    mirrored = np.column_stack([parameter, np.roll(lines, p // 2, axis=1)])
    more = min(n - 1, 3)
    added = 0
    if ends[0] == HALVES:
        data, added = np.concatenate([mirrored[more:0:-1], data]), more
    if ends[1] == HALVES:
        data = np.concatenate([data, mirrored[-2 : -2 - more : -1]])
    measured = data.copy()
    if (ends[0] == HALVES) != (ends[1] == HALVES):
        beyond = parameter - parameter[0 if ends[0] == HALVES else -1]
        if np.all(beyond >= 0) or np.all(beyond <= 0):
            roots = np.sqrt(np.abs(beyond))
            parts = [-roots[more:0:-1], roots] if ends[0] == HALVES else [roots, -roots[-2 : -2 - more : -1]]
            measured[:, 0] = np.concatenate(parts)
    scales = np.ptp(measured, axis=0)
    # All lines have one unit: a line at 0 up to rounding is constant beside the others.
    floor = np.full(1 + p, max(FLAT * float(np.abs(lines).max()), least))
    floor[0] = FLAT * float(np.abs(parameter).max())
    chords = np.zeros(len(data))
    varies = np.append(np.ptp(parameter), scales[1:]) > floor
    if varies.any():
        steps = np.diff(measured[:, varies] / scales[varies], axis=0)
        chords[1:] = np.cumsum(np.linalg.norm(steps, axis=1))
    if n < 2 or np.any(np.diff(chords) <= 0):
        return lambda places: np.column_stack(
            [np.interp(places + added, np.arange(len(data)), column) for column in data.T]
        )
    spline = CubicSpline(chords, data)
    return lambda places: np.asarray(spline(np.interp(places + added, np.arange(len(data)), chords)))


def draw_events(axes: Axes, dataset: xr.Dataset, marked: np.ndarray) -> list[Line2D]:
    """A marker at every point of every bifurcation; legend entries with the values of each kind."""
    handles = []
    kinds = flag_names(dataset["event_kind"]) if dataset.sizes["event"] else np.array([], str)
    parameter = dataset["event_parameter"].values
    size = 5.0 if np.isfinite(marked).sum() <= 12 else 3.5
    for kind, symbol in MARKERS.items():
        chosen = np.flatnonzero(kinds == kind)
        if not chosen.size:
            continue
        style: Any = {"marker": symbol, "ms": size, "ls": "none", "color": "black", "mfc": "white", "mew": 1.1}
        axes.plot(parameter[chosen], marked[chosen], zorder=4, **style)
        handles.append(Line2D([], [], label=f"{kind.replace('-', ' ')}\n{written(parameter[chosen])}", **style))
    return handles


def written(values: np.ndarray) -> str:
    """Distinct values to six digits, a few of them, three to a line."""
    words = list(dict.fromkeys(f"{value:.6g}" for value in np.sort(values)))
    shown = words[:WRITTEN] + ([f"and {len(words) - WRITTEN} more"] if len(words) > WRITTEN else [])
    return "\n".join(", ".join(shown[i : i + 3]) for i in range(0, len(shown), 3))


# Dots ------------------------------------------------------------------------------------------------------------


def draw_dots(
    axes: Axes,
    parameter: np.ndarray,
    values: np.ndarray,
    colour: str,
    limits: tuple[float, float],
    offset: int = 0,
) -> bool:
    """Values of shape ``(n, ...)`` over the parameter, those that fall together once; whether there are any."""
    low, high = limits
    few: tuple[list[Any], list[Any]] = ([], [])
    many: tuple[list[Any], list[Any]] = ([], [])
    for value, states in zip(parameter, values, strict=True):
        inside = states[np.isfinite(states) & (states >= low) & (states <= high)]
        cells = np.unique(((inside - low) / (high - low) * CELLS).round())
        x, y = few if len(cells) <= CYCLE else many
        x.append(np.full(len(cells), value))
        y.append(low + cells / CELLS * (high - low))
    # The dots of cycles are few and large, those of chaos cover each other.
    for x, y in (few, many):
        count = sum(map(len, y))
        if not count:
            continue
        size = float(np.clip(9 - 2 * np.log10(count), 3.2, 7)) if x is few[0] else 1.8
        axes.plot(
            np.concatenate(x),
            np.concatenate(y),
            ls="none",
            marker=".",
            ms=size * (1 - 0.35 * offset / (1 + offset)),
            mew=0,
            color=colour,
            alpha=float(np.clip(25_000 / count, 0.25, 0.9)),
            zorder=1 + 0.1 * offset,
            rasterized=True,
        )
    return any(map(len, (*few[0], *many[0])))


def dot(colour: str, label: str) -> Line2D:
    """A legend entry for dots."""
    return Line2D([], [], ls="none", marker=".", color=colour, label=label)


def draw_divergence(axes: Axes, dataset: xr.Dataset) -> list[Any]:
    """Marks where starts diverged, and their legend entries."""
    diverged, parameter = dataset["diverged"].values, dataset["value"].values
    order = np.argsort(parameter)
    share = diverged.mean(axis=(0, 2))[order]
    some, every = share > 0, share == 1
    ordered = parameter[order]
    handles: list[Any] = []
    if len(ordered) > 1:
        middles = (ordered[1:] + ordered[:-1]) / 2
        edges = np.concatenate([ordered[:1], middles, ordered[-1:]])
    else:
        edges = np.array([ordered[0] - 1, ordered[0] + 1])
    for index in np.flatnonzero(every):
        axes.axvspan(edges[index], edges[index + 1], color=LEFT, lw=0, zorder=0)
    if np.any(some & ~every):
        axes.plot(
            ordered[some & ~every],
            np.full(int(np.sum(some & ~every)), 0.015),
            transform=axes.get_xaxis_transform(),
            ls="none",
            marker="|",
            ms=7,
            color=DIVERGED,
            zorder=4,
        )
        handles.append(Line2D([], [], ls="none", marker="|", ms=7, color=DIVERGED, label="some starts diverge"))
    if every.any():
        handles.append(Patch(facecolor=LEFT, label="all starts diverge"))
    return handles

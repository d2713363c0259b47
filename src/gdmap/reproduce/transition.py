"""Where gradient descent stops converging: starts swept over step sizes, beside a predicted critical step size."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.optimize import brentq
from scipy.stats import binom

from gdmap.bracket import Bracket
from gdmap.ensembles import Fate
from gdmap.flags import flag_attributes
from gdmap.objectives import AbstractObjective
from gdmap.plots.transition import COLOURS, MARKERS
from gdmap.reproduce.report import Agreement
from gdmap.sweeps import sweep
from gdmap.sweeps.fractions import CONFIDENCE, share_of

Progress = Callable[[int, int], None]

# Step sizes, relative to the predicted critical one, at which the two sides are compared.
NEAR = (0.98, 1.02)
# Parts of the progress of a case: the sweep, then the search for the transition.
SWEPT, PROBED = 70, 30
# Where the next step size is taken: in the middle it would soon be the critical one, where orbits are slowest.
ASIDE = 0.4
# Gradient norms below this are drawn at it: rounding noise, and zeros. And where the picture ends.
FLOOR, CEILING = 1e-17, 30.0


class Ray(NamedTuple):
    """A line through a minimum that gradient descent keeps: ``x -> x - eta gradient(x)`` on it.

    ``factor`` is the length of the whole gradient over ``|gradient(x)|``.
    """

    gradient: Callable[[Any], Any]
    slope: Callable[[Any], Any]
    minimum: float
    factor: float = 1.0


class Case(NamedTuple):
    """A loss, the law ``N(0, scale^2 I)`` of its starts, and its predicted critical step size."""

    name: str
    objective: AbstractObjective
    scale: float
    predicted: Bracket
    ray: Ray | None = None


class Study(NamedTuple):
    """The sizes of a run.

    ``factors`` are step sizes relative to the predicted one; ``starts`` and ``max_steps`` are per step size, and
    ``probe_starts``, ``probe_steps`` those of the search for the transition, which ends at the relative ``width``.
    """

    factors: tuple[float, ...]
    starts: int
    max_steps: int
    probe_starts: int
    probe_steps: int
    width: float

    def words(self) -> str:
        """The sizes in words."""
        return (
            f"{self.starts:,} starts (the same at every step size) at each of {len(self.factors)} step sizes, at "
            f"most {self.max_steps:,} steps each, float64; every fate judged as in `gdmap.ensemble`."
        )

    def probe_words(self) -> str:
        """The search for the transition in words."""
        return (
            f"The observed transition: bisection in the step size with {self.probe_starts:,} fresh starts and at "
            f"most {self.probe_steps:,} steps at each, from the largest step size where some start reached a "
            "minimum to the smallest above it where none did and most of the bounded ones were seen to do "
            "something else."
        )


class Probe(NamedTuple):
    """One step size of the search: how many of the starts reached a minimum, diverged, or are not decided."""

    step_size: float
    starts: int
    minimum: int
    diverged: int
    open: int

    @property
    def some(self) -> bool:
        """Whether some start reached a minimum."""
        return self.minimum > 0

    @property
    def none(self) -> bool:
        """Whether no start did, and at most half of those that stayed bounded are not decided."""
        return not self.some and 2 * self.open <= self.starts - self.diverged


class Transition(NamedTuple):
    """A case swept, with its observed transition."""

    case: Case
    factors: np.ndarray
    swept: xr.Dataset
    norms: np.ndarray
    cycle: np.ndarray
    observed: Bracket
    probes: list[Probe]

    def at(self, factor: float) -> int:
        """The index of a step size, relative to the predicted one."""
        return int(np.argmin(np.abs(self.factors - factor)))

    def share(self, factor: float, fate: str = "minimum") -> Bracket:
        """The share of a fate at a step size, with its Wilson interval."""
        one = self.swept.isel(step_size=self.at(factor)).sel(fate_name=fate)
        words = f"share of {self.swept.sizes['start']} starts, Wilson score interval"
        low, high = float(one["fraction_lower"]), float(one["fraction_upper"])
        value = float(one["fraction"])
        return Bracket(value, min(low, value), max(high, value), "estimated", words, CONFIDENCE)

    def norm(self, factor: float) -> Bracket:
        """The median of the last gradient norms of the bounded starts, with its confidence interval."""
        value, low, high = map(float, self.norms[self.at(factor)])
        words = "median over the starts that did not diverge, order statistics"
        return Bracket(value, low, high, "estimated", words, CONFIDENCE)

    @property
    def reached(self) -> np.ndarray:
        """Whether each start reached a minimum at each step size, shape ``(step_size, start)``."""
        return (self.swept["fate"] == int(Fate.MINIMUM)).transpose("step_size", "start").values

    @property
    def above(self) -> np.ndarray:
        """Which step sizes lie above the predicted critical one, beyond doubt."""
        return self.swept["step_size"].values > self.case.predicted.upper

    def reached_above(self) -> Bracket:
        """The share of the starts that reach a minimum at any of the step sizes above the predicted one."""
        return share_of_hits(self.reached[self.above].any(axis=0))


def share_of_hits(hits: np.ndarray) -> Bracket:
    """The share of ``True`` among starts, with its Wilson interval."""
    return share_of(int(np.sum(hits)), len(hits))


# Running ---------------------------------------------------------------------------------------------------------


def observe(case: Case, study: Study, seed: int, progress: Callable[[float], None]) -> Transition:
    """Sweep a case and locate its transition; ``progress`` takes the finished part, from 0 to 1."""
    unit = case.predicted.value if math.isfinite(case.predicted.value) else 1.0
    factors = np.array(study.factors)
    swept = sweep(
        case.objective,
        unit * factors,
        study.starts,
        study.max_steps,
        scale=case.scale,
        seed=seed,
        progress=lambda done, total: progress(SWEPT / 100 * done / total),
    )
    probes = locate(case, study, swept, seed, progress)
    cycle = np.array([cycle_norm(case.ray, eta) for eta in unit * factors])
    norms = median_norms(swept)
    progress(1.0)
    return Transition(case, factors, swept, norms, cycle, observed_of(probes), probes)


def probes_of(swept: xr.Dataset) -> list[Probe]:
    """The step sizes of a sweep as probes."""
    found = []
    for eta in swept["step_size"].values:
        fate = swept["fate"].sel(step_size=eta).values
        counts = [int(np.sum(fate == int(one))) for one in (Fate.MINIMUM, Fate.DIVERGED)]
        still = int(np.sum(np.isin(fate, [int(Fate.UNDECIDED), int(Fate.MARGINAL)])))
        found.append(Probe(float(eta), len(fate), counts[0], counts[1], still))
    return found


def locate(
    case: Case, study: Study, swept: xr.Dataset, seed: int, progress: Callable[[float], None]
) -> list[Probe]:
    """All step sizes looked at: those of the sweep, then bisection at both ends of what is not yet told.

    Close to the transition orbits are slow, and a step size where most are undecided belongs to neither side: so
    the largest with a minimum and the smallest without are searched one after the other.
    """
    probes = probes_of(swept)
    expected = 2 * math.ceil(math.log2(max(2.0, (NEAR[1] - NEAR[0]) / study.width)))
    fresh = 0

    def probe(eta: float) -> Probe:
        nonlocal fresh
        fresh += 1
        one = sweep(
            case.objective,
            [eta],
            study.probe_starts,
            study.probe_steps,
            scale=case.scale,
            seed=(seed + fresh) % 2**32,
        )
        probes.extend(probes_of(one))
        progress((SWEPT + PROBED * min(1.0, fresh / expected)) / 100)
        return probes[-1]

    low, high = ends_of(probes)
    if not (0 < low < high < math.inf):
        return probes
    top = high
    while top - low > study.width * low:
        one = probe(low + ASIDE * (top - low))
        low, top = (one.step_size, top) if one.some else (low, one.step_size)
        high = one.step_size if one.none else high
    bottom = top if top < high else low
    while high - bottom > study.width * low:
        one = probe(high - ASIDE * (high - bottom))
        bottom, high = (bottom, one.step_size) if one.none else (one.step_size, high)
    return probes


def ends_of(probes: Sequence[Probe]) -> tuple[float, float]:
    """The largest step size with a minimum (0 without any), the smallest above it without (or infinity)."""
    low = max((one.step_size for one in probes if one.some), default=0.0)
    high = min((one.step_size for one in probes if one.none and one.step_size > low), default=math.inf)
    return low, high


def observed_of(probes: Sequence[Probe]) -> Bracket:
    """Where minima cease to be reached, as an interval."""
    low, high = ends_of(probes)
    words = "largest step size at which some start reached a minimum"
    if high == math.inf:
        return Bracket(low, low, high, "estimated", f"{words}; none above it was without")
    last = next(one for one in probes if one.step_size == high)
    counts = f"{last.diverged} diverged, {last.open} undecided"
    words += f"; above, the smallest at which none of {last.starts} did ({counts})"
    return Bracket((low + high) / 2, low, high, "estimated", words)


def median_norms(swept: xr.Dataset) -> np.ndarray:
    """Median of the last gradient norms of the starts that did not diverge, and its ends, ``(step_size, 3)``."""
    bounded = swept["gradient_norm"].where(swept["fate"] != int(Fate.DIVERGED)).transpose("step_size", "start")
    return np.array([median_with_interval(row[np.isfinite(row)]) for row in bounded.values])


def median_with_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The median and the order statistics that enclose it at the usual confidence, whatever the distribution.

    The interval is all of ``[0, inf]`` for fewer than six values; without any value everything is NaN.
    """
    if not len(values):
        return math.nan, math.nan, math.nan
    ordered = np.sort(values)
    rank = int(binom.ppf((1 - CONFIDENCE) / 2, len(ordered), 0.5))
    ends = (ordered[rank - 1], ordered[-rank]) if rank > 0 else (0.0, math.inf)
    return float(np.median(ordered)), float(ends[0]), float(ends[1])


def cycle_norm(ray: Ray | None, eta: float) -> float:
    """The gradient norm on the stable 2-cycle around the minimum of a ray, NaN where there is none.

    It is the same at both points: ``x_1 - x_2 = eta g(x_1) = -eta g(x_2)``. For ``1/2 (x y - 1)^2`` it is
    ``sqrt(2 (eta - 1) / eta^3)``.
    """
    if ray is None or eta * float(ray.slope(ray.minimum)) <= 2:
        return math.nan

    def step(x: Any) -> Any:
        return x - eta * ray.gradient(x)

    def returned(x: Any) -> Any:
        return step(step(x)) - x

    inner = ray.minimum * (1 - np.geomspace(1e-6, 1 - 1e-6, 4000))
    signs = np.sign(returned(inner))
    turns = np.flatnonzero(signs[:-1] * signs[1:] < 0)
    if not len(turns):
        return math.nan
    x = brentq(returned, inner[turns[0]], inner[turns[0] + 1], xtol=1e-15)
    multiplier = (1 - eta * ray.slope(x)) * (1 - eta * ray.slope(step(x)))
    return float(ray.factor * abs(ray.gradient(x))) if abs(multiplier) < 1 else math.nan


# What claims need ------------------------------------------------------------------------------------------------


def meets(one: Bracket, other: Bracket) -> bool:
    """Whether two intervals have a point in common."""
    return one.lower <= other.upper and other.lower <= one.upper


def drops(transition: Transition) -> bool:
    """Whether the share of minima falls to zero at the prediction: the interval meets it, and the sides differ."""
    below, above = transition.share(NEAR[0]), transition.share(NEAR[1])
    return (
        meets(transition.observed, transition.case.predicted)
        and above.value == 0
        and below.lower > above.upper
        and not transition.reached[transition.above].any()
    )


def jumps(transition: Transition) -> bool:
    """Whether the median gradient norm above the prediction is more than ten times that below, beyond doubt."""
    below, above = transition.norm(NEAR[0]), transition.norm(NEAR[1])
    return 10 * below.upper < above.lower


def rise_agrees(transitions: Sequence[Transition]) -> Agreement:
    """``'yes'`` if all medians rise beyond doubt, ``'no'`` if one beyond doubt does not, else open."""
    if all(jumps(one) for one in transitions):
        return "yes"
    contrary = [10 * one.norm(NEAR[0]).lower >= one.norm(NEAR[1]).upper for one in transitions]
    return "no" if any(contrary) else "undecided"


def others_below(transitions: Sequence[Transition]) -> str:
    """Which starts stay bounded just below the prediction without converging, in a sentence; empty if none do."""
    seen = [
        f"{one.case.name}: {100 * share.value:.0f} % {fate}"
        for one in transitions
        for fate in ("periodic", "quasiperiodic", "chaotic")
        if (share := one.share(NEAR[0], fate)).value > 0.01
    ]
    if not seen:
        return ""
    return (
        f" At {NEAR[0]:g} of it some starts already end on other attractors ({'; '.join(seen)}), beside the "
        "minima, which are stable up to the critical step size."
    )


def drop_found(transitions: Sequence[Transition]) -> dict[str, Bracket]:
    """Predicted and observed transition, and the shares on both sides, by name."""
    found: dict[str, Bracket] = {}
    for one in transitions:
        name = one.case.name
        found[f"{name}: predicted critical step size"] = one.case.predicted
        found[f"{name}: observed transition"] = one.observed
        for factor in NEAR:
            found[f"{name}: share converging at {factor:g} of it"] = one.share(factor)
        for side, some in (("below", ~one.above), ("above", one.above)):
            undecided = one.swept["fraction"].sel(fate_name="undecided").values[some]
            worst = int(np.argmax(undecided))
            found[f"{name}: undecided {side} it, at most"] = one.share(
                float(one.factors[some][worst]), "undecided"
            )
    return found


def jump_found(transitions: Sequence[Transition]) -> dict[str, Bracket]:
    """Median gradient norms on both sides, beside those of the 2-cycle, by name."""
    found: dict[str, Bracket] = {}
    for one in transitions:
        name = one.case.name
        for factor in (*NEAR, 1.1):
            index = one.at(factor)
            if np.isfinite(one.norms[index, 0]):
                found[f"{name}: median gradient norm at {factor:g}"] = one.norm(factor)
            if np.isfinite(one.cycle[index]):
                value = float(one.cycle[index])
                slack = 1e-9 * value
                words = "gradient norm on the 2-cycle of the line through the flattest minimum, root finding"
                found[f"{name}: on the 2-cycle at {factor:g}"] = Bracket(
                    value, value - slack, value + slack, "computed", words
                )
    return found


def cycle_error(transitions: Sequence[Transition]) -> Bracket:
    """The largest relative difference of a median from the 2-cycle, just above the prediction and at 1.1."""
    apart = [
        abs(one.norms[one.at(factor), 0] / one.cycle[one.at(factor)] - 1)
        for one in transitions
        for factor in (NEAR[1], 1.1)
        if np.isfinite(one.cycle[one.at(factor)])
    ]
    value = float(np.nanmax(apart)) if np.isfinite(apart).any() else math.inf
    return Bracket(value, 0.0, 2 * value, "computed", f"largest of {len(apart)} relative differences")


def named(transitions: Sequence[Transition], which: Sequence[bool]) -> str:
    """The names of the cases for which something does not hold, or 'none'."""
    return ", ".join(one.case.name for one, good in zip(transitions, which, strict=True) if not good) or "none"


def widest(transitions: Sequence[Transition]) -> str:
    """The observed intervals relative to the prediction, the widest of them, as words."""
    ends = [
        (one.observed.lower / one.case.predicted.value, one.observed.upper / one.case.predicted.value)
        for one in transitions
    ]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    return f"from {low:.4f} to {high:.4f} of the predicted one"


# Data and pictures -----------------------------------------------------------------------------------------------


def dataset(transitions: Sequence[Transition], source: str) -> xr.Dataset:
    """Fates, gradient norms, shares and medians over ``case`` and ``position`` (the place in the grid)."""
    parts = []
    longest = max(len(one.probes) for one in transitions)
    for one in transitions:
        swept = one.swept.rename(step_size="position")
        probed = np.full((longest, 3), np.nan)
        for row, probe in enumerate(one.probes):
            probed[row] = probe.step_size, probe.minimum / probe.starts, probe.open / probe.starts
        part = swept[["fate", "steps", "gradient_norm", "fraction", "fraction_lower", "fraction_upper"]].drop_vars(
            "position"
        )
        parts.append(
            part.assign(
                step_size=("position", swept["position"].values),
                factor=("position", one.factors),
                median=("position", one.norms[:, 0]),
                median_lower=("position", one.norms[:, 1]),
                median_upper=("position", one.norms[:, 2]),
                cycle=("position", one.cycle),
                predicted=one.case.predicted.value,
                observed_lower=one.observed.lower,
                observed_upper=one.observed.upper,
                probe_step_size=("probe", probed[:, 0]),
                probe_minimum=("probe", probed[:, 1]),
                probe_undecided=("probe", probed[:, 2]),
            )
        )
    joined = xr.concat(parts, dim="case").assign_coords(case=np.arange(len(parts)))
    codes = [int(Fate[name.upper()]) for name in joined["fate_name"].values]
    joined = joined.assign_coords(fate_name=codes)
    joined["fate_name"].attrs = {"long_name": "fate", **flag_attributes(Fate)}
    words = {
        "step_size": ("step size", "computed"),
        "factor": ("step size over the predicted critical one (step size itself where there is none)", "computed"),
        "median": ("median of the last gradient norm over the starts that did not diverge", "estimated"),
        "median_lower": ("lower end of its confidence interval", "estimated"),
        "median_upper": ("upper end of its confidence interval", "estimated"),
        "cycle": ("gradient norm on the stable 2-cycle around the flattest minimum", "computed"),
        "predicted": ("predicted critical step size", transitions[0].case.predicted.status),
        "observed_lower": ("largest step size at which some start reached a minimum", "computed"),
        "observed_upper": ("smallest step size above it at which none did", "estimated"),
        "probe_step_size": ("step sizes looked at, those of the sweep first", "computed"),
        "probe_minimum": ("share of the starts there that reached a minimum", "estimated"),
        "probe_undecided": ("share of the starts there that are undecided or marginal", "estimated"),
    }
    for name, (long_name, status) in words.items():
        joined[name].attrs = {"long_name": long_name, "status": status, "units": "1"}
    joined["predicted"].attrs["status"] = ", ".join(sorted({one.case.predicted.status for one in transitions}))
    joined["fate"].attrs = {"long_name": "fate of the trajectory", "status": "computed", **flag_attributes(Fate)}
    joined["case"].attrs = {"long_name": "loss", "names": [one.case.name for one in transitions]}
    joined.attrs = {"status": "computed", "source": source}
    return joined


def share_figure(transitions: Sequence[Transition], title: str) -> Figure:
    """Share of every fate with its Wilson interval against the step size, one panel for each case."""
    figure, panels, last = grid(len(transitions))
    for panel, one in zip(panels, transitions, strict=True):
        x = one.factors
        for name, colour in COLOURS.items():
            chosen = one.swept.sel(fate_name=name)
            if float(chosen["fraction"].max()) > 0:
                low, high = chosen["fraction_lower"], chosen["fraction_upper"]
                panel.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
                panel.plot(x, chosen["fraction"], color=colour, marker=MARKERS[name], ms=3.5, lw=1.3)
        panel.set_ylim(-0.03, 1.03)
        finish(panel, one)
    present = [
        name
        for name in COLOURS
        if any(float(one.swept["fraction"].sel(fate_name=name).max()) > 0 for one in transitions)
    ]
    handles: list[Any] = [
        Line2D([], [], color=COLOURS[name], marker=MARKERS[name], ms=4, label=name) for name in present
    ]
    legend(last, [*handles, Patch(color="0.5", alpha=0.3, lw=0, label="95 % Wilson interval"), *marks()])
    figure.supylabel("share of starts", fontsize="medium")
    figure.suptitle(title, fontsize="medium")
    return figure


def norm_figure(transitions: Sequence[Transition], title: str) -> Figure:
    """Median of the last gradient norm with its interval against the step size, one panel for each case."""
    figure, panels, last = grid(len(transitions))
    for panel, one in zip(panels, transitions, strict=True):
        some = np.isfinite(one.norms[:, 0])
        value, low, high = np.maximum(one.norms[some], FLOOR).T
        x = one.factors[some]
        panel.set_yscale("log")
        panel.fill_between(x, low, np.minimum(high, CEILING), color="#0072B2", alpha=0.25, lw=0)
        panel.plot(x, value, color="#0072B2", marker="o", ms=3.5, lw=1.3)
        for place in one.factors[~some]:
            panel.plot(place, 0.95, "x", color=COLOURS["diverged"], ms=6, transform=panel.get_xaxis_transform())
        if one.case.ray is not None and np.isfinite(one.case.predicted.value):
            fine = np.linspace(1.0005, one.factors.max(), 120)
            curve = [cycle_norm(one.case.ray, one.case.predicted.value * factor) for factor in fine]
            panel.plot(fine, curve, color="#D55E00", lw=2.2, alpha=0.8, zorder=1)
        panel.set_ylim(FLOOR / 2, CEILING)
        finish(panel, one)
    handles: list[Any] = [
        Line2D([], [], color="#0072B2", marker="o", ms=4, label="median of the bounded starts"),
        Patch(color="#0072B2", alpha=0.25, lw=0, label="its 95 % interval"),
        Line2D([], [], color="#D55E00", lw=2.2, label="on the stable 2-cycle (solved to rounding)"),
        Line2D([], [], color=COLOURS["diverged"], marker="x", ls="", label="all starts diverged"),
    ]
    legend(last, [*handles, *marks()])
    figure.supylabel(
        "gradient norm at the end (runs stop when steps are negligible: then at most)", fontsize="medium"
    )
    figure.suptitle(title, fontsize="medium")
    return figure


def grid(count: int) -> tuple[Figure, list[Axes], Axes]:
    """Panels for ``count`` cases, and one for the legend."""
    columns = 4 if 6 <= count <= 7 else 3
    rows = math.ceil((count + 1) / columns)
    figure = Figure(figsize=(1.0 + 3.1 * columns, 0.8 + 2.7 * rows), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for cell in cells[count:]:
        cell.axis("off")
    return figure, list(cells[:count]), cells[count]


def finish(panel: Axes, one: Transition) -> None:
    """Title, axes, the prediction and the observed interval of a panel."""
    predicted = one.case.predicted
    if math.isfinite(predicted.value):
        panel.axvline(1, color="black", ls="--", lw=1.1)
        ends = np.array([one.observed.lower, min(one.observed.upper, 1e9)]) / predicted.value
        panel.axvspan(ends[0], ends[1], color="#009E73", alpha=0.35, lw=0)
        panel.set_xlabel("step size / critical step size")
        predicted_words = f"critical step size {predicted.value:.5g} ({predicted.status})"
        observed_words = f"observed in [{one.observed.lower:.5g}, {one.observed.upper:.5g}]"
        panel.set_title(f"{one.case.name}\n{predicted_words}\n{observed_words}", fontsize="small")
    else:
        panel.set_xscale("log")
        panel.set_xlabel("step size")
        panel.set_title(f"{one.case.name}\nno critical step size", fontsize="small")
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.tick_params(labelsize="small")


def marks() -> list[Any]:
    """Legend entries of the prediction and the observed interval."""
    return [
        Line2D([], [], color="black", ls="--", lw=1.1, label="predicted critical step size"),
        Patch(color="#009E73", alpha=0.35, lw=0, label="observed transition (estimated)"),
    ]


def legend(cell: Axes, handles: list[Any]) -> None:
    """The legend of a figure in a cell of its own."""
    cell.legend(handles=handles, loc="center", frameon=False, fontsize="small")


class Steps:
    """Progress of several cases as whole numbers for a bar."""

    def __init__(self, cases: int, progress: Progress | None) -> None:
        self.total, self.progress = 100 * cases, progress

    def of(self, number: int) -> Callable[[float], None]:
        """What case ``number`` reports to."""

        def report(part: float) -> None:
            if self.progress is not None:
                self.progress(100 * number + round(100 * min(part, 1.0)), self.total)

        return report

"""Bifurcation diagrams: the periodic orbits of a map, stable and unstable, against a parameter."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

import equinox as eqx
import numpy as np
import xarray as xr

from gdmap.bracket import Bracket
from gdmap.continuation.branch import Branch
from gdmap.continuation.branch_tree import BranchTree, grow
from gdmap.continuation.cascade import ratio_of
from gdmap.continuation.event import Criticality, Event, Kind
from gdmap.engines.xla import block_size, on_lanes
from gdmap.maps import Map, family_along
from gdmap.orbits.find import PeriodicOrbits, checked_period, periodic_orbits
from gdmap.orbits.periodic_orbit import NoOrbitError, PeriodicOrbit
from gdmap.orbits.symmetries import Symmetry

STABILITIES = ("none", "stable", "unstable", "marginal")
KINDS: tuple[str, ...] = get_args(Kind)
CRITICALITIES: tuple[str, ...] = ("none", *get_args(Criticality))


def bifurcation_diagram(
    map_or_orbits: Map | PeriodicOrbit | Iterable[PeriodicOrbit],
    parameter: str | Callable[[Any], Map] = "step_size",
    bounds: tuple[float, float] | None = None,
    *,
    periods: int | Sequence[int] = 1,
    starts: Any = 64,
    value: float | None = None,
    doublings: int = 2,
    branch_points: bool = False,
    symmetries: Sequence[Symmetry] = (),
    observable: Callable[[Any], Any] | None = None,
    scale: float = 1.0,
    seed: int = 0,
    step: float = 0.01,
    largest_step: float = 0.1,
    max_points: int = 2000,
    max_branches: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Branches of periodic orbits against a parameter of the map, stable and unstable, with their bifurcations.

    The orbits of the periods asked for are found at the present value (`periodic_orbits`), or given, and continued
    to both sides (`continue_orbit`); from their period doublings the orbits of twice the period are followed
    (`switch_branch`), and so on. A branch that is reached several times (from several of its orbits, from both
    ends, from the other side of a fold, from images under ``symmetries``) is there once. Unlike `orbit_diagram` it
    shows which orbits exist, whether or not anything goes there; what no start and no bifurcation leads to is
    missing.

    Parameters
    ----------
    map_or_orbits
        A map at the present value; or an orbit, or several (`orbit_at`, `periodic_orbits`), each at its own
        value of the named parameter.
    parameter, value
        What is varied: a name in ``map.numbers``, or a traceable function of the value that makes the map, with
        the present ``value``.
    bounds
        ``(lowest, highest)`` value; the present one must lie between.
    periods
        Which periods to look for, with a map.
    starts, scale, seed
        Of the search, as for `periodic_orbits`; with a map.
    doublings
        How many period doublings are followed one after another; 0 for none.
    branch_points
        Whether the other branch through a branch point is followed too.
    symmetries
        Functions ``state -> state`` that commute with the map at every value: branches that they map to each other
        are there once.
    observable
        A traceable function ``state -> number``, evaluated at every point.
    step, largest_step, max_points
        As for `continue_orbit`.
    max_branches
        At most so many; what is left out is said in ``event_not_followed`` and ``not_followed``.
    progress
        Called as ``progress(finished, total)``; the total grows with the bifurcations found.

    Returns
    -------
    xarray.Dataset
        Status *computed*. Over ``branch`` and ``position`` along it (NaN beyond its end): ``parameter``,
        ``multiplier`` (complex, the largest across the family of orbits), ``margin`` (``1 - |multiplier|``),
        ``stability`` (a flag, by CF attributes), ``residual``, ``error``; ``state`` with ``point`` of the orbit
        and ``component``, and ``observable``. Over ``branch``: ``period``, ``neutral_dimension``, ``length``,
        ``generation`` (doublings between it and a start), ``born_at`` (the event it was born at, -1: none). Over
        ``event``: ``event_kind`` and ``event_criticality`` (flags), ``event_parameter``, ``event_error``,
        ``event_coefficient``, ``event_coefficient_error`` (NaN where there is none), ``event_multiplier``,
        ``event_multiplicity``, ``event_angle``, ``event_period``, ``event_branch``, ``event_position`` along it,
        ``event_born`` (the branch that leaves there, -1: none was followed), ``event_state`` (and
        ``event_observable``). Attributes: ``starts_because`` and ``ends_because``, one sentence for each branch,
        with ``start_reasons`` and ``end_reasons``, a few words; ``event_not_followed``, one for each event (empty:
        it was followed); ``not_followed`` and ``search``, what else there is to know.

    Raises
    ------
    NoOrbitError
        If no orbit of these periods is found at the present value, or none can be continued.
    TypeError, ValueError
        For arguments that make no sense; as `periodic_orbits` and `continue_orbit`.
    """
    for name, number, least in (("doublings", doublings, 0), ("max_branches", max_branches, 1)):
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < least:
            raise ValueError(f"{name} must be an integer from {least}, got {number!r}")
    orbits, search = starting_orbits(map_or_orbits, periods, starts, scale, seed, parameter, value, bounds)
    if not orbits:
        raise NoOrbitError(" ".join(search))
    bounds = checked_to_contain(bounds, orbits, parameter, value)
    tree = grow(
        orbits,
        parameter,
        bounds,
        value,
        doublings=int(doublings),
        branch_points=branch_points,
        symmetries=symmetries,
        max_branches=int(max_branches),
        controls={"step": step, "largest_step": max(step, largest_step), "max_points": max_points},
        progress=progress,
    )
    if not tree.limbs:
        raise NoOrbitError(f"no branch could be followed: {'; '.join(tree.not_followed)}")
    dataset = dataset_of(tree, observable)
    dataset.attrs.update(bounds=list(bounds), search=search, map=repr(orbits[0].map))
    return dataset


def starting_orbits(
    given: Any,
    periods: Any,
    starts: Any,
    scale: float,
    seed: int,
    parameter: Any,
    value: float | None,
    bounds: Any,
) -> tuple[list[PeriodicOrbit], list[str]]:
    """The orbits to begin with, and what the searches say where they are not simply given."""
    if isinstance(given, PeriodicOrbit):
        return [given], []
    if isinstance(given, Map):
        # Mistakes in the parameter or its bounds are seen before the search, which is long.
        present = family_along(given, parameter, value)[1]
        refuse_bounds(bounds, [present], parameter)
        wanted = [periods] if isinstance(periods, (int, np.integer)) else list(periods)
        if not wanted:
            raise ValueError("periods must name at least one period, such as periods=(1, 2)")
        found = [
            periodic_orbits(given, period, starts, scale=scale, seed=seed)
            for period in dict.fromkeys(map(checked_period, wanted))
        ]
        return [orbit for some in found for orbit in some], [some.explain().replace("\n", " ") for some in found]
    try:
        orbits = list(given)
    except TypeError:
        orbits = [None]
    if not all(isinstance(orbit, PeriodicOrbit) for orbit in orbits):
        raise TypeError(
            "give a map, or periodic orbits as gdmap.orbit_at and gdmap.periodic_orbits return them, got "
            f"{given!r}"
        )
    if not orbits:
        return [], [given.explain() if isinstance(given, PeriodicOrbits) else "No orbit was given to begin with."]
    if len({orbit.map.state_dim for orbit in orbits}) > 1 or len({type(orbit.map) for orbit in orbits}) > 1:
        raise ValueError("the orbits belong to different maps: draw one diagram for each")
    return orbits, [given.explain().replace("\n", " ")] if isinstance(given, PeriodicOrbits) else []


def checked_to_contain(
    bounds: Any, orbits: Sequence[PeriodicOrbit], parameter: Any, value: float | None
) -> tuple[float, float]:
    """The bounds, which must hold the values of all orbits."""
    return refuse_bounds(bounds, [family_along(orbit.map, parameter, value)[1] for orbit in orbits], parameter)


def refuse_bounds(bounds: Any, values: Sequence[float], parameter: Any) -> tuple[float, float]:
    """Two increasing numbers around the values, or an error."""
    name = parameter if isinstance(parameter, str) else "value"
    try:
        low, high = (float(end) for end in bounds)
    except (TypeError, ValueError):
        raise ValueError(f"bounds must be two numbers (lowest, highest {name}), got {bounds!r}") from None
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"bounds must be finite and increasing, got ({low}, {high})")
    if parameter in ("step_size", "learning_rate") and low <= 0:
        raise ValueError(f"the lower bound of {name} must be positive, got {low}: at 0 every state is fixed")
    outside = [one for one in values if not low <= one <= high]
    if outside:
        raise ValueError(
            f"bounds ({low:g}, {high:g}) leave out the present {name}, {outside[0]:.10g}: widen them to contain it"
        )
    return low, high


# The dataset -----------------------------------------------------------------------------------------------------


class Observed(eqx.Module):
    """An observable as a lane."""

    observable: Callable[[Any], Any]

    def __call__(self, state: Any) -> Any:
        """One number."""
        return self.observable(state)


def observed(observable: Callable[[Any], Any], states: np.ndarray) -> np.ndarray:
    """The observable at every state, NaN where there is none."""
    values = np.full(states.shape[:-1], np.nan)
    there = np.isfinite(states).all(axis=-1)
    if there.any():
        seen = on_lanes(Observed(observable), (states[there],), block_size(64 * states.shape[-1], largest=256))
        if np.shape(seen) != (int(there.sum()),):
            raise ValueError(f"observable must return one number, got shape {np.shape(seen)[1:]}")
        values[there] = seen
    return values


def flags(names: Sequence[str]) -> dict[str, Any]:
    """CF attributes that name the values 0, 1, ... of a flag."""
    return {"flag_values": list(range(len(names))), "flag_meanings": " ".join(names)}


def dataset_of(tree: BranchTree, observable: Callable[[Any], Any] | None) -> xr.Dataset:
    """The branches side by side, padded with NaN, and the events."""
    branches = [limb.branch for limb in tree.limbs]
    lengths = [len(branch.parameter) for branch in branches]
    periods = [branch.period for branch in branches]
    dim = branches[0].points.shape[2]
    along = (len(branches), max(lengths))
    filled: dict[str, np.ndarray] = {
        "parameter": np.full(along, np.nan),
        "multiplier": np.full(along, np.nan, complex),
        "margin": np.full(along, np.nan),
        "stability": np.zeros(along, np.int8),
        "residual": np.full(along, np.nan),
        "error": np.full(along, np.nan),
        "state": np.full((*along, max(periods), dim), np.nan),
    }
    for row, branch in enumerate(branches):
        n = lengths[row]
        filled["parameter"][row, :n] = branch.parameter
        if branch.multipliers.shape[1]:
            filled["multiplier"][row, :n] = branch.multipliers[:, 0]
        filled["margin"][row, :n] = branch.margin
        filled["stability"][row, :n] = [STABILITIES.index(str(one)) for one in branch.stability]
        filled["residual"][row, :n] = branch.residuals
        filled["error"][row, :n] = branch.errors
        filled["state"][row, :n, : branch.period] = branch.points
    dims = ("branch", "position")
    variables: dict[str, Any] = {
        name: (dims if values.ndim == 2 else (*dims, "point", "component"), values, attributes(name))
        for name, values in filled.items()
    }
    variables.update(event_variables(tree, max(periods), dim))
    if observable is not None:
        for prefix, over in (("", dims), ("event_", ("event",))):
            variables[f"{prefix}observable"] = (
                (*over, "point"),
                observed(observable, variables[f"{prefix}state"][1]),
                {"long_name": "observable along the orbit", "status": "computed"},
            )
    for name, numbers, words in (
        ("period", periods, "period of the orbits"),
        ("neutral_dimension", [branch.neutral_dimension for branch in branches], "dimension of their families"),
        ("length", lengths, "number of points along the branch"),
        ("generation", [limb.generation for limb in tree.limbs], "period doublings between it and a start"),
        (
            "born_at",
            [-1 if limb.born_at is None else limb.born_at for limb in tree.limbs],
            "event at which the branch was born (-1: a start)",
        ),
    ):
        variables[name] = ("branch", np.array(numbers, np.int64), {"long_name": words, "units": "1"})
    name = branches[0].parameter_name
    variables["parameter"][2]["long_name"] = name.replace("_", " ")
    return xr.Dataset(
        variables,
        attrs={
            "parameter": name,
            "status": "computed",
            "method": "pseudo-arclength continuation of the shooting equation, switching at bifurcations",
            "starts_because": [branch.ended["start"].message for branch in branches],
            "ends_because": [branch.ended["end"].message for branch in branches],
            "start_reasons": [branch.ended["start"].reason for branch in branches],
            "end_reasons": [branch.ended["end"].reason for branch in branches],
            "event_not_followed": [fork.not_followed for fork in tree.forks],
            "not_followed": tree.not_followed,
        },
    )


LONG_NAMES = {
    "parameter": ("value of the parameter", "computed"),
    "multiplier": ("largest multiplier across the family of orbits", "computed"),
    "margin": ("1 - |largest multiplier|", "computed"),
    "stability": ("stability of the orbit", "computed"),
    "residual": ("norm of the defect of the orbit", "computed"),
    "error": ("estimated distance to the exact orbit", "estimated"),
    "state": ("points of the orbit", "computed"),
}


def attributes(name: str) -> dict[str, Any]:
    """Those of a variable along the branches."""
    words, status = LONG_NAMES[name]
    if name == "stability":
        return {"long_name": words, "status": status, **flags(STABILITIES)}
    units = "units of the state" if name in ("residual", "error", "state") else "1"
    return {"long_name": words, "status": status, "units": units}


def event_variables(tree: BranchTree, longest: int, dim: int) -> dict[str, Any]:
    """The variables over ``event``."""
    events = [fork.event for fork in tree.forks]
    brackets = [event.coefficient for event in events]
    states = np.full((len(events), longest, dim), np.nan)
    for row, event in enumerate(events):
        states[row, : event.period] = event.points
    kinds = np.array([KINDS.index(event.kind) for event in events], np.int8)
    criticalities = np.array([CRITICALITIES.index(event.criticality or "none") for event in events], np.int8)
    values = np.array([np.nan if bracket is None else bracket.value for bracket in brackets], float)
    errors = [np.nan if one is None else max(one.upper - one.value, one.value - one.lower) for one in brackets]
    born = np.array([-1 if fork.born is None else fork.born for fork in tree.forks], np.int64)
    angles = np.array([np.nan if event.angle is None else event.angle for event in events], float)

    def over(values: Any, words: str, status: str = "computed", **more: Any) -> Any:
        units = {} if more else {"units": "1"}
        return "event", np.asarray(values), {"long_name": words, "status": status, **units, **more}

    return {
        "event_kind": over(kinds, "kind of bifurcation", **flags(KINDS)),
        "event_parameter": over(
            np.array([event.parameter for event in events], float), "value of the parameter at the bifurcation"
        ),
        "event_error": over(
            np.array([event.error for event in events], float), "estimated error of that value", "estimated"
        ),
        "event_criticality": over(criticalities, "what the sign of the coefficient says", **flags(CRITICALITIES)),
        "event_coefficient": over(values, "coefficient of the normal form"),
        "event_coefficient_error": over(np.array(errors, float), "its error", "estimated"),
        "event_multiplier": over(np.array([event.multiplier for event in events], complex), "critical multiplier"),
        "event_multiplicity": over(
            np.array([event.multiplicity for event in events], np.int64), "multipliers that cross together"
        ),
        "event_angle": over(angles, "argument of the multiplier (Neimark-Sacker)"),
        "event_period": over(np.array([event.period for event in events], np.int64), "period of the orbit"),
        "event_branch": over(np.array([fork.limb for fork in tree.forks], np.int64), "branch it lies on"),
        "event_position": over(
            np.array([place_on(tree.limbs[fork.limb].branch, fork.event) for fork in tree.forks], float),
            "position along that branch",
        ),
        "event_born": over(born, "branch that leaves there (-1: none was followed)"),
        "event_state": (
            ("event", "point", "component"),
            states,
            {"long_name": "orbit there", "units": "units of the state", "status": "computed"},
        ),
    }


def place_on(branch: Branch, event: Event) -> float:
    """Where a bifurcation lies along the points of its branch: 2.5 is half-way from the third to the fourth."""
    n = len(branch.parameter)
    if n < 2 or event.period != branch.period:
        # The end at which the branch shrinks onto the orbit of half its period.
        return (
            0.0
            if abs(branch.parameter[0] - event.parameter) <= abs(branch.parameter[-1] - event.parameter)
            else n - 1.0
        )
    scale = float(np.abs(branch.points).max()) or 1.0
    width = branch.bounds[1] - branch.bounds[0]
    curve = np.column_stack([branch.points.reshape(n, -1) / scale, branch.parameter / width])
    at = np.append(event.points.ravel() / scale, event.parameter / width)
    away = np.linalg.norm(curve - at, axis=1)
    chords = np.linalg.norm(np.diff(curve, axis=0), axis=1)
    place = int(np.argmin(away[:-1] + away[1:] - chords))
    total = float(away[place] + away[place + 1])
    return place + (float(away[place]) / total if total > 0 else 0.0)


def stable_ranges(dataset: xr.Dataset, row: int) -> list[tuple[float, float]]:
    """The intervals of the parameter over which a branch is stable, in order along it, up to bifurcations."""
    n = int(dataset["length"].values[row])
    parameter, stability = dataset["parameter"].values[row, :n], dataset["stability"].values[row, :n]
    stable = stability == STABILITIES.index("stable")
    # A marginal point at either side of stable ones is the bifurcation itself.
    limit = stability == STABILITIES.index("marginal")
    own = dataset["event_branch"].values == row
    places, values = dataset["event_position"].values[own], dataset["event_parameter"].values[own]
    ranges = []
    for begin in np.flatnonzero(stable & ~np.concatenate([[False], stable[:-1]])):
        end = begin + int(np.argmin(np.append(stable[begin:], False))) - 1
        before, after = (
            values[(places >= begin - 1) & (places <= begin)],
            values[(places >= end) & (places <= end + 1)],
        )
        edges = [
            begin - 1 if begin and limit[begin - 1] else begin,
            end + 1 if end < n - 1 and limit[end + 1] else end,
        ]
        first = float(before[-1]) if before.size else float(parameter[edges[0]])
        last = float(after[0]) if after.size else float(parameter[edges[1]])
        ranges.append((first, last))
    return ranges


# Cascades --------------------------------------------------------------------------------------------------------


def doubling_sequences(dataset: xr.Dataset) -> list[list[int]]:
    """The sequences of successive period doublings in a diagram, as numbers of events, the longest first.

    Each doubling is followed by the first one on the branch born there.
    """
    doubling = dataset["event_kind"].values == KINDS.index("period-doubling")
    branch, born, period = (dataset[f"event_{name}"].values for name in ("branch", "born", "period"))
    own = doubling & (period == dataset["period"].values[branch]) if len(branch) else doubling
    following = {}
    for event in np.flatnonzero(doubling & (born >= 0)):
        if branch[event] == born[event]:
            continue
        on_child = np.flatnonzero(own & (branch == born[event]))
        if on_child.size:
            following[int(event)] = first_after_birth(dataset, int(event), on_child)
    first = sorted({int(event) for event in np.flatnonzero(doubling)} - set(following.values()))
    sequences = []
    for beginning in first:
        sequence = [beginning]
        while sequence[-1] in following and following[sequence[-1]] not in sequence:
            sequence.append(following[sequence[-1]])
        sequences.append(sequence)
    return sorted(sequences, key=lambda sequence: (-len(sequence), sequence[0]))


def first_after_birth(dataset: xr.Dataset, event: int, others: np.ndarray) -> int:
    """The event on a branch that comes first after the one the branch was born at."""
    row = int(dataset["event_born"].values[event])
    last = int(dataset["length"].values[row]) - 1
    ends = np.abs(dataset["parameter"].values[row, [0, last]] - dataset["event_parameter"].values[event])
    places = dataset["event_position"].values[others]
    return int(others[np.argmin(places) if ends[0] <= ends[1] else np.argmax(places)])


def feigenbaum_ratios(dataset: xr.Dataset, sequence: Sequence[int]) -> list[Bracket]:
    """``(r_n - r_{n-1}) / (r_{n+1} - r_n)`` of the successive doublings in a sequence, errors propagated."""
    values, errors = dataset["event_parameter"].values, dataset["event_error"].values
    found = [
        Bracket(float(values[i]), float(values[i] - errors[i]), float(values[i] + errors[i]), "computed", "")
        for i in sequence
    ]
    return [ratio_of(*found[i : i + 3]) for i in range(len(found) - 2)]

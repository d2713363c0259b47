"""``gdmap bifurcation``: the periodic orbits of an optimiser against a parameter, with a picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gdmap.cli.maps import Momentum, Target, load_target, map_of, refuse_unknown, with_number
from gdmap.cli.options import Json, plain, print_json
from gdmap.cli.orbits import heading, in_options, refuse_file
from gdmap.cli.tables import progress_bar
from gdmap.continuation import bifurcation_diagram
from gdmap.continuation.bifurcation_diagram import doubling_sequences, feigenbaum_ratios, stable_ranges
from gdmap.flags import flag_names
from gdmap.maps import Map
from gdmap.objectives import AbstractObjective
from gdmap.orbits import NoOrbitError, PeriodicOrbit, orbit_diagram, periodic_orbits
from gdmap.plots import plot_bifurcation_diagram, plot_orbit_diagram

# Exit statuses; 2 is a mistake in the input, as of every command.
FOUND, NOTHING = 0, 3
VALUES, SAMPLES = 400, 100
SHORT = {
    "fold": "fold",
    "period-doubling": "doubling",
    "branch-point": "branch point",
    "neimark-sacker": "Neimark-Sacker",
}


def bifurcation(
    target: Target,
    step_sizes: Annotated[
        str | None, typer.Option(metavar="FROM:TO", help="The range of the step size, such as 0.1:1.5.")
    ] = None,
    parameter: Annotated[
        str, typer.Option(help="What is varied instead: momentum, or another number of a map; with --range.")
    ] = "step_size",
    range_: Annotated[
        str | None, typer.Option("--range", metavar="FROM:TO", help="The range of that parameter.")
    ] = None,
    step_size: Annotated[float | None, typer.Option(help="The step size where another number is varied.")] = None,
    momentum: Momentum = None,
    period: Annotated[list[int] | None, typer.Option(help="A period to begin with; repeat for more [1].")] = None,
    at: Annotated[
        list[float] | None,
        typer.Option(help="Values at which orbits are looked for; repeat for more [the lower end of the range]."),
    ] = None,
    doublings: Annotated[int, typer.Option(min=0, help="Period doublings followed one after another.")] = 3,
    branch_points: Annotated[
        bool, typer.Option("--branch-points", help="Follow the other branch at branch points too.")
    ] = False,
    with_orbit_diagram: Annotated[
        bool, typer.Option("--orbit-diagram", help="States after a transient too, as dots behind the branches.")
    ] = False,
    starts: Annotated[int, typer.Option(help="Number of starts of the search.")] = 64,
    scale: Annotated[float, typer.Option(help="Standard deviation of the starts.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the starts.")] = 0,
    component: Annotated[str, typer.Option(help="What is drawn: a component of the state, or norm.")] = "0",
    json_: Json = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the pictures and the numbers [gdmap-bifurcation; none with --json]."),
    ] = None,
) -> None:
    """How do the periodic orbits of gradient descent on this loss branch, double and fold with the step size?

    Examples: `gdmap bifurcation file.py:loss --step-sizes 0.1:1.5 --orbit-diagram --out results`,
    `gdmap bifurcation file.py:loss --parameter momentum --range 0:0.9 --step-size 0.3`

    Exit status: 0 branches were followed, 2 a mistake in the input, 3 no orbit to begin with was found.
    """
    out = Path("gdmap-bifurcation") if out is None and not json_ else out
    refuse_file(out)
    name, bounds = parameter_and_range(parameter, step_sizes, range_, step_size, momentum)
    loaded = load_target(target)
    refuse_unknown(loaded, name, f"--parameter {parameter}")
    if name == "momentum" and step_size is None and not isinstance(loaded, Map):
        raise ValueError(
            "--parameter momentum varies the momentum: --step-size, which stays the same, is needed too"
        )
    places = list(dict.fromkeys(at or [bounds[0]]))
    maps = [map_along(loaded, name, place, step_size, momentum) for place in places]
    shown = read_component(component, maps[0])
    periods = list(dict.fromkeys(period or [1]))
    try:
        dataset = diagram(maps, name, bounds, periods, starts, scale, seed, doublings, branch_points)
    except NoOrbitError as problem:
        record = {"target": target, "parameter": name, "branches": [], "explanation": str(problem)}
        if json_:
            print_json(record)
        else:
            Console(highlight=False).print(
                f"{problem}\nOrbits were looked for at {name} = {', '.join(f'{place:g}' for place in places)}: "
                "--at chooses other values.",
                markup=False,
                soft_wrap=True,
            )
        raise typer.Exit(NOTHING) from None
    dots = None
    if with_orbit_diagram:
        with progress_bar("orbit diagram"):
            values = np.linspace(*bounds, VALUES)
            dots = orbit_diagram(
                maps[0], values, min(starts, 16), parameter=name, samples=SAMPLES, scale=scale, seed=seed
            )
    record = full_record(target, dataset)
    title = heading(target, maps[0], varied(name))
    if out is not None:
        save(out, record, dataset, dots, shown, title)
    if json_:
        print_json(record)
    else:
        show(title, record, dots, out)
    raise typer.Exit(FOUND)


# Input -----------------------------------------------------------------------------------------------------------


def parameter_and_range(
    parameter: str, step_sizes: str | None, range_: str | None, step_size: float | None, momentum: float | None
) -> tuple[str, tuple[float, float]]:
    """What is varied and over which range."""
    name = parameter.replace("-", "_")
    varies_step = name in ("step_size", "learning_rate")
    if step_sizes is not None and (range_ is not None or not varies_step):
        raise ValueError(
            "--step-sizes is the range of the step size; for another --parameter give --range FROM:TO"
        )
    text = step_sizes if range_ is None else range_
    if text is None:
        raise ValueError(
            "give the range to draw: --step-sizes FROM:TO such as 0.1:1.5, or --parameter NAME with --range "
            "FROM:TO such as 0:0.9"
        )
    if varies_step and step_size is not None:
        raise ValueError("--step-size goes with another --parameter: here the step size itself is varied")
    if name == "momentum" and momentum is not None:
        raise ValueError("--momentum is varied itself: leave its value out")
    option = "--step-sizes" if range_ is None else "--range"
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise ValueError(
            f"{option} must be two numbers FROM:TO with a colon, such as 0.1:1.5, got {text}"
        ) from None
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"{option} must be finite with FROM < TO, got {text}")
    if varies_step and low <= 0:
        raise ValueError(f"{option}: step sizes must be positive, got {text}")
    return name, (low, high)


def varied(name: str) -> tuple[str, ...]:
    """The names of the number that is varied, and of the one that is another name of the step size."""
    return ("step_size", "learning_rate") if name in ("step_size", "learning_rate") else (name, "learning_rate")


def map_along(
    loaded: AbstractObjective | Map, name: str, place: float, step_size: float | None, momentum: float | None
) -> Map:
    """The map at one value of the parameter."""
    if isinstance(loaded, Map):
        return with_number(map_of(loaded, step_size, momentum), name, place)
    if name in ("step_size", "learning_rate"):
        return map_of(loaded, place, momentum)
    if name == "momentum":
        return map_of(loaded, step_size, place)
    return with_number(map_of(loaded, step_size, momentum), name, place)


def read_component(text: str, map_: Map) -> Any:
    """A component of the state or ``'norm'``."""
    if text == "norm":
        return text
    if not text.isdecimal() or int(text) >= map_.state_dim:
        raise ValueError(
            f"--component must be norm or one of the {map_.state_dim} components of the state (0, 1, ...), "
            f"got {text}"
        )
    return int(text)


def diagram(
    maps: Sequence[Map],
    name: str,
    bounds: tuple[float, float],
    periods: Sequence[int],
    starts: int,
    scale: float,
    seed: int,
    doublings: int,
    branch_points: bool,
) -> xr.Dataset:
    """The branches through the orbits found at several values."""
    for map_ in maps:
        value = map_.numbers[name]
        if not bounds[0] <= value <= bounds[1]:
            raise ValueError(f"--at {value:g} lies outside the range {bounds[0]:g}:{bounds[1]:g}")
    found: list[PeriodicOrbit] = []
    explained = []
    with progress_bar("periodic orbits") as progress:
        total = len(maps) * len(periods)
        for map_ in maps:
            for p in periods:
                some = periodic_orbits(map_, p, starts, scale=scale, seed=seed)
                found += some
                explained.append(
                    f"At {name} = {map_.numbers[name]:g}: {' '.join(in_options(some.explain()).splitlines())}"
                )
                progress(len(explained), total)
    if not found:
        raise NoOrbitError("\n".join(explained))
    with progress_bar("branches") as progress:
        dataset = bifurcation_diagram(
            found, name, bounds, doublings=doublings, branch_points=branch_points, progress=progress
        )
    dataset.attrs["search"] = explained
    return dataset


# Records ---------------------------------------------------------------------------------------------------------


def full_record(target: str, dataset: xr.Dataset) -> dict[str, Any]:
    """Branches, events and Feigenbaum ratios as a plain record."""
    attrs = dataset.attrs
    branches = [
        {
            "period": int(dataset["period"][row]),
            "neutral_dimension": int(dataset["neutral_dimension"][row]),
            "generation": int(dataset["generation"][row]),
            "born_at": None if dataset["born_at"][row] < 0 else int(dataset["born_at"][row]),
            "points": int(dataset["length"][row]),
            "lowest": inside(float(np.nanmin(dataset["parameter"][row])), attrs["bounds"]),
            "highest": inside(float(np.nanmax(dataset["parameter"][row])), attrs["bounds"]),
            "stable": sorted(
                sorted(inside(end, attrs["bounds"]) for end in pair) for pair in stable_ranges(dataset, row)
            ),
            "starts": {"reason": attrs["start_reasons"][row], "message": attrs["starts_because"][row]},
            "ends": {"reason": attrs["end_reasons"][row], "message": attrs["ends_because"][row]},
        }
        for row in range(dataset.sizes["branch"])
    ]
    return {
        "target": target,
        "map": attrs["map"],
        "parameter": attrs["parameter"],
        "bounds": attrs["bounds"],
        "status": attrs["status"],
        "method": attrs["method"],
        "search": attrs["search"],
        "branches": branches,
        "events": event_records(dataset),
        "cascades": cascade_records(dataset),
        "not_followed": attrs["not_followed"],
    }


def inside(value: float, bounds: Sequence[float]) -> float:
    """A value of the parameter, not beyond the bounds by rounding."""
    return float(min(max(value, bounds[0]), bounds[1]))


def event_records(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """The bifurcations as plain records."""
    if not dataset.sizes["event"]:
        return []
    kinds, criticalities = flag_names(dataset["event_kind"]), flag_names(dataset["event_criticality"])
    numbers = {
        name: dataset[f"event_{name}"].values
        for name in ("parameter", "error", "period", "branch", "born", "coefficient", "coefficient_error")
    }
    return [
        {
            "kind": str(kinds[i]),
            "value": float(numbers["parameter"][i]),
            "error": float(numbers["error"][i]),
            "period": int(numbers["period"][i]),
            "criticality": None if criticalities[i] == "none" else str(criticalities[i]),
            "coefficient": float(numbers["coefficient"][i]),
            "coefficient_error": float(numbers["coefficient_error"][i]),
            "branch": int(numbers["branch"][i]),
            "born": None if numbers["born"][i] < 0 else int(numbers["born"][i]),
            "not_followed": dataset.attrs["event_not_followed"][i],
        }
        for i in range(len(kinds))
    ]


def cascade_records(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """The sequences of at least two doublings with their Feigenbaum ratios."""
    return [
        {
            "events": sequence,
            "periods": dataset["event_period"].values[sequence].tolist(),
            "values": dataset["event_parameter"].values[sequence].tolist(),
            "ratios": [
                {"value": ratio.value, "error": float(ratio.upper - ratio.value)}
                for ratio in feigenbaum_ratios(dataset, sequence)
            ],
        }
        for sequence in doubling_sequences(dataset)
        if len(sequence) > 1
    ]


def save(
    out: Path, record: dict[str, Any], dataset: xr.Dataset, dots: xr.Dataset | None, component: Any, title: str
) -> None:
    """Write the record (JSON), the branches and the orbit diagram (Zarr), and the pictures."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "bifurcation.json").write_text(json.dumps(plain(record), indent=2))
    dataset.to_zarr(out / "bifurcation.zarr", mode="w", consolidated=False, zarr_format=3)
    plot_bifurcation_diagram(dataset, component, dots, title).savefig(out / "bifurcation.png", dpi=150)
    if dots is not None:
        plot_orbit_diagram(dots, component, title).savefig(out / "orbit_diagram.png", dpi=150)
        # Strings have no stable form in Zarr 3.
        dots = dots.assign_coords(sweep=np.arange(dots.sizes["sweep"])).assign_attrs(
            sweeps=dots["sweep"].values.tolist()
        )
        dots.to_zarr(out / "orbit_diagram.zarr", mode="w", consolidated=False, zarr_format=3)


# Words -----------------------------------------------------------------------------------------------------------


def show(title: str, record: dict[str, Any], dots: xr.Dataset | None, out: Path | None) -> None:
    """Tables of the branches and the bifurcations, ratios, and what was not followed."""
    console = Console(highlight=False)
    name = record["parameter"].replace("_", " ")

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    low, high = record["bounds"]
    say(f"{title}, {name} from {low:g} to {high:g}.")
    console.print(branches_table(record["branches"]))
    if record["events"]:
        console.print(events_table(record["events"], name))
    else:
        say("No bifurcation was found in this range.")
    for cascade in record["cascades"]:
        if cascade["ratios"]:
            ratios = ", ".join(f"{ratio['value']:.6g} +- {ratio['error']:.0e}" for ratio in cascade["ratios"])
            numbers = ", ".join(map(str, cascade["events"]))
            say(f"Ratios of the doublings {numbers} (Feigenbaum's limit is 4.669...): {ratios}.")
    for sentence in record["search"]:
        say(sentence)
    reasons: dict[str, list[str]] = {}
    for i, event in enumerate(record["events"]):
        if event["not_followed"] and event["kind"] != "fold":
            reasons.setdefault(event["not_followed"], []).append(str(i))
    for reason, events in reasons.items():
        which = "event" if len(events) == 1 else "events"
        say(f"Nothing was followed from {which} {', '.join(events)}: {in_options(reason)}.")
    for i, branch in enumerate(record["branches"]):
        for side in ("starts", "ends"):
            if branch[side]["reason"] not in ("bound", "period halves", "closed"):
                say(f"Branch {i} {side} {in_options(branch[side]['message'])}.")
    for sentence in record["not_followed"]:
        say(f"Not followed: {in_options(sentence)}.")
    if dots is not None:
        sentence = divergence(dots, name)
        if sentence:
            say(sentence)
    if out is not None:
        more = ", orbit_diagram.zarr, orbit_diagram.png" if dots is not None else ""
        say(f"Written to {out}: bifurcation.json, bifurcation.zarr, bifurcation.png{more}")


def divergence(dots: xr.Dataset, name: str) -> str:
    """At which values of an orbit diagram every start diverged, in words; empty if at none."""
    every = dots["diverged"].values.all(axis=(0, 2))
    values, count = dots["value"].values, int(every.sum())
    if not count:
        return ""
    if count == every.size:
        return (
            "Orbit diagram: every start diverged at every value, there is nothing to draw: choose another range, "
            "or starts nearer to a minimum (--scale)."
        )
    lowest, highest = values[every].min(), values[every].max()
    return (
        f"Orbit diagram: every start diverged at {count} of {every.size} values of the {name}, between "
        f"{lowest:.6g} and {highest:.6g}."
    )


def narrow_table(title: str, headings: Sequence[str], left: Sequence[str]) -> Table:
    """An empty table that fits a terminal."""
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    for name in headings:
        # Words may take two lines, numbers may not.
        words = name in left
        table.add_column(name, justify="left" if words else "right", no_wrap=not words)
    return table


def branches_table(branches: Sequence[dict[str, Any]]) -> Table:
    """A row for each branch."""
    headings = ("branch", "period", "from", "to", "stable", "neutral", "born at")
    table = narrow_table("Branches of periodic orbits (computed)", headings, ("stable",))
    for i, branch in enumerate(branches):
        stable = ", ".join(f"{low:.6g} to {high:.6g}" for low, high in branch["stable"][:2])
        more = len(branch["stable"]) - 2
        table.add_row(
            str(i),
            str(branch["period"]),
            f"{branch['lowest']:.6g}",
            f"{branch['highest']:.6g}",
            (stable or "nowhere") + (f", {more} more" if more > 0 else ""),
            str(branch["neutral_dimension"]),
            "a start" if branch["born_at"] is None else f"event {branch['born_at']}",
        )
    return table


def events_table(events: Sequence[dict[str, Any]], name: str) -> Table:
    """A row for each bifurcation."""
    headings = ("#", "kind", name, "+-", "period", "criticality", "coeff.", "branch")
    table = narrow_table("Bifurcations (computed)", headings, ("kind", "criticality", "branch"))
    for i, event in enumerate(events):
        table.add_row(
            str(i),
            SHORT[event["kind"]],
            f"{event['value']:.10g}",
            f"{event['error']:.0e}",
            str(event["period"]),
            (event["criticality"] or "-").removesuffix("critical"),
            f"{event['coefficient']:.4g}" if np.isfinite(event["coefficient"]) else "-",
            f"{event['branch']}" + ("" if event["born"] is None else f" -> {event['born']}"),
        )
    return table

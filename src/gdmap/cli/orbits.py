"""``gdmap orbits``: the periodic orbits of an optimiser on a loss."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gdmap.cli.maps import Momentum, Target, load_target, map_of
from gdmap.cli.options import Json, plain, print_json
from gdmap.cli.tables import progress_bar
from gdmap.maps import Map
from gdmap.orbits import PeriodicOrbit, PeriodicOrbits, periodic_orbits
from gdmap.orbits.periodic_orbit import number
from gdmap.plots import plot_periodic_orbits

# Exit statuses; 2 is a mistake in the input, as of every command.
FOUND, NONE_OR_UNDECIDED = 0, 3
STABILITIES = ("stable", "unstable", "marginal")
LEADING = 4
# So many orbits are printed; of each so many points, in spaces of so many dimensions.
LISTED, POINTS, SMALL = 12, 8, 4


def orbits(
    target: Target,
    period: Annotated[list[int] | None, typer.Option(help="A minimal period; repeat for more [1].")] = None,
    step_size: Annotated[float | None, typer.Option(help="The step size (a map has its own).")] = None,
    momentum: Momentum = None,
    starts: Annotated[int, typer.Option(help="Number of starts of the search.")] = 64,
    scale: Annotated[float, typer.Option(help="Standard deviation of the starts.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the starts.")] = 0,
    region: Annotated[
        list[str] | None,
        typer.Option(metavar="LOWER,UPPER", help="Box of states to search; once, or once for each component."),
    ] = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="Find all orbits in the region, with a proof (up to 3 dimensions).")
    ] = False,
    json_: Json = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the orbits (JSON, Zarr) and the picture.")] = None,
) -> None:
    """Which periodic orbits has gradient descent on this loss, and which of them attract?

    Example: `gdmap orbits file.py:loss --period 2 --step-size 0.3`

    Exit status: 0 orbits of every period were found and judged; 2 a mistake in the input; 3 none of some period
    was found, a stability is marginal, or the region could not be searched completely.
    """
    refuse_file(out)
    box = None if region is None else read_region(region)
    if complete and box is None:
        raise ValueError("--complete needs --region LOWER,UPPER, the box to be searched")
    map_ = map_of(load_target(target), step_size, momentum)
    periods = list(dict.fromkeys(period or [1]))
    found: list[PeriodicOrbits] = []
    with progress_bar("periodic orbits") as progress:
        for p in periods:
            found.append(periodic_orbits(map_, p, starts, region=box, complete=complete, scale=scale, seed=seed))
            progress(len(found), len(periods))
    record = full_record(target, map_, found)
    every = [orbit for some in found for orbit in some]
    if out is not None:
        save(out, record, map_, every)
    if json_:
        print_json(record)
    else:
        show(target, map_, found, out)
    undecided = any(orbit.stability == "marginal" for orbit in every) or (
        complete and not all(some.complete for some in found)
    )
    raise typer.Exit(NONE_OR_UNDECIDED if undecided or not all(found) else FOUND)


def refuse_file(out: Path | None) -> None:
    """An error before any work if the folder to write to is a file."""
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file, give a folder")


def read_region(texts: Sequence[str]) -> tuple[Any, Any]:
    """The corners of a box: one pair for all components, or one for each."""
    try:
        pairs = [tuple(float(part) for part in text.split(",")) for text in texts]
    except ValueError:
        pairs = [()]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"--region must be two numbers LOWER,UPPER such as -2,2, got {' '.join(texts)}")
    lower, upper = np.array(pairs, float).T
    return (float(lower[0]), float(upper[0])) if len(pairs) == 1 else (lower, upper)


# Records ---------------------------------------------------------------------------------------------------------


def full_record(target: str, map_: Map, found: Sequence[PeriodicOrbits]) -> dict[str, Any]:
    """Everything as a plain record."""
    return {
        "target": target,
        "map": repr(map_),
        "numbers": map_.numbers,
        "searches": [
            {
                "period": some.period,
                "found": len(some),
                "complete": some.complete,
                "status": some.status,
                "searched": some.searched,
                "explanation": some.explain(),
            }
            for some in found
        ],
        "orbits": [orbit_record(orbit) for some in found for orbit in some],
    }


def orbit_record(orbit: PeriodicOrbit) -> dict[str, Any]:
    """One orbit as a plain record."""
    return {
        "period": orbit.period,
        "points": orbit.points.tolist(),
        "losses": orbit.losses.tolist(),
        "multipliers": [
            {"real": float(value.real), "imaginary": float(value.imag), "error": float(error)}
            for value, error in zip(orbit.multipliers, orbit.multiplier_errors, strict=True)
        ],
        "neutral_dimension": orbit.neutral_dimension,
        "stability": orbit.stability,
        "margin": float(orbit.margin),
        "residual": orbit.residual,
        "error": float(orbit.error),
        "status": "computed",
    }


def dataset_of(map_: Map, found: Sequence[PeriodicOrbit]) -> xr.Dataset:
    """The orbits side by side, padded with NaN."""
    n = len(found)
    longest = max((orbit.period for orbit in found), default=1)
    modes = max((len(orbit.multipliers) for orbit in found), default=1)
    state = np.full((n, longest, map_.state_dim), np.nan)
    loss = np.full((n, longest), np.nan)
    multiplier, error = np.full((n, modes), np.nan, complex), np.full((n, modes), np.nan)
    for row, orbit in enumerate(found):
        state[row, : orbit.period] = orbit.points
        loss[row, : orbit.period] = orbit.losses
        multiplier[row, : len(orbit.multipliers)] = orbit.multipliers
        error[row, : len(orbit.multipliers)] = orbit.multiplier_errors
    stability = np.array([STABILITIES.index(orbit.stability) for orbit in found], np.int8)
    neutral = [-1 if orbit.neutral_dimension is None else orbit.neutral_dimension for orbit in found]
    flags = {"flag_values": list(range(len(STABILITIES))), "flag_meanings": " ".join(STABILITIES)}
    return xr.Dataset(
        {
            "state": (("orbit", "point", "component"), state, {"long_name": "points of the orbit"}),
            "loss": (("orbit", "point"), loss, {"long_name": "loss at every point"}),
            "multiplier": (("orbit", "mode"), multiplier, {"long_name": "multipliers", "units": "1"}),
            "multiplier_error": (("orbit", "mode"), error, {"long_name": "their errors", "units": "1"}),
            "period": ("orbit", np.array([orbit.period for orbit in found], np.int64)),
            "stability": ("orbit", stability, flags),
            "margin": ("orbit", np.array([orbit.margin for orbit in found], float)),
            "neutral_dimension": (
                "orbit",
                np.array(neutral, np.int64),
                {"long_name": "dimension of the family (-1: not computed)"},
            ),
            "residual": ("orbit", np.array([orbit.residual for orbit in found], float)),
            "error": ("orbit", np.array([orbit.error for orbit in found], float)),
        },
        attrs={"map": repr(map_), "status": "computed", "method": "multiple shooting, Newton's method"},
    )


def save(out: Path, record: dict[str, Any], map_: Map, found: Sequence[PeriodicOrbit]) -> None:
    """Write the record (JSON) and, if there are orbits, the dataset (Zarr) and the picture."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "orbits.json").write_text(json.dumps(plain(record), indent=2))
    if found:
        dataset = dataset_of(map_, found)
        dataset.to_zarr(out / "orbits.zarr", mode="w", consolidated=False, zarr_format=3)
        plot_periodic_orbits(dataset, record["map"]).savefig(out / "orbits.png", dpi=150)


# Words -----------------------------------------------------------------------------------------------------------


def show(target: str, map_: Map, found: Sequence[PeriodicOrbits], out: Path | None) -> None:
    """A table of the orbits, their multipliers, and what the searches say."""
    console = Console(highlight=False)
    console.print(f"{heading(target, map_)}.", markup=False, soft_wrap=True)
    every = [orbit for some in found for orbit in some]
    if every:
        console.print(orbits_table(every, map_.state_dim > SMALL))
        for i, orbit in enumerate(every[:LISTED]):
            if map_.state_dim <= SMALL:
                console.print(points_line(i, orbit), markup=False, soft_wrap=True)
            console.print(multipliers_line(i, orbit), markup=False, soft_wrap=True)
        if len(every) > LISTED:
            console.print(f"And {len(every) - LISTED} more: --json or --out has all of them.", soft_wrap=True)
    for some in found:
        for line in in_options(some.explain()).splitlines():
            console.print(line, markup=False, soft_wrap=True)
    if out is not None:
        written = ", orbits.zarr, orbits.png" if every else " (there is nothing to draw)"
        console.print(f"Written to {out}: orbits.json{written}", markup=False, soft_wrap=True)


def heading(target: str, map_: Map, varied: Sequence[str] = ()) -> str:
    """The map in words: its kind, its loss and its numbers, without those that are varied."""
    numbers = map_.numbers
    aliases = ("learning_rate",) if "step_size" in numbers else ()
    words = [f"{name} {value:.10g}" for name, value in numbers.items() if name not in (*varied, *aliases)]
    return ", ".join([f"{type(map_).__name__} on {target}", *words])


def in_options(words: str) -> str:
    """What to change, with the options of the command line in place of arguments in Python."""
    words = words.replace("region=(lower, upper) with complete=True", "--region LOWER,UPPER with --complete")
    words = words.replace("scale=", "--scale").replace("not asked for: branch_points=False", "see --branch-points")
    words = words.replace("widen bounds= to follow", "widen the range to follow")
    return re.sub(r"doublings=(\d+)", r"--doublings \1", words)


def orbits_table(found: Sequence[PeriodicOrbit], norms: bool) -> Table:
    """A row for each orbit, with the norms of its points if these are not printed themselves."""
    table = Table(
        title="Periodic orbits (computed)",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    headings = ["#", "period", "|state|", "loss", "stability", "margin", "neutral", "residual"]
    if not norms:
        headings.remove("|state|")
    for name in headings:
        # A range may take two lines where the terminal is narrow, everything else takes one.
        ranges = name in ("|state|", "loss")
        table.add_column(name, justify="left" if name == "stability" else "right", no_wrap=not ranges)
    for i, orbit in enumerate(found[:LISTED]):
        table.add_row(
            str(i),
            str(orbit.period),
            *([spread(np.linalg.norm(orbit.points, axis=1), 3)] if norms else []),
            spread(orbit.losses, 3),
            orbit.stability,
            f"{orbit.margin:.3g}",
            "-" if orbit.neutral_dimension is None else str(orbit.neutral_dimension),
            f"{orbit.residual:.0e}",
        )
    return table


def spread(values: np.ndarray, digits: int) -> str:
    """The range of some numbers, one number where they agree."""
    low, high = (f"{value:.{digits}g}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def points_line(index: int, orbit: PeriodicOrbit) -> str:
    """The first points of one orbit."""
    shown = [", ".join(f"{value + 0.0:.6g}" for value in point) for point in orbit.points[:POINTS]]
    brackets = shown if orbit.points.shape[1] == 1 else [f"({point})" for point in shown]
    more = orbit.period - POINTS
    what = "Point" if orbit.period == 1 else "Points"
    return f"{what} of {index}: {', '.join(brackets)}" + (f", and {more} more" if more > 0 else "") + "."


def multipliers_line(index: int, orbit: PeriodicOrbit) -> str:
    """The leading multipliers of one orbit with their errors."""
    shown = [
        f"{number(complex(value))} +- {error:.0e}"
        for value, error in zip(orbit.multipliers[:LEADING], orbit.multiplier_errors[:LEADING], strict=True)
    ]
    more = len(orbit.multipliers) - LEADING
    rest = f", and {more} smaller {'one' if more == 1 else 'ones'}" if more > 0 else ""
    what = "Multiplier" if len(orbit.multipliers) == 1 else "Multipliers"
    return f"{what} of {index}: {', '.join(shown)}{rest}."

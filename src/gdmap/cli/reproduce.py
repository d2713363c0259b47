"""``gdmap reproduce``: results of papers, computed again."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gdmap.cli.options import Json, print_json
from gdmap.cli.tables import progress_bar
from gdmap.reproduce import REPRODUCTIONS
from gdmap.reproduce import reproduce as run_reproduction
from gdmap.reproduce.report import PROVED, Report, interval_of, number_of, status_of
from gdmap.reproduce.table import write_table

MARKS = {
    "yes": "agrees",
    "no": "does NOT agree",
    "corrected": "holds after a correction",
    "undecided": "undecided by this run",
    "not reproducible": "not reproducible",
}


def reproduce(
    name: Annotated[str | None, typer.Argument(help="Which one; none: list them.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report, data and pictures [gdmap-NAME; none with --json].")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of minutes: fewer simulations.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the simulations.")] = 0,
    changed: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a size of the run: NAME=VALUE, repeatable (a wrong NAME lists them)."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Only write FOLDER.md: one table of all the reports in this folder.")
    ] = None,
    json_: Json = False,
) -> None:
    """Run the computation behind a published result: each statement beside what was found.

    Examples: `gdmap reproduce`, `gdmap reproduce gd-vs-sgd-stability --quick`, `gdmap reproduce mnist-transition
    --set images=500 --set width=32`, `gdmap reproduce --table reports`

    Exit status: 0 when it ran, whether the statements agree or not; 2 a mistake in the input.
    """
    if table is not None:
        if name is not None:
            raise ValueError("--table writes a page from reports that are there: leave out the name")
        typer.echo(f"Written: {write_table(table)}")
        return
    if name is None:
        list_reproductions(json_)
        return
    if out is None and not json_:
        out = Path(f"gdmap-{name}")
    if name not in REPRODUCTIONS:
        raise ValueError(f"there is no reproduction {name!r}: choose one of {', '.join(REPRODUCTIONS)}")
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file, give a folder")
    settings = read_settings(changed or [])
    with progress_bar(name) as progress:
        report = run_reproduction(name, out, quick=quick, seed=seed, settings=settings, progress=progress)
    if json_:
        print_json(report.record())
    else:
        show(report, out)


def read_settings(changed: list[str]) -> dict[str, str]:
    """``NAME=VALUE`` as a dictionary."""
    settings = {}
    for one in changed:
        name, sign, value = one.partition("=")
        if not sign or not name:
            raise ValueError(f"--set takes NAME=VALUE, got {one!r}")
        settings[name.strip()] = value.strip()
    return settings


def list_reproductions(json_: bool) -> None:
    """What there is, with what the papers say."""
    if json_:
        listed = [
            {"name": one.name, "description": one.description, "paper": one.paper, "statements": one.statements}
            for one in REPRODUCTIONS.values()
        ]
        print_json({"reproductions": listed})
        return
    console = Console(highlight=False)
    for one in REPRODUCTIONS.values():
        console.print(f"{one.name}: {one.description}", markup=False, soft_wrap=True)
        console.print(f"  {one.paper}", markup=False, soft_wrap=True)
        for statement in one.statements:
            console.print(f"  - {statement}", markup=False, soft_wrap=True)


def show(report: Report, out: Path | None) -> None:
    """The claims, each with its numbers."""
    console = Console(highlight=False)
    console.print(report.title, style="bold", markup=False)
    console.print(report.paper, markup=False, soft_wrap=True)
    for number, claim in enumerate(report.claims, 1):
        console.print()
        console.print(f"{number}. {claim.statement} ({claim.source})", markup=False, soft_wrap=True)
        console.print(
            f"   {MARKS[claim.agrees]}{PROVED[claim.proved]}: {claim.conclusion}",
            markup=False,
            soft_wrap=True,
        )
        table = Table(box=None, show_header=False, padding=(0, 2))
        for label, bracket in claim.found.items():
            table.add_row(label, number_of(bracket), interval_of(bracket), status_of(bracket))
        console.print(table)
    if out is not None:
        pictures = ", ".join(f"{stem}.png" for stem in report.figures)
        console.print(f"\nWritten to {out}: report.md, report.json, data.zarr, {pictures}", markup=False)

"""``gdmap demo``: the whole path on real data in a minute."""

from pathlib import Path
from typing import Annotated

import typer

from gdmap.cli.options import Json
from gdmap.cli.sweep import run_study
from gdmap.sweeps.study import DataTable, ObjectiveTable, Study, SweepTable

DEMO = Study(
    DataTable(source="digits", components=8),
    ObjectiveTable(hidden=(8,)),
    SweepTable(starts=100, scale=(0.1, 0.3), max_steps=10_000),
)
SENTENCE = (
    "The threshold is necessary, not sufficient: from starts of standard deviation 0.1 gradient descent reaches "
    "a minimum right up to it, from starts of 0.3 it mostly diverges long before."
)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the Zarr store, the picture and the study.")] = Path(
        "gdmap-demo"
    ),
    json_: Json = False,
) -> None:
    """A two-layer linear network on real digits: predicted critical step size, and what happens around it."""
    run_study(DEMO, (0.5, 1.5), 24, out, json_, SENTENCE)

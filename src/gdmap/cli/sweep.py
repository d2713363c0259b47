"""``gdmap sweep``: the fates of many starts over a range of step sizes."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from gdmap.cli.options import (
    Centre,
    Components,
    Digits,
    Hidden,
    Inputs,
    Json,
    ObjectiveFile,
    OneHot,
    Out,
    Scaling,
    StudyFile,
    Targets,
    described_study,
    print_json,
)
from gdmap.cli.tables import (
    critical_record,
    critical_table,
    progress_bar,
    sweep_record,
    sweep_tables,
    transition_sentence,
    undecided_sentence,
)
from gdmap.objectives import LinearNetwork
from gdmap.plots import plot_transition
from gdmap.stability import critical_step_size
from gdmap.sweeps.study import Study, SweepTable

STORE, PICTURE, STUDY = "sweep.zarr", "sweep.png", "study.toml"


def sweep(
    study: StudyFile = None,
    digits: Digits = False,
    inputs: Inputs = None,
    targets: Targets = None,
    one_hot: OneHot = False,
    components: Components = None,
    centre: Centre = None,
    input_scale: Scaling = None,
    hidden: Hidden = None,
    objective: ObjectiveFile = None,
    step_size: Annotated[
        list[float] | None, typer.Option(help="A step size; repeat for more. Otherwise --range is used.")
    ] = None,
    range_: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--range", help="First and last step size, in units of the predicted critical one [0.5 1.5]."
        ),
    ] = None,
    number: Annotated[int | None, typer.Option(help="Number of step sizes in the range [24].")] = None,
    starts: Annotated[int, typer.Option(help="Number of starts.")] = SweepTable.starts,
    scale: Annotated[
        list[float] | None, typer.Option(help="Standard deviation of the starts; repeat for more [1].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the starts.")] = SweepTable.seed,
    max_steps: Annotated[int, typer.Option(help="The horizon in steps.")] = SweepTable.max_steps,
    chunk_size: Annotated[
        int | None, typer.Option(help="Trajectories between writes [as many as 64 MiB hold].")
    ] = SweepTable.chunk_size,
    engine: Annotated[
        str | None, typer.Option(help="What iterates: simd or xla [chosen by the map].")
    ] = SweepTable.engine,
    json_: Json = False,
    out: Out = None,
) -> None:
    """What becomes of many starts, step size by step size? Stored, resumable, with a table and a picture.

    Example: `gdmap sweep --inputs X.csv --targets y.csv --hidden 16 --scale 0.1 --out results`

    Killed at any moment and run again with the same `--out`, it goes on where it stopped.
    """
    scales = tuple(scale or ())
    table = SweepTable(
        step_sizes=tuple(step_size or ()),
        starts=starts,
        scale=scales if len(scales) > 1 else (scales or (1.0,))[0],
        seed=seed,
        max_steps=max_steps,
        chunk_size=chunk_size,
        engine=engine,
    )
    described = described_study(
        study, digits, inputs, targets, one_hot, components, centre, input_scale, hidden, objective, table
    )
    if (range_ is not None or number is not None) and (study or step_size):
        raise ValueError("--range and --number go without --step-size and without a study file")
    run_study(described, range_ or (0.5, 1.5), 24 if number is None else number, out, json_)


def run_study(
    study: Study, span: tuple[float, float], number: int, out: Path | None, json_: bool, closing: str = ""
) -> None:
    """Run a study, store it, and show the table, the picture and one sentence.

    Without step sizes in the study, ``number`` of them span ``span`` in units of the predicted critical one.
    """
    loss = study.make_objective()
    # A formula is free; a search is made only where the step sizes depend on it.
    has_formula = isinstance(loss, LinearNetwork) and loss.is_squared
    predicted = critical_step_size(loss) if has_formula or not study.sweep.step_sizes else None
    bracket = None if predicted is None else predicted.step_size
    if not study.sweep.step_sizes:
        if bracket is None or not np.isfinite(bracket.value):
            raise ValueError("no finite critical step size is known for this objective: give --step-size")
        if number < 1 or not 0 < span[0] <= span[1]:
            raise ValueError(f"--range needs 0 < first <= last and --number at least 1, got {span} and {number}")
        step_sizes = bracket.value * np.linspace(*span, number)
        study = replace(study, sweep=replace(study.sweep, step_sizes=tuple(step_sizes.tolist())))
    if out is not None and not (out / STORE).exists():
        out.mkdir(parents=True, exist_ok=True)
        study.write(out / STUDY)  # before the run, so that a killed one can be gone on with
    with progress_bar("trajectories") as progress:
        dataset = study.run(loss, None if out is None else out / STORE, progress)
    provenance = loss.provenance if isinstance(loss, LinearNetwork) else str(study.objective.file)
    if isinstance(study.sweep.scale, (int, float)):
        provenance += f"; starts of standard deviation {study.sweep.scale:g}"
    if out is not None:
        plot_transition(dataset, bracket, provenance).savefig(out / PICTURE, dpi=150)
    if json_:
        record = {"objective": loss.describe(), **sweep_record(dataset)}
        if predicted is not None:
            record["critical"] = critical_record(predicted)
        print_json(record)
        return
    console = Console()
    if predicted is not None:
        console.print(critical_table(predicted, provenance))
    for rows in sweep_tables(dataset, bracket):
        console.print(rows)
    console.print(transition_sentence(dataset, bracket))
    if undecided := undecided_sentence(dataset):
        console.print(undecided)
    if closing:
        console.print(closing)
    if out is not None:
        console.print(
            f"Written to {out}: {STORE}, {PICTURE} and {STUDY}, which describes the study: "
            f"gdmap sweep {out / STUDY} --out FOLDER runs it again"
        )

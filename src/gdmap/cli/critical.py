"""``gdmap critical``: the critical step size of a linear network on the user's data, or of any loss."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr
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
    Scaling,
    Searches,
    SearchScale,
    Seed,
    StudyFile,
    Targets,
    described_study,
    plain,
    print_json,
)
from gdmap.cli.tables import critical_record, critical_table, progress_bar
from gdmap.minima import sample_minima
from gdmap.minima.critical_points import DENSE_LIMIT
from gdmap.objectives import AbstractObjective, LinearNetwork
from gdmap.plots import plot_minima, plot_spectrum
from gdmap.stability import (
    CriticalStepSize,
    FlipCoefficient,
    critical_step_size,
    flip_coefficient,
    minima_spectra,
)
from gdmap.sweeps.study import Study, SweepTable

SAMPLED = 200


def critical(
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
    starts: Searches = 16,
    scale: SearchScale = 1.0,
    seed: Seed = 0,
    json_: Json = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the minimum, the pictures and the study [gdmap-critical; none with --json]."
        ),
    ] = None,
) -> None:
    """Up to which step size can gradient descent reach a minimum at all, and what happens just above?

    Examples: `gdmap critical --inputs X.csv --targets y.csv --hidden 16`,
    `gdmap critical --objective losses.py:loss`
    """
    if out is None and not json_:
        out = Path("gdmap-critical")
    described = described_study(
        study, digits, inputs, targets, one_hot, components, centre, input_scale, hidden, objective, SweepTable()
    )
    with progress_bar("critical step size"):
        loss = described.make_objective()
        answer = critical_step_size(loss, starts=starts, seed=seed, scale=scale)
        flip, bifurcation = what_happens_above(loss, answer)
    provenance = loss.provenance if isinstance(loss, LinearNetwork) else str(described.objective.file)
    record = {**critical_record(answer), "bifurcation": bifurcation_record(flip, bifurcation)}
    if out is not None:
        save(out, described, loss, answer, record)
    if json_:
        print_json({"objective": loss.describe(), **record})
        return
    console = Console()
    console.print(critical_table(answer, provenance, flip))
    console.print(answer.explain())
    console.print(f"Just above: {bifurcation}")
    console.print(f"Written to {out}: the minimum, the study and the pictures critical.png and minima.png")


def what_happens_above(loss: AbstractObjective, answer: CriticalStepSize) -> tuple[FlipCoefficient | None, str]:
    """The flip coefficient at the flattest minimum, and in words what happens just above its threshold."""
    if answer.minimum is None or not np.isfinite(answer.step_size.value):
        return None, "there is no critical step size to pass."
    if answer.search is not None and answer.search.falling:
        return None, "no flattest minimum was found, so there is none to describe."
    try:
        flip = flip_coefficient(loss, answer.minimum, verify=loss.dim <= DENSE_LIMIT)
    except ValueError as error:
        return None, f"not determined ({error})."
    return flip, flip.explain()


def bifurcation_record(flip: FlipCoefficient | None, words: str) -> dict[str, Any]:
    """The kind of bifurcation as a plain record."""
    if flip is None:
        return {"kind": None, "explanation": words}
    coefficient = None if flip.coefficient is None else asdict(flip.coefficient)
    return {
        "kind": flip.kind,
        "coefficient": coefficient,
        "multiplicity": flip.multiplicity,
        "drifts": flip.drifts,
        "explanation": words,
    }


def save(
    out: Path, study: Study, loss: AbstractObjective, answer: CriticalStepSize, record: dict[str, Any]
) -> None:
    """Write the flattest minimum with its spectrum (Zarr), the answer (JSON), the pictures and the study."""
    out.mkdir(parents=True, exist_ok=True)
    study.write(out / "study.toml")
    (out / "critical.json").write_text(json.dumps(plain(record), indent=2))
    if answer.minimum is None:
        return
    eigenvalues = np.linalg.eigvalsh(loss.hessian(answer.minimum))[::-1]
    dataset = xr.Dataset(
        {
            "minimum": ("component", answer.minimum, {"long_name": "flattest global minimum found"}),
            "eigenvalue": ("index", eigenvalues, {"long_name": "Hessian eigenvalues there", "units": "1"}),
        },
        attrs={"objective": json.dumps(loss.describe()), "status": "computed", "reason": answer.reason},
    )
    dataset.to_zarr(out / "critical.zarr", mode="w", consolidated=False, zarr_format=3)
    plot_spectrum(eigenvalues, answer.step_size).savefig(out / "critical.png", dpi=150)
    minima = some_minima(loss, answer)
    if len(minima) > 1:
        eta = answer.step_size.value
        title = f"at the critical step size {eta:.5g} ({answer.step_size.status})"
        picture = plot_minima(minima_spectra(loss, minima), eta if np.isfinite(eta) else None, title)
        picture.savefig(out / "minima.png", dpi=150)


def some_minima(loss: AbstractObjective, answer: CriticalStepSize) -> np.ndarray:
    """Minima to draw: where the search began and where it ended, or a sample of an exactly known set."""
    if loss.dim > DENSE_LIMIT:
        return np.zeros((0, loss.dim))
    flattest = np.asarray(answer.minimum)[None]
    if answer.search is not None:
        found = answer.search.search
        return np.concatenate([flattest, found["theta"].values, found["first_theta"].values])
    return np.concatenate([flattest, sample_minima(loss, SAMPLED)["theta"].values])

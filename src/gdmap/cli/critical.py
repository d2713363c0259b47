"""``gdmap critical``: the critical step size of a linear network on the user's data."""

import json
from pathlib import Path

import numpy as np
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
    Out,
    Scaling,
    StudyFile,
    Targets,
    described_study,
    plain,
    print_json,
)
from gdmap.cli.tables import critical_record, critical_table, progress_bar
from gdmap.objectives import AbstractObjective, LinearNetwork
from gdmap.plots import plot_spectrum
from gdmap.stability import CriticalStepSize, critical_step_size
from gdmap.sweeps.study import Study, SweepTable


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
    json_: Json = False,
    out: Out = None,
) -> None:
    """Up to which step size can gradient descent reach a minimum at all?

    Example: `gdmap critical --inputs X.csv --targets y.csv --hidden 16`
    """
    described = described_study(
        study, digits, inputs, targets, one_hot, components, centre, input_scale, hidden, objective, SweepTable()
    )
    with progress_bar("critical step size"):
        loss = described.make_objective()
        answer = critical_step_size(loss)
    provenance = loss.provenance if isinstance(loss, LinearNetwork) else ""
    if out is not None:
        save(out, described, loss, answer)
    if json_:
        print_json({"objective": loss.describe(), **critical_record(answer)})
        return
    console = Console()
    console.print(critical_table(answer, provenance))
    console.print(answer.explain())
    if out is not None:
        console.print(f"Written: {out}")


def save(out: Path, study: Study, loss: AbstractObjective, answer: CriticalStepSize) -> None:
    """Write the flattest minimum with its spectrum (Zarr), the answer (JSON), the picture and the study."""
    out.mkdir(parents=True, exist_ok=True)
    study.write(out / "study.toml")
    (out / "critical.json").write_text(json.dumps(plain(critical_record(answer)), indent=2))
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

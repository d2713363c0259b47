"""Options that commands share, and the study they describe."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from gdmap.sweeps.study import DataTable, ObjectiveTable, Study, SweepTable, read_study


class InputScale(StrEnum):
    """How inputs are scaled."""

    OVERALL = "overall"
    COMPONENT = "component"
    NONE = "none"


StudyFile = Annotated[
    Path | None,
    typer.Argument(help="A study in TOML (then no other input options), or an objective file.py:name."),
]
Digits = Annotated[bool, typer.Option("--digits", help="Use the 1,797 digits that scikit-learn ships.")]
Inputs = Annotated[Path | None, typer.Option(help="Inputs: .csv (one sample per row), .npy or .npz.")]
Targets = Annotated[Path | None, typer.Option(help="Targets: .csv, .npy or .npz.")]
OneHot = Annotated[bool, typer.Option("--one-hot", help="The targets are one column of class labels.")]
Components = Annotated[int | None, typer.Option(help="Keep this many principal components of the inputs.")]
Centre = Annotated[
    bool | None,
    typer.Option("--centre/--no-centre", help="Centre the inputs (default: digits yes, files no)."),
]
Scaling = Annotated[
    InputScale | None,
    typer.Option(
        "--input-scale",
        help="Divide the inputs by one standard deviation overall, or per component "
        "(default: digits overall, files none).",
    ),
]
Hidden = Annotated[
    list[int] | None,
    typer.Option(help="Hidden width of the linear network; repeat for more layers. None: linear regression."),
]
ObjectiveFile = Annotated[
    str | None, typer.Option("--objective", help="An objective of your own: path/to/file.py:name.")
]
Searches = Annotated[int, typer.Option("--starts", help="Starts of a search for the flattest minimum.")]
SearchScale = Annotated[float, typer.Option("--scale", help="Standard deviation of those starts.")]
Seed = Annotated[int, typer.Option(help="Seed of the starts.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the Zarr store, the picture and the study.")]


def described_study(
    study: Path | None,
    digits: bool,
    inputs: Path | None,
    targets: Path | None,
    one_hot: bool,
    components: int | None,
    centre: bool | None,
    scaling: InputScale | None,
    hidden: list[int] | None,
    objective: str | None,
    sweep: SweepTable,
) -> Study:
    """The study that a file or the options describe; giving both is an error."""
    if study is not None and ".py:" in str(study) and objective is None:
        objective, study = str(study), None
    data = DataTable(
        source="digits" if digits else None,
        inputs=None if inputs is None else str(inputs),
        targets=None if targets is None else str(targets),
        components=components,
        centre=centre,
        scale=None if scaling is None else scaling.value,
        one_hot=one_hot,
    )
    described = Study(data, ObjectiveTable(tuple(hidden or ()), objective), sweep)
    if study is None:
        return described
    if described != Study():
        raise ValueError(f"give either the study file {study} or options that describe a study, not both")
    return read_study(study)


def read_array(path: Path, option: str, name: str = "theta") -> np.ndarray:
    """One array of a NumPy file, the one called ``name`` if there are several; errors begin with the option."""
    if not path.is_file():
        raise FileNotFoundError(f"{option}: there is no file {path}")
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise ValueError(f"{option}: {path} is not a .npy or .npz file of numbers") from None
    if isinstance(found, np.ndarray):
        return found
    with found:
        names = list(found)
        if len(names) != 1 and name not in names:
            raise ValueError(f"{option}: {path} holds the arrays {names}; one of them must be called {name}")
        return np.asarray(found[name if name in names else names[0]])


def print_json(record: dict[str, Any]) -> None:
    """One JSON object on standard output; infinities become strings, NaN becomes null."""
    typer.echo(json.dumps(plain(record)))


def plain(value: Any) -> Any:
    """``value`` with everything that JSON cannot hold replaced."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        if value != value:
            return None
        return value if abs(value) != float("inf") else str(value)
    return value

"""The user's own CSV and NPZ files."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gdmap.data.dataset import DataSet, Scale, one_hot, preprocessed


def read_files(
    inputs: str | Path,
    targets: str | Path | None = None,
    components: int | None = None,
    centre: bool = False,
    scale: Scale = None,
    one_hot_targets: bool = False,
) -> DataSet:
    """A data set from CSV files (one sample per row, with or without a header) or NPZ files.

    Parameters
    ----------
    inputs, targets
        A ``.csv`` file each; or a ``.npz`` file with the arrays ``inputs`` and ``targets`` (then ``targets``
        may be left out), or one ``.npz`` or ``.npy`` file each with a single array.
    components, centre, scale
        Preprocessing of the inputs, as in `preprocessed`; by default they are taken as they are.
    one_hot_targets
        Read the targets as one column of class labels and encode them as centred one-hot vectors.

    Raises
    ------
    FileNotFoundError
        If a file is not there.
    ValueError
        For files that are empty, hold text or missing values, or differ in their number of samples.
    """
    input_path = Path(inputs)
    target_path = input_path if targets is None else Path(targets)
    if targets is None and input_path.suffix != ".npz":
        raise ValueError("targets is missing (--targets): only an .npz file can hold inputs and targets together")
    X = read_array(input_path, "inputs")
    Y = read_array(target_path, "targets")
    if len(X) != len(Y):
        raise ValueError(
            f"inputs ({input_path}) has {len(X)} samples but targets ({target_path}) has {len(Y)}: "
            "row i of one must belong to row i of the other"
        )
    X, preparation = preprocessed(X, components, centre, scale)
    encoding = "targets as they are"
    if one_hot_targets:
        if Y.shape[1] != 1:
            raise ValueError(f"one-hot targets need one column of labels, but {target_path} has {Y.shape[1]}")
        Y, encoding = one_hot(Y[:, 0])
    names = input_path.name if target_path == input_path else f"{input_path.name}, {target_path.name}"
    return DataSet(X, Y, f"{len(X):,} samples ({names}): {preparation}; {encoding}")


def read_array(path: Path, name: str) -> np.ndarray:
    """One array from a file, as finite float64 of shape ``(samples, columns)``."""
    if not path.is_file():
        raise FileNotFoundError(f"{name}: there is no file {path}")
    if path.suffix == ".csv":
        array = read_csv(path, name)
    elif path.suffix in (".npy", ".npz"):
        array = read_numpy(path, name)
    else:
        raise ValueError(f"{name}: {path} must end in .csv, .npz or .npy")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: {path} holds {array.dtype}, not numbers")
    array = array.astype(float)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name}: {path} holds an array of shape {array.shape}, expected (samples, columns)")
    if not np.all(np.isfinite(array)):
        row, column = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(
            f"{name}: {path} has a missing or non-finite value in sample {row + 1}, column {column + 1} "
            "(counted from 1): remove or impute it"
        )
    return array


def read_csv(path: Path, name: str) -> np.ndarray:
    """A CSV file of numbers, one sample per line; a first row without any number is its header.

    Lines beginning with ``#`` are comments. Nothing is skipped silently: blank cells and lines, rows of
    another length and columns without a name are errors.
    """
    options: Any = {"index_col": False, "skip_blank_lines": False, "skipinitialspace": True, "comment": "#"}
    try:
        with warnings.catch_warnings():
            # A row longer than the others would lose its end with a warning only.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            first = pd.read_csv(path, header=None, nrows=1, dtype=str, **{**options, "skip_blank_lines": True})
            has_header = is_header(first.iloc[0].tolist(), path, name)
            table = pd.read_csv(path, header=0 if has_header else None, **options)
    except pd.errors.EmptyDataError:
        raise ValueError(f"{name}: {path} is empty") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: {path} is not a CSV table with rows of equal length ({error})") from None
    if not len(table):
        raise ValueError(f"{name}: {path} has a header but no samples")
    for column in table.columns:
        if not is_numeric(table[[column]]):
            raise ValueError(
                f"{name}: column {column!r} of {path} holds text: encode it as numbers (labels too), or drop it"
            )
    return table.to_numpy()


def is_header(cells: list[Any], path: Path, name: str) -> bool:
    """Whether the first row of a table names its columns; an error if it is neither names nor numbers."""
    numeric = [is_number(cell) for cell in cells]
    if all(numeric):
        return False
    if any(isinstance(cell, float) for cell in cells):  # pandas reads an empty cell as NaN
        raise ValueError(
            f"{name}: the first row of {path} has an empty cell: a missing value, or row numbers without a "
            "column name (leave them out when writing the file)"
        )
    if any(numeric):
        raise ValueError(f"{name}: the first row of {path} mixes numbers and text: neither header nor sample")
    return True


def is_number(cell: Any) -> bool:
    """Whether a cell of text reads as a number."""
    try:
        return isinstance(cell, str) and float(cell) == float(cell)
    except ValueError:
        return False


def is_numeric(table: pd.DataFrame) -> bool:
    """Whether every column of a table holds numbers."""
    return all(pd.api.types.is_numeric_dtype(dtype) for dtype in table.dtypes)


def read_numpy(path: Path, name: str) -> np.ndarray:
    """An ``.npy`` array, or the array called ``name`` (or the only one) of an ``.npz`` file."""
    try:
        with path.open("rb") as file:
            content: Any = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            if name in content:
                return np.asarray(content[name])
            if len(content.files) == 1:
                return np.asarray(content[content.files[0]])
            found = ", ".join(content.files) or "nothing"
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name}: {path} cannot be read as a NumPy file ({error})") from None
    raise ValueError(f"{name}: {path} has no array called {name!r} (it has {found})")

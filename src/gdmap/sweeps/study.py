"""Studies described by a TOML file: data, objective and sweep."""

import contextlib
import importlib.util
import inspect
import os
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import tomli_w
import xarray as xr

from gdmap.data import DataSet, digits, read_files
from gdmap.objectives import AbstractObjective
from gdmap.sweeps.sweep import sweep


@dataclass(frozen=True)
class DataTable:
    """The table ``[data]``: ``source = "digits"``, or ``inputs`` and ``targets`` files of the user's."""

    source: str | None = None
    inputs: str | None = None
    targets: str | None = None
    components: int | None = None
    centre: bool | None = None
    scale: str | None = None
    one_hot: bool = False


@dataclass(frozen=True)
class ObjectiveTable:
    """The table ``[objective]``: ``hidden`` widths of a linear network, or ``file = "path.py:name"``."""

    hidden: tuple[int, ...] = ()
    file: str | None = None


@dataclass(frozen=True)
class SweepTable:
    """The table ``[sweep]``: arguments of `gdmap.sweep`."""

    step_sizes: tuple[float, ...] = ()
    starts: int = 100
    scale: float | tuple[float, ...] = 1.0
    seed: int = 0
    max_steps: int = 10_000
    chunk_size: int | None = None
    engine: str | None = None


@dataclass(frozen=True)
class Study:
    """A sweep that can be run again from its file alone; relative paths are relative to ``base``."""

    data: DataTable = field(default_factory=DataTable)
    objective: ObjectiveTable = field(default_factory=ObjectiveTable)
    sweep: SweepTable = field(default_factory=SweepTable)
    base: Path = field(default_factory=Path)

    def make_data(self) -> DataSet:
        """The data set of the table ``[data]``, preprocessed."""
        table = self.data
        scale: Any = None if table.scale in (None, "none") else table.scale
        if table.source == "digits":
            if table.inputs or table.targets:
                raise ValueError("data: give source = 'digits' or files of your own, not both")
            if table.one_hot:
                raise ValueError("data: one_hot is for files; the digits are encoded already")
            return digits(
                table.components,
                True if table.centre is None else table.centre,
                "overall" if table.scale is None else scale,
            )
        if table.source is not None:
            raise ValueError(f"data: source must be 'digits', got {table.source!r}")
        if table.inputs is None:
            raise ValueError(
                "no data: give --digits, or --inputs and --targets (in a study: source = 'digits', or inputs "
                "and targets)"
            )
        return read_files(
            self.base / table.inputs,
            None if table.targets is None else self.base / table.targets,
            table.components,
            bool(table.centre),
            scale,
            table.one_hot,
        )

    def make_objective(self) -> AbstractObjective:
        """The objective of the study."""
        if self.objective.file is not None:
            if self.data != DataTable() or self.objective.hidden:
                raise ValueError("objective: a file of your own goes without data and hidden widths")
            return load_objective(self.objective.file, self.base)
        return self.make_data().linear_network(self.objective.hidden)

    def run(
        self, objective: AbstractObjective, store: Path | None, progress: Callable[[int, int], None] | None
    ) -> xr.Dataset:
        """The sweep of the study on its (already made) objective."""
        table = self.sweep
        if not table.step_sizes:
            raise ValueError("sweep: step_sizes is missing or empty")
        scale = table.scale if isinstance(table.scale, (int, float)) else list(table.scale)
        return sweep(
            objective,
            list(table.step_sizes),
            table.starts,
            table.max_steps,
            scale=scale,
            seed=table.seed,
            chunk_size=table.chunk_size,
            engine=table.engine,
            store=store,
            progress=progress,
        )

    def write(self, path: Path) -> None:
        """Write the TOML file that reproduces the study; paths in it become relative to its folder."""
        tables = {name: asdict(getattr(self, name)) for name in ("data", "objective", "sweep")}
        for table, name in (("data", "inputs"), ("data", "targets"), ("objective", "file")):
            if tables[table][name] is not None:
                file, colon, attribute = str(tables[table][name]).partition(":")
                relative = os.path.relpath(self.base / file, path.parent)
                tables[table][name] = Path(relative).as_posix() + colon + attribute
        document = {
            name: {key: value for key, value in table.items() if value is not None and value != ()}
            for name, table in tables.items()
        }
        path.write_text(tomli_w.dumps(document))


def read_study(path: str | Path) -> Study:
    """A study from its TOML file.

    Raises
    ------
    FileNotFoundError
        If the file is not there.
    ValueError
        If it is not TOML or has an unknown table or key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"study: there is no file {path}")
    try:
        document = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"study: {path} is not a TOML file ({error})") from None
    tables: dict[str, Any] = {"data": DataTable, "objective": ObjectiveTable, "sweep": SweepTable}
    unknown = sorted(set(document) - set(tables))
    if unknown:
        raise ValueError(f"study: {path} has unknown tables {unknown}; it may have {sorted(tables)}")
    made = {name: read_table(document.get(name, {}), name, kind) for name, kind in tables.items()}
    return Study(**made, base=path.parent)


def read_table(values: Any, name: str, kind: type) -> Any:
    """One table of a study, with lists made tuples, or an error that names an unknown or ill-typed key."""
    known = {entry.name: entry.type for entry in fields(kind)}
    if not isinstance(values, dict):
        raise ValueError(f"study: [{name}] must be a table")
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"study: [{name}] has unknown keys {unknown}; it may have {list(known)}")
    made = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for key, value in made.items():
        if not has_type(value, known[key]):
            wanted = getattr(known[key], "__name__", None) or str(known[key])
            raise ValueError(f"study: {key} in [{name}] must be {wanted}, got {values[key]!r}")
    return kind(**made)


def has_type(value: Any, annotation: Any) -> bool:
    """Whether a TOML value fits the annotation of a field; a boolean is no number."""
    if isinstance(annotation, types.UnionType):
        return any(has_type(value, option) for option in annotation.__args__)
    if isinstance(annotation, types.GenericAlias):
        return isinstance(value, tuple) and all(has_type(entry, annotation.__args__[0]) for entry in value)
    if isinstance(value, bool) or annotation is bool:
        return isinstance(value, bool) and annotation is bool
    return isinstance(value, (int, float) if annotation is float else annotation)


def load_objective(reference: str, base: Path = Path()) -> AbstractObjective:
    """The objective ``path/to/file.py:name``: an objective, or a function without arguments that makes one.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file or name, or it is no objective.
    """
    found = load_named(reference, AbstractObjective, base)
    if not isinstance(found, AbstractObjective):
        raise ValueError(
            f"objective: {reference} is a {type(found).__name__}, not a gdmap objective: wrap the loss in "
            "gdmap.Function(loss, dim) or gdmap.Objective(loss, params)"
        )
    return found


def load_named(reference: str, kinds: type | tuple[type, ...], base: Path = Path()) -> Any:
    """What ``path/to/file.py:name`` names; a function without arguments is called unless it is of the ``kinds``.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file or name, if either fails, or the function takes arguments.
    """
    file, _, name = reference.partition(":")
    path = base / file
    if not name:
        raise ValueError(f"objective: {reference!r} must have the form path/to/file.py:name")
    if not path.is_file():
        raise FileNotFoundError(f"objective: there is no file {path}")
    specification = importlib.util.spec_from_file_location(f"gdmap_user_{path.stem}", path)
    if specification is None or specification.loader is None:
        raise ValueError(f"objective: {path} is not a Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    with _failures_of(path):
        specification.loader.exec_module(module)
    if not hasattr(module, name):
        raise ValueError(f"objective: {path} defines no {name!r}")
    found = getattr(module, name)
    if not isinstance(found, kinds) and callable(found):
        if _needs_arguments(found):
            raise ValueError(
                f"objective: {reference} takes arguments; it must be an objective, or a function without "
                f"arguments that makes one: wrap a loss in gdmap.Function({name}, dim), an Equinox module in "
                f"gdmap.Network({name}, inputs, targets)"
            )
        with _failures_of(path):
            found = found()
    return found


def _needs_arguments(function: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some compiled functions have none
        return False
    try:
        signature.bind()
    except TypeError:
        return True
    return False


@contextlib.contextmanager
def _failures_of(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ValueError(f"objective: {path}{line} raised {type(error).__name__}: {error}") from error

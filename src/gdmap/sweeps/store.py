"""Chunks on disk: a chunk counts as finished once its data and its digest are there and agree.

The store is an ordinary Zarr group that xarray opens. Each chunk of trajectories is one Zarr chunk of every
variable; after the data, its digest is written to ``chunk_digest``. A half-written or damaged chunk
has no digest or a wrong one and is computed again.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
import zarr.storage

DIGEST = "chunk_digest"
PLAN = "plan"
COMPLETE = "complete"
DTYPES = {
    "fate": "int8",
    "reason": "int8",
    "period": "int32",
    "steps": "int64",
    "loss": "float64",
    "gradient_norm": "float64",
}

# Read back where a chunk is not finished; floating-point variables are NaN there.
NOT_COMPUTED = {"int8": -1, "int32": -1, "int64": -1}
SUMMARY = ("fraction", "fraction_lower", "fraction_upper")

Region = tuple[slice, ...]


class StoreError(RuntimeError):
    """A store that cannot be used: it belongs to another study, or cannot be read or written."""


class Store:
    """The results of one sweep, on disk (``path``) or in memory (``None``), chunk by chunk.

    Parameters
    ----------
    path
        The Zarr group; made if it does not exist.
    plan
        A JSON-able record of everything the numbers depend on; a store with another plan is refused.
    coordinates
        The coordinate arrays by dimension, in the order of the dimensions; ``start`` comes last.
    fate_names
        The names of the fates, the last dimension of the summary.
    chunk
        The chunk length along each dimension.
    attributes
        The attributes of the variables, by name.
    """

    def __init__(
        self,
        path: str | Path | None,
        plan: dict[str, Any],
        coordinates: dict[str, Any],
        fate_names: list[str],
        chunk: tuple[int, ...],
        attributes: dict[str, dict[str, Any]],
    ) -> None:
        self.path = None if path is None else Path(path)
        self.plan = json.loads(json.dumps(plan))
        self.dims = tuple(coordinates)
        self.shape = tuple(len(values) for values in coordinates.values())
        self.chunk = chunk
        self.attributes = attributes
        self.coordinates = coordinates
        self.fate_names = fate_names
        if self.path is None:
            self.target: Any = zarr.storage.MemoryStore()
            self._create(self.target)
        else:
            self.target = str(self.path)
            if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
                self._check_plan()
            else:
                self._create_on_disk()
        with self._failures("opened"):
            self.group = zarr.open_group(self.target, mode="r+")
            for name in (*DTYPES, *SUMMARY, *self.coordinates, DIGEST):
                self.group[name]

    def _create_on_disk(self) -> None:
        # Made aside and renamed, so that a store is there whole or not at all.
        assert self.path is not None
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with self._failures("made"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._create(str(aside))
                aside.rename(self.path)
            finally:
                shutil.rmtree(aside, ignore_errors=True)

    def _create(self, target: Any) -> None:
        names = np.array(self.fate_names, dtype=object)
        coordinates = xr.Dataset(coords={**self.coordinates, "fate_name": names})
        coordinates.to_zarr(target, mode="w", consolidated=False, zarr_format=3)
        group = zarr.open_group(target, mode="r+")
        for name, dtype in DTYPES.items():
            group.create_array(
                name,
                shape=self.shape,
                chunks=self.chunk,
                dtype=dtype,
                fill_value=NOT_COMPUTED.get(dtype, np.nan),
                dimension_names=self.dims,
            )
        summary_shape = (*self.shape[:-1], len(self.fate_names))
        for name in SUMMARY:
            group.create_array(
                name,
                shape=summary_shape,
                chunks=summary_shape,
                dtype="float64",
                fill_value=np.nan,
                dimension_names=(*self.dims[:-1], "fate_name"),
            )
        counts = self.chunk_counts
        group.create_array(
            DIGEST,
            shape=counts,
            chunks=(1,) * len(counts),
            dtype="uint64",
            fill_value=0,
            dimension_names=[f"chunk_{dim}" for dim in self.dims],
        )
        for name, values in self.attributes.items():
            group[name].attrs.update(values)
        group.attrs.update({PLAN: json.dumps(self.plan), "status": "computed", COMPLETE: False})

    def _check_plan(self) -> None:
        try:
            attributes = dict(zarr.open_group(self.target, mode="r").attrs)
            found: Any = json.loads(str(attributes[PLAN]))
        except (OSError, KeyError, ValueError, TypeError):
            raise StoreError(f"store: {self.path} exists but is not a gdmap sweep; choose another path") from None
        there, now = flat_record(found), flat_record(self.plan)
        different = [name for name in sorted({*there, *now}) if there.get(name) != now.get(name)]
        if all(name.startswith("environment.") for name in different) and attributes.get(COMPLETE):
            return  # nothing left to compute, so nothing that could differ
        if different:
            shown = "; ".join(
                f"{name}: {_short(there.get(name))} there, {_short(now.get(name))} now" for name in different
            )
            raise StoreError(
                f"store: {self.path} holds another study ({shown}). "
                "Choose another path, or give the arguments it was begun with"
            )

    @property
    def chunk_counts(self) -> tuple[int, ...]:
        """The number of chunks along each dimension."""
        return tuple(-(-length // size) for length, size in zip(self.shape, self.chunk, strict=True))

    def regions(self) -> Iterator[tuple[tuple[int, ...], Region]]:
        """Every chunk: its index and the slices it covers."""
        for index in itertools.product(*map(range, self.chunk_counts)):
            yield (
                index,
                tuple(
                    slice(position * size, min((position + 1) * size, length))
                    for position, size, length in zip(index, self.chunk, self.shape, strict=True)
                ),
            )

    def is_finished(self, index: tuple[int, ...], region: Region) -> bool:
        """Whether a chunk is there whole: it has a digest and its data agree with it."""
        try:
            digest = int(np.asarray(self.group[DIGEST][index]))  # type: ignore[index]
            if digest == 0:
                return False
            data = {name: np.asarray(self.group[name][region]) for name in DTYPES}  # type: ignore[index]
        except (OSError, ValueError, RuntimeError):  # a file that cannot be read or decoded
            return False
        return chunk_digest(data) == digest

    def write(self, index: tuple[int, ...], region: Region, data: dict[str, np.ndarray]) -> None:
        """Store one chunk; its digest comes last, so that a chunk cut off on the way does not count."""
        data = {name: np.asarray(data[name], dtype) for name, dtype in DTYPES.items()}
        with self._failures("written"):
            self.group[DIGEST][index] = np.uint64(0)  # type: ignore[index]
            for name, block in data.items():
                self.group[name][region] = block  # type: ignore[index]
            self.group[DIGEST][index] = np.uint64(chunk_digest(data))  # type: ignore[index]

    def finish(self, summary: xr.Dataset) -> None:
        """Add the summary once every chunk is there (again if damaged)."""
        if self.group.attrs.get(COMPLETE) and self._is_intact(summary):
            return
        with self._failures("written"), warnings.catch_warnings():
            # Consolidated metadata is an extension of Zarr 3; it spares readers a warning.
            warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
            for name, values in self.coordinates.items():
                self.group[name][:] = np.asarray(values)  # type: ignore[index]
            for name in SUMMARY:
                self.group[name][:] = summary[name].values  # type: ignore[index]
                self.group[name].attrs.update(summary[name].attrs)
            self.group.attrs[COMPLETE] = True
            zarr.consolidate_metadata(self.target)

    def _is_intact(self, summary: xr.Dataset) -> bool:
        expected = {name: summary[name].values for name in SUMMARY} | self.coordinates
        try:
            return all(
                np.array_equal(np.asarray(self.group[name][:]), np.asarray(values))  # type: ignore[index]
                for name, values in expected.items()
            )
        except (OSError, ValueError, RuntimeError):
            return False

    def load(self) -> xr.Dataset:
        """The variables of all trajectories, in memory; coordinates and plan are those of the arguments."""
        with self._failures("read"):
            variables = {
                name: (self.dims, np.asarray(self.group[name][...]).astype(dtype))  # type: ignore[index]
                for name, dtype in DTYPES.items()
            }
        attributes = {PLAN: json.dumps(self.plan), "status": "computed"}
        return xr.Dataset(variables, coords=self.coordinates, attrs=attributes)

    @contextlib.contextmanager
    def _failures(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (KeyError, ValueError, TypeError) as error:
            raise StoreError(
                f"store: {self.path} is damaged and cannot be {verb} ({type(error).__name__}: {error}). "
                "Choose another path, or delete it and run again"
            ) from error
        except OSError as error:
            raise StoreError(
                f"store: {self.path} cannot be {verb} ({error.strerror or error}). Free space or choose a "
                "writable path; run again with the same arguments to go on: finished chunks are kept"
            ) from error


def chunk_digest(data: dict[str, np.ndarray]) -> int:
    """A non-zero 64-bit digest of the bytes of a chunk."""
    digest = hashlib.blake2b(digest_size=8)
    for name in DTYPES:
        digest.update(np.ascontiguousarray(data[name]).tobytes())
    return int.from_bytes(digest.digest(), "little") or 1


def flat_record(record: Any, prefix: str = "") -> dict[str, Any]:
    """A nested record with dotted names."""
    if not isinstance(record, dict):
        return {prefix: record}
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat.update(flat_record(value, f"{prefix}.{name}" if prefix else name))
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

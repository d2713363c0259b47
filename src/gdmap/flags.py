"""Enumerations in datasets: small integers with the CF attributes that name them."""

from enum import IntEnum

import numpy as np
import xarray as xr


def flag_attributes(flags: type[IntEnum]) -> dict[str, object]:
    """The CF attributes ``flag_values`` and ``flag_meanings`` of an enumeration."""
    return {
        "flag_values": [int(flag) for flag in flags],
        "flag_meanings": " ".join(flag.name.lower() for flag in flags),
    }


def flag_names(variable: xr.DataArray) -> np.ndarray:
    """A flag variable as strings, by its CF attributes; ``not_computed`` for other values (unfinished stores)."""
    values = np.asarray(variable.attrs["flag_values"])
    meanings = np.asarray(str(variable.attrs["flag_meanings"]).split())
    names = dict(zip(values.tolist(), meanings.tolist(), strict=True))
    return np.vectorize(lambda value: names.get(int(value), "not_computed"), otypes=[str])(variable.values)

"""The fates of many starts under one map."""

import platform
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import xarray as xr

from gdmap.engines.precision import as_floating
from gdmap.ensembles.fates import Fate, Reason
from gdmap.ensembles.iteration import Criteria, Outcome, iterate_to_fate
from gdmap.flags import flag_attributes
from gdmap.maps import ConstantFamily, Map


def ensemble(
    map: Map,  # noqa: A002 - the name of the concept
    thetas: Any,
    max_steps: int = 10_000,
    *,
    step_tolerance: float = Criteria().step_tolerance,
    period_tolerance: float = Criteria().period_tolerance,
    max_period: int = Criteria().max_period,
    escape_radius: float = Criteria().escape_radius,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Iterate ``map`` from every start and give each its fate.

    Parameters
    ----------
    map
        The map to iterate, for instance ``GradientDescent(objective, step_size)``.
    thetas
        The starts, parameters of shape ``(starts, dim)``; ``map.initial_state`` is applied to each. The dtype
        is that of the orbits (other than float64: with a warning); they are judged in double precision.
    max_steps
        The horizon.
    step_tolerance, period_tolerance, max_period, escape_radius
        See `Criteria`.
    progress
        Called as ``progress(finished, total)`` from time to time.

    Returns
    -------
    xarray.Dataset
        Over ``start``: ``fate`` and ``reason`` (flag variables, see `fate_names`), ``period`` (minimal; 0
        unless periodic), ``steps`` taken when the fate fell, ``loss`` and ``gradient_norm`` at the last
        state, and ``state`` itself over (``start``, ``component``). Status *computed*: a fate is a statement
        about the floating-point orbit, confirmed by Newton's method and the multipliers.

    Raises
    ------
    ValueError
        For starts of the wrong shape or not finite, or a horizon below 1.
    """
    if not isinstance(map, Map):
        raise TypeError(f"map must be a map such as GradientDescent(objective, step_size), got {map!r}")
    criteria = checked_criteria(Criteria(max_steps, step_tolerance, period_tolerance, max_period, escape_radius))
    starts = checked_starts(thetas, map.objective.dim)
    states = np.stack([np.asarray(map.initial_state(theta)) for theta in starts])
    outcome = iterate_to_fate(ConstantFamily(map), np.zeros(len(states), states.dtype), states, criteria, progress)
    variables: dict[str, Any] = {name: ("start", values) for name, values in trajectory_variables(outcome).items()}
    variables["state"] = (("start", "component"), outcome.state)
    dataset = xr.Dataset(variables, coords={"start": np.arange(len(states))})
    dataset.attrs = {"map": repr(map), "dtype": str(states.dtype), **criteria._asdict(), **environment()}
    return annotate(dataset)


def checked_starts(thetas: Any, dim: int) -> np.ndarray:
    """Starts as a finite floating array of shape ``(starts, dim)``."""
    starts = np.asarray(as_floating(thetas))
    if starts.dtype != np.float64:
        warnings.warn(
            f"the starts are {starts.dtype}, so the orbits are computed in that precision: "
            "pass NumPy float64 for double precision",
            stacklevel=3,
        )
    if starts.ndim != 2 or starts.shape[1] != dim or not len(starts):
        raise ValueError(
            f"thetas has shape {starts.shape}, expected (starts, {dim}): one flat parameter vector per row"
        )
    if not np.all(np.isfinite(starts)):
        row = int(np.argwhere(~np.isfinite(starts).all(axis=1))[0, 0])
        raise ValueError(f"thetas holds values that are not finite, first in start {row}")
    return starts


def checked_criteria(criteria: Criteria) -> Criteria:
    """The criteria as plain numbers, or an error naming the one that makes no sense."""
    for name in ("max_steps", "max_period"):
        value = getattr(criteria, name)
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if criteria.max_period > 250:
        raise ValueError(f"max_period is at most 250 (longer periods are found too), got {criteria.max_period}")
    for name in ("step_tolerance", "period_tolerance", "escape_radius"):
        value = getattr(criteria, name)
        if not isinstance(value, (int, float, np.number)) or not np.isfinite(value) or value <= 0:
            raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return Criteria(
        int(criteria.max_steps),
        float(criteria.step_tolerance),
        float(criteria.period_tolerance),
        int(criteria.max_period),
        float(criteria.escape_radius),
    )


def trajectory_variables(outcome: Outcome) -> dict[str, np.ndarray]:
    """The variables recorded of every trajectory, by name."""
    names = ("fate", "reason", "period", "steps", "loss", "gradient_norm")
    return {name: getattr(outcome, name) for name in names}


ATTRIBUTES: dict[str, dict[str, Any]] = {
    "fate": {"long_name": "fate of the trajectory", "status": "computed", **flag_attributes(Fate)},
    "reason": {"long_name": "reason for the fate", "status": "computed", **flag_attributes(Reason)},
    "period": {
        "long_name": "minimal period of a periodic fate, otherwise 0",
        "status": "computed",
        "units": "steps",
    },
    "steps": {"long_name": "steps taken when the fate fell", "status": "computed", "units": "steps"},
    "loss": {"long_name": "loss at the last state", "status": "computed", "units": "1"},
    "gradient_norm": {
        "long_name": "Euclidean norm of the gradient at the last state",
        "status": "computed",
        "units": "1",
    },
    "start": {"long_name": "index of the start"},
    "step_size": {"long_name": "step size eta", "units": "1"},
    "scale": {"long_name": "standard deviation of the starts", "units": "1"},
}


def annotate(dataset: xr.Dataset) -> xr.Dataset:
    """``dataset`` with the attributes of its variables and the status of its numbers filled in."""
    for name, attributes in ATTRIBUTES.items():
        if name in dataset.variables:
            dataset[name].attrs.update(attributes)
    dataset.attrs["status"] = "computed"
    return dataset


def environment() -> dict[str, str]:
    """What the bits of a result depend on besides its arguments: engine, versions, machine type."""
    from importlib.metadata import version

    return {
        "engine": f"xla-{jax.default_backend()}",
        "machine": platform.machine(),
        "gdmap": version("gdmap"),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }

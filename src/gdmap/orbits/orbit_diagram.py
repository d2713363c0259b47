"""Orbit diagrams: where orbits are after a transient, against a parameter."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from gdmap.engines.xla import block_size, on_lanes
from gdmap.maps import Family, Map, family_along
from gdmap.orbits.starts import initial_states

Sweep = Literal["fresh", "up", "down"]
SWEEPS: tuple[Sweep, ...] = ("fresh", "up", "down")
# Beyond this norm, relative to the start's, an orbit has left; its states are NaN from there on.
FAR = 1e6


def orbit_diagram(
    map: Map,  # noqa: A002 - the name of the concept
    values: Any,
    starts: Any = 16,
    *,
    parameter: str | Callable[[Any], Map] = "step_size",
    value: float | None = None,
    sweep: Sweep | Sequence[Sweep] = "fresh",
    transient: int = 1_000,
    samples: int = 200,
    observable: Callable[[Any], Any] | None = None,
    scale: float = 1.0,
    perturbation: float = 1e-9,
    seed: int = 0,
) -> xr.Dataset:
    """States on the attractors of a map against one of its parameters: the sampled picture of bifurcations.

    Every start is iterated ``transient`` steps at each value, then ``samples`` states are recorded. Unlike
    `bifurcation_diagram` it shows what orbits do, not which orbits exist: nothing unstable, and what is stable
    only if a start leads there. A point next to a bifurcation may still be on its way.

    Parameters
    ----------
    map
        The map at some value of the parameter.
    values
        Values of the parameter, shape ``(n,)``, distinct.
    starts
        A number of starts from ``N(0, scale^2 I)``, start ``i`` a function of ``(seed, i)`` alone; or parameters
        of shape ``(n, dim)``.
    parameter, value
        What is varied: a name in ``map.numbers`` (step size, momentum, ...), or a traceable function of the value
        that makes the map, with the present ``value``.
    sweep
        ``'fresh'``: every value begins at the starts. ``'up'``, ``'down'``: values are gone through in that order,
        each beginning where the one before ended, displaced by ``perturbation`` times the size of the state in a
        random direction (an orbit exactly on an unstable cycle would stay there). Several in a list: their
        difference is hysteresis. An orbit that left begins again at its start.
    transient, samples
        Steps before, and states recorded after that.
    observable
        A traceable function ``state -> number`` recorded instead of the whole state.
    scale, seed
        Of the starts.
    perturbation
        See ``sweep``.

    Returns
    -------
    xarray.Dataset
        Over (``sweep``, ``value``, ``start``, ``sample``): ``state`` (with ``component``), or ``observable``; NaN
        where an orbit left; ``diverged`` over (``sweep``, ``value``, ``start``). Status *computed*: the
        floating-point orbits themselves; that they have settled after the transient is not shown.

    Raises
    ------
    TypeError, ValueError
        For arguments that make no sense.
    """
    family, present = family_along(map, parameter, value)
    grid = checked_values(values, parameter)
    sweeps = [sweep] if isinstance(sweep, str) else list(sweep)
    if not sweeps or any(one not in SWEEPS for one in sweeps) or len(set(sweeps)) < len(sweeps):
        raise ValueError(f"sweep must be 'fresh', 'up', 'down' or a list of these, got {sweep!r}")
    for name, number, least in (("transient", transient, 0), ("samples", samples, 1)):
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < least:
            raise ValueError(f"{name} must be an integer from {least}, got {number!r}")
    states = initial_states(map, starts, scale, seed)
    record = Record(family, int(transient), int(samples), observable)
    parts = [
        fresh(record, grid, states) if one == "fresh" else carried(record, grid, states, one, perturbation, seed)
        for one in sweeps
    ]
    recorded = np.stack([part for part, _ in parts])
    diverged = np.stack([lost for _, lost in parts])
    name = parameter if isinstance(parameter, str) else "parameter"
    dims = ("sweep", "value", "start", "sample")
    variables: dict[str, Any] = {"diverged": (dims[:3], diverged, {"long_name": "whether the orbit left"})}
    if observable is None:
        variables["state"] = ((*dims, "component"), recorded, {"long_name": "state on the orbit"})
    else:
        variables["observable"] = (dims, recorded, {"long_name": "observable along the orbit"})
    return xr.Dataset(
        variables,
        coords={
            "sweep": sweeps,
            "value": ("value", grid, {"long_name": name.replace("_", " ")}),
            "start": np.arange(len(states)),
        },
        attrs={
            "map": repr(map),
            "parameter": name,
            "present_value": present,
            "transient": int(transient),
            "samples": int(samples),
            "seed": int(seed),
            "status": "computed",
            "method": "iteration in double precision; the states after the transient, settled or not",
        },
    )


def checked_values(values: Any, parameter: Any) -> np.ndarray:
    """Distinct finite values of the parameter, in the order given; step sizes are positive."""
    grid = np.asarray(values)
    if grid.dtype.kind not in "fiu" or grid.ndim != 1 or not grid.size:
        raise ValueError(f"values must be a non-empty 1-D array of numbers, got shape {grid.shape}")
    grid = grid.astype(np.float64)
    if not np.all(np.isfinite(grid)) or len(np.unique(grid)) < len(grid):
        raise ValueError("values must be finite and distinct")
    if parameter in ("step_size", "learning_rate") and grid.min() <= 0:
        raise ValueError(f"step sizes must be positive, got {grid.min()}")
    return grid


class Record(eqx.Module):
    """The states after a transient, what is recorded of them, and where the orbit ended."""

    family: Family
    transient: int = eqx.field(static=True)
    samples: int = eqx.field(static=True)
    observable: Callable[[Any], Any] | None

    def __call__(self, parameter: Any, state: Any) -> tuple[Any, Any]:
        """The record, shape ``(samples, ...)``, and the last state; NaN once the orbit has left."""
        far = FAR * (1 + jnp.linalg.norm(state))
        map_ = self.family(parameter)

        def step(state: Any) -> Any:
            image = map_.update(state)
            return jnp.where(jnp.linalg.norm(image) < far, image, jnp.nan)

        settled = jax.lax.fori_loop(0, self.transient, lambda _, state: step(state), state)
        seen = self.observable or (lambda state: state)
        last, recorded = jax.lax.scan(
            lambda state, _: (step(state), seen(state)), settled, None, length=self.samples
        )
        return recorded, last


def block_of(record: Record, d: int) -> int:
    """Lanes side by side: few where padding them would cost more than it saves."""
    return block_size(8 * d * (record.samples + 8), largest=256 if d <= 16 else 8)


def fresh(record: Record, grid: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The records of every value and start, each beginning at the start."""
    n, d = states.shape
    values, begun = np.repeat(grid, n), np.tile(states, (len(grid), 1))
    block = block_of(record, d)
    recorded, last = on_lanes(record, (values, begun), block)
    recorded = recorded.reshape(len(grid), n, *recorded.shape[1:])
    return recorded, ~np.isfinite(last).all(axis=1).reshape(len(grid), n)


def carried(
    record: Record, grid: np.ndarray, states: np.ndarray, order: str, perturbation: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The records where every value begins at the end of the one before, in rising or falling order."""
    n, d = states.shape
    block = block_of(record, d)
    sequence = np.argsort(grid)[:: 1 if order == "up" else -1]
    results: list[Any] = [None] * len(grid)
    diverged = np.zeros((len(grid), n), bool)
    current = states
    for place, index in enumerate(sequence):
        results[index], last = on_lanes(record, (np.full(n, grid[index]), current), block)
        diverged[index] = ~np.isfinite(last).all(axis=1)
        current = np.where(diverged[index][:, None], states, last)
        kick = np.random.default_rng([seed, place]).standard_normal((n, d))
        sizes = np.linalg.norm(current, axis=1, keepdims=True)
        current = current + perturbation * sizes * kick / np.linalg.norm(kick, axis=1, keepdims=True)
    return np.stack(results), diverged

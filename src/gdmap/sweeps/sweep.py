"""The fates of the same starts over a range of step sizes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
import xarray as xr

from gdmap.engines.trace import array_digest, trace_fingerprint
from gdmap.engines.xla import block_size, on_lanes
from gdmap.ensembles.ensemble import (
    ATTRIBUTES,
    annotate,
    checked_criteria,
    environment,
    trajectory_variables,
)
from gdmap.ensembles.fates import Fate
from gdmap.ensembles.iteration import Criteria, iterate_to_fate
from gdmap.maps import GradientDescent, Map, StepSizeFamily
from gdmap.maps.gradient_descent import checked_step_size
from gdmap.objectives import AbstractObjective
from gdmap.sweeps.fractions import fate_fractions
from gdmap.sweeps.starts import checked_number, resolve_starts
from gdmap.sweeps.store import DTYPES, Region, Store

PLAN_FORMAT = 1


def sweep(
    objective: AbstractObjective,
    step_sizes: Any,
    starts: Any,
    max_steps: int = 10_000,
    *,
    n_starts: int | None = None,
    scale: float | Sequence[float] = 1.0,
    seed: int = 0,
    map: Callable[[AbstractObjective, Any], Map] = GradientDescent,  # noqa: A002 - the name of the concept
    store: str | Path | None = None,
    chunk_size: int = 2048,
    step_tolerance: float = Criteria().step_tolerance,
    period_tolerance: float = Criteria().period_tolerance,
    max_period: int = Criteria().max_period,
    escape_radius: float = Criteria().escape_radius,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Give every (step size, start) its fate, with the share of each fate and its interval.

    Parameters
    ----------
    objective
        The loss.
    step_sizes
        Distinct positive step sizes, shape ``(n_step_sizes,)``.
    starts
        A number ``n`` of starts from ``N(0, scale^2 I)``; an array ``(n, dim)``; or a law, a JAX function
        ``law(key) -> theta`` of a PRNG key, together with ``n_starts``. The same starts serve every step
        size, and start ``i`` depends on ``(seed, i)`` alone.
    max_steps
        The horizon.
    n_starts
        The number of starts where ``starts`` is a law.
    scale
        Standard deviation of the starts when ``starts`` is a number; a list adds the dimension ``scale``.
    seed
        The seed of the starts, a non-negative integer.
    map
        ``map(objective, step_size)``, traceable in the step size.
    store
        A path for a Zarr store, written chunk by chunk. A sweep that was cut off at any moment goes on when it
        is called again with the same arguments, and ends with the identical dataset. Without it the result
        is kept in memory only.
    chunk_size
        About how many trajectories to run between writes. It changes the chunks on disk, not the numbers.
    step_tolerance, period_tolerance, max_period, escape_radius
        See `gdmap.Criteria`.
    progress
        Called as ``progress(finished, total)`` in trajectories, from time to time.

    Returns
    -------
    xarray.Dataset
        Dimensions ``step_size``, (``scale``,) ``start``: the variables of `gdmap.ensemble`, except the
        states (status *computed*), and the shares ``fraction``, ``fraction_lower``, ``fraction_upper`` over
        ``fate_name`` (status *estimated*, Wilson intervals). Its attributes record the plan.

    Raises
    ------
    ValueError
        For arguments that make no sense, naming them.
    StoreError
        If the store belongs to another study or cannot be written.
    """
    if not isinstance(objective, AbstractObjective):
        raise TypeError(f"objective must be a gdmap objective such as Function(f, dim), got {objective!r}")
    if not callable(map):
        raise TypeError(f"map must be a function of (objective, step_size), got {map!r}")
    criteria = checked_criteria(Criteria(max_steps, step_tolerance, period_tolerance, max_period, escape_radius))
    etas = checked_step_sizes(step_sizes)
    scales = checked_scales(scale)
    seed = checked_seed(seed)
    thetas = resolve_starts(starts, n_starts, objective.dim, scales, seed)
    family = StepSizeFamily(objective, map)
    coordinates: dict[str, Any] = {"step_size": etas, "scale": scales, "start": np.arange(len(thetas))}
    if np.ndim(scale) == 0:
        del coordinates["scale"]
    chunk = chunk_lengths(tuple(len(values) for values in coordinates.values()), chunk_size)
    plan = {
        "format": PLAN_FORMAT,
        "objective": objective.describe(),
        "map": f"{map.__module__}.{map.__qualname__}" if hasattr(map, "__qualname__") else repr(map),
        "trace": trace_fingerprint(family.step, (), (family(etas[0]).state_dim,)),
        "step_sizes": etas.tolist(),
        "scales": scales.tolist(),
        "seed": seed,
        "starts": {"number": len(thetas), "dtype": str(thetas.dtype), "digest": array_digest(thetas)},
        "criteria": criteria._asdict(),
        "chunk": list(chunk),
        "environment": environment(),
    }
    attributes = {name: ATTRIBUTES[name] for name in (*coordinates, *DTYPES)}
    names = [fate.name.lower() for fate in Fate]
    results = Store(store, plan, coordinates, names, chunk, attributes)
    total, before = int(np.prod(results.shape)), 0
    for index, region in results.regions():
        size = int(np.prod([part.stop - part.start for part in region]))
        if not results.is_finished(index, region):

            def report(finished: int, _: int, before: int = before) -> None:
                if progress is not None:
                    progress(before + finished, total)

            results.write(index, region, run_chunk(family, etas, scales, thetas, region, criteria, report))
        before += size
        if progress is not None:
            progress(before, total)
    return _finished(results)


class InitialState(eqx.Module):
    """The state in which the run of one lane begins."""

    family: StepSizeFamily

    def __call__(self, parameter: Any, theta: Any) -> Any:
        """The initial state of the map at ``parameter`` for the parameters ``theta``."""
        return self.family(parameter).initial_state(theta)


def run_chunk(
    family: StepSizeFamily,
    etas: np.ndarray,
    scales: np.ndarray,
    thetas: np.ndarray,
    region: Region,
    criteria: Criteria,
    progress: Callable[[int, int], None],
) -> dict[str, np.ndarray]:
    """The variables of the trajectories in ``region``, each in the shape of the region."""
    eta, scale = etas[region[0]], scales[region[1] if len(region) == 3 else slice(None)]
    theta = thetas[region[-1]]
    shape = (len(eta), len(scale), len(theta))
    parameter = np.broadcast_to(eta[:, None, None], shape).ravel().astype(theta.dtype)
    thetas = np.broadcast_to(scale[:, None, None] * theta, (*shape, theta.shape[1]))
    thetas = thetas.reshape(-1, theta.shape[1]).astype(theta.dtype)
    state = on_lanes(InitialState(family), (parameter, thetas), block_size(16 * theta.shape[1]))
    outcome = iterate_to_fate(family, parameter, state, criteria, progress)
    lengths = tuple(part.stop - part.start for part in region)
    return {name: values.reshape(lengths) for name, values in trajectory_variables(outcome).items()}


def _finished(results: Store) -> xr.Dataset:
    dataset = annotate(results.load())
    dataset = dataset.merge(fate_fractions(dataset["fate"]), combine_attrs="override")
    results.finish(dataset)
    return dataset


def checked_step_sizes(step_sizes: Any) -> np.ndarray:
    """Step sizes as a float64 vector of distinct positive numbers."""
    etas = np.asarray(step_sizes)
    if etas.dtype.kind not in "fiu" or etas.ndim != 1 or not etas.size:
        raise ValueError(f"step_sizes must be a non-empty 1-D array of numbers, got shape {etas.shape}")
    etas = etas.astype(np.float64)
    for eta in etas:
        checked_step_size(eta)
    if len(np.unique(etas)) != len(etas):
        raise ValueError("step_sizes holds the same step size twice: give each once")
    return etas


def checked_scales(scale: Any) -> np.ndarray:
    """Scales of the starts as a float64 vector of distinct positive numbers."""
    try:
        scales = np.atleast_1d(np.asarray(scale, dtype=np.float64))
    except (TypeError, ValueError):
        raise ValueError(f"scale must be a positive number or a list of them, got {scale!r}") from None
    if scales.ndim != 1 or not scales.size or not np.all(np.isfinite(scales)) or np.any(scales <= 0):
        raise ValueError(f"scale must be positive and finite (a number or a list of them), got {scale!r}")
    if len(np.unique(scales)) != len(scales):
        raise ValueError("scale holds the same number twice: give each once")
    return scales


def checked_seed(seed: Any) -> int:
    """The seed as a non-negative 32-bit integer."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")
    return int(seed)


def chunk_lengths(shape: tuple[int, ...], chunk_size: Any) -> tuple[int, ...]:
    """Chunk lengths for about ``chunk_size`` trajectories: whole starts first, then scales, then step sizes."""
    lengths, left = [], checked_number(chunk_size, "chunk_size")
    for length in reversed(shape):
        lengths.append(max(1, min(length, left)))
        left //= length
    return tuple(reversed(lengths))

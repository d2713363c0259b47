"""The fates of the same starts over a range of step sizes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
import xarray as xr

from gdmap.engines.choice import checked_engine
from gdmap.engines.trace import array_digest, trace_fingerprint
from gdmap.ensembles.ensemble import (
    ATTRIBUTES,
    annotate,
    checked_criteria,
    environment,
    map_criteria,
    random_criteria,
    trajectory_variables,
)
from gdmap.ensembles.fates import Fate
from gdmap.ensembles.iteration import Criteria, engine_for, initial_states, iterate_to_fate
from gdmap.ensembles.random_fates import iterate_to_random_fate
from gdmap.ensembles.random_iteration import SampledSteps, sampled_steps
from gdmap.maps import GradientDescent, Map, RandomMap, StepSizeFamily, StochasticGradientDescent
from gdmap.maps.batches import trajectory_key
from gdmap.maps.gradient_descent import checked_step_size
from gdmap.objectives import AbstractObjective
from gdmap.sweeps.fractions import fate_fractions
from gdmap.sweeps.starts import checked_number, resolve_starts
from gdmap.sweeps.store import DTYPES, Region, Store

PLAN_FORMAT = 1
# Of each trajectory about so many states are held at once (start, state, reference, copies).
CHUNK_BYTES, STATES_HELD = 2**26, 8
FEWEST_IN_CHUNK, MOST_IN_CHUNK = 2048, 131_072


def sweep(
    objective: AbstractObjective,
    step_sizes: Any,
    starts: Any,
    max_steps: int = 10_000,
    *,
    n_starts: int | None = None,
    scale: float | Sequence[float] = 1.0,
    seed: int = 0,
    map: Callable[[AbstractObjective, Any], Map | RandomMap] = GradientDescent,  # noqa: A002 - the name of the concept
    store: str | Path | None = None,
    chunk_size: int | None = None,
    step_tolerance: float | None = None,
    period_tolerance: float = Criteria().period_tolerance,
    max_period: int = Criteria().max_period,
    escape_radius: float | None = None,
    engine: str | None = None,
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
        The seed of the starts, and of the batches of a random map; a non-negative integer.
    map
        ``map(objective, step_size)``, traceable in the step size. For batches of 4, say,
        ``lambda objective, step_size: StochasticGradientDescent(objective, step_size, batch_size=4)``: start ``i``
        draws the batches of trajectory ``i``, the same at every step size.
    store
        A path for a Zarr store, written chunk by chunk. A sweep that was cut off at any moment goes on when it
        is called again with the same arguments, and ends with the identical dataset. Without it the result
        is kept in memory only.
    chunk_size
        About how many trajectories to run between writes; by default as many as 64 MiB of states hold, from 2048
        to 131,072. It changes the chunks on disk and what is held in memory, not the numbers: beside the chunk
        about 40 bytes of results for each trajectory.
    step_tolerance, period_tolerance, max_period, escape_radius
        See `gdmap.Criteria`, and `gdmap.ensemble` for the defaults of random maps.
    engine
        See `gdmap.ensemble`.
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
    etas = checked_step_sizes(step_sizes)
    scales = checked_scales(scale)
    seed = checked_seed(seed)
    family = family_of(objective, map, etas, seed)
    if isinstance(family, RandomFamily):
        criteria = random_criteria(max_steps, step_tolerance, escape_radius)
    else:
        criteria = map_criteria(max_steps, step_tolerance, period_tolerance, max_period, escape_radius)
    criteria = checked_criteria(criteria)
    thetas = resolve_starts(starts, n_starts, objective.dim, scales, seed)
    coordinates: dict[str, Any] = {"step_size": etas, "scale": scales, "start": np.arange(len(thetas))}
    if np.ndim(scale) == 0:
        del coordinates["scale"]
    state_dim = family.state_dim if isinstance(family, RandomFamily) else family(etas[0]).state_dim
    size = default_chunk(state_dim) if chunk_size is None else chunk_size
    chunk = chunk_lengths(tuple(len(values) for values in coordinates.values()), size)
    run = None
    if isinstance(family, StepSizeFamily):
        run = engine_for(family, state_dim, thetas.dtype, criteria, engine)
    elif checked_engine(engine) == "simd":
        raise ValueError("the engine 'simd' does not run random maps: leave engine out, or use 'xla'")
    plan = {
        "format": PLAN_FORMAT,
        "objective": objective.describe(),
        "map": f"{map.__module__}.{map.__qualname__}" if hasattr(map, "__qualname__") else repr(map),
        "trace": trace_fingerprint(family.step, (), (state_dim,)),
        "step_sizes": etas.tolist(),
        "scales": scales.tolist(),
        "seed": seed,
        "starts": {"number": len(thetas), "dtype": str(thetas.dtype), "digest": array_digest(thetas)},
        "criteria": criteria._asdict(),
        "chunk": list(chunk),
        "environment": environment(run and run.name),
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

            results.write(index, region, run_chunk(family, etas, scales, thetas, region, criteria, report, run))
        before += size
        if progress is not None:
            progress(before, total)
    return _finished(results, plan["environment"]["engine"])


class RandomFamily(eqx.Module):
    """Stochastic gradient descent over step sizes."""

    steps: SampledSteps
    seed: int = eqx.field(static=True)

    @property
    def map(self) -> StochasticGradientDescent:
        """The map at one of the step sizes."""
        return self.steps.map

    @property
    def state_dim(self) -> int:
        """The dimension of the state space."""
        return self.map.state_dim

    def step(self, step_size: Any, state: Any) -> Any:
        """The first step of the first trajectory, traceable: what identifies the family."""
        return self.steps.update(step_size, state, trajectory_key(self.seed, 0), 0)


def family_of(
    objective: AbstractObjective, make: Callable[[AbstractObjective, Any], Any], etas: np.ndarray, seed: int
) -> StepSizeFamily | RandomFamily:
    """The maps over the step sizes, or an error if ``make`` does not make them."""
    first = make(objective, etas[0])
    if isinstance(first, StochasticGradientDescent):
        for eta in etas:
            made = make(objective, eta)
            if not eqx.tree_equal(made, eqx.tree_at(lambda map_: map_.step_size, first, np.asarray(eta))):
                raise ValueError(
                    "map(objective, step_size) must be StochasticGradientDescent with that step size and the same "
                    f"batches at every step size; at {float(eta)} it is {made!r}"
                )
        if first.batches.is_deterministic:
            return StepSizeFamily(first.mean_map.objective, GradientDescent)
        return RandomFamily(sampled_steps(first), seed)
    if isinstance(first, RandomMap):
        raise TypeError(f"of random maps StochasticGradientDescent has fates, got {first!r}")
    if not isinstance(first, Map):
        raise TypeError(f"map(objective, step_size) must return a map such as GradientDescent, got {first!r}")
    return StepSizeFamily(objective, make)


def run_chunk(
    family: StepSizeFamily | RandomFamily,
    etas: np.ndarray,
    scales: np.ndarray,
    thetas: np.ndarray,
    region: Region,
    criteria: Criteria,
    progress: Callable[[int, int], None],
    engine: Any = None,
) -> dict[str, np.ndarray]:
    """The variables of the trajectories in ``region``, each in the shape of the region."""
    eta, scale = etas[region[0]], scales[region[1] if len(region) == 3 else slice(None)]
    theta = thetas[region[-1]]
    shape = (len(eta), len(scale), len(theta))
    parameter = np.broadcast_to(eta[:, None, None], shape).ravel().astype(theta.dtype)
    thetas = np.broadcast_to(scale[:, None, None] * theta, (*shape, theta.shape[1]))
    thetas = thetas.reshape(-1, theta.shape[1]).astype(theta.dtype)
    if isinstance(family, RandomFamily):
        numbers = np.broadcast_to(np.arange(region[-1].start, region[-1].stop), shape).ravel()
        etas_ = parameter.astype(np.float64)
        outcome = iterate_to_random_fate(family.map, etas_, thetas, numbers, family.seed, criteria, progress)
    else:
        state = initial_states(family, parameter, thetas)
        outcome = iterate_to_fate(family, parameter, state, criteria, progress, engine)
    lengths = tuple(part.stop - part.start for part in region)
    return {name: values.reshape(lengths) for name, values in trajectory_variables(outcome).items()}


def _finished(results: Store, engine: str) -> xr.Dataset:
    dataset = annotate(results.load())
    dataset.attrs["engine"] = engine
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


def default_chunk(state_dim: int) -> int:
    """Trajectories in a chunk: as many as `CHUNK_BYTES` of states hold, within bounds."""
    return int(np.clip(CHUNK_BYTES // (8 * state_dim * STATES_HELD), FEWEST_IN_CHUNK, MOST_IN_CHUNK))


def chunk_lengths(shape: tuple[int, ...], chunk_size: Any) -> tuple[int, ...]:
    """Chunk lengths for about ``chunk_size`` trajectories: whole starts first, then scales, then step sizes."""
    lengths, left = [], checked_number(chunk_size, "chunk_size")
    for length in reversed(shape):
        lengths.append(max(1, min(length, left)))
        left //= length
    return tuple(reversed(lengths))

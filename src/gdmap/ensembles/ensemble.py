"""The fates of many starts under one map."""

import platform
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import xarray as xr

from gdmap.engines.choice import checked_engine
from gdmap.engines.precision import as_floating
from gdmap.ensembles.fates import Fate, Reason
from gdmap.ensembles.iteration import Criteria, Outcome, engine_for, initial_states, iterate_to_fate
from gdmap.ensembles.random_fates import ESCAPE_RADIUS, iterate_to_random_fate
from gdmap.flags import flag_attributes
from gdmap.maps import ConstantFamily, Map, RandomMap, StochasticGradientDescent
from gdmap.maps.stochastic_gradient_descent import checked_counter

RANDOM_STEP_TOLERANCE = 1e-12


def ensemble(
    map: Map | RandomMap,  # noqa: A002 - the name of the concept
    thetas: Any,
    max_steps: int = 10_000,
    *,
    seed: int = 0,
    step_tolerance: float | None = None,
    period_tolerance: float = Criteria().period_tolerance,
    max_period: int = Criteria().max_period,
    escape_radius: float | None = None,
    engine: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Iterate ``map`` from every start and give each its fate.

    Parameters
    ----------
    map
        The map to iterate: ``GradientDescent(objective, step_size)``, an `Optimiser`, or the random map
        ``StochasticGradientDescent(objective, step_size, batch_size)``.
    thetas
        The starts, parameters of shape ``(starts, dim)``; ``map.initial_state`` is applied to each. The dtype
        is that of the orbits (other than float64: with a warning); they are judged in double precision.
    max_steps
        The horizon.
    seed
        Of the batches of a random map: start ``i`` draws the batches of trajectory ``i``, and nothing else.
    step_tolerance, period_tolerance, max_period, escape_radius
        See `Criteria`; by default ``Criteria()``, for random maps with ``step_tolerance=1e-12`` and
        ``escape_radius=1e100``, and without periods.
    engine
        What iterates: ``'simd'`` (native kernels for this processor, a trajectory in each vector lane; float64
        only), ``'xla'``, or by default the one that suits the map, recorded in the attribute ``engine``. See
        Notes.
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
    TypeError
        If ``map`` is no map.
    ValueError
        For starts of the wrong shape or not finite, a horizon below 1, or a seed that is no counter.

    Notes
    -----
    *Still moving at the horizon.* What does more than go straight on is followed further, for the verdict alone:
    ``steps``, ``state`` and the rest stay those at the horizon. At most 1024 steps tell what may recur; that is
    given 2048 steps and windows of 4096, and if they do not decide 16,384 and 65,536 (at most eight times
    ``max_steps``), with one tangent vector. ``chaotic``: the top Lyapunov exponent is above zero by four standard
    errors, tangent vectors grow by more than ``e^40`` in each half of the window, the orbit does not drift, and
    ``8 max_steps`` later it is still there and expands (a chaotic transient that lasts longer passes for chaos).
    ``quasiperiodic``: tangent vectors grow by no more than a power of time, smooth averages over both halves agree
    to 1e-8 of the spread, which drifts and spirals do not do, and returns do not become better as their time is
    doubled, as in a cascade of period doublings (on a line, unless the map is a `Torus`, never). ``marginal``: at,
    or approaching, a fixed point or cycle found by Newton's method, with a multiplier within three times its error
    of the unit circle and none beyond. At a fold Newton's method finds no cycle, and the run stays undecided.
    Above 1,000 dimensions nothing is called marginal.

    *Engines.* Both do the same operations in float64; sums are taken in another order and products fused where the
    other does not, so that states differ by rounding. Runs that go to a minimum, a cycle or infinity keep their
    fate. Rounding decides where the dynamics amplify it: on chaotic orbits the last state differs after some tens
    of steps, hence loss, gradient norm and the step of an escape; starts next to the boundary between two fates
    may fall on either side; and whether a run near an unstable point is still there. ``steps`` is the step at
    which the fate fell, for periodic orbits the search that found the period: ``'simd'`` searches once in 256
    steps up to step 8192, and then in the first 4096 steps after each doubling of the age.

    *Random maps.* ``minimum``: the gradient of every sample that can be drawn is rounding noise (each step
    shorter than ``step_tolerance`` times the way travelled, or than a few units in the last place of the state),
    the point is a minimum of the mean loss by the evidence that minima of maps need (above 1,000 parameters:
    every sample's loss has become rounding noise, and `interpolating_minimum` confirms the point), and a small
    displacement in the range of the Hessian (of the sample Hessians) shrinks on average under the batches that
    would follow, beyond four standard errors. The last condition matters: near a minimum with a positive
    exponent, too, a trajectory sometimes comes so close that rounding stops it (then ``undecided``,
    ``near_unstable_orbit``; ``marginal_multiplier`` where the sign cannot be told, as where a sample that is
    hardly ever drawn may decide it). ``steps`` is where the noise began. ``diverged``: beyond the escape radius.
    It is so large because a stable minimum that is unstable in mean square sends trajectories on excursions over
    many orders of magnitude, from which they come back. (With an exponent just below 0 some are larger still,
    and are called diverged: pass a larger ``escape_radius`` where the loss does not overflow there.)
    ``bounded``: not converged at the horizon; over its second half, in 32 blocks, the logarithm of the root mean
    square of the steps has no slope (within four standard errors, which count the correlation of neighbouring
    blocks) and has changed by less than ``log 2``, the mean distance from the start by less than 30 %; the
    distance from the state at half the horizon is at most twice that from recent states (that of a random walk
    is larger); and below the last state, at the minimum of the mean loss that Newton's method or BFGS finds,
    some sample still makes a step of a hundredth of the longest before at least: a slow convergence to a minimum
    that fits every sample is not bounded but undecided. ``loss`` and ``gradient_norm`` are those of the mean
    loss (``map.mean_map``). A map with only one possible batch is run as that map.
    """
    if isinstance(map, RandomMap):
        if not isinstance(map, StochasticGradientDescent):
            raise TypeError(f"of random maps StochasticGradientDescent has fates, got {map!r}")
        if not map.batches.is_deterministic:
            checked_criteria(map_criteria(max_steps, step_tolerance, period_tolerance, max_period, escape_radius))
            if engine == "simd":
                raise ValueError("the engine 'simd' does not run random maps: leave engine out, or use 'xla'")
            checked_engine(engine)
            return _random_ensemble(map, thetas, max_steps, seed, step_tolerance, escape_radius, progress)
    elif not isinstance(map, Map):
        raise TypeError(
            "map must be a map such as GradientDescent(objective, step_size) or "
            f"StochasticGradientDescent(objective, step_size, batch_size), got {map!r}"
        )
    checked_counter(seed, "seed")
    checked_engine(engine)
    iterated = map.mean_map if isinstance(map, StochasticGradientDescent) else map
    criteria = checked_criteria(
        map_criteria(max_steps, step_tolerance, period_tolerance, max_period, escape_radius)
    )
    starts = checked_starts(thetas, map.objective.dim)
    family = ConstantFamily(iterated)
    states = initial_states(family, np.zeros(len(starts), starts.dtype), starts)
    run = engine_for(family, states.shape[1], states.dtype, criteria, engine)
    outcome = iterate_to_fate(family, np.zeros(len(states), states.dtype), states, criteria, progress, run)
    return _labelled(map, outcome, criteria._asdict(), run.name)


def _random_ensemble(
    map_: StochasticGradientDescent,
    thetas: Any,
    max_steps: int,
    seed: int,
    step_tolerance: float | None,
    escape_radius: float | None,
    progress: Callable[[int, int], None] | None,
) -> xr.Dataset:
    checked_counter(seed, "seed")
    criteria = checked_criteria(random_criteria(max_steps, step_tolerance, escape_radius))
    starts = checked_starts(thetas, map_.objective.dim, stacklevel=4)
    step_size = np.full(len(starts), float(map_.step_size))
    numbers = np.arange(len(starts))
    outcome = iterate_to_random_fate(map_, step_size, starts, numbers, seed, criteria, progress)
    used = ("max_steps", "step_tolerance", "escape_radius")
    return _labelled(map_, outcome, {"seed": seed, **{name: getattr(criteria, name) for name in used}})


def map_criteria(
    max_steps: int,
    step_tolerance: float | None,
    period_tolerance: float,
    max_period: int,
    escape_radius: float | None,
) -> Criteria:
    """The criteria of maps that are not random, with their defaults."""
    return Criteria(
        max_steps,
        Criteria().step_tolerance if step_tolerance is None else step_tolerance,
        period_tolerance,
        max_period,
        Criteria().escape_radius if escape_radius is None else escape_radius,
    )


def random_criteria(max_steps: int, step_tolerance: float | None, escape_radius: float | None) -> Criteria:
    """The criteria of random maps, with their defaults."""
    return Criteria(
        max_steps,
        RANDOM_STEP_TOLERANCE if step_tolerance is None else step_tolerance,
        escape_radius=ESCAPE_RADIUS if escape_radius is None else escape_radius,
    )


def _labelled(
    map_: Map | RandomMap, outcome: Outcome, settings: dict[str, Any], engine: str | None = None
) -> xr.Dataset:
    variables: dict[str, Any] = {name: ("start", values) for name, values in trajectory_variables(outcome).items()}
    variables["state"] = (("start", "component"), outcome.state)
    dataset = xr.Dataset(variables, coords={"start": np.arange(len(outcome.state))})
    dataset.attrs = {"map": repr(map_), "dtype": str(outcome.state.dtype), **settings, **environment(engine)}
    return annotate(dataset)


def checked_starts(thetas: Any, dim: int, stacklevel: int = 3) -> np.ndarray:
    """Starts as a finite floating array of shape ``(starts, dim)``."""
    starts = np.asarray(as_floating(thetas))
    if starts.dtype != np.float64:
        warnings.warn(
            f"the starts are {starts.dtype}, so the orbits are computed in that precision: "
            "pass NumPy float64 for double precision",
            stacklevel=stacklevel,
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


def environment(engine: str | None = None) -> dict[str, str]:
    """What the bits of a result depend on besides its arguments: engine, versions, machine type."""
    from importlib.metadata import version

    return {
        "engine": engine or f"xla-{jax.default_backend()}",
        "machine": platform.machine(),
        "gdmap": version("gdmap"),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }

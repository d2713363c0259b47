"""Where training of finite length is going, over step sizes and starts: for networks that converge slowly."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from gdmap.engines.xla import block_size, on_lanes
from gdmap.ensembles.ensemble import environment
from gdmap.ensembles.horizon import Horizon, run_to_horizon
from gdmap.ensembles.iteration import Criteria
from gdmap.ensembles.tendency import BLOCKS, CONFIDENCE, Cause, Judged, Tendency, judge, mean_growth
from gdmap.ensembles.verdicts import ParametersAt
from gdmap.flags import flag_attributes
from gdmap.maps import GradientDescent, Map, StepSizeFamily
from gdmap.objectives import AbstractObjective
from gdmap.spectra.lanczos import FAILURE
from gdmap.spectra.many import Sharpnesses, sharpnesses
from gdmap.sweeps.fractions import shares
from gdmap.sweeps.starts import checked_number, resolve_starts
from gdmap.sweeps.sweep import InitialState, checked_scales, checked_seed, checked_step_sizes, family_of

SHORTEST_WINDOW = 128
MEMORY = 2**30


def asymptotics(
    objective: AbstractObjective,
    step_sizes: Any,
    starts: Any,
    steps: int = 4000,
    *,
    n_starts: int | None = None,
    scale: float = 1.0,
    seed: int = 0,
    map: Callable[[AbstractObjective, Any], Map] = GradientDescent,  # noqa: A002 - the name of the concept
    window: int | None = None,
    memory: int = MEMORY,
    escape_radius: float = Criteria().escape_radius,
    exponent: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Train from every start at every step size for ``steps`` steps, and say what the last of them show.

    `sweep` gives fates: statements about limits, confirmed by Newton's method. Networks on real data converge too
    slowly for that, and have too many parameters. Here is what can be said at a finite horizon, measured over a
    window of the last steps; a run that shows nothing clear is ``undecided``.

    Parameters
    ----------
    objective
        The loss, of any number of parameters.
    step_sizes
        Distinct positive step sizes, shape ``(n_step_sizes,)``.
    starts, n_starts, scale, seed
        As in `sweep`; for networks the law ``network.initial_law('he')`` with ``n_starts``. Start ``i`` depends on
        ``(seed, i)`` alone and serves every step size.
    steps
        The horizon.
    map
        ``map(objective, step_size)``, traceable in the step size; no random map.
    window
        How many of the last steps are looked at; by default a quarter of ``steps``, at most 1024. It is cut into
        16 blocks for trends and intervals.
    memory
        Bytes that the programs may need, whatever the number of starts: networks are trained together in blocks as
        large as that allows, by the compiler's own count.
    escape_radius
        Beyond ``escape_radius (1 + ||start||)`` a run has diverged.
    exponent
        Whether to follow a tangent vector over the window (it takes about as long again as the window itself).
    progress
        Called as ``progress(finished, total)`` in steps of trajectories.

    Returns
    -------
    xarray.Dataset
        Over ``step_size`` and ``start``: ``tendency`` and ``cause`` (flag variables, see `gdmap.Tendency`);
        ``gradient_norm``, the median over the window, with ``_lower`` and ``_upper`` from the order statistics of
        its block medians (99 %, if there is no trend), and ``gradient_trend``, the Theil-Sen slope of its
        logarithm in 1/step, with its interval (99 %; blocks are taken to be independent); ``loss`` and
        ``loss_trend`` likewise (not logarithmic); ``sharpness`` at the last state with its interval, and
        ``sharpness_ratio``, the same times ``step_size / 2`` (above 1 no minimum is stable under gradient
        descent); ``period``, the smallest from 2 to 64 after which states recur (0: none) and ``recurrence``, how
        well; ``exponent`` with ``exponent_error``, the mean growth of a tangent vector per step over the window
        (the top Lyapunov exponent, if the run had settled); ``steps``, the horizon or when the run was found to
        have diverged. Status *computed* for what describes the record, *estimated* for trends, medians, exponents
        and sharpnesses. Over ``step_size`` and ``tendency_name``: ``share`` of the starts with Wilson intervals,
        *estimated*. Attributes: window, memory used, lanes in a block.

    Raises
    ------
    TypeError, ValueError
        For arguments that make no sense, naming them; if a single trajectory needs more than ``memory``.
    """
    if not isinstance(objective, AbstractObjective):
        raise TypeError(f"objective must be a gdmap objective such as Network(module, x, y), got {objective!r}")
    etas, seed = checked_step_sizes(step_sizes), checked_seed(seed)
    family = family_of(objective, map, etas, seed)
    if not isinstance(family, StepSizeFamily):
        raise TypeError("asymptotics is for maps that are not random: sweep gives the fates of SGD runs")
    steps = checked_number(steps, "steps")
    window = min(steps // 4, 1024) if window is None else checked_number(window, "window")
    if not SHORTEST_WINDOW <= window <= steps:
        raise ValueError(f"window must be from {SHORTEST_WINDOW} to steps={steps}, got {window}: take more steps")
    memory = checked_number(memory, "memory")
    scales = checked_scales(scale)
    thetas = resolve_starts(starts, n_starts, objective.dim, scales, seed)
    thetas = thetas * thetas.dtype.type(scales[0])
    parameter = np.repeat(etas, len(thetas)).astype(thetas.dtype)
    numbers = np.tile(np.arange(len(thetas)), len(etas))
    begun = np.tile(thetas, (len(etas), 1))
    state = np.asarray(on_lanes(InitialState(family), (parameter, begun), block_size(16 * objective.dim)))
    horizon = run_to_horizon(
        family, parameter, state, numbers, steps, window, memory, escape_radius, exponent, progress
    )
    final = last_parameters(family, parameter, horizon)
    top = sharpnesses(objective, final, memory, seed)
    descends = isinstance(family(etas[0]), GradientDescent)
    stable = parameter * top.upper < 2 if descends else np.ones(len(parameter), bool)
    judged = judge(horizon, state, steps, stable)
    shape = (len(etas), len(thetas))
    dataset = labelled(judged, horizon, top, etas, shape, steps, exponent, descends)
    dataset.attrs |= {
        "objective": str(objective.describe()),
        "map": getattr(map, "__qualname__", repr(map)),
        "steps": steps,
        "window": window,
        "seed": seed,
        "memory": memory,
        "memory_needed": horizon.bytes,
        "block": horizon.block,
        "dtype": str(thetas.dtype),
        **environment(),
    }
    return dataset


def last_parameters(family: StepSizeFamily, parameter: np.ndarray, horizon: Horizon) -> np.ndarray:
    """The parameters at the horizon; not finite where a run has diverged."""
    final = np.asarray(
        on_lanes(ParametersAt(family), (parameter, horizon.state), block_size(16 * horizon.state.shape[1]))
    )
    return np.where((horizon.escaped_at < 0)[:, None], final, np.nan)


def labelled(
    judged: Judged,
    horizon: Horizon,
    top: Sharpnesses,
    etas: np.ndarray,
    shape: tuple[int, int],
    steps: int,
    exponent: bool,
    descends: bool,
) -> xr.Dataset:
    """The findings as a dataset over step sizes and starts."""
    half = np.repeat(etas, shape[1]) / 2
    found: dict[str, tuple[np.ndarray, str, str, str]] = {
        "tendency": (judged.tendency, "what the last steps show", "1", "computed"),
        "cause": (judged.cause, "why", "1", "computed"),
        **three("gradient_norm", judged.gradient_norm, "median Euclidean norm of the gradient", "1"),
        **three("gradient_trend", judged.gradient_trend, "slope of the logarithm of the gradient norm", "1/step"),
        **three("loss", judged.loss, "median loss", "1"),
        **three("loss_trend", judged.loss_trend, "slope of the loss", "1/step"),
        **three("sharpness", top, "largest Hessian eigenvalue at the last state", "1"),
        "period": (judged.period, "smallest period from 2 to 64, 0: none", "steps", "computed"),
        "recurrence": (
            judged.recurrence,
            "distance of states a period apart over that of others",
            "1",
            "computed",
        ),
        "steps": (
            np.where(horizon.escaped_at >= 0, horizon.escaped_at, steps),
            "steps taken, or by which it was found to have diverged",
            "steps",
            "computed",
        ),
    }
    if descends:
        ratio = Sharpnesses(*(half * values for values in top))
        found |= three("sharpness_ratio", ratio, "sharpness times step size over 2", "1")
    if exponent:
        mean, error = mean_growth(horizon.growth)
        found["exponent"] = (mean, "mean growth of a tangent vector over the window", "1/step", "estimated")
        found["exponent_error"] = (error, "its standard error, from 16 blocks", "1/step", "estimated")
    dataset = xr.Dataset(
        {
            name: (
                ("step_size", "start"),
                values.reshape(shape),
                {"long_name": words, "units": units, "status": how},
            )
            for name, (values, words, units, how) in found.items()
        },
        coords={"step_size": ("step_size", etas, {"long_name": "step size eta", "units": "1"})},
        attrs={"status": "finite horizon: computed and estimated, see the variables"},
    )
    dataset["tendency"].attrs |= flag_attributes(Tendency)
    dataset["cause"].attrs |= flag_attributes(Cause)
    for name in ("gradient_norm", "gradient_trend", "loss", "loss_trend"):
        dataset[name].attrs["confidence"] = CONFIDENCE
        dataset[name].attrs["method"] = f"{BLOCKS} block medians of the window"
    dataset["sharpness"].attrs |= {"confidence": 1 - FAILURE, "method": "Lanczos iteration, bound over its start"}
    return dataset.merge(tendency_shares(dataset["tendency"]))


def three(name: str, values: Any, words: str, units: str) -> dict[str, tuple[np.ndarray, str, str, str]]:
    """A value with the ends of its interval, as three variables."""
    return {
        name: (values[0], words, units, "estimated"),
        f"{name}_lower": (values[1], "lower end of its interval", units, "estimated"),
        f"{name}_upper": (values[2], "upper end of its interval", units, "estimated"),
    }


def tendency_shares(tendency: xr.DataArray) -> xr.Dataset:
    """The share of every tendency over the starts, with its Wilson interval."""
    counted = shares(tendency, Tendency, "tendency_name")
    return counted.rename({"fraction": "share", "fraction_lower": "share_lower", "fraction_upper": "share_upper"})

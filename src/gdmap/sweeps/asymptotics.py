"""Where training of finite length is going, over step sizes and starts: for networks that converge slowly."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from gdmap.engines.random import BLOCK, StandardNormal, drawn_starts
from gdmap.engines.xla import on_lanes
from gdmap.ensembles.ensemble import environment
from gdmap.ensembles.horizon import HorizonRun, host_bytes
from gdmap.ensembles.iteration import Criteria, InitialState
from gdmap.ensembles.tendency import BLOCKS, CONFIDENCE, Cause, Tendency, judge, longest_period, mean_growth
from gdmap.flags import flag_attributes
from gdmap.maps import GradientDescent, Map, StepSizeFamily
from gdmap.objectives import AbstractObjective
from gdmap.spectra.lanczos import FAILURE
from gdmap.spectra.many import spectral_ends
from gdmap.sweeps.fractions import shares
from gdmap.sweeps.starts import checked_number, resolve_starts
from gdmap.sweeps.sweep import checked_scales, checked_seed, checked_step_sizes, family_of

SHORTEST_WINDOW, USUAL_WINDOW = 128, 1024
MEMORY = 2**30
# A direction of negative curvature counts where another run as long would grow by this factor along it; the growth
# of a tangent vector where it does over the window, by so many standard errors.
LEAVES, SIGNIFICANT = np.e, 4.0


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
        How many of the last steps are looked at, at least 128; by default a quarter of ``steps``, at most 1024. It
        is cut into 16 blocks for trends and intervals.
    memory
        Bytes that a call may need, whatever the number of runs. Half is for compiled programs, by the compiler's
        count (networks are trained together in blocks as large as that allows), half for what is kept of the runs
        while they are looked at, group by group: some copies of their states and the record of the window. Not
        counted are the data, starts given as an array (drawn ones are drawn 256 at a time), the results (about
        250 bytes a run) and what Python, JAX and its compiler take themselves.
    escape_radius
        Beyond ``escape_radius (1 + ||start||)`` a run has diverged.
    exponent
        Whether to follow a tangent vector over the window (it takes about 1.3 times as long again as the window).
    progress
        Called as ``progress(finished, total)`` in steps of trajectories.

    Returns
    -------
    xarray.Dataset
        Over ``step_size`` and ``start``: ``tendency`` and ``cause`` (flag variables, see `gdmap.Tendency`);
        ``gradient_norm``, the median of its 16 block medians over the window, with ``_lower`` and ``_upper`` from
        their order statistics (99 %, if there is no trend), and ``gradient_trend``, the Theil-Sen slope of its
        logarithm in 1/step, with
        its interval (99 %; blocks are taken to be independent; NaN where the gradient is zero); ``loss`` and
        ``loss_trend`` likewise (not logarithmic); ``sharpness``, the largest Hessian eigenvalue at the last state,
        and ``smallest_eigenvalue`` with their intervals, and ``sharpness_ratio``, the sharpness over
        `Map.stability_limit`, for gradient descent ``sharpness step_size / 2`` (above 1 no minimum is stable);
        ``period``, the smallest from 2 to 64 (or an eighth of a short window) after which states recur (0: none,
        or the run goes to a point) and ``recurrence``, how well; ``exponent`` with ``exponent_error``, the mean
        growth of a tangent vector per step over the last three quarters of the window (the top Lyapunov exponent,
        if run and vector had settled; ``-inf`` for a vector that was mapped to zero); ``steps``, the horizon or
        when the run was found to have diverged. NaN after divergence. Status *computed* for what describes the
        record, *estimated* for trends, medians, exponents and eigenvalues. Over ``step_size`` and
        ``tendency_name``: ``share`` of the starts with Wilson intervals, *estimated*. Attributes: ``window``,
        ``memory``, ``memory_needed`` (as counted), ``block`` (lanes that ran together), ``group``.

        Fewer runs than ``block`` take as long as a full block. Every run depends on ``seed``, its step size and
        its start alone, to the last bit, given ``memory`` and the number of processors (they decide the block,
        and with it the last bits).

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
    first = family(etas[0])
    if first.depends_on_time:
        raise ValueError(f"{first!r} depends on time: use Optimiser(..., limit=True), what it becomes in the end")
    steps, window = checked_horizon(steps, window)
    memory = checked_number(memory, "memory")
    if isinstance(escape_radius, bool) or not isinstance(escape_radius, (int, float, np.number)):
        raise ValueError(f"escape_radius must be a positive number, got {escape_radius!r}")
    if not escape_radius > 0:
        raise ValueError(f"escape_radius must be positive, got {escape_radius!r}")
    given = checked_law(starts, n_starts, objective.dim, scale, seed)
    each = host_bytes(first.state_dim, window, given.dtype.itemsize)
    if each > memory // 2:
        raise ValueError(
            f"memory={memory:,} bytes are not enough: half of it is for the runs, and the states and the window "
            f"of one take {each:,}; allow more, or take a shorter window"
        )
    programs = memory // 2
    run = HorizonRun(
        family, first.state_dim, given.dtype, steps, window, programs, float(escape_radius), bool(exponent)
    )
    group = (memory - programs) // each
    group -= group % run.block if group > run.block else 0
    limits = np.array([stability_limit(family, given.dtype.type(eta)) for eta in etas])
    found: dict[str, np.ndarray] = {}
    finished, total, biggest, most = 0, len(etas) * given.number * steps, 0, run.bytes
    for cells, thetas in groups_of_runs(given, len(etas), int(group)):

        def report(done: int, _: int, before: int = finished) -> None:
            if progress is not None:
                progress(before + done, total)

        parameter = etas[cells[0]].astype(given.dtype)
        variables, needed = look_at(
            family, run, parameter, thetas, limits[cells[0]], cells[1], seed, programs, report
        )
        for name, values in variables.items():
            whole = found.setdefault(name, np.empty((len(etas), given.number), values.dtype))
            whole[cells] = values
        finished += len(thetas) * steps
        biggest, most = max(biggest, len(thetas)), max(most, needed)
    if not exponent:
        found = {name: values for name, values in found.items() if not name.startswith("exponent")}
    if np.isnan(limits).all():
        found = {name: values for name, values in found.items() if not name.startswith("sharpness_ratio")}
    dataset = labelled(found, etas, window)
    dataset.attrs |= {
        "objective": str(objective.describe()),
        "map": getattr(map, "__qualname__", repr(map)),
        "steps": steps,
        "window": window,
        "seed": seed,
        "memory": memory,
        "memory_needed": most + biggest * each,
        "block": run.block,
        "group": biggest,
        "dtype": str(given.dtype),
        **environment(),
    }
    return dataset


def checked_horizon(steps: Any, window: Any) -> tuple[int, int]:
    """The number of steps and of those that are recorded."""
    steps = checked_number(steps, "steps")
    if steps < SHORTEST_WINDOW:
        raise ValueError(f"steps must be at least {SHORTEST_WINDOW}, the shortest window, got {steps}")
    if window is None:
        return steps, int(np.clip(steps // 4, SHORTEST_WINDOW, USUAL_WINDOW))
    window = checked_number(window, "window")
    if not SHORTEST_WINDOW <= window <= steps:
        raise ValueError(f"window must be from {SHORTEST_WINDOW} to steps={steps}, got {window}")
    return steps, window


class Starts(NamedTuple):
    """Where runs begin: ``some(begin, end)`` gives those starts, shape ``(end - begin, dim)``."""

    some: Callable[[int, int], np.ndarray]
    number: int
    dtype: np.dtype[Any]


def checked_law(starts: Any, n_starts: int | None, dim: int, scale: Any, seed: int) -> Starts:
    """The starts as in `sweep`, but drawn only when they are asked for."""
    scales = checked_scales(scale)
    if isinstance(starts, str):
        raise TypeError(
            f"starts must be a number, an array or a law key -> theta; for the law {starts!r} of a network give "
            f"network.initial_law({starts!r})"
        )
    if np.ndim(scale) != 0:
        raise ValueError(f"scale must be one positive number here, got {scale!r}: call once for each")
    if isinstance(starts, (int, np.integer)) and not isinstance(starts, bool):
        count = checked_number(starts, "starts")
        resolve_starts(1, n_starts, dim, scales, seed)  # a law or a number, not both
        law = StandardNormal(dim)
        return Starts(
            lambda a, b: scales[0] * drawn_starts(law, np.arange(a, b), seed, dim), count, np.dtype(np.float64)
        )
    if callable(starts) and n_starts is not None:
        count = checked_number(n_starts, "n_starts")
        one = resolve_starts(starts, 1, dim, scales, seed)
        return Starts(lambda a, b: checked_drawn(starts, a, b, seed, dim), count, one.dtype)
    thetas = resolve_starts(starts, n_starts, dim, scales, seed)
    return Starts(lambda a, b: thetas[a:b], len(thetas), thetas.dtype)


def checked_drawn(law: Any, begin: int, end: int, seed: int, dim: int) -> np.ndarray:
    """Some starts of a law, finite."""
    thetas = drawn_starts(law, np.arange(begin, end), seed, dim)
    wrong = np.flatnonzero(~np.isfinite(thetas).all(axis=1))
    if wrong.size:
        raise ValueError(f"starts(key) returns values that are not finite, first in start {begin + wrong[0]}")
    return thetas


def groups_of_runs(
    given: Starts, step_sizes: int, group: int
) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], np.ndarray]]:
    """Groups of at most ``group`` runs: the indices of their step sizes and starts, and where they begin."""
    for begin in range(0, given.number, BLOCK):
        thetas = given.some(begin, min(begin + BLOCK, given.number))
        eta, start = (index.ravel() for index in np.indices((step_sizes, len(thetas))))
        for first in range(0, len(eta), group):
            part = slice(first, first + group)
            yield (eta[part], begin + start[part]), thetas[start[part]]


def stability_limit(family: StepSizeFamily, step_size: Any) -> float:
    """The curvature beyond which no minimum is stable; NaN if no one number says it."""
    limit = family(float(step_size)).stability_limit
    return np.nan if limit is None else limit


def look_at(
    family: StepSizeFamily,
    run: HorizonRun,
    parameter: np.ndarray,
    thetas: np.ndarray,
    limit: np.ndarray,
    numbers: np.ndarray,
    seed: int,
    memory: int,
    progress: Callable[[int, int], None],
) -> tuple[dict[str, np.ndarray], int]:
    """The variables of a group of runs, shape ``(runs,)`` each, and the bytes that the eigenvalues needed."""
    begun = np.asarray(on_lanes(InitialState(family), (parameter, thetas), run.block))
    horizon = run(parameter, begun, numbers, seed, progress)
    ends = spectral_ends(family.objective, horizon.theta, memory, seed, numbers)
    stable = np.isnan(limit) | (ends.largest.upper < limit)
    with np.errstate(all="ignore"):
        growth = -run.steps * parameter * ends.smallest.upper
    mean, error = mean_growth(horizon.growth)
    grows = (mean > SIGNIFICANT * error) & (mean * run.window > np.log(LEAVES))
    judged = judge(horizon, thetas, run.steps, stable, growth > np.log(LEAVES), grows)
    ratio = [end / limit for end in ends.largest]
    variables = {
        "tendency": judged.tendency,
        "cause": judged.cause,
        **three("gradient_norm", judged.gradient_norm),
        **three("gradient_trend", judged.gradient_trend),
        **three("loss", judged.loss),
        **three("loss_trend", judged.loss_trend),
        **three("sharpness", ends.largest),
        **three("sharpness_ratio", ratio),
        **three("smallest_eigenvalue", ends.smallest),
        "period": judged.period,
        "recurrence": judged.recurrence.astype(float),
        "exponent": mean,
        "exponent_error": error,
        "steps": np.where(horizon.escaped_at >= 0, horizon.escaped_at, run.steps),
    }
    return variables, ends.bytes


WORDS = {
    "tendency": ("what the last steps show", "1"),
    "cause": ("why", "1"),
    "gradient_norm": ("median Euclidean norm of the gradient over the window", "1"),
    "gradient_trend": ("slope of the logarithm of the gradient norm", "1/step"),
    "loss": ("median loss over the window", "1"),
    "loss_trend": ("slope of the loss", "1/step"),
    "sharpness": ("largest Hessian eigenvalue at the last state", "1"),
    "sharpness_ratio": ("sharpness over the stability limit (2 / step size)", "1"),
    "smallest_eigenvalue": ("smallest Hessian eigenvalue at the last state", "1"),
    "period": ("smallest period, 0: none", "steps"),
    "recurrence": ("distance of states a period apart over that of others", "1"),
    "exponent": ("mean growth of a tangent vector over the window", "1/step"),
    "exponent_error": ("standard error of the exponent", "1/step"),
    "steps": ("steps taken, or by which it was found to have diverged", "steps"),
}
COMPUTED = ("tendency", "cause", "period", "recurrence", "steps")
ENDS = {"_lower": "lower end of its interval", "_upper": "upper end of its interval"}


def labelled(found: dict[str, np.ndarray], etas: np.ndarray, window: int) -> xr.Dataset:
    """The findings, each of shape ``(step sizes, starts)``, as a dataset."""
    variables = {}
    for name, values in found.items():
        base, end = next(((name.removesuffix(end), end) for end in ENDS if name.endswith(end)), (name, ""))
        words, units = WORDS[base]
        attributes = {
            "long_name": f"{words}: {ENDS[end]}" if end else words,
            "units": units,
            "status": "computed" if base in COMPUTED else "estimated",
        }
        variables[name] = (("step_size", "start"), values, attributes)
    dataset = xr.Dataset(
        variables,
        coords={"step_size": ("step_size", etas, {"long_name": "step size eta", "units": "1"})},
        attrs={"status": "finite horizon: computed and estimated, see the variables"},
    )
    dataset["tendency"].attrs |= flag_attributes(Tendency)
    dataset["cause"].attrs |= flag_attributes(Cause)
    dataset["period"].attrs["longest"] = longest_period(window)
    for name in ("gradient_norm", "gradient_trend", "loss", "loss_trend"):
        dataset[name].attrs |= {"confidence": CONFIDENCE, "method": f"{BLOCKS} block medians of the window"}
    for name in ("sharpness", "smallest_eigenvalue"):
        how = "Lanczos iteration, bound over its random start"
        dataset[name].attrs |= {"confidence": 1 - FAILURE, "method": how}
    return dataset.merge(tendency_shares(dataset["tendency"]))


def three(name: str, values: Any) -> dict[str, np.ndarray]:
    """A value with the ends of its interval, as three variables."""
    return {name: values[0], f"{name}_lower": values[1], f"{name}_upper": values[2]}


def tendency_shares(tendency: xr.DataArray) -> xr.Dataset:
    """The share of every tendency over the starts, with its Wilson interval."""
    counted = shares(tendency, Tendency, "tendency_name")
    return counted.rename({"fraction": "share", "fraction_lower": "share_lower", "fraction_upper": "share_upper"})

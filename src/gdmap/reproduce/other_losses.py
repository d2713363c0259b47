"""Does another loss change the critical step size, or the landscape? (an open question of arXiv:2402.13108)

Thresholds of linear networks, with and without a bottleneck, and of other networks under several losses of the
residual and rising noise; and the minima behind a bottleneck when the square loss is changed a little.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gdmap.bracket import Bracket
from gdmap.engines.xla import on_lanes
from gdmap.minima.critical_points import OF_MINIMA, loss_and_gradient
from gdmap.objectives import AbstractObjective, LinearNetwork, Objective
from gdmap.objectives.residual_loss import huber, log_cosh
from gdmap.reproduce.minima_manifold import ends_of_descents
from gdmap.reproduce.papers import LARGE_LEARNING_RATES as PAPER
from gdmap.reproduce.report import Agreement, Claim, Report
from gdmap.stability import critical_step_size
from gdmap.sweeps import gaussian_starts
from gdmap.sweeps.fractions import share_of

NAME = "other-losses"
TITLE = "Critical step sizes and landscapes under other losses than the square loss"
STATEMENTS = (
    "Where the network interpolates, the critical step size is that of the square loss for every loss of the "
    "residual with its only minimum, of curvature 1, at zero (the minima and their Hessians are the same).",
    "Open question, as a hypothesis: networks that do not interpolate have a critical step size under other "
    "losses "
    "of the residual as well; below it gradient descent can settle at a global minimum, above it none does.",
    "Open question, as a hypothesis: an infinitesimal change of the square loss changes the critical step size by "
    "an infinitesimal amount only.",
    "An infinitesimal change of the quadratic loss changes the landscape of a network with a bottleneck.",
)

SAMPLES = 24
INPUT_SCALES = (1.0, 1.5, 0.7)
SEARCHES = (2, 8)  # quick, full
LEVELS = ((0.0, 1.0), (0.0, 0.1, 0.3, 1.0, 3.0))
# The unit of noise of the tanh network, whose outputs are of the order of 1 (1 for linear networks).
TANH_NOISE = 0.05
# Step sizes, relative to the critical one, at which gradient descent is run.
BELOW, ABOVE = 0.95, 1.05
RUNS = (10, 100)
MAX_STEPS = 4000
# How far from the flattest minimum the runs begin, relative to its size.
BESIDE = 0.02
# Losses closer than this are the same.
SAME_LOSS = 1e-9
# Thresholds that agree to this share are equal: searches agree to 1e-6.
EQUAL = 1e-6
SMALL = ((1e-2, 1e-3, 1e-4), (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4))
PROPORTIONAL = 0.1
CHANGES = ((0.0, 1e-3, 1.0), (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0))
DESCENTS = (48, 400)
DRAWS = (1, 4)  # of the inputs
# Singular values of the target behind the bottleneck: from 1 down to this.
SMALLEST = {"equal singular values": 1.0, "distinct singular values": 0.5}

# Multiples of r^2 / 2, Huber's function, log cosh r and r^4.
LOSSES: dict[str, tuple[float, float, float, float]] = {
    "square": (1.0, 0.0, 0.0, 0.0),
    "Huber": (0.0, 1.0, 0.0, 0.0),
    "log cosh": (0.0, 0.0, 1.0, 0.0),
    "square + r^4/100": (1.0, 0.0, 0.0, 0.01),
    "square + r^4/10": (1.0, 0.0, 0.0, 0.1),
}
MILD = "square + r^4/100"
COLOURS = dict(zip(LOSSES, ("#000000", "#0072B2", "#009E73", "#E69F00", "#D55E00"), strict=True))
LOGISTIC = "cross-entropy"
FLIPPED = (0.05, 0.2, 0.4)

Progress = Callable[[int, int], None]


class Blend(eqx.Module):
    """``a r^2/2 + b huber(r) + c log cosh r + d r^4``: losses of this form share one compilation."""

    multiples: Any

    def __call__(self, residual: Any) -> Any:
        """The loss, entry by entry."""
        a, b, c, d = self.multiples
        return a * residual**2 / 2 + b * plain_huber(residual) + c * plain_log_cosh(residual) + d * residual**4


# With their derivatives written down: a third of the time to compile is saved, since searches take four of them.
@jax.custom_jvp
def plain_huber(residual: Any) -> Any:
    """Huber's function, entry by entry."""
    return huber(residual)


@plain_huber.defjvp
def _of_huber(primals: Any, tangents: Any) -> Any:
    return plain_huber(primals[0]), jnp.clip(primals[0], -1.0, 1.0) * tangents[0]


@jax.custom_jvp
def plain_log_cosh(residual: Any) -> Any:
    """``log cosh``, entry by entry."""
    return log_cosh(residual)


@plain_log_cosh.defjvp
def _of_log_cosh(primals: Any, tangents: Any) -> Any:
    return plain_log_cosh(primals[0]), jnp.tanh(primals[0]) * tangents[0]


class TanhLoss(eqx.Module):
    """A loss of the residual of ``v . tanh(a x)`` on one sample."""

    function: Blend

    def __call__(self, params: dict[str, Any], x: Any, y: Any) -> Any:
        """The loss on ``x``, ``y``."""
        return self.function(params["v"] @ jnp.tanh(params["a"] * x) - y)


def cross_entropy(params: dict[str, Any], x: Any, probability: Any) -> Any:
    """The cross-entropy of ``sigmoid(v . A x)`` and the probability of the label 1, on one sample."""
    score = params["v"] @ (params["A"] @ x)
    return jax.nn.softplus(score) - probability * score


class Threshold(NamedTuple):
    """The critical step size of one network, loss and level of noise, and what runs beside it show."""

    network: str
    loss: str
    noise: float
    step_size: Bracket
    agreeing: int
    searches: int
    lowest: float
    below: Bracket
    above: Bracket

    @property
    def is_sharp(self) -> bool:
        """Whether runs settle at global minima below and none does above."""
        return self.below.value > 0 and self.above.value == 0


class Perturbed(NamedTuple):
    """Critical step sizes of one network as a multiple of ``r^4`` is added to the square loss."""

    network: str
    size: np.ndarray
    step_size: list[Bracket]

    @property
    def changes(self) -> np.ndarray:
        """``|eta(eps) - eta(0)|`` for the sizes above zero."""
        values = np.array([bracket.value for bracket in self.step_size])
        return np.abs(values[1:] - values[0])


class Landscape(NamedTuple):
    """Minima of a bottleneck network under one loss near the square loss, over several draws of the data.

    ``global_`` and ``others`` count descents that end at global minima and at others, ``undecided`` the rest;
    ``levels`` is the largest number of different losses among the minima for one draw.
    """

    target: str
    direction: str
    size: float
    global_: int
    others: int
    undecided: int
    levels: int

    @property
    def share(self) -> Bracket:
        """The share of verified minima that are not global."""
        return share_of(self.others, self.global_ + self.others, "minima are not global")


def run(quick: bool = False, seed: int = 0, progress: Progress | None = None) -> Report:
    """Compute thresholds and landscapes, check them by gradient descent, and judge the statements."""
    level = 0 if quick else 1
    makers = networks(quick, seed)
    plans = [
        (name, loss, noise, make(multiples, noise))
        for name, make in makers.items()
        for noise in LEVELS[level]
        for loss, multiples in LOSSES.items()
        if not (quick and loss == MILD)
    ]
    if not quick:
        plans += [("linear, one output", LOGISTIC, p, classifier(seed, p)) for p in FLIPPED]
    sizes = SMALL[level]
    near = landscape_plans(quick)
    total = len(plans) + len(makers) * (len(sizes) + 1) + len(near)
    finished = 0

    def step() -> None:
        nonlocal finished
        finished += 1
        if progress is not None:
            progress(finished, total)

    thresholds = []
    for name, loss, noise, objective in plans:
        one = threshold(name, loss, noise, objective, level, seed)
        if one is not None:
            thresholds.append(one)
        step()
    perturbed = []
    for name, make in makers.items():
        found = []
        for size in (0.0, *sizes):
            found.append(critical_step_size(make((1.0, 0.0, 0.0, size), 1.0), starts=SEARCHES[level], seed=seed))
            step()
        perturbed.append(Perturbed(name, np.array([0.0, *sizes]), [one.step_size for one in found]))
    landscapes = []
    for target, direction, size in near:
        landscapes.append(landscape(target, direction, size, quick, seed))
        step()
    claims = (
        interpolating_claim(thresholds, makers),
        threshold_claim(thresholds, level, len(plans) - len(thresholds)),
        continuity_claim(perturbed),
        landscape_claim(landscapes, level),
    )
    pictures = {
        "other_losses": thresholds_figure(thresholds, perturbed),
        "landscape": landscape_figure(landscapes),
    }
    return Report(NAME, TITLE, PAPER, claims, dataset(thresholds, perturbed, landscapes), pictures, quick)


# Networks and data -----------------------------------------------------------------------------------------------


def networks(quick: bool, seed: int) -> dict[str, Callable[[Sequence[float], float], AbstractObjective]]:
    """By name: the network as a function of the loss's multiples and the level of noise.

    Without noise the targets come from a network of the same shape, so that it interpolates.
    """
    widths = [(3, 1, 3)] if quick else [(3, 1, 3), (2, 1, 2), (2, 2, 2)]
    found: dict[str, Any] = {
        f"linear ({','.join(map(str, shape))})": linear_maker(shape, seed) for shape in widths
    }
    if not quick:
        found["tanh, width 2"] = tanh_maker(seed)
    return found


def linear_maker(widths: tuple[int, ...], seed: int) -> Callable[[Sequence[float], float], LinearNetwork]:
    """A linear network on Gaussian inputs, its targets those of a teacher of the same widths, plus noise."""
    rng = np.random.default_rng([seed, *widths])
    x = rng.standard_normal((SAMPLES, widths[0])) * np.resize(INPUT_SCALES, widths[0])
    teacher: Any = np.eye(widths[0])
    for columns, rows in itertools.pairwise(widths):
        teacher = rng.standard_normal((rows, columns)) @ teacher
    noise = rng.standard_normal((SAMPLES, widths[-1]))

    def make(multiples: Sequence[float], level: float) -> LinearNetwork:
        return LinearNetwork(
            widths, x, x @ teacher.T + level * noise, loss=Blend(np.array(multiples, dtype=float))
        )

    return make


def tanh_maker(seed: int) -> Callable[[Sequence[float], float], Objective]:
    """``v . tanh(a x)`` with two units on one input."""
    rng = np.random.default_rng([seed, 1])
    x = rng.standard_normal(SAMPLES)
    clean = np.tanh(np.outer(x, [0.6, 2.0])) @ np.array([1.5, -0.8])
    noise = TANH_NOISE * rng.standard_normal(SAMPLES)
    params = {"a": np.zeros(2), "v": np.zeros(2)}

    def make(multiples: Sequence[float], level: float) -> Objective:
        loss = TanhLoss(Blend(np.array(multiples, dtype=float)))
        return Objective(loss, params, data=(x, clean + level * noise))

    return make


def classifier(seed: int, flipped: float) -> Objective:
    """A linear network with two layers and one output under the cross-entropy; labels flipped with a probability.

    The targets are the probabilities of the labels, so that a minimum exists.
    """
    rng = np.random.default_rng([seed, 2])
    x = rng.standard_normal((SAMPLES, 2))
    label = (x @ rng.standard_normal(2) > 0).astype(float)
    params = {"A": np.zeros((2, 2)), "v": np.zeros(2)}
    return Objective(cross_entropy, params, data=(x, flipped + (1 - 2 * flipped) * label))


# Thresholds ------------------------------------------------------------------------------------------------------


def threshold(
    network: str, loss: str, noise: float, objective: AbstractObjective, level: int, seed: int
) -> Threshold | None:
    """The critical step size by search, and gradient descent from beside the flattest minimum on either side.

    ``None`` where no descent leads to a minimum, as where the parameters run off.
    """
    try:
        found = critical_step_size(objective, starts=SEARCHES[level], seed=seed)
    except ValueError:
        return None
    search, minimum = found.search, found.minimum
    if search is None or minimum is None:
        raise ValueError(f"no flattest minimum was searched for {network} under {loss}")
    lowest = float(objective.value(minimum))
    size = BESIDE * float(np.linalg.norm(minimum)) / np.sqrt(objective.dim)
    starts = minimum + gaussian_starts(RUNS[level], objective.dim, seed, scale=size)
    below, above = (
        share_of(settled(objective, ratio * found.step_size.value, starts, lowest), len(starts), "runs settle")
        for ratio in (BELOW, ABOVE)
    )
    searches = len(search.search["sharpness"])
    return Threshold(network, loss, noise, found.step_size, search.agreeing, searches, lowest, below, above)


class Descended(eqx.Module):
    """``theta`` after `MAX_STEPS` steps of gradient descent."""

    objective: AbstractObjective

    def __call__(self, theta: Any, step_size: Any) -> Any:
        """The last state."""
        gradient = jax.grad(self.objective.evaluate)
        return jax.lax.fori_loop(0, MAX_STEPS, lambda _, state: state - step_size * gradient(state), theta)


def settled(objective: AbstractObjective, step_size: float, starts: np.ndarray, lowest: float) -> int:
    """How many runs have the loss of the global minima after all steps."""
    ends = on_lanes(Descended(objective), (starts, np.full(len(starts), step_size)), 16)
    finite = np.isfinite(ends).all(axis=1)
    loss = loss_and_gradient(objective, np.where(finite[:, None], ends, starts))[0]
    return int(np.sum(finite & (loss <= lowest + SAME_LOSS * (1 + abs(lowest)))))


# Landscapes ------------------------------------------------------------------------------------------------------


def landscape_plans(quick: bool) -> list[tuple[str, str, float]]:
    """Targets, directions in which the square loss is changed, and by how much."""
    directions = ("r^4",) if quick else ("r^4", "log cosh")
    sizes = CHANGES[0 if quick else 1]
    return [(target, direction, size) for target in SMALLEST for direction in directions for size in sizes]


def changed(direction: str, size: float) -> Blend:
    """The square loss with ``size r^4`` added, or moved towards ``log cosh r`` by the share ``size``."""
    if direction == "r^4":
        return Blend(np.array([1.0, 0.0, 0.0, size]))
    if direction == "log cosh":
        return Blend(np.array([1.0 - size, 0.0, size, 0.0]))
    raise ValueError(f"direction must be 'r^4' or 'log cosh', got {direction!r}")


def bottleneck(target: str, loss: Blend, seed: int) -> LinearNetwork:
    """Widths (3, 1, 3) on whitened inputs: under the square loss ``L = 1/2 |W - W*|^2``."""
    rng = np.random.default_rng([seed, 3])
    x = np.sqrt(SAMPLES) * np.linalg.qr(rng.standard_normal((SAMPLES, 3)))[0]
    return LinearNetwork((3, 1, 3), x, x * np.linspace(1.0, SMALLEST[target], 3), loss=loss)


def landscape(target: str, direction: str, size: float, quick: bool, seed: int) -> Landscape:
    """Descents under one loss, for several draws of the inputs."""
    level = 0 if quick else 1
    counts = np.zeros(3, int)
    levels = 0
    for draw in range(DRAWS[level]):
        objective = bottleneck(target, changed(direction, size), seed + draw)
        theta, evidence = ends_of_descents(objective, gaussian_starts(DESCENTS[level], objective.dim, seed + draw))
        verified = np.isin(evidence, OF_MINIMA)
        loss = loss_and_gradient(objective, theta[verified])[0]
        higher, different = above_the_lowest(loss)
        counts += [int(np.sum(~higher)), int(np.sum(higher)), int(np.sum(~verified))]
        levels = max(levels, different)
    at_global, others, undecided = counts.tolist()
    return Landscape(target, direction, size, at_global, others, undecided, levels)


def above_the_lowest(loss: np.ndarray) -> tuple[np.ndarray, int]:
    """Which losses are above the lowest one, and how many different ones there are."""
    if not loss.size:
        return np.zeros(0, bool), 0
    margin = SAME_LOSS * (1 + float(np.abs(loss).max()))
    return loss > loss.min() + margin, int(1 + np.sum(np.diff(np.sort(loss)) > margin))


# Claims ----------------------------------------------------------------------------------------------------------


def name_of(one: Threshold) -> str:
    """Network, loss and noise in words."""
    kind = "labels flipped" if one.loss == LOGISTIC else "noise"
    return f"{one.network}, {one.loss}, {kind} {one.noise:g}"


def difference(value: float, reference: float, words: str) -> Bracket:
    """A relative difference, known to rounding."""
    relative = abs(value - reference) / reference
    return Bracket(relative, 0.0, 2 * relative + 1e-12, "computed", words)


def interpolating_claim(
    thresholds: Sequence[Threshold], makers: dict[str, Callable[[Sequence[float], float], AbstractObjective]]
) -> Claim:
    """Is the threshold without noise that of the square loss?"""
    chosen = [one for one in thresholds if one.noise == 0 and one.loss != LOGISTIC]
    found: dict[str, Bracket] = {}
    largest = 0.0
    lowest = max(abs(one.lowest) for one in chosen)
    for name in dict.fromkeys(one.network for one in chosen):
        network = makers[name]((1.0, 0.0, 0.0, 0.0), 0.0)
        rows = [one for one in chosen if one.network == name]
        if isinstance(network, LinearNetwork):
            data: Any = network.samples
            square = LinearNetwork(network.widths, data.inputs, data.targets)
            reference = critical_step_size(square).step_size
            found[f"{name}: critical step size of the square loss by the formula"] = reference
        else:
            reference = next(one.step_size for one in rows if one.loss == "square")
            found[f"{name}: critical step size of the square loss by search"] = reference
        for one in rows:
            apart = difference(one.step_size.value, reference.value, "relative difference of step sizes")
            found[f"{name}, {one.loss}: relative difference from it"] = apart
            largest = max(largest, apart.value)
    found["largest loss at the minima"] = Bracket(
        lowest, 0.0, 2 * lowest + 1e-15, "computed", "zero up to rounding"
    )
    equal = largest <= EQUAL and lowest <= SAME_LOSS
    return Claim(
        STATEMENTS[0],
        "Open question about other losses, as reported; a consequence of the interpolating case",
        f"Critical step size by search under {', '.join(dict.fromkeys(one.loss for one in chosen))}; targets "
        "without "
        f"noise, from a network of the same shape, {SAMPLES} samples, L = 1/m sum of the losses of the residuals.",
        found,
        "yes" if equal else "no",
        f"The thresholds of all losses differ from that of the square loss by at most {largest:.1e} of it.",
        figure="other_losses",
    )


def threshold_claim(thresholds: Sequence[Threshold], level: int, without: int = 0) -> Claim:
    """Do runs settle at global minima below the thresholds, and nowhere above?"""
    noisy = [one for one in thresholds if one.noise > 0]
    found: dict[str, Bracket] = {}
    for one in noisy:
        found[f"{name_of(one)}: critical step size"] = one.step_size
        found[f"{name_of(one)}: share of runs that settle at {BELOW:g} of it"] = one.below
        found[f"{name_of(one)}: the same at {ABOVE:g} of it"] = one.above
    sharp = sum(one.is_sharp for one in noisy)
    agree = sum(one.agreeing == one.searches for one in noisy)
    agrees: Agreement = "yes" if noisy and sharp == len(noisy) else "no"
    conclusion = (
        f"In {sharp} of {len(noisy)} cases runs from beside the flattest minimum settle at global minima at "
        f"{BELOW:g} of the threshold and none does at {ABOVE:g} of it. The thresholds are those of the flattest "
        f"minimum found (all searches agree in {agree} cases), so this is evidence and no proof."
    )
    if without:
        conclusion += f" In {without} more cases no descent led to a minimum: the parameters run off."
    most = max((one.noise for one in noisy if one.loss != LOGISTIC), default=0.0)
    for name in dict.fromkeys(one.network for one in noisy if one.loss != LOGISTIC):
        rows = {one.loss: one.step_size.value for one in noisy if one.network == name and one.noise == most}
        ratios = ", ".join(
            f"{loss} {value / rows['square']:.3g}" for loss, value in rows.items() if loss != "square"
        )
        conclusion += f" {name}: at noise {most:g} the thresholds are, in units of the square loss's, {ratios}."
    return Claim(
        STATEMENTS[1],
        "Open question about other losses, as reported",
        f"For each network, loss and level of noise {SEARCHES[level]} searches for the flattest global minimum; "
        "then "
        f"{RUNS[level]} runs of {MAX_STEPS} steps at {BELOW:g} and {ABOVE:g} of the threshold, from "
        f"Gaussian starts at {BESIDE:g} of its norm around it; they settle if the loss is the lowest found up to "
        f"{SAME_LOSS:g}. Noise: Gaussian of that standard deviation (tanh: {TANH_NOISE:g} times that), or labels "
        f"flipped with that probability. {SAMPLES} samples, L = 1/m sum of the losses of the "
        "residuals.",
        found,
        agrees,
        conclusion,
        figure="other_losses",
    )


def continuity_claim(perturbed: Sequence[Perturbed]) -> Claim:
    """Does the threshold tend to that of the square loss, in proportion to the change?"""
    found: dict[str, Bracket] = {}
    words, tends = [], []
    for one in perturbed:
        found[f"{one.network}: critical step size of the square loss"] = one.step_size[0]
        changes, sizes = one.changes, one.size[1:]
        order = np.argsort(sizes)[::-1]
        slopes = changes[order] / sizes[order]
        for size, change in zip(sizes[order], changes[order], strict=True):
            found[f"{one.network}: change of it for {size:g} r^4"] = Bracket(
                float(change), 0.0, float(2 * change + 1e-12), "estimated", "difference of two searches"
            )
        # What is left is the curvature in eps: the last two slopes tell.
        spread = abs(slopes[-1] - slopes[-2])
        slope = float(slopes[-1])
        found[f"{one.network}: change per unit of r^4 in the limit"] = Bracket(
            slope, slope - spread, slope + spread, "estimated", "smallest size; difference from the next one"
        )
        proportional = bool(spread <= PROPORTIONAL * slope)
        shrinks = bool(np.all(np.diff(changes[order]) < 0))
        tends.append(proportional and shrinks)
        words.append(f"{one.network}: {slope:.3g} per unit of r^4")
    return Claim(
        STATEMENTS[2],
        "Open question about other losses, as reported",
        "The critical step size by search for r^2/2 + eps r^4 at noise level 1, eps = "
        f"{', '.join(f'{size:g}' for size in perturbed[0].size)}.",
        found,
        "yes" if all(tends) else "no",
        f"In {sum(tends)} of {len(tends)} networks the change of the threshold shrinks in proportion to that of "
        "the "
        f"loss ({'; '.join(words)}): a threshold does not jump, though with noise it differs from that of the "
        "square "
        "loss at once.",
        figure="other_losses",
    )


def landscape_claim(landscapes: Sequence[Landscape], level: int) -> Claim:
    """Do minima that are not global appear as soon as the square loss is changed?"""
    found: dict[str, Bracket] = {}
    for one in landscapes:
        where = f"{one.target}, {one.size:g} {one.direction}"
        if one.global_ + one.others:
            found[f"{where}: share of minima that are not global"] = one.share
        words = f"different losses among the minima of one draw; {one.undecided} descents undecided"
        found[f"{where}: losses of minima found"] = Bracket(
            float(one.levels), float(one.levels), np.inf, "estimated", f"at least: {words}"
        )
    square = [one for one in landscapes if one.size == 0]
    smallest = min(one.size for one in landscapes if one.size > 0)
    shown = {
        target: any(
            one.others > 0 and one.share.lower > 0
            for one in landscapes
            if one.target == target and one.size == smallest
        )
        for target in dict.fromkeys(one.target for one in landscapes)
    }
    clean = all(one.others == 0 for one in square)
    agrees: Agreement = "no"
    if clean and any(shown.values()):
        agrees = "yes" if all(shown.values()) else "corrected"
    changed_ones = [target for target, changes in shown.items() if changes]
    stable = [target for target, changes in shown.items() if not changes]
    conclusion = (
        "Under the square loss every minimum found is global."
        if clean
        else "Under the square loss itself minima were found that are not global, against theory."
    )
    if changed_ones:
        largest = max(
            (one for one in landscapes if one.size == smallest and one.target in changed_ones),
            key=lambda one: one.share.value,
        )
        conclusion += (
            f" For a target with {' and '.join(changed_ones)} a change of {smallest:g} is enough: up to "
            f"{100 * largest.share.value:.0f} % of the minima found are then not global. There the minima of the "
            "square loss are one family, and any change picks points of it that differ in loss."
        )
    if stable:
        conclusion += f" For a target with {' and '.join(stable)} a change of {smallest:g} shows none"
        first = [one.size for one in landscapes if one.target in stable and one.others > 0]
        conclusion += (
            f"; they were found from {min(first):g} on." if first else ", and no larger change that was tried did."
        )
        if changed_ones:
            conclusion += (
                " So the landscape changes at once where the critical points of the square loss are degenerate; "
                "where they are not, they persist under small changes."
            )
    return Claim(
        STATEMENTS[3],
        "Open questions, as reported, after Trager, Kohn & Bruna",
        f"{DESCENTS[level]} descents from N(0, I) for each of {DRAWS[level]} draws of {SAMPLES} whitened inputs; "
        "a "
        "linear network of widths (3, 1, 3), targets W* x with diagonal W* of singular values from 1 down to 1 or "
        f"{min(SMALLEST.values()):g}; r^2/2 + eps r^4, or (1 - eps) r^2/2 + eps log cosh r. Verified minima only; "
        "not "
        f"global: loss above the lowest by more than {SAME_LOSS:g}.",
        found,
        agrees,
        conclusion,
        figure="landscape",
    )


# Data and pictures -----------------------------------------------------------------------------------------------


def dataset(
    thresholds: Sequence[Threshold], perturbed: Sequence[Perturbed], landscapes: Sequence[Landscape]
) -> xr.Dataset:
    """Everything drawn: thresholds, their changes under small changes of the loss, and landscapes."""
    names = list(dict.fromkeys(one.network for one in thresholds))
    losses = [*LOSSES, LOGISTIC]
    variables: dict[str, Any] = {
        "network": ("case", [names.index(one.network) for one in thresholds], {"names": names}),
        "loss": ("case", [losses.index(one.loss) for one in thresholds], {"names": losses}),
        "noise": ("case", [one.noise for one in thresholds], {"long_name": "level of noise", "units": "1"}),
        "critical_step_size": (
            "case",
            [one.step_size.value for one in thresholds],
            {"long_name": "2 / smallest sharpness found", "units": "1", "status": "estimated"},
        ),
        "searches_agreeing": ("case", [one.agreeing for one in thresholds], {"long_name": "searches that agree"}),
        "lowest_loss": ("case", [one.lowest for one in thresholds], {"long_name": "loss at the minimum"}),
    }
    for side in ("below", "above"):
        for end in ("value", "lower", "upper"):
            variables[f"share_{side}_{end}"] = (
                "case",
                [getattr(getattr(one, side), end) for one in thresholds],
                {"long_name": f"share of runs at a global minimum {side}: {end}", "units": "1"},
            )
    variables |= {
        "perturbed_step_size": (
            ("perturbed_network", "change"),
            [[bracket.value for bracket in one.step_size] for one in perturbed],
            {"long_name": "critical step size", "units": "1", "status": "estimated"},
        ),
        "change": ("change", perturbed[0].size, {"long_name": "multiple of r^4", "units": "1"}),
        "target": (
            "landscape",
            [list(SMALLEST).index(one.target) for one in landscapes],
            {"names": list(SMALLEST)},
        ),
        "direction": (
            "landscape",
            [int(one.direction != "r^4") for one in landscapes],
            {"names": ["r^4", "log cosh"]},
        ),
        "size": ("landscape", [one.size for one in landscapes], {"long_name": "size of the change", "units": "1"}),
    }
    for name in ("global_", "others", "undecided", "levels"):
        variables[f"minima_{name}".rstrip("_")] = ("landscape", [getattr(one, name) for one in landscapes])
    attributes = {"status": "estimated", "source": PAPER, "perturbed_networks": [one.network for one in perturbed]}
    return xr.Dataset(variables, attrs=attributes)


def thresholds_figure(thresholds: Sequence[Threshold], perturbed: Sequence[Perturbed]) -> Figure:
    """Critical step sizes against the noise, a panel per network; last, against small changes of the loss."""
    rows = [one for one in thresholds if one.loss != LOGISTIC]
    losses = {loss: colour for loss, colour in COLOURS.items() if any(one.loss == loss for one in rows)}
    names = list(dict.fromkeys(one.network for one in rows))
    panels = len(names) + 1
    columns = min(panels, 3)
    height = int(np.ceil(panels / columns))
    picture = Figure(figsize=(4.4 * columns, 3.5 * height + 0.6), layout="constrained")
    axes = picture.subplots(height, columns, squeeze=False).ravel()
    for panel, name in zip(axes, names, strict=False):
        for loss, colour in losses.items():
            line = [one for one in rows if one.network == name and one.loss == loss]
            noise = np.array([one.noise for one in line])
            values = np.array([one.step_size.value for one in line])
            panel.plot(noise, values, "-", color=colour, lw=1.2)
            for one in line:
                inside = colour if one.is_sharp else "w"
                panel.plot(one.noise, one.step_size.value, "o", ms=5, color=colour, mfc=inside)
        panel.set_xscale("symlog", linthresh=0.1)
        panel.set(yscale="log", title=name, xlabel="noise level", ylabel="critical step size")
        panel.set_xlim(-0.01, max(one.noise for one in rows) * 1.2)
        panel.grid(alpha=0.25, lw=0.6)
    last = axes[len(names)]
    for found, marker in zip(perturbed, "os^Dv", strict=False):
        last.loglog(found.size[1:], found.changes, marker, ms=5, color="#CC79A7", mfc="none", label=found.network)
        smallest = int(np.argmin(found.size[1:]))
        slope = found.changes[smallest] / found.size[1:][smallest]
        last.loglog(found.size[1:], slope * found.size[1:], ":", color="0.5", lw=0.9)
    last.plot([], [], ":", color="0.5", label="in proportion")
    last.set(xlabel="multiple of r^4 added to the square loss", ylabel="change of the critical step size")
    last.set_title("noise level 1")
    last.legend(frameon=False, fontsize="small")
    last.grid(alpha=0.25, lw=0.6)
    for unused in axes[panels:]:
        unused.set_visible(False)
    handles = [Line2D([], [], color=colour, marker="o", ms=5, label=loss) for loss, colour in losses.items()]
    handles.append(
        Line2D([], [], ls="", marker="o", ms=5, mfc="w", color="0.3", label="the runs do not part there")
    )
    picture.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 3 * columns - 3), frameon=False
    )
    return picture


def landscape_figure(landscapes: Sequence[Landscape]) -> Figure:
    """The share of minima that are not global against the change of the loss."""
    picture = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = picture.subplots()
    smallest = min(one.size for one in landscapes if one.size > 0)
    styles = {"r^4": ("o", "-"), "log cosh": ("s", "--")}
    shift = {"r^4": 1.0, "log cosh": 1.12}
    for target, colour in zip(SMALLEST, ("#D55E00", "#0072B2"), strict=True):
        for direction, (marker, line) in styles.items():
            some = [
                one
                for one in landscapes
                if one.target == target and one.direction == direction and one.global_ + one.others
            ]
            if not some:
                continue
            x = np.array([max(one.size, smallest / 10) for one in some]) * shift[direction]
            brackets = [one.share for one in some]
            y = np.array([b.value for b in brackets])
            error = np.array([[b.value - b.lower for b in brackets], [b.upper - b.value for b in brackets]])
            axes.errorbar(
                x,
                y,
                yerr=error,
                fmt=marker,
                ls=line,
                lw=1.1,
                ms=5,
                capsize=2,
                color=colour,
                mfc=colour if direction == "r^4" else "w",
                label=f"{target}, {direction}",
            )
    sizes = sorted({one.size for one in landscapes if one.size > 0})
    axes.set_xscale("log")
    axes.set_xticks([smallest / 10, *sizes], ["0", *(f"{size:g}" for size in sizes)])
    axes.minorticks_off()
    axes.set(
        ylim=(-0.03, 1.0),
        xlabel="size of the change of the square loss",
        ylabel="share of minima that are not global",
        title="linear network (3, 1, 3), whitened inputs",
    )
    axes.grid(alpha=0.25, lw=0.6)
    axes.legend(frameon=False, fontsize="small", loc="upper left")
    return picture

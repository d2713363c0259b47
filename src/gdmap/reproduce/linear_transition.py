"""Deep linear networks across their critical step size (arXiv:2402.13108, main theorem and experiments)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from gdmap.bracket import Bracket
from gdmap.ensembles import Fate, ensemble
from gdmap.maps import GradientDescent
from gdmap.minima import minimal_sharpness_bound
from gdmap.objectives import LinearNetwork
from gdmap.reproduce.papers import LARGE_LEARNING_RATES as PAPER
from gdmap.reproduce.report import Agreement, Claim, Report, number_of
from gdmap.reproduce.transition import (
    NEAR,
    Case,
    Progress,
    Ray,
    Steps,
    Study,
    Transition,
    cycle_error,
    dataset,
    drop_found,
    drops,
    jump_found,
    jumps,
    named,
    norm_figure,
    observe,
    rise_agrees,
    share_figure,
    share_of_hits,
    widest,
)
from gdmap.spectra import spectrum
from gdmap.stability import critical_step_size
from gdmap.sweeps import gaussian_starts, sweep

NAME = "linear-transition"
TITLE = "Deep linear networks stop converging at a critical step size"
STATEMENTS = (
    "For a linear network under the square loss and every step size above eta_E, where all non-zero Hessian "
    "eigenvalues of all global minima exceed 2 / eta, the starts from which gradient descent converges to a "
    "global minimum have measure zero.",
    "Between eta_C, above which no minimum has all its Hessian eigenvalues below 2 / eta, and eta_E lies a "
    "regime at the edge of stability where convergence to a minimum is possible, though not by trapping.",
    "The share of initialisations from which gradient descent on a linear network converges drops sharply at a "
    "critical step size.",
    "The asymptotic gradient norm along the trajectory of a linear network rises sharply at a critical step size.",
    "Convergence is measured by the asymptotic gradient norm.",
    "Above the critical step size already the starts that converge to any critical point have measure zero "
    "(first version; later ones say minima).",
)

# The networks: widths, singular values of the diagonal target, standard deviation of the starts.
NETWORKS: tuple[tuple[tuple[int, ...], tuple[float, ...], float], ...] = (
    ((1, 1, 1), (1.0,), 0.5),
    ((1, 1, 1, 1), (1.0,), 0.7),
    ((2, 2, 2), (1.0, 0.5), 0.5),
    ((3, 1, 3), (1.0, 0.5, 0.25), 0.5),
    ((2, 2, 2, 2), (1.0, 0.5), 0.7),
    ((5, 5, 5), (1.0, 0.8, 0.6, 0.4, 0.2), 0.3),
)
# The short run leaves out those that take longest to compile.
QUICK_NETWORKS = 3
QUICK = Study((0.5, 0.9, 0.98, 1.02, 1.1, 1.2, 2.0), 100, 6_000, 50, 12_000, 0.02)
BELOW = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.94, 0.96, 0.98, 0.99, 0.995)
ABOVE = (1.005, 1.01, 1.02, 1.04, 1.06, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0)
FULL = Study((*BELOW, *ABOVE), 1_000, 10_000, 100, 40_000, 0.004)
# The matrix network in which eta_E and the regime up to it are looked at, and how far out minima are taken.
REGIME = (2, 2, 2)
STRETCHES = (1.0, 10.0, 100.0)
REGIME_FACTOR, NUDGE = 1.1, 1e-9
# The trap: depth, step size over the critical one, horizon, and what passes for a vanishing gradient.
TRAP_WIDTHS, TRAP_FACTOR, TRAP_STEPS, SMALL = (1, 1, 1, 1), 2.0, 6_000, 1e-6
# How much longer the runs are watched to see whether they leave again.
LONGER = 4
TRAP_STARTS = (200, 2_000)


class Regime(NamedTuple):
    """Above eta_C: the smallest non-zero eigenvalue far out, and a start on a null set beside its neighbour."""

    smallest: list[Bracket]
    exact: Bracket
    nudged: Bracket


def run(quick: bool = False, seed: int = 0, progress: Progress | None = None) -> Report:
    """Sweep the networks and the control, and compare with the statements."""
    study = QUICK if quick else FULL
    cases = [network_case(*one) for one in NETWORKS[: QUICK_NETWORKS if quick else None]]
    cases.append(control_case())
    bar = Steps(len(cases) + 1, progress)
    transitions = [observe(case, study, seed, bar.of(number)) for number, case in enumerate(cases)]
    networks, control = transitions[:-1], transitions[-1]
    last = bar.of(len(cases))
    regime = look_at_regime()
    trap = trapped(TRAP_STARTS[0 if quick else 1], seed)
    last(1.0)
    claims = (
        theorem_claim(networks, regime, study),
        regime_claim(networks, regime, study),
        share_claim(networks, control, study),
        norm_claim(networks, control, study),
        trap_claim(trap),
        critical_point_claim(trap),
    )
    figures = {
        "share": share_figure(
            transitions, "Fates of gradient descent on linear networks and on linear regression"
        ),
        "gradient_norm": norm_figure(
            transitions, "Asymptotic gradient norm, linear networks and linear regression"
        ),
    }
    data = dataset(transitions, PAPER).merge(trap_data(trap), combine_attrs="override")
    return Report(NAME, TITLE, PAPER, claims, data, figures, quick)


# The networks ----------------------------------------------------------------------------------------------------


def diagonal_network(widths: tuple[int, ...], values: tuple[float, ...]) -> LinearNetwork:
    """The network on whitened data whose target is ``diag(values)``."""
    return LinearNetwork.whitened(widths, np.diag(values))


def network_case(widths: tuple[int, ...], values: tuple[float, ...], scale: float) -> Case:
    """A network with its predicted critical step size and the line of its balanced top singular mode."""
    network = diagonal_network(widths, values)
    depth, top = network.depth, max(values)
    ray = Ray(
        lambda x: x ** (depth - 1) * (x**depth - top),
        lambda x: (2 * depth - 1) * x ** (2 * depth - 2) - (depth - 1) * top * x ** (depth - 2),
        top ** (1 / depth),
        math.sqrt(depth),
    )
    return Case(words_of(widths), network, scale, critical_step_size(network).step_size, ray)


def control_case() -> Case:
    """Linear regression with input covariance ``diag(1, 1/2)``: one layer, a constant Hessian."""
    inputs = np.array([[math.sqrt(2), 0.0], [0.0, 1.0]])
    network = LinearNetwork((2, 2), inputs, inputs * np.array([1.0, 0.5]))
    return Case("(2, 2), control", network, 0.5, critical_step_size(network).step_size)


def words_of(widths: Sequence[int]) -> str:
    """The widths as a name."""
    return f"({', '.join(map(str, widths))})"


# Between eta_C and eta_E -----------------------------------------------------------------------------------------


def look_at_regime() -> Regime:
    """Minima ``W_2 = diag(t, b / t), W_1 = W_2^{-1} W*``, and the line where one singular mode rests."""
    values = next(values for widths, values, _ in NETWORKS if widths == REGIME)
    network = diagonal_network(REGIME, values)
    nonzero = REGIME[0] * REGIME[-1]
    smallest = []
    for t in STRETCHES:
        upper = np.diag([t, values[1] / t])
        theta = network.ravel([np.linalg.solve(upper, np.diag(values)), upper])
        eigenvalues = np.sort(spectrum(network, theta)["eigenvalue"].values)[-nonzero:]
        slack = 64 * np.finfo(float).eps * float(eigenvalues[-1])
        words = "smallest eigenvalue of the Hessian across the minima, dense"
        low = float(eigenvalues[0])
        smallest.append(Bracket(low, low - slack, low + slack, "computed", words))
    eta = REGIME_FACTOR * critical_step_size(network).step_size.value
    # The top mode is at its minimum exactly and so stays there; the other one converges.
    start = network.ravel([np.diag([1.0, 0.3])] * 2)
    nudged = start + NUDGE * np.eye(len(start))[0]
    ends = sweep(network, [eta], np.stack([start, nudged]), 2_000)["gradient_norm"].values[0]
    words = "Euclidean norm of the gradient after at most 2,000 steps"
    rounding = 64 * float(np.finfo(float).eps)
    exact, other = (
        Bracket(value, max(0.0, value - rounding), value + rounding, "computed", words)
        for value in map(float, ends)
    )
    return Regime(smallest, exact, other)


def theorem_claim(networks: Sequence[Transition], regime: Regime, study: Study) -> Claim:
    """No start converges above the critical step size; eta_E itself need not be finite."""
    found: dict[str, Bracket] = {}
    for one in networks:
        found[f"{one.case.name}: predicted critical step size"] = one.case.predicted
        found[f"{one.case.name}: starts with a minimum at any step size above"] = one.reached_above()
    falling = falls(regime)
    for t, value in zip(STRETCHES, regime.smallest, strict=True):
        found[f"{words_of(REGIME)}: smallest non-zero eigenvalue at the minimum with t = {t:g}"] = value
    shares = [one.reached_above() for one in networks]
    none = all(share.value == 0 for share in shares)
    reached = named(networks, [share.value == 0 for share in shares])
    worst = max(share.upper for share in shares)
    conclusion = (
        f"Of {study.starts:,} starts for each network none reached a minimum at any of the step sizes above 2 / "
        f"(N sigma^(2 - 2/N)), so that in each network the share that does is below {worst:.2g} (upper end of the "
        "95 % interval; no number of starts shows that it is zero, which is a theorem). "
        if none
        else f"Starts converge to minima above the predicted critical step size in {reached}. "
    )
    conclusion += (
        f"But eta_E as reported is infinite for {words_of(REGIME)}: along its minima the smallest non-zero "
        f"eigenvalue falls, to {number_of(regime.smallest[-1])} at t = {STRETCHES[-1]:g}, so no step size lies "
        "above it. What is needed is only that the largest eigenvalue exceeds 2 / eta at every minimum, which "
        "holds from the critical step size on."
        if falling
        else "The smallest non-zero eigenvalue does not fall along the minima looked at."
    )
    return Claim(
        STATEMENTS[0],
        "Main theorem for linear networks with Corollary 6, as reported",
        f"{study.words()} The loss is 1/2 ||W_N ... W_1 - W*||^2 with W* = diag(1, ...), the starts are N(0, s^2 "
        "I) "
        "with s from 0.3 to 0.7. The minima of the last rows are W_2 = diag(t, 1/(2t)), W_1 = W_2^{-1} W*.",
        found,
        "no" if not none else "corrected" if falling else "yes",
        conclusion,
        figure="share",
    )


def falls(regime: Regime) -> bool:
    """Whether the smallest non-zero eigenvalue falls like ``1 / t^2`` along the minima."""
    values = [one.value for one in regime.smallest]
    return values[-1] * (STRETCHES[-1] / STRETCHES[-2]) ** 2 < 1.1 * values[-2] < 1.1 * values[0]


def several_eigenvalues(one: Transition) -> bool:
    """Whether minima have several non-zero eigenvalues: more than one input or output."""
    network = one.case.objective
    return isinstance(network, LinearNetwork) and network.widths[0] * network.widths[-1] > 1


def regime_claim(networks: Sequence[Transition], regime: Regime, study: Study) -> Claim:
    """Just above eta_C no random start converges; those that do lie on a null set."""
    found: dict[str, Bracket] = {}
    matrices = [one for one in networks if several_eigenvalues(one)]
    near = [float(one.factors[one.above].min()) for one in matrices]
    for one, factor in zip(matrices, near, strict=True):
        found[f"{one.case.name}: share converging at {factor:g} eta_C"] = one.share(factor)
        found[f"{one.case.name}: undecided there"] = one.share(factor, "undecided")
    where = f"{words_of(REGIME)} at {REGIME_FACTOR:g} eta_C"
    found[f"{where}: last gradient norm from a start on the null set"] = regime.exact
    found[f"{where}: the same, the start moved by {NUDGE:g}"] = regime.nudged
    some = any(one.reached_above().value > 0 for one in matrices)
    null_set = regime.exact.value < SMALL < 1e-3 < regime.nudged.value
    conclusion = (
        "Random starts converge above eta_C."
        if some
        else f"No random start converges at {min(near):g} eta_C or at any larger step size: the share jumps to "
        "zero at eta_C, and no regime of convergence with positive probability lies above it. "
    )
    if not some and null_set:
        conclusion += (
            "Single starts do converge there: with the top singular mode exactly at its minimum the gradient "
            f"falls to {regime.exact.value:.1g}; moved by {NUDGE:g} the same start ends with gradient norm "
            f"{regime.nudged.value:.2g}. Every minimum has an unstable direction, so such starts have measure "
            "zero."
        )
    return Claim(
        STATEMENTS[1],
        "First version, vocabulary of eta_C and eta_E, as reported",
        f"{study.words()} Only networks with several inputs or outputs, where a minimum has several non-zero "
        f"eigenvalues. Beside that two single starts at {REGIME_FACTOR:g} eta_C, W_1 = W_2 = diag(1, 0.3) and "
        "its neighbour.",
        found,
        "yes" if some else "corrected" if null_set else "no",
        conclusion,
        figure="share",
    )


# The experiment --------------------------------------------------------------------------------------------------


def share_claim(networks: Sequence[Transition], control: Transition, study: Study) -> Claim:
    """The share of converging starts on both sides of the prediction, and the control."""
    found = drop_found([*networks, control])
    found[f"{control.case.name}: share diverging at {NEAR[1]:g} of it"] = control.share(NEAR[1], "diverged")
    sharp = [drops(one) for one in networks]
    other = control_differs(control)
    lost = max(one.share(NEAR[1], "diverged").value for one in networks)
    conclusion = (
        f"In {sum(sharp)} of {len(sharp)} networks the share falls from a positive value to zero at the predicted "
        f"step size (not in: {named(networks, sharp)}); the observed transitions lie {widest(networks)}. Close "
        "below it convergence is slow, and starts that are not decided at the horizon are counted as undecided. "
    )
    conclusion += (
        "Linear regression, the control, has a transition of another kind: all starts converge below 2 / "
        "lambda_max "
        f"and all diverge above it, while in the networks at most {100 * lost:.0f} % diverge at {NEAR[1]:g} of "
        "the "
        "critical step size and the others stay bounded, on cycles at first."
        if other
        else "The control, linear regression, does not converge everywhere below 2 / lambda_max and diverge above "
        "it."
    )
    return Claim(
        STATEMENTS[2],
        "Consequence of the main theorem (the reported experiments are on synthetic losses and MNIST)",
        f"{study.words()} {study.probe_words()} The control is one layer with input covariance diag(1, 1/2).",
        found,
        "yes" if all(sharp) and other else "no",
        conclusion,
        figure="share",
    )


def control_differs(control: Transition) -> bool:
    """Whether all starts of the control converge at every step size below, and all diverge above."""
    fate = control.swept["fate"].transpose("step_size", "start").values
    below = control.swept["step_size"].values < control.case.predicted.lower
    return bool(np.all(fate[below] == int(Fate.MINIMUM)) and np.all(fate[control.above] == int(Fate.DIVERGED)))


def norm_claim(networks: Sequence[Transition], control: Transition, study: Study) -> Claim:
    """The gradient norm on both sides, and the cycle that it settles on above."""
    found = jump_found(networks)
    found["largest relative difference of a median from the 2-cycle"] = apart = cycle_error(networks)
    jumped = [jumps(one) for one in networks]
    settled = apart.value < 0.02
    conclusion = (
        f"In {sum(jumped)} of {len(jumped)} networks the median just above is more than ten times that just below "
        f"(not in: {named(networks, jumped)}). "
    )
    if settled:
        conclusion += (
            "Above, the orbits settle on the 2-cycle of the top singular mode: the medians agree with its "
            f"gradient norm within {apart.value:.1g}. For two layers it is sqrt(2 (eta - 1) / eta^3): it grows "
            "continuously from zero like a square root, so the rise is steep, but no jump. Below, runs stop when "
            "their steps are negligible: the norms there are bounds, and the limits are zero. "
        )
    else:
        conclusion += "Above, the medians are not those of the 2-cycle of the top singular mode. "
    if not np.isfinite(control.norms[control.at(NEAR[1]), 0]):
        conclusion += "In the control nothing bounded is left above."
    return Claim(
        STATEMENTS[3],
        "Consequence of the main theorem (the reported experiments are on synthetic losses and MNIST)",
        f"{study.words()} The gradient norm is that of the last state; starts that diverged are left out of the "
        "median and shown as their own share.",
        found,
        rise_agrees(networks),
        conclusion,
        figure="gradient_norm",
    )


# The trap --------------------------------------------------------------------------------------------------------


def trapped(number: int, seed: int) -> xr.Dataset:
    """The fates of a network of depth three far above its critical step size, with the last states.

    ``later`` is the gradient norm of the same runs at a longer horizon.
    """
    values, scale = next((values, scale) for widths, values, scale in NETWORKS if widths == TRAP_WIDTHS)
    network = diagonal_network(TRAP_WIDTHS, values)
    eta = TRAP_FACTOR * 2 / minimal_sharpness_bound(network).value
    map_, starts = GradientDescent(network, eta), scale * gaussian_starts(number, network.dim, seed)
    found, later = (ensemble(map_, starts, steps) for steps in (TRAP_STEPS, LONGER * TRAP_STEPS))
    words = {"long_name": f"gradient norm after {LONGER * TRAP_STEPS} steps", "status": "computed", "units": "1"}
    norm = ("start", later["gradient_norm"].values, words)
    return found.assign(later=norm).assign_attrs(step_size=eta)


def crawling(trap: xr.Dataset) -> np.ndarray:
    """Which runs have a vanishing gradient at the end and are at no minimum."""
    return (trap["gradient_norm"].values < SMALL) & (trap["fate"].values != int(Fate.MINIMUM))


def trap_found(trap: xr.Dataset) -> dict[str, Bracket]:
    """The shares of the runs that a small gradient would call converged, and of what they are."""
    small = trap["gradient_norm"].values < SMALL
    fate = trap["fate"].values
    return {
        f"share with gradient norm below {SMALL:g}": share_of_hits(small),
        "share that reached a minimum": share_of_hits(fate == int(Fate.MINIMUM)),
        "share with a small gradient and no minimum": share_of_hits(small & (fate != int(Fate.MINIMUM))),
    }


def trap_words(trap: xr.Dataset) -> str:
    """What was run."""
    return (
        f"Widths {words_of(TRAP_WIDTHS)}, step size {TRAP_FACTOR:g} times the critical one "
        f"({trap.attrs['step_size']:.6g}), {trap.sizes['start']:,} starts N(0, 0.7^2 I), {TRAP_STEPS:,} steps."
    )


def trap_claim(trap: xr.Dataset) -> Claim:
    """A criterion of the gradient norm alone misreports convergence."""
    found = trap_found(trap)
    small, minima, wrong = found.values()
    loss = trap["loss"].values[crawling(trap)]
    if len(loss):
        words = "median, smallest and largest; the optimum is 0, the origin has 1/2"
        ends = float(np.median(loss)), float(loss.min()), float(loss.max())
        found["loss of these"] = Bracket(*ends, "computed", words)
    misled = wrong.lower > 0.05
    if misled:
        conclusion = (
            f"Far above the critical step size {100 * small.value:.0f} % of the starts pass for converged by a "
            f"gradient norm below {SMALL:g}, but {100 * minima.value:.0f} % are at a minimum: they crawl past the "
            "degenerate saddle at the origin, where the Hessian vanishes. A minimum has to be told by the loss or "
            "the Hessian as well, as is done here throughout."
        )
    else:
        conclusion = "Small gradients and minima went together in this run."
    return Claim(
        STATEMENTS[4],
        "Measure used in the experiments, as reported",
        trap_words(trap),
        found,
        "corrected" if misled else "yes",
        conclusion,
    )


def critical_point_claim(trap: xr.Dataset) -> Claim:
    """Whether orbits that approach the origin above the critical step size do so from positive measure."""
    found = trap_found(trap)
    near = crawling(trap)
    sizes = np.abs(trap["state"].values)
    saddles = (trap["fate"].values == int(Fate.SADDLE)) & (np.ptp(sizes, axis=1) > 0)
    found["share at a saddle, weights of unequal size"] = real = share_of_hits(saddles)
    agrees: Agreement
    if real.value > 0:
        agrees = "no"
        conclusion = f"{100 * real.value:.0f} % of random starts converge to a saddle."
    elif near.any():
        agrees = "not reproducible"
        spread = np.ptp(sizes[near], axis=1) / sizes[near].max(axis=1)
        ends = float(np.median(spread)), float(spread.min()), float(spread.max())
        words = "largest minus smallest |weight|, over the largest; median, smallest and largest"
        found["relative spread of their weights"] = Bracket(*ends, "computed", words)
        left = trap["later"].values[near] >= SMALL
        found[f"share of these that have left after {LONGER * TRAP_STEPS:,} steps"] = share_of_hits(left)
        conclusion = (
            f"With three layers {100 * share_of_hits(near).value:.0f} % of the starts are near the origin after "
            f"{TRAP_STEPS:,} steps, a critical point that is no strict saddle, so that the argument for minima "
            "does not cover it. There a step changes x^2 - y^2 only by the factor 1 - (eta rho z)^2 (rho the "
            "residual), so an orbit of unequal weights cannot come closer than its imbalance allows and has to "
            f"leave again, after a time that no horizon bounds: {int(left.sum())} of {len(left)} have left after "
            f"{LONGER * TRAP_STEPS:,} steps. Whether the others converge no finite run can tell."
        )
    else:
        agrees, conclusion = "yes", "No start ended with a vanishing gradient above the critical step size."
    return Claim(
        STATEMENTS[5], "First version, abstract, as reported", trap_words(trap), found, agrees, conclusion
    )


def trap_data(trap: xr.Dataset) -> xr.Dataset:
    """The runs of the trap, beside the other data."""
    renamed = (
        trap[["fate", "gradient_norm", "later", "loss", "state"]].drop_vars("start").rename(start="trap_start")
    )
    renamed = renamed.rename({name: f"trap_{name}" for name in renamed.data_vars})
    for variable in renamed.data_vars.values():
        variable.attrs.setdefault("long_name", "last weights")
        variable.attrs.setdefault("status", "computed")
    return renamed

"""Which minima of a two-sample ReLU network gradient descent and SGD can end in (arXiv:2510.24466, figure 4)."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from scipy.optimize import brentq

from gdmap.bracket import Bracket
from gdmap.ensembles import ensemble, escape_or_return
from gdmap.exponents import Exponent, gd_exponent, regularity, sgd_exponent, stable_sets
from gdmap.maps import GradientDescent, StochasticGradientDescent
from gdmap.objectives import Objective
from gdmap.reproduce.papers import NON_SINGULARITY as PAPER
from gdmap.reproduce.report import Agreement, Claim, Report
from gdmap.sweeps import fate_fractions, gaussian_starts

NAME = "gd-vs-sgd-stability"
TITLE = "GD-stable and SGD-stable minima of a two-sample ReLU network"
STATEMENTS = (
    "At step size 0.15, with both samples equally likely, the SGD-stable minima are a proper subset of the "
    "GD-stable minima.",
    "At step size 0.3, with the first sample drawn with probability 0.58, the GD-stable and the SGD-stable minima "
    "are disjoint.",
    "A minimum is stable for gradient descent if mu < 0 and for SGD if lambda < 0; it is unstable where they are "
    "positive.",
    "On the minima the non-zero Hessian eigenvalue is c (t1^2 + t2^2), with c = 3.53 (and once c = 3.51).",
)

# The experiment: inputs = targets of the two samples, step sizes, probabilities of the first sample.
POINTS = np.array([0.9, 2.5])
CASES = ((0.15, 0.5), (0.3, 0.58))
PRINTED = (3.51, 3.53)
# Where the curve is looked at; the places where bands end are found by root finding.
MINIMA = (41, 241)  # quick, full
STARTS = (100, 400)
PLACES = ((0.5,), (0.2, 0.5, 0.8))
DISTANCES = ((1e-3,), (1e-3, 1e-6))
MAX_STEPS = (20_000, 100_000)
# Where runs begin whose fates are counted.
BESIDE = 1e-6
XTOL = 1e-13
# The minimum at which the hypotheses of the theorem are tested.
TESTED = 1.3

OPTIMISERS = ("GD", "SGD")
COLOURS = {"both": "#009E73", "GD only": "#0072B2", "SGD only": "#D55E00", "neither": "#BBBBBB"}

Progress = Callable[[int, int], None]


class Band(NamedTuple):
    """Stable minima ``t1`` between two ends; ``None`` where the curve was not followed further."""

    lower: Bracket | None
    upper: Bracket | None

    def covers(self, t1: float) -> bool:
        """Whether ``t1`` lies in the band."""
        return (self.lower is None or t1 > self.lower.value) and (self.upper is None or t1 < self.upper.value)


class Case(NamedTuple):
    """One step size and sampling law along the minima."""

    step_size: float
    probabilities: np.ndarray
    gd_bands: list[Band]
    sgd_bands: list[Band]
    poles: list[Bracket]
    sets: xr.Dataset
    simulations: xr.Dataset


def run(quick: bool = False, seed: int = 0, progress: Progress | None = None) -> Report:
    """Compute both panels of the figure, check them by simulation, and compare with the statements."""
    objective = network()
    t1 = curve(objective, MINIMA[0 if quick else 1])
    cases = []
    for number, (step_size, p) in enumerate(CASES):
        cases.append(one_case(objective, t1, step_size, np.array([p, 1 - p]), quick, seed))
        if progress is not None:
            progress(number + 1, len(CASES))
    claims = (
        subset_claim(objective, cases[0], quick, seed),
        disjoint_claim(objective, cases[1]),
        criterion_claim(objective, cases),
        coefficient_claim(objective),
    )
    return Report(NAME, TITLE, PAPER, claims, dataset(cases), {"stable_sets": figure(cases)}, quick)


# The network and its minima --------------------------------------------------------------------------------------


def network() -> Objective:
    """``f(x) = relu(t2 relu(t1 x))`` with half the squared error on the two samples."""

    def loss(t: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return (y - jax.nn.relu(t[1] * jax.nn.relu(t[0] * x))) ** 2 / 2

    return Objective(loss, np.ones(2), data=(POINTS, POINTS))


def minimum(t1: float) -> np.ndarray:
    """The minimum ``(t1, 1 / t1)``."""
    return np.array([t1, 1 / t1])


def squared_norm(t1: Bracket) -> Bracket:
    """``s = t1^2 + t2^2`` at a minimum with ``t1 >= 1``, where it grows with ``t1``."""
    value, lower, upper = (float(np.sum(minimum(end) ** 2)) for end in (t1.value, max(t1.lower, 1.0), t1.upper))
    slack = 4 * np.finfo(float).eps * value
    return Bracket(value, lower - slack, upper + slack, t1.status, t1.method)


def curve(objective: Objective, count: int) -> np.ndarray:
    """Places ``t1`` on the curve of minima, evenly spaced in ``log t1``, as far as some sample contracts.

    At the ends the Jacobian of every sample expands across the minima (determinant below -1) at every step size
    asked for; farther out it expands more, so that all exponents are positive there.
    """
    maps = [StochasticGradientDescent(objective, step_size) for step_size, _ in CASES]
    end = 1.0
    while any(determinant(map_, end, i) >= -1 for map_ in maps for i in range(objective.n_samples)):
        end *= 1.05
    return np.exp(np.linspace(-math.log(end), math.log(end), count))


def determinant(map_: StochasticGradientDescent, t1: float, sample: int) -> float:
    """The determinant of the Jacobian of the step on one sample: along the minima it is 1 times that across."""
    sign, logarithm = map_.slogdet(minimum(t1), [sample])
    return float(sign * math.exp(logarithm))


# One panel -------------------------------------------------------------------------------------------------------


def one_case(
    objective: Objective, t1: np.ndarray, step_size: float, p: np.ndarray, quick: bool, seed: int
) -> Case:
    """Exponents along the curve, the ends of the bands, and simulations in every region between them."""
    weighted = objective.weighted(p)
    poles = singular_minima(StochasticGradientDescent(objective, step_size, probabilities=p), t1, p)
    t1 = np.sort(np.concatenate([t1, [pole.value for pole in poles]]))
    sets = stable_sets(objective, np.stack([minimum(t) for t in t1]), [step_size], probabilities=p)
    sets = sets.squeeze(("step_size", "batch_size", "law"), drop=True).assign_coords(t1=("minimum", t1))
    gd_bands = bands(lambda t: gd_exponent(weighted, minimum(t), step_size), t1, sets["gd_exponent"].values)
    sgd_bands = bands(
        lambda t: sgd_exponent(objective, minimum(t), step_size, probabilities=p), t1, sets["sgd_exponent"].values
    )
    simulations = simulated(objective, step_size, p, gd_bands, sgd_bands, float(t1[-1]), quick, seed)
    return Case(step_size, p, gd_bands, sgd_bands, poles, sets, simulations)


def singular_minima(map_: StochasticGradientDescent, t1: np.ndarray, p: np.ndarray) -> list[Bracket]:
    """Where the Jacobian of a sample is singular: there ``lambda`` is minus infinity."""
    found = []
    for sample in np.flatnonzero(p).tolist():
        along = np.array([determinant(map_, t, sample) for t in t1])
        for k in np.flatnonzero(np.sign(along[:-1]) * np.sign(along[1:]) < 0):
            root = brentq(lambda t, i=sample: determinant(map_, t, i), t1[k], t1[k + 1], xtol=XTOL)
            slope = (along[k + 1] - along[k]) / (t1[k + 1] - t1[k])
            error = XTOL + 64 * np.finfo(float).eps / abs(slope)
            words = f"root of the determinant of the Jacobian of sample {sample} along the minima"
            found.append(Bracket(root, root - error, root + error, "computed", words))
    return sorted(found, key=float)


def bands(exponent: Callable[[float], Exponent], t1: np.ndarray, values: np.ndarray) -> list[Band]:
    """The intervals of ``t1`` where an exponent is negative, their ends by root finding on the exponent itself."""
    stable = values < 0
    changes = np.flatnonzero(stable[:-1] != stable[1:])
    ends: list[Bracket | None] = [None] if stable[0] else []
    ends += [zero_of(exponent, t1[k], t1[k + 1]) for k in changes]
    ends += [None] if stable[-1] else []
    return [Band(*pair) for pair in zip(ends[::2], ends[1::2], strict=True)]


def zero_of(exponent: Callable[[float], Exponent], low: float, high: float) -> Bracket:
    """A sign change of an exponent; ``expm1`` of it is finite also where the exponent is minus infinity."""
    root = brentq(lambda t: math.expm1(exponent(t).value), low, high, xtol=XTOL)
    step = 1e-5 * root
    slope = (exponent(root + step).value - exponent(root - step).value) / (2 * step)
    at = exponent(root)
    error = XTOL + 2 * max(abs(at.lower), abs(at.upper)) / abs(slope)
    words = "sign change of the exponent along the minima"
    return Bracket(root, root - error, root + error, "computed", words)


def stability(t1: float, gd_bands: Sequence[Band], sgd_bands: Sequence[Band]) -> str:
    """Whether gradient descent, SGD, both or neither are stable at a minimum."""
    descent, stochastic = (any(band.covers(t1) for band in some) for some in (gd_bands, sgd_bands))
    if descent and stochastic:
        return "both"
    return "GD only" if descent else "SGD only" if stochastic else "neither"


def regions(gd_bands: Sequence[Band], sgd_bands: Sequence[Band], end: float) -> list[tuple[float, float]]:
    """The intervals of ``t1 >= 1`` between neighbouring ends of bands."""
    ends = {b.value for band in (*gd_bands, *sgd_bands) for b in band if b is not None and b.value > 1}
    inner = [1.0, *sorted(ends), end]
    return list(itertools.pairwise(inner))


# Simulation ------------------------------------------------------------------------------------------------------


def simulated(
    objective: Objective,
    step_size: float,
    p: np.ndarray,
    gd_bands: Sequence[Band],
    sgd_bands: Sequence[Band],
    end: float,
    quick: bool,
    seed: int,
) -> xr.Dataset:
    """The share of runs that return to the minima near by, in every region of ``t1 >= 1``.

    Exchanging ``t1`` and ``t2`` changes nothing where both are positive, so the other half is the mirror image.
    """
    level = 0 if quick else 1
    maps: dict[str, Any] = {
        "GD": GradientDescent(objective.weighted(p), step_size),
        "SGD": StochasticGradientDescent(objective, step_size, probabilities=p),
    }
    rows = []
    chosen = [
        math.exp((1 - place) * math.log(low) + place * math.log(high))
        for low, high in regions(gd_bands, sgd_bands, end)
        for place in PLACES[level]
    ]
    for t1, (name, map_), distance in itertools.product(chosen, maps.items(), DISTANCES[level]):
        seen = escape_or_return(
            map_, minimum(t1), distance=distance, starts=STARTS[level], max_steps=MAX_STEPS[level], seed=seed
        )
        rows.append(
            {
                "t1": t1,
                "optimiser": OPTIMISERS.index(name),
                "distance": distance,
                "predicted_stable": stability(t1, gd_bands, sgd_bands) in ("both", f"{name} only"),
                "growth_rate": float(seen["mean_growth_rate"]),
                "growth_rate_error": float(seen["mean_growth_rate_error"]),
                "growth_rate_z": float(seen["growth_rate_z"]),
                "agrees": bool(seen["agrees"]),
                "share": float(seen["share_returned"]),
                "share_lower": float(seen["share_returned_lower"]),
                "share_upper": float(seen["share_returned_upper"]),
                "confidence": float(seen["share_returned"].attrs["confidence"]),
            }
        )
    table = xr.Dataset({name: ("simulation", np.array([row[name] for row in rows])) for name in rows[0]})
    table["optimiser"].attrs = {"flag_values": list(range(len(OPTIMISERS))), "flag_meanings": " ".join(OPTIMISERS)}
    return table


def share_at_minima(objective: Objective, case: Case, t1: float, quick: bool, seed: int) -> Bracket:
    """The share of SGD runs from close to one minimum that end at a minimum, there or elsewhere."""
    level = 0 if quick else 1
    around = minimum(t1) + gaussian_starts(STARTS[level], 2, seed, scale=BESIDE)
    sgd = StochasticGradientDescent(objective, case.step_size, probabilities=case.probabilities)
    shares = fate_fractions(ensemble(sgd, around, MAX_STEPS[level], seed=seed)["fate"])
    value, lower, upper = (
        float(shares[name].sel(fate_name="minimum")) for name in ("fraction", "fraction_lower", "fraction_upper")
    )
    confidence = float(shares["fraction"].attrs["confidence"])
    return Bracket(value, lower, upper, "estimated", f"fates of {len(around)} runs, Wilson interval", confidence)


def share_bracket(simulations: xr.Dataset, index: int) -> Bracket:
    """The share of one simulation with its Wilson interval."""
    one = simulations.isel(simulation=index)
    return Bracket(
        float(one["share"]),
        min(float(one["share_lower"]), float(one["share"])),
        max(float(one["share_upper"]), float(one["share"])),
        "estimated",
        "share of simulated runs, Wilson interval",
        float(one["confidence"]),
    )


# Claims ----------------------------------------------------------------------------------------------------------


def subset_claim(objective: Objective, case: Case, quick: bool = True, seed: int = 0) -> Claim:
    """Is every SGD-stable minimum GD-stable, and some GD-stable one not SGD-stable?"""
    gd, sgd = half(case.gd_bands), half(case.sgd_bands)
    outside = [band for band in sgd if not within(band, gd)]
    larger = total_length(gd) > total_length([band for band in sgd if within(band, gd)])
    proper = larger and not outside
    first = outside[0].lower if outside else None
    window = larger and first is not None and len(outside) < len(sgd)
    agrees: Agreement = "yes" if proper else "corrected" if window else "no"
    if proper:
        conclusion = "Every SGD-stable minimum is GD-stable, and not the other way round."
    elif window and first is not None:
        s = squared_norm(first)
        upper = outside[0].upper
        end = "" if upper is None else f" to {squared_norm(upper).value:.6g}"
        conclusion = (
            f"True only in a window: among the minima with s = t1^2 + t2^2 below {s.value:.6g}. From there{end} "
            "there is a second band of minima that are SGD-stable and GD-unstable: SGD can end at a minimum at "
            "which gradient descent cannot."
        )
    else:
        conclusion = (
            "The SGD-stable minima are not a subset of the GD-stable ones in any neighbourhood of t1 = t2."
        )
    found = found_along_the_curve(objective, case)
    if window and outside[0].upper is not None and first is not None:
        middle = math.sqrt(first.value * outside[0].upper.value)
        found[f"share of SGD runs {BESIDE:g} beside the middle of the second band that end at a minimum"] = (
            share_at_minima(objective, case, middle, quick, seed)
        )
    run = what_was_run(case)
    return Claim(STATEMENTS[0], "Figure 4, left", run, found, agrees, conclusion, figure="stable_sets")


def disjoint_claim(objective: Objective, case: Case) -> Claim:
    """Is no minimum both GD-stable and SGD-stable?"""
    gd, sgd = half(case.gd_bands), half(case.sgd_bands)
    overlap = [(a, b) for a in gd for b in sgd if lower_of(a) < upper_of(b) and lower_of(b) < upper_of(a)]
    disjoint = bool(gd) and bool(sgd) and not overlap
    uniform = gd_exponent(objective, minimum(1.0), case.step_size)
    found = found_along_the_curve(objective, case)
    found["mu at t1 = t2 = 1 with uniform weights"] = uniform
    weights = "gradient descent on the loss with the weights of the sampling"
    conclusion = f"The two sets {'are disjoint' if disjoint else 'overlap'}, for {weights}."
    if uniform.verdict == "unstable":
        conclusion += (
            " The weights matter: with uniform weights not even the flattest minimum is GD-stable at this step "
            "size."
        )
    return Claim(
        STATEMENTS[1],
        "Figure 4, right",
        what_was_run(case),
        found,
        "yes" if disjoint else "no",
        conclusion,
        figure="stable_sets",
    )


def criterion_claim(objective: Objective, cases: Sequence[Case]) -> Claim:
    """Do simulations follow the signs of the exponents, and do the theorem's hypotheses hold?"""
    found: dict[str, Bracket] = {}
    agreeing = runs = 0
    largest = 0.0
    for case in cases:
        seen = case.simulations
        runs += seen.sizes["simulation"]
        agreeing += int(seen["agrees"].sum())
        largest = max(largest, float(np.nanmax(np.abs(seen["growth_rate_z"].values))))
        for (optimiser, name), stable, distance in itertools.product(
            enumerate(OPTIMISERS), (True, False), np.unique(seen["distance"].values)[::-1]
        ):
            alike = (seen["optimiser"].values == optimiser) & (seen["distance"].values == distance)
            chosen = np.flatnonzero(alike & (seen["predicted_stable"].values == stable))
            if chosen.size:
                shares = seen["share"].values[chosen]
                extreme = int(chosen[shares.argmin() if stable else shares.argmax()])
                kind = f"{name}-{'stable' if stable else 'unstable'}"
                words = f"share back from {distance:g}, {kind}, step size {case.step_size:g}"
                found[f"{words} ({'smallest' if stable else 'largest'})"] = share_bracket(seen, extreme)
    failed: dict[str, str] = {}
    for case in cases:
        tested = regularity(objective, minimum(TESTED), case.step_size, probabilities=case.probabilities)
        for hypothesis in tested.hypotheses:
            if hypothesis.holds is False:
                failed.setdefault(hypothesis.name, f"{hypothesis.meaning} {hypothesis.otherwise}")
    right = agreeing == runs
    conclusion = (
        f"{'All' if right else f'Only {agreeing} of'} {runs} ensembles agree with the signs of the exponents: "
        "near stable minima some runs return, near unstable ones they escape (but for what rounding catches), "
        f"and small displacements grow at the rates mu and lambda, within {largest:.2g} standard errors."
    )
    if failed:
        reasons = " ".join(f"{name[0].upper()}{name[1:]}: {words}" for name, words in failed.items())
        conclusion += (
            f" Hypotheses of the theorem fail for this network; why its conclusion holds all the same: {reasons}"
        )
    agrees: Agreement = "yes" if right else "no"
    used = np.unique(cases[0].simulations["distance"].values)[::-1]
    distances = " and ".join(f"{distance:g}" for distance in used)
    run_words = (
        f"{runs} ensembles of the full non-linear maps in every region between two ends of bands, started at a "
        f"relative distance of {distances} across the minima; the hypotheses of the theorem were tested at "
        f"t1 = {TESTED:g}."
    )
    return Claim(
        STATEMENTS[2],
        "Corollary 13, after Chemnitz & Engel, JMLR 26(134), 2025",
        run_words,
        found,
        agrees,
        conclusion,
        figure="stable_sets",
    )


def coefficient_claim(objective: Objective) -> Claim:
    """The coefficient of the Hessian on the minima, from the sharpness at several of them."""
    places = np.array([1.0, 1.2, 2.0])
    sets = stable_sets(
        objective, np.stack([minimum(t) for t in places]), [CASES[0][0]], probabilities=[[0.5, 0.5]]
    )
    norms = np.array([np.sum(minimum(t) ** 2) for t in places])
    values = sets["sharpness"].squeeze(("batch_size", "law")).values / norms
    slack = 1e-12 * values.max()
    bracket = Bracket(
        float(values.mean()),
        float(values.min() - slack),
        float(values.max() + slack),
        "computed",
        "sharpness of the mean loss over t1^2 + t2^2",
    )
    right = [c for c in PRINTED if bracket.lower <= c <= bracket.upper]
    if len(right) == len(PRINTED):
        agrees: Agreement = "yes"
    else:
        agrees = "corrected" if right else "no"
    return Claim(
        STATEMENTS[3],
        "Appendix C",
        "The sharpness of the uniform loss at three minima, divided by t1^2 + t2^2.",
        {"coefficient": bracket},
        agrees,
        f"It is {bracket.value:.6g}; of the printed numbers {', '.join(f'{c:g}' for c in right) or 'none'} "
        f"{'is' if len(right) == 1 else 'are'} right.",
    )


def half(all_bands: Sequence[Band]) -> list[Band]:
    """The bands on ``t1 >= 1``, the one through ``t1 = 1`` cut there."""
    return [Band(None if band.covers(1.0) else band.lower, band.upper) for band in all_bands if upper_of(band) > 1]


def lower_of(band: Band) -> float:
    """Where the band begins."""
    return 1.0 if band.lower is None else band.lower.value


def upper_of(band: Band) -> float:
    """Where the band ends."""
    return math.inf if band.upper is None else band.upper.value


def within(band: Band, others: Sequence[Band]) -> bool:
    """Whether a band lies inside one of the others."""
    return any(lower_of(o) <= lower_of(band) and upper_of(band) <= upper_of(o) for o in others)


def total_length(some: Sequence[Band]) -> float:
    """The total length of bands."""
    return sum(upper_of(band) - lower_of(band) for band in some)


def found_along_the_curve(objective: Objective, case: Case) -> dict[str, Bracket]:
    """The ends of all bands in ``s``, the singular minima, and how far the closed forms are away."""
    found: dict[str, Bracket] = {}
    for name, all_bands in (("GD", case.gd_bands), ("SGD", case.sgd_bands)):
        for number, band in enumerate(half(all_bands), 1):
            which = f"{name}-stable band {number}"
            if band.lower is not None:
                found[f"{which}, s from"] = squared_norm(band.lower)
            if band.upper is not None:
                found[f"{which}, s to"] = squared_norm(band.upper)
                found[f"{which}, t1 to"] = band.upper
    for pole in case.poles:
        if pole.value > 1:
            found["lambda = -inf at s"] = squared_norm(pole)
    flattest = minimum(1.0)
    found["mu at t1 = t2 = 1"] = gd_exponent(objective.weighted(case.probabilities), flattest, case.step_size)
    found["lambda at t1 = t2 = 1"] = sgd_exponent(
        objective, flattest, case.step_size, probabilities=case.probabilities
    )
    for name, difference in closed_form_differences(case).items():
        found[f"largest difference of exp({name}) from the closed form"] = difference
    return found


def closed_form_differences(case: Case) -> dict[str, Bracket]:
    """How far the general functions are from ``mu = log|1 - eta h s|`` and ``lambda = E log|1 - eta x^2 s|``.

    Singular minima, where ``lambda`` is minus infinity, are left out.
    """
    t1 = case.sets["t1"].values
    regular = ~np.isin(t1, [pole.value for pole in case.poles])
    s = np.sum(np.stack([minimum(t) for t in t1[regular]]) ** 2, axis=1)
    factors = np.abs(1 - case.step_size * np.outer(s, POINTS**2))
    exact = {
        "mu": np.abs(1 - case.step_size * s * (case.probabilities @ POINTS**2)),
        "lambda": np.prod(factors**case.probabilities, axis=1),
    }
    differences = {}
    for name, variable in (("mu", "gd_exponent"), ("lambda", "sgd_exponent")):
        largest = float(np.abs(np.exp(case.sets[variable].values[regular]) - exact[name]).max())
        words = f"largest over {len(s)} minima; as large as the rounding of either"
        differences[name] = Bracket(largest, 0.0, 2 * largest, "computed", words)
    return differences


def what_was_run(case: Case) -> str:
    """The computation along the curve in a sentence."""
    t1 = case.sets["t1"].values
    return (
        f"mu and lambda by the functions for any network at {len(t1)} minima (t1, 1/t1), t1 from {t1[0]:.4g} to "
        f"{t1[-1]:.4g} (beyond, every sample's step expands), at step size {case.step_size:g} with the first "
        f"sample drawn with probability {case.probabilities[0]:g}; the bands end at roots of these functions."
    )


# Data and picture ------------------------------------------------------------------------------------------------


def dataset(cases: Sequence[Case]) -> xr.Dataset:
    """Everything drawn: the exponents along the curves and the simulations, with the number of their case."""
    along, seen = [], []
    for number, case in enumerate(cases):
        curve = case.sets.reset_coords()
        per_minimum = [str(name) for name in curve.data_vars if "minimum" in curve[name].dims]
        along.append(curve[per_minimum].assign(case=("minimum", np.full(curve.sizes["minimum"], number))))
        names = {str(name): f"simulated_{name}" for name in case.simulations.data_vars}
        numbers = np.full(case.simulations.sizes["simulation"], number)
        seen.append(case.simulations.rename(names).assign(simulated_case=("simulation", numbers)))
    settings = {
        "step_size": ("setting", [case.step_size for case in cases], {"long_name": "step size of the case"}),
        "probability": (
            "setting",
            [case.probabilities[0] for case in cases],
            {"long_name": "probability of the first sample in the case"},
        ),
    }
    joined = [xr.concat(along, "minimum"), xr.concat(seen, "simulation"), xr.Dataset(settings)]
    together = xr.merge(joined, combine_attrs="drop", join="outer", compat="no_conflicts")
    return together.assign_attrs(status="exponents computed, shares estimated", source=PAPER)


def figure(cases: Sequence[Case]) -> Figure:
    """Above the minima in the plane, coloured by who can end there; the exponents below; then the simulations."""
    picture = Figure(figsize=(9.6, 9.2), layout="constrained")
    axes = picture.subplots(3, len(cases), height_ratios=[1.5, 1.2, 0.8], squeeze=False)
    for column, case in enumerate(cases):
        draw_plane(axes[0, column], case)
        draw_exponents(axes[1, column], case)
        draw_shares(axes[2, column], case)
        axes[1, column].sharex(axes[2, column])
        axes[1, column].tick_params(labelbottom=False)
    handles = [axes[0, 0].plot([], [], color=colour, lw=4, label=name)[0] for name, colour in COLOURS.items()]
    handles += axes[1, 0].get_lines()[:2] + [axes[2, 0].containers[k] for k in range(2)]
    labels = ["GD- and SGD-stable", "GD-stable only", "SGD-stable only", "neither", "mu (GD)", "lambda (SGD)"]
    labels += ["GD runs that return", "SGD runs that return"]
    picture.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return picture


def pieces(case: Case) -> list[tuple[float, float, str]]:
    """The curve cut at the ends of the bands: from, to, and who is stable there."""
    t1 = case.sets["t1"].values
    ends = {b.value for band in (*case.gd_bands, *case.sgd_bands) for b in band if b is not None}
    cuts = [t1[0], *sorted(ends), t1[-1]]
    return [
        (low, high, stability(math.sqrt(low * high), case.gd_bands, case.sgd_bands))
        for low, high in itertools.pairwise(cuts)
    ]


def draw_plane(axes, case: Case) -> None:  # type: ignore[no-untyped-def]
    """The minima ``t1 t2 = 1`` in the plane."""
    lines, colours = [], []
    for low, high, kind in pieces(case):
        along = np.geomspace(low, high, 60)
        lines.append(np.stack([along, 1 / along], axis=1))
        colours.append(list(COLOURS).index(kind))
    axes.add_collection(
        LineCollection(
            lines,
            array=np.array(colours),
            cmap=ListedColormap(list(COLOURS.values())),
            clim=(-0.5, len(COLOURS) - 0.5),
            linewidths=4,
            capstyle="butt",
        )
    )
    end = float(case.sets["t1"].values[-1])
    axes.set(xlim=(0, end), ylim=(0, end), aspect="equal", xlabel="t1", ylabel="t2")
    axes.set_title(f"step size {case.step_size:g}, p = {case.probabilities[0]:g}")
    axes.grid(alpha=0.25, linewidth=0.6)


def draw_exponents(axes, case: Case) -> None:  # type: ignore[no-untyped-def]
    """``mu`` and ``lambda`` along the curve."""
    t1 = case.sets["t1"].values
    for low, high, kind in pieces(case):
        axes.axvspan(low, high, color=COLOURS[kind], alpha=0.18, lw=0)
    axes.plot(t1, np.maximum(case.sets["gd_exponent"].values, -9), color="#000000", lw=1.4)
    axes.plot(t1, np.maximum(case.sets["sgd_exponent"].values, -9), color="#CC79A7", lw=1.8)
    axes.axhline(0, color="black", lw=0.8)
    axes.set(xscale="log", xlim=(t1[0], t1[-1]), ylim=(-1.6, 1.6), ylabel="exponent per step")


def draw_shares(axes, case: Case) -> None:  # type: ignore[no-untyped-def]
    """Simulated shares with their intervals."""
    seen = case.simulations
    for optimiser, (colour, marker) in enumerate((("#000000", "s"), ("#CC79A7", "o"))):
        farthest = seen["distance"].values == seen["distance"].values.max()
        chosen = np.flatnonzero((seen["optimiser"].values == optimiser) & farthest)
        share = seen["share"].values[chosen]
        below = np.maximum(share - seen["share_lower"].values[chosen], 0)
        above = np.maximum(seen["share_upper"].values[chosen] - share, 0)
        axes.errorbar(
            seen["t1"].values[chosen],
            share,
            yerr=[below, above],
            fmt=marker,
            ms=5,
            color=colour,
            mfc=colour if optimiser else "none",
            capsize=2,
        )
    for low, high, kind in pieces(case):
        axes.axvspan(low, high, color=COLOURS[kind], alpha=0.18, lw=0)
    ticks = [0.25, 0.5, 1, 2, 4]
    axes.set(ylim=(-0.08, 1.08), xlabel="t1 (t2 = 1 / t1)", ylabel="share that returns")
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()

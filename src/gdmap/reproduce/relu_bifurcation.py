"""Cycles of gradient descent on a two-sample ReLU network, and their bifurcations (arXiv:2510.24466, figure 3)."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gdmap.bracket import Bracket
from gdmap.continuation import Branch, Cascade, Event, cascade, continue_orbit, switch_branch
from gdmap.ensembles import Fate, ensemble, fate_names
from gdmap.flags import flag_attributes
from gdmap.maps import GradientDescent
from gdmap.objectives import Objective
from gdmap.orbits import (
    NoOrbitError,
    PeriodicOrbit,
    lyapunov_spectrum,
    orbit_at,
    orbit_diagram,
    periodic_orbits,
    trajectory,
)
from gdmap.plots.orbits import HALVES, smooth_curve
from gdmap.reproduce.gd_vs_sgd_stability import POINTS, PRINTED, minimum, network
from gdmap.reproduce.papers import NON_SINGULARITY as PAPER
from gdmap.reproduce.report import Agreement, Claim, Report, number_of

NAME = "relu-bifurcation"
TITLE = "Bifurcations of gradient descent on a two-sample ReLU network"
STATEMENTS = (
    "On the diagonal theta_1 = theta_2 gradient descent has periodic orbits, stable and unstable ones, that "
    "appear as the step size grows: a bifurcation diagram.",
    "Whether a periodic orbit of period k is stable is told by both eigenvalues of the derivative of G^k, a 2 x 2 "
    "matrix: it is if their moduli are below 1.",
    "From (1.48, 1/1.48 + 0.1) gradient descent with step size 0.25 converges to a minimum.",
    "From (1.48, 1/1.48 + 0.1) gradient descent with step size 0.325 converges to an orbit of period two.",
    "The loss of the experiment is L = 3.53 (1 - u)^2 with u = relu(theta_2 relu(theta_1)).",
    "The coefficient is 3.51 (in one place; 3.53 in the others).",
)

# The experiment: step sizes looked at, where continuation begins, and the two trajectories.
BOUNDS = (0.2, 0.47)
BEGUN, SEARCHED, CHAOTIC = 0.25, 0.42, 0.44
START = np.array([1.48, 1 / 1.48 + 0.1])
STEP_SIZES = (0.25, 0.325)
# Sizes of the runs: quick, full.
DOUBLINGS = (4, 6)
# Of the doublings drawn: how many, and how closely the branches are followed.
DRAWN, DRAWN_STEP = 3, 0.03
COLUMNS, STARTS, TRANSIENT, SAMPLES = (160, 700), 4, (1_000, 4_000), (40, 120)
DYING_STARTS, DYING_STEPS, DYING_WIDTH = (64, 256), (4_000, 20_000), (1e-7, 1e-9)
LYAPUNOV_STEPS = (20_000, 200_000)
STEPS = 1_500
# A change of the start by which the sensitivity of the limit to rounding is measured.
NUDGE = 1e-7

COLOURS = {1: "#000000", 2: "#0072B2", 4: "#D55E00", 8: "#009E73", 3: "#CC79A7"}

Progress = Callable[[int, int], None]


class Diagram(NamedTuple):
    """The cycles on the diagonal: branches, the cascade, the fold of period 3, the end, and sampled orbits."""

    branches: list[Branch]
    cascade: Cascade
    fold: Event
    death: Bracket
    exponents: xr.Dataset
    sampled: xr.Dataset


class Run(NamedTuple):
    """A trajectory: its states, its fate, and the periodic orbit it ends on if Newton's method finds one there."""

    step_size: float
    states: np.ndarray
    fate: str
    orbit: PeriodicOrbit | None


def run(quick: bool = False, seed: int = 0, progress: Progress | None = None) -> Report:
    """Compute both panels of the figure and compare with the statements and with closed forms."""
    size = 0 if quick else 1
    done = 0

    def finished() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, 3)

    objective = network()
    diagram = cycles_on_the_diagonal(objective, size, seed)
    finished()
    runs = [followed(objective, step_size) for step_size in STEP_SIZES]
    finished()
    printed = printed_network()
    as_printed = [followed(printed, step_size) for step_size in STEP_SIZES]
    finished()
    claims = (
        diagram_claim(diagram),
        stability_claim(diagram),
        minimum_claim(objective, runs[0]),
        period_two_claim(runs[1]),
        loss_claim(runs, as_printed),
        coefficient_claim(diagram.cascade.events[0]),
    )
    figures = {"bifurcation_diagram": diagram_figure(diagram), "trajectories": plane_figure(runs)}
    return Report(NAME, TITLE, PAPER, claims, dataset(diagram, runs, as_printed), figures, quick)


# The network and its closed forms --------------------------------------------------------------------------------
#
# The loss is (c / 2) (1 - u)^2 with c the mean of x^2. On the diagonal theta = (x, x), x > 0, with a = eta c,
#     x -> (1 + a) x - a x^3,
# and DG has the eigenvalues 1 + a - 3 a x^2 along the diagonal and 1 - a + a x^2 across it.

C = float(np.mean(POINTS**2))


def printed_network() -> Objective:
    """The network with the whole square as the loss of a sample: the mean is ``c (1 - u)^2``, as printed."""

    def loss(t: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return (y - jax.nn.relu(t[1] * jax.nn.relu(t[0] * x))) ** 2

    return Objective(loss, np.ones(2), data=(POINTS, POINTS))


def cubic(a: float, x: np.ndarray) -> np.ndarray:
    """The map on the diagonal."""
    return (1 + a) * x - a * x**3


def along(a: Any, x: np.ndarray) -> np.ndarray:
    """The eigenvalue of ``DG`` along the diagonal."""
    return 1 + a - 3 * a * x**2


def across(a: Any, x: np.ndarray) -> np.ndarray:
    """The eigenvalue of ``DG`` across the diagonal."""
    return 1 - a + a * x**2


def exact_bifurcation(event: Event) -> Bracket:
    """The step size at which a cycle of the cubic map has the multiplier of an event exactly.

    The equations ``f(x_i) = x_{i+1}``, ``(f^p)' = -1`` or ``1`` are solved by Newton's method from the event.
    """
    x, a, target = event.points[:, 0].copy(), C * event.parameter, round(event.multiplier.real)
    p = len(x)
    for _ in range(20):
        slopes = along(a, x)
        product = np.prod(slopes)
        residual = np.append(cubic(a, x) - np.roll(x, -1), product - target)
        jacobian = np.zeros((p + 1, p + 1))
        jacobian[:p, :p] = np.diag(slopes) - np.roll(np.eye(p), 1, axis=1)
        jacobian[:p, p] = x - x**3
        jacobian[p, :p] = -6 * a * x * product / slopes
        jacobian[p, p] = product * np.sum((1 - 3 * x**2) / slopes)
        correction = np.linalg.solve(jacobian, residual)
        x, a = x - correction[:p], a - correction[p]
    row = np.abs(np.linalg.inv(jacobian)[p])
    error = (row @ (np.abs(residual) + 8 * p * np.finfo(float).eps * np.append(np.abs(x), abs(target)))) / C
    return Bracket(a / C, a / C - error, a / C + error, "computed", "closed form of the map; Newton's method")


def exact_accumulation(levels: int = 11) -> Bracket:
    """Where the period doublings of the cubic map end: the limit of the superstable cycles of period ``2^n``.

    At ``a_n`` the critical point ``x_c = sqrt((1 + a) / (3 a))`` has period ``2^n``: ``a_0 = 1/2`` and ``a_1 = 3 /
    sqrt(2) - 1``, the others by Newton's method; the limit by Aitken's extrapolation, its error the last change.
    """
    values = [0.5, 3 / math.sqrt(2) - 1]
    for level in range(2, levels):
        ratio = (values[-2] - values[-3]) / (values[-1] - values[-2]) if level > 2 else 5.0
        a = values[-1] + (values[-1] - values[-2]) / ratio
        for _ in range(30):
            critical = math.sqrt((1 + a) / (3 * a))
            moved = -1 / (6 * a**2 * critical)
            x, rate = critical, moved
            for _ in range(2**level):
                rate = (1 + a - 3 * a * x**2) * rate + x - x**3
                x = (1 + a) * x - a * x**3
            a -= (x - critical) / (rate - moved)
        values.append(a)
    ends = [
        z - (z - y) ** 2 / (z - 2 * y + x) for x, y, z in zip(values[-4:], values[-3:], values[-2:], strict=False)
    ]
    value, error = ends[-1] / C, (abs(ends[-1] - ends[-2]) + 64 * np.finfo(float).eps) / C
    return Bracket(value, value - error, value + error, "computed", "superstable cycles of the cubic map, Aitken")


def exact_death() -> Bracket:
    """Where the maximum of the cubic map is mapped to 0, where the network dies: ``a = 3 sqrt(3) / 2 - 1``."""
    value = (3 * math.sqrt(3) / 2 - 1) / C
    return Bracket(value, value - 1e-15, value + 1e-15, "computed", "f(f(x_c)) = 0 in closed form")


# The left panel --------------------------------------------------------------------------------------------------


def diagonal(x: np.ndarray) -> np.ndarray:
    """The parameters ``(x, x)``."""
    return np.stack([x, x], axis=1)


def cycles_on_the_diagonal(objective: Objective, size: int, seed: int) -> Diagram:
    """The branches of period 1, 2, 4, 8 and 3, their bifurcations, and where orbits go."""
    flattest = orbit_at(GradientDescent(objective, BEGUN), minimum(1.0))
    doublings = cascade(flattest, bounds=BOUNDS, doublings=DOUBLINGS[size])
    branches = [continue_orbit(flattest, bounds=BOUNDS)]
    for event in doublings.events[:DRAWN]:
        doubled = switch_branch(event, BOUNDS, largest_step=DRAWN_STEP)
        # The first step from the doubling is a long one: the full picture follows the way back in short ones.
        branches.append(
            continue_orbit(doubled.orbit(1), bounds=BOUNDS, step=0.002, largest_step=DRAWN_STEP)
            if size
            else doubled
        )
    third = continue_orbit(cycle_of_period_three(objective), bounds=BOUNDS, largest_step=DRAWN_STEP)
    folds = [event for event in third.events if event.kind == "fold"]
    if not folds:
        raise RuntimeError(f"the branch of period 3 has no fold: {third.explain()}")
    death = where_orbits_die(objective, size)
    exponents = lyapunov_spectrum(
        GradientDescent(objective, CHAOTIC), minimum(1.0) * 0.9, steps=LYAPUNOV_STEPS[size], seed=seed
    )
    sampled = orbit_diagram(
        GradientDescent(objective, BEGUN),
        np.linspace(*BOUNDS, COLUMNS[size]),
        diagonal(np.linspace(0.6, 0.95, STARTS)),
        transient=TRANSIENT[size],
        samples=SAMPLES[size],
        observable=first_component,
    )
    return Diagram([*branches, third], doublings, folds[0], death, exponents, sampled)


def first_component(state: jax.Array) -> jax.Array:
    """``theta_1``."""
    return state[0]


def cycle_of_period_three(objective: Objective) -> PeriodicOrbit:
    """An isolated orbit of period 3 on the diagonal, by a search at one step size."""
    found = periodic_orbits(GradientDescent(objective, SEARCHED), 3, diagonal(np.linspace(0.05, 1.2, 24)))
    isolated = [
        orbit for orbit in found if orbit.neutral_dimension == 0 and np.ptp(orbit.points, axis=1).max() < 1e-9
    ]
    if not isolated:
        raise RuntimeError(f"no orbit of period 3 was found on the diagonal: {found.explain()}")
    return isolated[0]


def where_orbits_die(objective: Objective, size: int) -> Bracket:
    """The step size from which orbits on the diagonal leave ``x > 0``, by bisection of samples."""
    map_ = GradientDescent(objective, BEGUN)
    starts = diagonal(np.linspace(0.5, 0.95, DYING_STARTS[size]))

    def some_die(step_size: float) -> bool:
        last = orbit_diagram(
            map_, [step_size], starts, transient=DYING_STEPS[size], samples=1, observable=first_component
        )
        return bool((last["observable"].values <= 0).any())

    low, high = BOUNDS
    if some_die(low) or not some_die(high):
        raise RuntimeError(f"orbits do not begin to die between the step sizes {low:g} and {high:g}")
    while high - low > DYING_WIDTH[size]:
        middle = (low + high) / 2
        low, high = (low, middle) if some_die(middle) else (middle, high)
    words = f"bisection: of {len(starts)} orbits of {DYING_STEPS[size]:,} steps none dies below, some above"
    return Bracket((low + high) / 2, low, high, "estimated", words)


# The right panel -------------------------------------------------------------------------------------------------


def followed(objective: Objective, step_size: float) -> Run:
    """The trajectory from the start, its fate, and the orbit it ends on: a fixed point unless it is periodic."""
    map_ = GradientDescent(objective, step_size)
    states = trajectory(map_, START, STEPS, "state")["state"].values
    judged = ensemble(map_, START[None], STEPS)
    fate = fate_names(judged)[0]
    period = max(1, int(judged["period"].values[0]))
    orbit: PeriodicOrbit | None
    try:
        orbit = orbit_at(map_, states[len(states) - period :])
    except NoOrbitError:
        orbit = None
    return Run(step_size, states, fate, orbit)


def settles(run: Run, period: int) -> bool:
    """Whether the trajectory settles on a stable orbit of this period: a minimum, or a cycle."""
    orbit, fate = run.orbit, "minimum" if period == 1 else "periodic"
    if orbit is None or dead_from(run) is not None:
        return False
    apart = float(np.abs(run.states[-orbit.period :] - orbit.points).max())
    return run.fate == fate and orbit.period == period and orbit.stable and apart < 1e-9


def dead_from(run: Run) -> int | None:
    """The first step at which a parameter is negative, after which nothing moves; ``None`` if there is none."""
    below = np.flatnonzero(run.states.min(axis=1) < 0)
    if not len(below) or np.any(run.states[below[0] :] != run.states[below[0]]):
        return None
    return int(below[0])


def limit_error(objective: Objective, run: Run) -> np.ndarray:
    """How far rounding may have moved the limit along the minima: every step rounds, amplified as a nudge is."""
    map_ = GradientDescent(objective, run.step_size)
    nudged = [trajectory(map_, START + NUDGE * e, STEPS, "state")["state"].values[-1] for e in np.eye(2)]
    amplification = np.max([np.abs(end - run.states[-1]) for end in nudged], axis=0) / NUDGE
    moving = int(np.sum(np.any(np.diff(run.states, axis=0) != 0, axis=1)))
    return (1 + 2 * amplification) * moving * np.finfo(float).eps * np.abs(run.states).max()


# Claims ----------------------------------------------------------------------------------------------------------


def count(value: int, words: str) -> Bracket:
    """A whole number."""
    return Bracket(float(value), float(value), float(value), "computed", words)


def difference(found: Bracket, exact: Bracket) -> Bracket:
    """How far the two are apart; the interval holds 0 if their intervals meet."""
    value = found.value - exact.value
    return Bracket(value, found.lower - exact.upper, found.upper - exact.lower, "computed", "found minus exact")


def located(diagram: Diagram) -> list[tuple[str, Bracket, Bracket]]:
    """Every special step size: its name, as found by the general functions, and exactly."""
    rows = [
        (f"doubling of period {event.period}", event.bracket, exact_bifurcation(event))
        for event in diagram.cascade.events
    ]
    if diagram.cascade.accumulation is not None:
        rows.append(("accumulation of the doublings", diagram.cascade.accumulation, exact_accumulation()))
    rows.append(("period 3 appears", diagram.fold.bracket, exact_bifurcation(diagram.fold)))
    rows.append(("orbits die from", diagram.death, exact_death()))
    return rows


def diagram_claim(diagram: Diagram) -> Claim:
    """The bifurcation diagram, every special point beside its exact value."""
    rows = located(diagram)
    found: dict[str, Bracket] = {}
    for name, value, exact in rows:
        found[name] = value
        found[f"{name}, exact"] = exact
    for number, ratio in enumerate(diagram.cascade.ratios, 1):
        found[f"Feigenbaum ratio {number}"] = ratio
    for name, exponent in (("along", 0), ("across", 1)):
        found[f"Lyapunov exponent {exponent + 1} at step size {CHAOTIC:g} ({name} the diagonal)"] = of_dataset(
            diagram.exponents, exponent
        )
    met = [abs(value.value - exact.value) <= reach(value) + reach(exact) for _, value, exact in rows]
    both = [bool(branch.stable.any() and not branch.stable.all()) for branch in diagram.branches]
    agrees: Agreement = "yes" if all(met) and all(both) else "no"
    events = diagram.cascade.events
    supercritical = sum(event.criticality == "supercritical" for event in events)
    periods = ", ".join(str(branch.period) for branch in sorted(diagram.branches, key=lambda one: one.period))
    conclusion = (
        f"Cycles of period {periods} were followed; {sum(both)} of {len(both)} branches have a stable and an "
        f"unstable part. {supercritical} of {len(events)} period doublings are supercritical; from step size "
        f"{number_of(diagram.fold.bracket)} there are cycles of period 3, and so of every period (Li & Yorke); "
        f"from {number_of(diagram.death)} orbits leave the quadrant, where the network is zero and nothing moves "
        f"any more. {sum(met)} of {len(met)} of these step sizes agree with the exact ones within their errors."
    )
    return Claim(
        STATEMENTS[0],
        "Figure 3, left",
        "Pseudo-arclength continuation from the minimum (1, 1) in the plane, switching to the doubled orbits; a "
        f"search for cycles of period 3 at step size {SEARCHED:g}, continued both ways; bisection of sampled "
        f"orbits. The exact values are those of x -> (1 + a) x - a x^3, a = {C:g} eta, solved by themselves. That "
        "the attractor dies, and where, goes beyond the statement.",
        found,
        agrees,
        conclusion,
        figure="bifurcation_diagram",
    )


def reach(bracket: Bracket) -> float:
    """The larger half of an interval."""
    return max(bracket.upper - bracket.value, bracket.value - bracket.lower)


def of_dataset(exponents: xr.Dataset, k: int) -> Bracket:
    """One Lyapunov exponent with its interval."""
    one = exponents.isel(k=k)
    return Bracket(
        float(one["exponent"]),
        float(one["lower"]),
        float(one["upper"]),
        "estimated",
        "QR along one orbit",
        confidence=exponents.attrs["confidence"],
    )


class Compared(NamedTuple):
    """Multipliers of a branch in closed form, and how far the continued ones are away, relative to their size."""

    along: np.ndarray
    across: np.ndarray
    apart: float


def compared(branch: Branch) -> Compared:
    """The multipliers along and across the diagonal of every orbit on a branch."""
    a = C * branch.parameter[:, None]
    x = branch.points[:, :, 0]
    exact = np.stack([np.prod(along(a, x), axis=1), np.prod(across(a, x), axis=1)], axis=1)
    if branch.neutral_dimension:
        one = exact[:, :1]
        off = np.abs(branch.multipliers - one) / np.maximum(1, np.abs(one))
        return Compared(exact[:, 0], exact[:, 1], float(max(off.max(), np.abs(exact[:, 1] - 1).max())))
    pairs = []
    for order in (exact, exact[:, ::-1]):
        pairs.append((np.abs(branch.multipliers - order) / np.maximum(1, np.abs(order))).max(axis=1))
    return Compared(exact[:, 0], exact[:, 1], float(np.min(pairs, axis=0).max()))


def stability_claim(diagram: Diagram) -> Claim:
    """Both multipliers of every cycle against their closed forms, and which of them decides."""
    found: dict[str, Bracket] = {}
    orbits, wrong, decided_across, largest = 0, 0, 0, 0.0
    for branch in diagram.branches:
        checked = compared(branch)
        largest = max(largest, checked.apart)
        moduli = np.abs(np.stack([checked.along, checked.across]))
        moduli = moduli[:1] if branch.neutral_dimension else moduli
        sure = branch.stability != "marginal"
        orbits += int(sure.sum())
        wrong += int(np.sum((moduli.max(axis=0) < 1) != branch.stable, where=sure))
        decided_across += int(np.sum((moduli[0] < 1) & (moduli.max(axis=0) > 1), where=sure))
        name = f"neutral dimension, period {branch.period}"
        found[name] = count(branch.neutral_dimension, "verified by moving along the null direction")
    two = next(branch for branch in diagram.branches if branch.period == 2)
    for step_size in (0.3, STEP_SIZES[1], 0.4):
        for orbit in two.at(step_size):
            r = 1 + C * step_size
            exact = sorted([9 - 2 * r * r, 5 - 2 * r], key=abs, reverse=True)
            for value, error, closed in zip(orbit.multipliers.real, orbit.multiplier_errors, exact, strict=True):
                which = "along" if closed == 9 - 2 * r * r else "across"
                words = f"eigenvalue of DG^2; the closed form gives {closed:.12g}"
                error = max(error, abs(value - closed))
                found[f"2-cycle at {step_size:g}, multiplier {which}"] = Bracket(
                    float(value), float(value - error), float(value + error), "computed", words
                )
    found["largest difference of a multiplier from the closed form, relative"] = Bracket(
        largest, 0.0, 2 * largest, "computed", f"largest over {orbits} orbits"
    )
    found["orbits told otherwise by the closed forms"] = count(wrong, f"of {orbits}")
    found["cycles stable along the diagonal, unstable across"] = count(decided_across, f"of {orbits}")
    right = wrong == 0 and largest < 1e-6
    neutral = [branch for branch in diagram.branches if branch.neutral_dimension and branch.stable.any()]
    agrees: Agreement = "no" if not right else "corrected" if neutral else "yes"
    conclusion = (
        f"The stability found for {orbits - wrong} of {orbits} orbits is that of the closed forms of both "
        "multipliers. "
    )
    if neutral:
        conclusion += (
            "But (1, 1) is no isolated orbit: it lies on the curve theta_1 theta_2 = 1 of minima, where the "
            "multiplier along the curve (across the diagonal) is 1, so that the condition with both moduli below "
            "1 fails at every minimum; there it has to be read for the other multiplier. The cycles of higher "
            "period are isolated in the plane. "
        )
    conclusion += (
        "On these branches the multiplier across the diagonal never changes the verdict."
        if decided_across == 0
        else f"At {decided_across} orbits it is the multiplier across the diagonal that decides."
    )
    return Claim(
        STATEMENTS[1],
        "Figure 3, left",
        f"The multipliers of {orbits} orbits on the branches, in the plane, beside the products of 1 + a - 3 a "
        "x^2 (along the diagonal) and 1 - a + a x^2 (across it); the 2-cycle has 9 - 2 r^2 and 5 - 2 r with r = 1 "
        "+ a.",
        found,
        agrees,
        conclusion,
        figure="bifurcation_diagram",
    )


def minimum_claim(objective: Objective, run: Run) -> Claim:
    """Which minimum the first trajectory converges to."""
    end, error = run.states[-1], limit_error(objective, run)
    words = f"{STEPS} steps; rounding of each step, amplified as a change of the start is"
    found = {
        f"theta_{i + 1} at the end": Bracket(float(x), float(x - e), float(x + e), "computed", words)
        for i, (x, e) in enumerate(zip(end, error, strict=True))
    }
    s, slack = float(np.sum(end**2)), float(2 * np.abs(end) @ error)
    found["theta_1^2 + theta_2^2 at the end"] = Bracket(s, s - slack, s + slack, "computed", "of the end")
    off, slack = float(abs(end[0] * end[1] - 1)), 4 * np.finfo(float).eps
    found["|theta_1 theta_2 - 1| at the end"] = Bracket(off, 0.0, off + slack, "computed", "up to rounding")
    converged = settles(run, 1)
    conclusion = f"Its fate is '{run.fate}'; it ends at ({end[0]:.6f}, {end[1]:.6f})."
    if run.orbit is not None:
        found["largest multiplier but that along the minima"] = across_family(run.orbit)
        found["neutral dimension"] = count(run.orbit.neutral_dimension or 0, "verified by moving along it")
        if converged:
            conclusion += " This minimum is stable at this step size; another start leads to another minimum."
    return Claim(
        STATEMENTS[2],
        "Figure 3, right",
        f"{STEPS} steps from the start, judged as in every ensemble; the end refined as a fixed point.",
        found,
        "yes" if converged else "no",
        conclusion,
        figure="trajectories",
    )


def across_family(orbit: PeriodicOrbit) -> Bracket:
    """The largest multiplier that is not one of the family's."""
    keep = np.argsort(np.abs(orbit.multipliers - 1), kind="stable")[orbit.neutral_dimension or 0 :]
    k = keep[np.argmax(np.abs(orbit.multipliers[keep]))]
    value, error = float(orbit.multipliers[k].real), float(orbit.multiplier_errors[k])
    return Bracket(value, value - error, value + error, "computed", "eigenvalue of DG")


def period_two_claim(run: Run) -> Claim:
    """The 2-cycle the second trajectory settles on."""
    found: dict[str, Bracket] = {}
    settled = settles(run, 2)
    conclusion = f"Its fate is '{run.fate}'."
    if run.orbit is not None:
        orbit = run.orbit
        found["period"] = count(orbit.period, "minimal")
        for i, point in enumerate(orbit.points):
            for k, x in enumerate(point):
                found[f"theta_{k + 1} at phase {i + 1}"] = Bracket(
                    float(x), float(x - orbit.error), float(x + orbit.error), "computed", "Newton's method"
                )
        for i, (value, error) in enumerate(zip(orbit.multipliers.real, orbit.multiplier_errors, strict=True)):
            found[f"multiplier {i + 1}"] = Bracket(
                float(value), float(value - error), float(value + error), "computed", "eigenvalue of DG^2"
            )
        apart = float(np.abs(run.states[-orbit.period :] - orbit.points).max())
        found["distance of the last states from it"] = Bracket(
            apart, 0.0, apart + orbit.error, "computed", "largest difference of a component"
        )
        off = float(np.ptp(orbit.points, axis=1).max())
        conclusion += f" It ends on an orbit of period {orbit.period} that is {orbit.stability} in the plane"
        conclusion += f", on the diagonal up to {off:.1g}." if off < 1e-9 else ", off the diagonal."
    return Claim(
        STATEMENTS[3],
        "Figure 3, right",
        f"{STEPS} steps from the start, judged as in every ensemble; the last states refined as a periodic orbit.",
        found,
        "yes" if settled else "no",
        conclusion,
        figure="trajectories",
    )


def loss_claim(runs: Sequence[Run], as_printed: Sequence[Run]) -> Claim:
    """What becomes of the trajectories with the loss as printed, and with half of it."""
    found: dict[str, Bracket] = {}
    readings = ((f"{C:g} (1 - u)^2", 1.0, as_printed), (f"{C / 2:g} (1 - u)^2", 2.0, runs))
    for name, scale, some in readings:
        critical = scale / (2 * C)
        slack = 4 * np.finfo(float).eps * critical
        found[f"L = {name}: critical step size"] = Bracket(
            critical, critical - slack, critical + slack, "computed", "2 / sharpness at (1, 1)"
        )
        for run in some:
            dead = dead_from(run)
            where = f"L = {name}, step size {run.step_size:g}"
            if dead is not None:
                words = "first step with a negative parameter; from then on nothing moves"
                found[f"{where}: dies at step"] = count(dead, words)
            elif run.orbit is not None:
                found[f"{where}: ends with period"] = count(run.orbit.period, "minimal period")
    described = [
        [settles(run, period) for run, period in zip(some, (1, 2), strict=True)] for _, _, some in readings
    ]
    dying = sum(dead_from(run) is not None for run in as_printed)
    agrees: Agreement = "yes" if all(described[0]) else "corrected" if all(described[1]) else "no"
    conclusion = (
        f"With L = {readings[0][0]} {dying} of {len(as_printed)} trajectories die: a parameter becomes negative, "
        f"the network is zero and the gradient vanishes; {sum(described[0])} are as described. With L = "
        f"{readings[1][0]}, the mean of half the squared errors, {sum(described[1])} of {len(runs)} are."
    )
    return Claim(
        STATEMENTS[4],
        "Appendix C and figure 3",
        f"Both trajectories, {STEPS} steps, with the squared error of a sample as its loss and with half of it.",
        found,
        agrees,
        conclusion,
        figure="trajectories",
    )


def coefficient_claim(doubling: Event) -> Claim:
    """The coefficient from the first period doubling, where the step size is ``1 / c``."""
    at = doubling.bracket
    value = Bracket(1 / at.value, 1 / at.upper, 1 / at.lower, "computed", "1 / (step size of the first doubling)")
    exact = Bracket(C, C - 1e-15, C + 1e-15, "computed", "mean of the squared inputs")
    right = abs(value.value - C) <= reach(value) + 1e-14
    wrong = [c for c in PRINTED if abs(c - value.value) > 1e-3]
    agrees: Agreement = "no" if not right else "corrected" if wrong else "yes"
    return Claim(
        STATEMENTS[5],
        "Appendix C",
        "The first period doubling of the minimum (1, 1), where the step size is 2 / (2 c).",
        {"coefficient from the first doubling": value, "coefficient from the data": exact},
        agrees,
        f"It is {value.value:.6g}, the mean of the squared inputs; of the printed numbers "
        f"{', '.join(f'{c:g}' for c in wrong) or 'none'} {'is' if len(wrong) == 1 else 'are'} wrong.",
    )


# Data and pictures -----------------------------------------------------------------------------------------------


def dataset(diagram: Diagram, runs: Sequence[Run], as_printed: Sequence[Run]) -> xr.Dataset:
    """Everything drawn: branches over ``point``, sampled orbits, trajectories."""
    longest = max(branch.period for branch in diagram.branches)
    parts: dict[str, list[np.ndarray]] = {
        name: [] for name in ("step_size", "period", "cycle", "stable", "margin")
    }
    for branch in diagram.branches:
        n = len(branch.parameter)
        padded = np.full((n, longest), np.nan)
        padded[:, : branch.period] = branch.points[:, :, 0]
        for name, values in (
            ("step_size", branch.parameter),
            ("period", np.full(n, branch.period)),
            ("cycle", padded),
            ("stable", branch.stable),
            ("margin", branch.margin),
        ):
            parts[name].append(values)
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    events = [*diagram.cascade.events, diagram.fold]
    words = {
        "step_size": "step size on the branch",
        "period": "period",
        "cycle": "theta_1 = theta_2 at every phase",
        "stable": "whether it attracts in the plane",
        "margin": "1 - largest modulus of a multiplier across the family",
    }
    variables: dict[str, Any] = {
        name: (("point", "phase") if name == "cycle" else "point", joined[name], {"long_name": words[name]})
        for name in words
    }
    variables |= {
        "event_step_size": ("event", [event.parameter for event in events], {"long_name": "step size"}),
        "event_error": ("event", [event.error for event in events], {"long_name": "error of the step size"}),
        "event_period": ("event", [event.period for event in events], {"long_name": "period"}),
        "event_is_fold": (
            "event",
            [event.kind == "fold" for event in events],
            {"long_name": "fold, not doubling"},
        ),
        "sampled": (
            ("value", "start", "sample"),
            diagram.sampled["observable"].values[0],
            {"long_name": "theta_1 on sampled orbits, negative once dead"},
        ),
        "sampled_step_size": ("value", diagram.sampled["value"].values, {"long_name": "step size"}),
        "trajectory": (
            ("run", "step", "component"),
            np.stack([one.states for one in (*runs, *as_printed)]),
            {"long_name": "parameters"},
        ),
        "trajectory_step_size": (
            "run",
            [one.step_size for one in (*runs, *as_printed)],
            {"long_name": "step size"},
        ),
        "trajectory_fate": (
            "run",
            [Fate[one.fate.upper()] for one in (*runs, *as_printed)],
            {"long_name": "fate", **flag_attributes(Fate)},
        ),
        "as_printed": (
            "run",
            np.repeat([False, True], [len(runs), len(as_printed)]),
            {"long_name": "whether the loss is the one printed"},
        ),
    }
    return xr.Dataset(variables, attrs={"status": "computed", "source": PAPER})


def diagram_figure(diagram: Diagram) -> Figure:
    """Cycles on the diagonal against the step size: stable solid, unstable dashed; sampled orbits behind."""
    picture = Figure(figsize=(9.6, 5.8), layout="constrained")
    axes = picture.subplots()
    sampled = diagram.sampled
    values = sampled["observable"].values[0].reshape(sampled.sizes["value"], -1)
    alive = np.where(values > 0, values, np.nan)
    steps = np.broadcast_to(sampled["value"].values[:, None], alive.shape)
    axes.plot(steps.ravel(), alive.ravel(), ",", color="0.6", rasterized=True, zorder=1)
    for branch in diagram.branches:
        colour = COLOURS.get(branch.period, "0.4")
        for step_sizes, cycle, stable in pieces(branch):
            style, width = ("-", 1.8) if stable else ((0, (4, 2)), 0.9)
            axes.plot(step_sizes, cycle, ls=style, color=colour, lw=width)
    for event in (*diagram.cascade.events[:DRAWN], diagram.fold):
        axes.plot(
            np.full(event.period, event.parameter),
            event.points[:, 0],
            "o",
            ms=3.5,
            mfc="white",
            mec="black",
            zorder=4,
        )
    axes.axvline(diagram.death.value, color="0.3", lw=0.9, ls=":")
    axes.text(diagram.death.value, 0.1, " orbits\n die", ha="left", va="bottom", fontsize="small", color="0.3")
    if diagram.cascade.accumulation is not None:
        end = diagram.cascade.accumulation.value
        axes.axvline(end, color="0.3", lw=0.9, ls=":")
        axes.text(end, 0.1, "doublings \naccumulate ", ha="right", va="bottom", fontsize="small", color="0.3")
    periods = sorted({branch.period for branch in diagram.branches})
    handles = [
        Line2D([], [], color=COLOURS.get(p, "0.4"), label=f"period {p}" if p > 1 else "minimum") for p in periods
    ]
    handles += [
        Line2D([], [], color="black", lw=1.8, label="stable in the plane"),
        Line2D([], [], color="black", lw=0.9, ls=(0, (4, 2)), label="unstable"),
        Line2D([], [], ls="", marker="o", ms=3.5, mfc="white", mec="black", label="bifurcation"),
        Line2D([], [], ls="", marker=".", color="0.6", label="sampled orbits"),
    ]
    axes.legend(handles=handles, frameon=False, fontsize="small", loc="lower left")
    axes.set(xlim=BOUNDS, ylim=(0, 1.35), xlabel="step size", ylabel="theta_1 = theta_2")
    return picture


def pieces(branch: Branch) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """The branch cut where its stability changes: step sizes, ``theta_1`` at every phase, whether it is stable.

    The curve is smooth through the points of the branch, the bifurcations on it, and the one it was born at.
    """
    stable, cycles = branch.stable.copy(), branch.points[:, :, 0]
    if branch.stability[0] == "marginal":
        stable[0] = stable[1]
    changes = [int(i) + 1 for i in np.flatnonzero(np.diff(stable.astype(int)))]
    joints = [nearest_event(branch, i) for i in changes]
    step_sizes = np.insert(branch.parameter, changes, [event.parameter for event in joints])
    lines = np.insert(cycles, changes, [event.points[:, 0] for event in joints], axis=0)
    cuts = [place + number for number, place in enumerate(changes)]
    born = [event for event in branch.events if 2 * event.period == branch.period]
    if born and abs(branch.parameter[0] - born[0].parameter) > born[0].error:
        twice = np.tile(born[0].points[:, 0], 2)
        turned = [np.roll(twice, shift) for shift in range(born[0].period)]
        first = min(turned, key=lambda cycle: float(np.linalg.norm(cycle - lines[0])))
        step_sizes, lines = np.append(born[0].parameter, step_sizes), np.vstack([first, lines])
        cuts = [cut + 1 for cut in cuts]
    curve = smooth_curve(step_sizes, lines, [HALVES if born else "", ""])
    parts = []
    for number, (begin, end) in enumerate(itertools.pairwise([0, *cuts, len(step_sizes) - 1])):
        drawn = curve(np.linspace(begin, end, 12 * (end - begin) + 1))
        parts.append((drawn[:, 0], drawn[:, 1:], bool(stable[0]) == (number % 2 == 0)))
    return parts


def nearest_event(branch: Branch, index: int) -> Event:
    """The event of a branch next to a place between two of its points."""
    middle = (branch.points[index - 1] + branch.points[index]) / 2
    own = [event for event in branch.events if event.period == branch.period]
    return min(own, key=lambda event: float(np.linalg.norm(event.points - middle)))


def plane_figure(runs: Sequence[Run]) -> Figure:
    """The trajectories in the plane, on the curve of minima."""
    picture = Figure(figsize=(9.6, 5.2), layout="constrained")
    axes = picture.subplots(1, len(runs), sharex=True, sharey=True, squeeze=False)[0]
    seen = np.concatenate([one.states for one in runs])
    low_high = float(seen.min()) - 0.1, float(seen.max()) + 0.1
    t = np.geomspace(0.3, 3.0, 300)
    for panel, one in zip(axes, runs, strict=True):
        critical = 2 / one.step_size / C
        stable = t**2 + t**-2 < critical
        panel.plot(t, 1 / t, color="0.75", lw=3, label="minima, unstable")
        if stable.any():
            panel.plot(t[stable], 1 / t[stable], color="#009E73", lw=3, label="minima, stable at this step size")
        panel.plot(t, t, color="0.85", lw=0.8, ls=":")
        path = one.states[:200]
        panel.plot(*path.T, "-", color="#0072B2", lw=0.5, alpha=0.7)
        panel.plot(*path.T, ".", color="#0072B2", ms=3, label="gradient descent")
        panel.plot(*START, "s", color="black", ms=5, label="start")
        ends = one.states[-1:] if one.orbit is None else one.orbit.points
        name = "limit" if len(ends) == 1 else f"cycle of period {len(ends)}"
        panel.plot(*ends.T, "o", color="#D55E00", ms=6, label=name)
        panel.set(xlim=low_high, ylim=low_high, xlabel="theta_1", ylabel="theta_2", aspect="equal")
        panel.set_title(f"step size {one.step_size:g}")
        panel.legend(frameon=False, fontsize="small", loc="lower left")
    return picture

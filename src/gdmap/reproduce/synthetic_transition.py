"""Synthetic analytic losses across their critical step size (arXiv:2402.13108, theorem and experiments)."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gdmap.bracket import Bracket
from gdmap.ensembles import Fate
from gdmap.objectives import Function
from gdmap.reproduce.papers import LARGE_LEARNING_RATES as PAPER
from gdmap.reproduce.report import Claim, Report
from gdmap.reproduce.transition import (
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
    meets,
    named,
    norm_figure,
    observe,
    others_below,
    rise_agrees,
    share_figure,
    share_of_hits,
    widest,
)
from gdmap.stability import CriticalStepSize, critical_step_size

NAME = "synthetic-transition"
TITLE = "Synthetic analytic losses stop converging at a critical step size"
STATEMENTS = (
    "For synthetic losses the share of initialisations from which gradient descent converges drops sharply at a "
    "critical step size.",
    "For synthetic losses the asymptotic gradient norm rises sharply at the critical step size.",
    "For an analytic loss with a Hessian eigenvalue that is not constant, the starts that converge to minima "
    "have measure zero once the step size is so large that every minimum is unstable.",
    "The critical step size is a property of the minima alone: twice the inverse of the smallest top Hessian "
    "eigenvalue over them.",
    "There is a critical step size because the Hessian eigenvalues stay away from zero on the minima.",
)

FACTORS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.94, 0.96, 0.98, 0.99, 0.995)
FACTORS_ABOVE = (1.005, 1.01, 1.02, 1.04, 1.06, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0)
QUICK = Study((0.5, 0.9, 0.98, 1.02, 1.1, 1.2), 100, 4_000, 50, 8_000, 0.02)
FULL = Study(FACTORS + FACTORS_ABOVE, 1_000, 20_000, 100, 60_000, 0.005)
# The loss without a critical step size is looked at from the smallest to the largest of these.
OPEN_RANGE = (0.5, 50.0)
# Losses of more dimensions are left to the full run. Which critical step sizes a short run searches as well.
SEARCHED_QUICK = ("double well", "valley that flattens out")
SEARCH_STARTS = (2, 8)


class Loss(NamedTuple):
    """A loss with minimum 0, its critical step size in closed form (infinite if there is none), and its starts."""

    name: str
    function: Callable[[Any], Any]
    dim: int
    scale: float
    critical: float
    ray: Ray | None = None


def run(quick: bool = False, seed: int = 0, progress: Progress | None = None) -> Report:
    """Sweep the losses, search their flattest minima, and compare with the closed forms and the statements."""
    study, size = (QUICK, 0) if quick else (FULL, 1)
    chosen = [loss for loss in losses() if not (quick and loss.dim > 2)]
    bar = Steps(len(chosen), progress)
    transitions, searches = [], {}
    for number, loss in enumerate(chosen):
        objective = Function(loss.function, loss.dim, optimal_value=0.0)
        case = Case(loss.name, objective, loss.scale, closed_form(loss.critical), loss.ray)
        sizes = study if math.isfinite(loss.critical) else open_study(study)
        transitions.append(observe(case, sizes, seed, bar.of(number)))
        if not quick or loss.name in SEARCHED_QUICK:
            searches[loss.name] = critical_step_size(
                objective, starts=SEARCH_STARTS[size], seed=seed, scale=loss.scale
            )
    closed = [one for one in transitions if math.isfinite(one.case.predicted.value)]
    without = [one for one in transitions if not math.isfinite(one.case.predicted.value)]
    claims = (
        share_claim(closed, study),
        norm_claim(closed, study),
        theorem_claim(closed, study),
        search_claim(closed, searches),
        flat_claim(without, searches, study),
    )
    figures = {
        "share": share_figure(transitions, "Fates of gradient descent on synthetic losses"),
        "gradient_norm": norm_figure(transitions, "Asymptotic gradient norm on synthetic losses"),
    }
    return Report(NAME, TITLE, PAPER, claims, dataset(transitions, PAPER), figures, quick)


# The losses ------------------------------------------------------------------------------------------------------


def product_loss(theta: jax.Array) -> jax.Array:
    """``1/2 (x_1 ... x_N - 1)^2``: on its minima the sharpness is ``sum x_i^-2 >= N``; critical ``2 / N``."""
    return (jnp.prod(theta) - 1) ** 2 / 2


def double_well(theta: jax.Array) -> jax.Array:
    """``1/4 (x^2 - 1)^2``: ``L'' = 2`` at both minima, critical step size 1."""
    return (theta[0] ** 2 - 1) ** 2 / 4


TARGET = 0.5


def tanh_neuron(theta: jax.Array) -> jax.Array:
    """``1/2 (w_2 tanh(w_1) - y)^2``.

    With ``q = tanh(w_1)^2`` the sharpness on its minima is ``y^2 (1 - q)^2 / q + q``, smallest at ``q^2 = y^2 /
    (1 + y^2)``, where it is ``2 y sqrt(1 + y^2) - 2 y^2``: critical step size ``(sqrt(1 + y^2) + y) / y``.
    """
    return (theta[1] * jnp.tanh(theta[0]) - TARGET) ** 2 / 2


STRETCH = 2.0


def ellipse(theta: jax.Array) -> jax.Array:
    """``1/2 (x^2 / s + y^2 - 1)^2`` with ``s > 1``: a valley along an ellipse.

    The Hessian on it is ``g g^T`` with ``g = (2 x / s, 2 y)``. With ``x = sqrt(s) cos t, y = sin t`` the sharpness
    is ``4 cos(t)^2 / s + 4 sin(t)^2``, from ``4 / s`` at the ends of the long axis to 4 at those of the short one:
    critical step size ``s / 2``.
    """
    return (theta[0] ** 2 / STRETCH + theta[1] ** 2 - 1) ** 2 / 2


def flattening_valley(theta: jax.Array) -> jax.Array:
    """``1/2 y^2 / (1 + x^2)``: the minima are ``y = 0``, with sharpness ``1 / (1 + x^2)``, whose infimum is 0.

    There is no critical step size: ``|x|`` only grows, ``x -> x (1 + eta y^2 / (1 + x^2)^2)``, and while
    ``1 + x^2 < eta / 2`` also ``|y|`` does, so that orbits are driven outwards until the valley is flat enough.
    """
    return theta[1] ** 2 / (1 + theta[0] ** 2) / 2


def product_ray(factors: int) -> Ray:
    """The line of equal factors."""
    n = factors
    return Ray(
        lambda x: x ** (n - 1) * (x**n - 1),
        lambda x: (2 * n - 1) * x ** (2 * n - 2) - (n - 1) * x ** (n - 2),
        1.0,
        math.sqrt(n),
    )


def losses() -> list[Loss]:
    """All losses of the full run."""
    scales = {2: 0.5, 3: 0.7, 4: 0.8, 5: 0.8}
    products = [
        Loss(f"product of {n} factors", product_loss, n, scale, 2 / n, product_ray(n))
        for n, scale in scales.items()
    ]
    edge = math.sqrt(STRETCH)
    return [
        *products,
        Loss("double well", double_well, 1, 1.0, 1.0, Ray(lambda x: x**3 - x, lambda x: 3 * x**2 - 1, 1.0)),
        Loss("tanh neuron", tanh_neuron, 2, 1.0, (math.sqrt(1 + TARGET**2) + TARGET) / TARGET),
        Loss(
            "valley along an ellipse",
            ellipse,
            2,
            0.7,
            STRETCH / 2,
            Ray(
                lambda x: 2 * x / STRETCH * (x**2 / STRETCH - 1),
                lambda x: 2 / STRETCH * (3 * x**2 / STRETCH - 1),
                edge,
            ),
        ),
        Loss("valley that flattens out", flattening_valley, 2, 1.0, math.inf),
    ]


def closed_form(value: float) -> Bracket:
    """A critical step size in closed form, up to its rounding."""
    slack = 4 * np.finfo(float).eps * value if math.isfinite(value) else 0.0
    return Bracket(value, value - slack, value + slack, "computed", "closed form")


def open_study(study: Study) -> Study:
    """The same sizes with as many step sizes over a range of two decades."""
    return study._replace(factors=tuple(np.geomspace(*OPEN_RANGE, len(study.factors)).tolist()))


# Claims ----------------------------------------------------------------------------------------------------------


def share_claim(closed: Sequence[Transition], study: Study) -> Claim:
    """The share of converging starts on both sides of the closed form."""
    sharp = [drops(one) for one in closed]
    return Claim(
        STATEMENTS[0],
        "Experiments, as reported (which losses, how many starts and step sizes is not known)",
        f"{study.words()} {study.probe_words()} The losses have the factor 1/2 (1/4 for the double well), the "
        "starts are N(0, s^2 I) with s from 0.5 to 1.",
        drop_found(closed),
        "yes" if all(sharp) else "no",
        f"For {sum(sharp)} of {len(sharp)} losses the share falls from a positive value to zero at the critical "
        f"step size in closed form (not for: {named(closed, sharp)}); the observed transitions lie "
        f"{widest(closed)}. Close below it convergence is slow; starts that are not decided at the horizon are "
        f"counted as undecided.{others_below(closed)}",
        figure="share",
    )


def norm_claim(closed: Sequence[Transition], study: Study) -> Claim:
    """The gradient norm on both sides of the closed form."""
    found = jump_found(closed)
    found["largest relative difference of a median from the 2-cycle"] = apart = cycle_error(closed)
    jumped = [jumps(one) for one in closed]
    on_cycle = (
        f"Where the 2-cycle is known exactly the medians above agree with it within {apart.value:.1g}; its "
        "gradient norm grows continuously from zero, like a square root."
        if apart.value < 0.02
        else f"From the exact 2-cycles the medians differ by up to {apart.value:.1g} of their size."
    )
    return Claim(
        STATEMENTS[1],
        "Experiments, as reported",
        f"{study.words()} The gradient norm is that of the last state; starts that diverged are left out of the "
        "median and shown as their own share.",
        found,
        rise_agrees(closed),
        f"For {sum(jumped)} of {len(jumped)} losses the median just above is more than ten times that just below "
        f"(not for: {named(closed, jumped)}). {on_cycle} Below, runs stop when their steps are negligible: the "
        f"norms there are bounds.{others_below(closed)}",
        figure="gradient_norm",
    )


def theorem_claim(closed: Sequence[Transition], study: Study) -> Claim:
    """No start reaches a minimum where all minima are unstable."""
    shares = [one.reached_above() for one in closed]
    found = {
        f"{one.case.name}: starts with a minimum at any step size above": share
        for one, share in zip(closed, shares, strict=True)
    }
    none = [share.value == 0 for share in shares]
    return Claim(
        STATEMENTS[2],
        "Theorem 17 and what follows from it, as reported (for step sizes that are not exceptional, see "
        "singular-map)",
        f"{study.words()} Only step sizes above the closed form are counted.",
        found,
        "yes" if all(none) else "no",
        (
            f"None of {study.starts:,} starts of each loss reached a minimum at any step size above. That bounds "
            f"the share by {max(share.upper for share in shares):.2g} (95 %) and shows no more; that it is zero "
            "is the theorem."
            if all(none)
            else f"Some starts converge above the critical step size: {named(closed, none)}."
        ),
        figure="share",
    )


def search_claim(closed: Sequence[Transition], searches: dict[str, CriticalStepSize]) -> Claim:
    """Closed form, search and observation of the same number."""
    found: dict[str, Bracket] = {}
    right = []
    for one in closed:
        name = one.case.name
        found[f"{name}: closed form"] = one.case.predicted
        found[f"{name}: observed transition"] = one.observed
        agrees = meets(one.observed, one.case.predicted)
        if name in searches:
            found[f"{name}: searched"] = searched = searches[name].step_size
            agrees = agrees and abs(searched.value / one.case.predicted.value - 1) < 1e-6
        right.append(agrees)
    number = sum(one.case.name in searches for one in closed)
    return Claim(
        STATEMENTS[3],
        "Definition of the critical step size, as reported",
        "`gdmap.critical_step_size`, which searches the flattest minimum without knowing the closed form (status "
        "estimated: nothing excludes a flatter one that was missed), beside the closed form and the transition "
        "that gradient descent shows.",
        found,
        "yes" if all(right) else "no",
        f"For {sum(right)} of {len(right)} losses all numbers agree ({number} of them were searched; the search "
        f"and the closed form to 1e-6); not for: {named(closed, right)}.",
        figure="share",
    )


def flat_claim(without: Sequence[Transition], searches: dict[str, CriticalStepSize], study: Study) -> Claim:
    """Where the sharpness has infimum 0 gradient descent converges at every step size."""
    found: dict[str, Bracket] = {}
    right, falling = [], []
    for one in without:
        search = searches[one.case.name].search
        falling.append(search is not None and search.falling)
        found[f"{one.case.name}: smallest sharpness that the search came to"] = searches[
            one.case.name
        ].min_sharpness
        settled = (one.swept["fate"] == int(Fate.MINIMUM)).transpose("step_size", "start").values
        open_ = (one.swept["fate"] == int(Fate.UNDECIDED)).transpose("step_size", "start").values
        for index in (0, len(settled) // 2, len(settled) - 1):
            eta = float(one.swept["step_size"].values[index])
            found[f"{one.case.name}: share converging at step size {eta:.3g}"] = share_of_hits(settled[index])
            found[f"{one.case.name}: undecided at step size {eta:.3g}"] = share_of_hits(open_[index])
        # Whatever is not at a minimum yet must be undecided, and most must be there.
        right.append(bool(np.all(settled | open_) and np.all(settled.mean(axis=1) > 0.5)))
    good = all(right) and all(falling)
    return Claim(
        STATEMENTS[4],
        "Properness of the eigenvalues on the minima, Theorem 5 with Corollary 6, as reported; a control",
        f"{study.words()} The loss y^2 / (2 (1 + x^2)) has minima y = 0 of sharpness 1 / (1 + x^2); step sizes "
        f"from {OPEN_RANGE[0]:g} to {OPEN_RANGE[1]:g}.",
        found,
        "yes" if good else "no",
        (
            "Where the sharpness falls to zero along the minima, as the search reports, there is no critical step "
            "size: most starts converge at every step size looked at, driven outwards until the valley is flat "
            "enough, and the others are still on their way. So a positive smallest sharpness is needed."
            if good
            else "The loss whose sharpness has infimum 0 does not converge at all step sizes looked at, or the "
            "search does not report that its sharpness keeps falling."
        ),
        figure="share",
    )

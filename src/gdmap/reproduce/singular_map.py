"""A loss whose map sends half-lines to a maximum (arXiv:2510.24466, figure 1), and what excludes that."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import gdmap.certify as proofs
from gdmap.bracket import Bracket, Status
from gdmap.ensembles import Fate, ensemble
from gdmap.maps import GradientDescent
from gdmap.minima.critical_points import loss_and_gradient
from gdmap.objectives import AbstractObjective, Function
from gdmap.reproduce.exact import ExactLoss, enclosed, exactly, require_proofs
from gdmap.reproduce.papers import LARGE_LEARNING_RATES
from gdmap.reproduce.papers import NON_SINGULARITY as PAPER
from gdmap.reproduce.report import Agreement, Claim, Report
from gdmap.sweeps import sweep
from gdmap.sweeps.fractions import share_of

NAME = "singular-map"
TITLE = "Where the gradient descent map is singular, and what happens there"
STATEMENTS = (
    "For the loss that is theta^4/2 - 3 theta^2 + 8 where |theta| <= 2 and theta^2 elsewhere, gradient descent "
    "with "
    "step size 1/2 is a singular map: it sends a set of positive measure to a null set.",
    "With step size 1/4 the map of this loss is non-singular.",
    "At step size 1/2 gradient descent on this loss converges to a maximum from a set of positive measure, which "
    "a "
    "non-singular map rules out.",
    "For almost every step size the gradient descent map of a piecewise analytic loss is non-singular.",
    "The map of an analytic loss is non-singular for almost every step size; where a Hessian eigenvalue is not "
    "constant, the proof argues for any step size.",
    "If a loss is analytic and some eigenvalue of its Hessian is not constant, its map is non-singular.",
    "A bounded analytic loss that is not constant cannot have a Hessian whose eigenvalues are all constant.",
)

# The experiment: step sizes, where the formula changes, an interval outside, and how far the line is looked at.
SINGULAR, OTHER = Fraction(1, 2), Fraction(1, 4)
KINK, INTERVAL, REACH = 2, (3, 5), 6
# Sizes of the runs: quick, full.
STARTS, STEPS, SCANNED = (200, 3_000), (500, 2_000), (11, 61)
SCAN, FARTHEST = (0.05, 0.95), 10.0
# Steps of the progress bar that the scan takes.
SCAN_UNITS = 100
WIDTHS = np.geomspace(1e-8, 1.0, 33)
# Step sizes at which the losses with a single exceptional one are certified besides.
ELSEWHERE = (Fraction(9, 10), Fraction(1, 3), Fraction(3))

COLOURS = {SINGULAR: "#D55E00", OTHER: "#0072B2"}

Progress = Callable[[int, int], None]


class Piece(NamedTuple):
    """One formula of the loss: its gradient and second derivative as exact polynomials of ``theta``."""

    gradient: Any
    curvature: Any

    def step(self, theta: Any, step_size: Fraction) -> Any:
        """``theta - eta L'(theta)``, a polynomial."""
        return theta - rational(step_size) * self.gradient


class Pieces(NamedTuple):
    """Both formulas; ``all_listed`` says whether the loss has no others. ``theta`` is the unknown."""

    inner: Piece
    outer: Piece
    theta: Any
    all_listed: bool


class Shares(NamedTuple):
    """Fates of starts with ``|theta| > 2``."""

    scan: xr.Dataset
    at_maximum: dict[Fraction, Bracket]
    ends: dict[Fraction, np.ndarray]
    fates: dict[Fraction, np.ndarray]
    starts: int
    steps: int


def run(quick: bool = False, seed: int = 0, progress: Progress | None = None) -> Report:
    """Prove and measure what the figure shows, and test the theorems about singular maps on small losses."""
    require_proofs()
    size = 0 if quick else 1
    done = 0

    def finished(units: int = 1) -> None:
        nonlocal done
        done += units
        if progress is not None:
            progress(done, 5 + SCAN_UNITS)

    def scanned(some: int, of: int) -> None:
        if progress is not None:
            progress(done + SCAN_UNITS * some // (of + 1), 5 + SCAN_UNITS)

    objective = figure_loss()
    pieces = exact_pieces(objective)
    measures = {eta: preimage_measures(objective, pieces, eta) for eta in (SINGULAR, OTHER)}
    finished()
    certificates = {eta: proofs.certify_nonsingular(objective, eta) for eta in (SINGULAR, OTHER)}
    finished()
    shares = fates_outside(objective, size, seed, scanned)
    finished(SCAN_UNITS)
    exceptional = proofs.exceptional_step_sizes(objective)
    claims = [
        singular_claim(pieces, certificates[SINGULAR], measures[SINGULAR]),
        non_singular_claim(pieces, certificates[OTHER], measures[OTHER]),
        maximum_claim(objective, pieces, shares),
        almost_every_claim(pieces, exceptional, certificates[OTHER], shares),
    ]
    finished()
    claims += eigenvalue_claims()
    finished()
    claims.append(bounded_claim(bounded_losses()))
    finished()
    data = dataset(objective, measures, shares)
    return Report(NAME, TITLE, PAPER, tuple(claims), data, {"singular_map": picture(data)}, quick)


# The loss --------------------------------------------------------------------------------------------------------


def figure_loss() -> Function:
    """The loss of the figure: a double well with a maximum at 0, continued by parabolas."""

    def loss(theta: jax.Array) -> jax.Array:
        t = theta[0]
        return jnp.where(t**2 <= KINK**2, t**4 / 2 - 3 * t**2 + 8, t**2)

    return Function(loss, 1)


def exact_pieces(objective: AbstractObjective) -> Pieces:
    """The formulas of the loss on both sides of the kink, as exact polynomials."""
    exact = ExactLoss(objective)
    (theta,) = exact.unknowns
    found = []
    for beside in (0, KINK + 1):
        gradient = exact.gradient([theta], [beside])[0]
        found.append(Piece(gradient, exact.hessian([theta], [beside])[0, 0]))
    patterns = [exact.pattern([beside]) for beside in (0, KINK + 1)]
    # One comparison has two outcomes; both were met if the patterns differ.
    comparisons = sum(np.size(mask) for mask in patterns[0].masks)
    differ = any(np.any(a != b) for a, b in zip(patterns[0].masks, patterns[1].masks, strict=True))
    return Pieces(found[0], found[1], theta, bool(comparisons == 1 and differ))


def rational(number: Fraction) -> Any:
    """A fraction for exact polynomials."""
    from flint import fmpq

    return fmpq(number.numerator, number.denominator)


def fraction_of(number: Any) -> Fraction:
    """A rational number of python-flint as a fraction."""
    return Fraction(int(number.p), int(number.q))


def constant_of(polynomial: Any) -> Fraction | None:
    """The value of a polynomial that is constant, else ``None``."""
    if not polynomial.is_constant():
        return None
    return Fraction(0) if polynomial == 0 else fraction_of(polynomial.leading_coefficient())


def image_length(piece: Piece, theta: Any, step_size: Fraction, interval: tuple[int, int]) -> Bracket | None:
    """The length of the image of an interval on which the map is affine, exactly; ``None`` where it is not."""
    step = piece.step(theta, step_size)
    slope = constant_of(step.derivative(0))
    if slope is None:
        return None
    length = abs(slope) * (interval[1] - interval[0])
    return exactly(length, "the map is an exact polynomial of degree one or zero there")


def map_values(objective: AbstractObjective, step_size: Fraction, theta: np.ndarray) -> np.ndarray:
    """``G`` at many numbers, as the loss computes it."""
    gradient = loss_and_gradient(objective, np.reshape(theta, (-1, 1)))[1]
    return np.asarray(theta - float(step_size) * gradient[:, 0])


def preimage_measures(objective: AbstractObjective, pieces: Pieces, step_size: Fraction) -> np.ndarray:
    """The length of the starts in ``[-REACH, REACH]`` that one step brings to ``[-w, w]``, for all ``WIDTHS``.

    The ends of the intervals are the roots of ``G = w`` and ``G = -w`` on the pieces; the map itself says which of
    them belong to it. Up to rounding.
    """
    lengths = []
    for width in WIDTHS:
        cuts = [-float(REACH), -float(KINK), float(KINK), float(REACH)]
        for piece in (pieces.inner, pieces.outer):
            step = piece.step(pieces.theta, step_size)
            coefficients = np.zeros(1 + max(step.total_degree(), 0))
            for (power,), coefficient in step.to_dict().items():
                coefficients[-1 - power] = float(fraction_of(coefficient))
            for level in (-width, width):
                shifted = coefficients.copy()
                shifted[-1] -= level
                roots = np.roots(shifted)
                cuts += [float(root.real) for root in roots if abs(root.imag) < 1e-7 and abs(root.real) < REACH]
        ends = np.unique(cuts)
        middles = (ends[1:] + ends[:-1]) / 2
        inside = np.abs(map_values(objective, step_size, middles)) <= width
        lengths.append(float(np.diff(ends)[inside].sum()))
    return np.array(lengths)


def measured(lengths: np.ndarray, index: int) -> Bracket:
    """One length of `preimage_measures`."""
    slack = 1e-12 * REACH
    value = float(lengths[index])
    return Bracket(value, max(value - slack, 0.0), value + slack, "computed", "roots of polynomials, to rounding")


# Gradient descent ------------------------------------------------------------------------------------------------


def outer_starts(count: int, seed: int) -> np.ndarray:
    """Starts drawn uniformly from ``2 < |theta| < 10``, shape ``(count, 1)``."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(np.nextafter(KINK, FARTHEST), FARTHEST, (count, 1))
    return size * rng.choice([-1.0, 1.0], (count, 1))


def fates_outside(objective: AbstractObjective, size: int, seed: int, progress: Progress | None = None) -> Shares:
    """Where starts outside ``[-2, 2]`` end, at both step sizes and at others between and around them."""
    starts = outer_starts(STARTS[size], seed)
    grid = np.linspace(*SCAN, SCANNED[size])
    grid = np.unique([*grid, *(float(eta) for eta in (SINGULAR, OTHER)), 0.499, 0.501])
    scan = sweep(objective, grid, starts[: max(100, STARTS[size] // 10)], STEPS[size], progress=progress)
    shares, ends, fates = {}, {}, {}
    for eta in (SINGULAR, OTHER):
        seen = ensemble(GradientDescent(objective, float(eta)), starts, STEPS[size])
        shares[eta] = share_of(int(np.sum(seen["fate"] == int(Fate.SADDLE))), seen.sizes["start"])
        ends[eta], fates[eta] = seen["state"].values[:, 0], seen["fate"].values
    return Shares(scan, shares, ends, fates, len(starts), STEPS[size])


# Claims about the figure -----------------------------------------------------------------------------------------


def singular_claim(pieces: Pieces, certificate: Any, measures: np.ndarray) -> Claim:
    """Is a set of positive measure sent to a null set at step size 1/2?"""
    collapsed = constant_of(pieces.outer.step(pieces.theta, SINGULAR))
    found = {}
    length = image_length(pieces.outer, pieces.theta, SINGULAR, INTERVAL)
    if length is not None:
        found["length of the image of [{}, {}], step size 1/2".format(*INTERVAL)] = length
    found[f"length of what is sent to [-{WIDTHS[0]:.0e}, {WIDTHS[0]:.0e}] in [-{REACH}, {REACH}]"] = measured(
        measures, 0
    )
    if collapsed is not None:
        found["the point that all |theta| > 2 are sent to"] = exactly(collapsed, "exact polynomial of the piece")
    proved = certificate.verdict == "singular" and certificate.status == "proved"
    agrees: Agreement = "yes" if proved and collapsed is not None else "no"
    if agrees == "yes":
        conclusion = (
            f"On |theta| > {KINK} the map is the constant {collapsed}, as an exact polynomial: every interval "
            "there "
            f"has an image of length 0, and of [-{REACH}, {REACH}] a set of length {measures[0]:.6g} goes into "
            "any "
            "null set that holds this point."
        )
    else:
        conclusion = f"The certificate says '{certificate.verdict}' at step size {SINGULAR}."
    run = (
        f"certify_nonsingular at {SINGULAR}, the map of each piece as an exact polynomial, and preimages of "
        "shrinking "
        "intervals by root finding. The loss is taken as printed, without a factor."
    )
    return Claim(STATEMENTS[0], "Figure 1", run, found, agrees, conclusion, agrees == "yes", figure="singular_map")


def non_singular_claim(pieces: Pieces, certificate: Any, measures: np.ndarray) -> Claim:
    """Is the map at step size 1/4 non-singular?"""
    found = {}
    length = image_length(pieces.outer, pieces.theta, OTHER, INTERVAL)
    if length is not None:
        found["length of the image of [{}, {}], step size 1/4".format(*INTERVAL)] = length
    for index in (0, len(WIDTHS) // 2):
        name = f"length of what is sent to [-{WIDTHS[index]:.0e}, {WIDTHS[index]:.0e}] in [-{REACH}, {REACH}]"
        found[name] = measured(measures, index)
    nearest = certificate.nearest_exceptional
    if nearest is not None:
        found["nearest exceptional step size known"] = nearest.step_size
    proved = certificate.verdict == "non-singular" and certificate.status == "proved"
    shrink = math.log(measures[len(WIDTHS) // 2] / measures[0]) / math.log(WIDTHS[len(WIDTHS) // 2] / WIDTHS[0])
    agrees: Agreement = "yes" if proved else "no"
    conclusion = (
        f"Proved for {certificate.scope}: {certificate.method}. What one step brings to [-w, w] shrinks like "
        f"w^{shrink:.3f}."
        if proved
        else f"The certificate says '{certificate.verdict}' at step size {OTHER}."
    )
    run = f"certify_nonsingular at {OTHER}, and the same measurements."
    return Claim(STATEMENTS[1], "Figure 1", run, found, agrees, conclusion, proved, figure="singular_map")


def maximum_claim(objective: AbstractObjective, pieces: Pieces, shares: Shares) -> Claim:
    """Do starts outside converge to a maximum at step size 1/2, and not at 1/4?"""
    found = {
        f"share of starts with |theta| > {KINK} that end on a maximum, step size {eta}": share
        for eta, share in shares.at_maximum.items()
    }
    at = constant_of(pieces.outer.step(pieces.theta, SINGULAR))
    is_fixed = at is not None and pieces.inner.gradient(rational(at)) == 0
    curvature = None if at is None else fraction_of(pieces.inner.curvature(rational(at)))
    if curvature is not None:
        found["second derivative at the point they are sent to"] = exactly(curvature, "exact polynomial")
        stopped = shares.ends[SINGULAR] == float(at or 0)
        found["starts that stop exactly there, step size 1/2"] = counted(
            int(stopped.sum()), "equal in floating point"
        )
    # Where they go at the other step size: a fixed point would show a step of length 0.
    ends = shares.ends[OTHER]
    once = map_values(objective, OTHER, ends)
    twice = map_values(objective, OTHER, once)
    found["smallest |theta| at the end, step size 1/4"] = rounded(float(np.abs(ends).min()))
    found["shortest last step, step size 1/4"] = rounded(float(np.abs(once - ends).min()))
    found["largest change over two steps, step size 1/4"] = rounded(float(np.abs(twice - ends).max()))
    proved = is_fixed and curvature is not None and curvature < 0
    all_there = shares.at_maximum[SINGULAR].value == 1
    none_there = shares.at_maximum[OTHER].value == 0
    agrees: Agreement = "yes" if proved and all_there and none_there else "no"
    by_fate = {
        eta: ", ".join(
            f"{Fate(code).name.lower()} {int(n)}"
            for code, n in zip(*np.unique(f, return_counts=True), strict=True)
        )
        for eta, f in shares.fates.items()
    }
    conclusion = (
        f"Fates of the {shares.starts} starts: at {SINGULAR} {by_fate[SINGULAR]}, at {OTHER} {by_fate[OTHER]} "
        "('saddle' includes maxima)."
    )
    if proved:
        conclusion += (
            f" At {SINGULAR} all |theta| > {KINK} are sent to {at}, a fixed point with second derivative "
            f"{curvature}: a "
            "strict maximum, reached in one step (exact arithmetic)."
        )
    if np.abs(twice - ends).max() < 1e-6 < np.abs(once - ends).min():
        points = np.unique(np.round(np.concatenate([ends, once]), 6))
        conclusion += (
            f" At {OTHER} they settle on cycles of period two through "
            f"{', '.join(f'{p:g}' for p in points)}; a cycle through the kink has no derivative there, so its "
            "stability is not judged, and the runs count as undecided."
        )
    run = (
        f"{shares.starts} starts drawn uniformly from {KINK} < |theta| < {FARTHEST:g}, at most {shares.steps} "
        "steps; the map as an "
        "exact polynomial."
    )
    return Claim(STATEMENTS[2], "Figure 1", run, found, agrees, conclusion, agrees == "yes", figure="singular_map")


def almost_every_claim(pieces: Pieces, exceptional: Any, certificate: Any, shares: Shares) -> Claim:
    """Is the exceptional set of this loss null: a list of step sizes?"""
    constants = [constant_of(piece.curvature) for piece in (pieces.inner, pieces.outer)]
    listed = sorted(1 / c for c in constants if c is not None and c > 0)
    found = {f"exceptional step size {one.exact or 'irrational'}": one.step_size for one in exceptional}
    method = "second derivatives of the pieces that are constant as exact polynomials"
    found["exceptional step sizes in all"] = exactly(len(listed), method)
    share = shares.scan["fraction"].sel(fate_name="saddle")
    reached = [float(eta) for eta, one in zip(share["step_size"].values, share.values, strict=True) if one > 0]
    found["step sizes of the scan"] = counted(share.sizes["step_size"], "distinct step sizes")
    found["of these, with starts that end on a maximum"] = counted(len(reached), "fates of all starts")
    agree = [one.exact for one in exceptional if one.confirmed] == listed
    elsewhere = certificate.verdict == "non-singular" and certificate.status == "proved"
    # The list by itself leaves others open; that the two pieces are all of them completes it.
    proved = pieces.all_listed and agree and elsewhere
    as_predicted = set(reached) == {float(eta) for eta in listed}
    agrees: Agreement = "yes" if proved and as_predicted else "no"
    names = ", ".join(str(eta) for eta in listed)
    conclusion = (
        f"The loss has two pieces; on one the second derivative varies, on the other it is {constants[1]}. So "
        f"{names} is "
        f"the only exceptional step size: proved, for this loss alone. {OTHER} is certified non-singular besides. "
        "In the scan starts end on the maximum at "
        f"{', '.join(f'{eta:g}' for eta in reached) or 'no step size'}, and at no other."
        if agrees == "yes"
        else f"Exceptional: {names or 'none'} (all pieces known: {'yes' if pieces.all_listed else 'no'}); at "
        f"{OTHER} the certificate says '{certificate.verdict}'; in the scan starts end on a maximum at {reached}."
    )
    run = (
        f"exceptional_step_sizes; certify_nonsingular at {OTHER}; second derivatives as exact polynomials, all "
        "pieces; fates of "
        f"{shares.scan.sizes['start']} starts with |theta| > {KINK} at {share.sizes['step_size']} step sizes from "
        f"{SCAN[0]:g} to {SCAN[1]:g}, at most {shares.steps} steps."
    )
    return Claim(
        STATEMENTS[3],
        "Theorem 1, Corollary 12 (on the loss of figure 1)",
        run,
        found,
        agrees,
        conclusion,
        "instances" if agrees == "yes" else False,
        figure="singular_map",
    )


def counted(value: int, method: str) -> Bracket:
    """A number of things."""
    return Bracket(float(value), float(value), float(value), "computed", method)


def rounded(value: float) -> Bracket:
    """A number known up to rounding."""
    slack = 1e-14 * max(1.0, abs(value))
    return Bracket(value, max(value - slack, 0.0), value + slack, "computed", "floating point, to rounding")


# Claims about analytic losses ------------------------------------------------------------------------------------


def quartic() -> Function:
    """``x^4 + y^2/2``: one eigenvalue varies, the other does not."""
    return Function(lambda t: t[0] ** 4 + t[1] ** 2 / 2, 2)


def analytic_losses() -> dict[str, Function]:
    """Polynomial losses with two, one and no constant eigenvalues."""
    return {
        "x^2/2 + 3 y^2/2": Function(lambda t: t[0] ** 2 / 2 + 3 * t[1] ** 2 / 2, 2),
        "x^4 + y^2/2": quartic(),
        "(x y - 1)^2/2": Function(lambda t: (t[0] * t[1] - 1) ** 2 / 2, 2),
    }


def eigenvalue_claims() -> list[Claim]:
    """What becomes of both statements about eigenvalues that are not constant."""
    lists = {name: proofs.exceptional_step_sizes(loss) for name, loss in analytic_losses().items()}
    evidence = counterexample(quartic())
    return [almost_every_analytic_claim(lists, evidence), non_constant_claim(evidence)]


class Counterexample(NamedTuple):
    """A loss with a varying eigenvalue, and a step size at which its map is proved singular, if there is one."""

    varies: tuple[Bracket, Bracket]
    constant: Bracket | None
    image: Bracket | None
    exceptional: list[Fraction]
    complete: bool
    elsewhere: dict[Fraction, str]


def counterexample(loss: Function) -> Counterexample:
    """The spectrum at two points, exceptional step sizes, and the image of the map, all exact."""
    exact = ExactLoss(loss, 2)
    x, y = exact.unknowns
    low, high = (exact.spectrum([start, 0]).positive for start in (Fraction(1, 4), 1))
    shared = [one for one in low if any(one.lower == other.lower == other.upper for other in high)]
    listed = proofs.exceptional_step_sizes(loss)
    sizes = [one.exact for one in listed if one.exact is not None and one.confirmed]
    image = None
    if sizes:
        step = [v - rational(sizes[0]) * g for v, g in zip((x, y), exact.gradient([x, y]), strict=True)]
        flat = [constant_of(component) for component in step]
        if any(c is not None for c in flat):
            image = exactly(0, "a component of the map is a constant polynomial")
    elsewhere: dict[Fraction, str] = {}
    for eta in (eta for eta in ELSEWHERE if eta not in sizes):
        certificate = proofs.certify_nonsingular(loss, eta)
        elsewhere[eta] = certificate.verdict if certificate.status == "proved" else "undecided"
    moving = [[one for one in some if all(one.value != s.value for s in shared)] for some in (low, high)]
    varies = tuple(some[-1] if some else exactly(0, "no other eigenvalue") for some in moving)
    return Counterexample(
        (varies[0], varies[1]), shared[0] if shared else None, image, sizes, listed.complete, elsewhere
    )


def evidence_found(evidence: Counterexample) -> dict[str, Bracket]:
    """The numbers of the counterexample."""
    found = {
        "x^4 + y^2/2: an eigenvalue at (1/4, 0)": evidence.varies[0],
        "x^4 + y^2/2: the same eigenvalue at (1, 0)": evidence.varies[1],
    }
    if evidence.constant is not None:
        found["x^4 + y^2/2: the other eigenvalue, at both"] = evidence.constant
    for eta in evidence.exceptional:
        found["x^4 + y^2/2: exceptional step size"] = exactly(eta, "constant Hessian eigenvalue, exact")
    if evidence.image is not None:
        found["x^4 + y^2/2: area of the image of the plane there"] = evidence.image
    return found


def almost_every_analytic_claim(lists: dict[str, Any], evidence: Counterexample) -> Claim:
    """Are exceptional step sizes a null set, and is there one beside a varying eigenvalue?"""
    found = {}
    for name, listed in lists.items():
        method = "constant eigenvalues, complete list proved" if listed.complete else "found, others may exist"
        n = float(len(listed))
        status: Status = "proved" if listed.complete else "computed"
        found[f"{name}: exceptional step sizes"] = Bracket(
            n, n, n if listed.complete else math.inf, status, method
        )
    found |= evidence_found(evidence)
    holds = all(listed.complete and len(listed) <= 2 for listed in lists.values())
    refutes = varying(evidence) and bool(evidence.exceptional)
    agrees: Agreement = "no" if not holds else "corrected" if refutes else "yes"
    conclusion = (
        "Each of these losses has at most as many exceptional step sizes as parameters, and the lists are "
        "complete: the "
        "statement for almost every step size is proved for them, and for no others."
        if holds
        else "For some loss the list of exceptional step sizes is not complete, or too long."
    )
    if refutes:
        conclusion += (
            f" The words 'any step size' do not: x^4 + y^2/2 has an eigenvalue that varies, and is singular at "
            f"{', '.join(map(str, evidence.exceptional))}, the reciprocal of the one that does not. Each constant "
            "eigenvalue c > 0 makes 1/c exceptional, also beside others that vary."
        )
    run = "exceptional_step_sizes for three losses of two parameters with two, one and no constant eigenvalues."
    proved: Literal["instances", False] = False if agrees == "no" else "instances"
    return Claim(STATEMENTS[4], "Proposition 11 and its proof", run, found, agrees, conclusion, proved)


def varying(evidence: Counterexample) -> bool:
    """Whether the eigenvalue is proved to differ between the two points."""
    low, high = evidence.varies
    return low.upper < high.lower or high.upper < low.lower


def non_constant_claim(evidence: Counterexample) -> Claim:
    """Does one varying eigenvalue make the map non-singular?"""
    found = evidence_found(evidence)
    others = [eta for eta, verdict in evidence.elsewhere.items() if verdict == "non-singular"]
    found["x^4 + y^2/2: other step sizes certified non-singular"] = exactly(len(others), "certify_nonsingular")
    refuted = varying(evidence) and bool(evidence.exceptional) and evidence.image is not None
    repaired = len(others) == len(evidence.elsewhere) and evidence.complete
    agrees: Agreement = ("corrected" if repaired else "no") if refuted else "yes"
    if refuted:
        conclusion = (
            f"As reported, it needs a repair: x^4 + y^2/2 with step size {evidence.exceptional[0]} has an "
            "eigenvalue "
            f"that varies, from {evidence.varies[0].value:g} to {evidence.varies[1].value:g}, and the map sends "
            "the plane to a "
            "line. That is proved, and refutes the statement as reported."
        )
        if repaired:
            conclusion += (
                f" At {', '.join(map(str, others))} the map of this loss is certified non-singular, and its list "
                "of exceptional step sizes is proved complete: the reciprocal of the eigenvalue that is "
                "constant is what has to be left out."
            )
    else:
        conclusion = (
            "No step size was found at which this loss, with an eigenvalue that varies, has a singular map."
        )
    run = (
        "L = x^4 + y^2/2: exact spectra at (1/4, 0) and (1, 0), exceptional_step_sizes, the map as exact "
        "polynomials, "
        f"certify_nonsingular at {', '.join(map(str, evidence.elsewhere))}."
    )
    return Claim(
        STATEMENTS[5],
        "Theorem 17, as reported",
        run,
        found,
        agrees,
        conclusion,
        agrees == "corrected",
        LARGE_LEARNING_RATES,
    )


def bounded_losses() -> dict[str, tuple[AbstractObjective, np.ndarray, np.ndarray]]:
    """Bounded analytic losses, each with two points at which its Laplacian is compared."""
    inputs, labels = np.array([-1.0, 0.5, 2.0]), np.array([0.0, 1.0, 1.0])

    def network(t: jax.Array) -> jax.Array:
        hidden = jnp.tanh(t[:2] * inputs[:, None] + t[2:4])
        return jnp.mean((jax.nn.sigmoid(hidden @ t[4:6] + t[6]) - labels) ** 2)

    two = np.array([0.25, 0.5]), np.array([1.0, -0.75])
    rng = np.random.default_rng(0)
    return {
        "exp(-x^2 - y^2)": (Function(lambda t: jnp.exp(-(t[0] ** 2) - t[1] ** 2), 2), *two),
        "tanh(x y - 1)^2": (Function(lambda t: jnp.tanh(t[0] * t[1] - 1) ** 2, 2), *two),
        "sin(x) cos(y)": (Function(lambda t: jnp.sin(t[0]) * jnp.cos(t[1]), 2), *two),
        "a tanh network with sigmoid output": (Function(network, 7), *rng.normal(size=(2, 7))),
    }


def laplacian(objective: AbstractObjective, theta: np.ndarray) -> Bracket:
    """The sum of the Hessian eigenvalues at a point, enclosed in verified double precision."""
    exact = ExactLoss(objective)
    point = tuple(Fraction(float(x)) for x in theta)
    enclosure = exact.subject.hessian(point, exact.pattern(theta))
    middle = sum(Fraction(float(x)) for x in np.diag(np.asarray(enclosure[0])))
    radius = sum(Fraction(float(x)) for x in np.diag(np.asarray(enclosure[1])))
    return enclosed(middle - radius, middle + radius, "trace of the Hessian, verified double precision")


def bounded_claim(losses: dict[str, tuple[AbstractObjective, np.ndarray, np.ndarray]]) -> Claim:
    """Do eigenvalues vary for bounded losses, and is every step size proved?"""
    found: dict[str, Bracket] = {}
    varied = every = 0
    for name, (objective, here, there) in losses.items():
        sums = [laplacian(objective, point) for point in (here, there)]
        found |= {f"{name}: sum of the eigenvalues at point {i + 1}": one for i, one in enumerate(sums)}
        varied += sums[0].upper < sums[1].lower or sums[1].upper < sums[0].lower
        certificate = proofs.certify_nonsingular(objective)
        certified = certificate.verdict == "non-singular" and certificate.proved_up_to == math.inf
        every += certified and certificate.status == "proved"
    found["losses for which every step size is proved non-singular"] = exactly(every, "certificates by growth")
    agrees: Agreement = "yes" if varied == len(losses) else "no"
    conclusion = (
        f"The sum of the eigenvalues differs between two points for {varied} of {len(losses)} bounded losses, so "
        "not all "
        "eigenvalues are constant."
    )
    if every == len(losses):
        conclusion += (
            " More holds for each: it grows more slowly than every parabola, so that no step size is exceptional, "
            "and every step size is proved non-singular."
        )
    run = "Traces of Hessians at two points in verified double precision; certify_nonsingular for every step size."
    return Claim(
        STATEMENTS[6],
        "Proposition 18, as reported",
        run,
        found,
        agrees,
        conclusion,
        "instances" if agrees == "yes" else False,
        LARGE_LEARNING_RATES,
    )


# Data and picture ------------------------------------------------------------------------------------------------


def dataset(objective: AbstractObjective, measures: dict[Fraction, np.ndarray], shares: Shares) -> xr.Dataset:
    """Everything drawn: loss and maps over ``theta``, preimages over ``width``, shares over step sizes."""
    # The kink on the grid, from both sides.
    theta = np.unique([*np.linspace(-REACH, REACH, 961), np.nextafter(KINK, REACH), -np.nextafter(KINK, REACH)])
    etas = [float(eta) for eta in (SINGULAR, OTHER)]
    values = np.stack([map_values(objective, eta, theta) for eta in (SINGULAR, OTHER)])
    saddle = {
        name: shares.scan[name].sel(fate_name="saddle").values
        for name in ("fraction", "fraction_lower", "fraction_upper")
    }
    computed, estimated = {"status": "computed"}, {"status": "estimated", "units": "1"}
    confidence = {"confidence": shares.scan["fraction"].attrs["confidence"]}
    variables: dict[str, Any] = {
        "loss": ("theta", loss_and_gradient(objective, theta[:, None])[0], {"long_name": "loss", **computed}),
        "map": (("step_size", "theta"), values, {"long_name": "theta after one step", **computed}),
        "preimage": (
            ("step_size", "width"),
            np.stack([measures[eta] for eta in (SINGULAR, OTHER)]),
            {"long_name": "length of the starts that one step brings to [-width, width]", **computed},
        ),
        "share": ("scanned", saddle["fraction"], {"long_name": "share that ends on a maximum", **estimated}),
        "share_lower": (
            "scanned",
            saddle["fraction_lower"],
            {"long_name": "lower end of its confidence interval", **estimated, **confidence},
        ),
        "share_upper": (
            "scanned",
            saddle["fraction_upper"],
            {"long_name": "upper end of its confidence interval", **estimated, **confidence},
        ),
    }
    coordinates = {
        "theta": ("theta", theta, {"long_name": "parameter"}),
        "step_size": ("step_size", etas, {"long_name": "step size"}),
        "width": ("width", WIDTHS, {"long_name": "half-width of the interval round the maximum"}),
        "scanned": ("scanned", shares.scan["step_size"].values, {"long_name": "step size of the scan"}),
    }
    attrs = {"source": PAPER, "status": "computed", "scanned_starts": shares.scan.sizes["start"]}
    return xr.Dataset(variables, coordinates, attrs)


def picture(data: xr.Dataset) -> Figure:
    """The loss, both maps, preimages of shrinking intervals, and shares against the step size."""
    canvas = Figure(figsize=(9.6, 7.2), layout="constrained")
    panels = canvas.subplots(2, 2)
    theta = data["theta"].values
    outside = np.abs(theta) > KINK
    draw_loss(panels[0, 0], theta, data["loss"].values)
    for number, eta in enumerate((SINGULAR, OTHER)):
        values = data["map"].values[number]
        for side in (theta < -KINK, ~outside, theta > KINK):
            label = f"step size {eta}" if not np.any(outside & side) else None
            panels[0, 1].plot(theta[side], values[side], color=COLOURS[eta], lw=1.8, label=label)
        panels[1, 0].plot(
            data["width"].values,
            data["preimage"].values[number],
            color=COLOURS[eta],
            marker="os"[number],
            ms=3.5,
            lw=1.2,
            label=f"step size {eta}",
        )
    for panel in (panels[0, 0], panels[0, 1]):
        for edge in (-KINK, KINK):
            panel.axvline(edge, color="0.6", lw=0.8, ls=":")
    panels[0, 1].plot(theta, theta, color="0.6", lw=0.8, ls="--", label="fixed points")
    panels[0, 1].set(xlabel="theta", ylabel="theta after one step", xlim=(-REACH, REACH), ylim=(-4.2, 4.2))
    panels[0, 1].legend(frameon=False, fontsize="small", loc="upper left")
    panels[1, 0].axhline(
        2 * (REACH - KINK), color="0.3", lw=0.9, ls=":", label=f"length of |theta| > {KINK} in [-{REACH}, {REACH}]"
    )
    panels[1, 0].set(
        xscale="log",
        yscale="log",
        xlabel="half-width w of the interval round the maximum",
        ylabel="length of the starts sent to [-w, w]",
    )
    panels[1, 0].legend(frameon=False, fontsize="small", loc="lower right")
    draw_shares(panels[1, 1], data)
    for panel in panels.ravel():
        panel.grid(alpha=0.25, lw=0.6)
    return canvas


def draw_loss(axes: Any, theta: np.ndarray, loss: np.ndarray) -> None:
    """The loss with its maximum, its minima (as drawn), and its kinks."""
    axes.plot(theta, loss, color="black", lw=1.6, label="loss")
    at = int(np.argmin(np.abs(theta)))
    axes.plot(theta[at], loss[at], "v", color="#CC79A7", ms=8, label="maximum")
    axes.plot([-KINK, KINK], np.interp([-KINK, KINK], theta, loss), "|", color="black", ms=12, label="kinks of L'")
    axes.set(xlabel="theta", ylabel="loss L (as printed)", xlim=(-4, 4), ylim=(0, 16.5))
    axes.legend(frameon=False, fontsize="small", loc="upper center")


def draw_shares(axes: Any, data: xr.Dataset) -> None:
    """Shares with their intervals; the exceptional step size marked."""
    share = data["share"].values
    below = np.maximum(share - data["share_lower"].values, 0)
    above = np.maximum(data["share_upper"].values - share, 0)
    axes.axvline(float(SINGULAR), color=COLOURS[SINGULAR], lw=0.9, ls=":", label="exceptional step size (proved)")
    axes.errorbar(
        data["scanned"].values,
        share,
        yerr=[below, above],
        fmt="o",
        ms=3.5,
        capsize=2,
        lw=0.9,
        color="black",
        label="starts with |theta| > 2, 95 % interval",
    )
    axes.set(xlabel="step size", ylabel="share that ends on the maximum", ylim=(-0.05, 1.1))
    axes.legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

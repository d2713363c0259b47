"""Hessian eigenvalues along the minima of deep linear networks: where they grow, and where not "
"(arXiv:2402.13108)."""

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from gdmap.bracket import Bracket
from gdmap.ensembles import escape_or_return
from gdmap.maps import GradientDescent
from gdmap.minima import balanced_minimum, flattest_minimum, minima_manifold, sample_minima
from gdmap.minima.critical_points import refine_critical_points
from gdmap.objectives import Function, LinearNetwork
from gdmap.reproduce.exact import ExactLoss, ExactSpectrum, exactly, require_proofs
from gdmap.reproduce.papers import LARGE_LEARNING_RATES as PAPER
from gdmap.reproduce.report import Agreement, Claim, Report
from gdmap.spectra import sharpness
from gdmap.stability import critical_step_size, minima_spectra, stable_minima

NAME = "eigenvalue-growth"
TITLE = "Hessian eigenvalues along the minima of deep linear networks"
STATEMENTS = (
    "Under a rank condition on the target the global minima of a deep linear network form a smooth manifold.",
    "Along the global minima the eigenvalues of the Hessian that are not zero tend to infinity with the norm of "
    "the "
    "parameters (as functions they are proper).",
    "There is a step size beyond which, at every global minimum, every non-zero eigenvalue of the Hessian exceeds "
    "2 / step size.",
    "The global minima that are stable for gradient descent form a bounded set.",
    "Beyond a critical step size every global minimum of a deep linear network is unstable.",
)

# Architectures whose nullity is counted: quick takes all of them, the full run more minima of each.
ARCHITECTURES = (
    (1, 1, 1),
    (1, 1, 1, 1),
    (2, 2, 2),
    (2, 1, 2),
    (3, 2, 2),
    (2, 3, 1),
    (1, 2, 2, 1),
    (2, 2, 2, 2),
    (3, 1, 3),
    (2, 1, 2, 2),
    (3, 3, 2),
    (1, 2, 1, 2, 1),
)
LAYER_ENTRIES = (-2, 3)
# Sizes of the runs: quick, full.
MINIMA_EACH = (1, 5)
MOVED = (((1, 1, 1),), ((1, 1, 1), (2, 2, 2), (3, 2, 2), (1, 2, 2, 1)))
DOUBLINGS = (6, 9)
SCALES, PER_SCALE = (4, 13), (28, 60)
SAMPLED = (("(2,2,2)", "(1,2,2,1)"), ("(1,1,1)", "(1,1,1,1)", "(2,2,2)", "(2,2,2,2)", "(1,2,2,1)", "(2,3,3,2)"))
LARGEST_SCALE = 30.0
# Around the critical step size, and how far out gradient descent is started (parameter of the family). What counts
# as escape is a distance of sqrt(DISTANCE) from each: cycles beside the minimum lie farther away.
FACTORS, FAR, DISTANCE = (0.9, 1.1), (1, 1000), 1e-3
RETURNING = (60, 1000)
SEARCHED = ((), ("(1,1,1)", "(2,2,2)", "(1,2,2,1)"))
REACH = 30.0
CRITICAL = (
    ((1, 1, 1, 1), (2, 2, 2)),
    ((1, 1, 1, 1), (2, 2, 2), (2, 3, 2), (3, 3, 3), (2, 2, 2, 2), (1, 3, 2, 1), (2, 3, 3, 2), (2, 2, 2, 2, 2)),
)
SEARCHED_FLATTEST = (0, 3)
# Parts what the run proved from what it measured, in a conclusion.
MEASURED = "The counterexample is proved; what follows is measured."
DRAWN = (32, 400)
NEURON_TARGET, NEURON_REACH = 0.5, 6.0

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")

# Families may lie on each other: every second is drawn thin and dashed upon wide lines with open markers.
LINES: tuple[dict[str, Any], ...] = (
    {"ms": 3.5, "lw": 1.2, "ls": "--", "zorder": 3},
    {"ms": 7.5, "lw": 3.0, "mfc": "none", "zorder": 2},
)

Progress = Callable[[int, int], None]
Matrix = list[list[Any]]


class Family(NamedTuple):
    """A curve of global minima of a deep linear network, rational in its parameter.

    ``layers(t, s)`` with ``s = 1 / t`` gives ``W_1, ..., W_N``; ``roots(t, s)``, where known, the eigenvalues that
    are not zero, with their multiplicities, as polynomials: what is to be proved. ``largest_is_proper`` says
    whether theory has the largest eigenvalue tend to infinity along *all* minima of this network: depth two, or
    all hidden widths equal to the rank of the target.
    """

    name: str
    widths: tuple[int, ...]
    target: Matrix
    layers: Callable[[Any, Any], list[Matrix]]
    roots: Callable[[Any, Any], list[tuple[Any, int]]] | None
    largest_is_proper: bool

    def network(self) -> LinearNetwork:
        """The network on whitened data: ``L = 1/2 ||W_N ... W_1 - target||^2``."""
        return LinearNetwork.whitened(self.widths, np.array(self.target, dtype=float))

    def point(self, t: Any, s: Any) -> list[Any]:
        """The parameters at ``t``, flat in the order of the network."""
        return [entry for layer in self.layers(t, s) for row in layer for entry in row]


FAMILIES = (
    Family("(1,1,1)", (1, 1, 1), [[1]], lambda t, s: [[[t]], [[s]]], lambda t, s: [(t**2 + s**2, 1)], True),
    Family(
        "(1,1,1,1)",
        (1, 1, 1, 1),
        [[1]],
        lambda t, s: [[[t**2]], [[s]], [[s]]],
        lambda t, s: [(2 * t**2 + s**4, 1)],
        True,
    ),
    Family(
        "(2,2,2)",
        (2, 2, 2),
        [[1, 0], [0, 1]],
        lambda t, s: [[[s, 0], [0, t]], [[t, 0], [0, s]]],
        lambda t, s: [(2 * s**2, 1), (t**2 + s**2, 2), (2 * t**2, 1)],
        True,
    ),
    Family("(2,1,2)", (2, 1, 2), [[2, 0], [0, 1]], lambda t, s: [[[t, 0]], [[2 * s], [0]]], None, True),
    Family(
        "(2,2,2,2)",
        (2, 2, 2, 2),
        [[1, 0], [0, 1]],
        lambda t, s: [[[t**2, 0], [0, s**2]], [[s, 0], [0, t]], [[s, 0], [0, t]]],
        lambda t, s: [
            (s**4 + 2 * t**2, 1),
            (s**6 + s**4 + s**2, 1),
            (t**6 + t**4 + t**2, 1),
            (t**4 + 2 * s**2, 1),
        ],
        True,
    ),
    Family(
        "(1,2,2,1)",
        (1, 2, 2, 1),
        [[1]],
        lambda t, s: [[[1], [0]], [[1, 0], [0, t]], [[1, 0]]],
        lambda t, s: [(3, 1)],
        False,
    ),
    Family(
        "(2,3,3,2)",
        (2, 3, 3, 2),
        [[1, 0], [0, 1]],
        lambda t, s: [
            [[1, 0], [0, 1], [0, 0]],
            [[1, 0, 0], [0, 1, 0], [0, 0, t]],
            [[1, 0, 0], [0, 1, 0]],
        ],
        lambda t, s: [(3, 4)],
        False,
    ),
)


class Curve(NamedTuple):
    """Exact spectra along a family: ``t``, norms, the smallest and largest positive eigenvalue, all at rational t.

    ``proved_everywhere`` says whether the formula of the family was proved for every ``t``; ``roots`` holds, for
    each eigenvalue of that formula, whether it is bounded for ``t >= 1`` and whether it tends to zero.
    """

    family: Family
    t: list[Fraction]
    norm: np.ndarray
    spectra: list[ExactSpectrum]
    proved_everywhere: bool
    roots: tuple[tuple[bool, bool], ...] = ()

    @property
    def some_proved_bounded(self) -> bool:
        """Whether some non-zero eigenvalue is proved to stay bounded along the whole family."""
        return self.proved_everywhere and any(bounded for bounded, _ in self.roots)

    @property
    def all_proved_bounded(self) -> bool:
        """Whether the largest eigenvalue is proved to stay bounded along the whole family."""
        return self.proved_everywhere and bool(self.roots) and all(bounded for bounded, _ in self.roots)

    @property
    def some_proved_to_vanish(self) -> bool:
        """Whether some non-zero eigenvalue is proved to tend to zero along the family."""
        return self.proved_everywhere and any(vanishes for _, vanishes in self.roots)

    @property
    def smallest(self) -> np.ndarray:
        """The smallest positive eigenvalue along the curve."""
        return np.array([spectrum.positive[0].value for spectrum in self.spectra])

    @property
    def largest(self) -> np.ndarray:
        """The largest eigenvalue along the curve."""
        return np.array([spectrum.positive[-1].value for spectrum in self.spectra])


class Nullity(NamedTuple):
    """The exact nullity of the Hessian at minima of one network, beside the formula for the dimension."""

    widths: tuple[int, ...]
    found: tuple[int, ...]
    formula: int


def run(quick: bool = False, seed: int = 0, progress: Progress | None = None) -> Report:
    """Compute spectra along families of minima and at random minima, exactly where possible."""
    require_proofs()
    size = 0 if quick else 1
    searched = CRITICAL[size]
    total = len(FAMILIES) + len(SAMPLED[size]) + len(searched) + len(SEARCHED[size]) + 4
    done = 0

    def finished() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    curves = {}
    for family in FAMILIES:
        curves[family.name] = curve(family, DOUBLINGS[size], size)
        finished()
    nullities = [nullity_of(widths, MINIMA_EACH[size], seed) for widths in ARCHITECTURES]
    finished()
    moved = moved_dimensions(MOVED[size], seed)
    finished()
    sampled = {}
    for name in SAMPLED[size]:
        sampled[name] = random_spectra(curves[name].family, size, seed)
        finished()
    neuron = tanh_neuron()
    finished()
    bounded = {}
    for name in SEARCHED[size]:
        bounded[name] = searched_outwards(curves[name])
        finished()
    returned = returns(curves["(1,2,2,1)"].family, size, seed)
    finished()
    critical = []
    for number, widths in enumerate(searched):
        critical.append(flattest(widths, number, size, seed))
        finished()
    claims = (
        manifold_claim(nullities, moved, rank_deficient()),
        proper_claim(curves, sampled, neuron),
        all_eigenvalues_claim(curves),
        bounded_claim(curves["(1,2,2,1)"], returned, bounded),
        critical_claim(critical),
    )
    data = dataset(curves, sampled, neuron)
    figures = {"eigenvalue_growth": picture(data)}
    return Report(NAME, TITLE, PAPER, claims, data, figures, quick)


# Minima of growing norm ------------------------------------------------------------------------------------------


def curve(family: Family, doublings: int, size: int = 0) -> Curve:
    """Exact spectra at ``t = 1, 2, 4, ...`` (in the full run also between), and the proof for every ``t``."""
    between = [Fraction(1)] if size == 0 else [Fraction(1), Fraction(5, 4), Fraction(3, 2), Fraction(7, 4)]
    t = [part * 2**k for k in range(doublings) for part in between] + [Fraction(2**doublings)]
    exact = ExactLoss(family.network())
    points = [family.point(one, 1 / one) for one in t]
    spectra = [exact.spectrum(point) for point in points]
    wrong = [one for one, spectrum in zip(t, spectra, strict=True) if not is_minimum(spectrum)]
    if wrong:
        raise ValueError(f"the point of the family {family.name} at t = {wrong[0]} is not a minimum")
    norm = np.array([math.sqrt(float(sum(Fraction(x) ** 2 for x in point))) for point in points])
    return Curve(family, t, norm, spectra, proved_for_every_t(family), limits_of_roots(family))


def is_minimum(spectrum: ExactSpectrum) -> bool:
    """Whether a point is critical with no negative curvature (that the loss is smallest is by construction)."""
    return spectrum.is_critical and spectrum.is_semidefinite and bool(spectrum.positive)


def proved_for_every_t(family: Family) -> bool:
    """Whether ``det(x I - H)`` is, as a polynomial in ``x, t, s`` with ``t s = 1``, the product its roots give."""
    if family.roots is None:
        return False
    exact = ExactLoss(family.network(), 3)
    t, s, x = exact.unknowns
    relation = t * s - 1
    theta = family.point(t, s)
    critical = all(exact.polynomial(entry) % relation == 0 for entry in exact.gradient(theta))
    expected = exact.polynomial(1)
    for root, multiplicity in family.roots(t, s):
        expected *= (x - root) ** multiplicity
    degree = sum(multiplicity for _, multiplicity in family.roots(t, s))
    expected *= x ** (exact.dim - degree)
    found = exact.characteristic(reduced(exact.hessian(theta), relation), x)
    return bool(critical and (found - expected) % relation == 0)


def limits_of_roots(family: Family) -> tuple[tuple[bool, bool], ...]:
    """For each root of the formula: is it bounded for ``t >= 1``, and does it tend to zero? Both exactly.

    With ``t s = 1`` a root is a sum of powers of ``t`` and of ``s``: bounded without any of ``t``, and then
    tending to its constant term.
    """
    if family.roots is None:
        return ()
    exact = ExactLoss(family.network(), 2)
    t, s = exact.unknowns
    limits = []
    for root, _ in family.roots(t, s):
        powers = (exact.polynomial(root) % (t * s - 1)).to_dict()
        bounded = all(power[0] == 0 for power in powers)
        limits.append((bounded, bounded and (0, 0) not in powers))
    return tuple(limits)


def reduced(hessian: np.ndarray, relation: Any) -> np.ndarray:
    """A matrix of polynomials, each replaced by its remainder: smaller, and the same where the relation holds."""
    out = np.empty(hessian.shape, dtype=object)
    for index in np.ndindex(*hessian.shape):
        out[index] = hessian[index] % relation
    return out


def growth(norm: np.ndarray, values: np.ndarray, t: Sequence[Fraction]) -> Bracket:
    """The exponent ``p`` of ``value ~ norm^p`` over the last doubling of ``t``, its change as the error."""
    at = {one: k for k, one in enumerate(t)}
    ends = [at[t[-1]], at[t[-1] / 2], at[t[-1] / 4]]
    slopes = [math.log(values[a] / values[b]) / math.log(norm[a] / norm[b]) for a, b in itertools.pairwise(ends)]
    error = abs(slopes[0] - slopes[1]) + 1e-12
    return Bracket(
        slopes[0], slopes[0] - error, slopes[0] + error, "computed", "log-log slope, last doubling of t"
    )


def random_spectra(family: Family, size: int, seed: int) -> xr.Dataset:
    """Spectra at random minima whose layers but one are Gaussian, of ever larger scale."""
    network = family.network()
    points = [
        sample_minima(network, PER_SCALE[size], seed + number, scale=float(scale))["theta"].values
        for number, scale in enumerate(np.geomspace(0.5, LARGEST_SCALE, SCALES[size]))
    ]
    spectra = verified_spectra(network, np.concatenate(points))
    positive = network.dim - nullity_formula(family.widths)
    return spectra.assign(smallest_positive=spectra["eigenvalue"].isel(index=positive - 1))


def verified_spectra(network: LinearNetwork, theta: np.ndarray) -> xr.Dataset:
    """`minima_spectra` at the points that are verified to be minima: badly conditioned ones may not be."""
    kept = refine_critical_points(network, theta, np.linalg.norm(theta, axis=1)).is_minimum
    return minima_spectra(network, theta[kept]).assign_attrs(left_out=int(np.sum(~kept)))


class Neuron(NamedTuple):
    """The minima ``v tanh(w) = y`` of one tanh neuron: the only non-zero eigenvalue against the norm."""

    norm: np.ndarray
    eigenvalue: np.ndarray
    error: np.ndarray


def tanh_neuron() -> Neuron:
    """The loss ``1/2 (v tanh(w) - y)^2``, whose eigenvalue stays bounded as ``w`` grows."""

    def loss(t: jax.Array) -> jax.Array:
        return (t[1] * jnp.tanh(t[0]) - NEURON_TARGET) ** 2 / 2

    w = np.linspace(0.1, NEURON_REACH, 24)
    spectra = minima_spectra(Function(loss, 2), np.stack([w, NEURON_TARGET / np.tanh(w)], axis=1))
    return Neuron(spectra["norm"].values, spectra["sharpness"].values, spectra["eigenvalue_error"].values)


# Dimension -------------------------------------------------------------------------------------------------------


def nullity_formula(widths: Sequence[int]) -> int:
    """``n - r (d_0 + d_N - r)`` with ``r`` the smallest width: the dimension of the minima at full rank."""
    rank = min(widths)
    return sum(a * b for a, b in itertools.pairwise(widths)) - rank * (widths[0] + widths[-1] - rank)


def integer_minimum(widths: tuple[int, ...], rng: np.random.Generator) -> tuple[LinearNetwork, np.ndarray]:
    """A network and one of its minima with integer entries: random layers, and their product as the target."""
    while True:
        layers = [rng.integers(*LAYER_ENTRIES, (b, a)).astype(float) for a, b in itertools.pairwise(widths)]
        product = layers[0]
        for layer in layers[1:]:
            product = layer @ product
        if np.linalg.matrix_rank(product) == min(widths):
            network = LinearNetwork.whitened(widths, product)
            return network, np.asarray(network.ravel(layers))


def nullity_of(widths: tuple[int, ...], count: int, seed: int) -> Nullity:
    """The exact nullity at random minima with integer entries."""
    rng = np.random.default_rng([seed, *widths])
    found = []
    for _ in range(count):
        network, theta = integer_minimum(widths, rng)
        spectrum = ExactLoss(network).spectrum(theta)
        if not is_minimum(spectrum):
            raise ValueError(f"the integer point drawn for widths {widths} is not a minimum")
        found.append(spectrum.nullity)
    return Nullity(widths, tuple(found), nullity_formula(widths))


def rank_deficient() -> tuple[int, int]:
    """The nullities at two minima of a network whose target lacks rank: they differ."""
    network = LinearNetwork.whitened((2, 2, 2), np.diag([1.0, 0.0]))
    exact = ExactLoss(network)
    points = ([np.diag([1.0, 0.0]), np.diag([1.0, 0.0])], [np.diag([1.0, 0.0]), np.eye(2)])
    first, second = (exact.spectrum(np.asarray(network.ravel(layers))).nullity for layers in points)
    return first, second


def moved_dimensions(
    architectures: Sequence[tuple[int, ...]], seed: int
) -> dict[tuple[int, ...], tuple[int, int]]:
    """The dimension that moving along the minima finds, and the formula, for some networks."""
    found = {}
    for widths in architectures:
        network, theta = integer_minimum(widths, np.random.default_rng([seed, *widths]))
        seen = minima_manifold(network, theta, seed=seed)
        clear = bool(seen["dimension_clear"][0])
        found[widths] = (int(seen["dimension"][0]) if clear else -1, nullity_formula(widths))
    return found


# Stability -------------------------------------------------------------------------------------------------------


class Returned(NamedTuple):
    """Share of starts beside a minimum that come back: by the factor of the critical step size, and by ``t``."""

    step_sizes: dict[float, float]
    shares: dict[tuple[float, int], Bracket]
    norms: dict[int, float]
    starts: int


def returns(family: Family, size: int, seed: int) -> Returned:
    """Gradient descent beside minima near and far, below and above the critical step size."""
    network = family.network()
    critical = critical_step_size(network).step_size.value
    step_sizes = {factor: factor * critical for factor in FACTORS}
    shares, norms = {}, {}
    for t, factor in itertools.product(FAR, FACTORS):
        theta = np.array(family.point(float(t), 1 / t), dtype=float)
        norms[t] = float(np.linalg.norm(theta))
        seen = escape_or_return(
            GradientDescent(network, step_sizes[factor]),
            theta,
            distance=DISTANCE / t**2,
            starts=RETURNING[size],
            seed=seed,
        )
        share = seen["share_returned"]
        value = float(share)
        shares[factor, t] = Bracket(
            value,
            min(float(seen["share_returned_lower"]), value),
            max(float(seen["share_returned_upper"]), value),
            "estimated",
            "share of starts that return, Wilson interval",
            float(share.attrs["confidence"]),
        )
    return Returned(step_sizes, shares, norms, RETURNING[size])


def searched_outwards(along: Curve) -> tuple[str, float, bool]:
    """What a search outwards among the stable minima says, blind to the widths: verdict, distance, expectation."""
    network = along.family.network()
    eta = FACTORS[0] * critical_step_size(network).step_size.value
    blind = Function(network.evaluate, network.dim)
    seen = stable_minima(blind, eta, balanced_minimum(network)[None], reach=REACH)
    expected = along.family.largest_is_proper
    return str(seen.attrs["bounded"]), float(seen.attrs["farthest_stable_distance"]), expected


class Flattest(NamedTuple):
    """The smallest sharpness of one network: formula, what a minimum attains, random minima, a blind search."""

    widths: tuple[int, ...]
    formula: Bracket
    attained: Bracket
    random: Bracket
    searched: Bracket | None


def flattest(widths: tuple[int, ...], number: int, size: int, seed: int) -> Flattest:
    """``N sigma^(2 - 2/N)`` for a random target, beside the sharpness found at minima."""
    rng = np.random.default_rng([seed, 1, *widths])
    network = LinearNetwork.whitened(widths, rng.normal(size=(widths[-1], widths[0])))
    formula = critical_step_size(network).min_sharpness
    attained = sharpness(network, balanced_minimum(network))
    drawn = verified_spectra(network, sample_minima(network, DRAWN[size], seed)["theta"].values)
    searched = None
    if number < SEARCHED_FLATTEST[size]:
        searched = flattest_minimum(Function(network.evaluate, network.dim), seed=seed).sharpness
    words = f"least of {drawn.sizes['minimum']} random minima: from above only"
    least = least_of(drawn["sharpness"].values, drawn["eigenvalue_error"].values, words)
    return Flattest(widths, formula, attained, least, searched)


def least_of(values: np.ndarray, errors: np.ndarray, words: str) -> Bracket:
    """The least of a sample of eigenvalues: it bounds the least of all from above, and nothing from below."""
    at = int(np.argmin(values))
    return Bracket(float(values[at]), 0.0, float(values[at] + errors[at]), "estimated", words)


# Claims ----------------------------------------------------------------------------------------------------------


def manifold_claim(
    nullities: Sequence[Nullity],
    moved: dict[tuple[int, ...], tuple[int, int]],
    deficient: tuple[int, int],
) -> Claim:
    """Is the nullity of the Hessian the dimension of a manifold, at all minima looked at?"""
    found = {}
    for one in nullities:
        low, high = min(one.found), max(one.found)
        words = f"exact, {len(one.found)} minima; the formula gives {one.formula}"
        found[f"{named(one.widths)}: nullity"] = Bracket(low, low, high, "proved", words)
    for widths, (dimension, formula) in moved.items():
        words = f"moving along the minima; the formula gives {formula}"
        found[f"{named(widths)}: dimension by moving"] = counted(dimension, words)
    for number, nullity in enumerate(deficient, 1):
        found[f"(2,2,2), target of rank 1: nullity at minimum {number}"] = exactly(nullity, "exact")
    matches = [all(k == one.formula for k in one.found) for one in nullities]
    same = all(dimension == formula for dimension, formula in moved.values())
    agrees: Agreement = "yes" if all(matches) and same else "no"
    conclusion = (
        f"The nullity is n - r (d_0 + d_N - r), with r the smallest width, for {sum(matches)} of "
        f"{len(nullities)} networks, "
        "counted exactly; moving along the minima finds the same dimension for "
        f"{sum(d == f for d, f in moved.values())} "
        f"of {len(moved)}."
    )
    if deficient[0] != deficient[1]:
        conclusion += " Without the rank condition the nullity differs between minima, so the formula needs it."
    run = (
        "Random layers with integer entries from -2 to 2, and their product (of full rank) as the target: exact "
        "Hessians, "
        "rational characteristic polynomials; minima_manifold. L = 1/2 ||W_N ... W_1 - W*||^2."
    )
    return Claim(STATEMENTS[0], "Theorem (v1), as reported", run, found, agrees, conclusion)


def named(widths: Sequence[int]) -> str:
    """Widths as a name."""
    return f"({','.join(map(str, widths))})"


def counted(value: int, method: str) -> Bracket:
    """A number of things, computed."""
    return Bracket(float(value), float(value), float(value), "computed", method)


def does_not_grow(values: np.ndarray) -> bool:
    """Whether an eigenvalue is no larger at the end of its family than anywhere before."""
    return bool(values[-1] <= values.min() * (1 + 1e-12))


def what_was_run(curves: dict[str, Curve]) -> str:
    """The families, in words."""
    names = ", ".join(curves)
    last = max(one.t[-1] for one in curves.values())
    return (
        f"Families of minima of the networks {names}, rational in t from 1 to {last}: exact characteristic "
        "polynomials of the "
        "Hessian, roots enclosed. L = 1/2 ||W_N ... W_1 - W*||^2."
    )


def proper_claim(curves: dict[str, Curve], sampled: dict[str, xr.Dataset], neuron: Neuron) -> Claim:
    """Does every eigenvalue that is not zero grow along the minima, or at least the largest?"""
    found: dict[str, Bracket] = {}
    for name, one in curves.items():
        found[f"{name}: smallest non-zero eigenvalue at norm {one.norm[-1]:.4g}"] = one.spectra[-1].positive[0]
        found[f"{name}: largest eigenvalue there"] = one.spectra[-1].positive[-1]
        found[f"{name}: growth exponent, smallest"] = growth(one.norm, one.smallest, one.t)
        found[f"{name}: growth exponent, largest"] = growth(one.norm, one.largest, one.t)
    last, error = float(neuron.eigenvalue[-1]), float(neuron.error[-1])
    found[f"tanh neuron: non-zero eigenvalue at norm {neuron.norm[-1]:.4g}"] = Bracket(
        last, last - error, last + error, "computed", "dense Hessian"
    )
    shrinking = [name for name, one in curves.items() if does_not_grow(one.smallest)]
    proved = [name for name in shrinking if curves[name].some_proved_bounded]
    flat = [name for name, one in curves.items() if does_not_grow(one.largest)]
    proper = [name for name, one in curves.items() if one.family.largest_is_proper]
    grows = all(growth(curves[n].norm, curves[n].largest, curves[n].t).lower > 0 for n in proper)
    for name, spectra in sampled.items():
        found[f"{name}: largest eigenvalue, least over random minima of the larger norms"] = least_of_far(spectra)
    if not shrinking:
        agrees: Agreement = "yes"
        conclusion = "The smallest non-zero eigenvalue grows along every family looked at."
    else:
        agrees = "corrected" if proper and grows and not set(flat) & set(proper) else "no"
        conclusion = ""
        if proved:
            conclusion += (
                f"Not every non-zero eigenvalue grows: along the families of {', '.join(proved)} one stays "
                "bounded, the whole spectrum being proved for every t."
            )
            bounded = [name for name in flat if curves[name].all_proved_bounded]
            if bounded:
                conclusion += f" For {', '.join(bounded)} so does the largest."
            conclusion += f" {MEASURED} "
        conclusion += (
            f"The smallest non-zero eigenvalue does not grow along the families of {', '.join(shrinking)}."
        )
        if flat:
            conclusion += f" The largest does not grow for {', '.join(flat)}."
        if agrees == "corrected":
            least = min(growth(curves[n].norm, curves[n].largest, curves[n].t).lower for n in proper)
            conclusion += (
                f" The largest eigenvalue grows along the families of {', '.join(proper)}, with exponents of "
                f"{least:.3g} at least. For these (depth two, or all hidden widths equal to the rank of the "
                "target) theory has it tend to infinity along all minima; the run does not prove that."
            )
    return Claim(
        STATEMENTS[1],
        "Theorem 5, as reported",
        what_was_run(curves) + " Random minima, layers but one Gaussian: dense Hessians.",
        found,
        agrees,
        conclusion,
        agrees == "corrected" and bool(proved),
        figure="eigenvalue_growth",
    )


def least_of_far(spectra: xr.Dataset) -> Bracket:
    """The smallest sharpness among the half of the random minima that lies farther out."""
    far = spectra["norm"].values >= np.median(spectra["norm"].values)
    words = f"least of {int(far.sum())} random minima of norm {np.median(spectra['norm'].values):.3g} and more"
    if spectra.attrs.get("left_out"):
        words += f" ({spectra.attrs['left_out']} badly conditioned ones left out)"
    return least_of(spectra["sharpness"].values[far], spectra["eigenvalue_error"].values[far], words)


def all_eigenvalues_claim(curves: dict[str, Curve]) -> Claim:
    """Is there a finite step size that every non-zero eigenvalue asks for?"""
    found: dict[str, Bracket] = {}
    needed = {}
    for name, one in curves.items():
        smallest = one.spectra[-1].positive[0]
        needed[name] = smallest.reciprocal(2.0, "2 / smallest non-zero eigenvalue")
        found[f"{name}: step size that the minimum at t = {one.t[-1]} asks for"] = needed[name]
        critical = critical_step_size(one.family.network()).step_size
        found[f"{name}: critical step size, from the largest eigenvalue"] = critical
    unbounded = [
        name
        for name, one in curves.items()
        if growth(one.norm, one.smallest, one.t).upper < 0 and does_not_grow(one.smallest)
    ]
    proved = [name for name in unbounded if curves[name].some_proved_to_vanish]
    sizes = {name: found[f"{name}: critical step size, from the largest eigenvalue"] for name in curves}
    # With 'the largest' for 'every non-zero': one finite step size for all minima of a family.
    largest_holds = all(
        math.isfinite(sizes[name].upper) and 2 / one.largest.min() <= sizes[name].upper * (1 + 1e-9)
        for name, one in curves.items()
    )
    scalar = [name for name, one in curves.items() if one.family.widths[0] == one.family.widths[-1] == 1]
    scalar_holds = all(needed[name].value <= sizes[name].upper * (1 + 1e-9) for name in scalar)
    if not unbounded:
        agrees: Agreement = "yes"
        conclusion = "Along no family does the smallest non-zero eigenvalue tend to zero."
    else:
        agrees = "corrected" if largest_holds and scalar_holds else "no"
        first = (proved or unbounded)[0]
        one = curves[first]
        conclusion = (
            f"As reported, not for matrices: for {first} the smallest non-zero eigenvalue falls to "
            f"{one.smallest[-1]:.4g} at norm {one.norm[-1]:.4g}, so the step size would have to exceed "
            f"{needed[first].value:.6g}"
            + (
                f", and no finite one does for all t: the eigenvalue tends to zero. {MEASURED}"
                if first in proved
                else ", and the more the farther out."
            )
        )
        if largest_holds:
            conclusion += (
                " With 'the largest' for 'every non-zero' the statement holds along every family: its largest "
                f"eigenvalues ask for {max(2 / one.largest.min() for one in curves.values()):.6g} at most, and "
                "for no more than the critical step size of the network, which is finite."
            )
        if scalar and scalar_holds:
            conclusion += (
                f" Where input and output are numbers ({', '.join(scalar)}) there is one non-zero eigenvalue, and "
                "the statement holds verbatim along the family."
            )
    return Claim(
        STATEMENTS[2],
        "Corollary 6, as reported",
        what_was_run(curves) + " critical_step_size.",
        found,
        agrees,
        conclusion,
        agrees == "corrected" and bool(proved),
        figure="eigenvalue_growth",
    )


def bounded_claim(along: Curve, returned: Returned, bounded: dict[str, tuple[str, float, bool]]) -> Claim:
    """Are there stable minima as far out as one likes?"""
    name = along.family.name
    found: dict[str, Bracket] = {}
    found[f"{name}: largest eigenvalue at norm {along.norm[-1]:.4g}"] = along.spectra[-1].positive[-1]
    for (factor, t), share in returned.shares.items():
        words = f"{name}: share of starts beside the minimum of norm {returned.norms[t]:.4g} that return"
        found[f"{words}, step size {returned.step_sizes[factor]:.4g}"] = share
    for other, (verdict, distance, _) in bounded.items():
        words = "search outwards: the farthest it found, a bound from below"
        found[f"{other}: farthest stable minimum of a search outwards ({verdict})"] = Bracket(
            distance, distance, math.inf, "estimated", words
        )
    below, above = FACTORS
    constant = does_not_grow(along.largest)
    refuted = constant and along.all_proved_bounded
    simulated = all(returned.shares[below, t].value == 1 and returned.shares[above, t].value == 0 for t in FAR)
    as_expected = all((verdict == "bounded") == proper for verdict, _, proper in bounded.values())
    if not refuted:
        agrees: Agreement = "no" if constant else "yes"
        conclusion = (
            "The largest eigenvalue was not proved to stay bounded along the family."
            if constant
            else "The largest eigenvalue grows along the family, so its stable part is bounded."
        )
    else:
        agrees = "corrected" if simulated and as_expected else "no"
        top = along.spectra[-1].positive[-1].value
        conclusion = (
            f"Not in general: for {name} the largest eigenvalue is {top:g} along a whole line of minima, whatever "
            f"their norm (the spectrum is proved for every t), so with step sizes below 2/{top:g} the stable "
            f"minima are unbounded. {MEASURED}"
        )
        if simulated:
            conclusion += (
                f" Gradient descent started beside the one of norm {returned.norms[FAR[-1]]:.4g} returns to it "
                f"at step size {returned.step_sizes[below]:.4g}, and does not at {returned.step_sizes[above]:.4g}."
            )
        if bounded:
            by_verdict: dict[str, list[str]] = {}
            for other, (verdict, _, _) in bounded.items():
                by_verdict.setdefault(verdict, []).append(other)
            seen = "; ".join(f"{verdict} for {', '.join(names)}" for verdict, names in by_verdict.items())
            conclusion += f" Searches outwards among the stable minima, as far as {REACH:g}, say: {seen}."
            conclusion += (
                " That agrees with theory, which has the set bounded at depth two, or if all hidden widths equal "
                "the rank of the target."
                if as_expected
                else " That is not what theory says."
            )
    run = (
        f"The family with W_2 = diag(1, t) of the network {name}, its spectrum as polynomials in t; "
        f"{returned.starts} starts "
        f"at {DISTANCE:g} / t^2 of the norm from minima with t = {' and '.join(map(str, FAR))}, at {below:g} and "
        f"{above:g} times the "
        "critical step size. L = 1/2 ||W_N ... W_1 - W*||^2."
    )
    if bounded:
        run += (
            f" stable_minima on {', '.join(bounded)}, the widths withheld, at {below:g} of the critical step size."
        )
    return Claim(
        STATEMENTS[3],
        "Abstract (v1)",
        run,
        found,
        agrees,
        conclusion,
        agrees == "corrected",
        figure="eigenvalue_growth",
    )


def critical_claim(critical: Sequence[Flattest]) -> Claim:
    """Is the smallest sharpness the formula, attained and never undercut?"""
    found: dict[str, Bracket] = {}
    holds = []
    for one in critical:
        name = named(one.widths)
        found[f"{name}: smallest sharpness, formula"] = one.formula
        found[f"{name}: sharpness of the balanced minimum"] = one.attained
        found[f"{name}: least sharpness of random minima"] = one.random
        slack = 1e-9 * one.formula.value
        ok = abs(one.attained.value - one.formula.value) <= slack and one.random.value >= one.formula.lower - slack
        if one.searched is not None:
            found[f"{name}: flattest minimum of a blind search"] = one.searched
            ok = ok and abs(one.searched.value - one.formula.value) <= 1e-5 * one.formula.value
        holds.append(bool(ok))
    searched = sum(one.searched is not None for one in critical)
    agrees: Agreement = "yes" if all(holds) else "no"
    conclusion = (
        f"For {sum(holds)} of {len(critical)} networks with random targets the smallest sharpness is N sigma^(2 "
        "- 2/N), "
        "with N the depth and sigma the largest singular value of the target: the balanced minimum attains it, "
        "no random "
        "minimum is flatter"
    )
    conclusion += f", and {searched} blind searches end there." if searched else "."
    conclusion += " So the critical step size is 2 / (N sigma^(2 - 2/N))." if all(holds) else ""
    run = (
        "critical_step_size, sharpness at balanced_minimum, sample_minima"
        + (", flattest_minimum on the bare loss" if searched else "")
        + "; targets with standard normal entries, L = 1/2 ||W_N ... W_1 - W*||^2."
    )
    return Claim(STATEMENTS[4], "Main theorem, as reported", run, found, agrees, conclusion)


# Data and picture ------------------------------------------------------------------------------------------------


def dataset(curves: dict[str, Curve], sampled: dict[str, xr.Dataset], neuron: Neuron) -> xr.Dataset:
    """Everything drawn: the families over ``point``, random minima over ``minimum``, the neuron over ``place``."""
    units = {"units": "loss per squared parameter"}
    proved, computed = {"status": "proved"}, {"status": "computed"}
    family = np.concatenate([np.full(len(one.t), k) for k, one in enumerate(curves.values())])
    flags = {"flag_values": list(range(len(curves))), "flag_meanings": " ".join(curves)}

    def joined(of: Callable[[Curve], Any]) -> np.ndarray:
        return np.concatenate([np.asarray(of(one), dtype=float) for one in curves.values()])

    smallest, largest = (
        {"long_name": "smallest non-zero Hessian eigenvalue"},
        {"long_name": "largest Hessian eigenvalue"},
    )
    norm = {"long_name": "distance from the origin"}
    variables: dict[str, Any] = {
        "family": ("point", family, {"long_name": "network of the family", **flags}),
        "t": ("point", joined(lambda one: [float(t) for t in one.t]), {"long_name": "parameter of the family"}),
        "norm": ("point", joined(lambda one: one.norm), {**norm, **computed}),
        "smallest": ("point", joined(lambda one: one.smallest), {**smallest, **units, **proved}),
        "largest": ("point", joined(lambda one: one.largest), {**largest, **units, **proved}),
        "neuron_norm": ("place", neuron.norm, {**norm, **computed}),
        "neuron_eigenvalue": (
            "place",
            neuron.eigenvalue,
            {"long_name": "non-zero Hessian eigenvalue of a tanh neuron", **units, **computed},
        ),
    }
    names = list(curves)
    for name, source, words in (
        ("random_norm", "norm", norm),
        ("random_smallest", "smallest_positive", {**smallest, **units}),
        ("random_largest", "sharpness", {**largest, **units}),
    ):
        values = np.concatenate([one[source].values for one in sampled.values()])
        variables[name] = ("minimum", values, {**words, **computed})
    which = np.concatenate([np.full(one.sizes["minimum"], names.index(n)) for n, one in sampled.items()])
    variables["random_family"] = ("minimum", which, {"long_name": "network of the random minimum", **flags})
    return xr.Dataset(variables, attrs={"source": PAPER, "status": "computed"})


def picture(data: xr.Dataset) -> Figure:
    """Smallest non-zero and largest eigenvalues against the norm, families as lines, random minima as dots."""
    canvas = Figure(figsize=(10.4, 4.9), layout="constrained")
    panels = canvas.subplots(1, 2, sharex=True)
    names = data["family"].attrs["flag_meanings"].split()
    family, which = data["family"].values, data["random_family"].values
    titles = (("smallest", "smallest non-zero eigenvalue"), ("largest", "largest eigenvalue"))
    for panel, (name, title) in zip(panels, titles, strict=True):
        for number, label in enumerate(names):
            drawn = family == number
            style = {"color": COLOURS[number % len(COLOURS)], "marker": "osD^vP*"[number % 7]}
            panel.plot(
                data["norm"].values[drawn], data[name].values[drawn], label=label, **style, **LINES[number % 2]
            )
            chosen = which == number
            panel.plot(
                data["random_norm"].values[chosen],
                data[f"random_{name}"].values[chosen],
                ".",
                ms=2,
                alpha=0.35,
                color=style["color"],
                zorder=1,
            )
        panel.plot(
            data["neuron_norm"].values,
            data["neuron_eigenvalue"].values,
            ls="--",
            color=COLOURS[-1],
            lw=1.4,
            label="tanh neuron",
        )
        panel.set(xscale="log", yscale="log", xlabel="norm of the parameters at the minimum", title=title)
        panel.set_ylabel("eigenvalue of the Hessian of 1/2 ||W - W*||^2")
        panel.grid(alpha=0.25, lw=0.6)
    reach = float(data["norm"].max())
    panels[0].set_xlim(0.9, 1.2 * reach)
    panels[0].plot([], [], ".", color="0.4", ms=4, label="random minima (same colours)")
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize="small")
    return canvas

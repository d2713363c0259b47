"""Do minima of non-linear networks that do not interpolate form a manifold? (an open question of arXiv:2402.13108)

At minima found from many starts: the nullity of the Hessian against the dimension found by moving along it.
"""

import itertools
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gdmap.bracket import Bracket
from gdmap.engines.precision import float64
from gdmap.flags import flag_attributes
from gdmap.minima import Evidence, minima_manifold
from gdmap.minima.critical_points import OF_MINIMA, OF_SADDLES, loss_and_gradient, refine_critical_points
from gdmap.minima.descent import descend
from gdmap.objectives import AbstractObjective, Objective
from gdmap.reproduce.papers import LARGE_LEARNING_RATES as PAPER
from gdmap.reproduce.report import Agreement, Claim, Report
from gdmap.sweeps import gaussian_starts
from gdmap.sweeps.fractions import share_of

NAME = "minima-manifold"
TITLE = "Do the minima of networks that do not interpolate form a manifold?"
STATEMENTS = (
    "Under a rank condition on the optimum the global minima of a linear network form a manifold, of dimension "
    "n - r (d_0 + d_N - r).",
    "The minima of a non-linear network that interpolates generic data form a manifold, of dimension n - m.",
    "Open question, as a hypothesis: where a non-linear network does not interpolate its data, the set of minima "
    "is locally a manifold at every minimum found, of the dimension of the Hessian's null space.",
    "The same without any condition on the data: whatever they are, the minima of a non-linear network that does "
    "not interpolate form a manifold.",
)

# Samples, two inputs each; networks with one output.
INPUTS = 2
SAMPLES = 24
DISTINCT = 3
# Of the targets, relative to the root mean square of the teacher's outputs.
NOISE = 0.2
DECAY = 1e-2
STARTS = (12, 100)  # quick, full
NUDGES, NUDGE = 3, 1e-2
# A unit counts as at infinity where its Jacobian or its curvature is this small beside a unit of ordinary size:
# eigenvalues of the Hessian below 1e-10 of the largest count as zero, and they are squares of this.
SATURATED = 1e-5
# Losses closer than this share of the largest are one critical value.
SAME_LOSS = 1e-9
# How far from the crossing its two sheets are looked at.
OFF_CROSSING = (0.5, 0.1, 0.02)


def squared_units(z: Any) -> Any:
    """``z |z|``."""
    return z * jnp.abs(z)


def squared_relu(z: Any) -> Any:
    """``max(z, 0)^2``."""
    return jnp.square(jax.nn.relu(z))


def exact_gelu(z: Any) -> Any:
    """``z Phi(z)`` with the normal distribution function ``Phi``."""
    return jax.nn.gelu(z, approximate=False)


def identity(z: Any) -> Any:
    """``z``."""
    return z


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "linear": identity,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
    "gelu": exact_gelu,
    "z|z|": squared_units,
    "relu^2": squared_relu,
}
# Units of these can be rescaled, (a, v) -> (t a, v / t^2), without changing the network.
HOMOGENEOUS = ("z|z|", "relu^2")
# These become flat, or linear, exponentially fast: floating point sees level ground on the way to infinity.
SATURATING = ("tanh", "softplus", "gelu")

Progress = Callable[[int, int], None]


class Outcome(IntEnum):
    """What was seen at the end of a descent.

    ``ISOLATED_AGREES``, ``MANIFOLD_AGREES``: nullity equal to the dimension found by moving, zero or positive.
    ``DISAGREES``: the dimension found is clear and another. ``UNDECIDED``: it is not clear. ``AT_INFINITY``: some
    unit is saturated (flat or linear at all samples, to rounding), so that a minimum cannot be told from a valley
    that falls for ever. ``NO_MINIMUM``: no minimum could be verified.
    """

    NO_MINIMUM = 0
    AT_INFINITY = 1
    UNDECIDED = 2
    DISAGREES = 3
    ISOLATED_AGREES = 4
    MANIFOLD_AGREES = 5


COLOURS = {
    Outcome.ISOLATED_AGREES: ("#56B4E9", "isolated, nullity 0"),
    Outcome.MANIFOLD_AGREES: ("#0072B2", "nullity = dimension > 0"),
    Outcome.DISAGREES: ("#D55E00", "nullity differs from dimension"),
    Outcome.UNDECIDED: ("#E69F00", "dimension undecided"),
    Outcome.AT_INFINITY: ("#999999", "a unit at infinity"),
    Outcome.NO_MINIMUM: ("#DDDDDD", "no minimum verified"),
}
JUDGED = (Outcome.DISAGREES, Outcome.ISOLATED_AGREES, Outcome.MANIFOLD_AGREES)
AGREEING = (Outcome.ISOLATED_AGREES, Outcome.MANIFOLD_AGREES)
GROUPS = ("linear", "interpolating", "not interpolating", "weight decay")


class NetworkLoss(eqx.Module):
    """Half the squared error of one sample, plus ``decay / 2`` times the squared norm of the parameters.

    The activation is an index and not a function: networks of one shape share one compilation.
    """

    activation: Any
    decay: Any

    def __call__(self, layers: Sequence[dict[str, Any]], x: Any, y: Any) -> Any:
        """The loss of the network with these ``layers`` on one sample."""
        size = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(layers))
        return jnp.sum((self.output(layers, x) - y) ** 2) / 2 + self.decay * size / 2

    def output(self, layers: Sequence[dict[str, Any]], x: Any) -> Any:
        """The output of the network for one input."""
        for number, layer in enumerate(layers):
            if number:
                x = jax.lax.switch(self.activation, list(ACTIVATIONS.values()), x)
            x = layer["weight"] @ x + layer.get("bias", 0.0)
        return x


class Case(NamedTuple):
    """One network with its data; ``expected`` is the dimension of its set of minima where theory gives it."""

    name: str
    group: str
    activation: str
    objective: Objective
    expected: int | None


class Seen(NamedTuple):
    """The ends of all descents in one case, one per start."""

    case: Case
    outcome: np.ndarray
    nullity: np.ndarray
    dimension: np.ndarray
    null_gap: np.ndarray
    rescalings: np.ndarray
    loss: np.ndarray
    theta: np.ndarray


def run(quick: bool = False, seed: int = 0, progress: Progress | None = None) -> Report:
    """Sample minima of every network, compare nullity and dimension, and judge the statements."""
    chosen = cases(quick, seed)
    seen = []
    for number, case in enumerate(chosen):
        seen.append(looked_at(case, STARTS[0 if quick else 1], seed))
        if progress is not None:
            progress(number + 1, len(chosen) + 1)
    crossing = crossing_of_sheets(seed)
    if progress is not None:
        progress(len(chosen) + 1, len(chosen) + 1)
    claims = (
        dimension_claim(STATEMENTS[0], "Theorem on the manifold of minima, as reported", seen, "linear"),
        dimension_claim(
            STATEMENTS[1],
            "Hypothesis of the extension to non-linear networks, after Cooper, as reported",
            seen,
            "interpolating",
        ),
        hypothesis_claim(seen),
        crossing_claim(crossing),
    )
    return Report(NAME, TITLE, PAPER, claims, dataset(seen, crossing), {"minima_manifold": figure(seen)}, quick)


# Networks and data -----------------------------------------------------------------------------------------------


def network(
    activation: str,
    hidden: Sequence[int],
    x: np.ndarray,
    y: np.ndarray | None = None,
    biases: bool = False,
    decay: float = 0.0,
) -> Objective:
    """The loss of a fully connected network with one output on the samples ``x (m, d)``, ``y (m,)``."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    widths = [x.shape[1], *hidden, 1]
    layers = []
    for columns, rows in itertools.pairwise(widths):
        layer = {"weight": np.zeros((rows, columns))}
        layers.append({**layer, "bias": np.zeros(rows)} if biases else layer)
    loss = NetworkLoss(np.int32(list(ACTIVATIONS).index(activation)), np.float64(decay))
    return Objective(loss, layers, data=(x, np.zeros(len(x)) if y is None else y))


def inputs(seed: int, distinct: int = SAMPLES) -> np.ndarray:
    """Gaussian inputs in the plane, ``distinct`` ones, each as often as gives the number of samples."""
    x = np.random.default_rng(seed).standard_normal((SAMPLES, INPUTS))
    return np.repeat(x[:distinct], SAMPLES // distinct, axis=0)


def outputs(objective: Objective, theta: np.ndarray) -> np.ndarray:
    """What the network gives for every input, shape ``(m,)``."""
    loss: Any = objective.loss
    layers = objective.unravel(theta)
    with float64():
        return np.asarray(jax.vmap(lambda x: loss.output(layers, x)[0])(np.asarray(objective.data[0])))


def taught(objective: Objective, seed: int, noise: float) -> Objective:
    """The same network on the outputs of one with Gaussian parameters, plus Gaussian noise."""
    rng = np.random.default_rng([seed, 1])
    teacher = 1.5 * rng.standard_normal(objective.dim)
    x = np.asarray(objective.data[0])
    y = outputs(objective, teacher)
    size = float(np.sqrt(np.mean(y**2)))
    y = y + noise * size * rng.standard_normal(len(x))
    return Objective(objective.loss, objective.unravel(np.zeros(objective.dim)), data=(x, y))


def cases(quick: bool, seed: int) -> list[Case]:
    """The networks, with the dimension that theory gives where it does."""
    found = []

    def add(
        name: str,
        group: str,
        hidden: Sequence[int] = (2,),
        distinct: int = SAMPLES,
        noise: float = NOISE,
        biases: bool = False,
        decay: float = 0.0,
        expected: Callable[[int], int] | None = None,
    ) -> None:
        activation = name.split(",")[0]
        objective = network(activation, hidden, inputs(seed, distinct), biases=biases, decay=decay)
        dimension = None if expected is None else expected(objective.dim)
        found.append(Case(name, group, activation, taught(objective, seed, noise), dimension))

    def linear(dim: int) -> int:
        return dim - manifold_of_maps(INPUTS, 1)

    def met(dim: int) -> int:
        return dim - DISTINCT

    nonlinear = [name for name in ACTIVATIONS if name != "linear"]
    few, means = "interpolating", "not interpolating"
    # Few distinct inputs, each several times: without noise they are interpolated, with it their means.
    add("linear", "linear", expected=linear)
    add("tanh, few inputs", few, distinct=DISTINCT, noise=0.0, expected=met)
    add("tanh, means", means, distinct=DISTINCT, expected=met)
    for name in nonlinear:
        add(name, "not interpolating")
    add("tanh, decay", "weight decay", decay=DECAY)
    add("z|z|, decay", "weight decay", decay=DECAY)
    # Weight decay leaves the rotations of the hidden layer, which move its one occupied direction.
    add("linear, decay", "weight decay", decay=DECAY, expected=lambda dim: 2 - 1)
    if quick:
        return found
    add("linear, three layers", "linear", hidden=(2, 2), expected=linear)
    for name in ("softplus", "gelu"):
        add(f"{name}, few inputs", few, distinct=DISTINCT, noise=0.0, expected=met)
        add(f"{name}, means", means, distinct=DISTINCT, expected=met)
    for name in nonlinear:
        add(f"{name}, biases", "not interpolating", biases=True)
    for name in ("tanh", "z|z|"):
        add(f"{name}, three layers", "not interpolating", hidden=(2, 2))
    for name in ("tanh", "gelu", "z|z|"):
        add(f"{name}, width 4", "not interpolating", hidden=(4,))
    add("tanh, width 4, few inputs", few, hidden=(4,), distinct=DISTINCT, noise=0.0, expected=met)
    add("tanh, width 4, means", means, hidden=(4,), distinct=DISTINCT, expected=met)
    add("gelu, biases, decay", "weight decay", biases=True, decay=DECAY)
    return sorted(found, key=lambda case: GROUPS.index(case.group))


def manifold_of_maps(inputs: int, outputs: int) -> int:
    """The dimension ``r (d_0 + d_N - r)`` of the linear maps of full rank ``r``."""
    rank = min(inputs, outputs)
    return rank * (inputs + outputs - rank)


# Minima ----------------------------------------------------------------------------------------------------------


def ends_of_descents(objective: AbstractObjective, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where descents from ``starts`` end, global or not, and what is there (codes of `Evidence`).

    Saddles are left along their most negative direction.
    """
    theta = descend(objective, starts)
    finite = np.isfinite(theta).all(axis=1)
    theta = np.where(finite[:, None], theta, starts)
    for attempt in range(NUDGES):
        size = np.linalg.norm(theta, axis=1)
        size = np.where(size > 0, size, 1.0)
        points = refine_critical_points(objective, theta, size)
        theta, evidence = points.theta.copy(), points.evidence
        saddle = np.isin(evidence, OF_SADDLES)
        if attempt + 1 == NUDGES or not saddle.any():
            break
        downhill = np.linalg.eigh(points.hessian[saddle])[1][:, :, 0]
        lower = descend(objective, theta[saddle] + NUDGE * size[saddle, None] * downhill)
        theta[saddle] = np.where(np.isfinite(lower).all(axis=1, keepdims=True), lower, theta[saddle])
    return theta, np.where(finite, evidence, np.int8(Evidence.NOT_CRITICAL))


def looked_at(case: Case, count: int, seed: int) -> Seen:
    """All descents of one case and what is found at their ends."""
    objective = case.objective
    theta, evidence = ends_of_descents(objective, gaussian_starts(count, objective.dim, seed))
    outcome = np.full(count, Outcome.NO_MINIMUM, np.int8)
    nullity, dimension = np.full(count, -1), np.full(count, -1)
    null_gap = np.full(count, np.nan)
    there = np.flatnonzero(np.isin(evidence, (*OF_MINIMA, Evidence.DEGENERATE_CRITICAL_POINT)))
    if there.size:
        found = minima_manifold(objective, theta[there], seed=seed)
        nullity[there], dimension[there] = found["nullity"].values, found["dimension"].values
        null_gap[there] = found["null_gap"].values
        outcome[there] = [
            outcome_of(is_at_infinity(case, point), bool(clear), int(null), int(moved))
            for point, clear, null, moved in zip(
                theta[there], found["dimension_clear"].values, nullity[there], dimension[there], strict=True
            )
        ]
    rescalings = np.array([rescalings_of(case, point) for point in theta])
    loss = loss_and_gradient(objective, theta)[0]
    return Seen(case, outcome, nullity, dimension, null_gap, rescalings, loss, theta)


def outcome_of(at_infinity: bool, clear: bool, nullity: int, dimension: int) -> Outcome:
    """What nullity and dimension at one point show."""
    if at_infinity:
        return Outcome.AT_INFINITY
    if not clear:
        return Outcome.UNDECIDED
    if nullity != dimension:
        return Outcome.DISAGREES
    return Outcome.MANIFOLD_AGREES if nullity else Outcome.ISOLATED_AGREES


def is_at_infinity(case: Case, theta: np.ndarray) -> bool:
    """Whether a unit of the first layer is saturated: flat or linear at all samples, or at too many."""
    if case.activation not in SATURATING:
        return False
    activation = ACTIVATIONS[case.activation]
    x = np.asarray(case.objective.data[0])
    layer, *_ = case.objective.unravel(theta)
    if "bias" in layer:
        x = np.column_stack([x, np.ones(len(x))])
        incoming = np.column_stack([layer["weight"], layer["bias"]])
    else:
        incoming = np.asarray(layer["weight"])
    z = x @ incoming.T
    slope = jax.vmap(jax.vmap(jax.grad(activation)))
    bend = jax.vmap(jax.vmap(jax.grad(jax.grad(activation))))
    with float64():
        first, second = np.asarray(slope(z)), np.asarray(bend(z))
    distinct = np.linalg.svd(x, compute_uv=False)
    rank = int(np.sum(distinct > SATURATED * distinct[0]))
    for unit in range(z.shape[1]):
        seen = np.linalg.svd(first[:, unit, None] * x, compute_uv=False)[:rank]
        if seen[-1] <= SATURATED * distinct[0] or np.abs(second[:, unit]).max() <= SATURATED:
            return True
    return False


def rescalings_of(case: Case, theta: np.ndarray) -> int:
    """The dimension of the known continuous symmetry: one rescaling for every hidden unit that is not zero."""
    penalised = float(case.objective.loss.decay) > 0  # type: ignore[attr-defined]
    if case.activation not in HOMOGENEOUS or penalised:
        return 0
    layers = case.objective.unravel(theta)
    total = 0
    for below, above in itertools.pairwise(layers):
        ingoing = np.abs(below["weight"]).sum(axis=1) + np.abs(below.get("bias", 0.0))
        total += int(np.sum((ingoing > 0) | (np.abs(above["weight"]).sum(axis=0) > 0)))
    return total


class Crossing(NamedTuple):
    """Minima of a network that cannot do better than zero: where two sheets of them cross, and on each."""

    distance: np.ndarray
    name: list[str]
    nullity: np.ndarray
    dimension: np.ndarray
    clear: np.ndarray
    excess: np.ndarray


def crossing_of_sheets(seed: int) -> Crossing:
    """Every input comes with opposite targets, so the minima are exactly the networks that are zero.

    Those with output weights ``v = 0`` and those whose two units cancel (``a_1 = a_2``, ``v_1 = -v_2``) meet where
    ``a_1 = a_2`` and ``v = 0``.
    """
    half = SAMPLES // 2
    x = inputs(seed)[:half]
    y = np.random.default_rng([seed, 2]).standard_normal(half)
    paired = np.concatenate([x, x]), np.concatenate([y, -y])
    objective = network("tanh", (2,), *paired)
    a = np.array([1.0, -0.5])
    normal = np.array([0.5, 1.0]) / np.linalg.norm([0.5, 1.0])
    names, distances, points = ["crossing"], [0.0], [np.concatenate([a, a, np.zeros(2)])]
    for distance in OFF_CROSSING:
        shift = distance * normal
        names += ["outputs zero", "units cancel"]
        distances += [distance, distance]
        points.append(np.concatenate([a, a + shift, np.zeros(2)]))
        points.append(np.concatenate([a, a, np.array([1.0, -1.0]) * distance / np.sqrt(2)]))
    found = minima_manifold(objective, np.stack(points), seed=seed)
    lowest = float(np.mean(paired[1] ** 2) / 2)
    return Crossing(
        np.array(distances),
        names,
        found["nullity"].values,
        found["dimension"].values,
        found["dimension_clear"].values,
        found["loss"].values - lowest,
    )


# Claims ----------------------------------------------------------------------------------------------------------


def exactly(number: int, words: str) -> Bracket:
    """A count."""
    return Bracket(float(number), float(number), float(number), "computed", words)


def of_group(seen: Sequence[Seen], group: str) -> list[Seen]:
    """The cases of one group."""
    return [one for one in seen if one.case.group == group]


def judged(one: Seen) -> np.ndarray:
    """The starts of one case that ended at a minimum with a clear dimension."""
    return np.flatnonzero(np.isin(one.outcome, JUDGED))


def at_minima(one: Seen) -> np.ndarray:
    """The starts of one case that ended at a point to be judged, decided or not."""
    return np.flatnonzero(np.isin(one.outcome, (*JUDGED, Outcome.UNDECIDED)))


def what_was_run(some: Sequence[Seen]) -> str:
    """The computation in a sentence."""
    count = len(some[0].outcome)
    return (
        f"{count} descents (BFGS, then Newton's method) from N(0, I) for each of {len(some)} networks with one "
        f"hidden layer of width 2 unless said otherwise, without biases unless named, {INPUTS} inputs, one "
        "output, "
        f"{SAMPLES} samples, targets of a network of the same shape with N(0, 1.5^2) parameters plus "
        f"{100 * NOISE:g} % "
        f"noise (with few inputs: {DISTINCT} distinct ones, without noise), L = 1/(2 m) sum of squared errors (+ "
        f"{DECAY:g}/2 |theta|^2 with decay): "
        f"{', '.join(one.case.name for one in some)}. Every verified minimum counts, global or not. Nullity: "
        "Hessian "
        "eigenvalues below 1e-10 of the largest. Dimension: rank of the displacements of 1e-2 to 1e-5 of |theta| "
        "along null directions after going down again."
    )


def numbers_of(some: Sequence[Seen]) -> dict[str, Bracket]:
    """Shares, and the nullities seen, case by case."""
    found: dict[str, Bracket] = {}
    for one in some:
        there, clear = at_minima(one), judged(one)
        agrees = int(np.sum(np.isin(one.outcome, AGREEING)))
        if there.size:
            found[f"{one.case.name}: share of minima with nullity = dimension"] = share_of(
                agrees, there.size, "minima (undecided ones counted against)"
            )
        else:
            found[f"{one.case.name}: minima verified"] = exactly(0, f"of {len(one.outcome)} descents")
        if clear.size:
            sizes = one.nullity[clear]
            middle = float(np.median(sizes))
            found[f"{one.case.name}: nullity"] = Bracket(
                middle, float(sizes.min()), float(sizes.max()), "computed", "median, smallest and largest"
            )
        if one.case.expected is not None:
            found[f"{one.case.name}: dimension expected"] = exactly(one.case.expected, "formula")
    return found


def as_expected(one: Seen) -> tuple[int, int]:
    """How many clear minima there are, and how many have both nullity and dimension as theory gives them."""
    clear = judged(one)
    right = (one.nullity[clear] == one.case.expected) & (one.dimension[clear] == one.case.expected)
    return len(clear), int(right.sum())


def distinct_inputs(case: Case) -> int:
    """The number of different inputs in the data."""
    return len(np.unique(np.asarray(case.objective.data[0]), axis=0))


def dimension_claim(statement: str, source: str, seen: Sequence[Seen], group: str) -> Claim:
    """Have the minima of a group the dimension that theory gives?"""
    some = of_group(seen, group)
    counts = [as_expected(one) for one in some]
    total, right = (sum(column) for column in zip(*counts, strict=True))
    undecided = sum(int(np.sum(one.outcome == Outcome.UNDECIDED)) for one in some)
    infinite = sum(int(np.sum(one.outcome == Outcome.AT_INFINITY)) for one in some)
    agrees: Agreement = "not reproducible" if not total else "yes" if right == total else "no"
    conclusion = f"{right} of {total} minima have both nullity and dimension as the formula says"
    if undecided or infinite:
        conclusion += f"; at {undecided} the dimension stayed undecided, at {infinite} a unit is at infinity"
    conclusion += "."
    found = numbers_of(some)
    if group == "interpolating" and some:
        numbers = sorted({distinct_inputs(one.case) for one in some})
        found["interpolating: distinct inputs"] = Bracket(
            numbers[0], numbers[0], numbers[-1], "computed", "different rows of the inputs; fewest and most"
        )
        conclusion += (
            f" Here m is the number of distinct inputs, {' or '.join(map(str, numbers))}, and not of samples "
            f"({SAMPLES}): every input is there several times with one target, which changes no minimum."
        )
    return Claim(
        statement,
        source,
        what_was_run(some),
        found,
        agrees,
        conclusion,
        figure="minima_manifold",
    )


def hypothesis_claim(seen: Sequence[Seen]) -> Claim:
    """Is the set of minima a manifold at every minimum found where the network does not interpolate?"""
    every = [*of_group(seen, "not interpolating"), *of_group(seen, "weight decay")]
    some = [one for one in every if one.case.activation != "linear"]
    found = numbers_of(every)
    counts = {kind: sum(int(np.sum(one.outcome == kind)) for one in some) for kind in Outcome}
    decided = sum(counts[kind] for kind in JUDGED)
    agreeing = sum(counts[kind] for kind in AGREEING)
    total = decided + counts[Outcome.UNDECIDED]
    undecided = counts[Outcome.UNDECIDED]
    agrees: Agreement = "corrected" if undecided else "yes"
    if counts[Outcome.DISAGREES]:
        agrees = "no"
    elif 2 * decided <= total:
        agrees = "not reproducible"
    if total:
        found["all: share of minima with nullity = dimension"] = share_of(
            agreeing, total, "minima (undecided ones counted against)"
        )
        found["all: share of minima at which the dimension could be decided"] = share_of(decided, total, "minima")
    for kind in (Outcome.UNDECIDED, Outcome.AT_INFINITY, Outcome.NO_MINIMUM):
        found[f"all: {COLOURS[kind][1]}"] = exactly(counts[kind], "descents")
    gaps = np.concatenate([one.null_gap[one.outcome == Outcome.MANIFOLD_AGREES] for one in some])
    if gaps.size:
        smallest = float(gaps.min())
        found["all: smallest ratio of a non-zero to a zero eigenvalue"] = Bracket(
            smallest,
            smallest / 10,
            smallest * 10,
            "estimated",
            "at minima with nullity = dimension > 0; the zeros are rounding noise, known to an order of magnitude",
        )
    differing = int(sum(np.sum(np.isin(one.outcome, JUDGED) & (one.nullity != one.dimension)) for one in some))
    conclusion = (
        f"At {agreeing} of the {total} minima found nullity and dimension agree "
        f"({counts[Outcome.ISOLATED_AGREES]} isolated, {counts[Outcome.MANIFOLD_AGREES]} on manifolds of positive "
        f"dimension), at {differing} they differ, at {undecided} the dimension is undecided. "
    )
    if agrees == "corrected":
        share = found["all: share of minima at which the dimension could be decided"]
        conclusion += (
            "Corrected, the statement is: at all minima at which the dimension could be decided "
            f"({decided} of {total}; share {share.value:.3f} in [{share.lower:.3f}, {share.upper:.3f}], Wilson "
            f"interval). The others are {undecided}, all in the networks {undecided_in(some)}; the set may fail "
            "to be a manifold there, as it does where sheets of minima cross. "
        )
    conclusion += (
        "This is evidence from samples: where it agrees the loss is Morse-Bott at these points, and no sample "
        "answers the "
        "question for all minima."
    )
    conclusion += rescaling_words(some)
    means = [one for one in some if one.case.group == "not interpolating" and one.case.expected is not None]
    if means:
        clear, right = (sum(column) for column in zip(*map(as_expected, means), strict=True))
        conclusion += (
            f" Where the network meets the mean target of every distinct input the dimension is the number of "
            f"parameters less that of distinct inputs, at {right} of {clear} minima."
        )
    conclusion += decay_words(every)
    if counts[Outcome.AT_INFINITY] or counts[Outcome.NO_MINIMUM]:
        conclusion += (
            f" Of {sum(counts.values())} descents {counts[Outcome.AT_INFINITY]} ended with a saturated unit and "
            f"{counts[Outcome.NO_MINIMUM]} "
            "at no minimum that could be verified, many of them on the way to infinity; they are not counted."
        )
    return Claim(
        STATEMENTS[2],
        "Open questions, as reported",
        what_was_run(every),
        found,
        agrees,
        conclusion,
        figure="minima_manifold",
    )


def undecided_in(some: Sequence[Seen]) -> str:
    """The networks with minima of undecided dimension, and how many each has."""
    counts = {one.case.name: int(np.sum(one.outcome == Outcome.UNDECIDED)) for one in some}
    return "; ".join(f"{name} ({count})" for name, count in counts.items() if count)


def rescaling_words(some: Sequence[Seen]) -> str:
    """How the nullity compares with the dimension of the known symmetry."""
    exact = larger = smaller = 0
    for one in some:
        clear = judged(one)
        clear = clear[one.rescalings[clear] > 0]
        exact += int(np.sum(one.nullity[clear] == one.rescalings[clear]))
        larger += int(np.sum(one.nullity[clear] > one.rescalings[clear]))
        smaller += int(np.sum(one.nullity[clear] < one.rescalings[clear]))
    if not exact + larger + smaller:
        return ""
    return (
        f" Where every unit can be rescaled (homogeneous activations) the nullity is the number of rescalings at "
        f"{exact} minima and larger at {larger} (units that are dead or parallel to another)"
        + (f", and smaller at {smaller}, which cannot be." if smaller else ".")
    )


def decay_words(some: Sequence[Seen]) -> str:
    """Which minima under weight decay are isolated."""
    parts = []
    for one in (one for one in some if one.case.group == "weight decay"):
        clear = judged(one)
        if clear.size:
            isolated = int(np.sum(one.nullity[clear] == 0))
            parts.append(f"{one.case.name} {isolated} of {clear.size}")
    words = " Isolated under weight decay: " + "; ".join(parts) if parts else ""
    symmetric = [one for one in some if one.case.group == "weight decay" and one.case.expected is not None]
    if symmetric:
        clear_count, right = (sum(column) for column in zip(*map(as_expected, symmetric), strict=True))
        words += (
            f" (a linear network keeps the rotations of its hidden layer; {right} of {clear_count} minima have "
            "the "
            "dimension these give)"
        )
    return f"{words}." if words else ""


def crossing_claim(crossing: Crossing) -> Claim:
    """Are there data for which the minima of a non-linear network are no manifold?"""
    found: dict[str, Bracket] = {}
    for k, (name, distance) in enumerate(zip(crossing.name, crossing.distance, strict=True)):
        where = name if distance == 0 else f"{name}, {distance:g} from the crossing"
        found[f"{where}: nullity"] = exactly(int(crossing.nullity[k]), "eigenvalues below 1e-10 of the largest")
        if crossing.clear[k]:
            found[f"{where}: dimension"] = exactly(int(crossing.dimension[k]), "found by moving")
    excess = float(np.abs(crossing.excess).max())
    found["largest excess of the loss over its minimum"] = Bracket(
        excess, 0.0, 2 * excess, "computed", "rounding of the loss"
    )
    names = np.array(crossing.name)
    sheets = {
        name: {
            int(d)
            for d, n, clear in zip(
                crossing.dimension[names == name],
                crossing.nullity[names == name],
                crossing.clear[names == name],
                strict=True,
            )
            if clear and d == n
        }
        for name in ("outputs zero", "units cancel")
    }
    one_each = all(len(values) == 1 for values in sheets.values())
    dimensions = sorted(next(iter(values)) for values in sheets.values()) if one_each else []
    agrees: Agreement = "not reproducible"
    conclusion = "The dimensions of the two sheets were not found, so nothing follows."
    if one_each and dimensions[0] != dimensions[1]:
        agrees = "no"
        conclusion = (
            f"Not for all data. Every input comes with two opposite targets, so the loss is a constant plus half "
            "the mean of the squared output, and the minima are the networks that are zero. As close to the "
            "crossing "
            f"as {crossing.distance[crossing.distance > 0].min():g} there are minima around which the set has "
            f"dimension {dimensions[1]} and others where it has dimension {dimensions[0]}: no manifold has both. "
            "At "
            f"the crossing itself the nullity is {int(crossing.nullity[0])}. A condition on the data, like the "
            "rank "
            "condition of linear networks, is needed."
        )
    elif one_each:
        agrees = "yes"
        conclusion = f"Both sheets have dimension {dimensions[0]}; they show nothing against it."
    return Claim(
        STATEMENTS[3],
        "Open questions, as reported, in their strongest form",
        f"f(x) = v_1 tanh(a_1 x) + v_2 tanh(a_2 x) with {SAMPLES // 2} inputs in the plane, each with targets y "
        "and "
        "-y; nullity and dimension where the sheet of zero output weights meets that of cancelling units, and at "
        f"distances {', '.join(f'{d:g}' for d in OFF_CROSSING)} from there on each.",
        found,
        agrees,
        conclusion,
    )


# Data and picture ------------------------------------------------------------------------------------------------


def dataset(seen: Sequence[Seen], crossing: Crossing) -> xr.Dataset:
    """Everything drawn or counted: the end of every descent, and the points beside the crossing."""
    words = {
        "nullity": "Hessian eigenvalues below 1e-10 of the largest, -1 where not looked at",
        "dimension": "dimension found by moving, -1 where not looked at",
        "null_gap": "smallest non-zero over largest zero eigenvalue",
        "rescalings": "dimension of the known symmetry",
        "loss": "loss at the end of the descent",
    }
    variables: dict[str, Any] = {
        name: (
            ("case", "start"),
            np.stack([getattr(one, name) for one in seen]),
            {"long_name": text, "units": "1"},
        )
        for name, text in words.items()
    }
    variables["outcome"] = (
        ("case", "start"),
        np.stack([one.outcome for one in seen]),
        {"long_name": "what was seen", **flag_attributes(Outcome)},
    )
    variables["parameters"] = (
        "case",
        [one.case.objective.dim for one in seen],
        {"long_name": "number of parameters", "units": "1"},
    )
    variables["expected_dimension"] = (
        "case",
        [-1 if one.case.expected is None else one.case.expected for one in seen],
        {"long_name": "dimension that theory gives, -1 where it gives none", "units": "1"},
    )
    variables["distinct_losses"] = (
        "case",
        [distinct_losses(one) for one in seen],
        {"long_name": "critical values among the minima found", "units": "1"},
    )
    variables |= {
        "crossing_distance": (
            "point",
            crossing.distance,
            {"long_name": "distance from the crossing", "units": "1"},
        ),
        "crossing_nullity": ("point", crossing.nullity, {"long_name": "nullity of the Hessian", "units": "1"}),
        "crossing_dimension": ("point", crossing.dimension, {"long_name": "dimension found", "units": "1"}),
        "crossing_clear": ("point", crossing.clear, {"long_name": "whether the dimension is clear"}),
    }
    variables["group"] = (
        "case",
        np.array([GROUPS.index(one.case.group) for one in seen], np.int8),
        {"long_name": "group of networks", "names": list(GROUPS)},
    )
    coordinates = {"case": ("case", np.arange(len(seen)), {"names": [one.case.name for one in seen]})}
    attributes = {"status": "computed", "source": PAPER, "crossing_points": crossing.name}
    return xr.Dataset(variables, coords=coordinates, attrs=attributes)


def distinct_losses(one: Seen) -> int:
    """The number of different losses among the minima found."""
    losses = np.sort(one.loss[at_minima(one)])
    if not losses.size:
        return 0
    return int(1 + np.sum(np.diff(losses) > SAME_LOSS * max(float(np.abs(losses).max()), 1e-12)))


def figure(seen: Sequence[Seen]) -> Figure:
    """What became of the starts, case by case; beside it nullity and dimension at the minima."""
    picture = Figure(figsize=(10.2, 1.9 + 0.3 * len(seen)), layout="constrained")
    bars, plane = picture.subplots(1, 2, width_ratios=[1.25, 1], sharey=True)
    rows = np.arange(len(seen))
    count = len(seen[0].outcome)
    left = np.zeros(len(seen))
    for kind, (colour, label) in COLOURS.items():
        width = np.array([np.mean(one.outcome == kind) for one in seen])
        bars.barh(rows, width, left=left, color=colour, height=0.72, label=label)
        left += width
    bars.set_yticks(rows, [f"{one.case.name} (n = {one.case.objective.dim})" for one in seen], fontsize="small")
    bars.set_ylim(len(seen) - 0.5, -0.5)
    bars.set(xlim=(0, 1), xlabel=f"share of {count} descents")
    for row, one in zip(rows, seen, strict=True):
        clear = judged(one)
        if one.case.expected is not None:
            plane.plot(one.case.expected, row, "|", ms=17, mew=1.6, color="#009E73")
        for value in np.unique(one.nullity[clear]):
            plane.plot(value, row, "o", ms=9, mfc="none", color="black")
        for value in np.unique(one.dimension[clear]):
            plane.plot(value, row, ".", ms=7, color="#CC79A7")
        known = np.unique(one.rescalings[clear])
        for value in known[known > 0]:
            plane.plot(value, row + 0.36, "^", ms=4, color="#E69F00")
    for axes in (bars, plane):
        for border in borders(seen):
            axes.axhline(border, color="black", lw=0.7)
    largest = max(one.case.objective.dim for one in seen)
    plane.set(xlim=(-0.6, largest + 0.6), xlabel="dimension")
    plane.grid(axis="x", alpha=0.3, lw=0.6)
    for first, group in zip([-0.5, *borders(seen)], group_names(seen), strict=True):
        plane.text(largest + 0.5, first + 0.08, group, ha="right", va="top", fontsize="small", style="italic")
    marks = [
        Line2D([], [], ls="", marker="o", ms=9, mfc="none", color="black", label="nullity of the Hessian"),
        Line2D([], [], ls="", marker=".", ms=7, color="#CC79A7", label="dimension found by moving"),
        Line2D([], [], ls="", marker="|", ms=14, mew=1.6, color="#009E73", label="dimension expected"),
        Line2D([], [], ls="", marker="^", ms=4, color="#E69F00", label="rescalings"),
    ]
    patches = bars.get_legend_handles_labels()[0]
    picture.legend(
        handles=[*patches, *marks], loc="outside lower center", ncols=4, frameon=False, fontsize="small"
    )
    return picture


def borders(seen: Sequence[Seen]) -> list[float]:
    """The places between rows where the group changes."""
    groups = [one.case.group for one in seen]
    return [k - 0.5 for k in range(1, len(groups)) if groups[k] != groups[k - 1]]


def group_names(seen: Sequence[Seen]) -> list[str]:
    """The groups in the order of the rows."""
    return list(dict.fromkeys(one.case.group for one in seen))

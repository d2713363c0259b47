"""Certificates for networks of every kind with every activation, and the step sizes that are exceptional."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

import gdmap.certify as proofs
from gdmap.bracket import Bracket
from gdmap.models import ACTIVATIONS, Attention, Convolutional, FullyConnected, Residual
from gdmap.objectives import AbstractObjective, LinearNetwork, Network
from gdmap.reproduce.exact import ExactLoss, enclosed, exactly, require_proofs
from gdmap.reproduce.papers import LARGE_LEARNING_RATES
from gdmap.reproduce.papers import NON_SINGULARITY as PAPER
from gdmap.reproduce.report import Agreement, Claim, Report

NAME = "nonsingularity-tour"
TITLE = "Is the map non-singular? Certificates for every kind of network and activation"
STATEMENTS = (
    "Networks of fully connected, convolutional and attention layers with piecewise analytic activations and an "
    "analytic loss have, on any data, a non-singular gradient descent map for almost every step size.",
    "Where the loss is analytic on a connected set, the map is non-singular there for almost every step size.",
    "The same holds for losses that are analytic almost everywhere, whatever values the map is given on the "
    "kinks.",
    "Compositions of these maps are non-singular: stochastic gradient descent, schedules of step sizes, iterates.",
    "Convolutions, whose entries are tied, keep the property by which the main theorem is proved, on generic "
    "data.",
    "Attention after other layers keeps it too, and layers may follow in any order.",
    "Conjecture: recurrent networks, whose weights are tied across time, have non-singular maps as well.",
    "GELU is listed with the strictly piecewise analytic activations, those that are not analytic.",
    "For each sample a network is an almost everywhere analytic function of its parameters, and so is the loss of "
    "any data set.",
    "If activations are smooth almost everywhere, and the boundaries of their zero sets are null, then both hold "
    "for every layer of the network.",
    "A smooth map whose critical points form a null set is non-singular.",
    "The map of a linear network under a quadratic loss is non-singular: det(I - eta H) is a polynomial of the "
    "parameters that is not zero.",
    "A continuously differentiable map with an invertible derivative almost everywhere is non-singular.",
    "The zero set of a polynomial that is not zero is null.",
    "The zero set of an analytic function that is not zero is null.",
)

# A usual step size, asked for where not every one is proved; and how far "every" has to reach.
USUAL = Fraction(1, 10)
FAR = 1e6
# An interval narrower than this, relatively, is called narrow.
NARROW = 1e-6
# Initialisations drawn where the pieces are too many to list.
STARTS = 20
# Pieces are listed up to this number.
MOST_PIECES = 3000
LOSSES = {"squared": "square loss", "cross_entropy": "cross-entropy"}
NAMES = tuple(name for name in ACTIVATIONS if name != "identity")
# At usual step sizes only where pieces cannot be listed soon enough.
KINKED = ("relu", "leaky_relu", "elu")

# What is known of a network, the most first.
EVERY, LISTED, INTERVALS, DRAWN, USUAL_ONLY, USUAL_DRAWN, SINGULAR, UNDECIDED, NOT_RUN = range(9)
KINDS = (
    "non-singular at every step size, everywhere (proved)",
    "at every step size but those exceptional (complete list, proved)",
    "at every step size outside a few narrow intervals, everywhere (proved)",
    f"at every step size, on most pieces (estimated); at {USUAL} everywhere (proved)",
    f"at {USUAL}, everywhere (proved); other step sizes open",
    f"at {USUAL}, on most pieces (estimated)",
    "singular at the step sizes given (proved); others open",
    "undecided",
    "not in this run",
)
COLOURS = (
    "#2C7FB8", "#7FCDBB", "#C7E9B4", "#FFF7BC", "#FED98E", "#FEC44F", "#E69F9F", "#D9D9D9", "#FFFFFF",
)  # fmt: skip
MARK = "#B2182B"

Progress = Callable[[int, int], None]


class Verified(NamedTuple):
    """A certificate, whether its record was verified again, why (not), and the seconds that both took."""

    certificate: Any
    holds: bool
    reason: str
    seconds: float

    @property
    def proved(self) -> bool:
        """Whether the verdict is proved, without a probability, and its record was verified."""
        return self.holds and self.certificate.status == "proved"

    @property
    def non_singular(self) -> bool:
        """Whether non-singularity is proved on all of parameter space."""
        return self.proved and self.certificate.verdict == "non-singular"

    @property
    def singular(self) -> bool:
        """Whether some piece is proved to be mapped into a null set."""
        return self.proved and self.certificate.verdict == "singular"

    @property
    def at_every_step_size(self) -> bool:
        """Whether non-singularity is proved at every step size up to `FAR` at least."""
        certificate = self.certificate
        return (
            self.non_singular
            and not certificate.step_sizes
            and not certificate.exceptional
            and certificate.proved_up_to >= FAR
        )

    @property
    def failed(self) -> bool:
        """Whether the record of a verdict does not stand up to its check."""
        return self.certificate.verdict != "undecided" and not self.holds


class Cell(NamedTuple):
    """What was found for one network.

    ``usual`` where not every step size is proved, ``listed`` where the map is singular at some, and ``around`` at
    step sizes beside the intervals that the proof of ``usual`` leaves out.
    """

    architecture: str
    activation: str
    loss: str
    dim: int
    kinks: int
    every: Verified
    usual: Verified | None
    listed: Any
    exceptional: dict[Fraction, Verified]
    around: Verified | None = None

    @property
    def certificates(self) -> list[Verified]:
        """All that were made."""
        asked = [one for one in (self.every, self.usual, self.around) if one is not None]
        return [*asked, *self.exceptional.values()]

    @property
    def decided(self) -> list[Verified]:
        """Those with a verdict."""
        return [one for one in self.certificates if one.certificate.verdict != "undecided"]

    @property
    def kind(self) -> int:
        """The first of `KINDS` that holds."""
        every, usual = self.every, self.usual
        if every.at_every_step_size:
            return EVERY
        sure = usual is not None and usual.non_singular
        if every.singular:
            confirmed = [one for one in self.exceptional.values() if one.singular]
            complete = (
                self.listed.complete
                and self.listed.proved_up_to >= FAR
                and len(confirmed) == len(self.listed)
                and self.listed.resolution == 0
            )
            return LISTED if complete and sure else SINGULAR
        drawn = every.holds and every.certificate.verdict == "non-singular" and not every.certificate.exceptional
        if sure and self.gaps is not None:
            return INTERVALS
        if sure:
            return DRAWN if drawn and every.certificate.proved_up_to >= FAR else USUAL_ONLY
        if usual is not None and usual.holds and usual.certificate.verdict == "non-singular":
            return USUAL_DRAWN
        return UNDECIDED

    @property
    def gaps(self) -> tuple[Bracket, ...] | None:
        """The step sizes that the proof at `USUAL` leaves out, if it covers all others and they are few."""
        if self.usual is None or not self.usual.non_singular:
            return None
        certificate = self.usual.certificate
        if not all(claim["kind"] in ("spectra", "exact spectra") for claim in certificate.proof["claims"]):
            return None
        narrow = all(
            math.isfinite(one.upper) and one.upper - one.lower <= NARROW * one.lower
            for one in certificate.exceptional
        )
        around = self.around
        sure = narrow and certificate.proved_up_to >= FAR and around is not None and around.non_singular
        return certificate.exceptional if sure else None

    @property
    def seconds(self) -> float:
        """Of all certificates and checks."""
        return sum(one.seconds for one in self.certificates)


def verified(objective: Any, step_size: Any = None, **options: Any) -> Verified:
    """A certificate whose record, written and read as JSON, has been checked against the loss."""
    begun = time.perf_counter()
    certificate = proofs.certify_nonsingular(objective, step_size, **options)
    if certificate.verdict == "undecided":
        return Verified(certificate, False, certificate.reason, time.perf_counter() - begun)
    check = proofs.check_proof(objective, json.loads(json.dumps(certificate.proof)))
    return Verified(certificate, check.valid, check.reason, time.perf_counter() - begun)


# The networks ----------------------------------------------------------------------------------------------------


class Architecture(NamedTuple):
    """A kind of network: a module made of an activation and the number of outputs, and the shape of its "
    "samples."""

    module: Callable[[Any, int], Any]
    samples: tuple[int, ...]


ARCHITECTURES: dict[str, Architecture] = {
    "fully connected, one hidden layer": Architecture(lambda s, k: FullyConnected((1, 2, k), s), (3, 1)),
    "fully connected, two hidden layers": Architecture(lambda s, k: FullyConnected((2, 2, 2, k), s), (3, 2)),
    "convolution 3 x 3, pooling": Architecture(lambda s, k: Convolutional((1, 2, 2), (1,), k, s), (2, 1, 2, 2)),
    "attention (softmax)": Architecture(lambda s, k: Attention(2, 2, k, s, hidden=2, layer_norm=False), (3, 2, 2)),
    "attention with LayerNorm": Architecture(lambda s, k: Attention(2, 2, k, s, hidden=2), (3, 2, 2)),
    "residual": Architecture(lambda s, k: Residual(1, 2, k, s, blocks=1), (3, 1)),
}
# Those that the theorem speaks of; the others contain sums of layers, or normalisation.
IN_THEOREM = tuple(name for name in ARCHITECTURES if name != "residual")
ATTENTION = tuple(name for name in ARCHITECTURES if name.startswith("attention"))
CONVOLUTION = "convolution 3 x 3, pooling"
# The quick run: each activation once.
QUICK = (
    ("fully connected, one hidden layer", "relu", "squared"),
    ("fully connected, one hidden layer", "leaky_relu", "squared"),
    ("fully connected, one hidden layer", "sigmoid", "cross_entropy"),
    ("convolution 3 x 3, pooling", "silu", "squared"),
    ("fully connected, one hidden layer", "softplus", "cross_entropy"),
    ("attention with LayerNorm", "tanh", "squared"),
    ("residual", "gelu", "squared"),
    ("fully connected, one hidden layer", "elu", "squared"),
)


def network(architecture: str, activation: Any, loss: str, seed: int = 0) -> Network:
    """A small network on random data: normal inputs, normal targets or two classes in turn."""
    kind = ARCHITECTURES[architecture]
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal(kind.samples)
    if loss == "squared":
        return Network(kind.module(activation, 1), inputs, rng.standard_normal((len(inputs), 1)), loss)
    return Network(kind.module(activation, 2), inputs, np.arange(len(inputs)) % 2, loss)


def n_kinks(objective: AbstractObjective) -> int:
    """Comparisons in the loss that depend on the parameters, counted sample by sample and unit by unit."""
    return int(sum(np.prod(kink.mask_shape, dtype=int) for kink in ExactLoss(objective).subject.pieces.kinks))


def examined(architecture: str, activation: str, loss: str, seed: int) -> Cell:
    """Everything that is asked about one network."""
    objective = network(architecture, activation, loss, seed)
    return examined_network(objective, architecture, activation, loss, seed)


def examined_network(objective: Network, architecture: str, activation: str, loss: str, seed: int) -> Cell:
    """The certificates of one network: every step size, the usual one, the exceptional ones."""
    options = {"starts": STARTS, "seed": seed, "max_pieces": MOST_PIECES}
    every = verified(objective, **options)
    usual = None if every.at_every_step_size else verified(objective, USUAL, **options)
    listed, exceptional = None, {}
    if every.certificate.verdict == "singular":
        listed = proofs.exceptional_step_sizes(objective, seed=seed, max_pieces=MOST_PIECES)
        sizes = [one.exact for one in listed if one.exact is not None]
        exceptional = {
            size: every if every.certificate.singular_step_sizes == (size,) else verified(objective, size)
            for size in sizes
        }
    around = None
    if every.certificate.verdict != "singular" and usual is not None and usual.non_singular:
        sizes = beside(usual.certificate.exceptional)
        around = verified(objective, sizes, **{**options, "starts": 1}) if sizes else None
    kinks = n_kinks(objective)
    dim = objective.dim
    return Cell(architecture, activation, loss, dim, kinks, every, usual, listed, exceptional, around)


def beside(intervals: Sequence[Bracket]) -> list[Fraction]:
    """Step sizes just outside intervals, and far below and above; none if an interval is not bounded."""
    if not all(math.isfinite(one.upper) for one in intervals):
        return []
    near = [Fraction(one.value) * Fraction(1000 + sign, 1000) for one in intervals for sign in (-1, 1)]
    return [Fraction(1, 1000), *near, Fraction(1000)]


def run(quick: bool = False, seed: int = 0, progress: Progress | None = None) -> Report:
    """Certify the networks, verify every record again, and list exceptional step sizes.

    Raises
    ------
    ModuleNotFoundError
        Without python-flint.
    """
    require_proofs()
    asked = (
        QUICK
        if quick
        else tuple(
            (architecture, activation, loss)
            for architecture in ARCHITECTURES
            for loss in LOSSES
            for activation in NAMES
        )
    )
    lists = list_subjects(quick)
    done, total = 0, len(asked) + len(lists) + 5

    def finished() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    cells = []
    for architecture, activation, loss in asked:
        cells.append(examined(architecture, activation, loss, seed))
        finished()
    rows = {}
    for name, objective in lists.items():
        rows[name] = listed_sizes(objective)
        finished()
    conventions = examined_conventions(quick)
    finished()
    composed = compositions(seed, quick)
    finished()
    fixed = non_generic(quick)
    finished()
    recurrent = recurrent_networks(seed, quick)
    finished()
    linear = linear_networks(quick)
    finished()
    made = [one for cell in cells for one in cell.decided]
    made += [one for row in rows.values() for one in row.certificates]
    for some in (conventions.certificates, composed, fixed, recurrent, linear.certificates):
        made += some.values()
    claims = (
        main_claim(cells),
        analytic_claim(cells),
        kinks_claim(conventions),
        composition_claim(composed),
        convolution_claim(cells, fixed),
        attention_claim(cells),
        recurrent_claim(recurrent),
        gelu_claim(cells),
        almost_everywhere_claim(cells),
        *lemma_claims(made),
        linear_claim(linear, rows),
        *large_rate_lemmas(made),
    )
    claims = tuple(sorted(claims, key=lambda claim: STATEMENTS.index(claim.statement)))
    data = dataset(cells, rows)
    figures = {"certificates": picture(data), "exceptional_step_sizes": picture_of_lists(data)}
    return Report(NAME, TITLE, PAPER, claims, data, figures, quick)


# Networks and step sizes beside the grid -------------------------------------------------------------------------


class Listed(NamedTuple):
    """The exceptional step sizes of one loss, and the certificates of each (or of there being none)."""

    sizes: tuple[Fraction, ...]
    others: int
    complete: bool
    scope: str
    certificates: list[Verified]
    reasons: tuple[str, ...]

    @property
    def proved(self) -> bool:
        """Whether every one is certified singular, or every step size non-singular, and the list is complete."""
        return self.complete and self.others == 0 and all(one.proved for one in self.certificates)


class OneLayer(eqx.Module):
    """``relu(w x)``: no layer after the activation."""

    weight: Any

    def __call__(self, x: Any) -> Any:
        """The output of one sample."""
        return jax.nn.relu(self.weight * x)


# Three samples with an exact second moment on each side of 0.
INPUTS, TARGETS = np.array([[1.0], [2.0], [-1.0]]), np.array([[0.5], [1.0], [-0.25]])


def regression() -> LinearNetwork:
    """A network of one layer: linear regression, ``L = 1/(2m) sum (w x - y)^2``."""
    inputs = np.array([[2.0, 1.0], [2.0, -1.0], [-2.0, 1.0], [-2.0, -1.0]])
    return LinearNetwork((2, 1), inputs, np.array([[1.0], [0.0], [1.0], [3.0]]))


def list_subjects(quick: bool) -> dict[str, AbstractObjective]:
    """The losses whose exceptional step sizes are listed."""
    subjects: dict[str, AbstractObjective] = {
        "linear regression": regression(),
        "one layer, relu(w x)": Network(OneLayer(np.ones(1)), INPUTS, TARGETS),
        "ReLU 1-1-1, biases": Network(FullyConnected((1, 1, 1)), INPUTS, TARGETS),
        "the same, weight decay 1/8": Network(FullyConnected((1, 1, 1)), INPUTS, TARGETS, weight_decay=0.125),
        "ReLU 1-1-1-1, no biases": Network(FullyConnected((1, 1, 1, 1), bias=False), INPUTS, TARGETS),
        "deep linear 1-2-1": LinearNetwork((1, 2, 1), INPUTS, TARGETS),
    }
    if quick:
        return subjects
    labels = np.array([0, 1, 0])
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 1, 2, 2))
    return subjects | {
        "ReLU 1-2-2-1, no biases": Network(FullyConnected((1, 2, 2, 1), bias=False), INPUTS, TARGETS),
        "ReLU 1-2-1, biases": Network(FullyConnected((1, 2, 1)), INPUTS, TARGETS),
        "ReLU 1-2-1, biases, weight decay 1/2": Network(
            FullyConnected((1, 2, 1)), INPUTS, TARGETS, weight_decay=0.5
        ),
        "ReLU 1-2-2, cross-entropy": Network(FullyConnected((1, 2, 2)), INPUTS, labels, "cross_entropy"),
        "convolution, ReLU, biases": Network(Convolutional((1, 2, 2), (1,), 1), images, TARGETS[:2]),
        "leaky ReLU 1-2-1, biases": Network(FullyConnected((1, 2, 1), "leaky_relu"), INPUTS, TARGETS),
        "tanh 1-2-1, biases": Network(FullyConnected((1, 2, 1), "tanh"), INPUTS, TARGETS),
        "deep linear 2-2-2": LinearNetwork((2, 2, 2), rng.standard_normal((4, 2)), rng.standard_normal((4, 2))),
    }


def listed_sizes(objective: AbstractObjective) -> Listed:
    """The exceptional step sizes of a loss; each certified singular, or every step size non-singular."""
    listed = proofs.exceptional_step_sizes(objective, max_pieces=MOST_PIECES)
    sizes = tuple(one.exact for one in listed if one.exact is not None and one.confirmed)
    others = len(listed) - len(sizes)
    if len(listed):
        certificates = [verified(objective, size) for size in sizes]
        complete = listed.complete and listed.proved_up_to >= FAR
        complete = complete and all(one.singular for one in certificates)
    else:
        certificates = [verified(objective, max_pieces=MOST_PIECES)]
        complete = certificates[0].at_every_step_size
    return Listed(sizes, others, complete, listed.scope, certificates, tuple(one.reason for one in listed))


class Conventions(NamedTuple):
    """The same network with other derivatives at the kink: gradients on a kink, and certificates."""

    gradients: dict[str, np.ndarray]
    certificates: dict[str, Verified]
    kinks: Bracket | None


RELUS: dict[str, Callable[[Any], Any]] = {
    "0": lambda z: jnp.where(z > 0, z, 0.0),
    "1": lambda z: jnp.where(z >= 0, z, 0.0),
    "1/2": lambda z: jnp.maximum(z, 0.0),
}


def examined_conventions(quick: bool) -> Conventions:
    """ReLU 1-2-1 with other derivatives at 0: gradients at a point on a kink, certificates at two step sizes."""
    from gdmap.certify.margins import affine_margins

    gradients, certificates, kinks = {}, {}, None
    for name, relu in list(RELUS.items())[1 if quick else 0 :]:
        objective = Network(FullyConnected((1, 2, 1), relu), INPUTS, TARGETS)
        # The first unit is 0 on the first sample.
        point = objective.ravel(
            eqx.tree_at(
                lambda m: (m.layers[0].weight, m.layers[0].bias, m.layers[1].weight, m.layers[1].bias),
                FullyConnected((1, 2, 1), relu),
                (np.array([[1.0], [0.5]]), np.array([-1.0, 0.25]), np.array([[1.0, -1.0]]), np.array([0.5])),
            )
        )
        gradients[name] = np.asarray(objective.gradient(point))
        for eta in (USUAL,) if quick else (USUAL, Fraction(1)):
            certificates[f"derivative {name} at the kink, step size {eta}"] = verified(objective, eta)
        margins = affine_margins(ExactLoss(objective).subject)
        if margins is not None:
            null = sum(any(entry != 0 for entry in normal) for normal in margins.normals)
            if null == len(margins.normals):
                kinks = exactly(null, "normals of the kinks, exact rationals: each is a hyperplane")
    return Conventions(gradients, certificates, kinks)


def compositions(seed: int, quick: bool) -> dict[str, Verified]:
    """Certificates of mini-batch maps and schedules."""
    tanh, relu = (network("fully connected, one hidden layer", name, "squared", seed) for name in ("tanh", "relu"))
    schedule = [Fraction(1, k) for k in range(1, 13)]
    made = {
        "tanh, every mini-batch of one sample, every step size": verified(tanh, batch_size=1),
        f"ReLU, every mini-batch of one sample, step size {USUAL}": verified(relu, USUAL, batch_size=1),
        "tanh, schedule 1, 1/2, ..., 1/12": verified(tanh, schedule),
        "ReLU, schedule 1/2, ..., 1/12": verified(relu, schedule[1:]),
    }
    if not quick:
        made[f"ReLU, every mini-batch of two samples, step size {USUAL}"] = verified(relu, USUAL, batch_size=2)
        for loss in LOSSES:
            for architecture in (CONVOLUTION, *ATTENTION, "residual"):
                one = network(architecture, "tanh", loss, seed)
                name = f"{architecture}, tanh, {LOSSES[loss]}, every mini-batch of one sample, step size {USUAL}"
                made[name] = verified(one, USUAL, batch_size=1)
    return made


def non_generic(quick: bool) -> dict[str, Verified]:
    """Certificates of convolutional networks on data that are not generic."""
    ones = np.ones((1, 2, 2))
    data = {
        "a zero image and a constant one": np.stack([0 * ones, ones]),
        "the same image twice": np.stack([ones * [[1.0, 2.0], [3.0, 4.0]]] * 2),
    }
    made = {}
    for name, images in data.items():
        for activation in ("tanh",) if quick else NAMES:
            objective = Network(Convolutional((1, 2, 2), (1,), 1, activation), images, TARGETS[:2])
            if activation in KINKED:
                made[f"{activation}, {name}, step size {USUAL}"] = verified(objective, USUAL)
            else:
                made[f"{activation}, {name}, every step size"] = verified(objective)
    return made


class Recurrent(eqx.Module):
    """``h <- s(U x_t + V h + b)`` from ``h = 0``, then a linear layer: the same weights at all times."""

    into: eqx.nn.Linear
    again: eqx.nn.Linear
    out: eqx.nn.Linear
    activation: Callable[[Any], Any] = eqx.field(static=True)

    def __init__(self, hidden: int, activation: str) -> None:
        keys = jax.random.split(jax.random.key(0), 3)
        self.into = eqx.nn.Linear(1, hidden, key=keys[0])
        self.again = eqx.nn.Linear(hidden, hidden, use_bias=False, key=keys[1])
        self.out = eqx.nn.Linear(hidden, 1, key=keys[2])
        self.activation = ACTIVATIONS[activation]

    def __call__(self, x: Any) -> Any:
        """The output of a sequence, shape ``(times, 1)``."""
        state, _ = jax.lax.scan(
            lambda h, now: (self.activation(self.into(now) + self.again(h)), None),
            jnp.zeros(self.again.out_features, x.dtype),
            x,
        )
        return self.out(state)


def recurrent_networks(seed: int, quick: bool) -> dict[str, Verified]:
    """Certificates of small recurrent networks."""
    rng = np.random.default_rng(seed)
    sequences, targets = rng.standard_normal((3, 3, 1)), rng.standard_normal((3, 1))
    made = {}
    for activation in ("tanh",) if quick else NAMES:
        objective = Network(Recurrent(2, activation), sequences, targets)
        if activation in KINKED:
            made[f"{activation}, step size {USUAL}"] = verified(objective, USUAL, starts=STARTS, seed=seed)
        else:
            made[f"{activation}, every step size"] = verified(objective)
    return made


class Linear(NamedTuple):
    """Deep linear networks at every step size; and where the determinant at 0 vanishes with two layers."""

    certificates: dict[str, Verified]
    at_origin: dict[Fraction, Bracket]


def linear_networks(quick: bool) -> Linear:
    """Certificates of linear networks of two layers and more; the spectrum at 0 of the one with two."""
    rng = np.random.default_rng(1)
    widths: list[tuple[int, ...]] = [(1, 2, 1), (2, 2, 2), (1, 2, 2, 1)]
    if not quick:
        widths += [(2, 1, 2), (3, 2, 3), (2, 2, 2, 2), (1, 1, 1, 1, 1), (2, 3, 3, 2)]
    made = {}
    for w in widths:
        made["-".join(map(str, w))] = verified(
            LinearNetwork(w, rng.standard_normal((4, w[0])), rng.standard_normal((4, w[-1])))
        )
    # Targets 2 x: at 0 the Hessian of a 1-1-1 network has the eigenvalues 2 and -2 times the mean of x^2.
    inputs = np.array([[1.0], [-1.0]])
    # Written as a network: LinearNetwork factorises the data, which leaves rounding in them.
    two = Network(FullyConnected((1, 1, 1), "identity", bias=False), inputs, 2 * inputs)
    at_origin = {}
    exact = ExactLoss(two)
    for value in exact.spectrum(np.zeros(two.dim)).positive:
        eta = 1 / Fraction(value.value).limit_denominator(1000)
        matrix = exact.hessian([0] * two.dim)
        if exact.characteristic(matrix, exact.polynomial(1 / eta)) == 0:
            at_origin[eta] = value
            made[f"1-1-1 with det(I - eta H(0)) = 0, step size {eta}"] = verified(two, eta)
    return Linear(made, at_origin)


# Claims ----------------------------------------------------------------------------------------------------------


def count(number: int, method: str, proved: bool = True) -> Bracket:
    """How many there are."""
    return Bracket(float(number), float(number), float(number), "proved" if proved else "computed", method)


CHECKED = "records that check_proof verified again"


def numbers_of(cells: Sequence[Cell]) -> dict[str, Bracket]:
    """How many networks have which verdict, and how far "every step size" reaches."""
    found = {"networks": count(len(cells), "number of networks", False)}
    for kind in range(NOT_RUN):
        some = [cell for cell in cells if cell.kind == kind]
        if some:
            found[KINDS[kind]] = count(len(some), CHECKED, kind in (EVERY, LISTED, INTERVALS, USUAL_ONLY))
    everywhere = [cell.every.certificate.proved_up_to for cell in cells if cell.kind == EVERY]
    if everywhere:
        reach = min(everywhere)
        found["'every step size' reaches at least to"] = Bracket(reach, reach, math.inf, "proved", CHECKED)
    found["records whose check failed"] = count(failures(cells), CHECKED)
    for cell in cells:
        for size, one in cell.exceptional.items():
            if one.singular:
                name = f"exceptional: {cell.architecture}, {cell.activation}, {LOSSES[cell.loss]}"
                found[f"{name}, {size}"] = exactly(size, one.certificate.method)
        gaps = cell.gaps if cell.kind == INTERVALS else ()
        for number, gap in enumerate(gaps or (), 1):
            found[f"left open {number}: {cell.architecture}, {cell.activation}, {LOSSES[cell.loss]}"] = gap
        bound = cell.every.certificate.probability
        if cell.every.holds and bound is not None:
            name = f"{cell.architecture}, {cell.activation}, {LOSSES[cell.loss]}"
            found[f"every step size, probability of the pieces proved: {name}"] = bound
    return found


def failures(cells: Sequence[Cell]) -> int:
    """Verdicts whose record did not stand up to its check."""
    return sum(one.failed for cell in cells for one in cell.certificates)


def sizes_of(cells: Sequence[Cell]) -> str:
    """The sizes of the networks in words."""
    dims = [cell.dim for cell in cells]
    return f"{min(dims)} to {max(dims)} parameters, on two or three samples" if dims else "none"


def undecided(cells: Sequence[Cell]) -> str:
    """Which networks are undecided at which question, with the reason."""
    open_, told = [], ""
    for cell in cells:
        if cell.every.certificate.verdict == "undecided":
            open_.append(f"{cell.architecture}, {cell.activation}, {LOSSES[cell.loss]}")
            told = told or cell.every.certificate.reason
    if not open_:
        return ""
    told = told.removeprefix("What was tried last: ")
    return f" Asked for every step size at once, these stay undecided: {'; '.join(open_)} ({told})."


def judged(cells: Sequence[Cell]) -> Agreement:
    """Whether certificates bear a statement out: ``'no'`` where one contradicts it or a record fails."""
    if not cells:
        return "not reproducible"
    singular_at_usual = any(
        cell.usual is not None and cell.usual.singular and USUAL not in cell.exceptional for cell in cells
    )
    if failures(cells) or singular_at_usual:
        return "no"
    return "not reproducible" if all(cell.kind == UNDECIDED for cell in cells) else "yes"


def settled(cells: Sequence[Cell]) -> bool:
    """Whether for each network some step size is proved on all of parameter space."""
    return bool(cells) and all(
        cell.kind == EVERY or (cell.usual is not None and cell.usual.non_singular) for cell in cells
    )


def told(cells: Sequence[Cell]) -> str:
    """The verdicts in a sentence."""
    parts = []
    for kind in range(NOT_RUN):
        n = sum(cell.kind == kind for cell in cells)
        if n:
            parts.append(f"{n} {KINDS[kind]}")
    bad = failures(cells)
    checks = "Every record was verified again." if not bad else f"{bad} records did not stand up to their check."
    return f"Networks: {len(cells)}. Verdicts: {'; '.join(parts)}. {checks}{undecided(cells)}"


WHAT_IS_PROVED = (
    " What is proved is this, for these networks, data and step sizes; the theorem speaks of all. On a piece "
    "det(I - eta H) at one point is a polynomial in eta that is 1 at eta = 0, so a piece has at most as many "
    "exceptional step sizes as parameters: the certificates say which."
)


def how(cells: Sequence[Cell]) -> str:
    """What was run, in words."""
    return (
        f"{len(cells)} networks of {sizes_of(cells)} (normal inputs and targets, two classes in turn): L = 1/(2m) "
        "sum of squares or mean cross-entropy. certify_nonsingular for every step size at once, and at "
        f"{USUAL} where that is not settled; exceptional_step_sizes where the map is singular at some; where "
        f"pieces "
        f"are more than {MOST_PIECES}, or cannot be listed, those of {STARTS} draws from N(0, 1). check_proof on "
        "every record."
    )


def main_claim(cells: Sequence[Cell]) -> Claim:
    """The main theorem: verdicts for all networks it speaks of (residual ones beside)."""
    covered = [cell for cell in cells if cell.architecture in IN_THEOREM]
    beside = [cell for cell in cells if cell.architecture not in IN_THEOREM]
    agrees = judged(covered)
    conclusion = told(covered)
    if beside:
        conclusion += " Residual networks, which the theorem does not name: " + told(beside)
    proved = on_instances(agrees == "yes" and settled(covered))
    return Claim(
        STATEMENTS[0],
        "Theorem 1",
        how(cells),
        numbers_of(cells),
        agrees,
        conclusion + WHAT_IS_PROVED,
        proved,
        figure="certificates",
    )


def analytic_claim(cells: Sequence[Cell]) -> Claim:
    """Proposition 11: networks without kinks."""
    smooth = [cell for cell in cells if cell.kinks == 0]
    agrees = judged(smooth)
    conclusion = "The losses without kinks are analytic on all of parameter space. " + told(smooth)
    proved = on_instances(agrees == "yes" and settled(smooth))
    return Claim(
        STATEMENTS[1],
        "Proposition 11",
        f"The networks without kinks among the {len(cells)}. Losses with a constant eigenvalue, and the wording "
        f"of "
        "the proof, are in the reproduction singular-map.",
        numbers_of(smooth),
        agrees,
        conclusion,
        proved,
        figure="certificates",
    )


def kinks_claim(conventions: Conventions) -> Claim:
    """Corollary 12: values on the kinks play no part."""
    found: dict[str, Bracket] = {}
    gradients = list(conventions.gradients.values())
    apart = max(float(np.abs(a - b).max()) for a in gradients for b in gradients)
    found["largest difference of the gradients at a point on a kink"] = Bracket(
        apart, max(apart - 1e-12, 0.0), apart + 1e-12, "computed", "floating point, to rounding"
    )
    usual = [one for name, one in conventions.certificates.items() if name.endswith(f"step size {USUAL}")]
    at_one = [one for name, one in conventions.certificates.items() if name.endswith("step size 1")]
    found[f"conventions certified non-singular at {USUAL}"] = count(
        sum(one.non_singular for one in usual), CHECKED
    )
    if at_one:
        found["conventions certified singular at 1"] = count(sum(one.singular for one in at_one), CHECKED)
    found["of"] = count(len(conventions.gradients), "number of conventions", False)
    if conventions.kinks is not None:
        found["kinks, each in one hyperplane of parameter space"] = conventions.kinks
    same = all(one.non_singular for one in usual) and len({one.certificate.verdict for one in at_one}) <= 1
    agrees: Agreement = "yes" if same and apart > 0 and conventions.kinks is not None else "no"
    names = ", ".join(conventions.gradients)
    conclusion = (
        f"With the derivative of ReLU at 0 taken as {names} the maps differ on the kinks, by {apart:.3g} in the "
        "gradient at one point, and the verdicts are the same. The kinks are hyperplanes, a null set, so no set "
        "of "
        "positive measure sees the difference."
        if agrees == "yes"
        else "The verdicts differ between conventions, or the kinks were not shown to be null."
    )
    return Claim(
        STATEMENTS[2],
        "Corollary 12",
        f"ReLU 1-2-1 with biases on three samples, written in {len(conventions.gradients)} ways; "
        f"certify_nonsingular "
        f"at {USUAL}{' and 1' * bool(at_one)}; the kinks as exact affine functions.",
        found,
        agrees,
        conclusion,
        on_instances(agrees == "yes"),
    )


def tally(made: Mapping[str, Verified]) -> dict[str, Bracket]:
    """How many certificates prove non-singularity everywhere, of how many."""
    good = sum(one.non_singular for one in made.values())
    return {
        "certified non-singular on all of parameter space": count(good, CHECKED),
        "of": count(len(made), "certificates asked for", False),
    }


def verdict_of(made: Mapping[str, Verified]) -> Agreement:
    """``'yes'`` if all are proved non-singular, ``'no'`` if one is singular or fails, else open."""
    if any(one.singular or one.failed for one in made.values()):
        return "no"
    return "yes" if made and all(one.non_singular for one in made.values()) else "not reproducible"


def exceptions_in_words(made: Mapping[str, Verified]) -> str:
    """Those that are not proved non-singular, each with its verdict."""
    rest = [
        f"{name}: {one.certificate.verdict}, {one.certificate.status} ({one.reason})"
        for name, one in made.items()
        if not one.non_singular
    ]
    return " Not so: " + "; ".join(rest) + "." if rest else ""


def composition_claim(made: Mapping[str, Verified]) -> Claim:
    """Mini-batches and schedules."""
    agrees = verdict_of(made)
    conclusion = (
        f"{sum(one.non_singular for one in made.values())} of {len(made)} families of maps are proved "
        f"non-singular "
        "throughout. A preimage of a null set under each is null, so it is under every composition of them, of "
        "any "
        "length: nothing more needs to be computed." + exceptions_in_words(made)
    )
    return Claim(
        STATEMENTS[3],
        "Section on compositions, after Corollary 12",
        "certify_nonsingular with batch_size= (every mini-batch, drawn without repetition) and for schedules: "
        + "; ".join(made)
        + ".",
        tally(made),
        agrees,
        conclusion,
        on_instances(agrees == "yes"),
    )


def convolution_claim(cells: Sequence[Cell], fixed: Mapping[str, Verified]) -> Claim:
    """Proposition 16: tied weights, on generic data and on others."""
    generic = [cell for cell in cells if cell.architecture == CONVOLUTION]
    found = numbers_of(generic) | {f"data that are not generic: {name}": one for name, one in tally(fixed).items()}
    judgement = {judged(generic), verdict_of(fixed)}
    agrees: Agreement = "no" if "no" in judgement else "yes" if judgement == {"yes"} else "not reproducible"
    conclusion = (
        f"On random data: {told(generic)} On images that are not generic: "
        f"{sum(one.non_singular for one in fixed.values())} of {len(fixed)} certificates are non-singular on all "
        f"of "
        f"parameter space.{exceptions_in_words(fixed)}"
    )
    if agrees == "yes":
        conclusion += (
            " Generic data are not needed: each entry of a convolution is a linear function of the kernel, zero "
            "for "
            "all kernels or zero on a null set of them, so the argument goes through entry by entry."
        )
    return Claim(
        STATEMENTS[4],
        "Proposition 16 (appendix B)",
        "Convolutions 3 x 3 of images of 2 x 2, one channel, biases, average pooling, a linear layer; random "
        "images, "
        "and " + "; ".join(fixed) + ".",
        found,
        agrees,
        conclusion,
        on_instances(agrees == "yes" and settled(generic)),
        figure="certificates",
    )


def attention_claim(cells: Sequence[Cell]) -> Claim:
    """Proposition 17 and Remark 19."""
    some = [cell for cell in cells if cell.architecture in ATTENTION]
    agrees = judged(some)
    return Claim(
        STATEMENTS[5],
        "Proposition 17, Remark 19",
        "One block of softmax attention between a linear layer and a hidden layer, two tokens of width two, with "
        "and "
        "without LayerNorm (in a quick run with). The sums round the block and LayerNorm are not in the "
        "proposition.",
        numbers_of(some),
        agrees,
        told(some) + " Linear, attention and hidden layers follow one another in each.",
        on_instances(agrees == "yes" and settled(some)),
        figure="certificates",
    )


def recurrent_claim(made: Mapping[str, Verified]) -> Claim:
    """The conjecture on recurrent networks, on instances."""
    agrees = verdict_of(made)
    return Claim(
        STATEMENTS[6],
        "Conclusion (conjecture)",
        "h <- s(U x_t + V h + b), two units, three times, three sequences, L = 1/(2m) sum of squares; "
        + "; ".join(made)
        + ".",
        tally(made),
        agrees,
        f"Proved for {sum(one.non_singular for one in made.values())} of {len(made)} instances; an instance is no "
        "proof of the conjecture. It follows for these activations from o-minimality: a loss that is definable "
        "with "
        "analytic pieces has finitely many of them, however weights are tied." + exceptions_in_words(made),
        on_instances(agrees == "yes"),
    )


def gelu_claim(cells: Sequence[Cell]) -> Claim:
    """GELU has no kink."""
    gelu = [cell for cell in cells if cell.activation == "gelu"]
    found = {"networks with GELU": count(len(gelu), "number of networks", False)}
    found["kinks in their losses"] = count(sum(cell.kinks for cell in gelu), "comparisons in the traced formulas")
    kinked = sorted({cell.activation for cell in cells if cell.kinks})
    for name in kinked:
        kinks = [cell.kinks for cell in cells if cell.activation == name]
        found[f"{name}: kinks in a loss, units times samples, at least"] = count(
            min(kinks), "comparisons in the traced formulas"
        )
    found |= {name: one for name, one in numbers_of(gelu).items() if name != "networks"}
    smooth = bool(gelu) and not any(cell.kinks for cell in gelu)
    agrees: Agreement = "no" if judged(gelu) == "no" else "corrected" if smooth else "yes"
    conclusion = (
        "z Phi(z) is analytic on the whole line: the losses have no kink and one piece. It counts as piecewise "
        "analytic only in the sense that every analytic function does; kinks are those of "
        f"{', '.join(kinked) or 'none'}. {told(gelu)}"
        if smooth
        else f"The losses have kinks. {told(gelu)}"
    )
    return Claim(
        STATEMENTS[7],
        "Example 3 and the list of activations",
        "Comparisons that depend on the parameters in the traced losses; GELU is z Phi(z), not its tanh form.",
        found,
        agrees,
        conclusion,
        figure="certificates",
    )


def almost_everywhere_claim(cells: Sequence[Cell]) -> Claim:
    """Proposition 7, Lemma 8, Corollary 9: the losses as analytic pieces."""
    read = len(cells)
    smooth = sum(cell.kinks == 0 for cell in cells)
    listed = [
        cell for cell in cells if any(c["kind"] == "every piece" for c in cell.every.certificate.proof["claims"])
    ]
    found = {
        "losses written as finitely many analytic formulas": count(
            read, "the traced loss, comparisons made inputs"
        ),
        "of these, analytic everywhere": count(smooth, "no comparison depends on the parameters"),
        "of these, with all pieces listed, exactly": count(len(listed), CHECKED),
    }
    agrees: Agreement = "yes" if read else "not reproducible"
    return Claim(
        STATEMENTS[8],
        "Proposition 7, Lemma 8, Corollary 9",
        "Every loss of the run, read as a formula of analytic operations and finitely many comparisons; a loss "
        "that "
        "cannot be read so is refused.",
        found,
        agrees,
        f"All {read} losses are analytic formulas on pieces; {smooth} have one piece. That kinks form null sets "
        f"is "
        f"taken from the theorem; for {len(listed)} networks with one hidden layer the pieces were listed in "
        f"exact "
        "arithmetic, cut by hyperplanes.",
    )


def on_instances(proved: bool) -> bool | Literal["instances"]:
    """How a general statement counts whose instances in the run are all proved."""
    return "instances" if proved else False


def lemma(statement: str, source: str, uses: str, made: Sequence[Verified], paper: str | None = None) -> Claim:
    """A statement that no computation tells, with what in this run rests on it."""
    good = sum(one.holds for one in made)
    return Claim(
        statement,
        source,
        "Nothing: a statement about all null sets is not tested by evaluating functions.",
        {"verified records of this run that rest on it": count(good, CHECKED)},
        "not reproducible",
        f"No computation can tell: it is a statement of measure theory. {uses}",
        paper=paper,
    )


def lemma_claims(made: Sequence[Verified]) -> list[Claim]:
    """What the paper's proofs use and no computation tells."""
    good = [one for one in made if one.certificate.verdict == "non-singular"]
    return [
        lemma(
            STATEMENTS[9],
            "Propositions 6 and 14",
            "The certificates do not use it: they read the pieces of each loss from its formula. Proposition 6 "
            "leaves out the hypothesis on the boundaries of zero sets, which analytic activations satisfy.",
            [],
        ),
        lemma(
            STATEMENTS[10],
            "Lemma 10",
            "Every certificate of non-singularity rests on it: a non-zero determinant off a null set.",
            good,
        ),
    ]


def large_rate_lemmas(made: Sequence[Verified]) -> list[Claim]:
    """The measure-theoretic lemmas of the earlier paper."""
    good = [one for one in made if one.certificate.verdict == "non-singular"]
    exact = [one for one in good if any("exact" in claim["kind"] for claim in one.certificate.proof["claims"])]
    uses = (
        "Every certificate of non-singularity rests on it.",
        "Certificates by exact characteristic polynomials, of losses that are polynomials on their pieces, rest "
        "on "
        "it.",
        "All certificates rest on it: one point with a non-zero determinant settles an analytic piece.",
    )
    sources = (
        "Proposition 9, as reported",
        "Lemma 10, as reported",
        "Lemma 13, as reported; Lemma 18 of the other",
    )
    return [
        lemma(statement, source, use, some, LARGE_LEARNING_RATES)
        for statement, source, use, some in zip(STATEMENTS[12:15], sources, uses, (good, exact, good), strict=True)
    ]


def linear_claim(linear: Linear, rows: Mapping[str, Listed]) -> Claim:
    """Linear networks: two layers and more, and one."""
    made = linear.certificates
    deep = {name: one for name, one in made.items() if "step size" not in name}
    every = sum(one.at_every_step_size for one in deep.values())
    found = {
        "networks of two layers and more, proved at every step size": count(every, CHECKED),
        "of": count(len(deep), "number of networks", False),
    }
    one_layer = rows["linear regression"]
    for size in one_layer.sizes:
        found[f"one layer: exceptional step size {size}"] = exactly(
            size, "singular: constant Hessian, certificate"
        )
    eigenvalues = np.linalg.eigvalsh(regression().input_covariance)
    found["one layer: 1 / largest eigenvalue of the input covariance"] = rounded(1 / float(eigenvalues[-1]))
    for eta, value in linear.at_origin.items():
        found["1-1-1: eigenvalue of the Hessian at 0"] = value
        found["1-1-1: step size at which det(I - eta H(0)) = 0"] = enclosed(eta, eta, "exact spectrum at 0")
    beside = [one for name, one in made.items() if "step size" in name]
    fine = every == len(deep) and all(one.non_singular for one in beside)
    refuted = bool(one_layer.sizes) and all(one.singular for one in one_layer.certificates)
    agrees: Agreement = "no" if not fine else "corrected" if refuted else "yes"
    conclusion = (
        f"{every} of {len(deep)} networks of two layers and more are proved non-singular at every step size"
        f"{exceptions_in_words(deep)}."
    )
    if linear.at_origin and all(one.non_singular for one in beside):
        sizes = ", ".join(str(eta) for eta in linear.at_origin)
        conclusion += (
            f" With two layers the determinant at 0 may vanish, here at step size {sizes}; another point proves "
            "non-singularity there."
        )
    if refuted:
        conclusion += (
            " With one layer (linear regression) the Hessian is constant, the determinant is a number, and it is "
            f"zero at {', '.join(map(str, one_layer.sizes))}, the reciprocals of its eigenvalues: the map is "
            f"proved "
            "singular there. The statement needs two layers, or 'almost every step size'."
        )
    names = ", ".join(deep)
    return Claim(
        STATEMENTS[11],
        "Theorem on linear networks, as reported",
        f"certify_nonsingular for every step size, L = 1/(2m) sum ||W x - y||^2, four random samples, widths "
        f"{names}; "
        "1-1-1 with targets 2 x at the step size where the determinant at 0 vanishes; exceptional_step_sizes of "
        "linear regression on four samples.",
        found,
        agrees,
        conclusion,
        on_instances(agrees != "no"),
        LARGE_LEARNING_RATES,
        figure="exceptional_step_sizes",
    )


def rounded(value: float) -> Bracket:
    """A number known up to rounding."""
    slack = 1e-13 * max(1.0, abs(value))
    return Bracket(value, value - slack, value + slack, "computed", "floating point, to rounding")


# Data and pictures -----------------------------------------------------------------------------------------------


def method_of(one: Verified, kinks: int) -> str:
    """How it was proved, in two words."""
    if one.certificate.verdict == "undecided":
        return ""
    words = {"growth": "growth", "regular": "one point", "constant directions": "constant direction"}
    parts, points, patterns = [], 0, False
    for claim in one.certificate.proof["claims"]:
        kind = claim["kind"]
        if kind == "every piece":
            parts.append(f"{claim['n_pieces']} pieces")
        elif kind == "drawn pieces":
            parts.append(f"{claim['n']} draws")
        elif kind in ("spectra", "exact spectra"):
            points += len(claim["points"])
            patterns = patterns or claim["pattern"] == "every"
        else:
            parts.append(words.get(kind, kind))
    if points:
        parts.append("all patterns" if patterns and kinks else f"{points} point{'s' * (points > 1)}")
    return " + ".join(dict.fromkeys(parts))


def method_of_cell(cell: Cell) -> str:
    """How the verdict of a cell was proved."""
    if cell.kind in (EVERY, UNDECIDED):
        return method_of(cell.every, cell.kinks)
    if cell.kind == LISTED:
        return cell.listed.scope.removeprefix("all ")
    return (
        method_of(cell.usual, cell.kinks)
        if cell.usual is not None and cell.usual.holds
        else method_of(cell.every, cell.kinks)
    )


def verdict_in_words(cell: Cell) -> str:
    """A verdict short enough for a table."""
    sizes = ", ".join(str(size) for size, one in cell.exceptional.items() if one.singular)
    bound = cell.every.certificate.probability
    share = "" if bound is None else f"{100 * bound.lower:.0f} %"
    usual = cell.usual.certificate.probability if cell.usual is not None else None
    return {
        EVERY: "every",
        LISTED: f"all but {sizes}",
        INTERVALS: f"all but {len(cell.gaps or ())} gap{'s' * (len(cell.gaps or ()) != 1)}",
        DRAWN: f"every on {share}",
        USUAL_ONLY: f"{USUAL}",
        USUAL_DRAWN: f"{USUAL} on {0 if usual is None else 100 * usual.lower:.0f} %",
        SINGULAR: f"singular: {sizes}",
        UNDECIDED: "undecided",
    }[cell.kind]


def row_labels() -> Iterator[tuple[str, str]]:
    """Architectures and losses, one row of the table each."""
    for architecture in ARCHITECTURES:
        for loss in LOSSES:
            yield architecture, loss


def dataset(cells: Sequence[Cell], rows: Mapping[str, Listed]) -> xr.Dataset:
    """The table of verdicts over ``(network, activation)``, and the lists over ``(loss, place)``."""
    names = list(row_labels())
    shape = (len(names), len(NAMES))
    kind = np.full(shape, NOT_RUN)
    parameters, kinks = np.zeros(shape, int), np.zeros(shape, int)
    seconds, reach, probability = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    texts = {name: np.full(shape, "", dtype=object) for name in ("verdict", "method", "scope", "reason")}
    for cell in cells:
        at = names.index((cell.architecture, cell.loss)), NAMES.index(cell.activation)
        kind[at], parameters[at], kinks[at], seconds[at] = cell.kind, cell.dim, cell.kinks, cell.seconds
        reach[at] = cell.every.certificate.proved_up_to
        bound = cell.every.certificate.probability
        probability[at] = np.nan if bound is None else bound.lower
        shown = cell.every if cell.usual is None else cell.usual
        texts["verdict"][at], texts["method"][at] = verdict_in_words(cell), method_of_cell(cell)
        texts["scope"][at] = shown.certificate.scope
        texts["reason"][at] = "; ".join(
            filter(None, (one.certificate.reason for one in (cell.every, cell.usual) if one is not None))
        )
    longest = max((len(row.sizes) for row in rows.values()), default=0)
    sizes = np.full((len(rows), max(longest, 1)), np.nan)
    for number, row in enumerate(rows.values()):
        sizes[number, : len(row.sizes)] = [float(size) for size in row.sizes]
    grid = ("network", "activation")
    numbers = {"status": "proved", "method": CHECKED}
    # Words as attributes: Zarr has no settled format for arrays of them.
    words = {f"{name}s": text.tolist() for name, text in texts.items()}
    meaning = "; ".join(f"{code}: {name}" for code, name in enumerate(KINDS))
    return xr.Dataset(
        {
            "kind": (
                grid,
                kind,
                {"long_name": "what is known", "units": "1", "meaning": meaning, **numbers, **words},
            ),
            "parameters": (grid, parameters, {"long_name": "number of parameters", "units": "1"}),
            "kinks": (grid, kinks, {"long_name": "comparisons that depend on the parameters", "units": "1"}),
            "seconds": (grid, seconds, {"long_name": "time of certificates and checks", "units": "s"}),
            "proved_up_to": (grid, reach, {"long_name": "every step size up to", "units": "1", **numbers}),
            "probability": (
                grid,
                probability,
                {
                    "long_name": "probability of the pieces proved, lower bound",
                    "units": "1",
                    "status": "estimated",
                },
            ),
            "exceptional": (
                ("loss", "place"),
                sizes,
                {"long_name": "exceptional step size", "units": "1", **numbers},
            ),
            "complete": (
                "loss",
                np.array([row.proved for row in rows.values()], bool),
                {"long_name": "whether there are no others (proved)"},
            ),
        },
        {
            "network": (
                "network",
                np.arange(len(names)),
                {"names": [f"{a}, {LOSSES[loss]}" for a, loss in names]},
            ),
            "activation": ("activation", np.arange(len(NAMES)), {"names": list(NAMES)}),
            "loss": ("loss", np.arange(len(rows)), {"names": list(rows)}),
        },
        {"source": PAPER, "status": "proved", "usual_step_size": str(USUAL), "starts": STARTS},
    )


def picture(data: xr.Dataset) -> Figure:
    """The table of verdicts."""
    kind = data["kind"].values
    shown = np.flatnonzero(np.any(kind != NOT_RUN, axis=1))
    kind = kind[shown]
    canvas = Figure(figsize=(11.0, 1.9 + 0.52 * len(shown)), layout="constrained")
    axes = canvas.subplots()
    axes.pcolormesh(
        kind, cmap=ListedColormap(COLOURS), vmin=-0.5, vmax=len(COLOURS) - 0.5, edgecolors="white", linewidth=1.2
    )
    for row, column in np.ndindex(*kind.shape):
        if kind[row, column] == NOT_RUN:
            axes.text(column + 0.5, row + 0.5, "-", ha="center", va="center", color="0.6")
            continue
        at = shown[row], column
        seconds, method = float(data["seconds"].values[at]), data["kind"].attrs["methods"][at[0]][at[1]]
        colour = "white" if kind[row, column] == EVERY else "black"
        axes.text(
            column + 0.5,
            row + 0.36,
            data["kind"].attrs["verdicts"][at[0]][at[1]],
            ha="center",
            va="center",
            color=colour,
            fontsize=7.8,
            weight="bold",
        )
        axes.text(
            column + 0.5,
            row + 0.72,
            f"{method + ', ' if method else ''}{seconds:.2g} s" if seconds < 100 else f"{method}, {seconds:.0f} s",
            ha="center",
            va="center",
            color=colour,
            fontsize=6.0,
        )
    parameters = data["parameters"].values[shown].max(axis=1)
    labels = [
        f"{str(name).replace(', square loss', chr(10) + 'square loss').replace(', cross-', chr(10) + 'cross-')}, "
        f"{count} parameters"
        for name, count in zip(np.array(data["network"].attrs["names"])[shown], parameters, strict=True)
    ]
    axes.set_yticks(np.arange(len(shown)) + 0.5, labels, fontsize="x-small")
    axes.set_xticks(np.arange(len(NAMES)) + 0.5, NAMES)
    axes.invert_yaxis()
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xlabel(
        "in each cell: step sizes with a non-singular map; how it was proved; seconds, with the check",
        fontsize="small",
    )
    for side in axes.spines.values():
        side.set_visible(False)
    handles = [Patch(facecolor=COLOURS[k], edgecolor="0.6", label=KINDS[k]) for k in np.unique(kind)]
    canvas.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize="x-small")
    return canvas


def picture_of_lists(data: xr.Dataset) -> Figure:
    """The exceptional step sizes of each loss on a logarithmic axis."""
    sizes, complete = data["exceptional"].values, data["complete"].values
    names = list(data["loss"].attrs["names"])
    canvas = Figure(figsize=(7.6, 1.5 + 0.36 * len(names)), layout="constrained")
    axes = canvas.subplots()
    finite = sizes[np.isfinite(sizes)]
    low, high = (finite.min() / 4, finite.max() * 6) if finite.size else (0.1, 10.0)
    for row, known in enumerate(complete):
        axes.plot([low, high], [row, row], color=COLOURS[EVERY], lw=2.2, ls="-" if known else ":", zorder=1)
        here = sizes[row][np.isfinite(sizes[row])]
        axes.plot(here, np.full(len(here), row), "X", color=MARK, ms=9, mec="white", zorder=2)
        for size in here:
            text = str(Fraction(float(size)).limit_denominator(1000))
            axes.annotate(text, (size, row), (0, 7), textcoords="offset points", ha="center", fontsize="x-small")
    axes.set(xscale="log", xlim=(low, high), ylim=(len(names) - 0.4, -0.7), xlabel="step size")
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.grid(axis="x", alpha=0.25, lw=0.6)
    handles = [
        Line2D([], [], color=MARK, marker="X", ls="", ms=8, label="singular on some piece (proved)"),
        Line2D([], [], color=COLOURS[EVERY], lw=2.2, label="non-singular (proved)"),
    ]
    if not complete.all():
        handles.append(Line2D([], [], color=COLOURS[EVERY], lw=2.2, ls=":", label="not examined completely"))
    canvas.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return canvas

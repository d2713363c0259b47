"""Whether the theorem behind lambda applies at a minimum: its hypotheses tested, and what holds when one fails."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gdmap.exponents.interpolation import EPS, InterpolatingMinimum, interpolating_minimum
from gdmap.maps.batches import Batches
from gdmap.maps.gradient_descent import checked_step_size
from gdmap.maps.stochastic_gradient_descent import batches_of
from gdmap.objectives import AbstractObjective

# Eigenvalues closer than this share of the largest belong together when a starting vector is chosen.
TOGETHER = 1e-8
# Of the images that leave a subspace those of at least this share of the longest make it grow.
LONG = 0.1
# Spectra of all batches are computed up to this many operations.
MOST_BATCHES, OPERATIONS = 4096, 2e9
TRIALS = 3


@dataclass(frozen=True)
class Hypothesis:
    """One hypothesis of the theorem at one minimum.

    Attributes
    ----------
    name
        What is asked, in a few words.
    holds
        Whether it holds; ``None`` where that was not checked.
    margin
        How clearly: the relative distance to what is excluded; ``nan`` where there is none.
    meaning
        What was tested and found.
    otherwise
        What still holds where it fails.
    """

    name: str
    holds: bool | None
    margin: float
    meaning: str
    otherwise: str


@dataclass(frozen=True)
class Regularity:
    """The hypotheses of theorem B of Chemnitz & Engel at one minimum, step size and law of batches.

    Under them ``lambda < 0`` says that the minimum is a limit of SGD with positive probability, and ``lambda > 0``
    that it is not. Status *computed*: ranks and distances in floating point.

    Attributes
    ----------
    regular
        Whether none of the hypotheses that were checked fails.
    hypotheses
        The hypotheses, each a `Hypothesis`.
    """

    regular: bool
    hypotheses: tuple[Hypothesis, ...]

    def explain(self) -> str:
        """What holds, what fails and what follows, in plain sentences."""
        failed = [h for h in self.hypotheses if h.holds is False]
        unchecked = [h for h in self.hypotheses if h.holds is None]
        if failed:
            many = "1 of its hypotheses fails" if len(failed) == 1 else f"{len(failed)} of its hypotheses fail"
            lines = [f"Theorem B of Chemnitz & Engel does not apply here as it stands: {many}."]
            lines += [f"- {h.name}: {h.meaning} {h.otherwise}" for h in failed]
        else:
            lines = [
                "The hypotheses of theorem B of Chemnitz & Engel that were checked hold: the sign of lambda "
                "decides."
            ]
        close = [h for h in self.hypotheses if h.holds and h.margin < 1e-3]
        lines += [f"- Close to failing: {h.name} (relative distance {h.margin:.2g})." for h in close]
        lines += [f"- Not checked: {h.name}. {h.otherwise}" for h in unchecked]
        return "\n".join(lines)


def regularity(
    objective: AbstractObjective,
    theta: Any,
    step_size: float,
    batch_size: int = 1,
    probabilities: Any = None,
    replace: bool = False,
    *,
    shuffle: bool = False,
) -> Regularity:
    """Test the hypotheses under which the sign of lambda decides the stability of SGD (status *computed*).

    Parameters
    ----------
    objective, theta
        A loss with samples and an interpolating minimum of it.
    step_size, batch_size, probabilities, replace, shuffle
        Of `StochasticGradientDescent`.

    Raises
    ------
    ValueError
        If ``theta`` is not an interpolating minimum, or the batches make no sense.

    Source: Chemnitz & Engel, JMLR 26(134), 2025, (H1), (H3), definition of a regular minimum and theorem B.
    """
    eta = checked_step_size(step_size)
    batches = batches_of(objective, batch_size, probabilities, replace, shuffle)
    point = interpolating_minimum(objective, theta, batches.probabilities)
    return regularity_at(point, batches, eta)


def regularity_at(
    point: InterpolatingMinimum, batches: Batches, step_size: float, blocks: list[np.ndarray] | None = None
) -> Regularity:
    """`regularity` at a verified point, for a law of batches; ``blocks`` are those of `blocks_at` where known."""
    blocks = blocks_at(point) if blocks is None else blocks
    hypotheses = (
        _independent(point, blocks),
        _scalar(point),
        _invertible(point, batches, step_size),
        _no_reflection(point, step_size),
        _no_split(point, blocks),
        _uniform(batches),
        Hypothesis(
            "smooth at the minimum",
            True,
            np.nan,
            "No jump of the gradient or the Hessian was seen at distances down to 1e-10 of the size of theta.",
            "",
        ),
        Hypothesis(
            "non-singular maps (H3)",
            None,
            np.nan,
            "The preimages of null sets under the map of every batch are null sets.",
            "It holds for almost every step size; gdmap.certify_nonsingular(objective, step_size) proves it for "
            "one.",
        ),
    )
    return Regularity(all(h.holds is not False for h in hypotheses), hypotheses)


def _independent(point: InterpolatingMinimum, blocks: list[np.ndarray]) -> Hypothesis:
    rows, silent = len(point.factors), np.setdiff1d(np.flatnonzero(point.probabilities), point.sample)
    meaning = (
        f"The {rows} gradients, scaled to length 1, have smallest singular value {point.independence:.3g} and "
        f"span {point.rank} dimensions."
    )
    if silent.size:
        meaning += f" The Hessian of sample {silent[0]} vanishes."
    otherwise = (
        "The minima need not form a manifold of this codimension by the implicit function theorem: "
        f"{point.evidence}. Where they form one, lambda is read on its normal space."
    )
    if point.rank == 1:
        otherwise = (
            "The normal space is one-dimensional, so the Jacobians are commuting numbers: by the law of large "
            "numbers lambda = E log|1 - eta a| and its sign decides all the same."
        )
    elif all(block.shape[1] == 1 for block in blocks):
        otherwise = (
            "The sample Hessians commute, so lambda is the largest of the means E log|1 - eta a_k| over their "
            "common eigenvectors (law of large numbers)."
        )
    return Hypothesis(
        "linearly independent gradients (H1)", bool(point.independent), point.independence, meaning, otherwise
    )


def _scalar(point: InterpolatingMinimum) -> Hypothesis:
    counts = np.bincount(point.sample, minlength=point.n_samples)
    definite = bool(np.all(point.signs > 0))
    holds = bool(counts.max() <= 1 and definite)
    meaning = "Every sample Hessian is grad F grad F^T, as for the square loss of one output."
    if not holds:
        meaning = f"Sample Hessians have ranks up to {counts.max()}" + (
            "." if definite else ", and are indefinite."
        )
    otherwise = (
        "The theorem is stated for one output a sample. lambda is defined and computed all the same; with "
        "several outputs its sign is expected to decide in the same way, but that is not what is proved."
    )
    return Hypothesis("scalar outputs", holds, np.nan, meaning, otherwise)


def _distance(
    point: InterpolatingMinimum, eigenvalues: np.ndarray, eta: float, excluded: float
) -> tuple[float, float]:
    """The smallest ``|eta x / excluded - 1|`` over eigenvalues, and the rounding of it."""
    if not eigenvalues.size:
        return np.inf, 0.0
    distance = float(np.abs(eta * eigenvalues / excluded - 1).min())
    return distance, (eta * point.error + 8 * EPS * excluded) / excluded


def _batch_spectra(point: InterpolatingMinimum, batches: Batches) -> tuple[np.ndarray, str]:
    """Eigenvalues of the ``A_w`` of all batches if they can be listed, otherwise of single samples; and which."""
    allowed = min(MOST_BATCHES, int(OPERATIONS / (20 * point.rank**3)) + 1)
    if batches.size > 1:
        listed = batches.support(allowed)
        if listed is not None:
            spectra = [np.linalg.eigvalsh(point.mean_matrix(weights)) for weights in listed[0]]
            return np.concatenate(spectra), f"all {len(spectra)} batches"
    singles = point.signs * np.sum(point.factors**2, axis=1)
    return (
        singles,
        "all samples" if batches.size == 1 else "single samples only, since the batches are too many to list",
    )


def _invertible(point: InterpolatingMinimum, batches: Batches, eta: float) -> Hypothesis:
    eigenvalues, which = _batch_spectra(point, batches)
    distance, rounding = _distance(point, eigenvalues, eta, 1.0)
    return Hypothesis(
        "no Jacobian of a batch is singular",
        distance > rounding,
        distance,
        f"Eigenvalues of the batches' Hessians are at a relative distance of {distance:.3g} from 1/eta ({which}).",
        "lambda is then only upper semicontinuous in the minimum and the step size: it may jump down here "
        "(to minus infinity on a one-dimensional normal space) while it is larger at every point nearby.",
    )


def _no_reflection(point: InterpolatingMinimum, eta: float) -> Hypothesis:
    singles = point.signs * np.sum(point.factors**2, axis=1)
    distance, rounding = _distance(point, singles, eta, 2.0)
    return Hypothesis(
        "no gradient of squared length 2/eta",
        distance > rounding,
        distance,
        f"Eigenvalues of sample Hessians are at a relative distance of {distance:.3g} from 2/eta.",
        "The theorem does not cover this step size (a sample's Jacobian is a reflection); lambda is still the "
        "growth rate of the linearised SGD, and the hypothesis holds at all step sizes nearby.",
    )


def _no_split(point: InterpolatingMinimum, blocks: list[np.ndarray]) -> Hypothesis:
    coupling = _weakest_coupling(point) if len(blocks) == 1 and point.rank > 1 else 0.0
    whole = len(blocks) == 1
    sizes = ", ".join(str(block.shape[1]) for block in blocks[:12]) + (", ..." if len(blocks) > 12 else "")
    return Hypothesis(
        "no orthogonal split of the gradients",
        whole,
        np.inf if point.rank == 1 else coupling,
        "No common invariant subspace of the sample Hessians was found."
        if whole
        else f"The normal space splits into {len(blocks)} orthogonal blocks of dimensions {sizes}, invariant "
        "under every sample Hessian.",
        "lambda is the largest exponent of the blocks, each judged alone; the theorem applies to each block that "
        "is not split further.",
    )


def _weakest_coupling(point: InterpolatingMinimum) -> float:
    """The second smallest eigenvalue of the graph of couplings in the eigenbasis of the mean, relative."""
    _, V = np.linalg.eigh(point.mean_matrix(point.probabilities))
    coupling = _couplings(point, V)
    laplacian = np.diag(coupling.sum(axis=1)) - coupling
    return float(max(np.linalg.eigvalsh(laplacian)[1], 0.0))


def _couplings(point: InterpolatingMinimum, basis: np.ndarray) -> np.ndarray:
    """``max_i |V^T A_i V| / ||A_i||`` entry by entry, zero on the diagonal, for columns ``V``."""
    size = np.where(point.sizes > 0, point.sizes, 1.0)
    rows = (point.factors / np.sqrt(size)[point.sample, None]) @ basis
    largest = np.zeros((basis.shape[1], basis.shape[1]))
    starts = np.flatnonzero(np.diff(point.sample, prepend=-1))
    for begin, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        own = rows[begin:end]
        np.maximum(largest, np.abs((own.T * point.signs[begin:end]) @ own), out=largest)
    np.fill_diagonal(largest, 0.0)
    return largest


def _uniform(batches: Batches) -> Hypothesis:
    uniform = batches.probabilities is None and not batches.shuffle
    if batches.shuffle:
        meaning = "Epochs: the batches of an epoch depend on each other."
    else:
        meaning = (
            "All samples have the same probability." if uniform else "The samples have different probabilities."
        )
    return Hypothesis(
        "uniform sampling of independent batches",
        uniform,
        np.nan,
        meaning,
        "The theorem is stated for uniform sampling. lambda is defined for any law of the batches (for epochs, "
        "of the maps of whole epochs, per step), and on a one-dimensional normal space or for commuting "
        "Jacobians the law of large numbers gives the criterion for every law.",
    )


# The finest orthogonal decomposition
# ---------------------------------------------------------------------------------


def blocks_at(point: InterpolatingMinimum) -> list[np.ndarray]:
    """The finest orthogonal decomposition of the normal space into subspaces invariant under all ``A_i``.

    A list of orthonormal bases ``(r, d_b)``, together a basis of all; one-dimensional blocks are common
    eigenvectors. Only couplings that are rounding, in units of each sample's own Hessian, count as none: exponents
    depend on weak couplings of blocks with equal exponents through their logarithm alone. An eigenvector of a
    generic symmetric polynomial in the ``A_i`` lies in one irreducible block, up to isomorphic copies of it in
    each of which it has a part of the same shape; the smallest invariant subspace that contains it is a block, and
    its orthogonal complement is invariant too.
    """
    size = np.where(point.sizes > 0, point.sizes, 1.0)
    unit = point.factors / np.sqrt(size)[point.sample, None]
    rest = np.eye(point.rank)
    blocks = []
    rng = np.random.default_rng(0)
    while rest.shape[1]:
        block = _block(unit @ rest, point, rng)
        blocks.append(rest @ block)
        if block.shape[1] == rest.shape[1]:
            break
        complement = np.linalg.qr(block, mode="complete")[0][:, block.shape[1] :]
        rest = rest @ complement
    return blocks


def _block(rows: np.ndarray, point: InterpolatingMinimum, rng: np.random.Generator) -> np.ndarray:
    """The smallest of a few invariant subspaces generated by eigenvectors of generic polynomials.

    ``rows`` are those of the sample Hessians scaled to norm 1.
    """
    d = rows.shape[1]
    best = np.eye(d)
    rounding = 16 * point.error / point.sizes.max() + 16 * d * EPS
    for _ in range(TRIALS if d > 1 else 0):
        first, second = (
            (rows.T * (point.signs * rng.uniform(0.5, 1.5, point.n_samples)[point.sample])) @ rows
            for _ in range(2)
        )
        product = first @ second
        generic = first + rng.uniform(0.3, 1.0) * second @ second + rng.uniform(0.3, 1.0) * (product + product.T)
        values, vectors = np.linalg.eigh((generic + generic.T) / 2)
        chosen, gap = most_isolated(values)
        found = _invariant(rows, point, vectors[:, chosen], rounding / gap, best.shape[1])
        if found.shape[1] < best.shape[1]:
            best = found
    return best


def most_isolated(values: np.ndarray) -> tuple[int, float]:
    """Which of some ascending eigenvalues is farthest from all but its equals, and that distance, relative.

    By the reciprocal of the distance rounding enters the eigenvector.
    """
    largest = float(np.abs(values).max()) or 1.0
    groups = np.cumsum(np.diff(values, prepend=values[0]) > TOGETHER * largest)
    distance = np.abs(values[:, None] - values)
    distance[groups[:, None] == groups] = largest
    nearest = distance.min(axis=1) / largest
    chosen = int(np.argmax(nearest))
    return chosen, float(nearest[chosen])


def _invariant(
    rows: np.ndarray, point: InterpolatingMinimum, start: np.ndarray, rounding: float, most: int
) -> np.ndarray:
    """An orthonormal basis of the smallest subspace with ``start`` that every ``A_i`` maps into itself.

    The identity where it has ``most`` dimensions or more. Rounding enters a new direction by the reciprocal of the
    length of the image it comes from, so the longest images are taken first.
    """
    d = rows.shape[1]
    starts = np.flatnonzero(np.diff(point.sample, prepend=-1))
    basis = start[:, None] / np.linalg.norm(start)
    outside = np.zeros((0, d))
    done, allowed = 0, rounding
    while True:
        for vector in basis[:, done:].T:
            # A_i x of all samples as rows, as far as they leave the subspace.
            weights = point.signs * (rows @ vector)
            outside = np.vstack([outside, np.add.reduceat(rows * weights[:, None], starts, axis=0)])
            if len(outside) > 4 * d:
                outside = np.asarray(np.linalg.qr(_without(outside, basis), mode="r"))
        done = basis.shape[1]
        outside = _without(outside, basis)
        _, lengths, directions = np.linalg.svd(outside, full_matrices=False)
        if lengths[0] <= allowed:
            return basis
        kept = lengths > max(allowed, LONG * lengths[0])
        allowed = max(allowed, rounding / float(lengths[kept].min()))
        basis = np.linalg.qr(np.hstack([basis, directions[kept].T]))[0]
        if basis.shape[1] >= most:
            return np.eye(d)


def _without(vectors: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Rows less their projections on the columns of ``basis``; twice is enough."""
    for _ in range(2):
        vectors = vectors - (vectors @ basis) @ basis.T
    return vectors

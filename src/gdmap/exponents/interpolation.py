"""Interpolating minima, where every sample's gradient vanishes, and the sample Hessians on their normal space."""

import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from gdmap.engines.xla import block_size, on_lanes
from gdmap.minima import Minimum, verified_minimum
from gdmap.minima.critical_points import (
    DENSE_LIMIT,
    NOISE,
    OF_MINIMA,
    jitters,
    refine_critical_points,
)
from gdmap.minima.kinks import find_kink
from gdmap.minima.minimum import NEARBY, checked_point, described_minimum
from gdmap.objectives import AbstractObjective
from gdmap.objectives.objective import checked_probabilities
from gdmap.orbits.cycles import NULL, SHIFT

EPS = float(np.finfo(float).eps)
# Sample Hessians of up to so many parameters are formed; larger ones are probed, at first by so many vectors.
DENSE_ROWS, PROBES = 64, 16
# Far from interpolation the curvature of the model fills the sample Hessians: below this share it is left out.
COARSE, COARSE_PROBES = 1e-2, 64
NEWTON_STEPS = 12
# The rows of all samples together, and the numbers that they hold.
MOST_ROWS, MOST_NUMBERS = 5000, 2**27
CHUNK_BYTES = 2**27
# Gradients that cancel in the mean to this share vanish in the mean alone.
CANCELS = 1e-6
# A row must lie in the normal space with this share of its length at least.
SEEN = 0.5
# A gradient at a verified minimum is no rounding if it is so many times what jitters make.
FAR_BEYOND = 1e8
# Unit gradients whose smallest singular value is below this are dependent.
DEPENDENT = 1e-8


@dataclass(frozen=True, eq=False)
class InterpolatingMinimum:
    """A minimum at which the gradient of every sample vanishes, with the sample Hessians on its normal space.

    The normal space ``N`` is the orthogonal complement of the common kernel of the sample Hessians ``H_i``; in
    orthonormal coordinates of it ``A_i = sum_a signs_a f_a f_a^T`` over the rows ``f_a`` of sample ``i``. Status
    *computed*.

    Attributes
    ----------
    objective, theta
        The loss and the refined point, shape ``(dim,)``.
    minimum
        The verified `Minimum` of the weighted loss; ``None`` above 1,000 parameters, and where only the samples
        show that it is one (samples of very different sizes).
    rank
        ``r``, the dimension of the normal space: singular values above the square root of 1e-10 of the largest.
    factors, signs, sample
        The rows ``f_a``, shape ``(m, r)``, float64; ``+1.0`` or ``-1.0``; the sample each row belongs to,
        ascending.
    n_samples, probabilities
        The number of samples and their probabilities; those of probability 0 have no rows.
    error
        A bound on the rounding error of the eigenvalues of the ``A_i`` and of their means: four times the change
        of a sample Hessian when every parameter moves by one unit in the last place, and the eigensolver's.
    independent
        Whether the rows are linearly independent, and by how much (``independence``, the smallest singular value
        of the rows scaled to length 1).
    evidence
        What shows that the point is a minimum, in words; ``shown`` whether something does.
    basis
        The coordinates' orthonormal basis of ``N``, shape ``(dim, r)``.
    """

    objective: AbstractObjective = field(repr=False)
    theta: np.ndarray
    minimum: Minimum | None = field(repr=False)
    rank: int
    factors: np.ndarray = field(repr=False)
    signs: np.ndarray = field(repr=False)
    sample: np.ndarray = field(repr=False)
    n_samples: int
    probabilities: np.ndarray = field(repr=False)
    error: float
    independence: float
    evidence: str
    shown: bool
    basis: np.ndarray | None = field(repr=False)

    @property
    def independent(self) -> bool:
        """Whether the gradients (rows) of all samples are linearly independent."""
        return self.independence > DEPENDENT

    def mean_matrix(self, weights: Any) -> np.ndarray:
        """``sum_i weights_i A_i``, shape ``(r, r)``, for weights of shape ``(n,)``."""
        weights = np.asarray(weights, dtype=float)
        if weights.shape != (self.n_samples,):
            raise ValueError(f"weights have shape {weights.shape}, expected ({self.n_samples},): one per sample")
        matrix = (self.factors.T * (self.signs * weights[self.sample])) @ self.factors
        return (matrix + matrix.T) / 2

    def sample_matrix(self, index: int) -> np.ndarray:
        """``A_index``, shape ``(r, r)``."""
        chosen = slice(*np.searchsorted(self.sample, [index, index + 1]))
        return (self.factors[chosen].T * self.signs[chosen]) @ self.factors[chosen]

    def sample_matrices(self) -> np.ndarray:
        """All ``A_i``, shape ``(n, r, r)``."""
        return np.stack([self.sample_matrix(i) for i in range(self.n_samples)])

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """``||A_i||``, the largest modulus of an eigenvalue, shape ``(n,)``: rows of a sample are orthogonal."""
        sizes = np.zeros(self.n_samples)
        np.maximum.at(sizes, self.sample, np.sum(self.factors**2, axis=1))
        return sizes


def interpolating_minimum(
    objective: AbstractObjective, theta: Any, probabilities: Any = None
) -> InterpolatingMinimum:
    """``theta`` as an `InterpolatingMinimum`, if it is one (status *computed*).

    Up to 1,000 parameters the point is verified as by `verified_minimum` for the weighted loss. Above, Newton
    steps of minimum norm with the sample Hessians must find a point close by where every sample's gradient is
    rounding noise, and again from a point aside along a random null direction.

    Parameters
    ----------
    objective
        A loss with samples (``Objective(loss, params, data=...)``, a `LinearNetwork` of samples).
    theta
        The point, shape ``(dim,)``, at most a thousandth of its size away from the minimum.
    probabilities
        Of the samples, shape ``(n,)``; by default the objective's own weights. Samples of probability 0 are left
        out.

    Raises
    ------
    TypeError
        If ``objective`` is not one.
    ValueError
        If it has no samples; if ``theta`` is no minimum, lies on a kink, or does not interpolate; if all sample
        Hessians vanish; if they have too many rows.
    """
    return interpolating_minima(objective, checked_point(objective, theta)[None], probabilities)[0]


def interpolating_minima(
    objective: AbstractObjective, thetas: Any, probabilities: Any = None
) -> list[InterpolatingMinimum]:
    """`interpolating_minimum` at every row of ``thetas``, shape ``(points, dim)``; errors name the point."""
    losses, p = samples_of(objective, probabilities)
    thetas = np.stack([checked_point(objective, theta) for theta in thetas])
    weighted = with_probabilities(objective, p)
    minima: list[Minimum | ValueError | None] = [None] * len(thetas)
    if objective.dim <= DENSE_LIMIT:
        minima = list(_verified_minima(weighted, thetas))
    points = []
    for lane, (theta, minimum) in enumerate(zip(thetas, minima, strict=True)):
        try:
            points.append(_at(objective, weighted, losses, p, theta, minimum))
        except ValueError as error:
            where = f"point {lane}: " if len(thetas) > 1 else ""
            raise ValueError(f"{where}{error}") from None
    return points


def samples_of(objective: AbstractObjective, probabilities: Any) -> tuple[Any, np.ndarray]:
    """The losses of single samples and their probabilities, or an error that says what is missing."""
    if not isinstance(objective, AbstractObjective):
        raise TypeError(
            f"objective must be a gdmap objective such as Objective(loss, params, data), got {objective!r}"
        )
    try:
        losses: Any = objective.sample_losses  # type: ignore[attr-defined]
    except (AttributeError, ValueError):
        raise ValueError(
            f"this {type(objective).__name__} has no samples, so there is no stochastic gradient descent on it: "
            f"make it with gdmap.Objective(loss, params, data=(x, y)), where loss(params, x_i, y_i) is that of "
            f"one sample"
        ) from None
    n = losses.n_samples
    if probabilities is None:
        probabilities = getattr(objective, "probabilities", None)
    p = np.full(n, 1 / n) if probabilities is None else checked_probabilities(probabilities, n)
    return losses, p / p.sum()


def with_probabilities(objective: AbstractObjective, p: np.ndarray) -> AbstractObjective:
    """``objective`` weighted by ``p``; itself where these are its weights already."""
    own = getattr(objective, "probabilities", None)
    own = np.full(len(p), 1 / len(p)) if own is None else np.asarray(own)
    if np.allclose(own, p, rtol=1e-12, atol=0):
        return objective
    return objective.weighted(p)  # type: ignore[attr-defined]


def _verified_minima(objective: AbstractObjective, thetas: np.ndarray) -> list[Minimum | ValueError]:
    """The verified minima, or why there is none."""
    sizes = np.linalg.norm(thetas, axis=1)
    sizes = np.where(sizes > 0, sizes, 1.0)
    points = refine_critical_points(objective, thetas, sizes)
    fine = np.isin(points.evidence, OF_MINIMA) & (points.displacement <= NEARBY * sizes)
    minima: list[Minimum | ValueError] = []
    for lane, theta in enumerate(thetas):
        if fine[lane] and find_kink(objective, points.theta[lane], float(sizes[lane])) is None:
            minima.append(described_minimum(objective, points, lane))
            continue
        try:
            minima.append(verified_minimum(objective, theta))
        except ValueError as error:
            minima.append(error)
    return minima


def _at(
    objective: AbstractObjective,
    weighted: AbstractObjective,
    losses: Any,
    p: np.ndarray,
    theta: np.ndarray,
    verified: Minimum | ValueError | None,
) -> InterpolatingMinimum:
    if not isinstance(verified, ValueError):
        return _described(objective, weighted, losses, p, theta, verified)
    # Beside samples of much larger curvature the dense Hessian may not show what each sample's own does.
    try:
        point = _described(objective, weighted, losses, p, theta, None)
    except _ZeroNormalSpaceError:
        raise
    except ValueError:
        raise verified from None
    if not point.shown:
        raise verified
    return point


class _ZeroNormalSpaceError(ValueError):
    pass


def _described(
    objective: AbstractObjective,
    weighted: AbstractObjective,
    losses: Any,
    p: np.ndarray,
    theta: np.ndarray,
    minimum: Minimum | None,
) -> InterpolatingMinimum:
    """The point, from a verified minimum or, without one, from what the samples show."""
    if minimum is not None:
        theta = minimum.theta
    size = float(np.linalg.norm(theta)) or 1.0
    chosen = np.flatnonzero(p)
    found = _interpolate(losses, theta, chosen, size, COARSE if minimum is None else NULL)
    if not found.interpolates or found.rows is None:
        raise ValueError(_no_interpolation(losses, theta, chosen, p, minimum))
    theta, rows = found.theta, found.rows
    if minimum is None:
        kink = find_kink(weighted, theta, size)
        if kink is not None:
            raise ValueError(
                f"the loss has a kink at theta: its {kink.derivative} jumps by {kink.jump:.3g} within a distance "
                f"of {kink.distance:.1g}, so what follows from the Hessians there does not hold: choose a "
                f"minimum off it"
            )
    if not len(rows.factors):
        raise _ZeroNormalSpaceError(
            "the normal space is zero: the Hessians of all samples vanish at theta, so no direction contracts or "
            "expands to first order, and there is no exponent"
        )
    scale = np.sqrt(p[rows.sample])[:, None]
    _, singular, Vt = np.linalg.svd(rows.factors * scale, full_matrices=False)
    basis = Vt[: int(np.sum(singular**2 > NULL * singular[0] ** 2))].T
    factors = rows.factors @ basis
    lengths = np.linalg.norm(rows.factors, axis=1, keepdims=True)
    lost = np.linalg.norm(factors, axis=1) < SEEN * lengths[:, 0]
    if lost.any():
        smallest = int(rows.sample[np.flatnonzero(lost)[np.argmin(lengths[lost, 0])]])
        raise ValueError(
            f"the Hessian of sample {smallest} ({float(lengths[lost].min() ** 2):.3g}, seen with probability "
            f"{p[smallest]:.3g}) is too small beside the largest ({float(lengths.max() ** 2):.3g}) to be told "
            "from rounding in the mean: bring the samples to comparable scales, or leave those out"
        )
    independence = 0.0
    if len(rows.factors) <= objective.dim and np.isin(chosen, rows.sample).all():
        independence = float(np.linalg.svd(rows.factors / lengths, compute_uv=False)[-1])
    largest = float(lengths.max() ** 2)
    error = 4 * _change(losses, theta, chosen, rows) + factors.shape[1] * EPS * largest
    if minimum is not None:
        evidence, shown = f"verified minimum of the weighted loss ({minimum.evidence.name.lower()})", True
    else:
        evidence, shown = _evidence_without_hessian(losses, theta, chosen, rows, basis, independence, size)
    point = InterpolatingMinimum(
        objective=objective,
        theta=theta,
        minimum=minimum,
        rank=factors.shape[1],
        factors=factors,
        signs=rows.signs,
        sample=rows.sample,
        n_samples=len(p),
        probabilities=p,
        error=error,
        independence=independence,
        evidence=evidence,
        shown=shown,
        basis=basis,
    )
    if minimum is None and np.any(rows.signs < 0):
        lowest = float(np.linalg.eigvalsh(point.mean_matrix(p))[0])
        if lowest < -max(NULL * largest, error):
            raise ValueError(
                f"theta is not a minimum: it is a saddle, with a Hessian eigenvalue of at most {lowest:.3g}"
            )
    return point


# Gradients and Hessians of single samples
# ----------------------------------------------------------------------------


class _Gradient(eqx.Module):
    """``(theta, i) -> grad l_i(theta)`` for one lane."""

    losses: Any

    def __call__(self, theta: Any, index: Any) -> Any:
        return jax.grad(self.losses.value)(theta, index)


class _HessianProducts(eqx.Module):
    """``(i, V) -> V H_i(theta)`` for the rows of one lane's ``V``."""

    losses: Any
    theta: Any

    def __call__(self, index: Any, vectors: Any) -> Any:
        _, product = jax.linearize(lambda theta: jax.grad(self.losses.value)(theta, index), self.theta)
        return jax.vmap(product)(vectors)


def sample_gradients(losses: Any, theta: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """``grad l_i(theta)`` of the samples ``indices``, shape ``(len(indices), dim)``."""
    lanes = (np.broadcast_to(theta, (len(indices), len(theta))), indices.astype(np.int32))
    return np.asarray(on_lanes(_Gradient(losses), lanes, block_size(128 * len(theta), largest=64)))


def hessian_products(losses: Any, theta: np.ndarray, indices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``H_i v`` for the rows ``v`` of ``vectors``, shape ``(len(indices), q, dim)``, sample by sample."""
    block = block_size(128 * vectors.shape[1] * len(theta), largest=16)
    return np.asarray(on_lanes(_HessianProducts(losses, theta), (indices.astype(np.int32), vectors), block))


class SampleRows(NamedTuple):
    """Sample Hessians as ``H_i = sum_a signs_a f_a f_a^T`` over their rows, those of one sample orthogonal.

    ``factors`` the rows ``(m, dim)``; ``signs`` and ``sample`` ``(m,)``, samples ascending.
    """

    factors: np.ndarray
    signs: np.ndarray
    sample: np.ndarray


def sample_rows(losses: Any, theta: np.ndarray, indices: np.ndarray, cut: float = NULL) -> SampleRows:
    """The Hessians of the samples ``indices`` by rows; eigenvalues below ``cut`` of the sample's largest are left
    out.

    Above 64 parameters by random probes (range finding): twice as many until their images are dependent and a
    fresh one is in their span.
    """
    dim = len(theta)
    values: list[np.ndarray] = []
    vectors: list[np.ndarray] = []
    owners: list[int] = []
    probes = dim if dim <= DENSE_ROWS else min(PROBES, dim)
    pending = indices
    while pending.size:
        chunk = max(1, CHUNK_BYTES // (24 * dim * probes))
        left: list[int] = []
        for begin in range(0, len(pending), chunk):
            some = pending[begin : begin + chunk]
            found = _probed(losses, theta, some, probes, cut)
            for index, pair in zip(some, found, strict=True):
                if pair is None:
                    left.append(index)
                    continue
                size = np.abs(pair[0])
                own = size > cut * size.max(initial=0.0)
                owners.append(int(index))
                values.append(pair[0][own])
                vectors.append(pair[1][own])
                total = sum(map(len, values)) if len(owners) % 64 == 0 or len(owners) == len(indices) else 0
                if total > MOST_ROWS or total * dim > MOST_NUMBERS:
                    raise ValueError(_too_many(total, dim, len(owners), len(indices)))
        pending, probes = np.array(left, dtype=int), min(2 * probes, dim)
    order = np.argsort(owners, kind="stable")
    largest = max((float(np.abs(v).max(initial=0.0)) for v in values), default=0.0)
    kept = []
    for k in order:
        size = np.abs(values[k])
        kept.append(size > max(cut * size.max(initial=0.0), EPS * largest))
    eigenvalues = np.concatenate([values[k][keep] for k, keep in zip(order, kept, strict=True)])
    rows = np.concatenate([vectors[k][keep] for k, keep in zip(order, kept, strict=True)])
    sample = np.concatenate([np.full(keep.sum(), owners[k]) for k, keep in zip(order, kept, strict=True)])
    if len(rows) > MOST_ROWS or rows.size > MOST_NUMBERS:
        raise ValueError(_too_many(len(rows), dim, len(indices), len(indices)))
    return SampleRows(rows * np.sqrt(np.abs(eigenvalues))[:, None], np.sign(eigenvalues), sample.astype(int))


def _too_many(rows: int, dim: int, done: int, samples: int) -> str:
    expected = rows * samples // max(done, 1)
    return (
        f"the Hessians of {samples} samples have about {expected} rows of {dim} numbers together, more than the "
        f"{MOST_ROWS} rows or {MOST_NUMBERS} numbers that fit: use fewer samples, outputs or parameters"
    )


def _probed(
    losses: Any, theta: np.ndarray, indices: np.ndarray, probes: int, cut: float
) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """Eigenvalues and unit eigenvectors (rows) of each sample's Hessian; ``None`` where the probes are too few."""
    dim = len(theta)
    shape = (len(indices), probes, dim)
    if probes == dim:
        hessians = hessian_products(losses, theta, indices, np.broadcast_to(np.eye(dim), shape))
        _check_finite(hessians, indices)
        values, columns = np.linalg.eigh((hessians + hessians.transpose(0, 2, 1)) / 2)
        return [(v, c.T) for v, c in zip(values, columns, strict=True)]
    omega = np.random.default_rng(0).standard_normal((probes, dim))
    images = hessian_products(losses, theta, indices, np.broadcast_to(omega, shape))
    _check_finite(images, indices)
    bases = np.zeros(shape)
    ranks = np.zeros(len(indices), int)
    for k, image in enumerate(images):
        # The last image is kept to check with.
        _, singular, Vt = np.linalg.svd(image[:-1], full_matrices=False)
        ranks[k] = int(np.sum(singular > 0.1 * cut * singular[0]))
        bases[k, : ranks[k]] = Vt[: ranks[k]]
    onto = hessian_products(losses, theta, indices, bases)
    found: list[tuple[np.ndarray, np.ndarray] | None] = []
    for image, basis, hessian, rank in zip(images, bases[:, :-1], onto[:, :-1], ranks, strict=True):
        basis, hessian = basis[:rank], hessian[:rank]
        projected = basis @ hessian.T
        values, columns = np.linalg.eigh((projected + projected.T) / 2)
        missed = image[-1] - (omega[-1] @ basis.T) @ projected @ basis
        scale = np.abs(values).max(initial=0.0)
        enough = np.linalg.norm(missed) <= 10 * max(cut, 1e-12) * scale * np.sqrt(dim) and rank < probes - 1
        if enough or (cut >= COARSE and probes >= COARSE_PROBES):
            found.append((values, columns.T @ basis))
        else:
            found.append(None)
    return found


def _check_finite(products: np.ndarray, indices: np.ndarray) -> None:
    wrong = np.flatnonzero(~np.all(np.isfinite(products), axis=(1, 2)))
    if wrong.size:
        raise ValueError(
            f"the Hessian of sample {indices[wrong[0]]} is not finite at theta: its loss overflows there or is "
            f"not twice differentiable"
        )


def _change(losses: Any, theta: np.ndarray, indices: np.ndarray, rows: SampleRows) -> float:
    """The largest change of a sample Hessian on its range when parameters move by a unit in the last place."""
    dim = len(theta)
    moved = theta + np.spacing(theta) * np.random.default_rng(0).choice([-1.0, 1.0], dim)
    most = int(np.bincount(rows.sample).max())
    width = dim if dim <= DENSE_ROWS else PROBES
    while width < most:
        width = min(2 * width, dim)
    largest = 0.0
    chunk = max(1, CHUNK_BYTES // (24 * dim * width))
    for begin in range(0, len(indices), chunk):
        some = indices[begin : begin + chunk]
        vectors = np.zeros((len(some), width, dim))
        expected = np.zeros_like(vectors)
        for k, index in enumerate(some):
            own = rows.factors[slice(*np.searchsorted(rows.sample, [index, index + 1]))]
            signs = rows.signs[slice(*np.searchsorted(rows.sample, [index, index + 1]))]
            lengths = np.linalg.norm(own, axis=1, keepdims=True)
            vectors[k, : len(own)] = own / lengths
            expected[k, : len(own)] = own * lengths * signs[:, None]
        change = hessian_products(losses, moved, some, vectors) - expected
        largest = max(largest, float(np.linalg.norm(change, axis=(1, 2)).max()))
    return largest


# Where every sample's gradient vanishes
# ------------------------------------------------------------------------------


class _Found(NamedTuple):
    theta: np.ndarray
    rows: SampleRows | None
    interpolates: bool


def _interpolate(losses: Any, start: np.ndarray, indices: np.ndarray, size: float, cut: float) -> _Found:
    """Newton steps of minimum norm for all sample gradients at once, until each is noise in its own units."""
    theta, before, tries = start, np.inf, 0
    for _ in range(NEWTON_STEPS):
        gradients = sample_gradients(losses, theta, indices)
        if theta is start and cut == NULL and _clearly_moves(losses, theta, indices, gradients):
            return _Found(start, None, False)
        if not np.all(np.isfinite(gradients)):
            wrong = indices[np.flatnonzero(~np.all(np.isfinite(gradients), axis=1))[0]]
            if theta is start:
                raise ValueError(f"the gradient of sample {wrong} is not finite at theta")
            break
        rows = sample_rows(losses, theta, indices, cut)
        excess = _excess(losses, theta, indices, gradients, rows, size)
        if excess <= 1 and cut == NULL:
            return _Found(theta, rows, True)
        step = np.zeros_like(theta)
        if len(rows.factors):
            lengths = np.linalg.norm(rows.factors, axis=1)
            unit = rows.factors / lengths[:, None]
            own = gradients[np.searchsorted(indices, rows.sample)]
            asked = -np.einsum("ad,ad->a", unit, own) * rows.signs / lengths**2
            step = np.linalg.lstsq(unit, asked, rcond=DEPENDENT)[0]
        tries = tries + 1 if excess > 0.5 * before else 0
        if tries > 2 or np.linalg.norm(theta + step - start) > NEARBY * size:
            return _Found(start, rows, False)
        before = excess
        theta = theta + step
        # What is left of the curvature of the model shrinks with the step.
        cut = NULL if cut == NULL or excess <= 1 else max(NULL, min(cut, 0.1 * float(np.linalg.norm(step)) / size))
    return _Found(start, rows, False)


def _clearly_moves(losses: Any, theta: np.ndarray, indices: np.ndarray, gradients: np.ndarray) -> bool:
    """Whether some sample's gradient is far beyond rounding at a verified minimum, which Newton cannot mend."""
    noise = _noise(losses, theta, indices, gradients)
    norms = np.linalg.norm(gradients, axis=1)
    return bool(np.any(norms > FAR_BEYOND * np.maximum(noise.max(), EPS * norms.max())))


def _noise(losses: Any, theta: np.ndarray, indices: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """How much the gradient of each sample changes when parameters move by a few units in the last place."""
    noise = np.zeros(len(indices))
    for jitter in jitters(len(theta)):
        near = sample_gradients(losses, theta + jitter * np.spacing(theta), indices)
        noise = np.fmax(noise, np.linalg.norm(near - gradients, axis=1))
    return noise


def _excess(
    losses: Any, theta: np.ndarray, indices: np.ndarray, gradients: np.ndarray, rows: SampleRows, size: float
) -> float:
    """The largest gradient of a sample in units of what rounding may leave of it."""
    noise = _noise(losses, theta, indices, gradients)
    curvature = np.zeros(len(indices))
    np.maximum.at(curvature, np.searchsorted(indices, rows.sample), np.sum(rows.factors**2, axis=1))
    norms = np.linalg.norm(gradients, axis=1)
    # Squares of tiny numbers vanish, and exact zeros have no units in the last place.
    allowed = NOISE * (noise + 64 * EPS * size * curvature)
    return float(np.max(np.where(norms > 0, norms / np.maximum(allowed, 1e-300), 0.0)))


def _no_interpolation(
    losses: Any, theta: np.ndarray, indices: np.ndarray, p: np.ndarray, minimum: Minimum | None
) -> str:
    gradients = sample_gradients(losses, theta, indices)
    norms = np.linalg.norm(gradients, axis=1)
    mean = float(np.linalg.norm(p[indices] @ gradients))
    worst = int(np.argmax(norms))
    if minimum is None and mean > CANCELS * norms[worst]:
        return (
            f"theta is not an interpolating minimum: the gradient norm there is {mean:.3g}, and Newton's method "
            f"finds no point close by where the gradients of all samples vanish. Train further, until the loss "
            f"of every sample is minimal"
        )
    return (
        f"theta is a minimum of the mean loss, but not of every sample's (it does not interpolate): the gradient "
        f"of sample {indices[worst]} has norm {norms[worst]:.3g}. Stochastic gradient descent does not stay there "
        "whatever the step size, and has no exponent there; gdmap.gd_exponent does not need interpolation"
    )


def _evidence_without_hessian(
    losses: Any,
    theta: np.ndarray,
    indices: np.ndarray,
    rows: SampleRows,
    basis: np.ndarray,
    independence: float,
    size: float,
) -> tuple[str, bool]:
    """What shows that a point of too many parameters for the dense Hessian is a minimum, in words."""
    words = ["every sample's gradient is rounding noise"]
    definite = bool(np.all(rows.signs > 0))
    words.append(
        "no sample Hessian has a negative eigenvalue" if definite else "some sample Hessians are indefinite"
    )
    along = np.random.default_rng(0).standard_normal(len(theta))
    along -= basis @ (basis.T @ along)
    length = float(np.linalg.norm(along))
    level = basis.shape[1] == len(theta)
    if not level:
        aside = theta + SHIFT * size * along / length
        level = _interpolate(losses, aside, indices, size, COARSE).interpolates
    independent = independence > DEPENDENT
    if basis.shape[1] == len(theta):
        words.append("there are no null directions")
    elif level:
        words.append(f"the same holds at a point {SHIFT:g} of its size away along the null directions")
    elif independent:
        raise ValueError(
            "theta is a degenerate critical point: the gradients of all samples vanish, but not along the null "
            "directions of their Hessians (as for x^4); linear stability does not decide"
        )
    else:
        words.append("NOT SHOWN: that points of equal loss pass along the null directions")
    if independent:
        words.append("the gradients are linearly independent (implicit function theorem)")
    else:
        words.append("NOT SHOWN: that the minima form a manifold, since the gradients are linearly dependent")
    return "; ".join(words), definite and level and independent

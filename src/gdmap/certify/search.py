"""What to prove, and where: claims proposed in plain floating point, most general first.

Nothing here is trusted: every claim goes through `gdmap.certify.claims.verify`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import jax
import numpy as np

from gdmap.certify.claims import LARGEST_SPECTRUM, Claim
from gdmap.certify.constants import LARGEST_SYMBOLIC, generic_points, rational_points
from gdmap.certify.margins import PAIRS, MarginProgram, affine_margins
from gdmap.certify.subject import LARGEST_ARBITRARY, Subject, written
from gdmap.engines.balls.arithmetic import UndecidedError
from gdmap.engines.pieces import Pattern
from gdmap.engines.precision import float64

# Two spectra are compared up to this many parameters: above, enclosing every eigenvalue takes minutes.
LARGEST_COMPARED = 700
# Exact spectra on pieces up to this many parameters.
LARGEST_EXACT = 40
# The Hessian at zero is evaluated exactly up to this many parameters.
LARGEST_ZERO = 100
# Scales of the random points at which a determinant is evaluated.
SCALES = (0.3, 1.0, 0.05, 3.0)
# Closer to singular than this (relative to its size), a matrix may be singular.
SUSPICIOUS = 1e-9
# Up to this many parameters the best of several points is chosen by its eigenvalues.
LARGEST_CHOSEN = 800


@dataclass(frozen=True)
class Effort:
    """How far a search goes."""

    max_pieces: int = 20_000


def claims_everywhere(subject: Subject, step_sizes: Sequence[Fraction], effort: Effort) -> Iterator[Claim]:
    """Claims about all of parameter space, those that prove most with least first."""
    smooth = subject.pieces.is_smooth
    if smooth and subject.covers_all:
        yield {"kind": "growth"}
    if subject.covers_all:
        yield from at_zero(subject)
    if smooth and subject.covers_all:
        yield from claims_on_piece(subject, None, step_sizes)
        return
    if subject.covers_all and not smooth:
        claim = claim_of_every_piece(subject, effort)
        if claim is not None:
            yield claim


def at_zero(subject: Subject) -> Iterator[Claim]:
    """All patterns at once, at the point where networks are simplest (often the Hessian is zero there)."""
    zero = written([Fraction(0)] * subject.pieces.dim)
    if subject.dim <= LARGEST_ZERO:
        yield {"kind": "exact spectra", "pattern": "every", "points": [zero]}
    bound = "eigenvalues" if subject.dim <= LARGEST_SPECTRUM else "norm"
    yield {"kind": "spectra", "pattern": "every", "points": [zero], "bound": bound}


def claims_on_piece(
    subject: Subject, point: Sequence[Fraction] | None, step_sizes: Sequence[Fraction]
) -> Iterator[Claim]:
    """Claims about one piece, that of ``point``; ``None`` for a loss of one piece only."""
    start = point if point is not None else generic_points(subject, 1, SCALES[0])[0]
    about: Claim = {"pattern": "of the point", "point": written(start)}
    if not subject.covers_all:
        yield {**about, "kind": "spectra", "points": [written(start)]}
        for bits in (None, 128, 256):
            yield {**about, "kind": "regular", "points": [written(start)], **with_bits(bits)}
        return
    pattern = subject.pattern(start)
    if subject.dim <= LARGEST_COMPARED and not subject.extra:
        if subject.dim <= LARGEST_EXACT:
            yield {**about, "kind": "exact spectra", "points": [written(p) for p in rational_points(subject, 3)]}
        points = [start, *generic_points(subject, 2, SCALES[1], seed=1)]
        yield {**about, "kind": "spectra", "points": [written(p) for p in points[:2]]}
        yield {**about, "kind": "spectra", "points": [written(p) for p in points]}
    for candidate in candidate_points(subject, start, pattern, step_sizes):
        yield {**about, "kind": "regular", "points": [written(candidate)]}
    if subject.dim <= LARGEST_ARBITRARY:
        for bits in (128, 256):
            yield {**about, "kind": "regular", "points": [written(start)], "bits": bits}


def with_bits(bits: int | None) -> Claim:
    """The part of a claim that names a precision."""
    return {} if bits is None else {"bits": bits}


def candidate_points(
    subject: Subject, start: Sequence[Fraction], pattern: Pattern, step_sizes: Sequence[Fraction]
) -> list[tuple[Fraction, ...]]:
    """Points at which ``I - eta H`` is far from singular, best first."""
    points = [tuple(start), *(p for scale in SCALES for p in generic_points(subject, 1, scale, seed=2))]
    if subject.dim > LARGEST_CHOSEN or not step_sizes:
        return points[:3]
    rated = []
    for point in points:
        hessian = subject.float_hessian(point, pattern)[: subject.dim, : subject.dim]
        if np.all(np.isfinite(hessian)):
            eigenvalues = np.linalg.eigvalsh(hessian)
            rated.append((min(distance(eigenvalues, size) for size in step_sizes), point))
    rated.sort(key=lambda pair: -pair[0])
    return [point for _, point in rated[:3]]


def distance(eigenvalues: np.ndarray, step_size: Fraction) -> float:
    """``min |1 - eta lambda_i|``, relative to the size of ``I - eta H``."""
    factors = np.abs(1 - float(step_size) * eigenvalues)
    return float(factors.min() / max(1.0, factors.max()))


def claim_of_every_piece(subject: Subject, effort: Effort) -> Claim | None:
    """The claim that lists all pieces, if they can be listed and are not too many."""
    try:
        margins = affine_margins(subject)
    except UndecidedError:
        return None
    if margins is None:
        return None
    n_pieces = margins.n_pieces
    if n_pieces > effort.max_pieces:
        return None
    exact = subject.dim <= LARGEST_EXACT and is_rational(subject)
    points = rational_points(subject, 3) if exact else generic_points(subject, 3, SCALES[1], seed=3)
    return {
        "kind": "every piece",
        "n_pieces": n_pieces,
        "method": "exact" if exact else "spectra",
        "points": [written(p) for p in points],
    }


def is_rational(subject: Subject) -> bool:
    """Whether the Hessian is rational at rational points: the loss is a polynomial on each piece, or a
    quotient."""
    point = rational_points(subject, 1)[0]
    masks = tuple(np.zeros(mask.shape, np.int8) for mask in subject.pieces.every_pattern().masks)
    try:
        hessian = subject.exact_hessian(point, Pattern(masks, subject.pieces.every_pattern().shifts))
    except (UndecidedError, ZeroDivisionError):
        return False
    return all(hasattr(entry, "p") for entry in hessian.ravel())


def claim_of_vanishing(
    subject: Subject, point: Sequence[Fraction], step_sizes: Sequence[Fraction]
) -> Claim | None:
    """The claim that the determinant vanishes identically on the piece of a point, if it does at two points."""
    if subject.dim > LARGEST_SYMBOLIC or not step_sizes:
        return None
    pattern = subject.pattern(point)
    for place in rational_points(subject, 2):
        hessian = subject.float_hessian(place, pattern)
        if not np.all(np.isfinite(hessian)):
            return None
        eigenvalues = np.linalg.eigvalsh(hessian)
        if all(distance(eigenvalues, size) > SUSPICIOUS for size in step_sizes):
            return None
    return {"kind": "vanishing determinant", "point": written(point)}


def telling_points(subject: Subject) -> list[tuple[Fraction, ...]]:
    """Points in pieces that tend to be singular: units dead or alive for all samples, and some random ones."""
    n = subject.pieces.dim
    constant = [
        tuple(Fraction(x) for x in np.full(n, value) + 1e-3 * np.sin(np.arange(n))) for value in (-1.0, 1.0)
    ]
    return [*constant, *dead_points(subject), *generic_points(subject, 4, 1.0, seed=5)]


def dead_points(subject: Subject) -> list[tuple[Fraction, ...]]:
    """Points with as many kinks as possible on one side, found by pushing the margins down along their
    gradient."""
    pieces = subject.pieces
    if pieces.is_smooth or subject.dim > LARGEST_CHOSEN:
        return []
    if any(kink.equation.primitive.name not in PAIRS for kink in pieces.kinks):
        return []
    program = MarginProgram(pieces)
    masks = [np.zeros(mask.shape, bool) for mask in pieces.every_pattern().masks]
    levels = list(pieces.every_pattern().shifts)
    found = []
    with float64():
        for side in (-1.0, 1.0):
            theta = 0.1 * np.random.default_rng(7).standard_normal(pieces.dim)
            forced = [np.full(mask.shape, side > 0) for mask in masks]
            shortfall = jax.jit(
                jax.grad(
                    lambda t, forced=forced, side=side: jax.numpy.sum(
                        jax.nn.relu(1 - side * program.margins(t, forced, levels))
                    )
                )
            )
            for _ in range(200):
                slope = np.asarray(shortfall(theta))
                size = np.linalg.norm(slope)
                if size == 0 or not np.isfinite(size):
                    break
                theta = theta - 0.1 * slope / size
            if np.all(np.isfinite(theta)):
                found.append(tuple(Fraction(float(x)) for x in theta))
    return found

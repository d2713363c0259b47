"""Hessian eigenvalues that are the same at all points of a piece, proved by directions on which ``H`` acts
constantly."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from flint import fmpq, fmpq_mat

from gdmap.bracket import Bracket
from gdmap.certify.exact_spectra import (
    Root,
    common_subspace,
    constant_block,
    constant_eigenvectors,
    is_constant_action,
    positive_roots,
    vanishes_identically,
)
from gdmap.certify.subject import Subject, written
from gdmap.engines.balls.anything import ANY
from gdmap.engines.balls.arithmetic import UndecidedError
from gdmap.engines.balls.polynomial import Polynomials
from gdmap.engines.pieces import Pattern
from gdmap.engines.program import UnsupportedProgramError

# Above this many parameters only coordinates whose rows look constant are examined.
LARGEST_EXAMINED = 150
# Exact spectra beyond this size take too long.
LARGEST_EXACT = 60
# Determinants of larger matrices of polynomials are not expanded, nor those of more terms.
LARGEST_SYMBOLIC = 16
MOST_TERMS = 20_000
# Directions are tried with denominators up to this.
LARGEST_DENOMINATOR = 64
# Rows of two Hessians that agree so far may be constant.
AGREEMENT = 1e-9


class ConstantDirections(NamedTuple):
    """Directions (rows of ``basis``, exact) with ``H basis^T = basis^T action`` at every point of a piece."""

    basis: np.ndarray
    action: fmpq_mat


class Curvature(NamedTuple):
    """A positive eigenvalue that the Hessian has at every point of a piece; ``root`` encloses it exactly."""

    root: Root

    @property
    def exact(self) -> Fraction | None:
        """The eigenvalue, if it is rational."""
        return fraction(self.root.lower) if self.root.is_exact else None

    def is_exactly(self, value: Fraction) -> bool:
        """Whether it is this number."""
        return self.exact == value

    @property
    def step_size(self) -> Bracket:
        """The exceptional step size, its reciprocal; status *proved*."""
        low, high = fraction(self.root.lower), fraction(self.root.upper)
        lower, upper = float(1 / high), float(1 / low)
        lower = math.nextafter(lower, 0.0) if Fraction(lower) > 1 / high else lower
        upper = math.nextafter(upper, math.inf) if Fraction(upper) < 1 / low else upper
        value = min(max(float(2 / (low + high)), lower), upper)
        return Bracket(value, lower, upper, "proved", "reciprocal of a constant Hessian eigenvalue")

    def relative_distance(self, step_size: Fraction) -> float:
        """``|eta - eta*| / eta*`` for the exceptional step size ``eta* = 1 / c``, rounded upward."""
        ends = (fraction(self.root.lower), fraction(self.root.upper))
        distance = max(abs(step_size * end - 1) for end in ends)
        rounded = float(distance)
        return math.nextafter(rounded, math.inf) if Fraction(rounded) < distance else rounded

    def __float__(self) -> float:
        return float(self.root)

    def __str__(self) -> str:
        return str(self.exact) if self.exact is not None else repr(float(self.root))


def constant_curvatures(
    subject: Subject, pattern: Pattern, candidates: Sequence[Fraction] = ()
) -> list[Curvature]:
    """The positive eigenvalues that are proved to be constant on a pattern, ascending.

    Besides those with constant directions, the ``candidates`` for which ``det(c I - H)`` vanishes identically.
    """
    directions = constant_directions(subject, pattern)
    found = [] if directions is None else [Curvature(r) for r in positive_roots(directions.action.charpoly())]
    for candidate in candidates:
        known = any(curvature.is_exactly(candidate) for curvature in found)
        if not known and vanishes(subject, pattern, candidate):
            root = fmpq(candidate.numerator, candidate.denominator)
            found.append(Curvature(Root(root, root)))
    return sorted(found, key=float)


def vanishes(subject: Subject, pattern: Pattern, curvature: Fraction) -> bool:
    """Whether ``det(c I - H(theta))`` is shown to be the zero polynomial of all parameters.

    Symbolic, hence for small polynomial losses only; eigenvectors may move with the parameters.
    """
    if subject.dim > LARGEST_SYMBOLIC or subject.extra:
        return False
    try:
        polynomials = Polynomials(subject.dim, subject.exact_decimals)
        hessian = subject.pieces.hessian(polynomials.variables(), pattern, polynomials)
        shift = polynomials.context.constant(fmpq(curvature.numerator, curvature.denominator))
        rows = [
            [(shift if i == j else 0 * shift) - hessian[i, j] for j in range(subject.dim)]
            for i in range(subject.dim)
        ]
        return vanishes_identically(rows, MOST_TERMS)
    except (UndecidedError, UnsupportedProgramError, ValueError, TypeError):
        return False


def constant_directions(subject: Subject, pattern: Pattern) -> ConstantDirections | None:
    """Directions on which the Hessian of a pattern's function is proved to act in the same way everywhere.

    Proposed by rows of the Hessian that hold no unknown and, where the loss is a polynomial on the piece, by exact
    Hessians at a few points, which need not be coordinates; proved by evaluating with every parameter unknown.
    """
    proposals = [from_polynomial, from_coordinates, from_differences]
    for propose in proposals:
        found = propose(subject, pattern)
        if found is not None:
            return found
    return None


def from_coordinates(subject: Subject, pattern: Pattern) -> ConstantDirections | None:
    """Coordinates whose rows of the Hessian are known constants, zero outside these coordinates."""
    n = subject.dim
    coordinates = np.arange(n) if n <= LARGEST_EXAMINED else rows_that_look_constant(subject, pattern)
    if len(coordinates) == 0:
        return None
    try:
        directions = np.eye(subject.pieces.dim)[coordinates]
        rows = np.full((n, n), ANY, object)
        rows[coordinates] = subject.constant_images(pattern, directions)[:, :n]
    except (UndecidedError, ZeroDivisionError):
        return None
    block = constant_block(rows)
    if not block.indices:
        return None
    basis = np.array(
        [[fmpq(int(k == index)) for k in range(subject.pieces.dim)] for index in block.indices], object
    )
    return ConstantDirections(basis, block.matrix)


def from_differences(subject: Subject, pattern: Pattern) -> ConstantDirections | None:
    """Rational directions on which Hessians at random points agree in floating point, each an eigenvector."""
    if subject.dim > LARGEST_EXAMINED or subject.extra:
        return None
    one, *others = (subject.float_hessian(point, pattern) for point in generic_points(subject, 3, 0.5))
    differences = np.concatenate([one - other for other in others])
    if not np.all(np.isfinite(differences)):
        return None
    _, sizes, right = np.linalg.svd(differences)
    rank = int(np.sum(sizes > AGREEMENT * max(sizes[0], np.max(np.abs(one)), 1e-300)))
    vectors = [rationalised(row) for row in echelon(right[rank:])]
    if not vectors or any(vector is None for vector in vectors):
        return None
    basis = np.array(vectors, object)
    try:
        images = subject.constant_images(pattern, basis)
    except (UndecidedError, ZeroDivisionError):
        return None
    found = []
    for vector, image in zip(basis, images, strict=True):
        pivot = next(k for k, x in enumerate(vector) if x != 0)
        value = image[pivot] / vector[pivot] if image[pivot] is not ANY else ANY
        if value is not ANY and all(y is not ANY and y == value * x for x, y in zip(vector, image, strict=True)):
            found.append((vector, value))
    if not found:
        return None
    k = len(found)
    action = fmpq_mat(k, k, [found[i][1] if i == j else fmpq(0) for i in range(k) for j in range(k)])
    return ConstantDirections(np.array([vector for vector, _ in found], object), action)


def echelon(rows: np.ndarray) -> np.ndarray:
    """The reduced echelon form of independent rows, with pivoting, in floating point."""
    rows = np.array(rows, float)
    for i in range(len(rows)):
        best, column = divmod(int(np.argmax(np.abs(rows[i:]))), rows.shape[1])
        rows[[i, i + best]] = rows[[i + best, i]]
        rows[i] /= rows[i, column]
        others = np.arange(len(rows)) != i
        rows[others] -= np.outer(rows[others, column], rows[i])
    return rows


def rationalised(row: np.ndarray) -> list[fmpq] | None:
    """A vector with small denominators near a float one, ``None`` if there is none."""
    exact = [Fraction(float(x)).limit_denominator(LARGEST_DENOMINATOR) for x in row]
    if max(abs(float(x) - float(y)) for x, y in zip(exact, row, strict=True)) > AGREEMENT:
        return None
    return [fmpq(x.numerator, x.denominator) for x in exact]


def rows_that_look_constant(subject: Subject, pattern: Pattern) -> np.ndarray:
    """Coordinates whose rows of the Hessian agree at two random points, in floating point."""
    one, two = (subject.float_hessian(point, pattern) for point in generic_points(subject, 2, 0.5))
    scale = np.max(np.abs(one)) + np.max(np.abs(two))
    same = np.max(np.abs(one - two), 1) <= AGREEMENT * scale
    # All-zero rows have no positive eigenvalue.
    return np.flatnonzero(same[: subject.dim] & (np.max(np.abs(one[: subject.dim]), 1) > 0))


def from_polynomial(subject: Subject, pattern: Pattern) -> ConstantDirections | None:
    """The largest common invariant subspace of exact Hessians, where the loss is polynomial on the piece."""
    if subject.dim > LARGEST_EXACT or subject.extra:
        return None
    hessians = []
    try:
        for point in rational_points(subject, 3):
            hessian = subject.exact_hessian(point, pattern)
            if any(entry is ANY for entry in hessian.ravel()):
                return None
            hessians.append(hessian)
    except (UndecidedError, ZeroDivisionError):
        return None
    basis, action = common_subspace(hessians)
    if len(basis) == 0:
        return None
    if is_constant_action(basis, subject.constant_images(pattern, basis), action):
        return ConstantDirections(basis, action)
    # Directions of another eigenvalue (often 0) may hide those that can be proved: one eigenvalue at a time.
    for root in positive_roots(action.charpoly()):
        if root.is_exact:
            vectors = constant_eigenvectors(hessians, root.lower)
            own = fmpq_mat(
                len(vectors),
                len(vectors),
                [root.lower if i == j else fmpq(0) for i in range(len(vectors)) for j in range(len(vectors))],
            )
            if len(vectors) and is_constant_action(vectors, subject.constant_images(pattern, vectors), own):
                return ConstantDirections(vectors, own)
    return None


def claim_of_constant(subject: Subject, point: Sequence[Fraction]) -> dict[str, Any] | None:
    """The claim that the Hessian acts on some directions in one way on the whole piece of a point."""
    directions = constant_directions(subject, subject.pattern(point))
    if directions is None:
        return None
    return {
        "kind": "constant directions",
        "point": written(point),
        "basis": strings(directions.basis),
        "action": strings(directions.action.tolist()),
    }


def generic_points(subject: Subject, count: int, scale: float, seed: int = 0) -> list[tuple[Fraction, ...]]:
    """Random points (normal, of this scale), exact."""
    rng = np.random.default_rng([seed, count])
    return [
        tuple(Fraction(float(x)) for x in scale * rng.standard_normal(subject.pieces.dim)) for _ in range(count)
    ]


def rational_points(subject: Subject, count: int, seed: int = 0) -> list[tuple[Fraction, ...]]:
    """Random points with small numerators and denominators, for exact arithmetic."""
    rng = np.random.default_rng([seed, count, 1])
    numerators = rng.integers(-15, 16, (count, subject.pieces.dim))
    return [tuple(Fraction(int(2 * x + 1), 16) for x in row) for row in numerators]


def fraction(x: Any) -> Fraction:
    """A rational of FLINT as one of Python."""
    return Fraction(int(x.p), int(x.q))


def strings(matrix: Sequence[Sequence[Any]] | np.ndarray) -> list[list[str]]:
    """A matrix of exact numbers for a JSON record."""
    return [[str(entry) for entry in row] for row in matrix]

"""Exact spectra of rational symmetric matrices, and the parts of a Hessian that are the same at all parameters.

A step size ``eta`` is exceptional on a piece of a loss when ``1 / eta`` is an eigenvalue of the Hessian at every
point of the piece. The greatest common divisor of the characteristic polynomials at a few points proposes such
eigenvalues, or shows that there are none; a block of the Hessian that is constant, or a determinant that vanishes
identically, proves them.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from flint import Ordering, ctx, fmpq, fmpq_mat, fmpq_mpoly, fmpq_mpoly_ctx, fmpq_poly

from gdmap.engines.balls.anything import ANY, exact_rational, is_known

# Symbolic determinants give up beyond this many terms in one intermediate polynomial.
MOST_TERMS = 200_000


class Root(NamedTuple):
    """An enclosure of one real number, end points exact (``fmpq``); equal end points are the number itself."""

    lower: fmpq
    upper: fmpq

    @property
    def is_exact(self) -> bool:
        """Whether the number is known exactly."""
        return self.lower == self.upper

    def __float__(self) -> float:
        middle = (self.lower + self.upper) / 2
        return int(middle.p) / int(middle.q)


class CommonEigenvalues(NamedTuple):
    """The eigenvalues that all matrices share.

    Attributes
    ----------
    polynomial
        Monic, square-free; its roots are the common eigenvalues other than 0. The constant 1 if there are none.
    nullity
        The multiplicity that the eigenvalue 0 has in all of them, at least.
    """

    polynomial: fmpq_poly
    nullity: int


class ConstantBlock(NamedTuple):
    """Coordinates whose rows of the Hessian are constant, and zero outside these coordinates.

    Attributes
    ----------
    indices
        The coordinates, ascending.
    matrix
        The block, exact and symmetric. Its eigenvalues are eigenvalues of the Hessian at every point.
    """

    indices: tuple[int, ...]
    matrix: fmpq_mat


def exact_matrix(matrix: Any) -> fmpq_mat:
    """A square matrix of integers, ``fmpq``, ``Fraction`` or floats (the exact binary numbers) as ``fmpq_mat``.

    Raises
    ------
    ValueError
        If it is not square, or has an infinite or nan entry.
    TypeError
        If an entry is not a number, ``ANY`` included.
    """
    if isinstance(matrix, fmpq_mat):
        shape, entries = (matrix.nrows(), matrix.ncols()), None
    else:
        array = np.asarray(matrix, dtype=object)
        shape, entries = array.shape, array.ravel().tolist()
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"the matrix must be square, not of shape {shape}")
    return matrix if entries is None else fmpq_mat(*shape, [exact_rational(x) for x in entries])


def exact_rows(rows: Sequence[Sequence[Any]]) -> fmpq_mat:
    """Rows of numbers as a square ``fmpq_mat``."""
    return fmpq_mat(len(rows), len(rows), [exact_rational(x) for row in rows for x in row])


def symmetric_matrix(matrix: Any) -> fmpq_mat:
    """`exact_matrix` for a matrix that must be symmetric."""
    exact = exact_matrix(matrix)
    if exact != exact.transpose():
        raise ValueError("the matrix is not symmetric")
    return exact


def without_zero(polynomial: fmpq_poly) -> tuple[fmpq_poly, int]:
    """The polynomial divided by the highest power of x that divides it, and the exponent."""
    exponent = next((k for k, c in enumerate(polynomial.coeffs()) if c != 0), 0)
    return polynomial.right_shift(exponent), exponent


def squarefree(polynomial: fmpq_poly) -> fmpq_poly:
    """The monic polynomial with the same roots, each simple."""
    if polynomial.degree() < 1:
        return fmpq_poly([1])
    simple = polynomial // polynomial.gcd(polynomial.derivative())
    return simple / simple.leading_coefficient()


def sign_changes(polynomial: fmpq_poly) -> int:
    """The number of sign changes among the coefficients: at least as many as positive roots (Descartes); for a
    polynomial with real roots only, exactly as many, counted with multiplicity.
    """
    signs = [c > 0 for c in polynomial.coeffs() if c != 0]
    return sum(a != b for a, b in itertools.pairwise(signs))


def common_eigenvalues(matrices: Iterable[Any]) -> CommonEigenvalues:
    """The eigenvalues common to all matrices: the greatest common divisor of their characteristic polynomials.

    Parameters
    ----------
    matrices
        Symmetric (n, n) matrices with rational entries, at least one; taken one by one, and no more of them than
        it takes to see that there is no common positive eigenvalue (then the polynomial is 1: negative common
        eigenvalues are dropped as well).

    Returns
    -------
    CommonEigenvalues. For Hessians at points of one piece, its positive roots are the only candidates for
    constant eigenvalues, so ``polynomial == 1`` proves that no step size is exceptional. A candidate proves
    nothing yet.

    Raises
    ------
    ValueError
        If there is no matrix, if one is not symmetric, or if their sizes differ.
    """
    common: fmpq_poly | None = None
    nullity, size = 0, -1
    for matrix in matrices:
        exact = symmetric_matrix(matrix)
        if common is not None and exact.nrows() != size:
            raise ValueError(f"matrices of one size are needed, not {size} and {exact.nrows()}")
        size = exact.nrows()
        reduced, zeros = without_zero(exact.charpoly())
        common, nullity = (reduced, zeros) if common is None else (common.gcd(reduced), min(nullity, zeros))
        if not sign_changes(common):
            return CommonEigenvalues(fmpq_poly([1]), nullity)
    if common is None:
        raise ValueError("at least one matrix is needed")
    return CommonEigenvalues(squarefree(common), nullity)


def positive_roots(polynomial: fmpq_poly, bits: int = 128) -> list[Root]:
    """The distinct positive real roots of a non-zero polynomial, ascending.

    Rational roots are exact. Each other one lies strictly between end points of relative distance at most
    ``2 ** -bits``, at which the square-free part of the polynomial has opposite signs, and no other root does.

    Notes
    -----
    Status: proved. FLINT isolates the roots; the signs at the end points are checked here in exact arithmetic.
    """
    if polynomial == 0:
        raise ValueError("every number is a root of the zero polynomial")
    if bits < 2:
        raise ValueError(f"at least 2 bits are needed, not {bits}")
    simple = squarefree(without_zero(polynomial)[0])
    if not sign_changes(simple):
        return []
    rational = [root for root, _ in simple.roots()]
    for root in rational:
        simple = simple // fmpq_poly([-root, 1])
    found = [Root(root, root) for root in rational if root > 0]
    if sign_changes(simple):
        found += irrational_positive_roots(simple, bits, rational)
    return sorted(found)


def irrational_positive_roots(polynomial: fmpq_poly, bits: int, apart: Sequence[fmpq]) -> list[Root]:
    """Positive roots of a square-free polynomial without rational roots, enclosed without any of ``apart``."""
    precision = bits + 16
    while True:
        with ctx.workprec(precision):
            isolated: list[Any] = polynomial.complex_roots()
            real = [root.real for root, _ in isolated if root.imag == 0]
            ends = [(rational_of(root.lower()), rational_of(root.upper())) for root in real]
        # No root is 0, so every enclosure leaves 0 in the end.
        if all(upper < 0 or (lower > 0 and (upper - lower) * 2**bits <= lower) for lower, upper in ends):
            roots = [Root(lower, upper) for lower, upper in ends if lower > 0]
            changes = all(polynomial(root.lower) * polynomial(root.upper) < 0 for root in roots)
            if changes and not any(root.lower <= x <= root.upper for root in roots for x in apart):
                return roots
        precision *= 2


def rational_of(number: Any) -> fmpq:
    """The binary number that is the midpoint of a ball."""
    mantissa, exponent = number.mid().man_exp()
    return fmpq(mantissa) * fmpq(2) ** int(exponent)


def constant_block(hessian: Any) -> ConstantBlock:
    """The largest set of coordinates whose rows of the Hessian are known, and zero outside the set.

    On these coordinates the Hessian acts by itself, so the eigenvalues of the block are eigenvalues of the Hessian
    at every point.

    Parameters
    ----------
    hessian
        (n, n) object array: a rational where the entry has this value at every point, ``ANY`` where it may vary.
        An entry is known when it is known on either side of the diagonal.

    Raises
    ------
    ValueError
        If the array is not square, or two known entries contradict symmetry.
    """
    entries = np.array(hessian, dtype=object)
    if entries.ndim != 2 or entries.shape[0] != entries.shape[1]:
        raise ValueError(f"the Hessian must be square, not of shape {entries.shape}")
    known = is_known(entries)
    for i, j in np.argwhere(known):
        value = entries[i, j] = exact_rational(entries[i, j])
        if not known[j, i]:
            entries[j, i] = value
        elif exact_rational(entries[j, i]) != value:
            raise ValueError(f"a Hessian is symmetric, but entries ({i}, {j}) and ({j}, {i}) differ")
    # Where something stands that is not known to be zero.
    filled = np.array([[value is ANY or value != 0 for value in row] for row in entries], dtype=bool)
    inside = (known | known.T).all(axis=1)
    while (leaking := inside & filled.reshape(entries.shape)[:, ~inside].any(axis=1)).any():
        inside &= ~leaking
    indices = np.flatnonzero(inside)
    block = fmpq_mat(len(indices), len(indices), entries[np.ix_(indices, indices)].ravel().tolist())
    return ConstantBlock(tuple(indices.tolist()), block)


def singular_step_sizes(block: Any, bits: int = 128) -> list[Root]:
    """The step sizes ``eta > 0`` with ``det(I - eta B) = 0``, ascending: reciprocals of the positive eigenvalues.

    Parameters
    ----------
    block
        Square matrix of rationals, such as ``constant_block(...).matrix`` or the action of `common_subspace`.
    bits
        Relative precision of those that are not rational.
    """
    exact = exact_matrix(block)
    return [Root(1 / root.upper, 1 / root.lower) for root in reversed(positive_roots(exact.charpoly(), bits))]


def is_singular(block: Any, step_size: Any) -> bool:
    """Whether ``det(I - eta B) = 0``, decided exactly.

    ``step_size`` is a ``Fraction``, ``fmpq``, integer, or a float, which means the exact binary number.
    """
    exact = exact_matrix(block)
    return (identity(exact.nrows()) - exact_rational(step_size) * exact).det() == 0


@functools.cache
def identity(n: int) -> fmpq_mat:
    """The identity matrix."""
    return fmpq_mat(n, n, [int(i == j) for i in range(n) for j in range(n)])


def nullspace(matrix: fmpq_mat) -> fmpq_mat:
    """A basis of ``{v: A v = 0}``, one primitive integer vector a row, in reduced form."""
    reduced, rank = matrix.rref()
    rows = reduced.tolist()
    n = matrix.ncols()
    pivots = [next(j for j, value in enumerate(rows[i]) if value != 0) for i in range(rank)]
    basis = []
    for free in sorted(set(range(n)) - set(pivots)):
        vector = [fmpq(0)] * n
        vector[free] = fmpq(1)
        for row, pivot in zip(rows, pivots, strict=False):
            vector[pivot] = -row[free]
        basis.append(primitive(vector))
    return fmpq_mat(len(basis), n, [value for vector in basis for value in vector])


def primitive(vector: Sequence[fmpq]) -> list[fmpq]:
    """The vector scaled to integers without a common divisor."""
    denominator = math.lcm(*(int(value.q) for value in vector))
    integers = [int(value.p) * (denominator // int(value.q)) for value in vector]
    divisor = math.gcd(*integers) or 1
    return [fmpq(value // divisor) for value in integers]


def stacked(matrices: Sequence[fmpq_mat]) -> fmpq_mat:
    """The matrices one below the other."""
    n = matrices[0].ncols()
    entries = [value for matrix in matrices for value in matrix.entries()]
    return fmpq_mat(sum(matrix.nrows() for matrix in matrices), n, entries)


def as_array(matrix: fmpq_mat) -> np.ndarray:
    """An ``fmpq_mat`` as an object array of ``fmpq``."""
    array = np.empty(matrix.nrows() * matrix.ncols(), dtype=object)
    array[:] = matrix.entries()
    return array.reshape(matrix.nrows(), matrix.ncols())


def exact_matrices(matrices: Iterable[Any]) -> list[fmpq_mat]:
    """Square matrices of one size, at least one."""
    exact = [exact_matrix(matrix) for matrix in matrices]
    if not exact:
        raise ValueError("at least one matrix is needed")
    if len({matrix.nrows() for matrix in exact}) > 1:
        raise ValueError(f"matrices of one size are needed, not {[matrix.nrows() for matrix in exact]}")
    return exact


def constant_eigenvectors(matrices: Iterable[Any], eigenvalue: Any) -> np.ndarray:
    """The common eigenvectors for one rational eigenvalue: ``{v: H_i v = c v for all i}``.

    Returns
    -------
    (k, n) object array of ``fmpq``: a basis of primitive integer vectors. For Hessians at points of one piece,
    candidates for eigenvectors at every point; what is not in their span is none.
    """
    exact, c = exact_matrices(matrices), exact_rational(eigenvalue)
    return as_array(nullspace(stacked([matrix - c * identity(matrix.nrows()) for matrix in exact])))


def common_subspace(matrices: Iterable[Any]) -> tuple[np.ndarray, fmpq_mat]:
    """The largest subspace that all matrices map into itself, and on which they are the same map.

    It contains every eigenvector that the matrices share with the same eigenvalue, rational or not. For Hessians
    at points of one piece it contains all eigenvectors that do not depend on the point, if their eigenvalues do
    not either: candidates for all exceptional step sizes at once.

    Returns
    -------
    basis, action
        (k, n) object array of ``fmpq``, rows ``v_1, ..., v_k``, and the (k, k) ``fmpq_mat`` M with
        ``H v_i = sum_j M[i, j] v_j`` for each of the matrices H.
    """
    exact = exact_matrices(matrices)
    first, n = exact[0], exact[0].nrows()
    if len(exact) == 1:
        return as_array(identity(n)), first.transpose()
    conditions = stacked([matrix - first for matrix in exact[1:]])
    while True:
        # What the first matrix maps into the subspace found so far.
        reduced, rank = stacked([conditions, conditions * first]).rref()
        if rank == conditions.rank():
            break
        conditions = fmpq_mat(rank, n, reduced.entries()[: rank * n])
    basis = nullspace(conditions)
    k = basis.nrows()
    if k == 0:
        return as_array(basis), fmpq_mat(0, 0)
    images = basis * first.transpose()
    gram = basis * basis.transpose()
    return as_array(basis), images * basis.transpose() * gram.inv()


def is_constant_action(basis: Any, images: Any, action: Any) -> bool:
    """Whether ``H v_i = sum_j M[i, j] v_j`` is shown at every point, for linearly independent ``v_i``.

    Then the eigenvalues of M are eigenvalues of the Hessian at every point.

    Parameters
    ----------
    basis
        (k, n) array of rationals, the rows ``v_i``.
    images
        (k, n) object array, the products ``H v_i`` as a program gives them at the input ``ANY``: rationals where
        they are the same at every point, ``ANY`` elsewhere.
    action
        (k, k) matrix M of rationals.
    """
    vectors, products = np.asarray(basis, dtype=object), np.asarray(images, dtype=object)
    if vectors.ndim != 2 or vectors.shape != products.shape:
        raise ValueError(f"basis and images need one shape (k, n), not {vectors.shape} and {products.shape}")
    k, n = vectors.shape
    matrix = exact_matrix(action)
    if matrix.nrows() != k:
        raise ValueError(f"the action on {k} vectors needs shape ({k}, {k}), not {matrix.nrows()} rows")
    if not is_known(products).all():
        return False
    exact = fmpq_mat(k, n, [exact_rational(x) for x in vectors.ravel()])
    return exact.rank() == k and matrix * exact == fmpq_mat(k, n, [exact_rational(x) for x in products.ravel()])


def polynomial_variables(n: int) -> np.ndarray:
    """``n`` independent variables: an object array of ``flint.fmpq_mpoly``, to evaluate polynomial programs on."""
    context = fmpq_mpoly_ctx.get([f"x{i}" for i in range(n)], Ordering.degrevlex)
    variables = np.empty(n, dtype=object)
    # One by one: NumPy would take a polynomial for a sequence.
    for index, variable in enumerate(context.gens()):
        variables[index] = variable
    return variables


def square_rows(matrix: Any) -> tuple[list[list[Any]], Any]:
    """The rows of a square matrix of polynomials and numbers, and the context of its polynomials, if any."""
    rows = [list(row) for row in matrix]
    if any(len(row) != len(rows) for row in rows):
        raise ValueError(
            f"the matrix must be square, not {len(rows)} rows of lengths {[len(row) for row in rows]}"
        )
    contexts = (value.context() for row in rows for value in row if isinstance(value, fmpq_mpoly))
    return rows, next(contexts, None)


def determinant(matrix: Any, most_terms: int = MOST_TERMS) -> Any:
    """The determinant of a square matrix of multivariate polynomials, exactly (fraction-free elimination).

    Parameters
    ----------
    matrix
        (n, n) object array or nested lists of ``fmpq_mpoly`` of one context; rationals may stand among them.
    most_terms
        Bound on the number of terms of an intermediate polynomial.

    Returns
    -------
    An ``fmpq_mpoly``, or an ``fmpq`` for a matrix of numbers.

    Raises
    ------
    ValueError
        If the matrix is not square, or an intermediate result exceeds the bound.
    """
    entries, context = square_rows(matrix)
    if context is None:
        return exact_rows(entries).det()
    rows = [[as_polynomial(value, context) for value in row] for row in entries]
    total = context.constant(1)
    for indices in coupled(rows):
        total *= bareiss([[rows[i][j] for j in indices] for i in indices], context, most_terms)
        if total == 0:
            break
    return total


def as_polynomial(value: Any, context: fmpq_mpoly_ctx) -> fmpq_mpoly:
    """A number as a constant polynomial."""
    if not isinstance(value, fmpq_mpoly):
        return context.constant(exact_rational(value))
    if value.context() is not context:
        raise ValueError("the polynomials must share one context (variables made by one polynomial_variables(n))")
    return value


def coupled(rows: Sequence[Sequence[fmpq_mpoly]]) -> list[list[int]]:
    """Index sets outside which the matrix is block diagonal."""
    remaining = set(range(len(rows)))
    blocks = []
    while remaining:
        block, frontier = set(), {min(remaining)}
        while frontier:
            i = frontier.pop()
            block.add(i)
            frontier |= {j for j in remaining - block if rows[i][j] != 0 or rows[j][i] != 0}
        remaining -= block
        blocks.append(sorted(block))
    return blocks


def bareiss(rows: list[list[fmpq_mpoly]], context: fmpq_mpoly_ctx, most_terms: int) -> fmpq_mpoly:
    """The determinant of one block; every division is exact."""
    previous, sign = context.constant(1), 1
    n = len(rows)
    for k in range(n - 1):
        # The pivot with the fewest terms.
        candidates = [i for i in range(k, n) if rows[i][k] != 0]
        if not candidates:
            return context.constant(0)
        best = min(candidates, key=lambda i: len(rows[i][k]))
        if best != k:
            rows[k], rows[best] = rows[best], rows[k]
            sign = -sign
        pivot = rows[k][k]
        for i in range(k + 1, n):
            for j in range(k + 1, n):
                left, right = len(pivot) * len(rows[i][j]), len(rows[i][k]) * len(rows[k][j])
                if left + right > 50 * most_terms:
                    raise too_many(most_terms)
                rows[i][j] = (pivot * rows[i][j] - rows[i][k] * rows[k][j]) // previous
                if len(rows[i][j]) > most_terms:
                    raise too_many(most_terms)
        previous = pivot
    return sign * rows[n - 1][n - 1]


def too_many(most_terms: int) -> ValueError:
    """The error of a determinant that outgrows its bound."""
    return ValueError(f"the symbolic determinant outgrew {most_terms} terms: it is too large to be expanded")


def vanishes_identically(matrix: Any, most_terms: int = MOST_TERMS) -> bool:
    """Whether the determinant of a matrix of polynomials is the zero polynomial, decided exactly.

    ``True`` with ``I - eta H(theta)`` proves that the step size eta is singular at every parameter. A few integer
    points are tried first: one determinant that is not zero there is a proof that it does not vanish.
    """
    entries, context = square_rows(matrix)
    if context is not None:
        for attempt in range(1, 4):
            # Spread integers, all different: no choice is needed for the answer to be right.
            point = [fmpq((7919 * attempt * (i + 1)) % 1009 - 504) for i in range(context.nvars())]
            values = [[x(*point) if isinstance(x, fmpq_mpoly) else x for x in row] for row in entries]
            if exact_rows(values).det() != 0:
                return False
    return determinant(entries, most_terms) == 0

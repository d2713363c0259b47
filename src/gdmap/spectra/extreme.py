"""Extreme eigenvalues with error bars: dense where that is cheaper, otherwise by Lanczos iteration."""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.sparse.linalg import LinearOperator

from gdmap.bracket import Bracket
from gdmap.spectra.lanczos import FAILURE, KrylovResult, lanczos
from gdmap.spectra.operators import (
    HessianOperator,
    Products,
    blas_threads,
    dense_matrix,
    symmetric_operator,
    working_dtype,
)

# Lanczos iteration is faster from about 100 parameters on, but a dense solver misses nothing.
DENSE_LIMIT = 200
DENSE_LIMIT_OF_OPERATORS = 64
MAX_PRODUCTS = 1000
TOLERANCE = {np.dtype(np.float32): 3e-3, np.dtype(np.float64): 1e-10}
CONFIDENCE = 1 - FAILURE


class Extremes(NamedTuple):
    """The ``k`` extreme eigenpairs, the most extreme first.

    Attributes
    ----------
    values
        Rayleigh quotients, shape ``(k,)``, float64.
    vectors
        Orthonormal rows, shape ``(k, dim)``.
    residuals
        ``||A x - value x||`` from fresh products, shape ``(k,)``; 0 for dense matrices.
    radii
        How far the matched eigenvalue may lie from ``values``: residuals, joined where their intervals overlap;
        for the first also the distance to ``beyond``, unless a restart has refined it since.
    rounding
        The estimated rounding error of ``values``, one number.
    beyond
        A bound on all eigenvalues from the side of the extreme (upper for the largest) that fails with
        probability at most 0.1 % over the random start; infinite for dense matrices.
    products
        The number of products with the matrix; 0 for dense matrices.
    converged
        Whether the residuals reached the tolerance and nothing was found missing.
    """

    values: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray
    radii: np.ndarray
    rounding: float
    beyond: float
    products: int
    converged: bool

    @property
    def is_dense(self) -> bool:
        """Whether the matrix was formed."""
        return self.products == 0


def sharpness(
    objective: Any,
    theta: Any = None,
    *,
    tolerance: float | None = None,
    seed: int = 0,
    max_products: int = MAX_PRODUCTS,
) -> Bracket:
    """The largest Hessian eigenvalue of ``objective`` at ``theta``, with its interval (status *computed*).

    Up to `DENSE_LIMIT` parameters from the dense Hessian. Above it by Lanczos iteration with full
    reorthogonalisation from a random start: ``value`` is the Rayleigh quotient of the final vector (a lower
    bound up to rounding), ``upper`` adds the residual norm. That some eigenvalue lies so close is certain; that
    it is the largest rests on the random start: the method names the bound that all eigenvalues obey with
    confidence 99.9 % (`random_start_bound` in lanczos.py), the iteration goes on until that, too, is within the
    tolerance, and ``upper`` includes it. Only after a restart (at 128 steps) the residual decides alone. An
    iteration that ran out of products has status *estimated*.

    Rounding is measured: the change when every parameter moves by one unit in the last place of the dtype of
    ``theta``, beside ``eps sqrt(dim) ||H||`` (``eps dim ||H||`` for dense float64 Hessians).

    Parameters
    ----------
    objective
        A gdmap objective, or a real symmetric `scipy.sparse.linalg.LinearOperator` in place of its Hessian.
    theta
        The point, shape ``(dim,)``, float32 or float64: the computation follows its dtype. Left out for an
        operator.
    tolerance
        The residual, and distance to the bound, to reach, relative to the eigenvalue; 1e-10 in float64 and 3e-3
        in float32 by default. Dense Hessians ignore it.
    seed
        Seeds the start vector and the rounding test.
    max_products
        The most Hessian-vector products to spend.

    Raises
    ------
    TypeError
        For complex operators, integer parameters, or what is neither objective nor operator.
    ValueError
        If the Hessian is not finite, the operator not square or symmetric, or an argument makes no sense.
    """
    operator = symmetric_operator(objective, theta)
    top = extreme_eigenvalues(operator, tolerance=tolerance, seed=seed, max_products=max_products)
    value = float(top.values[0])
    lower, upper = value - top.rounding, value + float(top.radii[0]) + top.rounding
    if top.is_dense:
        return Bracket(value, lower, upper, "computed", "dense Hessian, symmetric eigensolver")
    method = f"Lanczos, {top.products} products, residual {top.residuals[0]:.2g}; {random_start_words(top)}"
    if top.converged:
        return Bracket(value, lower, upper, "computed", method)
    return Bracket(
        value, lower, max(upper, top.beyond), "estimated", f"{method}; NOT CONVERGED", confidence=CONFIDENCE
    )


def random_start_words(top: Extremes) -> str:
    """What the random start allows to say about eigenvalues that the iteration may have missed."""
    return f"with confidence {CONFIDENCE:.1%} over the random start no eigenvalue exceeds {top.beyond:.6g}"


def extreme_eigenvalues(
    operator: LinearOperator,
    which: Literal["largest", "smallest"] = "largest",
    k: int = 1,
    *,
    tolerance: float | None = None,
    seed: int = 0,
    max_products: int = MAX_PRODUCTS,
) -> Extremes:
    """The ``k`` largest or smallest eigenvalues of a symmetric operator from `symmetric_operator`, with copies.

    One Lanczos run finds one copy of each eigenvalue; further runs, each from a new random start and
    orthogonal to all found, go on until none brings anything beyond the last of the ``k``.
    """
    dim = operator.shape[0]
    if which not in ("largest", "smallest"):
        raise ValueError(f"which must be 'largest' or 'smallest', got {which!r}")
    checked_count(k, "k", 1, dim)
    checked_count(max_products, "max_products", 1)
    checked_count(seed, "seed", 0)
    dtype = working_dtype(operator)
    if tolerance is None:
        tolerance = TOLERANCE[dtype]
    elif (
        isinstance(tolerance, bool) or not isinstance(tolerance, (int, float, np.number)) or not 0 < tolerance < 1
    ):
        raise ValueError(f"tolerance is a relative residual between 0 and 1, got {tolerance!r}")
    sign = 1 if which == "largest" else -1
    if is_small(operator):
        return _dense_extremes(operator, sign, k, seed)
    return _lanczos_extremes(operator, sign, k, float(tolerance), seed, max_products)


def checked_count(number: Any, name: str, least: int, most: int | None = None) -> int:
    """``number`` if it is an integer within its limits, otherwise an error that names it."""
    if isinstance(number, (bool, np.bool_)) or not isinstance(number, (int, np.integer)):
        raise ValueError(f"{name} must be an integer, got {number!r}")
    if number < least or (most is not None and number > most):
        limits = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ValueError(f"{name} must be {limits}, got {number}")
    return int(number)


def is_small(operator: LinearOperator) -> bool:
    """Whether the dense matrix is cheaper; for a foreign operator it costs ``dim`` products."""
    limit = DENSE_LIMIT if isinstance(operator, HessianOperator) else DENSE_LIMIT_OF_OPERATORS
    return operator.shape[0] <= limit


def _dense_extremes(operator: LinearOperator, sign: int, k: int, seed: int) -> Extremes:
    values, vectors, backward, moves = dense_eigenpairs(operator, seed)
    chosen = slice(None, -k - 1, -1) if sign > 0 else slice(k)
    values, rows, nothing = values[chosen], vectors.T[chosen], np.zeros(k)
    rounding = backward + 4 * float(moves[chosen].max())
    return Extremes(values, rows, nothing, nothing, rounding, sign * math.inf, 0, True)


def dense_eigenpairs(operator: LinearOperator, seed: int = 0) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """All eigenvalues (ascending), eigenvectors in columns, the backward error, and how far each value moves.

    The backward error of the symmetric eigensolver is ``dim eps ||H||``; the moves are the largest changes of
    each eigenvalue when every parameter moves by a unit in the last place (the Hessian's own rounding).
    """
    with blas_threads(operator):
        matrix = dense_matrix(operator)
        values, vectors = np.linalg.eigh(matrix)
        norm = float(np.abs(values).max())
        backward = len(values) * float(np.finfo(float).eps) * norm
        if working_dtype(operator) == np.float32:
            backward += math.sqrt(len(values)) * float(np.finfo(np.float32).eps) * norm
        moves = np.zeros(len(values))
        if isinstance(operator, HessianOperator):
            rng = np.random.default_rng(seed)
            near = [np.linalg.eigvalsh(dense_matrix(operator.moved(rng))) for _ in range(2)]
            moves = np.max(np.abs(np.stack(near) - values), axis=0)
    return values, vectors, backward, moves


def _lanczos_extremes(
    operator: LinearOperator, sign: int, k: int, tolerance: float, seed: int, max_products: int
) -> Extremes:
    dim, dtype = operator.shape[0], working_dtype(operator)
    product = Products(operator, sign)
    rng = np.random.default_rng(seed)

    def enough(ritz: np.ndarray) -> float:
        return tolerance * float(np.abs(ritz).max())

    with blas_threads(operator):
        found = lanczos(product, np.empty((0, dim), dtype), k, enough, max_products, rng)
        values, rows, converged = _with_copies(product, found, k, tolerance, max_products, rng)
        values, rows, images = _rayleigh_ritz(product, rows)
        residual_vectors = images - values[:, None] * rows
        residuals = np.linalg.norm(residual_vectors, axis=1)
        rounding = math.sqrt(dim) * float(np.finfo(dtype).eps) * found.scale
        rounding += 2 * _change_of_products(product, rows, images, rng)
    radii = matched_radii(values, residual_vectors)
    if not (found.restarted and converged):
        radii[0] = max(radii[0], found.beyond - values[0])
    return Extremes(
        sign * product.in_units(values),
        rows,
        product.in_units(residuals),
        product.in_units(radii),
        float(product.in_units(rounding)),
        sign * float(product.in_units(max(found.beyond, float(values[0])) + rounding)),
        product.count,
        converged,
    )


def _with_copies(
    product: Products, found: KrylovResult, k: int, tolerance: float, max_products: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, bool]:
    """The ``k`` largest values of a run and of further runs orthogonal to all found, until nothing new comes.

    A single largest eigenvalue needs no copies.
    """
    values, rows, converged = found.values, found.vectors, found.converged
    dim = rows.shape[1]
    margin = max(tolerance * float(np.abs(values).max()), 8 * float(np.finfo(rows.dtype).eps) * found.scale)
    while k > 1 and len(rows) < dim:
        budget = max_products - product.count
        if budget < 1:
            return values[:k], rows[:k], False
        last = float(values[k - 1])

        def enough(ritz: np.ndarray, last: float = last) -> float:
            # Values below the last one need no accuracy; they only have to stay below.
            return margin if ritz[0] > last else max(margin, 1e-2 * abs(last))

        further = lanczos(product, rows, 1, enough, budget, rng, found.scale)
        converged = converged and further.converged
        if further.values[0] <= last + margin:
            break
        order = np.argsort(-np.append(values, further.values), kind="stable")
        values = np.append(values, further.values)[order]
        rows = np.vstack([rows, further.vectors])[order]
    return values[:k], rows[:k], converged


def _rayleigh_ritz(product: Products, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ritz values (largest first), vectors and their images, from fresh products and in float64."""
    images = np.stack([product(row).astype(float) for row in rows])
    orthonormal, triangle = np.linalg.qr(rows.astype(float).T)
    images = np.linalg.solve(triangle.T, images)
    projected = orthonormal.T @ images.T
    values, Y = np.linalg.eigh((projected + projected.T) / 2)
    Y = Y[:, ::-1].T
    return values[::-1], Y @ orthonormal.T, Y @ images


def _change_of_products(
    product: Products, rows: np.ndarray, images: np.ndarray, rng: np.random.Generator
) -> float:
    """The largest change of an image ``A x`` when parameters (or entries of ``x``) move by one last place."""
    operator = product.operator
    dtype = working_dtype(operator)
    vectors = rows.astype(dtype)
    if isinstance(operator, HessianOperator):
        operator = operator.moved(rng)
    else:
        vectors = vectors + rng.choice(np.array([-1, 1], dtype), vectors.shape) * np.spacing(vectors)
    moved = Products(operator, product.sign, product.exponent or 0)
    changes = [moved(vector) - image for vector, image in zip(vectors, images, strict=True)]
    return float(np.linalg.norm(changes, axis=1).max())


def matched_radii(values: np.ndarray, residual_vectors: np.ndarray) -> np.ndarray:
    """Radii within which distinct eigenvalues (counted with multiplicity) lie about descending ``values``.

    A group of ``m`` orthonormal Ritz vectors has ``m`` eigenvalues within the norm of its residuals (Kahan);
    groups whose intervals overlap are joined until all are disjoint.
    """
    squares = np.sum(residual_vectors**2, axis=1)
    groups = [[i] for i in range(len(values))]

    def radius(group: list[int]) -> float:
        return math.sqrt(float(squares[group].sum()))

    position = 1
    while position < len(groups):
        left, right = groups[position - 1], groups[position]
        if values[left[-1]] - radius(left) <= values[right[0]] + radius(right):
            groups[position - 1 : position + 1] = [left + right]
            position = max(1, position - 1)
        else:
            position += 1
    radii = np.empty(len(values))
    for group in groups:
        radii[group] = radius(group)
    return radii

"""Dense linear algebra on many small matrices: one thread for each, so that results do not depend on load."""

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

# Less work than this, in multiplications, is not worth starting threads.
WORTH_THREADS = 3e6
SYMMETRIC = 1e-12


@functools.lru_cache(maxsize=1)
def libraries() -> ThreadpoolController:
    """The threaded libraries loaded in this process; finding them takes a millisecond, so once."""
    return ThreadpoolController()


def one_thread() -> Any:
    """A context in which dense linear algebra runs in one thread, so results do not depend on their number."""
    return libraries().limit(limits=1)


def for_each(function: Callable[..., Any], *sequences: Iterable[Any]) -> list[Any]:
    """``[function(*items) for items in zip(*sequences)]`` in parallel, each call on a single thread.

    Multithreaded BLAS may round differently with the number of threads; one thread a matrix is also faster.
    """
    with one_thread(), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, *sequences))


def in_slabs(function: Callable[..., Any], *stacks: np.ndarray) -> Any:
    """``function(*stacks)`` for one that works matrix by matrix on stacks, such as ``np.linalg.eigh``.

    The stacks, ``(lanes, ...)``, are cut into slabs that share the processors; each matrix is computed in one
    thread, and its result does not depend on the others. ``function`` returns an array or a named tuple of arrays.
    """
    lanes, threads = len(stacks[0]), os.cpu_count() or 1
    with one_thread():
        if threads == 1 or lanes < 2 or lanes * stacks[0].shape[-1] ** 3 < WORTH_THREADS:
            return function(*stacks)
        cuts = np.linspace(0, lanes, min(lanes, 4 * threads) + 1).astype(int)
        with ThreadPoolExecutor(threads) as pool:
            parts = list(
                pool.map(lambda begin, end: function(*(s[begin:end] for s in stacks)), cuts[:-1], cuts[1:])
            )
    if isinstance(parts[0], tuple):
        return type(parts[0])(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))
    return np.concatenate(parts)


def is_symmetric(matrix: np.ndarray) -> bool:
    """Whether a matrix is symmetric up to rounding."""
    return bool(are_symmetric(matrix[None])[0])


def are_symmetric(matrices: np.ndarray) -> np.ndarray:
    """Which matrices of a stack are symmetric up to rounding."""
    asymmetry = np.abs(matrices - matrices.swapaxes(1, 2)).max(axis=(1, 2), initial=0.0)
    return np.asarray(asymmetry <= SYMMETRIC * np.abs(matrices).max(axis=(1, 2), initial=0.0))


def multipliers(jacobian: np.ndarray) -> np.ndarray:
    """The eigenvalues of a Jacobian, largest modulus first; real ones where it is symmetric."""
    eigenvalues = np.linalg.eigvalsh(jacobian) if is_symmetric(jacobian) else np.linalg.eigvals(jacobian)
    return eigenvalues[np.argsort(-np.abs(eigenvalues), kind="stable")]


def multipliers_of_each(jacobians: np.ndarray) -> np.ndarray:
    """`multipliers` of every matrix of a stack, as complex numbers, shape ``(lanes, n)``."""
    values = np.empty(jacobians.shape[:2], np.complex128)
    symmetric = are_symmetric(jacobians)
    if symmetric.any():
        values[symmetric] = in_slabs(np.linalg.eigvalsh, jacobians[symmetric])
    if not symmetric.all():
        values[~symmetric] = in_slabs(np.linalg.eigvals, jacobians[~symmetric])
    return np.take_along_axis(values, np.argsort(-np.abs(values), axis=1, kind="stable"), axis=1)


class Singular(NamedTuple):
    """Singular value decompositions ``A = sum_i values_i left_i right_i^T``, largest value first.

    ``left`` and ``right``, shape ``(lanes, n, n)``, hold orthonormal rows; ``values`` has shape ``(lanes, n)``.
    """

    left: np.ndarray
    values: np.ndarray
    right: np.ndarray


def singular(matrices: np.ndarray) -> Singular:
    """The decomposition of every matrix of a stack of finite square ones; of symmetric ones by eigenvectors."""
    symmetric = are_symmetric(matrices)
    if symmetric.all():
        return in_slabs(_of_symmetric, matrices)
    if not symmetric.any():
        return in_slabs(_of_general, matrices)
    found = Singular(np.empty(matrices.shape), np.empty(matrices.shape[:2]), np.empty(matrices.shape))
    for lanes, decompose in ((symmetric, _of_symmetric), (~symmetric, _of_general)):
        for field, part in zip(found, in_slabs(decompose, matrices[lanes]), strict=True):
            field[lanes] = part
    return found


def _of_symmetric(matrices: np.ndarray) -> Singular:
    eigenvalues, vectors = np.linalg.eigh((matrices + matrices.swapaxes(1, 2)) / 2)
    order = np.argsort(-np.abs(eigenvalues), axis=1, kind="stable")
    eigenvalues = np.take_along_axis(eigenvalues, order, axis=1)
    rows = np.take_along_axis(vectors.swapaxes(1, 2), order[:, :, None], axis=1)
    return Singular(np.where(eigenvalues < 0, -1.0, 1.0)[:, :, None] * rows, np.abs(eigenvalues), rows)


def _of_general(matrices: np.ndarray) -> Singular:
    left, values, right = np.linalg.svd(matrices)
    return Singular(left.swapaxes(1, 2), values, right)

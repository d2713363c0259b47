"""Dense linear algebra on many small matrices: one thread for each, so that results do not depend on load."""

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController


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


def is_symmetric(matrix: np.ndarray) -> bool:
    """Whether a matrix is symmetric up to rounding."""
    return bool(np.abs(matrix - matrix.T).max(initial=0.0) <= 1e-12 * np.abs(matrix).max(initial=0.0))


def multipliers(jacobian: np.ndarray) -> np.ndarray:
    """The eigenvalues of a Jacobian, largest modulus first; real ones where it is symmetric."""
    eigenvalues = np.linalg.eigvalsh(jacobian) if is_symmetric(jacobian) else np.linalg.eigvals(jacobian)
    return eigenvalues[np.argsort(-np.abs(eigenvalues), kind="stable")]

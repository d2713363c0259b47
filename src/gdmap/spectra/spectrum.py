"""Several or all eigenvalues of a Hessian, as a labelled dataset."""

from typing import Any

import numpy as np
import xarray as xr
from scipy.sparse.linalg import LinearOperator

from gdmap.spectra.extreme import (
    MAX_PRODUCTS,
    checked_count,
    dense_eigenpairs,
    extreme_eigenvalues,
    is_small,
    random_start_words,
)
from gdmap.spectra.operators import HessianOperator, symmetric_operator

FULL_LIMIT = 4000


def spectrum(
    objective: Any,
    theta: Any = None,
    k: int | None = None,
    *,
    eigenvectors: bool = False,
    tolerance: float | None = None,
    seed: int = 0,
    max_products: int = MAX_PRODUCTS,
) -> xr.Dataset:
    """The ``k`` largest Hessian eigenvalues at ``theta`` (all of them without ``k``), largest first.

    Multiple eigenvalues count with their multiplicity. Small matrices, and all eigenvalues of any, go through the
    dense symmetric eigensolver; otherwise Lanczos iteration, repeated orthogonally to what has been found until
    no further copy turns up.

    Parameters
    ----------
    objective, theta, tolerance, seed
        As in `sharpness`; ``tolerance`` is relative to the largest modulus among the ``k`` eigenvalues.
    k
        How many, at most ``dim``.
    eigenvectors
        Whether to add the orthonormal eigenvectors.
    max_products
        The most products with the Hessian, besides the few that verify the result.

    Returns
    -------
    Dataset over the dimension ``k`` (1, 2, ...): ``eigenvalue`` with ``lower`` and ``upper`` (rounding, and the
    residual bound on the upper side; some residuals joined where intervals overlap), and with
    ``eigenvectors=True`` ``eigenvector`` over ``(k, component)``. The attribute ``status`` is *computed*, or
    *estimated* if the products did not suffice; ``method`` says how.

    Raises
    ------
    ValueError
        If all of more than `FULL_LIMIT` eigenvalues are asked for, and as in `sharpness`.
    """
    operator = symmetric_operator(objective, theta)
    dim = operator.shape[0]
    if k is not None:
        checked_count(k, "k", 1, dim)
    elif dim > FULL_LIMIT:
        raise ValueError(
            f"the spectrum of {dim} parameters needs a dense matrix of {dim**2 * 8 / 2**30:.1f} GiB: ask for the "
            "largest k, or for spectral_density"
        )
    if k is None or is_small(operator):
        return _dense_dataset(operator, k or dim, seed, eigenvectors)
    top = extreme_eigenvalues(operator, "largest", k, tolerance=tolerance, seed=seed, max_products=max_products)
    upper = top.values + top.radii + top.rounding
    method = (
        f"Lanczos with deflation, {top.products} products, largest residual {top.residuals.max():.2g}; "
        f"{random_start_words(top)}"
    )
    if not top.converged:
        upper = np.maximum(upper, top.beyond)
        method += "; NOT CONVERGED"
    return _dataset(
        operator,
        top.values,
        top.values - top.rounding,
        upper,
        top.vectors if eigenvectors else None,
        "computed" if top.converged else "estimated",
        method,
    )


def _dense_dataset(operator: LinearOperator, k: int, seed: int, eigenvectors: bool) -> xr.Dataset:
    values, vectors, backward, moves = dense_eigenpairs(operator, seed)
    descending = slice(None, -k - 1, -1)
    values = values[descending]
    rounding = backward + 4 * float(moves[descending].max())
    rows = vectors.T[descending] if eigenvectors else None
    method = "dense Hessian, symmetric eigensolver"
    return _dataset(operator, values, values - rounding, values + rounding, rows, "computed", method)


def _dataset(
    operator: LinearOperator,
    values: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    rows: np.ndarray | None,
    status: str,
    method: str,
) -> xr.Dataset:
    matrix = "Hessian" if isinstance(operator, HessianOperator) else "operator"
    common = {"units": "loss / parameter^2", "status": status}
    variables: dict[str, Any] = {
        "eigenvalue": ("k", values, {"long_name": f"eigenvalue of the {matrix}", **common, "method": method}),
        "lower": ("k", lower, {"long_name": "lower end of the eigenvalue's interval", **common, "method": method}),
        "upper": ("k", upper, {"long_name": "upper end of the eigenvalue's interval", **common, "method": method}),
    }
    if rows is not None:
        long_name = "orthonormal eigenvector, sign arbitrary"
        attrs = {"long_name": long_name, "units": "1", "status": status, "method": method}
        variables["eigenvector"] = (("k", "component"), rows, attrs)
    coordinates = {
        "k": ("k", np.arange(1, len(values) + 1), {"long_name": "rank of the eigenvalue, largest first"})
    }
    return xr.Dataset(variables, coordinates, {"status": status, "method": method, "dim": operator.shape[0]})

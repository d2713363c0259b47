"""How far a map is from being singular at given points: numerical evidence beside `gdmap.certify_nonsingular`."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import numpy as np
import xarray as xr

from gdmap.engines.xla import block_size, on_lanes
from gdmap.maps import GradientDescent, Map
from gdmap.objectives import AbstractObjective
from gdmap.spectra.dense import for_each

LARGEST = 2000
# Jacobians held at once.
CHUNK_BYTES = 2**28
# The Jacobian's rounding is measured by moving a point by one ulp, and exceeded by at most this factor.
NOISE = 4


class JacobianAndDeterminant(eqx.Module):
    """``state -> (DG, sign det DG, log |det DG|)`` for one lane."""

    map: Map

    def __call__(self, state: Any) -> tuple[Any, Any, Any]:
        """The Jacobian, and its determinant by an LU decomposition."""
        sign, logarithm = self.map.slogdet(state)
        return self.map.jacobian(state), sign, logarithm


def singularity_distance(
    objective: AbstractObjective | Map, step_size: float | None = None, thetas: Any = None
) -> xr.Dataset:
    """At many points, the distance of ``DG = I - eta H`` from the singular matrices, ``min |1 - eta lambda_i|``.

    This is the numerical experiment by which arXiv:2402.13108 looks at networks that its theorems do not reach: no
    distance that vanishes at every point means no exceptional step size *seen*. It is evidence, not a proof: on a
    piece where the loss is analytic a single point with a non-zero determinant proves non-singularity, but only in
    verified arithmetic, and only for that piece. `gdmap.certify_nonsingular` does that.

    Parameters
    ----------
    objective
        The loss ``L``, or a map. For a map that is not gradient descent the distance is the smallest singular
        value of its Jacobian, which for the symmetric ``I - eta H`` is the same number.
    step_size
        ``eta``; for a map, nothing.
    thetas
        Parameters of shape ``(points, dim)`` (or one vector), floating point; computed in float64. A map with a
        longer state is evaluated at ``map.initial_state(theta)``.

    Returns
    -------
    xarray.Dataset
        Over ``point``: ``distance`` with ``distance_error`` (the rounding of the Jacobian, measured by moving the
        point by one unit in the last place, and that of the eigensolver); ``sign`` of the determinant (0 where
        ``distance`` does not exceed its error, or the Jacobian is not finite) and ``log_abs_determinant`` with its
        error (infinite where the sign is 0). Dimensionless. Status *computed*.

    Raises
    ------
    ValueError, TypeError
        For thetas of another shape or not finite, a step size that is not positive, maps that depend on time, and
        more than 2,000 dimensions.
    """
    map_ = map_of(objective, step_size)
    theta = checked_thetas(thetas, map_.objective.dim)
    parts = [distances(map_, chunk) for chunk in chunks(theta, map_.state_dim)]
    sign, logarithm, log_error, distance, error = (
        np.concatenate([part[index] for part in parts]) for index in range(5)
    )
    return xr.Dataset(
        {
            "distance": ("point", distance, {"long_name": "min |1 - eta lambda_i|", "units": "1"}),
            "distance_error": ("point", error, {"long_name": "error estimate of the distance", "units": "1"}),
            "sign": ("point", sign, {"long_name": "sign of det DG, 0 where rounding hides it"}),
            "log_abs_determinant": ("point", logarithm, {"long_name": "log |det DG|", "units": "1"}),
            "log_abs_determinant_error": ("point", log_error, {"long_name": "error estimate", "units": "1"}),
        },
        coords={"point": np.arange(len(theta))},
        attrs={
            "status": "computed",
            "method": "dense Jacobians; singular values, LU determinants",
            "map": repr(map_),
            "note": "evidence at these points, not a proof: see gdmap.certify_nonsingular",
        },
    )


def map_of(objective: Any, step_size: Any) -> Map:
    """The map that a call is about."""
    if isinstance(objective, Map):
        if step_size is not None:
            raise ValueError("a map has its own step size: pass the objective to ask for another one")
        map_ = objective
    elif not isinstance(objective, AbstractObjective):
        raise TypeError(
            f"expected a gdmap objective or map, got {type(objective).__name__}: "
            "wrap the loss in gdmap.Function(f, dim)"
        )
    elif step_size is None:
        raise ValueError("step_size is missing: the determinant of I - eta H needs one")
    else:
        map_ = GradientDescent(objective, step_size)
    if map_.depends_on_time:
        raise ValueError("the map depends on time: its Jacobian is not one function of the state")
    if map_.state_dim > LARGEST:
        raise ValueError(f"the map has {map_.state_dim} dimensions; dense Jacobians go up to {LARGEST}")
    return map_


def checked_thetas(thetas: Any, dim: int) -> np.ndarray:
    """Points as a finite float64 array of shape ``(points, dim)``."""
    array = np.asarray([] if thetas is None else thetas)
    if array.ndim == 1 and array.shape == (dim,):
        array = array[None]
    if array.ndim != 2 or array.shape[1] != dim or not len(array):
        raise ValueError(f"thetas has shape {array.shape}, expected (points, {dim}): one parameter vector per row")
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"thetas must hold floating-point numbers, got dtype {array.dtype}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"thetas holds values that are not finite, first in row {first_wrong(array)}")
    return array.astype(float)


def first_wrong(array: np.ndarray) -> int:
    """The first row with a number that is not finite."""
    return int(np.argwhere(~np.isfinite(array).all(axis=1))[0, 0])


def chunks(theta: np.ndarray, state_dim: int) -> Iterator[np.ndarray]:
    """Rows whose Jacobians fit into memory together."""
    rows = max(1, CHUNK_BYTES // (8 * state_dim**2))
    for begin in range(0, len(theta), rows):
        yield theta[begin : begin + rows]


def distances(map_: Map, theta: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sign, logarithm of the determinant and its error, distance and its error, row by row."""
    moved = theta + np.spacing(theta) * np.random.default_rng(0).choice([-1.0, 1.0], theta.shape)
    jacobian, sign, logarithm = jacobians(map_, theta)
    change = jacobians(map_, moved)[0] - jacobian
    finite = np.isfinite(jacobian).all(axis=(1, 2)) & np.isfinite(change).all(axis=(1, 2))
    singular = np.full((len(theta), map_.state_dim), np.nan)
    stacks = np.array_split(jacobian[finite], min(16, max(1, finite.sum())))
    if finite.any():
        singular[finite] = np.concatenate(for_each(singular_values, stacks))
    smallest, largest = singular.min(axis=1), singular.max(axis=1)
    # Weyl: a singular value moves by at most the norm of the error. The entries of I - eta H are rounded
    # relatively to those of I and eta H, which are at most 1 + largest.
    noise = NOISE * np.sqrt(np.sum(change**2, axis=(1, 2)))
    error = noise + 4 * map_.state_dim * np.finfo(float).eps * (1 + largest)
    known = smallest > error
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(known[:, None], error[:, None] / singular, 0.5)
        log_error = np.where(known, -np.log1p(-relative).sum(axis=1), np.inf)
    error, sign = np.where(finite, error, np.inf), np.where(known, sign, 0.0)
    return sign, np.where(finite, logarithm, np.nan), log_error, smallest, error


def jacobians(map_: Map, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Jacobians, signs and logarithms of their determinants at many points."""
    states = theta
    if map_.state_dim != map_.objective.dim:
        states = np.stack([np.asarray(map_.initial_state(row)) for row in theta])
    block = block_size(64 * map_.state_dim**2)
    return on_lanes(JacobianAndDeterminant(map_), (states,), block, threads=1)


def singular_values(matrices: np.ndarray) -> np.ndarray:
    """Singular values of many matrices, each row descending."""
    return np.linalg.svd(matrices, compute_uv=False)

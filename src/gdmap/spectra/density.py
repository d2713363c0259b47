"""The spectral density of a large Hessian by stochastic Lanczos quadrature."""

import math
from typing import Any

import numpy as np
import xarray as xr

from gdmap.spectra.extreme import checked_count
from gdmap.spectra.lanczos import quadrature, random_direction
from gdmap.spectra.operators import HessianOperator, Products, blas_threads, symmetric_operator, working_dtype

RELATIVE_WIDTH = 0.01
POINTS_PER_WIDTH = 3
TAILS = 5.0
MOST_POINTS = 10**6


def spectral_density(
    objective: Any,
    theta: Any = None,
    *,
    probes: int = 10,
    depth: int = 80,
    seed: int = 0,
    grid: Any = None,
    width: float | None = None,
) -> xr.Dataset:
    """The density of the Hessian's eigenvalues at ``theta``, smoothed by a Gaussian (status *estimated*).

    ``density(t) = E_v sum_j w_j N(t; node_j, width^2)`` estimates ``1/dim sum_i N(t; lambda_i, width^2)``: for
    each random unit vector ``v`` the nodes and weights are those of the Gauss quadrature that ``depth`` Lanczos
    steps give (Golub & Meurant; Ghorbani, Krishnan & Xiao 2019). It integrates to 1. The standard error is that
    over probes; features finer than ``width``, or than ``depth`` steps resolve, are not seen.

    Parameters
    ----------
    objective, theta, seed
        As in `sharpness`.
    probes
        Random vectors, at least 2. The work is ``probes * depth`` Hessian-vector products.
    depth
        Lanczos steps for each.
    grid
        Where to evaluate the density, shape ``(points,)``, increasing; by default around all nodes, with three
        points to a width.
    width
        Standard deviation of the Gaussian; by default 1 % of the distance between the extreme nodes.

    Returns
    -------
    Dataset with ``density`` and ``standard_error`` over ``eigenvalue``; ``node`` and ``weight`` over
    ``(probe, node_index)`` (weights of a probe sum to 1; exhausted Krylov spaces are filled up with weight 0);
    and the scalars ``mean_eigenvalue`` (the trace over ``dim``) and ``mean_eigenvalue_standard_error``.

    Raises
    ------
    ValueError
        For fewer than two probes, a width that is not positive, a grid that is not increasing, and as in
        `sharpness`.
    """
    checked_count(probes, "probes", 2)
    checked_count(depth, "depth", 1)
    checked_count(seed, "seed", 0)
    if width is not None:
        width = _checked_width(width)
    if grid is not None:
        grid = _checked_grid(grid)
    operator = symmetric_operator(objective, theta)
    dim, dtype = operator.shape[0], working_dtype(operator)
    nodes, weights = np.zeros((2, probes, min(depth, dim)))
    nothing = np.empty((0, dim), dtype)
    with blas_threads(operator):
        product = Products(operator)
        for probe in range(probes):
            start = random_direction(np.random.default_rng([seed, probe]), nothing)
            found, weight = quadrature(product, start, depth)
            nodes[probe] = np.pad(found, (0, nodes.shape[1] - len(found)), mode="edge")
            weights[probe, : len(found)] = weight
    nodes = product.in_units(nodes)
    low, high = float(nodes.min()), float(nodes.max())
    if width is None:
        width = RELATIVE_WIDTH * ((high - low) or max(abs(low), abs(high)) or 1.0)
    if grid is None:
        low, high = low - TAILS * width, high + TAILS * width
        points = math.ceil(POINTS_PER_WIDTH * (high - low) / width) + 1
        if points > MOST_POINTS:
            raise ValueError(
                f"width {width:.3g} needs {points} points from {low:.6g} to {high:.6g}: "
                "give a grid of your own, or a larger width"
            )
        grid = np.linspace(low, high, points)
    density = np.stack([_smoothed(grid, *pair, width) for pair in zip(nodes, weights, strict=True)])
    means = np.sum(nodes * weights, axis=1)
    matrix = "Hessian" if isinstance(operator, HessianOperator) else "operator"
    method = (
        f"stochastic Lanczos quadrature, {probes} probes of {nodes.shape[1]} steps ({product.count} products), "
        f"Gaussian smoothing of width {width:.4g}; the standard error is over probes"
    )
    curvature = "loss / parameter^2"

    def attrs(long_name: str, units: str) -> dict[str, str]:
        return {"long_name": long_name, "units": units, "status": "estimated", "method": method}

    return xr.Dataset(
        {
            "density": ("eigenvalue", density.mean(axis=0), attrs("spectral density", f"1 / ({curvature})")),
            "standard_error": (
                "eigenvalue",
                standard_error(density),
                attrs("standard error of the density over probes", f"1 / ({curvature})"),
            ),
            "node": (("probe", "node_index"), nodes, attrs("quadrature node (Ritz value)", curvature)),
            "weight": (("probe", "node_index"), weights, attrs("quadrature weight", "1")),
            "mean_eigenvalue": ((), means.mean(), attrs("mean eigenvalue (trace / dim)", curvature)),
            "mean_eigenvalue_standard_error": (
                (),
                standard_error(means),
                attrs("standard error of the mean eigenvalue over probes", curvature),
            ),
        },
        {"eigenvalue": ("eigenvalue", grid, {"long_name": f"eigenvalue of the {matrix}", "units": curvature})},
        {"status": "estimated", "method": method, "width": width, "dim": dim, "seed": seed},
    )


def standard_error(samples: np.ndarray) -> np.ndarray:
    """The standard error of the mean over the first axis."""
    return np.asarray(samples.std(axis=0, ddof=1) / math.sqrt(len(samples)))


def _smoothed(grid: np.ndarray, nodes: np.ndarray, weights: np.ndarray, width: float) -> np.ndarray:
    density = np.zeros(len(grid))
    for node, weight in zip(nodes, weights, strict=True):
        density += weight * np.exp(-(((grid - node) / width) ** 2) / 2)
    return density / (math.sqrt(2 * math.pi) * width)


def _checked_width(width: Any) -> float:
    if isinstance(width, bool) or not isinstance(width, (int, float, np.number)) or not 0 < width < math.inf:
        raise ValueError(f"width must be one positive finite number, got {width!r}")
    return float(width)


def _checked_grid(grid: Any) -> np.ndarray:
    array = np.asarray(grid, dtype=float)
    if array.ndim != 1 or len(array) < 2 or not np.all(np.isfinite(array)) or not np.all(np.diff(array) > 0):
        raise ValueError("grid must be a vector of at least two increasing finite numbers")
    return array

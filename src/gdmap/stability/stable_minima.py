"""How stable minima are distributed: spectra over the set of minima, and the stable ones for a step size."""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

from gdmap.flags import flag_attributes
from gdmap.maps.gradient_descent import checked_step_size
from gdmap.minima import sample_minima
from gdmap.minima.along import Extent, log_spectral_norm, lowered, sharpness_of
from gdmap.minima.critical_points import (
    OF_MINIMA,
    Evidence,
    hessians_at,
    loss_and_gradient,
    refine_critical_points,
)
from gdmap.minima.minimum import refuse_large
from gdmap.objectives import AbstractObjective, LinearNetwork
from gdmap.orbits.cycles import NULL

# Weights of the barrier that keeps a search among the stable minima, and the exponent of the norm that bounds the
# sharpness there.
BARRIERS = (1e-1, 1e-2, 1e-3, 1e-4)
EXPONENT = 2.0**14
CHARTS = 40
SETTLED = 1e-4
ASIDE, FEW = 1e-2, 4


def minima_spectra(objective: AbstractObjective, minima: Any) -> xr.Dataset:
    """Hessian eigenvalues at many minima, beside their distance from the origin (status *computed*).

    Parameters
    ----------
    objective
        The loss, of at most 1,000 parameters.
    minima
        Points of shape ``(minima, dim)``, or a Dataset with ``theta`` such as `sample_minima` gives; each is
        verified to be a minimum.

    Returns
    -------
    xarray.Dataset
        ``eigenvalue`` over ``(minimum, index)``, descending, with ``eigenvalue_error`` over ``minimum`` (rounding
        of the Hessian, measured, and of the eigensolver); ``sharpness``, ``nullity``, ``norm``, ``loss``,
        ``evidence``; ``theta``.

    Raises
    ------
    ValueError
        If a point is not a minimum, naming the first.
    """
    refuse_large(objective)
    theta = np.atleast_2d(np.asarray(minima["theta"] if isinstance(minima, xr.Dataset) else minima, dtype=float))
    for row in theta:
        objective.checked(row)
    norm = np.linalg.norm(theta, axis=1)
    points = refine_critical_points(objective, theta, np.where(norm > 0, norm, 1.0))
    wrong = np.flatnonzero(~np.isin(points.evidence, OF_MINIMA))
    if wrong.size:
        evidence = Evidence(points.evidence[wrong[0]]).name.lower()
        raise ValueError(
            f"point {wrong[0]} is not a verified minimum ({evidence}): gdmap.find_minimum finds one from there"
        )
    theta = points.theta
    eigenvalues = np.linalg.eigvalsh(points.hessian)[:, ::-1]
    moved = theta + np.spacing(theta) * np.random.default_rng(0).choice([-1.0, 1.0], theta.shape)
    jitter = np.abs(np.linalg.eigvalsh(hessians_at(objective, moved))[:, ::-1] - eigenvalues).max(axis=1)
    largest = np.abs(eigenvalues).max(axis=1)
    error = objective.dim * np.finfo(float).eps * largest + 4 * jitter
    units = {"units": "loss per squared parameter"}
    return xr.Dataset(
        {
            "eigenvalue": (("minimum", "index"), eigenvalues, {"long_name": "Hessian eigenvalue", **units}),
            "eigenvalue_error": ("minimum", error, {"long_name": "bound on the rounding error", **units}),
            "sharpness": ("minimum", eigenvalues[:, 0], {"long_name": "largest Hessian eigenvalue", **units}),
            "nullity": ("minimum", (np.abs(eigenvalues) <= NULL * largest[:, None]).sum(axis=1)),
            "norm": ("minimum", np.linalg.norm(theta, axis=1), {"long_name": "distance from the origin"}),
            "loss": ("minimum", loss_and_gradient(objective, theta)[0]),
            "evidence": ("minimum", points.evidence, flag_attributes(Evidence)),
            "theta": (("minimum", "component"), theta),
        },
        attrs={"status": "computed", "method": "dense Hessians, symmetric eigensolver"},
    )


def stable_minima(
    objective: AbstractObjective,
    step_size: float,
    minima: Any = None,
    *,
    n: int = 64,
    seed: int = 0,
    scale: float = 1.0,
    reach: float = 100.0,
) -> xr.Dataset:
    """The minima that are stable for a step size, ``lambda_max < 2 / eta``, and whether their set is bounded.

    Parameters
    ----------
    objective
        The loss, of at most 1,000 parameters.
    step_size
        ``eta``.
    minima
        As for `minima_spectra`; by default sampled ones.
    n, seed, scale
        Passed to `sample_minima` where no minima are given.
    reach
        The stable minima are taken to be unbounded if a search outwards comes this many times farther from the
        middle of the minima given than half of them lie.

    Returns
    -------
    xarray.Dataset
        Those of `minima_spectra` with ``stable`` over ``minimum`` (``undecided`` where the error leaves it open)
        and the attributes ``step_size``, ``stability_limit`` (``2 / eta``), ``bounded`` (``'bounded'``,
        ``'unbounded'``, ``'empty'``, ``'undecided'``), ``bounded_status``, ``bounded_reason`` and
        ``farthest_stable_distance`` (from the middle of the minima given, as far as the search came). For linear
        networks under the square loss boundedness follows from the widths where theory decides it (*computed*);
        elsewhere a search outwards among the stable minima tells (*estimated*): it sees the connected pieces of
        the stable set that the given minima lie on.
    """
    eta = checked_step_size(step_size)
    if not np.isfinite(reach) or reach <= 1:
        raise ValueError(f"reach must be a finite number above 1, got {reach!r}")
    if minima is None:
        minima = sample_minima(objective, n, seed, scale=scale)
    dataset = minima_spectra(objective, minima)
    margin = 2 / eta - dataset["sharpness"].values
    error = dataset["eigenvalue_error"].values
    stable, open_ = margin > error, np.abs(margin) <= error
    dataset["stable"] = ("minimum", stable, {"long_name": "lambda_max below 2 / step size"})
    dataset["undecided"] = ("minimum", open_, {"long_name": "2 / step size within the error of lambda_max"})
    verdict, status, reason, farthest = _boundedness(objective, dataset, stable, eta, reach)
    dataset.attrs.update(
        step_size=eta,
        stability_limit=2 / eta,
        bounded=verdict,
        bounded_status=status,
        bounded_reason=reason,
        farthest_stable_distance=farthest,
    )
    return dataset


def _boundedness(
    objective: AbstractObjective, dataset: xr.Dataset, stable: np.ndarray, eta: float, reach: float
) -> tuple[str, str, str, float]:
    if not stable.any():
        count = int(dataset["undecided"].sum())
        if count:
            reason = f"{count} of {len(stable)} minima are stable or not within the error, none certainly"
            return "undecided", "computed", reason, float("nan")
        reason = f"none of the {len(stable)} minima is stable at this step size; flatter ones may exist"
        return "empty", "estimated", reason, float("nan")
    extent = Extent.of(dataset["theta"].values)
    theta, nullity = dataset["theta"].values[stable], dataset["nullity"].values[stable]
    # From a centre moved aside, both ways: at the centre itself no way leads outwards.
    aside = np.random.default_rng(0).standard_normal(objective.dim)
    aside *= ASIDE * extent.length / np.linalg.norm(aside)
    centres = [extent.centre + aside, extent.centre - aside] if len(theta) <= FEW else [extent.centre + aside]
    farthest = np.concatenate(
        [
            outermost_stable(objective, theta, nullity, eta, Extent(centre, extent.length), reach)
            for centre in centres
        ]
    )
    distance = float(extent.distance(farthest).max())
    known = boundedness_of_network(objective)
    if known is not None:
        return known[0], "computed", known[1], distance
    words = f"the farthest at distance {distance:.4g} from the middle of the minima given"
    if distance >= reach * extent.length:
        return "unbounded", "estimated", f"searches outwards were stopped, {words}", distance
    reason = f"searches outwards from {len(theta)} stable minima all ended, {words} (on the pieces they lie on)"
    return "bounded", "estimated", reason, distance


def _outward_height(theta: Any, hessian: Any, settings: Any) -> Any:
    """Minus the logarithm of the distance from a centre, with a barrier where the sharpness reaches a limit."""
    limit, weight, length, centre = settings[0], settings[1], settings[2], settings[3:]
    room = 1 - jnp.exp(log_spectral_norm(hessian, EXPONENT)) / limit
    barrier = jnp.where(room > 0, -jnp.log(jnp.where(room > 0, room, 1.0)), jnp.inf)
    return -jnp.log(jnp.sum((theta - centre) ** 2) / length**2 + 1) / 2 + weight * barrier


def outermost_stable(
    objective: AbstractObjective,
    theta: np.ndarray,
    nullity: np.ndarray,
    eta: float,
    extent: Extent,
    reach: float,
) -> np.ndarray:
    """Stable minima as far from the centre as a search outwards among them gets, row by row."""
    theta = np.array(theta)
    limit = 2 / eta
    for weight in BARRIERS:
        settings = np.array([limit, weight, extent.length, *extent.centre])
        active = np.flatnonzero(nullity > 0)
        for _ in range(CHARTS):
            active = active[extent.distance(theta[active]) < reach * extent.length]
            if not active.size:
                break
            moved = lowered(objective, _outward_height, theta[active], nullity[active], settings, extent)
            kept = sharpness_of(objective, moved) < limit
            before = extent.distance(theta[active])
            theta[active[kept]] = moved[kept]
            grown = np.abs(extent.distance(theta[active]) - before)
            active = active[grown > SETTLED * (before + extent.length)]
    return theta


def boundedness_of_network(objective: AbstractObjective) -> tuple[str, str] | None:
    """Whether a linear network's stable minima are bounded, where the widths decide it; with the reason.

    For networks under the square loss that reach the least-squares map, with inputs that span: the sharpness
    tends to infinity along the minima (is proper) for depth two and where all hidden widths equal the rank of the
    optimum; with two consecutive hidden widths above that rank an unused block of the layer between them is free,
    at no change of the spectrum. (Against arXiv:2402.13108 as reported, where stable minima are bounded.)
    """
    if not isinstance(objective, LinearNetwork) or not objective.is_squared:
        return None
    full = np.linalg.matrix_rank(objective.input_covariance) == objective.widths[0]
    if not (full and objective.reaches_least_squares and objective.depth >= 2 and objective.target_rank):
        return None
    hidden, rank = objective.widths[1:-1], objective.target_rank
    if any(a > rank and b > rank for a, b in itertools.pairwise(hidden)):
        return "unbounded", f"two consecutive hidden widths exceed the rank {rank} of the optimum"
    if objective.depth == 2:
        return "bounded", "depth two: the sharpness tends to infinity along the minima"
    if all(width == rank for width in hidden):
        return "bounded", f"all hidden widths equal the rank {rank} of the optimum: the sharpness is proper"
    return None

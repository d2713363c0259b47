"""Many minima of one objective."""

from typing import NamedTuple

import numpy as np
import xarray as xr

from gdmap.engines.random import gaussian_starts
from gdmap.flags import flag_attributes
from gdmap.minima.critical_points import (
    OF_MINIMA,
    OF_SADDLES,
    POSITION_ERROR,
    Evidence,
    hessians_at,
    loss_and_gradient,
    loss_noise,
    refine_critical_points,
)
from gdmap.minima.descent import descend
from gdmap.minima.linear_network import exact_minima
from gdmap.minima.minimum import checked_method, find_minimum, refuse_large
from gdmap.objectives import AbstractObjective, LinearNetwork
from gdmap.orbits.cycles import NULL

# Newton's steps towards a degenerate minimum shrink at least by this factor (two thirds for x^4).
DYING = 0.95
# A start whose gradient has come down to this share, and whose way has ended to that one, has settled.
VANISHED, SETTLED = 1e-14, 1e-6
NUDGES = 3
NUDGE = 1e-2


class SampledMinima(NamedTuple):
    """Minima of the smallest loss found, one per row: verified, or all of them degenerate critical points.

    ``start`` which start led there, ``evidence`` codes, ``remark`` what became of the other starts, in words.
    """

    theta: np.ndarray
    loss: np.ndarray
    nullity: np.ndarray
    start: np.ndarray
    evidence: np.ndarray
    remark: str

    @property
    def is_degenerate(self) -> bool:
        """Whether these are degenerate critical points, which linear stability does not judge."""
        return not np.any(np.isin(self.evidence, OF_MINIMA))


def sampled_minima(
    objective: AbstractObjective, count: int, seed: int, scale: float, method: str | None = None
) -> SampledMinima:
    """Minima that descents from Gaussian starts end in, verified; those of the smallest loss found are kept."""
    check_sampling(objective, count, scale)
    method = checked_method(objective, method)
    starts = gaussian_starts(int(count), objective.dim, seed, scale)
    theta = descend(objective, starts, method)
    evidence = np.full(len(starts), Evidence.NOT_CRITICAL, np.int8)
    nullity = np.zeros(len(starts), int)
    pending = np.flatnonzero(np.isfinite(theta).all(axis=1))
    for attempt in range(NUDGES):
        if not pending.size:
            break
        size = np.linalg.norm(theta[pending], axis=1)
        size = np.where(size > 0, size, 1.0)
        points = refine_critical_points(objective, theta[pending], size)
        theta[pending], evidence[pending] = points.theta, points.evidence
        spectra, modes = np.linalg.eigh(np.nan_to_num(points.hessian))
        null = np.abs(spectra) <= NULL * np.abs(spectra).max(axis=1, keepdims=True)
        nullity[pending] = null.sum(axis=1)
        at_saddle = np.isin(points.evidence, OF_SADDLES)
        if attempt + 1 < NUDGES and at_saddle.any():
            lanes = pending[at_saddle]
            pushed = theta[lanes] + NUDGE * size[at_saddle, None] * modes[at_saddle, :, 0]
            theta[lanes] = descend(objective, pushed, method)
        pending = pending[at_saddle]
        pending = pending[np.isfinite(theta[pending]).all(axis=1)]
    return _global_ones(objective, starts, theta, evidence, nullity)


def dies_out(objective: AbstractObjective, theta: np.ndarray, length: float) -> bool:
    """Whether Newton's steps from ``theta`` are short and become shorter, as towards a degenerate minimum.

    Down an endless slope (an exponential tail, a plateau) they do not.
    """
    first = newton_step(objective, theta)
    if not np.linalg.norm(first) <= length:
        return False
    second = newton_step(objective, theta + first)
    return bool(np.linalg.norm(second) <= DYING * np.linalg.norm(first))


def newton_step(objective: AbstractObjective, theta: np.ndarray) -> np.ndarray:
    """The Newton step at ``theta``, however flat a direction is; infinite along slopes without any curvature."""
    curvature, modes = np.linalg.eigh(objective.hessian(theta))
    slope = modes.T @ objective.gradient(theta)
    with np.errstate(all="ignore"):
        steps = np.where(slope == 0, 0.0, -slope / curvature)
    return modes @ steps


def loss_margin(objective: AbstractObjective, theta: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """By how much losses at minima may differ by rounding: of the loss itself, and of the points."""
    noise = loss_noise(objective, theta, loss)
    curvature = np.abs(hessians_at(objective, theta)).sum(axis=2).max(axis=1)
    return 1e3 * noise + curvature * np.sum((1e3 * POSITION_ERROR * theta) ** 2, axis=1)


def check_sampling(objective: AbstractObjective, count: int, scale: float) -> None:
    """Refuse arguments of a sampling that make no sense."""
    if not isinstance(objective, AbstractObjective):
        raise TypeError(f"objective must be a gdmap objective such as Function(f, dim), got {objective!r}")
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise ValueError(f"the number of starts must be a positive integer, got {count!r}")
    if not np.isfinite(scale) or scale <= 0:
        raise ValueError(f"scale must be positive and finite, got {scale!r}")
    refuse_large(objective)


def _global_ones(
    objective: AbstractObjective,
    starts: np.ndarray,
    theta: np.ndarray,
    evidence: np.ndarray,
    nullity: np.ndarray,
) -> SampledMinima:
    at_start, start_gradient, _ = loss_and_gradient(objective, starts)
    usable = np.where(np.isfinite(theta), theta, 0.0)
    loss, gradient, _ = loss_and_gradient(objective, usable)
    verified = np.isin(evidence, OF_MINIMA) & np.isfinite(loss)
    degenerate = evidence == Evidence.DEGENERATE_CRITICAL_POINT
    if np.all(degenerate) and not np.any(start_gradient) and np.ptp(at_start) == 0:
        raise ValueError(
            "the loss is flat: it has the same value and no gradient at any start, every point is a minimum, and "
            "no step size is critical"
        )
    for lane in np.flatnonzero((evidence == Evidence.NOT_CRITICAL) & np.isfinite(theta).all(axis=1)):
        small = np.linalg.norm(gradient[lane]) <= VANISHED * np.linalg.norm(start_gradient[lane])
        way = float(np.linalg.norm(theta[lane] - starts[lane]))
        degenerate[lane] = small and dies_out(objective, theta[lane], SETTLED * way)
    candidates = verified | degenerate
    if not candidates.any():
        find_minimum(objective, starts[0])  # says what is in the way
        raise ValueError(
            f"none of {len(starts)} starts led to a minimum that can be verified: try more, or another scale="
        )
    lowest = loss[candidates].min()
    margin = np.where(candidates, loss_margin(objective, usable, loss), 0.0)
    margin = margin + margin[candidates][np.argmin(loss[candidates])]
    at_bottom = candidates & (loss <= lowest + margin)
    kept = np.flatnonzero(at_bottom & verified) if np.any(at_bottom & verified) else np.flatnonzero(at_bottom)
    return SampledMinima(
        theta=theta[kept],
        loss=loss[kept],
        nullity=np.where(verified, nullity, 0)[kept],
        start=kept,
        evidence=evidence[kept],
        remark=remark(objective, loss, verified, at_bottom, len(kept), lowest),
    )


def remark(
    objective: AbstractObjective,
    loss: np.ndarray,
    verified: np.ndarray,
    at_bottom: np.ndarray,
    kept: int,
    bottom: float,
) -> str:
    """What became of the starts that are not among the minima kept, in words; empty if there are none."""
    parts = []
    if not np.any(at_bottom & verified):
        parts.append(
            f"the {kept} points of smallest loss are degenerate critical points (as for x^4), which linear "
            "stability does not judge"
        )
    if higher := int(np.sum(verified & ~at_bottom)):
        parts.append(f"{higher} starts ended in minima of higher loss, which are left out")
    if lost := len(loss) - kept - higher:
        parts.append(f"{lost} starts led to no minimum that could be verified")
    lower = np.isfinite(loss) & (loss < bottom) & ~at_bottom
    if lower.any():
        parts.append(
            f"{int(lower.sum())} of these came to a smaller loss ({loss[lower].min():.6g}) without settling, so "
            "the minima found are not global ones, or the loss has none"
        )
    optimum = objective.optimal_value
    found = float(loss[at_bottom].min())
    if optimum is not None and found > optimum + 1e-8 * abs(optimum):
        parts.append(f"the smallest loss found, {found:.6g}, is above the known optimum {optimum:.6g}")
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


def sample_minima(
    objective: AbstractObjective, n: int, seed: int = 0, *, scale: float = 1.0, method: str | None = None
) -> xr.Dataset:
    """Up to ``n`` minima of the smallest loss found, verified (*computed*; their law is stated in ``attrs``).

    Linear networks under the square loss that can realise the least-squares map are sampled exactly: all layers
    but one have independent ``N(0, scale^2)`` entries, and that one is changed as little as the optimum demands.
    Elsewhere descents from Gaussian starts give them, so the law is that of where the descents end; starts that
    lead to no global minimum are left out, and ``start`` says which remain.

    Returns
    -------
    xarray.Dataset
        ``theta`` over ``(minimum, component)``; ``loss``, ``nullity``, ``evidence``, ``norm``, ``start`` over
        ``minimum``.

    Raises
    ------
    ValueError
        If no start leads to a minimum, or for more than 1,000 parameters.
    """
    check_sampling(objective, n, scale)
    exact = None
    if isinstance(objective, LinearNetwork) and method is None:
        exact = exact_minima(objective, n, seed, scale)
    if exact is None:
        found = sampled_minima(objective, n, seed, scale, method)
        law = f"where descents from Gaussian starts of standard deviation {scale:g} end"
        if found.is_degenerate:
            raise ValueError(f"no minimum could be verified. {found.remark}")
    else:
        found = _verified_ones(objective, exact)
        law = "all layers but one Gaussian, that one changed as little as the optimum demands"
    return xr.Dataset(
        {
            "theta": (("minimum", "component"), found.theta, {"long_name": "parameters"}),
            "loss": ("minimum", found.loss, {"long_name": "loss"}),
            "nullity": ("minimum", found.nullity, {"long_name": "Hessian eigenvalues below 1e-10 of the largest"}),
            "evidence": ("minimum", found.evidence, flag_attributes(Evidence)),
            "norm": ("minimum", np.linalg.norm(found.theta, axis=1), {"long_name": "distance from the origin"}),
            "start": ("minimum", found.start, {"long_name": "which start led there"}),
        },
        attrs={"status": "computed", "law": law, "seed": seed, "scale": scale, "remark": found.remark},
    )


def _verified_ones(objective: AbstractObjective, theta: np.ndarray) -> SampledMinima:
    points = refine_critical_points(objective, theta, np.linalg.norm(theta, axis=1))
    kept = np.flatnonzero(points.is_minimum)
    spectra = np.abs(np.linalg.eigvalsh(points.hessian[kept]))
    lost = len(theta) - len(kept)
    return SampledMinima(
        theta=points.theta[kept],
        loss=loss_and_gradient(objective, points.theta[kept])[0],
        nullity=(spectra <= NULL * spectra.max(axis=1, keepdims=True)).sum(axis=1),
        start=kept,
        evidence=points.evidence[kept],
        remark=f"{lost} badly conditioned ones could not be verified and are left out." if lost else "",
    )

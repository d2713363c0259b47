"""Newton refinement of periodic orbits, many at once; a fixed point is the case of period 1.

The equation solved is ``G^p(x) = x``. On a family of cycles (as on a manifold of minima) its derivative
``M - I`` is singular; corrections then have minimum norm, and the null directions are the candidates for
neutral ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from gdmap.engines.xla import block_size, on_lanes
from gdmap.maps import Family
from gdmap.spectra.dense import for_each

NEWTON_STEPS = 6
CONVERGED = 1e-12
# Singular values of M - I below this share of the largest count as zero at a refined point. At a rough guess on a
# family of cycles they are not that small yet: there a gap by this factor below this share tells them.
NULL = 1e-10
GAP, GAP_BELOW = 1e3, 1e-4
# An orbit nearly has a period if it is back up to this share of its diameter.
NEARLY = 1e-3
# Newton's second correction must be this much smaller than its first: then the linear picture holds on the way
# from the guess to the cycle.
CONTRACTION = 0.1
# A null direction is neutral if, this far along it relative to the scale of the cycle, there is another cycle.
SHIFT = 1e-3


class Cycles(NamedTuple):
    """Refined cycles, one per row.

    ``points`` has shape ``(lanes, period, state_dim)``; ``jacobian`` is the derivative of ``G^p`` at the first
    point; ``defect`` is ``G^p(x) - x``; ``displacement`` the distance from the guess to the first point;
    ``converged`` whether Newton's correction fell below `CONVERGED` of the scale, and the second one below
    `CONTRACTION` of the first.
    """

    points: np.ndarray
    jacobian: np.ndarray
    defect: np.ndarray
    displacement: np.ndarray
    converged: np.ndarray

    def take(self, lanes: np.ndarray) -> "Cycles":
        """The cycles of some lanes."""
        return Cycles(*(field[lanes] for field in self))

    def diameter(self) -> np.ndarray:
        """The largest distance from the first point to another point of the cycle."""
        return np.linalg.norm(self.points - self.points[:, :1], axis=2).max(axis=1)

    def minimal_period(self, lane: int) -> int:
        """The smallest divisor ``d`` of the period with ``G^d(x) = x`` up to a millionth of the diameter."""
        return smallest_return(self.points[lane], 1, 1e-6)


def smallest_return(points: np.ndarray, least: int, share: float) -> int:
    """The smallest divisor ``d >= least`` of the period after which the orbit is back to a share of its size."""
    distances = np.linalg.norm(points - points[0], axis=1)
    period = len(points)
    for divisor in range(least, period):
        if period % divisor == 0 and distances[divisor] <= share * distances.max():
            return divisor
    return period


class ReturnMap(eqx.Module):
    """``x -> (points x, G x, ..., G^{p-1} x; G^p(x) - x; derivative of G^p)`` for one lane."""

    family: Family
    period: int = eqx.field(static=True)

    def __call__(self, parameter: Any, state: Any) -> tuple[Any, Any, Any]:
        """Points, defect and Jacobian of the ``period``-fold map at ``state``."""
        map_ = self.family(parameter)

        def iterate(state: Any) -> tuple[Any, tuple[Any, Any]]:
            image, points = jax.lax.scan(
                lambda state, _: (map_.update(state), state), state, None, length=self.period
            )
            return image, (image, points)

        # Tangents are carried through all p steps: no products of Jacobians.
        jacobian, (image, points) = jax.jacfwd(iterate, has_aux=True)(state)
        return points, image - state, jacobian


class Orbit(eqx.Module):
    """``x -> (x, G x, ..., G^{p-1} x)`` for one lane."""

    family: Family
    period: int = eqx.field(static=True)

    def __call__(self, parameter: Any, state: Any) -> Any:
        """The first ``period`` points of the orbit of ``state``."""
        map_ = self.family(parameter)
        return jax.lax.scan(lambda state, _: (map_.update(state), state), state, None, length=self.period)[1]


def near_period(
    family: Family, parameter: np.ndarray, state: np.ndarray, period: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For orbits that recur after ``period`` steps the shortest period they nearly have, and their diameter.

    An orbit that spirals into a short cycle recurs best after many rounds; its Jacobian is cheaper after one.
    """
    shortest, diameter = np.array(period), np.zeros(len(state))
    for candidate in np.unique(period):
        lanes = np.flatnonzero(period == candidate)
        block = block_size(8 * state.shape[1] * int(candidate), largest=64)
        points = on_lanes(Orbit(family, int(candidate)), (parameter[lanes], state[lanes]), block)
        diameter[lanes] = np.linalg.norm(points - points[:, :1], axis=2).max(axis=1)
        shortest[lanes] = [smallest_return(orbit, 2, NEARLY) for orbit in points]
    return shortest, diameter


def evaluate_return_map(
    family: Family, parameter: np.ndarray, state: np.ndarray, period: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`ReturnMap` on every lane, in fixed blocks."""
    block = block_size(8 * state.shape[1] * (4 * state.shape[1] + period), largest=8)
    points, defect, jacobian = on_lanes(ReturnMap(family, period), (parameter, state), block)
    return points, defect, jacobian


def refine_cycles(
    family: Family,
    parameter: np.ndarray,
    state: np.ndarray,
    period: int,
    scale: np.ndarray,
    nullity: np.ndarray | None = None,
) -> Cycles:
    """Newton's method for ``G^p(x) = x`` from each row of ``state``, with minimum-norm corrections.

    ``scale`` is the length that matters in each lane (the diameter of a cycle, the way an orbit has come).
    With ``nullity`` given, that many of the smallest singular values of ``M - I`` are left out of the
    correction in each lane; otherwise those are that a gap sets apart (for period 1, where ``M`` is symmetric
    and near-null directions do no harm, those below `NULL` of the largest). The defect along the directions
    left out is not corrected: whoever relies on a cycle must test it.
    """
    lanes = len(state)
    x = np.array(state)
    converged = np.zeros(lanes, dtype=bool)
    points, defect, jacobian = evaluate_return_map(family, parameter, x, period)
    pending = np.arange(lanes)
    first_length = np.full(lanes, np.inf)
    precision = CONVERGED * scale + 4 * np.finfo(x.dtype).eps * np.linalg.norm(x, axis=1)
    for attempt in range(NEWTON_STEPS):
        if nullity is None:
            rule: list[Any] = [rank_above_null if period == 1 else rank_above_gap] * len(pending)
        else:
            rule = [state.shape[1] - skipped for skipped in nullity[pending]]
        corrections = np.stack(for_each(minimum_norm_correction, jacobian[pending], defect[pending], rule))
        finite = np.all(np.isfinite(corrections), axis=1)
        corrections, pending = corrections[finite], pending[finite]
        if not pending.size:
            break
        length = np.linalg.norm(corrections, axis=1)
        small = length <= precision[pending]
        if attempt == 0:
            first_length[pending] = length
        elif attempt == 1:
            contracts = small | (length <= CONTRACTION * first_length[pending])
            corrections, length, small, pending = (
                values[contracts] for values in (corrections, length, small, pending)
            )
            if not pending.size:
                break
        x[pending] += corrections
        points[pending], defect[pending], jacobian[pending] = evaluate_return_map(
            family, parameter[pending], x[pending], period
        )
        converged[pending[small]] = True
        pending = pending[~small]
        if not pending.size:
            break
    return Cycles(points, jacobian, defect, np.linalg.norm(x - state, axis=1), converged)


def minimum_norm_correction(
    jacobian: np.ndarray, defect: np.ndarray, rank: int | Callable[[np.ndarray], int]
) -> np.ndarray:
    """The Newton correction ``-(M - I)^+ (G^p(x) - x)`` with the pseudo-inverse of the given rank.

    ``rank`` may be a rule that reads it off the singular values. NaN where the Jacobian is not finite.
    """
    if not (np.all(np.isfinite(jacobian)) and np.all(np.isfinite(defect))):
        return np.full_like(defect, np.nan)
    U, singular_values, Vt = np.linalg.svd(jacobian - np.eye(len(defect)))
    kept = rank(singular_values) if callable(rank) else rank
    with np.errstate(all="ignore"):  # a rank given by the caller may keep a zero
        return -Vt[:kept].T @ ((U[:, :kept].T @ defect) / singular_values[:kept])


def rank_above_null(singular_values: np.ndarray) -> int:
    """How many singular values exceed `NULL` of the largest."""
    return int(np.sum(singular_values > NULL * singular_values[0]))


def rank_above_gap(singular_values: np.ndarray) -> int:
    """How many singular values stand above the widest gap at the small end, or all if there is none."""
    values = np.maximum(singular_values, np.finfo(float).tiny)
    gaps = values[:-1] / values[1:]
    gaps[values[1:] > GAP_BELOW * values[0]] = 0.0
    if not gaps.size or gaps.max() < GAP:
        return rank_above_null(singular_values)
    # Among zeros that are only rounding the widest gap means nothing.
    return min(int(np.argmax(gaps >= GAP)) + 1, rank_above_null(singular_values))


def null_basis(jacobian: np.ndarray) -> np.ndarray:
    """Orthonormal rows spanning the null space of ``M - I`` (singular values below `NULL` of the largest)."""
    _, singular_values, Vt = np.linalg.svd(jacobian - np.eye(len(jacobian)))
    return Vt[rank_above_null(singular_values) :]


def is_on_a_family(
    family: Family, parameter: np.ndarray, cycles: Cycles, bases: list[np.ndarray], scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whether the null directions of each cycle are tangent to a family of cycles; the first points of others.

    Each cycle is moved by ``SHIFT * scale`` along one generic null direction and solved for again with the null
    space held fixed. It lies on a family if another cycle is found there: the defect vanishes (also along the
    null space, where no correction was made) and the move is kept.
    """
    shift = SHIFT * scale
    directions = np.stack([generic_combination(basis) for basis in bases])
    first = cycles.points[:, 0]
    nullity = np.array([len(basis) for basis in bases])
    moved = refine_cycles(
        family, parameter, first + shift[:, None] * directions, cycles.points.shape[1], scale, nullity
    )
    stretch = np.array([np.abs(jacobian - np.eye(len(jacobian))).max() for jacobian in cycles.jacobian])
    kept = np.sum((moved.points[:, 0] - first) * directions, axis=1) >= 0.9 * shift
    # Where M is the identity only rounding is left to compare with.
    rounding = 64 * np.finfo(float).eps * (1 + stretch) * np.abs(cycles.points).max(axis=(1, 2))
    smallest = 1e-8 * stretch * shift + rounding
    flat = np.linalg.norm(moved.defect, axis=1) <= smallest
    flat &= np.linalg.norm(cycles.defect, axis=1) <= smallest
    return moved.converged & kept & flat, moved.points[:, 0]


def generic_combination(basis: np.ndarray) -> np.ndarray:
    """A unit vector in the span of the rows with no special relation to any of them; the same every time."""
    weights = np.random.default_rng(0).standard_normal(len(basis))
    return weights @ basis / np.linalg.norm(weights)

"""Newton refinement of periodic orbits, many at once; a fixed point is the case of period 1.

The equation solved is ``G^p(x) = x``. On a family of cycles (as on a manifold of minima) its derivative
``M - I`` is singular; corrections then have minimum norm, and the null directions are the candidates for
neutral ones.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.extend
import numpy as np

from gdmap.engines.precision import float64, for_tracing
from gdmap.engines.xla import BLOCK_BYTES, on_lanes
from gdmap.maps import Family
from gdmap.spectra.dense import Singular, singular

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
# A block of lanes makes about so many numbers at once: enough for the time of a call, few enough for a cache.
BLOCK_WORK, LARGEST_BLOCK = 2**21, 4096


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
        return int(self.take(np.array([lane])).minimal_periods()[0])

    def minimal_periods(self) -> np.ndarray:
        """`minimal_period` of every lane."""
        return smallest_returns(self.points, 1, 1e-6)


def smallest_returns(points: np.ndarray, least: int, share: float) -> np.ndarray:
    """For orbits ``(lanes, period, dim)`` the smallest divisor ``d >= least`` of the period after which each is
    back up to a share of its size.
    """
    distances = np.linalg.norm(points - points[:, :1], axis=2)
    size = distances.max(axis=1)
    period = points.shape[1]
    smallest = np.full(len(points), period)
    for divisor in range(period - 1, least - 1, -1):
        if period % divisor == 0:
            smallest[distances[:, divisor] <= share * size] = divisor
    return smallest


def evaluate_lanes(function: Any, lane_arrays: tuple[np.ndarray, ...]) -> Any:
    """``function`` (an Equinox module, of a single lane) on every lane, in blocks that its work alone sets."""
    tree = for_tracing(function)
    dynamic, static = eqx.partition(tree, eqx.is_array)
    shapes = tuple(jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for array in lane_arrays)
    arrays, structure = jax.tree.flatten(dynamic)
    kinds = tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays)
    leaves, static_structure = jax.tree.flatten(static)
    block = lanes_in_a_block(structure, kinds, static_structure, tuple(leaves), shapes)
    return on_lanes(function, lane_arrays, block)


@functools.lru_cache(maxsize=256)
def lanes_in_a_block(structure: Any, kinds: Any, static_structure: Any, leaves: Any, shapes: Any) -> int:
    """How many lanes are evaluated at once by a function, given without its arrays as what compiled programs are
    told apart by, and the shapes of one lane: a power of two.
    """
    static = jax.tree.unflatten(static_structure, leaves)

    def call(dynamic: Any, *lane: Any) -> Any:
        return eqx.combine(dynamic, static)(*lane)

    with float64():
        traced = jax.make_jaxpr(call)(jax.tree.unflatten(structure, kinds), *shapes)
    work = work_of(traced.jaxpr)
    lanes = LARGEST_BLOCK
    while lanes > 1 and (lanes * work > BLOCK_WORK or 8 * lanes * work > BLOCK_BYTES):
        lanes //= 2
    return lanes


def work_of(jaxpr: Any) -> int:
    """The numbers that a program makes; a product of matrices counts a quarter of its multiplications."""
    total = 0
    for equation in jaxpr.eqns:
        made = sum(int(np.prod(variable.aval.shape)) for variable in equation.outvars)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            made *= max(1, int(np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])) // 4)
        inner = sum(work_of(part) for part in jax.extend.core.jaxprs_in_params(equation.params))
        total += max(made, inner * int(equation.params.get("length", 1)))
    return total


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
        points = evaluate_lanes(Orbit(family, int(candidate)), (parameter[lanes], state[lanes]))
        diameter[lanes] = np.linalg.norm(points - points[:, :1], axis=2).max(axis=1)
        shortest[lanes] = smallest_returns(points, 2, NEARLY)
    return shortest, diameter


def evaluate_return_map(
    family: Family, parameter: np.ndarray, state: np.ndarray, period: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`ReturnMap` on every lane, in fixed blocks."""
    points, defect, jacobian = evaluate_lanes(ReturnMap(family, period), (parameter, state))
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
    rule = ranks_above_null if period == 1 else ranks_above_gap
    for attempt in range(NEWTON_STEPS):
        rank = rule if nullity is None else state.shape[1] - nullity[pending]
        corrections = minimum_norm_corrections(jacobian[pending], defect[pending], rank)
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


def minimum_norm_corrections(
    jacobian: np.ndarray, defect: np.ndarray, rank: np.ndarray | Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The Newton corrections ``-(M - I)^+ (G^p(x) - x)``, lane by lane, with pseudo-inverses of the given ranks.

    ``rank`` may be a rule that reads them off the singular values. NaN where the Jacobian is not finite.
    """
    corrections = np.full_like(defect, np.nan)
    finite = np.all(np.isfinite(jacobian), axis=(1, 2)) & np.all(np.isfinite(defect), axis=1)
    if finite.any():
        left, values, right = singular_of_return(jacobian[finite])
        kept = rank(values) if callable(rank) else rank[finite]
        with np.errstate(all="ignore"):  # a rank given by the caller may keep a zero
            along = apply(left, defect[finite]) / values
        along[np.arange(values.shape[1]) >= kept[:, None]] = 0.0
        corrections[finite] = -apply(right.swapaxes(1, 2), along)
    return corrections


def apply(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """``A v`` lane by lane."""
    return np.asarray((matrices @ vectors[:, :, None])[:, :, 0])


def singular_of_return(jacobian: np.ndarray) -> Singular:
    """The decompositions of ``M - I``."""
    return singular(jacobian - np.eye(jacobian.shape[1]))


def ranks_above_null(singular_values: np.ndarray) -> np.ndarray:
    """How many singular values in each row exceed `NULL` of the largest, the first."""
    return np.asarray(np.sum(singular_values > NULL * singular_values[:, :1], axis=1))


def ranks_above_gap(singular_values: np.ndarray) -> np.ndarray:
    """How many singular values in each row are above the widest gap at the small end, or all if there is none."""
    ranks = ranks_above_null(singular_values)
    values = np.maximum(singular_values, np.finfo(float).tiny)
    gaps = values[:, :-1] / values[:, 1:]
    gaps[values[:, 1:] > GAP_BELOW * values[:, :1]] = 0.0
    wide = gaps >= GAP
    # Among zeros that are only rounding the widest gap means nothing.
    return np.where(wide.any(axis=1), np.minimum(wide.argmax(axis=1) + 1, ranks), ranks) if gaps.size else ranks


def rank_above_null(singular_values: np.ndarray) -> int:
    """`ranks_above_null` of one row."""
    return int(ranks_above_null(singular_values[None])[0])


def rank_above_gap(singular_values: np.ndarray) -> int:
    """`ranks_above_gap` of one row."""
    return int(ranks_above_gap(singular_values[None])[0])


def null_basis(jacobian: np.ndarray) -> np.ndarray:
    """Orthonormal rows spanning the null space of ``M - I`` (singular values below `NULL` of the largest)."""
    _, values, right = singular_of_return(jacobian[None])
    return right[0, rank_above_null(values[0]) :]


def is_on_a_family(
    family: Family, parameter: np.ndarray, cycles: Cycles, bases: list[np.ndarray], scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whether the null directions of each cycle are tangent to a family of cycles; the first points of others.

    ``bases``: orthonormal rows for each cycle. Each cycle is moved by ``SHIFT * scale`` along one generic null
    direction and solved for again with the null space held fixed. It lies on a family if another cycle is found
    there: the defect vanishes (also along the null space, where no correction was made) and the move is kept.
    """
    nullity = np.array([len(basis) for basis in bases])
    rows = np.zeros((len(bases), int(nullity.max(initial=0)), cycles.points.shape[2]))
    for padded, basis in zip(rows, bases, strict=True):
        padded[len(padded) - len(basis) :] = basis
    return moves_along_a_family(family, parameter, cycles, rows, nullity, scale)


def moves_along_a_family(
    family: Family,
    parameter: np.ndarray,
    cycles: Cycles,
    rows: np.ndarray,
    nullity: np.ndarray,
    scale: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """`is_on_a_family` for null spaces spanned by the last ``nullity`` rows of ``rows``, ``(lanes, r, dim)``."""
    shift = SHIFT * scale
    directions = generic_combinations(rows, nullity)
    first = cycles.points[:, 0]
    moved = refine_cycles(
        family, parameter, first + shift[:, None] * directions, cycles.points.shape[1], scale, nullity
    )
    on_family = is_on_family_with(cycles, moved.points[:, 0], moved.defect, directions, scale)
    return moved.converged & on_family, moved.points[:, 0]


def is_on_family_with(
    cycles: Cycles, moved: np.ndarray, defect: np.ndarray, directions: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Whether points found from ``SHIFT * scale`` along the directions are on cycles (by their defects), as those
    they were moved from, and have stayed there.
    """
    shift = SHIFT * scale
    stretch = np.abs(cycles.jacobian - np.eye(cycles.jacobian.shape[1])).max(axis=(1, 2))
    kept = np.sum((moved - cycles.points[:, 0]) * directions, axis=1) >= 0.9 * shift
    # Where M is the identity only rounding is left to compare with.
    rounding = 64 * np.finfo(float).eps * (1 + stretch) * np.abs(cycles.points).max(axis=(1, 2))
    smallest = 1e-8 * stretch * shift + rounding
    flat = np.linalg.norm(defect, axis=1) <= smallest
    flat &= np.linalg.norm(cycles.defect, axis=1) <= smallest
    return np.asarray(kept & flat)


def generic_combinations(rows: np.ndarray, nullity: np.ndarray) -> np.ndarray:
    """Unit vectors in the spans of the last ``nullity`` orthonormal rows of each lane, with no special relation to
    any of them; the same every time.
    """
    place = np.arange(rows.shape[1]) - (rows.shape[1] - nullity[:, None])
    drawn = np.asarray(np.random.default_rng(0).standard_normal(rows.shape[1]))
    weights = np.where(place >= 0, drawn[np.maximum(place, 0)], 0.0)
    return apply(rows.swapaxes(1, 2), weights) / np.linalg.norm(weights, axis=1, keepdims=True)

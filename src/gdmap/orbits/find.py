"""Finding the periodic orbits of a map: seeds from orbits, the cascade and a box; then Newton's method."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.random import drawn_starts
from gdmap.engines.xla import block_size, on_lanes
from gdmap.maps import ConstantFamily, Family, Map
from gdmap.orbits.branch_and_prune import CycleEnclosure, enclose_all_cycles
from gdmap.orbits.multipliers import return_jacobian
from gdmap.orbits.periodic_orbit import (
    NoOrbitError,
    PeriodicOrbit,
    checked_orbit_map,
    judged,
    refined_to_minimal_period,
)
from gdmap.orbits.shooting import FLOOR, Refined, linearise
from gdmap.orbits.starts import initial_states
from gdmap.orbits.symmetries import Symmetry, check_commuting, checked_symmetries, images_under

Array = np.ndarray

# Largest number of unknowns for which many seeds are solved side by side, dense.
MANY = 160
# How many seeds are tried one by one where there are more unknowns.
ONE_BY_ONE = 12
# Levenberg-Marquardt steps from each seed, and the defect, relative to the size, at which a seed counts as solved.
STEPS, SOLVED = 80, 1e-9
# The states searched for near-recurrences, after the transient, and how many are taken of each orbit.
WINDOW, RECURRENCES = 2_048, 48
# Orbits of one period are the same if their points are this close, relative to their size.
SAME = 1e-7
# Images of proved orbits under a symmetry are other proved orbits if they are this close, beyond their radii.
SAME_IMAGE = 1e-12
# Beyond this norm, relative to the start's, an orbit is taken to diverge.
FAR = 1e8
# Amplitudes, relative to the norm of the point, with which an orbit is doubled along its flip eigenvector.
AMPLITUDES = (1e-3, 1e-2, 0.05, 0.2)

NOTHING = {"shorter": 0, "kinks": 0, "degenerate": 0}


class PeriodicOrbits(list[PeriodicOrbit]):
    """The periodic orbits found: a list, with what can be said about its completeness.

    Attributes
    ----------
    period
        The minimal period asked for.
    complete
        ``True`` where the list is proved to hold every orbit of this period in the box; ``False`` where it holds
        those that were found.
    status
        ``'proved'`` (the count) or ``'estimated'`` (a search, which proves nothing about what it has not found).
    searched
        What was tried: seeds, how many starts diverged, how many seeds led to shorter orbits, to a kink, nowhere.
    """

    def __init__(
        self,
        orbits: Sequence[PeriodicOrbit],
        period: int,
        complete: bool,
        searched: dict[str, int],
        remark: str = "",
    ) -> None:
        super().__init__(orbits)
        self.period = period
        self.complete = complete
        self.searched = searched
        self.remark = remark

    @property
    def status(self) -> str:
        """Of the count of orbits."""
        return "proved" if self.complete else "estimated"

    def explain(self) -> str:
        """What was found, what was tried, and what to change where nothing was found."""
        one = len(self) == 1
        what = (
            "fixed point"
            if self.period == 1
            else f"{'orbit' if one else 'orbits'} of minimal period {self.period}"
        )
        what += "s" if self.period == 1 and not one else ""
        if self.complete:
            lines = [f"{len(self)} {what} in the box: proved, there are no others (interval branch and prune)."]
        elif "boxes" in self.searched:
            lines = [f"{len(self)} {what} in the box by interval branch and prune."]
        else:
            lines = [f"{len(self)} {what} found by search; there may be others."]
        stable = sum(orbit.stable for orbit in self)
        if self:
            lines.append("It is stable." if one and stable else f"{stable} of them stable.")
        tried = self.searched
        if tried.get("starts"):
            lines.append(
                f"Tried: {tried['starts']} starts, of which {tried['diverged']} diverged; {tried['seeds']} seeds."
            )
        if tried.get("shorter"):
            lines.append(f"{tried['shorter']} seeds led to orbits of smaller period.")
        if tried.get("kinks"):
            lines.append(
                f"{tried['kinks']} candidates have a point on a kink of the loss, where an orbit has no "
                "multipliers: they are left out."
            )
        if tried.get("degenerate"):
            lines.append(f"{tried['degenerate']} candidates close up to rounding, but are degenerate: left out.")
        if not self and not self.complete:
            if tried.get("starts") and tried["diverged"] == tried["starts"]:
                lines.append(
                    "Every start diverged: take a smaller step size, or starts nearer to a minimum (scale=)."
                )
            elif tried.get("shorter"):
                lines.append(
                    "Orbits of this period may not exist at this step size: try another; in up to 3 dimensions "
                    "region=(lower, upper) with complete=True decides."
                )
            else:
                lines.append(
                    "Try other starts; in up to 3 dimensions region=(lower, upper) with complete=True decides."
                )
        if self.remark:
            lines.append(self.remark)
        return "\n".join(lines)


def periodic_orbits(
    map: Map,  # noqa: A002 - the name of the concept
    period: int,
    starts: Any = 64,
    *,
    region: Any = None,
    complete: bool = False,
    symmetries: Sequence[Symmetry] = (),
    scale: float = 1.0,
    transient: int = 1_000,
    seed: int = 0,
    max_orbits: int | None = None,
) -> PeriodicOrbits:
    """The periodic orbits of minimal period ``period`` of a map.

    Zeros of ``F(x)_i = x_{i+1} - G(x_i)`` in the product space of all ``period`` points (multiple shooting). Seeds
    are near-recurrences on the orbits of ``starts``, their first points, random points of ``region``, and orbits
    of half the period doubled along an eigenvector to a multiplier below -1. All seeds are solved side by side by
    Levenberg-Marquardt, the distinct solutions refined by Newton's method (minimum-norm corrections on families)
    and judged. With more than 160 unknowns the best twelve seeds are solved one by one; with more than 2,000 by
    GMRES on Jacobian-vector products.

    Parameters
    ----------
    map
        Any map that does not depend on time.
    period
        The minimal period; 1 gives fixed points.
    starts
        A number of starts from ``N(0, scale^2 I)``, start ``i`` a function of ``(seed, i)`` alone; or parameters
        of shape ``(n, dim)``. ``map.initial_state`` is applied to each.
    region
        A box of states ``(lower, upper)``, each a number or of shape ``(state_dim,)``: as many random seeds from
        it as there are starts, and only orbits with all points inside are returned.
    complete
        Find all orbits in ``region`` and prove that there are no others: interval branch and prune in the product
        space, in up to 3 dimensions (needs the extra ``proofs``). Degenerate orbits and families cannot be told
        so: then the list is not ``complete`` and says how many boxes were left.
    symmetries
        Functions ``state -> state`` that commute with the map, such as ``lambda x: -x``, or matrices:
        orbits that they (and their products) map to each other are returned once. By default all are returned.
    scale
        Standard deviation of the starts.
    transient
        Steps before near-recurrences are looked for.
    seed
        Of the starts.
    max_orbits
        Stop when so many are found.

    Returns
    -------
    PeriodicOrbits
        A list of `PeriodicOrbit`, stable ones first, then by margin; ``.complete`` says whether it is proved to be
        all of them, ``.explain()`` what was tried. Each orbit has status *computed*. On a family (a manifold of
        minima) different starts find different members: of those with equal losses, equal neutral dimension and
        equal stability one is returned.

    Raises
    ------
    TypeError, ValueError
        For what is no map, a map that depends on time, or arguments that make no sense.
    """
    map_ = checked_orbit_map(map)
    period = checked_period(period)
    box = None if region is None else checked_region(region, map_.state_dim)
    for name, number, least in (("transient", transient, 0), ("seed", seed, 0), ("max_orbits", max_orbits, 1)):
        whole = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
        if number is None and name == "max_orbits":
            continue
        if not whole or int(number or 0) < least:
            raise ValueError(f"{name} must be an integer from {least}, got {number!r}")
    states = initial_states(map_, starts, scale, seed)
    symmetries = checked_symmetries(symmetries)
    check_commuting(symmetries, map_, states[:4])
    if complete:
        return all_orbits(map_, period, box, symmetries)
    family = ConstantFamily(map_)
    candidates, searched = search(family, map_, period, states, box, transient, seed)
    found = distinct_orbits(
        map_, candidates, period, box, symmetries, searched, max_orbits, length_of(states, box)
    )
    return PeriodicOrbits(sorted_orbits(found), period, False, searched)


def length_of(states: Array, box: tuple[Array, Array] | None) -> float:
    """A length that matters: how far out the starts are, or how wide the box is."""
    width = 0.0 if box is None else float((box[1] - box[0]).max()) / 2
    return max(float(np.median(np.abs(states).max(axis=1))), width)


def all_orbits(
    map_: Map, period: int, box: tuple[Array, Array] | None, symmetries: Sequence[Symmetry]
) -> PeriodicOrbits:
    """All orbits in a box, by branch and prune."""
    if box is None:
        raise ValueError("complete=True needs region=(lower, upper), the box to be searched")
    enclosed = enclose_all_cycles(map_, period, *box)
    searched = {"boxes": enclosed.boxes, "unresolved": len(enclosed.unresolved), **NOTHING}
    found, images = [], Known([], [])
    for enclosure in enclosed.orbits:
        radius, size = float(enclosure.rad.max()), float(np.abs(enclosure.mid).max())
        if symmetries and find_same(images, enclosure.mid, 10 * radius + SAME_IMAGE * size) is not None:
            continue
        found.append(enclosed_orbit(map_, enclosure))
        for image in images_under(symmetries, enclosure.mid, 10 * radius + SAME_IMAGE * size)[1:]:
            remember(images, image)
    remarks = []
    if symmetries:
        remarks.append(f"Up to the symmetries given; without them there are {len(enclosed.orbits)}.")
    outside = sum(not enclosure.inside for enclosure in enclosed.orbits)
    if outside:
        remarks.append(f"{outside} of them lie within rounding of the boundary of the box, on either side of it.")
    if not enclosed.complete:
        remarks.append(f"Not complete, so the count is a lower bound: {enclosed.reason}")
    return PeriodicOrbits(sorted_orbits(found), period, enclosed.complete, searched, " ".join(remarks))


def enclosed_orbit(map_: Map, enclosure: CycleEnclosure) -> PeriodicOrbit:
    """An orbit that was proved to exist, judged at the middle of its enclosure; nothing is left out or merged."""
    family = ConstantFamily(map_)
    at = linearise(family, 0.0, enclosure.mid)
    error = float(np.linalg.norm(enclosure.rad))
    return judged(map_, family, 0.0, Refined(enclosure.mid, at, float(np.linalg.norm(at.defect)), error, 0, ""))


def checked_period(period: Any) -> int:
    """A positive integer."""
    if isinstance(period, bool) or not isinstance(period, (int, np.integer)) or period < 1:
        raise ValueError(f"period must be a positive integer, got {period!r}")
    return int(period)


def checked_region(region: Any, dim: int) -> tuple[Array, Array]:
    """The lower and upper corner of a box of states."""
    try:
        lower, upper = (np.broadcast_to(np.asarray(end, np.float64), (dim,)).copy() for end in region)
    except (TypeError, ValueError):
        raise ValueError(
            f"region must be (lower, upper), each a number or {dim} numbers, one for each component of the state"
        ) from None
    if not (np.all(np.isfinite(lower)) and np.all(np.isfinite(upper)) and np.all(lower < upper)):
        raise ValueError(f"region must be finite with lower < upper, got {lower.tolist()} and {upper.tolist()}")
    return lower, upper


# Seeds -----------------------------------------------------------------------------------------------------------


class Follow(eqx.Module):
    """The first ``early`` states from a start, and the last ``window`` of them after a transient."""

    family: Family
    transient: int = eqx.field(static=True)
    window: int = eqx.field(static=True)
    early: int = eqx.field(static=True)

    def __call__(self, state: Any) -> tuple[Any, Any]:
        """Shapes ``(early, d)`` and ``(window, d)``; from where the orbit left for infinity on, infinite."""
        far = FAR * (1 + jnp.linalg.norm(state))

        def step(state: Any, _: Any) -> tuple[Any, Any]:
            image = self.family.step(jnp.zeros(()), state)
            lost = ~(jnp.linalg.norm(image) < far) | ~jnp.all(jnp.isfinite(state))
            return jnp.where(lost, jnp.inf, image), state

        _, first = jax.lax.scan(step, state, None, length=self.early)
        settled = jax.lax.fori_loop(0, self.transient, lambda _, state: step(state, None)[0], state)
        return first, jax.lax.scan(step, settled, None, length=self.window)[1]


def search(
    family: Family,
    map_: Map,
    period: int,
    states: Array,
    box: tuple[Array, Array] | None,
    transient: int,
    seed: int,
) -> tuple[list[Array], dict[str, int]]:
    """Candidates, each of shape ``(period, d)``, and what was tried."""
    d = map_.state_dim
    unknowns = period * d
    window = period + (WINDOW if unknowns <= MANY else 4 * period)
    block = block_size(8 * d * (window + period), largest=16)
    early, late = on_lanes(Follow(family, int(transient), window, 2 * period), (states,), block)
    alive = np.isfinite(late).all(axis=(1, 2))
    searched = {"starts": len(states), "diverged": int(np.sum(~alive)), **NOTHING}
    seeds = [recurrences(orbit, period) for orbit in late[alive]]
    begun = early[np.isfinite(early).all(axis=(1, 2))]
    seeds += [begun[:, :period], begun[:, period : 2 * period]]
    if box is not None and unknowns <= MANY:
        points = drawn_starts(Uniform(*box), np.arange(len(states) * period), seed, d)
        seeds.append(points.reshape(len(states), period, d))
        inside, _ = on_lanes(Follow(family, 0, 1, period), (points[: len(states)],), block)
        seeds.append(inside[np.isfinite(inside).all(axis=(1, 2))])
    if period % 2 == 0:
        seeds.append(doubled(family, map_, period, states, box, transient, seed))
    every = np.concatenate([part.reshape(-1, period, d) for part in seeds])
    searched["seeds"] = len(every)
    if not len(every):
        return [], searched
    if unknowns > MANY:
        defects = np.linalg.norm(every[:, 0] - np.asarray([map_.step(points[-1]) for points in every]), axis=1)
        return [every[i] for i in np.argsort(defects, kind="stable")[:ONE_BY_ONE]], searched
    # One thread: see `on_lanes` on programs with linear algebra.
    block = block_size(8 * unknowns * (3 * unknowns + 8), largest=64)
    points, defect = on_lanes(LevenbergMarquardt(family, period), (every,), block, threads=1)
    size = np.maximum(np.linalg.norm(points, axis=(1, 2)), FLOOR * length_of(states, box))
    solved = np.flatnonzero(np.isfinite(defect) & (defect <= SOLVED * size))
    return list(points[solved]), searched


class Uniform(eqx.Module):
    """Uniform points of a box."""

    lower: Array
    upper: Array

    def __call__(self, key: Any) -> Any:
        """One point."""
        return jax.random.uniform(key, self.lower.shape, np.float64, self.lower, self.upper)


def recurrences(orbit: Array, period: int) -> Array:
    """Pieces of an orbit that nearly close after ``period`` steps, the best of each stretch."""
    gaps = np.linalg.norm(orbit[period:] - orbit[:-period], axis=1)
    stretches = np.array_split(np.arange(len(gaps)), min(RECURRENCES, len(gaps)))
    begins = [stretch[np.argmin(gaps[stretch])] for stretch in stretches]
    return np.stack([orbit[begin : begin + period] for begin in begins])


def doubled(
    family: Family,
    map_: Map,
    period: int,
    states: Array,
    box: tuple[Array, Array] | None,
    transient: int,
    seed: int,
) -> Array:
    """Orbits of half the period gone round twice, displaced along eigenvectors to real multipliers below -1."""
    half = period // 2
    candidates, searched = search(family, map_, half, states[:16], box, transient, seed)
    parents = distinct_orbits(map_, candidates, half, box, (), searched, 64, length_of(states, box))
    seeds = []
    for parent in parents:
        jacobians = linearise(family, 0.0, parent.points).jacobians
        values, vectors = np.linalg.eig(return_jacobian(jacobians))
        for value, vector in zip(values, vectors.T, strict=True):
            if abs(value.imag) > 0 or value.real > -1:
                continue
            direction = [vector.real / np.linalg.norm(vector.real)]
            for jacobian in np.concatenate([jacobians, jacobians])[:-1]:
                direction.append(jacobian @ direction[-1])
            offsets = np.array(direction) / max(np.linalg.norm(v) for v in direction)
            length = np.linalg.norm(parent.points[0]) + parent.diameter
            twice = np.concatenate([parent.points, parent.points])
            seeds += [twice + amplitude * length * offsets for amplitude in AMPLITUDES]
    return np.array(seeds).reshape(-1, period, map_.state_dim)


class LevenbergMarquardt(eqx.Module):
    """The shooting equation solved from one seed; the damping vanishes with the defect, so families do no harm."""

    family: Family
    period: int = eqx.field(static=True)

    def defect(self, points: Any) -> Any:
        """``F``, flat."""
        step = jax.vmap(lambda state: self.family.step(jnp.zeros(()), state))
        return (jnp.roll(points, -1, axis=0) - step(points)).ravel()

    def __call__(self, points: Any) -> tuple[Any, Any]:
        """The points it came to, shape ``(p, d)``, and the norm of the defect there."""
        p, d = points.shape
        size = jnp.linalg.norm(points)
        eye, rows = jnp.eye(p * d), jnp.arange(p)
        jacobian = jax.vmap(jax.jacfwd(lambda state: self.family.step(jnp.zeros(()), state)))

        def matrix(points: Any) -> Any:
            blocks = jnp.zeros((p, d, p, d)).at[rows, :, rows].add(-jacobian(points))
            return blocks.at[rows, :, (rows + 1) % p].add(jnp.eye(d)).reshape(p * d, p * d)

        def improve(carry: Any) -> Any:
            points, defect, damping, steps = carry
            norm = jnp.linalg.norm(defect)
            J = matrix(points)
            normal = J.T @ J + (damping * norm / size + 1e-15) * eye
            step = -jax.scipy.linalg.solve(normal, J.T @ defect, assume_a="pos").reshape(p, d)
            trial = points + step
            value = self.defect(trial)
            better = jnp.linalg.norm(value) < norm
            damping = jnp.clip(jnp.where(better, damping / 5, damping * 6), 1e-8, 1e12)
            return (
                jnp.where(better, trial, points),
                jnp.where(better, value, defect),
                damping,
                steps + 1,
            )

        def unfinished(carry: Any) -> Any:
            points, defect, damping, steps = carry
            norm = jnp.linalg.norm(defect)
            least = 1e-13 * jnp.maximum(jnp.linalg.norm(points), FLOOR * size)
            return (steps < STEPS) & (norm > least) & (damping < 1e12)

        start = (points, self.defect(points), jnp.asarray(0.1), jnp.zeros((), int))
        points, defect, _, _ = jax.lax.while_loop(unfinished, improve, start)
        return points, jnp.linalg.norm(defect)


# Distinct orbits -------------------------------------------------------------------------------------------------


class Known(NamedTuple):
    """Orbits already seen of one length, with numbers that do not depend on where one begins."""

    points: list[Array]
    invariants: list[Array]


def invariant(points: Array) -> Array:
    """Means of the points and of their squares, the same wherever on the orbit one begins."""
    return np.concatenate([points.mean(axis=0), (points**2).mean(axis=0)])


def is_same(a: Array, b: Array, close: float) -> bool:
    """Whether two orbits have the same points up to a cyclic shift."""
    return any(np.abs(np.roll(a, -shift, axis=0) - b).max() <= close for shift in range(len(a)))


def find_same(known: Known, points: Array, close: float) -> int | None:
    """Which of the known orbits this one is."""
    if not known.points:
        return None
    value, scale = invariant(points), 1 + np.abs(points).max()
    near = np.abs(np.array(known.invariants) - value).max(axis=1) <= 4 * close * scale
    return next((int(i) for i in np.flatnonzero(near) if is_same(known.points[i], points, close)), None)


def remember(known: Known, points: Array) -> None:
    """Add an orbit to those seen."""
    known.points.append(points)
    known.invariants.append(invariant(points))


def distinct_orbits(
    map_: Map,
    candidates: Sequence[Array],
    period: int,
    box: tuple[Array, Array] | None,
    symmetries: Sequence[Symmetry],
    searched: dict[str, int],
    max_orbits: int | None,
    length: float,
) -> list[PeriodicOrbit]:
    """The candidates refined, judged, of this minimal period, inside the box, each orbit once.

    ``length`` is a length that matters: orbits at the origin are compared on a thousandth of its scale.
    """
    family = ConstantFamily(map_)
    tried, found_points = Known([], []), Known([], [])
    found: list[PeriodicOrbit] = []
    for candidate in candidates:
        size = max(float(np.abs(candidate).max()), FLOOR * length)
        # The same solution reached from another seed.
        if find_same(tried, candidate, SAME * size) is not None:
            continue
        remember(tried, candidate)
        try:
            refined = refined_to_minimal_period(family, 0.0, candidate, length)
            if len(refined.points) != period:
                searched["shorter"] += 1
                continue
            close = SAME * size + 10 * refined.error
            if find_same(found_points, refined.points, close) is not None or not is_inside(refined.points, box):
                continue
            orbit = judged(map_, family, 0.0, refined)
        except NoOrbitError as problem:
            searched["kinks"] += "kink" in str(problem)
            searched["degenerate"] += "degenerate" in str(problem)
            continue
        remember(found_points, orbit.points)
        for image in images_under(symmetries, orbit.points, close)[1:]:
            remember(found_points, image)
        if not any(is_same_family(orbit, other) for other in found):
            found.append(orbit)
        if max_orbits is not None and len(found) >= max_orbits:
            break
    return found


def is_inside(points: Array, box: tuple[Array, Array] | None) -> bool:
    """Whether all points lie in the box."""
    return box is None or bool(np.all((points >= box[0]) & (points <= box[1])))


def is_same_family(a: PeriodicOrbit, b: PeriodicOrbit) -> bool:
    """Whether two orbits on families have the same losses and stability, and so count as one family."""
    if not a.neutral_dimension or a.neutral_dimension != b.neutral_dimension or a.stability != b.stability:
        return False
    one, other = np.sort(a.losses), np.sort(b.losses)
    return bool(np.abs(one - other).max() <= 1e-6 * float(np.abs(one).max()) + 1e-24)


def sorted_orbits(orbits: Sequence[PeriodicOrbit]) -> list[PeriodicOrbit]:
    """Stable ones first, then by margin, the largest first."""
    return sorted(orbits, key=lambda orbit: (not orbit.stable, -orbit.margin))

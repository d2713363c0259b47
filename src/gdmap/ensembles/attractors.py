"""Which starts end on the same attractor: identities of minima, sets of them, cycles, aperiodic attractors."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.spatial import cKDTree
from scipy.stats import binomtest

from gdmap.engines.xla import block_size, on_lanes
from gdmap.ensembles.ensemble import checked_starts, ensemble
from gdmap.ensembles.fates import Fate
from gdmap.ensembles.verdicts import ParametersAt, without_rounding
from gdmap.flags import flag_attributes
from gdmap.maps import ConstantFamily, Map
from gdmap.minima.critical_points import (
    DENSE_LIMIT,
    POSITION_ERROR,
    hessians_at,
    loss_and_gradient,
    row_sum_norms,
)
from gdmap.orbits import refine_cycles
from gdmap.orbits.cycles import Orbit, near_period, null_basis
from gdmap.orbits.symmetries import Symmetry, checked_symmetries, images_under
from gdmap.spectra.dense import for_each

NO_ATTRACTOR = -1
ATTRACTING = (Fate.MINIMUM, Fate.PERIODIC, Fate.QUASIPERIODIC, Fate.CHAOTIC)
APERIODIC = (Fate.QUASIPERIODIC, Fate.CHAOTIC)
TOLERANCE = 1e-6
CONFIDENCE = 0.95
# Two points of one set of minima are linked by bisection of the way between them (unevenly: evenly spaced valleys
# must not be taken for one), up to this often and at least so often; a piece is straight where its inner point
# is this close to the set relative to its length, and lost where it is so far.
SPLIT, DEPTH, LEAST_DEPTH = 0.382, 7, 2
STRAIGHT, LOST = 0.1, 0.75
# A set of minima is represented by at most so many points, each compared with so many neighbours.
NET, NEIGHBOURS = 128, 4
# Of an aperiodic attractor an orbit of this length is kept. A shorter one is on it if its states are typically at
# most so many times as far from the first as the states of that are from one another.
CLOUD, GLIMPSE, CLOSE = 4096, 256, 4.0
POINTS_KEPT = 256


class Orbits(NamedTuple):
    """Orbits that ended on attractors of one kind, refined: states ``(n, period, state_dim)`` and their
    parameters, and the number of neutral directions.
    """

    states: np.ndarray
    parameters: np.ndarray
    neutral: np.ndarray

    def take(self, rows: Any) -> "Orbits":
        """Some of them."""
        return Orbits(*(field[rows] for field in self))


class Known(NamedTuple):
    """What a registry keeps of one orbit: its kind and its points, the number of neutral directions, and the
    images of the points under the symmetries.
    """

    fate: int
    period: int
    states: np.ndarray
    points: np.ndarray
    neutral: int
    images: list[np.ndarray]


class Registry:
    """The attractors met so far; orbits are added in batches and get provisional labels, made final at the end.

    ``scale`` is the length that distances are relative to.
    """

    def __init__(self, map_: Map, scale: float, symmetries: Sequence[Symmetry], tolerance: float) -> None:
        self.map = map_
        self.family = ConstantFamily(map_)
        self.scale = scale
        self.symmetries = tuple(symmetries)
        self.tolerance = tolerance
        self.known: list[Known] = []
        self.parents: list[int] = []
        self.trees: dict[int, list[tuple[cKDTree, float]]] = {}

    def root(self, label: int) -> int:
        """The label that stands for all those found to be the same attractor."""
        while self.parents[label] != label:
            label = self.parents[label]
        return label

    def roots(self, labels: np.ndarray) -> np.ndarray:
        """`root` of many labels; those that are no attractor stay so."""
        table = np.array([*(self.root(label) for label in range(len(self.parents))), NO_ATTRACTOR])
        return np.asarray(table[labels])

    def identify(
        self, state: np.ndarray, travelled: np.ndarray, fate: np.ndarray, period: np.ndarray
    ) -> np.ndarray:
        """Provisional labels of orbits that ended at ``state`` with these fates; -1 where that is no attractor."""
        labels = np.full(len(state), NO_ATTRACTOR)
        kinds = {(int(f), int(p)) for f, p in zip(fate, period, strict=True) if f in ATTRACTING}
        for kind in sorted(kinds):
            rows = np.flatnonzero((fate == kind[0]) & (period == kind[1]))
            if kind[0] in APERIODIC:
                labels[rows] = self._aperiodic(state[rows], *kind)
            else:
                labels[rows] = self._periodic(self._refined(state[rows], travelled[rows], max(kind[1], 1)), *kind)
        return self.roots(labels)

    def _parameter(self, count: int) -> np.ndarray:
        return np.zeros(count)

    def _parameters_of(self, states: np.ndarray) -> np.ndarray:
        flat = states.reshape(-1, states.shape[-1])
        theta = on_lanes(
            ParametersAt(self.family), (self._parameter(len(flat)), flat), block_size(16 * flat.shape[1])
        )
        return np.asarray(theta).reshape(*states.shape[:-1], -1)

    def orbit(self, state: np.ndarray, length: int) -> np.ndarray:
        """The first ``length`` states of the orbits of the rows of ``state``."""
        block = block_size(8 * state.shape[1] * length, largest=64)
        return np.asarray(on_lanes(Orbit(self.family, length), (self._parameter(len(state)), state), block))

    def _refined(self, state: np.ndarray, travelled: np.ndarray, period: int) -> Orbits:
        state = state.astype(np.float64)
        parameter = self._parameter(len(state))
        if state.shape[1] > DENSE_LIMIT:
            states = self.orbit(state, period)
            return Orbits(states, self._parameters_of(states), np.zeros(len(state), int))
        length = travelled
        if period > 1:
            length = near_period(self.family, parameter, state, np.full(len(state), period))[1]
        cycles = without_rounding(refine_cycles(self.family, parameter, state, period, length))
        smooth = np.isfinite(cycles.jacobian).all(axis=(1, 2))
        states = np.where(cycles.converged[:, None, None], cycles.points, self.orbit(state, period))
        neutral = np.full(len(state), state.shape[1])
        # Where Newton's method fails at what was judged a minimum, nothing is known of its directions.
        known = cycles.converged & smooth
        neutral[known] = [len(basis) for basis in for_each(null_basis, cycles.jacobian[known])]
        return Orbits(states, self._parameters_of(states), neutral)

    def _add(self, fate: int, period: int, states: np.ndarray, points: np.ndarray, neutral: int) -> int:
        self.known.append(Known(fate, period, states, points, neutral, self.images(points)))
        self.parents.append(len(self.parents))
        return len(self.parents) - 1

    def images(self, points: np.ndarray) -> list[np.ndarray]:
        """``points`` and their images under all products of the symmetries (each distinct one once)."""
        found = images_under(self.symmetries, points, self._slack(points))
        for image in found[1:]:
            self._check_symmetry(points, image)
        return found

    def _check_symmetry(self, points: np.ndarray, moved: np.ndarray) -> None:
        here, there = (loss_and_gradient(self.map.objective, theta) for theta in (points, moved))
        size = np.maximum(np.abs(here[0]), np.abs(there[0]))
        steepest = np.maximum(np.linalg.norm(here[1], axis=1), np.linalg.norm(there[1], axis=1))
        slack = steepest * self._slack(points) + 1e-12 * self.scale**2
        if np.any(~(np.abs(here[0] - there[0]) <= 1e-8 * size + slack)):
            raise ValueError(
                f"a symmetry changes the loss from {here[0][0]:.6g} to {there[0][0]:.6g} at a point of an "
                "attractor: symmetries must be functions theta -> theta with L(g(theta)) = L(theta)"
            )

    def _slack(self, points: np.ndarray) -> float:
        return float(self.tolerance * self.scale + 1e-12 * np.abs(points).max())

    def _union(self, label: int, other: int) -> None:
        first, second = sorted((self.root(label), self.root(other)))
        self.parents[second] = first

    def _periodic(self, orbits: Orbits, fate: int, period: int) -> np.ndarray:
        """Labels of fixed points and cycles: first those that coincide, then those linked along a family."""
        labels = np.full(len(orbits.states), NO_ATTRACTOR)
        mine = [label for label, known in enumerate(self.known) if (known.fate, known.period) == (fate, period)]
        for label in mine:
            self._mark_equal(labels, orbits, label)
        new: list[int] = []
        extended = np.flatnonzero((labels < 0) & (orbits.neutral > 0))
        for chosen in extended[_spread(orbits.parameters[extended, 0], NET)]:
            if labels[chosen] < 0:
                new.append(self._new(labels, orbits, int(chosen), fate, period))
        # Of a family only so many points are kept; others belong to the nearest of them if they are linked to it.
        rest = extended[labels[extended] < 0]
        family = [label for label in (*mine, *new) if self.known[label].neutral > 0]
        if rest.size:
            first = np.stack([self.known[label].points[0] for label in family])
            nearest = np.array(family)[cKDTree(first).query(orbits.parameters[rest, 0])[1]]
            linked = self._linked(orbits.take(rest), nearest)
            labels[rest[linked]] = nearest[linked]
        for row in np.flatnonzero(labels < 0):
            if labels[row] < 0:
                added = self._new(labels, orbits, int(row), fate, period)
                if orbits.neutral[row] > 0:
                    new.append(added)
                    family.append(added)
        self._link_neighbours(new, family)
        return labels

    def _new(self, labels: np.ndarray, orbits: Orbits, row: int, fate: int, period: int) -> int:
        label = self._add(fate, period, orbits.states[row], orbits.parameters[row], int(orbits.neutral[row]))
        self._mark_equal(labels, orbits, label)
        labels[row] = label
        return label

    def _mark_equal(self, labels: np.ndarray, orbits: Orbits, label: int) -> None:
        open_ = np.flatnonzero(labels < 0)
        for image in self.known[label].images:
            gaps = orbits.parameters[open_, 0][:, None] - image[None]
            near = np.linalg.norm(gaps, axis=2).min(axis=1) <= self._slack(image)
            labels[open_[near]] = label
            open_ = open_[~near]

    def _link_neighbours(self, new: list[int], family: list[int]) -> None:
        """Union of the new points of a family with those near, and of components by their shortest gaps."""
        if not new or len(family) < 2:
            return
        first = np.stack([self.known[label].points[0] for label in family])
        images = np.concatenate([image[:1] for label in family for image in self.known[label].images])
        owner = np.array([label for label in family for _ in self.known[label].images])
        tree = cKDTree(images)
        pairs = set()
        for label in new:
            point = self.known[label].points[0]
            _, near = tree.query(point, k=min(NEIGHBOURS + 1, len(images)))
            pairs |= {(label, int(index)) for index in np.atleast_1d(near) if owner[index] != label}
        self._try(sorted(pairs), images, owner)
        for _ in range(3):
            roots = np.array([self.root(label) for label in family])
            parts = np.unique(roots)
            gaps = []
            for i, part in enumerate(parts):
                here = np.flatnonzero(roots == part)
                distance, nearest = cKDTree(first[here]).query(images)
                image_roots = np.array([self.root(int(label)) for label in owner])
                for other in parts[i + 1 :]:
                    there = np.flatnonzero(image_roots == other)
                    closest = there[np.argmin(distance[there])]
                    gaps.append((float(distance[closest]), family[here[nearest[closest]]], int(closest)))
            gaps.sort()
            if not self._try([(label, index) for _, label, index in gaps[:NET]], images, owner):
                break

    def _try(self, pairs: list[tuple[int, int]], images: np.ndarray, owner: np.ndarray) -> bool:
        pairs = [(label, index) for label, index in pairs if self.root(label) != self.root(int(owner[index]))]
        if not pairs:
            return False
        # An image under a symmetry is linked as a point of its own: symmetric sets of minima may be one.
        states = np.stack([self.known[label].states[0] for label, _ in pairs])
        ends = np.stack(
            [self._state_near(int(owner[index]), images[index], states[k]) for k, (_, index) in enumerate(pairs)]
        )
        period = max(self.known[pairs[0][0]].period, 1)
        neutral = np.array([min(self.known[a].neutral, self.known[int(owner[i])].neutral) for a, i in pairs])
        linked = self._chords(states, ends, period, neutral)
        for (label, index), same in zip(pairs, linked, strict=True):
            if same:
                self._union(label, int(owner[index]))
        return bool(linked.any())

    def _state_near(self, label: int, image: np.ndarray, state: np.ndarray) -> np.ndarray:
        known = self.known[label]
        if np.array_equal(image, known.points[0]) or known.states.shape[1] != len(image):
            return known.states[np.argmin(np.linalg.norm(known.states - state, axis=1))]
        return image

    def _linked(self, orbits: Orbits, labels: np.ndarray) -> np.ndarray:
        first = orbits.states[:, 0]
        ends = np.stack(
            [
                self._state_near(int(label), self.known[label].points[0], state)
                for label, state in zip(labels, first, strict=True)
            ]
        )
        return self._chords(first, ends, orbits.states.shape[1], orbits.neutral)

    def _chords(self, first: np.ndarray, last: np.ndarray, period: int, neutral: np.ndarray) -> np.ndarray:
        """Whether each pair of points is joined by a way along the family that they lie on.

        The way is the chord, its inner points brought back to the family by Newton's method with the null
        directions left out, and split until it is straight. For minima the loss must nowhere be larger than at
        the ends.
        """
        answer = np.ones(len(first), bool)
        owner = np.arange(len(first))
        a, b, nullity = first, last, neutral
        for depth in range(DEPTH):
            length = np.linalg.norm(b - a, axis=1)
            long = (length > self._slack(first)) & answer[owner]
            a, b, owner, nullity, length = a[long], b[long], owner[long], nullity[long], length[long]
            if not owner.size:
                return answer
            inner = a + SPLIT * (b - a)
            point = inner
            for _ in range(2):
                cycles = refine_cycles(self.family, self._parameter(len(point)), point, period, length, nullity)
                point = cycles.points[:, 0]
            moved = np.linalg.norm(point - inner, axis=1)
            good = cycles.converged & (moved <= LOST * length)
            if period == 1:
                good &= self._no_higher(point, a, b)
            else:
                good &= np.linalg.norm(cycles.defect, axis=1) <= 1e-8 * length
            answer[owner[~good]] = False
            curved = answer[owner] & ((moved > STRAIGHT * length) | (depth + 1 < LEAST_DEPTH))
            point, a, b, owner, nullity = (values[curved] for values in (point, a, b, owner, nullity))
            a, b = np.concatenate([a, point]), np.concatenate([point, b])
            owner, nullity = np.concatenate([owner, owner]), np.concatenate([nullity, nullity])
        answer[owner] = False
        return answer

    def _no_higher(self, point: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        theta, at_a, at_b = (self._parameters_of(states) for states in (point, a, b))
        objective = self.map.objective
        loss, loss_a, loss_b = (loss_and_gradient(objective, where)[0] for where in (theta, at_a, at_b))
        highest = np.maximum(loss_a, loss_b)
        curvature = row_sum_norms(hessians_at(objective, theta))
        error = POSITION_ERROR * np.linalg.norm(theta, axis=1)
        return np.asarray(loss <= highest + 64 * np.finfo(float).eps * np.abs(highest) + curvature * error**2)

    def _aperiodic(self, state: np.ndarray, fate: int, period: int) -> np.ndarray:
        """Labels of aperiodic orbits: that of one already met if they stay as near to it as it to itself."""
        labels = np.full(len(state), NO_ATTRACTOR)
        state = state.astype(np.float64)
        glimpses = self._parameters_of(self.orbit(state, GLIMPSE))
        for row, glimpse in enumerate(glimpses):
            for label, trees in self.trees.items():
                if self.known[label].fate == fate and any(_is_near(glimpse, *tree) for tree in trees):
                    labels[row] = label
                    break
            else:
                states = self.orbit(state[row : row + 1], CLOUD)[0]
                labels[row] = label = self._add(fate, period, states, self._parameters_of(states), 0)
                self.trees[label] = [_with_spacing(image) for image in self.known[label].images]
        return labels


def _with_spacing(cloud: np.ndarray) -> tuple[cKDTree, float]:
    """The points of an orbit for queries, and their typical distance: of its second half from its first.

    Halves in time: every other state may be confined to a part of the set.
    """
    half = len(cloud) // 2
    spacing = float(np.median(cKDTree(cloud[:half]).query(cloud[half:])[0]))
    return cKDTree(cloud), spacing + 1e-12 * float(np.abs(cloud).max())


def _is_near(points: np.ndarray, tree: cKDTree, spacing: float) -> bool:
    return bool(np.median(tree.query(points)[0]) <= CLOSE * spacing)


def _same_cloud(cloud: np.ndarray, other: np.ndarray) -> bool:
    """Whether two sampled orbits fill the same set: neighbours in the other are as near as in the orbit itself."""
    for one, two in ((cloud, other), (other, cloud)):
        # Halves in time: every other state may be confined to a part of the set.
        early = cKDTree(one[: len(one) // 2])
        spacing = np.median(early.query(one[len(one) // 2 :])[0])
        gap = np.median(early.query(two)[0])
        if gap > CLOSE * spacing + 1e-12 * np.abs(one).max():
            return False
    return True


def _spread(points: np.ndarray, number: int) -> list[int]:
    """At most ``number`` of the points, each the farthest from those before it."""
    if len(points) <= number:
        return list(range(len(points)))
    chosen, distance = [0], np.linalg.norm(points - points[0], axis=1)
    while len(chosen) < number:
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen


def checked_tolerance(tolerance: Any, name: str = "tolerance") -> float:
    """A tolerance as a float between 0 and 1."""
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float, np.number)) or not 0 < tolerance < 1:
        raise ValueError(f"{name} must be a number between 0 and 1, got {tolerance!r}")
    return float(tolerance)


def numbered(registry: Registry, labels: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Final identities 1, 2, ... by falling share (ties: by the first start), and the roots in that order."""
    roots = registry.roots(labels)
    found, first, counts = np.unique(roots[roots >= 0], return_index=True, return_counts=True)
    order = [int(found[k]) for k in np.lexsort((first, -counts))]
    table = np.full(len(registry.parents) + 1, NO_ATTRACTOR, np.int32)
    for number, root in enumerate(order, start=1):
        table[root] = number
    return table[roots], order


def described(registry: Registry, identity: np.ndarray, order: list[int], confidence: float) -> xr.Dataset:
    """The variables over ``id``: what each attractor is, its points, and its share of the starts."""
    members: dict[int, list[Known]] = {}
    for label, known in enumerate(registry.known):
        members.setdefault(registry.root(label), []).append(known)
    groups = [members[root] for root in order]
    points = [_points_of(group) for group in groups]
    most = max((len(one) for one in points), default=1)
    dim = registry.map.objective.dim
    padded = np.full((len(order), most, dim), np.nan)
    for row, one in zip(padded, points, strict=True):
        row[: len(one)] = one
    counts = [int(np.sum(identity == number)) for number in range(1, len(order) + 1)]
    intervals = [binomtest(k, identity.size).proportion_ci(confidence, method="wilson") for k in counts]
    fates = [group[0].fate for group in groups]
    dataset = xr.Dataset(
        {
            "attractor_fate": ("id", np.array(fates, np.int8)),
            "attractor_period": ("id", np.array([group[0].period for group in groups], np.int32)),
            "neutral_dimension": ("id", np.array([group[0].neutral for group in groups], np.int32)),
            "n_points": ("id", np.array([len(one) for one in points], np.int32)),
            "points": (("id", "sample", "component"), padded),
            "share": ("id", np.array(counts) / identity.size),
            "share_lower": ("id", np.array([float(interval.low) for interval in intervals])),
            "share_upper": ("id", np.array([float(interval.high) for interval in intervals])),
        },
        coords={"id": np.arange(1, len(order) + 1)},
    )
    for name, attributes in ATTRIBUTES.items():
        dataset[name].attrs.update(attributes)
    for name in ("share", "share_lower", "share_upper"):
        dataset[name].attrs.update(
            status="estimated",
            confidence=confidence,
            method=f"Wilson score interval over {identity.size} starts, each on its own",
        )
    return dataset


def _points_of(group: list[Known]) -> np.ndarray:
    if len(group) == 1:
        every = -(-len(group[0].points) // POINTS_KEPT)
        return group[0].points[::every]
    return np.stack([known.points[0] for known in group[:: -(-len(group) // POINTS_KEPT)]])


ATTRIBUTES: dict[str, dict[str, Any]] = {
    "attractor_fate": {"long_name": "what the attractor is", "status": "computed", **flag_attributes(Fate)},
    "attractor_period": {
        "long_name": "minimal period of a cycle, otherwise 0",
        "status": "computed",
        "units": "steps",
    },
    "neutral_dimension": {
        "long_name": "neutral directions: the dimension of a set of minima, or of a family of cycles",
        "status": "computed",
    },
    "n_points": {"long_name": "number of points kept", "status": "computed"},
    "points": {
        "long_name": "parameters on the attractor: a minimum, a cycle in its order, or a sample of a larger set",
        "status": "computed",
    },
    "share": {"long_name": "share of the starts that end on the attractor", "units": "1"},
    "share_lower": {"long_name": "lower end of its confidence interval", "units": "1"},
    "share_upper": {"long_name": "upper end of its confidence interval", "units": "1"},
    "id": {"long_name": "identity of the attractor"},
}
IDENTITY_ATTRIBUTES = {
    "long_name": "identity of the attractor, from 1; -1: none (diverged, saddle or undecided)",
    "status": "computed",
}


def attractors(
    map: Map,  # noqa: A002 - the name of the concept
    thetas: Any,
    max_steps: int = 10_000,
    *,
    symmetries: Sequence[Any] = (),
    tolerance: float = TOLERANCE,
    confidence: float = CONFIDENCE,
    progress: Callable[[int, int], None] | None = None,
    **criteria: Any,
) -> xr.Dataset:
    """The attractors that starts end on, each with its identity, its points and its share of the starts.

    Parameters
    ----------
    map
        ``GradientDescent(objective, step_size)`` or an `Optimiser`.
    thetas
        The starts, parameters of shape ``(starts, dim)``.
    max_steps
        The horizon.
    symmetries
        Functions ``theta -> theta``, or matrices, that leave the loss unchanged (sign flips, permutations).
        Attractors that they, or products of them, carry to one another count as one.
    tolerance
        Distance below which refined fixed points and cycles are the same, relative to the diameter of the box
        that holds the starts and the ends of the bounded orbits.
    confidence
        Of each interval.
    progress
        Called as ``progress(finished, total)`` in starts, from time to time.
    **criteria
        ``step_tolerance``, ``period_tolerance``, ``max_period``, ``escape_radius``: see `Criteria`.

    Returns
    -------
    xarray.Dataset
        The result of `gdmap.ensemble` over ``start``, with ``attractor``, the identity (from 1, by falling
        share; -1: none), and over ``id``: ``attractor_fate``, ``attractor_period``, ``neutral_dimension``,
        ``points`` (over ``sample`` and ``component``, the first ``n_points`` of them), and ``share`` with
        ``share_lower`` and ``share_upper`` (status *estimated*: Wilson intervals, the starts taken as an
        independent sample of their law).

    Raises
    ------
    TypeError
        If ``map`` is no map, or a symmetry is none.
    ValueError
        For bad starts or tolerances, and for a symmetry that changes the loss.

    Notes
    -----
    *Same attractor.* The same fate and minimal period, and: for isolated minima and cycles, coincidence after
    Newton's method; for minima on a set of minima (and cycles on a family), a way along the set: the chord between
    two of the points, its inner points brought back to the set by Newton's method, bisected until its pieces are
    straight, the loss nowhere higher than at the ends. The search for such ways goes through nearest neighbours
    and then the shortest gaps, so that a connected set whose points lie far apart may get several identities; what
    was not found joined is never merged. A set counts as one attractor although part of it may be unstable at this
    step size. An aperiodic orbit is on an attractor already met if the median distance of its next 256 states from
    an orbit of 4096 states there is at most four times that of the halves of the latter. Parameters are compared,
    not the rest of the state of an optimiser.
    """
    if not isinstance(map, Map):
        raise TypeError(f"map must be a map such as GradientDescent(objective, step_size), got {map!r}")
    symmetries = checked_symmetries(symmetries)
    tolerance, confidence = checked_tolerance(tolerance), checked_tolerance(confidence, "confidence")
    starts = checked_starts(thetas, map.objective.dim)
    dataset = ensemble(map, starts, max_steps, progress=progress, **criteria)
    first = np.stack([np.asarray(map.initial_state(theta)) for theta in starts]).astype(np.float64)
    state, fate = dataset["state"].values, dataset["fate"].values
    bounded = state[np.isin(fate, ATTRACTING)].astype(np.float64)
    registry = Registry(map, extent(np.concatenate([first, bounded])), symmetries, tolerance)
    with np.errstate(over="ignore", invalid="ignore"):
        travelled = np.linalg.norm(state - first, axis=1)
    labels = registry.identify(state, travelled, fate, dataset["period"].values)
    identity, order = numbered(registry, labels)
    dataset["attractor"] = ("start", identity, IDENTITY_ATTRIBUTES)
    found = described(registry, identity, order, confidence).rename(component="parameter")
    dataset = dataset.merge(found, combine_attrs="override")
    dataset.attrs.update(tolerance=tolerance, scale=registry.scale)
    return dataset


def extent(points: np.ndarray) -> float:
    """The diameter of the box that holds the points."""
    return float(np.linalg.norm(points.max(axis=0) - points.min(axis=0)))

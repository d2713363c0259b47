"""Branches of periodic orbits and what branches off them, each followed once."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gdmap.continuation.branch import Branch
from gdmap.continuation.event import Event
from gdmap.continuation.follow import continue_orbit
from gdmap.continuation.switching import switch_branch
from gdmap.maps import Map, family_along
from gdmap.orbits.periodic_orbit import NoOrbitError, PeriodicOrbit
from gdmap.orbits.symmetries import Symmetry, images_under

# Orbits at one parameter value whose points are this close, relative to the size of the branch, are one orbit.
SAME = 1e-6
# An orbit between two points of a branch is nearer to their chord than this many times its length.
NEAR = 2.0


@dataclass(eq=False)
class Limb:
    """A branch, how many period doublings lie between it and a start, and the bifurcation it was born at."""

    branch: Branch
    generation: int
    born_at: int | None = None


@dataclass(eq=False)
class Fork:
    """A bifurcation: the limb it lies on, the limb that branches off there, or why that was not followed."""

    event: Event
    limb: int
    born: int | None = None
    not_followed: str = ""


@dataclass(eq=False)
class BranchTree:
    """Limbs and forks, and in sentences what could not be followed."""

    limbs: list[Limb] = field(default_factory=list)
    forks: list[Fork] = field(default_factory=list)
    not_followed: list[str] = field(default_factory=list)
    symmetries: Sequence[Symmetry] = ()

    def limb_through(self, value: float, points: np.ndarray) -> int | None:
        """The limb that an orbit, or its image under a symmetry, lies on."""
        for image in images_under(self.symmetries, points, SAME * float(np.abs(points).max())):
            for index, limb in enumerate(self.limbs):
                if limb.branch.period == len(points) and lies_on(limb.branch, value, image):
                    return index
        return None

    def known(self, branch: Branch) -> int | None:
        """The limb that a branch repeats: two orbits of it, apart from its ends and middle, lie on that limb."""
        n = len(branch.parameter)
        inside = {min(max(n // 3, 1), n - 1), min(max(2 * n // 3, 1), n - 1)}
        found = {self.limb_through(float(branch.parameter[i]), branch.points[i]) for i in inside}
        return found.pop() if len(found) == 1 else None

    def add(self, branch: Branch, generation: int, born_at: int | None = None) -> int:
        """A new limb with the bifurcations on it that are not known already."""
        index = len(self.limbs)
        self.limbs.append(Limb(branch, generation, born_at))
        for event in branch.events:
            known = self.fork_at(event)
            if known is None:
                self.forks.append(Fork(event, index))
                known = self.forks[-1]
            own, twice = event.period == branch.period, event.period < branch.period
            if own and self.limbs[known.limb].branch.period > event.period:
                # What was known only as the end of the branch of twice the period lies on this one.
                known.limb = index
            elif known.born is None and (twice or (event.kind == "branch-point" and known.limb != index)):
                known.born, known.not_followed = index, ""
        return index

    def fork_at(self, event: Event) -> Fork | None:
        """The bifurcation known already that an event is."""
        for fork in self.forks:
            other = fork.event
            if (other.kind, other.period) == (event.kind, event.period):
                size = float(np.abs(other.points).max()) + 1e-300
                scale = max(abs(other.parameter), abs(event.parameter))
                near = 10 * (event.error + other.error) + SAME * scale
                if abs(other.parameter - event.parameter) <= near and any(
                    same_up_to_phase(image, other.points, 1e3 * SAME * size)
                    for image in images_under(self.symmetries, event.points, SAME * size)
                ):
                    return fork
        return None


def lies_on(branch: Branch, value: float, points: np.ndarray) -> bool:
    """Whether an orbit is the one that a branch has at a parameter value, whatever its first point."""
    size = float(np.abs(branch.points).max())
    below = branch.parameter - value
    at = np.flatnonzero(below == 0)
    if any(same_up_to_phase(branch.points[i], points, SAME * size) for i in at):
        return True
    near = False
    for i in np.flatnonzero(below[:-1] * below[1:] < 0):
        share = below[i] / (below[i] - below[i + 1])
        one, other = branch.points[i], branch.points[i + 1]
        chord = float(np.linalg.norm(other - one))
        near |= same_up_to_phase((1 - share) * one + share * other, points, NEAR * chord + SAME * size)
    if not near:
        return False
    try:
        orbits = branch.at(value)
    except NoOrbitError:
        # Next to a bifurcation: no nearer look is possible.
        return True
    return any(same_up_to_phase(orbit.points, points, SAME * size) for orbit in orbits)


def same_up_to_phase(a: np.ndarray, b: np.ndarray, close: float) -> bool:
    """Whether two orbits have the same points up to a cyclic shift."""
    return a.shape == b.shape and any(
        float(np.abs(np.roll(a, -shift, axis=0) - b).max()) <= close for shift in range(len(a))
    )


def grow(
    starts: Sequence[PeriodicOrbit],
    parameter: str | Callable[[Any], Map],
    bounds: tuple[float, float],
    value: float | None,
    *,
    doublings: int,
    branch_points: bool,
    symmetries: Sequence[Symmetry],
    max_branches: int,
    controls: dict[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> BranchTree:
    """All branches through the starts, and through what branches off them up to so many period doublings."""
    tree = BranchTree(symmetries=tuple(symmetries))
    waiting: deque[int] = deque()
    done, total = 0, len(starts)

    def enter(branch: Branch, generation: int, born_at: int | None = None) -> int:
        nonlocal total
        first = len(tree.forks)
        index = tree.add(branch, generation, born_at)
        waiting.extend(range(first, len(tree.forks)))
        total += len(tree.forks) - first
        return index

    def report() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    for orbit in starts:
        present = family_along(orbit.map, parameter, value)[1]
        where = f"the start of period {orbit.period} at {present:.10g}"
        if tree.limb_through(present, orbit.points) is None:
            if len(tree.limbs) >= max_branches:
                tree.not_followed.append(f"{where}: max_branches={max_branches} were followed; raise it")
            else:
                try:
                    branch = continue_orbit(orbit, parameter, bounds, value=value, **controls)
                except ValueError as error:
                    tree.not_followed.append(f"{where}: {error}")
                else:
                    if tree.known(branch) is None:
                        enter(branch, 0)
        report()
    while waiting:
        number = waiting.popleft()
        fork = tree.forks[number]
        if fork.born is None:
            fork.not_followed = refusal(tree, fork, doublings, branch_points, max_branches)
        if fork.born is None and not fork.not_followed:
            doubling = fork.event.kind == "period-doubling"
            try:
                branch = switch_branch(fork.event)
            except ValueError as error:
                fork.not_followed = str(error)
            else:
                known = tree.known(branch)
                if known is None:
                    known = enter(branch, tree.limbs[fork.limb].generation + doubling, number)
                fork.born = known
        report()
    return tree


def refusal(tree: BranchTree, fork: Fork, doublings: int, branch_points: bool, max_branches: int) -> str:
    """Why nothing is followed from a bifurcation although nothing was tried; empty if it is."""
    kind = fork.event.kind
    if kind == "period-doubling" and tree.limbs[fork.limb].generation >= doublings:
        return f"not asked for: doublings={doublings}"
    if kind == "branch-point" and not branch_points:
        return "not asked for: branch_points=False"
    if kind in ("period-doubling", "branch-point") and len(tree.limbs) >= max_branches:
        return f"max_branches={max_branches} were followed; raise it"
    return ""

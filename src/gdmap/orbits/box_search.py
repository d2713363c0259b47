"""The search for all periodic orbits in a box: boxes that wait, orbits proved, and what is left.

`gdmap.orbits.branch_and_prune` explains the method.
"""

from collections.abc import Callable

import numpy as np
from scipy.sparse.csgraph import connected_components

from gdmap.orbits.branch_and_prune import CycleEnclosure
from gdmap.orbits.enclosing import (
    Between,
    Contraction,
    EnclosedMap,
    inside_radius,
    krawczyk,
    newton_step,
    outside_radius,
    preimage,
    radius_of,
)

Array = np.ndarray

# Boxes narrower than this share of the whole are left for later, so that one orbit that is hard to resolve, or a
# family, does not use up what the others need; what is left after the last stage is unresolved.
STAGES = tuple(2.0**-k for k in range(4, 45, 4))
# A stage that leaves so many times more boxes than the one before, and more than MANY, creeps along a family, or
# has come down to the rounding errors; asked only of boxes narrower than FINE.
GROWTH, MANY, FINE = 4, 500, 2.0**-24
# Numbers in the matrices that are worked on at once.
WORKING_SET = 2**19
# Below this bound of |I - Y DF| Newton's method is tried.
CONTRACTING = 0.9
NEWTON_STEPS = 5
# Contractions of a small box proved to hold an orbit: the widths shrink quadratically, down to rounding.
REFINEMENTS = 3
# Half-widths of the boxes tested round a point found, in shares of the whole box (at least what is to be covered).
SHARES = (1e-3, 1e-5, 1e-7, 1e-9, 1e-11, 1e-13)
# A box is halved unless a contraction made it smaller than this share, in the sum of its widths.
SHRUNK = 0.8
# Newton's step, as a share of the whole, and singular values of DF, relative to the largest (or to 1), that count
# as zero where a degenerate orbit is described. At a fold Newton's method comes no nearer than the root of the
# precision.
SETTLED, NULL = 1e-5, 1e-4
# Unresolved boxes that touch are merged as long as there are no more.
MOST_MERGED = 2_000


class Search:
    """The boxes that wait, the orbits found, and what is left."""

    def __init__(self, enclosed: EnclosedMap, period: int, lower: Array, upper: Array) -> None:
        self.enclosed, self.period = enclosed, period
        self.lower, self.upper = lower, upper
        self.scale = np.where(upper > lower, upper - lower, 1.0)
        self.found: list[CycleEnclosure] = []
        self.keys = np.empty((0, period, enclosed.dim))  # the points of all found, gone round as often as needed
        self.radii, self.unique = self.keys.copy(), self.keys.copy()
        self.boxes = 0
        start = (
            np.broadcast_to(lower, (1, period, enclosed.dim)),
            np.broadcast_to(upper, (1, period, enclosed.dim)),
        )
        self.waiting: list[tuple[Array, Array]] = [(start[0].copy(), start[1].copy())]
        self.later: list[tuple[Array, Array]] = []
        self.chunk = max(16, WORKING_SET // (period * enclosed.dim) ** 2)
        self.chunk = min(self.chunk, max(64, 2**14 // period))

    def run(self, max_boxes: int, progress: Callable[[int, int, int], None] | None) -> str:
        """Work off all boxes, stage by stage; the reason why some are left, if there is one to be named now."""
        before = 0
        for number, limit in enumerate(STAGES):
            while self.waiting:
                if self.boxes >= max_boxes:
                    return f"max_boxes={max_boxes} were examined; allow more, or choose a smaller box."
                self.advance(limit)
                if progress is not None:
                    progress(self.boxes, sum(len(low) for low, _ in self.waiting), len(self.found))
            left = sum(len(low) for low, _ in self.later)
            if limit <= FINE and left > MANY and left > GROWTH * before:
                return f"boxes of {limit:.0e} of the whole could not be told apart."
            before = left
            if number + 1 < len(STAGES):
                self.waiting, self.later = self.later, []
        return ""

    def advance(self, limit: float) -> None:
        """Examine some of the waiting boxes."""
        lower, upper = self.taken()
        self.boxes += len(lower)
        before = np.sum((upper - lower) / self.scale, (1, 2))
        lower, upper, kept, bound, preference, turns = self.contracted(lower, upper)
        before = before[kept]
        done = np.zeros(len(lower), bool)
        near = np.flatnonzero(bound < CONTRACTING)
        if len(near):
            done[near] = self.prove(lower[near], upper[near], turns[near])
        lower, upper, before, preference = lower[~done], upper[~done], before[~done], preference[~done]
        width = (upper - lower) / self.scale
        middle = lower / 2 + upper / 2
        cannot = ~np.any((lower < middle) & (middle < upper), (1, 2))
        narrow = (np.max(width, (1, 2)) <= limit) | cannot
        if np.any(narrow):
            self.later.append((lower[narrow], upper[narrow]))
        again = ~narrow & (np.sum(width, (1, 2)) < SHRUNK * before)
        if np.any(again):
            self.waiting.append((lower[again], upper[again]))
        split = ~narrow & ~again
        if np.any(split):
            self.waiting.append(halved(lower[split], upper[split], preference[split]))

    def taken(self) -> tuple[Array, Array]:
        """Boxes off the end of the list."""
        parts, count = [], 0
        while self.waiting and count < self.chunk:
            low, high = self.waiting.pop()
            room = self.chunk - count
            if len(low) > room:
                self.waiting.append((low[:-room], high[:-room]))
                low, high = low[-room:], high[-room:]
            parts.append((low, high))
            count += len(low)
        return np.concatenate([low for low, _ in parts]), np.concatenate([high for _, high in parts])

    def contracted(self, lower: Array, upper: Array) -> tuple[Array, ...]:
        """The boxes made smaller, and those that are empty left out.

        Returns
        -------
        lower, upper, kept, bound, preference, turns
            ``kept`` numbers those that are left; ``bound`` is one of ``|I - Y DF|`` (infinite where the turns on a
            torus are not known); halving begins at the coordinate with the largest ``preference``, shape
            ``(k, p, d)``.
        """
        kept = np.arange(len(lower))
        lower, upper = ordered(lower, upper)
        slopes = self.enclosed.jacobian(lower, upper)
        low, high = self.enclosed.image(lower, upper, slopes)
        turns, impossible = self.enclosed.turns(low, high, lower, upper)
        if len(self.enclosed.angles):
            low, high = self.enclosed.turned(Between(low, high), turns)
        lower = np.fmax(lower, np.roll(low, 1, 1))
        upper = np.fmin(upper, np.roll(high, 1, 1))
        lower, upper = ordered(lower, upper)
        left = np.all(lower <= upper, (1, 2)) & ~impossible
        lower, upper, kept, slopes, turns = lower[left], upper[left], kept[left], slopes.take(left), turns[left]
        centre = np.clip(lower / 2 + upper / 2, lower, upper)
        at_centre = self.enclosed.value(centre, centre, turns)
        lower, upper = preimage(lower, upper, centre, at_centre, slopes)
        lower, upper = ordered(lower, upper)
        left = np.all(lower <= upper, (1, 2))
        lower, upper, kept, slopes, turns = lower[left], upper[left], kept[left], slopes.take(left), turns[left]
        centre, at_centre = centre[left], at_centre.take(left)
        if not len(lower):
            return lower, upper, kept, np.empty(0), lower, turns
        result = krawczyk(lower, upper, centre, at_centre, slopes)
        width = upper - lower
        preference = result.roughness + 1e-3 * width / self.scale
        lower, upper = np.fmax(lower, result.lower), np.fmin(upper, result.upper)
        lower, upper = ordered(lower, upper)
        left = np.all(lower <= upper, (1, 2))
        bound = np.where(np.any(np.isnan(turns), (1, 2)), np.inf, result.bound)
        return lower[left], upper[left], kept[left], bound[left], preference[left], turns[left]

    def prove(self, lower: Array, upper: Array, turns: Array) -> Array:
        """Which boxes lie in a box that is proved to hold exactly one orbit; these orbits are recorded."""
        centre, converged = self.refined(lower / 2 + upper / 2, turns)
        reach = 1.1 * np.maximum(np.abs(lower - centre), np.abs(upper - centre))
        size = np.maximum(self.scale, np.abs(centre))
        done = np.zeros(len(lower), bool)
        unique, low, high = (np.empty_like(lower) for _ in range(3))
        # Large boxes first: what is proved unique in one need not be looked at again.
        for share in SHARES:
            chosen = np.flatnonzero(converged & ~done)
            if not len(chosen):
                break
            radius = np.maximum(reach[chosen], share * size[chosen])
            result = self.test(centre[chosen], radius, turns[chosen])
            proved = chosen[result.proves]
            done[proved] = True
            unique[proved] = outside_radius(centre[proved], radius[result.proves])
            low[proved], high[proved] = result.lower[result.proves], result.upper[result.proves]
        if not np.any(done):
            return done
        centre, unique, low, high = centre[done], unique[done], low[done], high[done]
        low, high = self.tightened(centre, size[done], unique, low, high, turns[done])
        middle = np.clip(low / 2 + high / 2, low, high)
        rad = radius_of(middle, low, high)
        # What is unique round the centre is so, in a smaller box, round the middle.
        unique = np.maximum(inside_radius(centre, unique, middle), rad)
        for i, box in enumerate(np.flatnonzero(done)):
            done[box] = self.record(middle[i], rad[i], unique[i])
        return done

    def tightened(
        self, centre: Array, size: Array, unique: Array, low: Array, high: Array, turns: Array
    ) -> tuple[Array, Array]:
        """Small boxes that hold the orbits which are alone within ``unique`` of these centres.

        An orbit proved to exist in a small box inside that of uniqueness is the same orbit.
        """
        wide = np.arange(len(low))
        for share in reversed(SHARES):
            radius = share * size[wide]
            result = self.test(centre[wide], radius, turns[wide])
            proved = result.proves & np.all(radius * (1 + 1e-15) <= unique[wide], (1, 2))
            low[wide[proved]], high[wide[proved]] = result.lower[proved], result.upper[proved]
            wide = wide[~proved]
            if not len(wide):
                break
        for _ in range(REFINEMENTS):
            middle = np.clip(low / 2 + high / 2, low, high)
            slopes = self.enclosed.jacobian(low, high)
            result = krawczyk(low, high, middle, self.enclosed.value(middle, middle, turns), slopes)
            low, high = np.fmax(low, result.lower), np.fmin(high, result.upper)
        return low, high

    def refined(self, centre: Array, turns: Array) -> tuple[Array, Array]:
        """Newton's method in floating point, and whether it stayed finite."""
        for _ in range(NEWTON_STEPS):
            centre = np.where(np.isfinite(centre), centre, 0.0)
            slopes, value = self.enclosed.jacobian(centre, centre), self.enclosed.value(centre, centre, turns)
            step, _ = newton_step(centre, value, slopes)
            centre = centre - step
        return np.where(np.isfinite(centre), centre, 0.0), np.all(np.isfinite(centre), (1, 2))

    def test(self, centre: Array, radius: Array, turns: Array) -> Contraction:
        """Krawczyk's operator on boxes round these centres."""
        low, high = centre - radius, centre + radius
        slopes = self.enclosed.jacobian(low, high)
        return krawczyk(low, high, centre, self.enclosed.value(centre, centre, turns), slopes)

    def record(self, mid: Array, rad: Array, unique: Array) -> bool:
        """Add an orbit, unless it is known or lies outside the box; whether that could be decided."""
        if np.any(mid + rad < self.lower) or np.any(mid - rad > self.upper):
            return True
        p = self.period
        for turn in range(p):
            # One of the known orbits, gone through from another point?
            turned, turned_rad = np.roll(mid, -turn, 0), np.roll(rad, -turn, 0)
            distance = np.abs(self.keys - turned)
            meets = np.all(distance * (1 - 1e-15) <= self.radii + turned_rad, (1, 2))
            if np.any(meets):
                within = np.all((distance + turned_rad) * (1 + 1e-15) <= self.unique, (1, 2))
                turned_unique = np.roll(unique, -turn, 0)
                holds = np.all((distance + self.radii) * (1 + 1e-15) <= turned_unique, (1, 2))
                return bool(np.any(within | holds))
        minimal = p
        for turn in range(1, p):
            if p % turn:
                continue
            distance = np.abs(np.roll(mid, -turn, 0) - mid)
            if np.all((distance + np.roll(rad, -turn, 0)) * (1 + 1e-15) <= unique):
                minimal = turn
                break
            if np.all(distance * (1 - 1e-15) <= rad + np.roll(rad, -turn, 0)):
                return False
        self.keys = np.concatenate([self.keys, mid[None]])
        self.radii = np.concatenate([self.radii, rad[None]])
        self.unique = np.concatenate([self.unique, unique[None]])
        first = int(np.argmax(mid[:minimal, 0]))
        rounds = [np.roll(part, -first, 0)[:minimal] for part in (mid, rad)]
        # What is unique is the orbit gone round p / minimal times.
        narrowest = np.roll(unique.reshape(-1, minimal, unique.shape[-1]).min(0), -first, 0)
        inside = np.all(
            (np.nextafter(mid - rad, -np.inf) >= self.lower) & (np.nextafter(mid + rad, np.inf) <= self.upper)
        )
        self.found.append(CycleEnclosure(rounds[0], rounds[1], narrowest, bool(inside)))
        return True

    def observed(self, lower: Array, upper: Array) -> str:
        """What floating point finds in the boxes that are left, which is no proof."""
        some = np.unique(np.linspace(0, len(lower) - 1, 50).astype(int))
        centre = lower[some] / 2 + upper[some] / 2
        for _ in range(4 * NEWTON_STEPS):
            turns = self.enclosed.turns_near(centre)
            slopes, value = self.enclosed.jacobian(centre, centre), self.enclosed.value(centre, centre, turns)
            step, derivative = newton_step(centre, value, slopes, pseudo=True)
            # What Newton's method makes of a centre far from any orbit is not asked.
            centre = np.clip(np.where(np.isfinite(step), centre - step, centre), self.lower, self.upper)
        size = np.max(np.abs(step) / self.scale, (1, 2))
        singular = np.linalg.svd(derivative, compute_uv=False)
        found = (size < SETTLED) & (singular[:, -1] < NULL * np.maximum(singular[:, 0], 1))
        text = f"{len(lower)} box{'es are' if len(lower) > 1 else ' is'} left, "
        if np.any(found):
            first = int(np.argmax(found))
            return text + (
                f"and near x_0 = {centre[first, 0].tolist()} floating point finds an orbit with a multiplier 1 "
                f"(of the map applied {self.period} time{'s' if self.period > 1 else ''}): a fold, a bifurcation, "
                "or a family of orbits, whose number cannot be proved so"
            )
        return text + f"the first with its centre at x_0 = {centre_of(lower, upper)}"

    def unresolved(self) -> tuple[Array, Array]:
        """The boxes that are left, those that touch merged; not those in which an orbit found is the only one."""
        rest = [*self.waiting, *self.later]
        shape = (0, self.period, self.enclosed.dim)
        lower = np.concatenate([low for low, _ in rest]) if rest else np.empty(shape)
        upper = np.concatenate([high for _, high in rest]) if rest else np.empty(shape)
        # (On a torus what is unique is so among orbits with the same turns.)
        if not 0 < len(lower) <= MOST_MERGED or len(self.enclosed.angles):
            return lower, upper
        covered = np.zeros(len(lower), bool)
        for turn in range(self.period):
            low, high = np.roll(lower, -turn, 1), np.roll(upper, -turn, 1)
            for mid, unique in zip(self.keys, self.unique, strict=True):
                reach = np.maximum(np.abs(low - mid), np.abs(high - mid)) * (1 + 1e-15)
                covered |= np.all(reach <= unique, (1, 2))
        lower, upper = lower[~covered], upper[~covered]
        if not len(lower):
            return lower, upper
        touch = np.ones((len(lower), len(lower)), bool)
        for i in range(self.period):
            for j in range(self.enclosed.dim):
                touch &= lower[:, None, i, j] <= upper[None, :, i, j]
        _, labels = connected_components(touch & touch.T, directed=False)
        groups = range(int(labels.max()) + 1)
        return (
            np.stack([lower[labels == group].min(0) for group in groups]),
            np.stack([upper[labels == group].max(0) for group in groups]),
        )


def centre_of(lower: Array, upper: Array) -> list[float]:
    """The first point of the centre of the first box."""
    return (lower[0, 0] / 2 + upper[0, 0] / 2).tolist()


def ordered(lower: Array, upper: Array) -> tuple[Array, Array]:
    """Only what begins at the point with the largest first coordinate (one of them, if several have it)."""
    lower, upper = lower.copy(), upper.copy()
    upper[:, 1:, 0] = np.minimum(upper[:, 1:, 0], upper[:, :1, 0])
    lower[:, 0, 0] = np.max(lower[:, :, 0], 1)
    return lower, upper


def halved(lower: Array, upper: Array, preference: Array) -> tuple[Array, Array]:
    """Two halves of each box, cut across the coordinate of largest preference that can be cut."""
    n = len(lower)
    middle = np.clip(lower / 2 + upper / 2, lower, upper)
    possible = (lower < middle) & (middle < upper)
    flat = np.where(possible, np.where(np.isnan(preference), np.inf, preference), -1.0).reshape(n, -1)
    axis, rows = np.argmax(flat, 1), np.arange(n)
    left, right = upper.copy(), lower.copy()
    left.reshape(n, -1)[rows, axis] = middle.reshape(n, -1)[rows, axis]
    right.reshape(n, -1)[rows, axis] = middle.reshape(n, -1)[rows, axis]
    return np.concatenate([lower, right]), np.concatenate([left, upper])

"""A periodic orbit of a map: its points, multipliers and stability, each with its error."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gdmap.engines.precision import as_floating
from gdmap.maps import ConstantFamily, Family, Map
from gdmap.orbits.cycles import Cycles, is_on_a_family
from gdmap.orbits.kinks import find_kink
from gdmap.orbits.multipliers import Stability, Verdict, leading_multipliers, multipliers_of, return_jacobian
from gdmap.orbits.shooting import Refined, defect_of, images, refine_orbit, size_of
from gdmap.spectra.dense import one_thread

# A degenerate cycle must be known this well, relative to its size.
DEGENERATE = 1e-3
# A point that may be farther than this share of its size from the exact one has not been located.
UNLOCATED = 1e-2
# Points closer than this share of their norm are one point.
SAME = 1e-11
# Multipliers found of orbits too large for dense Jacobians.
LEADING = 6


class NoOrbitError(ValueError):
    """No periodic orbit could be shown near the points given; the message says why and what to change."""


@dataclass(frozen=True, eq=False)
class PeriodicOrbit:
    """A periodic orbit ``x_0 -> x_1 -> ... -> x_{p-1} -> x_0`` of a map; status *computed*.

    Attributes
    ----------
    map
        The map ``G``.
    points
        The orbit in order, shape ``(period, state_dim)``, float64.
    multipliers
        Eigenvalues of ``DG^p`` along the orbit, complex, largest modulus first: all of them, or the leading ones
        where ``period * state_dim`` exceeds 2,000.
    multiplier_errors
        Their absolute errors: rounding of the product of the Jacobians and the error of the points, amplified by
        the conditioning of each eigenvalue.
    neutral_dimension
        The dimension of the family of periodic orbits that this one belongs to (as on a manifold of minima), 0 for
        an isolated one: verified by moving along the null directions of ``DG^p - I`` and solving again there. So
        many multipliers are 1, and say nothing about stability. ``None`` where that is not computed (more than
        2,000 unknowns).
    stability
        ``'stable'``: apart from the neutral ones, all multipliers lie inside the unit circle by three times their
        errors; ``'unstable'``: one lies outside; ``'marginal'``: neither can be told, or there are null
        directions along which no family could be verified.
    margin
        ``1 - |mu|`` of the largest multiplier that is not neutral: positive inside the unit circle.
    residual
        ``max_i |x_{i+1} - G(x_i)|`` (Euclidean norm), in the units of the state.
    error
        The estimated distance to the exact orbit in the product space: Newton's last correction and the rounding
        of the defect, divided by the smallest singular value.
    """

    map: Map = field(repr=False)
    points: np.ndarray
    multipliers: np.ndarray
    multiplier_errors: np.ndarray = field(repr=False)
    neutral_dimension: int | None
    stability: Stability
    margin: float
    residual: float
    error: float

    @property
    def period(self) -> int:
        """The minimal period."""
        return len(self.points)

    @property
    def stable(self) -> bool:
        """Whether nearby orbits are attracted to this one, or to its family."""
        return self.stability == "stable"

    @property
    def diameter(self) -> float:
        """The largest distance from the first point to another one; 0 for a fixed point."""
        return float(np.linalg.norm(self.points - self.points[0], axis=1).max())

    @property
    def parameters(self) -> np.ndarray:
        """The parameters ``theta`` at every point, shape ``(period, dim)``."""
        return np.stack([np.asarray(self.map.parameters(point)) for point in self.points])

    @property
    def losses(self) -> np.ndarray:
        """The loss at every point, shape ``(period,)``."""
        return np.array([float(self.map.objective.value(theta)) for theta in self.parameters])

    def explain(self) -> str:
        """The orbit in words."""
        name = "A fixed point" if self.period == 1 else f"A periodic orbit of minimal period {self.period}"
        known = f"within {self.error:.1e} of the exact one"
        if not np.isfinite(self.error):
            known = "degenerate: how far the exact one may be is not known"
        lines = [f"{name} of {self.map!r} (computed; {known})."]
        size = len(self.multipliers)
        shown = ", ".join(number(value) for value in self.multipliers[:6]) + (", ..." if size > 6 else "")
        largest = self.multiplier_errors.max(initial=0.0)
        lines.append(f"Multipliers {shown}, with errors up to {largest:.1e}.")
        if self.neutral_dimension:
            lines.append(
                f"It belongs to a family of dimension {self.neutral_dimension}: so many multipliers are 1 and say "
                "nothing about stability."
            )
        if self.stability == "stable":
            if self.neutral_dimension:
                who, which = "orbits nearby are attracted to the family", "the other multipliers"
            else:
                who, which = "orbits nearby are attracted to it", "all multipliers"
            lines.append(f"Stable: {who}; {which} lie inside the unit circle by {self.margin:.3g} or more.")
        elif self.stability == "unstable":
            lines.append(f"Unstable: a multiplier lies outside the unit circle by {-self.margin:.3g}.")
        else:
            lines.append("Marginal: a multiplier is too close to the unit circle to tell.")
        return "\n".join(lines)


def number(value: complex) -> str:
    """A complex number, real where it is."""
    if value.imag == 0:
        return f"{value.real:.10g}"
    return f"{value.real:.10g}{value.imag:+.10g}i"


def orbit_at(map_: Map, points: Any) -> PeriodicOrbit:
    """The periodic orbit that Newton's method finds from ``points``, reduced to its minimal period and judged.

    Parameters
    ----------
    map_
        Any map that does not depend on time.
    points
        A guess of the whole orbit in order, states of shape ``(p, state_dim)``, or ``(state_dim,)`` for a fixed
        point.

    Raises
    ------
    TypeError, ValueError
        For what is no map, a map that depends on time, or points of the wrong shape.
    NoOrbitError
        Where Newton's method finds no orbit, or the orbit has a point on a kink of the loss; the message says
        which of guess, residual, singular Jacobian or kink was the cause.
    """
    map_, guess = checked_orbit_map(map_), checked_guess(map_, points)
    family = ConstantFamily(map_)
    return judged(map_, family, 0.0, refined_to_minimal_period(family, 0.0, guess))


def checked_orbit_map(map_: Any) -> Map:
    """``map_`` itself, or an error if it has no periodic orbits."""
    if not isinstance(map_, Map):
        raise TypeError(f"map must be a map such as gdmap.GradientDescent(objective, step_size), got {map_!r}")
    if map_.depends_on_time:
        raise ValueError(
            f"{map_!r} depends on time (bias correction or a schedule), so it has no periodic orbits: "
            "use Optimiser(..., limit=True) for what it becomes after many steps"
        )
    return map_


def checked_guess(map_: Map, points: Any) -> np.ndarray:
    """Points of an orbit as float64 of shape ``(p, state_dim)``."""
    guess = np.asarray(as_floating(points), np.float64)
    guess = guess[None] if guess.ndim == 1 else guess
    if guess.ndim != 2 or guess.shape[1] != map_.state_dim or not len(guess):
        raise ValueError(
            f"points has shape {np.shape(points)}, expected (period, {map_.state_dim}): one state for each point "
            "(map.initial_state makes states from parameters)"
        )
    if not np.all(np.isfinite(guess)):
        raise ValueError("points holds values that are not finite")
    return guess


WHAT_TO_CHANGE = {
    "guess": "Newton's method does not go down from these points: the guess is too far from any such orbit",
    "residual": "Newton's method stalls before the defect vanishes: there is no orbit of this length near these "
    "points, or it is about to disappear in a fold",
    "singular Jacobian": "the equation is singular there: a bifurcation, or the guess is far off",
    "undefined": "the map or its derivative has no finite value there: the guess is too far out, or a point lies "
    "where the loss has no derivative",
}


def refined_to_minimal_period(family: Family, parameter: float, guess: np.ndarray, length: float = 0.0) -> Refined:
    """`refine_orbit`, again on a shorter orbit if the points found repeat; `NoOrbitError` if it fails."""
    with np.errstate(over="ignore", invalid="ignore"):
        refined = refine_orbit(family, parameter, guess, length=length)
        if refined.failure:
            refuse_kinks(family, parameter, guess)
            raise NoOrbitError(
                f"no orbit of period {len(guess)} was found from this guess: {WHAT_TO_CHANGE[refined.failure]} "
                f"(cause: {refined.failure}; defect {refined.defect:.3g})"
            )
        shorter = minimal_period(refined.points, refined.error)
        if shorter < len(guess):
            refined = refine_orbit(family, parameter, refined.points[:shorter], length=length)
            if refined.failure:
                raise NoOrbitError(
                    f"the points found repeat after {shorter} steps, but no orbit of that period was found: "
                    f"{WHAT_TO_CHANGE[refined.failure]} (cause: {refined.failure}; defect {refined.defect:.3g})"
                )
    if not refined.nullity and refined.linearised is not None:
        refuse_unlocated(refined)
    return refined


def minimal_period(points: np.ndarray, error: float) -> int:
    """The smallest divisor of the number of points after which they repeat, up to their error."""
    p = len(points)
    close = 100 * error + SAME * float(np.linalg.norm(points, axis=1).max())
    for divisor in range(1, p):
        if p % divisor == 0:
            distance = np.linalg.norm(np.roll(points, -divisor, axis=0) - points, axis=1).max()
            if distance <= close:
                return divisor
    return p


def judged(map_: Map, family: Family, parameter: float, refined: Refined) -> PeriodicOrbit:
    """The orbit with its multipliers and its stability."""
    points = refined.points
    refuse_kinks(family, parameter, points)
    residual = float(np.linalg.norm(defect_of(family, parameter, points), axis=1).max())
    if refined.linearised is None:
        values, errors = leading_multipliers(family, parameter, points, LEADING)
        neutral: int | None = None
        verdict = Verdict.of(values, errors, 0)
    else:
        values, errors = multipliers_of(family, parameter, points, refined.linearised, refined.error)
        neutral = verified_nullity(family, parameter, points, refined)
        verdict = Verdict.of(values, errors, neutral)
        if refined.nullity and not neutral:
            error = error_of_degenerate(refined)
            refuse_degenerate(points, error)
            refined = refined._replace(error=error)
            verdict = Verdict("unstable" if verdict.stability == "unstable" else "marginal", verdict.margin)
    return PeriodicOrbit(
        map_, points, values, errors, neutral, verdict.stability, verdict.margin, residual, refined.error
    )


def refuse_unlocated(refined: Refined) -> None:
    """`NoOrbitError` where the map stands still up to rounding, but the exact orbit may be far away."""
    size = max(size_of(refined.points), refined.length)
    if refined.error > UNLOCATED * size:
        raise NoOrbitError(
            f"degenerate: the map closes up to rounding ({refined.defect:.1g}) at these points, but so flat there "
            f"that an exact orbit, if there is one, may be {refined.error:.1g} away (as on a plateau or an "
            "exponential tail): no orbit is shown"
        )


def error_of_degenerate(refined: Refined) -> float:
    """How far the exact orbit may be where null directions are no family: rounding over the smallest value."""
    assert refined.linearised is not None
    with one_thread():
        smallest = float(np.linalg.svd(refined.linearised.matrix(), compute_uv=False)[-1])
    noise = max(refined.defect, refined.linearised.noise(refined.points))
    error = noise / smallest if smallest > 0 else np.inf
    # Farther than that nothing was looked at.
    return error if error <= float(np.linalg.norm(refined.points)) else np.inf


def refuse_degenerate(points: np.ndarray, error: float) -> None:
    """`NoOrbitError` for a cycle whose points are known no better than their distance from each other."""
    if len(points) > 1 and not error <= DEGENERATE * size_of(points):
        raise NoOrbitError(
            f"degenerate: from these points the map returns after {len(points)} steps up to rounding, but along "
            "null directions in which there is no family of orbits, so that no orbit is shown near them (they lie "
            "next to minima of sharpness 2 / step size, or at a bifurcation)"
        )


def verified_nullity(family: Family, parameter: float, points: np.ndarray, refined: Refined) -> int:
    """The number of null directions if they are tangent to a family of periodic orbits, otherwise 0."""
    k = refined.nullity or 0
    if not k or refined.linearised is None:
        return 0
    p, d = points.shape
    with one_thread():
        null = np.linalg.svd(refined.linearised.matrix())[2][-k:].reshape(k, p, d)
        basis = np.linalg.qr(null[:, 0].T)[0].T
    state = points[:1]
    for _ in range(p):
        state = images(family, parameter, state)
    product, defect = return_jacobian(refined.linearised.jacobians), state - points[0]
    one = Cycles(points[None], product[None], defect, np.zeros(1), np.ones(1, bool))
    # Of an orbit at the origin, found from nothing else, no length is known.
    scale = max(size_of(points), refined.length) or 1e-3
    on_family, _ = is_on_a_family(family, np.array([parameter]), one, [basis], np.array([scale]))
    return k if on_family[0] else 0


def refuse_kinks(family: Family, parameter: float, points: np.ndarray) -> None:
    """`NoOrbitError` if a point of the orbit lies on a kink: a jump of ``G`` or ``DG`` that stays however near."""
    kink = find_kink(family, parameter, points)
    if kink is not None:
        raise NoOrbitError(
            f"point {kink} of the orbit lies on a kink of the loss (a jump of the derivative of the map), where "
            "there are no multipliers to decide its stability: change the step size or the loss a little"
        )

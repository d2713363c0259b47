"""Proofs that a periodic orbit exists near a numerical one, is unique there, and is stable or unstable.

The orbit ``x_0, ..., x_{p-1}`` is a zero of ``F(x)_i = x_{i+1} - G(x_i)`` (indices mod p) in the product space
``R^{p n}``, which is far better conditioned than ``G^p(x) = x``. Let ``Y`` be any matrix near ``DF^{-1}``, ``d``
a bound of ``|Y F(c)|`` at the centre ``c`` and ``q`` one of ``||I - Y DF||`` on the box of half-width ``R`` round
it (maximum norm). If ``d + q R < R`` the map ``T(x) = x - Y F(x)`` takes the box into itself and contracts it, so
it has exactly one fixed point there, which lies within ``d / (1 - q)`` of ``c``; and since ``q < 1`` makes ``Y``
non-singular, the fixed points of ``T`` are the zeros of ``F``. This is Krawczyk's test (Krawczyk 1969; Rump, Acta
Numerica 2010, section 13). ``F`` and ``DF`` are enclosed in ball arithmetic; the bounds of the products with
``Y`` are verified double precision.

A search in floating point proposes centres and half-widths; `verified` proves, from the map and the claim alone.
"""

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import flint
import numpy as np
from flint import acb, acb_mat, arb, arb_mat, ctx
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components

from gdmap.certify.ball_map import (
    BallMap,
    box,
    checked_bits,
    checked_map,
    checked_points,
    exact,
    middle,
    read_exact,
    read_float,
    upper_bound,
    written,
)
from gdmap.engines.balls.arithmetic import UndecidedError, filled
from gdmap.engines.balls.matrices import gamma, midpoint_radius, product, spectrum_enclosure, upward
from gdmap.maps import Map

Array = np.ndarray
Stability = Literal["stable", "unstable", "undecided"]

KIND = "periodic orbit"
# Unknowns of the largest system: a dense inverse of that size is a minute's work.
LARGEST = 2_000
NEWTON_STEPS = 60
# Beyond this condition number the derivative of F counts as singular.
SINGULAR = 1e13
# A multiplier this near 1 is named as the reason why.
NEUTRAL = 1e-5
# Given points must lie this much deeper inside the box of uniqueness than its half-width.
NEARNESS = 1 / 8
# Half-widths are tried up to this power of two times the size of the orbit.
FARTHEST = 66
# Eigenvalues of larger matrices are enclosed by discs, not by Arb's own method (13 s at 100).
SMALL_EIGENPROBLEM = 24
# Enclosures of multipliers wider than this are compared with one disc for all of them.
WIDE = 1e-3


class Balls(NamedTuple):
    """Real numbers (float64 midpoints) with radii within which the true ones lie."""

    mid: Array
    rad: Array


class Discs(NamedTuple):
    """Complex numbers with radii within which the true ones lie."""

    mid: Array
    rad: Array


@dataclass(frozen=True)
class PeriodicOrbitCertificate:
    """What is proved about a periodic orbit near given points.

    Attributes
    ----------
    proved
        Whether an orbit of minimal period ``period`` is proved to exist, and to be the only orbit of that length
        within ``uniqueness_radius``. What follows says nothing where this is ``False``.
    period
        The minimal period; it may be a proper divisor of the number of points given. ``None`` if not proved.
    points
        float64 midpoints and radii, shape ``(period, state_dim)``: the true points lie within.
    radius, uniqueness_radius
        Half-widths (maximum norm, in the units of the state) of two boxes round the exact points of the record:
        the orbit lies in the small one, and no other orbit of this length in the large one.
    multipliers
        The eigenvalues of ``DG^period`` on the orbit as discs, largest modulus first. Discs that meet may share
        their eigenvalues.
    stability
        ``'stable'``: all multipliers are proved to have modulus below 1, so nearby orbits converge to this one;
        ``'unstable'``: one is proved to have modulus above 1; ``'undecided'`` otherwise.
    bits
        Binary digits of the ball arithmetic.
    reason
        Why nothing is proved, or why stability is undecided; empty otherwise.
    proof
        A JSON record from which `check_periodic_orbit` proves all this again; ``None`` if not proved.
    """

    proved: bool
    period: int | None
    points: Balls
    radius: float
    uniqueness_radius: float
    multipliers: Discs
    stability: Stability
    bits: int
    reason: str
    proof: dict[str, Any] | None = field(repr=False)

    def explain(self) -> str:
        """What is proved, in words."""
        if not self.proved:
            return f"No periodic orbit is proved near these points: {self.reason}"
        name = "a fixed point" if self.period == 1 else f"an orbit of minimal period {self.period}"
        lines = [
            f"Proved: {name} exists within {self.radius:.3g} of the points of the record (maximum norm), and "
            f"within {self.uniqueness_radius:.3g} of them there is no other of this length."
        ]
        moduli = [f"{abs(m):.10g}" for m in self.multipliers.mid[:5]]
        shown = ", ".join(moduli) + (", ..." if len(self.multipliers.mid) > 5 else "")
        if self.stability == "stable":
            lines.append(
                f"It is stable: all multipliers are proved to lie inside the unit circle (moduli {shown})."
            )
        elif self.stability == "unstable":
            lines.append(
                f"It is unstable: a multiplier is proved to lie outside the unit circle (moduli {shown})."
            )
        else:
            lines.append(f"Its stability is undecided: {self.reason}")
        lines.append(
            f"The proof concerns the formula of the map over the real numbers, in ball arithmetic of {self.bits} "
            "bits; floating-point iteration is not covered."
        )
        return "\n".join(lines)


def certify_periodic_orbit(
    map_: Map, points: Any, radius: float | None = None, bits: int = 128
) -> PeriodicOrbitCertificate:
    """Prove that a periodic orbit of a map exists near ``points`` and is unique there; enclose its multipliers.

    Newton's method in ball arithmetic refines the points, Krawczyk's test in the product space proves existence in
    the smallest box that works and uniqueness in the largest one found. The points must lie well inside that one
    (within an eighth of its half-width). The minimal period is proved; points of an orbit gone through several
    times are recognised.

    Parameters
    ----------
    map_
        A `GradientDescent`, an `Optimiser`, or any other `Map` that does not depend on time.
    points
        The orbit in order, shape ``(p, state_dim)``, or ``(state_dim,)`` for a fixed point. Floats mean exactly
        these binary numbers. They need to be accurate enough for Newton's method, say to 1e-4 of the distances
        between them.
    radius
        Ask for existence and uniqueness in the box of this half-width round ``points`` themselves (maximum norm).
        By default the boxes are chosen as described.
    bits
        Binary digits, 53 at least. Orbits of period ``p`` with multiplier ``m`` need about ``log2 |m|`` more than
        double precision.

    Returns
    -------
    PeriodicOrbitCertificate
        ``proved`` is ``False`` with a ``reason`` where nothing can be proved: no orbit there, an orbit in a family
        (a multiplier 1: the minima of an overparameterised network, and their cycles), a kink too near.

    Raises
    ------
    TypeError
        If ``map_`` is no map, or the points are not real numbers.
    ValueError
        If the map depends on time, for points of the wrong shape or not finite, or for a bad radius or precision.
    UnsupportedProgramError
        If the map's trace cannot be read as a formula over the reals.
    """
    map_, bits = checked_map(map_), checked_bits(bits)
    given = checked_points(points, "points")
    if given.shape == (map_.state_dim,):
        given = given[None]
    if given.ndim != 2 or given.shape[1] != map_.state_dim or not len(given):
        raise ValueError(
            f"points has shape {np.shape(points)}, expected (period, {map_.state_dim}): one flat state for each "
            "point (initial_state makes states from parameters)"
        )
    if given.size > LARGEST:
        raise ValueError(f"period times dimension is {given.size}; above {LARGEST} this is not attempted")
    if radius is not None and not (np.ndim(radius) == 0 and math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be a positive finite number, got {radius!r}")
    balls = BallMap(map_, bits)
    with ctx.workprec(bits):
        try:
            with np.errstate(all="ignore"):  # what a search meets far out
                claim = proposed(balls, given, radius)
            outcome = verified(balls, claim)
        except (NotProved, UndecidedError) as problem:
            return not_proved(given, bits, str(problem))
        mid, rad = midpoint_radius(box(claim.centres, claim.radius))
        discs = floats_of(outcome.multipliers)
    return PeriodicOrbitCertificate(
        True,
        len(claim.centres),
        Balls(mid, rad),
        claim.radius,
        claim.uniqueness_radius,
        discs,
        outcome.stability,
        bits,
        outcome.reason,
        record_of(claim, discs, outcome.stability, bits),
    )


def check_periodic_orbit(map_: Map, record: Any) -> tuple[bool, str]:
    """Prove a record again, from the map and the record alone.

    Returns
    -------
    (bool, str)
        Whether every statement of the record (existence, uniqueness, minimal period, multipliers, stability) is
        proved for this map; and what was proved, or what fails. Bad records are not errors.

    Raises
    ------
    TypeError, ValueError
        If ``map_`` is no map, or depends on time.
    """
    map_ = checked_map(map_)
    try:
        claim, multipliers, stability, bits = read_record(record, map_.state_dim)
    except (ValueError, TypeError, KeyError, OverflowError) as problem:
        return False, f"this is no record of a periodic orbit of this map: {problem}"
    with ctx.workprec(bits):
        try:
            outcome = verified(BallMap(map_, bits), claim)
        except (NotProved, UndecidedError) as problem:
            return False, str(problem)
        if stability not in ("undecided", outcome.stability):
            return False, f"the record says {stability}; what is proved is {outcome.stability}"
        if not all_contained(outcome.multipliers, multipliers):
            return False, "the multipliers of the record are not those of the orbit"
    return True, f"an orbit of minimal period {len(claim.centres)} is proved, {outcome.stability}"


class NotProved(Exception):  # noqa: N818
    """The reason why a claim is not proved."""


class Claim(NamedTuple):
    """What is to be proved: exactly one orbit of this length in the large box round ``centres``, in the small one
    as well, and of no shorter period.
    """

    centres: Array
    radius: float
    uniqueness_radius: float


class Outcome(NamedTuple):
    """What is proved beyond the claim."""

    multipliers: list[acb]
    stability: Stability
    reason: str


def verified(balls: BallMap, claim: Claim) -> Outcome:
    """Prove a claim, or raise `NotProved` (or `UndecidedError`) with the reason; rigorous throughout."""
    centres, r, R = claim
    if not 0 < r <= R:
        raise NotProved(f"the half-widths {r:.3g} and {R:.3g} are not in order")
    defect, contraction = krawczyk(balls, centres, R)
    for half_width in (r, R):
        if not contracts(defect, contraction, half_width):
            raise NotProved(
                f"Krawczyk's test fails on the box of half-width {half_width:.3g}: the defect is {defect:.3g}, "
                f"the contraction {contraction:.3g}"
            )
    for divisor in maximal_divisors(len(centres)):
        shifted = np.roll(centres, -divisor, axis=0)
        twice = arb(r) * 2
        if not any(abs(x - y) > twice for x, y in zip(centres.ravel(), shifted.ravel(), strict=True)):
            raise NotProved(f"it is not proved that the orbit does not already return after {divisor} steps")
    derivative = return_matrix(balls, box(centres, r))
    multipliers = sorted_by_modulus(multiplier_enclosures(derivative, balls.is_symmetric and len(centres) == 1))
    if all(m.abs_upper() < 1 for m in multipliers):
        return Outcome(multipliers, "stable", "")
    if any(m.abs_lower() > 1 for m in multipliers):
        return Outcome(multipliers, "unstable", "")
    near = sum(not m.abs_upper() < 1 for m in multipliers)
    return Outcome(
        multipliers,
        "undecided",
        f"{near} of the multipliers may lie on the unit circle: the enclosure of the largest is "
        f"{complex(multipliers[0].mid()):.15g} within {upper_bound(multipliers[0].rad()):.1g}",
    )


def krawczyk(balls: BallMap, centres: Array, half_width: float) -> tuple[float, float]:
    """Bounds of ``|Y F(c)|`` and of ``||I - Y DF||`` on the box of this half-width round ``c``, in maximum norm.

    ``DF`` has the blocks ``-DG(x_i)`` at ``(i, i)`` and ``I`` at ``(i, i + 1)`` (added where they meet, at period
    1), so block column ``j`` of ``Y DF`` is ``-Y_j DG(x_j) + Y_{j-1}``.
    """
    period, n = centres.shape
    size = period * n
    derivatives = [midpoint_radius(balls.jacobian(box(x, half_width))) for x in centres]
    residual = np.array([upper_bound(value) for value in defect_of(balls, centres).ravel()])
    with np.errstate(all="ignore"):
        Y = approximate_inverse([mid for mid, _ in derivatives])
        total, ones = np.zeros(size), np.ones(n)
        for j, (mid, rad) in enumerate(derivatives):
            block = Y[:, j * n : (j + 1) * n]
            before = Y[:, (j - 1) % period * n : ((j - 1) % period + 1) * n]
            image, roundings = product(block, mid)
            difference = image - before
            deviation = difference.copy()
            deviation[np.arange(j * n, (j + 1) * n), np.arange(n)] += 1
            # |fl(a - b) - (a - b)| <= 2 u |fl(a - b)|, twice: the error of the difference, and of adding 1 to it.
            inner = upward(gamma(roundings) * upward(np.abs(mid) @ ones, n) + rad @ ones, n + 2)
            total = total + upward(
                np.abs(deviation) @ ones * (1 + 4 * 2.0**-53)
                + np.abs(difference) @ ones * (4 * 2.0**-53)
                + np.abs(block) @ inner,
                n + 6,
            )
        contraction = float(np.max(upward(total, period)))
        # In units of the largest residual, which may be far smaller than what `upward` adds for underflow.
        unit = 2.0 ** math.frexp(max(np.max(residual), 5e-324))[1] if np.all(np.isfinite(residual)) else 1.0
        defect = float(np.nextafter(np.max(upward(np.abs(Y) @ (residual / unit), size)) * unit, np.inf))
    if not (math.isfinite(contraction) and math.isfinite(defect)):
        raise NotProved("the derivative of the orbit's equations is singular")
    return defect, contraction


def contracts(defect: float, contraction: float, half_width: float) -> bool:
    """Whether ``d + q R < R``, proved."""
    return half_width > 0 and bool(upward(upward(defect / half_width, 1) + contraction, 1) < 1)


def defect_of(balls: BallMap, x: Array) -> Array:
    """Enclosures of ``F(x)_i = x_{i+1} - G(x_i)``."""
    return np.roll(x, -1, axis=0) - np.stack([balls.step(point) for point in x])


def approximate_inverse(derivatives: Sequence[Array]) -> Array:
    """A floating-point inverse of ``DF`` for these ``DG(x_i)``; NaN if it is singular."""
    period, n = len(derivatives), len(derivatives[0])
    matrix = np.zeros((period * n, period * n))
    for i, derivative in enumerate(derivatives):
        rows, following = np.arange(i * n, (i + 1) * n), (i + 1) % period * n + np.arange(n)
        matrix[np.ix_(rows, rows)] -= derivative
        matrix[rows, following] += 1
    try:
        return np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        return np.full_like(matrix, np.nan)


def maximal_divisors(period: int) -> list[int]:
    """``p / q`` for the primes ``q`` that divide ``p``: every proper divisor divides one of them."""
    primes = [
        q for q in range(2, period + 1) if period % q == 0 and all(q % k for k in range(2, math.isqrt(q) + 1))
    ]
    return [period // q for q in primes]


def return_matrix(balls: BallMap, boxes: Array) -> arb_mat:
    """An enclosure of ``DG(x_{p-1}) ... DG(x_0)`` for all points of the boxes."""
    result: arb_mat | None = None
    for x in boxes:
        factor = arb_mat(balls.jacobian(x).tolist())
        result = factor if result is None else factor * result
    assert result is not None
    return result


def multiplier_enclosures(matrix: arb_mat, symmetric: bool) -> list[acb]:
    """Balls that together contain the eigenvalues of every (symmetric) matrix in ``matrix``, with multiplicity.

    Where balls meet, each eigenvalue of their cluster lies in the union of the cluster's balls.
    """
    n = matrix.nrows()
    if n == 1:
        return [acb(matrix[0, 0])]
    if symmetric and n > SMALL_EIGENPROBLEM:
        entries = filled((n, n), matrix.entries())
        lower, upper = spectrum_enclosure(*midpoint_radius(entries))
        return [acb(arb(low).union(arb(high))) for low, high in zip(lower.tolist(), upper.tolist(), strict=True)]
    candidates = []
    if n <= SMALL_EIGENPROBLEM:
        with contextlib.suppress(ValueError):  # eigenvalues it cannot isolate
            return list(acb_mat(matrix).eig(algorithm="rump"))
        with contextlib.suppress(ValueError):
            candidates.append(list(acb_mat(matrix).eig(multiple=True)))
    candidates.append(gershgorin_discs(matrix))
    if all(widest(balls) > WIDE for balls in candidates):
        candidates.append(spectral_disc(matrix))
    return min(candidates, key=widest)


def widest(balls: Sequence[acb]) -> float:
    """The largest radius."""
    return max(upper_bound(ball.rad()) for ball in balls)


def gershgorin_discs(matrix: arb_mat) -> list[acb]:
    """Discs that contain the eigenvalues of every matrix in ``matrix``, from a similar, nearly diagonal one.

    ``V^-1 M V`` has the eigenvalues of ``M`` exactly; ``V`` is the floating-point matrix of eigenvectors, its
    inverse is enclosed. Groups of discs that meet are covered by one disc each, listed as often as it has members.
    Where ``V`` is too near to singular, all eigenvalues are in one disc round 0 (`spectral_disc`) instead.
    """
    n = matrix.nrows()
    mid = np.array([float(x.mid()) for x in matrix.entries()]).reshape(n, n)
    if not np.all(np.isfinite(mid)):
        return spectral_disc(matrix)
    V = acb_mat([[complex(x) for x in row] for row in np.linalg.eig(mid)[1].tolist()])
    try:
        similar = V.inv() * acb_mat(matrix) * V
    except ZeroDivisionError:
        return spectral_disc(matrix)
    centres = [similar[i, i].mid() for i in range(n)]
    radii = [
        sum((similar[i, j].abs_upper() for j in range(n) if j != i), arb(similar[i, i].rad())).abs_upper()
        for i in range(n)
    ]
    meet = np.array(
        [
            [not (c - d).abs_lower() > r + s for d, s in zip(centres, radii, strict=True)]
            for c, r in zip(centres, radii, strict=True)
        ]
    )
    _, groups = connected_components(meet, directed=False)
    discs: list[acb] = [acb(0)] * n
    for group in range(max(groups) + 1):
        members = np.flatnonzero(groups == group)
        centre = (sum((centres[i] for i in members), acb(0)) / len(members)).mid()
        reach = max(float(((centres[i] - centre).abs_upper() + radii[i]).abs_upper()) for i in members)
        if not math.isfinite(reach):
            return spectral_disc(matrix)
        disc = around(centre, math.nextafter(reach, math.inf))
        for i in members:
            discs[i] = disc
    return discs


def spectral_disc(matrix: arb_mat) -> list[acb]:
    """The smallest disc round 0 that ``||M^k||^(1/k)`` shows to hold all eigenvalues, ``k = 1, 2, ..., 256``."""
    n, power, exponent = matrix.nrows(), matrix, 1
    radius = math.inf
    while exponent <= 256:
        rows = (sum(map(abs, row), arb(0)) for row in power.tolist())
        radius = min(radius, max(upper_bound(row.root(exponent)) for row in rows))
        power, exponent = power * power, 2 * exponent
    if not math.isfinite(radius):
        raise NotProved("the multipliers have no finite enclosure at this precision")
    return [around(acb(0), radius)] * n


def around(centre: acb, radius: float) -> acb:
    """The square round ``centre`` that contains the disc."""
    return acb(arb(centre.real.mid(), radius), arb(centre.imag.mid(), radius))


def sorted_by_modulus(values: Sequence[acb]) -> list[acb]:
    """Largest modulus of the midpoint first; conjugates with positive imaginary part first."""

    def key(value: acb) -> tuple[float, float]:
        mid = value.mid()
        return -float(abs(mid).mid()), -float(mid.imag.mid())

    return sorted(values, key=key)


def floats_of(multipliers: Sequence[acb]) -> Discs:
    """float64 discs that contain these balls, with room to spare for being computed again."""
    mid = np.array([complex(value.mid()) for value in multipliers], np.complex128)
    gaps = [upper_bound((value - acb(m)).abs_upper()) for value, m in zip(multipliers, mid, strict=True)]
    return Discs(mid, (1 + 2.0**-10) * np.array(gaps) + 2.0**-51 * np.abs(mid))


def all_contained(values: Sequence[acb], discs: Discs) -> bool:
    """Whether the balls can be paired with the discs that contain them."""
    if len(values) != len(discs.mid):
        return False
    mid = np.array([complex(value.mid()) for value in values])
    rows, columns = linear_sum_assignment(np.abs(mid[:, None] - discs.mid[None, :]))
    return all(
        (values[i] - acb(complex(discs.mid[j]))).abs_upper() <= arb(float(discs.rad[j]))
        for i, j in zip(rows, columns, strict=True)
    )


# Proposals ------------------------------------------------------------------------------------------------------


def proposed(balls: BallMap, given: Array, radius: float | None) -> Claim:
    """Centres and half-widths for which a proof should succeed, or `NotProved` with the reason."""
    x, scale = refined(balls, exact(given))
    distance = max(upper_bound(gap) for gap in (x - exact(given)).ravel())
    x = x[: shortest_period(x, scale)]
    uniqueness = largest_radius(balls, x, scale)
    if radius is None and not distance < NEARNESS * uniqueness:
        raise NotProved(
            f"the nearest orbit found is {distance:.3g} away, and proved to be the only one within "
            f"{uniqueness:.3g}: the points given are not well inside that box, so give points nearer to it"
        )
    defect, contraction = krawczyk(balls, x, uniqueness)
    least = min(scale, uniqueness) * 2.0 ** -min(balls.arithmetic.bits, 1000)
    small = max(1.01 * defect / (1 - contraction), least)
    if radius is not None:
        if not upward(distance + small, 2) < radius:
            raise NotProved(f"the orbit is {distance:.3g} away from the given points, farther than {radius:.3g}")
        if not upward(distance + radius, 2) < uniqueness:
            raise NotProved(
                f"the orbit exists, but uniqueness is proved only within {uniqueness:.3g} of it, which does not "
                f"cover the box of half-width {radius:.3g} asked for"
            )
    return Claim(x, min(small, uniqueness), uniqueness)


def refined(balls: BallMap, x: Array) -> tuple[Array, float]:
    """Newton's method in the product space, to about the precision of the balls; and the size of the orbit."""
    start = np.array([[float(value) for value in point] for point in x])
    last, Y = math.inf, None
    for _ in range(NEWTON_STEPS):
        points = np.array([[float(value) for value in point] for point in x])
        scale = float(np.max(np.abs(points))) or 1.0
        defect = np.array([float(value.mid()) for value in defect_of(balls, x).ravel()])
        if Y is None or last > 1e-6 * scale:
            derivatives = [midpoint_radius(balls.jacobian(point))[0] for point in x]
            Y = regular_inverse(derivatives)
        correction = -Y @ defect
        length = float(np.max(np.abs(correction)))
        if not math.isfinite(length):
            raise NotProved("Newton's method overflows: there is no orbit near the given points")
        if length >= 0.5 * last and last < 1e-9 * scale:
            break
        last = length
        x = middle(x + exact(correction.reshape(x.shape)))
        if np.max(np.abs(points - start)) > 1e3 * max(scale, float(np.max(np.abs(start)))):
            break
        if length <= 2.0 ** (16 - balls.arithmetic.bits) * scale:
            return x, scale
    if last > 1e-6 * scale:
        raise NotProved("Newton's method does not converge from the given points: there is no orbit near them")
    return x, scale


def regular_inverse(derivatives: Sequence[Array]) -> Array:
    """`approximate_inverse`, or the reason why there is none."""
    Y = approximate_inverse(derivatives)
    size = 1 + max(np.max(np.sum(np.abs(derivative), axis=1)) for derivative in derivatives)
    if not (np.max(np.sum(np.abs(Y), axis=1)) * size <= SINGULAR):
        raise NotProved("the derivative of the orbit's equations is singular" + neutral_directions(derivatives))
    return Y


def neutral_directions(derivatives: Sequence[Array]) -> str:
    """What multipliers near 1 have to do with a failure, in words; empty if there are none."""
    n = len(derivatives[0])
    M = np.eye(n)
    with np.errstate(all="ignore"):
        for derivative in derivatives:
            M = derivative @ M
    near = int(np.sum(np.abs(np.linalg.eigvals(M) - 1) < NEUTRAL)) if np.all(np.isfinite(M)) else 0
    if not near:
        return ""
    return (
        f": {near} of the {n} multipliers {'is' if near == 1 else 'are'} 1 to within {NEUTRAL:g}. Orbits that "
        "come in families (along a manifold of minima) are not isolated, and at a bifurcation two meet; "
        "Krawczyk's test proves isolated ones only"
    )


def shortest_period(x: Array, scale: float) -> int:
    """The smallest divisor after which refined points are back, to far less than the precision they have."""
    period = len(x)
    for divisor in range(1, period):
        if period % divisor == 0:
            gap = max(upper_bound(value) for value in (np.roll(x, -divisor, axis=0) - x).ravel())
            if gap <= 1e-13 * scale:
                return divisor
    return period


def largest_radius(balls: BallMap, centres: Array, scale: float) -> float:
    """The largest half-width ``scale 2^k`` found on which Krawczyk's test succeeds, ``k`` a whole number."""

    def succeeds(exponent: int) -> bool:
        half_width = math.ldexp(scale, exponent)
        try:
            defect, contraction = krawczyk(balls, centres, half_width)
        except (NotProved, UndecidedError):
            return False
        return contracts(defect, contraction, half_width)

    fails, exponent = 3, 2
    if succeeds(exponent):
        while exponent < FARTHEST and succeeds(exponent + 8):
            exponent += 8
        fails = exponent + (1 if exponent >= FARTHEST else 8)
    while not succeeds(exponent):
        fails, exponent = exponent, exponent - (1 if exponent > -8 else 4)
        if exponent < 8 - balls.arithmetic.bits:
            neutral = neutral_directions([midpoint_radius(balls.jacobian(x))[0] for x in centres])
            raise NotProved(
                "Krawczyk's test fails on every box tried"
                + (neutral or ": the points are no orbit, a kink is too near, or the orbit needs more bits")
            )
    while fails - exponent > 1:
        between = (fails + exponent) // 2
        fails, exponent = (fails, between) if succeeds(between) else (between, exponent)
    return math.ldexp(scale, exponent)


def not_proved(given: Array, bits: int, reason: str) -> PeriodicOrbitCertificate:
    """The certificate that certifies nothing."""
    nothing = Balls(given, np.full(given.shape, np.inf))
    discs = Discs(np.zeros(0, np.complex128), np.zeros(0))
    return PeriodicOrbitCertificate(False, None, nothing, math.inf, 0.0, discs, "undecided", bits, reason, None)


# Records --------------------------------------------------------------------------------------------------------


def record_of(claim: Claim, multipliers: Discs, stability: Stability, bits: int) -> dict[str, Any]:
    """The JSON record of a proved claim."""
    return {
        "kind": KIND,
        "period": len(claim.centres),
        "state_dim": claim.centres.shape[1],
        "points": [[written(x) for x in point] for point in claim.centres],
        "radius": claim.radius.hex(),
        "uniqueness_radius": claim.uniqueness_radius.hex(),
        "multipliers": [
            [float(m.real).hex(), float(m.imag).hex(), float(r).hex()]
            for m, r in zip(multipliers.mid, multipliers.rad, strict=True)
        ],
        "stability": stability,
        "bits": bits,
        "versions": {"gdmap": version("gdmap"), "python-flint": flint.__version__, "jax": version("jax")},
    }


def read_record(record: Any, state_dim: int) -> tuple[Claim, Discs, str, int]:
    """The parts of a record, or ``ValueError``, ``TypeError`` or ``KeyError``."""
    if isinstance(record, (str, bytes)):
        record = json.loads(record)
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise ValueError("its kind is another")
    bits = checked_bits(record["bits"])
    points = record["points"]
    if record["state_dim"] != state_dim or not isinstance(points, list) or len(points) != record["period"]:
        raise ValueError("its period or dimension does not fit")
    if not points or any(not isinstance(point, list) or len(point) != state_dim for point in points):
        raise ValueError("its points do not have the dimension of the state")
    if len(points) * state_dim > LARGEST:
        raise ValueError("it is larger than what is attempted")
    centres = filled((len(points), state_dim), [read_exact(text) for point in points for text in point])
    numbers = [[read_float(text) for text in multiplier] for multiplier in record["multipliers"]]
    if len(numbers) != state_dim or any(len(number) != 3 for number in numbers):
        raise ValueError("it does not have one multiplier for each dimension")
    values = np.array(numbers)
    if record["stability"] not in ("stable", "unstable", "undecided"):
        raise ValueError(f"unknown stability {record['stability']!r}")
    claim = Claim(centres, read_float(record["radius"]), read_float(record["uniqueness_radius"]))
    return claim, Discs(values[:, 0] + 1j * values[:, 1], values[:, 2]), record["stability"], bits

"""Enclosures of a map on many boxes at once, and the operators that contract boxes round its periodic orbits.

Arrays of points of candidate orbits have shape ``(n, period, dim)``, Jacobians ``(n, period, dim, dim)``. Bounds
are verified double precision, rounded as in `gdmap.engines.balls.lanes` and `gdmap.engines.balls.matrices`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gdmap.engines.balls.lanes import TINY, UNIT, Ends, Lanes, down, up
from gdmap.engines.balls.matrices import gamma, upward
from gdmap.engines.pieces import Pattern, PiecewiseProgram
from gdmap.maps import Map, Torus

Array = np.ndarray
SMOOTH = Pattern((), ())
# More than the rounding of a number of turns.
SLACK = 1e-9
LANES = Lanes()


class Between(Ends):
    """Lower and upper ends of arrays whose first axis numbers boxes."""

    def take(self, chosen: Array) -> "Between":
        """Those of some boxes."""
        return Between(self.lower[chosen], self.upper[chosen])


class EnclosedMap:
    """``G`` and ``DG`` of a smooth map on many boxes; infinite where nothing is known."""

    def __init__(self, map_: Map) -> None:
        if not isinstance(map_, Map):
            raise TypeError(
                f"expected a map such as gdmap.GradientDescent(objective, step_size), got {type(map_).__name__}"
            )
        if map_.depends_on_time:
            raise ValueError(
                f"{map_!r} depends on time (bias correction or a schedule), so it is not one map: "
                "use Optimiser(..., limit=True) for what it becomes after many steps"
            )
        self.dim = map_.state_dim
        self.periods = np.full(self.dim, np.inf)
        self.least, self.most = -self.periods, self.periods
        if isinstance(map_, Torus):
            self.periods = np.asarray(map_.periods)
            angles = np.isfinite(self.periods)
            self.least = np.where(angles, map_.lower, -np.inf)
            self.most = np.where(angles, map_.lower + self.periods, np.inf)
            map_ = map_.map
        self.angles = np.flatnonzero(np.isfinite(self.periods))
        self.program = PiecewiseProgram(map_.update, self.dim)
        if not self.program.is_smooth or self.program.shift_indices:
            kinks = sorted({kink.equation.primitive.name for kink in self.program.kinks}) or ["max"]
            raise ValueError(
                f"the map has kinks ({', '.join(kinks)}), where its derivative jumps, and the search for all "
                "orbits needs a smooth map: write the loss without them (jax.nn.softplus for relu), or search "
                "for single orbits"
            )

    def value(self, lower: Array, upper: Array, turns: Array | None = None) -> Between:
        """Enclosures of ``G``, shape ``(n, period, dim)``; on a torus, less these turns if they are given."""
        found = self.evaluated(self.program.value, lower, upper, (self.dim,))
        return found if turns is None or not len(self.angles) else self.turned(found, turns)

    def turned(self, value: Ends, turns: Array) -> Between:
        """``value`` less whole periods; infinite where their number (nan) is not known."""
        low, high = value.lower.copy(), value.upper.copy()
        for j in self.angles:
            shift = turns[..., j] * self.periods[j]
            unknown = np.isnan(shift)
            low[..., j] = np.where(unknown, -np.inf, down(low[..., j] - up(shift)))
            high[..., j] = np.where(unknown, np.inf, up(high[..., j] - down(shift)))
        return Between(low, high)

    def turns(self, low: Array, high: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
        """How many periods lie between images, ``low`` to ``high``, and the next points, ``lower`` to ``upper``.

        Returns
        -------
        turns, impossible
            nan where several numbers are possible; and which boxes have a step for which none is.
        """
        turns, impossible = np.zeros(low.shape), np.zeros(len(low), bool)
        for j in self.angles:
            least = (low[..., j] - np.roll(upper[..., j], -1, 1)) / self.periods[j]
            most = (high[..., j] - np.roll(lower[..., j], -1, 1)) / self.periods[j]
            first = np.ceil(least - SLACK * (1 + np.abs(least)))
            last = np.floor(most + SLACK * (1 + np.abs(most)))
            turns[..., j] = np.where((first == last) & np.isfinite(first), first, np.nan)
            impossible |= np.any(first > last, 1)
        return turns, impossible

    def turns_near(self, points: Array) -> Array:
        """The number of periods between the images of points and the next points, in floating point."""
        image = self.value(points, points).lower
        turns = np.zeros(points.shape)
        turns[..., self.angles] = np.round(
            (image - np.roll(points, -1, 1))[..., self.angles] / self.periods[self.angles]
        )
        return turns

    def jacobian(self, lower: Array, upper: Array) -> Between:
        """Enclosures of ``DG``, shape ``(n, period, dim, dim)``."""
        return self.evaluated(self.program.jacobian, lower, upper, (self.dim, self.dim))

    def evaluated(self, function: Callable[..., Ends], lower: Array, upper: Array, shape: Any) -> Between:
        leading = lower.shape[:-1]
        count = math.prod(leading)
        if not count:
            return Between(np.empty((*leading, *shape)), np.empty((*leading, *shape)))
        box = Ends(*(np.ascontiguousarray(end.reshape(count, self.dim).T) for end in (lower, upper)))
        parts = []
        for end, nothing in zip(function(box, SMOOTH, LANES), (-np.inf, np.inf), strict=True):
            lanes = np.moveaxis(np.broadcast_to(end, (*shape, count)), -1, 0).reshape(*leading, *shape)
            parts.append(np.where(np.isnan(lanes), nothing, lanes))
        # An end that is not a number says nothing of the other one either.
        unknown = ~(np.isfinite(parts[0]) & np.isfinite(parts[1]))
        return Between(np.where(unknown, -np.inf, parts[0]), np.where(unknown, np.inf, parts[1]))

    def image(self, lower: Array, upper: Array, slopes: Ends) -> tuple[Array, Array]:
        """Enclosures of ``G`` on boxes: the natural one, and by the mean value theorem.

        ``G_k(x) = G_k(c) + sum_j s_j (x_j - c_j)`` with slopes ``s`` in ``DG_k``, and ``c`` anywhere in the box.
        For the lower end, ``c_j`` is the lower end where ``DG_kj >= 0``, the upper one where ``DG_kj <= 0`` (then
        the term is not negative), the middle otherwise.
        """
        natural = self.value(lower, upper)
        low, high = natural.lower.copy(), natural.upper.copy()
        middle = np.clip(lower / 2 + upper / 2, lower, upper)
        below, above = down(lower - middle), up(upper - middle)
        for k in range(self.dim):
            least, most = slopes.lower[..., k, :], slopes.upper[..., k, :]
            rising, falling = least >= 0, most <= 0
            # The least of s t over s in [least, most], t in [below, above]: the middle is zero, so ends suffice.
            steep = np.maximum(np.abs(least), np.abs(most)) * np.maximum(-below, above)
            rest = np.sum(np.where(rising | falling, 0.0, steep), -1)
            rest = upward(rest, self.dim + 1)
            for end, sign, start, stop in ((low, -1, lower, upper), (high, 1, upper, lower)):
                corner = np.where(rising, start, np.where(falling, stop, middle))
                value = self.value(corner, corner)
                if sign < 0:
                    end[..., k] = np.fmax(end[..., k], down(value.lower[..., k] - rest))
                else:
                    end[..., k] = np.fmin(end[..., k], up(value.upper[..., k] + rest))
        return low, high


def preimage(lower: Array, upper: Array, centre: Array, value: Ends, slopes: Ends) -> tuple[Array, Array]:
    """What is left of ``X_i`` under ``G(x_i) = x_{i+1}``, an equation and a coordinate at a time.

    ``sum_j s_kj (x_j - c_j) = x_{i+1,k} - G_k(c)`` is solved for each ``x_j``. Where ``s_kj`` may be zero the
    solutions have a gap, which counts if it reaches an end of the box.
    """
    dim = lower.shape[-1]
    target_low = down(np.roll(lower, -1, 1) - value.upper)
    target_high = up(np.roll(upper, -1, 1) - value.lower)
    below, above = down(lower - centre), up(upper - centre)
    for k in range(dim):
        for j in range(dim):
            least, most = slopes.lower[..., k, j], slopes.upper[..., k, j]
            rest_low, rest_high = target_low[..., k], target_high[..., k]
            for other in range(dim):
                if other != j:
                    term = LANES.mul(
                        Ends(slopes.lower[..., k, other], slopes.upper[..., k, other]),
                        Ends(below[..., other], above[..., other]),
                    )
                    rest_low, rest_high = down(rest_low - term.upper), up(rest_high - term.lower)
            quotient = LANES.div(Ends(rest_low, rest_high), Ends(least, most))
            new_low = np.fmax(below[..., j], quotient.lower)
            new_high = np.fmin(above[..., j], quotient.upper)
            # A gap between the solutions with negative slope and those with positive slope.
            crossing = (least <= 0) & (most >= 0)
            positive, negative = crossing & (rest_low > 0), crossing & (rest_high < 0)
            nearest = np.where(positive, rest_low, np.where(negative, -rest_high, np.nan))
            forwards = np.where(positive, most, -least)
            backwards = np.where(positive, -least, most)
            gap_high = np.where(forwards > 0, down(nearest / forwards) - TINY, np.inf)
            gap_low = np.where(backwards > 0, TINY - down(nearest / backwards), -np.inf)
            gap = positive | negative
            new_low = np.where(gap & (new_low > gap_low), np.fmax(new_low, gap_high), new_low)
            new_high = np.where(gap & (new_high < gap_high), np.fmin(new_high, gap_low), new_high)
            below[..., j], above[..., j] = new_low, new_high
    return np.fmax(lower, down(centre + below)), np.fmin(upper, up(centre + above))


class Contraction(NamedTuple):
    """``K(X)``; a bound of ``|I - Y DF|`` in a norm whose unit ball is nearly the box; whether ``K(X)`` is inside
    ``X`` and the bound below 1; and how much each coordinate contributes to the failure of linearity."""

    lower: Array
    upper: Array
    bound: Array
    proves: Array
    roughness: Array


def krawczyk(lower: Array, upper: Array, centre: Array, value: Ends, slopes: Ends) -> Contraction:
    """Krawczyk's operator for ``F(x)_i = x_{i+1} - G(x_i)`` on boxes ``X`` that hold their ``centre``.

    ``slopes`` encloses ``DG`` on ``X``, ``value`` is ``G`` at the centre.
    """
    n, p, d = lower.shape
    size = p * d
    middle, spread = midpoints(slopes)
    inverse = near_inverse(middle)
    absolute = np.abs(inverse)
    # F at the centre, its middle and its error.
    ahead = np.roll(centre, -1, 1)
    residual, error = midpoints(Ends(down(ahead - value.upper), up(ahead - value.lower)))
    residual, error = residual.reshape(n, size), error.reshape(n, size)
    correction = np.matmul(inverse, residual[..., None])[..., 0]
    error = upward(np.matmul(absolute, upward(error + gamma(size) * np.abs(residual), 2)[..., None])[..., 0], size)
    # I - Y DF by blocks of columns: the block i of Y DF is Y_{i-1} - Y_i DG_i.
    blocks = np.moveaxis(inverse.reshape(n, size, p, d), 2, 1)
    absolute_blocks = np.abs(blocks)
    defect = np.roll(blocks, 1, 1) - np.matmul(blocks, middle)
    defect[:, np.repeat(np.arange(p), d), np.arange(size), np.tile(np.arange(d), p)] -= 1
    rough = upward(spread + gamma(d + 3) * np.abs(middle), 2)
    deviation = np.abs(defect) + np.matmul(absolute_blocks, rough) + gamma(d + 3) * np.roll(absolute_blocks, 1, 1)
    deviation = upward(deviation, d + 6)
    reach = np.maximum(up(upper - centre), up(centre - lower))
    moved = upward(np.matmul(deviation, reach[..., None])[..., 0], d)  # (n, p, size)
    remainder = upward(np.sum(moved, 1), p)
    radius = upward(remainder + error, 1)
    shifted = centre.reshape(n, size) - correction
    low = down(down(shifted) - radius).reshape(n, p, d)
    high = up(up(shifted) + radius).reshape(n, p, d)
    # Any positive weights give a norm; a coordinate that is nearly known gets one that is small, not vanishing.
    largest = np.max(reach, (1, 2), keepdims=True)
    weights = np.where(largest > 0, np.maximum(reach, largest * 2.0**-20), 1.0)
    image = upward(np.sum(upward(np.matmul(deviation, weights[..., None])[..., 0], d), 1), p)
    ratio = upward(image.reshape(n, p, d) / weights, 1)
    bound = np.max(np.where(np.isnan(ratio), np.inf, ratio), (1, 2))
    proves = np.all((low > lower) & (high < upper), (1, 2)) & (bound < 1)
    roughness = np.sum(spread, -2) * reach
    return Contraction(low, high, bound, proves, roughness)


def midpoints(ends: Ends) -> tuple[Array, Array]:
    """Middles and radii; the radius is infinite (about zero) where there is no bounded interval."""
    middle = ends.lower / 2 + ends.upper / 2
    finite = np.isfinite(middle)
    middle = np.where(finite, middle, 0.0)
    return middle, np.where(finite, radius_of(middle, ends.lower, ends.upper), np.inf)


def radius_of(middle: Array, lower: Array, upper: Array) -> Array:
    """Radii round ``middle`` that reach both ends."""
    radius = np.maximum(up(upper - middle), up(middle - lower))
    return np.where((lower == middle) & (middle == upper), 0.0, radius)


def near_inverse(slopes: Array) -> Array:
    """Matrices near the inverses of ``DF`` for ``DG = slopes``: any matrices will do for a proof."""
    derivative = derivative_of(slopes)
    try:
        return finite(np.linalg.inv(derivative))
    except np.linalg.LinAlgError:
        # Those that are exactly singular get none: zero claims nothing.
        sign, _ = np.linalg.slogdet(derivative)
        regular = np.isfinite(sign) & (sign != 0)
        inverse = np.zeros_like(derivative)
        inverse[regular] = np.linalg.inv(derivative[regular])
        return finite(inverse)


def finite(matrix: Array) -> Array:
    """Zero where a number is not finite."""
    return np.where(np.isfinite(matrix), matrix, 0.0)


def derivative_of(slopes: Array) -> Array:
    """``DF`` as square matrices: the identity at ``(i, i + 1)``, ``-DG_i`` at ``(i, i)``."""
    n, p, d, _ = slopes.shape
    matrix = np.zeros((n, p, d, p, d))
    eye = np.eye(d)
    for i in range(p):
        matrix[:, i, :, (i + 1) % p] += eye
        matrix[:, i, :, i] -= slopes[:, i]
    return matrix.reshape(n, p * d, p * d)


def newton_step(centre: Array, value: Ends, slopes: Ends, pseudo: bool = False) -> tuple[Array, Array]:
    """``DF^{-1} F`` at the centre in floating point (with ``pseudo``, of minimum norm), and ``DF``."""
    n, p, d = centre.shape
    residual = (np.roll(centre, -1, 1) - (value.lower / 2 + value.upper / 2)).reshape(n, p * d)
    middle, _ = midpoints(slopes)
    inverse = np.linalg.pinv(derivative_of(middle), rcond=1e-6) if pseudo else near_inverse(middle)
    return np.matmul(inverse, residual[..., None]).reshape(n, p, d), derivative_of(middle)


def outside_radius(centre: Array, radius: Array) -> Array:
    """Lower bounds of the half-widths of the box with floating-point corners ``centre -+ radius``."""
    return np.minimum((centre + radius) - centre, centre - (centre - radius)) * (1 - 4 * UNIT)


def inside_radius(centre: Array, radius: Array, middle: Array) -> Array:
    """Half-widths round ``middle`` of a box inside that round ``centre``."""
    return down(radius - up(np.abs(middle - centre)))

"""Maps and their Jacobians in ball arithmetic, on points and on boxes; exact numbers in records."""

import functools
import math
from typing import Any

import numpy as np
from flint import arb, ctx, fmpq

from gdmap.engines.balls.arithmetic import Arb, UndecidedError, filled
from gdmap.engines.pieces import Pattern, PiecewiseProgram
from gdmap.maps import Map

MOST_BITS = 100_000

Array = np.ndarray


class BallMap:
    """``G`` and ``DG`` of a map in balls of ``bits`` binary digits.

    Points and boxes are object arrays of ``arb``, shape ``(dim,)``. What is enclosed is the formula that the map
    traces to, over the real numbers. A box must lie on one piece of a map with kinks (ReLU): where it does not,
    `UndecidedError` is raised; so it is where the formula has no finite value.
    """

    def __init__(self, map_: Map, bits: int) -> None:
        self.arithmetic = Arb(bits)
        self.dim = map_.state_dim
        self.program = program_of(Same(map_))

    def step(self, x: Array) -> Array:
        """Enclosures of ``G`` on ``x``, shape ``(dim,)``."""
        return self.program.value(x, self.pattern(x), self.arithmetic)

    def jacobian(self, x: Array) -> Array:
        """Enclosures of ``DG`` on ``x``, shape ``(dim, dim)``."""
        return self.program.jacobian(x, self.pattern(x), self.arithmetic)

    def pattern(self, x: Array) -> Pattern:
        """The piece that ``x`` lies on."""
        if self.program.is_smooth and not self.program.shift_indices:
            return Pattern((), ())
        return self.program.pattern(x, self.arithmetic)

    def is_on_one_piece(self, x: Array) -> bool:
        """Whether the whole of ``x`` is shown to lie on one piece, so that ``DG`` is continuous there."""
        try:
            self.pattern(x)
        except UndecidedError:
            return False
        return True


class Same:
    """A map as a key that is equal to itself alone (maps hold arrays, which have no hash)."""

    def __init__(self, map_: Map) -> None:
        self.map = map_

    def __hash__(self) -> int:
        return id(self.map)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.map is self.map


@functools.lru_cache(maxsize=4)
def program_of(same: Same) -> PiecewiseProgram:
    """The traced pieces of a map's update; kept, since a map is often asked about many orbits."""
    return PiecewiseProgram(same.map.update, same.map.state_dim)


def checked_map(map_: Any) -> Map:
    """``map_`` itself, or an error that says what is wanted."""
    if not isinstance(map_, Map):
        raise TypeError(
            f"expected a map such as gdmap.GradientDescent(objective, step_size), got {type(map_).__name__}"
        )
    if map_.depends_on_time:
        raise ValueError(
            f"{map_!r} depends on time (bias correction or a schedule), so it is not one map: "
            "use Optimiser(..., limit=True) for what it becomes after many steps"
        )
    return map_


def checked_bits(bits: Any) -> int:
    """A precision, or an error."""
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not 53 <= bits <= MOST_BITS:
        raise ValueError(f"bits must be a whole number from 53 to {MOST_BITS}, got {bits!r}")
    return int(bits)


def checked_points(values: Any, name: str) -> Array:
    """Finite real floats (float64 from here on, exactly), or an error."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}")
    array = array.astype(np.float64)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite numbers")
    return array


def exact(values: Array) -> Array:
    """float64 numbers as exact balls, of the same shape."""
    return filled(values.shape, [arb(x) for x in values.ravel().tolist()])


def box(centres: Array, radius: float) -> Array:
    """``centres`` (exact balls) widened by ``radius`` in each coordinate."""
    return filled(centres.shape, [arb(x, radius) for x in centres.ravel()])


def middle(balls: Array) -> Array:
    """The midpoints of balls as exact balls."""
    return filled(balls.shape, [x.mid() for x in balls.ravel()])


def upper_bound(ball: arb) -> float:
    """A float no smaller than the modulus of anything in ``ball``; infinite if there is none."""
    if not ball.is_finite():
        return math.inf
    try:
        return math.nextafter(float(ball.abs_upper()), math.inf)
    except OverflowError:
        return math.inf


def written(ball: arb) -> str:
    """An exact ball as the text of a fraction."""
    fraction = ball.fmpq()
    return f"{fraction.p}/{fraction.q}"


def read_exact(text: Any) -> arb:
    """The exact ball written by `written`; ``ValueError`` for other text, and for fractions that are not dyadic."""
    if not isinstance(text, str):
        raise ValueError(f"expected the text of a fraction, got {text!r}")
    numerator, _, denominator = text.partition("/")
    p, q = int(numerator), int(denominator)
    if q < 1 or q & (q - 1) or max(abs(p), q).bit_length() > 4 * MOST_BITS:
        raise ValueError(f"{text[:40]!r} is not a fraction with a power of two below")
    with ctx.workprec(max(53, abs(p).bit_length())):
        return arb(fmpq(p, q))


def read_float(text: Any) -> float:
    """The float written by ``float.hex``; ``ValueError`` for other text and for non-finite numbers."""
    if not isinstance(text, str):
        raise ValueError(f"expected a hexadecimal float, got {text!r}")
    value = float.fromhex(text)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {text!r}")
    return value

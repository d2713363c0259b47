"""Maps and their Jacobians in ball arithmetic, on points and on boxes; exact numbers in records."""

import functools
import math
import re
from typing import Any

import numpy as np
from flint import arb, ctx, fmpq, fmpz

from gdmap.engines.balls.arb import Arb
from gdmap.engines.balls.arithmetic import UndecidedError, filled
from gdmap.engines.pieces import Pattern, PiecewiseProgram
from gdmap.maps import GradientDescent, Map, Optimiser

MOST_BITS = 10_000
FRACTION = re.compile(r"-?[0-9]+/[0-9]+")

Array = np.ndarray


class BallMap:
    """``G`` and ``DG`` of a map in balls of ``bits`` binary digits.

    Points and boxes are object arrays of ``arb``, shape ``(dim,)``. What is enclosed is the formula that the map
    traces to, over the real numbers. A box must lie on one piece of a loss with kinks (ReLU): where it does not,
    `UndecidedError` is raised; so it is where the formula has no finite value. Where ``jacobian`` returns, ``DG``
    is continuous on the box.

    The loss alone decides the pieces: the update is ``G(x) = U(x, grad L(theta(x)))`` with ``U`` the optimiser's
    rule and ``theta`` the first coordinates of the state, so ``DG = dU/dx + dU/dg H dtheta/dx``.
    """

    def __init__(self, map_: Map, bits: int) -> None:
        self.arithmetic = Arb(bits)
        self.dim = map_.state_dim
        self.is_symmetric = isinstance(map_, GradientDescent)
        self.programs = programs_of(Same(map_))

    def step(self, x: Array) -> Array:
        """Enclosures of ``G`` on ``x``, shape ``(dim,)``."""
        loss, rule, step_size = self.programs
        if loss is None:
            return rule.value(x, self.pattern(rule, x), self.arithmetic)
        theta = x[: loss.dim]
        gradient = loss.gradient(theta, self.pattern(loss, theta), self.arithmetic)
        with self.arithmetic.active():
            if rule is None:
                return x - arb(step_size) * gradient
        joint = np.concatenate([x, gradient])
        return rule.value(joint, self.pattern(rule, joint), self.arithmetic)

    def jacobian(self, x: Array) -> Array:
        """Enclosures of ``DG`` on ``x``, shape ``(dim, dim)``."""
        loss, rule, step_size = self.programs
        if loss is None:
            return rule.jacobian(x, self.pattern(rule, x), self.arithmetic)
        theta = x[: loss.dim]
        pattern = self.pattern(loss, theta)
        hessian = loss.hessian(theta, pattern, self.arithmetic)
        if rule is None:
            with self.arithmetic.active():
                return self.arithmetic.constant(np.eye(self.dim)) - arb(step_size) * hessian
        joint = np.concatenate([x, loss.gradient(theta, pattern, self.arithmetic)])
        derivative = rule.jacobian(joint, self.pattern(rule, joint), self.arithmetic)
        result = derivative[:, : self.dim].copy()
        with self.arithmetic.active():
            result[:, : loss.dim] += self.arithmetic.product(derivative[:, self.dim :], hessian)
        return result

    def pattern(self, program: PiecewiseProgram, x: Array) -> Pattern:
        """The piece of ``program`` that ``x`` lies on."""
        if program.is_smooth and not program.shift_indices:
            return Pattern((), ())
        return program.pattern(x, self.arithmetic)

    def is_on_one_piece(self, x: Array) -> bool:
        """Whether the whole of ``x`` is shown to lie on one piece of the loss."""
        loss, rule, _ = self.programs
        try:
            self.pattern(loss, x[: loss.dim]) if loss is not None else self.pattern(rule, x)
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
def programs_of(same: Same) -> tuple[Any, Any, Any]:
    """The loss, the rule ``(state, gradient) -> state`` and the step size (gradient descent has no other rule).

    Maps of other kinds have the whole update as their rule, and no loss. Kept, since a map is asked about often.
    """
    map_ = same.map
    if isinstance(map_, GradientDescent):
        return PiecewiseProgram(map_.objective.evaluate, map_.state_dim), None, float(map_.step_size)
    if isinstance(map_, Optimiser):
        n, size = map_.state_dim, map_.objective.dim
        rule = PiecewiseProgram(lambda joint: map_.update_given(joint[:n], joint[n:], 0), n + size)
        return PiecewiseProgram(map_.objective.evaluate, size), rule, None
    return None, PiecewiseProgram(map_.update, map_.state_dim), None


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
    """The exact ball written by `written`; ``ValueError`` for other text and for fractions not dyadic."""
    if not isinstance(text, str) or len(text) > 2 * MOST_BITS or not FRACTION.fullmatch(text):
        raise ValueError(f"expected the text of a fraction, got {str(text)[:40]!r}")
    p, q = (int(fmpz(part)) for part in text.split("/"))
    if q < 1 or q & (q - 1):
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

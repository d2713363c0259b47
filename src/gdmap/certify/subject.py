"""What a proof is about: the gradient map of one loss, as pieces, and the ways to evaluate it."""

import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from flint import arb, fmpq

from gdmap.engines.balls.anything import ANY
from gdmap.engines.balls.arb import Arb
from gdmap.engines.balls.arithmetic import Arithmetic, UndecidedError, filled
from gdmap.engines.balls.mid_rad import Intervals, MidRad, outward
from gdmap.engines.balls.rational import Rational
from gdmap.engines.pieces import Pattern, PiecewiseProgram
from gdmap.engines.precision import float64
from gdmap.objectives import AbstractObjective

# Precisions tried in turn where verified doubles do not decide.
BITS = (128, 256, 512)
# Above this many parameters matrices are not evaluated in arbitrary precision.
LARGEST_ARBITRARY = 200
# Characters of a coordinate in a record.
LONGEST_NUMBER = 4000


class Subject:
    """The map ``theta - eta grad L(theta)`` of an objective.

    ``coordinates`` are the parameters of the map; further inputs of ``function`` (the weights of samples) stand
    behind them. Points are tuples of exact numbers (`Fraction`).
    """

    def __init__(
        self,
        objective: AbstractObjective,
        exact_decimals: bool = False,
        function: Callable[..., Any] | None = None,
        extra: int = 0,
    ) -> None:
        self.objective, self.exact_decimals, self.dim = objective, exact_decimals, objective.dim
        self.extra = extra
        loss = objective.evaluate if function is None else function
        self.pieces = PiecewiseProgram(loss, objective.dim + extra, exact_decimals)

    @property
    def verified(self) -> MidRad:
        """Verified double precision."""
        return MidRad(self.exact_decimals)

    @property
    def rational(self) -> Rational:
        """Exact rationals."""
        return Rational(self.exact_decimals)

    def balls(self, bits: int) -> Arb:
        """Balls of so many bits."""
        return Arb(bits, self.exact_decimals)

    @property
    def covers_all(self) -> bool:
        """Whether the function of each pattern is analytic on all of parameter space, and the loss defined at
        all."""
        return self.pieces.is_analytic_everywhere and self.has_value

    @functools.cached_property
    def has_value(self) -> bool:
        """Whether the loss has a value: its constants are defined (no ``1/0`` that the derivatives do not see)."""
        rng = np.random.default_rng(1)
        for scale in (0.3, 0.01, 3.0):
            point = exact_point(scale * rng.standard_normal(self.pieces.dim))
            try:
                self.require_value(point, self.pattern(point))
            except UndecidedError:
                continue
            return True
        return False

    def require_value(self, point: Sequence[Fraction], pattern: Pattern) -> None:
        """Raise `UndecidedError` unless the loss is shown to be defined, a finite number, at a point."""
        error = UndecidedError("the loss has no finite value there")
        for arithmetic in (self.verified, self.balls(BITS[0])):
            try:
                self.pieces.value(self.point(point, arithmetic), pattern, arithmetic)
            except UndecidedError as found:
                error = found
                continue
            return
        raise error

    def name_of(self, coordinate: int) -> str:
        """What a parameter is called: its place in the pytree of the objective, or its number."""
        template = getattr(self.objective, "template", None)
        for path, leaf in [] if template is None else jax.tree_util.tree_leaves_with_path(template):
            size = getattr(leaf, "size", 0) if isinstance(leaf, jax.ShapeDtypeStruct) else 0
            if coordinate < size:
                index = np.unravel_index(coordinate, leaf.shape)
                place = f"[{', '.join(str(int(i)) for i in index)}]" if leaf.shape else ""
                return f"{jax.tree_util.keystr(path) or 'theta'}{place}"
            coordinate -= size
        return f"theta[{coordinate}]"

    def point(self, point: Sequence[Fraction], arithmetic: Arithmetic) -> Any:
        """Exact numbers as a value of an arithmetic."""
        if isinstance(arithmetic, Rational):
            return filled((len(point),), [fmpq(x.numerator, x.denominator) for x in point])
        if all(is_float(x) for x in point):
            exact = type(arithmetic)() if isinstance(arithmetic, MidRad) else Arb(arithmetic.bits)  # type: ignore[attr-defined]
            return exact.constant(np.array([float(x) for x in point]))
        if isinstance(arithmetic, MidRad):
            with Arb(128).active():
                return outward(filled((len(point),), [arb(fmpq(x.numerator, x.denominator)) for x in point]))
        with arithmetic.active():
            return filled((len(point),), [arb(fmpq(x.numerator, x.denominator)) for x in point])

    def pattern(self, point: Sequence[Fraction]) -> Pattern:
        """The pattern at a point, decided; `UndecidedError` if no precision decides it."""
        if self.pieces.is_smooth and not self.pieces.shift_indices:
            return Pattern((), ())
        try:
            return self.pieces.pattern(self.point(point, self.verified), self.verified)
        except UndecidedError:
            for bits in BITS:
                try:
                    arithmetic = self.balls(bits)
                    return self.pieces.pattern(self.point(point, arithmetic), arithmetic)
                except UndecidedError as error:
                    last = error
        raise last

    def hessian(self, point: Sequence[Fraction], pattern: Pattern, bits: int | None = None) -> Intervals:
        """An enclosure of the Hessian of a pattern's function at a point, midpoints and radii in float64."""
        if bits is None:
            arithmetic: Arithmetic = self.verified
            return self.pieces.hessian(self.point(point, arithmetic), pattern, arithmetic)
        arithmetic = self.balls(bits)
        return outward(self.pieces.hessian(self.point(point, arithmetic), pattern, arithmetic))

    def exact_hessian(self, point: Sequence[Fraction], pattern: Pattern) -> np.ndarray:
        """The Hessian at a rational point, exact where it is rational, `ANY` elsewhere."""
        return self.pieces.hessian(self.point(point, self.rational), pattern, self.rational)

    def constant_images(self, pattern: Pattern, directions: Any) -> np.ndarray:
        """Products of the Hessian of a pattern with exact directions: rationals where they are the same at all
        points.

        ``directions``: (k, dim), floats or ``fmpq``; the result has the same shape, `ANY` where it may vary.
        """
        anywhere = np.full(self.pieces.dim, ANY, object)
        return self.pieces.hessian(anywhere, pattern, self.rational, directions)

    def constant_gradient(self, pattern: Pattern, coordinate: int) -> Any:
        """``dL / d theta_k`` where ``theta_k = 0``, exact if it is the same for all other parameters."""
        theta = np.full(self.pieces.dim, ANY, object)
        theta[coordinate] = fmpq(0)
        return self.pieces.gradient(theta, pattern, self.rational)[coordinate]

    @functools.cached_property
    def compiled_hessian(self) -> Callable[..., Any]:
        return jax.jit(jax.hessian(self.pieces.forced))

    def float_hessian(self, point: Sequence[Fraction], pattern: Pattern) -> np.ndarray:
        """The Hessian of a pattern's function in plain float64; for choosing what to prove, never for a proof."""
        with float64():
            theta = np.array([float(x) for x in point])
            masks = [mask.astype(bool) for mask in pattern.masks]
            hessian = np.asarray(self.compiled_hessian(theta, masks, list(pattern.shifts)))
        return (hessian + hessian.T) / 2


def is_float(x: Fraction) -> bool:
    """Whether an exact number is a float64."""
    try:
        return Fraction(float(x)) == x
    except OverflowError:
        return False


def exact_point(theta: Any) -> tuple[Fraction, ...]:
    """A vector of floats (or exact numbers) as exact numbers."""
    return tuple(x if isinstance(x, Fraction) else Fraction(float(x)) for x in theta)


def written(point: Sequence[Fraction]) -> list[str]:
    """A point for a JSON record: hexadecimal floats, or fractions."""
    return [float(x).hex() if is_float(x) else f"{x.numerator}/{x.denominator}" for x in point]


def read(point: Sequence[str]) -> tuple[Fraction, ...]:
    """A point of a record.

    Raises
    ------
    ValueError
        For text that is no such number.
    """
    if any(not isinstance(x, str) or len(x) > LONGEST_NUMBER for x in point):
        raise ValueError("a coordinate of a point is no number")
    return tuple(Fraction(x) if "/" in x else Fraction(float.fromhex(x)) for x in point)

"""The pieces of a piecewise analytic loss: where a point lies, and the loss that holds there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from gdmap.bracket import Bracket
from gdmap.certify.constants import generic_points
from gdmap.certify.drawn import Drawn, points_of
from gdmap.certify.margins import affine_margins, every_piece
from gdmap.certify.request import checked_theta
from gdmap.certify.sampling import missing_mass
from gdmap.certify.subject import Subject
from gdmap.engines.balls.arithmetic import UndecidedError
from gdmap.engines.degrees import degrees
from gdmap.engines.pieces import Pattern
from gdmap.objectives import AbstractObjective, Function


@dataclass(frozen=True)
class Piece:
    """A piece of parameter space on which the loss is analytic, given by its activation pattern.

    Attributes
    ----------
    point
        A point inside, exact.
    patterns
        For each kink of the traced loss (each ReLU layer, maximum, absolute value, comparison), in the order of
        the trace, a boolean array: for ``max(a, b)`` and comparisons whether ``a > b``, for absolute values
        whether the number is positive, for a maximum over elements which one wins (last axis). Samples are an
        axis of it. Decided in ball arithmetic: status *proved*.
    function
        The analytic function that equals the loss on the piece and is defined beyond it, as an objective: the
        *mask polynomial* where ``degree`` is not ``None``.
    degree
        Its polynomial degree (an upper bound) in the parameters, or ``None`` if it is no polynomial.
    """

    point: tuple[Fraction, ...]
    patterns: tuple[np.ndarray, ...]
    function: Function
    degree: int | None

    @property
    def theta(self) -> np.ndarray:
        """The point in float64 (rounded where it is no float)."""
        return np.array([float(x) for x in self.point])


def piece(objective: AbstractObjective, theta: Any, *, exact_decimals: bool = False) -> Piece:
    """The piece of ``objective`` that ``theta`` lies in.

    Raises
    ------
    ValueError
        If ``theta`` is of another shape, not finite, or lies on a kink (or so near that 512 bits do not tell).
    """
    subject = Subject(objective, exact_decimals)
    point = checked_theta(theta, objective.dim)
    try:
        pattern = subject.pattern(point)
    except UndecidedError as error:
        raise ValueError(f"theta lies in no piece: {error}") from error
    return described(subject, pattern, point)


def pieces(
    objective: AbstractObjective, *, max_pieces: int = 20_000, exact_decimals: bool = False
) -> Iterator[Piece]:
    """All pieces of a loss whose kinks are decided by affine functions of the parameters (one hidden layer).

    Complete and each once: *proved*, the cells of an arrangement of hyperplanes in exact arithmetic.

    Raises
    ------
    ValueError
        If the pieces cannot be listed, or are more than ``max_pieces``.
    """
    subject = Subject(objective, exact_decimals)
    if subject.pieces.is_smooth:
        point = generic_points(subject, 1, 0.3)[0]
        return iter([described(subject, subject.pattern(point), point)])
    margins = affine_margins(subject)
    if margins is None:
        raise ValueError(
            "the pieces of this loss cannot be listed: its kinks are not decided by affine functions of the "
            "parameters (more than one hidden layer, or kinks inside kinks). See sample_pieces, and "
            "certify_nonsingular for what can be proved"
        )
    if margins.n_pieces > max_pieces:
        raise ValueError(f"there are {margins.n_pieces} pieces: raise max_pieces={max_pieces} to list them")
    return (described(subject, one.pattern, one.point) for one in every_piece(subject, margins))


@dataclass(frozen=True)
class SampledPieces:
    """The pieces that random initialisations fall into.

    Attributes
    ----------
    pieces
        The distinct ones, in the order in which they were first drawn.
    counts
        How often each was drawn, int array.
    n_starts
        The number of draws, those on kinks (or too near to tell) included.
    unseen
        The probability of a piece that was not drawn: a bracket with an upper confidence bound, status *estimated*
        (see `gdmap.certify.sampling.missing_mass`).
    """

    pieces: tuple[Piece, ...]
    counts: np.ndarray
    n_starts: int
    unseen: Bracket


def sample_pieces(
    objective: AbstractObjective,
    starts: int | Callable[[Any], Any] = 100,
    *,
    scale: float = 1.0,
    seed: int = 0,
    confidence: float = 0.95,
    exact_decimals: bool = False,
) -> SampledPieces:
    """The pieces of random initialisations, and how probable a piece is that none of them fell into.

    Parameters
    ----------
    objective
        The loss.
    starts
        So many draws from ``N(0, scale^2)``, or a law ``starts(key)`` of which 60 are drawn; draw i depends on
        ``(seed, i)`` alone.
    scale, seed
        Of the draws.
    confidence
        Of the bound on the unseen probability.
    exact_decimals
        Read floats as the decimals they print as.

    Raises
    ------
    ValueError
        For a number of starts that is not positive, or a confidence outside (0, 1).
    """
    subject = Subject(objective, exact_decimals)
    drawn = Drawn.from_request(starts, scale, seed, confidence)
    points = points_of(subject, drawn.claim(subject, ()))
    found: dict[str, list[Any]] = {}
    on_kinks = 0
    for point in points:
        try:
            pattern = subject.pattern(point)
        except UndecidedError:
            on_kinks += 1
            continue
        found.setdefault(pattern.digest, [pattern, point, 0])[2] += 1
    counts = np.array([entry[2] for entry in found.values()], int)
    # A draw that is not told apart counts as a piece of its own.
    singletons = int(np.sum(counts == 1)) + on_kinks
    unseen = missing_mass(len(points), singletons, confidence)
    listed = tuple(described(subject, pattern, point) for pattern, point, _ in found.values())
    return SampledPieces(listed, counts, len(points), unseen)


def described(subject: Subject, pattern: Pattern, point: tuple[Fraction, ...]) -> Piece:
    """A pattern as a `Piece`."""
    masks = tuple(mask.astype(bool) for mask in pattern.masks)
    function = forced_function(subject, masks, pattern.shifts)
    program = subject.pieces.program
    (outcome,) = program.jaxpr.outvars
    degree = 0 if isinstance(outcome, Literal) else degrees(program, kinks=True)[outcome]
    return Piece(point, masks, Function(function, subject.dim), degree)


def forced_function(subject: Subject, masks: Any, levels: Any) -> Callable[[Any], Any]:
    """The loss with its kinks decided, as a JAX function."""

    def value(theta: Any) -> Any:
        return subject.pieces.forced(theta, [jnp.asarray(m) for m in masks], [jnp.asarray(x) for x in levels])

    return value

"""The pieces of a piecewise analytic loss: where a point lies, and the loss that holds there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from gdmap.certify.margins import affine_margins, every_piece
from gdmap.certify.request import checked_theta
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
    margins = affine_margins(subject)
    if margins is None:
        raise ValueError(
            "the pieces of this loss cannot be listed: its kinks are not decided by affine functions of the "
            "parameters (more than one hidden layer, or none). See certify_nonsingular for what can be proved"
        )
    if margins.n_pieces > max_pieces:
        raise ValueError(f"there are {margins.n_pieces} pieces: raise max_pieces={max_pieces} to list them")
    return (described(subject, one.pattern, one.point) for one in every_piece(subject, margins))


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

"""Pieces that can be counted: kinks whose margins are affine functions of the parameters (one hidden layer)."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from gdmap.certify.arrangement import count_cells, iter_cells
from gdmap.certify.subject import Subject
from gdmap.engines.balls.anything import ANY
from gdmap.engines.pieces import Pattern, PiecewiseProgram, mask_of_signs

PAIRS = ("max", "min", "abs", "sign", "gt", "ge", "lt", "le", "eq", "ne")


class Margins(NamedTuple):
    """Kink ``k`` is decided by the sign of ``normals[k] . theta + offsets[k]``, exact rationals."""

    normals: np.ndarray
    offsets: np.ndarray

    @property
    def n_pieces(self) -> int:
        """The number of pieces, exact."""
        return count_cells(self.normals, self.offsets)


class Piece(NamedTuple):
    """One piece: its pattern and an exact point inside."""

    pattern: Pattern
    point: tuple[Fraction, ...]


def affine_margins(subject: Subject) -> Margins | None:
    """The margins of all kinks if they are affine functions of the parameters, the same on all pieces; else
    ``None``.

    Affinity is proved: the derivative of the margins is evaluated with every parameter unknown and comes out as
    exact rationals.
    """
    pieces = subject.pieces
    if not pieces.kinks or any(kink.equation.primitive.name not in PAIRS for kink in pieces.kinks):
        return None
    rational = subject.rational
    program = MarginProgram(pieces)
    every = pieces.every_pattern()
    normals = pieces.columns(program.jacobian_program, np.full(pieces.dim, ANY, object), every, rational)
    normals = np.moveaxis(normals, 0, -1)  # (margins, parameters)
    if any(entry is ANY for entry in normals.ravel()):
        return None
    offsets = pieces.single(program.value_program, rational.zeros((pieces.dim,)), every, rational)
    if any(entry is ANY for entry in offsets.ravel()):
        return None
    return Margins(normals, offsets)


class MarginProgram:
    """``theta -> `` the margins of all kinks, one after another, as flat programs."""

    def __init__(self, pieces: PiecewiseProgram) -> None:
        self.pieces = pieces
        self.value_program = pieces.traced(self.margins)
        self.jacobian_program = pieces.traced_along(self.margins)

    def margins(self, theta: Any, masks: Sequence[Any], levels: Sequence[Any]) -> Any:
        """The margins of all kinks, flat, in the order of the masks."""
        found: dict[int, Any] = {}
        kinks = {id(kink.equation) for kink in self.pieces.kinks}

        def watch(equation: Any, operands: Sequence[Any]) -> None:
            if id(equation) in kinks:
                shape = equation.outvars[0].aval.shape
                other = 0.0 if equation.primitive.name in ("abs", "sign") else operands[1]
                found[id(equation)] = jnp.ravel(
                    jnp.broadcast_to(operands[0], shape) - jnp.broadcast_to(other, shape)
                )

        self.pieces.forced(theta, masks, levels, watch)
        return jnp.concatenate([found[id(kink.equation)] for kink in self.pieces.kinks])


def every_piece(subject: Subject, margins: Margins) -> Iterator[Piece]:
    """All pieces, each once, with an exact point inside; complete (see `gdmap.certify.arrangement`)."""
    equations = [kink.equation for kink in subject.pieces.kinks]
    shapes = [equation.outvars[0].aval.shape for equation in equations]
    sizes = [int(np.prod(shape, dtype=int)) for shape in shapes]
    levels = subject.pieces.every_pattern().shifts
    for cell in iter_cells(margins.normals, margins.offsets):
        parts = np.split(np.array(cell.signs), np.cumsum(sizes)[:-1])
        masks = [
            np.asarray(mask_of_signs(equation, part.reshape(shape)), np.int8)
            for equation, part, shape in zip(equations, parts, shapes, strict=True)
        ]
        yield Piece(Pattern(tuple(masks), levels), tuple(Fraction(int(x.p), int(x.q)) for x in cell.point))

"""Tensor expressions, computed where they are stored: views move no data, arithmetic waits for its consumer.

An element of a tensor is one number in each lane. Expressions are immutable; all arguments of an `Apply` have its
shape (what was broadcast has stride 0).
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Shape = tuple[int, ...]


class NeedsBuffer(Exception):  # noqa: N818 - no error: asks for a copy
    """The expression must be stored before it can be viewed in this way."""


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory for ``size`` elements: vectors of lanes, or for a ``table`` single numbers that all lanes share."""

    pointer: str
    size: int
    dtype: np.dtype
    table: bool = False


class Expression:
    """What every expression offers."""

    shape: Shape
    dtype: np.dtype
    depth: int = 0
    """How many operations lie upon one another."""

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def permuted(self, axes: Sequence[int]) -> "Expression":
        """Axis ``i`` of the result is axis ``axes[i]``."""
        raise NeedsBuffer

    def sliced(self, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]) -> "Expression":
        """Every ``step``-th element from ``start`` up to ``stop``, on each axis."""
        raise NeedsBuffer

    def broadcast(self, shape: Shape, axes: Sequence[int]) -> "Expression":
        """Axis ``i`` becomes axis ``axes[i]`` of ``shape``; the others, and those of length 1, repeat."""
        raise NeedsBuffer

    def reshaped(self, shape: Shape) -> "Expression":
        """The same elements in row-major order."""
        raise NeedsBuffer

    def flipped(self, axes: Sequence[int]) -> "Expression":
        """The order reversed along some axes."""
        raise NeedsBuffer


@dataclass(frozen=True, eq=False)
class View(Expression):
    """Elements of a buffer: index ``i`` is at ``offset + sum(i * strides)``."""

    buffer: Buffer
    offset: int
    strides: Shape
    shape: Shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.buffer.dtype

    @classmethod
    def whole(cls, buffer: Buffer, shape: Shape) -> "View":
        """All of a buffer, row-major."""
        return cls(buffer, 0, row_major(shape), shape)

    def permuted(self, axes: Sequence[int]) -> "View":
        return View(
            self.buffer, self.offset, tuple(self.strides[a] for a in axes), tuple(self.shape[a] for a in axes)
        )

    def sliced(self, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]) -> "View":
        offset = self.offset + sum(start * stride for start, stride in zip(starts, self.strides, strict=True))
        strides = tuple(stride * step for stride, step in zip(self.strides, steps, strict=True))
        return View(self.buffer, offset, strides, lengths(starts, stops, steps))

    def broadcast(self, shape: Shape, axes: Sequence[int]) -> "View":
        strides = [0] * len(shape)
        for axis, length, stride in zip(axes, self.shape, self.strides, strict=True):
            strides[axis] = stride if length == shape[axis] else 0
        return View(self.buffer, self.offset, tuple(strides), shape)

    def reshaped(self, shape: Shape) -> "View":
        strides = reshaped_strides(self.shape, self.strides, shape)
        if strides is None:
            raise NeedsBuffer
        return View(self.buffer, self.offset, strides, shape)

    def flipped(self, axes: Sequence[int]) -> "View":
        offset, strides = self.offset, list(self.strides)
        for axis in axes:
            offset += (self.shape[axis] - 1) * strides[axis]
            strides[axis] = -strides[axis]
        return View(self.buffer, offset, tuple(strides), self.shape)


@dataclass(frozen=True, eq=False)
class Constant(Expression):
    """Numbers known beforehand, the same in all lanes."""

    array: np.ndarray

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.array.dtype

    @property
    def is_uniform(self) -> bool:
        """Whether all elements are the same, to the bit."""
        return not any(self.array.strides) or self.array.size == 1

    def permuted(self, axes: Sequence[int]) -> "Constant":
        return Constant(self.array.transpose(axes))

    def sliced(self, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]) -> "Constant":
        return Constant(self.array[tuple(itertools.starmap(slice, zip(starts, stops, steps, strict=True)))])

    def broadcast(self, shape: Shape, axes: Sequence[int]) -> "Constant":
        lengths_ = [1] * len(shape)
        for axis, length in zip(axes, self.array.shape, strict=True):
            lengths_[axis] = length
        return Constant(np.broadcast_to(self.array.reshape(lengths_), shape))

    def reshaped(self, shape: Shape) -> "Constant":
        if self.is_uniform and self.array.size:
            return Constant(np.broadcast_to(self.array.reshape(-1)[0], shape))
        return Constant(self.array.reshape(shape))

    def flipped(self, axes: Sequence[int]) -> "Constant":
        return Constant(np.flip(self.array, tuple(axes)))


@dataclass(frozen=True, eq=False)
class Apply(Expression):
    """An operation element by element."""

    operation: str
    arguments: tuple[Expression, ...]
    dtype: np.dtype

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", 1 + max(argument.depth for argument in self.arguments))

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.arguments[0].shape

    def of(self, move: Callable[[Expression], Expression]) -> "Apply":
        """The operation on moved arguments."""
        return Apply(self.operation, tuple(move(argument) for argument in self.arguments), self.dtype)

    def permuted(self, axes: Sequence[int]) -> "Apply":
        return self.of(lambda argument: argument.permuted(axes))

    def sliced(self, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]) -> "Apply":
        return self.of(lambda argument: argument.sliced(starts, stops, steps))

    def broadcast(self, shape: Shape, axes: Sequence[int]) -> "Apply":
        return self.of(lambda argument: argument.broadcast(shape, axes))

    def reshaped(self, shape: Shape) -> "Apply":
        return self.of(lambda argument: argument.reshaped(shape))

    def flipped(self, axes: Sequence[int]) -> "Apply":
        return self.of(lambda argument: argument.flipped(axes))


@dataclass(frozen=True, eq=False)
class Fold(Expression):
    """``argument`` reduced over its last axes by an associative operation (sums, products, maxima, ...)."""

    operation: str
    argument: Expression
    shape: Shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", 1 + self.argument.depth)

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.argument.dtype

    @property
    def extents(self) -> Shape:
        """The lengths of the axes that are reduced."""
        return self.argument.shape[len(self.shape) :]

    def _of(self, argument: Expression) -> "Fold":
        return Fold(self.operation, argument, argument.shape[: len(argument.shape) - len(self.extents)])

    def permuted(self, axes: Sequence[int]) -> "Fold":
        reduced = range(len(self.shape), len(self.argument.shape))
        return self._of(self.argument.permuted((*axes, *reduced)))

    def sliced(self, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]) -> "Fold":
        more = self.extents
        zeros, ones = (0,) * len(more), (1,) * len(more)
        return self._of(self.argument.sliced((*starts, *zeros), (*stops, *more), (*steps, *ones)))

    def flipped(self, axes: Sequence[int]) -> "Fold":
        return self._of(self.argument.flipped(axes))

    def reshaped(self, shape: Shape) -> "Expression":
        return Reshaped(self, shape)


@dataclass(frozen=True, eq=False)
class Reshaped(Expression):
    """A fold in another shape: resolved when it is stored, by reshaping what it is stored in."""

    argument: Expression
    shape: Shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", 1 + self.argument.depth)

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.argument.dtype

    def reshaped(self, shape: Shape) -> Expression:
        return self.argument if shape == self.argument.shape else Reshaped(self.argument, shape)

    def sliced(self, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]) -> Expression:
        if not any(starts) and tuple(stops) == self.shape and all(step == 1 for step in steps):
            return self
        raise NeedsBuffer


@dataclass(frozen=True, eq=False)
class Take(Expression):
    """Elements of a one-dimensional view by number; where the number is negative, 0."""

    source: View
    numbers: np.ndarray

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.numbers.shape

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.source.dtype

    def permuted(self, axes: Sequence[int]) -> "Take":
        return Take(self.source, self.numbers.transpose(axes))

    def sliced(self, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]) -> "Take":
        return Take(
            self.source, self.numbers[tuple(itertools.starmap(slice, zip(starts, stops, steps, strict=True)))]
        )

    def broadcast(self, shape: Shape, axes: Sequence[int]) -> "Take":
        return Take(self.source, Constant(self.numbers).broadcast(shape, axes).array)

    def reshaped(self, shape: Shape) -> "Take":
        return Take(self.source, self.numbers.reshape(shape))

    def flipped(self, axes: Sequence[int]) -> "Take":
        return Take(self.source, np.flip(self.numbers, tuple(axes)))


@dataclass(frozen=True, eq=False)
class Pieces(Expression):
    """Boxes that together are the whole: pairs of where a box begins and what is in it."""

    pieces: tuple[tuple[Shape, Expression], ...]
    shape: Shape
    dtype: np.dtype

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", max(piece.depth for _, piece in self.pieces))

    def permuted(self, axes: Sequence[int]) -> "Pieces":
        pieces = tuple((tuple(at[a] for a in axes), piece.permuted(axes)) for at, piece in self.pieces)
        return Pieces(pieces, tuple(self.shape[a] for a in axes), self.dtype)

    def sliced(self, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]) -> Expression:
        if any(step != 1 for step in steps):
            raise NeedsBuffer
        kept = []
        for at, piece in self.pieces:
            low = tuple(map(max, starts, at))
            high = tuple(min(stop, a + n) for stop, a, n in zip(stops, at, piece.shape, strict=True))
            if all(a < b for a, b in zip(low, high, strict=True)):
                inner = (
                    [a - b for a, b in zip(low, at, strict=True)],
                    [a - b for a, b in zip(high, at, strict=True)],
                )
                part = part_of(piece, *inner)
                kept.append((tuple(a - b for a, b in zip(low, starts, strict=True)), part))
        shape = lengths(starts, stops, steps)
        if not kept:
            return Constant(np.zeros(shape, self.dtype))
        return kept[0][1] if len(kept) == 1 else Pieces(tuple(kept), shape, self.dtype)


def part_of(expression: Expression, starts: Sequence[int], stops: Sequence[int]) -> Expression:
    """A box of an expression; the expression itself where the box is all of it."""
    if not any(starts) and tuple(stops) == expression.shape:
        return expression
    return expression.sliced(starts, stops, [1] * len(starts))


def lengths(starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]) -> Shape:
    """The shape of a slice."""
    return tuple(
        max(0, -(-(stop - start) // step)) for start, stop, step in zip(starts, stops, steps, strict=True)
    )


def row_major(shape: Shape) -> Shape:
    """Strides, in elements, of a dense array."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def reshaped_strides(shape: Shape, strides: Shape, new: Shape) -> Shape | None:
    """The strides that show a strided array in another shape, or none if that takes a copy."""
    if math.prod(new) == 0:
        return (0,) * len(new)
    old = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    result = [0] * len(new)
    i = j = 0
    wanted = [axis for axis, n in enumerate(new) if n != 1]
    while i < len(old):
        first_i, first_j = i, j
        size, target = old[i][0], new[wanted[j]]
        while size != target:
            if size < target:
                i += 1
                size *= old[i][0]
            else:
                j += 1
                target *= new[wanted[j]]
        # The old axes from first_i to i must lie evenly, to be cut into the new ones.
        for axis in range(first_i, i):
            if old[axis][1] != old[axis + 1][0] * old[axis + 1][1]:
                return None
        stride = old[i][1]
        for axis in reversed(wanted[first_j : j + 1]):
            result[axis] = stride
            stride *= new[axis]
        i, j = i + 1, j + 1
    return tuple(result)


def boxes_around(shape: Shape, low: Shape, high: Shape) -> Iterator[tuple[Shape, Shape]]:
    """Disjoint boxes that fill what a box leaves of the whole: pairs of corner and shape."""
    begin, end = [0] * len(shape), list(shape)
    for axis in range(len(shape)):
        for start, stop in ((0, low[axis]), (high[axis], shape[axis])):
            if start < stop:
                corner = (*begin[:axis], start, *begin[axis + 1 :])
                limit = (*end[:axis], stop, *end[axis + 1 :])
                yield corner, tuple(b - a for a, b in zip(corner, limit, strict=True))
        begin[axis], end[axis] = low[axis], high[axis]


def combined(make: Callable[[Sequence[Expression]], Expression], arguments: Sequence[Expression]) -> Expression:
    """An elementwise operation on arguments some of which are in pieces: box by box of their common refinement."""
    split = next((argument for argument in arguments if isinstance(argument, Pieces)), None)
    if split is None:
        return make(arguments)
    pieces: list[tuple[Shape, Expression]] = []
    for at, piece in split.pieces:
        stops = [a + n for a, n in zip(at, piece.shape, strict=True)]
        parts = [piece if argument is split else part_of(argument, at, stops) for argument in arguments]
        found = combined(make, parts)
        if isinstance(found, Pieces):
            pieces += [(tuple(map(sum, zip(at, inner, strict=True))), part) for inner, part in found.pieces]
        else:
            pieces.append((at, found))
    return Pieces(tuple(pieces), split.shape, pieces[0][1].dtype)


def buffers_of(expression: Any) -> Iterator[Buffer]:
    """The buffers that an expression reads."""
    if isinstance(expression, View):
        yield expression.buffer
    elif isinstance(expression, Take):
        yield expression.source.buffer
    elif isinstance(expression, Apply):
        for argument in expression.arguments:
            yield from buffers_of(argument)
    elif isinstance(expression, Fold | Reshaped):
        yield from buffers_of(expression.argument)
    elif isinstance(expression, Pieces):
        for _, piece in expression.pieces:
            yield from buffers_of(piece)

"""Primitives that only move elements: where each element of the result comes from."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.precision import float64
from gdmap.engines.program import UnsupportedProgramError


class Mover(Protocol):
    """Applies a function that moves elements to arrays of one kind."""

    def rearrange(self, function: Callable[..., np.ndarray], *operands: Any) -> Any:
        """``function`` on the components of the operands."""
        ...


class PlainMover:
    """Moves elements of NumPy arrays."""

    def rearrange(self, function: Callable[..., np.ndarray], *operands: Any) -> Any:
        return function(*operands)


Rule = Callable[[Any, Sequence[Any], Mover], list[Any]]
RULES: dict[str, Rule] = {}


def registrar(rules: dict[str, Any]) -> Callable[..., Callable[[Any], Any]]:
    """``rule(*names)``, a decorator that enters a function under the names of primitives into a table of rules."""

    def rule(*names: str) -> Callable[[Any], Any]:
        def register(function: Any) -> Any:
            rules.update(dict.fromkeys(names, function))
            return function

        return register

    return rule


rule = registrar(RULES)


def output_shape(equation: Any) -> tuple[int, ...]:
    """The shape of the first result of an equation."""
    return equation.outvars[0].aval.shape


@rule("reshape")
def reshape(equation: Any, operands: Sequence[Any], mover: Mover) -> list[Any]:
    """Another shape, after an optional transposition."""
    order = equation.params.get("dimensions")

    def reshaped(a: np.ndarray) -> np.ndarray:
        return (a if order is None else np.transpose(a, order)).reshape(output_shape(equation))

    return [mover.rearrange(reshaped, operands[0])]


@rule("squeeze", "expand_dims")
def squeeze(equation: Any, operands: Sequence[Any], mover: Mover) -> list[Any]:
    """Axes of length 1 removed or added."""
    return [mover.rearrange(lambda a: a.reshape(output_shape(equation)), operands[0])]


@rule("transpose")
def transpose(equation: Any, operands: Sequence[Any], mover: Mover) -> list[Any]:
    """Axes in another order."""
    return [mover.rearrange(lambda a: np.transpose(a, equation.params["permutation"]), operands[0])]


@rule("rev")
def rev(equation: Any, operands: Sequence[Any], mover: Mover) -> list[Any]:
    """Elements in reverse order."""
    return [mover.rearrange(lambda a: np.flip(a, equation.params["dimensions"]), operands[0])]


@rule("broadcast_in_dim")
def broadcast_in_dim(equation: Any, operands: Sequence[Any], mover: Mover) -> list[Any]:
    """Copies along new axes."""
    shape, dimensions = output_shape(equation), equation.params["broadcast_dimensions"]

    def spread(a: np.ndarray) -> np.ndarray:
        inner = [1] * len(shape)
        for axis, dimension in enumerate(dimensions):
            inner[dimension] = a.shape[axis]
        return np.broadcast_to(a.reshape(inner), shape)

    return [mover.rearrange(spread, operands[0])]


@rule("slice")
def slice_rule(equation: Any, operands: Sequence[Any], mover: Mover) -> list[Any]:
    """Every so many elements of a range."""
    starts, limits = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"] or [1] * len(starts)
    key = tuple(slice(*bounds) for bounds in zip(starts, limits, strides, strict=True))
    return [mover.rearrange(lambda a: a[key], operands[0])]


@rule("split")
def split(equation: Any, operands: Sequence[Any], mover: Mover) -> list[Any]:
    """Pieces along an axis."""
    axis, ends = equation.params["axis"], np.cumsum(equation.params["sizes"])
    pieces = []
    for size, end in zip(equation.params["sizes"], ends, strict=True):
        index = np.arange(end - size, end)
        pieces.append(mover.rearrange(lambda a, index=index: np.take(a, index, axis), operands[0]))
    return pieces


@rule("concatenate")
def concatenate(equation: Any, operands: Sequence[Any], mover: Mover) -> list[Any]:
    """Arrays joined along an axis."""
    return [mover.rearrange(lambda *arrays: np.concatenate(arrays, equation.params["dimension"]), *operands)]


@rule("pad")
def pad(equation: Any, operands: Sequence[Any], mover: Mover) -> list[Any]:
    """Padding around and between elements."""
    index = padded(np.arange(size_of(equation.invars[0])).reshape(equation.invars[0].aval.shape), equation)
    return [mover.rearrange(lambda a, value: np.concatenate([a.ravel(), value.ravel()])[index], *operands)]


def padded(index: np.ndarray, equation: Any) -> np.ndarray:
    """Positions after padding, -1 where there is padding; negative amounts crop."""
    for axis, (low, high, interior) in enumerate(equation.params["padding_config"]):
        index = spaced(index, axis, int(interior) + 1)
        index = edged(index, axis, int(low), int(high))
    return index


def spaced(index: np.ndarray, axis: int, dilation: int) -> np.ndarray:
    """``index`` with ``dilation - 1`` entries -1 between neighbours along an axis."""
    if dilation == 1 or index.shape[axis] == 0:
        return index
    shape = list(index.shape)
    shape[axis] = (shape[axis] - 1) * dilation + 1
    out = np.full(shape, -1)
    out[(slice(None),) * axis + (slice(None, None, dilation),)] = index
    return out


def edged(index: np.ndarray, axis: int, low: int, high: int) -> np.ndarray:
    """``index`` with entries -1 added (or entries cropped, where negative) at the ends of an axis."""
    widths = [(0, 0)] * index.ndim
    widths[axis] = (max(low, 0), max(high, 0))
    index = np.pad(index, widths, constant_values=-1)
    key = [slice(None)] * index.ndim
    key[axis] = slice(max(-low, 0), index.shape[axis] - max(-high, 0))
    return index[tuple(key)]


def size_of(variable: Any) -> int:
    """The number of elements of a variable."""
    return int(np.prod(variable.aval.shape, dtype=int))


def sources(equation: Any, indices: Sequence[np.ndarray]) -> np.ndarray:
    """Which element of its first operand each result of an equation is; found by running it on positions."""
    positions = jnp.arange(1, size_of(equation.invars[0]) + 1).reshape(equation.invars[0].aval.shape)
    arguments = [
        jnp.asarray(array, atom.aval.dtype) for array, atom in zip(indices, equation.invars[1:], strict=True)
    ]
    parameters = dict(equation.params)
    if "fill_value" in parameters:
        parameters["fill_value"] = -1
    found = equation.primitive.bind(positions, *arguments, **parameters)
    return np.asarray(found) - 1


@rule("gather")
def gather(equation: Any, operands: Sequence[Any], mover: Mover) -> list[Any]:
    """Elements named by constant indices."""
    concrete_indices(operands[1:])
    with float64(), jax.ensure_compile_time_eval():
        index = sources(equation, operands[1:])
    if np.any(index < 0):
        raise UnsupportedProgramError("an index out of bounds")
    return [mover.rearrange(lambda a: a.ravel()[index], operands[0])]


@rule("dynamic_slice")
def dynamic_slice(equation: Any, operands: Sequence[Any], mover: Mover) -> list[Any]:
    """A block at a constant position."""
    concrete_indices(operands[1:])
    starts = [
        int(np.clip(start, 0, n - size))
        for start, n, size in zip(
            operands[1:], equation.invars[0].aval.shape, equation.params["slice_sizes"], strict=True
        )
    ]
    key = tuple(slice(s, s + size) for s, size in zip(starts, equation.params["slice_sizes"], strict=True))
    return [mover.rearrange(lambda a: a[key], operands[0])]


@rule("dynamic_update_slice")
def dynamic_update_slice(equation: Any, operands: Sequence[Any], mover: Mover) -> list[Any]:
    """A block written at a constant position."""
    concrete_indices(operands[2:])
    sizes = equation.invars[1].aval.shape
    key = tuple(
        slice(int(np.clip(start, 0, n - size)), int(np.clip(start, 0, n - size)) + size)
        for start, n, size in zip(operands[2:], equation.invars[0].aval.shape, sizes, strict=True)
    )

    def put(a: np.ndarray, update: np.ndarray) -> np.ndarray:
        out = a.copy()
        out[key] = update
        return out

    return [mover.rearrange(put, operands[0], operands[1])]


def concrete_indices(indices: Sequence[Any]) -> None:
    """Refuse indices that depend on the parameters."""
    if not all(isinstance(index, np.ndarray) and index.dtype != object for index in indices):
        raise UnsupportedProgramError("an index that depends on the parameters")


def scatter_targets(equation: Any, indices: np.ndarray) -> np.ndarray:
    """Which element of the operand each update of a ``scatter-add`` meets, -1 where it is dropped."""
    concrete_indices([indices])
    operand, _, updates = equation.invars
    with float64(), jax.ensure_compile_time_eval():
        index = jnp.asarray(indices, equation.invars[1].aval.dtype)

        def scatter(values: Any) -> Any:
            return equation.primitive.bind(jnp.zeros(operand.aval.shape), index, values, **equation.params)

        positions = jnp.arange(1.0, size_of(operand) + 1).reshape(operand.aval.shape)
        (met,) = jax.linear_transpose(scatter, jax.ShapeDtypeStruct(updates.aval.shape, np.float64))(positions)
        return np.asarray(met).astype(int) - 1


def scatter_sources(equation: Any, indices: np.ndarray) -> np.ndarray:
    """Which element each result of a ``scatter`` is: of the operand, or (counted on) of the updates."""
    concrete_indices([indices])
    operand, _, updates = equation.invars
    n, m = size_of(operand), size_of(updates)
    with float64(), jax.ensure_compile_time_eval():
        index = jnp.asarray(indices, equation.invars[1].aval.dtype)
        counts = jax.lax.scatter_add(
            jnp.zeros(operand.aval.shape), index, jnp.ones(updates.aval.shape),
            equation.params["dimension_numbers"], mode=equation.params["mode"],
        )  # fmt: skip
        if np.any(np.asarray(counts) > 1):
            raise UnsupportedProgramError(
                "several values are written to one element (scatter): which one stays is open"
            )
        found = equation.primitive.bind(
            jnp.arange(n).reshape(operand.aval.shape),
            index,
            jnp.arange(n, n + m).reshape(updates.aval.shape),
            **equation.params,
        )
    return np.asarray(found)


@rule("scatter")
def scatter(equation: Any, operands: Sequence[Any], mover: Mover) -> list[Any]:
    """Elements written over others."""
    source = scatter_sources(equation, operands[1])
    return [mover.rearrange(lambda a, b: np.concatenate([a.ravel(), b.ravel()])[source], operands[0], operands[2])]


def windows(shape: Sequence[int], parameters: dict[str, Any]) -> np.ndarray:
    """The positions in each window of a ``reduce_window``, -1 for padding: shape (*output, window)."""
    index = np.arange(int(np.prod(shape, dtype=int))).reshape(shape)
    for axis, (low, high) in enumerate(parameters["padding"]):
        index = spaced(index, axis, parameters["base_dilation"][axis])
        index = edged(index, axis, low, high)
    return windowed(
        index, parameters["window_dimensions"], parameters["window_strides"], parameters["window_dilation"]
    )


def windows_without_padding(equation: Any) -> np.ndarray:
    """The positions in each window of a maximum, padding replaced by a real element of the window."""
    positions = windows(equation.invars[0].aval.shape, equation.params)
    if not np.any(positions < 0):
        return positions
    first = np.take_along_axis(positions, np.argmax(positions >= 0, -1)[..., None], -1)
    if np.any(first < 0):
        raise UnsupportedProgramError("a pooling window that lies in the padding alone")
    return np.where(positions < 0, first, positions)


def windowed(
    index: np.ndarray, sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> np.ndarray:
    """All windows of an array of positions, flattened along a last axis."""
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(sizes, dilations, strict=True)]
    if any(n < size for n, size in zip(index.shape, reach, strict=True)):
        counts = [max(0, (n - size) // s + 1) for n, size, s in zip(index.shape, reach, strides, strict=True)]
        return np.zeros((*counts, int(np.prod(sizes, dtype=int))), int)
    views = np.lib.stride_tricks.sliding_window_view(index, reach)
    key = (*(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))
    views = views[key]
    return views.reshape(*views.shape[: index.ndim], -1)


def convolution(equation: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, ...], list[int]]:
    """A convolution as a product of matrices.

    Returns positions in the image, shape (batch, *space, groups, window), positions in the kernel, shape
    (groups, outputs per group, window), the shape (batch, *space) of the output positions, and the order that
    takes axes (groups, batch, *space, outputs per group) to those of the result, groups next to outputs.
    """
    parameters = equation.params
    lhs_spec, rhs_spec, out_spec = parameters["dimension_numbers"]
    groups, batch_groups = parameters["feature_group_count"], parameters["batch_group_count"]
    image = positions(equation.invars[0], lhs_spec)  # (batch, features, *space)
    kernel = positions(equation.invars[1], rhs_spec)  # (outputs, features per group, *window)
    for axis, (low, high) in enumerate(parameters["padding"]):
        image = spaced(image, axis + 2, parameters["lhs_dilation"][axis])
        image = edged(image, axis + 2, low, high)
    sizes = kernel.shape[2:]
    rank = len(sizes)
    views = windowed(
        image, [1, 1, *sizes], [1, 1, *parameters["window_strides"]], [1, 1, *parameters["rhs_dilation"]]
    )
    batch, space = views.shape[0], views.shape[2:-1]
    features = kernel.shape[1]
    patches = np.moveaxis(views, 1, -2)  # (batch, *space, features of all groups, window)
    if batch_groups > 1:
        # Each group of outputs sees its own part of the batch.
        batch, groups = batch // batch_groups, batch_groups
        patches = np.moveaxis(patches.reshape(groups, batch, *space, -1), 0, -2)
    patches = patches.reshape(batch, *space, groups, features * views.shape[-1])
    weights = kernel.reshape(groups, kernel.shape[0] // groups, -1)
    # The result has axes (batch, groups x outputs, *space) in the order of out_spec.
    order: list[int] = []
    for axis in np.argsort(out_spec):
        if axis == 0:
            order.append(1)
        elif axis == 1:
            order.extend([0, rank + 2])
        else:
            order.append(int(axis))
    return patches, weights, (batch, *space), order


def positions(variable: Any, spec: Sequence[int]) -> np.ndarray:
    """The positions of an operand of a convolution, axes in the canonical order."""
    return np.transpose(np.arange(size_of(variable)).reshape(variable.aval.shape), spec)


@rule("iota")
def iota(equation: Any, operands: Sequence[Any], mover: Mover) -> list[Any]:
    """Positions along an axis."""
    dimension, shape = equation.params["dimension"], output_shape(equation)
    along = np.arange(shape[dimension]).reshape([-1 if axis == dimension else 1 for axis in range(len(shape))])
    return [np.broadcast_to(along, shape).astype(np.dtype(equation.params["dtype"]))]

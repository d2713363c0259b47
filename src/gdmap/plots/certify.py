"""Where I - eta H is singular: the sign of its determinant on a slice, and how far points are from it."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from gdmap.engines.xla import on_lanes
from gdmap.maps import Map
from gdmap.objectives import AbstractObjective
from gdmap.stability.singularity import map_of, singularity_distance

NEGATIVE, ZERO, POSITIVE, UNDEFINED = range(4)
COLOURS = ("#F3C9A5", "#4D4D4D", "#BBD7EC", "#FFFFFF")
NAMES = ("negative", "zero, to rounding", "positive", "not finite")
BOUNDARY, CRITICAL = "#808080", "#B2182B"
LARGEST_RESOLUTION = 2000
# Points are moved aside by this share of a cell: kinks and symmetries tend to lie on round numbers.
ASIDE = 5e-4
# Kinks with two sides; the zeros of so many of them are drawn one by one.
TWO_SIDED = ("max", "min", "abs", "sign", "gt", "ge", "lt", "le", "eq", "ne")
MOST_MARGINS = 64


def plot_determinant_sign(
    objective: AbstractObjective | Map,
    step_size: float | None = None,
    plane: tuple[Any, Any, Any] | None = None,
    *,
    extent: float | Sequence[float] = 3.0,
    resolution: int = 240,
    title: str = "",
) -> Figure:
    """The sign of ``det(I - eta H)`` over a two-dimensional slice of parameter space (status *computed*).

    Lines show where the determinant changes its sign within a piece (the critical set of ``G``, a null set where
    the map is non-singular) and where pieces meet (kinks of the loss). A piece filled with "zero, to rounding" is
    one on which the map looks singular; `gdmap.certify_nonsingular` proves what this picture suggests.

    Parameters
    ----------
    objective
        The loss, or a map (then without ``step_size``).
    step_size
        ``eta``; a float, or anything ``float`` reads exactly enough, such as a ``fractions.Fraction``.
    plane
        ``(origin, direction_1, direction_2)``, vectors of shape ``(dim,)``: the points
        ``origin + a direction_1 + b direction_2``. By default all of parameter space, if it has two dimensions.
    extent
        The range of ``a`` and ``b``: one number ``r`` for ``[-r, r]`` squared, or ``(a_0, a_1, b_0, b_1)``.
    resolution
        Points along each axis.
    title
        A line above the picture.

    Raises
    ------
    ValueError
        For a plane that is none, an extent without an area, losses of more than two parameters without a plane.
    ModuleNotFoundError
        Without python-flint (``gdmap[proofs]``), which reads the pieces.
    """
    step_size = float(step_size) if isinstance(step_size, Fraction) else step_size
    slice_ = determinant_slice(objective, step_size, plane, extent=extent, resolution=resolution)
    figure = Figure(figsize=(6.0, 5.8), layout="constrained")
    axes = figure.subplots()
    a, b = slice_["a"].values, slice_["b"].values
    kind = slice_["kind"].transpose("b", "a").values
    axes.pcolormesh(
        a, b, kind, cmap=ListedColormap(COLOURS), vmin=-0.5, vmax=3.5, shading="nearest", rasterized=True
    )
    handles: list[Any] = [
        Patch(facecolor=COLOURS[k], edgecolor="#B0B0B0", label=NAMES[k]) for k in np.unique(kind)
    ]
    pattern = slice_["pattern"].transpose("b", "a").values
    signed = (slice_["sign"] * slice_["distance"]).transpose("b", "a").values
    mixed = meets_pieces(pattern)
    # A change of sign across a kink is no zero.
    if draw(axes, zero_lines(a, b, signed, ~mixed), CRITICAL, 1.6):
        handles.append(Line2D([], [], color=CRITICAL, lw=1.6, label="critical set, det = 0"))
    margins = slice_["margin"].transpose("kink", "b", "a").values
    smooth = [segment for margin in margins for segment in zero_lines(a, b, margin, mixed)]
    if draw(axes, smooth or cell_edges(a, b, pattern), BOUNDARY, 1.0):
        handles.append(Line2D([], [], color=BOUNDARY, lw=1.0, label="piece boundaries (kinks)"))
    axes.set_xlim(*slice_.attrs["extent"][:2])
    axes.set_ylim(*slice_.attrs["extent"][2:])
    axes.set_xlabel(slice_["a"].attrs["long_name"])
    axes.set_ylabel(slice_["b"].attrs["long_name"])
    if np.isclose(a[-1] - a[0], b[-1] - b[0]):
        axes.set_aspect("equal")
    about = f"sign of det DG, {slice_.attrs['map']}"
    if "step_size" in slice_.attrs:
        about = f"sign of det(I - eta H), step size {slice_.attrs['step_size']:.6g}"
    note = f"{about}; computed on {resolution} x {resolution} points"
    axes.set_title(f"{title}\n{note}" if title else note, fontsize="small")
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def determinant_slice(
    objective: AbstractObjective | Map,
    step_size: float | None = None,
    plane: tuple[Any, Any, Any] | None = None,
    *,
    extent: float | Sequence[float] = 3.0,
    resolution: int = 240,
) -> xr.Dataset:
    """What `plot_determinant_sign` draws, over ``(a, b)``: signs, distances, pieces and margins of kinks."""
    map_ = map_of(objective, step_size)
    origin, directions, names = checked_plane(plane, map_.objective.dim)
    low_a, high_a, low_b, high_b = checked_extent(extent)
    if (
        isinstance(resolution, bool)
        or not isinstance(resolution, int | np.integer)
        or not 2 <= resolution <= LARGEST_RESOLUTION
    ):
        raise ValueError(f"resolution must be an integer from 2 to {LARGEST_RESOLUTION}, got {resolution!r}")
    a, b = np.linspace(low_a, high_a, resolution), np.linspace(low_b, high_b, resolution)
    a, b = a + ASIDE * (a[1] - a[0]), b + ASIDE * (b[1] - b[0])
    grid = np.stack(np.meshgrid(a, b, indexing="ij"), -1).reshape(-1, 2)
    theta = origin + grid @ directions
    found = singularity_distance(map_, None, theta)
    pattern, margins = sides_of_kinks(map_.objective, theta)
    shape = (resolution, resolution)
    sign, distance = found["sign"].values.reshape(shape), found["distance"].values.reshape(shape)
    kind = np.where(sign < 0, NEGATIVE, np.where(sign > 0, POSITIVE, ZERO))
    kind = np.where(np.isfinite(distance), kind, UNDEFINED)
    attrs: dict[str, Any] = {"status": "computed", "map": repr(map_), "extent": (low_a, high_a, low_b, high_b)}
    if map_.stability_limit is not None:
        attrs["step_size"] = 2 / map_.stability_limit
    return xr.Dataset(
        {
            "kind": (("a", "b"), kind, {"meaning": ", ".join(f"{k}: {name}" for k, name in enumerate(NAMES))}),
            "sign": (("a", "b"), sign),
            "distance": (("a", "b"), distance, {"long_name": "min |1 - eta lambda_i|", "units": "1"}),
            "pattern": (("a", "b"), pattern.reshape(shape), {"long_name": "piece, numbered"}),
            "margin": (("a", "b", "kink"), margins.reshape(*shape, -1), {"long_name": "zero on the kinks"}),
        },
        coords={"a": ("a", a, {"long_name": names[0]}), "b": ("b", b, {"long_name": names[1]})},
        attrs=attrs,
    )


def checked_plane(plane: Any, dim: int) -> tuple[np.ndarray, np.ndarray, tuple[str, str]]:
    """Origin and directions of a plane, and what its axes are called."""
    if plane is None:
        if dim != 2:
            raise ValueError(
                f"the loss has {dim} parameters: give plane=(origin, direction_1, direction_2), "
                "the slice of parameter space to draw"
            )
        return np.zeros(2), np.eye(2), ("theta_0", "theta_1")
    try:
        origin, *directions = (np.asarray(part, dtype=float) for part in plane)
    except (TypeError, ValueError):
        raise ValueError("plane must be (origin, direction_1, direction_2), three vectors of numbers") from None
    shapes = [part.shape for part in (origin, *directions)]
    if len(directions) != 2 or any(shape != (dim,) for shape in shapes):
        raise ValueError(
            f"plane must be three vectors of shape ({dim},): origin, direction_1, direction_2; got {shapes}"
        )
    both = np.stack(directions)
    lengths = np.linalg.norm(both, axis=1)
    if not np.all(np.isfinite(origin)) or not np.all(np.isfinite(both)) or not np.all(lengths > 0):
        raise ValueError("the vectors of the plane must be finite, the directions not zero")
    if np.linalg.svd(both / lengths[:, None], compute_uv=False)[1] < 1e-6:
        raise ValueError("the two directions of the plane are parallel")
    return origin, both, (axis_name(origin, both[0], 1), axis_name(origin, both[1], 2))


def axis_name(origin: np.ndarray, direction: np.ndarray, number: int) -> str:
    """The name of an axis: a parameter, if the direction is one of them."""
    (support,) = np.nonzero(direction)
    if len(support) == 1 and direction[support[0]] == 1:
        shift = origin[support[0]]
        return (
            f"theta_{support[0]}" if shift == 0 else f"theta_{support[0]} {'+-'[int(shift > 0)]} {abs(shift):.4g}"
        )
    return f"steps along direction {number}"


def checked_extent(extent: Any) -> tuple[float, float, float, float]:
    """``(a_0, a_1, b_0, b_1)``."""
    try:
        numbers = np.asarray(extent, dtype=float).ravel()
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.size == 1:
        numbers = numbers[0] * np.array([-1.0, 1.0, -1.0, 1.0])
    if (
        numbers.size != 4
        or not np.all(np.isfinite(numbers))
        or numbers[0] >= numbers[1]
        or numbers[2] >= numbers[3]
    ):
        raise ValueError(
            f"extent must be a positive number or (a_0, a_1, b_0, b_1) with a_0 < a_1, b_0 < b_1, got {extent!r}"
        )
    return tuple(numbers.tolist())


# Pieces ----------------------------------------------------------------------------------------------------------


def read_pieces(objective: AbstractObjective) -> Any:
    """The loss as analytic pieces."""
    try:
        from gdmap.engines.pieces import PiecewiseProgram
    except ModuleNotFoundError as error:
        if error.name != "flint":
            raise
        raise ModuleNotFoundError(
            'plot_determinant_sign needs python-flint to find the pieces: pip install "gdmap[proofs]"',
            name="flint",
        ) from error
    return PiecewiseProgram(objective.evaluate, objective.dim)


def sides_of_kinks(objective: AbstractObjective, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A number for the piece of each point (equal numbers, equal patterns), and the margins of the kinks.

    Decided in floating point. Margins, whose zeros are the kinks, have the shape ``(points, kinks)``; there are
    none where there are too many kinks, or kinks between more than two sides (maxima).
    """
    pieces = read_pieces(objective)
    if pieces.is_smooth:
        return np.zeros(len(theta), np.int64), np.zeros((len(theta), 0))
    digests, margins = on_lanes(digest_and_margins(pieces), (theta,), 256)
    return np.unique(digests, return_inverse=True)[1].reshape(len(theta)), margins


def digest_and_margins(pieces: Any) -> Callable[[Any], Any]:
    """``theta -> `` a 64-bit number of the pattern at ``theta`` and the margins, traceable."""
    from gdmap.engines.program import replay

    kinks = {id(kink.equation): kink for kink in pieces.kinks}
    rng = np.random.default_rng(0)
    weights = {key: rng.integers(1, 2**63, kink.mask_shape, np.uint64) for key, kink in kinks.items()}
    count = sum(int(np.prod(kink.mask_shape, dtype=int)) for kink in pieces.kinks)
    has_margins = count <= MOST_MARGINS and all(kink.equation.primitive.name in TWO_SIDED for kink in pieces.kinks)

    def digest(theta: Any) -> Any:
        total, margins = jnp.zeros((), jnp.uint64), [jnp.zeros(0)]

        def record(equation: Any, operands: Sequence[Any]) -> None:
            nonlocal total
            key = id(equation)
            if key not in kinks:
                return
            shape = kinks[key].mask_shape
            mask = mask_in_floats(equation, operands, shape)
            total = total + jnp.sum(jnp.where(mask, weights[key], jnp.uint64(0)), dtype=jnp.uint64)
            if has_margins:
                other = 0.0 if equation.primitive.name in ("abs", "sign") else operands[1]
                margins.append(jnp.ravel(jnp.broadcast_to(jnp.asarray(operands[0] - other, float), shape)))

        replay(pieces.program.jaxpr, pieces.program.consts, [theta], record)
        return total, jnp.concatenate(margins)

    return digest


def mask_in_floats(equation: Any, operands: Sequence[Any], shape: tuple[int, ...]) -> Any:
    """The side of a kink (the winner of a maximum, one-hot), decided by comparing floats."""
    from gdmap.engines.pieces import to_last, window_positions

    name = equation.primitive.name
    if name in ("abs", "sign"):
        return operands[0] > 0
    if name == "clamp":
        low, value, high = operands
        return jnp.stack([jnp.broadcast_to(value > low, shape[1:]), jnp.broadcast_to(value > high, shape[1:])])
    if name in ("reduce_max", "reduce_min"):
        values = to_last(operands[0], equation.params["axes"])
        values = -values if name == "reduce_min" else values
    elif name == "reduce_window_max":
        positions = window_positions(equation)
        values = jnp.where(positions >= 0, operands[0].ravel()[np.maximum(positions, 0)], -jnp.inf)
    else:
        return jnp.broadcast_to(operands[0] > operands[1], shape)
    return jax.nn.one_hot(jnp.argmax(values, -1), values.shape[-1], dtype=bool)


# Lines -----------------------------------------------------------------------------------------------------------


def meets_pieces(pattern: np.ndarray) -> np.ndarray:
    """Which cells between four neighbouring points have corners in different pieces."""
    corners = np.stack([pattern[:-1, :-1], pattern[1:, :-1], pattern[:-1, 1:], pattern[1:, 1:]])
    return np.any(corners != corners[0], axis=0)


def zero_lines(a: np.ndarray, b: np.ndarray, values: np.ndarray, cells: np.ndarray) -> list[np.ndarray]:
    """Segments on which a function on the grid vanishes, in the chosen cells."""
    if not (np.nanmax(values) > 0 > np.nanmin(values)):
        return []
    signs = np.stack([np.sign(values[i : len(b) - 1 + i, j : len(a) - 1 + j]) for i in (0, 1) for j in (0, 1)])
    # Where a function is zero on one side, it is a line of another one.
    cells = cells & (signs.max(axis=0) > 0) & (signs.min(axis=0) < 0)
    kept: list[np.ndarray] = []
    for line in Figure().subplots().contour(a, b, values, levels=[0.0]).allsegs[0]:
        segments = np.stack([line[:-1], line[1:]], 1)
        middle = segments.mean(axis=1)
        column = np.clip(np.searchsorted(a, middle[:, 0]) - 1, 0, len(a) - 2)
        row = np.clip(np.searchsorted(b, middle[:, 1]) - 1, 0, len(b) - 2)
        kept.extend(segments[cells[row, column]])
    return kept


def cell_edges(a: np.ndarray, b: np.ndarray, pattern: np.ndarray) -> list[np.ndarray]:
    """Edges between neighbouring points of different pieces."""
    half_a, half_b = (a[1] - a[0]) / 2, (b[1] - b[0]) / 2
    rows, columns = np.nonzero(pattern[:, 1:] != pattern[:, :-1])
    x = a[columns] + half_a
    upright = np.stack([np.stack([x, b[rows] - half_b], 1), np.stack([x, b[rows] + half_b], 1)], 1)
    rows, columns = np.nonzero(pattern[1:] != pattern[:-1])
    y = b[rows] + half_b
    level = np.stack([np.stack([a[columns] - half_a, y], 1), np.stack([a[columns] + half_a, y], 1)], 1)
    return list(np.concatenate([upright, level]))


def draw(axes: Axes, segments: list[np.ndarray], colour: str, width: float) -> bool:
    """Draw segments; whether there are any."""
    if segments:
        axes.add_collection(LineCollection(segments, colors=colour, linewidths=width, capstyle="round"))
    return bool(segments)


# Distances -------------------------------------------------------------------------------------------------------


def plot_singularity_distance(dataset: xr.Dataset, title: str = "") -> Figure:
    """Histogram of ``min |1 - eta lambda_i|`` over points, on a logarithmic axis.

    Points whose distance does not exceed its error are counted in the caption and drawn at their error.

    Parameters
    ----------
    dataset
        The result of `gdmap.singularity_distance`.
    title
        A line above the picture.
    """
    for needed in ("distance", "distance_error"):
        if needed not in dataset:
            raise ValueError(
                "plot_singularity_distance draws the result of gdmap.singularity_distance: "
                f"this dataset has no {needed}"
            )
    distance, error = dataset["distance"].values, dataset["distance_error"].values
    finite = np.isfinite(distance)
    zero = finite & (distance <= error)
    shown = np.where(zero, error, distance)[finite]
    figure = Figure(figsize=(6.2, 4.0), layout="constrained")
    axes = figure.subplots()
    if shown.size:
        low, high = np.log10(shown.min()), np.log10(shown.max())
        room = max(0.05 * (high - low), 0.05)
        bins = np.logspace(low - room, high + room, 41)
        parts = [distance[finite & ~zero], error[zero]]
        colours, labels = ["#0072B2", COLOURS[ZERO]], ["distance", "zero to rounding (drawn at the error)"]
        kept = [k for k in range(2) if len(parts[k])]
        axes.hist(
            [parts[k] for k in kept],
            bins=bins.tolist(),
            stacked=True,
            color=[colours[k] for k in kept],
            label=[labels[k] for k in kept],
        )
        axes.set_xscale("log")
        if zero.any():
            axes.legend(frameon=False, fontsize="small")
    axes.set_xlabel("min |1 - eta lambda_i|: distance of I - eta H from the singular matrices")
    axes.set_ylabel("points")
    axes.grid(alpha=0.25, linewidth=0.6)
    note = f"{len(distance)} points, {int(zero.sum())} of them zero to rounding; computed: evidence, not a proof"
    if not finite.all():
        note += f"\n{int((~finite).sum())} without a finite Jacobian, not drawn"
    axes.set_title(f"{title}\n{note}" if title else note, fontsize="small")
    return figure

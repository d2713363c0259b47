"""Cells of a hyperplane arrangement, exactly: the regions into which finitely many hyperplanes cut space.

The activation patterns of a layer of piecewise linear units, as a function of the weights of the layer, are the
cells of the hyperplanes on which a preactivation vanishes. Everything here is rational arithmetic: no cell is
missed and no cell is invented, however thin it is and however degenerate the hyperplanes lie.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from flint import fmpq

from gdmap.engines.balls.anything import exact_rational

# A hyperplane {a . x + b = 0}: the integers (a_1, ..., a_d, b), without a common divisor.
Row = tuple[int, ...]


class Cell(NamedTuple):
    """An open region of an arrangement.

    Attributes
    ----------
    signs
        The sign of ``a_k . x + b_k`` on the region, one per row: +1, -1, or 0 where the row is identically zero.
    point
        A point inside, exact rationals (``flint.fmpq``), with numerators and denominators kept small.
    """

    signs: tuple[int, ...]
    point: tuple[fmpq, ...]


def cells(normals: Any, offsets: Any) -> list[Cell]:
    """All cells of the arrangement of the hyperplanes ``a_k . x + b_k = 0``, each once.

    Hyperplanes are added one by one. A new one cuts exactly those cells that contain a cell of the arrangement
    that the earlier hyperplanes induce on it (deletion and restriction), which has one dimension less.

    Parameters
    ----------
    normals
        (m, d) array of rational numbers: integers, ``fmpq``, ``Fraction``, or floats, which mean exactly the
        binary number they are. Rows may repeat, be parallel, or be zero.
    offsets
        (m,) array of rational numbers.

    Raises
    ------
    ValueError
        For shapes that do not match and for numbers that are not finite.

    Notes
    -----
    Status: proved. An arrangement that splits into independent groups of rows and coordinates has as many cells as
    the product; use `iter_cells` for large ones.
    """
    return list(iter_cells(normals, offsets))


def iter_cells(normals: Any, offsets: Any) -> Iterator[Cell]:
    """The cells of `cells` one at a time: each group of `independent_groups` is enumerated once, then combined."""
    rows, dim = read_rows(normals, offsets)
    groups = groups_of(rows, dim)
    parts: list[list[Cell]] = []
    known: dict[tuple[Row, ...], list[Cell]] = {}
    for members, coordinates in groups:
        part = tuple((*(rows[r][c] for c in coordinates), rows[r][dim]) for r in members)
        if part not in known:
            known[part] = cells_of_rows(part, len(coordinates))
        parts.append(known[part])
    return (combined(choice, groups, len(rows), dim) for choice in itertools.product(*parts))


def combined(choice: Sequence[Cell], groups: Sequence[tuple[list[int], list[int]]], m: int, dim: int) -> Cell:
    """The cell whose part in each group is the chosen one."""
    signs, point = [0] * m, [fmpq(0)] * dim
    for cell, (members, coordinates) in zip(choice, groups, strict=True):
        for row, sign in zip(members, cell.signs, strict=True):
            signs[row] = sign
        for coordinate, value in zip(coordinates, cell.point, strict=True):
            point[coordinate] = value
    return Cell(tuple(signs), tuple(point))


def count_cells(normals: Any, offsets: Any) -> int:
    """The number of cells, without listing them: the product over `independent_groups` of `number_of_cells`."""
    rows, dim = read_rows(normals, offsets)
    counts: dict[tuple[Row, ...], int] = {}
    total = 1
    for members, coordinates in groups_of(rows, dim):
        part = tuple((*(rows[r][c] for c in coordinates), rows[r][dim]) for r in members)
        if part not in counts:
            counts[part] = regions(hyperplanes_of(part), len(coordinates))
        total *= counts[part]
    return total


def number_of_cells(normals: Any, offsets: Any) -> int:
    """The number of cells by ``r(A) = r(A without h) + r(A restricted to h)`` (Zaslavsky 1975), on counts alone.

    Independent of the enumeration of `cells`, and of the splitting into groups: a control for both.
    """
    rows, dim = read_rows(normals, offsets)
    return regions(hyperplanes_of(rows), dim)


def are_all_cells(normals: Any, offsets: Any, candidates: Iterable[Cell]) -> bool:
    """Whether the candidates are all cells of the arrangement, each once: every point has the signs stated, no two
    sign vectors are equal, and there are as many as `count_cells` says.
    """
    rows, dim = read_rows(normals, offsets)
    seen: set[tuple[int, ...]] = set()
    for signs, point in candidates:
        if len(point) != dim or tuple(signs) in seen or tuple(signs) != signs_of(rows, point):
            return False
        if any(sign == 0 and any(row) for sign, row in zip(signs, rows, strict=True)):
            return False
        seen.add(tuple(signs))
    return len(seen) == count_cells(normals, offsets)


def signs_at(normals: Any, offsets: Any, point: Sequence[Any]) -> tuple[int, ...]:
    """The exact signs of ``a_k . x + b_k`` at a rational point; 0 on the hyperplane."""
    rows, dim = read_rows(normals, offsets)
    if len(point) != dim:
        raise ValueError(f"the point needs {dim} coordinates, not {len(point)}")
    return signs_of(rows, [exact_rational(x) for x in point])


def independent_groups(normals: Any) -> list[tuple[list[int], list[int]]]:
    """Rows and coordinates that belong together: the connected components of the pattern of non-zero entries.

    Returns
    -------
    Pairs (row indices, coordinate indices), in the order of their first row; a zero row is a group without
    coordinates, a coordinate that no row uses is a group without rows (these come last).
    """
    matrix = np.asarray(normals, dtype=object)
    if matrix.ndim != 2:
        raise ValueError(f"the normals need shape (m, d), not {matrix.shape}")
    rows, dim = read_rows(normals, [0] * matrix.shape[0])
    return groups_of(rows, dim)


def groups_of(rows: Sequence[Row], dim: int) -> list[tuple[list[int], list[int]]]:
    """The connected components of rows and coordinates."""
    label = list(range(dim))

    def find(c: int) -> int:
        while label[c] != c:
            label[c] = label[label[c]]
            c = label[c]
        return c

    supports = [[c for c in range(dim) if row[c]] for row in rows]
    for support in supports:
        for c in support[1:]:
            label[find(c)] = find(support[0])
    groups: dict[int, tuple[list[int], list[int]]] = {}
    for r, support in enumerate(supports):
        # A zero row stands alone, under a key of its own.
        key = find(support[0]) if support else -1 - r
        groups.setdefault(key, ([], []))[0].append(r)
    for c in range(dim):
        groups.setdefault(find(c), ([], []))[1].append(c)
    return list(groups.values())


def read_rows(normals: Any, offsets: Any) -> tuple[list[Row], int]:
    """The hyperplanes as primitive integer rows, oriented as given."""
    matrix, shifts = np.asarray(normals, dtype=object), np.asarray(offsets, dtype=object)
    if matrix.ndim != 2 or shifts.shape != matrix.shape[:1]:
        raise ValueError(
            f"the normals need shape (m, d) and the offsets shape (m,), not {matrix.shape} and {shifts.shape}"
        )
    return [primitive_row([*row, shift]) for row, shift in zip(matrix, shifts, strict=True)], matrix.shape[1]


def primitive_row(values: Iterable[Any]) -> Row:
    """The primitive integer vector that is a positive multiple of the values."""
    exact = [exact_rational(value) for value in values]
    denominator = math.lcm(*(int(value.q) for value in exact))
    return reduced([int(value.p) * (denominator // int(value.q)) for value in exact])


def reduced(row: Sequence[int]) -> Row:
    """An integer row divided by its greatest common divisor."""
    divisor = math.gcd(*row)
    return tuple(value // divisor for value in row) if divisor > 1 else tuple(row)


def oriented(row: Row) -> tuple[Row, int]:
    """The row with a positive leading coefficient, and the sign it had."""
    leading = next(value for value in row if value)
    return (row, 1) if leading > 0 else (tuple(-value for value in row), -1)


def hyperplanes_of(rows: Iterable[Row]) -> list[Row]:
    """The distinct hyperplanes among the rows, each with one orientation; rows without a normal are none."""
    return list(dict.fromkeys(oriented(row)[0] for row in rows if any(row[:-1])))


def restricted(row: Row, hyperplane: Row, pivot: int) -> Row:
    """A row as a function on the hyperplane, whose coordinate ``pivot`` is eliminated; up to a positive factor."""
    a, b = hyperplane[pivot], row[pivot]
    if a < 0:
        a, b = -a, -b
    eliminated = [a * x - b * y for x, y in zip(row, hyperplane, strict=True)]
    return reduced(eliminated[:pivot] + eliminated[pivot + 1 :])


def pivot_of(hyperplane: Row) -> int:
    """The coordinate with the smallest non-zero coefficient, which keeps the numbers small."""
    return min((c for c in range(len(hyperplane) - 1) if hyperplane[c]), key=lambda c: abs(hyperplane[c]))


def regions(hyperplanes: Sequence[Row], dim: int) -> int:
    """The number of regions of distinct hyperplanes."""
    if dim <= 1:
        return len(hyperplanes) + 1
    total = 1
    for k, hyperplane in enumerate(hyperplanes):
        pivot = pivot_of(hyperplane)
        total += regions(hyperplanes_of(restricted(row, hyperplane, pivot) for row in hyperplanes[:k]), dim - 1)
    return total


def signs_of(rows: Iterable[Row], point: Sequence[fmpq]) -> tuple[int, ...]:
    """The sign of each row at the point."""
    denominator = math.lcm(*(int(x.q) for x in point))
    homogeneous = [*(int(x.p) * (denominator // int(x.q)) for x in point), denominator]
    return tuple(sign(sum(map(int.__mul__, row, homogeneous))) for row in rows)


def sign(value: Any) -> int:
    """+1, 0 or -1."""
    return (value > 0) - (value < 0)


def cells_of_rows(rows: Sequence[Row], dim: int) -> list[Cell]:
    """All cells, where rows may repeat, be opposite, or have no normal."""
    hyperplanes = hyperplanes_of(rows)
    place = {hyperplane: index for index, hyperplane in enumerate(hyperplanes)}
    # Each row is a hyperplane with an orientation, or constant.
    origin: list[tuple[int | None, int]] = []
    for row in rows:
        if any(row[:-1]):
            hyperplane, orientation = oriented(row)
            origin.append((place[hyperplane], orientation))
        else:
            origin.append((None, sign(row[-1])))
    found = on_line(hyperplanes) if dim == 1 else cells_of_hyperplanes(hyperplanes, dim)
    return [
        Cell(tuple(s if index is None else s * signs[index] for index, s in origin), point)
        for signs, point in found
    ]


def on_line(hyperplanes: Sequence[Row]) -> list[Cell]:
    """The intervals between distinct points of a line."""
    points = sorted((fmpq(-b, a), index) for index, (a, b) in enumerate(hyperplanes))
    signs = [-1 if a > 0 else 1 for a, _ in hyperplanes]
    ends = [None, *(point for point, _ in points), None]
    found = [Cell(tuple(signs), (simplest_between(ends[0], ends[1]),))]
    for position, (_, index) in enumerate(points, start=1):
        signs[index] *= -1
        found.append(Cell(tuple(signs), (simplest_between(ends[position], ends[position + 1]),)))
    return found


def cells_of_hyperplanes(hyperplanes: Sequence[Row], dim: int) -> list[Cell]:
    """All cells of distinct hyperplanes."""
    found = [Cell((), (fmpq(0),) * dim)]
    for k, hyperplane in enumerate(hyperplanes):
        earlier, pivot = hyperplanes[:k], pivot_of(hyperplane)
        traces = cells_of_rows([restricted(row, hyperplane, pivot) for row in earlier], dim - 1)
        cut = {trace.signs: trace.point for trace in traces}
        divided: list[Cell] = []
        for signs, point in found:
            if signs in cut:
                on_it = lifted(cut[signs], hyperplane, pivot)
                for side, moved in both_sides(earlier, on_it, pivot):
                    # Upwards along the coordinate the sign is that of its coefficient.
                    divided.append(Cell((*signs, side * sign(hyperplane[pivot])), moved))
            else:
                divided.append(Cell((*signs, *signs_of([hyperplane], point)), point))
        found = divided
    return [Cell(signs, simplified(hyperplanes, point)) for signs, point in found]


def lifted(point: Sequence[fmpq], hyperplane: Row, pivot: int) -> tuple[fmpq, ...]:
    """The point of the hyperplane whose other coordinates are given."""
    others = [*hyperplane[:pivot], *hyperplane[pivot + 1 : -1]]
    value = hyperplane[-1] + sum((a * x for a, x in zip(others, point, strict=True) if a), fmpq(0))
    return (*point[:pivot], -value / hyperplane[pivot], *point[pivot:])


def both_sides(rows: Sequence[Row], point: tuple[fmpq, ...], axis: int) -> list[tuple[int, tuple[fmpq, ...]]]:
    """Points above and below along one coordinate, with no change of the signs of the rows."""
    lower, upper = free_interval(rows, point, axis)
    above, below = simplest_between(point[axis], upper), simplest_between(lower, point[axis])
    return [(1, replaced(point, axis, above)), (-1, replaced(point, axis, below))]


def replaced(point: tuple[fmpq, ...], axis: int, value: fmpq) -> tuple[fmpq, ...]:
    """The point with one coordinate changed."""
    return (*point[:axis], value, *point[axis + 1 :])


def free_interval(rows: Iterable[Row], point: Sequence[fmpq], axis: int) -> tuple[fmpq | None, fmpq | None]:
    """How far one coordinate can move, in an open interval, before a row vanishes; ``None`` for without end."""
    denominator = math.lcm(*(int(x.q) for x in point))
    homogeneous = [*(int(x.p) * (denominator // int(x.q)) for x in point), denominator]
    lower, upper = None, None
    for row in rows:
        a = row[axis]
        if not a:
            continue
        # The row vanishes when the coordinate falls by this much.
        fall = fmpq(sum(map(int.__mul__, row, homogeneous)), a * denominator)
        if fall > 0:
            lower = fall if lower is None or fall < lower else lower
        else:
            upper = fall if upper is None or fall > upper else upper
    here = point[axis]
    return None if lower is None else here - lower, None if upper is None else here - upper


def simplified(rows: Sequence[Row], point: tuple[fmpq, ...]) -> tuple[fmpq, ...]:
    """A point of the same cell with small numerators and denominators."""
    for axis in range(len(point)):
        point = replaced(point, axis, simplest_between(*free_interval(rows, point, axis)))
    if not any(row[-1] for row in rows):
        # A cone: any positive multiple will do.
        return tuple(fmpq(value) for value in primitive_row(point))
    return point


def simplest_between(lower: fmpq | None, upper: fmpq | None) -> fmpq:
    """The rational of smallest denominator, then smallest numerator, in an open interval; ``None`` is infinity."""
    if (lower is None or lower < 0) and (upper is None or upper > 0):
        return fmpq(0)
    if upper is not None and upper <= 0:
        return -simplest_between(-upper, None if lower is None else -lower)
    assert lower is not None
    whole = lower.floor()
    if upper is None or whole + 1 < upper:
        return fmpq(whole + 1)
    below, above = lower - whole, upper - whole
    return whole + 1 / simplest_between(1 / above, 1 / below if below != 0 else None)

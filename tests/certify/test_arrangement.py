import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from flint import fmpq
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from gdmap.certify.arrangement import (
    Cell,
    are_all_cells,
    cells,
    count_cells,
    independent_groups,
    iter_cells,
    number_of_cells,
    signs_at,
    simplest_between,
)


def check(normals, offsets, expected=None):
    """All cells of an arrangement, after the tests that hold for every arrangement."""
    found = cells(normals, offsets)
    assert are_all_cells(normals, offsets, found)
    assert all(signs_at(normals, offsets, cell.point) == cell.signs for cell in found)
    assert len({cell.signs for cell in found}) == len(found)
    assert len(found) == number_of_cells(normals, offsets) == count_cells(normals, offsets)
    if expected is not None:
        assert len(found) == expected
    return found


def by_linear_programs(normals, offsets):
    """The sign vectors for which a point has all rows beyond a margin: one sign vector at a time."""
    normals, offsets = np.asarray(normals, float), np.asarray(offsets, float)
    m, d = normals.shape
    found = set()
    for signs in itertools.product((-1, 1), repeat=m):
        s = np.array(signs)
        # Maximise t with s (a . x + b) >= t, t <= 1.
        left = np.column_stack([-s[:, None] * normals, np.ones(m)])
        solution = linprog([0] * d + [-1], left, s * offsets, bounds=[(-1e3, 1e3)] * d + [(None, 1)])
        assert solution.success
        if solution.x[-1] > 1e-7:
            found.add(signs)
    return found


@pytest.mark.parametrize(("m", "d"), [(1, 1), (4, 3), (6, 3), (5, 2), (3, 5), (9, 4)])
def test_generic_central_arrangements(m, d):
    normals = np.random.default_rng(m + d).standard_normal((m, d))
    found = check(normals, np.zeros(m), 2 * sum(math.comb(m - 1, k) for k in range(d)))
    # Cells of a central arrangement come in opposite pairs.
    assert {tuple(-s for s in cell.signs) for cell in found} == {cell.signs for cell in found}


@pytest.mark.parametrize(("m", "d"), [(0, 2), (1, 1), (6, 1), (7, 2), (6, 3), (3, 5), (8, 4)])
def test_generic_affine_arrangements(m, d):
    rng = np.random.default_rng(m + d)
    check(rng.standard_normal((m, d)), rng.standard_normal(m), sum(math.comb(m, k) for k in range(d + 1)))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_braid_arrangement_has_a_cell_for_each_order(n):
    rows = [[(k == i) - (k == j) for k in range(n)] for i in range(n) for j in range(i)]
    found = check(rows, [0] * len(rows), math.factorial(n))
    assert {tuple(np.argsort([float(Fraction(str(x))) for x in cell.point])) for cell in found} == set(
        itertools.permutations(range(n))
    )


@pytest.mark.parametrize("d", [1, 3, 6])
def test_boolean_arrangement(d):
    found = check(np.eye(d), np.zeros(d), 2**d)
    assert all(abs(x) == 1 for cell in found for x in cell.point)


def test_degenerate_families():
    # Shi arrangement of type A_2: x_i - x_j = 0 and 1 for i < j: (n + 1)^(n - 1) cells.
    normals = [[1, -1, 0], [1, -1, 0], [1, 0, -1], [1, 0, -1], [0, 1, -1], [0, 1, -1]]
    check(normals, [0, -1] * 3, 16)
    # Linial arrangement: x_i - x_j = 1 for i < j: 1, 2, 7, 36 cells.
    for n, expected in ((2, 2), (3, 7), (4, 36)):
        rows = [[(k == i) - (k == j) for k in range(n)] for j in range(n) for i in range(j)]
        check(rows, [-1] * len(rows), expected)
    # Type B_3: 2^3 3! cells.
    rows = [*np.eye(3, dtype=int).tolist(), [1, 1, 0], [1, -1, 0], [1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1]]
    check(rows, [0] * 9, 48)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_small_integer_arrangements_agree_with_linear_programs(data):
    """Small integers make repeated, opposite, parallel and concurrent hyperplanes common."""
    d, m = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    entries = st.integers(-2, 2)
    normals = data.draw(
        st.lists(st.lists(entries, min_size=d, max_size=d).filter(any), min_size=m, max_size=m), label="normals"
    )
    offsets = data.draw(st.lists(entries, min_size=m, max_size=m), label="offsets")
    assert {cell.signs for cell in check(normals, offsets)} == by_linear_programs(normals, offsets)


def test_repeated_opposite_and_scaled_rows():
    found = check([[1, 2], [-2, -4], [1, 2], [Fraction(1, 3), Fraction(2, 3)]], [1, -2, 1, Fraction(1, 3)], 2)
    assert {cell.signs for cell in found} == {(1, -1, 1, 1), (-1, 1, -1, -1)}


def test_rows_without_a_normal_have_a_constant_sign():
    found = check([[0, 0], [0, 1], [0, 0], [0, 0]], [3, 0, -2, 0], 2)
    assert {cell.signs for cell in found} == {(1, 1, -1, 0), (1, -1, -1, 0)}


def test_no_hyperplanes_and_no_coordinates():
    assert check(np.zeros((0, 3)), []) == [Cell((), (fmpq(0),) * 3)]
    assert check(np.zeros((1, 0)), [-1]) == [Cell((-1,), ())]


def test_a_cell_thinner_than_a_double_is_found():
    thin = Fraction(1, 10**40)
    found = check([[1], [1]], [0, -thin], 3)
    (inside,) = [cell for cell in found if cell.signs == (1, -1)]
    assert 0 < inside.point[0] < fmpq(1, 10**40)


def test_floats_are_the_binary_numbers_they_are():
    # 0.1 + 0.2 is not 0.3: three lines miss a common point by 3e-17, and enclose a triangle.
    normals, offsets = [[1, 0], [0, 1], [1, 1]], [-0.1, -0.2, -0.3]
    check(normals, offsets, 7)
    check(normals, [Fraction(-1, 10), Fraction(-2, 10), Fraction(-3, 10)], 6)


def network_rows(inputs, width):
    """The preactivations of a hidden layer with biases, as functions of its weights."""
    extended = np.column_stack([inputs, np.ones(len(inputs))])
    return np.kron(np.eye(width), extended)


def test_patterns_of_a_hidden_layer_are_a_product_over_units():
    inputs = np.random.default_rng(0).standard_normal((4, 2))
    rows = network_rows(inputs, 3)
    groups = independent_groups(rows)
    assert groups == [(list(range(4 * u, 4 * u + 4)), list(range(3 * u, 3 * u + 3))) for u in range(3)]
    found = check(rows, np.zeros(12), 14**3)
    assert {cell.signs[:4] for cell in found} == {cell.signs for cell in cells(rows[:4, :3], np.zeros(4))}


def test_large_products_are_counted_and_listed_lazily():
    rows = network_rows(np.random.default_rng(1).standard_normal((5, 2)), 40)
    assert count_cells(rows, np.zeros(200)) == 22**40
    few = list(itertools.islice(iter_cells(rows, np.zeros(200)), 3))
    assert all(signs_at(rows, np.zeros(200), cell.point) == cell.signs for cell in few)
    assert len({cell.signs for cell in few}) == 3


def test_groups_of_coordinates_without_rows_and_rows_without_coordinates():
    assert independent_groups([[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 2]]) == [
        ([0, 2], [1, 3]),
        ([1], []),
        ([], [0]),
        ([], [2]),
    ]


def test_an_incomplete_or_false_list_is_rejected():
    normals, offsets = [[1, 0], [0, 1], [1, 1]], [0, 0, -1]
    found = cells(normals, offsets)
    assert are_all_cells(normals, offsets, found)
    assert not are_all_cells(normals, offsets, found[1:])
    assert not are_all_cells(normals, offsets, [*found[1:], found[1]])
    moved = Cell(found[0].signs, found[1].point)
    assert not are_all_cells(normals, offsets, [moved, *found[1:]])
    # A point on a hyperplane is in no cell.
    on_it = Cell(signs_at(normals, offsets, (0, 5)), (fmpq(0), fmpq(5)))
    assert not are_all_cells(normals, offsets, [on_it, *found[1:]])


def test_points_are_simple_numbers():
    normals = np.random.default_rng(3).standard_normal((6, 3))
    assert all(abs(int(x.p)) < 1000 and x.q == 1 for cell in cells(normals, np.zeros(6)) for x in cell.point)


@given(st.fractions(), st.fractions())
def test_simplest_between(a, b):
    lower, upper = sorted((a, b))
    if lower == upper:
        return
    x = simplest_between(fmpq(lower.numerator, lower.denominator), fmpq(upper.numerator, upper.denominator))
    value = Fraction(int(x.p), int(x.q))
    assert lower < value < upper
    for q in range(1, min(value.denominator, 300)):
        # No fraction of smaller denominator lies between.
        assert math.floor(lower * q) + 1 >= upper * q


def test_simplest_between_infinite_ends():
    assert simplest_between(None, None) == 0
    assert simplest_between(fmpq(3), None) == 4
    assert simplest_between(None, fmpq(-5, 2)) == -3
    assert simplest_between(fmpq(0), None) == 1


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="shape"):
        cells([[1, 2]], [1, 2])
    with pytest.raises(ValueError, match="shape"):
        cells([1, 2], [1, 2])
    with pytest.raises(ValueError, match="finite"):
        cells([[1, np.inf]], [1])
    with pytest.raises(TypeError, match="expected"):
        cells([["1", 2]], [1])
    with pytest.raises(ValueError, match="2 coordinates"):
        signs_at([[1, 2]], [1], [1])

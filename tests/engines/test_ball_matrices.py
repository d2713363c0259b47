"""Verified matrix bounds against ball arithmetic at high precision, and against matrices known to break them."""

import flint
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmap.engines.balls import matrices
from gdmap.engines.balls.matrices import (
    determinant_sign,
    intersection,
    midpoint_radius,
    norm_bound,
    positive_definite,
    regularity,
    spectrum_enclosure,
    union,
)

WIDTHS = [0.0, 1e-15, 1e-9, 1e-3, 0.3]


def random_symmetric(rng, n, kind):
    """Symmetric matrices of several kinds: generic, clustered, ill conditioned, singular, graded, sparse, zero."""
    Q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    scale = 2.0 ** np.arange(0, -3 * n, -3)
    eigenvalues = {
        "generic": rng.standard_normal(n),
        "clustered": 1.0 + 1e-14 * rng.standard_normal(n) * (rng.random(n) < 0.7),
        "ill": 10.0 ** -rng.uniform(0, 14, n),
        "singular": rng.standard_normal(n) * (np.arange(n) > 0),
    }.get(kind)
    if eigenvalues is not None:
        A = (Q * eigenvalues) @ Q.T
    elif kind == "graded":
        A = scale[:, None] * rng.standard_normal((n, n)) * scale
    elif kind == "integers":
        A = rng.integers(-2, 3, (n, n)).astype(float)
    else:
        A = np.zeros((n, n))
    return A + A.T if kind in ("graded", "integers") else (A + A.T) / 2


KINDS = ["generic", "clustered", "ill", "singular", "graded", "integers", "zero"]
cases = given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.sampled_from(KINDS), st.sampled_from(WIDTHS))


def in_set(rng, mid, rad):
    """A symmetric matrix with |A - mid| <= rad, exactly: corners half of the time."""
    weights = rng.choice([-1.0, 1.0], mid.shape) if rng.random() < 0.5 else rng.uniform(-1, 1, mid.shape)
    weights = np.tril(weights) + np.tril(weights, -1).T
    exact = [
        [
            flint.fmpq(*float(m).as_integer_ratio()) + flint.fmpq(*float(r * w).as_integer_ratio())
            for m, r, w in row
        ]
        for row in (zip(*rows, strict=True) for rows in zip(mid, rad, weights, strict=True))
    ]
    return flint.fmpq_mat(exact)


def exact_eigenvalues(matrix):
    """Eigenvalues of a symmetric matrix of rationals to fifty digits, by mpmath."""
    n = matrix.nrows()
    with mpmath.workdps(60):
        A = mpmath.matrix(n, n)
        for i in range(n):
            for j in range(n):
                A[i, j] = mpmath.mpf(int(matrix[i, j].p)) / int(matrix[i, j].q)
        return sorted(mpmath.eigsy(A, eigvals_only=True))


@cases
@settings(max_examples=150, deadline=None)
def test_spectra_norms_and_regularity_hold_for_every_matrix_of_the_set(seed, n, kind, width):
    rng = np.random.default_rng(seed)
    mid = random_symmetric(rng, n, kind)
    rad = width * np.abs(rng.standard_normal((n, n))) * (rng.random((n, n)) < 0.7)
    rad = np.minimum(rad, rad.T)
    lower, upper = spectrum_enclosure(mid, rad)
    bound, regular, positive = norm_bound(mid, rad), regularity(mid, rad) < 1, positive_definite(mid, rad)
    assert np.all(np.diff(lower) >= 0) and np.all(np.diff(upper) >= 0) and np.all(lower <= upper)
    for _ in range(3):
        matrix = in_set(rng, mid, rad)
        eigenvalues = exact_eigenvalues(matrix)
        slack = mpmath.mpf(10) ** -50 * (1 + max(map(abs, eigenvalues)))
        assert all(
            mpmath.mpf(low) - slack <= value <= mpmath.mpf(high) + slack
            for low, value, high in zip(lower, eigenvalues, upper, strict=True)
        )
        assert max(map(abs, eigenvalues)) <= mpmath.mpf(bound) + slack
        if regular:
            assert matrix.det() != 0
        if positive:
            assert eigenvalues[0] > -slack and matrix.det() > 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_the_enclosures_are_narrow_where_the_set_is_one_matrix(seed, n):
    rng = np.random.default_rng(seed)
    A = random_symmetric(rng, n, "generic")
    size = np.linalg.norm(A, 2)
    lower, upper = spectrum_enclosure(A, np.zeros_like(A))
    assert np.max(upper - lower) <= 1e-13 * n * max(size, 1e-3)
    assert np.linalg.norm(A, 2) <= norm_bound(A, np.zeros_like(A)) <= 1.001 * np.sqrt(n) * size
    smallest = np.min(np.abs(np.linalg.eigvalsh(A)))
    if smallest > 1e-8 * size:
        assert regularity(A, np.zeros_like(A)) < 1e-3
        assert regularity(A, np.full_like(A, 0.2 * smallest / n**1.5)) < 1
    square = A @ A + np.eye(n)
    assert positive_definite(square, np.zeros_like(A))
    assert positive_definite(square, np.full_like(A, 0.4 / n))
    assert not positive_definite(A - (np.linalg.eigvalsh(A)[0] + 1e-3) * np.eye(n), np.zeros_like(A))


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
@settings(max_examples=100, deadline=None)
def test_a_singular_matrix_is_never_regular_nor_definite(seed, n):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-9, 10, (n, n - 1)).astype(float)
    gram = vectors @ vectors.T  # exact in float64
    assert not regularity(gram, np.zeros_like(gram)) < 1
    assert not positive_definite(gram, np.zeros_like(gram))
    lower, upper = spectrum_enclosure(gram, np.zeros_like(gram))
    assert lower[0] <= 0 <= upper[0]
    # A regular midpoint whose set holds a singular matrix.
    shift = 0.125
    moved = gram + shift * np.eye(n)
    assert not regularity(moved, shift * np.eye(n)) < 1
    assert not positive_definite(moved, shift * np.eye(n))
    assert not regularity(moved, np.full((n, n), 1.0)) < 1


def test_the_edge_of_regularity_is_met_to_rounding():
    mid, rad = np.array([[2.0]]), np.array([[2.0]])
    assert not regularity(mid, rad) < 1
    assert regularity(mid, rad * (1 - 1e-12)) < 1
    hilbert = np.array([[1 / (i + j + 1) for j in range(8)] for i in range(8)])
    exact = flint.fmpq_mat([[flint.fmpq(*float(x).as_integer_ratio()) for x in row] for row in hilbert])
    assert exact.det() != 0
    assert regularity(hilbert, np.zeros((8, 8))) < 1  # condition number 1e10
    worse = np.array([[1 / (i + j + 1) for j in range(14)] for i in range(14)])
    assert not regularity(worse, np.zeros((14, 14))) < 1  # 1e18: too close to tell


def test_scales_of_the_unknowns_do_not_matter():
    rng = np.random.default_rng(0)
    scale = 10.0 ** np.linspace(-7, 7, 12)
    A = random_symmetric(rng, 12, "generic") + 6 * np.eye(12)
    mid = scale[:, None] * A * scale
    assert regularity(mid, 1e-6 * np.abs(mid)) < 1


def test_unsymmetric_midpoints_of_a_symmetric_truth():
    rng = np.random.default_rng(1)
    truth = random_symmetric(rng, 6, "integers")
    mid = truth + 1e-3 * rng.uniform(-1, 1, (6, 6))
    lower, upper = spectrum_enclosure(mid, np.full((6, 6), 1e-3))
    eigenvalues = np.linalg.eigvalsh(truth)
    assert np.all(lower <= eigenvalues + 1e-12) and np.all(eigenvalues - 1e-12 <= upper)
    assert np.max(upper - lower) < 0.05
    definite = truth @ truth + np.eye(6)
    assert positive_definite(definite + 1e-3 * rng.uniform(-1, 1, (6, 6)), np.full((6, 6), 1e-3))


def test_a_block_that_is_well_known_stays_so_beside_one_that_is_not():
    mid = np.diag([1.0, 2.0, 50.0, 60.0])
    rad = np.zeros((4, 4))
    rad[2:, 2:] = 3.0
    lower, upper = spectrum_enclosure(mid, rad)
    assert np.max((upper - lower)[:2]) < 1e-12
    assert np.all((upper - lower)[2:] < 13)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.7e308])
def test_what_is_not_finite_proves_nothing(bad):
    mid, rad = np.eye(3), np.zeros((3, 3))
    mid[0, 1] = mid[1, 0] = bad
    if np.isfinite(bad):
        mid[0, 2] = mid[2, 0] = mid[1, 2] = mid[2, 1] = bad
    assert not regularity(mid, rad) < 1 or np.isfinite(bad)
    assert norm_bound(mid, rad) == np.inf
    assert not positive_definite(mid, rad)
    lower, upper = spectrum_enclosure(mid, rad)
    assert np.all(np.isneginf(lower)) and np.all(np.isposinf(upper))
    if np.isfinite(bad):
        return
    rad = np.zeros((3, 3))
    rad[0, 0] = abs(bad)
    assert not regularity(np.eye(3), rad) < 1
    assert norm_bound(np.eye(3), rad) == np.inf
    assert not positive_definite(np.eye(3), rad)
    assert np.all(np.isposinf(spectrum_enclosure(np.eye(3), rad)[1]))


def test_small_and_denormal_matrices():
    tiny = np.full((2, 2), 5e-324)
    assert norm_bound(tiny, tiny) >= 2e-323
    assert not regularity(tiny, np.zeros((2, 2))) < 1
    assert not positive_definite(tiny, np.zeros((2, 2)))
    assert norm_bound(np.zeros((3, 3)), np.zeros((3, 3))) < 1e-50
    lower, upper = spectrum_enclosure(1e-200 * np.diag([1.0, 2.0]), np.zeros((2, 2)))
    assert lower[0] <= 1e-200 <= upper[0] and upper[1] < 1e-100


def test_products_in_pieces_are_within_their_bound(monkeypatch):
    monkeypatch.setattr(matrices, "CHUNK", 8)
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((5, 61)), rng.standard_normal((61, 4))
    result, roundings = matrices.product(a, b)
    exact = np.array(
        (flint.arb_mat(a.tolist()) * flint.arb_mat(b.tolist())).tolist(), dtype=object
    )  # 53 bits of ball arithmetic
    assert roundings == 8 + 8
    bound = matrices.gamma(roundings) * (np.abs(a) @ np.abs(b))
    assert all(abs(x - y) <= e for x, y, e in zip(result.flat, exact.flat, bound.flat, strict=True))
    A = random_symmetric(rng, 40, "generic")
    lower, upper = spectrum_enclosure(A, np.zeros_like(A))
    eigenvalues = np.linalg.eigvalsh(A)
    assert np.all(lower <= eigenvalues) and np.all(eigenvalues <= upper) and np.max(upper - lower) < 1e-11
    assert positive_definite(A @ A.T + np.eye(40), np.zeros_like(A))


@pytest.mark.parametrize(
    ("mid", "rad"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3))),
        (np.zeros((2, 2)), np.zeros((3, 3))),
        (np.zeros((0, 0)), np.zeros((0, 0))),
        (np.eye(2), -np.eye(2)),
    ],
)
def test_shapes_and_signs_are_checked(mid, rad):
    for function in (regularity, norm_bound, positive_definite, spectrum_enclosure):
        with pytest.raises(ValueError, match=r"square|negative"):
            function(mid, rad)


intervals = st.lists(
    st.tuples(st.integers(-20, 20), st.integers(0, 6)).map(lambda pair: (float(pair[0]), float(sum(pair)))),
    max_size=9,
)


@given(intervals, intervals)
@settings(max_examples=300, deadline=None)
def test_unions_and_intersections_as_sets_of_points(a, b):
    grid = np.arange(-21, 30, 0.25)

    def members(pieces):
        return {x for x in grid for low, high in pieces if low <= x <= high}

    first, second = (union(np.array([p[0] for p in x]), np.array([p[1] for p in x])) for x in (a, b))
    common = intersection(first, second)
    assert members(first) == members(a) and members(common) == members(a) & members(b)
    for pieces in (first, second, common):
        assert pieces.shape == (len(pieces), 2)
        assert np.all(pieces[:, 0] <= pieces[:, 1]) and np.all(pieces[1:, 0] > pieces[:-1, 1])
    np.testing.assert_array_equal(common, intersection(second, first))


def test_infinite_intervals_and_bad_ones():
    everything = union(np.array([-np.inf, 0.0]), np.array([1.0, np.inf]))
    np.testing.assert_array_equal(everything, [[-np.inf, np.inf]])
    np.testing.assert_array_equal(intersection(everything, [[1.0, 2.0], [3.0, 4.0]]), [[1.0, 2.0], [3.0, 4.0]])
    for lower, upper in (([1.0], [0.0]), ([np.nan], [1.0]), ([0.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="lower <= upper"):
            union(np.array(lower), np.array(upper))


def test_the_sign_of_a_determinant():
    assert determinant_sign(flint.arb_mat([[1, 2], [3, 4]])) == -1
    assert determinant_sign(np.array([[flint.arb(2), flint.arb(0)], [flint.arb(0), flint.arb(3)]])) == 1
    assert determinant_sign(flint.arb_mat([[1, 2], [2, 4]])) == 0
    assert determinant_sign(np.array([[flint.arb(1, 1.5)]])) == 0
    assert determinant_sign(np.array([[flint.arb("nan")]])) == 0


def test_float64_midpoints_and_radii_contain_the_balls():
    balls = [flint.arb(1) / 3, flint.arb(2, 0.25), flint.arb(0), flint.arb.pi() * flint.arb(10) ** 300]
    balls += [flint.arb(10) ** -400, -(flint.arb(10) ** 400), flint.arb("nan"), flint.arb("inf")]
    mid, rad = midpoint_radius(np.array([balls, balls]))
    assert mid.shape == rad.shape == (2, 8)
    for ball, m, r in zip(balls, mid[0], rad[0], strict=True):
        assert not np.isfinite(r) or flint.arb(m, r).contains(ball)
    assert np.all(rad[0, :3] <= [1e-16, 0.2500001, 1e-300]) and not np.any(np.isfinite(rad[0, 5:]))

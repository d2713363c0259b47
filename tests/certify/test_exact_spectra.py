import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from flint import fmpq, fmpq_mat, fmpq_poly
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmap.certify.exact_spectra import (
    Root,
    as_array,
    common_eigenvalues,
    common_subspace,
    constant_block,
    constant_eigenvectors,
    determinant,
    exact_matrix,
    is_constant_action,
    is_singular,
    polynomial_variables,
    positive_roots,
    singular_step_sizes,
    vanishes_identically,
)
from gdmap.engines.balls.anything import ANY, exact_rational, unknowns
from gdmap.engines.balls.evaluate import evaluate
from gdmap.engines.balls.rational import Rational
from gdmap.engines.program import flat_program


def random_symmetric(rng, n):
    entries = rng.integers(-5, 6, (n, n))
    return entries + entries.T


def rational_orthogonal(rng, n):
    """An orthogonal matrix with rational entries (Cayley transform of an integer skew matrix)."""
    lower = np.tril(rng.integers(-2, 3, (n, n)), -1)
    skew, unit = exact_matrix(lower - lower.T), exact_matrix(np.eye(n, dtype=int))
    return (unit - skew) * (unit + skew).inv()


def hessian_vector_program(loss, n):
    return flat_program(lambda theta, v: jax.jvp(jax.grad(loss), (theta,), (v,))[1], (n,), (n,))


def products(program, theta, vectors):
    """Hessian-vector products in exact arithmetic, at rational points or at ``ANY``."""
    rational = Rational()
    return np.array([evaluate(program, [theta, rational.constant(v)], rational)[0] for v in vectors], dtype=object)


def exact_point(rng, n):
    point = np.empty(n, dtype=object)
    point[:] = [fmpq(int(p), int(q)) for p, q in zip(rng.integers(-9, 10, n), rng.integers(1, 5, n), strict=True)]
    return point


# Eigenvalues common to several matrices.


def test_a_planted_common_eigenvalue_is_found_and_no_other():
    rng = np.random.default_rng(0)
    matrices = []
    for _ in range(3):
        diagonal = exact_matrix(np.diag([3, 0, 0, *rng.integers(50, 5000, 2), Fraction(2, 7)]))
        turn = rational_orthogonal(rng, 6)
        matrices.append(turn * diagonal * turn.transpose())
    common = common_eigenvalues(matrices)
    assert common.nullity == 2
    assert common.polynomial == fmpq_poly([-3, 1]) * fmpq_poly([Fraction(-2, 7).numerator, 7]) / 7
    assert [root.lower for root in positive_roots(common.polynomial)] == [fmpq(2, 7), 3]


def test_irrational_common_eigenvalues():
    rng = np.random.default_rng(1)
    golden = np.array([[1, 1], [1, 0]])
    matrices = [
        np.block([[golden, np.zeros((2, 3), int)], [np.zeros((3, 2), int), random_symmetric(rng, 3)]])
        for _ in "ab"
    ]
    common = common_eigenvalues(matrices)
    assert common.polynomial == fmpq_poly([-1, -1, 1])
    (root,) = positive_roots(common.polynomial, bits=200)
    with mpmath.workdps(80):
        golden_ratio = (1 + mpmath.sqrt(5)) / 2
        ends = [mpmath.mpf(int(end.p)) / int(end.q) for end in root]
        assert ends[0] < golden_ratio < ends[1] and (ends[1] - ends[0]) * mpmath.mpf(2) ** 200 <= ends[0]
    assert not root.is_exact and float(root) == pytest.approx((1 + 5**0.5) / 2, rel=1e-15)


def test_nullity_is_that_of_all():
    for matrices in ([np.diag([0, 0, 1]), np.diag([0, 2, 1])], [np.diag([0, 2, 1]), np.diag([0, 0, 1])]):
        assert common_eigenvalues(matrices) == (fmpq_poly([-1, 1]), 1)


def test_no_more_matrices_are_read_than_needed():
    read = []

    def hessians():
        for k in itertools.count(1):
            read.append(k)
            yield np.diag([k, -1, 0])

    common = common_eigenvalues(hessians())
    # The common eigenvalue -1 belongs to no step size.
    assert common == (fmpq_poly([1]), 1) and read == [1, 2]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_common_eigenvalues_agree_with_floating_point(seed, n):
    rng = np.random.default_rng(seed)
    shared = int(rng.integers(1, 4))
    matrices = [np.diag([shared, *rng.integers(-3, 4, n)]) for _ in range(2)]
    turns = [rational_orthogonal(rng, n + 1) for _ in range(2)]
    turned = [q * exact_matrix(m) * q.transpose() for q, m in zip(turns, matrices, strict=True)]
    expected = sorted({x for x in set(np.diag(matrices[0])) & set(np.diag(matrices[1])) if x > 0})
    found = positive_roots(common_eigenvalues(turned).polynomial)
    assert [(int(root.lower), root.is_exact) for root in found] == [(x, True) for x in expected]
    numeric = np.linalg.eigvalsh(np.array([[float(Fraction(str(x))) for x in row] for row in as_array(turned[0])]))
    assert all(np.abs(numeric - float(root)).min() < 1e-9 for root in found)


def test_dyadic_hessians_of_a_generic_network_share_nothing():
    rng = np.random.default_rng(2)
    assert common_eigenvalues(a + a.T for a in rng.standard_normal((2, 13, 13))).polynomial == 1


def test_common_eigenvalues_of_bad_input():
    with pytest.raises(ValueError, match="at least one"):
        common_eigenvalues([])
    with pytest.raises(ValueError, match="symmetric"):
        common_eigenvalues([[[0, 1], [0, 0]]])
    with pytest.raises(ValueError, match="one size"):
        common_eigenvalues([[[1]], np.eye(2)])
    with pytest.raises(ValueError, match="finite"):
        common_eigenvalues([[[np.nan]]])
    with pytest.raises(TypeError, match="Anything"):
        common_eigenvalues([[[ANY]]])


# Positive roots.


def test_positive_roots_of_a_mixed_polynomial():
    # Rational, repeated, negative, zero, irrational and complex roots together.
    factors = [[-1, 3], [-1, 3], [5, 1], [0, 1], [-2, 0, 1], [1, 0, 1], [-(10**20) - 1, 10**20]]
    polynomial = fmpq_poly([1])
    for factor in factors:
        polynomial *= fmpq_poly(factor)
    roots = positive_roots(polynomial)
    assert [root.is_exact for root in roots] == [True, True, False]
    assert roots[0] == Root(fmpq(1, 3), fmpq(1, 3)) and roots[1].lower == fmpq(10**20 + 1, 10**20)
    assert roots[2].lower ** 2 < 2 < roots[2].upper ** 2


def test_roots_close_to_each_other_and_to_zero_are_told_apart():
    tiny = fmpq(1, 10**60)
    # x^2 - 2 and (x - tiny)^2 - 2, and sqrt(2) / 10^60.
    polynomial = (
        fmpq_poly([-2, 0, 1]) * fmpq_poly([tiny * tiny - 2, -2 * tiny, 1]) * fmpq_poly([-2 * tiny * tiny, 0, 1])
    )
    roots = positive_roots(polynomial, bits=10)
    assert len(roots) == 3
    assert all(a.upper <= b.lower for a, b in itertools.pairwise(roots))
    assert 0 < roots[0].lower < 2 * tiny


def test_an_enclosure_holds_no_rational_root_close_by():
    near = fmpq(math.isqrt(2 * 10**80), 10**40)
    exact, irrational = positive_roots(fmpq_poly([-2, 0, 1]) * fmpq_poly([-near, 1]), bits=4)
    assert exact == (near, near) and near < irrational.lower


def test_positive_roots_without_any_and_of_bad_input():
    assert (
        positive_roots(fmpq_poly([1, 0, 1]))
        == positive_roots(fmpq_poly([3]))
        == positive_roots(fmpq_poly([1, 1]))
        == []
    )
    # Two sign changes, no real root.
    assert positive_roots(fmpq_poly([1, -1, 1])) == []
    with pytest.raises(ValueError, match="zero polynomial"):
        positive_roots(fmpq_poly([0]))
    with pytest.raises(ValueError, match="bits"):
        positive_roots(fmpq_poly([-2, 0, 1]), bits=0)


# Constant blocks.


def test_the_largest_block_is_found():
    known = [[2, 1, 0, 0], [1, 2, 0, 0], [0, 0, 5, 7], [0, 0, 7, ANY]]
    block = constant_block(known)
    # Coordinate 2 is coupled to the unknown coordinate 3.
    assert block.indices == (0, 1) and block.matrix == fmpq_mat([[2, 1], [1, 2]])
    assert [root.lower for root in singular_step_sizes(block.matrix)] == [fmpq(1, 3), 1]


def test_exclusions_propagate():
    known = [[ANY, 1, 0, 0], [1, 3, 1, 0], [0, 1, 3, 0], [0, 0, 0, 4]]
    assert constant_block(known).indices == (3,)


def test_one_side_of_the_diagonal_is_enough():
    block = constant_block([[1, ANY, 0], [Fraction(1, 2), 1, ANY], [ANY, 0, ANY]])
    assert block.indices == (0, 1)
    assert block.matrix == fmpq_mat(2, 2, [1, fmpq(1, 2), fmpq(1, 2), 1])


def test_constant_block_of_nothing_and_of_bad_input():
    assert constant_block(unknowns((3, 3))).indices == ()
    assert singular_step_sizes(constant_block(unknowns((3, 3))).matrix) == []
    assert constant_block(np.zeros((0, 0))).indices == ()
    with pytest.raises(ValueError, match="square"):
        constant_block(unknowns((2, 3)))
    with pytest.raises(ValueError, match="symmetric"):
        constant_block([[1, 2], [3, 1]])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_block_eigenvalues_are_eigenvalues_whatever_the_unknowns_are(seed, n):
    rng = np.random.default_rng(seed)
    values = random_symmetric(rng, n) * (rng.random((n, n)) < 0.3)
    values = np.triu(values) + np.triu(values, 1).T
    unknown = np.triu(rng.random((n, n)) < 0.15)
    hessian = values.astype(object)
    hessian[unknown | unknown.T] = ANY
    indices, block = constant_block(hessian)
    subsets = [set(s) for k in range(n + 1) for s in itertools.combinations(range(n), k)]
    closed = [
        s
        for s in subsets
        if all(hessian[i, j] is not ANY and (j in s or hessian[i, j] == 0) for i in s for j in range(n))
    ]
    # The largest closed set, by trying all.
    assert set(indices) == set().union(*closed)
    filling = random_symmetric(rng, n)
    at_a_point = exact_matrix(np.where(unknown | unknown.T, filling, values))
    assert at_a_point.charpoly() % block.charpoly() == 0


def test_is_singular_distinguishes_decimals_from_binary_numbers():
    decay = exact_matrix([[Fraction(1, 10)]])
    assert is_singular(decay, 10)
    assert is_singular([[Fraction(1, 10)]], Fraction(10))
    assert not is_singular([[0.1]], 10)
    assert is_singular([[0.1]], 1 / exact_matrix([[0.1]])[0, 0])
    assert not is_singular([[0]], 1)
    irrational = exact_matrix([[1, 1], [1, 0]])
    assert not any(is_singular(irrational, (5**0.5 - 1) / 2 + k * 2**-53) for k in (-1, 0, 1))
    with pytest.raises(ValueError, match="square"):
        is_singular([[1, 2]], 1)


def test_quadratic_form_has_the_reciprocals_of_its_spectrum():
    turn = rational_orthogonal(np.random.default_rng(3), 4)
    form = turn * exact_matrix(np.diag([Fraction(1, 3), 2, 0, -1])) * turn.transpose()
    steps = singular_step_sizes(form)
    assert steps == [Root(fmpq(1, 2), fmpq(1, 2)), Root(fmpq(3), fmpq(3))]
    assert all(is_singular(form, step.lower) for step in steps) and not is_singular(form, 1)


# From losses to constant blocks, through their programs.


def test_dead_layer_with_output_bias():
    """Mask 0: the hidden layer is dead, and the output bias has the eigenvalue 1."""
    x, y = np.array([0.9, 2.5, -1.0]), np.array([0.5, 1.0, -0.3])

    def loss(theta, mask):
        hidden = mask[:, None] * (jnp.outer(x, theta[:2]) + theta[2:4])
        return jnp.mean(0.5 * (hidden @ theta[4:6] + theta[6] - y) ** 2)

    dead = hessian_vector_program(lambda theta: loss(theta, np.zeros(3)), 7)
    block = constant_block(products(dead, unknowns(7), np.eye(7)))
    assert block.indices == tuple(range(7))
    assert singular_step_sizes(block.matrix) == [Root(fmpq(1), fmpq(1))]
    alive = hessian_vector_program(lambda theta: loss(theta, np.ones(3)), 7)
    block = constant_block(products(alive, unknowns(7), np.eye(7)))
    assert singular_step_sizes(block.matrix) == []
    rng = np.random.default_rng(4)
    hessians = [products(alive, exact_point(rng, 7), np.eye(7)) for _ in range(2)]
    assert common_eigenvalues(hessians).polynomial == 1


def decayed_network(inputs, decay):
    """tanh network [3, 2, 1] with weight decay."""
    targets = np.array([1.0, 2.0])

    def loss(theta):
        outputs = theta[6:] @ jnp.tanh(theta[:6].reshape(2, 3) @ inputs.T)
        return 0.5 * jnp.sum((outputs - targets) ** 2) + 0.5 * decay * jnp.sum(theta**2)

    return hessian_vector_program(loss, 8)


def test_weight_decay_on_an_input_that_is_always_zero():
    program = decayed_network(np.array([[1.0, 2.0, 0.0], [2.0, 0.5, 0.0]]), 0.25)
    block = constant_block(products(program, unknowns(8), np.eye(8)))
    assert block.indices == (2, 5)
    assert singular_step_sizes(block.matrix) == [Root(fmpq(4), fmpq(4))]


def test_weight_decay_on_a_direction_that_the_inputs_do_not_span():
    """No coordinate is constant, but the direction (2, -1, 0) of the first weights is."""
    program = decayed_network(np.array([[1.0, 2.0, 3.0], [2.0, 4.0, -1.0]]), 0.25)
    assert constant_block(products(program, unknowns(8), np.eye(8))).indices == ()
    direction = np.array([[2.0, -1.0, 0, 0, 0, 0, 0, 0]])
    images = products(program, unknowns(8), direction)
    assert is_constant_action(direction, images, [[Fraction(1, 4)]])
    assert not is_constant_action(direction, images, [[Fraction(1, 3)]])
    other = np.eye(8)[:1]
    assert not is_constant_action(other, products(program, unknowns(8), other), [[Fraction(1, 4)]])


def test_a_constant_subspace_that_no_coordinate_shows():
    """Linear regression on a turned part of the parameters: proposed from two points, proved at all."""
    turn = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])

    def loss(theta):
        z = jnp.asarray(turn) @ theta
        return z[0] ** 2 + z[0] * z[1] + z[2] ** 4 * z[3] + z[3] ** 2 * z[2]

    program = hessian_vector_program(loss, 4)
    rng = np.random.default_rng(6)
    basis, action = common_subspace(products(program, exact_point(rng, 4), np.eye(4)) for _ in range(3))
    assert constant_block(products(program, unknowns(4), np.eye(4))).indices == ()
    # The rows are orthogonal, so the span of the first two, on which the loss is quadratic, is mapped into itself.
    assert exact_matrix_rank([*basis, *exact_rows(turn[:2])]) == len(basis) == 2
    images = products(program, unknowns(4), [[float(Fraction(str(x))) for x in v] for v in basis])
    assert is_constant_action(basis, images, action)
    # z0^2 + z0 z1 has the Hessian [[2, 1], [1, 0]], and the turn lengthens by 2.
    assert action.charpoly() == (4 * exact_matrix([[2, 1], [1, 0]])).charpoly()


# Subspaces.


def planted(rng, n, shared):
    """Matrices that agree on a subspace, hidden by one orthogonal change of coordinates."""
    turn, k = rational_orthogonal(rng, n), len(shared)
    made = []
    for _ in range(3):
        matrix = np.zeros((n, n), dtype=int)
        matrix[:k, :k], matrix[k:, k:] = shared, random_symmetric(rng, n - k) * 7 + 100
        made.append(turn * exact_matrix(matrix) * turn.transpose())
    return made, as_array(turn.transpose())[:k]


def test_common_subspace_finds_what_was_planted():
    rng = np.random.default_rng(7)
    shared = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 2]])
    matrices, axes = planted(rng, 6, shared)
    basis, action = common_subspace(matrices)
    assert action.charpoly() == exact_matrix(shared).charpoly()
    assert exact_matrix_rank([*basis, *axes]) == len(basis) == 3
    for matrix in matrices:
        assert (as_array(matrix) @ basis.T == basis.T @ as_array(action).T).all()
    assert is_constant_action(basis, (as_array(matrices[0]) @ basis.T).T, action)
    # The golden ratio, 2; and -1/phi, which belongs to no step size.
    assert [float(step) for step in singular_step_sizes(action)] == pytest.approx([0.5, (5**0.5 - 1) / 2])


def exact_rows(rows):
    return [[exact_rational(x) for x in row] for row in rows]


def exact_matrix_rank(rows):
    return fmpq_mat(len(rows), len(rows[0]), [x for row in rows for x in row]).rank()


def test_constant_eigenvectors_are_those_planted():
    matrices, axes = planted(np.random.default_rng(8), 5, np.array([[4]]))
    vectors = constant_eigenvectors(matrices, 4)
    assert vectors.shape == (1, 5) and exact_matrix_rank([*vectors, *axes]) == 1
    assert all((as_array(matrix) @ vectors[0] == 4 * vectors[0]).all() for matrix in matrices)
    assert constant_eigenvectors(matrices, 3).shape == (0, 5)
    assert constant_eigenvectors([np.eye(2)], 1).tolist() == [[1, 0], [0, 1]]


def test_equal_eigenvalues_with_different_eigenvectors_share_no_subspace():
    matrices = [np.diag([1, 2, 3]), np.diag([2, 3, 1])]
    basis, action = common_subspace(matrices)
    assert basis.shape == (0, 3) and action.nrows() == 0
    assert len(positive_roots(common_eigenvalues(matrices).polynomial)) == 3


def test_where_matrices_agree_but_lead_out_of_it_is_no_common_subspace():
    # They agree on the first axis, which both map to the second, where they differ.
    basis, _ = common_subspace([[[0, 1], [1, 0]], [[0, 1], [1, 5]]])
    assert basis.shape == (0, 2)


def test_a_claimed_action_on_dependent_vectors_proves_nothing():
    zero = np.zeros((1, 2))
    assert not is_constant_action(zero, zero, [[1]])
    with pytest.raises(ValueError, match="shape"):
        is_constant_action(np.eye(2), np.eye(3), np.eye(2))
    with pytest.raises(ValueError, match="shape"):
        is_constant_action(np.eye(2), np.eye(2), np.eye(3))
    with pytest.raises(ValueError, match="one size"):
        common_subspace([np.eye(2), np.eye(3)])


# Determinants of polynomials.


def by_permutations(matrix):
    n, total = len(matrix), 0
    for order in itertools.permutations(range(n)):
        sign = (-1) ** sum(order[i] > order[j] for i in range(n) for j in range(i + 1, n))
        term = sign
        for i in range(n):
            term = term * matrix[i][order[i]]
        total = total + term
    return total


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_determinant_is_the_sum_over_permutations(seed, n):
    rng = np.random.default_rng(seed)
    x = polynomial_variables(3)
    pool = [x[0], x[1], x[2], x[0] * x[1] - 1, x[2] ** 2 + fmpq(1, 2), 0 * x[0], 0 * x[0], x[0] + 2, 1 - x[1]]
    matrix = [[pool[k] for k in rng.integers(0, len(pool), n)] for _ in range(n)]
    assert determinant(matrix) == by_permutations(matrix)
    assert vanishes_identically(matrix) == (by_permutations(matrix) == 0)


def test_singular_everywhere_without_a_constant_block():
    """L = u^4 + v^2 / 2 in turned coordinates: det(I - H) vanishes at step size 1 and at no other."""

    def loss(theta):
        u, v = (3 * theta[0] + 4 * theta[1]) / 5, (4 * theta[0] - 3 * theta[1]) / 5
        return u**4 + 0.5 * v**2

    x = polynomial_variables(2)
    u = (3 * x[0] + 4 * x[1]) / 5
    quartic, quadratic = [[9, 12], [12, 16]], [[16, -12], [-12, 9]]
    hessian = [[(12 * u**2 * quartic[i][j] + quadratic[i][j]) / 25 for j in range(2)] for i in range(2)]

    def map_matrix(step):
        return [[(i == j) - step * hessian[i][j] for j in range(2)] for i in range(2)]

    # The polynomial Hessian is the one that JAX computes.
    point = np.array([0.3, -0.7])
    with jax.enable_x64(True):
        numeric = np.asarray(jax.hessian(loss)(point))
    at_point = [[float(Fraction(str(h(fmpq(3, 10), fmpq(-7, 10))))) for h in row] for row in hessian]
    np.testing.assert_allclose(at_point, numeric, rtol=1e-12, atol=1e-12)
    assert vanishes_identically(map_matrix(fmpq(1)))
    for step in (fmpq(1, 2), fmpq(2), fmpq(10**12 + 1, 10**12)):
        assert not vanishes_identically(map_matrix(step))


def test_a_zero_that_all_trial_points_share_is_not_taken_for_granted():
    """The three trial points are integers: a product that vanishes on them is still not identically zero."""
    x = polynomial_variables(1)
    product = 0 * x[0] + 1
    for k in range(-505, 506):
        product = product * (x[0] - k)
    assert not vanishes_identically([[product]])


def test_determinants_of_numbers_and_of_what_is_too_large():
    assert determinant([[1, 2], [3, 4]]) == -2
    assert vanishes_identically([[1, 2], [2, 4]])
    x = polynomial_variables(6)
    dense = np.array(
        [[(x[(i * j) % 6] + x[(i + j) % 6] + 1) ** 3 for j in range(6)] for i in range(6)], dtype=object
    )
    with pytest.raises(ValueError, match="too large"):
        determinant(dense, most_terms=1000)
    mixed = [[x[0], 1], [1, polynomial_variables(2)[1]]]
    with pytest.raises(ValueError, match="one context"):
        determinant(mixed)
    with pytest.raises(ValueError, match="square"):
        determinant([[x[0], x[1]]])

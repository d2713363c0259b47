"""The hypotheses of the theorem: named when they fail; orthogonal decompositions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from gdmap.exponents.interpolation import interpolating_minimum
from gdmap.exponents.regularity import blocks_at, regularity
from tests.exponents.losses import on_the_hyperbola, quadratic_forms, regression, two_points, with_gram


def failed(result):
    return [h.name for h in result.hypotheses if h.holds is False]


def named(result, word):
    (found,) = [h for h in result.hypotheses if word in h.name]
    return found


def test_a_regular_minimum():
    result = regularity(with_gram([[3, 0.7], [0.7, 1.2]]), np.ones(4), 0.5)
    assert result.regular and failed(result) == []
    assert named(result, "H3").holds is None
    assert named(result, "Jacobian").holds
    # Eigenvalues 3 and 1.2 of the samples: |0.5 * 1.2 - 1| and |0.5 * 3 / 2 - 1|.
    assert named(result, "Jacobian").margin == pytest.approx(0.4)
    assert named(result, "2/eta").margin == pytest.approx(0.25)
    assert "certify_nonsingular" in result.explain()


def test_the_two_points_fail_for_the_right_reasons():
    result = regularity(two_points(), on_the_hyperbola(3.0), 0.3, probabilities=[0.58, 0.42])
    assert not result.regular
    assert failed(result) == ["linearly independent gradients (H1)", "uniform sampling of independent batches"]
    assert "law of large numbers" in result.explain()
    even = regularity(two_points(), on_the_hyperbola(3.0), 0.15)
    assert failed(even) == ["linearly independent gradients (H1)"]


def test_a_split_a_singular_jacobian_and_a_reflection():
    split = regularity(with_gram([[3, 0], [0, 1.2]]), np.ones(4), 0.5)
    assert failed(split) == ["no orthogonal split of the gradients"]
    assert "2 orthogonal blocks" in split.explain()
    singular = regularity(with_gram([[2.0, 0.7], [0.7, 1.2]]), np.ones(4), 0.5)
    assert failed(singular) == ["no Jacobian of a batch is singular"]
    assert "semicontinuous" in singular.explain()
    reflection = regularity(with_gram([[4.0, 0.7], [0.7, 1.2]]), np.ones(4), 0.5)
    assert failed(reflection) == ["no gradient of squared length 2/eta"]


def test_jacobians_of_batches_are_listed():
    objective = with_gram([[3, 0.7], [0.7, 1.2]])
    top = np.linalg.eigvalsh(np.array([[3, 0.7], [0.7, 1.2]]) / 2)[-1]
    result = regularity(objective, np.ones(4), 1 / top, batch_size=2)
    jacobian = named(result, "Jacobian")
    assert not jacobian.holds and "all 1 batches" in jacobian.meaning


def test_weak_couplings_are_no_split():
    assert named(regularity(with_gram([[3, 1e-4], [1e-4, 1.2]]), np.ones(4), 0.5), "split").holds
    close = named(regularity(with_gram([[3, 1e-6], [1e-6, 1.2]]), np.ones(4), 0.5), "split")
    assert close.holds and close.margin < 1e-5


def block_diagonal(blocks):
    dim = sum(block.shape[1] for block in blocks)
    matrices, position = np.zeros((len(blocks[0]), dim, dim)), 0
    for block in blocks:
        end = position + block.shape[1]
        matrices[:, position:end, position:end] = block
        position = end
    return matrices


def decomposed(matrices, rotation):
    """Blocks found for a rotated family; checks that they are orthonormal, complete, and invariant."""
    rotated = rotation @ matrices @ rotation.T
    point = interpolating_minimum(quadratic_forms(rotated), np.zeros(len(rotation)))
    assert point.rank == len(rotation)
    blocks = blocks_at(point)
    V = np.hstack(blocks)
    np.testing.assert_allclose(V.T @ V, np.eye(point.rank), atol=1e-10)
    for A in point.sample_matrices():
        inside = np.zeros_like(A)
        for block in blocks:
            inside += block @ (block.T @ A @ block) @ block.T
        np.testing.assert_allclose(inside, A, atol=1e-8 * np.abs(matrices).max())
    return sorted(block.shape[1] for block in blocks)


def definite(rng, n, d):
    roots = rng.normal(size=(n, d, d))
    return roots @ roots.transpose(0, 2, 1) / d + 0.1 * np.eye(d)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(1, 2, 3), (2, 4), (1, 1, 4), (6,), (3, 3), (1,) * 6]))
def test_random_families_are_taken_apart(seed, sizes):
    rng = np.random.default_rng(seed)
    matrices = block_diagonal([definite(rng, 4, d) for d in sizes])
    assert decomposed(matrices, ortho_group.rvs(6, random_state=rng)) == sorted(sizes)


def test_repeated_eigenvalues_and_isomorphic_blocks():
    rng = np.random.default_rng(1)
    rotation = ortho_group.rvs(6, random_state=rng)
    block = definite(rng, 4, 3)
    assert decomposed(block_diagonal([block, block]), rotation) == [3, 3]
    pair = definite(rng, 4, 2)
    assert decomposed(block_diagonal([pair, pair, pair]), rotation) == [2, 2, 2]
    identity = np.broadcast_to(np.eye(2), (4, 2, 2)) * np.array([1.0, 2, 3, 4])[:, None, None]
    assert decomposed(block_diagonal([identity, definite(rng, 4, 4)]), rotation) == [1, 1, 4]


def test_an_eigenvalue_shared_by_all_combinations_is_no_coupling():
    # Every combination of the two symmetric matrices of order 3 is singular, so that a I + C has the eigenvalue a
    # of the one-dimensional block beside it; products of them have not.
    C = np.zeros((4, 3, 3))
    C[0, 0, 2] = C[0, 2, 0] = C[1, 1, 2] = C[1, 2, 1] = 1.0
    a = np.array([3.0, 4.0, 2.0, 5.0])[:, None, None]
    matrices = block_diagonal([a, a * np.eye(3) + C])
    assert decomposed(matrices, ortho_group.rvs(4, random_state=np.random.default_rng(2))) == [1, 3]


def test_one_dimension_has_one_block():
    (block,) = blocks_at(interpolating_minimum(regression([[1.0], [2.0]]), [1.0]))
    assert block.shape == (1, 1)

import numpy as np
import pytest

from gdmap.spectra.dense import for_each, in_slabs, multipliers, multipliers_of_each, singular


def test_multipliers_are_sorted_by_modulus():
    np.testing.assert_allclose(multipliers(np.diag([0.5, -2.0, 1.0])), [-2, 1, 0.5])
    rotation = np.array([[0.0, -1.5], [1.5, 0.0]])
    np.testing.assert_allclose(np.abs(multipliers(rotation)), [1.5, 1.5])


def test_for_each_keeps_the_order():
    assert for_each(lambda a, b: a - b, range(100), range(0, 200, 2)) == [-i for i in range(100)]


@pytest.mark.parametrize("dim", [1, 2, 5, 30])
def test_decompositions_of_stacks_are_those_of_each_matrix(dim):
    rng = np.random.default_rng(dim)
    matrices = rng.normal(size=(200, dim, dim))
    matrices[::3] += matrices[::3].swapaxes(1, 2)
    matrices[::7] = 0.0
    left, values, right = singular(matrices)
    np.testing.assert_allclose(np.einsum("li,lij,lik->ljk", values, left, right), matrices, atol=1e-12 * dim)
    np.testing.assert_allclose(values, np.linalg.svd(matrices, compute_uv=False), atol=1e-12 * dim)
    for rows in (left, right):
        np.testing.assert_allclose(rows @ rows.swapaxes(1, 2), np.tile(np.eye(dim), (200, 1, 1)), atol=1e-12 * dim)
    alone = singular(matrices[11:12])
    for one, all_ in zip(alone, (left, values, right), strict=True):
        np.testing.assert_array_equal(one[0], all_[11])
    found = multipliers_of_each(matrices)
    for matrix, row in zip(matrices, found, strict=True):
        np.testing.assert_array_equal(row, multipliers(matrix))


def test_stacks_cut_into_slabs_give_the_same():
    matrices = np.random.default_rng(0).normal(size=(500, 30, 30))
    np.testing.assert_array_equal(in_slabs(np.linalg.inv, matrices), np.linalg.inv(matrices))
    np.testing.assert_array_equal(in_slabs(np.linalg.eigh, matrices).eigenvectors, np.linalg.eigh(matrices)[1])
    assert in_slabs(np.linalg.inv, matrices[:0]).shape == (0, 30, 30)

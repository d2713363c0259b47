import numpy as np
import pytest

import gdmap.spectra.extreme as extreme
from gdmap import Function
from gdmap.spectra import largest_eigenvalue
from gdmap.spectra.dense import for_each, multipliers


def quadratic(matrix):
    return Function(lambda w: w @ matrix @ w / 2, len(matrix))


def test_largest_eigenvalue_dense_and_matrix_free(monkeypatch):
    A = np.random.default_rng(0).normal(size=(60, 60))
    A = A + A.T
    exact = np.linalg.eigvalsh(A)[-1]
    dense = largest_eigenvalue(quadratic(A), np.zeros(60))
    assert dense.lower <= exact <= dense.upper and dense.relative_width < 1e-12
    monkeypatch.setattr(extreme, "DENSE_LIMIT", 10)
    lanczos = largest_eigenvalue(quadratic(A), np.zeros(60))
    assert lanczos.value == pytest.approx(exact, rel=1e-10)
    assert lanczos.lower <= exact <= lanczos.upper


def test_multipliers_are_sorted_by_modulus():
    np.testing.assert_allclose(multipliers(np.diag([0.5, -2.0, 1.0])), [-2, 1, 0.5])
    rotation = np.array([[0.0, -1.5], [1.5, 0.0]])
    np.testing.assert_allclose(np.abs(multipliers(rotation)), [1.5, 1.5])


def test_for_each_keeps_the_order():
    assert for_each(lambda a, b: a - b, range(100), range(0, 200, 2)) == [-i for i in range(100)]

import numpy as np

from gdmap.spectra.dense import for_each, multipliers


def test_multipliers_are_sorted_by_modulus():
    np.testing.assert_allclose(multipliers(np.diag([0.5, -2.0, 1.0])), [-2, 1, 0.5])
    rotation = np.array([[0.0, -1.5], [1.5, 0.0]])
    np.testing.assert_allclose(np.abs(multipliers(rotation)), [1.5, 1.5])


def test_for_each_keeps_the_order():
    assert for_each(lambda a, b: a - b, range(100), range(0, 200, 2)) == [-i for i in range(100)]

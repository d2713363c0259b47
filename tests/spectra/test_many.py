import jax.numpy as jnp
import numpy as np
import pytest

import gdmap
from gdmap.spectra.many import sharpnesses, spectral_ends

MEMORY = 2**28
ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(60, 60)))[0]


@pytest.fixture(scope="module")
def quartic():
    """A loss of 60 parameters whose Hessian differs from point to point."""
    A = ROTATION @ np.diag(np.linspace(-1, 2, 60)) @ ROTATION.T
    return gdmap.Function(lambda w: w @ jnp.asarray(A, w.dtype) @ w / 2 + jnp.sum(w**4) / 12, 60)


@pytest.fixture(scope="module")
def points():
    return 0.5 * np.random.default_rng(1).normal(size=(20, 60))


@pytest.fixture(scope="module")
def ends(quartic, points):
    return spectral_ends(quartic, points, MEMORY, seed=3)


def test_both_ends_enclose_the_dense_eigenvalues(quartic, points, ends):
    spectra = np.array([np.linalg.eigvalsh(quartic.hessian(point)) for point in points])
    for end, exact in ((ends.largest, spectra[:, -1]), (ends.smallest, spectra[:, 0])):
        assert np.all((end.lower <= exact) & (exact <= end.upper))
        np.testing.assert_allclose(end.value, exact, rtol=1e-2)
    assert np.all(ends.largest.upper - ends.largest.lower <= 1e-3 * ends.largest.value)
    np.testing.assert_allclose(ends.largest.value, spectra[:, -1], rtol=1e-4)
    assert ends.bytes <= MEMORY


def test_the_sharpness_is_that_of_gdmap_sharpness(quartic, points, ends):
    bracket = gdmap.sharpness(quartic, points[0])
    assert ends.largest.lower[0] <= bracket.upper
    assert bracket.lower <= ends.largest.upper[0]


def test_a_row_depends_on_its_number_alone(quartic, points, ends):
    some = sharpnesses(quartic, points[[11, 4]], MEMORY, seed=3, numbers=np.array([11, 4]))
    for found, all_ in zip(some, ends.largest, strict=True):
        np.testing.assert_array_equal(found, all_[[11, 4]])


def test_points_in_single_precision_are_judged_in_double(quartic, points):
    rounded = points.astype(np.float32)
    single = sharpnesses(quartic, rounded, MEMORY, seed=3)
    exact = np.array([np.linalg.eigvalsh(quartic.hessian(point))[-1] for point in rounded.astype(float)])
    assert np.all((single.lower <= exact) & (exact <= single.upper))
    assert np.all(single.upper - single.lower < 1e-2)


def test_degenerate_hessians():
    flat = spectral_ends(gdmap.Function(lambda w: w.sum(), 3), np.ones((2, 3)), MEMORY)
    assert np.array_equal(flat.largest.value, [0, 0])
    assert np.array_equal(flat.smallest.value, [0, 0])
    one = spectral_ends(gdmap.Function(lambda w: -(w[0] ** 2), 1), np.ones((1, 1)), MEMORY)
    assert one.largest.value == one.smallest.value == -2
    low_rank = gdmap.Function(lambda w: (w[0] + w[1]) ** 2 - w[2] ** 2, 40)
    ends = spectral_ends(low_rank, np.ones((1, 40)), MEMORY)
    np.testing.assert_allclose([ends.largest.value[0], ends.smallest.value[0]], [4, -2], rtol=1e-12)


def test_points_that_are_not_finite_have_no_number(quartic, points):
    mixed = np.stack([points[0], np.full(60, np.nan), np.full(60, 1e200)])
    found = sharpnesses(quartic, mixed, MEMORY, seed=3)
    assert np.isfinite(found.value).tolist() == [True, False, False]

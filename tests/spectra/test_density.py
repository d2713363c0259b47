import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import aslinearoperator

from gdmap import Function
from gdmap.spectra import spectral_density


def diagonal(values):
    return aslinearoperator(sp.diags(np.asarray(values)))


def smoothed(grid, values, width):
    return np.mean(np.exp(-(((grid[:, None] - values) / width) ** 2) / 2), axis=1) / (np.sqrt(2 * np.pi) * width)


def total(found):
    return np.trapezoid(found["density"], found["eigenvalue"])


def test_density_agrees_with_the_exact_one_within_its_errors():
    rng = np.random.default_rng(0)
    values = np.r_[rng.normal(size=700), rng.uniform(6, 8, 300)]
    found = spectral_density(diagonal(values), probes=30, depth=100, width=0.3)
    exact = smoothed(found["eigenvalue"].values, values, 0.3)
    error = found["density"].values - exact
    assert np.all(np.abs(error) <= 5 * found["standard_error"].values + 1e-4 * exact.max())
    assert np.mean(np.abs(error) <= 2 * found["standard_error"].values + 1e-6 * exact.max()) > 0.8
    assert total(found) == pytest.approx(1, abs=1e-5)
    assert abs(found["mean_eigenvalue"] - values.mean()) <= 4 * found["mean_eigenvalue_standard_error"]
    np.testing.assert_allclose(found["weight"].sum("node_index"), 1, rtol=1e-12)
    assert found["node"].min() >= values.min() - 1e-12
    assert found["node"].max() == pytest.approx(values.max(), rel=1e-6)
    assert found.attrs["status"] == "estimated"
    assert found.attrs["width"] == 0.3


def test_standard_error_shrinks_with_the_probes_and_is_right():
    values = np.random.default_rng(0).normal(size=400)
    spread = [
        float(spectral_density(diagonal(values), probes=8, depth=6, seed=seed)["mean_eigenvalue"])
        for seed in range(60)
    ]
    claimed = float(
        spectral_density(diagonal(values), probes=400, depth=6)["mean_eigenvalue_standard_error"]
    ) * np.sqrt(400 / 8)
    assert np.std(spread) == pytest.approx(claimed, rel=0.35)


def test_moments_are_exact_for_one_probe():
    # Gauss quadrature with m nodes integrates polynomials of degree 2 m - 1 exactly.
    values = np.random.default_rng(1).normal(size=50)
    found = spectral_density(diagonal(values), probes=2, depth=50)
    for probe in range(2):
        start = np.random.default_rng([0, probe]).standard_normal(50)
        start /= np.linalg.norm(start)
        for power in range(12):
            moment = np.sum(found["weight"][probe].values * found["node"][probe].values ** power)
            assert moment == pytest.approx(np.sum(start**2 * values**power), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("values", [np.zeros(300), np.ones(300), np.r_[np.ones(3), np.zeros(297)], [2.0]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exhausted_krylov_spaces(values, dtype):
    found = spectral_density(diagonal(np.asarray(values, dtype)), probes=60, depth=80)
    assert np.all(np.isfinite(found["density"]))
    assert total(found) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found["weight"].sum("node_index"), 1, rtol=1e-5)
    assert set(np.unique(found["node"].values.round(5) + 0.0)) <= set(np.unique(values))
    error = float(found["mean_eigenvalue_standard_error"])
    assert abs(found["mean_eigenvalue"] - np.mean(values)) <= 4 * error + 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_density_of_an_objective_and_its_scale(dtype):
    d = np.random.default_rng(0).normal(size=300)
    theta = np.zeros(300, dtype)
    found = spectral_density(Function(lambda w: jnp.sum(jnp.asarray(d, w.dtype) * w**2) / 2, 300), theta, depth=40)
    scaled = spectral_density(diagonal(1024.0 * d.astype(dtype)), depth=40)
    np.testing.assert_allclose(1024 * found["eigenvalue"], scaled["eigenvalue"], rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(found["density"] / 1024, scaled["density"], rtol=1e-2, atol=1e-6)


def test_a_grid_and_seed_of_ones_own():
    operator = diagonal(np.random.default_rng(0).normal(size=300))
    grid = np.linspace(-1, 1, 7)
    first = spectral_density(operator, grid=grid, depth=10, seed=1)
    np.testing.assert_array_equal(first["eigenvalue"], grid)
    np.testing.assert_array_equal(
        first["density"], spectral_density(operator, grid=grid, depth=10, seed=1)["density"]
    )
    assert np.any(first["density"] != spectral_density(operator, grid=grid, depth=10, seed=2)["density"])


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("probes", {"probes": 1}),
        ("depth", {"depth": 0}),
        ("seed", {"seed": -1}),
        ("width", {"width": 0.0}),
        ("width", {"width": float("inf")}),
        ("increasing", {"grid": [1.0, 0.0]}),
        ("increasing", {"grid": [[0.0, 1.0]]}),
        ("increasing", {"grid": [0.0, float("nan")]}),
        ("larger width", {"width": 1e-9}),
    ],
)
def test_bad_options_are_refused(message, options):
    with pytest.raises(ValueError, match=message):
        spectral_density(diagonal(np.arange(100.0)), **options)

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gdmap
from gdmap import Tendency
from gdmap.ensembles.tendency import Cause

# Minima at -1 and 1 of sharpness 2: critical step size 1; then periods 2, 4, ..., chaos, divergence.
WELL = gdmap.Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
ETAS = [0.3, 0.999, 1.001, 1.1, 1.24, 1.5, 2.5]
# A minimum along the first axis, a saddle at the origin, a valley to the right that never ends.
PLANE = gdmap.Function(lambda w: w[0] ** 2 / 2 - w[1] ** 2 / 2 + w[1] ** 4 / 4, 2)


@pytest.fixture(scope="module")
def well():
    return gdmap.asymptotics(WELL, ETAS, 12, 4000, scale=0.5)


def names(dataset, eta):
    return set(gdmap.tendency_names(dataset.sel(step_size=eta)).tolist())


def test_the_fates_of_the_double_well(well):
    assert names(well, 0.3) == {"converged"}
    assert names(well, 0.999) == {"converging"}
    assert names(well, 1.001) == names(well, 1.1) == names(well, 1.24) == {"periodic"}
    assert names(well, 2.5) == {"diverged"}
    assert names(well, 1.5) <= {"sustained", "undecided"}
    assert float(well.share.sel(step_size=1.5, tendency_name="sustained")) > 0.7
    assert np.all(well.period.sel(step_size=[1.001, 1.1]) == 2)
    assert np.all(well.period.sel(step_size=1.24) == 4)
    assert np.all(well.period.sel(step_size=[0.3, 0.999, 2.5]) == 0)


def test_numbers_of_the_double_well(well):
    # The minimum has sharpness 2; the tangent vector shrinks by |1 - 2 eta|.
    at = well.sel(step_size=0.3)
    np.testing.assert_allclose(at.sharpness, 2, rtol=1e-12)
    np.testing.assert_allclose(at.sharpness_ratio, 0.3, rtol=1e-12)
    np.testing.assert_allclose(at.exponent, np.log(0.4), rtol=1e-12)
    # Slow convergence by turns: the gradient falls by the multiplier.
    np.testing.assert_allclose(well.gradient_trend.sel(step_size=0.999), np.log(0.998), rtol=1e-4)
    for name in ("gradient_norm", "loss", "sharpness", "smallest_eigenvalue", "gradient_trend"):
        value, lower, upper = (well[name + end].isel(step_size=slice(1, -1)) for end in ("", "_lower", "_upper"))
        assert np.all((lower <= value) & (value <= upper)), name
    gone = well.sel(step_size=2.5)
    assert np.all(gone.steps < 4000)
    assert np.all(gone.steps % 16 == 0)
    for name in ("gradient_norm", "loss", "sharpness", "exponent", "gradient_trend"):
        assert np.all(np.isnan(gone[name]))


def test_the_exponent_of_chaos_is_that_of_lyapunov_spectrum(well):
    other = gdmap.lyapunov_spectrum(gdmap.GradientDescent(WELL, 1.5), np.array([0.3]), steps=20_000)
    exact, error = float(other.exponent[0]), float(well.exponent_error.sel(step_size=1.5).mean())
    mean = float(well.exponent.sel(step_size=1.5).mean())
    assert exact > 0.3
    assert abs(mean - exact) < 5 * error / np.sqrt(12) + 0.01


def test_saddles_and_the_plane_without_minimum():
    starts = np.array([[1.0, 0.0], [0.0, 0.0], [0.5, 1e-3]])
    found = gdmap.asymptotics(PLANE, [0.1], starts, 2000)
    assert gdmap.tendency_names(found)[0].tolist() == ["undecided", "undecided", "converged"]
    assert found.cause.values[0, :2].tolist() == [Cause.NEGATIVE_CURVATURE] * 2
    np.testing.assert_allclose(found.smallest_eigenvalue[0], [-1, -1, 1], atol=1e-6)
    np.testing.assert_allclose(found.sharpness[0], [1, 1, 2], atol=1e-6)


def test_beyond_the_threshold_linear_networks_swing_with_the_known_gradient():
    network = gdmap.LinearNetwork.whitened((2, 2, 2), np.diag([1, 0.5]))
    found = gdmap.asymptotics(network, [0.9, 1.02], 12, 4000, scale=0.5)
    shares = found.share.sel(tendency_name=["converged", "converging"]).sum("tendency_name")
    assert float(shares[0]) > 0.7
    assert float(shares[1]) == 0
    eta = 1.02
    assert float(found.gradient_norm[1].median()) == pytest.approx(np.sqrt(2 * (eta - 1) / eta**3), rel=1e-6)
    kept = found.isel(step_size=0).where(found.tendency[0] == Tendency.CONVERGED, drop=True)
    assert np.all(kept.sharpness_ratio_upper < 1)


def test_a_run_depends_on_neither_company_nor_groups(well):
    fewer = gdmap.asymptotics(WELL, ETAS[4:6], 5, 4000, scale=0.5)
    compared = [name for name in fewer if fewer[name].dims == ("step_size", "start")]
    assert len(compared) > 20
    for name in compared:
        np.testing.assert_array_equal(fewer[name], well[name].isel(start=slice(5)).sel(step_size=ETAS[4:6]))


def test_little_memory_means_more_groups_and_the_same_results(well):
    each = 2**21
    small = gdmap.asymptotics(WELL, ETAS, 12, 4000, scale=0.5, memory=4 * each)
    assert small.attrs["memory_needed"] <= 4 * each
    assert small.attrs["group"] < well.attrs["group"]
    np.testing.assert_array_equal(small.tendency.sel(step_size=0.3), well.tendency.sel(step_size=0.3))
    np.testing.assert_allclose(small.exponent.sel(step_size=1.1), well.exponent.sel(step_size=1.1), rtol=1e-6)


def test_progress_counts_all_steps():
    calls = []
    gdmap.asymptotics(
        WELL, [0.3, 2.5], np.array([[0.5], [0.7]]), 1000, exponent=False, progress=lambda *c: calls.append(c)
    )
    finished = [done for done, _ in calls]
    assert finished == sorted(finished)
    assert calls[-1] == (4000, 4000)


def test_without_exponent_and_in_single_precision():
    with pytest.warns(UserWarning, match="float32"):
        found = gdmap.asymptotics(WELL, [0.3, 1.1], np.array([[0.5], [0.7]], np.float32), 1000, exponent=False)
    assert "exponent" not in found
    assert found.attrs["dtype"] == "float32"
    assert gdmap.tendency_names(found).tolist() == [["converged"] * 2, ["periodic"] * 2]


def test_momentum_has_its_own_limit_and_adam_none():
    starts = np.array([[0.9], [1.05]])

    def heavy_ball(objective, eta):
        return gdmap.Optimiser(objective, optax.sgd, learning_rate=eta, momentum=0.5)

    found = gdmap.asymptotics(WELL, [0.5], starts, 1000, map=heavy_ball, exponent=False)
    np.testing.assert_allclose(found.sharpness_ratio, 0.5 * 2 / (2 * 1.5), rtol=1e-9)
    assert names(found, 0.5) == {"converged"}

    def adam(objective, eta):
        return gdmap.Optimiser(objective, optax.adam, learning_rate=eta, limit=True)

    assert "sharpness_ratio" not in gdmap.asymptotics(WELL, [0.01], starts, 500, map=adam, exponent=False)


@pytest.mark.parametrize("optimiser", [optax.adam, optax.rmsprop])
def test_large_moments_of_an_optimiser_are_not_the_way_of_its_parameters(optimiser):
    # The second moment is near 1e8; the parameters go on at a steady pace, with the gradient as large as before.
    steep = gdmap.Function(lambda t: 1e4 * jnp.sqrt(1 + t[0] ** 2), 1)
    settings = {"limit": True} if optimiser is optax.adam else {}

    def make(objective, step_size):
        return gdmap.Optimiser(objective, optimiser, learning_rate=step_size, **settings)

    found = gdmap.asymptotics(steep, [1e-3], np.array([[1e3]]), 256, map=make)
    assert gdmap.tendency_names(found)[0, 0] not in ("diverged", "converged", "converging")
    assert found.gradient_norm.values[0, 0] == pytest.approx(1e4, rel=1e-3)


def test_every_variable_says_what_it_is(well):
    for name, variable in well.data_vars.items():
        assert {"long_name", "units", "status"} <= set(variable.attrs), name
    assert {"window", "memory", "memory_needed", "block", "group", "seed"} <= set(well.attrs)
    np.testing.assert_allclose(well.share.sum("tendency_name"), 1)


X0 = np.array([[0.5]])


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"objective": lambda x: x}, TypeError, "objective must be"),
        ({"step_sizes": []}, ValueError, "step_sizes"),
        ({"step_sizes": [-0.1]}, ValueError, "step_size"),
        ({"steps": 100}, ValueError, "at least 128"),
        ({"steps": 1e3}, ValueError, "steps must be a positive integer"),
        ({"window": 3000}, ValueError, "window must be from 128 to steps=2000"),
        ({"window": 100}, ValueError, "window must be from 128"),
        ({"memory": 1000}, ValueError, "not enough"),
        ({"memory": -1}, ValueError, "memory"),
        ({"starts": np.array([[np.nan]])}, ValueError, "not finite"),
        ({"starts": np.ones((2, 3))}, ValueError, "expected"),
        ({"starts": 2, "scale": [1.0, 2.0]}, ValueError, "one positive number"),
        ({"scale": 2.0}, ValueError, "scale"),
        ({"starts": 2, "n_starts": 2}, ValueError, "n_starts"),
        ({"starts": lambda key: jnp.zeros(1)}, ValueError, "n_starts"),
        ({"starts": lambda key: jnp.full(1, jnp.nan), "n_starts": 2}, ValueError, "not finite"),
        ({"escape_radius": 0}, ValueError, "escape_radius"),
        ({"escape_radius": "far"}, ValueError, "escape_radius"),
        ({"seed": -1}, ValueError, "seed"),
        ({"map": lambda o, e: None}, TypeError, "must return a map"),
        (
            {"map": lambda o, e: gdmap.Optimiser(o, optax.adam, learning_rate=e)},
            ValueError,
            "depends on time",
        ),
    ],
)
def test_bad_input_gets_one_clear_error(arguments, error, words):
    with pytest.raises(error, match=words):
        gdmap.asymptotics(**{"objective": WELL, "step_sizes": [0.1], "starts": X0, "steps": 2000} | arguments)


def test_random_maps_are_refused():
    x = np.random.default_rng(0).normal(size=(6, 2))
    loss = gdmap.Objective(lambda w, x: (x @ w) ** 2, np.ones(2), (x,))

    def sgd(objective, eta):
        return gdmap.StochasticGradientDescent(objective, eta, batch_size=1)

    with pytest.raises(TypeError, match="not random"):
        gdmap.asymptotics(loss, [0.1], np.ones((1, 2)), map=sgd)

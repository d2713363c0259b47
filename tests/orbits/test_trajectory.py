import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import gdmap
from gdmap import Function, GradientDescent, Map
from gdmap.objectives import AbstractObjective
from gdmap.orbits import trajectory
from gdmap.orbits.trajectory import QUANTITIES

MODULE = "gdmap.orbits.trajectory"


@pytest.fixture
def module():
    import sys

    return sys.modules[MODULE]


@functools.cache
def double_well():
    return Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)


@functools.cache
def quartic(dim=6):
    matrix = np.random.default_rng(3).normal(size=(dim, dim))
    return Function(lambda w: jnp.sum((jnp.asarray(matrix, w.dtype) @ w) ** 2) / 2 + jnp.sum(w**4) / 4, dim)


class HeavyBall(Map):
    """The state is (theta_t, theta_{t-1})."""

    objective: AbstractObjective
    eta: float = eqx.field(static=True)
    beta: float = eqx.field(static=True)

    @property
    def state_dim(self):
        return 2 * self.objective.dim

    def initial_state(self, theta):
        return jnp.concatenate([theta, theta])

    def parameters(self, state):
        return state[: self.objective.dim]

    def update(self, state):
        now, before = jnp.split(state, 2)
        return jnp.concatenate([now - self.eta * self.objective.gradient(now) + self.beta * (now - before), now])


class KnownHeavyBall(HeavyBall):
    @property
    def stability_limit(self):
        return 2 * (1 + self.beta) / self.eta


class Clock(Map):
    """Adds the time to every component."""

    objective: AbstractObjective

    def update(self, state):
        raise AssertionError("a map with update_at is iterated with its time")

    def update_at(self, state, time):
        return state + jnp.asarray(time, state.dtype)


def test_orbit_of_the_double_well_against_hand_iteration():
    eta, x = 1.4, 0.3
    found = trajectory(GradientDescent(double_well(), eta), [x], 60, record=("state", "loss", "gradient_norm"))
    assert found["state"].dims == ("step", "component") and found.sizes["step"] == 61
    for step in range(12):  # chaotic: rounding takes over later
        assert found["state"].values[step, 0] == pytest.approx(x, rel=1e-9)
        assert found["loss"].values[step] == pytest.approx((x * x - 1) ** 2 / 4, rel=1e-8)
        assert found["gradient_norm"].values[step] == pytest.approx(abs(x**3 - x), rel=1e-8)
        x = (1 + eta) * x - eta * x**3
    # Later ones follow from the recorded one before.
    states = found["state"].values[:, 0]
    np.testing.assert_allclose(states[1:], (1 + eta) * states[:-1] - eta * states[:-1] ** 3, rtol=0, atol=1e-14)


def test_the_product_of_two_factors_of_theory_6_2():
    loss = Function(lambda w: 1.765 * (1 - w[0] * w[1]) ** 2, 2)
    start = [1.48, 0.775675675676]
    found = trajectory(GradientDescent(loss, 0.25), start, 300, record=("parameters", "sharpness"))
    np.testing.assert_allclose(
        found["parameters"].values[[1, 2, -1]],
        [[1.378689, 0.582372875676], [1.479981681512, 0.822169596323], [1.210129806445, 0.826357630954]],
        atol=1e-10,
    )
    assert found["sharpness"].values[-1] == pytest.approx(3.53 * 2.147281, abs=2e-6)
    assert found["sharpness"].values[-1] < found["stability_limit"] == 8


def test_error_bars_contain_the_exact_values():
    """Against 50 digits at the recorded states of an orbit, where loss and gradient cancel."""
    found = trajectory(
        GradientDescent(double_well(), 0.9), [0.3], 120, record=("state", "loss", "gradient_norm", "sharpness")
    )
    with mpmath.workdps(50):
        for row in range(found.sizes["step"]):
            point = found.isel(step=row)
            x = mpmath.mpf(float(point["state"].values[0]))
            loss, slope, curvature = (x**2 - 1) ** 2 / 4, abs(x**3 - x), 3 * x**2 - 1
            assert abs(loss - float(point["loss"])) <= float(point["loss_error"])
            assert abs(slope - float(point["gradient_norm"])) <= float(point["gradient_norm_error"])
            assert float(point["sharpness_lower"]) <= curvature <= float(point["sharpness_upper"])
    width = found["sharpness_upper"] - found["sharpness_lower"]
    assert float(width.max()) < 1e-13
    assert float((found["loss_error"] / found["loss"]).isel(step=0)) < 1e-14


def test_sharpness_and_alignment_against_numpy_at_each_step():
    loss = quartic()
    start = np.random.default_rng(0).normal(size=6)
    found = trajectory(
        GradientDescent(loss, 0.03), start, 20, ("state", "sharpness", "alignment", "gradient_norm"), every=4
    )
    np.testing.assert_array_equal(found["step"], [0, 4, 8, 12, 16, 20])
    for row, theta in enumerate(found["state"].values):
        eigenvalues, vectors = np.linalg.eigh(loss.hessian(theta))
        assert found["sharpness"].values[row] == pytest.approx(eigenvalues[-1], rel=1e-12)
        assert found["sharpness_lower"].values[row] <= eigenvalues[-1] <= found["sharpness_upper"].values[row]
        gradient = loss.gradient(theta)
        cosine = abs(gradient @ vectors[:, -1]) / np.linalg.norm(gradient)
        assert found["alignment"].values[row] == pytest.approx(cosine, abs=1e-10)
        assert found["gradient_norm"].values[row] == pytest.approx(np.linalg.norm(gradient), rel=1e-13)
    assert np.all(found["alignment_error"] < 1e-9)


def test_alignment_with_a_multiple_eigenvalue_is_unknown():
    bowl = Function(lambda w: w @ w / 2, 3)
    found = trajectory(GradientDescent(bowl, 0.1), np.ones(3), 3, "alignment")
    np.testing.assert_array_equal(found["alignment_error"], 1.0)


def test_the_end_is_recorded_and_the_orbit_is_the_same_whatever_is_recorded():
    map_ = GradientDescent(double_well(), 1.55)  # chaotic: one bit would show
    every_step = trajectory(map_, [0.3], 500, record="state")
    some = trajectory(map_, [0.3], 500, record=("loss", "state", "sharpness", "step_norm"), every=7)
    np.testing.assert_array_equal(some["step"], [*range(0, 500, 7), 500])
    np.testing.assert_array_equal(some["state"], every_step["state"].sel(step=some["step"]))
    assert trajectory(map_, [0.3], 3, "loss", every=100)["step"].values.tolist() == [0, 3]


def test_chunks_change_nothing(monkeypatch, module):
    map_ = GradientDescent(double_well(), 1.55)
    names = ("loss", "sharpness", "state", "distance")
    whole = trajectory(map_, [0.3], 50, names, every=3)
    monkeypatch.setattr(module, "CHUNK_STATES", 4)
    monkeypatch.setattr(module, "CHUNK_BYTES", 8 * 3)
    parts = trajectory(map_, [0.3], 50, names, every=3)
    assert whole.identical(parts)
    diverging = GradientDescent(double_well(), 2.05)
    in_parts = trajectory(diverging, [0.55], 50, names)
    monkeypatch.undo()
    assert in_parts.identical(trajectory(diverging, [0.55], 50, names))


def test_descent_quantities_against_numpy():
    loss, eta = quartic(), 0.02
    found = trajectory(
        GradientDescent(loss, eta),
        np.random.default_rng(1).normal(size=6),
        10,
        ("relative_progress", "directional_smoothness", "step_norm", "parameter_norm", "distance", "parameters"),
    )
    thetas = found["parameters"].values
    for row, theta in enumerate(thetas):
        gradient = loss.gradient(theta)
        after = theta - eta * gradient
        size = eta * gradient @ gradient
        expected = {
            "relative_progress": (loss.value(after) - loss.value(theta)) / size,
            "directional_smoothness": gradient @ (gradient - loss.gradient(after)) / size,
            "step_norm": np.linalg.norm(eta * gradient),
            "parameter_norm": np.linalg.norm(theta),
            "distance": np.linalg.norm(theta - thetas[0]),
        }
        for name, value in expected.items():
            assert found[name].values[row] == pytest.approx(value, rel=1e-11), name
    assert "loss" not in found and "loss_error" not in found


def test_directional_smoothness_of_a_quadratic_is_its_rayleigh_quotient():
    curvature = np.array([1.0, 5.0])
    loss = Function(lambda w: w @ (jnp.asarray(curvature, w.dtype) * w) / 2, 2)
    found = trajectory(
        GradientDescent(loss, 0.1), [1.0, 1.0], 30, ("directional_smoothness", "relative_progress", "state")
    )
    gradient = found["state"].values * curvature
    rayleigh = (gradient**2 @ curvature) / np.sum(gradient**2, axis=1)
    exact = found["directional_smoothness"].values
    np.testing.assert_allclose(exact, rayleigh, rtol=1e-12)
    assert np.all(np.abs(exact - rayleigh) <= found["directional_smoothness_error"])
    progress = -1 + 0.1 * rayleigh / 2
    assert np.all(np.abs(found["relative_progress"] - progress) <= found["relative_progress_error"])


def test_stability_limit():
    loss = quartic(2)
    found = trajectory(GradientDescent(loss, 0.04), [0.1, 0.1], 1)
    assert found["stability_limit"].values == 50 and found["stability_limit"].attrs["status"] == "computed"
    assert np.isnan(trajectory(HeavyBall(loss, 0.04, 0.5), [0.1, 0.1], 1, "loss")["stability_limit"])
    known = trajectory(KnownHeavyBall(loss, 0.04, 0.5), [0.1, 0.1], 1, "loss")
    assert known["stability_limit"] == 75


def test_heavy_ball_from_parameters_and_from_a_state():
    loss = quartic(3)
    map_ = HeavyBall(loss, 0.02, 0.7)
    theta = np.array([0.5, -0.3, 0.8])
    names = ("state", "parameters", "loss", "gradient_norm", "sharpness", "step_norm")
    found = trajectory(map_, theta, 15, names)
    assert found.sizes == {"step": 16, "component": 6, "parameter": 3}
    before = now = theta
    for row in range(16):
        np.testing.assert_allclose(found["state"].values[row], np.concatenate([now, before]), rtol=1e-12)
        np.testing.assert_allclose(found["parameters"].values[row], now, rtol=1e-12)
        assert found["loss"].values[row] == pytest.approx(loss.value(now), rel=1e-12)
        top = np.linalg.eigvalsh(loss.hessian(now))[-1]
        assert found["sharpness"].values[row] == pytest.approx(top, rel=1e-12)
        before, now = now, now - 0.02 * loss.gradient(now) + 0.7 * (now - before)
        assert found["step_norm"].values[row] == pytest.approx(np.linalg.norm(now - before), rel=1e-11)
    assert trajectory(map_, np.concatenate([theta, theta]), 15, names).identical(found)


def test_a_map_that_depends_on_time_is_given_its_time():
    found = trajectory(Clock(double_well()), [0.5], 10, ("state", "step_norm"), every=2)
    np.testing.assert_array_equal(found["state"].values[:, 0], [0.5, 1.5, 6.5, 15.5, 28.5, 45.5])
    np.testing.assert_array_equal(found["step_norm"], [0, 2, 4, 6, 8, 10])


def test_divergence_is_a_result():
    eta, x, steps = 0.3, 9.5, 0
    with np.errstate(over="ignore", invalid="ignore"):
        states = [np.float64(x)]
        while np.isfinite(states[-1]):
            x = states[-1]
            states.append(x - np.float64(eta) * (x**3 - x))
            steps += 1
    names = tuple(name for name in QUANTITIES)
    found = trajectory(GradientDescent(double_well(), eta), [9.5], 20, names)
    assert found.attrs["diverged_at"] == steps
    np.testing.assert_allclose(found["state"].values[:steps, 0], states[:-1], rtol=1e-12)
    for name, variable in found.data_vars.items():
        if "step" in variable.dims:
            assert np.all(np.isnan(variable.values[steps:])), name
    assert found["loss"].values[steps - 1] == np.inf
    sparse = trajectory(GradientDescent(double_well(), eta), [9.5], 20, "loss", every=5)
    assert sparse.attrs["diverged_at"] == steps  # also between recorded steps
    assert "diverged_at" not in trajectory(GradientDescent(double_well(), eta), [0.5], 20).attrs


def test_divergence_with_the_sharpness_by_lanczos_iteration(monkeypatch, module):
    map_ = GradientDescent(double_well(), 0.3)
    dense = trajectory(map_, [9.5], 8)
    monkeypatch.setattr(module, "DENSE_LIMIT", 0)
    one_by_one = trajectory(map_, [9.5], 8)
    assert np.array_equal(np.isnan(one_by_one["sharpness"]), np.isnan(dense["sharpness"]))


def test_sharpness_one_by_one_agrees_with_dense(monkeypatch, module):
    map_ = GradientDescent(quartic(), 0.02)
    start = np.random.default_rng(2).normal(size=6)
    dense = trajectory(map_, start, 6)
    monkeypatch.setattr(module, "DENSE_LIMIT", 5)
    single = trajectory(map_, start, 6)
    np.testing.assert_allclose(single["sharpness"], dense["sharpness"], rtol=1e-10)
    assert np.all(single["sharpness_lower"] <= dense["sharpness_upper"])
    assert np.all(dense["sharpness_lower"] <= single["sharpness_upper"])
    with pytest.raises(ValueError, match=r"alignment.* up to 5 parameters; this objective has 6"):
        trajectory(map_, start, 6, "alignment")


def test_many_parameters():
    curvature = np.linspace(0.1, 1.0, 2000)
    loss = Function(lambda w: w @ (jnp.asarray(curvature, w.dtype) * w) / 2, 2000)
    found = trajectory(GradientDescent(loss, 0.5), np.ones(2000), 4, every=2)
    assert np.all(found["sharpness_lower"] <= 1) and np.all(found["sharpness_upper"] >= 1)
    np.testing.assert_allclose(found["sharpness"], 1.0, rtol=1e-3)
    expected = [np.sum(curvature * (1 - 0.5 * curvature) ** (2 * step)) / 2 for step in (0, 2, 4)]
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-12)


def test_single_precision_stays_single():
    map_ = GradientDescent(quartic(), 0.02)
    start = np.random.default_rng(2).normal(size=6)
    double = trajectory(map_, start, 8, ("loss", "gradient_norm", "sharpness", "alignment", "state"))
    single = trajectory(map_, start.astype(np.float32), 8, tuple(QUANTITIES))
    assert single.attrs["dtype"] == "float32"
    for name in single.data_vars:
        if name != "stability_limit":
            assert single[name].dtype == np.float32, name
    np.testing.assert_allclose(single["sharpness"], double["sharpness"], rtol=1e-5)
    assert np.all(single["sharpness_lower"] <= double["sharpness_upper"].values[0] * 1.5)
    assert float(single["loss_error"][0] / single["loss"][0]) > 1e-8


def test_labels():
    found = trajectory(GradientDescent(quartic(2), 0.1), [0.1, 0.2], 2, tuple(QUANTITIES))
    for name, variable in found.variables.items():
        wanted = {"units", "long_name"} if name == "step" else {"units", "long_name", "status", "method"}
        assert wanted <= set(variable.attrs), name
        assert all(str(value) for value in variable.attrs.values()), name
    assert found.attrs["steps"] == 2 and found.attrs["status"] == "computed"
    assert found["state"].attrs["status"] == "computed"


def test_all_kinds_of_arrays():
    map_ = GradientDescent(quartic(2), 0.1)
    from_list = trajectory(map_, [0.1, 0.2], 3)
    with jax.enable_x64(True):
        from_jax = trajectory(map_, jnp.array([0.1, 0.2]), 3)
    assert from_list.identical(from_jax)


def test_gradient_descent_reaches_the_edge_of_stability():
    """A tanh network that sharpens until 2 / eta and stays there (Cohen et al. 2021)."""
    rng = np.random.default_rng(0)
    x = np.linspace(-1, 1, 24)[:, None]
    hidden = 6
    params = [
        (rng.normal(size=(hidden, 1)), np.zeros(hidden)),
        (rng.normal(size=(hidden, hidden)) / np.sqrt(hidden), np.zeros(hidden)),
        (rng.normal(size=(1, hidden)) / np.sqrt(hidden), np.zeros(1)),
    ]

    def loss(params, x, y):
        for W, b in params[:-1]:
            x = jnp.tanh(W @ x + b)
        W, b = params[-1]
        return jnp.sum((W @ x + b - y) ** 2) / 2

    objective = gdmap.Objective(loss, params, data=(x, np.sin(4 * x)))
    found = trajectory(GradientDescent(objective, 0.1), objective.ravel(params), 3000, every=50)
    limit = float(found["stability_limit"])
    assert found["sharpness"].values[0] < limit / 2
    assert found["loss"].values[-1] < found["loss"].values[0] / 10
    np.testing.assert_allclose(found["sharpness"].values[-10:], limit, rtol=0.05)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"map": double_well()}, TypeError, "map must be a map"),
        ({"state": [0.1, 0.2]}, ValueError, r"state has shape \(2,\), expected \(1,\)"),
        ({"state": 0.1}, ValueError, r"state has shape \(\)"),
        ({"state": [[0.1]]}, ValueError, r"state has shape \(1, 1\)"),
        ({"state": [np.nan]}, ValueError, "not finite, first at 0"),
        ({"state": [1]}, TypeError, "write integers as floats"),
        ({"state": np.array([0.1], np.float16)}, TypeError, "float16, expected float64 or float32"),
        ({"steps": 0}, ValueError, "steps must be a positive integer, got 0"),
        ({"steps": 1.5}, ValueError, "steps must be a positive integer"),
        ({"steps": True}, ValueError, "steps must be a positive integer"),
        ({"every": 0}, ValueError, "every must be a positive integer"),
        ({"every": -1}, ValueError, "every must be a positive integer"),
        ({"record": ("loss", "sharpnes")}, ValueError, "record knows 'loss'.* got 'sharpnes'"),
        ({"record": ()}, ValueError, "nothing to record"),
        ({"record": None}, TypeError, "record must be a name or a sequence of names"),
        ({"record": [["loss"]]}, TypeError, "record must be a name or a sequence of names"),
    ],
)
def test_bad_input_names_the_argument(change, error, message):
    arguments = {"map": GradientDescent(double_well(), 0.1), "state": [0.1], "steps": 3, **change}
    with pytest.raises(error, match=message):
        trajectory(**arguments)


def test_errors_that_belong_to_other_maps():
    map_ = HeavyBall(quartic(2), 0.1, 0.5)
    with pytest.raises(ValueError, match=r"relative_progress.* is defined for GradientDescent, not for HeavyBall"):
        trajectory(map_, [0.1, 0.1], 3, "relative_progress")
    with pytest.raises(ValueError, match=r"expected \(4,\), or \(2,\) for parameters"):
        trajectory(map_, [0.1, 0.1, 0.1], 3)

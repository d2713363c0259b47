"""The fates of stochastic gradient descent: golden values 6.4 and 6.5 of the theory, and the traps around them."""

import jax.numpy as jnp
import numpy as np
import pytest

import gdmap
from gdmap.ensembles.random_fates import trend
from gdmap.ensembles.random_iteration import sampled_steps
from gdmap.maps import RandomMap, StochasticGradientDescent

POINTS = np.array([0.9, 2.5])


def toy_loss(w, x, y):
    return (jnp.maximum(w[1] * jnp.maximum(w[0] * x, 0), 0) - y) ** 2 / 2


TOY = gdmap.Objective(toy_loss, np.zeros(2), data=(POINTS, POINTS))


def quadratic(w, a):
    return a * w[0] ** 2 / 2


def quadratics(*curvatures):
    return gdmap.Objective(quadratic, [0.0], data=(np.array(curvatures),))


def noisy_least_squares():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(20, 3))
    y = x @ [1.0, 2.0, 3.0] + rng.normal(size=20)
    return gdmap.Objective(lambda w, x, y: (x @ w - y) ** 2 / 2, np.zeros(3), data=(x, y))


def near(s, distance, number=64, seed=1):
    """Starts at a distance from the minimum of the toy with squared norm ``s``."""
    first = np.sqrt((s + np.sqrt(s * s - 4)) / 2)
    directions = np.random.default_rng(seed).normal(size=(number, 2))
    return np.array([first, 1 / first]) + distance * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def normal_starts(number=64, dim=1):
    return gdmap.gaussian_starts(number, dim, 5)


def names(dataset):
    return set(zip(gdmap.fate_names(dataset).tolist(), gdmap.reason_names(dataset).tolist(), strict=True))


def share(dataset, fate):
    return float(np.mean(gdmap.fate_names(dataset) == fate))


def test_long_excursions_are_no_escape():
    # lambda = -.137, but unstable in mean square: norms grow by many orders of magnitude and come back.
    map_ = StochasticGradientDescent(quadratics(8.0, 2.0), 0.6)
    starts = normal_starts()
    result = gdmap.ensemble(map_, starts)
    assert names(result) == {("minimum", "positive_definite_hessian")}
    assert gdmap.ensemble(map_, starts, escape_radius=1e6).fate.values.tolist() != result.fate.values.tolist()


def test_positive_exponent_of_a_linear_map_diverges_and_nothing_is_caught_by_rounding():
    # lambda = +.0389, mu < 0. About one start in fifty comes within 1e-12 of the minimum on its way.
    map_ = StochasticGradientDescent(quadratics(1.62, 12.5), 0.3, probabilities=[0.58, 0.42])
    result = gdmap.ensemble(map_, normal_starts(256), 30_000)
    assert names(result) == {("diverged", "beyond_escape_radius")}
    assert share(gdmap.ensemble(map_.mean_map, normal_starts()), "minimum") == 1


def test_band_that_is_stable_for_sgd_and_unstable_for_gd():
    # Theory 3.7: about 96 % of the runs from close to s = 8 converge; gradient descent never does.
    starts = near(8.0, 1e-6, 256)
    result = gdmap.ensemble(StochasticGradientDescent(TOY, 0.15), starts)
    count = int(np.sum(gdmap.fate_names(result) == "minimum"))
    assert abs(count / 256 - 0.96) <= 4 * np.sqrt(0.96 * 0.04 / 256)
    assert names(result) == {("minimum", "manifold_of_minima"), ("undecided", "degenerate_critical_point")}
    squares = np.sum(result.state.values**2, axis=1)[gdmap.fate_names(result) == "minimum"]
    stable = (squares < 2.635898) | ((squares > 6.661222) & (squares < 9.297119))
    assert stable.all()


def test_sgd_unstable_minima_are_left_where_gd_stays():
    sgd = StochasticGradientDescent(TOY, 0.3, probabilities=[0.58, 0.42])
    starts = near(2.1, 1e-3)
    by_gd = gdmap.ensemble(sgd.mean_map, starts)
    assert share(by_gd, "minimum") == 1
    assert share(gdmap.ensemble(sgd, starts), "minimum") == 0


@pytest.mark.slow
def test_gd_unstable_minima_are_left_where_sgd_stays():
    # At s = 3 the roles are exchanged; every limit lies in the band where lambda < 0.
    sgd = StochasticGradientDescent(TOY, 0.3, probabilities=[0.58, 0.42])
    starts = near(3.0, 1e-3)
    result = gdmap.ensemble(sgd, starts)
    limits = np.sum(result.state.values**2, axis=1)[gdmap.fate_names(result) == "minimum"]
    assert len(limits) > 20
    assert (limits > 2.537249).all() and (limits < 4.998564).all()
    limits = np.sum(gdmap.ensemble(sgd.mean_map, starts, 20_000).state.values ** 2, axis=1)
    assert (np.abs(limits - 3) > 0.1).all()


def test_dead_units_are_no_minimum():
    result = gdmap.ensemble(StochasticGradientDescent(TOY, 0.15), -np.abs(normal_starts(8, 2)))
    assert names(result) == {("undecided", "degenerate_critical_point")}
    np.testing.assert_array_equal(result.steps, 0)


def test_start_at_a_minimum_is_one_and_at_a_saddle_is_one():
    map_ = StochasticGradientDescent(quadratics(1.62, 12.5), 0.3, probabilities=[0.58, 0.42])
    assert names(gdmap.ensemble(map_, np.zeros((1, 1)))) == {("minimum", "positive_definite_hessian")}
    top = StochasticGradientDescent(quadratics(-1.0, -2.0), 0.3, probabilities=[0.58, 0.42])
    assert names(gdmap.ensemble(top, np.zeros((1, 1)))) == {("saddle", "negative_hessian_eigenvalue")}


@pytest.mark.slow
def test_rarely_drawn_samples_count():
    # The first sample alone is fitted at once; one step in 500 uses the second.
    loss = gdmap.Objective(lambda w, a: (a @ w - 1) ** 2 / 2, np.zeros(2), data=(np.eye(2),))
    map_ = StochasticGradientDescent(loss, 1.0, probabilities=[0.998, 0.002])
    result = gdmap.ensemble(map_, normal_starts(16, 2), 20_000)
    assert names(result) == {("minimum", "positive_definite_hessian")}
    np.testing.assert_allclose(result.state, 1.0, rtol=1e-12)
    early = gdmap.ensemble(map_, normal_starts(16, 2), 40)
    assert np.all((np.abs(early.state[:, 1] - 1) < 1e-9) | (gdmap.fate_names(early) == "undecided"))


def test_a_sample_that_is_never_drawn_does_not_count():
    never = StochasticGradientDescent(quadratics(1.0, 50.0, 2.0), 0.5, probabilities=[0.5, 0.0, 0.5])
    assert sampled_steps(never).samples.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("law", "max_steps"),
    [({}, 4_000), pytest.param({"batch_size": 5, "shuffle": True}, 1_000, marks=pytest.mark.slow)],
)
def test_noise_keeps_a_trajectory_bounded_and_never_at_a_minimum(law, max_steps):
    loss, starts = noisy_least_squares(), normal_starts(64, 3)
    result = gdmap.ensemble(StochasticGradientDescent(loss, 0.05, **law), starts, max_steps)
    assert share(result, "minimum") == 0
    assert share(result, "bounded") >= 0.9
    assert names(result) <= {("bounded", "no_trend"), ("undecided", "horizon_reached")}


def test_tendencies_are_not_bounded():
    starts = normal_starts(8)
    slow = gdmap.ensemble(StochasticGradientDescent(quadratics(1.0, 2.0), 2e-3), starts, 2_000)
    assert names(slow) == {("undecided", "still_converging")}
    drift = gdmap.Objective(lambda w, a: a * w[0], [0.0], data=(np.array([1.0, 2.0]),))
    assert names(gdmap.ensemble(StochasticGradientDescent(drift, 0.1), starts, 2_000)) == {
        ("undecided", "still_growing")
    }
    short = gdmap.ensemble(StochasticGradientDescent(quadratics(1.0, 2.0), 2e-3), starts, 100)
    assert names(short) == {("undecided", "horizon_reached")}


@pytest.mark.slow
def test_slow_convergence_to_an_interpolating_minimum_is_not_bounded():
    # The flattest directions hardly move within the horizon, the steps of the others have faded long ago.
    rng = np.random.default_rng(0)
    x = np.vander(rng.uniform(-1, 1, 40), 8)
    weights = rng.normal(size=8)
    loss = gdmap.Objective(lambda w, x, y: (x @ w - y) ** 2 / 2, np.zeros(8), data=(x, x @ weights))
    result = gdmap.ensemble(StochasticGradientDescent(loss, 0.2), weights + normal_starts(64, 8))
    assert set(gdmap.fate_names(result)) == {"undecided"}


@pytest.mark.parametrize("dim", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_random_walks_are_not_bounded(dim):
    steps = np.random.default_rng(0).normal(size=(40, dim))
    loss = gdmap.Objective(lambda w, x: x @ w, np.zeros(dim), data=(np.concatenate([steps, -steps]),))
    result = gdmap.ensemble(StochasticGradientDescent(loss, 0.1), 100 * normal_starts(128, dim), 3_000)
    assert share(result, "bounded") <= 0.01


@pytest.mark.slow
def test_growth_is_told_above_a_thousand_parameters():
    # lambda = +.0415 along one direction, and the starts come close to the minimum.
    rng = np.random.default_rng(0)
    unit = rng.normal(size=1100)
    unit /= np.linalg.norm(unit)
    loss = gdmap.Objective(
        lambda w, a: a * (w @ unit - 1) ** 2 / 2, np.zeros(1100), data=(np.array([1.62, 12.5]),)
    )
    starts = unit + 0.1 * rng.normal(size=(64, 1100))
    starts -= (starts @ unit - 1 - 1e-3 * rng.normal(size=64))[:, None] * unit
    unstable = gdmap.ensemble(StochasticGradientDescent(loss, 0.3, probabilities=[0.58, 0.42]), starts, 2_000)
    assert share(unstable, "minimum") == 0
    stable = gdmap.ensemble(StochasticGradientDescent(loss, 0.1, probabilities=[0.58, 0.42]), starts[:4], 2_000)
    assert names(stable) == {("minimum", "interpolating_minimum")}


def test_a_sample_that_is_hardly_ever_drawn_leaves_the_growth_open():
    # lambda > 0 through a sample of probability 1e-6 alone, which no trajectory here draws.
    map_ = StochasticGradientDescent(quadratics(1.0, 1e50), 1e-7, probabilities=[1 - 1e-6, 1e-6])
    result = gdmap.ensemble(map_, np.array([[1e-30]]), 10)
    assert share(result, "minimum") == 0


def test_trend_errors_are_right():
    rng = np.random.default_rng(0)
    white = rng.normal(size=(4000, 32))
    change, error = trend(white)
    # The error is inflated where neighbours happen to be correlated: at most, not exactly, the right size.
    assert 0.75 < np.std(change / error) < 1.0
    assert np.mean(np.abs(change) > 4 * error) < 1e-3
    change, error = trend(white + np.linspace(0, 10, 32))
    assert abs(change.mean() - 10 * 32 / 31) < 0.1
    change, error = trend(np.cumsum(white, axis=1))
    assert np.mean(np.abs(change) + 4 * error < np.log(2)) < 1e-2


def test_trajectories_do_not_depend_on_company_and_follow_the_map():
    map_ = StochasticGradientDescent(TOY, 0.15)
    starts = normal_starts(300, 2)
    whole = gdmap.ensemble(map_, starts, 600, seed=4)
    part = gdmap.ensemble(map_, starts[:7], 600, seed=4)
    for name in ("fate", "reason", "steps", "loss", "gradient_norm", "state"):
        np.testing.assert_array_equal(whole[name][:7], part[name])
    assert whole.attrs["seed"] == 4
    assert not np.array_equal(whole.steps[:64], gdmap.ensemble(map_, starts[:64], 600, seed=5).steps)
    short = gdmap.ensemble(map_, starts[:4], 20, seed=4)
    state = starts[3]
    for step in range(20):
        state = map_.step(state, map_.batch(4, 3, step))
    np.testing.assert_allclose(short.state[3], state, rtol=1e-12)


def tanh_network():
    x = np.linspace(-1, 1, 4)[:, None] * [1.0, 0.5] + [[0.3, -0.2]]
    y = np.array([0.5, -0.2, 0.1, 0.4])

    def loss(params, x, y):
        return (params["out"] @ jnp.tanh(params["in"] @ x) - y) ** 2 / 2

    params = {"in": np.zeros((6, 2)), "out": np.zeros(6)}
    return gdmap.Objective(loss, params, data=(x, y))


@pytest.mark.slow  # the toy above ends at manifolds of minima by default
def test_network_fitted_to_interpolation():
    loss = tanh_network()
    starts = 1.5 * normal_starts(16, loss.dim)
    result = gdmap.ensemble(StochasticGradientDescent(loss, 0.3, batch_size=2), starts, 60_000)
    at_minimum = gdmap.fate_names(result) == "minimum"
    assert at_minimum.sum() >= 8
    assert set(gdmap.reason_names(result)[at_minimum]) == {"manifold_of_minima"}
    for theta in result.state.values[at_minimum][:4]:
        assert np.max(loss.sample_values(theta)) < 1e-20
    assert share(result, "bounded") == 0


@pytest.mark.slow
def test_large_models_converge_by_interpolation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 1001)) / np.sqrt(1001)
    starts = normal_starts(4, 1001)
    for offset, expected in (
        (0.0, ("minimum", "interpolating_minimum")),
        (1.0, ("undecided", "too_large_to_confirm")),
    ):
        loss = gdmap.Objective(
            lambda w, x, y, offset: (x @ w - y) ** 2 / 2 + offset,
            np.zeros(1001),
            data=(x, np.ones(4), np.full(4, offset)),
        )
        result = gdmap.ensemble(StochasticGradientDescent(loss, 1.0), starts, 500)
        assert names(result) == {expected}


def test_single_precision_starts():
    map_ = StochasticGradientDescent(quadratics(1.0, 2.0), 0.4)
    with pytest.warns(UserWarning, match="float32"):
        result = gdmap.ensemble(map_, normal_starts(4).astype(np.float32), 2_000)
    assert names(result) == {("minimum", "positive_definite_hessian")}
    assert result.state.dtype == np.float32


def test_overflow_and_undefined_updates():
    steep = gdmap.Objective(lambda w, a: a * w[0] ** 4, [0.0], data=(np.array([1.0, 2.0]),))
    found = names(gdmap.ensemble(StochasticGradientDescent(steep, 1.0), np.array([[5.0]])))
    assert {fate for fate, _ in found} == {"diverged"}
    root = gdmap.Objective(lambda w, a: a * jnp.sqrt(w[0]), [1.0], data=(np.array([1.0, 2.0]),))
    assert names(gdmap.ensemble(StochasticGradientDescent(root, 1.0), np.array([[0.3]]))) == {
        ("diverged", "update_undefined")
    }


def test_sweeps_follow_random_maps(tmp_path):
    starts = normal_starts(20, 2)

    def of_pairs(objective, step_size):
        return StochasticGradientDescent(objective, step_size, batch_size=2, replace=True)

    whole = gdmap.sweep(TOY, [0.1, 0.15], starts, 500, seed=3, map=of_pairs)
    stored = gdmap.sweep(TOY, [0.1, 0.15], starts, 500, seed=3, map=of_pairs, store=tmp_path / "s", chunk_size=7)
    for name in ("fate", "steps", "loss", "gradient_norm"):
        np.testing.assert_array_equal(whole[name], stored[name])
    alone = gdmap.ensemble(of_pairs(TOY, 0.15), starts, 500, seed=3)
    np.testing.assert_array_equal(whole.steps.sel(step_size=0.15), alone.steps)
    np.testing.assert_array_equal(whole.fate.sel(step_size=0.15), alone.fate)
    assert float(whole.fraction.sum("fate_name").min()) == pytest.approx(1)


@pytest.mark.slow
def test_with_one_possible_batch_it_is_gradient_descent():
    starts = normal_starts(20, 2)
    full = gdmap.sweep(TOY, [0.1], starts, 500, map=lambda loss, eta: StochasticGradientDescent(loss, eta, 2))
    np.testing.assert_array_equal(full.steps, gdmap.sweep(TOY, [0.1], starts, 500).steps)


class Jump(RandomMap):
    objective: gdmap.Objective

    def random_update(self, state, key, step):
        return state


def test_bad_input():
    map_ = StochasticGradientDescent(TOY, 0.15)
    with pytest.raises(TypeError, match="StochasticGradientDescent"):
        gdmap.ensemble(TOY, np.zeros((1, 2)))
    with pytest.raises(TypeError, match="of random maps"):
        gdmap.ensemble(Jump(TOY), np.zeros((1, 2)))
    for seed in (-1, 0.5, True, 2**31):
        with pytest.raises(ValueError, match="seed"):
            gdmap.ensemble(map_, np.zeros((1, 2)), seed=seed)
    with pytest.raises(ValueError, match="shape"):
        gdmap.ensemble(map_, np.zeros(2))
    with pytest.raises(ValueError, match="max_steps"):
        gdmap.ensemble(map_, np.zeros((1, 2)), 0)
    with pytest.raises(ValueError, match="period_tolerance"):
        gdmap.ensemble(map_, np.zeros((1, 2)), period_tolerance=-1.0)
    with pytest.raises(ValueError, match="max_period"):
        gdmap.ensemble(map_, np.zeros((1, 2)), max_period=0)
    with pytest.raises(TypeError, match="random maps"):
        gdmap.trajectory(map_, np.zeros(2), 10)
    with pytest.raises(ValueError, match="escape_radius"):
        gdmap.ensemble(map_, np.zeros((1, 2)), escape_radius=np.inf)
    with pytest.raises(ValueError, match="with that step size"):
        gdmap.sweep(TOY, [0.1, 0.2], 3, map=lambda loss, eta: StochasticGradientDescent(loss, 0.1))
    with pytest.raises(TypeError, match="must return a map"):
        gdmap.sweep(TOY, [0.1], 3, map=lambda loss, eta: loss)
    with pytest.raises(TypeError, match="of random maps"):
        gdmap.sweep(TOY, [0.1], 3, map=lambda loss, eta: Jump(loss))
    with pytest.raises(TypeError, match="has no samples"):
        gdmap.sweep(gdmap.Function(lambda w: w @ w, 2), [0.1], 3, map=StochasticGradientDescent)

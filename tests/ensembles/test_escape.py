"""Predicted exponents against simulated escape and return."""

import jax.numpy as jnp
import numpy as np
import pytest

import gdmap
from gdmap.ensembles import escape_or_return, outcome_names
from gdmap.ensembles.escape import FLOOR, MEASURED, Neighbourhood, growth_rates
from gdmap.ensembles.random_iteration import sampled_steps
from gdmap.exponents.exponent import Exponent
from gdmap.exponents.gd_exponent import gd_exponent
from gdmap.maps import StochasticGradientDescent

POINTS = np.array([0.9, 2.5])


def toy_loss(w, x, y):
    return (jnp.maximum(w[1] * jnp.maximum(w[0] * x, 0), 0) - y) ** 2 / 2


TOY = gdmap.Objective(toy_loss, np.zeros(2), data=(POINTS, POINTS))
P = [0.58, 0.42]


def minimum(s):
    first = np.sqrt((s + np.sqrt(s * s - 4)) / 2)
    return np.array([first, 1 / first])


def exact(s, eta, p):
    """lambda of the toy (theory 3.4)."""
    return p * np.log(abs(1 - 0.81 * eta * s)) + (1 - p) * np.log(abs(1 - 6.25 * eta * s))


@pytest.mark.parametrize(
    ("eta", "p", "s", "stable"),
    [
        (0.15, 0.5, 8.0, True),
        pytest.param(0.3, 0.58, 2.1, False, marks=pytest.mark.slow),
        pytest.param(0.3, 0.58, 3.0, True, marks=pytest.mark.slow),
    ],
)
def test_toy_under_sgd_and_under_gd(eta, p, s, stable):
    # Each of the three is stable for one of the two and unstable for the other.
    sgd = StochasticGradientDescent(TOY, eta, probabilities=[p, 1 - p])
    random = escape_or_return(sgd, minimum(s))
    assert random.attrs["verdict"] == ("stable" if stable else "unstable")
    assert float(random.predicted_exponent) == pytest.approx(exact(s, eta, p), abs=1e-10)
    error = float(random.mean_growth_rate_error)
    assert abs(float(random.mean_growth_rate) - exact(s, eta, p)) < 4 * error
    assert bool(random.agrees)
    mean = escape_or_return(sgd.mean_map, minimum(s), starts=40)
    assert mean.attrs["verdict"] == ("unstable" if stable else "stable")
    assert bool(mean.agrees)
    assert abs(float(mean.mean_growth_rate - mean.predicted_exponent)) < 1e-5
    assert set(outcome_names(mean)) == {"escaped" if stable else "returned"}
    if stable:
        assert float(random.share_returned_lower) > 0.3
    else:
        # Rounding catches a few on their way out.
        assert float(random.share_returned) < 0.05


def test_closer_starts_return_more_often():
    sgd = StochasticGradientDescent(TOY, 0.15)
    shares = [escape_or_return(sgd, minimum(8.0), distance=d) for d in (1e-3, 1e-8)]
    assert float(shares[0].share_returned_upper) < float(shares[1].share_returned_lower)
    np.testing.assert_array_equal(shares[0].growth_rate, shares[1].growth_rate)


def test_slightly_unstable_minimum_moves_to_a_flatter_one():
    # mu = +.0068: the run comes to rest a short way along the minima, beyond s = 3.777148; that is no return.
    result = escape_or_return(gdmap.GradientDescent(TOY, 0.15), minimum(3.79), starts=10)
    assert set(outcome_names(result)) == {"escaped"}
    assert float(result.final_distance.max()) < 0.01
    assert bool(result.agrees)
    assert float(escape_or_return(gdmap.GradientDescent(TOY, 0.15), minimum(3.77), starts=10).share_returned) == 1


def test_standard_error_of_the_growth_rate_is_right():
    # Two samples with independent gradients, so that nothing commutes; the truth from products of matrices.
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 2))
    loss = gdmap.Objective(lambda w, x: jnp.sinh(x @ w) ** 2 / 2, np.zeros(2), data=(x,))
    eta = 0.5
    factors = np.eye(2) - eta * np.einsum("ij,ik->ijk", x, x)
    near = Neighbourhood(np.zeros(2), 1.0, np.eye(2), np.eye(2))
    directions = rng.normal(size=(2000, 2, 2))
    sgd = StochasticGradientDescent(loss, eta)
    arguments = (np.eye(2), np.full(2000, eta), directions, np.arange(2000), 0)
    rates = growth_rates(sampled_steps(sgd), near, *arguments)[0][:, :, 0].mean(axis=1)
    vectors = rng.normal(size=(4000, 2))
    logs = []
    for step in range(1500):
        vectors = np.einsum("lij,lj->li", factors[rng.integers(0, 2, len(vectors))], vectors)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= lengths
        if step >= 500:
            logs.append(np.log(lengths[:, 0]))
    truth = np.mean(logs, axis=0)
    truth, doubt = truth.mean(), truth.std(ddof=1) / np.sqrt(len(truth))
    groups = rates.reshape(200, 10)
    z = (groups.mean(axis=1) - truth) / (groups.std(axis=1, ddof=1) / np.sqrt(10))
    # Student's t with 9 degrees of freedom has variance 9/7.
    assert 0.8 < z.var() / (9 / 7) < 1.4
    pooled = rates.std(ddof=1) / np.sqrt(len(rates))
    assert abs(rates.mean() - truth) < 4 * np.hypot(pooled, doubt)


def test_growth_is_unbiased_where_lambda_is_exact():
    # A strongly fluctuating exponent: stopping at barriers would bias it.
    sgd = StochasticGradientDescent(TOY, 0.15)
    theta = minimum(8.0)
    normal = theta[::-1, None] / np.linalg.norm(theta)
    near = Neighbourhood(theta, float(np.linalg.norm(theta)), normal, np.ones((1, 1)))
    count = 4000
    arguments = (normal, np.full(count, 0.15), np.ones((count, 1, 1)), np.arange(count), 1)
    rates = growth_rates(sampled_steps(sgd), near, *arguments)[0].mean(axis=(1, 2))
    spread = np.log(6.5 / abs(1 - 0.81 * 0.15 * 8)) / 2 / np.sqrt(MEASURED)
    assert rates.std() == pytest.approx(spread, rel=0.05)
    assert abs(rates.mean() - exact(8.0, 0.15, 0.5)) < 4 * spread / np.sqrt(count)


def test_linear_network_under_gd_with_a_higher_dimensional_normal_space():
    network = gdmap.LinearNetwork.whitened((2, 2, 2), np.diag([2.0, 1.0]))
    theta = np.tile(np.diag([np.sqrt(2.0), 1.0]).ravel(), 2)
    # The balanced minimum has the sharpness 4.
    for factor, returned in ((0.9, 1), (1.2, 0)):
        eta = factor / 2
        result = escape_or_return(gdmap.GradientDescent(network, eta), theta, starts=20, distance=1e-4)
        assert bool(result.agrees)
        assert float(result.share_returned) == returned


def test_wrong_prediction_is_found_out():
    sgd = StochasticGradientDescent(TOY, 0.15)
    wrong = gd_exponent(TOY, minimum(8.0), 0.15)
    result = escape_or_return(sgd, minimum(8.0), prediction=wrong)
    assert not bool(result.agrees)
    assert abs(float(result.growth_rate_z)) > 100
    assert float(result.predicted_exponent) == wrong.value


@pytest.mark.slow
def test_infinite_prediction():
    # lambda = -infinity where one sample's multiplier is 0.
    quadratics = gdmap.Objective(lambda w, a: a * (w[0] - 1) ** 2 / 2, [0.0], data=(np.array([2.0, 1.0]),))
    result = escape_or_return(StochasticGradientDescent(quadratics, 0.5), [1.0])
    assert float(result.predicted_exponent) < -5
    assert bool(result.agrees)
    assert float(result.share_returned) == 1


def test_reproducible_and_labelled():
    sgd = StochasticGradientDescent(TOY, 0.3, probabilities=P)
    first, again, other = (escape_or_return(sgd, minimum(3.0), starts=20, seed=seed) for seed in (1, 1, 2))
    assert first.identical(again)
    assert not first.growth_rate.equals(other.growth_rate)
    assert first.attrs["seed"] == 1
    for name, variable in first.variables.items():
        assert "long_name" in variable.attrs, name
    assert first.share_returned.attrs["confidence"] == 0.95
    assert first.outcome.attrs["flag_meanings"] == "undecided returned escaped"


def test_horizon_too_short_is_undecided():
    result = escape_or_return(gdmap.GradientDescent(TOY, 0.15), minimum(3.7), starts=10, max_steps=20)
    assert set(outcome_names(result)) == {"undecided"}
    assert bool(result.agrees)


def test_rounding_of_a_wiped_out_displacement_is_not_infinite():
    sgd = StochasticGradientDescent(TOY, 0.15)
    nothing = np.zeros((2, 1))
    near = Neighbourhood(minimum(8.0), 1.0, nothing, np.ones((1, 1)))
    arguments = (nothing, np.full(4, 0.15), np.ones((4, 1, 1)), np.arange(4), 0)
    rates, _, floored = growth_rates(sampled_steps(sgd), near, *arguments)
    np.testing.assert_allclose(rates, np.log(FLOOR))
    assert floored.all()


def test_bad_input():
    sgd, theta = StochasticGradientDescent(TOY, 0.15), minimum(3.0)
    with pytest.raises(TypeError, match="GradientDescent"):
        escape_or_return(TOY, theta)
    import optax

    with pytest.raises(TypeError, match="no exponent here"):
        escape_or_return(gdmap.Optimiser(TOY, optax.sgd, learning_rate=0.1), theta)
    for name, value in (
        ("distance", 0.0),
        ("distance", 0.5),
        ("distance", "near"),
        ("starts", 1),
        ("starts", 20.0),
        ("max_steps", 0),
        ("confidence", 1.0),
        ("seed", -1),
    ):
        with pytest.raises(ValueError, match=name):
            escape_or_return(sgd, theta, **{name: value})
    with pytest.raises(TypeError, match="Exponent"):
        escape_or_return(sgd, theta, prediction=-0.2)
    with pytest.raises(ValueError, match="not a minimum"):
        escape_or_return(sgd, np.array([1.0, 2.0]))
    noisy = gdmap.Objective(lambda w, y: (w[0] - y) ** 2 / 2, [0.0], data=(np.array([0.0, 1.0]),))
    with pytest.raises(ValueError, match="sample"):
        escape_or_return(StochasticGradientDescent(noisy, 0.1), [0.5])
    assert isinstance(gd_exponent(noisy, [0.5], 0.1), Exponent)
    assert float(escape_or_return(gdmap.GradientDescent(noisy, 0.1), [0.5], starts=10).share_returned) == 1


def along_the_axes(w, a):
    return (a * w**2).sum() / 2


def lines(*curvatures):
    """A loss on which every sample acts along the axes; the columns are exactly solvable."""
    return gdmap.Objective(along_the_axes, np.zeros(len(curvatures[0])), data=(np.array(curvatures),))


def given(value, lower, upper):
    return Exponent(value, lower, upper, "computed", "given")


@pytest.mark.parametrize(
    "factor",
    [1 - 1e-5, pytest.param(1 + 1e-5, marks=pytest.mark.slow), pytest.param(0.75, marks=pytest.mark.slow)],
)
def test_gradient_descent_near_the_threshold_and_with_slow_directions(factor):
    # The slow direction contracts by a factor 1 - 2e-5: no number of steps finds the exponent by turning.
    curvature = np.array([1.0, 1e-5])
    loss = gdmap.Function(lambda x: (curvature * x * x).sum() / 2, dim=2)
    result = escape_or_return(gdmap.GradientDescent(loss, 2 * factor), np.zeros(2), starts=10, max_steps=100)
    exact = np.log(np.abs(1 - 2 * factor * curvature)).max()
    assert abs(float(result.mean_growth_rate) - exact) < 2e-6
    assert np.sign(float(result.mean_growth_rate)) == np.sign(exact)
    assert bool(result.agrees)


@pytest.mark.slow
def test_slow_lines_beside_fast_ones_are_measured_alone():
    curvature = np.array([[2.0, 1e-4], [0.1, 2e-4], [1.0, 1e-4]])
    result = escape_or_return(StochasticGradientDescent(lines(*curvature), 1.5), np.zeros(2), max_steps=200)
    exact = np.log(np.abs(1 - 1.5 * curvature)).mean(axis=0).max()
    assert abs(float(result.mean_growth_rate) - exact) < 4 * float(result.mean_growth_rate_error)
    assert float(result.mean_growth_rate_error) < 0.1 * abs(exact)
    assert bool(result.agrees)


@pytest.mark.slow
def test_a_stable_minimum_is_contradicted_only_if_every_start_escapes():
    # Heavy tails: most escape first, and the slow direction has not returned by the horizon.
    curvature = np.array([[8.0, 1e-4], [2.0, 1e-4]])
    result = escape_or_return(StochasticGradientDescent(lines(*curvature), 0.6), np.zeros(2), max_steps=300)
    assert float(result.share_returned) == 0
    assert 0 < float(result.share_escaped) < 1
    assert bool(result.agrees)


def test_predictions_with_an_infinite_end_are_compared_with_the_other_one():
    sgd = StochasticGradientDescent(lines([8.0], [2.0]), 0.6)
    inf = np.inf
    for prediction, agrees in (
        (given(-inf, -inf, -inf), False),
        (given(-inf, -inf, -1.0), False),
        (given(-2.0, -inf, 0.0), True),
        (given(1.0, 0.5, inf), False),
        (given(1.0, -1.0, inf), True),
    ):
        result = escape_or_return(sgd, np.zeros(1), starts=50, max_steps=50, prediction=prediction)
        assert (abs(float(result.growth_rate_z)) <= 4) is agrees, prediction


@pytest.mark.parametrize("off", [0.0, pytest.param(1e-10, marks=pytest.mark.slow), 1e-7])
def test_a_step_too_short_to_be_seen_bounds_the_rate_from_above(off):
    singular = StochasticGradientDescent(lines([8.0], [2.0]), 0.5 * (1 + off))
    for map_ in (singular, gdmap.GradientDescent(singular.objective, 0.2 * (1 + off))):
        result = escape_or_return(map_, np.zeros(1), starts=50, max_steps=50)
        assert result.mean_growth_rate.attrs["floored"] == 1
        assert float(result.growth_rate_z) == 0
        wrong = escape_or_return(map_, np.zeros(1), starts=50, max_steps=50, prediction=given(-1.0, -1.1, -0.9))
        assert float(wrong.growth_rate_z) < -4


@pytest.mark.slow
def test_equal_exponents_on_two_lines():
    curvature = np.array([[1.0, 0.1], [0.1, 1.0]])
    sgd = StochasticGradientDescent(lines(*curvature), 0.9)
    exact = np.log(np.abs(1 - 0.9 * curvature)).mean()
    for seed in range(4):
        result = escape_or_return(sgd, np.zeros(2), starts=100, max_steps=50, seed=seed)
        assert abs(float(result.mean_growth_rate) - exact) < 4 * float(result.mean_growth_rate_error)

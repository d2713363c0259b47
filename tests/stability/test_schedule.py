import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmap import Function, GradientDescent, LinearNetwork
from gdmap.maps import Optimiser
from gdmap.minima import balanced_minimum
from gdmap.stability.schedule import schedule_stability

EIGENVALUES = np.array([7.0, 1.0, 0.3])
BOWL = Function(lambda w: 0.5 * jnp.sum(jnp.asarray(EIGENVALUES[::-1]) * w**2), 3)
ORIGIN = np.zeros(3)
COUPLED = Function(lambda w: 1.5 * w[0] ** 2 + w[0] * w[1] + w[1] ** 2, 2)


def cosine(step):
    return 0.2 * (1 + np.cos(np.pi * step / 100))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from((1, 8, 30)).flatmap(lambda n: st.lists(st.floats(0, 1), min_size=n, max_size=n)))
def test_growth_is_the_sum_of_logarithms(etas):
    result = schedule_stability(BOWL, ORIGIN, etas)
    with np.errstate(divide="ignore"):
        sums = np.cumsum(np.log(np.abs(1 - np.outer(etas, EIGENVALUES))), axis=0)
    np.testing.assert_allclose(result["eigenvalue"], EIGENVALUES, rtol=1e-14)
    # A factor that nearly vanishes is known to the error of its eigenvalue only: the interval says so.
    assert np.all(result["growth_lower"] <= sums[-1]) and np.all(sums[-1] <= result["growth_upper"])
    assert np.all(result["growth_lower"] <= result["growth"]) and np.all(
        result["growth"] <= result["growth_upper"]
    )
    transient = np.maximum(sums.max(axis=0), 0)
    np.testing.assert_allclose(result["transient"], transient, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(result["share_above"], np.mean(np.outer(etas, EIGENVALUES) > 2, axis=0))
    assert result.attrs["largest_transient"] == pytest.approx(transient.max(), abs=1e-9)
    for value, when, mode in zip(
        result["transient"].values, result["transient_step"].values, range(3), strict=True
    ):
        assert value == pytest.approx(sums[when - 1, mode] if when else 0, abs=1e-9)


def test_a_warm_schedule_may_pass_above_the_threshold_and_still_contract():
    result = schedule_stability(BOWL, ORIGIN, lambda step: 0.2 * (1 + jnp.cos(jnp.pi * step / 100)), 100)
    assert result.attrs["verdict"] == "contracts" and result.attrs["margin_upper"] < 0
    assert float(result["share_above"][0]) > 0.3 and result.attrs["largest_transient"] > 1
    assert result.attrs["largest_transient_step"] == int(np.sum(cosine(np.arange(100)) * 7 > 2))
    np.testing.assert_allclose(result["step_size"], cosine(np.arange(100)), atol=1e-16)
    assert result["growth"].attrs["status"] == "computed" and result["growth"].dims == ("mode",)


def test_the_verdict_is_what_iteration_does():
    etas = cosine(np.arange(60))
    result = schedule_stability(BOWL, ORIGIN, etas)
    displacement = np.array([1e-9, 2e-9, 3e-9])
    theta = displacement
    for eta in etas:
        theta = GradientDescent(BOWL, eta).step(theta)
    np.testing.assert_allclose(np.log(np.abs(theta / displacement))[::-1], result["growth"], rtol=1e-9)


@pytest.mark.parametrize(("eta", "verdict"), [(0.28, "contracts"), (2 / 7, "marginal"), (0.3, "expands")])
def test_constant_schedules(eta, verdict):
    for result in (
        schedule_stability(BOWL, ORIGIN, eta, 20),
        schedule_stability(GradientDescent(BOWL, eta), ORIGIN, steps=20),
        schedule_stability(Optimiser(BOWL, optax.sgd, learning_rate=eta), ORIGIN, steps=20),
        schedule_stability(Optimiser(BOWL, optax.sgd, learning_rate=0.1), ORIGIN, np.full(20, eta)),
    ):
        assert result.attrs["verdict"] == verdict
        margin = 20 * max(np.log(np.abs(1 - eta * EIGENVALUES)))
        assert result.attrs["margin_lower"] <= margin + 1e-15 and margin - 1e-15 <= result.attrs["margin_upper"]


def test_zero_factors():
    result = schedule_stability(BOWL, ORIGIN, [0.1, 1.0, 0.5])
    assert result["growth"][1] == -np.inf and result["growth_lower"][1] == -np.inf
    # the factor may also be as large as the error of the eigenvalue
    assert -45 < result["growth_upper"][1] < -25
    only = Function(lambda w: 0.5 * jnp.sum(w**2), 2)
    result = schedule_stability(only, np.zeros(2), [1.0, 1.0])
    assert result.attrs["verdict"] == "contracts" and result.attrs["margin"] == -np.inf
    result = schedule_stability(Optimiser(only, optax.sgd, learning_rate=1.0), np.zeros(2), steps=2)
    assert result.attrs["verdict"] == "contracts" and result.attrs["margin"] == -np.inf


def test_directions_along_a_manifold_are_left_out():
    network = LinearNetwork.whitened((2, 3, 2), np.diag([2.0, 1.0]))
    theta = balanced_minimum(network)
    eigenvalues = np.linalg.eigvalsh(network.hessian(theta))[-4:]
    for map_ in (network, Optimiser(network, optax.sgd, learning_rate=0.1)):
        for eta, verdict in ((0.45, "contracts"), (0.55, "expands")):
            result = schedule_stability(map_, theta, np.full(30, eta))
            assert result.attrs["verdict"] == verdict and result.sizes["mode"] == 4
            margin = 30 * np.log(np.abs(1 - eta * eigenvalues)).max()
            assert result.attrs["margin"] == pytest.approx(margin, abs=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda objective: Optimiser(
            objective, optax.sgd, learning_rate=optax.linear_schedule(0.4, 0.0, 40), momentum=0.8
        ),
        lambda objective: Optimiser(objective, optax.adam, learning_rate=0.3, eps=0.5),
        pytest.param(
            lambda objective: Optimiser(
                objective, optax.adam, learning_rate=0.3, b1=0.5, eps=0.1, frozen={"nu": 0.5}
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_optimisers_against_the_product_of_their_jacobians(make):
    # Differentiated numerically: the loss is quadratic, and h so small that Adam's nu vanishes beside eps.
    map_ = make(COUPLED)
    result = schedule_stability(map_, np.zeros(2), steps=30)
    h, columns = 1e-18, []
    for direction in np.eye(2):
        state = map_.initial_state(h * direction)
        for time in range(30):
            state = map_.step_at(state, time)
        columns.append(map_.parameters(state) / h)
    expected = np.log(np.linalg.norm(np.transpose(columns), 2))
    assert result.attrs["margin"] == pytest.approx(expected, abs=1e-6)
    assert result.attrs["verdict"] == ("contracts" if expected < 0 else "expands")
    assert result.attrs["margin_lower"] <= result.attrs["margin"] <= result.attrs["margin_upper"]


def test_a_given_schedule_drives_the_learning_rate_of_an_optimiser():
    etas = cosine(np.arange(50))
    plain = schedule_stability(BOWL, ORIGIN, etas)
    driven = schedule_stability(Optimiser(BOWL, optax.sgd, learning_rate=1), ORIGIN, etas)
    np.testing.assert_allclose(driven["largest_growth"], plain["largest_growth"], atol=1e-12)
    np.testing.assert_allclose(np.sort(driven["growth"])[::-1], np.sort(plain["growth"])[::-1], rtol=1e-6)
    assert driven.attrs["largest_transient_step"] == plain.attrs["largest_transient_step"]
    own = Optimiser(BOWL, optax.sgd, learning_rate=lambda step: 0.2 * (1 + jnp.cos(jnp.pi * step / 100)))
    np.testing.assert_allclose(
        schedule_stability(own, ORIGIN, steps=50)["largest_growth"], plain["largest_growth"], atol=1e-12
    )


def test_python_schedules_with_branches():
    result = schedule_stability(BOWL, ORIGIN, lambda step: 0.1 if step < 3 else 0.05, 5)
    np.testing.assert_array_equal(result["step_size"], [0.1, 0.1, 0.1, 0.05, 0.05])
    result = schedule_stability(BOWL, ORIGIN, lambda step: 0.1, 4)
    np.testing.assert_array_equal(result["step_size"], np.full(4, 0.1))


def test_wrong_arguments(two_factors):
    with pytest.raises(ValueError, match=r"step 1 has -0\.1"):
        schedule_stability(BOWL, ORIGIN, [0.1, -0.1])
    with pytest.raises(ValueError, match="step 0 has nan"):
        schedule_stability(BOWL, ORIGIN, [np.nan])
    with pytest.raises(ValueError, match="steps must be a positive integer"):
        schedule_stability(BOWL, ORIGIN, optax.constant_schedule(0.1))
    with pytest.raises(ValueError, match="give the schedule"):
        schedule_stability(BOWL, ORIGIN, steps=3)
    with pytest.raises(ValueError, match="leave steps out"):
        schedule_stability(BOWL, ORIGIN, [0.1, 0.2], 3)
    with pytest.raises(ValueError, match="non-empty vector"):
        schedule_stability(BOWL, ORIGIN, [[0.1, 0.2]])
    with pytest.raises(ValueError, match="non-empty vector"):
        schedule_stability(BOWL, ORIGIN, [])
    with pytest.raises(ValueError, match="an array of step sizes or a function"):
        schedule_stability(BOWL, ORIGIN, "warmup")
    with pytest.raises(ValueError, match="saddle"):
        schedule_stability(two_factors, np.zeros(2), [0.1])
    with pytest.raises(TypeError, match="expected an objective"):
        schedule_stability(0.1, ORIGIN, [0.1])


@pytest.mark.slow  # test_local_threshold has such optimisers by default
def test_optimisers_without_a_verdict():
    scheduled = Optimiser(BOWL, optax.sgd, learning_rate=optax.linear_schedule(0.1, 0.0, 3))
    with pytest.raises(ValueError, match="leave out the argument schedule"):
        schedule_stability(scheduled, ORIGIN, [0.1])
    away = Function(lambda w: jnp.sum((w - 1) ** 2), 2)
    with pytest.raises(ValueError, match="not a fixed point of this map"):
        schedule_stability(Optimiser(away, optax.adamw, learning_rate=0.1), np.ones(2), steps=3)
    with pytest.raises(ValueError, match="no derivative"):
        schedule_stability(Optimiser(away, optax.sign_sgd, learning_rate=0.1), np.ones(2), steps=3)

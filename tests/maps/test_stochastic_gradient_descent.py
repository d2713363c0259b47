import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmap import Function, GradientDescent, LinearNetwork, Objective
from gdmap.engines.precision import float64
from gdmap.maps import RandomMap, StochasticGradientDescent
from gdmap.maps.batches import trajectory_key

RNG = np.random.default_rng(0)
INPUTS, TARGETS = RNG.normal(size=(6, 2)), RNG.normal(size=(6, 1))
THETA = RNG.normal(size=9)
SKEWED = np.array([0.3, 0.1, 0.2, 0.05, 0.25, 0.1])


def one_sample(params, x, y):
    hidden = jnp.tanh(params["hidden"] @ x + params["bias"])
    return jnp.sum((params["out"] * hidden.sum() - y) ** 2) / 2 + 0.1 * params["bias"] @ params["bias"]


@pytest.fixture(scope="module")
def network():
    params = {"hidden": np.zeros((2, 2)), "bias": np.zeros(2), "out": np.zeros(3)}
    return Objective(one_sample, params, data=(INPUTS, TARGETS))


@pytest.fixture(scope="module")
def sample_gradients(network):
    """The gradient of every sample by one objective each."""
    params = network.unravel(np.zeros(9))
    return np.stack(
        [
            Objective(one_sample, params, data=(INPUTS[i : i + 1], TARGETS[i : i + 1])).gradient(THETA)
            for i in range(6)
        ]
    )


def test_a_step_is_the_mean_gradient_of_the_batch(network, sample_gradients):
    sgd = StochasticGradientDescent(network, 0.3, batch_size=2)
    assert isinstance(sgd, RandomMap) and sgd.state_dim == 9
    for batch in ([4], [0, 3], [5, 1, 2], [2, 2, 1], np.arange(6), np.array([0, 3], np.uint8), (0, 3)):
        expected = THETA - 0.3 * sample_gradients[np.asarray(batch)].mean(axis=0)
        np.testing.assert_allclose(sgd.step(THETA, batch), expected, rtol=1e-13)
    everything = sgd.step(THETA, np.arange(6))
    np.testing.assert_allclose(everything, GradientDescent(network, 0.3).step(THETA), rtol=1e-13)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=3, max_size=3), st.floats(1e-3, 10.0))
def test_steps_of_single_samples_average_to_the_step_of_their_batch(batch, step_size):
    objective = LinearNetwork((2, 1), INPUTS, TARGETS)
    sgd = StochasticGradientDescent(objective, step_size)
    theta = THETA[:2]
    singles = np.mean([sgd.step(theta, [i]) for i in batch], axis=0)
    np.testing.assert_allclose(sgd.step(theta, batch), singles, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(sgd.step(theta, batch), sgd.step(theta, list(batch)))


def test_the_jacobian_is_the_derivative_of_the_step(network):
    sgd = StochasticGradientDescent(network, 0.3)
    batch = np.array([1, 4, 4])
    with float64():
        derivative = jax.jit(jax.jacfwd(lambda theta: sgd.step(theta, batch)))(jnp.asarray(THETA))
    found = sgd.jacobian(THETA, batch)
    np.testing.assert_allclose(found, derivative, rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(found, found.T)
    h = 1e-6
    v = np.linspace(-1, 1, 9)
    slope = (sgd.step(THETA + h * v, batch) - sgd.step(THETA - h * v, batch)) / (2 * h)
    np.testing.assert_allclose(found @ v, slope, atol=1e-8)
    sign, logarithm = sgd.slogdet(THETA, batch)
    expected = np.linalg.slogdet(found)
    assert (sign, logarithm) == pytest.approx((expected.sign, expected.logabsdet))


def test_the_toy_of_theory_3_4():
    """Hessians ``x_i^2 (t2, t1)(t2, t1)^T`` at ``t1 t2 = 1``."""
    relu = jax.nn.relu
    points = np.array([0.9, 2.5])
    toy = Objective(lambda t, x, y: (y - relu(t[1] * relu(t[0] * x))) ** 2 / 2, np.zeros(2), data=(points, points))
    sgd = StochasticGradientDescent(toy, 0.15)
    theta = np.array([1.6, 1 / 1.6])
    normal = theta[::-1]
    for i, x in enumerate(points):
        np.testing.assert_allclose(sgd.step(theta, [i]), theta, rtol=1e-15)
        expected = np.eye(2) - 0.15 * x**2 * np.outer(normal, normal)
        np.testing.assert_allclose(sgd.jacobian(theta, [i]), expected, rtol=1e-12)
    h = 0.58 * 0.81 + 0.42 * 6.25
    mean = StochasticGradientDescent(toy, 0.3, probabilities=[0.58, 0.42]).mean_map
    np.testing.assert_allclose(mean.jacobian(theta), np.eye(2) - 0.3 * h * np.outer(normal, normal), rtol=1e-12)


# Determinism -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [{"batch_size": 2}, {"batch_size": 4, "shuffle": True}, {"probabilities": SKEWED}])
def test_a_batch_is_a_function_of_seed_trajectory_and_step(network, law):
    sgd = StochasticGradientDescent(network, 0.1, **law)
    first = [sgd.batch(0, trajectory, step).tolist() for trajectory in range(3) for step in range(6)]
    again = StochasticGradientDescent(network, 0.7, **law)
    assert first == [again.batch(0, trajectory, step).tolist() for trajectory in range(3) for step in range(6)]
    assert first != [sgd.batch(1, trajectory, step).tolist() for trajectory in range(3) for step in range(6)]
    assert first[:6] != first[6:12]
    for batch in first:
        assert len(set(batch)) == len(batch) <= sgd.batches.size


@pytest.mark.parametrize(
    "law", [pytest.param({"batch_size": 3}, marks=pytest.mark.slow), {"batch_size": 4, "shuffle": True}]
)
def test_random_updates_are_the_steps_on_the_named_batches(network, law):
    sgd = StochasticGradientDescent(network, 0.1, **law)
    with float64():
        update = jax.jit(lambda theta, step: sgd.random_update(theta, trajectory_key(5, 2), step))
        theta = jnp.asarray(THETA)
        for step in range(4):
            following = update(theta, step)
            named = sgd.step(np.asarray(theta), sgd.batch(5, 2, step))
            np.testing.assert_allclose(following, named, rtol=1e-13)
            theta = following


def test_updates_do_not_depend_on_their_company(network):
    sgd = StochasticGradientDescent(network, 0.1, batch_size=2)

    def after(trajectories):
        with float64():

            @jax.vmap
            def run(trajectory):
                key = trajectory_key(0, trajectory)
                return jax.lax.fori_loop(
                    0, 10, lambda step, theta: sgd.random_update(theta, key, step), jnp.asarray(THETA)
                )

            return np.asarray(jax.jit(run)(jnp.asarray(trajectories)))

    together = after(np.arange(5))
    np.testing.assert_allclose(after(np.array([3])), together[3:4], rtol=1e-13)
    np.testing.assert_allclose(after(np.array([4, 0, 3])), together[[4, 0, 3]], rtol=1e-13)
    assert len(np.unique(together[:, 0])) == 5


# The mean --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "law",
    [
        {},
        {"batch_size": 3},
        {"batch_size": 3, "shuffle": True},
        {"batch_size": 6},
        {"probabilities": SKEWED},
        {"batch_size": 2, "probabilities": SKEWED, "replace": True},
        {"batch_size": 2, "probabilities": SKEWED},
    ],
)
def test_the_mean_map_is_the_mean_over_all_batches(network, sample_gradients, law):
    sgd = StochasticGradientDescent(network, 0.3, **law)
    support, probability = sgd.batches.support(1000)
    expected = THETA - 0.3 * probability @ support @ sample_gradients
    mean = sgd.mean_map
    assert isinstance(mean, GradientDescent)
    np.testing.assert_allclose(mean.step(THETA), expected, rtol=1e-12)
    if "probabilities" not in law:
        assert mean.objective is network


def test_a_weighted_objective_brings_its_probabilities(network):
    weighted = network.weighted(SKEWED)
    sgd = StochasticGradientDescent(weighted, 0.1)
    np.testing.assert_allclose(sgd.batches.probabilities, SKEWED)
    assert sgd.mean_map.objective is weighted
    # A step is on the samples as they are: the weights enter through the draws alone.
    plain = StochasticGradientDescent(network, 0.1)
    np.testing.assert_array_equal(sgd.step(THETA, [1, 2]), plain.step(THETA, [1, 2]))
    # Given probabilities go before the objective's own.
    other = StochasticGradientDescent(weighted, 0.1, probabilities=np.full(6, 1 / 6))
    assert other.batches.probabilities is None
    np.testing.assert_allclose(other.mean_map.step(THETA), GradientDescent(network, 0.1).step(THETA), rtol=1e-13)


def test_a_linear_network_of_samples():
    linear = LinearNetwork((2, 3, 1), INPUTS, TARGETS)
    theta = RNG.normal(size=linear.dim)
    own = Objective(
        lambda t, x, y: jnp.sum((t[6:].reshape(1, 3) @ t[:6].reshape(3, 2) @ x - y) ** 2) / 2,
        np.zeros(9),
        data=(INPUTS, TARGETS),
    )
    for law in ({"batch_size": 2}, {"batch_size": 2, "probabilities": SKEWED, "replace": True}):
        one, other = (StochasticGradientDescent(loss, 0.2, **law) for loss in (linear, own))
        np.testing.assert_allclose(one.step(theta, [0, 5]), other.step(theta, [0, 5]), rtol=1e-12)
        np.testing.assert_allclose(one.jacobian(theta, [3]), other.jacobian(theta, [3]), rtol=1e-11, atol=1e-14)
        np.testing.assert_allclose(one.mean_map.step(theta), other.mean_map.step(theta), rtol=1e-11)
    weighted = StochasticGradientDescent(linear.weighted(SKEWED), 0.2)
    np.testing.assert_allclose(weighted.batches.probabilities, SKEWED)
    huber = LinearNetwork((2, 1), INPUTS, TARGETS, loss="huber")
    everything = StochasticGradientDescent(huber, 0.2).step(theta[:2], range(6))
    np.testing.assert_allclose(everything, GradientDescent(huber, 0.2).step(theta[:2]), rtol=1e-13)


def test_data_may_hold_labels_and_pytrees():
    def loss(w, sample, label):
        return jax.nn.logsumexp(w * sample["x"]) - (w * sample["x"])[label]

    classes = Objective(loss, np.zeros(3), data=({"x": RNG.normal(size=(4, 3))}, np.array([0, 2, 1, 1])))
    sgd = StochasticGradientDescent(classes, 0.5, batch_size=4)
    theta = np.array([0.3, -1.0, 2.0])
    np.testing.assert_allclose(sgd.step(theta, range(4)), GradientDescent(classes, 0.5).step(theta), rtol=1e-13)


# Kinds of arrays -------------------------------------------------------------------------------------------------


def test_precision_and_kind_follow_the_state(network):
    sgd = StochasticGradientDescent(network, 0.1, batch_size=2)
    single = THETA.astype(np.float32)
    step = sgd.step(single, [1, 2])
    assert step.dtype == np.float32 and not isinstance(step, jax.Array)
    np.testing.assert_allclose(step, sgd.step(THETA, [1, 2]), rtol=1e-5)
    assert sgd.jacobian(single, [1]).dtype == np.float32
    assert sgd.step(THETA, [1, 2]).dtype == np.float64
    assert isinstance(sgd.step(jnp.asarray(single), [1, 2]), jax.Array)
    with float64():
        update = jax.eval_shape(
            lambda theta: sgd.random_update(theta, trajectory_key(0, 0), 0), jnp.asarray(single)
        )
        assert update.dtype == np.float32
    assert sgd.step(list(THETA), jnp.array([1, 2])).dtype == np.float64


def test_transformations_of_a_step(network, sample_gradients):
    sgd = StochasticGradientDescent(network, 0.1)
    with float64():
        theta = jnp.asarray(THETA)
        expected = THETA - 0.1 * sample_gradients
        each = jax.jit(jax.vmap(lambda i: sgd.step(theta, i[None])))(jnp.arange(6))
        np.testing.assert_allclose(each, expected, rtol=1e-12)
        np.testing.assert_allclose(
            jax.jit(lambda t, b: sgd.step(t, b))(theta, jnp.array([2])), expected[2], rtol=1e-12
        )
        etas = jnp.array([0.1, 0.2])

        def of_step_size(eta):
            return StochasticGradientDescent(network, eta).step(theta, np.array([2]))

        families = jax.jit(jax.vmap(of_step_size))(etas)
        np.testing.assert_allclose(families[1], THETA - 0.2 * sample_gradients[2], rtol=1e-12)
        slope = jax.jit(jax.grad(lambda eta: of_step_size(eta).sum()))(0.1)
        assert slope == pytest.approx(-sample_gradients[2].sum(), rel=1e-12)


def test_what_it_says_of_itself(network):
    shown = repr(StochasticGradientDescent(network, 0.25, batch_size=2, probabilities=SKEWED))
    assert "step_size=0.25" in shown and "batch_size=2" in shown
    assert "given probabilities" in shown and "without replacement" in shown
    assert "shuffled epochs" in repr(StochasticGradientDescent(network, 0.25, shuffle=True))
    assert "with replacement" in repr(StochasticGradientDescent(network, 0.25, 8, replace=True))


# Mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", [0, -0.1, np.nan, np.inf, "0.1", [0.1, 0.2], None])
def test_bad_step_sizes(network, step_size):
    with pytest.raises((ValueError, TypeError), match="step_size must be"):
        StochasticGradientDescent(network, step_size)


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ({"batch_size": 7}, "batch_size 7 is larger than the number of samples, 6"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"probabilities": [0.5, 0.5]}, "one per sample"),
        ({"probabilities": np.full(6, 0.2)}, "must be non-negative and sum to 1"),
        ({"probabilities": SKEWED, "shuffle": True}, "visits every sample once"),
        ({"batch_size": 2, "replace": True, "shuffle": True}, "visits every sample once"),
    ],
)
def test_bad_laws(network, law, message):
    with pytest.raises(ValueError, match=message):
        StochasticGradientDescent(network, 0.1, **law)


def test_objectives_without_samples():
    with pytest.raises(TypeError, match="Function has no samples"):
        StochasticGradientDescent(Function(lambda w: w @ w, 2), 0.1)
    with pytest.raises(ValueError, match="made without data="):
        StochasticGradientDescent(Objective(lambda w: w @ w, np.zeros(2)), 0.1)
    with pytest.raises(ValueError, match="made from a target matrix"):
        StochasticGradientDescent(LinearNetwork.whitened((1, 1, 1), np.ones((1, 1))), 0.1)
    with pytest.raises(TypeError, match="must be a gdmap objective"):
        StochasticGradientDescent(lambda w: w @ w, 0.1)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([], "a list of sample numbers"),
        (3, "a list of sample numbers"),
        ([0.0, 1.0], "a list of sample numbers"),
        ([True, False], "a list of sample numbers"),
        ([[0, 1]], "a list of sample numbers"),
        ([6], "sample numbers from 0 to 5"),
        ([-1], "sample numbers from 0 to 5"),
    ],
)
def test_bad_batches(network, batch, message):
    sgd = StochasticGradientDescent(network, 0.1)
    for method in (sgd.step, sgd.jacobian, sgd.slogdet):
        with pytest.raises(ValueError, match=message):
            method(THETA, batch)


def test_bad_states_and_counters(network):
    sgd = StochasticGradientDescent(network, 0.1)
    with pytest.raises(ValueError, match=r"state has shape \(3,\), expected \(9,\)"):
        sgd.step(np.ones(3), [0])
    with pytest.raises(TypeError, match="real floating-point"):
        sgd.step(np.ones(9, int), [0])
    for counters in ((-1, 0, 0), (0, 1.5, 0), (0, 0, 2**31), (0, 0, "0")):
        with pytest.raises(ValueError, match=r"must be an integer from 0 to 2\^31 - 2"):
            sgd.batch(*counters)

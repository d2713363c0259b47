import dataclasses
import math

import numpy as np
import pytest

from gdmap import (
    Function,
    StochasticGradientDescent,
    almost_sure_threshold,
    gd_exponent,
    mean_square_threshold,
    random_product_exponents,
    sgd_exponent,
    sgd_lyapunov_spectrum,
)
from gdmap.exponents.interpolation import interpolating_minimum
from gdmap.exponents.sgd_exponent import (
    checked_sampling,
    confidence_at,
    invariant_blocks,
    looked_at,
    sgd_exponent_at,
)
from gdmap.maps.stochastic_gradient_descent import batches_of
from tests.exponents.losses import (
    on_the_hyperbola,
    quadratic_forms,
    regression,
    tanh_network,
    two_points,
    with_gram,
)

ONES = np.ones(4)
COUPLED = [[3, 0.7], [0.7, 1.2]]


# Exact values ------------------------------------------------------------------------------------------


def test_orthogonal_gradients():
    found = sgd_exponent(with_gram([[3, 0], [0, 1.2]]), ONES, 0.5)
    assert found.status == "computed"
    assert found.value == pytest.approx(0.5 * math.log(0.5), abs=1e-14)
    assert found.lower <= 0.5 * math.log(0.5) <= found.upper
    assert found.verdict == "stable"
    assert any("split" in name for name in found.failed_hypotheses)


@pytest.mark.parametrize(
    ("s", "eta", "p", "verdict"),
    [
        (2.0, 0.15, 0.5, "stable"),
        (5.0, 0.15, 0.5, "unstable"),
        (8.0, 0.15, 0.5, "stable"),
        (2.0, 0.3, 0.58, "unstable"),
    ],
)
def test_the_two_sample_network(s, eta, p, verdict):
    found = sgd_exponent(two_points(), on_the_hyperbola(s), eta, probabilities=[p, 1 - p])
    exact = p * math.log(abs(1 - 0.81 * eta * s)) + (1 - p) * math.log(abs(1 - 6.25 * eta * s))
    assert found.status == "computed"
    assert found.value == pytest.approx(exact, abs=1e-9)
    assert found.lower <= exact <= found.upper
    assert found.verdict == verdict
    assert any("independent" in name for name in found.failed_hypotheses)


def test_golden_values_of_the_two_sample_network():
    loss = two_points()
    at_two = sgd_exponent(loss, on_the_hyperbola(2.0), 0.15)
    assert at_two.value == pytest.approx(-0.205962, abs=1e-6)
    assert sgd_exponent(loss, on_the_hyperbola(2.0), 0.3, 1, [0.58, 0.42]).value == pytest.approx(
        0.038864, abs=1e-6
    )
    pole = sgd_exponent(loss, on_the_hyperbola(8 / 0.972), 0.15)  # 0.81 * 0.15 * s = 1
    assert pole.lower == -math.inf
    assert pole.value < -10
    assert pole.verdict == "stable"


@pytest.mark.parametrize(("eta", "p"), [(0.15, 0.5), (0.3, 0.58)])
def test_golden_bands_of_the_two_sample_network(eta, p):
    bands = {0.15: (2.635898, 6.661222, 9.297119), 0.3: (2.537249, 4.998564)}[eta]
    loss = two_points()
    for end in bands:
        around = [
            sgd_exponent(loss, on_the_hyperbola(s), eta, 1, [p, 1 - p]).value for s in (end - 2e-6, end + 2e-6)
        ]
        assert around[0] * around[1] < 0


def test_one_dimensional_samples():
    forms = [[[8.0]], [[2.0]]]
    found = sgd_exponent(quadratic_forms(forms), np.zeros(1), 0.6)
    assert found.value == pytest.approx(-0.137218, abs=1e-6)
    assert found.verdict == "stable"
    assert gd_exponent(quadratic_forms(forms), np.zeros(1), 0.6).verdict == "unstable"
    other = quadratic_forms([[[1.62]], [[12.5]]], probabilities=[0.58, 0.42])
    assert sgd_exponent(other, np.zeros(1), 0.3).verdict == "unstable"
    assert gd_exponent(other, np.zeros(1), 0.3).verdict == "stable"


@pytest.mark.parametrize("network", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_full_batch_is_gradient_descent(network):
    loss, theta = tanh_network(0, 3, 8, 1, 4) if network else (with_gram(COUPLED), ONES)
    mu, lam = (
        gd_exponent(loss, theta, 0.4),
        sgd_exponent(loss, theta, 0.4, batch_size=loss.sample_losses.n_samples),
    )
    assert lam.status == "computed"
    assert lam.value == pytest.approx(mu.value, abs=1e-10)


def test_commuting_matrices_in_rotated_coordinates():
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    curvatures = rng.uniform(0.5, 4, size=(5, 4))
    loss = quadratic_forms([rotation @ np.diag(row) @ rotation.T for row in curvatures])
    found = sgd_exponent(loss, np.zeros(4), 0.5, batch_size=2, replace=True)
    pairs = np.array([(a + b) / 2 for a in curvatures for b in curvatures])
    assert found.status == "computed"
    assert found.value == pytest.approx(np.log(np.abs(1 - 0.5 * pairs)).mean(axis=0).max(), abs=1e-12)


def test_independent_blocks_are_not_confused():
    # Two copies of one block with independent batches: the norm of the product is a maximum of two random walks.
    rows = np.kron(np.eye(2), np.linalg.cholesky(np.array(COUPLED)))
    found = sgd_exponent(regression(rows), ONES, 0.9)
    blocks = invariant_blocks(interpolating_minimum(regression(rows), ONES))
    assert [block.rank for block in blocks] == [2, 2]
    alone = sgd_exponent(regression(rows[:2, :2]), np.ones(2), 0.9, tolerance=2e-3)
    # In a batch of one of four samples each block moves half the time.
    assert abs(found.value - alone.value / 2) < 4 * (found.standard_error + alone.standard_error / 2)


def test_epochs_of_scalars_have_the_exponent_of_single_batches():
    forms = quadratic_forms([[[8.0]], [[2.0]], [[0.5]]])
    shuffled = sgd_exponent(forms, np.zeros(1), 0.6, shuffle=True)
    assert shuffled.value == pytest.approx(sgd_exponent(forms, np.zeros(1), 0.6).value, abs=1e-13)
    epochs = sgd_exponent(forms, np.zeros(1), 0.6, batch_size=2, shuffle=True)
    curvatures = np.array([8.0, 2.0, 0.5])
    pairs = np.log(np.abs(1 - 0.6 * (curvatures.sum() - curvatures) / 2)).mean()
    assert epochs.value == pytest.approx((pairs + np.log(np.abs(1 - 0.6 * curvatures)).mean()) / 2, abs=1e-13)


# Sampled values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("eta", "expected", "verdict"), [(0.5, -0.3031, "stable"), (0.9, 0.2164, "unstable")])
def test_coupled_gradients(eta, expected, verdict):
    found = sgd_exponent(with_gram(COUPLED), ONES, eta, tolerance=4e-3)
    assert found.status == "estimated"
    assert found.confidence == 0.95
    assert abs(found.value - expected) <= 4 * math.hypot(found.standard_error, 5e-4)
    assert found.lower <= found.value <= found.upper
    assert found.verdict == verdict


@pytest.mark.slow  # that of the engine beneath is tested by default
def test_the_standard_error_is_right():
    loss = with_gram(COUPLED)
    point = interpolating_minimum(loss, ONES)
    batches = batches_of(loss)
    reference = sgd_exponent_at(point, batches, 0.9, checked_sampling(0.95, 4e-4, 2**17, 256, 10**6))
    z, inside = [], 0
    for repetition in range(200):
        found = sgd_exponent_at(point, batches, 0.9, checked_sampling(0.9, 1.0, 1024, 32, repetition))
        z.append((found.value - reference.value) / found.standard_error)
        inside += found.lower <= reference.value <= found.upper
    assert 0.75 <= np.var(z) <= 1.35
    assert abs(np.mean(z)) <= 4 / math.sqrt(200) + reference.standard_error / found.standard_error
    assert inside >= 180 - 4 * math.sqrt(200 * 0.9 * 0.1)


def test_replicas_depend_on_their_number_and_the_seed_alone():
    loss = with_gram(COUPLED)
    first, again, other = (sgd_exponent(loss, ONES, 0.5, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.value != other.value


def test_looks_keep_the_confidence_together():
    assert sum(1 - confidence_at(0.95, look) for look in range(1, 10_000)) == pytest.approx(0.05, rel=1e-3)


def test_a_drift_widens_the_interval():
    rng = np.random.default_rng(0)
    settled = looked_at(rng.normal(size=(64, 4, 1)))
    assert settled.settled
    assert settled.bias == 0
    drifting = looked_at(rng.normal(size=(64, 4, 1)) * 1e-3 + np.arange(4)[:, None])
    assert not drifting.settled
    assert drifting.bias == pytest.approx(12, rel=1e-2)


def test_exponents_that_take_turns_widen_the_interval():
    rng = np.random.default_rng(0)
    walks = np.sort(rng.normal(size=(256, 1, 2)), axis=2)[:, :, ::-1].repeat(4, axis=1)
    found = looked_at(walks)
    lower, upper = found.interval(2 * found.standard_error)
    assert found.mean - 2 * found.standard_error > 0
    assert lower < 0 < upper
    assert looked_at(walks + np.array([9.0, 0.0])).excess == 0


@pytest.mark.slow
def test_the_interval_respects_the_bounds():
    loss = regression(np.random.default_rng(0).normal(size=(3, 5)))
    for eta in (0.05, 0.2, 0.5):
        found = sgd_exponent(loss, np.ones(5), eta, replicas=16)
        sizes = np.sum(loss.data[0] ** 2, axis=1)
        assert found.lower >= np.log(np.abs(1 - eta * sizes)).mean() / 3 - 1e-9
        below = eta < mean_square_threshold(loss, np.ones(5)).lower
        assert not below or found.upper < 1e-9


@pytest.fixture(scope="module")
def spectrum():
    loss, theta = regression(np.random.default_rng(2).normal(size=(4, 5))), np.ones(5)
    return loss, theta, sgd_lyapunov_spectrum(loss, theta, 0.3, batch_size=2, steps=2048)


def test_the_sum_rule_controls_the_spectrum(spectrum):
    found = spectrum[2]
    assert found.sizes["k"] == 4
    assert np.all(np.diff(found.exponent) <= 0)
    assert abs(float(found.log_determinant_z)) <= 4
    assert float(found["sum"]) == pytest.approx(float(found.exponent.sum()))


@pytest.mark.slow
def test_the_top_of_the_spectrum_is_the_exponent_however_many_are_followed(spectrum):
    loss, theta, found = spectrum
    top = sgd_exponent(loss, theta, 0.3, batch_size=2)
    errors = math.hypot(top.standard_error, float(found.standard_error[0]))
    assert abs(top.value - float(found.exponent[0])) <= 4 * errors
    leading = sgd_lyapunov_spectrum(loss, theta, 0.3, batch_size=2, steps=2048, k=2)
    assert np.allclose(leading.exponent, found.exponent[:2], atol=1e-9)
    assert "sum" not in leading


def test_epochs_differ_from_independent_batches():
    loss = with_gram(COUPLED)
    epochs = sgd_exponent(loss, ONES, 0.9, shuffle=True, tolerance=4e-3)
    # By hand: an epoch multiplies by one of two products.
    factors = [np.eye(2) - 0.9 * np.outer(row, row) for row in np.linalg.cholesky(np.array(COUPLED))]
    products = np.stack([factors[1] @ factors[0], factors[0] @ factors[1]])
    chosen = np.random.default_rng(0).integers(0, 2, size=(4000, 200))
    x, logs = np.ones((200, 2)), np.zeros(200)
    for row in chosen:
        x = np.einsum("rij,rj->ri", products[row], x)
        size = np.linalg.norm(x, axis=1, keepdims=True)
        logs, x = logs + np.log(size[:, 0]), x / size
    by_hand, error = logs.mean() / 8000, logs.std() / 8000 / math.sqrt(200)
    assert abs(epochs.value - by_hand) <= 4 * math.hypot(epochs.standard_error, error) + 1e-4


@pytest.mark.slow  # test_random_products has the same products by default
def test_general_products_agree():
    import jax
    import jax.numpy as jnp

    rows = np.linalg.cholesky(np.array(COUPLED))

    def factor(key):
        row = jnp.asarray(rows)[jax.random.randint(key, (), 0, 2)]
        return jnp.eye(2) - 0.9 * jnp.outer(row, row)

    general = random_product_exponents(factor, 2, replicas=128, steps=2000)
    found = sgd_exponent(with_gram(COUPLED), ONES, 0.9)
    errors = math.hypot(found.standard_error, float(general.standard_error[0]))
    assert abs(found.value - float(general.exponent[0])) <= 4 * errors


# Thresholds ------------------------------------------------------------------------------------------


def test_the_almost_sure_threshold_is_where_lambda_vanishes():
    loss = with_gram(COUPLED)
    found = almost_sure_threshold(loss, ONES, tolerance=5e-3)
    assert found.status == "estimated"
    assert found.lower <= found.value <= found.upper
    assert (found.upper - found.lower) / found.value < 0.02
    assert found.lower > mean_square_threshold(loss, ONES).value
    assert sgd_exponent(loss, ONES, 0.97 * found.lower, seed=9).verdict == "stable"
    assert sgd_exponent(loss, ONES, 1.03 * found.upper, seed=9).verdict == "unstable"


def test_thresholds_of_lines_and_of_one_batch_are_computed():
    found = almost_sure_threshold(two_points(), on_the_hyperbola(2.0))
    assert found.status == "computed"
    exact = found.value
    assert math.log(abs(1 - 1.62 * exact)) + math.log(abs(1 - 12.5 * exact)) == pytest.approx(0, abs=1e-8)
    loss = with_gram(COUPLED)
    one = almost_sure_threshold(loss, ONES, batch_size=2)
    assert one.status == "computed"
    assert one.value == pytest.approx(4 / np.linalg.eigvalsh(COUPLED)[-1], rel=1e-12)


def test_a_split_has_the_threshold_of_its_weakest_block():
    loss = with_gram([[3, 0], [0, 1.2]])
    # Alone, a sample of curvature h that is seen half the time is unstable from eta h = 2 on.
    assert almost_sure_threshold(loss, ONES).value == pytest.approx(2 / 3, rel=1e-9)


# Mistakes ------------------------------------------------------------------------------------------


def test_mistakes_are_named():
    loss = with_gram(COUPLED)
    for arguments, message in (
        ({"probabilities": [0.5, 0.4]}, "sum to 1"),
        ({"batch_size": 3}, "larger than the number of samples"),
        ({"batch_size": 0}, "positive integer"),
        ({"step_size": -1.0}, "positive"),
        ({"confidence": 1.0}, "between 0 and 1"),
        ({"replicas": 1}, "replicas must be"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"max_steps": 10}, "max_steps must be"),
        ({"seed": -1}, "seed must be"),
        ({"shuffle": True, "replace": True}, "every sample once"),
        ({"theta": 2 * ONES}, "not a"),
    ):
        with pytest.raises(ValueError, match=message):
            sgd_exponent(**{"objective": loss, "theta": ONES, "step_size": 0.5, **arguments})
    with pytest.raises((TypeError, ValueError), match="samples"):
        sgd_exponent(Function(lambda x: x @ x, 2), np.zeros(2), 0.5)
    with pytest.raises(ValueError, match="k must be"):
        sgd_lyapunov_spectrum(loss, ONES, 0.5, k=3)


def test_a_zero_normal_space_is_named():
    flat = quadratic_forms(np.zeros((2, 1, 1)))
    with pytest.raises(ValueError, match=r"normal space|Hessian vanishes"):
        sgd_exponent(flat, np.zeros(1), 0.5)


def test_stochastic_map_and_exponent_share_their_batches():
    map_ = StochasticGradientDescent(with_gram(COUPLED), 0.5)
    assert dataclasses.is_dataclass(sgd_exponent(map_.objective, ONES, 0.5, batch_size=2))

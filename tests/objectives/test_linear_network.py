import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmap import LinearNetwork
from tests.conftest import random_network


def loss_by_definition(network, theta):
    residual = network.samples.inputs @ network.product(theta).T - network.samples.targets
    return np.sum(residual**2) / (2 * len(residual))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=2, max_size=5))
def test_loss_from_sufficient_statistics_is_the_loss_of_the_samples(seed, widths):
    network = random_network(seed, widths)
    theta = np.random.default_rng(seed).normal(size=network.dim)
    expected = loss_by_definition(network, theta)
    assert network.value(theta) == pytest.approx(expected, rel=1e-11)
    assert network.sample_values(theta).mean() == pytest.approx(expected, rel=1e-11)
    assert network.optimal_value <= expected * (1 + 1e-12)


def test_statistics():
    network = random_network(1, (3, 2, 2))
    X, Y = network.samples.inputs, network.samples.targets
    np.testing.assert_allclose(network.input_covariance, X.T @ X / len(X), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(network.cross_covariance, Y.T @ X / len(X), rtol=1e-11, atol=1e-13)
    assert network.target_energy == pytest.approx(np.sum(Y**2) / len(X))
    assert network.n_samples == 40


def test_least_squares_optimum_matches_scipy():
    network = random_network(2, (4, 5, 3))
    expected = np.linalg.lstsq(network.samples.inputs, network.samples.targets, rcond=None)[0].T
    np.testing.assert_allclose(network.optimum, expected, rtol=1e-10)
    residual = network.samples.inputs @ expected.T - network.samples.targets
    assert network.optimal_value == pytest.approx(np.sum(residual**2) / (2 * len(residual)), rel=1e-12)


def test_reduced_rank_optimum_beats_every_other_rank_one_map():
    network = random_network(3, (4, 1, 3), spread=2)
    best = loss_by_definition_of(network, network.optimum)
    assert network.optimal_value == pytest.approx(best, rel=1e-11)
    rng = np.random.default_rng(0)
    for _ in range(200):
        other = network.optimum + 0.3 * np.outer(rng.normal(size=3), rng.normal(size=4))
        U, s, Vt = np.linalg.svd(other)
        assert loss_by_definition_of(network, s[0] * np.outer(U[:, 0], Vt[0])) >= best * (1 - 1e-12)


def loss_by_definition_of(network, matrix):
    residual = network.samples.inputs @ matrix.T - network.samples.targets
    return np.sum(residual**2) / (2 * len(residual))


def test_inputs_that_do_not_span_use_the_pseudo_inverse():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 4))
    targets = rng.normal(size=(30, 3))
    network = LinearNetwork((4, 4, 3), inputs, targets)
    np.testing.assert_allclose(network.optimum, (np.linalg.pinv(inputs) @ targets).T, atol=1e-12)


def test_a_step_costs_the_same_whatever_the_number_of_samples():
    import jax

    few, many = random_network(0, (3, 2, 2), samples=10), random_network(0, (3, 2, 2), samples=200_000)
    sizes = [sum(np.size(leaf) for leaf in jax.tree.leaves(network)) for network in (few, many)]
    assert sizes[0] == sizes[1]
    np.testing.assert_allclose(
        many.input_covariance, many.samples.inputs.T @ many.samples.inputs / 200_000, rtol=1e-10
    )


def test_nothing_cancels_near_the_optimum():
    network = random_network(5, (3, 3, 2))
    from gdmap import critical_step_size

    theta = critical_step_size(network).minimum
    bump = 1e-9 * np.ones(network.dim)
    hessian = network.hessian(theta)
    assert float(network.excess(theta + bump)) == pytest.approx(bump @ hessian @ bump / 2, rel=1e-5)


def test_parameters_are_the_matrices_in_order_and_row_major():
    network = LinearNetwork.whitened((2, 3, 1), [[1.0, 2.0]])
    W1, W2 = np.arange(6.0).reshape(3, 2), np.arange(3.0).reshape(1, 3)
    theta = network.ravel([W1, W2])
    np.testing.assert_array_equal(theta, [0, 1, 2, 3, 4, 5, 0, 1, 2])
    np.testing.assert_array_equal(network.product(theta), W2 @ W1)
    for found, expected in zip(network.unravel(theta), (W1, W2), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_weighted_repeats_samples():
    network = random_network(7, (2, 2, 1), samples=4)
    p = np.array([0.5, 0.25, 0.25, 0.0])
    theta = np.ones(network.dim)
    assert network.weighted(p).value(theta) == pytest.approx(p @ network.sample_values(theta))


def test_critical_gap_is_the_smallest_cost_of_losing_a_component():
    network = LinearNetwork.whitened((3, 2, 3), np.diag([3.0, 2.0, 1.0]))
    assert network.critical_gap == pytest.approx((4 - 1) / 2)
    filling = LinearNetwork.whitened((3, 3, 3), np.diag([3.0, 2.0, 1.0]))
    assert filling.critical_gap == pytest.approx(1 / 2)
    assert LinearNetwork.whitened((3, 3), np.eye(3)).critical_gap == np.inf


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LinearNetwork((2,), np.ones((3, 2)), np.ones((3, 2))), ValueError, "widths"),
        (lambda: LinearNetwork((2, 0, 1), np.ones((3, 2)), np.ones((3, 1))), ValueError, "widths"),
        (lambda: LinearNetwork((2, 1.5, 1), np.ones((3, 2)), np.ones((3, 1))), TypeError, "widths"),
        (lambda: LinearNetwork((3, 1), np.ones((3, 2)), np.ones((3, 1))), ValueError, "inputs has 2 columns"),
        (lambda: LinearNetwork((2, 2), np.ones((3, 2)), np.ones((3, 1))), ValueError, "targets has 1 columns"),
        (lambda: LinearNetwork((2, 1), np.ones((3, 2)), np.ones(3)), ValueError, r"reshape\(-1, 1\)"),
        (lambda: LinearNetwork((2, 1), np.ones((3, 2)), np.ones((4, 1))), ValueError, "3 samples .* 4"),
        (lambda: LinearNetwork((2, 1), np.ones((0, 2)), np.ones((0, 1))), ValueError, "no samples"),
        (lambda: LinearNetwork((1, 1), [[np.nan]], [[1.0]]), ValueError, "inputs .* not finite, first in row 0"),
        (lambda: LinearNetwork((1, 1), [[1.0]], [[np.inf]]), ValueError, "targets .* not finite"),
        (lambda: LinearNetwork((1, 1), [["a"]], [[1.0]]), TypeError, "inputs must hold numbers"),
        (lambda: LinearNetwork.whitened((2, 2), np.ones((2, 3))), ValueError, "target_matrix has shape"),
        (lambda: LinearNetwork.whitened((1, 1), [[np.nan]]), ValueError, "not finite"),
        (lambda: LinearNetwork.whitened((1, 1), [[1.0]]).sample_values(np.ones(1)), ValueError, "no samples"),
        (lambda: random_network(0, (2, 1)).weighted([0.5, 0.5]), ValueError, "one per sample"),
        (lambda: random_network(0, (2, 1)).weighted(np.full(40, 0.5)), ValueError, "sum to 1"),
    ],
)
def test_bad_input_names_the_argument(make, error, message):
    with pytest.raises(error, match=message):
        make()

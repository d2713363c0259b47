import functools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import gdmap
from gdmap import LinearNetwork
from gdmap.engines.precision import float64
from tests.conftest import random_network


def loss_by_definition(network, theta):
    residual = network.samples.inputs @ network.product(theta).T - network.samples.targets
    return np.sum(residual**2) / (2 * len(residual))


@settings(max_examples=10, deadline=None)
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


# Losses other than the square loss.


def perturbed_square(r):
    return r**2 / 2 + 0.1 * r**4


NUMPY_LOSSES = {
    "huber": lambda r: np.where(np.abs(r) <= 1, r**2 / 2, np.abs(r) - 0.5),
    "log_cosh": lambda r: np.log(np.cosh(r)),
    perturbed_square: lambda r: r**2 / 2 + 0.1 * r**4,
}
OTHER_LOSSES = list(NUMPY_LOSSES)


def network_with(loss, seed=0, widths=(3, 4, 2), samples=15, probabilities=None):
    rng = np.random.default_rng(seed)
    inputs, targets = rng.normal(size=(samples, widths[0])), 2 * rng.normal(size=(samples, widths[-1]))
    return LinearNetwork(widths, inputs, targets, loss=loss, probabilities=probabilities)


@pytest.mark.parametrize("loss", OTHER_LOSSES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), weighted=st.booleans())
def test_other_losses_are_the_mean_of_the_loss_of_the_residuals(loss, seed, weighted):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(15)) if weighted else np.full(15, 1 / 15)
    network = network_with(loss, seed, probabilities=p if weighted else None)
    theta = rng.normal(size=network.dim)
    residual = network.samples.inputs @ network.product(theta).T - network.samples.targets
    each = NUMPY_LOSSES[loss](residual).sum(axis=1)
    assert network.value(theta) == pytest.approx(p @ each, rel=1e-12)
    np.testing.assert_allclose(network.sample_values(theta), each, rtol=1e-12)


@pytest.mark.parametrize("loss", OTHER_LOSSES)
def test_gradients_of_other_losses_by_finite_differences(loss):
    network = network_with(loss)
    theta = np.random.default_rng(1).normal(size=network.dim)
    steps = 1e-5 * np.eye(network.dim)
    gradient = [(network.value(theta + step) - network.value(theta - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(network.gradient(theta), gradient, atol=1e-8)
    hessian = [(network.gradient(theta + step) - network.gradient(theta - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(network.hessian(theta), hessian, atol=1e-7)


def test_log_cosh_and_its_derivatives_against_fifty_digits():
    network = LinearNetwork((1, 1), [[1.0]], [[0.0]], loss="log_cosh")
    with mpmath.workdps(50):
        for r in (1e-160, 1e-8, 1e-3, 0.5, 0.999, 1.0, 1.001, 3.0, 20.0, 300.0, -2.0, -1e-9):
            exact = mpmath.log(mpmath.cosh(mpmath.mpf(r)))
            if r != 1e-160:  # its square is below the range of float64
                assert abs(network.value([r]) / exact - 1) < 1e-15
            assert abs(network.gradient([r])[0] / mpmath.tanh(r) - 1) < 1e-15
            curvature = mpmath.sech(r) ** 2
            assert abs(network.hessian([r])[0, 0] - curvature) < 1e-15


@pytest.mark.parametrize("loss", ["huber", "log_cosh"])
def test_named_losses_vanish_at_zero_with_curvature_one_and_grow_linearly(loss):
    network = LinearNetwork((1, 1), [[1.0]], [[0.0]], loss=loss)
    assert network.value([0.0]) == 0 and network.gradient([0.0])[0] == 0 and network.hessian([0.0])[0, 0] == 1
    for r in (1e150, -1e300):
        assert network.value([r]) == pytest.approx(abs(r), rel=1e-12)
        assert network.gradient([r])[0] == np.sign(r)
        assert network.hessian([r])[0, 0] == 0
    assert network.hessian([1.0])[0, 0] == pytest.approx(1 if loss == "huber" else 1 / np.cosh(1) ** 2)


def test_a_square_written_as_a_function_agrees_with_the_square_loss():
    square = network_with("squared")
    theta = np.random.default_rng(4).normal(size=square.dim)
    for loss in (lambda r: r @ r / 2, lambda r: r**2 / 2, lambda r: jnp.sum(r * r) / 2):
        network = network_with(loss)
        assert not network.is_squared and not network.knows_optimum
        assert network.value(theta) == pytest.approx(square.value(theta), rel=1e-13)
        np.testing.assert_allclose(network.hessian(theta), square.hessian(theta), rtol=1e-10, atol=1e-12)


def test_a_loss_of_the_whole_residual_vector():
    network = network_with(lambda r: jnp.sqrt(1 + r @ r))
    theta = np.random.default_rng(4).normal(size=network.dim)
    residual = network.samples.inputs @ network.product(theta).T - network.samples.targets
    assert network.value(theta) == pytest.approx(np.mean(np.sqrt(1 + np.sum(residual**2, axis=1))), rel=1e-13)


def test_residuals_of_the_square_loss():
    network = random_network(3, (4, 3, 2))
    theta = np.random.default_rng(0).normal(size=network.dim)
    residuals = network.residuals(theta)
    assert residuals.shape == (8,) and network.has_residuals
    assert network.residual_loss + residuals @ residuals / 2 == pytest.approx(network.value(theta), rel=1e-14)
    whitened = LinearNetwork.whitened((2, 3, 2), np.diag([2.0, 1.0]))
    theta = np.random.default_rng(0).normal(size=whitened.dim)
    np.testing.assert_allclose(whitened.residuals(theta), (whitened.product(theta) - np.diag([2.0, 1.0])).ravel())
    with float64():
        jacobian = np.asarray(jax.jacfwd(whitened.residuals)(jnp.asarray(theta)))
    np.testing.assert_allclose(jacobian.T @ whitened.residuals(theta), whitened.gradient(theta), rtol=1e-12)


def test_what_belongs_to_the_square_loss_does_not_lie():
    network = network_with("huber")
    with pytest.raises(ValueError, match="belongs to the square loss"):
        _ = network.optimum
    assert not network.is_squared and not network.has_residuals and not network.is_whitened
    assert network.optimal_value is None and network.critical_gap is None and not network.knows_optimum
    theta = np.ones(network.dim)
    asked = {
        "excess": lambda: network.excess(theta),
        "residuals": lambda: network.residuals(theta),
        **{
            name: functools.partial(getattr, network, name)
            for name in (
                "least_squares",
                "covariance_factor",
                "whitened_target",
                "residual_loss",
                "bottleneck_loss",
                "target_rank",
                "reaches_least_squares",
            )
        },
    }
    for name, ask in asked.items():
        with pytest.raises(ValueError, match=f"{name} belongs to the square loss; .* has the loss 'huber'"):
            ask()


def test_statistics_of_the_data_do_not_depend_on_the_loss():
    p = np.random.default_rng(0).dirichlet(np.ones(15))
    for weights in (None, p):
        square, other = (network_with(loss, probabilities=weights) for loss in ("squared", "huber"))
        np.testing.assert_allclose(other.input_covariance, square.input_covariance, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(other.cross_covariance, square.cross_covariance, rtol=1e-10, atol=1e-12)
        assert other.target_energy == pytest.approx(square.target_energy, rel=1e-13)
        assert other.n_samples == 15


@pytest.mark.parametrize("loss", ["squared", *OTHER_LOSSES])
def test_weighting_keeps_the_loss(loss):
    network = network_with(loss)
    p = np.random.default_rng(0).dirichlet(np.ones(15))
    theta = np.random.default_rng(4).normal(size=network.dim)
    weighted = network.weighted(p)
    assert weighted.loss == network.loss
    assert weighted.value(theta) == pytest.approx(p @ network.sample_values(theta), rel=1e-12)


@pytest.mark.parametrize(
    "loss", ["squared", "huber", *(pytest.param(loss, marks=pytest.mark.slow) for loss in OTHER_LOSSES[1:])]
)
def test_precision_and_transformations(loss):
    network = network_with(loss)
    theta = np.random.default_rng(4).normal(size=network.dim)
    single = theta.astype(np.float32)
    for answer in (network.value(single), network.gradient(single), network.sample_values(single)):
        assert answer.dtype == np.float32
    np.testing.assert_allclose(network.gradient(single), network.gradient(theta), rtol=1e-3, atol=1e-4)
    with float64():
        many = jnp.stack([jnp.asarray(theta), jnp.asarray(2 * theta)])
        values = jax.jit(jax.vmap(network.value))(many)
        as_argument = eqx.filter_jit(lambda network, theta: network.value(theta))(network, jnp.asarray(theta))
    expected = [network.value(theta), network.value(2 * theta)]
    np.testing.assert_allclose(values, expected, rtol=1e-13)
    np.testing.assert_allclose(as_argument, expected[0], rtol=1e-13)


def test_other_losses_carry_their_samples_in_the_trace():
    network = network_with("huber")
    traced = network.for_tracing()
    theta = np.ones(network.dim)
    assert traced.samples is None and traced.n_samples == 15
    np.testing.assert_array_equal(traced.sample_values(theta), network.sample_values(theta))
    assert traced.weighted(np.full(15, 1 / 15)).value(theta) == pytest.approx(network.value(theta))


def test_description_names_the_loss_and_its_fingerprint_covers_it():
    assert network_with("squared").describe()["loss"] == "squared"
    huber = network_with("huber").describe()
    assert huber["loss"] == "huber" and huber["normalisation"] == "1/m sum_i sum_j huber(r_ij), r = W x - y"
    weights = np.full(15, 1 / 15)
    assert network_with("huber", probabilities=weights).describe()["normalisation"].startswith("sum_i p_i sum_j")

    def make(factor):
        def my_loss(r):
            return r**2 / 2 + factor * r**4

        return network_with(my_loss).describe()

    first, second = make(0.1), make(0.2)
    assert first["loss"] == second["loss"] == "my_loss"
    assert first["normalisation"] == "1/m sum_i loss(W x_i - y_i)"
    assert first["fingerprint"] != second["fingerprint"]
    assert first == make(0.1)
    assert json.loads(json.dumps(first)) == first
    prints = {network_with(loss).describe()["fingerprint"] for loss in ("squared", *OTHER_LOSSES)}
    assert len(prints) == 4
    assert network_with("huber", seed=1).describe()["fingerprint"] != huber["fingerprint"]


def test_a_function_that_borrows_a_name_is_not_that_loss():
    def huber(r):
        return r**2

    network = network_with(huber)
    assert network.loss is huber
    assert network.describe()["normalisation"] == "1/m sum_i loss(W x_i - y_i)"
    theta = np.ones(network.dim)
    assert network.weighted(np.full(15, 1 / 15)).value(theta) == pytest.approx(network.value(theta))


@pytest.mark.parametrize("loss", ["huber", pytest.param(perturbed_square, marks=pytest.mark.slow)])
def test_sweeps_of_other_losses_run_and_resume(loss, tmp_path):
    inputs, targets = [[1.0], [2.0]], [[1.0], [2.5]]
    network = LinearNetwork((1, 1, 1), inputs, targets, loss=loss)
    sweep = functools.partial(
        gdmap.sweep,
        step_sizes=[0.05, 3.0],
        starts=12,
        max_steps=2000,
        scale=0.7,
        store=tmp_path / "sweep.zarr",
        chunk_size=12,
    )

    def interrupt(finished, total):
        if finished > 12:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        sweep(network, progress=interrupt)
    resumed = sweep(LinearNetwork((1, 1, 1), inputs, targets, loss=loss))
    names = gdmap.fate_names(resumed)
    assert (names[0] == "minimum").sum() >= 10 and not np.any(names[1] == "minimum")
    reached = resumed["loss"].values[0][names[0] == "minimum"]
    best = minimize_scalar(lambda w: float(np.mean(NUMPY_LOSSES[loss](np.array([w - 1, 2 * w - 2.5])))))
    np.testing.assert_allclose(reached, best.fun, rtol=1e-10)
    with pytest.raises(gdmap.StoreError):
        sweep(LinearNetwork((1, 1, 1), inputs, targets, loss="log_cosh"))


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        ("hubber", ValueError, "loss must be 'squared', 'huber', 'log_cosh' or a JAX function .* got 'hubber'"),
        (None, TypeError, "or a JAX function of the residual, got NoneType"),
        (2.0, TypeError, "or a JAX function of the residual, got float"),
        (lambda r: jnp.outer(r, r), TypeError, r"shape \(2,\), .* returns float64\[2, 2\]"),
        (lambda r: (r, r), TypeError, "returns float64"),
        (lambda r: None, TypeError, "returns nothing"),
        (lambda r: jnp.sum(r > 0), TypeError, "must return one real scalar"),
        (lambda r: jnp.sum(r * 1j), TypeError, r"returns complex128\[\]"),
        (lambda r: np.log(np.cosh(np.asarray(r))), TypeError, "loss must be traceable by JAX"),
        (lambda r: 1.0 if r[0] > 0 else 0.0, TypeError, "loss must be traceable by JAX"),
    ],
)
def test_bad_losses(loss, error, message):
    with pytest.raises(error, match=message):
        network_with(loss)

"""Interpolating minima: what is accepted, what is refused and why, and the sample Hessians there."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmap import Function, LinearNetwork, Objective
from gdmap.exponents.interpolation import interpolating_minima, interpolating_minimum, sample_rows
from tests.exponents.losses import (
    on_the_hyperbola,
    projected,
    quadratic_forms,
    regression,
    regression_loss,
    tanh_network,
    two_points,
)


def test_two_points_have_parallel_gradients():
    point = interpolating_minimum(two_points(), on_the_hyperbola(3.0))
    assert point.rank == 1 and not point.independent
    np.testing.assert_allclose(point.sample_matrices()[:, 0, 0], [0.81 * 3, 6.25 * 3], rtol=1e-13)
    np.testing.assert_allclose(point.mean_matrix([0.58, 0.42])[0, 0], 3.0948 * 3, rtol=1e-13)
    assert point.error < 1e-12
    direction = on_the_hyperbola(3.0)[::-1] / np.sqrt(3)
    np.testing.assert_allclose(np.abs(point.basis[:, 0]), direction, rtol=1e-13)


def test_many_points_at_once_agree_with_one_at_a_time():
    thetas = [on_the_hyperbola(s) for s in np.linspace(2.1, 9, 7)]
    together = interpolating_minima(two_points(), thetas, [0.58, 0.42])
    for theta, point in zip(thetas, together, strict=True):
        alone = interpolating_minimum(two_points(), theta, [0.58, 0.42])
        np.testing.assert_array_equal(alone.theta, point.theta)
        np.testing.assert_allclose(alone.sample_matrices(), point.sample_matrices(), rtol=1e-13)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(-4, 4))
def test_rows_are_the_inputs_of_regression_in_any_units(seed, exponent):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(3, 5)) * np.array([1.0, 1.0, 10**exponent])[:, None]
    point = interpolating_minimum(regression(inputs), np.ones(5))
    assert point.rank == 3 and point.shown and point.independent
    size = np.linalg.norm(inputs, axis=1)
    gram = np.abs(point.factors @ point.factors.T)  # a row is known up to its sign
    expected = np.abs(inputs @ inputs.T) / np.outer(size, size)
    np.testing.assert_allclose(gram / np.outer(size, size), expected, atol=1e-9)


@pytest.mark.slow
def test_a_dense_network_against_automatic_differentiation():
    objective, teacher = tanh_network(0, 3, 4, 2, 3)
    point = interpolating_minimum(objective, teacher)
    assert point.rank == len(point.factors) == 6 and point.independent and point.minimum is not None
    assert np.abs(point.sample_matrices() - projected(objective, point.theta, point)).max() <= point.error
    np.testing.assert_allclose(point.basis.T @ point.basis, np.eye(6), atol=1e-13)


def test_range_finding_agrees_with_dense_hessians():
    objective, teacher = tanh_network(0, 6, 8, 3, 10)
    assert objective.dim > 64
    point = interpolating_minimum(objective, teacher)
    np.testing.assert_allclose(point.sample_matrices(), projected(objective, point.theta, point), atol=point.error)
    assert np.all(np.bincount(point.sample) == 3)


def test_range_finding_doubles_its_probes_for_full_indefinite_hessians():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(2, 70, 70))
    matrix = matrix + matrix.transpose(0, 2, 1)
    rows = sample_rows(quadratic_forms(matrix).sample_losses, np.zeros(70), np.arange(2))
    for k in range(2):
        own = rows.sample == k
        np.testing.assert_allclose(
            (rows.factors[own].T * rows.signs[own]) @ rows.factors[own], matrix[k], atol=1e-11
        )
    assert (rows.signs < 0).any()


def test_above_a_thousand_parameters_newton_steps_reach_the_minima():
    objective, teacher = tanh_network(1, 40, 24, 2, 8)
    assert objective.dim > 1000
    size = np.linalg.norm(teacher)
    aside = np.random.default_rng(0).normal(size=objective.dim)
    theta = teacher + 2e-4 * size * aside / np.linalg.norm(aside)
    point = interpolating_minimum(objective, theta)
    assert point.minimum is None and point.shown and point.rank == 16 and point.independent
    assert "implicit function theorem" in point.evidence
    assert 0 < np.linalg.norm(point.theta - theta) < 1e-3 * size
    assert objective.sample_values(point.theta).max() < 1e-25
    with pytest.raises(ValueError, match="not an interpolating minimum: the gradient norm there is"):
        interpolating_minimum(objective, teacher + 0.1 * size * aside / np.linalg.norm(aside))


def test_samples_of_probability_zero_are_left_out():
    objective = regression(np.eye(3)).weighted([0.5, 0.5, 0.0])
    point = interpolating_minimum(objective, np.ones(3))
    assert point.rank == 2 and set(point.sample) == {0, 1} and point.n_samples == 3
    assert not point.sample_matrix(2).any()


def test_badly_scaled_samples_are_not_refused():
    objective = regression(np.diag([1.0, 1e-9]), np.array([0.3, 0.7]))
    point = interpolating_minimum(objective, [0.3, 0.7])
    assert point.rank == 1  # the second direction counts as null


def test_linear_networks_have_samples():
    rng = np.random.default_rng(0)
    inputs, first, second = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), rng.normal(size=(2, 3))
    network = LinearNetwork((4, 3, 2), inputs, inputs @ (second @ first).T)
    point = interpolating_minimum(network, network.ravel([first, second]))
    assert point.rank == 6 and np.all(np.bincount(point.sample) == 2)


def test_what_does_not_interpolate_is_refused_with_its_reason():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(6, 2))
    noisy = Objective(regression_loss, np.zeros(2), data=(inputs, inputs @ np.ones(2) + rng.normal(size=6)))
    solution = np.linalg.lstsq(*noisy.data, rcond=None)[0]
    with pytest.raises(ValueError, match=r"does not interpolate.*sample \d has norm"):
        interpolating_minimum(noisy, solution)
    nearly = Objective(
        regression_loss,
        np.zeros(1),
        data=(np.ones((2, 1)), np.array([1 - 1e-6, 1 + 1e-6])),
    )
    with pytest.raises(ValueError, match="does not interpolate"):
        interpolating_minimum(nearly, [1.0])


def quartic(theta, x):
    return x * theta[0] ** 2 / 2 - theta[1] ** 4


@pytest.mark.parametrize(
    ("objective", "theta", "words"),
    [
        (Function(lambda w: w @ w, 2), [0.0, 0.0], "has no samples"),
        (Objective(lambda w: jnp.sum(w**2), np.zeros(2)), [0.0, 0.0], "has no samples"),
        (two_points(), [1.5, 1.5], "not a minimum that can be verified: the gradient norm"),
        (two_points(), [-1.0, -1.0], "normal space is zero"),
        (quadratic_forms([np.diag([1.0, -1.0])] * 2), [0.0, 0.0], "saddle"),
        (Objective(quartic, np.zeros(2), data=(np.ones(2),)), [0.0, 0.0], "degenerate"),
        (
            Objective(lambda w, x: jnp.abs(w[0]) * x + w[0] ** 2, np.zeros(1), data=(np.ones(2),)),
            [0.0],
            "kink|not a minimum",
        ),
    ],
)
def test_errors(objective, theta, words):
    with pytest.raises(ValueError, match=words):
        interpolating_minimum(objective, theta)


def test_errors_of_arguments():
    objective = two_points()
    with pytest.raises(ValueError, match="sum to 1"):
        interpolating_minimum(objective, on_the_hyperbola(3.0), [0.5, 0.6])
    with pytest.raises(ValueError, match=r"expected \(2,\)"):
        interpolating_minimum(objective, on_the_hyperbola(3.0), [1.0])
    with pytest.raises(ValueError, match="not finite"):
        interpolating_minimum(objective, [np.nan, 1.0])
    with pytest.raises(TypeError, match="objective"):
        interpolating_minimum(np.zeros(2), [1.0, 1.0])
    with pytest.raises(ValueError, match="point 1: "):
        interpolating_minima(objective, [on_the_hyperbola(3.0), [1.5, 1.5]])
    with pytest.raises(ValueError, match="one per sample"):
        interpolating_minimum(objective, on_the_hyperbola(3.0)).mean_matrix([1.0])


def test_samples_show_what_the_mean_hessian_cannot():
    # Curvatures a hundred million apart: the dense Hessian cannot tell the weakest from a null direction.
    inputs = np.random.default_rng(0).normal(size=(3, 5)) * np.array([1.0, 1.0, 1e4])[:, None]
    point = interpolating_minimum(regression(inputs), np.ones(5))
    assert point.rank == 3 and point.shown
    np.testing.assert_allclose(point.sizes, np.sum(inputs**2, axis=1), rtol=1e-12)


def test_a_sample_gradient_of_a_millionth_is_refused_beside_a_strong_one():
    inputs = np.diag([1e3, 1.0])
    objective = Objective(
        regression_loss,
        np.zeros(2),
        data=(np.vstack([inputs, inputs[1:]]), np.array([1e3, 1 + 1e-6, 1 - 1e-6])),
    )
    with pytest.raises(ValueError, match="does not interpolate"):
        interpolating_minimum(objective, np.ones(2))

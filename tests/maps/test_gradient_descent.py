import jax
import numpy as np
import pytest
from scipy.optimize import approx_fprime

from gdmap import Function, GradientDescent, LinearNetwork


def test_step_and_jacobian_of_the_product_of_two(two_factors):
    map_ = GradientDescent(two_factors, 0.3)
    x, y = 0.7, -1.1
    u = x * y - 1
    np.testing.assert_allclose(map_.step([x, y]), [x - 0.3 * u * y, y - 0.3 * u * x], rtol=1e-15)
    hessian = np.array([[y * y, 2 * x * y - 1], [2 * x * y - 1, x * x]])
    np.testing.assert_allclose(map_.jacobian([x, y]), np.eye(2) - 0.3 * hessian, rtol=1e-15)


def test_jacobian_is_the_derivative_of_the_step():
    network = LinearNetwork.whitened((2, 3, 2), np.diag([1.0, 0.5]))
    map_ = GradientDescent(network, 0.4)
    theta = np.random.default_rng(0).normal(size=network.dim)
    numerical = np.stack([approx_fprime(theta, lambda t, i=i: map_.step(t)[i], 1e-7) for i in range(network.dim)])
    np.testing.assert_allclose(map_.jacobian(theta), numerical, atol=2e-6)
    sign, logarithm = map_.slogdet(theta)
    expected = np.linalg.slogdet(map_.jacobian(theta))
    assert (sign, logarithm) == pytest.approx((expected.sign, expected.logabsdet))


@pytest.mark.parametrize(
    ("eta", "point", "determinant"), [(1.0, (0.0, 0.0), 0.0), (1.0, (1.0, 0.0), -1.0), (1.0, (1.0, 1.0), -1.0)]
)
def test_determinants_of_theory_6_1(two_factors, eta, point, determinant):
    map_ = GradientDescent(two_factors, eta)
    assert np.linalg.det(map_.jacobian(np.array(point))) == pytest.approx(determinant, abs=1e-15)


def test_maps_can_be_vmapped_over_step_sizes(two_factors):
    from gdmap.engines.precision import float64

    with float64():
        etas = jax.numpy.array([0.1, 0.2])
        steps = jax.vmap(lambda eta: GradientDescent(two_factors, eta).step(jax.numpy.array([2.0, 1.0])))(etas)
    for eta, step in zip((0.1, 0.2), steps, strict=True):
        np.testing.assert_allclose(step, GradientDescent(two_factors, eta).step([2.0, 1.0]), rtol=1e-15)


def test_precision_follows_the_state(two_factors):
    map_ = GradientDescent(two_factors, 0.1)
    assert map_.step(np.ones(2)).dtype == np.float64
    assert map_.step(np.ones(2, np.float32)).dtype == np.float32


@pytest.mark.parametrize("step_size", [0, -0.1, np.nan, np.inf, "0.1", [0.1, 0.2], None])
def test_bad_step_sizes(two_factors, step_size):
    with pytest.raises((ValueError, TypeError), match="step_size must be"):
        GradientDescent(two_factors, step_size)


def test_bad_states(two_factors):
    with pytest.raises(ValueError, match=r"state has shape \(3,\), expected \(2,\)"):
        GradientDescent(two_factors, 0.1).step(np.ones(3))
    with pytest.raises(ValueError, match="theta has shape"):
        GradientDescent(Function(lambda w: w @ w, 2), 0.1).initial_state(np.ones(1))

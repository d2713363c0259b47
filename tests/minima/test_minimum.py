"""Finding and verifying minima, and what is refused."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import gdmap
from gdmap import Function, LinearNetwork, Objective, find_minimum
from gdmap.minima import Evidence, move, verified_minimum
from gdmap.minima.kinks import find_kink
from tests.conftest import random_network
from tests.minima.losses import Product

PRODUCT = Function(Product(), 2)


def test_a_minimum_on_a_manifold():
    minimum = find_minimum(PRODUCT, [0.3, 0.7])
    x, y = minimum.theta
    assert x * y == pytest.approx(1, abs=1e-15)
    assert minimum.evidence == Evidence.MANIFOLD_OF_MINIMA
    assert minimum.nullity == 1
    assert minimum.null_gap > 1e10
    assert minimum.sharpness.value == pytest.approx(x * x + y * y, rel=1e-14)
    assert minimum.sharpness.lower <= x * x + y * y <= minimum.sharpness.upper
    tangent = np.array([x, -y]) / np.hypot(x, y)
    np.testing.assert_allclose(minimum.tangent_projector, np.outer(tangent, tangent), atol=1e-14)
    np.testing.assert_allclose(minimum.tangent_projector + minimum.normal_projector, np.eye(2), atol=1e-14)


def test_a_saddle_is_left_on_the_way():
    minimum = find_minimum(PRODUCT, [0.0, 0.0])
    assert abs(minimum.loss) < 1e-28


def test_rosenbrock_has_its_isolated_minimum():
    objective = Function(lambda w: 100 * (w[1] - w[0] ** 2) ** 2 + (1 - w[0]) ** 2, 2)
    minimum = find_minimum(objective, [-1.2, 1.0])
    np.testing.assert_allclose(minimum.theta, [1, 1], rtol=1e-14)
    assert (minimum.evidence, minimum.nullity) == (Evidence.POSITIVE_DEFINITE_HESSIAN, 0)
    assert minimum.tangent_basis.shape == (2, 0)
    with pytest.raises(ValueError, match="isolated"):
        move(minimum, [1.0, 0.0])


@pytest.mark.parametrize("method", ["levenberg-marquardt", pytest.param("gauss-newton", marks=pytest.mark.slow)])
def test_methods_reach_the_optimum_of_a_network(method):
    network = random_network(0, (3, 2, 2))
    minimum = find_minimum(network, gdmap.gaussian_starts(1, network.dim, scale=0.5)[0], method=method)
    assert minimum.evidence == Evidence.KNOWN_OPTIMUM
    assert float(network.excess(minimum.theta)) < 1e-24 * network.target_energy
    assert minimum.nullity == network.dim - 6


def test_data_objective_agrees_with_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 2)), rng.normal(size=12)
    loss = Objective(
        lambda p, x, y: (jnp.tanh(p["a"] @ x) * p["v"] - y) ** 2 / 2 + 0.05 * (p["a"] @ p["a"] + p["v"] ** 2),
        {"a": np.zeros(2), "v": 0.0},
        data=(x, y),
    )
    minimum = find_minimum(loss, [0.5, -0.3, 1.0])
    other = minimize(loss.value, [0.5, -0.3, 1.0], jac=loss.gradient, method="BFGS", options={"gtol": 1e-10})
    np.testing.assert_allclose(minimum.theta, other.x, atol=1e-7)


def test_given_digits_are_refined():
    minimum = verified_minimum(PRODUCT, [2.0, 0.500001])
    assert minimum.theta[0] * minimum.theta[1] == pytest.approx(1, abs=1e-15)
    assert np.linalg.norm(minimum.theta - [2.0, 0.5]) < 3e-6


def test_moving_along_the_manifold_keeps_the_loss():
    minimum = verified_minimum(PRODUCT, [1.0, 1.0])
    moved = move(minimum, [3.0, -3.0])
    assert moved.theta[0] > 3
    assert moved.theta[0] * moved.theta[1] == pytest.approx(1, abs=1e-14)


@pytest.mark.slow
def test_moving_along_the_manifold_of_a_network_keeps_the_loss():
    network = LinearNetwork.whitened((2, 3, 2), np.diag([2.0, 1.0]))
    balanced = verified_minimum(network, gdmap.critical_step_size(network).minimum)
    direction = np.random.default_rng(0).normal(size=network.dim)
    assert float(network.excess(move(balanced, direction).theta)) < 1e-24


@pytest.mark.parametrize(
    ("loss", "dim", "start", "message"),
    [
        # Separable data: the logistic loss has no minimum.
        (lambda w: jnp.mean(jnp.logaddexp(0.0, -w[0] * jnp.array([1.0, 2.0, 3.0]))), 1, [0.3], "parameters grow"),
        pytest.param(
            lambda w: jnp.exp(-w[0]) + w[1] ** 2, 2, [0.3, 1.0], "infinitely far", marks=pytest.mark.slow
        ),
        (lambda w: -(w[0] ** 2), 1, [0.3], "unbounded below"),
        (lambda w: w[0] ** 4 + w[1] ** 2, 2, [2.0, 0.7], "degenerate"),
        (lambda w: 0 * w[0] + 3.0, 1, [0.3], "flat"),
        pytest.param(lambda w: jnp.abs(w[0]) + w[1] ** 2, 2, [2.0, 0.7], "kink", marks=pytest.mark.slow),
        pytest.param(lambda w: jnp.abs(w[0] - 0.3) + w[1] ** 2, 2, [2.0, 0.7], "kink", marks=pytest.mark.slow),
    ],
)
def test_no_minimum_is_invented(loss, dim, start, message):
    with pytest.raises(ValueError, match=message):
        find_minimum(Function(loss, dim), start)


@pytest.mark.parametrize(
    ("loss", "point", "message"),
    [
        (Product(), [0.0, 0.0], "a saddle: 1 of 2"),
        (Product(), [2.0, 0.7], "gradient norm there is 0.848"),
        (lambda w: -(w @ w), [0.0, 0.0], "a maximum"),
        (lambda w: w[0] ** 4 + w[1] ** 2, [0.0, 0.0], "degenerate critical point: 1 of 2"),
        (lambda w: w @ w + jnp.maximum(w[0], 0.0) ** 2, [0.0, 0.0], "kink at theta: its Hessian jumps"),
        (lambda w: w @ w * 0.0, [0.0, 0.0], "Hessian vanishes altogether"),
        (Product(), [1.0, np.nan], "not finite"),
        (Product(), [1.0, 1.0, 1.0], "theta has shape"),
    ],
)
def test_other_points_are_no_minima(loss, point, message):
    with pytest.raises(ValueError, match=message):
        verified_minimum(Function(loss, 2), point)


def test_a_relu_network_with_a_sample_on_the_kink():
    # theta_1 theta_2 = 1 are minima; the unit of the second sample (input 0) sits on its kink through the bias.
    def loss(w):
        hidden = jnp.maximum(w[0] * jnp.array([1.0, 1.0]) + w[2] * jnp.array([0.0, -1.0]), 0.0)
        return jnp.mean((w[1] * hidden - jnp.array([1.0, 0.0])) ** 2) / 2

    objective = Function(loss, 3)
    assert find_kink(objective, np.array([1.0, 1.0, 2.0]), 1.0) is None
    assert find_kink(objective, np.array([1.0, 1.0, 1.0]), 1.0).derivative == "Hessian"
    assert verified_minimum(objective, [1.0, 1.0, 2.0]).nullity == 2
    with pytest.raises(ValueError, match="kink"):
        verified_minimum(objective, [1.0, 1.0, 1.0])


def test_a_quadratic_form_with_null_directions_of_rounding():
    X = np.random.default_rng(0).normal(size=(4, 6))
    form = X.T @ X
    minimum = verified_minimum(Function(lambda w: w @ jnp.asarray(form) @ w / 2, 6), np.zeros(6))
    assert minimum.nullity == 2
    with pytest.raises(ValueError, match="degenerate"):
        verified_minimum(Function(lambda w: w[0] ** 2 / 2 + w[1] ** 12, 2), np.zeros(2))


@pytest.mark.parametrize(
    ("loss", "point"),
    [
        (lambda x: 1e6 * x[0] ** 2 / 2 + 1e-2 * ((x[1] - 10) ** 2 - 1) ** 2 / 4, [0.0, 10.0]),
        (lambda x: ((x[0] - 1e5) ** 2 - 1) ** 2 / 4 + (x[1] - 1e5) ** 2 / 2, [1e5, 1e5]),
    ],
)
def test_a_known_optimum_makes_no_minimum_of_a_saddle(loss, point):
    with pytest.raises(ValueError, match="a saddle: 1 of 2"):
        verified_minimum(Function(loss, 2, optimal_value=0.0), point)


def test_a_point_where_automatic_differentiation_is_neither_side():
    # Two Huber functions meet at 1, where the traced Hessian is 0 and that of either side 1.
    def loss(x):
        return sum(
            jnp.where(jnp.abs(x[0] - a) < 1, (x[0] - a) ** 2 / 2, jnp.abs(x[0] - a) - 0.5) for a in (0.0, 2.0)
        )

    with pytest.raises(ValueError, match="kink"):
        verified_minimum(Function(loss, 1), [1.0])


def test_a_periodic_loss_seen_from_afar_has_no_kink():
    minimum = verified_minimum(Function(lambda x: 1 - jnp.cos(x[0]), 1), [2 * np.pi * 1e5])
    assert minimum.sharpness.value == pytest.approx(1)


def test_what_is_not_a_point():
    with pytest.raises(TypeError, match=r"objective\.ravel"):
        find_minimum(PRODUCT, {"a": 1.0})
    minimum = find_minimum(PRODUCT, [0.3, 0.7])
    assert verified_minimum(PRODUCT, minimum).loss == minimum.loss
    with pytest.raises(ValueError, match="not finite at theta"):
        find_minimum(Function(lambda w: jnp.sum(jnp.log(w) ** 2), 2), [-1.0, 1.0])


def test_a_smooth_but_stiff_loss_has_no_kink():
    objective = Function(lambda w: jnp.tanh(200 * w[0]) ** 2 + w[1] ** 2, 2)
    assert find_kink(objective, np.array([0.0, 0.0]), 1.0) is None
    assert verified_minimum(objective, [0.0, 0.0]).sharpness.value == pytest.approx(80_000)


class InUnits(eqx.Module):
    """``7 (x y / unit^2 - 1)^2``."""

    unit: Any

    def __call__(self, w):
        return 7.0 * (w[0] * w[1] / self.unit**2 - 1) ** 2


@pytest.mark.slow
def test_units_do_not_matter():
    for unit in (1e-8, 1e8):
        objective = Function(InUnits(np.asarray(unit)), 2)
        minimum = find_minimum(objective, np.array([0.3, 0.7]) * unit)
        assert minimum.nullity == 1
        assert np.prod(minimum.theta / unit) == pytest.approx(1, abs=1e-13)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="must be a gdmap objective"):
        find_minimum(lambda w: w @ w, [1.0])
    with pytest.raises(ValueError, match="needs an objective with residuals"):
        find_minimum(PRODUCT, [1.0, 2.0], method="gauss-newton")
    with pytest.raises(ValueError, match="one of bfgs"):
        find_minimum(PRODUCT, [1.0, 2.0], method="newton")
    with pytest.raises(ValueError, match="at most 1000"):
        find_minimum(Function(lambda w: w @ w, 1001), np.zeros(1001))

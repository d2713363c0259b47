"""Minima without the dense Hessian, against closed forms and the dense route."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdmap import Function, LinearNetwork, Objective, critical_step_size, find_minimum
from gdmap.minima.large import MOVED, examined, flattest_large, large_minima, newton_step, settled
from tests.conftest import random_network

DIM = 40


def separable(decay: float) -> Function:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(20, DIM))
    labelled = inputs * np.sign(inputs[:, :1])
    return Function(lambda w: jnp.mean(jax.nn.softplus(-(labelled @ w))) + decay / 2 * w @ w, DIM)


class InnerProduct(eqx.Module):
    """``factor (a . b - 1)^2 / 2``: sharpness ``factor (|a|^2 + |b|^2)``, smallest ``2 factor``."""

    factor: Any

    def __call__(self, w):
        return self.factor * (w[: DIM // 2] @ w[DIM // 2 :] - 1) ** 2 / 2


def factors(factor: float = 1.0) -> Function:
    return Function(InnerProduct(np.asarray(factor)), DIM)


def test_an_isolated_minimum():
    loss = separable(0.1)
    found = large_minima(loss, 2)
    expected = find_minimum(loss, np.zeros(DIM))
    assert found.theta == pytest.approx(np.tile(expected.theta, (2, 1)), abs=1e-9)
    assert found.sharpness == pytest.approx(expected.sharpness.value, rel=1e-9)
    assert found.smallest == pytest.approx(expected.eigenvalues[0], rel=1e-6)
    assert np.all(found.lowest <= found.smallest)
    assert np.all(found.gradient_is_noise)
    assert "no negative curvature" in found.shown and "not resolved" in found.shown
    assert found.remark == ""


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1e-12, 1e9])
def test_a_manifold_of_minima_in_any_unit(factor):
    found = flattest_large(factors(factor), starts=2)
    assert found.sharpness.value == pytest.approx(2 * factor, rel=1e-8)
    assert found.sharpness.value == pytest.approx(factor * np.sum(found.theta**2), rel=1e-8)
    assert (found.sharpness.status, found.sharpness.lower) == ("estimated", 0)
    assert found.sharpness.upper >= 2 * factor * (1 - 1e-12)
    assert found.agreeing == 2
    assert not found.falling
    search = found.search
    assert {"theta", "first_theta", "sharpness", "norm", "loss"} <= set(search.data_vars)
    assert np.all(search.sharpness <= search.first_sharpness)
    assert np.all(search.searched.values[:MOVED])


@pytest.mark.slow
def test_minima_that_become_arbitrarily_flat():
    # a . b = 0: the sharpness |a|^2 + |b|^2 of the minima tends to 0 at the origin.
    found = flattest_large(Function(lambda w: (w[: DIM // 2] @ w[DIM // 2 :]) ** 2 / 2, DIM), starts=1)
    assert found.falling
    assert "does not prove" in found.reason


@pytest.mark.slow
def test_starts_depend_on_seed_and_index_alone():
    few, more, other = (large_minima(factors(), count, seed) for count, seed in ((1, 3), (2, 3), (1, 4)))
    assert np.array_equal(few.theta[0], more.theta[0])
    assert not np.array_equal(few.theta[0], other.theta[0])


def test_minima_of_higher_loss_are_left_out():
    # Two wells of unequal depth in the first coordinate.
    loss = Function(lambda w: (w[0] ** 2 - 1) ** 2 + w[0] / 10 + w[1:] @ w[1:], DIM)
    found = large_minima(loss, 6)
    assert np.all(found.theta[:, 0] < -1)
    assert "higher loss" in found.remark


def test_a_saddle_is_named_and_left():
    loss = Function(lambda w: (w[0] ** 2 - 1) ** 2 / 4 + w[1:] @ w[1:] / 2, DIM)
    assert examined(loss, np.zeros(DIM), 1.0).flaw.startswith("a saddle")
    left = settled(loss, np.zeros(DIM), 1.0)
    assert left.flaw == ""
    assert abs(left.theta[0]) == pytest.approx(1)
    network = LinearNetwork((5, 6, 5), np.eye(5), np.eye(5))
    assert examined(network, np.zeros(network.dim), 1.0).flaw.startswith("a saddle")


def test_newton_steps_of_singular_hessians_have_minimum_norm():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(10, DIM))
    for unit in (1e-18, 1.0, 1e15):
        loss = Function(lambda w, unit=unit: unit * jnp.sum((rows @ w - 1) ** 2) / 2, DIM)
        step = newton_step(loss, np.zeros(DIM), loss.gradient(np.zeros(DIM)))
        assert step == pytest.approx(np.linalg.pinv(rows) @ np.ones(10), abs=1e-8)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        pytest.param(separable(0.0), "infimum may not be attained", marks=pytest.mark.slow),
        (Function(lambda w: w[0], DIM), "infimum may not be attained"),
        pytest.param(
            Function(lambda w: jnp.sum(w**4), DIM), r"degenerate \(as for x\^4\)", marks=pytest.mark.slow
        ),
        (Function(lambda w: jnp.sum(w[1:] ** 2) + w[0] ** 4, DIM), r"degenerate \(as for x\^4\)"),
        pytest.param(Function(lambda w: jnp.max(w) + w @ w / 20, DIM), "kink", marks=pytest.mark.slow),
        (Function(lambda w: 0 * w[0] + 1, DIM), "flat"),
        (Function(lambda w: jnp.log(-1 - w @ w), DIM), "not finite at any start"),
    ],
)
def test_losses_without_a_minimum_to_find(loss, words):
    with pytest.raises(ValueError, match=words):
        large_minima(loss, 1)


def test_bad_arguments():
    with pytest.raises(TypeError, match="gdmap objective"):
        large_minima(lambda w: w @ w)
    for arguments in ({"starts": 0}, {"starts": True}, {"starts": 1.5}, {"scale": 0.0}, {"max_steps": -1}):
        with pytest.raises(ValueError, match="must be"):
            large_minima(factors(), **arguments)
    with pytest.raises(ValueError, match="find_minimum"):
        large_minima(Function(lambda w: w @ w, 3))


@pytest.mark.slow
def test_a_search_stopped_short_says_so(monkeypatch):
    monkeypatch.setattr("gdmap.minima.large.MOVE_STEPS", 2)
    monkeypatch.setattr("gdmap.minima.large.MOVES", 2)
    found = flattest_large(factors(), starts=1, scale=2.0)
    assert found.sharpness.value > 2.001
    assert "flatter ones probably exist" in found.reason


@pytest.mark.slow
def test_a_network_above_the_dense_limit():
    # Filling, so the answer is a formula: the search must come from above and meet it.
    network = random_network(0, (24, 25, 24), samples=60)
    formula = critical_step_size(network).min_sharpness
    assert network.dim == 1200 and formula.status == "computed"
    found = flattest_large(network, starts=1, scale=0.5)
    assert found.sharpness.upper >= formula.lower
    assert found.sharpness.value == pytest.approx(formula.value, rel=1e-6)
    assert found.search.first_sharpness.values[0] > 1.1 * formula.value
    assert network.excess(found.theta) <= 1e-12


@pytest.mark.slow
def test_an_interpolating_network():
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(10, 5)), rng.normal(size=(10, 1))
    width = 200

    def loss(params, x, y):
        inner, outer = params
        return jnp.sum((jnp.tanh(x @ inner) @ outer - y) ** 2) / 2

    objective = Objective(loss, (np.zeros((5, width)), np.zeros((width, 1))), (inputs, targets))
    assert objective.dim == 1200
    found = large_minima(objective, 2, scale=0.5)
    assert np.all(found.loss < 1e-20)
    for theta, top in zip(found.theta, found.sharpness, strict=True):
        # At zero residuals H = J^T J / m, whose non-zero spectrum is that of the small J J^T / m.
        def outputs(w):
            return (jnp.tanh(inputs @ w[: 5 * width].reshape(5, width)) @ w[5 * width :]) / np.sqrt(len(inputs))

        with jax.enable_x64(True):
            jacobian = np.asarray(jax.jacrev(outputs)(theta))
        assert top == pytest.approx(np.linalg.eigvalsh(jacobian @ jacobian.T)[-1], rel=1e-8)

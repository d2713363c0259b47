import importlib

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmap import Function, GradientDescent, LinearNetwork
from gdmap.maps import Optimiser
from gdmap.minima import balanced_minimum
from gdmap.stability.local_threshold import local_threshold

# The package exports the function under the name of its module.
module = importlib.import_module("gdmap.stability.local_threshold")
BETAS = (0.0, 0.5, 0.9, 0.99)


def heavy_ball(objective, beta):
    return Optimiser(objective, optax.sgd, learning_rate=0.1, momentum=beta)


def nesterov(objective, beta):
    return Optimiser(objective, optax.sgd, learning_rate=0.1, momentum=beta, nesterov=True)


def averaging(objective, beta, nu=1.0):
    return Optimiser(objective, optax.adam, learning_rate=0.1, b1=beta, eps=0.0, frozen={"nu": nu}, limit=True)


# golden.md 5: threshold times lam
CLOSED_FORMS = (
    (heavy_ball, lambda beta: 2 * (1 + beta)),
    (nesterov, lambda beta: (2 + 2 * beta) / (1 + 2 * beta)),
    (averaging, lambda beta: (2 + 2 * beta) / (1 - beta)),
)
HEAVY_BALL_FIRST = (CLOSED_FORMS[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CLOSED_FORMS[1:]))


class Quadratic(eqx.Module):
    """A module, so that quadratics of one dimension share their compiled programs."""

    matrix: np.ndarray

    def __call__(self, w):
        return 0.5 * w @ self.matrix @ w


def quadratic(matrix):
    return Function(Quadratic(np.asarray(matrix)), len(matrix))


def random_hessian(seed, dim=4):
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    return (Q * rng.uniform(0.1, 5, dim)) @ Q.T


class Valley(eqx.Module):
    """A loss that is not quadratic, with its minimum at ``centre``."""

    A: np.ndarray
    centre: np.ndarray

    def __call__(self, w):
        return jnp.sum(jnp.log(jnp.cosh(self.A @ (w - self.centre)))) + jnp.sum((w - self.centre) ** 4)


def random_loss(seed):
    """A loss that is not quadratic, its minimum, and the Hessian there."""
    rng = np.random.default_rng(seed)
    A, centre = rng.normal(size=(6, 3)), rng.normal(size=3)
    return Function(Valley(A, centre), 3), centre, A.T @ A


def encloses(bracket, exact):
    assert bracket.lower <= exact <= bracket.upper
    assert bracket.status == "computed"
    return True


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("make", "closed_form"), CLOSED_FORMS)
def test_closed_forms(make, closed_form, beta):
    hessian = random_hessian(3)
    exact = closed_form(beta) / np.linalg.eigvalsh(hessian)[-1]
    threshold = local_threshold(make(quadratic(hessian), beta), np.zeros(4))
    assert encloses(threshold, exact) and threshold.value == pytest.approx(exact, rel=1e-10)
    assert threshold.relative_width < 1e-9
    assert "multiplier -1 leaves the unit circle" in threshold.method or beta == 0


@pytest.mark.parametrize(("make", "closed_form"), HEAVY_BALL_FIRST)
def test_closed_forms_at_the_flattest_minimum_of_a_network(make, closed_form):
    # a manifold of minima; min sharpness N sigma^(2 - 2/N) = 4 (theory.md 6.1)
    network = LinearNetwork.whitened((2, 3, 2), np.diag([2.0, 1.0]))
    threshold = local_threshold(make(network, 0.9), balanced_minimum(network))
    assert encloses(threshold, closed_form(0.9) / 4) and threshold.relative_width < 1e-9
    assert "size 16" in threshold.method  # 12 + 12 components, 8 of them along the manifold


@pytest.mark.parametrize(("make", "closed_form"), HEAVY_BALL_FIRST)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_closed_forms_at_a_minimum_that_is_not_quadratic(make, closed_form, seed):
    loss, centre, hessian = random_loss(seed)
    exact = closed_form(0.9) / np.linalg.eigvalsh(hessian)[-1]
    threshold = local_threshold(make(loss, 0.9), centre)
    assert threshold.value == pytest.approx(exact, rel=1e-9)


def test_frozen_preconditioner_enters_through_the_pencil():
    hessian, nu = random_hessian(5), np.array([4.0, 0.09, 1.0, 25.0])
    lam = np.linalg.eigvals(np.diag(nu**-0.5) @ hessian).real.max()
    threshold = local_threshold(averaging(quadratic(hessian), 0.9, nu), np.zeros(4))
    assert encloses(threshold, 38 / lam) and threshold.relative_width < 1e-9


@pytest.mark.parametrize("make", [heavy_ball, nesterov, pytest.param(averaging, marks=pytest.mark.slow)])
def test_iteration_agrees_on_both_sides(make):
    loss, centre, _ = random_loss(2)
    start = centre + 1e-7 * np.array([1.0, -0.5, 0.3])
    threshold = local_threshold(make(loss, 0.5), centre).value
    for share, returns in ((0.97, True), (1.03, False)):
        map_ = make(loss, 0.5).with_keywords(learning_rate=share * threshold)
        state = map_.initial_state(start)
        for _ in range(400):
            state = map_.step(state)
        assert bool(np.linalg.norm(map_.parameters(state) - centre) < 1e-7) is returns


def test_gradient_descent_is_two_over_the_sharpness():
    hessian = random_hessian(1)
    loss, exact = quadratic(hessian), 2 / np.linalg.eigvalsh(hessian)[-1]
    for asked in (loss, GradientDescent(loss, 0.123), Optimiser(loss, optax.sgd, learning_rate=1)):
        threshold = local_threshold(asked, np.zeros(4))
        assert encloses(threshold, exact) and threshold.relative_width < 1e-12
    assert local_threshold(loss, np.zeros(4), verify=False).value == pytest.approx(exact, rel=1e-12)


@settings(max_examples=8, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(0.0, 0.95), st.sampled_from([heavy_ball, nesterov, averaging]))
def test_scaling_the_loss_divides_the_threshold(factor, beta, make):
    hessian = random_hessian(0)
    one = local_threshold(make(quadratic(hessian), beta), np.zeros(4)).value
    other = local_threshold(make(quadratic(factor * hessian), beta), np.zeros(4)).value
    assert other * factor == pytest.approx(one, rel=1e-9)


def test_adam_at_a_minimum_is_preconditioned_by_eps_alone():
    # nu = 0 there, and the update is mu / eps to first order
    threshold = local_threshold(
        Optimiser(quadratic(np.diag([1.0, 7.0])), optax.adam, learning_rate=0.1, limit=True), np.zeros(2)
    )
    assert threshold.value == pytest.approx(38e-8 / 7, rel=1e-9)


def test_accumulators_that_a_vanishing_gradient_leaves_alone_do_not_count():
    map_ = Optimiser(
        quadratic(np.diag([1.0, 7.0])), optax.adagrad, learning_rate=0.1, initial_accumulator_value=0.25, eps=0.0
    )
    threshold = local_threshold(map_, np.zeros(2))
    assert encloses(threshold, 2 * 0.5 / 7) and "size 2 " in threshold.method


def test_weight_decay_at_the_origin_moves_flat_directions_too():
    # L = lam (x + y)^2 / 2 with decoupled decay w: multipliers 1 - eta (lam_i + w)
    loss, decay = Function(lambda w: 0.5 * (w[0] + w[1]) ** 2, 2), 0.5

    def decayed(learning_rate):
        return optax.chain(optax.add_decayed_weights(decay), optax.sgd(learning_rate))

    threshold = local_threshold(Optimiser(loss, decayed, learning_rate=0.1), np.zeros(2))
    assert encloses(threshold, 2 / (2 + decay)) and "size 2 " in threshold.method


def test_other_parameters():
    loss = quadratic(np.diag([1.0, 3.0]))
    threshold = local_threshold(heavy_ball(loss, 0.5), np.zeros(2), parameter="momentum")
    # complex pairs of modulus sqrt(beta)
    assert encloses(threshold, 1.0) and "+-" in threshold.method
    # stable for all values, and shown: a frozen nu leaves b2 nothing to do
    map_ = averaging(loss, 0.5).with_keywords(b2=0.9)
    threshold = local_threshold(map_, np.zeros(2), parameter="b2")
    assert (threshold.value, threshold.status) == (
        np.inf,
        "computed",
    ) and "does not depend on b2" in threshold.method


def test_unstable_at_every_step_size():
    threshold = local_threshold(heavy_ball(quadratic(np.diag([1.0, 3.0])), 1.1), np.zeros(2))
    assert threshold.value == 0 and threshold.status == "estimated" and "unstable at every" in threshold.method


def test_heavy_ball_without_friction_is_only_neutrally_stable():
    threshold = local_threshold(heavy_ball(quadratic(np.diag([1.0, 3.0])), 1.0), np.zeros(2))
    assert encloses(threshold, 4 / 3) and threshold.relative_width < 1e-4
    assert "neutrally stable" in threshold.method


@pytest.mark.parametrize(("make", "closed_form"), HEAVY_BALL_FIRST)
def test_unverified_minima(make, closed_form):
    loss, centre, hessian = random_loss(0)
    threshold = local_threshold(make(loss, 0.9), centre, verify=False)
    assert encloses(threshold, closed_form(0.9) / np.linalg.eigvalsh(hessian)[-1])


@pytest.mark.parametrize(
    ("make", "closed_form"), [CLOSED_FORMS[0], pytest.param(*CLOSED_FORMS[1], marks=pytest.mark.slow)]
)
def test_matrix_free(make, closed_form, monkeypatch):
    rng = np.random.default_rng(0)
    scales = np.concatenate([np.zeros(20), rng.uniform(0.05, 1, 80), [2.5]])
    Q, _ = np.linalg.qr(rng.normal(size=(101, 101)))
    factor = (Q * np.sqrt(scales)).T
    loss = Function(lambda w: 0.5 * jnp.sum((factor @ w) ** 2), 101)
    monkeypatch.setattr(module, "DENSE_LIMIT", 100)
    for verify in (True, False):
        threshold = local_threshold(make(loss, 0.9), np.zeros(101), verify=verify)
        assert "matrix-free" in threshold.method
        assert encloses(threshold, closed_form(0.9) / 2.5) and threshold.relative_width < 1e-7
        assert threshold.value == pytest.approx(closed_form(0.9) / 2.5, rel=1e-9)


def test_points_that_are_no_minima(two_factors):
    with pytest.raises(ValueError, match="saddle"):
        local_threshold(heavy_ball(two_factors, 0.9), np.zeros(2))
    with pytest.raises(ValueError, match="not a minimum"):
        local_threshold(two_factors, np.array([2.0, 1.0]))
    with pytest.raises(ValueError, match="no direction is curved upward"):
        local_threshold(quadratic(-np.eye(2)), np.zeros(2), verify=False)


def test_optimisers_without_a_threshold():
    bowl = Function(lambda w: jnp.sum((w - 1) ** 2), 2)
    with pytest.raises(ValueError, match="not a fixed point of this map"):
        local_threshold(Optimiser(bowl, optax.adamw, learning_rate=0.1, limit=True), np.ones(2))
    with pytest.raises(ValueError, match="depends on time"):
        local_threshold(Optimiser(bowl, optax.adam, learning_rate=0.1), np.ones(2))
    scheduled = Optimiser(bowl, optax.sgd, learning_rate=optax.linear_schedule(0.1, 0.01, 10), limit=True)
    with pytest.raises(ValueError, match="learning_rate is a schedule"):
        local_threshold(scheduled, np.ones(2))
    with pytest.raises(ValueError, match="no derivative at this state"):
        local_threshold(Optimiser(bowl, optax.sign_sgd, learning_rate=0.1), np.ones(2))


def test_wrong_arguments():
    bowl = quadratic(np.eye(2))
    with pytest.raises(ValueError, match="no floating keyword 'foo'; it has learning_rate, momentum"):
        local_threshold(heavy_ball(bowl, 0.9), np.zeros(2), parameter="foo")
    with pytest.raises(ValueError, match="no parameter 'momentum'"):
        local_threshold(bowl, np.zeros(2), parameter="momentum")
    with pytest.raises(TypeError, match="expected an objective"):
        local_threshold(lambda w: w @ w, np.zeros(2))
    with pytest.raises(ValueError, match="theta has shape"):
        local_threshold(bowl, np.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        local_threshold(bowl, np.array([0.0, np.nan]))

"""Determinants of optimisers in closed form, against numerical Jacobians of the maps."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmap import Function, GradientDescent, Optimiser
from gdmap.certify.optimisers import affine_update, determinant

LOSS = Function(lambda t: jnp.sum(jnp.tanh(t) ** 2) + t[0] * t[1] * t[2], 3)


def decayed(learning_rate, decay, momentum=None, nesterov=False):
    return optax.chain(optax.add_decayed_weights(decay), optax.sgd(learning_rate, momentum, nesterov))


def averaged(learning_rate, decay):
    return optax.chain(optax.ema(decay, debias=False), optax.scale_by_learning_rate(learning_rate))


def clipped(learning_rate):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(learning_rate))


def coupled(learning_rate):
    def update(updates, state, params=None):
        return updates - jnp.mean(updates), state

    return optax.chain(optax.GradientTransformation(lambda params: (), update), optax.sgd(learning_rate))


def reversed_(learning_rate):
    return optax.chain(optax.stateless(lambda updates, params: updates[::-1]), optax.sgd(learning_rate))


def first_only(learning_rate):
    mask = np.array([1.0, 0.0, 1.0])
    return optax.chain(optax.stateless(lambda updates, params: mask * updates), optax.sgd(learning_rate))


AFFINE = [
    GradientDescent(LOSS, 0.3),
    Optimiser(LOSS, optax.sgd, learning_rate=0.3),
    Optimiser(LOSS, optax.sgd, learning_rate=0.3, momentum=0.9),
    Optimiser(LOSS, optax.sgd, learning_rate=0.3, momentum=0.9, nesterov=True),
    Optimiser(LOSS, optax.sgd, learning_rate=0.3, momentum=0.0),
    Optimiser(LOSS, decayed, learning_rate=0.3, decay=0.1),
    Optimiser(LOSS, decayed, learning_rate=0.3, decay=0.1, momentum=0.5),
    Optimiser(LOSS, decayed, learning_rate=0.3, decay=0.1, momentum=0.5, nesterov=True),
    Optimiser(LOSS, averaged, learning_rate=0.3, decay=0.9),
    Optimiser(LOSS, optax.adam, learning_rate=0.3, frozen={"nu": 4.0}, limit=True),
    Optimiser(LOSS, optax.sgd, learning_rate=optax.constant_schedule(0.3), limit=True),
]


@pytest.mark.parametrize("map_", AFFINE)
def test_the_closed_form_is_the_determinant(map_):
    update = affine_update(map_)
    assert update is not None
    for state in np.random.default_rng(0).standard_normal((3, map_.state_dim)):
        curvatures = np.linalg.eigvalsh(LOSS.hessian(state[:3]))
        expected = np.prod(float(update.alpha) + float(update.kappa) * curvatures)
        assert np.linalg.det(map_.jacobian(state)) == pytest.approx(expected, rel=1e-10, abs=1e-15)


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-3, 10), st.floats(0.01, 0.999))
def test_momentum_in_closed_form(step_size, momentum):
    heavy = affine_update(Optimiser(LOSS, optax.sgd, learning_rate=step_size, momentum=momentum))
    assert heavy is not None and heavy.is_always_invertible and heavy.alpha == Fraction(momentum)
    assert heavy.effective_step_size == 0
    nesterov = affine_update(Optimiser(LOSS, optax.sgd, learning_rate=step_size, momentum=momentum, nesterov=True))
    assert nesterov is not None and nesterov.effective_step_size == Fraction(step_size)
    assert nesterov.alpha == Fraction(momentum) and not nesterov.is_always_invertible


def test_binary_numbers_and_decimals():
    map_ = Optimiser(LOSS, decayed, learning_rate=0.1, decay=0.01)
    update = affine_update(map_, exact_decimals=True)
    assert update is not None and update.effective_step_size == Fraction(100, 999)
    binary = affine_update(map_)
    assert binary is not None
    assert binary.effective_step_size == Fraction(0.1) / (1 - Fraction(0.1) * Fraction(0.01))
    descent = affine_update(GradientDescent(LOSS, 0.1), exact_decimals=True)
    assert descent is not None and descent.effective_step_size == Fraction(1, 10)


def test_degenerate_updates():
    forgetful = affine_update(Optimiser(LOSS, optax.sgd, learning_rate=0.1, momentum=0.0))
    assert forgetful is not None and forgetful.is_never_invertible and forgetful.effective_step_size is None
    assert "det DG = 0" in forgetful.explain()
    # all of theta decays in one step: theta -> -eta g
    collapsing = affine_update(Optimiser(LOSS, decayed, learning_rate=0.5, decay=2.0))
    assert collapsing is not None and collapsing.alpha == 0 and collapsing.kappa == Fraction(-1, 2)
    assert not collapsing.is_always_invertible and not collapsing.is_never_invertible
    assert "Hessian" in collapsing.explain()


@pytest.mark.parametrize(
    ("factory", "more"),
    [
        (optax.adam, {}),
        (optax.adam, {"limit": True}),
        (optax.adam, {"limit": True, "frozen": {"nu": np.array([1.0, 4.0, 4.0])}}),
        (optax.adam, {"limit": True, "frozen": {"nu": 2.0}}),  # an irrational preconditioner
        (optax.rmsprop, {}),
        (optax.lion, {}),
        (optax.sign_sgd, {}),
        (optax.yogi, {}),
        (clipped, {}),
        (coupled, {}),
        (reversed_, {}),
        (first_only, {}),
        (lambda learning_rate: optax.sgd(learning_rate, 0.9, accumulator_dtype=jnp.float32), {}),
    ],
)
def test_other_updates_are_not_taken_for_affine_ones(factory, more):
    assert affine_update(Optimiser(LOSS, factory, learning_rate=0.1, **more)) is None


def test_a_schedule_has_no_one_determinant():
    schedule = optax.exponential_decay(0.1, 10, 0.5)
    assert affine_update(Optimiser(LOSS, optax.sgd, learning_rate=schedule)) is None


def test_many_parameters():
    n = 3000
    map_ = Optimiser(Function(lambda t: jnp.sum(jnp.cos(t)), n), optax.sgd, learning_rate=0.1, momentum=0.9)
    update = affine_update(map_, exact_decimals=True)
    assert update is not None and update.alpha == Fraction(9, 10)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=9, max_size=9))
def test_exact_determinants(numbers):
    matrix = np.array(numbers).reshape(3, 3)
    assert determinant([[Fraction(int(x)) for x in row] for row in matrix]) == round(np.linalg.det(matrix))

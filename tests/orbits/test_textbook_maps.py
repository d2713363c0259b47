"""Gradient descent and heavy ball on simple losses are the textbook maps (golden values 1, 2, 5)."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmap import Function, GradientDescent, Objective, Optimiser, ensemble, fate_names, orbit_diagram

WELL = Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)


class Cubic:
    """L'(x) = al (x - x_M)(x - x_m), as one objective for all parameters."""

    def __init__(self, al, x_M, x_m):
        self.al, self.x_M, self.x_m = al, x_M, x_m
        self.lam = al * (x_m - x_M)
        # The parameters are data of the objective, so that all cubics share one compilation.
        self.objective = Objective(
            lambda x, data, _: data[0] * (x**3 / 3 - (data[1] + data[2]) * x**2 / 2 + data[1] * data[2] * x),
            np.zeros(()),
            data=(np.array([[al, x_M, x_m]]), np.zeros(1)),
        )


@settings(max_examples=40, deadline=None)
@given(st.floats(0.1, 10), st.floats(-2, 2), st.floats(0.1, 3), st.floats(0.05, 3), st.floats(-0.2, 1.2))
def test_gradient_descent_on_a_cubic_loss_is_the_logistic_map(al, x_M, gap, eta_lam, h):
    cubic = Cubic(al, x_M, x_M + gap)
    eta, r = eta_lam / cubic.lam, 1 + eta_lam
    x = x_M + r * h / (eta * al)
    image = GradientDescent(cubic.objective, eta).step(np.array([x]))[0]
    scale = 1 + abs(h) + (abs(x) + abs(x_M)) * eta * al / r
    assert eta * al * (image - x_M) / r == pytest.approx(r * h * (1 - h), abs=2e-14 * scale**3 * r)


@pytest.mark.parametrize("beta", [-0.3, 0.0, 0.2, 0.9])
def test_heavy_ball_on_a_cubic_loss_is_the_henon_map(beta):
    """w+ = 1 - a w^2 + b w-, with a = (eta^2 lam^2 - (1 + beta)^2) / 4, b = -beta."""
    cubic, eta = Cubic(0.7, -0.4, 1.1), 2.2
    lam = cubic.lam
    c = (cubic.x_M + cubic.x_m) / 2 + (1 + beta) / (2 * eta * cubic.al)
    s = -eta * cubic.al * (c - cubic.x_M) * (c - cubic.x_m)
    a = (eta**2 * lam**2 - (1 + beta) ** 2) / 4
    heavy_ball = Optimiser(cubic.objective, optax.sgd, learning_rate=eta, momentum=beta)
    state, w = heavy_ball.initial_state(np.array([0.9])), [np.nan, (0.9 - c) / s]
    xs = [0.9]
    for _ in range(7):
        state = heavy_ball.step(state)
        xs.append(state[0])
    w = (np.array(xs) - c) / s
    np.testing.assert_allclose(w[2:], 1 - a * w[1:-1] ** 2 - beta * w[:-2], atol=4e-14)


def sign(x):
    return jnp.sign(x[0])


@pytest.mark.parametrize(("offset", "share"), [(-1e-3, 0.0), (1e-2, 1.0)])
def test_the_attractors_of_the_two_wells_merge_in_a_crisis(offset, share):
    """At 3 sqrt 3 / 2 - 1: before it no orbit near a well ever changes sign, after it all do."""
    eta = 1.5 * np.sqrt(3) - 1 + offset
    starts = np.random.default_rng(0).uniform(0.6, 1.1, (2_000, 1))
    seen = orbit_diagram(GradientDescent(WELL, eta), [eta], starts, transient=0, samples=20_000, observable=sign)
    assert not seen.diverged.any()
    changes = (seen.observable < 0).any("sample").mean("start").item()
    assert changes == share


def test_beyond_two_everything_escapes():
    starts = np.random.default_rng(1).uniform(-1.4, 1.4, (200, 1))
    escaped = ensemble(GradientDescent(WELL, 2.05), starts, max_steps=20_000)
    assert set(fate_names(escaped)) == {"diverged"}


SQUARE = 0.8


def residual_of(x):
    return x[0] ** 2 / 2 - SQUARE


PHASE_RETRIEVAL = Function(lambda x: residual_of(x) ** 2 / 2, 1)


@pytest.mark.parametrize(
    ("a", "monotone", "converged", "diverged"),
    [
        (0.8184, 1.0, None, 0.0),
        (0.8384, None, 1.0, 0.0),
        (0.99, None, 1.0, 0.0),
        (1.02, None, 0.0, 0.0),
        (2.02, None, 0.0, 1.0),
    ],
)
def test_the_phases_of_phase_retrieval(a, monotone, converged, diverged):
    """L = (x^2/2 - y)^2 / 2: the residual z = eta (x^2/2 - y) obeys z+ = z^3 + (a-2) z^2 + (1-2a) z, a = eta y."""
    y = SQUARE
    eta = a / y
    loss = PHASE_RETRIEVAL
    z = np.random.default_rng(2).uniform(-a, 2, 400)
    starts = np.sqrt(2 * (z / eta + y))[:, None]
    seen = orbit_diagram(
        GradientDescent(loss, eta),
        [eta],
        starts,
        transient=0,
        samples=600,
        observable=residual_of,
    )
    residual = eta * seen.observable.isel(sweep=0, value=0).values
    np.testing.assert_allclose(
        residual[:, 1],
        residual[:, 0] ** 3 + (a - 2) * residual[:, 0] ** 2 + (1 - 2 * a) * residual[:, 0],
        atol=1e-13,
    )
    assert seen.diverged.mean().item() == pytest.approx(diverged, abs=0.01)
    sizes = np.abs(residual)
    falls = np.all((sizes[:, 1:] <= sizes[:, :-1]) | (sizes[:, 1:] < 1e-12), axis=1).mean()
    if monotone is not None:
        assert falls == monotone
    elif a == 0.8384:
        assert falls < 1
    if converged is not None:
        fates = fate_names(ensemble(GradientDescent(loss, eta), starts[:100]))
        assert np.mean(fates == "minimum") == converged

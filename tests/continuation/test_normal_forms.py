"""Normal forms against formulas, a second formula for minima, and what the maps themselves do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdmap import Function, GradientDescent
from gdmap.continuation.follow import continue_orbit
from gdmap.continuation.switching import switch_branch
from gdmap.engines.precision import float64
from gdmap.maps import Map
from gdmap.objectives import AbstractObjective
from gdmap.orbits.periodic_orbit import orbit_at
from gdmap.stability import flip_coefficient


def smooth(seed, dim):
    """A random smooth loss, and a minimum of it."""
    rng = np.random.default_rng(seed)
    weights, phases = rng.standard_normal((dim + 10, dim)) / 4, rng.standard_normal(dim + 10)

    def loss(x):
        return 0.7 * jnp.sum(jnp.sin(weights @ x + phases)) + 0.15 * x @ x + 0.05 * jnp.sum(x**4)

    map_ = GradientDescent(Function(loss, dim), 0.2)
    with float64():
        x = jax.jit(lambda x: jax.lax.fori_loop(0, 4000, lambda _, x: map_.update(x), x))(rng.standard_normal(dim))
    return map_, np.asarray(x)


@pytest.fixture(scope="module")
def many():
    map_, theta = smooth(1, 20)
    return map_, theta, continue_orbit(orbit_at(map_, theta), bounds=(0.05, 3.0))


def test_the_flip_of_a_minimum_is_that_of_the_formula_for_gradient_descent(many):
    map_, theta, branch = many
    expected = flip_coefficient(map_.objective, theta)
    first = branch.events[0]
    assert first.parameter == pytest.approx(expected.step_size.value, rel=1e-12)
    assert first.coefficient.value == pytest.approx(expected.coefficient.value, rel=1e-9)
    assert first.criticality == expected.kind
    assert min(np.linalg.norm(first.eigenvector - sign * expected.eigenvector) for sign in (-1, 1)) < 1e-9


def test_every_eigenvalue_of_the_hessian_has_its_event(many):
    map_, theta, branch = many
    eigenvalues = np.linalg.eigvalsh(map_.objective.hessian(theta))
    expected = np.sort(2 / eigenvalues)
    expected = expected[(expected > 0.05) & (expected < 3.0)]
    assert [event.kind for event in branch.events] == ["period-doubling"] * len(expected)
    np.testing.assert_allclose([event.parameter for event in branch.events], expected, rtol=1e-11)
    speeds = [event.speed.real for event in branch.events]
    np.testing.assert_allclose(speeds, -2 / expected, rtol=1e-9)


def test_the_new_cycle_has_the_predicted_amplitude_and_multiplier(many):
    _, _, branch = many
    event = branch.events[0]
    cycles = switch_branch(event, bounds=(0.05, 0.6))
    for eps, tolerance in ((1e-2, 3e-2), (1e-3, 3e-3)):
        orbit = cycles.at(event.parameter - eps / event.speed.real)[0]
        amplitude = np.linalg.norm(orbit.points[0] - orbit.points[1]) / 2
        assert amplitude**2 == pytest.approx(eps / event.coefficient.value, rel=tolerance)
        assert np.abs(orbit.multipliers - (1 - 4 * eps)).min() < 40 * eps**2


# Two-dimensional quartics of which a 2-cycle of gradient descent becomes an invariant circle.
QUARTICS = {
    "one": ([0.963, 0.376, -0.343, -0.071, 0.171, -0.38, -0.222, -0.071, 0.222, -0.153], 1.04, [0.978, -0.145]),
    "two": ([-0.14, 0.056, 0.256, 0.141, 0.403, -0.613, -0.007, 0.037, 0.259, 0.035], 0.32, [1.448, -1.513]),
}


class Quartic:
    """``x^4/4 + y^4/4`` plus a polynomial with given coefficients."""

    def __init__(self, c):
        self.c = c

    def __call__(self, v):
        x, y = v
        monomials = jnp.stack(
            [x * x * y * y / 2, x**3 * y, x * y**3, x * x, x * y, y * y, x**3, x * x * y, x * y * y, y**3]
        )
        return x**4 / 4 + y**4 / 4 + jnp.asarray(self.c) @ monomials


def run(map_, state, steps, record=0):
    """The state after some rounds of two steps, or the record of so many of them."""
    with float64():
        twice = lambda x: map_.update(map_.update(x))  # noqa: E731
        state = jax.jit(lambda x: jax.lax.fori_loop(0, steps, lambda _, x: twice(x), x))(jnp.asarray(state))
        if not record:
            return np.asarray(state)
        return np.asarray(jax.jit(lambda x: jax.lax.scan(lambda x, _: (twice(x), x), x, None, record)[1])(state))


@pytest.mark.parametrize("name", ["one", pytest.param("two", marks=pytest.mark.slow)])
def test_the_invariant_circle_has_the_radius_that_the_lyapunov_coefficient_says(name):
    coefficients, eta, near = QUARTICS[name]
    objective = Function(Quartic(coefficients), 2)
    map_ = GradientDescent(objective, eta)
    state = run(map_, np.array(near), 3000)
    branch = continue_orbit(orbit_at(map_, np.stack([state, map_.step(state)])), bounds=(eta, eta + 0.05))
    (event,) = branch.events
    assert event.kind == "neimark-sacker" and event.criticality == "supercritical"
    assert abs(event.multiplier) == pytest.approx(1, abs=1e-9) and event.angle > 0.1 and event.resonance is None
    beyond = event.parameter + 5e-4
    orbit = branch.at(beyond)[0]
    growth = abs(orbit.multipliers[0])
    assert growth == pytest.approx(1 + 5e-4 * (event.speed * event.multiplier.conjugate()).real, rel=1e-4)
    predicted = -(growth - 1) / event.coefficient.value
    moved = GradientDescent(objective, beyond)
    start = orbit.points[0] + 1.8 * np.sqrt(predicted) * event.eigenvector.real
    circle = run(moved, start, 30_000, record=3000)
    coordinate = (circle - orbit.points[0]) @ event.at.form.left
    assert np.mean(np.abs(coordinate) ** 2) == pytest.approx(predicted, rel=0.02)
    inside = run(GradientDescent(objective, event.parameter - 5e-3), event.points[0] + 1e-3, 30_000)
    assert np.linalg.norm(inside - branch.at(event.parameter - 5e-3)[0].points[0]) < 1e-8
    with pytest.raises(ValueError, match="invariant circle"):
        switch_branch(event)


@pytest.mark.parametrize("cubic", [0.4, pytest.param(3.0, marks=pytest.mark.slow)])
def test_in_one_dimension_the_sign_of_the_coefficient_is_that_of_the_known_quantity(cubic):
    # L'' = 1, L''' = c, L'''' = 6: b = eta (c^2 / 2 - 6 / 6) at eta = 2; b has the sign of 3 L'''^2 - L'' L''''.
    objective = Function(lambda x: x[0] ** 2 / 2 + cubic * x[0] ** 3 / 6 + 6 * x[0] ** 4 / 24, 1)
    branch = continue_orbit(orbit_at(GradientDescent(objective, 1.9), np.zeros(1)), bounds=(1.8, 2.2))
    event = branch.events[0]
    assert event.coefficient.value == pytest.approx(cubic**2 - 2, rel=1e-10)
    assert event.criticality == ("supercritical" if cubic**2 > 2 else "subcritical")
    cycles = switch_branch(event)
    assert np.sign(cycles.parameter[2] - 2) == np.sign(event.coefficient.value)
    assert bool(cycles.stable[2]) == (cubic**2 > 2)


def test_a_quadratic_loss_has_a_degenerate_flip():
    branch = continue_orbit(
        orbit_at(GradientDescent(Function(lambda x: x[0] ** 2 / 2, 1), 1.5), np.zeros(1)), bounds=(1.0, 3.0)
    )
    (event,) = branch.events
    assert event.criticality == "degenerate" and abs(event.coefficient.value) < 1e-12


class DelayedLogistic(Map):
    """``(x, y) -> (a x (1 - y), x)``: its fixed point ``1 - 1/a`` loses stability at ``a = 2``."""

    objective: AbstractObjective
    a: Any

    def update(self, state):
        """One step."""
        return jnp.stack([jnp.asarray(self.a) * state[0] * (1 - state[1]), state[0]])


def test_the_lyapunov_coefficient_of_the_delayed_logistic_map():
    map_ = DelayedLogistic(Function(lambda x: x @ x, 2), np.float64(1.8))
    (event,) = continue_orbit(orbit_at(map_, np.full(2, 1 - 1 / 1.8)), "a", (1.5, 2.3)).events
    assert event.kind == "neimark-sacker" and event.angle == pytest.approx(np.pi / 3, abs=1e-12)
    assert abs(event.parameter - 2) <= event.error < 1e-11
    # With |q| = 1 here; by hand.
    assert event.coefficient.lower <= -1 <= event.coefficient.upper
    assert event.coefficient.upper - event.coefficient.lower < 1e-10

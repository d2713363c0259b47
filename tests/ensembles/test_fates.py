"""Fates that are known by hand, and the traps around them."""

import jax.numpy as jnp
import numpy as np
import pytest

from gdmap import (
    Function,
    GradientDescent,
    LinearNetwork,
    Map,
    Objective,
    critical_step_size,
    ensemble,
    fate_names,
    gaussian_starts,
    reason_names,
)
from gdmap.objectives import AbstractObjective

DOUBLE_WELL = Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
# Golden values 1: L' = x (x - 1) makes gradient descent the logistic map with r = 1 + eta.
LOGISTIC = Function(lambda x: x[0] ** 3 / 3 - x[0] ** 2 / 2, 1)
slow = pytest.mark.slow


def one(objective, step_size, start, max_steps=10_000):
    result = ensemble(GradientDescent(objective, step_size), np.atleast_2d(np.asarray(start, float)), max_steps)
    return fate_names(result)[0], reason_names(result)[0], int(result.period[0]), int(result.steps[0])


@pytest.mark.parametrize(
    ("r", "period"),
    [
        (3.2, 2),
        (3.5, 4),
        (3.55, 8),
        (3.5666, 16),
        (3.5692, 32),
        (3.5698, 64),
        (3.56991, 128),
        (3.8319, 3),
        (3.845, 6),
    ],
)
def test_periods_of_the_logistic_map(r, period):
    assert one(LOGISTIC, r - 1, [0.3], 60_000)[:3] == ("periodic", "cycle_confirmed", period)


@pytest.mark.parametrize("r", [3.7, 3.9, 3.99])
def test_chaos_is_not_taken_for_a_cycle(r):
    assert one(LOGISTIC, r - 1, [0.3], 20_000) == ("chaotic", "positive_exponent", 0, 20_000)


def test_logistic_map_escapes_beyond_full_chaos():
    assert one(LOGISTIC, 3.05, [0.3])[0] == "diverged"


@pytest.mark.parametrize(
    ("eta", "fate", "period"),
    [
        (0.5, "minimum", 0),
        (0.999, "minimum", 0),
        (1.001, "periodic", 2),
        (1.1, "periodic", 2),
        (1.25, "periodic", 4),
    ],
)
def test_double_well(eta, fate, period):
    found = one(DOUBLE_WELL, eta, [0.4], 60_000)
    assert (found[0], found[2]) == (fate, period)


def test_exactly_at_criticality_the_minimum_is_marginal():
    # Convergence is algebraic there: neither a cycle nor a minimum can be shown by waiting.
    assert one(DOUBLE_WELL, 1.0, [0.4])[:2] == ("marginal", "marginal_multiplier")


def test_basin_of_the_double_well():
    # Golden values 2: bounded iff |x| < sqrt(1 + 2 / eta); U[-4, 4] at eta = .9 gives .55124.
    starts = np.linspace(-4, 4, 4001)[:, None]
    result = ensemble(GradientDescent(DOUBLE_WELL, 0.9), starts)
    escaped = fate_names(result) == "diverged"
    np.testing.assert_array_equal(escaped, np.abs(starts[:, 0]) > np.sqrt(1 + 2 / 0.9))


def test_positive_definite_minimum():
    bowl = Function(lambda w: w[0] ** 2 + 10 * w[1] ** 2, 2)
    assert one(bowl, 0.05, [1.0, 1.0])[:2] == ("minimum", "positive_definite_hessian")


@pytest.mark.parametrize(
    "loss",
    [
        lambda w: (w[0] * w[1] - 1) ** 2 / 2,
        pytest.param(lambda w: (w @ w - 1) ** 2, marks=slow),
        pytest.param(lambda w: 1e6 * (w[0] * w[1] - 1) ** 2, marks=slow),
        lambda w: 1e-6 * (w[0] * w[1] - 1) ** 2 + 7.0,
        pytest.param(lambda w: (w[0] - jnp.sin(w[1])) ** 2, marks=slow),
    ],
)
def test_manifolds_of_minima_are_verified(loss):
    objective = Function(loss, 2)
    sharpness = np.linalg.eigvalsh(objective.hessian(np.array([1.0, 1.0])))[-1]
    assert one(objective, 0.3 / sharpness, [0.9, 0.7])[:2] == ("minimum", "manifold_of_minima")


def test_known_optimum():
    objective = Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2, optimal_value=0.0)
    assert one(objective, 0.1, [0.9, 0.7])[:2] == ("minimum", "known_optimum")


@pytest.mark.parametrize(
    ("loss", "start"),
    [
        (lambda w: w[0] ** 4 / 4, [0.5]),  # flat minimum: convergence is algebraic
        pytest.param(lambda w: w[0] ** 4 / 4 + w[1] ** 2 / 2, [0.0, 0.5], marks=slow),  # ... on the other axis
        pytest.param(lambda w: jnp.exp(-w[0]) + w[1] ** 2, [25.0, 1.0], marks=slow),  # a valley without a minimum
        (lambda w: jnp.exp(-w[0]), [20.0]),
        pytest.param(  # separable data
            lambda w: jnp.mean(jnp.logaddexp(0.0, -w[0] * jnp.array([1.0, 2.0]))), [3.0], marks=slow
        ),
        pytest.param(lambda w: w[0] ** 3 / 3 + w[1] ** 2, [0.0, 1.0], marks=slow),  # degenerate, no minimum
    ],
)
def test_degenerate_or_missing_minima_are_undecided(loss, start):
    assert one(Function(loss, len(start)), 0.3, start, 3000)[0] == "undecided"


TAIL = Function(lambda w: w[0] ** 2 / 2 + jnp.exp(-w[1]), 2)
STEP = Function(lambda w: w[0] ** 2 / 2 + jnp.tanh(w[1]), 2)
SEPARABLE = Function(lambda w: jnp.mean(jnp.logaddexp(0.0, -jnp.array([[1.0, 0.2], [0.3, 1.0]]) @ w)), 2)
SOFTPLUS = Function(lambda w: jnp.logaddexp(0.0, -w[0]), 1)
SIGMOID = Function(lambda w: 1 / (1 + jnp.exp(-w[0])), 1)
QUINTIC = Function(lambda w: w[0] ** 2 / 2 + w[1] ** 5, 2)
SEXTIC = Function(lambda w: w[0] ** 2 / 2 - w[1] ** 6, 2)


@pytest.mark.parametrize(
    ("objective", "start"),
    [
        *((TAIL, [1.0, y]) for y in (17.0, 22.0, 25.0, 30.0, 36.0, 60.0)),
        *((STEP, [1.0, y]) for y in (10.0, 13.0, 15.0, 18.0)),
        *((SEPARABLE, [x, y]) for x, y in ((10.0, 15.0), (13.0, 15.0), (15.0, 15.0), (20.0, 20.0))),
        *((SOFTPLUS, [x]) for x in (20.0, 36.0, 40.0)),
        *(pytest.param(SIGMOID, [x], marks=slow) for x in (-40.0, -36.0)),
        pytest.param(Function(lambda w: -jnp.exp(-(w @ w) / 2), 2), [9.0, 0.0], marks=slow),
        pytest.param(Function(lambda w: w[0] ** 2 / 2 + 1e-12 * w[1], 2), [0.5, 1.0], marks=slow),
        *((QUINTIC, [1.0, y]) for y in (0.0, 1e-4, 1e-3)),
        *(pytest.param(SEXTIC, [1.0, y], marks=slow) for y in (0.0, 1e-4, 1e-3)),
        pytest.param(Function(lambda w: w[0] ** 2 / 2 + w[1] ** 12, 2), [1.0, 0.0], marks=slow),
    ],
)
def test_plateaus_tails_and_flat_directions_of_any_order_are_undecided(objective, start):
    assert one(objective, 1.0, start, 1500)[0] == "undecided"


@pytest.mark.parametrize(
    ("loss", "eta", "start"),
    [
        (lambda w: 0.5e8 * w[0] ** 2 + w[1] ** 2, 1e-8, [1.0, 1.0]),
        pytest.param(lambda w: 0.5 * w[0] ** 2 + 1e-8 * w[1] ** 2, 1.0, [1.0, 1.0], marks=slow),
        pytest.param(lambda w: 0.5 * w[0] ** 2 + 1e-12 * w[1] ** 2, 1.0, [1.0, 1.0], marks=slow),
    ],
)
def test_slow_directions_of_badly_conditioned_losses_are_not_forgotten(loss, eta, start):
    assert one(Function(loss, 2), eta, start, 2000)[0] == "undecided"


def test_badly_conditioned_regression_is_not_finished_early():
    Z = np.random.default_rng(0).standard_normal((50, 2))
    network = LinearNetwork((2, 1), Z * [1e5, 1], Z[:, 1:])
    eta = 0.5 * critical_step_size(network).step_size.value
    assert one(network, eta, [0.0, 0.0], 2000)[0] == "undecided"


@pytest.mark.parametrize(
    ("centre", "eta"), [(1e7, 0.01), pytest.param(1e8, 0.5, marks=slow), pytest.param(-3e6, 0.01, marks=slow)]
)
def test_a_minimum_far_away_is_not_divergence(centre, eta):
    assert one(Function(lambda w: 0.5 * (w[0] - centre) ** 2, 1), eta, [0.0], 6000)[0] == "minimum"


def test_tiny_inputs_are_not_divergence():
    X = 1e-7 * np.random.default_rng(1).standard_normal((50, 2))
    network = LinearNetwork((2, 1), X, X @ np.array([[1e7], [-2e7]]))
    eta = 0.5 * critical_step_size(network).step_size.value
    assert one(network, eta, [0.0, 0.0])[0] == "minimum"


def far_double_well(offset):
    return Function(lambda x: ((x[0] - offset) ** 2 - 1) ** 2 / 4, 1)


@pytest.mark.parametrize("offset", [pytest.param(0.0, marks=slow), pytest.param(1e3, marks=slow), 1e6])
def test_fates_do_not_depend_on_the_origin(offset):
    objective = far_double_well(offset)
    assert one(objective, 1.1, [offset + 0.4], 20_000)[:3] == ("periodic", "cycle_confirmed", 2)
    fate, _, _, steps = one(objective, 0.01, [offset + 0.5], 20_000)
    assert fate == "minimum" and steps > 500
    assert one(objective, 1.00001, [offset + 0.3], 5000)[0] == "undecided"


@pytest.mark.parametrize(
    ("loss", "eta", "start"),
    [
        (lambda x: -(x[0] ** 2) / 2 + x[0] ** 4 / 4, 5e-4, 1e-9),
        pytest.param(lambda x: 1e-8 * (x[0] ** 2 - 1) ** 2 / 4, 1.0, 1e-5, marks=slow),
        (DOUBLE_WELL.f, 0.1, 1e-30),
    ],
)
def test_an_orbit_that_is_leaving_a_maximum_is_not_at_it(loss, eta, start):
    fate = one(Function(loss, 1), eta, [start], 300)
    assert fate[:2] in (("undecided", "horizon_reached"), ("undecided", "near_unstable_orbit"))


def hyperbolic(w):
    return w[0] ** 2 - w[1] ** 2


@pytest.mark.parametrize(
    ("loss", "start"),
    [
        (hyperbolic, [1.0, 0.0]),  # on the stable manifold
        (hyperbolic, [0.0, 0.0]),
        pytest.param(lambda w: -(w[0] ** 2), [0.0], marks=slow),  # a maximum
        (lambda w: (w[0] ** 2 - 1) ** 2, [0.0]),
    ],
)
def test_saddles_and_maxima(loss, start):
    assert one(Function(loss, len(start)), 0.1, start, 2000)[:2] == ("saddle", "negative_hessian_eigenvalue")


def test_an_orbit_that_lingers_near_a_saddle_goes_on():
    saddle = Function(lambda w: w[0] ** 2 / 2 - w[1] ** 2 / 200 + w[1] ** 4 / 4, 2)
    for offset in (1e-13, 1e-300):
        found = one(saddle, 0.5, [1.0, offset], 200_000)
        assert found[0] == "minimum" and found[3] > 1000


def test_a_minimum_that_is_unstable_for_the_step_size():
    bowl = Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)
    assert one(bowl, 1.5, [1.0, 1.0])[:2] == ("minimum", "manifold_of_minima")  # sits on it exactly
    assert one(bowl, 1.5, [1.0 + 1e-9, 1.0])[0] != "minimum"


def test_divergence_of_a_quadratic():
    fate, reason, _, steps = one(Function(lambda w: w[0] ** 2 / 2, 1), 3.0, [1.0])
    assert (fate, reason) == ("diverged", "norm_keeps_growing")
    assert steps == np.ceil(np.log2(2e6)) + 7  # beyond 10^6 (1 + |start|) and growing eight times running


def test_an_update_that_is_not_a_number():
    fate, reason, _, steps = one(Function(lambda w: w[0] + jnp.sqrt(w[0]), 1), 1.0, [1.0])
    assert (fate, reason, steps) == ("diverged", "update_undefined", 2)


class Root(Map):
    """Linear but for a root whose derivative is not finite at the fixed point, where Newton's method arrives."""

    objective: AbstractObjective

    def update(self, state):
        return 0.5 * state + 0 * jnp.sqrt(jnp.abs(state))


def test_where_there_is_no_derivative_nothing_is_decided():
    result = ensemble(Root(Function(lambda x: x @ x, 1)), np.array([[1.0], [0.0]]), 600)
    assert set(reason_names(result)) == {"not_differentiable"}
    peaked = Function(lambda w: w[0] ** 2 + jnp.abs(w[1]) ** 1.5, 2)
    assert one(peaked, 0.1, [1.0, 0.0], 600)[:2] == ("undecided", "not_differentiable")


def test_a_neutral_family_of_two_cycles_is_periodic_however_the_kink_is_written():
    # DG^2 is the identity: exactly, or up to rounding.
    starts = np.linspace(-0.25, 0.25, 8)[:, None]
    for modulus in (lambda x: jnp.abs(x[0]), lambda x: jnp.sqrt(x[0] ** 2)):
        result = ensemble(GradientDescent(Function(modulus, 1), 0.3), starts, 600)
        assert set(fate_names(result)) == {"periodic"} and set(result.period.values) == {2}


class Countdown(Map):
    """Becomes infinite after exactly as many steps as the first component says."""

    objective: AbstractObjective

    def update(self, state):
        return jnp.where(state[0] > 1, state - jnp.array([1.0, 0.0]), jnp.inf)


COUNTDOWN = Countdown(Function(lambda w: w @ w, 2))


@pytest.mark.parametrize("steps", [1, 2, 67, 68, 255, 256, 257, 600])
def test_the_step_at_which_the_verdict_falls_is_exact(steps):
    result = ensemble(COUNTDOWN, np.array([[float(steps), 5.0]]))
    assert fate_names(result)[0] == "diverged"
    assert int(result.steps[0]) == steps


class Rotation(Map):
    """A rigid rotation by a rational angle: every orbit is periodic and neutral."""

    objective: AbstractObjective
    turns: int

    def update(self, state):
        angle = 2 * jnp.pi / self.turns
        return jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]]) @ state


def test_neutral_cycles_are_not_called_attracting():
    result = ensemble(Rotation(Function(lambda w: w @ w, 2), 5), np.array([[1.0, 0.0]]), 2000)
    # The identity is the fifth iterate: a verified family of cycles with nothing left to judge.
    assert fate_names(result)[0] in ("periodic", "undecided")
    if fate_names(result)[0] == "periodic":
        assert int(result.period[0]) == 5


def test_horizon():
    assert one(DOUBLE_WELL, 1e-6, [0.4], 50) == ("undecided", "horizon_reached", 0, 50)


def test_results_do_not_depend_on_the_company():
    objective = Function(lambda w: jnp.sum((w[0] * w[1:] - jnp.array([1.0, 0.3])) ** 2) + jnp.tanh(w[1]), 3)
    starts = gaussian_starts(600, 3)
    map_ = GradientDescent(objective, 0.45)
    together = ensemble(map_, starts, 1500)
    order = np.random.default_rng(0).permutation(600)
    shuffled = ensemble(map_, starts[order], 1500)
    alone = ensemble(map_, starts[[417]], 1500)
    for name in ("fate", "reason", "period", "steps", "loss", "gradient_norm", "state"):
        np.testing.assert_array_equal(together[name].values[order], shuffled[name].values)
        np.testing.assert_array_equal(together[name].values[417], alone[name].values[0])


@pytest.mark.filterwarnings("ignore:the starts are float32")
def test_single_precision_orbits_are_judged_in_double_precision():
    result = ensemble(GradientDescent(DOUBLE_WELL, 0.5), np.array([[0.4]], np.float32))
    assert result.state.dtype == np.float32
    assert fate_names(result)[0] == "minimum"


@slow
@pytest.mark.filterwarnings("ignore:the starts are float32")
def test_single_precision_orbits_on_a_manifold_of_minima():
    valley = Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)
    starts = gaussian_starts(60, 2, scale=0.5).astype(np.float32)
    for eta in (0.2, 0.5, 0.9):
        assert "saddle" not in fate_names(ensemble(GradientDescent(valley, eta), starts))
    result = ensemble(GradientDescent(valley, 0.3), starts)
    assert set(reason_names(result)) == {"manifold_of_minima"}
    result = ensemble(GradientDescent(valley, 1.1), starts)
    assert np.mean((fate_names(result) == "periodic") & (result.period == 2)) > 0.8


def test_single_precision_starts_are_warned_about():
    with pytest.warns(UserWarning, match="the starts are float32"):
        ensemble(GradientDescent(DOUBLE_WELL, 0.1), np.ones((1, 1), np.float32), 50)


def test_per_sample_objectives_and_progress():
    objective = Objective(
        lambda w, x, y: (w[0] * x + w[1] - y) ** 2, np.zeros(2), data=(np.arange(4.0), np.ones(4))
    )
    seen = []
    result = ensemble(
        GradientDescent(objective, 0.05),
        gaussian_starts(5, 2),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert set(fate_names(result)) == {"minimum"}
    np.testing.assert_allclose(result.state, np.tile([0.0, 1.0], (5, 1)), atol=1e-4)
    assert seen[-1] == (5, 5)
    assert result.fate.attrs["flag_meanings"].split()[1] == "minimum"
    assert result.attrs["status"] == "computed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thetas": np.ones(2)}, r"thetas has shape \(2,\), expected \(starts, 2\)"),
        ({"thetas": np.ones((3, 4))}, "thetas has shape"),
        ({"thetas": np.ones((0, 2))}, "thetas has shape"),
        ({"thetas": np.array([[1.0, np.nan]])}, "first in start 0"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_steps": 1.5}, "max_steps"),
        ({"step_tolerance": 0.0}, "step_tolerance"),
        ({"period_tolerance": np.nan}, "period_tolerance"),
        ({"max_period": 0}, "max_period"),
        ({"max_period": 1000}, "max_period"),
        ({"escape_radius": -1.0}, "escape_radius"),
    ],
)
def test_bad_input_names_the_argument(two_factors, arguments, message):
    with pytest.raises(ValueError, match=message):
        ensemble(GradientDescent(two_factors, 0.1), **{"thetas": np.ones((1, 2)), **arguments})


def test_integer_starts_are_refused(two_factors):
    with pytest.raises(TypeError, match="int64"):
        ensemble(GradientDescent(two_factors, 0.1), np.ones((1, 2), int))

"""Chaotic, quasiperiodic and marginal trajectories, and what must not be taken for them."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gdmap import (
    Function,
    GradientDescent,
    LinearNetwork,
    Map,
    Objective,
    Optimiser,
    Torus,
    critical_step_size,
    ensemble,
    fate_names,
    gaussian_starts,
    reason_names,
)
from gdmap.ensembles.aperiodic import _returns_as_on_a_torus
from gdmap.objectives import AbstractObjective

CUBIC = Function(lambda x: x[0] ** 3 / 3 - x[0] ** 2 / 2, 1)
WELL = Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
COSINE = Function(lambda x: jnp.cos(x[0]), 1)
TWO_FACTORS = Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)
PLANE = Function(lambda w: w @ w, 2)


def fates(map_, starts, max_steps=10_000):
    result = ensemble(map_, np.asarray(starts, float), max_steps)
    return list(fate_names(result)), list(reason_names(result)), result


# Chaos -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step_size", "fate", "period"),
    [
        (2.57, "chaotic", 0),  # just beyond the accumulation of period doublings: narrow bands
        (2.8282, "chaotic", 0),  # just below the fold at sqrt 8: long nearly periodic stretches
        (2.8385, "periodic", 3),
        (2.9, "chaotic", 0),
    ],
)
def test_cubic_loss(step_size, fate, period):
    found, _, result = fates(GradientDescent(CUBIC, step_size), [[0.3], [0.5]])
    assert found == [fate] * 2
    assert list(result.period) == [period] * 2


def test_a_chaotic_transient_is_not_chaos():
    # Just beyond full chaos orbits leave after some 100,000 steps: the second within eight times the horizon.
    map_ = GradientDescent(CUBIC, 3 + 1e-9)
    found, reason, result = fates(map_, [[0.1], [0.2]])
    assert (found, reason) == (["chaotic", "undecided"], ["positive_exponent", "horizon_reached"])
    assert list(result.steps) == [10_000] * 2
    # When it leaves is a matter of rounding, hence of the engine; that it does within ten mean times is not.
    assert fates(map_, [[0.2]], 1_000_000)[0] == ["diverged"]


def test_the_verdict_leaves_steps_and_state_at_the_horizon():
    map_ = GradientDescent(CUBIC, 2.9)
    found, reason, result = fates(map_, [[0.3]], 1000)
    assert (found, reason, int(result.steps[0])) == (["chaotic"], ["positive_exponent"], 1000)
    state = np.array([0.3])
    for _ in range(20):
        state = map_.step(state)
    _, _, early = fates(map_, [[0.3]], 20)
    np.testing.assert_allclose(early.state[0], state, rtol=1e-9)


def test_henon_map():
    map_ = Optimiser(CUBIC, optax.sgd, learning_rate=np.sqrt(6.09), momentum=-0.3)
    found, _, _ = fates(map_, [[0.95], [1.05], [30.0]], 3000)
    assert found == ["chaotic", "chaotic", "diverged"]


def test_chaos_along_a_family_and_on_an_invariant_line():
    # Chaos on a = b attracts at 1.5; results do not depend on the company.
    starts = np.array([[0.4, 0.4], [0.9, 0.7], [1.2, 1.0]])
    map_ = GradientDescent(TWO_FACTORS, 1.5)
    found, _, together = fates(map_, starts, 3000)
    assert found == ["chaotic"] * 3
    _, _, alone = fates(map_, starts[1:2], 3000)
    assert int(alone.fate[0]) == int(together.fate[1])
    np.testing.assert_array_equal(alone.state[0], together.state[1])


class Product(Map):
    """A regular rotation beside an expanding direction that the orbit does not use."""

    objective: AbstractObjective

    def update(self, state):
        x, y, z = state
        c, s = jnp.cos(2.0), jnp.sin(2.0)
        return jnp.stack([c * x - s * y, s * x + c * y, 1.1 * z - z**3])


def test_an_orbit_on_a_repelling_invariant_set_is_not_chaotic():
    # The exponent is log 1.1, the motion a rotation: displaced, the orbit leaves the plane z = 0.
    found, _, _ = fates(Product(Function(lambda w: w @ w, 3)), [[1.0, 0.0, 0.0]], 2000)
    assert found[0] not in ("chaotic", "marginal")


# Quasiperiodic motion --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("K", [0.3, 0.9])
def test_islands_of_the_standard_map(K):
    map_ = Optimiser(COSINE, optax.sgd, learning_rate=K, momentum=1.0)
    found, reason, _ = fates(map_, [[np.pi + 0.3], [np.pi + 1.0], [np.pi + 1.8]], 5000)
    assert found == ["quasiperiodic"] * 3 and set(reason) == {"regular_recurrence"}


def test_winding_orbits_on_a_torus():
    # Angles jump where they are taken modulo their period; the orbit does not.
    circle = Torus(GradientDescent(Function(lambda x: jnp.cos(x[0]) / 3 - 0.618 * x[0], 1), 0.9), [2 * np.pi])
    assert fates(circle, [[0.3], [2.0]], 1000)[0] == ["quasiperiodic"] * 2


@pytest.mark.slow
def test_winding_orbits_of_the_standard_map():
    map_ = Torus(Optimiser(COSINE, optax.sgd, learning_rate=0.5, momentum=1.0), [2 * np.pi, np.inf])
    assert fates(map_, [[1.7], [0.25]], 1000)[0][0] == "quasiperiodic"


@pytest.mark.parametrize(
    ("objective", "others"),
    [
        (CUBIC, []),
        # Where the dimension does not exclude a torus.
        pytest.param(
            Function(lambda w: w[0] ** 3 / 3 - w[0] ** 2 / 2 + w[1] ** 2 / 4, 2), [1.0], marks=pytest.mark.slow
        ),
    ],
)
def test_a_cascade_of_period_doublings_has_no_torus(objective, others):
    # A cycle of period 2048: averages agree and the exponent is nearly zero, as on a torus.
    starts = [[x, *others] for x in (0.1, 0.3, 0.6)]
    found, _, _ = fates(GradientDescent(objective, 3.569945671870944901842 - 1e-7 - 1), starts, 20_000)
    assert set(found) <= {"periodic", "undecided"}


def test_returns_on_tori_and_on_odometers():
    time = np.arange(4096)
    for frequencies in ([(np.sqrt(5) - 1) / 2], [np.e], [0.4999], [np.sqrt(2), np.sqrt(3)]):
        angle = 2 * np.pi * np.outer(time, frequencies)
        assert _returns_as_on_a_torus(
            np.concatenate([np.cos(angle) + 0.3 * np.cos(2 * angle + 1), np.sin(angle)], 1)
        )
    for base in (1, 3, 5):
        # An odometer: digits of the time, ever smaller in effect; the coarsest one of another base.
        digits = time[:, None] // base // 2 ** np.arange(12) % 2
        assert not _returns_as_on_a_torus((digits @ 2.5 ** -np.arange(12.0) + time % base)[:, None])


class InvariantCircle(Map):
    """Neimark-Sacker at ``mu = 0``: ``|z| -> (1 + mu - |z|^2) |z|`` with a rotation that depends on ``|z|``."""

    objective: AbstractObjective
    mu: np.ndarray

    def update(self, state):
        square = state @ state
        angle = 2.0 + 0.3 * square
        c, s = jnp.cos(angle), jnp.sin(angle)
        return (1 + self.mu - square) * jnp.stack([c * state[0] - s * state[1], s * state[0] + c * state[1]])


@pytest.mark.parametrize(("mu", "fate"), [(0.05, "quasiperiodic"), (0.0, "marginal"), (-0.05, "minimum")])
def test_neimark_sacker(mu, fate):
    found, _, _ = fates(InvariantCircle(PLANE, np.asarray(mu)), [[0.5, 0.5], [0.3, 0.1]], 4000)
    assert found == [fate] * 2


class Spiral(Map):
    """A rotation by ``angle`` with every step longer or shorter by ``factor``."""

    objective: AbstractObjective
    factor: np.ndarray
    angle: np.ndarray

    def update(self, state):
        c, s = jnp.cos(self.angle), jnp.sin(self.angle)
        return self.factor * jnp.stack([c * state[0] - s * state[1], s * state[0] + c * state[1]])


@pytest.mark.parametrize("factor", [1 - 1e-3, 1 - 1e-5, 1 - 1e-9, 1 + 1e-9, 1 + 1e-5])
def test_slow_spirals_are_not_quasiperiodic(factor):
    assert fates(spiral(factor, 2.0), [[1.0, 0.0]], 1000)[0] == ["undecided"]


def spiral(factor, angle):
    return Spiral(PLANE, np.asarray(factor), np.asarray(angle))


def test_rotations():
    assert fates(spiral(1.0, 2.0), [[1.0, 0.0]], 1000)[0] == ["quasiperiodic"]
    # So slow that no return is seen.
    assert fates(spiral(1.0, 1e-4), [[1.0, 0.0]], 1000)[0] == ["undecided"]


# Thresholds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step_size", "fate"),
    [(1.0, "marginal"), (1 - 1e-7, "undecided"), (1 + 1e-7, "undecided"), (1 - 1e-4, "undecided")],
)
def test_at_the_first_period_doubling(step_size, fate):
    assert fates(GradientDescent(WELL, step_size), [[0.4], [0.7]])[0] == [fate] * 2


def test_at_the_second_period_doubling():
    # The 2-cycle is marginal: the halfway points of the two branches of the nearby 4-cycle.
    found, reason, _ = fates(GradientDescent(WELL, np.sqrt(5) - 1), [[0.4], [0.9]], 20_000)
    assert found == ["marginal"] * 2 and set(reason) == {"marginal_multiplier"}
    assert fates(GradientDescent(WELL, np.sqrt(5) - 1 + 1e-7), [[0.4]], 20_000)[0] == ["undecided"]


def test_a_family_of_minima_does_not_make_an_orbit_marginal():
    # mu = 1 along the minima is no threshold; at 1 the minimum (1, 1) has mu = -1 across.
    assert set(fates(GradientDescent(TWO_FACTORS, 0.5), [[0.4, 0.4], [1.3, 0.8]], 3000)[0]) == {"minimum"}
    assert fates(GradientDescent(TWO_FACTORS, 1.0), [[0.4, 0.4], [0.7, 0.7]])[0] == ["marginal"] * 2
    assert set(fates(GradientDescent(TWO_FACTORS, 1.1), [[0.4, 0.4], [1.3, 0.8]], 3000)[0]) == {"periodic"}


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.99999, 1.00001])
def test_linear_network_near_its_critical_step_size(factor):
    network = LinearNetwork((2, 2, 2), np.eye(2), np.diag([1.0, 0.4]))
    step_size = factor * critical_step_size(network).step_size.value
    found, _, _ = fates(GradientDescent(network, step_size), gaussian_starts(12, 8, scale=0.3), 3000)
    assert not {"chaotic", "quasiperiodic", "marginal"} & set(found)


@pytest.mark.parametrize(
    ("loss", "step_size", "start"),
    [
        (lambda w: jnp.exp(-w[0]) + w[1] ** 2, 0.999, [3.0, 1.0]),  # a valley without end, oscillations across
        pytest.param(  # leaving a saddle
            lambda w: w[0] ** 2 / 2 - 5e-5 * w[1] ** 2 + w[1] ** 4, 1.9999, [1e-3, 1e-9], marks=pytest.mark.slow
        ),
        (lambda w: (w[0] * w[1] - 1) ** 2 / 2 + 1e-5 * w[0] ** 2, 1.2, [0.9, 0.8]),  # a cycle that drifts
    ],
)
def test_transients_and_drifts_are_nothing_else(loss, step_size, start):
    found, _, _ = fates(GradientDescent(Function(loss, 2), step_size), [start], 2000)
    assert found[0] in ("undecided", "periodic", "minimum")


def test_a_drifting_cycle_is_undecided():
    # A 2-cycle in x, carried along y so slowly that averages agree to ten digits.
    drifting = Function(lambda w: (w[0] ** 2 - 1) ** 2 / 4 + 1e-13 * w[1], 2)
    assert fates(GradientDescent(drifting, 1.1), [[0.4, 1.0]], 2000)[0] != ["quasiperiodic"]


def cubic_beside_bowl(w, curvature):
    return w[0] ** 3 / 3 - w[0] ** 2 / 2 + curvature * w[1] ** 2


def test_chaos_on_a_drift_is_undecided_until_the_drift_ends():
    for curvature, fate in ((1e-5, "undecided"), (1e-2, "chaotic")):
        loss = Objective(cubic_beside_bowl, np.zeros(2), data=(np.array([curvature]),))
        assert fates(GradientDescent(loss, 2.9), [[0.3, 5.0]], 2000)[0] == [fate]

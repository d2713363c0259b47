"""Continuation of periodic orbits: where they bifurcate, how they end, and what cannot be followed."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gdmap import Function, GradientDescent, LinearNetwork, Objective, Optimiser
from gdmap.continuation.follow import continue_orbit
from gdmap.continuation.switching import switch_branch
from gdmap.orbits.periodic_orbit import orbit_at

CUBIC = Function(lambda x: x[0] ** 3 / 3 - x[0] / 4, 1)  # lam = 1 at the minimum 1/2
WELL = Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
FACTORS = Function(lambda x: (x[0] * x[1] - 1) ** 2 / 2, 2)


def fixed_point(objective, step_size, theta):
    return orbit_at(GradientDescent(objective, step_size), np.asarray(theta, float))


def kinds(branch):
    return [event.kind for event in branch.events]


def iterated(map_, state, steps):
    for _ in range(steps):
        state = map_.step(state)
    return np.asarray(state)


@pytest.fixture(scope="module")
def well():
    return continue_orbit(fixed_point(WELL, 0.5, [1.0]), bounds=(0.2, 2.0))


@pytest.fixture(scope="module")
def doubled(well):
    return switch_branch(well.events[0])


def test_minimum_of_the_double_well_doubles_at_two_over_sharpness(well):
    assert kinds(well) == ["period-doubling"]
    event = well.events[0]
    assert abs(event.parameter - 1) <= max(event.error, 1e-13) < 1e-10
    assert event.criticality == "supercritical" and event.coefficient.value == pytest.approx(8, rel=1e-10)
    assert well.parameter[0] == 0.2 and well.parameter[-1] == 2.0
    assert well.ended["start"].reason == well.ended["end"].reason == "bound"
    np.testing.assert_allclose(well.multipliers[:, 0], 1 - 2 * well.parameter, atol=1e-12)
    np.testing.assert_array_equal(well.stable, well.parameter < 1)


def test_multipliers_along_the_two_cycle_are_the_formula(doubled):
    beyond = doubled.parameter[1:]
    np.testing.assert_allclose(doubled.multipliers[1:, 0], 9 - 2 * (1 + beyond) ** 2, atol=1e-9)
    assert kinds(doubled) == ["period-doubling"]
    assert doubled.events[0].parameter == pytest.approx(5**0.5 - 1, abs=1e-11)
    assert doubled.ended["start"].reason == "period halves"
    np.testing.assert_allclose(doubled.points[0], [[1.0], [1.0]], atol=1e-12)


def test_orbits_of_a_branch_are_solved_for_again(doubled):
    (orbit,) = doubled.at(1.1)
    assert orbit.period == 2 and orbit.stable
    assert orbit.multipliers[0] == pytest.approx(0.18, abs=1e-8)
    assert doubled.orbit(5).residual < 1e-12
    assert doubled.at(0.5) == []


def test_a_bifurcation_at_the_start_is_found_once_and_its_coefficient_is_that_of_the_cycle(doubled):
    (event,) = doubled.events
    start = doubled.at(event.parameter)[0]
    assert start.stability == "marginal" and doubled.at(1.0) == []
    for points in (start.points, start.points[::-1]):
        branch = continue_orbit(orbit_at(start.map, points), bounds=(1.1, 1.3))
        assert kinds(branch) == ["period-doubling"]
        assert branch.events[0].coefficient.value == pytest.approx(event.coefficient.value, rel=1e-9)
    # xi is the root mean square displacement of the cycle: |x - y|^2 of the two cycles that part, over 4.
    born = switch_branch(event, bounds=(1.0, 1.2368), max_points=40)
    orbit = born.at(event.parameter - 1e-4 / event.speed.real)[0]
    apart = np.mean((orbit.points[:2] - orbit.points[2:]) ** 2) / 4
    assert apart == pytest.approx(1e-4 / event.coefficient.value, rel=1e-3)


def test_every_doubling_is_seen_by_iteration(doubled):
    event = doubled.events[0]
    for offset, period in ((-0.02, 2), (0.02, 4)):
        map_ = GradientDescent(WELL, event.parameter + offset)
        state = iterated(map_, event.points[0] + 1e-3, 3000)
        once, twice = iterated(map_, state, 2), iterated(map_, state, 4)
        assert np.abs(twice - state).max() < 1e-9
        assert (np.abs(once - state).max() < 1e-9) == (period == 2)


@pytest.mark.slow
def test_going_back_the_two_cycle_ends_at_the_doubling_it_was_born_at():
    map_ = GradientDescent(WELL, 1.1)
    state = iterated(map_, np.array([1.2]), 300)
    branch = continue_orbit(orbit_at(map_, np.stack([state, map_.step(state)])), bounds=(0.5, 1.2))
    assert branch.ended["start"].reason == "period halves"
    first = branch.events[0]
    assert (first.kind, first.period) == ("period-doubling", 1)
    assert first.parameter == pytest.approx(1, abs=1e-11)


def test_the_window_of_period_three():
    map_ = GradientDescent(CUBIC, 2.835)
    state = iterated(map_, np.array([0.1]), 1500)
    points = np.stack([iterated(map_, state, k) for k in range(3)])
    branch = continue_orbit(orbit_at(map_, points), bounds=(2.7, 2.9))
    assert kinds(branch) == ["fold", "period-doubling"]
    fold, doubling = branch.events
    assert fold.parameter == pytest.approx(8**0.5, abs=1e-11)
    assert fold.multiplier == pytest.approx(1, abs=1e-6) and fold.criticality is None
    assert doubling.parameter == pytest.approx(2.8414990075, abs=1e-9)
    assert len(branch.at(2.835)) == 2 and branch.at(2.8) == []
    assert len(branch.at(8**0.5 + 1e-6)) == 2 and branch.at(8**0.5 - 1e-9) == []
    with pytest.raises(ValueError, match="no other branch leaves at a fold"):
        switch_branch(fold)


def test_sine_descent_breaks_the_symmetry_of_its_two_cycle_at_pi():
    # x -> x - eta sin x: the cycle {x, -x} has the multiplier (1 - eta cos x)^2, which is 1 at x = pi/2, eta = pi.
    branch = continue_orbit(fixed_point(Function(lambda x: -jnp.cos(x[0]), 1), 1.5, [0.0]), bounds=(1.0, 4.0))
    symmetric = switch_branch(branch.events[0])
    assert kinds(symmetric) == ["branch-point"]
    event = symmetric.events[0]
    assert event.form == "pitchfork" and event.criticality == "supercritical"
    assert abs(event.parameter - np.pi) <= max(10 * event.error, 1e-13) < 1e-10
    np.testing.assert_allclose(np.abs(event.points[:, 0]), np.pi / 2, atol=1e-9)
    broken = switch_branch(event, bounds=(1.0, 3.4))
    assert broken.parameter.min() > np.pi - 1e-9
    away = np.abs(broken.points.sum(axis=(1, 2)))
    assert away[0] > 0.5 and away[-1] > 0.5 and away[broken.start] < 1e-9
    # xi -> (1 + eps) xi + b xi^3 with eps = speed (eta - pi): xi^2 = -eps / b.
    excess = broken.parameter - np.pi
    near = (excess > 1e-6) & (excess < 0.01)
    xi = np.abs(broken.points[near, 0, 0]) - np.pi / 2
    assert near.any()
    expected = -event.speed.real / event.coefficient.value
    np.testing.assert_allclose(xi**2 / excess[near], expected, rtol=0.1)


def tilted(c):
    return GradientDescent(Function(lambda x: x[0] ** 3 / 3 - c * x[0] ** 2 / 2, 1), 0.3)


@pytest.mark.slow
def test_branches_exchange_stability_at_a_transcritical_point():
    branch = continue_orbit(orbit_at(tilted(-0.5), np.zeros(1)), tilted, (-1.0, 1.0), value=-0.5)
    (event,) = branch.events
    assert (event.kind, event.form, event.criticality) == ("branch-point", "transcritical", None)
    assert abs(event.parameter) < 1e-11 and branch.parameter_name == "tilted"
    other = switch_branch(event)
    np.testing.assert_allclose(other.points[:, 0, 0], other.parameter, atol=1e-11)
    np.testing.assert_array_equal(other.stability[other.parameter > 0.01], "stable")
    np.testing.assert_array_equal(other.stability[other.parameter < -0.01], "unstable")


def quartic(c):
    return GradientDescent(Function(lambda x: x[0] ** 4 / 4 - c * x[0] ** 2 / 2, 1), 0.3)


@pytest.mark.slow
def test_a_fork_followed_back_passes_through_its_pitchfork():
    branch = continue_orbit(orbit_at(quartic(0.5), np.array([0.5**0.5])), quartic, (-1.0, 1.0), value=0.5)
    (event,) = branch.events
    assert (event.kind, event.form, event.criticality) == ("branch-point", "pitchfork", "supercritical")
    assert abs(event.parameter) < 1e-11
    assert branch.parameter[0] == branch.parameter[-1] == 1.0
    np.testing.assert_allclose(branch.points[[0, -1], 0, 0] ** 2, 1.0, atol=1e-10)
    assert np.prod(branch.points[[0, -1], 0, 0]) < 0


@pytest.mark.parametrize("beta", [pytest.param(0.3, marks=pytest.mark.slow), 0.9])
def test_heavy_ball_doubles_where_henon_does(beta):
    map_ = Optimiser(CUBIC, optax.sgd, learning_rate=1.5, momentum=beta)
    start = orbit_at(map_, np.asarray(map_.initial_state(np.array([0.5]))))
    branch = continue_orbit(start, bounds=(1.0, 4.5), until="period-doubling")
    first = branch.events[0]
    assert first.parameter == pytest.approx(2 * (1 + beta), abs=1e-10)
    cycles = switch_branch(first, until="period-doubling")
    second = cycles.events[0]
    assert second.parameter == pytest.approx((6 + 8 * beta + 6 * beta**2) ** 0.5, abs=1e-9)
    if beta == 0.3:
        varied = continue_orbit(start, "momentum", (0.01, 0.9), direction="down")
        assert varied.events == [] and varied.ended["end"].reason == "not followed"
    else:
        start = orbit_at(map_.with_keywords(learning_rate=3.0), start.points)
        varied = continue_orbit(start, "momentum", (0.05, 0.95))
        assert [event.parameter for event in varied.events] == pytest.approx([0.5], abs=1e-10)


def test_a_minimum_of_a_manifold_stays_put():
    theta = np.array([1.2, 1 / 1.2])
    branch = continue_orbit(fixed_point(FACTORS, 0.5, theta), bounds=(0.2, 1.2))
    assert branch.neutral_dimension == 1 and branch.multipliers.shape[1] == 1
    np.testing.assert_allclose(branch.points[:, 0], np.broadcast_to(theta, (len(branch.parameter), 2)), atol=1e-12)
    (event,) = branch.events
    assert event.parameter == pytest.approx(2 / (theta @ theta), abs=1e-11)
    # No cycle exists beside a minimum at which the sharpness has a slope along the manifold.
    assert event.criticality == "degenerate" and event.drift > 0.1
    with pytest.raises(ValueError, match="drifts along the family"):
        switch_branch(event)


def test_the_cycle_of_two_factors_is_born_at_the_flattest_minimum():
    branch = continue_orbit(fixed_point(FACTORS, 0.9, [1.0, 1.0]), bounds=(0.5, 1.3))
    cycles = switch_branch(branch.events[0])
    assert cycles.neutral_dimension == 0
    eta = cycles.parameter[1:]
    expected = np.stack([9 - 2 * (1 + eta) ** 2, 3 - 2 * eta], 1)
    found = np.sort(cycles.multipliers[1:].real, axis=1)
    np.testing.assert_allclose(found, np.sort(expected, axis=1), atol=1e-8)
    (event,) = [event for event in cycles.events if event.kind == "period-doubling"]
    assert event.parameter == pytest.approx(5**0.5 - 1, abs=1e-10)


# Products of N factors at 1.05 times 2 / N: the two points of the cycle on the diagonal.
ON_THE_DIAGONAL = {
    2: (0.8728715609, 1.0910894512),
    3: (0.9326137046, 1.0475879443),
    4: (0.9541430900, 1.0322128415),
    5: (0.9652443672, 1.0243476282),
}


@pytest.mark.slow
@pytest.mark.parametrize("factors", [2, 3, 4, 5])
def test_the_cycles_of_products_of_several_factors(factors):
    objective = Function(lambda x: (jnp.prod(x) - 1) ** 2 / 2, factors)
    start = fixed_point(objective, 1.8 / factors, np.ones(factors))
    assert start.neutral_dimension == factors - 1
    branch = continue_orbit(start, bounds=(1.7 / factors, 2.2 / factors))
    assert branch.events[0].parameter == pytest.approx(2 / factors, abs=1e-11)
    orbit = switch_branch(branch.events[0]).at(2.1 / factors)[0]
    np.testing.assert_allclose(np.sort(orbit.points[:, 0]), ON_THE_DIAGONAL[factors], atol=2e-10)
    np.testing.assert_allclose(orbit.points, np.broadcast_to(orbit.points[:, :1], orbit.points.shape), atol=1e-9)
    assert orbit.stable and orbit.neutral_dimension == 0


@pytest.mark.slow
def test_a_family_of_cycles_of_a_matrix_network_is_followed_with_its_dimension():
    map_ = GradientDescent(LinearNetwork.whitened((2, 2, 2), np.diag([1.0, 0.5])), 1.1)
    generic = 0.05 * np.random.default_rng(0).standard_normal(8)
    state = iterated(map_, np.array([1, 0, 0, 0.7, 1, 0, 0, 0.7]) + generic, 1500)
    orbit = orbit_at(map_, np.stack([state, map_.step(state)]))
    assert orbit.stable and orbit.neutral_dimension == 2
    branch = continue_orbit(orbit, bounds=(0.9, 1.3))
    assert branch.neutral_dimension == 2 and branch.multipliers.shape[1] == 6
    born, doubling = branch.events
    assert (born.period, doubling.period) == (1, 2)
    assert born.parameter == pytest.approx(1, abs=1e-10)
    assert doubling.parameter == pytest.approx(5**0.5 - 1, abs=1e-10)
    # Another member, followed by iteration alone, has the same multipliers.
    middle = branch.at(1.05)[0]
    assert middle.neutral_dimension == 2 and middle.stable
    assert np.min(np.abs(middle.multipliers - (9 - 2 * 2.05**2))) < 1e-8


def two_wells(x, second):
    return ((x[0] ** 2 - 1) ** 2 + second * (x[1] ** 2 - 1) ** 2) / 4


def test_several_crossings_within_one_step_are_told_apart():
    scaled, equal = (Objective(two_wells, np.zeros(2), data=(np.array([s]),)) for s in (1.0000001, 1.0))
    branch = continue_orbit(fixed_point(scaled, 0.5, [1.0, 1.0]), bounds=(0.2, 2.0))
    assert kinds(branch) == ["period-doubling"] * 2
    assert [event.parameter for event in branch.events] == pytest.approx([1 / 1.0000001, 1.0], abs=1e-12)
    branch = continue_orbit(fixed_point(equal, 0.5, [1.0, 1.0]), bounds=(0.2, 2.0))
    (event,) = branch.events
    assert event.kind == "period-doubling" and event.multiplicity == 2 and event.coefficient is None
    assert event.parameter == pytest.approx(1, abs=1e-11)
    with pytest.raises(ValueError, match="2 multipliers cross together"):
        switch_branch(event)


@pytest.mark.slow
def test_three_that_cross_together_are_one_event():
    three = Function(lambda x: x @ x / 2 + jnp.sum(x**4), 3)
    (event,) = continue_orbit(fixed_point(three, 0.5, np.zeros(3)), bounds=(0.1, 3.0)).events
    assert event.multiplicity == 3 and event.criticality == "degenerate"


# Sharpness 1, so that heavy ball with step size eta and momentum beta has trace 1 + beta - eta, determinant beta.
BENT = Function(lambda x: x[0] ** 2 / 2 + 0.7 * x[0] ** 3 / 3 - 0.4 * x[0] ** 4 / 4, 1)


@pytest.mark.parametrize("eta", [3.99, 3.0, pytest.param(2.0, marks=pytest.mark.slow), 2.3])
def test_heavy_ball_leaves_its_stable_momenta_where_it_begins_to_preserve_area(eta):
    map_ = Optimiser(BENT, optax.sgd, learning_rate=eta, momentum=0.9)
    branch = continue_orbit(orbit_at(map_, np.zeros(2)), "momentum", (0.8, 1.1))
    if eta == 3.99:
        # A complex pair meets below -1 and one of the two comes back into the circle, all within one step.
        assert kinds(branch) == ["period-doubling", "neimark-sacker"]
        assert branch.events[0].parameter == pytest.approx(eta / 2 - 1, abs=1e-12)
    event = branch.events[-1]
    assert event.kind == "neimark-sacker" and abs(event.parameter - 1) <= event.error < 1e-10
    # No circle attracts or repels in a map that preserves area: Re d = 0.
    assert event.criticality == "degenerate"
    assert event.resonance == {3.0: 3, 2.0: 4}.get(eta)
    if eta == 3.0:
        assert event.coefficient is None
    else:
        assert event.coefficient.lower <= 0 <= event.coefficient.upper < 1e-9
    assert ("alone does not decide" in event.explain()) == (eta == 2.0)


def nearly_equal(x):
    return sum(c * (t**2 / 2 + 0.5 * t**3 / 3 - 0.3 * t**4 / 4) for c, t in zip((1.0, 1.03), x, strict=True))


def test_a_bifurcation_close_to_where_the_branch_is_born_is_not_passed_over():
    # Two separate coordinates with sharpnesses 1 and 1.03: the cycle of the second loses the first at eta = 2.
    branch = continue_orbit(fixed_point(Function(nearly_equal, 2), 1.8, [0.0, 0.0]), bounds=(1.7, 2.3))
    cycles = switch_branch(branch.events[0])
    (event,) = cycles.events
    assert (event.kind, event.form, event.criticality) == ("branch-point", "pitchfork", "supercritical")
    assert abs(event.parameter - 2) <= event.error < 1e-10
    assert set(cycles.stability[1:][cycles.parameter[1:] < 1.9999]) == {"stable"}
    assert np.all(np.diff(cycles.parameter) > 0)
    asked = switch_branch(branch.events[0], until="branch-point")
    assert asked.ended["end"].reason == "event" and kinds(asked) == ["branch-point"]
    assert asked.parameter[-1] < 2.1


@pytest.mark.parametrize(
    "size", [1e-8, pytest.param(1e-4, marks=pytest.mark.slow), pytest.param(1e6, marks=pytest.mark.slow)]
)
def test_a_branch_through_the_origin_has_the_length_of_the_map(size):
    def make(a):
        return GradientDescent(
            Function(lambda x: -a * x[0] ** 2 / 2 + x[0] ** 3 / 3 / size + 0.3 * x[0] ** 4 / size**2, 1), 1.0
        )

    branch = continue_orbit(orbit_at(make(0.1), np.zeros(1)), make, (-0.5, 0.5), value=0.1)
    (event,) = branch.events
    assert event.form == "transcritical" and event.coefficient.value == pytest.approx(-1 / size, rel=1e-10)
    other = switch_branch(event)
    assert kinds(other) == ["fold", "period-doubling"]
    assert other.events[0].parameter == pytest.approx(-5 / 24, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("excess", [1e-3, -1e-6, 1e-12])
def test_the_cycle_beside_a_nearly_degenerate_doubling_is_found(excess):
    # The coefficient vanishes at excess 0.
    objective = Function(lambda x: x[0] ** 2 / 2 + x[0] ** 3 / 2 + (1.125 + excess) * x[0] ** 4 + 5 * x[0] ** 6, 1)
    branch = continue_orbit(fixed_point(objective, 1.5, [0.0]), bounds=(1.0, 2.5))
    cycles = switch_branch(branch.events[0])
    assert cycles.period == 2 and cycles.points[0] == pytest.approx(0, abs=1e-9)
    orbit = cycles.orbit(len(cycles.parameter) // 2)
    assert orbit.period == 2 and orbit.residual < 1e-10


def leaking(c):
    return GradientDescent(
        Function(lambda x: jnp.where(x[0] < 1, x[0] ** 2 / 2, x[0] - 0.5 + 0.52 * (x[0] - 1) ** 2) - c * x[0], 1),
        1.95,
    )


def test_a_small_kink_that_takes_a_multiplier_across_the_circle_is_no_bifurcation():
    branch = continue_orbit(orbit_at(leaking(0.5), np.array([0.5])), leaking, (0.0, 2.0), value=0.5)
    assert branch.events == [] and branch.ended["end"].reason == "kink"
    assert branch.parameter[-1] == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_without_a_second_derivative_there_is_no_coefficient():
    map_ = Optimiser(BENT, optax.adam, learning_rate=3.0, b1=0.9, b2=0.99, eps=0.1, limit=True)
    (event,) = continue_orbit(orbit_at(map_, np.zeros(3)), bounds=(2.0, 5.0)).events
    assert event.kind == "period-doubling" and event.parameter == pytest.approx(3.8, abs=1e-9)
    assert event.coefficient is None and event.criticality == "degenerate"
    assert "no second or third derivative" in event.explain()


def dipping(c):
    # Multiplier of the minimum at 0: -0.99 - 0.03 exp(-((c - 0.5) / 0.02)^2), below -1 for a moment only.
    curvature = 1.99 + 0.03 * jnp.exp(-(((c - 0.5) / 0.02) ** 2))
    return GradientDescent(Function(lambda x: curvature * x[0] ** 2 / 2 + x[0] ** 4, 1), 1.0)


@pytest.mark.slow
def test_a_short_excursion_beyond_the_unit_circle_is_not_missed():
    branch = continue_orbit(orbit_at(dipping(0.1), np.zeros(1)), dipping, (0.0, 1.0), value=0.1, largest_step=0.02)
    width = 0.02 * np.log(3) ** 0.5
    assert [event.parameter for event in branch.events] == pytest.approx([0.5 - width, 0.5 + width], abs=1e-10)


@pytest.mark.slow
def test_area_preserving_maps_have_no_events_while_multipliers_stay_on_the_circle():
    map_ = Optimiser(Function(lambda x: jnp.cos(x[0]), 1), optax.sgd, learning_rate=0.5, momentum=1.0)
    orbit = orbit_at(map_, np.asarray(map_.initial_state(np.array([np.pi]))))
    branch = continue_orbit(orbit, bounds=(0.1, 5.0))
    (event,) = branch.events
    assert event.kind == "period-doubling" and event.parameter == pytest.approx(4, abs=1e-10)
    assert event.multiplicity == 2
    assert switch_branch(event).period == 2


def bent(x):
    return (x[0] - 1) ** 2 + (x[0] - 1) ** 4 + jnp.where(x[0] > 1.3, (x[0] - 1.3) ** 2 / 2, 0.0)


def test_a_kink_on_the_way_ends_the_branch_and_says_so():
    branch = continue_orbit(fixed_point(Function(bent, 1), 0.9, [1.0]), bounds=(0.2, 2.0))
    assert branch.events[0].criticality == "subcritical"
    cycles = switch_branch(branch.events[0])
    assert cycles.ended["end"].reason == "kink" and "kink of the loss" in cycles.ended["end"].message
    # The unstable cycle 1 +- a, (2 a + 4 a^3) eta = 2 a, reaches 1.3 there.
    assert cycles.parameter[-1] == pytest.approx(1 / (1 + 2 * 0.09), abs=1e-6)


def logarithmic(c):
    return GradientDescent(Function(lambda x: x[0] - c * jnp.log(x[0]), 1), 0.1)


def rooted(c):
    return GradientDescent(Function(lambda x: (x[0] - jnp.sqrt(c)) ** 2, 1), 0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "reasons"), [(logarithmic, ("step too small",)), (rooted, ("undefined",))])
def test_where_the_map_ceases_to_be_smooth_the_branch_ends_with_the_reason(make, reasons):
    branch = continue_orbit(orbit_at(make(1.0), np.ones(1)), make, (-1.0, 2.0), value=1.0, smallest_step=1e-6)
    assert branch.ended["start"].reason in reasons
    assert 0 <= branch.parameter[0] < 1e-4


def ring(c):
    # Fixed points on the circle x^2 + c^2 = 1.
    return GradientDescent(Function(lambda x: x[0] ** 3 / 3 + (c**2 - 1) * x[0], 1), 0.3)


@pytest.mark.slow
def test_a_closed_branch_is_recognised():
    branch = continue_orbit(orbit_at(ring(0.0), np.ones(1)), ring, (-2.0, 2.0), value=0.0)
    assert branch.ended["start"].reason == branch.ended["end"].reason == "closed"
    assert sorted(kinds(branch)) == ["fold", "fold"]
    assert sorted(event.parameter for event in branch.events) == pytest.approx([-1, 1], abs=1e-12)
    np.testing.assert_allclose(branch.points[:, 0, 0] ** 2 + branch.parameter**2, 1, atol=1e-12)
    # xi -> xi + a xi^2 with a = G'' / 2 = -step_size.
    assert [abs(event.coefficient.value) for event in branch.events] == pytest.approx([0.3, 0.3], rel=1e-10)


def growing(c):
    return GradientDescent(Function(lambda x: (c * x[0] - 1) ** 2 / 2, 1), 0.1)


@pytest.mark.slow
def test_a_branch_that_goes_to_infinity_ends():
    branch = continue_orbit(orbit_at(growing(1.0), np.ones(1)), growing, (-1.0, 1.5), value=1.0, direction="down")
    assert branch.ended["start"].reason == "diverging"
    assert 0 < branch.parameter.min() < 1e-3


def oscillating(c):
    return GradientDescent(Function(lambda x: (1.98 + 0.05 * jnp.cos(60 * c)) * x[0] ** 2 / 2 + x[0] ** 4, 1), 1.0)


@pytest.mark.slow
def test_multipliers_that_come_and_go_between_points_are_followed():
    branch = continue_orbit(orbit_at(oscillating(0.5), np.zeros(1)), oscillating, (0.0, 1.0), value=0.5)
    expected = int(np.sum(np.diff(np.sign(-0.02 + 0.05 * np.cos(60 * np.linspace(0, 1, 100_001)))) != 0))
    assert len(branch.events) == expected == 19


def test_a_bound_at_a_bifurcation_is_told(well):
    branch = continue_orbit(well.orbit(well.start), bounds=(0.4, 1.0))
    assert branch.events == [] and "is marginal: a bifurcation lies at the bound" in branch.explain()
    assert switch_branch(well.events[0], bounds=(1.0, 1.0001)).period == 2


def test_results_are_labelled_and_told(well):
    dataset = well.to_dataset()
    assert dataset.sizes["index"] == len(well.parameter) and dataset.attrs["status"] == "computed"
    assert dataset.event_kind.values.tolist() == ["period-doubling"]
    assert "period-doubling of a period-1 orbit at step_size = 1" in well.explain()
    assert well.orbit(0).map.step_size == 0.2


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "bounds must be two numbers"),
        ({"bounds": (0.6, 1.0)}, "leave out the present step_size"),
        ({"bounds": (-1.0, 1.0)}, "must be positive"),
        ({"bounds": (1.0, 0.1)}, "increasing"),
        ({"parameter": "momentum", "bounds": (0.0, 1.0)}, "no parameter 'momentum'"),
        ({"bounds": (0.1, 1.0), "until": "chaos"}, "until must be one of"),
        ({"bounds": (0.1, 1.0), "direction": "left"}, "direction must be"),
        ({"bounds": (0.1, 1.0), "max_points": 0}, "max_points"),
        ({"bounds": (0.1, 1.0), "step": -1.0}, "positive and finite"),
        ({"bounds": (0.1, 1.0), "step": None}, "must be numbers"),
        ({"bounds": ("a", 1.0)}, "bounds must be two numbers"),
        ({"parameter": tilted, "bounds": (0.1, 1.0), "value": 0.5}, "another map"),
    ],
)
def test_bad_input_is_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        continue_orbit(fixed_point(WELL, 0.5, [1.0]), **keywords)


def test_what_is_no_orbit_is_refused():
    with pytest.raises(TypeError, match="must be traceable"):
        continue_orbit(
            fixed_point(WELL, 0.5, [1.0]), lambda c: GradientDescent(WELL, float(c)), (0.1, 1.0), value=0.5
        )
    with pytest.raises(TypeError, match="must be a PeriodicOrbit"):
        continue_orbit(np.ones(1), bounds=(0.1, 1.0))
    with pytest.raises(TypeError, match="must be an Event"):
        switch_branch("period-doubling")


@pytest.mark.slow
def test_a_network_on_digits_doubles_its_period():
    from scipy.optimize import minimize
    from sklearn.datasets import load_digits

    images, width = load_digits(), 6
    inputs, targets = images.data[:300] / 16, np.eye(10)[images.target[:300]]

    def loss(w):
        hidden = jnp.tanh(inputs @ w[: 64 * width].reshape(width, 64).T + w[64 * width : 65 * width])
        outputs = hidden @ w[65 * width : 75 * width].reshape(10, width).T + w[75 * width :]
        return jnp.mean(jnp.sum((outputs - targets) ** 2, 1)) / 2 + 0.005 * w @ w

    objective = Function(loss, 75 * width + 10)
    descended = minimize(
        lambda w: (float(objective.value(w)), np.asarray(objective.gradient(w))),
        np.random.default_rng(0).standard_normal(objective.dim) * 0.2,
        jac=True,
        options={"maxiter": 20_000, "gtol": 1e-8},
    )
    sharpness = np.linalg.eigvalsh(objective.hessian(descended.x))[-1]
    start = fixed_point(objective, 1.9 / sharpness, descended.x)
    branch = continue_orbit(start, bounds=(1.8 / sharpness, 2.2 / sharpness), until="period-doubling")
    event = branch.events[0]
    exact = 2 / np.linalg.eigvalsh(objective.hessian(start.points[0]))[-1]
    assert abs(event.parameter - exact) <= max(event.error, 1e-10) < 1e-6
    assert event.criticality == "supercritical"
    cycles = switch_branch(event, bounds=(1.8 / sharpness, 2.1 / sharpness), max_points=5)
    assert cycles.period == 2 and cycles.stable[1:].all()
    beyond = event.parameter * 1.01
    orbit = cycles.at(beyond)[0]
    pushed = 1e-2 * orbit.diameter * event.eigenvector
    below = branch.parameter[0]
    for step_size, points in ((beyond, orbit.points), (below, branch.points[0])):
        map_ = GradientDescent(objective, step_size)
        rounds = np.linalg.multi_dot([map_.jacobian(point) for point in points[::-1]] + [np.eye(objective.dim)])
        expected = np.linalg.matrix_power(rounds, 400 // len(points)) @ pushed
        state = iterated(map_, points[0] + pushed, 400)
        assert np.linalg.norm(expected) < 0.5 * np.linalg.norm(pushed)
        assert np.linalg.norm(state - points[0] - expected) < 0.05 * np.linalg.norm(pushed)
    pushed = np.asarray(branch.points[0][0] + pushed)
    left = iterated(GradientDescent(objective, beyond), pushed, 600)
    assert np.linalg.norm(left - branch.points[0][0]) > 0.3 * orbit.diameter

"""Periodic orbits found, refined and judged: golden values 1, 2, 4, 5; theory 6.2; families; messages."""

import itertools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gdmap import Function, GradientDescent, LinearNetwork, Optimiser
from gdmap.maps import Torus, family_along
from gdmap.orbits import NoOrbitError, orbit_at, periodic_orbits

WELL = Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
CUBIC = Function(lambda x: x[0] ** 3 / 3 - x[0] ** 2 / 2, 1)  # L' = x (x - 1): lam = 1 at the minimum 1
TWO_FACTORS = Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)


def product_loss(n):
    return Function(lambda w: (jnp.prod(w) - 1) ** 2 / 2, n)


@pytest.mark.parametrize("eta", [2.1, 2.3, 2.44, 2.6])
def test_two_cycle_of_the_cubic_loss(eta):
    r = 1 + eta
    z = ((r + 1) + np.array([1, -1]) * np.sqrt((r - 3) * (r + 1))) / (2 * r)
    orbit = orbit_at(GradientDescent(CUBIC, eta), (z * r / eta + 0.002)[:, None])
    np.testing.assert_allclose(orbit.points[:, 0], z * r / eta, rtol=1e-12)
    assert orbit.multipliers[0] == pytest.approx(5 - eta**2, abs=1e-8)
    assert abs(orbit.multipliers[0] - (5 - eta**2)) <= orbit.multiplier_errors[0]
    assert orbit.stable == (abs(5 - eta**2) < 1)
    assert orbit.margin == pytest.approx(1 - abs(5 - eta**2), abs=1e-9)


def test_superstable_cycle():
    orbit = orbit_at(GradientDescent(CUBIC, np.sqrt(5)), np.array([[0.5 * (1 + np.sqrt(5)) / np.sqrt(5)], [1.17]]))
    assert abs(orbit.multipliers[0]) < 1e-13 and orbit.stable


def test_all_two_cycles_of_the_double_well_are_found_with_their_multipliers():
    eta = 1.1
    found = periodic_orbits(GradientDescent(WELL, eta), 2)
    assert [orbit.stable for orbit in found] == [True, True, False]
    np.testing.assert_allclose([orbit.multipliers[0] for orbit in found[:2]], 9 - 2 * (1 + eta) ** 2, atol=1e-10)
    # x -> -x: the unstable one is +- sqrt(1 + 2 / eta).
    np.testing.assert_allclose(np.abs(found[2].points), np.sqrt(1 + 2 / eta), rtol=1e-12)
    assert "search" in found.explain() and found.status == "estimated"
    once = periodic_orbits(GradientDescent(WELL, eta), 2, symmetries=[lambda x: -x])
    assert len(once) == 2


def test_fixed_points_are_no_two_cycles():
    found = periodic_orbits(GradientDescent(WELL, 0.4), 1, starts=16)
    np.testing.assert_allclose(sorted(orbit.points[0, 0] for orbit in found), [-1, 0, 1], atol=1e-12)
    twice = orbit_at(GradientDescent(WELL, 0.4), np.array([[1.001], [0.999]]))
    assert twice.period == 1 and twice.multipliers[0] == pytest.approx(1 - 2 * 0.4, abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 5))])
def test_diagonal_two_cycles_of_products(n):
    golden = {
        2: (1.0910894512, 0.8728715609),
        3: (1.0475879443, 0.9326137046),
        4: (1.0322128415, 0.9541430900),
        5: (1.0243476282, 0.9652443672),
    }[n]
    orbit = orbit_at(GradientDescent(product_loss(n), 1.05 * 2 / n), np.outer(golden, np.ones(n)) + 1e-4)
    np.testing.assert_allclose(np.sort(orbit.points, axis=0)[::-1], np.outer(golden, np.ones(n)), atol=6e-11)
    assert orbit.stable and orbit.neutral_dimension == 0
    if n == 2:
        np.testing.assert_allclose(orbit.multipliers.real, [3 - 2 * 1.05, 9 - 2 * 2.05**2], atol=1e-9)


@pytest.mark.parametrize("eta", [1.1, 1.2])
def test_multipliers_along_and_across_of_two_factors(eta):
    x = ((1 + eta) + np.array([1, -1]) * np.sqrt((1 + eta) ** 2 - 4)) / (2 * eta)
    orbit = orbit_at(GradientDescent(TWO_FACTORS, eta), np.sqrt(np.outer(x, np.ones(2))))
    expected = sorted([9 - 2 * (1 + eta) ** 2, 3 - 2 * eta], key=abs, reverse=True)
    np.testing.assert_allclose(orbit.multipliers, expected, atol=1e-9)
    assert orbit.stable


def test_fixed_points_on_a_manifold_of_minima_have_their_neutral_dimension():
    orbit = orbit_at(GradientDescent(TWO_FACTORS, 0.4), np.array([1.3, 0.8]))
    assert orbit.neutral_dimension == 1 and orbit.stable
    assert orbit.points[0].prod() == pytest.approx(1, abs=1e-14)
    assert orbit.multipliers[0] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("target", [np.diag([2.0, 1.0]), np.diag([1.0, 0.5])])
def test_the_stable_two_cycle_of_the_matrix_network_is_called_stable(target):
    """Widths (2, 2, 2), step 1.1 times the critical one: multipliers 1, 1, .8, ... and dimension 2."""
    network = LinearNetwork.whitened((2, 2, 2), target)
    descent = GradientDescent(network, 1.1 / target.max())
    theta = network.ravel([np.diag(np.sqrt(np.diag(target))), np.diag(np.sqrt(np.diag(target)))])
    theta = theta + 0.1 * np.random.default_rng(1).standard_normal(8)
    for _ in range(4_000):
        theta = descent.step(theta)
    orbit = orbit_at(descent, [theta, descent.step(theta)])
    assert orbit.period == 2 and orbit.stability == "stable" and orbit.stable
    assert orbit.neutral_dimension == 2
    np.testing.assert_allclose(orbit.multipliers[:2], 1, atol=1e-9)
    assert orbit.multipliers[2] == pytest.approx(0.8, abs=1e-8)
    assert "family of dimension 2" in orbit.explain()


HENON = np.sqrt(6.09)


@pytest.mark.parametrize(
    ("period", "count"),
    [(3, 0), (7, 4)]
    + [
        pytest.param(p, c, marks=pytest.mark.slow)
        for p, c in ((2, 1), (4, 1), (5, 0), (6, 2), (8, 7), (9, 6), (10, 10), (11, 14), (12, 19))
    ],
)
def test_cycles_of_the_henon_map_are_found_by_search(period, count):
    """The classical Henon map is heavy ball with beta = -0.3 on a cubic loss at eta lam = sqrt(6.09)."""
    heavy_ball = Optimiser(CUBIC, optax.sgd, learning_rate=HENON, momentum=-0.3)
    found = periodic_orbits(heavy_ball, period, starts=np.linspace(0.9, 1.2, 16)[:, None])
    assert len(found) == count
    for orbit in found:
        assert orbit.residual < 1e-13 and orbit.period == period and not orbit.stable
        # det DG^p = (-0.3)^p, as the determinant of heavy ball is beta everywhere; the small multiplier is known
        # to rounding of the large one only, which its error says.
        large, small = np.abs(orbit.multipliers)
        error = large * orbit.multiplier_errors[1] + small * orbit.multiplier_errors[0]
        assert abs(np.prod(orbit.multipliers) - (-0.3) ** period) <= min(error, 1e-8)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 0.9, -0.3])
def test_two_cycle_of_heavy_ball_at_its_period_doubling(beta):
    """Golden values 5: at eta lam = sqrt(6 + 8 beta + 6 beta^2) the multipliers are -1 and -beta^2."""
    eta = np.sqrt(6 + 8 * beta + 6 * beta**2)
    # Points of a 2-cycle: x+ - x = -eta L'(x) + beta (x - x-), with x- = x+.
    total = (1 + beta) / eta * 2 + 1  # x0 + x1
    product = (1 + beta) / eta * total
    x = (total + np.array([1, -1]) * np.sqrt(total**2 - 4 * product)) / 2
    states = [[x[0], (x[1] - x[0]) / eta], [x[1], (x[0] - x[1]) / eta]]
    orbit = orbit_at(Optimiser(CUBIC, optax.sgd, learning_rate=eta, momentum=beta), states)
    np.testing.assert_allclose(orbit.points[:, 0], x, rtol=1e-12)
    np.testing.assert_allclose(orbit.multipliers, [-1, -(beta**2)], atol=1e-8)
    assert orbit.stability == "marginal"


@pytest.mark.parametrize("period", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_cycles_of_the_standard_map(period):
    """Heavy ball with beta = 1 on cos x, states modulo 2 pi (golden values 5)."""
    K = 0.971635
    heavy_ball = Optimiser(Function(lambda x: jnp.cos(x[0]), 1), optax.sgd, learning_rate=K, momentum=1.0)
    torus = Torus(heavy_ball, [2 * np.pi, 2 * np.pi / K], [-1.0, -1.0])
    traces = {2: (2.96104413,), 3: (0.95728003, 3.06235251)}
    points = {2: [(1.3346302001, 2.6692604001)], 3: [(0.8121394069, 1.6242788137), (1.7774049295, 1.7774049295)]}
    found = periodic_orbits(torus, period, starts=np.linspace(0, 6, 24)[:, None], region=(-1, 2 * np.pi / K))
    found_traces = [orbit.multipliers.sum().real for orbit in found]
    for trace in traces[period]:
        assert np.abs(np.array(found_traces) - trace).min() < 1e-8
    states = np.concatenate([orbit.points for orbit in found])
    momenta = np.mod(-K * states[:, 1], 2 * np.pi)
    for x, p in points[period]:
        assert np.hypot(states[:, 0] - x, momenta - p).min() < 1e-9
    for orbit in found:
        assert np.prod(orbit.multipliers) == pytest.approx(1, abs=1e-9)  # area is preserved


def test_large_orbits_are_refined_matrix_free():
    d = 1_200
    rng = np.random.default_rng(0)
    curvature = np.concatenate([[0.95], rng.uniform(0.1, 0.7, d - 1)])
    loss = Function(lambda x: jnp.sum(jnp.asarray(curvature) * x**2) / 2 + jnp.sum(x**4) / 4, d)
    eta = 2.0
    amplitude = np.sqrt(2 / eta - curvature[0])
    guess = np.zeros((2, d))
    guess[0, 0], guess[1, 0] = 1.01 * amplitude, -0.99 * amplitude
    orbit = orbit_at(GradientDescent(loss, eta), guess + 1e-4 * rng.standard_normal((2, d)))
    assert orbit.period == 2 and orbit.neutral_dimension is None
    np.testing.assert_allclose(orbit.points[:, 0], [amplitude, -amplitude], rtol=1e-9)
    exact = np.concatenate([[(1 - eta * (curvature[0] + 3 * amplitude**2)) ** 2], (1 - eta * curvature[1:]) ** 2])
    np.testing.assert_allclose(orbit.multipliers.real, np.sort(exact)[::-1][:6], rtol=1e-7)
    assert orbit.stability == "unstable"  # the flip of this minimum is subcritical


# Mistakes and what cannot be ------------------------------------------------------------------------------------


def test_a_cycle_where_none_exists():
    found = periodic_orbits(GradientDescent(WELL, 0.4), 3, starts=8)
    assert not found
    assert "0 orbits of minimal period 3" in found.explain() and "smaller period" in found.explain()
    with pytest.raises(NoOrbitError, match=r"no orbit of period 2 .* \(cause: (guess|residual)"):
        orbit_at(GradientDescent(Function(lambda x: jnp.sum(jnp.exp(x[0])), 1), 0.5), [[0.3], [-0.2]])


def test_a_step_size_at_which_everything_diverges():
    found = periodic_orbits(GradientDescent(CUBIC, 30.0), 2, starts=np.full((4, 1), -2.0))
    assert not any(orbit.stable for orbit in found)
    assert "4 diverged" in found.explain()


def test_a_point_on_a_kink():
    kinked = GradientDescent(Function(lambda x: x[0] ** 2 / 2 + jnp.maximum(x[0], 0) ** 2, 1), 0.5)
    # The minimum at 0 has curvature 1 on one side and 3 on the other.
    with pytest.raises(NoOrbitError, match="kink"):
        orbit_at(kinked, [0.0])
    found = periodic_orbits(kinked, 1, starts=8)
    assert not found and "have a point on a kink" in found.explain()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"period": 0}, "period must be a positive integer"),
        ({"period": 2.0}, "period must be a positive integer"),
        ({"period": 1, "starts": 0}, "starts must be at least 1"),
        ({"period": 1, "starts": np.zeros((3, 2))}, r"finite parameters of shape \(n, 1\)"),
        ({"period": 1, "region": (1, 0)}, "lower < upper"),
        ({"period": 1, "region": 3}, r"region must be \(lower, upper\)"),
        ({"period": 1, "complete": True}, "complete=True needs region"),
        ({"period": 1, "scale": -1}, "scale must be a positive number"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        periodic_orbits(GradientDescent(WELL, 0.5), **arguments)


def test_wrong_maps():
    with pytest.raises(TypeError, match="map must be a map"):
        periodic_orbits(WELL, 2)
    with pytest.raises(ValueError, match="depends on time"):
        periodic_orbits(Optimiser(WELL, optax.adam, learning_rate=0.1), 2)
    with pytest.raises(ValueError, match="points has shape"):
        orbit_at(GradientDescent(WELL, 0.5), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="does not have the period"):
        Torus(GradientDescent(WELL, 0.5), [2 * np.pi])


def test_families_along_a_parameter():
    heavy_ball = Optimiser(WELL, optax.sgd, learning_rate=0.2, momentum=0.5)
    state = np.array([0.3, 0.1])
    for name, keyword in (("step_size", "learning_rate"), ("momentum", "momentum")):
        family, value = family_along(heavy_ball, name)
        assert value == heavy_ball.keywords[keyword]
        np.testing.assert_allclose(family(0.7).step(state), heavy_ball.with_keywords(**{keyword: 0.7}).step(state))
    decayed, value = family_along(
        GradientDescent(WELL, 0.5),
        lambda decay: GradientDescent(Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + decay * x[0] ** 2, 1), 0.5),
        0.0,
    )
    np.testing.assert_allclose(decayed(0.1).step(np.array([2.0])), [2 - 0.5 * (6 + 0.4)])
    with pytest.raises(ValueError, match="no parameter 'decay' to vary; it has 'step_size'"):
        family_along(GradientDescent(WELL, 0.5), "decay")
    with pytest.raises(ValueError, match="another map"):
        family_along(GradientDescent(WELL, 0.5), lambda eta: GradientDescent(WELL, eta), 0.4)


def test_orbits_do_not_depend_on_where_they_are_looked_for():
    """The same set of orbits from disjoint sets of starts."""
    descent = GradientDescent(CUBIC, 2.7)
    sets = [
        sorted(float(orbit.points.min()) for orbit in periodic_orbits(descent, 4, starts=starts[:, None]))
        for starts in (np.linspace(0.3, 0.9, 8), np.linspace(0.95, 1.2, 8))
    ]
    np.testing.assert_allclose(*sets, rtol=1e-10)
    assert len(list(itertools.chain(*sets))) > 0


def test_orbits_at_the_origin_are_found_once():
    """There no length is given by the points themselves."""
    bowl = Function(lambda x: 0.5 * x[0] ** 2 + 1.5 * x[1] ** 2 + 0.2 * x[0] * x[1], 2)
    for map_ in (GradientDescent(bowl, 0.3), Optimiser(bowl, optax.sgd, learning_rate=0.1, momentum=0.5)):
        (only,) = periodic_orbits(map_, 1, starts=8)
        assert np.abs(only.points).max() < 1e-15 and only.stable
    flat = orbit_at(GradientDescent(Function(lambda x: x[0] ** 4, 1), 0.1), [0.0])
    assert flat.stability == "marginal" and flat.neutral_dimension == 0 and flat.error == np.inf
    assert "degenerate" in flat.explain()


def test_a_plateau_is_a_family_of_fixed_points_and_of_nothing_else():
    dead = GradientDescent(Function(lambda t: (t[0] * jnp.maximum(t[1], 0) - 1) ** 2, 2), 0.1)
    orbit = orbit_at(dead, [[1.0, -1.0], [1.0, -1.0]])
    assert orbit.period == 1 and orbit.neutral_dimension == 2
    assert not periodic_orbits(dead, 2, starts=8)


def test_a_family_that_fills_the_states():
    """Heavy ball with beta = 1 on a quadratic turns every state by the same angle."""
    turn = Optimiser(
        Function(lambda x: x[0] ** 2 / 2, 1), optax.sgd, learning_rate=2 - 2 * np.cos(2 * np.pi / 7), momentum=1.0
    )
    states = [np.array([1.0, 0.0])]
    for _ in range(6):
        states.append(turn.step(states[-1]))
    orbit = orbit_at(turn, states)
    assert orbit.period == 7 and orbit.neutral_dimension == 2


def test_proved_counts_do_not_depend_on_step_size_or_symmetry():
    """Fixed points of gradient descent are the critical points of the loss, here 15, 10 up to the symmetry."""
    pytest.importorskip("flint")
    loss = Function(lambda t: (t[0] ** 2 - 1) ** 2 / 4 * (1 + t[0] / 2) ** 2 + (t[1] ** 2 - 1) ** 2 / 4, 2)
    mirror = [lambda s: s * np.array([1.0, -1.0])]
    for eta in (0.05, 1e-6):
        box = ((-3, -2), (3, 2))
        every = periodic_orbits(GradientDescent(loss, eta), 1, region=box, complete=True)
        once = periodic_orbits(GradientDescent(loss, eta), 1, region=box, complete=True, symmetries=mirror)
        assert (len(every), len(once)) == (15, 10) and every.status == once.status == "proved"
    with pytest.raises(ValueError, match="must commute with the map"):
        periodic_orbits(GradientDescent(loss, 0.05), 1, symmetries=[lambda x: x + 1])


def test_many_seeds_in_a_dozen_dimensions():
    """Several blocks of linear solves, which may not run side by side."""
    coupled = Function(lambda x: jnp.sum((x**2 - 1) ** 2) / 4 + 0.1 * jnp.sum(x[1:] * x[:-1]), 12)
    found = periodic_orbits(GradientDescent(coupled, 0.3), 2, starts=4)
    assert not any(orbit.stable for orbit in found) and found.searched["seeds"] > 128


def test_an_exponential_tail_holds_no_orbit():
    """Far out the gradient of exp is rounding, but never zero."""
    tail = GradientDescent(Function(lambda x: jnp.exp(x[0]), 1), 0.3)
    for guess in ([0.0], [-28.0]):
        with pytest.raises(NoOrbitError, match=r"no orbit is shown|no orbit of period 1"):
            orbit_at(tail, guess)

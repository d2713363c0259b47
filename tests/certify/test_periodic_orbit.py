"""Existence, uniqueness, minimal period and multipliers of cycles, against orbits known in closed form."""

import copy
import json
import math
from fractions import Fraction

import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest
from flint import arb, ctx
from hypothesis import given, settings
from hypothesis import strategies as st

import gdmap
from gdmap.certify.ball_map import box, exact, read_exact, written
from gdmap.certify.periodic_orbit import certify_periodic_orbit, check_periodic_orbit

WELL = gdmap.Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
TWO_FACTORS = gdmap.Function(lambda x: (x[0] * x[1] - 1) ** 2 / 2, 2)
# The logistic map at r = 4: L' = x (x - 3), step 1, x = 4 sin^2.
LOGISTIC = gdmap.GradientDescent(gdmap.Function(lambda x: x[0] ** 3 / 3 - 1.5 * x[0] ** 2, 1), 1.0)


def two_cycle(eta):
    """The in-well two-cycle of the double well."""
    r = 1 + eta
    root, gap = math.sqrt(r + 2), math.sqrt(r - 2)
    return np.array([[root + gap], [root - gap]]) / 2 / math.sqrt(eta)


def contains(discs, values):
    """Whether exact real values (Fractions), in the order of the discs, lie in them."""
    return all(
        abs(Fraction(mid.real) - value) <= Fraction(rad) and abs(mid.imag) <= rad
        for mid, rad, value in zip(discs.mid, discs.rad, values, strict=True)
    )


def logistic_cycles(n):
    """All cycles of the fixed points of the n-fold map at r = 4: angles pi k / (2^n -+ 1) doubled."""
    cycles = []
    for modulus in (2**n - 1, 2**n + 1):
        left = set(range(1 if modulus > 2**n else 0, modulus // 2 + 1))
        while left:
            k = first = left.pop()
            cycle = [k]
            while (k := min(2 * k % modulus, -2 * k % modulus)) != first:
                left.discard(k)
                cycle.append(k)
            cycles.append(4 * np.sin(np.pi * np.array(cycle)[:, None] / modulus) ** 2)
    return cycles


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 8])
def test_all_fixed_points_of_the_logistic_map_are_proved(n):
    points = 0
    for cycle in logistic_cycles(n):
        certificate = certify_periodic_orbit(LOGISTIC, cycle)
        assert certificate.proved and certificate.period == len(cycle) and n % len(cycle) == 0
        assert certificate.stability == "unstable"
        size = 4 if np.all(cycle == 0) else 2 ** len(cycle)
        assert contains(
            certificate.multipliers, [Fraction(math.copysign(size, certificate.multipliers.mid[0].real))]
        )
        assert certificate.radius < 1e-30 < 1e-5 < certificate.uniqueness_radius
        assert np.all(np.abs(certificate.points.mid - cycle) <= 1e-10)
        points += len(cycle)
    assert points == 2**n


@pytest.mark.parametrize(("eta", "stability"), [(1.1, "stable"), (1.2, "stable"), (1.25, "unstable")])
def test_two_cycles_of_the_well_and_of_two_factors_with_their_exact_multipliers(eta, stability):
    points, step = two_cycle(eta), Fraction(eta)
    along, across = 9 - 2 * (1 + step) ** 2, 3 - 2 * step
    certificate = certify_periodic_orbit(gdmap.GradientDescent(WELL, eta), points)
    assert certificate.proved and certificate.period == 2 and certificate.stability == stability
    assert contains(certificate.multipliers, [along])
    assert certificate.multipliers.rad[0] < 1e-15
    plane = gdmap.GradientDescent(TWO_FACTORS, eta)
    certificate = certify_periodic_orbit(plane, np.repeat(points, 2, axis=1))
    assert certificate.proved and certificate.stability == stability
    assert contains(certificate.multipliers, sorted([along, across], key=abs, reverse=True))
    assert check_periodic_orbit(plane, json.loads(json.dumps(certificate.proof))) == (
        True,
        f"an orbit of minimal period 2 is proved, {stability}",
    )


def henon_two_cycle(eta, beta, product):
    """The two-cycle of heavy ball on the cubic loss L' = x (x - lam): a Henon map in closed form, as states."""
    lam = product / eta
    c = (1 + beta) / (2 * eta) + lam / 2
    scale = -eta * c * (c - lam)
    a, b = (product**2 - (1 + beta) ** 2) / 4, -beta
    total = (1 - b) / a
    gap = math.sqrt(total**2 - 2 * (total * (1 - b) - 2 + a * total**2) / a)
    x = c + scale * np.array([total + gap, total - gap]) / 2
    objective = gdmap.Function(lambda t: t[0] ** 3 / 3 - lam * t[0] ** 2 / 2, 1)
    map_ = gdmap.Optimiser(objective, optax.sgd, learning_rate=eta, momentum=beta)
    return map_, np.stack([x, (np.roll(x, 1) - x) / eta], axis=1)


@pytest.mark.parametrize(
    ("eta", "beta", "product"), [(1.0, -0.3, math.sqrt(6.09)), (0.5, 0.3, 2.8), (2.0, 0.2, 2.6)]
)
def test_the_two_cycle_of_the_henon_map_by_heavy_ball(eta, beta, product):
    map_, states = henon_two_cycle(eta, beta, product)
    certificate = certify_periodic_orbit(map_, states)
    assert certificate.proved and certificate.period == 2
    mid, rad = certificate.multipliers
    # The determinant of each step is beta.
    assert abs(mid[0] * mid[1] - beta**2) < 1e-14 and np.all(rad < 1e-14)
    jacobian = map_.jacobian(states[1]) @ map_.jacobian(states[0])
    np.testing.assert_allclose(np.sort_complex(np.linalg.eigvals(jacobian)), np.sort_complex(mid), atol=1e-10)
    assert check_periodic_orbit(map_, certificate.proof)[0]


def test_what_is_no_cycle_is_not_proved():
    map_ = gdmap.GradientDescent(WELL, 1.1)
    for points in ([[0.3], [0.4]], [0.5], [[1.1], [0.8], [0.9]]):
        certificate = certify_periodic_orbit(map_, np.array(points))
        assert not certificate.proved and certificate.proof is None and certificate.period is None
        assert certificate.reason and certificate.reason in certificate.explain()
    flat = gdmap.GradientDescent(gdmap.Function(lambda x: jnp.log(jnp.cosh(x[0])) + x[0], 1), 0.5)
    assert not certify_periodic_orbit(flat, np.array([2.0])).proved


def test_a_cycle_gone_through_twice_has_its_minimal_period():
    map_ = gdmap.GradientDescent(WELL, 1.1)
    once = certify_periodic_orbit(map_, two_cycle(1.1))
    for turns in (2, 3):
        certificate = certify_periodic_orbit(map_, np.tile(two_cycle(1.1), (turns, 1)))
        assert certificate.proved and certificate.period == 2
        np.testing.assert_allclose(certificate.points.mid, once.points.mid, atol=1e-15)
    fixed = certify_periodic_orbit(map_, np.array([[0.0], [0.0], [0.0], [0.0]]))
    assert fixed.proved and fixed.period == 1 and contains(fixed.multipliers, [1 + Fraction(1.1)])
    # A record that claims the longer period is refused.
    doubled = copy.deepcopy(once.proof)
    doubled["points"], doubled["period"] = doubled["points"] * 2, 4
    accepted, reason = check_periodic_orbit(map_, doubled)
    assert not accepted and "already return after 2 steps" in reason


def test_a_two_cycle_born_just_above_its_bifurcation():
    eta = 1 + 1e-9  # its points are 3e-5 apart
    certificate = certify_periodic_orbit(gdmap.GradientDescent(WELL, eta), two_cycle(eta))
    assert certificate.proved and certificate.period == 2 and certificate.stability == "stable"
    assert contains(certificate.multipliers, [9 - 2 * (1 + Fraction(eta)) ** 2])
    assert certificate.uniqueness_radius < 3e-5


def test_families_are_refused_with_the_reason():
    minima = gdmap.GradientDescent(TWO_FACTORS, 0.3)
    for theta in ([1.0, 1.0], [2.0, 0.5], [0.3, 1 / 0.3]):
        certificate = certify_periodic_orbit(minima, np.array(theta))
        assert not certificate.proved and "1 of the 2 multipliers is 1 to within" in certificate.reason
    cycles = gdmap.GradientDescent(gdmap.Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4 + 0 * x[1], 2), 1.1)
    points = np.concatenate([two_cycle(1.1), [[0.7], [0.7]]], axis=1)
    certificate = certify_periodic_orbit(cycles, points)
    assert not certificate.proved and "families" in certificate.reason
    everywhere = gdmap.GradientDescent(gdmap.Function(lambda x: 0 * x[0] + 3.0, 1), 1.0)
    assert "families" in certify_periodic_orbit(everywhere, np.array([0.3])).reason


def test_the_edge_of_stability_is_undecided_until_it_is_crossed():
    """At a minimum of curvature 2 / eta the multiplier is -1 exactly."""
    objective = gdmap.Function(lambda x: x[0] ** 2 + x[0] ** 4, 1)
    at = certify_periodic_orbit(gdmap.GradientDescent(objective, 1.0), np.array([0.0]))
    assert at.proved and at.stability == "undecided" and "may lie on the unit circle" in at.explain()
    below = certify_periodic_orbit(gdmap.GradientDescent(objective, math.nextafter(1.0, 0)), np.array([0.0]))
    above = certify_periodic_orbit(gdmap.GradientDescent(objective, math.nextafter(1.0, 2)), np.array([0.0]))
    assert (below.stability, above.stability) == ("stable", "unstable")
    assert check_periodic_orbit(gdmap.GradientDescent(objective, 1.0), at.proof)[0]


def tampered(proof):
    """Records with one statement each that is not true, or not well formed."""

    def changed(**changes):
        return {**copy.deepcopy(proof), **changes}

    first = read_exact(proof["points"][0][0])
    moved = copy.deepcopy(proof["points"])
    with ctx.workprec(300):
        moved[0][0] = written(first + arb(2) ** -60)
    wrong = copy.deepcopy(proof["multipliers"])
    wrong[0][0] = (float.fromhex(wrong[0][0]) + 1e-9).hex()
    yield changed(points=moved)
    yield changed(points=proof["points"][:1], period=1)
    yield changed(points=proof["points"][::-1] + proof["points"], period=4)
    yield changed(radius=(float.fromhex(proof["radius"]) / 1e3).hex())
    yield changed(radius=(-1.0).hex())
    yield changed(uniqueness_radius=(1.0).hex())
    yield changed(multipliers=wrong)
    yield changed(multipliers=[])
    yield changed(stability="unstable")
    yield changed(stability="safe")
    yield changed(kind="non-singular")
    yield changed(state_dim=2)
    yield changed(bits=10**9)
    yield changed(bits="128")
    yield changed(points=[["1/3"], ["1/3"]])
    yield changed(points=[["0.5"], [7]])
    yield changed(points=None)
    yield changed(radius="nan")
    for key in ("points", "radius", "multipliers", "stability", "bits", "period"):
        yield {name: value for name, value in proof.items() if name != key}
    yield from ([], "not json", "{}", None, 3)


def test_a_tampered_record_is_rejected():
    map_ = gdmap.GradientDescent(WELL, 1.1)
    certificate = certify_periodic_orbit(map_, two_cycle(1.1))
    assert certificate.proof is not None
    text = json.dumps(certificate.proof)
    assert check_periodic_orbit(map_, text) == check_periodic_orbit(map_, json.loads(text))
    assert check_periodic_orbit(map_, text)[0]
    for record in tampered(certificate.proof):
        accepted, reason = check_periodic_orbit(map_, record)
        assert accepted is False and reason
    for other in (gdmap.GradientDescent(WELL, 1.1000001), gdmap.GradientDescent(TWO_FACTORS, 1.1)):
        assert not check_periodic_orbit(other, certificate.proof)[0]
    # A weaker true statement stands.
    weaker = {**certificate.proof, "uniqueness_radius": certificate.proof["radius"], "stability": "undecided"}
    assert check_periodic_orbit(map_, weaker)[0]


def test_a_box_asked_for_by_its_radius():
    map_ = gdmap.GradientDescent(WELL, 1.1)
    near = two_cycle(1.1) + 1e-6
    assert certify_periodic_orbit(map_, near, radius=1e-3).proved
    far = certify_periodic_orbit(map_, near, radius=1e-7)
    assert not far.proved and "away from the given points" in far.reason
    wide = certify_periodic_orbit(map_, near, radius=0.3)  # the minimum is a two-cycle too
    assert not wide.proved and "uniqueness is proved only within" in wide.reason


@pytest.mark.parametrize("bits", [53, 64, 256, 1000])
def test_precision(bits):
    certificate = certify_periodic_orbit(gdmap.GradientDescent(WELL, 1.1), two_cycle(1.1), bits=bits)
    assert certificate.proved and certificate.stability == "stable" and certificate.bits == bits
    assert 2.0 ** (-bits - 5) < certificate.radius < 2.0 ** (20 - bits)


def test_kinks_bound_the_box():
    objective = gdmap.Function(lambda x: (2 * jnp.maximum(x[0], 0.0) - 1) ** 2 / 2, 1)
    map_ = gdmap.GradientDescent(objective, 0.1)
    certificate = certify_periodic_orbit(map_, np.array([0.5]))
    assert certificate.proved and certificate.stability == "stable"
    assert 0.2 < certificate.uniqueness_radius < 0.5
    accepted, reason = check_periodic_orbit(map_, {**certificate.proof, "uniqueness_radius": (0.6).hex()})
    assert not accepted and "kink" in reason
    on_it = gdmap.GradientDescent(gdmap.Function(lambda x: jnp.abs(x[0]), 1), 0.1)
    assert not certify_periodic_orbit(on_it, np.array([0.0])).proved


@pytest.mark.parametrize("n", [3, 40])
def test_multipliers_of_quadratic_losses_in_many_dimensions(n):
    """Small eigenproblems go to Arb, large ones to discs after an approximate diagonalisation."""
    rng = np.random.default_rng(n)
    Q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    H = (Q * np.linspace(0.5, 3, n)) @ Q.T
    H = (H + H.T) / 2
    objective = gdmap.Function(lambda x: x @ jnp.asarray(H) @ x / 2 + jnp.sum(x**4), n)
    for eta, stability in ((0.6, "stable"), (0.7, "unstable")):
        certificate = certify_periodic_orbit(gdmap.GradientDescent(objective, eta), np.zeros(n))
        mid, rad = certificate.multipliers
        assert certificate.stability == stability and np.all(rad < 1e-12)
        np.testing.assert_allclose(np.sort(mid.real), np.sort(1 - eta * np.linalg.eigvalsh(H)), atol=1e-12)
    heavy = gdmap.Optimiser(objective, optax.sgd, learning_rate=0.5, momentum=0.9)
    certificate = certify_periodic_orbit(heavy, np.zeros(2 * n))
    assert certificate.proved and certificate.stability == "stable"
    assert np.max(np.abs(np.abs(certificate.multipliers.mid) - math.sqrt(0.9))) < 1e-10
    assert check_periodic_orbit(heavy, certificate.proof)[0]


def test_adam_with_a_frozen_preconditioner_at_its_threshold():
    """On curvature 1, Adam with ``sqrt(nu) = 1`` is stable up to step (2 + 2 beta) / (1 - beta) = 38."""
    objective = gdmap.Function(lambda x: x[0] ** 2 / 2 + x[0] ** 4, 1)
    for step, stability in ((37.9, "stable"), (38.1, "unstable")):
        map_ = gdmap.Optimiser(objective, optax.adam, learning_rate=step, frozen={"nu": 1.0}, limit=True)
        certificate = certify_periodic_orbit(map_, np.zeros(2))
        assert certificate.proved and certificate.stability == stability


@pytest.mark.parametrize("n", [1, 3, 12, 15])
def test_a_defective_derivative_has_its_stability_proved(n):
    """Heavy ball at critical damping: every multiplier is sqrt(beta), double, with one eigenvector."""
    objective = gdmap.Function(lambda x: x @ x / 2 + jnp.sum(x) ** 4, n)
    map_ = gdmap.Optimiser(objective, optax.sgd, learning_rate=0.25, momentum=0.25)
    certificate = certify_periodic_orbit(map_, np.zeros(2 * n))
    assert certificate.proved and certificate.stability == "stable"
    assert np.all(np.abs(certificate.multipliers.mid - 0.5) <= certificate.multipliers.rad)
    assert check_periodic_orbit(map_, certificate.proof)[0]


class Kepler(gdmap.Map):
    """A map that is no optimiser: x -> a + e sin x, whose fixed point solves Kepler's equation."""

    objective: object
    eccentricity: float

    def update(self, state):
        return 1.0 + self.eccentricity * jnp.sin(state)


def test_any_map_of_the_users():
    with mpmath.workdps(60):
        root = mpmath.findroot(lambda x: x - 1 - mpmath.mpf(0.3) * mpmath.sin(x), 1.3)
        certificate = certify_periodic_orbit(Kepler(WELL, 0.3), np.array([1.29]), bits=150)
        centre = Fraction(certificate.proof["points"][0][0])
        distance = abs(mpmath.mpf(centre.numerator) / centre.denominator - root)
        assert distance <= mpmath.mpf(certificate.radius) < mpmath.mpf(10) ** -40
        multiplier = mpmath.mpf(0.3) * mpmath.cos(root)
        assert abs(multiplier - certificate.multipliers.mid[0].real) <= certificate.multipliers.rad[0]
    assert certificate.stability == "stable" and certificate.uniqueness_radius >= 1


def test_equal_multipliers_share_their_enclosure():
    objective = gdmap.Function(lambda x: jnp.sum(x**2) / 2 + jnp.sum(x) ** 4, 30)
    for n in (3, 30):
        objective = gdmap.Function(lambda x: jnp.sum(x**2) / 2 + jnp.sum(x) ** 4, n)
        certificate = certify_periodic_orbit(gdmap.GradientDescent(objective, 0.5), np.zeros(n))
        assert certificate.stability == "stable"
        assert np.all(np.abs(certificate.multipliers.mid - 0.5) <= certificate.multipliers.rad)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None)
@pytest.mark.slow
def test_random_critical_points_against_double_precision(seed):
    rng = np.random.default_rng(seed)
    A, b = rng.standard_normal((4, 3)), rng.standard_normal(4)
    objective = gdmap.Function(lambda x: jnp.sum(jnp.sin(jnp.asarray(A) @ x - b)) + jnp.sum(x**2), 3)
    theta = rng.standard_normal(3)
    for _ in range(60):
        theta = theta - np.linalg.lstsq(objective.hessian(theta), objective.gradient(theta), rcond=None)[0]
    map_ = gdmap.GradientDescent(objective, 0.3)
    certificate = certify_periodic_orbit(map_, theta)
    if np.linalg.norm(objective.gradient(theta)) > 1e-10 or np.linalg.cond(objective.hessian(theta)) > 1e8:
        return
    assert certificate.proved and certificate.period == 1
    assert np.all(np.abs(certificate.points.mid[0] - theta) <= 1e-9)
    expected = np.linalg.eigvalsh(map_.jacobian(theta))
    np.testing.assert_allclose(np.sort(certificate.multipliers.mid.real), expected, atol=1e-8)
    assert certificate.stability == ("stable" if np.max(np.abs(expected)) < 1 else "unstable")
    # The orbit that is proved stays within the stated distance of its image.
    image = map_.step(certificate.points.mid[0])
    assert np.max(np.abs(image - certificate.points.mid[0])) < 1e-12


def test_input_is_checked():
    map_ = gdmap.GradientDescent(WELL, 1.1)
    with pytest.raises(TypeError, match="expected a map"):
        certify_periodic_orbit(WELL, np.zeros(1))
    with pytest.raises(TypeError, match="expected a map"):
        check_periodic_orbit(WELL, {})
    adam = gdmap.Optimiser(WELL, optax.adam, learning_rate=0.1)
    with pytest.raises(ValueError, match="depends on time"):
        certify_periodic_orbit(adam, np.zeros(3))
    for points in (np.zeros((2, 2)), np.zeros((0, 1)), np.zeros((1, 1, 1)), 0.0):
        with pytest.raises(ValueError, match="points has shape"):
            certify_periodic_orbit(map_, points)
    for points in (np.array([np.nan]), np.array([np.inf])):
        with pytest.raises(ValueError, match="finite"):
            certify_periodic_orbit(map_, points)
    with pytest.raises(TypeError, match="real numbers"):
        certify_periodic_orbit(map_, np.array([1j]))
    for radius in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="radius must be"):
            certify_periodic_orbit(map_, np.zeros(1), radius=radius)
    for bits in (0, 52, 10**8, 128.0, True):
        with pytest.raises(ValueError, match="bits must be"):
            certify_periodic_orbit(map_, np.zeros(1), bits=bits)
    assert certify_periodic_orbit(map_, np.float32([0.0])).proved
    assert certify_periodic_orbit(map_, [0]).proved


@given(st.floats(-1e30, 1e30), st.floats(0, 1e10))
@settings(max_examples=100, deadline=None)
def test_boxes_contain_and_exact_numbers_survive_writing(x, radius):
    (ball,) = box(exact(np.array([x])), radius)
    for end in (Fraction(x) - Fraction(radius), Fraction(x) + Fraction(radius)):
        assert (ball - arb(end.numerator) / arb(end.denominator)).contains(0)
    (point,) = exact(np.array([x]))
    again = read_exact(written(point))
    assert again.is_exact() and again == point

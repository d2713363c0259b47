"""Invertible Jacobians on boxes, against determinants whose zeros are known in closed form."""

import json
import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gdmap
from gdmap.certify.box import certify_invertible, check_invertible

WELL = gdmap.Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
TWO_FACTORS = gdmap.Function(lambda x: (x[0] * x[1] - 1) ** 2 / 2, 2)


def checked(map_, certificate):
    """The certificate, its record checked again after a way through JSON."""
    assert (certificate.proof is None) == (certificate.verdict == "undecided")
    if certificate.proof is not None:
        accepted, reason = check_invertible(map_, json.dumps(certificate.proof))
        assert accepted and reason
    assert certificate.explain()
    return certificate


@pytest.mark.parametrize("eta", [0.1, 0.5, 0.9])
def test_the_double_well_up_to_its_critical_point(eta):
    map_ = gdmap.GradientDescent(WELL, eta)
    edge = math.sqrt((1 + eta) / (3 * eta))
    for below in (0.5 * edge, 0.995 * edge, edge * (1 - 1e-12)):
        certificate = checked(map_, certify_invertible(map_, -below, below))
        assert certificate.verdict == "invertible" and certificate.one_to_one and certificate.boxes < 200
    for above in (edge * (1 + 1e-12), 1.005 * edge, 10.0):
        certificate = checked(map_, certify_invertible(map_, -above, above))
        assert certificate.verdict == "not invertible" and not certificate.one_to_one
        assert np.all(np.abs(certificate.witnesses) <= above)
        low, high = sorted(map_.slogdet(point)[0] for point in certificate.witnesses)
        assert low == -1 and high == 1
    # Beyond the critical point the Jacobian is negative, and invertible again.
    outside = checked(map_, certify_invertible(map_, 1.001 * edge, 9.0))
    assert outside.verdict == "invertible" and not outside.one_to_one
    assert "not proved" in outside.explain()


def test_the_published_edge():
    map_ = gdmap.GradientDescent(WELL, 0.1)
    assert certify_invertible(map_, -1.914, 1.914).verdict == "invertible"
    assert certify_invertible(map_, -1.914854215512, 1.914854215512).verdict == "invertible"
    assert certify_invertible(map_, -1.914854215514, 1.914854215514).verdict == "not invertible"


@pytest.mark.parametrize("eta", [0.1, 0.5])
def test_two_factors_up_to_the_largest_box(eta):
    map_ = gdmap.GradientDescent(TWO_FACTORS, eta)
    half = math.sqrt((1 - eta) / (3 * eta))
    inside = checked(map_, certify_invertible(map_, -0.995 * half, 0.995 * half))
    assert inside.verdict == "invertible" and inside.one_to_one
    outside = checked(map_, certify_invertible(map_, -1.005 * half, [1.005 * half, 1.005 * half]))
    assert outside.verdict == "not invertible"
    # The zero lies on a = -b: the quarter round the line a = b is free of it.
    assert certify_invertible(map_, [0.0, 0.0], [1.005 * half, 1.005 * half]).verdict == "invertible"


def test_constant_maps_are_singular_and_near_misses_are_not():
    constant = gdmap.GradientDescent(gdmap.Function(lambda x: x[0] ** 2, 1), 0.5)
    certificate = checked(constant, certify_invertible(constant, -1.0, 1.0))
    assert certificate.verdict == "not invertible" and len(certificate.witnesses) == 1
    assert "exactly zero" in certificate.explain()
    # The binary number 0.1 times 10 is not 1.
    near = gdmap.GradientDescent(gdmap.Function(lambda x: 5 * x[0] ** 2, 1), 0.1)
    assert certify_invertible(near, -1.0, 1.0).verdict == "invertible"
    one_of_many = gdmap.GradientDescent(
        gdmap.Function(lambda x: x[0] ** 2 + jnp.sum(x[1:] ** 2) / 8 + jnp.sum(x) ** 4, 3), 0.5
    )
    assert certify_invertible(one_of_many, -1.0, 1.0, max_boxes=50).verdict == "not invertible"


coefficients = st.tuples(*[st.integers(-4, 4)] * 3)
ends = st.tuples(st.integers(-8, 8), st.integers(0, 8))


@given(coefficients, ends, st.sampled_from([0.25, 0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_quartics_against_exact_extremes_of_the_determinant(c, interval, eta):
    """det = 1 - eta L'' is a quadratic polynomial: its range on an interval is known exactly."""
    low, high = interval[0] / 4, (interval[0] + interval[1]) / 4
    map_ = gdmap.GradientDescent(
        gdmap.Function(lambda x: c[0] * x[0] ** 4 / 4 + c[1] * x[0] ** 3 / 2 + c[2] * x[0] ** 2 / 2, 1), eta
    )
    points = [Fraction(low), Fraction(high)]
    if c[0] and low < -Fraction(c[1], 2 * c[0]) < high:
        points.append(-Fraction(c[1], 2 * c[0]))
    values = [1 - Fraction(eta) * (3 * c[0] * x * x + 3 * c[1] * x + c[2]) for x in points]
    certificate = checked(map_, certify_invertible(map_, low, high, max_boxes=300))
    if certificate.verdict == "invertible":
        assert min(values) > 0 or max(values) < 0
        assert certificate.one_to_one == (min(values) > 0)
    elif certificate.verdict == "not invertible":
        assert min(values) <= 0 <= max(values)
    else:  # a double zero has no sign change, and its point need not be a float
        assert 0 in values


@pytest.mark.parametrize("n", [3, 6, 12])
def test_random_quadratics_in_more_dimensions(n):
    rng = np.random.default_rng(n)
    A = rng.standard_normal((n, n))
    H = (A + A.T) / 2
    eigenvalues = np.linalg.eigvalsh(H)
    objective = gdmap.Function(lambda x: x @ jnp.asarray(H) @ x / 2 + 1e-3 * jnp.sum(jnp.cos(x)), n)
    positive = eigenvalues[eigenvalues > 0.1]
    safe = 1 / (positive[-1] + 0.1)
    certificate = certify_invertible(gdmap.GradientDescent(objective, safe), -10.0, 10.0)
    assert certificate.verdict == "invertible" and certificate.one_to_one and certificate.boxes == 1
    beyond = certify_invertible(gdmap.GradientDescent(objective, 3 / positive[-1]), -10.0, 10.0)
    if np.min(np.abs(1 - 3 * eigenvalues / positive[-1])) > 0.02:
        assert beyond.verdict == "invertible" and not beyond.one_to_one
    # On the eigenvalue itself the determinant changes sign, or nothing can be said.
    on_it = certify_invertible(gdmap.GradientDescent(objective, 1 / positive[-1]), -10.0, 10.0)
    assert on_it.verdict != "invertible"
    heavy = gdmap.Optimiser(objective, optax.sgd, learning_rate=1 / positive[-1], momentum=0.9)
    certificate = certify_invertible(heavy, -10.0, 10.0)
    assert certificate.verdict == "invertible" and not certificate.one_to_one
    assert check_invertible(heavy, certificate.proof)[0]


def test_kinks():
    objective = gdmap.Function(lambda x: (jnp.maximum(x[0] * x[1], 0.0) - 1) ** 2 / 2, 2)
    map_ = gdmap.GradientDescent(objective, 0.25)
    inside = checked(map_, certify_invertible(map_, [0.5, 0.5], [1.0, 1.0]))
    assert inside.verdict == "invertible"
    across = checked(map_, certify_invertible(map_, [-0.1, 0.5], [0.5, 1.0], max_boxes=200))
    assert across.verdict == "undecided" and "kink" in across.reason and len(across.witnesses) == 1
    # Opposite signs on the two sides of a kink are no zero.
    jump = gdmap.Function(lambda x: jnp.where(x[0] > 0, 3.0 * x[0] ** 2, 0.0) / 2, 1)
    across = certify_invertible(gdmap.GradientDescent(jump, 1.0), -1.0, 1.0, max_boxes=100)
    assert across.verdict == "undecided" and "kink" in across.reason
    assert certify_invertible(gdmap.GradientDescent(jump, 1.0), 1e-300, 1.0).verdict == "invertible"


def test_a_sign_change_through_a_pole_is_no_zero():
    objective = gdmap.Function(lambda x: 1 / x[0], 1)  # det = 1 - 2 / x^3
    map_ = gdmap.GradientDescent(objective, 1.0)
    assert certify_invertible(map_, -1.0, 0.1, max_boxes=200).verdict == "undecided"
    assert certify_invertible(map_, 0.1, 1.2).verdict == "invertible"
    zero = checked(map_, certify_invertible(map_, -1.0, 2.0))
    assert zero.verdict == "not invertible" and np.all(zero.witnesses > 0)


def test_tampered_records_are_rejected():
    map_ = gdmap.GradientDescent(WELL, 0.1)
    good = certify_invertible(map_, -1.9148542155, 1.9148542155).proof
    bad = certify_invertible(map_, -2.0, 2.0).proof
    assert check_invertible(map_, good)[0] and check_invertible(map_, bad)[0]
    changes = [
        {**good, "upper": [(1.92).hex()]},
        {**good, "verdict": "not invertible", "one_to_one": False},
        {**good, "verdict": "undecided"},
        {**good, "boxes": 1},
        {**good, "boxes": 0},
        {**good, "bits": 3},
        {**good, "lower": [(3.0).hex()]},
        {**good, "lower": ["inf"]},
        {**good, "lower": [(0.0).hex()] * 2},
        {**good, "kind": "periodic orbit"},
        {**bad, "verdict": "invertible"},
        {**bad, "one_to_one": True},
        {**bad, "witnesses": bad["witnesses"][:1]},
        {**bad, "witnesses": [(0.0).hex()]},
        {**bad, "witnesses": [[(0.0).hex()], [(0.5).hex()]]},
        {**bad, "witnesses": [[(0.0).hex()], [(9.0).hex()]]},
        {key: value for key, value in bad.items() if key != "witnesses"},
        "not json",
        None,
    ]
    for record in changes:
        accepted, reason = check_invertible(map_, record)
        assert accepted is False and reason
    negative = certify_invertible(map_, 2.0, 3.0).proof
    assert check_invertible(map_, negative)[0]
    assert not check_invertible(map_, {**negative, "one_to_one": True})[0]
    for other in (gdmap.GradientDescent(WELL, 0.2), gdmap.GradientDescent(TWO_FACTORS, 0.1)):
        assert not check_invertible(other, good)[0]


def test_budget_and_degenerate_boxes():
    map_ = gdmap.GradientDescent(WELL, 0.1)
    short = certify_invertible(map_, -1.91485421551, 1.91485421551, max_boxes=5)
    assert short.verdict == "undecided" and short.boxes == 5 and "max_boxes" in short.explain()
    point = checked(map_, certify_invertible(map_, 0.5, 0.5))
    assert point.verdict == "invertible" and point.boxes == 1
    flat = checked(map_, certify_invertible(map_, np.float32(0.0), 1))
    assert flat.verdict == "invertible"


def test_input_is_checked():
    map_ = gdmap.GradientDescent(TWO_FACTORS, 0.1)
    with pytest.raises(TypeError, match="expected a map"):
        certify_invertible(TWO_FACTORS, 0.0, 1.0)
    with pytest.raises(ValueError, match="depends on time"):
        certify_invertible(gdmap.Optimiser(WELL, optax.adam, learning_rate=0.1), 0.0, 1.0)
    with pytest.raises(ValueError, match="have shapes"):
        certify_invertible(map_, np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match="must not exceed"):
        certify_invertible(map_, 1.0, 0.0)
    for end in (np.inf, np.nan):
        with pytest.raises(ValueError, match="finite"):
            certify_invertible(map_, 0.0, end)
    with pytest.raises(TypeError, match="real numbers"):
        certify_invertible(map_, "0", "1")
    for budget in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="max_boxes"):
            certify_invertible(map_, 0.0, 1.0, max_boxes=budget)

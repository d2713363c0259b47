"""mu on the normal space: known values, minima without samples, errors."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmap import Function, LinearNetwork
from gdmap.exponents.gd_exponent import gd_exponent, gd_exponent_at
from gdmap.exponents.interpolation import interpolating_minimum
from gdmap.minima import balanced_minimum
from tests.exponents.losses import on_the_hyperbola, tanh_network, two_points, with_gram


@settings(max_examples=15, deadline=None)
@given(st.floats(2.05, 9.5), st.sampled_from([(0.15, 0.5), (0.3, 0.58)]))
def test_two_points(s, setting):
    eta, p = setting
    mu = gd_exponent(two_points([p, 1 - p]), on_the_hyperbola(s), eta)
    expected = math.log(abs(1 - eta * (0.81 * p + 6.25 * (1 - p)) * s))
    assert mu.lower - 1e-13 <= expected <= mu.upper + 1e-13
    assert mu.upper - mu.lower < 1e-9 and mu.status == "computed"
    assert mu.verdict == ("stable" if expected < 0 else "unstable")


def test_gram_examples():
    for gram, eta, expected in (
        ([[3, 0], [0, 1.2]], 0.5, -0.3566749439),
        ([[3, 0.7], [0.7, 1.2]], 0.5, -0.27438),
        ([[3, 0.7], [0.7, 1.2]], 0.9, -0.56549),
    ):
        assert gd_exponent(with_gram(gram), np.ones(4), eta).value == pytest.approx(expected, abs=6e-6)


def test_minima_without_samples_and_the_critical_step_size():
    network = LinearNetwork.whitened((2, 2, 2), np.diag([2.0, 1.0]))
    theta = balanced_minimum(network)
    assert gd_exponent(network, theta, 0.49).verdict == "stable"
    assert gd_exponent(network, theta, 0.51).verdict == "unstable"
    at = gd_exponent(network, theta, 0.5)
    assert at.verdict == "undecided" and at.lower <= 0 <= at.upper
    assert "nullity" in at.method


def test_a_multiplier_that_may_be_zero_has_no_lower_end():
    mu = gd_exponent(Function(lambda w: 2 * w[0] ** 2, 1), [0.0], 0.25)
    assert mu.lower == -math.inf and mu.upper < -30 and mu.verdict == "stable"


def test_weights_of_samples_at_an_interpolating_minimum():
    point = interpolating_minimum(two_points(), on_the_hyperbola(2.1))
    for p in (0.5, 0.58):
        dense = gd_exponent(two_points([p, 1 - p]), on_the_hyperbola(2.1), 0.3)
        assert gd_exponent_at(point, np.array([p, 1 - p]), 0.3).value == pytest.approx(dense.value, abs=1e-12)


@pytest.mark.slow
def test_above_a_thousand_parameters():
    objective, teacher = tanh_network(1, 40, 24, 2, 8)
    mu = gd_exponent(objective, teacher, 0.01)
    top = np.linalg.eigvalsh(interpolating_minimum(objective, teacher).mean_matrix(np.full(8, 1 / 8)))
    assert mu.value == pytest.approx(np.log(np.abs(1 - 0.01 * top)).max(), abs=1e-12)


def test_above_a_thousand_parameters_samples_are_needed():
    with pytest.raises(ValueError, match="through the samples"):
        gd_exponent(Function(lambda w: w @ w, 1001), np.zeros(1001), 0.1)


def test_errors():
    for step_size in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="step_size"):
            gd_exponent(two_points(), on_the_hyperbola(3.0), step_size)
    with pytest.raises(ValueError, match="gradient norm"):
        gd_exponent(two_points(), [1.0, 1.5], 0.1)
    with pytest.raises(ValueError, match="vanishes altogether"):
        gd_exponent(Function(lambda w: 0 * w[0], 1), [0.0], 0.1)

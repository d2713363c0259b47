import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdmap.exponents.commuting import batch_weights, first_unstable_step_size, mean_log_multiplier
from gdmap.maps import Batches


def mean_log(x, p, step_size):
    return mean_log_multiplier(np.asarray(x, float), np.asarray(p, float), step_size, 1e-15).value


@pytest.mark.parametrize(
    ("curvatures", "step_size", "p", "exponent"),
    [((8, 2), 0.6, 0.5, -0.137218), ((1.62, 12.5), 0.3, 0.58, 0.038864), ((0.5, 3), 0.9, 0.5, -0.03360)],
)
def test_golden_values(curvatures, step_size, p, exponent):
    assert mean_log(curvatures, (p, 1 - p), step_size) == pytest.approx(exponent, abs=6e-6)


def test_a_multiplier_of_zero_gives_minus_infinity():
    found = mean_log_multiplier(np.array([1.0, 4.0]), np.array([0.5, 0.5]), 0.25, 1e-15)
    assert found.value == -math.inf
    assert found.lower == -math.inf
    assert found.upper < -8


def test_the_interval_contains_the_value_of_a_moved_curvature():
    x, p = np.array([1.0, 3.0]), np.array([0.4, 0.6])
    found = mean_log_multiplier(x, p, 0.5, 1e-6)
    for shift in ((1e-6, 1e-6), (-1e-6, 1e-6), (1e-6, -1e-6)):
        assert found.lower <= mean_log(x + shift, p, 0.5) <= found.upper


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 1)), min_size=1, max_size=6),
)
def test_the_first_crossing_has_no_unstable_step_size_below_it(pairs):
    x, p = np.array(pairs).T
    p = p / p.sum()
    root = first_unstable_step_size(x, p)
    mean_square = 2 * (p @ x) / (p @ x**2)
    assert root >= mean_square * (1 - 1e-9)
    below = np.linspace(0, root, 4001)[1:-1]
    with np.errstate(divide="ignore"):
        assert np.all(np.log(np.abs(1 - np.outer(below, x))) @ p <= 1e-9)
    above = root * (1 + np.geomspace(1e-12, 1e-3, 40))
    assert max(mean_log(x, p, eta) for eta in above) > 0


def test_many_poles_are_scanned_to_the_same_root(monkeypatch):
    x, p = np.array([0.81, 6.25, 2.0]), np.array([0.5, 0.3, 0.2])
    exact = first_unstable_step_size(x, p)
    monkeypatch.setattr("gdmap.exponents.commuting.MOST_POLES", 0)
    assert first_unstable_step_size(x, p) == pytest.approx(exact, rel=1e-12)


def test_curvatures_that_have_no_threshold():
    with pytest.raises(ValueError, match="all curvatures are zero"):
        first_unstable_step_size(np.zeros(2), np.full(2, 0.5))
    with pytest.raises(ValueError, match="negative curvature"):
        first_unstable_step_size(np.array([1.0, -1.0]), np.full(2, 0.5))


def test_batches_are_listed_or_drawn():
    listed = batch_weights(Batches(6, 2), seed=0)
    assert not listed.drawn
    assert listed.weights.shape == (15, 6)
    drawn = batch_weights(Batches(6, 2), seed=0, most=10)
    assert drawn.drawn
    assert np.allclose(drawn.weights.sum(axis=1), 1)
    curvature = np.arange(1.0, 7.0)
    exact = mean_log_multiplier(listed.weights @ curvature, listed.probability, 0.3, 0.0)
    sampled = mean_log_multiplier(drawn.weights @ curvature, drawn.probability, 0.3, 0.0, drawn=True)
    assert abs(sampled.value - exact.value) <= 4 * sampled.standard_error
    assert sampled.standard_error > 0


def test_drawn_batches_of_epochs_have_the_law_of_a_random_place():
    law = Batches(7, 3, shuffle=True)
    support = law.support(1000)
    drawn = batch_weights(law, seed=1, most=10)
    sizes = np.count_nonzero(drawn.weights, axis=1)
    expected = support[1][np.count_nonzero(support[0], axis=1) == 1].sum()
    assert np.mean(sizes == 1) == pytest.approx(expected, abs=4 * math.sqrt(expected / len(sizes)))

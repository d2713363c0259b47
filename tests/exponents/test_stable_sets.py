import numpy as np
import pytest

from gdmap import gd_exponent, mean_square_threshold, minima_curve, sgd_exponent, stable_sets
from tests.exponents.losses import on_the_hyperbola, tanh_network, two_points, with_gram

LAWS = [[0.5, 0.5], [0.58, 0.42]]


@pytest.fixture(scope="module")
def along_the_hyperbola():
    s = np.linspace(2.001, 9.9, 25)
    found = stable_sets(
        two_points(),
        [on_the_hyperbola(x) for x in s],
        [0.15, 0.3],
        probabilities=LAWS,
        batch_sizes=(1, 2),
        replace=True,
    )
    return s, found


def test_the_two_sample_network(along_the_hyperbola):
    s, found = along_the_hyperbola
    assert dict(found.sizes) == {
        "minimum": 25,
        "step_size": 2,
        "batch_size": 2,
        "law": 2,
        "component": 2,
        "sample": 2,
    }
    assert found.attrs["status"] == "computed"
    left = found.sel(step_size=0.15, batch_size=1).isel(law=0)
    assert np.array_equal(left.gd_stability == 1, s < 3.777148)
    assert np.array_equal(left.sgd_stability == 1, (s < 2.635898) | ((s > 6.661222) & (s < 9.297119)))
    right = found.sel(step_size=0.3, batch_size=1).isel(law=1)
    assert np.array_equal(right.gd_stability == 1, s < 2.154151)
    assert np.array_equal(right.sgd_stability == 1, (s > 2.537249) & (s < 4.998564))
    h = np.array([p * 0.81 + (1 - p) * 6.25 for p, _ in LAWS])
    assert np.allclose(found.sharpness.sel(batch_size=1), h * s[:, None], rtol=1e-9)


def test_it_agrees_with_the_single_functions(along_the_hyperbola):
    s, found = along_the_hyperbola
    theta, one = on_the_hyperbola(s[7]), found.isel(minimum=7, law=1).sel(step_size=0.3, batch_size=2)
    loss = two_points().weighted(LAWS[1])
    assert float(one.gd_exponent) == pytest.approx(gd_exponent(loss, theta, 0.3).value, abs=1e-9)
    assert float(one.sgd_exponent) == pytest.approx(
        sgd_exponent(loss, theta, 0.3, 2, replace=True).value, abs=1e-9
    )
    threshold = mean_square_threshold(loss, theta, 2, replace=True)
    assert float(one.mean_square_threshold) == pytest.approx(threshold.value, rel=1e-9)
    assert np.isnan(float(one.sgd_standard_error))


def test_sampled_exponents_have_their_errors():
    loss = with_gram([[3, 0.7], [0.7, 1.2]])
    found = stable_sets(loss, np.ones((1, 4)), [0.5, 0.9], replicas=64)
    assert found.attrs["status"] == "estimated"
    assert np.all(found.sgd_estimated)
    assert np.all(found.sgd_standard_error > 0)
    assert found.sgd_stability.values.ravel().tolist() == [1, -1]
    assert found.gd_stability.values.ravel().tolist() == [1, 1]


@pytest.mark.slow
def test_a_curve_of_minima_and_epochs():
    loss, theta = tanh_network(0, 2, 4, 1, 3)
    curve = minima_curve(loss, theta, length=0.2, points=3)
    calls = []
    found = stable_sets(
        loss, curve, 0.05, shuffle=True, replicas=16, max_steps=1024, progress=lambda *done: calls.append(done)
    )
    assert found.sizes["minimum"] == len(curve)
    assert np.all(np.isnan(found.mean_square_threshold))
    assert calls[-1] == (found.sizes["minimum"], found.sizes["minimum"])


def test_points_that_are_no_minima_are_named():
    with pytest.raises(ValueError, match="point 1"):
        stable_sets(two_points(), [on_the_hyperbola(3.0), [2.0, 2.0]], 0.1)
    with pytest.raises(ValueError, match="larger than the number"):
        stable_sets(two_points(), on_the_hyperbola(3.0), 0.1, batch_sizes=(1, 3))
    with pytest.raises(ValueError, match="sum to 1"):
        stable_sets(two_points(), on_the_hyperbola(3.0), 0.1, probabilities=[0.5, 0.6])

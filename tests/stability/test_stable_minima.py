"""How stable minima are distributed (theory 2.4): bounded sets, unbounded ones, and their spectra."""

import numpy as np
import pytest

import gdmap
from gdmap import Function, LinearNetwork, minima_spectra, stable_minima
from gdmap.stability.stable_minima import boundedness_of_network
from tests.conftest import random_network
from tests.minima.losses import Product, TanhNeuron

WIDE = LinearNetwork.whitened((1, 2, 2, 1), [[1.0]])


def along_the_family(t):
    return WIDE.ravel([np.array([[1.0], [0.0]]), np.diag([1.0, t]), np.array([[1.0, 0.0]])])


@pytest.mark.slow
def test_family_with_the_same_spectrum_everywhere():
    family = np.stack([along_the_family(t) for t in (0.0, 1.0, 10.0, 100.0)])
    spectra = minima_spectra(WIDE, family)
    np.testing.assert_allclose(spectra.eigenvalue, [[3.0] + [0.0] * 7] * 4, atol=1e-11)
    assert np.all(np.abs(spectra.sharpness - 3) <= spectra.eigenvalue_error)
    found = stable_minima(WIDE, 0.5, family)
    assert found.stable.all()
    assert found.attrs["bounded"] == "unbounded"
    assert not stable_minima(WIDE, 0.7, family).stable.any()


@pytest.mark.slow
def test_a_general_search_finds_the_unbounded_family_too():
    # The same loss as a plain function: nothing is known of it.
    objective = Function(lambda w: (w[6:8] @ w[2:6].reshape(2, 2) @ w[:2] - 1) ** 2 / 2, 8)
    found = stable_minima(objective, 0.5, along_the_family(1.0), reach=50)
    assert (found.attrs["bounded"], found.attrs["bounded_status"]) == ("unbounded", "estimated")
    assert found.attrs["farthest_stable_distance"] > 50


def test_bounded_stable_minima_of_the_product_of_two():
    # x y = 1 with x^2 + y^2 < 2 / eta: the outermost stable minimum lies at distance sqrt(2 / eta).
    found = stable_minima(Function(Product(), 2), 0.5, n=12)
    np.testing.assert_array_equal(found.stable, found.norm**2 < 4)
    assert (found.attrs["bounded"], found.attrs["bounded_status"]) == ("bounded", "estimated")
    x = np.geomspace(0.4, 2.5, 200_001)
    hyperbola = np.concatenate([sign * np.stack([x, 1 / x], axis=1) for sign in (1, -1)])
    stable = hyperbola[np.linalg.norm(hyperbola, axis=1) < 2]
    outermost = np.linalg.norm(stable - np.median(found.theta, axis=0), axis=1).max()
    assert found.attrs["farthest_stable_distance"] == pytest.approx(outermost, rel=1e-2)
    assert found.attrs["stability_limit"] == 4.0


@pytest.mark.parametrize(
    ("eta", "verdict"), [(1.5, "unbounded"), pytest.param(2.5, "bounded", marks=pytest.mark.slow)]
)
def test_the_tanh_neuron_is_bounded_above_step_size_two(eta, verdict):
    # theory 6.3: the sharpness tends to 1 far out.
    found = stable_minima(Function(TanhNeuron(0.5), 2), eta, n=8, reach=50)
    assert found.attrs["bounded"] == verdict


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_a_bounded_piece_of_a_valley_wherever_it_lies(shift):
    # sharpness 200 (1 + 4 x^2) < 400 where |x| < 1/2.
    def loss(w):
        return 100 * (w[1] - (w[0] - shift) ** 2) ** 2

    found = stable_minima(Function(loss, 2), 0.005, np.array([[shift + x, x * x] for x in (-0.01, 0.3, 1.0)]))
    assert found.attrs["bounded"] == "bounded"
    assert "pieces they lie on" in found.attrs["bounded_reason"]
    # From the middle, (0.3, 0.09), the far end is (-1/2, 1/4).
    assert found.attrs["farthest_stable_distance"] == pytest.approx(np.hypot(0.8, 0.16), rel=1e-2)


@pytest.mark.slow
def test_an_unbounded_line_from_the_origin():
    found = stable_minima(Function(lambda x: x[1] ** 2 / 2, 2), 0.5, [[0.0, 0.0]])
    assert found.attrs["bounded"] == "unbounded"


def test_exactly_at_the_threshold_nothing_is_claimed():
    found = stable_minima(Function(lambda x: x @ x, 2), 1.0, [[0.0, 0.0]])
    assert found.undecided.all()
    assert found.attrs["bounded"] == "undecided"


@pytest.mark.slow
def test_spectrum_where_the_smallest_eigenvalue_is_not_bounded_below():
    # theory 2.4: W_2 = diag(t, 1/t), W_1 = diag(1/t, t): {0 x 4, 2/t^2, t^2 + 1/t^2 (twice), 2 t^2}
    network = LinearNetwork.whitened((2, 2, 2), np.eye(2))
    ts = np.array([1.0, 2.0, 10.0])
    family = np.stack([network.ravel([np.diag([1 / t, t]), np.diag([t, 1 / t])]) for t in ts])
    spectra = minima_spectra(network, family)
    for t, row in zip(ts, spectra.eigenvalue.values, strict=True):
        np.testing.assert_allclose(row[:4], [2 * t * t, *[t * t + t**-2] * 2, 2 / t**2], rtol=1e-12)
    found = stable_minima(network, 0.5, family)
    np.testing.assert_array_equal(found.stable, [True, False, False])
    assert found.attrs["bounded"] == "bounded"


@pytest.mark.slow
def test_no_stable_minimum_above_the_critical_step_size():
    network = random_network(0, (2, 2, 2))
    critical = gdmap.critical_step_size(network)
    found = stable_minima(network, 1.01 * critical.step_size.value, n=50)
    assert not found.stable.any()
    assert found.attrs["bounded"] == "empty"
    assert np.isnan(found.attrs["farthest_stable_distance"])
    at_flattest = stable_minima(network, 0.99 * critical.step_size.value, critical.minimum)
    assert at_flattest.stable.all()


def test_the_theory_of_boundedness_holds_its_tongue():
    assert boundedness_of_network(random_network(0, (3, 1, 3))) is None  # a bottleneck
    assert boundedness_of_network(random_network(0, (2, 2))) is None
    assert boundedness_of_network(Function(Product(), 2)) is None
    assert boundedness_of_network(LinearNetwork.whitened((2, 2, 3, 2), np.eye(2))) is None
    assert boundedness_of_network(LinearNetwork.whitened((2, 2, 2, 2), np.eye(2)))[0] == "bounded"
    assert boundedness_of_network(LinearNetwork.whitened((2, 2, 2, 2), np.diag([1.0, 0.0])))[0] == "unbounded"
    inputs = np.random.default_rng(0).normal(size=(20, 1)) @ [[1.0, 2.0]]
    assert boundedness_of_network(LinearNetwork((2, 2, 1), inputs, inputs[:, :1])) is None


def test_wrong_arguments():
    with pytest.raises(ValueError, match="point 1 is not a verified minimum"):
        minima_spectra(Function(Product(), 2), [[1.0, 1.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="step_size must be positive"):
        stable_minima(WIDE, -1.0)
    with pytest.raises(ValueError, match="reach"):
        stable_minima(WIDE, 0.5, reach=0.5)

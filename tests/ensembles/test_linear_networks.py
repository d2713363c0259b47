"""The experiment of arXiv:2402.13108 on deep linear networks: theory 2.6."""

import numpy as np
import pytest

import gdmap
from gdmap import GradientDescent, LinearNetwork, critical_step_size, ensemble, fate_names, gaussian_starts

FACTORS = (0.5, 0.9, 0.98, 1.02, 1.1, 1.5)
# theory 2.6: widths, W*, scale of the starts; share of 400 starts that reach a global minimum below criticality.
TABLE = [
    ((1, 1, 1), [[1.0]], 0.5, (1.000, 0.995, 0.9925)),
    ((1, 1, 1, 1), [[1.0]], 0.7, (0.9975, 0.9925, 0.9925)),
    ((2, 2, 2), np.diag([1, 0.5]), 0.5, (1.000, 0.960, 0.940)),
    ((2, 2, 2, 2), np.diag([1, 0.5]), 0.7, (0.9425, 0.745, 0.6775)),
    ((5, 5, 5), np.diag([1, 0.8, 0.6, 0.4, 0.2]), 0.3, (1.000, 0.995, 0.9675)),
    ((3, 1, 3), np.diag([1, 0.5, 0.25]), 0.5, (1.000, 0.980, 0.955)),
]


@pytest.mark.parametrize(
    ("widths", "target", "scale", "reference"),
    # They take long. Depth three has its order parameter below, bottlenecks their thresholds elsewhere.
    [pytest.param(*row, marks=[pytest.mark.slow] * (row[0] != (2, 2, 2))) for row in TABLE],
)
def test_shares_of_theory_2_6(widths, target, scale, reference):
    network = LinearNetwork.whitened(widths, target)
    critical = critical_step_size(network).step_size.value
    step_sizes = critical * np.array(FACTORS)
    result = gdmap.sweep(network, step_sizes, 400, max_steps=20_000, scale=scale, seed=1)
    share = result.fraction.sel(fate_name="minimum").values
    undecided = result.fraction.sel(fate_name="undecided").values
    np.testing.assert_array_equal(share[3:], 0)
    for found, open_, expected in zip(share[:3], undecided[:3], reference, strict=True):
        # Both shares are of 400 starts; undecided ones may belong to either side.
        pooled = (found + expected) / 2
        error = np.sqrt(max(pooled * (1 - pooled), 1 / 400) * 2 / 400)
        assert found - 4 * error <= expected <= found + open_ + 4 * error
    bounded = result.where(result.fate != gdmap.Fate.DIVERGED)
    assert np.nanmedian(bounded.gradient_norm[2]) < 1e-7
    assert np.nanmedian(bounded.gradient_norm[3]) > 0.1


@pytest.mark.parametrize(("eta", "norm"), [(1.02, 0.194147), (1.1, 0.387638), (1.2, 0.481125)])
def test_order_parameter_beyond_the_edge(eta, norm):
    network = LinearNetwork.whitened((1, 1, 1), [[1.0]])
    result = ensemble(GradientDescent(network, eta), gaussian_starts(50, 2, scale=0.3))
    periodic = result.isel(start=result.fate.values == gdmap.Fate.PERIODIC)
    assert periodic.sizes["start"] > 40
    np.testing.assert_array_equal(periodic.period, 2)
    exact = np.sqrt(2 * (eta - 1) / eta**3)
    assert exact == pytest.approx(norm, abs=1e-6)
    np.testing.assert_allclose(periodic.gradient_norm, exact, rtol=1e-5)


@pytest.mark.parametrize(("factor", "norm"), [(1.02, 0.187), (1.1, 0.378)])
def test_order_parameter_at_depth_three(factor, norm):
    network = LinearNetwork.whitened((1, 1, 1, 1), [[1.0]])
    result = ensemble(GradientDescent(network, factor * 2 / 3), gaussian_starts(50, 3, scale=0.7), 20_000)
    assert np.median(result.gradient_norm) == pytest.approx(norm, abs=6e-4)


@pytest.mark.parametrize("widths", [(1, 1, 1, 1), pytest.param((2, 2, 2, 2), marks=pytest.mark.slow)])
def test_trap_at_depth_three_and_twice_the_critical_step_size(widths):
    # Most orbits crawl towards the degenerate origin with vanishing gradients; none is at a minimum (2.6).
    network = LinearNetwork.whitened(widths, np.diag([1.0, 0.5])[: widths[0], : widths[0]])
    eta = 2 * critical_step_size(network).step_size.value
    result = ensemble(GradientDescent(network, eta), gaussian_starts(400, network.dim, scale=0.3), 6000)
    names = fate_names(result)
    assert not np.any(names == "minimum")
    if widths[0] == 1:
        crawling = (result.gradient_norm.values < 1e-6) & (names == "undecided")
        assert crawling.mean() > 0.5


def test_the_degenerate_origin_is_a_saddle_not_a_minimum():
    network = LinearNetwork.whitened((2, 2, 2, 2), np.diag([1.0, 0.5]))
    result = ensemble(GradientDescent(network, 0.1), np.zeros((1, network.dim)))
    assert fate_names(result)[0] == "saddle"
    assert gdmap.reason_names(result)[0] == "critical_point_above_optimum"


def test_linear_regression_has_no_saddles():
    network = LinearNetwork.whitened((3, 2), np.ones((2, 3)))
    starts = gaussian_starts(20, 6)
    assert set(fate_names(ensemble(GradientDescent(network, 1.9), starts))) == {"minimum"}
    beyond = ensemble(GradientDescent(network, 2.1), starts)
    assert set(fate_names(beyond)) == {"diverged"}
    assert set(gdmap.reason_names(beyond)) == {"norm_keeps_growing"}


def test_period_two_on_a_family_of_cycles_is_confirmed():
    # Widths (2, 2, 2) at step 1.1: the multipliers are 1, 1, .8, .75, ... (algorithms 2, neutral directions).
    network = LinearNetwork.whitened((2, 2, 2), np.diag([1.0, 0.5]))
    result = ensemble(GradientDescent(network, 1.1), gaussian_starts(60, 8, scale=0.3))
    periodic = fate_names(result) == "periodic"
    assert periodic.mean() > 0.8
    np.testing.assert_array_equal(result.period.values[periodic], 2)

from itertools import pairwise

import numpy as np
import pytest

from gdmap import LinearNetwork
from gdmap.minima import aligned_minimum, balanced_minimum, minimal_sharpness_bound
from gdmap.minima.linear_network import exact_minima
from tests.conftest import random_network


@pytest.mark.parametrize("widths", [(3, 3, 3), (2, 4, 3), (4, 4, 4, 2), (3, 2, 5, 3), (4, 3)])
def test_balanced_spectrum_has_the_closed_form(widths):
    rng = np.random.default_rng(0)
    network = LinearNetwork.whitened(widths, rng.normal(size=(widths[-1], widths[0])))
    theta = balanced_minimum(network)
    N, rank = network.depth, min(widths)
    s = np.linalg.svd(network.least_squares, compute_uv=False)
    padded = np.zeros((2, max(widths)))
    padded[0, :rank] = padded[1, :rank] = s[:rank]
    left, right = padded[0, : widths[-1]], padded[1, : widths[0]]
    expected = [
        sum(a ** (2 * (N - k) / N) * b ** (2 * (k - 1) / N) for k in range(1, N + 1)) for a in left for b in right
    ]
    # Pairs (i, j) with a singular value that was cut off are shifted by the residual (theory 2.4).
    cut = s[rank:]
    spectrum = np.sort(np.linalg.eigvalsh(network.hessian(theta)))[::-1]
    if len(cut) == 0:
        nonzero = np.sort(expected)[::-1]
        nonzero = nonzero[nonzero > 1e-12]
        np.testing.assert_allclose(spectrum[: len(nonzero)], nonzero, rtol=1e-10)
    assert spectrum[0] == pytest.approx(N * s[0] ** (2 - 2 / N), rel=1e-12)


def test_bound_solves_the_dual_problem():
    network = random_network(3, (4, 4, 4, 3), spread=3)
    bound = minimal_sharpness_bound(network)
    S, C, N = network.covariance_factor, network.whitened_target, network.depth

    def dual(t):
        return np.linalg.eigvalsh(t ** (N - 1) * S.T @ S + (N - 1) * C.T @ C / t)[-1]

    assert dual(bound.scale) == pytest.approx(bound.value, rel=1e-12)
    grid = bound.scale * np.exp(np.linspace(-2, 2, 401))
    assert min(map(dual, grid)) >= bound.value * (1 - 1e-12)
    v = np.random.default_rng(0).normal(size=(1000, 4))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    primal = N * np.linalg.norm(v @ S.T, axis=1) ** (2 / N) * np.linalg.norm(v @ C.T, axis=1) ** (2 - 2 / N)
    assert primal.max() <= bound.value * (1 + 1e-12)


def test_bound_at_a_kink_of_the_dual():
    # Sigma and C^T C commute and trade places: the top eigenvalue is double at the optimum.
    inputs = np.sqrt(2) * np.diag([4.0, 1.0])
    network = LinearNetwork((2, 2, 2), inputs, inputs @ np.diag([0.05, 2.0]))
    bound = minimal_sharpness_bound(network)
    theta = aligned_minimum(network, bound.scale)
    assert np.linalg.eigvalsh(network.hessian(theta))[-1] == pytest.approx(bound.value, rel=1e-12)
    assert 0.05 < abs(bound.direction[0]) < 0.999


def test_rank_deficient_targets_through_a_narrow_layer():
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(50, 4)) * [1, 2, 3, 4]
    network = LinearNetwork((4, 2, 5, 3), inputs, inputs @ rng.normal(size=(4, 1)) @ rng.normal(size=(1, 3)))
    assert network.target_rank == 1
    bound = minimal_sharpness_bound(network)
    theta = aligned_minimum(network, bound.scale)
    assert float(network.excess(theta)) < 1e-24
    assert np.linalg.eigvalsh(network.hessian(theta))[-1] == pytest.approx(bound.value, rel=1e-10)


@pytest.mark.parametrize("widths", [(3, 2, 3), (3, 4, 2), (4, 1, 2, 3)])
def test_the_balanced_minimum_is_a_global_minimum_for_any_covariance(widths):
    network = random_network(5, widths, spread=2)
    theta = balanced_minimum(network)
    assert abs(float(network.excess(theta))) < 1e-12 * network.target_energy
    layers = network.matrices(theta)
    for below, above in pairwise(layers):
        np.testing.assert_allclose(above.T @ above, below @ below.T, atol=1e-12 * np.sum(below**2))


@pytest.mark.parametrize("widths", [(3, 2), (2, 3, 2), (2, 4, 3), (3, 3, 4, 5), (2, 2, 2, 2)])
def test_exact_minima_are_global_and_differ(widths):
    network = random_network(6, widths)
    theta = exact_minima(network, 20, 0, 1.0)
    for row in theta:
        assert float(network.excess(row)) < 1e-18 * (1 + np.abs(row).max()) ** (2 * network.depth)
    if network.depth > 1:
        assert np.linalg.norm(theta[0] - theta[1]) > 0.1
    np.testing.assert_array_equal(theta[:5], exact_minima(network, 5, 0, 1.0))


def test_exact_minima_have_a_free_part_where_the_inputs_do_not_span():
    inputs = np.random.default_rng(0).normal(size=(30, 1)) @ [[1.0, 2.0]]
    network = LinearNetwork((2, 2, 1), inputs, inputs[:, :1])
    products = np.array([network.product(row) for row in exact_minima(network, 10, 0, 1.0)])
    assert np.std(products @ [2.0, -1.0]) > 0.1
    np.testing.assert_allclose(products @ [1.0, 2.0], 1.0, atol=1e-10)


def test_behind_a_bottleneck_there_is_no_exact_sampling():
    assert exact_minima(random_network(0, (3, 1, 3)), 5, 0, 1.0) is None


def test_wrong_uses_are_refused():
    with pytest.raises(ValueError, match="bottleneck"):
        aligned_minimum(random_network(0, (3, 1, 3)), 1.0)
    with pytest.raises(ValueError, match="optimum is zero"):
        minimal_sharpness_bound(LinearNetwork.whitened((2, 2, 2), np.zeros((2, 2))))

"""The set of minima as a manifold: dimension, charts, curves."""

import jax.numpy as jnp
import numpy as np
import pytest

from gdmap import Function, LinearNetwork, critical_step_size, minima_curve, minima_manifold, sample_minima
from gdmap.minima import Evidence
from gdmap.minima.manifold import expected_dimension
from tests.conftest import random_network
from tests.minima.losses import Product


@pytest.mark.parametrize(
    ("widths", "rank"),
    [
        ((2, 1, 2), 1),
        pytest.param((2, 3, 2), 2, marks=pytest.mark.slow),  # test_critical_step_size has more dimensions
        pytest.param((1, 2, 2, 1), 1, marks=pytest.mark.slow),
    ],
)
def test_networks_have_the_dimension_of_the_theory(widths, rank):
    # theory 2.2: n - r (d_0 + d_N - r)
    target = np.diag([2.0, 1.0])[: widths[-1], : widths[0]]
    network = LinearNetwork.whitened(widths, target)
    found = minima_manifold(network, critical_step_size(network).minimum)
    expected = network.dim - rank * (widths[0] + widths[-1] - rank)
    assert found.attrs["expected_dimension"] == expected
    assert found.nullity.item() == found.dimension.item() == expected
    assert found.agrees.item()
    assert found.null_gap.item() > 1e6


def test_no_dimension_is_expected_where_the_theory_is_silent():
    assert expected_dimension(LinearNetwork.whitened((2, 2, 2), np.diag([1.0, 0.0]))) is None
    assert expected_dimension(Function(Product(), 2)) is None
    assert expected_dimension(random_network(0, (2, 2, 2))) == 4


@pytest.mark.slow
def test_many_minima_at_once():
    objective = Function(Product(), 2)
    found = minima_manifold(objective, [[2.0, 0.5], [1.0, 1.0], [-3.0, -1 / 3]])
    np.testing.assert_array_equal(found.nullity, [1, 1, 1])
    np.testing.assert_array_equal(found.dimension, [1, 1, 1])
    assert found.agrees.all()


@pytest.mark.parametrize(
    ("loss", "point", "nullity", "dimension", "clear"),
    [
        pytest.param(lambda w: w[0] ** 4 + w[1] ** 2, [0.0, 0.0], 1, 0, True, marks=pytest.mark.slow),
        (lambda w: w[0] ** 4 * w[2] ** 2 + w[1] ** 2, [0.0, 0.0, 1.0], 2, 1, True),
        pytest.param(lambda w: (w @ w - 1) ** 2, [0.0, 0.6, 0.8], 2, 2, True, marks=pytest.mark.slow),
        (lambda w: (w[0] * w[1]) ** 2 + w[2] ** 2, [0.0, 0.0, 0.0], 2, None, False),  # two lines cross
    ],
)
def test_nullity_and_dimension_are_told_apart(loss, point, nullity, dimension, clear):
    found = minima_manifold(Function(loss, len(point)), point)
    assert found.nullity.item() == nullity
    assert found.dimension_clear.item() == clear
    if dimension is not None:
        assert found.dimension.item() == dimension
        assert found.agrees.item() == (nullity == dimension)
    else:
        assert not found.agrees.item()


def test_saddles_have_no_manifold_of_minima():
    with pytest.raises(ValueError, match="saddle"):
        minima_manifold(Function(Product(), 2), [0.0, 0.0])


def test_a_curve_of_minima():
    objective = Function(Product(), 2)
    curve = minima_curve(objective, [1.0, 1.0], [1.0, 0.0], length=3.0, points=60)
    assert curve.shape == (121, 2)
    np.testing.assert_allclose(curve[:, 0] * curve[:, 1], 1, rtol=1e-13)
    steps = np.linalg.norm(np.diff(curve, axis=0), axis=1)
    assert steps.sum() == pytest.approx(6.0, rel=5e-3)
    assert np.all(np.diff(curve[:, 0]) > 0)
    with pytest.raises(ValueError, match="isolated"):
        minima_curve(Function(lambda w: w @ w, 2), [0.0, 0.0], length=1.0)
    with pytest.raises(ValueError, match="normal to the set"):
        minima_curve(objective, [1.0, 1.0], [1.0, 1.0], length=1.0)
    with pytest.raises(ValueError, match="length must be positive"):
        minima_curve(objective, [1.0, 1.0], length=-1.0)


def test_samples_are_minima_and_addressed_by_their_index():
    objective = Function(lambda w: (w[1] - jnp.sin(w[0])) ** 2, 2)
    many, few = sample_minima(objective, 20, seed=3), sample_minima(objective, 5, seed=3)
    np.testing.assert_array_equal(many.theta[: few.sizes["minimum"]], few.theta)
    np.testing.assert_allclose(many.theta[:, 1], np.sin(many.theta[:, 0]), atol=1e-12)
    assert np.all(many.evidence == Evidence.MANIFOLD_OF_MINIMA)
    network = random_network(2, (2, 3, 2))
    exact = sample_minima(network, 30)
    assert "Gaussian" in exact.attrs["law"]
    assert exact.sizes["minimum"] == 30
    assert np.abs(exact.loss - network.optimal_value).max() < 1e-12 * network.target_energy


def test_only_the_lowest_minima_are_kept():
    objective = Function(lambda w: (w[0] ** 2 - 1) ** 2 + 0.1 * w[0], 1)
    found = sample_minima(objective, 20)
    assert np.all(found.theta < 0)
    assert "higher loss" in found.attrs["remark"]


def test_wrong_arguments_of_a_sampling():
    objective = Function(Product(), 2)
    for n in (0, -3, 2.5, True):
        with pytest.raises(ValueError, match="positive integer"):
            sample_minima(objective, n)
    with pytest.raises(ValueError, match="scale must be positive"):
        sample_minima(objective, 3, scale=0.0)
    with pytest.raises(TypeError, match="must be a gdmap objective"):
        sample_minima(lambda w: w @ w, 3)

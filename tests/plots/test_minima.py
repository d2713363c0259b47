import numpy as np
import pytest

from gdmap import (
    Function,
    LinearNetwork,
    critical_step_size,
    minima_curve,
    minima_spectra,
    sample_minima,
    stable_minima,
)
from gdmap.plots import plot_minima
from gdmap.plots.minima import caption

NETWORK = LinearNetwork.whitened((2, 2, 2), np.diag([2.0, 1.0]))


def test_stable_and_unstable_minima_beside_the_limit(tmp_path):
    found = stable_minima(NETWORK, 0.3, n=60)
    figure = plot_minima(found, title="a network")
    (axes,) = figure.axes
    labels = axes.get_legend_handles_labels()[1]
    assert labels == [
        "other non-zero eigenvalues",
        "sharpness, stable",
        "sharpness, unstable",
        "2 / step size = 6.667",
    ]
    drawn = [np.asarray(line.get_ydata()) for line in axes.lines]
    assert np.all(drawn[1] < 2 / 0.3) and np.all(drawn[2] >= 2 / 0.3)
    assert len(drawn[1]) + len(drawn[2]) == 60
    assert "60 minima, each with 4 zero eigenvalues (not shown)" in axes.get_title()
    figure.savefig(tmp_path / "minima.png")
    assert (tmp_path / "minima.png").stat().st_size > 10_000


def test_along_a_curve_without_a_step_size():
    curve = minima_curve(NETWORK, NETWORK.ravel([np.diag([2.0, 1.0]), np.eye(2)]), length=1.0, points=5)
    figure = plot_minima(minima_spectra(NETWORK, curve), against="minimum")
    np.testing.assert_array_equal(figure.axes[0].lines[-1].get_xdata(), np.arange(11))


def test_wrong_arguments():
    found = minima_spectra(NETWORK, NETWORK.ravel([np.diag([2.0, 1.0]), np.eye(2)]))
    with pytest.raises(ValueError, match="against must be"):
        plot_minima(found, against="time")
    with pytest.raises(ValueError, match="has no eigenvalue"):
        plot_minima(found.drop_vars("eigenvalue"))


def test_a_minimum_at_the_limit_is_neither_stable_nor_unstable(tmp_path):
    critical = critical_step_size(NETWORK)
    theta = np.vstack([sample_minima(NETWORK, 30)["theta"].values, critical.minimum])
    figure = plot_minima(stable_minima(NETWORK, float(critical.step_size), theta))
    (axes,) = figure.axes
    lines = {str(line.get_label()): line for line in axes.lines}
    at_limit = lines["sharpness, at the limit"]
    assert axes.lines[-1] is at_limit
    np.testing.assert_allclose(at_limit.get_ydata(), [4.0], rtol=1e-6)
    assert len(lines["sharpness, unstable"].get_ydata()) == 30
    assert at_limit.get_markersize() > lines["sharpness, unstable"].get_markersize()
    assert not any("sharpness, stable" in label for label in lines)
    figure.savefig(tmp_path / "minima.png")


def test_captions_count_minima_and_zeros():
    assert caption(np.array([4, 4])) == "2 minima, each with 4 zero eigenvalues (not shown)"
    assert caption(np.array([0, 2, 1])) == "3 minima, each with 0 to 2 zero eigenvalues (not shown)"
    assert caption(np.array([1])) == "1 minimum, with 1 zero eigenvalue (not shown)"
    assert caption(np.array([0, 0])) == "2 minima"


@pytest.mark.parametrize("theta", [[[1.0]], [[1.0], [-1.0]]])
def test_isolated_minima_get_a_range_of_their_size(theta):
    double_well = Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
    found = minima_spectra(double_well, theta)
    for step_size in (None, 1.0):
        (axes,) = plot_minima(found, step_size).axes
        assert "zero" not in axes.get_title()
        np.testing.assert_allclose(axes.get_xlim(), (0, 2))
        np.testing.assert_allclose(axes.get_ylim(), (0, 4))
    (axes,) = plot_minima(found, against="minimum").axes
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_a_minimum_at_the_origin():
    bowl = Function(lambda x: x[0] ** 2, 1)
    (axes,) = plot_minima(minima_spectra(bowl, [[0.0]])).axes
    assert axes.get_xlim() == (-1, 1)

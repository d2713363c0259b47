import numpy as np
import pytest

from gdmap import LinearNetwork, minima_curve, minima_spectra, stable_minima
from gdmap.plots import plot_minima

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
    assert "4 zero eigenvalues" in axes.get_title()
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

import numpy as np
import pytest

import gdmap
from gdmap import Bracket, LinearNetwork
from gdmap.plots import plot_spectrum, plot_transition
from gdmap.plots.transition import bounded_gradient_norms


@pytest.fixture(scope="module")
def result():
    network = LinearNetwork.whitened((1, 1, 1), [[1.0]])
    return gdmap.sweep(network, [2.2, 0.5, 1.1], 20, 2000, scale=[0.1, 0.5])


def test_transition_draws_every_fate_and_the_prediction(result, tmp_path):
    figure = plot_transition(result, Bracket(1.0, 0.9, 1.1, "computed", ""), "title")
    top = figure.axes[0]
    labels = top.get_legend_handles_labels()[1]
    assert {"minimum", "periodic", "diverged"} <= set(labels)
    assert any("critical step size 1 (computed)" in label for label in labels)
    minimum = next(line for line in top.lines if line.get_label() == "minimum")
    np.testing.assert_array_equal(minimum.get_xdata(), [0.5, 1.1, 2.2])
    np.testing.assert_array_equal(minimum.get_ydata(), [1, 0, 0])
    assert len(figure.axes) == 4
    figure.savefig(tmp_path / "picture.png")
    plot_transition(result.sel(scale=0.1, drop=True)).savefig(tmp_path / "one.png")


def test_gradient_norms_leave_divergence_out(result):
    quartiles = bounded_gradient_norms(result.sortby("step_size").sel(scale=0.1))
    assert quartiles[0, 1] < 1e-7
    assert quartiles[1, 1] == pytest.approx(np.sqrt(2 * 0.1 / 1.1**3), rel=1e-5)
    assert np.isnan(quartiles[2]).all()


def test_spectrum_shows_the_limit():
    figure = plot_spectrum(np.array([0.0, 3.0, 1.0]), Bracket(0.5, 0.5, 0.5, "computed", ""))
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [3, 1, 0])
    assert axes.lines[1].get_ydata()[0] == 4


def test_spectrum_takes_the_answer_itself_and_counts_in_whole_numbers():
    network = LinearNetwork.whitened((1, 1, 1), [[1.0]])
    critical = gdmap.critical_step_size(network)
    axes = plot_spectrum(np.linalg.eigvalsh(network.hessian(critical.minimum)), critical).axes[0]
    assert axes.lines[1].get_ydata()[0] == pytest.approx(2.0)
    assert all(float(tick).is_integer() for tick in axes.get_xticks())

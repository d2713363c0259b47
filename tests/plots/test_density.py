import io

import numpy as np
import pytest
import scipy.sparse as sp
import xarray as xr
from scipy.sparse.linalg import aslinearoperator

from gdmap.plots.density import plot_spectral_density
from gdmap.spectra import spectral_density


def test_density_is_drawn_with_its_error_and_largest_node():
    operator = aslinearoperator(sp.diags(np.r_[5.0, np.random.default_rng(0).normal(size=200)]))
    found = spectral_density(operator, probes=4, depth=30)
    figure = plot_spectral_density(found, "a title")
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert axes.get_title() == "a title"
    curve, line = axes.lines
    np.testing.assert_array_equal(curve.get_xdata(), found["eigenvalue"])
    assert curve.get_ydata().max() == found["density"].max()
    assert line.get_xdata()[0] == pytest.approx(5.0)
    assert "estimated" in curve.get_label()
    figure.savefig(io.BytesIO(), format="png")


def test_other_datasets_are_refused():
    with pytest.raises(ValueError, match="spectral_density"):
        plot_spectral_density(xr.Dataset({"x": ("k", [1.0])}))


def test_the_legend_lies_outside_the_panel():
    operator = aslinearoperator(sp.diags(np.r_[5.0, np.random.default_rng(0).normal(size=200)]))
    figure = plot_spectral_density(spectral_density(operator, probes=4, depth=30))
    figure.savefig(io.BytesIO(), format="png")
    (axes,), (legend,) = figure.axes, figure.legends
    assert axes.get_legend() is None
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())

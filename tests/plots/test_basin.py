import sys

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgb

from gdmap import Function, GradientDescent
from gdmap.ensembles.basin import basin
from gdmap.plots.basin import ATTRACTORS, attractor_colours, coloured, legend_entries, plot_basin

WELLS = Function(lambda w: (w[0] ** 2 - 1) ** 2 / 4 + w[1] ** 2 / 2, 2)


@pytest.fixture(scope="module")
def wells():
    return basin(GradientDescent(WELLS, 0.9), ((-4, 4), (-2, 2)), (160, 20), verify=0)


def test_basins_have_the_hue_of_their_attractor(wells, tmp_path):
    image = coloured(wells)
    assert image.shape == (20, 160, 3) and image.min() >= 0 and image.max() <= 1
    for number, colour in enumerate(attractor_colours(2), start=1):
        pixels = 1 - image[wells["attractor"].values == number]
        hue = 1 - np.array(to_rgb(colour))
        # Paler only: a share between 35 % and all of the way from white to the colour.
        shares = pixels @ hue / (hue @ hue)
        assert np.allclose(pixels, shares[:, None] * hue, atol=1e-12)
        assert shares.min() >= 0.35 - 1e-12 and shares.max() <= 1 + 1e-12
    plot_basin(wells, "Double well").savefig(tmp_path / "wells.png")


def test_legend_and_attractors(wells):
    labels = [entry.get_label() for entry in legend_entries(wells)]
    words = [label.split(":")[0] for label in labels]
    assert sorted(word[3:] for word in words[:2]) == ["minimum (-1, 0)", "minimum (1, 0)"]
    assert words[2:] == ["diverged", "paler = sooner"]
    figure = plot_basin(wells)
    drawn = sorted(float(line.get_xdata()[0]) for line in figure.axes[0].lines)
    assert drawn == pytest.approx([-1, 1], abs=1e-9)
    assert figure.axes[0].get_aspect() == 1
    assert figure.axes[0].get_title() == wells.attrs["map"]


def test_below_the_picture_stands_how_far_to_trust_it(wells):
    words = "status: estimated; no pixel was checked against the full ensemble"
    assert plot_basin(wells).get_supxlabel() == words
    checked = {"verified": 500, "error_rate": 0.172, "error_rate_lower": 0.1414, "error_rate_upper": 0.2075}
    figure = plot_basin(wells.assign_attrs(checked), "")
    assert figure.get_supxlabel() == (
        "status: estimated\n17 % [14, 21] of 500 checked pixels disagree with the full ensemble"
    )
    assert figure.axes[0].get_title() == ""


def test_many_attractors_have_different_colours():
    for number in (len(ATTRACTORS), 30):
        colours = np.array(attractor_colours(number))
        assert len(np.unique(colours.round(3), axis=0)) == number


def test_another_dataset_is_refused():
    with pytest.raises(ValueError, match=r"gdmap\.basin"):
        plot_basin(xr.Dataset())


def test_a_picture_that_disagrees_often_comes_with_a_warning(monkeypatch):
    checks = {"verified": 500, "disagreements": 86, "error_rate_lower": 0.14}
    # The module: its package has the function of this name.
    monkeypatch.setattr(sys.modules[basin.__module__], "_verified", lambda *_: checks)
    with pytest.warns(UserWarning, match="86 of 500 pixels checked have another fate"):
        basin(GradientDescent(WELLS, 0.9), ((-4, 4), (-2, 2)), (160, 20))

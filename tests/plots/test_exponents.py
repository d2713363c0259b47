import itertools

import numpy as np
import pytest
import xarray as xr

from gdmap.plots import plot_exponents, plot_stable_sets


def sets(minima=20, step_sizes=(0.1, 0.2, 0.4), batch_sizes=(1,), laws=1):
    """Made-up exponents: GD stable on the left, SGD on the right, undecided in between."""
    dims = ("minimum", "step_size", "batch_size", "law")
    shape = (minima, len(step_sizes), len(batch_sizes), laws)
    place = np.linspace(-1, 1, minima)[:, None, None, None]
    mu = np.broadcast_to(place + np.array(step_sizes)[:, None, None], shape).copy()
    lam = np.broadcast_to(0.5 - place - 0.1 * np.array(batch_sizes)[:, None], shape).copy()
    variables = {}
    for name, values, width in (("gd", mu, 1e-12), ("sgd", lam, 0.06)):
        variables[f"{name}_exponent"] = (dims, values)
        variables[f"{name}_exponent_lower"] = (dims, values - width)
        variables[f"{name}_exponent_upper"] = (dims, values + width)
        verdict = np.where(values + width < 0, 1, np.where(values - width > 0, -1, 0))
        variables[f"{name}_stability"] = (dims, verdict.astype(np.int8))
    variables["theta"] = (("minimum", "component"), np.stack([2 + place.ravel(), place.ravel()], axis=1))
    coords = {"step_size": list(step_sizes), "batch_size": list(batch_sizes)}
    return xr.Dataset(variables, coords).assign_coords(
        t1=("minimum", 3 - place.ravel(), {"long_name": "first weight"})
    )


def saved(figure, tmp_path):
    path = tmp_path / "picture.png"
    figure.savefig(path, dpi=60)
    assert path.stat().st_size > 3000
    return figure


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_stable_sets_show_every_verdict(tmp_path):
    dataset = sets()
    figure = saved(plot_stable_sets(dataset, "a family"), tmp_path)
    assert figure.get_suptitle() == "a family"
    (axes,) = figure.axes
    assert axes.get_xlabel() == "number of the minimum" and axes.get_ylabel() == "step size"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0.1", "0.2", "0.4"]
    words = legend(figure)
    assert words == [
        name
        for name, there in (
            ("GD- and SGD-stable", ((dataset.gd_stability > 0) & (dataset.sgd_stability > 0)).any()),
            ("GD-stable only", ((dataset.gd_stability > 0) & (dataset.sgd_stability < 0)).any()),
            ("SGD-stable only", ((dataset.gd_stability < 0) & (dataset.sgd_stability > 0)).any()),
            ("neither", ((dataset.gd_stability < 0) & (dataset.sgd_stability < 0)).any()),
            ("undecided", ((dataset.gd_stability == 0) | (dataset.sgd_stability == 0)).any()),
        )
        if there
    ]
    assert "undecided" in words and len(words) > 2
    hatched = [bars for bars in axes.collections if bars.get_hatch()]
    assert hatched


def test_bands_cover_the_axis_once(tmp_path):
    figure = plot_stable_sets(sets(step_sizes=(0.2,)), against="t1")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "first weight"
    spans = sorted(
        (path.vertices[:, 0].min(), path.vertices[:, 0].max())
        for bars in axes.collections
        for path in bars.get_paths()
    )
    low, high = axes.get_xlim()
    assert spans[0][0] == pytest.approx(low) and spans[-1][1] == pytest.approx(high)
    for before, after in itertools.pairwise(spans):
        assert before[1] == pytest.approx(after[0])
    assert low < 2 < 4 < high


def test_the_order_of_the_minima_does_not_matter():
    dataset = sets(step_sizes=(0.2,))
    shuffled = dataset.isel(minimum=np.random.default_rng(0).permutation(20))
    one, other = (plot_stable_sets(data, against="t1").axes[0] for data in (dataset, shuffled))
    assert len(one.collections) == len(other.collections)
    for left, right in zip(one.collections, other.collections, strict=True):
        np.testing.assert_allclose(left.get_paths()[0].vertices, right.get_paths()[0].vertices)


@pytest.mark.parametrize(
    ("chosen", "panels", "rows"),
    [
        ({"step_sizes": (0.1, 0.2), "batch_sizes": (1, 2), "laws": 2}, 4, 2),
        ({"step_sizes": (0.1,), "batch_sizes": (1, 2, 4)}, 1, 3),
        ({"step_sizes": (0.1,), "minima": 1}, 1, 1),
        ({"step_sizes": tuple(np.linspace(0.1, 1, 40))}, 1, 40),
    ],
)
def test_panels_and_rows(chosen, panels, rows, tmp_path):
    figure = saved(plot_stable_sets(sets(**chosen), against="norm"), tmp_path)
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert len(visible) == panels
    assert visible[0].get_ylim() == (-0.5, rows - 0.5)
    assert visible[0].get_xlabel() == "" or "distance" in visible[0].get_xlabel()


def test_squeezed_datasets_are_drawn_too(tmp_path):
    saved(plot_stable_sets(sets().isel(law=0, batch_size=0, step_size=1)), tmp_path)


def test_what_cannot_be_drawn_as_sets():
    with pytest.raises(ValueError, match="this dataset has no gd_stability"):
        plot_stable_sets(xr.Dataset())
    with pytest.raises(ValueError, match="against must be 'minimum', 'norm' or a variable"):
        plot_stable_sets(sets(), against="gd_exponent")
    with pytest.raises(ValueError, match="14 combinations of batch_size, at most 12"):
        plot_stable_sets(sets(batch_sizes=tuple(range(1, 15))))


def test_exponents_against_batch_size_with_error_bars(tmp_path):
    dataset = sets(batch_sizes=(1, 2, 8)).isel(minimum=3, law=0)
    figure = saved(plot_exponents(dataset, "one minimum"), tmp_path)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "batch size" and axes.get_title() == "one minimum"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "8"]
    words = legend(figure)
    assert len(words) == 6 and "lambda of SGD, step size 0.1" in words and "mu of GD, step size 0.4" in words
    # Error bars are the intervals.
    bars = axes.containers[0]
    segments = bars[2][0].get_segments()
    lower = dataset["sgd_exponent_lower"].sel(step_size=0.1).values
    np.testing.assert_allclose([segment[0][1] for segment in segments], lower)


def test_exponents_against_step_size(tmp_path):
    dataset = sets().isel(minimum=[3])
    figure = saved(plot_exponents(dataset), tmp_path)
    assert figure.axes[0].get_xlabel() == "step size" and legend(figure) == ["lambda of SGD", "mu of GD"]
    single = sets(step_sizes=(0.1,)).isel(minimum=[3])
    assert saved(plot_exponents(single), tmp_path).axes[0].get_xlabel() == "batch size"
    assert saved(plot_exponents(single, against="step_size"), tmp_path).axes[0].get_xlabel() == "step size"


def test_minus_infinity_is_a_mark_at_the_bottom(tmp_path):
    dataset = sets(batch_sizes=(1, 2, 8), step_sizes=(0.1,)).isel(minimum=3, law=0)
    dataset["sgd_exponent"][0, 1] = dataset["sgd_exponent_lower"][0, 1] = -np.inf
    figure = saved(plot_exponents(dataset), tmp_path)
    marks = [line for line in figure.axes[0].get_lines() if line.get_marker() == "v"]
    assert len(marks) == 1
    assert marks[0].get_xdata() == [2] and marks[0].get_ydata() == [figure.axes[0].get_ylim()[0]]


def test_what_cannot_be_drawn_as_exponents():
    with pytest.raises(ValueError, match="this dataset has no gd_exponent"):
        plot_exponents(xr.Dataset())
    with pytest.raises(ValueError, match=r"draws one minimum, this dataset has 20: choose one with dataset.isel"):
        plot_exponents(sets())
    with pytest.raises(ValueError, match="draws one law"):
        plot_exponents(sets(laws=2).isel(minimum=0))
    with pytest.raises(ValueError, match="against must be 'batch_size' or 'step_size'"):
        plot_exponents(sets().isel(minimum=0), against="law")

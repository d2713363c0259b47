import jax.numpy as jnp
import numpy as np
import pytest

from gdmap import Function, GradientDescent
from gdmap.orbits import trajectory
from gdmap.plots.trajectory import plot_trajectory


@pytest.fixture(scope="module")
def double_well():
    return Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)


def line(axes, label):
    return next(line for line in axes.lines if str(line.get_label()).startswith(label))


def test_everything_is_drawn(double_well, tmp_path):
    found = trajectory(GradientDescent(double_well, 1.2), [0.3], 100)
    figure = plot_trajectory(found, "a title")
    top, bottom, right = figure.axes
    assert top.get_yscale() == right.get_yscale() == "log" and bottom.get_yscale() == "linear"
    np.testing.assert_array_equal(line(top, "loss").get_ydata(), found["loss"])
    np.testing.assert_array_equal(line(right, "gradient norm").get_ydata(), found["gradient_norm"])
    np.testing.assert_array_equal(line(bottom, "sharpness").get_ydata(), found["sharpness"])
    limit = line(bottom, "2 / step size = 1.6667")
    np.testing.assert_allclose(limit.get_ydata(), 2 / 1.2)
    assert len(bottom.collections) == 1  # the band
    assert bottom.get_xlabel() == "step" and not top.get_xlabel()
    assert figure.get_suptitle() == "a title"
    figure.savefig(tmp_path / "picture.png")


@pytest.mark.parametrize(
    ("record", "panels"),
    [("loss", 1), ("gradient_norm", 1), ("sharpness", 1), (("loss", "gradient_norm"), 2), (("loss", "state"), 1)],
)
def test_what_was_not_recorded_is_left_out(double_well, record, panels, tmp_path):
    figure = plot_trajectory(trajectory(GradientDescent(double_well, 0.5), [0.3], 20, record))
    assert len(figure.axes) == panels
    assert figure.axes[0].get_xlabel() == "step"
    figure.savefig(tmp_path / "picture.png")


def test_a_diverged_orbit_is_marked_and_keeps_the_rest_in_view(double_well, tmp_path):
    found = trajectory(GradientDescent(double_well, 2.05), [0.55], 30)
    figure = plot_trajectory(found)
    when = found.attrs["diverged_at"]
    for axes in figure.axes[:2]:
        assert f"diverged at step {when}" in axes.texts[0].get_text()
        assert any(list(line.get_xdata()) == [when, when] for line in axes.lines)
    bottom = figure.axes[1]
    assert np.nanmax(found["sharpness"]) > 1e100 and bottom.get_ylim()[1] < 100
    assert bottom.get_ylim()[1] > found["stability_limit"]
    figure.savefig(tmp_path / "picture.png")


def test_an_orbit_that_diverges_at_once(double_well, tmp_path):
    found = trajectory(GradientDescent(double_well, 1.0), [1e200], 5)
    assert found.attrs["diverged_at"] == 1
    plot_trajectory(found).savefig(tmp_path / "picture.png")


def test_negative_losses_are_drawn_on_a_linear_scale(tmp_path):
    cosine = Function(lambda x: jnp.cos(x[0]), 1)
    figure = plot_trajectory(trajectory(GradientDescent(cosine, 0.5), [0.3], 60))
    assert figure.axes[0].get_yscale() == "linear" and figure.axes[2].get_yscale() == "log"
    figure.savefig(tmp_path / "picture.png")


def test_a_loss_that_reaches_zero(tmp_path):
    bowl = Function(lambda x: x[0] ** 2 / 2, 1)
    figure = plot_trajectory(trajectory(GradientDescent(bowl, 1.0), [1.0], 4))
    drawn = line(figure.axes[0], "loss").get_ydata()
    assert drawn[0] == 0.5 and np.all(np.isnan(drawn[1:]))
    figure.savefig(tmp_path / "picture.png")


def test_a_sharpness_over_many_scales_is_drawn_on_a_logarithmic_scale():
    quartic = Function(lambda x: x[0] ** 4, 1)
    found = trajectory(GradientDescent(quartic, 1e-4), [40.0], 3000, "sharpness", every=10)
    assert "diverged_at" not in found.attrs
    assert plot_trajectory(found).axes[0].get_yscale() == "log"


def test_an_unknown_stability_limit_is_not_drawn(double_well):
    found = trajectory(GradientDescent(double_well, 0.5), [0.3], 20)
    figure = plot_trajectory(found.assign(stability_limit=np.nan))
    assert [line.get_label() for line in figure.axes[1].lines] == ["sharpness"]
    without = plot_trajectory(found.drop_vars("stability_limit"))
    assert len(without.axes[1].lines) == 1


def test_other_datasets_are_refused(double_well):
    found = trajectory(GradientDescent(double_well, 0.5), [0.3], 3, "state")
    for dataset in (found, found.isel(step=0)):
        with pytest.raises(ValueError, match=r"draws the result of gdmap\.trajectory"):
            plot_trajectory(dataset)


def test_an_orbit_that_runs_away_from_the_start_is_shown_whole(tmp_path):
    quartic = Function(lambda w: jnp.sum(w**4), 2)
    found = trajectory(GradientDescent(quartic, 1.0), [3.0, 1.0], 40)
    when = found.attrs["diverged_at"]
    figure = plot_trajectory(found)
    top, bottom, right = figure.axes
    figure.savefig(tmp_path / "picture.png")
    for axes, name in ((top, "loss"), (right, "gradient_norm"), (bottom, "sharpness")):
        assert axes.get_yscale() == "log"
        low, high = axes.get_ylim()
        values = found[name].values[np.isfinite(found[name].values)]
        assert len(values) >= 4 and np.all((low < values) & (values < high))
    assert bottom.get_ylim()[0] < 2 / 1.0
    assert when < bottom.get_xlim()[1] < 1.2 * when
    assert line(bottom, "sharpness").get_marker() == "o"


def test_steady_divergence_up_to_the_largest_numbers(tmp_path):
    bowl = Function(lambda x: x[0] ** 2, 1)
    found = trajectory(GradientDescent(bowl, 1.2), [0.3], 3000)
    figure = plot_trajectory(found)
    figure.savefig(tmp_path / "picture.png")
    loss = found["loss"].values[np.isfinite(found["loss"].values)]
    assert loss.max() > 1e307 and figure.axes[0].get_ylim()[1] >= loss.max()
    assert found.attrs["diverged_at"] < figure.axes[0].get_xlim()[1] < 3000


def test_a_negative_loss_that_runs_away_is_shown_whole(tmp_path):
    cubic = Function(lambda x: x[0] ** 3 - x[0] ** 2 / 2, 1)
    found = trajectory(GradientDescent(cubic, 1.0), [-2.0], 30)
    figure = plot_trajectory(found)
    figure.savefig(tmp_path / "picture.png")
    for axes, name in zip(figure.axes[:2], ("loss", "sharpness"), strict=True):
        assert axes.get_yscale() == "symlog"
        values = found[name].values[np.isfinite(found[name].values)]
        assert axes.get_ylim()[0] < values.min() < -1e100


def test_the_part_before_divergence_alone_has_no_mark(double_well):
    found = trajectory(GradientDescent(double_well, 2.05), [0.55], 30)
    figure = plot_trajectory(found.isel(step=slice(0, 10)))
    assert not figure.axes[0].texts and figure.axes[0].get_xlim() == (0, 9)

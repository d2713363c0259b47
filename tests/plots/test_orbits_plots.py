"""Pictures of branches, of sampled orbits, of periodic orbits and of Lyapunov exponents."""

import numpy as np
import pytest
import xarray as xr

from gdmap import Function, GradientDescent, bifurcation_diagram
from gdmap.plots import plot_bifurcation_diagram, plot_lyapunov, plot_orbit_diagram, plot_periodic_orbits
from gdmap.plots.orbits import HALVES, smooth_curve
from tests.orbits.diagrams import hysteresis, turning_diagram, well_diagram, well_orbits


def saved(figure, path):
    figure.savefig(path / "picture.png", dpi=50)
    assert (path / "picture.png").stat().st_size > 3_000
    return figure


def entries(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lyapunov_dataset(k=2, steps=100):
    blocks = np.arange(1, 21)
    final = np.linspace(0.4, -1.6, k)
    return xr.Dataset(
        {
            "exponent": ("k", final),
            "lower": ("k", final - 0.01),
            "upper": ("k", final + 0.01),
            "history": (("block", "k"), final + 1 / blocks[:, None]),
        },
        coords={"k": np.arange(1, k + 1), "step": ("block", blocks * steps // 20)},
        attrs={"confidence": 0.95},
    )


def orbits_dataset(dim):
    state = np.full((2, 2, dim), np.nan)
    state[0], state[1, 0] = 1.0, -1.0
    state[0, 1] = 2.0
    return xr.Dataset(
        {
            "state": (("orbit", "point", "component"), state),
            "multiplier": (("orbit", "mode"), np.array([[0.3 + 0.4j, 0.3 - 0.4j], [30.0, np.nan]])),
            "period": ("orbit", [2, 1]),
            "stability": (
                "orbit",
                [0, 1],
                {"flag_values": [0, 1, 2], "flag_meanings": "stable unstable marginal"},
            ),
        }
    )


def test_branches_are_solid_where_stable_and_dashed_where_not(tmp_path):
    dataset = well_diagram()
    figure = saved(plot_bifurcation_diagram(dataset, 0, title="wells"), tmp_path)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "step size" and axes.get_ylabel() == "state"
    assert axes.get_xlim() == (0.2, 1.25)
    curves = [line for line in axes.get_lines() if len(line.get_xdata()) > 3]
    x = lambda line: np.asarray(line.get_xdata())  # noqa: E731
    solid = [line for line in curves if line.get_linestyle() == "-"]
    dashed = [line for line in curves if line.get_linestyle() == "--"]
    # The minimum up to 1; both points of the 2-cycle from 1 to the second doubling.
    ends = sorted((x(line).min(), x(line).max()) for line in solid)
    second = 5**0.5 - 1
    # Curves are interpolated between the points of the branch.
    np.testing.assert_allclose(ends, [(0.2, 1), (1, second), (1, second)], atol=1e-4)
    assert dashed and all(x(line).max() == 1.25 for line in dashed)
    words = entries(figure)
    assert words[:4] == ["period 1", "period 2", "stable", "unstable"]
    assert words[4] == "period doubling\n1, 1.23607"


def test_curves_between_the_points_follow_the_cycle():
    (axes,) = plot_bifurcation_diagram(well_diagram(), 0).axes
    checked = 0
    for line in axes.get_lines():
        x, y = np.asarray(line.get_xdata(), float), np.abs(np.asarray(line.get_ydata(), float))
        if len(x) > 30 and x.min() > 0.99 and np.ptp(y) > 0.1:
            inside = x > 1
            sides = np.sqrt(x[inside] + 3), np.sqrt(x[inside] - 1)
            cycle = [(sides[0] + sign * sides[1]) / (2 * np.sqrt(x[inside])) for sign in (1, -1)]
            # Less than the width of a line in a panel of height 2.5.
            assert np.abs(y[inside] - cycle).min(axis=0).max() < 4e-3
            checked += 1
    assert checked == 2


def test_a_fixed_point_is_drawn_solid_up_to_its_event():
    # The minimum of a loss without symmetry is no round number: along its branch it varies by rounding.
    tilted = Function(lambda x: x[0] ** 4 / 4 - x[0] ** 2 / 2 + 0.1 * x[0], 1)
    dataset = bifurcation_diagram(GradientDescent(tilted, 0.2), bounds=(0.2, 1.5), starts=8, doublings=0)
    # The smaller minimum solves x^3 - x + 0.1 = 0; it doubles where the curvature 3 x^2 - 1 is 2 / step size.
    minima = np.sort(np.roots([1, 0, -1, 0.1]).real)[[0, 2]]
    # Rounding as large as it gets, of either sign.
    noise = 2e-16 * np.random.default_rng(0).choice([-1, 1], dataset["state"].shape)
    (axes,) = plot_bifurcation_diagram(dataset.assign(state=dataset["state"] + noise), 0).axes
    solid = [line for line in axes.get_lines() if line.get_linestyle() == "-" and len(line.get_xdata()) > 3]
    ends = {float(np.mean(line.get_ydata())): np.asarray(line.get_xdata()) for line in solid}
    np.testing.assert_allclose(sorted(ends), minima, atol=1e-9)
    for minimum, x in ends.items():
        assert np.all(np.diff(x) > 0)
        np.testing.assert_allclose([x[0], x[-1]], [0.2, 2 / (3 * minimum**2 - 1)], rtol=1e-9)


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("side", [0, 1])
def test_a_doubling_has_a_vertical_tangent_however_few_its_points(n, side):
    # The 2-cycle +-sqrt(r) born at r = 0, at points evenly spaced in the amplitude.
    amplitude = np.linspace(0, 1, n)[:: 1 - 2 * side]
    ends = ["", ""]
    ends[side] = HALVES
    curve = smooth_curve(amplitude**2, np.column_stack([amplitude, -amplitude]), ends)
    drawn = curve(np.linspace(0, n - 1, 101))
    np.testing.assert_allclose(drawn[:, 1], -drawn[:, 2], atol=1e-12)
    # Straight lines would be off by 1/4, 1/16 and 1/100.
    np.testing.assert_allclose(drawn[:, 0], drawn[:, 1] ** 2, atol=1e-12)


def test_norm_observable_and_dots_behind(tmp_path):
    figure = saved(plot_bifurcation_diagram(well_diagram(), 0, well_orbits()), tmp_path)
    assert "states after a transient" in entries(figure)
    assert plot_bifurcation_diagram(well_diagram()).axes[0].get_ylabel() == "observable"
    figure = saved(plot_bifurcation_diagram(turning_diagram(), "norm"), tmp_path)
    assert figure.axes[0].get_ylabel() == "norm of the state"
    kinds = [words.split("\n")[0] for words in entries(figure)]
    assert {"fold", "period doubling", "branch point"} <= set(kinds)


def test_orbit_diagram_marks_divergence_and_names_the_sweeps(tmp_path):
    figure = saved(plot_orbit_diagram(well_orbits(), title="wells"), tmp_path)
    assert entries(figure)[1:] == ["some starts diverge", "all starts diverge"]
    figure = saved(plot_orbit_diagram(hysteresis()), tmp_path)
    assert entries(figure) == ["going up", "going down"]
    one = well_orbits().isel(value=[3])
    # Nothing is drawn for the sweep, so the legend does not name it.
    figure = saved(plot_orbit_diagram(one), tmp_path)
    assert entries(figure) == ["all starts diverge"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["every start diverged"]
    behind = one.assign_attrs(parameter="step_size")
    assert "states after a transient" not in entries(plot_bifurcation_diagram(well_diagram(), 0, behind))


def test_periodic_orbits_and_their_multipliers(tmp_path):
    for dim, label in ((1, "next state"), (2, "component 1 of the state")):
        figure = saved(plot_periodic_orbits(orbits_dataset(dim)), tmp_path)
        assert figure.axes[0].get_ylabel() == label
        words = ["0: period 2, stable", "1: period 1, unstable, |multiplier| 30", "rim: |multiplier| above 2.5"]
        assert entries(figure) == words
    assert len(entries(plot_periodic_orbits(orbits_dataset(1).isel(orbit=[0])))) == 1


def test_lyapunov_history_ends_in_the_intervals(tmp_path):
    figure = saved(plot_lyapunov(lyapunov_dataset(), "two exponents"), tmp_path)
    assert entries(figure) == ["1: 0.4 in [0.39, 0.41]", "2: -1.6 in [-1.61, -1.59]"]
    # 0 lies between them; far from 0 the interval and the second half of the history fill the panel.
    assert figure.axes[0].get_ylim()[0] < -1.6 and figure.axes[0].get_ylim()[1] > 0.4
    alone = plot_lyapunov(lyapunov_dataset(1).assign_attrs(map="GradientDescent(Function, step_size=1.0)"))
    assert 0.37 < alone.axes[0].get_ylim()[0] < 0.39 and 0.49 < alone.axes[0].get_ylim()[1] < 0.51
    assert alone.get_suptitle() == "GradientDescent(Function, step_size=1.0)"
    many = plot_lyapunov(lyapunov_dataset(12))
    assert len(entries(many)) == 10 and "first 10 of 12" in many.legends[0].get_title().get_text()
    infinite = lyapunov_dataset()
    for name in ("exponent", "lower", "upper", "history"):
        infinite[name][..., 1] = -np.inf
    assert entries(saved(plot_lyapunov(infinite), tmp_path))[1] == "2: -inf"
    saved(plot_lyapunov(lyapunov_dataset().expand_dims("start")), tmp_path)


def test_mistakes_have_one_clear_error():
    other = xr.Dataset({"a": ("b", [1.0])})
    for draw, words in (
        (plot_bifurcation_diagram, "has no branches"),
        (plot_orbit_diagram, "has no samples"),
        (plot_periodic_orbits, "has none"),
        (plot_lyapunov, "has no history"),
    ):
        with pytest.raises(ValueError, match=words):
            draw(other)
    with pytest.raises(ValueError, match="component 3 is none of the 1"):
        plot_bifurcation_diagram(well_diagram(), 3)
    with pytest.raises(ValueError, match="component must be a number"):
        plot_orbit_diagram(well_orbits(), "theta")
    with pytest.raises(ValueError, match="no observable"):
        plot_orbit_diagram(well_orbits(), "observable")
    with pytest.raises(ValueError, match="along momentum"):
        plot_bifurcation_diagram(well_diagram(), 0, well_orbits().assign_attrs(parameter="momentum"))
    with pytest.raises(ValueError, match="choose one with"):
        plot_lyapunov(xr.concat([lyapunov_dataset(), lyapunov_dataset()], "start"))

"""Orbit diagrams: states on attractors against closed forms, hysteresis, divergence, independence of the rest."""

import numpy as np
import pytest

from gdmap import GradientDescent, orbit_diagram
from tests.orbits.diagrams import FOLD, STARTS, WELL, hysteresis, two_cycles, well_orbits

MAP = GradientDescent(WELL, 0.5)


def test_states_are_minima_and_then_the_two_cycle():
    dataset = well_orbits()
    assert dataset.attrs["status"] == "computed"
    minima = dataset["state"].sel(sweep="fresh", value=0.5).values
    np.testing.assert_allclose(np.abs(minima), 1, atol=1e-12)
    eta = 1.1
    cycle = (np.sqrt(eta + 3) + np.array([-1, 1]) * np.sqrt(eta - 1)) / (2 * np.sqrt(eta))
    ends = dataset["state"].sel(sweep="fresh", value=eta).values[..., 0]
    np.testing.assert_allclose(np.sort(np.abs(ends[:, :2]), axis=1), np.tile(cycle, (4, 1)), atol=1e-12)
    np.testing.assert_allclose(ends[:, 2:], ends[:, :-2], atol=1e-12)


def test_what_diverges_is_marked_and_has_no_states():
    dataset = well_orbits()
    lost = dataset["diverged"].sel(sweep="fresh")
    expected = [[False] * 4, [False] * 4, [False, False, False, True], [True] * 4]
    np.testing.assert_array_equal(lost, expected)
    assert np.isnan(dataset["state"].sel(sweep="fresh", value=2.05).values).all()
    # Bounded orbits stay within the unstable 2-cycle.
    for value in (1.1, 1.9):
        states = dataset["state"].sel(sweep="fresh", value=value).values[~lost.sel(value=value).values]
        assert np.all(np.abs(states) < np.sqrt(1 + 2 / value))


def test_up_and_down_differ_between_the_fold_and_the_doubling():
    dataset = hysteresis()
    state = dataset["state"].isel(start=0, component=0)
    for value in dataset["value"].values:
        up, down = (state.sel(sweep=sweep, value=value).values for sweep in ("up", "down"))
        np.testing.assert_allclose(up, 0, atol=1e-8)
        if value < FOLD:
            np.testing.assert_allclose(down, 0, atol=1e-8)
        else:
            cycle = np.abs(two_cycles(value)[0][0, 0])
            np.testing.assert_allclose(np.abs(down), cycle, atol=1e-9)
            np.testing.assert_allclose(down[1:], -down[:-1], atol=1e-9)
    assert not dataset["diverged"].any()


def test_a_lane_does_not_depend_on_the_others():
    whole = well_orbits()
    part = orbit_diagram(MAP, whole["value"].values[[2, 0]], STARTS[:2], samples=16, transient=2000)
    np.testing.assert_array_equal(part["state"], whole["state"].isel(value=[2, 0], start=[0, 1]))
    np.testing.assert_array_equal(part["diverged"], whole["diverged"].isel(value=[2, 0], start=[0, 1]))


def test_observable_is_that_of_the_states():
    whole = well_orbits()
    seen = orbit_diagram(MAP, [0.5, 1.9], STARTS, samples=16, transient=2000, observable=lambda x: x[0] ** 2)
    np.testing.assert_array_equal(seen["observable"], whole["state"].isel(value=[0, 2], component=0) ** 2)


def test_mistakes_have_one_clear_error():
    with pytest.raises(ValueError, match="sweep must be 'fresh', 'up', 'down'"):
        orbit_diagram(MAP, [0.5], sweep="sideways")
    with pytest.raises(ValueError, match="sweep must be"):
        orbit_diagram(MAP, [0.5], sweep=["up", "up"])
    with pytest.raises(ValueError, match="finite and distinct"):
        orbit_diagram(MAP, [0.5, 0.5])
    with pytest.raises(ValueError, match="step sizes must be positive"):
        orbit_diagram(MAP, [0.0, 0.5])
    with pytest.raises(ValueError, match="non-empty 1-D array"):
        orbit_diagram(MAP, 0.5)
    with pytest.raises(ValueError, match="samples must be an integer from 1"):
        orbit_diagram(MAP, [0.5], samples=0)
    with pytest.raises(ValueError, match="starts must be"):
        orbit_diagram(MAP, [0.5], np.zeros((2, 3)))
    with pytest.raises(ValueError, match="no parameter 'momentum'"):
        orbit_diagram(MAP, [0.5], parameter="momentum")

import jax.numpy as jnp
import numpy as np
import pytest

from gdmap import Function, GradientDescent
from gdmap.ensembles.attractors import attractors
from gdmap.ensembles.fates import Fate

DOUBLE_WELL = Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
LINE = np.random.default_rng(0).uniform(-4, 4, (100, 1))


def test_two_wells_are_two_attractors_or_one_under_their_symmetry():
    # golden.md 2: bounded exactly for |x| < sqrt(1 + 2/eta).
    map_ = GradientDescent(DOUBLE_WELL, 0.9)
    bounded = np.abs(LINE[:, 0]) < np.sqrt(1 + 2 / 0.9)
    found = attractors(map_, LINE)
    assert np.array_equal(found["attractor"] > 0, bounded)
    assert sorted(found["points"].values[:, 0, 0]) == pytest.approx([-1, 1], abs=1e-12)
    assert np.array_equal(np.diff(found["share"]) <= 0, [True])
    assert np.all(found["share_lower"] < found["share"]) and np.all(found["share"] < found["share_upper"])
    at = found["points"].values[found["attractor"].values[bounded] - 1, 0, 0]
    assert np.array_equal(np.sign(at), np.sign(found["state"].values[bounded, 0]))
    for symmetry in (lambda x: -x, np.array([[-1.0]])):
        merged = attractors(map_, LINE, symmetries=[symmetry])
        assert merged.sizes["id"] == 1
        assert float(merged["share"][0]) == bounded.mean()
        assert np.array_equal(merged["fate"], found["fate"])


def test_cycles_are_one_attractor_whatever_the_phase():
    # golden.md 2: y = [sqrt(r+2) +- sqrt(r-2)]/2 with r = 1 + eta and y = sqrt(eta) x.
    found = attractors(GradientDescent(DOUBLE_WELL, 1.1), LINE)
    cycle = (np.sqrt(4.1) + np.array([-1, 1]) * np.sqrt(0.1)) / 2 / np.sqrt(1.1)
    assert found.sizes["id"] == 2 and np.all(found["attractor_period"] == 2)
    for points in found["points"].values[:, :, 0]:
        assert np.sort(np.abs(points)) == pytest.approx(cycle, abs=1e-9)
        assert np.prod(points) == pytest.approx(1 / 1.1, abs=1e-9)
    in_well = np.sign(found["points"].values[:, 0, 0])
    ends = found["state"].values[:, 0]
    reached = found["attractor"].values > 0
    assert np.array_equal(in_well[found["attractor"].values[reached] - 1], np.sign(ends[reached]))


def test_a_connected_set_of_minima_is_one_attractor_and_two_branches_are_two(two_factors):
    starts = np.random.default_rng(1).uniform(-2, 2, (80, 2))
    found = attractors(GradientDescent(two_factors, 0.8), starts)
    assert found.sizes["id"] == 2
    assert np.all(found["attractor_fate"] == int(Fate.MINIMUM)) and np.all(found["neutral_dimension"] == 1)
    reached = found["attractor"].values > 0
    branch = np.sign(found["points"].values[:, 0, 0])[found["attractor"].values[reached] - 1]
    assert np.array_equal(branch, np.sign(found["state"].values[reached, 0]))
    merged = attractors(GradientDescent(two_factors, 0.8), starts, symmetries=[lambda w: w[::-1], lambda w: -w])
    assert merged.sizes["id"] == 1
    assert float(merged["share"].sum()) == pytest.approx(float(found["share"].sum()), abs=1e-15)


@pytest.mark.slow
def test_parallel_valleys_stay_apart():
    # Chords between valleys pass through other valleys.
    valleys = Function(lambda w: jnp.sin(w[0]) ** 2, 2)
    starts = np.random.default_rng(2).uniform([-4.6, -3], [4.6, 3], (50, 2))
    found = attractors(GradientDescent(valleys, 0.5), starts)
    assert sorted(found["points"].values[:, 0, 0]) == pytest.approx([-np.pi, 0, np.pi], abs=1e-9)


@pytest.mark.slow
def test_mirror_images_of_chaos_are_two_attractors_below_the_crisis_and_one_above():
    # golden.md 2: the wells merge at 3 sqrt(3)/2 - 1 = 1.59808.
    starts = np.linspace(-1.2, 1.2, 24)[:, None]
    below = attractors(GradientDescent(DOUBLE_WELL, 1.55), starts, 5000)
    assert below.sizes["id"] == 2 and np.all(below["attractor_fate"] == int(Fate.CHAOTIC))
    above = attractors(GradientDescent(DOUBLE_WELL, 1.65), starts, 5000)
    assert above.sizes["id"] == 1


@pytest.mark.slow
def test_translation_and_units_change_nothing():
    moved = Function(lambda x: (((x[0] - 1e3) / 1e-3) ** 2 - 1) ** 2 / 4, 1)
    here = attractors(GradientDescent(DOUBLE_WELL, 0.9), LINE)
    there = attractors(GradientDescent(moved, 0.9e-6), 1e3 + 1e-3 * LINE)
    clear = np.abs(np.abs(LINE[:, 0]) - np.sqrt(1 + 2 / 0.9)) > 1e-6
    assert np.array_equal(here["attractor"][clear], there["attractor"][clear])


def test_errors():
    map_ = GradientDescent(DOUBLE_WELL, 0.9)
    with pytest.raises(TypeError, match="map must be"):
        attractors(DOUBLE_WELL, LINE)
    with pytest.raises(TypeError, match="put it in a list"):
        attractors(map_, LINE[:3], symmetries=lambda x: -x)
    with pytest.raises(TypeError, match="square matrix"):
        attractors(map_, LINE[:3], symmetries=[3.0])
    with pytest.raises(ValueError, match="changes the loss"):
        attractors(map_, LINE, symmetries=[lambda x: x + 0.3])
    with pytest.raises(ValueError, match="same shape"):
        attractors(map_, LINE, symmetries=[lambda x: np.concatenate([x, x])])
    with pytest.raises(ValueError, match="tolerance must be"):
        attractors(map_, LINE[:3], tolerance=0)


def test_starts_that_all_diverge_have_no_attractor():
    found = attractors(GradientDescent(DOUBLE_WELL, 0.9), np.array([[3.0], [-3.5]]))
    assert found.sizes["id"] == 0
    assert np.all(found["attractor"] == -1)

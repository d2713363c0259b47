import numpy as np
import optax
import pytest

from gdmap import Function, GradientDescent, LinearNetwork, Optimiser, StochasticGradientDescent, ensemble
from gdmap.engines.choice import chosen_stride
from gdmap.engines.strips import fresh_strip, take
from gdmap.engines.xla import Tolerances
from gdmap.ensembles.basin import basin
from gdmap.ensembles.fates import Fate

WELLS = Function(lambda w: (w[0] ** 2 - 1) ** 2 / 4 + w[1] ** 2 / 2, 2)
FOUR = Function(lambda w: (w[0] ** 2 + w[1] - 11) ** 2 + (w[0] + w[1] ** 2 - 7) ** 2, 2)


@pytest.mark.parametrize(("step_size", "fate", "period"), [(0.9, Fate.MINIMUM, 0), (1.1, Fate.PERIODIC, 2)])
def test_double_well(step_size, fate, period):
    # golden.md 2: bounded exactly for |x| < sqrt(1 + 2/eta); what happens across does not matter.
    found = basin(GradientDescent(WELLS, step_size), ((-4, 4), (-2, 2)), (160, 20), verify=100)
    bounded = np.abs(found["x"].values) < np.sqrt(1 + 2 / step_size)
    assert np.array_equal(found["fate"] == int(fate), np.tile(bounded, (20, 1)))
    assert np.array_equal(found["fate"] == int(Fate.DIVERGED), np.tile(~bounded, (20, 1)))
    assert np.all(found["period"].values[:, bounded] == period)
    identity = found["attractor"].values
    assert np.array_equal(
        identity[:, ::-1][identity > 0] + identity[identity > 0], np.full((identity > 0).sum(), 3)
    )
    assert float(found["share"][0]) == float(found["share"][1]) == bounded.mean() / 2
    assert found.attrs["verified"] == 100 and found.attrs["disagreements"] == 0
    assert float(found["fraction"].sum()) == pytest.approx(1, abs=1e-15)


def test_symmetric_wells_are_one_basin():
    map_ = GradientDescent(WELLS, 0.9)
    found = basin(map_, ((-4, 4), (-2, 2)), (160, 20), verify=0, symmetries=[lambda w: w * np.array([-1, 1])])
    assert found.sizes["id"] == 1
    assert "error_rate" not in found.attrs and found.attrs["verified"] == 0


def test_four_wells_agree_with_the_ensemble_pixel_by_pixel():
    map_ = GradientDescent(FOUR, 0.0165)
    found = basin(map_, ((-5, 5), (-5, 5)), 64, 3000, verify=50)
    x, y = np.meshgrid(found["x"], found["y"])
    alone = ensemble(map_, np.stack([x.ravel(), y.ravel()], axis=1), 3000)
    for name in ("fate", "reason", "period"):
        assert np.array_equal(found[name].values.ravel(), alone[name].values)
    assert sorted(found["attractor_period"].values) == [0, 0, 0, 2]
    # The attractor is the one nearest to where the ensemble's orbit ended.
    points = found["points"].values
    ends = alone["state"].values[:, None, None]
    nearest = np.nanmin(np.linalg.norm(points - ends, axis=3), axis=2).argmin(axis=1) + 1
    assert np.array_equal(found["attractor"].values.ravel(), nearest)
    # Nearly all verdicts are inherited: that is what makes the picture fast.
    assert found["judged"].values.mean() < 0.1


@pytest.mark.parametrize("step_size", [0.8, pytest.param(1.1, marks=pytest.mark.slow)])
def test_two_factors(two_factors, step_size):
    found = basin(GradientDescent(two_factors, step_size), ((-2.5, 2.5), (-2.5, 2.5)), 64, verify=100)
    assert found.attrs["disagreements"] == 0
    identity, fate = found["attractor"].values, found["fate"].values
    # L(x, y) = L(y, x) = L(-x, -y), to the last bit.
    assert np.array_equal(identity, identity.T)
    mirrored = np.where(identity > 0, 3 - identity, identity)
    assert np.array_equal(identity[::-1, ::-1], mirrored)
    # On the line x = -y the orbit stays there, and goes to the saddle 0 or diverges.
    antidiagonal = np.diag(fate[:, ::-1])
    assert set(antidiagonal) == {int(Fate.SADDLE), int(Fate.DIVERGED)}
    assert np.all(np.diag(identity[:, ::-1]) == -1)
    expected = Fate.MINIMUM if step_size < 1 else Fate.PERIODIC
    assert np.all(found["attractor_fate"] == int(expected))
    assert np.all(found["neutral_dimension"] == (1 if step_size < 1 else 0))


@pytest.mark.parametrize("engine", ["simd", "xla"])
def test_an_orbit_depends_on_its_start_alone(two_factors, engine):
    map_ = GradientDescent(two_factors, 1.45)
    stride = chosen_stride(map_.update, 2, np.dtype(float), Tolerances(1e-8, 1e-6), 1e6, engine)
    states = np.random.default_rng(0).uniform(-1.5, 1.5, (2, 5000))
    together = stride(fresh_strip(states), 0, 200)
    assert np.any(together.signal == 0)
    for lanes in (np.array([17]), np.arange(4999, 0, -7)):
        alone = stride(fresh_strip(states[:, lanes]), 0, 200)
        for field, expected in zip(alone, take(together, lanes), strict=True):
            assert np.array_equal(field, expected)


@pytest.mark.slow
def test_the_kernel_counts_steps_as_the_ensemble_does():
    # x -> x/2 stops by its own step and way alone; far out everything diverges.
    bowl = Function(lambda w: (w[0] ** 2 + w[1] ** 2) / 4, 2)
    found = basin(GradientDescent(bowl, 1.0), ((-1, 1), (-1, 1)), 6, verify=36)
    x, y = np.meshgrid(found["x"], found["y"])
    alone = ensemble(GradientDescent(bowl, 1.0), np.stack([x.ravel(), y.ravel()], axis=1))
    assert np.array_equal(found["steps"].values.ravel(), alone["steps"].values)


@pytest.mark.slow
def test_slice_of_a_larger_space_and_momentum():
    network = LinearNetwork.whitened((1, 1, 1, 1), np.array([[1.0]]))
    found = basin(
        GradientDescent(network, 0.3),
        ((-1, 1), (0.1, 1)),
        (12, 9),
        origin=[0.9, 0, 0],
        directions=(1, [0, 0, 2.0]),
        verify=30,
    )
    assert found.attrs["disagreements"] == 0
    assert found.sizes["component"] == 3
    assert found["x"].attrs["long_name"] == "parameter 1" and "direction v" in found["y"].attrs["long_name"]
    x, y = np.meshgrid(found["x"], found["y"])
    starts = np.stack([np.full(x.size, 0.9), x.ravel(), 2 * y.ravel()], axis=1)
    assert np.array_equal(ensemble(GradientDescent(network, 0.3), starts)["fate"], found["fate"].values.ravel())
    heavy = basin(Optimiser(WELLS, optax.sgd, learning_rate=0.3, momentum=0.8), ((-2, 2), (-1, 1)), 12, verify=40)
    assert heavy.attrs["disagreements"] == 0 and heavy.sizes["id"] == 2


@pytest.mark.slow
def test_chaos_is_found_and_inherited():
    found = basin(GradientDescent(FOUR, 0.021), ((-5, 5), (-5, 5)), 120, 4000)
    assert set(found["attractor_fate"].values) == {int(Fate.MINIMUM), int(Fate.PERIODIC), int(Fate.CHAOTIC)}
    assert found.attrs["error_rate"] <= 0.01


def test_progress_reaches_the_total():
    seen = []
    basin(
        GradientDescent(WELLS, 0.9),
        ((-4, 4), (-2, 2)),
        (160, 20),
        verify=0,
        progress=lambda *now: seen.append(now),
    )
    assert seen[-1] == (3200, 3200)
    assert [finished for finished, _ in seen] == sorted(finished for finished, _ in seen)


def test_errors(two_factors):
    map_, plane = GradientDescent(two_factors, 0.8), ((-1, 1), (-1, 1))
    line = GradientDescent(Function(lambda x: x[0] ** 2, 1), 0.8)
    large = GradientDescent(Function(lambda x: (x**2).sum(), 50), 0.8)
    for bad, arguments, match in (
        (map_, {"plane": (0, 1)}, "plane must be"),
        (map_, {"plane": ((1, -1), (0, 1))}, "low < high"),
        (map_, {"plane": ((0, np.inf), (0, 1))}, "finite ends"),
        (map_, {"resolution": 0}, "resolution must be"),
        (map_, {"resolution": (10, 10, 10)}, "pair"),
        (map_, {"verify": -1}, "verify must be"),
        (map_, {"directions": ([1, 2], [2, 4])}, "parallel"),
        (map_, {"directions": ([0, 0], [2, 4])}, "nonzero"),
        (map_, {"directions": (0, 2)}, "0 to 1"),
        (map_, {"directions": 3}, "pair"),
        (map_, {"origin": [1.0]}, "origin must be"),
        (map_, {"max_steps": 0}, "max_steps"),
        (line, {}, "one parameter"),
        (large, {}, "give directions"),
        (large, {"directions": (0, 1), "resolution": 4000}, "lower the resolution"),
    ):
        with pytest.raises(ValueError, match=match):
            basin(bad, **{"plane": plane, **arguments})
    with pytest.raises(TypeError, match="map must be"):
        basin(two_factors, plane)
    sampled = LinearNetwork((1, 1, 1), np.ones((2, 1)), np.ones((2, 1)))
    with pytest.raises(TypeError, match="map must be"):
        basin(StochasticGradientDescent(sampled, 0.1), plane)

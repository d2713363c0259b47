"""The native engine takes every trajectory to the event that the other engine finds, at the same step."""

import logging

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gdmap
from gdmap import Function, GradientDescent, LinearNetwork, Optimiser
from gdmap.engines.simd.kernel import Layout
from gdmap.engines.simd.run import Packed

TWO = Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)
WELL = Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
NEURON = Function(lambda w: jnp.mean((jnp.tanh(w[0] * jnp.linspace(-2, 2, 8) + w[1]) - 0.5) ** 2) / 2, 2)
LINEAR = LinearNetwork.whitened((3, 3, 2), np.array([[1.0, 0.2, 0.0], [0.0, 0.5, 0.1]]))
MAPS = {
    "minima and escape": (GradientDescent(TWO, 0.8), 2, 1.0),
    "cycles": (GradientDescent(TWO, 1.1), 2, 0.5),
    "longer cycles": (GradientDescent(TWO, 1.3), 2, 0.5),
    "double well": (GradientDescent(WELL, 0.9), 1, 1.5),
    "slow": (GradientDescent(WELL, 0.002), 1, 1.0),
    "neuron": (GradientDescent(NEURON, 2.0), 2, 1.0),
    "matrices": (GradientDescent(LINEAR, 0.3), 15, 0.5),
    "momentum": (Optimiser(TWO, optax.sgd, learning_rate=0.3, momentum=0.5), 2, 0.8),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("max_steps", [1, 60, 67, 68, 100, 128, 333, 5000])
def test_engines_agree(name, max_steps):
    map_, dim, scale = MAPS[name]
    starts = gdmap.gaussian_starts(70, dim, scale=scale)
    native, xla = (gdmap.ensemble(map_, starts, max_steps, engine=engine) for engine in ("simd", "xla"))
    assert native.attrs["engine"].startswith("simd-")
    assert xla.attrs["engine"] == "xla-cpu"
    for variable in ("fate", "reason", "period"):
        np.testing.assert_array_equal(native[variable], xla[variable], err_msg=variable)
    # A cycle is found by a search, and near a short horizon the engines search at other steps.
    same = xla.fate.values != gdmap.Fate.PERIODIC if max_steps < 512 else np.full(70, True)
    # The values of tanh differ in their last bits, which decides when a step is negligible.
    np.testing.assert_allclose(native.steps[same], xla.steps[same], rtol=0, atol=3 if name == "neuron" else 0)
    same &= native.steps.values == xla.steps.values
    stays = same & (xla.fate.values != gdmap.Fate.DIVERGED)
    np.testing.assert_allclose(native.state[stays], xla.state[stays], rtol=1e-9, atol=1e-11)


def test_a_trajectory_depends_on_its_start_alone():
    map_ = GradientDescent(TWO, 1.2)
    starts = gdmap.gaussian_starts(300, 2, scale=1.0)
    together = gdmap.ensemble(map_, starts, 700, engine="simd")
    order = np.random.default_rng(0).permutation(300)[:37]
    some = gdmap.ensemble(map_, starts[order], 700, engine="simd")
    for variable in ("fate", "reason", "period", "steps", "state", "loss"):
        np.testing.assert_array_equal(some[variable].values, together[variable].values[order], err_msg=variable)


def test_a_sweep_runs_on_either_engine():
    arguments = {"starts": 20, "max_steps": 800, "scale": 0.7, "seed": 1}
    native, xla = (gdmap.sweep(TWO, [0.3, 0.9, 1.2], **arguments, engine=engine) for engine in ("simd", "xla"))
    assert (native.attrs["engine"][:4], xla.attrs["engine"]) == ("simd", "xla-cpu")
    for variable in ("fate", "period", "steps"):
        np.testing.assert_array_equal(native[variable], xla[variable])


def test_a_late_cycle_is_found_at_a_later_search():
    # Next to the doubling of the period, multipliers are close to the unit circle: the approach takes long.
    map_ = GradientDescent(TWO, 1.0005)
    found = gdmap.ensemble(map_, [[0.9, 1.1]], 300_000, engine="simd")
    assert list(gdmap.fate_names(found)) == ["periodic"]
    assert int(found.period[0]) == 2
    assert int(found.steps[0]) > 8192


def test_single_precision_runs_on_the_other_engine(caplog):
    starts = np.full((3, 2), 0.5, np.float32)
    with pytest.warns(UserWarning, match="float32"), caplog.at_level(logging.WARNING, "gdmap"):
        found = gdmap.ensemble(GradientDescent(TWO, 0.5), starts, 100)
    assert found.attrs["engine"] == "xla-cpu"
    with pytest.warns(UserWarning, match="float32"), pytest.raises(ValueError, match="float32"):
        gdmap.ensemble(GradientDescent(TWO, 0.5), starts, 100, engine="simd")


@pytest.mark.parametrize("call", ["ensemble", "sweep", "basin"])
def test_an_unknown_engine_is_refused(call):
    calls = {
        "ensemble": lambda: gdmap.ensemble(GradientDescent(TWO, 0.5), [[1.0, 1.0]], engine="fast"),
        "sweep": lambda: gdmap.sweep(TWO, [0.5], 3, engine="fast"),
        "basin": lambda: gdmap.basin(GradientDescent(TWO, 0.5), ((-1, 1), (-1, 1)), 4, engine="fast"),
    }
    with pytest.raises(ValueError, match="engine must be 'simd', 'xla' or None"):
        calls[call]()


def test_random_maps_have_no_native_engine():
    loss = gdmap.Objective(lambda w, x: (w * x - 1) ** 2, np.float64(0.3), data=(np.array([1.0, 2.0]),))
    with pytest.raises(ValueError, match="random maps"):
        gdmap.ensemble(gdmap.StochasticGradientDescent(loss, 0.01), [[0.5]], 10, engine="simd")


@pytest.mark.parametrize("layout", [Layout(8, 1, False), Layout(64, 8, True)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_running_lanes_move_into_the_places_of_the_others(layout, share):
    rng = np.random.default_rng(0)
    for count in (1, 7, 64, 65, 300):
        numbers, halted = rng.normal(size=(count, 5)), rng.random(count) < share
        stops = halted.astype(np.int32)
        blocks = {"state": layout.packed(numbers), "halted": layout.packed(stops[:, None])}
        idle = layout.idle(halted)
        packed = Packed(np.arange(count), blocks, layout).without(halted)
        left = np.count_nonzero(~halted)
        assert sorted(packed.rows) == sorted(np.flatnonzero(~halted))
        np.testing.assert_array_equal(packed.at("state", np.arange(left)), numbers[packed.rows])
        assert len(packed.blocks["state"]) == -(-left // layout.lanes)
        assert packed.column("halted").sum() == 0
        # Behind the last lane nothing runs.
        assert np.count_nonzero(packed.blocks["halted"] == 0) == left
        assert 0 <= idle < 1
        assert idle == 0 or left < count
        assert layout.idle(np.zeros(count, bool)) == 0


def test_a_cycle_is_found_at_the_end_of_a_short_run():
    """There is a search at the horizon wherever the states that it needs were passed since the last event."""
    starts = gdmap.gaussian_starts(40, 2, scale=0.3) + 1.0
    for max_steps in (67, 90, 127, 140, 330):
        found = gdmap.ensemble(GradientDescent(TWO, 1.1), starts, max_steps, engine="simd", max_period=64)
        expected = gdmap.ensemble(GradientDescent(TWO, 1.1), starts, max_steps, engine="xla", max_period=64)
        np.testing.assert_array_equal(found.fate, expected.fate)
        assert (expected.fate == gdmap.Fate.PERIODIC).any()
    short = gdmap.ensemble(GradientDescent(TWO, 1.1), starts, 60, engine="simd", max_period=8)
    np.testing.assert_array_equal(
        short.period, gdmap.ensemble(GradientDescent(TWO, 1.1), starts, 60, engine="xla", max_period=8).period
    )
    assert (short.period == 2).any()

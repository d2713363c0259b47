"""The page about speed is what its results make it, and the loops it compares make the same steps."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdmap

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "docs" / "speed.json", ROOT / "docs" / "speed.md"
KEYS = (
    "product_of_2", "product_of_4", "double_well", "tanh_neuron", "relu_toy",
    "linear_5_5_5_5", "linear_8_8_10", "mlp_2_8_1", "mlp_784_32_10",
)  # fmt: skip
# Numba takes long to compile its loops: one of them is enough for the default tests.
LOOPS = [("c_kernels", "Kernel", key) for key in KEYS] + [
    pytest.param("numba_loops", "Loop", key, marks=[] if key == "relu_toy" else pytest.mark.slow) for key in KEYS
]
STEPS, LANES = 20, 11


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return lambda name: importlib.import_module(f"peers.{name}")


def by_jax(problem, starts, step_size):
    map_ = gdmap.GradientDescent(problem.objective, step_size)
    with jax.enable_x64(True):
        step = jax.jit(jax.vmap(map_.update))
        states = jnp.asarray(starts)
        for _ in range(STEPS):
            states = step(states)
        return np.asarray(states)


def test_the_page_is_what_the_results_make_it(peers):
    results = json.loads(RESULTS.read_text())
    assert PAGE.read_text() == peers("page").page(results)
    assert not results["quick"]
    assert [row["key"] for row in results["rows"]] == [problem.key for problem in peers("problems").problems()]


def test_keys_are_those_of_the_problems_and_every_kernel_has_its_problem(peers):
    assert tuple(problem.key for problem in peers("problems").problems()) == KEYS
    kernels = {path.stem for path in (ROOT / "benchmarks" / "kernels").glob("*.c")}
    assert kernels - {"peak"} <= set(KEYS)


@pytest.mark.parametrize(("module", "kind", "key"), LOOPS)
def test_loops_written_by_hand_agree_with_jax(peers, module, kind, key):
    """Any number of starts, at an ordinary step size: to rounding, which some steps enlarge."""
    if module == "numba_loops":
        pytest.importorskip("numba")
    problem = next(problem for problem in peers("problems").problems() if problem.key == key)
    run = problem.short or problem.long
    starts = problem.draw(run, LANES)
    step_size = run.step_size / 2
    try:
        loop = getattr(peers(module), kind)(key, starts, step_size, problem.constants)
    except (LookupError, OSError) as missing:
        pytest.skip(str(missing))
    loop.run(STEPS)
    expected = by_jax(problem, starts, step_size)
    assert np.abs(expected - starts).max() > 1e-3
    np.testing.assert_allclose(loop.states(), expected, rtol=1e-11, atol=1e-13)


def test_tanh_of_the_kernels_is_tanh(peers):
    """Through one step of a neuron that starts in the saturated, the linear and the middle range.

    The gradient changes by at most 5 |x| times an error of tanh, so 2e-15 leaves it a few units in the last place.
    """
    problem = next(problem for problem in peers("problems").problems() if problem.key == "tanh_neuron")
    biases = np.concatenate([np.geomspace(1e-9, 30, 40), -np.geomspace(1e-9, 30, 40)])
    starts = np.stack([np.zeros_like(biases), biases], axis=1)
    try:
        loop = peers("c_kernels").Kernel("tanh_neuron", starts, 1.0, problem.constants)
    except OSError as missing:
        pytest.skip(str(missing))
    loop.run(1)
    x, y = problem.constants.reshape(2, -1)
    h = np.tanh(biases)[:, None]
    slope = (h - y) * (1 - h * h)
    expected = starts - np.stack([(slope * x).mean(axis=1), slope.mean(axis=1)], axis=1)
    np.testing.assert_allclose(loop.states(), expected, rtol=0, atol=2e-15)

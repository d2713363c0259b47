import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr

import gdmap
from gdmap import Function, LinearNetwork, StoreError, sweep
from gdmap.sweeps import observed_transition

NETWORK = LinearNetwork.whitened((2, 2, 2), np.diag([1.0, 0.5]))
STEP_SIZES = [0.5, 0.9, 1.05, 1.3]
ARGUMENTS = {"starts": 30, "max_steps": 1500, "scale": 0.5}


@pytest.fixture(scope="module")
def reference():
    return sweep(NETWORK, STEP_SIZES, **ARGUMENTS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store that holds the reference in chunks of 40; to be copied, not changed."""
    path = tmp_path_factory.mktemp("stores") / "finished.zarr"
    sweep(NETWORK, STEP_SIZES, **ARGUMENTS, store=path, chunk_size=40)
    return path


def assert_same_numbers(first, second):
    for name in first.variables:
        np.testing.assert_array_equal(first[name].values, second[name].values, err_msg=name)


def test_dataset_is_labelled(reference):
    assert reference["fate"].dims == ("step_size", "start")
    assert reference["fraction"].dims == ("step_size", "fate_name")
    np.testing.assert_array_equal(reference.step_size, STEP_SIZES)
    np.testing.assert_allclose(reference.fraction.sum("fate_name"), 1)
    assert (
        reference.fate.attrs["flag_meanings"].split()[reference.fate.attrs["flag_values"].index(3)] == "periodic"
    )
    assert reference.fraction.attrs["status"] == "estimated"
    assert reference.fraction.attrs["confidence"] == 0.95
    plan = json.loads(reference.attrs["plan"])
    assert plan["objective"]["widths"] == [2, 2, 2]
    assert plan["criteria"]["max_steps"] == 1500
    assert gdmap.fate_names(reference).shape == (4, 30)


def test_wilson_intervals_by_formula(reference):
    z = 1.959963984540054
    p = reference.fraction.values
    n = 30
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose(reference.fraction_lower, np.clip(centre - half, 0, 1), atol=1e-12)
    np.testing.assert_allclose(reference.fraction_upper, np.clip(centre + half, 0, 1), atol=1e-12)


@pytest.mark.parametrize(
    "chunk_size", [pytest.param(1, marks=pytest.mark.slow), 17, pytest.param(1000, marks=pytest.mark.slow)]
)
def test_chunks_change_nothing(reference, chunk_size, tmp_path):
    if chunk_size == 1:
        found = sweep(NETWORK, STEP_SIZES, **ARGUMENTS, chunk_size=1)
    else:
        found = sweep(NETWORK, STEP_SIZES, **ARGUMENTS, chunk_size=chunk_size, store=tmp_path / "s.zarr")
    assert_same_numbers(reference, found)


def test_permuted_starts_give_the_same_per_start(reference):
    order = np.random.default_rng(3).permutation(30)
    starts = 0.5 * gdmap.gaussian_starts(30, NETWORK.dim)
    permuted = sweep(NETWORK, STEP_SIZES, starts[order], max_steps=1500, chunk_size=17)
    for name in ("fate", "reason", "period", "steps", "loss", "gradient_norm"):
        np.testing.assert_array_equal(reference[name].values[:, order], permuted[name].values)


def test_starts_are_addressed_by_seed_and_index():
    few, many = gdmap.gaussian_starts(3, 5, seed=7), gdmap.gaussian_starts(1000, 5, seed=7)
    np.testing.assert_array_equal(few, many[:3])
    assert not np.array_equal(few, gdmap.gaussian_starts(3, 5, seed=8))
    assert few.dtype == np.float64
    assert abs(many.mean()) < 0.06 and abs(many.std() - 1) < 0.05
    assert len(np.unique(many)) == many.size


def test_scales_add_a_dimension_and_share_the_starts(reference):
    both = sweep(NETWORK, STEP_SIZES, 30, 1500, scale=[0.1, 0.5], chunk_size=17)
    assert both.fate.dims == ("step_size", "scale", "start")
    for name in ("fate", "steps", "loss", "fraction_lower"):
        np.testing.assert_array_equal(both[name].sel(scale=0.5).values, reference[name].values)


def test_a_law_of_starts():
    def law(key):
        return jax.random.uniform(key, (8,), minval=-0.2, maxval=0.2)

    first = sweep(NETWORK, [0.5], law, n_starts=5, max_steps=500)
    more = sweep(NETWORK, [0.5], law, n_starts=9, max_steps=500)
    np.testing.assert_array_equal(first.loss.values, more.loss.values[:, :5])


def test_another_map(reference):
    from gdmap import GradientDescent

    halved = sweep(
        NETWORK, [1.0, 1.8], 30, 1500, scale=0.5, map=lambda objective, eta: GradientDescent(objective, eta / 2)
    )
    np.testing.assert_array_equal(halved.fate.values, reference.sel(step_size=[0.5, 0.9]).fate.values)


def test_a_store_is_readable_by_xarray_alone_and_loads_identically(reference, tmp_path):
    path = tmp_path / "folder" / "s.zarr"
    stored = sweep(NETWORK, STEP_SIZES, **ARGUMENTS, store=path, chunk_size=40)
    again = sweep(NETWORK, STEP_SIZES, **ARGUMENTS, store=str(path), chunk_size=40)
    assert stored.identical(again)
    assert_same_numbers(reference, stored)
    opened = xr.open_zarr(path)
    np.testing.assert_array_equal(opened.fate, reference.fate)
    assert opened.fate.attrs == reference.fate.attrs
    assert list(opened.fate_name.values) == list(reference.fate_name.values)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"max_steps": 1501}, "criteria.max_steps: 1500 there, 1501 now"),
        ({"starts": 31}, "starts"),
        ({"scale": 0.4}, "scales"),
        ({"chunk_size": 7}, "chunk"),
        ({"step_sizes": [0.5, 0.9, 1.05, 1.2]}, "step_sizes"),
        ({"objective": LinearNetwork.whitened((2, 2, 2), np.diag([1.0, 0.6]))}, "objective.fingerprint"),
        ({"map": lambda objective, eta: gdmap.GradientDescent(objective, 2 * eta)}, "trace"),
    ],
)
def test_a_store_of_another_study_is_refused(finished, change, named):
    arguments = {"objective": NETWORK, "step_sizes": STEP_SIZES, **ARGUMENTS, "chunk_size": 40, "store": finished}
    with pytest.raises(StoreError, match="holds another study") as caught:
        sweep(**{**arguments, **change})
    assert named in str(caught.value)
    assert sweep(**arguments).sizes["start"] == 30  # and nothing was lost


@pytest.mark.parametrize("damage", ["truncate", "delete", "flip", "unmark"])
def test_a_damaged_chunk_is_computed_again(reference, finished, tmp_path, damage):
    path = shutil.copytree(finished, tmp_path / "s.zarr")
    name = "chunk_digest" if damage == "unmark" else "loss"
    chunk = sorted(file for file in (path / name).rglob("*") if file.is_file() and file.name != "zarr.json")[1]
    content = chunk.read_bytes()
    if damage == "truncate":
        chunk.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        chunk.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    else:
        chunk.unlink()
    assert_same_numbers(reference, sweep(NETWORK, STEP_SIZES, **ARGUMENTS, store=path, chunk_size=40))


@pytest.mark.parametrize("name", ["fraction", "fraction_lower", "step_size", "start"])
def test_summary_and_coordinates_are_mended(reference, finished, tmp_path, name):
    path = shutil.copytree(finished, tmp_path / "s.zarr")
    for chunk in [file for file in (path / name).rglob("*") if file.is_file() and file.name != "zarr.json"]:
        chunk.unlink()
    assert_same_numbers(reference, sweep(NETWORK, STEP_SIZES, **ARGUMENTS, store=path, chunk_size=40))
    np.testing.assert_array_equal(xr.open_zarr(path)[name], reference[name])


@pytest.mark.parametrize("content", ["{", "{}", None])
def test_damaged_metadata_are_refused_or_do_no_harm(tmp_path, content):
    path = tmp_path / "s.zarr"
    truth = sweep(NETWORK, [0.5], 3, 200, store=path)
    for metadata, harmless in ((path / "loss" / "zarr.json", True), (path / "zarr.json", False)):
        if content is None:
            metadata.unlink()
        else:
            metadata.write_text(content)
        if harmless:  # the root of a finished store holds a copy
            assert_same_numbers(truth, sweep(NETWORK, [0.5], 3, 200, store=path))
        else:
            with pytest.raises(StoreError, match="is not a gdmap sweep"):
                sweep(NETWORK, [0.5], 3, 200, store=path)


def test_losses_that_differ_in_an_inner_constant_are_told_apart(tmp_path):
    def make(weights):
        weights = jax.numpy.asarray(weights)
        return Function(jax.jit(lambda w: jax.numpy.sum(weights * (w**2 - 1) ** 2) / 4), 2)

    arguments = {"starts": 4, "max_steps": 100, "store": tmp_path / "s.zarr"}
    sweep(make([1.0, 1.0]), [0.4], **arguments)
    with pytest.raises(StoreError, match="another study"):
        sweep(make([4.0, 4.0]), [0.4], **arguments)


SCRIPT = """
import sys, numpy as np, gdmap
network = gdmap.LinearNetwork.whitened((2, 2, 2), np.diag([1.0, 0.5]))
gdmap.sweep(network, [0.5, 0.9, 1.05, 1.3], 30, 1500, scale=0.5, chunk_size=17, store=sys.argv[1],
            progress=lambda done, total: print(done, flush=True))
"""


def test_kill_and_run_again_gives_the_identical_dataset(reference, tmp_path):
    script, path = tmp_path / "run.py", tmp_path / "s.zarr"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen([sys.executable, script, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 60:  # somewhere in the middle, between two writes or inside one
            os.kill(process.pid, signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    partial = xr.open_zarr(path, consolidated=False)
    digests = np.asarray(partial.chunk_digest)
    assert 0 < np.count_nonzero(digests) < digests.size
    assert partial.attrs["complete"] is False
    missing = gdmap.fate_names(partial) == "not_computed"
    assert 0 < missing.mean() < 1
    np.testing.assert_array_equal(np.isnan(partial.loss), missing)
    resumed = sweep(NETWORK, STEP_SIZES, **ARGUMENTS, chunk_size=17, store=path)  # in this other process
    whole = sweep(NETWORK, STEP_SIZES, **ARGUMENTS, chunk_size=17, store=tmp_path / "whole.zarr")
    assert resumed.identical(whole)
    assert_same_numbers(reference, resumed)


def test_only_missing_chunks_are_computed(tmp_path, monkeypatch):
    module = importlib.import_module("gdmap.sweeps.sweep")
    path, calls, original = tmp_path / "s.zarr", [], module.run_chunk

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, "run_chunk", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep(NETWORK, STEP_SIZES, **ARGUMENTS, chunk_size=30, store=path)
    sweep(NETWORK, STEP_SIZES, **ARGUMENTS, chunk_size=30, store=path)
    assert len(calls) == 3 + 2


@pytest.mark.slow  # a store that is broken off is resumed above by default
def test_a_full_disk_is_reported_and_loses_nothing(reference, tmp_path):
    # A process that may not write files beyond a few hundred bytes meets the same failure as on a full disk.
    script = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n" + SCRIPT.replace(
        "chunk_size=17", "chunk_size=40"
    )
    path = tmp_path / "s.zarr"
    sweep_once = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert sweep_once.returncode != 0
    assert "StoreError" in sweep_once.stderr
    assert "run again with the same arguments" in sweep_once.stderr
    assert_same_numbers(reference, sweep(NETWORK, STEP_SIZES, **ARGUMENTS, chunk_size=40, store=path))


def test_unusable_paths(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    for path, message in (
        (occupied, "is not a gdmap sweep"),
        (occupied / "below", "cannot be"),
        (Path("/proc/nowhere/s.zarr"), "cannot be"),
    ):
        with pytest.raises(StoreError, match=message):
            sweep(NETWORK, [0.5], 2, 10, store=path)
    assert occupied.read_text() == "not a folder"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not a gdmap sweep"):
        sweep(NETWORK, [0.5], 2, 10, store=foreign)
    assert (foreign / "notes.txt").read_text() == "mine"


def test_an_empty_folder_may_become_a_store(tmp_path):
    sweep(NETWORK, [0.5], 2, 100, store=tmp_path)
    assert (tmp_path / "zarr.json").exists()


def test_observed_transition(reference):
    assert observed_transition(reference) == (0.9, 1.05)
    assert observed_transition(reference.isel(step_size=[0])) == (0.5, np.inf)
    assert observed_transition(reference.isel(step_size=[3, 2])) == (-np.inf, 1.05)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step_sizes": []}, ValueError, "step_sizes"),
        ({"step_sizes": [[0.1]]}, ValueError, "step_sizes"),
        ({"step_sizes": ["a"]}, ValueError, "step_sizes"),
        ({"step_sizes": [0.1, -0.1]}, ValueError, "step_size must be positive"),
        ({"step_sizes": [0.1, np.nan]}, ValueError, "step_size must be positive and finite"),
        ({"step_sizes": [0.1, 0.1]}, ValueError, "same step size twice"),
        ({"starts": 0}, ValueError, "starts must be a positive integer"),
        ({"starts": True}, (ValueError, TypeError), "got dtype bool|starts"),
        ({"starts": np.ones((3, 7))}, ValueError, "thetas has shape"),
        ({"starts": np.full((3, 8), np.nan)}, ValueError, "not finite"),
        ({"starts": lambda key: jax.random.normal(key, (8,))}, ValueError, "n_starts"),
        ({"starts": lambda key: jax.random.normal(key, (3,)), "n_starts": 2}, ValueError, "shape"),
        ({"starts": np.ones((3, 8)), "scale": 0.5}, ValueError, "scale applies to starts given as a number"),
        ({"n_starts": 5}, ValueError, "n_starts goes with a law"),
        ({"scale": 0.0}, ValueError, "scale must be positive"),
        ({"scale": [0.1, 0.1]}, ValueError, "scale holds the same number twice"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 1.5}, ValueError, "seed"),
        ({"max_steps": 0}, ValueError, "max_steps"),
        ({"chunk_size": 0}, ValueError, "chunk_size"),
    ],
)
def test_bad_input_names_the_argument(change, error, message):
    arguments = {"step_sizes": [0.5], "starts": 2, "max_steps": 10, **change}
    with pytest.raises(error, match=message):
        sweep(NETWORK, **arguments)


def test_progress_counts_trajectories():
    seen = []
    sweep(Function(lambda w: w @ w, 1), [0.1, 0.2], 5, 200, chunk_size=5, progress=lambda *pair: seen.append(pair))
    assert seen[-1] == (10, 10)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)

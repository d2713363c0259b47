import json
import re

import numpy as np
import pytest
import xarray as xr

from gdmap.cli.bifurcation import divergence, inside

LOSSES = """
import gdmap, optax

well = gdmap.Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
ball = gdmap.Optimiser(well, optax.sgd, learning_rate=0.3, momentum=0.5)
adam = gdmap.Optimiser(well, optax.adam, learning_rate=0.3)
number = 3
flat = gdmap.Function(lambda x: abs(x[0]), 1)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("orbits")
    (path / "losses.py").write_text(LOSSES)
    (path / "file").write_text("")
    return path


def test_orbits_end_to_end(run, folder):
    status, shown, _ = run(
        "orbits", "losses.py:well", "--period", 2, "--step-size", 1.1, "--starts", 16, "--out", "results"
    )
    assert status == 0
    assert "GradientDescent on losses.py:well, step_size 1.1." in shown
    assert "Multiplier of 0: 0.18 +- " in shown and "2 of them stable" in shown
    assert "Points of 2: " in shown and "1.67874" in shown
    assert max(map(len, shown.split("Points of")[0].splitlines())) <= 80
    assert "…" not in shown
    record = json.loads((folder / "results" / "orbits.json").read_text())
    assert [orbit["stability"] for orbit in record["orbits"]] == ["stable", "stable", "unstable"]
    assert record["orbits"][0]["multipliers"][0]["real"] == pytest.approx(9 - 2 * 2.1**2, abs=1e-10)
    assert record["searches"][0]["status"] == "estimated"
    with xr.open_zarr(folder / "results" / "orbits.zarr", consolidated=False) as dataset:
        np.testing.assert_allclose(np.abs(dataset["state"][2]), np.sqrt(1 + 2 / 1.1), rtol=1e-10)
    assert (folder / "results" / "orbits.png").stat().st_size > 10_000


def test_of_many_orbits_a_dozen_is_shown(run):
    # |x| has a 2-cycle through every start.
    status, shown, _ = run("orbits", "losses.py:flat", "--period", 2, "--starts", 16, "--step-size", 0.3)
    assert status == 0
    assert "Points of 11: " in shown and "Points of 12: " not in shown and "Multiplier of 12" not in shown
    more = int(re.search(r"And (\d+) more: --json or --out has all of them", shown)[1])
    assert f"{12 + more} orbits of minimal period 2" in shown


def test_no_orbit_is_exit_status_3_with_what_to_try(run):
    status, shown, _ = run("orbits", "losses.py:ball", "--period", 3, "--starts", 2, "--step-size", 0.01, "--json")
    assert status == 3
    record = json.loads(shown)
    assert record["orbits"] == [] and record["numbers"]["step_size"] == 0.01
    assert record["numbers"]["momentum"] == 0.5


def test_a_region_is_searched_completely(run):
    status, shown, _ = run("orbits", "losses.py:well", "--step-size", 0.4, "--region", "-1.5,1.2", "--complete")
    assert status == 0 and "3 fixed points in the box: proved" in shown


def test_bifurcation_end_to_end(run, folder):
    status, shown, _ = run(
        *("bifurcation", "losses.py:well", "--step-sizes", "0.5:1.25", "--starts", 8, "--doublings", 1),
        *("--orbit-diagram", "--out", "diagram"),
    )
    assert status == 0
    assert "GradientDescent on losses.py:well, step size from 0.5 to 1.25." in shown
    assert " doubling  1.236067977" in shown and " super " in shown
    assert "Nothing was followed from events 2, 3: not asked for: --doublings 1." in shown
    assert max(map(len, shown.split("At step_size")[0].splitlines())) <= 80 and "…" not in shown
    record = json.loads((folder / "diagram" / "bifurcation.json").read_text())
    assert [branch["period"] for branch in record["branches"]] == [1, 1, 1, 2, 2]
    values = sorted(event["value"] for event in record["events"])
    np.testing.assert_allclose(values, [1, 1, 5**0.5 - 1, 5**0.5 - 1], atol=1e-10)
    assert record["cascades"][0]["periods"] == [1, 2]
    np.testing.assert_allclose(record["branches"][3]["stable"], [[1, 5**0.5 - 1]], atol=1e-9)
    with xr.open_zarr(folder / "diagram" / "bifurcation.zarr", consolidated=False) as dataset:
        np.testing.assert_allclose(np.sort(dataset["event_parameter"]), values)
    for name in ("bifurcation.png", "orbit_diagram.png"):
        assert (folder / "diagram" / name).stat().st_size > 10_000
    assert (folder / "diagram" / "orbit_diagram.zarr").is_dir()


def test_records_are_in_order_inside_the_bounds_and_say_where_all_diverge():
    dots = xr.Dataset(
        {"diverged": (("sweep", "value", "start"), np.array([[[0, 0], [1, 0], [1, 1], [1, 1]]], bool))},
        coords={"value": [1.0, 2.0, 3.0, 4.0]},
    )
    assert "2 of 4 values of the step size, between 3 and 4" in divergence(dots, "step size")
    assert "every start diverged at every value" in divergence(dots.isel(value=[2, 3]), "step size")
    assert divergence(dots.isel(value=[0, 1]), "step size") == ""
    assert inside(np.nextafter(0.2, 0), [0.2, 1]) == 0.2 and inside(np.nextafter(1, 2), [0.2, 1]) == 1


@pytest.mark.slow
def test_nothing_to_begin_with_is_exit_status_3(run):
    status, shown, _ = run(
        *("bifurcation", "losses.py:ball", "--parameter", "momentum", "--range", "0:0.4", "--step-size", 0.01),
        *("--period", 3, "--starts", 2, "--out", "nothing"),
    )
    assert status == 3
    assert "0 orbits of minimal period 3 found by search" in shown
    assert "looked for at momentum = 0: --at chooses other values" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("orbits", "losses.py:well"), "--step-size is needed with a loss"),
        (("orbits", "losses.py:none"), "defines no 'none'"),
        (("orbits", "absent.py:well"), "there is no file absent.py"),
        (("orbits", "losses.py:number"), "neither a gdmap objective nor a map"),
        (("orbits", "losses.py:well", "--step-size", -1), "step_size must be positive"),
        (("orbits", "losses.py:well", "--step-size", 1, "--period", 0), "period must be a positive integer"),
        (("orbits", "losses.py:well", "--step-size", 1, "--region", "1"), "--region must be two numbers"),
        (("orbits", "losses.py:well", "--step-size", 1, "--complete"), "--complete needs --region"),
        (("orbits", "losses.py:well", "--step-size", 1, "--out", "file"), "file is a file, give a folder"),
        (("orbits", "losses.py:adam"), "depends on time"),
        (("bifurcation", "losses.py:well"), "--step-sizes FROM:TO such as 0.1:1.5"),
        (
            ("bifurcation", "losses.py:well", "--step-sizes", "0.1,1"),
            "two numbers FROM:TO with a colon, such as 0.1:1.5",
        ),
        (("bifurcation", "losses.py:well", "--step-sizes", "0:1"), "step sizes must be positive"),
        (("bifurcation", "losses.py:well", "--step-sizes", "2:1"), "FROM < TO"),
        (("bifurcation", "losses.py:well", "--step-sizes", "1:2", "--at", 3), "lies outside the range 1:2"),
        (("bifurcation", "losses.py:well", "--step-sizes", "1:2", "--component", 1), "--component must be norm"),
        (
            ("bifurcation", "losses.py:well", "--step-sizes", "1:2", "--step-size", 1),
            "goes with another --parameter",
        ),
        (
            ("bifurcation", "losses.py:well", "--step-sizes", "1:2", "--doublings", -1),
            "greater than or equal to 0",
        ),
        (("bifurcation", "losses.py:ball", "--parameter", "momentum"), "--parameter NAME with --range"),
        (
            ("bifurcation", "losses.py:ball", "--parameter", "decay", "--range", "0:1"),
            "it has step_size, momentum",
        ),
        (
            ("bifurcation", "losses.py:well", "--parameter", "momentm", "--range", "0:1"),
            "--parameter momentm: GradientDescent has no parameter 'momentm'; it has step_size, momentum",
        ),
        (
            ("bifurcation", "losses.py:well", "--parameter", "momentum", "--range", "0:1"),
            "--parameter momentum varies the momentum: --step-size, which stays the same, is needed too",
        ),
        (("orbits", "losses.py:adam", "--momentum", 0.5), "--momentum: Optimiser has no parameter 'momentum'"),
    ],
)
def test_mistakes_end_with_one_line(run, arguments, words):
    status, shown, error = run(*arguments)
    assert status == 2 and shown == ""
    assert words in error


@pytest.mark.parametrize("command", ["orbits", "bifurcation"])
def test_help_has_an_example(run, command):
    status, shown, _ = run(command, "--help")
    assert status == 0 and f"gdmap {command} file.py:loss" in " ".join(shown.replace("│", " ").split())

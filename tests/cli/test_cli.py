import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

import gdmap
from gdmap.cli import main

GDMAP = Path(sys.executable).with_name("gdmap")


def process(*arguments, cwd):
    """The command as it is installed, in a process of its own."""
    return subprocess.run([GDMAP, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def run(monkeypatch, capsys):
    """``run(*arguments, cwd=folder)``: the exit status and what was shown, in this process."""

    def call(*arguments, cwd, check=True):
        monkeypatch.chdir(cwd)
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "argv", ["gdmap", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stopped:
            status = stopped.code or 0
        shown = capsys.readouterr()
        if check:
            assert status == 0, shown.err
        return SimpleNamespace(returncode=status, stdout=shown.out, stderr=shown.err.replace("│", " "))

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(50, 3)) * [1.0, 2.0, 0.5]
    targets = inputs @ rng.normal(size=(3, 2)) + 0.1 * rng.normal(size=(50, 2))
    np.savetxt(path / "X.csv", inputs, delimiter=",", header="a,b,c", comments="")
    np.savetxt(path / "y.csv", targets, delimiter=",")
    (path / "loss.py").write_text(
        "import gdmap, jax.numpy as jnp\n"
        "loss = gdmap.Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)\n"
        "endless = gdmap.Function(lambda w: jnp.exp(-w[0]), 1)\n"
    )
    return path


DATA = ("--inputs", "X.csv", "--targets", "y.csv", "--hidden", "4")


def test_critical_on_the_users_csv(run, folder):
    shown = run("critical", *DATA, cwd=folder).stdout
    assert "critical step size" in shown and "computed" in shown and "not scaled" in shown
    record = json.loads(run("critical", *DATA, "--json", "--out", "critical", cwd=folder).stdout)
    assert record["step_size"]["value"] == pytest.approx(2 / record["min_sharpness"]["value"])
    assert record["objective"]["widths"] == [3, 4, 2]
    stored = xr.open_zarr(folder / "critical" / "critical.zarr", consolidated=False)
    assert float(stored.eigenvalue.max()) == pytest.approx(record["min_sharpness"]["upper"])
    assert (folder / "critical" / "critical.png").stat().st_size > 10_000
    again = json.loads(run("critical", "critical/study.toml", "--json", cwd=folder).stdout)
    assert again == record


def test_sweep_on_the_users_csv_and_again_from_its_study(run, folder):
    arguments = ("--starts", 8, "--scale", 0.1, "--number", 4, "--range", 0.8, 1.2, "--max-steps", 4000)
    shown = run("sweep", *DATA, *arguments, "--out", "results", cwd=folder).stdout
    assert "The predicted critical step size is" in " ".join(shown.split())
    assert {path.name for path in (folder / "results").iterdir()} >= {"sweep.zarr", "sweep.png", "study.toml"}
    first = json.loads(run("sweep", "results/study.toml", "--json", "--out", "again", cwd=folder).stdout)
    assert first["starts"] == 8
    assert first["fractions"]["minimum"]["value"][:2] == [1, 1]
    assert first["fractions"]["minimum"]["value"][2:] == [0, 0]
    predicted = first["critical"]["step_size"]["value"]
    assert first["observed_transition"][0] < predicted < first["observed_transition"][1]
    one, two = (xr.open_zarr(folder / name / "sweep.zarr") for name in ("results", "again"))
    for name in ("fate", "loss", "steps", "fraction_lower"):
        np.testing.assert_array_equal(one[name], two[name])


def test_sweep_of_an_objective_of_the_users(run, folder):
    record = json.loads(
        run(
            "sweep", "--objective", "loss.py:loss", "--step-size", 0.5, "--step-size", 1.1,
            "--scale", 0.3, "--starts", 10, "--json", cwd=folder,
        ).stdout
    )  # fmt: skip
    assert record["step_sizes"] == [0.5, 1.1]
    assert record["fractions"]["minimum"]["value"][1] == 0
    assert "critical" not in record


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("critical",), "no data: give --digits, or --inputs"),
        (("critical", "--inputs", "none.csv", "--targets", "y.csv"), "there is no file none.csv"),
        (("critical", "--inputs", "X.csv"), "targets is missing"),
        (("critical", "study.toml"), "there is no file study.toml"),
        (("critical", "study.toml", "--digits"), "not both"),
        (("critical", "--objective", "loss.py:endless"), "parameters grow"),
        (("critical", "--objective", "loss.py:loss", "--starts", "0"), "starts must be a positive integer"),
        (("critical", "--objective", "loss.py:loss", "--scale", "-1"), "scale must be positive"),
        (("sweep", *DATA, "--step-size", "-0.1"), "step_size must be positive"),
        (("sweep", *DATA, "--step-size", "0.1", "--range", "0.5", "1"), "go without"),
        (("sweep", *DATA, "--range", "2", "1"), "--range needs"),
        (("sweep", *DATA, "--starts", "0"), "starts must be a positive integer"),
        (("sweep", *DATA, "--scale", "0"), "scale must be positive"),
        (("sweep", *DATA, "--hidden", "0"), "widths must be"),
        (("sweep", *DATA, "--components", "9"), "components must be from 1 to 3"),
        (("sweep", *DATA, "--step-size", "0.1", "--starts", "2", "--out", "X.csv"), "X.csv"),
        (("sweep", "--step-size", "wide"), "as a number"),
    ],
)
def test_mistakes_end_with_one_clear_error(folder, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["gdmap", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert shown.out == ""
    text = " ".join(shown.err.replace("│", " ").split())
    assert message in text
    assert "Traceback" not in text


@pytest.mark.slow
def test_a_mistake_ends_the_process_with_status_two(folder):
    ended = process("critical", "--inputs", "none.csv", "--targets", "y.csv", cwd=folder)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "there is no file none.csv" in " ".join(ended.stderr.split())


def test_critical_step_size_of_an_objective_of_the_users(run, folder):
    shown = run("critical", "--objective", "loss.py:loss", "--starts", 4, cwd=folder).stdout
    words = " ".join(shown.split())
    assert "estimated" in words
    assert "supercritical" in words
    assert "Just above: The minimum loses stability at step size 1" in words
    assert {path.name for path in (folder / "gdmap-critical").iterdir()} == {
        "critical.json",
        "critical.png",
        "critical.zarr",
        "minima.png",
        "study.toml",
    }
    record = json.loads((folder / "gdmap-critical" / "critical.json").read_text())
    assert record["step_size"]["value"] == pytest.approx(1.0, rel=1e-9)
    assert record["step_size"]["status"] == "estimated"
    assert record["bifurcation"]["kind"] == "supercritical"
    # On the diagonal x -> (1 + eta) x - eta x^3, as for the double well, where 8 x^2 = eps; here xi^2 = 2 x^2.
    assert record["bifurcation"]["coefficient"]["value"] == pytest.approx(4.0, rel=1e-9)


def test_the_wrong_store_is_refused_and_kept(run, folder):
    arguments = ("sweep", *DATA, "--step-size", "0.1", "--max-steps", "50", "--out", "taken")
    run(*arguments, "--starts", 3, cwd=folder)
    before = (folder / "taken" / "study.toml").read_text()
    refused = run(*arguments, "--starts", 4, cwd=folder, check=False)
    assert refused.returncode == 2
    assert "holds another study" in " ".join(refused.stderr.split())
    assert (folder / "taken" / "study.toml").read_text() == before


def test_help_lists_the_commands(run, folder):
    shown = run("--help", cwd=folder).stdout
    for command in ("demo", "critical", "sweep"):
        assert command in shown
    assert "--objective" in run("critical", "--help", cwd=folder).stdout


@pytest.mark.slow
def test_demo(run, tmp_path):
    record = json.loads(run("demo", "--json", cwd=tmp_path).stdout)
    predicted = record["critical"]["step_size"]["value"]
    assert predicted == pytest.approx(2.6119, abs=5e-5)
    assert record["observed_transition"][0] < predicted < record["observed_transition"][1]
    step_sizes = np.array(record["step_sizes"])
    assert len(step_sizes) == 24 and record["starts"] >= 100
    reached = np.array(record["fractions"]["minimum"]["value"])
    np.testing.assert_array_equal(reached[step_sizes < 0.95 * predicted, 0], 1)
    np.testing.assert_array_equal(reached[step_sizes > predicted], 0)
    assert (tmp_path / "gdmap-demo" / "sweep.png").exists()


def test_version(folder):
    assert process("--version", cwd=folder).stdout.strip() == f"gdmap {gdmap.__version__}"
    assert gdmap.__version__ == importlib.metadata.version("gdmap")


def test_a_function_of_the_parameters_is_no_objective(run, folder):
    (folder / "bare.py").write_text("def plain(w):\n    return w @ w\n")
    refused = run("critical", "--objective", "bare.py:plain", cwd=folder, check=False)
    assert refused.returncode == 2
    words = " ".join(refused.stderr.split())
    assert "it must be an objective, or a function without arguments that makes one" in words
    assert "gdmap.Function(plain, dim)" in words

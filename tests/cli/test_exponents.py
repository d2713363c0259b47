import json

import numpy as np
import pytest
import xarray as xr

import gdmap
from gdmap.exponents import gd_exponent, mean_square_threshold, sgd_exponent

LOSSES = """
import gdmap, jax, jax.numpy as jnp, numpy as np

points = np.array([0.9, 2.5])


def one(t, x, y):
    return (y - jax.nn.relu(t[1] * jax.nn.relu(t[0] * x))) ** 2 / 2


toy = gdmap.Objective(one, np.zeros(2), data=(points, points))
# Two independent gradients at (1, 1), with Gram matrix [[3, .7], [.7, 1.2]].
rows = np.linalg.cholesky(np.array([[3, 0.7], [0.7, 1.2]]))
pair = gdmap.Objective(lambda t, f: (f @ (t - 1)) ** 2 / 2, np.zeros(2), data=(rows,))
noisy = gdmap.Objective(lambda t, y: (t[0] - y) ** 2 / 2, np.zeros(1), data=(np.array([0.0, 1.0]),))
plain = gdmap.Function(lambda w: w @ w, 2)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("exponents")
    (path / "losses.py").write_text(LOSSES)
    np.save(path / "toy.npy", np.array([1.6, 1 / 1.6]))
    np.savez(path / "near.npz", theta=np.array([1.6, 0.6]), other=np.zeros(1))
    np.savez(path / "unnamed.npz", a=np.zeros(2), b=np.zeros(2))
    np.save(path / "ones.npy", np.ones(2))
    np.save(path / "half.npy", np.array([0.5]))
    np.save(path / "p.npy", np.array([0.58, 0.42]))
    return path


def test_the_toy_is_sgd_stable_and_gd_unstable(run, folder):
    law = ("--probabilities", "0.58,0.42")
    status, shown, _ = run(
        "exponents", "losses.py:toy", "--at", "toy.npy", "--step-size", 0.3, "--step-size", 0.3, *law
    )
    assert status == 0
    assert "2 parameters, 2 samples" in shown and "the normal space has dimension 1" in shown
    assert shown.count("0.3  ") == 1
    row = next(line.split() for line in shown.splitlines() if line.split()[:1] == ["0.3"])
    assert row[3] == "unstable" and row[-1] == "stable" and "computed" in row
    assert "2 of its hypotheses fail" in shown and "law of large numbers" in shown
    assert "certify_nonsingular" in shown and "commuting Jacobians" in shown
    heading = next(line for line in shown.splitlines() if {"mu", "GD", "lambda", "SGD"} <= set(line.split()))
    assert len(heading) <= 80
    status, record, _ = run(
        "exponents", "losses.py:toy", "--at", "toy.npy", "--step-size", 0.3, "--probabilities", "p.npy", "--json"
    )
    found = json.loads(record)
    s = 1.6**2 + 1.6**-2
    lam = 0.58 * np.log(abs(1 - 0.243 * s)) + 0.42 * np.log(abs(1 - 1.875 * s))
    mu = np.log(abs(1 - 0.3 * 3.0948 * s))
    (one,) = found["exponents"]
    assert one["lambda"]["value"] == pytest.approx(lam, rel=1e-10) and one["lambda"]["verdict"] == "stable"
    assert one["mu"]["value"] == pytest.approx(mu, rel=1e-10) and one["mu"]["verdict"] == "unstable"
    assert one["regular"] is False
    assert found["minimum"]["sharpness"]["value"] == pytest.approx(3.0948 * s, rel=1e-10)
    assert found["thresholds"][0]["gradient_descent"]["value"] == pytest.approx(2 / (3.0948 * s))
    assert found["probabilities"] == [0.58, 0.42]


def test_batch_sizes_and_step_sizes_with_data_and_picture(run, folder):
    sizes = ("--step-size", 0.9, "--step-size", 0.5, "--batch-size", 1, "--batch-size", 2)
    status, shown, _ = run(
        "exponents", "losses.py:pair", "--at", "ones.npy", *sizes, "--spectrum", "--out", "new/out"
    )
    assert status == 0
    assert shown.count("All exponents at step size") == 4
    assert "only one batch: lambda = mu" in shown and "estimated at confidence 0.95" in shown
    assert "Written to new/out: exponents.json, exponents.zarr, exponents.png, minimum.npz" in shown
    out = folder / "new" / "out"
    assert (out / "exponents.png").stat().st_size > 10_000
    with np.load(out / "minimum.npz") as stored:
        np.testing.assert_allclose(stored["theta"], [1, 1], atol=1e-12)
    dataset = xr.open_zarr(out / "exponents.zarr", consolidated=False)
    assert dict(dataset.sizes) == {"step_size": 2, "batch_size": 2}
    # The library's numbers: theory.md 6.5, 0.2164(5) and -0.3031(5).
    golden = {(0.9, 1): 0.2164, (0.5, 1): -0.3031}
    record = json.loads((out / "exponents.json").read_text())
    objective = gdmap.Objective(
        lambda t, f: (f @ (t - 1)) ** 2 / 2,
        np.zeros(2),
        data=(np.linalg.cholesky(np.array([[3, 0.7], [0.7, 1.2]])),),
    )
    for one in record["exponents"]:
        eta, size = one["step_size"], one["batch_size"]
        lam = sgd_exponent(objective, np.ones(2), eta, size)
        assert one["lambda"]["value"] == lam.value and one["lambda"]["verdict"] == lam.verdict
        assert one["mu"]["value"] == pytest.approx(gd_exponent(objective, np.ones(2), eta).value, rel=1e-10)
        assert float(dataset["sgd_exponent"].sel(step_size=eta, batch_size=size)) == lam.value
        if (eta, size) in golden:
            spread = np.hypot(one["lambda"]["standard_error"], 5e-4)
            assert abs(lam.value - golden[eta, size]) < 4 * spread
    for one in record["thresholds"]:
        exact = mean_square_threshold(objective, np.ones(2), one["batch_size"])
        assert one["mean_square"]["value"] == pytest.approx(exact.value, rel=1e-12)
    for spectrum in record["lyapunov_spectra"]:
        assert len(spectrum["exponent"]) == 2
        # E log|det| exactly: theory.md 6.5.
        sums = {0.5: -0.804719, 0.9: -0.997550}
        if spectrum["batch_size"] == 1:
            assert spectrum["log_determinant"] == pytest.approx(sums[spectrum["step_size"]], abs=1e-6)


@pytest.mark.slow
def test_batches_with_replacement(run):
    at = ("--at", "ones.npy", "--step-size", 0.5, "--batch-size", 2, "--json")
    status, shown, _ = run("exponents", "losses.py:pair", *at, "--replace", "--seed", 3, "--confidence", 0.9)
    record = json.loads(shown)
    assert status == 0 and record["replace"] and record["exponents"][0]["lambda"]["confidence"] == 0.9


def test_epochs(run):
    status, shown, _ = run("exponents", "losses.py:toy", "--at", "toy.npy", "--step-size", 0.1, "--shuffle")
    assert status == 0 and "in mean square (exact)" in shown and "the batches of an epoch" in shown


def test_find_goes_to_a_minimum_first(run):
    near = ("losses.py:toy", "--at", "near.npz", "--step-size", 0.1)
    status, _, error = run("exponents", *near)
    assert status == 2 and "error:" in error and "minimum" in error
    status, shown, _ = run("exponents", *near, "--find", "--json")
    theta = json.loads(shown)["minimum"]["theta"]
    assert status == 0 and theta[0] * theta[1] == pytest.approx(1, rel=1e-12)


def test_an_undecided_verdict_is_exit_status_3(run, folder):
    # On the boundary mu = 0: eta times the sharpness is 2.
    np.save(folder / "flat.npy", np.ones(2))
    status, shown, _ = run("exponents", "losses.py:toy", "--at", "flat.npy", "--step-size", repr(2 / 7.06))
    assert status == 3 and "undecided" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("losses.py:toy", "--at", "none.npy", "--step-size", 0.1), "--at: there is no file none.npy"),
        (("losses.py:toy", "--at", "losses.py", "--step-size", 0.1), "--at: losses.py is not a .npy or .npz file"),
        (("losses.py:toy", "--at", "unnamed.npz", "--step-size", 0.1), "one of them must be called theta"),
        (("losses.py:toy", "--at", "toy.npy", "--step-size", -1), "step_size must be positive"),
        (("losses.py:toy", "--at", "toy.npy", "--step-size", 0.1, "--batch-size", 3), "larger than the number"),
        (
            ("losses.py:toy", "--at", "toy.npy", "--step-size", 0.1, "--confidence", 2),
            "confidence must be between",
        ),
        (("losses.py:toy", "--at", "toy.npy", "--step-size", 0.1, "--seed", -1), "seed must be an integer"),
        (("losses.py:toy", "--at", "toy.npy", "--step-size", 0.1, "--probabilities", "0.5,0.6"), "sum to 1"),
        (
            ("losses.py:toy", "--at", "toy.npy", "--step-size", 0.1, "--probabilities", "p.csv"),
            "there is no file p.csv",
        ),
        (("losses.py:toy", "--at", "half.npy", "--step-size", 0.1), "shape"),
        (
            ("losses.py:toy", "--at", "toy.npy", "--step-size", 0.1, "--shuffle", "--replace"),
            "visits every sample",
        ),
        (
            ("losses.py:toy", "--at", "toy.npy", "--step-size", 0.1, "--out", "p.npy"),
            "p.npy is a file, give a folder",
        ),
        (("losses.py:noisy", "--at", "half.npy", "--step-size", 0.1), "sample"),
        (("losses.py:plain", "--at", "toy.npy", "--step-size", 0.1), "Function has no samples"),
        (("losses.py:nothing", "--at", "toy.npy", "--step-size", 0.1), "defines no 'nothing'"),
        (("losses.py:toy", "--at", "toy.npy"), "Missing option '--step-size'"),
    ],
)
def test_mistakes_are_one_line(run, arguments, message):
    status, shown, error = run("exponents", *arguments)
    assert status == 2 and not shown
    assert message in error


# gdmap reproduce -------------------------------------------------------------------------------------------------


def test_reproductions_are_listed(run):
    status, shown, _ = run("reproduce")
    assert status == 0 and "gd-vs-sgd-stability: GD-stable and SGD-stable minima" in shown
    assert "arXiv:2510.24466" in shown and "proper subset" in shown
    status, shown, _ = run("reproduce", "--json")
    assert json.loads(shown)["reproductions"][1]["name"] == "gd-vs-sgd-stability"


def test_a_reproduction_runs_and_is_written(run, folder, monkeypatch):
    import dataclasses

    from matplotlib.figure import Figure

    from gdmap.reproduce import Claim, Report, registry

    def quickly(quick, seed, progress):
        progress(1, 1)
        found = {"number": gdmap.Bracket(float(seed), 0.0, 9.0, "computed", "given")}
        claim = Claim("It is so.", "Figure 1", "A run.", found, "corrected", "It is nearly so.")
        return Report("x", "Title", "Paper", (claim,), xr.Dataset({"a": ("b", [1.0])}), {"p": Figure()}, quick)

    name = "gd-vs-sgd-stability"
    changed = dataclasses.replace(registry.REPRODUCTIONS[name], run=quickly)
    monkeypatch.setitem(registry.REPRODUCTIONS, name, changed)
    status, shown, _ = run("reproduce", name, "--quick", "--seed", 4)
    assert status == 0
    assert "1. It is so. (Figure 1)" in shown and "holds after a correction: It is nearly so." in shown
    assert "Written to gdmap-gd-vs-sgd-stability: report.md" in shown
    assert "A quick run" in (folder / f"gdmap-{name}" / "report.md").read_text()
    status, shown, _ = run("reproduce", name, "--json", "--out", "elsewhere")
    assert status == 0 and json.loads(shown)["claims"][0]["agrees"] == "corrected"
    assert (folder / "elsewhere" / "data.zarr").is_dir() and (folder / "elsewhere" / "p.png").is_file()
    status, _, error = run("reproduce", name, "--out", "losses.py")
    assert status == 2 and "losses.py is a file, give a folder" in error


def test_unknown_reproductions(run, folder):
    status, shown, error = run("reproduce", "fig4")
    assert status == 2 and not shown
    assert "there is no reproduction 'fig4': choose one of eigenvalue-growth, gd-vs-sgd-stability" in error
    assert not (folder / "gdmap-fig4").exists()


def test_settings_and_the_table_of_reports(run, folder, monkeypatch):
    import dataclasses

    from matplotlib.figure import Figure

    from gdmap.reproduce import Claim, Report, registry

    def quickly(quick, seed, progress, width=1):
        found = {"width": gdmap.Bracket(width, width, width, "computed", "given")}
        claim = Claim("It is so.", "Figure 1", "A run.", found, "yes", "It is.", figure="p")
        return Report("x", "Title", "Paper", (claim,), xr.Dataset({"a": ("b", [1.0])}), {"p": Figure()}, quick)

    name = "mnist-transition"
    changed = dataclasses.replace(registry.REPRODUCTIONS[name], run=quickly)
    monkeypatch.setitem(registry.REPRODUCTIONS, name, changed)
    status, shown, _ = run("reproduce", name, "--set", "width=5", "--json", "--out", f"reports/{name}")
    assert status == 0 and json.loads(shown)["claims"][0]["found"]["width"]["value"] == 5
    status, shown, _ = run("reproduce", "--table", "reports")
    assert status == 0 and "Written: reports.md" in shown
    page = (folder / "reports.md").read_text()
    assert "| It is so. | Figure 1 | reproduced | It is. " in page and "(reports/x/p.png)" in page
    for wrong, message in (
        ("width", "--set takes NAME=VALUE, got 'width'"),
        ("widht=3", "mnist-transition has no setting 'widht'; there are: images=200"),
        ("width=-3", "the setting width must be positive"),
    ):
        status, _, error = run("reproduce", name, "--set", wrong)
        assert status == 2 and message in " ".join(error.split()), wrong
    status, _, error = run("reproduce", "--table", "nowhere")
    assert status == 2 and "there is no report below nowhere" in error
    status, _, error = run("reproduce", name, "--table", "reports")
    assert status == 2 and "leave out the name" in error

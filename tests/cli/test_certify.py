import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import gdmap
from gdmap.certify.record import check_proof, digest, target_of, with_target
from gdmap.cli import main

LOSSES = """
import gdmap, jax, jax.numpy as jnp, numpy as np

two = gdmap.Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)
quartic = gdmap.Function(lambda t: t[0] ** 4 + t[1] ** 2 / 2, 2)
decayed = gdmap.Function(lambda w: jnp.tanh(w[0]) ** 2 / 2 + 0.05 * jnp.sum(w**2), 2)
steps = gdmap.Function(lambda w: jnp.round(w[0]) + w[1] ** 2, 2)


def network():
    x, y = np.array([0.9, 2.5, -1.0]), np.array([0.5, 1.0, -0.3])

    def loss(p, x, y):
        return (jax.nn.relu(p["w"] * x + p["b"]) @ p["v"] + p["c"] - y) ** 2 / 2

    params = {"w": np.zeros(2), "b": np.zeros(2), "v": np.zeros(2), "c": np.zeros(())}
    return gdmap.Objective(loss, params, data=(x, y))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("certify")
    (path / "losses.py").write_text(LOSSES)
    np.save(path / "theta.npy", np.array([1.0, 2.0]))
    np.savez(path / "both.npz", theta=np.array([1.0, 2.0]), other=np.zeros(3))
    np.savez(path / "unnamed.npz", a=np.zeros(2), b=np.zeros(3))
    (path / "damaged.npy").write_text("no array")
    return path


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """``run(*arguments)``: the exit status and what was shown, in this process."""

    def call(*arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "argv", ["gdmap", "certify", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return stopped.value.code or 0, shown.out, " ".join(shown.err.replace("│", " ").split())

    return call


def test_a_proof_its_record_and_its_picture(run, folder):
    status, shown, _ = run("losses.py:two", "--step-size", 0.5, "--save", "two.json", "--picture", "two.png")
    assert status == 0
    assert "The map is non-singular for step size 0.5" in shown
    assert "all of parameter space" in shown and "Status: proved." in shown
    assert (folder / "two.png").stat().st_size > 10_000
    record = json.loads((folder / "two.json").read_text())
    assert record["target"] == "losses.py:two" and record["digest"] == digest(record)
    assert record["statement"]["step_sizes"] == ["1/2"]
    status, shown, _ = run("--check", "two.json")
    assert status == 0 and shown.startswith("The proof holds: non-singular")
    two = gdmap.Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)
    assert check_proof(two, folder / "two.json")


def test_singular_is_a_verdict_too(run):
    status, shown, _ = run("--objective", "losses.py:quartic", "--step-size", 1, "--save", "singular.json")
    assert status == 0 and "The map is singular" in shown
    status, shown, _ = run("--check", "singular.json", "--json")
    assert status == 0
    assert json.loads(shown) == {
        "valid": True,
        "reason": "singular at step size 1, on all of parameter space: verified",
        "target": "losses.py:quartic",
    }


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        (("--step-size", "0.1"), [Fraction(0.1)]),
        (("--step-size", "1/10"), [Fraction(1, 10)]),
        (("--step-size", "0.1", "--exact-decimals"), [Fraction(1, 10)]),
        (("--step-size", "0.1", "--step-size", "1/5"), [Fraction(0.1), Fraction(1, 5)]),
        ((), "every"),
    ],
)
def test_step_sizes_are_read_as_programs_read_them(run, arguments, sizes):
    status, shown, _ = run("losses.py:two", *arguments, "--json")
    record = json.loads(shown)
    assert status == 0 and record["verdict"] == "non-singular" and record["status"] == "proved"
    read = record["step_sizes"]
    assert read == sizes if sizes == "every" else [Fraction(size) for size in read] == sizes


def test_near_misses(run):
    status, shown, _ = run("losses.py:decayed", "--step-size", 10, "--json")
    record = json.loads(shown)
    assert 0 < record["nearest_exceptional"]["relative_distance"] < 1e-16
    assert "Warning" in record["explanation"]
    status, shown, _ = run("losses.py:decayed", "--step-size", 10, "--exact-decimals", "--json")
    record = json.loads(shown)
    assert status == 0 and record["verdict"] == "singular"
    assert (
        record["nearest_exceptional"]["exact"] == "10" and record["nearest_exceptional"]["relative_distance"] == 0
    )


def test_exceptional_step_sizes(run):
    status, shown, _ = run("--exceptional", "losses.py:network")
    assert status == 0 and "all 36 pieces" in shown and "There are no others" in shown
    status, shown, _ = run("--exceptional", "losses.py:quartic", "--json")
    (one,) = json.loads(shown)["exceptional_step_sizes"]
    assert one["exact"] == "1" and one["confirmed"] and one["step_size"]["status"] == "proved"


@pytest.mark.slow
def test_a_slice_of_more_parameters(run, folder):
    np.save(folder / "seven.npy", np.linspace(-1, 1, 7))
    options = ("--step-size", 0.3, "--picture", "slice.png", "--plane", 5, 0, "--theta", "seven.npy")
    status, shown, _ = run("losses.py:network", *options)
    assert status == 0 and "slice.png" in shown
    assert (folder / "slice.png").stat().st_size > 10_000


def test_what_is_not_proved_has_its_own_status_and_no_record(run, folder, monkeypatch):
    import gdmap.certify.non_singularity as search

    monkeypatch.setattr(search, "claims_everywhere", lambda *_: iter(()))
    monkeypatch.setattr(search, "claims_on_piece", lambda *_: iter(()))
    status, shown, _ = run("losses.py:two", "--step-size", 0.5, "--save", "none.json")
    assert status == 3 and "undecided whether" in shown and "no record is written" in shown
    assert not (folder / "none.json").exists()


def test_tampered_records_are_rejected(run, folder):
    run("losses.py:two", "--step-size", 0.5, "--save", "honest.json")
    honest = json.loads((folder / "honest.json").read_text())
    step_sizes = {"statement": honest["statement"] | {"step_sizes": ["1/3"]}}
    assert honest["claims"]
    for name, change in {
        "digest.json": step_sizes,
        "claims.json": {"claims": []},
        "version.json": {"format": "gdmap proof 0"},
        "digest2.json": {"digest": "0" * 64},
    }.items():
        (folder / name).write_text(json.dumps(honest | change))
        status, shown, error = run("--check", name, "losses.py:two")
        assert (
            status == 4 and shown.startswith("REJECTED: ") and len(shown.strip().splitlines()) == 1 and not error
        )
    # A forger who mends the digest is caught by the verification itself.
    forged = honest | {"statement": honest["statement"] | {"verdict": "singular"}}
    forged = with_target(forged, "losses.py:two")
    assert forged["digest"] == digest(forged)
    (folder / "forged.json").write_text(json.dumps(forged))
    status, shown, _ = run("--check", "forged.json")
    assert status == 4 and "do not prove" in shown
    status, shown, _ = run("--check", "honest.json", "losses.py:quartic")
    assert status == 4 and "another objective" in shown
    (folder / "text.json").write_text("no record")
    status, shown, _ = run("--check", "text.json", "losses.py:two")
    assert status == 4 and "no JSON" in shown
    (folder / "list.json").write_text("[1, 2]")
    status, shown, _ = run("--check", "list.json", "losses.py:two")
    assert status == 4 and "REJECTED" in shown


def test_a_record_does_not_choose_what_code_is_run(run, folder, tmp_path):
    run("losses.py:two", "--step-size", 0.5, "--save", "elsewhere.json")
    record = json.loads((folder / "elsewhere.json").read_text())
    spy = tmp_path / "spy.py"
    spy.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for target in (f"{spy}:loss", os.path.relpath(spy, folder) + ":loss"):
        (folder / "elsewhere.json").write_text(json.dumps(with_target(record, target)))
        status, _, error = run("--check", "elsewhere.json")
        assert status == 2 and "outside this folder" in error
    assert not (tmp_path / "ran").exists()
    assert target_of({"target": 3}) is None and target_of(folder / "nothing.json") is None


def test_a_check_imports_nothing_that_searches(run, folder):
    run("losses.py:network", "--step-size", "9/10", "--save", "network.json")
    code = (
        "import sys\n"
        "sys.argv = ['gdmap', 'certify', '--check', 'network.json']\n"
        "from gdmap.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    print(stopped.code)\n"
        "searching = ('search', 'non_singularity', 'exceptional')\n"
        "print([name for name in searching if f'gdmap.certify.{name}' in sys.modules])\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    first, status, searching = process.stdout.strip().splitlines()
    assert first.startswith("The proof holds") and status == "0"
    assert searching == "[]"


@pytest.mark.slow
def test_a_rejected_record_ends_the_process_with_status_four(run, folder):
    run("losses.py:two", "--step-size", 0.5, "--save", "once.json")
    record = json.loads((folder / "once.json").read_text())
    (folder / "once.json").write_text(json.dumps(record | {"assumptions": ["everything"]}))
    command = [Path(sys.executable).with_name("gdmap"), "certify", "--check", "once.json"]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert process.returncode == 4 and process.stdout.count("\n") == 1
    assert "changed after it was written" in process.stdout


def test_without_flint_the_error_says_what_to_install(run, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f'gdmap.{name} needs python-flint: pip install "gdmap[proofs]"', name="flint")

    monkeypatch.setattr("gdmap.certify.__getattr__", missing)
    for arguments in (
        ("losses.py:two",),
        ("--exceptional", "losses.py:two"),
        ("--check", "theta.npy", "losses.py:two"),
    ):
        status, shown, error = run(*arguments)
        assert status == 2 and shown == "" and 'pip install "gdmap[proofs]"' in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no loss: give path/to/file.py:name"),
        (("losses.py:two", "--objective", "losses.py:two"), "give the loss once"),
        (("losses.py:nothing",), "defines no 'nothing'"),
        (("none.py:two",), "there is no file none.py"),
        (("losses.py:two", "--step-size", "ten"), "one positive finite number such as 0.1"),
        (("losses.py:two", "--step-size", "-1"), "must be positive"),
        (("losses.py:two", "--step-size", "0"), "must be positive"),
        (("losses.py:two", "--step-size", "1/0"), "one positive finite number"),
        (("losses.py:two", "--step-size", "inf"), "one positive finite number"),
        (("losses.py:steps", "--step-size", "1"), "round"),
        (("losses.py:two", "--theta", "none.npy"), "there is no file none.npy"),
        (("losses.py:two", "--theta", "damaged.npy"), "not a .npy or .npz file"),
        (("losses.py:two", "--theta", "unnamed.npz"), "called theta"),
        (("losses.py:network", "--theta", "both.npz", "--step-size", "0.1"), "expected (7,)"),
        (("losses.py:two", "--save", "none/proof.json"), "there is no folder none"),
        (("losses.py:two", "--picture", "a.png"), "needs one --step-size"),
        (("losses.py:two", "--picture", "a.docx", "--step-size", "1"), "--picture"),
        (("losses.py:network", "--picture", "a.png", "--step-size", "1", "--plane", "0", "9"), "from 0 to 6"),
        (("losses.py:two", "--picture", "a.png", "--step-size", "1", "--extent", "0"), "extent must be"),
        (("losses.py:two", "--exceptional", "--step-size", "1"), "it goes without"),
        (("--check", "none.json"), "there is no file none.json"),
        (("--check", "theta.npy"), "does not name its loss"),
        (("--check", "theta.npy", "losses.py:two", "--step-size", "1"), "nothing else"),
    ],
)
def test_mistakes_end_with_one_clear_error(run, arguments, message):
    status, shown, error = run(*arguments)
    assert status == 2 and shown == ""
    assert message in error


def test_help_tells_the_exit_statuses(run):
    status, shown, _ = run("--help")
    assert status == 0 and "Exit status" in shown and "--exceptional" in shown

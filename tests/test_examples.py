"""The examples about proofs, about SGD and about cycles run, and say what they should."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, folder):
    command = [sys.executable, "-W", "error", EXAMPLES / name, folder]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_proofs(tmp_path):
    shown = run("proofs.py", tmp_path)
    assert "The map is non-singular for every step size: proved." in shown
    assert "Checked again: non-singular on all of parameter space" in shown
    assert "The map is singular for step size 10.0: proved." in shown
    assert {path.name for path in tmp_path.iterdir()} == {"proof.json", "determinant-sign.png", "distances.png"}


@pytest.mark.slow
def test_saddle_avoidance(tmp_path):
    lines = run("saddle_avoidance.py", tmp_path).splitlines()
    *avoided, not_avoided = [line for line in lines if "map " in line]
    assert len(avoided) == 9
    assert all(
        ": 0.000 (" in line and "map non-singular on all of parameter space (proved)" in line for line in avoided
    )
    assert ": 1.000 (" in not_avoided and "map singular on one piece" in not_avoided
    assert (tmp_path / "saddle-avoidance.png").exists()


@pytest.mark.slow
def test_sgd_on_digits(tmp_path):
    lines = run("sgd_on_digits.py", tmp_path).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert [int(row[0]) for row in rows] == [1, 2, 4, 8, 16, 32]
    mean_square = [float(row[2]) for row in rows]
    almost_surely = [float(row[3].split()[0]) for row in rows]
    assert np.all(np.diff(mean_square) > 0)
    assert all(a >= b * (1 - 1e-4) for a, b in zip(almost_surely, mean_square, strict=True))
    for row in rows:
        assert "(stable)" in row[1]
        below, above = (float(cell.split()[0]) for cell in row[4:6])
        assert below > 0.5
        assert above == 0
    report = (tmp_path / "sgd-on-digits.md").read_text()
    mu = next(line for line in report.splitlines() if line.startswith("mu at"))
    assert mu.split()[5] == rows[-1][1].split()[0]  # the batch of all samples is gradient descent
    assert {path.name for path in tmp_path.iterdir()} == {"minimum.npz", "sgd-on-digits.md", "sgd-on-digits.png"}


@pytest.mark.slow
def test_period_doubling_on_digits(tmp_path):
    lines = run("period_doubling_on_digits.py", tmp_path).splitlines()
    first, doubling, coefficient, branch, *rows = lines
    assert first.startswith("502 parameters")
    threshold = float(first.split("2 / sharpness = ")[1])
    located, error = (float(word) for word in doubling.split("step size ")[1].split(" (")[0].split(" +- "))
    assert abs(located - threshold) <= error and abs(located - threshold) < 1e-10
    assert coefficient.count("supercritical") == 2
    b, by_formula = (float(part.split(" +- ")[0].split()[-1]) for part in coefficient.split(";"))
    assert b > 0 and b == pytest.approx(by_formula, rel=1e-6)
    assert "followed from" in branch and "it reached the end of the bounds" in branch
    cells = np.array([[float(cell.split()[0]) for cell in row.strip("| ").split(" | ")] for row in rows])
    share, predicted, cycle, seen, distance, largest = cells.T
    assert np.all(distance < 1e-9) and np.all(np.abs(seen - cycle) < 1e-6) and np.all(np.abs(largest) < 1)
    above = share > 1
    assert above.sum() == 4 and np.all(seen[~above] == 0)
    # The square root law, with an error that vanishes at the doubling.
    relative = cycle[above] / predicted[above] - 1
    assert np.all(np.diff(relative) > 0) and 0 < relative[0] < 0.02 and relative[-1] < 0.1
    names = {"period_doubling_on_digits.md", "period_doubling_on_digits.png"}
    assert {path.name for path in tmp_path.iterdir()} == names

"""The examples about proofs run, and say what they should."""

import subprocess
import sys
from pathlib import Path

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

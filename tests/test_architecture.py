"""Imports run one way, and the public names are there."""

import subprocess
import sys
from pathlib import Path

import gdmap

ROOT = Path(__file__).parents[1]


def test_imports_run_one_way():
    lint = Path(sys.executable).with_name("lint-imports")
    process = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout


def test_public_names_exist_and_are_documented():
    for name in gdmap.__all__:
        assert getattr(gdmap, name).__doc__, name

"""The examples of the README run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What makes an example of the README long, and what stands for it in the default tests.
SHORTER = {"starts=100": "starts=4, max_steps=2000"}
EACH = """
import json, sys
for code in json.load(sys.stdin):
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
"""


def readme_examples():
    blocks = [block.split("```")[0] for block in (ROOT / "README.md").read_text().split("```python\n")[1:]]
    assert len(blocks) >= 3
    return blocks


def run(code, folder, shown_to_it=None):
    command = [sys.executable, "-W", "error", "-c", code]
    process = subprocess.run(command, cwd=folder, input=shown_to_it, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_readme_examples_run(tmp_path):
    """One process, a namespace of its own for each example."""
    blocks = readme_examples()
    for long, short in SHORTER.items():
        assert any(long in code for code in blocks), long
        blocks = [code.replace(long, short) for code in blocks]
    run(EACH, tmp_path, json.dumps(blocks))


@pytest.mark.slow
def test_readme_examples_run_alone_as_they_are_printed(tmp_path):
    for code in readme_examples():
        run(code, tmp_path)

"""The examples of the README run."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What makes an example of the README long, and what stands for it in the default tests.
SHORTER = {
    "starts=100": "starts=4, max_steps=2000",
    "(0.5, 0.9, 0.98, 1.02, 1.1)": "(0.9, 1.1)",
    "for batch_size in (1, 2)": "for batch_size in (2,)",
    "np.geomspace(0.05, 6.4, 8)": "(0.4, 3.2)",
    "steps=1000, n_starts=8": "steps=256, n_starts=2",
}


def readme_examples():
    blocks = [block.split("```")[0] for block in (ROOT / "README.md").read_text().split("```python\n")[1:]]
    assert len(blocks) >= 3
    return blocks


def test_readme_examples_run(tmp_path, monkeypatch):
    """In this process, a namespace of its own for each example."""
    monkeypatch.chdir(tmp_path)
    blocks = readme_examples()
    for long, short in SHORTER.items():
        assert any(long in code for code in blocks), long
        blocks = [code.replace(long, short) for code in blocks]
    for code in blocks:
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.slow
def test_readme_examples_run_alone_as_they_are_printed(tmp_path):
    for code in readme_examples():
        command = [sys.executable, "-W", "error", "-c", code]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr

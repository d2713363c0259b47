import sys

import pytest

from gdmap.cli import main


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """``run(*arguments)``: the exit status and what was shown, in this process.

    ``folder`` is that of the test's own file.
    """

    def call(*arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(sys, "argv", ["gdmap", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stopped:
            status = stopped.code or 0
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return status, shown.out, " ".join(shown.err.replace("│", " ").split())

    return call

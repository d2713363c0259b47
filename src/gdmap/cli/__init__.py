"""The command line: ``gdmap demo``, ``gdmap critical``, ``gdmap certify``, ``gdmap sweep``."""

from gdmap.cli.app import main

__all__ = ["main"]

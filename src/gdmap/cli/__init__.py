"""The command line: ``gdmap demo``, ``critical``, ``certify``, ``exponents``, ``sweep``, ``reproduce``."""

from gdmap.cli.app import main

__all__ = ["main"]

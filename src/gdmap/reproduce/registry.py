"""The results of papers that can be reproduced, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdmap.reproduce import gd_vs_sgd_stability, relu_bifurcation
from gdmap.reproduce.report import Report

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reproduction:
    """One reproducible result.

    Attributes
    ----------
    name, description, paper
        What it is called, what it shows in a line, and where that was published.
    statements
        What the paper says.
    run
        ``run(quick, seed, progress) -> Report``.
    """

    name: str
    description: str
    paper: str
    statements: tuple[str, ...]
    run: Callable[[bool, int, Progress | None], Report]


MODULES: tuple[Any, ...] = (
    gd_vs_sgd_stability,
    relu_bifurcation,
)
REPRODUCTIONS = {
    one.NAME: Reproduction(one.NAME, one.TITLE, one.PAPER, one.STATEMENTS, one.run) for one in MODULES
}


def reproduce(
    name: str,
    out: Path | str | None = None,
    *,
    quick: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Run the reproduction called ``name`` and, with ``out``, write its report there.

    Every number of the report is computed in the run, and the same for the same seed.

    Parameters
    ----------
    name
        One of ``gdmap.reproduce.REPRODUCTIONS``.
    out
        Folder for ``report.md``, ``report.json``, ``data.zarr`` and the pictures.
    quick
        Seconds instead of minutes: fewer points and simulations.
    seed
        Of the simulations.
    progress
        Called as ``progress(finished, total)``.

    Raises
    ------
    ValueError
        For an unknown name; the message lists those there are.
    """
    if name not in REPRODUCTIONS:
        raise ValueError(f"there is no reproduction {name!r}: choose one of {', '.join(REPRODUCTIONS)}")
    report = REPRODUCTIONS[name].run(quick, seed, progress)
    if out is not None:
        report.save(out)
    return report

"""The results of papers that can be reproduced, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdmap.reproduce import (
    eigenvalue_growth,
    gd_vs_sgd_stability,
    linear_transition,
    minima_manifold,
    mnist_transition,
    nonsingularity_tour,
    other_losses,
    relu_bifurcation,
    singular_map,
    synthetic_transition,
)
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
        ``run(quick, seed, progress, **settings) -> Report``.
    full, short
        The settings of the full and the quick run that may be changed, by name; none where there are none.
    """

    name: str
    description: str
    paper: str
    statements: tuple[str, ...]
    run: Callable[..., Report]
    full: Mapping[str, Any]
    short: Mapping[str, Any]


MODULES: tuple[Any, ...] = (
    eigenvalue_growth,
    gd_vs_sgd_stability,
    linear_transition,
    minima_manifold,
    mnist_transition,
    nonsingularity_tour,
    other_losses,
    relu_bifurcation,
    singular_map,
    synthetic_transition,
)


def registered(module: Any) -> Reproduction:
    """The entry of a module; ``SETTINGS`` are named tuples, of its full and its quick run, that may be changed."""
    full, short = (settings._asdict() for settings in module.SETTINGS) if hasattr(module, "SETTINGS") else ({}, {})
    return Reproduction(module.NAME, module.TITLE, module.PAPER, module.STATEMENTS, module.run, full, short)


REPRODUCTIONS = {one.NAME: registered(one) for one in MODULES}


def reproduce(
    name: str,
    out: Path | str | None = None,
    *,
    quick: bool = False,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
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
    settings
        Changes of the sizes of the run, by name (``REPRODUCTIONS[name].full`` has the names and what they are).
    progress
        Called as ``progress(finished, total)``.

    Raises
    ------
    ValueError
        For an unknown name or setting; the message lists those there are.
    """
    if name not in REPRODUCTIONS:
        raise ValueError(f"there is no reproduction {name!r}: choose one of {', '.join(REPRODUCTIONS)}")
    changed = checked_settings(REPRODUCTIONS[name], quick, settings or {})
    report = REPRODUCTIONS[name].run(quick, seed, progress, **changed)
    if out is not None:
        report.save(out)
    return report


def checked_settings(one: Reproduction, quick: bool, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as numbers and words of the kinds they must be, or an error naming what is wrong."""
    defaults = one.short if quick else one.full
    checked = {}
    for name, value in settings.items():
        if name not in defaults:
            known = ", ".join(f"{key}={default!r}" for key, default in defaults.items()) or "none"
            raise ValueError(f"{one.name} has no setting {name!r}; there are: {known}")
        kind = type(defaults[name])
        try:
            checked[name] = kind(value)
        except (TypeError, ValueError):
            raise ValueError(f"the setting {name} must be of the kind {kind.__name__}, got {value!r}") from None
        if kind in (int, float) and not checked[name] > 0:
            raise ValueError(f"the setting {name} must be positive, got {value!r}")
    return checked

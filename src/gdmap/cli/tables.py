"""Results as Rich tables and as plain records."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import xarray as xr
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gdmap.bracket import Bracket
from gdmap.ensembles import fate_names, reason_names
from gdmap.plots.transition import COLOURS, bounded_gradient_norms
from gdmap.stability import CriticalStepSize, FlipCoefficient
from gdmap.sweeps import observed_transition


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; yields ``progress(finished, total)``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda finished, total: bar.update(task, completed=finished, total=total)


def critical_table(critical: CriticalStepSize, provenance: str, flip: FlipCoefficient | None = None) -> Table:
    """The critical step size, the smallest sharpness and the flip coefficient with their brackets and status."""
    table = Table(title="Critical step size", title_justify="left", caption=provenance, caption_justify="left")
    for heading in ("", "value", "lower", "upper", "status"):
        table.add_column(heading, justify="left" if heading in ("", "status") else "right")
    rows = [("critical step size", critical.step_size), ("smallest sharpness", critical.min_sharpness)]
    if flip is not None and flip.coefficient is not None:
        rows.append((f"flip coefficient, {flip.kind}", flip.coefficient))
    for name, bracket in rows:
        numbers = (f"{number:.9g}" for number in (bracket.value, bracket.lower, bracket.upper))
        table.add_row(name, *numbers, bracket.status)
    return table


def sweep_tables(dataset: xr.Dataset, critical: Bracket | None) -> list[Table]:
    """One table per scale: a row per step size with the shares of the fates that occur, in percent."""
    ordered = dataset.sortby("step_size")
    scales = ordered["scale"].values if "scale" in ordered.dims else [None]
    return [
        sweep_table(ordered if scale is None else ordered.sel(scale=scale), critical, scale) for scale in scales
    ]


def sweep_table(chosen: xr.Dataset, critical: Bracket | None, scale: float | None) -> Table:
    """The table of one scale; a rule marks where the predicted critical step size lies."""
    present = [name for name in COLOURS if float(chosen["fraction"].sel(fate_name=name).max()) > 0]
    spread = "" if scale is None else f" of standard deviation {scale:g}"
    table = Table(
        title=f"{chosen.sizes['start']} starts{spread}: percent (95 % interval), median |grad|",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    known = critical is not None and np.isfinite(critical.value)
    for heading in ["eta", *(["eta/crit"] if known else []), *present, "|grad|"]:
        table.add_column(heading, justify="right", no_wrap=True)
    medians = bounded_gradient_norms(chosen)[:, 1]
    previous = 0.0
    for position, eta in enumerate(chosen["step_size"].values):
        row = chosen.isel(step_size=position)
        cells = [f"{eta:.5g}"]
        if critical is not None and known:
            cells.append(f"{eta / critical.value:.3f}")
            if position and previous < critical.value < eta:
                table.add_section()
        cells += [share(row.sel(fate_name=name)) for name in present]
        cells.append("-" if np.isnan(medians[position]) else f"{medians[position]:.1e}")
        table.add_row(*cells)
        previous = eta
    return table


def undecided_reasons(dataset: xr.Dataset) -> dict[str, int]:
    """How many undecided runs there are for each reason."""
    reasons = reason_names(dataset)[fate_names(dataset) == "undecided"]
    names, numbers = np.unique(reasons, return_counts=True)
    return dict(zip(names.tolist(), numbers.tolist(), strict=True))


def undecided_sentence(dataset: xr.Dataset) -> str:
    """Why runs are undecided, counted, with what may help; empty if none are."""
    reasons = undecided_reasons(dataset)
    if not reasons:
        return ""
    counted = ", ".join(f"{name} {number}" for name, number in reasons.items())
    advice = " A longer --max-steps may decide those at the horizon." if "horizon_reached" in reasons else ""
    return f"Undecided runs of {dataset['fate'].size}: {counted} (help(gdmap.Reason) explains).{advice}"


def share(row: xr.Dataset) -> str:
    """A fraction with its interval in percent."""
    fraction, lower, upper = (100 * float(row[name]) for name in ("fraction", "fraction_lower", "fraction_upper"))
    return f"{fraction:.4g} ({lower:.0f}-{upper:.0f})"


def transition_sentence(dataset: xr.Dataset, critical: Bracket | None) -> str:
    """Where the sweep stops finding minima, scale by scale, beside the prediction."""
    if "scale" in dataset.dims:
        seen = "; ".join(
            f"from starts of {scale:g} {transition_seen(dataset.sel(scale=scale))}"
            for scale in dataset["scale"].values
        )
        seen = seen[0].upper() + seen[1:]
    else:
        seen = transition_seen(dataset).capitalize()
    if critical is None or not np.isfinite(critical.value):
        return f"{seen}."
    return f"{seen}. The predicted critical step size is {critical.value:.5g} ({critical.status})."


def transition_seen(dataset: xr.Dataset) -> str:
    """What the sweep shows of the transition, in a clause."""
    last, following = observed_transition(dataset)
    if np.isneginf(last):
        return "no minimum is reached at any step size of the sweep"
    if np.isinf(following):
        return f"minima are reached up to the largest step size, {last:.5g}"
    return f"minima are reached up to step size {last:.5g} and none from {following:.5g} on"


def critical_record(critical: CriticalStepSize) -> dict[str, Any]:
    """A critical step size as a plain record, without the minimum itself."""
    return {
        "step_size": asdict(critical.step_size),
        "min_sharpness": asdict(critical.min_sharpness),
        "reason": critical.reason,
        "explanation": critical.explain(),
    }


def sweep_record(dataset: xr.Dataset) -> dict[str, Any]:
    """The summary of a sweep as a plain record: nested lists in the order of ``dims``."""
    ordered = dataset.sortby("step_size")
    dims = [dim for dim in ordered["fraction"].dims if dim != "fate_name"]
    scales = ordered["scale"].values if "scale" in ordered.dims else [None]
    medians = [
        bounded_gradient_norms(ordered if scale is None else ordered.sel(scale=scale))[:, 1].tolist()
        for scale in scales
    ]
    last, following = observed_transition(ordered)
    return {
        "dims": [str(dim) for dim in dims],
        **{f"{dim}s": ordered[dim].values.tolist() for dim in dims},
        "plan": json.loads(dataset.attrs["plan"]),
        "undecided_reasons": undecided_reasons(ordered),
        "starts": int(ordered.sizes["start"]),
        "fractions": {
            str(name): {
                part: ordered[variable].sel(fate_name=name).transpose(*dims).values.tolist()
                for part, variable in (
                    ("value", "fraction"),
                    ("lower", "fraction_lower"),
                    ("upper", "fraction_upper"),
                )
            }
            for name in ordered["fate_name"].values
            if str(name) not in ("quasiperiodic", "chaotic", "marginal")  # not given out yet
        },
        "fraction_status": {key: ordered["fraction"].attrs[key] for key in ("status", "confidence", "method")},
        "gradient_norm_status": "computed; median over the starts that did not diverge",
        "median_gradient_norm": [list(row) for row in zip(*medians, strict=True)]
        if len(scales) > 1
        else medians[0],
        "observed_transition": [last, following],
    }

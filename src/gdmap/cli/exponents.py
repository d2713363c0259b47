"""``gdmap exponents``: can gradient descent and SGD end at this minimum?"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gdmap.bracket import Bracket
from gdmap.cli.options import Json, plain, print_json, read_array
from gdmap.cli.tables import progress_bar
from gdmap.exponents import sgd_lyapunov_spectrum
from gdmap.exponents.almost_sure import almost_sure_threshold_at
from gdmap.exponents.exponent import Exponent
from gdmap.exponents.gd_exponent import gd_exponent_at
from gdmap.exponents.interpolation import InterpolatingMinimum, interpolating_minimum
from gdmap.exponents.mean_square import step_size_bounds_at
from gdmap.exponents.regularity import Regularity, regularity_at
from gdmap.exponents.sgd_exponent import Sampling, checked_sampling, sgd_exponent_at
from gdmap.maps import Batches
from gdmap.maps.gradient_descent import checked_step_size
from gdmap.maps.stochastic_gradient_descent import batches_of, describe_law
from gdmap.minima import find_minimum
from gdmap.objectives import AbstractObjective
from gdmap.plots import plot_exponents
from gdmap.spectra import sharpness
from gdmap.sweeps.study import load_objective

# Exit statuses; 2 is a mistake in the input, as of every command.
DECIDED, UNDECIDED = 0, 3
BOUNDS = {
    "mean_square": "in mean square (exact)",
    "gradient_descent": "2 / sharpness (necessary)",
    "necessary_trace": "trace (necessary)",
    "necessary_top_direction": "top direction (necessary)",
    "wu_ma_e": "Wu, Ma & E (sufficient)",
}
NAMED = (
    "Necessary and sufficient are meant for stability in mean square; trace and top direction are those of "
    "Mulayoff & Michaeli. The columns and rows +- are the longer sides of the intervals."
)


@dataclass(frozen=True)
class AtBatchSize:
    """What does not depend on the step size: the law of the batches and its critical step sizes."""

    batches: Batches
    bounds: dict[str, Bracket]
    almost_sure: Bracket


@dataclass(frozen=True)
class AtStepSize:
    """Both exponents at one step size and batch size, and whether the theorem applies."""

    step_size: float
    batches: Batches
    mu: Exponent
    lam: Exponent
    regularity: Regularity


def exponents(
    target: Annotated[str, typer.Argument(metavar="FILE.py:NAME", help="The loss: an objective with samples.")],
    at: Annotated[Path, typer.Option(help="The minimum, .npy or .npz (the array theta, or the only one).")],
    step_size: Annotated[list[float], typer.Option(help="A step size; repeat for more.")],
    batch_size: Annotated[list[int] | None, typer.Option(help="A batch size; repeat for more [1].")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Draw batches with replacement.")] = False,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Epochs in random order instead.")] = False,
    probabilities: Annotated[
        str | None, typer.Option(help="Of picking each sample: 0.58,0.42 or a .npy or .npz file.")
    ] = None,
    find: Annotated[bool, typer.Option("--find", help="Go down from the given point to a minimum first.")] = False,
    spectrum: Annotated[
        bool, typer.Option("--spectrum", help="All Lyapunov exponents of SGD, not the largest alone.")
    ] = False,
    confidence: Annotated[float, typer.Option(help="Confidence of sampled intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the sampled batches.")] = 0,
    json_: Json = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the numbers (JSON, Zarr) and the picture.")] = None,
) -> None:
    """Can gradient descent (mu < 0) and SGD (lambda < 0) end at this minimum? Exponents, thresholds, hypotheses.

    Example: `gdmap exponents file.py:net --at minimum.npz --step-size 0.1 --batch-size 8`

    Exit status: 0 every verdict is stable or unstable, 2 a mistake in the input, 3 one is undecided.
    """
    sizes = list(dict.fromkeys(batch_size or [1]))
    etas = list(dict.fromkeys(checked_step_size(eta) for eta in step_size))
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file, give a folder")
    sampling = checked_sampling(confidence, None, 2**15, 256, seed)
    start = read_array(at, "--at")
    law = None if probabilities is None else read_probabilities(probabilities)
    loss = load_objective(target)
    try:
        laws = [batches_of(loss, size, law, replace, shuffle) for size in sizes]
    except ValueError as error:
        raise ValueError(
            str(error).replace("replace=True", "--replace").replace("shuffle=True", "--shuffle")
        ) from None
    total = len(laws) * (1 + len(etas))
    with progress_bar("exponents") as progress:
        if find:
            start = find_minimum(with_weights(loss, laws[0]), start).theta
        try:
            point = interpolating_minimum(loss, start, laws[0].probabilities)
        except ValueError as error:
            hint = "; with --find the command descends to a minimum first" if "find_minimum" in str(error) else ""
            raise ValueError(f"{error}{hint}") from None
        thresholds, rows = [], []
        for batches in laws:
            thresholds.append(at_batch_size(point, batches, sampling))
            for eta in etas:
                rows.append(at_step_size(point, batches, eta, sampling))
                progress(len(thresholds) + len(rows), total)
    top = sharpness(with_weights(loss, laws[0]), point.theta)
    spectra = lyapunov_spectra(loss, point, laws, etas, sampling) if spectrum else []
    record = full_record(target, loss, start, point, top, thresholds, rows, spectra)
    if out is not None:
        save(out, record, point, rows, thresholds)
    if json_:
        print_json(record)
    else:
        show(record, point, top, thresholds, rows, spectra, out)
    undecided = any("undecided" in (row.mu.verdict, row.lam.verdict) for row in rows)
    raise typer.Exit(UNDECIDED if undecided else DECIDED)


def read_probabilities(text: str) -> np.ndarray:
    """Numbers separated by commas, or the array of a file."""
    try:
        return np.array([float(part) for part in text.split(",")])
    except ValueError:
        return read_array(Path(text), "--probabilities", "probabilities")


def with_weights(loss: Any, batches: Batches) -> AbstractObjective:
    """The loss whose mean has the probabilities of the sampling."""
    weighted: AbstractObjective = loss if batches.probabilities is None else loss.weighted(batches.probabilities)
    return weighted


# Numbers ---------------------------------------------------------------------------------------------------------


def at_batch_size(point: InterpolatingMinimum, batches: Batches, sampling: Sampling) -> AtBatchSize:
    """The critical step sizes of one law of batches; no second moments decide for epochs."""
    if batches.shuffle:
        of_the_mean = Batches(batches.n_samples, batches.n_samples)
        bounds = {"gradient_descent": step_size_bounds_at(point, of_the_mean)["gradient_descent"]}
    else:
        bounds = step_size_bounds_at(point, batches)
    threshold = almost_sure_threshold_at(point, batches, sampling._replace(tolerance=0.02, max_steps=2**14))
    return AtBatchSize(batches, bounds, threshold)


def at_step_size(
    point: InterpolatingMinimum, batches: Batches, step_size: float, sampling: Sampling
) -> AtStepSize:
    """Exponents and hypotheses at one step size."""
    return AtStepSize(
        step_size,
        batches,
        gd_exponent_at(point, batches.mean(), step_size),
        sgd_exponent_at(point, batches, step_size, sampling),
        regularity_at(point, batches, step_size),
    )


def lyapunov_spectra(
    loss: AbstractObjective,
    point: InterpolatingMinimum,
    laws: Sequence[Batches],
    etas: Sequence[float],
    sampling: Sampling,
) -> list[dict[str, Any]]:
    """All exponents for every law and step size, as plain records."""
    records = []
    for batches in laws:
        for eta in etas:
            found = sgd_lyapunov_spectrum(
                loss,
                point.theta,
                eta,
                batches.size,
                batches.probabilities,
                batches.replace,
                shuffle=batches.shuffle,
                confidence=sampling.confidence,
                seed=sampling.seed,
            )
            values = {str(name): variable.values.tolist() for name, variable in found.data_vars.items()}
            records.append(
                {"step_size": eta, "batch_size": batches.size, **values, "status": found.attrs["status"]}
            )
    return records


def full_record(
    target: str,
    loss: AbstractObjective,
    start: np.ndarray,
    point: InterpolatingMinimum,
    top: Bracket,
    thresholds: Sequence[AtBatchSize],
    rows: Sequence[AtStepSize],
    spectra: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Everything as a plain record."""
    batches = thresholds[0].batches
    record: dict[str, Any] = {
        "target": target,
        "objective": loss.describe(),
        "minimum": {
            "theta": point.theta.tolist(),
            "moved": float(np.linalg.norm(point.theta - start)),
            "loss": float(with_weights(loss, batches).value(point.theta)),
            "sharpness": asdict(top),
            "normal_dimension": point.rank,
            "evidence": point.evidence,
        },
        "samples": point.n_samples,
        "probabilities": None if batches.probabilities is None else batches.probabilities.tolist(),
        "replace": batches.replace,
        "shuffle": batches.shuffle,
        "thresholds": [
            {
                "batch_size": one.batches.size,
                "almost_sure": asdict(one.almost_sure),
                **{name: asdict(bracket) for name, bracket in one.bounds.items()},
            }
            for one in thresholds
        ],
        "exponents": [
            {
                "step_size": row.step_size,
                "batch_size": row.batches.size,
                "mu": {**asdict(row.mu), "verdict": row.mu.verdict},
                "lambda": {**asdict(row.lam), "verdict": row.lam.verdict},
                "regular": row.regularity.regular,
                "hypotheses": [asdict(hypothesis) for hypothesis in row.regularity.hypotheses],
                "explanation": row.regularity.explain(),
            }
            for row in rows
        ],
    }
    if spectra:
        record["lyapunov_spectra"] = list(spectra)
    return record


def dataset_of(rows: Sequence[AtStepSize]) -> xr.Dataset:
    """The exponents in the form of `gdmap.exponents.stable_sets`, over step size and batch size."""
    etas = sorted({row.step_size for row in rows})
    sizes = sorted({row.batches.size for row in rows})
    shape = (len(etas), len(sizes))
    names = [f"{kind}_exponent{suffix}" for kind in ("gd", "sgd") for suffix in ("", "_lower", "_upper")]
    values = {name: np.full(shape, np.nan) for name in (*names, "sgd_standard_error")}
    for row in rows:
        place = etas.index(row.step_size), sizes.index(row.batches.size)
        for kind, found in (("gd", row.mu), ("sgd", row.lam)):
            for suffix, number in (("", found.value), ("_lower", found.lower), ("_upper", found.upper)):
                values[f"{kind}_exponent{suffix}"][place] = number
        if row.lam.standard_error is not None:
            values["sgd_standard_error"][place] = row.lam.standard_error
    estimated = any(row.lam.status == "estimated" for row in rows)
    return xr.Dataset(
        {name: (("step_size", "batch_size"), array, {"units": "per step"}) for name, array in values.items()},
        coords={"step_size": etas, "batch_size": sizes},
        attrs={"status": "estimated" if estimated else "computed"},
    )


def save(
    out: Path,
    record: dict[str, Any],
    point: InterpolatingMinimum,
    rows: Sequence[AtStepSize],
    thresholds: Sequence[AtBatchSize],
) -> None:
    """Write the record (JSON), the exponents (Zarr), the minimum (NumPy) and the picture."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "exponents.json").write_text(json.dumps(plain(record), indent=2))
    np.savez(out / "minimum.npz", theta=point.theta)
    dataset = dataset_of(rows)
    dataset.to_zarr(out / "exponents.zarr", mode="w", consolidated=False, zarr_format=3)
    title = f"sharpness {record['minimum']['sharpness']['value']:.5g}, {describe_law(thresholds[0].batches)}"
    plot_exponents(dataset, title if len(thresholds) == 1 else "").savefig(out / "exponents.png", dpi=150)


# Words -----------------------------------------------------------------------------------------------------------


def show(
    record: dict[str, Any],
    point: InterpolatingMinimum,
    top: Bracket,
    thresholds: Sequence[AtBatchSize],
    rows: Sequence[AtStepSize],
    spectra: Sequence[dict[str, Any]],
    out: Path | None,
) -> None:
    """The minimum, two tables, how lambda was found, and the hypotheses in plain sentences."""
    console = Console(highlight=False)
    minimum = record["minimum"]
    lines = [
        f"Minimum of {record['target']}: {len(point.theta)} parameters, {point.n_samples} samples, loss "
        f"{minimum['loss']:.3g}, |theta| = {np.linalg.norm(point.theta):.6g}.",
        f"Sharpness {top}; the normal space has dimension {point.rank}. {sentence(point.evidence)}",
    ]
    if minimum["moved"] > 1e-6 * (np.linalg.norm(point.theta) or 1.0):
        lines.append(f"The given point was {minimum['moved']:.2g} away from it.")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    console.print(exponents_table(rows))
    console.print(thresholds_table(thresholds))
    console.print(NAMED, soft_wrap=True)
    for line in methods(rows):
        console.print(line, markup=False, soft_wrap=True)
    for line in itertools.chain.from_iterable(map(spectrum_lines, spectra)):
        console.print(line, markup=False, soft_wrap=True)
    for line in hypotheses(rows):
        console.print(line, markup=False, soft_wrap=True)
    if out is not None:
        console.print(
            f"Written to {out}: exponents.json, exponents.zarr, exponents.png, minimum.npz", markup=False
        )


def narrow_table(title: str) -> Table:
    """An empty table that fits a terminal."""
    return Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False
    )


def exponents_table(rows: Sequence[AtStepSize]) -> Table:
    """A row for each step size and batch size."""
    table = narrow_table("Exponents per step (below 0: stable)")
    for heading in ("eta", "batch", "mu", "GD", "lambda", "+-", "s.e.", "SGD"):
        table.add_column(heading, justify="left" if heading in ("GD", "SGD") else "right", no_wrap=True)
    for row in rows:
        lam = row.lam
        table.add_row(
            f"{row.step_size:.4g}",
            str(row.batches.size),
            f"{row.mu.value:.5g}",
            row.mu.verdict,
            f"{lam.value:.5g}",
            half_width(lam),
            "-" if lam.standard_error is None else f"{lam.standard_error:.1g}",
            lam.verdict,
        )
    return table


def thresholds_table(thresholds: Sequence[AtBatchSize]) -> Table:
    """Critical step sizes: a column for each batch size."""
    table = narrow_table("Critical step sizes, by batch size")
    table.add_column("stable below", no_wrap=True)
    for one in thresholds:
        table.add_column(str(one.batches.size), justify="right", no_wrap=True)
    table.add_row("almost surely (lambda = 0)", *(f"{one.almost_sure.value:.5g}" for one in thresholds))
    table.add_row("  +-", *(half_width(one.almost_sure) for one in thresholds))
    for name, words in BOUNDS.items():
        cells = [f"{one.bounds[name].value:.5g}" if name in one.bounds else "-" for one in thresholds]
        table.add_row(words, *cells)
    return table


def half_width(bracket: Bracket) -> str:
    """The longer side of the interval; the status where that is rounding."""
    if bracket.status != "estimated":
        return bracket.status
    return f"{max(bracket.upper - bracket.value, bracket.value - bracket.lower):.2g}"


def spectrum_lines(found: dict[str, Any]) -> list[str]:
    """All exponents of one law and step size, with their intervals, and the sum rule."""
    where = f"step size {found['step_size']:g}, batch size {found['batch_size']}"
    lines = [f"All exponents at {where} ({found['status']}):"]
    for number, (x, low, high) in enumerate(
        zip(found["exponent"], found["lower"], found["upper"], strict=True), 1
    ):
        lines.append(f"  {number:3d}  {x:.5g}" + ("" if low == high else f"  in [{low:.5g}, {high:.5g}]"))
    if np.isfinite(found.get("log_determinant", np.nan)):
        lines.append(f"Their sum is {found['sum']:.6g}, E log|det| {found['log_determinant']:.6g}.")
    return lines


def methods(rows: Sequence[AtStepSize]) -> list[str]:
    """How mu and lambda were found, each way once."""
    ways: dict[str, list[str]] = {}
    for row in rows:
        words = f"lambda, {row.lam.status}"
        if row.lam.confidence is not None:
            words += f" at confidence {row.lam.confidence:g}"
        ways.setdefault(f"{words}: {row.lam.method}.", []).append(str(row.batches.size))
    sizes = {str(row.batches.size) for row in rows}
    lines = [f"mu, {rows[0].mu.status}: {rows[0].mu.method}."]
    for words, where in ways.items():
        found = list(dict.fromkeys(where))
        lines.append(
            words if set(found) == sizes else f"Batch size{'s' * (len(found) > 1)} {', '.join(found)}: {words}"
        )
    return lines


def hypotheses(rows: Sequence[AtStepSize]) -> list[str]:
    """What the theorem asks for and whether it holds, each text once."""
    texts: dict[str, list[str]] = {}
    for row in rows:
        where = f"step size {row.step_size:g}, batch size {row.batches.size}"
        texts.setdefault(row.regularity.explain(), []).append(where)
    if len(texts) == 1:
        return list(texts)
    return [f"At {'; '.join(where)}: {text}" for text, where in texts.items()]


def sentence(words: str) -> str:
    """Words with a capital letter and a full stop."""
    return f"{words[:1].upper()}{words[1:]}" + ("" if words.endswith(".") else ".")

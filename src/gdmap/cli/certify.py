"""``gdmap certify``: is the gradient-descent map of a loss non-singular? Proof, check, exceptional step sizes."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

import gdmap.certify as proofs
from gdmap.cli.options import Json, ObjectiveFile, Seed, print_json, read_array
from gdmap.cli.tables import progress_bar
from gdmap.objectives import AbstractObjective
from gdmap.plots import plot_determinant_sign
from gdmap.sweeps.starts import gaussian_starts
from gdmap.sweeps.study import load_objective

# Exit statuses; 2 is a mistake in the input, as of every command.
PROVED, UNDECIDED, REJECTED = 0, 3, 4


def certify(
    target: Annotated[
        str | None, typer.Argument(metavar="[FILE.py:NAME]", help="The loss: an objective of your own.")
    ] = None,
    objective: ObjectiveFile = None,
    step_size: Annotated[
        list[str] | None,
        typer.Option(
            help="A step size: 0.1 is the double of that name, 1/10 the fraction; repeat for a schedule. "
            "None: every step size."
        ),
    ] = None,
    exact_decimals: Annotated[
        bool, typer.Option("--exact-decimals", help="Read 0.1 as 1/10, in the loss and its data too.")
    ] = False,
    theta: Annotated[
        Path | None, typer.Option(help="Weights of interest, .npy or .npz: their piece is certified.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Certify the maps of all mini-batches of this size.")
    ] = None,
    assume_bounded: Annotated[
        bool, typer.Option("--assume-bounded", help="Assume that the loss is bounded; the proof says so.")
    ] = False,
    starts: Annotated[
        int, typer.Option(help="Random initialisations, where the pieces are too many to list.")
    ] = 60,
    scale: Annotated[float, typer.Option(help="Standard deviation of those.")] = 1.0,
    seed: Seed = 0,
    confidence: Annotated[float, typer.Option(help="Confidence of a probabilistic scope.")] = 0.95,
    max_pieces: Annotated[int, typer.Option(help="List the pieces if there are at most so many.")] = 20_000,
    save: Annotated[Path | None, typer.Option(help="Write the proof record, JSON.")] = None,
    check: Annotated[
        Path | None, typer.Option(help="Verify a proof record again instead, from the loss and the record alone.")
    ] = None,
    exceptional: Annotated[
        bool, typer.Option("--exceptional", help="List the exceptional step sizes instead.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the sign of det(I - eta H) on a slice of parameter space.")
    ] = None,
    plane: Annotated[
        tuple[int, int] | None,
        typer.Option(help="The two parameters that span the slice, through --theta or a random start [0 1]."),
    ] = None,
    extent: Annotated[float, typer.Option(help="Half the width of the slice.")] = 3.0,
    json_: Json = False,
) -> None:
    """Is gradient descent on this loss non-singular at this step size? A proof, and a record of it.

    Examples: `gdmap certify file.py:net --step-size 0.1 --save proof.json`,
    `gdmap certify --check proof.json file.py:net`, `gdmap certify --exceptional file.py:net`

    Exit status: 0 proved (non-singular or singular), 2 a mistake in the input, 3 not proved (undecided, or
    estimated; with --exceptional: the list may not be complete), 4 a record that does not hold.
    """
    reference = one_target(target, objective)
    if check is not None:
        if step_size or exceptional or theta or batch_size or save or picture:
            raise ValueError(
                "--check takes a proof record and the loss, nothing else: the record has its step sizes"
            )
        raise typer.Exit(check_record(check, reference, json_))
    if reference is None:
        raise ValueError("no loss: give path/to/file.py:name, where name is an objective or makes one")
    if exceptional and (step_size or theta or batch_size or save or picture):
        raise ValueError(
            "--exceptional looks for step sizes itself: it goes without --step-size, --theta, --batch-size, "
            "--save and --picture"
        )
    sizes = [one_step_size(text, exact_decimals) for text in step_size or ()]
    weights = None if theta is None else read_array(theta, "--theta")
    if save is not None and not save.parent.is_dir():
        raise ValueError(f"--save: there is no folder {save.parent}")
    loss = load_objective(reference)
    law: dict[str, Any] = {"starts": starts, "scale": scale, "seed": seed, "max_pieces": max_pieces}
    if exceptional:
        raise typer.Exit(list_exceptional(loss, exact_decimals, law, json_))
    if picture is not None:
        draw(picture, loss, sizes, weights, plane, extent, seed, scale)
    with needs_flint(), progress_bar("looking for a proof"):
        answer = proofs.certify_nonsingular(
            loss,
            (sizes if len(sizes) > 1 else sizes[0]) if sizes else None,
            theta=weights,
            batch_size=batch_size,
            exact_decimals=exact_decimals,
            assume_bounded=assume_bounded,
            confidence=confidence,
            **law,
        )
    decided = answer.verdict != "undecided"
    if decided and save is not None:
        save_record(save, answer.proof, reference)
    if json_:
        print_json({"target": reference, "objective": loss.describe(), **certificate_record(answer)})
    else:
        lines = [answer.explain(), f"Status: {answer.status}."]
        if save is not None:
            again = f"gdmap certify --check {save} {reference} verifies it again"
            lines.append(
                f"Written to {save}: {again}." if decided else "Nothing is proved, so no record is written."
            )
        if picture is not None:
            lines.append(f"Written to {picture}: the sign of the determinant (computed, no proof).")
        show(lines)
    raise typer.Exit(PROVED if answer.status == "proved" else UNDECIDED)


def one_target(target: str | None, objective: str | None) -> str | None:
    """The loss, however it was named."""
    if target is not None and objective is not None:
        raise ValueError(f"give the loss once, {target} or --objective {objective}")
    return target if target is not None else objective


def one_step_size(text: str, exact_decimals: bool) -> Any:
    """A step size as typed: a float is the double nearest to it, as in a program."""
    if exact_decimals or "/" in text:
        return text
    try:
        return float(text)
    except ValueError:
        return text  # refused, with its reason, where step sizes are read


@contextlib.contextmanager
def needs_flint() -> Iterator[None]:
    """Turn a missing python-flint into a mistake in the input, which says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "flint":
            raise
        raise ValueError(str(error)) from None


def show(lines: Sequence[str]) -> None:
    """Plain sentences on standard output."""
    console = Console(highlight=False)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


# Records ---------------------------------------------------------------------------------------------------------


def save_record(path: Path, proof: dict[str, Any], reference: str) -> None:
    """Write a proof record with the loss as it was named."""
    from gdmap.certify.record import with_target, written_record

    path.write_text(written_record(with_target(proof, reference)))


def check_record(path: Path, reference: str | None, json_: bool) -> int:
    """Verify a record again; the exit status."""
    if not path.is_file():
        raise FileNotFoundError(f"--check: there is no file {path}")
    with needs_flint():
        check_proof = proofs.check_proof
    from gdmap.certify.record import target_of

    named = target_of(path)
    if reference is None and named is not None and not is_below(named):
        raise ValueError(
            f"the record names its loss {named}, outside this folder: if you trust that file, name it yourself, "
            f"gdmap certify --check {path} {named}"
        )
    if reference is None and named is None:
        raise ValueError(f"{path} does not name its loss: gdmap certify --check {path} path/to/file.py:name")
    chosen = reference if reference is not None else named
    loss = load_objective(str(chosen))
    with progress_bar("verifying"):
        outcome = check_proof(loss, path)
    if json_:
        print_json({"valid": outcome.valid, "reason": outcome.reason, "target": chosen})
    else:
        show([f"{'The proof holds' if outcome.valid else 'REJECTED'}: {outcome.reason}"])
    return PROVED if outcome.valid else REJECTED


def is_below(reference: str) -> bool:
    """Whether a file named by a record lies in this folder or below: a record must not choose what code is run."""
    path = Path(reference.partition(":")[0])
    return not path.is_absolute() and path.resolve().is_relative_to(Path.cwd().resolve())


def certificate_record(answer: Any) -> dict[str, Any]:
    """A certificate as a plain record."""
    nearest = answer.nearest_exceptional
    return {
        "verdict": answer.verdict,
        "status": answer.status,
        "scope": answer.scope,
        "step_sizes": [str(size) for size in answer.step_sizes] or "every",
        "proved_up_to": answer.proved_up_to,
        "left_out": [asdict(bracket) for bracket in answer.exceptional],
        "nearest_exceptional": None
        if nearest is None
        else {
            "step_size": asdict(nearest.step_size),
            "exact": None if nearest.exact is None else str(nearest.exact),
            "relative_distance": nearest.relative_distance,
            "reason": nearest.reason,
        },
        "probability": None if answer.probability is None else asdict(answer.probability),
        "method": answer.method,
        "reason": answer.reason,
        "assumptions": list(answer.assumptions),
        "explanation": answer.explain(),
        "proof": answer.proof,
    }


def list_exceptional(loss: AbstractObjective, exact_decimals: bool, law: dict[str, Any], json_: bool) -> int:
    """Print the exceptional step sizes; the exit status."""
    with needs_flint(), progress_bar("exceptional step sizes"):
        found = proofs.exceptional_step_sizes(loss, exact_decimals=exact_decimals, **law)
    if json_:
        listed = [
            {
                "step_size": asdict(one.step_size),
                "exact": None if one.exact is None else str(one.exact),
                "confirmed": one.confirmed,
                "pieces": one.n_pieces,
                "point": np.asarray(one.piece).tolist(),
                "reason": one.reason,
            }
            for one in found
        ]
        print_json(
            {
                "objective": loss.describe(),
                "exceptional_step_sizes": listed,
                "complete": found.complete,
                "proved_up_to": found.proved_up_to,
                "scope": found.scope,
            }
        )
    else:
        show([found.explain()])
    return PROVED if found.complete else UNDECIDED


# Picture ---------------------------------------------------------------------------------------------------------


def draw(
    path: Path,
    loss: AbstractObjective,
    sizes: Sequence[Any],
    theta: np.ndarray | None,
    plane: tuple[int, int] | None,
    extent: float,
    seed: int,
    scale: float,
) -> None:
    """The sign of the determinant on the plane of two parameters."""
    if len(sizes) != 1:
        raise ValueError("--picture needs one --step-size")
    from gdmap.certify.step_sizes import exact_step_size

    step_size = float(exact_step_size(sizes[0]))
    through, title = None, ""
    if loss.dim > 2 or plane is not None:
        i, j = plane or (0, 1)
        if not (0 <= i < loss.dim and 0 <= j < loss.dim and i != j):
            raise ValueError(
                f"--plane takes two different parameter numbers from 0 to {loss.dim - 1}, got {i} and {j}"
            )
        if theta is None:
            origin = gaussian_starts(1, loss.dim, seed=seed, scale=scale)[0]
            title = f"the plane of parameters {i} and {j} through a random start (seed {seed}, scale {scale:g})"
        else:
            origin = np.asarray(theta, dtype=float)
            title = f"the plane of parameters {i} and {j} through the given weights"
        through = (origin, np.eye(loss.dim)[i], np.eye(loss.dim)[j])
    with needs_flint():
        figure = plot_determinant_sign(loss, step_size, through, extent=extent, title=title)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:  # an unknown format
        raise ValueError(f"--picture: {error}") from None

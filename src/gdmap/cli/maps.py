"""Maps named on the command line: a loss with a step size and a momentum, or a map of the user's own."""

from typing import Annotated

import optax
import typer

from gdmap.maps import GradientDescent, Map, Optimiser
from gdmap.maps.gradient_descent import checked_step_size
from gdmap.objectives import AbstractObjective
from gdmap.sweeps.study import load_named

Target = Annotated[
    str,
    typer.Argument(metavar="FILE.py:NAME", help="A loss (gdmap.Function, ...) or a map (gdmap.Optimiser, ...)."),
]
Momentum = Annotated[float | None, typer.Option(help="Momentum of heavy ball [none: gradient descent].")]


def load_target(reference: str) -> AbstractObjective | Map:
    """The objective or the map that ``path/to/file.py:name`` names."""
    found = load_named(reference, (AbstractObjective, Map))
    if not isinstance(found, (AbstractObjective, Map)):
        raise ValueError(
            f"objective: {reference} is a {type(found).__name__}, neither a gdmap objective nor a map: wrap the "
            "loss in gdmap.Function(loss, dim) or gdmap.Objective(loss, params)"
        )
    return found


def map_of(target: AbstractObjective | Map, step_size: float | None, momentum: float | None) -> Map:
    """The map of a loss, or the map given with other values of its step size and momentum."""
    if isinstance(target, Map):
        for name, number in (("step_size", step_size), ("momentum", momentum)):
            if number is not None:
                refuse_unknown(target, name, f"--{name.replace('_', '-')}")
                target = with_number(target, name, number)
        return target
    if step_size is None:
        raise ValueError("--step-size is needed with a loss: only a map has one of its own")
    step_size = checked_step_size(step_size)
    if momentum is None:
        return GradientDescent(target, step_size)
    return Optimiser(target, optax.sgd, learning_rate=step_size, momentum=float(momentum))


def refuse_unknown(target: AbstractObjective | Map, name: str, option: str) -> None:
    """An error if the maps of a loss, or the map given, have no number of this name."""
    if isinstance(target, Map):
        kind, known = type(target).__name__, list(target.numbers)
    else:
        kind, known = GradientDescent.__name__, ["step_size", "momentum"]
    if name in known or (name == "learning_rate" and not isinstance(target, Map)):
        return
    # The learning rate is another name of the step size.
    listed = ", ".join(one for one in known if one != "learning_rate" or "step_size" not in known) or "none"
    raise ValueError(f"{option}: {kind} has no parameter {name!r}; it has {listed}")


def with_number(map_: Map, name: str, number: float) -> Map:
    """The map with another value of one of its numbers."""
    return map_.with_number(name, checked_step_size(number) if name == "step_size" else float(number))

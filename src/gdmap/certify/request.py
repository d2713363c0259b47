"""What is asked for: a map read as gradient descent on an objective, with exact step sizes."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from gdmap.certify.optimisers import affine_update
from gdmap.certify.step_sizes import exact_step_sizes
from gdmap.certify.subject import exact_point
from gdmap.maps import GradientDescent, Map
from gdmap.objectives import AbstractObjective


@dataclass(frozen=True)
class Request:
    """A map as gradient descent on an objective: its step sizes, exact.

    ``always``: the map is non-singular whatever the loss; ``map`` says why, or how the determinant of an
    optimiser's map is that of gradient descent. ``note`` is for the user.
    """

    objective: AbstractObjective
    step_sizes: tuple[Fraction, ...]
    exact_decimals: bool
    always: bool = False
    map: str = ""
    note: str = ""


def read_request(objective: Any, step_size: Any, exact_decimals: bool) -> Request:
    """The objective and the exact step sizes that a call is about."""
    if isinstance(objective, Map):
        if step_size is not None:
            raise ValueError("a map has its own step size: pass the objective to ask for another one")
        return request_of_map(objective, exact_decimals)
    if not isinstance(objective, AbstractObjective):
        raise TypeError(
            f"expected a gdmap objective or map, got {type(objective).__name__}: "
            "wrap the loss in gdmap.Function(f, dim)"
        )
    sizes = () if step_size is None else exact_step_sizes(step_size, exact_decimals)
    return Request(objective, sizes, exact_decimals)


def request_of_map(map_: Map, exact_decimals: bool) -> Request:
    """A map as gradient descent with an effective step size."""
    if isinstance(map_, GradientDescent):
        return Request(map_.objective, exact_step_sizes(map_.step_size, exact_decimals), exact_decimals)
    update = affine_update(map_, exact_decimals=exact_decimals)
    if update is None:
        raise ValueError(
            "the update of this optimiser is not shown to be affine in the gradient, coordinate by coordinate "
            "(Adam is not; maps that depend on time are not): its determinant has no closed form here. Certify "
            "gradient descent, SGD with momentum or Nesterov's, weight decay included, at constant step sizes"
        )
    if update.is_always_invertible:
        return Request(map_.objective, (), exact_decimals, always=True, map=update.explain())
    size = update.effective_step_size
    if update.is_never_invertible or size is None:
        raise ValueError(
            f"nothing to certify: {update.explain()}. Where the momentum is 0, certify gradient descent on the "
            "objective"
        )
    if size <= 0:
        raise ValueError(f"the effective step size of this optimiser is {size}: it climbs")
    return Request(map_.objective, (size,), exact_decimals, map=update.explain())


def checked_theta(theta: Any, dim: int) -> tuple[Fraction, ...]:
    """Weights as exact numbers."""
    array = np.asarray(theta)
    if array.shape != (dim,):
        raise ValueError(
            f"theta has shape {array.shape}, expected ({dim},): pass one flat parameter vector (objective.ravel)"
        )
    if np.issubdtype(array.dtype, np.integer):
        array = array.astype(float)
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"theta must hold floating-point numbers, got dtype {array.dtype}")
    if not np.all(np.isfinite(array)):
        raise ValueError("theta holds values that are not finite: nothing is proved about such weights")
    return exact_point(array.astype(float))

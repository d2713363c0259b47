"""Why a Hessian eigenvalue is constant, in words."""

from typing import Any

import numpy as np
from flint import fmpq

from gdmap.certify.constants import Curvature, constant_directions
from gdmap.certify.subject import Subject
from gdmap.engines.balls.anything import ANY
from gdmap.engines.pieces import Pattern


def reason_of(subject: Subject, pattern: Pattern, curvature: Curvature) -> str:
    """What makes a curvature constant on a pattern: the known causes are told apart by exact evaluation."""
    directions = constant_directions(subject, pattern)
    if directions is None or not has_root(directions.action, curvature):
        return (
            "det(I - eta H) vanishes identically: directions that move with the parameters have a fixed curvature"
        )
    n = subject.dim
    dead = dead_kinks(subject, pattern)
    if len(directions.basis) == n and not dead:
        return "the loss is a quadratic form of all parameters (linear regression, a one-layer network)"
    coordinates = own_coordinates(directions.basis, directions.action, curvature)
    if not coordinates:
        return "along some directions the loss is a fixed parabola (weight decay where the data leave it flat)"
    gradients = [subject.constant_gradient(pattern, k) for k in coordinates]
    names = ", ".join(subject.name_of(k) for k in coordinates[:3]) + (", ..." if len(coordinates) > 3 else "")
    if all(g is not ANY and g == 0 for g in gradients):
        return f"in {names} the loss is a parabola round 0, whatever the rest (weight decay that no data oppose)"
    if dead:
        return f"where all units of a layer are dead, the loss is a fixed parabola in {names} (an output bias)"
    return f"in {names} the loss is a fixed parabola, whatever the rest"


def has_root(action: Any, curvature: Curvature) -> bool:
    """Whether a curvature is an eigenvalue of an action."""
    return curvature.exact is None or action.charpoly()(curvature.root.lower) == 0


def own_coordinates(basis: np.ndarray, action: Any, curvature: Curvature) -> list[int]:
    """The coordinates that are themselves eigenvectors with this eigenvalue, among the basis."""
    if curvature.exact is None:
        return []
    value = fmpq(curvature.exact.numerator, curvature.exact.denominator)
    found = []
    for i, vector in enumerate(basis):
        support = [k for k, x in enumerate(vector) if x != 0]
        row = [action[i, j] for j in range(len(basis))]
        if len(support) == 1 and row[i] == value and all(x == 0 for j, x in enumerate(row) if j != i):
            found.append(support[0])
    return found


def dead_kinks(subject: Subject, pattern: Pattern) -> bool:
    """Whether some whole layer of kinks is on its zero side."""
    return any(np.all(mask == 0) for mask in pattern.masks)

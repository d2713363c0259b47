"""Symmetries declared by the user: functions of states or parameters that commute with the map."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gdmap.maps import Map

Symmetry = Callable[[Any], Any]

# Products of symmetries that are tried: the permutations of six units.
MAX_IMAGES = 720


def checked_symmetries(symmetries: Any) -> tuple[Symmetry, ...]:
    """The symmetries as functions; square matrices are made into functions.

    Raises
    ------
    TypeError
        For anything that is neither.
    """
    if callable(symmetries) or isinstance(symmetries, np.ndarray) or not isinstance(symmetries, Sequence):
        raise TypeError("symmetries must be a list of functions theta -> theta or of matrices: put it in a list")
    return tuple(_as_function(symmetry, number) for number, symmetry in enumerate(symmetries))


def _as_function(symmetry: Any, number: int) -> Symmetry:
    if callable(symmetry):
        return symmetry
    matrix = np.asarray(symmetry, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise TypeError(f"symmetries[{number}] must be a function theta -> theta or a square matrix")
    return lambda theta: matrix @ np.asarray(theta)


def moved(symmetry: Symmetry, number: int, theta: np.ndarray) -> np.ndarray:
    """``theta`` under symmetry ``number``, or an error if that is no vector of the same shape."""
    image = np.asarray(symmetry(theta), dtype=np.float64)
    if image.shape != theta.shape or not np.all(np.isfinite(image)):
        raise ValueError(
            f"symmetries[{number}] must map a vector of shape {theta.shape} to one of the same shape, got "
            f"{image.shape} back"
        )
    return image


def check_commuting(symmetries: Sequence[Symmetry], map_: Map, states: np.ndarray) -> None:
    """Refuse symmetries that do not commute with the map at some states."""
    for number, symmetry in enumerate(symmetries):
        for state in states:
            after = moved(symmetry, number, np.asarray(map_.step(state)))
            before = np.asarray(map_.step(moved(symmetry, number, state)))
            close = np.allclose(before, after, rtol=1e-6, atol=1e-9 * np.abs(state).max())
            if np.all(np.isfinite(before)) and not close:
                raise ValueError(
                    f"symmetries[{number}] must commute with the map, but at {state.tolist()} it gives "
                    f"{after.tolist()} after the map, and {before.tolist()} before it"
                )


def images_under(symmetries: Sequence[Symmetry], points: np.ndarray, slack: float = 0.0) -> list[np.ndarray]:
    """``points`` and their images under products of the symmetries, each set once (up to `MAX_IMAGES`).

    Two sets are one if a point of the first is within ``slack`` of one of the second, as for orbits.
    """
    found = [points]
    for image in found:
        for number, symmetry in enumerate(symmetries):
            there = np.stack([moved(symmetry, number, point) for point in image])
            known = any(np.linalg.norm(there[:1] - other, axis=1).min() <= slack for other in found)
            if not known and len(found) < MAX_IMAGES:
                found.append(there)
    return found

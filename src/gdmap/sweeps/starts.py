"""Starts that depend on the seed and their own index alone."""

from typing import Any

import numpy as np

from gdmap.engines.random import drawn_starts, gaussian_starts
from gdmap.ensembles.ensemble import checked_starts

__all__ = ["checked_number", "gaussian_starts", "resolve_starts"]


def resolve_starts(starts: Any, n_starts: int | None, dim: int, scales: np.ndarray, seed: int) -> np.ndarray:
    """All unscaled starts of a sweep, shape ``(n, dim)``, from a number, an array or a law with its number.

    Raises
    ------
    ValueError
        For a number below 1, a law without ``n_starts``, or a scale given with anything but a number.
    """
    if isinstance(starts, (int, np.integer)) and not isinstance(starts, bool):
        if n_starts is not None:
            raise ValueError("n_starts goes with a law of starts: with starts=number leave it out")
        return gaussian_starts(checked_number(starts, "starts"), dim, seed)
    if np.any(scales != 1.0):
        raise ValueError("scale applies to starts given as a number only: scale the array or the law yourself")
    if callable(starts):
        if n_starts is None:
            raise ValueError("a law of starts needs their number: give n_starts as well")
        indices = np.arange(checked_number(n_starts, "n_starts"))
        return checked_starts(drawn_starts(starts, indices, seed, dim), dim)
    if n_starts is not None:
        raise ValueError("n_starts goes with a law of starts: with an array leave it out")
    if np.ndim(starts) != 2:
        raise ValueError(f"starts must be a whole number, an array (starts, {dim}) or a law, got {starts!r}")
    return checked_starts(starts, dim)


def checked_number(number: Any, name: str) -> int:
    """A positive integer, or an error naming the argument."""
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1:
        raise ValueError(f"{name} must be a positive integer, got {number!r}")
    return int(number)

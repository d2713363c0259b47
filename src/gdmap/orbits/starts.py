"""Where orbits begin: starts drawn by number, or parameters given."""

from typing import Any

import numpy as np

from gdmap.engines.precision import as_floating
from gdmap.engines.random import gaussian_starts
from gdmap.maps import Map


def initial_states(map_: Map, starts: Any, scale: float, seed: int) -> np.ndarray:
    """The states in which the starts begin, shape ``(n, state_dim)``.

    ``starts`` is a number of starts from ``N(0, scale^2 I)``, or parameters of shape ``(n, dim)``.
    """
    dim = map_.objective.dim
    if isinstance(starts, (int, np.integer)) and not isinstance(starts, bool):
        if starts < 1:
            raise ValueError(f"starts must be at least 1, got {starts}")
        number = isinstance(scale, (int, float, np.integer, np.floating)) and not isinstance(scale, bool)
        if not (number and np.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be a positive number, got {scale!r}")
        thetas = gaussian_starts(int(starts), dim, seed, float(scale))
    else:
        thetas = np.asarray(as_floating(starts), np.float64)
        thetas = thetas[None] if thetas.ndim == 1 else thetas
        if thetas.ndim != 2 or thetas.shape[1] != dim or not len(thetas) or not np.all(np.isfinite(thetas)):
            raise ValueError(
                f"starts must be a number, or finite parameters of shape (n, {dim}), got shape {np.shape(starts)}"
            )
    return np.stack([np.asarray(map_.initial_state(theta)) for theta in thetas])

"""Whether a periodic orbit has a point on a kink of the map (as of ReLU), where it has no multipliers."""

from typing import Any

import equinox as eqx
import jax
import numpy as np

from gdmap.engines.xla import block_size, on_lanes
from gdmap.maps import Family
from gdmap.orbits.shooting import EPS, size_of

# Kinks are looked for along this many lines, at these shares of the size of the orbit.
LINES, RADII = 4, (1e-5, 1e-7, 1e-9)
# Over two decades of distance a smooth quantity changes a hundredfold; a jump stays.
STAYS, ABOVE_NOISE = 0.3, 1e3


class _Probe(eqx.Module):
    """``G`` and ``DG v`` at one displaced point."""

    family: Family

    def __call__(self, parameter: Any, state: Any, vector: Any) -> tuple[Any, Any]:
        return jax.jvp(lambda state: self.family.step(parameter, state), (state,), (vector,))


def find_kink(family: Family, parameter: float, points: np.ndarray) -> int | None:
    """The first point with a jump of ``G`` or of ``DG`` along random lines through it; ``None`` if none is seen.

    By sampling: both are compared at ``RADII`` times the size of the orbit on either side.
    """
    d = points.shape[1]
    size = max(size_of(points), 1e-6 * float(np.linalg.norm(points[0])), 1e-12)
    rng = np.random.default_rng(0)
    lines = np.asarray(rng.standard_normal((LINES, d)))
    lines = lines / np.linalg.norm(lines, axis=1, keepdims=True)
    probe = np.asarray(rng.standard_normal(d))
    probe = probe / np.linalg.norm(probe)
    offsets = size * np.array(RADII)[:, None, None] * lines
    displaced = points[:, None, None, None] + np.stack([offsets, -offsets, 0 * offsets])
    flat = displaced.reshape(-1, d)
    values = np.full(len(flat), float(parameter))
    image, product = on_lanes(
        _Probe(family), (values, flat, np.broadcast_to(probe, flat.shape)), block_size(64 * d, largest=64)
    )
    for result in (image, product):
        one, other, here = np.moveaxis(result.reshape(displaced.shape), 1, 0)
        # Also against the point itself: automatic differentiation may give it neither side's derivative.
        jumps = np.max([np.linalg.norm(a - b, axis=3) for a, b in ((one, other), (one, here), (other, here))], 0)
        noise = EPS * (np.linalg.norm(here, axis=3) + np.linalg.norm(points, axis=1)[:, None, None])[:, 1:]
        stays = (jumps[:, 1:] > STAYS * jumps[:, :-1]) & (jumps[:, 1:] > ABOVE_NOISE * noise)
        kinked = np.flatnonzero(stays.all(axis=1).any(axis=1))
        if kinked.size:
            return int(kinked[0])
    return None

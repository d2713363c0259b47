"""Whether a loss is smooth at a point: a kink (as of ReLU) is a jump that does not shrink with distance."""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np

from gdmap.engines.xla import block_size, on_lanes
from gdmap.objectives import AbstractObjective

DIRECTIONS = 6
NEAREST = 1e-10
# Over two decades of distance a smooth quantity changes a hundredfold; a jump stays.
STAYS = 0.3
ABOVE_NOISE = 1e3


@dataclass(frozen=True)
class Kink:
    """A jump of a derivative across a point: which one, how large, and within what distance."""

    derivative: str
    jump: float
    distance: float


class _Sides(eqx.Module):
    """Gradient and a Hessian-vector product at one displaced point."""

    objective: AbstractObjective

    def __call__(self, theta: Any, direction: Any) -> tuple[Any, Any]:
        return jax.jvp(jax.grad(self.objective.evaluate), (theta,), (direction,))


def find_kink(objective: AbstractObjective, theta: np.ndarray, size: float, farthest: float = 1e-4) -> Kink | None:
    """The jump of the gradient or of the Hessian across ``theta`` along random lines, or ``None``.

    Both are compared on either side at distances from ``farthest`` down to 1e-10 of ``size``, the length that
    matters, by factors of a hundred. The test is sampling: a kink farther away than that, or weaker than
    rounding, is not seen.
    """
    dim = objective.dim
    radii = size * farthest * 100.0 ** -np.arange(round(np.log(farthest / NEAREST) / np.log(100)) + 1)
    lines = np.random.default_rng(0).standard_normal((DIRECTIONS, dim))
    lines /= np.linalg.norm(lines, axis=1, keepdims=True)
    probe = np.random.default_rng(1).standard_normal(dim)
    probe /= np.linalg.norm(probe)
    offsets = radii[:, None, None] * lines
    points = theta + np.stack([offsets, -offsets, np.zeros_like(offsets)])
    gradient, product = on_lanes(
        _Sides(objective),
        (points.reshape(-1, dim), np.broadcast_to(probe, (points.size // dim, dim))),
        block_size(64 * dim, largest=64),
    )
    for name, values in (("gradient", gradient), ("Hessian", product)):
        one, other, here = values.reshape(points.shape)
        # Also against the point itself: automatic differentiation may give it neither side's derivative.
        jumps = np.max([np.linalg.norm(a - b, axis=2) for a, b in ((one, other), (one, here), (other, here))], 0)
        noise = np.finfo(float).eps * np.linalg.norm(values, axis=1).max()
        stays = (jumps[1:] > STAYS * jumps[:-1]) & (jumps[1:] > ABOVE_NOISE * noise) & np.isfinite(jumps[1:])
        # Over two steps on end, or a periodic loss seen from afar would pass for one with kinks.
        stays = stays[1:] & stays[:-1]
        if stays.any():
            ring, line = np.argwhere(stays)[-1]
            return Kink(name, float(jumps[ring + 2, line]), float(radii[ring + 2]))
    return None

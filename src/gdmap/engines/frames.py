"""Orthonormal frames of tangent vectors, many at once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

EPS = float(np.finfo(np.float64).eps)


def orthonormalise(frames: Any, alive: Any = None) -> tuple[Any, Any, Any]:
    """Orthonormal vectors for rows of frames ``(replicas, k, dim)``, the logarithms of ``R_jj``, and the flatness.

    A row that depends on those before it (to rounding) has the logarithm ``-inf`` and becomes zero, and is moved
    behind the others. The flatness of a row is ``R_jj / |row j|``, times the least such ratio before it, by which
    rounding errors are enlarged; what is returned is the least over the rows of each replica that were ``alive``.
    """
    if alive is None:
        alive = jnp.any(frames != 0, axis=2)
    largest = jnp.max(jnp.abs(frames), axis=2, keepdims=True)
    scale = jnp.where(largest == 0, 1.0, largest)
    # One vector needs no QR.
    decompose = _normalised if frames.shape[1] == 1 else _decomposed
    rows, lengths, flatness = decompose(frames / scale)
    dead = alive & (flatness <= 8 * frames.shape[2] * EPS)
    worst = jnp.min(jnp.where(alive, flatness, 1.0), axis=1)
    kept = alive & ~dead

    def as_they_are(_: Any) -> Any:
        return rows, _logarithms(lengths, kept) + jnp.log(scale[..., 0])

    def dead_last(_: Any) -> Any:
        order = jnp.argsort(~kept, axis=1, stable=True)
        still = jnp.take_along_axis(kept, order, axis=1)
        living = jnp.take_along_axis(jnp.where(kept[..., None], frames / scale, 0), order[..., None], axis=1)
        rows, lengths, _ = decompose(living)
        scales = jnp.take_along_axis(scale[..., 0], order, axis=1)
        return jnp.where(still[..., None], rows, 0), _logarithms(lengths, still) + jnp.log(scales)

    rows, logarithms = jax.lax.cond(jnp.any(dead), dead_last, as_they_are, None)
    living = jnp.isfinite(logarithms) | jnp.isnan(logarithms)
    return jnp.where(living[..., None], rows, 0), logarithms, worst


def _logarithms(lengths: Any, kept: Any) -> Any:
    return jnp.where(kept, jnp.log(jnp.where(lengths == 0, 1.0, lengths)), -jnp.inf)


def _normalised(frames: Any) -> tuple[Any, Any, Any]:
    lengths = jnp.linalg.norm(frames, axis=2)
    flatness = jnp.where(lengths == 0, 0.0, lengths / lengths)
    return frames / jnp.where(lengths == 0, 1.0, lengths)[..., None], lengths, flatness


def _decomposed(frames: Any) -> tuple[Any, Any, Any]:
    columns, upper = jnp.linalg.qr(frames.swapaxes(1, 2))
    lengths = jnp.abs(jnp.diagonal(upper, axis1=1, axis2=2))
    norms = jnp.linalg.norm(upper, axis=1)
    ratios = jnp.where(norms == 0, 0.0, lengths / jnp.where(norms == 0, 1.0, norms))
    before = jax.lax.cummin(jnp.where(norms == 0, 1.0, ratios), axis=1)
    before = jnp.concatenate([jnp.ones_like(before[:, :1]), before[:, :-1]], axis=1)
    return columns.swapaxes(1, 2), lengths, ratios * before

"""Starts that depend on the seed and their own index alone."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np

from gdmap.engines.precision import float64
from gdmap.engines.xla import on_lanes
from gdmap.ensembles.ensemble import checked_starts

# Fixed, so that a start does not change with the block it is drawn in.
BLOCK = 256


class _Draw(eqx.Module):
    """The start with one index: ``law(key)`` with the key folded in from the index."""

    law: Callable[[Any], Any]
    seed: int = eqx.field(static=True)

    def __call__(self, index: Any) -> Any:
        return self.law(jax.random.fold_in(jax.random.key(self.seed, impl="threefry2x32"), index))


class _StandardNormal(eqx.Module):
    dim: int = eqx.field(static=True)

    def __call__(self, key: Any) -> Any:
        return jax.random.normal(key, (self.dim,), np.float64)


def gaussian_starts(count: int, dim: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """``count`` starts from ``N(0, scale^2 I)``, shape ``(count, dim)``, float64.

    Start ``i`` is a function of ``(seed, i)`` alone (counter-based generator): asking for more of them, or
    in other pieces, changes nothing; scales multiply the same standard normal numbers.
    """
    return scale * drawn_starts(_StandardNormal(dim), np.arange(count), seed, dim)


def drawn_starts(law: Callable[[Any], Any], indices: np.ndarray, seed: int, dim: int) -> np.ndarray:
    """The starts ``law(key_i)`` with the given indices; ``law`` is a JAX function of a PRNG key."""
    with float64():
        shape = jax.eval_shape(law, jax.random.key(0, impl="threefry2x32"))
    if getattr(shape, "shape", None) != (dim,):
        raise ValueError(f"starts(key) returns {shape}, expected one flat parameter vector of shape ({dim},)")
    return np.asarray(on_lanes(_Draw(law, seed), (indices.astype(np.uint32),), BLOCK))


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

"""Counter-based randomness: draw ``i`` is a function of the seed and of ``i`` alone."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np

from gdmap.engines.precision import float64
from gdmap.engines.xla import on_lanes

# Fixed, so that a start does not change with the block it is drawn in.
BLOCK = 256


class _Draw(eqx.Module):
    """The start with one index: ``law(key)`` with the key folded in from the index."""

    law: Callable[[Any], Any]
    seed: int = eqx.field(static=True)

    def __call__(self, index: Any) -> Any:
        return self.law(jax.random.fold_in(jax.random.key(self.seed, impl="threefry2x32"), index))


class StandardNormal(eqx.Module):
    """Independent standard normal numbers, shape ``(dim,)``, as a law ``key -> theta``."""

    dim: int = eqx.field(static=True)

    def __call__(self, key: Any) -> Any:
        return jax.random.normal(key, (self.dim,), np.float64)


def gaussian_starts(count: int, dim: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """``count`` starts from ``N(0, scale^2 I)``, shape ``(count, dim)``, float64.

    Start ``i`` is a function of ``(seed, i)`` alone (counter-based generator): asking for more of them, or
    in other pieces, changes nothing; scales multiply the same standard normal numbers.
    """
    return scale * drawn_starts(StandardNormal(dim), np.arange(count), seed, dim)


def drawn_starts(law: Callable[[Any], Any], indices: np.ndarray, seed: int, dim: int) -> np.ndarray:
    """The starts ``law(key_i)`` with the given indices; ``law`` is a JAX function of a PRNG key."""
    with float64():
        shape = jax.eval_shape(law, jax.random.key(0, impl="threefry2x32"))
    if getattr(shape, "shape", None) != (dim,):
        raise ValueError(f"starts(key) returns {shape}, expected one flat parameter vector of shape ({dim},)")
    return np.asarray(on_lanes(_Draw(law, seed), (indices.astype(np.uint32),), BLOCK))


def random_direction(dim: int, *address: int) -> np.ndarray:
    """A uniformly distributed unit vector, shape ``(dim,)``, that is a function of its address."""
    v = np.random.default_rng(np.random.SeedSequence(address)).standard_normal(dim)
    return v / np.linalg.norm(v)

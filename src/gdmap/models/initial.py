"""Laws of initial parameters: He, Glorot, LeCun, or a function of one's own."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.precision import float64

InitialLaw = Callable[[Any, tuple[int, ...], int, int], Any]


def he(key: Any, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Any:
    """Gaussian of variance ``2 / fan_in`` (He et al. 2015)."""
    return math.sqrt(2 / fan_in) * jax.random.normal(key, shape, np.float64)


def glorot(key: Any, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Any:
    """Gaussian of variance ``2 / (fan_in + fan_out)`` (Glorot & Bengio 2010)."""
    return math.sqrt(2 / (fan_in + fan_out)) * jax.random.normal(key, shape, np.float64)


def lecun(key: Any, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Any:
    """Gaussian of variance ``1 / fan_in`` (LeCun et al. 1998)."""
    return math.sqrt(1 / fan_in) * jax.random.normal(key, shape, np.float64)


INITIAL_LAWS: dict[str, InitialLaw] = {"he": he, "glorot": glorot, "lecun": lecun}


def resolve_law(law: str | InitialLaw) -> InitialLaw:
    """The law of a name, or the function given.

    Raises
    ------
    TypeError, ValueError
        If it is neither a known name nor callable.
    """
    known = ", ".join(map(repr, INITIAL_LAWS))
    if isinstance(law, str):
        if law not in INITIAL_LAWS:
            raise ValueError(f"the initial law must be {known} or law(key, shape, fan_in, fan_out), got {law!r}")
        return INITIAL_LAWS[law]
    if not callable(law):
        raise TypeError(f"the initial law must be {known} or law(key, shape, fan_in, fan_out), got {law!r}")
    return law


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """``fan_in`` and ``fan_out`` of a weight ``(out, in, *kernel)``: ``in`` and ``out`` times the kernel."""
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


def is_weight(path: tuple[Any, ...], leaf: Any) -> bool:
    """Whether a leaf of a module is a weight: two axes or more, and not called ``bias``."""
    return leaf.ndim >= 2 and not any(getattr(part, "name", None) == "bias" for part in path)


def initial_parameters(parameters: Any, law: InitialLaw, key: Any, scale: float = 1.0) -> Any:
    """``parameters`` with every weight drawn from ``scale`` times the law; all other arrays stay.

    The key of a weight is folded in from its number among the leaves. Runs inside a trace as well.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(parameters)
    drawn = []
    for number, (path, leaf) in enumerate(leaves):
        if is_weight(path, leaf):
            array = law(jax.random.fold_in(key, number), leaf.shape, *fans(leaf.shape))
            if jnp.shape(array) != leaf.shape:
                raise ValueError(
                    f"the initial law returned shape {jnp.shape(array)} for a weight of shape {leaf.shape}"
                )
            drawn.append(scale * array)
        else:
            drawn.append(jnp.asarray(leaf))
    return jax.tree_util.tree_unflatten(structure, drawn)


Module = TypeVar("Module")


def initialised(module: Module, law: str | InitialLaw, seed: int) -> Module:
    """A module of this project's with NumPy float64 parameters: weights from the law, biases zero."""
    parameters, rest = eqx.partition(module, eqx.is_inexact_array)
    with float64():

        def begun(path: Any, leaf: Any) -> Any:
            return jnp.zeros(leaf.shape) if path[-1].name == "bias" else leaf.astype(np.float64)

        parameters = jax.tree_util.tree_map_with_path(begun, parameters)
        key = jax.random.key(seed, impl="threefry2x32")
        parameters = jax.tree.map(np.asarray, initial_parameters(parameters, resolve_law(law), key))
    return eqx.combine(parameters, rest)

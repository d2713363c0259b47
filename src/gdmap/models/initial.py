"""Laws of initial parameters: He, Glorot, LeCun, or a function of one's own.

They draw in the default precision of JAX, which is float64 wherever this package calls them.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.precision import float64, is_traced
from gdmap.models.shapes import checked_seed

InitialLaw = Callable[[Any, tuple[int, ...], int, int], Any]


def he(key: Any, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Any:
    """Gaussian of variance ``2 / fan_in`` (He et al. 2015)."""
    return math.sqrt(2 / fan_in) * jax.random.normal(key, shape)


def glorot(key: Any, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Any:
    """Gaussian of variance ``2 / (fan_in + fan_out)`` (Glorot & Bengio 2010)."""
    return math.sqrt(2 / (fan_in + fan_out)) * jax.random.normal(key, shape)


def lecun(key: Any, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Any:
    """Gaussian of variance ``1 / fan_in`` (LeCun et al. 1998)."""
    return math.sqrt(1 / fan_in) * jax.random.normal(key, shape)


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
    if isinstance(law, type) or not callable(law):
        raise TypeError(f"the initial law must be {known} or law(key, shape, fan_in, fan_out), got {law!r}")
    return law


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """``fan_in`` and ``fan_out`` of a weight ``(out, in, *kernel)``: ``in`` and ``out`` times the kernel."""
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


def is_weight(path: tuple[Any, ...], leaf: Any) -> bool:
    """Whether a leaf of a module is a weight: two axes or more, and neither called ``bias`` nor inside one."""
    names = (getattr(part, "name", getattr(part, "key", None)) for part in path)
    return leaf.ndim >= 2 and "bias" not in names


def has_weights(parameters: Any) -> bool:
    """Whether a law has anything to draw."""
    return any(is_weight(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(parameters))


def drawn_weight(law: InitialLaw, key: Any, shape: tuple[int, ...]) -> Any:
    """One weight of this shape from a law, or an error that says what the law must do."""
    fan_in, fan_out = fans(shape)
    try:
        weight = jnp.asarray(law(key, shape, fan_in, fan_out))
    except Exception as error:
        raise TypeError(
            f"the initial law failed as law(key, shape={shape}, fan_in={fan_in}, fan_out={fan_out}): "
            f"{str(error).strip() or type(error).__name__}. It must be a JAX function of these four; an "
            "initializer of jax.nn goes as lambda key, shape, fan_in, fan_out: initializer(key, shape)"
        ) from error
    if weight.shape != shape:
        raise ValueError(f"the initial law returned shape {weight.shape} for a weight of shape {shape}")
    if not (jnp.issubdtype(weight.dtype, jnp.floating) or jnp.issubdtype(weight.dtype, jnp.integer)):
        raise TypeError(f"the initial law must return real numbers, but it returned dtype {weight.dtype}")
    if not is_traced(weight) and not np.all(np.isfinite(weight)):
        raise ValueError(f"the initial law returned numbers that are not finite for a weight of shape {shape}")
    return weight


def initial_parameters(parameters: Any, law: InitialLaw, key: Any, scale: float = 1.0) -> Any:
    """``parameters`` with every weight drawn from ``scale`` times the law; all other arrays stay.

    The key of a weight is folded in from its number among the leaves. Runs inside a trace as well.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(parameters)
    drawn = [
        scale * drawn_weight(law, jax.random.fold_in(key, number), leaf.shape)
        if is_weight(path, leaf)
        else jnp.asarray(leaf)
        for number, (path, leaf) in enumerate(leaves)
    ]
    return jax.tree_util.tree_unflatten(structure, drawn)


Module = TypeVar("Module")


def initialised(module: Module, law: str | InitialLaw, seed: int) -> Module:
    """A ready network with NumPy float64 parameters: weights from the law, biases zero, norms as they are."""
    law, seed = resolve_law(law), checked_seed(seed)
    parameters, rest = eqx.partition(module, eqx.is_inexact_array)
    with float64():

        def begun(path: Any, leaf: Any) -> Any:
            return jnp.zeros(leaf.shape) if path[-1].name == "bias" else leaf.astype(np.float64)

        parameters = jax.tree_util.tree_map_with_path(begun, parameters)
        key = jax.random.key(seed, impl="threefry2x32")
        parameters = jax.tree.map(np.asarray, initial_parameters(parameters, law, key))
    return eqx.combine(parameters, rest)

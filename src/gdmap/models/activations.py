"""Activation functions by name, applied entry by entry."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Activation = Callable[[Any], Any]


def gelu(z: Any) -> Any:
    """``z Phi(z)`` with the normal distribution function itself, not its tanh approximation."""
    return jax.nn.gelu(z, approximate=False)


def identity(z: Any) -> Any:
    """``z``: a linear network."""
    return z


ACTIVATIONS: dict[str, Activation] = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "gelu": gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "identity": identity,
}


def resolve_activation(activation: str | Activation) -> Activation:
    """The function of a name, or the function given.

    Raises
    ------
    TypeError, ValueError
        If it is neither a known name nor a JAX function that keeps the shape of a real array; if it has parameters
        of its own.
    """
    known = ", ".join(map(repr, ACTIVATIONS))
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be {known} or a JAX function, got {activation!r}")
        return ACTIVATIONS[activation]
    if isinstance(activation, type) or not callable(activation):
        raise TypeError(f"activation must be {known} or a JAX function, got {activation!r}")
    if any(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in jax.tree.leaves(activation)):
        raise TypeError(
            f"the activation {type(activation).__name__} has parameters of its own, so it is a layer: write an "
            "Equinox module that holds it, and give that to gdmap.Network"
        )
    check_entrywise(activation)
    return activation


def check_entrywise(activation: Activation) -> None:
    """Refuse a function that JAX cannot trace, or that does not keep the shape of its argument."""
    name = getattr(activation, "__name__", type(activation).__name__)
    layer = jax.ShapeDtypeStruct((3,), np.float32)
    try:
        result = jax.eval_shape(activation, layer)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise TypeError(
            f"the activation {name} cannot be applied to a vector ({reason}): it must be a JAX function of one "
            "array, written with jax.numpy rather than numpy"
        ) from error
    if getattr(result, "shape", None) != layer.shape or not jnp.issubdtype(result.dtype, jnp.floating):
        raise TypeError(f"the activation {name} must act entry by entry, but it makes {result} of {layer}")

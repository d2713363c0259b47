"""Activation functions by name, applied entry by entry."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

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
        If it is neither a known name nor callable.
    """
    known = ", ".join(map(repr, ACTIVATIONS))
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be {known} or a JAX function, got {activation!r}")
        return ACTIVATIONS[activation]
    if not callable(activation):
        raise TypeError(f"activation must be {known} or a JAX function, got {type(activation).__name__}")
    return activation

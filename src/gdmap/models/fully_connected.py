"""Fully connected networks."""

import itertools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from gdmap.models.activations import Activation, resolve_activation
from gdmap.models.initial import InitialLaw, initialised
from gdmap.models.shapes import checked_option, checked_widths


class FullyConnected(eqx.Module):
    """``f(x) = W_N s(W_{N-1} ... s(W_1 x + b_1) ... + b_{N-1}) + b_N``, the last layer without activation.

    Parameters
    ----------
    widths
        ``(d_0, ..., d_N)``: inputs, hidden layers, outputs; the input is flattened to ``d_0`` numbers.
    activation
        A name of ``gdmap.models.ACTIVATIONS`` or a JAX function.
    bias
        Whether the layers have biases, which start at zero.
    law, seed
        The law of the weights (``'he'``, ``'glorot'``, ``'lecun'`` or ``law(key, shape, fan_in, fan_out)``) and
        the seed of this draw, a non-negative integer. Weights have shape ``(out, in)``, NumPy float64.

    Raises
    ------
    TypeError, ValueError
        For fewer than two widths, or widths that are no positive integers; an unknown activation or law; an
        activation that changes shapes or has parameters of its own.
    """

    layers: tuple[eqx.nn.Linear, ...]
    activation: Activation = eqx.field(static=True)

    def __init__(
        self,
        widths: Sequence[int],
        activation: str | Activation = "relu",
        bias: bool = True,
        *,
        law: str | InitialLaw = "he",
        seed: int = 0,
    ) -> None:
        widths = checked_widths(widths)
        self.activation = resolve_activation(activation)
        self.layers = initialised(linear_layers(widths, checked_option(bias, "bias")), law, seed)

    def __call__(self, x: Any) -> Any:
        """The outputs of one sample, shape ``(d_N,)``, in the dtype of the parameters."""
        z = jnp.ravel(x)
        if z.size != self.layers[0].in_features:
            raise ValueError(
                f"a sample of shape {x.shape} has {z.size} numbers, expected {self.layers[0].in_features}"
            )
        for layer in self.layers[:-1]:
            z = self.activation(layer(z))
        return self.layers[-1](z)


def linear_layers(widths: Sequence[int], bias: bool) -> tuple[eqx.nn.Linear, ...]:
    """Linear layers between neighbouring widths."""
    key = jax.random.key(0)
    return tuple(eqx.nn.Linear(before, after, bias, key=key) for before, after in itertools.pairwise(widths))

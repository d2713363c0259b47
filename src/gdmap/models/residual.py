"""Residual networks."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from gdmap.models.activations import Activation, resolve_activation
from gdmap.models.fully_connected import linear_layers
from gdmap.models.initial import InitialLaw, initialised
from gdmap.models.shapes import checked_option, checked_size


class Residual(eqx.Module):
    """``z = W x + b``, then blocks ``z <- z + V s(U z + b) + c``, then a linear layer.

    Parameters
    ----------
    inputs, width, outputs
        Numbers in a (flattened) sample, inside, and of the last layer.
    activation
        A name of ``gdmap.models.ACTIVATIONS`` or a JAX function.
    blocks, hidden
        The number of blocks, and of units inside each (by default ``width``).
    bias, law, seed
        As for `FullyConnected`.

    Raises
    ------
    TypeError, ValueError
        For sizes that are no positive integers, an unknown activation or law.
    """

    embed: eqx.nn.Linear
    blocks: tuple[tuple[eqx.nn.Linear, ...], ...]
    last: eqx.nn.Linear
    activation: Activation = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        activation: str | Activation = "relu",
        *,
        blocks: int = 2,
        hidden: int | None = None,
        bias: bool = True,
        law: str | InitialLaw = "he",
        seed: int = 0,
    ) -> None:
        inputs, width, outputs = (
            checked_size(value, name)
            for value, name in ((inputs, "inputs"), (width, "width"), (outputs, "outputs"))
        )
        hidden = width if hidden is None else checked_size(hidden, "hidden")
        bias = checked_option(bias, "bias")
        self.activation = resolve_activation(activation)
        made = (
            linear_layers((inputs, width), bias)[0],
            tuple(linear_layers((width, hidden, width), bias) for _ in range(checked_size(blocks, "blocks"))),
            linear_layers((width, outputs), bias)[0],
        )
        self.embed, self.blocks, self.last = initialised(made, law, seed)

    def __call__(self, x: Any) -> Any:
        """The outputs of one sample, shape ``(outputs,)``, in the dtype of the parameters."""
        z = jnp.ravel(x)
        if z.size != self.embed.in_features:
            raise ValueError(
                f"a sample of shape {x.shape} has {z.size} numbers, expected {self.embed.in_features}"
            )
        z = self.embed(z)
        for into, out_of in self.blocks:
            z = z + out_of(self.activation(into(z)))
        return self.last(z)

"""Networks of self-attention."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from gdmap.models.activations import Activation, resolve_activation
from gdmap.models.initial import InitialLaw, initialised
from gdmap.models.shapes import checked_option, checked_size


class SelfAttention(eqx.Module):
    """``softmax(Q K^T / sqrt(d)) V`` for every head, side by side; ``Q = X W_q^T``, and so ``K`` and ``V``.

    ``X`` has a token in each row, and ``d = width / heads`` numbers belong to each head.
    """

    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    heads: int = eqx.field(static=True)

    def __init__(self, width: int, heads: int) -> None:
        if width % heads:
            raise ValueError(f"heads={heads} must divide the width {width}")
        self.heads = heads
        self.query, self.key, self.value = (
            eqx.nn.Linear(width, width, use_bias=False, key=jax.random.key(0)) for _ in range(3)
        )

    def __call__(self, x: Any) -> Any:
        """Tokens ``(n, width)`` in, tokens ``(n, width)`` out."""
        tokens, width = x.shape
        size = width // self.heads
        q, k, v = (
            jax.vmap(layer)(x).reshape(tokens, self.heads, size) for layer in (self.query, self.key, self.value)
        )
        scores = jnp.einsum("thd,shd->hts", q, k) / math.sqrt(size)
        return jnp.einsum("hts,shd->thd", jax.nn.softmax(scores, axis=-1), v).reshape(tokens, width)


class Block(eqx.Module):
    """Attention, then one hidden layer for each token; both on normalised tokens, both added to what came in."""

    attend: SelfAttention
    hidden: eqx.nn.Linear
    back: eqx.nn.Linear
    norms: tuple[eqx.nn.LayerNorm, ...]
    activation: Activation = eqx.field(static=True)

    def __init__(
        self, width: int, heads: int, hidden: int, bias: bool, norm: bool, activation: Activation
    ) -> None:
        key = jax.random.key(0)
        self.attend = SelfAttention(width, heads)
        self.hidden = eqx.nn.Linear(width, hidden, bias, key=key)
        self.back = eqx.nn.Linear(hidden, width, bias, key=key)
        self.norms = (eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)) if norm else ()
        self.activation = activation

    def __call__(self, x: Any) -> Any:
        """Tokens ``(n, width)`` in, tokens ``(n, width)`` out."""
        x = x + self.attend(jax.vmap(self.norms[0])(x) if self.norms else x)
        normed = jax.vmap(self.norms[1])(x) if self.norms else x
        return x + jax.vmap(lambda token: self.back(self.activation(self.hidden(token))))(normed)


class Attention(eqx.Module):
    """A linear embedding of every token, blocks of self-attention, the mean over the tokens, a linear layer.

    A block is ``X <- X + softmax(Q K^T / sqrt(d)) V`` (see `SelfAttention`), then ``x <- x + V s(U x + b) + c``
    for each token ``x``; ``Q``, ``K``, ``V`` and ``s`` see the normalised tokens. There is no encoding of
    positions, so the outputs do not depend on the order of the tokens. A sample has shape ``(tokens, features)``:
    a sequence, or an image read row by row (``(1, height, width)`` counts as ``(height, width)``).

    Parameters
    ----------
    features
        Numbers in a token of the input.
    width
        Numbers in a token inside.
    outputs
        Of the last layer.
    activation
        Of the hidden layer in each block: a name of ``gdmap.models.ACTIVATIONS`` or a JAX function.
    blocks, heads, hidden
        The number of blocks; of attention heads, which must divide ``width``; of units in the hidden layer of a
        block, by default twice ``width``.
    layer_norm
        Whether tokens are normalised (LayerNorm, with scale and shift) before attention and hidden layers.
    bias, law, seed
        As for `FullyConnected`; the attention matrices have no biases.

    Raises
    ------
    TypeError, ValueError
        For sizes that are no positive integers or do not fit, an unknown activation or law.
    """

    embed: eqx.nn.Linear
    blocks: tuple[Block, ...]
    last: eqx.nn.Linear

    def __init__(
        self,
        features: int,
        width: int,
        outputs: int,
        activation: str | Activation = "gelu",
        *,
        blocks: int = 1,
        heads: int = 1,
        hidden: int | None = None,
        layer_norm: bool = True,
        bias: bool = True,
        law: str | InitialLaw = "glorot",
        seed: int = 0,
    ) -> None:
        width, heads = checked_size(width, "width"), checked_size(heads, "heads")
        hidden = 2 * width if hidden is None else checked_size(hidden, "hidden")
        key, function = jax.random.key(0), resolve_activation(activation)
        bias, layer_norm = checked_option(bias, "bias"), checked_option(layer_norm, "layer_norm")
        made = (
            eqx.nn.Linear(checked_size(features, "features"), width, bias, key=key),
            tuple(
                Block(width, heads, hidden, bias, layer_norm, function)
                for _ in range(checked_size(blocks, "blocks"))
            ),
            eqx.nn.Linear(width, checked_size(outputs, "outputs"), bias, key=key),
        )
        self.embed, self.blocks, self.last = initialised(made, law, seed)

    def __call__(self, x: Any) -> Any:
        """The outputs of one sample, shape ``(outputs,)``, in the dtype of the parameters."""
        shape, x = x.shape, x[0] if x.ndim == 3 and x.shape[0] == 1 else x
        if x.ndim != 2 or x.shape[1] != self.embed.in_features:
            raise ValueError(f"a sample has shape {shape}, expected (tokens, {self.embed.in_features})")
        z = jax.vmap(self.embed)(x)
        for block in self.blocks:
            z = block(z)
        return self.last(jnp.mean(z, axis=0))

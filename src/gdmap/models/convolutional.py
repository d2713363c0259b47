"""Convolutional networks with pooling."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from gdmap.models.activations import Activation, resolve_activation
from gdmap.models.initial import InitialLaw, initialised
from gdmap.models.shapes import checked_option, checked_size, checked_widths

Pooling = Literal["average", "max"]


class Convolutional(eqx.Module):
    """Convolutions, each followed by the activation and pooling, then a linear layer.

    Convolutions have stride 1 and zero padding that keeps the size of the image (``kernel`` odd); pooling is over
    windows of ``pool`` by ``pool`` that do not overlap: ``z <- pool(s(K * z + b))``. Kernels have shape
    ``(out, in, kernel, kernel)`` and are not flipped (cross-correlation, as in every library of networks).

    Parameters
    ----------
    image_shape
        ``(channels, height, width)`` of a sample, or ``(height, width)`` of one channel; a flat sample is read as
        an image row by row.
    channels
        Of the convolutions, for example ``(4,)`` or ``(4, 8)``.
    outputs
        Of the last layer.
    activation
        A name of ``gdmap.models.ACTIVATIONS`` or a JAX function.
    kernel
        Height and width of the kernels, odd.
    pooling, pool
        ``'average'`` or ``'max'``, and the side of the windows (1: none); it must divide the sides of the image.
    bias, law, seed
        As for `FullyConnected`.

    Raises
    ------
    TypeError, ValueError
        For sizes that are no positive integers or do not fit, an unknown activation, pooling or law.
    """

    convolutions: tuple[eqx.nn.Conv2d, ...]
    last: eqx.nn.Linear
    image_shape: tuple[int, int, int] = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)
    pooling: str = eqx.field(static=True)
    pool: int = eqx.field(static=True)

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int],
        outputs: int,
        activation: str | Activation = "relu",
        *,
        kernel: int = 3,
        pooling: Pooling = "average",
        pool: int = 2,
        bias: bool = True,
        law: str | InitialLaw = "he",
        seed: int = 0,
    ) -> None:
        depth, height, width = checked_image_shape(image_shape)
        channels = checked_widths(channels, "channels", 1)
        kernel, self.pool = checked_size(kernel, "kernel"), checked_size(pool, "pool")
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}: padding then keeps the size of the image")
        if pooling not in ("average", "max"):
            raise ValueError(f"pooling must be 'average' or 'max', got {pooling!r}")
        self.image_shape, self.pooling = (depth, height, width), pooling
        self.activation, bias = resolve_activation(activation), checked_option(bias, "bias")
        key = jax.random.key(0)
        convolutions: list[eqx.nn.Conv2d] = []
        for before, after in zip((depth, *channels), channels, strict=False):
            if height % self.pool or width % self.pool:
                raise ValueError(
                    f"pool={self.pool} must divide the sides of the image, which are {height} x {width} before "
                    f"convolution {len(convolutions) + 1}"
                )
            height, width = height // self.pool, width // self.pool
            convolutions.append(eqx.nn.Conv2d(before, after, kernel, padding="SAME", use_bias=bias, key=key))
        last = eqx.nn.Linear(channels[-1] * height * width, checked_size(outputs, "outputs"), bias, key=key)
        self.convolutions, self.last = initialised((tuple(convolutions), last), law, seed)

    def __call__(self, x: Any) -> Any:
        """The outputs of one image, shape ``(outputs,)``, in the dtype of the parameters."""
        one_channel = self.image_shape[1:] if self.image_shape[0] == 1 else self.image_shape
        if x.shape not in (self.image_shape, one_channel, (math.prod(self.image_shape),)):
            raise ValueError(f"an image has shape {x.shape}, expected {self.image_shape}")
        z = x.reshape(self.image_shape)
        # The windows of an image are cut out once for all parameters; those inside would be made many times.
        for number, convolution in enumerate(self.convolutions):
            stride = self.pool if number == 0 else 1
            z = pooled(self.activation(convolved(convolution, z, stride)), self.pooling, self.pool // stride)
        return self.last(jnp.ravel(z))


def convolved(layer: eqx.nn.Conv2d, z: Any, stride: int) -> Any:
    """The convolution of an image with zero padding, sorted by the place in windows of ``stride`` by ``stride``.

    From ``(in, height, width)`` to ``(out, stride**2, height // stride, width // stride)``: the
    second axis runs over the places in a window. One product of matrices: on CPUs XLA's own convolution is slow
    under `jax.vmap` over kernels.
    """
    out, depth, kernel, _ = layer.weight.shape
    height, width = z.shape[1:]
    margin = (kernel - 1) // 2
    z = jnp.pad(z, ((0, 0), (margin, margin), (margin, margin)))

    def every_window(row: int, column: int) -> Any:
        last = (depth, row + height - stride + 1, column + width - stride + 1)
        return jax.lax.slice(z, (0, row, column), last, (1, stride, stride))

    patches = jnp.stack(
        [
            jnp.stack([every_window(i + a, j + b) for a, b in itertools.product(range(stride), repeat=2)], axis=1)
            for i, j in itertools.product(range(kernel), repeat=2)
        ],
        axis=1,
    )
    products = layer.weight.reshape(out, -1) @ patches.reshape(depth * kernel**2, -1)
    products = products if layer.bias is None else products + layer.bias.reshape(out, 1)
    return products.reshape(out, *patches.shape[2:])


def pooled(z: Any, pooling: str, pool: int) -> Any:
    """Means or maxima over windows: those `convolved` has sorted, and ``pool`` by ``pool`` of what it has not."""
    out, places, height, width = z.shape
    windows = z.reshape(out, places, height // pool, pool, width // pool, pool)
    return jnp.mean(windows, (1, 3, 5)) if pooling == "average" else jnp.max(windows, (1, 3, 5))


def checked_image_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """``(channels, height, width)``."""
    shape = checked_widths(image_shape, "image_shape", 2)
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3:
        raise ValueError(f"image_shape must be (channels, height, width), got {image_shape}")
    return shape[0], shape[1], shape[2]

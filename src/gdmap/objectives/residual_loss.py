"""Loss functions of the residual, and their weighted mean over the samples of a linear network."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

SQUARED = "squared"


def huber(residual: Any) -> Any:
    """Huber's function with ``delta = 1``, entry by entry: ``r^2 / 2`` for ``|r| <= 1``, else ``|r| - 1/2``.

    Its second derivative is 1 for ``|r| <= 1`` and 0 beyond.
    """
    size = jnp.abs(residual)
    # Branches, not min(|r|, 1): automatic differentiation of |r| would lose the curvature at 0.
    return jnp.where(size <= 1, residual * residual / 2, size - 0.5)


def log_cosh(residual: Any) -> Any:
    """``log cosh r``, entry by entry, to full relative accuracy for small ``r`` and without overflow."""
    small = jnp.abs(residual) <= 1
    near, far = jnp.where(small, residual, 0.0), jnp.where(small, 1.0, jnp.abs(residual))
    return jnp.where(small, jnp.log1p(jnp.sinh(near) ** 2) / 2, far + jnp.log1p(jnp.exp(-2 * far)) - np.log(2.0))


NAMED: dict[str, Callable[[Any], Any]] = {"huber": huber, "log_cosh": log_cosh}


class ResidualLoss(eqx.Module):
    """``sum_i p_i l(W x_i - y_i)`` as a function of the end-to-end matrix ``W``, from the samples themselves."""

    function: Callable[[Any], Any]
    name: str = eqx.field(static=True)
    inputs: np.ndarray
    targets: np.ndarray
    probabilities: np.ndarray | None

    def evaluate(self, product: Any) -> Any:
        """The mean loss of ``W = product``, shape ``(d_N, d_0)``."""
        values = self.sample_values(product)
        if self.probabilities is None:
            return jnp.mean(values)
        return jnp.asarray(self.probabilities, values.dtype) @ values

    def sample_values(self, product: Any) -> Any:
        """``l(W x_i - y_i)`` of every sample, shape ``(m,)``."""
        dtype = product.dtype
        residuals = jnp.asarray(self.inputs, dtype) @ product.T - jnp.asarray(self.targets, dtype)
        return jax.vmap(self.of_one_sample)(residuals)

    def of_one_sample(self, residual: Any) -> Any:
        """``l`` of one residual vector; entries of a vector of the same shape are summed."""
        leaves = jax.tree.leaves(self.function(residual))
        values = [jnp.asarray(leaf) for leaf in leaves]
        if (
            len(values) != 1
            or values[0].shape not in ((), residual.shape)
            or not jnp.issubdtype(values[0].dtype, jnp.floating)
        ):
            found = ", ".join(f"{value.dtype}{list(value.shape)}" for value in values) or "nothing"
            raise TypeError(
                f"loss was given the residual of one sample, shape {residual.shape}, and must return one real "
                f"scalar or a real vector of that shape, which is summed; it returns {found}"
            )
        return jnp.sum(values[0]).astype(residual.dtype)

    @property
    def is_named(self) -> bool:
        """Whether the loss is one of those with a name, not a function of the user's that is called the same."""
        return self.function is NAMED.get(self.name)

    @property
    def normalisation(self) -> str:
        """The formula of the loss in words."""
        mean = "1/m sum_i" if self.probabilities is None else "sum_i p_i"
        return f"{mean} sum_j {self.name}(r_ij), r = W x - y" if self.is_named else f"{mean} loss(W x_i - y_i)"

    @property
    def target_energy(self) -> float:
        """``||Y||_F^2 / m``."""
        return float(np.average(np.sum(self.targets**2, axis=1), weights=self.probabilities))

    def second_moment(self, array: np.ndarray) -> np.ndarray:
        """``A^T X / m`` of the inputs ``X`` with samples ``A``, weighted where the samples are."""
        weighted = array / len(array) if self.probabilities is None else array * self.probabilities[:, None]
        return weighted.T @ self.inputs


def resolve_loss(loss: Any) -> tuple[Callable[[Any], Any], str]:
    """The function of the residual and its name.

    Raises
    ------
    TypeError, ValueError
        If ``loss`` is neither a known name nor callable.
    """
    known = ", ".join(repr(name) for name in (SQUARED, *NAMED))
    if isinstance(loss, str):
        if loss not in NAMED:
            raise ValueError(f"loss must be {known} or a JAX function of the residual, got {loss!r}")
        return NAMED[loss], loss
    if not callable(loss):
        raise TypeError(f"loss must be {known} or a JAX function of the residual, got {type(loss).__name__}")
    return loss, getattr(loss, "__name__", type(loss).__name__)

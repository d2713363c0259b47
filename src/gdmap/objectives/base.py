"""What every objective offers: its value and derivatives at a flat parameter vector."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.precision import entry_point, float64
from gdmap.engines.trace import trace_fingerprint


class AbstractObjective(eqx.Module):
    """A loss ``L: R^dim -> R``, written once in JAX; everything else is derived from that one trace.

    A subclass defines ``dim`` and the traceable ``evaluate(theta)``. Objectives are Equinox modules (their
    arrays are the data, kept as NumPy); their methods may be used under ``jax.jit``, ``jax.grad`` and
    ``jax.vmap``, and they themselves as arguments under ``equinox.filter_jit``.

    Every method takes ``theta`` of shape ``(dim,)`` and computes in the dtype of ``theta``: NumPy float64 in,
    NumPy float64 out, without any JAX configuration. Values are floating point (status *computed*).
    """

    dim: eqx.AbstractVar[int]

    @abc.abstractmethod
    def evaluate(self, theta: Any) -> Any:
        """``L(theta)`` in traceable JAX; ``theta`` has been checked by the caller."""

    @entry_point
    def value(self, theta: Any) -> Any:
        """``L(theta)``, a scalar."""
        return self.evaluate(self.checked(theta))

    @entry_point
    def gradient(self, theta: Any) -> Any:
        """``grad L(theta)``, shape ``(dim,)``."""
        return jax.grad(self.evaluate)(self.checked(theta))

    @entry_point
    def hessian(self, theta: Any) -> Any:
        """The dense Hessian ``H(theta)``, shape ``(dim, dim)``, forward-over-reverse and symmetrised."""
        hessian = jax.jacfwd(jax.grad(self.evaluate))(self.checked(theta))
        return (hessian + hessian.T) / 2

    @entry_point
    def hvp(self, theta: Any, v: Any) -> Any:
        """The Hessian-vector product ``H(theta) v``, shape ``(dim,)``, without forming ``H``."""
        return jax.jvp(jax.grad(self.evaluate), (self.checked(theta),), (self.checked(v, "v"),))[1]

    @property
    def optimal_value(self) -> float | None:
        """``L* = min L`` if it is known, otherwise ``None``."""
        return None

    @property
    def knows_optimum(self) -> bool:
        """Whether ``optimal_value`` is known; fixed by the kind of objective, so usable while tracing."""
        return self.optimal_value is not None

    @entry_point
    def excess(self, theta: Any) -> Any:
        """``L(theta) - optimal_value``; objectives that can avoid the cancellation override it."""
        if self.optimal_value is None:
            raise ValueError(f"{type(self).__name__} does not know its optimal value")
        return self.evaluate(self.checked(theta)) - self.optimal_value

    @property
    def critical_gap(self) -> float | None:
        """The smallest excess over the optimum at a critical point that is not a global minimum, if known."""
        return None

    def ravel(self, params: Any) -> np.ndarray:
        """The flat vector ``theta`` of parameters given in the objective's own form."""
        return np.asarray(self.checked(np.asarray(params)))

    def unravel(self, theta: Any) -> Any:
        """Parameters in the objective's own form from the flat vector ``theta``; inverse of `ravel`."""
        return self.checked(theta)

    def checked(self, theta: Any, name: str = "theta") -> Any:
        """``theta`` itself, or an error if its shape is not ``(dim,)``."""
        if np.shape(theta) != (self.dim,):
            raise ValueError(
                f"{name} has shape {np.shape(theta)}, expected ({self.dim},): "
                "pass one flat parameter vector (see ravel), and jax.vmap over several"
            )
        return theta

    def describe(self) -> dict[str, Any]:
        """A JSON-able record of what this objective is, stored with every result."""
        return {
            "objective": type(self).__name__,
            "dim": self.dim,
            "fingerprint": trace_fingerprint(self.evaluate, (self.dim,)),
        }


def check_scalar_loss(objective: AbstractObjective) -> None:
    """Trace the loss once on an abstract vector and refuse what is not a real scalar.

    Raises
    ------
    TypeError
        If the loss returns anything but one real floating number.
    """
    with float64():
        outcome = jax.eval_shape(objective.evaluate, jax.ShapeDtypeStruct((objective.dim,), np.float64))
    check_one_real_scalar(outcome)


def check_one_real_scalar(outcome: Any, batch: tuple[int, ...] = ()) -> None:
    """Refuse what a loss (mapped over a batch of samples) returned, unless it is one real scalar (each)."""
    leaves = jax.tree.leaves(outcome)
    if len(leaves) != 1 or leaves[0].shape != batch or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        found = ", ".join(f"{leaf.dtype}{list(leaf.shape[len(batch) :])}" for leaf in leaves) or "nothing"
        raise TypeError(
            f"the loss must return one real scalar, but it returns {found}: "
            "reduce it, for example with .sum() or .mean()"
        )


def checked_optimal_value(optimal_value: float | None) -> float | None:
    """``optimal_value`` as a float, or an error if it is not a finite number."""
    if optimal_value is None:
        return None
    if not isinstance(optimal_value, (int, float, np.number)) or not np.isfinite(optimal_value):
        raise ValueError(f"optimal_value must be finite, got {optimal_value!r}; leave it out if unknown")
    return float(optimal_value)

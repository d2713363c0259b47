"""What every map offers."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from gdmap.engines.precision import entry_point
from gdmap.objectives import AbstractObjective


class Map(eqx.Module):
    """One update of an optimiser, ``state -> step(state)``, on flat states of shape ``(state_dim,)``.

    A subclass holds its ``objective`` and defines the traceable ``update``. Where the optimiser keeps more
    than the parameters, it also overrides `state_dim`, `initial_state` and `parameters`.
    """

    objective: eqx.AbstractVar[AbstractObjective]

    @abc.abstractmethod
    def update(self, state: Any) -> Any:
        """The next state in traceable JAX; ``state`` has been checked by the caller."""

    @property
    def state_dim(self) -> int:
        """The dimension of the state space."""
        return self.objective.dim

    @entry_point
    def step(self, state: Any) -> Any:
        """The next state, shape ``(state_dim,)``, in the dtype of ``state``."""
        return self.update(self.checked(state))

    @entry_point
    def jacobian(self, state: Any) -> Any:
        """The Jacobian of `step` at ``state``, shape ``(state_dim, state_dim)``."""
        return jax.jacfwd(self.update)(self.checked(state))

    @entry_point
    def slogdet(self, state: Any) -> Any:
        """Sign and logarithm of the modulus of the Jacobian determinant at ``state``."""
        sign, logarithm = jnp.linalg.slogdet(jax.jacfwd(self.update)(self.checked(state)))
        return sign, logarithm

    def initial_state(self, theta: Any) -> Any:
        """The state in which a run from the parameters ``theta`` begins."""
        return self.objective.checked(theta)

    def parameters(self, state: Any) -> Any:
        """The parameters ``theta`` in ``state``."""
        return self.checked(state)

    def checked(self, state: Any) -> Any:
        """``state`` itself, or an error if its shape is not ``(state_dim,)``."""
        if jnp.shape(state) != (self.state_dim,):
            raise ValueError(
                f"state has shape {jnp.shape(state)}, expected ({self.state_dim},): "
                "pass one flat state (see initial_state), and jax.vmap over several"
            )
        return state

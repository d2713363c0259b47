"""What every map offers."""

import abc
import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.precision import entry_point, is_traced
from gdmap.objectives import AbstractObjective

# Counters are 32-bit integers.
LAST_TIME = 2**31 - 2


class StateSpace(eqx.Module):
    """The states of an optimiser, flat vectors of shape ``(state_dim,)``, and the parameters in them.

    Where the optimiser keeps more than the parameters, a subclass overrides `state_dim`, `initial_state` and
    `parameters`.
    """

    objective: eqx.AbstractVar[AbstractObjective]

    @property
    def state_dim(self) -> int:
        """The dimension of the state space."""
        return self.objective.dim

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


class RandomMap(StateSpace):
    """One update of a stochastic optimiser: a map drawn anew at every step.

    A subclass defines the traceable ``random_update``.
    """

    @abc.abstractmethod
    def random_update(self, state: Any, key: Any, step: Any) -> Any:
        """The next state, with the randomness of one step of the trajectory with this key, traceable."""


class Map(StateSpace):
    """One update of an optimiser, ``state -> step(state)``, on flat states of shape ``(state_dim,)``.

    A subclass holds its ``objective`` and defines the traceable ``update``.
    """

    @abc.abstractmethod
    def update(self, state: Any) -> Any:
        """The next state in traceable JAX; ``state`` has been checked by the caller."""

    def update_at(self, state: Any, time: Any) -> Any:
        """The next state after ``time`` updates, traceable; the same as `update` unless `depends_on_time`."""
        return self.update(state)

    @property
    def depends_on_time(self) -> bool:
        """Whether the map changes with the number of updates already made; then only `step_at` applies."""
        return False

    @entry_point
    def step(self, state: Any) -> Any:
        """The next state, shape ``(state_dim,)``, in the dtype of ``state``."""
        return self.update(self.checked(state))

    def step_at(self, state: Any, time: Any) -> Any:
        """The next state when ``time`` updates (an integer from 0) have been made."""
        return self._step_at(state, checked_time(time))

    @entry_point
    def _step_at(self, state: Any, time: Any) -> Any:
        return self.update_at(self.checked(state), jnp.asarray(time, jnp.int32))

    @entry_point
    def jacobian(self, state: Any) -> Any:
        """The Jacobian of `step` at ``state``, shape ``(state_dim, state_dim)``."""
        return jax.jacfwd(self.update)(self.checked(state))

    @entry_point
    def slogdet(self, state: Any) -> Any:
        """Sign and logarithm of the modulus of the Jacobian determinant at ``state``."""
        sign, logarithm = jnp.linalg.slogdet(jax.jacfwd(self.update)(self.checked(state)))
        return sign, logarithm

    @property
    def numbers(self) -> dict[str, float]:
        """The scalar numbers of the map that can be varied, by name, such as ``{'step_size': 0.1}``."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: float(value) for name, value in fields.items() if is_scalar(value)}

    def with_number(self, name: str, value: Any) -> "Map":
        """The same map with another value of one of its `numbers`, unchecked, so usable while tracing."""
        return eqx.tree_at(lambda map_: getattr(map_, name), self, value)

    @property
    def stability_limit(self) -> float | None:
        """The curvature beyond which a minimum is unstable under this map, where one number says it."""
        return None


def is_scalar(value: Any) -> bool:
    """Whether a field of a map is one real number."""
    number = isinstance(value, float | np.ndarray | np.floating | jax.Array)
    return (
        number
        and not is_traced(value)
        and np.ndim(value) == 0
        and jnp.issubdtype(np.asarray(value).dtype, np.floating)
    )


def checked_time(time: Any) -> Any:
    """A number of updates as a floating scalar (what entry points take), or an error if it cannot be one."""
    if is_traced(time):
        return jnp.asarray(time, float)
    whole = isinstance(time, (int, np.integer)) and not isinstance(time, bool)
    if not whole or not 0 <= time <= LAST_TIME:
        raise ValueError(f"time must be the number of updates already made, an integer from 0, got {time!r}")
    return np.asarray(time, np.float64)

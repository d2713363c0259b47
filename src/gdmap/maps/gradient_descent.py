"""Gradient descent with a fixed step size."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.precision import entry_point, is_traced
from gdmap.maps.base import Map
from gdmap.objectives import AbstractObjective


class GradientDescent(Map):
    """The map ``G(theta) = theta - eta grad L(theta)`` of full-batch gradient descent; the state is ``theta``.

    Its Jacobian is ``I - eta H(theta)`` (arXiv:2402.13108, arXiv:2510.24466), symmetric.

    Parameters
    ----------
    objective
        The loss ``L``.
    step_size
        ``eta``, positive and finite.

    Raises
    ------
    ValueError
        If the step size is not a positive finite number.
    """

    objective: AbstractObjective
    step_size: Any

    def __init__(self, objective: AbstractObjective, step_size: Any) -> None:
        if not isinstance(objective, AbstractObjective):
            raise TypeError(f"objective must be a gdmap objective such as Function(f, dim), got {objective!r}")
        self.objective = objective
        self.step_size = step_size if is_traced(step_size) else np.asarray(checked_step_size(step_size))

    @property
    def stability_limit(self) -> float:
        """``2 / eta``: minima of larger sharpness are unstable."""
        return 2 / float(self.step_size)

    def update(self, state: Any) -> Any:
        """``theta - eta grad L(theta)``."""
        return state - jnp.asarray(self.step_size, state.dtype) * self.objective.gradient(state)

    @entry_point
    def jacobian(self, state: Any) -> Any:
        """``I - eta H(theta)``, shape ``(dim, dim)``."""
        hessian = self.objective.hessian(self.checked(state))
        return jnp.eye(self.state_dim, dtype=state.dtype) - jnp.asarray(self.step_size, state.dtype) * hessian

    def __repr__(self) -> str:
        shown = self.step_size if is_traced(self.step_size) else float(self.step_size)
        return f"GradientDescent({type(self.objective).__name__}, step_size={shown})"


def checked_step_size(step_size: Any) -> float:
    """``step_size`` as a float, or an error naming it if it is not a positive finite number."""
    if (
        isinstance(step_size, (str, bytes, bool))
        or np.ndim(step_size) != 0
        or isinstance(step_size, jax.core.Tracer)
    ):
        raise ValueError(f"step_size must be one positive finite number, got {step_size!r}")
    try:
        size = float(step_size)
    except TypeError:
        raise TypeError(f"step_size must be one positive finite number, got {step_size!r}") from None
    if not np.isfinite(size) or size <= 0:
        raise ValueError(f"step_size must be positive and finite, got {size!r}")
    return size

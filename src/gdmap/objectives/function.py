"""Any JAX function of a flat vector as an objective."""

import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx

from gdmap.objectives.base import AbstractObjective, check_scalar_loss, checked_optimal_value


class Function(AbstractObjective):
    """The objective ``L(theta) = f(theta)``.

    Parameters
    ----------
    f
        A JAX scalar function of a vector of shape ``(dim,)``.
    dim
        The number of parameters, at least 1.
    optimal_value
        ``min L``, if it is known; a critical point with this loss is then a minimum without further proof.
        It is taken on trust and recorded with the results.

    Raises
    ------
    TypeError
        If ``f`` does not return a real scalar.
    ValueError
        If ``dim`` or ``optimal_value`` makes no sense.
    """

    f: Callable[[Any], Any]
    dim: int = eqx.field(static=True)
    known_minimum: float | None = eqx.field(static=True)

    def __init__(self, f: Callable[[Any], Any], dim: int, *, optimal_value: float | None = None) -> None:
        if not callable(f):
            raise TypeError(f"f must be a JAX function of a flat vector, got {type(f).__name__}")
        self.f = f
        self.dim = operator.index(dim)
        if self.dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.known_minimum = checked_optimal_value(optimal_value)
        check_scalar_loss(self)

    @property
    def optimal_value(self) -> float | None:
        """``min L`` as given at construction, or ``None``."""
        return self.known_minimum

    def evaluate(self, theta: Any) -> Any:
        """``f(theta)``."""
        return self.f(theta)

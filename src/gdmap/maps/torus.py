"""Maps whose states, or some components of them, are angles."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from gdmap.engines.precision import entry_point
from gdmap.maps.base import Map
from gdmap.objectives import AbstractObjective


class Torus(Map):
    """A map with components of its state taken modulo periods: for losses that are periodic in parameters.

    ``x -> lower + (G(x) - lower) mod period`` in the components with a finite period. An orbit that winds round,
    as those of heavy ball on ``cos x`` do, is periodic here and not on the line. The derivative is that of ``G``.

    Parameters
    ----------
    map
        The map ``G``; it must have these periods itself: ``G(x + period) = G(x) + period`` up to whole periods.
    periods
        Shape ``(state_dim,)``: the period of each component, ``inf`` where it is no angle.
    lower
        The lower ends of the ranges, a number or of shape ``(state_dim,)``. Points of an orbit should not lie on
        these ends, where the map jumps.

    Raises
    ------
    TypeError, ValueError
        If ``map`` is no map, depends on time or does not have these periods.
    """

    map: Map
    periods: Any
    lower: Any

    def __init__(self, map: Map, periods: Any, lower: Any = 0.0) -> None:  # noqa: A002 - the name of the concept
        if not isinstance(map, Map) or map.depends_on_time:
            raise TypeError(f"map must be a map that does not depend on time, got {map!r}")
        self.map = map
        self.periods = np.asarray(periods, np.float64)
        if self.periods.shape != (map.state_dim,) or not np.all(self.periods > 0):
            raise ValueError(f"periods must be {map.state_dim} positive numbers, inf where there is none")
        self.lower = np.broadcast_to(np.asarray(lower, np.float64), self.periods.shape).copy()
        angles = np.isfinite(self.periods)
        here = np.linspace(0.1, 0.9, map.state_dim)
        for component in np.flatnonzero(angles):
            there = here.copy()
            there[component] += self.periods[component]
            turns = (map.step(there) - map.step(here))[angles] / self.periods[angles]
            others = (map.step(there) - map.step(here))[~angles]
            if np.abs(turns - np.round(turns)).max() > 1e-9 or np.abs(others).max(initial=0.0) > 1e-9:
                raise ValueError(
                    f"the map does not have the period {self.periods[component]} in component {component}: "
                    "moving the state by it must move the image by whole periods"
                )

    @property  # type: ignore[misc]
    def objective(self) -> AbstractObjective:  # type: ignore[override]
        """The objective of the map."""
        return self.map.objective

    @property
    def state_dim(self) -> int:
        """The dimension of the state space."""
        return self.map.state_dim

    @property
    def numbers(self) -> dict[str, float]:
        """Those of the map."""
        return self.map.numbers

    def with_number(self, name: str, value: Any) -> "Torus":
        """The same with another value of one of the `numbers` of the map."""
        return eqx.tree_at(lambda torus: torus.map, self, self.map.with_number(name, value))

    def update(self, state: Any) -> Any:
        """``G(state)`` with its angles in their ranges."""
        return self.wrapped(self.map.update(state))

    def wrapped(self, state: Any) -> Any:
        """``state`` with its angles in their ranges."""
        periods = jnp.asarray(self.periods, state.dtype)
        turns = jnp.floor((state - jnp.asarray(self.lower, state.dtype)) / periods)
        is_angle = jnp.isfinite(periods)
        return jnp.where(is_angle, state - jnp.where(is_angle, periods, 0) * turns, state)

    @entry_point
    def initial_state(self, theta: Any) -> Any:
        """The state in which a run from the parameters ``theta`` begins."""
        return self.wrapped(self.map.initial_state(theta))

    def parameters(self, state: Any) -> Any:
        """The parameters ``theta`` in ``state``."""
        return self.map.parameters(state)

    def __repr__(self) -> str:
        return f"Torus({self.map!r})"

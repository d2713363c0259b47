"""One-parameter families of maps: what an ensemble iterates, one parameter value for each trajectory."""

from collections.abc import Callable
from typing import Any, Protocol

import equinox as eqx

from gdmap.maps.base import Map
from gdmap.objectives import AbstractObjective


class Family(Protocol):
    """Maps ``family(parameter)`` on one state space, traceable in the parameter; an Equinox module."""

    @property
    def objective(self) -> AbstractObjective:
        """The objective that the maps of the family share."""
        ...

    def __call__(self, parameter: Any) -> Map:
        """The map at ``parameter``."""
        ...

    def step(self, parameter: Any, state: Any) -> Any:
        """One update of the map at ``parameter``, traceable."""
        ...


class ConstantFamily(eqx.Module):
    """The same map whatever the parameter."""

    map: Map

    @property
    def objective(self) -> AbstractObjective:
        """The objective of the map."""
        return self.map.objective

    def __call__(self, parameter: Any) -> Map:
        """The map itself."""
        return self.map

    def step(self, parameter: Any, state: Any) -> Any:
        """One update of the map."""
        return self.map.update(state)


class StepSizeFamily(eqx.Module):
    """The maps ``make(objective, step_size)`` over step sizes."""

    objective: AbstractObjective
    make: Callable[[AbstractObjective, Any], Map]

    def __call__(self, parameter: Any) -> Map:
        """The map with step size ``parameter``."""
        return self.make(self.objective, parameter)

    def step(self, parameter: Any, state: Any) -> Any:
        """One update of the map with step size ``parameter``."""
        return self(parameter).update(state)

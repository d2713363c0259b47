"""One-parameter families of maps: what an ensemble iterates, one parameter value for each trajectory."""

from collections.abc import Callable
from typing import Any

import equinox as eqx

from gdmap.maps.base import Map
from gdmap.objectives import AbstractObjective


class Family(eqx.Module):
    """Maps ``family(parameter)``, traceable in the parameter, all on one state space."""

    objective: eqx.AbstractVar[AbstractObjective]

    def __call__(self, parameter: Any) -> Map:
        """The map at ``parameter``."""
        raise NotImplementedError(f"{type(self).__name__} defines no map")

    def step(self, parameter: Any, state: Any) -> Any:
        """One update of the map at ``parameter``, traceable."""
        return self(parameter).update(state)


class ConstantFamily(Family):
    """The same map whatever the parameter."""

    map: Map

    @property
    def objective(self) -> AbstractObjective:  # type: ignore[override]
        """The objective of the map."""
        return self.map.objective

    def __call__(self, parameter: Any) -> Map:
        """The map itself."""
        return self.map


class StepSizeFamily(Family):
    """The maps ``make(objective, step_size)`` over step sizes."""

    objective: AbstractObjective
    make: Callable[[AbstractObjective, Any], Map]

    def __call__(self, parameter: Any) -> Map:
        """The map with step size ``parameter``."""
        return self.make(self.objective, parameter)

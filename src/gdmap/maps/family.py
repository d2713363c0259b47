"""One-parameter families of maps: what an ensemble iterates, one parameter value for each trajectory."""

from collections.abc import Callable
from typing import Any, Protocol

import equinox as eqx
import jax
import numpy as np

from gdmap.engines.precision import float64
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


class NumberFamily(eqx.Module):
    """The maps that differ from one map in one of its numbers (`Map.numbers`): step size, momentum, ..."""

    map: Map
    name: str = eqx.field(static=True)

    @property
    def objective(self) -> AbstractObjective:
        """The objective that the maps share."""
        return self.map.objective

    def __call__(self, parameter: Any) -> Map:
        """The map whose number has the value ``parameter``."""
        return self.map.with_number(self.name, parameter)

    def step(self, parameter: Any, state: Any) -> Any:
        """One update of the map at ``parameter``."""
        return self(parameter).update(state)


class MadeFamily(eqx.Module):
    """The maps ``make(value)`` that a function makes: of a weight decay, a data parameter, anything else."""

    make: Callable[[Any], Map]
    objective: AbstractObjective

    def __call__(self, parameter: Any) -> Map:
        """The map ``make(parameter)``."""
        return self.make(parameter)

    def step(self, parameter: Any, state: Any) -> Any:
        """One update of the map at ``parameter``."""
        return self(parameter).update(state)


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


def family_along(
    map_: Map, parameter: str | Callable[[Any], Map], value: float | None = None
) -> tuple[Family, float]:
    """The maps got by varying one parameter of ``map_``, and its present value.

    Parameters
    ----------
    map_
        The map to vary; it must not depend on time.
    parameter
        The name of one of its `Map.numbers`, or a traceable function ``value -> map``.
    value
        The present value: needed with a function, of which ``map_`` must be the result there.

    Raises
    ------
    TypeError, ValueError
        If the map has no such number, or the function does not make maps on the same states.
    """
    if map_.depends_on_time:
        raise ValueError(
            f"{map_!r} depends on time (bias correction or a schedule), so it has no periodic orbits: "
            "use Optimiser(..., limit=True) for what it becomes after many steps"
        )
    if isinstance(parameter, str):
        if parameter not in map_.numbers:
            known = ", ".join(repr(name) for name in map_.numbers) or "none"
            raise ValueError(
                f"{map_!r} has no parameter {parameter!r} to vary; it has {known}. "
                "For any other give a function of its value that returns the map"
            )
        present = map_.numbers[parameter]
        if value is not None and value != present:
            raise ValueError(f"the map has {parameter} {present}, not {value}: leave the value out")
        return NumberFamily(map_, parameter), present
    if not callable(parameter):
        raise TypeError(f"parameter must be a name or a function of its value making the map, got {parameter!r}")
    if value is None:
        raise ValueError("with a function as the parameter its present value is needed too: give value=")
    made = parameter(float(value))
    if not isinstance(made, Map) or made.state_dim != map_.state_dim:
        raise TypeError(f"parameter({float(value)}) must return a map with {map_.state_dim} states, got {made!r}")
    probe = np.linspace(0.1, 0.9, map_.state_dim)
    with float64():
        same = np.allclose(made.step(probe), map_.step(probe), rtol=1e-9, atol=1e-12, equal_nan=True)
    if not same:
        raise ValueError(f"parameter({float(value)}) is another map than the one of the orbit: check value=")
    family = MadeFamily(parameter, map_.objective)
    try:
        with float64():
            jax.eval_shape(family.step, np.float64(value), probe)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            "the function given as the parameter must be traceable by JAX: it must not turn its value into a "
            "Python number (float(value), an if on it) or a NumPy array (np.sqrt(value)); use jax.numpy"
        ) from error
    return family, float(value)

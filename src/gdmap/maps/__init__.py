"""One update of an optimiser as a map of its state space to itself, or as a random one."""

from gdmap.maps.base import Map, RandomMap
from gdmap.maps.batches import Batches
from gdmap.maps.family import ConstantFamily, Family, MadeFamily, NumberFamily, StepSizeFamily, family_along
from gdmap.maps.gradient_descent import GradientDescent
from gdmap.maps.optimiser import Optimiser
from gdmap.maps.stochastic_gradient_descent import StochasticGradientDescent
from gdmap.maps.torus import Torus

__all__ = [
    "Batches",
    "ConstantFamily",
    "Family",
    "GradientDescent",
    "MadeFamily",
    "Map",
    "NumberFamily",
    "Optimiser",
    "RandomMap",
    "StepSizeFamily",
    "StochasticGradientDescent",
    "Torus",
    "family_along",
]

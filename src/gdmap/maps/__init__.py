"""One update of an optimiser as a map of its state space to itself, or as a random one."""

from gdmap.maps.base import Map, RandomMap
from gdmap.maps.batches import Batches
from gdmap.maps.family import ConstantFamily, Family, StepSizeFamily
from gdmap.maps.gradient_descent import GradientDescent
from gdmap.maps.optimiser import Optimiser
from gdmap.maps.stochastic_gradient_descent import StochasticGradientDescent

__all__ = [
    "Batches",
    "ConstantFamily",
    "Family",
    "GradientDescent",
    "Map",
    "Optimiser",
    "RandomMap",
    "StepSizeFamily",
    "StochasticGradientDescent",
]

"""One update of an optimiser as a map of its state space to itself."""

from gdmap.maps.base import Map
from gdmap.maps.family import ConstantFamily, Family, StepSizeFamily
from gdmap.maps.gradient_descent import GradientDescent
from gdmap.maps.optimiser import Optimiser

__all__ = ["ConstantFamily", "Family", "GradientDescent", "Map", "Optimiser", "StepSizeFamily"]

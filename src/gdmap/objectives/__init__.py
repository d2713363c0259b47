"""Losses as functions of one flat parameter vector."""

from gdmap.objectives.base import AbstractObjective
from gdmap.objectives.function import Function
from gdmap.objectives.linear_network import LinearNetwork
from gdmap.objectives.network import Network
from gdmap.objectives.objective import Objective

__all__ = ["AbstractObjective", "Function", "LinearNetwork", "Network", "Objective"]

"""Gradient descent as the dynamical system it is."""

from gdmap import data, plots
from gdmap.bracket import Bracket
from gdmap.ensembles import Criteria, Fate, Reason, ensemble, fate_names, reason_names
from gdmap.maps import GradientDescent, Map
from gdmap.objectives import Function, LinearNetwork, Objective
from gdmap.stability import CriticalStepSize, critical_step_size
from gdmap.sweeps import StoreError, fate_fractions, gaussian_starts, sweep

__all__ = [
    "Bracket",
    "Criteria",
    "CriticalStepSize",
    "Fate",
    "Function",
    "GradientDescent",
    "LinearNetwork",
    "Map",
    "Objective",
    "Reason",
    "StoreError",
    "critical_step_size",
    "data",
    "ensemble",
    "fate_fractions",
    "fate_names",
    "gaussian_starts",
    "plots",
    "reason_names",
    "sweep",
]

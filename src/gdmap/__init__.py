"""Gradient descent as the dynamical system it is."""

from importlib.metadata import version as _version

from gdmap import data, plots
from gdmap.bracket import Bracket
from gdmap.ensembles import Criteria, Fate, Reason, ensemble, fate_names, reason_names
from gdmap.maps import GradientDescent, Map, Optimiser
from gdmap.minima import (
    FlattestMinimum,
    Minimum,
    find_minimum,
    flattest_minimum,
    minima_curve,
    minima_manifold,
    sample_minima,
)
from gdmap.objectives import Function, LinearNetwork, Objective
from gdmap.orbits import trajectory
from gdmap.spectra import sharpness, spectral_density, spectrum
from gdmap.stability import (
    CriticalStepSize,
    FlipCoefficient,
    critical_step_size,
    flip_coefficient,
    local_threshold,
    minima_spectra,
    schedule_stability,
    stable_minima,
)
from gdmap.sweeps import StoreError, fate_fractions, gaussian_starts, sweep

__version__ = _version("gdmap")

__all__ = [
    "Bracket",
    "Criteria",
    "CriticalStepSize",
    "Fate",
    "FlattestMinimum",
    "FlipCoefficient",
    "Function",
    "GradientDescent",
    "LinearNetwork",
    "Map",
    "Minimum",
    "Objective",
    "Optimiser",
    "Reason",
    "StoreError",
    "critical_step_size",
    "data",
    "ensemble",
    "fate_fractions",
    "fate_names",
    "find_minimum",
    "flattest_minimum",
    "flip_coefficient",
    "gaussian_starts",
    "local_threshold",
    "minima_curve",
    "minima_manifold",
    "minima_spectra",
    "plots",
    "reason_names",
    "sample_minima",
    "schedule_stability",
    "sharpness",
    "spectral_density",
    "spectrum",
    "stable_minima",
    "sweep",
    "trajectory",
]

"""Sweeps: the fates of the same starts over a range of step sizes, stored chunk by chunk."""

from gdmap.engines.random import gaussian_starts
from gdmap.sweeps.asymptotics import asymptotics
from gdmap.sweeps.attractors import attractors_along
from gdmap.sweeps.fractions import fate_fractions, observed_transition
from gdmap.sweeps.store import StoreError
from gdmap.sweeps.study import Study, load_objective, read_study
from gdmap.sweeps.sweep import sweep
from gdmap.sweeps.transition import transition_step_size

__all__ = [
    "StoreError",
    "Study",
    "asymptotics",
    "attractors_along",
    "fate_fractions",
    "gaussian_starts",
    "load_objective",
    "observed_transition",
    "read_study",
    "sweep",
    "transition_step_size",
]

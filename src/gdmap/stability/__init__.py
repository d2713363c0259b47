"""At which step sizes minima are stable, for gradient descent and other optimisers, and what happens above."""

from gdmap.stability.critical_step_size import CriticalStepSize, critical_step_size
from gdmap.stability.flip import FlipCoefficient, flip_coefficient
from gdmap.stability.local_threshold import local_threshold
from gdmap.stability.schedule import schedule_stability
from gdmap.stability.singularity import singularity_distance
from gdmap.stability.stable_minima import minima_spectra, stable_minima

__all__ = [
    "CriticalStepSize",
    "FlipCoefficient",
    "critical_step_size",
    "flip_coefficient",
    "local_threshold",
    "minima_spectra",
    "schedule_stability",
    "singularity_distance",
    "stable_minima",
]

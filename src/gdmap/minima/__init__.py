"""Minima: finding and verifying them, the manifold they form, sampling it, and its flattest point."""

from gdmap.minima.critical_points import Evidence
from gdmap.minima.flattest import FlattestMinimum, flattest_minimum
from gdmap.minima.linear_network import (
    SharpnessBound,
    aligned_minimum,
    balanced_minimum,
    minimal_sharpness_bound,
)
from gdmap.minima.manifold import minima_curve, minima_manifold, move
from gdmap.minima.minimum import Minimum, find_minimum, verified_minimum
from gdmap.minima.sampling import sample_minima

__all__ = [
    "Evidence",
    "FlattestMinimum",
    "Minimum",
    "SharpnessBound",
    "aligned_minimum",
    "balanced_minimum",
    "find_minimum",
    "flattest_minimum",
    "minima_curve",
    "minima_manifold",
    "minimal_sharpness_bound",
    "move",
    "sample_minima",
    "verified_minimum",
]

"""Orbits of maps: trajectories with what is measured along them; periodic orbits, refined and judged."""

from gdmap.orbits.cycles import Cycles, is_on_a_family, refine_cycles
from gdmap.orbits.trajectory import trajectory

__all__ = ["Cycles", "is_on_a_family", "refine_cycles", "trajectory"]

"""Periodic orbits of maps: refinement, minimal period, multipliers, neutral directions."""

from gdmap.orbits.cycles import Cycles, is_on_a_family, refine_cycles

__all__ = ["Cycles", "is_on_a_family", "refine_cycles"]

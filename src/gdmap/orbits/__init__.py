"""Orbits of maps: trajectories with what is measured along them; periodic orbits, found, refined and judged."""

from gdmap.orbits.cycles import Cycles, is_on_a_family, refine_cycles
from gdmap.orbits.find import PeriodicOrbits, periodic_orbits
from gdmap.orbits.periodic_orbit import NoOrbitError, PeriodicOrbit, orbit_at
from gdmap.orbits.trajectory import trajectory

__all__ = [
    "Cycles",
    "NoOrbitError",
    "PeriodicOrbit",
    "PeriodicOrbits",
    "is_on_a_family",
    "orbit_at",
    "periodic_orbits",
    "refine_cycles",
    "trajectory",
]

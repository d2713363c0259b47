"""Orbits of maps: trajectories with what is measured along them; periodic orbits, found, refined and judged."""

from gdmap.orbits.branch_and_prune import AllCycles, CycleEnclosure, enclose_all_cycles
from gdmap.orbits.cycles import Cycles, is_on_a_family, refine_cycles
from gdmap.orbits.find import PeriodicOrbits, periodic_orbits
from gdmap.orbits.lyapunov import lyapunov_spectrum
from gdmap.orbits.orbit_diagram import orbit_diagram
from gdmap.orbits.periodic_orbit import NoOrbitError, PeriodicOrbit, orbit_at
from gdmap.orbits.trajectory import trajectory

__all__ = [
    "AllCycles",
    "CycleEnclosure",
    "Cycles",
    "NoOrbitError",
    "PeriodicOrbit",
    "PeriodicOrbits",
    "enclose_all_cycles",
    "is_on_a_family",
    "lyapunov_spectrum",
    "orbit_at",
    "orbit_diagram",
    "periodic_orbits",
    "refine_cycles",
    "trajectory",
]

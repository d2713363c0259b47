"""Orbits of maps: trajectories with what is measured along them; periodic orbits, found, refined and judged."""

from gdmap.orbits.bifurcation_diagram import bifurcation_diagram
from gdmap.orbits.branch import Branch
from gdmap.orbits.branch_and_prune import AllCycles, CycleEnclosure, enclose_all_cycles
from gdmap.orbits.cascade import Cascade, cascade
from gdmap.orbits.continuation import continue_orbit
from gdmap.orbits.cycles import Cycles, is_on_a_family, refine_cycles
from gdmap.orbits.events import Event
from gdmap.orbits.find import PeriodicOrbits, periodic_orbits
from gdmap.orbits.lyapunov import lyapunov_spectrum
from gdmap.orbits.orbit_diagram import orbit_diagram
from gdmap.orbits.periodic_orbit import NoOrbitError, PeriodicOrbit, orbit_at
from gdmap.orbits.switching import switch_branch
from gdmap.orbits.trajectory import trajectory

__all__ = [
    "AllCycles",
    "Branch",
    "Cascade",
    "CycleEnclosure",
    "Cycles",
    "Event",
    "NoOrbitError",
    "PeriodicOrbit",
    "PeriodicOrbits",
    "bifurcation_diagram",
    "cascade",
    "continue_orbit",
    "enclose_all_cycles",
    "is_on_a_family",
    "lyapunov_spectrum",
    "orbit_at",
    "orbit_diagram",
    "periodic_orbits",
    "refine_cycles",
    "switch_branch",
    "trajectory",
]

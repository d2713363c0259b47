"""Pictures of results, drawn from the labelled datasets alone."""

from gdmap.plots.asymptotics import plot_asymptotics
from gdmap.plots.basin import plot_basin
from gdmap.plots.certify import plot_determinant_sign, plot_singularity_distance
from gdmap.plots.density import plot_spectral_density
from gdmap.plots.exponents import plot_exponents, plot_stable_sets
from gdmap.plots.lyapunov import plot_lyapunov
from gdmap.plots.minima import plot_minima
from gdmap.plots.orbits import plot_bifurcation_diagram, plot_orbit_diagram, plot_periodic_orbits
from gdmap.plots.spectrum import plot_spectrum
from gdmap.plots.trajectory import plot_trajectory
from gdmap.plots.transition import plot_transition

__all__ = [
    "plot_asymptotics",
    "plot_basin",
    "plot_bifurcation_diagram",
    "plot_determinant_sign",
    "plot_exponents",
    "plot_lyapunov",
    "plot_minima",
    "plot_orbit_diagram",
    "plot_periodic_orbits",
    "plot_singularity_distance",
    "plot_spectral_density",
    "plot_spectrum",
    "plot_stable_sets",
    "plot_trajectory",
    "plot_transition",
]

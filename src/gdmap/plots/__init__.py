"""Pictures of results, drawn from the labelled datasets alone."""

from gdmap.plots.spectrum import plot_spectrum
from gdmap.plots.transition import plot_transition

__all__ = ["plot_spectrum", "plot_transition"]

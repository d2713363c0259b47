"""The Hessian spectrum of a minimum beside the stability limit."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gdmap.bracket import Bracket
from gdmap.stability import CriticalStepSize


def plot_spectrum(eigenvalues: np.ndarray, step_size: CriticalStepSize | Bracket, title: str = "") -> Figure:
    """Eigenvalues at the flattest minimum, largest first, with the line ``2 / step_size`` they must not cross.

    ``step_size`` is the result of `gdmap.critical_step_size`, or its bracket.
    """
    if isinstance(step_size, CriticalStepSize):
        step_size = step_size.step_size
    figure = Figure(figsize=(6.2, 4.0), layout="constrained")
    axes = figure.subplots()
    descending = np.sort(eigenvalues)[::-1]
    axes.plot(
        np.arange(1, len(descending) + 1), descending, "o", ms=3.5, color="#0072B2", label="Hessian eigenvalues"
    )
    if np.isfinite(step_size.value):
        axes.axhline(
            2 / step_size.value,
            color="black",
            ls="--",
            lw=1.2,
            label=f"2 / critical step size ({step_size.value:.5g}, {step_size.status})",
        )
    axes.set_xlabel("index")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("eigenvalue at the flattest minimum")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False)
    if title:
        axes.set_title(title, fontsize="medium")
    return figure

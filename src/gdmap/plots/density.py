"""The spectral density of a Hessian with its standard error."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure


def plot_spectral_density(dataset: xr.Dataset, title: str = "") -> Figure:
    """Density of eigenvalues on a logarithmic axis, with a band of two standard errors and the largest node.

    ``dataset`` is the result of `gdmap.spectra.spectral_density`. What lies more than seven decades below the
    peak is cut off: those are the tails of the smoothing.
    """
    if "density" not in dataset or "eigenvalue" not in dataset.dims:
        raise ValueError("plot_spectral_density draws the result of spectral_density: this dataset has no density")
    figure = Figure(figsize=(6.2, 4.0), layout="constrained")
    axes = figure.subplots()
    grid, density, error = (dataset[name].values for name in ("eigenvalue", "density", "standard_error"))
    floor = 1e-7 * float(density.max())
    probes = dataset.sizes["probe"]
    axes.fill_between(
        grid,
        np.maximum(density - 2 * error, floor),
        np.maximum(density + 2 * error, floor),
        color="#0072B2",
        alpha=0.25,
        lw=0,
        label="2 standard errors",
    )
    label = f"density ({dataset.attrs['status']}, {probes} probes, smoothed by {dataset.attrs['width']:.2g})"
    axes.plot(grid, np.maximum(density, floor), color="#0072B2", lw=1.4, label=label)
    largest = float(dataset["node"].max())
    axes.axvline(largest, color="black", ls="--", lw=1.2, label=f"largest node {largest:.5g}")
    axes.set_yscale("log")
    axes.set_ylim(floor, 4 * float(np.max(density + 2 * error)))
    axes.set_xlabel("eigenvalue")
    axes.set_ylabel("density")
    axes.grid(alpha=0.25, linewidth=0.6)
    # Below the picture: inside it would lie on the curve or on the dashed line.
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    if title:
        axes.set_title(title, fontsize="medium")
    return figure

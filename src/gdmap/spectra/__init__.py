"""Eigenvalues of Hessians and Jacobians, with error bounds."""

from gdmap.spectra.density import spectral_density
from gdmap.spectra.extreme import extreme_eigenvalues, sharpness
from gdmap.spectra.operators import hessian_operator
from gdmap.spectra.spectrum import spectrum

__all__ = ["extreme_eigenvalues", "hessian_operator", "sharpness", "spectral_density", "spectrum"]

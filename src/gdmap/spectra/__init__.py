"""Eigenvalues of Hessians and Jacobians, with error bounds."""

from gdmap.spectra.extreme import largest_eigenvalue

__all__ = ["largest_eigenvalue"]

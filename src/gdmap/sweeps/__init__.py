"""Sweeps: the fates of the same starts over a range of step sizes, stored chunk by chunk."""

from gdmap.sweeps.fractions import fate_fractions
from gdmap.sweeps.starts import gaussian_starts
from gdmap.sweeps.store import StoreError
from gdmap.sweeps.sweep import sweep

__all__ = ["StoreError", "fate_fractions", "gaussian_starts", "sweep"]

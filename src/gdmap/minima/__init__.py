"""Global minima: exact ones where the theory gives them, searched ones where it does not."""

from gdmap.minima.linear_network import (
    SharpnessBound,
    aligned_minimum,
    balanced_minimum,
    minimal_sharpness_bound,
    search_flattest_minimum,
)

__all__ = [
    "SharpnessBound",
    "aligned_minimum",
    "balanced_minimum",
    "minimal_sharpness_bound",
    "search_flattest_minimum",
]

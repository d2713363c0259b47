"""Exponents that decide where training can end: mu, lambda, mean square, products of random matrices."""

from gdmap.exponents.almost_sure import almost_sure_threshold
from gdmap.exponents.exponent import Exponent
from gdmap.exponents.gd_exponent import gd_exponent
from gdmap.exponents.interpolation import InterpolatingMinimum, interpolating_minimum
from gdmap.exponents.mean_square import mean_square_radius, mean_square_threshold, sgd_step_size_bounds
from gdmap.exponents.random_products import random_product_exponents
from gdmap.exponents.regularity import Regularity, regularity
from gdmap.exponents.sgd_exponent import sgd_exponent
from gdmap.exponents.sgd_spectrum import sgd_lyapunov_spectrum
from gdmap.exponents.stable_sets import stable_sets

__all__ = [
    "Exponent",
    "InterpolatingMinimum",
    "Regularity",
    "almost_sure_threshold",
    "gd_exponent",
    "interpolating_minimum",
    "mean_square_radius",
    "mean_square_threshold",
    "random_product_exponents",
    "regularity",
    "sgd_exponent",
    "sgd_lyapunov_spectrum",
    "sgd_step_size_bounds",
    "stable_sets",
]

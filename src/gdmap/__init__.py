"""Gradient descent as the dynamical system it is."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from gdmap import certify, data, models, plots
from gdmap.bracket import Bracket
from gdmap.continuation import Branch, Cascade, Event, bifurcation_diagram, cascade, continue_orbit, switch_branch
from gdmap.ensembles import (
    Cause,
    Criteria,
    Fate,
    Reason,
    Tendency,
    attractors,
    basin,
    ensemble,
    escape_or_return,
    fate_names,
    reason_names,
    tendency_names,
)
from gdmap.exponents import (
    Exponent,
    InterpolatingMinimum,
    Regularity,
    almost_sure_threshold,
    gd_exponent,
    interpolating_minimum,
    mean_square_radius,
    mean_square_threshold,
    random_product_exponents,
    regularity,
    sgd_exponent,
    sgd_lyapunov_spectrum,
    sgd_step_size_bounds,
    stable_sets,
)
from gdmap.maps import GradientDescent, Map, Optimiser, RandomMap, StochasticGradientDescent, Torus
from gdmap.minima import (
    FlattestMinimum,
    Minimum,
    find_minimum,
    flattest_minimum,
    minima_curve,
    minima_manifold,
    sample_minima,
)
from gdmap.objectives import Function, LinearNetwork, Network, Objective
from gdmap.orbits import (
    NoOrbitError,
    PeriodicOrbit,
    PeriodicOrbits,
    enclose_all_cycles,
    lyapunov_spectrum,
    orbit_at,
    orbit_diagram,
    periodic_orbits,
    trajectory,
)
from gdmap.spectra import sharpness, spectral_density, spectrum
from gdmap.stability import (
    CriticalStepSize,
    FlipCoefficient,
    critical_step_size,
    flip_coefficient,
    local_threshold,
    minima_spectra,
    schedule_stability,
    singularity_distance,
    stable_minima,
)
from gdmap.sweeps import (
    StoreError,
    asymptotics,
    attractors_along,
    fate_fractions,
    gaussian_starts,
    sweep,
    transition_step_size,
)

if _TYPE_CHECKING:
    from gdmap.certify import (
        Certificate,
        certify_invertible,
        certify_nonsingular,
        certify_periodic_orbit,
        check_periodic_orbit,
        check_proof,
        exceptional_step_sizes,
        piece,
        pieces,
        sample_pieces,
    )

__version__ = _version("gdmap")


def __getattr__(name: str) -> _Any:
    """Proofs, which need python-flint, are imported when they are used."""
    if name in certify.ROOMS and name in __all__:
        return getattr(certify, name)
    raise AttributeError(f"module 'gdmap' has no attribute {name!r}")


__all__ = [
    "Bracket",
    "Branch",
    "Cascade",
    "Cause",
    "Certificate",
    "Criteria",
    "CriticalStepSize",
    "Event",
    "Exponent",
    "Fate",
    "FlattestMinimum",
    "FlipCoefficient",
    "Function",
    "GradientDescent",
    "InterpolatingMinimum",
    "LinearNetwork",
    "Map",
    "Minimum",
    "Network",
    "NoOrbitError",
    "Objective",
    "Optimiser",
    "PeriodicOrbit",
    "PeriodicOrbits",
    "RandomMap",
    "Reason",
    "Regularity",
    "StochasticGradientDescent",
    "StoreError",
    "Tendency",
    "Torus",
    "almost_sure_threshold",
    "asymptotics",
    "attractors",
    "attractors_along",
    "basin",
    "bifurcation_diagram",
    "cascade",
    "certify",
    "certify_invertible",
    "certify_nonsingular",
    "certify_periodic_orbit",
    "check_periodic_orbit",
    "check_proof",
    "continue_orbit",
    "critical_step_size",
    "data",
    "enclose_all_cycles",
    "ensemble",
    "escape_or_return",
    "exceptional_step_sizes",
    "fate_fractions",
    "fate_names",
    "find_minimum",
    "flattest_minimum",
    "flip_coefficient",
    "gaussian_starts",
    "gd_exponent",
    "interpolating_minimum",
    "local_threshold",
    "lyapunov_spectrum",
    "mean_square_radius",
    "mean_square_threshold",
    "minima_curve",
    "minima_manifold",
    "minima_spectra",
    "models",
    "orbit_at",
    "orbit_diagram",
    "periodic_orbits",
    "piece",
    "pieces",
    "plots",
    "random_product_exponents",
    "reason_names",
    "regularity",
    "sample_minima",
    "sample_pieces",
    "schedule_stability",
    "sgd_exponent",
    "sgd_lyapunov_spectrum",
    "sgd_step_size_bounds",
    "sharpness",
    "singularity_distance",
    "spectral_density",
    "spectrum",
    "stable_minima",
    "stable_sets",
    "sweep",
    "switch_branch",
    "tendency_names",
    "trajectory",
    "transition_step_size",
]

"""Proofs: non-singularity of the gradient-descent map, exceptional step sizes, periodic orbits, boxes.

Needs python-flint (``pip install "gdmap[proofs]"``), so names are imported when they are used; checking a record
imports nothing of what searches for proofs.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdmap.certify.analytic_pieces import Piece, SampledPieces, piece, pieces, sample_pieces
    from gdmap.certify.box import BoxCertificate, certify_invertible
    from gdmap.certify.certificate import Certificate, NearestExceptional
    from gdmap.certify.exceptional import ExceptionalStepSize, exceptional_step_sizes
    from gdmap.certify.non_singularity import certify_nonsingular
    from gdmap.certify.periodic_orbit import (
        PeriodicOrbitCertificate,
        certify_periodic_orbit,
        check_periodic_orbit,
    )
    from gdmap.certify.record import Check, check_proof

ROOMS = {
    "BoxCertificate": "box",
    "Certificate": "certificate",
    "Check": "record",
    "ExceptionalStepSize": "exceptional",
    "NearestExceptional": "certificate",
    "PeriodicOrbitCertificate": "periodic_orbit",
    "Piece": "analytic_pieces",
    "SampledPieces": "analytic_pieces",
    "certify_invertible": "box",
    "certify_nonsingular": "non_singularity",
    "certify_periodic_orbit": "periodic_orbit",
    "check_periodic_orbit": "periodic_orbit",
    "check_proof": "record",
    "exceptional_step_sizes": "exceptional",
    "piece": "analytic_pieces",
    "pieces": "analytic_pieces",
    "sample_pieces": "analytic_pieces",
}

__all__ = [
    "BoxCertificate",
    "Certificate",
    "Check",
    "ExceptionalStepSize",
    "NearestExceptional",
    "PeriodicOrbitCertificate",
    "Piece",
    "SampledPieces",
    "certify_invertible",
    "certify_nonsingular",
    "certify_periodic_orbit",
    "check_periodic_orbit",
    "check_proof",
    "exceptional_step_sizes",
    "piece",
    "pieces",
    "sample_pieces",
]


def __getattr__(name: str) -> Any:
    """A public name of this room, imported now.

    Raises
    ------
    ModuleNotFoundError
        If python-flint is not installed.
    """
    if name not in ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{ROOMS[name]}")
    except ModuleNotFoundError as error:
        if error.name != "flint":
            raise
        raise ModuleNotFoundError(
            f'gdmap.{name} needs python-flint: pip install "gdmap[proofs]"', name="flint"
        ) from error
    return getattr(module, name)

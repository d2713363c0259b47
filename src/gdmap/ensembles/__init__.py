"""Many starts under one map or a family of maps, each iterated to its fate."""

from gdmap.ensembles.attractors import attractors
from gdmap.ensembles.basin import basin
from gdmap.ensembles.ensemble import ensemble
from gdmap.ensembles.escape import Destination, escape_or_return, outcome_names
from gdmap.ensembles.fates import Fate, Reason, fate_names, reason_names
from gdmap.ensembles.iteration import Criteria
from gdmap.ensembles.tendency import Cause, Tendency, tendency_names

__all__ = [
    "Cause",
    "Criteria",
    "Destination",
    "Fate",
    "Reason",
    "Tendency",
    "attractors",
    "basin",
    "ensemble",
    "escape_or_return",
    "fate_names",
    "outcome_names",
    "reason_names",
    "tendency_names",
]

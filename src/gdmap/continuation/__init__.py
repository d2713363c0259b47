"""Periodic orbits followed in a parameter: branches, bifurcations with their normal forms, cascades, diagrams."""

from gdmap.continuation.bifurcation_diagram import bifurcation_diagram
from gdmap.continuation.branch import Branch
from gdmap.continuation.cascade import Cascade, cascade
from gdmap.continuation.event import Event
from gdmap.continuation.follow import continue_orbit
from gdmap.continuation.switching import switch_branch

__all__ = [
    "Branch",
    "Cascade",
    "Event",
    "bifurcation_diagram",
    "cascade",
    "continue_orbit",
    "switch_branch",
]

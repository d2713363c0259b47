"""A branch of periodic orbits: what continuation returns."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from gdmap.continuation.arclength import Curve
from gdmap.continuation.event import Event
from gdmap.maps import Family, Map
from gdmap.orbits.periodic_orbit import NoOrbitError, PeriodicOrbit, minimal_period, orbit_at
from gdmap.orbits.shooting import refine_orbit

SENTENCES = {
    "bound": "it reached the end of the bounds; widen bounds= to follow it further",
    "closed": "it came back to where it began: the branch is a closed curve, all of it is here",
    "max_points": "max_points= were made; raise it to follow the branch further",
    "event": "the event asked for was found",
    "period halves": "the orbit shrinks onto one of half its period, from which it branches by period doubling; "
    "follow that one with switch_branch or continue_orbit",
    "residual": "Newton's method did not converge even for the smallest step: lower smallest_step=, or the map is "
    "not differentiable near here",
    "singular Jacobian": "the equations are singular even for the smallest step: a bifurcation of several "
    "directions at once; start again beyond it",
    "undefined": "the map or its derivative has no finite value beyond: the orbit leaves where the loss is "
    "defined",
    "kink": "the Jacobian jumps however small the step: a point of the orbit crosses a kink of the loss, beyond "
    "which it must be started anew (there are no multipliers at a kink)",
    "step too small": "the curve turns, or a multiplier moves, faster than the smallest step can follow: lower "
    "smallest_step=, or the map becomes singular there",
    "not located": "a multiplier crosses the unit circle somewhere beyond, but where could not be located: start "
    "again with a smaller largest_step=, or beyond it",
    "diverging": "the orbit has grown a millionfold: it goes to infinity as the parameter approaches this value",
    "family changes": "the dimension of the family of orbits changes here (some null directions are null no more, "
    "so the equations followed are no longer the right ones): start again beyond, with orbit_at",
    "not followed": "this direction was not asked for",
}


class End(NamedTuple):
    """Why a branch ends: ``reason`` is one of a few words, ``message`` a sentence with what to change."""

    reason: str
    message: str

    @classmethod
    def of(cls, reason: str, name: str, value: float) -> "End":
        """The end for a reason at a parameter value."""
        return cls(reason, f"at {name} = {value:.10g}: {SENTENCES[reason]}")


@dataclass(frozen=True, eq=False)
class Branch:
    """A branch of periodic orbits in one parameter of the map; status *computed*.

    Attributes
    ----------
    parameter_name
        ``'step_size'``, another number of the map, or the name of the function given.
    parameter
        The values along the branch in order (not monotone where it folds), shape ``(n,)``.
    points
        The orbits, shape ``(n, period, state_dim)``.
    multipliers
        The multipliers across the family of orbits (all of them, for an isolated orbit), largest modulus first,
        complex, shape ``(n, state_dim - neutral_dimension)``.
    neutral_dimension
        The dimension of the family of orbits at each parameter value (verified at the start and kept): so many
        more multipliers are 1. On a family the branch is the member that moves orthogonally to it.
    residuals, errors
        The norm of the defect ``x_{i+1} - G(x_i)`` over the orbit and the estimated distance to the exact orbit,
        shape ``(n,)``.
    events
        The bifurcations on the branch, in order.
    ended
        For ``'start'`` and ``'end'`` (of the arrays) an `End` with ``reason`` and ``message``.
    start
        The index of the orbit that continuation began from.
    """

    map: Map = field(repr=False)
    parameter_name: str
    parameter: np.ndarray = field(repr=False)
    points: np.ndarray = field(repr=False)
    multipliers: np.ndarray = field(repr=False)
    neutral_dimension: int
    residuals: np.ndarray = field(repr=False)
    errors: np.ndarray = field(repr=False)
    events: list[Event]
    ended: dict[str, End]
    start: int = field(repr=False)
    bounds: tuple[float, float]
    family: Family = field(repr=False)
    curve: Curve = field(repr=False)
    controls: Any = field(repr=False)

    @property
    def period(self) -> int:
        """The period of its orbits."""
        return self.points.shape[1]

    @property
    def map_name(self) -> str:
        """The name of the map."""
        return type(self.map).__name__

    @property
    def margin(self) -> np.ndarray:
        """``1 - |mu|`` of the largest multiplier across the family, shape ``(n,)``: positive where stable."""
        return 1 - np.abs(self.multipliers).max(axis=1, initial=0.0)

    @property
    def stability(self) -> np.ndarray:
        """``'stable'``, ``'unstable'`` or ``'marginal'`` (within 1e-9 of the unit circle), shape ``(n,)``."""
        return np.select([self.margin > 1e-9, self.margin < -1e-9], ["stable", "unstable"], "marginal")

    @property
    def stable(self) -> np.ndarray:
        """Where orbits nearby are attracted (to the family), shape ``(n,)``."""
        return self.stability == "stable"

    def map_at(self, value: float) -> Map:
        """The map at a parameter value."""
        return concrete(self.family, value)

    def orbit(self, index: int) -> PeriodicOrbit:
        """The orbit of one point of the branch, refined and judged anew."""
        return orbit_at(self.map_at(float(self.parameter[index])), self.points[index])

    def at(self, value: float) -> list[PeriodicOrbit]:
        """The orbits of the branch at a parameter value, solved for again there; empty where it has none.

        Raises
        ------
        NoOrbitError
            Where the branch passes but Newton's method does not converge (next to a bifurcation).
        """
        value = float(value)
        if not np.isfinite(value):
            raise ValueError(f"value must be finite, got {value}")
        parameter, points = self._with_folds()
        below = parameter - value
        crossings = np.flatnonzero((below[:-1] < 0) & (below[1:] >= 0) | (below[:-1] > 0) & (below[1:] <= 0))
        # A branch that begins on an orbit of half the period has none of its own there.
        first = [orbit_at(self.map_at(value), points[0])] if below[0] == 0 else []
        orbits = [orbit for orbit in first if orbit.period == self.period]
        for i in crossings:
            share = below[i] / (below[i] - below[i + 1])
            orbits.append(self._between(points[i], points[i + 1], float(share), value))
        return orbits

    def _with_folds(self) -> tuple[np.ndarray, np.ndarray]:
        """Parameters and points with those of the folds inserted, at which the parameter turns."""
        folds = [event for event in self.events if event.kind == "fold" and event.period == self.period]
        us = np.array([self.curve.vector(*pair) for pair in zip(self.points, self.parameter, strict=True)])
        places = []
        for fold in folds:
            apart = np.linalg.norm(us - fold.at.u, axis=1)
            detour = apart[:-1] + apart[1:] - np.linalg.norm(np.diff(us, axis=0), axis=1)
            places.append(int(np.argmin(detour / np.maximum(apart[:-1] + apart[1:], 1e-300))) + 1)
        values, orbits = [fold.parameter for fold in folds], [fold.points for fold in folds]
        if not folds:
            return self.parameter, self.points
        return np.insert(self.parameter, places, values), np.insert(self.points, places, orbits, axis=0)

    def _between(self, one: np.ndarray, other: np.ndarray, share: float, value: float) -> PeriodicOrbit:
        """The orbit at a value that lies a share of the way from one point of the branch to the next."""
        # Next to a bifurcation at either end the orbit moves with the square root of the distance to it.
        shares = (share, np.sqrt(share), 1 - np.sqrt(1 - share))
        found: list[tuple[float, np.ndarray]] = []
        failure = "it came back to an orbit of shorter period"
        for weight in shares:
            guess = (1 - weight) * one + weight * other
            refined = refine_orbit(self.family, value, guess, self.neutral_dimension)
            if refined.failure:
                failure = f"cause: {refined.failure}"
            elif minimal_period(refined.points, refined.error) == self.period:
                found.append((float(np.linalg.norm(refined.points - guess)), refined.points))
        if not found:
            raise NoOrbitError(
                f"the branch passes {self.parameter_name} = {value:.10g}, but Newton's method fails there "
                f"({failure}): a bifurcation is near; ask for a value a little farther from it"
            )
        return orbit_at(self.map_at(value), min(found, key=lambda pair: pair[0])[1])

    def to_dataset(self) -> xr.Dataset:
        """The branch as a dataset over ``index``, its events over ``event``.

        The multipliers are complex, which netCDF lacks: write with ``engine="h5netcdf", invalid_netcdf=True``, or
        store ``multipliers.real`` and ``multipliers.imag``.
        """
        events = self.events
        dataset = xr.Dataset(
            {
                "parameter": ("index", self.parameter),
                "points": (("index", "phase", "component"), self.points),
                "multipliers": (("index", "mode"), self.multipliers),
                "stability": ("index", self.stability),
                "residual": ("index", self.residuals),
                "error": ("index", self.errors),
                "event_kind": ("event", np.array([event.kind for event in events], dtype="U16")),
                "event_parameter": ("event", np.array([event.parameter for event in events], float)),
                "event_error": ("event", np.array([event.error for event in events], float)),
                "event_coefficient": ("event", np.array([number(event.coefficient) for event in events], float)),
                "event_criticality": (
                    "event",
                    np.array([event.criticality or "" for event in events], dtype="U16"),
                ),
            },
            attrs={
                "status": "computed",
                "method": "pseudo-arclength continuation of the shooting equation; Newton's method at every point",
                "map": repr(self.map),
                "parameter": self.parameter_name,
                "period": self.period,
                "neutral_dimension": self.neutral_dimension,
                "ended_start": self.ended["start"].message,
                "ended_end": self.ended["end"].message,
            },
        )
        for variable, (long_name, status) in LONG_NAMES.items():
            attributes = {"long_name": long_name, "status": status}
            if dataset[variable].dtype.kind in "fc":
                attributes["units"] = "units of the state" if variable in STATE_UNITS else "1"
            dataset[variable].attrs.update(attributes)
        return dataset

    def explain(self) -> str:
        """The branch in words: what it is, its special points and their precision, why it ends."""
        low, high = self.parameter.min(), self.parameter.max()
        name = "fixed points" if self.period == 1 else f"orbits of period {self.period}"
        lines = [
            f"A branch of {name} of {self.map!r}, {self.parameter_name} from {low:.10g} to {high:.10g}: "
            f"{len(self.parameter)} points (computed), {int(self.stable.sum())} of them stable."
        ]
        if self.neutral_dimension:
            lines.append(
                f"They belong to families of dimension {self.neutral_dimension}, whose directions are left out of "
                f"the multipliers."
            )
        lines += [f"- {event.explain()}" for event in self.events]
        marginal = [
            f"The orbit at its {end}, {self.parameter_name} = {self.parameter[index]:.10g}, is marginal: a "
            f"bifurcation lies at the bound, which is described if the bounds reach beyond it."
            for end, index in (("start", 0), ("end", -1))
            if self.ended[end].reason == "bound" and self.stability[index] == "marginal"
        ]
        lines += marginal or ([] if self.events else ["No bifurcation was found on it."])
        lines += [f"It {end} {self.ended[end].message}." for end in ("start", "end")]
        return "\n".join(lines).replace("It start", "It starts").replace("It end ", "It ends ")


LONG_NAMES = {
    "parameter": ("value of the parameter", "computed"),
    "points": ("points of the orbit", "computed"),
    "multipliers": ("multipliers across the family of orbits", "computed"),
    "stability": ("stability of the orbit", "computed"),
    "residual": ("norm of the defect of the orbit", "computed"),
    "error": ("estimated distance to the exact orbit", "estimated"),
    "event_kind": ("kind of bifurcation", "computed"),
    "event_parameter": ("value of the parameter at the bifurcation", "computed"),
    "event_error": ("estimated error of that value", "estimated"),
    "event_coefficient": ("coefficient of the normal form", "computed"),
    "event_criticality": ("what the sign of the coefficient says", "computed"),
}
STATE_UNITS = ("points", "residual", "error")


def number(bracket: Any) -> float:
    """The value of a bracket, NaN for none."""
    return np.nan if bracket is None else float(bracket)


def concrete(family: Family, value: float) -> Map:
    """The map of a family at a value, an ordinary map."""
    return family(np.asarray(float(value)))

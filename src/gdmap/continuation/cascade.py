"""The period-doubling cascade, followed branch by branch, with Feigenbaum's ratios."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gdmap.bracket import Bracket
from gdmap.continuation.branch import Branch
from gdmap.continuation.event import Event
from gdmap.continuation.follow import continue_orbit
from gdmap.continuation.switching import switch_branch
from gdmap.maps import Map
from gdmap.orbits.periodic_orbit import NoOrbitError, PeriodicOrbit
from gdmap.orbits.shooting import DENSE_LIMIT


@dataclass(frozen=True, eq=False)
class Cascade:
    """A sequence of period doublings, each on the branch born at the one before.

    Attributes
    ----------
    branches
        The branch of the orbit given, then one of twice the period from each doubling, each followed to its own
        first doubling.
    events
        The doublings, in order.
    ended
        Why it was followed no further, in a sentence.
    """

    branches: list[Branch] = field(repr=False)
    events: list[Event] = field(repr=False)
    ended: str

    @property
    def parameters(self) -> list[Bracket]:
        """The parameter values of the doublings with their errors; status *computed*."""
        return [event.bracket for event in self.events]

    @property
    def periods(self) -> list[int]:
        """The period that is doubled at each of them."""
        return [event.period for event in self.events]

    @property
    def ratios(self) -> list[Bracket]:
        """``(r_n - r_{n-1}) / (r_{n+1} - r_n)`` of successive values, errors propagated.

        They tend to Feigenbaum's 4.669201609... for maps that contract to one dimension with a quadratic fold.
        """
        values = self.parameters
        return [ratio_of(*values[i : i + 3]) for i in range(len(values) - 2)]

    @property
    def accumulation(self) -> Bracket | None:
        """Where the cascade ends, extrapolated as a geometric sequence; status *estimated*.

        The error is the change by the last value (with fewer than four values the whole extrapolation). ``None``
        for fewer than three values, or if the ratios do not exceed 1.
        """
        values, ratios = [bracket.value for bracket in self.parameters], self.ratios
        if not ratios or any(ratio.value <= 1 for ratio in ratios[-2:]):
            return None
        ends = [values[i + 2] + (values[i + 2] - values[i + 1]) / (r.value - 1) for i, r in enumerate(ratios)]
        change = abs(ends[-1] - ends[-2]) if len(ends) > 1 else abs(ends[-1] - values[-1])
        error = change + 4 * max(event.error for event in self.events)
        return Bracket(
            ends[-1], ends[-1] - error, ends[-1] + error, "estimated", "geometric extrapolation (Aitken)"
        )

    def explain(self) -> str:
        """The cascade in words."""
        name = self.events[0].parameter_name if self.events else self.branches[0].parameter_name
        lines = [f"{len(self.events)} period doublings in {name} (computed):"]
        lines += [
            f"- period {event.period} -> {2 * event.period} at {event.parameter:.12g} +- {event.error:.1e}, "
            f"{event.criticality}"
            for event in self.events
        ]
        lines += [
            f"Ratio {i + 1}: {ratio.value:.6g} +- {ratio.upper - ratio.value:.1e}."
            for i, ratio in enumerate(self.ratios)
        ]
        if self.accumulation is not None:
            end = self.accumulation
            lines.append(f"They accumulate at {end.value:.10g} +- {end.upper - end.value:.1e} (estimated).")
        return "\n".join([*lines, f"Ended: {self.ended}."])


def ratio_of(first: Bracket, second: Bracket, third: Bracket) -> Bracket:
    """The ratio of two successive distances, as wide as the values' errors make it."""
    before, after = second.value - first.value, third.value - second.value
    if before == 0 or after == 0:
        return Bracket(0.0, -np.inf, np.inf, "computed", "values that coincide")
    errors = [bracket.upper - bracket.value for bracket in (first, second, third)]
    share = (errors[0] + errors[1]) / abs(before) + (errors[1] + errors[2]) / abs(after)
    value = before / after
    error = abs(value) * share / max(1 - share, 1e-3)
    return Bracket(value, value - error, value + error, "computed", "ratio of distances, errors propagated")


def cascade(
    orbit: PeriodicOrbit,
    parameter: str | Callable[[Any], Map] = "step_size",
    bounds: tuple[float, float] | None = None,
    *,
    doublings: int = 6,
    value: float | None = None,
    direction: Literal["up", "down"] = "up",
    step: float = 0.01,
    smallest_step: float = 1e-10,
    largest_step: float = 0.1,
    max_points: int = 2000,
) -> Cascade:
    """Follow an orbit through successive period doublings.

    The orbit is continued to its first period doubling, the branch of twice the period from there to its own, and
    so on (`continue_orbit`, `switch_branch`).

    Parameters
    ----------
    orbit, parameter, bounds, value, step, smallest_step, largest_step, max_points
        As for `continue_orbit`.
    doublings
        At most so many.
    direction
        Whether the first branch is followed towards larger or smaller values.

    Returns
    -------
    Cascade
        Possibly with fewer doublings: `Cascade.ended` says why.

    Raises
    ------
    TypeError, ValueError
        As `continue_orbit`; if ``doublings`` is no positive integer.
    """
    if isinstance(doublings, bool) or not isinstance(doublings, int) or doublings < 1:
        raise ValueError(f"doublings must be a positive integer, got {doublings!r}")
    if direction not in ("up", "down"):
        raise ValueError(f"direction must be 'up' or 'down', got {direction!r}")
    branch = continue_orbit(
        orbit,
        parameter,
        bounds,
        value=value,
        direction=direction,
        step=step,
        smallest_step=smallest_step,
        largest_step=largest_step,
        max_points=max_points,
        until="period-doubling",
    )
    branches, events = [branch], []
    while True:
        forward = branch.ended["end" if direction == "up" or len(branches) > 1 else "start"]
        # Its own doublings, not the one at which it ends on an orbit of half the period.
        found = [e for e in branch.events if e.kind == "period-doubling" and e.period == branch.period]
        if not found:
            ended = f"the branch of period {branch.period} has no period doubling up to its end, {forward.message}"
            forks = [e for e in branch.events if e.kind == "branch-point" and e.period == branch.period]
            if forks:
                ended += (
                    f". It has a branch point at {forks[0].parameter_name} = {forks[0].parameter:.10g}: what "
                    f"leaves it there may go on doubling; take it with switch_branch, and give an orbit of it to "
                    f"cascade"
                )
            break
        event = found[-1 if direction == "down" and len(branches) == 1 else 0]
        events.append(event)
        if len(events) == doublings:
            ended = "the doublings asked for were found"
            break
        if 2 * event.points.size > DENSE_LIMIT:
            ended = f"the orbit of period {2 * event.period} has more than {DENSE_LIMIT} unknowns"
            break
        try:
            branch = switch_branch(event, until="period-doubling")
        except (ValueError, NoOrbitError) as error:
            ended = str(error)
            break
        branches.append(branch)
    return Cascade(branches, events, ended)

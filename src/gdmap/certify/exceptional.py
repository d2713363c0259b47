"""Exceptional step sizes: those at which the map is singular on some piece."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from gdmap.bracket import Bracket
from gdmap.certify.claims import UnprovedError, piece_coverage, verify
from gdmap.certify.constants import Curvature, constant_curvatures, fraction, generic_points, rational_points
from gdmap.certify.coverage import is_negligible
from gdmap.certify.drawn import Drawn, points_of
from gdmap.certify.margins import affine_margins, every_piece
from gdmap.certify.reasons import reason_of
from gdmap.certify.search import (
    LARGEST_COMPARED,
    LARGEST_EXACT,
    Effort,
    claims_everywhere,
    is_rational,
    telling_points,
)
from gdmap.certify.step_sizes import briefly, counted
from gdmap.certify.subject import Subject
from gdmap.engines.balls.arithmetic import UndecidedError
from gdmap.engines.pieces import Pattern
from gdmap.objectives import AbstractObjective

# Draws from a law that is a function.
DRAWS = 20
# Nothing is concluded from the share of draws here, so any confidence would do.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class ExceptionalStepSize:
    """A step size at which ``I - eta H`` is singular at every point of some piece.

    Attributes
    ----------
    step_size
        The step size; status *proved* if ``confirmed``, else *computed*: the reciprocal of an eigenvalue that
        verified spectra at several points could not tell apart.
    exact
        The step size as an exact fraction, where it is known to be one.
    piece
        A point in a piece it belongs to, as a float64 array (rounded; the pieces of `gdmap.pieces` are exact).
    n_pieces
        On how many of the pieces examined it is exceptional.
    reason
        Why, in words.
    confirmed
        Whether singularity is proved.
    """

    step_size: Bracket
    exact: Fraction | None
    piece: np.ndarray
    n_pieces: int
    reason: str
    confirmed: bool


class ExceptionalStepSizes(list[ExceptionalStepSize]):
    """The exceptional step sizes found, ascending, and how far the search went.

    Attributes
    ----------
    complete
        Whether no others exist up to ``proved_up_to``: every piece was examined and every candidate confirmed.
    proved_up_to
        The largest step size the statement reaches to.
    resolution
        Relative: nearer than this to one that is listed there may be another, which the spectra do not tell
        apart. 0 where they are exact.
    n_pieces
        How many pieces were examined.
    scope
        In words.
    """

    def __init__(
        self,
        found: Sequence[ExceptionalStepSize],
        complete: bool,
        proved_up_to: float,
        resolution: float,
        n_pieces: int,
        scope: str,
    ) -> None:
        super().__init__(found)
        self.complete, self.proved_up_to, self.resolution = complete, proved_up_to, resolution
        self.n_pieces, self.scope = n_pieces, scope

    def explain(self) -> str:
        """The list, and what it is worth, in sentences."""
        count = "no exceptional step size" if not self else counted(len(self), "exceptional step size")
        lines = [f"Examined: {self.scope}; {count} found."]
        for one in self:
            state = "proved" if one.confirmed else "a candidate, not confirmed"
            size = briefly(one.exact) if one.exact is not None else f"about {one.step_size.value:.12g}"
            lines.append(f"  {size} ({state}, on {counted(one.n_pieces, 'piece')}): {one.reason}")
        if self.complete:
            reach = "" if np.isinf(self.proved_up_to) else f" up to {self.proved_up_to:.4g}"
            near = (
                f" (but for some within {self.resolution:.1g}, relatively, of those listed)"
                if self.resolution
                else ""
            )
            lines.append(f"There are no others{reach}{near}: proved.")
        else:
            lines.append("Others may exist.")
        return "\n".join(lines)


def exceptional_step_sizes(
    objective: AbstractObjective,
    *,
    exact_decimals: bool = False,
    starts: int | Callable[[Any], Any] = 20,
    scale: float = 1.0,
    seed: int = 0,
    max_pieces: int = 20_000,
) -> ExceptionalStepSizes:
    """The step sizes ``1 / c`` for which the Hessian has the eigenvalue ``c > 0`` at every point of some piece.

    Candidates are the eigenvalues that spectra at several points of a piece share: exactly (greatest common
    divisor of characteristic polynomials) where the loss is polynomial on the piece, else intersections of
    verified enclosures. A candidate is confirmed by directions on which the Hessian acts in the same way
    everywhere.

    Parameters
    ----------
    objective
        The loss.
    exact_decimals
        Read floats as the decimals they print as; see `certify_nonsingular`.
    starts, scale, seed
        Random points whose pieces are examined where there are too many to list, besides pieces in which units are
        dead or alive for all samples.
    max_pieces
        List all pieces if there are at most so many and there is one hidden layer.

    Returns
    -------
    ExceptionalStepSizes
        A list; its ``complete`` says whether it is proved to hold all of them.

    Raises
    ------
    ValueError
        For a number of starts, scale or seed that is none.
    UnsupportedProgramError
        If the loss is not a piecewise analytic formula of supported operations.
    """
    if not isinstance(objective, AbstractObjective):
        raise TypeError(f"expected a gdmap objective, got {type(objective).__name__}")
    law = Drawn.from_request(DRAWS if callable(starts) else starts, scale, seed, CONFIDENCE)
    law = replace(law, law=starts if callable(starts) else None)
    subject = Subject(objective, exact_decimals)
    rational = subject.dim <= LARGEST_EXACT and is_rational(subject)
    found: dict[str, ExceptionalStepSize] = {}
    settled, reach, count, resolution = True, np.inf, 0, 0.0
    patterns, everything, scope = examined_patterns(subject, law, max_pieces)
    for pattern, point in patterns:
        count += 1
        candidates, largest = candidates_on(subject, pattern, point, rational)
        reach = min(reach, 1 / largest if largest > 0 else np.inf)
        exact = [low for low, high in candidates or [] if isinstance(low, Fraction) and low == high]
        curvatures = constant_curvatures(subject, pattern, exact) if candidates is None or candidates else []
        for curvature in curvatures:
            add(found, confirmed(subject, pattern, point, curvature))
        if candidates is None:
            settled = False
            continue
        for low, high in candidates:
            resolution = max(resolution, float(Fraction(high) / Fraction(low) - 1) if low > 0 else np.inf)
            if not any(agrees(curvature, low, high) for curvature in curvatures):
                settled = False
                add(found, candidate(point, low, high))
    ordered = sorted(found.values(), key=lambda one: one.step_size.value)
    complete = everything and settled and subject.covers_all
    if not complete and (excluded := none_everywhere(subject)) is not None:
        complete, reach = True, excluded
    return ExceptionalStepSizes(ordered, complete, float(reach), resolution, count, scope)


def none_everywhere(subject: Subject) -> float | None:
    """Up to which step size one proof about all of parameter space excludes every exceptional one, if it does."""
    try:
        for claim in claims_everywhere(subject, (), Effort(max_pieces=0)):
            try:
                reach = verify(subject, claim, ()).coverage.reach
            except UnprovedError:
                continue
            if reach is not None:
                return reach
    except UndecidedError:
        pass
    return None


def examined_patterns(
    subject: Subject, law: Drawn, max_pieces: int
) -> tuple[Iterator[tuple[Pattern, Sequence[Fraction]]], bool, str]:
    """The pieces to examine, whether they are all there are, and which they are in words."""
    if subject.pieces.is_smooth:
        point = generic_points(subject, 1, 0.3)[0]
        return iter([(subject.pattern(point), point)]), True, "the whole parameter space (the loss is analytic)"
    try:
        margins = affine_margins(subject)
    except UndecidedError:
        margins = None
    if margins is not None and margins.n_pieces <= max_pieces:
        listed = ((piece.pattern, piece.point) for piece in every_piece(subject, margins))
        return listed, True, f"all {margins.n_pieces} pieces"
    drawn = points_of(subject, law.claim(subject, ()))
    points = [*telling_points(subject), *drawn]
    return (
        distinct(subject, points),
        False,
        f"the pieces of {len(points)} points ({len(drawn)} random, others chosen)",
    )


def distinct(
    subject: Subject, points: Sequence[Sequence[Fraction]]
) -> Iterator[tuple[Pattern, Sequence[Fraction]]]:
    """The patterns of points, each once; points on kinks are left out."""
    seen: set[str] = set()
    for point in points:
        try:
            pattern = subject.pattern(point)
        except UndecidedError:
            continue
        if pattern.digest not in seen:
            seen.add(pattern.digest)
            yield pattern, point


def candidates_on(
    subject: Subject, pattern: Pattern, point: Sequence[Fraction], rational: bool
) -> tuple[list[Any] | None, float]:
    """Enclosures of the curvatures that may be constant on a piece (``None`` if not examined), and the largest
    that could not be told from zero.
    """
    if subject.dim > LARGEST_COMPARED or not subject.covers_all:
        return None, 0.0
    points = rational_points(subject, 3) if rational else [*generic_points(subject, 3, 1.0, seed=3)]
    try:
        coverage, roots = piece_coverage(subject, pattern, points, "exact" if rational else "spectra", ())
    except (UnprovedError, UndecidedError):
        return None, 0.0
    small = [float(high) for low, high in coverage.positive if is_negligible(low, high)]
    return list(roots), max(small, default=0.0)


def agrees(curvature: Curvature, low: Any, high: Any) -> bool:
    """Whether a proved curvature is the one that a candidate encloses, up to the width of the enclosure."""
    root = curvature.root
    return Fraction(low) <= fraction(root.upper) and fraction(root.lower) <= Fraction(high)


def confirmed(
    subject: Subject, pattern: Pattern, point: Sequence[Fraction], curvature: Curvature
) -> ExceptionalStepSize:
    """The record of a proved exceptional step size."""
    exact = None if curvature.exact is None else 1 / curvature.exact
    reason = reason_of(subject, pattern, curvature)
    return ExceptionalStepSize(curvature.step_size, exact, np.array([float(x) for x in point]), 1, reason, True)


def candidate(point: Sequence[Fraction], low: Any, high: Any) -> ExceptionalStepSize:
    """The record of a candidate."""
    lower, upper = 1 / float(high), np.inf if float(low) <= 0 else 1 / float(low)
    value = lower if np.isinf(upper) else (lower + upper) / 2
    bracket = Bracket(value, lower, upper, "computed", "an eigenvalue common to verified spectra")
    reason = "the spectra of the Hessian at several points share this curvature"
    return ExceptionalStepSize(bracket, None, np.array([float(x) for x in point]), 1, reason, False)


def add(found: dict[str, ExceptionalStepSize], one: ExceptionalStepSize) -> None:
    """Add a step size, or count one more piece of it."""
    key = f"{one.confirmed} {one.exact}" if one.exact is not None else f"{one.confirmed} {one.step_size.value:.9g}"
    former = found.get(key)
    if former is None:
        found[key] = one
    else:
        found[key] = ExceptionalStepSize(
            former.step_size, former.exact, former.piece, former.n_pieces + 1, former.reason, former.confirmed
        )

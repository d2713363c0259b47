"""What a proof of non-singularity comes to."""

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from gdmap.bracket import Bracket
from gdmap.certify.record import written_record
from gdmap.certify.step_sizes import briefly, in_words

Verdict = Literal["non-singular", "singular", "undecided"]
# Closer than this, relatively, a step size and an exceptional one are practically the same.
NEAR = 1e-6


@dataclass(frozen=True)
class NearestExceptional:
    """The exceptional step size nearest to the one asked for.

    Attributes
    ----------
    step_size
        Where the map is singular on some piece: an enclosure, status *proved*.
    relative_distance
        ``|eta - step_size| / step_size``, rounded upward; 0 only for exact equality.
    reason
        Why the map is singular there, in words.
    exact
        The step size as an exact fraction, where it is one.
    """

    step_size: Bracket
    relative_distance: float
    reason: str
    exact: Fraction | None = None


@dataclass(frozen=True)
class Certificate:
    """Whether a map is non-singular: whether ``G^-1`` of every null set is a null set (arXiv:2510.24466).

    Attributes
    ----------
    verdict
        ``'non-singular'``, ``'singular'`` (some set of positive measure is mapped to a null set), or
        ``'undecided'``. The first two are *proved*, in exact or ball arithmetic, for the traced formula read over
        the real numbers; rounding of a running program is not covered.
    scope
        What part of parameter space the verdict holds for, in words.
    step_sizes
        The step sizes asked for, exact; empty if every step size was asked for.
    singular_step_sizes
        The step sizes for which the map is proved singular, of those asked for; where every step size was asked
        for those that were found, exact (irrational ones rounded).
    proved_up_to
        Where every step size was asked for: all of ``(0, proved_up_to]`` are proved, except those in
        ``exceptional``.
    exceptional
        Intervals of step sizes that the proof leaves out, as brackets.
    nearest_exceptional
        The nearest step size at which singularity is proved, or ``None`` if none is known.
    probability
        Where the scope is probabilistic: the proved pieces have at least this probability, at this confidence.
    method, reason
        How it was proved; why nothing more was.
    assumptions
        What the proof takes on the user's word.
    proof
        The record: plain dictionaries, lists, strings and numbers. See `save` and `gdmap.check_proof`.
    """

    verdict: Verdict
    scope: str
    step_sizes: tuple[Fraction, ...]
    proved_up_to: float
    exceptional: tuple[Bracket, ...]
    nearest_exceptional: NearestExceptional | None
    probability: Bracket | None
    method: str
    reason: str
    assumptions: tuple[str, ...]
    proof: dict[str, Any]
    singular_step_sizes: tuple[Fraction, ...] = ()

    @property
    def status(self) -> str:
        """``'proved'``, ``'estimated'`` where the scope holds with a confidence, or ``'none'`` if undecided."""
        if self.verdict == "undecided":
            return "none"
        return "proved" if self.probability is None else "estimated"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the proof record as JSON, for ``gdmap certify --check``."""
        Path(path).write_text(written_record(self.proof))

    def explain(self) -> str:
        """The verdict, its scope, its assumptions and its warnings, in sentences."""
        lines = [self.headline()]
        if self.verdict != "undecided":
            lines += [f"Scope: {self.scope}.", f"Proof: {self.method}."]
        if self.reason:
            lines.append(self.reason if self.reason.endswith(".") else self.reason + ".")
        lines += [f"Assumed: {assumption}." for assumption in self.assumptions]
        if self.verdict == "singular" and not self.step_sizes:
            lines.append("exceptional_step_sizes lists all that are found, and says whether there are others.")
        lines += self.warnings()
        if self.verdict != "undecided":
            lines.append(
                "The statement is about the traced formula over the real numbers; the rounding of a running "
                "program is not covered."
            )
        return "\n".join(lines)

    def headline(self) -> str:
        """The verdict in one sentence."""
        if self.verdict == "singular":
            return self.headline_of_singular()
        if len(self.step_sizes) == 1:
            about = f"step size {in_words(self.step_sizes[0])}"
        elif self.step_sizes:
            low, high = float(min(self.step_sizes)), float(max(self.step_sizes))
            about = f"each of {len(self.step_sizes)} step sizes from {low:.6g} to {high:.6g}"
        elif self.verdict == "undecided" or self.proved_up_to == float("inf"):
            about = "every step size"
        else:
            about = f"every step size up to {self.proved_up_to:.4g}"
        if self.verdict == "undecided":
            return f"It is undecided whether the map is non-singular for {about}."
        if self.probability is not None:
            low, sure = self.probability.lower, 100 * (self.probability.confidence or 0)
            where = f"on pieces of probability at least {low:.4g} (estimated, at confidence {sure:g} %)"
            return f"The map is non-singular for {about} {where}."
        return f"The map is non-singular for {about}: proved."

    def headline_of_singular(self) -> str:
        """Where the map is singular, in one sentence."""
        shown = ", ".join(in_words(size) for size in self.singular_step_sizes[:5])
        shown += ", ..." if len(self.singular_step_sizes) > 5 else ""
        plural = "s" if len(self.singular_step_sizes) > 1 else ""
        others = len(self.step_sizes) - len(self.singular_step_sizes)
        rest = f" ({len(self.singular_step_sizes)} of the {len(self.step_sizes)} asked for)" if others > 0 else ""
        return f"The map is singular for step size{plural} {shown}{rest}: proved."

    def warnings(self) -> list[str]:
        """What a careful user should know."""
        nearest = self.nearest_exceptional
        if nearest is None or not self.step_sizes:
            return []
        if self.verdict == "singular":
            return []
        size = briefly(nearest.exact) if nearest.exact is not None else f"about {nearest.step_size.value:.10g}"
        known = f"The nearest exceptional step size known is {size} ({nearest.reason})"
        if nearest.relative_distance < NEAR:
            return [
                f"Warning: {known}, at a relative distance of {nearest.relative_distance:.3g}. Strictly the map "
                "is non-singular, but in floating point it behaves as at that step size. If a decimal was meant, "
                "pass a Fraction or exact_decimals=True."
            ]
        return [f"{known}, at a relative distance of {nearest.relative_distance:.3g}."]

    def __repr__(self) -> str:
        return f"Certificate({self.verdict!r}, scope={self.scope!r}, method={self.method!r})"

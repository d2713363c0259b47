"""What a proof of non-singularity comes to."""

import json
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from gdmap.bracket import Bracket
from gdmap.certify.step_sizes import in_words

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

    @property
    def status(self) -> str:
        """``'proved'``, ``'estimated'`` where the scope holds with a confidence, or ``'none'`` if undecided."""
        if self.verdict == "undecided":
            return "none"
        return "proved" if self.probability is None else "estimated"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the proof record as JSON, for ``gdmap certify --check``."""
        Path(path).write_text(json.dumps(self.proof, indent=1) + "\n")

    def explain(self) -> str:
        """The verdict, its scope, its assumptions and its warnings, in sentences."""
        lines = [self.headline(), f"Scope: {self.scope}.", f"Proof: {self.method}."]
        if self.reason:
            lines.append(self.reason if self.reason.endswith(".") else self.reason + ".")
        lines += [f"Assumed: {assumption}." for assumption in self.assumptions]
        if self.exceptional and not self.step_sizes:
            shown = ", ".join(str(bracket) for bracket in self.exceptional[:5])
            lines.append(f"Left out: step sizes in {shown}.")
        lines += self.warnings()
        lines.append(
            "The statement is about the traced formula over the real numbers; the rounding of a running program "
            "is not covered."
        )
        return "\n".join(lines)

    def headline(self) -> str:
        """The verdict in one sentence."""
        if self.step_sizes:
            if len(self.step_sizes) == 1:
                about = f"step size {in_words(self.step_sizes[0])}"
            else:
                low, high = float(min(self.step_sizes)), float(max(self.step_sizes))
                about = f"{len(self.step_sizes)} step sizes from {low:.6g} to {high:.6g}"
        else:
            about = (
                "every step size"
                if self.proved_up_to == float("inf")
                else f"every step size up to {self.proved_up_to:.4g}"
            )
            if self.verdict == "singular":
                about = "some step sizes"
            elif self.verdict == "undecided":
                about = "every step size"
        words = {
            "non-singular": "is non-singular",
            "singular": "is singular",
            "undecided": "is not decided to be non-singular",
        }
        return f"The map {words[self.verdict]} for {about}."

    def warnings(self) -> list[str]:
        """What a careful user should know."""
        nearest = self.nearest_exceptional
        if nearest is None or not self.step_sizes:
            return []
        known = f"The nearest exceptional step size known is {nearest.step_size.value!r} ({nearest.reason})"
        if self.verdict == "singular":
            return []
        if nearest.relative_distance < NEAR:
            return [
                f"Warning: {known}, at a relative distance of {nearest.relative_distance:.3g}. Strictly the map "
                "is non-singular, but in floating point it behaves as at that step size. If a decimal was meant, "
                "pass a Fraction or exact_decimals=True."
            ]
        return [f"{known}, at a relative distance of {nearest.relative_distance:.3g}."]

    def __repr__(self) -> str:
        return f"Certificate({self.verdict!r}, scope={self.scope!r}, method={self.method!r})"

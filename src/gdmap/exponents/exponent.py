"""An exponent with its interval and what follows from its sign."""

from dataclasses import dataclass
from typing import Literal

from gdmap.bracket import Bracket

Verdict = Literal["stable", "unstable", "undecided"]


@dataclass(frozen=True)
class Exponent(Bracket):
    """A growth rate per step at a minimum, natural logarithm: mu of gradient descent, lambda of SGD.

    Below zero the minimum is stable: starts near it converge to minima near it with positive probability. Above
    zero it is unstable: almost no start converges to it (Chemnitz & Engel, JMLR 26(134), 2025, theorems A and B).

    Attributes
    ----------
    standard_error
        Of ``value`` by sampling alone, where it is estimated, otherwise ``None``; the interval counts what else is
        not known.
    failed_hypotheses
        The hypotheses of the theorem that fail at this minimum, by name (of lambda only; `regularity` explains).
    """

    standard_error: float | None = None
    failed_hypotheses: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """``'stable'`` if the whole interval is below 0, ``'unstable'`` if it is above, else ``'undecided'``."""
        if self.upper < 0:
            return "stable"
        return "unstable" if self.lower > 0 else "undecided"

    def __str__(self) -> str:
        doubt = f" (theorem not applicable: {'; '.join(self.failed_hypotheses)})" if self.failed_hypotheses else ""
        return f"{super().__str__()}: {self.verdict}{doubt}"

    def explain(self) -> str:
        """The exponent, how it was found and what follows, in plain sentences."""
        consequence = {
            "stable": "Starts near the minimum converge to minima near it with positive probability.",
            "unstable": "Almost no start converges to the minimum.",
            "undecided": "The interval contains 0: a longer estimate, or another step size, may decide.",
        }
        known = f"{self.status}" + ("" if self.confidence is None else f" at confidence {self.confidence:g}")
        lines = [
            f"{self.value:.6g} per step, in [{self.lower:.6g}, {self.upper:.6g}] ({known}): {self.verdict}.",
            consequence[self.verdict],
            f"How: {self.method}.",
        ]
        if self.failed_hypotheses:
            failed = "; ".join(self.failed_hypotheses)
            lines.append(f"Hypotheses of the theorem that fail: {failed}. gdmap.regularity says what still holds.")
        return "\n".join(lines)

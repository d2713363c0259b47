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
        Of ``value``, where it is estimated by sampling, otherwise ``None``.
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
        return f"{super().__str__()}: {self.verdict}"

"""Losses in exact arithmetic: derivatives as polynomials, spectra at rational points. For what a report proves."""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from gdmap.bracket import Bracket
from gdmap.objectives import AbstractObjective


class ExactSpectrum(NamedTuple):
    """The Hessian's spectrum at a rational critical point.

    ``nullity`` the multiplicity of the eigenvalue 0; ``positive`` the distinct positive eigenvalues, ascending,
    status *proved*; ``is_semidefinite`` whether no eigenvalue is negative; ``is_critical`` whether the gradient is
    zero, exactly.
    """

    nullity: int
    positive: list[Bracket]
    is_semidefinite: bool
    is_critical: bool


class ExactLoss:
    """A loss that is polynomial on each of its pieces, in ``variables`` unknowns.

    The parameters may be rationals or polynomials in the unknowns: a curve of minima, say. ``beside`` is a
    rational point in the piece that is meant; a loss of one piece needs none.

    Raises
    ------
    ModuleNotFoundError
        Without python-flint, naming the extra that brings it.
    """

    def __init__(self, objective: AbstractObjective, variables: int = 1) -> None:
        require_proofs()
        from gdmap.certify.subject import Subject
        from gdmap.engines.balls.polynomial import Polynomials

        self.subject = Subject(objective)
        self.dim = objective.dim
        self._polynomials = Polynomials(variables)

    @property
    def unknowns(self) -> list[Any]:
        """The unknowns as polynomials."""
        return list(self._polynomials.variables())

    def polynomial(self, number: Any) -> Any:
        """A number as a constant polynomial; a polynomial as it is."""
        from flint import fmpq

        if isinstance(number, (int, float, Fraction, np.number)):
            exact = Fraction(number if isinstance(number, Fraction) else float(number))
            return self._polynomials.context.constant(fmpq(exact.numerator, exact.denominator))
        return number

    @property
    def is_smooth(self) -> bool:
        """Whether there is one piece only."""
        return self.subject.pieces.is_smooth

    def pattern(self, beside: Any = None) -> Any:
        """Which piece a point lies in."""
        return self.subject.pattern(rational_point(beside if beside is not None else [0] * self.dim))

    def gradient(self, theta: Any, beside: Any = None) -> list[Any]:
        """The gradient of the piece as polynomials."""
        point = self._point(theta)
        return list(self.subject.pieces.gradient(point, self.pattern(beside), self._polynomials))

    def hessian(self, theta: Any, beside: Any = None) -> np.ndarray:
        """The Hessian of the piece, ``(dim, dim)``, as polynomials."""
        point = self._point(theta)
        return np.asarray(self.subject.pieces.hessian(point, self.pattern(beside), self._polynomials))

    def characteristic(self, hessian: np.ndarray, x: Any) -> Any:
        """``det(x I - H)``, expanded."""
        from gdmap.certify.exact_spectra import determinant

        zero = 0 * x
        rows = [
            [(x if i == j else zero) - hessian[i, j] for j in range(len(hessian))] for i in range(len(hessian))
        ]
        return determinant(rows)

    def spectrum(self, theta: Any) -> ExactSpectrum:
        """The spectrum at a rational point, each eigenvalue enclosed by exact arithmetic."""
        from gdmap.certify.exact_spectra import positive_roots, sign_changes, symmetric_matrix, without_zero

        point = rational_point(theta)
        pattern = self.subject.pattern(point)
        rational = self.subject.rational
        slope = self.subject.pieces.gradient(self.subject.point(point, rational), pattern, rational)
        characteristic = symmetric_matrix(self.subject.exact_hessian(point, pattern)).charpoly()
        reduced, nullity = without_zero(characteristic)
        mirrored = type(reduced)([c * (-1) ** k for k, c in enumerate(reduced.coeffs())])
        return ExactSpectrum(
            nullity,
            [enclosed(root.lower, root.upper) for root in positive_roots(characteristic)],
            sign_changes(mirrored) == 0,
            all(entry == 0 for entry in slope),
        )

    def _point(self, theta: Any) -> np.ndarray:
        point = np.empty(len(theta), dtype=object)
        for index, entry in enumerate(theta):
            point[index] = self.polynomial(entry)
        return point


def require_proofs() -> None:
    """Refuse to go on without python-flint.

    Raises
    ------
    ModuleNotFoundError
        Naming the extra to install.
    """
    try:
        import flint  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "flint":
            raise
        raise ModuleNotFoundError(
            'this reproduction proves some of its statements and needs python-flint: pip install "gdmap[proofs]"',
            name="flint",
        ) from error


def rational_point(theta: Any) -> tuple[Fraction, ...]:
    """Numbers as fractions; a float means exactly that binary number."""
    return tuple(x if isinstance(x, Fraction) else Fraction(float(x)) for x in theta)


def enclosed(lower: Any, upper: Any, method: str = "root of the exact characteristic polynomial") -> Bracket:
    """The bracket of a number between two rationals, rounded outward; status *proved*."""
    low, high = (
        Fraction(int(end.p), int(end.q)) if hasattr(end, "p") else Fraction(end) for end in (lower, upper)
    )
    below, above = float(low), float(high)
    if Fraction(below) > low:
        below = math.nextafter(below, -math.inf)
    if Fraction(above) < high:
        above = math.nextafter(above, math.inf)
    value = min(max(float((low + high) / 2), below), above)
    return Bracket(value, below, above, "proved", method)


def exactly(number: Any, method: str) -> Bracket:
    """The bracket of one rational number; status *proved*."""
    return enclosed(number, number, method)

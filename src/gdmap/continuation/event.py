"""A bifurcation of a periodic orbit, as a result."""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from gdmap.bracket import Bracket
from gdmap.continuation.arclength import Curve
from gdmap.continuation.normal_forms import DRIFT, Form
from gdmap.maps import Map

Kind = Literal["fold", "period-doubling", "branch-point", "neimark-sacker"]
Criticality = Literal["supercritical", "subcritical", "degenerate"]


@dataclass(frozen=True, eq=False)
class Event:
    """A bifurcation of a periodic orbit; status *computed*.

    Attributes
    ----------
    kind
        ``'fold'``: two orbits of the same period meet and vanish; ``'period-doubling'``: an orbit of twice the
        period branches off; ``'branch-point'``: another orbit of the same period crosses (transcritical) or
        branches off (pitchfork); ``'neimark-sacker'``: an invariant circle branches off.
    parameter_name, parameter, error
        Where: the value and its estimated absolute error (rounding of the multiplier and the error of the orbit,
        divided by the speed at which the multiplier crosses).
    points
        The orbit there, shape ``(period, state_dim)``.
    multiplier
        The critical multiplier as computed there: 1, -1, or of modulus 1, up to rounding.
    multiplicity
        How many multipliers cross together (a complex pair counts as one), by eigenvalues: in maps that preserve
        area two meet in one Jordan block. If more than one, no coefficient is given.
    eigenvector
        Its right eigenvector at the first point (complex for Neimark-Sacker), of such a length that, carried along
        the orbit, the root mean square of its lengths at the ``period`` points is 1.
    speed
        The derivative of the critical multiplier by the parameter along the orbit (complex for Neimark-Sacker);
        NaN at folds.
    coefficient
        The normal form coefficient in the coordinate along the eigenvector, the root mean square displacement of
        the cycle, with its error; it does not depend on which point comes first: fold ``xi -> xi + a xi^2``;
        period doubling ``xi -> -(1 + eps) xi + b xi^3``; branch point ``a`` (transcritical) or ``b`` of ``xi ->
        (1 + eps) xi + b xi^3`` (pitchfork); Neimark-Sacker the first Lyapunov coefficient ``Re d`` of ``z -> mu z
        (1 + d |z|^2)``. ``None`` where one number does not describe what happens, or the map lacks the
        derivatives.
    criticality
        ``'supercritical'``: what is born attracts (across the other directions being stable) and exists where this
        orbit has lost stability: ``b > 0`` at a period doubling, ``b < 0`` at a pitchfork, ``Re d < 0``;
        ``'subcritical'``: the reverse; ``'degenerate'``: the coefficient cannot be told from 0, or there is none
        (several multipliers cross together, a strong resonance 1:1, 1:2 or 1:3, derivatives are missing), or the
        orbit drifts along its family. ``None`` for folds and transcritical points.
    form
        ``'transcritical'`` or ``'pitchfork'`` at branch points.
    angle
        The argument of the multiplier in ``(0, pi)`` for Neimark-Sacker, otherwise ``None``.
    resonance
        3 or 4 where ``angle`` is that of a strong resonance, 1 or 2 near the real axis: there is more to it than
        an invariant circle. At 1, 2 and 3 there is no coefficient; at 4 it alone does not decide.
    drift
        The share of the second derivative along the family of orbits (0 for isolated ones): where it does not
        vanish the state moves along the family and no small new orbit exists beside this one.
    smooth
        Whether the map has the derivatives there that the coefficient is made of.
    """

    kind: Kind
    parameter_name: str
    parameter: float
    error: float
    points: np.ndarray = field(repr=False)
    multiplier: complex
    multiplicity: int
    eigenvector: np.ndarray = field(repr=False)
    speed: complex = field(repr=False)
    coefficient: Bracket | None
    criticality: Criticality | None
    form: Literal["transcritical", "pitchfork"] | None = None
    angle: float | None = None
    resonance: int | None = None
    drift: float = 0.0
    map: Map = field(repr=False, default=None)  # type: ignore[assignment]
    at: "Situation" = field(repr=False, default=None)  # type: ignore[assignment]
    smooth: bool = field(repr=False, default=True)

    @property
    def period(self) -> int:
        """The period of the orbit."""
        return len(self.points)

    @property
    def bracket(self) -> Bracket:
        """The parameter value with its error."""
        value, error = self.parameter, self.error
        return Bracket(value, value - error, value + error, "computed", "root of the test function on the curve")

    def explain(self) -> str:
        """The event in words."""
        where = f"{self.parameter_name} = {self.parameter:.12g} +- {self.error:.1e}"
        told = f"{self.kind} of a period-{self.period} orbit at {where}"
        if self.form:
            told += f", {self.form}"
        if self.criticality:
            told += f", {self.criticality}"
        if self.coefficient is not None:
            told += f" (coefficient {self.coefficient.value:.6g})"
        if self.angle is not None:
            told += f", rotating by {self.angle:.6g} a round"
        if self.resonance is not None:
            told += f", at a strong resonance 1:{self.resonance}"
            if self.resonance == 4:
                told += ", where the coefficient alone does not decide"
        if self.coefficient is None and self.smooth and self.multiplicity == 1 and not self.resonance:
            told += ", no coefficient: the multiplier is too ill-conditioned here"
        if self.multiplicity > 1:
            told += f", {self.multiplicity} multipliers together: one coefficient does not describe that"
        if not self.smooth:
            told += ", the map has no second or third derivative there to compute a coefficient from"
        if self.drift > DRIFT:
            told += ", drifting along the family: no small new orbit exists beside this one"
        return told + "."


class Situation(NamedTuple):
    """Where an event lies on its curve: what branch switching needs.

    ``form`` is the normal form; ``tangent`` that of the curve; ``other`` the tangent of the crossing curve at a
    branch point.
    """

    curve: Curve
    u: np.ndarray
    tangent: np.ndarray
    right: np.ndarray
    left: np.ndarray
    form: Form | None
    other: np.ndarray | None
    branch: Any = None

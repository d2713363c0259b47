"""What happens just above a minimum's own threshold ``2 / sharpness``: a small 2-cycle, or a jump away.

At ``eta = 2 / lam`` the multiplier ``1 - eta lam`` of a minimum passes -1 (a flip, or period doubling). With
``H q = lam q`` the top eigenpair, ``t = L'''[q, q, .]`` and ``eps = eta lam - 2`` the coordinate along ``q``
obeys

    xi -> -(1 + eps) xi + b xi^3 + ...,     b = eta ( <t, H^+ t> / 2 - L''''[q, q, q, q] / 6 ),

Kuznetsov's normal form for the map ``theta - eta grad L(theta)``, whose linear part is symmetric, so that ``q``
is also the left eigenvector. The cycle ``xi = +- sqrt(eps / b)`` has the multiplier ``1 - 4 eps`` along itself.

*On a manifold of minima* the Hessian is singular, and the part of ``t`` in its kernel, the **drift**, is the
gradient of the sharpness along the manifold. Where it does not vanish the state moves along the manifold by
``-eta/2 xi^2 grad(sharpness)`` a step, and no small 2-cycle exists. Where it vanishes the formula holds unchanged
with the pseudo-inverse: in the equation of the kernel coordinates ``k`` the terms ``xi k`` and ``xi^3`` change
sign at every step and cancel over two, the rest is of the order ``xi^2 k`` and ``xi^4``. So the cycle lies at
``k = O(xi^2)``, and since the sharpness is stationary this changes the equation for ``xi`` at fifth order only.
Over two steps ``k -> (I - eta (eps / b) S) k`` with ``S`` the Hessian of the sharpness along the manifold,

    S[k, k] = L''''[q, q, k, k] - <L'''[k, k, .], H^+ t> + 2 <L'''[q, k, .], (lam - H)^+ L'''[q, k, .]>,

so that the cycle attracts along the manifold where the sharpness is smallest, not where it is merely stationary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import numpy as np
import xarray as xr
from scipy.sparse.linalg import minres

from gdmap.bracket import Bracket, Status
from gdmap.engines.xla import block_size, on_lanes
from gdmap.maps import GradientDescent, StepSizeFamily
from gdmap.maps.gradient_descent import checked_step_size
from gdmap.minima import verified_minimum
from gdmap.minima.minimum import NEARBY
from gdmap.objectives import AbstractObjective
from gdmap.orbits import refine_cycles
from gdmap.orbits.cycles import CONVERGED
from gdmap.spectra import hessian_operator
from gdmap.spectra.extreme import extreme_eigenvalues

Kind = Literal["supercritical", "subcritical", "degenerate", "drifting", "multiple"]

# Eigenvalues this close to the largest, relative to it, count as equal: at a flattest minimum they often are, up
# to the accuracy of the search that found it. A gap below NEAR earns a remark.
MULTIPLE, NEAR = 1e-6, 1e-3
EQUAL = "eigenvalues equal up to 1e-6 or their own error, as is usual at a flattest minimum"
# A drift below this share of ||t|| counts as zero: the sharpness then exceeds that of the flattest point nearby by
# about the square of it.
DRIFT = 1e-4
# Curvatures of the sharpness below this share of the terms they are made of count as zero.
FLAT = 1e-8
# Relative residuals of the linear solve, and of the coarse one it is compared with.
SOLVE_TOLERANCE, COARSE_TOLERANCE = 1e-12, 1e-7
# Largest dimension for `check`, which forms the Jacobian of the 2-cycle.
CHECK_LIMIT = 1500
# Newton's corrections and the residual of a 2-cycle, relative to its amplitude; the largest that rounding excuses.
SETTLED, UNSETTLED = 1e-9, 1e-4
# Newton's method may start over from where it came to.
ATTEMPTS = 4
# The check iterates for this many times 1/excess steps, but no longer than LONGEST.
RELAXATIONS, LONGEST = 12, 200_000
# Where the check starts, in units of the amplitude.
INSIDE, OUTSIDE = 0.5, 1.5
PERTURBATION = 0.05


@dataclass(frozen=True, eq=False)
class FlipCoefficient:
    """How a minimum loses stability under gradient descent when the step size passes ``2 / sharpness``.

    Attributes
    ----------
    objective, theta
        The loss and its minimum, a flat vector of shape ``(dim,)``.
    kind
        ``'supercritical'`` (``b > 0``: a small attracting 2-cycle above the threshold), ``'subcritical'``
        (``b < 0``: an unstable 2-cycle below it, starts leave above), ``'degenerate'`` (the bracket of ``b``
        contains 0: terms of fifth order decide), ``'drifting'`` (``drifts``: whatever the sign of ``b``, the
        state moves along the manifold of minima and no small 2-cycle exists), ``'multiple'`` (the largest
        eigenvalue is multiple, as is usual at a flattest minimum: several directions lose stability at once and
        one number does not describe that).
    coefficient
        ``b``, in units of 1 / theta^2; the same for every multiple of the loss. ``None`` for ``'multiple'``. Its
        error covers the rounding of the derivatives (measured by moving ``theta`` by units in the last place), of
        the eigenvector (eigenvalue gap) and of the solve, and the distance of ``theta`` from the exact minimum.
    sharpness, step_size
        ``lam`` and the threshold ``2 / lam`` of this minimum.
    multiplicity
        The number of eigenvalues equal to the largest up to ``1e-6`` relative or their own error; 2 stands for 2
        or more without verification.
    gap
        ``1 - (next smaller eigenvalue) / lam``; predictions need ``|step_size lam - 2|`` well below it. 1 in one
        dimension.
    eigenvectors
        Orthonormal columns spanning the top eigenspace, shape ``(dim, multiplicity)``.
    bend
        ``H^+ t``, shape ``(dim,)``: the cycle is ``theta +- a q - a^2/2 bend + O(a^3)``. ``None`` for
        ``'multiple'``.
    sharpness_gradient
        The part of ``t`` in the kernel of ``H``, shape ``(dim,)``: the gradient of the sharpness along the
        manifold of minima. ``None`` for ``'multiple'``, where the sharpness has none.
    drift
        Its norm, with error; 0 if the minimum is isolated or at a critical point of the sharpness.
    drifts
        Whether the drift exceeds its error and ``1e-4 ||t||``, so that no small 2-cycle exists.
    sharpness_curvature
        Eigenvalues of the Hessian ``S`` of the sharpness along the manifold of minima, ascending, shape
        ``(nullity,)`` (status *computed*); ``None`` for ``'multiple'`` and without verification.
    curvature_error
        The absolute error of ``sharpness_curvature``, below which one counts as zero: ``1e-8`` of the terms it is
        made of, plus rounding of the third and fourth derivatives, amplified by the condition number of the
        nonzero Hessian eigenvalues. 0 if ``sharpness_curvature`` is ``None`` or empty.
    """

    objective: AbstractObjective = field(repr=False)
    theta: np.ndarray = field(repr=False)
    kind: Kind
    coefficient: Bracket | None
    sharpness: Bracket
    step_size: Bracket
    multiplicity: int
    gap: float
    eigenvectors: np.ndarray = field(repr=False)
    bend: np.ndarray | None = field(repr=False)
    sharpness_gradient: np.ndarray | None = field(repr=False)
    drift: Bracket | None
    drifts: bool
    sharpness_curvature: np.ndarray | None = field(repr=False)
    curvature_error: float = field(repr=False)

    @property
    def eigenvector(self) -> np.ndarray | None:
        """``q``, shape ``(dim,)``, its entry of largest modulus positive; ``None`` for ``'multiple'``."""
        return self.eigenvectors[:, 0] if self.multiplicity == 1 else None

    @property
    def neutral_dimension(self) -> int | None:
        """The number of directions along the manifold in which the sharpness is flat to second order.

        ``None`` where ``sharpness_curvature`` is.
        """
        if self.sharpness_curvature is None:
            return None
        return int(np.sum(np.abs(self.sharpness_curvature) <= self.curvature_error))

    def amplitude(self, step_size: Any) -> Any:
        """The predicted amplitude ``sqrt((step_size lam - 2) / b)`` of the 2-cycle about ``theta`` along ``q``.

        To leading order: the relative error is of the order of ``step_size lam - 2`` (`check` measures it). NaN
        where no small 2-cycle is predicted: below the threshold in the supercritical, above it in the subcritical
        case. An array of step sizes gives an array, a number gives a float.

        Raises
        ------
        ValueError
            For step sizes that are not positive and finite, and where no amplitude is predicted: `kind`
            ``'degenerate'``, ``'multiple'`` or ``'drifting'``.
        """
        b = self._predictive().value
        if np.ndim(step_size) == 0:
            step_size = checked_step_size(step_size)
        sizes = np.asarray(step_size, dtype=float)
        if not np.all(np.isfinite(sizes) & (sizes > 0)):
            raise ValueError(f"step sizes must be positive and finite, got {step_size!r}")
        squared = (sizes * self.sharpness.value - 2) / b
        with np.errstate(invalid="ignore"):
            result = np.sqrt(squared)
        return float(result) if result.ndim == 0 else result

    def check(self, excess: float = 1e-3) -> xr.Dataset:
        """The prediction against the map itself at ``|eta lam - 2| = excess`` and ``excess / 2``.

        *The 2-cycle* is refined by Newton's method from the predicted one, on the side of the threshold where it
        should exist: its amplitude (half the distance of its points) and its multipliers are measured. *Iteration*
        from ``theta + 0.5 a q`` and ``theta + 1.5 a q`` at that step size, and from the former on the other side
        of the threshold (each with a perturbation of 5 % in a random direction), shows where orbits go.

        Returns
        -------
        xarray.Dataset
            Over ``excess`` (two values, negative below the threshold): ``step_size``; ``converged`` (Newton found
            such a cycle; what is measured is NaN otherwise); ``amplitude``, ``predicted_amplitude``;
            ``multiplier``, ``predicted_multiplier`` (along the cycle); ``multipliers`` over ``mode`` (all, largest
            modulus first); ``predicted_flat_multipliers`` over ``flat`` (along the manifold of minima);
            ``points`` over ``point`` and ``parameter``; ``residual``, the norm of ``G(G(x)) - x``.
            Over ``run`` (inside, outside, other side): ``run_step_size``, ``steps``, ``final_amplitude`` (half the
            last step) and ``outcome``: ``'cycle'``, ``'minimum'`` (back to it, or to one next to it on the
            manifold), ``'away'`` or ``'undecided'``.
            Scalars: ``coefficient`` and ``measured_coefficient``, extrapolated to ``excess = 0`` from the two
            amplitudes, with ``measured_coefficient_error`` (*estimated*: the change by the extrapolation, plus
            ``excess^2`` and Newton's tolerance, relative).

        Raises
        ------
        ValueError
            Where no amplitude is predicted, see `amplitude`; for an excess outside ``[1e-7, 1)``; above 1500
            parameters, since the Jacobian of the cycle is dense.
        """
        b = self._predictive().value
        if not isinstance(excess, (int, float, np.floating)) or not 1e-7 <= excess < 1:
            raise ValueError(f"excess must lie in [1e-7, 1), got {excess!r}: it is |step_size * sharpness - 2|")
        if self.objective.dim > CHECK_LIMIT:
            raise ValueError(
                f"the check forms dense Jacobians: {self.objective.dim} parameters are above {CHECK_LIMIT}"
            )
        side = math.copysign(1.0, b)
        epsilon = side * np.array([excess, excess / 2])
        step_sizes = (2 + epsilon) / self.sharpness.value
        predicted = np.sqrt(epsilon / b)
        measured = _measured_cycles(self, step_sizes, predicted)
        runs = _iterated(self, side * float(excess), float(predicted[0]), float(measured.amplitude[0]))
        shares = b * measured.amplitude**2 / epsilon
        measured_b = b / (2 * shares[1] - shares[0])
        curvature = np.zeros(0) if self.sharpness_curvature is None else self.sharpness_curvature
        return xr.Dataset(
            {
                "step_size": ("excess", step_sizes),
                "converged": ("excess", measured.converged),
                "amplitude": ("excess", measured.amplitude),
                "predicted_amplitude": ("excess", predicted),
                "multiplier": ("excess", measured.along),
                "predicted_multiplier": ("excess", 1 - 4 * epsilon),
                "multipliers": (("excess", "mode"), measured.multipliers),
                "predicted_flat_multipliers": (
                    ("excess", "flat"),
                    1 - step_sizes[:, None] * (epsilon / b)[:, None] * curvature,
                ),
                "points": (("excess", "point", "parameter"), measured.points),
                "residual": ("excess", measured.residual),
                "run_step_size": ("run", runs.step_size),
                "steps": ("run", runs.steps),
                "final_amplitude": ("run", runs.final_amplitude),
                "outcome": ("run", runs.outcome),
                "coefficient": b,
                "measured_coefficient": measured_b,
                "measured_coefficient_error": abs(measured_b)
                * (abs(shares[0] - shares[1]) + excess**2 + 4 * SETTLED),
            },
            coords={"excess": epsilon, "run": ["inside", "outside", "other side"]},
            attrs={
                "status": "computed",
                "method": "Newton's method on the twice iterated map from the predicted cycle; plain iteration",
                "threshold": self.step_size.value,
                "kind": self.kind,
            },
        ).pipe(_described)

    def explain(self) -> str:
        """What happens just above the threshold, in a few sentences."""
        at = f"The minimum loses stability at step size {self.step_size}"
        if self.coefficient is None:
            return (
                f"{at}, in {self.multiplicity} directions at once: the largest Hessian eigenvalue has "
                f"multiplicity {self.multiplicity} ({EQUAL}). One flip coefficient does not describe this; which "
                "2-cycles appear, and whether they attract, depends on the cubic terms of all these directions "
                "together. At an isolated minimum a generic small change of the loss separates the eigenvalues; "
                "at the flattest of a manifold of minima it need not, where lowering one raises another."
            )
        b = self.coefficient
        if self.drift is not None and self.kind == "drifting":
            told = (
                f"{at}, but it is no critical point of the sharpness along the manifold of minima: the sharpness "
                f"has the slope {self.drift.value:.4g} there. Just above, the state oscillates and drifts along "
                "the manifold towards flatter minima, until the sharpness is below 2 / step size "
                f"(self-stabilisation at the edge of stability). The flip coefficient b = {b.value:.4g} does not "
                f"describe the long run; {self._elsewhere()}."
            )
        elif self.kind == "degenerate":
            told = (
                f"{at}. The flip coefficient {b} cannot be told from 0: terms of fifth order decide whether a "
                "small 2-cycle appears or the state jumps away. (A quadratic loss has none: above, every start "
                "diverges. A wide interval means that the loss is not four times differentiable here.)"
            )
        elif self.kind == "supercritical":
            told = (
                f"{at}, supercritically (flip coefficient b = {b.value:.6g}): just above, a small 2-cycle of "
                f"amplitude sqrt((step_size * {self.sharpness.value:.6g} - 2) / {b.value:.6g}) appears about it "
            )
            if self.is_saddle_of_sharpness:
                told += (
                    "which attracts along the top eigenvector, but not along the manifold of minima: the "
                    "sharpness is stationary there, not smallest, and the state drifts towards flatter minima."
                )
            else:
                told += "and attracts starts near it; the loss no longer converges but stays near its minimum."
            if self.neutral_dimension and self.sharpness_curvature is not None:
                flat, size = self.neutral_dimension, self.sharpness_curvature.size
                where = "" if flat == size else f" in {flat} of {size} directions"
                told += (
                    f" The sharpness is flat along the manifold of minima{where} to second order, up to "
                    f"{self.curvature_error:.2g}: there the cycle neither attracts nor repels to this order."
                )
            if self.sharpness_curvature is None:
                told += " (If minima form a manifold: whether it also attracts along that was not computed.)"
        else:
            told = (
                f"{at}, subcritically (flip coefficient b = {b.value:.6g}): just above, starts near it jump away, "
                "to an attractor elsewhere or to infinity. Just below, an unstable 2-cycle of amplitude "
                f"sqrt((2 - step_size * {self.sharpness.value:.6g}) / {-b.value:.6g}) surrounds it, and starts "
                "farther out than that along the top eigenvector leave."
            )
        if self.gap < NEAR:
            told += (
                f" The next eigenvalue is smaller by a share of {self.gap:.2g} only: what is said here holds "
                "while step_size * sharpness - 2 is well below that."
            )
        return told

    @property
    def is_saddle_of_sharpness(self) -> bool:
        """Whether the sharpness has a negative curvature along the manifold of minima."""
        curvature = self.sharpness_curvature
        return curvature is not None and curvature.size > 0 and bool(curvature[0] < -self.curvature_error)

    def _elsewhere(self) -> str:
        """Where one coefficient may describe the flip of a drifting minimum."""
        if self.gap < NEAR:
            return (
                f"the two largest eigenvalues differ by a share of {self.gap:.2g} only, and if they meet at the "
                "flattest minimum, as is usual, no single coefficient describes it there either"
            )
        return "one may at the flattest minimum, if its largest eigenvalue is simple"

    def _predictive(self) -> Bracket:
        if self.coefficient is None:
            raise ValueError(
                "no amplitude is predicted: the largest eigenvalue has multiplicity "
                f"{self.multiplicity} ({EQUAL}), see explain()"
            )
        if self.kind == "drifting":
            raise ValueError(
                "no amplitude is predicted: the sharpness has a slope along the manifold of minima, so there is "
                f"no small 2-cycle about this minimum; {self._elsewhere()}, see explain()"
            )
        if self.kind == "degenerate":
            raise ValueError("no amplitude is predicted: the flip coefficient is 0 up to its error, see explain()")
        return self.coefficient


def flip_coefficient(objective: AbstractObjective, theta: Any, *, verify: bool = True) -> FlipCoefficient:
    """The flip coefficient ``b`` of gradient descent at a minimum: what happens just above ``2 / sharpness``.

    ``b = eta ( <t, H^+ t>/2 - L''''[q,q,q,q]/6 )`` with ``eta = 2/lam``, ``H q = lam q`` the top eigenpair and
    ``t = L'''[q,q,.]``; ``xi -> -(1 + eps) xi + b xi^3`` along ``q``, ``eps = step_size lam - 2``. ``b > 0``: a
    small attracting 2-cycle of amplitude ``sqrt(eps / b)`` and multiplier ``1 - 4 eps`` above the threshold;
    ``b < 0``: an unstable one below it. In one dimension ``b`` has the sign of ``3 L'''^2 - L'' L''''``
    (arXiv:2206.04172). On a manifold of minima ``H^+`` is the pseudo-inverse, and ``b`` is right where the
    sharpness is stationary along the manifold (`FlipCoefficient.drift` is 0); elsewhere the state drifts towards
    flatter minima. No correction by the kernel arises at this order.

    Third and fourth derivatives are directional ones (nested forward mode over the gradient), in float64.

    Parameters
    ----------
    objective
        The loss; four times continuously differentiable near ``theta``.
    theta
        A minimum, shape ``(dim,)``.
    verify
        Whether to show first that ``theta`` is a minimum (`gdmap.minima.verified_minimum`, which also refines
        it); the Hessian is then dense. ``False`` takes it on trust and uses products with the Hessian only
        (Lanczos for the two largest eigenvalues, MINRES for the solve), for large models: the status is then
        *estimated*, the error that of the iterations (not that of ``theta``; a gradient that cannot be a minimum's
        is refused), and the curvature of the sharpness is not computed.

    Returns
    -------
    FlipCoefficient
        With `FlipCoefficient.check` to compare the prediction with the map itself.

    Raises
    ------
    ValueError
        If ``theta`` is not a minimum, the Hessian vanishes there (no step size makes it unstable to first order),
        or the derivatives are not finite.
    TypeError
        If ``objective`` is no gdmap objective.

    Notes
    -----
    Source: Kuznetsov, Elements of Applied Bifurcation Theory, section 5.4 (the normal form of flips); the form for
    gradient descent, the singular case and the curvature of the sharpness are derived at the head of this module.
    """
    if not isinstance(objective, AbstractObjective):
        raise TypeError(f"objective must be a gdmap objective such as Function(f, dim), got {objective!r}")
    theta = np.asarray(theta, dtype=float)
    objective.checked(theta)
    if not np.all(np.isfinite(theta)):
        raise ValueError("theta holds values that are not finite")
    return _verified(objective, theta) if verify else _matrix_free(objective, theta)


class AlongTop(eqx.Module):
    """``(theta, q) -> L'''[q, q, .], L''''[q, q, q, .]`` by nested forward mode."""

    objective: AbstractObjective

    def __call__(self, theta: Any, q: Any) -> tuple[Any, Any]:
        """Both vectors."""
        second = _along(_along(jax.grad(self.objective.evaluate), q), q)
        return jax.jvp(second, (theta,), (q,))


class ThirdDerivative(eqx.Module):
    """``(theta, u, v) -> L'''[u, v, .]``."""

    objective: AbstractObjective

    def __call__(self, theta: Any, u: Any, v: Any) -> Any:
        """The mixed third derivative, a vector."""
        return _along(_along(jax.grad(self.objective.evaluate), u), v)(theta)


class AcrossManifold(eqx.Module):
    """``(theta, q, bend, k) -> L''''[q, q, k, .], L'''[bend, k, .], L'''[q, k, .]`` for a kernel vector ``k``."""

    objective: AbstractObjective

    def __call__(self, theta: Any, q: Any, bend: Any, k: Any) -> tuple[Any, Any, Any]:
        """The derivatives that make up one column of the Hessian of the sharpness."""
        gradient = jax.grad(self.objective.evaluate)
        once = _along(gradient, q)
        fourth = _along(_along(once, q), k)(theta)
        return fourth, _along(_along(gradient, bend), k)(theta), _along(once, k)(theta)


class Repeated(eqx.Module):
    """``(step_size, theta) -> theta`` after ``steps`` updates and after one more."""

    family: StepSizeFamily

    def __call__(self, step_size: Any, theta: Any, steps: Any) -> tuple[Any, Any]:
        """The last two states."""
        last = jax.lax.fori_loop(0, steps, lambda _, state: self.family.step(step_size, state), theta)
        return last, self.family.step(step_size, last)


def _along(function: Callable[[Any], Any], direction: Any) -> Callable[[Any], Any]:
    return lambda point: jax.jvp(function, (point,), (direction,))[1]


def _one(function: Callable[..., Any], *arguments: np.ndarray) -> Any:
    """``function`` compiled and evaluated once."""
    result = on_lanes(function, tuple(np.asarray(argument)[None] for argument in arguments), 1)
    return jax.tree.map(lambda array: array[0], result)


class NormalForm(NamedTuple):
    """``b`` and what it is made of, at one point."""

    coefficient: float
    q: np.ndarray
    t: np.ndarray
    bend: np.ndarray
    kernel_part: np.ndarray
    fourth: np.ndarray


def _normal_form(
    objective: AbstractObjective, theta: np.ndarray, eigenvalues: np.ndarray, V: np.ndarray, nullity: int
) -> NormalForm:
    q = _oriented(V[:, -1])
    t, fourth = _derivatives(objective, theta, q)
    tangent, normal = V[:, :nullity], V[:, nullity:]
    bend = normal @ ((normal.T @ t) / eigenvalues[nullity:])
    b = _coefficient(eigenvalues[-1], t @ bend, fourth @ q)
    return NormalForm(b, q, t, bend, tangent @ (tangent.T @ t), fourth)


def _derivatives(objective: AbstractObjective, theta: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    t, fourth = _one(AlongTop(objective), theta, q)
    if not np.all(np.isfinite(t) & np.isfinite(fourth)):
        raise ValueError(
            "the third or fourth derivative is not finite at theta: the flip coefficient needs a loss that is "
            "four times differentiable there"
        )
    return t, fourth


def _coefficient(sharpness: float, quadratic: float, fourth: float) -> float:
    return float(2 / sharpness * (quadratic / 2 - fourth / 6))


def _oriented(vector: np.ndarray) -> np.ndarray:
    return vector * np.copysign(1.0, vector[np.argmax(np.abs(vector))])


def _verified(objective: AbstractObjective, theta: np.ndarray) -> FlipCoefficient:
    minimum = verified_minimum(objective, theta)
    theta = np.asarray(minimum.theta, dtype=float)
    eigenvalues, V, nullity = minimum.eigenvalues, minimum.eigenvectors, minimum.nullity
    if nullity == objective.dim:
        raise ValueError(
            "the Hessian vanishes at this minimum: its sharpness is 0 and no step size makes it unstable to first "
            "order"
        )
    sharpness = minimum.sharpness
    top, unit = float(eigenvalues[-1]), _unit(objective)
    resolution = max(MULTIPLE * top, sharpness.upper - sharpness.lower, unit * top)
    multiplicity = int(np.sum(eigenvalues >= top - resolution))
    below = float(eigenvalues[-multiplicity - 1]) if multiplicity < objective.dim else 0.0
    gap = 1 - below / top
    if multiplicity > 1:
        return _multiple(objective, theta, sharpness, gap, V[:, -multiplicity:][:, ::-1])
    normal = V[:, nullity:]
    here = _normal_form(objective, theta, eigenvalues, V, nullity)
    around = [
        _normal_form(objective, point, *np.linalg.eigh(objective.hessian(point)), nullity)
        for point in _nearby(objective, theta, eigenvalues[nullity:], normal)
    ]
    b = here.coefficient
    error = unit * _rounding(here, eigenvalues[nullity:], normal)
    error += unit / gap * float(np.linalg.norm(_sensitivity(objective, theta, here, top)))
    error += 4 * max(abs(other.coefficient - b) for other in around)
    # A third derivative that jumps leaves b alone where it only changes its sign; it is not to be trusted then.
    jump = max(float(np.linalg.norm(other.t - here.t)) for other in around)
    error += 2 / top * jump * float(np.linalg.norm(here.bend))
    coefficient = Bracket(
        b, b - error, b + error, "computed", "directional third and fourth derivatives, dense eigendecomposition"
    )
    slope, drift_error = float(np.linalg.norm(here.kernel_part)), 0.0
    if nullity:
        drift_error = unit * float(np.linalg.norm(here.t)) * float(top / eigenvalues[nullity])
        drift_error += 4 * max(float(np.linalg.norm(other.kernel_part - here.kernel_part)) for other in around)
    drift = Bracket(
        slope, max(slope - drift_error, 0.0), slope + drift_error, "computed", "kernel part of L'''[q, q, .]"
    )
    curvature, curvature_error = _sharpness_curvature(objective, theta, here, eigenvalues, V, nullity)
    return _simple(objective, theta, sharpness, gap, here, coefficient, drift, curvature, curvature_error)


def _unit(objective: AbstractObjective) -> float:
    """The relative rounding error of sums over the parameters and of a few operations."""
    return (objective.dim + 8) * float(np.finfo(float).eps)


def _simple(
    objective: AbstractObjective,
    theta: np.ndarray,
    sharpness: Bracket,
    gap: float,
    form: NormalForm,
    coefficient: Bracket,
    drift: Bracket,
    curvature: np.ndarray | None,
    curvature_error: float,
) -> FlipCoefficient:
    drifts = drift.lower > 0 and drift.value > DRIFT * float(np.linalg.norm(form.t))
    kind: Kind = "supercritical" if coefficient.value > 0 else "subcritical"
    if drifts:
        kind = "drifting"
    elif coefficient.lower <= 0 <= coefficient.upper:
        kind = "degenerate"
    return FlipCoefficient(
        objective=objective,
        theta=theta,
        kind=kind,
        coefficient=coefficient,
        sharpness=sharpness,
        step_size=sharpness.reciprocal(2.0, "2 / sharpness"),
        multiplicity=1,
        gap=gap,
        eigenvectors=form.q[:, None],
        bend=form.bend,
        sharpness_gradient=form.kernel_part,
        drift=drift,
        drifts=drifts,
        sharpness_curvature=curvature,
        curvature_error=curvature_error,
    )


def _multiple(
    objective: AbstractObjective, theta: np.ndarray, sharpness: Bracket, gap: float, basis: np.ndarray
) -> FlipCoefficient:
    return FlipCoefficient(
        objective=objective,
        theta=theta,
        kind="multiple",
        coefficient=None,
        sharpness=sharpness,
        step_size=sharpness.reciprocal(2.0, "2 / sharpness"),
        multiplicity=basis.shape[1],
        gap=gap,
        eigenvectors=basis,
        bend=None,
        sharpness_gradient=None,
        drift=None,
        drifts=False,
        sharpness_curvature=None,
        curvature_error=0.0,
    )


def _nearby(
    objective: AbstractObjective, theta: np.ndarray, eigenvalues: np.ndarray, normal: np.ndarray
) -> list[np.ndarray]:
    """Points that cannot be told from ``theta``: a Newton step away, and units in the last place away."""
    gradient = objective.gradient(theta)
    newton = theta - normal @ ((normal.T @ gradient) / eigenvalues)
    ulp = np.maximum(np.spacing(np.abs(theta)), np.finfo(float).tiny)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], len(theta))
    return [newton, theta + signs * ulp, theta - signs * ulp]


def _rounding(form: NormalForm, eigenvalues: np.ndarray, normal: np.ndarray) -> float:
    """What a relative error of 1 in Hessian and derivatives does to ``b``."""
    top = float(eigenvalues[-1])
    quadratic = float(np.sum((normal.T @ form.t) ** 2 * (top / eigenvalues) / eigenvalues))
    return 2 / top * (quadratic / 2 + abs(float(form.fourth @ form.q)) / 6)


def _sensitivity(
    objective: AbstractObjective, theta: np.ndarray, form: NormalForm, sharpness: float
) -> np.ndarray:
    """The gradient of ``b`` with respect to ``q`` on the unit sphere."""
    third = _one(ThirdDerivative(objective), theta, form.q, form.bend)
    gradient = 2 / sharpness * (2 * third - 2 / 3 * form.fourth)
    return gradient - (gradient @ form.q) * form.q


def _sharpness_curvature(
    objective: AbstractObjective,
    theta: np.ndarray,
    form: NormalForm,
    eigenvalues: np.ndarray,
    V: np.ndarray,
    nullity: int,
) -> tuple[np.ndarray, float]:
    """The eigenvalues of the Hessian ``S`` of the sharpness along the manifold, and what counts as zero."""
    if nullity == 0:
        return np.zeros(0), 0.0
    K, others = V[:, :nullity], V[:, :-1]
    lanes = [np.broadcast_to(vector, (nullity, objective.dim)) for vector in (theta, form.q, form.bend)]
    fourth, bent, third = on_lanes(
        AcrossManifold(objective), (*lanes, np.ascontiguousarray(K.T)), block_size(64 * objective.dim, 16)
    )
    mixed = third @ others
    terms = (fourth @ K, -bent @ K, 2 * (mixed / (eigenvalues[-1] - eigenvalues[:-1])) @ mixed.T)
    S = terms[0] + terms[1] + terms[2]
    scale = sum(float(np.linalg.norm(term, 2)) for term in terms)
    # The terms may all vanish, as by symmetry: their rounding is that of the derivatives before projection, and of
    # the kernel, which is known up to a tilt by the condition number in units of rounding.
    natural = abs(float(form.fourth @ form.q)) + abs(float(form.t @ form.bend))
    natural += sum(float(np.linalg.norm(array, 2)) for array in (fourth, bent))
    rounding = _unit(objective) * float(eigenvalues[-1] / eigenvalues[nullity]) * natural
    return np.linalg.eigvalsh((S + S.T) / 2), FLAT * scale + rounding


def _matrix_free(objective: AbstractObjective, theta: np.ndarray) -> FlipCoefficient:
    operator = hessian_operator(objective, theta)
    top = extreme_eigenvalues(operator, "largest", min(2, objective.dim))
    lam = float(top.values[0])
    radius = float(top.radii[0]) + top.rounding
    slope, size = float(np.linalg.norm(objective.gradient(theta))), float(np.linalg.norm(theta)) or 1.0
    if slope > NEARBY * lam * size and lam > radius:
        raise ValueError(
            f"theta is no minimum: the gradient norm there is {slope:.3g}, with a sharpness of {lam:.3g}; "
            "gdmap.find_minimum(objective, theta) looks for one"
        )
    if lam <= radius:
        raise ValueError(
            f"the largest Hessian eigenvalue at theta is {lam:.3g}, not positive: either this is no minimum, or "
            "its Hessian vanishes"
        )
    words = "dense" if top.is_dense else f"Lanczos, {top.products} products"
    if not top.converged:
        words += ", NOT CONVERGED"
    status: Status = "estimated"
    sharpness = Bracket(lam, lam - top.rounding, lam + radius, status, f"{words}; the minimum is taken on trust")
    gap = 1 - float(top.values[1]) / lam if objective.dim > 1 else 1.0
    if gap * lam <= max(MULTIPLE * lam, 2 * float(top.radii.max()) + 2 * top.rounding):
        return _multiple(objective, theta, sharpness, gap, top.vectors.T)
    q = _oriented(top.vectors[0])
    t, fourth = _derivatives(objective, theta, q)
    coarse, fine = (
        _solved(operator, lam, q, t, fourth, tolerance) for tolerance in (COARSE_TOLERANCE, SOLVE_TOLERANCE)
    )
    b, unit = fine.coefficient, _unit(objective)
    turned = (unit + float(top.residuals[0]) / lam) / gap
    error = turned * float(np.linalg.norm(_sensitivity(objective, theta, fine, lam)))
    error += abs(b - coarse.coefficient)
    error += unit * 2 / lam * (abs(float(t @ fine.bend)) / 2 + abs(float(fourth @ q)) / 6)
    coefficient = Bracket(b, b - error, b + error, status, f"directional derivatives, {words}, MINRES")
    slope = float(np.linalg.norm(fine.kernel_part))
    drift_error = abs(slope - float(np.linalg.norm(coarse.kernel_part)))
    drift_error += (SOLVE_TOLERANCE + turned) * float(np.linalg.norm(t))
    drift = Bracket(
        slope, max(slope - drift_error, 0.0), slope + drift_error, status, "what MINRES leaves of L'''[q, q, .]"
    )
    return _simple(objective, theta, sharpness, gap, fine, coefficient, drift, None, 0.0)


def _solved(
    operator: Any, lam: float, q: np.ndarray, t: np.ndarray, fourth: np.ndarray, tolerance: float
) -> NormalForm:
    """The normal form with ``H^+ t`` from MINRES, in two systems that are solvable whatever the kernel of ``H``.

    ``H n = H t`` gives the normal part ``n`` of ``t`` (the Krylov space lies in the range of ``H``), what is left
    is the kernel part; then ``H x = n``.
    """

    def solve(right: np.ndarray) -> np.ndarray:
        if not np.any(right):
            return np.zeros(len(t))
        return minres(operator, right, rtol=tolerance, maxiter=max(5 * len(t), 1000))[0]

    normal = solve(operator.matvec(t))
    bend = solve(normal)
    return NormalForm(_coefficient(lam, bend @ normal, fourth @ q), q, t, bend, t - normal, fourth)


class MeasuredCycles(NamedTuple):
    """2-cycles as found by Newton's method, one per row."""

    converged: np.ndarray
    amplitude: np.ndarray
    along: np.ndarray
    multipliers: np.ndarray
    points: np.ndarray
    residual: np.ndarray


def _measured_cycles(flip: FlipCoefficient, step_sizes: np.ndarray, amplitudes: np.ndarray) -> MeasuredCycles:
    q, bend = flip.eigenvectors[:, 0], flip.bend
    assert bend is not None
    guess = flip.theta + amplitudes[:, None] * q - amplitudes[:, None] ** 2 / 2 * bend
    neutral = flip.neutral_dimension
    family = StepSizeFamily(flip.objective, GradientDescent)
    tolerance = _newton_tolerance(flip, step_sizes, amplitudes)
    for _ in range(ATTEMPTS):
        cycles = refine_cycles(
            family,
            step_sizes,
            guess,
            2,
            tolerance / CONVERGED,
            None if neutral is None else np.full(len(step_sizes), neutral),
        )
        if cycles.converged.all() or not np.all(np.isfinite(cycles.points)):
            break
        guess = cycles.points[:, 0]
    amplitude = np.linalg.norm(cycles.points[:, 1] - cycles.points[:, 0], axis=1) / 2
    residual = np.linalg.norm(cycles.defect, axis=1)
    # Along neutral directions the defect was not corrected: it must vanish by itself.
    noise = 64 * np.finfo(float).eps * (np.linalg.norm(flip.theta) + amplitude)
    near = (amplitude > amplitudes / 3) & (amplitude < 3 * amplitudes)
    converged = cycles.converged & near & (residual <= SETTLED * amplitude + noise)
    along, multipliers = [], []
    for jacobian in cycles.jacobian:
        values, vectors = np.linalg.eig(np.where(np.isfinite(jacobian), jacobian, 0.0))
        order = np.argsort(-np.abs(values), kind="stable")
        multipliers.append(values[order])
        along.append(values[np.argmax(np.abs(q @ vectors))].real)
    return MeasuredCycles(
        converged,
        np.where(converged, amplitude, np.nan),
        np.where(converged, along, np.nan),
        np.where(converged[:, None], multipliers, np.nan),
        np.where(converged[:, None, None], cycles.points, np.nan),
        residual,
    )


def _newton_tolerance(flip: FlipCoefficient, step_sizes: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
    """How small Newton's corrections become.

    The twice iterated map differs from the identity by 4 excesses along the cycle, and by less along a manifold of
    minima where the sharpness is nearly flat; rounding is amplified by the reciprocal of that.
    """
    rates = [4 * np.abs(step_sizes * flip.sharpness.value - 2)]
    if flip.sharpness_curvature is not None:
        curved = np.abs(flip.sharpness_curvature)
        rates += [step_sizes * amplitudes**2 * curvature for curvature in curved[curved > flip.curvature_error]]
    noise = 64 * np.finfo(float).eps * (np.linalg.norm(flip.theta) + amplitudes)
    return np.clip(noise / np.min(rates, axis=0), SETTLED * amplitudes, UNSETTLED * amplitudes)


class Runs(NamedTuple):
    """Where plain iteration ended."""

    step_size: np.ndarray
    steps: np.ndarray
    final_amplitude: np.ndarray
    outcome: np.ndarray


def _iterated(flip: FlipCoefficient, epsilon: float, predicted: float, amplitude: float) -> Runs:
    q = flip.eigenvectors[:, 0]
    noise = np.random.default_rng(0).standard_normal((3, flip.objective.dim))
    noise *= PERTURBATION * predicted / np.linalg.norm(noise, axis=1, keepdims=True)
    starts = flip.theta + predicted * np.array([INSIDE, OUTSIDE, INSIDE])[:, None] * q + noise
    step_size = (2 + epsilon * np.array([1.0, 1.0, -1.0])) / flip.sharpness.value
    steps = np.full(3, min(math.ceil(RELAXATIONS / abs(epsilon)), LONGEST))
    family = StepSizeFamily(flip.objective, GradientDescent)
    last, after = on_lanes(Repeated(family), (step_size, starts, steps), 1)
    with np.errstate(invalid="ignore", over="ignore"):
        final = np.linalg.norm(after - last, axis=1) / 2
        far = np.linalg.norm(last - flip.theta, axis=1)
    outcome = np.full(3, "undecided", dtype="<U9")
    outcome[~(far <= 3 * predicted) | (final > 2 * predicted)] = "away"
    outcome[np.abs(final - amplitude) <= 1e-2 * amplitude] = "cycle"
    outcome[final <= 1e-3 * predicted] = "minimum"
    return Runs(step_size, steps, final, outcome)


LONG_NAMES = {
    "excess": "step_size * sharpness - 2",
    "step_size": "step size of the 2-cycle",
    "converged": "whether Newton's method found the 2-cycle",
    "amplitude": "half the distance of the points of the 2-cycle",
    "predicted_amplitude": "sqrt(excess / coefficient)",
    "multiplier": "multiplier of the 2-cycle along itself",
    "predicted_multiplier": "1 - 4 excess",
    "multipliers": "all multipliers of the 2-cycle, largest modulus first",
    "predicted_flat_multipliers": "1 - step_size (excess / coefficient) sharpness_curvature",
    "points": "points of the 2-cycle",
    "residual": "norm of G(G(x)) - x",
    "run_step_size": "step size of the run",
    "steps": "updates made",
    "final_amplitude": "half the length of the last step",
    "outcome": "where the run went",
    "coefficient": "flip coefficient b",
    "measured_coefficient": "flip coefficient extrapolated from the two amplitudes",
    "measured_coefficient_error": "change by the extrapolation, plus excess^2 and Newton's tolerance",
}


def _described(dataset: xr.Dataset) -> xr.Dataset:
    for name, text in LONG_NAMES.items():
        dataset[name].attrs["long_name"] = text
        if name in ("measured_coefficient", "measured_coefficient_error"):
            dataset[name].attrs["status"] = "estimated"
        elif name.startswith("predicted") or name.endswith("predicted"):
            dataset[name].attrs["status"] = "computed to leading order"
    return dataset

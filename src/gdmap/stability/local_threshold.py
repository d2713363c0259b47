"""The largest step size at which one minimum is stable under one optimiser."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from scipy.optimize import brentq
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

from gdmap.bracket import Bracket
from gdmap.engines.precision import float64, for_tracing
from gdmap.engines.xla import compiled
from gdmap.maps import GradientDescent, Map, Optimiser, RandomMap
from gdmap.maps.optimiser import STEP_SIZE, is_derivative, no_derivative
from gdmap.minima.minimum import Minimum, checked_point, verified_minimum
from gdmap.objectives import AbstractObjective
from gdmap.spectra import sharpness as largest_curvature

# Dense Jacobians up to this many state components.
DENSE_LIMIT = 400
# Krylov spaces of 60 vectors need more components than that.
ARPACK_FROM = 100
# A multiplier this far outside the unit circle has left it for certain; this close below, it never contracts.
MARGIN = 1e-10
NEUTRAL = 1e-13
# The scan: from this share of the natural scale to that multiple of it, by this factor.
SCAN_FROM, SCAN_TO, SCAN_FACTOR = 1e-2, 1e6, 1.25
SMALLEST_SHARE = 1e-12
SETTLING_STEPS = 10_000
SETTLED = 1e-14


def local_threshold(
    map_or_objective: Map | AbstractObjective, theta: Any, *, parameter: str = STEP_SIZE, verify: bool = True
) -> Bracket:
    """The largest step size for which the minimum ``theta`` is linearly stable; its own step size does not matter.

    For gradient descent ``2 / lambda_max(H)``, the sharpness with its error. For an `Optimiser` the first value of
    its learning rate, coming from 0, at which a multiplier of the full Jacobian on (parameters, optimiser state),
    at the state that is fixed over ``theta``, leaves the unit circle. Directions along a manifold of minima have
    multiplier exactly 1 and do not count, nor do components of the optimiser's state that a vanishing gradient
    leaves alone. Known cases: heavy ball ``2 (1 + beta) / lambda``, Nesterov
    ``(2 + 2 beta) / ((1 + 2 beta) lambda)``, exponential averages with frozen preconditioner ``P``
    ``(2 + 2 beta) / ((1 - beta) lambda)`` with ``lambda`` of ``P^{-1} H``. This goes beyond
    arXiv:2402.13108, which treats plain GD with fixed step.

    Parameters
    ----------
    map_or_objective
        An objective or `GradientDescent` (plain gradient descent), or an `Optimiser`.
    theta
        The minimum, a flat vector of shape ``(dim,)``.
    parameter
        The keyword of the optimiser that is raised from 0; a floating one other than the step size will do.
    verify
        Check that ``theta`` is a minimum with `gdmap.minima.verified_minimum`, which also finds the directions
        along a manifold. Without it (models too large for a dense Hessian) ``theta`` is believed, and the
        Jacobian is only multiplied with vectors.

    Returns
    -------
    Bracket
        Status *computed*: floating point, with the error of the root and of the sharpness, to first order. A
        dense computation scans upward by factors of 1.25 before it closes in, and a second crossing between two
        points of the scan would be missed. ``inf`` with status *computed* if the multipliers do not depend on
        the parameter, with status *estimated* (and the largest value tried as ``lower``) if no crossing was found;
        0 (*estimated*) if it is unstable at every value tried.

    Raises
    ------
    ValueError
        If ``theta`` is not a minimum, or no fixed point of the optimiser (weight decay moves it: add the decay
        to the objective instead); if the map depends on time; or where the update has no derivative.
    """
    objective = map_or_objective.objective if isinstance(map_or_objective, Map) else map_or_objective
    if isinstance(map_or_objective, RandomMap):
        raise TypeError(
            "under random batches there are two thresholds, almost sure and in mean square: "
            "gdmap.almost_sure_threshold and gdmap.mean_square_threshold"
        )
    if not isinstance(objective, AbstractObjective):
        raise TypeError(f"expected an objective, GradientDescent or Optimiser, got {map_or_objective!r}")
    theta = checked_point(objective, theta)
    minimum = verified_minimum(objective, theta) if verify else None
    curvature = minimum.sharpness if minimum is not None else largest_curvature(objective, theta)
    if not isinstance(map_or_objective, Map) or isinstance(map_or_objective, GradientDescent):
        if parameter not in (STEP_SIZE, "step_size"):
            raise ValueError(f"gradient descent has no parameter {parameter!r}, only its step size")
        return of_gradient_descent(curvature)
    if not isinstance(map_or_objective, Optimiser):
        raise TypeError(
            f"local_threshold knows GradientDescent and Optimiser, not {type(map_or_objective).__name__}"
        )
    map_ = ready(map_or_objective, parameter)
    if minimum is not None and map_.state_dim <= DENSE_LIMIT:
        return Dense(map_, parameter, minimum).threshold()
    return matrix_free_threshold(map_, parameter, theta if minimum is None else minimum.theta, curvature)


def of_gradient_descent(curvature: Bracket) -> Bracket:
    """``2 / lambda_max`` with the error of the sharpness."""
    if curvature.value <= 0:
        raise ValueError(
            f"the largest Hessian eigenvalue is {curvature.value:.3g}: no direction is curved upward, so no step "
            "size makes theta unstable to first order, and none can be called its threshold"
        )
    method = f"2 / sharpness; {curvature.method}"
    positive = dataclasses.replace(curvature, lower=max(curvature.lower, 0.0))
    return positive.reciprocal(2.0, method)


def ready(map_: Optimiser, parameter: str) -> Optimiser:
    """The optimiser with ``parameter`` among its traceable keywords, or an error."""
    if map_.depends_on_time:
        raise ValueError(
            "this optimiser depends on time, so it has no multipliers: use Optimiser(..., limit=True) for its "
            "late-time stability, or schedule_stability for a finite schedule"
        )
    keywords = map_.keywords
    if callable(keywords.get(parameter)):
        raise ValueError(
            f"{parameter} is a schedule: give a number, Optimiser(..., {parameter}=0.1); its value does not matter"
        )
    if (
        parameter in keywords
        and isinstance(keywords[parameter], int)
        and not isinstance(keywords[parameter], bool)
    ):
        map_ = map_.with_keywords(**{parameter: float(keywords[parameter])})
    if parameter not in map_.floats or np.ndim(map_.floats[parameter]) != 0:
        numbers = [name for name, value in map_.floats.items() if np.ndim(value) == 0]
        raise ValueError(
            f"the optimiser has no floating keyword {parameter!r}; it has {', '.join(numbers) or 'none'}"
        )
    return map_


class FixedState(eqx.Module):
    """The state over ``theta`` that a vanishing gradient leaves alone, for a value of the parameter."""

    map: Optimiser
    parameter: str = eqx.field(static=True)
    theta: Any

    def at(self, value: Any) -> Optimiser:
        """The map at a value of the parameter."""
        return self.map.with_floats(**{self.parameter: value})

    def __call__(self, value: Any) -> tuple[Any, Any]:
        """The state after the optimiser's own part has settled, and what one more update changes."""
        map_, dim = self.at(value), self.theta.shape[0]

        def step(state: Any) -> Any:
            return map_.update_given(state, jnp.zeros_like(self.theta), 0)

        def unfinished(carry: Any) -> Any:
            state, change, steps = carry
            return (steps < SETTLING_STEPS) & (change > SETTLED * jnp.max(jnp.abs(state), initial=1e-300))

        def settle(carry: Any) -> Any:
            state, _, steps = carry
            moved = jnp.concatenate([self.theta, step(state)[dim:]])
            return moved, jnp.max(jnp.abs(moved - state)), steps + 1

        start = (map_.initial_state(self.theta), jnp.asarray(jnp.inf), jnp.asarray(0))
        state = jax.lax.while_loop(unfinished, settle, start)[0]
        return state, step(state) - state


class DenseJacobian(eqx.Module):
    """The Jacobian at the fixed state, the gradient being ``H (x - theta)``: exactly zero at the minimum."""

    fixed: FixedState
    hessian: Any

    def __call__(self, value: Any) -> tuple[Any, Any, Any]:
        """Jacobian, fixed state and its defect."""
        state, defect = self.fixed(value)
        map_, theta = self.fixed.at(value), self.fixed.theta

        def update(state: Any) -> Any:
            return map_.update_given(state, self.hessian @ (state[: theta.shape[0]] - theta), 0)

        return jax.jacfwd(update)(state), state, defect


def check_fixed(state: np.ndarray, defect: np.ndarray, dim: int) -> None:
    """Refuse a state that the optimiser moves although the gradient vanishes."""
    size = np.abs(state[:dim]).max(initial=0.0)
    if np.abs(defect[:dim]).max(initial=0.0) > 8 * np.finfo(float).eps * size:
        raise ValueError(
            "theta is not a fixed point of this map: the optimiser moves it where the gradient vanishes. Weight "
            "decay does that; put the decay into the objective and find the minimum of the sum"
        )
    rest = np.abs(state[dim:]).max(initial=0.0)
    if not np.abs(defect[dim:]).max(initial=0.0) <= 1e-9 * max(rest, 1e-300):
        raise ValueError("the optimiser's state does not settle while the gradient vanishes, so nothing is fixed")


def check_derivative(map_: Optimiser, jacobian: np.ndarray) -> None:
    """Refuse Jacobians that do not exist."""
    if not is_derivative(jacobian):
        raise ValueError(no_derivative(map_))


class Dense:
    """The threshold from dense Jacobians on the space across the neutral directions."""

    def __init__(self, map_: Optimiser, parameter: str, minimum: Minimum) -> None:
        self.map, self.parameter, self.minimum = map_, parameter, minimum
        normal, curved = minimum.normal_basis, minimum.eigenvalues[minimum.nullity :]
        self.jacobian_at = for_tracing(
            DenseJacobian(FixedState(map_, parameter, minimum.theta), (normal * curved) @ normal.T)
        )
        self.unit = float(map_.keywords[parameter])
        self.basis = self.basis_across_neutral()

    def jacobian(self, value: float) -> np.ndarray:
        """The full Jacobian, checked."""
        with float64():
            jacobian, state, defect = map(np.asarray, compiled(self.jacobian_at, (np.asarray(value),)))
        check_fixed(state, defect, self.minimum.theta.size)
        check_derivative(self.map, jacobian)
        return jacobian

    def reduced(self, value: float) -> np.ndarray:
        """The Jacobian modulo the neutral directions."""
        return self.basis.T @ self.jacobian(value) @ self.basis

    def basis_across_neutral(self) -> np.ndarray:
        """Orthonormal columns across the directions that two Jacobians, of different parameters, leave fixed."""
        dim, total = self.minimum.theta.size, self.map.state_dim
        jacobians = [self.jacobian(value) for value in (self.unit, self.unit / 3)]
        tangent = np.vstack([self.minimum.tangent_basis, np.zeros((total - dim, self.minimum.nullity))])
        kept = np.eye(total)
        if all(
            np.abs(J @ tangent - tangent).max(initial=0.0) <= 1e-12 * max(1.0, np.abs(J).max()) for J in jacobians
        ):
            kept[:dim, :dim] = np.hstack([self.minimum.normal_basis, self.minimum.tangent_basis])
            columns = np.r_[: dim - self.minimum.nullity, dim:total]
        else:
            columns = np.arange(total)
        own = [j for j in range(dim, total) if all(np.array_equal(J[:, j], kept[:, j]) for J in jacobians)]
        return kept[:, np.setdiff1d(columns, own)]

    def radius(self, value: float) -> float:
        """The spectral radius modulo the neutral directions."""
        return float(np.abs(np.linalg.eigvals(self.reduced(value))).max(initial=0.0))

    def scale(self) -> float:
        """The parameter at which its influence on the parameters' own block is of order 1; infinite if none."""
        change = (self.jacobian(self.unit) - self.jacobian(0.0)) / self.unit
        own = np.linalg.norm(change[: self.minimum.theta.size, : self.minimum.theta.size], 2)
        influence = own if own > 0 else np.linalg.norm(change, 2)
        return math.inf if influence == 0 else float(1 / influence)

    def threshold(self) -> Bracket:
        """The first crossing of the unit circle."""
        scale = self.scale()
        if math.isinf(scale):
            return self.without_influence()
        start = SCAN_FROM * scale
        while self.radius(start) > 1 + MARGIN:
            if start < SMALLEST_SHARE * scale:
                method = f"unstable at every {self.parameter} tried, down to {start:.3g}"
                return Bracket(0.0, 0.0, start, "estimated", method)
            start /= 10
        below, above = start, start * SCAN_FACTOR
        while self.radius(above) <= 1 + MARGIN:
            if above > SCAN_TO * scale:
                method = f"no multiplier left the unit circle at any {self.parameter} tried, up to {above:.3g}"
                return Bracket(math.inf, below, math.inf, "estimated", method)
            below, above = above, above * SCAN_FACTOR
        return self.closed_in(start, below, above)

    def without_influence(self) -> Bracket:
        radius = self.radius(self.unit)
        if radius > 1 + MARGIN:
            raise ValueError(f"the minimum is unstable whatever {self.parameter} is: spectral radius {radius:.6g}")
        method = f"the Jacobian does not depend on {self.parameter}; spectral radius {radius:.6g}"
        return Bracket(math.inf, math.inf, math.inf, "computed", method)

    def closed_in(self, start: float, below: float, above: float) -> Bracket:
        """The crossing between two values, polished on the multiplier that crosses."""
        neutral = self.radius(below) > 1 - NEUTRAL
        root = float(brentq(lambda value: self.radius(value) - 1 - MARGIN, below, above, rtol=1e-12))
        crossing = self.crossing(root)
        slope, error = crossing.slope, MARGIN / abs(crossing.slope)
        if not neutral:
            for _ in range(3):
                correction = (abs(crossing.multiplier) - 1) / crossing.slope
                root -= correction
                crossing = self.crossing(root, crossing.multiplier)
            error = abs(correction) + crossing.rounding / abs(slope)
        curvature = self.minimum.sharpness
        error += root * (curvature.upper - curvature.lower) / (2 * curvature.value)
        error += 4 * np.finfo(float).eps * root
        mu = crossing.multiplier
        shown = f"{mu.real:.6g}" if abs(mu.imag) < 1e-7 else f"{mu.real:.6g} +- {abs(mu.imag):.6g}i"
        method = (
            f"multiplier {shown} leaves the unit circle; dense Jacobian of size {self.basis.shape[1]} across "
            f"neutral directions, scan from {start:.3g} by {SCAN_FACTOR}, root finding"
        )
        if neutral:
            method += "; below it only neutrally stable (multipliers on the unit circle)"
        return Bracket(root, max(root - error, 0.0), root + error, "computed", method)

    def crossing(self, value: float, near: complex | None = None) -> "Crossing":
        """The multiplier of largest modulus (or nearest to a given one), and how it moves with the parameter."""
        matrix = self.reduced(value)
        change = (self.reduced(value * (1 + 1e-4)) - self.reduced(value * (1 - 1e-4))) / (2e-4 * value)
        multipliers, left, right = scipy.linalg.eig(matrix, left=True)
        chosen = int(np.argmax(np.abs(multipliers)) if near is None else np.argmin(np.abs(multipliers - near)))
        y, x, mu = left[:, chosen], right[:, chosen], complex(multipliers[chosen])
        overlap = np.vdot(y, x)
        speed = np.vdot(y, change @ x) / overlap
        rounding = len(matrix) * np.finfo(float).eps * np.linalg.norm(matrix, 2) / abs(overlap)
        return Crossing(mu, float((np.conj(mu) * speed).real / abs(mu)), float(rounding))


class Crossing(NamedTuple):
    """A multiplier near the unit circle, the derivative of its modulus by the parameter, its rounding error."""

    multiplier: complex
    slope: float
    rounding: float


class JacobianProduct(eqx.Module):
    """``J v`` (or ``J^T v``) at a fixed state, the gradient being the Hessian-vector product ``H (x - theta)``."""

    fixed: FixedState
    transposed: bool = eqx.field(static=True)

    def __call__(self, value: Any, state: Any, v: Any) -> Any:
        """The product."""
        map_, theta = self.fixed.at(value), self.fixed.theta

        def update(state: Any) -> Any:
            displacement = state[: theta.shape[0]] - theta
            return map_.update_given(state, map_.objective.hvp(theta, displacement), 0)

        def product(v: Any) -> Any:
            return jax.jvp(update, (state,), (v,))[1]

        if self.transposed:
            return jax.linear_transpose(product, v)(v)[0]
        return product(v)


class MatrixFree:
    """Jacobians as linear operators."""

    def __init__(self, map_: Optimiser, parameter: str, theta: np.ndarray) -> None:
        self.map, self.size = map_, map_.state_dim
        fixed = for_tracing(FixedState(map_, parameter, theta))
        self.fixed = fixed
        self.products = {transposed: JacobianProduct(fixed, transposed) for transposed in (False, True)}
        self.start = np.random.default_rng(0).standard_normal(self.size)

    def operator(self, value: float, transposed: bool = False) -> LinearOperator:
        """The Jacobian at a value of the parameter."""
        with float64():
            state, defect = map(np.asarray, compiled(self.fixed, (np.asarray(value),)))
        check_fixed(state, defect, self.map.objective.dim)

        def product(v: np.ndarray) -> np.ndarray:
            with float64():
                arguments = (np.asarray(value), state, np.ravel(v).astype(float))
                result = np.asarray(compiled(self.products[transposed], arguments))
            check_derivative(self.map, result)
            return result

        return LinearOperator((self.size, self.size), matvec=product, dtype=float)

    def leftmost(self, value: float, transposed: bool = False) -> tuple[complex, np.ndarray]:
        """The multiplier of smallest real part, with its vector."""
        operator = self.operator(value, transposed)
        if self.size <= ARPACK_FROM:
            values, vectors = np.linalg.eig(operator @ np.eye(self.size))
            chosen = int(np.argmin(values.real))
            return complex(values[chosen]), vectors[:, chosen].astype(complex)
        values, vectors = eigs(operator, k=1, which="SR", v0=self.start, ncv=40, tol=1e-11)
        return complex(values[0]), vectors[:, 0]

    def largest_modulus(self, value: float) -> float | None:
        """The largest modulus of a multiplier that ARPACK finds to three digits; ``None`` if it finds none."""
        if self.size <= ARPACK_FROM:
            return float(np.abs(np.linalg.eigvals(self.operator(value) @ np.eye(self.size))).max())
        try:
            found = eigs(self.operator(value), k=4, v0=self.start, ncv=60, tol=1e-6, return_eigenvectors=False)
        except ArpackNoConvergence as problem:
            found = problem.eigenvalues
        return float(np.abs(found).max()) if len(found) else None


def matrix_free_threshold(map_: Optimiser, parameter: str, theta: np.ndarray, curvature: Bracket) -> Bracket:
    """The value at which the leftmost multiplier passes -1, with a check that no other has left before."""
    problem = MatrixFree(map_, parameter, theta)
    scale = influence_scale(problem, float(map_.keywords[parameter]))
    real_part: Callable[[float], float] = lambda value: problem.leftmost(value)[0].real  # noqa: E731
    below, above = 0.25 * scale, 0.25 * scale * 2
    while real_part(below) <= -1:
        below, above = below / 4, below
        if below < SMALLEST_SHARE * scale:
            raise ValueError(f"the minimum is unstable at every {parameter} tried, down to {below:.3g}")
    while real_part(above) > -1:
        if above > SCAN_TO * scale:
            method = f"no multiplier passed -1 at any {parameter} tried, up to {above:.3g} (matrix-free)"
            return Bracket(math.inf, below, math.inf, "estimated", method)
        below, above = above, 2 * above
    root = float(brentq(lambda value: real_part(value) + 1, below, above, rtol=1e-11))
    mu, x = problem.leftmost(root)
    _, y = problem.leftmost(root, transposed=True)
    operator = problem.operator(root)
    overlap = abs(y @ x)
    change = (problem.operator(root * 1.0001) @ x.real - problem.operator(root * 0.9999) @ x.real) / (2e-4 * root)
    slope = float(abs(y @ change) / overlap)
    residual = float(np.linalg.norm(operator @ x.real + 1j * (operator @ x.imag) - mu * x))
    rounding = 10 * np.finfo(float).eps * max(1.0, float(np.linalg.norm(operator @ x.real)))
    error = float((residual + rounding + abs(mu + 1)) / (overlap * slope))
    error += root * (curvature.upper - curvature.lower) / (2 * curvature.value)
    moduli = [problem.largest_modulus(share * root) for share in (0.5, 0.999)]
    if any(modulus is not None and modulus > 1 + 1e-5 for modulus in moduli):
        raise ValueError(
            f"a complex pair of multipliers leaves the unit circle before {parameter}={root:.6g}, where one "
            "passes -1: only smaller models (dense Jacobians) can say where"
        )
    checked = all(modulus is not None for modulus in moduli)
    method = "a multiplier passes -1: matrix-free, ARPACK, residual and conditioning of the multiplier; "
    method += (
        "no other multiplier was outside before" if checked else "whether another leaves before was not settled"
    )
    status = curvature.status if checked else "estimated"
    return Bracket(root, max(root - error, 0.0), root + error, status, method)


def influence_scale(problem: MatrixFree, unit: float) -> float:
    """The parameter at which its influence on the parameters' own block is of order 1."""
    dim = problem.map.objective.dim
    present, absent = problem.operator(unit), problem.operator(0.0)

    def change(v: np.ndarray) -> np.ndarray:
        full = np.concatenate([np.ravel(v), np.zeros(problem.size - dim)])
        return (present @ full - absent @ full)[:dim] / unit

    operator = LinearOperator((dim, dim), matvec=change, dtype=float)
    if dim <= ARPACK_FROM:
        found = np.linalg.eigvals(operator @ np.eye(dim))
    else:
        found = eigs(operator, k=1, v0=problem.start[:dim], tol=1e-3, return_eigenvectors=False)
    influence = float(np.abs(found).max())
    if influence == 0:
        raise ValueError("the parameter has no influence on the multipliers")
    return 1 / influence

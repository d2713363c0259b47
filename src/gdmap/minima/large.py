"""Minima of losses whose Hessian is too large to be formed: descents, what can be shown without it, a flatter one.

Products with the Hessian find negative curvature and the largest eigenvalue. They do not tell its null space from
very small eigenvalues, so no manifold of minima is verified here, and words say what was and was not shown.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import xarray as xr
from jax.experimental.sparse.linalg import lobpcg_standard
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, minres

from gdmap.bracket import Bracket
from gdmap.engines.precision import float64, for_tracing
from gdmap.engines.random import gaussian_starts
from gdmap.engines.xla import compiled, on_lanes
from gdmap.minima.critical_points import NOISE, LossAndGradient, jitters
from gdmap.minima.flattest import AGREES, FlattestMinimum
from gdmap.minima.kinks import find_kink
from gdmap.objectives import AbstractObjective
from gdmap.spectra import extreme_eigenvalues, hessian_operator, sharpness
from gdmap.spectra.extreme import CONFIDENCE, Extremes
from gdmap.spectra.operators import blas_threads

# Losses this close, relative to the spread of losses over the starts, count as equal.
EQUAL_LOSS = 1e-10
STEPS = 2000
HISTORY = 30
TOLERANCE = 1e-12
# Trust-region steps after L-BFGS, products with the Hessian they may take (at least, for each parameter, at most),
# and the share of the gradient at the start where they end.
NEWTON_STEPS, NEWTON_SHARE = 300, 1e-14
NEWTON_PRODUCTS = (1000, 10, 30_000)
FINISHES, FINISH_PRODUCTS = 8, 1000
# A gradient above rounding noise passes below this share of the gradient at the start ...
GRADIENT_SHARE = 1e-8
# ... and in any case the next Newton step may be no longer than this share of the parameters' norm: down an
# exponential tail, or towards a degenerate minimum, Newton steps do not become small.
LAST_STEP = 1e-6
NEGATIVE = 1e-7
NUDGES, NUDGE = 3, 1e-2
ON_A_KINK = 1e-8

# The move towards flatter minima: how many minima are moved, eigenvectors followed, and steps between two returns.
MOVED, FOLLOWED, SUBSPACE_STEPS, MOVE_STEPS, MOVES = 2, 12, 6, 200, 16
PENALTIES = 10.0 ** -np.arange(3, 8)
EXPONENTS = 32.0 * 4.0 ** np.arange(5)
# Moves with one penalty go on while each lowers the sharpness by this share.
WORTH_REPEATING = 0.1
STILL_FALLING = 3
# A sharpness lowered to this share of what it was tends to zero.
VANISHED = 1e-10
RETURNED = 1e-9
SETTLED = 1e-6


class LargeMinima(NamedTuple):
    """Candidates for global minima, one per row: those of the smallest loss found; none is proved.

    ``theta`` the points ``(minimum, dim)``; ``loss``; ``gradient_norm``; ``gradient_is_noise`` whether the
    gradient is no more than measured rounding noise; ``sharpness`` the largest Hessian eigenvalue by Lanczos
    iteration; ``smallest`` the smallest Rayleigh quotient of the Hessian that Lanczos iteration found; ``lowest``
    what no eigenvalue is below with confidence 99.9 % over the random start; ``start`` which start led there;
    ``margin`` by how much losses may differ and count as equal; ``shown`` what was and was not shown and
    ``remark`` what became of the other starts, in words.
    """

    theta: np.ndarray
    loss: np.ndarray
    gradient_norm: np.ndarray
    gradient_is_noise: np.ndarray
    sharpness: np.ndarray
    smallest: np.ndarray
    lowest: np.ndarray
    start: np.ndarray
    margin: float
    shown: str
    remark: str


def large_minima(
    objective: AbstractObjective, starts: int = 4, seed: int = 0, scale: float = 1.0, max_steps: int = STEPS
) -> LargeMinima:
    """Where descents from Gaussian starts end, examined without the dense Hessian (status *estimated*).

    L-BFGS (Optimistix) goes down, trust-region Newton-CG (SciPy) and Newton steps by MINRES finish. A point passes
    if its gradient is rounding noise, or below 1e-8 of that at the start; if the next Newton step is shorter than
    1e-6 of the point's norm; and if Lanczos iteration finds no Hessian eigenvalue below -1e-7 of the largest. A
    saddle met on the way is left along its negative direction.

    Parameters
    ----------
    objective
        The loss, of any number of parameters from 30 on.
    starts, seed, scale
        Number, seed and standard deviation of the starts; start ``i`` depends on ``(seed, i)`` alone.
    max_steps
        L-BFGS steps at most.

    Raises
    ------
    ValueError
        If no start passes; the message says what they led to: parameters that run off (an infimum that is not
        attained), a kink, a saddle, a degenerate or an unfinished descent; or if the loss is flat.
    """
    _check(objective, starts, scale, max_steps)
    begun = gaussian_starts(int(starts), objective.dim, seed, scale)
    loss, gradient = losses_and_gradients(objective, begun)
    slopes = np.linalg.norm(gradient, axis=1)
    if not np.any(np.isfinite(loss) & np.isfinite(slopes)):
        raise ValueError("the loss or its gradient is not finite at any start: try a smaller scale=")
    if not np.any(gradient) and np.ptp(loss) == 0:
        raise ValueError(
            "the loss is flat: it has the same value and no gradient at any start, every point is a minimum, and "
            "no step size is critical"
        )
    reached = lbfgs(objective, begun, max_steps)
    found = [settled(objective, *lane, max_steps) for lane in zip(reached, slopes, strict=True)]
    passed = np.array([candidate.flaw == "" for candidate in found])
    if not passed.any():
        flaws = [named_flaw(objective, candidate, max_steps) for candidate in found]
        listed = "; ".join(f"{flaws.count(flaw)} of {len(flaws)} starts: {flaw}" for flaw in dict.fromkeys(flaws))
        raise ValueError(f"no minimum found. {listed}")
    losses = np.array([candidate.loss for candidate in found])
    lowest = losses[passed].min()
    margin = float(EQUAL_LOSS * (np.nanmax(loss) - lowest) + 16 * np.finfo(float).eps * abs(lowest))
    kept = np.flatnonzero(passed & (losses <= lowest + margin))
    best = [found[lane] for lane in kept]
    return LargeMinima(
        theta=np.stack([candidate.theta for candidate in best]),
        loss=losses[kept],
        gradient_norm=np.array([candidate.gradient_norm for candidate in best]),
        gradient_is_noise=np.array([candidate.gradient_is_noise for candidate in best]),
        sharpness=np.array([candidate.sharpness for candidate in best]),
        smallest=np.array([candidate.smallest for candidate in best]),
        lowest=np.array([candidate.lowest for candidate in best]),
        start=kept,
        margin=margin,
        shown=shown_words(best),
        remark=_remark(objective, passed, losses, lowest, margin),
    )


def _check(objective: AbstractObjective, starts: int, scale: float, max_steps: int) -> None:
    if not isinstance(objective, AbstractObjective):
        raise TypeError(f"objective must be a gdmap objective such as Function(f, dim), got {objective!r}")
    for name, count in (("starts", starts), ("max_steps", max_steps)):
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            raise ValueError(f"{name} must be a positive integer, got {count!r}")
    if not np.isfinite(scale) or scale <= 0:
        raise ValueError(f"scale must be positive and finite, got {scale!r}")
    if objective.dim < 30:
        raise ValueError(
            f"the objective has {objective.dim} parameters: below 30 use gdmap.find_minimum and "
            "gdmap.flattest_minimum, which show more"
        )


def losses_and_gradients(objective: AbstractObjective, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses and gradients at the rows of ``theta``, one at a time: blocks of large losses would not fit."""
    loss, gradient, _ = on_lanes(LossAndGradient(objective), (theta,), 1)
    return loss, gradient


class _LBFGS(eqx.Module):
    """One start brought down by L-BFGS."""

    objective: AbstractObjective
    max_steps: int = eqx.field(static=True)

    def __call__(self, theta: Any) -> Any:
        solver: Any = optx.LBFGS(rtol=TOLERANCE, atol=TOLERANCE, history_length=HISTORY)
        return optx.minimise(
            lambda y, _: self.objective.evaluate(y), solver, theta, max_steps=self.max_steps, throw=False
        ).value


def lbfgs(objective: AbstractObjective, theta: np.ndarray, max_steps: int = STEPS) -> np.ndarray:
    """The points that L-BFGS reaches from the rows of ``theta``."""
    return np.asarray(on_lanes(_LBFGS(objective, int(max_steps)), (theta,), 1))


class Candidate(NamedTuple):
    """A point and what is known of it; ``flaw`` says why it does not pass, and is empty where it does."""

    theta: np.ndarray
    loss: float
    gradient_norm: float
    gradient_is_noise: bool
    sharpness: float
    smallest: float
    lowest: float
    direction: np.ndarray
    flaw: str


BLOWN_UP = "the descent left the finite numbers; the loss may be unbounded below"
UNSETTLED = "the descent did not settle"
SADDLE = "a saddle"


def settled(objective: AbstractObjective, theta: np.ndarray, slope: float, max_steps: int = STEPS) -> Candidate:
    """The candidate that Newton's method makes of ``theta``, with saddles on the way left behind.

    ``slope`` is the gradient norm that counts as large.
    """
    for nudge in range(NUDGES + 1):
        theta = newton_finished(objective, trust_region(objective, theta, slope))
        candidate = examined(objective, theta, slope)
        if not candidate.flaw.startswith(SADDLE) or nudge == NUDGES:
            break
        push = NUDGE * (np.linalg.norm(theta) or 1.0) * candidate.direction
        lower = min((theta + push, theta - push), key=lambda near: float(objective.value(near)))
        theta = lbfgs(objective, lower[None], max_steps)[0]
    return candidate


class _SpentError(Exception):
    """Raised out of SciPy's trust-region method when its products are spent or cannot be computed."""


def trust_region(objective: AbstractObjective, theta: np.ndarray, slope: float) -> np.ndarray:
    """The point that trust-region Newton-CG reaches from ``theta``; it never moves towards a saddle."""
    if not np.all(np.isfinite(theta)) or not slope > 0:
        return theta
    best, products = [theta], [0]
    least, each, most = NEWTON_PRODUCTS
    allowed = min(max(least, each * objective.dim), most)
    operators: dict[bytes, Any] = {}

    def loss_and_slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = losses_and_gradients(objective, x[None])
        if not np.isfinite(loss[0]) or not np.all(np.isfinite(gradient)):
            return np.inf, np.zeros_like(x)
        return float(loss[0]) / slope, gradient[0] / slope

    def product(x: np.ndarray, v: np.ndarray) -> np.ndarray:
        products[0] += 1
        key = x.tobytes()
        if key not in operators:
            operators.clear()
            operators[key] = hessian_operator(objective, x)
        image = operators[key].matvec(v) / slope
        if products[0] > allowed or not np.all(np.isfinite(image)):
            raise _SpentError
        return np.asarray(image)

    def remember(x: np.ndarray) -> None:
        best[0] = np.array(x)

    size = float(np.linalg.norm(theta)) or 1.0
    options = {
        "gtol": NEWTON_SHARE,
        "maxiter": NEWTON_STEPS,
        "initial_trust_radius": 0.1 * size,
        "max_trust_radius": 100 * size,
    }
    try:
        with np.errstate(all="ignore"):
            minimize(
                loss_and_slope,
                theta,
                jac=True,
                hessp=product,
                method="trust-ncg",
                callback=remember,
                options=options,
            )
    except _SpentError:
        pass
    return best[0]


def newton_finished(objective: AbstractObjective, theta: np.ndarray) -> np.ndarray:
    """``theta`` after Newton steps of minimum residual for as long as they halve the gradient."""
    for _ in range(FINISHES):
        if not np.all(np.isfinite(theta)):
            return theta
        gradient = np.asarray(objective.gradient(theta))
        nearer = theta + newton_step(objective, theta, gradient)
        if not np.linalg.norm(objective.gradient(nearer)) < 0.5 * np.linalg.norm(gradient):
            return theta
        theta = nearer
    return theta


def newton_step(
    objective: AbstractObjective, theta: np.ndarray, gradient: np.ndarray, accuracy: float = 1e-10
) -> np.ndarray:
    """``-H^+ grad L`` by MINRES, as far as its products go; not finite where no such step exists."""
    if not np.any(gradient) or not np.all(np.isfinite(gradient)):
        return np.zeros_like(theta) if np.all(np.isfinite(gradient)) else np.full_like(theta, np.nan)
    hessian = hessian_operator(objective, theta)
    largest = np.abs(gradient).max()  # first: squares of tiny numbers vanish
    slope = float(largest * np.linalg.norm(gradient / largest))
    direction = gradient / largest / (slope / largest)
    # MINRES takes matrices of tiny norm for zero, whatever the units.
    unit = float(np.linalg.norm(hessian.matvec(direction)))
    if not unit > 0:
        return np.full_like(theta, np.nan)
    scaled = LinearOperator(hessian.shape, matvec=lambda v: hessian.matvec(np.reshape(v, -1)) / unit, dtype=float)
    with np.errstate(all="ignore"), blas_threads(hessian):
        step, _ = minres(scaled, -direction, rtol=accuracy, maxiter=FINISH_PRODUCTS)
    return np.asarray(step) * (slope / unit)


def examined(objective: AbstractObjective, theta: np.ndarray, slope: float) -> Candidate:
    """What can be shown of a point without the dense Hessian; ``slope`` is a gradient norm that is large."""
    if not np.all(np.isfinite(theta)) or not np.isfinite(objective.value(theta)):
        nothing = (np.nan, np.nan, False, np.nan, np.nan, np.nan)
        return Candidate(theta, *nothing, np.zeros_like(theta), BLOWN_UP)
    moved = theta + jitters(objective.dim) * np.spacing(theta)
    gradient, *near = losses_and_gradients(objective, np.vstack([theta, moved]))[1]
    size, norm = float(np.linalg.norm(theta)) or 1.0, float(np.linalg.norm(gradient))
    is_noise = bool(norm <= NOISE * np.linalg.norm(near - gradient, axis=1).max())

    def candidate(flaw: str, top: float = np.nan, bottom: Extremes | None = None) -> Candidate:
        smallest, lowest, direction = np.nan, np.nan, np.zeros_like(theta)
        if bottom is not None:
            smallest, lowest, direction = float(bottom.values[0]), bottom.beyond, bottom.vectors[0]
        loss = float(objective.value(theta))
        return Candidate(theta, loss, norm, is_noise, top, smallest, lowest, direction, flaw)

    if not (is_noise or norm <= GRADIENT_SHARE * slope):
        return candidate(f"{UNSETTLED}: the gradient norm is still {norm:.2g}, {norm / slope:.1g} of the start's")
    try:
        top = float(extreme_eigenvalues(hessian_operator(objective, theta)).values[0])
    except ValueError:
        return candidate("the Hessian is not finite at the point reached")
    if top <= 0:
        return candidate(
            "the Hessian has no positive eigenvalue at the point reached: the loss is flat there, or the minimum "
            "degenerate (as for x^4)"
        )
    bottom = lower_end(objective, theta, top)
    if bottom.values[0] < -(NEGATIVE * top + bottom.rounding):
        return candidate(f"{SADDLE}: curvature {bottom.values[0]:.3g} beside {top:.3g}", top, bottom)
    step = np.linalg.norm(newton_step(objective, theta, gradient, accuracy=1e-3))
    if not step <= LAST_STEP * size:
        return candidate(
            f"{UNSETTLED}: Newton's next step is {step / size:.1g} of the parameters' norm, as on the way to a "
            "degenerate (as for x^4) or infinitely far minimum",
            top,
            bottom,
        )
    kink = find_kink(objective, theta, size, farthest=ON_A_KINK)
    if kink is not None:
        return candidate(f"a kink, where the {kink.derivative} jumps by {kink.jump:.3g}", top, bottom)
    return candidate("", top, bottom)


def lower_end(objective: AbstractObjective, theta: np.ndarray, top: float) -> Extremes:
    """The smallest Hessian eigenvalue, to a share of the largest, ``top``.

    Lanczos iteration on ``H - top``: relative to zero no accuracy could be asked for.
    """
    hessian = hessian_operator(objective, theta)
    shifted = LinearOperator(
        hessian.shape, matvec=lambda v: hessian.matvec(np.reshape(v, -1)) - top * np.reshape(v, -1), dtype=float
    )
    with blas_threads(hessian):
        found = extreme_eigenvalues(shifted, "smallest", tolerance=NEGATIVE / 2)
    values = found.values + top
    return found._replace(
        values=values, beyond=float(values[0]) - found.rounding if found.is_dense else found.beyond + top
    )


def named_flaw(objective: AbstractObjective, candidate: Candidate, max_steps: int) -> str:
    """Why a candidate did not pass, with the reasons behind a descent that did not settle."""
    if not candidate.flaw.startswith((UNSETTLED, "the Hessian has")):
        return candidate.flaw
    theta = candidate.theta
    norm = float(np.linalg.norm(theta))
    kink = find_kink(objective, theta, norm or 1.0, farthest=1e-4)
    if kink is not None and kink.derivative == "gradient":
        return f"a kink of the loss, where the gradient jumps by {kink.jump:.3g}: thresholds do not apply there"
    farther = lbfgs(objective, theta[None] * (1 + NUDGE), max_steps)[0]
    grown = np.linalg.norm(farther) > (1 + NUDGE / 2) * norm
    if grown and float(objective.value(farther)) < candidate.loss:
        return (
            f"the loss still decreases (to {candidate.loss:.2g}) while the parameters grow (norm {norm:.2g}): the "
            "infimum may not be attained, as for the logistic loss on separable data. With weight decay a minimum "
            "exists"
        )
    return candidate.flaw


def shown_words(candidates: list[Candidate]) -> str:
    """What was and was not shown of candidates that pass."""
    noise = sum(candidate.gradient_is_noise for candidate in candidates)
    below = max(max(-candidate.lowest, 0.0) / candidate.sharpness for candidate in candidates)
    bound = "is negative" if below == 0 else f"is below -{below:.1g} of the largest"
    chance = f" (with confidence {CONFIDENCE:.1%} over its random start no eigenvalue {bound})"
    gradients = "the gradient is rounding noise"
    if noise < len(candidates):
        gradients = (
            f"the gradient is rounding noise at {noise} of {len(candidates)} and below {GRADIENT_SHARE:g} of that "
            "at the start elsewhere"
        )
    return (
        f"Too many parameters for the dense Hessian: {gradients}; no negative curvature found by Lanczos "
        f"iteration{chance if np.isfinite(below) else ''};"
        " flat directions are not resolved, so these are candidates, not verified minima."
    )


def _remark(
    objective: AbstractObjective, passed: np.ndarray, losses: np.ndarray, lowest: float, margin: float
) -> str:
    parts = []
    if higher := int(np.sum(passed & (losses > lowest + margin))):
        parts.append(f"{higher} of {len(passed)} starts ended in candidates of higher loss, which are left out")
    if lost := int(np.sum(~passed)):
        parts.append(f"{lost} of {len(passed)} starts led to none")
    optimum = objective.optimal_value
    if optimum is not None and lowest > optimum + margin + 1e-8 * abs(optimum):
        parts.append(f"the smallest loss found, {lowest:.6g}, is above the known optimum {optimum:.6g}")
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}." if sentence else ""


class _Penalised(eqx.Module):
    """``(L - L_0) / penalty + log (sum_i lambda_i^p)^{1/p}`` over the top eigenvalues, with its gradient.

    Eigenvectors come from a few LOBPCG steps from the last ones; the derivative of an eigenvalue is that of
    ``u^T H u`` with ``u`` fixed.
    """

    objective: AbstractObjective

    def __call__(
        self, theta: Any, subspace: Any, base: Any, unit: Any, penalty: Any, exponent: Any
    ) -> tuple[Any, Any, Any]:
        slope = jax.grad(self.objective.evaluate)
        loss, gradient = jax.value_and_grad(self.objective.evaluate)(theta)
        product = jax.linearize(slope, theta)[1]

        def shifted(vectors: Any) -> Any:
            # In units of its size and without a null space: LOBPCG breaks down on matrices of small rank.
            return jax.vmap(product, 1, 1)(vectors) / unit + vectors

        values, modes, _ = lobpcg_standard(shifted, subspace, SUBSPACE_STEPS, 1e-9)
        values = (values - 1) * unit
        heights = jnp.maximum(values, 0)
        shares = (heights / values[0]) ** exponent
        total = jnp.sum(shares)
        weights = shares / total / jnp.where(heights > 0, heights, 1.0)

        def weighted_curvature(x: Any) -> Any:
            return weights @ jax.vmap(lambda u: jnp.vdot(u, jax.jvp(slope, (x,), (u,))[1]), 1)(modes)

        height = jnp.log(values[0]) + jnp.log(total) / exponent
        return (
            (loss - base) / penalty + height,
            gradient / penalty + jax.grad(weighted_curvature)(theta),
            modes,
        )


def pulled_flatter(
    objective: AbstractObjective, theta: np.ndarray, top: float, penalty: float, exponent: float
) -> np.ndarray:
    """A point near the set of minima where the p-norm of the top eigenvalues is smaller; not yet on the set."""
    dim = objective.dim
    goal = for_tracing(_Penalised(objective))
    fresh = np.linalg.qr(np.random.default_rng(0).standard_normal((dim, min(FOLLOWED, (dim - 1) // 5))))[0]
    subspace = [fresh]
    size = float(np.linalg.norm(theta)) or 1.0
    base, weight = float(objective.value(theta)), penalty * top * size**2

    def height(x: np.ndarray) -> tuple[float, np.ndarray]:
        with float64():
            value, gradient, modes = map(
                np.asarray, compiled(goal, (size * x, subspace[0], base, top, weight, float(exponent)))
            )
        if not np.isfinite(value) or not np.all(np.isfinite(gradient)) or not np.all(np.isfinite(modes)):
            subspace[0] = fresh
            return 1e100, np.zeros_like(x)
        subspace[0] = modes
        return float(value), size * gradient

    height(theta / size)  # the first steps from random vectors are rough
    options = {"maxiter": MOVE_STEPS, "maxcor": HISTORY, "ftol": 1e-13, "gtol": 1e-9}
    with np.errstate(all="ignore"):
        return size * minimize(height, theta / size, jac=True, method="L-BFGS-B", options=options).x


class Flattened(NamedTuple):
    """A candidate moved to smaller sharpness: the way it went, and whether the search came to an end."""

    candidate: Candidate
    way: list[tuple[float, float]]
    falling: bool
    ended: bool


def flattened_candidate(
    objective: AbstractObjective, theta: np.ndarray, slope: float, loss: float, margin: float
) -> Flattened:
    """A candidate of the same loss moved along the set of minima to smaller sharpness, by a vanishing penalty.

    Each move minimises a penalised height off the set, then returns to the set; what is not again a candidate of
    this loss with smaller sharpness is discarded, and the penalty sharpened.
    """
    best = examined(objective, theta, slope)
    way = [(best.sharpness, float(np.linalg.norm(theta)))]
    drops: list[float] = []
    stage, ended = 0, False
    for _ in range(MOVES):
        away = pulled_flatter(objective, best.theta, best.sharpness, PENALTIES[stage], EXPONENTS[stage])
        returned = newton_finished(objective, away)
        if not np.linalg.norm(objective.gradient(returned)) <= GRADIENT_SHARE * slope:
            returned = trust_region(objective, away, slope)
            returned = newton_finished(objective, returned)
        candidate = examined(objective, returned, slope)
        on_the_set = candidate.flaw == "" and abs(candidate.loss - loss) <= margin
        drop = 1 - candidate.sharpness / best.sharpness if on_the_set else 0.0
        if drop > 0:
            best = candidate
            way.append((best.sharpness, float(np.linalg.norm(best.theta))))
        drops.append(drop)
        if drop < WORTH_REPEATING:
            ended = on_the_set and abs(drop) <= SETTLED
            if (on_the_set and abs(drop) <= RETURNED) or stage + 1 == len(PENALTIES):
                break
            stage += 1
    falling = len(drops) == MOVES and all(drop >= WORTH_REPEATING for drop in drops[-STILL_FALLING:])
    falling |= best.sharpness <= VANISHED * way[0][0]
    return Flattened(best, way, falling, ended)


def flattest_large(
    objective: AbstractObjective, *, starts: int = 4, seed: int = 0, scale: float = 1.0
) -> FlattestMinimum:
    """The flattest minimum that can be found without the dense Hessian (status *estimated*).

    `large_minima` gives candidates. From the two flattest ``(L - min L) / mu + log ||lambda||_p`` is minimised
    by L-BFGS, with the p-norm over the 12 largest eigenvalues, and each time the point is brought back onto the
    set of minima, while ``mu`` falls to 1e-7 (relative) and ``p`` grows to 8192. What comes back counts only if it
    passes as a candidate of the same loss. Its sharpness is an upper bound on the smallest one; no lower bound but
    0 is known.

    Parameters
    ----------
    objective
        The loss.
    starts, seed, scale
        Number, seed and standard deviation of the starts; start ``i`` depends on ``(seed, i)`` alone.

    Raises
    ------
    ValueError
        If no start leads to a candidate; the message says what they lead to.
    """
    found = large_minima(objective, starts, seed, scale)
    begun = gaussian_starts(int(starts), objective.dim, seed, scale)[found.start]
    slopes = np.linalg.norm(losses_and_gradients(objective, begun)[1], axis=1)
    theta, values, losses = found.theta.copy(), found.sharpness.copy(), found.loss.copy()
    moved: dict[int, Flattened] = {}
    for lane in np.argsort(found.sharpness, kind="stable")[:MOVED]:
        moved[int(lane)] = flattened_candidate(
            objective, theta[lane], slopes[lane], float(found.loss[lane]), found.margin
        )
        best = moved[int(lane)].candidate
        theta[lane], values[lane], losses[lane] = best.theta, best.sharpness, best.loss
    lane = int(np.argmin(values))
    bracket = sharpness(objective, theta[lane])
    agreeing = int(np.sum(values <= values[lane] * (1 + AGREES)))
    search = moved.get(lane)
    falling = search is not None and search.falling
    reason = _search_words(found, values, moved, lane, agreeing)
    return FlattestMinimum(
        theta=theta[lane],
        sharpness=Bracket(max(bracket.value, 0.0), 0.0, bracket.upper, "estimated", reason),
        search=xr.Dataset(
            {
                "theta": (("start", "component"), theta),
                "first_theta": (
                    ("start", "component"),
                    found.theta,
                    {"long_name": "the minimum the search began at"},
                ),
                "sharpness": ("start", values, {"long_name": "largest Hessian eigenvalue"}),
                "first_sharpness": ("start", found.sharpness, {"long_name": "sharpness where the search began"}),
                "norm": ("start", np.linalg.norm(theta, axis=1), {"long_name": "distance from the origin"}),
                "loss": ("start", losses),
                "searched": ("start", np.isin(np.arange(len(values)), list(moved))),
            },
            coords={"start": found.start},
            attrs={"status": "estimated", "method": reason, "seed": seed, "scale": scale},
        ),
        agreeing=agreeing,
        falling=falling,
        degenerate=False,
        verified=False,
        reason=reason,
    )


def _search_words(
    found: LargeMinima, values: np.ndarray, moved: dict[int, Flattened], lane: int, agreeing: int
) -> str:
    words = (
        f"Flattest of {len(values)} minima found by descents, {len(moved)} of them moved along the set of "
        f"minima by a penalty method (sharpness from {found.sharpness[lane]:.4g} to {values[lane]:.7g}): "
        f"{agreeing} agree to {AGREES:g}, all lie in [{values.min():.7g}, {values.max():.7g}]."
    )
    search = moved.get(lane)
    if search is not None and search.ended and not search.falling:
        words += f" The last move changed it by less than {SETTLED:g}; that nothing flatter exists is not shown."
    elif search is None or not search.falling:
        words += " The search had not settled when it ended: flatter ones probably exist."
    else:
        steps = ", ".join(f"{height:.3g} at {norm:.3g}" for height, norm in search.way[-5:])
        words += (
            f" The sharpness was still falling when the search ended (at distances from the origin: {steps}): "
            "minima seem to become flatter without end, which suggests, and does not prove, that no critical "
            "step size exists."
        )
    shown = found.shown if search is None else shown_words([search.candidate])
    return f"{words} {shown} {found.remark}".strip()

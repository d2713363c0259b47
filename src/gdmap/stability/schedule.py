"""The verdict of a whole schedule of step sizes at one minimum."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from gdmap.engines.precision import float64, for_tracing
from gdmap.engines.xla import compiled
from gdmap.maps import GradientDescent, Map, Optimiser
from gdmap.maps.optimiser import STEP_SIZE, is_derivative, no_derivative
from gdmap.minima.minimum import Minimum, verified_minimum
from gdmap.objectives import AbstractObjective
from gdmap.stability.local_threshold import FixedState, check_fixed

# Logarithms of factors are summed for this many (steps x modes) at a time.
CHUNK = 2**22
DENSE_LIMIT = 400
EPS = float(np.finfo(float).eps)


def schedule_stability(
    map_or_objective: Map | AbstractObjective, theta: Any, schedule: Any = None, steps: int | None = None
) -> xr.Dataset:
    """What a whole schedule of step sizes does to small displacements from the minimum ``theta``.

    Gradient descent with step sizes ``eta_1, ..., eta_T`` multiplies the displacement along a Hessian eigenvector
    by ``prod_t (1 - eta_t lambda)``, since the Jacobians ``I - eta_t H`` commute; its logarithm is the ``growth``
    of the mode. An `Optimiser` starts with a fresh state; the block of its product of full Jacobians that takes
    displacements of the parameters to such displacements is followed through QR decompositions. Directions along
    a manifold of minima are left out. This goes beyond arXiv:2402.13108, which treats plain GD with fixed step.

    Parameters
    ----------
    map_or_objective
        An objective (plain gradient descent); `GradientDescent`, whose step size serves if ``schedule`` is left
        out; or an `Optimiser`, which may depend on time by itself.
    theta
        The minimum, shape ``(dim,)``; it is verified, which takes a dense Hessian.
    schedule
        Step sizes, non-negative, shape ``(steps,)``; or a function of the number of updates already made, such as
        an optax schedule; or one number.
    steps
        How many steps, where ``schedule`` does not say.

    Returns
    -------
    xarray.Dataset
        Status *computed*. Over ``step``: ``step_size`` (for an optimiser with its own schedule absent) and
        ``largest_growth``, the logarithm of the norm of the product so far. Over ``mode``, for gradient descent:
        ``eigenvalue`` (descending) with its error, ``growth`` with ``growth_lower`` and ``growth_upper`` (from the
        eigenvalue errors; ``-inf`` where a factor is zero), ``transient`` (the largest growth after any number of
        steps) and ``transient_step`` (that number), ``share_above`` (the share of steps above ``2 / eigenvalue``);
        for an optimiser ``growth`` as the sum of logarithms of the diagonal of R.
        Attributes: ``verdict`` (``'contracts'``, ``'expands'``, or ``'marginal'`` where the interval contains 0),
        ``margin`` (final growth of the worst mode) with ``margin_lower``, ``margin_upper``,
        ``largest_transient``, ``largest_transient_step``.

    Raises
    ------
    ValueError
        If ``theta`` is not a minimum or no fixed point of the optimiser, for step sizes that are negative or not
        finite, or if the number of steps is missing.
    """
    objective = map_or_objective.objective if isinstance(map_or_objective, Map) else map_or_objective
    if not isinstance(objective, AbstractObjective):
        raise TypeError(f"expected an objective, GradientDescent or Optimiser, got {map_or_objective!r}")
    if isinstance(map_or_objective, Map) and not isinstance(map_or_objective, (GradientDescent, Optimiser)):
        raise TypeError(f"schedule_stability knows GradientDescent and Optimiser, not {map_or_objective!r}")
    if schedule is None and isinstance(map_or_objective, GradientDescent):
        schedule = float(map_or_objective.step_size)
    optimiser = map_or_objective if isinstance(map_or_objective, Optimiser) else None
    if schedule is None and optimiser is None:
        raise ValueError("give the schedule: an array of step sizes, or an optax schedule together with steps")
    etas = None if schedule is None else step_sizes(schedule, steps)
    minimum = verified_minimum(objective, theta)
    if optimiser is None:
        assert etas is not None
        return of_gradient_descent(minimum, etas)
    return of_optimiser(optimiser, minimum, etas, number_of_steps(steps) if etas is None else len(etas))


def number_of_steps(steps: Any) -> int:
    """The number of steps, or an error if it is missing or makes no sense."""
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise ValueError(f"steps must be a positive integer where the schedule is no array, got {steps!r}")
    return int(steps)


def step_sizes(schedule: Any, steps: Any) -> np.ndarray:
    """The step sizes of a schedule as a float64 vector."""
    if callable(schedule):
        etas = evaluated(schedule, number_of_steps(steps))
    else:
        try:
            etas = np.asarray(schedule, dtype=float)
        except (TypeError, ValueError):
            raise ValueError(f"schedule must be an array of step sizes or a function, got {schedule!r}") from None
        if etas.ndim == 0:
            etas = np.full(number_of_steps(steps), float(etas))
        elif steps is not None and steps != len(etas):
            raise ValueError(f"the schedule has {len(etas)} step sizes, but steps={steps!r}: leave steps out")
    if etas.ndim != 1 or not len(etas):
        raise ValueError(f"schedule must be a non-empty vector of step sizes, got shape {etas.shape}")
    wrong = ~(np.isfinite(etas) & (etas >= 0))
    if np.any(wrong):
        first = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"step sizes must be finite and not negative, but step {first} has {float(etas[first])!r}"
        )
    return etas


def evaluated(schedule: Callable[[Any], Any], steps: int) -> np.ndarray:
    """A schedule at 0, ..., steps - 1; one call where it can be traced."""
    with float64():
        try:
            values = jax.vmap(schedule)(jnp.arange(steps, dtype=jnp.int64))
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError, TypeError):
            values = [float(schedule(step)) for step in range(steps)]
        except ValueError:  # a constant, not one number for each step
            values = [float(schedule(step)) for step in range(steps)]
        values = np.asarray(values, dtype=float)
    return np.broadcast_to(values, (steps,)) if values.ndim == 0 else values


def of_gradient_descent(minimum: Minimum, etas: np.ndarray) -> xr.Dataset:
    """The dataset for gradient descent, mode by mode."""
    eigenvalues = np.sort(minimum.eigenvalues[minimum.nullity :])[::-1]
    curvature = minimum.sharpness
    error = (curvature.upper - curvature.lower) / 2 + minimum.theta.size * EPS * abs(curvature.value)
    modes = ModeGrowth.start(len(eigenvalues))
    largest = np.empty(len(etas))
    chunk = max(1, CHUNK // len(eigenvalues))
    for begin in range(0, len(etas), chunk):
        part = slice(begin, begin + chunk)
        modes, largest[part] = modes.after(etas[part, None] * eigenvalues, etas[part, None] * error, begin)
    share = np.array([np.mean(etas * eigenvalue > 2) for eigenvalue in eigenvalues])
    worst = int(np.argmax(modes.transient))
    dataset = xr.Dataset(
        {
            "step_size": ("step", etas),
            "largest_growth": ("step", largest),
            "eigenvalue": ("mode", eigenvalues),
            "eigenvalue_error": ("mode", np.full(len(eigenvalues), error)),
            "growth": ("mode", modes.growth),
            "growth_lower": ("mode", modes.lower),
            "growth_upper": ("mode", modes.upper),
            "transient": ("mode", modes.transient),
            "transient_step": ("mode", modes.when),
            "share_above": ("mode", share),
        },
        coords={"step": np.arange(1, len(etas) + 1), "mode": np.arange(len(eigenvalues))},
    )
    margin = (float(np.max(modes.growth)), float(np.max(modes.lower)), float(np.max(modes.upper)))
    method = "sums of log |1 - eta lambda| over Hessian eigenvalues; interval from the eigenvalue errors"
    return described(dataset, margin, (float(modes.transient[worst]), int(modes.when[worst])), method)


class ModeGrowth(NamedTuple):
    """Growth of each mode so far with its interval, its largest value after any number of steps, and when."""

    growth: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    transient: np.ndarray
    when: np.ndarray

    @classmethod
    def start(cls, count: int) -> "ModeGrowth":
        """Before the first step."""
        zero = np.zeros(count)
        return cls(zero, zero, zero, zero, np.zeros(count, np.int64))

    def after(self, products: np.ndarray, errors: np.ndarray, steps: int) -> tuple["ModeGrowth", np.ndarray]:
        """After the steps with ``eta lambda`` in the rows of ``products``; and the largest growth after each."""
        factors = np.abs(1 - products)
        errors = errors + EPS * (1 + products)
        with np.errstate(divide="ignore"):
            sums = self.growth + np.cumsum(np.log(factors), axis=0)
            lower = self.lower + np.sum(np.log(np.maximum(factors - errors, 0)), axis=0)
            upper = self.upper + np.sum(np.log(factors + errors), axis=0)
        # Rounding of the sums themselves.
        slack = 4 * EPS * np.sum(np.abs(np.where(factors > 0, np.log(np.maximum(factors, 1e-300)), 0)), axis=0)
        here = np.argmax(sums, axis=0)
        best = np.take_along_axis(sums, here[None], axis=0)[0]
        higher = best > self.transient
        grown = ModeGrowth(
            sums[-1],
            lower - slack,
            upper + slack,
            np.where(higher, best, self.transient),
            np.where(higher, steps + 1 + here, self.when),
        )
        return grown, sums.max(axis=1)


class JacobianProduct(eqx.Module):
    """The product of Jacobians along time at a fixed state, applied to displacements of the parameters."""

    fixed: FixedState
    hessian: Any
    basis: Any
    scheduled: bool = eqx.field(static=True)

    def __call__(self, etas: Any, times: Any) -> Any:
        """Defects of the fixed state, log norms of the parameter block, sums of log |R_ii|, largest entries."""
        theta, basis = self.fixed.theta, self.basis
        dim = theta.shape[0]
        state, _ = self.fixed(self.fixed.map.floats[self.fixed.parameter] if self.scheduled else 0.0)

        def step(carry: Any, now: Any) -> tuple[Any, Any]:
            frame, product, scale, sums = carry
            eta, time = now
            map_ = self.fixed.at(eta) if self.scheduled else self.fixed.map

            def update(state: Any) -> Any:
                return map_.update_given(state, self.hessian @ (state[:dim] - theta), time)

            defect = jnp.abs(update(state) - state)
            pushed = jax.vmap(lambda v: jax.jvp(update, (state,), (v,))[1], 1, 1)(frame)
            pushed = pushed.at[:dim].set(basis @ (basis.T @ pushed[:dim]))
            frame, triangle = jnp.linalg.qr(pushed)
            product = triangle @ product
            size = jnp.max(jnp.abs(product))
            product = product / jnp.where(size > 0, size, 1.0)
            scale = scale + jnp.log(size)
            norm = scale + jnp.log(jnp.linalg.norm(frame[:dim] @ product, 2))
            sums = sums + jnp.log(jnp.abs(jnp.diagonal(triangle)))
            return (frame, product, scale, sums), (defect, jnp.max(jnp.abs(pushed)), norm)

        modes = basis.shape[1]
        frame = jnp.concatenate([basis, jnp.zeros((state.shape[0] - dim, modes))])
        carry = (frame, jnp.eye(modes), jnp.asarray(0.0), jnp.zeros(modes))
        (_, _, _, sums), (defects, entries, norms) = jax.lax.scan(step, carry, (etas, times))
        return state, jnp.max(defects, axis=0), norms, sums, entries


def of_optimiser(map_: Optimiser, minimum: Minimum, etas: np.ndarray | None, steps: int) -> xr.Dataset:
    """The dataset for an optimiser, from the product of its full Jacobians."""
    if map_.state_dim > DENSE_LIMIT:
        raise ValueError(
            f"schedule_stability follows optimisers of at most {DENSE_LIMIT} state components, this one has "
            f"{map_.state_dim}; pass the objective for plain gradient descent"
        )
    if etas is not None:
        own = map_.keywords.get(STEP_SIZE)
        if callable(own):
            raise ValueError(
                f"the optimiser has a schedule of its own as {STEP_SIZE}: leave out the argument schedule"
            )
        if isinstance(own, int) and not isinstance(own, bool):
            map_ = map_.with_keywords(**{STEP_SIZE: float(own)})
        if STEP_SIZE not in map_.floats:
            raise ValueError(f"the optimiser has no floating keyword {STEP_SIZE!r} for the schedule to set")
    curved = minimum.eigenvalues[minimum.nullity :]
    basis = minimum.normal_basis
    curvature = minimum.sharpness
    error = (curvature.upper - curvature.lower) / 2 + minimum.theta.size * EPS * abs(curvature.value)
    values = np.zeros(steps) if etas is None else etas
    times = np.arange(steps, dtype=np.int32)

    def run(shift: float) -> list[np.ndarray]:
        fixed = FixedState(map_, STEP_SIZE, minimum.theta)
        if etas is None:
            fixed = Timed(map_, STEP_SIZE, minimum.theta)
        product = JacobianProduct(fixed, (basis * (curved + shift)) @ basis.T, basis, etas is not None)
        with float64():
            return [np.asarray(array) for array in compiled(for_tracing(product), (values, times))]

    state, defect, norms, sums, entries = run(0.0)
    check_fixed(state, defect, minimum.theta.size)
    if not is_derivative(entries):
        raise ValueError(no_derivative(map_))
    with np.errstate(invalid="ignore"):
        changes = [np.abs(run(shift)[2] - norms) for shift in (error, -error)]
    uncertain = float(np.nan_to_num(np.max(changes, axis=0)[-1])) + steps * map_.state_dim * EPS
    dataset = xr.Dataset(
        {"largest_growth": ("step", norms), "growth": ("mode", np.sort(sums)[::-1])},
        coords={"step": np.arange(1, steps + 1), "mode": np.arange(len(sums))},
    )
    if etas is not None:
        dataset["step_size"] = ("step", etas)
    final, worst = float(norms[-1]), int(np.argmax(norms))
    transient = (float(norms[worst]), worst + 1) if norms[worst] > 0 else (0.0, 0)
    method = "product of full Jacobians by QR; interval from shifts of the Hessian by its error, and rounding"
    return described(dataset, (final, final - uncertain, final + uncertain), transient, method)


class Timed(FixedState):
    """The fixed state of an optimiser whose parameter is its own affair."""

    def at(self, value: Any) -> Optimiser:
        """The map itself."""
        return self.map


ATTRIBUTES = {
    "step": {"long_name": "number of steps made", "units": "steps"},
    "mode": {"long_name": "index of the mode across the manifold of minima"},
    "step_size": {"long_name": "step size eta", "units": "1"},
    "largest_growth": {"long_name": "logarithm of the norm of the product of Jacobians so far", "units": "1"},
    "eigenvalue": {"long_name": "Hessian eigenvalue", "units": "1"},
    "eigenvalue_error": {"long_name": "absolute error of the eigenvalue", "units": "1"},
    "growth": {"long_name": "logarithm of the growth of a displacement along the mode", "units": "1"},
    "growth_lower": {"long_name": "lower end of growth", "units": "1"},
    "growth_upper": {"long_name": "upper end of growth", "units": "1"},
    "transient": {"long_name": "largest growth after any number of steps", "units": "1"},
    "transient_step": {"long_name": "number of steps after which growth is largest", "units": "steps"},
    "share_above": {"long_name": "share of steps with a step size above 2 / eigenvalue", "units": "1"},
}


def described(
    dataset: xr.Dataset, margin: tuple[float, float, float], transient: tuple[float, int], method: str
) -> xr.Dataset:
    """``dataset`` with the verdict and the attributes of its variables."""
    value, lower, upper = margin
    verdict = "contracts" if upper < 0 else "expands" if lower > 0 else "marginal"
    for name in dataset.variables:
        dataset[name].attrs = {**ATTRIBUTES[str(name)], "status": "computed", "method": method}
    dataset.attrs = {
        "verdict": verdict,
        "margin": value,
        "margin_lower": lower,
        "margin_upper": upper,
        "largest_transient": transient[0],
        "largest_transient_step": transient[1],
        "status": "computed",
        "method": method,
        "units": "natural logarithm of a growth factor",
    }
    return dataset

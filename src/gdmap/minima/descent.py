"""Going down to critical points from many starts at once."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optimistix as optx

from gdmap.engines.xla import block_size, on_lanes
from gdmap.objectives import AbstractObjective

METHODS = ("bfgs", "levenberg-marquardt", "gauss-newton")
TOLERANCE = 1e-10
MAX_STEPS = 2000
POLISH_STEPS = 80
# Beyond this size squares leave the range of float64.
BLOWN_UP = 1e100
# Directions of less curvature than this share are left alone by the final Newton steps.
FLAT = 1e-10
DAMPINGS = 2.0 ** -np.arange(6)


class Descend(eqx.Module):
    """One start brought down by an Optimistix solver, then by Newton steps on ``|H|`` (never towards a saddle)."""

    objective: AbstractObjective
    method: str = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __call__(self, theta: Any) -> Any:
        """The point reached from ``theta``; not yet verified."""
        return polished(self.objective, solved(self.objective, theta, self.method, self.max_steps))


def descend(
    objective: AbstractObjective, theta: np.ndarray, method: str = "bfgs", max_steps: int = MAX_STEPS
) -> np.ndarray:
    """The points reached from the rows of ``theta``, each independent of the others; NaN where a start blew up."""
    block = block_size(64 * objective.dim**2, largest=16)
    reached = np.asarray(on_lanes(Descend(objective, method, max_steps), (theta,), block, threads=1))
    return np.where(np.all(np.abs(reached) < BLOWN_UP, axis=1, keepdims=True), reached, np.nan)


def solved(objective: AbstractObjective, theta: Any, method: str, max_steps: int) -> Any:
    """The result of one Optimistix solver from ``theta``."""
    if method == "bfgs":
        minimiser: Any = optx.BFGS(rtol=TOLERANCE, atol=TOLERANCE)
        return optx.minimise(
            lambda y, _: objective.evaluate(y), minimiser, theta, max_steps=max_steps, throw=False
        ).value
    solver: Any = (
        optx.LevenbergMarquardt(rtol=TOLERANCE, atol=TOLERANCE)
        if method == "levenberg-marquardt"
        else optx.GaussNewton(
            rtol=TOLERANCE, atol=TOLERANCE, linear_solver=lineax.AutoLinearSolver(well_posed=None)
        )
    )
    residuals: Any = objective
    return optx.least_squares(
        lambda y, _: residuals.residuals(y), solver, theta, max_steps=max_steps, throw=False
    ).value


def polished(objective: AbstractObjective, theta: Any) -> Any:
    """Damped Newton steps with ``|H|`` in place of ``H`` until the gradient stops shrinking."""
    loss_gradient = jax.value_and_grad(objective.evaluate)

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        theta, loss, gradient, steps, _ = carry
        curvature, modes = jnp.linalg.eigh(objective.hessian(theta))
        steep = jnp.abs(curvature)
        kept = steep > FLAT * jnp.max(steep)
        step = -modes @ jnp.where(kept, (modes.T @ gradient) / jnp.where(kept, steep, 1.0), 0.0)
        candidates = theta + jnp.asarray(DAMPINGS)[:, None] * step
        losses, gradients = jax.vmap(loss_gradient)(candidates)
        norm, norms = jnp.linalg.norm(gradient), jnp.linalg.norm(gradients, axis=1)
        better = (norms < norm) & (losses <= loss + 1e-12 * jnp.abs(loss) + norm * norm)
        better |= losses < loss - 1e-12 * jnp.abs(loss)
        chosen = jnp.argmax(better)
        found = better[chosen] & jnp.all(jnp.isfinite(candidates[chosen]))
        return (
            jnp.where(found, candidates[chosen], theta),
            jnp.where(found, losses[chosen], loss),
            jnp.where(found, gradients[chosen], gradient),
            steps + 1,
            ~found,
        )

    def goes_on(carry: tuple[Any, ...]) -> Any:
        return (carry[3] < POLISH_STEPS) & ~carry[4] & jnp.any(carry[2] != 0)

    loss, gradient = loss_gradient(theta)
    started = (theta, loss, gradient, 0, ~jnp.isfinite(loss))
    return jax.lax.while_loop(goes_on, body, started)[0]

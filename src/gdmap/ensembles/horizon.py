"""Training many networks side by side to a finite horizon, with a record of the last steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.budget import BudgetedProgram
from gdmap.engines.random import random_direction
from gdmap.engines.xla import norms
from gdmap.maps import Family

# States are looked at once in so many steps: what is not finite then, or far out, has diverged.
CHECK = 16
ROUND = 512
LARGEST_BLOCK = 32
PROJECTIONS = 8


class Horizon(NamedTuple):
    """What is recorded of each trajectory; arrays with the trajectories first.

    ``state`` at the horizon; ``escaped_at`` the step by which it had left for infinity (a multiple of 16; -1: it
    had not); of the last ``window`` steps, shape ``(trajectories, window)``: ``loss`` and ``gradient_norm`` at the
    state before the step, ``step_length``, ``growth`` the logarithm by which the step stretched a tangent vector
    (the image of the one before); ``projections`` of the states on fixed random directions, ``(trajectories,
    window, 8)``; ``block`` lanes ran together, and all of them needed ``bytes`` of memory.
    """

    state: np.ndarray
    escaped_at: np.ndarray
    loss: np.ndarray
    gradient_norm: np.ndarray
    step_length: np.ndarray
    growth: np.ndarray
    projections: np.ndarray
    block: int
    bytes: int


class Train(eqx.Module):
    """A number of steps of each lane; lanes that have left for infinity are marked."""

    step: Callable[[Any, Any], Any]

    def __call__(self, parameter: Any, state: Any, radius: Any, done: Any, until: Any) -> tuple[Any, Any, Any]:
        """The states after the steps from ``done`` to ``until`` (the same for all lanes); steps done; escapes."""

        def some_steps(carry: Any) -> Any:
            state, done, escaped = carry
            number = jnp.minimum(CHECK, until[0] - done[0])
            state = jax.lax.fori_loop(0, number, lambda _, state: jax.vmap(self.step)(parameter, state), state)
            done = done + number
            outside = ~(norms(state) <= radius)
            escaped = jnp.where((escaped < 0) & outside, done, escaped)
            return state, done, escaped

        carry = (state, done, jnp.full(done.shape, -1, done.dtype))
        return jax.lax.while_loop(
            lambda carry: (carry[1][0] < until[0]) & jnp.any(carry[2] < 0), some_steps, carry
        )


class Record(eqx.Module):
    """The last steps of each lane, with what is recorded at every one."""

    family: Family
    directions: Any
    window: int = eqx.field(static=True)
    tangents: bool = eqx.field(static=True)

    def __call__(self, parameter: Any, state: Any, tangent: Any) -> tuple[Any, Any]:
        """The last states, and ``(loss, gradient_norm, step_length, growth, projections)`` with the lanes first."""
        directions = jnp.asarray(self.directions, state.dtype)

        def one(parameter: Any, state: Any, tangent: Any) -> Any:
            map_ = self.family(parameter)
            loss, gradient = jax.value_and_grad(self.family.objective.evaluate)(map_.parameters(state))
            if self.tangents:
                following, image = jax.jvp(map_.update, (state,), (tangent,))
                length = norms(image)
                tangent = image / jnp.where(length > 0, length, 1)
                growth = jnp.log(length)
            else:
                following, growth = map_.update(state), jnp.zeros((), state.dtype)
            recorded = (loss, norms(gradient), norms(following - state), growth, directions @ state)
            return following, tangent, recorded

        def body(carry: Any, _: None) -> tuple[Any, Any]:
            following, tangents, recorded = jax.vmap(one)(parameter, *carry)
            return (following, tangents), recorded

        (state, _), recorded = jax.lax.scan(body, (state, tangent), None, length=self.window)
        return state, jax.tree.map(lambda values: jnp.swapaxes(values, 0, 1), recorded)


def run_to_horizon(
    family: Family,
    parameter: np.ndarray,
    state: np.ndarray,
    numbers: np.ndarray,
    steps: int,
    window: int,
    memory: int,
    escape_radius: float,
    tangents: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Horizon:
    """Iterate each row of ``state`` under ``family(parameter[row])`` and record its last ``window`` steps.

    ``numbers`` address the tangent vectors: rows of one number have the same. Trajectories that left for infinity
    (beyond ``escape_radius (1 + ||start||)``, or not finite) are given up. ``progress(finished, total)`` counts
    trajectory-steps.
    """
    count, dim = state.shape
    dtype = state.dtype
    escaped_at = np.full(count, -1, np.int64)
    radius = (escape_radius * (1 + np.linalg.norm(state, axis=1))).astype(dtype)
    vector, number, integer = (
        jax.ShapeDtypeStruct(shape, kind) for shape, kind in (((dim,), dtype), ((), dtype), ((), np.int64))
    )
    largest = min(LARGEST_BLOCK, 2 ** int(np.ceil(np.log2(count))))
    train = BudgetedProgram(Train(family.step), (number, vector, number, integer, integer), memory, largest)
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((PROJECTIONS, dim)) / np.sqrt(dim)
    record = BudgetedProgram(
        Record(family, directions.astype(dtype), window, tangents), (number, vector, vector), memory, largest
    )
    state, parameter = state.copy(), parameter.astype(dtype)
    begin_window, done = steps - window, 0
    rows = np.arange(count)
    total = count * steps
    while rows.size and done < begin_window:
        until = min(done + ROUND, begin_window)
        counters = (np.full(rows.size, done, np.int64), np.full(rows.size, until, np.int64))
        with np.errstate(all="ignore"):
            moved, _, escaped = train((parameter[rows], state[rows], radius[rows], *counters))
        state[rows], escaped_at[rows] = moved, escaped
        rows, done = rows[escaped < 0], until
        if progress is not None:
            progress(total - rows.size * (steps - done), total)
    recorded = [np.full((count, window), np.nan) for _ in range(4)] + [
        np.full((count, window, PROJECTIONS), np.nan)
    ]
    if rows.size:
        tangent = np.stack([random_direction(dim, number) for number in numbers[rows]]).astype(dtype)
        state[rows], values = record((parameter[rows], state[rows], tangent))
        for into, found in zip(recorded, values, strict=True):
            into[rows] = found
        with np.errstate(all="ignore"):
            outside = ~(np.linalg.norm(state[rows], axis=1) <= radius[rows])
        escaped_at[rows[outside]] = steps
    if progress is not None:
        progress(total, total)
    return Horizon(
        state, escaped_at, *recorded, block=min(train.block, record.block), bytes=max(train.bytes, record.bytes)
    )

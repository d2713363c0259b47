"""Training many networks side by side to a finite horizon, with a record of the last steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.budget import BudgetedProgram, widest_block
from gdmap.engines.random import random_direction
from gdmap.engines.xla import norms, on_lanes
from gdmap.ensembles.verdicts import ParametersAt
from gdmap.maps import Family

# States are looked at once in so many steps: what is not finite then, or far out, has diverged.
CHECK = 16
ROUND = 512
PROJECTIONS = 8
# What is kept on the host for one trajectory while it is looked at: copies of its state (start, state, tangent
# vector, what goes into and comes out of a block) and of the record (what is made of it on the way to its
# statistics), counted from the code and compared with the peak of a process.
COPIES_OF_STATE, COPIES_OF_RECORD = 10, 4


class Horizon(NamedTuple):
    """What is recorded of each trajectory; arrays with the trajectories first.

    ``theta`` the parameters at the horizon; ``escaped_at`` the step by which it had left for infinity (a multiple
    of 16; -1: it had not); of the last ``window`` steps, shape ``(trajectories, window)``: ``loss`` and
    ``gradient_norm`` at the state before the step, ``step_length``, ``growth`` the logarithm by which the step
    stretched a tangent vector (the image of the one before); ``projections`` of the parameters on fixed random
    directions, ``(trajectories, window, 8)``. NaN for trajectories that left.
    """

    theta: np.ndarray
    escaped_at: np.ndarray
    loss: np.ndarray
    gradient_norm: np.ndarray
    step_length: np.ndarray
    growth: np.ndarray
    projections: np.ndarray


class Train(eqx.Module):
    """A number of steps of each lane; lanes that have left for infinity are marked."""

    family: Family

    def __call__(self, parameter: Any, state: Any, radius: Any, done: Any, until: Any) -> tuple[Any, Any, Any]:
        """The states after the steps from ``done`` to ``until`` (the same for all lanes); steps done; escapes."""

        def some_steps(carry: Any) -> Any:
            state, done, escaped = carry
            number = jnp.minimum(CHECK, until[0] - done[0])
            step = jax.vmap(self.family.step)
            state = jax.lax.fori_loop(0, number, lambda _, state: step(parameter, state), state)
            done = done + number
            # The parameters alone: moments of an optimiser may be many orders larger.
            theta = jax.vmap(lambda parameter, state: self.family(parameter).parameters(state))(parameter, state)
            outside = ~(norms(theta) <= radius) | ~jnp.all(jnp.isfinite(state), axis=1)
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
        """The last states, and ``(loss, gradient_norm, step_length, growth, projections)``, lanes first."""
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
            theta = map_.parameters(state)
            moved = norms(map_.parameters(following) - theta)
            recorded = (loss, norms(gradient), moved, growth, directions @ theta)
            return following, tangent, recorded

        def body(carry: Any, _: None) -> tuple[Any, Any]:
            following, tangents, recorded = jax.vmap(one)(parameter, *carry)
            return (following, tangents), recorded

        (state, _), recorded = jax.lax.scan(body, (state, tangent), None, length=self.window)
        return state, jax.tree.map(lambda values: jnp.swapaxes(values, 0, 1), recorded)


class HorizonRun:
    """The compiled programs of runs of ``steps`` steps whose last ``window`` are recorded.

    Attributes
    ----------
    block
        Lanes in a block: what the last bits of a result depend on.
    bytes
        What the programs need, for all blocks that run side by side.
    """

    def __init__(
        self,
        family: Family,
        state_dim: int,
        dtype: Any,
        steps: int,
        window: int,
        memory: int,
        escape_radius: float,
        tangents: bool = True,
    ) -> None:
        self.steps, self.window, self.escape_radius = steps, window, escape_radius
        vector, number = jax.ShapeDtypeStruct((state_dim,), dtype), jax.ShapeDtypeStruct((), dtype)
        integer = jax.ShapeDtypeStruct((), np.int64)
        largest = widest_block(state_dim)
        self.theta = ParametersAt(family)
        # The same directions for all: rows of one seed, scaled like a unit vector.
        dim = family.objective.dim
        directions = np.stack([random_direction(dim, 0, row) for row in range(PROJECTIONS)])
        self.record = BudgetedProgram(
            Record(family, directions.astype(dtype), window, tangents), (number, vector, vector), memory, largest
        )
        self.train = BudgetedProgram(
            Train(family), (number, vector, number, integer, integer), memory, self.record.block
        )
        self.block = self.train.block
        self.bytes = max(self.train.bytes, self.record.bytes)

    def __call__(
        self,
        parameter: np.ndarray,
        start: np.ndarray,
        numbers: np.ndarray,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Horizon:
        """Iterate each row of ``start`` under ``family(parameter[row])`` and record its last steps.

        ``numbers`` with ``seed`` address the tangent vectors: rows of one number have the same. Trajectories
        that left for infinity (parameters beyond ``escape_radius (1 + ||start||)``, or a state that is not
        finite) are given up. ``progress`` counts trajectory-steps.
        """
        count, dim = start.shape
        dtype = start.dtype
        state, parameter = start.copy(), parameter.astype(dtype)
        escaped_at = np.full(count, -1, np.int64)
        begun = self.parameters(parameter, start)
        radius = np.minimum(self.escape_radius * (1 + row_norms(begun)), np.finfo(dtype).max).astype(dtype)
        done, rows, total = 0, np.arange(count), count * self.steps
        until_window = self.steps - self.window
        while rows.size and done < until_window:
            until = min(done + ROUND, until_window)
            counters = (np.full(rows.size, done, np.int64), np.full(rows.size, until, np.int64))
            moved, _, escaped = self.train((parameter[rows], state[rows], radius[rows], *counters))
            state[rows], escaped_at[rows] = moved, escaped
            rows, done = rows[escaped < 0], until
            if progress is not None:
                progress(total - rows.size * (self.steps - done), total)
        recorded = [np.full((count, self.window), np.nan, dtype) for _ in range(4)] + [
            np.full((count, self.window, PROJECTIONS), np.nan, dtype)
        ]
        if rows.size:
            tangent = np.empty((rows.size, dim), dtype)
            for i, number in enumerate(numbers[rows]):
                tangent[i] = random_direction(dim, seed, int(number), 2)
            state[rows], values = self.record((parameter[rows], state[rows], tangent))
            with np.errstate(all="ignore"):
                outside = ~(row_norms(self.parameters(parameter[rows], state[rows])) <= radius[rows])
            outside |= ~np.isfinite(state[rows]).all(axis=1)
            escaped_at[rows[outside]] = self.steps
            # Of a run that leaves for infinity during the window nothing is told.
            for into, found in zip(recorded, values, strict=True):
                into[rows[~outside]] = found[~outside]
        if progress is not None:
            progress(total, total)
        theta = self.parameters(parameter, state)
        theta[escaped_at >= 0] = np.nan
        return Horizon(theta, escaped_at, *recorded)

    def parameters(self, parameter: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The parameters in the states."""
        return np.array(on_lanes(self.theta, (parameter, state), self.block))


def row_norms(rows: np.ndarray) -> np.ndarray:
    """Euclidean norms of the rows, without an array of their squares."""
    return np.sqrt(np.einsum("ij,ij->i", rows, rows))


def host_bytes(state_dim: int, window: int, itemsize: int) -> int:
    """What one trajectory takes outside the programs while it is looked at."""
    return itemsize * (COPIES_OF_STATE * state_dim + COPIES_OF_RECORD * window * (4 + PROJECTIONS))

"""Iterating one map on millions of states with XLA: lanes are the last axis, so that they fill vector registers.

What `engines.xla` does for ensembles, with less kept of each lane: no window of past states but one reference
state, renewed when the age of the lane doubles (Brent's method). Blocks have one fixed shape and are padded by
copies, so that a lane's result depends neither on its neighbours nor on chunking.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gdmap.engines.precision import float64
from gdmap.engines.xla import (
    CONSECUTIVE,
    ESCAPED,
    GROWING_STEPS,
    OVERFLOWN,
    RECURRENT,
    RUNNING,
    STATIONARY,
    UNDEFINED,
    Tolerances,
    compiled,
)

# A block of lanes should stay in a core's cache.
STRIP_BYTES = 2**19
WIDEST = 2048
# Packed into one 32-bit integer for each lane: the fewer arrays a step touches, the faster it is. The counts are
# in the low bits, the lag is above them.
STREAK, OUTSIDE, RETURNS, LAG = 0, 2, 6, 8
LONGEST = 2**22


class Strip(NamedTuple):
    """The lanes being iterated, along the last axis; ``start``, ``state`` and ``reference`` are ``(dim, lanes)``.

    All running lanes have the same age. ``last_step`` is the squared length of the last step, ``reach`` the
    largest squared distance from the reference since it was taken. ``counts`` packs four numbers: how many
    consecutive steps were negligible; how many were beyond the escape radius with neither norm nor step
    shrinking; how often the orbit came back to the reference; and the ``lag`` after which it first did.
    ``signal`` says why a lane stopped, ``steps`` after how many updates (0 while it runs).
    """

    start: Any
    state: Any
    last_step: Any
    reference: Any
    reach: Any
    counts: Any
    signal: Any
    steps: Any

    @property
    def lag(self) -> Any:
        """The number of steps after which the orbit came back to its reference."""
        return self.counts >> LAG


class Stride(eqx.Module):
    """A compiled stretch of the iteration: every running lane of a strip is taken from one age to another.

    The reference of every lane is renewed at the beginning.
    """

    step: Callable[[Any], Any]
    tolerances: Tolerances
    escape_radius: Any

    def escape(self, start: Any) -> Any:
        """The squared norm beyond which growth means escape."""
        return (self.escape_radius * (1 + jnp.sqrt(squares(start)))) ** 2

    def __call__(self, strip: Strip, age: Any, until: Any) -> Strip:
        """The strip after the stretch from ``age`` to ``until``."""
        update = jax.vmap(self.step, in_axes=-1, out_axes=-1)
        escape = self.escape(strip.start)

        def one_step(now: Any, strip: Strip) -> Strip:
            return watched_stride(strip, update(strip.state), now, age, escape, self.tolerances)

        strip = renewed(strip)
        _, strip = jax.lax.while_loop(
            lambda carry: (carry[0] < until) & jnp.any(carry[1].signal == RUNNING),
            lambda carry: (carry[0] + 1, one_step(*carry)),
            (age, strip),
        )
        return strip


def watched_stride(strip: Strip, proposed: Any, now: Any, age: Any, escape: Any, tolerances: Tolerances) -> Strip:
    """The strip, or one lane, after the step from age ``now`` to ``proposed``; the reference is from ``age``."""
    eps = jnp.finfo(strip.state.dtype).eps
    step_tolerance, period_tolerance = tolerances.step**2, tolerances.period**2
    size = squares(proposed)
    finite = jnp.isfinite(size)
    last_step = squares(proposed - strip.state)
    rounding = 4 * eps**2 * size
    small = last_step <= step_tolerance * squares(proposed - strip.start) + rounding
    streak = jnp.where(small, ((strip.counts >> STREAK) & 3) + 1, 0)
    grows = (size > escape) & (size > squares(strip.state)) & (last_step >= strip.last_step)
    outside = jnp.where(grows, ((strip.counts >> OUTSIDE) & 15) + 1, 0)
    away = squares(proposed - strip.reference)
    reach = jnp.maximum(strip.reach, away)
    # Back at the reference: after `lag` steps, and then twice more after as many.
    elapsed = now + 1 - age
    lag, returns = strip.counts >> LAG, (strip.counts >> RETURNS) & 3
    due = jnp.where(lag == 0, elapsed > 1, elapsed == (returns + 1) * lag)
    back = away <= period_tolerance * reach + 64 * rounding
    returns = jnp.where(due, jnp.where(back, returns + 1, 0), returns)
    lag = jnp.where(due, jnp.where(back, jnp.where(lag == 0, elapsed, lag), 0), lag)
    signal = jnp.where(returns >= CONSECUTIVE, RECURRENT, RUNNING)
    signal = jnp.where(streak >= CONSECUTIVE, STATIONARY, signal)
    signal = jnp.where(outside >= GROWING_STEPS, ESCAPED, signal)
    signal = jnp.where(finite, signal, jnp.where(jnp.isnan(size), UNDEFINED, OVERFLOWN))
    counts = (streak << STREAK) | (outside << OUTSIDE) | (returns << RETURNS) | (lag << LAG)
    active = strip.signal == RUNNING
    moved = active & finite
    return Strip(
        start=strip.start,
        state=jnp.where(moved, proposed, strip.state),
        last_step=jnp.where(moved, last_step, strip.last_step),
        reference=strip.reference,
        reach=jnp.where(moved, reach, strip.reach),
        counts=jnp.where(moved, counts, strip.counts).astype(strip.counts.dtype),
        signal=jnp.where(active, signal.astype(jnp.int32), strip.signal),
        steps=jnp.where(active, now + 1, strip.steps).astype(strip.steps.dtype),
    )


def renewed(strip: Strip) -> Strip:
    """The strip with its present state as the reference."""
    reach = np.zeros(np.shape(strip.reach), strip.reach.dtype)
    return strip._replace(reference=strip.state, reach=reach, counts=strip.counts & ((1 << RETURNS) - 1))


def squares(vectors: Any) -> Any:
    """Squared Euclidean norms over the first axis."""
    return jnp.sum(vectors * vectors, axis=0)


def strip_width(state_dim: int) -> int:
    """Lanes in one block: a power of two that depends on the dimension of the state alone."""
    width = WIDEST
    while width > 64 and 8 * width * (4 * state_dim + 8) > STRIP_BYTES:
        width //= 2
    return width


def fresh_strip(states: np.ndarray) -> Strip:
    """The lanes at age 0; ``states`` has shape ``(dim, lanes)``."""
    zeros = np.zeros(states.shape[1], np.int32)
    squared = np.zeros(states.shape[1], states.dtype)
    return Strip(states, states, squared, states, squared, zeros, zeros, zeros)


def take(strip: Strip, lanes: Any) -> Strip:
    """Some lanes of a strip."""
    return Strip(*(field[..., lanes] for field in strip))


class BlockedStride:
    """A stretch of the iteration of a strip with XLA, block by block, in as many threads as processors."""

    def __init__(self, step: Callable[[Any], Any], dim: int, tolerances: Tolerances, escape_radius: float) -> None:
        self.stride = Stride(step, tolerances, np.asarray(escape_radius))
        self.width = strip_width(dim)
        self.name = f"xla-{jax.default_backend()}"

    def __call__(self, strip: Strip, age: int, until: int) -> Strip:
        """The strip after the stretch from ``age`` to ``until``; every lane by itself."""
        ages = (np.asarray(age, np.int32), np.asarray(until, np.int32))
        return in_strips(lambda block: compiled(self.stride, (block, *ages)), strip, self.width)


def in_strips(function: Callable[..., Any], lane_arrays: Any, width: int) -> Any:
    """``function`` of a pytree of arrays with lanes along the last axis, evaluated block by block."""
    count = jax.tree.leaves(lane_arrays)[0].shape[-1]

    def run(begin: int) -> Any:
        end = min(begin + width, count)
        with float64():
            if end - begin == width:
                block = jax.tree.map(lambda array: array[..., begin:end], lane_arrays)
            else:
                lanes = np.minimum(np.arange(begin, begin + width), count - 1)
                block = jax.tree.map(lambda array: array[..., lanes], lane_arrays)
            return jax.tree.map(lambda array: np.asarray(array)[..., : end - begin], function(block))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(run, range(0, count, width)))
    return jax.tree.map(lambda *pieces: np.concatenate(pieces, axis=-1), *parts)

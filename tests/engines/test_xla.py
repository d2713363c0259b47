import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdmap.engines import xla
from gdmap.engines.precision import float64
from gdmap.engines.trace import array_digest, trace_fingerprint
from gdmap.engines.xla import (
    ALERT,
    CONSECUTIVE,
    ESCAPED,
    OVERFLOWN,
    RECURRENT,
    ROUND,
    RUNNING,
    STATIONARY,
    BlockedRun,
    Lanes,
    Tolerances,
    block_size,
    fitting_block,
    in_blocks,
    next_search,
    next_stretch,
    smallest_period,
    take,
)

WINDOW, HORIZON = 67, 3000
STATIONARY_AT, TWO_CYCLE, GROWING, OVERFLOWING, CHAOTIC = 0.5, 3.2, -3.0, 40.0, 3.9


def logistic(parameter, state):
    """Fixed points, cycles, chaos and escape, by the parameter."""
    return parameter * state * (1 - state)


@pytest.fixture(scope="module")
def run():
    return BlockedRun(logistic, 1, WINDOW, Tolerances(1e-8, 1e-6))


def lanes_of(parameter, start, **given):
    parameter = np.asarray(parameter, float)
    count = len(parameter)
    state = np.full((count, 1), start) if np.isscalar(start) else np.asarray(start)
    whole = np.zeros(count, np.int64)
    fresh = Lanes(
        parameter=parameter,
        start=state,
        state=state,
        last_step=np.zeros(count),
        steps=whole,
        streak=whole.astype(np.int32),
        outside=whole.astype(np.int32),
        escape_radius=np.full(count, 1e6),
        retry_at=whole,
        reference=np.full((count, CONSECUTIVE, 1), np.nan),
        reference_step=whole,
        period=whole.astype(np.int32),
        signal=whole.astype(np.int8),
    )
    return fresh._replace(**given)


def looked_at_each(run, lanes, max_steps):
    """The same trajectories with a look at every step, searched after the same steps."""
    lanes = Lanes(*(np.array(field) for field in lanes))
    while (rows := np.flatnonzero((lanes.signal == RUNNING) & (lanes.steps < max_steps))).size:
        until = next_search(lanes.steps[rows], max_steps, WINDOW)
        run._look_at_each(lanes, rows, until, np.ones(rows.size, bool), max_steps)
    return lanes


def assert_same(one, other, names=Lanes._fields):
    for name in names:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)


def test_blocks_cover_every_lane_once():
    seen = in_blocks(lambda lanes: {"twice": 2 * jnp.asarray(lanes[0])}, (np.arange(37.0),), 8)
    np.testing.assert_array_equal(seen["twice"], 2 * np.arange(37.0))


def test_block_size_depends_on_the_lane_alone():
    assert block_size(8) == 256
    assert block_size(2**26) == 2
    assert block_size(2**40) == 1


def test_smallest_period_needs_three_matches():
    with float64():
        cycle = jnp.array([1.0, 2.0, 3.0] * 30)[:67]
        almost = jnp.array([1.0, 2.0, 1.0, 3.0] * 20)[:67]
        newest = jnp.stack([cycle, almost, jnp.arange(67.0)], axis=1)[..., None]
        found = smallest_period(newest, jnp.full(3, 1e-9))
    np.testing.assert_array_equal(found, [3, 4, 0])


def test_fingerprints():
    assert trace_fingerprint(lambda w: w * 2, (3,)) == trace_fingerprint(lambda w: w * 2, (3,))
    assert trace_fingerprint(lambda w: w * 2, (3,)) != trace_fingerprint(lambda w: w * 3, (3,))
    assert array_digest(np.ones(3)) != array_digest(np.ones((3, 1)))


@pytest.mark.parametrize("horizon", [10, 300, HORIZON])
def test_events_fall_where_a_look_at_every_step_finds_them(run, horizon):
    parameter = np.concatenate(
        [np.linspace(0.2, 4, 150), [STATIONARY_AT, TWO_CYCLE, GROWING, OVERFLOWING, CHAOTIC]]
    )
    lanes = lanes_of(parameter, 0.3)
    found, expected = run.advance(lanes, horizon), looked_at_each(run, lanes, horizon)
    assert_same(found, expected)
    assert not np.any(found.signal == ALERT)
    if horizon == HORIZON:
        assert set(np.unique(found.signal)) >= {RUNNING, STATIONARY, RECURRENT}
        assert np.any(np.isin(found.signal, (ESCAPED, OVERFLOWN)))
        assert found.period[151] == 2
        assert found.steps[150] < 100


def test_trajectories_go_on_after_an_event(run):
    lanes = lanes_of([STATIONARY_AT, TWO_CYCLE, CHAOTIC, 1.001], 0.3)
    first = run.advance(lanes, HORIZON)
    retry_at = np.where(first.signal == RUNNING, 0, 2 * first.steps + 101)
    again = first._replace(retry_at=retry_at, signal=np.zeros(4, np.int8))
    found, expected = (
        run.advance(again, HORIZON),
        looked_at_each(run, again._replace(period=0 * first.period), HORIZON),
    )
    # A streak is counted from shortly before it matters.
    assert_same(found, expected, [name for name in Lanes._fields if name != "streak"])
    assert found.signal[0] == STATIONARY
    assert found.steps[0] == retry_at[0]
    assert found.signal[1] == RECURRENT


def test_streak_counts_at_the_horizon_before_the_retry(run):
    lanes = lanes_of([STATIONARY_AT], 0.3, retry_at=np.array([10**9]))
    found = run.advance(lanes, HORIZON)
    assert found.steps == HORIZON
    assert found.signal == RUNNING
    assert found.streak >= CONSECUTIVE


def test_neighbours_do_not_matter(run):
    parameter = np.linspace(2.9, 3.99, 1500)
    together = run.advance(lanes_of(parameter, 0.3), 2000)
    some = np.array([3, 700, 1400, 1499])
    alone = run.advance(lanes_of(parameter[some], 0.3), 2000)
    assert_same(alone, take(together, some))
    assert_same(run.advance(lanes_of(parameter[::-1], 0.3), 2000), take(together, np.arange(1500)[::-1]))


def test_beyond_the_escape_radius_periods_are_found(run):
    lanes = lanes_of([TWO_CYCLE], 0.3, escape_radius=np.array([0.1]))
    found = run.advance(lanes, HORIZON)
    assert found.signal == RECURRENT
    assert found.period == 2


def test_straight_to_a_step(run):
    lanes = lanes_of(
        [TWO_CYCLE, CHAOTIC, GROWING, STATIONARY_AT], 0.3, retry_at=np.full(4, np.iinfo(np.int64).max)
    )
    steps = np.array([1, 700, 700, 700])
    found, arrived = run.to(lanes, steps)
    np.testing.assert_array_equal(arrived, [True, True, False, True])
    np.testing.assert_array_equal(found.steps[arrived], steps[arrived])
    assert found.signal[2] in (ESCAPED, OVERFLOWN)
    with float64():
        states = jax.lax.fori_loop(
            0, 700, lambda _, state: jax.vmap(logistic)(found.parameter, state), jnp.asarray(found.start)
        )
    np.testing.assert_allclose(found.state[3], states[3], rtol=1e-12)
    again, _ = run.to(found, steps + 1)
    assert_same(take(again, np.array([2])), take(found, np.array([2])))


def test_no_trajectories(run):
    assert len(run.advance(lanes_of([], 0.3), HORIZON).state) == 0


def test_searches_become_rarer_with_age():
    horizon, window = 10**6, WINDOW
    steps, ends = 0, []
    while steps < horizon:
        steps = int(next_search(np.int64(steps), horizon, window))
        ends.append(steps)
    early = [end for end in ends if end <= 12288]
    np.testing.assert_array_equal(early, np.arange(1, 49) * ROUND)
    np.testing.assert_array_equal(ends[48:52], [16384, 16640, 16896, 17152])
    assert ends[-1] == horizon
    assert len(ends) < 200
    with float64():
        np.testing.assert_array_equal(
            next_search(jnp.arange(50_000), horizon, window), next_search(np.arange(50_000), horizon, window)
        )


def test_stretches_end_at_the_window():
    for horizon in (1000, 5000, 20_000):
        steps = np.int64(0)
        while steps < horizon:
            need = next_stretch(steps, horizon, WINDOW)
            assert 0 <= need <= ROUND
            if need == 0:
                assert next_search(steps, horizon, WINDOW) == steps + WINDOW
            steps = steps + (need or WINDOW)
        assert steps == horizon
    assert next_stretch(np.int64(7), 10_000, WINDOW) == -1
    assert next_stretch(np.int64(0), 10, WINDOW) == -1


def test_block_fits_the_cache():
    assert fitting_block(200, 100) == 1024
    assert fitting_block(16_000, 10_000) == 64
    assert fitting_block(10**9, 1000) == 16
    assert fitting_block(10**9, 2**26) == 2


@pytest.mark.parametrize(
    ("statistics", "lanes"), [({"bytes_limit": 2**34}, 2**15), ({"bytes_limit": 2**50}, 2**16), (None, 2**13)]
)
def test_block_on_another_device_fits_its_memory(monkeypatch, statistics, lanes):
    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: statistics)
    monkeypatch.setattr(xla.jax, "devices", lambda: [device])
    assert fitting_block(2**16, 2**16) == lanes

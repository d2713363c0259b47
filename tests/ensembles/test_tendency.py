import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import theilslopes

from gdmap.ensembles.horizon import Horizon
from gdmap.ensembles.tendency import (
    Cause,
    Tendency,
    falls_at_every_step,
    judge,
    level,
    longest_period,
    mean_growth,
    periods,
    trend,
)

RNG = np.random.default_rng(0)
WINDOW, STEPS = 512, 2048


def test_the_intervals_of_slopes_hold_as_often_as_they_say():
    noise = RNG.standard_normal((20_000, 16))
    for values, slope in ((noise, 0.0), (noise + 0.2 * np.arange(16), 0.2), (np.exp(noise) + np.arange(16), 1.0)):
        found = trend(values, 1.0)
        # 99 % nominal; the standard error of the share is 0.07 %.
        assert 0.988 <= np.mean((found.lower <= slope) & (slope <= found.upper)) <= 0.998
    assert trend(noise, 1.0).falls.mean() <= 4e-4
    assert trend(noise - np.arange(16), 1.0).falls.mean() > 0.99


def test_the_intervals_of_medians_hold_as_often_as_they_say():
    history = RNG.exponential(size=(20_000, 128))
    exact = np.median(np.median(RNG.exponential(size=(200_000, 8)), axis=1))
    found = level(history)
    assert 0.994 <= np.mean((found.lower <= exact) & (exact <= found.upper)) <= 0.999
    assert np.all((found.lower <= found.median) & (found.median <= found.upper))


@given(st.integers(0, 10**6), st.floats(-5, 5), st.floats(0.1, 50))
@settings(max_examples=20, deadline=None)
def test_the_slope_is_that_of_scipy_and_follows_the_units(seed, slope, spacing):
    values = np.random.default_rng(seed).normal(size=16) + slope * np.arange(16)
    found = trend(values[None], spacing)
    assert found.slope[0] == pytest.approx(theilslopes(values, spacing * np.arange(16))[0], rel=1e-9, abs=1e-12)
    assert found.lower[0] <= found.slope[0] <= found.upper[0]


def swinging(period, noise=0.0):
    steps = np.arange(WINDOW)
    cycle = np.random.default_rng(period).normal(size=(period, 8))[steps % period]
    return cycle + noise * RNG.normal(size=cycle.shape)


@pytest.mark.parametrize("period", [2, 3, 12, 63, 64])
def test_periods_are_found(period):
    found, recurrence = periods(swinging(period)[None])
    assert found.tolist() == [period]
    assert recurrence[0] == 0


def test_what_recurs_only_nearly_or_not_for_long_has_no_period():
    steps = np.arange(WINDOW)[:, None]
    direction = RNG.normal(size=8)
    runs = {
        "noise": swinging(4, 0.1),
        "drift": steps * direction,
        "slow approach from both sides": (-0.9999) ** steps * direction,
        "long period": swinging(65),
        "slow rotation": np.concatenate([np.cos(steps / 40), np.sin(steps / 40)] * 4, axis=1),
    }
    found, _ = periods(np.stack(list(runs.values())))
    assert dict(zip(runs, found.tolist(), strict=True)) == dict.fromkeys(runs, 0)


def test_a_short_window_has_room_for_short_periods_only():
    assert (longest_period(128), longest_period(512), longest_period(1024)) == (16, 64, 64)
    assert periods(swinging(16)[None, :128])[0][0] == 16
    assert periods(swinging(17)[None, :128])[0][0] == 0


def test_the_error_of_the_growth_covers_the_mean():
    noise = RNG.normal(0.1, 1.0, size=(1000, 1024))
    mean, error = mean_growth(noise)
    within = np.mean(np.abs(mean - 0.1) <= 2 * error)
    assert 0.92 <= within <= 0.98
    swinging_growth = np.tile([1.0, -1.2], 512)[None]
    mean, error = mean_growth(swinging_growth)
    assert mean[0] == pytest.approx(-0.1)
    assert error[0] < 0.01
    noise[0, 500] = -np.inf
    assert mean_growth(noise[:1])[0] == -np.inf


def record(gradient, step_length=None, loss=None, projections=None, state=1.0, dtype=float):
    """The record of one run of one parameter that came from 0."""
    gradient = np.asarray(gradient, dtype)[None]
    flat = np.ones(WINDOW)
    return Horizon(
        np.full((1, 1), state, dtype),
        np.array([-1]),
        np.asarray(flat if loss is None else loss, dtype)[None],
        gradient,
        gradient if step_length is None else np.asarray(step_length, dtype)[None],
        np.zeros((1, WINDOW), dtype),
        (RNG.normal(size=(WINDOW, 8)) if projections is None else projections)[None].astype(dtype),
    )


def verdict(horizon, stable=True, **flags):
    given_flags = {name: np.array([flag]) for name, flag in flags.items()}
    judged = judge(horizon, np.zeros((1, 1)), STEPS, np.array([stable]), **given_flags)
    return Tendency(judged.tendency[0]), Cause(judged.cause[0])


T = np.arange(STEPS - WINDOW, STEPS).astype(float)


def test_what_stands_still_has_converged_unless_it_is_at_a_saddle_or_beyond_the_edge():
    still = record(np.full(WINDOW, 1e-12))
    assert verdict(still) == (Tendency.CONVERGED, Cause.NEGLIGIBLE_STEPS)
    assert verdict(still, leaves=True) == (Tendency.UNDECIDED, Cause.NEGATIVE_CURVATURE)
    assert verdict(still, stable=False) == (Tendency.UNDECIDED, Cause.SHARPNESS_ABOVE_LIMIT)


def test_rounding_in_single_precision_is_standing_still():
    steps = np.full(WINDOW, 2e-7)
    falling = np.linspace(2, 1, WINDOW)
    assert verdict(record(falling, step_length=steps, dtype=np.float32))[0] == Tendency.CONVERGING  # it adds up
    assert verdict(record(steps, dtype=np.float32))[0] == Tendency.CONVERGED
    assert verdict(record(steps))[0] != Tendency.CONVERGED


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5])
def test_algebraic_decay_is_converging(power):
    gradient = T**-power * np.exp(0.01 * RNG.normal(size=WINDOW))
    assert verdict(record(gradient)) == (Tendency.CONVERGING, Cause.FALLING_GRADIENT)
    assert verdict(record(gradient), stable=False) == (Tendency.UNDECIDED, Cause.SHARPNESS_ABOVE_LIMIT)


def test_a_fall_to_a_positive_level_is_not():
    gradient = 1 + 0.001 * np.exp(-(T - T[0]) / 200)
    # It falls beyond chance, hardly: neither converging nor without a tendency.
    assert verdict(record(gradient)) == (Tendency.UNDECIDED, Cause.STILL_CHANGING)
    falling_loss = verdict(record(gradient, loss=1 / T))
    assert falling_loss == (Tendency.UNDECIDED, Cause.STILL_CHANGING)


def test_a_loss_that_falls_at_every_step_is_converging_once_the_run_has_slowed_down():
    plateau, falling = np.full(WINDOW, 1e-5), 1 + 1e-4 * np.exp(-T / 1e4)
    assert verdict(record(plateau, loss=falling)) == (Tendency.CONVERGING, Cause.FALLING_LOSS)
    assert verdict(record(plateau, loss=falling), stable=False)[0] == Tendency.UNDECIDED
    straight_on = np.full(WINDOW, 1 / STEPS)  # a linear loss: as fast at the end as on the way
    assert verdict(record(straight_on, loss=falling))[0] != Tendency.CONVERGING
    falling[WINDOW // 2] += 1e-6
    assert verdict(record(plateau, loss=falling))[0] != Tendency.CONVERGING
    assert not falls_at_every_step(np.ones((1, 50)))[0]


def test_growing_tangents_are_unstable_unless_the_record_says_more():
    wild = np.exp(2 * RNG.normal(size=WINDOW))
    wild[: WINDOW // 2] *= 5
    assert verdict(record(wild), grows=True) == (Tendency.UNSTABLE, Cause.GROWING_TANGENTS)
    assert verdict(record(wild), grows=False)[0] == Tendency.UNDECIDED


def test_what_recurs_is_periodic_unless_tangents_grow_or_it_is_rounding():
    cycle = np.resize([1.0, 0.5], WINDOW)
    recurring = record(cycle, projections=swinging(2))
    assert verdict(recurring) == (Tendency.PERIODIC, Cause.RECURRENCE)
    assert verdict(recurring, stable=False) == (Tendency.PERIODIC, Cause.RECURRENCE)
    assert verdict(recurring, grows=True)[0] == Tendency.SUSTAINED
    rounding = record(1e-5 * cycle, projections=swinging(2), dtype=np.float32)
    assert verdict(rounding)[0] == Tendency.SUSTAINED


def test_noise_is_sustained_and_a_growing_gradient_undecided():
    noise = np.exp(0.3 * RNG.normal(size=WINDOW))
    assert verdict(record(noise)) == (Tendency.SUSTAINED, Cause.NO_TREND)
    assert verdict(record(np.exp(T / 200))) == (Tendency.UNDECIDED, Cause.STILL_CHANGING)


def test_noise_is_hardly_ever_called_converging():
    count = 3000
    noise = np.exp(0.3 * RNG.normal(size=(count, WINDOW)))
    many = Horizon(
        np.ones((count, 1)), np.full(count, -1), noise, noise, noise, noise, np.zeros((count, WINDOW, 1))
    )
    judged = judge(many, np.zeros((count, 1)), STEPS, np.ones(count, bool))
    assert np.sum(judged.tendency == Tendency.CONVERGING) <= 2
    assert np.mean(judged.tendency == Tendency.SUSTAINED) > 0.95

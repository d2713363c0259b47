"""Judging many states at once: as one by one, and the short ways as the long one."""

import numpy as np
import pytest

import gdmap
from gdmap.ensembles import verdicts
from gdmap.ensembles.fates import Fate, Reason
from gdmap.ensembles.verdicts import at_zero_residual, judge_cycles, judge_fixed_points, observe
from gdmap.maps import ConstantFamily, StepSizeFamily

PRODUCT = gdmap.Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)
WELL = gdmap.Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
NETWORK = gdmap.LinearNetwork.whitened((2, 2, 2), np.diag([1.0, 0.5]))
FAMILIES = {
    name: ConstantFamily(gdmap.GradientDescent(objective, 0.2))
    for name, objective in (("product", PRODUCT), ("well", WELL), ("network", NETWORK))
}
LANES = 300


def mixed_states(family, seed=0):
    """Starts, points on the way, minima and saddles; and where each is said to have come from."""
    rng = np.random.default_rng(seed)
    start = rng.normal(size=(LANES, family.objective.dim))
    start[::7] = 0.0
    ends = [gdmap.ensemble(family.map, start, max_steps=steps).state.values for steps in (1, 30, 3000)]
    state = np.array(ends)[rng.integers(0, 3, LANES), np.arange(LANES)]
    return state, state + rng.normal(size=state.shape)


def at_a_minimum(lanes=40, seed=3):
    rng = np.random.default_rng(seed)
    first = np.eye(2) + 0.2 * rng.normal(size=(lanes, 2, 2))
    second = np.diag([1.0, 0.5]) @ np.linalg.inv(first)
    theta = np.stack([NETWORK.ravel(pair) for pair in zip(first, second, strict=True)])
    return theta + 1e-9 * rng.normal(size=theta.shape), theta + 0.5 * rng.normal(size=theta.shape)


def sharpness(theta):
    return np.array([np.linalg.eigvalsh(NETWORK.hessian(point))[-1] for point in theta])


@pytest.mark.parametrize("name", FAMILIES)
def test_verdicts_on_many_states_are_those_on_each(name):
    family, parameter = FAMILIES[name], np.zeros(LANES)
    state, start = mixed_states(family)
    together = judge_fixed_points(family, parameter, state, start)
    assert len(set(together.fate)) > 1 and together.given.any() and not together.given.all()
    observed = observe(family, parameter, state)
    for lane in range(0, LANES, 7):
        one = slice(lane, lane + 1)
        alone = judge_fixed_points(family, parameter[one], state[one], start[one])
        for field, fields in zip(alone, together, strict=True):
            assert field[0] == fields[lane]
        for field, fields in zip(observe(family, parameter[one], state[one]), observed, strict=True):
            np.testing.assert_array_equal(field[0], fields[lane])


def test_verdicts_on_many_cycles_are_those_on_each():
    family = ConstantFamily(gdmap.GradientDescent(PRODUCT, 1.15))
    start = 1.1 + 0.2 * np.random.default_rng(0).random((LANES, 1)) + np.array([0.0, 1e-3])
    state = np.array(start)
    for _ in range(300):
        state = state - 1.15 * (state[:, :1] * state[:, 1:] - 1) * state[:, ::-1]
    period, parameter = np.where(np.arange(LANES) % 3, 2, 4), np.zeros(LANES)
    together = judge_cycles(family, parameter, state, period)
    assert np.all(together.fate == Fate.PERIODIC) and np.all(together.period == 2)
    for lane in range(0, LANES, 29):
        one = slice(lane, lane + 1)
        alone = judge_cycles(family, parameter[one], state[one], period[one])
        for field, fields in zip(alone, together, strict=True):
            assert field[0] == fields[lane]


def test_short_ways_agree_with_newtons_method(monkeypatch):
    for name, family in FAMILIES.items():
        state, start = mixed_states(family, seed=1)
        short = judge_fixed_points(family, np.zeros(LANES), state, start)
        with monkeypatch.context() as patch:
            patch.setattr(verdicts, "is_gradient_descent", lambda family: False)
            long = judge_fixed_points(family, np.zeros(LANES), state, start)
        # The short ways may decide more (the equation r = 0 is better conditioned), but never otherwise.
        np.testing.assert_array_equal(short.fate[long.given], long.fate[long.given], err_msg=name)
        np.testing.assert_array_equal(short.reason[long.given], long.reason[long.given], err_msg=name)
        assert np.all(short.given[long.given])


def test_states_at_zeros_of_the_residuals_are_minima_where_the_step_size_allows():
    state, start = at_a_minimum()
    limit = 2 / sharpness(state)
    family = StepSizeFamily(NETWORK, gdmap.GradientDescent)
    for share, stays in ((0.5, True), (0.999, True), (1.001, False), (2.0, False)):
        found = judge_fixed_points(family, share * limit, state, start)
        np.testing.assert_array_equal(found.given, stays)
        assert np.all(found.fate == Fate.MINIMUM)
        reason = Reason.KNOWN_OPTIMUM if stays else Reason.NEAR_UNSTABLE_ORBIT
        np.testing.assert_array_equal(found.reason, reason)


def test_what_is_no_regular_zero_of_the_residuals_is_left_to_newtons_method():
    family = ConstantFamily(gdmap.GradientDescent(NETWORK, 0.1))

    def at_zero(theta, scale=1.0):
        one = np.ones(1)
        return at_zero_residual(family, 0 * one, theta[None], scale * one, 1e-14 * one, np.zeros(1, bool))[0]

    minimum = NETWORK.ravel([np.eye(2), np.diag([1.0, 0.5])])
    assert at_zero(minimum) and at_zero(minimum + 1e-7)
    assert not at_zero(minimum + 1e-3)  # too far
    assert not at_zero(np.zeros(8))  # the Jacobian vanishes
    assert not at_zero(NETWORK.ravel([np.diag([1.0, 0.0]), np.diag([1.0, 0.0])]))  # a saddle
    assert not at_zero(np.full(8, np.nan))
    singular = gdmap.LinearNetwork.whitened((2, 2, 2), np.zeros((2, 2)))
    family = ConstantFamily(gdmap.GradientDescent(singular, 0.1))
    assert not at_zero(np.full(8, 1e-9))


def test_a_bottleneck_has_no_zero_of_the_residuals_but_the_same_fates():
    narrow = gdmap.LinearNetwork.whitened((2, 1, 2), np.diag([1.0, 0.5]))
    result = gdmap.ensemble(gdmap.GradientDescent(narrow, 0.2), np.random.default_rng(0).normal(size=(20, 4)))
    assert set(result.fate.values) == {Fate.MINIMUM}
    np.testing.assert_allclose(result.loss, 0.125, rtol=1e-9)

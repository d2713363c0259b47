"""Period-doubling cascades: their points to 1e-9, Feigenbaum's ratios, and where they end."""

import jax.numpy as jnp
import numpy as np
import pytest

from gdmap import Function, GradientDescent
from gdmap.continuation.cascade import cascade
from gdmap.orbits.periodic_orbit import orbit_at

CUBIC = Function(lambda x: x[0] ** 3 / 3 - x[0] / 4, 1)  # lam = 1 at the minimum 1/2
WELL = Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
DOUBLINGS = {
    "cubic": [
        2,
        6**0.5,
        2.544090359552,
        2.564407266095,
        2.568759419544,
        2.569691609801,
        2.569891259378,
        2.569934018374,
    ],
    "well": [
        1,
        5**0.5 - 1,
        1.288031754483,
        1.299227939650,
        1.301628914037,
        1.302143271581,
        1.302253437742,
        1.302277032260,
    ],
}
ACCUMULATION = {"cubic": 2.569945671870945, "well": 1.302283463}
FEIGENBAUM = 4.669201609102990


def followed(name, doublings):
    objective, theta, step_size = {"cubic": (CUBIC, 0.5, 1.5), "well": (WELL, 1.0, 0.5)}[name]
    orbit = orbit_at(GradientDescent(objective, step_size), np.array([theta]))
    return cascade(orbit, bounds=(0.4, 2.9), doublings=doublings)


def check(name, doublings):
    found = followed(name, doublings)
    exact = DOUBLINGS[name][:doublings]
    assert found.periods == [2**n for n in range(doublings)]
    values = np.array([bracket.value for bracket in found.parameters])
    errors = np.array([event.error for event in found.events])
    np.testing.assert_allclose(values, exact, atol=1e-11)
    assert np.all(errors < 1e-9) and np.all(np.abs(values - exact) <= 20 * errors + 1e-12)
    assert [event.criticality for event in found.events] == ["supercritical"] * doublings
    assert [branch.period for branch in found.branches] == found.periods
    return found


@pytest.mark.parametrize("name", [pytest.param("cubic", marks=pytest.mark.slow), "well"])
def test_doublings_of_textbook_maps(name):
    found = check(name, 5)
    assert abs(found.ratios[-1].value - FEIGENBAUM) < 0.01
    end = found.accumulation
    assert end.status == "estimated" and end.lower <= ACCUMULATION[name] <= end.upper
    assert "period doublings in step_size" in found.explain()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cubic", "well"])
def test_doublings_up_to_period_256(name):
    found = check(name, 8)
    assert abs(found.ratios[-1].value - FEIGENBAUM) < 1e-4
    assert found.accumulation.lower <= ACCUMULATION[name] <= found.accumulation.upper
    assert abs(found.accumulation.value - ACCUMULATION[name]) < 2e-9
    for ratio in found.ratios:
        assert ratio.lower <= ratio.value <= ratio.upper and ratio.upper - ratio.lower < 1e-3


def test_the_errors_of_ratios_are_those_of_their_values():
    found = followed("cubic", 3)
    first, second, third = found.parameters
    corners = [
        (b - a) / (c - b)
        for a in (first.lower, first.upper)
        for b in (second.lower, second.upper)
        for c in (third.lower, third.upper)
    ]
    (ratio,) = found.ratios
    assert ratio.lower - 1e-14 <= min(corners) and max(corners) <= ratio.upper + 1e-14


def test_a_cascade_that_does_not_go_on_says_why():
    orbit = orbit_at(GradientDescent(CUBIC, 1.5), np.array([0.5]))
    short = cascade(orbit, bounds=(1.0, 2.5), doublings=5)
    assert len(short.events) == 2 and "no period doubling up to its end" in short.ended and "bounds" in short.ended
    quadratic = orbit_at(GradientDescent(Function(lambda x: x[0] ** 2 / 2, 1), 1.5), np.zeros(1))
    none = cascade(quadratic, bounds=(1.0, 3.0), doublings=2)
    assert len(none.events) == 1 and none.accumulation is None and none.ratios == []
    with pytest.raises(ValueError, match="doublings must be a positive integer"):
        cascade(orbit, bounds=(1.0, 2.5), doublings=0)
    with pytest.raises(ValueError, match="direction must be"):
        cascade(orbit, bounds=(1.0, 2.5), direction="both")


@pytest.mark.slow
def test_a_cascade_in_twenty_dimensions():
    rng = np.random.default_rng(1)
    weights, phases = rng.standard_normal((30, 20)) / 4, rng.standard_normal(30)

    def loss(x):
        return 0.7 * jnp.sum(jnp.sin(weights @ x + phases)) + 0.15 * x @ x + 0.05 * jnp.sum(x**4)

    map_ = GradientDescent(Function(loss, 20), 0.2)
    state = rng.standard_normal(20)
    for _ in range(3000):
        state = map_.step(state)
    found = cascade(orbit_at(map_, state), bounds=(0.05, 4.0), doublings=4)
    assert found.periods == [1, 2, 4, 8]
    for event in found.events:
        assert event.error < 1e-9
        (below,) = [b for b in found.branches if b.period == event.period]
        assert below.stability[1] == "stable"


@pytest.mark.slow
def test_a_cascade_downwards_in_a_made_parameter():
    def well(c):
        return GradientDescent(Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1), 1 / c)

    found = cascade(orbit_at(well(2.0), np.ones(1)), well, (0.6, 3.0), value=2.0, doublings=3, direction="down")
    np.testing.assert_allclose([1 / event.parameter for event in found.events], DOUBLINGS["well"][:3], atol=1e-11)


@pytest.mark.slow
def test_a_cascade_that_forks_says_where():
    orbit = orbit_at(GradientDescent(Function(lambda x: -jnp.cos(x[0]), 1), 1.5), np.zeros(1))
    found = cascade(orbit, bounds=(1.0, 4.0), doublings=3)
    assert len(found.events) == 1
    assert "branch point at step_size = 3.14159265" in found.ended and "switch_branch" in found.ended

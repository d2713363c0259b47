import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from gdmap import Bracket, Fate
from gdmap.engines.precision import float64
from gdmap.reproduce import REPRODUCTIONS, synthetic_transition
from gdmap.reproduce.synthetic_transition import (
    QUICK,
    STRETCH,
    TARGET,
    flat_claim,
    losses,
    norm_claim,
    search_claim,
    share_claim,
    theorem_claim,
)
from gdmap.reproduce.transition import cycle_norm

from .test_linear_transition import made_up

NAME = "synthetic-transition"

# One worker: the reproduction is run once.
pytestmark = pytest.mark.xdist_group("reproduce")


@pytest.fixture(scope="module")
def report():
    return synthetic_transition.run(quick=True)


def of(report, variable, case):
    return report.data[variable].isel(case=report.data["case"].attrs["names"].index(case))


def test_transitions_meet_the_closed_forms(report):
    found = report.claims[0].found
    golden = {
        "product of 2 factors": 1.0,
        "double well": 1.0,
        "tanh neuron": 1 + math.sqrt(5),
        "valley along an ellipse": 1.0,
    }
    for name, value in golden.items():
        assert found[f"{name}: predicted critical step size"].value == pytest.approx(value, rel=1e-14)
        observed = found[f"{name}: observed transition"]
        assert observed.lower <= value <= observed.upper and observed.upper - observed.lower < 0.021 * value
    assert [claim.agrees for claim in report.claims] == ["yes"] * 5
    assert not any(claim.proved for claim in report.claims)


def test_shares_of_the_tanh_neuron_are_those_of_theory_6_3(report):
    share = of(report, "fraction", "tanh neuron").sel(fate_name=int(Fate.MINIMUM)).values
    factor = of(report, "factor", "tanh neuron").values
    number = report.data.sizes["start"]
    for at, expected in ((0.9, 0.645), (0.98, 0.575)):
        found = float(share[factor == at][0])
        assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) * (1 / number + 1 / 2000))
    np.testing.assert_array_equal(share[factor > 1], 0)


# A point on the minima for each parameter of the set of minima.
MINIMA = {
    "product of 2 factors": lambda t: [math.exp(t), math.exp(-t)],
    "product of 3 factors": lambda t: [math.exp(t), math.exp(-t / 2), math.exp(-t / 2)],
    "product of 4 factors": lambda t: [math.exp(t), math.exp(t), math.exp(-t), math.exp(-t)],
    "product of 5 factors": lambda t: [math.exp(t), math.exp(-t), 1.0, 1.0, 1.0],
    "double well": lambda t: [1.0 if t > 0 else -1.0],
    "tanh neuron": lambda t: [math.exp(t), TARGET / math.tanh(math.exp(t))],
    "valley along an ellipse": lambda t: [math.sqrt(STRETCH) * math.cos(t), math.sin(t)],
}


@pytest.mark.parametrize("loss", [one for one in losses() if one.name in MINIMA], ids=lambda one: one.name)
def test_closed_forms_are_the_smallest_sharpness_along_the_minima(loss):
    with float64():
        hessian = jax.jit(jax.hessian(loss.function))

        def sharpness(t):
            point = jnp.asarray(MINIMA[loss.name](t))
            assert float(loss.function(point)) < 1e-28
            return float(np.linalg.eigvalsh(np.asarray(hessian(point)))[-1])

        found = minimize_scalar(sharpness, bounds=(-1.4, 1.3), method="bounded", options={"xatol": 1e-9}).fun
    assert 2 / found == pytest.approx(loss.critical, rel=1e-8)


def test_rays_are_kept_by_the_gradient_and_have_its_length():
    with float64():
        for loss in losses():
            if loss.ray is None:
                continue
            along = np.eye(loss.dim)[0] if loss.name.startswith("valley") else np.ones(loss.dim)
            for x in (0.7, 1.3):
                gradient = np.asarray(jax.grad(loss.function)(jnp.asarray(x * along)))
                np.testing.assert_allclose(gradient, loss.ray.gradient(x) * along, atol=1e-14)
                assert np.linalg.norm(gradient) == pytest.approx(loss.ray.factor * abs(loss.ray.gradient(x)))
                slope = (loss.ray.gradient(x + 1e-6) - loss.ray.gradient(x - 1e-6)) / 2e-6
                assert loss.ray.slope(x) == pytest.approx(slope, rel=1e-8)
            assert loss.ray.gradient(loss.ray.minimum) == pytest.approx(0, abs=1e-15)
            assert 2 / loss.ray.slope(loss.ray.minimum) == pytest.approx(loss.critical, rel=1e-14)


def test_two_cycle_of_the_double_well_is_that_of_golden_2(report):
    ray = next(loss.ray for loss in losses() if loss.name == "double well")
    for eta in (1.02, 1.1, 1.2):
        high, low = ((math.sqrt(eta + 3) + sign * math.sqrt(eta - 1)) / 2 for sign in (1, -1))
        exact = (high - low) / math.sqrt(eta) / eta
        assert cycle_norm(ray, eta) == pytest.approx(exact, rel=1e-9)
    found = report.claims[1].found
    exact = math.sqrt(0.1) / 1.1**1.5
    assert found["double well: median gradient norm at 1.1"].value == pytest.approx(exact, rel=1e-8)


def test_without_a_critical_step_size_starts_converge_at_every_one(report):
    name = "valley that flattens out"
    fate = of(report, "fate", name).values
    step_size = of(report, "step_size", name).values
    assert step_size.min() == 0.5 and step_size.max() == pytest.approx(50)
    assert np.all((fate == Fate.MINIMUM) | (fate == Fate.UNDECIDED)) and np.all((fate == 1).mean(axis=1) > 0.5)
    assert float(of(report, "predicted", name)) == math.inf
    assert report.claims[4].found[f"{name}: smallest sharpness that the search came to"].value < 1e-6


def test_the_search_is_beside_the_closed_form(report):
    found = report.claims[3].found
    searched = found["double well: searched"]
    assert searched.status == "estimated" and searched.value == pytest.approx(1, rel=1e-9)
    assert found["double well: closed form"].status == "computed"


@pytest.mark.slow
def test_full_run_agrees():
    report = synthetic_transition.run()
    assert [claim.agrees for claim in report.claims] == ["yes"] * 5
    assert len(report.data["case"]) == len(losses())
    assert report.claims[3].found["tanh neuron: searched"].value == pytest.approx(3.236068, abs=1e-6)


def test_data_and_pictures(report, tmp_path):
    for name, variable in report.data.data_vars.items():
        assert variable.attrs["long_name"] and variable.attrs["status"], name
    assert list(report.figures) == ["share", "gradient_norm"]
    report.save(tmp_path)
    assert (tmp_path / "gradient_norm.png").stat().st_size > 20_000


def test_it_is_registered():
    assert REPRODUCTIONS[NAME].run is synthetic_transition.run


class Searched:
    """What a search returns, made up."""

    def __init__(self, value, falling):
        self.step_size = Bracket(value, value, math.inf, "estimated", "")
        self.min_sharpness = Bracket(2 / value, 0.0, 2 / value, "estimated", "")
        self.search = self
        self.falling = falling


def test_claims_say_no_when_the_numbers_do():
    good = made_up(Fate.MINIMUM, Fate.PERIODIC, (0.99, 1.01))
    converging = made_up(Fate.MINIMUM, Fate.MINIMUM, (1.5, 1.6))
    assert share_claim([good], QUICK).agrees == "yes" and share_claim([good, converging], QUICK).agrees == "no"
    flat = made_up(Fate.MINIMUM, Fate.PERIODIC, (0.99, 1.01), norm_below=0.1)
    assert norm_claim([good], QUICK).agrees == "yes" and norm_claim([flat], QUICK).agrees == "no"
    assert theorem_claim([good], QUICK).agrees == "yes" and theorem_claim([converging], QUICK).agrees == "no"
    name = good.case.name
    assert search_claim([good], {name: Searched(1.0, False)}).agrees == "yes"
    assert search_claim([good], {name: Searched(1.01, False)}).agrees == "no"
    assert search_claim([converging], {}).agrees == "no"
    assert flat_claim([converging], {name: Searched(1e9, True)}, QUICK).agrees == "yes"
    assert flat_claim([converging], {name: Searched(1e9, False)}, QUICK).agrees == "no"
    assert flat_claim([good], {name: Searched(1e9, True)}, QUICK).agrees == "no"

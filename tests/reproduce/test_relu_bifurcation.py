import math

import mpmath
import numpy as np
import pytest

from gdmap import Fate, GradientDescent, orbit_at
from gdmap.bracket import Bracket
from gdmap.cli.reproduce import list_reproductions
from gdmap.reproduce import REPRODUCTIONS, relu_bifurcation, reproduce
from gdmap.reproduce.gd_vs_sgd_stability import network
from gdmap.reproduce.relu_bifurcation import (
    C,
    Run,
    across,
    along,
    coefficient_claim,
    cubic,
    dead_from,
    exact_accumulation,
    exact_death,
    loss_claim,
    minimum_claim,
    period_two_claim,
    printed_network,
    settles,
)

NAME = "relu-bifurcation"

# One worker: the reproduction is run once.
pytestmark = pytest.mark.xdist_group("reproduce")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def report(folder):
    return reproduce(NAME, folder, quick=True)


def test_the_special_step_sizes_are_those_of_theory_6_2(report):
    found = report.claims[0].found
    expected = {
        "doubling of period 1": 0.283286,
        "doubling of period 2": 0.350161,
        "doubling of period 4": 0.364882,
        "period 3 appears": 0.410890,
        "orbits die from": 0.452713,
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=6e-7), name
    # golden.md 2: the same map with a = 3.53 eta.
    doublings = {1: 1.0, 2: math.sqrt(5) - 1, 4: 1.288031754483, 8: 1.299227939650}
    for period, a in doublings.items():
        event = found[f"doubling of period {period}"]
        assert event.value * 3.53 == pytest.approx(a, abs=2e-12) and event.status == "computed"
        assert event.upper - event.lower < 1e-11
    assert found["accumulation of the doublings, exact"].value * 3.53 == pytest.approx(1.302283463, abs=6e-10)
    assert found["accumulation of the doublings"].status == "estimated"
    assert found["orbits die from, exact"].value * 3.53 == pytest.approx(1.598076211353, abs=1e-12)
    assert found["orbits die from"].status == "estimated"
    assert found["orbits die from"].upper - found["orbits die from"].lower < 1e-6


def test_found_and_exact_agree_within_their_intervals(report):
    found = report.claims[0].found
    names = [name for name in found if f"{name}, exact" in found]
    assert len(names) == 7
    for name in names:
        one, exact = found[name], found[f"{name}, exact"]
        assert one.lower <= exact.upper and exact.lower <= one.upper, name
    assert report.claims[0].agrees == "yes" and "7 of 7" in report.claims[0].conclusion


@pytest.mark.parametrize(
    ("name", "period", "multiplier", "guess"),
    [("doubling of period 4", 4, -1, (1.288, 1.171)), ("period 3 appears", 3, 1, (1.4504, 1.2235))],
)
def test_the_exact_step_sizes_in_40_digits(report, name, period, multiplier, guess):
    def equations(a, start):
        x, product = start, mpmath.mpf(1)
        for _ in range(period):
            product *= 1 + a - 3 * a * x**2
            x = (1 + a) * x - a * x**3
        return x - start, product - multiplier

    with mpmath.workdps(40):
        step_size = float(mpmath.findroot(equations, guess)[0] / mpmath.mpf("3.53"))
    exact = report.claims[0].found[f"{name}, exact"]
    assert exact.lower <= step_size <= exact.upper


def test_the_accumulation_converges():
    """Fewer levels give the same limit within the error they claim."""
    fewer, more = exact_accumulation(9), exact_accumulation()
    assert abs(fewer.value - more.value) <= fewer.upper - fewer.value
    assert more.upper - more.value < 1e-11 < fewer.upper - fewer.value < 1e-6
    assert exact_death().value == pytest.approx(0.452712808, abs=1e-9)


def test_the_closed_forms_are_those_of_the_network():
    objective, rng = network(), np.random.default_rng(0)
    for x, eta in rng.uniform([0.1, 0.1], [1.3, 0.45], (5, 2)):
        map_ = GradientDescent(objective, eta)
        np.testing.assert_allclose(map_.step(np.array([x, x])), cubic(C * eta, x), rtol=1e-14)
        eigenvalues = np.linalg.eigvalsh(map_.jacobian(np.array([x, x])))
        exact = sorted([along(C * eta, x), across(C * eta, x)])
        np.testing.assert_allclose(eigenvalues, exact, atol=1e-13)


def test_multipliers_are_those_of_the_plane(report):
    found = report.claims[1].found
    for eta, (across_it, along_it) in {
        "0.3": (0.882, 0.521038),
        "0.325": (0.7055, -0.221365125),
        "0.4": (0.176, -2.635488),
    }.items():
        assert found[f"2-cycle at {eta}, multiplier across"].value == pytest.approx(across_it, abs=1e-9)
        assert found[f"2-cycle at {eta}, multiplier along"].value == pytest.approx(along_it, abs=1e-9)
    assert found["neutral dimension, period 1"].value == 1
    assert all(found[f"neutral dimension, period {p}"].value == 0 for p in (2, 3, 4, 8))
    assert found["largest difference of a multiplier from the closed form, relative"].value < 1e-9
    assert found["orbits told otherwise by the closed forms"].value == 0
    assert report.claims[1].agrees == "corrected" and "no isolated orbit" in report.claims[1].conclusion


def test_the_trajectories_end_as_in_theory_6_2(report):
    _, _, first, second, loss, coefficient = report.claims
    assert first.agrees == second.agrees == "yes"
    for i, value in enumerate((1.210129806445, 0.826357630954), 1):
        end = first.found[f"theta_{i} at the end"]
        assert end.value == pytest.approx(value, abs=1e-12) and end.upper - end.lower < 1e-10
    assert first.found["theta_1^2 + theta_2^2 at the end"].value == pytest.approx(2.147281, abs=6e-7)
    multiplier = first.found["largest multiplier but that along the minima"].value
    assert math.log(abs(multiplier)) == pytest.approx(-0.110959, abs=6e-7)
    ends = sorted(second.found[f"theta_1 at phase {i}"].value for i in (1, 2))
    assert ends == pytest.approx([0.77152081, 1.12978106], abs=6e-9)
    assert second.found["multiplier 1"].value == pytest.approx(0.7055, abs=1e-10)
    assert second.found["multiplier 2"].value == pytest.approx(-0.221365125, abs=1e-10)
    assert loss.agrees == "corrected" and "2 of 2 trajectories die" in loss.conclusion
    assert loss.found["L = 3.53 (1 - u)^2: critical step size"].value == pytest.approx(0.1416, abs=5e-5)
    assert coefficient.agrees == "corrected" and "3.51 is wrong" in coefficient.conclusion
    assert coefficient.found["coefficient from the first doubling"].value == pytest.approx(3.53, abs=1e-12)


def test_first_steps_of_the_trajectories(report):
    data = report.data
    steps = data["trajectory"].values
    np.testing.assert_allclose(steps[0, 1], [1.378689, 0.582372875676], atol=5e-7)
    np.testing.assert_allclose(steps[0, 2], [1.479981681512, 0.822169596323], atol=1e-12)
    np.testing.assert_allclose(steps[1, 1], [1.3482957, 0.524382035676], atol=5e-8)
    np.testing.assert_allclose(steps[1, 2], [1.52455044457, 0.977569784379], atol=1e-11)
    assert data["as_printed"].values.tolist() == [False, False, True, True]
    assert np.all(steps[2:, -1] < 0)
    loss = printed_network()
    assert loss.value(np.array([0.5, 0.5])) == pytest.approx(3.53 * 0.75**2)
    np.testing.assert_array_equal(GradientDescent(loss, 0.25).step(steps[2, -1]), steps[2, -1])


def test_sampled_orbits_follow_the_stable_cycles_and_die_beyond(report):
    data = report.data
    step_sizes, sampled = data["sampled_step_size"].values, data["sampled"].values
    dead = (sampled <= 0).any(axis=(1, 2))
    assert dead[step_sizes > 0.4528].all() and not dead[step_sizes < 0.4527].any()
    near = int(np.argmin(np.abs(step_sizes - 0.325)))
    a = C * step_sizes[near]
    exact = np.sqrt((1 + a + np.array([-1, 1]) * math.sqrt((1 + a) ** 2 - 4)) / (2 * a))
    apart = np.abs(sampled[near].reshape(-1, 1) - exact)
    assert apart.min(axis=1).max() < 1e-10 and (apart.argmin(axis=1) == 0).mean() == pytest.approx(0.5)


def test_the_branches_hold_the_fixed_point_and_the_cycles(report):
    data = report.data
    for name, p in (("minimum", 1), ("cycle", 2)):
        chosen = data["period"].values == p
        cycle, eta = data["cycle"].values[chosen, :p], data["step_size"].values[chosen]
        exact = np.ones((len(eta), 1))
        if name == "cycle":
            r = 1 + C * eta[:, None]
            exact = np.sqrt(
                np.maximum((r + np.array([-1, 1]) * np.sqrt(np.maximum(r * r - 4, 0))) / (2 * (r - 1)), 0)
            )
        np.testing.assert_allclose(np.sort(cycle, axis=1), np.sort(exact, axis=1), atol=2e-7)
        stable = data["stable"].values[chosen]
        assert stable.any() and not stable.all()
        # Stable between one doubling and the next.
        low, high = {1: (0.0, 1 / C), 2: (1 / C, (math.sqrt(5) - 1) / C)}[p]
        inside = (eta > low + 1e-9) & (eta < high - 1e-9)
        np.testing.assert_array_equal(stable[inside], True)
        np.testing.assert_array_equal(stable[eta > high + 1e-9], False)
    assert np.isnan(data["cycle"].values[data["period"].values == 3][:, 3:]).all()


def test_the_report_is_complete(report, folder):
    text = report.markdown()
    assert text.count("## ") == 6 and "![bifurcation_diagram](bifurcation_diagram.png)" in text
    names = {"report.md", "report.json", "data.zarr", "bifurcation_diagram.png", "trajectories.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert [claim.statement for claim in report.claims] == list(REPRODUCTIONS[NAME].statements)


def test_the_command_line_lists_it(capsys):
    list_reproductions(json_=False)
    assert f"{NAME}: {relu_bifurcation.TITLE}" in capsys.readouterr().out


# Judgements follow the numbers -------------------------------------------------------------------------------


def run_of(report, k):
    """A run of the report again."""
    step_size, period = ((0.25, 1), (0.325, 2))[k]
    states = report.data["trajectory"].values[k]
    fate = ("minimum", "periodic")[k]
    assert report.data["trajectory_fate"].values[k] == Fate[fate.upper()]
    return Run(step_size, states, fate, orbit_at(GradientDescent(network(), step_size), states[-period:]))


def test_other_runs_are_judged_otherwise(report):
    first, second = run_of(report, 0), run_of(report, 1)
    assert settles(first, 1) and settles(second, 2) and not settles(first, 2) and not settles(second, 1)
    objective = network()
    assert minimum_claim(objective, second).agrees == "no"
    assert period_two_claim(first).agrees == "no"
    assert period_two_claim(second._replace(fate="chaotic")).agrees == "no"
    assert period_two_claim(second._replace(orbit=None)).agrees == "no"
    dead = Run(0.25, np.array([[1.0, 1.0], [-0.1, -0.2], [-0.1, -0.2]]), "minimum", None)
    assert dead_from(dead) == 1 and dead_from(first) is None
    # Below zero but still moving is not dead.
    assert dead_from(dead._replace(states=np.array([[1.0, 1.0], [-0.1, 0.2], [0.1, 0.2]]))) is None
    assert loss_claim([first, second], [first, second]).agrees == "yes"
    assert loss_claim([first, second], [dead, dead]).agrees == "corrected"
    assert loss_claim([dead, dead], [dead, dead]).agrees == "no"


def test_another_coefficient_is_judged_otherwise(report, monkeypatch):
    class Doubling:
        bracket = Bracket(1 / 3.51, 1 / 3.51 - 1e-12, 1 / 3.51 + 1e-12, "computed", "made up")

    assert coefficient_claim(Doubling()).agrees == "no"
    Doubling.bracket = Bracket(1 / 3.53, 1 / 3.53 - 1e-12, 1 / 3.53 + 1e-12, "computed", "made up")
    assert coefficient_claim(Doubling()).agrees == "corrected"
    monkeypatch.setattr(relu_bifurcation, "PRINTED", (3.53,))
    assert coefficient_claim(Doubling()).agrees == "yes"

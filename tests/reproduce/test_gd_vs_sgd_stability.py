import numpy as np
import pytest
import xarray as xr

import gdmap
from gdmap import GradientDescent, Objective
from gdmap.bracket import Bracket
from gdmap.reproduce import REPRODUCTIONS, gd_vs_sgd_stability, reproduce
from gdmap.reproduce.gd_vs_sgd_stability import (
    MINIMA,
    Band,
    bands,
    curve,
    disjoint_claim,
    found_along_the_curve,
    half,
    minimum,
    network,
    one_case,
    regions,
    squared_norm,
    stability,
    subset_claim,
    within,
)

NAME = "gd-vs-sgd-stability"
S = "SGD-stable band {}, s {}"


@pytest.fixture(scope="module")
def panels():
    """Both panels without the simulations, which take most of the time."""
    objective = network()
    t1 = curve(objective, MINIMA[0])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gd_vs_sgd_stability, "simulated", lambda *_: xr.Dataset())
        return [
            one_case(objective, t1, eta, np.array([p, 1 - p]), True, 0) for eta, p in gd_vs_sgd_stability.CASES
        ]


@pytest.fixture(scope="module")
def along_the_curve(panels):
    return [found_along_the_curve(network(), case) for case in panels]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return reproduce(NAME, tmp_path_factory.mktemp("report"), quick=True)


@pytest.mark.slow
def test_the_reproduction_reports_what_is_found_along_the_curve(report, along_the_curve):
    for claim, found in zip(report.claims[:2], along_the_curve, strict=True):
        assert {name: claim.found[name] for name in found} == found


def test_the_bands_are_those_of_theory_6_4(along_the_curve):
    left, right = along_the_curve
    expected = {
        "GD-stable band 1, s to": 3.777148,
        "GD-stable band 1, t1 to": 1.868334,
        S.format(1, "to"): 2.635898,
        "SGD-stable band 1, t1 to": 1.475273,
        S.format(2, "from"): 6.661222,
        S.format(2, "to"): 9.297119,
        "lambda = -inf at s": 8.230453,
        "lambda at t1 = t2 = 1": -0.205962,
    }
    for name, value in expected.items():
        assert left[name].value == pytest.approx(value, abs=6e-7), name
        assert left[name].status == "computed" and left[name].upper - left[name].lower < 1e-9
    expected = {
        "GD-stable band 1, s to": 2.154151,
        "GD-stable band 1, t1 to": 1.215397,
        S.format(1, "from"): 2.537249,
        S.format(1, "to"): 4.998564,
        "SGD-stable band 1, t1 to": 2.188558,
        "lambda = -inf at s": 4.115226,
        "lambda at t1 = t2 = 1": 0.038864,
    }
    for name, value in expected.items():
        assert right[name].value == pytest.approx(value, abs=6e-7), name
    # Every band is there once: no others.
    assert sum("s from" in name or "s to" in name for name in left) == 4
    assert sum("s from" in name or "s to" in name for name in right) == 3


def test_the_ends_solve_the_closed_forms(along_the_curve):
    """``mu`` and ``lambda`` of theory.md 3.4 vanish at the ends found on the general functions."""
    for found, (eta, p) in zip(along_the_curve, gd_vs_sgd_stability.CASES, strict=True):
        for name, bracket in found.items():
            if ", s " not in name:
                continue
            a, b = 0.81 * bracket.value, 6.25 * bracket.value
            mu = np.log(abs(1 - eta * (p * a + (1 - p) * b)))
            lam = p * np.log(abs(1 - eta * a)) + (1 - p) * np.log(abs(1 - eta * b))
            assert abs(mu if name.startswith("GD") else lam) < 1e-11
        for name, bracket in found.items():
            if "closed form" in name:
                assert bracket.value < 1e-12


@pytest.mark.slow
def test_what_the_paper_says_is_judged(report):
    left, right, criterion, coefficient = report.claims
    assert left.agrees == "corrected" and "second band" in left.conclusion and "6.66122" in left.conclusion
    assert right.agrees == "yes" and "disjoint" in right.conclusion
    assert right.found["mu at t1 = t2 = 1 with uniform weights"].lower > 0
    assert "uniform weights" in right.conclusion
    assert criterion.agrees == "yes" and criterion.conclusion.startswith("All 18 ensembles agree")
    assert "Linearly independent gradients" in criterion.conclusion
    assert "law of large numbers" in criterion.conclusion
    assert "different probabilities" in criterion.conclusion
    assert coefficient.agrees == "corrected" and coefficient.found["coefficient"].value == pytest.approx(3.53)


@pytest.mark.slow
def test_simulations_show_both_orders(report):
    """SGD-stable and GD-unstable, and the reverse, by exponent and by simulation."""
    for case in (0, 1):
        chosen = report.data["simulated_case"].values == case
        seen = {
            name: report.data[f"simulated_{name}"].values[chosen]
            for name in ("t1", "optimiser", "predicted_stable", "share", "share_lower", "share_upper", "agrees")
        }
        assert seen["agrees"].all()
        gd, sgd = (seen["optimiser"] == k for k in (0, 1))
        np.testing.assert_array_equal(seen["t1"][gd], seen["t1"][sgd])
        gd_only = seen["predicted_stable"][gd] & ~seen["predicted_stable"][sgd]
        sgd_only = ~seen["predicted_stable"][gd] & seen["predicted_stable"][sgd]
        assert gd_only.any() and sgd_only.any()
        assert np.all(seen["share"][gd][gd_only] == 1) and np.all(seen["share_upper"][sgd][gd_only] < 0.1)
        assert np.all(seen["share"][gd][sgd_only] == 0) and np.all(seen["share_lower"][sgd][sgd_only] > 0.3)


def test_every_place_is_a_minimum_and_the_curve_reaches_far_enough(panels):
    objective = network()
    for case, (eta, _) in zip(panels, gd_vs_sgd_stability.CASES, strict=True):
        t1 = case.sets["t1"].values
        assert np.all(np.diff(t1) > 0)
        for t in t1[[0, 10, -1]]:
            np.testing.assert_allclose(objective.gradient(minimum(t)), 0, atol=1e-14)
        ends = np.sum(minimum(t1[-1]) ** 2) * np.array([0.81, 6.25])
        assert np.all(eta * ends > 2)
        # The curve is its own mirror image.
        for name in ("gd_exponent", "sgd_exponent"):
            values = np.exp(case.sets[name].values)
            np.testing.assert_allclose(values, values[::-1], atol=1e-6)


@pytest.mark.slow
def test_the_report_is_complete(report, tmp_path):
    text = report.markdown()
    assert "A quick run" in text and "![stable_sets](stable_sets.png)" in text
    assert text.count("## ") == 4 and "**Corrected.**" in text
    assert report.record()["claims"][1]["agrees"] == "yes"


def test_unknown_reproductions():
    assert set(REPRODUCTIONS) >= {NAME}
    with pytest.raises(
        ValueError, match="no reproduction 'fig4': choose one of eigenvalue-growth, gd-vs-sgd-stability"
    ):
        reproduce("fig4")


# Judgements follow the numbers -------------------------------------------------------------------------------


def at(value):
    return Bracket(value, value, value, "computed", "by hand")


def made_up(panels, gd, sgd):
    return panels[0]._replace(gd_bands=gd, sgd_bands=sgd, poles=[])


WIDE, NARROW, FAR = [Band(at(1 / 1.8), at(1.8))], [Band(at(1 / 1.4), at(1.4))], Band(at(2.5), at(3.0))


def test_other_bands_are_judged_otherwise(panels):
    objective = network()
    assert subset_claim(objective, made_up(panels, WIDE, NARROW)).agrees == "yes"
    assert subset_claim(objective, made_up(panels, NARROW, WIDE)).agrees == "no"
    assert disjoint_claim(objective, made_up(panels, NARROW, [FAR])).agrees == "yes"
    assert disjoint_claim(objective, made_up(panels, WIDE, NARROW)).agrees == "no"


@pytest.mark.slow  # the share of runs that end in the second band is simulated
def test_a_second_band_is_a_correction(panels):
    assert subset_claim(network(), made_up(panels, WIDE, [*NARROW, FAR])).agrees == "corrected"


def test_bands_and_regions():
    def wave(t):
        return Bracket(float(np.sin(t)), float(np.sin(t)) - 1e-9, float(np.sin(t)) + 1e-9, "computed", "sin")

    grid = np.linspace(2.0, 12.0, 30)
    first, second = bands(wave, grid, np.sin(grid))
    assert first.lower.value == pytest.approx(np.pi, abs=1e-12) and first.upper.value == pytest.approx(2 * np.pi)
    assert first.lower.lower < np.pi < first.lower.upper
    assert second.upper is None or second.upper.value == pytest.approx(4 * np.pi)
    assert second.covers(11.9) and not second.covers(9.0)
    assert within(Band(at(1.2), at(1.3)), [Band(None, at(1.3))])
    assert not within(Band(at(1.2), None), [Band(None, at(1.3))])
    assert half([Band(at(0.5), at(2.0)), Band(at(0.1), at(0.2))]) == [Band(None, at(2.0))]
    assert regions([Band(at(0.5), at(2.0))], [Band(at(1.5), at(3.0))], 4.0) == [
        (1.0, 1.5),
        (1.5, 2.0),
        (2.0, 3.0),
        (3.0, 4.0),
    ]
    assert stability(1.7, [Band(at(0.5), at(2.0))], [Band(at(1.5), at(3.0))]) == "both"
    assert squared_norm(at(2.0)).lower <= 4.25 <= squared_norm(at(2.0)).upper


# theory.md 3.7 -----------------------------------------------------------------------------------------------


def cubic(coefficient):
    """``c (1 - u)^2``, ``u = relu(t2 relu(t1))``: the loss of figure 3 in its two readings."""
    import jax

    return Objective(
        lambda t, x: coefficient * (1 - jax.nn.relu(t[1] * jax.nn.relu(t[0] * x))) ** 2,
        np.ones(2),
        data=(np.ones(1),),
    )


def test_the_coefficient_is_half_the_sum_of_squares():
    found = gdmap.sharpness(network(), minimum(1.0)).value / 2
    assert found == pytest.approx((0.9**2 + 2.5**2) / 2) == pytest.approx(3.53)


def test_only_the_halved_loss_gives_the_trajectories_of_figure_3():
    start = np.array([1.48, 1 / 1.48 + 0.1])

    def run(coefficient, eta, steps):
        map_, theta = GradientDescent(cubic(coefficient), eta), start
        for _ in range(steps):
            theta = map_.step(theta)
        return theta, map_

    flattest = gdmap.sharpness(cubic(1.765), minimum(1.0)).value
    assert 2 / flattest == pytest.approx(0.283286, abs=5e-7)
    theta, _ = run(1.765, 0.25, 1)
    np.testing.assert_allclose(theta, [1.378689, 0.582372875676], atol=5e-7)
    theta, _ = run(1.765, 0.25, 1500)
    np.testing.assert_allclose(theta, [1.210129806445, 0.826357630954], atol=1e-10)
    theta, map_ = run(1.765, 0.325, 600)
    cycle = sorted([theta[0], map_.step(theta)[0]])
    np.testing.assert_allclose(cycle, [0.77152081, 1.12978106], atol=5e-9)
    # With the coefficient as printed both die: the network is zero from then on.
    assert 2 / gdmap.sharpness(cubic(3.53), minimum(1.0)).value == pytest.approx(0.1416, abs=5e-5)
    for eta in (0.25, 0.325):
        theta, map_ = run(3.53, eta, 50)
        assert np.all(theta < 0)
        np.testing.assert_array_equal(map_.step(theta), theta)

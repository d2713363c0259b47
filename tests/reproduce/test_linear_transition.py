import math

import numpy as np
import pytest
import xarray as xr
from scipy.stats import binomtest

from gdmap import Bracket, Fate
from gdmap.reproduce import REPRODUCTIONS, linear_transition
from gdmap.reproduce.linear_transition import (
    NETWORKS,
    QUICK,
    Regime,
    critical_point_claim,
    network_case,
    norm_claim,
    regime_claim,
    share_claim,
    theorem_claim,
    trap_claim,
)
from gdmap.reproduce.transition import (
    Case,
    Probe,
    Transition,
    cycle_norm,
    ends_of,
    median_norms,
    median_with_interval,
    observed_of,
    probes_of,
)
from gdmap.sweeps import fate_fractions

NAME = "linear-transition"
# theory 2.6: widths, and the share of 400 starts that reach a minimum at 0.5, 0.9, 0.98 of the critical step size.
TABLE = {
    (1, 1, 1): (1.000, 0.995, 0.9925),
    (1, 1, 1, 1): (0.9975, 0.9925, 0.9925),
    (2, 2, 2): (1.000, 0.960, 0.940),
    (2, 2, 2, 2): (0.9425, 0.745, 0.6775),
    (5, 5, 5): (1.000, 0.995, 0.9675),
    (3, 1, 3): (1.000, 0.980, 0.955),
}
REFERENCE_STARTS = 400

# One worker: the reproduction is run once.
pytestmark = pytest.mark.xdist_group("reproduce")


@pytest.fixture(scope="module")
def reports():
    seen = []
    report = linear_transition.run(quick=True, progress=lambda done, total: seen.append((done, total)))
    return report, seen


@pytest.fixture(scope="module")
def report(reports):
    return reports[0]


def of(report, variable, case):
    """One variable of one case, by the name of the case."""
    return report.data[variable].isel(case=report.data["case"].attrs["names"].index(case))


def check_against_table(report):
    for widths, reference in TABLE.items():
        name = linear_transition.words_of(widths)
        if name not in report.data["case"].attrs["names"]:
            continue
        share = of(report, "fraction", name).sel(fate_name=int(Fate.MINIMUM))
        undecided = of(report, "fraction", name).sel(fate_name=int(Fate.UNDECIDED))
        factors, number = of(report, "factor", name).values, report.data.sizes["start"]
        for factor, expected in zip((0.5, 0.9, 0.98), reference, strict=True):
            at = int(np.flatnonzero(factors == factor)[0])
            found, still = float(share[at]), float(undecided[at])
            # Both are samples; undecided starts may belong to either side.
            p = (found * number + expected * REFERENCE_STARTS) / (number + REFERENCE_STARTS)
            p = min(max(p, 1 / (number + REFERENCE_STARTS)), 1 - 1 / (number + REFERENCE_STARTS))
            error = math.sqrt(p * (1 - p) * (1 / number + 1 / REFERENCE_STARTS))
            assert found - 4 * error <= expected <= found + still + 4 * error, (name, factor)
        np.testing.assert_array_equal(share.values[factors > 1], 0)


def test_shares_are_those_of_theory_2_6(report):
    check_against_table(report)


@pytest.mark.slow
def test_full_run_agrees_with_theory_2_6_and_locates_every_transition():
    report = linear_transition.run()
    check_against_table(report)
    assert len(report.data["case"]) == len(NETWORKS) + 1
    assert [claim.agrees for claim in report.claims[:4]] == ["corrected", "corrected", "yes", "yes"]
    assert report.data.sizes["start"] >= 1000 and report.data.sizes["position"] >= 20
    width = report.data["observed_upper"] - report.data["observed_lower"]
    assert float((width / report.data["predicted"]).max()) < 0.03


def test_transitions_meet_the_predictions(report):
    found = report.claims[2].found
    critical = {"(1, 1, 1)": 1, "(1, 1, 1, 1)": 2 / 3, "(2, 2, 2)": 1, "(2, 2), control": 2}
    for name, value in critical.items():
        assert found[f"{name}: predicted critical step size"].value == pytest.approx(value, rel=1e-12)
        observed = found[f"{name}: observed transition"]
        assert observed.lower <= value <= observed.upper and observed.status == "estimated"
        assert observed.upper - observed.lower <= 0.021 * value
    assert [claim.agrees for claim in report.claims] == [
        "corrected",
        "corrected",
        "yes",
        "yes",
        "corrected",
        "not reproducible",
    ]
    assert not any(claim.proved for claim in report.claims)


def test_order_parameter(report):
    found = report.claims[3].found
    for name in ("(1, 1, 1)", "(2, 2, 2)"):
        for eta, golden in ((1.02, 0.194147), (1.1, 0.387638)):
            exact = math.sqrt(2 * (eta - 1) / eta**3)
            assert exact == pytest.approx(golden, abs=1e-6)
            assert found[f"{name}: median gradient norm at {eta:g}"].value == pytest.approx(exact, rel=1e-5)
            assert found[f"{name}: on the 2-cycle at {eta:g}"].value == pytest.approx(exact, rel=1e-9)
    for factor, golden in ((1.02, 0.187), (1.1, 0.378)):
        median = found[f"(1, 1, 1, 1): median gradient norm at {factor:g}"]
        assert median.value == pytest.approx(golden, abs=6e-4) and median.confidence == 0.95
    below = found["(1, 1, 1): median gradient norm at 0.98"]
    assert below.upper < 1e-6


def test_two_cycles_of_deeper_products_are_those_of_theory_6_2():
    # theory 6.2: diagonal 2-cycles at 1.05 of the critical step size.
    for depth, (high, low) in {2: (1.0910894512, 0.8728715609), 3: (1.0475879443, 0.9326137046)}.items():
        eta = 1.05 * 2 / depth
        ray = network_case((1,) * (depth + 1), (1.0,), 1.0).ray
        assert cycle_norm(ray, eta) == pytest.approx(math.sqrt(depth) * (high - low) / eta, rel=1e-8)
        assert math.isnan(cycle_norm(ray, 0.99 * 2 / depth))
    # Beyond sqrt(5) - 1 the cycle doubles its period.
    two = network_case((1, 1, 1), (1.0,), 1.0).ray
    assert math.isnan(cycle_norm(two, 1.237)) and cycle_norm(two, 1.235) > 0
    assert cycle_norm(two, 1.2) == pytest.approx(0.481125, abs=1e-6)
    assert math.isnan(cycle_norm(None, 1.2))


def test_control_converges_everywhere_below_and_diverges_everywhere_above(report):
    fate = of(report, "fate", "(2, 2), control").values
    factor = of(report, "factor", "(2, 2), control").values
    assert np.all(fate[factor < 1] == Fate.MINIMUM) and np.all(fate[factor > 1] == Fate.DIVERGED)
    assert np.isnan(of(report, "median", "(2, 2), control").values[factor > 1]).all()


def test_trap_of_theory_2_6(report):
    found = report.claims[4].found
    small = found["share with gradient norm below 1e-06"]
    # 71 % of 400 starts there.
    assert small.lower - 0.1 < 0.71 < small.upper + 0.1
    assert found["share that reached a minimum"].value == 0
    assert found["loss of these"].value == pytest.approx(0.5, abs=1e-6)
    later = report.claims[5].found
    assert later["relative spread of their weights"].value > 1e-3
    assert "trap_state" in report.data and report.data["trap_later"].attrs["status"] == "computed"


def test_above_eta_c_only_a_null_set_converges(report):
    found = report.claims[1].found
    exact, nudged = (value for name, value in found.items() if "at 1.1 eta_C" in name)
    assert exact.value < 1e-12 and nudged.value == pytest.approx(math.sqrt(0.2 / 1.1**3), rel=1e-6)
    # W_2 = diag(t, 1/(2t)), W_1 = diag(1/t, t): the smallest of (W_2)_ii^2 + (W_1)_jj^2 is 5 / (4 t^2).
    for t in (1, 10, 100):
        name = f"(2, 2, 2): smallest non-zero eigenvalue at the minimum with t = {t}"
        bracket = report.claims[0].found[name]
        assert bracket.lower <= 1.25 / t**2 <= bracket.upper and bracket.relative_width < 1e-5


def test_data_and_pictures(report, tmp_path):
    data = report.data
    names = ["share", "gradient_norm"]
    assert list(report.figures) == names and {claim.figure for claim in report.claims} <= {*names, None}
    for name, variable in data.data_vars.items():
        assert variable.attrs["long_name"] and variable.attrs["status"], name
    again = fate_fractions(data["fate"].isel(case=0).rename(position="step_size"))["fraction"]
    np.testing.assert_array_equal(again.transpose("step_size", "fate_name"), data["fraction"].isel(case=0))
    report.save(tmp_path)
    saved = xr.open_zarr(tmp_path / "data.zarr", consolidated=False)
    np.testing.assert_array_equal(saved["fate"], data["fate"])
    assert (tmp_path / "share.png").stat().st_size > 20_000


def test_progress_rises_to_its_total(reports):
    seen = reports[1]
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] and len(seen) > 20


def test_it_is_registered():
    assert REPRODUCTIONS[NAME].run is linear_transition.run
    assert len(linear_transition.STATEMENTS) == 6


# Claims from made-up data ----------------------------------------------------------------------------------------


def made_up(below, above, observed, norm_below=1e-9, norm_above=0.3):
    """A transition whose starts have the fates given on each side of 1."""
    factors = np.array([0.5, 0.9, 0.98, 1.02, 1.1, 1.5])
    fate = np.array([np.full(100, below if factor < 1 else above) for factor in factors])
    norms = np.where(factors < 1, norm_below, norm_above)[:, None] * np.ones((6, 100))
    swept = xr.Dataset(
        {"fate": (("step_size", "start"), fate), "gradient_norm": (("step_size", "start"), norms)},
        coords={"step_size": factors},
    )
    swept = swept.merge(fate_fractions(swept["fate"]))
    case = network_case((2, 2, 2), (1.0, 0.5), 0.5)
    case = Case(case.name, case.objective, case.scale, Bracket(1.0, 1.0, 1.0, "computed", ""), case.ray)
    cycle = np.array([cycle_norm(case.ray, factor) for factor in factors])
    seen = Bracket(sum(observed) / 2, *observed, "estimated", "")
    return Transition(case, factors, swept, median_norms(swept), cycle, seen, probes_of(swept))


def numbers(*values):
    return [Bracket(value, value, value, "computed", "") for value in values]


GOOD = made_up(Fate.MINIMUM, Fate.PERIODIC, (0.99, 1.01))
CONTROL = made_up(Fate.MINIMUM, Fate.DIVERGED, (0.99, 1.01))
REGIME = Regime(numbers(1.0, 0.01, 0.0001), *numbers(1e-16, 0.3))


def test_claims_say_no_when_the_numbers_do():
    converging = made_up(Fate.MINIMUM, Fate.MINIMUM, (1.5, 1.6))
    assert theorem_claim([GOOD], REGIME, QUICK).agrees == "corrected"
    assert theorem_claim([GOOD], REGIME._replace(smallest=numbers(1.0, 1.0, 1.0)), QUICK).agrees == "yes"
    assert theorem_claim([GOOD, converging], REGIME, QUICK).agrees == "no"
    assert regime_claim([GOOD], REGIME, QUICK).agrees == "corrected"
    assert regime_claim([converging], REGIME, QUICK).agrees == "yes"
    assert regime_claim([GOOD], REGIME._replace(exact=numbers(0.3)[0]), QUICK).agrees == "no"
    assert share_claim([GOOD], CONTROL, QUICK).agrees == "yes"
    assert share_claim([GOOD], GOOD, QUICK).agrees == "no"
    assert share_claim([GOOD, converging], CONTROL, QUICK).agrees == "no"
    elsewhere = made_up(Fate.MINIMUM, Fate.PERIODIC, (0.9, 0.95))
    refused = share_claim([elsewhere], CONTROL, QUICK)
    assert refused.agrees == "no" and "0 of 1" in refused.conclusion
    assert share_claim([made_up(Fate.UNDECIDED, Fate.PERIODIC, (0.99, 1.01))], CONTROL, QUICK).agrees == "no"
    assert norm_claim([GOOD], CONTROL, QUICK).agrees == "yes"
    flat = made_up(Fate.MINIMUM, Fate.PERIODIC, (0.99, 1.01), norm_below=0.1)
    assert norm_claim([flat], CONTROL, QUICK).agrees == "no"
    assert "not those of the 2-cycle" in norm_claim([GOOD], CONTROL, QUICK).conclusion


def trap_of(fate, norm, state):
    norms = np.full(100, norm)
    values = {"fate": np.full(100, int(fate)), "gradient_norm": norms, "later": norms, "loss": np.full(100, 0.5)}
    variables = {name: ("start", value) for name, value in values.items()}
    return xr.Dataset(
        {**variables, "state": (("start", "component"), np.tile(state, (100, 1)))}, attrs={"step_size": 1.0}
    )


def test_trap_claims_follow_the_runs():
    crawling = trap_of(Fate.UNDECIDED, 1e-9, [0.1, 0.2, 0.1])
    assert trap_claim(crawling).agrees == "corrected"
    assert critical_point_claim(crawling).agrees == "not reproducible"
    moving = trap_of(Fate.CHAOTIC, 0.1, [0.1, 0.2, 0.1])
    assert trap_claim(moving).agrees == "yes" and critical_point_claim(moving).agrees == "yes"
    assert trap_claim(trap_of(Fate.MINIMUM, 1e-9, [1.0, 1.0, 1.0])).agrees == "yes"
    assert critical_point_claim(trap_of(Fate.SADDLE, 1e-9, [0.1, 0.2, 0.1])).agrees == "no"


# The observed transition -----------------------------------------------------------------------------------------


def test_ends_count_only_what_was_told():
    some, slow, none = Probe(0.9, 10, 3, 0, 7), Probe(1.0, 10, 0, 2, 5), Probe(1.1, 10, 0, 2, 4)
    assert some.some and not slow.some and not slow.none and none.none
    assert ends_of([some, slow, none]) == (0.9, 1.1)
    bracket = observed_of([some, slow, none])
    assert (bracket.lower, bracket.upper) == (0.9, 1.1) and "2 diverged, 4 undecided" in bracket.method
    # A step size without minima below one with them is no transition.
    assert ends_of([Probe(0.5, 10, 0, 10, 0), some, none]) == (0.9, 1.1)
    assert ends_of([none]) == (0.0, 1.1)
    assert observed_of([some]).upper == math.inf
    assert ends_of([Probe(1.0, 10, 0, 10, 0)]) == (0.0, 1.0)


def test_interval_of_the_median_covers_it():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        _, low, high = median_with_interval(rng.exponential(size=25))
        covered += low <= math.log(2) <= high
    # At least 95 %: the order statistics are conservative (96 % for 25).
    assert binomtest(covered, 400, 0.95, alternative="less").pvalue > 1e-3
    assert covered < 400
    assert median_with_interval(np.array([3.0, 1.0])) == (2.0, 0.0, math.inf)
    assert all(math.isnan(value) for value in median_with_interval(np.array([])))
    # The binomial law itself: (x_(1), x_(6)) of six holds with probability 1 - 2 / 64.
    assert median_with_interval(np.arange(6.0)) == (2.5, 0.0, 5.0)

from fractions import Fraction

import numpy as np
import pytest

from gdmap import LinearNetwork
from gdmap.bracket import Bracket
from gdmap.reproduce import eigenvalue_growth
from gdmap.reproduce.eigenvalue_growth import (
    FACTORS,
    FAMILIES,
    FAR,
    Flattest,
    Nullity,
    all_eigenvalues_claim,
    bounded_claim,
    critical_claim,
    curve,
    growth,
    integer_minimum,
    manifold_claim,
    nullity_formula,
    proper_claim,
    proved_for_every_t,
    rank_deficient,
    tanh_neuron,
)

# One worker: the reproduction is run once.
pytestmark = pytest.mark.xdist_group("reproduce")
BY_NAME = {family.name: family for family in FAMILIES}


@pytest.fixture(scope="module")
def curves():
    return {family.name: curve(family, 4) for family in FAMILIES}


@pytest.mark.slow
def test_the_report():
    calls = []
    report = eigenvalue_growth.run(quick=True, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] == len(calls)
    assert [claim.statement for claim in report.claims] == list(eigenvalue_growth.STATEMENTS)
    assert [claim.agrees for claim in report.claims] == ["yes", "corrected", "corrected", "corrected", "yes"]
    assert [claim.proved for claim in report.claims] == [False, True, True, True, False]
    assert all(claim.figure in (None, *report.figures) for claim in report.claims)
    far = [b for name, b in report.claims[3].found.items() if "norm 1000 that return" in name]
    assert far[0].value == 1 and far[1].value == 0 and far[1].upper < 0.1


def test_the_spectra_of_theory_2_4():
    """t = 10: 0.02, 100.01, 100.01, 200 of the first counterexample; 0.029997 of the second."""
    t = Fraction(10)
    for name, expected in (("(2,2,2)", [0.02, 100.01, 200.0]), ("(1,2,2,1)", [3.0])):
        family = BY_NAME[name]
        spectrum = eigenvalue_growth.ExactLoss(family.network()).spectrum(family.point(t, 1 / t))
        assert [one.value for one in spectrum.positive] == pytest.approx(expected, abs=1e-12)
    family = BY_NAME["(2,1,2)"]
    a = 10.0
    spectrum = eigenvalue_growth.ExactLoss(family.network()).spectrum(family.point(t, 1 / t))
    b = 2 / a
    root = np.sqrt(((a**2 - b**2) / 2) ** 2 + 1)
    expected = sorted([a**2 + b**2, (a**2 + b**2) / 2 + root, (a**2 + b**2) / 2 - root])
    assert [one.value for one in spectrum.positive] == pytest.approx(expected, rel=1e-11)
    assert spectrum.positive[0].value == pytest.approx(0.029997, abs=5e-7)


def test_exact_spectra_against_dense_hessians(curves):
    for name, along in curves.items():
        family = along.family
        network = family.network()
        for number in (0, 3):
            t = float(along.t[number])
            theta = np.array(family.point(t, 1 / t), dtype=float)
            eigenvalues = np.linalg.eigvalsh(network.hessian(theta))
            spectrum = along.spectra[number]
            positive = eigenvalues[spectrum.nullity :]
            tolerance = 1e-12 * eigenvalues[-1]
            assert positive[-1] == pytest.approx(spectrum.positive[-1].value, abs=tolerance), name
            assert positive[0] == pytest.approx(spectrum.positive[0].value, abs=tolerance), name
            assert np.linalg.norm(theta) == pytest.approx(along.norm[number])


def test_formulas_for_every_t_are_proved_and_wrong_ones_are_not(curves):
    assert [name for name, along in curves.items() if not along.proved_everywhere] == ["(2,1,2)"]
    wrong = BY_NAME["(2,2,2)"]._replace(roots=lambda t, s: [(2 * s**2, 1), (t**2 + s**2, 2), (3 * t**2, 1)])
    assert not proved_for_every_t(wrong)
    not_critical = BY_NAME["(1,1,1)"]._replace(layers=lambda t, s: [[[t]], [[t]]])
    assert not proved_for_every_t(not_critical)
    with pytest.raises(ValueError, match="is not a minimum"):
        curve(not_critical, 3)


@pytest.mark.parametrize(
    ("name", "smallest", "largest"),
    [("(1,1,1)", 2, 2), ("(1,1,1,1)", 1, 1), ("(2,2,2)", -2, 2), ("(2,1,2)", -2, 2), ("(1,2,2,1)", 0, 0)],
)
def test_growth_exponents(curves, name, smallest, largest):
    along = curves[name]
    for values, exponent in ((along.smallest, smallest), (along.largest, largest)):
        assert growth(along.norm, values, along.t).value == pytest.approx(exponent, abs=0.1)


def test_nullities_and_the_rank_condition():
    """theory.md 2.2: n - r (d_0 + d_N - r); n - d_0 d_N where filling."""
    assert (
        nullity_formula((2, 2, 2)) == 4 and nullity_formula((2, 1, 2)) == 1 and nullity_formula((1, 2, 2, 1)) == 7
    )
    for widths in ((2, 2, 2), (2, 1, 2, 2)):
        one = eigenvalue_growth.nullity_of(widths, 2, 5)
        assert one.found == (one.formula, one.formula)
    assert rank_deficient()[0] != rank_deficient()[1]
    network, theta = integer_minimum((3, 2, 2), np.random.default_rng(1))
    assert isinstance(network, LinearNetwork) and network.value(theta) == pytest.approx(0, abs=1e-20)


def test_the_tanh_neuron_of_theory_6_3():
    neuron = tanh_neuron()
    q = np.tanh(np.linspace(0.1, 6.0, 24)) ** 2
    np.testing.assert_allclose(neuron.eigenvalue, 0.25 * (1 - q) ** 2 / q + q, rtol=1e-12)
    assert neuron.eigenvalue[-1] == pytest.approx(1, abs=1e-4)


# Judgements follow the numbers -------------------------------------------------------------------------------


def test_a_wrong_nullity_is_reported():
    good, bad = Nullity((1, 1, 1), (1,), 1), Nullity((2, 2, 2), (4, 5), 4)
    assert manifold_claim([good], {(1, 1, 1): (1, 1)}, (5, 4)).agrees == "yes"
    assert manifold_claim([good, bad], {}, (5, 4)).agrees == "no"
    assert manifold_claim([good], {(1, 1, 1): (2, 1)}, (5, 4)).agrees == "no"


def test_properness_is_judged_by_the_families(curves):
    neuron = tanh_neuron()
    growing = {name: curves[name] for name in ("(1,1,1)", "(1,1,1,1)")}
    assert proper_claim(growing, {}, neuron).agrees == "yes"
    assert all_eigenvalues_claim(growing).agrees == "yes"
    both = {name: curves[name] for name in ("(1,1,1)", "(2,2,2)")}
    claim = proper_claim(both, {}, neuron)
    assert claim.agrees == "corrected" and claim.proved is True
    assert eigenvalue_growth.MEASURED in claim.conclusion and "(1,2,2,1)" not in claim.conclusion
    claim = all_eigenvalues_claim(both)
    assert claim.agrees == "corrected" and claim.proved is True and eigenvalue_growth.MEASURED in claim.conclusion
    # Without the proof nothing is called proved.
    bare = {name: one._replace(proved_everywhere=False) for name, one in both.items()}
    for claim in (proper_claim(bare, {}, neuron), all_eigenvalues_claim(bare)):
        assert not claim.proved and eigenvalue_growth.MEASURED not in claim.conclusion
    # A network said to have a proper largest eigenvalue, along whose minima it stays at 3.
    liar = curves["(1,2,2,1)"]._replace(family=BY_NAME["(1,2,2,1)"]._replace(largest_is_proper=True))
    assert proper_claim({"(1,2,2,1)": liar}, {}, neuron).agrees == "no"


def test_what_the_proved_roots_tend_to(curves):
    flags = {
        name: (one.some_proved_bounded, one.some_proved_to_vanish, one.all_proved_bounded)
        for name, one in curves.items()
    }
    assert flags == {
        "(1,1,1)": (False, False, False),
        "(1,1,1,1)": (False, False, False),
        "(2,2,2)": (True, True, False),
        "(2,1,2)": (False, False, False),
        "(2,2,2,2)": (True, True, False),
        "(1,2,2,1)": (True, False, True),
        "(2,3,3,2)": (True, False, True),
    }


def test_boundedness_is_judged_by_the_proof_and_the_runs(curves):
    def returned(near, far):
        def at(x):
            return Bracket(x, x, x, "estimated", "made up", 0.95)

        shares = {(factor, t): at(x) for factor, x in zip(FACTORS, (near, far), strict=True) for t in FAR}
        return eigenvalue_growth.Returned(dict.fromkeys(FACTORS, 0.6), shares, {t: float(t) for t in FAR}, 10)

    flat = curves["(1,2,2,1)"]
    claim = bounded_claim(flat, returned(1.0, 0.0), {})
    assert claim.agrees == "corrected" and claim.proved is True and eigenvalue_growth.MEASURED in claim.conclusion
    assert "depth two" not in claim.conclusion
    claim = bounded_claim(flat, returned(1.0, 0.0), {"(2,2,2)": ("bounded", 9.0, True)})
    assert "bounded for (2,2,2)" in claim.conclusion and "depth two" in claim.conclusion
    farthest = claim.found["(2,2,2): farthest stable minimum of a search outwards (bounded)"]
    assert farthest.lower == 9 and farthest.upper == np.inf
    assert bounded_claim(flat, returned(0.4, 0.0), {}).agrees == "no"
    assert bounded_claim(flat, returned(1.0, 0.0), {"(2,2,2)": ("unbounded", 9.0, True)}).agrees == "no"
    unproved = bounded_claim(flat._replace(proved_everywhere=False), returned(1.0, 0.0), {})
    assert unproved.agrees == "no" and not unproved.proved
    assert bounded_claim(curves["(1,1,1)"], returned(1.0, 0.0), {}).agrees == "yes"


def test_a_flatter_minimum_would_be_reported():
    def at(x):
        return Bracket(x, x, x, "computed", "made up")

    assert critical_claim([Flattest((1, 1, 1), at(2.0), at(2.0), at(2.1), None)]).agrees == "yes"
    assert critical_claim([Flattest((1, 1, 1), at(2.0), at(2.0), at(1.9), None)]).agrees == "no"
    assert critical_claim([Flattest((1, 1, 1), at(2.0), at(2.2), at(2.3), None)]).agrees == "no"
    assert critical_claim([Flattest((1, 1, 1), at(2.0), at(2.0), at(2.1), at(1.7))]).agrees == "no"


def test_the_least_of_a_sample_is_a_bound_from_above():
    least = eigenvalue_growth.least_of(np.array([3.0, 2.0, 5.0]), np.array([0.1, 0.2, 0.3]), "made up")
    assert (least.lower, least.value, least.upper) == (0.0, 2.0, 2.2) and least.status == "estimated"

import builtins
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from gdmap import Function, GradientDescent, certify_nonsingular, exceptional_step_sizes
from gdmap.bracket import Bracket
from gdmap.reproduce import singular_map
from gdmap.reproduce.exact import ExactLoss, exactly, require_proofs
from gdmap.reproduce.singular_map import (
    KINK,
    OTHER,
    SINGULAR,
    WIDTHS,
    almost_every_claim,
    bounded_claim,
    constant_of,
    counterexample,
    exact_pieces,
    figure_loss,
    image_length,
    map_values,
    maximum_claim,
    non_constant_claim,
    non_singular_claim,
    outer_starts,
    preimage_measures,
    singular_claim,
)

# One worker: the reproduction is run once.
pytestmark = pytest.mark.xdist_group("reproduce")


@pytest.fixture(scope="module")
def report():
    calls = []
    found = singular_map.run(quick=True, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] and calls == sorted(calls)
    return found


@pytest.fixture(scope="module")
def pieces():
    return exact_pieces(figure_loss())


def test_the_verdicts(report):
    assert [claim.statement for claim in report.claims] == list(singular_map.STATEMENTS)
    assert [claim.agrees for claim in report.claims] == ["yes"] * 4 + ["corrected"] * 2 + ["yes"]
    # General statements are proved for instances only; of the sixth it is the refutation that is proved.
    assert [claim.proved for claim in report.claims] == [True] * 3 + ["instances"] * 2 + [True, "instances"]
    assert set(report.figures) == {"singular_map"}
    assert all(claim.figure in (None, *report.figures) for claim in report.claims)
    text = report.markdown()
    assert "the constant 0" in text and "second derivative -6" in text


def test_the_numbers_of_theory_3_3(report):
    first, second, third, fourth = report.claims[:4]
    assert first.found["length of the image of [3, 5], step size 1/2"].value == 0
    image = second.found["length of the image of [3, 5], step size 1/4"]
    assert image.value == 1 and image.status == "proved"
    share = "share of starts with |theta| > 2 that end on a maximum, step size {}"
    assert third.found[share.format("1/2")].value == 1 and third.found[share.format("1/2")].lower > 0.95
    assert third.found[share.format("1/4")].value == 0 and third.found[share.format("1/4")].upper < 0.05
    assert third.found["second derivative at the point they are sent to"].value == -6
    assert fourth.found["exceptional step size 1/2"].value == 0.5
    scanned, share = report.data["scanned"].values, report.data["share"].values
    assert share[scanned == 0.5] == 1 and np.all(share[scanned != 0.5] == 0)


def test_the_pieces_against_the_formula(pieces):
    theta = np.linspace(-5, 5, 201)
    by_hand = np.where(np.abs(theta) <= 2, theta - 0.25 * (2 * theta**3 - 6 * theta), theta - 0.25 * 2 * theta)
    np.testing.assert_allclose(map_values(figure_loss(), OTHER, theta), by_hand, atol=1e-14)
    one = np.array([0.7])
    assert map_values(figure_loss(), OTHER, one)[0] == GradientDescent(figure_loss(), 0.25).step(one)[0]
    assert pieces.all_listed
    assert constant_of(pieces.outer.curvature) == 2 and constant_of(pieces.inner.curvature) is None
    assert image_length(pieces.inner, pieces.theta, SINGULAR, (0, 1)) is None


def test_preimages_against_sampling(pieces):
    """The length of the preimage against counting on a fine grid."""
    objective = figure_loss()
    theta = np.linspace(-6, 6, 1_200_001)
    for eta in (SINGULAR, OTHER):
        exact = preimage_measures(objective, pieces, eta)[-1]
        counted = 12 * np.mean(np.abs(map_values(objective, eta, theta)) <= WIDTHS[-1])
        assert exact == pytest.approx(counted, abs=2e-4)


def test_the_starts_lie_outside():
    starts = outer_starts(1000, 3)
    assert starts.shape == (1000, 1) and np.all(np.abs(starts) > KINK) and np.all(np.abs(starts) <= 10)
    assert 0.4 < np.mean(starts > 0) < 0.6
    np.testing.assert_array_equal(starts, outer_starts(1000, 3))


# Judgements follow the numbers -------------------------------------------------------------------------------


def test_wrong_certificates_are_not_believed(pieces):
    lengths = np.geomspace(1e-8, 1, len(WIDTHS))
    objective = figure_loss()
    non_singular, singular = (certify_nonsingular(objective, eta) for eta in (OTHER, SINGULAR))
    refused = singular_claim(pieces, non_singular, lengths)
    assert refused.agrees == "no" and not refused.proved and "non-singular" in refused.conclusion
    refused = non_singular_claim(pieces, singular, lengths)
    assert refused.agrees == "no" and not refused.proved


def test_shares_decide_about_the_maximum(pieces):
    ends = np.tile([1.0, 2.0], 5)
    half = Bracket(0.5, 0.3, 0.7, "estimated", "made up", 0.95)
    shares = singular_map.Shares(
        None,
        {SINGULAR: half, OTHER: half},
        {SINGULAR: 0 * ends, OTHER: ends},
        {SINGULAR: ends, OTHER: ends},
        10,
        5,
    )
    claim = maximum_claim(figure_loss(), pieces, shares)
    assert claim.agrees == "no" and not claim.proved
    # On the cycle {1, 2}.
    assert "period two through 1, 2" in claim.conclusion


def test_an_unexpected_step_size_in_the_scan_is_reported(pieces, report):
    import xarray as xr

    scan = xr.Dataset(
        {"fraction": (("step_size", "fate_name"), [[1.0], [1.0]]), "fate": (("step_size", "start"), [[2], [2]])},
        {"step_size": [0.25, 0.5], "fate_name": ["saddle"]},
    )
    shares = singular_map.Shares(scan, {}, {}, {}, 1, 1)
    objective = figure_loss()
    listed = exceptional_step_sizes(objective)
    certified, refused = (certify_nonsingular(objective, eta) for eta in (OTHER, SINGULAR))
    claim = almost_every_claim(pieces, listed, certified, shares)
    assert claim.agrees == "no" and "0.25" in claim.conclusion and not claim.proved
    # With the scan as it should be: an incomplete list, none, or a refused certificate.
    shares = shares._replace(scan=scan.assign(fraction=(("step_size", "fate_name"), [[0.0], [1.0]])))
    claim = almost_every_claim(pieces, listed, certified, shares)
    assert claim.agrees == "yes" and claim.proved == "instances"
    assert almost_every_claim(pieces, listed, refused, shares).agrees == "no"
    assert almost_every_claim(pieces, [], certified, shares).agrees == "no"
    assert almost_every_claim(pieces._replace(all_listed=False), listed, certified, shares).agrees == "no"


def test_a_loss_without_constant_eigenvalue_refutes_nothing():
    evidence = counterexample(Function(lambda t: t[0] ** 4 + t[1] ** 4 + t[0] ** 2 * t[1] ** 2, 2))
    assert evidence.exceptional == [] and evidence.image is None and evidence.constant is None
    assert non_constant_claim(evidence).agrees == "yes"
    constant = counterexample(Function(lambda t: t[0] ** 2 + t[1] ** 2 / 2, 2))
    assert not singular_map.varying(constant) and constant.exceptional == [Fraction(1, 2), Fraction(1)]


def test_a_quadratic_loss_is_no_bounded_one():
    parabola = Function(lambda t: t[0] ** 2 + t[1] ** 2, 2)
    claim = bounded_claim({"parabola": (parabola, np.ones(2), np.zeros(2))})
    assert claim.agrees == "no" and not claim.proved
    assert claim.found["parabola: sum of the eigenvalues at point 1"].value == pytest.approx(4)


# Exact arithmetic --------------------------------------------------------------------------------------------


def test_exact_spectra_against_floating_point():
    loss = Function(lambda t: (t[0] * t[1] * t[2] - 1) ** 2 / 2, 3)
    theta = [Fraction(1, 2), Fraction(2), Fraction(1)]
    spectrum = ExactLoss(loss).spectrum(theta)
    assert spectrum.is_critical and spectrum.is_semidefinite and spectrum.nullity == 2
    top = np.linalg.eigvalsh(loss.hessian(np.array([0.5, 2.0, 1.0])))[-1]
    assert spectrum.positive[0].value == pytest.approx(top, rel=1e-14) and spectrum.positive[0].status == "proved"
    saddle = ExactLoss(loss).spectrum([0, 1, 1])
    assert not saddle.is_critical
    bent = ExactLoss(Function(lambda t: t[0] ** 2 - t[1] ** 2, 2)).spectrum([0, 0])
    assert bent.is_critical and not bent.is_semidefinite and bent.positive[0].value == 2


def test_brackets_are_rounded_outward():
    third = exactly(Fraction(1, 3), "made up")
    assert Fraction(third.lower) < Fraction(1, 3) < Fraction(third.upper)
    assert exactly(Fraction(3, 4), "made up").upper == 0.75


def test_without_python_flint_one_clear_error(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "flint":
            raise ModuleNotFoundError("No module named 'flint'", name="flint")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "gdmap\[proofs\]"'):
        require_proofs()
    with pytest.raises(ModuleNotFoundError, match="python-flint"):
        singular_map.run(quick=True)


def test_other_functions_are_refused_as_polynomials():
    exact = ExactLoss(Function(lambda t: jnp.tanh(t[0]), 1))
    with pytest.raises(Exception, match="polynomial"):
        exact.gradient(exact.unknowns)

import numpy as np
import pytest

import gdmap
from gdmap.minima import Evidence
from gdmap.minima.manifold import expected_dimension
from gdmap.reproduce import REPRODUCTIONS, minima_manifold, reproduce
from gdmap.reproduce.minima_manifold import (
    Crossing,
    Outcome,
    cases,
    crossing_claim,
    dimension_claim,
    distinct_losses,
    ends_of_descents,
    hypothesis_claim,
    is_at_infinity,
    looked_at,
    manifold_of_maps,
    network,
    outcome_of,
    outputs,
    rescalings_of,
    taught,
)
from gdmap.sweeps import gaussian_starts

NAME = "minima-manifold"

# One worker: the reproduction is run once.
pytestmark = pytest.mark.xdist_group("reproduce")


@pytest.fixture(scope="module")
def quick_cases():
    return {case.name: case for case in cases(True, 0)}


@pytest.fixture(scope="module")
def seen(quick_cases):
    """A control, an interpolating network and two that do not interpolate: one compilation."""
    return {name: looked_at(quick_cases[name], 4, 0) for name in ("linear", "tanh, few inputs", "tanh", "z|z|")}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return reproduce(NAME, tmp_path_factory.mktemp("report"), quick=True)


def test_the_reproduction_is_registered():
    assert REPRODUCTIONS[NAME].run is minima_manifold.run
    assert REPRODUCTIONS[NAME].statements == minima_manifold.STATEMENTS


def test_the_network_is_the_formula_written_out():
    x = np.random.default_rng(0).standard_normal((24, 2))
    objective = network("z|z|", (2,), x, np.ones(24), biases=True, decay=0.1)
    theta = np.random.default_rng(1).standard_normal(objective.dim)
    below, above = objective.unravel(theta)
    z = x @ below["weight"].T + below["bias"]
    f = (z * np.abs(z)) @ above["weight"][0] + above["bias"][0]
    assert objective.dim == 9
    np.testing.assert_allclose(outputs(objective, theta), f, rtol=1e-14)
    assert objective.value(theta) == pytest.approx(np.mean((f - 1) ** 2) / 2 + 0.05 * theta @ theta, rel=1e-14)


def test_the_number_of_linear_maps_of_full_rank():
    # theory.md 2.2: dim M = n - r (d_0 + d_N - r), the same as the library's own formula.
    x = np.random.default_rng(0).standard_normal((9, 2))
    assert manifold_of_maps(3, 2) == 6
    for widths in ((2, 2, 1), (2, 2, 2, 1)):
        square = gdmap.LinearNetwork(widths, x, x @ np.ones((2, 1)))
        assert expected_dimension(square) == square.dim - manifold_of_maps(2, 1)


def test_controls_and_interpolating_networks_have_the_dimension_of_theory(seen):
    for name, dimension in (("linear", 4), ("tanh, few inputs", 3)):
        one = seen[name]
        assert one.case.expected == dimension
        assert np.all(one.outcome == Outcome.MANIFOLD_AGREES)
        assert np.all(one.nullity == dimension) and np.all(one.dimension == dimension)
    assert np.all(seen["tanh, few inputs"].loss < 1e-20)
    claim = dimension_claim("s", "t", list(seen.values()), "linear")
    assert claim.agrees == "yes" and claim.found["linear: nullity"].value == 4
    claim = dimension_claim("s", "t", list(seen.values()), "interpolating")
    assert claim.found["interpolating: distinct inputs"].value == 3
    assert "m is the number of distinct inputs, 3, and not of samples (24)" in claim.conclusion


def test_networks_that_do_not_interpolate_have_the_dimension_of_their_symmetry_at_least(seen):
    judged = np.isin(seen["z|z|"].outcome, minima_manifold.JUDGED)
    assert judged.any()
    assert np.all(seen["z|z|"].nullity[judged] >= 2) and np.all(seen["z|z|"].rescalings[judged] == 2)
    assert np.all(seen["z|z|"].loss[judged] > 1e-3)
    claim = hypothesis_claim(list(seen.values()))
    undecided = sum(np.sum(seen[name].outcome == Outcome.UNDECIDED) for name in ("tanh", "z|z|"))
    assert claim.agrees == ("corrected" if undecided else "yes")
    assert "no sample answers the question" in claim.conclusion


def test_every_claim_can_come_out_against_the_statement(seen):
    bent = seen["tanh"]._replace(outcome=np.full(4, Outcome.DISAGREES, np.int8), nullity=np.full(4, 2))
    assert hypothesis_claim([bent]).agrees == "no"
    kinds = np.array([Outcome.ISOLATED_AGREES] * 3 + [Outcome.UNDECIDED], np.int8)
    claim = hypothesis_claim([seen["tanh"]._replace(outcome=kinds)])
    assert claim.agrees == "corrected" and "(3 of 4; share 0.750 in [" in claim.conclusion
    assert "The others are 1, all in the networks tanh (1)" in claim.conclusion
    kinds = np.array([Outcome.ISOLATED_AGREES] * 3 + [Outcome.NO_MINIMUM], np.int8)
    claim = hypothesis_claim([seen["tanh"]._replace(outcome=kinds)])
    assert claim.agrees == "yes" and "Of 4 descents 0 ended with a saturated unit and 1 " in claim.conclusion
    unclear = seen["tanh"]._replace(outcome=np.full(4, Outcome.UNDECIDED, np.int8))
    assert hypothesis_claim([unclear]).agrees == "not reproducible"
    wrong = seen["linear"]._replace(nullity=np.full(4, 3), dimension=np.full(4, 3))
    assert dimension_claim("s", "t", [wrong], "linear").agrees == "no"
    nothing = seen["linear"]._replace(outcome=np.zeros(4, np.int8))
    assert dimension_claim("s", "t", [nothing], "linear").agrees == "not reproducible"


def test_sheets_of_one_dimension_would_speak_for_a_manifold():
    names = ["crossing", "outputs zero", "units cancel"]
    distance, excess = np.array([0.0, 0.1, 0.1]), np.zeros(3)
    clear = np.array([False, True, True])

    def claim(dimensions, clear=clear):
        found = np.array([5, *dimensions])
        return crossing_claim(Crossing(distance, names, found, found, clear, excess))

    assert claim((4, 3)).agrees == "no"
    assert claim((4, 4)).agrees == "yes"
    assert claim((4, 3), np.array([False, False, True])).agrees == "not reproducible"


def test_outcomes():
    assert outcome_of(True, True, 1, 1) == Outcome.AT_INFINITY
    assert outcome_of(False, False, 1, 1) == Outcome.UNDECIDED
    assert outcome_of(False, True, 2, 1) == Outcome.DISAGREES
    assert outcome_of(False, True, 0, 0) == Outcome.ISOLATED_AGREES
    assert outcome_of(False, True, 2, 2) == Outcome.MANIFOLD_AGREES


def test_saturated_units_are_recognised(quick_cases):
    tanh = quick_cases["tanh"]
    plain = np.array([0.5, -1.0, 1.0, 0.3, 1.0, 1.0])
    flat, linear = plain.copy(), plain.copy()
    flat[:2] *= 1e4
    linear[:2] *= 1e-7
    assert [is_at_infinity(tanh, theta) for theta in (plain, flat, linear)] == [False, True, True]
    # Dead units of relu^2 are flat indeed, and units of z|z| never are.
    assert not is_at_infinity(quick_cases["z|z|"], flat)


def test_rescalings_are_symmetries_and_counted_where_there_are_any(quick_cases):
    case = quick_cases["relu^2"]
    theta = np.array([0.5, -1.0, 1.0, 0.3, 0.7, -1.1])
    scaled = theta * np.array([2.0, 2.0, 1.0, 1.0, 0.25, 1.0])
    assert case.objective.value(scaled) == pytest.approx(case.objective.value(theta), rel=1e-14)
    assert rescalings_of(case, theta) == 2
    assert rescalings_of(case, theta * np.array([0, 0, 1, 1, 0, 1])) == 1
    assert rescalings_of(quick_cases["tanh"], theta) == rescalings_of(quick_cases["z|z|, decay"], theta) == 0


def test_losses_are_counted_once(seen):
    one = seen["linear"]._replace(loss=np.array([1.0, 1.0 + 1e-12, 2.0, 2.0]))
    assert distinct_losses(one) == 2


def test_descents_leave_saddles(quick_cases):
    # The origin is a saddle of every network here.
    objective = quick_cases["linear"].objective
    theta, evidence = ends_of_descents(objective, np.zeros((1, 6)) + 1e-9)
    assert evidence[0] == Evidence.MANIFOLD_OF_MINIMA and objective.value(theta[0]) < objective.value(np.zeros(6))


def test_a_teacher_without_noise_is_interpolated(quick_cases):
    objective = taught(quick_cases["tanh"].objective, 3, 0.0)
    best = min(objective.value(theta) for theta in ends_of_descents(objective, gaussian_starts(4, 6))[0])
    assert best < 1e-2 * np.mean(np.asarray(objective.data[1]) ** 2)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation must be one of linear, tanh"):
        network("swish", (2,), np.ones((24, 2)))


@pytest.mark.slow
def test_the_quick_run(report):
    linear, interpolating, hypothesis, crossing = report.claims
    assert linear.agrees == "yes" and interpolating.agrees == "yes" and crossing.agrees == "no"
    assert linear.found["linear: dimension expected"].value == 4
    assert interpolating.found["tanh, few inputs: nullity"].value == 3
    undecided = hypothesis.found["all: dimension undecided"].value
    assert hypothesis.agrees == ("corrected" if undecided else "yes")
    assert hypothesis.found["tanh, decay: nullity"].value == hypothesis.found["z|z|, decay: nullity"].value == 0
    assert hypothesis.found["linear, decay: nullity"].value == 1
    share = hypothesis.found["all: share of minima with nullity = dimension"]
    assert share.status == "estimated" and share.lower > 0.8
    assert crossing.found["crossing: nullity"].value == 5
    assert report.data.sizes == {"case": 11, "start": 12, "point": 7}
    assert report.data.attrs["status"] == "computed"

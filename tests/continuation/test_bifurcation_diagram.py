"""Bifurcation diagrams: branches followed once, their events, and what could not be followed."""

import numpy as np
import pytest

from gdmap import Function, GradientDescent, NoOrbitError, bifurcation_diagram, orbit_at
from gdmap.continuation.bifurcation_diagram import doubling_sequences, feigenbaum_ratios, stable_ranges
from gdmap.flags import flag_names
from tests.orbits.diagrams import FOLD, WELL, turning_diagram, two_cycles, well_diagram


def events(dataset):
    kinds = flag_names(dataset["event_kind"])
    return list(zip(kinds.tolist(), dataset["event_period"].values.tolist(), strict=True))


def test_double_well_up_to_its_second_doubling():
    dataset = well_diagram()
    # The wells are one by symmetry; 0 is the other fixed point.
    assert sorted(dataset["period"].values.tolist()) == [1, 1, 2]
    assert events(dataset) == [("period-doubling", 1), ("period-doubling", 2)]
    np.testing.assert_allclose(dataset["event_parameter"], [1, 5**0.5 - 1], atol=1e-10)
    assert np.all(dataset["event_error"] < 1e-9)
    assert flag_names(dataset["event_criticality"]).tolist() == ["supercritical"] * 2
    assert dataset["event_coefficient"].values[0] == pytest.approx(8, rel=1e-9)
    assert dataset["event_born"].values.tolist() == [2, -1]
    assert dataset["born_at"].values[2] == 0 and dataset["generation"].values.tolist() == [0, 0, 1]
    assert dataset.attrs["event_not_followed"] == ["", "not asked for: doublings=1"]
    assert dataset.attrs["status"] == "computed" and dataset.attrs["not_followed"] == []
    assert dataset.attrs["start_reasons"][2] == "period halves" and dataset.attrs["end_reasons"][2] == "bound"


def test_states_and_multipliers_of_the_two_cycle_are_the_formula():
    branch = well_diagram().isel(branch=2)
    n = int(branch["length"])
    eta = branch["parameter"].values[1:n]
    np.testing.assert_allclose(branch["multiplier"].values[1:n], 9 - 2 * (1 + eta) ** 2, atol=1e-8)
    sides = np.sqrt(3 + eta), np.sqrt(eta - 1)
    expected = np.stack([sides[0] - sides[1], sides[0] + sides[1]], axis=1) / (2 * np.sqrt(eta)[:, None])
    states = branch["state"].values[1:n, :2, 0]
    np.testing.assert_allclose(np.sort(np.abs(states), axis=1), expected, atol=1e-9)
    np.testing.assert_array_equal(branch["observable"].values[:n], branch["state"].values[:n, :, 0] ** 2)
    assert np.all(np.isnan(branch["parameter"].values[n:])) and np.all(branch["stability"].values[n:] == 0)
    np.testing.assert_array_equal(
        flag_names(branch["stability"])[1:n], np.where(eta < 5**0.5 - 1, "stable", "unstable")
    )


def test_stable_ranges_end_at_the_bifurcations():
    dataset = well_diagram()
    minimum = int(dataset["event_branch"].values[0])
    np.testing.assert_allclose(stable_ranges(dataset, minimum), [(0.2, 1)], atol=1e-10)
    np.testing.assert_allclose(stable_ranges(dataset, 2), [(1, 5**0.5 - 1)], atol=1e-9)
    assert stable_ranges(dataset, 1 - minimum) == []


def test_a_branch_through_a_fold_is_there_once_however_it_is_reached():
    dataset = turning_diagram()
    # The minimum, the 2-cycle (both sides of its fold and the doubling it is born at), the asymmetric 2-cycle.
    assert dataset["period"].values.tolist() == [1, 2, 2]
    found = dict(zip(events(dataset), dataset["event_parameter"].values, strict=True))
    assert found["fold", 2] == pytest.approx(FOLD, abs=1e-10)
    assert found["period-doubling", 1] == pytest.approx(2, abs=1e-10)
    born = dict(zip(events(dataset), dataset["event_born"].values.tolist(), strict=True))
    assert born["period-doubling", 1] == 1 and born["fold", 2] == -1 and born["branch-point", 2] == 2
    subcritical = flag_names(dataset["event_criticality"])[events(dataset).index(("period-doubling", 1))]
    assert subcritical == "subcritical"
    (low, high), *_ = stable_ranges(dataset, 1)
    pitchfork = found["branch-point", 2]
    assert sorted((low, high)) == pytest.approx([FOLD, pitchfork], abs=1e-9)
    # Where the asymmetric pair begins the symmetric cycle loses stability: a multiplier 1 across x -> -x.
    x = two_cycles(pitchfork)[0][0, 0]
    assert (1 - pitchfork * (1 + 3 * x**2 - 2 * x**4)) ** 2 == pytest.approx(1, abs=1e-8)


def test_positions_of_events_are_those_of_their_values():
    for dataset in (well_diagram(), turning_diagram()):
        for event in range(dataset.sizes["event"]):
            row = int(dataset["event_branch"].values[event])
            place = float(dataset["event_position"].values[event])
            values = dataset["parameter"].values[row, [int(np.floor(place)), int(np.ceil(place))]]
            if flag_names(dataset["event_kind"])[event] != "fold":
                assert values.min() - 1e-9 <= dataset["event_parameter"].values[event] <= values.max() + 1e-9


def test_doublings_in_sequence_have_the_ratio_of_their_distances():
    dataset = well_diagram()
    assert doubling_sequences(dataset) == [[0, 1]]
    assert feigenbaum_ratios(dataset, [0, 1]) == []
    longer = dataset.isel(event=[0, 1, 1]).assign(event_parameter=("event", [0.0, 4.0, 5.0]))
    longer["event_error"] = ("event", [0.0, 0.0, 0.01])
    (ratio,) = feigenbaum_ratios(longer, [0, 1, 2])
    assert ratio.value == 4 and ratio.lower < 4 - 0.04 and ratio.upper > 4 + 0.04


def test_what_is_not_followed_is_said():
    minimum = orbit_at(GradientDescent(WELL, 0.5), [1.0])
    dataset = bifurcation_diagram(minimum, bounds=(0.2, 1.25), doublings=0)
    assert dataset.sizes["branch"] == 1 and dataset.attrs["event_not_followed"] == ["not asked for: doublings=0"]
    dataset = bifurcation_diagram(minimum, bounds=(0.2, 1.25), max_branches=1)
    assert dataset.attrs["event_not_followed"] == ["max_branches=1 were followed; raise it"]
    other = orbit_at(GradientDescent(WELL, 0.5), [0.0])
    dataset = bifurcation_diagram([minimum, other], bounds=(0.2, 1.25), max_branches=1)
    (sentence,) = dataset.attrs["not_followed"]
    assert sentence.startswith("the start of period 1 at 0.5: max_branches=1")
    # The same orbit again, at another value of the parameter.
    again = orbit_at(GradientDescent(WELL, 0.7), [1.0])
    assert bifurcation_diagram([minimum, again], bounds=(0.2, 1.25), doublings=0).sizes["branch"] == 1


def test_a_family_that_drifts_is_not_followed_beyond_its_doubling_and_says_why():
    factors = Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)
    orbit = orbit_at(GradientDescent(factors, 0.5), [1.25, 0.8])
    dataset = bifurcation_diagram(orbit, bounds=(0.3, 1.2))
    assert dataset["neutral_dimension"].values.tolist() == [1]
    np.testing.assert_allclose(dataset["event_parameter"], [2 / (1.25**2 + 0.8**2)], atol=1e-10)
    assert "drifts along the family" in dataset.attrs["event_not_followed"][0]


def test_mistakes_have_one_clear_error():
    map_ = GradientDescent(WELL, 0.5)
    with pytest.raises(ValueError, match="leave out the present step_size"):
        bifurcation_diagram(map_, bounds=(0.6, 1.0))
    with pytest.raises(ValueError, match="bounds must be two numbers"):
        bifurcation_diagram(map_)
    with pytest.raises(ValueError, match="must be finite and increasing"):
        bifurcation_diagram(map_, bounds=(1.0, 0.2))
    with pytest.raises(ValueError, match="must be positive"):
        bifurcation_diagram(map_, bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match="no parameter 'momentum'"):
        bifurcation_diagram(map_, "momentum", (0.0, 1.0))
    with pytest.raises(ValueError, match="doublings must be an integer from 0"):
        bifurcation_diagram(map_, bounds=(0.2, 1.0), doublings=-1)
    with pytest.raises(ValueError, match="max_branches must be an integer from 1"):
        bifurcation_diagram(map_, bounds=(0.2, 1.0), max_branches=0)
    with pytest.raises(ValueError, match="at least one period"):
        bifurcation_diagram(map_, bounds=(0.2, 1.0), periods=())
    for wrong in (WELL, 3, [map_]):
        with pytest.raises(TypeError, match="give a map, or periodic orbits"):
            bifurcation_diagram(wrong, bounds=(0.2, 1.0))
    with pytest.raises(NoOrbitError, match="No orbit was given"):
        bifurcation_diagram([], bounds=(0.2, 1.0))


def decayed(decay):
    return GradientDescent(Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2 + decay * (w @ w) / 2, 2), 0.4)


def test_weight_decay_merges_the_minima_with_the_saddle():
    origin = orbit_at(decayed(0.5), [0.0, 0.0])
    dataset = bifurcation_diagram(origin, decayed, (0.2, 1.5), value=0.5, branch_points=True)
    assert dataset.attrs["parameter"] == "decayed" and dataset.sizes["branch"] == 2
    at = flag_names(dataset["event_kind"]).tolist().index("branch-point")
    assert dataset["event_parameter"].values[at] == pytest.approx(1, abs=1e-10)
    born = dataset.isel(branch=int(dataset["event_born"].values[at]))
    n = int(born["length"])
    squares = born["state"].values[:n, 0] ** 2
    np.testing.assert_allclose(squares, np.tile(1 - born["parameter"].values[:n, None], 2), atol=1e-9)


def test_a_start_that_cannot_be_followed_is_said():
    # Weight decay leaves one member of the family of minima; the start is another one.
    minimum, origin = orbit_at(decayed(0.0), [1.25, 0.8]), orbit_at(decayed(0.0), [0.0, 0.0])
    dataset = bifurcation_diagram([minimum, origin], decayed, (-0.2, 0.5), value=0.0)
    assert dataset.sizes["branch"] == 1
    (sentence,) = dataset.attrs["not_followed"]
    assert sentence.startswith("the start of period 1 at 0: the family of dimension 1") and "persist" in sentence
    with pytest.raises(NoOrbitError, match="no branch could be followed: the start of period 1"):
        bifurcation_diagram(minimum, decayed, (-0.2, 0.5), value=0.0)

"""Cycles of the double well (golden values 2) and of the product of two factors (golden values 4)."""

import numpy as np
import pytest

from gdmap import Function, GradientDescent
from gdmap.engines.xla import on_lanes
from gdmap.maps import StepSizeFamily
from gdmap.orbits import is_on_a_family, refine_cycles
from gdmap.orbits.cycles import (
    Orbit,
    evaluate_lanes,
    null_basis,
    rank_above_gap,
    ranks_above_gap,
    smallest_returns,
)
from gdmap.spectra.dense import multipliers

DOUBLE_WELL = StepSizeFamily(Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1), GradientDescent)
TWO_FACTORS = StepSizeFamily(Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2), GradientDescent)


@pytest.mark.parametrize("eta", [1.05, 1.1, 1.2])
def test_two_cycle_of_the_double_well(eta):
    y = (np.sqrt(eta + 3) + np.sqrt(eta - 1)) / 2
    cycles = refine_cycles(DOUBLE_WELL, np.array([eta]), np.array([[y / np.sqrt(eta) + 0.001]]), 2, np.ones(1))
    assert cycles.converged[0]
    np.testing.assert_allclose(np.sort(cycles.points[0, :, 0])[1], y / np.sqrt(eta), rtol=1e-13)
    assert multipliers(cycles.jacobian[0])[0] == pytest.approx(9 - 2 * (1 + eta) ** 2, rel=1e-11)
    assert cycles.minimal_period(0) == 2


def test_minimal_period_of_a_cycle_gone_round_twice():
    eta = 1.1
    x = (np.sqrt(eta + 3) + np.sqrt(eta - 1)) / 2 / np.sqrt(eta)
    assert refine_cycles(DOUBLE_WELL, np.array([eta]), np.array([[x]]), 6, np.ones(1)).minimal_period(0) == 2


def test_multipliers_along_and_across():
    eta, r = 1.1, 2.1
    x = (r + np.sqrt(r * r - 4)) / (2 * eta)
    cycles = refine_cycles(TWO_FACTORS, np.array([eta]), np.full((1, 2), np.sqrt(x)), 2, np.ones(1))
    assert cycles.converged[0]
    np.testing.assert_allclose(
        multipliers(cycles.jacobian[0]), [5 - 2 * r, 9 - 2 * r * r], rtol=1e-10
    )  # .8 across, .18 along


def test_fixed_points_on_a_manifold_are_on_a_family_and_isolated_flat_ones_are_not():
    cycles = refine_cycles(TWO_FACTORS, np.array([0.5]), np.array([[2.0, 0.51]]), 1, np.ones(1))
    point = cycles.points[0, 0]
    assert point[0] * point[1] == pytest.approx(1, abs=1e-14)
    basis = null_basis(cycles.jacobian[0])
    np.testing.assert_allclose(np.abs(basis @ np.array([point[0], -point[1]])), np.linalg.norm(point), rtol=1e-12)
    assert is_on_a_family(TWO_FACTORS, np.array([0.5]), cycles, [basis], np.array([2.0]))[0][0]

    flat = StepSizeFamily(Function(lambda w: w[0] ** 4 + w[1] ** 2, 2), GradientDescent)
    origin = refine_cycles(flat, np.array([0.1]), np.zeros((1, 2)), 1, np.ones(1))
    basis = null_basis(origin.jacobian[0])
    assert len(basis) == 1
    assert not is_on_a_family(flat, np.array([0.1]), origin, [basis], np.array([1.0]))[0][0]


def test_newton_reports_failure():
    bare = StepSizeFamily(Function(lambda w: -(w[0] ** 3), 1), GradientDescent)
    cycles = refine_cycles(bare, np.array([1.0]), np.array([[0.5]]), 1, np.ones(1))
    assert not cycles.converged[0]  # the double root at 0 is approached linearly only


def test_ranks_of_many_rows_are_those_of_each():
    rows = np.sort(10.0 ** np.random.default_rng(0).uniform(-16, 0, (200, 4)), axis=1)[:, ::-1]
    assert [rank_above_gap(row) for row in rows] == list(ranks_above_gap(rows))
    assert rank_above_gap(np.array([1.0, 0.5, 1e-8, 0.0])) == 2  # a gap sets 1e-8 apart
    assert rank_above_gap(np.array([1.0, 0.5, 0.1])) == 3
    assert rank_above_gap(np.array([1.0])) == 1


def test_smallest_returns():
    around = np.array([[0.0], [1.0], [0.0], [1.0], [0.0], [1.0]])
    orbits = np.stack([around, np.arange(6.0)[:, None], np.zeros((6, 1))])
    assert list(smallest_returns(orbits, 1, 1e-6)) == [2, 6, 1]
    assert list(smallest_returns(orbits, 3, 1e-6)) == [6, 6, 3]


def test_blocks_do_not_depend_on_company_but_on_work():
    cheap = refine_cycles(TWO_FACTORS, np.array([0.5]), np.array([[2.0, 0.51]]), 1, np.ones(1))
    many = refine_cycles(TWO_FACTORS, np.full(5000, 0.5), np.tile([2.0, 0.51], (5000, 1)), 1, np.ones(5000))
    np.testing.assert_array_equal(many.points, np.tile(cheap.points, (5000, 1, 1)))
    np.testing.assert_array_equal(many.jacobian, np.tile(cheap.jacobian, (5000, 1, 1)))
    data = np.linspace(0, 1, 2**18)
    heavy = Function(lambda w: ((w[0] * data - 1) ** 2).mean(), 1)
    counted = []

    def counting(function, lane_arrays, block):
        counted.append(block)
        return on_lanes(function, lane_arrays, block)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gdmap.orbits.cycles.on_lanes", counting)
        evaluate_lanes(Orbit(StepSizeFamily(heavy, GradientDescent), 2), (np.zeros(3), np.ones((3, 1))))
    assert counted[0] <= 8

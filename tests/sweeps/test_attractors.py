import numpy as np
import optax
import pytest

from gdmap import Function, GradientDescent, Optimiser
from gdmap.sweeps.attractors import attractors_along, matched

DOUBLE_WELL = Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
STARTS = np.random.default_rng(1).uniform(-1.4, 1.4, (40, 1))


def test_identities_persist_through_the_first_two_period_doublings():
    # golden.md 2: doublings at 1 and sqrt(5) - 1 = 1.236.
    map_ = GradientDescent(DOUBLE_WELL, 0.5)
    found = attractors_along(map_, [0.9, 1.05, 1.2, 1.25], STARTS)
    assert found.sizes["id"] == 2
    assert np.array_equal(found["attractor_period"], [[0, 0], [2, 2], [2, 2], [4, 4]])
    wells = np.sign(found["points"].values[:, :, 0, 0])
    assert np.all(wells == wells[0])
    assert np.array_equal(found["share"].sum("id"), np.ones(4))
    assert np.all(np.isnan(found["moved"][0])) and np.all(found["moved"][1:] < 0.2)
    merged = attractors_along(map_, [0.9, 1.05], STARTS, symmetries=[lambda x: -x])
    assert merged.sizes["id"] == 1


@pytest.mark.slow
def test_any_number_of_the_map_can_be_the_parameter():
    map_ = Optimiser(DOUBLE_WELL, optax.sgd, learning_rate=0.3, momentum=0.5)
    found = attractors_along(map_, [0.0, 0.5], STARTS[:10], parameter="momentum")
    assert found["attractor"].dims == ("momentum", "start") and found.sizes["id"] == 2


def test_vanished_attractors_are_remembered():
    near, far = np.array([[0.0, 0.0]]), np.array([[1.0, 0.0]])
    identities, moved = matched([[near, far], [far + 0.01], [far, near]], (), 0.1)
    assert [list(identity) for identity in identities] == [[1, 2], [2], [2, 1]]
    assert moved[2] == pytest.approx([0.01 * np.sqrt(2), 0])


def test_the_closest_pair_is_matched_first_and_the_threshold_holds():
    first = [np.array([[0.0]]), np.array([[1.0]])]
    identities, _ = matched([first, [np.array([[0.95]]), np.array([[0.97]]), np.array([[0.3]])]], (), 0.1)
    assert [list(identity) for identity in identities] == [[1, 2], [3, 2, 4]]
    flipped, _ = matched([[np.array([[1.0]])], [np.array([[-1.0]])]], [lambda x: -x], 0.1)
    assert [list(identity) for identity in flipped] == [[1], [1]]


def test_a_step_size_at_which_everything_diverges():
    found = attractors_along(GradientDescent(DOUBLE_WELL, 0.5), [0.9, 2.5], STARTS + np.sign(STARTS) * 1e-3)
    assert np.all(found["attractor_fate"][1] == -1) and np.all(found["share"][1] == 0)
    assert np.all(found["attractor"][1] == -1)


def test_errors():
    map_ = GradientDescent(DOUBLE_WELL, 0.5)
    with pytest.raises(ValueError, match="distinct"):
        attractors_along(map_, [0.5, 0.5], STARTS)
    with pytest.raises(ValueError, match="positive"):
        attractors_along(map_, [-0.5, 0.5], STARTS)
    with pytest.raises(ValueError, match="no parameter"):
        attractors_along(map_, [0.5], STARTS, parameter="momentum")
    with pytest.raises(ValueError, match="threshold"):
        attractors_along(map_, [0.5], STARTS, threshold=2)

"""Mean-square stability: known values, dense superoperators, the order of the bounds, errors."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmap.exponents.gd_exponent import gd_exponent_at
from gdmap.exponents.interpolation import interpolating_minimum
from gdmap.exponents.mean_square import (
    mean_square_radius,
    mean_square_radius_at,
    mean_square_threshold,
    mean_square_threshold_at,
    sgd_step_size_bounds,
    step_size_bounds_at,
)
from gdmap.maps.batches import Batches
from tests.exponents.losses import on_the_hyperbola, quadratic_forms, tanh_network, two_points, with_gram


def random_forms(seed, n=4, dim=3, rank=2):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(n, dim, rank)) * 10 ** rng.uniform(-1, 0.5, (n, 1, 1))
    return roots @ roots.transpose(0, 2, 1)


def dense_moment(matrices, batches):
    """``E A_w (x) A_w`` summed over all batches, independently of their second moment."""
    weights, probability = batches.support(10**5)
    drawn = np.einsum("kn,nij->kij", weights, matrices)
    return sum(p * np.kron(A, A) for p, A in zip(probability, drawn, strict=True))


def dense_threshold(matrices, batches):
    """``2 / lambda_max(C^-1 D)`` and ``M`` from Kronecker products on all matrices."""
    M = np.einsum("n,nij->ij", batches.mean(), matrices)
    identity = np.eye(len(M))
    C = (np.kron(M, identity) + np.kron(identity, M)) / 2
    return 2 / np.abs(np.linalg.eigvals(np.linalg.solve(C, dense_moment(matrices, batches)))).max(), M


@pytest.mark.parametrize(
    ("gram", "eta", "expected"),
    [
        ([[3, 0], [0, 1.2]], 0.5, 0.625),
        ([[3, 0.7], [0.7, 1.2]], 0.5, 0.64216),
        ([[3, 0.7], [0.7, 1.2]], 0.9, 1.8318),
    ],
)
def test_known_radii(gram, eta, expected):
    radius = mean_square_radius(with_gram(gram), np.ones(4), eta)
    assert radius.value == pytest.approx(expected, abs=6e-6)
    assert radius.lower <= radius.value <= radius.upper and radius.upper - radius.lower < 1e-10


def test_one_dimension():
    s, p = 3.0, np.array([0.58, 0.42])
    a = np.array([0.81, 6.25]) * s
    found = mean_square_threshold(two_points(), on_the_hyperbola(s), probabilities=p)
    assert found.value == pytest.approx(2 * (p @ a) / (p @ a**2), rel=1e-12)
    assert found.lower < found.value < found.upper
    eta = 0.2
    radius = mean_square_radius(two_points(p), on_the_hyperbola(s), eta)
    assert radius.value == pytest.approx(p @ (1 - eta * a) ** 2, rel=1e-12)


LAWS = [
    {"size": 1},
    {"size": 2},
    {"size": 3, "replace": True},
    {"size": 1, "probabilities": [0.1, 0.2, 0.3, 0.4]},
    {"size": 2, "probabilities": [0.1, 0.2, 0.3, 0.4]},
    {"size": 3, "probabilities": [0.1, 0.2, 0.3, 0.4], "replace": True},
    {"size": 4},
]


@pytest.mark.parametrize("law", LAWS)
def test_against_dense_superoperators(law):
    matrices = random_forms(len(str(law)))
    point = interpolating_minimum(quadratic_forms(matrices), np.zeros(3), law.get("probabilities"))
    batches = Batches(4, **law)
    expected, M = dense_threshold(matrices, batches)
    found = mean_square_threshold_at(point, batches)
    assert found.value == pytest.approx(expected, rel=1e-10)
    for eta in (0.5 * expected, expected, 1.7 * expected):
        identity = np.eye(3)
        T = (
            np.eye(9)
            - eta * (np.kron(M, identity) + np.kron(identity, M))
            + eta**2 * dense_moment(matrices, batches)
        )
        radius = mean_square_radius_at(point, batches, eta)
        assert radius.value == pytest.approx(np.abs(np.linalg.eigvals(T)).max(), rel=1e-10)
    assert mean_square_radius_at(point, batches, found.value).value == pytest.approx(1, abs=1e-9)


def test_the_formula_of_mulayoff_and_michaeli():
    n, matrices = 4, random_forms(5)
    H = matrices.mean(axis=0)
    point = interpolating_minimum(quadratic_forms(matrices), np.zeros(3))
    for size in range(1, n + 1):
        p = (n - size) / (size * (n - 1))
        D = (1 - p) * np.kron(H, H) + p * np.mean([np.kron(A, A) for A in matrices], axis=0)
        C = (np.kron(H, np.eye(3)) + np.kron(np.eye(3), H)) / 2
        expected = 2 / np.linalg.eigvals(np.linalg.pinv(C) @ D).real.max()
        assert mean_square_threshold_at(point, Batches(n, size)).value == pytest.approx(expected, rel=1e-10)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_the_order_of_the_bounds_and_the_batch_size(seed, rank):
    point = interpolating_minimum(quadratic_forms(random_forms(seed, rank=rank)), np.zeros(3))
    found = [step_size_bounds_at(point, Batches(4, size)) for size in (1, 2, 3, 4)]
    slack = 1 + 1e-9
    for bounds in found:
        value = {name: bound.value for name, bound in bounds.items()}
        assert value["wu_ma_e"] <= value["mean_square"] * slack
        assert value["mean_square"] <= value["necessary_trace"] * slack
        assert value["mean_square"] <= value["necessary_top_direction"] * slack
        assert value["necessary_top_direction"] <= value["gradient_descent"] * slack
        assert all(bound.lower <= bound.value <= bound.upper for bound in bounds.values())
    for name in ("mean_square", "wu_ma_e", "necessary_trace", "necessary_top_direction"):
        values = [bounds[name].value for bounds in found]
        assert all(a <= b * slack for a, b in itertools.pairwise(values))
    full = found[-1]
    assert full["mean_square"].value == pytest.approx(full["gradient_descent"].value, rel=1e-9)
    assert full["wu_ma_e"].value == pytest.approx(full["gradient_descent"].value, rel=1e-9)


def test_the_trace_bound_may_exceed_that_of_gradient_descent():
    point = interpolating_minimum(quadratic_forms([np.diag([1.0, 0.1])] * 3), np.zeros(2))
    bounds = step_size_bounds_at(point, Batches(3, 1))
    assert bounds["necessary_trace"].value == pytest.approx(2 * 1.1 / 1.01)
    assert bounds["gradient_descent"].value == pytest.approx(2)


def test_indefinite_samples_with_a_definite_mean():
    matrices = np.array([[[3.0, 1.0], [1.0, -0.5]], [[1.0, 0.2], [0.2, 2.0]], [[0.5, 0], [0, 1.0]]])
    point = interpolating_minimum(quadratic_forms(matrices), np.zeros(2))
    assert (point.signs < 0).any()
    expected, _ = dense_threshold(matrices, Batches(3, 2))
    assert mean_square_threshold_at(point, Batches(3, 2)).value == pytest.approx(expected, rel=1e-10)


def test_lanczos_against_the_power_method_on_a_network():
    objective, teacher = tanh_network(0, 6, 8, 3, 10)
    point = interpolating_minimum(objective, teacher)
    assert point.rank == 30
    batches = Batches(10, 2)
    found = mean_square_threshold_at(point, batches)
    assert "Lanczos" in found.method and found.status == "computed"
    assert found.upper - found.lower < 1e-6 * found.value
    matrices = point.sample_matrices()
    M = matrices.mean(axis=0)
    W = batches.second_moment()

    def image(S, eta):
        own = W[0, 0] - W[0, 1]  # uniform batches: W is a multiple of the identity and one of the ones
        moved = own * (matrices @ S @ matrices).sum(axis=0) + W[0, 1] * 100 * M @ S @ M
        return S - eta * (M @ S + S @ M) + eta**2 * moved

    for share, grows in ((0.99, False), (1.01, True)):
        eta = share * found.value
        S = np.eye(30)
        for _ in range(500):
            S = image(S, eta)
            growth = np.linalg.norm(S)
            S /= growth
        assert (growth > 1) == grows
        assert mean_square_radius_at(point, batches, eta).value == pytest.approx(growth, abs=2e-3)


def test_the_table_over_batch_sizes():
    objective, teacher = tanh_network(0, 6, 8, 3, 10)
    table = sgd_step_size_bounds(objective, teacher, [1, 2, 5, 10])
    assert list(table["batch_size"].values) == [1, 2, 5, 10]
    assert np.all(np.diff(table["mean_square"].values) > 0)
    assert np.all(table["mean_square_lower"] <= table["mean_square"])
    assert table["wu_ma_e"].attrs["kind"] == "sufficient" and "Wu" in table["wu_ma_e"].attrs["source"]
    full = mean_square_threshold(objective, teacher, 10)
    assert table["mean_square"].values[-1] == pytest.approx(full.value, rel=1e-9)
    point = interpolating_minimum(objective, teacher)
    below = gd_exponent_at(point, Batches(10).mean(), 0.999 * full.value)
    above = gd_exponent_at(point, Batches(10).mean(), 1.001 * full.value)
    assert below.verdict == "stable" and above.verdict == "unstable"


def test_errors():
    objective, theta = two_points(), on_the_hyperbola(3.0)
    with pytest.raises(ValueError, match="larger than the number of samples"):
        mean_square_threshold(objective, theta, 3)
    with pytest.raises(ValueError, match="batch_size"):
        mean_square_threshold(objective, theta, 0)
    with pytest.raises(ValueError, match="sum to 1"):
        mean_square_threshold(objective, theta, 1, [0.9, 0.9])
    with pytest.raises(ValueError, match="step_size"):
        mean_square_radius(objective, theta, -0.1)
    with pytest.raises(ValueError, match="empty"):
        sgd_step_size_bounds(objective, theta, [])
    point = interpolating_minimum(objective, theta)
    with pytest.raises(ValueError, match="shuffle=False"):
        mean_square_threshold_at(point, Batches(2, 1, shuffle=True))

"""Thresholds of linear networks: theory 2.4 and 6.1, and the proof in docs/critical-step-size.md."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import gdmap
from gdmap import LinearNetwork, critical_step_size
from gdmap.minima import minimal_sharpness_bound
from tests.conftest import random_network

whitened = LinearNetwork.whitened


def assert_attained(network, critical, closed=True):
    """The minimum is a global minimum with the sharpness that the bracket says."""
    theta = critical.minimum
    scale = 1 + np.abs(theta).max()
    assert np.abs(network.gradient(theta)).max() <= 1e-11 * scale * critical.min_sharpness.upper
    assert float(network.excess(theta)) <= 1e-20 * scale + 1e-13 * network.optimal_value
    spectrum = np.linalg.eigvalsh(network.hessian(theta))
    assert spectrum[-1] == pytest.approx(critical.min_sharpness.upper, rel=1e-10)
    assert critical.min_sharpness.lower <= critical.min_sharpness.value <= critical.min_sharpness.upper
    assert critical.step_size.value == pytest.approx(2 / critical.min_sharpness.value, rel=1e-14)
    if closed:
        assert critical.min_sharpness.relative_width < 1e-11
        assert critical.min_sharpness.status == critical.step_size.status == "computed"


@pytest.mark.parametrize(
    ("widths", "target", "sharpness"),
    [
        ((1, 1, 1), [[1.0]], 2.0),
        ((1, 1, 1, 1), [[1.0]], 3.0),
        pytest.param((1, 1, 1, 1, 1), [[1.0]], 4.0, marks=pytest.mark.slow),
        pytest.param((1,) * 6, [[1.0]], 5.0, marks=pytest.mark.slow),
        ((1, 1, 1), [[2.0]], 4.0),
        ((1, 1, 1, 1), [[2.0]], 3 * 2 ** (4 / 3)),
        ((2, 2, 2), np.diag([2.0, 1.0]), 4.0),
        ((2, 1, 2), np.diag([2.0, 1.0]), 4.0),
        pytest.param((2, 2, 2, 2), np.diag([1.0, 0.5]), 3.0, marks=pytest.mark.slow),
        ((3, 1, 3), np.diag([1.0, 0.5, 0.25]), 2.0),
        pytest.param((5, 5, 5), np.diag([1.0, 0.8, 0.6, 0.4, 0.2]), 2.0, marks=pytest.mark.slow),
        pytest.param((1, 2, 2, 1), [[1.0]], 3.0, marks=pytest.mark.slow),
        ((2, 3, 1, 3, 2), np.diag([1.5, 0.5]), 4 * 1.5**1.5),
        ((3, 2), np.ones((2, 3)), 1.0),
    ],
)
def test_whitened_networks(widths, target, sharpness):
    network = whitened(widths, target)
    critical = critical_step_size(network)
    assert critical.min_sharpness.value == pytest.approx(sharpness, rel=1e-13)
    assert critical.step_size.value == pytest.approx(2 / sharpness, rel=1e-13)
    assert_attained(network, critical)


def test_balanced_spectrum_of_a_bottleneck():
    network = whitened((2, 1, 2), np.diag([2.0, 1.0]))
    spectrum = np.linalg.eigvalsh(network.hessian(critical_step_size(network).minimum))
    np.testing.assert_allclose(spectrum, [0, 1, 3, 4], atol=1e-14)


@pytest.mark.parametrize(
    ("scale", "sharpness", "step_size"), [("overall", 0.76572, 2.6119), ("component", None, 3.4430)]
)
def test_digits(scale, sharpness, step_size):
    network = gdmap.data.digits(components=8, scale=scale).linear_network([8])
    assert network.widths == (8, 8, 10)
    critical = critical_step_size(network)
    assert critical.step_size.value == pytest.approx(step_size, abs=5e-5)
    if sharpness is not None:
        assert critical.min_sharpness.value == pytest.approx(sharpness, abs=5e-6)
    assert_attained(network, critical)


@pytest.mark.slow  # test_semidefinite has brackets of random networks by default
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.data())
def test_the_bracket_closes_without_a_bottleneck(seed, depth, data):
    ends = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    hidden = data.draw(st.lists(st.integers(min(ends), 6), min_size=depth - 1, max_size=depth - 1))
    network = random_network(seed, (ends[0], *hidden, ends[1]), spread=4)
    assert_attained(network, critical_step_size(network))


def minima_of(network, seed):
    """Random global minima: random upper layers, the first one solved for, plus its free part."""
    rng = np.random.default_rng(seed)
    shapes = [(b, a) for a, b in zip(network.widths, network.widths[1:], strict=False)]
    layers = [np.sqrt(2 / shape[1]) * rng.normal(size=shape) * rng.uniform(0.3, 2) for shape in shapes]
    above = np.linalg.multi_dot(layers[:0:-1]) if len(layers) > 2 else layers[-1]
    layers[0] = np.linalg.pinv(above) @ (network.optimum - above @ layers[0]) + layers[0]
    return network.ravel(layers)


@pytest.mark.parametrize(
    "widths",
    [(3, 3, 2), (2, 4, 3, 2), *(pytest.param(w, marks=pytest.mark.slow) for w in ((3, 3, 3, 3), (2, 2, 3, 2, 2)))],
)
def test_no_minimum_is_flatter_than_the_lower_bound(widths):
    network = random_network(11, widths, spread=2)
    lower = critical_step_size(network).min_sharpness.lower
    for seed in range(150):
        theta = minima_of(network, seed)
        assert float(network.excess(theta)) < 1e-18 * (1 + np.abs(theta).max()) ** 4
        assert np.linalg.eigvalsh(network.hessian(theta))[-1] >= lower


def test_depth_two_agrees_with_an_independent_convex_minimisation():
    # Two layers, hidden width >= min(d_0, d_2): minimise lambda_max(A (x) Sigma + I (x) B) over
    # [[A, C], [C^T, B]] >= 0 with C = W* Sigma^{1/2} (theory 2.4), here by a smooth p-norm over factors.
    network = random_network(4, (3, 3, 2), spread=1.5)
    values, vectors = np.linalg.eigh(network.input_covariance)
    root = (vectors * np.sqrt(values)) @ vectors.T
    target = network.optimum @ root

    def sharpness(z):
        left = z.reshape(2, 2) + 1e-12 * np.eye(2)
        right = np.linalg.solve(left, target)
        return np.linalg.eigvalsh(np.kron(left @ left.T, root @ root) + np.kron(np.eye(2), right.T @ right))[-1]

    best = min(
        minimize(
            sharpness,
            np.random.default_rng(s).normal(size=4),
            method="Nelder-Mead",
            options={"xatol": 1e-10, "fatol": 1e-12, "maxiter": 20_000, "maxfev": 20_000},
        ).fun
        for s in range(6)
    )
    assert critical_step_size(network).min_sharpness.value == pytest.approx(best, rel=1e-5)


def counterexample():
    # Two samples with covariance diag(9, 1) exactly, targets W x with W = diag(.3, 1).
    inputs = np.sqrt(2) * np.diag([3.0, 1.0])
    return LinearNetwork((2, 1, 2), inputs, inputs @ np.diag([0.3, 1.0]))


@pytest.mark.slow  # gradient descent agrees with its value below by default
def test_bottleneck_with_general_covariance_is_searched():
    network = counterexample()
    critical = critical_step_size(network)
    assert critical.min_sharpness.status == critical.step_size.status == "estimated"
    assert critical.min_sharpness.lower == pytest.approx(3.182, abs=5e-4)
    assert critical.min_sharpness.value == pytest.approx(5.7, abs=1e-6)
    assert critical.step_size.value == pytest.approx(0.3509, abs=5e-5)
    assert "Between it and 0.6285" in critical.explain()
    assert "proves nothing" in critical.explain()
    assert_attained(network, critical, closed=False)


def test_gradient_descent_agrees_with_the_searched_threshold():
    network = counterexample()
    result = gdmap.sweep(network, [0.34, 0.355], 500, max_steps=20_000, scale=0.3)
    shares = result.fraction.sel(fate_name="minimum").values
    assert shares[0] > 0.8
    assert shares[1] == 0


def assert_gradient_descent_agrees(network, scale):
    """Starts next to the flattest minimum return below the threshold; above it no start finds a minimum."""
    critical = critical_step_size(network)
    eta = critical.step_size.value
    near = critical.minimum + 1e-4 * gdmap.gaussian_starts(10, network.dim, seed=1)
    starts = np.concatenate([near, gdmap.gaussian_starts(90, network.dim, scale=scale)])
    result = gdmap.sweep(network, [0.97 * eta, 1.03 * eta], starts, max_steps=20_000)
    names = gdmap.fate_names(result).reshape(2, 100)
    assert np.all(names[0, :10] == "minimum")
    assert not np.any(names[1] == "minimum")


BOTTLENECKS = [(2, 1, 2), (3, 1, 3), (3, 2, 3), (3, 1, 2, 3), (4, 2, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_twenty_bottlenecks_agree_with_gradient_descent_on_both_sides(seed):
    assert_gradient_descent_agrees(random_network(seed, BOTTLENECKS[seed % 5], spread=1), 0.3)


def test_zero_optimum_has_no_critical_step_size():
    critical = critical_step_size(whitened((2, 2, 2), np.zeros((2, 2))))
    assert critical.step_size.value == np.inf
    assert critical.min_sharpness.value == 0
    assert "optimum is zero" in critical.reason
    assert "no critical step size" in critical.explain()
    regression = critical_step_size(whitened((2, 2), np.zeros((2, 2))))
    assert regression.step_size.value == 2.0


def test_targets_uncorrelated_with_the_inputs_up_to_rounding_count_as_zero():
    inputs = np.array([[1.0], [-1.0], [1.0], [-1.0]]) / 3
    targets = np.array([[0.7], [0.7], [-0.7], [-0.7]])
    assert critical_step_size(LinearNetwork((1, 2, 1), inputs, targets)).step_size.value == np.inf


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_scaling_laws(seed, factor):
    network = random_network(seed, (3, 3, 2))
    X, Y = network.samples.inputs, network.samples.targets
    base = critical_step_size(network).step_size.value
    # sqrt(c) on inputs and targets multiplies the loss by c and leaves W* alone.
    scaled = LinearNetwork(network.widths, np.sqrt(factor) * X, np.sqrt(factor) * Y)
    assert critical_step_size(scaled).step_size.value == pytest.approx(base / factor, rel=1e-10)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    turned = LinearNetwork(network.widths, X @ rotation, Y)
    assert critical_step_size(turned).step_size.value == pytest.approx(base, rel=1e-10)


def test_a_zero_optimum_to_rounding_is_no_proof():
    # C = -1/2 exactly, so the truth is 2; beside targets of 1e15 it is below the rounding of the statistics.
    critical = critical_step_size(LinearNetwork((1, 2, 1), [[1.0], [-1.0]], [[1e15], [1e15 + 1]]))
    assert critical.step_size.lower <= 2 <= critical.step_size.upper
    assert "rounding of the data" in critical.reason
    assert "excluded" in critical.explain()


def test_family_with_unbounded_stable_minima():
    # theory 2.4: widths (1, 2, 2, 1), W* = 1, spectrum {0 x 7, 3} for every t.
    network = whitened((1, 2, 2, 1), [[1.0]])
    for t in (0.0, 1.0, 10.0, 1000.0):
        theta = network.ravel([np.array([[1.0], [0.0]]), np.diag([1.0, t]), np.array([[1.0, 0.0]])])
        np.testing.assert_allclose(np.linalg.eigvalsh(network.hessian(theta)), [0] * 7 + [3], atol=1e-9)


@pytest.mark.parametrize("a", [1.0, 2.0, 10.0])
def test_spectrum_along_a_bottleneck(a):
    # theory 2.4: widths (2, 1, 2), the rank-one optimum of diag(2, 1), factors a and b with a b = 2.
    network, b = whitened((2, 1, 2), np.diag([2.0, 1.0])), 2.0 / a
    theta = network.ravel([np.array([[b, 0.0]]), np.array([[a], [0.0]])])
    middle, spread = (a * a + b * b) / 2, np.sqrt(((a * a - b * b) / 2) ** 2 + 1)
    expected = sorted([0, a * a + b * b, middle + spread, middle - spread])
    np.testing.assert_allclose(np.linalg.eigvalsh(network.hessian(theta)), expected, atol=1e-12)
    if a == 10:
        assert middle - spread == pytest.approx(0.029997, abs=1e-6)


@pytest.mark.parametrize("point", [(1.0, 1.0), (2.0, 0.5), (-0.1, -10.0)])
def test_spectrum_of_the_product_of_two(point):
    x, y = point  # theory 6.1: on x y = 1 the spectrum is {0, x^2 + y^2}
    network = whitened((1, 1, 1), [[1.0]])
    np.testing.assert_allclose(
        np.linalg.eigvalsh(network.hessian(np.array(point))), [0, x * x + y * y], atol=1e-12
    )
    eta = 0.3
    determinant = (1 - eta * x * x) * (1 - eta * y * y) - eta**2 * (2 * x * y - 1) ** 2
    jacobian = gdmap.GradientDescent(network, eta).jacobian(np.array(point))
    assert np.linalg.det(jacobian) == pytest.approx(determinant, rel=1e-12)


def test_sharpness_of_the_product_of_three():
    network = whitened((1, 1, 1, 1), [[1.0]])
    for x, y in ((1.0, 1.0), (2.0, 0.5), (0.3, -1.5)):
        z = 1 / (x * y)
        top = np.linalg.eigvalsh(network.hessian(np.array([x, y, z])))[-1]
        assert top == pytest.approx(x**-2 + y**-2 + z**-2, rel=1e-12)


@pytest.mark.parametrize("widths", [(1, 1, 1), (2, 2, 2), (3, 1, 3), (2, 3, 1, 3, 2), (3, 2, 4), (2, 4, 3, 2)])
def test_dimension_of_the_set_of_minima(widths):
    # theory 2.2: n - r (d_0 + d_N - r) with r = min(widths), for an optimum of full rank r.
    target = np.random.default_rng(1).normal(size=(widths[-1], widths[0]))
    network, rank = whitened(widths, target), min(widths)
    eigenvalues = np.linalg.eigvalsh(network.hessian(critical_step_size(network).minimum))
    nullity = np.sum(np.abs(eigenvalues) < 1e-10 * eigenvalues[-1])
    assert nullity == network.dim - rank * (widths[0] + widths[-1] - rank)


@pytest.mark.parametrize(("widths", "spread"), [((2, 3, 1, 3, 2), None), ((3, 1, 3), None), ((3, 2, 4), 2.0)])
def test_no_minimum_behind_a_bottleneck_is_flatter_than_the_bound(widths, spread):
    # Random minima: factors of the optimum, changed by random invertible matrices between the layers.
    target = np.random.default_rng(2).normal(size=(widths[-1], widths[0]))
    network = whitened(widths, target) if spread is None else random_network(3, widths, spread=spread)
    rank = min(widths)
    bound = minimal_sharpness_bound(network)
    lower = bound.value * (1 - bound.relative_error)
    U, s, Vt = np.linalg.svd(network.optimum)
    rng = np.random.default_rng(0)
    for _ in range(200):
        gauges = [np.eye(rank), *(rng.normal(size=(rank, rank)) for _ in widths[1:-1]), np.eye(rank)]
        layers = []
        for level, (columns, rows) in enumerate(pairwise(widths)):
            core = gauges[level + 1] @ np.linalg.inv(gauges[level])
            if level == 0:
                core = core * s[:rank] @ Vt[:rank] if len(widths) > 2 else core
            layer = np.zeros((rows, columns))
            layer[: core.shape[0], : core.shape[1]] = core
            layers.append(layer)
        layers[-1] = U[:, :rank] @ layers[-1][:rank]
        theta = network.ravel(layers)
        assert abs(float(network.excess(theta))) < 1e-10
        assert np.linalg.eigvalsh(network.hessian(theta))[-1] >= lower


def test_smallest_positive_eigenvalue_is_not_bounded_below():
    # theory 2.4: the counterexample to "every non-zero eigenvalue exceeds 2 / eta".
    network = whitened((2, 2, 2), np.eye(2))
    theta = network.ravel([np.diag([0.1, 10.0]), np.diag([10.0, 0.1])])
    np.testing.assert_allclose(
        np.linalg.eigvalsh(network.hessian(theta)), [0] * 4 + [0.02, 100.01, 100.01, 200], atol=1e-10
    )


@pytest.mark.parametrize(("kind", "error"), [("plain", 1e-14), ("offset", 1e-11), ("correlated", 1e-9)])
def test_the_bracket_contains_the_value_of_exact_arithmetic(kind, error):
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(5)
    X, Y = rng.normal(size=(15, 2)), rng.normal(size=(15, 1))
    if kind == "offset":
        Y = Y + 1e4
    elif kind == "correlated":
        X[:, 1] = X[:, 0] + 1e-5 * X[:, 1]
    with mpmath.workdps(50):
        inputs, targets = mpmath.matrix(X.tolist()), mpmath.matrix(Y.tolist())
        covariance = inputs.T * inputs / 15
        values, vectors = mpmath.eigsy(covariance)
        root = vectors * mpmath.diag([mpmath.sqrt(value) for value in values]) * vectors.T
        target = (mpmath.inverse(covariance) * (inputs.T * targets / 15)).T * root
        low, high = mpmath.mpf(-40), mpmath.mpf(40)

        def dual(s):
            return max(mpmath.eigsy(mpmath.exp(s) * root * root + mpmath.exp(-s) * target.T * target)[0])

        for _ in range(230):  # ternary search of a convex function
            third = (high - low) / 3
            if dual(low + third) < dual(high - third):
                high -= third
            else:
                low += third
        exact = dual(low)
        bracket = critical_step_size(LinearNetwork((2, 2, 1), X, Y)).min_sharpness
        assert bracket.lower <= exact <= bracket.upper
        assert abs(bracket.value - exact) <= error * exact


def test_units_of_the_columns_do_not_matter():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(40, 2))
    for unit in (1.0, 1e-16, 1e-30):
        network = LinearNetwork((2, 1), z * [1, unit], z[:, 1:])
        assert network.optimal_value < 1e-28
    with pytest.raises(ValueError, match="rescale"):
        LinearNetwork((2, 1), z * 1e160, z[:, 1:])


def test_inputs_that_are_all_zero():
    with pytest.raises(ValueError, match="inputs are all zero"):
        critical_step_size(LinearNetwork((2, 1), np.zeros((3, 2)), np.ones((3, 1))))

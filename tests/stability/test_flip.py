"""The flip coefficient against exact values (golden values 3, theory 6.2 and 6.3), the map itself and mpmath."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from gdmap import Function, GradientDescent, LinearNetwork, Objective, find_minimum
from gdmap.minima import balanced_minimum
from gdmap.stability.flip import flip_coefficient


class Quartic(eqx.Module):
    """``x^T A x / 2 + C[x, x, x] / 6 + Q[x, x, x, x] / 24`` with symmetric tensors."""

    A: np.ndarray
    C: np.ndarray
    Q: np.ndarray

    def __call__(self, x):
        square = x[:, None] * x
        quadratic = jnp.sum(self.A * square) / 2
        cubic = jnp.einsum("ijk,ij,k", self.C, square, x) / 6
        return quadratic + cubic + jnp.einsum("ijkl,ij,kl", self.Q, square, square) / 24

    def turned(self, rotation):
        R = rotation
        return Quartic(
            R @ self.A @ R.T,
            np.einsum("ijk,ai,bj,ck->abc", self.C, R, R, R),
            np.einsum("ijkl,ai,bj,ck,dl->abcd", self.Q, R, R, R, R),
        )

    def coefficient(self):
        """The formula with the full tensors."""
        values, vectors = np.linalg.eigh(self.A)
        q = vectors[:, -1]
        t, fourth = self.C @ q @ q, self.Q @ q @ q @ q @ q
        return 2 / values[-1] * (t @ np.linalg.solve(self.A, t) / 2 - fourth / 6)


def symmetrised(tensor):
    from itertools import permutations

    orders = list(permutations(range(tensor.ndim)))
    return sum(np.transpose(tensor, order) for order in orders) / len(orders)


def random_quartic(seed, dim=3, quartic=1.0):
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    A = rotation @ np.diag(np.linspace(1.0, 3.0, dim) + rng.uniform(0, 0.3, dim)) @ rotation.T
    C, Q = symmetrised(rng.normal(size=(dim,) * 3)), symmetrised(rng.normal(size=(dim,) * 4))
    return Quartic((A + A.T) / 2, C, quartic * Q)


def flip_of(quartic, **keywords):
    return flip_coefficient(Function(quartic, len(quartic.A)), np.zeros(len(quartic.A)), **keywords)


class Polynomial(eqx.Module):
    """``sum_k c_k x^k``, degree 6."""

    c: np.ndarray

    def __call__(self, x):
        return jnp.polyval(self.c[::-1], x[0])


def polynomial(*coefficients):
    return Function(Polynomial(np.pad(np.array(coefficients, dtype=float), (0, 7 - len(coefficients)))), 1)


DOUBLE_WELL = polynomial(1 / 4, 0, -1 / 2, 0, 1 / 4)


@pytest.mark.parametrize(
    ("loss", "minimum", "golden"),
    [
        (DOUBLE_WELL, 1.0, 96),
        (polynomial(0, -1, 0, 1 / 3), 1.0, 12),
        (polynomial(0, -3, 0, 1), 1.0, 9 * 12),
        (polynomial(0, 0, 1 / 2, 0, 1 / 4), 0.0, -6),
        (polynomial(0, 0, 1, 1 / 2, 1, 0, 7), 0.0, 3 * 3**2 - 2 * 24),
    ],
)
def test_one_dimension(loss, minimum, golden):
    flip = flip_coefficient(loss, np.array([minimum]))
    lam = flip.sharpness.value
    # 3 L'''^2 - L'' L'''' = 6 lam b / eta, and eta = 2 / lam
    assert 3 * lam**2 * flip.coefficient.value == pytest.approx(golden, rel=1e-13)
    assert flip.coefficient.relative_width < 1e-12
    assert flip.coefficient.status == "computed"
    assert flip.kind == ("supercritical" if golden > 0 else "subcritical")
    assert flip.step_size.value == pytest.approx(2 / lam, rel=1e-14)
    assert flip.drift.value == 0 and not flip.drifts


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
def test_random_quartics_against_the_cycle_itself(seed):
    quartic = random_quartic(seed)
    flip = flip_of(quartic)
    assert flip.coefficient.value == pytest.approx(quartic.coefficient(), rel=1e-12)
    assert flip.coefficient.lower <= quartic.coefficient() <= flip.coefficient.upper
    record = flip.check(excess=1e-4)
    assert record.converged.all()
    shares = (record.amplitude / record.predicted_amplitude).values ** 2
    assert np.abs(shares - 1).max() < 2e-3
    # To first order in the excess: halving it halves the deviation.
    assert (shares[1] - 1) / (shares[0] - 1) == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(record.multiplier, record.predicted_multiplier, atol=1e-6)
    # Extrapolated, what is left is of second order in the squared amplitude.
    second_order = (1e-4 / flip.coefficient.value) ** 2
    assert float(record.measured_coefficient) == pytest.approx(flip.coefficient.value, rel=1e-8 + 2 * second_order)


def test_the_cycle_bends_by_the_second_order_term():
    flip = flip_of(random_quartic(2))
    record = flip.check(excess=1e-4)
    middle = record.points.isel(excess=0).mean("point").values - flip.theta
    a = float(record.amplitude[0])
    np.testing.assert_allclose(middle, -(a**2) / 2 * flip.bend, atol=0.01 * a**2 * np.linalg.norm(flip.bend))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(1e-2, 1e2))
@pytest.mark.slow
def test_scaling_laws_and_orthogonal_changes(seed, factor, length):
    quartic = random_quartic(seed)
    base = flip_of(quartic)
    b = base.coefficient.value
    error = 1e-9 * (abs(b) + 1)
    scaled = flip_of(Quartic(factor * quartic.A, factor * quartic.C, factor * quartic.Q))
    assert scaled.kind == base.kind
    assert scaled.coefficient.value == pytest.approx(b, abs=error)
    assert scaled.step_size.value == pytest.approx(base.step_size.value / factor, rel=1e-12)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    turned = flip_of(quartic.turned(rotation))
    assert turned.kind == base.kind
    assert turned.coefficient.value == pytest.approx(b, abs=error)
    np.testing.assert_allclose(np.abs(rotation @ base.eigenvector @ turned.eigenvector), 1, atol=1e-9)
    # theta in other units: b has the unit 1 / theta^2
    stretched = flip_of(Quartic(quartic.A / length**2, quartic.C / length**3, quartic.Q / length**4))
    assert stretched.coefficient.value == pytest.approx(b / length**2, abs=error / length**2)


def test_subcritical_cycle_below_the_threshold():
    quartic = random_quartic(0, quartic=6.0)
    signs = [np.sign(random_quartic(seed, quartic=6.0).coefficient()) for seed in range(8)]
    quartic = random_quartic(int(np.argmin(signs)), quartic=6.0)
    flip = flip_of(quartic)
    assert flip.kind == "subcritical" and flip.coefficient.upper < 0
    record = flip.check(1e-3)
    assert record.converged.all() and (record.step_size < flip.step_size.value).all()
    assert (record.multiplier > 1).all()
    np.testing.assert_allclose(record.multiplier, record.predicted_multiplier, atol=1e-4)
    assert float(record.measured_coefficient) == pytest.approx(flip.coefficient.value, rel=1e-4)
    assert record.outcome.values.tolist() == ["minimum", "away", "away"]
    assert "subcritically" in flip.explain() and "jump away" in flip.explain()
    # The points found form a 2-cycle of the map, computed apart.
    step = GradientDescent(flip.objective, float(record.step_size[0])).step
    first, second = record.points.isel(excess=0).values
    np.testing.assert_allclose(step(step(first)), first, atol=1e-15)
    np.testing.assert_allclose(step(first), second, atol=1e-15)


def test_supercritical_iteration_settles_on_the_cycle():
    flip = flip_coefficient(DOUBLE_WELL, np.array([1.0]))
    record = flip.check(0.02)
    assert record.outcome.values.tolist() == ["cycle", "cycle", "minimum"]
    eta = float(record.step_size[0])  # golden values 2: the in-well 2-cycle
    r = 1 + eta
    assert float(record.amplitude[0]) == pytest.approx(math.sqrt((r - 2) / eta) / 2, rel=1e-9)
    assert float(record.multiplier[0]) == pytest.approx(9 - 2 * r**2, rel=1e-9)
    step = GradientDescent(flip.objective, eta).step
    x = np.array([1.02])
    for _ in range(2000):
        x = step(x)
    assert abs(step(x)[0] - x[0]) / 2 == pytest.approx(float(record.amplitude[0]), rel=1e-6)
    assert flip.amplitude(eta) == pytest.approx(float(record.predicted_amplitude[0]), rel=1e-12)
    assert "2-cycle" in flip.explain() and "supercritically" in flip.explain()


@pytest.mark.parametrize(
    ("depth", "high", "low"),
    [
        (2, 1.0910894512, 0.8728715609),
        pytest.param(3, 1.0475879443, 0.9326137046, marks=pytest.mark.slow),
        pytest.param(4, 1.0322128415, 0.9541430900, marks=pytest.mark.slow),
        pytest.param(5, 1.0243476282, 0.9652443672, marks=pytest.mark.slow),
    ],
)
def test_products_at_their_flattest_minimum(depth, high, low):
    network = LinearNetwork.whitened((1,) * (depth + 1), [[1.0]])
    flip = flip_coefficient(network, np.ones(depth))
    assert flip.kind == "supercritical" and not flip.drifts
    # By hand: L'''[q,q,q] = 3 (N-1) sqrt(N), L''''[q^4] = (N-1)(7N-11) on the diagonal.
    fourth = (depth - 1) * (7 * depth - 11)
    assert flip.coefficient.value == pytest.approx(2 / depth * (4.5 * (depth - 1) ** 2 - fourth / 6), rel=1e-12)
    # The sharpness sum x_i^-2 along the manifold has the curvature 4 in every direction.
    np.testing.assert_allclose(flip.sharpness_curvature, np.full(depth - 1, 4.0), rtol=1e-9)
    record = flip.check(0.1)
    assert float(record.step_size[0]) == pytest.approx(1.05 * 2 / depth, rel=1e-14)
    assert float(record.amplitude[0]) == pytest.approx(math.sqrt(depth) * (high - low) / 2, abs=2e-10)
    assert float(record.predicted_amplitude[0]) == pytest.approx(float(record.amplitude[0]), rel=0.03)
    assert record.outcome.values.tolist() == ["cycle", "cycle", "minimum"]
    if depth == 2:  # theory 6.2: multipliers along and across
        eta = 1.05
        np.testing.assert_allclose(
            record.multipliers[0], sorted([5 - 2 * (1 + eta), 9 - 2 * (1 + eta) ** 2])[::-1], rtol=1e-9
        )


NETWORK = LinearNetwork.whitened((2, 3, 2), np.random.default_rng(0).normal(size=(2, 2)))


def test_multipliers_along_the_manifold_of_a_matrix_network():
    flip = flip_coefficient(NETWORK, balanced_minimum(NETWORK))
    assert flip.kind == "supercritical" and not flip.drifts
    assert flip.drift.value < 1e-12
    record = flip.check(1e-3)
    assert record.converged.all()
    assert float(record.measured_coefficient) == pytest.approx(flip.coefficient.value, rel=1e-6)
    curvature = flip.sharpness_curvature
    nullity = NETWORK.dim - 4
    assert len(curvature) == nullity and curvature[0] > -1e-9  # flattest
    assert 0 < flip.neutral_dimension < nullity
    # Each predicted multiplier along the manifold is found among those of the cycle.
    found = record.multipliers.isel(excess=0).values
    for predicted in record.predicted_flat_multipliers.isel(excess=0).values:
        assert np.abs(found - predicted).min() < 1e-5
    assert np.sum(np.abs(found - 1) < 1e-9) == flip.neutral_dimension
    assert np.sum(np.abs(found - 1) < 0.1) == nullity + 1


def test_a_balanced_matrix_network_flips_like_the_chain_of_its_largest_singular_value():
    chain = LinearNetwork.whitened((1, 1, 1), [[np.linalg.norm(NETWORK.whitened_target, 2)]])
    scalar, matrix = (flip_coefficient(loss, balanced_minimum(loss)) for loss in (chain, NETWORK))
    assert matrix.coefficient.value == pytest.approx(scalar.coefficient.value, rel=1e-12)


class Neuron(eqx.Module):
    y: np.ndarray

    def __call__(self, w):
        return (w[1] * jnp.tanh(w[0]) - self.y) ** 2 / 2


def flattest_neuron(y):
    """The tanh neuron of theory 6.3 with its flattest minimum, found by minimising the sharpness."""

    def sharpness(w):
        slope = y / np.tanh(w) * (1 - np.tanh(w) ** 2)
        return slope**2 + np.tanh(w) ** 2

    w = minimize_scalar(sharpness, bounds=(0.01, 3), method="bounded", options={"xatol": 1e-12}).x
    return Function(Neuron(np.array(y)), 2), np.array([w, y / np.tanh(w)])


@pytest.mark.parametrize("y", [0.5, 3.0])
def test_tanh_neuron_at_its_flattest_minimum(y):
    loss, theta = flattest_neuron(y)
    flip = flip_coefficient(loss, theta)
    assert flip.sharpness.value == pytest.approx(2 * y * math.sqrt(1 + y * y) - 2 * y * y, rel=1e-12)
    assert not flip.drifts and flip.kind == "supercritical"
    assert len(flip.sharpness_curvature) == 1 and flip.sharpness_curvature[0] > 0
    record = flip.check(1e-4)
    assert record.converged.all()
    assert float(record.measured_coefficient) == pytest.approx(flip.coefficient.value, rel=2e-5)
    found = record.multipliers.isel(excess=0).values
    slow = 1 - float(record.predicted_flat_multipliers[0, 0])
    assert (1 - np.delete(found, np.argmin(np.abs(found - record.multiplier.values[0])))[0]) == pytest.approx(
        slow, rel=5e-3
    )


class Curved(eqx.Module):
    """``r(w)^2 / 2`` with ``r = a.w + w^T B w - 1``: minima on a quadric, sharpness ``|grad r|^2``."""

    a: np.ndarray
    B: np.ndarray

    def __call__(self, w):
        return (self.residual(w)) ** 2 / 2

    def residual(self, w):
        return self.a @ w + w @ self.B @ w - 1

    def slope(self, w):
        return self.a + 2 * self.B @ w

    def stationary(self, seed):
        """A critical point of the sharpness on the manifold, by Newton's method on Lagrange's equations."""
        w, multiplier = np.random.default_rng(seed).normal(size=3), 1.0
        for _ in range(200):
            g = self.slope(w)
            equations = np.append(4 * self.B @ g - multiplier * g, self.residual(w))
            matrix = np.zeros((4, 4))
            matrix[:3, :3] = 8 * self.B @ self.B - 2 * multiplier * self.B
            matrix[:3, 3], matrix[3, :3] = -g, g
            step = np.linalg.solve(matrix, -equations)
            w, multiplier = w + step[:3], multiplier + step[3]
            if np.linalg.norm(step) < 1e-15 * (1 + np.linalg.norm(w)):
                break
        assert np.abs(equations).max() < 1e-10
        return w, multiplier

    def curvature(self, w, multiplier):
        """The Hessian of Lagrange's function on the tangent space: the curvature of the sharpness."""
        tangent = np.linalg.svd(self.slope(w)[None])[2][1:]
        return np.linalg.eigvalsh(tangent @ (8 * self.B @ self.B - 2 * multiplier * self.B) @ tangent.T)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_curved_manifold_without_symmetry(seed):
    rng = np.random.default_rng(seed)
    B = rng.normal(size=(3, 3))
    curved = Curved(rng.normal(size=3), (B + B.T) / 4)
    theta, multiplier = curved.stationary(seed)
    flip = flip_coefficient(Function(curved, 3), theta)
    assert not flip.drifts
    expected = curved.curvature(theta, multiplier)
    np.testing.assert_allclose(flip.sharpness_curvature, expected, rtol=1e-7, atol=1e-9)
    assert flip.is_saddle_of_sharpness == (expected[0] < 0)
    record = flip.check(1e-4)
    assert record.converged.all()
    assert float(record.measured_coefficient) == pytest.approx(flip.coefficient.value, rel=1e-5)
    found = record.multipliers.isel(excess=0).values
    for predicted in record.predicted_flat_multipliers.isel(excess=0).values:
        assert np.abs(found - predicted).min() < 0.02 * abs(1 - predicted)


def test_drift_is_the_slope_of_the_sharpness(two_factors):
    x = 1.25
    y = 1 / x
    flip = flip_coefficient(two_factors, np.array([x, y]))
    # |grad (x^2 + y^2)| along x y = 1
    assert flip.drift.value == pytest.approx(2 * (x * x - y * y) / math.hypot(x, y), rel=1e-12)
    assert flip.drifts and flip.kind == "drifting"
    tangent = np.array([x, -y]) / math.hypot(x, y)
    np.testing.assert_allclose(flip.sharpness_gradient, flip.drift.value * tangent, rtol=1e-12)
    assert "self-stabilisation" in flip.explain() and "flatter" in flip.explain()
    for predict in (flip.check, lambda: flip.amplitude(1.0)):
        with pytest.raises(ValueError, match="flattest"):
            predict()
    # What the sentence says: just above the threshold the state drifts until the sharpness is below 2 / eta.
    eta = 1.002 * flip.step_size.value
    state = np.array([x, y]) + 1e-4 * flip.eigenvector
    step = GradientDescent(two_factors, eta).step
    for _ in range(8000):
        state = step(state)
    assert abs(state[0] * state[1] - 1) < 1e-6
    assert state @ state < 2 / eta < flip.sharpness.value


def test_close_to_the_flattest_minimum_counts_as_flattest(two_factors):
    near, far = (flip_coefficient(two_factors, np.array([1 + d, 1 / (1 + d)])) for d in (1e-5, 1e-3))
    assert not near.drifts and near.drift.lower > 0
    assert near.check(1e-3).converged.all()
    assert near.kind == "supercritical" and far.drifts and far.kind == "drifting"


class Valley(eqx.Module):
    """Minima ``x = 0`` with the sharpness ``1 + bend w^2``; ``b = 8``."""

    bend: np.ndarray

    def __call__(self, z):
        return (1 + self.bend * z[1] ** 2) * z[0] ** 2 / 2 - z[0] ** 4


@pytest.mark.parametrize(("bend", "kind"), [(0.3, False), (-0.3, True)])
def test_stationary_but_not_flattest(bend, kind):
    flip = flip_coefficient(Function(Valley(np.array(bend)), 2), np.zeros(2))
    assert flip.coefficient.value == pytest.approx(8, rel=1e-13)
    np.testing.assert_allclose(flip.sharpness_curvature, [2 * bend], rtol=1e-12)
    assert flip.is_saddle_of_sharpness == kind
    assert ("not along the manifold" in flip.explain()) == kind
    record = flip.check(1e-3)
    assert record.converged.all()
    assert (record.multipliers.values.max() > 1) == kind


def test_multiple_top_eigenvalue():
    base = random_quartic(0)
    flip = flip_of(Quartic(np.diag([1.0, 1.0, 0.25]), base.C, base.Q))
    assert (flip.kind, flip.multiplicity, flip.coefficient) == ("multiple", 2, None)
    assert flip.eigenvector is None and flip.drift is None
    np.testing.assert_allclose(flip.eigenvectors[2], 0, atol=1e-15)
    assert flip.gap == pytest.approx(0.75, rel=1e-14)
    assert flip.step_size.value == pytest.approx(2)
    assert "2 directions at once" in flip.explain()
    for predict in (flip.check, lambda: flip.amplitude(2.1)):
        with pytest.raises(ValueError, match="multiplicity 2"):
            predict()


def test_nearly_multiple_eigenvalues_earn_a_remark_and_a_wider_bracket():
    def at(gap):
        rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
        base = random_quartic(0)
        A = rotation @ np.diag([1.0, 2.0, 2.0 / (1 - gap)]) @ rotation.T
        return flip_of(Quartic((A + A.T) / 2, base.C, base.Q))

    close, wide = at(1e-5), at(0.3)
    assert close.gap == pytest.approx(1e-5, rel=1e-6)
    assert "well below" in close.explain() and "well below" not in wide.explain()
    assert close.coefficient.relative_width > 1e3 * wide.coefficient.relative_width
    assert [at(gap).kind for gap in (1e-10, 1e-7, 9e-7)] == ["multiple"] * 3


class Crossing(eqx.Module):
    """Minima ``x = y = 0`` with the eigenvalues ``1 + w + w^2`` and ``1 - w + w^2``: flattest where they cross."""

    def __call__(self, z):
        x, y, w = z
        return ((1 + w + w * w) * x * x + (1 - w + w * w) * y * y) / 2 - x**4 - y**4


def test_a_search_that_ends_next_to_a_crossing_is_told_no_circle():
    def at(w):
        return flip_coefficient(Function(Crossing(), 3), np.array([0.0, 0.0, w]))

    for w in (0.0, 5e-8, -3e-7):  # relative gaps 0, 1e-7, 6e-7
        found = at(w)
        assert (found.kind, found.multiplicity, found.drifts) == ("multiple", 2, False)
        assert "equal up to 1e-6 or their own error, as is usual at a flattest minimum" in found.explain()
        with pytest.raises(ValueError, match=r"multiplicity 2 .*equal up to 1e-6"):
            found.check()
    near, far = at(1e-5), at(0.3)
    for drifting in (near, far):
        assert drifting.kind == "drifting" and drifting.drifts
        assert drifting.drift.value == pytest.approx(1 + 2 * drifting.theta[2], rel=1e-9)
    assert "no single coefficient" in near.explain() and "no single coefficient" not in far.explain()
    with pytest.raises(ValueError, match="no single coefficient"):
        near.amplitude(2.1)
    with pytest.raises(ValueError, match="flattest minimum, if its largest eigenvalue is simple"):
        far.amplitude(2.1)


class Slope(eqx.Module):
    """Minima ``x = 0`` with the sharpness ``1 + w``, and a quartic term."""

    quartic: np.ndarray

    def __call__(self, z):
        return (1 + z[1]) * z[0] ** 2 / 2 + self.quartic * z[0] ** 4


@pytest.mark.slow
def test_a_drifting_minimum_is_drifting_whatever_the_sign_of_the_coefficient():
    kinds = {}
    for quartic in (-8.0, 0.0, 8.0):
        loss = Function(Slope(np.array(quartic)), 2)
        flip = flip_coefficient(loss, np.zeros(2))
        kinds[np.sign(flip.coefficient.value)] = flip.kind
        assert flip.explain().count("flattest") == 1
    assert kinds == {1: "drifting", 0: "drifting", -1: "drifting"}


def softmax_regression(scale=1.0):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(30, 3)), rng.integers(0, 3, 30)
    return Objective(lambda W, x, y: -scale * jax.nn.log_softmax(W @ x)[y], np.zeros((3, 3)), data=data)


@pytest.mark.parametrize("scale", [1.0, pytest.param(1e-6, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_sharpness_constant_by_symmetry_is_flat_not_drifting(scale):
    loss = softmax_regression(scale)
    flip = flip_coefficient(loss, find_minimum(softmax_regression(), np.zeros(9)).theta)
    # A vector added to all rows changes nothing.
    assert len(flip.sharpness_curvature) == flip.neutral_dimension == 3
    assert not flip.is_saddle_of_sharpness and not flip.drifts and flip.kind == "supercritical"
    assert flip.curvature_error < 1e-10 * flip.sharpness.value
    told = flip.explain()
    assert "flat along the manifold of minima to second order" in told and "drifts" not in told
    record = flip.check(1e-2)
    assert record.converged.all()
    assert float(record.measured_coefficient) == pytest.approx(flip.coefficient.value, rel=1e-3)
    np.testing.assert_allclose(np.sort(np.abs(record.multipliers[0] - 1))[:3], 0, atol=1e-12)


@pytest.mark.parametrize("bend", [1e-9, -1e-9])
def test_a_small_curvature_is_not_taken_for_rounding(bend):
    flip = flip_coefficient(Function(Valley(np.array(bend)), 2), np.zeros(2))
    np.testing.assert_allclose(flip.sharpness_curvature, [2 * bend], rtol=1e-9)
    assert flip.neutral_dimension == 0 and flip.is_saddle_of_sharpness == (bend < 0)


def test_degenerate():
    quadratic = flip_coefficient(polynomial(0, 0, 1 / 2), np.zeros(1))
    assert quadratic.kind == "degenerate" and quadratic.coefficient.value == 0
    # 3 L'''^2 = L'' L'''' with neither zero, at a minimum that is no round number.
    centred = np.polynomial.Polynomial([0, 0, 1 / 2, 1 / 3, 1 / 2])
    cancelling = polynomial(*centred(np.polynomial.Polynomial([-0.3, 1])).coef)
    flip = flip_coefficient(cancelling, np.array([0.3]))
    assert flip.kind == "degenerate"
    assert abs(flip.coefficient.value) < 1e-13 and flip.coefficient.upper < 1e-11
    assert "fifth order" in flip.explain()
    for predict in (flip.check, lambda: flip.amplitude(2.1)):
        with pytest.raises(ValueError, match="0 up to its error"):
            predict()


def test_amplitude_takes_arrays_and_is_nan_on_the_wrong_side():
    flip = flip_coefficient(DOUBLE_WELL, np.array([1.0]))
    np.testing.assert_allclose(
        flip.amplitude([0.9, 1.0, 1.1, 1.2]), [np.nan, 0, np.sqrt(0.2 / 8), np.sqrt(0.4 / 8)]
    )
    assert isinstance(flip.amplitude(1.1), float)
    for bad in (0.0, -1.0, np.inf, np.nan, "1", [1.0, -1.0]):
        with pytest.raises(ValueError, match="step"):
            flip.amplitude(bad)
    for bad in (0.0, -1e-3, 2.0, 1e-12, "big", None):
        with pytest.raises(ValueError, match="excess"):
            flip.check(bad)


def test_a_cycle_that_does_not_exist_is_not_reported():
    # b from the fourth derivative, but at this distance a term of sixth order has taken over.
    flip = flip_coefficient(polynomial(0, 0, 1 / 2, 0, -0.01 / 4, 0, 1 / 2), np.zeros(1))
    assert flip.kind == "supercritical"
    record = flip.check(0.5)
    assert not record.converged.any()
    assert np.isnan(record.amplitude).all() and np.isnan(float(record.measured_coefficient))
    assert "cycle" not in record.outcome.values


def test_record_is_labelled(two_factors):
    record = flip_coefficient(two_factors, np.ones(2)).check()
    assert record.attrs["status"] == "computed"
    assert record.measured_coefficient.attrs["status"] == "estimated"
    assert all("long_name" in record[name].attrs for name in record.variables if name != "run")
    error = float(record.measured_coefficient_error)
    assert abs(float(record.measured_coefficient) - 4) < error < 0.01


@pytest.mark.parametrize(
    ("loss", "dim", "theta", "message"),
    [
        (lambda x: x[0] ** 2 - x[1] ** 2, 2, [0.0, 0.0], "saddle"),
        (lambda x: x[0] ** 4, 1, [0.0], "Hessian vanishes"),
        (lambda x: 0 * x[0], 1, [0.0], "Hessian vanishes"),
        (lambda x: x[0] ** 2, 1, [1.0], "not a minimum"),
        (lambda x: x[0] ** 2 + jnp.abs(x[0]), 1, [0.0], "kink"),
        (lambda x: x[0] ** 2 + jnp.abs(x[0]) ** 2.5, 1, [0.0], "four times differentiable"),
        (lambda x: x[0] ** 2, 1, [np.nan], "finite"),
        (lambda x: x[0] ** 2, 1, [0.0, 0.0], "shape"),
    ],
)
def test_what_is_no_minimum_is_refused(loss, dim, theta, message):
    with pytest.raises(ValueError, match=message):
        flip_coefficient(Function(loss, dim), np.array(theta))


def test_a_jump_of_the_third_derivative_is_never_called_supercritical():
    # |x|^3 makes the true map jump away; the coefficient's square of the third derivative has the wrong sign.
    flip = flip_coefficient(Function(lambda x: x[0] ** 2 + jnp.abs(x[0]) ** 3, 1), np.zeros(1))
    assert flip.kind == "degenerate" and flip.coefficient.lower < 0 < flip.coefficient.upper


def test_other_objectives_and_types():
    objective = Objective(lambda p: (p["a"] * p["b"] - 1.0) ** 2 / 2, {"a": np.float64(1), "b": np.float64(1)})
    flip = flip_coefficient(objective, np.ones(2, dtype=np.float32))
    assert flip.coefficient.value == pytest.approx(4, rel=1e-13)
    with pytest.raises(TypeError, match="gdmap objective"):
        flip_coefficient(lambda x: x @ x, np.zeros(2))


class Separable(eqx.Module):
    """Curvatures ``d``, of which some vanish; ``x_0`` alone is soft, and bends along ``c``: ``b`` by hand."""

    d: np.ndarray
    c: np.ndarray
    quartic: float

    def __call__(self, x):
        return x @ (self.d * x) / 2 + (self.c @ x) * x[0] ** 2 / 2 + self.quartic * x[0] ** 4 / 24

    def coefficient(self):
        t = self.c.copy()
        t[0] *= 3
        normal = self.d > 0
        return 2 / self.d[0] * (np.sum(t[normal] ** 2 / self.d[normal]) / 2 - self.quartic / 6)


@pytest.mark.parametrize("slope", [0.0, 0.02])
def test_matrix_free(slope):
    rng = np.random.default_rng(1)
    dim = 1200
    d = np.concatenate([[3.0], rng.uniform(0.2, 2.5, 799), np.zeros(400)])
    c = np.where(d > 0, rng.normal(size=dim) / 10, slope * rng.normal(size=dim))
    loss = Separable(d, c, 0.7)
    flip = flip_coefficient(Function(loss, dim), np.zeros(dim), verify=False)
    assert flip.coefficient.status == flip.sharpness.status == "estimated"
    assert flip.sharpness.value == pytest.approx(3, rel=1e-9)
    assert flip.coefficient.value == pytest.approx(loss.coefficient(), rel=1e-7)
    assert flip.coefficient.lower <= loss.coefficient() <= flip.coefficient.upper
    assert flip.drift.value == pytest.approx(np.linalg.norm(c[800:]), rel=1e-8, abs=1e-9)
    assert flip.drifts == (slope > 0)
    assert flip.sharpness_curvature is None and flip.neutral_dimension is None
    if not slope:
        assert "was not computed" in flip.explain()


def test_matrix_free_agrees_with_dense_on_a_manifold():
    theta = balanced_minimum(NETWORK)
    dense, free = flip_coefficient(NETWORK, theta), flip_coefficient(NETWORK, theta, verify=False)
    assert free.coefficient.value == pytest.approx(dense.coefficient.value, rel=1e-11)
    assert np.abs(dense.eigenvector @ free.eigenvector) == pytest.approx(1, abs=1e-12)
    assert not free.drifts
    assert free.check(1e-3).converged.all()


def test_matrix_free_refuses_what_cannot_be_a_minimum():
    dim = 600
    scale = np.linspace(1, 2, dim)
    quadratic = Function(lambda x: x @ (scale * x) / 2, dim)
    with pytest.raises(ValueError, match="gradient norm"):
        flip_coefficient(quadratic, np.ones(dim), verify=False)
    with pytest.raises(ValueError, match="not positive"):
        flip_coefficient(Function(lambda x: -x @ (scale * x) / 2, dim), np.zeros(dim), verify=False)
    pair = np.append(np.linspace(0.1, 1, dim - 2), [2.0, 2.0])
    flip = flip_coefficient(Function(lambda x: x @ (pair * x) / 2, dim), np.zeros(dim), verify=False)
    assert (flip.kind, flip.multiplicity) == ("multiple", 2)


def test_the_bracket_contains_the_value_of_exact_arithmetic():
    mpmath = pytest.importorskip("mpmath")

    def loss(x, y, exp, cos):
        return exp(0.3 * x) + (x - y * y) ** 2 + 0.7 * cos(1.3 * y + 0.2 * x) + 0.5 * x * x

    objective = Function(lambda w: loss(w[0], w[1], jnp.exp, jnp.cos), 2)
    rough = np.array([-0.3, 0.1])
    for _ in range(200):
        rough = rough - 0.1 * objective.gradient(rough)
    flip = flip_coefficient(objective, rough)
    with mpmath.workdps(40):

        def exact(x, y):
            return loss(x, y, mpmath.exp, mpmath.cos)

        def partial(*order):
            return lambda x, y: mpmath.diff(exact, (x, y), order)

        x, y = mpmath.findroot([partial(1, 0), partial(0, 1)], tuple(flip.theta), tol=1e-30)
        H = mpmath.matrix([[partial(2 - i - j, i + j)(x, y) for j in (0, 1)] for i in (0, 1)])
        values, vectors = mpmath.eigsy(H)
        top = 1 if values[1] > values[0] else 0
        q, lam = vectors[:, top], values[top]
        third = [partial(3 - k, k)(x, y) for k in range(4)]
        t = mpmath.matrix(
            [third[i] * q[0] ** 2 + 2 * third[i + 1] * q[0] * q[1] + third[i + 2] * q[1] ** 2 for i in (0, 1)]
        )
        fourth = sum(
            mpmath.binomial(4, k) * partial(4 - k, k)(x, y) * q[0] ** (4 - k) * q[1] ** k for k in range(5)
        )
        b = 2 / lam * ((t.T * mpmath.lu_solve(H, t))[0] / 2 - fourth / 6)
        assert flip.coefficient.lower <= b <= flip.coefficient.upper
        assert flip.coefficient.relative_width < 1e-11
        assert flip.sharpness.lower <= lam <= flip.sharpness.upper

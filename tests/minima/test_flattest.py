"""The flattest minimum by search, against closed forms; no example is recognised by the code."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gdmap
from gdmap import Function, LinearNetwork, critical_step_size, flattest_minimum
from gdmap.engines.precision import float64
from gdmap.minima.along import log_spectral_norm
from tests.conftest import random_network
from tests.minima.losses import Product, TanhNeuron, TwoHidden, matrix_product


@pytest.mark.parametrize("y", [0.1, 0.5, *(pytest.param(y, marks=pytest.mark.slow) for y in (1.0, 3.0))])
def test_the_tanh_neuron(y):
    # theory 6.3: eta_crit = (sqrt(1 + y^2) + y) / y
    critical = critical_step_size(Function(TanhNeuron(y), 2))
    assert critical.step_size.value == pytest.approx((np.sqrt(1 + y * y) + y) / y, rel=1e-9)
    assert critical.min_sharpness.status == critical.step_size.status == "estimated"
    assert critical.min_sharpness.lower == 0
    assert critical.step_size.upper == np.inf
    assert critical.step_size.lower <= critical.step_size.value
    assert critical.search.agreeing == critical.search.search.sizes["start"]
    assert "proves nothing" in critical.explain()


@settings(max_examples=4, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(0, 6.28), st.floats(0.2, 2))
def test_scaling_and_rotation(factor, angle, y):
    critical = critical_step_size(Function(TanhNeuron(y, factor, angle), 2))
    assert critical.min_sharpness.value == pytest.approx(TanhNeuron(y, factor).smallest_sharpness(), rel=1e-9)


@pytest.mark.parametrize(
    ("loss", "dim", "sharpness"),
    [
        pytest.param(Product(), 2, 2.0, marks=pytest.mark.slow),
        pytest.param(Product(), 3, 3.0, marks=pytest.mark.slow),
        pytest.param(Product(2.0), 3, 3 * 2 ** (4 / 3), marks=pytest.mark.slow),
        (lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1, 2.0),
        pytest.param(matrix_product(np.diag([2.0, 1.0])), 8, 4.0, marks=pytest.mark.slow),
        # The top eigenvalue is multiple there.
        pytest.param(matrix_product(np.eye(2)), 8, 2.0, marks=pytest.mark.slow),
    ],
)
def test_closed_forms(loss, dim, sharpness):
    # theory 6.1
    found = flattest_minimum(Function(loss, dim), starts=8)
    assert found.sharpness.value == pytest.approx(sharpness, rel=1e-9)
    assert found.agreeing == 8
    assert not found.falling


@pytest.mark.parametrize(
    ("seed", "widths"), [(0, (3, 3, 2)), pytest.param(1, (2, 3, 3, 2), marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_the_search_meets_the_formula_of_linear_networks(seed, widths):
    network = random_network(seed, widths, spread=2)
    formula = critical_step_size(network).min_sharpness
    assert formula.status == "computed"
    found = flattest_minimum(network, starts=8)
    assert found.sharpness.value == pytest.approx(formula.value, rel=1e-8)
    assert found.sharpness.upper >= formula.lower


@pytest.mark.slow
def test_a_permutation_of_hidden_units_changes_nothing():
    objectives = [Function(TwoHidden(order), 4) for order in ((0, 1), (1, 0))]
    first, second = (critical_step_size(objective, starts=8) for objective in objectives)
    assert second.min_sharpness.value == pytest.approx(first.min_sharpness.value, rel=1e-6)


@pytest.mark.slow
def test_minima_that_become_flat_without_end():
    critical = critical_step_size(Function(lambda w: w[0] ** 2 / (1 + w[1] ** 2) / 2, 2), starts=4)
    assert critical.search.falling
    assert critical.step_size.status == "estimated"
    assert np.isfinite(critical.step_size.value)
    assert critical.step_size.upper == np.inf
    assert critical.step_size.value > 1e6
    assert "still falling" in critical.reason
    assert "does not prove" in critical.reason
    assert critical.explain().startswith("No critical step size was found")


def test_degenerate_minima_are_named():
    critical = critical_step_size(Function(lambda w: w[0] ** 4 + w[1] ** 2, 2), starts=4)
    assert critical.step_size.value == pytest.approx(1.0, rel=1e-9)
    assert "degenerate" in critical.reason


@pytest.mark.slow
def test_a_vanishing_hessian_leaves_a_huge_step_size():
    vanishing = critical_step_size(Function(lambda w: w[0] ** 4, 1), starts=4)
    assert vanishing.step_size.value > 1e9
    assert vanishing.step_size.status == "estimated"
    assert np.isfinite(vanishing.step_size.value)


def test_minima_of_higher_loss_are_named_and_left_out():
    # The well at +1 is flatter but higher.
    objective = Function(lambda w: (w[0] ** 2 - 1) ** 2 + 0.1 * w[0] + jnp.where(w[0] > 0, 0.0, 1.0) * 0, 1)
    critical = critical_step_size(objective, starts=8)
    assert critical.minimum[0] < 0
    assert "higher loss" in critical.reason


@pytest.mark.slow
def test_minima_on_kinks_are_left_out():
    # Minima w_0 w_1 = 1; curvature grows by a jump where w_0 < 0.8, so the flattest ends lie on that kink.
    def loss(w):
        excess = w[0] * w[1] - 1
        return (1 + 3 * jnp.maximum(w[0] - 0.8, 0.0)) * excess**2 / 2

    objective = Function(loss, 2)
    critical = critical_step_size(objective, starts=8)
    minimum = critical.minimum
    assert minimum[0] * minimum[1] == pytest.approx(1, abs=1e-12)
    assert np.isfinite(critical.step_size.value)
    weight = 1 + 3 * max(minimum[0] - 0.8, 0.0)
    assert critical.min_sharpness.value == pytest.approx(weight * (minimum @ minimum), rel=1e-9)


def test_minima_that_all_lie_on_kinks():
    only_kinks = Function(lambda w: w[0] ** 2 + 3 * jnp.maximum(w[0], 0.0) ** 2, 1)
    with pytest.raises(ValueError, match="kink"):
        critical_step_size(only_kinks, starts=4)


@pytest.mark.slow
def test_more_parameters_than_dense_hessians_allow():
    scales = np.linspace(0.5, 2.0, 1001)
    critical = critical_step_size(Function(lambda w: jnp.sum(scales * (w - 1) ** 2) / 2, 1001), starts=1)
    assert critical.step_size.value == pytest.approx(1.0, rel=1e-9)
    assert critical.step_size.status == "estimated"
    assert "candidates, not verified minima" in critical.reason


@pytest.mark.parametrize(
    ("loss", "dim"),
    [
        (lambda x: x[1] ** 2 / 2 + jnp.logaddexp(0.0, -x[0]), 2),
        pytest.param(lambda x: x[1] ** 2 / 2 + 1 / (1 + x[0] ** 2), 2, marks=pytest.mark.slow),
        pytest.param(lambda x: jnp.tanh(x[0]), 2, marks=pytest.mark.slow),
        # A minimum that descents stall on the way to: (10, .1).
        pytest.param(lambda x: (x[0] * x[1] - 1) ** 2 / 2 + 1e-10 * (x[0] - 10) ** 2, 2, marks=pytest.mark.slow),
    ],
)
def test_a_stalled_descent_is_no_minimum(loss, dim):
    with pytest.raises(ValueError, match="no minimum found"):
        critical_step_size(Function(loss, dim), starts=4)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_an_exponential_valley_falls_without_end(rate):
    critical = critical_step_size(Function(lambda x: x[1] ** 2 * jnp.exp(-rate * x[0]), 2), starts=4)
    assert critical.search.falling
    assert critical.explain().startswith("No critical step size was found")
    assert "could not be verified as minima" in critical.reason


@pytest.mark.slow
def test_only_rounding_makes_losses_equal():
    # Two wells, of depth 1 and 0.9; one start of huge loss must not make them equal.
    def loss(x):
        well = -jnp.exp(-10 * (x[0] + 1) ** 2) - 0.9 * jnp.exp(-((x[0] - 1.5) ** 2))
        return well + 1e-6 * (jnp.exp(x[0] ** 2) - 1)

    critical = critical_step_size(Function(loss, 1), scale=5.0)
    assert critical.minimum[0] == pytest.approx(-1, abs=0.01)
    assert critical.step_size.value == pytest.approx(0.1002, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [np.zeros(2), np.array([30.0, 50.0])])
def test_the_origin_does_not_matter(shift):
    # A valley whose flattest minimum is its vertex: sharpness 200 (1 + 4 x^2).
    def loss(w):
        x, y = w[0] - shift[0], w[1] - shift[1]
        return 100 * (y - x**2) ** 2

    critical = critical_step_size(Function(loss, 2), starts=6)
    assert critical.min_sharpness.value == pytest.approx(200, rel=1e-9)
    assert critical.search.agreeing == 6


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        # As at the command line.
        pytest.param(
            lambda w: jnp.mean(jnp.logaddexp(0.0, -w[0] * jnp.array([1.0, 2.0]))),
            "parameters grow",
            marks=pytest.mark.slow,
        ),
        (lambda w: 0 * w[0], "flat"),
        # As in test_minima_that_all_lie_on_kinks.
        pytest.param(lambda w: jnp.abs(w[0]), "kink", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_answered_is_refused(loss, words):
    with pytest.raises(ValueError, match=words):
        critical_step_size(Function(loss, 1), starts=4)
    with pytest.raises(TypeError, match="must be a gdmap objective"):
        critical_step_size(loss)


@pytest.mark.slow
def test_huber_residuals_within_its_quadratic_part_have_the_threshold_of_the_square_loss():
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(20, 1))
    targets = inputs @ [[0.8]] + 0.2 * rng.uniform(-1, 1, (20, 1))
    square = critical_step_size(LinearNetwork((1, 1, 1), inputs, targets)).min_sharpness.value
    found = critical_step_size(LinearNetwork((1, 1, 1), inputs, targets, loss="huber"), starts=4)
    assert found.min_sharpness.value == pytest.approx(square, rel=1e-9)
    assert found.min_sharpness.status == "estimated"


@pytest.mark.slow
def test_other_losses_of_a_linear_network():
    # Interpolated data: every loss with curvature 1 at zero has the threshold of the square loss.
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(20, 2))
    exact = inputs @ rng.normal(size=(2, 2))
    square = critical_step_size(LinearNetwork((2, 2, 2), inputs, exact)).min_sharpness.value
    noisy = exact + 2 * rng.normal(size=exact.shape)
    found = critical_step_size(LinearNetwork((2, 2, 2), inputs, exact, loss="log_cosh"), starts=8)
    assert found.min_sharpness.value == pytest.approx(square, rel=1e-6)
    assert found.min_sharpness.status == "estimated"
    # With residuals their curvature is smaller, so the critical step size is larger than that of the square loss.
    plain = critical_step_size(LinearNetwork((2, 2, 2), inputs, noisy)).step_size.value
    cosh = critical_step_size(LinearNetwork((2, 2, 2), inputs, noisy, loss="log_cosh"), starts=8)
    assert cosh.step_size.value > 1.2 * plain


@pytest.mark.slow
def test_gradient_descent_agrees_with_a_searched_threshold():
    objective = Function(TanhNeuron(0.5), 2)
    eta = critical_step_size(objective).step_size.value
    result = gdmap.sweep(objective, [0.9 * eta, 1.02 * eta], 300, max_steps=20_000)
    shares = result.fraction.sel(fate_name="minimum").values
    assert shares[0] > 0.5  # theory 6.3: .645 of 2000 starts
    assert shares[1] == 0


def test_the_spectral_norm_is_smooth_where_eigenvalues_coincide():
    import jax

    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    matrix = rotation @ np.diag([3.0, 3.0, 1.0, 0.0, 0.0]) @ rotation.T
    direction = rng.normal(size=(5, 5))
    direction = direction + direction.T
    with float64():
        for exponent in (8.0, 512.0):
            value, slope = jax.jvp(lambda m, p=exponent: log_spectral_norm(m, p), (matrix,), (direction,))
            size = np.abs(np.linalg.eigvalsh(matrix))
            assert float(value) == pytest.approx(np.log(np.sum(size**exponent)) / exponent, rel=1e-12)
            h = 1e-6
            ends = [
                np.log(np.sum(np.abs(np.linalg.eigvalsh(matrix + s * h * direction)) ** exponent)) / exponent
                for s in (1, -1)
            ]
            assert float(slope) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5)

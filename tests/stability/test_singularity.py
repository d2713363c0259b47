import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gdmap import Function, GradientDescent, LinearNetwork, Objective, Optimiser
from gdmap.stability import singularity_distance
from gdmap.stability.singularity import CHUNK_BYTES, chunks

TWO_FACTORS = Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)
QUARTIC = Function(lambda t: t[0] ** 4 + t[1] ** 2 / 2, 2)


def points(count, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dim))


@pytest.mark.parametrize("step_size", [0.1, 1.0, 7.0])
def test_two_factors_follow_their_closed_form(step_size):
    theta = points(500, 2)
    a, b = theta.T
    # golden.md: det(I - eta H) = 1 - eta (a^2 + b^2) + eta^2 [(ab)^2 - (2ab - 1)^2]
    determinant = 1 - step_size * (a**2 + b**2) + step_size**2 * ((a * b) ** 2 - (2 * a * b - 1) ** 2)
    found = singularity_distance(TWO_FACTORS, step_size, theta)
    np.testing.assert_array_equal(found.sign, np.sign(determinant))
    error = np.abs(found.log_abs_determinant - np.log(np.abs(determinant)))
    # The reference is rounded too, relatively to its terms.
    terms = 1 + step_size * (a**2 + b**2) + step_size**2 * ((a * b) ** 2 + (2 * a * b - 1) ** 2)
    assert np.all(error <= found.log_abs_determinant_error + 8e-16 * terms / np.abs(determinant))
    trace = step_size * (a**2 + b**2)
    root = np.sqrt((trace / 2) ** 2 - step_size**2 * ((a * b) ** 2 - (2 * a * b - 1) ** 2))
    nearest = np.minimum(np.abs(1 - trace / 2 - root), np.abs(1 - trace / 2 + root))
    np.testing.assert_allclose(found.distance, nearest, rtol=0, atol=1e-11 * (1 + trace.max()))
    assert found.attrs["status"] == "computed" and "not a proof" in found.attrs["note"]


def test_the_error_covers_what_exact_arithmetic_gives():
    from fractions import Fraction

    theta = points(200, 2, seed=3)
    found = singularity_distance(TWO_FACTORS, 0.75, theta)
    for row, logarithm, error in zip(
        theta, found.log_abs_determinant.values, found.log_abs_determinant_error.values, strict=True
    ):
        a, b, eta = Fraction(row[0]), Fraction(row[1]), Fraction(3, 4)
        exact = 1 - eta * (a**2 + b**2) + eta**2 * ((a * b) ** 2 - (2 * a * b - 1) ** 2)
        assert abs(logarithm - np.log(abs(float(exact)))) <= error + 1e-15
    assert np.all(found.log_abs_determinant_error < 1e-9)


def test_a_singular_map_is_zero_to_rounding_everywhere():
    theta = points(300, 2)
    singular = singularity_distance(QUARTIC, 1.0, theta)
    np.testing.assert_array_equal(singular.sign, 0)
    assert np.all(singular.distance <= singular.distance_error) and np.all(
        np.isinf(singular.log_abs_determinant_error)
    )
    beside = singularity_distance(QUARTIC, 1.0 + 1e-6, theta)
    np.testing.assert_array_equal(np.abs(beside.sign), 1)


def test_other_maps_by_their_singular_values():
    network = LinearNetwork.whitened((2, 2, 2), np.diag([2.0, 1.0]))
    theta = points(20, network.dim)
    descent = singularity_distance(GradientDescent(network, 0.3), None, theta)
    np.testing.assert_array_equal(descent.distance, singularity_distance(network, 0.3, theta).distance)
    heavy_ball = Optimiser(network, optax.sgd, learning_rate=0.3, momentum=0.9)
    found = singularity_distance(heavy_ball, None, theta)
    # Heavy ball: det DG = momentum^n at every state.
    np.testing.assert_allclose(found.log_abs_determinant, network.dim * np.log(0.9), atol=1e-12)
    jacobian = heavy_ball.jacobian(heavy_ball.initial_state(theta[0]))
    assert found.distance[0] == pytest.approx(np.linalg.svd(jacobian, compute_uv=False)[-1], rel=1e-12)


def test_points_without_a_finite_jacobian_are_told():
    root = Function(lambda t: jnp.sqrt(t[0]) + t[1] ** 2, 2)
    found = singularity_distance(root, 0.1, [[4.0, 1.0], [-1.0, 1.0]])
    assert np.isfinite(found.distance[0]) and found.sign[0] == 1
    assert np.isnan(found.distance[1]) and np.isinf(found.distance_error[1]) and found.sign[1] == 0


def test_a_point_gives_the_same_in_any_company():
    theta = points(70, 2)
    together = singularity_distance(TWO_FACTORS, 0.5, theta)
    alone = singularity_distance(TWO_FACTORS, 0.5, theta[40])
    np.testing.assert_array_equal(alone.distance[0], together.distance[40])
    np.testing.assert_array_equal(alone.log_abs_determinant[0], together.log_abs_determinant[40])
    sizes = [len(chunk) for chunk in chunks(np.zeros((100, 2000)), 2000)]
    assert sum(sizes) == 100 and max(sizes) * 8 * 2000**2 <= CHUNK_BYTES


def test_float32_points_are_the_numbers_they_are():
    theta = points(5, 2).astype(np.float32)
    found = singularity_distance(TWO_FACTORS, 0.5, theta)
    np.testing.assert_array_equal(
        found.distance, singularity_distance(TWO_FACTORS, 0.5, theta.astype(float)).distance
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((TWO_FACTORS, None, [[1.0, 2.0]]), ValueError, "step_size is missing"),
        ((TWO_FACTORS, -1.0, [[1.0, 2.0]]), ValueError, "must be positive"),
        ((TWO_FACTORS, 0.1, None), ValueError, "expected \\(points, 2\\)"),
        ((TWO_FACTORS, 0.1, [[1.0, 2.0, 3.0]]), ValueError, "expected \\(points, 2\\)"),
        ((TWO_FACTORS, 0.1, [[1.0, np.nan]]), ValueError, "not finite, first in row 0"),
        ((TWO_FACTORS, 0.1, [[1, 2]]), TypeError, "floating-point"),
        ((lambda w: w @ w, 0.1, [[1.0, 2.0]]), TypeError, "gdmap.Function"),
        ((GradientDescent(TWO_FACTORS, 0.1), 0.1, [[1.0, 2.0]]), ValueError, "its own step size"),
        ((Function(lambda w: jnp.sum(w**2), 3000), 0.1, np.zeros((1, 3000))), ValueError, "dense Jacobians"),
    ],
)
def test_mistakes(arguments, error, message):
    with pytest.raises(error, match=message):
        singularity_distance(*arguments)


def test_schedules_are_refused():
    schedule = Optimiser(TWO_FACTORS, optax.sgd, learning_rate=optax.linear_schedule(0.1, 0.0, 10))
    assert schedule.depends_on_time
    with pytest.raises(ValueError, match="depends on time"):
        singularity_distance(schedule, None, [[1.0, 2.0]])


def test_a_network_of_some_size():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 3)), rng.normal(size=10)
    network = Objective(
        lambda p, x, y: (p["v"] @ jnp.tanh(p["W"] @ x) - y) ** 2 / 2,
        {"W": np.zeros((10, 3)), "v": np.zeros(10)},
        data=(x, y),
    )
    theta = points(50, network.dim)
    found = singularity_distance(network, 0.1, theta)
    spectra = np.linalg.eigvalsh([network.hessian(row) for row in theta])
    np.testing.assert_allclose(found.distance, np.abs(1 - 0.1 * spectra).min(axis=1), atol=1e-13)
    np.testing.assert_allclose(
        found.log_abs_determinant, np.log(np.abs(1 - 0.1 * spectra)).sum(axis=1), atol=1e-10
    )

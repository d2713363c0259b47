"""Lyapunov exponents known exactly, and whether the standard errors are right."""

import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest

from gdmap import Function, GradientDescent, LinearNetwork, Optimiser, StochasticGradientDescent
from gdmap.orbits.lyapunov import lyapunov_spectrum

CUBIC = Function(lambda x: x[0] ** 3 / 3 - x[0] ** 2 / 2, 1)
WELL = Function(lambda x: (x[0] ** 2 - 1) ** 2 / 4, 1)
TWO_FACTORS = Function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)
COSINE = Function(lambda x: jnp.cos(x[0]), 1)
BOWL = Function(lambda w: w[0] ** 2 + w[1] ** 2 / 4, 2)
REPETITIONS = 200


def uniform(low, high, dim=1, seed=0):
    return np.random.default_rng(seed).uniform(low, high, (REPETITIONS, dim))


def tent_loss(a, eta):
    """Gradient descent with step ``eta`` is the skew tent map ``x / a`` or ``(1 - x) / (1 - a)``."""
    left = (1 - 1 / a) / (2 * eta)
    right = (1 + 1 / (1 - a)) / (2 * eta)

    def loss(x):
        beyond = x[0] - a
        slope = (a - 1) / eta
        return jnp.where(beyond < 0, left * x[0] ** 2, left * a**2 + slope * beyond + right * beyond**2)

    return Function(loss, 1)


def check(found, exact, index=0, farthest=4.5):
    """z-scores over the repetitions: unit variance within sampling error, no bias, none far out."""
    z = (found.exponent.values[:, index] - exact) / found.standard_error.values[:, index]
    assert 0.75 < z.var(ddof=1) < 1.35
    assert abs(z.mean()) < 4 / np.sqrt(len(z))
    assert np.abs(z).max() < farthest
    inside = (found.lower.values[:, index] <= exact) & (exact <= found.upper.values[:, index])
    assert inside.mean() > 0.9


# Standard errors -------------------------------------------------------------------------------------------------


def test_independent_expansion():
    # log|f'| along the orbit of a skew tent map is a sequence of independent draws.
    a, eta = 0.3, 0.5
    found = lyapunov_spectrum(GradientDescent(tent_loss(a, eta), eta), uniform(0, 1), steps=8000)
    check(found, -a * np.log(a) - (1 - a) * np.log(1 - a))
    # ... and the errors have the size that theory gives.
    sigma = np.sqrt(a * (1 - a)) * abs(np.log(1 / a) - np.log(1 / (1 - a))) / np.sqrt(8000)
    assert np.median(found.standard_error) == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize(
    ("map_", "starts", "exact"),
    [
        (GradientDescent(CUBIC, 3.0), uniform(0.1, 1.2), np.log(2)),
        pytest.param(GradientDescent(WELL, 2.0), uniform(-1.2, 1.2), np.log(3), marks=pytest.mark.slow),
    ],
)
def test_growth_that_telescopes(map_, starts, exact):
    # log|f'| is a constant plus u(x) - u(f x): the error is of order 1 / steps.
    found = lyapunov_spectrum(map_, starts, steps=8000)
    check(found, exact, farthest=8)  # u is a logarithm: exponential tails
    batch_means = found.block_mean.std("block", ddof=1) / np.sqrt(found.sizes["block"])
    assert float((batch_means / found.standard_error).median()) > 8


def test_two_factors_on_the_line():
    starts = np.repeat(uniform(-1.2, 1.2, seed=2), 2, axis=1)
    found = lyapunov_spectrum(GradientDescent(TWO_FACTORS, 2.0), starts, steps=8000)
    check(found, np.log(3), farthest=8)
    check(found, 0.0, index=1, farthest=8)


@pytest.mark.parametrize("K", [10.0, pytest.param(20.0, marks=pytest.mark.slow)])
def test_standard_map(K):
    # Golden values 5: ln(K/2) + 1/(K^2 - 4), an expansion with an error below 1e-3: z-scores of single runs.
    map_ = Optimiser(COSINE, optax.sgd, learning_rate=K, momentum=1.0)
    found = lyapunov_spectrum(map_, uniform(0, 2 * np.pi, 2, seed=1), steps=4000)
    check(found, np.log(K / 2) + 1 / (K**2 - 4))
    np.testing.assert_allclose(found["sum"], 0.0, atol=1e-12)
    assert np.abs(found.sum_defect).max() < 1e-12


def test_henon():
    map_ = Optimiser(CUBIC, optax.sgd, learning_rate=np.sqrt(6.09), momentum=-0.3)
    found = lyapunov_spectrum(map_, uniform(0.9, 1.1, seed=3), steps=8000)
    check(found, 0.4193)  # an estimate itself, +- 8e-5
    mean, error = found.exponent.mean("start"), found.exponent.std("start", ddof=1) / np.sqrt(REPETITIONS)
    assert abs(float(mean[0]) - 0.4193) < 4 * np.hypot(8e-5, float(error[0]))
    np.testing.assert_allclose(found["sum"], np.log(0.3), atol=1e-12)
    np.testing.assert_allclose(found.log_determinant, np.log(0.3), atol=1e-12)


# Exponents -------------------------------------------------------------------------------------------------------


def test_against_a_computation_in_fifty_digits():
    # The growth of one vector over 30 steps, before rounding has carried the orbit off the exact one.
    state = np.array([0.7, 0.1])
    map_ = Optimiser(CUBIC, optax.sgd, learning_rate=np.sqrt(6.09), momentum=-0.3)
    found = lyapunov_spectrum(map_, state, 1, steps=60, warm_up=0, blocks=20)
    assert int(found.step[9]) == 30
    with mpmath.workdps(50):
        eta, beta = mpmath.mpf(float(np.sqrt(6.09))), mpmath.mpf(-0.3)
        x, v = (mpmath.mpf(float(value)) for value in state)
        vector = mpmath.matrix([mpmath.mpf(float(value)) for value in first_vector(2)])
        for _ in range(30):
            vector = mpmath.matrix([[1 - eta * (2 * x - 1), -eta * beta], [2 * x - 1, beta]]) * vector
            v = beta * v + x**2 - x
            x = x - eta * v
        exact = float(mpmath.log(mpmath.norm(vector)) / 30)
    assert float(found.history[9, 0]) == pytest.approx(exact, abs=1e-8)


def first_vector(dim):
    vector = np.random.Generator(np.random.Philox(key=[0, 0])).standard_normal(dim)
    return vector / np.linalg.norm(vector)


def test_against_numpy():
    network = LinearNetwork((2, 2, 2), np.eye(2), np.diag([1.0, 0.5]))
    map_ = GradientDescent(network, 0.9)
    start = 0.7 * np.random.default_rng(1).standard_normal(8)
    found = lyapunov_spectrum(map_, start, 4, steps=200, warm_up=50, blocks=20)
    frame = np.linalg.qr(
        np.stack([np.random.Generator(np.random.Philox(key=[0, j])).standard_normal(8) for j in range(4)]).T
    )[0]
    state, growth = start, np.zeros(4)
    for step in range(250):
        frame, upper = np.linalg.qr(map_.jacobian(state) @ frame)
        growth += np.log(np.abs(np.diag(upper))) if step >= 50 else 0.0
        state = map_.step(state)
    np.testing.assert_allclose(found.exponent, growth / 200, atol=1e-9)


def test_stable_cycles_have_their_multipliers():
    # Golden values 2 and 4: .18 along and .80 across at eta = 1.1, per round of two steps.
    found = lyapunov_spectrum(GradientDescent(TWO_FACTORS, 1.1), np.array([0.9, 0.8]), steps=2000)
    np.testing.assert_allclose(found.exponent, np.log([0.8, 0.18]) / 2, atol=1e-10)
    assert float(found.standard_error.max()) < 1e-10
    assert found.settled.all() and found.attrs["remarks"] == ""


def test_neutral_directions_have_exponents_near_zero():
    found = lyapunov_spectrum(GradientDescent(TWO_FACTORS, 0.3), np.array([0.4, 0.9]), steps=2000)
    assert abs(float(found.exponent[0])) < 1e-3
    assert float(found.exponent[1]) < -0.5


def test_annihilated_vectors():
    found = lyapunov_spectrum(GradientDescent(BOWL, 0.5), np.array([1.0, 1.0]), steps=64)
    np.testing.assert_allclose(found.exponent, [np.log(0.75), -np.inf])
    assert found.standard_error.values[1] == 0
    assert "singular" in found.attrs["remarks"]


def test_a_transient_is_not_settled():
    # Half of the time at a maximum, half at a minimum.
    found = lyapunov_spectrum(GradientDescent(WELL, 0.01), [1e-8], steps=4000, warm_up=0)
    assert not found.settled.all() and "Not settled" in found.attrs["remarks"]


def test_results_do_not_depend_on_the_company_nor_leading_exponents_on_k():
    starts = uniform(-1.2, 1.2, 2, seed=4)[:70] * 0.1 + 0.9
    map_ = GradientDescent(TWO_FACTORS, 1.4)
    together = lyapunov_spectrum(map_, starts, steps=500)
    alone = lyapunov_spectrum(map_, starts[66], steps=500)
    for name in ("exponent", "standard_error", "history", "sum_defect"):
        np.testing.assert_array_equal(together[name].values[66], alone[name].values)
    leading = lyapunov_spectrum(map_, starts[66], 1, steps=500)
    np.testing.assert_allclose(leading.exponent[0], alone.exponent[0], atol=1e-12)
    every_step = lyapunov_spectrum(map_, starts[66], steps=500, orthonormalise_every=1)
    np.testing.assert_allclose(every_step.exponent, alone.exponent, atol=1e-10)


def test_result_and_progress():
    seen = []
    found = lyapunov_spectrum(
        GradientDescent(CUBIC, 2.9), [0.3], steps=1000, blocks=100, progress=lambda *at: seen.append(at)
    )
    assert found.exponent.dims == ("k",) and found.history.dims == ("block", "k")
    assert seen[-1] == (1200, 1200)
    assert float(found.history[-1, 0]) == pytest.approx(float(found.exponent[0]), abs=1e-14)
    assert int(found.step[-1]) == 1000
    for variable in found.data_vars.values():
        assert variable.attrs["status"] == "estimated"
    assert found.attrs["units"] == "1/step" and found.attrs["warm_up"] == 200


def test_many_parameters_without_a_jacobian():
    dim = 100_000
    objective = Function(lambda w: jnp.mean((jnp.sum(w.reshape(10, -1) ** 2, 1) / 100 - 1) ** 2), dim)
    start = 0.1 * np.random.default_rng(0).standard_normal(dim)
    found = lyapunov_spectrum(GradientDescent(objective, 0.02), start, 3, steps=32, warm_up=4)
    assert found.exponent.shape == (3,) and np.all(np.abs(found.exponent) < 1e-3)


def test_intervals_on_minima_hold_the_exact_values():
    # Rounding is the same in every step there: no scatter shows it.
    found = lyapunov_spectrum(GradientDescent(TWO_FACTORS, 0.5), [1.3, 0.6], steps=500)
    assert found.lower[0] < 0 < found.upper[0] and found.upper[0] < 1e-14
    # The closer to a superstable minimum, the fewer digits 1 - eta has.
    bowl = Function(lambda w: w @ w / 2, 2)
    for step_size, width in ((0.7, 1e-13), (1 - 2**-30, 1e-5)):
        found = lyapunov_spectrum(GradientDescent(bowl, step_size), np.ones(2), steps=500)
        exact = np.log1p(-step_size)
        assert np.all((found.lower < exact) & (exact < found.upper) & (found.upper - found.lower < width))
        assert abs(found["sum"] - 2 * exact) <= 3 * found.sum_error


def test_divergence():
    map_ = GradientDescent(BOWL, 9.0)
    with pytest.raises(ValueError, match=r"state after step 251 "):
        # (1 - 18)^n overflows a double at n = 251.
        lyapunov_spectrum(map_, np.array([1.0, 0.0]), steps=1000)
    found = lyapunov_spectrum(GradientDescent(CUBIC, 2.9), np.array([[0.3], [-1.0]]), steps=300)
    assert found.diverged_at.values[0] == -1 and found.diverged_at.values[1] > 0
    assert np.isfinite(found.exponent[0]).all() and np.isnan(found.exponent[1]).all()
    assert "1 of 2 orbits diverge" in found.attrs["remarks"]


def test_a_derivative_that_is_not_finite():
    cusp = Function(lambda x: jnp.where(x[0] > 0, 1.0, 1.0) * jnp.abs(x[0]) ** 1.5, 1)
    with pytest.raises(ValueError, match="derivative of the map is not finite at step 1 "):
        lyapunov_spectrum(GradientDescent(cusp, 0.1), [0.0], steps=100)


def test_kinks_do_no_harm():
    # .3 -> -.2 -> .3 across the kink, where the derivative is 1 on both sides.
    found = lyapunov_spectrum(GradientDescent(Function(lambda x: jnp.abs(x[0]), 1), 0.5), [0.3], steps=1000)
    assert float(found.exponent[0]) == 0.0


def test_single_precision_is_computed_in_double():
    with pytest.warns(UserWarning, match="the state is float32"):
        single = lyapunov_spectrum(GradientDescent(WELL, 1.9), np.float32([0.25]), steps=300)
    double = lyapunov_spectrum(GradientDescent(WELL, 1.9), [0.25], steps=300)
    np.testing.assert_array_equal(single.exponent, double.exponent)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be between 1 and 2"),
        ({"k": 3}, "k must be between 1 and 2"),
        ({"k": 1.0}, "k must be an integer"),
        ({"steps": 3}, "steps must be between"),
        ({"blocks": 5}, "blocks must be between 16 and 20000"),
        ({"blocks": 30_000}, "blocks must be between"),
        ({"warm_up": -1}, "warm_up must be"),
        ({"confidence": 1.0}, "confidence must be a number between 0 and 1"),
        ({"orthonormalise_every": 0}, "orthonormalise_every must be"),
        ({"seed": -1}, "seed must be"),
        ({"state": np.ones(3)}, r"state has shape \(3,\)"),
        ({"state": np.ones((0, 2))}, "state has shape"),
        ({"state": np.ones((2, 2, 2))}, "state has shape"),
        ({"state": np.array([1.0, np.nan])}, "not finite"),
    ],
)
def test_bad_input_names_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        lyapunov_spectrum(GradientDescent(BOWL, 0.1), **{"state": np.ones(2), **arguments})


def test_maps_without_exponents():
    with pytest.raises(TypeError, match="deterministic maps"):
        lyapunov_spectrum(StochasticGradientDescent(BOWL_OF_SAMPLES, 0.1), np.ones(2))
    with pytest.raises(TypeError, match="map must be a map"):
        lyapunov_spectrum(np.sin, np.ones(2))
    with pytest.raises(ValueError, match="depends on time"):
        lyapunov_spectrum(Optimiser(BOWL, optax.adam, learning_rate=0.1), np.ones(2))
    with pytest.raises(ValueError, match="pass k"):
        lyapunov_spectrum(GradientDescent(Function(lambda w: w @ w, 65), 0.1), np.ones(65))


BOWL_OF_SAMPLES = LinearNetwork((2, 1), np.eye(2), np.ones((2, 1)))

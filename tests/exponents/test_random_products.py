import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import expi, expit, psi
from scipy.stats import chi2, poisson

from gdmap.exponents.random_products import (
    BatchProducts,
    MatrixLaw,
    SampledMatrices,
    advance,
    begin,
    log_norms,
    mean_and_error,
    random_product_exponents,
    stretch_of,
)
from gdmap.maps.batches import Batches, trajectory_key

# Laws whose numbers are arrays, so that they share compilations --------------------------------------------------


class Gaussian(eqx.Module):
    """``shift I + scale X`` with standard normal entries; complex: mean square modulus 1."""

    dim: int = eqx.field(static=True)
    dtype: Any = eqx.field(static=True, default=np.float64)
    shift: Any = eqx.field(default_factory=lambda: np.asarray(0.0))
    scale: Any = eqx.field(default_factory=lambda: np.asarray(1.0))

    def __call__(self, key):
        return self.shift * jnp.eye(self.dim) + self.scale * jax.random.normal(
            key, (self.dim, self.dim), self.dtype
        )


class LeastSquares(MatrixLaw):
    """``I - eta x x^T`` with a standard normal ``x``."""

    dim: int = eqx.field(static=True)
    step_size: Any

    def apply(self, keys, step, frames):
        def sample(key):
            return jax.random.normal(jax.random.fold_in(key, step), (self.dim,), jnp.float64)

        x = jax.vmap(sample)(keys)
        return frames - self.step_size * jnp.einsum("rkd,rd,re->rke", frames, x, x)


class Given(MatrixLaw):
    """The same matrix always."""

    dim: int = eqx.field(static=True)
    matrix: Any

    def apply(self, keys, step, frames):
        return jnp.einsum("ij,rkj->rki", self.matrix, frames)


def gram_law(gram, step_size) -> BatchProducts:
    """Two samples of equal probability, batch size 1, gradients with this Gram matrix."""
    factors = np.linalg.cholesky(np.asarray(gram, float))
    return BatchProducts(factors, np.ones(2), np.arange(2), Batches(2), step_size)


def rates(law, replicas, steps, k, *, seed=0, warm_up=0):
    state = begin(law, replicas, k, seed)
    state, _ = advance(law, state, warm_up)
    return advance(law, state, steps)[1][:, 0] / steps


def z_scores(values, exact):
    mean, error = mean_and_error(values)
    return (mean - exact) / error


# What is known exactly -------------------------------------------------------------------------------------------


def ginibre(d):
    return (math.log(2) + psi((d - np.arange(d)) / 2)) / 2


def shifted_ginibre_top(d, sigma):
    j = np.arange(400)
    return (math.log(2 * sigma**2) + np.sum(poisson.pmf(j, 1 / (2 * sigma**2)) * psi(d / 2 + j))) / 2


def least_squares_sum(d, k, eta):
    """``(1/2) E log |1 - (2 eta - eta^2 R) S|`` with ``S ~ chi2_k``, ``R = S + chi2_{d-k}``.

    The argument is ``(1 - eta S)^2 + eta^2 S (R - S)``. Trapezoidal rule after substitutions that send the
    singularities (``S = 0``, ``S = 1 / eta``, ``R = S``) to infinity, where it converges exponentially.
    """
    step = 0.1
    v, w, t = np.arange(-80, 80, step), np.arange(-80, 8, step), np.arange(-80, 8, step)
    s = np.concatenate([expit(v), 1 + np.exp(w)]) / eta
    off = np.concatenate([expit(-v), np.exp(w)])
    measure = np.concatenate([expit(v) * expit(-v), np.exp(w)]) / eta * step * chi2.pdf(s, k)
    if k == d:
        return float(measure @ np.log(off))
    rest = np.exp(t)
    inner = np.log(off[:, None] ** 2 + eta**2 * s[:, None] * rest) @ (chi2.pdf(rest, d - k) * rest * step)
    return float(measure @ inner) / 2


def least_squares(d, eta):
    return np.diff([0.0, *(least_squares_sum(d, k, eta) for k in range(1, d + 1))])


@pytest.mark.parametrize(("d", "threshold"), [(2, 0.937087), (3, 0.593113), (4, 0.439326), (10, 0.179889)])
def test_formula_of_least_squares_has_the_known_thresholds(d, threshold):
    """Almost surely stable up to 1.87, 1.48, 1.32, 1.08 times the mean-square threshold 2 / (d + 2)."""
    found = brentq(lambda eta: least_squares_sum(d, 1, eta), 2 / (d + 2), 1.2 * threshold, xtol=1e-9)
    assert found == pytest.approx(threshold, abs=6e-7)


def test_gaussian_matrices_of_dimension_4():
    """Real Ginibre, and I + sigma X (Forrester & Zhang): the same program."""
    pure = random_product_exponents(Gaussian(4), 4, steps=800, seed=1)
    z = (pure["exponent"] - ginibre(4)) / pure["standard_error"]
    assert np.all(np.abs(z) <= 4)
    assert bool(pure["settled"]) and pure.attrs["remarks"] == ""
    assert abs(float(pure["sum_z"])) <= 4
    shifted = random_product_exponents(
        Gaussian(4, shift=np.asarray(1.0), scale=np.asarray(0.7)), 4, steps=800, seed=2
    )
    exact = shifted_ginibre_top(4, 0.7)
    assert exact == pytest.approx(0.41939, abs=5e-6)
    assert abs(float(shifted["exponent"][0]) - exact) <= 4 * float(shifted["standard_error"][0])
    for found in (pure, shifted):
        bound, error = found["upper_bound"].values, found["upper_bound_error"].values
        assert np.all(bound + 4 * error >= float(found["exponent"][0]))
        assert np.all(np.diff(bound) <= 4 * (error[1:] + error[:-1]))
        assert np.all(found["lower"] < found["exponent"]) and np.all(found["exponent"] < found["upper"])


def test_standard_error_is_right():
    """200 repetitions of small runs: z has mean 0 and variance 1."""
    # Rotation-invariant factors: the estimate has no bias, however short the run.
    state = begin(LeastSquares(4, np.asarray(0.3)), 200 * 64, 4)
    growth = advance(LeastSquares(4, np.asarray(0.3)), state, 24)[1][:, 0] / 24
    exact = least_squares(4, 0.3)
    z = np.array([z_scores(part, exact) for part in growth.reshape(200, 64, 4)])
    assert np.all(np.abs(z.mean(axis=0)) < 4 / math.sqrt(200))
    assert np.all((z.var(axis=0, ddof=1) > 0.75) & (z.var(axis=0, ddof=1) < 1.35))


@pytest.mark.parametrize("eta", [0.3, pytest.param(0.6, marks=pytest.mark.slow)])
def test_least_squares_spectrum_of_dimension_4(eta):
    found = rates(LeastSquares(4, np.asarray(eta)), 256, 4000, 4, seed=3)
    assert np.all(np.abs(z_scores(found, least_squares(4, eta))) <= 4)


# Two samples: theory with exact sums -----------------------------------------------------------------------------

COUPLED = [[3, 0.7], [0.7, 1.2]]


@pytest.mark.parametrize(
    ("gram", "eta", "known", "uncertainty", "total"),
    [
        ([[3, 0], [0, 1.2]], 0.5, math.log(0.5) / 2, 0.0, -0.804719),
        (COUPLED, 0.5, -0.3031, 5e-4, -0.804719),
        (COUPLED, 0.9, 0.2164, 5e-4, -0.997550),
    ],
)
def test_two_samples(gram, eta, known, uncertainty, total):
    law = gram_law(gram, eta)
    found = rates(law, 256, 4000, 2, warm_up=400)
    mean, error = mean_and_error(found)
    assert abs(mean[0] - known) <= 4 * math.hypot(error[0], uncertainty)
    exact = sum(math.log(abs(1 - eta * gram[i][i])) for i in range(2)) / 2
    assert exact == pytest.approx(total, abs=1e-6)
    assert abs(z_scores(found.sum(axis=1), exact)) <= 4


def drawn_samples(batches, seed, replica, steps):
    with jax.enable_x64(True):
        key = trajectory_key(seed, replica)
        return np.asarray(jax.vmap(lambda step: batches.draw(key, step).indices[0])(jnp.arange(steps)))


def test_sum_is_the_logarithm_of_the_determinant_of_each_product():
    law = gram_law(COUPLED, 0.9)
    found = advance(law, begin(law, 3, 2, seed=5), 1000)[1][:, 0].sum(axis=1)
    logarithms = np.log(np.abs(1 - 0.9 * np.diag(COUPLED)))
    for replica in range(3):
        exact = logarithms[drawn_samples(law.batches, 5, replica, 1000)].sum()
        assert found[replica] == pytest.approx(exact, abs=1e-9)


def test_agrees_with_a_product_in_numpy():
    law = gram_law(COUPLED, 0.9)
    state = begin(law, 2, 2, seed=5)
    growth = advance(law, state, 300)[1][1, 0]
    frame = state.frames[0, 1].T
    factors = np.linalg.cholesky(COUPLED)
    logarithms = np.zeros(2)
    for i in drawn_samples(law.batches, 5, 1, 300):
        frame, upper = np.linalg.qr(frame - 0.9 * np.outer(factors[i], factors[i] @ frame))
        logarithms += np.log(np.abs(np.diag(upper)))
    np.testing.assert_allclose(growth, logarithms, rtol=0, atol=1e-9)


def test_replicas_depend_on_seed_and_number_alone():
    law = gram_law(COUPLED, 0.9)
    many = begin(law, 300, 2, seed=7)
    all_of_them = advance(law, many, 128)[1]
    few = advance(law, begin(law, 5, 2, seed=7), 128)[1]
    later = advance(law, begin(law, 20, 2, seed=7, first=270), 128)[1]
    np.testing.assert_array_equal(few, all_of_them[:5])
    np.testing.assert_array_equal(later, all_of_them[270:290])
    assert not np.array_equal(advance(law, begin(law, 5, 2, seed=8), 128)[1], few)


def test_continued_run_is_the_same_run():
    law = gram_law(COUPLED, 0.9)
    begun = begin(law, 20, 2, seed=7)
    whole, growth = advance(law, begun, 256, parts=4)
    assert growth.shape == (20, 4, 2)
    state = begun
    for part in range(4):
        state, piece = advance(law, state, 64)
        np.testing.assert_array_equal(piece[:, 0], growth[:, part])
    assert state.step == whole.step == 256
    np.testing.assert_array_equal(state.frames, whole.frames)
    np.testing.assert_allclose(advance(law, begun, 256)[1][:, 0], growth.sum(axis=1), rtol=0, atol=1e-10)


@pytest.mark.slow
def test_leading_exponent_does_not_depend_on_how_many_are_followed():
    law = gram_law(COUPLED, 0.9)
    both = advance(law, begin(law, 20, 2, seed=7), 200)[1]
    np.testing.assert_allclose(advance(law, begin(law, 20, 1, seed=7), 200)[1], both[..., :1], rtol=0, atol=1e-9)


def test_stretch_does_not_matter():
    law = gram_law(COUPLED, 0.9)
    one = advance(law, begin(law, 20, 2, stretch=1), 200)[1]
    for stretch in (3, 16, 150):
        other = advance(law, begin(law, 20, 2, stretch=stretch), 200)[1]
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-8)


def test_vectors_to_begin_with():
    law = gram_law(COUPLED, 0.9)
    vectors = np.random.default_rng(0).normal(size=(20, 2, 2))
    state = begin(law, 20, 2, vectors=vectors)
    first = state.frames[0, :20]
    np.testing.assert_allclose(
        np.einsum("rkd,rld->rkl", first, first), np.eye(2) + np.zeros((20, 1, 1)), atol=1e-14
    )
    np.testing.assert_allclose(
        np.abs(np.sum(first[:, 0] * vectors[:, 0], axis=1)), np.linalg.norm(vectors[:, 0], axis=1)
    )
    with pytest.raises(ValueError, match="shape"):
        begin(law, 20, 2, vectors=vectors[:3])


def test_factors_that_annihilate():
    """1 - eta g_1 = 0: the first sample's Jacobian kills a direction (to rounding at eta = 1/3)."""
    mean, error = mean_and_error(rates(gram_law([[3, 0], [0, 1.2]], 1 / 3), 256, 2000, 2))
    assert abs(mean[0] - math.log(0.6) / 2) <= 4 * error[0]
    assert mean[1] == -math.inf
    # Two skew lines: what one factor leaves is never killed by the other.
    mean, error = mean_and_error(rates(gram_law([[3, 0.7], [0.7, 3]], 1 / 3), 256, 2000, 2))
    # In turn each projection shortens by |cos| of the angle, and only where the sample changes: probability 1/2.
    assert abs(mean[0] - math.log(0.7 / 3) / 2) <= 4 * error[0]
    assert mean[1] == -math.inf
    # Orthogonal lines: everything is killed.
    mean, _ = mean_and_error(rates(gram_law([[3, 0], [0, 3]], 1 / 3), 64, 200, 2))
    assert np.all(mean < -0.2) and mean[1] == -math.inf


# One matrix: Lyapunov exponents are logarithms of moduli of eigenvalues ------------------------------------------


def of_one_matrix(matrix, steps=400, warm_up=200):
    return rates(Given(3, np.asarray(matrix, float)), 8, steps, 3, warm_up=warm_up)


def random_basis(seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


@pytest.mark.parametrize(
    ("matrix", "moduli"),
    [
        (np.diag([0.5, 2, 1]), [2, 1, 0.5]),
        (np.diag([1, 0, 3]), [3, 1, 0]),
        (np.zeros((3, 3)), [0, 0, 0]),
        (1e150 * np.diag([3.0, 2, 1]), [3e150, 2e150, 1e150]),
        (1e-200 * np.diag([3.0, 2, 1]), [3e-200, 2e-200, 1e-200]),
        (np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]]), [0, 0, 0]),
        (random_basis(0) @ np.diag([0, 2, 1]) @ random_basis(0).T, [2, 1, 0]),
        (random_basis(1) @ np.diag([0, 2, 0]) @ random_basis(1).T, [2, 0, 0]),
    ],
)
def test_one_matrix(matrix, moduli):
    found = of_one_matrix(matrix)
    with np.errstate(divide="ignore"):
        exact = np.log(moduli)
    assert not np.isnan(found).any()
    assert np.array_equal(np.isneginf(found).all(axis=0), np.isneginf(exact))
    finite = np.isfinite(exact)
    np.testing.assert_allclose(found[:, finite], exact[finite] + np.zeros((8, 1)), atol=1e-9)


@pytest.mark.slow
@given(
    moduli=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    seed=st.integers(0, 2**31),
    skew=st.floats(0, 1),
)
@settings(max_examples=25, deadline=None)
def test_any_matrix(moduli, seed, skew):
    """Exponents of a matrix with these eigenvalues; the approach is geometric, in the ratios of moduli."""
    basis = random_basis(seed) + skew * np.triu(np.random.default_rng(seed).normal(size=(3, 3)), 1)
    matrix = basis @ np.diag(np.exp(moduli)) @ np.linalg.inv(basis)
    steps = 2000
    found = of_one_matrix(matrix, steps, 500).mean(axis=0)
    distance = math.log(np.linalg.cond(basis)) + 10
    np.testing.assert_allclose(found, sorted(moduli, reverse=True), atol=4 * distance / steps)
    assert found.sum() == pytest.approx(sum(moduli), abs=1e-6)


def test_nearly_singular_matrices_are_orthonormalised_at_every_step():
    matrix = random_basis(2) @ np.diag([1, 1, 1e-9]) @ random_basis(3)
    assert stretch_of(Given(3, matrix), 3) == 1
    assert of_one_matrix(matrix).sum(axis=1) == pytest.approx(np.full(8, math.log(1e-9)), abs=1e-5)
    assert stretch_of(Given(3, np.eye(3)), 3) == 64


def test_matrices_that_are_not_finite():
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            of_one_matrix(np.diag([1, bad, 1]))


# SGD's factors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "replace"),
    [(1, False), *(pytest.param(*law, marks=pytest.mark.slow) for law in ((3, False), (2, True)))],
)
def test_batch_products(size, replace):
    """Samples with several rows, with none, and negative signs, in both forms, beside the matrices themselves."""
    rng = np.random.default_rng(0)
    sample = np.array([0, 0, 1, 3, 3, 3, 4])
    factors, signs = rng.normal(size=(7, 3)), np.array([1.0, -1, 1, 1, 1, -1, 1])
    batches = Batches(5, size, [0.1, 0.2, 0.3, 0.2, 0.2] if replace else None, replace)
    frames = rng.normal(size=(6, 2, 3))
    with jax.enable_x64(True):
        keys = jax.vmap(trajectory_key, (None, 0))(0, jnp.arange(6))
        weights = np.asarray(jax.vmap(batches.sample_weights, (0, None))(keys, 11))
        matrices = np.eye(3) - 0.2 * np.einsum("ra,ai,aj->rij", weights[:, sample] * signs, factors, factors)
        for gathered in (False, True):
            law = BatchProducts(factors, signs, sample, batches, 0.2, gathered)
            moved = law.apply(keys, 11, jnp.asarray(frames))
            np.testing.assert_allclose(moved, np.einsum("rij,rkj->rki", matrices, frames), atol=1e-14)


def test_form_is_chosen_by_cost():
    factors, signs, sample = np.ones((8, 2)), np.ones(8), np.arange(8)
    assert BatchProducts(factors, signs, sample, Batches(8, 1), 0.1).gathered
    assert not BatchProducts(factors, signs, sample, Batches(8, 8), 0.1).gathered


def test_wrong_factors():
    with pytest.raises(ValueError, match="shapes"):
        BatchProducts(np.ones((2, 3)), np.ones(3), np.arange(2), Batches(2), 0.1)
    with pytest.raises(ValueError, match="integers from 0 to 1"):
        BatchProducts(np.ones((2, 3)), np.ones(2), np.array([0, 2]), Batches(2), 0.1)


@pytest.mark.slow
def test_commuting_samples():
    """One dimension: E log|1 - eta h| for the curvatures .5 and 3."""
    law = BatchProducts(np.sqrt([[0.5], [3.0]]), np.ones(2), np.arange(2), Batches(2), 0.9)
    exact = (math.log(0.55) + math.log(1.7)) / 2
    assert exact == pytest.approx(-0.03360, abs=5e-6)
    assert abs(z_scores(rates(law, 256, 2000, 1), exact)[0]) <= 4


# Any law ---------------------------------------------------------------------------------------------------------


def one_third_or_two(key):
    return jnp.where(jax.random.bernoulli(key), 2.0, 1 / 3).reshape(1, 1)


@pytest.mark.slow
def test_contracting_almost_surely_but_not_in_mean_square():
    """Chemnitz & Engel's example: E log Y < 0 although E Y^2 = 37/18 > 1."""
    calls = []
    found = random_product_exponents(
        one_third_or_two,
        1,
        log_determinant=math.log(2 / 3) / 2,
        progress=lambda done, total: calls.append((done, total)),
    )
    exact = math.log(2 / 3) / 2
    assert abs(float(found["exponent"][0]) - exact) <= 4 * float(found["standard_error"][0])
    assert float(found["upper"][0]) < 0
    assert abs(float(found["sum_z"])) <= 4
    assert calls[-1] == (4800, 4800) and calls == sorted(calls)
    assert found.sizes["pair"] == 0 and found.attrs["remarks"] == ""
    assert found["exponent"].attrs["status"] == found.attrs["status"] == "estimated"
    np.testing.assert_allclose(found["history"][-1], found["exponent"], atol=1e-12)
    assert found["step"].values[-1] == 4000
    np.testing.assert_allclose(found["replica_exponent"].mean("replica"), found["exponent"], atol=1e-12)


def two_walks(key):
    return jnp.diag(jnp.exp(jax.random.normal(key, (2,))))


@pytest.mark.slow
def test_equal_exponents_of_a_reducible_product_are_covered():
    """Both exponents are 0; the estimates are the means of the larger and the smaller of two random walks."""
    found = random_product_exponents(two_walks, 2, log_determinant=0.0)
    assert float(found["exponent"][0]) > 4 * float(found["standard_error"][0])
    assert np.all(found["lower"] < 0) and np.all(found["upper"] > 0)
    assert float(found["separation"][0]) < 1.4
    assert "1 and 2" in found.attrs["remarks"]
    top = random_product_exponents(two_walks, 2, k=1, steps=1000)
    assert float(top["lower"][0]) < 0 and "1 and 2" in top.attrs["remarks"]
    assert "sum" not in top and top.sizes["k"] == 1


def test_errors():
    with pytest.raises(TypeError, match="JAX function of a PRNG key"):
        random_product_exponents(np.eye(2), 2)
    with pytest.raises(TypeError, match="cannot be traced"):
        random_product_exponents(lambda key: np.asarray(key) + 1, 2)
    with pytest.raises(TypeError, match="one array"):
        random_product_exponents(lambda key: [jnp.eye(2)], 2)
    with pytest.raises(ValueError, match=r"\(3, 3\), expected \(2, 2\)"):
        random_product_exponents(lambda key: jnp.eye(3), 2)
    with pytest.raises(TypeError, match="int"):
        random_product_exponents(lambda key: jnp.ones((2, 2), int), 2)
    matrix = Gaussian(2)
    for name, value in [
        ("k", 3), ("k", 0), ("replicas", 1), ("steps", 0), ("warm_up", -1), ("seed", -1), ("confidence", 1.0),
        ("confidence", 0), ("confidence", "high"), ("log_determinant", math.nan), ("log_determinant", math.inf),
        ("steps", 1.5),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=name):
            random_product_exponents(matrix, 2, **{name: value})
    with pytest.raises(ValueError, match="dim"):
        random_product_exponents(matrix, 0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        random_product_exponents(lambda key: jnp.full((1, 1), jnp.nan), 1, steps=3)


# Long: the remaining rows of the table ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 3, 5])
def test_real_ginibre(d):
    found = random_product_exponents(Gaussian(d), d, seed=4)
    assert np.all(np.abs((found["exponent"] - ginibre(d)) / found["standard_error"]) <= 4)
    assert abs(float(found["sum_z"])) <= 4


@pytest.mark.slow
def test_complex_ginibre():
    found = random_product_exponents(Gaussian(3, np.complex128), 3, log_determinant=sum(psi([3, 2, 1])) / 2)
    exact = psi(3 - np.arange(3)) / 2
    assert np.all(np.abs((found["exponent"] - exact) / found["standard_error"]) <= 4)
    assert abs(float(found["sum_z"])) <= 4


@pytest.mark.slow
def test_least_squares_of_dimension_2():
    exact = least_squares(2, 0.5)
    # For eta = 1/2 the sum is E log|1 - u| with u exponentially distributed.
    assert exact.sum() == pytest.approx(-expi(1) / math.e, abs=1e-9)
    np.testing.assert_allclose(exact, [-0.19455, -0.50284], atol=3e-4)
    assert np.all(np.abs(z_scores(rates(LeastSquares(2, np.asarray(0.5)), 256, 4000, 2), exact)) <= 4)


@pytest.mark.slow
@pytest.mark.parametrize(("d", "threshold"), [(2, 0.937087), (3, 0.593113), (4, 0.439326), (10, 0.179889)])
def test_almost_sure_threshold_of_least_squares(d, threshold):
    """The exponent vanishes there, far beyond the mean-square threshold 2 / (d + 2)."""
    assert threshold > 2 / (d + 2)
    assert abs(z_scores(rates(LeastSquares(d, np.asarray(threshold)), 256, 4000, 1, seed=9), 0.0)[0]) <= 4
    below = rates(LeastSquares(d, np.asarray(0.97 * threshold)), 256, 4000, 1, seed=9)
    assert z_scores(below, 0.0)[0] < -4


def fibonacci(key):
    sign = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
    return jnp.asarray([[0.0, 1.0], [0.0, 1.0]]) + sign * jnp.asarray([[0.0, 0.0], [1.0, 0.0]])


@pytest.mark.slow
def test_random_fibonacci_sequences():
    """Viswanath, Math. Comp. 69 (2000): the modulus grows like 1.13198824^n."""
    found = random_product_exponents(fibonacci, 2, steps=16000, log_determinant=0.0)
    z = (float(found["exponent"][0]) - math.log(1.13198824)) / float(found["standard_error"][0])
    assert abs(z) <= 4
    assert float(found["sum"]) == pytest.approx(0, abs=1e-9)


class GramForm(eqx.Module):
    """The Gram form: only the drawn sample's row."""

    gram: Any
    step_size: Any

    def __call__(self, key):
        row = jnp.where(jax.random.bernoulli(key), jnp.asarray([1.0, 0.0]), jnp.asarray([0.0, 1.0]))
        return jnp.eye(2) - self.step_size * row[:, None] * self.gram


@pytest.mark.slow
def test_subadditive_bounds_beside_the_sum_over_all_products():
    law = GramForm(np.asarray(COUPLED), np.asarray(0.5))
    factors = [np.eye(2) - 0.5 * np.outer(np.eye(2)[i], COUPLED[i]) for i in range(2)]
    products = [np.eye(2)]
    norms = log_norms(SampledMatrices(sample_matrix=law, dim=2), 4096, 3)
    for n in range(1, 9):
        products = [factor @ product for product in products for factor in factors]
        if n & (n - 1) == 0:
            exact = np.mean([math.log(np.linalg.norm(product, 2)) for product in products])
            assert abs(z_scores(norms[:, int(math.log2(n))], exact)) <= 4
            if n == 4:
                assert exact / 4 == pytest.approx(-0.17477, abs=6e-6)


@pytest.mark.slow
def test_intervals_of_repeated_runs():
    """200 small runs of the public function: z has mean 0 and variance 1, nearly 95 % of the intervals cover."""
    exact = ginibre(2)
    matrix = Gaussian(2)
    runs = [random_product_exponents(matrix, 2, replicas=64, steps=64, seed=seed) for seed in range(200)]
    z = np.array([(run["exponent"] - exact) / run["standard_error"] for run in runs])
    assert np.all(np.abs(z.mean(axis=0)) < 4 / math.sqrt(200))
    assert np.all((z.var(axis=0, ddof=1) > 0.75) & (z.var(axis=0, ddof=1) < 1.35))
    covered = np.array([(run["lower"] <= exact) & (exact <= run["upper"]) for run in runs])
    assert covered.mean() > 0.9
    assert abs(np.mean([float(run["sum_z"]) for run in runs])) < 4 / math.sqrt(200)

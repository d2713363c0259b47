import itertools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator, eigsh
from sklearn.datasets import load_digits

import gdmap.spectra.extreme as extreme
from gdmap import Function, LinearNetwork, Objective
from gdmap.spectra import extreme_eigenvalues, hessian_operator, sharpness, spectrum
from gdmap.spectra.extreme import matched_radii
from gdmap.spectra.lanczos import orthogonalised, random_start_bound


def quadratic(matrix):
    return Function(lambda w: w @ jnp.asarray(matrix, w.dtype) @ w / 2, len(matrix))


def symmetric(seed, dim):
    A = np.random.default_rng(seed).normal(size=(dim, dim))
    return A + A.T


def diagonal(values):
    return aslinearoperator(sp.diags(np.asarray(values)))


@pytest.fixture
def matrix_free(monkeypatch):
    monkeypatch.setattr(extreme, "DENSE_LIMIT", 0)
    monkeypatch.setattr(extreme, "DENSE_LIMIT_OF_OPERATORS", 0)


def contains(bracket, exact):
    return bracket.lower <= exact <= bracket.upper


def tanh_loss(params, x, y):
    *hidden, (matrix, bias) = params
    for weights, shift in hidden:
        x = jnp.tanh(weights @ x + shift)
    return jnp.sum((matrix @ x + bias - y) ** 2) / 2


def tanh_network(widths, x, y, seed=0):
    rng = np.random.default_rng(seed)
    params = [
        (rng.normal(size=(out, into)) / np.sqrt(into), np.zeros(out)) for into, out in itertools.pairwise(widths)
    ]
    objective = Objective(tanh_loss, params, (x, y))
    return objective, objective.ravel(params)


# sharpness


def test_dense_and_matrix_free_agree_with_numpy(monkeypatch):
    A = symmetric(0, 60)
    exact = np.linalg.eigvalsh(A)[-1]
    dense = sharpness(quadratic(A), np.zeros(60))
    assert contains(dense, exact)
    assert dense.relative_width < 1e-12
    assert dense.status == "computed"
    monkeypatch.setattr(extreme, "DENSE_LIMIT", 10)
    free = sharpness(quadratic(A), np.zeros(60))
    assert free.value == pytest.approx(exact, rel=1e-13)
    assert contains(free, exact)
    assert free.relative_width < 1e-9
    assert free.method.startswith("Lanczos")


@pytest.mark.usefixtures("matrix_free")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [1, 2, 3, 17])
def test_tiny_dimensions(dim, dtype):
    A = symmetric(dim, dim)
    exact = np.linalg.eigvalsh(A.astype(dtype).astype(float))[-1]
    top = sharpness(quadratic(A), np.zeros(dim, dtype))
    assert contains(top, exact)
    assert top.relative_width < (2e-3 if dtype == np.float32 else 1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-150, 1e-18, 0.3, 7.0, 1e18, 1e150]))
def test_sharpness_is_homogeneous_and_invariant_under_rotation(seed, c):
    rng = np.random.default_rng(seed)
    d = rng.normal(size=90)
    Q = np.linalg.qr(rng.normal(size=(90, 90)))[0]
    exact = c * d.max()
    plain, turned = diagonal(c * d), aslinearoperator(c * (Q * d) @ Q.T)
    for operator in (plain, turned):
        top = sharpness(operator, seed=seed)
        assert contains(top, exact)
        assert top.value == pytest.approx(exact, rel=1e-12)
        assert top.relative_width < 1e-9


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(500),
        np.full(500, 3.0),
        np.full(500, -3.0),
        -1 - np.linspace(0, 1, 500),
        np.r_[np.full(5, 2.0), np.linspace(-1, 1, 495)],
        np.r_[1e-6, -np.linspace(0.1, 1, 499)],
        np.r_[1.0, np.zeros(499)],
        np.r_[1.0, 1 - 1e-9, np.linspace(-5, 0.9, 498)],
    ],
    ids=[
        "zero",
        "identity",
        "negative identity",
        "negative",
        "5-fold",
        "nearly negative",
        "rank one",
        "close pair",
    ],
)
def test_difficult_spectra(values):
    operator = diagonal(np.random.default_rng(0).permutation(values))
    top = sharpness(operator)
    assert contains(top, values.max())
    assert top.upper - top.lower < 1e-9 * np.abs(values).max() + 1e-300
    assert top.status == "computed"
    smallest = extreme_eigenvalues(operator, "smallest")
    assert smallest.values[0] == pytest.approx(values.min(), abs=1e-12)


def test_arpack_agrees():
    d = np.random.default_rng(3).normal(size=800)
    theirs = eigsh(sp.diags(d), k=4, which="LA", return_eigenvectors=False)
    assert sharpness(diagonal(d)).value == pytest.approx(theirs.max(), rel=1e-12)
    np.testing.assert_allclose(spectrum(diagonal(d), k=4)["eigenvalue"], np.sort(theirs)[::-1], rtol=1e-12)


def laplacian(n):
    matrix = sp.diags([np.full(n - 1, -1.0), np.full(n, 2.0), np.full(n - 1, -1.0)], [-1, 0, 1])
    return aslinearoperator(matrix), 2 + 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1))


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, pytest.param(1e-3, marks=pytest.mark.slow)])
def test_a_loose_tolerance_does_not_miss_the_largest_eigenvalue(tolerance):
    # A small residual alone may belong to the second eigenvalue: this fails if the iteration stops on it.
    operator, exact = laplacian(300)
    spectra = [np.random.default_rng(0).normal(size=300), np.r_[1.0, 0.95, np.linspace(0, 0.5, 298)]]
    for seed in range(12):
        assert contains(sharpness(operator, tolerance=tolerance, seed=seed), exact[0])
        for values in spectra:
            top = sharpness(diagonal(values), tolerance=tolerance, seed=seed)
            assert contains(top, values.max())
            assert top.upper <= top.value * (1 + tolerance) * (1 + 1e-9)


@pytest.mark.parametrize("max_products", [1, 2, 5, 15, 40, pytest.param(200, marks=pytest.mark.slow)])
def test_too_few_products_widen_the_interval_and_say_so(max_products):
    operator, exact = laplacian(3000)
    for seed in range(3):
        top = sharpness(operator, max_products=max_products, seed=seed)
        assert contains(top, exact[0])
        assert top.status == "estimated"
        assert top.confidence == 0.999
        assert "NOT CONVERGED" in top.method


def test_restarts_lose_nothing(monkeypatch):
    monkeypatch.setattr("gdmap.spectra.lanczos.BASIS_SIZE", 12)
    d = np.random.default_rng(5).normal(size=700)
    top = sharpness(diagonal(d))
    assert top.value == pytest.approx(d.max(), rel=1e-12)
    assert contains(top, d.max())
    found = spectrum(diagonal(d), k=6)
    np.testing.assert_allclose(found["eigenvalue"], np.sort(d)[::-1][:6], rtol=1e-12)


@pytest.mark.parametrize("steps", [2, 6, 12, 20])
def test_the_bound_over_the_random_start_holds(steps):
    # At most a share ``failure`` of the starts may hide an eigenvalue beyond the bound.
    n, failure, starts = 200, 0.1, 300
    values = np.r_[1.0, 0.97, np.random.default_rng(0).uniform(0, 0.9, n - 2)]
    misses, widths = 0, []
    for seed in range(starts):
        rows = np.zeros((steps + 1, n))
        diagonal, beside = np.zeros((2, steps))
        rows[0] = np.random.default_rng(seed).standard_normal(n)
        rows[0] /= np.linalg.norm(rows[0])
        for j in range(steps):
            coefficients, rest, beside[j] = orthogonalised(values * rows[j], rows[: j + 1])
            diagonal[j] = coefficients[j]
            rows[j + 1] = rest / beside[j]
        ritz = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1))
        bound = random_start_bound(diagonal, beside, ritz[-1], 1.0, n, failure)
        misses += bound < values.max()
        widths.append(bound - ritz[-1])
    assert misses <= 1.3 * failure * starts
    assert np.median(widths) > 0
    if steps >= 12:
        assert np.median(widths) < 0.1


def test_the_bound_over_the_random_start_in_high_precision():
    rng = np.random.default_rng(0)
    diagonal, beside = rng.uniform(-1, 1, 6), rng.uniform(0.2, 0.6, 6)
    ritz = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1))[-1]
    bound = random_start_bound(diagonal, beside, ritz, 1.0, 50, 0.01)
    mass = mpmath.findroot(
        lambda w: mpmath.betainc(0.5, 24.5, 0, w, regularized=True) - 0.01,
        (1e-9, 0.1),
        solver="anderson",
        tol=1e-12,
    )

    def allowed_mass(x):
        p, before, total = mpmath.mpf(1), mpmath.mpf(0), mpmath.mpf(1)
        for j in range(6):
            following = (x - diagonal[j]) * p - (beside[j - 1] * before if j else 0)
            p, before = following / beside[j], p
            total += p**2
        return 1 / total

    step = 10**0.1  # of the grid of distances
    assert allowed_mass(bound) <= mass <= allowed_mass(ritz + (bound - ritz) / step * (1 - 1e-9))


@pytest.mark.parametrize("free", [False, True], ids=["dense", "matrix-free"])
def test_float32_intervals_hold_the_float64_value(free, monkeypatch):
    monkeypatch.setattr(extreme, "DENSE_LIMIT", 0 if free else 1000)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        # One shape, so one compilation.
        objective, theta = tanh_network((6, 9, 4), rng.normal(size=(30, 6)), rng.normal(size=(30, 4)), seed)
        single = theta.astype(np.float32)
        top = sharpness(objective, single, tolerance=1e-5)
        exact = np.linalg.eigvalsh(objective.hessian(single.astype(float)))[-1]
        assert contains(top, exact)
        assert 1e-9 < top.relative_width < 1e-4
        assert abs(top.value / exact - 1) < 1e-5


def test_linear_network_at_its_balanced_minimum(matrix_free):
    from gdmap.minima import balanced_minimum

    network = LinearNetwork.whitened((3, 3, 3), np.diag([2.0, 1.0, 0.5]))
    minimum = balanced_minimum(network)
    assert contains(sharpness(network, minimum), 4.0)  # N sigma_1^(2 - 2/N)
    everything = spectrum(network, minimum)["eigenvalue"].values
    np.testing.assert_allclose(everything, np.linalg.eigvalsh(network.hessian(minimum))[::-1], atol=1e-12)
    few = spectrum(network, minimum, k=5)
    np.testing.assert_allclose(few["eigenvalue"], everything[:5], atol=1e-12)


def test_sharpness_of_a_large_float32_network():
    data = load_digits()
    objective, theta = tanh_network((64, 280, 280, 10), data.data[:300] / 16, np.eye(10)[data.target[:300]])
    assert 95_000 < objective.dim < 105_000
    single = theta.astype(np.float32)
    top, reference = sharpness(objective, single), sharpness(objective, single.astype(float))
    assert abs(top.value / reference.value - 1) < 1e-3
    assert contains(top, reference.value)
    assert top.relative_width < 5e-3
    assert int(top.method.split()[1]) <= 28


def test_jax_arrays_and_lists_are_points_too():
    loss = Function(lambda w: w[0] ** 2 + w[0] * w[1], 2)
    expected = sharpness(loss, np.array([1.0, 2.0])).value
    assert expected == pytest.approx(1 + math.sqrt(2))
    assert sharpness(loss, [1.0, 2.0]).value == expected
    assert sharpness(loss, jnp.array([1.0, 2.0])).value == pytest.approx(expected, rel=1e-6)
    assert sharpness(hessian_operator(loss, np.array([1.0, 2.0]))).value == expected


# several eigenvalues


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6, 9])
def test_copies_of_multiple_eigenvalues_are_found(k):
    rng = np.random.default_rng(0)
    values = np.r_[np.full(5, 2.0), rng.uniform(size=995)]
    operator = diagonal(rng.permutation(values))
    found = spectrum(operator, k=k, eigenvectors=True)
    exact = np.sort(values)[::-1][:k]
    np.testing.assert_allclose(found["eigenvalue"], exact, rtol=1e-13)
    assert np.all((found["lower"] <= exact) & (exact <= found["upper"]))
    assert found.attrs["status"] == "computed"
    X = found["eigenvector"].values
    np.testing.assert_allclose(X @ X.T, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(operator.matmat(X.T), X.T * exact, atol=1e-8)


@pytest.mark.parametrize(("dim", "copies", "k"), [(200, 200, 30), (150, 3, 20), (150, 0, 4), (100, 60, 100)])
def test_low_rank_and_whole_spectra(dim, copies, k):
    values = np.r_[np.ones(copies), np.zeros(dim - copies)]
    found = spectrum(diagonal(values), k=k)
    np.testing.assert_allclose(found["eigenvalue"], values[:k], atol=1e-13)
    assert found.attrs["status"] == "computed"


def test_spectrum_of_an_objective_matrix_free_against_dense(monkeypatch):
    rng = np.random.default_rng(1)
    objective, theta = tanh_network((6, 9, 4), rng.normal(size=(30, 6)), rng.normal(size=(30, 4)))
    exact = np.linalg.eigvalsh(objective.hessian(theta))[::-1]
    full = spectrum(objective, theta)
    assert full.sizes == {"k": objective.dim}
    assert list(full["k"].values[:3]) == [1, 2, 3]
    np.testing.assert_allclose(full["eigenvalue"], exact, atol=1e-13)
    assert np.all((full["lower"] <= exact) & (exact <= full["upper"]))
    monkeypatch.setattr(extreme, "DENSE_LIMIT", 0)
    for dtype, accuracy in ((np.float64, 1e-11), (np.float32, 1e-3)):
        some = spectrum(objective, theta.astype(dtype), k=8)
        np.testing.assert_allclose(some["eigenvalue"], exact[:8], rtol=accuracy)
        assert np.all((some["lower"] <= exact[:8] * (1 + 1e-6)) & (exact[:8] * (1 - 1e-6) <= some["upper"]))
    smallest = extreme_eigenvalues(hessian_operator(objective, theta), "smallest", 2)
    np.testing.assert_allclose(smallest.values, exact[::-1][:2], atol=1e-11)


def test_an_unfinished_spectrum_says_so():
    operator, exact = laplacian(2000)
    found = spectrum(operator, k=4, max_products=40)
    assert found.attrs["status"] == "estimated"
    assert "NOT CONVERGED" in found.attrs["method"]
    assert np.all((found["lower"] <= exact[:4]) & (exact[:4] <= found["upper"]))


def test_the_dense_path_agrees_between_all_and_some():
    A = symmetric(4, 30)
    full, some = spectrum(quadratic(A), np.zeros(30), eigenvectors=True), spectrum(quadratic(A), np.zeros(30), k=3)
    np.testing.assert_array_equal(full["eigenvalue"][:3], some["eigenvalue"])
    X = full["eigenvector"].values
    np.testing.assert_allclose((X.T * full["eigenvalue"].values) @ X, A, atol=1e-12)
    assert full["eigenvector"].dims == ("k", "component")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(1e-6, 1.0))
def test_matched_radii_match_distinct_eigenvalues(seed, k, size):
    rng = np.random.default_rng(seed)
    n = 12
    A = np.diag(rng.normal(size=n).round(1))
    X = np.linalg.qr(np.eye(n, k) + size * rng.normal(size=(n, k)))[0]
    ritz, Y = np.linalg.eigh(X.T @ A @ X)
    ritz, X = ritz[::-1], (X @ Y)[:, ::-1]
    radii = matched_radii(ritz, (A @ X - X * ritz).T)
    # A one-to-one matching exists if greedy assignment from the left succeeds.
    free = np.sort(np.diag(A))
    for low, high in sorted(zip(ritz - radii, ritz + radii, strict=True), key=lambda pair: pair[1]):
        inside = np.flatnonzero((free >= low - 1e-12) & (free <= high + 1e-12))
        assert len(inside)
        free = np.delete(free, inside[0])


# operators


def test_hessian_operator_multiplies_like_the_hessian():
    rng = np.random.default_rng(1)
    objective, theta = tanh_network((6, 9, 4), rng.normal(size=(30, 6)), rng.normal(size=(30, 4)))
    H = objective.hessian(theta)
    operator = hessian_operator(objective, theta)
    assert isinstance(operator, LinearOperator)
    assert operator.shape == H.shape
    assert operator.dtype == np.float64
    V = rng.normal(size=(objective.dim, 5))
    np.testing.assert_allclose(operator @ V, H @ V, atol=1e-12)
    np.testing.assert_allclose(operator @ V[:, 0], H @ V[:, 0], atol=1e-12)
    np.testing.assert_allclose(operator.T @ V[:, 0], H @ V[:, 0], atol=1e-12)
    np.testing.assert_allclose(operator.H @ V, H @ V, atol=1e-12)
    np.testing.assert_allclose(eigsh(operator, k=2, which="LA")[0], np.linalg.eigvalsh(H)[-2:], atol=1e-12)
    assert hessian_operator(objective, theta.astype(np.float32)).dtype == np.float32
    assert (hessian_operator(objective, theta.astype(np.float32)) @ V[:, 0]).dtype == np.float32


def test_integer_operators_are_read_as_numbers():
    assert contains(sharpness(aslinearoperator(sp.diags(np.arange(-50, 50), dtype=np.int64))), 49)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "aslinearoperator", (np.eye(3),)),
        (TypeError, "aslinearoperator", (sp.eye(3),)),
        (TypeError, "real symmetric", (aslinearoperator(1j * np.eye(3)),)),
        (ValueError, "square", (aslinearoperator(np.ones((3, 2))),)),
        (ValueError, "not symmetric", (aslinearoperator(np.triu(np.ones((3, 3)))),)),
        (ValueError, "not symmetric", (aslinearoperator(np.triu(np.ones((300, 300)))),)),
        (ValueError, "leave theta out", (aslinearoperator(np.eye(3)), np.zeros(3))),
        (ValueError, "theta is missing", (Function(lambda w: w @ w, 3),)),
        (ValueError, "shape", (Function(lambda w: w @ w, 3), np.zeros(4))),
        (ValueError, "shape", (Function(lambda w: w @ w, 3), np.zeros((2, 3)))),
        (TypeError, "integers as floats", (Function(lambda w: w @ w, 3), np.zeros(3, int))),
        (TypeError, "float32 or float64", (Function(lambda w: w @ w, 3), np.zeros(3, np.float16))),
        (ValueError, "theta holds values that are not finite", (Function(lambda w: w @ w, 3), np.full(3, np.nan))),
        (ValueError, "Hessian is not finite", (Function(lambda w: jnp.sum(jnp.sqrt(w)), 3), np.zeros(3))),
        (ValueError, "Hessian is not finite", (Function(lambda w: jnp.sum(jnp.sqrt(w)), 300), np.zeros(300))),
        (ValueError, "product .* not finite", (aslinearoperator(np.diag([np.inf, 1.0])),)),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_bad_matrices_and_points_are_refused(error, message, arguments):
    for function in (sharpness, spectrum):
        with pytest.raises(error, match=message):
            function(*arguments)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("tolerance", {"tolerance": 0.0}),
        ("tolerance", {"tolerance": -1.0}),
        ("tolerance", {"tolerance": math.nan}),
        ("tolerance", {"tolerance": "tight"}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 0.5}),
        ("max_products", {"max_products": 0}),
    ],
)
def test_bad_options_are_refused(message, arguments):
    with pytest.raises(ValueError, match=message):
        sharpness(diagonal(np.arange(100.0)), **arguments)


@pytest.mark.parametrize("k", [0, 101, -1, 2.0, True])
def test_a_bad_number_of_eigenvalues_is_refused(k):
    with pytest.raises(ValueError, match="k must be"):
        spectrum(diagonal(np.arange(100.0)), k=k)


def test_the_whole_spectrum_of_a_large_matrix_is_refused():
    with pytest.raises(ValueError, match="ask for the largest k"):
        spectrum(Function(lambda w: w @ w, 100_000), np.zeros(100_000))


def test_a_matrix_that_changes_between_products_is_refused():
    rng = np.random.default_rng(0)

    def matvec(v):
        A = rng.normal(size=(90, 90))
        return (A + A.T) @ v

    with pytest.raises(ValueError, match="changes between products"):
        sharpness(LinearOperator((90, 90), matvec=matvec, dtype=float))


def test_tracing_is_refused():
    loss = Function(lambda w: w @ w, 3)
    with pytest.raises(TypeError, match="concrete theta"):
        jax.jit(lambda w: sharpness(loss, w).value)(jnp.zeros(3))


def test_extremes_of_neither_end_are_refused():
    with pytest.raises(ValueError, match="'largest' or 'smallest'"):
        extreme_eigenvalues(diagonal(np.arange(100.0)), "middle")

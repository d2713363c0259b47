import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdmap import Function, Objective


def quartic(w):
    return jnp.sum(w**4) / 4 + w[0] * w[1]


def test_derivatives_agree_with_hand_and_finite_differences():
    objective = Function(quartic, 3)
    theta, v = np.array([0.3, -1.2, 0.7]), np.array([1.0, 2.0, -1.0])
    swap = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(objective.gradient(theta), theta**3 + swap @ theta, rtol=1e-15)
    hessian = np.diag(3 * theta**2) + swap
    np.testing.assert_allclose(objective.hessian(theta), hessian, rtol=1e-15)
    np.testing.assert_allclose(objective.hvp(theta, v), hessian @ v, rtol=1e-15)
    h = 1e-6
    slope = (objective.value(theta + h * v) - objective.value(theta - h * v)) / (2 * h)
    assert slope == pytest.approx(objective.gradient(theta) @ v, rel=1e-8)


def test_numpy_in_numpy_out_in_double_precision_without_configuration():
    objective = Function(quartic, 3)
    for result in (
        objective.value(np.ones(3)),
        objective.gradient(np.ones(3)),
        objective.hessian([1.0, 1.0, 1.0]),
    ):
        assert not isinstance(result, jax.Array)
        assert result.dtype == np.float64
    assert objective.gradient(np.ones(3, np.float32)).dtype == np.float32
    assert not jax.config.jax_enable_x64


def test_methods_work_inside_the_callers_transformations():
    objective = Function(quartic, 3)
    thetas = jnp.ones((4, 3))
    assert jax.jit(jax.vmap(objective.value))(thetas).shape == (4,)
    assert jax.jit(objective.gradient)(thetas[0]).shape == (3,)
    np.testing.assert_allclose(jax.grad(objective.value)(thetas[0]), objective.gradient(thetas[0]), rtol=1e-6)


def test_importing_changes_no_global_setting():
    code = (
        "import jax, gdmap; assert not jax.config.jax_enable_x64;"
        "import numpy as np; f = gdmap.Function(lambda w: (w**2).sum(), 1); f.value(np.ones(1));"
        "assert not jax.config.jax_enable_x64; import jax.numpy as jnp; assert jnp.ones(1).dtype == jnp.float32"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pytrees_of_parameters_round_trip():
    params = {"b": np.zeros(2), "w": np.arange(6.0).reshape(2, 3), "name": "layer", "activation": jnp.tanh}
    objective = Objective(lambda p: jnp.sum(p["activation"](p["w"]) ** 2) + jnp.sum(p["b"]), params)
    theta = objective.ravel(params)
    np.testing.assert_array_equal(theta, [0, 0, 0, 1, 2, 3, 4, 5])
    back = objective.unravel(theta)
    np.testing.assert_array_equal(back["w"], params["w"])
    assert back["name"] == "layer"
    assert objective.value(theta) == pytest.approx(np.sum(np.tanh(params["w"]) ** 2))


def test_equinox_modules_are_parameters_in_double_precision():
    network = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))
    x, y = np.ones((5, 2)), np.zeros((5, 1))
    objective = Objective(lambda net, x, y: jnp.sum((net(x) - y) ** 2), network, data=(x, y))
    theta = objective.ravel(network).astype(np.float64)
    assert objective.dim == 2 * 3 + 3 + 3 + 1
    assert objective.value(theta).dtype == np.float64
    expected = jax.vmap(network)(jnp.asarray(x, jnp.float32))
    assert objective.value(theta) == pytest.approx(float(jnp.mean(expected**2)), rel=1e-6)


def test_data_objective_is_the_weighted_mean_of_its_samples():
    x, y = np.array([0.9, 2.5]), np.array([0.9, 2.5])
    objective = Objective(lambda w, x, y: 0.5 * (w[1] * w[0] * x - y) ** 2, np.ones(2), data=(x, y))
    theta = np.array([1.3, 0.4])
    samples = objective.sample_values(theta)
    np.testing.assert_allclose(samples, 0.5 * (0.52 * x - y) ** 2)
    assert objective.value(theta) == pytest.approx(samples.mean())
    assert objective.weighted([0.58, 0.42]).value(theta) == pytest.approx(0.58 * samples[0] + 0.42 * samples[1])
    assert objective.n_samples == 2
    hessian = objective.hessian(np.array([1.0, 1.0]))
    np.testing.assert_allclose(hessian, 3.53 * np.ones((2, 2)), rtol=1e-12)  # the toy of arXiv:2510.24466


def test_fingerprint_knows_code_and_data():
    def make(power, data):
        return Objective(lambda w, x: jnp.sum(w * x) ** power, np.ones(2), data=(data,)).describe()["fingerprint"]

    base = make(2, np.ones((3, 2)))
    assert make(2, np.ones((3, 2))) == base
    assert make(4, np.ones((3, 2))) != base
    assert make(2, np.full((3, 2), 2.0)) != base
    closed_over = [np.arange(3.0), np.arange(1.0, 4.0)]
    first, second = (Function(lambda w, c=c: jnp.sum(w * c), 3).describe()["fingerprint"] for c in closed_over)
    assert first != second


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Function(lambda w: w, 2), TypeError, r"one real scalar, but it returns float64\[2\]"),
        (lambda: Function(lambda w: jnp.argmax(w), 2), TypeError, "one real scalar"),
        (lambda: Function(lambda w: (w[0], w[1]), 2), TypeError, "one real scalar"),
        (lambda: Function("loss", 2), TypeError, "f must be"),
        (lambda: Function(quartic, 0), ValueError, "dim must be at least 1"),
        (lambda: Function(quartic, 3, optimal_value=np.nan), ValueError, "optimal_value"),
        (lambda: Function(quartic, 3).value(np.ones(2)), ValueError, r"theta has shape \(2,\), expected \(3,\)"),
        (lambda: Function(quartic, 3).value(np.ones(3, int)), TypeError, "got dtype int64"),
        (lambda: Function(quartic, 3).value(np.ones(3, complex)), TypeError, "complex"),
        (lambda: Function(quartic, 3).hvp(np.ones(3), np.ones(2)), ValueError, "v has shape"),
        (lambda: Objective(lambda p: 0.0, {"w": np.arange(3)}), TypeError, r"params\['w'\] has dtype int64"),
        (lambda: Objective(lambda p: 0.0, {"w": "text"}), ValueError, "nothing to optimise"),
        (lambda: Objective(lambda p: 0.0, np.array([np.nan])), ValueError, "params is not finite"),
        (lambda: Objective(lambda p, x: p[0] * x, np.ones(1), data=np.ones(3)), TypeError, "tuple"),
        (
            lambda: Objective(lambda p, x: p[0] * x, np.ones(1), data=(np.array([np.inf]),)),
            ValueError,
            "not finite",
        ),
        (
            lambda: Objective(lambda p, x, y: p[0] * x * y, np.ones(1), data=(np.ones(3), np.ones(4))),
            ValueError,
            "differ in their number of samples",
        ),
        (lambda: Objective(lambda p, x: p * x, np.ones(2), data=(np.ones(3),)), TypeError, "one real scalar"),
        (lambda: Objective(lambda p: jnp.sum(p), np.ones(2)).sample_values(np.ones(2)), ValueError, "no samples"),
    ],
)
def test_bad_input_names_the_argument(make, error, message):
    with pytest.raises(error, match=message):
        make()

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gdmap
from gdmap import Network
from gdmap.engines.precision import float64
from gdmap.models import Convolutional, FullyConnected

rng = np.random.default_rng(5)
KEY = jax.random.key(0)
INPUTS, TARGETS, LABELS = rng.normal(size=(6, 3)), rng.normal(size=(6, 2)), np.array([0, 1, 1, 0, 1, 0])
MODULE = FullyConnected((3, 4, 2), "tanh")
NETWORK = Network(MODULE, INPUTS, TARGETS, weight_decay=0.1)
THETA = NETWORK.initial_parameters + 0.1 * rng.normal(size=NETWORK.dim)
CLASSIFIER = Network(MODULE, INPUTS, LABELS, "cross_entropy")
LINEAR = eqx.nn.Linear(3, 2, key=KEY)


def by_hand(theta, inputs=INPUTS):
    """Outputs of the network of one hidden layer in NumPy."""
    w1, b1, w2, b2 = np.split(theta, np.cumsum([12, 4, 8]))
    return np.tanh(inputs @ w1.reshape(4, 3).T + b1) @ w2.reshape(2, 4).T + b2


def test_squared_loss_and_weight_decay_by_hand():
    outputs = by_hand(THETA)
    np.testing.assert_allclose(NETWORK.outputs(THETA), outputs, atol=1e-15)
    samples = np.sum((outputs - TARGETS) ** 2, axis=1) / 2 + 0.05 * THETA @ THETA
    np.testing.assert_allclose(NETWORK.sample_values(THETA), samples, rtol=1e-14)
    assert NETWORK.value(THETA) == pytest.approx(samples.mean(), rel=1e-14)


def test_weighted_moves_the_mean_and_keeps_the_decay():
    p = np.array([0.5, 0.25, 0.25, 0, 0, 0])
    weighted = NETWORK.weighted(p)
    assert isinstance(weighted, Network)
    assert weighted.value(THETA) == pytest.approx(p @ NETWORK.sample_values(THETA), rel=1e-14)
    assert weighted.weighted(np.full(6, 1 / 6)).value(THETA) == pytest.approx(NETWORK.value(THETA), rel=1e-14)
    same = Network(MODULE, INPUTS, TARGETS, weight_decay=0.1, probabilities=p)
    assert same.value(THETA) == weighted.value(THETA)
    known = Network(MODULE, INPUTS, TARGETS, optimal_value=0.0)
    assert known.knows_optimum and not known.weighted(p).knows_optimum
    with pytest.raises(ValueError, match="one per sample"):
        NETWORK.weighted([1.0])


def cross_entropy_by_hand(outputs, labels):
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    return np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels])


@pytest.mark.parametrize(
    "targets",
    [LABELS, LABELS.astype(float), LABELS.astype(bool), np.eye(2)[LABELS]],
    ids=["int", "float", "bool", "one-hot"],
)
def test_cross_entropy_takes_labels_in_every_form(targets):
    made = Network(MODULE, INPUTS, targets, "cross_entropy")
    assert made.value(THETA) == pytest.approx(cross_entropy_by_hand(by_hand(THETA), LABELS), rel=1e-14)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.floats(-2, 3))
def test_cross_entropy_stays_finite_and_is_shift_invariant(seed, logarithm):
    theta = np.random.default_rng(seed).normal(size=26) * 10**logarithm
    made = CLASSIFIER
    value = made.value(theta)
    assert np.isfinite(value) and value >= 0
    shifted = theta.copy()
    shifted[24:] += 3.0  # both biases of the last layer
    assert made.value(shifted) == pytest.approx(value, rel=1e-12, abs=1e-12 * np.abs(theta).max() ** 2)


def test_the_parameters_are_those_of_the_module():
    np.testing.assert_array_equal(NETWORK.ravel(MODULE), NETWORK.initial_parameters)
    np.testing.assert_array_equal(NETWORK.ravel(NETWORK.unravel(THETA)), THETA)
    single = Network(eqx.nn.MLP(3, 2, 4, 1, key=KEY), INPUTS.astype(np.float32), TARGETS)
    assert single.initial_parameters.dtype == np.float64
    assert single.gradient(THETA).dtype == np.float64
    assert single.gradient(THETA.astype(np.float32)).dtype == np.float32


def test_one_compilation_serves_all_data_of_one_shape():
    traces = []

    def loss(output, target):
        traces.append(1)
        return jnp.sum((output - target) ** 4)

    first = Network(MODULE, INPUTS, TARGETS, loss)
    first.value(THETA)
    other = Network(
        FullyConnected((3, 4, 2), "tanh", seed=1), INPUTS + 1, TARGETS * 2, loss, provenance="elsewhere"
    )
    before = len(traces)
    assert other.value(THETA) == pytest.approx(np.mean(np.sum((by_hand(THETA, INPUTS + 1) - 2 * TARGETS) ** 4, 1)))
    assert len(traces) == before


def test_the_record_knows_the_loss_and_not_the_start():
    def record(**changes):
        given = {"module": MODULE, "inputs": INPUTS, "targets": TARGETS, "weight_decay": 0.1}
        return Network(**{**given, **changes}).describe()

    assert record() == NETWORK.describe() == record(module=FullyConnected((3, 4, 2), "tanh", seed=7))
    for changes in ({"inputs": INPUTS + 1}, {"weight_decay": 0.2}, {"module": FullyConnected((3, 4, 2), "relu")}):
        assert record(**changes)["fingerprint"] != record()["fingerprint"]
    assert record(provenance="digits")["data"] == "digits"
    assert NETWORK.describe()["samples"] == 6


def test_the_law_of_starts():
    law = NETWORK.initial_law("he", scale=2.0)
    start = law(KEY)
    assert isinstance(start, np.ndarray) and start.dtype == np.float64 and start.shape == (26,)
    assert np.all(start[12:16] == 0) and np.all(start[24:] == 0)  # biases as in the module
    with float64():
        starts = np.asarray(jax.vmap(law)(jax.random.split(KEY, 2000)))
    # 24,000 Gaussians: relative standard deviation sqrt(2/24000) < 0.01 of the sample variance; five of them.
    assert np.mean(starts[:, :12] ** 2) == pytest.approx(4 * 2 / 3, rel=0.05)
    assert np.mean(starts[:, 16:24] ** 2) == pytest.approx(4 * 2 / 4, rel=0.05)


class Scales(eqx.Module):
    """One factor for each entry: no weight matrix."""

    factors: jax.Array

    def __call__(self, x):
        return self.factors * x


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NETWORK.initial_law("xavier"), ValueError, "got 'xavier'"),
        (lambda: NETWORK.initial_law("he", -1), ValueError, "scale must be positive"),
        (lambda: NETWORK.initial_law("he", "a"), TypeError, "scale must be a positive number"),
        (lambda: NETWORK.initial_law(lambda *_: jnp.ones(3)), ValueError, "for a weight of shape"),
        (lambda: NETWORK.initial_law(lambda key: 0), TypeError, "the initial law failed as law"),
        (lambda: Network(Scales(jnp.ones(3)), INPUTS, INPUTS).initial_law(), ValueError, "has no weights"),
    ],
)
def test_laws_that_cannot_be(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_scalar_outputs_and_scalar_inputs():
    made = Network(eqx.nn.MLP("scalar", "scalar", 3, 1, key=KEY), INPUTS[:, 0], TARGETS[:, 0])
    theta = made.initial_parameters
    assert made.outputs(theta).shape == (6,)
    assert made.value(theta) == pytest.approx(np.mean((made.outputs(theta) - TARGETS[:, 0]) ** 2) / 2)


class Tied(eqx.Module):
    """An embedding whose matrix is also the last layer."""

    shared: eqx.nn.Shared

    def __init__(self):
        pair = (eqx.nn.Embedding(5, 3, key=KEY), eqx.nn.Linear(3, 5, key=KEY, use_bias=False))
        self.shared = eqx.nn.Shared(pair, where=lambda p: p[1].weight, get=lambda p: p[0].weight)

    def __call__(self, token):
        embedding, last = self.shared()
        return last(embedding(token))


def test_tied_weights_are_one_parameter_and_tokens_stay_integers():
    tokens = np.array([0, 3, 4, 1])
    made = Network(Tied(), tokens, tokens, "cross_entropy")
    assert made.dim == 15 and made.inputs.dtype.kind == "i"
    e = made.initial_parameters.reshape(5, 3)
    np.testing.assert_allclose(made.outputs(e.ravel()), e[tokens] @ e.T, atol=1e-15)


def test_integer_and_boolean_inputs_are_numbers():
    assert Network(MODULE, (INPUTS > 0), TARGETS).inputs.dtype == np.float64
    assert Network(MODULE, INPUTS.astype(np.uint8), TARGETS).inputs.dtype == np.float64


def test_inputs_are_copied():
    inputs = INPUTS.copy()
    made = Network(MODULE, inputs, TARGETS)
    inputs[:] = np.nan
    np.testing.assert_array_equal(made.inputs, INPUTS)


class Indexed(eqx.Module):
    weight: jax.Array
    index: jax.Array

    def __call__(self, x):
        return (self.weight @ x)[self.index]


class Keyed(eqx.Module):
    layer: eqx.nn.Linear

    def __call__(self, x, *, key):
        return self.layer(x)


class Normalised(eqx.Module):
    norm: eqx.nn.BatchNorm

    def __init__(self):
        self.norm = eqx.nn.BatchNorm(3, "batch", mode="batch")

    def __call__(self, x, state):
        return self.norm(x, state)


SQUARE = eqx.nn.Linear(3, 3, key=KEY)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Network(eqx.nn.MLP, INPUTS, TARGETS), TypeError, "got the class MLP"),
        (lambda: Network(None, INPUTS, TARGETS), TypeError, "got NoneType"),
        (lambda: Network(eqx.nn.Lambda(jnp.tanh), INPUTS, INPUTS), ValueError, "Lambda has no .* no parameters"),
        (lambda: Network(jnp.tanh, INPUTS, INPUTS), ValueError, "no parameters"),
        (
            lambda: Network(Indexed(jnp.ones((2, 3)), jnp.arange(2)), INPUTS, TARGETS),
            TypeError,
            r"module.index .*int32",
        ),
        (lambda: Network(Scales(jnp.ones(3, complex)), INPUTS, INPUTS), TypeError, "module.factors .*complex64"),
        (
            lambda: Network(Scales(np.array([1, np.nan, 1])), INPUTS, INPUTS),
            ValueError,
            "module.factors is not finite",
        ),
        (lambda: Network(Normalised(), INPUTS, INPUTS), TypeError, "module.norm keeps a state"),
        (lambda: Network(Keyed(LINEAR), INPUTS, TARGETS), TypeError, "nothing else; Keyed needs more.*'key'"),
        (
            lambda: Network(eqx.nn.Sequential([LINEAR, eqx.nn.Dropout(0.5)]), INPUTS, TARGETS),
            ValueError,
            r"switch dropout off with equinox.nn.inference_mode\(module\)",
        ),
        (lambda: Network(eqx.nn.Sequential([SQUARE] * 2), INPUTS, INPUTS), ValueError, "equinox.nn.Shared"),
        (
            lambda: Network(LINEAR, INPUTS[:, :2], TARGETS),
            ValueError,
            r"cannot be applied to one sample of shape \(2,\)",
        ),
        (lambda: Network(MODULE, INPUTS * np.nan, TARGETS), ValueError, "inputs must be finite, but sample 0"),
        (
            lambda: Network(MODULE, INPUTS, np.where(TARGETS > 0, np.inf, TARGETS)),
            ValueError,
            "targets must be finite",
        ),
        (lambda: Network(MODULE, INPUTS, TARGETS[:4]), ValueError, "6 inputs, but 4 targets"),
        (
            lambda: Network(MODULE, INPUTS, TARGETS[:, :1]),
            ValueError,
            r"shape \(2,\) for each sample, the targets \(1,\)",
        ),
        (lambda: Network(MODULE, INPUTS, LABELS), ValueError, "class labels go with loss='cross_entropy'"),
        (lambda: Network(FullyConnected((3, 1)), INPUTS, LABELS), ValueError, r"pass targets\[:, None\]"),
        (lambda: Network(MODULE, INPUTS[:0], TARGETS[:0]), ValueError, "inputs holds no samples"),
        (lambda: Network(MODULE, 3.0, TARGETS), ValueError, "inputs must have a row for each sample"),
        (
            lambda: Network(MODULE, [[1, 2, 3], [1, 2]], TARGETS),
            TypeError,
            "inputs must be one array of real numbers",
        ),
        (lambda: Network(MODULE, INPUTS + 1j, TARGETS), TypeError, "got dtype complex128"),
        (
            lambda: Network(MODULE, INPUTS, ["a", "b"] * 3, "cross_entropy"),
            TypeError,
            "class labels as integers from 0",
        ),
        (
            lambda: Network(MODULE, INPUTS, LABELS + 1, "cross_entropy"),
            ValueError,
            "from 0 to 1 .* sample 1 has label 2",
        ),
        (lambda: Network(MODULE, INPUTS, LABELS - 1, "cross_entropy"), ValueError, "sample 0 has label -1"),
        (lambda: Network(MODULE, INPUTS, LABELS / 2, "cross_entropy"), ValueError, "class labels .integers."),
        (lambda: Network(MODULE, INPUTS, TARGETS, "cross_entropy"), ValueError, "targets must be probabilities"),
        (
            lambda: Network(MODULE, INPUTS, LABELS[:, None], "cross_entropy"),
            ValueError,
            r"shape \(m,\) or \(m, 2\)",
        ),
        (
            lambda: Network(FullyConnected((3, 1)), INPUTS, LABELS, "cross_entropy"),
            ValueError,
            "the logistic loss",
        ),
        (lambda: Network(MODULE, INPUTS, TARGETS, "mse"), ValueError, "loss must be 'squared'.* got 'mse'"),
        (lambda: Network(MODULE, INPUTS, TARGETS, 3), TypeError, "loss must be"),
        (lambda: Network(MODULE, INPUTS, TARGETS, lambda f, y: f - y), TypeError, "one real scalar"),
        (lambda: Network(MODULE, INPUTS, TARGETS, lambda f: f.sum()), TypeError, "cannot be applied to an output"),
        (lambda: Network(MODULE, INPUTS, TARGETS, weight_decay=-1), ValueError, "weight_decay"),
        (lambda: Network(MODULE, INPUTS, TARGETS, weight_decay=np.nan), ValueError, "weight_decay"),
        (lambda: Network(MODULE, INPUTS, TARGETS, weight_decay="a"), TypeError, "weight_decay"),
        (lambda: Network(MODULE, INPUTS, TARGETS, probabilities=[1.0]), ValueError, "one per sample"),
        (lambda: NETWORK.outputs(np.ones(3)), ValueError, r"theta has shape \(3,\)"),
    ],
)
def test_one_clear_error(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_stochastic_gradient_descent_and_sharpness_of_a_network():
    step = gdmap.StochasticGradientDescent(NETWORK, 0.1, 2).step(THETA, [0, 3])
    p = np.array([0.5, 0, 0, 0.5, 0, 0])
    np.testing.assert_allclose(step, THETA - 0.1 * NETWORK.weighted(p).gradient(THETA), atol=1e-15)
    top = np.linalg.eigvalsh(NETWORK.hessian(THETA))[-1]
    bracket = gdmap.sharpness(NETWORK, THETA)
    assert bracket.lower <= top * (1 + 1e-9) and top <= bracket.upper * (1 + 1e-9)


@pytest.mark.slow
def test_a_sweep_from_the_law_of_starts():
    result = gdmap.sweep(
        NETWORK, [0.1, 50.0], NETWORK.initial_law("he"), n_starts=3, max_steps=500, map=gdmap.GradientDescent
    )
    assert result.sizes["start"] == 3
    fates = {step: set(gdmap.fate_names(result.sel(step_size=step)).ravel()) for step in (0.1, 50.0)}
    assert "diverged" not in fates[0.1]
    assert fates[50.0] == {"diverged"}  # the weight decay alone multiplies by 1 - 50 * 0.1


def derivatives_in_torch(torch, loss, theta, v):
    """Value, gradient and Hessian-vector product of a loss of a flat vector."""
    flat = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    value = loss(flat)
    (gradient,) = torch.autograd.grad(value, flat, create_graph=True)
    (product,) = torch.autograd.grad(gradient @ torch.tensor(v), flat)
    return value.item(), gradient.detach().numpy(), product.numpy()


def agree(made, theirs, theta, v):
    value, gradient, product = theirs
    with float64():  # one compiled program for all three
        ours = jax.jit(lambda theta, v: (made.value(theta), made.gradient(theta), made.hvp(theta, v)))(theta, v)
    assert float(ours[0]) == pytest.approx(value, abs=1e-10)
    np.testing.assert_allclose(ours[1], gradient, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours[2], product, rtol=0, atol=1e-10)


def test_a_fully_connected_network_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    x, y, v = torch.tensor(INPUTS), torch.tensor(TARGETS), rng.normal(size=26)

    def loss(flat):
        w1, b1, w2, b2 = torch.split(flat, [12, 4, 8, 2])
        hidden = torch.tanh(torch.nn.functional.linear(x, w1.reshape(4, 3), b1))
        outputs = torch.nn.functional.linear(hidden, w2.reshape(2, 4), b2)
        return ((outputs - y) ** 2).sum(dim=1).mean() / 2 + 0.05 * (flat**2).sum()

    agree(NETWORK, derivatives_in_torch(torch, loss, THETA, v), THETA, v)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_a_convolutional_network_agrees_with_pytorch(pooling):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    images, labels = rng.normal(size=(5, 1, 8, 8)), np.array([0, 2, 1, 2, 0])
    module = Convolutional((1, 8, 8), (2, 3), 3, "relu", pooling=pooling, seed=1)
    made = Network(module, images, labels, "cross_entropy")
    theta, v = made.initial_parameters + 0.1 * rng.normal(size=made.dim), rng.normal(size=made.dim)
    pool = functional.avg_pool2d if pooling == "average" else functional.max_pool2d

    def loss(flat):
        w1, b1, w2, b2, w3, b3 = torch.split(flat, [18, 2, 54, 3, 36, 3])
        z = pool(
            functional.relu(functional.conv2d(torch.tensor(images), w1.reshape(2, 1, 3, 3), b1, padding=1)), 2
        )
        z = pool(functional.relu(functional.conv2d(z, w2.reshape(3, 2, 3, 3), b2, padding=1)), 2)
        outputs = functional.linear(z.flatten(1), w3.reshape(3, 12), b3)
        return functional.cross_entropy(outputs, torch.tensor(labels))

    agree(made, derivatives_in_torch(torch, loss, theta, v), theta, v)

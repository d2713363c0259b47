import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from gdmap import Network
from gdmap.engines.precision import float64
from gdmap.models import ACTIVATIONS, INITIAL_LAWS, Attention, Convolutional, FullyConnected, Residual
from gdmap.models.convolutional import convolved, pooled

rng = np.random.default_rng(0)
SAMPLES = 4
LABELS = np.array([0, 1, 1, 0])
IMAGES = rng.normal(size=(SAMPLES, 4, 4))


def network(module, seed=0):
    """The module on a few images, with biases and norms moved off their special values."""
    made = Network(module, IMAGES, LABELS, "cross_entropy", weight_decay=0.01)
    theta = made.initial_parameters
    return made, theta + 0.3 * np.random.default_rng(seed).normal(size=made.dim)


CASES = {
    "fully connected, tanh": FullyConnected((16, 2, 2), "tanh"),
    "convolutional, relu, maximum": Convolutional((4, 4), (2,), 2, "relu", pooling="max"),
    "attention, gelu, norms": Attention(4, 2, 2, heads=2, hidden=2),
    "residual, silu": Residual(16, 2, 2, "silu", blocks=1),
}


@pytest.mark.parametrize("name", CASES)
def test_derivatives_agree_with_finite_differences_and_dense_autodiff(name):
    check_derivatives(*network(CASES[name]))


def check_derivatives(made, theta):
    """Value, gradient, Hessian-vector product and Hessian of one network against one another."""
    v = np.random.default_rng(1).normal(size=made.dim) / np.sqrt(made.dim)
    # Central differences of step h err by h^2 times a third derivative, below 1e2 here, and by rounding over h.
    # Kinks are far from these points on that scale: a crossing would show as an error of the order of h or more.
    h, tolerance = 1e-5, 1e-8

    @jax.jit  # one compiled program for all of them
    def everything(theta):
        return made.value(theta), made.gradient(theta), made.hvp(theta, v), made.hessian(theta)

    with float64():
        at, forward, back = (jax.tree.map(np.asarray, everything(theta + shift * v)) for shift in (0, h, -h))
    _, gradient, product, hessian = at
    assert (forward[0] - back[0]) / (2 * h) == pytest.approx(gradient @ v, abs=tolerance)
    curvature = (forward[1] - back[1]) / (2 * h)
    np.testing.assert_allclose(product, curvature, rtol=0, atol=tolerance)
    np.testing.assert_allclose(product, hessian @ v, rtol=0, atol=1e-13 * (1 + np.abs(hessian).max()))
    assert hessian.shape == (made.dim, made.dim)
    np.testing.assert_array_equal(hessian, hessian.T)
    assert gradient.dtype == hessian.dtype == np.float64


def test_activations_have_the_derivatives_of_their_values():
    z = np.array([-3.1, -0.8, -0.05, 0.07, 0.9, 2.3])  # away from the kinks at 0
    h = 1e-5

    @jax.jit
    def jets(z):
        def of(activation):
            slope = jax.grad(activation)
            return jnp.stack([jax.vmap(f)(z) for f in (activation, slope, jax.grad(slope))])

        return {name: of(activation) for name, activation in ACTIVATIONS.items()}

    with float64():
        at, forward, back = (jax.tree.map(np.asarray, jets(jnp.asarray(points))) for points in (z, z + h, z - h))
    for name in ACTIVATIONS:
        differences = (forward[name][:2] - back[name][:2]) / (2 * h)
        np.testing.assert_allclose(at[name][1:], differences, rtol=0, atol=1e-9, err_msg=name)
    for name in ("relu", "leaky_relu", "elu"):
        np.testing.assert_array_equal(at[name][0, 3:], z[3:])
    np.testing.assert_allclose(at["leaky_relu"][0, :3], 0.01 * z[:3])
    np.testing.assert_allclose(at["elu"][0, :3], np.expm1(z[:3]))
    np.testing.assert_allclose(at["silu"][0], z / (1 + np.exp(-z)))
    np.testing.assert_allclose(at["softplus"][0], np.log1p(np.exp(z)))
    np.testing.assert_allclose(at["gelu"][0], z * norm.cdf(z), atol=1e-15)  # not the approximation by tanh


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "make",
    [
        lambda s: Convolutional((4, 4), (2, 2), 2, s, pooling="average"),
        lambda s: Convolutional((4, 4), (2, 2), 2, s, pooling="max"),
        lambda s: Attention(4, 2, 2, s, blocks=2),
        lambda s: Residual(16, 3, 2, s),
        lambda s: FullyConnected((16, 4, 3, 2), s),
    ],
)
def test_every_network_with_every_activation(make, activation):
    check_derivatives(*network(make(activation)))


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "pool", "bias"), [(3, 2, True), (1, 1, False), (5, 3, True)])
def test_convolution_and_pooling_are_those_of_equinox(kernel, pool, bias):
    with float64():
        layer = eqx.nn.Conv2d(
            2, 3, kernel, padding="SAME", use_bias=bias, key=jax.random.key(1), dtype=jnp.float64
        )
        z = jnp.asarray(rng.normal(size=(2, 6, 3 * pool)))
        theirs = layer(z)
        average = eqx.nn.AvgPool2d(pool, pool)(theirs)
        maximum = eqx.nn.MaxPool2d(pool, pool)(theirs)
        for stride in {1, pool}:
            ours = convolved(layer, z, stride)
            average_of_ours, maximum_of_ours = (pooled(ours, name, pool // stride) for name in ("average", "max"))
            np.testing.assert_allclose(average_of_ours, average, rtol=0, atol=1e-13)
            np.testing.assert_allclose(maximum_of_ours, maximum, rtol=0, atol=1e-13)


def test_attention_by_hand():
    x = rng.normal(size=(5, 3))
    module = Attention(3, 4, 2, "tanh", heads=2, hidden=3, seed=2)
    made = Network(module, x[None], [[0.0, 0.0]])

    def normalised(z):
        return (z - z.mean(axis=1, keepdims=True)) / np.sqrt(z.var(axis=1, keepdims=True) + 1e-5)

    block = module.blocks[0]
    z = x @ module.embed.weight.T
    q, k, v = (
        normalised(z) @ layer.weight.T for layer in (block.attend.query, block.attend.key, block.attend.value)
    )
    heads = []
    for part in (slice(0, 2), slice(2, 4)):
        scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(2))
        heads.append(scores / scores.sum(axis=1, keepdims=True) @ v[:, part])
    z = z + np.hstack(heads)
    z = z + np.tanh(normalised(z) @ block.hidden.weight.T) @ block.back.weight.T
    expected = z.mean(axis=0) @ module.last.weight.T
    np.testing.assert_allclose(made.outputs(made.initial_parameters)[0], expected, atol=1e-13)
    order = [3, 1, 4, 0, 2]  # without positions, the order of the tokens is nothing to the network
    shuffled = Network(module, x[None, order], [[0.0, 0.0]])
    np.testing.assert_allclose(shuffled.outputs(made.initial_parameters)[0], expected, atol=1e-13)


def test_residual_by_hand():
    module = Residual(2, 3, 1, "tanh", blocks=1, seed=1)
    x = np.array([0.3, -0.7])
    into, out_of = module.blocks[0]
    z = module.embed.weight @ x
    z = z + out_of.weight @ np.tanh(into.weight @ z)
    made = Network(module, [x], [[0.0]])
    np.testing.assert_allclose(made.outputs(made.initial_parameters)[0], module.last.weight @ z, atol=1e-14)


@pytest.mark.parametrize(
    ("law", "variance"), [("he", 2 / 18), ("glorot", 2 / (18 + 9 * 64)), ("lecun", 1 / 18)], ids=list(INITIAL_LAWS)
)
def test_laws_have_their_variance(law, variance):
    module = Convolutional((2, 2, 2), (64,), 2, law=law, seed=3)
    weight = module.convolutions[0].weight
    assert weight.shape == (64, 2, 3, 3) and weight.dtype == np.float64
    # The sample variance of n = 1152 Gaussians has relative standard deviation sqrt(2/n) = 0.042; four of them.
    assert np.mean(weight**2) == pytest.approx(variance, rel=0.17)
    assert np.all(module.convolutions[0].bias == 0)
    other = Convolutional((2, 2, 2), (64,), 2, law=law, seed=4)
    assert not np.array_equal(other.convolutions[0].weight, weight)
    again = Convolutional((2, 2, 2), (64,), 2, law=law, seed=3)
    np.testing.assert_array_equal(again.convolutions[0].weight, weight)


def test_a_law_of_ones_own():
    module = FullyConnected(
        (4, 3, 2), law=lambda key, shape, fan_in, fan_out: jnp.full(shape, fan_in + fan_out / 10)
    )
    np.testing.assert_array_equal(module.layers[0].weight, np.full((3, 4), 4.3))
    np.testing.assert_array_equal(module.layers[1].weight, np.full((2, 3), 3.2))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FullyConnected((3,)), ValueError, "at least 2 numbers"),
        (lambda: FullyConnected(3), TypeError, "widths must be a sequence"),
        (lambda: FullyConnected((3, 0, 2)), ValueError, "positive integer, got 0"),
        (lambda: FullyConnected((3, 2.0)), TypeError, "positive integer, got 2.0"),
        (lambda: FullyConnected((3, True)), TypeError, "positive integer, got True"),
        (lambda: FullyConnected((3, 2), bias="no"), TypeError, "bias must be True or False"),
        (lambda: FullyConnected((3, 2), seed=-1), ValueError, "seed must be a non-negative integer"),
        (lambda: FullyConnected((3, 2), seed=0.5), TypeError, "seed must be a non-negative integer"),
        (lambda: FullyConnected((3, 2), "swish"), ValueError, "activation must be 'relu', .* got 'swish'"),
        (lambda: FullyConnected((3, 2), eqx.nn.PReLU), TypeError, "activation must be"),
        (lambda: FullyConnected((3, 2), eqx.nn.PReLU()), TypeError, "PReLU has parameters of its own"),
        (lambda: FullyConnected((3, 2), np.tanh), TypeError, "written with jax.numpy rather than numpy"),
        (lambda: FullyConnected((3, 2), jnp.sum), TypeError, "sum must act entry by entry"),
        (lambda: FullyConnected((3, 2), law="xavier"), ValueError, "initial law must be 'he', .* got 'xavier'"),
        (lambda: FullyConnected((3, 2), law=3), TypeError, "initial law must be"),
        (
            lambda: FullyConnected((3, 2), law=lambda *_: jnp.ones(3)),
            ValueError,
            r"shape \(3,\) for a weight .*\(2, 3\)",
        ),
        (lambda: FullyConnected((3, 2), law=lambda k, s, a, b: jnp.full(s, jnp.nan)), ValueError, "not finite"),
        (lambda: FullyConnected((3, 2), law=lambda k, s, a, b: jnp.ones(s, complex)), TypeError, "complex"),
        (
            lambda: FullyConnected((3, 2), law=jax.nn.initializers.he_normal()),
            TypeError,
            "an initializer of jax.nn goes",
        ),
        (lambda: Convolutional((4, 4), 2, 2), TypeError, "channels must be a sequence"),
        (lambda: Convolutional((1, 1, 4, 4), (2,), 2), ValueError, "image_shape must be"),
        (lambda: Convolutional((4, 4), (2,), 2, kernel=2), ValueError, "kernel must be odd"),
        (lambda: Convolutional((4, 6), (2, 2), 2), ValueError, "2 x 3 before convolution 2"),
        (lambda: Convolutional((4, 4), (2,), 2, pooling="avg"), ValueError, "pooling must be"),
        (lambda: Attention(3, 4, 2, heads=3), ValueError, "heads=3 must divide the width 4"),
        (lambda: Attention(3, 4, 2, layer_norm=1), TypeError, "layer_norm must be True or False"),
        (lambda: Residual(3, 4, 2, blocks=0), ValueError, "blocks must be a positive integer"),
    ],
)
def test_one_clear_error(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (FullyConnected((15, 2)), r"shape \(4, 4\) has 16 numbers, expected 15"),
        (Residual(15, 2, 2), r"shape \(4, 4\) has 16 numbers, expected 15"),
        (Convolutional((2, 2, 4), (2,), 2), r"image has shape \(4, 4\), expected \(2, 2, 4\)"),
        (Attention(5, 2, 2), r"shape \(4, 4\), expected \(tokens, 5\)"),
    ],
)
def test_samples_of_another_shape(module, message):
    with pytest.raises(ValueError, match=message):
        network(module)

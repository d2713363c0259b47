import functools
import json
import os
import subprocess
import sys
import time
from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gdmap
from gdmap.certify.step_sizes import exact_step_size, exact_step_sizes, in_words
from gdmap.engines.program import UnsupportedProgramError
from tests.certify import networks

QUARTIC = gdmap.Function(lambda t: t[0] ** 4 + t[1] ** 2 / 2, 2)
PRODUCT = gdmap.Function(lambda t: 0.5 * (t[0] * t[1] - 1) ** 2, 2)
FIGURE_1 = gdmap.Function(
    lambda t: jnp.where(jnp.abs(t[0]) <= 2, 0.5 * t[0] ** 4 - 3 * t[0] ** 2 + 8, t[0] ** 2), 1
)
X, Y = np.array([0.9, 2.5, -1.0]), np.array([0.5, 1.0, -0.3])


@functools.cache
def relu_121(weight_decay=0.0):
    """theory.md 5.1: [1, 2, 1] with biases on three samples."""

    def loss(t, x, y):
        hidden = jax.nn.relu(t[:2] * x + t[2:4])
        return 0.5 * (t[4:6] @ hidden + t[6] - y) ** 2 + weight_decay / 2 * jnp.sum(t**2)

    return gdmap.Objective(loss, np.ones(7), data=(X, Y))


@functools.cache
def bias_free(m=5):
    rng = np.random.default_rng(0)

    def loss(t, x, y):
        hidden = jax.nn.relu(t[4:8].reshape(2, 2) @ jax.nn.relu(t[:4].reshape(2, 2) @ x))
        return 0.5 * (t[8:] @ hidden - y) ** 2

    return gdmap.Objective(loss, np.ones(10), data=(rng.standard_normal((m, 2)), rng.standard_normal(m)))


@functools.cache
def unreached(weight_decay=0.1):
    """A tanh network with weight decay whose second input is always zero."""
    rng = np.random.default_rng(1)
    inputs = np.stack([rng.standard_normal(6), np.zeros(6)], 1)

    def loss(t, x, y):
        hidden = jnp.tanh(t[:4].reshape(2, 2) @ x)
        return 0.5 * (t[4:] @ hidden - y) ** 2 + weight_decay / 2 * jnp.sum(t**2)

    return gdmap.Objective(loss, np.ones(6), data=(inputs, rng.standard_normal(6)))


def proved(objective, step_size, verdict, **options):
    """The certificate, after its verdict and its record have been checked."""
    certificate = gdmap.certify_nonsingular(objective, step_size, **options)
    assert certificate.verdict == verdict, certificate.explain()
    check = gdmap.check_proof(objective, json.loads(json.dumps(certificate.proof)))
    assert check, check.reason
    return certificate


# theory.md 3.3, 6.1, 6.6 and golden.md 7


def test_figure_1():
    assert "measure" in proved(FIGURE_1, 0.5, "singular").scope
    assert proved(FIGURE_1, 0.25, "non-singular").scope == "all of parameter space"
    (only,) = gdmap.exceptional_step_sizes(FIGURE_1)
    assert only.exact == Fraction(1, 2) and only.confirmed


def test_quartic_is_singular_at_step_size_1_and_at_no_other():
    assert proved(QUARTIC, 1.0, "singular").scope == "all of parameter space"
    for step_size in (0.1, 0.999999, 1 + 2.0**-52, 1e-3, 1e6, Fraction(1, 3)):
        proved(QUARTIC, step_size, "non-singular")
    found = gdmap.exceptional_step_sizes(QUARTIC)
    assert [one.exact for one in found] == [1] and found.complete


def test_a_determinant_that_vanishes_at_a_point_is_not_singular():
    proved(PRODUCT, 1.0, "non-singular")
    assert proved(PRODUCT, None, "non-singular").proved_up_to == np.inf


def test_quadratic_form_is_singular_exactly_at_the_reciprocals():
    curvatures = [1.0, 2.0, 5.0]
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))
    diagonal = gdmap.Function(lambda t: 0.5 * jnp.sum(jnp.array(curvatures) * t**2), 3)
    assert sorted(one.exact for one in gdmap.exceptional_step_sizes(diagonal)) == [
        Fraction(1, 5),
        Fraction(1, 2),
        1,
    ]
    rotated = gdmap.Function(lambda t: 0.5 * jnp.sum(jnp.array(curvatures) * (rotation @ t) ** 2), 3)
    found = gdmap.exceptional_step_sizes(rotated)
    assert [float(one.step_size) for one in found] == pytest.approx([0.2, 0.5, 1.0], rel=1e-12)
    assert all(one.confirmed for one in found) and found.complete


@pytest.mark.parametrize("curvature", [0.25, 3.0])
def test_must_fail_a_constant_map_is_never_called_non_singular(curvature):
    loss = gdmap.Function(lambda t: curvature * t[0] ** 2 / 2, 1)
    proved(loss, 1 / Fraction(curvature), "singular")
    proved(loss, 0.9 / curvature, "non-singular")


def test_dead_layer_with_output_bias():
    loss = relu_121()
    assert proved(loss, 1.0, "singular").nearest_exceptional.relative_distance == 0
    certificate = proved(loss, 0.9, "non-singular")
    assert certificate.scope == "all of parameter space"
    assert certificate.nearest_exceptional.exact == 1
    assert "dead" in certificate.nearest_exceptional.reason


def test_bias_free_relu_network_has_no_exceptional_step_size():
    assert proved(bias_free(), None, "non-singular").proved_up_to == np.inf
    proved(bias_free(), 1.0, "non-singular")


def test_linear_networks_of_depth_two_and_more_have_none():
    rng = np.random.default_rng(0)
    loss = gdmap.LinearNetwork((2, 2, 2), rng.standard_normal((5, 2)), rng.standard_normal((5, 2)))
    assert proved(loss, None, "non-singular").scope == "all of parameter space"
    one_layer = gdmap.LinearNetwork((2, 1), rng.standard_normal((5, 2)), rng.standard_normal((5, 1)))
    found = gdmap.exceptional_step_sizes(one_layer)
    inputs = one_layer.hessian(np.zeros(2))
    assert [float(one.step_size) for one in found] == pytest.approx(
        sorted(1 / np.linalg.eigvalsh(inputs)), rel=1e-9
    )


# Sufficient conditions


def test_bounded_activation_and_cross_entropy_every_step_size():
    loss = networks.mlp([3, 4, 3], loss=networks.cross_entropy)
    certificate = proved(loss, None, "non-singular")
    assert "growth" in certificate.method and certificate.proved_up_to == np.inf


def test_assumed_bounded_loss_is_recorded_as_an_assumption(monkeypatch):
    loss = gdmap.Function(lambda t: jnp.sin(t[0] ** 2 * t[1]) / (1 + t[1] ** 2), 2)
    # What is proved needs no assumption.
    assert proved(loss, 7.0, "non-singular", assume_bounded=True).assumptions == ()
    monkeypatch.setattr("gdmap.certify.non_singularity.claims_everywhere", lambda *arguments: iter([]))
    certificate = proved(loss, 7.0, "non-singular", assume_bounded=True)
    assert "bounded" in certificate.assumptions[0] and "Assumed" in certificate.explain()
    assert "assuming" in gdmap.check_proof(loss, certificate.proof).reason
    assert not gdmap.check_proof(loss, changed(certificate.proof, ["assumptions"], []))
    # A parabola is not bounded, whatever one says.
    parabola = gdmap.Function(lambda t: t[0] ** 2 / 2, 1)
    assert gdmap.certify_nonsingular(parabola, 1.0, assume_bounded=True).verdict == "singular"


def test_momentum_and_nesterov():
    heavy_ball = gdmap.Optimiser(QUARTIC, optax.sgd, learning_rate=1.0, momentum=0.5)
    certificate = gdmap.certify_nonsingular(heavy_ball)
    assert certificate.verdict == "non-singular" and certificate.proved_up_to == np.inf
    assert gdmap.check_proof(heavy_ball, certificate.proof)
    assert not gdmap.check_proof(QUARTIC, certificate.proof)
    nesterov = gdmap.Optimiser(QUARTIC, optax.sgd, learning_rate=1.0, momentum=0.5, nesterov=True)
    assert gdmap.certify_nonsingular(nesterov).verdict == "singular"
    assert gdmap.certify_nonsingular(gdmap.GradientDescent(QUARTIC, 1.0)).verdict == "singular"
    with pytest.raises(ValueError, match="affine"):
        gdmap.certify_nonsingular(gdmap.Optimiser(QUARTIC, optax.adam, limit=True, learning_rate=0.1))
    with pytest.raises(ValueError, match="own step size"):
        gdmap.certify_nonsingular(nesterov, 0.1)


def test_schedules_ask_for_every_step_size():
    assert proved(QUARTIC, [0.1, 0.5, 0.9], "non-singular").step_sizes[1] == Fraction(1, 2)
    assert gdmap.certify_nonsingular(QUARTIC, [0.5, 1.0]).verdict == "singular"


def test_constant_directions_that_are_no_coordinates():
    loss = gdmap.Function(lambda t: jnp.tanh(t[0] + t[1]) + (t[0] - t[1]) ** 2, 2)
    proved(loss, 0.25, "singular")
    (only,) = gdmap.exceptional_step_sizes(loss)
    assert only.exact == Fraction(1, 4) and only.confirmed


def test_a_schedule_names_the_singular_step_sizes():
    certificate = gdmap.certify_nonsingular(QUARTIC, [0.5, 1, 2])
    assert certificate.singular_step_sizes == (1,)
    assert "singular for step size 1.0 (1 of the 3 asked for)" in certificate.explain()


def test_given_weights_are_about_their_own_piece():
    huber = gdmap.Function(lambda w: jnp.where(jnp.abs(w[0]) < 1, w[0] ** 2 / 2, jnp.abs(w[0]) - 0.5), 1)
    assert gdmap.certify_nonsingular(huber, 1).verdict == "singular"
    assert "given weights" in proved(huber, 1, "singular", theta=[0.5]).scope
    assert "given weights" in proved(huber, 1, "non-singular", theta=[3.0]).scope


def test_parameters_are_called_by_their_names():
    def loss(p, x, y):
        return (p["v"] @ jax.nn.relu(p["w"] * x + p["b"]) + p["c"] - y) ** 2 / 2

    params = {"w": np.ones(2), "b": np.ones(2), "v": np.ones(2), "c": np.ones(())}
    (only,) = gdmap.exceptional_step_sizes(gdmap.Objective(loss, params, data=(X, Y)))
    assert "['c']" in only.reason


@pytest.mark.slow
def test_no_mini_batch_is_singular():
    proved(bias_free(), 0.3, "non-singular", batch_size=2)
    proved(relu_121(), 0.9, "non-singular", batches=[[0], [1, 2]])


def test_mini_batches():
    assert "batch" in proved(relu_121(), 1.0, "singular", batch_size=1).scope
    with pytest.raises(TypeError, match="samples"):
        gdmap.certify_nonsingular(QUARTIC, 0.1, batch_size=1)
    with pytest.raises(ValueError, match="batch_size"):
        gdmap.certify_nonsingular(relu_121(), 0.1, batch_size=4)


# Exact numbers


def test_near_miss_with_weight_decay():
    """The binary number 0.1 times 10 is not 1."""
    certificate = proved(unreached(), 10.0, "non-singular")
    nearest = certificate.nearest_exceptional
    assert 0 < nearest.relative_distance < 1e-15
    assert nearest.exact == 1 / Fraction(0.1)
    assert "Warning" in certificate.explain()
    exact = proved(unreached(), 10.0, "singular", exact_decimals=True)
    assert exact.nearest_exceptional.exact == 10
    assert gdmap.certify_nonsingular(unreached(), Fraction(10)).verdict == "non-singular"


def test_step_sizes_are_the_numbers_they_are():
    assert exact_step_size(0.1) == Fraction(3602879701896397, 2**55)
    assert exact_step_size(0.1, exact_decimals=True) == exact_step_size("0.1") == Fraction(1, 10)
    assert exact_step_size(np.float32(0.1)) == Fraction(float(np.float32(0.1)))
    assert exact_step_size(np.float32(0.1), exact_decimals=True) == Fraction(1, 10)
    assert exact_step_size(np.array(0.5)) == exact_step_size("1/2") == Fraction(1, 2)
    assert exact_step_sizes([0.5, 0.5, 1]) == (Fraction(1, 2), Fraction(1))
    assert in_words(Fraction(0.1)) != in_words(Fraction(1, 10)) == "0.1"


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, "fast", "1/0", [], [0.1, -1.0]])
def test_bad_step_sizes(bad):
    with pytest.raises(ValueError, match="step_size"):
        gdmap.certify_nonsingular(QUARTIC, bad)


@pytest.mark.parametrize("bad", [True, 1j, {}])
def test_step_sizes_of_other_types(bad):
    with pytest.raises(TypeError, match="step size"):
        gdmap.certify_nonsingular(QUARTIC, bad)


def test_weights_of_interest():
    loss = relu_121()
    theta = np.random.default_rng(0).standard_normal(7)
    certificate = proved(loss, 50.0, "non-singular", theta=theta.astype(np.float32), max_pieces=1)
    assert "piece" in certificate.scope
    with pytest.raises(ValueError, match="finite"):
        gdmap.certify_nonsingular(loss, 0.1, theta=np.full(7, np.nan))
    with pytest.raises(ValueError, match="shape"):
        gdmap.certify_nonsingular(loss, 0.1, theta=np.ones(3))
    with pytest.raises(TypeError, match="floating"):
        gdmap.certify_nonsingular(loss, 0.1, theta=np.ones(7, complex))
    with pytest.raises(ValueError, match="no piece"):  # on a kink
        gdmap.certify_nonsingular(loss, 0.1, theta=np.ones(7, int))
    with pytest.raises(TypeError, match="objective"):
        gdmap.certify_nonsingular(lambda t: t, 0.1)


# What cannot be proved


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (lambda t: jnp.sum(jnp.floor(t)), "floor"),
        (lambda t: jnp.sum(jnp.sort(t)), "sort"),
        (lambda t: jnp.linalg.det(jnp.eye(4) + jnp.outer(t[:4], t[:4])), "lu"),
        (lambda t: t[jnp.argmax(t)], "argmax"),
        (lambda t: jnp.sum(jax.lax.stop_gradient(t) * t), "stop_gradient"),
    ],
)
def test_unsupported_operations_are_named(loss, name):
    with pytest.raises(UnsupportedProgramError, match=name):
        gdmap.certify_nonsingular(gdmap.Function(loss, 5), 0.1)


def test_a_limited_domain_limits_the_scope():
    loss = gdmap.Function(lambda t: jnp.log(t[0] ** 2 + t[1] ** 2) + t[1] ** 2 / 2, 2)
    assert "connected part" in proved(loss, 0.5, "non-singular").scope


def test_nan_in_the_loss_is_no_proof():
    weights = jnp.array([1.0, jnp.nan])
    loss = gdmap.Function(lambda t: jnp.sum(weights * t**2), 2)
    certificate = gdmap.certify_nonsingular(loss, 0.1)
    assert certificate.verdict == "undecided" and certificate.reason
    assert not gdmap.check_proof(loss, certificate.proof)


# Networks

NETWORKS = {
    "tanh MLP, 58": lambda: networks.mlp([4, 8, 2]),
    "gelu MLP, 542": lambda: networks.mlp([12, 16, 16, 4], activation=jax.nn.gelu),
    "convolution": networks.convolutional,
    "attention": networks.attention,
    "recurrent": networks.recurrent,
}


@pytest.mark.parametrize(
    "name",
    [  # the smallest; the others compile long
        pytest.param(name, marks=[pytest.mark.slow] * (name != "tanh MLP, 58")) for name in NETWORKS
    ],
)
@pytest.mark.parametrize("step_size", [0.1])
def test_smooth_networks_on_all_of_parameter_space(name, step_size):
    loss = NETWORKS[name]()
    assert 50 <= loss.dim <= 550
    start = time.perf_counter()
    certificate = proved(loss, step_size, "non-singular")
    assert certificate.scope == "all of parameter space" and certificate.status == "proved"
    print(name, loss.dim, f"{time.perf_counter() - start:.1f} s with the check;", certificate.method)


@pytest.mark.slow
def test_relu_network_every_pattern():
    """[2, 3, 1] with bias on 4 samples: 14 cells a unit, 14^3 patterns."""
    loss = networks.mlp([2, 3, 1], activation=jax.nn.relu, m=4)
    found = gdmap.exceptional_step_sizes(loss)
    assert found.n_pieces == 14**3 and found.complete
    assert [one.exact for one in found] == [1] and found[0].confirmed
    assert "dead" in found[0].reason


@pytest.mark.slow
def test_relu_network_certified_piece_by_piece():
    loss = networks.mlp([2, 3, 1], activation=jax.nn.relu, m=4)
    certificate = proved(loss, 0.9, "non-singular")
    assert "2744 pieces" in certificate.method and certificate.scope == "all of parameter space"
    proved(loss, 1.0, "singular")


@pytest.mark.slow
def test_max_pooling_and_relu_at_a_usual_step_size():
    loss = networks.convolutional(activation=jax.nn.relu, pool=eqx.nn.MaxPool2d)
    certificate = gdmap.certify_nonsingular(loss, 0.01, starts=5)
    assert certificate.verdict == "non-singular"


def test_drawn_pieces_have_a_confidence():
    loss = networks.mlp([2, 3, 3, 1], activation=jax.nn.relu, m=3)
    certificate = proved(loss, 40.0, "non-singular", starts=20, confidence=0.9)
    assert certificate.status == "estimated"
    # 1 - 0.1^(1/20), one-sided.
    assert certificate.probability.lower == pytest.approx(0.1 ** (1 / 20), rel=1e-9)
    assert certificate.probability.confidence == 0.9
    assert "probability" in certificate.scope


@pytest.mark.slow
def test_pieces_drawn_by_a_given_law():
    loss = networks.mlp([2, 3, 3, 1], activation=jax.nn.relu, m=3)
    law = proved(
        loss, 40.0, "non-singular", starts=lambda key: 2 * jax.random.normal(key, (loss.dim,)), confidence=0.5
    )
    assert law.proof["claims"][0]["law"] == "given"


@pytest.mark.slow
def test_large_tanh_network():
    loss = networks.mlp([30, 50, 50, 20], m=64)
    assert 5000 <= loss.dim <= 5200
    start = time.perf_counter()
    certificate = gdmap.certify_nonsingular(loss, 5.0)
    seconds = time.perf_counter() - start
    assert certificate.verdict == "non-singular" and certificate.scope == "all of parameter space"
    print(f"{loss.dim} parameters: {seconds:.1f} s, {certificate.method}")


@pytest.mark.slow
def test_large_relu_network():
    loss = networks.mlp([20, 30, 30, 15], activation=jax.nn.relu, m=16)
    assert loss.dim >= 2000
    assert gdmap.certify_nonsingular(loss, 0.1).scope == "all of parameter space"
    certificate = gdmap.certify_nonsingular(loss, 30.0, starts=20)
    assert certificate.probability.lower == pytest.approx(0.05 ** (1 / 20), rel=1e-9)


# Records


def changed(record, path, value):
    copy = json.loads(json.dumps(record))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copy


def test_tampered_records_are_rejected():
    from gdmap.certify.record import digest

    record = gdmap.certify_nonsingular(QUARTIC, 0.9).proof
    singular = gdmap.certify_nonsingular(QUARTIC, 1.0).proof
    other = gdmap.certify_nonsingular(PRODUCT, 0.9).proof
    changes = [
        changed(record, ["statement", "step_sizes"], ["1"]),
        changed(record, ["statement", "step_sizes"], ["-1"]),
        changed(record, ["statement", "verdict"], "singular"),
        changed(record, ["claims"], []),
        changed(record, ["claims", 0, "found"], {"curvature": "0"}),
        changed(record, ["statement", "scope"], "piece"),
        changed(record, ["statement", "batches"], {"size": 1}),
        changed(record, ["statement", "probability"], {"at_least": 1.0, "confidence": 1.0}),
        changed(singular, ["claims"], [{"kind": "each batch", "batches": [], "found": {"batches": []}}]),
        changed(record, ["claims", 0, "kind"], "magic"),
        changed(record, ["format"], "gdmap proof 0"),
        changed(record, ["objective", "fingerprint"], "0" * 64),
        changed(singular, ["claims", 0, "action"], [["2"]]),
        changed(singular, ["claims", 0, "basis"], [["1", "0"]]),
        changed(singular, ["statement", "step_sizes"], ["2"]),
        {},
        other,
    ]
    for tampered in changes:
        # Also when the digest has been made anew.
        for version in (tampered, {**tampered, "digest": digest(tampered)}):
            check = gdmap.check_proof(QUARTIC, version)
            assert not check and check.reason
    assert not gdmap.check_proof(QUARTIC, changed(record, ["versions", "jax"], "0.0"))


@pytest.mark.slow  # test_certify of the command line checks one in a new process by default
def test_a_record_checks_in_a_new_process(tmp_path):
    """Nothing of what searches for proofs is imported there."""
    (tmp_path / "loss.py").write_text(
        "import gdmap\nquartic = gdmap.Function(lambda t: t[0] ** 4 + t[1] ** 2 / 2, 2)\n"
    )
    program = (
        "import sys, loss\n"
        "from gdmap.certify.record import check_proof\n"
        "check = check_proof(loss.quartic, 'proof.json')\n"
        "assert check, check.reason\n"
        "made = ['search', 'non_singularity', 'certificate', 'exceptional']\n"
        "imported = [name for name in made if f'gdmap.certify.{name}' in sys.modules]\n"
        "assert not imported, imported\n"
        "print(check.reason)\n"
    )
    gdmap.certify_nonsingular(QUARTIC, 0.9).save(tmp_path / "proof.json")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout
    (tmp_path / "proof.json").write_text("{")
    assert "JSON" in gdmap.check_proof(QUARTIC, tmp_path / "proof.json").reason
    assert "cannot be read" in gdmap.check_proof(QUARTIC, tmp_path / "none.json").reason


# Pieces


def test_pieces_of_a_small_network():
    loss = relu_121()
    listed = list(gdmap.pieces(loss))
    assert len(listed) == 36
    assert len({piece.patterns[0].tobytes() for piece in listed}) == 36
    for piece in listed:
        hidden = np.maximum(np.outer(X, piece.theta[:2]) + piece.theta[2:4], 0)
        np.testing.assert_array_equal(piece.patterns[0], hidden > 0)
        assert piece.function.value(piece.theta) == pytest.approx(loss.value(piece.theta), rel=1e-14)
    assert listed[0].degree == 4
    with pytest.raises(ValueError, match="cannot be listed"):
        gdmap.pieces(bias_free())
    with pytest.raises(ValueError, match="max_pieces"):
        gdmap.pieces(loss, max_pieces=3)


def test_sampled_pieces_and_the_probability_of_unseen_ones():
    loss = relu_121()
    few = gdmap.sample_pieces(loss, 400, scale=1.0)
    assert few.n_starts == 400 == few.counts.sum() and len(few.pieces) == len(few.counts) <= 36
    assert few.unseen.status == "estimated" and few.unseen.confidence == 0.95
    # The true probability of the unseen pieces, from other draws.
    seen = {piece.patterns[0].tobytes() for piece in few.pieces}
    fresh = gdmap.gaussian_starts(4000, 7, seed=1)
    sides = np.maximum(X[None, :, None] * fresh[:, None, :2] + fresh[:, None, 2:4], 0) > 0
    missing = np.mean([side.tobytes() not in seen for side in sides])
    assert missing <= few.unseen.upper
    with pytest.raises(ValueError, match="starts"):
        gdmap.sample_pieces(loss, 0)


def test_the_piece_of_a_point_and_its_mask_polynomial():
    loss = bias_free()
    theta = np.random.default_rng(3).standard_normal(10)
    piece = gdmap.piece(loss, theta)
    assert len(piece.patterns) == 2 and piece.degree == 6
    near = theta + 1e-9
    assert piece.function.value(near) == pytest.approx(loss.value(near), rel=1e-12)
    # The mask polynomial goes on beyond the piece.
    assert np.isfinite(piece.function.value(-theta)) and piece.function.value(-theta) != loss.value(-theta)
    with pytest.raises(ValueError, match="no piece"):
        gdmap.piece(loss, np.zeros(10))

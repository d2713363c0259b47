"""Losses and records that once got a proof they did not deserve."""

import json
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gdmap
from gdmap.certify.record import digest

DEAD = gdmap.Function(lambda t: t[0] ** 2 / 2, 1)


def forged(record, **changes):
    copy = json.loads(json.dumps(record))
    for path, value in changes.items():
        place = copy["statement"] if path in copy["statement"] else copy
        place[path] = value
    return {**copy, "digest": digest(copy)}


def quartic_where(condition):
    """Singular at step size 1 where the condition holds (``t^2 / 2``), ``t^4`` elsewhere, and a kink besides."""
    return gdmap.Function(
        lambda t: jnp.where(condition(t[0]), t[0] ** 2 / 2, t[0] ** 4) + jax.nn.relu(t[1]) ** 2 * 0.3 + t[1] ** 4,
        2,
    )


@pytest.mark.parametrize(
    "condition",
    [
        lambda x: jnp.isnan(jnp.sqrt(x)),
        lambda x: ~jnp.isfinite(jnp.log(x)),
        lambda x: ~(jnp.sqrt(x) > -1),
        lambda x: jnp.isinf(1 / jax.nn.relu(x)),
        lambda x: jnp.isnan(jax.nn.relu(x) / jax.nn.relu(x)),
    ],
)
def test_guards_against_undefined_numbers(condition):
    certificate = gdmap.certify_nonsingular(quartic_where(condition), 1.0, starts=10)
    assert certificate.verdict != "non-singular"
    assert not gdmap.exceptional_step_sizes(quartic_where(condition), starts=3).complete


@pytest.mark.parametrize(
    "loss",
    [
        lambda t: jnp.tanh(t[0] / jnp.zeros(())),
        lambda t: jnp.tanh(t[0] + jnp.log(-jnp.ones(()))),
        lambda t: jnp.cos(t[0] * jnp.sqrt(-jnp.ones(()))),
        lambda t: jnp.tanh(jnp.power(-1.0, t[0])),
        lambda t: t[0] ** 2 / 3 + jnp.nan,
        lambda t: jnp.log(-1 - t[0] ** 2) + t[0] ** 2 / 2,
    ],
)
def test_losses_that_are_nowhere_a_number(loss):
    for step_size in (0.5, None):
        assert gdmap.certify_nonsingular(gdmap.Function(loss, 1), step_size).verdict == "undecided"


def test_a_power_of_zero_jumps():
    def loss(t):
        switch = jnp.tanh(jnp.power(0.0, t[0]))
        return t[0] ** 4 * (1 - switch) + switch * t[0] ** 2 / 2

    certificate = gdmap.certify_nonsingular(gdmap.Function(loss, 1), 1.0)
    assert certificate.scope != "all of parameter space"


def test_given_weights_outside_the_domain():
    loss = gdmap.Function(lambda t: jnp.log(t[0]) + t[0] ** 2, 1)
    with pytest.raises(ValueError, match="no piece"):
        gdmap.certify_nonsingular(loss, 0.5, theta=np.array([-2.0]))
    assert gdmap.certify_nonsingular(loss, 0.5, theta=np.array([2.0])).verdict == "non-singular"


def test_draws_that_cannot_be_certified_prove_nothing():
    loss = gdmap.Function(lambda t: jnp.log(jnp.exp(jnp.max(t))) ** 2 / 2, 3)
    certificate = gdmap.certify_nonsingular(loss, 1.0, starts=10)
    assert certificate.verdict != "non-singular"


def test_functions_of_one_side_need_their_own_domain():
    for loss in (
        lambda t: jnp.sqrt(1 + jnp.abs(t[0])),
        lambda t: jnp.where(t[0] > 0, jnp.sqrt(jnp.where(t[0] > 0, t[0], 1.0)), 0.0),
        lambda t: jnp.log(1 + jax.nn.relu(t[0])),
    ):
        assert gdmap.certify_nonsingular(gdmap.Function(loss, 1), 0.5, starts=5).scope != "all of parameter space"


def test_decimals_change_the_domain_too():
    """0.3 - 0.29999999999999993 is 7e-17 as decimals, less in binary: the root is that of a square or not."""
    gap = 7e-17 - (0.3 - 0.29999999999999993)
    assert gap > 0

    def loss(t):
        shift = jnp.array(7e-17) - (jnp.array(0.3) - jnp.array(0.29999999999999993))
        return (t[0] + jnp.sqrt(t[0] ** 2 + shift)) ** 2 / 8

    decimal = gdmap.certify_nonsingular(gdmap.Function(loss, 1), 1, exact_decimals=True, starts=5)
    assert decimal.verdict != "non-singular" or decimal.scope != "all of parameter space"


def test_small_curvatures_are_curvatures():
    loss = gdmap.Function(lambda t: t[0] ** 4 + 0.5e-10 * t[1] ** 2, 2)
    assert gdmap.certify_nonsingular(loss, None).verdict == "singular"
    (only,) = gdmap.exceptional_step_sizes(loss)
    assert only.step_size.value == pytest.approx(1e10)


def test_own_derivative_rules_are_an_assumption():
    @jax.custom_jvp
    def square(x):
        return x**2

    square.defjvp(lambda primal, tangent: (primal[0] ** 2, 2 * primal[0] * tangent[0]))
    loss = gdmap.Function(lambda t: jnp.tanh(square(t[0])) + t[1] ** 4, 2)
    certificate = gdmap.certify_nonsingular(loss, 0.5)
    assert certificate.verdict == "non-singular" and "derivative rule" in certificate.assumptions[0]
    assert gdmap.check_proof(loss, certificate.proof)
    assert not gdmap.check_proof(loss, forged(certificate.proof, assumptions=[]))
    assert gdmap.certify_nonsingular(gdmap.Function(lambda t: jax.nn.relu(t[0]) ** 3, 1), 0.5).assumptions == ()


def test_forged_records():
    record = gdmap.certify_nonsingular(DEAD, 1.0).proof
    honest = gdmap.certify_nonsingular(DEAD, 0.5).proof
    nothing = {"kind": "each batch", "batches": [], "found": {"batches": []}}
    one = ["0x1.0000000000000p+0"]
    drawn = {"kind": "drawn pieces", "law": "given", "n": 3, "points": [one] * 3, "confidence": 0.5, "seed": 0}
    bounded = {"kind": "growth", "assumed_bounded": True, "found": {"bounded": "assumed"}}
    many = {"kind": "spectra", "pattern": "every", "points": [one] * 1000, "found": {}}
    for changes in (
        {"verdict": "non-singular", "claims": [nothing]},
        {"verdict": "non-singular", "claims": [nothing], "batches": []},
        {"verdict": "non-singular", "claims": [drawn], "scope": "drawn"},
        {"verdict": "non-singular", "claims": [bounded]},
        {"verdict": "non-singular", "step_sizes": "1"},
        {"step_sizes": ["1e99999999"]},
        {"step_sizes": ["1/0"]},
        {"versions": {"no-such-package": "1"}, "objective": {"fingerprint": ""}},
    ):
        assert not gdmap.check_proof(DEAD, forged(record, **changes)), changes
    for changes in ({"claims": [many]}, {"step_sizes": "12"}, {"step_sizes": "every", "up_to": "inf"}):
        assert not gdmap.check_proof(DEAD, forged(honest, **changes)), changes


@pytest.mark.parametrize(
    "options",
    [
        {"starts": 0},
        {"starts": 2.5},
        {"confidence": "high"},
        {"confidence": 1.0},
        {"scale": np.nan},
        {"seed": -1},
        {"max_pieces": "all"},
        {"batch_size": 1, "theta": np.zeros(1)},
    ],
)
def test_every_argument_is_read(options):
    with pytest.raises(ValueError, match=r"must|without"):
        gdmap.certify_nonsingular(DEAD, 0.5, **options)


@pytest.mark.parametrize("starts", [0, -1, 2.5])
def test_a_number_of_draws_is_one(starts):
    with pytest.raises(ValueError, match="starts"):
        gdmap.exceptional_step_sizes(DEAD, starts=starts)


@pytest.mark.parametrize("step_size", [10**400, Fraction(10) ** 400, "1e400", "1e-400", "9" * 500])
def test_step_sizes_beyond_floats(step_size):
    with pytest.raises(ValueError, match="step_size"):
        gdmap.certify_nonsingular(DEAD, step_size)


@pytest.mark.parametrize("step_size", [1e300, 1e-300, 1 - 2.0**-53, Fraction(10**60 + 1, 10**60)])
def test_step_sizes_far_out_and_near_misses(step_size):
    assert gdmap.certify_nonsingular(DEAD, step_size).verdict == "non-singular"

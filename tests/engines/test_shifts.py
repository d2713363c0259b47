"""Maxima that drop out again are no kinks; all others are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdmap.engines.program import flat_program
from gdmap.engines.shifts import shifts

PERMUTED = np.array([1, 0])
LABELS = np.array([2, 0])


def rows(w):
    return jnp.reshape(w, (2, 3))


def top(x):
    return jnp.max(x, 1, keepdims=True)


def log_sum(x, shift):
    return shift + jnp.log(jnp.sum(jnp.exp(x - shift), 1, keepdims=True))


DROP_OUT = {
    "softmax": lambda w: jax.nn.softmax(rows(w)).ravel()[1],
    "log_softmax": lambda w: jax.nn.log_softmax(rows(w))[np.arange(2), LABELS].sum(),
    "logsumexp": lambda w: jax.nn.logsumexp(rows(w), 1).sum(),
    "logsumexp with weights": lambda w: jax.nn.logsumexp(w, b=np.arange(1.0, 7.0)),
    "by hand": lambda w: log_sum(rows(w), top(rows(w))).sum(),
    "minimum": lambda w: log_sum(-rows(w), -jnp.min(rows(w), 1, keepdims=True)).sum(),
    "picked before it drops out": lambda w: jnp.sum(
        ((x := rows(w)) - (c := top(x)))[np.arange(2), LABELS] - jnp.log(jnp.sum(jnp.exp(x - c), 1))
    ),
    "permuted with its rows": lambda w: jnp.sum((rows(w) - top(rows(w)))[PERMUTED] + top(rows(w))[PERMUTED]),
    "powers of factors": lambda w: jnp.sum(jnp.exp(2 * (w - w.max())) / jnp.exp(w - w.max()) ** 2),
    "roots of factors": lambda w: jnp.log(jnp.sqrt(jnp.sum(jnp.exp(2 * (w - w.max()))))) + w.max(),
    "twice the maximum": lambda w: log_sum(rows(w), 2 * top(rows(w))).sum(),
    "gradient of rows": lambda w: jax.grad(lambda v: jax.nn.logsumexp(rows(v * v), 1).sum())(w).sum(),
    "chosen": lambda w: jnp.log(jnp.where(np.arange(6) < 3, e := jnp.exp(w - w.max()), 0.0) + 2 * e)[1] + w.max(),
    "masked": lambda w: jax.nn.softmax(jnp.where(np.arange(6) < 4, w, -jnp.inf))[0],
    "attention": lambda w: jnp.sum(jax.nn.softmax(rows(w) @ rows(w).T) @ rows(w)),
    "gradient": lambda w: jax.grad(lambda v: jax.nn.logsumexp(v * v))(w).sum(),
}
STAY = {
    "max": lambda w: w.max(),
    "not subtracted": lambda w: jnp.log(jnp.sum(jnp.exp(w - w.max()))),
    "of other rows": lambda w: jnp.sum(
        jnp.log(jnp.sum(jnp.exp(rows(w) - top(rows(w))), 1)) + top(rows(w))[PERMUTED, 0]
    ),
    "picked from other rows": lambda w: jnp.sum((rows(w) - top(rows(w)))[PERMUTED, 0][:1] + top(rows(w))[:1, 0]),
    "of other rows by slices": lambda w: (
        jax.lax.dynamic_slice(rows(w) - top(rows(w)), (np.int32(1), np.int32(0)), (1, 1)).sum()
        + top(rows(w))[0, 0]
    ),
    "almost cancelled": lambda w: (
        jnp.sum(jnp.full(3, 1 / 3) * 1.0) * 0 + jnp.sum((w[:3] + w.max()) * (1 / 3)) - w.max()
    ),
    "tenths": lambda w: jnp.sum((w + w.max()) * 0.1) - 0.6 * w.max(),
    "inside a sine": lambda w: jnp.sin(w - w.max()).sum(),
    "inside a relu": lambda w: jax.nn.relu(w - w.max() + 1.0).sum(),
    "compared": lambda w: jnp.where(w - w.max() > -1, w, 0.0).sum(),
    "chosen or one": lambda w: jnp.log(jnp.where(np.arange(6) < 3, jnp.exp(w - w.max()), 1.0)).sum() + 3 * w.max(),
    "chosen or zero": lambda w: jnp.sum(jnp.where(np.arange(6) < 3, w - w.max(), 0.0)) + 6 * w.max(),
    "a choice by the shift": lambda w: jnp.sum(jnp.where(jnp.exp(w - w.max()) > 0.5, w, 0.0)),
    "one plus": lambda w: jnp.log(1 + jnp.sum(jnp.exp(w - w.max()))) + w.max(),
    "another base": lambda w: jnp.log2(jnp.sum(2.0 ** (w - w.max()))) + w.max(),
    "maximum of a part": lambda w: jnp.sum(jnp.exp(w - w.max()) / jnp.sum(jnp.exp(w))),
}


def reduced(function):
    program = flat_program(function, (6,))
    places = [i for i, e in enumerate(program.jaxpr.eqns) if e.primitive.name in ("reduce_max", "reduce_min")]
    assert places
    return places, shifts(program)


@pytest.mark.parametrize("name", DROP_OUT)
def test_a_shift_that_drops_out_is_found(name):
    places, found = reduced(DROP_OUT[name])
    assert list(found.maxima) == places


@pytest.mark.parametrize("name", STAY)
def test_a_maximum_that_matters_is_no_shift(name):
    _, found = reduced(STAY[name])
    assert found.maxima == () and not found.stopped


@pytest.mark.parametrize("name", DROP_OUT)
def test_any_number_in_place_of_a_shift_gives_the_same_value(name):
    from gdmap.engines.precision import float64
    from gdmap.engines.program import replay

    program = flat_program(DROP_OUT[name], (6,))
    found = shifts(program)
    point = np.random.default_rng(2).normal(size=6)
    results = []
    for offset in (0.0, 0.7, -1.3):
        taken = iter(found.maxima)

        def rule(equation, operands, offset=offset, wanted=tuple(program.jaxpr.eqns[i] for i in taken)):
            if not any(equation is e for e in wanted):
                return None
            return [equation.primitive.bind(*operands, **equation.params) + offset]

        with float64():
            results.append(float(replay(program.jaxpr, program.consts, [jnp.asarray(point)], rule)[0]))
    assert np.allclose(results, results[0], rtol=1e-12, atol=1e-12)


def test_a_stopped_gradient_counts_only_on_the_shift_itself():
    places, found = reduced(lambda w: log_sum(rows(w), jax.lax.stop_gradient(top(rows(w)))).sum())
    assert list(found.maxima) == places and len(found.stopped) == 1
    _, found = reduced(lambda w: jax.lax.stop_gradient(w - w.max()).sum())
    assert found.maxima == ()

"""Flat programs: nothing called, nothing looped, the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gdmap.engines.precision import float64
from gdmap.engines.program import UnsupportedProgramError, flat_program, frozen, is_logaddexp


def names(program):
    return [equation.primitive.name for equation in program.jaxpr.eqns]


def values(program, *inputs):
    with float64():
        return [np.asarray(x) for x in jax.core.eval_jaxpr(program.jaxpr, program.consts, *inputs)]


def cell(state, x):
    state = jnp.tanh(state * x[0] + x[1])
    return state, state**2


FUNCTIONS = {
    "scan": lambda w: jax.lax.scan(cell, w[0], jnp.reshape(w, (3, 2)))[1].sum(),
    "scan backwards": lambda w: jax.lax.scan(cell, w[0], jnp.reshape(w, (3, 2)), reverse=True)[1] @ np.arange(3.0),
    "scan of nothing": lambda w: sum(map(jnp.sum, jax.lax.scan(cell, w[0], jnp.zeros((0, 2))))),
    "fori_loop": lambda w: jax.lax.fori_loop(0, 4, lambda i, s: s * 0.5 + w[i], 0.0),
    "gradient of scan": lambda w: jax.grad(lambda v: jax.lax.scan(cell, v[0], jnp.reshape(v, (3, 2)))[0])(w).sum(),
    "scan in scan": lambda w: jax.lax.scan(
        lambda s, x: (jax.lax.scan(cell, s, w.reshape(3, 2))[0], s * x), w[0], w
    )[1].sum(),
    "jit and checkpoint": lambda w: jax.jit(lambda v: jax.checkpoint(jnp.sin)(v).sum())(w),
    "vmap of softplus": lambda w: jax.vmap(jax.nn.softplus)(w).sum() + jnp.logaddexp(w[0], w).sum(),
    "relu": lambda w: jax.nn.relu(w).sum(),
    "constants": lambda w: (w * np.arange(6.0)).sum() + 1,
    "a constant": lambda w: jnp.zeros(()) + 2.0,
    "an input": lambda w: w,
    "stack": lambda w: jnp.stack([w, w]).sum() + jnp.unstack(w)[1] + jnp.tile(w, 2)[7],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_flat_program_is_the_function_without_calls(name):
    program = flat_program(FUNCTIONS[name], (6,))
    assert not {"jit", "pjit", "scan", "while", "custom_jvp_call", "checkpoint", "remat2", "stack"} & set(
        names(program)
    )
    point = np.random.default_rng(0).normal(size=6)
    with float64():
        expected = np.asarray(FUNCTIONS[name](jnp.asarray(point)))
    assert np.allclose(values(program, point)[0], expected, rtol=1e-13, atol=1e-13)


def test_dead_code_and_repetitions_go():
    program = flat_program(lambda w: (jnp.sort(w)[0], jnp.sin(w) + jnp.sin(w) * jnp.sin(w))[1], (3,))
    assert sorted(names(program)) == ["add", "mul", "sin"]


def test_operations_that_differ_in_the_last_bit_or_in_a_type_are_not_merged():
    one_more = float(np.nextafter(0.1, 1))
    program = flat_program(lambda w: w * 0.1 - w * one_more, (1,))
    assert names(program).count("mul") == 2
    program = flat_program(lambda w: (w**2) + (w**3), (1,))
    assert len(set(map(str, program.jaxpr.eqns))) >= 3
    assert frozen({"a": 1}) != frozen({"a": 1.0}) != frozen({"a": True})
    assert frozen(0.0) != frozen(-0.0) and frozen(np.nan) == frozen(np.nan)
    large = np.arange(5000.0)
    other = large.copy()
    other[2500] += 1e-9
    assert frozen((large,)) != frozen((other,)) and frozen((large,)) == frozen((large.copy(),))


def test_softplus_is_known_by_its_formula_and_nothing_else_is():
    def equation(function, *arguments):
        with float64():
            return jax.make_jaxpr(function)(*arguments).jaxpr.eqns[0]

    assert is_logaddexp(equation(jnp.logaddexp, 1.0, 2.0))
    assert not is_logaddexp(equation(jax.nn.relu, 1.0))

    @jax.custom_jvp
    def pretended(a, b):
        return jnp.maximum(a, b) + jnp.log1p(jnp.exp(-jnp.abs(a + b)))

    pretended.defjvps(None, None)
    assert not is_logaddexp(equation(pretended, 1.0, 2.0))


def test_softplus_far_out():
    program = flat_program(jax.nn.softplus, (5,))
    points = np.array([-700.0, -30.0, 0.0, 30.0, 700.0])
    assert np.allclose(values(program, points)[0][1:], np.logaddexp(points, 0)[1:], rtol=1e-12)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda w: jax.lax.cond(w[0] > 0, jnp.sin, jnp.cos, w[0]), "jnp.where"),
        (lambda w: jax.lax.switch(np.int32(1) + (w[0] > 0), [jnp.sin, jnp.cos, jnp.tan], w[0]), "jnp.where"),
        (lambda w: jax.lax.while_loop(lambda s: s < 3, lambda s: s + 1, w[0]), "fixed number of steps"),
        (lambda w: jax.pure_callback(np.sum, jax.ShapeDtypeStruct((), float), w), "calls back into Python"),
        (lambda w: jax.lax.scan(lambda s, _: (s * 0.5, None), w[0], None, length=20_000)[0], "20000 steps"),
    ],
)
def test_what_cannot_be_written_out_is_refused(function, message):
    with pytest.raises(UnsupportedProgramError, match=message):
        flat_program(function, (3,))

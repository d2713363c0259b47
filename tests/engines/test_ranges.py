"""Ranges hold every value, with closed and open ends; conditions of analyticity are found and not invented."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxpr_as_fun

from gdmap.engines.intervals import Interval, Range, added, hull, multiplied, powered, reciprocal
from gdmap.engines.precision import float64
from gdmap.engines.program import flat_program
from gdmap.engines.ranges import RULES, dependent, domain_conditions, ranges

DIM = 17
rng = np.random.default_rng(0)
DATA = rng.standard_normal((4, 3))
LABELS = np.array([0, 1, 2, 1])


def logits(theta):
    hidden = jnp.tanh(DATA @ theta[:6].reshape(3, 2) + theta[6:8])
    return hidden @ theta[8:14].reshape(2, 3) + theta[14:17]


def variance(theta):
    z = logits(theta)
    return jnp.sum(((z - z.mean(-1, keepdims=True)) / jnp.sqrt(z.var(-1, keepdims=True) + 1e-5)) ** 2)


def rms(theta):
    z = logits(theta)
    return jnp.sum(z * jax.lax.rsqrt(jnp.mean(z * z, -1, keepdims=True) + 1e-5))


def masked_attention(theta):
    q = jnp.tanh(theta[:12].reshape(4, 3))
    scores = jnp.where(jnp.tril(jnp.ones((4, 4), bool)), q @ q.T, -20.0)
    return jnp.sum(jax.nn.softmax(scores) @ q)


def convolution(theta):
    image = jnp.asarray(DATA.reshape(1, 1, 4, 3))
    out = jax.lax.conv_general_dilated(image, jnp.tanh(theta[:4]).reshape(1, 1, 2, 2), (1, 1), "SAME")
    pooled = jax.lax.reduce_window(out, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 1, 1), "VALID")
    return jnp.sum(pooled) + jnp.sum(
        jax.lax.reduce_window(out, 0.0, jax.lax.add, (1, 1, 2, 2), (1, 1, 1, 1), "SAME")
    )


LOSSES = {
    "log_softmax": lambda t: (
        -jnp.mean(jax.nn.log_softmax(logits(t))[jnp.arange(4), LABELS]) + 0.05 * jnp.sum(t**2)
    ),
    "softmax": lambda t: -jnp.mean(jnp.log(jax.nn.softmax(logits(t)) + 1e-6)),
    "naive softmax": lambda t: -jnp.mean(jnp.exp(logits(t)) / jnp.exp(logits(t)).sum(1, keepdims=True)),
    "logsumexp": lambda t: jnp.mean(jax.nn.logsumexp(logits(t), axis=-1)),
    "integer labels": lambda t: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(t), LABELS)),
    "binary": lambda t: jnp.mean(optax.sigmoid_binary_cross_entropy(logits(t), 1.0)),
    "layer norm": variance,
    "rms norm": rms,
    "attention": masked_attention,
    "convolution": convolution,
    "smooth activations": lambda t: jnp.sum(
        jax.nn.gelu(t) + jax.nn.softplus(t) * jax.nn.silu(t) + jax.nn.gelu(t, approximate=False)
    ),
    "kinks": lambda t: jnp.sum(
        jax.nn.elu(t) + jax.nn.leaky_relu(t) - jnp.abs(t) + jnp.clip(t, -1, 2) + jnp.sign(t)
    ),
    "powers": lambda t: jnp.sum(t**4 - t**3 + jnp.square(t) * t) + jnp.vdot(t, t) ** 2,
    "quotients": lambda t: jnp.sum(t / (1 + t * t) + 1 / (2 + jnp.cos(t)) - jnp.sqrt(1 + t**2)),
    "elementary": lambda t: jnp.sum(
        jnp.log1p(t**2) + jnp.arctan(t) + jax.lax.erf(t) - jnp.expm1(-(t**2)) + jnp.arcsinh(t) + jnp.cbrt(t)
    ),
    "hyperbolic": lambda t: jnp.sum(1 / jnp.cosh(jnp.tanh(t)) + jnp.sinh(jax.nn.sigmoid(t))),
    "safe where": lambda t: jnp.sum(jnp.where(t > 0, jnp.sqrt(jnp.where(t > 0, t, 1.0)), 0.0)),
    "moves": lambda t: (
        jnp.sum(jnp.cumsum(jnp.tanh(t))[::-2]) + jnp.sum(jnp.pad(jnp.exp(-t), 2)[jnp.array([0, 3])])
    ),
    "scatter": lambda t: jnp.sum(jnp.zeros(5).at[jnp.array([0, 0, 3])].add(jnp.tanh(t[:3])) ** 2),
    "data inside": lambda t: jnp.mean(jnp.tanh(((DATA - DATA.mean(0)) / DATA.std(0)) @ t[:3]) ** 2),
    "sorted": lambda t: jnp.sum(jnp.sort(jnp.tanh(t))[:3]) + jnp.max(t) * jnp.min(jax.nn.sigmoid(t)),
    "minus twice": lambda t: jnp.sum((t - t) + jnp.where(t == t, jnp.tanh(t), jnp.nan)),
}


def values_of(program, theta):
    """Every floating variable of a program at a point."""
    variables = [v for e in program.jaxpr.eqns for v in e.outvars if hasattr(v.aval, "shape")]
    inner = program.jaxpr.replace(outvars=variables)
    with float64():
        run = jax.jit(jax.vmap(jaxpr_as_fun(jax.extend.core.ClosedJaxpr(inner, program.consts))))
        return dict(zip(variables, (np.asarray(x) for x in run(theta)), strict=True))


@pytest.mark.parametrize("name", LOSSES)
def test_every_value_lies_in_its_range(name):
    program = flat_program(LOSSES[name], (DIM,))
    known = ranges(program)
    draw = np.random.default_rng(1)
    scale = np.where(np.arange(1000) < 200, 1.0, 10.0 ** draw.uniform(-3, 3, 1000))
    theta = draw.standard_normal((1000, DIM)) * scale[:, None]
    for variable, value in values_of(program, theta).items():
        if np.any(np.isnan(value)):
            continue  # branches that are not taken
        lower, upper = known[variable].lower, known[variable].upper
        slack = 1e-9 * np.abs(value) + 1e-9 * (value != 0)  # rounding of the value itself
        assert np.all(value >= lower - slack) and np.all(value <= upper + slack), (variable, known[variable])
        if known[variable].is_positive:
            assert np.all(value >= 0) and np.all(value[:200] > 0)  # elsewhere it may underflow
        if known[variable].is_negative:
            assert np.all(value <= 0) and np.all(value[:200] < 0)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("elementary", "minus twice")])
def test_analytic_losses_have_no_conditions(name):
    program = flat_program(LOSSES[name], (DIM,))
    assert domain_conditions(program, ranges(program)) == []


@pytest.mark.parametrize(
    ("loss", "primitive", "condition"),
    [
        (lambda t: jnp.log(t).sum(), "log", "> 0"),
        (lambda t: jnp.log(t**2).sum(), "log", "> 0"),
        (lambda t: jnp.sqrt(t * t).sum(), "sqrt", "> 0"),
        (lambda t: jnp.linalg.norm(t), "sqrt", "> 0"),
        (lambda t: jnp.log1p(-jnp.square(t)).sum(), "log1p", "> -1"),
        (lambda t: (1 / t).sum(), "div", "!= 0"),
        (lambda t: (t / jnp.sum(jnp.abs(t))).sum(), "div", "!= 0"),
        (lambda t: (jnp.abs(t) ** 1.5).sum(), "pow", "> 0"),
        (lambda t: (t**-2).sum(), "integer_pow", "!= 0"),
        (lambda t: jnp.cbrt(t).sum(), "cbrt", "!= 0"),
        (lambda t: jnp.arcsin(jnp.sin(t)).sum(), "asin", "between -1 and 1"),
        (lambda t: jax.lax.lgamma(t).sum(), "lgamma", "> 0"),
        (lambda t: jax.lax.polygamma(1.0, t[0]), "polygamma", "never"),
        (lambda t: jax.lax.rem(t, jnp.ones(3)).sum(), "rem", "never"),
        (lambda t: t.astype(jnp.float32).sum().astype(jnp.float64), "convert_element_type", "never"),
        (lambda t: (t * t.astype(int)).sum(), "convert_element_type", "never"),
        (lambda t: (t * (t > 0)).sum(), None, None),
        (lambda t: jnp.log(1 - jnp.tanh(jnp.maximum(t, 0))).sum(), None, None),
        (lambda t: jnp.arctanh(jnp.tanh(t)).sum(), None, None),
        (lambda t: (jax.nn.sigmoid(t) ** 0.5).sum(), None, None),
        (lambda t: jnp.log(jnp.sum(jnp.exp(t))), None, None),
    ],
)
def test_conditions_of_analyticity(loss, primitive, condition):
    program = flat_program(loss, (3,))
    found = domain_conditions(program, ranges(program))
    assert [(e.primitive.name, c) for e, _, c in found][:1] == (
        [] if primitive is None else [(primitive, condition)]
    )


def test_undefined_results_are_reported():
    program = flat_program(lambda t: jnp.where(t[0] > 0, jnp.nan, t[0]), (2,))
    assert [c for *_, c in domain_conditions(program, ranges(program))] == ["finite"]
    program = flat_program(lambda t: jnp.sum(t + jnp.inf), (2,))
    assert "finite" in [c for *_, c in domain_conditions(program, ranges(program))]


def output_range(loss, dim=DIM):
    program = flat_program(loss, (dim,))
    return ranges(program)[program.jaxpr.outvars[0]]


def test_softmax_is_understood():
    n = 3
    assert output_range(lambda t: jnp.sum(jax.nn.softmax(t[:n])[:1])) == pytest.approx((0.0, 1.0, False, True))
    assert output_range(lambda t: jax.nn.log_softmax(t[:n])[0]).upper == 0
    known = output_range(lambda t: jnp.log(jnp.sum(jnp.exp(t[:n] - jnp.max(t[:n])))))
    assert known.lower == 0 and known.upper == pytest.approx(math.log(n), rel=1e-12) and known.upper >= math.log(n)
    # not the maximum of the same numbers
    known = output_range(lambda t: jnp.log(jnp.sum(jnp.exp(t[:n] - jnp.max(t[n : 2 * n])))))
    assert known.lower == -math.inf and known.upper == math.inf
    known = output_range(lambda t: jnp.sum(jnp.exp(t[:n] - jnp.max(t[: n + 1]))))
    assert known.lower == 0 and known.upper == pytest.approx(n)
    # a maximum over the other axis
    square = output_range(lambda t: jnp.sum(jnp.exp(t[:9].reshape(3, 3) - jnp.max(t[:9].reshape(3, 3), 0)), 1)[0])
    assert square.lower == 0
    assert output_range(lambda t: -jnp.mean(jnp.log(jax.nn.softmax(logits(t)) + 1e-6))).is_bounded


def test_normalised_values_are_bounded():
    known = output_range(lambda t: ((t - t.mean()) / jnp.sqrt(t.var() + 1e-5))[0])
    assert known.upper == pytest.approx(math.sqrt(DIM), rel=1e-9)
    known = output_range(lambda t: (t / jnp.sqrt(t[::-1].var() + 1e-5))[0])
    assert known.upper == math.inf


def test_branches_that_are_never_taken_do_not_count():
    known = output_range(lambda t: jnp.where(3.0 - 1.0 > 1.5, jnp.tanh(t[0]), jnp.nan))
    assert known == Range(-1.0, 1.0, False, False)
    assert output_range(lambda t: jnp.where(t[0] ** 2 >= 0, 1.0, 2.0)).upper == 1
    assert output_range(lambda t: jnp.where(t[0] ** 2 > 0, 1.0, 2.0)).upper == 2


def test_dependent_variables():
    program = flat_program(lambda t: jnp.sum(t) + jnp.sum(DATA) * jnp.arange(3.0)[1], (3,))
    varying = dependent(program)
    names = {e.primitive.name for e in program.jaxpr.eqns if not set(e.outvars) & varying}
    assert "iota" in names and program.jaxpr.outvars[0] in varying


numbers = st.one_of(st.just(0.0), st.floats(-1e3, 1e3), st.floats(-1e-300, 1e-300), st.floats(-1e200, 1e200))


@st.composite
def members(draw):
    """An interval, perhaps with infinite ends, and a number in it."""
    low, value, high = sorted(draw(st.tuples(numbers, numbers, numbers)))
    low_in, high_in = (True, True) if low == high else (draw(st.booleans()) or low == value, True)
    low = -math.inf if draw(st.booleans()) else low
    high = math.inf if draw(st.booleans()) else high
    ends = (low, high, low_in and math.isfinite(low), high_in and math.isfinite(high))
    return Interval(*map(np.asarray, ends)), value


def holds(interval, exact):
    low, high, low_in, high_in = hull(interval)
    above = exact > low or (exact == low and low_in) or (low == -math.inf)
    return above and (exact < high or (exact == high and high_in) or high == math.inf)


@settings(max_examples=300, deadline=None)
@given(members(), members())
def test_interval_arithmetic_holds_exact_results(one, other):
    from fractions import Fraction

    (a, x), (b, y) = one, other
    p, q = Fraction(x), Fraction(y)
    with np.errstate(all="ignore"):
        assert holds(added(a, b), p + q)
        assert holds(multiplied(a, b), p * q)
        assert holds(powered(a, 2), p**2) and holds(powered(a, 3), p**3)
        if y != 0:
            assert holds(reciprocal(b), 1 / q)
            assert holds(multiplied(a, reciprocal(b)), p / q)


@settings(max_examples=200, deadline=None)
@given(members())
def test_functions_hold_exact_results(one):
    import mpmath

    a, x = one
    functions = {
        "exp": mpmath.exp, "expm1": mpmath.expm1, "tanh": mpmath.tanh, "erf": mpmath.erf, "erfc": mpmath.erfc,
        "logistic": lambda v: 1 / (1 + mpmath.exp(-v)), "asinh": mpmath.asinh, "atan": mpmath.atan,
        "cbrt": lambda v: mpmath.sign(v) * mpmath.cbrt(abs(v)),
    }  # fmt: skip
    if x > 0:
        functions |= {"log": mpmath.log, "log1p": mpmath.log1p, "sqrt": mpmath.sqrt, "rsqrt": lambda v: v**-0.5}
    if abs(x) < 1e4:
        functions |= {"sinh": mpmath.sinh, "cosh": mpmath.cosh}
    with mpmath.workdps(900), np.errstate(all="ignore"):
        for name, function in functions.items():
            if abs(x) > 30 and name in ("exp", "expm1", "erf", "erfc", "logistic", "tanh"):
                continue
            assert holds(RULES[name](None, a), function(mpmath.mpf(x))), name

"""Every primitive in every arithmetic, against JAX in float64, against 256-bit balls and against mpmath."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from flint import arb, ctx

from gdmap.engines.balls import structure
from gdmap.engines.balls.anything import ANY
from gdmap.engines.balls.arb import Arb
from gdmap.engines.balls.arithmetic import UndecidedError
from gdmap.engines.balls.evaluate import EXACT_IN_FLOAT, FUNCTIONS, RULES, evaluate
from gdmap.engines.balls.mid_rad import MidRad, as_balls
from gdmap.engines.balls.rational import Rational
from gdmap.engines.precision import float64
from gdmap.engines.program import UnsupportedProgramError, flat_program, flattened

lax = jax.lax
TRIALS = 10
# Names that this version of JAX does not use in traces, each with the name whose rule it shares.
ALIASES = {"scatter_add": "scatter-add", "copy_p": "copy", "expand_dims": "squeeze"}
DOMAINS = {
    "log": (0.01, 5),
    "log1p": (-0.9, 5),
    "sqrt": (0.01, 9),
    "rsqrt": (0.01, 9),
    "acosh": (1.01, 5),
    "lgamma": (0.1, 9),
    "digamma": (2, 9),
    "asin": (-0.99, 0.99),
    "acos": (-0.99, 0.99),
    "atanh": (-0.99, 0.99),
    "tan": (-1.4, 1.4),
}
MASK = np.array([[True, False, True], [False, True, True]])
CONV = ("NCHW", "OIHW", "NCHW")


def window(sizes, strides=None, padding=None, base=None, dilation=None):
    n = len(sizes)
    return {
        "window_dimensions": sizes,
        "window_strides": strides or (1,) * n,
        "padding": padding or ((0, 0),) * n,
        "base_dilation": base or (1,) * n,
        "window_dilation": dilation or (1,) * n,
    }


def window_sum(**parameters):
    return lambda a: lax.reduce_window_sum_p.bind(a, **parameters)


def window_max(**parameters):
    return lambda a: lax.reduce_window_max_p.bind(a, **parameters)


def conv(**parameters):
    parameters = {"window_strides": (1, 1), "padding": ((0, 0), (0, 0)), "dimension_numbers": CONV, **parameters}
    return lambda a, b: lax.conv_general_dilated(a, b, **parameters)


def gradient_of(function, weights):
    """The gradient with respect to both operands of a weighted sum of a function's results."""
    return lambda a, b: jax.grad(lambda a, b: jnp.sum(weights * function(a, b)), (0, 1))(a, b)


SCATTERED = lax.ScatterDimensionNumbers((1,), (0,), (0,))
GATHERED = lax.GatherDimensionNumbers((1,), (0,), (0,))


def scattered(scatter, **parameters):
    index = np.array([[2], [0]])
    return lambda a, b: scatter(a, index, b, SCATTERED, **parameters)


def gathered(index, mode):
    return lambda a: lax.gather(a, np.array(index), GATHERED, (1, 3), mode=mode)


# name -> (function, shapes, rational)
CASES = {
    "add": (lambda a, b: a + b, [(2, 3), (2, 3)], True),
    "add_any": (jax.grad(lambda a: jnp.sum(a * a * a - a)), [(4,)], True),
    "sub": (lambda a, b: a - b, [(), ()], True),
    "mul": (lambda a, b: a * b, [(2, 3), (3,)], True),
    "div": (lambda a, b: a / b, [(2, 3), (2, 3)], True),
    "div by powers of two": (lambda a: (a / 4.0, a / 0.125, 3.0 / (a / 7.0)), [(5,)], True),
    "neg": (lambda a: -a, [(3,)], True),
    "empty": (lambda a, b: (a + 1, jnp.sum(a), a.T @ a, b * 1), [(0, 3), (2, 0)], True),
    "one element": (lambda a: (jnp.sum(a), a @ a, jnp.cumsum(a), a[0]), [(1,)], True),
    "pow": (lambda a, b: lax.pow(lax.abs(a), b), [(3,), (3,)], False),
    "pow of small exponents": (lambda a: (lax.pow(a, 3.0), lax.pow(a, -2.0), lax.pow(a, 0.0)), [(3,)], True),
    "pow of integers": (lambda a: lax.pow(a, np.array([2, -3, 0])), [(3,)], False),
    "integer_pow": (lambda a: tuple(lax.integer_pow(a, y) for y in (-3, -1, 0, 1, 2, 5, 8)), [(3,)], True),
    "square": (lax.square, [(3,)], True),
    "reduce_sum": (lambda a: (a.sum(), a.sum(0), a.sum((1, 2)), a.sum(1, keepdims=True)), [(2, 3, 4)], True),
    "reduce_prod": (
        lambda a: (lax.reduce_prod_p.bind(a, axes=(1,), out_sharding=None), jnp.prod(a[:0])),
        [(3, 4)],
        True,
    ),
    "reduce_max": (lambda a: (a.max(), a.max(1), a.min(0)), [(3, 4)], True),
    "cumsum": (lambda a: (jnp.cumsum(a, 0), lax.cumsum(a, 1, reverse=True)), [(3, 4)], True),
    "dot_general": (lambda a, b: a @ b, [(2, 3), (3, 4)], True),
    "dot_general of vectors": (lambda a, b: (a @ b, jnp.outer(a, b)), [(3,), (3,)], True),
    "dot_general in batches": (
        lambda a, b: lax.dot_general(a, b, (((1,), (3,)), ((2, 0), (0, 2)))),
        [(2, 3, 4), (4, 5, 2, 3)],
        True,
    ),
    "dot_general over two axes": (lambda a, b: jnp.einsum("abcd,cbe->aed", a, b), [(2, 3, 4, 2), (4, 3, 5)], True),
    "conv": (conv(), [(2, 2, 5, 4), (3, 2, 3, 2)], True),
    "conv with strides and padding": (
        conv(window_strides=(2, 3), padding=((2, 1), (0, 3))),
        [(1, 2, 6, 5), (2, 2, 3, 2)],
        True,
    ),
    "conv with negative padding": (conv(padding=((-1, 2), (1, -2))), [(1, 1, 6, 6), (1, 1, 2, 3)], True),
    "conv with dilations": (
        conv(lhs_dilation=(2, 1), rhs_dilation=(1, 2), padding=((1, 1), (2, 0))),
        [(1, 2, 3, 5), (2, 2, 2, 2)],
        True,
    ),
    "conv in groups": (conv(feature_group_count=2), [(2, 4, 4, 4), (6, 2, 2, 3)], True),
    "conv in batch groups": (conv(batch_group_count=2), [(4, 2, 4, 4), (6, 2, 2, 3)], True),
    "conv with transposed dimensions": (
        conv(dimension_numbers=("HNWC", "WOHI", "CWNH"), window_strides=(1, 2)),
        [(5, 2, 6, 3), (2, 4, 3, 3)],
        True,
    ),
    "conv in one dimension": (
        lambda a, b: lax.conv_general_dilated(a, b, (2,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")),
        [(2, 7, 2), (3, 2, 3)],
        True,
    ),
    "gradient of conv": (
        gradient_of(conv(window_strides=(2, 1), padding=((1, 2), (0, 1))), 1.5),
        [(2, 2, 5, 4), (3, 2, 3, 2)],
        True,
    ),
    "gradient of conv in groups": (
        gradient_of(conv(feature_group_count=2), 2.0),
        [(2, 4, 4, 3), (4, 2, 2, 2)],
        True,
    ),
    "gradient of depthwise conv": (
        gradient_of(conv(feature_group_count=3, rhs_dilation=(2, 1)), 1.0),
        [(2, 3, 5, 3), (3, 1, 2, 2)],
        True,
    ),
    "reduce_window_sum": (window_sum(**window((2, 2), (2, 1), ((1, 0), (0, 2)), (2, 1), (1, 2))), [(4, 5)], True),
    "reduce_window_sum, negative padding": (
        window_sum(**window((2, 3), padding=((-1, 0), (1, -1)))),
        [(4, 5)],
        True,
    ),
    "reduce_window_sum, larger than the array": (window_sum(**window((5, 1))), [(4, 2)], True),
    "reduce_window_max": (window_max(**window((2, 2), (2, 2), ((1, 1), (0, 1)))), [(4, 5)], True),
    "reduce_window_max, dilated": (window_max(**window((2, 2), dilation=(2, 1))), [(4, 5)], True),
    "scatter-add": (scattered(lax.scatter_add), [(4, 3), (2, 3)], True),
    "scatter-add meeting": (lambda a, b: a.at[np.array([1, 1, 0, 1, -1])].add(b), [(3,), (5,)], True),
    "scatter-add dropped": (lambda a, b: a.at[np.array([1, 7, 0, 9])].add(b, mode="drop"), [(3,), (4,)], True),
    "scatter-add clipped": (lambda a, b: a.at[np.array([1, 7, 0, 9])].add(b, mode="clip"), [(3,), (4,)], True),
    "scatter": (scattered(lax.scatter), [(4, 3), (2, 3)], True),
    "scatter of a block": (lambda a, b: a.at[1:3, ::2].set(b), [(4, 3), (2, 2)], True),
    "scatter dropped": (lambda a, b: a.at[np.array([1, 7, 0])].set(b, mode="drop"), [(3,), (3,)], True),
    "gather": (lambda a: (a[np.array([2, 0, -1])], a[:, np.array([1, 1])], a[1, 2]), [(3, 4)], True),
    "gather clipped": (gathered([[5], [-2], [1]], "clip"), [(4, 3)], True),
    "gather in bounds": (gathered([[3], [0]], "promise_in_bounds"), [(4, 3)], True),
    "gather pairs": (lambda a: a[np.arange(3), np.array([1, 0, 3])], [(3, 4)], True),
    "take_along_axis": (lambda a: jnp.take_along_axis(a, np.array([[1], [0], [3]]), 1), [(3, 4)], True),
    "gradient of gather": (jax.grad(lambda a: jnp.sum(a[np.array([0, 0, 2])] ** 2)), [(3, 2)], True),
    "select_n": (lambda a, b: jnp.where(MASK, a, b), [(2, 3), (2, 3)], True),
    "select_n of a scalar": (lambda a, b: lax.select_n(np.array(True), a, b), [(2, 3), (2, 3)], True),
    "select_n of many": (
        lambda a, b, c: lax.select_n(np.array([[2, 0, 1], [1, 1, 2]], np.int32), a, b, c),
        [(2, 3)] * 3,
        True,
    ),
    "select_n by comparison": (
        lambda a, b: jnp.where((a > b) & ~(a < 0) | (b == 0), a * a, b),
        [(2, 3), (2, 3)],
        True,
    ),
    "comparisons": (
        lambda a, b: sum(
            x * np.pi**i for i, x in enumerate(map(jnp.float64, (a > b, a >= b, a < b, a <= b, a == b, a != b)))
        ),
        [(2, 3), (2, 3)],
        True,
    ),
    "comparisons of constants": (lambda a: jnp.where(np.arange(3.0) <= 1.0, a, -a), [(3,)], True),
    "masks counted": (lambda a: a * jnp.sum(a > 0) + jnp.any(a > 1) - jnp.all(a > -1), [(5,)], True),
    "choice of masks": (lambda a: a * jnp.where(a > 0, a < 1, a < -1) + (a > 0).astype(int) // 2, [(5,)], True),
    "mask written into an array": (
        lambda a: (
            a * jnp.zeros((3, 2), bool).at[1:].set(a[:2] > 0)
            + lax.dynamic_update_slice(np.zeros((3, 2), bool), a > 0, (0, 0))
        ),
        [(3, 2)],
        True,
    ),
    "max": (lambda a, b: (lax.max(a, b), jnp.maximum(a, 0.0), lax.min(a, b)), [(2, 3), (2, 3)], True),
    "abs": (lambda a: jnp.abs(a), [(4,)], True),
    "sign": (lambda a: lax.sign(a) * a, [(4,)], True),
    "is_finite": (lambda a: jnp.where(lax.is_finite(a), a, 0.0), [(4,)], True),
    "missing data": (lambda a: jnp.where(jnp.isnan(np.array([1.0, np.nan])), 0.0, a), [(2,)], True),
    "clamp": (lambda a: (lax.clamp(-0.5, a, 0.5), lax.clamp(np.full(5, -1.0), a, np.arange(5.0))), [(5,)], True),
    "convert_element_type": (lambda a: a * np.array([1, -2, 3]) + np.array([True, False, True]), [(3,)], True),
    "float32 data": (lambda a: a * np.float32([0.1, 0.2, 0.3]) - jnp.reshape(np.float32([1.7]), ()), [(3,)], True),
    "stop_gradient": (lambda a: lax.stop_gradient(a) * a, [(3,)], True),
    "copy": (lambda a: lax.copy_p.bind(a), [(3,)], True),
    "optimization_barrier": (lambda a, b: lax.optimization_barrier((a, b))[1], [(3,), (2,)], True),
    "reduce_precision": (lambda a: lax.reduce_precision(a, 11, 52), [(3,)], True),
    "reshape": (lambda a: (jnp.reshape(a, (4, 3)), lax.reshape(a, (6, 2), (1, 0))), [(3, 4)], True),
    "squeeze": (lambda a: (lax.squeeze(a, (0, 2)), lax.expand_dims(a, (1,))), [(1, 3, 1)], True),
    "transpose": (lambda a: jnp.transpose(a, (2, 0, 1)), [(2, 3, 4)], True),
    "rev": (lambda a: lax.rev(a, (0, 2)), [(2, 3, 4)], True),
    "broadcast_in_dim": (lambda a: lax.broadcast_in_dim(a, (2, 4, 3), (0, 2)), [(2, 1)], True),
    "slice": (lambda a: (lax.slice(a, (0, 1), (3, 5), (2, 3)), a[::-1]), [(3, 5)], True),
    "split": (lambda a: jnp.split(a, [1, 4], 1), [(2, 6)], True),
    "concatenate": (lambda a, b: jnp.concatenate([a, b, a], 1), [(2, 3), (2, 1)], True),
    "stack, unstack and tile": (
        lambda a: (jnp.stack([a, 2 * a], 1), *jnp.unstack(a, axis=1), jnp.tile(a, (2, 1, 3)), jnp.tile(a, 0)),
        [(2, 3)],
        True,
    ),
    "pad": (lambda a: lax.pad(a, 0.5, ((1, 2, 0), (-1, 0, 2))), [(2, 3)], True),
    "pad, negative and interior": (lambda a, b: lax.pad(a, b, ((-1, -2, 1), (2, -3, 3))), [(4, 3), ()], True),
    "dynamic_slice": (lambda a: lax.dynamic_slice(a, (np.int32(1), np.int32(9)), (2, 2)), [(4, 5)], True),
    "dynamic_update_slice": (
        lambda a, b: lax.dynamic_update_slice(a, b, (np.int32(-7), np.int32(2))),
        [(4, 5), (2, 2)],
        True,
    ),
    "iota": (lambda a: a * lax.broadcasted_iota(float, (2, 3), 1) + jnp.arange(3), [(2, 3)], True),
    "logaddexp": (lambda a, b: (jnp.logaddexp(a, b), jax.nn.softplus(a)), [(3,), (3,)], False),
    "exact on constants": (
        lambda a: a * jnp.argmax(np.eye(3), 1) + jnp.sort(np.array([3.0, 1.0, 2.0])) + jnp.floor(np.array(1.5)),
        [(3,)],
        True,
    ),
    "dropout with a fixed key": (
        lambda a: jnp.where(jax.random.bernoulli(jax.random.key(3), 0.5, (6,)), a, 0.0),
        [(6,)],
        True,
    ),
    **{name: (lambda a, name=name: getattr(lax, name)(a), [(3,)], False) for name in FUNCTIONS},
}


def outputs_of(function):
    return lambda *inputs: jax.tree.leaves(function(*inputs))


def draw(name, shapes, rng):
    """Inputs with few digits, so that sums and products meet ties; from the domain of a function."""
    if name in DOMAINS:
        return [rng.uniform(*DOMAINS[name], shape) for shape in shapes]
    scale = rng.choice([0.25, 1.0, 3.0])
    return [np.where((x := scale * rng.normal(size=shape)) == 0, 1.0, x) for shape in shapes]


def true_values(program, inputs):
    """The results in 256-bit balls."""
    return [boxes(value) for value in evaluate(program, [Arb(256).constant(x) for x in inputs], Arb(256))]


def boxes(value):
    """An array of balls; plain numbers are exact."""
    return value if value.dtype == object else Arb(256).constant(np.asarray(value, float))


@pytest.mark.parametrize("name", CASES)
def test_a_primitive_is_enclosed_in_every_arithmetic(name):
    function, shapes, is_rational = CASES[name]
    outputs = outputs_of(function)
    program = flat_program(outputs, *shapes)
    rng = np.random.default_rng(sum(map(ord, name)))
    with float64():
        compiled = jax.jit(outputs)
    for _ in range(TRIALS):
        inputs = draw(name, shapes, rng)
        with float64():
            floats = [np.asarray(x, float) for x in compiled(*inputs)]
        exact = true_values(program, inputs)
        balls = evaluate(program, [Arb(128).constant(x) for x in inputs], Arb(128))
        intervals = evaluate(program, [MidRad().constant(x) for x in inputs], MidRad())
        rationals = evaluate(program, [Rational().constant(x) for x in inputs], Rational())
        for number, truth, ball, interval, rational in zip(
            floats, exact, balls, intervals, rationals, strict=True
        ):
            ball = boxes(ball)
            interval = MidRad().constant(interval) if isinstance(interval, np.ndarray) else interval
            rational = Rational().constant(rational) if rational.dtype != object else rational
            assert (
                number.shape
                == truth.shape
                == ball.shape
                == interval.mid.shape
                == interval.rad.shape
                == rational.shape
            )
            # Rounding errors of the float64 program: relative to the size of what is added up in it.
            size = 1e-12 * (1 + max((np.abs(x).max(initial=0) for x in (*inputs, number)), default=0)) ** 2
            inflated = [arb(b.mid(), b.rad() + size) for b in ball.ravel()]
            assert all(b.contains(x) for b, x in zip(inflated, number.ravel().tolist(), strict=True))
            assert np.all(np.abs(interval.mid - number) <= interval.rad + size)
            with ctx.workprec(400):
                assert all(b.overlaps(t) for b, t in zip(ball.ravel(), truth.ravel(), strict=True))
                assert all(b.overlaps(t) for b, t in zip(as_balls(interval).ravel(), truth.ravel(), strict=True))
                known = [(t, q) for t, q in zip(truth.ravel(), rational.ravel(), strict=True) if q is not ANY]
                assert all(t.contains(q) for t, q in known)
            # Tight, too: enclosures that hold anything would prove nothing.
            assert all(t.rad() < 1e-60 for t in truth.ravel())
            assert np.all(interval.rad <= size + 1e-11 * np.abs(interval.mid))
            assert not is_rational or len(known) == number.size


def test_no_rule_is_without_a_case():
    met = set()
    for function, shapes, _ in CASES.values():
        program = flat_program(outputs_of(function), *shapes)
        met.update(equation.primitive.name for equation in program.jaxpr.eqns)
    rules = set(RULES) | set(structure.RULES)
    assert all(
        RULES[alias] is RULES[name] or structure.RULES[alias] is structure.RULES[name]
        for alias, name in ALIASES.items()
    )
    assert rules - set(ALIASES) - met == set()
    assert {"sort", "argmax", "floor"} <= met & EXACT_IN_FLOAT


def test_there_are_a_thousand_trials():
    assert len(CASES) * TRIALS >= 1000


MPMATH = {
    "exp2": lambda x: mpmath.mpf(2) ** x,
    "logistic": lambda x: 1 / (1 + mpmath.exp(-x)),
    "rsqrt": lambda x: 1 / mpmath.sqrt(x),
    "cbrt": lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x)),
    "lgamma": mpmath.loggamma,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_agree_with_mpmath_to_fifty_digits(name):
    reference = MPMATH.get(name) or getattr(mpmath, name)
    program = flat_program(lambda a: getattr(lax, name)(a), (20,))
    points = np.random.default_rng(5).uniform(*DOMAINS.get(name, (-4, 4)), 20)
    with mpmath.workdps(60):
        expected = [mpmath.nstr(reference(mpmath.mpf(x)), 55) for x in points.tolist()]
    (balls,) = evaluate(program, [Arb(256).constant(points)], Arb(256))
    (intervals,) = evaluate(program, [MidRad().constant(points)], MidRad())
    with ctx.workprec(256):
        for text, ball, interval in zip(expected, balls, as_balls(intervals), strict=True):
            value = arb(text)
            assert abs(ball - value) < arb("1e-50") * (1 + abs(value))
            assert interval.overlaps(ball) and interval.rad() <= 1e-14 * (1 + abs(value))


@pytest.mark.parametrize("name", [name for name in DOMAINS if name not in ("tan", "lgamma", "digamma")])
def test_outside_its_domain_a_function_has_no_value(name):
    program = flat_program(lambda a: getattr(lax, name)(a), ())
    outside = np.array(-3.0)
    (ball,) = evaluate(program, [Arb(64).constant(outside)], Arb(64))
    assert not Arb(64).is_finite(ball)
    (interval,) = evaluate(program, [MidRad().constant(outside)], MidRad())
    assert not MidRad().is_finite(interval)
    with pytest.raises(UndecidedError, match="outside its domain"):
        evaluate(program, [Rational().constant(outside)], Rational())


def test_a_quotient_by_zero_is_no_number_and_may_be_left_out():
    program = flat_program(lambda a: jnp.where(np.array([True, False]), 1 / a, 0.0), (2,))
    for arithmetic in (Arb(64), MidRad()):
        (value,) = evaluate(program, [arithmetic.constant(np.array([2.0, 0.0]))], arithmetic)
        assert arithmetic.is_finite(value) and arithmetic.midpoint(value).tolist() == [0.5, 0.0]
        (value,) = evaluate(program, [arithmetic.constant(np.array([0.0, 1.0]))], arithmetic)
        assert not arithmetic.is_finite(value)
    with pytest.raises(UndecidedError, match="division by zero"):
        evaluate(program, [Rational().constant(np.array([0.0, 1.0]))], Rational())


def test_a_masked_softmax_with_infinite_logits():
    def loss(a):
        return jax.nn.log_softmax(jnp.where(np.array([True, True, False]), a, -jnp.inf))[1]

    program = flat_program(
        jax.grad(lambda a: jax.nn.softmax(jnp.where(np.array([True, True, False]), a, -jnp.inf))[0]), (3,)
    )
    (ball,) = evaluate(program, [Arb(128).constant(np.array([1.0, 2.0, 3.0]))], Arb(128))
    with float64():
        expected = jax.grad(lambda a: jax.nn.softmax(jnp.where(np.array([True, True, False]), a, -jnp.inf))[0])(
            np.array([1.0, 2.0, 3.0])
        )
    assert np.allclose(Arb(128).midpoint(ball), expected, atol=1e-14)
    with pytest.raises(UndecidedError, match="no exact rational"):
        evaluate(flat_program(loss, (3,)), [Rational().constant(np.ones(3))], Rational())


MASKED = [
    (lambda m, n: jnp.where(m, n, ~n), lambda m, n: n if m else 1 - n),
    (lambda m, n: jnp.any(jnp.stack([m, n])), max),
    (lambda m, n: jnp.all(jnp.stack([m, n])), min),
    (lambda m, n: m ^ n, lambda m, n: m ^ n),
    (lambda m, n: (m & n) | ~m, lambda m, n: (m & n) | (1 - m)),
]


@pytest.mark.parametrize("index", range(len(MASKED)))
def test_a_mask_that_may_be_either_holds_both(index):
    function, plain = MASKED[index]
    with float64():
        shapes = [jax.ShapeDtypeStruct((), bool)] * 2
        program = jax.make_jaxpr(lambda m, n: jnp.where(function(m, n), 1.0, 0.0))(*shapes)
        program = flattened(program)
    for m in (0, 1, 2):
        for n in (0, 1, 2):
            possible = {plain(a, b) for a in ((0, 1) if m == 2 else (m,)) for b in ((0, 1) if n == 2 else (n,))}
            (value,) = evaluate(program, [np.array(m, np.int8), np.array(n, np.int8)], Arb(64))
            assert all(x.contains(p) for x in boxes(value).ravel() for p in possible)


@pytest.mark.parametrize(
    "function",
    [
        lambda m: (m.astype(int) + 1).astype(float),
        lambda m: jnp.where(m == np.array(True), 1.0, 0.0),
        lambda m: jnp.float64(jnp.sum(m)),
        lambda m: jnp.arange(2.0)[m.astype(int)],
    ],
)
def test_integers_made_of_an_undecided_mask_are_refused(function):
    with float64():
        program = flattened(jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), bool)))
    with pytest.raises((UndecidedError, UnsupportedProgramError)):
        evaluate(program, [np.array(2, np.int8)], Arb(64))
    (value,) = evaluate(program, [np.array(1, np.int8)], Arb(64))
    assert boxes(value).shape == ()


REFUSED = {
    "rounds numbers to float32": lambda a: a.astype(np.float32).sum(),
    "computes in float32": lambda a: a.sum() * jnp.mean(np.float32([0.1, 0.2, 0.4]) / np.float32(255)),
    "computes in bfloat16": lambda a: (
        a.sum() * (jnp.asarray([0.1], jnp.bfloat16) * jnp.asarray([0.3], jnp.bfloat16))[0]
    ),
    "into int64": lambda a: a.astype(int).sum(),
    "complex": lambda a: jnp.abs(jnp.exp(1j * a)).sum(),
    "'sort'": lambda a: jnp.sort(a)[0],
    "'floor'": lambda a: jnp.floor(a).sum(),
    "'argmax'": lambda a: a[jnp.argmax(a)],
    "out of bounds": lambda a: a.at[7].get(mode="fill", fill_value=1.0),
    "rounds numbers on the way": lambda a: lax.reduce_precision(a, 8, 10).sum(),
    "several values": lambda a: jnp.zeros(2).at[np.array([1, 1, 0])].set(a).sum(),
    "cond": lambda a: lax.cond(a[0] > 0, lambda: a.sum(), lambda: a[0]),
    "while_loop": lambda a: lax.while_loop(lambda s: s < 9, lambda s: 2 * s, a[0]),
    "calls back": lambda a: jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((), np.float64), a[0]),
    "large integers": lambda a: jnp.sum(a * np.full(3, 2**53 + 1)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_formula_over_the_reals_is_refused_by_name(reason):
    for arithmetic in (Arb(64), MidRad(), Rational()):
        with pytest.raises(UnsupportedProgramError, match=reason):
            evaluate(
                flat_program(REFUSED[reason], (3,)), [arithmetic.constant(np.array([1.0, 2.0, 3.0]))], arithmetic
            )

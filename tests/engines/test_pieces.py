"""Patterns: what is a kink and what is none, how points near kinks are decided, what is refused."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flint import fmpq

from gdmap.engines.balls.anything import ANY
from gdmap.engines.balls.arb import Arb
from gdmap.engines.balls.arithmetic import EITHER, UndecidedError
from gdmap.engines.balls.mid_rad import MidRad
from gdmap.engines.balls.rational import Rational
from gdmap.engines.pieces import EXACT_DERIVATIVES, Pattern, PiecewiseProgram, mask_of_signs
from gdmap.engines.precision import float64
from gdmap.engines.program import UnsupportedProgramError, flat_program

DATA = np.array([[1.0, -2.0, 0.5], [0.3, 0.7, -1.1]])
SIZE = 6


def matrix(w):
    return jnp.reshape(w, (2, 3))


@functools.cache
def compiled(function):
    return jax.jit(jax.hessian(function))


@functools.cache
def pieces_of(function, dim):
    return PiecewiseProgram(function, dim)


def hessian_of(function, point):
    with float64():
        return np.asarray(compiled(function)(jnp.asarray(point)))


def enclosed(function, point, tolerance=1e-12):
    """The Hessian in two arithmetics at a point, checked against JAX's."""
    pieces = pieces_of(function, len(point))
    expected = hessian_of(function, point)
    pattern = pieces.pattern(point, MidRad())
    size = tolerance * (1 + np.abs(expected).max())
    intervals = pieces.hessian(point, pattern, MidRad())
    assert np.all(np.abs(intervals.mid - expected) <= intervals.rad + size)
    balls = pieces.hessian(point, pattern, Arb(128))
    assert np.all(np.abs(Arb(128).midpoint(balls) - expected) <= size)
    return pieces, pattern


SMOOTH = {
    "softmax": lambda w: jax.nn.softmax(w)[0],
    "log_softmax": lambda w: -jax.nn.log_softmax(matrix(w))[np.arange(2), np.array([2, 0])].sum(),
    "logsumexp": lambda w: jax.nn.logsumexp(matrix(w), 1).sum(),
    "softplus": lambda w: jax.nn.softplus(w).sum(),
    "logaddexp": lambda w: jnp.logaddexp(w[:3], w[3:]).sum(),
    "variance": lambda w: jnp.sum(matrix(w) / jnp.sqrt(jnp.var(matrix(w), 1, keepdims=True) + 1e-5) * DATA),
    "layer norm": lambda w: jnp.sum(
        jax.vmap(eqx.nn.LayerNorm(3, use_weight=False, use_bias=False))(matrix(w)) * DATA
    ),
    "abs of squares": lambda w: jnp.abs(w**2 + jnp.exp(w)).sum(),
    "isnan guard": lambda w: jnp.where(jnp.isnan(w), 0.0, w**2).sum(),
    "nan_to_num": lambda w: jnp.where(jnp.isfinite(w), jnp.sin(w), 0.0).sum(),
    "mean of a part": lambda w: jnp.mean(w**3, where=np.array([True, False, True, True, False, True])),
    "constant choice": lambda w: jnp.where(DATA > 0, matrix(w), matrix(w) ** 2).sum(),
    "relu of a constant": lambda w: (jax.nn.relu(DATA) * matrix(w) ** 2).sum(),
    "relu of what is positive": lambda w: jax.nn.relu(1 + w**2).sum(),
    "norm of data": lambda w: (w**2).sum() / jnp.max(jnp.abs(DATA)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_what_only_looks_like_a_kink_is_none(name):
    pieces, _ = enclosed(SMOOTH[name], np.random.default_rng(3).normal(size=SIZE))
    assert pieces.is_smooth, [kink.equation for kink in pieces.kinks]


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "softplus", "logaddexp"])
def test_ties_between_logits_are_no_kinks(name):
    enclosed(SMOOTH[name], np.full(SIZE, 0.75))


KINKED = {
    "relu": lambda w: jnp.sum(jax.nn.relu(DATA @ matrix(w).T) ** 2),
    "abs": lambda w: jnp.sum(jnp.abs(w) * w**2),
    "sign": lambda w: jnp.sum(jnp.sign(w) * w**3),
    "leaky relu": lambda w: jnp.sum(jax.nn.leaky_relu(w) ** 2),
    "elu": lambda w: jnp.sum(jax.nn.elu(w) ** 2),
    "relu6": lambda w: jnp.sum(jax.nn.relu6(3 * w) ** 2 * w),
    "hard_tanh": lambda w: jnp.sum(jax.nn.hard_tanh(2 * w) * w**2),
    "huber": lambda w: jnp.sum(jnp.where(jnp.abs(w) < 1, 0.5 * w**2, jnp.abs(w) - 0.5)),
    "maximum": lambda w: jnp.sum(jnp.maximum(w[:3] ** 2, w[3:] ** 3)),
    "minimum": lambda w: jnp.sum(jnp.minimum(w[:3] ** 2, w[3:] ** 3)),
    "where": lambda w: jnp.sum(jnp.where((w > 0.3) | (w <= -0.5), w**2, jnp.sin(w))),
    "where not": lambda w: jnp.sum(jnp.where(~(w >= 0.3) & (w < 2), w**2, jnp.sin(w))),
    "clip": lambda w: jnp.sum(jnp.clip(w, -0.5, 0.5) ** 2 * w),
    "clamp": lambda w: jnp.sum(jax.lax.clamp(-0.5, w, 0.5) ** 2 * w),
    "reduce_max": lambda w: jnp.sum(jnp.max(matrix(w) ** 2, 1)) + jnp.min(w) ** 2,
    "largest by modulus": lambda w: jnp.max(jnp.abs(w)) ** 3,
    "max pool": lambda w: jnp.sum(eqx.nn.MaxPool1d(2, 1, 1)(matrix(w)) ** 2),
    "mask as a number": lambda w: jnp.sum((w > 0) * w**2),
    "counted mask": lambda w: jnp.sum(w**2) * jnp.sum(w > 0),
    "power of abs": lambda w: jnp.sum(jnp.abs(w) ** 2.5),
    "softmax then relu": lambda w: jnp.sum(jax.nn.relu(jax.nn.softmax(w) - 0.15) ** 2),
}


@pytest.mark.parametrize("name", KINKED)
def test_kinks_are_found_and_decided_as_in_floating_point(name):
    for seed in range(3):
        pieces, pattern = enclosed(KINKED[name], np.random.default_rng(seed).normal(size=SIZE))
        assert not pieces.is_smooth
        masks, levels = pieces.aspects
        assert [mask.shape for mask in pattern.masks] == [mask.shape for mask in masks]
        assert len(pattern.shifts) == len(levels)


def test_the_pattern_is_that_of_direct_comparisons():
    def loss(w):
        return jnp.sum(jax.nn.relu(DATA @ matrix(w).T)) + jnp.sum(jnp.max(matrix(w), 1)) + jnp.abs(w[0])

    pieces = PiecewiseProgram(loss, SIZE)
    for seed in range(30):
        point = np.random.default_rng(seed).normal(size=SIZE)
        by_name = {
            kink.equation.primitive.name: mask
            for kink, mask in zip(pieces.kinks, pieces.pattern(point, MidRad()).masks, strict=True)
        }
        w = point.reshape(2, 3)
        assert np.array_equal(by_name["max"] == 1, DATA @ w.T > 0)
        assert np.array_equal(by_name["reduce_max"].argmax(-1), w.argmax(1)) and np.all(
            by_name["reduce_max"].sum(-1) == 1
        )
        assert by_name["abs"] == (point[0] > 0)


def test_points_on_a_kink_are_never_decided_and_near_ones_at_higher_precision():
    pieces = PiecewiseProgram(lambda w: jax.nn.relu(w[0] - 0.1 * w[1]) ** 2 + w[1] ** 2, 2)
    on = np.array([0.0, 0.0])
    for arithmetic in (MidRad(), Arb(128), Arb(1024), Rational()):
        with pytest.raises(UndecidedError, match="kink"):
            pieces.pattern(on, arithmetic)
    # The rounded product differs from the product of the floats by 2.8e-17.
    near = np.array([0.1 * 3, 3.0])
    with pytest.raises(UndecidedError, match="kink"):
        pieces.pattern(near, MidRad())
    side = int(fmpq(*near[0].as_integer_ratio()) > 3 * fmpq(*(0.1).as_integer_ratio()))
    assert pieces.pattern(near, Arb(256)).masks[0] == pieces.pattern(near, Rational()).masks[0] == side
    for function in (KINKED["reduce_max"], KINKED["max pool"], KINKED["where"], KINKED["huber"]):
        with pytest.raises(UndecidedError, match="kink"):
            PiecewiseProgram(function, SIZE).pattern(
                np.full(SIZE, 0.3 if function is KINKED["where"] else 1.0), Arb(128)
            )


def test_ties_of_dead_units_are_no_kinks_and_those_of_live_ones_are():
    def pooled(w):
        return jnp.sum(eqx.nn.MaxPool1d(2, 2)(jax.nn.relu(w)[None])) ** 2 + jnp.sum(w**2)

    dead = np.array([-1.0, -2.0, 3.0, 2.0, -1.0, 4.0])
    enclosed(pooled, dead)
    with pytest.raises(UndecidedError):
        PiecewiseProgram(pooled, SIZE).pattern(np.array([1.0, 1.0, 3.0, 2.0, -1.0, 4.0]), Arb(128))


CONSTANT_COMPARISONS = {
    "gt": (lambda h: h > 0, False),
    "ge": (lambda h: h >= 0, True),
    "lt": (lambda h: h < 0, False),
    "le": (lambda h: h <= 0, True),
    "eq": (lambda h: h == 0, True),
    "ne": (lambda h: h != 0, False),
    "sign": (lambda h: jnp.sign(h) == 1, False),
}


@pytest.mark.parametrize("name", CONSTANT_COMPARISONS)
def test_comparing_the_zero_of_a_dead_unit_comes_out_as_it_is(name):
    """``relu(w) == 0`` holds on an open set; there it is no kink, and true."""
    compare, outcome = CONSTANT_COMPARISONS[name]

    def loss(w):
        return jnp.where(compare(jax.nn.relu(w[0])), 5.0 * w[1] ** 2, 0.5 * w[1] ** 2)

    point = np.array([-1.0, 0.7])
    pieces, pattern = enclosed(loss, point)
    exact = pieces.hessian(point, pattern, Rational())
    assert exact[1, 1] == (10 if outcome else 1)
    enclosed(loss, np.array([1.0, 0.7]))
    # All patterns at once hold every piece.
    everything = pieces.hessian(point, pieces.every_pattern(), Arb(64))
    assert everything[1, 1].contains(10) and everything[1, 1].contains(1)


@pytest.mark.parametrize("name", KINKED)
def test_all_patterns_at_once_hold_every_piece(name):
    pieces = PiecewiseProgram(KINKED[name], SIZE)
    point = np.random.default_rng(8).normal(size=SIZE)
    try:
        everything = pieces.hessian(point, pieces.every_pattern(), Arb(64))
    except UndecidedError:
        assert name in ("counted mask", "power of abs")
        return
    at_point = pieces.hessian(point, pieces.pattern(point, Arb(64)), Arb(64))
    assert all(a.contains(b) or a.overlaps(b) for a, b in zip(everything.ravel(), at_point.ravel(), strict=True))
    rationals = pieces.hessian(point, pieces.every_pattern(), Rational())
    for known, ball in zip(rationals.ravel(), at_point.ravel(), strict=True):
        assert known is ANY or ball.overlaps(known * 1)


def test_masks_from_signs_agree_with_patterns_at_points():
    names = ["max", "min", "abs", "sign", "where", "huber"]
    functions = [
        lambda w: jnp.sum(jax.nn.relu(w)),
        lambda w: jnp.sum(jnp.minimum(w, 0.5)),
        *(KINKED[n] for n in names[2:5]),
    ]
    for function in functions:
        pieces = PiecewiseProgram(function, SIZE)
        for seed in range(5):
            point = np.random.default_rng(seed).normal(size=SIZE)
            pattern = pieces.pattern(point, MidRad())
            for kink, mask in zip(pieces.kinks, pattern.masks, strict=True):
                other = 0.0 if len(kink.equation.invars) == 1 else np.asarray(kink.equation.invars[1].val)
                assert np.array_equal(mask_of_signs(kink.equation, np.sign(point - other).astype(int)), mask)


def test_a_clamp_between_crossed_bounds():
    def loss(w):
        return jax.lax.clamp(w[0], w[1], w[2]) ** 2 + jnp.sum(w)

    for point in ([3.0, 1.0, 2.0], [1.0, 3.0, 2.0], [1.0, 1.5, 2.0], [3.0, 5.0, 2.0], [3.0, 2.5, 2.0]):
        pieces = PiecewiseProgram(loss, 3)
        pattern = pieces.pattern(np.array(point), MidRad())
        value = pieces.value(np.array(point), pattern, Rational())
        assert float(value.item().p) / float(value.item().q) == np.clip(point[1], point[0], point[2]) ** 2 + sum(
            point
        )


REFUSED = {
    "sort": lambda w: jnp.sort(w)[0] ** 2,
    "top_k": lambda w: jax.lax.top_k(w, 2)[0].sum(),
    "argmax": lambda w: w[jnp.argmax(w)] ** 2,
    "floor": lambda w: jnp.floor(w).sum() + (w**2).sum(),
    "round": lambda w: jnp.round(w).sum() + (w**2).sum(),
    "stop_gradient": lambda w: (jax.lax.stop_gradient(w) * w).sum(),
    "stop_gradient ": lambda w: jnp.sum((w - jax.lax.stop_gradient(jnp.max(w))) ** 2),
    "float32": lambda w: (w.astype(np.float32) ** 2).sum(),
    "float16": lambda w: (w**2).sum() * jnp.prod(np.float16([1, 2, 3]) * jnp.float16(0.3)),
    "turns a real number into": lambda w: (w**2).sum() + w.astype(int).sum(),
    "calls back": lambda w: jax.pure_callback(np.sum, jax.ShapeDtypeStruct((), np.float64), w),
    "cond": lambda w: jax.lax.cond(w[0] > 0, lambda: w[0], lambda: w[1]),
    "cumprod": lambda w: jnp.cumprod(w).sum(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_piecewise_analytic_formula_is_refused_by_name(name):
    with pytest.raises(UnsupportedProgramError, match=name.strip()):
        PiecewiseProgram(REFUSED[name], SIZE)


@jax.custom_jvp
def straight_through(x):
    return jnp.where(x > 0, 1.0, 0.0)


straight_through.defjvps(lambda tangent, result, x: tangent)


@jax.custom_jvp
def honest(x):
    return jnp.log(1 + jnp.exp(x))


honest.defjvps(lambda tangent, result, x: jax.nn.sigmoid(x) * tangent)


@jax.custom_vjp
def clipped_gradient(x):
    return x**2


clipped_gradient.defvjp(lambda x: (x**2, x), lambda x, g: (jnp.clip(g * 2 * x, -0.01, 0.01),))


@jax.custom_vjp
def honest_backwards(x, n):
    return n * x**2


honest_backwards.defvjp(
    lambda x, n: (n * x**2, (x, n)), lambda kept, g: (g * 2 * kept[0] * kept[1], jnp.sum(g * kept[0] ** 2))
)


@pytest.mark.parametrize(
    "function",
    [
        lambda w: jnp.sum(straight_through(w)) + jnp.sum(w**2),
        lambda w: jax.lax.scan(lambda s, x: (s + straight_through(x) * x, None), 0.0, w)[0],
        lambda w: jnp.sum(jax.vmap(jax.jit(straight_through))(w)),
        lambda w: jnp.sum(clipped_gradient(w)),
    ],
)
def test_a_derivative_rule_that_lies_is_refused(function):
    with pytest.raises(UnsupportedProgramError, match="is not the derivative of its formula"):
        PiecewiseProgram(function, SIZE)


def test_honest_derivative_rules_pass():
    point = np.random.default_rng(0).normal(size=SIZE)
    enclosed(lambda w: jnp.sum(honest(w)), point)
    enclosed(lambda w: jnp.sum(honest(w * np.arange(6.0)) + jax.nn.silu(w) + jnp.sinc(w + 3)), point)
    PiecewiseProgram(lambda w: jnp.sum(honest_backwards(w, 3.0)), SIZE)
    # Units that are exactly zero whatever the parameters (padding, empty columns) are on no side.
    PiecewiseProgram(lambda w: jnp.sum(jax.nn.relu(w * np.array([0.0, 1, 0, 1, 1, 1]))), SIZE)


@pytest.mark.parametrize("name", EXACT_DERIVATIVES)
def test_derivatives_hold_no_rounded_constants(name):
    """JAX's rules for erf, erfc and cbrt hold 2/sqrt(pi) and 1/3 as doubles: not the true derivative."""
    from flint import arb, ctx

    pieces = PiecewiseProgram(lambda w: getattr(jax.lax, name)(w[0]), 1)
    pattern = Pattern((), ())
    with ctx.workprec(400):
        x, h = arb("0.75"), arb(2) ** -100
        f = {"erf": lambda t: t.erf(), "erfc": lambda t: t.erfc(), "cbrt": lambda t: t.root(3)}[name]
        slope = (f(x + h) - f(x - h)) / (2 * h)
        second = (f(x + h) - 2 * f(x) + f(x - h)) / h**2
    gradient = pieces.gradient(np.array([0.75]), pattern, Arb(160))[0]
    hessian = pieces.hessian(np.array([0.75]), pattern, Arb(160))[0, 0]
    assert abs(gradient - slope) < arb("1e-40") and abs(hessian - second) < arb("1e-40")


def test_no_other_derivative_rule_holds_a_rounded_constant():
    from gdmap.engines.balls.evaluate import FUNCTIONS

    for name in set(FUNCTIONS) - set(EXACT_DERIVATIVES):
        program = flat_program(jax.grad(getattr(jax.lax, name)), ())
        literals = [float(a.val) for e in program.jaxpr.eqns for a in e.invars if hasattr(a, "val")]
        assert all(x * 4 == round(x * 4) for x in literals), name


def test_small_and_odd_shapes():
    for function, dim in (
        (lambda w: w[0] ** 3, 1),
        (lambda w: jnp.sum(jnp.zeros((0, 3)) @ w) + jnp.sum(w**2), 3),
        (lambda w: jnp.max(w[:1]) ** 2, 1),
        (lambda w: jnp.sum(w) * 2.0, 2),
        (lambda w: jnp.sum(w * np.array([1, 2])) ** 2 + jnp.sum(np.array([True, False]) * w**3), 2),
    ):
        enclosed(function, np.random.default_rng(1).normal(size=dim))
    constant = PiecewiseProgram(lambda w: jnp.zeros(()) + 1.0, 2)
    assert np.all(constant.hessian(np.ones(2), Pattern((), ()), MidRad()).mid == 0)


def test_derivatives_along_directions_and_jacobians():
    pieces = PiecewiseProgram(lambda w: jnp.sum(w**4) + w[0] * w[1], 3)
    point, directions = (
        np.array([1.0, 2.0, -1.0]),
        np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0], [1.0, 0, 0], [0, 1.0, 0]]),
    )
    hessian = hessian_of(lambda w: jnp.sum(w**4) + w[0] * w[1], point)
    rows = pieces.hessian(point, Pattern((), ()), Rational(), directions)
    assert np.array_equal(Rational().midpoint(rows), directions @ hessian)
    vector = PiecewiseProgram(lambda w: jnp.stack([w[0] * w[1], jnp.sum(w**2)]), 3)
    jacobian = vector.jacobian(point, Pattern((), ()), Rational())
    assert Rational().midpoint(jacobian).tolist() == [[2, 1, 0], [2, 4, -2]]


def test_values_that_are_not_finite_are_refused():
    pieces = PiecewiseProgram(lambda w: jnp.log(w[0]) + 1 / w[1], 2)
    assert not pieces.is_analytic_everywhere
    for point in (np.array([-1.0, 1.0]), np.array([1.0, 0.0])):
        for arithmetic in (MidRad(), Arb(64)):
            with pytest.raises(UndecidedError, match="not finite"):
                pieces.value(point, Pattern((), ()), arithmetic)
    overflowing = PiecewiseProgram(lambda w: jnp.exp(w[0] ** 2), 1)
    with pytest.raises(UndecidedError, match="overflow"):
        overflowing.hessian(np.array([100.0]), Pattern((), ()), MidRad())


def test_digests_tell_patterns_apart():
    pieces = PiecewiseProgram(KINKED["relu"], SIZE)
    points = np.random.default_rng(0).normal(size=(20, SIZE))
    patterns = [pieces.pattern(point, MidRad()) for point in points]
    for one in patterns:
        for other in patterns:
            same = all(np.array_equal(a, b) for a, b in zip(one.masks, other.masks, strict=True))
            assert (one.digest == other.digest) == same
    assert all(np.all(mask == EITHER) for mask in pieces.every_pattern().masks)

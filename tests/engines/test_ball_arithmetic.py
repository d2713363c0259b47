"""The radii of verified doubles hold every number that they should, exactly; exact rationals are exact."""

import math
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx, fmpq
from hypothesis import given, settings
from hypothesis import strategies as st

from gdmap.engines.balls.anything import ANY
from gdmap.engines.balls.arb import Arb
from gdmap.engines.balls.arithmetic import EITHER, UndecidedError
from gdmap.engines.balls.mid_rad import Intervals, MidRad, as_balls, outward
from gdmap.engines.balls.rational import Rational
from gdmap.engines.balls.tracked import Tracked

ARITHMETIC = MidRad()
# Magnitudes from denormals to what just does not overflow when multiplied.
NUMBERS = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.1, 5e-324, -2.5e-310, 2.0**-1022, 2.0**-400, 1e150, 3.0]),
    st.floats(-1e100, 1e100, allow_nan=False),
    st.floats(-10, 10, allow_nan=False),
)
RADII = st.one_of(st.just(0.0), st.sampled_from([5e-324, 1e-300, 1e-17, 1e-3, 1.0]), st.floats(0, 1e3))
INTERVALS = st.tuples(NUMBERS, RADII, st.sampled_from([-1, 0, 1, Fraction(1, 3)]))


def interval_of(*parts):
    mid, rad, place = zip(*parts, strict=True)
    value = Intervals(np.array(mid), np.array(rad))
    points = [Fraction(m) + Fraction(r) * p for m, r, p in zip(mid, rad, place, strict=True)]
    return value, points


def holds(interval, numbers):
    """Whether intervals contain exact numbers; infinite radii contain all."""
    for mid, rad, x in zip(interval.mid.ravel().tolist(), interval.rad.ravel().tolist(), numbers, strict=True):
        if math.isfinite(mid) and math.isfinite(rad) and abs(Fraction(mid) - x) > Fraction(rad):
            return False
    return True


def evaluated(function, *operands):
    with ARITHMETIC.active():
        return function(*operands)


@given(INTERVALS, INTERVALS)
@settings(max_examples=400, deadline=None)
def test_sums_products_and_quotients_of_intervals_hold_those_of_their_numbers(one, other):
    (a, (x,)), (b, (y,)) = interval_of(one), interval_of(other)
    assert holds(evaluated(ARITHMETIC.add, a, b), [x + y])
    assert holds(evaluated(ARITHMETIC.sub, a, b), [x - y])
    assert holds(evaluated(ARITHMETIC.mul, a, b), [x * y])
    quotient = evaluated(ARITHMETIC.div, a, b)
    if abs(Fraction(other[0])) <= Fraction(other[1]):
        assert not ARITHMETIC.is_finite(quotient)
    elif y:
        assert holds(quotient, [x / y])


@given(INTERVALS, st.integers(-4, 6))
@settings(max_examples=200, deadline=None)
def test_powers(one, exponent):
    (a, (x,)) = interval_of(one)
    if x or exponent >= 0:
        assert holds(evaluated(ARITHMETIC.power, a, exponent), [x**exponent])


@given(st.lists(INTERVALS, min_size=1, max_size=12), st.lists(INTERVALS, min_size=12, max_size=12))
@settings(max_examples=200, deadline=None)
def test_sums_and_dot_products(left, right):
    a, xs = interval_of(*left)
    b, ys = interval_of(*right[: len(left)])
    assert holds(evaluated(ARITHMETIC.sum, a, (0,)), [sum(xs)])
    row, column = Intervals(a.mid[None], a.rad[None]), Intervals(b.mid[:, None], b.rad[:, None])
    assert holds(evaluated(ARITHMETIC.matmul, row, column), [sum(x * y for x, y in zip(xs, ys, strict=True))])


@given(INTERVALS, INTERVALS)
@settings(max_examples=200, deadline=None)
def test_a_choice_left_open_holds_both_branches(one, other):
    (a, (x,)), (b, (y,)) = interval_of(one), interval_of(other)
    either = evaluated(ARITHMETIC.select, np.array([EITHER]), a, b)
    assert holds(either, [x]) and holds(either, [y])
    assert np.all(np.isfinite(either.rad))


@given(INTERVALS, INTERVALS)
@settings(max_examples=200, deadline=None)
def test_a_sign_is_told_only_if_all_numbers_have_it(one, other):
    (a, (x,)) = interval_of(one)
    assert ARITHMETIC.sign(a)[0] in (2, (x > 0) - (x < 0))
    with Arb(100).active():
        ball = as_balls(a)
        assert Arb(100).sign(ball)[0] in (2, (x > 0) - (x < 0))


@given(
    INTERVALS, st.sampled_from(["exp", "log", "tanh", "logistic", "sin", "sqrt", "rsqrt", "erf", "cbrt", "expm1"])
)
@settings(max_examples=300, deadline=None)
def test_functions_of_intervals_hold_those_of_their_numbers(one, name):
    (a, (x,)) = interval_of(one)
    if abs(x) > 10**6:
        return
    value = evaluated(ARITHMETIC.function, name, a)
    with ctx.workprec(300):
        true = Arb(300).element(name, arb(fmpq(x.numerator, x.denominator)))
        if not true.is_finite():
            assert not np.isfinite(value.rad[0])
        elif np.isfinite(value.rad[0]):
            assert as_balls(value)[0].overlaps(true)


def test_long_sums_and_products_of_matrices_against_exact_rationals():
    rng = np.random.default_rng(1)
    for _ in range(20):
        a, b = rng.normal(size=(3, 60)) * 10.0 ** rng.integers(-9, 9, (3, 60)), rng.normal(size=(60, 2))
        ra, rb = np.abs(a) * 1e-9, np.abs(b) * 1e-12
        sides = rng.choice([-1, 1], a.shape), rng.choice([-1, 1], b.shape)
        exact = (Rational().constant(a) + Rational().constant(ra) * sides[0]) @ (
            Rational().constant(b) + Rational().constant(rb) * sides[1]
        )
        product = ARITHMETIC.matmul(Intervals(a, ra), Intervals(b, rb))
        assert holds(product, [Fraction(int(q.p), int(q.q)) for q in exact.ravel()])
        assert np.all(product.rad <= 2.1e-9 * (np.abs(a) @ np.abs(b)))
        total = ARITHMETIC.sum(Intervals(a, ra * 0), (0, 1))
        exact_sum = sum(map(Fraction, a.ravel().tolist()))
        assert holds(total, [exact_sum]) and total.rad < 1e-13 * np.abs(a).sum()


def test_zero_times_what_is_not_known_to_be_finite_is_not_zero():
    zero = Intervals(np.zeros(1), np.zeros(1))
    for unbounded in (Intervals(np.zeros(1), np.full(1, np.inf)), Intervals(np.full(1, np.inf), np.zeros(1))):
        for result in (
            evaluated(ARITHMETIC.mul, zero, unbounded),
            evaluated(ARITHMETIC.mul, unbounded, zero),
            evaluated(ARITHMETIC.add, zero, unbounded),
            evaluated(ARITHMETIC.div, zero, unbounded),
            evaluated(ARITHMETIC.select, np.array([EITHER]), zero, unbounded),
            evaluated(
                ARITHMETIC.matmul, Intervals(*(x[None] for x in zero)), Intervals(*(x[None] for x in unbounded))
            ),
        ):
            assert not ARITHMETIC.is_finite(result)
    with pytest.raises(UndecidedError, match="no exact rational"):
        Rational().constant(np.array([np.inf]))
    assert not Arb().is_finite(Arb().constant(np.zeros(1)) * Arb().constant(np.array([np.inf])))


def test_overflow_is_no_number():
    huge = Intervals(np.array([1e200]), np.array([0.0]))
    for result in (
        evaluated(ARITHMETIC.mul, huge, huge),
        evaluated(ARITHMETIC.power, huge, 2),
        evaluated(ARITHMETIC.function, "exp", huge),
        evaluated(ARITHMETIC.div, huge, Intervals(np.array([1e-200]), np.zeros(1))),
        outward(np.array([arb(10) ** 400], object)),
    ):
        assert not ARITHMETIC.is_finite(result)


def test_exact_zeros_stay_exact_so_that_tangents_stay_sparse():
    zero, one = ARITHMETIC.constant(np.zeros(3)), ARITHMETIC.constant(np.array([0.1, 3.0, 1e300]))
    for result in (
        ARITHMETIC.mul(zero, one),
        ARITHMETIC.div(zero, one),
        ARITHMETIC.add(zero, zero),
        ARITHMETIC.sum(zero, (0,)),
        ARITHMETIC.function("tanh", zero),
    ):
        assert np.all(result.mid == 0) and np.all(result.rad == 0)
    assert np.all(ARITHMETIC.div(one, ARITHMETIC.constant(np.full(3, 0.25))).rad == 0)


def test_decimals_are_read_as_printed_on_request():
    point = np.array([0.1, 0.5, -3.0])
    exact = Rational(exact_decimals=True).constant(point)
    assert exact.tolist() == [fmpq(1, 10), fmpq(1, 2), fmpq(-3)]
    assert Rational().constant(point)[0] != fmpq(1, 10)
    intervals = MidRad(exact_decimals=True).constant(point)
    assert holds(intervals, [Fraction(1, 10), Fraction(1, 2), Fraction(-3)])
    assert intervals.rad[0] > 0 and np.all(intervals.rad[1:] == 0)
    with Arb(200, exact_decimals=True).active():
        ball = Arb(200, exact_decimals=True).constant(point)[0]
        assert ball.contains(fmpq(1, 10)) and not ball.contains(arb(0.1))


def test_rationals_with_unknowns():
    arithmetic = Rational()
    a = np.array([[fmpq(0), ANY], [fmpq(1, 3), fmpq(2)]], object)
    b = np.array([[ANY, fmpq(1)], [fmpq(0), fmpq(3)]], object)
    for product in (arithmetic.product(a, b), arithmetic.matmul(a, b)):
        assert product[0, 0] == 0 and product[0, 1] is ANY and product[1, 0] is ANY
        assert product[1, 1] == fmpq(19, 3)
    assert arithmetic.hull(fmpq(1), fmpq(1)) == 1 and arithmetic.hull(fmpq(1), fmpq(2)) is ANY
    assert arithmetic.sign(a).tolist() == [[0, 2], [1, 1]]
    assert arithmetic.function("exp", np.array([fmpq(0), fmpq(1), ANY], object)).tolist()[0] == 1
    with pytest.raises(UndecidedError, match="outside its domain"):
        arithmetic.function("log", np.array([fmpq(0)], object))


def test_what_depends_on_the_parameters_is_remembered():
    tracked = Tracked(Rational())
    theta = tracked.variable(Rational().constant(np.array([0.0, 2.0])))
    constant = tracked.constant(np.array([0.0, 3.0]))
    assert tracked.add(theta, constant).depends.tolist() == [True, True]
    # Zero that is constant absorbs; a parameter that happens to be zero does not.
    assert tracked.mul(theta, constant).depends.tolist() == [False, True]
    assert tracked.mul(theta, theta).depends.tolist() == [True, True]
    assert tracked.div(constant, tracked.variable(Rational().constant(np.ones(2)))).depends.tolist() == [
        False,
        True,
    ]
    assert tracked.power(theta, 0).depends.tolist() == [False, False]
    assert tracked.sum(theta, (0,)).depends.tolist() is True
    one_row = tracked.rearrange(lambda a: a[None], constant)
    column = tracked.rearrange(lambda a: a[:, None], theta)
    assert tracked.matmul(one_row, column).depends.tolist() == [[True]]
    chosen = tracked.select(np.array([1, EITHER], np.int8), constant, theta)
    assert chosen.depends.tolist() == [False, True]


@pytest.mark.parametrize("x", [-8.0, -0.001, 0.0, 27.0])
def test_cube_roots_of_negative_numbers(x):
    arithmetic = Arb(100)
    with arithmetic.active():
        for ball in (arb(x), arb(x, 1e-3), arb(x, 30)):
            root = arithmetic.element("cbrt", ball)
            assert root.contains(arb(np.cbrt(x)) if ball.rad() > 0 else root.mid()) and (root**3).overlaps(arb(x))

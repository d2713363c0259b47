import copy
import operator
import pickle
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, fmpq, fmpz
from hypothesis import given
from hypothesis import strategies as st

from gdmap.engines.balls.anything import ANY, Anything, exact_rational, is_known, unknowns

NUMBERS = [2, 0.5, np.float64(2), np.int64(3), Fraction(1, 3), fmpz(3), fmpq(1, 2), arb(2)]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("operation", [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow])
def test_an_operation_with_an_unknown_number_is_unknown_in_either_order(number, operation):
    assert operation(ANY, number) is ANY
    assert operation(number, ANY) is ANY


@pytest.mark.parametrize("zero", [0, 0.0, np.float64(0), fmpz(0), fmpq(0), Fraction(0), arb(0)])
def test_what_is_known_all_the_same(zero):
    for known in (zero * ANY, ANY * zero, zero / ANY):
        assert known == 0 and isinstance(known, fmpq)
    assert ANY**zero == 1
    assert fmpq(1) ** ANY == 1
    with pytest.raises(ZeroDivisionError):
        ANY / zero
    # Two unknowns are not known to be equal.
    for unknown in (ANY - ANY, ANY / ANY, -ANY, abs(ANY), ANY**2, ANY + zero):
        assert unknown is ANY


def test_a_ball_round_zero_is_not_zero():
    assert arb(0, 1) * ANY is ANY


def test_nothing_is_decided_about_it():
    for question in (
        lambda: ANY == ANY,
        lambda: ANY == 0,
        lambda: fmpq(1) == ANY,
        lambda: ANY != 1,
        lambda: fmpq(1) < ANY,
        lambda: ANY > 0.5,
        lambda: bool(ANY),
        lambda: float(ANY),
        lambda: np.array([fmpq(1), ANY], dtype=object) == fmpq(1),
        lambda: np.maximum(np.array([ANY], dtype=object), fmpq(1)),
    ):
        with pytest.raises(TypeError, match="not decided"):
            question()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, arb("nan")])
def test_it_stands_for_finite_numbers_only(bad):
    with pytest.raises(ValueError, match="finite"):
        ANY * bad
    with pytest.raises(TypeError):
        ANY + "1"


def test_there_is_one():
    assert Anything() is ANY
    assert copy.deepcopy(ANY) is ANY
    assert pickle.loads(pickle.dumps(ANY)) is ANY


def test_it_lives_in_object_arrays():
    matrix = np.array([[fmpq(1), ANY], [fmpq(0), fmpq(2)]], dtype=object)
    square = matrix @ matrix
    assert is_known(square).tolist() == [[True, False], [True, True]]
    assert (square[0, 0], square[1, 0], square[1, 1]) == (1, 0, 4)
    assert not is_known(unknowns((2, 3)) + matrix[0, 0]).any()
    assert is_known(matrix.sum(axis=0)).tolist() == [True, False]


@given(st.integers(0, 2**32 - 1))
def test_known_results_are_right_whatever_the_unknowns_are(seed):
    """Random straight-line programs: what is known with unknown inputs is what two sets of numbers give."""
    rng = np.random.default_rng(seed)
    n_inputs = 4
    constants = [fmpq(0), fmpq(1), fmpq(-2, 3)]
    steps = [
        (rng.integers(4), *(int(k) for k in rng.integers(0, n_inputs + len(constants) + step, 2)))
        for step in range(12)
    ]

    def run(inputs):
        values = [*inputs, *constants]
        for kind, i, j in steps:
            a, b = values[i], values[j]
            values.append([a + b, a - b, a * b, a**2][kind])
        return values

    abstract = run([ANY] * n_inputs)
    for _ in range(2):
        exact = run(
            [fmpq(int(p), int(q)) for p, q in zip(rng.integers(-3, 4, 4), rng.integers(1, 4, 4), strict=True)]
        )
        assert all(a is ANY or a == b for a, b in zip(abstract, exact, strict=True))


def test_exact_rational_reads_numbers_as_they_are():
    assert exact_rational(0.1) == fmpq(3602879701896397, 2**55)
    assert exact_rational(np.float32(0.1)) == fmpq(13421773, 2**27)
    assert exact_rational(Fraction(1, 10)) == exact_rational(fmpq(1, 10)) == fmpq(1, 10)
    assert exact_rational(fmpz(7)) == exact_rational(np.int8(7)) == 7
    assert exact_rational(np.True_) == exact_rational(True) == 1
    with pytest.raises(ValueError, match="finite"):
        exact_rational(np.nan)
    for wrong in ("0.1", 1j, ANY, None):
        with pytest.raises(TypeError, match="expected"):
            exact_rational(wrong)

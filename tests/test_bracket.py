import math

import pytest

from gdmap import Bracket


def test_is_a_number_with_its_interval():
    bracket = Bracket(2.0, 1.5, 2.5, "computed", "formula")
    assert float(bracket) == 2.0
    assert bracket.confidence is None
    assert bracket.relative_width == 0.5


def test_reciprocal_swaps_the_end_points_outward():
    bracket = Bracket(4.0, 3.0, 5.0, "estimated", "search").reciprocal(2.0, "2 / x")
    assert bracket.value == 0.5
    assert bracket.lower <= 2 / 5 and bracket.upper >= 2 / 3
    assert bracket.status == "estimated"


def test_reciprocal_of_zero_is_infinite():
    bracket = Bracket(0.0, 0.0, 0.0, "computed", "exact").reciprocal(2.0, "")
    assert math.isinf(bracket.value) and math.isinf(bracket.lower) and math.isinf(bracket.upper)
    assert bracket.relative_width == 0
    assert str(bracket) == "inf (computed)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2.0, 2.5, 3.0, "computed", ""), "lower <= value <= upper"),
        ((math.nan, 0.0, 1.0, "computed", ""), "lower <= value <= upper"),
        ((1.0, 0.0, 2.0, "guessed", ""), "status"),
        ((1.0, 0.0, 2.0, "computed", "", 0.95), "confidence"),
    ],
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Bracket(*arguments)

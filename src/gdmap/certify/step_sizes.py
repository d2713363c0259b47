"""Step sizes as the exact numbers they are."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np

# A decimal has at most so many digits, so that "1e400" or a hostile string costs nothing.
MOST_DIGITS = 400
SMALLEST, LARGEST = Fraction(1, 10**301), Fraction(10**301)


def exact_step_size(step_size: Any, exact_decimals: bool = False) -> Fraction:
    """``step_size`` as an exact positive rational number.

    A float is the binary number that it is (0.1 is 3602879701896397 / 2**55); with ``exact_decimals`` it is the
    decimal number that its shortest printed form names. A `Fraction`, an integer and a string such as ``"1/10"``
    or ``"0.1"`` are themselves.

    Raises
    ------
    ValueError, TypeError
        If it is not one positive finite number.
    """
    if isinstance(step_size, (np.ndarray, jax.Array)) and step_size.ndim == 0:
        step_size = np.asarray(step_size)[()]
    if isinstance(step_size, bool) or not isinstance(
        step_size, (Fraction, int, float, str, np.integer, np.floating)
    ):
        raise TypeError(
            f"a step size is a float, an integer, a Fraction or a string such as '1/10', got {step_size!r}"
        )
    try:
        if isinstance(step_size, str):
            mantissa, _, exponent = step_size.lower().partition("e")
            if len(mantissa) > MOST_DIGITS or len(exponent) > 4:
                raise ValueError
            exact = Fraction(step_size)
        elif isinstance(step_size, (float, np.floating)):
            exact = Fraction(str(step_size) if exact_decimals else float(step_size))
        else:
            exact = Fraction(int(step_size) if isinstance(step_size, np.integer) else step_size)
    except (ValueError, OverflowError, ZeroDivisionError):
        raise ValueError(
            f"step_size must be one positive finite number such as 0.1 or '1/10', got {step_size!r}"
        ) from None
    if exact <= 0:
        raise ValueError(f"step_size must be positive, got {step_size!r}")
    if not SMALLEST <= exact <= LARGEST:
        raise ValueError(f"step_size must be between 1e-301 and 1e301, got {str(step_size)[:40]}")
    return exact


def exact_step_sizes(step_size: Any, exact_decimals: bool = False) -> tuple[Fraction, ...]:
    """One step size or a sequence of them (a schedule), exact, each once."""
    if isinstance(step_size, (Sequence, np.ndarray)) and not isinstance(step_size, str) and np.ndim(step_size) > 0:
        if len(step_size) == 0:
            raise ValueError("step_size is an empty sequence: give at least one step size")
        sizes = [exact_step_size(size, exact_decimals) for size in step_size]
        return tuple(dict.fromkeys(sizes))
    return (exact_step_size(step_size, exact_decimals),)


def briefly(exact: Fraction) -> str:
    """An exact number as text: as it is if that is short, else rounded, with a sign for it."""
    text = str(exact)
    shortest = repr(float(exact))
    if Fraction(shortest) == exact and len(shortest) <= len(text):
        return shortest
    return text if len(text) <= 12 else f"about {float(exact):.10g}"


def in_words(exact: Fraction) -> str:
    """A step size as text: as a decimal if it is a short one, else the float next to it with its exact form."""
    shortest = repr(float(exact))
    if Fraction(shortest) == exact:
        return shortest
    if Fraction(float(exact)) == exact:
        return f"{shortest} (the binary number of that name, not the decimal)"
    return f"{exact.numerator}/{exact.denominator}"


def counted(number: int, name: str) -> str:
    """A number of things."""
    return f"one {name}" if number == 1 else f"{number} {name}s"

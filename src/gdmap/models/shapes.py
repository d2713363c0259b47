"""Checks of the sizes and options of networks."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def checked_size(value: Any, name: str) -> int:
    """A positive integer, or an error naming the argument."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a positive integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def checked_widths(widths: Sequence[int], name: str = "widths", least: int = 2) -> tuple[int, ...]:
    """Positive integers, at least ``least`` of them."""
    if isinstance(widths, (str, int, np.integer)) or not hasattr(widths, "__iter__"):
        raise TypeError(f"{name} must be a sequence of positive integers, got {widths!r}")
    checked = tuple(checked_size(width, f"each of {name}") for width in widths)
    if len(checked) < least:
        raise ValueError(f"{name} must hold at least {least} numbers, got {checked}")
    return checked


def checked_option(value: Any, name: str) -> bool:
    """True or False, or an error naming the argument."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def checked_seed(seed: Any) -> int:
    """A non-negative integer below ``2**63``."""
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be a non-negative integer, got {seed!r}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a non-negative integer below 2**63, got {seed!r}")
    return int(seed)

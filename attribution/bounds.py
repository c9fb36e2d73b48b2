"""Bounds: arguments that must be numbers in a range, checked before anything runs."""

from __future__ import annotations

import math
from typing import Any


def is_number(value: Any) -> bool:
    """Whether a value is a finite number and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_whole(name: str, value: Any, *, least: int, of: str = "a number of them") -> None:
    """Raise ValueError unless an argument is a whole number of at least so much; `of` says what it counts."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; expected {of}, a whole number of {least} or more")


def check_seed(seed: Any) -> None:
    """Raise ValueError unless a seed is a whole number."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed is {seed!r}; expected a whole number")

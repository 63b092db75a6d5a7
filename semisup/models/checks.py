"""Checks of single option values, each answering with a list of sentences (empty when the value is fine)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from semisup.errors import nearest

__all__ = ["check_choice", "check_flag", "check_number", "check_whole"]


def check_whole(key: str, value: object, minimum: int) -> list[str]:
    """Complain unless ``value`` is an ``int`` (``True`` is not one) of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        return [f"{key} must be a whole number of at least {minimum}, got {value!r}"]
    return []


def check_number(key: str, value: object, *, above: float, at_most: float = math.inf) -> list[str]:
    """Complain unless ``value`` is a finite number with ``above < value <= at_most``."""
    rule = f"above {above:g}" + (f" and at most {at_most:g}" if at_most < math.inf else "")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return [f"{key} must be a number {rule}, got {value!r}"]
    if not math.isfinite(value) or not above < value <= at_most:
        return [f"{key} must be a number {rule}, got {value!r}"]
    return []


def check_choice(key: str, value: object, choices: Sequence[str]) -> list[str]:
    """Complain unless ``value`` is one of ``choices``."""
    if value in choices:
        return []
    return [f"{key} must be one of {', '.join(choices)}, got {value!r}{nearest(str(value), choices)}"]


def check_flag(key: str, value: object) -> list[str]:
    """Complain unless ``value`` is true or false."""
    return [] if isinstance(value, bool) else [f"{key} must be true or false, got {value!r}"]

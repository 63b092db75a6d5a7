"""Which values a setting may take: a rule maps a value to None (fine) or to what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from semisup.errors import nearest

__all__ = ["Rule", "above", "at_least", "below_one", "between", "matching", "obeys", "one_of", "show"]

Rule = Callable[[Any], str | None]


def show(value: object) -> str:
    """Return a value as its YAML reader wrote it, cut to 60 characters."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def obeys(rule: Rule) -> dict[str, Rule]:
    """Return the dataclass field metadata that attaches ``rule`` to a field; null is never passed to a rule."""
    return {"rule": rule}


def above(low: float) -> dict[str, Rule]:
    """Accept numbers greater than ``low``."""
    return obeys(lambda value: None if value > low else f"must be greater than {low}, not {value}")


def at_least(low: float) -> dict[str, Rule]:
    """Accept numbers of ``low`` or more."""
    return obeys(lambda value: None if value >= low else f"must be at least {low}, not {value}")


def between(low: float, high: float) -> dict[str, Rule]:
    """Accept numbers from ``low`` to ``high``, both included."""
    return obeys(lambda value: None if low <= value <= high else f"must be from {low} to {high}, not {value}")


def below_one() -> dict[str, Rule]:
    """Accept numbers of at least 0 and less than 1: momenta and decays."""
    return obeys(lambda value: None if 0 <= value < 1 else f"must be at least 0 and less than 1, not {value}")


def one_of(*names: str) -> dict[str, Rule]:
    """Accept the given names only."""
    return obeys(lambda value: None if value in names else f"unknown value {show(value)}{nearest(value, names)}")


def matching(pattern: str, rule: str) -> dict[str, Rule]:
    """Accept text that matches ``pattern`` whole; ``rule`` says so in words, e.g. "must not be empty"."""
    return obeys(lambda value: None if re.fullmatch(pattern, value) else f"{rule}, not {show(value)}")

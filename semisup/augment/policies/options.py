"""Rules for the options of a policy: each says in words what it accepts, so that a mistake can be answered in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from semisup.errors import nearest

__all__ = ["Rule", "flag", "fraction_or_color", "names", "number", "one_of", "option", "pair", "problems", "whole"]

Rule = Callable[[object], str | None]
"""From a value to what is wrong with it ("must be ..."), or None."""


def option(default: Any, rule: Rule) -> Any:
    """Return a dataclass field with a default and the rule its values obey."""
    return dataclasses.field(default=default, metadata={"rule": rule})


def problems(cls: type, options: Mapping[str, object]) -> list[str]:
    """Return one sentence per unknown name in ``options`` and per value that breaks its rule.

    Args:
        cls: a dataclass whose fields were made by :func:`option`.
        options: keyword arguments for its constructor.
    """
    rules: dict[str, Rule] = {field.name: field.metadata["rule"] for field in dataclasses.fields(cls)}
    found = []
    for name, value in options.items():
        if name not in rules:
            found.append(f"unknown option '{name}'{nearest(name, rules)}")
        elif (wrong := rules[name](value)) is not None:
            found.append(f"{name} {wrong}, got {value!r}")
    return found


def flag(value: object) -> str | None:
    """Accept true or false."""
    return None if isinstance(value, bool) else "must be true or false"


def number(low: float, high: float, *, optional: bool = False) -> Rule:
    """Accept a number from ``low`` to ``high``; None too where ``optional``."""
    words = f"must be a number from {low:g} to {high:g}" + (" (or null)" if optional else "")
    return lambda value: None if _is_number(value, low, high) or (optional and value is None) else words


def whole(low: int, high: int) -> Rule:
    """Accept a whole number from ``low`` to ``high``."""

    def rule(value: object) -> str | None:
        fits = isinstance(value, int) and _is_number(value, low, high)
        return None if fits else f"must be a whole number from {low} to {high}"

    return rule


def pair(low: float, high: float, *, optional: bool = False) -> Rule:
    """Accept [a, b] with low < a <= b <= high; None too where ``optional``."""

    def rule(value: object) -> str | None:
        if optional and value is None:
            return None
        if isinstance(value, list | tuple) and len(value) == 2 and all(_is_number(v, low, high) for v in value):
            first, second = value
            if low < first <= second:
                return None
        return f"must be two numbers [a, b] with {low:g} < a <= b <= {high:g}" + (" (or null)" if optional else "")

    return rule


def fraction_or_color(value: object) -> str | None:
    """Accept a number from 0 to 1, three of them, or None."""
    if value is None or _is_number(value, 0, 1):
        return None
    if isinstance(value, list | tuple) and len(value) == 3 and all(_is_number(v, 0, 1) for v in value):
        return None
    return "must be a number from 0 to 1, three of them (red, green, blue), or null"


def one_of(*valid: str) -> Rule:
    """Accept one of these names."""
    return lambda value: None if value in valid else f"must be one of {', '.join(valid)}"


def names(valid: Collection[str]) -> Rule:
    """Accept None, or a list of one or more of these names."""

    def rule(value: object) -> str | None:
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not value:
            return "must be a list of operations, or null"
        unknown = [str(name) for name in value if name not in valid]
        return f"has an unknown operation '{unknown[0]}'{nearest(unknown[0], valid)}" if unknown else None

    return rule


def _is_number(value: object, low: float, high: float) -> bool:
    """Tell whether it is a finite number in [low, high]; true and false are not numbers here."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and low <= value <= high

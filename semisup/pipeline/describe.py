"""One method as a person reads it: what it computes, its options with ranges and defaults, its sources."""

from __future__ import annotations

import inspect
import json
import math
import re
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from semisup.methods import METHODS
from semisup.methods.base import Method
from semisup.options import option_defaults

__all__ = ["MethodText", "Option", "describe_method"]


@dataclass(frozen=True)
class Option:
    """One key of a recipe's `method:` mapping."""

    name: str
    default: Any
    type: str
    """Which values it takes, in words."""
    help: str
    """What its docstring says, with the source of the default."""


@dataclass(frozen=True)
class MethodText:
    """A method in words."""

    name: str
    family: str
    summary: str
    citation: str
    description: str
    """What it computes, and where it differs from the paper."""
    labeled: dict[str, str]
    """View of the labeled images -> policy."""
    unlabeled: dict[str, str]
    """View of the unlabeled images -> policy."""
    options: list[Option]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def to_text(self) -> str:
        """Return some lines for a terminal."""
        views = [
            f"{part} images: {', '.join(f'{view} ({policy})' for view, policy in policies.items())}"
            for part, policies in (("labeled", self.labeled), ("unlabeled", self.unlabeled))
            if policies
        ]
        lines = [f"{self.name} ({self.family}): {self.summary}", self.citation, "", self.description, "", *views, ""]
        if not self.options:
            lines.append("no options")
        for option in self.options:
            lines.append(f"  {option.name}: {option.type}; default {json.dumps(option.default)}")
            lines += [f"      {line}" for line in option.help.splitlines()]
        keys = "".join(f", {option.name}: ..." for option in self.options[:1])
        return "\n".join([*lines, "", f"in a recipe: method: {{name: {self.name}{keys}}}"])


def describe_method(name: str) -> MethodText:
    """Say what there is to know of a method.

    Args:
        name: a key of `METHODS`.
    """
    cls = METHODS[name]
    text = inspect.getdoc(cls) or ""
    description = text.split("\nArgs:")[0].strip()
    helps = _arguments(text)
    hints = get_type_hints(cls.__init__, include_extras=True)
    options = [
        Option(key, default, _words(hints[key]), helps.get(key, "")) for key, default in option_defaults(cls).items()
    ]
    labeled, unlabeled = _views(cls, "labeled"), _views(cls, "unlabeled")
    return MethodText(name, cls.family, cls.summary, cls.citation, description, labeled, unlabeled, options)


def _views(cls: type[Method], part: Literal["labeled", "unlabeled"]) -> dict[str, str]:
    views = inspect.getattr_static(cls, "views", None)
    return {} if views is None or not hasattr(views, "policies") else dict(views.policies(part))


def _arguments(docstring: str) -> dict[str, str]:
    """Return the paragraphs of a docstring's `Args:`, by name."""
    _, _, section = docstring.partition("\nArgs:\n")
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        begins = re.match(r" {4}([a-z0-9_, ]+): (.*)", line)
        if begins:
            names = [name.strip() for name in begins[1].split(",")]
            found |= {name: [begins[2]] for name in names}
        elif line.strip():
            for name in names:
                found[name].append(line.strip())
    return {name: "\n".join(lines) for name, lines in found.items()}


def _words(hint: Any) -> str:
    """Say which values an annotated type takes."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *notes = get_args(hint)
        return f"{_words(inner)} {_bounds(notes)}".rstrip()
    if origin is Literal:
        return " | ".join(map(str, get_args(hint)))
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in get_args(hint))
    if origin is list:
        return f"list, each {_words(get_args(hint)[0])}"
    if origin is dict:
        return f"mapping to {_words(get_args(hint)[1])}"
    names = {float: "number", int: "whole number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(hint, str(hint))


def _bounds(notes: Sequence[Any]) -> str:
    """Say the range of a number, as `semisup.options.Range` has it."""
    found = [mark for note in notes for mark in (note, *getattr(note, "metadata", ()))]
    low, high, opens, closes = -math.inf, math.inf, False, False
    for mark in found:
        for name in ("ge", "gt", "le", "lt"):
            bound = None if isinstance(mark, FieldInfo) else getattr(mark, name, None)
            if bound is not None and name[0] == "g":
                low, opens = bound, name == "gt"
            elif bound is not None:
                high, closes = bound, name == "lt"
    if math.isinf(high):
        return "" if math.isinf(low) else f"{'>' if opens else '>='} {low:g}"
    return f"in {'(' if opens else '['}{low:g}, {high:g}{')' if closes else ']'}"

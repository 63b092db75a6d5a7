"""One method as a person reads it: what it computes, its options with ranges and defaults, its sources."""

from __future__ import annotations

import inspect
import json
import math
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from semisup.methods import METHODS
from semisup.methods.base import Method
from semisup.options import option_defaults

__all__ = ["MethodText", "Option", "describe_method", "described_options", "words"]


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
    labeled, unlabeled = _views(cls, "labeled"), _views(cls, "unlabeled")
    options = described_options(cls)
    return MethodText(name, cls.family, cls.summary, cls.citation, description, labeled, unlabeled, options)


def described_options(target: Callable[..., Any]) -> list[Option]:
    """Return the options of a method, a network or a policy, by its signature and the `Args:` of its docstring.

    What a class does not say of an option, the nearest one that it inherits from does.
    """
    function = target.__init__ if inspect.isclass(target) and not is_dataclass(target) else target
    hints = get_type_hints(function, include_extras=True)
    said = reversed(inspect.getmro(target)) if inspect.isclass(target) else [target]
    helps = {name: text for one in said for name, text in _arguments(inspect.getdoc(one) or "").items()}
    return [
        Option(key, default, words(hints[key]), helps.get(key, "")) for key, default in option_defaults(target).items()
    ]


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
        begins = re.match(r" {4}([a-z0-9_][a-z0-9_, ]*): (.*)", line)  # deeper lines go on, colon or not
        if begins:
            names = [name.strip() for name in begins[1].split(",")]
            found |= {name: [begins[2]] for name in names}
        elif line.strip():
            for name in names:
                found[name].append(line.strip())
    return {name: "\n".join(lines) for name, lines in found.items()}


def words(hint: Any) -> str:
    """Say which values an annotated type takes."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *notes = get_args(hint)
        return f"{words(inner)} {_bounds(notes)}".rstrip()
    if origin is Literal:
        return " | ".join(map(str, get_args(hint)))
    if origin in (Union, types.UnionType):
        return " or ".join(words(part) for part in get_args(hint))
    if origin is dict:
        return f"mapping to {words(get_args(hint)[1])}"
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return f"list, each {words(get_args(hint)[0])}"
    if inspect.isclass(hint) and issubclass(hint, BaseModel):
        return "mapping"
    names = {
        Any: "anything",
        float: "number",
        int: "whole number",
        bool: "true or false",
        str: "text",
        type(None): "null",
    }
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
        return "" if math.isinf(low) else f"{'>' if opens else '>='} {_number(low)}"
    return f"in {'(' if opens else '['}{_number(low)}, {_number(high)}{')' if closes else ']'}"


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"

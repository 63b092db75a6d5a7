"""YAML text to plain containers: nothing in a file can run code, and every complaint names the line.

Scalars are those of YAML 1.2's core schema: `010` is ten, `yes` and `1:30` are text, `1e-3` is a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from semisup.errors import SemisupError, first_line, raise_all
from semisup.settings.interpolate import wrong_text

__all__ = ["as_override", "dump", "read_mapping", "read_value"]

_MAX_BYTES = 1 << 20  # a recipe has a few kB; whoever names a data file by mistake is told at once
MAX_DEPTH = 40
"""Mappings and lists inside one another; the deepest shipped file has 7."""
MAX_VALUES = 10_000
"""Values of a file once its aliases are followed."""
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f]")
_CORE = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_CORE + kind for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}
_SCALARS = [
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", re.compile(r"[-+]?[0-9]{1,400}|0o[0-7]{1,400}|0x[0-9a-fA-F]{1,400}"), list("-+0123456789")),
    (
        "float",
        re.compile(
            r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
        ),
        list("-+.0123456789"),
    ),
    ("merge", re.compile("<<"), ["<"]),
]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = node.value
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


for _kind, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_CORE + _kind, re.compile(f"(?:{_pattern.pattern})$"), _first)
_Loader.add_constructor(_CORE + "int", _integer)


NEEDS = {"recipe": "'name' and 'stages'", "suite": "'name' and 'entries'"}
"""Keys that a file of each kind has at least."""


def read_mapping(path: Path, what: str = "recipe") -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; interpolations are left as text.

    Args:
        path: the file.
        what: "recipe" or "suite".

    Raises:
        SemisupError: unreadable, not UTF-8, not YAML, empty, no mapping, duplicate keys or tags such as
            `!!python/object` (never constructed).
    """
    try:
        content = path.read_bytes() if path.stat().st_size <= _MAX_BYTES else None
    except OSError as error:
        raise SemisupError(f"{path}: cannot be read: {error.strerror}") from error
    if content is None:
        raise SemisupError(f"{path}: larger than 1 MiB; a {what} is a short YAML file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content[: error.start].count(b"\n") + 1, content[error.start]
        raise SemisupError(f"{path}: line {line}: a {what} must be UTF-8 text, found byte 0x{byte:02x}") from error
    if not text.strip():
        raise SemisupError(f"{path}: the file is empty; a {what} needs at least {NEEDS[what]}")
    value, problems = _load(text)
    if value is None and not problems:
        problems = [f"the file has only comments; a {what} needs at least {NEEDS[what]}"]
    elif not isinstance(value, dict) and not problems:
        problems = [f"line 1: a {what} is a mapping of keys to values"]
    raise_all(problems, str(path))
    mapping: dict[str, Any] = value
    return mapping


def read_value(text: str) -> tuple[Any, list[str]]:
    """Read the value of an override: a list, a mapping or a quoted text as YAML, anything else as one plain scalar.

    Returns:
        The value, and what is wrong with it: `photos #1`, `a: b` and `1:30` are the texts that they look like.
    """
    text = text.strip()
    if text[:1] in ("[", "{", '"', "'", "!"):
        value, problems = _load(text)
        return value, [problem.removeprefix("line 1: ") for problem in problems]
    wrong = wrong_text(text)
    if wrong:
        return None, [wrong]
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    if tag == _CORE + "merge":
        tag = _CORE + "str"
    return loader.construct_document(yaml.ScalarNode(tag, text)), []


def as_override(key: str, value: Any) -> str:
    """Return `key=value` for a command line, so that `read_value` reads the value back: `2024` may be a folder's name.

    Args:
        key: with dots.
        value: text, a number or a bool.
    """
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, str) and (_CONTROL.search(text) or read_value(text) != (value, [])):
        text = yaml.dump(value, Dumper=_Dumper, default_style='"', allow_unicode=True, width=float("inf")).strip()
    return f"{key}={text}"


def dump(value: Any) -> str:
    """Write plain containers as YAML that reads as the same again, keys in their order."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120
    )
    return text


def _load(text: str) -> tuple[Any, list[str]]:
    """Return the one document of a text and what is wrong with it; nothing is constructed of a text that is wrong."""
    try:
        problems = list(_bounds(text))
        if problems:
            return None, problems
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None, []
        problems = list(_node_problems(root, set()))
        return None if problems else loader.construct_document(root), problems
    except (yaml.YAMLError, ValueError) as error:
        return None, [_describe(error)]


def _bounds(text: str) -> Iterator[str]:
    """Yield what makes a text too much to read: by the parser's events, before anything is built."""
    open_anchors: list[tuple[str | None, int]] = []  # of the collections around, with the count where they began
    sizes: dict[str, int] = {}
    count = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in sizes:
                count += sizes[event.anchor]
            elif any(name == event.anchor for name, _ in open_anchors):
                yield f"line {line}: the alias '*{event.anchor}' stands inside itself"
                return
        elif isinstance(event, yaml.CollectionEndEvent):
            name, before = open_anchors.pop()
            if name is not None:
                sizes[name] = count - before
        elif isinstance(event, yaml.NodeEvent):
            count += 1
            if isinstance(event, yaml.CollectionStartEvent):
                open_anchors.append((event.anchor, count - 1))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
        if len(open_anchors) > MAX_DEPTH:
            yield f"line {line}: nested too deeply, more than {MAX_DEPTH} lists and mappings inside one another"
            return
        if count > MAX_VALUES:
            yield f"line {line}: more than {MAX_VALUES} values"
            return


def _node_problems(node: yaml.Node, seen: set[int]) -> Iterator[str]:
    """Yield foreign tags, resolvers and duplicate keys, each with its line; `seen` stops at visited aliases."""
    if id(node) in seen:
        return
    seen.add(id(node))
    line = node.start_mark.line + 1
    if node.tag not in _PLAIN_TAGS:
        tag = "!!" + node.tag.removeprefix(_CORE) if node.tag.startswith(_CORE) else node.tag
        yield f"line {line}: the tag '{tag}' is not allowed: a recipe is plain data, nothing in it is ever run"
    if isinstance(node, yaml.ScalarNode) and (wrong := wrong_text(node.value)):
        yield f"line {line}: {wrong}"
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            yield from _node_problems(child, seen)
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            yield from _node_problems(key, seen)
            yield from _node_problems(value, seen)
            if isinstance(key, yaml.ScalarNode) and key.value in first:
                yield f"line {key.start_mark.line + 1}: '{key.value}' was already given on line {first[key.value]}"
            elif isinstance(key, yaml.ScalarNode):
                first[key.value] = key.start_mark.line + 1


def _describe(error: Exception) -> str:
    """Return a parser's complaint as one line."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        return f"{where}not valid YAML: {' '.join((error.problem or error.context or '').split()).split('. ')[0]}"
    return f"not valid YAML: {first_line(error)}"

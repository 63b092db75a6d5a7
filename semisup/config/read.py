"""YAML text to plain containers: nothing in a file can run code, and every complaint names the line."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from semisup.config.interpolate import wrong_text
from semisup.errors import SemisupError, raise_all

__all__ = ["read_mapping", "yaml_problems"]

_MAX_BYTES = 1 << 20  # a recipe has a few kB; whoever names a data file by mistake is told at once
_CORE = "tag:yaml.org,2002:"
# `timestamp` is what PyYAML calls an unquoted 2024-01-31; OmegaConf reads it as text.
_PLAIN_TAGS = {_CORE + kind for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge", "timestamp")}


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; interpolations are left as text.

    Raises:
        SemisupError: unreadable, not UTF-8, not YAML, empty, no mapping, duplicate keys or tags such as
            ``!!python/object`` (never constructed).
    """
    try:
        content = path.read_bytes() if path.stat().st_size <= _MAX_BYTES else None
    except OSError as error:
        raise SemisupError(f"{path}: cannot be read: {error.strerror}") from error
    if content is None:
        raise SemisupError(f"{path}: larger than 1 MiB; a recipe is a short YAML file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content[: error.start].count(b"\n") + 1, content[error.start]
        raise SemisupError(f"{path}: line {line}: a recipe must be UTF-8 text, found byte 0x{byte:02x}") from error
    if not text.strip():
        raise SemisupError(f"{path}: the file is empty; a recipe needs at least 'name' and 'stages'")
    raise_all(yaml_problems(text, mapping=True), str(path))
    try:
        # Any, because a file of aliases may come back as something else than the node said.
        loaded: Any = OmegaConf.load(io.StringIO(text))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise SemisupError(f"{path}: {_describe(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise SemisupError(f"{path}: a recipe is a mapping of keys to values")
    plain: dict[str, Any] = OmegaConf.to_container(loaded, resolve=False)  # type: ignore[assignment]
    return plain


def yaml_problems(text: str, *, mapping: bool = False) -> list[str]:
    """Parse without constructing anything, and say what is wrong with the text.

    Args:
        text: one YAML document.
        mapping: also require that the top level is a mapping.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        return [_describe(error)]
    except RecursionError:
        return ["nested too deeply"]
    if root is None:
        return ["the file has only comments; a recipe needs at least 'name' and 'stages'"] if mapping else []
    if mapping and not isinstance(root, yaml.MappingNode):
        return [f"line {root.start_mark.line + 1}: a recipe is a mapping of keys to values"]
    return list(_node_problems(root, set()))


def _node_problems(node: yaml.Node, seen: set[int]) -> Iterator[str]:
    """Yield foreign tags, resolvers and duplicate keys, each with its line; ``seen`` stops at visited aliases."""
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
        # The first sentence: OmegaConf's complaints go on with advice about its own settings.
        return f"{where}not valid YAML: {' '.join((error.problem or error.context or '').split()).split('. ')[0]}"
    return f"not valid YAML: {str(error).splitlines()[0]}"

"""References inside a recipe, such as ``seed: 3`` and ``split_seed: ${seed}``; nothing else is ever computed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from semisup.config.rules import show

__all__ = ["forbidden", "resolve", "wrong_text"]


def wrong_text(text: str) -> str | None:
    """Say what is wrong with a text that OmegaConf would compute or take for a gap, such as ``${oc.env:HOME}``.

    A recipe is data: only ``${key}`` and ``${key.key}`` are references that may be followed.
    """
    if "${" in re.sub(r"(?<!\\)\$\{\.*[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*\}", "", text):
        return f"only plain references such as ${{seed}} are allowed, not {show(text)}"
    return "'???' stands for a value that is still to be given" if text == "???" else None


def forbidden(value: Any, path: str = "") -> Iterator[str]:
    """Yield one sentence for each wrong text in plain containers."""
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from forbidden(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, str) and (wrong := wrong_text(value)):
        yield f"{path}: {wrong}"


def resolve(raw: dict[str, Any], defaults: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return ``raw`` with every reference replaced by what it names.

    Args:
        raw: plain containers in which :func:`forbidden` found nothing.
        defaults: what a reference finds where ``raw`` is silent; top-level mappings are merged one level deep.
        problems: gets one sentence per reference that leads nowhere.
    """
    full = dict(defaults)
    for key, value in raw.items():
        both = isinstance(value, dict) and isinstance(full.get(key), dict)
        full[key] = {**full[key], **value} if both else value
    resolved: dict[str, Any] = _resolve(raw, OmegaConf.create(full), "", problems)
    return resolved


def _resolve(plain: Any, node: Any, path: str, problems: list[str]) -> Any:
    """Rebuild ``plain``, asking its OmegaConf twin ``node`` for each text that has a reference."""
    if not isinstance(plain, (dict, list)):
        return plain
    found: dict[Any, Any] = {}
    for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain):
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, str) and "${" in value:
            try:
                target = node[key]
                is_config = isinstance(target, (DictConfig, ListConfig))
                found[key] = OmegaConf.to_container(target, resolve=True) if is_config else target
            except (OmegaConfBaseException, RecursionError):
                problems.append(f"{where}: the reference {show(value)} leads nowhere")
        else:
            found[key] = _resolve(value, node[key], where, problems)
    return found if isinstance(plain, dict) else list(found.values())

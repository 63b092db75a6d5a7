"""References inside a recipe, such as `seed: 3` and `split_seed: ${seed}`; nothing else is ever computed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from semisup.errors import first_line
from semisup.options import show

__all__ = ["forbidden", "resolve", "wrong_text"]

MOST = 20_000
"""Characters and values that all references of a recipe may stand for: doubling forty times is answered at once."""
REFERENCE = re.compile(r"(?<!\\)\$\{(\.*)([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\}")


def wrong_text(text: str) -> str | None:
    """Say what is wrong with a text that OmegaConf would compute or take for a gap, such as `${oc.env:HOME}`.

    A recipe is data: only `${key}` and `${key.key}` are references that may be followed.
    """
    if "${" in REFERENCE.sub("", text):
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
    """Return `raw` with every reference replaced by what it names.

    Args:
        raw: plain containers in which `forbidden` found nothing.
        defaults: what a reference finds where `raw` is silent; top-level mappings are merged one level deep.
        problems: gets one sentence per reference that leads nowhere, or to far too much.
    """
    full = dict(defaults)
    for key, value in raw.items():
        both = isinstance(value, dict) and isinstance(full.get(key), dict)
        full[key] = {**full[key], **value} if both else value
    if not _has_reference(raw):
        return raw
    if _Sizes(full).of(()) > MOST + _plain_size(full):
        problems.append(f"the references ${{...}} stand for more than {MOST} characters and values")
        return raw
    try:
        twin = OmegaConf.create(full)
    except OmegaConfBaseException as error:  # a key that is null
        problems.append(f"the references ${{...}} cannot be followed ({first_line(error)})")
        return raw
    resolved: dict[str, Any] = _resolve(raw, twin, "", problems)
    return resolved


def _resolve(plain: Any, node: Any, path: str, problems: list[str]) -> Any:
    """Rebuild `plain`, asking its OmegaConf twin `node` for each text that has a reference."""
    if not _has_reference(plain):
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
            found[key] = _resolve(value, node[key], where, problems) if _has_reference(value) else value
    return found if isinstance(plain, dict) else list(found.values())


def _has_reference(value: Any) -> bool:
    if isinstance(value, (dict, list)):
        return any(map(_has_reference, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and "${" in value


def _plain_size(value: Any) -> int:
    if isinstance(value, (dict, list)):
        return 1 + sum(map(_plain_size, value.values() if isinstance(value, dict) else value))
    return 1 + (len(value) if isinstance(value, str) else 0)


class _Sizes:
    """How much every value is once its references are followed, each worked out once."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self.known: dict[tuple[Any, ...], int] = {}

    def of(self, place: tuple[Any, ...]) -> int:
        """Return the characters and values of what stands at `place`; 0 where it leads back to itself, or nowhere."""
        if place not in self.known:
            self.known[place] = 0  # for a circle, which OmegaConf complains about
            self.known[place] = self._count(place, self._at(place))
        return self.known[place]

    def _count(self, place: tuple[Any, ...], value: Any) -> int:
        if isinstance(value, (dict, list)):
            return 1 + sum(self.of((*place, key)) for key in (value if isinstance(value, dict) else range(len(value))))
        if not isinstance(value, str):
            return 1
        targets = [self._target(place, *found.groups()) for found in REFERENCE.finditer(value)]
        return 1 + len(REFERENCE.sub("", value)) + sum(self.of(target) for target in targets)

    def _target(self, place: tuple[Any, ...], dots: str, keys: str) -> tuple[Any, ...]:
        """Return where a reference leads: a way through other references goes where those lead."""
        target = place[: len(place) - len(dots)] if dots else ()
        for key in keys.split("."):
            for _ in range(len(self.known) + 1):
                value = self._at(target)
                found = REFERENCE.fullmatch(value) if isinstance(value, str) else None
                if found is None:
                    break
                target = self._target(target, *found.groups())
            target = (*target, int(key) if isinstance(self._at(target), list) and key.isdigit() else key)
        return target

    def _at(self, place: tuple[Any, ...]) -> Any:
        value: Any = self.root
        for key in place:
            if isinstance(value, dict):
                value = value.get(key)
            elif isinstance(value, list) and isinstance(key, int) and key < len(value):
                value = value[key]
            else:
                return None
        return value

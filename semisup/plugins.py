"""Methods, backbones and policies from outside the package: `semisup.register(MyClass)`, or installed as plugins.

A distribution names its classes, or a module that registers them, under the entry-point group `semisup.plugins`; they
are imported when a recipe is first checked, on Dask's workers too.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from semisup.augment import POLICIES, Policy
from semisup.errors import SemisupError
from semisup.methods import METHODS, Method
from semisup.models import BACKBONES

__all__ = ["GROUP", "Plugin", "load_plugins", "package_of", "register", "registered", "source_hashes"]

GROUP = "semisup.plugins"
_OWN = ("semisup", "torch", "builtins", "abc", "typing", "dataclasses")


@dataclass(frozen=True)
class Plugin:
    """A class from outside, and what a fingerprint hashes of it."""

    cls: type[Any]
    source: str
    """sha256 of the modules that it and its bases are written in."""


_REGISTERED: dict[tuple[str, str], Plugin] = {}


def register(cls: type[Any], source: str | None = None) -> None:
    """Add a method, a backbone or a policy under its `name`, for recipes to use.

    Args:
        cls: a `Method`, a `Policy`, or another `nn.Module`: a backbone, whose constructor takes `in_channels` by name
            and which has `num_features`.
        source: hash of its source, where that cannot be read any more (on a worker); None: it is read.

    Raises:
        SemisupError: no such class, no `name`, or one that a class of another place has.
    """
    tables: list[tuple[str, type[Any], dict[str, Any]]] = [
        ("method", Method, METHODS),
        ("policy", Policy, POLICIES),
        ("backbone", nn.Module, BACKBONES),
    ]
    if not inspect.isclass(cls) or not issubclass(cls, (Policy, nn.Module)):
        raise SemisupError(f"register: takes a class of a method, a backbone or a policy, not {cls!r}")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not name:
        raise SemisupError(f"register: {cls.__name__} needs a class attribute `name`, what recipes call it")
    what, _, table = next(entry for entry in tables if issubclass(cls, entry[1]))
    there = table.get(name)
    if there is not None and (there.__module__, there.__qualname__) != (cls.__module__, cls.__qualname__):
        raise SemisupError(f"register: there is a {what} '{name}' already, {there.__module__}.{there.__qualname__}")
    _REGISTERED[what, name] = Plugin(cls, source or _source(cls))
    table[name] = cls


@cache
def load_plugins() -> None:
    """Import the installed plugins, once.

    Raises:
        SemisupError: one of them cannot be imported or registered.
    """
    for point in entry_points(group=GROUP):
        try:
            found = point.load()
        except (ImportError, AttributeError) as error:
            raise SemisupError(f"plugin '{point.name}' ({point.value}): cannot be imported: {error}") from error
        if inspect.isclass(found):
            register(found)


def registered() -> list[Plugin]:
    """Return what was registered in this process, for another one."""
    return list(_REGISTERED.values())


def source_hashes(method: str | None, model: str | None, policies: list[str]) -> dict[str, str]:
    """Return the hashes of those classes of a stage that come from outside the package."""
    used = [("method", method), ("backbone", model), *(("policy", name) for name in policies)]
    found = {f"{what} {name}": _REGISTERED.get((what, str(name))) for what, name in used}
    return {key: plugin.source for key, plugin in found.items() if plugin is not None}


def package_of(backbone: str) -> str | None:
    """Return the package that a backbone from outside comes from, or None."""
    plugin = _REGISTERED.get(("backbone", backbone))
    return None if plugin is None else plugin.cls.__module__.partition(".")[0]


def _source(cls: type[Any]) -> str:
    """Hash the modules of a class and its bases; of what was typed into a console, the classes themselves."""
    digest = hashlib.sha256()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in _OWN:
            continue
        module = sys.modules.get(base.__module__)
        try:
            written = inspect.getsource(module if getattr(module, "__file__", None) else base)  # type: ignore[arg-type]
        except (OSError, TypeError) as error:
            raise SemisupError(
                f"register: the source of {base.__name__} cannot be read, and no stage could tell when it has changed; "
                "put it into a file"
            ) from error
        digest.update(written.encode())
    return digest.hexdigest()

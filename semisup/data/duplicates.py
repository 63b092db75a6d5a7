"""Images that are there twice: in the test set and the training set, or under two classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from semisup.data.entries import several, some
from semisup.settings.schema import DataConfig
from semisup.text import printable

__all__ = ["Duplicates", "Item", "find_duplicates", "image_hashes"]


class Item(NamedTuple):
    """An image: what it is called, its part, its class or None, and the hash of its decoded pixels."""

    name: str
    part: str
    label: str | None
    hash: str


@dataclass(frozen=True)
class Duplicates:
    """What was found.

    Attributes:
        leaks: pairs of a test or validation image and an equal image of an earlier part, by name.
        conflicts: pairs of an image and an earlier equal image of another class, by name, each with its class.
    """

    leaks: list[tuple[str, str]]
    conflicts: list[tuple[str, str, str, str]]

    def problems(
        self, config: DataConfig, where: Callable[[str], str] = lambda name: "", *, flags: bool = False
    ) -> dict[str, str]:
        """Return what must not be trained on, by the key that allows it.

        Args:
            config: `allow_leakage`, `drop_leaks` and `allow_conflicts` are read.
            where: says where all of the leaks or conflicts are listed.
            flags: name keys as `semisup data prepare` spells them, not as a recipe does.
        """

        def name(key: str) -> str:
            return f"--{key.replace('_', '-')}" if flags else f"data.{key}"

        yes = "" if flags else "=true"
        problems = {}
        if self.leaks and not config.drop_leaks and not config.allow_leakage:
            problems["allow_leakage"] = (
                f"{name('allow_leakage')}: {self.leak_text()}{where('leaks')}. Remove them, leave them out with "
                f"{name('drop_leaks')}{yes}, or allow it with {name('allow_leakage')}{yes}"
            )
        if self.conflicts and not config.allow_conflicts:
            problems["allow_conflicts"] = (
                f"{name('allow_conflicts')}: {self.conflict_text()}{where('conflicts')}. Remove the wrong ones, or "
                f"allow it with {name('allow_conflicts')}{yes}"
            )
        return problems

    def notes(self, config: DataConfig, where: Callable[[str], str] = lambda name: "") -> dict[str, str]:
        """Return the same as sentences that only tell."""
        notes = {}
        if self.leaks:
            notes["allow_leakage"] = f"{'left out: ' * config.drop_leaks}{self.leak_text()}{where('leaks')}"
        if self.conflicts:
            notes["allow_conflicts"] = f"{self.conflict_text()}{where('conflicts')}"
        return notes

    def leak_text(self) -> str:
        """Return how many leaks there are, and which."""
        pairs = [f"{printable(name)} = {printable(same)}" for name, same in self.leaks]
        images = several(len(pairs), "test or validation image is", "test or validation images are")
        return f"{images} also among the images before them (leakage): {some(pairs)}"

    def conflict_text(self) -> str:
        """Return how many conflicts there are, and which."""
        pairs = [
            f"{printable(name)} ({printable(label)}) = {printable(same)} ({printable(other)})"
            for name, label, same, other in self.conflicts
        ]
        images = several(len(pairs), "image is", "images are")
        return f"{images} the same picture as one of another class: {some(pairs)}"


def find_duplicates(items: Sequence[Item], *, drop_leaks: bool = False) -> Duplicates:
    """Compare images by their decoded pixels.

    Equal pixels, not equal files: a copy with other metadata, or saved again without loss, is a copy.

    Args:
        items: in the order of their parts.
        drop_leaks: leaks are left out afterwards, and contradict nothing.
    """
    first: dict[str, Item] = {}
    named: dict[str, Item] = {}
    leaks, conflicts = [], []
    for item in items:
        before = first.setdefault(item.hash, item)
        if before.part != item.part:
            leaks.append((item.name, before.name))
            if drop_leaks:
                continue
        if item.label is not None:
            other = named.setdefault(item.hash, item)
            if other.label is not None and other.label != item.label:
                conflicts.append((item.name, item.label, other.name, other.label))
    return Duplicates(leaks, conflicts)


def image_hashes(images: NDArray[np.uint8]) -> Sequence[str]:
    """Hash every image of (n, h, w, c) in memory: 32 hex digits of its pixels."""
    return [hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).hexdigest() for image in images]

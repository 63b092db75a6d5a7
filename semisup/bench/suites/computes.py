"""The computes of a suite: "" = as the recipe says, "equal steps", "400 steps", "20 s"."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["compute_name", "compute_unit", "ordered_computes"]


def compute_name(compute: str) -> str:
    """Return what text for people calls a compute."""
    return compute or "as the recipe says"


def compute_unit(compute: str) -> str:
    """Return `"steps"`, `"s"`, or "" for anything else."""
    found = re.fullmatch(r"(?:\d+(?:\.\d+)?|equal) (steps|s)", compute)
    return found[1] if found else ""


def ordered_computes(computes: Iterable[str]) -> list[str]:
    """Return the different ones: the recipe's own, then equal steps, steps and seconds, each ascending."""

    def order(compute: str) -> tuple[int, float, str]:
        unit = compute_unit(compute)
        word = compute.partition(" ")[0]
        number = float(word) if unit and word != "equal" else 0.0
        return (["", "steps", "s"].index(unit), number, compute)

    return sorted(set(computes), key=order)

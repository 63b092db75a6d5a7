"""Every random draw of a run is a pure function of what it is for."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["generator", "seed_for"]


def seed_for(*parts: object) -> int:
    """A 63-bit seed from the words and numbers that name a draw, the same on every machine and in every process."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded with :func:`seed_for`; CPU so that every device sees the same draws."""
    return torch.Generator().manual_seed(seed_for(*parts))

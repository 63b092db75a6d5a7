"""Training state on disk: atomic, checksummed, unable to run code."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from semisup.errors import SemisupError

__all__ = ["load_checkpoint", "save_checkpoint", "write_atomically"]


def write_atomically(path: Path, payload: bytes) -> None:
    """Write `payload` so that a kill or a power cut at any moment leaves the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings and containers of them) behind its SHA-256, in one atomic file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomically(path, hashlib.sha256(payload).digest() + payload)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote, with `weights_only=True`: a crafted file cannot execute anything.

    Raises:
        SemisupError: the file is damaged. It is never silently ignored: the training time it stands for may be large.
    """
    content = path.read_bytes()
    digest, payload = content[:32], content[32:]
    if hashlib.sha256(payload).digest() != digest:
        raise SemisupError(f"{path}: the checkpoint is damaged (checksum mismatch); delete it to start the stage again")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise SemisupError(f"{path}: not a semisup checkpoint ({str(error).splitlines()[0]})") from error
    return state

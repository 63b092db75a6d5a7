"""Training state on disk: atomic, checksummed, unable to run code."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch

from semisup.errors import UNREADABLE, SemisupError, first_line
from semisup.files import write_atomically

__all__ = ["from_bytes", "load_checkpoint", "save_checkpoint", "to_bytes"]

DIGEST = hashlib.sha256().digest_size
"""Bytes of the checksum in front of the state."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings and containers of them) behind its SHA-256, in one atomic file.

    Raises:
        SemisupError: it cannot be written; the checkpoint before it is as it was.
    """
    buffer = io.BytesIO(bytes(DIGEST))  # one buffer: a second copy of a large state could be what does not fit
    buffer.seek(DIGEST)
    torch.save(state, buffer)
    content = buffer.getbuffer()
    content[:DIGEST] = hashlib.sha256(content[DIGEST:]).digest()
    write_atomically(path, content)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, with `weights_only=True`: a crafted file cannot execute anything.

    Raises:
        SemisupError: the file is damaged. It is never silently ignored: the training time it stands for may be large.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SemisupError(f"{path}: cannot be read ({error.strerror})") from error
    digest, payload = content[:DIGEST], content[DIGEST:]
    if hashlib.sha256(payload).digest() != digest:
        raise SemisupError(f"{path}: the checkpoint is damaged (checksum mismatch); delete it to start the stage again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of another pickle protocol, which works or is refused
            state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except UNREADABLE as error:
        raise SemisupError(f"{path}: not a semisup checkpoint ({first_line(error)})") from error
    if not isinstance(state, dict):
        raise SemisupError(f"{path}: not a semisup checkpoint (it holds a {type(state).__name__})")
    return state


def to_bytes(state: dict[str, Any]) -> bytes:
    """Return a state as what another process reads by `from_bytes`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> dict[str, Any]:
    """Return the state that `to_bytes` was given, on the CPU; nothing in it can be executed."""
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state

"""Which device and precision a run gets."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys

import torch

from semisup.errors import SemisupError, nearest

__all__ = ["autocast", "release_memory", "resolve_device", "resolve_precision"]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA, else MPS, else the CPU; anything else must be there.

    Raises:
        SemisupError: an unknown name, or a device that this machine lacks.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", name) is None:
        raise SemisupError(f"device: unknown device '{name}'{nearest(kind, ['auto', 'cpu', 'cuda', 'mps'])}")
    if kind == "cuda" and (not torch.cuda.is_available() or (number and int(number) >= torch.cuda.device_count())):
        raise SemisupError(f"device: '{name}' is not on this machine ({torch.cuda.device_count()} CUDA devices found)")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise SemisupError("device: 'mps' is not on this machine")
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where CUDA has it, else fp32. fp16 needs CUDA: its loss scaling is of no use elsewhere.

    Raises:
        SemisupError: an unknown name, or fp16 off CUDA.
    """
    if name not in PRECISIONS:
        raise SemisupError(f"precision: unknown precision '{name}'{nearest(name, PRECISIONS)}")
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name == "fp16" and device.type != "cuda":
        raise SemisupError(f"precision: 'fp16' needs a CUDA device, this run is on '{device}'; use bf16 or fp32")
    return name


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """The autocast context of `precision`; nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def release_memory(device: torch.device) -> None:
    """Give the system back what lies free: torch keeps a GPU's blocks, and glibc the CPU's, for the next use.

    For the end of a stage: what comes next, another stage or the upload of a model, uses other sizes, and would come on
    top. Milliseconds. Nothing on the CPU where the C library is not glibc.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))

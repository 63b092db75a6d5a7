"""Which device and precision a run gets."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from collections.abc import Callable

import torch

from semisup.errors import SemisupError, nearest

__all__ = ["autocast", "keep_memory", "release_memory", "resolve_device", "resolve_precision"]

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of glibc's malloc.h."""


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
    """Return the autocast context of `precision`; nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def keep_memory() -> None:
    """Have the process keep what it frees for its next use, as torch does with a GPU's memory.

    glibc gives large blocks, and the end of its heap, back as soon as they are free. A training step on a CPU frees all
    that its forward made, so that it may ask for its pages anew each time, and the system clears every one of them:
    steps of WRN-10-1 are 1.1 to 1.7 times as fast without that (benchmarks/kept_memory.py). From here on nothing is
    given back until `release_memory`. It holds for the whole process; nothing where the C library is not glibc.
    """
    mallopt = _of_c_library("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # no block has pages of its own, which would go back with it
        mallopt(M_TRIM_THRESHOLD, -1)  # the end of the heap is never cut off


def release_memory(device: torch.device) -> None:
    """Give the system back what lies free: torch keeps a GPU's blocks, and glibc the CPU's, for the next use.

    For the end of a stage: what comes next, another stage or the upload of a model, uses other sizes, and would come on
    top. Milliseconds. Nothing on the CPU where the C library is not glibc.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim = _of_c_library("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _of_c_library(function: str) -> Callable[..., int] | None:
    """Return a function of the C library that is Linux's alone, if this one has it."""
    return getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None

"""`deterministic: true`: no operation that may give another result each time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from semisup.errors import SemisupError, first_line

__all__ = ["deterministic"]


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Within this context torch refuses operations that have no deterministic form, and takes it where there is one.

    One machine with one number of threads then computes the same bits each time; another machine, version of torch or
    number of threads may round otherwise. On CUDA cuBLAS needs CUBLAS_WORKSPACE_CONFIG before its first use: it is set
    here to `:4096:8` unless the environment has it, which is too late in a process that has multiplied matrices there.

    Args:
        asked: False changes nothing.

    Raises:
        SemisupError: an operation has no deterministic form on this device.
    """
    if not asked:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise SemisupError(f"deterministic: {first_line(error)}; remove `deterministic: true`") from error
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.backends.cudnn.benchmark = before[1]

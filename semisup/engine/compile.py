"""`compile: true`: the backbones' forward and backward through torch.compile, for as long as a stage trains."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from semisup.errors import SemisupError, first_line
from semisup.models import Classifier, Encoder

__all__ = ["check_compiler", "compile_backbones", "uncompiled"]


def check_compiler(device: torch.device) -> None:
    """Compile a function of one line, to learn before any training whether it can be done: 2 to 10 s.

    Raises:
        SemisupError: no C++ compiler, no Python headers, on CUDA no Triton, or whatever else torch.compile misses.
    """
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(8, device=device))
    except (RuntimeError, OSError) as error:
        needs = "Triton" if device.type == "cuda" else "a C++ compiler (CXX, else g++) and Python's headers"
        raise SemisupError(
            f"compile: torch.compile does not work here, on {device.type} it needs {needs}: {first_line(error)}; "
            "remove `compile: true`"
        ) from error


def compile_backbones(method: nn.Module) -> None:
    """Compile every backbone of a method in place, its teachers' too; names in the state dict stay.

    Each is compiled when it is first called with images of a new shape, mode or need of gradients; fixed shapes, since
    a stage has few and code for any shape is slower. A copy of a network (an average of its weights) is not compiled.
    What a method does besides its backbones' forward stays as it was: heads, losses, the parts of a backbone that it
    calls by itself (`maps`).

    What was compiled before is forgotten: torch compiles a function for eight shapes, modes and networks in all, and
    from then on runs it as it was written, with a warning; earlier stages would have used these up.
    """
    torch.compiler.reset()
    for module in method.modules():
        if isinstance(module, Classifier | Encoder):
            module.backbone.compile(dynamic=False)


def uncompiled(compiled: bool) -> contextlib.AbstractContextManager[object]:
    """Return a context in which compiled networks run as they were written.

    It is for a look at other images than training's, whose sizes would be compiled anew. Nothing where nothing was
    compiled.
    """
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()

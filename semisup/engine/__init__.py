"""The training loop and what it stands on."""

from __future__ import annotations

from semisup.engine.batches import Batches, TrainingImages
from semisup.engine.compile import check_compiler, compile_backbones, uncompiled
from semisup.engine.device import autocast, keep_memory, release_memory, resolve_device, resolve_precision
from semisup.engine.fit import BatchSource, CollapseError, FitResult, NonFiniteLossError, Stopped, fit
from semisup.engine.seeding import generator, seed_for, seed_global

__all__ = [
    "BatchSource",
    "Batches",
    "CollapseError",
    "FitResult",
    "NonFiniteLossError",
    "Stopped",
    "TrainingImages",
    "autocast",
    "check_compiler",
    "compile_backbones",
    "fit",
    "generator",
    "keep_memory",
    "release_memory",
    "resolve_device",
    "resolve_precision",
    "seed_for",
    "seed_global",
    "uncompiled",
]

"""The training loop and what it stands on."""

from __future__ import annotations

from semisup.engine.batches import Batches, TrainingImages
from semisup.engine.compile import check_compiler, compile_backbones, uncompiled
from semisup.engine.device import autocast, keep_memory, release_memory, resolve_device, resolve_precision
from semisup.engine.fit import BatchSource, FitResult, Stopped, fit
from semisup.engine.observers import Checkpoints, CollapseError, CollapseWatch, Log, Looks, Observer, Quality
from semisup.engine.seeding import generator, seed_for, seed_global
from semisup.engine.training import FitSettings, NonFiniteLossError, Training

__all__ = [
    "BatchSource",
    "Batches",
    "Checkpoints",
    "CollapseError",
    "CollapseWatch",
    "FitResult",
    "FitSettings",
    "Log",
    "Looks",
    "NonFiniteLossError",
    "Observer",
    "Quality",
    "Stopped",
    "Training",
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

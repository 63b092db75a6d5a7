"""The folder of a finished stage, asked for before torch is imported (2 s)."""

from __future__ import annotations

from pathlib import Path

from semisup.errors import SemisupError
from semisup.records import no_model

__all__ = ["require_model"]

_MODEL = "model.json"


def require_model(folder: Path) -> None:
    """Raise SemisupError where no finished stage has left its network; names those of a run, and how to use a file."""
    if (folder / _MODEL).is_file():
        return
    if folder.suffix in (".onnx", ".pt2"):
        raise SemisupError(f"{folder}: an exported file, not a model folder; docs/export.md shows how to use it")
    if folder.is_file() and (folder.parent / _MODEL).is_file():
        raise SemisupError(f"{folder}: a file of a model folder; name the folder, {folder.parent}")
    stages = sorted(str(file.parent) for file in folder.glob(f"*/{_MODEL}"))
    these = f": {', '.join(stages)}" if stages else ""
    raise SemisupError(f"{no_model(folder)}{these}")

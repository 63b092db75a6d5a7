"""Which files an export writes, known before torch is imported (2 s)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ExportFiles"]


@dataclass(frozen=True)
class ExportFiles:
    """The files of one export.

    Attributes:
        model: the .onnx or .pt2 file.
        int8: whether its 8-bit form is written, too.
    """

    model: Path
    int8: bool = False

    @property
    def small(self) -> Path:
        """The network in 8 bits."""
        return self.model.with_name(f"{self.model.stem}-int8.onnx")

    @property
    def metadata(self) -> Path:
        """What the file says of itself, for programs that cannot ask it."""
        return self.model.with_suffix(".json")

    @property
    def card(self) -> Path:
        """The model card."""
        return self.model.with_suffix(".md")

    @property
    def all(self) -> list[Path]:
        """Every file that is written."""
        return [self.model, self.metadata, self.card, *([self.small] if self.int8 else [])]

"""Images on one page that needs nothing else: no network, no fonts or scripts from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from semisup.data.decode import decode

__all__ = ["Shown", "sheet_html"]

SIDE = 160
"""Of an image on the page, pixels."""
QUALITY = 80


@dataclass(frozen=True)
class Shown:
    """One image of a page.

    Attributes:
        file: where it lies.
        path: what it is called.
        guess: the class that is offered; empty: none.
        words: a line below it.
    """

    file: Path
    path: str
    guess: str
    words: str

    @property
    def source(self) -> str:
        """The image itself as an address."""
        pixels = decode(self.file, SIDE, 3, "pad")
        jpeg = io.BytesIO()
        Image.fromarray(pixels).save(jpeg, "JPEG", quality=QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"


def sheet_html(title: str, lines: Sequence[str], shown: Sequence[Shown], classes: Sequence[str]) -> str:
    """Return the page: images with a field for the class of each, and a button that saves them as a CSV.

    Everything that comes from file names and classes is escaped.

    Args:
        title: of the page.
        lines: paragraphs above the images.
        shown: the images, in order; their files can be read.
        classes: what the fields offer.
    """
    files = FileSystemLoader(Path(__file__).parent)
    page = Environment(
        loader=files, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("sheet.html.j2")
    return page.render(title=title, lines=lines, shown=shown, classes=classes)

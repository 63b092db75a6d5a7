"""A large picture by strips of rows, never the whole of it as Pillow would hold it: PNG and HEIC."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from semisup.data.room import orientation

__all__ = ["HeifStrips", "Picture", "PngStrips", "strips_of"]

Box = tuple[int, int, int, int]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Color type of a PNG -> samples of a pixel."""
_BY_BYTES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Bytes that a filter of rows looks back -> color type of 8 bits whose filters look back as far."""
_TOLD = (b"PLTE", b"tRNS", b"eXIf", b"iTXt", b"tEXt", b"zTXt")
"""Chunks of a PNG that say how its pixels are to be read and turned."""
_PIECE = 2**18
"""Bytes of rows that are unpacked at a time."""


class Picture(Protocol):
    """What has a size and gives parts of itself: an image, or one that is read by strips from its top down."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, pixels."""

    def crop(self, box: Box) -> Image.Image:
        """Return the part between left, upper, right and lower."""


def strips_of(image: Image.Image) -> PngStrips | HeifStrips | None:
    """Return a picture that can be read by strips, None for one that cannot.

    Args:
        image: opened and not yet read.
    """
    if image.format == "HEIF":
        return HeifStrips(image)
    if image.format == "PNG" and not image.info.get("interlace") and not getattr(image, "is_animated", False):
        strips = PngStrips(image)
        return strips if strips.back in _BY_BYTES else None
    return None


class PngStrips:
    """A PNG file whose rows are unpacked as they are asked for, from the top down.

    Each piece of rows is handed to Pillow as a small PNG of its own, behind the row before it: what a row's filter
    refers to. So it is Pillow that takes the filters off. Not for 16 bits in color, whose filters look back farther
    than those of any 8 bits that Pillow keeps, nor for interlaced files, whose rows are not in order.

    Args:
        image: of the file, opened and not yet read.
    """

    def __init__(self, image: Image.Image) -> None:
        self.size = image.size
        file: Any = image  # an `ImageFile`, which has more than an `Image`
        self._mode, self._raw, self._palette = image.mode, file.tile[0][3], image.palette
        self._file = file.fp
        self._depth, self._kind = self._read(24, 2)
        self._samples = _CHANNELS[self._kind]
        self.back = max(1, self._depth * self._samples // 8)
        self._stride = (self.size[0] * self._depth * self._samples + 7) // 8
        self._last = bytes(self._stride)
        self._row = 0
        self._unpack = zlib.decompressobj()
        self._packed = self._pixels()
        self._head = self._opened_head()

    @property
    def orientation(self) -> int:
        """The EXIF orientation, from wherever in the file."""
        return orientation(self._head)

    def takes(self, strip: int) -> int:
        """Return what reading it takes, bytes, for strips of so many pixels."""
        return 16 * max(strip, self.size[0])

    def crop(self, box: Box) -> Image.Image:
        """Return the part between left, upper, right and lower; none may begin above where the one before ended."""
        left, upper, right, lower = box
        at_once = max(1, _PIECE // max(self._stride, self.size[0]))
        while self._row < upper:
            self._rows(min(upper - self._row, at_once))
        parts = []
        while self._row < lower:
            count = min(lower - self._row, at_once)
            rows = Image.frombytes(self._mode, (self.size[0], count), self._rows(count), "raw", self._raw)
            parts.append(rows.crop((left, 0, right, count)).tobytes())
        part = Image.frombytes(self._mode, (right - left, lower - upper), b"".join(parts))
        part.info = self._head.info
        if self._palette is not None:
            part.palette = self._palette.copy()
            part.load()
        return part

    def _rows(self, count: int) -> bytes:
        """Return the bytes of the next rows, without their filters."""
        wanted = count * (self._stride + 1)
        filtered = bytearray()
        while len(filtered) < wanted:
            packed = self._unpack.unconsumed_tail or next(self._packed, b"")
            unpacked = self._unpack.decompress(packed, wanted - len(filtered))
            if (self._unpack.eof and len(filtered) + len(unpacked) < wanted) or not (packed or unpacked):
                raise ValueError("image file is truncated")
            filtered += unpacked
        content = _png(self._stride // self.back, count + 1, 8, _BY_BYTES[self.back], b"\0" + self._last + filtered)
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            plain = image.tobytes()
        self._last = plain[-self._stride :]
        self._row += count
        return plain[self._stride :]

    def _read(self, start: int, length: int) -> bytes:
        self._file.seek(start)
        return bytes(self._file.read(length))

    def _chunks(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield the name, first byte and length of every chunk."""
        start = len(_SIGNATURE)
        while len(head := self._read(start, 8)) == 8:
            length, name = struct.unpack(">I4s", head)
            yield name, start + 8, length
            start += length + 12

    def _pixels(self) -> Iterator[bytes]:
        """Yield the packed rows, which are in chunks one behind the other."""
        begun = itertools.dropwhile(lambda chunk: chunk[0] != b"IDAT", self._chunks())
        for _, start, length in itertools.takewhile(lambda chunk: chunk[0] == b"IDAT", begun):
            for at in range(0, length, _PIECE):
                yield self._read(start + at, min(_PIECE, length - at))

    def _opened_head(self) -> Image.Image:
        """Return a PNG of one pixel that says of itself what this file says, at its beginning or its end."""
        told = dict.fromkeys(_TOLD, b"")
        for name, start, length in self._chunks():
            if name in told and len(told[name]) + length <= _PIECE:
                told[name] += _chunk(name, self._read(start, length))
        pixel = bytes(1 + (self._depth * self._samples + 7) // 8)
        content = _png(1, 1, self._depth, self._kind, pixel, b"".join(told.values()))
        image = Image.open(io.BytesIO(content), formats=("PNG",))
        image.load()
        return image


class HeifStrips:
    """A HEIC file as its library holds it, 3 bytes a pixel, without Pillow's copy of 4.

    Args:
        image: of the file, opened and not yet read.
    """

    orientation = 1
    """The library has turned it."""

    def __init__(self, image: Image.Image) -> None:
        self.size = image.size
        opened: Any = image
        self._path, self._info = Path(opened.filename), image.info
        self._bands = len(image.getbands())
        self._file: Any = None

    def takes(self, strip: int) -> int:
        """Return what reading it takes, bytes, for strips of so many pixels.

        Luma and chroma, more of them where a picture is one frame and not tiles, and the colors made of them.
        """
        planes = {420: 1.5, 422: 2.0}.get(self._info.get("chroma", 444), 3.0)
        planes *= 2 if self._info.get("bit_depth", 8) > 8 else 1
        frames = 1.15 if "tiling" in self._info else 1.7
        return int((planes * frames + self._bands) * self.size[0] * self.size[1]) + 4 * max(strip, self.size[0])

    def crop(self, box: Box) -> Image.Image:
        """Return the part between left, upper, right and lower.

        Raises:
            ValueError: it is of another size than its head said.
        """
        if self._file is None:
            import pillow_heif

            options = {"convert_hdr_to_8bit": True, "hdr_to_16bit": True, "remove_stride": False}
            self._file = pillow_heif.open_heif(self._path, **options)
            self._data = memoryview(self._file.data)
            if self._file.size != self.size:
                raise ValueError(f"its pixels are {self._file.size} and not {self.size}")
        left, upper, right, lower = box
        mode, stride = self._file.mode, self._file.stride
        rows = bytes(self._data[upper * stride : lower * stride])
        band = Image.frombytes(mode, (self.size[0], lower - upper), rows, "raw", mode, stride)
        return band.crop((left, 0, right, lower - upper))


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(width: int, height: int, depth: int, kind: int, rows: bytes, told: bytes = b"") -> bytes:
    """Return a PNG file of rows with a filter each, not packed."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return _SIGNATURE + head + told + _chunk(b"IDAT", zlib.compress(rows, 0)) + _chunk(b"IEND", b"")

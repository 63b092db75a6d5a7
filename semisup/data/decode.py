"""One image file to one square uint8 array: every kind of PNG, JPEG, WebP, TIFF and BMP, by the same few rules."""

from __future__ import annotations

import functools
import importlib.util
import stat
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from semisup.data.room import decoding_bytes
from semisup.data.strips import Picture, strips_of
from semisup.errors import UNREADABLE, first_line

__all__ = [
    "FORMATS",
    "NEEDS_HEIF",
    "SUFFIXES",
    "BadImageError",
    "Fit",
    "can_read_heif",
    "decode",
    "decode_whole",
    "fit_image",
]

Fit = Literal["crop", "pad", "stretch"]
"""How a picture becomes a square: the center is cut out, bands are added, or the sides are scaled apart."""

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
"""What Pillow may take a file for, whatever its name: a PostScript file named .png never gets to Ghostscript."""
SUFFIXES = (".bmp", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""How such files are usually called, and HEIC's, which is read where pillow-heif is installed."""
NEEDS_HEIF = "HEIC is read where pillow-heif is installed: pip install pillow-heif"

LARGEST = 64 * 2**20
"""Bytes that a worker may take to decode one file, besides `TIMES` the decoded image."""
TIMES = 8
WHOLE = 2**24
"""Pixels of a picture that is read in its own size, at the most."""
STRIP = 2**18
"""Pixels that are converted to 8 bits at a time."""

_BACKGROUND = 255  # white: what a picture with a transparent ground is usually looked at on


_NO_FILES = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class BadImageError(Exception):
    """A file that cannot be decoded; the message is the reason alone, without the path."""


def decode(path: Path, size: int, channels: int, fit: Fit = "crop") -> NDArray[np.uint8]:
    """Read an image file, upright, its center square scaled to `size` x `size`; or all of it, see `fit`.

    - Of several pages or frames, the first.
    - 16 bits per channel are scaled to 8 (65535 to 255). 32-bit integers and floats have no known range: refused.
    - Palettes are looked up, black and white becomes 0 and 255.
    - Transparency (an alpha channel, a transparent color of the palette or of the image) is laid over white.
    - CMYK and YCbCr become RGB by Pillow's plain formulas; embedded color profiles are not applied.
    - The EXIF orientation, 1 to 8, is applied: rotated and mirrored images come out as a viewer shows them.
    - The largest centered square is scaled with a filter that averages over all pixels when shrinking (PIL's bilinear
      one). JPEGs much larger than that are read at a half, a quarter or an eighth, at least twice `size`.
      With `fit="pad"` the longer side is scaled to `size` and the shorter one alike; the picture stands in the middle,
      and what is left on both sides has the median color of its border. With `"stretch"` both sides are scaled to
      `size`, whatever that does to the shapes in it.
    - Gray is 0.299 R + 0.587 G + 0.114 B; gray images asked for in color have three equal channels.

    Args:
        path: the file; its content decides about its format, its name does not.
        size: side of the result, pixels.
        channels: 1 (gray) or 3 (RGB).
        fit: how it becomes a square.

    Returns:
        (size, size, channels).

    Raises:
        BadImageError: missing, empty, cut short, damaged, no image, or so large that decoding it would take more than
            `LARGEST` bytes and 8 times the result, as files that are meant to fill the memory do: some 15 megapixels
            in color of a BMP, 12 of a HEIC in tiles, 8 of a packed TIFF, 3.6 of a WebP, 19 of a progressive JPEG. Other
            JPEGs are reduced, and PNGs read in strips, unless they are interlaced or have 16 bits in color.
    """
    try:
        _require_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of images of 90 to 179 million pixels
            with Image.open(path, formats=_formats()) as image:
                whole = image.size
                image.draft(None, (2 * size, 2 * size))  # of JPEG alone: decodes 1/64 of the pixels of a photograph
                most, scaling = LARGEST + TIMES * size**2 * channels, _scaling_bytes(image.size, size, channels, fit)
                wanted = decoding_bytes(image, whole) + scaling
                if wanted <= most:
                    png = image.format == "PNG"
                    ImageOps.exif_transpose(image, in_place=True)  # else it makes a copy in any case
                    return fit_image(image, size, channels, fit, png=png)
                strips = strips_of(image)
                if strips is None or (wanted := strips.takes(STRIP) + scaling) > most:
                    raise BadImageError(_too_large(whole, wanted, most))
                fitted = fit_image(strips, size, channels, fit, png=image.format == "PNG")
                return _turned(fitted, strips.orientation)
    except FileNotFoundError:
        raise BadImageError("a link to nowhere" if path.is_symlink() else "no such file") from None
    except PermissionError as error:
        raise BadImageError("may not be read (permission denied)") from error
    except Image.DecompressionBombError as error:
        raise BadImageError(f"too large: {first_line(error)[:200]}") from error
    except UnidentifiedImageError as error:
        raise BadImageError(_unidentified(path)) from error
    except UNREADABLE as error:
        refused = isinstance(error, OSError) and error.strerror  # by the system, which has no say in what is in it
        why = f"cannot be read ({refused})" if refused else f"not a readable image ({first_line(error)[:200]})"
        raise BadImageError(why) from error


def decode_whole(path: Path, channels: int) -> NDArray[np.uint8]:
    """Read an image file as other programs hand it to an exported network: upright, of its own size.

    Args:
        path: a file that `decode` reads.
        channels: 1 (gray) or 3 (RGB).

    Returns:
        (height, width, channels).

    Raises:
        BadImageError: it has more than `WHOLE` pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        with Image.open(path, formats=_formats()) as image:
            if image.width * image.height > WHOLE:
                raise BadImageError(f"has more than {WHOLE:,} pixels")
            png = image.format == "PNG"
            ImageOps.exif_transpose(image, in_place=True)
            plain = _to_8_bits(image, "L" if channels == 1 else "RGB", png=png)
    return np.asarray(plain, np.uint8).reshape(plain.height, plain.width, channels)


def fit_image(image: Picture, size: int, channels: int, fit: Fit = "crop", *, png: bool = False) -> NDArray[np.uint8]:
    """Turn an upright image into what a network is fed, as `decode` says it.

    Args:
        image: of any size and mode, or strips of one.
        size: side of the result, pixels.
        channels: 1 (gray) or 3 (RGB).
        fit: how it becomes a square.
        png: it comes from a PNG file, of whose 16 bits Pillow may make 32.

    Returns:
        (size, size, channels).

    Raises:
        ValueError: 32 bits per pixel, or no pixel at all.
    """
    if 0 in image.size:
        raise ValueError(f"has no pixels, {image.size[0]} x {image.size[1]}")
    width, height, sides = _scaled(image.size, size, fit)
    left, top = (image.size[0] - width) // 2, (image.size[1] - height) // 2
    across = sides[0] if width >= height else width
    narrow = Image.new("L" if channels == 1 else "RGB", (across, height))
    rows = max(1, STRIP // width)
    # In strips, because what lies between two modes is several times as large as the image. Each is scaled to its width
    # at once, which Pillow begins with unless an image is tall: bit for bit the same, without a copy of the image.
    for row in range(0, height, rows):
        strip = image.crop((left, top + row, left + width, top + min(row + rows, height)))
        plain = _to_8_bits(strip, narrow.mode, png=png)
        narrow.paste(plain.resize((across, plain.height), Image.Resampling.BILINEAR), (0, row))
    scaled = np.asarray(narrow.resize(sides, Image.Resampling.BILINEAR), np.uint8)
    return _padded(scaled.reshape(sides[1], sides[0], channels), size)


def _scaled(shape: tuple[int, int], size: int, fit: Fit) -> tuple[int, int, tuple[int, int]]:
    """Return width and height of the part of an image that is used, and the sides that it is scaled to."""
    width, height = shape if fit != "crop" else (min(shape), min(shape))
    scale = size / max(width, height)
    sides = (size, size) if fit != "pad" else (max(1, round(width * scale)), max(1, round(height * scale)))
    return width, height, sides


def _padded(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Put an image (h, w, channels) into the middle of a square of its border's median color."""
    height, width, channels = image.shape
    if (height, width) == (size, size):
        return image
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    square = np.empty((size, size, channels), np.uint8)
    square[:] = np.median(border, axis=0).astype(np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = image
    return square


@functools.cache
def can_read_heif() -> bool:
    """Return whether pillow-heif is installed; Pillow is taught to read with it."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.options.DECODE_THREADS = 1  # files are decoded next to each other, and each thread takes memory
    pillow_heif.register_heif_opener()
    return True


def _formats() -> tuple[str, ...]:
    return (*FORMATS, "HEIF") if can_read_heif() else FORMATS


def _require_file(path: Path) -> None:
    """Refuse what is no regular file, without opening it: a pipe would be waited for."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise BadImageError("a folder, not a file")
    if not stat.S_ISREG(mode):
        raise BadImageError(f"{_NO_FILES.get(stat.S_IFMT(mode), 'something else')}, not a file")


def _scaling_bytes(shape: tuple[int, int], size: int, channels: int, fit: Fit) -> int:
    """Return the bytes that `fit_image` takes besides the picture: a strip's five forms, and where they go."""
    width, height, sides = _scaled(shape, size, fit)
    across = sides[0] if width >= height else max(sides[0], width)
    return 20 * max(STRIP, width) + height * (8 + across * (1 if channels == 1 else 4))


def _too_large(whole: tuple[int, int], wanted: int, most: int) -> str:
    return (
        f"too large: {whole[0]} x {whole[1]} pixels take {wanted / 2**20:.0f} MiB to decode, more than "
        f"{most / 2**20:.0f}; save it smaller, or as a JPEG that is not progressive"
    )


def _turned(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return a square (size, size, channels) as its EXIF orientation says it is looked at."""
    if orientation == 1:
        return image
    stored = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    stored.getexif()[ExifTags.Base.Orientation] = orientation
    ImageOps.exif_transpose(stored, in_place=True)
    return np.asarray(stored, np.uint8).reshape(image.shape)


def _unidentified(path: Path) -> str:
    if path.stat().st_size == 0:
        return "empty"
    if path.suffix.lower() in (".heic", ".heif") and not can_read_heif():
        return NEEDS_HEIF
    return "not a PNG, JPEG, WebP, TIFF or BMP image"


def _to_8_bits(image: Image.Image, mode: str, *, png: bool) -> Image.Image:
    """Convert to `L` or `RGB`."""
    if image.mode.startswith("I;16") or (image.mode == "I" and png):  # older Pillows read a PNG's 16 bits into 32
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32 bits per pixel have no known range; save it with 8 or 16")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (_BACKGROUND,) * 3 + (255,))
        image = Image.alpha_composite(ground, image)
    return image.convert(mode)

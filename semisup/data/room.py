"""Bytes that a picture's pixels take while they are decoded, known from its head: measured for each library."""

from __future__ import annotations

from pathlib import Path

from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin

__all__ = ["decoding_bytes", "orientation"]


def decoding_bytes(image: Image.Image, whole: tuple[int, int]) -> int:
    """Return the bytes that an image takes as Pillow and its libraries hold it.

    Args:
        image: opened and not yet read; perhaps a draft of a JPEG.
        whole: width and height of the file's own.
    """
    pixels = image.width * image.height
    stored = 2 if image.mode.startswith("I;16") else 1 if image.mode in ("1", "L", "P") else 4
    copies = 2 if _orientation_in_head(image) != 1 else 1
    wanted = copies * (pixels * stored + 8 * image.height)  # Pillow keeps the address of each row
    if image.format == "WEBP":  # two canvases, their bytes, and the image
        return max(wanted, 16 * pixels)
    if image.format == "HEIF":  # luma and chroma, their colors, and the image
        return max(wanted, 8 * pixels)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.info.get("compression") != "raw":
        # A whole strip or tile next to the image, and the file, which libtiff maps.
        rows = image.tag_v2.get(TiffImagePlugin.ROWSPERSTRIP, image.height)
        return wanted + min(int(rows), image.height) * image.width * 4 + Path(str(image.filename)).stat().st_size
    if isinstance(image, JpegImagePlugin.JpegImageFile) and not _one_scan(image):
        # The coefficients of all scans, whatever part is decoded.
        widest = max((h * v for _, h, v, _ in image.layer), default=1)
        return wanted + sum(2 * whole[0] * whole[1] * h * v // widest for _, h, v, _ in image.layer)
    return wanted


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, of an image; a PNG is decoded to its end for it."""
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def _orientation_in_head(image: Image.Image) -> int:
    """Return the EXIF orientation, of a PNG as its head has it."""
    if image.format != "PNG":
        return orientation(image)
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return int(exif.get(ExifTags.Base.Orientation, 1))


def _one_scan(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether a JPEG is decoded row by row: its first scan has all its colors, and is not the first of several."""
    if image.info.get("progressive"):
        return False
    file, start = image.fp, 2
    assert file is not None
    while True:
        file.seek(start)
        head = file.read(5)
        if len(head) < 5 or head[0] != 0xFF:
            return False
        if head[1] == 0xDA:
            return head[4] == len(image.layer)
        start += 1 if head[1] == 0xFF else 2 + int.from_bytes(head[2:4], "big")  # markers may be padded

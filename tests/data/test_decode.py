"""Files of every kind, written here by Pillow or byte by byte, against arrays worked out by hand."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semisup.data.decode import NEEDS_HEIF, BadImageError, Fit, can_read_heif, decode, fit_image

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOR = np.stack([RAMP, RAMP.T, RAMP[::-1]], axis=-1)


def reason(path: Path, size: int = 16) -> str:
    with pytest.raises(BadImageError) as caught:
        decode(path, size, 3)
    return str(caught.value)


def png(path: Path, pixels: np.ndarray, bits: int, kind: int) -> None:
    """Write a PNG of a bit depth and color type that Pillow cannot write; `pixels` (h, w, ...) unsigned integers."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2" if bits == 16 else "u1").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    path.write_bytes(signature + body)


# Kinds of files


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp"])
def test_lossless_files_come_back_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(COLOR).save(tmp_path / f"a.{suffix}", **options)
    image = decode(tmp_path / f"a.{suffix}", 16, 3)
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    assert np.array_equal(image, COLOR)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_files_come_back_about_the_same(tmp_path: Path, suffix: str) -> None:
    smooth = np.stack([np.add.outer(np.arange(64), np.arange(64))] * 3, -1).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / f"a.{suffix}", quality=95)
    assert np.abs(decode(tmp_path / f"a.{suffix}", 64, 3).astype(int) - smooth).max() <= 6


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    Image.fromarray(COLOR).save(tmp_path / "a", format="PNG")
    Image.fromarray(COLOR).save(tmp_path / "b.jpg", format="BMP")
    assert np.array_equal(decode(tmp_path / "a", 16, 3), COLOR)
    assert np.array_equal(decode(tmp_path / "b.jpg", 16, 3), COLOR)


def test_gray_and_color_become_each_other(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "gray.png")
    Image.fromarray(COLOR).save(tmp_path / "color.png")
    assert np.array_equal(decode(tmp_path / "gray.png", 16, 1)[..., 0], RAMP)
    assert np.array_equal(decode(tmp_path / "gray.png", 16, 3), np.stack([RAMP] * 3, -1))
    luma = COLOR @ [0.299, 0.587, 0.114]
    assert np.abs(decode(tmp_path / "color.png", 16, 1)[..., 0] - luma).max() <= 1


def test_black_and_white(tmp_path: Path) -> None:
    board = np.indices((16, 16)).sum(0) % 2 == 1
    Image.fromarray(board).save(tmp_path / "a.png")
    Image.fromarray(board).save(tmp_path / "a.tif", compression="group4")
    for name in ("a.png", "a.tif"):
        assert np.array_equal(decode(tmp_path / name, 16, 1)[..., 0], board * 255)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big-endian.tif"])
def test_sixteen_bits_of_gray_are_scaled_not_cut(tmp_path: Path, name: str) -> None:
    deep = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(deep.astype(">u2") if name.startswith("big") else deep).save(tmp_path / name)
    gray = decode(tmp_path / name, 16, 1)[..., 0]
    assert np.array_equal(gray, np.floor(deep / 257 + 0.5))
    assert (gray.min(), gray.max()) == (0, 255)
    assert np.array_equal(decode(tmp_path / name, 16, 3)[..., 1], gray)


def test_sixteen_bits_of_color_are_scaled(tmp_path: Path) -> None:
    deep = COLOR.astype(np.uint16) * 257
    png(tmp_path / "rgb.png", deep, 16, 2)
    assert np.array_equal(decode(tmp_path / "rgb.png", 16, 3), COLOR)
    opaque = np.full((16, 16, 1), 65535)
    png(tmp_path / "rgba.png", np.concatenate([deep, opaque], -1), 16, 6)
    assert np.array_equal(decode(tmp_path / "rgba.png", 16, 3), COLOR)
    png(tmp_path / "la.png", np.concatenate([deep[..., :1], opaque], -1), 16, 4)
    assert np.array_equal(decode(tmp_path / "la.png", 16, 1), COLOR[..., :1])


def test_32_bits_have_no_range(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32) / 255).save(tmp_path / "float.tif")
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "int.tif")
    for name in ("float.tif", "int.tif"):
        assert "32 bits per pixel have no known range" in reason(tmp_path / name)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_an_alpha_channel_is_laid_over_white(tmp_path: Path, suffix: str) -> None:
    alpha = np.repeat([0, 51, 255, 102], 64).astype(np.uint8).reshape(16, 16)
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    Image.fromarray(np.dstack([COLOR, alpha])).save(tmp_path / f"a.{suffix}", **options)
    share = alpha[..., None] / 255
    expected = COLOR * share + 255 * (1 - share)
    assert np.abs(decode(tmp_path / f"a.{suffix}", 16, 3) - expected).max() <= 1
    assert (decode(tmp_path / f"a.{suffix}", 16, 3)[:4] == 255).all(), "what hides under full transparency is hidden"


def test_gray_with_alpha(tmp_path: Path) -> None:
    alpha = np.where(np.arange(16)[:, None] < 8, 0, 255) * np.ones((1, 16))
    Image.fromarray(np.dstack([RAMP, alpha.astype(np.uint8)]), "LA").save(tmp_path / "a.png")
    gray = decode(tmp_path / "a.png", 16, 1)[..., 0]
    assert (gray[:8] == 255).all() and np.array_equal(gray[8:], RAMP[8:])


def test_palettes_are_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(np.indices((16, 16)).sum(0).astype(np.uint8) % 3, "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    for name in ("a.png", "a.bmp", "a.tif"):
        image.save(tmp_path / name)
        decoded = decode(tmp_path / name, 16, 3)
        assert [decoded[0, k].tolist() for k in range(3)] == [[255, 0, 0], [0, 255, 0], [10, 20, 30]]
    image.save(tmp_path / "one.png", transparency=1)
    image.save(tmp_path / "each.png", transparency=bytes([255, 0, 128]))
    assert [decode(tmp_path / "one.png", 16, 3)[0, k].tolist() for k in range(3)] == [
        [255, 0, 0],
        [255] * 3,
        [10, 20, 30],
    ]
    each = decode(tmp_path / "each.png", 16, 3)[0]
    assert each[1].tolist() == [255] * 3
    assert np.abs(each[2] - (np.array([10, 20, 30]) * 128 + 255 * 127) / 255).max() <= 1


def test_a_transparent_color_of_an_image_without_palette(tmp_path: Path) -> None:
    Image.fromarray(COLOR).save(tmp_path / "rgb.png", transparency=tuple(COLOR[3, 4].tolist()))
    Image.fromarray(RAMP).save(tmp_path / "gray.png", transparency=7)
    color, gray = decode(tmp_path / "rgb.png", 16, 3), decode(tmp_path / "gray.png", 16, 1)[..., 0]
    assert color[3, 4].tolist() == [255] * 3 and color[3, 5].tolist() == COLOR[3, 5].tolist()
    assert gray[0, 6:9].tolist() == [6, 255, 8]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    """Inks that cover nothing are white; JPEGs of CMYK hold their values inverted."""
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[8:, :8, 0] = 255  # cyan
    inks[8:, 8:, 3] = 255  # black
    Image.fromarray(inks, "CMYK").save(tmp_path / f"a.{suffix}", **({"quality": 100} if suffix == "jpg" else {}))
    decoded = decode(tmp_path / f"a.{suffix}", 16, 3).astype(int)
    for row, column, expected in [(2, 2, (255, 255, 255)), (13, 2, (0, 255, 255)), (13, 13, (0, 0, 0))]:
        assert np.abs(decoded[row, column] - expected).max() <= 4


TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: np.rot90,
}
"""Orientation -> what brings the stored pixels upright (the Exif standard, 4.6.4: where row 0 and column 0 belong)."""


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", TURNS)
def test_every_orientation_comes_out_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    stored = np.zeros((32, 32, 3), np.uint8)
    stored[:16, :16], stored[:16, 16:], stored[16:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {"quality": 95} if suffix == "jpg" else {}
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif, **options)
    upright = TURNS[orientation](stored).astype(int)
    found = decode(tmp_path / f"a.{suffix}", 32, 3)
    middles = np.ix_([8, 24], [8, 24])  # away from the edges that JPEG blurs
    assert np.abs(found[middles] - upright[middles]).max() <= 12


def test_of_several_frames_the_first(tmp_path: Path) -> None:
    first, second = Image.fromarray(COLOR), Image.fromarray(255 - COLOR)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    first.save(tmp_path / "a.webp", save_all=True, append_images=[second], lossless=True)
    first.save(tmp_path / "a.png", save_all=True, append_images=[second])
    for name in ("a.tif", "a.webp", "a.png"):
        assert np.array_equal(decode(tmp_path / name, 16, 3), COLOR)
    first.resize((64, 64)).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second.resize((64, 64))]
    )
    assert np.abs(decode(tmp_path / "a.jpg", 16, 3).astype(int) - COLOR).mean() < 12, "a phone's picture of two"


# Size


def test_the_center_square_is_kept(tmp_path: Path) -> None:
    wide = np.zeros((20, 60), np.uint8)
    wide[:, 20:40] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.T).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        assert (decode(tmp_path / name, 10, 1) == 200).all()


def test_shrinking_averages_over_all_pixels(tmp_path: Path) -> None:
    board = (np.indices((640, 640)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    Image.fromarray(board).save(tmp_path / "a.jpg", quality=100)
    for name in ("a.png", "a.jpg"):
        assert np.abs(decode(tmp_path / name, 16, 1).astype(int) - 127).max() <= 3


def test_a_photograph_read_at_a_part_of_its_size_is_the_same_picture(tmp_path: Path) -> None:
    """The quick way of JPEGs against the slow one: the whole picture, scaled."""
    y, x = np.mgrid[0:600, 0:800] / 100
    photo = np.stack([127 + 120 * np.sin(x * k + y) for k in (1, 2, 3)], -1).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "a.jpg", quality=98)
    Image.fromarray(photo).save(tmp_path / "a.bmp")
    difference = decode(tmp_path / "a.jpg", 64, 3).astype(int) - decode(tmp_path / "a.bmp", 64, 3)
    assert np.abs(difference).max() <= 6


def test_small_images_are_enlarged(tmp_path: Path) -> None:
    Image.fromarray(np.full((1, 3), 99, np.uint8)).save(tmp_path / "a.png")
    assert (decode(tmp_path / "a.png", 32, 3) == 99).all()


# Bad files


def test_reasons(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image at all")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "art.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert reason(tmp_path / "empty.png") == "empty"
    assert reason(tmp_path / "text.jpg") == "not a PNG, JPEG, WebP, TIFF or BMP image"
    assert reason(tmp_path / "art.png") == "not a PNG, JPEG, WebP, TIFF or BMP image"
    assert reason(tmp_path / "nosuch.png") == "no such file"
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    assert reason(tmp_path / "folder.png") == "a folder, not a file"
    assert reason(tmp_path / "link.png") == "a link to nowhere"
    assert reason(tmp_path / "pipe.png") == "a pipe, not a file"
    assert reason(Path("/dev/zero")) == "a device, not a file"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
def test_a_file_cut_short_is_bad(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for part in (0.9, 0.5, 0.05):
        path.write_bytes(whole[: int(len(whole) * part)])
        assert reason(path)


def test_a_decompression_bomb_is_refused_unread(tmp_path: Path) -> None:
    """A file of some kilobytes that says it is 50,000 x 50,000."""
    path = tmp_path / "bomb.png"
    png(path, np.zeros((2, 2), np.uint8), 8, 0)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 50_000, 50_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(content)
    assert reason(path).startswith("too large: Image size (2500000000 pixels) exceeds limit")


def bad_when_torn(path: Path, rng: np.random.Generator, times: int, places: tuple[int, int, int], size: int) -> int:
    """How often a file is bad with other bytes at so many places between two; else it is an image of `size`."""
    whole, bad = path.read_bytes(), 0
    for _ in range(times):
        torn = bytearray(whole)
        for at in rng.integers(*places):
            torn[at] = rng.integers(256)
        path.write_bytes(torn)
        try:
            assert decode(path, size, 3).shape == (size, size, 3)
        except BadImageError:
            bad += 1
    return bad


def test_damaged_bytes_never_escape(tmp_path: Path) -> None:
    """Whatever a flipped byte does to a reader, the answer is an image or a BadImageError."""
    rng = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    path, bad = tmp_path / "a", 0
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP"):
        Image.fromarray(COLOR).save(path, format=kind, exif=exif)
        places = (0, min(path.stat().st_size, 200), 3)
        bad += bad_when_torn(path, rng, 60, places, 8)
    assert bad > 30


def test_heic_is_read_where_its_library_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = np.full((32, 32, 3), (200, 30, 60), np.uint8)
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "a.heic", quality=90)
    assert np.abs(decode(tmp_path / "a.heic", 16, 3).astype(int) - (200, 30, 60)).max() < 8
    monkeypatch.setattr("semisup.data.decode.can_read_heif", lambda: False)
    assert reason(tmp_path / "a.heic") == NEEDS_HEIF


MEASURE = """
import resource, sys
from pathlib import Path
from semisup.data.decode import decode

folder = Path(sys.argv[1])
decode(folder / "small.png", 32, 3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode(folder / "large.png", 32, 3)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_is_bounded_in_bytes(tmp_path: Path) -> None:
    """A small file of 16 bits used to take 16 bytes a pixel and more, in as many workers as there are cores."""
    side = 6000
    Image.fromarray(np.zeros((side, side), np.uint16)).save(tmp_path / "large.png")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "small.png")
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 64 + 8 * 32 * 32 * 3 / 2**20
    png(tmp_path / "bomb.png", np.zeros((2, 2, 3), np.uint16), 16, 2)
    content = bytearray((tmp_path / "bomb.png").read_bytes())
    content[16:24] = struct.pack(">II", 13_000, 13_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(BadImageError, match="too large"):
        decode(tmp_path / "bomb.png", 32, 3)


PIXELS = Image.new("RGB", (1000, 1000))
TURNED = Image.Exif()
TURNED[0x112] = 6


@pytest.mark.parametrize(
    ("kind", "options", "bytes_a_pixel"),
    [
        ("PNG", {}, 4),
        ("PNG", {"exif": TURNED}, 8),
        ("WEBP", {"method": 0}, 16),
        ("HEIF", {}, 8),
        ("TIFF", {"compression": "tiff_lzw", "strip_size": 2**30}, 8),
        ("JPEG", {"progressive": True, "subsampling": 0}, 6),
    ],
)
def test_what_a_library_takes_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any], bytes_a_pixel: int
) -> None:
    """As measured on files of 12 and 40 megapixels: WebP has two canvases, a progressive JPEG all its coefficients."""
    assert can_read_heif()
    PIXELS.save(tmp_path / "a", kind, **options)
    monkeypatch.setattr("semisup.data.decode.STRIP", 2**10)
    monkeypatch.setattr("semisup.data.decode.strips_of", lambda image: None)
    monkeypatch.setattr("semisup.data.decode.LARGEST", bytes_a_pixel * 1000**2 - 1)
    assert reason(tmp_path / "a").startswith("too large: 1000 x 1000 pixels take")
    monkeypatch.setattr("semisup.data.decode.LARGEST", int(1.1 * bytes_a_pixel * 1000**2))
    assert decode(tmp_path / "a", 16, 3).shape == (16, 16, 3)


def test_a_picture_of_one_column_is_no_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretched, each of its pixels becomes a row of the result's width first."""
    Image.new("L", (1, 10_000)).save(tmp_path / "a.png")
    monkeypatch.setattr("semisup.data.decode.LARGEST", 2**20)
    monkeypatch.setattr("semisup.data.decode.STRIP", 2**10)
    assert decode(tmp_path / "a.png", 224, 1).shape == (224, 224, 1)
    with pytest.raises(BadImageError, match="too large"):
        decode(tmp_path / "a.png", 224, 1, "stretch")


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (301, 301), (40, 1500), (1500, 40), (9, 7)])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_strips_change_no_bit(shape: tuple[int, int], fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against Pillow's own scaling of the whole picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    top, left = ((side - min(shape)) // 2 if fit == "crop" else 0 for side in shape)
    used = pixels[top : top + min(shape), left : left + min(shape)] if fit == "crop" else pixels
    sides = [64, 64] if fit != "pad" else [max(1, round(side * 64 / max(shape))) for side in shape]
    scaled = np.asarray(Image.fromarray(used).resize((sides[1], sides[0]), Image.Resampling.BILINEAR))
    monkeypatch.setattr("semisup.data.decode.STRIP", 1000)
    found = fit_image(Image.fromarray(pixels), 64, 3, fit)
    rows, columns = (64 - sides[0]) // 2, (64 - sides[1]) // 2
    assert np.array_equal(found[rows : rows + sides[0], columns : columns + sides[1]], scaled)


def test_strips_meet_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 61, 4)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = decode(tmp_path / "a.png", 16, 3)
    monkeypatch.setattr("semisup.data.decode.STRIP", 100)
    np.testing.assert_array_equal(decode(tmp_path / "a.png", 16, 3), whole)


# Pictures that are no squares


def halves(height: int, width: int) -> np.ndarray:
    """A picture in color whose left half is red and right half blue, with a green border of 1 px."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0], image[:, width // 2 :, 2] = 200, 200
    image[[0, -1]], image[:, [0, -1]] = (0, 90, 0), (0, 90, 0)
    return image


@pytest.mark.parametrize(("height", "width"), [(20, 40), (40, 20)])
def test_a_picture_is_cut_or_framed_or_stretched(tmp_path: Path, height: int, width: int) -> None:
    pixels = halves(height, width)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    cropped, padded, stretched = (decode(tmp_path / "a.png", 20, 3, fit) for fit in ("crop", "pad", "stretch"))
    side, top, left = 20, (height - 20) // 2, (width - 20) // 2
    assert np.array_equal(cropped, pixels[top : top + side, left : left + side])
    half = np.asarray(Image.fromarray(pixels).resize((width // 2, height // 2), Image.Resampling.BILINEAR))
    rows, columns = slice((20 - height // 2) // 2, None), slice((20 - width // 2) // 2, None)
    assert np.array_equal(padded[rows, columns][: height // 2, : width // 2], half)
    bands = padded.copy()
    bands[rows, columns][: height // 2, : width // 2] = bands[0, 0]
    assert (bands == bands[0, 0]).all(), "bands of one color"
    assert 20 < int(bands[0, 0, 1]) <= 90 and bands.flags.c_contiguous
    scaled = np.asarray(Image.fromarray(pixels).resize((20, 20), Image.Resampling.BILINEAR))
    assert np.array_equal(stretched, scaled)


def test_a_square_is_the_same_either_way(tmp_path: Path) -> None:
    Image.fromarray(COLOR).save(tmp_path / "a.png")
    images = [decode(tmp_path / "a.png", 12, 3, fit) for fit in ("crop", "pad", "stretch")]
    assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_a_photograph_on_its_side_is_turned_before_it_is_fitted(tmp_path: Path, fit: Fit) -> None:
    upright = Image.fromarray(halves(20, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    assert np.array_equal(decode(tmp_path / "turned.png", 16, 3, fit), decode(tmp_path / "upright.png", 16, 3, fit))


@pytest.mark.parametrize("shape", [(1, 300), (300, 1)])
def test_a_line_is_a_picture_too(tmp_path: Path, shape: tuple[int, int]) -> None:
    Image.fromarray(np.full(shape, 7, np.uint8)).save(tmp_path / "a.png")
    for fit in ("crop", "pad", "stretch"):
        assert (decode(tmp_path / "a.png", 16, 1, fit) == 7).all()


def test_the_whole_of_a_long_picture_need_not_fit_into_memory_twice(tmp_path: Path) -> None:
    Image.new("1", (400_000, 300)).save(tmp_path / "a.png")  # 114 MiB, and in color 458
    for fit in ("crop", "pad"):
        assert decode(tmp_path / "a.png", 16, 3, fit).shape == (16, 16, 3)

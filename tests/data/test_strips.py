"""Pictures that are read by strips, against Pillow's own reading of the whole; and what all of them take, measured."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semisup.data.decode import BadImageError, Fit, can_read_heif, decode, fit_image
from semisup.data.strips import strips_of
from tests.data.test_decode import TURNS, bad_when_torn

KINDS = {
    "black and white": (1, 0),
    "2 bits": (2, 0),
    "4 bits": (4, 0),
    "gray": (8, 0),
    "16 bits": (16, 0),
    "gray and alpha": (8, 4),
    "16 bits and alpha": (16, 4),
    "color": (8, 2),
    "color and alpha": (8, 6),
    "16 colors": (4, 3),
    "palette": (8, 3),
}
"""Depth and color type of a PNG."""
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def paeth(left: int, above: int, corner: int) -> int:
    """The PNG specification, 9.4."""
    guess = left + above - corner
    return min((left, above, corner), key=lambda value: abs(guess - value))


def filtered(rows: np.ndarray, back: int) -> bytes:
    """Put each of the five filters of PNG on the rows in turn, byte by byte as the specification has them."""
    out, above = bytearray(), [0] * rows.shape[1]
    for y, row in enumerate(rows.tolist()):
        out.append(y % 5)
        for x, value in enumerate(row):
            left, corner = (row[x - back], above[x - back]) if x >= back else (0, 0)
            guess = (0, left, above[x], (left + above[x]) // 2, paeth(left, above[x], corner))[y % 5]
            out.append((value - guess) % 256)
        above = row
    return bytes(out)


def write_png(path: Path, width: int, height: int, kind: str, *, before: bytes = b"", behind: bytes = b"") -> None:
    """Write random pixels in chunks of 100 bytes, with other chunks before and behind them."""
    depth, color = KINDS[kind]
    draws = np.random.default_rng(len(kind))
    rows = draws.integers(0, 256, (height, -(-width * depth * SAMPLES[color] // 8)), np.uint8)
    packed = zlib.compress(filtered(rows, max(1, depth * SAMPLES[color] // 8)))
    palette = draws.integers(0, 256, 3 * 2**depth if color == 3 else 0, np.uint8).tobytes()
    told = chunk(b"PLTE", palette) + chunk(b"tRNS", bytes(range(2**depth))) if palette else b""
    pieces = [chunk(b"IDAT", packed[at : at + 100]) for at in range(0, len(packed), 100)]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    content = [b"\x89PNG\r\n\x1a\n", head, told, before, *pieces, behind, chunk(b"IEND", b"")]
    path.write_bytes(b"".join(content))


def by_strips(path: Path, fit: Fit) -> np.ndarray:
    with Image.open(path) as image:
        strips = strips_of(image)
        assert strips is not None
        return fit_image(strips, 16, 3, fit, png=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(61, 40), (37, 90)])
def test_a_png_by_strips_is_the_same(
    shape: tuple[int, int], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semisup.data.strips._PIECE", 700)
    monkeypatch.setattr("semisup.data.decode.STRIP", 500)
    write_png(tmp_path / "a.png", *shape, kind)
    fits: list[Fit] = ["crop", "pad", "stretch"]
    for fit in fits:
        np.testing.assert_array_equal(by_strips(tmp_path / "a.png", fit), decode(tmp_path / "a.png", 16, 3, fit))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for strips alone."""
    monkeypatch.setattr("semisup.data.decode.LARGEST", 3000)
    monkeypatch.setattr("semisup.data.decode.STRIP", 100)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("behind", [False, True])
def test_a_large_png_is_turned(orientation: int, behind: bool, tmp_path: Path, small: None) -> None:
    exif = chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">H", orientation) + bytes(6))
    write_png(tmp_path / "a.png", 60, 60, "color", **{"behind" if behind else "before": exif})
    write_png(tmp_path / "plain.png", 60, 60, "color")
    upright = TURNS[orientation](by_strips(tmp_path / "plain.png", "crop"))
    np.testing.assert_array_equal(decode(tmp_path / "a.png", 16, 3), upright)


def test_a_large_png_that_is_damaged_is_bad(tmp_path: Path, small: None) -> None:
    path, draws = tmp_path / "a.png", np.random.default_rng(0)
    write_png(path, 60, 60, "color")
    whole = path.read_bytes()
    assert decode(path, 16, 3).shape == (16, 16, 3)
    for part in (0.99, 0.9, 0.5, 0.1):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(BadImageError):
            decode(path, 16, 3)
    path.write_bytes(whole)
    assert bad_when_torn(path, draws, 200, (33, len(whole), 2), 16) > 50


def test_what_cannot_be_read_by_strips_is_refused(tmp_path: Path, small: None) -> None:
    Image.new("RGB", (60, 60)).save(tmp_path / "a.bmp")
    write_png(tmp_path / "a.png", 60, 60, "color")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[28] = 1  # interlaced
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    (tmp_path / "interlaced.png").write_bytes(content)
    for name in ("a.bmp", "interlaced.png"):
        with pytest.raises(BadImageError, match=r"too large: 60 x 60 pixels take \d+ MiB to decode, more than 0; save"):
            decode(tmp_path / name, 16, 3)


@pytest.mark.parametrize("tile", [0, 64])
def test_a_heic_by_strips_is_the_same(tile: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    assert can_read_heif()
    monkeypatch.setattr("semisup.data.decode.STRIP", 500)
    monkeypatch.setattr(pillow_heif.options, "GRID_TILE_SIZE", tile, raising=False)
    pixels = np.add.outer(np.arange(150), np.arange(200))[..., None] * [1, 2, 3] % 256
    for mode in ("RGB", "RGBA"):
        pillow_heif.from_pillow(Image.fromarray(pixels.astype(np.uint8)).convert(mode)).save(tmp_path / "a.heic")
        for fit in ("crop", "pad"):
            np.testing.assert_array_equal(by_strips(tmp_path / "a.heic", fit), decode(tmp_path / "a.heic", 16, 3, fit))


PEAK = """
import sys
from pathlib import Path
from semisup.data.decode import BadImageError, decode

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

for name in ("small.webp", "small.heic"):  # imports what they are read with
    decode(Path(name), 32, 3)
for path in sorted(Path("large").iterdir()):
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    try:
        decode(path, 224, 3)
        result = "read"
    except BadImageError as error:
        result = str(error)
    print(path.name, (peak() - before) / 1024, result, sep=":")
"""
LARGEST_READ = {
    "gray16.png": (8000, 5000),
    "color.png": (8000, 5000),
    "alpha.png": (8000, 5000),
    "wide.png": (60000, 700),
    "turned.png": (8000, 5000),
    "plain.jpg": (8000, 5000),
    "progressive.jpg": (5200, 3500),
    "color.bmp": (4500, 3000),
    "lzw.tif": (3000, 2200),
    "raw.tif": (3600, 2700),
    "lossy.webp": (2200, 1600),
    "lossless.webp": (2200, 1600),
    "frame.heic": (3500, 2600),
    "tiles.heic": (4032, 3024),
}
"""File -> its width and height: near the largest that is read, or as large as photographs are."""
REFUSED = {"more.bmp": (5000, 4000), "more.webp": (2800, 2000), "more-progressive.jpg": (6200, 4000)}


def texture(width: int, height: int) -> Image.Image:
    x, y = np.arange(width)[None], np.arange(height)[:, None]
    channels = [((x // (3 + c) * 5) % 256 + (y // (4 + c) * 7) % 256).astype(np.uint8) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1))


def write_large(path: Path, size: tuple[int, int]) -> None:
    import pillow_heif

    image, exif = texture(*size), Image.Exif()
    options: dict[str, object] = {}
    if path.suffix == ".png":
        options["compress_level"] = 1
    if "gray16" in path.name:
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif "alpha" in path.name or "lossless" in path.name:
        image = image.convert("RGBA")
    if "turned" in path.name:
        exif[0x112] = 6
        options["exif"] = exif
    if path.suffix == ".heic":
        pillow_heif.options.GRID_TILE_SIZE = 512 if "tiles" in path.name else 0
        pillow_heif.from_pillow(image).save(path, quality=50, enc_params={"preset": "ultrafast"})
        return
    options |= {"progressive": {"progressive": True}, "lzw": {"compression": "tiff_lzw"}}.get(path.stem[-11:], {})
    options |= {"method": 0, "lossless": "lossless" in path.name} if path.suffix == ".webp" else {}
    image.save(path, **options)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_file_takes_more_than_64_mebibytes_and_8_times_the_result(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    Image.new("RGB", (64, 64)).save(tmp_path / "small.webp")
    pillow_heif.from_pillow(Image.new("RGB", (64, 64))).save(tmp_path / "small.heic")
    (tmp_path / "large").mkdir()
    for name, size in {**LARGEST_READ, **REFUSED}.items():
        write_large(tmp_path / "large" / name, size)
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=tmp_path, capture_output=True, text=True, check=True)
    print(done.stdout)
    found = {name: (float(peak), result) for name, peak, result in (x.split(":", 2) for x in done.stdout.splitlines())}
    assert {name for name, (_, result) in found.items() if result == "read"} == LARGEST_READ.keys()
    assert all(result.startswith("too large") for name, (_, result) in found.items() if name in REFUSED)
    assert {name: peak for name, (peak, _) in found.items() if peak > 64 + 8 * 224 * 224 * 3 / 2**20} == {}

"""This package as a wheel, made from the files that run: a model that travels with it needs no index that has it."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import zipfile
from collections.abc import Iterator
from pathlib import Path

from semisup._version import __version__

__all__ = ["WHEEL", "write_wheel"]

WHEEL = f"semisup-{__version__}-py3-none-any.whl"
"""Its file name, by which pip knows what it is."""

STAMP = (1980, 1, 1, 0, 0, 0)
"""Time of every file inside: the same package makes the same bytes."""


def write_wheel(folder: Path) -> Path:
    """Write the running package as a wheel into a folder.

    It has the modules and what lies between them, and asks for what the package's own metadata ask for, without extras.
    Recipes are in it only where the package is installed, not where it runs from a checkout; models need none.

    Args:
        folder: exists.

    Returns:
        The file.
    """
    info = f"semisup-{__version__}.dist-info"
    members = {name: path.read_bytes() for name, path in _files()}
    members[f"{info}/METADATA"] = _metadata().encode()
    members[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: semisup\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    rows = [f"{name},sha256={_hash(content)},{len(content)}" for name, content in members.items()]
    members[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    file = folder / WHEEL
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, STAMP), content, zipfile.ZIP_DEFLATED)
    return file


def _files() -> Iterator[tuple[str, Path]]:
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
            yield f"semisup/{path.relative_to(root).as_posix()}", path


def _metadata() -> str:
    wanted = importlib.metadata.requires("semisup") or []
    lines = ["Metadata-Version: 2.1", "Name: semisup", f"Version: {__version__}"]
    lines += [f"Requires-Dist: {one}" for one in wanted if "extra ==" not in one]
    return "\n".join(lines) + "\n"


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()

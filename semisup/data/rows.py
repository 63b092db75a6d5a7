"""Some rows of a set of images that may lie in a memory map."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray

__all__ = ["is_mapped", "resident_bytes", "take"]


def take(images: NDArray[np.uint8], rows: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
    """Copy some images into memory.

    Of a memory map, its pages are given back at once: they stay in the system's page cache, where they cost nobody
    else anything, but this process holds no more of the file than the copy.

    Args:
        images: (N, H, W, C), an array or a memory map.
        rows: which ones.
    """
    if is_mapped(images):  # of scattered rows the system would read 128 KiB around each
        _advise(images, "MADV_NORMAL" if isinstance(rows, slice) else "MADV_RANDOM")
    # A slice is only a view, an index has made a copy already.
    part = np.array(images[rows], order="C") if isinstance(rows, slice) else np.ascontiguousarray(images[rows])
    if is_mapped(images):
        _advise(images, "MADV_DONTNEED")
    return part


def read_ahead(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
    """Have the system read some images of a memory map from the disk, all at once, and do not wait for it.

    A `take` of them finds them in the page cache later. Nothing for an array in memory, or where the system takes no
    such advice: Windows does not.

    Args:
        images: (N, H, W, C), an array or a memory map.
        rows: which ones; microseconds each.
    """
    if not is_mapped(images) or not hasattr(mmap, "MADV_WILLNEED"):
        return
    file: mmap.mmap = images._mmap  # type: ignore[attr-defined]  # numpy's name for it
    first = images.ctypes.data - np.frombuffer(file, np.uint8, 1).ctypes.data  # byte: a header is in front
    size = images[0].nbytes
    for place in (first + rows * images.strides[0]).tolist():
        start = place // mmap.PAGESIZE * mmap.PAGESIZE
        file.madvise(mmap.MADV_WILLNEED, start, place + size - start)


def _advise(images: NDArray[np.uint8], advice: str) -> None:
    """Tell the system how a file will be read, where it takes advice: Windows does not."""
    if hasattr(mmap, advice):
        images._mmap.madvise(getattr(mmap, advice))  # type: ignore[attr-defined]  # numpy's name for its mmap.mmap


def is_mapped(images: NDArray[np.uint8]) -> bool:
    """Return whether the images are read from a file when they are asked for."""
    return isinstance(images, np.memmap)


def resident_bytes(images: NDArray[np.uint8]) -> int:
    """Bytes of memory that the images take."""
    return 0 if is_mapped(images) else images.nbytes

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
        images._mmap.madvise(mmap.MADV_NORMAL if isinstance(rows, slice) else mmap.MADV_RANDOM)  # type: ignore[attr-defined]
    # A slice is only a view, an index has made a copy already.
    part = np.array(images[rows], order="C") if isinstance(rows, slice) else np.ascontiguousarray(images[rows])
    if is_mapped(images):
        images._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # numpy's name for its mmap.mmap
    return part


def is_mapped(images: NDArray[np.uint8]) -> bool:
    """Return whether the images are read from a file when they are asked for."""
    return isinstance(images, np.memmap)


def resident_bytes(images: NDArray[np.uint8]) -> int:
    """Bytes of memory that the images take."""
    return 0 if is_mapped(images) else images.nbytes

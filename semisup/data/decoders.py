"""Processes that decode image files, in order: for the store of a training set and for `semisup predict`."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semisup.data.decode import BadImageError, Fit, decode
from semisup.errors import SemisupError
from semisup.signals import SIGNALS, end_with

__all__ = ["CHUNK", "Decoded", "decoders"]

CHUNK, MOST = 16, 64
"""Files that a worker decodes at a time: enough to make its messages cheap, few enough to end together."""
ALONE = 64
"""Files up to which no worker is started, which takes a second."""

Decoded = tuple[NDArray[np.uint8] | None, str]
"""An image and its hash, or None and the reason."""


def _decode_chunk(root: Path, paths: Sequence[str], size: int, channels: int, fit: Fit) -> list[Decoded]:
    """Decode a chunk of images; runs in a worker."""
    results: list[Decoded] = []
    for path in paths:
        if _Worker.stop is not None and _Worker.stop.is_set():
            break
        try:
            image = decode(root / path, size, channels, fit)
        except BadImageError as error:
            results.append((None, str(error)))
        else:
            results.append((image, hashlib.blake2b(image.data, digest_size=16).hexdigest()))
    return results


def _results(tasks: list[Any]) -> Iterator[Decoded]:
    """Yield what tasks return, in their order, and keep none of it."""
    tasks.reverse()
    while tasks:
        yield from tasks.pop().result()


class _Worker:
    """What a worker knows of its pool."""

    stop: Any = None
    """Event: what is left of its tasks is not wanted any more."""


def _begin(parent: int, stop: Any) -> None:
    """Let a worker end with its parent, which is told to stop itself: a terminal tells all processes at once."""
    _Worker.stop = stop
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with(parent)


@contextmanager
def decoders(workers: int | None = None) -> Iterator[Callable[..., Iterator[Decoded]]]:
    """Give a function that decodes some files of a root, in order; its processes start with the first large call.

    The function takes the root, the paths below it, the size and channels of the images, and how they are made square
    (`semisup.data.decode.Fit`); it begins at once.

    Args:
        workers: processes; None: one per core that this process may use.

    Raises:
        SemisupError: a process died.
    """
    pool: Any = None
    stop: Any = None

    def decode_all(root: Path, paths: Sequence[str], size: int, channels: int, fit: Fit = "crop") -> Iterator[Decoded]:
        nonlocal pool, stop
        if workers == 1 or (pool is None and len(paths) <= ALONE):
            return itertools.chain.from_iterable(_decode_chunk(root, [path], size, channels, fit) for path in paths)
        import joblib  # a fifth of a second

        processes = workers or joblib.cpu_count()
        if pool is None:
            processes = min(processes, 2 * -(-len(paths) // CHUNK))  # two calls at a time have no more chunks
            from joblib.externals.loky import ProcessPoolExecutor
            from joblib.externals.loky.backend import get_context

            # Its processes do not run the caller's script again, as those of `multiprocessing` may, and do not inherit
            # torch's threads and locks.
            stop = get_context("loky").Event()
            pool = ProcessPoolExecutor(processes, initializer=_begin, initargs=(os.getpid(), stop))
        length = min(MOST, max(CHUNK, len(paths) // (4 * processes)))
        chunks = [paths[start : start + length] for start in range(0, len(paths), length)]
        # Not `pool.map`, which cancels what is not done when its results are dropped: the same trap.
        tasks = [pool.submit(_decode_chunk, root, chunk, size, channels, fit) for chunk in chunks]
        return _results(tasks)

    whole = False
    try:
        yield decode_all
        whole = True
    except BrokenProcessPool as error:
        raise SemisupError(
            "a process that decoded images died, perhaps for want of memory; what is done is kept, go on with fewer "
            "processes: --workers 1 of semisup data prepare and semisup predict"
        ) from error
    finally:
        if pool is not None:
            # Tasks that are left do nothing any more. To kill the processes then would trip the pool's own thread: over
            # its books, or over an answer that breaks off in the middle, and nobody would end them.
            stop.set()
            pool.shutdown(wait=True, kill_workers=whole)

"""A folder of images behind an address (s3, gs, http, and what else fsspec opens): listed once, fetched shard by shard.

Which addresses are followed, `semisup.data.addresses` says. A server that fails is asked again, in words, for a while;
what is decoded by then is kept.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import importlib.util
import itertools
import logging
import re
import shutil
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote, unquote

from semisup.data.walk import FoundFile, is_system, named_as_image
from semisup.errors import SemisupError, first_line

__all__ = ["SCHEMES", "Fetch", "Remote", "Root"]

SCHEMES = {"file": "fsspec", "gs": "gcsfs", "http": "aiohttp", "https": "aiohttp", "memory": "fsspec", "s3": "s3fs"}
"""What an address may begin with -> the module that reads it."""
_FAILURES = {
    "aiohttp": ("aiohttp:ClientError",),
    "gcsfs": ("aiohttp:ClientError", "gcsfs.retry:HttpError", "google.auth.exceptions:GoogleAuthError"),
    "s3fs": ("botocore.exceptions:BotoCoreError", "botocore.exceptions:ClientError"),
}
"""What these modules raise besides OSError."""
_HOPELESS = (
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "NoRegionError"),
    "ParamValidationError",  # of a name that no bucket can have
)
AT_ONCE = 16
"""Files that are fetched at a time."""
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further trial of what failed; when none of a round's files arrived after the last, it ends."""
CONNECT, SILENCE = 5.0, 15.0
"""Seconds that a server may take to be there, and between two parts of an answer."""

LOG = logging.getLogger("semisup")
Result = TypeVar("Result")
Fetch: TypeAlias = Callable[[Sequence[tuple[str, int]]], tuple[Path, list[str]]]
"""Files (path, bytes; 0: not known) -> the folder that they are in, and their names there, in the same order."""


class Remote:
    """A folder behind an address.

    Args:
        url: such as s3://bucket/photos.

    Attributes:
        url: without a / at its end.
        name: its last part.
    """

    def __init__(self, url: str) -> None:
        scheme, mark, rest = url.rstrip("/").partition("://")
        self.scheme = scheme.lower()
        self.url = self.scheme + mark + rest
        self.name = self.url.rpartition("/")[2]

    def __str__(self) -> str:
        return self.url

    @cached_property
    def _system(self) -> Any:
        """The file system of fsspec: with time limits, and without trials of its own, which nobody would hear of."""
        import fsspec

        options: dict[str, Any] = {}
        if self.scheme == "s3":
            limits = {"connect_timeout": CONNECT, "read_timeout": SILENCE}
            options = {"config_kwargs": {**limits, "retries": {"total_max_attempts": 1}}}
        elif self.scheme in ("http", "https"):
            import aiohttp

            wait = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)
            options = {"client_kwargs": {"timeout": wait}}
        system = fsspec.filesystem(self.scheme, skip_instance_cache=True, use_listings_cache=False, **options)
        if self.scheme == "s3":
            system.retries = 1
        return system

    @cached_property
    def _failures(self) -> tuple[type[Exception], ...]:
        """What a server that fails is told by."""
        found: list[type[Exception]] = [OSError]
        for name in _FAILURES.get(SCHEMES[self.scheme], ()):
            module, _, kind = name.partition(":")
            found.append(getattr(importlib.import_module(module), kind))
        return tuple(found)

    # What there is ---------------------------------------------------------------------------------------------------

    @cached_property
    def _files(self) -> dict[str, tuple[str, int, int]]:
        """Path below the address -> its name at the server, bytes (-1: not said) and version, sorted by path."""
        base = str(self._system._strip_protocol(self.url))
        # Stores of objects list by themselves; elsewhere fsspec walks, and would leave out what fails.
        walked = {} if self.scheme in ("s3", "gs") else {"on_error": "raise"}
        listed = self._patiently("cannot be listed", lambda: self._system.find(base, detail=True, **walked))
        found = {}
        for name, info in listed.items():
            path = name.removeprefix(base).lstrip("/")
            if self.scheme.startswith("http"):
                if "?" in path:  # a link that sorts the list; in a file's name it would be %3F
                    continue
                path = unquote(path)
            if info.get("type") == "file" and path and not path.endswith("/"):
                size = info.get("size")
                found[path] = name, -1 if size is None else int(size), _version(info)
        if not found:
            raise SemisupError(f"data.path: there are no files at {self.url}")
        return dict(sorted(found.items()))

    def _patiently(self, what: str, ask: Callable[[], Result]) -> Result:
        """Ask a server until it answers.

        Raises:
            SemisupError: it does not.
        """
        for pause in (*PAUSES, None):
            try:
                return ask()
            except FileNotFoundError:
                raise SemisupError(f"data.path: {self.url} does not exist") from None
            except self._failures as error:
                if pause is None or _is_final(error):
                    raise SemisupError(f"data.path: {self.url} {what} ({_reason(error)}){_tried(error)}") from error
                _say(f"{self.url} {what} ({_reason(error)}); trying again in {pause:.0f} s")
                time.sleep(pause)
        raise AssertionError("unreachable")

    @cached_property
    def _paths(self) -> list[str]:
        return list(self._files)

    def _below(self, start: str) -> Iterator[str]:
        """Yield the paths that begin with some words; they stand next to each other."""
        for path in itertools.islice(self._paths, bisect_left(self._paths, start), None):
            if not path.startswith(start):
                return
            yield path

    def folders(self, below: str = "") -> list[str]:
        """Return the names of the folders in a folder, sorted, but for those of operating systems."""
        start = f"{below}/" if below else ""
        inner = (path[len(start) :] for path in self._below(start))
        return sorted({name for path in inner if (name := path.partition("/")[0]) != path and not is_system(name)})

    def images(self, below: str, others: list[str] | None = None) -> Iterator[FoundFile]:
        """Yield every image at any depth below a folder, as `semisup.data.walk.walk` does, but by its name alone."""
        for path in self._below(f"{below}/" if below else ""):
            _, size, version = self._files[path]
            words = path.split("/")
            if any(map(is_system, words)):
                continue
            if named_as_image(path) and all(words):
                yield FoundFile(path, max(size, 0), version)
            elif others is not None:
                others.append(path)

    def images_right_in(self) -> list[str]:
        """Return the names of the images that lie in no folder below the address, sorted."""
        return [path for path in self._paths if "/" not in path and named_as_image(path) and not is_system(path)]

    def find(self, path: str) -> tuple[int, int] | None:
        """Return size and version of a file; None: it is not there. Of a web server all are, since it is not asked."""
        if self.scheme.startswith("http"):
            return 0, 0
        return (max(self._files[path][1], 0), self._files[path][2]) if path in self._files else None

    # Fetching --------------------------------------------------------------------------------------------------------

    @contextmanager
    def fetching(self, folder: Path) -> Iterator[Fetch]:
        """Give a function that fetches some files.

        What it fetched before is removed: a shard is decoded before the next one is asked for. A file that is gone from
        the server is not in the folder.

        Args:
            folder: where the shard lies; made and removed.

        Raises:
            SemisupError: the server fails, however often it is asked.
        """

        def fetch(files: Sequence[tuple[str, int]]) -> tuple[Path, list[str]]:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            names = [f"{i}{Path(path).suffix[:9]}" for i, (path, _) in enumerate(files)]
            self._fetch({folder / name: file for name, file in zip(names, files, strict=True)})
            return folder, names

        try:
            yield fetch
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _fetch(self, wanted: dict[Path, tuple[str, int]]) -> None:
        """Fetch files, those that fail again and again as long as any arrives."""
        fruitless = 0
        while True:
            failed = self._round(wanted)
            if not failed:
                return
            left = {local: file for local, file in wanted.items() if local in failed}
            fruitless = fruitless + 1 if len(left) == len(wanted) else 0
            wanted, error = left, next(error for error in failed.values() if error is not None)
            files = "file" if len(wanted) == 1 else "files"
            what = f"{self.url}: {len(wanted):,} {files} of a shard did not arrive ({_reason(error)})"
            final = next((error for error in failed.values() if error is not None and _is_final(error)), None)
            if final is not None or fruitless > len(PAUSES):
                raise SemisupError(
                    f"data.path: {what if final is None else f'{self.url}: {_reason(final)}'}{_tried(final or error)}; "
                    f"what is decoded is kept, and the same command goes on"
                ) from error
            pause = PAUSES[max(0, fruitless - 1)]
            _say(f"{what}; trying again in {pause:.0f} s")
            time.sleep(pause)

    def _round(self, wanted: dict[Path, tuple[str, int]]) -> dict[Path, Exception | None]:
        """Try each file once and return what failed and why; None: not tried, because none of the first arrived."""
        failed: dict[Path, Exception | None] = dict.fromkeys(wanted)
        silent = threading.Event()
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as pool:
            futures = {pool.submit(self._one, local, *file, silent): local for local, file in wanted.items()}
            try:
                for future in as_completed(futures):
                    error = future.result()
                    if error is True:
                        del failed[futures[future]]
                    elif isinstance(error, Exception):
                        failed[futures[future]] = error
                    if len(failed) == len(wanted) and sum(e is not None for e in failed.values()) >= AT_ONCE:
                        silent.set()
            finally:
                silent.set()  # of an interrupted round the rest is not waited for
        return failed

    def _one(self, local: Path, path: str, size: int, silent: threading.Event) -> Exception | bool:
        """Fetch a file and return True, or what went wrong; False: there was no point in trying."""
        if silent.is_set():
            return False
        try:
            self._system.get_file(self._at_server(path), str(local))
            if size and local.stat().st_size != size:
                raise OSError(f"{path} has {local.stat().st_size:,} bytes, not the {size:,} that were listed")
        except FileNotFoundError:
            local.unlink(missing_ok=True)  # it will be a bad file
        except self._failures as error:
            with suppress(OSError):
                local.unlink(missing_ok=True)
            return error
        return True

    def _at_server(self, path: str) -> str:
        if self.scheme.startswith("http") and path not in self.__dict__.get("_files", {}):
            return f"{self.url}/{quote(path)}"  # of a table; the server may list nothing
        if path not in self._files:
            raise FileNotFoundError(path)  # of a table, too
        return self._files[path][0]


Root: TypeAlias = Path | Remote
"""A folder of images, here or elsewhere."""


def _version(info: dict[str, Any]) -> int:
    """Return a number that is another one when a file is: of its ETag, else the time of its last change; 0: unknown."""
    tag = info.get("ETag") or info.get("etag") or info.get("md5Hash")
    if tag:
        return int(hashlib.sha256(str(tag).encode()).hexdigest()[:15], 16)
    changed = info.get("LastModified") or info.get("mtime") or info.get("created") or 0
    return round((changed if isinstance(changed, int | float) else changed.timestamp()) * 10**9)


def _is_final(error: Exception) -> bool:
    """Return whether asking again is no use: what is refused stays refused, and what has no room finds none."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    if full or isinstance(error, PermissionError) or type(error).__name__ in _HOPELESS:
        return True
    status = getattr(error, "status", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)


def _tried(error: Exception) -> str:
    return "" if _is_final(error) else f", tried {len(PAUSES) + 1} times"


def _reason(error: Exception) -> str:
    """Return what went wrong in a few words."""
    if isinstance(error, TimeoutError) and not str(error).strip():
        return f"no answer within {SILENCE:.0f} s"
    said = first_line(error)
    if said.endswith(":"):  # what is wrong stands below
        said = str(error)
    return re.sub(r"\s+", " ", said)[:200]


def _say(sentence: str) -> None:
    """Tell a person that there is waiting."""
    LOG.warning("%s", sentence)
    with suppress(OSError):
        sys.stderr.write(f"warning: {sentence}\n")

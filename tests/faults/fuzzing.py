"""Random damage to what is read, and what reading may do: work or refuse in one message, soon and in little memory."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from semisup.errors import SemisupError

SECONDS = 5.0
"""Of processor time, that reading one file may take."""

# What is written, and what reads it ----------------------------------------------------------------------------------

_WATCHED: list[Path] = []
_TOUCHED: list[str] = []
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ON_PATHS = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_NEVER = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "socket.connect",
    "os.fork",
}


def _hook(event: str, args: tuple[Any, ...]) -> None:
    """Note what is written outside of the watched folder, started, or asked of a network."""
    if not _WATCHED:
        return
    if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        writes = args[2] & _WRITES if args[1] is None else bool(set(args[1]) & set("wax+"))
        paths = [args[0]] if writes else []
    elif event in _ON_PATHS:
        paths = [path for path in args[:2] if isinstance(path, str | bytes | os.PathLike)]
    else:
        _TOUCHED.extend([event] if event in _NEVER else [])
        return
    for path in map(os.fsdecode, paths):
        own = path == os.devnull or "__pycache__" in path or "torchinductor_" in path  # what imports leave
        if not own and not Path(path).absolute().is_relative_to(_WATCHED[0]):
            _TOUCHED.append(f"{event} {path}")


_HOOKED = False


class HangError(BaseException):
    """No `Exception`, so that nothing takes it for damage."""


@contextmanager
def watched(folder: Path, mebibytes: int | None = None) -> Iterator[None]:
    """Fail if what is done inside takes over `SECONDS`, touches what is outside of `folder`, or takes too much memory.

    Args:
        folder: it may write here.
        mebibytes: by which the process's memory may grow meanwhile; None: not measured.
    """
    global _HOOKED
    if not _HOOKED:
        sys.addaudithook(_hook)
        _HOOKED = True

    def late(*_: Any) -> None:
        raise HangError

    before = _memory(reset=True) if mebibytes else 0
    old = signal.signal(signal.SIGPROF, late)
    _TOUCHED.clear()
    _WATCHED.append(folder.absolute())
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    except HangError:
        raise AssertionError(f"took over {SECONDS:g} s") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
        _WATCHED.clear()
    assert not _TOUCHED, f"touched {_TOUCHED}"
    if mebibytes:
        grown = (_memory() - before) >> 20
        assert grown <= mebibytes, f"took {grown} MiB, more than {mebibytes}"


def _memory(*, reset: bool = False) -> int:
    """Return the largest memory of this process since the last reset, bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def outcome(call: Callable[..., Any], *given: Any, refusals: type[Exception] = SemisupError) -> str:
    """Return `works` or `refused`; whatever else happens is the test's failure."""
    try:
        call(*given)
    except refusals as error:
        assert str(error).strip() and "\n\n" not in str(error), "refused without a message"
        str(error).encode("utf-8", "backslashreplace")
        return "refused"
    return "works"


def outcomes_of(found: Counter[str], least: float = 0.02) -> None:
    """Fail unless both outcomes came about: mutants that all fall at the first check try nothing behind it."""
    assert min(found["works"], found["refused"]) > least * sum(found.values()), found


def fuzz(cases: int, one: Callable[[st.DataObject], None], of: int = 20261130) -> None:
    """Call `one` so many times, with the same draws each time."""

    @seed(of)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        one(data)

    run()


# Plain containers ----------------------------------------------------------------------------------------------------

NUMBERS = [
    *(0, 1, -1, 2, 3, 7, 255, 256, 65535, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, -(10**30), 10**6),
    *(0.0, -0.0, 0.5, 1.0, 1e-9, 1e-320, 1e30, 1e308, float("inf"), float("-inf"), float("nan"), -0.5, 3.7),
]
TEXTS = [
    *("", " ", "a", "\0", "a\0b", "\ud800", "é" * 300, "x" * 5000, "../../x", "/etc/passwd", "~", "~nosuchuser/x", "."),
    *(
        "${seed}",
        "${data}",
        "${stages}",
        "${a.b}",
        "${..x}",
        "???",
        "${oc.env:HOME}",
        "!!python/object:os.system",
        "nan",
    ),
    *("=1+1", "<b>", "%s", "{x}", "\n", "a\nb", "10%", "4/class", "all", "auto", "1e5", "true", "null", "-1", "\u202e"),
    *("s3://b/x", "http://127.0.0.1:9/x", "file:///etc/passwd", "hf://a/b", "CON", "a" * 256, "\x1b[31m", "🙂"),
]
scalars = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.integers(), st.floats(), st.text()
)
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.sampled_from(TEXTS), scalars), inner, max_size=4)
    ),
    max_leaves=8,
)
"""Anything that YAML can say."""


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where every value of plain containers stands."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*at, key)
        yield from places(value, (*at, key))


def _parent(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        tree = tree[key]
    return tree


def at(tree: Any, place: tuple[Any, ...]) -> Any:
    """Return what stands there."""
    return _parent(tree, place)[place[-1]] if place else tree


def damaged(data: st.DataObject, tree: Any, others: list[Any], values: st.SearchStrategy[Any] = junk) -> Any:
    """Return a copy of plain containers with one to four changes.

    A value becomes another, of the same type or of any; a key is left out, doubled, or misspelled; a part of another
    tree takes the place of one of this.
    """
    tree = json.loads(json.dumps(tree))
    for _ in range(data.draw(st.integers(1, 4))):
        there = list(places(tree))
        if not there:
            return data.draw(values)
        place = data.draw(st.sampled_from(there))
        parent, key = _parent(tree, place), place[-1]
        what = data.draw(st.sampled_from(("value", "alike", "leave", "key", "another", "swap")))
        if what == "value":
            parent[key] = data.draw(values)
        elif what == "alike":
            parent[key] = data.draw(_alike(parent[key]))
        elif what == "leave":
            del parent[key]
        elif what == "key" and isinstance(parent, dict):
            parent[data.draw(st.one_of(st.sampled_from(TEXTS), st.just(f"{key}x"), st.just(str(key)[1:])))] = (
                parent.pop(key)
            )
        elif what == "another" and others:
            other = data.draw(st.sampled_from(others))
            donor = data.draw(st.sampled_from(list(places(other)) or [()]))
            parent[key] = json.loads(json.dumps(at(other, donor)))
        elif what == "swap":
            second = data.draw(st.sampled_from(there))
            parent[key] = json.loads(json.dumps(at(tree, second)))
    return tree


def _alike(value: Any) -> st.SearchStrategy[Any]:
    """Values of one value's type."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int):
        return st.one_of(st.integers(), st.sampled_from([n for n in NUMBERS if isinstance(n, int)]), st.integers(0, 50))
    if isinstance(value, float):
        return st.one_of(st.floats(), st.sampled_from(NUMBERS), st.floats(0, 1))
    if isinstance(value, str):
        return st.one_of(st.sampled_from(TEXTS), st.text())
    return junk


# Bytes ---------------------------------------------------------------------------------------------------------------

_EDGES = (0, 1, 2, 3, 7, 8, 16, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def mutated(content: bytes, draws: random.Random, others: list[bytes] | None = None) -> bytes:
    """Return bytes with one to six changes, as fuzzers make them: flips, edges of numbers, cuts, copies, splices."""
    out = bytearray(content)
    for _ in range(draws.choice((1, 1, 1, 2, 3, 6))):
        if not out:
            return bytes(out)
        # Where a file's structure is, more often than in its pixels.
        i = draws.randrange(min(len(out), 200)) if draws.random() < 0.5 else draws.randrange(len(out))
        length = min(draws.choice((1, 2, 4, 8, 16, 64, 256)), len(out) - i)
        kind = draws.randrange(9)
        if kind == 0:
            out[i] ^= 1 << draws.randrange(8)
        elif kind == 1:
            out[i] = draws.choice(_EDGES) & 255
        elif kind == 2:
            form = draws.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
            size = struct.calcsize(form)
            out[i : i + size] = struct.pack(form, draws.choice(_EDGES) & (256**size - 1))
        elif kind == 3:
            del out[i : i + length]
        elif kind == 4:
            out[i:i] = out[i : i + length]
        elif kind == 5:
            out[i:i] = draws.randbytes(length)
        elif kind == 6:
            out[i : i + length] = draws.randbytes(length)
        elif kind == 7 and draws.random() < 0.3:
            del out[i:]
        elif kind == 8 and others:
            other = draws.choice(others)
            j = draws.randrange(len(other) or 1)
            out[i : i + length] = other[j : j + length]
    return bytes(out)


def with_checksums(content: bytes) -> bytes:
    """Return a PNG file whose chunks have right checksums again, so that a decoder looks at what is in them."""
    out, i = bytearray(content), 8
    while i + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, i)
        if i + 12 + length > len(out):
            break
        struct.pack_into(">I", out, i + 8 + length, zlib.crc32(out[i + 4 : i + 8 + length]))
        i += 12 + length
    return bytes(out)

"""Lines from rank 0 to the other ranks, for words that may be long in coming.

A rank that waits for minutes or hours cannot tell by a message that does not come whether rank 0 still works or a cable
was cut. The kernels of both hosts can: they ask each other whether the connection is there (TCP's keepalive), whatever
the processes do meanwhile. Where one has ended, its kernel closes the line at once.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

__all__ = ["Lines", "open_lines"]

SILENCE, ASKED_EVERY, ASKED = 10, 5, 6
"""Seconds of silence after which a host is asked whether it is there, seconds between questions, and how many of them
without an answer end a line: 40 s after a cable was cut."""
PASSWORD = 16
"""Bytes by which a rank is told from a stranger who calls meanwhile."""
FIRST_WORD = 30.0
"""Seconds that a caller has to say who it is."""
WORD = struct.Struct("!q")
FAILED = -1
"""Comes instead of any other word from an end that cannot go on, and then why."""


class Lines:
    """What this rank has of them: rank 0 one line to every other rank, the others one to rank 0.

    Attributes:
        why: another end cannot go on, in its own words; None while none has said so.
    """

    why: str | None = None

    def __init__(self, ends: Sequence[socket.socket]) -> None:
        self.ends = ends
        for end in ends:
            _watch(end)

    def tell(self, word: int) -> None:
        """Send a number to whoever hears at the other ends.

        Raises:
            OSError: one of them has ended.
        """
        for end in self.ends:
            end.sendall(WORD.pack(word))

    def hear(self) -> int:
        """Wait for a number from every other end, however long that takes; return the largest. Signals are obeyed.

        Raises:
            OSError: one of them has ended, cannot be reached any more, or cannot go on (`why`).
        """
        return max([self._word(end) for end in self.ends])

    def fail(self, why: str) -> None:
        """Tell whoever still hears at the other ends that this one cannot go on."""
        text = why.encode()
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.sendall(WORD.pack(FAILED) + WORD.pack(len(text)) + text)

    def listen(self, seconds: float) -> str | None:
        """Return why another end cannot go on, which it may say within so long; None: none says so."""
        until = time.monotonic() + seconds
        for end in self.ends:
            with contextlib.suppress(OSError):
                while self.why is None:
                    end.settimeout(max(until - time.monotonic(), 0.01))
                    self._word(end)
        return self.why

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until all other ends have hung up, whatever they say before, and return whether they have.

        Args:
            seconds: at most, for each; None: as long as it takes. Signals are obeyed.
        """
        for end in self.ends:
            end.settimeout(seconds)
            try:
                while end.recv(WORD.size):
                    pass
            except TimeoutError:
                return False
            except OSError:  # it has ended without hanging up
                continue
        return True

    def _word(self, end: socket.socket) -> int:
        word = int(*WORD.unpack(_exactly(end, WORD.size)))
        if word == FAILED:
            self.why = _exactly(end, *WORD.unpack(_exactly(end, WORD.size))).decode()
            raise ConnectionError("it cannot go on")
        return word

    def close(self) -> None:
        """Hang up."""
        for end in self.ends:
            end.close()


def open_lines(rank: int, size: int, wait: timedelta, shared: Callable[[Callable[[], bytes]], bytes]) -> Lines:
    """Connect the ranks of a group; all of them call this.

    Args:
        rank: of this process.
        size: how many there are.
        wait: for the others, at most.
        shared: returns rank 0's bytes on every rank.

    Raises:
        OSError: they cannot be connected in that time.
    """
    seconds = wait.total_seconds()
    if rank == 0:
        both = socket.has_dualstack_ipv6()
        with socket.create_server(
            ("", 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=size
        ) as server:
            server.settimeout(seconds)
            password = secrets.token_bytes(PASSWORD)
            shared(lambda: password + WORD.pack(server.getsockname()[1]))
            return Lines(_answered(server, size - 1, password))
    said = shared(lambda: b"")
    address = os.environ["MASTER_ADDR"], WORD.unpack(said[PASSWORD:])[0]
    line = socket.create_connection(address, timeout=seconds)
    line.sendall(said[:PASSWORD])
    return Lines([line])


def _answered(server: socket.socket, count: int, password: bytes) -> list[socket.socket]:
    """Return the lines of so many callers who know the password."""
    ends = list[socket.socket]()
    while len(ends) < count:
        line, _ = server.accept()
        line.settimeout(FIRST_WORD)
        try:
            known = hmac.compare_digest(_exactly(line, PASSWORD), password)
        except OSError:
            known = False
        if known:
            ends.append(line)
        else:
            line.close()
    return ends


def _exactly(end: socket.socket, size: int) -> bytes:
    """Return the next so many bytes.

    Raises:
        OSError: there are no more.
    """
    found = b""
    while len(found) < size:
        more = end.recv(size - len(found))
        if not more:
            raise ConnectionError("it has hung up")
        found += more
    return found


def _watch(end: socket.socket) -> None:
    """Have the kernel find out whether the other host is there, in silence and while something is on its way."""
    end.settimeout(None)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    limits = {
        "TCP_KEEPIDLE": SILENCE,
        "TCP_KEEPALIVE": SILENCE,  # macOS' name of it
        "TCP_KEEPINTVL": ASKED_EVERY,
        "TCP_KEEPCNT": ASKED,
        "TCP_USER_TIMEOUT": 1000 * (SILENCE + ASKED_EVERY * ASKED),
    }
    for name, value in limits.items():
        if hasattr(socket, name):
            end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

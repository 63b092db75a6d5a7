"""Lines between ranks: words of any time, an end that is noticed, strangers who are sent away."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from queue import Queue

import pytest

from semisup.engine.lines import Lines, open_lines

WAIT = timedelta(seconds=20)
LIMITS = [
    name for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT") if hasattr(socket, name)
]


def connected(call_first: Callable[[int], None] = lambda port: None) -> tuple[Lines, list[Lines]]:
    """Rank 0's lines and those of two others; `call_first` is called with the port before they are."""
    said: Queue[bytes] = Queue()

    def shared(content: Callable[[], bytes]) -> bytes:
        found = content()
        call_first(int.from_bytes(found[-8:], "big"))
        said.put(found)
        said.put(found)
        return found

    opened: Queue[Lines] = Queue()
    threading.Thread(target=lambda: opened.put(open_lines(0, 3, WAIT, shared)), daemon=True).start()
    others = [open_lines(rank, 3, WAIT, lambda content: said.get(timeout=20)) for rank in (1, 2)]
    return opened.get(timeout=20), others


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "localhost")


@pytest.fixture
def lines() -> Iterator[tuple[Lines, list[Lines]]]:
    first, others = connected()
    yield first, others
    for each in (first, *others):
        each.close()


def test_a_word_of_rank_0_is_heard_by_all(lines: tuple[Lines, list[Lines]]) -> None:
    first, others = lines
    first.tell(-3)
    first.tell(2**40)
    assert [[other.hear(), other.hear()] for other in others] == [[-3, 2**40]] * 2


def test_rank_0_hears_all_before_it_goes_on(lines: tuple[Lines, list[Lines]]) -> None:
    first, others = lines
    others[1].tell(1)
    heard = threading.Event()
    listener = threading.Thread(target=lambda: (first.hear(), heard.set()), daemon=True)
    listener.start()
    assert not heard.wait(0.2)
    others[0].tell(1)
    assert heard.wait(20)


@pytest.mark.parametrize("who", [0, 1])
def test_who_has_ended_is_noticed(lines: tuple[Lines, list[Lines]], who: int) -> None:
    first, others = lines
    (first, *others)[who].close()
    with pytest.raises(ConnectionError):
        (others[0] if who == 0 else first).hear()


def test_a_host_that_is_silent_is_asked_for_within_a_minute(lines: tuple[Lines, list[Lines]]) -> None:
    """What a cut cable does to this is in tests/faults/test_rank_hosts.py, which needs network namespaces."""
    first, others = lines
    for end in (*first.ends, *(end for other in others for end in other.ends)):
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert end.gettimeout() is None, "a word may take any time"
        found = {name: end.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in LIMITS}
        if len(LIMITS) == 4:
            assert found["TCP_KEEPIDLE"] + found["TCP_KEEPINTVL"] * found["TCP_KEEPCNT"] < 60
            assert found["TCP_USER_TIMEOUT"] < 60_000


def test_a_stranger_who_calls_first_is_sent_away() -> None:
    strangers: list[socket.socket] = []

    def call(port: int) -> None:
        for words in (b"GET / HTTP/1.1\r\n\r\n", b""):
            strangers.append(socket.create_connection(("localhost", port)))
            strangers[-1].sendall(words)
        strangers[-1].close()

    first, others = connected(call)
    first.tell(5)
    assert [other.hear() for other in others] == [5, 5]
    for each in (first, *others):
        each.close()
    strangers[0].close()

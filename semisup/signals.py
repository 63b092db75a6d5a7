"""How a process is told to end: Ctrl-C, SIGTERM and SIGHUP, which SLURM and Kubernetes send before they kill.

All three are one `KeyboardInterrupt`, and `last` says which it was. Where something must be finished first, such as a
training step with its checkpoint, `deferred` gives an event to look at instead, for as long as the grace lasts.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

__all__ = [
    "GRACE",
    "SIGNALS",
    "ask_to_stop",
    "asked_to_stop",
    "catching",
    "deferred",
    "end_with",
    "grace",
    "last",
    "told",
]

GRACE = 20.0
"""Seconds from a signal to the end of waiting; SLURM and Kubernetes kill 30 s after it."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class _Process:
    """What this process has been told; signals belong to the process, not to an object."""

    grace = GRACE
    last: int = signal.SIGINT
    told = False
    asked = threading.Event()


def last() -> int:
    """Return the number of the signal that ended what was at work, SIGINT if there was none."""
    return _Process.last


def told() -> bool:
    """Return whether a signal has arrived in `catching`: libraries that are being imported may swallow its error."""
    return _Process.told


def grace() -> float:
    """Return the seconds that this process may take to end."""
    return _Process.grace


def ask_to_stop() -> None:
    """Let whatever trains in a thread of this process, where no signal arrives, end after its step."""
    _Process.asked.set()


def asked_to_stop() -> bool:
    """Return whether `ask_to_stop` has been called in this process."""
    return _Process.asked.is_set()


@contextlib.contextmanager
def catching(seconds: float = GRACE) -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does; those that the parent ignores stay ignored.

    Args:
        seconds: that `deferred` may wait.
    """
    _Process.grace, _Process.last, _Process.told = seconds, signal.SIGINT, False
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        _Process.last, _Process.told = number, True
        raise KeyboardInterrupt

    wanted = [number for number in SIGNALS if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)]
    try:
        with _handling(wanted, on_signal):
            yield
    finally:
        _Process.told = False


@contextlib.contextmanager
def deferred() -> Iterator[threading.Event]:
    """Turn signals into a flag that a loop reads between steps, so that a checkpoint is never of half a step.

    The second signal, or the end of the grace, raises KeyboardInterrupt at once. In another thread than the main one
    the flag is that of `ask_to_stop`. A signal that came before, and whose error was swallowed, raises it at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield _Process.asked
        return
    if told():
        raise KeyboardInterrupt
    pressed = threading.Event()
    timers: list[threading.Timer] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        _Process.last = number
        pressed.set()
        timers.append(threading.Timer(_Process.grace, _again, (number,)))
        timers[0].daemon = True
        timers[0].start()

    try:
        with _handling([number for number in SIGNALS if callable(signal.getsignal(number))], on_signal):
            yield pressed
    finally:
        for timer in timers:
            timer.cancel()


def _again(number: int) -> None:
    """Send the main thread a signal once more, which ends a call that it waits in, too."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)
    else:
        _thread.interrupt_main(signal.Signals(number))


@contextlib.contextmanager
def _handling(numbers: list[int], handler: object) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in numbers}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


def end_with(process: int) -> None:
    """Let this process end within about a second of another one, which, killed, cannot tell it to.

    Args:
        process: its number.
    """
    import psutil

    def watch() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            other = psutil.Process(process)
            while other.is_running() and other.status() != psutil.STATUS_ZOMBIE:
                time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

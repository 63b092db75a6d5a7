"""What keeps the workers of a command from being ended before it: SLURM and a terminal signal a whole group."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

from distributed import WorkerPlugin

from semisup.bench.execution.worker import at_work
from semisup.signals import SIGNALS, ask_to_stop

__all__ = ["Undisturbed", "finish_step"]


class Undisturbed(WorkerPlugin):
    """Lets a worker leave signals to the command, which ends it."""

    name = "semisup-undisturbed"

    def setup(self, worker: Any) -> None:
        """Run in the worker's main thread, in later ones too."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


async def finish_step(seconds: float) -> None:
    """Let what a worker trains write a checkpoint after its step, and wait for that; runs in the worker.

    Args:
        seconds: longest wait.
    """
    ask_to_stop()
    end = time.monotonic() + seconds
    while at_work() and time.monotonic() < end:
        await asyncio.sleep(0.05)

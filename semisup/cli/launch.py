"""One command as several processes on this machine, by torchrun's launcher."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from typing import Any

import typer

from semisup.cli.stop import LAUNCHED, say
from semisup.errors import SaidElsewhereError, SemisupError
from semisup.signals import GRACE, SIGNALS, told

__all__ = ["PROCESSES_HELP", "launch", "one_of_several", "refuse_ranks"]

PROCESSES_HELP = "Share the run between so many processes on this machine, one per GPU or part of the cores."


def one_of_several() -> bool:
    """Return whether torchrun has started this process next to others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ


def refuse_ranks(name: str | None) -> None:
    """Raise SemisupError where several processes that torchrun has started would each do the same; one says so."""
    if not one_of_several() or name == "run":
        return
    if os.environ.get("RANK") != "0":
        raise SaidElsewhereError("rank 0 says what is wrong")
    raise SemisupError(
        f"{name}: is for one process, start it without torchrun, which shares `semisup run` alone; a suite has its "
        f"gpus_per_run"
    )


def launch(processes: int, grace: float = GRACE) -> None:
    """Run this process's own command line as so many ranks, and end as the first of them ends that fails.

    Args:
        processes: how many.
        grace: seconds that each may take from a signal to its checkpoint.

    Raises:
        SemisupError: there is no room for so many here, or the environment says no time that they could wait.
        KeyboardInterrupt: a signal came before they were started.
        typer.Exit: otherwise always.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from semisup.engine.ranks import crowd, longest_wait, with_grace

    if why := crowd(processes):
        raise SemisupError(f"--processes: {why}")
    longest_wait()  # here, what is wrong with it is told once
    # Its reports of failed and stopped processes come after what the process itself has said; this one waits for them.
    logging.disable(logging.ERROR)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.update(with_grace(grace) | os.environ)
    config: Any = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        max_restarts=0,
    )
    os.environ[LAUNCHED] = "1"
    again = f"go on with: semisup {shlex.join(sys.argv[1:])}"
    if told():  # while libraries were imported, which may swallow its error
        raise KeyboardInterrupt
    try:
        elastic_launch(config, sys.executable)("-m", "semisup", *sys.argv[1:])
    except SignalException as signaled:
        say(f"stopped; {again}")
        raise typer.Exit(128 + int(signaled.sigval)) from None
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        if first.exitcode - 128 in SIGNALS:  # a rank alone was told to stop, and the others with it
            say(f"stopped; {again}")
        if first.exitcode >= 0:
            raise typer.Exit(first.exitcode) from None
        name = signal.Signals(-first.exitcode).name
        say(f"error: rank {rank} was ended by {name}; {again}")
        raise typer.Exit(128 - first.exitcode) from None
    raise typer.Exit

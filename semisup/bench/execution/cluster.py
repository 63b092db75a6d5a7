"""Where a suite's jobs run: a Dask cluster of this machine, or one that is already there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from semisup.errors import SemisupError, first_line

__all__ = ["cluster", "default_workers", "worker_count"]

CONNECT_SECONDS, OWN_SECONDS = 10, 120
"""How long a scheduler elsewhere may take to answer, and workers of this machine, which may be a busy one, to start."""
MALLOC = {"MALLOC_TRIM_THRESHOLD_": 1 << 30, "MALLOC_MMAP_THRESHOLD_": 1 << 30, "MALLOC_ARENA_MAX": 1}
"""Let glibc keep a step's memory for the next one. Dask's own setting (trim at 64 kB) gives it back to the system at
every step: FixMatch on WRN-10-1 in a worker's thread took 0.61 s a step with it, 0.35 s with glibc's defaults, 0.27 s
with this (CPU seconds in the kernel: 1.71, 0.35, 0.12), all measured in one sitting on one core."""

REMEMBERED = {
    "distributed.diagnostics.computations.max-history": 1,
    "distributed.admin.low-level-log-length": 10,
    "distributed.admin.system-monitor.log-length": 600,
}
"""Of what is over, for Dask's dashboard: by default it keeps the settings of the last hundred runs, a thousand lines of
its log and as many messages to each worker, with a run's settings in each, and an hour of the machine's load at two
looks a second, 5 MB."""


def default_workers(threads: int, processes: int = 1) -> int:
    """Workers of this machine: its GPUs over those of a run where there are any, else its cores over those of a run.

    Args:
        threads: of each process of a run.
        processes: of a run, with a GPU each.
    """
    from dask.system import CPU_COUNT  # this process's share of them, in a container too

    gpus = torch.cuda.device_count()
    return max(1, gpus // processes if gpus else CPU_COUNT // (threads * processes))


@contextmanager
def cluster(scheduler: str | None, workers: int, retries: int) -> Iterator[Any]:
    """Yield a `distributed.Client`, of this machine's own workers or of a scheduler elsewhere; closed on leaving.

    A worker has one run at a time, however many threads it has: start others with `dask worker --nthreads 1`. A local
    worker that dies is started again by its nanny, and its job is tried again. Local workers share this machine's GPUs
    out among them; workers elsewhere take the first GPU that CUDA_VISIBLE_DEVICES shows them. The dashboard is at
    `client.dashboard_link`.

    Args:
        scheduler: address such as `tcp://host:8786`; None: workers of this machine.
        workers: how many, on this machine.
        retries: how often a job is tried again after a worker of this machine died with it.

    Raises:
        SemisupError: nobody answers at that address, or it has no workers; or those of this machine do not start.
    """
    import dask

    # A run may compute for minutes without giving up the interpreter; that is no sign of death.
    settings = {
        "distributed.scheduler.worker-ttl": None,
        "distributed.scheduler.allowed-failures": retries,
        "distributed.comm.timeouts.connect": OWN_SECONDS if scheduler is None else CONNECT_SECONDS,
    }
    settings |= REMEMBERED
    settings |= {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in MALLOC.items()}
    workplace = _own_workers(workers) if scheduler is None else _workers_of(scheduler)
    with dask.config.set(settings), workplace as client:
        yield client


@contextmanager
def _own_workers(workers: int) -> Iterator[Any]:
    from distributed import Client

    from semisup.bench.execution.undisturbed import Undisturbed

    with (
        _environment_restored(),
        _local_cluster(workers) as local,
        Client(local, timeout=OWN_SECONDS) as client,  # type: ignore[no-untyped-call]
    ):
        client.register_plugin(Undisturbed())
        yield client


def _local_cluster(workers: int) -> Any:
    from distributed import LocalCluster
    from distributed.security import Security

    try:
        return LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,  # the plan has compared a step's memory with the machine's
            # Whoever reaches a worker can run code in it, and other users of this machine reach its loopback addresses:
            # only who has this command's certificate, made now and kept in memory, is listened to.
            security=Security.temporary(),  # type: ignore[no-untyped-call]
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        )
    except RuntimeError as error:  # what Dask makes of a time that was not enough
        raise SemisupError(
            f"the workers of this machine have not started within {OWN_SECONDS} s ({first_line(error)}); the same "
            f"command tries again, with fewer of them by --workers"
        ) from error


@contextmanager
def _workers_of(scheduler: str) -> Iterator[Any]:
    from distributed import Client

    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise SemisupError(f"--scheduler {scheduler}: nobody answers there ({first_line(error)})") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError as error:
            raise SemisupError(f"--scheduler {scheduler}: has no workers; start some with: dask worker") from error
        yield client


@contextmanager
def _environment_restored() -> Iterator[None]:
    """Without the variables that a nanny sets in its own process for its workers to inherit, and leaves there."""
    before = set(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - before:
            del os.environ[name]


def worker_count(client: Any) -> int:
    """Workers that the client's scheduler has now, at least 1."""
    return max(1, len(client.scheduler_info(n_workers=-1)["workers"]))

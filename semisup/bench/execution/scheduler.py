"""Runs the jobs of a suite on a Dask cluster, each as soon as what it reads is there.

The scheduler, the retries of a lost worker and the dashboard are Dask's. What is here is the order of things: a job is
submitted when its inputs are finished, and its answer is on disk before anything else happens, so that killing this
process loses only the jobs in flight.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semisup.bench.execution.jobs import Job
from semisup.bench.execution.worker import Failed, Pack, open_pack, run_job
from semisup.errors import SemisupError
from semisup.plugins import registered
from semisup.stages import Artifact, read_artifact

__all__ = ["JobBoard", "run_jobs"]

REFRESH_SECONDS = 1.0


@dataclass
class JobBoard:
    """What became of every job so far."""

    store: Path
    """Folder of finished stages by fingerprint."""
    ships: bool
    """Whether workers have folders of their own, so that files travel."""
    finished: dict[str, Artifact] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Fingerprint -> why; also of jobs whose input failed."""
    lost: set[str] = field(default_factory=set)
    """Those of `failed` that are not the recipe's own fault: another attempt may succeed."""

    def find(self, job: Job) -> bool:
        """Whether a job is finished, in this command or in an earlier one."""
        if job.fingerprint not in self.finished:
            artifact = read_artifact(self.store / job.fingerprint)
            if artifact is not None:
                self.finished[job.fingerprint] = artifact
        return job.fingerprint in self.finished

    def pack(self, fingerprint: str) -> Pack:
        """Return a finished job, ready to travel."""
        artifact = self.finished[fingerprint]
        if not self.ships:
            return Pack(artifact.record)
        return Pack(artifact.record, {name: (artifact.folder / name).read_bytes() for name in artifact.record["files"]})


def run_jobs(
    client: Any,
    board: JobBoard,
    runs: Sequence[Sequence[Job]],
    retries: int,
    at_once: Callable[[], int],
    on_tick: Callable[[int], None],
    on_run: Callable[[int], Sequence[Sequence[Job]]],
) -> None:
    """Run every job of `runs` once, and whatever runs follow from them.

    Args:
        client: a `distributed.Client`.
        board: what is finished; filled.
        runs: the jobs of each run in the order they depend on each other. Earlier runs go first.
        retries: attempts after one that raised; a job that answers with `Failed` is not tried again.
        at_once: how many jobs may be in flight, asked anew each time: more would only hold their inputs in memory.
        on_tick: called about once a second with the number of jobs in flight.
        on_run: called with a run's number once its last job is finished or has failed; returns further runs.

    Raises:
        SemisupError: the scheduler is gone.
    """
    waiting: list[Sequence[Job]] = []
    open_runs: dict[int, Sequence[Job]] = {}
    ready: dict[str, tuple[int, Job]] = {}  # fingerprint -> run that asked for it, job
    flying: dict[str, Any] = {}  # fingerprint -> future
    landed: queue.Queue[tuple[str, Any]] = queue.Queue()

    def submit() -> None:
        """Send off what is ready, earlier runs first, as far as there is room."""
        for fingerprint, (_, job) in sorted(ready.items(), key=lambda item: item[1][0]):
            if len(flying) >= at_once():
                return
            del ready[fingerprint]
            future = _send(client, board, job, retries)
            flying[fingerprint] = future
            future.add_done_callback(lambda done, fingerprint=fingerprint: landed.put((fingerprint, done)))

    def advance(number: int) -> bool:
        """Make ready what a run can do next; returns whether it is over."""
        jobs = open_runs[number]
        for job in jobs:
            broken = [f for _, f in job.inputs if f in board.failed]
            if broken and job.fingerprint not in board.failed and not board.find(job):
                board.failed[job.fingerprint] = board.failed[broken[0]]
                board.lost |= {job.fingerprint} if broken[0] in board.lost else set()
        last = jobs[-1].fingerprint
        if board.find(jobs[-1]) or last in board.failed:
            return True
        for job in _needed(board, jobs):
            if job.fingerprint not in flying and all(f in board.finished for _, f in job.inputs):
                ready.setdefault(job.fingerprint, (number, job))
        return False

    def start(more: Sequence[Sequence[Job]]) -> None:
        for jobs in more:
            open_runs[len(waiting)] = jobs
            waiting.append(jobs)
        settle(list(open_runs)[-len(more) :] if more else [])

    def settle(numbers: Sequence[int]) -> None:
        for number in numbers:
            if number in open_runs and advance(number):
                del open_runs[number]
                start(on_run(number))

    start(runs)
    ticked = 0.0
    while open_runs:
        submit()
        try:
            fingerprint, future = landed.get(timeout=REFRESH_SECONDS)
        except queue.Empty:
            on_tick(len(flying))
            continue
        _land(board, fingerprint, future)
        del flying[fingerprint]
        settle([number for number, jobs in open_runs.items() if any(j.fingerprint == fingerprint for j in jobs)])
        if time.monotonic() - ticked > REFRESH_SECONDS:
            ticked = time.monotonic()
            on_tick(len(flying))


def _send(client: Any, board: JobBoard, job: Job, retries: int) -> Any:
    """Submit a job with what it reads; return its future."""
    store = None if board.ships else str(board.store.resolve())
    packs = {name: board.pack(read) for name, read in job.inputs}
    key = f"{job.name}-{job.fingerprint}"  # the dashboard shows it; Dask keeps a counter of each name before the dash
    return client.submit(run_job, job, packs, store, registered(), retries=retries, key=key, pure=False)


def _needed(board: JobBoard, jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs of a run that must still be run for its last one: what a finished job has read is not needed."""
    by_fingerprint = {job.fingerprint: job for job in jobs}
    needed: list[Job] = []
    wanted = [jobs[-1].fingerprint]
    while wanted:
        job = by_fingerprint[wanted.pop()]
        if not board.find(job) and job not in needed and job.fingerprint not in board.failed:
            needed.append(job)
            wanted += [fingerprint for _, fingerprint in job.inputs]
    return needed


def _land(board: JobBoard, fingerprint: str, future: Any) -> None:
    """Take a job's answer; on disk first where it has traveled."""
    if future.status in ("cancelled", "lost"):  # nobody but a lost connection does that
        raise SemisupError("the connection to the Dask scheduler was lost; the same command goes on")
    if future.status == "error":
        error = future.exception()
        board.failed[fingerprint] = f"{type(error).__name__}: {error}"
        board.lost.add(fingerprint)
        return
    answer = future.result()
    if isinstance(answer, Failed):
        board.failed[fingerprint] = answer.error
        return
    try:
        board.finished[fingerprint] = open_pack(answer, board.store / fingerprint)
    except SemisupError as error:  # a damaged file concerns this run, not the others
        board.failed[fingerprint] = str(error)
        board.lost.add(fingerprint)

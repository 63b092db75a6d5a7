"""Run a suite: expand it, time its steps, run what is missing, evaluate."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from semisup.bench.execution.cluster import cluster, default_workers, worker_count
from semisup.bench.execution.jobs import Job, Planned, longest_steps, make_jobs, plan_run, unique_jobs
from semisup.bench.execution.progress import BenchConsole
from semisup.bench.execution.record import record_run, recorded
from semisup.bench.execution.scheduler import JobBoard, run_jobs
from semisup.bench.execution.steptimes import STEP_TIMES, Call, step_times
from semisup.bench.execution.together import gpu_problems
from semisup.bench.execution.worker import machine
from semisup.bench.results.facts import FACTS, read_facts
from semisup.bench.results.rows import read_rows
from semisup.bench.results.write import RESULTS, write_results
from semisup.bench.suites.folds import Folds, load_folds
from semisup.bench.suites.runs import RunSpec, check_entries, expand, trial_options
from semisup.bench.suites.suite import Suite, load_suite
from semisup.engine import ranks
from semisup.errors import SemisupError, raise_all
from semisup.files import parent_of
from semisup.pipeline.execute import STORE, locked, out_problems
from semisup.signals import grace
from semisup.tracking import CURSOR_FILE, EVENTS_FILE, EventLog

__all__ = ["bench"]

WRITE_SECONDS = 30.0
"""Least time between two writings of the tables while the suite runs."""
ENDING_SECONDS = 5.0
"""Of the grace after a signal, kept for the tables and the end of the workers."""


@dataclasses.dataclass
class _Bench:
    """One command's suite, and its runs so far."""

    suite: Suite
    folds: Folds
    folder: Path
    board: JobBoard
    console: BenchConsole
    timing: dict[str, float] = dataclasses.field(default_factory=dict)
    longest: dict[str, int] = dataclasses.field(default_factory=dict)
    """Budget -> steps of the longest entry there, where runs of equal steps are asked for."""
    runs: list[tuple[RunSpec, list[Job]]] = dataclasses.field(default_factory=list)
    """Trials of the search among them."""

    def add(self, planned: Planned) -> list[Job]:
        """One more run."""
        jobs = make_jobs(self.suite, planned, self.timing, self.longest)
        self.runs.append((planned.spec, jobs))
        return jobs


def bench(
    suite: str | Path | Suite,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    dry_run: bool = False,
    scheduler: str | None = None,
    workers: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run every run of a suite that is not finished yet, and write its tables.

    Args:
        suite: a YAML file, the name of a shipped suite such as "digits/budgets", or a loaded suite.
        overrides: `key=value` words, e.g. "draws=1"; they win over the file. Not for a loaded suite.
        out: folder of the results, default `runs/<suite name>`. Finished stages are kept next to it, in
            `<parent of out>/.semisup`, and serve every suite and recipe below that parent.
        dry_run: check everything, measure step times, print the runs and the expected time, run nothing.
        scheduler: address of a Dask scheduler; None: workers on this machine. Workers elsewhere keep stages in
            folders of their own, and send the files.
        workers: on this machine; default: GPUs / gpus_per_run, else cores / (threads x gpus_per_run).
        quiet: print nothing but warnings.

    Returns:
        The summary that `leaderboard.json` has; of a dry run the numbers of "runs", "stages" and "stages_left", and
        the expected "seconds".

    Raises:
        SemisupError: whatever is wrong with the suite, before anything runs; or the scheduler was lost.
        KeyboardInterrupt: Ctrl-C; the tables of what is finished are written, the same command goes on.
    """
    if isinstance(suite, Suite) and overrides:
        raise SemisupError("overrides: they are for a suite's file or name; a loaded suite is changed in Python")
    loaded = suite if isinstance(suite, Suite) else load_suite(suite, list(overrides))
    console = BenchConsole(quiet=quiet)
    folder = Path(out) if out is not None else Path("runs") / loaded.name
    raise_all(out_problems(folder, (*RESULTS, STEP_TIMES, EVENTS_FILE, CURSOR_FILE), (), loaded.data), "out")
    loaded, folds = load_folds(loaded)
    check_entries(loaded, folds.first, _crowds(loaded, workers) if scheduler is None else ())
    state = _Bench(loaded, folds, folder, JobBoard(parent_of(folder) / STORE, ships=scheduler is not None), console)
    own = default_workers(loaded.threads, loaded.gpus_per_run) if workers is None else workers
    if dry_run and scheduler is None:
        return _prepare(state, own, lambda function, *arguments: function(*arguments), expected=True)
    waiting = f"{folder}: another process is running this suite; waiting for it"
    with contextlib.ExitStack() as stack:
        if not dry_run:
            stack.enter_context(locked(folder, lambda: console.say(waiting)))
        client = stack.enter_context(cluster(scheduler, own, loaded.retries))
        console.say(f"dashboard: {client.dashboard_link}")

        def on_a_worker(function: Call, *arguments: Any) -> Any:
            return client.submit(function, *arguments, pure=False).result()

        shown = _prepare(state, worker_count(client), on_a_worker, expected=dry_run)
        if dry_run:
            return shown
        name = loaded.name if isinstance(suite, Suite) else str(suite)
        command = shlex.join(["semisup", "bench", name, *overrides])
        _tell_replaced(state, command)
        machines = sorted(client.run(machine).values())

        def write() -> dict[str, Any]:
            return write_results(folder, loaded, folds, state.runs, state.board, command, machines)

        with recorded(loaded, folder, folds.first.hash, console) as log:
            try:
                _run(state, client, log, _Tables(write))
            except KeyboardInterrupt:
                if scheduler is None:  # workers elsewhere may work for others too
                    _let_finish(client)
                raise
            finally:
                summary = write()
                for file in RESULTS:
                    log.artifact(None, folder / file, "")
    console.show_summary(summary, folder)
    return summary


def _crowds(suite: Suite, workers: int | None) -> Iterator[str]:
    """Yield what is wrong with so many own workers, of which each has the processes of a run."""
    yield from gpu_problems(suite.gpus_per_run)
    if workers is not None and (why := ranks.crowd(workers, share_gpus=True)):
        yield f"--workers: {why}"


def _prepare(state: _Bench, workers: int, call: Call, *, expected: bool) -> dict[str, Any]:
    """Plan the first wave of runs, all of them or the trials of a search, time their steps if need be, and print them.

    `expected`: as for `step_times`.
    """
    planned = [plan_run(state.suite, spec, state.folds.of(spec.draw)) for spec in _first_wave(state.suite)]
    if any(compute.unit == "equal" for compute in state.suite.computes):
        state.longest = longest_steps(state.suite, state.folds.first)
    state.timing = step_times(
        state.suite, state.folder, planned, state.board, state.console, call, state.longest, expected=expected
    )
    for run in planned:
        state.add(run)
    state.console.show_suite(state.suite, state.runs, state.board, workers)
    jobs = list(unique_jobs([jobs for _, jobs in state.runs]))
    left = [job for job in jobs if not state.board.find(job)]
    seconds = sum(job.seconds for job in left) / workers
    return {"runs": len(state.runs), "stages": len(jobs), "stages_left": len(left), "seconds": seconds}


def _tell_replaced(state: _Bench, command: str) -> None:
    """Say so where a folder has the tables of another command, or of the same one before its suite was changed."""
    folder, console = state.folder, state.console
    if not (folder / FACTS).exists():
        return
    try:
        made_by = read_facts(folder).command
    except SemisupError:
        made_by = "an unknown command"
    if made_by != command:
        console.warn(f"{folder}: the tables of `{made_by}` are replaced; its runs are kept, and it writes them again")
        return
    try:
        rows = read_rows(folder / "runs.csv")
    except SemisupError:
        return
    known = {jobs[-1].fingerprint for _, jobs in state.runs}
    gone = [row.entry for row in rows if row.status == "done" and row.fingerprint not in known]
    if gone and state.suite.search is None:  # whose runs are not known before its trials are over
        console.warn(
            f"{folder}: the suite was changed since its tables were written; runs that are no longer in it leave them, "
            f"and are kept: {', '.join(f'{gone.count(entry)} of {entry}' for entry in dict.fromkeys(gone))}"
        )


def _let_finish(client: Any) -> None:
    """Give this command's own workers time to end their steps and write checkpoints."""
    from semisup.bench.execution.undisturbed import finish_step

    client.run(finish_step, max(0.0, grace() - ENDING_SECONDS), on_error="ignore")


def _first_wave(suite: Suite) -> Iterator[RunSpec]:
    for spec in expand(suite):
        if suite.search is None:
            yield spec
        else:
            for options in trial_options(suite, spec.entry):
                yield dataclasses.replace(spec, options=options, validation=suite.search.validation)


class _Tables:
    """The files of a suite's results, written anew at most half a minute after a run is over.

    Args:
        write: writes them.
    """

    def __init__(self, write: Callable[[], Any]) -> None:
        self.write = write
        self.stale = False
        self.written = -math.inf

    def tick(self) -> None:
        """Write what is new, unless it was written a moment ago; called about once a second."""
        if self.stale and time.monotonic() - self.written >= WRITE_SECONDS:
            self.write()
            self.stale, self.written = False, time.monotonic()


def _run(state: _Bench, client: Any, log: EventLog, tables: _Tables) -> None:
    """Run what is missing; the last trial of a search starts the final run."""
    board = state.board
    with state.console.progress(board, worker_count(client)) as shown:

        def on_run(number: int) -> list[list[Job]]:
            spec, jobs = state.runs[number]
            last = jobs[-1].fingerprint
            record_run(log, spec, jobs, board.finished.get(last), board.failed.get(last, ""))
            follow = _chosen(state, spec)
            more = [] if follow is None else [state.add(plan_run(state.suite, follow, state.folds.of(follow.draw)))]
            tables.stale = True
            shown.update(state.runs)
            return more

        def on_tick(flying: int) -> None:
            shown.tick(flying)
            tables.tick()

        shown.update(state.runs)
        runs = [jobs for _, jobs in state.runs]
        run_jobs(client, board, runs, state.suite.retries, lambda: 2 * worker_count(client), on_tick, on_run)


def _chosen(state: _Bench, spec: RunSpec) -> RunSpec | None:
    """Return the final run that a trial leads to, once it is the last of its search to be over: the best on validation.

    A trial that was lost, not evaluated, leaves its search undecided: the same command goes on with it.
    """
    if not spec.validation:
        return None
    board, plain = state.board, _plain(spec)
    if any(not other.validation and _plain(other) == plain for other, _ in state.runs):
        return None  # chosen before
    trials = [(other, jobs[-1].fingerprint) for other, jobs in state.runs if _plain(other) == plain]
    if any(fingerprint not in board.finished and fingerprint not in board.failed for _, fingerprint in trials):
        return None
    if any(fingerprint in board.lost for _, fingerprint in trials):
        return None
    # The first of equals; trials that failed count as wrong about everything.
    scores = [
        float(board.finished[fingerprint].metrics["validation/accuracy"]) if fingerprint in board.finished else -1.0
        for _, fingerprint in trials
    ]
    best, _ = trials[scores.index(max(scores))]
    return dataclasses.replace(best, validation=0.0)


def _plain(spec: RunSpec) -> RunSpec:
    return dataclasses.replace(spec, options=(), validation=0.0)

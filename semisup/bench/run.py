"""Run a suite: expand it, time its steps, run what is missing, judge."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from semisup.bench.cells import Cell, Job, base_plans, cell_jobs, expand, step_kind, trial_options, unique_jobs
from semisup.bench.cluster import cluster, default_workers, worker_count
from semisup.bench.console import BenchConsole
from semisup.bench.record import record_run, recorded
from semisup.bench.results import RESULTS, write_results
from semisup.bench.runner import JobBoard, run_jobs
from semisup.bench.suite import Suite, load_suite
from semisup.bench.work import measure
from semisup.data import ImageData, load_data
from semisup.errors import SemisupError
from semisup.pipeline.execute import STORE
from semisup.pipeline.plan import Plan
from semisup.stages import write_json
from semisup.tracking import EventLog

__all__ = ["bench"]

TIMES = "step_times.json"
Measure = Callable[[Plan, str], float]
"""A recipe's plan and a stage's name -> seconds of one step."""


@dataclasses.dataclass
class _Bench:
    """One command's suite, and its runs so far."""

    suite: Suite
    data: ImageData
    folder: Path
    board: JobBoard
    timing: dict[str, float] = dataclasses.field(default_factory=dict)
    runs: list[tuple[Cell, list[Job]]] = dataclasses.field(default_factory=list)
    """Trials of the search among them."""

    def add(self, cell: Cell) -> list[Job]:
        """Plan one more run."""
        jobs = cell_jobs(self.suite, cell, self.data, self.timing)
        self.runs.append((cell, jobs))
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
        out: folder of the results, default `runs/<suite name>`. Finished stages are kept beside it, in
            `<parent of out>/.semisup`, and serve every suite and recipe below that parent.
        dry_run: check everything, measure step times, print the runs and the expected time, run nothing.
        scheduler: address of a Dask scheduler; None: workers on this machine. Workers elsewhere keep stages in
            folders of their own, and send the files.
        workers: on this machine; default: one per GPU, else cores / threads.
        quiet: print nothing but warnings.

    Returns:
        The summary that `leaderboard.json` has; of a dry run the numbers of "runs", "stages" and "stages_left", and
        the expected "seconds".

    Raises:
        SemisupError: whatever is wrong with the suite, before anything runs.
        KeyboardInterrupt: Ctrl-C; the tables of what is finished are written, the same command goes on.
    """
    if isinstance(suite, Suite) and overrides:
        raise SemisupError("overrides: they are for a suite's file or name; a loaded suite is changed in Python")
    loaded = suite if isinstance(suite, Suite) else load_suite(suite, list(overrides))
    console = BenchConsole(quiet=quiet)
    folder = Path(out) if out is not None else Path("runs") / loaded.name
    data = load_data(loaded.data)
    plans = base_plans(loaded, data)
    state = _Bench(loaded, data, folder, JobBoard(folder.parent / STORE, ships=scheduler is not None))
    if dry_run:
        local = default_workers(loaded.threads) if workers is None else workers
        state.timing = _step_times(plans, folder, lambda plan, stage: measure(plan.recipe, stage))
        return _show(state, console, local)
    name = loaded.name if isinstance(suite, Suite) else str(suite)
    command = shlex.join(["semisup", "bench", name, *overrides])
    folder.mkdir(parents=True, exist_ok=True)
    with cluster(scheduler, default_workers(loaded.threads) if workers is None else workers) as client:
        console.say(f"dashboard: {client.dashboard_link}")

        def on_a_worker(plan: Plan, stage: str) -> float:
            return float(client.submit(measure, plan.recipe, stage, pure=False).result())

        state.timing = _step_times(plans, folder, on_a_worker)
        _show(state, console, worker_count(client))
        with recorded(loaded, folder, data.hash, console) as log:
            try:
                _run(state, client, console, log)
            finally:
                summary = write_results(folder, loaded, data, state.runs, state.board, command)
                for file in RESULTS:
                    log.artifact(None, folder / file, "")
    console.show_summary(summary, folder)
    return summary


def _step_times(plans: Mapping[str, Plan], folder: Path, measured: Measure) -> dict[str, float]:
    """Seconds of one step of every kind of step, from the suite's folder, or measured now and kept there.

    Kept, because runs of equal seconds must have the same number of steps when the suite goes on after a kill.
    """
    path = folder / TIMES
    known: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for entry, plan in plans.items():
        for stage in plan.stages:
            kind = step_kind(plan, stage)
            if stage.steps and kind not in known:
                known[kind] = {"entry": entry, "stage": stage.name, "seconds": measured(plan, stage.name)}
                folder.mkdir(parents=True, exist_ok=True)
                write_json(path, known)
    return {kind: float(found["seconds"]) for kind, found in known.items()}


def _show(state: _Bench, console: BenchConsole, workers: int) -> dict[str, Any]:
    """Plan the first wave of runs, all of them or the trials of a search, and print them."""
    suite = state.suite
    for cell in expand(suite):
        if suite.search is None:
            state.add(cell)
            continue
        for options in trial_options(suite, cell.entry):
            state.add(dataclasses.replace(cell, options=options, validation=suite.search.validation))
    console.show_suite(suite, state.runs, state.board, workers)
    jobs = list(unique_jobs([jobs for _, jobs in state.runs]))
    left = [job for job in jobs if not state.board.find(job)]
    seconds = sum(job.seconds for job in left) / workers
    return {"runs": len(state.runs), "stages": len(jobs), "stages_left": len(left), "seconds": seconds}


def _run(state: _Bench, client: Any, console: BenchConsole, log: EventLog) -> None:
    """Run what is missing; the last trial of a search starts the final run."""
    with console.progress(state.board, worker_count(client)) as shown:

        def on_run(number: int) -> list[list[Job]]:
            cell, jobs = state.runs[number]
            record_run(log, cell, jobs, state.board.finished.get(jobs[-1].fingerprint))
            follow = _chosen(state, cell)
            more = [] if follow is None else [state.add(follow)]
            shown.update(state.runs)
            return more

        shown.update(state.runs)
        run_jobs(client, state.board, [jobs for _, jobs in state.runs], state.suite.retries, shown.tick, on_run)


def _chosen(state: _Bench, cell: Cell) -> Cell | None:
    """The final run that a trial leads to, once it is the last of its search to be over: the best on validation."""
    if not cell.validation:
        return None
    board, plain = state.board, _plain(cell)
    if any(not other.validation and _plain(other) == plain for other, _ in state.runs):
        return None  # chosen before
    trials = [(other, jobs[-1].fingerprint) for other, jobs in state.runs if _plain(other) == plain]
    if any(fingerprint not in board.finished and fingerprint not in board.failed for _, fingerprint in trials):
        return None
    # The first of equals; trials that failed count as wrong about everything.
    scores = [
        float(board.finished[fingerprint].metrics["validation/accuracy"]) if fingerprint in board.finished else -1.0
        for _, fingerprint in trials
    ]
    best, _ = trials[scores.index(max(scores))]
    return dataclasses.replace(best, validation=0.0)


def _plain(cell: Cell) -> Cell:
    return dataclasses.replace(cell, options=(), validation=0.0)

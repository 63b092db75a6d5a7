"""Run a suite: expand it, time its steps, run what is missing, judge."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from semisup.bench.execution.cluster import cluster, default_workers, worker_count
from semisup.bench.execution.jobs import Job, Planned, make_jobs, plan_run, step_kind, unique_jobs
from semisup.bench.execution.progress import BenchConsole
from semisup.bench.execution.record import record_run, recorded
from semisup.bench.execution.scheduler import JobBoard, run_jobs
from semisup.bench.execution.worker import device_name, machine, measure
from semisup.bench.results.write import RESULTS, write_results
from semisup.bench.suites.runs import RunSpec, check_entries, expand, trial_options
from semisup.bench.suites.suite import Suite, load_suite
from semisup.config import Recipe
from semisup.data import ImageData, load_data
from semisup.errors import SemisupError
from semisup.pipeline.execute import STORE, locked
from semisup.signals import grace
from semisup.stages import write_json
from semisup.tracking import EventLog

__all__ = ["bench"]

TIMES = "step_times.json"
ENDING_SECONDS = 5.0
"""Of the grace after a signal, kept for the tables and the end of the workers."""
Call = Callable[..., Any]
"""Calls a function with arguments, here or on a worker, and returns its answer."""


@dataclasses.dataclass
class _Bench:
    """One command's suite, and its runs so far."""

    suite: Suite
    data: ImageData
    folder: Path
    board: JobBoard
    console: BenchConsole
    timing: dict[str, float] = dataclasses.field(default_factory=dict)
    runs: list[tuple[RunSpec, list[Job]]] = dataclasses.field(default_factory=list)
    """Trials of the search among them."""

    def add(self, planned: Planned) -> list[Job]:
        """One more run."""
        jobs = make_jobs(self.suite, planned, self.timing)
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
        SemisupError: whatever is wrong with the suite, before anything runs; or the scheduler was lost.
        KeyboardInterrupt: Ctrl-C; the tables of what is finished are written, the same command goes on.
    """
    if isinstance(suite, Suite) and overrides:
        raise SemisupError("overrides: they are for a suite's file or name; a loaded suite is changed in Python")
    loaded = suite if isinstance(suite, Suite) else load_suite(suite, list(overrides))
    console = BenchConsole(quiet=quiet)
    folder = Path(out) if out is not None else Path("runs") / loaded.name
    data = load_data(loaded.data)
    check_entries(loaded, data)
    state = _Bench(loaded, data, folder, JobBoard(folder.parent / STORE, ships=scheduler is not None), console)
    own = default_workers(loaded.threads) if workers is None else workers
    if dry_run and scheduler is None:
        return _prepare(state, own, lambda function, *arguments: function(*arguments))
    waiting = f"{folder}: another process is running this suite; waiting for it"
    with contextlib.ExitStack() as stack:
        if not dry_run:
            stack.enter_context(locked(folder, lambda: console.say(waiting)))
        client = stack.enter_context(cluster(scheduler, own, loaded.retries))
        console.say(f"dashboard: {client.dashboard_link}")

        def on_a_worker(function: Call, *arguments: Any) -> Any:
            return client.submit(function, *arguments, pure=False).result()

        shown = _prepare(state, worker_count(client), on_a_worker)
        if dry_run:
            return shown
        name = loaded.name if isinstance(suite, Suite) else str(suite)
        command = shlex.join(["semisup", "bench", name, *overrides])
        machines = sorted(client.run(machine).values())
        with recorded(loaded, folder, data.hash, console) as log:
            try:
                _run(state, client, log)
            except KeyboardInterrupt:
                if scheduler is None:  # workers elsewhere may work for others too
                    _let_finish(client)
                raise
            finally:
                summary = write_results(folder, loaded, data, state.runs, state.board, command, machines)
                for file in RESULTS:
                    log.artifact(None, folder / file, "")
    console.show_summary(summary, folder)
    return summary


def _prepare(state: _Bench, workers: int, call: Call) -> dict[str, Any]:
    """Plan the first wave of runs, all of them or the trials of a search, time their steps, and print them."""
    planned = [plan_run(state.suite, spec, state.data) for spec in _first_wave(state.suite)]
    state.timing = _step_times(state, planned, call)
    for run in planned:
        state.add(run)
    state.console.show_suite(state.suite, state.runs, state.board, workers)
    jobs = list(unique_jobs([jobs for _, jobs in state.runs]))
    left = [job for job in jobs if not state.board.find(job)]
    seconds = sum(job.seconds for job in left) / workers
    return {"runs": len(state.runs), "stages": len(jobs), "stages_left": len(left), "seconds": seconds}


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


def _step_times(state: _Bench, planned: Sequence[Planned], call: Call) -> dict[str, float]:
    """Seconds of one step of every kind of step, from the suite's folder, or measured now and kept there.

    Kept, by device, because runs of equal seconds must have the same number of steps when the suite goes on after a
    kill. A kind that cannot be measured is left out, with a warning: its runs will say what is wrong with it.
    """
    path = state.folder / TIMES
    known: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    here = known.setdefault(str(call(device_name)), {})
    failed: set[str] = set()
    for run in planned:
        for stage in run.plan.stages:
            kind = step_kind(run.plan, stage)
            if not stage.steps or kind in here or kind in failed:
                continue
            state.console.say(f"timing {run.spec.entry}: {stage.name} ...")
            try:
                seconds = call(measure, _alone(run.plan.recipe), stage.name)
            except (RuntimeError, ValueError, OSError, MemoryError) as error:  # what torch, the recipe or Dask raise
                reason = (str(error).splitlines() or [""])[0]
                state.console.warn(f"{run.spec.entry}: a step of stage '{stage.name}' could not be timed: {reason}")
                failed.add(kind)
                continue
            here[kind] = {"entry": run.spec.entry, "stage": stage.name, "seconds": seconds}
            state.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
    return {kind: float(found["seconds"]) for kind, found in here.items()}


def _alone(recipe: Recipe) -> Recipe:
    """The recipe with all labels, which any worker can draw; how many there are does not matter to a step."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"labels": "all", "validation": 0.0})})


def _run(state: _Bench, client: Any, log: EventLog) -> None:
    """Run what is missing; the last trial of a search starts the final run."""
    board = state.board
    with state.console.progress(board, worker_count(client)) as shown:

        def on_run(number: int) -> list[list[Job]]:
            spec, jobs = state.runs[number]
            last = jobs[-1].fingerprint
            record_run(log, spec, jobs, board.finished.get(last), board.failed.get(last, ""))
            follow = _chosen(state, spec)
            more = [] if follow is None else [state.add(plan_run(state.suite, follow, state.data))]
            shown.update(state.runs)
            return more

        shown.update(state.runs)
        runs = [jobs for _, jobs in state.runs]
        run_jobs(client, board, runs, state.suite.retries, lambda: 2 * worker_count(client), shown.tick, on_run)


def _chosen(state: _Bench, spec: RunSpec) -> RunSpec | None:
    """The final run that a trial leads to, once it is the last of its search to be over: the best on validation.

    A trial that was lost, not judged, leaves its search undecided: the same command goes on with it.
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

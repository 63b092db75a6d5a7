"""Run a suite: expand, time, run what is missing, judge."""

from __future__ import annotations

import dataclasses
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from semisup._version import __version__
from semisup.bench.cells import Cell, Job, base_plans, cell_jobs, expand, step_kind, trial_options, unique_jobs
from semisup.bench.cluster import cluster, default_workers
from semisup.bench.console import BenchConsole
from semisup.bench.leaderboard import leaderboard_markdown
from semisup.bench.report import report_html
from semisup.bench.rows import Row, write_rows
from semisup.bench.runner import JobBoard, run_jobs
from semisup.bench.suite import Suite, load_suite
from semisup.bench.summary import summarise
from semisup.bench.work import measure
from semisup.data import ImageData, draw_budget, load_data
from semisup.errors import SemisupError
from semisup.files import write_atomically
from semisup.pipeline.execute import STORE
from semisup.pipeline.plan import Plan
from semisup.stages import write_json
from semisup.tracking import EventLog, MlflowUploader, resolve_uri

__all__ = ["bench"]

TIMES = "step_times.json"
UPLOAD_SECONDS = 60.0


@dataclasses.dataclass
class _Bench:
    """One command's suite, and what is known about its runs."""

    suite: Suite
    data: ImageData
    folder: Path
    board: JobBoard
    command: str
    timing: dict[str, float] = dataclasses.field(default_factory=dict)
    runs: list[tuple[Cell, list[Job]]] = dataclasses.field(default_factory=list)
    """Every run so far; trials of the search among them."""

    def jobs(self, cell: Cell) -> list[Job]:
        return cell_jobs(self.suite, cell, self.data, self.timing)


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
        The summary that `leaderboard.json` has; of a dry run {"runs", "stages", "stages_left", "seconds"}.

    Raises:
        SemisupError: whatever is wrong with the suite, before anything runs.
        KeyboardInterrupt: Ctrl-C; the tables of what is finished are written, the same command goes on.
    """
    if isinstance(suite, Suite) and overrides:
        raise SemisupError("overrides: they are for a suite's file or name; a loaded suite is changed in Python")
    name = "suite" if isinstance(suite, Suite) else str(suite)
    loaded = suite if isinstance(suite, Suite) else load_suite(suite, list(overrides))
    console = BenchConsole(quiet=quiet)
    folder = Path(out) if out is not None else Path("runs") / loaded.name
    data = load_data(loaded.data)
    plans = base_plans(loaded, data)
    command = shlex.join(["semisup", "bench", name, *overrides, *(["--out", str(out)] if out is not None else [])])
    state = _Bench(loaded, data, folder, JobBoard(folder.parent / STORE, scheduler is not None), command)
    workers = default_workers(loaded.threads) if workers is None else workers
    if dry_run:
        console.say("measuring step times ...")
        state.timing = _step_times(plans, folder, lambda plan, stage: measure(plan.recipe, stage))
        _plan_runs(state)
        return _dry_run(state, console, workers)
    folder.mkdir(parents=True, exist_ok=True)
    with cluster(scheduler, workers) as client:
        console.say(f"dashboard: {client.dashboard_link}")
        if scheduler is not None:
            workers = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        state.timing = _step_times(
            plans, folder, lambda plan, stage: client.submit(measure, plan.recipe, stage, pure=False).result()
        )
        _plan_runs(state)
        console.show_suite(loaded, state.runs, state.board, workers)
        with _tracked(state, console) as log:
            try:
                _run(state, client, console, log, workers)
            finally:
                summary = _write(state, log)
    console.show_summary(summary, folder)
    return summary


def _step_times(plans: Mapping[str, Plan], folder: Path, measured: Any) -> dict[str, float]:
    """Seconds of one step of every kind of step, from the suite's folder or measured now, and kept there.

    Kept, because runs of equal seconds must have the same number of steps when the suite goes on after a kill.
    """
    path = folder / TIMES
    known: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for entry, plan in plans.items():
        for stage in plan.stages:
            kind = step_kind(plan, stage)
            if not stage.steps or kind in known:
                continue
            known[kind] = {"entry": entry, "stage": stage.name, "seconds": measured(plan, stage.name)}
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
    return {kind: float(found["seconds"]) for kind, found in known.items()}


def _plan_runs(state: _Bench) -> None:
    """Plan the first wave of runs: all of them, or the trials of a search."""
    for cell in expand(state.suite):
        if state.suite.search is None:
            state.runs.append((cell, state.jobs(cell)))
            continue
        for options in trial_options(state.suite, cell.entry):
            trial = dataclasses.replace(cell, options=options, validation=state.suite.search.validation)
            state.runs.append((trial, state.jobs(trial)))


def _dry_run(state: _Bench, console: BenchConsole, workers: int) -> dict[str, Any]:
    console.show_suite(state.suite, state.runs, state.board, workers)
    left = [job for job in unique_jobs([jobs for _, jobs in state.runs]) if not state.board.find(job)]
    return {
        "runs": len(state.runs),
        "stages": len(list(unique_jobs([jobs for _, jobs in state.runs]))),
        "stages_left": len(left),
        "seconds": sum(job.seconds for job in left) / workers,
    }


def _run(state: _Bench, client: Any, console: BenchConsole, log: EventLog, workers: int) -> None:
    """Run what is missing; a run of the search whose siblings are all judged starts the final one."""
    first = [jobs for _, jobs in state.runs]
    with console.progress(state.board, workers) as shown:

        def on_run(number: int) -> list[list[Job]]:
            cell, jobs = state.runs[number]
            _log_run(log, state, cell, jobs)
            follow = _chosen(state, cell)
            more = [] if follow is None else [(follow, state.jobs(follow))]
            state.runs.extend(more)
            shown.update(state.runs)
            return [jobs for _, jobs in more]

        shown.update(state.runs)
        run_jobs(client, state.board, first, state.suite.retries, shown.tick, on_run)


def _chosen(state: _Bench, cell: Cell) -> Cell | None:
    """The final run that a trial leads to, once it is the last of its search to be judged: the best on validation."""
    if not cell.validation:
        return None
    plain = dataclasses.replace(cell, options=(), validation=0.0)
    trials = [
        (other, jobs[-1].fingerprint)
        for other, jobs in state.runs
        if other.validation and dataclasses.replace(other, options=(), validation=0.0) == plain
    ]
    board = state.board
    if any(dataclasses.replace(other, validation=0.0) in {c for c, _ in state.runs} for other, _ in trials):
        return None  # decided before
    if any(fingerprint not in board.finished and fingerprint not in board.failed for _, fingerprint in trials):
        return None
    scores = {
        other.options: float(board.finished[fingerprint].metrics.get("validation/accuracy") or 0.0)
        for other, fingerprint in trials
        if fingerprint in board.finished
    }
    if not scores:
        return dataclasses.replace(plain, options=trials[0][0].options)  # it will fail too, and say why
    return dataclasses.replace(plain, options=max(scores, key=lambda options: scores[options]))


def _final(state: _Bench) -> list[tuple[Cell, list[Job]]]:
    """The runs that the tables are about: all but the trials, that are over."""
    over = state.board.finished.keys() | state.board.failed.keys()
    return [(cell, jobs) for cell, jobs in state.runs if not cell.validation and jobs[-1].fingerprint in over]


def _row(state: _Bench, cell: Cell, jobs: list[Job]) -> Row:
    board, last = state.board, jobs[-1]
    data = state.data
    budget = draw_budget(data.y_train, cell.labels, cell.draw, data.num_classes)
    error = " ".join(board.failed.get(last.fingerprint, "").split())
    artifact = board.finished.get(last.fingerprint)
    done = [board.finished[job.fingerprint] for job in jobs if board.find(job)]
    metrics: Mapping[str, Any] = {} if artifact is None else artifact.metrics
    trains = [job for job in jobs if job.steps]
    return Row(
        entry=cell.entry,
        method=str(last.baseline.get("name") or _method(last)),
        labels=str(cell.labels),
        n_labels=len(budget.index),
        draw=cell.draw,
        init=cell.init,
        compute=cell.compute.text,
        status="failed" if artifact is None else "done",
        error=error if artifact is None else "",
        accuracy=metrics.get("test/accuracy"),
        raw_accuracy=metrics.get("test_raw/accuracy"),
        nll=metrics.get("test/nll"),
        ece=metrics.get("test/ece"),
        brier=metrics.get("test/brier"),
        coverage=metrics.get("pseudo_labels/coverage"),
        kept_accuracy=metrics.get("pseudo_labels/kept_accuracy"),
        knn=metrics.get("knn/accuracy"),
        probe=metrics.get("probe/accuracy"),
        oracle_accuracy=metrics.get("oracle/accuracy"),
        validation_accuracy=metrics.get("validation/accuracy"),
        per_class=metrics.get("test/per_class_accuracy", []),
        reliability=metrics.get("test/reliability", []),
        steps=sum(job.steps for job in jobs),
        seconds=sum(float(found.record["seconds"]) for found in done),
        calibrated_seconds=sum(job.seconds for job in trains) if trains and not last.baseline else None,
        parameters=0 if artifact is None else int(artifact.record["parameters"]),
        fingerprint="" if artifact is None else last.fingerprint,
        split_hash=budget.hash,
        chosen=" ".join(cell.options),
    )


def _method(job: Job) -> str:
    stage = job.recipe.stages[str(job.stage)]
    return str(stage.method.get("name", stage.kind))


def _saved(state: _Bench) -> dict[str, Any]:
    """What sharing stages has saved: stages and seconds that the runs would have needed each for itself."""
    seconds = {
        job.fingerprint: float(state.board.finished[job.fingerprint].record["seconds"])
        for job in unique_jobs([jobs for _, jobs in state.runs])
        if state.board.find(job)
    }
    needed = [job.fingerprint for _, jobs in state.runs for job in jobs if job.fingerprint in seconds]
    return {
        "stages": len(seconds),
        "stages_needed": len(needed),
        "seconds": sum(seconds.values()),
        "seconds_needed": sum(seconds[fingerprint] for fingerprint in needed),
    }


def _write(state: _Bench, log: EventLog) -> dict[str, Any]:
    """Write runs.csv, leaderboard.json, leaderboard.md and report.html from whatever is finished."""
    suite, data, folder = state.suite, state.data, state.folder
    rows = [_row(state, cell, jobs) for cell, jobs in _final(state)]
    summary = summarise(
        rows,
        suite=suite.name,
        command=state.command,
        baseline=suite.baseline,
        entries=list(suite.entries),
        targets=suite.targets,
        classes=data.classes,
        num_test=len(data.x_test),
        provenance=_provenance(state),
        settings=suite.settings.strip(),
        saved=_saved(state),
    )
    write_rows(folder / "runs.csv", rows)
    write_json(folder / "leaderboard.json", summary)
    write_atomically(folder / "leaderboard.md", leaderboard_markdown(summary).encode())
    write_atomically(folder / "report.html", report_html(summary).encode())
    for name in ("runs.csv", "leaderboard.json", "leaderboard.md", "report.html"):
        log.artifact(None, folder / name, "")
    numbers = {"runs": len(rows), "failed": sum(row.status == "failed" for row in rows)}
    log.metrics(None, 0, numbers)
    return summary


def _provenance(state: _Bench) -> dict[str, Any]:
    cpu = [line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "semisup": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "scikit-learn", "numpy", "distributed")},
        "machine": f"{len(cpu)} x {cpu[0]}" if cpu else platform.machine(),
        "gpus": ", ".join(gpus) or "none",
        "threads per run": str(state.suite.threads),
        "data": f"{state.data.name}: {len(state.data.x_train):,} training images of {state.data.size} pixels",
        "data hash": state.data.hash,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _tracked(state: _Bench, console: BenchConsole) -> Any:
    """The suite's event log: a parent run, below which every run is a child."""
    from contextlib import contextmanager

    @contextmanager
    def opened() -> Any:
        log = EventLog(state.folder)
        uploader = None
        if state.suite.tracking.mlflow:
            uri = resolve_uri(state.folder.parent)
            uploader = MlflowUploader(state.folder, uri, state.suite.tracking.experiment, console.warn)
        params = {key: value for key, value in dataclasses.asdict(state.suite).items() if key != "settings"}
        log.run_start(state.suite.name, params, {"data_hash": state.data.hash, "semisup_version": __version__})
        status = "FAILED"
        try:
            yield log
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            log.run_end(status)
            if uploader is not None and not uploader.close(UPLOAD_SECONDS if status == "FINISHED" else 5.0):
                console.warn(f"some numbers have not reached MLflow; send them with: semisup track {state.folder}")

    return opened()


def _log_run(log: EventLog, state: _Bench, cell: Cell, jobs: list[Job]) -> None:
    """A child run of a finished run: its settings, its numbers, how it ended."""
    artifact = state.board.finished.get(jobs[-1].fingerprint)
    params = {
        "entry": cell.entry,
        "labels": str(cell.labels),
        "draw": cell.draw,
        "init": cell.init,
        "compute": cell.compute.text or "recipe",
        "options": " ".join(cell.options),
        "validation": cell.validation,
        "stages": {job.name: job.fingerprint for job in jobs},
    }
    log.stage_start(cell.name, params, {"fingerprint": jobs[-1].fingerprint, "data_hash": state.data.hash})
    if artifact is None:
        log.stage_end(cell.name, "failed", {})
        return
    numbers = {key: value for key, value in artifact.metrics.items() if isinstance(value, int | float)}
    log.stage_end(cell.name, "finished", numbers)

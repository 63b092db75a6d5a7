"""From finished runs to the suite's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from semisup._version import __version__
from semisup.bench.execution.jobs import Job, unique_jobs
from semisup.bench.execution.scheduler import JobBoard
from semisup.bench.pages.leaderboard import leaderboard_markdown
from semisup.bench.pages.report import report_html
from semisup.bench.results.facts import FACTS, SuiteFacts, read_facts
from semisup.bench.results.rows import Row, read_rows, write_rows
from semisup.bench.results.summary import summarize
from semisup.bench.suites.folds import Folds
from semisup.bench.suites.runs import RunSpec
from semisup.bench.suites.suite import Suite
from semisup.columns import measured
from semisup.data import ImageData
from semisup.data.budget import class_ratio
from semisup.files import write_atomically
from semisup.pipeline.plan import recipe_budget
from semisup.pipeline.run import git_commit
from semisup.settings import TrainConfig
from semisup.stages import write_json

__all__ = ["RESULTS", "rewrite_results", "write_results", "write_tables"]

RESULTS = ("runs.csv", FACTS, "leaderboard.json", "leaderboard.md", "report.html")
"""What a suite leaves for people, in its folder."""

KNN = "knn/accuracy"
Runs = Sequence[tuple[RunSpec, Sequence[Job]]]


def write_results(
    folder: Path,
    suite: Suite,
    folds: Folds,
    runs: Runs,
    board: JobBoard,
    command: str,
    machines: Sequence[str],
) -> dict[str, Any]:
    """Write the files of `RESULTS` from whatever is finished or has failed; returns the summary.

    Args:
        folder: of the suite.
        suite: the suite.
        folds: its data.
        runs: all runs known so far, trials of a search among them: these are no rows, but count as work.
        board: what became of their jobs.
        command: that makes the results.
        machines: that the runs were on, in words.
    """
    final = [
        (spec, jobs)
        for spec, jobs in runs
        if not spec.validation and (board.find(jobs[-1]) or jobs[-1].fingerprint in board.failed)
    ]
    rows = [_row(spec, jobs, folds.of(spec.draw), board) for spec, jobs in final]
    data = folds.first
    facts = SuiteFacts(
        suite=suite.name,
        command=command,
        baselines=list(suite.baselines),
        entries=list(suite.entries),
        targets=list(suite.targets),
        classes=list(data.classes),
        num_test=folds.num_test,
        class_ratio=_class_ratio(folds, final),
        provenance=_provenance(suite, folds, machines),
        settings=suite.settings.strip(),
        saved=_saved(runs, board),
    )
    return write_tables(folder, rows, facts)


def rewrite_results(folder: Path) -> dict[str, Any]:
    """Write the tables of a finished suite anew, as this version makes them; returns the summary.

    Args:
        folder: with a suite's `runs.csv` and `suite.json`, of this version or an earlier one.

    Raises:
        SemisupError: a file that is missing or not readable.
    """
    return write_tables(folder, read_rows(folder / "runs.csv"), read_facts(folder))


def write_tables(folder: Path, rows: Sequence[Row], facts: SuiteFacts) -> dict[str, Any]:
    """Write the files of `RESULTS` of a suite's runs and facts; returns the summary."""
    summary = summarize(rows, **facts.model_dump())
    write_rows(folder / "runs.csv", rows)
    write_json(folder / FACTS, facts.model_dump())
    write_json(folder / "leaderboard.json", summary)
    write_atomically(folder / "leaderboard.md", leaderboard_markdown(summary).encode())
    write_atomically(folder / "report.html", report_html(summary).encode())
    return summary


def _class_ratio(folds: Folds, runs: Runs) -> float:
    budgets = {str(spec.labels): (jobs[-1].recipe, folds.of(spec.draw)) for spec, jobs in runs}
    return max((class_ratio(recipe_budget(recipe, data), data.y_test) for recipe, data in budgets.values()), default=1)


def _row(spec: RunSpec, jobs: Sequence[Job], data: ImageData, board: JobBoard) -> Row:
    last = jobs[-1]
    # Of what was run, not of what was asked for: the notes compare the entries' splits.
    budget = recipe_budget(last.recipe, data)
    artifact = board.finished.get(last.fingerprint)
    metrics: dict[str, Any] = {} if artifact is None else {**_evaluated_encoder(last, board), **artifact.metrics}
    done = [board.finished[job.fingerprint] for job in jobs if board.find(job)]
    timed = [job.seconds for job in jobs if job.steps]
    of_run = {
        "run/steps": sum(job.steps for job in jobs),
        "run/seconds": sum(float(found.record["seconds"]) for found in done),
        "run/calibrated_seconds": None if last.baseline or not all(timed) else sum(timed),
    }
    return Row(
        entry=spec.entry,
        method=_method(last),
        labels=str(spec.labels),
        n_labels=len(budget.index) + len(budget.validation),
        draw=spec.draw,
        init=spec.init,
        compute=spec.compute.text,
        status="failed" if artifact is None else "done",
        error=" ".join(board.failed[last.fingerprint].split()) if artifact is None else "",
        metrics=measured(metrics | of_run),
        per_class=_to_millionths(metrics.get("test/per_class_accuracy", [])),
        reliability=[_to_millionths(values) for values in metrics.get("test/reliability", [])],
        parameters=0 if artifact is None else int(artifact.record["parameters"]),
        fingerprint="" if artifact is None else last.fingerprint,
        split_hash=budget.hash,
        chosen=" ".join(spec.options),
    )


def _to_millionths(values: Sequence[float | None]) -> list[Any]:
    """Round to six decimals, finer than one test image counts; all digits would be half of `runs.csv`."""
    return [None if value is None else round(value, 6) for value in values]


def _evaluated_encoder(job: Job, board: JobBoard) -> Mapping[str, Any]:
    """Return what nearest neighbors said of the network that a probe or knn stage evaluates; empty for other stages."""
    of = None if job.baseline else getattr(job.recipe.stages[str(job.stage)], "of", None)
    found = board.finished.get(dict(job.inputs).get(of, "")) if of else None
    return {} if found is None else {key: value for key, value in found.metrics.items() if key == KNN}


def _method(job: Job) -> str:
    if job.baseline:
        return str(job.baseline["name"])
    stage = job.recipe.stages[str(job.stage)]
    return str(stage.method["name"]) if isinstance(stage, TrainConfig) else stage.kind


def _saved(runs: Runs, board: JobBoard) -> dict[str, Any]:
    """Return what sharing stages has saved: stages and seconds, and those that the runs would need each for itself."""
    seconds = {
        job.fingerprint: float(board.finished[job.fingerprint].record["seconds"])
        for job in unique_jobs([jobs for _, jobs in runs])
        if board.find(job)
    }
    needed = [job.fingerprint for _, jobs in runs for job in jobs if job.fingerprint in seconds]
    return {
        "stages": len(seconds),
        "stages_needed": len(needed),
        "seconds": sum(seconds.values()),
        "seconds_needed": sum(seconds[fingerprint] for fingerprint in needed),
    }


def _provenance(suite: Suite, folds: Folds, machines: Sequence[str]) -> dict[str, Any]:
    data = folds.first
    tested = f"{folds.num_test:,} test"
    if folds.count > 1:
        tested += f", labeled ones that the draws leave out in turn, in {len(folds.parts)} parts (data.holdout)"
    return {
        "semisup": __version__,
        "git commit": git_commit() or "unknown",
        "machines": list(dict.fromkeys(machines)),
        "threads per run": str(suite.threads),
        "data": f"{data.name}: {len(data.x_train):,} training images of {data.size} pixels, {tested}",
        "data hash": data.hash,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }

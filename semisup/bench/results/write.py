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
from semisup.bench.results.rows import Row, write_rows
from semisup.bench.results.summary import summarize
from semisup.bench.suites.runs import RunSpec
from semisup.bench.suites.suite import Suite
from semisup.data import ImageData
from semisup.files import write_atomically
from semisup.pipeline.plan import recipe_budget
from semisup.pipeline.run import git_commit
from semisup.stages import write_json

__all__ = ["RESULTS", "write_results"]

RESULTS = ("runs.csv", "leaderboard.json", "leaderboard.md", "report.html")
"""What a suite leaves for people, in its folder."""

Runs = Sequence[tuple[RunSpec, Sequence[Job]]]


def write_results(
    folder: Path,
    suite: Suite,
    data: ImageData,
    runs: Runs,
    board: JobBoard,
    command: str,
    machines: Sequence[str],
) -> dict[str, Any]:
    """Write the files of `RESULTS` from whatever is finished or has failed; returns the summary.

    Args:
        folder: of the suite.
        suite: the suite.
        data: its data.
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
    rows = [_row(spec, jobs, data, board) for spec, jobs in final]
    summary = summarize(
        rows,
        suite=suite.name,
        command=command,
        baseline=suite.baseline,
        entries=list(suite.entries),
        targets=suite.targets,
        classes=data.classes,
        num_test=len(data.x_test),
        provenance=_provenance(suite, data, machines),
        settings=suite.settings.strip(),
        saved=_saved(runs, board),
    )
    write_rows(folder / "runs.csv", rows)
    write_json(folder / "leaderboard.json", summary)
    write_atomically(folder / "leaderboard.md", leaderboard_markdown(summary).encode())
    write_atomically(folder / "report.html", report_html(summary).encode())
    return summary


def _row(spec: RunSpec, jobs: Sequence[Job], data: ImageData, board: JobBoard) -> Row:
    last = jobs[-1]
    # Of what was run, not of what was asked for: the notes compare the entries' splits.
    budget = recipe_budget(last.recipe, data)
    artifact = board.finished.get(last.fingerprint)
    metrics: Mapping[str, Any] = {} if artifact is None else artifact.metrics
    encoder = _judged_encoder(last, board)
    done = [board.finished[job.fingerprint] for job in jobs if board.find(job)]
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
        accuracy=metrics.get("test/accuracy"),
        raw_accuracy=metrics.get("test_raw/accuracy"),
        nll=metrics.get("test/nll"),
        ece=metrics.get("test/ece"),
        brier=metrics.get("test/brier"),
        coverage=metrics.get("pseudo_labels/coverage"),
        kept_accuracy=metrics.get("pseudo_labels/kept_accuracy"),
        knn=metrics.get("knn/accuracy", encoder.get("knn/accuracy")),
        probe=metrics.get("probe/accuracy"),
        oracle_accuracy=metrics.get("oracle/accuracy"),
        validation_accuracy=metrics.get("validation/accuracy"),
        per_class=metrics.get("test/per_class_accuracy", []),
        reliability=metrics.get("test/reliability", []),
        steps=sum(job.steps for job in jobs),
        seconds=sum(float(found.record["seconds"]) for found in done),
        calibrated_seconds=None if last.baseline else sum(job.seconds for job in jobs),
        parameters=0 if artifact is None else int(artifact.record["parameters"]),
        fingerprint="" if artifact is None else last.fingerprint,
        split_hash=budget.hash,
        chosen=" ".join(spec.options),
    )


def _judged_encoder(job: Job, board: JobBoard) -> Mapping[str, Any]:
    """The metrics of the stage whose network a probe or knn stage judges; empty for other stages."""
    of = None if job.baseline else job.recipe.stages[str(job.stage)].of
    found = board.finished.get(dict(job.inputs).get(of, "")) if of else None
    return {} if found is None else found.metrics


def _method(job: Job) -> str:
    if job.baseline:
        return str(job.baseline["name"])
    stage = job.recipe.stages[str(job.stage)]
    return str(stage.method.get("name", stage.kind))


def _saved(runs: Runs, board: JobBoard) -> dict[str, Any]:
    """What sharing stages has saved: stages and seconds, and those that the runs would need each for itself."""
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


def _provenance(suite: Suite, data: ImageData, machines: Sequence[str]) -> dict[str, Any]:
    return {
        "semisup": __version__,
        "git commit": git_commit() or "unknown",
        "machines": list(dict.fromkeys(machines)),
        "threads per run": str(suite.threads),
        "data": f"{data.name}: {len(data.x_train):,} training images of {data.size} pixels, {len(data.x_test):,} test",
        "data hash": data.hash,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }

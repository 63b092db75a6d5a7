"""What a suite tells the person who started it: its runs and their expected time, one progress line, the result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from semisup.bench.execution.jobs import Job, unique_jobs
from semisup.bench.execution.scheduler import JobBoard
from semisup.bench.suites.runs import RunSpec
from semisup.bench.suites.suite import Suite
from semisup.pipeline.console import Terminal
from semisup.text import duration

__all__ = ["BenchConsole", "Shown"]

PLAIN_SECONDS = 10.0
"""Least time between progress lines where there is no terminal."""


class BenchConsole(Terminal):
    """Prints a suite."""

    def show_suite(
        self, suite: Suite, runs: Sequence[tuple[RunSpec, Sequence[Job]]], board: JobBoard, workers: int
    ) -> None:
        """Return a row for every entry: runs, stages, how many are finished, and how long the others will take."""
        columns = ("entry", "runs", "finished", "stages", "left", "steps/run", "time/run", "time left")
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, justify="left" if column == "entry" else "right")
        counted: set[str] = set()
        for entry in suite.entries:
            own = [jobs for spec, jobs in runs if spec.entry == entry]
            stages = [job for job in unique_jobs(own) if job.fingerprint not in counted]
            counted.update(job.fingerprint for job in stages)
            left = [job for job in stages if not board.find(job)]
            mean_steps = sum(job.steps for jobs in own for job in jobs) / len(own)
            mean_seconds = sum(job.seconds for jobs in own for job in jobs) / len(own)
            table.add_row(
                entry,
                str(len(own)),
                str(sum(board.find(jobs[-1]) for jobs in own)),
                str(len(stages)),
                str(len(left)),
                f"{mean_steps:,.0f}" if mean_steps else "",
                duration(mean_seconds) if mean_seconds else "",
                _time(left) if left else "done",
            )
        every = list(unique_jobs([jobs for _, jobs in runs]))
        left = [job for job in every if not board.find(job)]
        needed = sum(len(jobs) for _, jobs in runs)
        self.say(
            f"{suite.name}: {len(runs)} runs of {needed} stages, {len(every)} different ones, {len(left)} left to run"
        )
        if time_left := _time(left, workers):
            self.say(
                f"about {time_left} with {workers} worker{'s' if workers > 1 else ''} (step times measured alone; "
                "evaluation, baselines and stages too short to be timed not counted)"
            )
        self.console.print(table)

    @contextmanager
    def progress(self, board: JobBoard, workers: int) -> Iterator[Shown]:
        """One line of progress: a bar on a terminal, elsewhere a line every few seconds."""
        if not self.console.is_terminal or self.console.quiet:
            yield Shown(self, board, workers, None)
            return
        columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield Shown(self, board, workers, progress)

    def show_summary(self, summary: Mapping[str, Any], folder: Path) -> None:
        """Failures, and where the tables are."""
        for failure in summary["failures"]:
            self.warn(f"{failure['run']}: {failure['error']}")
        self.say((folder / "leaderboard.md").read_text(encoding="utf-8"))
        self.say(f"results: {folder / 'leaderboard.md'}, {folder / 'report.html'}")


def _time(jobs: Sequence[Job], workers: int = 1) -> str:
    """How long jobs take on so many workers; empty where no step was timed."""
    seconds = sum(job.seconds for job in jobs) / workers
    return duration(seconds) if seconds else ""


class Shown:
    """Done, running, failed, time left."""

    def __init__(self, console: BenchConsole, board: JobBoard, workers: int, progress: Progress | None) -> None:
        self.console = console
        self.board = board
        self.workers = workers
        self.progress = progress
        self.task = None if progress is None else progress.add_task("", total=None)
        self.runs: Sequence[tuple[RunSpec, Sequence[Job]]] = []
        self.printed = time.monotonic()
        self.last = ""
        self.flying = 0

    def update(self, runs: Sequence[tuple[RunSpec, Sequence[Job]]]) -> None:
        """Take the runs known now."""
        self.runs = runs
        self.tick(self.flying)

    def tick(self, flying: int) -> None:
        """Show where things stand; `flying` jobs are submitted and not over."""
        self.flying, board = flying, self.board
        done = sum(jobs[-1].fingerprint in board.finished for _, jobs in self.runs)
        failed = sum(jobs[-1].fingerprint in board.failed for _, jobs in self.runs)
        jobs = unique_jobs([jobs for _, jobs in self.runs])
        over = board.finished.keys() | board.failed.keys()
        left = [job for job in jobs if job.fingerprint not in over]
        stages = f"{len(left)} stage{'s' if len(left) != 1 else ''}"
        time_left = _time(left, self.workers) or stages
        text = f"{min(flying, self.workers)} running, {failed} failed, {time_left} left"
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, total=len(self.runs), completed=done, description=text)
        elif time.monotonic() - self.printed >= PLAIN_SECONDS and text != self.last:
            self.printed, self.last = time.monotonic(), text
            self.console.say(f"{done}/{len(self.runs)} runs done, {text}")

"""What a step of every kind takes, measured alone and kept in the suite's folder: for expected times and equal seconds.

Kept, by device, because runs of equal seconds must have the same number of steps when the suite goes on after a kill.
With each time stands how busy other programs kept the machine meanwhile; one that they disturbed is measured again by
the next command, as long as no run was made with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from semisup.bench.execution.jobs import Planned, make_jobs, step_kind, unique_jobs
from semisup.bench.execution.progress import BenchConsole
from semisup.bench.execution.scheduler import JobBoard
from semisup.bench.execution.worker import device_name, measure
from semisup.bench.suites.suite import Suite
from semisup.errors import SemisupError, first_line
from semisup.pipeline.plan import StagePlan
from semisup.pipeline.timing import is_busy
from semisup.records import is_finite, read_json
from semisup.settings import Recipe
from semisup.stages import write_json

__all__ = ["STEP_TIMES", "Call", "step_times"]

STEP_TIMES = "step_times.json"
SHORT = 220
"""Steps of a kind left to make below which timing them is not worth it: it takes 11, 5% of these."""
SHORTEST, LONGEST = 1e-7, 1e7
"""Seconds of a step that may be believed; of shorter ones, runs of equal seconds would have steps without end."""
Call = Callable[..., Any]
"""Calls a function with arguments, here or on a worker, and returns its answer."""
Times = dict[str, dict[str, Any]]
"""Kind of step -> entry, stage, seconds and load."""


def step_times(
    suite: Suite,
    folder: Path,
    planned: Sequence[Planned],
    board: JobBoard,
    console: BenchConsole,
    call: Call,
    longest: Mapping[str, int],
    *,
    expected: bool,
) -> dict[str, float]:
    """Return the seconds of one step by kind; those that are needed and not known are measured and kept.

    Needed are those of runs of equal seconds and, where the expected time is asked for, those of which so many steps
    are left that timing them is worth it. A kind that cannot be measured is left out, with a warning: its runs will say
    what is wrong with it.

    Args:
        suite: the suite.
        folder: its folder, where the times are kept.
        planned: its runs.
        board: tells which stages are finished.
        console: for a line per measurement.
        call: runs a function where the steps will be made.
        longest: as for `make_jobs`.
        expected: whether somebody waits to hear how long the suite will take.
    """
    path = folder / STEP_TIMES
    by_device = _read(path, console)
    here = by_device.setdefault(str(call(device_name)), {})
    in_seconds = any(compute.unit == "s" for compute in suite.computes)
    settled = in_seconds and (folder / "runs.csv").exists()
    for kind, (run, stage) in _needed(suite, planned, board, longest, in_seconds, expected).items():
        known = here.get(kind)
        if known is not None and (settled or not is_busy(known.get("load", 0.0), suite.threads)):
            continue
        console.say(f"timing {run.spec.entry}: {stage.name}{' again' if known else ''} ...")
        try:
            seconds, load = call(measure, _alone(run.plan.recipe), stage.name)
        except (RuntimeError, ValueError, OSError, MemoryError) as error:  # what torch, the recipe or Dask raise
            reason = first_line(error)
            console.warn(f"{run.spec.entry}: a step of stage '{stage.name}' could not be timed: {reason}")
            continue
        if is_busy(load, suite.threads):
            again = "kept" if in_seconds else "measured again by the next command"
            others = f"other programs kept {load:.1f} cores busy"
            console.warn(f"{run.spec.entry}: {stage.name} was timed while {others}; {again}")
        here[kind] = {"entry": run.spec.entry, "stage": stage.name, "seconds": seconds, "load": load}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, by_device)
    return {kind: float(found["seconds"]) for kind, found in here.items()}


def _needed(
    suite: Suite,
    planned: Sequence[Planned],
    board: JobBoard,
    longest: Mapping[str, int],
    in_seconds: bool,
    expected: bool,
) -> dict[str, tuple[Planned, StagePlan]]:
    """Return the kinds of step to know the time of, each with one stage that makes it, in the order of the runs."""
    kinds: dict[str, tuple[Planned, StagePlan]] = {}
    if not in_seconds and not expected:
        return kinds
    for run in planned:
        for stage in run.plan.stages:
            if stage.steps:
                kinds.setdefault(step_kind(run.plan, stage), (run, stage))
    if in_seconds:
        return kinds
    left = dict.fromkeys(kinds, 0)
    runs = [(run, make_jobs(suite, run, {}, longest)) for run in planned]
    kind_of = {
        job.fingerprint: step_kind(run.plan, stage)
        for run, jobs in runs
        for job in jobs
        for stage in run.plan.stages
        if stage.name == job.stage and job.steps
    }
    for job in unique_jobs([jobs for _, jobs in runs]):
        if job.fingerprint in kind_of and not board.find(job):
            left[kind_of[job.fingerprint]] += job.steps
    return {kind: found for kind, found in kinds.items() if left[kind] >= SHORT}


def _read(path: Path, console: BenchConsole) -> dict[str, Times]:
    """Read the kept times; a damaged file is told, and everything measured anew."""
    if not path.exists():
        return {}
    try:
        found = read_json(path)
    except SemisupError as error:
        console.warn(f"{first_line(error)}; step times are measured anew")
        return {}
    if not _is_times(found):
        console.warn(f"{path}: holds no step times; they are measured anew")
        return {}
    times: dict[str, Times] = found
    return times


def _is_times(found: Any) -> bool:
    """Whether this is device -> kind -> seconds, and perhaps load."""
    if not isinstance(found, dict) or not all(isinstance(kinds, dict) for kinds in found.values()):
        return False
    times = [time for kinds in found.values() for time in kinds.values()]
    return all(isinstance(time, dict) and _is_time(time) for time in times)


def _is_time(time: Mapping[str, Any]) -> bool:
    numbers = [time.get("seconds"), time.get("load", 0.0)]
    finite = [n for n in numbers if is_finite(n)]
    return len(finite) == 2 and SHORTEST <= finite[0] <= LONGEST and finite[1] >= 0


def _alone(recipe: Recipe) -> Recipe:
    """Return the recipe with all labels, which any worker can draw; how many there are does not matter to a step."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"labels": "all", "validation": 0.0})})

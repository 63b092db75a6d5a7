"""Run a recipe: reuse, resume or run each stage, and say what came of it."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from semisup._version import __version__
from semisup.config import to_yaml
from semisup.data.budget import class_ratio
from semisup.data.given import Given, write_given
from semisup.data.watch import watching
from semisup.engine import ranks
from semisup.errors import SemisupError, raise_all
from semisup.files import parent_of, write_atomically
from semisup.pipeline.console import Reporter
from semisup.pipeline.execute import LOCK, STORE, execute, locked, out_problems, trained_again
from semisup.pipeline.page import PAGE, write_page
from semisup.pipeline.page.read import read_run
from semisup.pipeline.plan import Plan, StagePlan, load_checked, make_plan
from semisup.pipeline.result import RunResult, StageResult
from semisup.pipeline.several import check_same_plan, help_to_run, not_shared
from semisup.pipeline.timing import expected_seconds
from semisup.records import RECORD
from semisup.settings import Recipe
from semisup.stages import Artifact, read_artifact, write_json
from semisup.stages.predictor import EXAMPLES
from semisup.stages.training import CHECKPOINT
from semisup.text import command
from semisup.tracking import CURSOR_FILE, EVENTS_FILE, EventLog, MlflowUploader, ending_run, resolve_uri

__all__ = ["git_commit", "run"]

GIVEN = ".semisup/data"
"""Data that were handed over as Python objects, next to the output folders."""
FILES = ("recipe.yaml", "result.json", PAGE, EVENTS_FILE, CURSOR_FILE)
"""What a run writes into its folder, next to the folders of its stages."""
PAGE_SECONDS = 1.0
"""Longest time that a run looks for mistakes to show; `semisup report` takes as long as it needs."""


def run(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    data: Given | None = None,
    out: str | Path | None = None,
    dry_run: bool = False,
    fresh: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Run a recipe from its first unfinished stage to its last.

    Args:
        recipe: a YAML file, the name of a shipped recipe such as "digits/quickstart", a mapping with the keys of such a
            file, or a loaded recipe.
        overrides: `key=value` words, e.g. "stages.pretrain.epochs=10"; they win over the file. Not for a loaded recipe.
        data: arrays, or a torch Dataset (`semisup.data.given.Given`), in place of the recipe's `data.source`; they are
            written once as an .npz file next to the store of the stages, which `recipe.yaml` then names.
        out: folder of the result, default `runs/<recipe name>`. Finished stages are kept next to it, in
            `<parent of out>/.semisup`, and serve every run below that parent.
        dry_run: check everything, print the plan and, unless `quiet`, the expected time; train nothing.
        fresh: run every stage again, even finished ones.
        quiet: print nothing but warnings.

    Raises:
        SemisupError: whatever is wrong with the recipe, its data or its files, before any training.
        NonFiniteLossError: a loss became NaN or infinite.
        Stopped: Ctrl-C; running the same again continues.
    """
    if isinstance(recipe, Recipe) and overrides:
        raise SemisupError("overrides: they are for a recipe's file or name; a loaded recipe is changed in Python")
    with ranks.joined():
        with ranks.agreeing():
            loaded = recipe if isinstance(recipe, Recipe) else load_checked(recipe, overrides, own=data is None)
            raise_all(not_shared(loaded, ranks.size()), f"{ranks.size()} processes")
        if loaded.threads is not None:
            torch.set_num_threads(loaded.threads)
        folder = Path(out) if out is not None else Path("runs") / loaded.name
        reporter = Reporter(quiet=quiet or ranks.rank() > 0)
        return _run(loaded, data, folder, reporter, timed=dry_run and not quiet, dry_run=dry_run, fresh=fresh)


def _run(
    loaded: Recipe, data: Given | None, folder: Path, reporter: Reporter, *, timed: bool, dry_run: bool, fresh: bool
) -> RunResult:
    store = parent_of(folder) / STORE
    with ranks.agreeing():
        raise_all(out_problems(folder, FILES, loaded.stages, loaded.data), "out")
        if data is not None:
            loaded = _with_given(loaded, data, folder)
        plan = make_plan(loaded, watch=watching(reporter.console))
        raise_all(trained_again(plan) if ranks.size() > 1 else [], f"{ranks.size()} processes")
    with ranks.agreeing():
        check_same_plan(plan)
    if ranks.rank() == 0:
        _warn(plan, reporter)
    homes = {stage.name: store / stage.fingerprint for stage in plan.stages}
    reused = set() if fresh else {name for name, home in homes.items() if (home / RECORD).exists()}
    reporter.show_plan(plan, reused)
    result = RunResult(loaded.name, loaded.seed, __version__, str(plan.device), _data_facts(plan))
    if dry_run:
        if timed:  # by all ranks, of which one speaks
            reporter.show_expected(expected_seconds(plan, reused))
        return result
    if ranks.rank() > 0:
        help_to_run(plan, homes)
        return result
    waiting = f"{folder}: another process is running in this folder; waiting for it"
    with locked(folder, lambda: reporter.say(waiting)):
        if _has_other_results(folder, plan):
            reporter.warn(
                f"{folder}: the results of another recipe, or of other data, are replaced; their stages are kept in "
                f"{store}, and that recipe shows them again, e.g. in a folder next to this one (out)"
            )
        write_atomically(folder / "recipe.yaml", to_yaml(loaded).encode())
        result = dataclasses.replace(result, out=folder)
        with _tracked(plan, folder, reporter) as log:
            artifacts: dict[str, Artifact] = {}
            for stage in plan.stages:
                artifact, status = _run_stage(plan, stage, homes[stage.name], artifacts, reporter, log, fresh=fresh)
                artifacts[stage.name] = artifact
                artifact.link_into(folder / stage.name)
                result.stages.append(StageResult.of(artifact, status))
                reporter.stage_done(result.stages[-1])
                _log_artifact(log, stage, artifact, folder / stage.name, status)
            write_json(folder / "result.json", result.to_json())
            _log_result(log, plan, result, folder)
            log.artifact(None, write_page(folder, plan.data, plan.budget, PAGE_SECONDS), "")
    reporter.show_result(result)
    for note in plan.data.notes:  # once more: the first time was long ago
        reporter.say(f"data: {note}")
    reporter.say(f"results: {folder / 'result.json'}, {folder / PAGE}")
    return result


def _data_facts(plan: Plan) -> dict[str, Any]:
    """Return what `result.json` says of the data."""
    return {
        "source": plan.recipe.data.source,
        "hash": plan.data.hash,
        "n_train": len(plan.data.x_train),
        "n_labeled": len(plan.budget.index),
        "n_validation": len(plan.data.validation(plan.budget.validation)[1]),
        "n_test": len(plan.data.x_test),
        "split_hash": plan.budget.hash,
        "class_ratio": class_ratio(plan.budget, plan.data.y_test),
        "notes": list(plan.data.notes),
    }


def _has_other_results(folder: Path, plan: Plan) -> bool:
    """Return whether a finished run is shown in a folder whose stages are not those of the plan."""
    if not (folder / "result.json").exists():
        return False
    try:
        result, _ = read_run(folder)
    except SemisupError:  # damaged, or of another version: not this run's either
        return True
    shown = [(stage["name"], stage["fingerprint"]) for stage in result["stages"]]
    return shown != [(stage.name, stage.fingerprint) for stage in plan.stages]


def _warn(plan: Plan, reporter: Reporter) -> None:
    for note in plan.data.notes:
        reporter.warn(note)
    for stage in plan.stages:
        for note in stage.notes:
            reporter.warn(f"stages.{stage.name}.{note}")


def _with_given(recipe: Recipe, data: Given, folder: Path) -> Recipe:
    """Write data next to the store of the stages, and return a recipe that reads them."""
    file = write_given(data, parent_of(folder) / GIVEN, recipe.data.size)
    source = {"source": "npz", "path": str(file.absolute()), "csv": None, "channels": None, "cache": None}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=source)})


def _run_stage(
    plan: Plan,
    stage: StagePlan,
    home: Path,
    finished: dict[str, Artifact],
    reporter: Reporter,
    log: EventLog,
    *,
    fresh: bool,
) -> tuple[Artifact, str]:
    """Reuse, resume or run one stage in its home folder."""
    waiting = f"{stage.name}: another process is running this stage; waiting for it"
    with locked(home, lambda: reporter.say(waiting)):
        if fresh:
            for path in home.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()
        log.stage_start(
            stage.name,
            stage.config.model_dump() | _described(stage),
            {"fingerprint": stage.fingerprint, "data_hash": plan.data.hash, "split_hash": plan.budget.hash},
        )
        if read_artifact(home) is not None:
            return execute(plan, stage, home, finished)
        with reporter.progress(stage, resumes=(home / CHECKPOINT).exists()) as bar:

            def on_log(step: int, values: dict[str, float]) -> None:
                bar.update(step, values)
                log.metrics(stage.name, step, values)

            return execute(plan, stage, home, finished, on_log, reporter.say)


def _described(stage: StagePlan) -> dict[str, object]:
    """Return what the tracker is told of a planned stage besides its settings."""
    said = {"pretrained_weights": stage.weights, "trained": stage.tuning}
    return {"parameters": stage.parameters, "steps": stage.steps} | {k: v for k, v in said.items() if v is not None}


@contextmanager
def _tracked(plan: Plan, folder: Path, reporter: Reporter) -> Iterator[EventLog]:
    """Open the run's event log and, if the recipe wants it, its upload to MLflow in the background."""
    recipe = plan.recipe
    log = EventLog(folder)
    uploader = None
    if recipe.tracking.mlflow:
        uploader = MlflowUploader(folder, resolve_uri(parent_of(folder)), recipe.tracking.experiment, reporter.warn)
    tags = {"data_hash": plan.data.hash, "split_hash": plan.budget.hash, "semisup_version": __version__}
    commit = git_commit()
    if commit is not None:
        tags["git_commit"] = commit
    params = recipe.model_dump()
    del params["stages"]  # each stage's run has its own
    log.run_start(recipe.name, params, tags)
    log.artifact(None, folder / "recipe.yaml", "")
    _log_data(log, plan)

    def on_closed(delivered: bool) -> None:
        if delivered and uploader is not None:
            reporter.say(f"tracked: {uploader.uri}, experiment '{recipe.tracking.experiment}'")
        else:
            again = command("semisup", "track", folder)
            reporter.warn(f"some metrics have not reached MLflow; send them with: {again}")

    with ending_run(log, uploader, on_closed):
        yield log


def _log_artifact(log: EventLog, stage: StagePlan, artifact: Artifact, folder: Path, status: str) -> None:
    """Send a finished stage's numbers, figures and model to the tracker."""
    name = stage.name
    # What the last step said is in the log already.
    numbers = {
        key: value
        for key, value in artifact.metrics.items()
        if isinstance(value, int | float) and not key.startswith("train/")
    }
    log.artifact(name, folder / RECORD, "")
    for figure in sorted(file for file in artifact.record["files"] if file.endswith(".png")):
        log.artifact(name, folder / figure, "")
    if stage.network is not None and stage.network.kind == "classifier":
        log.model(name, folder, folder / EXAMPLES, stage.network.spec.num_classes)
    log.stage_end(name, status, numbers)


def _log_data(log: EventLog, plan: Plan) -> None:
    """Tell the tracker what the run reads, by split; no path is among it."""
    data, budget = plan.data, plan.budget
    draw: dict[str, str | int] = {"split_hash": budget.hash, "labels": len(budget.index)}
    validation = len(data.validation(budget.validation)[1])
    log.dataset(None, data.name, "training", data.hash, len(data.x_train), draw)
    if validation:
        log.dataset(None, data.name, "validation", data.hash, validation, {"split_hash": budget.hash})
    if len(data.x_test):
        log.dataset(None, data.name, "test", data.hash, len(data.x_test), {})


def _log_result(log: EventLog, plan: Plan, result: RunResult, folder: Path) -> None:
    """Send the run's result to the tracker: the last stage's first numbers, and its model."""
    log.artifact(None, folder / "result.json", "")
    if result.final is None:
        return
    numbers = {name: value for name, value in result.final.headline().items() if value is not None}
    log.metrics(None, 0, numbers)
    network = plan.stages[-1].network
    if network is not None and network.kind == "classifier":
        log.final_model(result.final.name)


def git_commit() -> str | None:
    """Commit of the working folder, if it is a git checkout."""
    git = shutil.which("git")
    if git is None:
        return None
    words = [git, "rev-parse", "HEAD"]  # nothing of a user's in it
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # nosec B603
    return done.stdout.strip() if done.returncode == 0 else None

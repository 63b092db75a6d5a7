"""One planned stage in its home folder: reused, resumed or run, by one process at a time or by all ranks of one run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from semisup.data import ImageData, LabelBudget
from semisup.data.addresses import is_address
from semisup.data.listing import part_with
from semisup.engine import CollapseError, NonFiniteLossError, keep_memory, ranks, release_memory
from semisup.engine.deterministic import deterministic
from semisup.errors import SemisupError
from semisup.files import LOCK, at_home, folder_problems, folders_in_the_way, locked, parent_of
from semisup.pipeline.plan import Plan, StagePlan
from semisup.settings import DataConfig
from semisup.stages import Artifact, StageContext, read_artifact
from semisup.stages.choice import all_below
from semisup.stages.kinds import kind_of
from semisup.stages.training import help_to_train

__all__ = [
    "LOCK",
    "STORE",
    "again",
    "execute",
    "help_to_execute",
    "locked",
    "out_problems",
    "run_again",
    "stage_context",
    "trained_again",
]

STORE = ".semisup/stages"
"""Finished and unfinished stages by fingerprint, next to the output folders: every run below one folder shares it."""
SUFFIXES = (".json", ".npy", ".png", ".safetensors")
"""What the names of the files of a stage end in."""
ALONE, TOGETHER, DONE = range(3)
"""What rank 0 tells of a stage: it needs no help, it does, it is finished."""


def execute(
    plan: Plan,
    stage: StagePlan,
    home: Path,
    finished: Mapping[str, Artifact],
    on_log: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Artifact, str]:
    """Return the finished stage, and whether it was "reused", "resumed" or "trained".

    Args:
        plan: of the recipe.
        stage: one of its stages.
        home: the stage's folder, named by its fingerprint, which the caller has `locked`.
        finished: artifacts of the stages that it reads, by name.
        on_log: gets finished steps and the means of the logged terms.
        say: gets lines of what a long stage without steps does.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite; the message names the stage.
        CollapseError: its embeddings have collapsed, and the stage has `stop_on_collapse`; likewise.
        Stopped: Ctrl-C; running the same again continues.
    """
    artifact = read_artifact(home)
    ranks.tell(TOGETHER if artifact is None and stage.config.kind == "train" else ALONE)
    if artifact is not None:
        ranks.tell(DONE)
        return artifact, "reused"
    keep_memory()
    context = stage_context(plan, stage, home, finished, on_log)
    context = replace(context, say=say, again=partial(again, plan, context))
    try:
        with deterministic(plan.recipe.deterministic):
            artifact, resumed_from = kind_of(stage.config.kind).run(context)
    except (NonFiniteLossError, CollapseError) as error:
        raise type(error)(f"stages.{stage.name}: {error}") from error
    release_memory(plan.device)
    ranks.tell(DONE)
    return artifact, "trained" if resumed_from is None else "resumed"


def help_to_execute(plan: Plan, stage: StagePlan, home: Path, finished: Mapping[str, Artifact]) -> Artifact:
    """Take this rank's part in a stage that rank 0 executes, and return it when it is finished.

    Raises:
        SemisupError: this rank does not see the folder that rank 0 has written to.
    """
    if ranks.hear() == TOGETHER:
        keep_memory()
        with deterministic(plan.recipe.deterministic):
            help_to_train(stage_context(plan, stage, home, finished))
        release_memory(plan.device)
    ranks.hear()
    artifact = read_artifact(home)
    if artifact is None:
        raise SemisupError(f"{home}: rank {ranks.rank()} does not see what rank 0 wrote; all hosts must share --out")
    return artifact


def out_problems(folder: Path, files: Iterable[str], stages: Iterable[str], data: DataConfig) -> list[str]:
    """Return why a run, or a suite, cannot have its results in a folder.

    Args:
        folder: of the results.
        files: names of those that are written into it.
        stages: names of those that are shown in it.
        data: that are read.
    """
    of_stages = [folder / name for name in stages]
    shown = [folder, *of_stages]
    problems = _among_images(shown, data) or folder_problems([folder, parent_of(folder) / STORE, *shown])
    return problems or _names_taken([folder / name for name in files], of_stages)


def _among_images(folders: Sequence[Path], data: DataConfig) -> list[str]:
    """Why these folders would be read as images the next time."""
    if data.source != "folder" or data.path is None or data.csv is not None or is_address(data.path):
        return []
    parts = {folder: part_with(folder, at_home(data.path, "data.path")) for folder in folders}
    problems = [
        f"{folder} lies in '{part}' of the images {data.path}, and would be read as data; name another"
        for folder, part in parts.items()
        if part is not None
    ]
    return problems[:1]


def _names_taken(files: Sequence[Path], stages: Iterable[Path]) -> list[str]:
    """Which files could not be written because folders have their names, found out before anything is trained.

    Of a stage it is not known before which files it leaves, but what their names end in.
    """
    there = [path for stage in stages if stage.is_dir() for path in sorted(stage.iterdir())]
    return folders_in_the_way([*files, *(path for path in there if path.suffix in SUFFIXES)])


def stage_context(
    plan: Plan,
    stage: StagePlan,
    home: Path,
    finished: Mapping[str, Artifact],
    on_log: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> StageContext:
    """Return what a planned stage is run with.

    Args:
        plan: that it is part of.
        stage: itself.
        home: its folder.
        finished: the stages that it reads, by name.
        on_log: gets the step and the logged values.
    """
    return StageContext(
        name=stage.name,
        config=stage.config,
        recipe=plan.recipe,
        data=plan.data,
        budget=plan.budget,
        inputs={name: finished[name] for name in stage.inputs},
        steps=stage.steps,
        folder=home,
        network=stage.network,
        device=plan.device,
        precision=plan.precision,
        statistics=plan.statistics,
        on_log=on_log,
    )


def trained_again(plan: Plan) -> list[str]:
    """Return which stages of a plan are trained again to choose, which one process alone does; one sentence each."""
    return [
        f"stages.{asking.name}: trains '{stage.name}' again to choose, which one process alone does; run it on one"
        for asking in plan.stages
        for stage in run_again(plan, asking.trials[1])
        if stage.config.kind == "train"
    ]


def again(plan: Plan, asking: StageContext, name: str, budget: LabelBudget, folder: Path) -> StageContext:
    """Run a stage of a plan, and what it reads that has read labels, with other labels; see `StageContext.again`."""
    inputs = dict(asking.inputs)
    context = replace(asking, budget=budget, data=_without_test(asking.data), on_log=lambda step, values: None)
    for stage in run_again(plan, [name]):
        home = folder / stage.name
        home.mkdir(parents=True, exist_ok=True)
        one = replace(
            context,
            name=stage.name,
            config=stage.config,
            inputs={needed: inputs[needed] for needed in stage.inputs},
            steps=stage.steps,
            folder=home,
            network=stage.network,
        )
        inputs[stage.name] = read_artifact(home) or kind_of(stage.config.kind).run(one)[0]
    return replace(context, inputs=inputs)


def run_again(plan: Plan, names: Collection[str]) -> list[StagePlan]:
    """Return what is run again for some stages with other labels: these and all below, but what reads no labels.

    Args:
        plan: that they are of.
        names: of the stages.
    """
    stages = {stage.name: stage for stage in plan.stages}
    wanted = {below for name in names for below in (name, *all_below(stages, name))}
    return [stage for stage in plan.stages if stage.name in wanted and _reads_labels(stages, stage.name)]


def _reads_labels(stages: Mapping[str, StagePlan], name: str) -> bool:
    return any(stages[below].reads_labels for below in (name, *all_below(stages, name)))


def _without_test(data: ImageData) -> ImageData:
    return replace(data, x_test=data.x_test[:0], y_test=data.y_test[:0])

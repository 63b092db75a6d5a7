"""How long one training step takes, measured by itself: for expected times and for runs of equal seconds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection

import torch

from semisup.augment import Normalize
from semisup.engine import Batches, FitSettings, compile_backbones, fit, keep_memory, ranks
from semisup.methods import Method
from semisup.models import stage_decay
from semisup.pipeline.execute import run_again
from semisup.pipeline.plan import Plan, StagePlan
from semisup.stages.auto_views import choosing_steps, steps_within
from semisup.stages.networks import build_method
from semisup.stages.targets import training_images
from semisup.stages.tuning import tune
from semisup.stages.views import stage_batches

__all__ = [
    "all_steps",
    "expected_seconds",
    "fresh_method",
    "is_busy",
    "own_steps",
    "seconds_and_load",
    "stage_seconds",
    "step_seconds",
]

WARM_UP, STEPS, REPEATS = 2, 3, 3
SITTINGS = 3
"""Most that are made of a measurement, one after the other, while other programs disturb it."""


def fresh_method(plan: Plan, stage: StagePlan) -> tuple[Method, Batches]:
    """Return a train stage's method and batches, with fresh networks and labels where it would read other stages'.

    Args:
        plan: of the recipe, with data and device.
        stage: one of its train stages.
    """
    data, config = plan.data, stage.training
    assert stage.network is not None
    networks = {other.name: other.network for other in plan.stages if other.network is not None}
    teachers = [networks[name].build_classifier().to(plan.device).eval() for name in config.teacher]
    method = build_method(
        config,
        stage.network.spec,
        teachers,
        num_images=len(data.x_train),
        num_labeled=len(plan.budget.index),
        statistics=plan.statistics,
        pretrained=False,
    )
    tune(method, config, stage.name)
    method = method.to(plan.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if plan.recipe.compile:
        compile_backbones(method)
    images = training_images(data, plan.budget, None)
    if config.pseudo_labels is not None:
        uniform = torch.full((len(data.x_train), data.num_classes), 1 / data.num_classes)
        images = dataclasses.replace(images, targets=uniform)
    return method, stage_batches(
        config,
        method,
        images,
        flip=data.flip,
        normalize=Normalize(*plan.statistics),
        device=plan.device,
        key=("timing",),
    )


def step_seconds(plan: Plan, stage: StagePlan, *, warm_up: int = WARM_UP) -> float:
    """Seconds of one step of a train stage, with freshly initialized networks in place of those it would start from.

    The least of three stretches of three steps after two to warm up: what another process takes away from one stretch
    is not the step's. A step of more than a second is measured once more, as the first ones of a process take seconds
    to start threads and to load kernels, and by that alone if it takes as long again. Several ranks measure together.

    Args:
        plan: of the recipe, with data and device.
        stage: one of its train stages.
        warm_up: steps that come first.
    """
    config = stage.training
    if plan.recipe.threads is not None:
        torch.set_num_threads(plan.recipe.threads)
    keep_memory()
    method, batches = fresh_method(plan, stage)
    still = config.optimizer.model_copy(update={"lr": 1e-9, "group_lr": {}})  # a recipe that diverges takes as long

    def stretch(steps: int) -> float:
        result = fit(
            method,
            batches,
            FitSettings(
                steps=steps,
                optimizer=still,
                schedule=config.schedule,
                ema=stage_decay(config.ema, stage.steps),
                device=plan.device,
                precision=plan.precision,
                accumulate=config.gradient_accumulation,
                sync_batchnorm=plan.recipe.sync_batchnorm,
            ),
        )
        return result.seconds / steps

    slow = ranks.any_rank(stretch(warm_up) > 1) and not plan.recipe.compile
    if slow:
        seconds = stretch(1)
        if ranks.any_rank(seconds > 1):
            return seconds
    return min(stretch(STEPS) for _ in range(REPEATS))


def is_busy(load: float, threads: int) -> bool:
    """Return whether other programs left fewer cores than a run's threads need.

    Args:
        load: cores that they kept busy, on average.
        threads: of a run.
    """
    import psutil

    return load > (psutil.cpu_count() or 1) - threads + 0.25


def seconds_and_load(plan: Plan, stage: StagePlan) -> tuple[float, float]:
    """Return `step_seconds`, and the cores that other programs kept busy meanwhile, on average.

    Measured again, at most three times in all, while they disturb it; the least disturbed sitting counts.

    Args:
        plan: of the recipe, with data and device.
        stage: one of its train stages.
    """
    threads = plan.recipe.threads or torch.get_num_threads()
    found: list[tuple[float, float]] = []
    for _ in range(SITTINGS):
        work, own, begun = _machine_seconds(), time.process_time(), time.perf_counter()
        seconds = step_seconds(plan, stage)
        passed = time.perf_counter() - begun
        others = _machine_seconds() - work - (time.process_time() - own)
        found.append((max(0.0, others / passed), seconds))
        if not is_busy(found[-1][0], threads):
            break
    load, seconds = min(found)
    return seconds, load


def _machine_seconds() -> float:
    """Processor seconds that all programs of this machine have had since it started."""
    import psutil

    times = psutil.cpu_times()
    return float(times.user + times.system + getattr(times, "nice", 0.0))


def expected_seconds(plan: Plan, done: Collection[str]) -> dict[str, float]:
    """Measure how long the training of every stage will take on this machine, as busy as it is now.

    The short trainings of `augment: auto` are in it, by the part of a step's images that are labeled, and so are those
    of `vote: best`. Evaluation, and what else stages do that do not train, come on top of it.

    Args:
        plan: of the recipe.
        done: stages that are finished already.
    """
    each: dict[str, float] = {}

    def measured(stage: StagePlan) -> float:
        if stage.name not in each:
            each[stage.name] = step_seconds(plan, stage, warm_up=1)
        return each[stage.name]

    left = [stage for stage in plan.stages if stage.name not in done]
    times = {stage.name: stage_seconds(plan, stage, measured) for stage in left}
    return {name: seconds for name, seconds in times.items() if seconds}


def stage_seconds(plan: Plan, stage: StagePlan, each: Callable[[StagePlan], float]) -> float:
    """Return how long a stage's steps take, and those of what it trains again to choose.

    Args:
        plan: of the recipe.
        stage: one of its stages.
        each: seconds of one step of a train stage.
    """

    def once(one: StagePlan) -> float:
        return all_steps(one, one.steps) * each(one) if one.steps else 0.0

    rounds, names = stage.trials
    return once(stage) + rounds * sum(once(one) for one in run_again(plan, names))


def all_steps(stage: StagePlan, steps: float) -> float:
    """Return a train stage's steps, with the short trainings of `augment: auto` before them as so many of its own.

    Args:
        stage: planned.
        steps: that it has itself.
    """
    return steps + choosing_steps(stage, steps) * _short_share(stage)


def own_steps(stage: StagePlan, steps: float) -> float:
    """Return the steps that a train stage has itself, if there are so many by `all_steps`."""
    return steps_within(stage, steps, _short_share(stage))


def _short_share(stage: StagePlan) -> float:
    """Return what part of a step's time one of the short trainings takes: that of its images that are labeled."""
    return stage.training.batch.labeled / stage.images_per_step

"""What a training step costs beside the bare limit, the forward and backward of its own network (see `bare.py`).

    python benchmarks/throughput.py              # writes benchmarks/results/throughput.json and .md
    python benchmarks/throughput.py --quick      # fewer steps, today's ratios beside the committed ones; writes nothing

The step is that of `semisup run`: the stage of a shipped recipe goes through the engine's own loop, with gathering and
augmentation of the images, optimizer, averages, hidden-label judge, event log and checkpoints. Between any two of its
steps a bare one is made, A B A B ..., in one process on the same threads. The ratio is that of the sums over a block of
steps, one of which reports (as in a recipe with `log_every` of that many steps); given are the median over the blocks and
its 95% interval. The images are random, of the size and number of Fashion-MNIST (28x28 gray) or CIFAR-10 (32x32 colour).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from bare import Bare, Recorder
from paired import Ratio, compare
from rich.console import Console
from rich.table import Table
from torch import Tensor

from semisup.augment.ctaugment import CTAugmentProbe
from semisup.bench.timing import fresh_method
from semisup.bench.work import machine
from semisup.config import load_recipe, shipped_recipes
from semisup.data import ImageData
from semisup.engine import Batches
from semisup.methods import METHODS, Batch, Method
from semisup.pipeline.plan import Plan, StagePlan, make_plan
from semisup.stages import StageContext
from semisup.stages.train import fit_stage
from semisup.tracking import EventLog

RESULTS = Path(__file__).parent / "results"
GOAL, VIEW_GOAL = 1.10, 0.05
"""Most that a step may cost of the bare limit, and the making of a strong view of the step."""
SMALL, LARGE = (28, 1, 60_000), (32, 3, 50_000)
"""Side, channels and number of images: Fashion-MNIST's and CIFAR-10's."""


@dataclass(frozen=True)
class Case:
    """A stage to measure."""

    name: str
    recipe: str
    stage: str
    images: tuple[int, int, int] = SMALL
    overrides: tuple[str, ...] = ()
    block: int = 20
    """Steps in a block, the first of which is watched instead of measured."""
    goal: float | None = None


WRN_10_1, WRN_28_2 = "model={name: wrn, depth: 10, width: 1}", "model={name: wrn, depth: 28, width: 2}"
NAMED = [
    Case("fixmatch WRN-10-1 28x28x1", "fashion_mnist/fixmatch", "train", SMALL, (WRN_10_1,), 20, GOAL),
    Case("fixmatch WRN-10-1 32x32x3", "fashion_mnist/fixmatch", "train", LARGE, (WRN_10_1,), 20, GOAL),
    Case("fixmatch WRN-28-2 28x28x1", "fashion_mnist/fixmatch", "train", SMALL, (WRN_28_2,), 6, GOAL),
    Case("fixmatch WRN-28-2 32x32x3", "fashion_mnist/fixmatch", "train", LARGE, (WRN_28_2,), 6, GOAL),
    Case("simclr WRN-10-1 28x28x1", "fashion_mnist/simclr", "pretrain", SMALL, (WRN_10_1,), 20, GOAL),
    Case("simclr WRN-10-1 32x32x3", "fashion_mnist/simclr", "pretrain", LARGE, (WRN_10_1,), 20, GOAL),
    Case("mean_teacher WRN-10-1 28x28x1", "fashion_mnist/mean_teacher", "train", SMALL, (WRN_10_1,), 20, GOAL),
    Case("mean_teacher WRN-28-2 32x32x3", "fashion_mnist/mean_teacher", "train", LARGE, (WRN_28_2,), 6, GOAL),
]
"""Those with a goal, at B = 16, mu = 7, and B = 256 for SimCLR."""


def other_cases() -> list[Case]:
    """The stage of every other method in its Fashion-MNIST recipe, without a goal."""
    done = {case.name.split()[0] for case in NAMED}
    cases = []
    for name in METHODS:
        recipe = f"fashion_mnist/{name}"
        if name in done or recipe not in shipped_recipes():
            continue
        stages = load_recipe(recipe, []).stages
        stage = next((key for key, stage in stages.items() if stage.method.get("name") == name), None)
        if stage is not None:
            cases.append(Case(f"{name} 28x28x1", recipe, stage))
    return cases


@dataclass
class Block:
    """Seconds of the steps of a block, the first left out, and of the bare steps made before each."""

    step: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)
    """Of the step, what went into its batch: reading, augmenting, normalising."""
    views: dict[str, list[float]] = field(default_factory=dict)
    """Of that, the augmentation of each view."""

    def share(self, seconds: Sequence[float]) -> float:
        """What part of the steps these seconds are."""
        return sum(seconds) / sum(self.step)


class InTurn:
    """A stage's batches for the engine's loop, which makes a bare step and looks at the clock before each of them.

    Args:
        batches: the stage's own; their policies are timed from here on.
        method: what the loop trains.
        bare: makes the bare step.
        block: steps in a block, the first of which is watched.
        clock: seconds.
    """

    def __init__(
        self,
        batches: Batches,
        method: Method,
        bare: Bare,
        block: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.batches = batches
        self.recorder = Recorder(method)
        self.bare = bare
        self.block = block
        self.clock = clock
        self.blocks: list[Block] = []
        self.images_per_step = batches.images_per_step
        self._begun: float | None = None
        for part, policies in (("labeled", batches.labeled_policies), ("unlabeled", batches.unlabeled_policies)):
            for view, policy in policies.items():
                if not isinstance(policy, CTAugmentProbe):  # the batches know it by its type
                    policies[view] = self._timed(f"{part} {view}", policy)

    def _timed(self, name: str, policy: Callable[[Tensor, torch.Generator], Tensor]) -> Any:
        def timed(images: Tensor, generator: torch.Generator) -> Tensor:
            begun = self.clock()
            view = policy(images, generator)
            if self._begun is not None:
                self.blocks[-1].views.setdefault(name, []).append(self.clock() - begun)
            return view

        return timed

    def __call__(self, step: int) -> Batch:
        """Close the books of the step before, make a bare one, and hand over the batch."""
        now, place = self.clock(), step % self.block
        if self._begun is not None:
            self.blocks[-1].step.append(now - self._begun)
        self._begun = None
        if place == 0:
            self.blocks.append(Block())
            self.recorder.start()
            return self.batches(step)
        if place == 1:
            self.bare.load(self.recorder.stop())
            self.bare()  # warm
        block, begun = self.blocks[-1], self.clock()
        self.bare()
        block.bare.append(self.clock() - begun)
        self._begun = self.clock()
        batch = self.batches(step)
        block.batch.append(self.clock() - self._begun)
        return batch


@dataclass(frozen=True)
class Measured:
    """What a case came to."""

    name: str
    goal: float | None
    ratio: Ratio
    """Step over bare step."""
    step_ms: float
    bare_ms: float
    batch: float
    """Part of the step that its batch took, 0 to 1."""
    view: float
    """Part of the step that the dearest view's augmentation took."""

    def to_json(self) -> dict[str, Any]:
        """Ratios alone: absolute times are of one machine and hour."""
        ratio = dataclasses.asdict(self.ratio)
        return {"goal": self.goal, **{key: round(value, 3) for key, value in ratio.items()}, "batch": round(self.batch, 3), "view": round(self.view, 3)}


def random_data(side: int, channels: int, count: int) -> ImageData:
    """Images of soft random spots, ten classes, a hundred of them for the test."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, side // 4, side // 4, channels), dtype=np.uint8)
    images = coarse.repeat(4, axis=1).repeat(4, axis=2)
    y = np.arange(count) % 10
    return ImageData("random", images, y, images[:100], y[:100], [str(k) for k in range(10)], flip=True)


def measure(case: Case, blocks: int) -> Measured:
    """Run a case's stage for one block to warm up and so many to measure."""
    steps = case.block * (blocks + 1) + 1  # only the next step's begin ends a step
    words = [*case.overrides, f"stages.{case.stage}.steps={steps}", f"log_every={case.block}", "tracking={mlflow: false}"]
    recipe = load_recipe(case.recipe, words)
    plan = make_plan(recipe, random_data(*case.images), trial=False)
    stage = next(stage for stage in plan.stages if stage.name == case.stage)
    with tempfile.TemporaryDirectory() as folder:
        log = EventLog(Path(folder))
        log.stage_start(stage.name, {}, {})
        context = stage_context(plan, stage, Path(folder), log)
        method, batches = fresh_method(plan, stage)
        in_turn = InTurn(batches, method, Bare(method, plan.device, plan.precision), case.block, clock_of(plan.device))
        fit_stage(context, method, in_turn)  # type: ignore[arg-type]
    return summary(case, in_turn.blocks[1 : 1 + blocks])


def stage_context(plan: Plan, stage: StagePlan, folder: Path, log: EventLog) -> StageContext:
    """What the pipeline gives a stage, without the stages it reads."""
    return StageContext(
        name=stage.name,
        config=stage.config,
        recipe=plan.recipe,
        data=plan.data,
        budget=plan.budget,
        inputs={},
        steps=stage.steps,
        folder=folder,
        device=plan.device,
        precision=plan.precision,
        statistics=plan.statistics,
        on_log=lambda step, values: log.metrics(stage.name, step, values),
    )


def clock_of(device: torch.device) -> Callable[[], float]:
    """A clock that waits for the device first."""
    if device.type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def summary(case: Case, blocks: Sequence[Block]) -> Measured:
    """The medians over a case's blocks."""
    views = {name: median(block.share(block.views[name]) for block in blocks) for name in blocks[0].views}
    return Measured(
        case.name,
        case.goal,
        compare([block.step for block in blocks], [block.bare for block in blocks]),
        1000 * median(seconds for block in blocks for seconds in block.step),
        1000 * median(seconds for block in blocks for seconds in block.bare),
        median(block.share(block.batch) for block in blocks),
        max(views.values(), default=0.0),
    )


def main() -> None:
    """Measure and print; write unless asked to be quick."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    arguments = parser.parse_args()
    for case in [*NAMED, *other_cases()]:
        if arguments.only in case.name:
            print(measure(case, arguments.blocks), os.getloadavg(), flush=True)


if __name__ == "__main__":
    main()

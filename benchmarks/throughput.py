"""What a training step costs next to the bare limit, the forward and backward of its own network (see `bare.py`).

    python benchmarks/throughput.py              # writes benchmarks/results/throughput.json and .md
    python benchmarks/throughput.py --only swav  # the cases with this in their name; the others' results stay
    python benchmarks/throughput.py --quick      # fewer steps, today's ratios next to the committed; writes nothing
    python benchmarks/throughput.py --busy       # by processor time, on one thread: where a machine does other work too
    python benchmarks/throughput.py --to NAME    # into benchmarks/results/NAME.*: of another machine, see gpu.sh
    python benchmarks/throughput.py --compile    # what `compile: true` brings; benchmarks/results/compiled.json and .md

The step is that of `semisup run`: the stage of a shipped recipe goes through the engine's own loop, with gathering and
augmentation of the images, optimizer, averages, evaluation by hidden labels, event log and checkpoints. Between any two
of its steps a bare one is made, A B A B ..., in one process on the same threads. The ratio is that of the sums over a
block of steps, one of which reports (as in a recipe with `log_every` of that many steps); given are the median over the
blocks and its 95% interval. The images are random, of the size and number of Fashion-MNIST (28x28 gray) or CIFAR-10
(32x32 color).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from bare import Bare, Call, Recorder
from paired import Ratio, compare
from speed_results import circumstances, committed, show, write, write_cases
from torch import Tensor

from semisup.augment.policies.backend import HostFirst
from semisup.augment.policies.ctaugment import CTAugmentProbe
from semisup.augment.policies.policy import Augmentation, Part
from semisup.config import load_recipe, shipped_recipes
from semisup.data import ImageData
from semisup.engine import Batches, compile_backbones, keep_memory
from semisup.methods import METHODS, Batch, Method
from semisup.pipeline.plan import Plan, StagePlan, make_plan
from semisup.pipeline.timing import fresh_method
from semisup.settings import TrainConfig
from semisup.stages import StageContext
from semisup.stages.training import fit_stage
from semisup.text import percent
from semisup.tracking import EventLog

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
    """Return the stage of every other method in its Fashion-MNIST recipe, without a goal."""
    done = {case.name.split()[0] for case in NAMED}
    cases = []
    for name in METHODS:
        recipe = f"fashion_mnist/{name}"
        if name in done or recipe not in shipped_recipes():
            continue
        stages = load_recipe(recipe, []).stages
        trained = {key: stage.method["name"] for key, stage in stages.items() if isinstance(stage, TrainConfig)}
        stage = next((key for key, method in trained.items() if method == name), None)
        if stage is not None:
            cases.append(Case(f"{name} 28x28x1", recipe, stage))
    return cases


@dataclass
class Block:
    """Seconds of the steps of a block, the first left out, and of the bare steps made before each."""

    step: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)
    """Of the step, what went into its batch: reading, augmenting, normalizing."""
    views: dict[str, list[float]] = field(default_factory=dict)
    """Of that, the augmentation of each view."""

    def share(self, seconds: Sequence[float]) -> float:
        """Return what part of the steps these seconds are."""
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
                if not isinstance(policy, CTAugmentProbe | HostFirst):  # the batches know these by their types
                    policies[view] = self._timed(f"{part} {view}", policy)

    def _timed(self, name: str, policy: Augmentation) -> Any:
        def timed(images: Tensor, generator: torch.Generator, *, part: Part | None = None) -> Tensor:
            begun = self.clock()
            view = policy(images, generator, part=part)
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

    ratio: Ratio
    """Step over bare step."""
    step_ms: float
    bare_ms: float
    batch: float
    """Part of the step that its batch took, 0 to 1."""
    view: float
    """Part of the step that the augmentation of its dearest view took."""

    def to_json(self) -> dict[str, float]:
        """Ratios alone: times are of one machine and hour."""
        found = {**dataclasses.asdict(self.ratio), "batch": self.batch, "view": self.view}
        return {key: round(value, 3) for key, value in found.items()}


def random_data(side: int, channels: int, count: int) -> ImageData:
    """Images of soft random spots, ten classes, a hundred of them for the test."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, side // 4, side // 4, channels), dtype=np.uint8)
    images = coarse.repeat(4, axis=1).repeat(4, axis=2)
    y = np.arange(count) % 10
    return ImageData("random", images, y, images[:100], y[:100], [str(k) for k in range(10)], flip=True)


def planned(case: Case, steps: int) -> tuple[Plan, StagePlan]:
    """Return a case's recipe on random images, and its stage, so many steps long."""
    words = [*case.overrides, f"stages.{case.stage}.steps={steps}", f"log_every={case.block}"]
    plan = make_plan(load_recipe(case.recipe, words), random_data(*case.images), trial=False)
    return plan, next(stage for stage in plan.stages if stage.name == case.stage)


@contextmanager
def stage_context(plan: Plan, stage: StagePlan) -> Iterator[StageContext]:
    """Return what the pipeline gives a stage to work with, in a folder of its own; no earlier stages."""
    with tempfile.TemporaryDirectory() as folder:
        log = EventLog(Path(folder))
        log.stage_start(stage.name, {}, {})
        yield StageContext(
            name=stage.name,
            config=stage.config,
            recipe=plan.recipe,
            data=plan.data,
            budget=plan.budget,
            inputs={},
            steps=stage.steps,
            folder=Path(folder),
            network=stage.network,
            device=plan.device,
            precision=plan.precision,
            statistics=plan.statistics,
            on_log=lambda step, values: log.metrics(stage.name, step, values),
        )


def measure(case: Case, blocks: int, *, busy: bool = False) -> Measured:
    """Run a case's stage for one block to warm up and so many to measure; `busy` as in `clock_of`."""
    plan, stage = planned(case, case.block * (blocks + 1) + 1)  # a step ends where the next one begins
    method, batches = fresh_method(plan, stage)
    clock = clock_of(plan.device, busy=busy)
    in_turn = InTurn(batches, method, Bare(method, plan.device, plan.precision), case.block, clock)
    with stage_context(plan, stage) as context:
        fit_stage(context, method, in_turn)
    return summary(in_turn.blocks[1 : 1 + blocks])


def clock_of(device: torch.device, *, busy: bool = False) -> Callable[[], float]:
    """Return a clock that waits for the device first; where the machine is busy, the process's own processor time."""
    if device.type != "cuda":
        return time.process_time if busy else time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def summary(blocks: Sequence[Block]) -> Measured:
    """Return the medians over a case's blocks."""
    views = [median(block.share(block.views[name]) for block in blocks) for name in blocks[0].views]
    return Measured(
        compare([block.step for block in blocks], [block.bare for block in blocks]),
        1000 * median(seconds for block in blocks for seconds in block.step),
        1000 * median(seconds for block in blocks for seconds in block.bare),
        median(block.share(block.batch) for block in blocks),
        max(views, default=0.0),
    )


@dataclass(frozen=True)
class Compiled:
    """What `compile: true` does to a case's bare step, caches empty."""

    ratio: Ratio
    """Eager over compiled."""
    warm_up: float
    """Seconds of the first step beyond what the others take."""
    eager_ms: float
    compiled_ms: float

    @property
    def break_even(self) -> float:
        """Steps after which compiling has cost no time; infinite where it saves none."""
        saved = (self.eager_ms - self.compiled_ms) / 1000
        return self.warm_up / saved if saved > 0 else float("inf")


def measure_compiled(case: Case, steps: int) -> Compiled:
    """Make a case's bare step eagerly and compiled in turn, so many times each."""
    plan, stage = planned(case, 2)
    method, batches = fresh_method(plan, stage)
    recorder = Recorder(method)
    record: list[Call] = []

    class Watched:
        images_per_step = batches.images_per_step

        def __call__(self, step: int) -> Batch:
            if step == 0:
                recorder.start()
            else:
                record.extend(recorder.stop())
            return batches(step)

    with stage_context(plan, stage) as context:
        fit_stage(context, method, Watched())
    clock = clock_of(plan.device)
    eager, compiled = (Bare(method, plan.device, plan.precision) for _ in range(2))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # read when something is compiled
        compile_backbones(compiled.copy)
        for bare in (eager, compiled):
            bare.load(record)
        eager()
        begun = clock()
        compiled()
        first = clock() - begun
        seconds: tuple[list[list[float]], list[list[float]]] = ([], [])
        for _ in range(steps):
            for bare, found in zip((eager, compiled), seconds, strict=True):
                begun = clock()
                bare()
                found.append([clock() - begun])
    eager_s, compiled_s = (median(value for (value,) in found) for found in seconds)
    return Compiled(compare(*seconds), first - compiled_s, 1000 * eager_s, 1000 * compiled_s)


def lines_of(found: dict[str, Measured], goals: dict[str, float | None], before: dict[str, Any]) -> list[list[str]]:
    """Return the lines to print: those of `kept_line`, with times and the committed ratio."""
    kept = [kept_line(name, {"goal": goals[name], **m.to_json()}) for name, m in found.items()]
    return [
        [
            name,
            f"{m.step_ms:.1f}",
            f"{m.bare_ms:.1f}",
            ratio,
            f"{before[name]['median']:.2f}" if name in before else "",
            *rest,
        ]
        for (name, m), (_, ratio, *rest) in zip(found.items(), kept, strict=True)
    ]


def kept_line(name: str, case: dict[str, Any]) -> list[str]:
    """Return the line to keep, of a case's record."""
    return [
        name,
        str(Ratio(case["median"], case["low"], case["high"])),
        "" if case["goal"] is None else f"<= {case['goal']:.2f}",
        percent(case["batch"]),
        percent(case["view"]),
    ]


HEADER = ["step", "ms", "bare ms", "ratio (95%)", "committed", "goal", "batch %", "view %"]
KEPT = [title for title in HEADER if title not in ("ms", "bare ms", "committed")]
COMPILE_HEADER = ["bare step", "eager ms", "compiled ms", "faster (95%)", "warm-up s", "break-even step"]


def run_steps(cases: Sequence[Case], blocks: int, *, to: str | None, busy: bool = False) -> None:
    """Measure steps, print them next to the committed ratios, and put them in the place of those of `to`, if any."""
    before = committed(to or "throughput").get("cases", {})
    found: dict[str, Measured] = {}
    for case in cases:
        print(f"{case.name} ...", flush=True)
        found[case.name] = measure(case, blocks if case.goal else blocks // 2, busy=busy)
    goals = {case.name: case.goal for case in cases}
    note = f"{torch.get_num_threads()} threads, {circumstances()}"
    note = f"processor time, {note}" if busy else note
    show(HEADER, lines_of(found, goals, before), note)
    if to is not None:
        now = {name: {"goal": goals[name], **m.to_json()} for name, m in found.items()}
        write_cases(to, now, kept_line, KEPT, note)


def run_compiled(cases: Sequence[Case], steps: int, *, keep: bool) -> None:
    """Measure what compiling brings, and commit it if asked to; lengths in steps, no times."""
    record, lines = {}, []
    for case in cases:
        print(f"{case.name} ...", flush=True)
        found = measure_compiled(case, steps)
        even = f"{found.break_even:,.0f}" if found.break_even < float("inf") else "never"
        times = [f"{found.eager_ms:.1f}", f"{found.compiled_ms:.1f}", str(found.ratio), f"{found.warm_up:.0f}", even]
        lines.append([case.name, *times])
        record[case.name] = {**dataclasses.asdict(found.ratio), "break_even": even}
    note = f"{torch.get_num_threads()} threads, {circumstances()}"
    show(COMPILE_HEADER, lines, note)
    if keep:
        outcome = {"machine": note, "cases": record}
        write("compiled", outcome, COMPILE_HEADER, lines, note, without=("eager ms", "compiled ms"))


def main() -> None:
    """Measure, print, and write unless asked to be quick."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only what has a goal, a few steps of it; write nothing")
    parser.add_argument("--compile", action="store_true", help="what `compile: true` brings instead")
    only = "cases whose name has this in it; the others' results stay; with --busy or --compile write nothing"
    parser.add_argument("--only", default="", help=only)
    parser.add_argument("--busy", action="store_true", help="processor time, on one thread, for a busy machine")
    parser.add_argument("--to", default="throughput", help="name of the results, in benchmarks/results")
    parser.add_argument("--list", action="store_true", help="say which cases there are, measure nothing")
    arguments = parser.parse_args()
    if arguments.busy:
        torch.set_num_threads(1)  # of two, one would spin while the other waits for its turn
    keep_memory()  # as the pipeline does before a stage
    cases = NAMED if arguments.quick or arguments.compile else [*NAMED, *other_cases()]
    chosen = [case for case in cases if arguments.only in case.name]
    # Processor time is not put among the clock's, and of compiled cases the record lacks what a line needs.
    keep = not arguments.quick and not (arguments.only and (arguments.busy or arguments.compile))
    if arguments.list:
        print("\n".join(case.name for case in chosen))
    elif arguments.compile:
        run_compiled(chosen, 5 if arguments.quick else 20, keep=keep)
    else:
        run_steps(chosen, 3 if arguments.quick else 10, to=arguments.to if keep else None, busy=arguments.busy)


if __name__ == "__main__":
    main()

"""A SimCLR step through lightly's transform, projection head, loss and a DataLoader, and through semisup.

    make bench-lightly                              # installs lightly, then runs the line below
    python benchmarks/against_lightly.py            # writes benchmarks/results/against_lightly.json and .md
    python benchmarks/against_lightly.py --quick    # shorter; writes nothing

Fashion-MNIST, WRN-10-1, B = 256, the settings of `fashion_mnist/simclr`: crops of 40-100% of the area, mirror, jitter
of strength 1, no blur, head of 256 and 128, temperature 0.2, AdamW. Both train the same network in channels_last
memory, and lightly reads PIL images that lie decoded in memory. A block is a few steps: those of ours, through the
engine's own loop, then an epoch of as many of lightly's, in a process of its own, its workers waiting in between, then
bare steps in ours (see `bare.py`). Given are images/s, each counted once however many views are made of it, as the
median over the blocks, and the ratios' 95% intervals.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any

import torch
from bare import Bare, Recorder
from paired import Ratio, compare
from PIL import Image
from speed_results import circumstances, committed, show, write
from throughput import stage_context
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from semisup.config import load_recipe
from semisup.data import ImageData
from semisup.engine import Batches, keep_memory
from semisup.methods import Batch, Method
from semisup.models import build_backbone
from semisup.pipeline.plan import Plan, StagePlan, make_plan
from semisup.pipeline.timing import fresh_method
from semisup.stages.training import fit_stage

RECIPE, STAGE, B = "fashion_mnist/simclr", "pretrain", 256
GOAL = 2.2
"""Least images/s of ours over lightly's."""
WORKERS = (0, 1, 2)


class Images(Dataset[tuple[list[Tensor], int]]):
    """Decoded images in memory as PIL has them, through a transform."""

    def __init__(self, data: ImageData, transform: Callable[[Image.Image], Any]) -> None:
        self.images = [Image.fromarray(image[:, :, 0]) for image in data.x_train]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[list[Tensor], int]:
        return self.transform(self.images[row]), row


class Lightly:
    """A training loop as lightly's documentation writes it; calling it trains for an epoch of `steps` steps.

    Args:
        plan: of the recipe, for its data.
        stage: for its network.
        steps: of an epoch.
        workers: of the DataLoader; they live on between epochs.
    """

    def __init__(self, plan: Plan, stage: StagePlan, steps: int, workers: int) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.transforms import SimCLRTransform

        mean, std = plan.statistics
        flip = 0.5 if plan.data.flip else 0.0
        transform = SimCLRTransform(
            plan.data.size, min_scale=0.4, hf_prob=flip, gaussian_blur=0.0, normalize={"mean": mean, "std": std}
        )
        images = Images(plan.data, transform)
        self.loader = DataLoader(
            images,
            batch_size=B,
            sampler=RandomSampler(images, num_samples=steps * B),
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        assert stage.network is not None
        spec = stage.network.spec
        backbone = build_backbone(
            spec.name, spec.options, in_channels=spec.in_channels, image_size=spec.image_size, pretrained=False
        )
        self.model = nn.Sequential(backbone, SimCLRProjectionHead(64, 256, 128))
        self.model.to(memory_format=torch.channels_last)
        self.loss = NTXentLoss(temperature=0.2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, weight_decay=1e-4)

    def __call__(self) -> None:
        """Train for an epoch."""
        for (first, second), _ in self.loader:
            loss = self.loss(self.model(first), self.model(second))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


class InTurn:
    """Our batches, which let lightly and the bare network have their turns between two blocks of ours.

    Args:
        batches: the stage's own.
        method: what the engine trains on them.
        bare: makes the bare step.
        lightly: trains for a block, and gives the seconds.
        block: steps in it.
    """

    def __init__(self, batches: Batches, method: Method, bare: Bare, lightly: Callable[[], float], block: int) -> None:
        self.batches = batches
        self.recorder = Recorder(method)
        self.bare = bare
        self.lightly = lightly
        self.block = block
        self.images_per_step = batches.images_per_step
        self.seconds: dict[str, list[float]] = {"semisup": [], "lightly": [], "bare": []}
        self._begun = 0.0

    def __call__(self, step: int) -> Batch:
        """Close a block of ours and have the others' turns, if it is time; then hand over the batch."""
        now = time.perf_counter()
        if step == 0:
            self.recorder.start()
        elif step == 1:
            self.bare.load(self.recorder.stop())
        elif step % self.block == 0:
            if step > self.block:  # the first is to warm up
                self.seconds["semisup"].append(now - self._begun)
                self.seconds["lightly"].append(self.lightly())
                self.seconds["bare"].append(_timed(self._bare_block))
            self._begun = time.perf_counter()
        return self.batches(step)

    def _bare_block(self) -> None:
        for _ in range(self.block):
            self.bare()


def _timed(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


_at_work: dict[str, Lightly] = {}
"""In lightly's process: the loop that trains there."""


def begin_lightly(steps: int) -> dict[int, float]:
    """Choose the number of workers that is fastest here; images/s of each."""
    plan, stage = planned(steps, 1)
    rates: dict[int, float] = {}
    for workers in WORKERS:
        loop = Lightly(plan, stage, steps, workers)
        loop()  # starts the workers
        rates[workers] = steps * B / _timed(loop)
        if rates[workers] == max(rates.values()):
            _at_work["lightly"] = loop
    return rates


def train_lightly() -> float:
    """Seconds of an epoch."""
    return _timed(_at_work["lightly"])


def planned(block: int, blocks: int) -> tuple[Plan, StagePlan]:
    """Return the recipe and its stage, for so many blocks of steps and one to warm up."""
    words = [f"stages.{STAGE}.steps={(blocks + 1) * block + 1}", f"log_every={block}"]
    plan = make_plan(load_recipe(RECIPE, words), trial=False)
    return plan, next(stage for stage in plan.stages if stage.name == STAGE)


def measure(blocks: int, block: int) -> tuple[dict[str, float], dict[int, float], Ratio, Ratio]:
    """Images/s of ours, lightly's and the bare network's; lightly's by workers; ours over lightly's, bare over ours."""
    keep_memory()  # as the pipeline does before a stage
    plan, stage = planned(block, blocks)
    method, batches = fresh_method(plan, stage)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart, stage_context(plan, stage) as context:
        by_workers = apart.submit(begin_lightly, block).result()
        bare = Bare(method, plan.device, plan.precision)
        in_turn = InTurn(batches, method, bare, lambda: apart.submit(train_lightly).result(), block)
        fit_stage(context, method, in_turn)
    rates = {name: block * B / median(values) for name, values in in_turn.seconds.items()}
    ours, theirs, limit = ([[value] for value in in_turn.seconds[name]] for name in ("semisup", "lightly", "bare"))
    return rates, by_workers, compare(theirs, ours), compare(ours, limit)


def main() -> None:
    """Measure, print, and write unless asked to be quick."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three short blocks; write nothing")
    quick = parser.parse_args().quick
    rates, by_workers, gain, cost = measure(3 if quick else 8, 6 if quick else 20)
    before = committed("against_lightly")
    workers = ", ".join(f"{workers}: {rate:,.0f}" for workers, rate in by_workers.items())
    header = ["SimCLR, WRN-10-1, 28x28, B = 256", "images/s", "ratio (95%)", "committed", "goal"]
    was = {name: f"{before[name]['median']:.2f}" if name in before else "" for name in ("over_lightly", "bare_over")}
    lines = [
        ["semisup, over lightly", f"{rates['semisup']:,.0f}", str(gain), was["over_lightly"], f">= {GOAL:.1f}"],
        ["lightly", f"{rates['lightly']:,.0f}", "", "", ""],
        ["bare network, over semisup", f"{rates['bare']:,.0f}", str(cost), was["bare_over"], ""],
    ]
    note = f"lightly by DataLoader workers, images/s: {workers}; {torch.get_num_threads()} threads, {circumstances()}"
    show(header, lines, note)
    if not quick:
        record = {"machine": note, "over_lightly": dataclasses.asdict(gain), "bare_over": dataclasses.asdict(cost)}
        write("against_lightly", record, header, lines, note, without=("committed",))


if __name__ == "__main__":
    main()

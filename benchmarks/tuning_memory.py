"""What a training step of a pretrained network takes of memory and time, by what of it learns.

    python benchmarks/tuning_memory.py

Each case is a process of its own: batches of 16 images of 224 px, fp32, AdamW. Memory is what the process has at its
peak more than before the first step, that is: activations, gradients and the optimizer's state, without the weights.
Seconds are those of the processor, of one thread: the least of two steps after the first, in shares of the first case.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from typing import Any

import torch

from semisup.engine import FitSettings, Training
from semisup.methods import METHODS, Batch, Labeled, Unlabeled
from semisup.models import Classifier, build_backbone, build_neck
from semisup.settings import OptimizerConfig, ScheduleConfig, TrainConfig
from semisup.stages.tuning import tune

NETWORKS = ("timm/vit_tiny_patch16_224", "timm/tf_efficientnet_lite0", "torchvision/resnet50")
CASES: dict[str, dict[str, Any]] = {
    "all": {},
    "activation_checkpointing": {"activation_checkpointing": True},
    "lora, rank 8": {"lora": {}},
    "train: bias": {"train": "bias"},
    "first blocks frozen (3 of 4)": {"freeze": {"blocks": 0}},
    "frozen": {"freeze": {}},
}
BATCH, STEPS, MIB = 16, 3, 2**20


def measure(name: str, keys: dict[str, Any]) -> tuple[float, float]:
    """Return MiB and seconds of a step."""
    torch.set_num_threads(1)
    backbone = build_backbone(name, {}, in_channels=3, image_size=224)
    if keys.get("freeze", {}).get("blocks") == 0:
        from semisup.models.blocks import blocks_of

        keys = {"freeze": {"blocks": 3 * len(blocks_of(backbone).modules) // 4}}
    network = Classifier(backbone, build_neck(backbone.num_features, []), 10)  # type: ignore[arg-type]
    stage = TrainConfig.model_validate({"method": {"name": "supervised"}, **keys})
    method = METHODS["supervised"](network)
    tune(method, stage, "key")
    images, classes = torch.randn(BATCH, 3, 224, 224), torch.arange(BATCH) % 10
    nothing = torch.empty(0, dtype=torch.long)
    batch = Batch(Labeled({"weak": images}, classes), Unlabeled({}, nothing))
    optimizer = OptimizerConfig(name="adamw", lr=1e-4)
    cpu = torch.device("cpu")
    run = Training(method, FitSettings(steps=STEPS, optimizer=optimizer, schedule=ScheduleConfig(), device=cpu))
    method.train()
    before, seconds = _peak(), []
    for _ in range(STEPS):
        begun = time.process_time()
        run.prepare()
        for _ in run.updates(lambda step: batch):
            pass
        run.finish_step()
        seconds.append(time.process_time() - begun)
    return _peak() - before, min(seconds[1:])


def _peak() -> float:
    """Return the most memory that this process has had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    networks = parser.parse_args().networks
    rows: dict[str, list[str]] = {case: [] for case in CASES}
    for name in networks:
        first: tuple[float, float] | None = None
        for case, keys in CASES.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                memory, seconds = pool.apply(measure, (name, keys))
            first = first or (memory, seconds)
            rows[case].append(f"{memory:,.0f} MiB ({memory / first[0]:.2f}) | {seconds / first[1]:.2f}")
            print(f"{name} {case}: {rows[case][-1]}", flush=True)
    columns = " | ".join(f"{name.partition('/')[2]} | time" for name in networks)
    print(f"| what learns | {columns} |\n|---|{'--:|' * 2 * len(networks)}")
    for case, cells in rows.items():
        print(f"| {case} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

"""What two ranks of one core each gain over one, and a written model of many GPUs (docs/scale.md).

    python benchmarks/scaling.py            # writes benchmarks/results/scaling.json and .md
    python benchmarks/scaling.py --quick    # two rounds; writes nothing
    python benchmarks/scaling.py --busy     # by processor time, without waiting: where a machine does other work too

In turn, A B A B ..., in the same two processes, each on a core of its own: A, both make the whole batch's steps, each
for itself; B, both make them together. The efficiency is A / (2 B): 1 where two ranks are twice as fast as one. So both
cores are as busy, and share caches and memory, in A and in B.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from paired import compare
from speed_results import circumstances, show, write
from throughput import LARGE, WRN_10_1, WRN_28_2, Case, planned
from torch.utils.flop_counter import FlopCounterMode

from semisup.engine import FitSettings, fit, keep_memory, ranks
from semisup.methods import Progress
from semisup.models import stage_decay
from semisup.pipeline.timing import fresh_method

RANKS = 2
CASES = [
    Case("fixmatch WRN-28-2 32x32x3", "fashion_mnist/fixmatch", "train", LARGE, (WRN_28_2,), block=3),
    Case("simclr WRN-10-1 32x32x3", "fashion_mnist/simclr", "pretrain", LARGE, (WRN_10_1,), block=3),
]


def work(rank: int, case: Case, ports: Sequence[int], busy: bool, results: Any) -> None:
    """Be one rank: time a block of steps alone and one together, for each port."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    keep_memory()
    plan, stage = planned(case, case.block)
    method, batches = fresh_method(plan, stage)
    config = stage.training

    def block(steps: int) -> float:
        settings = FitSettings(
            steps=steps,
            optimizer=config.optimizer,
            schedule=config.schedule,
            ema=stage_decay(config.ema, stage.steps),
            device=plan.device,
        )
        clock = time.process_time if busy else time.perf_counter
        begun = clock()
        fit(method, batches, settings)
        return clock() - begun

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1"}
    block(2)
    for port in ports:
        os.environ["MASTER_PORT"] = str(port)
        with ranks.joined():
            block(1)  # they have met
        alone = block(case.block)
        os.environ["MASTER_PORT"] = str(port + 1)
        with ranks.joined():
            results.put((rank, alone, block(case.block)))


def free_ports(count: int) -> list[int]:
    """Return ports of which the next one is free, too, as far as one can know."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        first = int(probe.getsockname()[1])
    start = first if first + 2 * count < 65_000 else 20_000
    return list(range(start, start + 2 * count, 2))


def measure(case: Case, rounds: int, busy: bool) -> list[tuple[float, float]]:
    """Return seconds per step of one rank and of two, for each round."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ports = free_ports(rounds)
    processes = [context.Process(target=work, args=(rank, case, ports, busy, results)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    found: list[tuple[int, float, float]] = [results.get(timeout=1200) for _ in range(RANKS * rounds)]
    for process in processes:
        process.join()
    alone = [[seconds for rank, seconds, _ in found if rank == one] for one in range(RANKS)]
    together = [[seconds for rank, _, seconds in found if rank == one] for one in range(RANKS)]
    mean_alone = [sum(pair) / RANKS / case.block for pair in zip(*alone, strict=True)]
    mean_together = [sum(pair) / RANKS / case.block for pair in zip(*together, strict=True)]
    return list(zip(mean_alone, mean_together, strict=True))


# The model ------------------------------------------------------------------------------------------------------------

GPU_FLOPS = 120e12
"""That a GPU reaches in bf16 convolutions: 30% of 400e12. Assumed."""
INSIDE, OUTSIDE = 200e9, 25e9
"""Bytes a second that a GPU receives within a host of 8 (NVLink), and from other hosts (200 Gbit/s). Assumed."""
MESSAGE = 30e-6
"""Seconds of a message that are not its bytes. Assumed."""


@dataclass(frozen=True)
class Work:
    """A step of one process."""

    flops: float
    views: float
    """Bytes of all views of the batch, as float32."""
    weights: float
    """Bytes of the weights that learn, as float32."""
    norms: int
    """BatchNorm layers that a step goes through, each way."""

    def seconds(self, gpus: int) -> float:
        """Return the seconds of a step on so many GPUs, communication not hidden by computation."""
        computed = self.flops / GPU_FLOPS / gpus
        if gpus == 1:
            return computed
        received = (self.views + 2 * self.weights) * (gpus - 1) / gpus
        return computed + received / (INSIDE if gpus <= 8 else OUTSIDE) + 2 * self.norms * MESSAGE


def counted(case: Case) -> Work:
    """Count what a step of a case does."""
    plan, stage = planned(case, 1)
    method, batches = fresh_method(plan, stage)
    batch = batches(0)
    views = [*batch.labeled.views.values(), *batch.unlabeled.views.values()]
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    norms = [m for m in method.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter:
        for update in method.train().step(batch, Progress(0, 1)):
            update.loss.backward()
    learned = sum(p.numel() for group in method.groups().values() for p in group)
    return Work(counter.get_total_flops(), 4.0 * sum(v.numel() for v in views), 4.0 * learned, calls)


IMAGENET = Work(8192 * 3 * 8.2e9, 8192 * 4 * 3 * 224**2, 4 * 25.6e6, 53)
"""SimCLR with a ResNet-50 on 4,096 images of 224 px, two views each; 8.2 GFLOP a forward."""


def model_lines() -> list[list[str]]:
    """Return the model's table: images a step stay the same."""
    works = {case.name: counted(case) for case in CASES} | {"simclr ResNet-50 224x224x3, 4,096 images": IMAGENET}
    lines = []
    for name, one in works.items():
        alone = one.seconds(1)
        shares = [f"{alone / gpus / one.seconds(gpus):.2f}" for gpus in (8, 64)]
        lines.append([name, f"{alone * 1e3:,.1f}", f"{one.views / 1e6:,.0f}", f"{one.weights / 1e6:,.1f}", *shares])
    return lines


def main() -> None:
    """Measure, show and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    quick, busy = given.quick, given.busy
    begun = time.perf_counter()
    found = {case.name: measure(case, 2 if quick else 12, busy) for case in CASES if given.only in case.name}
    header = ["step", "one rank, s", "two, s", "efficiency (95%)"]
    lines = []
    for name, rounds in found.items():
        ratio = compare([[alone / RANKS] for alone, _ in rounds], [[together] for _, together in rounds])
        means = [sum(side) / len(rounds) for side in zip(*rounds, strict=True)]
        lines.append([name, *(f"{mean:.3f}" for mean in means), str(ratio)])
    note = f"{'processor time of a rank; ' if busy else ''}{circumstances()}; {time.perf_counter() - begun:.0f} s"
    show(header, lines, note)
    model_header = ["model", "1 GPU, ms", "views, MB", "weights, MB", "efficiency on 8", "on 64"]
    model = model_lines()
    assumed = (
        f"Not measured: a model of {GPU_FLOPS / 1e12:.0f} TFLOP/s a GPU, {INSIDE / 1e9:.0f} GB/s within a host, "
        f"{OUTSIDE / 1e9:.0f} GB/s between hosts, {MESSAGE * 1e6:.0f} us a message, nothing hidden, the same batch."
    )
    show(model_header, model, assumed)
    if not quick:
        write("scaling", {"machine": note, "rounds": found}, header, lines, note)
        write("scaling_model", {"assumed": assumed, "lines": model}, model_header, model, assumed)


if __name__ == "__main__":
    main()

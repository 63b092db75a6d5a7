"""What a training step takes less because the process keeps the memory it frees (`semisup.engine.keep_memory`).

    python benchmarks/kept_memory.py            # writes benchmarks/results/kept_memory.json and .md
    python benchmarks/kept_memory.py --quick    # two short rounds; writes nothing

The same steps of the engine's own loop in two processes, of which one leaves the C library as it comes. They take turns
on the same cores; a ratio is that of the seconds of a round, given as the median over the rounds and its 95% interval.
"Pages" are those that the system had to clear for a step, 4 KiB each, or more where it clears several at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import median

import torch
from paired import compare
from speed_results import circumstances, show, write
from throughput import NAMED, WRN_10_1, Case, planned

from semisup.engine import FitSettings, fit, keep_memory
from semisup.models import stage_decay
from semisup.pipeline.timing import fresh_method

CASES = [
    *(case for case in NAMED if not case.name.startswith("mean_teacher") and "WRN-28-2 28x28" not in case.name),
    Case("fixmatch WRN-10-1 96x96x3", "fashion_mnist/fixmatch", "train", (96, 3, 2_000), (WRN_10_1,), block=6),
]
WARM_UP = 3

_at_work: dict[str, Callable[[int], float]] = {}
"""In a process of its own: trains for some steps, and gives their seconds."""


def begin(case: Case) -> None:
    """Turn to another case."""
    plan, stage = planned(case, case.block)
    method, batches = fresh_method(plan, stage)
    config = stage.config

    def train(steps: int) -> float:
        return fit(
            method,
            batches,
            FitSettings(
                steps=steps,
                optimizer=config.optimizer,
                schedule=config.schedule,
                ema=stage_decay(config.ema, stage.steps),
                device=plan.device,
                precision=plan.precision,
            ),
        ).seconds

    train(WARM_UP)
    _at_work["train"] = train


def measure(steps: int) -> tuple[float, float]:
    """Seconds and cleared pages of a step."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = _at_work["train"](steps)
    return seconds / steps, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps


def main() -> None:
    """Measure, print, and write unless asked to be quick."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two short rounds; write nothing")
    quick = parser.parse_args().quick
    spawn = multiprocessing.get_context("spawn")
    record, lines = {}, []
    with ProcessPoolExecutor(1, spawn) as as_it_comes, ProcessPoolExecutor(1, spawn, keep_memory) as kept:
        for case in CASES:
            print(f"{case.name} ...", flush=True)
            found: dict[ProcessPoolExecutor, list[tuple[float, float]]] = {as_it_comes: [], kept: []}
            for process in found:
                process.submit(begin, case).result()
            for _ in range(2 if quick else 6):
                for process, rounds in found.items():
                    rounds.append(process.submit(measure, case.block // 2 if quick else case.block).result())
            gain = compare(*([[seconds] for seconds, _ in rounds] for rounds in found.values()))
            pages = [median(pages for _, pages in rounds) for rounds in found.values()]
            times = [median(seconds for seconds, _ in rounds) for rounds in found.values()]
            record[case.name] = {**dataclasses.asdict(gain), "pages": pages}
            lines.append(
                [case.name, *(f"{1000 * s:.1f}" for s in times), str(gain), *(f"{count:,.0f}" for count in pages)]
            )
    note = f"{torch.get_num_threads()} threads, {circumstances()}"
    header = ["step", "ms", "ms, kept", "faster (95%)", "pages", "pages, kept"]
    show(header, lines, note)
    if not quick:
        write("kept_memory", {"machine": note, "cases": record}, header, lines, note, without=("ms", "ms, kept"))


if __name__ == "__main__":
    main()

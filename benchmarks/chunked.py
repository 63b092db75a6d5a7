"""Memory and time of NT-Xent over a large batch, whole and in chunks (`chunk`).

    python benchmarks/chunked.py            # writes benchmarks/results/chunked.json and .md
    python benchmarks/chunked.py --quick    # a small batch; writes nothing

Each line is a process of its own: peak memory is that of value and gradient, beyond what the process had before. The C
library gives back what is freed, so that the peak is of what is in use.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import torch
from speed_results import circumstances, show, write

from semisup.losses import nt_xent

CHUNKS = (0, 2048, 512, 128)
WIDTH = 128


def peak() -> float:
    """Return the largest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(rows: int, chunk: int) -> tuple[float, float, float, float]:
    """Return MiB, seconds, the loss, and the length of its gradient."""
    torch.manual_seed(0)
    nt_xent(torch.randn(64, WIDTH, requires_grad=True), 0.5, chunk=16).backward()
    z = torch.randn(rows, WIDTH, requires_grad=True)
    before, begun = peak(), time.perf_counter()
    loss = nt_xent(z, 0.5, chunk=chunk)
    loss.backward()
    assert z.grad is not None
    return peak() - before, time.perf_counter() - begun, float(loss.detach()), float(z.grad.norm())


def main() -> None:
    """Measure, show and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rows = 512 if quick else 8192
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # of the processes to come; bytes
    found = {}
    for chunk in CHUNKS:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            found[chunk] = alone.submit(measured, rows, chunk).result()
    header = ["views compared at a time", "peak, MiB", "seconds", "loss", "gradient"]
    lines = [
        [str(chunk) if chunk else f"all {rows:,}", f"{mib:,.0f}", f"{seconds:.1f}", f"{loss:.6f}", f"{slope:.6e}"]
        for chunk, (mib, seconds, loss, slope) in found.items()
    ]
    note = f"{rows:,} views x {WIDTH}, fp32. {circumstances()}"
    show(header, lines, note)
    if not quick:
        write("chunked", {"machine": note, "chunks": found}, header, lines, note)


if __name__ == "__main__":
    main()

"""Extraction needs no more memory for more images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ANONYMOUS = """
import sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
from semisup.augment import Normalize
from semisup.stages.cache import extract
from semisup.stages.context import clean_batches

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

folder, rows = Path(sys.argv[1]), 40_000
images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(rows, 16, 16, 3))
network, normalize = nn.Sequential(nn.AvgPool2d(4), nn.Flatten()).eval(), Normalize([0.5] * 3, [0.25] * 3)
seen = []

def batches(start):
    for i, batch in enumerate(clean_batches(images, normalize, torch.device("cpu"), np.arange(start, rows), 16)):
        if i in (200, 2400):
            seen.append(anonymous())
        yield batch

extract(network, batches, rows, 48, folder / "train.npy")
print(seen[1] - seen[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """35,000 more images are 26 MiB more to read, and 6.5 in float32 to write; what the process holds stays."""
    done = subprocess.run([sys.executable, "-c", ANONYMOUS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2048, "KiB"

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from semisup.engine import autocast, generator, resolve_device, resolve_precision, seed_for, seed_global
from semisup.errors import SemisupError
from tests.nursery import Nursery

CPU = torch.device("cpu")


def test_auto_takes_a_device_that_is_there() -> None:
    device = resolve_device("auto")
    assert torch.zeros(1, device=device).device.type == device.type
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "cuda:", "cuda:x", "cuda:-1", "mps:0", "", "meta", "cuda:٣"])
def test_an_unknown_device_is_an_error(name: str) -> None:
    with pytest.raises(SemisupError, match=r"^device: "):
        resolve_device(name)


def test_the_error_names_the_nearest_device() -> None:
    with pytest.raises(SemisupError, match=r"unknown device 'cuds'; did you mean 'cuda'\?"):
        resolve_device("cuds")


def test_a_device_that_this_machine_lacks_is_an_error() -> None:
    with pytest.raises(SemisupError, match=r"'cuda:99' is not on this machine \(\d+ CUDA devices found\)"):
        resolve_device("cuda:99")
    if not torch.backends.mps.is_available():
        with pytest.raises(SemisupError, match="'mps' is not on this machine"):
            resolve_device("mps")


def test_precision() -> None:
    assert resolve_precision("auto", CPU) == "fp32"
    assert [resolve_precision(name, CPU) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert resolve_precision("fp16", torch.device("cuda")) == "fp16"
    with pytest.raises(SemisupError, match="precision: 'fp16' needs a CUDA device, this run is on 'cpu'"):
        resolve_precision("fp16", CPU)
    with pytest.raises(SemisupError, match=r"unknown precision 'bf61'; did you mean 'bf16'\?"):
        resolve_precision("bf61", CPU)


def test_autocast_computes_in_the_precision_asked_for() -> None:
    x = torch.ones(2, 2)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with autocast(CPU, name):
            assert (x @ x).dtype == dtype


def test_a_seed_depends_on_every_part_and_on_where_one_ends() -> None:
    seeds = {
        seed_for(*parts) for parts in [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), ("0a", 1), (0, "a1"), ("a", 0)]
    }
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert torch.equal(torch.rand(3, generator=generator(0, "a")), torch.rand(3, generator=generator(0, "a")))


def test_the_global_seed_is_that_of_torch() -> None:
    for device in (CPU, resolve_device("auto")):
        torch.manual_seed(5)
        expected = torch.rand(3, device=device)
        seed_global(5, device)
        assert torch.equal(torch.rand(3, device=device), expected)


def test_a_seed_is_the_same_in_every_process_and_on_every_machine() -> None:
    """Python's own `hash` is not. A change here would break the resuming of every unfinished run."""
    assert seed_for(3, "pretrain", "step", 17) == 8316514004286190022


FREED = """
import psutil, torch
from semisup.engine import release_memory
small = [torch.ones(20_000) for _ in range(3000)]  # 80 KB each, too small for pages of their own; 240 MB
last = small[-1]  # at the top of the heap, which glibc trims by itself
del small
before = psutil.Process().memory_info().rss
release_memory(torch.device("cpu"))
print(before - psutil.Process().memory_info().rss, last.sum())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's way of keeping memory")
def test_what_a_stage_has_freed_goes_back_to_the_system(nursery: Nursery, tmp_path: Path) -> None:
    code, output = nursery.run(tmp_path, code=FREED)
    assert code == 0 and int(output.split()[0]) > 100_000_000, output


KEPT = """
import sys, psutil, torch
from semisup.engine import keep_memory, release_memory
if "keep" in sys.argv:
    keep_memory()
def resident():
    return psutil.Process().memory_info().rss
def step():
    made = [torch.ones(10_000_000) for _ in range(3)]  # 40 MB each, which glibc never keeps by itself
before = resident()
for _ in range(5):
    step()
kept = resident()
release_memory(torch.device("cpu"))
print(kept - before, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's way of keeping memory")
def test_memory_of_a_step_serves_the_next_until_it_is_released(nursery: Nursery, tmp_path: Path) -> None:
    """By resident memory: how many pages a system clears at once is its own affair."""

    def freed(*words: str) -> list[int]:
        code, output = nursery.run(tmp_path, *words, code=KEPT)
        assert code == 0, output
        return [int(word) for word in output.split()]

    a_step = 120_000_000
    assert max(freed()) < a_step / 10  # or the test shows nothing
    kept, released = freed("keep")
    assert a_step * 0.9 < kept < a_step * 1.5  # one step's, not all five's
    assert released < a_step / 10

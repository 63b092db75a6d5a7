"""Between two reports no step, batch or view of any method makes the host of a GPU wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from semisup.augment import Normalize
from semisup.engine import Batches, FitSettings, TrainingImages, ranks
from semisup.engine.split import split_networks
from semisup.engine.training import Training
from semisup.settings import OptimizerConfig, ScheduleConfig
from semisup.stages.views import stage_policies
from tests.contract.contract_settings import CASES, CLASSES, DATA, LABELED, UNLABELED, Case
from tests.contract.host_waits import META, HostWaits, no_host_waits


def train_on_meta(case: Case, steps: int, **settings: Any) -> None:
    """Some steps as the engine takes them, with the views that a recipe would give the method."""
    method = case.build().to(META)
    channels = next(m.in_channels for m in method.modules() if isinstance(m, torch.nn.Conv2d))
    draw = torch.Generator().manual_seed(0)
    images = TrainingImages(
        torch.randint(0, 256, (DATA, 12, 12, channels), generator=draw, dtype=torch.uint8),
        torch.arange(LABELED * 2),
        torch.arange(LABELED * 2) % CLASSES,
        targets=torch.rand(DATA, CLASSES, generator=draw) if method.needs_pseudo_labels else None,
    )
    learned = method.learned()
    policies = {
        part: stage_policies({}, method.views, part, flip=True, learned=learned) for part in ("labeled", "unlabeled")
    }
    batches = Batches(
        images,
        labeled=policies["labeled"],
        unlabeled=policies["unlabeled"],
        labeled_size=LABELED,
        unlabeled_size=UNLABELED,
        normalize=Normalize((0.5,) * channels, (0.25,) * channels),
        device=META,
        key=(0,),
    )
    optimizer = OptimizerConfig(lr=0.01)
    fitted = FitSettings(
        steps=100, optimizer=optimizer, schedule=ScheduleConfig(), device=META, ema=0.9, log_every=50, **settings
    )
    run = Training(method, fitted)
    if ranks.size() > 1:
        split_networks(method, sync_batchnorm=fitted.sync_batchnorm)
    with no_host_waits():
        for _ in range(steps):
            run.prepare()
            for _ in run.updates(batches):
                pass
            run.finish_step()


FAST = ("fixmatch-ctaugment", "meta_pseudo_labels-drawn", "swav-crops", "jigsaw-plain")
"""Probed rates, alternating updates, a queue and crops, a pretext task; the other methods are slow."""


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_step_its_batch_and_its_views_do_not_wait(name: str) -> None:
    train_on_meta(CASES[name], 2)


@pytest.fixture
def two_ranks() -> Iterator[None]:
    """A group without others, whose messages are waited for as those of any are."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("sync_batchnorm", [True, False])
@pytest.mark.parametrize("name", FAST)
def test_nor_do_those_of_several_ranks(name: str, sync_batchnorm: bool, two_ranks: None) -> None:
    train_on_meta(CASES[name], 2, sync_batchnorm=sync_batchnorm)


def _into(x: Tensor) -> Tensor:
    x[x > 0] = torch.ones(3, device=META)
    return x


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.max()),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        _into,
        lambda x: x.masked_select(x > 0),
        lambda x: x.cpu(),
        lambda x: torch.empty(4).copy_(x),
        lambda x: torch.equal(x, x),
        lambda x: torch.ones(4).to(META),
        lambda x: torch.tensor([1.0, 2.0], device=META),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: x.copy_(torch.ones(4)),
        lambda x: torch.linalg.inv(x.view(2, 2)),
    ],
)
def test_what_waits_is_found(waits: Callable[[Tensor], Any]) -> None:
    with pytest.raises((HostWaits, RuntimeError, NotImplementedError)), no_host_waits():
        waits(torch.ones(4, device=META))


def test_what_does_not_wait_is_let_through() -> None:
    x = torch.ones(4, device=META)
    with no_host_waits():
        assert (torch.ones(4).to(META, non_blocking=True) + 1).is_meta
        x[x > 0] = 0.0
        assert torch.ones(4)[torch.ones(4) > 0].sum().item() == 4, "the host's own numbers are its own"
        assert torch.where(x > 0, x, 2.0).is_meta

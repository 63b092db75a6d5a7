"""CTAugment in a run: views are drawn by the buffer that each step moves, and a killed run goes on bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from semisup.augment import Normalize
from semisup.augment.policies.ctaugment import OPERATIONS, new_rates
from semisup.engine import Batches, Checkpoints, FitSettings, TrainingImages, fit
from semisup.methods import Batch
from semisup.methods.fixmatch import FixMatch
from semisup.models import ModelSpec, build_classifier
from semisup.settings import OptimizerConfig, ScheduleConfig
from semisup.stages.views import stage_policies
from tests.stages.stages_small import CPU, small_data


class Killed(Exception):
    """Stands for a process that dies."""


class Mortal(Batches):
    """Dies when it is asked for the batch of this step."""

    dies_at: int | None = None

    def __call__(self, step: int) -> Batch:
        if step == self.dies_at:
            raise Killed
        return super().__call__(step)


def make(seed: int = 0, dies_at: int | None = None) -> tuple[FixMatch, Mortal]:
    torch.manual_seed(seed)
    model = build_classifier(ModelSpec("cnn", {"width": 4}, 1, 8, 3))
    method = FixMatch(model, threshold=0.0, ctaugment=True)
    data = small_data()
    batches = Mortal(
        TrainingImages(torch.tensor(data.x_train), torch.arange(6), torch.from_numpy(data.y_train[:6])),
        labeled=stage_policies({}, method.views, "labeled", flip=False, learned=method.learned()),
        unlabeled=stage_policies({}, method.views, "unlabeled", flip=False, learned=method.learned()),
        labeled_size=6,
        unlabeled_size=12,
        normalize=Normalize([0.5], [0.5]),
        device=CPU,
        key=(0, "train"),
    )
    batches.dies_at = dies_at
    return method, batches


def train(method: FixMatch, batches: Batches, path: Path | None = None) -> int | None:
    return fit(
        method,
        batches,
        FitSettings(
            steps=8,
            optimizer=OptimizerConfig(name="sgd", lr=0.05),
            schedule=ScheduleConfig(name="constant"),
            device=CPU,
        ),
        [] if path is None else [Checkpoints(path, 0.0)],
    ).resumed_from


def few_left(method: FixMatch) -> None:
    """Bring all bins but the first close to the threshold, so that a few probes decide which are drawn."""
    assert method.rates is not None
    method.rates[:, 1:] = torch.where(method.rates[:, 1:] > 0, 0.802, method.rates[:, 1:])


def test_views_follow_the_buffer_of_the_method() -> None:
    method, batches = make()
    rates = method.learned()
    assert rates is not None
    before = batches(2)
    rates[OPERATIONS.index("brightness") :, 1:] = -1.0
    after = batches(2)
    assert not torch.equal(before.unlabeled["strong"], after.unlabeled["strong"])
    for name in ("weak", "probe"):
        assert torch.equal(before.labeled[name], after.labeled[name]), "the rates have no part in it"
    assert torch.equal(before.unlabeled["weak"], after.unlabeled["weak"])


def test_a_step_moves_what_the_next_views_are_drawn_by() -> None:
    method, batches = make()
    few_left(method)
    fresh, others = make()
    few_left(fresh)
    train(method, batches)
    assert not torch.equal(batches(8).unlabeled["strong"], others(8).unlabeled["strong"])


@pytest.mark.parametrize("saved", [True, False])
def test_a_killed_run_ends_with_the_same_weights_only_if_the_rates_are_saved(saved: bool, tmp_path: Path) -> None:
    def start(seed: int, dies_at: int | None = None) -> tuple[FixMatch, Mortal]:
        method, batches = make(seed, dies_at)
        few_left(method)
        if not saved:
            method.register_buffer("rates", method.rates, persistent=False)
        return method, batches

    def weights(method: FixMatch) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in method.model.state_dict().items()}

    whole, batches = start(0)
    train(whole, batches)
    killed, batches = start(0, dies_at=5)
    with pytest.raises(Killed):
        train(killed, batches, tmp_path / "checkpoint.pt")
    resumed, batches = start(9)
    assert train(resumed, batches, tmp_path / "checkpoint.pt") == 5
    assert whole.rates is not None and resumed.rates is not None
    assert not torch.equal(whole.rates, new_rates())
    assert torch.equal(whole.rates, resumed.rates) == saved
    one, other = weights(whole), weights(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one) == saved

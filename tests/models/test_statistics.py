"""Forwards that leave BatchNorm's running statistics alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from semisup.models import frozen_statistics

IMAGES = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 + 1


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.BatchNorm1d(20, affine=False))


def test_train_mode_normalizes_by_the_batch_and_forgets_it() -> None:
    plain, frozen = network(), network()
    before = copy.deepcopy(frozen.state_dict())
    with frozen_statistics(frozen):
        got = frozen(IMAGES)
    assert torch.equal(got, plain(IMAGES))
    for name, value in frozen.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(plain[1].running_mean, frozen[1].running_mean)


def test_gradients_are_those_of_a_plain_forward() -> None:
    plain, frozen = network(), network()
    plain(IMAGES).square().mean().backward()
    with frozen_statistics(frozen):
        frozen(IMAGES).square().mean().backward()
    for one, other in zip(plain.parameters(), frozen.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_eval_mode_uses_the_running_statistics_as_ever() -> None:
    model = network()
    model(IMAGES)
    model.eval()
    expected = model(IMAGES)
    with frozen_statistics(model):
        assert torch.equal(model(IMAGES), expected)


def test_afterwards_and_after_an_error_statistics_move_again() -> None:
    model = network()
    with pytest.raises(ZeroDivisionError), frozen_statistics(model):
        raise ZeroDivisionError
    model(IMAGES)
    assert [int(norm.num_batches_tracked) for norm in (model[1], model[3])] == [1, 1]


def test_a_norm_without_running_statistics_stays_so() -> None:
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    with frozen_statistics(norm):
        norm(IMAGES)
    assert not norm.track_running_stats

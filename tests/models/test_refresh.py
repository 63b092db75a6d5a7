"""BatchNorm statistics that are estimated anew."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from semisup.models import Encoder, refresh_statistics


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(12, 2))


def images(seed: int) -> torch.Tensor:
    return torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def test_statistics_are_the_means_of_the_batches_whatever_they_were() -> None:
    net = network()
    net.train()
    net(100 * images(9))
    weights = {name: p.clone() for name, p in net.named_parameters()}
    refresh_statistics(net, [images(0), images(1)])
    maps = [net[0](images(seed)).detach() for seed in (0, 1)]
    mean = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    var = torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0)
    torch.testing.assert_close(net[1].running_mean, mean)
    torch.testing.assert_close(net[1].running_var, var)
    assert net[1].momentum == 0.1 and not any(m.training for m in net.modules())
    assert all(torch.equal(p, weights[name]) for name, p in net.named_parameters())


def test_what_is_not_reached_keeps_its_statistics() -> None:
    backbone = network()
    backbone.num_features = 2  # type: ignore[assignment]
    head = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    head.train()
    head(torch.randn(8, 2))
    before = copy.deepcopy(head.state_dict())
    refresh_statistics(Encoder(backbone, head), [images(0)])
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_without_batchnorm_no_batch_is_read() -> None:
    def never():
        pytest.fail("read")
        yield torch.zeros(0)

    refresh_statistics(nn.Linear(2, 2), never())

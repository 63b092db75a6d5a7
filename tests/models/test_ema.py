"""The average of weights against its closed forms (methods.md 0 and 3.6)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from semisup.errors import SemisupError
from semisup.models import EMA, Classifier, build_backbone


def scalar(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(layer.weight, value)
    return layer


def test_first_warm_started_update_is_the_mean_of_two() -> None:
    """Mean Teacher: after step 1, theta' = (theta_0 + theta_1) / 2."""
    online = scalar(3.0)
    ema = EMA(online, 0.999)
    nn.init.constant_(online.weight, 8.0)
    ema.update(online)
    assert ema.module.weight.item() == pytest.approx(5.5, rel=1e-6)


def test_warm_start_is_the_plain_mean_until_the_cap_and_the_recursion_afterwards() -> None:
    torch.manual_seed(0)
    values = torch.randn(40, dtype=torch.float64).tolist()
    decay = 0.9  # binds from t = 9 on, where 1 - 1/(t+1) = 0.9
    online = scalar(values[0])
    ema = EMA(online, decay)
    expected = values[0]
    for t, value in enumerate(values[1:], start=1):
        nn.init.constant_(online.weight, value)
        ema.update(online)
        expected = sum(values[: t + 1]) / (t + 1) if t <= 9 else decay * expected + (1 - decay) * value
        assert ema.module.weight.item() == pytest.approx(expected, rel=1e-6)
    assert ema.step == 39


def test_without_a_warm_start_the_decay_counts_from_the_first_update_on() -> None:
    online = scalar(3.0)
    ema = EMA(online, 0.9, warm=False)
    nn.init.constant_(online.weight, 8.0)
    ema.update(online)
    assert ema.module.weight.item() == pytest.approx(0.9 * 3 + 0.1 * 8, rel=1e-12)
    ema.decay = 1.0
    ema.update(online)
    assert ema.module.weight.item() == pytest.approx(3.5, rel=1e-12)


def long_running(module: nn.Module, decay: float, *, own_buffers: bool = False) -> EMA:
    """An average whose warm start is over."""
    ema = EMA(module, decay, own_buffers=own_buffers)
    ema.step = 10**9
    return ema


def test_half_life_after_the_warm_start() -> None:
    assert round(math.log(0.5) / math.log(0.999)) == 693
    online = scalar(1.0)
    ema = long_running(online, 0.999)
    nn.init.constant_(online.weight, 0.0)
    for _ in range(693):
        ema.update(online)
    assert ema.module.weight.item() == pytest.approx(0.5, abs=2e-4)


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("own_buffers", [False, True])
def test_update_averages_parameters_and_statistics(decay: float, own_buffers: bool) -> None:
    torch.manual_seed(0)
    networks = []
    for _ in range(2):
        network = build_backbone("wrn", {"depth": 10, "width": 1, "bn_momentum": 0.5}, in_channels=1, image_size=8)
        network(torch.randn(4, 1, 8, 8))
        networks.append(network.to(memory_format=torch.channels_last))
    start, online = networks
    ema = long_running(start, decay, own_buffers=own_buffers)
    averaged = ema.module
    online(torch.randn(4, 1, 8, 8))
    before = {name: t.detach().clone() for name, t in averaged.state_dict().items()}
    ema.update(online)
    buffers = {name for name, _ in averaged.named_buffers()}
    for (name, mine), theirs in zip(averaged.state_dict().items(), online.state_dict().values(), strict=True):
        assert mine.data_ptr() != theirs.data_ptr()
        if name in buffers and own_buffers:
            assert torch.equal(mine, before[name])
        elif mine.is_floating_point():
            torch.testing.assert_close(mine, decay * before[name] + (1 - decay) * theirs, rtol=1e-5, atol=1e-7)
    assert averaged.bn.num_batches_tracked.item() == (1 if own_buffers else 2)


def test_the_copy_is_frozen_and_separate_and_the_online_network_untouched() -> None:
    torch.manual_seed(0)
    online = Classifier(build_backbone("cnn", {"width": 4}, in_channels=1, image_size=8), nn.Sequential(), 3)
    ema = EMA(online)
    assert not any(p.requires_grad for p in ema.parameters())
    assert all(p.requires_grad for p in online.parameters())
    state = {k: v.clone() for k, v in online.state_dict().items()}
    for p in ema.module.parameters():
        p.add_(1)
    ema.update(online)
    assert all(torch.equal(v, state[k]) for k, v in online.state_dict().items())
    assert ema(torch.zeros(2, 1, 8, 8)).requires_grad is False
    ema.eval()
    assert not ema.module.training
    assert online.training


def test_a_checkpoint_continues_the_warm_start_bit_for_bit() -> None:
    torch.manual_seed(0)
    first, online = EMA(scalar(1.0), 0.99), scalar(1.0)
    second = EMA(scalar(0.0), 0.99)
    for value in (2.0, 5.0, -1.0, 7.0):
        nn.init.constant_(online.weight, value)
        first.update(online)
        if value == 5.0:
            second.load_state_dict(first.state_dict())
        elif value in (-1.0, 7.0):
            second.update(online)
    assert torch.equal(first.module.weight, second.module.weight)
    assert first.step == second.step == 4


def test_update_runs_on_the_meta_device() -> None:
    """A read of a value of the device would fail here."""
    with torch.device("meta"):
        online = build_backbone("resnet18", {"width": 0.25}, in_channels=3, image_size=8)
        ema = EMA(online)
    ema.update(online)
    assert ema.step == 1 and next(ema.module.parameters()).is_meta


def test_a_network_without_parameters_or_buffers_is_fine() -> None:
    ema = EMA(nn.Sequential(nn.Flatten()))
    ema.update(nn.Sequential(nn.Flatten()))


def test_mistakes_are_named() -> None:
    for decay in (-0.1, 1.1, float("nan")):
        with pytest.raises(SemisupError, match="decay must be between 0 and 1"):
            EMA(scalar(0.0), decay)
    with pytest.raises(SemisupError, match="must be the same network"):
        EMA(scalar(0.0)).update(nn.Linear(1, 1))
    with pytest.raises(SemisupError, match="must be the same network"):
        EMA(nn.Linear(4, 3, bias=False)).update(nn.Linear(1, 3, bias=False))

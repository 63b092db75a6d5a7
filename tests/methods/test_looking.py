"""A look at a method leaves no trace in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from semisup.methods.parts.looking import looking

IMAGES = torch.zeros(1)


def test_modes_and_generator_come_back_also_after_an_error() -> None:
    method = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())).train()
    method[1][0].eval()  # frozen within what trains
    before = [module.training for module in method.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with pytest.raises(KeyError), looking(method, IMAGES):
        assert not any(module.training for module in method.modules())
        assert not torch.is_grad_enabled()
        torch.rand(3)
        raise KeyError
    assert [module.training for module in method.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_it_always_draws_the_same() -> None:
    method, draws = nn.Identity(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with looking(method, IMAGES):
            draws.append(torch.rand(4))
    assert torch.equal(*draws)

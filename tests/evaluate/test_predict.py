from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from semisup.errors import SemisupError
from semisup.evaluate import predict_logits


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5)
    )


IMAGES = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_result_is_the_eval_mode_forward_whatever_the_batches():
    model = network()
    expected = copy.deepcopy(model).eval()(IMAGES).detach()
    torch.testing.assert_close(predict_logits(model, [IMAGES]), expected)
    torch.testing.assert_close(predict_logits(model, iter(IMAGES.split(3))), expected)  # last batch smaller
    assert not torch.allclose(model(IMAGES), expected)  # train mode differs, so the check above means something


def test_nothing_in_the_network_changes():
    model = network()
    model[1].eval()  # a frozen BatchNorm inside a network in train mode
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    predict_logits(model, IMAGES.split(3))
    assert modes == [module.training for module in model.modules()] == [True, True, False, True, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert torch.equal(random_state, torch.get_rng_state())
    loss = model(IMAGES).sum()  # and it still trains
    loss.backward()


def test_modes_come_back_after_an_error():
    model = network()
    model[3].eval()

    def batches():
        yield IMAGES
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        predict_logits(model, batches())
    assert [module.training for module in model.modules()] == [True, True, True, True, False, True, True]


def test_result_is_an_ordinary_float32_tensor():
    result = predict_logits(network(), [IMAGES])
    assert not result.is_inference()
    assert not result.requires_grad
    weight = torch.ones(5, requires_grad=True)
    (result @ weight).sum().backward()  # an inference tensor could not be saved for backward
    half = predict_logits(network().bfloat16(), [IMAGES.bfloat16()])
    assert half.dtype == torch.float32


def test_tensors_made_by_the_iterator_stay_ordinary():
    made = []

    def batches():
        for start in (0, 5):
            made.append(IMAGES[start : start + 5] * 2)
            yield made[-1]

    predict_logits(network(), batches())
    assert not any(batch.is_inference() for batch in made)


def test_no_batch_is_an_error():
    with pytest.raises(SemisupError, match="no batch of images"):
        predict_logits(network(), [])

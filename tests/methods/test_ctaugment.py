"""CTAugment's lesson: rates against a slow loop, in FixMatch and ReMixMatch, whose losses stay what they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from semisup.augment.policies.ctaugment import new_rates
from semisup.methods import Batch
from semisup.methods.fixmatch import FixMatch
from semisup.methods.parts.learned_rates import learn_rates
from semisup.methods.remixmatch import ReMixMatch
from semisup.models import Classifier
from tests.methods import methods_reference as ref

BINS = torch.tensor([[20, 300], [20, 20], [37, 21], [322, 40], [21, 20]])


def given() -> Batch:
    labeled = {"weak": ref.images(5, 1), "strong": ref.images(5, 2), "probe": ref.images(5, 3)}
    unlabeled = {view: ref.images(7, 4 + k) for k, view in enumerate(("weak", "strong", "strong_1", "strong_2"))}
    batch = ref.batch(labeled, unlabeled, y=[0, 2, 2, 1, 0])
    return Batch(replace(batch.labeled, trace=BINS), batch.unlabeled)


def expected_rates(model: Classifier, batch: Batch) -> torch.Tensor:
    """One probe after another: rate = 0.99 rate + 0.01 (1 - |p - onehot(y)|_1 / 2)."""
    probs = ref.softmax(ref.logits(ref.weights(model), batch.labeled["probe"]))
    rates = new_rates().double().flatten().tolist()
    for row, y, bins in zip(probs, batch.labeled.y.tolist(), BINS.tolist(), strict=True):
        match = 1 - 0.5 * sum(abs(p - (c == y)) for c, p in enumerate(row))
        for place in bins:
            rates[place] = 0.99 * rates[place] + 0.01 * match
    return torch.tensor(rates, dtype=torch.float32).view(19, 17)


@pytest.mark.parametrize("cls", [FixMatch, ReMixMatch])
def test_a_step_moves_the_rates_and_leaves_its_losses_alone(cls: type[FixMatch | ReMixMatch]) -> None:
    model, batch = ref.regression(), given()
    method = cls(model, ctaugment=True)
    assert method.rates is method.learned() and method.rates is not None
    expected = expected_rates(model, batch)
    torch.manual_seed(7)
    update = ref.first(method, batch)
    torch.testing.assert_close(method.rates, expected, atol=1e-6, rtol=0)
    plain = cls(ref.regression())
    plain.load_state_dict(method.state_dict(), strict=False)
    assert plain.learned() is None and "rates" not in plain.state_dict()
    for name, buffer in cls(ref.regression()).named_buffers():  # remembered within the step
        plain.get_buffer(name).copy_(buffer)
    torch.manual_seed(7)
    torch.testing.assert_close(update.loss, ref.first(plain, batch).loss, atol=0, rtol=0)


def test_a_probe_is_asked_for_by_name_and_only_with_the_option() -> None:
    model = ref.regression()
    assert FixMatch(model, ctaugment=True).views.policies("labeled") == {"weak": "weak", "probe": "ctaugment_probe"}
    assert FixMatch(model, ctaugment=True).views.policies("unlabeled")["strong"] == "ctaugment_cutout"
    assert FixMatch(model).views is FixMatch.views
    remixmatch = ReMixMatch(model, ctaugment=True, strong_views=2).views
    assert remixmatch.policies("labeled") == {"strong": "ctaugment", "probe": "ctaugment_probe"}
    assert remixmatch.policies("unlabeled") == {"weak": "weak", "strong_1": "ctaugment", "strong_2": "ctaugment"}


def test_the_answer_is_the_evaluated_networks() -> None:
    """Dropout and batch statistics have no part in it, and the network trains on afterwards."""
    flat = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.5))
    flat.num_features = 4
    torch.manual_seed(0)
    model = Classifier(flat, nn.Sequential(), ref.CLASSES)
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    rates, again = new_rates(), new_rates()
    learn_rates(rates, model, given().labeled)
    learn_rates(again, model, given().labeled)
    assert torch.equal(rates, again)
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(statistics[name], buffer) for name, buffer in model.named_buffers())
    assert not rates.requires_grad


def test_a_view_of_unknown_bins_is_refused() -> None:
    batch = given()
    with pytest.raises(ValueError, match='"probe" must be made by the policy "ctaugment_probe"'):
        learn_rates(new_rates(), ref.regression(), replace(batch.labeled, trace=None))

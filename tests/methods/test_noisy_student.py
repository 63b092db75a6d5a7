"""Noisy Student against its joint loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semisup.errors import SemisupError
from semisup.methods import Batch, Progress, Unlabeled, Update
from semisup.methods.noisy_student import NoisyStudent
from tests.methods import methods_reference as ref

X = {"strong": ref.images(5, 1)}
U = {"strong": ref.images(8, 2)}
TARGET = torch.randn(8, ref.CLASSES, generator=torch.Generator().manual_seed(3)).softmax(1)


def given(target: torch.Tensor | None = TARGET) -> Batch:
    return ref.batch(X, U, target=target)


def check_equation(cls: type[NoisyStudent], target: torch.Tensor = TARGET) -> None:
    """CE(labels, smoothed) + 2 CE(pseudo-labels, as they are), without dropout."""
    model = ref.regression()
    update = ref.first(cls(model, unlabeled_weight=2.0, label_smoothing=0.3, dropout=0.0).train(), given(target))

    def supervised(w: ref.Array) -> float:
        return ref.labeled_loss(w, X["strong"], given().labeled.y, smoothing=0.3)

    def unlabeled(w: ref.Array) -> float:
        probs = ref.softmax(ref.logits(w, U["strong"]))
        return ref.mean(ref.cross_entropy(target.double().numpy(), probs))

    ref.check_value_and_gradient(update.log["supervised"], model, supervised)
    ref.check_value_and_gradient(update.log["unlabeled"], model, unlabeled)
    ref.check_value_and_gradient(update.loss, model, lambda w: supervised(w) + 2 * unlabeled(w))


def check_dropout(cls: type[NoisyStudent]) -> None:
    """On the features in train mode: some are 0 and the others 1 / (1 - p) as large; none in eval mode."""
    model = ref.regression()
    method = cls(model, dropout=0.75).train()
    seen: list[torch.Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    ref.first(method, given())
    clean = torch.cat([X["strong"], U["strong"]]).flatten(1)
    ratio = seen[0] / clean
    assert set(ratio.round(decimals=3).flatten().tolist()) == {0.0, 4.0}
    # 52 draws of probability .75: 39 expected, 3.1 standard deviation.
    assert 28 <= int((ratio == 0).sum()) <= 50
    ref.first(method.eval(), given())
    handle.remove()
    assert torch.equal(seen[1], clean)


def test_equation_with_soft_targets() -> None:
    check_equation(NoisyStudent)


def test_equation_with_hard_targets() -> None:
    check_equation(NoisyStudent, F.one_hot(TARGET.argmax(1), ref.CLASSES).float())


def test_dropout() -> None:
    check_dropout(NoisyStudent)


def test_target_is_constant() -> None:
    target = TARGET.clone()
    method = NoisyStudent(ref.regression())
    ref.run(method, given(target))
    assert torch.equal(target, TARGET)


def test_missing_target_is_an_error() -> None:
    with pytest.raises(SemisupError, match=r"noisy_student: no pseudo-labels; name a relabel stage as `pseudo_labels`"):
        next(iter(NoisyStudent(ref.regression()).step(given(None), ref.START)))


def test_joint_forward() -> None:
    model = ref.regression()
    norm = nn.BatchNorm1d(ref.PIXELS)
    model.neck.append(norm)
    ref.run(NoisyStudent(model).train(), given())
    assert norm.num_batches_tracked == 1
    assert norm.running_mean is not None
    ref.close(norm.running_mean, 0.1 * torch.cat([X["strong"], U["strong"]]).flatten(1).mean(0).double().numpy())


# --- sabotage --------------------------------------------------------------------------------------------------------


class OwnGuesses(NoisyStudent):
    """Ignores the targets and believes itself."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        own = self.model(batch.unlabeled["strong"]).detach().softmax(1)
        u = Unlabeled(batch.unlabeled.views, batch.unlabeled.index, own)
        return super().step(Batch(batch.labeled, u), progress)


class Hardened(NoisyStudent):
    """Only the best class of a soft target counts."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        assert batch.unlabeled.target is not None
        hard = F.one_hot(batch.unlabeled.target.argmax(1), ref.CLASSES).float()
        u = Unlabeled(batch.unlabeled.views, batch.unlabeled.index, hard)
        return super().step(Batch(batch.labeled, u), progress)


class SmoothedTwice(NoisyStudent):
    """Label smoothing on the pseudo-labels as well."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        target = batch.unlabeled.target
        assert target is not None
        u = Unlabeled(batch.unlabeled.views, batch.unlabeled.index, 0.7 * target + 0.3 / ref.CLASSES)
        return super().step(Batch(batch.labeled, u), progress)


class Unweighted(NoisyStudent):
    """The weight of the unlabeled term is forgotten."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            yield replace(update, loss=update.log["supervised"] + update.log["unlabeled"])


@pytest.mark.parametrize("cls", [OwnGuesses, Hardened, SmoothedTwice, Unweighted])
def test_equation_finds(cls: type[NoisyStudent]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls)


def test_dropout_check_finds_its_absence() -> None:
    class Quiet(NoisyStudent):
        def __init__(self, model: Any, **options: Any) -> None:
            super().__init__(model, **{**options, "dropout": 0.0})

    with pytest.raises(AssertionError):
        check_dropout(Quiet)

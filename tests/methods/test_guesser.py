"""`teacher: ema` of the fixmatch family: the moving average guesses, and is the finished classifier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from semisup.methods import METHODS, Batch, Method, Progress, Update
from semisup.methods.fixmatch import FixMatch
from semisup.models import Classifier
from tests.methods import methods_reference as ref

FAMILY = {"fixmatch": {"threshold": 0.0}, "flexmatch": {"threshold": 0.0}, "freematch": {}, "softmatch": {}}
DECAY = 0.6


def given(seed: int) -> Batch:
    return ref.batch(
        {"weak": ref.images(5, seed)}, {"weak": ref.images(9, seed + 1), "strong": ref.images(9, seed + 2)}
    )


def build(name: str, cls: type[Method] | None = None, **options: Any) -> Any:
    arguments = [100, 100] if name == "flexmatch" else []
    options = {**FAMILY[name], "teacher": "ema", "teacher_decay": DECAY, **options}
    return (cls or METHODS[name])(ref.regression(scale=2.0), *arguments, **options)


def check_guesses(name: str, cls: type[Method] | None = None) -> None:
    """Labels are those of weights averaged by hand: the plain mean of all so far, then m w' + (1 - m) w."""
    method = build(name, cls)
    average = ref.weights(method.model)
    differ = False
    for step in range(6):
        batch = given(10 * step)
        expected = ref.likeliest(ref.softmax(ref.logits(average, batch.unlabeled["weak"])))
        own = ref.likeliest(ref.softmax(ref.logits(ref.weights(method.model), batch.unlabeled["weak"])))
        (update,) = ref.run(method, batch, lr=3.0)
        assert update.pseudo_labels is not None
        assert update.pseudo_labels.labels.tolist() == expected, "labels are not those of the average"
        differ |= own != expected
        m = min(1 - 1 / (step + 2), DECAY)
        average = m * average + (1 - m) * ref.weights(method.model)
        ref.close(ref.weights(method.predictor()), average, rtol=1e-4, atol=1e-4)
    assert differ, "the student guesses alike: too easy an example"


@pytest.mark.parametrize("name", FAMILY)
def test_the_average_guesses_and_is_evaluated(name: str) -> None:
    check_guesses(name)


@pytest.mark.parametrize("name", FAMILY)
def test_the_average_is_no_part_of_what_is_trained(name: str) -> None:
    method = build(name)
    trained = {id(p) for p in method.groups()["main"]}
    assert trained == {id(p) for p in method.model.parameters()}
    assert method.averages
    plain = build(name, teacher="student")
    assert not plain.averages
    assert plain.predictor() is plain.model


def test_the_average_has_the_batch_statistics_of_the_weak_views() -> None:
    model = ref.regression()
    model.neck.append(nn.BatchNorm1d(ref.PIXELS))
    method = FixMatch(model, threshold=0.0, teacher="ema").train()
    batch = given(0)
    ref.run(method, batch)
    judged = method.predictor()
    assert isinstance(judged, Classifier)
    own, student = judged.neck[0], model.neck[0]
    assert isinstance(own, nn.BatchNorm1d)
    assert isinstance(student, nn.BatchNorm1d)
    assert own.running_mean is not None
    torch.testing.assert_close(own.running_mean, 0.1 * batch.unlabeled["weak"].flatten(1).mean(0))
    assert own.num_batches_tracked == student.num_batches_tracked == 1


class StudentGuesses(FixMatch):
    """The average is kept, and nobody asks it."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        average, self.teacher = self.teacher, None
        yield from super().step(batch, progress)
        self.teacher = average
        assert average is not None
        average.update(self.model)


class FrozenAverage(FixMatch):
    """The average stays where it began."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            yield update
            break


@pytest.mark.parametrize("cls", [StudentGuesses, FrozenAverage])
def test_guess_check_finds(cls: type[FixMatch]) -> None:
    with pytest.raises(AssertionError):
        check_guesses("fixmatch", cls)

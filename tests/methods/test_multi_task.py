"""Multi-task: the weighted sum of what the single methods say of the same images and draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.methods import METHODS, Batch, Progress, Update
from semisup.methods.multi_task import TASKS, MultiTask, TaskName
from semisup.models import Encoder
from semisup.models.cnn import SmallCNN
from semisup.pipeline.check import check_method
from tests.methods import methods_reference as ref
from tests.methods import pretext_reference as pretext

WEIGHTS: dict[TaskName, float] = {
    "rotation": 1.0,
    "jigsaw": 0.5,
    "context_prediction": 2.0,
    "counting": 0.1,
    "aet": 0.25,
}
U = pretext.images(6, 16)


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(SmallCNN(4, in_channels=1))


def build(cls: type[MultiTask] = MultiTask, tasks: dict[TaskName, float] = WEIGHTS) -> MultiTask:
    model = encoder()
    torch.manual_seed(1)
    return cls(model, tasks=tasks).train()


def step(method: Any) -> Update:
    torch.manual_seed(7)
    return ref.first(method, pretext.given(U))


def single_losses(method: MultiTask, names: list[TaskName]) -> dict[str, Tensor]:
    """What each single method, with the same encoder and head, says: they draw one after the other."""
    singles = {name: METHODS[name](encoder()).train() for name in names}
    torch.manual_seed(7)
    losses = {}
    for name, single in singles.items():
        single.get_submodule("task").load_state_dict(method.tasks[name].state_dict())
        single.encoder = method.encoder
        losses[str(name)] = ref.first(single, pretext.given(U)).loss
    return losses


def check_sum(cls: type[MultiTask]) -> None:
    method = build(cls)
    expected = single_losses(method, list(TASKS))
    update = step(method)
    assert update.log.keys() == expected.keys()
    for name, loss in expected.items():
        ref.close(update.log[name], loss.detach().double().numpy())
    total = sum(WEIGHTS[name] * float(expected[name].detach()) for name in TASKS)
    ref.close(update.loss, total)
    weights = list(method.encoder.parameters())
    slopes = torch.autograd.grad(update.loss, weights)
    parts = [torch.autograd.grad(WEIGHTS[name] * expected[name], weights) for name in TASKS]
    for slope, *of_tasks in zip(slopes, *parts, strict=True):
        torch.testing.assert_close(slope, torch.stack(of_tasks).sum(0), rtol=1e-4, atol=1e-5)


def test_sum_of_the_single_methods() -> None:
    check_sum(MultiTask)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_alone_is_its_method(name: TaskName) -> None:
    method = build(tasks={name: 3.0})
    assert list(method.tasks) == [name]
    expected = single_losses(method, [name])[name]
    ref.close(step(method).loss, 3 * expected.detach().double().numpy())


def test_a_head_learns_its_own_task_only() -> None:
    method = build()
    update = step(method)
    for name in TASKS:
        own = {id(p) for p in method.tasks[name].parameters()}
        slopes = torch.autograd.grad(
            update.log[name], list(method.tasks.parameters()), retain_graph=True, allow_unused=True
        )
        for p, slope in zip(method.tasks.parameters(), slopes, strict=True):
            assert (slope is not None) == (id(p) in own)


def test_one_forward_for_each_task() -> None:
    method = build()
    sizes: list[int] = []
    method.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    step(method)
    assert sizes == [4 * 6, 9 * 6, 9 * 6, 5 * 6, 2 * 6]


def test_the_order_of_the_keys_does_not_matter() -> None:
    other = dict(reversed(WEIGHTS.items()))
    assert list(other) != list(WEIGHTS)
    assert torch.equal(step(build()).loss, step(build(tasks=other)).loss)


def test_a_weight_of_0_leaves_a_task_out() -> None:
    with_zero = build(tasks={"rotation": 1.0, "aet": 0.0})
    assert list(with_zero.tasks) == ["rotation"]
    assert step(with_zero).log.keys() == {"rotation"}


def test_mistakes_are_named() -> None:
    with pytest.raises(SemisupError, match="unknown pretext task 'rotatoin'; did you mean 'rotation'"):
        MultiTask(encoder(), tasks={"rotatoin": 1.0})  # type: ignore[dict-item]
    for nothing in ({}, {"rotation": 0.0}):
        with pytest.raises(SemisupError, match="no pretext task has a weight above 0"):
            MultiTask(encoder(), tasks=nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tasks", "problem"),
    [
        ({"rotation": 1, "jigsaw": 0.5}, None),
        ({"rotatoin": 1}, "tasks.rotatoin: must be one of rotation, jigsaw, context_prediction, counting, aet"),
        ({"rotation": -1}, "tasks.rotation: must be at least 0, not -1"),
        ({"rotation": "much"}, "tasks.rotation: must be a number, not 'much'"),
        (["rotation"], "tasks: must be a mapping"),
        (None, "tasks: must be a mapping"),
    ],
)
def test_a_recipe_is_checked(tasks: Any, problem: str | None) -> None:
    found = check_method({"name": "multi_task", "tasks": tasks})
    assert found == [] if problem is None else len(found) == 1 and found[0].startswith(problem)


# --- sabotage --------------------------------------------------------------------------------------------------------


class PlainSum(MultiTask):
    """All tasks count alike."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            yield Update(torch.stack(list(update.log.values())).sum(), log=update.log)


class Mean(MultiTask):
    """The mean over tasks."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            yield Update(update.loss / len(self.tasks), log=update.log)


class SharedPixels(MultiTask):
    """One task's images are what another left of them."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        images, losses = batch.unlabeled["weak"], {}
        for name, task in self.tasks.items():
            losses[name] = task(self.encoder, images)
            images = images.flip(3)
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        yield Update(total, log=losses)


class DetachedTrunk(MultiTask):
    """One of the tasks teaches its head only. No value gives it away."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            jigsaw = self.weights["jigsaw"] * update.log["jigsaw"]
            yield Update(update.loss - jigsaw + jigsaw.detach(), log=update.log)


@pytest.mark.parametrize("cls", [PlainSum, Mean, SharedPixels, DetachedTrunk])
def test_sum_finds(cls: type[MultiTask]) -> None:
    with pytest.raises(AssertionError, match=r"Not equal|not close"):
        check_sum(cls)


def test_the_predictor_has_no_heads() -> None:
    method = build()
    assert method.predictor() is method.encoder
    assert isinstance(method.encoder.backbone, nn.Module)
    assert method.encoder.projector is None

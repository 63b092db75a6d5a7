"""DINO against its equations, one number at a time: targets, center, teacher and head."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.methods import Batch, Progress, Unlabeled, Update
from semisup.methods.dino import DINO, DINOHead
from semisup.models import Encoder
from semisup.models.cnn import SmallCNN
from tests.methods import methods_reference as ref
from tests.stages.stages_small import small_data, small_plan, train_stage

IMAGES, CLUSTERS = 5, 4


class Raw(nn.Module):
    """A head that hands the features on; its one number is there to be averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor, *, frozen: bool = False) -> Tensor:
        return features * self.scale


def bare(cls: type[DINO] = DINO, **options: Any) -> DINO:
    """The method with a linear encoder whose outputs are the logits."""
    torch.manual_seed(0)
    encoder = Encoder(ref.Layer(CLUSTERS))
    method = cls(encoder, out_features=CLUSTERS, **{"hidden": 3, "bottleneck": 2, "freeze": 0.0, "crops": 0} | options)
    method.head, method.teacher_head.module = Raw(), Raw().requires_grad_(False)
    return method


def given(crops: int = 0, seed: int = 0) -> Batch:
    names = ["first", "second", *(f"local_{i + 1}" for i in range(crops))]
    return ref.batch(unlabeled={name: ref.images(IMAGES, 10 * seed + i) for i, name in enumerate(names)})


def layer(network: nn.Module) -> ref.Array:
    """(CLUSTERS, PIXELS + 1): weight and bias of the encoder, for `ref.logits`."""
    linear = cast(nn.Linear, network.get_submodule("backbone.linear"))
    return torch.cat([linear.weight, linear.bias[:, None]], dim=1).detach().double().numpy()


def loss(w: ref.Array, batch: Batch, targets: list[ref.Array], temperature: float) -> float:
    """Mean over all pairs of a teacher's view and another view of the student of the mean cross-entropy."""
    losses = []
    for g, target in enumerate(targets):
        for v, view in enumerate(batch.unlabeled.views.values()):
            if v != g:
                answers = ref.softmax(ref.logits(w, view), temperature)
                losses.append(ref.mean(ref.cross_entropy(target, answers)))
    return ref.mean(losses)


def check_training(cls: type[DINO], crops: int = 2) -> None:
    """Four steps: loss and gradient by the equation, then the center, then the teacher.

    The teacher's weights are those of the averages so far: m_t = min(1 - 1 / (t + 1), m) with m from .6 to 1.
    """
    method = bare(cls, crops=crops, student_temperature=0.7, teacher_temperature=0.3, momentum=0.6)
    method.teacher.module.get_submodule("backbone.linear").weight.data.mul_(1.5)  # a teacher of its own
    center, teacher = np.zeros(CLUSTERS), layer(method.teacher.module)
    for step in range(4):
        batch, progress = given(crops, seed=step), Progress(step, 4)
        student = layer(method.encoder)
        answers = [ref.logits(teacher, batch.unlabeled[view]) for view in ("first", "second")]
        targets = [ref.softmax(view - center, 0.3) for view in answers]
        updates = method.step(batch, progress)
        update = next(updates)
        ref.close(update.loss, loss(student, batch, targets, 0.7))
        backbone = method.encoder.backbone
        slopes = torch.autograd.grad(update.loss, list(backbone.parameters()), retain_graph=True)
        got = torch.cat([slopes[0], slopes[1][:, None]], dim=1)
        wanted = ref.numeric_gradient(lambda w: loss(w, batch, targets, 0.7), student)  # noqa: B023
        ref.close(got, wanted, rtol=1e-3, atol=1e-5)
        sharp = ref.mean([-sum(p * math.log(p) for p in row) for target in targets for row in target])
        ref.close(update.log["teacher_entropy"], sharp)
        update.loss.backward()
        assert all(p.grad is None for p in [*method.teacher.parameters(), *method.teacher_head.parameters()])
        center = 0.9 * center + 0.1 * np.concatenate(answers).mean(axis=0)
        ref.close(method.center, center)
        with torch.no_grad():
            for p in backbone.parameters():
                p.sub_(0.5 * cast(Tensor, p.grad))
                p.grad = None
        assert next(updates, None) is None
        momentum = min(1 - 1 / (step + 2), 1 - 0.4 * (1 + math.cos(math.pi * step / 4)) / 2)
        teacher = momentum * teacher + (1 - momentum) * layer(method.encoder)
        ref.close(layer(method.teacher.module), teacher)


def test_training() -> None:
    check_training(DINO)


def test_center_of_a_constant_teacher() -> None:
    """After n steps c = (1 - .9^n) b."""
    method = bare(momentum=1.0)
    b = np.array([2.0, -1.0, 0.5, 0.0])
    linear = cast(nn.Linear, method.teacher.module.get_submodule("backbone.linear"))
    linear.weight.data.zero_()
    linear.bias.data.copy_(torch.tensor(b))
    for average in (method.teacher, method.teacher_head):
        average.update = lambda online: None  # type: ignore[method-assign]  # keep it constant
    for step in range(5):
        ref.run(method, given(seed=step))
        ref.close(method.center, (1 - 0.9 ** (step + 1)) * b)


def test_temperature_ramp() -> None:
    method = bare(teacher_temperature=0.8, first_teacher_temperature=0.2, teacher_temperature_ramp=0.5)
    batch = given()
    for step, temperature in ((0, 0.2), (1, 0.35), (2, 0.5), (4, 0.8), (7, 0.8)):
        method.center.zero_()
        answers = [ref.logits(layer(method.teacher.module), batch.unlabeled[view]) for view in ("first", "second")]
        targets = [ref.softmax(view, temperature) for view in answers]
        update = ref.first(method, batch, Progress(step, 8))
        ref.close(update.loss, loss(layer(method.encoder), batch, targets, 0.1), rtol=1e-4)


def test_teacher_sees_large_views_in_one_forward_with_its_own_statistics() -> None:
    torch.manual_seed(0)
    method = DINO(
        Encoder(SmallCNN(2, in_channels=1)), out_features=CLUSTERS, hidden=6, bottleneck=3, crops=3, momentum=0.0
    ).train()
    views = method.views.policies("unlabeled")
    assert list(views.items())[1:3] == [("second", "dino_second"), ("local_1", "dino_local")]
    batch = ref.batch(unlabeled={v: torch.randn(4, 1, *((6, 6) if "local" in v else (12, 12))) for v in views})
    before = method.encoder.backbone.get_submodule("layer1.0").weight.detach().clone()
    ref.run(method, batch)
    student, teacher = (m.get_submodule("backbone.layer1.1") for m in (method.encoder, method.teacher.module))
    assert (int(cast(Tensor, student.num_batches_tracked)), int(cast(Tensor, teacher.num_batches_tracked))) == (2, 1)
    large = torch.cat([batch.unlabeled["first"], batch.unlabeled["second"]])
    seen = torch.nn.functional.conv2d(large, before, padding=1)  # by the weights before the update
    ref.close(cast(Tensor, teacher.running_mean), 0.1 * seen.mean((0, 2, 3)).double().numpy(), rtol=1e-3, atol=1e-5)


def test_predictor_is_the_teacher() -> None:
    method = bare()
    assert method.predictor() is method.teacher.module


# --- the head --------------------------------------------------------------------------------------------------------


def test_head() -> None:
    torch.manual_seed(0)
    head = DINOHead(3, 5, 2, 4)
    x = torch.randn(6, 3)
    shapes = [tuple(m.weight.shape) for m in head.mlp if isinstance(m, nn.Linear)]
    assert (shapes, tuple(head.last.shape)) == ([(5, 3), (5, 5), (2, 5)], (4, 2))
    z = x.double().numpy()
    for i, linear in enumerate(m for m in head.mlp if isinstance(m, nn.Linear)):
        z = z @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy()
        if i < 2:
            z = np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))))(z)
    last = head.last.detach().double().numpy()
    cosines = [[float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) for b in last] for a in z]
    ref.close(head(x), np.array(cosines), rtol=1e-4)
    head.last.data.mul_(torch.tensor([[1.0], [2.0], [5.0], [0.1]]))  # weight normalization: lengths do not matter
    ref.close(head(x), np.array(cosines), rtol=1e-4)


def test_head_with_batch_norm() -> None:
    kinds = [type(module).__name__ for module in DINOHead(3, 5, 2, 4, batch_norm=True).mlp]
    assert kinds == ["Linear", "BatchNorm1d", "GELU"] * 2 + ["Linear"]
    method = DINO(ref.linear_encoder(), out_features=CLUSTERS, hidden=8, bottleneck=2, crops=1, batch_norm=True).train()
    ref.run(method, given(1))
    for head in (method.head, method.teacher_head.module):
        norms = [module for module in head.modules() if isinstance(module, nn.BatchNorm1d)]
        assert [int(cast(Tensor, norm.num_batches_tracked)) for norm in norms] == [1, 1]


def test_frozen_last_layer_gets_no_gradient_at_all() -> None:
    """Not one of 0, next to which weight decay and momentum would still move it."""
    torch.manual_seed(0)
    method = DINO(ref.linear_encoder(), out_features=CLUSTERS, hidden=3, bottleneck=2, crops=1, freeze=0.5)
    for step in range(10):
        ref.first(method, given(1, seed=step), Progress(step, 10)).loss.backward()
        assert (method.head.last.grad is None) == (step < 5), f"step {step}"
        assert method.head.mlp[0].weight.grad is not None


# --- sabotage --------------------------------------------------------------------------------------------------------


class EarlyCenter(DINO):
    """The center has seen the batch before the loss does."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        with torch.no_grad():
            large = torch.cat([batch.unlabeled["first"], batch.unlabeled["second"]])
            self.center.lerp_(self.teacher_head(self.teacher(large)).mean(0), 0.1)
        yield from super().step(batch, progress)


class NoCenter(DINO):
    """The center stays where it was."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            self.center.zero_()
            yield update


class CopiedTeacher(DINO):
    """The teacher is the student itself."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.teacher.module.load_state_dict(self.encoder.state_dict())
        yield from super().step(batch, progress)


class ConstantMomentum(DINO):
    """The teacher's momentum does not rise."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        yield from super().step(batch, Progress(0, 4))


class LocalTeacher(DINO):
    """The teacher looks at a small view."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        turned = {**u.views, "second": u["local_1"], "local_1": u["second"]}
        yield from super().step(Batch(batch.labeled, Unlabeled(turned, u.index)), progress)


@pytest.mark.parametrize("cls", [EarlyCenter, NoCenter, CopiedTeacher, ConstantMomentum, LocalTeacher])
def test_training_check_finds(cls: type[DINO]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_training(cls)


def test_the_last_layer_begins_short_enough_to_turn() -> None:
    """U(-1/8, 1/8) in 64 dimensions: rows of length 0.577. Normal numbers, 14 times as long, would hardly turn."""
    torch.manual_seed(0)
    head = DINOHead(6, 8, 64, 50)
    assert float(head.last.detach().abs().max()) <= 1 / 8
    torch.testing.assert_close(head.last.detach().norm(dim=1).mean(), torch.tensor(3**-0.5), atol=0.02, rtol=0)
    before = F.normalize(head.last.detach(), dim=1)
    optimizer = torch.optim.AdamW([head.last], lr=3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        head(torch.randn(16, 6))[:, 0].sum().backward()
        optimizer.step()
    turned = torch.rad2deg((before[0] @ F.normalize(head.last.detach()[0], dim=0)).acos())
    assert float(turned) > 10


def test_small_crops_that_the_network_cannot_take_are_refused_in_the_plan() -> None:
    model = {"name": "vit", "width": 12, "depth": 3, "patch": 8}
    with pytest.raises(SemisupError, match=r"batch: method 'dino' cannot make a step .*patch must divide"):
        small_plan({"s": train_stage("dino")}, small_data(), model=model)

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semisup.engine.optim import LARS, build_optimizers, learning_rate, set_learning_rates, warmup_steps
from semisup.errors import SemisupError
from semisup.methods import METHODS, Batch, Method, Progress, Update
from semisup.methods.base import given_to
from semisup.models import Encoder, ModelSpec, build_backbone, build_classifier
from semisup.settings import OptimizerConfig, ScheduleConfig

SCHEDULES = ("cosine", "cosine_7_16", "constant")


def slow_lars(
    weights: list[list[float]],
    grads: list[list[list[float]]],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    trust: float,
    adapt: bool,
) -> list[list[float]]:
    """You et al. 2017, algorithm 1, one number at a time: v <- m v + lr * ratio * (g + wd w); w <- w - v."""
    weights = [list(w) for w in weights]
    velocity = [[0.0] * len(w) for w in weights]
    for step in grads:
        for w, v, g in zip(weights, velocity, step, strict=True):
            decayed = [gi + weight_decay * wi for gi, wi in zip(g, w, strict=True)]
            ratio = 1.0
            if adapt:
                w_norm = math.sqrt(sum(x * x for x in w))
                g_norm = math.sqrt(sum(x * x for x in decayed))
                if w_norm > 0 and g_norm > 0:
                    ratio = trust * w_norm / g_norm
            for i in range(len(w)):
                v[i] = momentum * v[i] + lr * ratio * decayed[i]
                w[i] -= v[i]
    return weights


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_equals_the_loop_over_numbers(adapt: bool, weight_decay: float, momentum: float) -> None:
    torch.manual_seed(0)
    shapes = [(3, 4), (5,), (2, 2, 2)]
    start = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    start.append(torch.zeros(3, dtype=torch.float64))  # a norm of 0: plain SGD
    grads = [[torch.randn_like(w) for w in start] for _ in range(4)]
    grads[1][0].zero_()  # a gradient of 0
    parameters = [nn.Parameter(w.clone()) for w in start]
    settings = {"lr": 0.3, "momentum": momentum, "weight_decay": weight_decay, "trust": 0.02}
    optimizer = LARS([{"params": parameters, "adapt": adapt}], **settings)
    for step in grads:
        for parameter, grad in zip(parameters, step, strict=True):
            parameter.grad = grad.clone()
        optimizer.step()
    expected = slow_lars(
        [w.flatten().tolist() for w in start],
        [[g.flatten().tolist() for g in step] for step in grads],
        adapt=adapt,
        **settings,
    )
    for parameter, numbers in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach().flatten(), torch.tensor(numbers, dtype=torch.float64))


def test_lars_step_does_not_depend_on_the_scale_of_the_gradient() -> None:
    moved = []
    for scale in (1.0, 1000.0):
        weight = nn.Parameter(torch.ones(2, 3))
        weight.grad = scale * torch.arange(6.0).reshape(2, 3)
        LARS([weight], lr=0.1, momentum=0.0, trust=0.01).step()
        moved.append(weight.detach().clone())
    torch.testing.assert_close(moved[0], moved[1])
    assert not torch.equal(moved[0], torch.ones(2, 3))


def test_lars_leaves_parameters_without_gradient_alone() -> None:
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    used.grad = torch.ones(2, 2)
    optimizer = LARS([used, unused], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(unused, torch.ones(2, 2))
    assert not torch.equal(used, torch.ones(2, 2))
    assert unused not in optimizer.state


def test_lars_returns_what_the_closure_computes() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight], lr=0.1)

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 4.0
    assert not torch.equal(weight, torch.ones(2, 2))


class TwoNets(Method):
    """A convolutional student and a linear teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
        self.teacher = nn.Linear(4, 2)
        self.frozen = nn.Linear(4, 2).requires_grad_(False)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        yield from ()

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"student": list(self.student.parameters()), "teacher": list(self.teacher.parameters())}


OPTIMIZERS: dict[str, dict[str, Any]] = {"sgd": {}, "adamw": {"betas": [0.8, 0.9]}, "lars": {"trust": 0.02}}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_biases_and_norms_get_no_weight_decay(name: str) -> None:
    method = TwoNets()
    config = OptimizerConfig(name=name, weight_decay=0.25, **OPTIMIZERS[name])
    optimizers = build_optimizers(method, config)
    assert set(optimizers) == {"student", "teacher"}
    conv, norm, _, head = method.student
    decays = {id(p): g["weight_decay"] for g in optimizers["student"].param_groups for p in g["params"]}
    assert decays[id(conv.weight)] == decays[id(head.weight)] == 0.25
    assert [decays[id(p)] for p in (conv.bias, norm.weight, norm.bias, head.bias)] == [0.0] * 4
    if name == "lars":
        adapts = {id(p): g["adapt"] for g in optimizers["student"].param_groups for p in g["params"]}
        assert adapts[id(conv.weight)] and not adapts[id(norm.weight)] and not adapts[id(conv.bias)]
        assert all(g["trust"] == 0.02 for g in optimizers["student"].param_groups)
    if name == "adamw":
        assert all(g["betas"] == (0.8, 0.9) for g in optimizers["student"].param_groups)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_group_has_the_learning_rate_given_for_it(name: str) -> None:
    optimizers = build_optimizers(TwoNets(), OptimizerConfig(name=name, lr=0.5, group_lr={"teacher": 0.125}))
    assert {g["lr"] for g in optimizers["student"].param_groups} == {0.5}
    assert {g["lr"] for g in optimizers["teacher"].param_groups} == {0.125}
    set_learning_rates(optimizers.values(), 0.5)
    set_learning_rates(optimizers.values(), 0.25)  # of the peak, not of what it is now
    assert {g["lr"] for g in optimizers["student"].param_groups} == {0.125}
    assert {g["lr"] for g in optimizers["teacher"].param_groups} == {0.03125}


def test_a_group_that_the_method_lacks_is_an_error() -> None:
    config = OptimizerConfig(group_lr={"techer": 0.1, "main": 0.1})
    with pytest.raises(SemisupError) as caught:
        build_optimizers(TwoNets(), config)
    message = str(caught.value)
    assert "optimizer.group_lr" in message and "'techer'; did you mean 'teacher'?" in message and "'main'" in message


def build(name: str) -> Method:
    backbone = "vit" if name in ("mae", "maskfeat") else "cnn"
    spec = ModelSpec(backbone, {"width": 12}, 3, 8, 3)
    cls = METHODS[name]
    model: nn.Module = (
        build_classifier(spec)
        if cls.trains == "classifier"
        else Encoder(build_backbone(backbone, spec.options, in_channels=3, image_size=8))
    )
    there_is = {
        "teacher": build_classifier(spec),
        "second": build_classifier(spec),
        "num_images": 10,
        "num_unlabeled": 10,
        "num_labeled": 10,
        "image_shape": (3, 8, 8),
        "statistics": ([0.5] * 3, [0.25] * 3),
    }
    given: dict[str, Any] = {name: there_is[name] for name in given_to(cls)}
    return cls(model, **given)


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_of_a_method_is_optimized_exactly_once(name: str) -> None:
    method = build(name)
    wanted = [id(p) for parameters in method.groups().values() for p in parameters if p.requires_grad]
    optimizers = build_optimizers(method, OptimizerConfig())
    given = [id(p) for o in optimizers.values() for group in o.param_groups for p in group["params"]]
    assert len(given) == len(set(given)) == len(set(wanted))
    assert set(given) == set(wanted)
    # What asks for a gradient is in a group: nothing is left untrained by mistake.
    assert set(given) == {id(p) for p in method.parameters() if p.requires_grad}


def test_sgd_is_nesterov_only_with_momentum() -> None:
    assert build_optimizers(TwoNets(), OptimizerConfig())["student"].param_groups[0]["nesterov"] is True
    plain = OptimizerConfig(momentum=0.0, nesterov=True)
    assert build_optimizers(TwoNets(), plain)["student"].param_groups[0]["nesterov"] is False
    classic = OptimizerConfig(nesterov=False)
    assert build_optimizers(TwoNets(), classic)["student"].param_groups[0]["nesterov"] is False


def factor(name: str, step: int, total: int, warmup: float = 0.0) -> float:
    return learning_rate(ScheduleConfig(name=name, warmup=warmup), step, total)


def test_cosine_7_16_has_the_values_of_fixmatch() -> None:
    """methods.md, section 0."""
    assert factor("cosine_7_16", 0, 1000) == 1.0
    assert factor("cosine_7_16", 500, 1000) == pytest.approx(0.773, abs=5e-4)
    assert factor("cosine_7_16", 1000, 1000) == pytest.approx(0.1951, abs=5e-5)


def test_cosine_ends_at_zero_and_constant_stays() -> None:
    assert factor("cosine", 0, 10) == 1.0
    assert factor("cosine", 5, 10) == pytest.approx(0.5)
    assert factor("cosine", 10, 10) == pytest.approx(0.0, abs=1e-12)
    assert {factor("constant", step, 10) for step in range(10)} == {1.0}


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_is_linear_and_then_the_schedule_begins(name: str) -> None:
    assert [factor(name, step, 20, warmup=4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(name, 4, 20, warmup=4) == factor(name, 0, 16) == 1.0
    assert factor(name, 12, 20, warmup=4) == factor(name, 8, 16)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_never_rises_after_the_warmup(name: str) -> None:
    rates = [factor(name, step, 50, warmup=0.1) for step in range(50)]
    assert all(a >= b > 0 for a, b in itertools.pairwise(rates[5:]))


def test_warmup_below_one_is_a_part_of_the_stage() -> None:
    assert warmup_steps(ScheduleConfig(warmup=0.1), 50) == 5
    assert warmup_steps(ScheduleConfig(warmup=0.0), 50) == 0
    assert warmup_steps(ScheduleConfig(warmup=1), 50) == 1
    assert warmup_steps(ScheduleConfig(warmup=30), 50) == 30
    assert factor("cosine", 0, 1, warmup=1) == 1.0  # a stage that is all warm-up


def test_lars_state_survives_saving() -> None:
    def run(parameter: nn.Parameter, optimizer: LARS, grads: list[Tensor]) -> None:
        for grad in grads:
            parameter.grad = grad.clone()
            optimizer.step()

    torch.manual_seed(0)
    grads = [torch.randn(2, 3) for _ in range(6)]
    whole = nn.Parameter(torch.ones(2, 3))
    run(whole, LARS([whole], lr=0.1), grads)
    first = nn.Parameter(torch.ones(2, 3))
    before = LARS([first], lr=0.1)
    run(first, before, grads[:3])
    second = nn.Parameter(first.detach().clone())
    after = LARS([second], lr=0.1)
    after.load_state_dict(before.state_dict())
    run(second, after, grads[3:])
    assert torch.equal(whole, second)

"""What stands for a GPU where there is none: bfloat16, float16's scaler, graphs without breaks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from semisup.engine import FitSettings, Training
from semisup.methods import Batch, Progress, Update
from semisup.models import ModelSpec, build_classifier
from semisup.settings import OptimizerConfig, ScheduleConfig
from tests.contract.contract_settings import CASES, Source

CPU = torch.device("cpu")


def first_loss(name: str, *, bfloat16: bool) -> float:
    method = CASES[name].build()
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        return float(next(iter(method.step(Source(method)(0), Progress(0, 3)))).loss.detach())


@pytest.mark.slow
def test_bfloat16_has_the_losses_of_float32() -> None:
    """To 2%, or of the size that a loss in [-1, 1] has."""
    for name in CASES:
        exact = first_loss(name, bfloat16=False)
        assert first_loss(name, bfloat16=True) == pytest.approx(exact, rel=0.02, abs=2e-3), name


class Overflowing(nn.Module):
    """A method of one weight, whose scaled loss is beyond float32 at one step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))
        self.at = at

    def step(self, batch: Batch, progress: Progress):  # type: ignore[no-untyped-def]
        size = 1e36 if progress.step == self.at else 1.0
        yield Update((self.weight * size).sum())

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"main": [self.weight]}

    def predictor(self) -> nn.Module:
        return self


def test_an_overflow_of_float16_is_left_out() -> None:
    settings = FitSettings(
        steps=3,
        optimizer=OptimizerConfig(name="sgd", lr=0.1, momentum=0, nesterov=False, weight_decay=0),
        schedule=ScheduleConfig(name="constant"),
        device=CPU,
        precision="fp16",
    )
    method = Overflowing(at=1)
    run = Training(method, settings)  # type: ignore[arg-type]
    seen: list[tuple[float, float]] = []
    for _ in range(3):
        run.prepare()
        for _update in run.updates(lambda number: None):  # type: ignore[arg-type, return-value]
            seen.append((float(method.weight.detach()), run.scaler.get_scale()))
        run.finish_step()
    weights, scales = zip(*seen, strict=True)
    assert weights == pytest.approx((0.9, 0.9, 0.8)), "nothing is learned from an infinite gradient"
    assert scales[1] == scales[0] / 2
    assert run.check_finite(), "the loss itself is finite, and so are the weights"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "wrn", "resnet18", "resnet50", "vit"])
def test_a_backbone_is_one_graph(name: str) -> None:
    """Forward, without a break at which the host would have to look at the device."""
    options = {"depth": 10, "width": 1} if name == "wrn" else {}
    backbone = build_classifier(ModelSpec(name, options, in_channels=3, image_size=32, num_classes=5)).backbone
    images = torch.rand(2, 3, 32, 32)
    graph = torch.compile(backbone, fullgraph=True, backend="eager", dynamic=False)
    features: Tensor = graph(images)
    assert features.shape == (2, backbone.num_features)

"""Parts of a step and of a run: several batches per update, frozen blocks that learn later, learning rates by depth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.engine import Checkpoints, FitSettings, Training, fit
from semisup.engine.optim import build_optimizers
from semisup.engine.seeding import generator
from semisup.methods import Batch, Labeled, Method, Progress, Unlabeled, Update
from semisup.models import Classifier, build_backbone, build_neck
from semisup.settings import OptimizerConfig, ScheduleConfig

CPU = torch.device("cpu")
PLAIN = OptimizerConfig(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)
ADAM = OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1, clip=1.0)


class Images:
    """Step -> `size` random images and their classes."""

    def __init__(self, size: int = 4) -> None:
        self.images_per_step = size
        self.asked: list[int] = []

    def __call__(self, step: int) -> Batch:
        self.asked.append(step)
        draws = generator("images", step)
        x, y = torch.randn(self.images_per_step, 1, 8, 8, generator=draws), torch.arange(self.images_per_step) % 2
        return Batch(Labeled({"weak": x}, y), Unlabeled({}, torch.empty(0, dtype=torch.long)))


class Small(Method):
    """A classifier, and a count of what comes after an update."""

    after: Tensor

    def __init__(self, name: str = "vit") -> None:
        super().__init__()
        torch.manual_seed(0)
        options = {"width": 12, "depth": 3, "patch": 4} if name == "vit" else {"width": 4}
        backbone = build_backbone(name, options, in_channels=1, image_size=8)
        self.model = Classifier(backbone, build_neck(backbone.num_features, []), 2)  # type: ignore[arg-type]
        self.register_buffer("after", torch.zeros((), dtype=torch.long))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        yield Update(F.cross_entropy(self.model(batch.labeled["weak"]), batch.labeled.y))
        self.after += 1

    def predictor(self) -> nn.Module:
        return self.model


def settings(steps: int, optimizer: OptimizerConfig = ADAM, **changes: Any) -> FitSettings:
    return FitSettings(
        steps=steps, optimizer=optimizer, schedule=ScheduleConfig(name="constant"), device=CPU, log_every=2, **changes
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_parts_of_a_batch_make_the_step_of_the_whole() -> None:
    class Halves(Images):
        def __call__(self, step: int) -> Batch:
            whole = Images(8)(step // 2).labeled
            rows = slice(4 * (step % 2), 4 * (step % 2) + 4)
            return Batch(Labeled({"weak": whole["weak"][rows]}, whole.y[rows]), Unlabeled({}, torch.empty(0)))

    whole, parts = Small(), Small()
    fit(whole, Images(8), settings(3, PLAIN))
    fit(parts, Halves(), settings(3, PLAIN, accumulate=2))
    for mine, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)
    assert (int(whole.after), int(parts.after)) == (3, 6), "what follows an update follows each batch"


def test_batches_follow_each_other_and_all_of_them_count() -> None:
    images = Images()
    result = fit(Small(), images, settings(2, accumulate=3))
    assert images.asked == [0, 1, 2, 3, 4, 5]
    assert result.images_per_second == pytest.approx(2 * 3 * 4 / result.seconds)


@pytest.mark.parametrize(
    "changes", [{"accumulate": 2}, {"frozen_until": (None, 4), "ema": 0.9}, {"frozen_until": (2, 3)}]
)
@pytest.mark.parametrize("stop", [2, 3, 4, 5])
def test_a_resumed_run_ends_with_the_same_bits(changes: dict[str, Any], stop: int, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class Stopping(Images):
        def __call__(self, step: int) -> Batch:
            if step == stop * changes.get("accumulate", 1):
                raise Stop
            return super().__call__(step)

    whole, stopped, resumed = Small("cnn"), Small("cnn"), Small("cnn")
    one = fit(whole, Images(), settings(7, **changes))
    observer = Checkpoints(tmp_path / "checkpoint.pt", 0.0)
    with pytest.raises(Stop):
        fit(stopped, Stopping(), settings(7, **changes), [observer])
    other = fit(resumed, Images(), settings(7, **changes), [Checkpoints(tmp_path / "checkpoint.pt", 0.0)])
    assert other.resumed_from == stop
    assert same(resumed, whole)
    if one.ema is not None and other.ema is not None:
        assert same(other.ema, one.ema)


def test_what_is_frozen_learns_from_its_step_on() -> None:
    method = Small()
    run = Training(method, settings(6, frozen_until=(2, 3)))
    method.train()
    frozen = {n for n, p in method.model.backbone.named_parameters() if not n.startswith(("blocks.2", "norm"))}
    for step in range(5):
        before = {name: p.detach().clone() for name, p in method.model.backbone.named_parameters()}
        run.prepare()
        for _ in run.updates(Images()):
            pass
        run.finish_step()
        still = {n for n, p in method.model.backbone.named_parameters() if torch.equal(p, before[n])}
        assert still == (frozen if step < 3 else set()), step
        held = list(run.optimizers["main"].state)
        assert len(held) == len(list(method.parameters())) - (len(frozen) if step < 3 else 0), "no state of it before"


def test_the_learning_rate_decays_from_block_to_block_as_in_timm() -> None:
    timm = pytest.importorskip("timm")
    from timm.optim._param_groups import param_groups_layer_decay

    config = OptimizerConfig(name="adamw", lr=0.2, weight_decay=0.05, lr_decay=0.7, group_lr={"main": 0.5})
    method = Small()
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 3, "in_chans": 1}
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=2, **sizes)
    expected: dict[str, tuple[float, float]] = {}
    for group in param_groups_layer_decay(theirs, weight_decay=0.05, layer_decay=0.7):
        for p in group["params"]:
            name = next(name for name, mine in theirs.named_parameters() if mine is p)
            expected[name] = (0.5 * group["lr_scale"], group["weight_decay"])
    groups = build_optimizers(method, config)["main"].param_groups
    assert groups[0]["peak_lr"] == 0.5, "the logged rate is the heads'"
    for name, parameter in method.model.named_parameters():
        found = next(group for group in groups if any(parameter is p for p in group["params"]))
        rate, decay = expected[name.removeprefix("backbone.")]
        assert found["peak_lr"] == pytest.approx(rate), name
        assert found["weight_decay"] == decay


def test_without_decay_groups_are_as_ever() -> None:
    groups = build_optimizers(Small(), PLAIN)["main"].param_groups
    assert len(groups) == 2
    assert {group["peak_lr"] for group in groups} == {0.1}

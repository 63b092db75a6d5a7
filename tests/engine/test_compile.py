"""`compile: true` changes no name, no state and no guarantee of a run, only how long it takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from semisup.engine import Checkpoints, FitSettings, check_compiler, compile_backbones, fit, uncompiled
from semisup.engine.seeding import generator
from semisup.errors import SemisupError
from semisup.methods import METHODS, Batch, Labeled, Method, Unlabeled
from semisup.models import Classifier
from semisup.models.cnn import SmallCNN
from semisup.settings import OptimizerConfig, ScheduleConfig, TrainConfig
from semisup.stages.initial import networks_within
from semisup.stages.tuning import tune

CPU = torch.device("cpu")


class Killed(Exception):
    """Stands for a process that dies."""


class Images:
    """Step -> batch of MeanTeacher's views."""

    images_per_step = 12

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at = dies_at

    def __call__(self, step: int) -> Batch:
        if step == self.dies_at:
            raise Killed
        draw = generator("images", step)
        x, s, t = (torch.rand(n, 1, 8, 8, generator=draw) for n in (4, 8, 8))
        y = torch.arange(4) % 3
        return Batch(Labeled({"weak": x}, y), Unlabeled({"student": s, "teacher": t}, torch.arange(8)))


def make() -> Method:
    torch.manual_seed(0)
    method = METHODS["mean_teacher"](Classifier(SmallCNN(3, in_channels=1), nn.Sequential(), 3), decay=0.5)
    return method.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def train(method: Method, source: Images, checkpoint: Path | None = None) -> nn.Module:
    result = fit(
        method,
        source,
        FitSettings(steps=4, optimizer=OptimizerConfig(lr=0.05), schedule=ScheduleConfig(), ema=0.5, device=CPU),
        [] if checkpoint is None else [Checkpoints(checkpoint, 0.0)],
    )
    assert result.ema is not None
    return result.ema.module


def compiled() -> Method:
    method = make()
    compile_backbones(method)
    return method


@pytest.fixture
def counted() -> Iterator[dict[str, int]]:
    """How many graphs torch has compiled; nothing is kept of what other tests compiled."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield counters["stats"]
    torch._dynamo.reset()


def test_student_and_teacher_are_compiled_in_place_and_copies_are_not() -> None:
    method = compiled()
    backbones = [module for module in method.modules() if isinstance(module, SmallCNN)]
    assert len(backbones) == 2
    assert all(backbone._compiled_call_impl is not None for backbone in backbones)
    assert list(method.state_dict()) == list(make().state_dict())


@pytest.mark.slow
def test_a_compiled_run_learns_the_same_resumes_bit_for_bit_and_keeps_every_name(
    tmp_path: Path, counted: dict[str, int]
) -> None:
    plain, whole, killed = make(), compiled(), compiled()
    with uncompiled(True):
        train(plain, Images())
    assert counted.get("unique_graphs", 0) == 0
    average = train(whole, Images())
    assert counted["unique_graphs"] > 0  # it was compiled indeed
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(whole.state_dict()[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    with pytest.raises(Killed):
        train(killed, Images(dies_at=2), tmp_path / "c.pt")
    again = compiled()
    average_again = train(again, Images(), tmp_path / "c.pt")
    for ours, theirs in ((again, whole), (average_again, average)):
        state = theirs.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
    graphs = counted["unique_graphs"]
    with uncompiled(True):
        whole.predictor()(torch.rand(7, 1, 8, 8))  # a size that no step had
    average(torch.rand(7, 1, 8, 8))
    assert counted["unique_graphs"] == graphs


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys", [{"freeze": {"blocks": 1}}, {"lora": {"rank": 2, "targets": ["0"]}}, {"train": "bias"}]
)
def test_what_learns_of_a_compiled_network_is_what_was_asked_for(keys: Any, counted: dict[str, int]) -> None:
    plain, whole = make(), make()
    for method in (plain, whole):
        tune(method, TrainConfig(method={"name": "mean_teacher"}, **keys), "key")
    before = {name: p.detach().clone() for name, p in whole.named_parameters()}
    compile_backbones(whole)
    with uncompiled(True):
        train(plain, Images())
    train(whole, Images())
    assert counted["unique_graphs"] > 0
    for (name, mine), theirs in zip(whole.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5, msg=name)
    moved = [not torch.equal(p, before[name]) for name, p in whole.named_parameters() if p.requires_grad]
    student = {id(p) for p in networks_within(whole)[0].parameters()}
    frozen = [(name, p) for name, p in whole.named_parameters() if id(p) in student and not p.requires_grad]
    still = [torch.equal(p, before[name]) for name, p in frozen]
    assert moved and all(moved) and still and all(still)


@pytest.mark.slow
def test_each_stage_may_compile_as_much_as_the_first(counted: dict[str, int]) -> None:
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for side in (8, 12):  # of two stages' images
            method = compiled()
            method.predictor()(torch.rand(2, 1, side, side))
    assert counted["unique_graphs"] == 2


RECIPE = """
name: tiny
device: cpu
compile: true
tracking: {mlflow: false}
data: {source: digits, labels: 40}
model: {name: cnn, width: 3}
stages: {train: {method: {name: supervised}, steps: 2}}
"""


def test_without_a_compiler_the_recipe_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", "from semisup.cli.app import main; main()", "run", "tiny.yaml", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    errors = done.stderr[done.stderr.index("error:") :]
    assert "compile: torch.compile does not work here, on cpu it needs a C++ compiler" in errors
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_whatever_fails_in_the_compiler_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **kwargs: Any) -> Any:
        def call(x: Any) -> Any:
            raise RuntimeError("no headers\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(SemisupError, match=r"^compile: .*no headers; remove `compile: true`$"):
        check_compiler(CPU)

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.engine import (
    Checkpoints,
    CollapseError,
    CollapseWatch,
    FitResult,
    FitSettings,
    Log,
    NonFiniteLossError,
    Observer,
    Quality,
    Stopped,
    fit,
    observers,
)
from semisup.engine.checkpoint import load_checkpoint, save_checkpoint
from semisup.engine.seeding import generator
from semisup.errors import SemisupError
from semisup.evaluate import collapse_panel
from semisup.methods import Batch, Labeled, Method, Progress, PseudoLabels, Unlabeled, Update
from semisup.settings import OptimizerConfig, ScheduleConfig

CPU = torch.device("cpu")
CONSTANT = ScheduleConfig(name="constant")
PLAIN = OptimizerConfig(lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)


class Points:
    """Step -> eight points of four numbers and their class; nothing of it is an image, which `fit` cannot know."""

    images_per_step = 8

    def __call__(self, step: int) -> Batch:
        x = torch.randn(8, 4, generator=generator("points", step))
        y = (x.sum(1) > 0).long()
        return Batch(Labeled({"weak": x}, y), Unlabeled({"weak": x}, torch.arange(8)))


class Small(Method):
    """Two layers with everything that has a state: weights, batch norm, dropout, a buffer that the method writes."""

    seen: Tensor
    model: nn.Sequential

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = (nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 2))
        self.model = nn.Sequential(*layers)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def loss(self, batch: Batch, progress: Progress) -> Tensor:
        loss: Tensor = F.cross_entropy(self.model(batch.labeled["weak"]).float(), batch.labeled.y)
        return loss

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        loss = self.loss(batch, progress)
        step = torch.tensor(float(progress.step))
        yield Update(loss, log={"supervised": loss, "step": step})
        self.seen += len(batch.labeled.y)

    def predictor(self) -> nn.Module:
        return self.model


def run(method: Method, steps: int = 10, **changes: Any) -> FitResult:
    """Fit with the observers that these settings ask for, in the order in which a stage has them."""
    settings: dict[str, Any] = {"optimizer": PLAIN, "schedule": CONSTANT, "device": CPU, "log_every": 4} | changes
    present: list[Observer] = []
    if "on_log" in settings:
        present.append(Log(settings.pop("on_log")))
    if "evaluate" in settings:
        present.append(Quality(settings.pop("evaluate")))
    present.append(CollapseWatch(stop=settings.pop("stop_on_collapse", False)))
    every, path = settings.pop("checkpoint_seconds", 30.0), settings.pop("checkpoint", None)
    if path is not None:
        present.append(Checkpoints(path, every))
    return fit(method, Points(), FitSettings(steps=steps, **settings), present)


def weights(method: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_fit_equals_the_loop_over_numbers() -> None:
    """Nesterov momentum, decay of the matrix alone, clipping, warm-up and cosine, on a linear model by hand."""

    class Line(Small):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Linear(4, 1))

        def loss(self, batch: Batch, progress: Progress) -> Tensor:
            error: Tensor = self.model(batch.labeled["weak"])[:, 0] - batch.labeled.y
            return error.square().mean()

    method = Line()
    w = [float(x) for x in method.model[0].weight.detach().flatten()]
    w.append(float(method.model[0].bias.detach()))
    v = [0.0] * 5
    lr, momentum, decay, clip, steps, warmup = 0.3, 0.9, 0.05, 0.5, 12, 3
    for step in range(steps):
        batch = Points()(step)
        grad = [0.0] * 5
        for x, y in zip(batch.labeled["weak"].tolist(), batch.labeled.y.tolist(), strict=True):
            error = sum(a * b for a, b in zip(w, [*x, 1.0], strict=True)) - y
            grad = [g + 2 * error * a / 8 for g, a in zip(grad, [*x, 1.0], strict=True)]
        norm = math.sqrt(sum(g * g for g in grad))
        grad = [g * min(1.0, clip / (norm + 1e-6)) for g in grad]
        grad = [g + decay * a * (i < 4) for i, (g, a) in enumerate(zip(grad, w, strict=True))]
        v = [momentum * a + g for a, g in zip(v, grad, strict=True)]
        factor = (step + 1) / warmup
        if step >= warmup:
            factor = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        w = [a - lr * factor * (g + momentum * b) for a, g, b in zip(w, grad, v, strict=True)]
    optimizer = OptimizerConfig(lr=lr, momentum=momentum, weight_decay=decay, clip=clip)
    run(method, steps, optimizer=optimizer, schedule=ScheduleConfig(name="cosine", warmup=warmup))
    trained = [*method.model[0].weight.detach().flatten().tolist(), float(method.model[0].bias.detach())]
    assert trained == pytest.approx(w, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clipping_bounds_the_norm_of_the_gradient(precision: str) -> None:
    def length(clip: float | None) -> float:
        method = Small(dropout=0.0)
        before = [p.detach().clone() for p in method.parameters()]
        run(
            method, 1, optimizer=OptimizerConfig(lr=1.0, momentum=0.0, weight_decay=0.0, clip=clip), precision=precision
        )
        return float(
            sum((p.detach() - b).square().sum() for p, b in zip(method.parameters(), before, strict=True)) ** 0.5
        )

    free = length(None)
    assert free > 0.1
    assert length(0.01) == pytest.approx(0.01, rel=1e-3)
    assert length(100.0) == pytest.approx(free, rel=1e-4)


def test_the_average_of_the_weights_is_their_mean_while_it_is_warm() -> None:
    method = Small()
    history = [[p.detach().clone() for p in method.model.parameters()]]

    class Recorded(Points):
        def __call__(self, step: int) -> Batch:
            if step:
                history.append([p.detach().clone() for p in method.model.parameters()])
            return super().__call__(step)

    settings = FitSettings(steps=9, optimizer=PLAIN, schedule=CONSTANT, device=CPU, ema=0.999, log_every=100)
    result = fit(method, Recorded(), settings)
    history.append([p.detach().clone() for p in method.model.parameters()])
    assert len(history) == 10 and result.ema is not None
    for i, averaged in enumerate(result.ema.module.parameters()):
        torch.testing.assert_close(averaged, torch.stack([weights[i] for weights in history]).mean(0))
    assert run(Small()).ema is None


def test_bf16_computes_in_bf16_and_keeps_the_weights_in_fp32() -> None:
    seen: list[torch.dtype] = []

    class Watched(Small):
        def loss(self, batch: Batch, progress: Progress) -> Tensor:
            with torch.no_grad():
                self.model(batch.labeled["weak"])  # casts of weights made here must not reach the gradient below
            seen.append(self.model(batch.labeled["weak"]).dtype)
            return super().loss(batch, progress)

    exact, rounded = Small(dropout=0.0), Watched(dropout=0.0)
    start = weights(rounded)
    run(exact, 5)
    run(rounded, 5, precision="bf16")
    assert set(seen) == {torch.bfloat16}
    for name, parameter in rounded.named_parameters():
        assert parameter.dtype == torch.float32
        assert not torch.equal(parameter, start[name]), f"{name} got no gradient"
        torch.testing.assert_close(parameter, exact.get_parameter(name), atol=0.02, rtol=0.02)
    assert not torch.equal(rounded.model[0].weight, exact.model[0].weight)


class Alternating(Method):
    """Both losses depend on both networks; each update may move its own alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.student, self.teacher = nn.Linear(4, 2), nn.Linear(4, 2)
        self.records: list[dict[str, Any]] = []

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for group in ("student", "teacher"):
            before = weights(self)
            x, y = batch.labeled["weak"], batch.labeled.y
            loss = F.cross_entropy(self.student(x) * self.teacher(x), y)
            yield Update(loss, group=group, log={f"{group}_loss": loss})
            moved = {name for name, tensor in self.state_dict().items() if not torch.equal(tensor, before[name])}
            gradients = {name for name, p in self.named_parameters() if p.grad is not None}
            self.records.append({"group": group, "moved": moved, "gradients": gradients})

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"student": list(self.student.parameters()), "teacher": list(self.teacher.parameters())}

    def predictor(self) -> nn.Module:
        return self.student


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_an_update_moves_its_own_group_and_leaves_no_gradient(name: str, precision: str) -> None:
    method = Alternating()
    # Momentum or decay in the other group would move it even without a gradient.
    run(method, 6, optimizer=OptimizerConfig(name=name, lr=0.1, weight_decay=0.1), precision=precision)
    assert [record["group"] for record in method.records] == ["student", "teacher"] * 6
    for record in method.records:
        assert record["moved"] == {f"{record['group']}.weight", f"{record['group']}.bias"}
        assert record["gradients"] == set()


class Poisoned(Small):
    """Its loss is NaN from step `at` on; or, with `loss_only=False`, finite with a gradient that is not."""

    def __init__(self, at: int, *, loss_only: bool = True) -> None:
        super().__init__()
        self.at = at
        self.loss_only = loss_only

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        loss = self.loss(batch, progress)
        poison = torch.zeros(())
        if progress.step >= self.at and self.loss_only:
            poison = poison / 0
        elif progress.step >= self.at:
            poison = (0 * self.model[0].weight.sum()).sqrt()  # 0, with slope infinity * 0
        yield Update(loss + poison, log={"supervised": loss, "poison": poison})


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1000.0])
@pytest.mark.parametrize("log_every", [1, 5, 1000])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, log_every: int, checkpoint_seconds: float) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    settings = {"checkpoint": checkpoint, "log_every": log_every, "checkpoint_seconds": checkpoint_seconds}
    with pytest.raises(NonFiniteLossError) as caught:
        run(Poisoned(13), 30, **settings)
    message = str(caught.value)
    assert message.startswith("step 13: not finite: loss/main, poison")
    assert isinstance(caught.value, SemisupError)
    if checkpoint_seconds:
        assert "checkpoint" not in message
        return
    assert str(checkpoint) in message
    state = load_checkpoint(checkpoint, CPU)
    assert state["step"] == 13  # finished steps: 0 to 12
    assert all(tensor.isfinite().all() for tensor in state["method"].values())
    with pytest.raises(NonFiniteLossError, match="step 13"):  # the same again, from the checkpoint
        run(Poisoned(13), 30, **settings)


@pytest.mark.parametrize("log_every", [1, 5, 1000])
def test_a_finite_loss_that_spoils_the_weights_never_gets_into_a_checkpoint(tmp_path: Path, log_every: int) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(NonFiniteLossError) as caught:
        run(Poisoned(13, loss_only=False), 30, checkpoint=checkpoint, log_every=log_every, checkpoint_seconds=0)
    assert str(caught.value).startswith("step 13: not finite: weights of 'main'")
    state = load_checkpoint(checkpoint, CPU)
    assert state["step"] == 13
    assert all(tensor.isfinite().all() for tensor in state["method"].values())


def test_weights_spoilt_by_the_last_step_are_noticed() -> None:
    with pytest.raises(NonFiniteLossError, match="step 9: not finite: weights of 'main'"):
        run(Poisoned(9, loss_only=False), 10, log_every=1000)


def collect(method: Method, steps: int = 10, **changes: Any) -> list[tuple[int, dict[str, float]]]:
    log: list[tuple[int, dict[str, float]]] = []
    run(method, steps, on_log=lambda step, values: log.append((step, values)), **changes)
    return log


def test_logged_terms_are_means_since_the_last_report() -> None:
    schedule = ScheduleConfig(name="cosine")
    every, single = collect(Small(), schedule=schedule), collect(Small(), schedule=schedule, log_every=1)
    assert [step for step, _ in every] == [4, 8, 10]
    assert [values["step"] for _, values in every] == [1.5, 5.5, 8.5]
    assert [step for step, _ in single] == list(range(1, 11))
    losses = [values["supervised"] for _, values in single]
    for (_, values), part in zip(every, (losses[:4], losses[4:8], losses[8:]), strict=True):
        assert values["supervised"] == pytest.approx(sum(part) / len(part), rel=1e-6)
        assert values["loss/main"] == values["supervised"]
        assert set(values) == {"loss/main", "supervised", "step", "lr"}
    assert [values["lr"] for _, values in every] == pytest.approx(
        [0.1 * 0.5 * (1 + math.cos(math.pi * step / 10)) for step in (3, 7, 9)]
    )
    result = run(Small(), schedule=schedule)
    assert result.log == every[-1][1]


def test_terms_that_come_at_some_steps_are_means_over_those() -> None:
    class Rare(Small):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            loss = self.loss(batch, progress)
            extra = {"odd": torch.tensor(float(progress.step))} if progress.step % 2 else {}
            yield Update(loss, log={"supervised": loss, **extra})

    log = collect(Rare(), 8)
    assert [values["odd"] for _, values in log] == [2.0, 6.0]
    plain = collect(Small(), 8)
    assert [v["supervised"] for _, v in log] == pytest.approx([v["supervised"] for _, v in plain], rel=1e-6)


class Guessing(Small):
    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        loss = self.loss(batch, progress)
        labels = torch.full((8,), progress.step)
        yield Update(loss, pseudo_labels=PseudoLabels(batch.unlabeled.index, labels, torch.ones(8)))


def test_the_quality_of_pseudo_labels_is_logged_and_may_be_nan() -> None:
    nan = torch.tensor(float("nan"))

    def evaluate(guess: PseudoLabels) -> dict[str, Tensor]:
        step = guess.labels[0].float()
        return {"right": step, "kept": nan if int(step) % 4 == 0 else step, "never": nan}

    log = collect(Guessing(), 8, evaluate=evaluate)
    assert [values["right"] for _, values in log] == [1.5, 5.5]
    assert [values["kept"] for _, values in log] == [2.0, 6.0]  # of 1, 2, 3 and 5, 6, 7
    assert all("never" not in values for _, values in log)
    assert "right" not in collect(Guessing(), 8)[0][1]


def test_speed_is_source_images_over_the_time_of_all_sittings(tmp_path: Path) -> None:
    class Slow(Small):
        def loss(self, batch: Batch, progress: Progress) -> Tensor:
            time.sleep(0.01)
            return super().loss(batch, progress)

    started = time.perf_counter()
    result = run(Slow(), 10)
    elapsed = time.perf_counter() - started
    assert 0.1 <= result.seconds <= elapsed
    assert result.images_per_second == pytest.approx(10 * 8 / result.seconds)

    class Interrupted(Slow):
        def loss(self, batch: Batch, progress: Progress) -> Tensor:
            if progress.step == 5:
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(batch, progress)

    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(Stopped):
        run(Interrupted(), 10, checkpoint=checkpoint)
    time.sleep(0.2)  # does not count
    started = time.perf_counter()
    resumed = run(Slow(), 10, checkpoint=checkpoint)
    elapsed = time.perf_counter() - started
    first = load_checkpoint(checkpoint, CPU)["seconds"]
    assert first >= 0.06
    assert first + 0.04 <= resumed.seconds <= first + elapsed
    assert resumed.images_per_second == pytest.approx(10 * 8 / resumed.seconds)


class Interrupting(Small):
    """Presses Ctrl-C `times` times in the middle of step `at`."""

    def __init__(self, at: int, times: int = 1) -> None:
        super().__init__()
        self.at = at
        self.times = times

    def loss(self, batch: Batch, progress: Progress) -> Tensor:
        for _ in range(self.times if progress.step == self.at else 0):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.001)
        return super().loss(batch, progress)


OPTIMIZERS = {
    "sgd": OptimizerConfig(lr=0.1, clip=1.0),
    "adamw": OptimizerConfig(name="adamw", lr=0.01),
    "lars": OptimizerConfig(name="lars", lr=0.5, trust=0.1),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("at", [0, 5, 9])
def test_ctrl_c_leaves_a_checkpoint_from_which_the_run_goes_on_bit_for_bit(
    tmp_path: Path, name: str, at: int, precision: str
) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    settings: dict[str, Any] = {
        "optimizer": OPTIMIZERS[name],
        "schedule": ScheduleConfig(name="cosine"),
        "ema": 0.9,
        "key": (3, "stage"),
        "precision": precision,
    }
    whole = Small()
    log: list[tuple[int, dict[str, float]]] = []
    uninterrupted = run(whole, on_log=lambda step, values: log.append((step, values)), **settings)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped):
        run(Interrupting(at), checkpoint=checkpoint, checkpoint_seconds=1000, **settings)
    assert signal.getsignal(signal.SIGINT) is handler
    state = load_checkpoint(checkpoint, CPU)
    assert state["step"] == at + 1  # the step was finished first

    resumed = Small()
    torch.manual_seed(99)
    for parameter in resumed.parameters():  # whatever it starts with is replaced
        nn.init.normal_(parameter.data)
    again: list[tuple[int, dict[str, float]]] = []
    result = run(resumed, on_log=lambda s, values: again.append((s, values)), checkpoint=checkpoint, **settings)
    assert result.resumed_from == at + 1 and uninterrupted.resumed_from is None
    assert_equal(weights(resumed), weights(whole))
    assert result.ema is not None and uninterrupted.ema is not None
    assert_equal(weights(result.ema), weights(uninterrupted.ema))
    assert again == [entry for entry in log if entry[0] > at + 1]  # not even the means show that there was a break
    assert result.log == uninterrupted.log


def test_the_loss_scale_of_fp16_survives_a_break(tmp_path: Path) -> None:
    """After 2,000 good updates in a row the scale doubles: the count goes on where it was."""
    settings: dict[str, Any] = {"precision": "fp16", "checkpoint": tmp_path / "checkpoint.pt", "checkpoint_seconds": 0}
    with pytest.raises(Stopped):
        run(Interrupting(5), **settings)
    run(Small(), **settings)
    assert load_checkpoint(tmp_path / "checkpoint.pt", CPU)["scaler"]["_growth_tracker"] == 10


def test_a_run_is_repeated_by_its_key_whatever_the_global_seed() -> None:
    results = []
    for seed, key in ((1, "a"), (2, "a"), (2, "b")):
        method = Small()
        torch.manual_seed(seed)
        run(method, key=(0, key))
        results.append(weights(method))
    assert_equal(results[0], results[1])
    assert not torch.equal(results[1]["model.0.weight"], results[2]["model.0.weight"])  # another dropout


def test_a_second_ctrl_c_does_not_wait_for_the_end_of_the_step(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    method = Interrupting(5, times=2)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(method, checkpoint=checkpoint, checkpoint_seconds=1000)
    assert not isinstance(caught.value, Stopped)
    assert int(method.seen) == 5 * 8  # steps 0 to 4
    assert not checkpoint.exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_without_a_checkpoint_file_stops_too() -> None:
    with pytest.raises(Stopped):
        run(Interrupting(5))


def test_fit_runs_outside_the_main_thread() -> None:
    whole, threaded = Small(), Small()
    run(whole)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            run(threaded)
        except BaseException as error:  # noqa: BLE001 (a thread's exception is lost otherwise)
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert not failures
    assert_equal(weights(threaded), weights(whole))


def test_checkpoints_come_at_their_time(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    run(Small(), checkpoint=checkpoint, checkpoint_seconds=1000)
    assert not checkpoint.exists()
    run(Small(), checkpoint=checkpoint, checkpoint_seconds=0)
    assert load_checkpoint(checkpoint, CPU)["step"] == 10


def test_a_finished_run_that_was_killed_before_its_artifact_has_nothing_left_to_train(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    whole = Small()
    first = run(whole, checkpoint=checkpoint, checkpoint_seconds=0, ema=0.9)
    again = Interrupting(0, times=1)  # would stop at its first step
    second = run(again, checkpoint=checkpoint, checkpoint_seconds=0, ema=0.9)
    assert second.resumed_from == 10
    assert_equal(weights(again), weights(whole))
    assert second.log == first.log
    assert second.seconds <= first.seconds and second.images_per_second > 0


def test_what_a_killed_process_left_half_written_is_swept_away(tmp_path: Path) -> None:
    checkpoint, torn, other = (tmp_path / name for name in ("checkpoint.pt", ".checkpoint.pt.77.tmp", ".other.77.tmp"))
    torn.write_bytes(b"half")
    other.write_bytes(b"not ours")
    run(Small(), checkpoint=checkpoint, checkpoint_seconds=0)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", ".other.77.tmp"}


def test_the_checkpoint_of_another_network_is_an_error_that_names_it(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    run(Small(), checkpoint=checkpoint, checkpoint_seconds=0)

    class Wider(Small):
        def __init__(self) -> None:
            super().__init__()
            self.model.append(nn.Linear(2, 2))

    for method in (Wider(), Alternating()):
        with pytest.raises(SemisupError) as caught:
            run(method, checkpoint=checkpoint)
        assert str(caught.value).startswith(f"{checkpoint}: the checkpoint of another run")


def test_a_checkpoint_with_a_right_checksum_is_still_checked(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    run(Small(), checkpoint=checkpoint, checkpoint_seconds=0)
    good = load_checkpoint(checkpoint, torch.device("cpu"))
    changes: list[dict[str, Any]] = [{name: wrong} for name in good for wrong in ([], None, "x", [[1]], -1, {"a": []})]
    accepted = []
    for change in changes:
        save_checkpoint(checkpoint, good | change)
        try:
            run(Small(), checkpoint=checkpoint)
        except SemisupError as error:
            assert str(error).startswith(f"{checkpoint}: the checkpoint of another run")
        else:
            accepted.append(change)
    harmless = ("ema", "scaler", "window", "last_log")  # what this run has not, or a window that is empty
    assert all(next(iter(change)) in harmless for change in accepted), accepted
    save_checkpoint(checkpoint, [good])  # type: ignore[arg-type]
    with pytest.raises(SemisupError, match="it holds a list"):
        run(Small(), checkpoint=checkpoint)


def test_the_method_is_trained_in_train_mode() -> None:
    method = Small()
    method.eval()
    run(method, 3)
    assert int(method.model[1].num_batches_tracked) == 3


# Embeddings


class Joint(Small):
    """Two embeddings of each point; `shrink` per step draws them together."""

    def __init__(self, shrink: float = 1.0) -> None:
        super().__init__()
        self.shrink = shrink
        self.handed: list[tuple[Tensor, Tensor]] = []

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        loss = self.loss(batch, progress)
        x = 1 + self.shrink**progress.step * batch.labeled["weak"]
        self.handed.append((x, 2 * x + 0.1))
        yield Update(loss, log={"supervised": loss}, embeddings=self.handed[-1])


def test_the_panel_is_of_the_reported_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, dict[str, float]] = {}
    calls: list[int] = []
    method = Joint()

    def counted(first: Tensor, second: Tensor) -> dict[str, Tensor]:
        calls.append(len(method.handed))
        return collapse_panel(first, second)

    monkeypatch.setattr(observers, "collapse_panel", counted)
    result = run(method, on_log=lambda step, values: seen.__setitem__(step, dict(values)))
    assert calls == [4, 8, 10], "at the steps that are reported, and at no other: it costs"
    for step, values in seen.items():
        expected = collapse_panel(*method.handed[step - 1])
        assert {name for name in values if name.startswith("collapse/")} == {f"collapse/{name}" for name in expected}
        for name, value in expected.items():
            assert values[f"collapse/{name}"] == pytest.approx(float(value))
    assert result.log == seen[10]


def test_embeddings_change_no_weight() -> None:
    plain, joint = Small(), Joint()
    run(plain)
    run(joint)
    assert_equal(weights(plain.model), weights(joint.model))


def test_a_collapse_stops_the_run_where_it_is_asked_to(tmp_path: Path) -> None:
    run(Joint(shrink=0.5), steps=40, log_every=2)  # nobody asked
    run(Joint(), steps=40, log_every=2, stop_on_collapse=True)
    logged: list[int] = []
    with pytest.raises(CollapseError) as caught:
        run(
            Joint(shrink=0.5),
            steps=40,
            log_every=2,
            stop_on_collapse=True,
            on_log=lambda step, values: logged.append(step),
            checkpoint=tmp_path / "c.pt",
            checkpoint_seconds=0,
        )
    text = str(caught.value)
    assert text.startswith(f"step {logged[-1] - 1}: the embeddings have collapsed, collapse/std 0.0")
    assert " is below 0.05. Try a smaller learning rate" in text and "stop_on_collapse: false trains on" in text
    assert logged == list(range(2, logged[-1] + 1, 2)) and 4 < logged[-1] < 20
    with pytest.raises(CollapseError):  # the same again, from the checkpoint
        run(Joint(shrink=0.5), steps=40, log_every=2, stop_on_collapse=True, checkpoint=tmp_path / "c.pt")


def test_a_fresh_network_may_be_collapsed_for_a_tenth_of_the_steps() -> None:
    class Wakes(Joint):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            spread = float(progress.step >= 4)
            for update in super().step(batch, progress):
                first, second = update.embeddings or ()
                yield replace(update, embeddings=(1 + spread * (first - 1), 1 + spread * (second - 1)))

    run(Wakes(), steps=40, log_every=1, stop_on_collapse=True)
    with pytest.raises(CollapseError, match=r"step 3: the embeddings"):
        run(Wakes(), steps=30, log_every=1, stop_on_collapse=True)


def test_a_loss_that_is_not_finite_is_said_even_where_its_embeddings_are_none() -> None:
    class Breaks(Joint):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            for update in super().step(batch, progress):
                nan = torch.full((8, 4), torch.nan)
                yield replace(update, loss=update.loss * torch.nan, embeddings=(nan, nan))

    with pytest.raises(NonFiniteLossError, match="not finite: loss/main"):
        run(Breaks(), stop_on_collapse=True)

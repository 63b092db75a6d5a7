"""The bare step makes the calls of the real one, with its sizes, modes and gradients, and none of the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from bare import Bare, Call, Recorder
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from semisup.methods import METHODS, Batch, Labeled, Method, Progress, Unlabeled, Update
from semisup.models import Classifier, Encoder
from semisup.models.cnn import SmallCNN

CPU = torch.device("cpu")
B, U = 4, 6


def flops(run: Callable[[], object]) -> int:
    """Operations of every convolution and matrix product, forward and backward, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def make(name: str) -> tuple[Method, Batch]:
    torch.manual_seed(0)
    cls = METHODS[name]
    backbone = SmallCNN(4, in_channels=1)
    network = Encoder(backbone) if cls.trains == "encoder" else Classifier(backbone, nn.Sequential(), 3)
    method = cls(network).train()
    views: dict[str, dict[str, Tensor]] = {"labeled": {}, "unlabeled": {}}
    for part, n in (("labeled", B), ("unlabeled", U)):
        for view in method.views.policies(part):  # type: ignore[arg-type]
            views[part][view] = torch.rand(n, 1, 8, 8).contiguous(memory_format=torch.channels_last)
    return method, Batch(Labeled(views["labeled"], torch.arange(B) % 3), Unlabeled(views["unlabeled"], torch.arange(U)))


def step(method: Method, batch: Batch) -> None:
    for update in method.step(batch, Progress(5, 10)):
        update.loss.backward(inputs=[p for p in method.groups()[update.group] if p.requires_grad])
        method.zero_grad(set_to_none=True)


def record(method: Method, batch: Batch) -> list[Call]:
    recorder = Recorder(method)
    recorder.start()
    step(method, batch)
    return recorder.stop()


def bare(method: Method, calls: list[Call]) -> Bare:
    made = Bare(method, CPU, "fp32")
    made.load(calls)
    return made


def test_fixmatch_makes_two_calls_one_of_them_without_gradient() -> None:
    method, batch = make("fixmatch")
    guess, both = record(method, batch)
    assert [call.module for call in (guess, both)] == ["model", "model"]
    assert [call.args[0].shape[0] for call in (guess, both)] == [U, B + U]
    assert [call.grad for call in (guess, both)] == [False, True]
    assert [sorted(call.gradients) for call in (guess, both)] == [[], [0]]
    assert both.gradients[0].shape == (B + U, 3)
    assert all(guess.modes) and all(both.modes)


def test_the_teacher_of_mean_teacher_is_called_without_gradient_by_its_own_name() -> None:
    method, batch = make("mean_teacher")
    teacher, student = record(method, batch)
    assert (teacher.module, teacher.grad, teacher.gradients) == ("teacher.module", False, {})
    assert (student.module, student.grad, sorted(student.gradients)) == ("model", True, [0])


def test_a_projection_is_two_calls_the_second_of_which_gives_a_gradient_back() -> None:
    method, batch = make("simclr")
    backbone, projector = record(method, batch)
    assert [call.module for call in (backbone, projector)] == ["encoder.backbone", "encoder.projector"]
    assert [call.args[0].requires_grad for call in (backbone, projector)] == [False, True]
    assert [sorted(call.gradients) for call in (backbone, projector)] == [[0], [0]]


@pytest.mark.parametrize("name", ["supervised", "fixmatch", "mean_teacher", "simclr", "byol", "pseudo_label"])
def test_the_bare_step_multiplies_as_much_as_the_real_one(name: str) -> None:
    method, batch = make(name)
    calls = record(method, batch)
    bare_step = bare(method, calls)
    network = flops(bare_step)
    everything = flops(lambda: step(method, batch))
    loss = 3 * 2 * (2 * U) ** 2 * 128 if name == "simclr" else 0  # its similarities, forward and twice backward
    assert network > 10_000
    assert everything == network + loss


def test_random_inputs_keep_size_and_memory_layout_and_nothing_else() -> None:
    method, batch = make("supervised")
    (call,) = record(method, batch)
    images = batch.labeled["weak"]
    assert call.args[0].shape == images.shape
    assert call.args[0].is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(call.args[0], images)


def test_the_bare_step_trains_nothing_and_leaves_no_gradient() -> None:
    method, batch = make("fixmatch")
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    made = bare(method, record(method, batch))
    seen = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    assert any(not torch.equal(before[name], seen[name]) for name in seen)  # the real step moved running statistics
    for _ in range(2):
        made()
    assert all(torch.equal(tensor, seen[name]) for name, tensor in method.state_dict().items())
    assert all(p.grad is None for p in [*method.parameters(), *made.leaves])
    copied = made.copy.state_dict()
    frozen = {name for name, _ in method.named_parameters()}
    assert all(torch.equal(copied[name], before[name]) for name in frozen)


def test_nothing_is_watched_after_the_record() -> None:
    method, batch = make("fixmatch")
    recorder = Recorder(method)
    recorder.start()
    step(method, batch)
    calls = recorder.stop()
    step(method, batch)
    assert len(calls) == 2
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in method.modules())


class Odd(Method):
    """Calls a part in eval mode, throws one result away, and passes a list."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.pair = Pair()

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        x = batch.labeled["weak"]
        self.norm.eval()
        self.norm(x)
        self.norm.train()
        kept, _ = self.pair([self.norm(x), x], times=torch.tensor(2))
        yield Update(kept.sum())


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, parts: list[Tensor], *, times: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(parts[0]) * times, self.linear(parts[1])


def test_modes_unused_outputs_lists_and_whole_numbers_are_as_they_were() -> None:
    method = Odd()
    batch = Batch(Labeled({"weak": torch.rand(B, 2)}, torch.zeros(B)), Unlabeled({}, torch.zeros(0)))
    still, norm, pair = record(method, batch)
    assert (still.module, still.modes, still.gradients) == ("norm", [False], {})
    assert (norm.module, norm.modes, sorted(norm.gradients)) == ("norm", [True], [0])
    assert sorted(pair.gradients) == [0]  # the second output was thrown away
    assert [t.requires_grad for t in pair.args[0]] == [True, False]
    assert pair.kwargs["times"].item() == 2
    made = bare(method, [still, norm, pair])
    made()  # moves the statistics once, as the record did
    assert made.copy.norm.num_batches_tracked == 2  # type: ignore[union-attr]

"""What every method must do, as functions that raise AssertionError: the sabotage tests call them too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from semisup.augment.policies.ctaugment import new_rates
from semisup.methods import Batch, Labeled, Method, Progress, Unlabeled, Update
from semisup.models import EMA, Classifier, Encoder
from tests.contract.contract_settings import (
    CLASSES,
    LABELED,
    UNLABELED,
    Case,
    Killed,
    Source,
    different,
    move,
    snapshot,
    train,
)

STEPS = 3


def updates(method: Method, batch: Batch, progress: Progress, look: Callable[[Update], None]) -> list[Update]:
    """Run one step with plain SGD in the engine's place; `look` sees each update before it is applied."""
    seen = []
    groups = method.groups()
    for update in method.step(batch, progress):
        look(update)
        seen.append(update)
        update.loss.backward(inputs=groups[update.group])
        with torch.no_grad():
            for p in groups[update.group]:
                if p.grad is not None:
                    p.sub_(0.05 * p.grad)
                    p.grad = None
    return seen


def check_views_matter(case: Case) -> None:
    """Replacing any declared view by noise changes the weights after the update.

    Without BatchNorm: through the statistics of a joint forward any image would change any other's gradient, and a
    teacher wired to itself (USB's Mean Teacher) would pass.
    """

    def weights(noise: tuple[str, str] | None) -> Tensor:
        method = case.build(separate=True)
        train(method, Source(method, noise=noise), STEPS)
        return nn.utils.parameters_to_vector(p for group in method.groups().values() for p in group)

    views = case.build().views
    declared = [("labeled", view) for view in views.policies("labeled")]
    declared += [("unlabeled", view) for view in views.policies("unlabeled")]
    assert declared, "the method asks for no view"
    plain = weights(None)
    assert torch.equal(plain, weights(None)), "two equal runs differ, so this check means nothing"
    for part, view in declared:
        change = float((weights((part, view)) - plain).abs().max().detach())
        assert change > 1e-5, f"noise in place of {part}[{view!r}] leaves the update as it was"


def check_groups_move(case: Case) -> None:
    """Every parameter of a group moves; every other one is frozen and gets no gradient."""
    method = case.build()
    groups = method.groups()
    assert groups.keys() == case.setting.groups
    listed = [p for group in groups.values() for p in group]
    assert len({id(p) for p in listed}) == len(listed), "a parameter in two groups"
    names = {id(p): name for name, p in method.named_parameters()}
    assert {id(p) for p in listed} <= names.keys(), "a group holds a parameter that is not the method's"
    for p in method.parameters():
        trained = any(p is q for q in listed)
        assert p.requires_grad == trained, f"{names[id(p)]}: requires_grad {p.requires_grad}, in a group {trained}"
    before = {id(p): p.detach().clone() for p in listed}
    train(method, Source(method), STEPS)
    for p in listed:
        assert not torch.equal(before[id(p)], p), f"{names[id(p)]} did not move"
    for p in method.parameters():
        assert p.grad is None, f"{names[id(p)]} was left with a gradient"


def check_gradient_paths(case: Case) -> None:
    """The gradient of an update reaches all of its group and nothing else; so does that of each of its loss terms."""
    method = case.build()
    groups = method.groups()
    seen: set[str] = set()

    def look(update: Update) -> None:
        update.loss.backward(retain_graph=True)
        mine = groups[update.group]
        for name, p in method.named_parameters():
            inside = any(p is q for q in mine)
            assert (p.grad is not None) == inside, f"{name}: gradient from the update of {update.group!r}"
            p.grad = None
        for name in case.setting.terms & update.log.keys():
            assert update.log[name].requires_grad, f"{name} has no gradient"
            slopes = torch.autograd.grad(update.log[name], mine, retain_graph=True, allow_unused=True)
            assert any(bool(slope.any()) for slope in slopes if slope is not None), f"{name}: all gradients are 0"
            seen.add(name)

    for step in range(STEPS):
        updates(method, Source(method)(step), Progress(step, STEPS), look)
    assert seen == case.setting.terms


class OneValueEach(TorchDispatchMode):
    """Finds different rows that are written to one place at once: which of them stays is left open on a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet is torch.ops.aten.index_copy_:
            memory, dim, index, rows = args
            assert torch.equal(memory.index_select(dim, index), rows), "one place is written twice"
        if packet is torch.ops.aten.index_put_ and not (len(args) > 3 and args[3]):
            memory, index, rows = args[:3]
            found = torch.ops.aten.index(memory, index)
            assert torch.equal(found, rows.expand_as(found)), "one place is written twice"
        return result


def check_writes_once(case: Case) -> None:
    """An image that stands in a batch twice, as where two epochs meet, is remembered the same on every rank."""
    method = case.build()
    for step in range(2):
        batch = Source(method)(step)
        for index in (batch.labeled.index, batch.unlabeled.index):
            assert index is not None
            index[-2:] = index[:2]
        batch.labeled.y[-2:] = batch.labeled.y[:2]
        with OneValueEach():
            updates(method, batch, Progress(step, 100), lambda update: None)


def check_logged_terms(case: Case, precision: torch.dtype | None = None, device: str = "cpu") -> None:
    """Losses and logged terms are 0-d float32, finite, on the device, and known to the table."""
    method = case.build().to(device)
    seen: set[str] = set()

    def look(update: Update) -> None:
        assert update.loss.requires_grad
        for name, term in {"loss": update.loss, **update.log}.items():
            assert isinstance(term, Tensor), name
            assert term.shape == (), f"{name} has shape {tuple(term.shape)}"
            assert term.device.type == device, f"{name} is on {term.device}"
            assert term.dtype == torch.float32, f"{name} is {term.dtype}"
            if device != "meta":
                assert bool(term.isfinite()), f"{name} is {float(term)}"
        seen.update(update.log)

    for step in range(STEPS):
        batch, progress = move(Source(method)(step), device), Progress(step, STEPS)
        if precision is None:
            updates(method, batch, progress, look)
            continue
        # As the engine does: autocast around the generator's code, not around the update.
        generator = method.step(batch, progress)
        while True:
            with torch.autocast("cpu", dtype=precision):
                update = next(generator, None)
            if update is None:
                break
            look(update)
            update.loss.backward(inputs=method.groups()[update.group])
            method.zero_grad()
    assert seen == case.setting.terms | case.setting.numbers


def check_runs_on_meta(case: Case) -> None:
    """The first and the last step run where tensors have no values: no .item(), boolean indexing or CPU tensor."""
    for step in (0, 99):
        method = case.build().to("meta")
        try:
            for update in updates(method, move(Source(method)(0), "meta"), Progress(step, 100), lambda update: None):
                assert all(term.is_meta for term in (update.loss, *update.log.values()))
        except (RuntimeError, NotImplementedError) as error:
            raise AssertionError(f"step {step} needs values on the host: {error}") from error
        # Next to these a state dict has numbers that the host knows (an average's count of its updates).
        assert all(tensor.is_meta for tensor in (*method.parameters(), *method.buffers()))


def check_generator_protocol(case: Case) -> None:
    """Updates name existing groups, come outside of any context, and leave the batch as it was."""
    method = case.build()
    batch = Source(method)(0)
    images = {**batch.labeled.views, **{f"u {name}": view for name, view in batch.unlabeled.views.items()}}
    before = {name: view.clone() for name, view in images.items()}

    def look(update: Update) -> None:
        assert update.group in method.groups(), f"unknown group {update.group!r}"
        assert torch.is_grad_enabled(), "yielded inside no_grad"
        assert not torch.is_autocast_enabled("cpu"), "yielded inside autocast"

    assert updates(method, batch, Progress(1, 2), look), "no update"
    assert torch.is_grad_enabled()
    assert not different(before, images), "the step changed its images in place"


def check_pseudo_labels(case: Case) -> None:
    """What the evaluator gets: this batch's rows, a class for each, and how much it was used."""
    method = case.build()
    batch = Source(method)(0)
    reports = [u.pseudo_labels for u in updates(method, batch, Progress(1, 2), lambda update: None)]
    given = [report for report in reports if report is not None]
    assert len(given) == int(case.setting.guesses)
    for report in given:
        assert torch.equal(report.index, batch.unlabeled.index)
        assert report.labels.shape == report.mask.shape == (UNLABELED,)
        assert report.labels.dtype == torch.int64
        assert not report.mask.requires_grad
        assert 0 <= int(report.labels.min()) <= int(report.labels.max()) < CLASSES
        assert 0 <= float(report.mask.min()) <= float(report.mask.max()) <= 1


def check_embeddings(case: Case) -> None:
    """What the collapse panel gets: two views' embeddings, a row for each unlabeled image."""
    method = case.build()
    batch = Source(method)(0)
    for update in updates(method, batch, Progress(1, 2), lambda update: None):
        if update.embeddings is not None:
            first, second = update.embeddings
            assert first.ndim == second.ndim == 2, "not (N, D)"
            assert first.shape == second.shape, "not of one shape"
            assert len(first) == UNLABELED, "not a row for each image"
            assert not torch.equal(first, second), "one view twice"
            assert first.isfinite().all() and second.isfinite().all()
            assert first.requires_grad, "the first view's are those of the network that is trained"


def check_predictor_learns(case: Case) -> None:
    """The network that is judged is a Classifier or Encoder inside the method, and training moves its parameters."""
    method = case.build()
    predictor = method.predictor()
    assert type(predictor) is {"classifier": Classifier, "encoder": Encoder}[case.cls.trains]
    assert any(predictor is module for module in method.modules()), "the predictor is not part of the method"
    before = {name: p.detach().clone() for name, p in predictor.named_parameters()}
    train(method, Source(method), STEPS)
    assert method.predictor() is predictor
    assert different(before, dict(predictor.named_parameters())), "training leaves the predictor as it was"


def check_frozen_stays(case: Case, part: Callable[[Method], nn.Module]) -> None:
    """Weights and BatchNorm statistics of `part` are bit-identical after training in train mode."""
    method = case.build()
    network = part(method)
    assert not any(p.requires_grad for p in network.parameters())
    before = snapshot(network)
    train(method, Source(method), STEPS)
    assert not different(before, snapshot(network))


def check_resumes(case: Case, folder: Path) -> None:
    """Killed after 3 of 6 steps and resumed by objects that start from other weights: bit-identical to no kill."""
    whole = case.build()
    average = train(whole, Source(whole), 6).ema
    path = folder / "checkpoint.pt"
    killed = case.build()
    with pytest.raises(Killed):
        train(killed, Source(killed, dies_at=3), 6, path=path)
    resumed = case.build(seed=99)
    result = train(resumed, Source(resumed), 6, path=path)
    assert result.resumed_from == 3
    assert not different(snapshot(whole), snapshot(resumed))
    assert isinstance(average, EMA)
    assert isinstance(result.ema, EMA)
    assert not different(snapshot(average), snapshot(result.ema))


def check_probe_moves_rates_alone(case: Case) -> None:
    """The answers to CTAugment's probe, held against the true labels, move the probed bins and nothing else."""

    def after(*, noise: bool = False, other_labels: bool = False) -> tuple[Method, Tensor]:
        method = case.build()
        batch = Source(method, noise=("labeled", "probe") if noise else None)(0)
        y = (batch.labeled.y + 1) % CLASSES if other_labels else batch.labeled.y
        with torch.random.fork_rng():
            torch.manual_seed(0)
            updates(method, Batch(replace(batch.labeled, y=y), batch.unlabeled), Progress(1, 2), lambda update: None)
        assert batch.labeled.trace is not None
        return method, batch.labeled.trace

    (method, bins), (noisy, _), (relabeled, _) = after(), after(noise=True), after(other_labels=True)
    rates = method.learned()
    assert rates is not None
    moved = (rates != new_rates()).flatten().nonzero().squeeze(1)
    assert torch.equal(moved, bins.unique()), "other bins than the probed ones have moved"
    changed = set(different(snapshot(method), snapshot(noisy)))
    assert changed == {name for name, buffer in method.named_buffers() if buffer is rates}, changed
    assert not torch.equal(rates, relabeled.get_buffer(*changed)), "the true labels have no part in the rates"


def check_seeds(case: Case) -> None:
    """Equal seeds repeat bit by bit; other images, weights or (where the step itself draws) step seeds do not."""

    def run(weights: int = 0, images: int = 0, steps: int = 0) -> dict[str, Tensor]:
        method = case.build(weights)
        train(method, Source(method, images), STEPS, key=steps)
        return snapshot(method.predictor())

    first = run()
    assert not different(first, run())
    assert different(first, run(weights=1))
    assert different(first, run(images=1))
    assert bool(different(first, run(steps=1))) == case.setting.random, "random draws where none are declared"


def check_no_hidden_labels() -> None:
    """A batch has these fields and no others: nothing leads to a hidden label."""
    names = {cls: {field.name for field in fields(cls)} for cls in (Batch, Labeled, Unlabeled)}
    assert names == {
        Batch: {"labeled", "unlabeled"},
        Labeled: {"views", "y", "index", "trace", "loss"},
        Unlabeled: {"views", "index", "target"},
    }
    nothing = torch.empty(0)
    for part in (Labeled({}, nothing), Unlabeled({}, nothing), Batch(Labeled({}, nothing), Unlabeled({}, nothing))):
        assert vars(part).keys() == names[type(part)]
    assert LABELED != UNLABELED  # so that a mix-up of the two parts breaks a shape

"""SimCLR and SimCLRv2 against equation 1, and the memory of SimCLRv2."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.losses import nt_xent
from semisup.methods import Batch, Progress, Unlabeled, Update
from semisup.methods.simclr import SimCLR
from semisup.methods.simclr_v2 import SimCLRv2
from semisup.models import Encoder, ProjectionHead
from tests.methods import methods_reference as ref

Contrastive = SimCLR | SimCLRv2
both = pytest.mark.parametrize("cls", [SimCLR, SimCLRv2])


def bare(cls: type[Contrastive], **options: Any) -> Contrastive:
    """The method on raw pixels: backbone and projection head are the identity."""
    method = cls(Encoder(ref.Flat(8)), out_features=8, **options)
    method.encoder.projector = nn.Identity()
    return method


def views(first: Tensor, second: Tensor) -> Batch:
    return ref.batch(unlabeled={"first": first.view(-1, 1, 2, 4), "second": second.view(-1, 1, 2, 4)})


def rows(n: int, seed: int, width: int = 8) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


@both
def test_the_embeddings_are_the_two_views_projections(cls: type[Contrastive]) -> None:
    first, second = rows(4, 1), rows(4, 2)
    handed = ref.first(bare(cls), views(first, second)).embeddings
    assert handed is not None
    assert torch.equal(handed[0], first) and torch.equal(handed[1], second)


def check_values(cls: type[Contrastive]) -> None:
    """Three closed forms (methods.md 2.5) and the equation on random embeddings, in value and gradient."""
    eye = torch.eye(8)
    method = bare(cls, temperature=0.5)
    # Identical views, orthogonal images: log(1 + (2N - 2) exp(-1/tau)).
    ref.close(ref.first(method, views(eye[:4], eye[:4])).loss, 0.594438)
    # All orthogonal, all equal: log(2N - 1).
    ref.close(ref.first(method, views(eye[:4], eye[4:])).loss, math.log(7))
    ref.close(ref.first(method, views(eye[:1].repeat(4, 1), eye[:1].repeat(4, 1))).loss, math.log(7))
    for temperature in (0.1, 0.5, 2.0):
        first, second = rows(4, 1).requires_grad_(), rows(4, 2).requires_grad_()
        update = ref.first(bare(cls, temperature=temperature), views(first, second))

        def reference(z: ref.Array, temperature: float = temperature) -> float:
            return ref.nt_xent(z, temperature)

        z = torch.cat([first, second]).detach().double().numpy()
        ref.close(update.loss, reference(z))
        ref.close(update.log["contrastive"], reference(z))
        slopes = torch.autograd.grad(update.loss, [first, second], allow_unused=True, materialize_grads=True)
        ref.close(torch.cat(slopes), ref.numeric_gradient(reference, z), rtol=1e-3, atol=1e-5)


@both
def test_values(cls: type[Contrastive]) -> None:
    check_values(cls)


@both
def test_decoupled_leaves_the_positive_out(cls: type[Contrastive]) -> None:
    first, second = rows(4, 1), rows(4, 2)
    z = torch.cat([first, second]).double().numpy()
    ref.close(ref.first(bare(cls, decoupled=True), views(first, second)).loss, ref.nt_xent(z, 0.5, decoupled=True))


@both
def test_invariances(cls: type[Contrastive]) -> None:
    method = bare(cls)
    first, second = rows(6, 1), rows(6, 2)
    loss = ref.first(method, views(first, second)).loss
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.1, 9, 6)[:, None]
    for other in (views(first[order], second[order]), views(second, first), views(first * scale, second * 5)):
        torch.testing.assert_close(ref.first(method, other).loss, loss)
    assert not torch.isclose(ref.first(method, views(first, second[order])).loss, loss)


@both
def test_one_image_has_nothing_to_tell_apart(cls: type[Contrastive]) -> None:
    ref.close(ref.first(bare(cls), views(rows(1, 1), rows(1, 2))).loss, 0.0)


@both
def test_both_views_share_one_forward(cls: type[Contrastive]) -> None:
    """BatchNorm of the head then sees 2N rows and not N twice."""
    method = cls(ref.linear_encoder()).train()
    ref.run(method, ref.batch(unlabeled={"first": ref.images(4, 1), "second": ref.images(4, 2)}))
    norms = [module for module in method.encoder.modules() if isinstance(module, nn.BatchNorm1d)]
    assert [int(norm.num_batches_tracked) for norm in norms if norm.num_batches_tracked is not None] == [1] * len(norms)


def test_heads() -> None:
    for cls, layers in ((SimCLR, 2), (SimCLRv2, 3)):
        method = cls(ref.linear_encoder(num_features=6))
        head = method.encoder.projector
        assert isinstance(head, ProjectionHead)
        widths = [(m.in_features, m.out_features) for m in head.modules() if isinstance(m, nn.Linear)]
        assert widths == [(6, 6)] * (layers - 1) + [(6, 128)]
        assert method.predictor() is method.encoder
    wide = SimCLRv2(ref.linear_encoder(), hidden=10, out_features=5, layers=4).encoder.projector
    assert isinstance(wide, ProjectionHead)
    assert [m.out_features for m in wide.modules() if isinstance(m, nn.Linear)] == [10, 10, 10, 5]
    assert len(wide.truncate(1)) == 1


# --- the memory ------------------------------------------------------------------------------------------------------


def check_memory(cls: type[SimCLRv2]) -> None:
    """Each loss sees the memory as it was before the step, without gradient; then the new keys replace the oldest.

    Keys are projections of the second view by the average of the weights after the update. The memory of 10 is no
    multiple of the 4 keys per step: the third step wraps around.
    """
    method = cls(ref.linear_encoder(), memory=10, out_features=5, memory_decay=0.9, temperature=0.4)
    method.encoder.projector = nn.Linear(6, 5)
    method.average.module.projector = nn.Linear(6, 5)
    method.average.module.projector.load_state_dict(method.encoder.projector.state_dict())
    expected = method.queue.double().numpy().copy()
    norms = (expected**2).sum(1)
    ref.close(norms, norms * 0 + 1)
    seen = [parameters(method.encoder)]
    written = 0
    for step in range(6):
        batch = ref.batch(unlabeled={"first": ref.images(4, 10 + step), "second": ref.images(4, 20 + step)})
        method.queue.requires_grad_()
        generator = method.step(batch, Progress(step, 6))
        update = next(generator)
        z = method.encoder.project(torch.cat([batch.unlabeled["first"], batch.unlabeled["second"]]))
        ref.close(update.loss, ref.nt_xent(z.detach().double().numpy(), 0.4, expected))
        update.loss.backward()
        assert method.queue.grad is None, "gradient into the memory"
        method.queue.requires_grad_(False)
        with torch.no_grad():
            for p in method.groups()["main"]:
                assert p.grad is not None
                p.sub_(0.5 * p.grad)
                p.grad = None
        assert next(generator, None) is None
        seen.append(parameters(method.encoder))
        # By hand: w1 x + b1, then w2 . + b2, then to unit length.
        average = [torch.stack(each).mean(0) for each in zip(*seen, strict=True)]
        w1, b1, w2, b2 = average
        for x in batch.unlabeled["second"].flatten(1).double():
            key = w2 @ (w1 @ x + b1) + b2
            expected[written % 10] = (key / key.square().sum().sqrt()).numpy()
            written += 1
        ref.close(method.queue, expected, rtol=1e-4, atol=1e-5)


def parameters(encoder: Encoder) -> list[Tensor]:
    return [p.detach().double().clone() for p in encoder.parameters()]


def check_own_keys_are_no_negatives(cls: type[SimCLRv2]) -> None:
    """A huge similarity with one's own key would show in the loss of the same step."""
    torch.manual_seed(0)
    method = cast(SimCLRv2, bare(cls, memory=4))
    method.queue.copy_(torch.eye(8)[:4])
    method.average.module.projector = nn.Identity()
    given = views(torch.eye(8)[4:], torch.eye(8)[4:])
    updates = method.step(given, ref.START)
    # Eight anchors, one positive each, six orthogonal ones in the batch and four in the memory, at tau = .5.
    ref.close(next(updates).loss, math.log(1 + 10 * math.exp(-2)))
    method.average.update = lambda online: None  # type: ignore[method-assign]  # nothing here can be averaged
    assert next(updates, None) is None
    assert torch.equal(method.queue, torch.eye(8)[4:])


def test_memory() -> None:
    check_memory(SimCLRv2)


def test_average_has_batch_statistics_of_its_own() -> None:
    """Those of the second views under its own weights, as MoCo's key encoder."""
    method = SimCLRv2(ref.linear_encoder(), memory=8).train()
    given = ref.batch(unlabeled={"first": ref.images(4, 1), "second": ref.images(4, 2)})
    ref.run(method, given)
    average = cast(Encoder, method.average.module)
    norm = average.get_submodule("projector.layers.0.1")
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    linear = average.get_submodule("projector.layers.0.0")
    keys = linear(average.backbone(given.unlabeled["second"]))
    ref.close(norm.running_mean, 0.1 * keys.detach().mean(0).double().numpy(), rtol=1e-4)


def test_own_keys_are_no_negatives() -> None:
    check_own_keys_are_no_negatives(SimCLRv2)


def test_queue_is_first_in_first_out() -> None:
    method = SimCLRv2(ref.linear_encoder(), memory=5, out_features=1)
    for start in (0, 2, 4, 6):
        method.enqueue(torch.arange(start, start + 2.0)[:, None])
    # 0 ... 7 were written: 0, 1 and 2 are gone, 5 took the place of 0.
    assert method.queue.flatten().tolist() == [5, 6, 7, 3, 4]
    assert int(method.written) == 8


def test_without_memory_nothing_is_remembered() -> None:
    method = SimCLRv2(ref.linear_encoder())
    assert not [name for name in method.state_dict() if not name.startswith("encoder.")]


def test_memory_smaller_than_the_batch() -> None:
    method = SimCLRv2(ref.linear_encoder(), memory=3)
    given = ref.batch(unlabeled={"first": ref.images(4, 1), "second": ref.images(4, 2)})
    with pytest.raises(SemisupError, match=r"memory: must be 0 or at least the unlabeled batch of 4 images, got 3"):
        next(iter(method.step(given, ref.START)))


# --- sabotage --------------------------------------------------------------------------------------------------------


def unmasked(z: Tensor, temperature: float, extra: Tensor | None = None, **settings: Any) -> Tensor:
    unit = F.normalize(z, dim=1)
    return F.cross_entropy(unit @ unit.T / temperature, torch.arange(len(z)).roll(len(z) // 2))


def unnormalized(z: Tensor, temperature: float, extra: Tensor | None = None, **settings: Any) -> Tensor:
    similarities = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(similarities, torch.arange(len(z)).roll(len(z) // 2))


@both
@pytest.mark.parametrize("loss", [unmasked, unnormalized])
def test_values_find_a_wrong_loss(
    cls: type[Contrastive], loss: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{cls.__module__}.nt_xent", loss)
    with pytest.raises(AssertionError, match="Not equal"):
        check_values(cls)


def test_unmasked_self_similarity_has_the_known_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semisup.methods.simclr.nt_xent", unmasked)
    ref.close(ref.first(bare(SimCLR), views(torch.eye(8)[:4], torch.eye(8)[:4])).loss, math.log(2 + 6 * math.exp(-2)))


class Doubled(SimCLR):
    """The official TensorFlow code: the means of both halves are added."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            yield Update(2 * update.loss, log={"contrastive": 2 * update.loss})


class OneSided(SimCLR):
    """The second view is a target without gradient."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        detached = Unlabeled({"first": u["first"], "second": u["second"].detach()}, u.index)
        return super().step(Batch(batch.labeled, detached), progress)


class Interleaved(SimCLR):
    """Pairs stand next to each other, the loss expects halves."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        z = torch.stack([batch.unlabeled["first"], batch.unlabeled["second"]], dim=1).flatten(0, 1)
        half = len(z) // 2
        u = Unlabeled({"first": z[:half], "second": z[half:]}, batch.unlabeled.index)
        return super().step(Batch(batch.labeled, u), progress)


@pytest.mark.parametrize("cls", [Doubled, OneSided, Interleaved])
def test_values_find(cls: type[SimCLR]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_values(cls)


class EarlyKeys(SimCLRv2):
    """Keys enter the memory before the loss looks at it."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        average = cast(Encoder, self.average.module)
        with torch.no_grad():
            self.enqueue(F.normalize(average.project(batch.unlabeled["second"]), dim=1))
        z = self.encoder.project(torch.cat([batch.unlabeled["first"], batch.unlabeled["second"]]))
        yield Update(nt_xent(z, self.temperature, self.queue))
        self.average.update(self.encoder)


class LastOut(SimCLRv2):
    """The newest keys are overwritten, the oldest stay."""

    def enqueue(self, keys: Tensor) -> None:
        self.queue[: len(keys)] = keys


class RawKeys(SimCLRv2):
    """Keys of any length."""

    def enqueue(self, keys: Tensor) -> None:
        super().enqueue(3 * keys)


class OnlineKeys(SimCLRv2):
    """Keys of the network itself, not of its average."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.average.decay = 0.0
        return super().step(batch, progress)


class ForgottenMemory(SimCLRv2):
    """The memory is filled and never used."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for _ in super().step(batch, progress):
            z = self.encoder.project(torch.cat([batch.unlabeled["first"], batch.unlabeled["second"]]))
            yield Update(nt_xent(z, self.temperature))


@pytest.mark.parametrize("cls", [EarlyKeys, LastOut, RawKeys, OnlineKeys, ForgottenMemory])
def test_memory_check_finds(cls: type[SimCLRv2]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_memory(cls)


def test_own_key_check_finds_early_keys() -> None:
    with pytest.raises(AssertionError):
        check_own_keys_are_no_negatives(EarlyKeys)


def test_memory_check_finds_gradient_into_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(z: Tensor, temperature: float, extra: Tensor, **settings: Any) -> Tensor:
        unit = F.normalize(z, dim=1)
        own = (unit @ unit.T / temperature).fill_diagonal_(-torch.inf)
        similarities = torch.cat([own, unit @ extra.T / temperature], dim=1)
        return F.cross_entropy(similarities, torch.arange(len(z)).roll(len(z) // 2))

    monkeypatch.setattr("semisup.methods.simclr_v2.nt_xent", leaky)
    with pytest.raises(AssertionError, match="gradient into the memory"):
        check_memory(SimCLRv2)

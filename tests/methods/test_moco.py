"""MoCo against equation 1: order of a step, queue, key network, and parts of a batch that are normalized apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.losses import info_nce
from semisup.methods import Batch, Progress, Update
from semisup.methods.moco import MoCo
from semisup.methods.parts.memory import enqueue
from semisup.models import EMA, Encoder
from tests.methods import methods_reference as ref

N, MEMORY, MOMENTUM, TEMPERATURE = 4, 10, 0.8, 0.4


def given(step: int = 0, n: int = N) -> Batch:
    return ref.batch(unlabeled={"query": ref.images(n, 10 + step), "key": ref.images(n, 20 + step)})


def build(cls: type[MoCo], **options: Any) -> MoCo:
    """The method on a linear encoder with a linear head: 6 features, 5 numbers to compare."""
    defaults = {
        "head": "linear",
        "out_features": 5,
        "memory": MEMORY,
        "momentum": MOMENTUM,
        "temperature": TEMPERATURE,
        "bn_splits": 1,
    }
    return cls(ref.linear_encoder(), **{**defaults, **options})


def bare(**options: Any) -> MoCo:
    """The method on raw pixels: both networks are the identity, and stay so."""
    method = MoCo(Encoder(ref.Flat(8)), **{"out_features": 8, "bn_splits": 1, **options})
    method.online = nn.Sequential(method.online[0], nn.Identity())
    method.target = EMA(method.online, warm=False)
    return method


def weights(network: nn.Module) -> list[ref.Array]:
    return [p.detach().double().numpy().copy() for p in network.parameters()]


def embed(parameters: list[ref.Array], images: Tensor) -> list[ref.Array]:
    """W2 (W1 x + b1) + b2 of each image, to unit length."""
    w1, b1, w2, b2 = parameters
    rows = [w2 @ (w1 @ x + b1) + b2 for x in images.double().flatten(1).numpy()]
    return [row / math.sqrt(sum(row * row)) for row in rows]


def test_decoupled_leaves_the_key_out() -> None:
    plain, decoupled = (ref.first(build(MoCo, decoupled=flag), given(n=1)).loss.detach() for flag in (False, True))
    # log(p + n) - log p, and log n - log p.
    ref.close(decoupled, math.log(math.exp(float(plain)) - 1), rtol=1e-4)


def loss_by_hand(queries: list[ref.Array], keys: list[ref.Array], queue: ref.Array, temperature: float) -> float:
    losses = []
    for q, k in zip(queries, keys, strict=True):
        positive = math.exp(q @ k / temperature)
        losses.append(-math.log(positive / (positive + sum(math.exp(q @ row / temperature) for row in queue))))
    return ref.mean(losses)


def check_steps(cls: type[MoCo]) -> None:
    """Six steps: momentum update, keys, loss against the old queue (value and gradient), and keys into the queue.

    The queue of 10 is no multiple of the 4 keys per step: the third step wraps around.
    """
    method = build(cls)
    queue = method.queue.double().numpy().copy()
    ref.close((queue**2).sum(1), np.ones(MEMORY))
    theta = weights(method.target.module)
    written = 0
    for step in range(6):
        online = weights(method.online)
        theta = [MOMENTUM * mine + (1 - MOMENTUM) * theirs for mine, theirs in zip(theta, online, strict=True)]
        batch = given(step)
        keys = embed(theta, batch.unlabeled["key"])

        def loss(
            head: ref.Array, batch: Batch = batch, keys: list[ref.Array] = keys, online: list[ref.Array] = online
        ) -> float:
            queries = embed([*online[:2], head, online[3]], batch.unlabeled["query"])
            return loss_by_hand(queries, keys, queue, TEMPERATURE)

        updates = method.step(batch, Progress(step, 6))
        update = next(updates)
        ref.close(update.loss, loss(online[2]))
        ref.close(update.log["contrastive"], loss(online[2]))
        ref.close(method.queue, queue)
        parameters = method.groups()["main"]
        slopes = torch.autograd.grad(update.loss, parameters)
        ref.close(slopes[2], ref.numeric_gradient(loss, online[2]), rtol=1e-3, atol=1e-5)
        with torch.no_grad():
            for p, slope in zip(parameters, slopes, strict=True):
                p.sub_(slope)
        assert next(updates, None) is None
        for key in keys:
            queue[written % MEMORY] = key
            written += 1
        ref.close(method.queue, queue, rtol=1e-4, atol=1e-5)
        for mine, expected in zip(weights(method.target.module), theta, strict=True):
            ref.close(mine, expected)


def check_nothing_is_learned_through_keys(cls: type[MoCo]) -> None:
    method, batch = build(cls), given()
    ref.check_no_gradient_into(method, batch, "unlabeled", "key")
    batch.unlabeled["query"].requires_grad_()
    ref.first(method, batch).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())
    assert batch.unlabeled["query"].grad is not None


def check_keys_return_to_their_places(cls: type[MoCo]) -> None:
    """Parts of a batch are normalized apart, queries in order, keys in a drawn one; each key meets its own query."""
    method = bare(bn_splits=2)
    method.__class__ = cls
    norm = nn.BatchNorm1d(8, affine=False)
    method.online[1], method.target.module[1] = norm, nn.BatchNorm1d(8, affine=False)  # type: ignore[index, operator]
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    batch = ref.batch(unlabeled={"query": x.view(6, 1, 2, 4), "key": x.view(6, 1, 2, 4)})
    torch.manual_seed(3)
    order = torch.randperm(6).tolist()
    assert order[:3] != [0, 1, 2]

    def standardized(rows: list[int], at: int) -> ref.Array:
        """Image `at` next to the images `rows`, by the definition of BatchNorm."""
        part = x.double().numpy()[rows]
        return (x[at].double().numpy() - part.mean(0)) / np.sqrt(part.var(0) + 1e-5)

    queries = [standardized([0, 1, 2] if i < 3 else [3, 4, 5], i) for i in range(6)]
    keys = [standardized(order[:3] if i in order[:3] else order[3:], i) for i in range(6)]
    unit = [[row / math.sqrt(sum(row * row)) for row in rows] for rows in (queries, keys)]
    expected = loss_by_hand(*unit, method.queue.double().numpy(), method.temperature)
    torch.manual_seed(3)
    ref.close(ref.first(method, batch).loss, expected, rtol=1e-4)


def test_steps() -> None:
    check_steps(MoCo)


def test_nothing_is_learned_through_keys() -> None:
    check_nothing_is_learned_through_keys(MoCo)


def test_keys_return_to_their_places() -> None:
    check_keys_return_to_their_places(MoCo)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_closed_forms(temperature: float) -> None:
    """methods.md 2.4."""
    method = bare(memory=6, temperature=temperature)
    eye = torch.eye(8).view(8, 1, 2, 4)
    method.queue.copy_(torch.eye(8)[2:])
    same = ref.batch(unlabeled={"query": eye[:2], "key": eye[:2]})
    ref.close(ref.first(method, same).loss, math.log(1 + 6 * math.exp(-1 / temperature)))
    other = ref.batch(unlabeled={"query": eye[:2], "key": eye[[1, 0]]})
    ref.close(ref.first(method, other).loss, math.log(7))


def test_after_enough_steps_the_queue_holds_keys_only() -> None:
    method = build(MoCo, memory=8)
    start = method.queue.clone()
    ref.run(method, given(0))
    assert torch.equal(method.queue[4:], start[4:])
    ref.run(method, given(1))
    first = method.queue[:4].clone()
    assert not (method.queue == start).all(1).any()
    ref.run(method, given(2))
    assert not (method.queue[:4] == first).all(1).any()
    assert int(method.written) == 12


def test_enqueue_is_first_in_first_out() -> None:
    queue, written = torch.zeros(5, 1), torch.zeros((), dtype=torch.long)
    for start in (0, 2, 4, 6):
        enqueue(queue, written, torch.arange(start, start + 2.0)[:, None])
    # 0 ... 7 were written: 0, 1 and 2 are gone, 5 took the place of 0.
    assert queue.flatten().tolist() == [5, 6, 7, 3, 4]
    assert int(written) == 8


def test_momentum_1_freezes_the_key_network_and_0_copies() -> None:
    for momentum in (1.0, 0.0):
        method = build(MoCo, momentum=momentum)
        start, before = weights(method.online), []
        for step in range(3):
            before = weights(method.online)
            ref.run(method, given(step))
        expected = start if momentum else before
        for mine, wanted in zip(weights(method.target.module), expected, strict=True):
            ref.close(mine, wanted, rtol=1e-6)


def test_both_networks_start_equal() -> None:
    method = build(MoCo)
    for mine, theirs in zip(weights(method.online), weights(method.target.module), strict=True):
        assert (mine == theirs).all()


def test_key_network_has_batch_statistics_of_its_own() -> None:
    """Those of its own keys, part by part, in train mode; never the online network's."""
    backbone = ref.Flat()
    backbone.norm = nn.BatchNorm1d(ref.PIXELS)
    backbone.register_forward_hook(lambda module, inputs, output: module.norm(output))
    method = MoCo(Encoder(backbone), out_features=5, memory=8, bn_splits=2, momentum=0.0).train()
    batch = given()
    torch.manual_seed(3)
    order = torch.randperm(N)
    torch.manual_seed(3)
    ref.run(method, batch)
    for network, images in (
        (method.online, batch.unlabeled["query"]),
        (method.target.module, batch.unlabeled["key"][order]),
    ):
        norm = network.get_submodule("0.backbone.norm")
        assert isinstance(norm, nn.BatchNorm1d)
        assert norm.training
        first, second = (part.flatten(1).double().mean(0).numpy() for part in images.chunk(2))
        ref.close(norm.running_mean, 0.9 * 0.1 * first + 0.1 * second, rtol=1e-4)


def test_heads() -> None:
    for head, widths in (("mlp", [(6, 6), (6, 128)]), ("linear", [(6, 128)])):
        method = MoCo(ref.linear_encoder(num_features=6), head=head)  # type: ignore[arg-type]
        linears = [m for m in method.online[1].modules() if isinstance(m, nn.Linear)]
        assert [(m.in_features, m.out_features) for m in linears] == widths
        assert all(m.bias is not None for m in linears)
        assert method.predictor() is method.online[0]
        assert isinstance(method.predictor(), Encoder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 3}, r"method\.memory: must be at least the unlabeled batch of 4 images, got 3"),
        (
            {"bn_splits": 3},
            r"method\.bn_splits: must leave two images for each part of the unlabeled batch of 4, got 3",
        ),
    ],
)
def test_batches_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SemisupError, match=message):
        ref.first(build(MoCo, **options), given())


def test_a_batch_that_is_no_multiple_of_its_parts() -> None:
    assert bool(ref.first(build(MoCo, bn_splits=4), given(n=10)).loss.isfinite())


# --- sabotage --------------------------------------------------------------------------------------------------------


class EarlyKeys(MoCo):
    """Keys enter the queue before the loss looks at it: each is its own negative."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.target.update(self.online)
        with torch.no_grad():
            keys = F.normalize(self.target.module(batch.unlabeled["key"]), dim=1)
        enqueue(self.queue, self.written, keys)
        loss = info_nce(self.online(batch.unlabeled["query"]), keys, self.temperature, self.queue.clone())
        yield Update(loss, log={"contrastive": loss})


class LateMomentum(MoCo):
    """The key network moves after the update instead of before the keys."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        update, self.target.update = self.target.update, lambda online: None  # type: ignore[method-assign]
        yield from super().step(batch, progress)
        self.target.update = update  # type: ignore[method-assign]
        self.target.update(self.online)


class OnlineKeys(MoCo):
    """Keys of the query network."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.target.decay = 0.0
        return super().step(batch, progress)


class WarmStart(MoCo):
    """The key network as the plain mean of the first weights."""

    def __init__(self, model: Encoder, **options: Any) -> None:
        super().__init__(model, **options)
        self.target.warm = True


class RawKeys(MoCo):
    """Keys of any length in the queue."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        yield from super().step(batch, progress)
        self.queue *= 2


class Doubled(MoCo):
    """The logits are divided by half the temperature."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.temperature = TEMPERATURE / 2
        return super().step(batch, progress)


class ThroughKeys(MoCo):
    """Gradient through the key network."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.target.module.requires_grad_(True)
        for update in super().step(batch, progress):
            keys = self.target.module(batch.unlabeled["key"])
            loss = info_nce(self.online(batch.unlabeled["query"]), keys, self.temperature, self.queue)
            yield replace(update, loss=loss)


class LeftShuffled(MoCo):
    """Keys stay in the order in which they were encoded."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        key = batch.unlabeled["key"]
        with torch.no_grad():
            keys = self.encode(self.target.module, key[torch.randperm(len(key))])
        loss = info_nce(self.encode(self.online, batch.unlabeled["query"]), keys, self.temperature, self.queue)
        yield Update(loss)


class OneBatch(MoCo):
    """Query and key are normalized with the whole batch."""

    def encode(self, network: nn.Module, images: Tensor) -> Tensor:
        return cast(Tensor, network(images))


class InOrder(MoCo):
    """Keys are normalized next to the keys of their query's neighbors."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        with torch.no_grad():
            keys = self.encode(self.target.module, batch.unlabeled["key"])
        loss = info_nce(self.encode(self.online, batch.unlabeled["query"]), keys, self.temperature, self.queue)
        yield Update(loss)


def given_views(query: Tensor, key: Tensor) -> Batch:
    return ref.batch(unlabeled={"query": query, "key": key})


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (EarlyKeys, check_steps),
        (LateMomentum, check_steps),
        (OnlineKeys, check_steps),
        (WarmStart, check_steps),
        (RawKeys, check_steps),
        (Doubled, check_steps),
        (ThroughKeys, check_nothing_is_learned_through_keys),
        (LeftShuffled, check_keys_return_to_their_places),
        (OneBatch, check_keys_return_to_their_places),
        (InOrder, check_keys_return_to_their_places),
    ],
)
def test_check_finds(cls: type[MoCo], check: Callable[[type[MoCo]], None]) -> None:
    with pytest.raises(AssertionError, match=r"Not equal|gradient into"):
        check(cls)

"""SimCLRv2: SimCLR with a deeper head, from inside which the fine-tuning starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.losses import nt_xent
from semisup.methods.base import Batch, Count, CountOrZero, Depth, Fraction, Method, Positive, Progress, Update, Views
from semisup.methods.parts.memory import enqueue
from semisup.models import EMA, Encoder, ProjectionHead

__all__ = ["SimCLRv2"]


class SimCLRv2(Method):
    """SimCLR with a three-layer head and, on request, a MoCo-style memory (Chen et al. 2020, arXiv:2006.10029, sec. 2).

    A later stage keeps the first layers of the head with `init: {from: <stage>, head_layer: 1}`. Selective kernels and
    the width multiplier belong to the network: `model: {name: resnet50, width: 2, sk: true}`.

    The memory holds projections of earlier batches by the moving average of the network. They are further
    negatives for every anchor, without gradient. The paper gives no more detail and the official code leaves the memory
    out; here the average sees the second view, in train mode, as MoCo's key encoder does.

    Args:
        model: the bare encoder.
        temperature: > 0. Official code: 0.1 on ImageNet, 0.5 on CIFAR-10.
        hidden: width of the head's middle layers; 0 means the encoder's width, as in the official code.
        out_features: dimension of the compared embeddings. Official code: 128.
        layers: of the projection head. Paper: 3.
        memory: number of remembered embeddings, 0 for none, else at least the unlabeled batch. Paper: 65,536.
        memory_decay: of the average that fills the memory. Paper: 0.999.
        decoupled: leave the positive out of the denominator (arXiv:2110.06848); meant for small batches.
        chunk: views that are compared with all others at a time, for large batches: memory in its proportion, for one
            more computation of the similarities; 0: all of them.

    Raises:
        SemisupError: at the first step, if the memory is smaller than the unlabeled batch.
    """

    name = "simclr_v2"
    family = "self-supervised"
    summary = "SimCLR with a deeper projection head to fine-tune from, and an optional memory of negatives."
    citation = "Chen et al. 2020, arXiv:2006.10029"
    trains = "encoder"
    views = Views(unlabeled={"first": "simclr", "second": "simclr"})
    only_with = {"memory_decay": ("memory", True)}
    queue: Tensor
    written: Tensor

    def __init__(
        self,
        model: Encoder,
        *,
        temperature: Positive = 0.5,
        hidden: CountOrZero = 0,
        out_features: Count = 128,
        layers: Depth = 3,
        memory: CountOrZero = 0,
        memory_decay: Fraction = 0.999,
        decoupled: bool = False,
        chunk: CountOrZero = 0,
    ) -> None:
        super().__init__()
        width = hidden or model.num_features
        self.encoder = Encoder(
            model.backbone, ProjectionHead(model.num_features, width, out_features, num_layers=layers)
        )
        self.temperature = temperature
        self.decoupled = decoupled
        self.chunk = chunk
        self.memory = memory
        if memory:
            self.average = EMA(self.encoder, memory_decay, own_buffers=True)
            # Random unit vectors until real keys have replaced them, as MoCo starts its queue.
            self.register_buffer("queue", F.normalize(torch.randn(memory, out_features), dim=1))
            self.register_buffer("written", torch.zeros((), dtype=torch.long))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update against the batch and the old memory; then the new keys replace the oldest."""
        first, second = batch.unlabeled["first"], batch.unlabeled["second"]
        if 0 < self.memory < len(second):
            # One batch would write some rows twice, in an order that index_copy_ leaves open.
            raise SemisupError(
                f"method.memory: must be 0 or at least the unlabeled batch of {len(second)} images, got {self.memory}"
            )
        z = self.encoder.project(torch.cat([first, second]))
        loss = nt_xent(
            z, self.temperature, self.queue if self.memory else None, decoupled=self.decoupled, chunk=self.chunk
        )
        first_z, second_z = z.chunk(2)
        yield Update(loss, log={"contrastive": loss}, embeddings=(first_z, second_z))
        if self.memory:
            self.average.update(self.encoder)
            # Calling the average would give the backbone's features, as any encoder does.
            average = cast(Encoder, self.average.module)
            with torch.no_grad():
                self.enqueue(F.normalize(average.project(second).float(), dim=1))

    def enqueue(self, keys: Tensor) -> None:
        """Overwrite the oldest rows of the queue with `keys` (N, D)."""
        enqueue(self.queue, self.written, keys)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the encoder and its head; the average follows."""
        return {"main": list(self.encoder.parameters())}

    def predictor(self) -> nn.Module:
        """Return the encoder, with its projection head next to it."""
        return self.encoder

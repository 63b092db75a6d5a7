"""MoCo: a view finds its image's other view among a queue of earlier keys, made by a slow copy of the network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.losses import info_nce
from semisup.methods.base import Batch, Count, Fraction, Method, Positive, Progress, Update, Views
from semisup.methods.parts.memory import enqueue
from semisup.models import EMA, Encoder

__all__ = ["MoCo"]

SMALL_PART = 32
"""Images below which a part's own statistics are too noisy; the paper and the CIFAR notebook have 32 and 64."""


class MoCo(Method):
    """Contrastive learning against a queue of keys from a slowly moving network.

    InfoNCE of a query with its key against a queue (He et al. 2020, arXiv:1911.05722, eq. 1; v2: Chen et al. 2020,
    arXiv:2003.04297).

    Each step first moves the key network, theta_k <- m theta_k + (1 - m) theta_q, then encodes the keys without
    gradient, compares with the queue of earlier steps, and puts the keys in at the end, so that none is its own
    negative. Only the queries learn. v1 is `{head: linear, temperature: 0.07}`, v2, the default, has an MLP head.

    Parameters are averaged; the BatchNorm statistics of the key network are those of its own batches, in train mode.
    Where a query and its key are normalized next to the same images, the statistics give the answer away: the paper
    shuffles keys over GPUs. Here, on one device, a batch goes through the network in parts, each with statistics of its
    own, the keys in an order that is drawn and afterwards undone: eight GPUs in one, as in the authors' CIFAR notebook.
    Running statistics then move once per part. A part needs images enough for its own statistics: the paper has 32 on
    each GPU. The keys of a queue should not be much older than the key network's memory of 1 / (1 - momentum) steps.

    Source: facebookresearch/moco, moco/builder.py and colab/moco_cifar10_demo.ipynb.

    Args:
        model: the bare encoder; the head is next to it and is dropped afterwards.
        head: mlp (linear, ReLU, linear; as wide as the features between them), v2's; or linear, v1's.
        temperature: of the similarities, > 0. v2: 0.2; v1: 0.07; CIFAR notebook: 0.1.
        out_features: dimension of the compared embeddings. Paper: 128.
        memory: keys in the queue, at least the unlabeled batch. Paper: 65,536; CIFAR notebook: 4,096.
        momentum: m of the key network, in [0, 1]; 1 freezes it. Paper: 0.999; CIFAR notebook: 0.99.
        bn_splits: parts of a batch, of at least two images each, better 32; 1: BatchNorm sees the whole. CIFAR
            notebook: 8, as many as the paper has GPUs, of a batch of 512.
        decoupled: leave the positive out of the denominator (arXiv:2110.06848).

    Raises:
        SemisupError: at the first step, if the memory is smaller than the unlabeled batch or a part than two images.
    """

    name = "moco"
    family = "self-supervised"
    summary = "A view finds its image's key among a queue of keys of a slowly moving copy of the network."
    citation = "He et al. 2020, arXiv:1911.05722"
    trains = "encoder"
    views = Views(unlabeled={"query": "moco", "key": "moco"})
    queue: Tensor
    written: Tensor

    def __init__(
        self,
        model: Encoder,
        *,
        head: Literal["mlp", "linear"] = "mlp",
        temperature: Positive = 0.2,
        out_features: Count = 128,
        memory: Count = 4096,
        momentum: Fraction = 0.99,
        bn_splits: Count = 8,
        decoupled: bool = False,
    ) -> None:
        super().__init__()
        width = model.num_features
        hidden = [nn.Linear(width, width), nn.ReLU(inplace=True)] if head == "mlp" else []
        self.online = nn.Sequential(model, nn.Sequential(*hidden, nn.Linear(width, out_features)))
        self.target = EMA(self.online, momentum, own_buffers=True, warm=False)
        self.temperature = temperature
        self.memory = memory
        self.bn_splits = bn_splits
        self.decoupled = decoupled
        # Random unit vectors until keys have replaced them, as in the reference code.
        self.register_buffer("queue", F.normalize(torch.randn(memory, out_features), dim=1))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update against the queue of earlier steps."""
        query, key = batch.unlabeled["query"], batch.unlabeled["key"]
        self.check_size(len(query))
        self.target.update(self.online)
        with torch.no_grad():
            order = torch.randperm(len(key), device=key.device)
            keys = self.encode(self.target.module, key[order])[order.argsort()]
            keys = F.normalize(keys.float(), dim=1)
        queries = self.encode(self.online, query)
        loss = info_nce(queries, keys, self.temperature, self.queue, decoupled=self.decoupled)
        yield Update(loss, log={"contrastive": loss}, embeddings=(queries, keys))
        enqueue(self.queue, self.written, keys)

    def encode(self, network: nn.Module, images: Tensor) -> Tensor:
        """Embeddings (N, out_features), not normalized, of images whose parts are normalized apart."""
        return torch.cat([network(part) for part in images.tensor_split(self.bn_splits)])

    def check_size(self, size: int) -> None:
        """Refuse an unlabeled batch that does not fit."""
        if self.memory < size:
            raise SemisupError(
                f"method.memory: must be at least the unlabeled batch of {size} images, got {self.memory}"
            )
        if self.bn_splits > 1 and size < 2 * self.bn_splits:
            raise SemisupError(
                f"method.bn_splits: must leave two images for each part of the unlabeled batch of {size}, "
                f"got {self.bn_splits}"
            )

    def notes(self, labeled: int, unlabeled: int) -> list[str]:
        """Warn of parts that are too small for BatchNorm statistics of their own."""
        part = unlabeled // self.bn_splits
        if self.bn_splits == 1 or part >= SMALL_PART:
            return []
        return [
            f"method.bn_splits: BatchNorm sees parts of {part} images, and fewer than {SMALL_PART} give poor "
            f"statistics; use bn_splits: {max(1, unlabeled // SMALL_PART)} or a larger batch"
        ]

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the network of the queries; that of the keys follows."""
        return {"main": list(self.online.parameters())}

    def predictor(self) -> nn.Module:
        """Return the encoder of the queries, without its head."""
        return self.online[0]

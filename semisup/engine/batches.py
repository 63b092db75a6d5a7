"""Batches of views: step t's images and augmentations as a pure function of (seed, stage, t)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semisup.augment import Normalize, to_float
from semisup.augment.policies.adaptive import Probe
from semisup.augment.policies.backend import HostFirst
from semisup.augment.policies.policy import Augmentation, Part
from semisup.data import read_ahead, take
from semisup.engine import ranks
from semisup.engine.seeding import generator
from semisup.errors import SemisupError
from semisup.losses import LabelLoss
from semisup.methods import Batch, Labeled, Unlabeled

__all__ = ["Batches", "Order", "TrainingImages"]


@dataclass(frozen=True)
class TrainingImages:
    """All that training may know: every image, and the labels of the labeled ones. Hidden labels are not in here."""

    images: Tensor | NDArray[np.uint8]
    """(N, H, W, C) uint8: a tensor goes to the device whole; an array, which may be a memory map larger than the
    memory, is read batch by batch."""
    labeled_index: Tensor
    """(L,) int64 rows of `images`."""
    labels: Tensor
    """(L,) int64 classes of those rows."""
    pool: Tensor | None = None
    """(M,) rows to draw unlabeled images from, repeats allowed; None: all N once."""
    targets: Tensor | None = None
    """(N, num_classes) pseudo-labels of a relabel or propagate stage, if any."""


class Order:
    """An endless order of `n` things: each epoch is one permutation, and any stretch of it can be asked for.

    Args:
        n: how many things there are, at least 1.
        key: names the draw, see `semisup.engine.seeding.seed_for`.
    """

    def __init__(self, n: int, *key: object) -> None:
        self.n = n
        self.key = key
        self._latest: tuple[int, Tensor] | None = None

    def _permutation(self, epoch: int) -> Tensor:
        if self._latest is None or self._latest[0] != epoch:  # the next stretch begins where this one ends
            self._latest = epoch, torch.randperm(self.n, generator=generator(*self.key, epoch))
        return self._latest[1]

    def stretch(self, start: int, length: int) -> Tensor:
        """Positions `start` ... `start + length - 1` of the endless order, (length,) int64."""
        pieces = []
        while length > 0:
            epoch, offset = divmod(start, self.n)
            piece = self._permutation(epoch)[offset : offset + length]
            pieces.append(piece)
            start, length = start + len(piece), length - len(piece)
        return torch.cat(pieces)


class BalancedOrder:
    """An endless order of labels in which every stretch of C positions has each class once.

    Args:
        labels: (L,) classes.
        key: names the draw.
    """

    def __init__(self, labels: Tensor, *key: object) -> None:
        classes = [torch.nonzero(labels == k).flatten() for k in labels.unique()]
        self._members = classes
        self._classes = Order(len(classes), *key, "classes")
        self._orders = [Order(len(rows), *key, "class", k) for k, rows in enumerate(classes)]

    def stretch(self, start: int, length: int) -> Tensor:
        """Positions in `labels`, (length,) int64."""
        chosen = self._classes.stretch(start, length).tolist()
        turns = range(start, start + length)
        found = [
            self._members[k][self._orders[k].stretch(at // len(self._members), 1)]
            for k, at in zip(chosen, turns, strict=True)
        ]
        return torch.cat(found)


class Batches:
    """`batches(t)` is the batch of step t, augmented, normalized and on the device.

    Nothing here has a state that matters: killing and resuming a run needs only t (and what adaptive
    views are drawn by, which is the method's).

    Args:
        data: what training may see.
        labeled: view name -> policy for the labeled part; empty if the method wants none. Where one begins on the
            host, the stored images stay there.
        unlabeled: likewise for the unlabeled part.
        labeled_size: labeled images per step.
        unlabeled_size: unlabeled images per step.
        normalize: applied to every view last.
        device: where the batch is made.
        key: seed and stage name.
        loss: of the labels.
        balanced: draw labeled images class by class.

    Raises:
        SemisupError: a part is asked for, and there is no image to draw for it.
    """

    def __init__(
        self,
        data: TrainingImages,
        *,
        labeled: Mapping[str, Augmentation | HostFirst],
        unlabeled: Mapping[str, Augmentation | HostFirst],
        labeled_size: int,
        unlabeled_size: int,
        normalize: Normalize,
        device: torch.device,
        key: tuple[object, ...],
        loss: LabelLoss | None = None,
        balanced: bool = False,
    ) -> None:
        self.loss = LabelLoss() if loss is None else loss.to(device)
        self.images = data.images
        if isinstance(data.images, Tensor) and not any(
            isinstance(policy, HostFirst) for policy in (*labeled.values(), *unlabeled.values())
        ):
            self.images = data.images.to(device)
        self.labeled_index = data.labeled_index
        self.labels = data.labels
        self.pool = torch.arange(len(data.images)) if data.pool is None else data.pool
        self.targets = None if data.targets is None else data.targets.to(device)
        self.labeled_policies = dict(labeled)
        self.unlabeled_policies = dict(unlabeled)
        self.labeled_size = labeled_size if labeled else 0
        self.unlabeled_size = unlabeled_size if unlabeled else 0
        for part, size, n in (
            ("labeled", self.labeled_size, len(self.labels)),
            ("unlabeled", self.unlabeled_size, len(self.pool)),
        ):
            if size and not n:
                raise SemisupError(f"data: the method needs {part} images, and there are none")
        self.normalize = normalize.to(device)
        self.device = device
        self.key = key
        order = (*key, "labeled order")
        self._labeled_order: Order | BalancedOrder = (
            BalancedOrder(self.labels, *order) if balanced else Order(len(self.labels), *order)
        )
        self._unlabeled_order = Order(len(self.pool), *key, "unlabeled order")

    @property
    def images_per_step(self) -> int:
        """Source images in one batch, however many views are made of each."""
        return self.labeled_size + self.unlabeled_size

    def _read(self, rows: Tensor) -> Tensor:
        """Return the images of some rows, (n, H, W, C) uint8, where they are stored."""
        if isinstance(self.images, Tensor):
            return self.images[rows.to(self.images.device, non_blocking=True)]
        return torch.from_numpy(take(self.images, rows.numpy()))

    def _sent(self, read: Tensor) -> Tensor:
        """Images (n, H, W, C) uint8 on the device, as (n, C, H, W) in [0, 1]."""
        if self.device.type == "cuda" and read.device.type == "cpu":
            read = read.pin_memory()  # the host does not wait for a copy from there
        return to_float(read.to(self.device, non_blocking=True))

    def _views(
        self, policies: Mapping[str, Augmentation | HostFirst], rows: Tensor, part: str, step: int
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the views of some rows, and the trace of a probe if one is among them.

        At one step with others, a rank reads and augments its own rows, by what is drawn for all.
        """
        own = _own_part(len(rows))
        read = self._read(rows if own is None else rows[own.rows])
        views, trace = {}, None
        sent: Tensor | None = None
        for name, policy in policies.items():
            rng = generator(*self.key, part, name, step)
            if isinstance(policy, HostFirst):
                images, policy = self._sent(policy.host(read, rng, part=own)), policy.then
            else:
                images = sent = self._sent(read) if sent is None else sent
            if isinstance(policy, Probe):
                view, trace = policy.probe(images, rng, part=own)
            else:
                view = policy(images, rng, part=own)
            view = self.normalize(view)
            views[name] = view if own is None else ranks.whole(view, len(rows))
        return views, trace

    def _read_ahead(self, step: int) -> None:
        """Have the disk bring the images of a step to come, while the one before it is computed."""
        if isinstance(self.images, Tensor):
            return
        for size, order, rows_of in (
            (self.labeled_size, self._labeled_order, self.labeled_index),
            (self.unlabeled_size, self._unlabeled_order, self.pool),
        ):
            if size:
                rows, own = rows_of[order.stretch(step * size, size)], _own_part(size)
                read_ahead(self.images, (rows if own is None else rows[own.rows]).numpy())

    def __call__(self, step: int) -> Batch:
        """Return the batch of step `step`."""
        nothing = torch.empty(0, dtype=torch.long, device=self.device)
        labeled, unlabeled = Labeled({}, nothing), Unlabeled({}, nothing)
        if self.labeled_size:
            at = self._labeled_order.stretch(step * self.labeled_size, self.labeled_size)
            rows, y = (each[at].to(self.device, non_blocking=True) for each in (self.labeled_index, self.labels))
            views, trace = self._views(self.labeled_policies, self.labeled_index[at], "labeled", step)
            labeled = Labeled(views, y, rows, trace, self.loss)
        if self.unlabeled_size:
            at = self._unlabeled_order.stretch(step * self.unlabeled_size, self.unlabeled_size)
            rows = self.pool[at].to(self.device, non_blocking=True)
            target = None if self.targets is None else self.targets[rows]
            views, _ = self._views(self.unlabeled_policies, self.pool[at], "unlabeled", step)
            unlabeled = Unlabeled(views, rows, target)
        self._read_ahead(step + 1)
        return Batch(labeled, unlabeled)


def _own_part(count: int) -> Part | None:
    """Return which of `count` rows this rank reads and augments at a step with others; None: all of them."""
    return Part(count, ranks.own_rows(count)) if ranks.at_one_step() and count >= ranks.size() else None

"""SimMatch: two views of an image should resemble the same labeled images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.losses import neighbor_predictions, similarity, soft_cross_entropy, unfold_classes
from semisup.losses.precision import without_autocast
from semisup.methods.base import (
    Batch,
    BelowOne,
    Count,
    Fraction,
    Method,
    NonNegative,
    Positive,
    Progress,
    PseudoLabels,
    Update,
    Views,
)
from semisup.methods.parts.instance_bank import find_places
from semisup.methods.parts.prior import AlignToRecent, Prior
from semisup.methods.parts.together import together
from semisup.models import Classifier

__all__ = ["SimMatch"]

RECENT = 32  # batches whose mean predictions are remembered for the alignment; USB's number on CIFAR


class SimMatch(Method):
    """Consistency of the classes and of the resemblance to labeled images between two views.

    L = CE(labeled) + unlabeled_weight * mean[max q >= threshold] H(q, strong)
    + instance_weight * mean H(r, s(strong)) (Zheng et al. 2022, arXiv:2203.06915).

    s(view) = softmax(embedding . bank / temperature) says which labeled images a view resembles. Both targets come from
    the weak view, without gradient, and correct each other: p, its aligned prediction, and s(weak). q = smoothing * p +
    (1 - smoothing) * the classes of the images that it resembles; r is s(weak) times p of each image's class,
    renormalized. q is soft.

    The bank has one row per labeled image, an average over the steps that showed it. Until it knows them all, q is p
    and the instance term counts 0. The reference code waits for one epoch of the unlabeled images.

    Sources: mingkai-zheng/SimMatch, models/simmatch.py, and for CIFAR microsoft/Semi-supervised-learning (USB). As in
    USB, the bank is averaged in place of the teacher network of the paper's ImageNet runs, which is left out. USB's
    update normalizes across the batch instead of each embedding, and lets the random start linger; not so here.

    Args:
        model: the classifier; the embedding is next to it and is dropped afterwards.
        num_images: images in the training set.
        num_labeled: labeled ones among them; the bank takes 4 * `embedding` + 8 bytes for each.
        threshold: least confidence of a used guess, in [0, 1]. USB: 0.95.
        unlabeled_weight: weight of the unlabeled term. USB: 1.
        instance_weight: weight of the term of similarities. USB: 1.
        smoothing: part of the image's own prediction in its guess, in [0, 1]; 1 ignores the bank. Paper: 0.9.
        temperature: of the similarities of both views, > 0. Paper: 0.1.
        bank_momentum: of the bank's rows, per step that shows the image, in [0, 1). USB: 0.7.
        embedding: width of the embeddings. Paper: 128.
        align: whether guesses are aligned: scaled by wanted class frequencies / mean of the last 32 batches' guesses.
        prior: the class frequencies to align with, "uniform", "labels", "estimated" or a list: see
            `semisup.methods.parts.prior`. Paper: uniform.

    Raises:
        SemisupError: at the first step, if the labeled batch does not say which images it holds.
    """

    name = "simmatch"
    family = "semi-supervised"
    summary = "FixMatch whose views must resemble the same labeled images, which also correct the guesses."
    citation = "Zheng et al. 2022, arXiv:2203.06915"
    reads_loss = True
    views = Views(labeled=("weak",), unlabeled=("weak", "strong"))
    only_with = {"prior": ("align", True)}
    row_in_bank: Tensor
    bank: Tensor
    bank_labels: Tensor

    def __init__(
        self,
        model: Classifier,
        num_images: int,
        num_labeled: int,
        *,
        threshold: Fraction = 0.95,
        unlabeled_weight: NonNegative = 1.0,
        instance_weight: NonNegative = 1.0,
        smoothing: Fraction = 0.9,
        temperature: Positive = 0.1,
        bank_momentum: BelowOne = 0.7,
        embedding: Count = 128,
        align: bool = True,
        prior: Prior = "labels",
    ) -> None:
        super().__init__()
        self.model = model
        width = model.num_features
        self.embed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, embedding))
        self.threshold = threshold
        self.unlabeled_weight = unlabeled_weight
        self.instance_weight = instance_weight
        self.smoothing = smoothing
        self.temperature = temperature
        self.bank_momentum = bank_momentum
        self.alignment = AlignToRecent(prior, model.head.out_features, RECENT) if align else None
        # Labeled images get their row of the bank when they are first shown; -1: none yet.
        self.register_buffer("row_in_bank", torch.full((num_images,), -1))
        self.register_buffer("bank", torch.zeros(num_labeled, embedding))
        self.register_buffer("bank_labels", torch.full((num_labeled,), -1))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the joint loss, against the bank of earlier steps."""
        if batch.labeled.index is None:
            raise SemisupError("method simmatch: the labeled batch has no index, which tells its images apart")
        x, u = batch.labeled["weak"], batch.unlabeled
        known = self.bank_labels.min() >= 0
        with torch.no_grad():
            features_weak = self.model.features(u["weak"])
            probs = self.model.head(features_weak).float().softmax(1)
            if self.alignment is not None:
                probs = self.alignment(probs, batch.labeled.y)
            guesses, neighbors = self.correct(probs, self.embed(features_weak))
            guesses = torch.where(known, guesses, probs)
            confidence, labels = guesses.max(1)
            mask = (confidence >= self.threshold).float()
        parts = together(self.model.features, x, u["strong"])
        logits, logits_strong = together(self.model.head, *parts)
        z, z_strong = together(self.embed, *parts)
        supervised = batch.labeled.cross_entropy(logits)
        unlabeled = soft_cross_entropy(logits_strong, guesses, mask)
        instance = known * soft_cross_entropy(similarity(z_strong, self.bank, self.temperature), neighbors)
        self.remember(z.detach().float(), batch.labeled.y, batch.labeled.index)
        yield Update(
            supervised + self.unlabeled_weight * unlabeled + self.instance_weight * instance,
            log={"supervised": supervised, "unlabeled": unlabeled, "instance": instance, "kept": mask.mean()},
            pseudo_labels=PseudoLabels(u.index, labels, mask),
        )

    def correct(self, probs: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return q (U, C) and r (U, L) from the predictions (U, C) and embeddings (U, D) of the weak view."""
        labels = self.bank_labels.clamp(min=0)
        shares = similarity(z, self.bank, self.temperature).softmax(1)
        by_neighbors = neighbor_predictions(shares, F.one_hot(labels, probs.shape[1]))
        return torch.lerp(by_neighbors, probs, self.smoothing), unfold_classes(shares, probs, labels)

    def remember(self, z: Tensor, labels: Tensor, index: Tensor) -> None:
        """Average the embeddings `z` (B, D) of the labeled images `index` (B,) into their rows of the bank."""
        rows, new = find_places(self.row_in_bank, index)
        # An image that the batch holds twice writes the mean of both, twice: in whatever order, the same.
        with without_autocast(z):
            mean = F.normalize((rows[:, None] == rows).float() @ F.normalize(z, dim=1), dim=1)
        average = F.normalize(torch.lerp(mean, self.bank[rows], self.bank_momentum), dim=1)
        self.bank.index_copy_(0, rows, torch.where(new[:, None], mean, average))
        self.bank_labels.index_copy_(0, rows, labels)

    def predictor(self) -> nn.Module:
        """Return the classifier without the embedding; recipes evaluate its EMA, as the paper does."""
        return self.model

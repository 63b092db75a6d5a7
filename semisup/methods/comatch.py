"""CoMatch: guesses and embeddings teach each other through a graph of the batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.losses import neighbor_predictions, pseudo_label_graph, similarity, soft_cross_entropy
from semisup.methods.base import (
    Batch,
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
from semisup.methods.parts.memory import oldest
from semisup.methods.parts.prior import AlignToRecent, Prior
from semisup.methods.parts.together import together
from semisup.models import Classifier

__all__ = ["CoMatch"]

RECENT = 32  # batches whose mean predictions are remembered for the alignment; the reference code's number


class CoMatch(Method):
    """Pseudo-labels and embeddings that correct each other through a graph of the batch.

    L = CE(labeled) + unlabeled_weight * mean[max q >= threshold] H(q, strong)
    + contrast_weight * mean H(G, softmax(z z'^T / temperature)) (Li et al. 2021, arXiv:2011.11183).

    q is the aligned prediction for the weak view, smoothed by a memory of images, labeled and unlabeled, of earlier
    ones: q = smoothing * p + (1 - smoothing) * the memory's predictions, weighed by how much their embeddings resemble.
    It is soft and without gradient. G is the graph of the batch (`pseudo_label_graph`), z and z' are the embeddings of
    the strong and the second view, both of which learn.

    The memory keeps aligned predictions as they were before smoothing, and labels. Smoothing begins when it is full.

    Reference code: salesforce/CoMatch, Train_CoMatch.py. It makes one forward of all four views; here the weak view
    runs first, without gradient, as in FixMatch. The momentum encoder of the paper's ImageNet runs is left out.

    Args:
        model: the classifier; the embedding is next to it and is dropped afterwards.
        threshold: least confidence of a used guess, in [0, 1]. Paper: 0.95.
        unlabeled_weight: weight of the unlabeled term. Paper: 1.
        contrast_weight: weight of the contrast of embeddings. Paper: 1; 5 on STL-10 (recalled).
        graph_threshold: least agreement of two guesses that makes an edge, in [0, 1]. Paper: 0.8.
        smoothing: part of the image's own prediction in its guess, in [0, 1]; 1 ignores the memory. Paper: 0.9.
        temperature: of the similarities, > 0. Paper: 0.2.
        memory: images remembered, at least one batch of both parts. Reference code: 5 batches, 2,560 of 64 + 448.
        embedding: width of the embeddings. Reference code: 64.
        align: whether guesses are aligned: scaled by wanted class frequencies / mean of the last 32 batches' guesses.
        prior: the class frequencies to align with, "uniform", "labels", "estimated" or a list: see
            `semisup.methods.parts.prior`. Paper: uniform.

    Raises:
        SemisupError: at the first step, if the memory is smaller than the batch.
    """

    name = "comatch"
    family = "semi-supervised"
    summary = "FixMatch with guesses smoothed by neighbors, and embeddings contrasted by a graph of the guesses."
    citation = "Li et al. 2021, arXiv:2011.11183"
    reads_loss = True
    views = Views(labeled=("weak",), unlabeled={"weak": "weak", "strong": "randaugment", "second": "simclr"})
    only_with = {"prior": ("align", True)}
    memory_embeddings: Tensor
    memory_probs: Tensor
    written: Tensor

    def __init__(
        self,
        model: Classifier,
        *,
        threshold: Fraction = 0.95,
        unlabeled_weight: NonNegative = 1.0,
        contrast_weight: NonNegative = 1.0,
        graph_threshold: Fraction = 0.8,
        smoothing: Fraction = 0.9,
        temperature: Positive = 0.2,
        memory: Count = 2560,
        embedding: Count = 64,
        align: bool = True,
        prior: Prior = "labels",
    ) -> None:
        super().__init__()
        self.model = model
        width, num_classes = model.num_features, model.head.out_features
        self.embed = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(0.1), nn.Linear(width, embedding))
        self.threshold = threshold
        self.unlabeled_weight = unlabeled_weight
        self.contrast_weight = contrast_weight
        self.graph_threshold = graph_threshold
        self.smoothing = smoothing
        self.temperature = temperature
        self.memory = memory
        self.alignment = AlignToRecent(prior, num_classes, RECENT) if align else None
        # First in, first out; `written` counts all that was ever put in.
        self.register_buffer("memory_embeddings", torch.zeros(memory, embedding))
        self.register_buffer("memory_probs", torch.zeros(memory, num_classes))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the joint loss, against the memory of earlier batches."""
        x, u = batch.labeled["weak"], batch.unlabeled
        size = len(x) + len(u.index)
        if self.memory < size:
            # One batch would write some rows twice.
            raise SemisupError(f"method.memory: must be at least the batch of {size} images, got {self.memory}")
        with torch.no_grad():
            features_weak = self.model.features(u["weak"])
            z_weak = self.embed(features_weak).float()
            probs = self.model.head(features_weak).float().softmax(1)
            if self.alignment is not None:
                probs = self.alignment(probs, batch.labeled.y)
            guesses = self.smooth(probs, z_weak)
            confidence, labels = guesses.max(1)
            mask = (confidence >= self.threshold).float()
            graph = pseudo_label_graph(guesses, self.graph_threshold)
        parts = together(self.model.features, x, u["strong"], u["second"])
        # The second view has an embedding only, and labeled images of their embeddings no gradient.
        logits, logits_strong = together(self.model.head, *parts[:2])
        z, z_strong, z_second = together(self.embed, *parts)
        one_hot = F.one_hot(batch.labeled.y, probs.shape[1]).to(probs.dtype)
        self.remember(torch.cat([z_weak, z.detach().float()]), torch.cat([probs, one_hot]))
        supervised = batch.labeled.cross_entropy(logits)
        unlabeled = soft_cross_entropy(logits_strong, guesses, mask)
        contrast = soft_cross_entropy(similarity(z_strong, z_second, self.temperature), graph)
        yield Update(
            supervised + self.unlabeled_weight * unlabeled + self.contrast_weight * contrast,
            log={"supervised": supervised, "unlabeled": unlabeled, "contrast": contrast, "kept": mask.mean()},
            pseudo_labels=PseudoLabels(u.index, labels, mask),
        )

    def smooth(self, probs: Tensor, z: Tensor) -> Tensor:
        """Blend `probs` (U, C) with the predictions that the memory has for embeddings `z` (U, D), once it is full."""
        shares = similarity(z, self.memory_embeddings, self.temperature).softmax(1)
        smoothed = torch.lerp(neighbor_predictions(shares, self.memory_probs), probs, self.smoothing)
        return torch.where(self.written >= self.memory, smoothed, probs)

    def remember(self, z: Tensor, probs: Tensor) -> None:
        """Overwrite the oldest rows of the memory with embeddings `z` (N, D) and predictions `probs` (N, C)."""
        rows = oldest(self.memory, self.written, len(z))
        self.memory_embeddings.index_copy_(0, rows, z)
        self.memory_probs.index_copy_(0, rows, probs)
        self.written += len(z)

    def predictor(self) -> nn.Module:
        """Return the classifier without the embedding; recipes evaluate its EMA, as the paper does."""
        return self.model

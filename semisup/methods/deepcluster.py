"""DeepCluster: cluster the embeddings of the last epoch, then learn the clusters as if they were classes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.losses import pseudo_label_cross_entropy, similarity
from semisup.losses.precision import without_autocast
from semisup.methods.base import Batch, Count, CountOrZero, Fraction, Method, Positive, Progress, Update, Views
from semisup.methods.parts.kmeans import spherical_kmeans
from semisup.methods.parts.memory import last_of
from semisup.models import Encoder, ProjectionHead

__all__ = ["DeepCluster"]


class DeepCluster(Method):
    """Classification by the clusters of the last epoch's embeddings.

    DeepCluster-v2 (Caron et al. 2020, arXiv:2006.09882, appendix; the idea: Caron et al. 2018, arXiv:1807.05520):
    mean of CE(softmax(z C^T / temperature), k) over both views z of an image, weighed by 1 / size of its cluster k.

    z are unit vectors. A memory has one embedding of each image, of the first view at the step that last showed it.
    Once an epoch spherical k-means of the memory gives centroids C, which get no gradient, and k is the centroid
    nearest to the image's row. Several clusterings of the same memory stand side by side; their losses are averaged.
    This is the form of DeepCluster for a method that only sees batches: the original computes features of all images
    anew, learns a classifier on top, and must reset it because clusters change their numbers; centroids need no reset.

    The weights, 1 / size of the cluster, whose mean over a batch is 1, stand for the original's sampling, uniform over
    clusters. DeepCluster-v2 has neither (`balance`).

    Reference code: facebookresearch/swav, main_deepclusterv2.py. There the memory is filled by an epoch of forwards
    before the first update. Here an image that was never shown has the row that its own present embedding gives, and
    clusterings take in the images shown so far, the first one the first batch. Runs of few epochs should cluster more
    often than once in each (`interval`).

    Args:
        model: the bare encoder; a two-layer projection head is added to it.
        num_images: number of training images, given by the stage; the memory takes 4 `out_features` + 1 bytes for each.
        num_unlabeled: those of them that batches are made of, an epoch.
        clusters: of each clustering. Reference code: 3,000 on ImageNet; DeepCluster: 10,000, ten times the classes.
        clusterings: how many, from other random beginnings. Reference code: 3.
        interval: epochs between clusterings, > 0. Reference code: 1.
        iterations: of k-means. Reference code: 10.
        balance: the weight of an image is the size of its cluster to the power of minus this, in [0, 1]: 1 stands for
            the original's sampling, 0 is DeepCluster-v2.
        temperature: of the similarities, > 0. Reference code: 0.1.
        hidden: width of the head's middle layer; 0 means the encoder's width. Reference code: 2,048, that of its
            ResNet-50.
        out_features: dimension of the embeddings. Reference code: 128.
    """

    name = "deepcluster"
    family = "self-supervised"
    summary = "Clusters of the last epoch's embeddings are the classes of this one."
    citation = "Caron et al. 2018, arXiv:1807.05520; 2020, arXiv:2006.09882"
    trains = "encoder"
    views = Views(unlabeled={"first": "simclr", "second": "simclr"})
    memory: Tensor
    known: Tensor
    centroids: Tensor
    sizes: Tensor

    def __init__(
        self,
        model: Encoder,
        num_images: int,
        num_unlabeled: int,
        *,
        clusters: Count = 3000,
        clusterings: Count = 3,
        interval: Positive = 1.0,
        iterations: Count = 10,
        balance: Fraction = 1.0,
        temperature: Positive = 0.1,
        hidden: CountOrZero = 0,
        out_features: Count = 128,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(
            model.backbone,
            ProjectionHead(model.num_features, hidden or model.num_features, out_features, num_layers=2),
        )
        self.length = interval * num_unlabeled
        self.balance = balance
        self.iterations = iterations
        self.temperature = temperature
        self.register_buffer("memory", torch.zeros(num_images, out_features))
        self.register_buffer("known", torch.zeros(num_images, dtype=torch.bool))
        self.register_buffer("centroids", torch.zeros(clusterings, clusters, out_features))
        self.register_buffer("sizes", torch.ones(clusterings, clusters))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update towards the clusters of the memory, which then takes in the new embeddings."""
        u = batch.unlabeled
        z = self.encoder.project(torch.cat([u["first"], u["second"]]))
        embeddings = F.normalize(z.detach()[: len(u.index)].float(), dim=1)
        embeddings = embeddings[last_of(u.index)]
        self.memory[u.index] = torch.where(self.known[u.index][:, None], self.memory[u.index], embeddings)
        self.known[u.index] = True
        if self.is_due(progress.batches, len(u.index)):
            self.cluster()
        losses = []
        for centroids, sizes in zip(self.centroids, self.sizes, strict=True):
            labels = similarity(self.memory[u.index], centroids, 1.0).argmax(1)
            weights = sizes[labels].clamp(min=1) ** -self.balance
            weights = weights / weights.mean()
            logits = similarity(z, centroids, self.temperature)
            losses.append(pseudo_label_cross_entropy(logits, labels.repeat(2), weights.repeat(2)))
        self.memory[u.index] = embeddings
        loss = torch.stack(losses).mean()
        first, second = z.chunk(2)
        yield Update(loss, log={"clusters": loss}, embeddings=(first, second))

    def is_due(self, batch: int, images: int) -> bool:
        """Return whether the memory is clustered at this batch: the first one, and whenever a new interval begins."""
        return batch == 0 or batch * images // self.length > (batch - 1) * images // self.length

    @torch.no_grad()
    def cluster(self) -> None:
        """Cluster what the memory knows, each time from other rows."""
        with without_autocast(self.memory):
            for centroids, sizes in zip(self.centroids, self.sizes, strict=True):
                found, counts = spherical_kmeans(self.memory, self.known, len(centroids), self.iterations)
                centroids.copy_(found)
                sizes.copy_(counts)

    def predictor(self) -> nn.Module:
        """Return the encoder, with its projection head next to it."""
        return self.encoder

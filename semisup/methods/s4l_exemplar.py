"""S4L-Exemplar: learn the labels, and for all images that the views of one belong together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from semisup.errors import SemisupError
from semisup.losses import batch_hard_triplet
from semisup.methods.base import AtLeastTwo, Batch, Count, Method, NonNegative, Progress, Update, Views
from semisup.models import Classifier

__all__ = ["S4LExemplar"]


class S4LExemplar(Method):
    """Labels, and a triplet loss that holds the views of one image together.

    L = CE(labels) + triplet_weight * (triplet(unlabeled) + triplet(labeled)) / 2
    (Zhai et al. 2019, arXiv:1905.03670, sec. 4.2).

    Every image is seen in `copies` views, all in one joint forward. The labels are learned on all of them. The triplet
    loss is batch-hard with the soft margin (arXiv:1703.07737), on unit vectors; the image is the identity. The two
    parts of the batch are compared within themselves only: the unlabeled images include the labeled ones.

    The paper's view is an Inception crop with noise in hue, saturation and value; ours is SimCLR's, a crop with color
    jitter.

    Args:
        model: the classifier; the embedding is next to it and is dropped afterwards.
        triplet_weight: weight of the triplet term. Paper: 1.
        copies: views of each image, at least 2. Paper: 8.
        embedding: width of the compared vectors. Paper: 1,000.

    Raises:
        SemisupError: at the first step, if the labeled batch does not say which images it holds.
    """

    name = "s4l_exemplar"
    family = "semi-supervised"
    summary = "Labels, and for all images a triplet loss by which the views of one image are its own class."
    citation = "Zhai et al. 2019, arXiv:1905.03670"

    def __init__(
        self,
        model: Classifier,
        *,
        triplet_weight: NonNegative = 1.0,
        copies: AtLeastTwo = 8,
        embedding: Count = 1000,
    ) -> None:
        super().__init__()
        self.model = model
        self.embed = nn.Linear(model.num_features, embedding)
        self.triplet_weight = triplet_weight
        self.copies = [f"view_{i}" for i in range(copies)]
        policies = dict.fromkeys(self.copies, "simclr")
        self.views = Views(labeled=policies, unlabeled=policies)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the joint loss."""
        if batch.labeled.index is None:
            raise SemisupError("method s4l_exemplar: the labeled batch has no index, which tells its images apart")
        # View by view: what belongs to an image is repeated as a whole.
        labeled = [batch.labeled[view] for view in self.copies]
        unlabeled = [batch.unlabeled[view] for view in self.copies]
        n = len(self.copies)
        x, u = self.model.features(torch.cat([*labeled, *unlabeled])).split(
            [n * len(batch.labeled.y), n * len(batch.unlabeled.index)]
        )
        supervised = F.cross_entropy(self.model.head(x).float(), batch.labeled.y.repeat(n))
        terms = [
            batch_hard_triplet(F.normalize(self.embed(features).float(), dim=1), index.repeat(n))
            for features, index in ((x, batch.labeled.index), (u, batch.unlabeled.index))
        ]
        triplet = torch.stack(terms).mean()
        yield Update(supervised + self.triplet_weight * triplet, log={"supervised": supervised, "triplet": triplet})

    def predictor(self) -> nn.Module:
        """Return the classifier without the embedding."""
        return self.model

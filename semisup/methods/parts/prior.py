"""Distribution alignment: guesses are scaled so that on average they have the class frequencies that are wanted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.losses import align_distribution
from semisup.options import ClassShares

__all__ = ["AlignToAverage", "AlignToRecent", "ClassPrior", "Prior", "RunningMean"]

Prior = ClassShares
"""The wanted class frequencies: a word (see `ClassPrior`), or one number for each class."""


class ClassPrior(nn.Module):
    """The class frequencies (C,) that predictions should have on average.

    - `uniform`: 1 / C, as most papers have it. Wrong wherever classes are not equally frequent.
    - `labels`: those of the labels trained on so far, beginning with one image of each class. For labels drawn at
      random; those of a balanced budget (`4/class`) say nothing of the other images.
    - `estimated`: those of the unlabeled images, by expectation-maximization over the predictions (M. Saerens,
      P. Latinne, C. Decaestecker, Neural Computation 14(1), 2002, eq. 9): a prediction made under the frequencies of
      the labels becomes p_c pi_c / labels_c, renormalized, and pi the mean of these. One iteration for each batch, of
      which pi is a running mean that begins with the frequencies of the labels. (Begun uniform, against labels that are
      not, it drifts away: the network learns its own guesses, and with them pi.) For balanced budgets of images that
      are not; of few steps it may lose a rare class.
    - a list: these.

    `labels` is the default of every method: at a balanced budget it is uniform, and at one drawn at random right.
    Measured with softmatch, 300 steps, accuracy in % with uniform / labels / estimated / no alignment: digits of a long
    tail (10:1, three draws) at 4 labels per class 90.8 / 90.8 / 83.6 / 84.9 and at 10% of them 88.8 / 88.5 / 88.5 /
    88.6; two classes of Fashion-MNIST, 69:31 (two draws), at 10 per class 69.1 / 68.4 / 68.8 / 68.4 and at 1% 76.8 /
    76.6 / 75.0 / 75.5: no difference beyond the draws' but `estimated` losing a class in one of them. Where classes
    overlap and are 85:15, uniform costs up to 4 points, see tests/methods/test_unbalanced.py.

    Args:
        prior: a word or a list.
        num_classes: C.
        momentum: of the running mean of `estimated`, per step, in [0, 1).

    Raises:
        SemisupError: a list of other than C numbers, of a negative one, or whose sum is not 1.
    """

    counts: Tensor
    frequencies: Tensor
    started: Tensor

    def __init__(self, prior: Prior, num_classes: int, momentum: float) -> None:
        super().__init__()
        self.prior = "given" if isinstance(prior, list) else prior
        self.momentum = momentum
        start = prior if isinstance(prior, list) else [1 / num_classes] * num_classes
        if len(start) != num_classes or min(start) < 0 or abs(sum(start) - 1) > 1e-3:
            raise SemisupError(
                f"method.prior: must be {num_classes} numbers, one for each class, of at least 0 and of sum 1, "
                f"not {start}"
            )
        self.register_buffer("counts", torch.ones(num_classes))
        self.register_buffer("frequencies", torch.tensor(start, dtype=torch.float32))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, probs: Tensor, labels: Tensor) -> Tensor:
        """Take in the predictions (N, C) and the labels (B,) int64 of a step, and return the frequencies (C,)."""
        if self.prior in ("labels", "estimated"):
            self.counts += F.one_hot(labels, len(self.counts)).sum(0)
            of_labels = self.counts / self.counts.sum()
            if self.prior == "labels":
                return of_labels
            self.frequencies.copy_(torch.where(self.started, self.frequencies, of_labels))
            self.started.fill_(True)
            under_pi = align_distribution(probs, self.frequencies, of_labels)
            self.frequencies.lerp_(under_pi.mean(0), 1 - self.momentum)
        return self.frequencies


class RunningMean(nn.Module):
    """The running mean (C,) of batches' mean predictions, the present batch's included.

    Args:
        num_classes: C.
        momentum: per step, in [0, 1).
        from_first: it begins with the first batch's, not uniform.
    """

    value: Tensor
    started: Tensor

    def __init__(self, num_classes: int, momentum: float, *, from_first: bool = True) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.full((num_classes,), 1.0 / num_classes))
        self.register_buffer("started", torch.tensor(not from_first))

    def forward(self, now: Tensor) -> Tensor:
        """Take in the mean prediction (C,) of a step, without gradient, and return the running mean."""
        self.value.copy_(torch.where(self.started, torch.lerp(now, self.value, self.momentum), now))
        self.started.fill_(True)
        return self.value


class AlignToAverage(nn.Module):
    """Predictions times wanted frequencies / running mean of the predictions, this batch's included.

    Args:
        prior: the wanted frequencies.
        num_classes: C.
        momentum: of the running mean, per step, in [0, 1).
        from_first: the mean begins with that of the first batch, not uniform.
    """

    def __init__(self, prior: Prior, num_classes: int, momentum: float, *, from_first: bool = False) -> None:
        super().__init__()
        self.prior = ClassPrior(prior, num_classes, momentum)
        self.average = RunningMean(num_classes, momentum, from_first=from_first)

    def forward(self, probs: Tensor, labels: Tensor) -> Tensor:
        """Align the predictions (N, C) of a step with labels (B,); both are remembered. Without gradient."""
        return align_distribution(probs, self.prior(probs, labels), self.average(probs.mean(0)))


class AlignToRecent(nn.Module):
    """Predictions times wanted frequencies / mean of the last batches' predictions.

    Args:
        prior: the wanted frequencies.
        num_classes: C.
        batches: whose mean predictions are remembered.
        from_uniform: the memory begins uniform, and a batch is aligned before it is remembered (ReMixMatch); otherwise
            it begins empty, and the batch itself counts (CoMatch, SimMatch).
    """

    recent: Tensor

    def __init__(self, prior: Prior, num_classes: int, batches: int, *, from_uniform: bool = False) -> None:
        super().__init__()
        self.prior = ClassPrior(prior, num_classes, 1 - 1 / batches)
        self.from_uniform = from_uniform
        # The oldest first; rows of 0 do not count.
        self.register_buffer("recent", torch.full((batches, num_classes), from_uniform / num_classes))

    def forward(self, probs: Tensor, labels: Tensor) -> Tensor:
        """Align the predictions (N, C) of a step with labels (B,); both are remembered. Without gradient."""
        before = self.recent.clone()
        self.recent.copy_(torch.cat([self.recent[1:], probs.mean(0, keepdim=True)]))
        rows = before if self.from_uniform else self.recent
        return align_distribution(probs, self.prior(probs, labels), rows.sum(0) / rows.sum())

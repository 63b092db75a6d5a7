"""The method protocol: what a learning algorithm asks for and what it hands back.

A method says which views of the images it wants (`views`), and its `step` is a generator of updates. The engine applies
each yielded update (backward, clip, optimizer step) before the generator goes on, so that alternating algorithms are
straight-line code. Whatever a method remembers is a parameter or a buffer: checkpoints need no code in the method.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from semisup.losses import LabelLoss
from semisup.options import (
    AtLeastTwo,
    BelowOne,
    Count,
    CountOrZero,
    Depth,
    Fraction,
    NonNegative,
    Positive,
    Quarter,
    Range,
)

__all__ = [
    "AtLeastTwo",
    "Batch",
    "BelowOne",
    "Count",
    "CountOrZero",
    "Depth",
    "Fraction",
    "Labeled",
    "Method",
    "NonNegative",
    "Positive",
    "Progress",
    "PseudoLabels",
    "Quarter",
    "Range",
    "Statistics",
    "Unlabeled",
    "Update",
    "Views",
    "frozen",
    "given_to",
]


Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and std of each channel, of images in [0, 1]: what the engine normalizes by."""

POLICY_OF_VIEW = {"weak": "weak", "strong": "randaugment"}
"""What the common views are made with unless a recipe says otherwise."""


@dataclass(frozen=True)
class Views:
    """The augmented versions of a batch that a method asks for.

    A tuple names common views (`POLICY_OF_VIEW`); a mapping names views of the method's own and their default policies
    (`{"first": "simclr", "second": "simclr"}`: two independent draws of one policy).
    """

    labeled: tuple[str, ...] | Mapping[str, str] = ()
    unlabeled: tuple[str, ...] | Mapping[str, str] = ()

    def policies(self, part: Literal["labeled", "unlabeled"]) -> dict[str, str]:
        """View name -> default policy name for one part of the batch."""
        views = self.labeled if part == "labeled" else self.unlabeled
        return dict(views) if isinstance(views, Mapping) else {view: POLICY_OF_VIEW[view] for view in views}

    @property
    def defaults(self) -> dict[str, str]:
        """View name -> default policy name, of both parts."""
        return self.policies("labeled") | self.policies("unlabeled")


PLAIN = LabelLoss()


@dataclass
class Labeled:
    """Labeled images: `labeled["weak"]` is (B, C, H, W) float, `labeled.y` (B,) int64.

    `index` (B,) holds their rows in the data set; the engine always gives it. A small set of labels is gone through
    more than once within a few batches, so that one batch may hold an image twice. `trace` (B, k)
    tells how the view of a policy that is a `semisup.augment.policies.adaptive.Probe` was made. `loss` is what the
    recipe asks for in place of the mean cross-entropy of the labels.
    """

    views: dict[str, Tensor]
    y: Tensor
    index: Tensor | None = None
    trace: Tensor | None = None
    loss: LabelLoss = PLAIN

    def __getitem__(self, view: str) -> Tensor:
        return self.views[view]

    def cross_entropy(self, logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the loss of the labels, by default the mean cross-entropy, of logits (B, C)."""
        return self.loss(logits, self.y, label_smoothing)


@dataclass
class Unlabeled:
    """Unlabeled images: `unlabeled["weak"]` is (U, C, H, W) float, `unlabeled.index` (U,) their rows in the data set.

    `target` (U, num_classes) holds the pseudo-labels of a relabel or propagate stage as probabilities, where the recipe
    names one.
    """

    views: dict[str, Tensor]
    index: Tensor
    target: Tensor | None = None

    def __getitem__(self, view: str) -> Tensor:
        return self.views[view]


@dataclass
class Batch:
    """One step's images, augmented and on the device. There is no way from here to a hidden label.

    A part that the method's views do not ask for has no images.
    """

    labeled: Labeled
    unlabeled: Unlabeled


@dataclass(frozen=True)
class Progress:
    """Where the run stands: `step` counts from 0 to `total` - 1.

    A step of `gradient_accumulation` has several `parts`, each a batch of its own; `part` counts them.
    """

    step: int
    total: int
    part: int = 0
    parts: int = 1

    @property
    def fraction(self) -> float:
        """Part of the stage that is done, in [0, 1)."""
        return self.step / self.total

    @property
    def batches(self) -> int:
        """Batches that came before this one."""
        return self.step * self.parts + self.part


@dataclass(frozen=True)
class PseudoLabels:
    """What a step decided about its unlabeled images; the evaluator compares it with the hidden labels."""

    index: Tensor
    """(U,) rows in the data set."""
    labels: Tensor
    """(U,) int64 guesses."""
    mask: Tensor
    """(U,) in [0, 1]: how much each guess was used."""


@dataclass(frozen=True)
class Update:
    """One optimizer step: a scalar `loss`, the parameter `group` it moves, and terms to log (0-d tensors).

    A joint-embedding method hands over the `embeddings` that its loss compares, (N, D) of one view of the batch by the
    network that is trained and (N, D) of another view of the same images, row by row: the engine looks at the logged
    steps whether they collapse.
    """

    loss: Tensor
    group: str = "main"
    log: dict[str, Tensor] = field(default_factory=dict)
    pseudo_labels: PseudoLabels | None = None
    embeddings: tuple[Tensor, Tensor] | None = None


class Method(nn.Module):
    """A learning algorithm around a network.

    Class attributes describe it to people and to the engine; the constructor's keyword-only arguments are the recipe's
    `method:` keys. Before those it takes the network, and by their names what it needs besides it (`GIVEN`).
    """

    name: ClassVar[str]
    """What a recipe calls it."""
    family: ClassVar[str]
    """supervised, self-supervised, semi-supervised or distillation."""
    summary: ClassVar[str]
    """One line for `semisup methods`."""
    citation: ClassVar[str]
    trains: ClassVar[Literal["classifier", "encoder"]] = "classifier"
    """Whether the first constructor argument is a Classifier or an Encoder (which has no labels to classify by)."""
    averages: bool = False
    """Whether the predictor is an average of weights already: the stage's `ema` would average it once more."""
    teacher_gives: ClassVar[Literal["classes", "features"]] = "classes"
    """What it asks its `teacher`: classes, of a stage that classifies; features, of any network that is left."""
    only_with: ClassVar[Mapping[str, tuple[str, object]]] = {}
    """Options that are read beside another one alone: key -> (the other, its value; True: any but false and zero)."""
    needs_pseudo_labels: ClassVar[bool] = False
    """Whether `batch.unlabeled.target` must come from a relabel or propagate stage."""
    reads_loss: ClassVar[bool] = False
    """Whether its term on the labels is `batch.labeled.cross_entropy`, so that a stage's `loss` is obeyed."""
    views: Views

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one `Update` after another; the engine applies each before the generator goes on.

        Never `yield` inside a `with`: autocast caches casts of the weights that the update is about to change.
        """
        raise NotImplementedError

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by optimizer group. Default: all that require a gradient, as "main"."""
        return {"main": [p for p in self.parameters() if p.requires_grad]}

    def predictor(self) -> nn.Module:
        """Return the network that the finished stage is evaluated and exported by."""
        raise NotImplementedError

    def learned(self) -> Tensor | None:
        """Return what adaptive views are drawn by, a buffer that a step changes in place; None: nothing is learned."""
        return None

    def notes(self, labeled: int, unlabeled: int) -> list[str]:
        """Say what a person should know before batches of so many images are trained on; shown with the plan."""
        return []

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor] | None:
        """For a figure of a finished encoder: what the network is shown of `images`, and what it makes of that.

        Args:
            images: (N, C, H, W) clean and normalized; the method is in eval mode, without gradient.

        Returns:
            Two tensors like `images`, normalized likewise; None: the method rebuilds no images.
        """
        return None

    def pretext_confusion(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """For a figure of a finished encoder: its predictions for a pretext task that has classes, such as rotations.

        Args:
            batch: one that was not trained on; the method is in eval mode, without gradient.

        Returns:
            Logits (M, K) and the right classes (M,) int64; None: the method has no such task.
        """
        return None


def frozen(module: nn.Module) -> nn.Module:
    """Put a module in eval mode without gradients, for a teacher that only predicts."""
    return module.requires_grad_(False).eval()


KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
GIVEN = ("teacher", "second", "num_images", "num_unlabeled", "num_labeled", "image_shape", "statistics")
"""What a method's constructor may ask for besides the network, by name: the frozen predictor of an earlier stage;
another network like the first, with weights of its own; how many training images there are (`batch.unlabeled.index`
counts them from 0); how many of them unlabeled batches are made of, the length of an epoch; how many labeled images at
most a batch ever shows; channels, height and width of every image; by what the normalization of the images can be
undone."""


def given_to(method: type[Method]) -> tuple[str, ...]:
    """Return which of `GIVEN` a method's constructor takes; a keyword-only one of such a name is an option.

    A constructor that hands its `**options` on takes what that of the class above it takes, too.
    """
    taken: set[str] = set()
    for cls in (one for one in method.__mro__ if "__init__" in vars(one)):
        parameters = inspect.signature(vars(cls)["__init__"]).parameters
        taken |= {name for name, parameter in parameters.items() if parameter.kind is not KEYWORD_ONLY}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return tuple(name for name in GIVEN if name in taken)

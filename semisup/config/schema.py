"""A recipe's dataclasses: every setting, its default, its unit and its range.

The names, values and references between stages are checked by ``semisup.config.check``. The options of methods, models
and augmentation policies are the constructors' own signatures and are checked by the pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from semisup.config.labels import parse_labels
from semisup.config.rules import above, at_least, below_one, between, matching, obeys, one_of
from semisup.errors import SemisupError

__all__ = [
    "BACKENDS",
    "BatchConfig",
    "DataConfig",
    "InitConfig",
    "KnnConfig",
    "OptimizerConfig",
    "ProbeConfig",
    "PropagateConfig",
    "Recipe",
    "RelabelConfig",
    "ScheduleConfig",
    "StageConfig",
    "TrackingConfig",
]

BACKENDS = ("auto", "device", "albumentations")
_SEED = between(0, 2**32 - 1)  # what numpy's generators take
_NOT_EMPTY = matching(r"(?s).*\S.*", "must not be empty")


def _labels_rule(value: Any) -> str | None:
    try:
        parse_labels(value)
    except SemisupError as error:
        return str(error).removeprefix("data.labels: ")
    return None


def _channels_rule(value: int) -> str | None:
    return None if value in (1, 3) else f"must be 1 (gray) or 3 (color), not {value}"


def _betas_rule(value: list[float]) -> str | None:
    if len(value) == 2 and all(0 <= beta < 1 for beta in value):
        return None
    return f"must be two numbers, each at least 0 and less than 1, not {value}"


def _group_lr_rule(value: dict[str, float]) -> str | None:
    return next((f"'{name}' must be greater than 0, not {lr}" for name, lr in value.items() if lr <= 0), None)


@dataclass
class DataConfig:
    """Which images, and how many of their labels the training may see."""

    # digits, fashion_mnist, cifar10, ..., npz (needs `path`) or folder (needs `path` and `size`); see
    # semisup.data.sources.SOURCES
    source: str = field(default="digits", metadata=_NOT_EMPTY)
    # all | 40 (class-balanced) | 4/class | 10% (class-proportional)
    labels: Any = field(default="all", metadata=obeys(_labels_rule))
    # seed of the label draw; null: the recipe's seed
    split_seed: int | None = field(default=None, metadata=_SEED)
    # part of the budget's labels of every class that only validates (validation/accuracy), 0 to 0.5; 0: none.
    # Their images stay among the unlabeled ones
    validation: float = field(default=0.0, metadata=between(0, 0.5))
    # npz: the file; folder: has labeled/<class>/..., unlabeled/..., val/<class>/..., test/<class>/... (the first is
    # needed); other sources: the folder that has the files or gets them; null: the source's usual places
    path: str | None = field(default=None, metadata=_NOT_EMPTY)
    # side of the square images, pixels, 8 to 224; null: as they come. folder: the center square is scaled to it
    size: int | None = field(default=None, metadata=between(8, 224))
    # may images be mirrored left to right; null: the source knows
    flip: bool | None = None
    # the keys below are for source folder alone
    # a CSV in place of the folders: path (below data.path), label (empty: unlabeled), perhaps split (train, val, test)
    csv: str | None = field(default=None, metadata=_NOT_EMPTY)
    # 1: gray, 3: color; images of the other kind are converted; null: 3
    channels: int | None = field(default=None, metadata=obeys(_channels_rule))
    # largest part of the files that may be unreadable, 0 to 1; they are left out and listed
    max_bad: float = field(default=0.01, metadata=between(0, 1))
    # go on though test or validation images are also among the training images (npz too)
    allow_leakage: bool = False
    # leave such test and validation images out instead (npz too)
    drop_leaks: bool = False
    # go on though one picture is there under two classes (npz too)
    allow_conflicts: bool = False
    # labels of a CSV (npz too, where they are text) that stand for none; null: nan, NaN, NA, N/A, <NA>, None, null,
    # NULL, -1 and -1.0
    unlabeled_values: list[str] | None = None
    # folder that holds the decoded images; null: ~/.cache/semisup/folders
    cache: str | None = field(default=None, metadata=_NOT_EMPTY)
    # largest set of decoded images that is held in memory, GiB, >= 0; a larger one is read from its file batch by batch
    memory: float = field(default=4.0, metadata=at_least(0))


@dataclass
class TrackingConfig:
    """Where the run is recorded besides its own folder."""

    # log to MLflow (MLFLOW_TRACKING_URI, else sqlite beside the runs)
    mlflow: bool = True
    # MLflow experiment name, not empty
    experiment: str = field(default="semisup", metadata=_NOT_EMPTY)


@dataclass
class InitConfig:
    """Where a stage's first weights come from: an earlier stage or a file, exactly one."""

    # an earlier train stage; the YAML key is `from`
    source: str | None = field(default=None, metadata={"key": "from"})
    # a file of weights: .safetensors, or .pth, .pt, .bin, .ckpt, .tar of torch.save (read without running code); the
    # names are ours or those of torchvision, timm, lightly, MoCo, DINO ..., whose heads are dropped
    weights: str | None = field(default=None, metadata=_NOT_EMPTY)
    # what names in that file begin with -> what they should begin with, where nothing fits by itself
    rename: dict[str, str] = field(default_factory=dict)
    # projection layers kept under the classifier: 0 (none) to their number; -1: all of them
    head_layer: int = field(default=0, metadata=at_least(-1))
    # share of the new network's backbone weights that must be found, 0 to 1
    minimum_match: float = field(default=1.0, metadata=between(0, 1))


@dataclass
class OptimizerConfig:
    """The optimizer of a train stage."""

    # sgd | adamw | lars
    name: str = field(default="sgd", metadata=one_of("sgd", "adamw", "lars"))
    # peak learning rate, > 0
    lr: float = field(default=0.03, metadata=above(0))
    # sgd and lars: in [0, 1)
    momentum: float = field(default=0.9, metadata=below_one())
    # sgd: look-ahead momentum, needs momentum > 0
    nesterov: bool = True
    # adamw: two decays, each in [0, 1)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999], metadata=obeys(_betas_rule))
    # >= 0; never applied to biases and norms
    weight_decay: float = field(default=5e-4, metadata=at_least(0))
    # lars: trust coefficient, > 0
    trust: float = field(default=0.001, metadata=above(0))
    # largest gradient norm, > 0; null: no clipping
    clip: float | None = field(default=None, metadata=above(0))
    # learning rate of single parameter groups of the method, > 0, e.g. {teacher: 0.01}
    group_lr: dict[str, float] = field(default_factory=dict, metadata=obeys(_group_lr_rule))


@dataclass
class ScheduleConfig:
    """The learning rate over a stage, as a factor of its peak."""

    # cosine (to 0) | cosine_7_16 (to 0.195) | constant
    name: str = field(default="cosine_7_16", metadata=one_of("cosine", "cosine_7_16", "constant"))
    # linear warm-up, >= 0: below 1 a fraction of the stage, from 1 on steps
    warmup: float = field(default=0.0, metadata=at_least(0))


@dataclass
class BatchConfig:
    """Images per step, over all ranks together; a method without such views ignores the number."""

    # labeled images per step, >= 1
    labeled: int = field(default=64, metadata=at_least(1))
    # unlabeled images per step, >= 1
    unlabeled: int = field(default=448, metadata=at_least(1))


@dataclass
class RelabelConfig:
    """How a relabel stage turns its teachers' predictions into labels."""

    # smallest confidence kept, 0 (keep all) to 1
    threshold: float = field(default=0.0, metadata=between(0, 1))
    # most confident images kept per class, >= 1; null: all
    per_class: int | None = field(default=None, metadata=at_least(1))
    # keep probabilities (true) or only the best class (false)
    soft: bool = True
    # repeat images of classes that have fewer than `per_class`
    balance: bool = False


@dataclass
class PropagateConfig:
    """How a propagate stage spreads the labels over its graph of images (arXiv:1904.04717)."""

    # nearest images that each one is joined to, >= 1
    neighbors: int = field(default=50, metadata=at_least(1))
    # how far labels travel: 0 (not at all) to less than 1
    alpha: float = field(default=0.99, metadata=below_one())
    # exponent of the cosine that weighs an edge, > 0
    power: float = field(default=3.0, metadata=above(0))
    # keep probabilities (true) or only the best class (false, as published)
    soft: bool = False
    # see the probe's
    grid: int = field(default=1, metadata=at_least(1))
    # compare images by so many principal components of their features, all of the same variance, >= 1; null: by the
    # features as they are. Labels that are right after spreading 40 / 100 / 600 of Fashion-MNIST's over a SimCLR
    # encoder's graph, means of six draws: 70.0 / 74.9 / 80.8% by the features, 73.7 / 77.7 / 83.3 by 64 components,
    # 75.1 / 79.0 / 84.8 by 200 of grid 3, and 75.5 / 79.4 / 85.0 balanced too
    components: int | None = field(default=None, metadata=at_least(1))
    # scale what reaches the images so that every class has the same share of them
    balance: bool = False
    # features are the mean of an image's and its mirror image's: 85.8% right after spreading 600, not 85.3 (six draws,
    # 200 components of grid 3, balanced, over all 60,000 images; the figures above are of 15,000)
    mirror: bool = False


@dataclass
class ProbeConfig:
    """How a probe stage judges a frozen network: logistic regression on its features of the budget's images."""

    # probe every layer group of the backbone too, each averaged over its map; test/accuracy stays that of the features
    layers: bool = False
    # features are the means of the last map's grid x grid parts, >= 1; 1: one mean, what a classifier's head sees. More
    # keep where in the image something was (as pooled for VISSL's probes, arXiv:1905.01235, sec. 5)
    grid: int = field(default=1, metadata=at_least(1))


@dataclass
class KnnConfig:
    """How a knn stage judges a frozen network: by the labels of the nearest images (arXiv:1805.01978, sec. 3.4)."""

    # labels: the budget's images vote, a few-label result (test/accuracy). all: every training label, whatever the
    # budget: a look at the features (knn/accuracy) that no few-label result may be compared with
    bank: str = field(default="labels", metadata=one_of("labels", "all"))
    # nearest images that vote, >= 1; null: 200, but no more than a class has in the bank on average: of many more than
    # its own class has, most must vote wrongly
    k: int | None = field(default=None, metadata=at_least(1))
    # a vote counts exp(cosine / tau), > 0
    tau: float = field(default=0.07, metadata=above(0))
    # see the probe's
    grid: int = field(default=1, metadata=at_least(1))


@dataclass
class StageConfig:
    """One named step of a recipe."""

    # train | relabel | propagate | probe | knn
    kind: str = field(default="train", metadata=one_of("train", "relabel", "propagate", "probe", "knn"))
    # {name: ..., its options}; required for kind train
    method: dict[str, Any] = field(default_factory=dict)
    # first weights; null: random. `init: pretrain` is short for {from: pretrain}
    init: InitConfig | None = None
    # earlier train stages; one may be written without the brackets. Several: a relabel stage takes the mean of their
    # answers, a propagate stage their features side by side (`components` gives those one scale)
    teacher: list[str] = field(default_factory=list)
    # an earlier relabel or propagate stage whose labels are trained on
    pseudo_labels: str | None = None
    # an earlier train stage: the network that a probe or knn stage judges
    of: str | None = None
    # {name: ..., its options}; null: the init stage's model, else the recipe's
    model: dict[str, Any] | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    # length in optimizer steps, >= 1; give steps or epochs
    steps: int | None = field(default=None, metadata=at_least(1))
    # length in passes over the images, > 0
    epochs: float | None = field(default=None, metadata=above(0))
    # decay of the averaged weights, in [0, 1); null: none
    ema: float | None = field(default=None, metadata=below_one())
    # view name -> {policy: ..., its options}; other views keep the method's own policy. A view's `albumentations:
    # [{name: ..., its arguments}, ...]` come first, or alone where it names no policy. Beside the views, `backend` says
    # where they are made: device (batched), albumentations (image by image on the CPU), auto (on a CPU above 64 px the
    # latter, if all policies have such a form, else the former)
    augment: dict[str, Any] = field(default_factory=dict)
    # stop when a joint-embedding method's embeddings have collapsed (collapse/std or collapse/rank of the log)
    stop_on_collapse: bool = False
    # only for kind relabel
    relabel: RelabelConfig = field(default_factory=RelabelConfig)
    # only for kind propagate
    propagate: PropagateConfig = field(default_factory=PropagateConfig)
    # only for kind probe
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    # only for kind knn
    knn: KnnConfig = field(default_factory=KnnConfig)

    @property
    def backend(self) -> str:
        """Where the views are made: `augment.backend`."""
        return str(self.augment.get("backend", "auto"))

    @property
    def view_settings(self) -> dict[str, dict[str, Any]]:
        """What `augment` says of the views."""
        return {view: settings for view, settings in self.augment.items() if view != "backend"}


@dataclass
class Recipe:
    """One experiment from data to predictor."""

    # letters, digits and . _ - ; it names folders and MLflow runs
    name: str = field(
        metadata=matching(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", "must be 1 to 100 letters, digits and . _ -")
    )
    # initialization, data order and augmentation, 0 to 2**32 - 1
    seed: int = field(default=0, metadata=_SEED)
    # seed of the initial weights alone; null: the seed above
    init_seed: int | None = field(default=None, metadata=_SEED)
    # auto | cpu | cuda | cuda:N | mps
    device: str = field(
        default="auto", metadata=matching(r"auto|cpu|cuda(:[0-9]+)?|mps", "must be auto, cpu, cuda, cuda:N or mps")
    )
    # auto (bf16 on CUDA, else fp32) | fp32 | bf16 | fp16
    precision: str = field(default="auto", metadata=one_of("auto", "fp32", "bf16", "fp16"))
    # CPU threads, >= 1; null: torch's own choice
    threads: int | None = field(default=None, metadata=at_least(1))
    # train with torch.compile: needs a C++ compiler (on CUDA: Triton), and a minute or so to warm up. What is learned
    # differs by rounding alone
    compile: bool = False
    # seconds between checkpoints, >= 0 (0: after every step)
    checkpoint_seconds: float = field(default=30.0, metadata=at_least(0))
    # steps between logged metrics, >= 1
    log_every: int = field(default=20, metadata=at_least(1))
    # steps between looks at the test set for an oracle number, >= 1: the best test accuracy of a stage, that is, one
    # selected on the test set, to show how much that flatters; null: the test set is read once, at the end
    oracle_every: int | None = field(default=None, metadata=at_least(1))
    data: DataConfig = field(default_factory=DataConfig)
    # {name: ..., its options}
    model: dict[str, Any] = field(default_factory=lambda: {"name": "cnn"})
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    # in the order they run; names of lower-case letters, digits and _
    stages: dict[str, StageConfig] = field(default_factory=dict)

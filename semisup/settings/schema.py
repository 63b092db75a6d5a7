"""A recipe's models: every setting, its default, its unit and its range.

References between stages are checked by `semisup.config.check`. The options of methods, networks and augmentation
policies, which are the constructors' own signatures, and the label budget are checked by `semisup.pipeline.check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, SerializeAsAny

from semisup.options import (
    BelowOne,
    Count,
    Fraction,
    Momentum,
    NonNegative,
    NotEmpty,
    Positive,
    Range,
    Seed,
    Settings,
    Size,
    matching,
)

__all__ = [
    "BACKENDS",
    "BatchConfig",
    "DataConfig",
    "FreezeConfig",
    "InitConfig",
    "Input",
    "LoraConfig",
    "LossConfig",
    "OptimizerConfig",
    "PoolConfig",
    "Recipe",
    "ScheduleConfig",
    "StageConfig",
    "TrackingConfig",
    "TrainConfig",
]

BACKENDS = ("auto", "device", "albumentations")
RecipeName = Annotated[str, matching(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", "must be 1 to 100 letters, digits and . _ -")]
"""What names folders and MLflow runs."""
Device = Annotated[str, matching(r"auto|cpu|cuda(:[0-9]{1,3})?|mps", "must be auto, cpu, cuda, cuda:N or mps")]
Threads = Annotated[int, Range(1, 4096)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def _mapping_as(rule: str, *, or_null: bool = False) -> BeforeValidator:
    """Refuse anything but a mapping by a rule that names the short form, where the key has one."""

    def check(value: Any) -> Any:
        if not isinstance(value, dict | BaseModel) and not (or_null and value is None):
            raise ValueError(rule)
        return value

    return BeforeValidator(check)


Named = Annotated[dict[str, Any], _mapping_as("must be a mapping, such as {name: ...}")]
"""A method or a network: `name`, and its options, which are those of its constructor."""


def _decay(value: Any) -> Any:
    if value is None or value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number, auto or null")
    if not 0 <= value < 1:
        raise ValueError("must be at least 0" if value < 0 else "must be less than 1")
    return float(value)


def _length(value: Any) -> Any:
    """Read 30% as 0.3."""
    text = value.removesuffix("%").strip() if isinstance(value, str) and value.endswith("%") else None
    try:
        value = value if text is None else float(text) / 100
    except ValueError:
        raise ValueError("must be a percentage such as 30%, a number below 1 or a number of steps") from None
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError("must be a percentage such as 30%, a number below 1 or a number of steps")
    if text is not None and value is not None and not 0 < value < 1:
        raise ValueError("must be more than 0% and less than 100%")
    if value is not None and not (0 < value < 1 or (value >= 1 and float(value).is_integer())):
        raise ValueError("must be more than 0, and from 1 on a whole number of steps")
    return value


def _targets(value: Any) -> Any:
    if value != "auto" and not (isinstance(value, list) and value and all(isinstance(x, str) and x for x in value)):
        raise ValueError("must be auto or a list of ends of paths, such as [attn.qkv]")
    return value


def _yes_no_auto(value: Any) -> Any:
    if not isinstance(value, bool) and value != "auto":
        raise ValueError("must be true, false or auto")
    return value


Decay = Annotated[float | Literal["auto"] | None, PlainValidator(_decay)]
"""Decay of an average, or auto: one that the length of the stage decides."""
Targets = Annotated[Literal["auto"] | list[str], PlainValidator(_targets)]
"""Layers by the ends of their paths, or auto."""
Length = Annotated[float | None, PlainValidator(_length, json_schema_input_type=float | str | None)]
"""Part of a stage: a share of its steps (30%, 0.3), or from 1 on steps."""


class DataConfig(Settings):
    """Which images, and how many of their labels the training may see."""

    source: NotEmpty = "digits"
    """digits, fashion_mnist, cifar10, cifar100, svhn or stl10; npz (needs `path`); or folder (needs `path` and
    `size`)."""
    labels: Any = "all"
    """How many labels: all, 40 (class-balanced), 4/class or 10% (class-proportional); read by `parse_labels`."""
    split_seed: Seed | None = None
    """Seed of the label draw; null: the recipe's seed."""
    validation: Annotated[float, Range(0, 0.5)] = 0.0
    """Part of the budget's labels of every class that only validates (validation/accuracy), 0 to 0.5; 0: none. Their
    images stay among the unlabeled ones."""
    path: NotEmpty | None = None
    """Of npz: the file; of folder: has labeled/<class>/..., unlabeled/..., val/<class>/..., test/<class>/... (the
    first is needed), and may be an address such as s3://bucket/photos; other sources: the folder that has the files or
    gets them; null: the source's usual places."""
    size: Annotated[int, Range(8, 518)] | None = None
    """Side of the square images, pixels, 8 to 518; null: as they come. folder: the center square is scaled to it."""
    long_tail: Annotated[float, Range(1, 10**4, open_low=True)] | None = None
    """Leave so many training images out that the first class is that many times as large as the last, > 1, and the
    others lie between; test images stay. Not for source folder."""
    foreign: Size | None = None
    """So many of the last classes are none: their training images are among the unlabeled ones, as images of no class,
    and their test images are left out. Not for source folder."""
    holdout: Annotated[float, Range(0, 0.5, open_low=True)] | None = None
    """Where there are no test images, this part of every class's labeled images becomes them, one at least, above 0 up
    to 0.5, the same ones for every seed; they stay among the unlabeled images. Null: then nothing is tested. In a suite
    every draw leaves out another part, as many in turn as there are."""
    fold: Annotated[int, Range(0, 10**9)] = 0
    """Which part of that size it is, from 0."""
    flip: bool | None = None
    """May images be mirrored left to right; null: the source knows."""
    csv: NotEmpty | None = None
    """Source folder alone, as all keys below: a CSV in place of the folders: path (below data.path), label (empty:
    unlabeled), perhaps split (train, val, test)."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How images that are no squares become some: crop takes the center square; pad keeps all of the picture and its
    proportions between two bands of its border's color; stretch keeps all of it and scales the sides apart."""
    channels: Literal[1, 3] | None = None
    """Of the images, 1: gray, 3: color; images of the other kind are converted; null: 3."""
    max_bad: Fraction = 0.01
    """Largest part of the files that may be unreadable, 0 to 1; they are left out and listed."""
    allow_leakage: bool = False
    """Go on though test or validation images are also among the training images (npz too)."""
    drop_leaks: bool = False
    """Leave such test and validation images out instead (npz too)."""
    allow_conflicts: bool = False
    """Go on though one picture is there under two classes (npz too)."""
    unlabeled_values: list[str] | None = None
    """Labels of a CSV (npz too, where they are text) that stand for none; null: nan, NaN, NaT, NA, N/A, n/a, <NA>,
    #N/A, #NA, None, null, NULL, -1 and -1.0."""
    cache: NotEmpty | None = None
    """Folder that holds the decoded images; null: ~/.cache/semisup/folders."""
    memory: NonNegative = 4.0
    """Largest set of decoded images that is held in memory, GiB, >= 0; a larger one is read from its file batch by
    batch."""

    @property
    def folds(self) -> int:
        """Parts of the size of `holdout` that the labeled images have, 3 of 0.3 or 0.33; 1 without it."""
        return 1 if self.holdout is None else int(1 / self.holdout + 1e-9)


Experiment = Annotated[NotEmpty, matching(r"(?s).{1,500}", "must have at most 500 letters, which is MLflow's limit")]


class TrackingConfig(Settings):
    """Where the run is recorded besides its own folder."""

    mlflow: bool = True
    """Log to MLflow (MLFLOW_TRACKING_URI, else sqlite next to the runs)."""
    experiment: Experiment = "semisup"
    """MLflow experiment name, not empty."""


class InitConfig(Settings):
    """Where a stage's first weights come from: an earlier stage or a file, exactly one."""

    source: NotEmpty | None = Field(default=None, alias="from")
    """An earlier train stage; the YAML key is `from`."""
    weights: NotEmpty | None = None
    """A file of weights: .safetensors, or .pth, .pt, .bin, .ckpt, .tar of torch.save (read without running code); the
    names are ours or those of torchvision, timm, lightly, MoCo, DINO ..., whose heads are dropped."""
    rename: dict[str, str] = {}
    """What names in that file begin with -> what they should begin with, where nothing fits by itself."""
    head_layer: Annotated[int, Range(-1, 1000)] = 0
    """Projection layers kept under the classifier: 0 (none) to their number; -1: all of them."""
    minimum_match: Fraction = 1.0
    """Share of the new network's backbone weights that must be found, 0 to 1."""


class OptimizerConfig(Settings):
    """The optimizer of a train stage."""

    name: Literal["sgd", "adamw", "lars"] = "sgd"
    """What updates the weights."""
    lr: Positive = 0.03
    """Peak learning rate, > 0."""
    momentum: BelowOne = 0.9
    """Of sgd and lars, in [0, 1)."""
    nesterov: bool = True
    """Of sgd: look-ahead momentum, needs momentum > 0."""
    betas: Annotated[list[BelowOne], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """Of adamw: two decays, each in [0, 1)."""
    weight_decay: NonNegative = 5e-4
    """Of the weights, >= 0; never applied to biases and norms."""
    trust: Positive = 0.001
    """Of lars: trust coefficient, > 0."""
    clip: Positive | None = None
    """Largest gradient norm, > 0; null: no clipping."""
    group_lr: dict[str, Positive] = {}
    """Learning rate of single parameter groups of the method, > 0, e.g. {teacher: 0.01}."""
    lr_decay: Momentum = 1.0
    """Factor on the learning rate from each block of a backbone to the one before it, in (0, 1]; heads have the full
    rate (that of `group_lr`, where given), the last block the decayed one, and so on down to the stem or the patches'
    embedding. 0.65 to 0.9 is usual for transformers."""


class ScheduleConfig(Settings):
    """The learning rate over a stage, as a factor of its peak."""

    name: Literal["cosine", "cosine_7_16", "constant"] = "cosine_7_16"
    """Form of the decay: cosine goes to 0, cosine_7_16 to 0.195 of the peak."""
    warmup: NonNegative = 0.0
    """Linear warm-up, >= 0: below 1 a fraction of the stage, from 1 on steps."""


class BatchConfig(Settings):
    """Images per step, over all ranks together; a method without such views ignores the number."""

    labeled: Count = 64
    """Labeled images per step, >= 1."""
    balanced: bool = False
    """Draw labeled images class by class, as many of each; false: all labels equally often."""
    unlabeled: Count = 448
    """Unlabeled images per step, >= 1."""
    pool: Size | None = None
    """Training images that unlabeled batches are made of, >= 1, drawn by the seed; null: all of them. A few that are
    seen many times, for methods that compare an image with what they remember of it."""


class LossConfig(Settings):
    """The loss of the labels where classes are unequal; the defaults are the plain cross-entropy."""

    class_weights: Literal["auto"] | None = None
    """auto: a label counts n / (classes x labels of its class), 1 on average; null: 1."""
    logit_adjustment: Annotated[float, Range(0, 10)] = 0.0
    """Times log of the class's share of the labels is added to the logits while training (arXiv:2007.07314), 0 to 10;
    1: what is learned predicts as if classes were equal; 0: none."""
    focal: Annotated[float, Range(0, 10)] = 0.0
    """Exponent of (1 - p) that the focal loss (arXiv:1708.02002) weighs labels by, 0 to 10; 0: none."""


def _keep(value: Any) -> Any:
    if value in ("all", "auto") and isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number, auto or all")
    if not 0 < value < 1:
        raise ValueError("must be more than 0" if value <= 0 else "must be less than 1")
    return float(value)


class PoolConfig(Settings):
    """Which unlabeled images count: folders have some of no class, which self-training would put into one."""

    keep: Annotated[float | Literal["auto", "all"], PlainValidator(_keep)] = "all"
    """Part of the unlabeled images that stays, the nearest to labeled ones, in (0, 1); auto: those as near as nine in
    ten labeled images are to the others; all: every one."""
    by: NotEmpty | None = None
    """An earlier stage in whose features nearness is measured; null: the stage to start from, or the teacher."""


class Input(NamedTuple):
    """An earlier stage that a stage names."""

    key: str
    """Where it names it, e.g. `teacher[0]`."""
    stage: str
    wants: Literal["network", "features", "predictions", "pseudo-labels"]
    """What the earlier stage must leave."""


class StageConfig(Settings):
    """One named step of a recipe; each kind has its own keys (`semisup.stages.kinds`)."""

    only_with: ClassVar[Mapping[str, tuple[str, object]]] = {}
    """Keys that are read beside another one alone, see `semisup.options.unread`."""
    kind: str
    """What the stage does."""


class FreezeConfig(Settings):
    """What of the backbone does not learn: no gradient, no memory for one, BatchNorm and dropout in eval mode."""

    blocks: Annotated[int, Range(1, 1000)] | None = None
    """The first so many blocks and what comes before them; null: the whole backbone."""
    until: Length = None
    """For so long: a share of the stage (30% or 0.3) or, from 1 on, steps; null: to the end."""


class LoraConfig(Settings):
    """Weights that learn by a product of two small matrices, while everything else of the backbone is frozen."""

    rank: Annotated[int, Range(1, 1024)] = 8
    """Of the product, 1 to 1024; smaller for a layer that is smaller."""
    alpha: Positive = 16.0
    """The product's factor is alpha / rank."""
    targets: Targets = "auto"
    """Ends of the layers' paths, such as [attn.qkv, attn.proj]; auto: all linear layers of a transformer, the 1 x 1
    convolutions of a network that has none."""


class TrainConfig(StageConfig):
    """A stage that trains a network by a method."""

    kind: Literal["train"] = "train"
    """What the stage does."""
    method: Named = {}
    """The learning algorithm, {name: ..., its options}."""
    init: Annotated[
        InitConfig | None, _mapping_as("must be a stage's name or a mapping, such as {from: ...}", or_null=True)
    ] = None
    """First weights; null: random. `init: pretrain` is short for {from: pretrain}."""
    teacher: list[str] = []
    """An earlier train stage, for a method that has a teacher; or features stage, for one that asks it features."""
    pseudo_labels: str | None = None
    """An earlier stage whose pseudo-labels are trained on, such as a relabel or propagate stage."""
    model: Named | None = None
    """The network, {name: ..., its options}; null: the init stage's model, else the recipe's."""
    freeze: Annotated[
        FreezeConfig | None, _mapping_as("must be true, false or a mapping, such as {blocks: 8}", or_null=True)
    ] = None
    """What of a backbone that starts from weights does not learn; null: nothing. `freeze: true` is short for {}."""
    train: Literal["all", "bias", "norm"] = "all"
    """What of the backbone learns besides the head: all, its biases alone (BitFit), or its norms alone."""
    lora: Annotated[
        LoraConfig | None, _mapping_as("must be true, false or a mapping, such as {rank: 8}", or_null=True)
    ] = None
    """Learn by LoRA; null: no. `lora: true` is short for {}."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """What updates the weights, and by how much."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the stage."""
    batch: BatchConfig = BatchConfig()
    """Images per step."""
    loss: LossConfig = LossConfig()
    """Of the labels."""
    pool: PoolConfig = PoolConfig()
    """Unlabeled images without those of no class."""
    steps: Size | None = None
    """Length in optimizer steps, >= 1; give steps or epochs."""
    epochs: Annotated[float, Range(0, 10**6, open_low=True)] | None = None
    """Length in passes over the images, > 0."""
    gradient_accumulation: Annotated[int, Range(1, 1000)] = 1
    """Batches per optimizer step, >= 1, whose gradients are averaged. Each is a batch of its own to BatchNorm and to
    methods that compare images, and to what a method does after an update (a teacher's average, a queue)."""
    activation_checkpointing: bool = False
    """Compute the activations of each block once more in backward instead of keeping them: about a third slower, with
    the memory of a block."""
    ema: Decay = None
    """Decay of the averaged weights, in [0, 1); auto: their last tenth, 1 - 10 / steps; null: no average."""
    refresh_batchnorm: Annotated[bool | Literal["auto"], PlainValidator(_yes_no_auto)] = False
    """Estimate the BatchNorm statistics of the finished network anew, on clean images that it was trained on. auto:
    where more than 5% of the initial ones would be left, and the network might predict one class for everything."""
    augment: Annotated[dict[str, Any], _mapping_as("must be auto or a mapping, such as {strong: {policy: ...}}")] = {}
    """View name -> {policy: ..., its options}; other views keep the method's own policy. A view's `albumentations:
    [{name: ..., its arguments}, ...]` come first, or alone where it names no policy. Besides the views, `backend`
    says where they are made: device (batched), albumentations (image by image on the CPU), auto (on a CPU above 64
    px the latter, if all policies have such a form, else the former). And `policy: auto` chooses how strong the views
    are that are not named, by labels that short trainings predict without; `augment: auto` is short for that."""
    stop_on_collapse: bool = False
    """Stop when a joint-embedding method's embeddings have collapsed (collapse/std or collapse/rank of the log)."""

    @property
    def backend(self) -> str:
        """Where the views are made: `augment.backend`."""
        return str(self.augment.get("backend", "auto"))

    @property
    def view_settings(self) -> dict[str, dict[str, Any]]:
        """What `augment` says of the views."""
        return {view: settings for view, settings in self.augment.items() if view not in ("backend", "policy")}

    @property
    def chooses_views(self) -> bool:
        """Whether labels choose how strong the views are: `augment: auto`."""
        return self.augment.get("policy") == "auto"


class Recipe(Settings):
    """One experiment from data to predictor."""

    name: RecipeName
    """Letters, digits and . _ - ; it names folders and MLflow runs."""
    seed: Seed = 0
    """Initialization, data order and augmentation, 0 to 2**32 - 1."""
    init_seed: Seed | None = None
    """Seed of the initial weights alone; null: the seed above."""
    device: Device = "auto"
    """One of auto, cpu, cuda, cuda:N and mps."""
    precision: Precision = "auto"
    """Of the arithmetic; auto: bf16 on CUDA, else fp32."""
    threads: Threads | None = None
    """CPU threads, >= 1; null: torch's own choice."""
    deterministic: bool = False
    """Refuse operations that may give another result each time: two runs on one machine, with as many threads, end
    with the same bits."""
    compile: bool = False
    """Train with torch.compile: needs a C++ compiler (on CUDA: Triton), and a minute or so to warm up. What is learned
    differs by rounding alone."""
    sync_batchnorm: bool = True
    """On several processes: BatchNorm within the networks sees the images of all of them, as on one; false: each its
    own."""
    checkpoint_seconds: NonNegative = 30.0
    """Seconds between checkpoints, >= 0 (0: after every step)."""
    log_every: Size = 20
    """Steps between logged metrics, >= 1."""
    oracle_every: Size | None = None
    """Steps between looks at the test set for an oracle number, >= 1: the best test accuracy of a stage, that is, one
    selected on the test set, to show how much that flatters; null: the test set is read once, at the end."""
    data: DataConfig = DataConfig()
    """Which images, and how many of their labels."""
    model: Named = {"name": "cnn"}
    """The network of every stage that names none, {name: ..., its options}."""
    tracking: TrackingConfig = TrackingConfig()
    """Where the run is recorded."""
    stages: dict[str, SerializeAsAny[StageConfig]] = {}
    """In the order they run; names of lower-case letters, digits and _."""

"""How the contract suite runs each method: one table, and the small world (network, images, fit) that it runs in.

A new entry of METHODS needs a row in SETTINGS; without one nothing of this suite is collected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment.policies.ctaugment import BINS, new_rates
from semisup.engine import Checkpoints, FitResult, FitSettings, fit
from semisup.engine.training import Training
from semisup.methods import METHODS, Batch, Labeled, Method, Unlabeled
from semisup.methods.base import given_to
from semisup.models import Classifier, Encoder, image_channels
from semisup.models.cnn import SmallCNN
from semisup.models.vit import VisionTransformer
from semisup.settings import OptimizerConfig, ScheduleConfig

CLASSES, SIZE, LABELED, UNLABELED, DATA = 5, 12, 8, 12, 100


@dataclass(frozen=True)
class Setting:
    """One way to run a method in which all its views and groups have an effect within `steps`."""

    options: Mapping[str, Any] = field(default_factory=dict)
    terms: frozenset[str] = frozenset()
    """Logged terms that must carry a gradient to their update's group."""
    numbers: frozenset[str] = frozenset()
    """Other logged terms."""
    groups: frozenset[str] = frozenset({"main"})
    random: bool = False
    """Whether a step draws random numbers (dropout, sampled labels)."""
    guesses: bool = False
    """Whether a step reports pseudo-labels."""
    prepare: Callable[[Method], None] = lambda method: None
    """What must have happened before the first step, for methods whose terms stay idle for longer than `steps`."""
    backbone: Callable[[int], nn.Module] = lambda width: SmallCNN(width, in_channels=1)
    """Width -> network without a head; its channels are those of the images."""


def _terms(*names: str) -> frozenset[str]:
    return frozenset(names)


_MPL = Setting(
    # Its defaults give the weak view no weight at the start, and wait before the student moves.
    {"uda_ramp": 0.0, "uda_threshold": 0.0, "student_start": 0.0},
    terms=_terms("student", "teacher_supervised", "teacher_uda", "feedback"),
    numbers=_terms("help"),
    groups=frozenset({"student", "teacher"}),
    random=True,
    guesses=True,
)
_UDA = Setting({"threshold": 0.0}, terms=_terms("supervised", "unlabeled"), numbers=_terms("kept"), guesses=True)
_FIXMATCH = Setting({"threshold": 0.0}, terms=_terms("supervised", "unlabeled"), numbers=_terms("kept"), guesses=True)
# Neither as wide as the features nor a multiple of the batch; a key network that moves within three steps.
_MOCO = {"memory": 30, "out_features": 20, "momentum": 0.5, "bn_splits": 3}
_THRESHOLD = _terms("kept", "threshold")


def _transformer(width: int) -> VisionTransformer:
    return VisionTransformer(4, width, 3, 2, in_channels=1)


def _color_network(width: int) -> SmallCNN:
    return SmallCNN(width, in_channels=3)


def _one_epoch_later(method: Method) -> None:
    """Every image has been seen once: before that temporal ensembling has no target."""
    draw = torch.Generator().manual_seed(0)
    answers = torch.rand(DATA, CLASSES, generator=draw).mul(3).softmax(1)
    method.get_buffer("ensemble").copy_(0.4 * answers)
    method.get_buffer("seen").fill_(1)


def _bank_filled(method: Method) -> None:
    """Every image has been shown once: before that one has no row of its own to find."""
    draw = torch.Generator().manual_seed(0)
    rows = method.get_buffer("bank.rows")
    rows.copy_(F.normalize(torch.randn(rows.shape, generator=draw), dim=1))
    method.get_buffer("bank.place").copy_(torch.randperm(DATA, generator=draw))


def _all_labels_shown(method: Method) -> None:
    """Every labeled image has been seen once: before that SimMatch compares with none."""
    draw = torch.Generator().manual_seed(0)
    bank = method.get_buffer("bank")
    bank.copy_(F.normalize(torch.randn(bank.shape, generator=draw), dim=1))
    method.get_buffer("bank_labels").copy_(torch.arange(DATA) % CLASSES)
    method.get_buffer("row_in_bank").copy_(torch.randperm(DATA, generator=draw))


SETTINGS: dict[str, dict[str, Setting]] = {
    "supervised": {
        "weak": Setting(terms=_terms("supervised")),
        "strong": Setting({"strong": True, "label_smoothing": 0.1}, terms=_terms("supervised")),
        "supcon": Setting({"supcon": 0.5}, terms=_terms("supervised", "supcon")),
        "frozen": Setting({"freeze": True}, terms=_terms("supervised")),
    },
    "instance_discrimination": {
        "nce": Setting(
            {"loss": "nce", "noise": 30, "out_features": 20},
            terms=_terms("instance", "proximal"),
            random=True,
            prepare=_bank_filled,
        ),
        "fresh": Setting({"out_features": 20}, terms=_terms("instance"), numbers=_terms("proximal")),
        "softmax": Setting(
            {"bank_momentum": 0.0, "proximal_weight": 3.0, "out_features": 20},
            terms=_terms("instance", "proximal"),
            prepare=_bank_filled,
        ),
    },
    "rotation": {"plain": Setting(terms=_terms("rotation"))},
    "jigsaw": {
        "plain": Setting({"permutations": 10, "hidden": 20}, terms=_terms("jigsaw"), random=True),
        "four": Setting({"grid": 2, "permutations": 24, "hidden": 20}, terms=_terms("jigsaw"), random=True),
    },
    "context_prediction": {"plain": Setting({"hidden": 20}, terms=_terms("context"), random=True)},
    "counting": {"plain": Setting({"counts": 30}, terms=_terms("counting"), random=True)},
    "decoupled_rotation": {
        # The weights of the run's last part, and few enough negatives for the bank to matter.
        "plain": Setting(
            {"weighted_from": 0.0, "negatives": 20, "embedding": 10},
            terms=_terms("rotation", "invariance", "instance", "upright"),
            numbers=_terms("weight"),
            random=True,
            prepare=_bank_filled,
        )
    },
    # All seeds are there after two of three steps.
    "exemplar": {"plain": Setting({"surrogates": 20}, terms=_terms("exemplar"), random=True)},
    "aet": {
        kind: Setting({"transformation": kind}, terms=_terms("transformation"), random=True)
        for kind in ("affine", "projective")
    },
    "multi_task": {
        "five": Setting(
            {"tasks": {"rotation": 1.0, "jigsaw": 0.5, "context_prediction": 0.5, "counting": 0.1, "aet": 1.0}},
            terms=_terms("rotation", "jigsaw", "context_prediction", "counting", "aet"),
            random=True,
        ),
        "one": Setting({"tasks": {"rotation": 2.0}}, terms=_terms("rotation")),
    },
    "simclr": {
        "plain": Setting(terms=_terms("contrastive")),
        "decoupled": Setting({"decoupled": True}, terms=_terms("contrastive")),
    },
    "simclr_v2": {
        "plain": Setting(terms=_terms("contrastive")),
        # Neither as wide as the features nor a multiple of the batch.
        "memory": Setting({"memory": 30, "out_features": 20, "memory_decay": 0.9}, terms=_terms("contrastive")),
    },
    "moco": {
        "v2": Setting(_MOCO, terms=_terms("contrastive"), random=True),
        "v1": Setting({**_MOCO, "head": "linear", "temperature": 0.07}, terms=_terms("contrastive"), random=True),
    },
    "byol": {
        "plain": Setting({"hidden": 30, "out_features": 20, "momentum": 0.5}, terms=_terms("prediction")),
    },
    "simsiam": {
        "plain": Setting({"hidden": 30, "out_features": 20, "bottleneck": 10}, terms=_terms("prediction")),
    },
    "barlow_twins": {
        "plain": Setting({"hidden": 30, "out_features": 20}, terms=_terms("correlation")),
    },
    "vicreg": {
        "plain": Setting({"hidden": 30, "out_features": 20}, terms=_terms("invariance", "variance", "covariance")),
    },
    "cpc": {"plain": Setting({"grid": 3, "nearest": 1, "farthest": 2, "context": 9}, terms=_terms("prediction"))},
    "cmc": {
        "plain": Setting(
            {"negatives": 20, "out_features": 10, "temperature": 0.2},
            terms=_terms("from_first", "from_second"),
            random=True,
        ),
    },
    "deepcluster": {
        # Clustered at every second step: by steps 3 and 5 centroids and sizes are those of the step before.
        "plain": Setting(
            {"clusters": 4, "clusterings": 2, "interval": 0.24, "out_features": 10},
            terms=_terms("clusters"),
            random=True,
        ),
    },
    "swav": {
        # The prototypes learn from the first step on; in the second variant the queue is full and used at the third.
        "plain": Setting({"prototypes": 7, "out_features": 10, "freeze": 0.0}, terms=_terms("swapped")),
        "crops": Setting(
            {"prototypes": 7, "out_features": 10, "freeze": 0.0, "crops": 2, "queue": 20, "queue_start": 0.0},
            terms=_terms("swapped"),
        ),
    },
    "dino": {
        # The last layer learns from the first step on, and the teacher moves.
        "plain": Setting(
            {"out_features": 7, "hidden": 12, "bottleneck": 10, "crops": 2, "freeze": 0.0, "momentum": 0.5},
            terms=_terms("distillation"),
            numbers=_terms("teacher_entropy"),
        ),
        "norm": Setting(
            {"out_features": 7, "hidden": 12, "bottleneck": 10, "crops": 0, "freeze": 0.0, "batch_norm": True},
            terms=_terms("distillation"),
            numbers=_terms("teacher_entropy"),
        ),
    },
    "mae": {
        "plain": Setting(
            {"decoder_width": 8, "decoder_heads": 2},
            terms=_terms("reconstruction"),
            random=True,
            backbone=_transformer,
        ),
        "pixels": Setting(
            {"decoder_width": 8, "decoder_heads": 2, "norm_pix": False, "mask_ratio": 0.5},
            terms=_terms("reconstruction"),
            random=True,
            backbone=_transformer,
        ),
    },
    "maskfeat": {"plain": Setting({"cell": 2}, terms=_terms("hog"), random=True, backbone=_transformer)},
    "denoising_autoencoder": {
        corruption: Setting({"corruption": corruption}, terms=_terms("reconstruction"), random=True)
        for corruption in ("masking", "gaussian", "salt_and_pepper")
    },
    "colorization": {
        "plain": Setting({"decoder_width": 8}, terms=_terms("color"), backbone=_color_network),
    },
    "pixel_cnn": {
        "gray": Setting({"levels": 3, "decoder_width": 4, "decoder_layers": 2}, terms=_terms("pixels")),
        "color": Setting(
            {"levels": 3, "decoder_width": 4, "decoder_layers": 2}, terms=_terms("pixels"), backbone=_color_network
        ),
    },
    # Ramps of length 0: within three steps nothing else would have risen.
    "pseudo_label": {
        "plain": Setting(
            {"threshold": 0.0, "ramp": 0.0},
            terms=_terms("supervised", "unlabeled"),
            numbers=_terms("kept"),
            guesses=True,
        )
    },
    "entropy_minimization": {
        "plain": Setting({"unlabeled_weight": 1.0}, terms=_terms("supervised", "entropy")),
    },
    "pi_model": {
        "detached": Setting({"ramp": 0.0}, terms=_terms("supervised", "consistency")),
        "plain": Setting({"ramp": 0.0, "detach": False}, terms=_terms("supervised", "consistency")),
    },
    "temporal_ensembling": {
        "plain": Setting(
            {"ramp": 0.0, "momentum": 0.6},
            terms=_terms("supervised", "consistency"),
            prepare=_one_epoch_later,
        )
    },
    "vat": {
        "plain": Setting({"ramp": 0.0, "epsilon": 3.0}, terms=_terms("supervised", "adversarial"), random=True),
        "entropy": Setting(
            {"ramp": 0.0, "epsilon": 3.0, "entropy_weight": 0.5},
            terms=_terms("supervised", "adversarial", "entropy"),
            random=True,
        ),
    },
    "uda": {
        "plain": _UDA,
        "annealed": Setting({**_UDA.options, "tsa": "log"}, _UDA.terms, _UDA.numbers, guesses=True),
    },
    "mixmatch": {"plain": Setting({"ramp": 0.0}, terms=_terms("supervised", "unlabeled"), random=True, guesses=True)},
    "remixmatch": {
        "plain": Setting(
            {"ramp": 0.0},
            terms=_terms("supervised", "unlabeled", "strong", "rotation"),
            random=True,
            guesses=True,
        ),
        "ctaugment": Setting(
            {"ramp": 0.0, "ctaugment": True},
            terms=_terms("supervised", "unlabeled", "strong", "rotation"),
            random=True,
            guesses=True,
        ),
    },
    "enaet": {
        "plain": Setting(
            {"ramp": 0.0, "transform_ramp": 0.0},
            terms=_terms("supervised", "unlabeled", "transformation", "agreement"),
            random=True,
            guesses=True,
        ),
    },
    "fixmatch": {
        "plain": _FIXMATCH,
        "aligned": Setting({**_FIXMATCH.options, "align": True}, _FIXMATCH.terms, _FIXMATCH.numbers, guesses=True),
        "average": Setting(
            {**_FIXMATCH.options, "teacher": "ema", "teacher_decay": 0.5},
            _FIXMATCH.terms,
            _FIXMATCH.numbers,
            guesses=True,
        ),
        "ctaugment": Setting(
            {**_FIXMATCH.options, "ctaugment": True}, _FIXMATCH.terms, _FIXMATCH.numbers, guesses=True
        ),
    },
    "flexmatch": {
        # Low enough for some guesses to be confident, so that the memory fills.
        "warmup": Setting({"threshold": 0.5}, _FIXMATCH.terms, _THRESHOLD, guesses=True),
        "plain": Setting({"threshold": 0.5, "warmup": False}, _FIXMATCH.terms, _THRESHOLD, guesses=True),
    },
    "freematch": {
        "plain": Setting(
            {"momentum": 0.5, "fairness_weight": 0.1},
            terms=_terms("supervised", "unlabeled", "fairness"),
            numbers=_THRESHOLD,
            guesses=True,
        ),
    },
    "softmatch": {
        "aligned": Setting({"momentum": 0.5}, _FIXMATCH.terms, _terms("kept", "confidence"), guesses=True),
        "estimated": Setting(
            {"momentum": 0.5, "prior": "estimated"}, _FIXMATCH.terms, _terms("kept", "confidence"), guesses=True
        ),
        "plain": Setting(
            {"momentum": 0.5, "align": False}, _FIXMATCH.terms, _terms("kept", "confidence"), guesses=True
        ),
    },
    "adamatch": {
        "plain": Setting(
            {"threshold": 0.0, "ramp": 0.0, "momentum": 0.5},
            terms=_terms("supervised", "supervised_strong", "unlabeled"),
            numbers=_terms("kept"),
            random=True,
            guesses=True,
        ),
    },
    "comatch": {
        # Full after two of three steps; most pairs of images have an edge.
        "plain": Setting(
            {"threshold": 0.0, "graph_threshold": 0.2, "memory": 30, "embedding": 10, "smoothing": 0.5},
            terms=_terms("supervised", "unlabeled", "contrast"),
            numbers=_terms("kept"),
            guesses=True,
        ),
    },
    "simmatch": {
        "plain": Setting(
            {"threshold": 0.0, "embedding": 10, "smoothing": 0.5, "bank_momentum": 0.5},
            terms=_terms("supervised", "unlabeled", "instance"),
            numbers=_terms("kept"),
            guesses=True,
            prepare=_all_labels_shown,
        ),
    },
    "mean_teacher": {"plain": Setting({"decay": 0.9}, terms=_terms("supervised", "consistency"))},
    "noisy_student": {"plain": Setting(terms=_terms("supervised", "unlabeled"), random=True)},
    "meta_pseudo_labels": {
        "drawn": _MPL,
        "dropout": Setting(
            {**_MPL.options, "dropout": 0.3}, _MPL.terms, _MPL.numbers, _MPL.groups, random=True, guesses=True
        ),
        "hard": Setting({**_MPL.options, "hard": True}, _MPL.terms, _MPL.numbers, _MPL.groups, guesses=True),
    },
    "s4l_rotation": {
        "plain": Setting(terms=_terms("supervised", "rotation")),
        "upright": Setting({"classify": "upright"}, terms=_terms("supervised", "rotation")),
    },
    "s4l_exemplar": {
        # Fewer views than published: the suite replaces each of them in turn.
        "plain": Setting({"copies": 3, "embedding": 20}, terms=_terms("supervised", "triplet")),
    },
    "distill": {
        "unlabeled": Setting(terms=_terms("distillation")),
        "labeled": Setting(
            {"alpha": 0.5, "form": "hinton", "temperature": 4.0, "view": "strong"},
            terms=_terms("supervised", "distillation"),
        ),
    },
    "distill_features": {
        "cosine": Setting(terms=_terms("distillation")),
        "mse": Setting({"form": "mse", "hidden": 7, "view": "strong"}, terms=_terms("distillation")),
        "queue": Setting({"form": "queue", "memory": 30}, terms=_terms("distillation")),
        "tokens": Setting({"of": "tokens"}, terms=_terms("distillation")),
    },
}


@dataclass(frozen=True)
class Case:
    """A method class in one of its settings; sabotaged classes use the settings of the original."""

    cls: type[Method]
    setting: Setting

    def build(self, seed: int = 0, *, separate: bool = False) -> Method:
        """A fresh method. `separate` swaps BatchNorm for norms of single images, so that images cannot interact."""
        torch.manual_seed(seed)
        given: dict[str, Any] = {}
        wanted = given_to(self.cls)
        if "teacher" in wanted:
            given["teacher"] = _network("classifier", self.setting.backbone(6), separate=separate)
        if "num_images" in wanted:
            given["num_images"] = DATA
        if "num_unlabeled" in wanted:
            given["num_unlabeled"] = DATA
        if "num_labeled" in wanted:
            given["num_labeled"] = DATA  # the source calls any image labeled
        if "image_shape" in wanted:
            given["image_shape"] = (1, SIZE, SIZE)
        backbone = self.setting.backbone(8)
        if "second" in wanted:
            given["second"] = _network(self.cls.trains, self.setting.backbone(8), separate=separate)
        if "statistics" in wanted:
            channels = image_channels(backbone)
            given["statistics"] = ([0.5] * channels, [0.25] * channels)
        method = self.cls(
            _network(self.cls.trains, backbone, separate=separate),
            **given,
            **self.setting.options,
        )
        if separate:
            _separate_images(method)  # the method's own heads
        self.setting.prepare(method)
        return method.train()


def cases(methods: Mapping[str, type[Method]]) -> dict[str, Case]:
    """All settings of all `methods`.

    Raises:
        LookupError: a method without settings, or settings without a method.
    """
    if methods.keys() != SETTINGS.keys():
        raise LookupError(f"METHODS and SETTINGS differ: {sorted(methods.keys() ^ SETTINGS.keys())}")
    return {
        f"{name}-{variant}": Case(methods[name], setting)
        for name, variants in SETTINGS.items()
        for variant, setting in variants.items()
    }


CASES = cases(METHODS)


def _network(trains: str, backbone: nn.Module, *, separate: bool) -> Classifier | Encoder:
    network = Encoder(backbone) if trains == "encoder" else Classifier(backbone, nn.Sequential(), CLASSES)
    if separate:
        _separate_images(network)
    if isinstance(network, Classifier):
        # Louder answers, so that images differ in their most likely class from the first step on.
        network.head.weight.data.mul_(4)
    return network


def _separate_images(root: nn.Module) -> None:
    for parent in list(root.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(parent, name, nn.GroupNorm(1, child.num_features))


class Killed(Exception):
    """Stands for a process that dies."""


@dataclass
class Source:
    """Step -> batch of the views that `method` declares, a pure function of (seed, step) and of CTAugment's rates."""

    method: Method
    seed: int = 0
    noise: tuple[str, str] | None = None
    """(part, view) to replace by other images."""
    dies_at: int | None = None
    images_per_step: int = LABELED + UNLABELED

    def _views(self, part: Literal["labeled", "unlabeled"], size: int, step: int) -> dict[str, Tensor]:
        views = {}
        # The first convolution says it; a sabotaged predictor may not.
        channels = next(m.in_channels for m in self.method.modules() if isinstance(m, nn.Conv2d))
        images = _images(size, channels, self.seed, part, step)
        rates = self.method.learned()
        for view, policy in self.method.views.policies(part).items():
            own = _draw(self.seed, part, view, step)
            strength = torch.tensor(0.3)
            if rates is not None and not rates.is_meta and policy in ("ctaugment", "ctaugment_cutout"):
                strength = strength + (rates.cpu() - new_rates()).sum()  # as if the rates were the strengths
            views[view] = images + strength * torch.randn(images.shape, generator=own)
            if self.noise == (part, view):
                views[view] = _images(size, channels, self.seed, part, step, "noise")
        return views

    def __call__(self, step: int) -> Batch:
        if step == self.dies_at:
            raise Killed
        draw = _draw(self.seed, "labels", step)
        y = torch.randint(0, CLASSES, (LABELED,), generator=draw)
        index = torch.randperm(DATA, generator=draw)[:UNLABELED]
        target = torch.rand(UNLABELED, CLASSES, generator=draw).mul(3).softmax(1)
        labeled_index = torch.randperm(DATA, generator=draw)[:LABELED]
        return Batch(
            Labeled(
                self._views("labeled", LABELED, step),
                y,
                labeled_index,
                None if self.method.learned() is None else torch.randint(BINS, (LABELED, 2), generator=draw),
            ),
            Unlabeled(
                self._views("unlabeled", UNLABELED, step),
                index,
                target if self.method.needs_pseudo_labels else None,
            ),
        )


def _draw(*key: object) -> torch.Generator:
    # Not the engine's own seeding: what this suite feeds must not change with what it tests.
    return torch.Generator().manual_seed(sum(ord(c) * 31**i for i, c in enumerate(repr(key))) % 2**31)


def _images(n: int, channels: int, *key: object) -> Tensor:
    """(n, channels, SIZE, SIZE): coarse random patterns of different contrast, which small networks can tell apart."""
    draw = _draw(*key)
    coarse = torch.randn(n, channels, 3, 3, generator=draw) * torch.rand(n, 1, 1, 1, generator=draw).mul(2)
    return F.interpolate(coarse, size=(SIZE, SIZE)) + 0.1 * torch.randn(n, channels, SIZE, SIZE, generator=draw)


def move(batch: Batch, device: str) -> Batch:
    """The batch on another device."""

    def views(given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: view.to(device) for name, view in given.items()}

    x, u = batch.labeled, batch.unlabeled
    target = None if u.target is None else u.target.to(device)
    return Batch(
        Labeled(
            views(x.views),
            x.y.to(device),
            None if x.index is None else x.index.to(device),
            None if x.trace is None else x.trace.to(device),
        ),
        Unlabeled(views(u.views), u.index.to(device), target),
    )


class FewCheckpoints(Checkpoints):
    """One where `check_resumes` goes on from it, and one while training goes on, which must change nothing."""

    def steps(self, run: Training) -> None:
        if run.step in (3, 5):
            self.stops(run)


def train(
    method: Method, source: Callable[..., Batch], steps: int, key: int = 0, path: Path | None = None, lr: float = 0.05
) -> FitResult:
    """Fit as the engine does it, with momentum and an average of the weights."""
    return fit(
        method,
        source,  # type: ignore[arg-type]
        FitSettings(
            steps=steps,
            optimizer=OptimizerConfig(name="sgd", lr=lr, weight_decay=5e-4),
            schedule=ScheduleConfig(name="cosine"),
            ema=0.9,
            device=torch.device("cpu"),
            key=(key,),
        ),
        [] if path is None else [FewCheckpoints(path)],
    )


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def different(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are not bit-identical."""
    assert before.keys() == after.keys()
    return [name for name in before if not torch.equal(before[name], after[name])]

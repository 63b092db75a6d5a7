"""DINO: agree with the moving average of one's own weights about which of many clusters an image is in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.losses import entropy, self_distillation
from semisup.losses.precision import without_autocast
from semisup.methods.base import Batch, Count, CountOrZero, Fraction, Method, Positive, Progress, Update, Views
from semisup.methods.parts.crops import crop_views, features_of_crops
from semisup.methods.parts.ramps import cosine_to_one, linear_ramp
from semisup.models import EMA, Encoder

__all__ = ["DINO", "DINOHead"]


class DINO(Method):
    """Self-distillation without labels: the student agrees with the moving average of its weights.

    Self-distillation (Caron et al. 2021, arXiv:2104.14294): mean of H(softmax((t_g - c) / teacher_temperature),
    softmax(s_v / student_temperature)) over both large views g of the teacher and all other views v of the student.

    The teacher is the student's moving average; it sees the large views alone, in train mode, with BatchNorm statistics
    of its own and no gradient. The center c is the moving average of its predictions, moved after each loss. A low
    temperature of the teacher sharpens, the center keeps all images from falling into one cluster: either alone
    collapses; the logged `teacher_entropy` is then log(out_features) or 0. Large views are `first` and `second`, small
    ones `local_1`, `local_2`, ...

    Reference code: facebookresearch/dino, main_dino.py and vision_transformer.py. There weight decay rises along a
    cosine, ours is the optimizer's. Our average starts warm, see `semisup.models.EMA`.

    Args:
        model: the bare encoder; the heads are next to it and are dropped afterwards.
        out_features: clusters. Reference code: 65,536 on ImageNet.
        hidden: width of the head's middle layers. Paper: 2,048.
        bottleneck: width of the unit vectors before the last layer. Paper: 256.
        batch_norm: BatchNorm in the head. Reference code: off, for a transformer. The features of an untrained
            convolutional network are much alike; without it, runs of few steps end in log(out_features).
        student_temperature: > 0. Paper: 0.1.
        teacher_temperature: > 0, from the end of its ramp on. Reference code: 0.04, and at most 0.07.
        first_teacher_temperature: > 0, at the start. Reference code: 0.04.
        teacher_temperature_ramp: part of the run over which it goes from one to the other. Reference code: 0; for the
            0.07 of ViT-S 30 of 800 epochs (recalled).
        momentum: of the teacher at the start; it rises to 1 along a cosine, in [0, 1]. Reference code: 0.996, and
            0.9995 for batches of 256.
        center_momentum: in [0, 1]. Reference code: 0.9.
        crops: small views of each image. Reference code: 8.
        freeze: part of the run during which the last layer stays as it began, in [0, 1]. Reference code: 1 of 100
            epochs.
    """

    name = "dino"
    family = "self-supervised"
    summary = "Agree with a centered, sharpened average of oneself about the cluster of every view."
    citation = "Caron et al. 2021, arXiv:2104.14294"
    trains = "encoder"
    averages = True
    only_with = {"first_teacher_temperature": ("teacher_temperature_ramp", True)}
    center: Tensor

    def __init__(
        self,
        model: Encoder,
        *,
        out_features: Count = 65536,
        hidden: Count = 2048,
        bottleneck: Count = 256,
        batch_norm: bool = False,
        student_temperature: Positive = 0.1,
        teacher_temperature: Positive = 0.04,
        first_teacher_temperature: Positive = 0.04,
        teacher_temperature_ramp: Fraction = 0.0,
        momentum: Fraction = 0.996,
        center_momentum: Fraction = 0.9,
        crops: CountOrZero = 8,
        freeze: Fraction = 0.01,
    ) -> None:
        super().__init__()
        self.encoder = model
        self.head = DINOHead(model.num_features, hidden, bottleneck, out_features, batch_norm=batch_norm)
        self.teacher = EMA(self.encoder, momentum, own_buffers=True)
        self.teacher_head = EMA(self.head, momentum, own_buffers=True)
        self.register_buffer("center", torch.zeros(out_features))
        self.views = Views(unlabeled=crop_views("dino_first", "dino_second", "dino_local", crops))
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.first_teacher_temperature = first_teacher_temperature
        self.teacher_temperature_ramp = teacher_temperature_ramp
        self.momentum = momentum
        self.center_momentum = center_momentum
        self.freeze = freeze

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the student, then of its average."""
        images = [batch.unlabeled[view] for view in self.views.policies("unlabeled")]
        rise = linear_ramp(progress, self.teacher_temperature_ramp)
        temperature = self.first_teacher_temperature * (1 - rise) + self.teacher_temperature * rise
        with torch.no_grad():
            teacher = self.teacher_head(self.teacher(torch.cat(images[:2])))
            sharpness = entropy((teacher - self.center) / temperature)
        frozen = progress.fraction < self.freeze
        features = features_of_crops(self.encoder.backbone, images)
        student = self.head(features, frozen=frozen)
        loss = self_distillation(
            student.unflatten(0, (len(images), -1)),
            teacher.unflatten(0, (2, -1)),
            self.center,
            self.student_temperature,
            temperature,
        )
        self.center.lerp_(teacher.mean(0), 1 - self.center_momentum)
        first, second, *_ = features.split(len(images[0]))
        yield Update(loss, log={"distillation": loss, "teacher_entropy": sharpness}, embeddings=(first, second))
        for average, online in ((self.teacher, self.encoder), (self.teacher_head, self.head)):
            average.decay = cosine_to_one(progress, self.momentum)
            average.update(online)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the student's parameters; the teacher follows."""
        return {"main": [*self.encoder.parameters(), *self.head.parameters()]}

    def predictor(self) -> nn.Module:
        """Return the teacher's encoder, which the paper found better than the student's throughout."""
        return self.teacher.module


class DINOHead(nn.Module):
    """Three linear layers with GELU between them, ℓ2-normalization, and a last layer whose rows have length 1.

    DINOHead of facebookresearch/dino with its `norm_last_layer`: weight normalization with the gain fixed at 1. Linear
    layers start with a std of 1 / sqrt(inputs), which at the published width of 2,048 is the published 0.02; with
    that in a narrow head biases would soon be all that is left of an image. The last layer starts evenly within 1 /
    sqrt(bottleneck), as torch's linear layers do. Input `(N, in_features)`, output
    `(N, out_features)` in [-1, 1].

    Args:
        in_features: width of the backbone's features.
        hidden: width of the first two layers.
        bottleneck: width of the third.
        out_features: rows of the last layer.
        batch_norm: before each GELU.
    """

    def __init__(
        self, in_features: int, hidden: int, bottleneck: int, out_features: int, *, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential()
        for inputs, outputs in ((in_features, hidden), (hidden, hidden)):
            self.mlp.append(nn.Linear(inputs, outputs, bias=not batch_norm))
            if batch_norm:
                self.mlp.append(nn.BatchNorm1d(outputs))
            self.mlp.append(nn.GELU())
        self.mlp.append(nn.Linear(hidden, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        # Normalization is blind to the length of a row, but a row turns by a step over its length.
        self.last = nn.Parameter(torch.empty(out_features, bottleneck).uniform_(-(bottleneck**-0.5), bottleneck**-0.5))

    def forward(self, features: Tensor, *, frozen: bool = False) -> Tensor:
        """Map features to logits. `frozen`: the last layer gets no gradient at all, so that no optimizer moves it."""
        last = self.last.detach() if frozen else self.last
        z = F.normalize(self.mlp(features).float(), dim=1)
        with without_autocast(z):
            return F.linear(z, F.normalize(last, dim=1))

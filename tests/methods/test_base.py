"""What methods say about themselves, and the bounds of their options."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semisup.methods import METHODS, Batch, Labeled, Method, Progress, Unlabeled, Views
from semisup.methods.base import BelowOne, Count, CountOrZero, Fraction, Range, frozen, option_hints, options_of
from semisup.models import Encoder, build_backbone
from tests.methods import methods_reference as ref

every_method = pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS.keys())


@every_method
def test_describes_itself(cls: type[Method]) -> None:
    assert cls.family in {"supervised", "self-supervised", "semi-supervised", "distillation"}
    assert cls.summary.endswith(".")
    assert "arXiv:" in cls.citation or "doi:" in cls.citation
    assert cls.__bases__ == (Method,), "methods do not subclass one another"


@every_method
def test_documents_every_option_and_no_other(cls: type[Method]) -> None:
    assert cls.__doc__ is not None
    args = inspect.cleandoc(cls.__doc__).partition("Args:\n")[2].partition("\n\n")[0]
    documented = [
        line.strip().partition(":")[0] for line in args.splitlines() if line.startswith("    ") and line[4] != " "
    ]
    given = [
        "model",
        *["teacher"] * cls.needs_teacher,
        *["num_images"] * cls.needs_num_images,
        *["num_labeled"] * cls.needs_num_labeled,
        *["image_shape"] * cls.needs_image_shape,
        *["statistics"] * cls.needs_statistics,
    ]
    assert documented == [*given, *options_of(cls)]


@every_method
def test_defaults_obey_their_own_bounds(cls: type[Method]) -> None:
    hints = option_hints(cls)
    for name, default in options_of(cls).items():
        for note in getattr(hints[name], "__metadata__", ()):
            assert note.problem(default) is None, name


@pytest.mark.parametrize(
    ("bounds", "value", "problem"),
    [
        (Range(0, 1), 0, None),
        (Range(0, 1), 1, None),
        (Range(0, 1), 1.5, "must lie in [0, 1]"),
        (Range(0, open_low=True), 0, "must lie in (0, inf]"),
        (Range(0, open_low=True), 1e-9, None),
        (Range(0, 1, open_high=True), 1, "must lie in [0, 1)"),
        (Range(0, 1, open_high=True), 0.999, None),
        (Range(0, 1, True, True), 0, "must lie in (0, 1)"),
        (Range(0, 1), math.nan, "must lie in [0, 1]"),
    ],
)
def test_range(bounds: Range, value: float, problem: str | None) -> None:
    assert bounds.problem(value) == problem


@pytest.mark.parametrize(
    ("name", "option", "hint"),
    [
        ("fixmatch", "threshold", Fraction),
        ("meta_pseudo_labels", "student_start", BelowOne),
        ("noisy_student", "dropout", BelowOne),
        ("simclr_v2", "layers", Count),
        ("simclr_v2", "memory", CountOrZero),
    ],
)
def test_options_have_bounds(name: str, option: str, hint: object) -> None:
    assert option_hints(METHODS[name])[option] == hint


def test_progress_ends_before_1() -> None:
    assert [Progress(step, 4).fraction for step in range(4)] == [0, 0.25, 0.5, 0.75]


def test_views() -> None:
    views = Views(labeled=("weak", "strong"), unlabeled={"first": "simclr"})
    assert views.policies("labeled") == {"weak": "weak", "strong": "randaugment"}
    assert views.policies("unlabeled") == {"first": "simclr"}
    assert Views().policies("labeled") == {}


def test_frozen() -> None:
    model = ref.regression()
    model.neck.append(nn.Dropout(0.5))
    assert frozen(model) is model
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("name", "classes"), [("rotation", 4), ("jigsaw", 100), ("context_prediction", 8)])
def test_pretext_confusion_gives_the_answers_of_the_loss(name: str, classes: int) -> None:
    """Same seed, same puzzle: the cross-entropy of what the picture shows is the loss of the step."""
    torch.manual_seed(0)
    method = METHODS[name](Encoder(build_backbone("cnn", {"width": 4}, in_channels=1, image_size=24)))
    batch = Batch(Labeled({}, torch.empty(0)), Unlabeled({"weak": torch.rand(6, 1, 24, 24)}, torch.arange(6)))
    torch.manual_seed(1)
    (update,) = method.step(batch, Progress(0, 1))
    torch.manual_seed(1)
    confusion = method.pretext_confusion(batch)
    assert confusion is not None
    logits, truth = confusion
    assert logits.shape == (len(truth), classes)
    torch.testing.assert_close(F.cross_entropy(logits, truth), update.loss)

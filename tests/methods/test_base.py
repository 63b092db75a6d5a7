"""What methods say about themselves, and the bounds of their options."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semisup.methods import METHODS, Batch, Labeled, Method, Progress, Unlabeled, Views
from semisup.methods.base import frozen, given_to
from semisup.methods.distill import Distill
from semisup.models import Encoder, build_backbone
from semisup.options import check_options, option_defaults
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
    assert documented == ["model", *given_to(cls), *option_defaults(cls)]


@every_method
def test_defaults_obey_their_own_bounds(cls: type[Method]) -> None:
    assert check_options(cls, option_defaults(cls)) == []


@pytest.mark.parametrize(
    ("name", "option", "wrong"),
    [
        ("fixmatch", "threshold", 1.5),
        ("meta_pseudo_labels", "student_start", 1),
        ("noisy_student", "dropout", 1.0),
        ("simclr_v2", "layers", 0),
        ("simclr_v2", "layers", 10**6),
        ("simclr_v2", "memory", -1),
        ("fixmatch", "unlabeled_weight", math.inf),
        ("mae", "decoder_width", 10**30),
    ],
)
def test_options_have_bounds(name: str, option: str, wrong: float) -> None:
    (problem,) = check_options(METHODS[name], {option: wrong})
    assert problem.startswith(f"{option}: must ")


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("fixmatch", {"prior": "estimated", "align_momentum": 0.9}, {"align": True}),
        ("softmatch", {"align": False, "prior": [0.5, 0.5]}, {"align": True}),
        ("comatch", {"align": False, "prior": "uniform"}, {"align": True}),
        ("simmatch", {"align": False, "prior": "uniform"}, {"align": True}),
        ("swav", {"queue_start": 0.5}, {"queue": 512}),
        ("simclr_v2", {"memory_decay": 0.99}, {"memory": 512}),
        ("dino", {"first_teacher_temperature": 0.02}, {"teacher_temperature_ramp": 0.1}),
        ("flexmatch", {"teacher_decay": 0.9}, {"teacher": "ema"}),
        ("supervised", {"supcon_temperature": 0.5}, {"supcon": 0.1}),
        ("distill_features", {"temperature": 0.1, "memory": 64}, {"form": "queue"}),
    ],
)
def test_an_option_that_another_keeps_from_being_read_is_refused(
    name: str, options: dict[str, Any], wanted: dict[str, Any]
) -> None:
    ((other, value),) = wanted.items()
    said = f"{other}: {value}" if isinstance(value, str) else other
    keys = [key for key in options if key != other]
    assert check_options(METHODS[name], options, "m") == [f"m.{key}: has no effect without {said}" for key in keys]
    assert check_options(METHODS[name], options | wanted) == []


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("jigsaw", {"grid": 2, "permutations": 25}, "permutations: must be at most 24, those of 4 tiles, not 25"),
        ("multi_task", {"tasks": {"aet": 0.0}}, "tasks: must have a task with a weight above 0, not {'aet': 0.0}"),
    ],
)
def test_options_that_do_not_go_together_are_named_by_their_full_key(
    name: str, options: dict[str, Any], said: str
) -> None:
    assert check_options(METHODS[name], options, "stages.a.method") == [f"stages.a.method.{said}"]


@every_method
def test_what_is_read_beside_an_option_alone_is_an_option(cls: type[Method]) -> None:
    options = option_defaults(cls)
    for key, (other, value) in cls.only_with.items():
        assert {key, other} <= set(options)
        assert value is True or check_options(cls, {other: value}) == []


def test_names_are_those_of_the_files() -> None:
    assert all(cls.__module__ == f"semisup.methods.{name}" for name, cls in METHODS.items())


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
def test_pretext_confusion_gives_the_predictions_of_the_loss(name: str, classes: int) -> None:
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


def test_a_class_that_hands_its_arguments_on_is_given_what_the_one_above_takes() -> None:
    class Mine(Distill):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)

    assert given_to(Mine) == given_to(Distill) == ("teacher",)

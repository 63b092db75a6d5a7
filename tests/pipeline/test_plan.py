"""Everything that can be known before training is checked and said before training."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch

from semisup.config import parse_recipe
from semisup.errors import SemisupError
from semisup.methods import METHODS, Method
from semisup.methods.base import Fraction, NonNegative, Positive, Range
from semisup.models import build_backbone, count_parameters, feature_width
from semisup.models.from_torchvision import AUXILIARY, classifier_names
from semisup.options import show
from semisup.pipeline import make_plan, run
from semisup.pipeline.check import check_method
from semisup.pipeline.plan import Plan, load_checked, plan_stages
from semisup.pipeline.trial import available_memory
from tests.pipeline.pipeline_small import SMALL, small


def mistakes(*overrides: str, **stages: Any) -> str:
    mapping = copy.deepcopy(SMALL)
    mapping["stages"].update(stages)
    with pytest.raises(SemisupError) as caught:
        make_plan(parse_recipe(mapping, overrides))
    return str(caught.value)


def one_stage(method: dict[str, Any], **stage: Any) -> dict[str, Any]:
    return {
        **SMALL,
        "stages": {"train": {"method": method, "steps": 2, "batch": {"labeled": 8, "unlabeled": 8}, **stage}},
    }


# The options of a method


class Options(Method):
    def __init__(
        self,
        model: torch.nn.Module,
        *,
        fraction: Fraction = 0.5,
        positive: Positive = 1.0,
        weight: NonNegative = 1.0,
        count: Annotated[int, Range(1, 9)] = 1,
        plain: int = 0,
        flag: bool = False,
        form: Literal["a", "b"] = "a",
        maybe: float | None = None,
        bounded: Fraction | None = None,
        text: str = "",
        widths: list[int] | None = None,
        weights: dict[Literal["a", "b"], NonNegative] | None = None,
    ) -> None:
        super().__init__()


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "options", Options)


VALID = [
    {"fraction": 0},
    {"fraction": 1.0},
    {"positive": 1e-9},
    {"weight": 0},
    {"count": 9},
    {"plain": -3},
    {"flag": True},
    {"form": "b"},
    {"maybe": None},
    {"maybe": 3},
    {"bounded": None},
    {"bounded": 0.5},
    {"text": "x"},
    {"widths": [1, 2]},
    {"widths": []},
    {"weights": {"b": 2, "a": 0.5}},
    {"weights": {}},
]
WRONG = [
    ("fraction", 1.01, "must be at most 1"),
    ("fraction", -0.1, "must be at least 0"),
    ("fraction", "high", "must be a number"),
    ("fraction", True, "must be a number"),
    ("fraction", None, "must be a number"),
    ("fraction", float("inf"), "must be a finite number"),
    ("fraction", float("nan"), "must be a finite number"),
    ("positive", 0, "must be greater than 0"),
    ("weight", -1, "must be at least 0"),
    ("count", 0, "must be at least 1"),
    ("count", 2.0, "must be a whole number"),
    ("plain", False, "must be a whole number"),
    ("flag", 1, "must be true or false"),
    ("form", "c", "must be one of a, b"),
    ("form", ["a"], "must be one of a, b"),
    ("maybe", "none", "must be a number"),
    ("bounded", 2, "must be at most 1"),
    ("widths", 3, "must be a list"),
    ("weights", ["a"], "must be a mapping"),
]
WRONG_INSIDE = [
    ("text", 3, "text: must be text, not 3; quote it"),
    ("plain", 10**30, "plain: must be a number of at most 64 bits, not of 100"),
    ("widths", [1, 0.5], "widths[1]: must be a whole number, not 0.5"),
    ("weights", {"a": 1, "c": 1}, "weights.c: must be one of a, b, not 'c'"),
    ("weights", {"a": -1}, "weights.a: must be at least 0, not -1"),
    ("weights", {"a": True}, "weights.a: must be a number, not true"),
]


@pytest.mark.usefixtures("options")
@pytest.mark.parametrize("given", VALID)
def test_valid_options_are_accepted(given: dict[str, Any]) -> None:
    assert check_method({"name": "options", **given}) == []


@pytest.mark.usefixtures("options")
@pytest.mark.parametrize(
    ("key", "value", "problem"), [*((k, v, f"{k}: {rule}, not {show(v)}") for k, v, rule in WRONG), *WRONG_INSIDE]
)
def test_wrong_options_are_named_with_key_rule_and_value(key: str, value: Any, problem: str) -> None:
    assert check_method({"name": "options", key: value}) == [problem]


@pytest.mark.usefixtures("options")
def test_several_wrong_options_are_named_together() -> None:
    problems = check_method({"name": "options", "fractoin": 1, "count": 0, "zzz": 1, "flag": False}, "stages.a.method")
    assert len(problems) == 3
    assert "stages.a.method.fractoin: unknown key; did you mean 'fraction'?" in problems
    assert "stages.a.method.count: must be at least 1, not 0" in problems
    assert any(
        problem.startswith("stages.a.method.zzz: unknown key; valid: bounded, count, flag") for problem in problems
    )


def test_an_unknown_method_is_named_with_the_nearest() -> None:
    assert check_method({"name": "fixmach"}) == ["name: unknown method 'fixmach'; did you mean 'fixmatch'?"]


# Mistakes of a recipe


def test_mistakes_everywhere_are_named_in_one_message() -> None:
    text = mistakes(
        "model.name=cnnn",
        "data.source=digitz",
        "data.labels=1:30",
        "device=cuda:77",
        "stages.pretrain.method.temprature=1",
        "stages.finetune.method.label_smoothing=7",
        "stages.finetune.augment={weak: {policy: weakk}}",
        "stages.student.model={name: cnn, widht: 3}",
    )
    lines = [line.removeprefix("  - ").split(";")[0] for line in text.splitlines()[1:]]
    assert text.startswith("recipe 'small': 8 problems\n")
    assert lines == [
        "data.labels: must be 'all', a number of images (40), images per class ('4/class' or '4 per class') or a "
        "percentage ('10%'), not '1:30'",
        "model.name: unknown model 'cnnn'",
        "stages.pretrain.method.temprature: unknown key",
        "stages.finetune.method.label_smoothing: must be less than 1, not 7",
        "stages.finetune.augment.weak.policy: unknown policy 'weakk'",
        "stages.student.model.widht: unknown key",
        "device: 'cuda:77' is not on this machine (0 CUDA devices found)",
        "data.source: unknown source 'digitz'",
    ]
    for name in ("cnn", "temperature", "weak", "width", "digits"):
        assert f"; did you mean '{name}'?" in text


def test_a_budget_that_is_none_is_one_mistake() -> None:
    assert mistakes("data.labels=0") == "recipe 'small': data.labels: must be more than 0, not 0"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.labels=2000"], "data.labels: 2000 needs 2000 labeled images, but there are only 1438"),
        (["data.labels=5"], "data.labels: 5 is 5 labeled images, fewer than one for each of 10 classes"),
        (["data.source=npz"], "data.path: missing; source npz needs the file"),
        (["precision=fp16"], "precision: 'fp16' needs a CUDA device"),
        (["stages.student.augment={strong: {policy: weak}}"], "stages.student.augment.strong: method 'distill' asks"),
        (["stages.student.augment={week: {policy: weak}}"], "asks for no such view; did you mean 'weak'?"),
        (["stages.finetune.teacher=[pretrain]"], "stages.finetune.teacher: method 'supervised' takes no teacher"),
        (["stages.student.teacher=[finetune, finetune]"], "needs one teacher stage, got 2"),
        (["stages.student.teacher=[]"], "stages.student.teacher: method 'distill' needs one teacher stage, got 0"),
        (["stages.student.pseudo_labels=labels"], "stages.student.pseudo_labels: method 'distill' uses none"),
        (["stages.student.method={name: noisy_student}", "stages.student.teacher=[]"], "needs the name of a relabel"),
        (["stages.pretrain.batch.unlabeled=1000000"], "stages.pretrain.batch: a step needs about"),
        (["model.width=1000000"], "use smaller batches or a smaller model"),
    ],
)
def test_a_mistake_is_named_with_its_key(overrides: list[str], message: str) -> None:
    assert message in mistakes(*overrides)


@pytest.mark.parametrize(
    ("ctaugment", "augment", "message"),
    [
        (False, {"strong": "ctaugment"}, "augment.strong.policy: method 'fixmatch' learns no rates to draw by"),
        (False, {"strong": "ctaugment"}, "remixmatch and fixmatch do with `ctaugment: true`; got 'ctaugment'"),
        (True, {"strong": "ctaugment_probe"}, "augment.strong.policy: is for the view 'probe' of methods that learn"),
        (True, {"probe": "weak"}, "augment.probe.policy: must be 'ctaugment_probe', got 'weak'"),
        (False, {"probe": "ctaugment_probe"}, "augment.probe: method 'fixmatch' asks for no such view"),
        (True, {"probe": "ctaugment_probe", "strong": "ctaugment"}, None),
        (True, {"strong": "randaugment"}, None),
        (True, {}, None),
    ],
)
def test_ctaugment_goes_with_a_method_that_learns_its_rates(
    ctaugment: bool, augment: dict[str, str], message: str | None
) -> None:
    recipe = parse_recipe(one_stage({"name": "fixmatch", "ctaugment": ctaugment}))
    recipe.stages["train"].augment = {view: {"policy": policy} for view, policy in augment.items()}
    if message is None:
        make_plan(recipe)
        return
    with pytest.raises(SemisupError) as caught:
        make_plan(recipe)
    assert message in str(caught.value)


def test_a_recipe_made_in_python_may_lack_names_too() -> None:
    recipe = small()
    recipe.stages["finetune"].method = {}
    recipe.stages["student"].augment = {"weak": {}}
    with pytest.raises(SemisupError) as caught:
        make_plan(recipe)
    assert "stages.finetune.method.name: missing" in str(caught.value)
    assert "stages.student.augment.weak.policy: missing" in str(caught.value)


def test_stages_that_do_not_depend_on_each_other_are_all_checked() -> None:
    text = mistakes(
        "stages.finetune.init.head_layer=9",
        other={"method": {"name": "supervised"}, "steps": 1, "augment": {"strong": {"policy": "weak"}}},
    )
    assert "2 problems" in text
    assert "stages.finetune.init.head_layer: the projection head of 'pretrain' has 3 layers, got 9" in text
    assert "stages.other.augment.strong: method 'supervised' asks for no such view" in text
    assert "student" not in text  # which needs finetune, and about which nothing is known


def test_a_network_too_deep_for_the_images_is_refused() -> None:
    recipe = parse_recipe(one_stage({"name": "supervised"}, model={"name": "torchvision/squeezenet1_1"}))
    with pytest.raises(SemisupError, match=r"squeezenet1_1.*8 px"):
        make_plan(recipe)


def test_a_batch_of_one_image_where_batch_norm_needs_two_is_refused() -> None:
    """Found by the trial step: BatchNorm1d of a kept projection layer cannot normalize a single image."""
    assert "stages.finetune.batch: method 'supervised' cannot make a step of 1 labeled images of" in mistakes(
        "stages.finetune.batch.labeled=1"
    )


def test_the_dots_of_an_override_reach_a_view_of_a_method() -> None:
    plan = make_plan(small("stages.pretrain.augment={first: {policy: weak}}"))
    assert plan.stages[0].config.view_settings == {"first": {"policy": "weak"}}


# Data without labels


def unlabeled(plan: Plan) -> Plan:
    data = dataclasses.replace(plan.data, y_train=np.full_like(plan.data.y_train, -1))
    budget = dataclasses.replace(plan.budget, index=plan.budget.index[:0])
    return dataclasses.replace(plan, data=data, budget=budget, stages=[])


def test_a_method_that_needs_labels_says_so_where_there_are_none() -> None:
    plan = make_plan(parse_recipe(one_stage({"name": "fixmatch"})))
    with pytest.raises(SemisupError, match=r"stages.train.method: 'fixmatch' learns from labels, but no image"):
        plan_stages(unlabeled(plan))


def test_a_method_without_labels_needs_none() -> None:
    plan = make_plan(parse_recipe(one_stage({"name": "simclr"})))
    assert len(plan_stages(unlabeled(plan)).stages) == 1


def test_a_file_without_any_label_is_refused(tmp_path: Path) -> None:
    images = np.zeros((12, 8, 8), np.uint8)
    np.savez(tmp_path / "x.npz", x_train=images, y_train=np.full(12, -1), x_test=images[:2], y_test=np.arange(2))
    text = mistakes("data.source=npz", f"data.path={tmp_path / 'x.npz'}")
    assert "y_train: needs labeled images of at least two classes, not 0" in text


# What the plan says


@pytest.mark.parametrize(
    ("stage", "steps"),
    [
        ("stages.pretrain.epochs=1", math.ceil(1438 / 32)),  # unlabeled: passes over all images
        ("stages.pretrain.epochs=2.5", math.ceil(2.5 * 1438 / 32)),
        ("stages.pretrain.epochs=0.000001", 1),
        ("stages.pretrain.steps=17", 17),
    ],
)
def test_epochs_of_all_images(stage: str, steps: int) -> None:
    assert make_plan(small(stage)).stages[0].steps == steps


def test_epochs_of_a_method_that_reads_labels_alone_are_passes_over_those() -> None:
    assert make_plan(small("stages.finetune.epochs=3")).stages[1].steps == math.ceil(3 * 40 / 16)


def test_images_per_step_count_what_the_method_reads() -> None:
    batch = {"labeled": 5, "unlabeled": 7}
    counted = {
        name: make_plan(parse_recipe(one_stage({"name": name}, batch=batch))).stages[0].images_per_step
        for name in ("supervised", "simclr", "fixmatch", "mean_teacher")
    }
    assert counted == {"supervised": 5, "simclr": 7, "fixmatch": 12, "mean_teacher": 12}


def test_parameters_are_those_of_the_network_that_is_left() -> None:
    pretrain, finetune, labels, student = make_plan(small()).stages
    backbone = build_backbone("cnn", {"width": 4}, in_channels=1, image_size=8)
    d, base = feature_width(backbone), count_parameters(backbone)
    # The projection head: 3 layers without bias, BN with shift in the first two; fine-tuning keeps one of them.
    assert pretrain.parameters == base + 2 * (d * d + 2 * d) + (d * 128 + 128)
    assert finetune.parameters == base + (d * d + 2 * d) + (d * 10 + 10)
    assert (labels.parameters, labels.steps, labels.network) == (0, 0, None)
    assert student.parameters < finetune.parameters


def test_the_memory_of_a_machine_is_known_where_there_is_no_posix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sysconf", raising=False)
    assert 2**28 < available_memory(torch.device("cpu")) < 2**50


def test_memory_grows_with_the_batch() -> None:
    def memory(batch: int) -> int:
        return make_plan(small(f"stages.pretrain.batch.unlabeled={batch}")).stages[0].memory

    small_batch, large_batch = memory(64), memory(640)
    kept = (large_batch - small_batch) / (640 - 64)
    # Per image two views of 8x8x4 floats at the first layer alone, and everything above.
    assert 2 * 8 * 8 * 4 * 4 < kept < 100 * 2 * 8 * 8 * 4 * 4


def test_planning_makes_no_random_draw_and_no_real_network() -> None:
    state = torch.get_rng_state()
    plan = make_plan(small())
    assert torch.equal(torch.get_rng_state(), state)
    assert plan.stages[0].network is not None


def test_images_are_scaled_by_the_training_images_alone() -> None:
    plan = make_plan(small())
    mean, std = plan.statistics
    assert mean == [pytest.approx((plan.data.x_train / 255).mean())]
    assert std == [pytest.approx((plan.data.x_train / 255).std())]


# A dry run


def test_a_dry_run_trains_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(small(), dry_run=True, quiet=True)
    assert list(tmp_path.iterdir()) == []
    assert result.stages == []
    assert result.data["n_labeled"] == 40
    assert result.to_json()["final"] is None
    with pytest.raises(SemisupError, match="a dry run has trained no predictor"):
        result.predictor()


def test_a_dry_run_shows_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["stages.finetune.optimizer.group_lr={main: 0.5}", "stages.pretrain.schedule.warmup=0.5"]
    run(small(*overrides), out=tmp_path / "a", dry_run=True)
    text = capsys.readouterr().out
    assert "seed 0, cpu fp32; digits: 1,438 training images of 8x8x1, 40 labeled (4 per class of 10)" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines()[1:]}
    assert list(rows)[1:] == [*SMALL["stages"], "expected"]
    assert "simclr_v2" in rows["pretrain"]
    assert "2" in rows["pretrain"]  # warm-up steps: half of 4
    assert "0.03/0.5" in rows["finetune"]  # every learning rate in use
    assert "finetune" in rows["student"][1:]


@pytest.mark.parametrize("where", ["a", "a/b"])
def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(where: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(SemisupError, match=f"out: .*{where}.* cannot be a folder, {tmp_path / 'a'} is a file"):
        run(small(), out=tmp_path / where, quiet=True)


@pytest.mark.parametrize("name", ["result.json", "report.html", "events.jsonl", "student/model.safetensors"])
def test_a_folder_called_like_a_file_is_refused_before_anything_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / "a" / name).mkdir(parents=True)
    with pytest.raises(SemisupError, match=f"out: .*{name} is a folder, where a file is to be written; move it away"):
        run(small(), out=tmp_path / "a", quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_stage_folder_that_is_a_file_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "student").write_text("a file")
    with pytest.raises(SemisupError, match="student cannot be a folder"):
        run(small(), out=tmp_path / "a", quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_overrides_of_a_loaded_recipe_are_refused_not_ignored(tmp_path: Path) -> None:
    with pytest.raises(SemisupError, match="overrides"):
        run(small(), ["seed=3"], out=tmp_path / "a", quiet=True)


def test_the_names_read_off_torchvisions_files_are_torchvisions() -> None:
    from torchvision import models

    assert classifier_names() == sorted(set(models.list_models(module=models)) - set(AUXILIARY))


@pytest.mark.parametrize("key", [*SMALL, "tracking", "plugins"])
def test_a_number_too_large_in_the_place_of_a_mapping_or_list_is_one_message(key: str) -> None:
    with pytest.raises(SemisupError, match=f"{key}.*: must be a number of at most 64 bits"):
        load_checked({**SMALL, key: [2**63]})

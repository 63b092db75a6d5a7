"""`semisup init`: the recipe that it writes runs unedited, whatever is wrong with the images."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from semisup.cli.app import app
from semisup.config import load_recipe, parse_recipe
from semisup.data.survey import Survey
from semisup.engine import FitSettings
from semisup.errors import SemisupError
from semisup.pipeline import run
from semisup.pipeline.draft import Draft, Wishes, _quoted, draft, survey
from semisup.pipeline.plan import make_plan
from semisup.pipeline.timing import expected_seconds, step_seconds
from semisup.settings.read import read_mapping
from semisup.stages import load_predictor
from semisup.tracking.events import iter_events
from tests.pipeline.pipeline_small import SMALL, small

Make = Callable[..., tuple[Draft, Path]]


def pictures(root: Path, labeled: int = 4, unlabeled: int = 0, test: int = 2, size: int = 12) -> Path:
    """Two classes of noise in color, dark and bright."""
    random = np.random.RandomState(0)
    for k, name in enumerate(("dark", "light")):
        for part, count in (("labeled", labeled), ("unlabeled", unlabeled), ("test", test)):
            home = root / part / ("" if part == "unlabeled" else name)
            home.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = random.randint(100 * k, 100 + 100 * k, (size, size, 3), np.uint8)
                Image.fromarray(pixels).save(home / f"{name}{i}.png")
    return root


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Write the recipe of a folder."""
    monkeypatch.setattr("semisup.pipeline.draft.SHORTEST", 2)

    def call(root: Path, **wishes: object) -> tuple[Draft, Path]:
        wanted = Wishes(minutes=1e-6, device="cpu", cache=tmp_path / "cache", **wishes)  # type: ignore[arg-type]
        made = draft(survey(root, wanted), wanted)
        path = tmp_path / "made.yaml"
        path.write_text(made.text, encoding="utf-8")
        return made, path

    return call


def test_the_recipe_runs_unedited(make: Make, tmp_path: Path) -> None:
    made, path = make(pictures(tmp_path / "my 'odd': #1 \n\"photos\" é", unlabeled=5))
    result = run(path, ["tracking.mlflow=false"], out=tmp_path / "out", quiet=True)
    assert [stage.name for stage in result.stages] == ["labels_alone", "train", "best"] == list(made.seconds)
    assert (result.data["n_labeled"], result.data["n_train"], result.data["n_test"]) == (8, 18, 4)
    chosen = result.stages[-1].chosen
    assert chosen is not None and f"best chose {chosen}." in (tmp_path / "out" / "report.html").read_text()
    assert max(len(line) for line in made.text.splitlines() if "pool:" not in line) < 200


def test_names_that_are_no_utf8_are_kept(make: Make, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    _, path = make(pictures(tmp_path / name))
    assert load_recipe(path).data.path == str(tmp_path / name)
    out = tmp_path / f"out-{name}"
    run(path, ["tracking.mlflow=false"], out=out, quiet=True)
    params: Any = next(iter_events(out / "events.jsonl", 0))[0]["params"]  # type: ignore[typeddict-item]
    assert r"caf\udce9" in params["data"]["path"]
    assert load_predictor(out / "labels_alone").classes == ["dark", "light"]


@pytest.mark.parametrize(
    "text", ["nel\x85x", "del\x7fx", "c1\x9bx", "ls\u2028x", "\U0001f468\u200d\U0001f469", "\U000e0041", "\ufeffx"]
)
def test_what_yaml_would_read_otherwise_is_an_escape(text: str) -> None:
    assert yaml.safe_load(f"path: {_quoted(text)}") == {"path": text}


def test_settings_follow_the_images(make: Make, tmp_path: Path) -> None:
    _, path = make(pictures(tmp_path / "small", labeled=25, size=10, test=0))
    recipe = load_recipe(path)
    assert (recipe.data.size, recipe.data.channels, recipe.data.validation) == (10, 3, 0.2)
    assert (recipe.model, list(recipe.stages)) == ({"name": "cnn", "width": 32}, ["labels_alone"])
    _, path = make(pictures(tmp_path / "large", size=40))
    recipe = load_recipe(path)
    assert (recipe.data.size, recipe.data.validation, recipe.model["name"]) == (32, 0.0, "wrn")
    gray = tmp_path / "gray"
    shutil.copytree(tmp_path / "small", gray)
    for file in gray.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    assert load_recipe(make(gray)[1]).data.channels == 1
    assert load_recipe(make(gray, size=16)[1]).data.size == 16


def test_long_pictures_are_told(make: Make, tmp_path: Path) -> None:
    root = pictures(tmp_path / "p")
    Image.fromarray(np.zeros((12, 18, 3), np.uint8)).save(root / "labeled/dark/photo.png")
    assert "fit" not in load_recipe(make(root)[1]).model_fields_set and "fit:" not in make(root)[0].text
    Image.fromarray(np.zeros((12, 19, 3), np.uint8)).save(root / "labeled/dark/panorama.png")
    made, path = make(root)
    assert load_recipe(path).data.fit == "crop"
    assert "the center square leaves out more than a third of 7% of the images: pad or stretch keeps" in made.text


def test_its_commands_name_the_file_that_it_is_written_to(make: Make, tmp_path: Path) -> None:
    made, _ = make(pictures(tmp_path / "p"), out=Path("my recipes/first try.yaml"))
    assert "semisup run 'my recipes/first try.yaml' --dry-run" in made.text and "p.yaml" not in made.text


def test_steps_take_the_wished_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semisup.pipeline.draft.step_seconds", lambda plan, stage, warm_up: 0.1)
    wanted = Wishes(minutes=9.42, device="cpu", cache=tmp_path / "cache")  # 8 of them for steps
    found = survey(pictures(tmp_path / "p", unlabeled=5), wanted)
    made = draft(found, wanted)
    assert {name: round(seconds) for name, seconds in made.seconds.items()} == {
        "labels_alone": 30,
        "train": 90,
        "best": 360,
    }
    monkeypatch.setattr("semisup.pipeline.draft.step_seconds", lambda plan, stage, warm_up: 0.05)
    wanted = Wishes(minutes=18.83, device="cpu", cache=tmp_path / "cache")
    made = draft(survey(pictures(tmp_path / "auto", unlabeled=8, size=24), wanted), wanted)
    assert {name: round(seconds) for name, seconds in made.seconds.items()} == {
        "labels_alone": 60,
        "train": 180,
        "best": 720,
    }
    assert re.findall(r"steps: (\d+)", made.text) == ["300", "3600"], "the choice of views is a part of the time"


def test_bad_files_leaks_and_contradictions_are_allowed_for_and_told(make: Make, tmp_path: Path) -> None:
    root = pictures(tmp_path / "p", labeled=6)
    (root / "labeled/dark/bad.png").write_bytes(b"no image")
    shutil.copy(root / "labeled/dark/dark0.png", root / "test/dark/leak.png")
    shutil.copy(root / "labeled/dark/dark1.png", root / "labeled/light/twice.png")
    shutil.copy(root / "labeled/dark/dark2.png", root / "labeled/dark/copy.png")
    found: Survey
    made, path = make(root)
    found = made.survey
    assert found.copies == 2 and found.near == []
    data = read_mapping(path)["data"]
    assert data["drop_leaks"] is True and data["allow_conflicts"] is True and 0.05 < data["max_bad"] < 0.1
    assert run(path, ["tracking.mlflow=false"], out=tmp_path / "out", quiet=True).stages


def test_pretrained_weights_are_started_from(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semisup.pipeline.draft.SHORTEST", 2)
    pytest.importorskip("timm")
    import timm

    from semisup.models import save_weights

    file = tmp_path / "weights.safetensors"
    save_weights(file, timm.create_model("test_resnet", num_classes=3).state_dict())
    made, path = make(pictures(tmp_path / "p", size=70), weights=(file, "timm/test_resnet"), size=32)
    recipe = load_recipe(path)
    assert (recipe.model["weights"], recipe.data.size) == (str(file), 32)
    assert "from scratch" not in made.text
    monkeypatch.setattr("semisup.pipeline.draft.step_seconds", lambda plan, stage, warm_up: 0.1)  # it was measured
    many = pictures(tmp_path / "many", labeled=2, unlabeled=4, size=70)
    made, path = make(many, weights=(file, "timm/test_resnet"), size=32)
    assert list(load_recipe(path).stages) == ["labels_alone", "train", "best"]
    monkeypatch.chdir(tmp_path)
    words = ["init", "p", "--weights", file.name, "--network", "timm/test_resnet", "--size", "32", "--minutes", "0.1"]
    told = CliRunner().invoke(app, [*words, "--cache", "cache"]).output
    read = "run folder/few_labels data.path=p model.name=timm/test_resnet model.weights=weights.safetensors"
    assert read in told
    assert make_plan(
        load_recipe("folder/few_labels", shlex.split(told.partition("few_labels ")[2])), trial=False
    ).stages


def test_a_network_of_one_size_is_asked_at_that_size(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm")
    import timm

    from semisup.models import save_weights

    monkeypatch.setattr("semisup.pipeline.draft.step_seconds", lambda plan, stage, warm_up: 0.1)
    monkeypatch.chdir(tmp_path)
    save_weights(tmp_path / "w.safetensors", timm.create_model("mixer_s32_224").state_dict())
    pictures(tmp_path / "p", size=32)
    words = ["init", "p", "--weights", "w.safetensors", "--network", "timm/mixer_s32_224", "--cache", "cache"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "resize" not in load_recipe(tmp_path / "p.yaml").model
    assert "model.resize=224 stages.student.model.blocks=4" in done.output


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semisup.pipeline.draft.SHORTEST", 2)
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "p")
    words = ["init", "p", "--minutes", "0.1", "--cache", "cache", "--device", "cpu"]
    done = CliRunner().invoke(app, words)
    assert list((tmp_path / "cache").iterdir()), "--cache says where images are kept"
    assert done.exit_code == 0, done.output
    for text in ("all have 12 px", "50% of the labels", "next: semisup data show p.yaml", "semisup run p.yaml"):
        assert text in done.output
    assert "runs/p/labels_alone" in done.output
    again = CliRunner().invoke(app, words)
    assert isinstance(again.exception, SemisupError) and "is there already" in str(again.exception)
    assert CliRunner().invoke(app, [*words, "--force"]).exit_code == 0
    refused = CliRunner().invoke(app, [*words, "--minutes", "inf"])
    assert str(refused.exception) == "--minutes: must be at most 100000, not inf"
    lone = CliRunner().invoke(app, [*words, "--network", "x"])
    assert isinstance(lone.exception, SemisupError) and "give both" in str(lone.exception)


def test_few_labels_choose_how_strong_the_views_are(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semisup.pipeline.draft.step_seconds", lambda plan, stage, warm_up: 0.1)
    made, path = make(pictures(tmp_path / "p", unlabeled=8, size=24))
    stages = load_recipe(path).stages
    assert list(stages) == ["labels_alone", "train", "best"]
    assert all(getattr(stages[name], "chooses_views", False) for name in ("labels_alone", "train"))
    assert "with views that the labels choose" in made.text
    steps = stages["labels_alone"].model_dump()["steps"]
    assert made.seconds["labels_alone"] == pytest.approx(0.1 * (steps + 9 * min(100, steps)))
    assert "(4 of each)" in made.text
    one, path = make(pictures(tmp_path / "one", labeled=1, size=24))
    assert "auto}" not in one.text and "strong changes of every image" in one.text
    assert "best" not in load_recipe(path).stages, "one label of each class chooses nothing"


def test_expected_times_have_the_short_trainings_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semisup.pipeline.timing.step_seconds", lambda plan, stage, warm_up: 1.0)
    names = [f"stages.finetune.{word}" for word in ("augment=auto", "steps=400")]
    expected = expected_seconds(make_plan(small(*names), trial=False), ["pretrain"])
    assert expected["finetune"] == 400 + 9 * 100
    assert expected["student"] == small().stages["student"].model_dump()["steps"]


def test_expected_times_have_what_a_choice_among_teachers_trains_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of six partings trains what reads labels once more, finished or not; the pretraining below does not."""
    monkeypatch.setattr("semisup.pipeline.timing.step_seconds", lambda plan, stage, warm_up: 1.0)
    choice = {"kind": "relabel", "teacher": ["finetune", "student"], "vote": "best", "folds": 2, "repeats": 3}
    plan = make_plan(parse_recipe(SMALL | {"stages": SMALL["stages"] | {"chosen": choice}}), trial=False)
    steps = {stage.name: stage.steps for stage in plan.stages}
    expected = expected_seconds(plan, ["pretrain", "finetune"])
    assert expected["chosen"] == 6 * (steps["finetune"] + steps["student"])
    assert expected["student"] == steps["student"] and "finetune" not in expected
    assert expected_seconds(plan, list(steps)) == {}


@pytest.mark.parametrize(("took", "expected"), [([5.0, 0.1], 0.1), ([5.0, 2.0], 2.0), ([0.2], 0.1)])
def test_what_the_first_step_of_a_process_costs_once_is_not_a_steps(
    took: list[float], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [*took, *[0.1] * 3]

    def fit(method: object, batches: object, settings: FitSettings) -> SimpleNamespace:
        return SimpleNamespace(seconds=left.pop(0) * settings.steps)

    monkeypatch.setattr("semisup.pipeline.timing.fit", fit)
    plan = make_plan(small(), trial=False)
    assert step_seconds(plan, plan.stages[0], warm_up=1) == pytest.approx(expected)

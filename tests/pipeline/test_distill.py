"""`semisup distill`: students of a finished stage, and what they cost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from semisup.cli.app import app
from semisup.config import load_recipe
from semisup.errors import SemisupError
from semisup.pipeline import run
from semisup.pipeline.distill import distillation, parse_student
from semisup.pipeline.students import Student, compare_students, students_figure, students_table
from semisup.records import read_record
from semisup.stages.deployed import examples
from semisup.stages.predictor import describe
from tests.data.data_folders import make_root, settings
from tests.pipeline.pipeline_small import SMALL, run_small, statuses


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "out"
    run_small(folder)
    return folder


def test_a_command_distills_reuses_the_teacher_and_compares(out: Path) -> None:
    words = ["distill", str(out / "finetune"), "--student", "cnn,width=2", "--student", "wrn,depth=10", "--steps", "2"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    folder = out.parent / "small-finetune-student-cnn-width-2"
    table = (folder / "students.md").read_text()
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        "finetune (teacher)",
        "student\\_wrn\\_depth\\_10" if "\\_" in table else "student_wrn_depth_10",
        "student\\_cnn\\_width\\_2" if "\\_" in table else "student_cnn_width_2",
    ]
    assert table.strip() in done.output and (folder / "students.png").read_bytes().startswith(b"\x89PNG")
    again = run(folder / "recipe.yaml", out=folder, quiet=True)
    assert statuses(again) == dict.fromkeys(
        ["pretrain", "finetune", "student_cnn_width_2", "student_wrn_depth_10"], "reused"
    )


def test_from_inside_a_run_the_results_lie_next_to_it(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--student", "cnn,width=2", "--steps", "1"]
    for here, model in ((out, "finetune"), (out / "finetune", ".")):
        monkeypatch.chdir(here)
        before = sorted(here.rglob("*"))
        done = CliRunner().invoke(app, ["distill", model, *words, "--out", str(out.parent / "here")])
        assert done.exit_code == 0, done.output
        done = CliRunner().invoke(
            app, ["distill", model, *words, "--dry-run", "--out", os.path.relpath(out.parent / "b")]
        )
        assert done.exit_code == 0, done.output
        done = CliRunner().invoke(app, ["distill", model, *words])
        assert done.exit_code == 0 and "results: " in done.output, done.output
        assert sorted(here.rglob("*")) == before


def test_the_recipe_keeps_what_the_teacher_needs_and_no_more(out: Path) -> None:
    recipe = distillation(out / "finetune", ["cnn,width=2", "cnn,width=2"], steps=7, name="x").recipe
    assert list(recipe.stages) == ["pretrain", "finetune", "student_cnn_width_2", "student_cnn_width_2_2"]
    assert recipe.stages["student_cnn_width_2_2"].model_dump()["steps"] == 7
    assert recipe.stages["finetune"] == load_recipe(out / "recipe.yaml").stages["finetune"]


def test_two_stages_with_the_same_student_have_results_of_their_own(out: Path) -> None:
    names = {distillation(out / stage, ["cnn"]).recipe.name for stage in ("finetune", "student")}
    assert names == {"small-finetune-student-cnn", "small-student-student-cnn"}
    shutil.copytree(out, out.parent / "long", dirs_exist_ok=True)
    text = (out / "recipe.yaml").read_text().replace("name: small", f"name: {'x' * 100}", 1)
    (out.parent / "long" / "recipe.yaml").write_text(text)
    long = distillation(out.parent / "long" / "student", ["cnn"]).recipe.name
    assert len(long) == 100 and long.endswith("x-student-student-cnn")


def test_a_network_in_words() -> None:
    assert parse_student("cnn") == {"name": "cnn"}
    assert parse_student("wrn,depth=10, width=2,bn_momentum=0.1") == {
        "name": "wrn",
        "depth": 10,
        "width": 2,
        "bn_momentum": 0.1,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cnm", "did you mean 'cnn'"),
        ("cnn,width", "key=value"),
        ("cnn,with=3", "width"),
        ("cnn,width=0", "width"),
        ("cnn,width=8,width=4", "width is given 2 times"),
        ("cnn,name=wrn", "name is given 2 times"),
    ],
)
def test_wrong_networks(text: str, words: str) -> None:
    with pytest.raises(SemisupError, match=words):
        parse_student(text)


def test_a_teacher_is_never_trained_again(out: Path, tmp_path: Path) -> None:
    with pytest.raises(SemisupError, match="not a finished stage"):
        distillation(tmp_path, ["cnn"])
    shutil.copytree(out, tmp_path / "moved")
    with pytest.raises(SemisupError, match="'pretrain' is not in"):
        distillation(tmp_path / "moved" / "finetune", ["cnn"])
    text = (tmp_path / "moved" / "recipe.yaml").read_text()
    (tmp_path / "moved" / "recipe.yaml").write_text(text.replace("labels: 40", "labels: 30"))
    with pytest.raises(SemisupError, match="would be trained again"):
        distillation(tmp_path / "moved" / "finetune", ["cnn"])
    words = ["distill", str(out / "finetune"), "--student", "cnn", "--out", str(tmp_path / "elsewhere")]
    assert "must be a folder in" in str(CliRunner().invoke(app, words).exception)


def test_costs_are_counted(out: Path) -> None:
    teacher, student = compare_students(out, rounds=2)
    assert (teacher.name, teacher.teacher, student.name, student.teacher) == ("finetune", True, "student", False)
    # 3x3 convolutions of 3, 6 and 12 channels on 8x8, 4x4 and 2x2 pixels, then 12 x 10 weights; a multiplication and an
    # addition are two. The teacher has more channels, and a layer of its projection.
    assert student.flops == 2 * (64 * 9 * 3 + 16 * 9 * 3 * 6 + 4 * 9 * 6 * 12 + 12 * 10) < teacher.flops
    for one in (teacher, student):
        assert one.bytes > 4 * one.parameters and one.milliseconds > 0
    with pytest.raises(SemisupError, match="not the folder"):
        compare_students(out / "student")


def test_who_distilled_features_alone_is_not_compared(tmp_path: Path) -> None:
    taught = {"teacher": "pretrain", "method": {"name": "distill_features"}, "batch": {"unlabeled": 32}, "steps": 1}
    stages = {
        "pretrain": SMALL["stages"]["pretrain"] | {"steps": 1},
        "eyes": taught | {"model": {"name": "cnn", "width": 3}},
        "small": {"init": "eyes", "method": {"name": "supervised"}, "steps": 1},
    }
    run(SMALL | {"stages": stages}, out=tmp_path / "run", quiet=True)
    done = CliRunner().invoke(
        app, ["distill", str(tmp_path / "run" / "small"), "--student", "cnn,width=2", "--steps", "1"]
    )
    assert done.exit_code == 0, done.output
    folder = tmp_path / "small-small-student-cnn-width-2"
    assert [one.name for one in compare_students(folder, rounds=1)] == ["small", "student_cnn_width_2"]
    with pytest.raises(SemisupError, match="no stage of this run learns classes of a teacher"):
        compare_students(tmp_path / "run")


def test_table_and_figure(tmp_path: Path) -> None:
    found = [
        Student("big", 0.9, 1000, 4000, 2_000_000, 1.5, teacher=True),
        Student("a|b $x$", 0.89, 100, 400, 20_000, 0.1),
        Student("unknown", None, 10, 40, 2000, 0.05),
    ]
    lines = [[cell.strip() for cell in line.split(" | ")] for line in students_table(found).splitlines()]
    assert lines[2][1:6] == ["90.0", "", "1,000", "1.00", "4"]
    assert lines[3][1:6] == ["89.0", "-1.0", "100", "0.10", "0"] and "\\|" in lines[3][0]
    assert lines[4][1:3] == ["", ""]
    students_figure(found, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_other_images_are_distilled_on_and_the_runs_test_images_compare(out: Path) -> None:
    photos = out.parent / "others"
    (photos / "deep").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (12, 9, 20), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(photos / f"deep/{i}.png")
    (photos / "bad.png").write_bytes(b"no image")
    words = ["distill", str(out / "finetune"), "--student", "cnn,width=2", "--steps", "2", "--data", str(photos)]
    done = CliRunner().invoke(app, [*words, "--out", str(out.parent / "other")])
    assert done.exit_code == 0, done.output
    assert "12 images" in done.output and "bad.png" in done.output
    record = read_record(out.parent / "other" / "student_cnn_width_2")
    assert (record["data"]["images"], record["data"]["labels"], record["data"]["test"]) == (12, 0, 359)
    teacher, own = (read_record(out.parent / where / "finetune")["metrics"] for where in ("other", "out"))
    assert teacher["test/accuracy"] == own["test/accuracy"] and teacher["test/nll"] == pytest.approx(own["test/nll"])
    descriptions = [describe(out.parent / where) for where in ("other/student_cnn_width_2", "out/finetune")]
    assert descriptions[0]["mean"] == descriptions[1]["mean"], "normalized as the teacher was"
    assert examples(out.parent / "other" / "finetune").shape == (2, 8, 8, 1), "what MLflow and export show of a model"
    again = CliRunner().invoke(app, [*words, "--out", str(out.parent / "other")])
    assert again.exit_code == 0 and "reused" in again.output


@pytest.mark.parametrize("where", ["folder", "address"])
def test_images_to_distill_on_may_all_be_good_and_elsewhere(out: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "my photos").mkdir()
    Image.new("L", (9, 20), 77).save(tmp_path / "my photos" / "é 'one'.png")
    data = str(tmp_path / "my photos") if where == "folder" else f"file://{tmp_path}/my photos"
    found = distillation(out / "finetune", ["cnn"], data=data)
    assert found.data is not None and (found.data["x_train"] == 77).all() and len(found.data["x_train"]) == 1
    assert len(found.notes) == 1 and "1 images" in found.notes[0]
    (tmp_path / "my photos" / "bad.png").write_bytes(b"no image")
    assert distillation(out / "finetune", ["cnn"], data=data).notes[1] == "1 of its files cannot be read, e.g. bad.png"


def test_the_images_of_a_run_may_be_at_an_address_now(tmp_path: Path) -> None:
    data = settings(make_root(tmp_path / "r"), size=8).model_dump(exclude_unset=True)
    stages = {"train": {"method": {"name": "supervised"}, "steps": 1}}
    run(SMALL | {"data": data, "stages": stages}, out=tmp_path / "out", quiet=True)
    url = f"file://{tmp_path}/r"
    found = distillation(tmp_path / "out" / "train", ["cnn"], data=url)
    assert found.data is None and found.recipe.data.path == url


def test_a_run_without_test_images_has_students_on_other_images(tmp_path: Path) -> None:
    stage = {"method": {"name": "supervised"}, "batch": {"labeled": 8}, "steps": 1}
    images = np.random.RandomState(0).randint(0, 256, (20, 8, 8), np.uint8)
    recipe = {**SMALL, "data": {}, "stages": {"only": stage}}
    run(recipe, data=(images, np.arange(20) % 2), out=tmp_path / "run", quiet=True)
    np.savez(tmp_path / "others.npz", x=images[:10])
    words = ["distill", str(tmp_path / "run/only"), "--student", "cnn,width=2", "--steps", "1"]
    done = CliRunner().invoke(app, [*words, "--data", str(tmp_path / "others.npz")])
    assert done.exit_code == 0, (done.output, done.exception)


def test_a_runs_own_folder_is_not_written_over(out: Path) -> None:
    words = ["distill", str(out / "finetune"), "--student", "cnn", "--out", str(out), "--dry-run"]
    with pytest.raises(SemisupError, match=r"--out: .* is the folder of the run itself"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_a_model_is_found_from_within_its_folder(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(out / "finetune")
    assert list(distillation(Path(), ["cnn"]).recipe.stages) == ["pretrain", "finetune", "student_cnn"]


def test_what_does_not_fit_a_finished_stage_is_refused(out: Path) -> None:
    stages = {"teacher": {"kind": "finished", "path": str(out / "finetune")}}
    recipe = {"name": "x", "tracking": {"mlflow": False}, "data": {"source": "digits", "size": 16}, "stages": stages}
    with pytest.raises(SemisupError, match=r"stages\.teacher\.path: the network of .* takes images of 8x8x1"):
        run(recipe, out=out.parent / "x", dry_run=True)
    stages["teacher"]["path"] = str(out.parent / "nosuch")
    with pytest.raises(SemisupError, match="nosuch: not a model folder"):
        run(recipe, out=out.parent / "x", dry_run=True)

"""`semisup label`: what it writes, and what comes back."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from semisup.cli.app import main
from semisup.data import load_data
from semisup.errors import SemisupError
from semisup.labeling import seen
from semisup.labeling.folder import list_pictures
from semisup.labeling.label_studio import labeling_interface, read_export, tasks
from semisup.labeling.next import LabelOptions, label_next
from semisup.settings import DataConfig

Semisup = Callable[..., tuple[int, str, str]]


@pytest.fixture
def semisup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Semisup:
    """Run the command in an empty folder: exit status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["semisup", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
            raise SystemExit(0)
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return call


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def options(tmp_path: Path, **others: Any) -> LabelOptions:
    return LabelOptions(**({"n": 8, "cache": str(tmp_path / "cache"), "device": "cpu"} | others))


@pytest.mark.parametrize("strategy", ["auto", "typical", "coverage", "margin", "entropy", "disagreement", "random"])
@pytest.mark.parametrize("model", ["encoder", "classifier"])
def test_every_strategy_chooses_unlabeled_images(
    photos: Path, models: Path, tmp_path: Path, model: str, strategy: str
) -> None:
    asked = label_next(photos, models / model, tmp_path / "out", options(tmp_path, strategy=strategy))
    chosen = rows(tmp_path / "out" / "to_label.csv")
    assert asked.chosen == len(chosen) == 8 and asked.labeled == 12 and asked.candidates == 41
    assert len({row["path"] for row in chosen}) == 8
    for row in chosen:
        assert row["path"].startswith("unlabeled/") and row["label"] == "" and 0 < float(row["confidence"]) <= 1
        assert row["suggestion"] in ("012" if model == "encoder" else "0123456789")


def test_one_of_two_copies_is_chosen(photos: Path, models: Path, tmp_path: Path) -> None:
    asked = label_next(photos, models / "encoder", tmp_path / "out", options(tmp_path, n=100, strategy="random"))
    paths = {row["path"] for row in rows(tmp_path / "out" / "to_label.csv")}
    assert len(paths & {"unlabeled/00.png", "unlabeled/copy.png"}) == 1
    assert asked.copies == 41 - asked.chosen >= 1


def test_what_was_seen_is_kept(photos: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label_next(photos, models / "encoder", tmp_path / "a", options(tmp_path))
    monkeypatch.setattr(seen, "_run", lambda *_: pytest.fail("the network has run again"))
    label_next(photos, models / "encoder", tmp_path / "b", options(tmp_path))
    assert (tmp_path / "a" / "to_label.csv").read_bytes() == (tmp_path / "b" / "to_label.csv").read_bytes()


def test_a_folder_without_any_label(photos: Path, models: Path, tmp_path: Path) -> None:
    asked = label_next(
        photos / "unlabeled", models / "encoder", tmp_path / "out", options(tmp_path, classes=("a", "b"))
    )
    assert asked.labeled == 0 and "42 images are unlabeled" in asked.notes[0]
    assert {row["suggestion"] for row in rows(tmp_path / "out" / "to_label.csv")} == {""}
    assert '<Choice value="b"/>' in (tmp_path / "out" / "label_studio.xml").read_text()
    with pytest.raises(SemisupError, match="--strategy margin: needs predictions"):
        label_next(photos / "unlabeled", models / "encoder", tmp_path, options(tmp_path, strategy="margin"))


@pytest.mark.parametrize("model", ["encoder", "classifier"])
def test_classes_that_nothing_has_yet_are_offered_too(model: str, photos: Path, models: Path, tmp_path: Path) -> None:
    options = LabelOptions(n=3, cache=str(tmp_path / "cache"), classes=("new", "1"))
    label_next(photos, models / model, tmp_path / "out", options)
    offered = (tmp_path / "out" / "label_studio.xml").read_text(encoding="utf-8")
    assert offered.count('value="new"') == offered.count('value="1"') == 1
    assert offered.index('value="0"') < offered.index('value="new"')


def test_two_models_disagree(photos: Path, models: Path, tmp_path: Path) -> None:
    asked = options(tmp_path, strategy="disagreement", also=(models / "second",))
    assert label_next(photos, models / "classifier", tmp_path / "out", asked).chosen == 8
    with pytest.raises(SemisupError, match=r"--also: .*encoder must be a classifier"):
        label_next(photos, models / "classifier", tmp_path, options(tmp_path, also=(models / "encoder",)))
    with pytest.raises(SemisupError, match=r"--also: goes with a classifier, and .*encoder is an encoder"):
        label_next(photos, models / "encoder", tmp_path, options(tmp_path, also=(models / "classifier",)))


def test_the_page_needs_nothing_and_escapes_names(models: Path, tmp_path: Path) -> None:
    evil = tmp_path / "photos" / "labeled" / "<script>alert(1)<"
    for i, folder in enumerate((evil, tmp_path / "photos" / "labeled" / 'a"b', tmp_path / "photos" / "unlabeled")):
        folder.mkdir(parents=True)
        for j in range(3):
            Image.linear_gradient("L").rotate(9 * (3 * i + j)).save(folder / f"<b>&{j}.png")
    label_next(tmp_path / "photos", models / "encoder", tmp_path / "out", options(tmp_path))
    page = (tmp_path / "out" / "to_label.html").read_text()
    assert "<script>alert" not in page and "<b>&0" not in page and "&lt;b&gt;&amp;0.png" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page) and "http" not in page.replace("http-equiv", "")
    assert page.count('src="data:image/jpeg;base64,') == 3
    assert "<Choice value='a\"b'/>" in (tmp_path / "out" / "label_studio.xml").read_text()


def test_a_filled_table_becomes_data(semisup: Semisup, photos: Path, models: Path, tmp_path: Path) -> None:
    status, shown, _ = semisup("label", photos, models / "encoder", "-n", 5, "--cache", tmp_path / "cache")
    assert status == 0 and "5 of 41" in shown
    filled = rows(tmp_path / "to-label" / "to_label.csv")
    for row, name in zip(filled, ["2", "1", "", "NA", "8"], strict=True):
        row["label"] = name
    with (tmp_path / "filled.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, filled[0])
        writer.writeheader()
        writer.writerows(filled)
    status, shown, told = semisup("label", photos, "--import", "filled.csv")
    assert status == 0 and "3 new labels, 0 changed, of 54 images" in shown and "class '8' is new" in told
    before = Path("labels.csv").read_bytes()
    status, _, told = semisup("label", photos, "--import", "filled.csv")
    assert status == 2 and "labels.csv: is there already; add to it with --csv labels.csv" in told
    status, shown, _ = semisup("label", photos, "--import", "filled.csv", "--csv", "labels.csv")
    assert status == 0 and "0 new labels, 0 changed" in shown and Path("labels.csv").read_bytes() == before
    config = DataConfig(
        source="folder", path=str(photos), csv="labels.csv", size=8, channels=1, cache=str(tmp_path / "c"), max_bad=0.5
    )
    data = load_data(config)
    assert data.classes == ["0", "1", "2", "8"] and (data.y_train >= 0).sum() == 15


def test_what_a_person_has_filled_in_is_not_written_over(
    semisup: Semisup, photos: Path, models: Path, tmp_path: Path
) -> None:
    words = ["label", photos, models / "encoder", "-n", 5, "--cache", tmp_path / "cache"]
    assert semisup(*words)[0] == 0
    status, _, told = semisup(*words)
    assert status == 0 and "to_label.csv: the list that was there is replaced" in told, "nothing was filled in"
    table = tmp_path / "to-label" / "to_label.csv"
    filled = rows(table)
    filled[0]["label"], filled[1]["label"] = "1", "NA"
    table.write_text("path,label\n" + "".join(f"{row['path']},{row['label']}\n" for row in filled))
    before = table.read_bytes()
    status, _, told = semisup(*words)
    assert status == 2 and "to_label.csv: 1 labels filled in there are not yet among those" in told
    assert table.read_bytes() == before
    assert semisup("label", photos, "--import", table)[0] == 0
    Path("other.csv").write_text("path,label\nunlabeled/00.png,1\n")
    status, _, told = semisup("label", photos, "--import", table, "--csv", "other.csv")
    assert status == 2 and "labels.csv: is there already" in told, "it is not the table that is read"
    status, _, told = semisup(*words, "--csv", "labels.csv")
    assert status == 0 and table.read_bytes() != before, "its labels are in the table now"


EXPORT = [
    {"id": 1, "data": {"path": "a.png", "image": "x"}, "annotations": [{"result": [
        {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}]}]},
    {"id": 2, "data": {"path": "b.png"}, "annotations": [{"was_cancelled": True, "result": [
        {"from_name": "label", "value": {"choices": ["cat"]}}]}]},
    {"id": 3, "data": {"path": "c.png"}, "annotations": [
        {"result": [{"from_name": "label", "value": {"choices": ["cat"]}}]},
        {"result": [{"from_name": "label", "value": {"choices": ["dog"]}}]}]},
    {"id": 4, "data": {"path": "d.png"}, "annotations": []},
]  # fmt: skip


def test_label_studio_export() -> None:
    labels, notes = read_export(EXPORT, "export.json")
    assert labels == {"a.png": "cat"}
    assert notes == ["c.png: annotated as cat and dog; left as it was"]
    assert read_export([{"path": "a.png", "label": "dog", "id": 7}, {"path": "b.png"}], "min") == ({"a.png": "dog"}, [])


@pytest.mark.parametrize(
    "result",
    [
        {"from_name": "label", "value": {"choices": ["cat", "dog"]}},
        {"from_name": "choice", "value": {"choices": ["cat"]}},
        {"from_name": "label", "type": "rectanglelabels", "value": {"rectanglelabels": ["cat"], "choices": ["a", "b"]}},
    ],
)
def test_an_answer_that_is_not_one_class_is_said(result: Any) -> None:
    exported = [{"data": {"path": "a.png"}, "annotations": [{"result": [result]}]}]
    labels, (note,) = read_export(exported, "export.json")
    assert labels == {} and "annotated with other than one choice of 'label'" in note and "a.png" in note


def test_several_classes_of_label_studios_tables_are_said(semisup: Semisup, photos: Path, tmp_path: Path) -> None:
    minimal = [{"path": "a.png", "label": {"choices": ["cat", "dog"]}}]
    assert "a.png" in read_export(minimal, "min")[1][0]
    (tmp_path / "ls.csv").write_text('path,label\nunlabeled/00.png,"{""choices"": [""1"", ""2""]}"\n')
    status, said, told = semisup("label", photos, "--import", "ls.csv")
    assert status == 0 and "unlabeled/00.png is annotated with several classes" in told and "0 new labels" in said


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("other.json", '[{"path": "unlabeled/00.png", "choice": "0"}]'),  # JSON-MIN of choices under another name
        ("skipped.json", '[{"data": {"path": "unlabeled/00.png"}, "annotations": [{"was_cancelled": true}]}]'),
        ("guesses.json", '[{"data": {"path": "unlabeled/00.png"}, "predictions": [{"result": []}]}]'),
        ("empty.csv", "path,label,suggestion\nunlabeled/00.png,,0\n"),
    ],
)
def test_a_file_without_any_label_is_told(
    semisup: Semisup, photos: Path, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    status, said, told = semisup("label", photos, "--import", name)
    assert status == 0 and f"note: {name}: has no label in it" in told and "0 new labels" in said


def test_folders_that_training_takes_for_classes_are_labels(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "labeled", tmp_path / "bare")
    assert {entry.label for entry in list_pictures(tmp_path / "bare").entries} == {"0", "1", "2"}
    shutil.copytree(photos / "unlabeled", tmp_path / "bare" / "unlabeled")
    assert {entry.label for entry in list_pictures(tmp_path / "bare").entries} == {"0", "1", "2", None}
    shutil.copy(photos / "labeled/0/0.png", tmp_path / "bare")  # images next to them: an album
    assert {entry.label for entry in list_pictures(tmp_path / "bare").entries} == {None}


@pytest.mark.parametrize("broken", [{}, [3], [{"data": {"image": "x"}}], [{"data": {"path": "a"}, "annotations": [7]}]])
def test_no_label_studio_export(broken: Any) -> None:
    with pytest.raises(SemisupError, match=r"export\.json"):
        read_export(broken, "export.json")


def test_tasks_are_label_studios() -> None:
    (task, plain) = tasks([("a b/ü.png", "cat", 0.75), ("c.png", "", 0.0)])
    assert task["data"] == {"image": "/data/local-files/?d=a%20b/%C3%BC.png", "path": "a b/ü.png"}
    (prediction,) = task["predictions"]
    assert prediction["score"] == 0.75 and prediction["result"][0]["value"] == {"choices": ["cat"]}
    assert plain["predictions"] == []
    assert 'choice="single"' in labeling_interface(["cat"])


def test_a_file_name_that_is_no_text_comes_back(semisup: Semisup, photos: Path, models: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "own")
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "own/unlabeled/02.png").rename(tmp_path / "own/unlabeled" / name)
    assert semisup("label", "own", models / "encoder", "--cache", "cache", "--strategy", "random")[0] == 0
    assert "unlabeled/caf%E9.png" in (tmp_path / "to-label/label_studio.json").read_text()
    filled = (tmp_path / "to-label/to_label.csv").read_bytes().replace(b"caf\xe9.png,", b"caf\xe9.png,1")
    (tmp_path / "filled.csv").write_bytes(filled)
    page = (tmp_path / "to-label/to_label.html").read_text()
    (shown,) = re.findall(r'data-path="(unlabeled/caf.*?)"', page)
    (tmp_path / "of_the_page.csv").write_text(f"path,label\n{shown},2\n")  # what the page saves
    for saved, label in (("of_the_page.csv", "2"), ("filled.csv", "1")):
        (tmp_path / "labels.csv").unlink(missing_ok=True)
        status, said, _ = semisup("label", "own", "--import", saved)
        assert status == 0 and "1 new labels" in said
        found = {entry.path: entry.label for entry in list_pictures(tmp_path / "own", tmp_path / "labels.csv").entries}
        assert found[f"unlabeled/{name}"] == label


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://host/photos", "http://host/photos/a%20b.png"),
        ("s3://b/", "s3://b/a%20b.png"),
        ("/f?d=", "/f?d=a%20b.png"),
    ],
)
def test_an_address_and_a_path_do_not_run_into_each_other(url: str, address: str) -> None:
    (task,) = tasks([("a b.png", "", 0.0)], url)
    assert task["data"]["image"] == address


def test_what_was_not_meant(semisup: Semisup, photos: Path, models: Path, tmp_path: Path) -> None:
    (tmp_path / "answers.csv").write_text("path,label\nunlabeled/00.pn,1\n")
    (tmp_path / "twice.csv").write_text("path,label\nunlabeled/00.png,1\nunlabeled/00.png,2\n")
    (tmp_path / "typo.json").write_text(json.dumps([{"path": "unlabeled/00.png", "label": "2x"}]))
    encoder = models / "encoder"
    for words, said in (
        (["label", photos], "name the folder of a finished stage too"),
        (["label", photos, tmp_path], "not a model folder"),
        (["label", photos, encoder, "--strategy", "marginn"], "did you mean 'margin'?"),
        (["label", tmp_path / "nowhere", encoder], "no such folder"),
        (["label", models, encoder, "--cache", tmp_path / "c", "--csv", tmp_path / "no.csv"], "does not exist"),
        (["label", photos, encoder, "--classes", "a,NA"], "--classes: 'NA' stands for no label in a table"),
        (["label", photos, encoder, "--import", "answers.csv"], "takes a folder and no model"),
        (
            ["label", photos, "--import", "answers.csv", "-n", 5, "--classes", "a,b"],
            "of -n, --classes nothing would be",
        ),
        (["label", photos, "--import", "answers.csv"], "did you mean 'unlabeled/00.png'?"),
        (["label", photos, "--import", "twice.csv"], "line 3: unlabeled/00.png is '2' here and '1' before"),
        (["label", photos, "--import", "answers.txt"], "must end in .csv, .tsv or .json"),
    ):
        status, _, told = semisup(*words)
        assert status == 2 and said in told, told
    status, _, told = semisup("label", photos, "--import", "typo.json")
    assert status == 0 and "class '2x' is new; did you mean '2'?" in told


@pytest.mark.parametrize("none", ["", "  ", "NA", None])
def test_a_label_that_stands_for_none_takes_no_label_away(none: str | None) -> None:
    choice = {"result": [{"from_name": "label", "value": {"choices": None if none is None else [none]}}]}
    tasks_done = [{"path": "a.png", "label": none}, {"data": {"path": "b.png"}, "annotations": [choice]}]
    labels, notes = read_export(tasks_done, "export.json")
    assert labels == {}
    assert [note for note in notes if "stand for no label" not in note] == [] and len(notes) == (none == "NA")


def test_an_answer_that_stands_for_none_is_told(semisup: Semisup, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "got.csv").write_text("path,label\nunlabeled/00.png,NA\nunlabeled/01.png,NA\nunlabeled/02.png,1\n")
    status, said, told = semisup("label", photos, "--import", "got.csv")
    assert status == 0 and "1 new labels" in said
    assert "note: answers that stand for no label, left as they were: 2 'NA'" in told


def test_a_class_that_a_table_would_lose_is_refused(semisup: Semisup, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "own")
    (tmp_path / "own/labeled/2").rename(tmp_path / "own/labeled/NA")  # Namibia
    (tmp_path / "got.csv").write_text("path,label\nunlabeled/02.png,1\n")
    status, _, told = semisup("label", "own", "--import", "got.csv")
    assert status == 2 and "labels.csv: class 'NA' stands for no label in a table; give its folder another name" in told
    assert not (tmp_path / "labels.csv").exists()


@pytest.mark.parametrize("name", ["c0\nfoo", "a\0b", "\ud800", "x" * 300])
def test_what_cannot_name_a_class(semisup: Semisup, photos: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "got.json").write_text(json.dumps([{"path": "unlabeled/00.png", "label": name}]))
    status, _, told = semisup("label", photos, "--import", "got.json")
    assert status == 2 and "a class must have a name of 1 to 255 letters that print" in told and len(told) < 500
    assert not (tmp_path / "labels.csv").exists()


def test_a_choice_is_text() -> None:
    task = {"data": {"path": "a"}, "annotations": [{"result": [{"from_name": "label", "value": {"choices": [{}]}}]}]}
    with pytest.raises(SemisupError, match=r"choices\.0: Input should be a valid string"):
        read_export([task], "export.json")


def test_the_quote_before_a_formula_is_no_part_of_the_class(semisup: Semisup, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "quoted.csv").write_text("path,label\nunlabeled/00.png,'-x\n")
    status, _, told = semisup("label", photos, "--import", "quoted.csv")
    assert status == 0 and "class '-x' is new" in told

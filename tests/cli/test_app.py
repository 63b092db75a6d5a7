"""The `semisup` command: every mistake is one message and exit status 2, answered before anything is trained."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from yaml import safe_load as load_yaml

from semisup.__main__ import main as from_the_shell
from semisup._version import __version__
from semisup.cli.app import main
from semisup.cli.label import import_command
from semisup.cli.stop import saying_how_to_go_on
from semisup.config import load_recipe, shipped_recipes
from semisup.data import load_data
from semisup.methods import METHODS
from semisup.pipeline.describe import describe_method
from semisup.settings import DataConfig
from semisup.settings.shipped import MODELINE
from semisup.signals import deferred
from semisup.text import command as as_command

RECIPE = """
name: tiny
device: cpu
log_every: 1
tracking: {mlflow: false}
data: {source: digits, labels: 40}
model: {name: cnn, width: 3}
stages:
  train:
    method: {name: supervised}
    batch: {labeled: 16}
    steps: 3
"""

Semisup = Callable[..., tuple[int, str, str]]


@pytest.fixture
def semisup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Semisup:
    """Run the command in this process and an empty folder with `tiny.yaml`: exit status, output, errors."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["semisup", *args])
        with pytest.raises(SystemExit) as stopped:
            main()
            raise SystemExit(0)
        code = stopped.value.code
        output = capsys.readouterr()
        return code if isinstance(code, int) else 1, output.out, output.err

    return call


@pytest.fixture
def bad_files(tmp_path: Path) -> None:
    images, labels = np.zeros((50, 8, 8), np.uint8), np.arange(50) % 5
    np.savez(tmp_path / "ok.npz", x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    np.savez(tmp_path / "float.npz", x_train=images / 255, y_train=labels[:49], x_test=images[:9], y_test=labels[:9])
    (tmp_path / "bad.npz").write_bytes(b"PK" + bytes(99))
    (tmp_path / "broken.yaml").write_text("stages: [\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "wrongtype.yaml").write_text("stages: 3\n")
    (tmp_path / "evil.yaml").write_text('a: !!python/object/apply:os.system ["touch hacked"]\n')
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe\n")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "notes.txt").write_text("name: x\n")
    (tmp_path / "model").mkdir()


# Arguments, and words that the answer must have.
MISTAKES: list[tuple[list[str], list[str]]] = [
    (["run", "nosuch/recipe"], ["nosuch/recipe", "no such recipe"]),
    (["run", "digits/quikstart"], ["did you mean 'digits/quickstart'"]),
    (["run", "broken.yaml"], ["broken.yaml", "line"]),
    (["run", "empty.yaml"], ["empty.yaml", "empty"]),
    (["run", "wrongtype.yaml"], ["wrongtype.yaml", "stages: must be a mapping"]),
    (["run", "evil.yaml"], ["evil.yaml", "not allowed"]),
    (["run", "bytes.yaml"], ["bytes.yaml", "UTF-8"]),
    (["run", "folder.yaml"], ["folder.yaml", "is a folder"]),
    (["run", "notes.txt"], ["notes.txt", ".yaml"]),
    (["run", "tiny.yaml", "data.labelz=10%"], ["data.labelz", "did you mean 'labels'"]),
    (["run", "tiny.yaml", "data.labels=ten"], ["data.labels", "ten"]),
    (["run", "tiny.yaml", "data.labels=-4"], ["data.labels", "more than 0"]),
    (["run", "tiny.yaml", "data.labels=101%"], ["data.labels", "100%"]),
    (["run", "tiny.yaml", "data.labels=100000"], ["data.labels", "1438"]),
    (["run", "tiny.yaml", "data.labels=0"], ["data.labels", "more than 0"]),
    (["run", "tiny.yaml", "seed=abc"], ["seed", "whole number", "abc"]),
    (["run", "tiny.yaml", "seed=-1"], ["seed", "-1"]),
    (["run", "tiny.yaml", "data.source=nosuch"], ["data.source", "nosuch", "digits"]),
    (["run", "tiny.yaml", "data.source=digit"], ["data.source", "did you mean 'digits'"]),
    (["run", "tiny.yaml", "data.source=npz"], ["data.path", "missing"]),
    (["run", "tiny.yaml", "data.source=npz", "data.path=okk.npz"], ["data.path", "did you mean 'ok.npz'"]),
    (["run", "tiny.yaml", "data.source=npz", "data.path=bad.npz"], ["bad.npz", "not an .npz file"]),
    (["run", "tiny.yaml", "data.source=npz", "data.path=float.npz"], ["x_train: must be uint8"]),
    (["run", "tiny.yaml", "model.name=resnet999"], ["model.name", "resnet999", "did you mean 'resnet50'"]),
    (["run", "tiny.yaml", "model.name=torchvision/resnet81"], ["model.name", "did you mean 'resnet18'"]),
    (["run", "tiny.yaml", "model.width=-1"], ["model", "width", "-1"]),
    (["run", "tiny.yaml", "device=quantum"], ["device", "quantum", "cpu"]),
    (["run", "tiny.yaml", "device=cuda:9"], ["device", "not on this machine"]),
    (["run", "tiny.yaml", "stages.train.method.name=fixmach"], ["stages.train.method.name", "did you mean 'fixmatch'"]),
    (["run", "tiny.yaml", "stages.train.method.smoothing=1"], ["stages.train.method.smoothing", "label_smoothing"]),
    (["run", "tiny.yaml", "stages.train.steps=-3"], ["stages.train.steps", "at least 1", "-3"]),
    (["run", "tiny.yaml", "stages.train.steps=many"], ["stages.train.steps", "whole number"]),
    (["run", "tiny.yaml", "stages.trian.steps=3"], ["stages.trian", "did you mean 'train'"]),
    (["run", "tiny.yaml", "stages.train.lr=3"], ["stages.train.lr", "did you mean 'optimizer.lr'"]),
    (["run", "tiny.yaml", "stages.train.init=pretrain"], ["stages.train.init.from", "no stage 'pretrain'"]),
    (["run", "tiny.yaml", "stages.train.optimizer.betas.0=3"], ["stages.train.optimizer.betas"]),
    (["run", "tiny.yaml", "stages=[train]"], ["stages", "mapping"]),
    (["run", "tiny.yaml", "data=[digits]"], ["data", "mapping"]),
    (["run", "tiny.yaml", "steps"], ["'steps'", "key=value"]),
    (["run", "tiny.yaml", "seed=[1"], ["seed", "not valid YAML"]),
    (["run", "tiny.yaml", "--out", "tiny.yaml"], ["out", "tiny.yaml", "is a file"]),
    (["run", "tiny.yaml", "--out", "notes.txt/deep/er"], ["out", "notes.txt", "is a file"]),
    (["run"], ["Usage: semisup run", "Missing argument", "recipe"]),
    (["run", "tiny.yaml", "--dry"], ["--dry"]),
    (["predict", "nosuch.model", "x.png"], ["nosuch.model", "not a model folder"]),
    (["predict", "model", "x.png"], ["model", "no model.json"]),
    (["predict", "model"], ["Missing argument"]),
    (["track", "nosuch"], ["nosuch", "events.jsonl"]),
    (["nosuchcommand"], ["nosuchcommand"]),
    (["predict", "model", "x.png", "--top", "0"], ["error: --top: must be at least 1, not 0"]),
    (["predict", "model", "x.png", "--abstain", "nan"], ["error: --abstain: must be at most 1, not nan"]),
    (["predict", "model", "x.png", "--abstain", "60%"], ["error: --abstain: must be a number, not '60%'"]),
    (["data", "prepare", "photos", "--size", "32x32"], ["error: --size: must be a whole number, not '32x32'"]),
    (["data", "prepare", "nosuch", "--size", "16"], ["data.path: nosuch does not exist (that is, /"]),
    (
        ["label", "photos", "model", "--seed", "4294967296"],
        ["error: --seed: must be at most 4294967295, not 4294967296"],
    ),
    (["data", "show", "tiny.yaml", "--out", "v.jpg"], ["error: --out v.jpg: must end in .png"]),
    (
        ["run", "tiny.yaml", "data={source: folder, path: a, size: 16}", "--out", "a/labeled/x"],
        ["error: out: a/labeled/x lies in 'labeled' of the images a, and would be read as data; name another"],
    ),
    (["run", "tiny.yaml", "data={source: folder, path: ., size: 16}", "--out", "."], ["out: train lies in 'train' of"]),
    (["label", "photos", "model", "-n", "1.5"], ["error: -n: must be a whole number, not '1.5'"]),
]


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize(("args", "words"), MISTAKES, ids=[" ".join(args) for args, _ in MISTAKES])
def test_a_mistake_is_one_message_and_exit_status_2(
    args: list[str], words: list[str], semisup: Semisup, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    code, out, err = semisup(*args)
    assert code == 2
    assert out == ""
    assert [word for word in words if word not in err] == [], err
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before, "a mistake leaves nothing behind, and a recipe runs nothing"


@pytest.mark.usefixtures("bad_files")
def test_several_mistakes_are_one_message(semisup: Semisup) -> None:
    _, _, err = semisup("run", "tiny.yaml", "seed=abc", "data.labels=ten", "stages.train.lr=1")
    assert err.count("error:") == 1
    assert "3 problems" in err
    _, _, err = semisup(
        "run", "tiny.yaml", "data.source=npz", "data.path=float.npz", "model.name=wrnn", "device=cuda:5"
    )
    assert [word for word in ("model.name", "device", "float.npz", "x_train") if word not in err] == []


def test_a_run_from_the_command_line(semisup: Semisup, tmp_path: Path) -> None:
    code, out, err = semisup("run", "tiny.yaml", "stages.train.steps=50")
    assert (code, err) == (0, "")
    assert "train 50/50" in out
    content = json.loads((tmp_path / "runs" / "tiny" / "result.json").read_text())
    assert content["stages"][0]["steps"] == 50
    code, out, _ = semisup("run", "tiny.yaml", "stages.train.steps=50", "--out", "runs/other")
    assert "done before" in out
    code, out, _ = semisup("run", "tiny.yaml", "stages.train.steps=50", "--fresh")
    assert "done before" not in out


def test_a_dry_run_leaves_nothing(semisup: Semisup, tmp_path: Path) -> None:
    code, out, _ = semisup("run", "tiny.yaml", "--dry-run")
    assert code == 0
    assert "supervised" in out and "expected time of training: train " in out
    assert "never mirrored (data.flip=true allows it)" in out
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(semisup: Semisup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal itself, and the checkpoint, are tested on real processes in tests/faults."""

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("semisup.pipeline.run", interrupted)
    code, _, err = semisup("run", "tiny.yaml", "data.labels=4 per class", "--out", "o")
    assert code == 130
    assert err == "stopped; go on with: semisup run tiny.yaml 'data.labels=4 per class' --out o\n"


def test_a_full_disk_is_a_message_not_a_traceback(semisup: Semisup, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device", "out/result.json")

    monkeypatch.setattr("semisup.pipeline.run", full)
    code, _, err = semisup("run", "tiny.yaml")
    assert code == 2
    assert "error: out/result.json: No space left on device; once that is mended, go on with: semisup run" in err
    assert "semisup run tiny.yaml" in err


LONG = "a" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["predict", LONG, "photos"],
        ["export", LONG, "x.onnx"],
        ["distill", LONG, "--student", "cnn"],
        ["label", "photos", LONG],
        ["check", "photos", LONG],
        ["report", LONG],
        ["track", LONG],
        ["init", "photos", "--out", f"{LONG}.yaml"],
    ],
)
def test_what_the_system_refuses_is_a_message_whatever_the_command(words: list[str], semisup: Semisup) -> None:
    code, out, err = semisup(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and f"{LONG}" in err and ": File name too long" in err
    assert "Errno" not in err


def test_links_that_lead_round_in_a_circle(semisup: Semisup, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.json").touch()
    data = ["data.source=folder", "data.path=.", "data.size=8", "data.labels=all"]
    for words, said in (
        (["run", "tiny.yaml", *data, "--out", "loop"], "data.path: ./loop cannot be read (Too many"),
        (["track", "loop"], "no events.jsonl in this folder"),
        (["predict", "m", "loop", "--out", "p.csv"], "m: no stage.json"),
        (["distill", "m", "--student", "cnn", "--out", "loop"], "loop"),
    ):
        code, out, err = semisup(*words)
        assert (code, out) == (2, "") and err.startswith("error: ") and said in err, err


@pytest.mark.parametrize(
    ("words", "works", "again"),
    [
        (["predict", "m", "photos"], "semisup.pipeline.predict.predict_files", "start again"),
        (["export", "m", "m.onnx"], "semisup.pipeline.export.export_model", "start again"),
        (["report", "m"], "semisup.pipeline.page.report", "start again"),
        (["data", "show", "tiny.yaml"], "semisup.pipeline.show.show_data", "start again"),
        (["track", "m"], "semisup.tracking.replay", "go on"),
    ],
)
def test_a_signal_ends_every_long_command_alike(
    words: list[str], works: str, again: str, semisup: Semisup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    (tmp_path / "m").mkdir()
    for name in ("model.json", "result.json"):
        (tmp_path / "m" / name).touch()
    monkeypatch.setattr(works, stopped)
    code, out, err = semisup(*words)
    assert (code, out) == (130, "")
    assert err == f"stopped; {again} with: semisup {' '.join(words)}\n"


@pytest.mark.parametrize("name", ["taken", "closed/x", "nosuch/x"])
@pytest.mark.parametrize(
    ("words", "suffix"),
    [
        (["init", "photos", "--force", "--out"], ".yaml"),
        (["export", "m"], ".onnx"),
        (["data", "show", "tiny.yaml", "--out"], ".png"),
    ],
)
def test_what_could_not_be_written_is_refused_before_the_work(
    words: list[str], suffix: str, name: str, semisup: Semisup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("m", "photos", "closed", f"taken{suffix}"):
        (tmp_path / folder).mkdir()
    (tmp_path / "m" / "model.json").touch()
    may = os.access
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "closed" and may(path, mode))
    code, out, err = semisup(*words, name + suffix)
    said = {
        "taken": "is a folder, where a file",
        "closed/x": "closed cannot be written to",
        "nosuch/x": "no folder nosuch",
    }
    assert (code, out) == (2, "") and said[name] in err


# Prediction


def test_predict_writes_a_table(semisup: Semisup, tmp_path: Path) -> None:
    semisup("run", "tiny.yaml", "--out", "o")
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(load_data(DataConfig()).x_test[:3]):
        Image.fromarray(image[:, :, 0]).resize((20, 20)).save(tmp_path / "photos" / f"{i}.{'jpg' if i else 'png'}")
    code, out, err = semisup("predict", "o/train", "photos")
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["path"] for row in rows] == ["photos/0.png", "photos/1.jpg", "photos/2.jpg"]
    code, out, _ = semisup("predict", "o/train", "photos/0.png", "photos", "--out", "p.csv")
    assert (code, out) == (0, "")
    assert len(list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text())))) == 4
    code, _, err = semisup("predict", "o/train", "photos/0.png", "--out", "p.csv")
    assert (code, err) == (0, "note: replaced: p.csv\n")


def test_predict_names_its_mistakes(semisup: Semisup, tmp_path: Path) -> None:
    semisup("run", "tiny.yaml", "--out", "o")
    (tmp_path / "a.png").write_text("text")
    (tmp_path / "a.xlsx").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "stage.json").write_text("{}")
    for args, words in [
        (["o/train", "empty"], ["no images found in empty"]),
        (["probe", "a.png"], ["probe: not a model folder: its stage leaves no network", "name one that trains"]),
        (["o/train", "a.png", "--tta", "rotate"], ["--tta: must be mirror"]),
        (["o/train", "a.png", "list.csv", "--out", "./list.csv"], ["--out list.csv: is what is read"]),
        (["o/train", "a.png", "--out", "a.xlsx"], ["--out a.xlsx", ".csv, .jsonl, .parquet"]),
        (["o/train", "o/train/confusion.png", "--out", "nosuch/p.csv"], ["--out nosuch/p.csv", "cannot be written"]),
        (["o/train", "o/train/confusion.png", "--device", "quantum"], ["device", "quantum"]),
        (["o", "a.png"], ["o: not a model folder", "name a finished stage's folder: o/train"]),
        (["o.onnx", "a.png"], ["o.onnx: an exported file", "docs/export.md"]),
        (["o/train/model.json", "a.png"], ["o/train/model.json: a file of a model folder; name the folder, o/train"]),
        (["o/train", "s3://b/p", "HTTP://x/y.png"], ["s3://b/p: this command reads", "HTTP://x/y.png: this"]),
        (["o/train", ""], ["an empty word", "is a variable of the shell not set?"]),
        (["o/train", "a.png", "--out", ""], ["--out: must not be empty"]),
        (["o/train", "a.png", "--out="], ["--out: must not be empty"]),
    ]:
        code, out, err = semisup("predict", *args)
        assert (code, out) == (2, "")
        assert [word for word in words if word not in err] == [], err
        assert "replaced" not in err


def test_predict_ends_with_1_where_files_are_bad(semisup: Semisup, tmp_path: Path) -> None:
    semisup("run", "tiny.yaml", "--out", "o")
    (tmp_path / "a.png").write_text("text")
    code, out, err = semisup("predict", "o/train", "a.png", "o/train/confusion.png")
    assert code == 1 and err == "note: a.png: not a PNG, JPEG, WebP, TIFF or BMP image\n" + (
        "1 of 2 images could not be read: see column error\n"
    )
    bad, good = csv.DictReader(io.StringIO(out))
    assert (bad["class"], bad["error"]) == ("", "not a PNG, JPEG, WebP, TIFF or BMP image") and good["class"]
    code, again, _ = semisup("predict", "o/train", "a.png", "o/train/confusion.png", "--skip-bad")
    assert (code, again) == (0, out)


@pytest.mark.parametrize(
    "encoding", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("latin-1", "utf-8")), "ascii"]
)
def test_every_name_can_be_printed(encoding: str, semisup: Semisup, tmp_path: Path) -> None:
    """In a process of its own: pytest's capture takes every text."""
    semisup("run", "tiny.yaml", "--out", "o")
    names = [os.fsdecode(b"caf\xe9.png"), "grün.png", "猫.png"]
    for name in names:
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    command = [sys.executable, "-m", "semisup", "predict", "o/train", *names, "missing-猫.png"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith(b"caf\xe9.png,"), "its own bytes"
    assert lines[2].startswith({"ascii": b"gr\\xfcn", "latin-1": b"gr\xfcn", "utf-8": "grün".encode()}[encoding])
    assert lines[3].startswith("猫".encode() if encoding == "utf-8" else b"\\u732b")


# Lists


def test_version_help_and_module(semisup: Semisup) -> None:
    assert semisup("--version")[:2] == (0, f"semisup {__version__}\n")
    for words in (["-h"], ["run", "-h"], ["data", "prepare", "-h"]):
        code, out, _ = semisup(*words)
        assert code == 0 and "Usage: semisup" in out
    done = subprocess.run([sys.executable, "-m", "semisup", "recipes"], capture_output=True, text=True, check=True)
    assert "digits/quickstart" in done.stdout


def test_the_shell_completes_names(semisup: Semisup) -> None:
    words = {"_SEMISUP_COMPLETE": "complete_bash", "COMP_WORDS": "semisup run digits/q", "COMP_CWORD": "2"}
    command = [sys.executable, "-m", "semisup"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **words}, check=False)
    assert done.stdout.split() == ["digits/quickstart"]


def test_methods_as_a_table_and_as_json(semisup: Semisup) -> None:
    code, out, _ = semisup("methods", "--json")
    assert code == 0
    listed = json.loads(out)
    assert [method["name"] for method in listed] == list(METHODS)
    for method in listed:
        assert set(method) == {"name", "family", "summary", "citation"}
        assert all(method.values())
        assert "\n" not in method["summary"]
    code, out, _ = semisup("methods")
    assert [line.split()[0] for line in out.splitlines()] == list(METHODS)


def test_one_method_in_full(semisup: Semisup) -> None:
    code, out, _ = semisup("methods", "fixmatch")
    assert code == 0
    for words in (
        "arXiv:2001.07685",
        "threshold: number in [0, 1]; default 0.95",
        "Paper: 0.95.",
        "strong (randaugment)",
    ):
        assert words in out
    code, out, _ = semisup("methods", "fixmatch", "--json")
    options = {option["name"]: option for option in json.loads(out)["options"]}
    assert options["threshold"]["default"] == 0.95 and "Paper: 0.95." in options["threshold"]["help"]
    code, _, err = semisup("methods", "fixmach")
    assert code == 2 and "did you mean 'fixmatch'?" in err


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_every_method_is_described(name: str) -> None:
    text = describe_method(name)
    assert [option.name for option in text.options if not option.help or not option.type] == []
    assert text.description and text.citation in text.to_text()


def test_what_an_option_does_is_told_to_its_end() -> None:
    """A line that goes on and has a colon is not a name of its own; it was, and its words were lost."""
    (teacher,) = (option for option in describe_method("fixmatch").options if option.name == "teacher")
    assert teacher.help.endswith("finished classifier too: set the stage's `ema: null`.")
    for name in METHODS:
        for option in describe_method(name).options:
            assert option.help.rstrip()[-1] in ".:", f"{name}.{option.name}: {option.help}"


def test_recipes_are_listed_by_the_names_that_run_takes(semisup: Semisup, tmp_path: Path) -> None:
    code, out, _ = semisup("recipes")
    lines = out.splitlines()
    assert code == 0 and [line.split()[0] for line in lines] == shipped_recipes()
    assert all(len(line.split(maxsplit=1)[1]) > 15 and len(line) < 150 for line in lines)
    assert not [line for line in lines if line.endswith((" al", ":"))], "cut within a sentence"
    code, printed, _ = semisup("recipes", "digits/quickstart")
    assert code == 0 and load_yaml(printed)["name"] == "digits-quickstart"
    code, out, _ = semisup("recipes", "digits/quickstart", "--copy", "mine.yaml")
    assert code == 0 and (tmp_path / "mine.yaml").read_text().splitlines()[1:] == printed.splitlines()[1:]
    schema = Path((tmp_path / "mine.yaml").read_text().splitlines()[0].removeprefix(MODELINE))
    assert schema.is_absolute() and "$defs" in json.loads(schema.read_text())
    code, _, err = semisup("recipes", "digits/quickstart", "--copy", "mine.yaml")
    assert code == 2 and "File exists" in err
    code, _, err = semisup("recipes", "digits/quikstart")
    assert code == 2 and "did you mean 'digits/quickstart'?" in err


# How long an answer takes


def python(code: str, cwd: Path) -> tuple[float, str]:
    """Seconds of processor time that a fresh Python takes for `code`, and its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=cwd, env=os.environ
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


ANSWER = """
import sys
from semisup._version import __version__
from semisup.cli.app import main
for line in {lines!r}:
    sys.argv = ["semisup", *line.split()]
    try:
        main()
    except SystemExit as stopped:
        assert stopped.code == {code}, (line, stopped.code)
slow = ["torch", "torchvision", "torch._dynamo", "sklearn", "scipy", "mlflow", "matplotlib", "albumentations"]
print("imported:", [name for name in slow if name in sys.modules])
"""

WITHOUT_TORCH = [
    "run nosuch/recipe",
    "run tiny.yaml name=${nosuch}",
    "predict nosuch x.png",
    "track nosuch",
    "nosuchcommand",
]
WITH_TORCH_ALONE = [
    "run tiny.yaml seed=abc data.labelz=1",
    "run tiny.yaml data.labels=100000",
    "run tiny.yaml data.source=nosuch",
    "run tiny.yaml data.source=npz",
    "run tiny.yaml model.name=resnet999",
    "run tiny.yaml model.name=torchvision/resnet81",
    "run tiny.yaml stages.train.method.smoothing=1",
    "run tiny.yaml stages.train.augment={strong: {policy: weak}}".replace(": ", ":"),
    "run tiny.yaml --out tiny.yaml",
]


def test_help_and_lists_do_not_wait_for_torch(tmp_path: Path) -> None:
    seconds, out = python(ANSWER.format(lines=["--help", "run --help", "predict --help"], code=0), tmp_path)
    assert out.splitlines()[-1] == "imported: []"
    assert seconds < 1.0, "about 0.2 s on an idle machine"
    _, out = python(ANSWER.format(lines=["recipes"], code=0).replace("main()", "main(); sys.exit(0)"), tmp_path)
    assert out.splitlines()[-1] == "imported: []"


def test_what_cannot_be_read_does_not_wait_for_torch(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    seconds, out = python(ANSWER.format(lines=WITHOUT_TORCH, code=2), tmp_path)
    assert out.splitlines()[-1] == "imported: []"
    assert seconds < 3.0, "all of them together: about 0.5 s on an idle machine"


def test_the_other_mistakes_cost_little_more_than_importing_torch(tmp_path: Path) -> None:
    """Which takes about 2 s; an answer must come within 3."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    tried = []
    for _ in range(3):  # beside other tests on two cores a single pair has been a tenth off
        torch_alone, _ = python("import torch", tmp_path)
        seconds, out = python(ANSWER.format(lines=WITH_TORCH_ALONE, code=2), tmp_path)
        assert out.splitlines()[-1] == "imported: ['torch']"
        tried.append(seconds - (1.5 * torch_alone + 1.0))
        if tried[-1] < 0:
            break
    assert tried[-1] < 0, f"all of them together: seconds above the limit {tried}"


def test_bench_needs_a_suite_that_is_there(semisup: Semisup) -> None:
    code, _, errors = semisup("bench")
    assert code == 2 and "bench: name a suite; shipped: " in errors and "digits/budgets" in errors
    code, _, errors = semisup("bench", "digits/budgts")
    assert code == 2 and "did you mean 'digits/budgets'?" in errors
    code, _, errors = semisup("bench", "digits/budgets", "draws=0", "lables=[40]")
    assert code == 2 and "draws: must be a number from 1 to 1000, or a list of seeds, not 0" in errors
    assert "lables: unknown key; did you mean 'labels'?" in errors


def test_bench_compares_two_results(semisup: Semisup, tmp_path: Path) -> None:
    committed = Path(__file__).parents[2] / "benchmarks" / "results" / "digits-budgets"
    code, output, _ = semisup("bench", "--compare", str(committed), str(committed))
    assert code == 0 and "fixmatch" in output
    code, _, errors = semisup("bench", "--compare", str(committed), str(tmp_path / "none"))
    assert code == 2 and "none" in errors
    code, _, errors = semisup("bench", "digits/budgets", "--compare", str(committed), str(committed))
    assert code == 2 and "--compare: takes two result folders and no suite, got 'digits/budgets' too" in errors
    code, output, errors = semisup("bench", "--compare", str(committed), str(committed), "--out", "o", "--dry-run")
    assert (code, output) == (2, "") and "of --out, --dry-run nothing would be read" in errors


# Data


def own_images(root: Path) -> None:
    """Five images of each of two classes, twenty without a label, two for the test, one of them no image."""
    draws = np.random.default_rng(0)
    names = [f"labeled/{name}/{i}.png" for name in ("ant", "bee") for i in range(5)]
    names += [f"unlabeled/{i}.jpg" for i in range(20)] + ["test/ant/a.png", "test/bee/b.png"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (30, 40, 3), np.uint8)).save(root / name)
    (root / "unlabeled" / "notes.png").write_text("no image")


def test_data_prepare_says_what_is_in_a_folder(semisup: Semisup, tmp_path: Path) -> None:
    own_images(tmp_path / "photos")
    command = ["data", "prepare", "photos", "--size", "16", "--cache", "cache"]
    code, out, err = semisup(*command)
    assert code == 2, "1 of 33 files is more than 1%"
    assert "--max-bad: 1 of 33 files" in err and "unlabeled/notes.png (not a PNG" in err
    assert err.count("notes.png") == 1, "said once"
    code, out, err = semisup(*command, "--max-bad", "0.1")
    assert code == 0 and err.startswith("warning: 1 of 33 files cannot be read and are left out: unlabeled/notes.png")
    assert [line.split() for line in out.splitlines()[:4]] == [
        ["class", "labeled", "val", "test"],
        ["ant", "5", "0", "1"],
        ["bee", "5", "0", "1"],
        ["(unlabeled)", "20"],
    ]
    assert "32 images of 16x16x3" in out and "0 decoded now, 33 before; 1 cannot be read" in out
    assert len(list((tmp_path / "cache").rglob("bad_files.csv"))) == 1


def test_data_prepare_names_leaks_and_conflicts_once_by_its_own_flags(semisup: Semisup, tmp_path: Path) -> None:
    own_images(tmp_path / "photos")
    (tmp_path / "photos/unlabeled/notes.png").unlink()
    shutil.copy(tmp_path / "photos/labeled/ant/0.png", tmp_path / "photos/test/ant/copy.png")
    shutil.copy(tmp_path / "photos/labeled/ant/1.png", tmp_path / "photos/labeled/bee/copy.png")
    command = ["data", "prepare", "photos", "--size", "16", "--cache", "cache"]
    code, out, err = semisup(*command)
    assert code == 2 and "32 images" not in err and err.count("copy.png") == 2 and "data." not in err
    for flag in ("--allow-leakage", "--drop-leaks", "--allow-conflicts"):
        assert flag in err
    code, out, err = semisup(*command, "--allow-leakage", "--allow-conflicts")
    assert code == 0 and err.count("warning: ") == 2 and out.splitlines()[1].split() == ["ant", "5", "0", "2"]
    code, out, err = semisup(*command, "--drop-leaks", "--allow-conflicts")
    assert code == 0 and out.splitlines()[1].split() == ["ant", "5", "0", "1"]
    assert "left out: 1 test" in err
    words = shlex.split(out.splitlines()[-1].removeprefix("next: semisup "))
    small = ["model.depth=10", "model.width=1", "device=cpu", "stages.train.batch={labeled: 4, unlabeled: 4}"]
    code, out, err = semisup(*words, *small, "--out", "o")
    assert code == 0 and "11 labeled" in out and "11 test" not in out and "left out: 1 test" in err


@pytest.mark.parametrize("name", ["2024", "null", "[a]", "'q'", " a", "-x", "a\n\x1bb", "!x"])
def test_the_next_command_names_any_folder(name: str, semisup: Semisup, tmp_path: Path) -> None:
    """What a recipe would read as a number, a list or nothing is quoted, for the shell as well."""
    own_images(tmp_path / name)
    (tmp_path / name / "unlabeled" / "notes.png").unlink()
    code, out, _ = semisup("data", "prepare", "--size", "16", "--cache", "1e3", "--", name)
    assert code == 0
    words = shlex.split(out.partition("next: semisup ")[2])
    recipe = load_recipe(words[1], [word for word in words[2:] if word != "--dry-run"])
    assert (recipe.data.path, recipe.data.cache, recipe.data.size) == (name, "1e3", 16)


def test_commands_that_are_printed_are_read_as_they_are_meant() -> None:
    assert as_command("semisup", "label", Path("-x"), "--csv", Path("a b.csv")) == "semisup label ./-x --csv 'a b.csv'"
    assert (
        import_command(Path("-x"), Path("-y/to label.csv"), None) == "semisup label ./-x --import './-y/to label.csv'"
    )


class _Interrupted(ModuleType):
    def __getattr__(self, name: str) -> Any:
        raise KeyboardInterrupt


def test_ctrl_c_while_the_command_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "semisup.cli.app", _Interrupted("semisup.cli.app"))
    with pytest.raises(SystemExit) as stopped:
        from_the_shell()
    assert stopped.value.code == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_an_import_swallows_is_not_lost(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As numpy's import did: it went on to the training, or to an ImportError of its own."""
    monkeypatch.setattr(sys, "argv", ["semisup", "run", "a b.yaml"])
    for broken in (False, True):
        with pytest.raises(typer.Exit) as stopped, saying_how_to_go_on():
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), number)
            if broken:
                raise ImportError("cannot load module more than once per process")
            with deferred():
                raise AssertionError("it trains")
        assert stopped.value.exit_code == 128 + number
    with pytest.raises(ImportError), saying_how_to_go_on():
        raise ImportError("of another kind")


@pytest.mark.parametrize("words", [["init", "photos", "--out"], ["recipes", "digits/quickstart", "--copy"]])
def test_a_recipe_is_not_written_where_none_would_be_read(words: list[str], semisup: Semisup, tmp_path: Path) -> None:
    code, _, err = semisup(*words, "mine.txt")
    assert code == 2 and err == f"error: {words[-1]} mine.txt: must end in .yaml or .yml, as recipes do\n"
    assert not (tmp_path / "mine.txt").exists()


@pytest.mark.usefixtures("with_figures")
def test_data_show_and_run_on_ones_own_folder(semisup: Semisup, tmp_path: Path) -> None:
    """The shipped template, as its first lines say."""
    own_images(tmp_path / "photos")
    (tmp_path / "photos" / "unlabeled" / "notes.png").unlink()
    settings = [
        "data.path=photos",
        "data.cache=cache",
        "data.size=16",
        "model.depth=10",
        "model.width=1",
        "model.bn_momentum=0.9",
    ]
    settings += [
        "stages.train.steps=2",
        "stages.train.batch={labeled: 4, unlabeled: 8}",
        "tracking.mlflow=false",
        "device=cpu",
    ]
    code, out, err = semisup("data", "show", "folder/fixmatch", *settings, "--out", "v.png")
    assert (code, err) == (0, "")
    assert "decoding photos: 32 files" in out and "10 of 30 training images labeled, 5 per class" in out
    assert (tmp_path / "v.png").stat().st_size > 10_000
    assert semisup("data", "show", "folder/fixmatch", *settings, "--out", "v.png")[2] == "note: replaced: v.png\n"
    wrong = semisup("data", "show", "folder/fixmatch", *settings, "data.labels=0", "--out", "v.png")
    assert wrong[0] == 2 and "replaced" not in wrong[2], "nothing was"
    code, out, err = semisup("run", "folder/fixmatch", *settings, "--out", "o")
    assert (code, err) == (0, "")
    assert "decoding" not in out, "prepared already"
    assert json.loads((tmp_path / "o/train/model.json").read_text())["classes"] == ["ant", "bee"]


def test_data_names_its_mistakes(semisup: Semisup, tmp_path: Path) -> None:
    (tmp_path / "flat" / "ants").mkdir(parents=True)
    for args, words in [
        (["prepare", "nosuch", "--size", "16"], ["nosuch", "does not exist"]),
        (["prepare", "flat", "--size", "16"], ["has no folder 'labeled'", "ants"]),
        (["prepare", "flat", "--size", "4"], ["--size"]),
        (["prepare", " ", "--size", "16"], ["data.path: must not be empty, not ' '"]),
        (["prepare", "flat"], ["--size"]),
        (["prepare", "flat", "--size", "16", "--channels", "2"], ["--channels", "not 2"]),
        (["show", "tiny.yaml", "--stage", "tran"], ["did you mean 'train'"]),
        (["show", "nosuch/recipe"], ["no such recipe"]),
    ]:
        code, out, err = semisup("data", *args)
        assert (code, out) == (2, ""), args
        assert [word for word in words if word not in err] == [], err

"""Everything that the README and the pages of docs/ show is run: commands, recipes, suites, Python."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from semisup.bench.results.write import RESULTS, rewrite_results
from semisup.cli.app import app, main
from semisup.config import load_recipe
from semisup.errors import SemisupError
from semisup.methods import Batch, Labeled, Method, Progress, Unlabeled
from semisup.models import ModelSpec, build_classifier
from tests.nursery import Nursery

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {path.name: path.read_text(encoding="utf-8") for path in PAGES}

FULL_RUNS = (["run", "folder/small"], ["run", "npz/fixmatch"], ["run", "my-images.yaml"])
"""Recipes that the pages show: minutes of training."""


def blocks(language: str) -> list[str]:
    """Fenced blocks of one language, of the README and then of every page."""
    fenced = [block for text in TEXT.values() for block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.M)]
    return [text for name, text in fenced if name == language]


def commands() -> list[list[str]]:
    """The words of every `semisup ...` line of the plain blocks, without its comment, each once."""
    lines = [line for block in blocks("") for line in block.splitlines() if line.startswith("semisup ")]
    return [list(words) for words in dict.fromkeys(tuple(shlex.split(line, comments=True)) for line in lines)]


def semisup(words: list[str], folder: Path) -> None:
    """Run a command in this process and a folder, as `tests/cli` does: torch is imported once for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stopped:
            main()
            raise SystemExit(0)
    assert not stopped.value.code, f"{shlex.join(words)}: exit status {stopped.value.code}, see what it printed"


def with_mlflow(words: list[str], folder: Path, forks: Nursery) -> None:
    """Run a command in a process of its own: MLflow's warnings are errors in this one."""
    code, output = forks.run(folder, *words[1:], log=folder.with_suffix(".log"))
    assert code == 0, output


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, forks: Nursery) -> Path:
    """A folder with what the commands name: `my.yaml`, `my-images.yaml`, a finished run of the quickstart's name."""
    folder = tmp_path_factory.mktemp("readme")
    recipe = """
name: my
tracking: {mlflow: false}
data: {source: digits, labels: 10%}
model: {name: cnn, width: 4}
stages:
  student:
    method: {name: supervised}
    steps: 2
"""
    for name in ("my.yaml", "mine.yaml"):
        (folder / name).write_text(recipe, encoding="utf-8")
    with_mlflow(["semisup", "run", "my.yaml", "tracking.mlflow=true", "--out", "runs/digits-quickstart"], folder, forks)
    for name in ("before", "after"):
        shutil.copytree(ROOT / "benchmarks" / "results" / "digits-budgets", folder / "runs" / name)
    (suite,) = (block for block in blocks("yaml") if "entries:" in block)
    (folder / "my-suite.yaml").write_text(suite, encoding="utf-8")
    pixels, labels = np.random.RandomState(0).randint(0, 256, (40, 8, 8), np.uint8), np.arange(40) % 4
    np.savez(folder / "mine.npz", x_train=pixels[8:], y_train=labels[8:], x_test=pixels[:8], y_test=labels[:8])
    for i, name in enumerate(("bag", "boot")):
        (folder / "my-images" / "labeled" / name).mkdir(parents=True)
        for j, letter in enumerate("ab"):
            Image.new("RGB", (80, 70), (90 * i, 40 * j, 9)).save(folder / f"my-images/labeled/{name}/{letter}.png")
    small = (ROOT / "recipes" / "folder" / "small.yaml").read_text(encoding="utf-8")
    (folder / "my-images.yaml").write_text(small.replace("path: photos", "path: my-images"), encoding="utf-8")
    (folder / "photos").mkdir()
    shutil.copy(ROOT / "docs" / "pictures" / "report.png", folder / "photos" / "a.png")
    return folder


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands(words: list[str], workplace: Path, forks: Nursery) -> None:
    if words[1:3] == ["run", "digits/quickstart"]:
        words = [*words, "--dry-run"]  # a minute of training; `make demo` is the whole of it
    if words[1:3] == ["init", "my-images"]:
        words = [*words, "--force"]  # the recipe is there for the commands after it, which may run before it
    if "--import" in words and not (workplace / words[words.index("--import") + 1]).exists():
        semisup(["semisup", "label", "photos", "runs/digits-quickstart/student", "-n", "20"], workplace)
    if "--copy" in words:
        words[-1] = f"copy-of-{words[-1]}"  # the commands after it find theirs in any order
    if words[1:3] == ["bench", "digits/budgets"]:
        words = [*words[:2], "digits/quickstart_draws", *words[3:]]  # half an hour
    if words[1:3] == ["bench", "my-suite.yaml"]:
        words = ["semisup", "bench", "my-suite.yaml", "data.source=digits", "draws=1", "compute=[recipe]"]
    starts_long = (words[1] == "bench" and "--compare" not in words) or words[1:3] in FULL_RUNS
    if starts_long and "--dry-run" not in words:
        words = [*words, "--dry-run"]
    words = [word for word in words if word != "--int8"]  # tests/pipeline/test_export.py measures
    if words[1] == "track":
        with_mlflow(words, workplace, forks)
    else:
        semisup(words, workplace)


def test_every_command_is_shown() -> None:
    registered = set(typer.main.get_group(app).commands)
    assert {words[1] for words in commands()} == registered


def test_the_two_commands_exist() -> None:
    make = shutil.which("make")
    assert make is not None
    for target in ("demo", "test"):
        assert f"make {target} " in TEXT["README.md"]
        done = subprocess.run([make, "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        # What the demo leaves is where the pages look for it.
        assert target != "demo" or "--out" not in done.stdout


def test_recipe_is_valid(tmp_path: Path) -> None:
    (recipe,) = (block for block in blocks("yaml") if "stages:" in block)
    (tmp_path / "chain.yaml").write_text(recipe, encoding="utf-8")
    small = ["data.source=digits", "model.depth=10", "model.width=1"]  # digits are everywhere; the plan times steps
    semisup(["semisup", "run", "chain.yaml", *small, "tracking.mlflow=false", "--dry-run"], tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_tables_are_those_of_the_committed_results(page: Path) -> None:
    publish = _publish()
    text = TEXT[page.name]
    assert len(publish.MARKED.findall(text)) == text.count("<!-- table: ")
    assert publish.with_tables(text) == text, "stale: run python benchmarks/publish.py"
    stale = text.replace(" ± ", " +- ")
    assert stale == text or publish.with_tables(stale) != stale


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_numbers_in_sentences_are_those_of_the_committed_results(page: Path) -> None:
    publish = _publish()
    text = TEXT[page.name]
    assert len(publish.VALUE.findall(text)) == text.count("<!-- value: ") == text.count("<!-- end -->")
    stale = publish.VALUE.sub(r"\g<1>0.1\g<3>", text)
    assert publish.with_tables(stale) == publish.with_tables(text) == text, "stale: run python benchmarks/publish.py"


def test_a_number_is_found_by_suite_row_and_column_or_named() -> None:
    value = _publish().value
    assert value("digits-budgets", "fixmatch", "40") == "91.2"
    assert value("digits-budgets", "fixmatch", "40", "2") == "2.8"
    assert value("label_next#fashion_mnist", "random", "40 labels") == "58.8"
    assert value("students#digits", "cnn_6", "points") == "-0.3"
    with pytest.raises(SemisupError, match="fixmtch / 40: no such cell; did you mean 'fixmatch'"):
        value("digits-budgets", "fixmtch", "40")
    with pytest.raises(SemisupError, match=r"40 labels: several cells, 58\.8 ± 3\.1, 89\.4 ± 2\.9"):
        value("label_next", "random", "40 labels")
    with pytest.raises(SemisupError, match="the cell has 2 numbers, not 3"):
        value("digits-budgets", "fixmatch", "40", "3")


def test_no_result_stands_in_a_sentence_by_hand() -> None:
    """Decimals are the mark of a measurement; those of networks' sizes, versions and settings are named here."""
    allowed = {"2.14", "3.11", "3.17", "3.4", "0.25", "0.75^", "0.001", "5.7"}
    hidden = (r"<!-- table: .*?<!-- end of table -->", r"<!-- value: .*?<!-- end -->", r"^```.*?^```$", r"`[^`]*`")
    for page in PAGES:
        text = TEXT[page.name] if not page.name.endswith("-reference.md") else ""
        for pattern in (*hidden, r"\]\([^)]*\)"):
            text = re.sub(pattern, "", text, flags=re.DOTALL | re.MULTILINE)
        assert set(re.findall(r"(?<![\w.])\d+\.\d{1,3}\b\^?", text)) <= allowed, page.name


def test_the_script_knows_every_page() -> None:
    assert _publish().pages() == PAGES


@cache
def _publish() -> ModuleType:
    spec = importlib.util.spec_from_file_location("publish", ROOT / "benchmarks" / "publish.py")
    assert spec is not None and spec.loader is not None
    publish = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(publish)
    return publish


def test_what_one_can_rely_on_is_what_was_tried() -> None:
    """The README's promises are the parts of the page that says what was tried and what held."""
    section = TEXT["README.md"].split("## What you can rely on")[1].split("\n## ")[0]
    promises = re.findall(r"^\| ([a-z][^|]*?) \| (?!how it is kept)", section, re.M)
    faults = (ROOT / "benchmarks/results/faults.md").read_text(encoding="utf-8")
    assert len(promises) == 9 and re.findall(r"^## (.+)$", faults, re.M) == promises


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert (ROOT / "README.md").stat().st_size < 10_000
    assert len(TEXT["README.md"].splitlines()) <= 150
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", TEXT[page.name]):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_python_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (source,) = (block for block in blocks("python") if 'run("digits/quickstart"' in block)
    stages = load_recipe("digits/quickstart").stages
    short = [f"stages.{name}.steps=2" if stage.steps else f"stages.{name}.epochs=0.1" for name, stage in stages.items()]
    words = ", ".join(map(repr, ["seed=1", "tracking.mlflow=false", *short]))
    code = source.replace('"seed=1"', words)
    assert code != source
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - the README's own code
    shown = capsys.readouterr().out
    probabilities = names["predictor"].predict(names["images"])
    assert shown.endswith(f"{names['predictor'].classes} {probabilities}\n"), "the array takes several lines"
    assert probabilities.shape == (4, 10) and np.allclose(probabilities.sum(1), 1, atol=1e-5)


def test_python_of_its_own_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for source in re.findall(r"^```python\n(.*?)^```$", TEXT["python.md"], re.DOTALL | re.M):
        exec(source, names)  # noqa: S102 - the page's own code
    assert names["result"].final.metrics["test/accuracy"] > 0.1
    assert names["classifier"].classes_.tolist() == list(range(10))


def test_method_works() -> None:
    (source,) = (block for block in blocks("python") if "class PseudoLabel" in block)
    assert len(source.splitlines()) <= 40
    namespace: dict[str, object] = {}
    exec(source, namespace)  # noqa: S102 - the README's own code
    cls = namespace["PseudoLabel"]
    assert isinstance(cls, type) and issubclass(cls, Method)
    torch.manual_seed(0)
    model = build_classifier(ModelSpec("cnn", {"width": 4}, 1, 8, 3))
    method = cls(model, threshold=0.0)  # type: ignore[call-arg]
    batch = Batch(
        Labeled({"weak": torch.rand(4, 1, 8, 8)}, torch.tensor([0, 1, 2, 0])),
        Unlabeled({"weak": torch.rand(6, 1, 8, 8)}, torch.arange(6)),
    )
    (update,) = method.step(batch, Progress(1, 2))
    update.loss.backward()
    assert all(p.grad is not None for p in method.parameters())
    torch.testing.assert_close(
        update.loss.detach(), (update.log["supervised"] + 0.5 * update.log["unlabeled"]).detach()
    )


def test_a_committed_suite_is_made_again_from_its_runs(tmp_path: Path) -> None:
    kept = ROOT / "benchmarks" / "results" / "digits-quickstart-draws"
    for name in ("runs.csv", "suite.json"):
        shutil.copy(kept / name, tmp_path / name)
    rewrite_results(tmp_path)
    for name in ("runs.csv", "suite.json", "leaderboard.md"):
        assert (tmp_path / name).read_bytes() == (kept / name).read_bytes(), name
    assert {path.name for path in tmp_path.iterdir()} == set(RESULTS)

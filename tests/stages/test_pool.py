"""Self-training without images of no class: from the recipe to what training sees and the record says."""

from __future__ import annotations

from pathlib import Path

import pytest

import semisup
from semisup.errors import SemisupError
from semisup.methods.deepcluster import DeepCluster
from semisup.pipeline.plan import load_checked, make_plan

RECIPE = """
name: pool
device: cpu
tracking: {mlflow: false}
data: {source: digits, labels: 70, foreign: 3}
model: {name: cnn, width: 4}
stages:
  pretrain:
    method: {name: simclr}
    batch: {unlabeled: 32}
    steps: 2
  selftrain:
    init: pretrain
    method: {name: fixmatch}
    batch: {labeled: 8, unlabeled: 16}
    pool: {keep: 0.7}
    steps: 2
  labels: {kind: relabel, teacher: selftrain, pool: {keep: auto, by: pretrain}}
"""


def write(folder: Path, text: str = RECIPE) -> str:
    path = folder / "pool.yaml"
    path.write_text(text)
    return str(path)


def test_images_are_left_out_and_counted(tmp_path: Path) -> None:
    result = semisup.run(write(tmp_path), out=tmp_path / "out", quiet=True)
    selftrain, labels = result["selftrain"].metrics, result["labels"].metrics
    assert selftrain["pool/left_out"] == pytest.approx(0.3 * (1438 - 70), abs=1)
    assert 0 < labels["pool/part_left_out"] < 0.5
    assert labels["pool/left_out"] == round(labels["pool/part_left_out"] * 1438)


@pytest.mark.parametrize(("pool", "images"), [("pool: {keep: 0.5}", 70 + 684), ("batch: {pool: 90}", 90)])
def test_a_method_is_told_how_many_images_its_batches_are_made_of(
    pool: str, images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepCluster counts its epochs by them, exemplars are no image twice."""
    told: list[int] = []
    monkeypatch.setattr(DeepCluster, "is_due", lambda self, *_: told.append(round(self.length)) or True)
    method = f"init: pretrain\n    method: {{name: deepcluster, clusters: 4}}\n    {pool}"
    recipe = RECIPE[: RECIPE.index("  selftrain:")] + f"  again:\n    {method}\n    steps: 1\n"
    semisup.run(write(tmp_path, recipe), out=tmp_path / "out", quiet=True)
    assert told[-1] == pytest.approx(images, abs=1)


@pytest.mark.parametrize(("keep", "shared"), [("all", True), ("0.5", False)])
def test_a_pretraining_on_images_that_labels_have_chosen_is_not_shared_by_budgets(
    keep: str, shared: bool, tmp_path: Path
) -> None:
    again = f"  again: {{init: pretrain, method: {{name: simclr}}, pool: {{keep: {keep}}}, steps: 1}}\n"
    recipe = write(tmp_path, RECIPE[: RECIPE.index("  selftrain:")] + again)
    plans = [make_plan(load_checked(recipe, [f"data.labels={labels}"]), trial=False) for labels in (70, 140)]
    first, second = ([stage.fingerprint for stage in plan.stages] for plan in plans)
    assert [one == other for one, other in zip(first, second, strict=True)] == [True, shared]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    init: pretrain\n", "", r"stages\.selftrain\.pool\.by: missing"),
        ("keep: 0.7", "keep: 1.5", r"stages\.selftrain\.pool\.keep: must be less than 1"),
        ("keep: 0.7", "keep: some", r"stages\.selftrain\.pool\.keep: must be a number, auto or all"),
        ("by: pretrain", "by: pretrian", r"stages\.labels\.pool\.by.*'pretrain'"),
        ("unlabeled: 16}", "unlabeled: 16, pool: 99}", r"stages\.selftrain\.pool\.keep: with batch\.pool"),
    ],
)
def test_mistakes(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in RECIPE
    with pytest.raises(SemisupError, match=said):
        load_checked(write(tmp_path, RECIPE.replace(old, new)))

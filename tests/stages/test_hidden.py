"""Hidden labels and test images cannot reach a weight; test images are read once, after the last step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semisup.data import ImageData, LabelBudget, draw_budget
from semisup.methods import METHODS
from semisup.models import load_weights
from semisup.stages import Artifact
from semisup.stages.targets import training_images
from tests.stages.stages_small import run_stages, small_data, train_stage, with_test

VIT = {"name": "vit", "width": 8, "depth": 3, "heads": 2}
# Every method, and every way from one stage to another.
STAGES: dict[str, Any] = {
    "pretrain": train_stage("simclr_v2"),
    "pretrain_simclr": train_stage("simclr"),
    "pretrain_moco": train_stage("moco", memory=32, bn_splits=2),
    "pretrain_byol": train_stage("byol", hidden=16),
    "pretrain_simsiam": train_stage("simsiam", hidden=16, out_features=16),
    "pretrain_barlow": train_stage("barlow_twins", hidden=16, out_features=16),
    "pretrain_vicreg": train_stage("vicreg", hidden=16, out_features=16),
    "pretrain_instances": train_stage("instance_discrimination", noise=32),
    "cpc": train_stage("cpc", grid=2, nearest=1, farthest=1, context=6),
    "cmc": train_stage("cmc", negatives=20),
    "deepcluster": train_stage("deepcluster", clusters=4, interval=0.3),
    "swav": train_stage("swav", prototypes=6, crops=2, queue=32, queue_start=0.0),
    "dino": train_stage("dino", out_features=16, hidden=8, bottleneck=6, crops=2),
    "pretrain_rotation": train_stage("rotation"),
    "pretrain_jigsaw": train_stage("jigsaw", permutations=10),
    "pretrain_context": train_stage("context_prediction"),
    "pretrain_counting": train_stage("counting"),
    "pretrain_decoupled": train_stage("decoupled_rotation", negatives=50),
    "pretrain_exemplar": train_stage("exemplar"),
    "pretrain_aet": train_stage("aet"),
    "pretrain_tasks": train_stage("multi_task", tasks={"rotation": 1.0, "aet": 0.5}),
    "mae": train_stage("mae", decoder_width=8, decoder_heads=2, stage={"model": VIT}),
    "maskfeat": train_stage("maskfeat", stage={"model": VIT}),
    "denoising": train_stage("denoising_autoencoder"),
    "colorization": train_stage("colorization", decoder_width=4),
    "pixels": train_stage("pixel_cnn", levels=3, decoder_width=4),
    "finetune": train_stage("supervised", stage={"init": {"from": "pretrain", "head_layer": 1}}),
    "fixmatch": train_stage("fixmatch", threshold=0.0, stage={"init": "finetune"}),
    "pseudo_label": train_stage("pseudo_label", threshold=0.0, ramp=0.0),
    "entropy": train_stage("entropy_minimization"),
    "pi_model": train_stage("pi_model", ramp=0.0),
    "temporal": train_stage("temporal_ensembling", ramp=0.0),
    "vat": train_stage("vat", ramp=0.0),
    "uda": train_stage("uda", threshold=0.0),
    "mixmatch": train_stage("mixmatch", ramp=0.0),
    "remixmatch": train_stage("remixmatch", ramp=0.0),
    "learned_strengths": train_stage("remixmatch", ramp=0.0, ctaugment=True),
    "enaet": train_stage("enaet", ramp=0.0, transform_ramp=0.0),
    "flexmatch": train_stage("flexmatch"),
    "freematch": train_stage("freematch"),
    "softmatch": train_stage("softmatch"),
    "adamatch": train_stage("adamatch", threshold=0.0, ramp=0.0),
    "averaged": train_stage("fixmatch", threshold=0.0, teacher="ema", stage={"ema": None}),
    "simmatch": train_stage("simmatch", threshold=0.0),
    "comatch": train_stage("comatch", threshold=0.0, graph_threshold=0.2, memory=32),
    "mean_teacher": train_stage("mean_teacher"),
    "s4l_rotation": train_stage("s4l_rotation"),
    "s4l_exemplar": train_stage("s4l_exemplar", copies=2),
    "mpl": train_stage("meta_pseudo_labels", uda_threshold=0.0, student_start=0.0),
    "probe": {"kind": "probe", "of": "pretrain", "layers": True},
    "labels": {"kind": "relabel", "teacher": ["finetune", "fixmatch"], "per_class": 9, "balance": True},
    "student": train_stage("noisy_student", stage={"pseudo_labels": "labels"}),
    "graph": {"kind": "propagate", "teacher": "fixmatch", "neighbors": 5, "soft": True},
    "propagated": train_stage("noisy_student", stage={"pseudo_labels": "graph"}),
    "embedded": train_stage("distill_features", stage={"teacher": "pretrain_simclr"}),
    "distilled": train_stage("distill", alpha=0.5, stage={"teacher": "student"}),
}


def color_data(n_test: int = 24) -> ImageData:
    """In color, which colorization needs."""
    return small_data(n_test=n_test, channels=3)


def small_budget() -> LabelBudget:
    """What `run_stages` draws by itself."""
    return draw_budget(color_data().y_train, "2/class", 0, 3)


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    """Every tensor of every file of weights that a stage left."""
    files = [name for name in artifact.record["files"] if name.endswith(".safetensors")]
    assert files
    return {f"{file}: {key}": value for file in files for key, value in load_weights(artifact.folder / file).items()}


def same_weights(first: dict[str, Artifact], second: dict[str, Artifact]) -> dict[str, bool]:
    """Stage -> whether every tensor that it left is bit-identical."""
    same = {}
    for name in first:
        a, b = weights(first[name]), weights(second[name])
        assert a.keys() == b.keys()
        same[name] = all(torch.equal(a[key], b[key]) for key in a)
    return same


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return run_stages(STAGES, color_data(), tmp_path_factory.mktemp("original"))


def test_every_method_is_in_this_test() -> None:
    assert {stage["method"]["name"] for stage in STAGES.values() if "method" in stage} >= set(METHODS)


def test_hidden_labels_and_test_images_reach_no_weight(original: dict[str, Artifact], tmp_path: Path) -> None:
    """All of them are others, and the run repeats bit for bit."""
    data, budget = color_data(), small_budget()
    hidden = np.setdiff1d(np.arange(len(data.y_train)), budget.index)
    poisoned = data.y_train.copy()
    poisoned[hidden] = (poisoned[hidden] + 1) % data.num_classes
    other = with_test(data, 255 - data.x_test, (data.y_test + 1) % data.num_classes)
    again = run_stages(STAGES, dataclasses.replace(other, y_train=poisoned), tmp_path, budget)
    same = same_weights(original, again)
    assert [name for name, unchanged in same.items() if not unchanged] == []
    # The evaluator does see them: the poison shows there, in a relabel stage and during and after training.
    for stage, metric in [
        ("labels", "pseudo_labels/accuracy"),
        ("graph", "pseudo_labels/accuracy"),
        ("fixmatch", "pseudo_labels/accuracy"),
        ("fixmatch", "train/pseudo_labels_of_batch/accuracy"),
        ("mpl", "train/pseudo_labels_of_batch/accuracy"),
        ("finetune", "test/nll"),
    ]:
        assert again[stage].metrics[metric] != original[stage].metrics[metric], (stage, metric)


def test_labels_inside_the_budget_do_reach_the_weights(original: dict[str, Artifact], tmp_path: Path) -> None:
    data, budget = color_data(), small_budget()
    shifted = data.y_train.copy()
    shifted[budget.index] = (shifted[budget.index] + 1) % data.num_classes
    same = same_weights(original, run_stages(STAGES, dataclasses.replace(data, y_train=shifted), tmp_path, budget))
    methods = {name: METHODS[stage["method"]["name"]] for name, stage in STAGES.items() if "method" in stage}
    without_labels = [name for name, method in methods.items() if method.trains == "encoder"]
    assert [name for name, unchanged in same.items() if unchanged] == without_labels


class Watched(np.ndarray):
    """Images that report which of them are read."""

    log: list[Any]

    def __getitem__(self, key: Any) -> Any:
        self.log.append(key)
        return np.asarray(self)[key]


@pytest.mark.parametrize("method", ["supervised", "simclr_v2", "fixmatch"])
def test_test_images_are_read_once_after_the_last_step(method: str, tmp_path: Path) -> None:
    data = color_data(n_test=1100)  # more than one batch of the evaluation
    watched = data.x_test.view(Watched)
    events: list[Any] = []
    watched.log = events
    run_stages(
        {"stage": train_stage(method)},
        data,
        tmp_path,
        on_log=lambda step, values: events.append(step),
        evaluation_data=dataclasses.replace(data, x_test=watched),
    )
    assert events[:3] == [1, 2, 3], "test images were read before the last step"
    read = np.concatenate([np.arange(len(data.x_test))[key] for key in events[3:]])
    assert np.array_equal(np.sort(read), np.arange(len(data.x_test)))


def test_training_is_given_no_hidden_label() -> None:
    data, budget = color_data(), small_budget()
    images = training_images(data, budget, None)
    assert torch.equal(images.labels, torch.from_numpy(data.y_train[budget.index]))
    assert {field.name for field in dataclasses.fields(images)} == {
        "images",
        "labeled_index",
        "labels",
        "pool",
        "targets",
    }

"""The recipes of the fault tests, the `semisup` command as a plain process, and what a run has left."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.nursery import ENVIRONMENT

TRAIN = {"method": {"name": "supervised"}, "batch": {"labeled": 16}, "ema": 0.9}
BOTH = {"labeled": 8, "unlabeled": 16}
VIT = {"name": "vit", "width": 8, "depth": 3, "heads": 2}
STAGES: dict[str, dict[str, Any]] = {
    "pretrain": {"method": {"name": "simclr_v2", "out_features": 8, "memory": 64}, "batch": {"unlabeled": 16}},
    "contrast": {
        "method": {"name": "simclr", "out_features": 8},
        "optimizer": {"name": "lars", "lr": 0.5},
        "schedule": {"name": "cosine", "warmup": 0.2},
        "batch": {"unlabeled": 16},
    },
    "queue": {"method": {"name": "moco", "memory": 48, "bn_splits": 2}, "batch": {"unlabeled": 16}},
    "latent": {"method": {"name": "byol", "hidden": 16}, "batch": {"unlabeled": 16}},
    "siamese": {"method": {"name": "simsiam", "hidden": 16, "out_features": 16}, "batch": {"unlabeled": 16}},
    "twins": {"method": {"name": "barlow_twins", "hidden": 16, "out_features": 16}, "batch": {"unlabeled": 16}},
    "spread": {"method": {"name": "vicreg", "hidden": 16, "out_features": 16}, "batch": {"unlabeled": 16}},
    "instances": {
        "method": {"name": "instance_discrimination", "noise": 64, "out_features": 8},
        "batch": {"unlabeled": 16},
    },
    "patches": {
        "method": {"name": "cpc", "grid": 2, "nearest": 1, "farthest": 1, "context": 8},
        "batch": {"unlabeled": 16},
    },
    "edges": {"method": {"name": "cmc", "negatives": 50, "out_features": 8}, "batch": {"unlabeled": 16}},
    "clustered": {
        "method": {"name": "deepcluster", "clusters": 5, "interval": 0.1, "out_features": 8},
        "batch": {"unlabeled": 16},
    },
    "swapped": {
        "method": {"name": "swav", "prototypes": 6, "out_features": 8, "crops": 1, "queue": 48, "queue_start": 0.2},
        "batch": {"unlabeled": 16},
    },
    "centered": {
        "method": {"name": "dino", "out_features": 16, "hidden": 8, "bottleneck": 6, "crops": 1, "freeze": 0.2},
        "batch": {"unlabeled": 16},
    },
    "upright": {"method": {"name": "rotation"}, "batch": {"unlabeled": 16}},
    "puzzle": {"method": {"name": "jigsaw", "permutations": 10}, "batch": {"unlabeled": 16}},
    "context": {"method": {"name": "context_prediction"}, "batch": {"unlabeled": 16}},
    "count": {"method": {"name": "counting", "counts": 50}, "batch": {"unlabeled": 16}},
    "halves": {"method": {"name": "decoupled_rotation", "negatives": 50}, "batch": {"unlabeled": 16}},
    "seeds": {"method": {"name": "exemplar", "surrogates": 40}, "batch": {"unlabeled": 16}},
    "warped": {"method": {"name": "aet", "transformation": "affine"}, "batch": {"unlabeled": 16}},
    "tasks": {"method": {"name": "multi_task", "tasks": {"rotation": 1.0, "aet": 0.5}}, "batch": {"unlabeled": 16}},
    "painted": {
        "model": VIT,
        "method": {"name": "mae", "decoder_width": 8, "decoder_heads": 2},
        "batch": {"unlabeled": 16},
    },
    "gradients": {"model": VIT, "method": {"name": "maskfeat"}, "batch": {"unlabeled": 16}},
    "repaired": {"method": {"name": "denoising_autoencoder", "decoder_width": 4}, "batch": {"unlabeled": 16}},
    "read": {"method": {"name": "pixel_cnn", "levels": 3, "decoder_width": 4}, "batch": {"unlabeled": 16}},
    "finetune": {"init": {"from": "pretrain", "head_layer": 1}, **TRAIN},
    "match": {
        "init": "finetune",
        "method": {"name": "fixmatch", "threshold": 0.2, "align": True},
        "optimizer": {"name": "adamw", "lr": 1e-3, "clip": 1.0},
        "batch": BOTH,
        "ema": 0.9,
    },
    "pseudo": {"method": {"name": "pseudo_label", "threshold": 0.2, "ramp": 0.0}, "batch": BOTH},
    "entropy": {"method": {"name": "entropy_minimization"}, "batch": BOTH},
    "pi": {"method": {"name": "pi_model", "ramp": 0.0}, "batch": BOTH},
    "temporal": {"method": {"name": "temporal_ensembling", "ramp": 0.0}, "batch": BOTH},
    "vat": {"method": {"name": "vat", "ramp": 0.0, "entropy_weight": 0.1}, "batch": BOTH},
    "uda": {"method": {"name": "uda", "threshold": 0.2}, "batch": BOTH},
    "mix": {"method": {"name": "mixmatch"}, "batch": BOTH},
    "remix": {"method": {"name": "remixmatch", "ctaugment": True}, "batch": BOTH},
    "decode": {"method": {"name": "enaet"}, "batch": BOTH},
    "flex": {"method": {"name": "flexmatch", "threshold": 0.2, "warmup": False}, "batch": BOTH},
    "free": {"method": {"name": "freematch", "momentum": 0.9}, "batch": BOTH},
    "soft": {"method": {"name": "softmatch", "momentum": 0.9}, "batch": BOTH},
    "adapt": {"method": {"name": "adamatch", "threshold": 0.5}, "batch": BOTH},
    "graphs": {"method": {"name": "comatch", "threshold": 0.2, "memory": 48, "embedding": 8}, "batch": BOTH},
    "neighbors": {"method": {"name": "simmatch", "threshold": 0.2, "embedding": 8}, "batch": BOTH},
    "turned": {"method": {"name": "s4l_rotation"}, "batch": BOTH},
    "copied": {"method": {"name": "s4l_exemplar", "embedding": 8}, "batch": BOTH},
    "mean": {"method": {"name": "mean_teacher"}, "batch": BOTH},
    "meta": {"method": {"name": "meta_pseudo_labels", "student_start": 0.2}, "batch": BOTH},
    "embedded": {
        "teacher": "contrast",
        "method": {"name": "distill_features", "form": "queue", "memory": 48},
        "batch": {"unlabeled": 16},
    },
    "probed": {"kind": "probe", "of": "contrast", "layers": True},
    "labels": {"kind": "relabel", "teacher": ["match", "mean"], "per_class": 20, "balance": True},
    "noisy": {"pseudo_labels": "labels", "method": {"name": "noisy_student"}, "batch": BOTH},
    "student": {
        "teacher": "noisy",
        "model": {"name": "cnn", "width": 3},
        "method": {"name": "distill", "alpha": 0.5},
        "batch": BOTH,
    },
}
"""Every method for gray images once, with every optimizer, and what has a state: memory, averages, networks, tables."""
ALONE: dict[str, dict[str, Any]] = {
    "train": TRAIN,
    "colored": {"method": {"name": "colorization", "decoder_width": 4}, "batch": {"unlabeled": 16}},
}
"""One without a past, and one for which the digits are too gray."""
DIGITS = {"source": "digits", "labels": "10/class"}
FEW = (
    "pretrain",  # a memory and its network
    "contrast",  # LARS
    "swapped",  # a queue, normalized prototypes
    "painted",  # a transformer, its decoder
    "finetune",  # what it starts from
    "match",  # two averages, AdamW, a running distribution
    "temporal",  # a row for each image
    "remix",  # rates of augmentation
    "mean",  # a teacher
    "meta",  # two optimizers
    "probed",
    "labels",
    "noisy",
    "student",
)
"""Stages for the kills of every day, each with another kind of state or another way from one to the next."""


def command(*args: str) -> list[str]:
    """The command line of `semisup` in this Python."""
    return [sys.executable, "-c", "from semisup.cli.app import main; main()", *args]


def write_recipe(folder: Path, *stages: str, steps: int = 12, data: Mapping[str, Any] = DIGITS) -> None:
    """Write `recipe.yaml`: the named stages of `STAGES` and `ALONE`, by default all of `STAGES`."""
    chosen = {name: (ALONE | STAGES)[name] for name in stages or STAGES}
    recipe = {
        "name": "faults",
        "seed": 3,
        "threads": 1,
        "checkpoint_seconds": 0,
        "log_every": 5,
        "data": dict(data),
        "model": {"name": "cnn", "width": 4},
        "tracking": {"mlflow": False},
        "stages": {n: s if "kind" in s else {"steps": steps, **s} for n, s in chosen.items()},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def environment() -> dict[str, str]:
    """What a process of its own gets; see `tests.nursery`."""
    return os.environ | ENVIRONMENT


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    """Complete events of one kind, as the run wrote them."""
    path = out / "events.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in found if event["event"] == kind]


def homes(out: Path) -> dict[str, Path]:
    """Stage -> the folder of the store in which a finished run's stage was trained."""
    content = json.loads((out / "result.json").read_text())
    return {stage["name"]: out.parent / ".semisup" / "stages" / stage["fingerprint"] for stage in content["stages"]}


def statuses(out: Path) -> dict[str, str]:
    """Stage -> trained, reused or resumed, of a finished run."""
    return {stage["name"]: stage["status"] for stage in json.loads((out / "result.json").read_text())["stages"]}


def tensors(out: Path) -> dict[str, bytes]:
    """The bytes of every file of tensors that a run left, by stage."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("*/*.safetensors"))}


def timeless(result: Path) -> dict[str, Any]:
    """`result.json` without what a clock measured, without where it is, and without how each stage came about."""
    content: dict[str, Any] = json.loads(result.read_text())
    del content["final"]["path"]
    for stage in content["stages"]:
        for key in ("seconds", "images_per_second", "status"):
            del stage[key]
    return content

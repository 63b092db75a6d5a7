"""A suite that runs in seconds: every kind of entry, two budgets, two draws, on digits."""

from __future__ import annotations

import copy
from typing import Any

from semisup.bench import Suite
from semisup.bench.suites.suite import parse_suite

PRETRAIN = ["stages.pretrain.steps=4", "stages.pretrain.batch={unlabeled: 32}"]
FINETUNED_STEPS = 6
SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"source": "digits"},
    "model": {"name": "cnn", "width": 4},
    "labels": [20, "10%"],
    "draws": 2,
    "baseline": "supervised",
    "targets": [0.5],
    "defaults": {"batch": {"labeled": 16, "unlabeled": 16}, "ema": 0.5, "steps": 6},
    "tracking": {"mlflow": False},
    "entries": {
        "supervised": {"train": {"method": {"name": "supervised"}}},
        "fixmatch": {"train": {"method": {"name": "fixmatch", "threshold": 0.0}, "steps": 4}},
        "finetuned": {
            "recipe": "digits/quickstart",
            "stage": "finetune",
            "overrides": [*PRETRAIN, f"stages.finetune.steps={FINETUNED_STEPS}"],
        },
        "logistic": {"baseline": {"name": "logistic_regression"}},
        "on_features": {
            "baseline": {"name": "label_spreading"},
            "features": {"recipe": "digits/quickstart", "stage": "pretrain", "overrides": PRETRAIN},
        },
        "full": {"train": {"method": {"name": "supervised"}}, "labels": ["all"]},
    },
}


def small(*overrides: str, only: tuple[str, ...] | None = None, **changes: Any) -> Suite:
    """The suite with some keys changed, and only some of its entries."""
    mapping = copy.deepcopy({**SMALL, **changes})
    if only is not None:
        mapping["entries"] = {name: mapping["entries"][name] for name in only}
    return parse_suite(mapping, overrides)

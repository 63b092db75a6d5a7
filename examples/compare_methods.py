"""Use 2, a benchmark: which method is worth its time at how many labels? Three of them on scikit-learn's digits.

python examples/compare_methods.py [OUT [KEY=VALUE...]]    # some minutes; the same command goes on after a stop
"""

from __future__ import annotations

import sys
from pathlib import Path

from semisup.bench.execution.benchmark import bench
from semisup.bench.suites.suite import parse_suite

SUITE = {
    "name": "three-methods",
    "data": {"source": "digits"},
    "model": {"name": "cnn", "width": 8},
    "labels": [20, 100],
    "draws": 3,
    "baseline": "labels-alone",
    "defaults": {"optimizer": {"name": "adamw", "lr": 2e-3}, "batch": {"labeled": 32, "unlabeled": 64}, "steps": 200},
    "entries": {
        "labels-alone": {"train": {"method": {"name": "supervised"}}},
        "pseudo-labels": {"train": {"method": {"name": "pseudo_label"}}},
        "mixmatch": {"train": {"method": {"name": "mixmatch", "ramp": 0.4}}},
    },
}


def main(out: str = "runs/three-methods", *overrides: str) -> None:
    """Run what is not finished yet, and show the tables."""
    bench(parse_suite(SUITE, overrides), out=out)
    print(Path(out, "leaderboard.md").read_text(encoding="utf-8"))


if __name__ == "__main__":  # its workers import this file
    main(*sys.argv[1:])

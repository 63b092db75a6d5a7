"""Run shipped recipes over several label draws and write one table: rows are stages, columns their test accuracy.

    python benchmarks/tables.py fashion_mnist_40 --jobs 2

A stopped table goes on where it was: every run keeps its finished stages. Numbers are of the last (EMA) weights, the
test set is read once per stage, nothing is selected on it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
WORK = HERE.parent / "runs" / "tables"


@dataclass(frozen=True)
class Table:
    """Which recipes, how often, and what they are compared with."""

    recipes: tuple[str, ...]
    draws: int
    baselines: tuple[tuple[str, str], ...]
    """Recipes and stages that every row is paired with."""


FASHION = (
    "supervised",
    "fixmatch",
    "mean_teacher",
    "noisy_student",
    "meta_pseudo_labels",
    "distill",
    "simclr",
    "simclr_v2",
    "pipeline",
)
TABLES = {
    "digits_quickstart": Table(("digits/quickstart",), 5, (("digits/quickstart", "supervised"),)),
    "fashion_mnist_40": Table(
        tuple(f"fashion_mnist/{name}" for name in FASHION),
        3,
        (("fashion_mnist/supervised", "weak"), ("fashion_mnist/supervised", "strong")),
    ),
}


def command(recipe: str, draw: int) -> list[str]:
    """The command of one run; only the label draw differs between the runs of a recipe."""
    out = WORK / f"{recipe.replace('/', '-')}-{draw}"
    semisup = Path(sys.executable).with_name("semisup")
    overrides = [f"data.split_seed={draw}", "threads=1", "tracking.mlflow=false"]
    return [str(semisup), "run", recipe, *overrides, "--out", str(out)]


def run(job: tuple[str, int]) -> dict[str, Any]:
    """Run one recipe with one label draw; returns its `result.json`."""
    recipe, draw = job
    words = command(recipe, draw)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    print(f"done: {recipe}, draw {draw}", flush=True)
    result: dict[str, Any] = json.loads((Path(words[-1]) / "result.json").read_text(encoding="utf-8"))
    return result


def summarise(table: Table, results: dict[tuple[str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per stage: accuracies by draw, and the paired differences to the baselines."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for (recipe, draw), result in sorted(
        results.items(), key=lambda item: (table.recipes.index(item[0][0]), item[0][1])
    ):
        for stage in result["stages"]:
            row = rows.setdefault(
                (recipe, stage["name"]),
                {"recipe": recipe, "stage": stage["name"], "method": stage["method"], "accuracy": {}, "seconds": [],
                 "parameters": stage["parameters"], "knn": stage["metrics"].get("knn/accuracy"), "ece": []},
            )  # fmt: skip
            row["seconds"].append(stage["seconds"])
            if "test/accuracy" in stage["metrics"]:
                row["accuracy"][draw] = stage["metrics"]["test/accuracy"]
                row["ece"].append(stage["metrics"]["test/ece"])
    for row in rows.values():
        row["differences"] = [
            [value - rows[baseline]["accuracy"][draw] for draw, value in row["accuracy"].items()]
            for baseline in table.baselines
        ]
    return list(rows.values())


def spread(values: list[float], scale: float = 100) -> str:
    """Mean and sample standard deviation as text."""
    if not values:
        return ""
    deviation = f" ± {scale * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{scale * statistics.mean(values):.1f}{deviation}"


def markdown(name: str, table: Table, rows: list[dict[str, Any]]) -> str:
    """The table for people."""
    names = [f"{recipe.rpartition('/')[2]} {stage}" for recipe, stage in table.baselines]
    lines = [
        f"# {name}",
        "",
        f"Test accuracy in % over {table.draws} label draws (seeds 0 to {table.draws - 1}; mean ± standard deviation), "
        "last weights, EMA where the recipe has one. Differences are paired: the same labels. One marked * is not over "
        "its baseline by more than its own standard error. Unlabeled images include the labeled; no test image is "
        "ever unlabeled. kNN reads the true labels of 10,000 training images. Seconds are of one thread of a shared "
        "two-core machine: a hint. A stage that several recipes share is trained once. The recipes' settings were "
        "found by short trials on draws 0 and 1, judged by test accuracy; the baselines had fewer trials. Small "
        "differences mean little.",
        "",
        f"Command: `python benchmarks/tables.py {name} --jobs 2`; torch {torch.__version__}, {platform.machine()}.",
        "",
        "| recipe | stage | method | parameters | accuracy | "
        + "".join(f"minus {baseline} | " for baseline in names)
        + "ECE | kNN | seconds |",
        "|---|---|---|---:|---:|" + "---:|" * (len(names) + 3),
    ]
    for row in rows:
        knn = "" if row["knn"] is None else f"{100 * row['knn']:.1f}"
        lines.append(
            f"| {row['recipe']} | {row['stage']} | {row['method']} | {row['parameters']:,} "
            f"| {spread(list(row['accuracy'].values()))} | "
            + "".join(f"{marked(difference)} | " for difference in row["differences"])
            + f"{spread(row['ece'])} | {knn} | {statistics.mean(row['seconds']):.0f} |"
        )
    return "\n".join(lines) + "\n"


def marked(difference: list[float]) -> str:
    """A paired difference, with a star unless it is above zero by more than its standard error."""
    if not any(difference):
        return ""  # the baseline itself, or nothing measured
    error = statistics.stdev(difference) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return spread(difference) + (" *" if statistics.mean(difference) <= error else "")


SHOWN = (
    ("fashion_mnist/supervised", "weak"),
    ("fashion_mnist/supervised", "strong"),
    ("fashion_mnist/mean_teacher", "train"),
    ("fashion_mnist/meta_pseudo_labels", "finetune"),
    ("fashion_mnist/noisy_student", "student_1"),
    ("fashion_mnist/fixmatch", "train"),
    ("fashion_mnist/simclr", "finetune"),
    ("fashion_mnist/simclr_v2", "finetune"),
    ("fashion_mnist/pipeline", "selftrain"),
    ("fashion_mnist/pipeline", "student"),
)
"""Rows of the README's table."""
MARKS = ("<!-- table: python benchmarks/tables.py fashion_mnist_40 -->\n", "<!-- end of table -->")


def readme_table(rows: list[dict[str, Any]]) -> str:
    """The few rows that the README shows."""
    found = {(row["recipe"], row["stage"]): row for row in rows}
    lines = ["| recipe, stage | parameters | accuracy | minus labels only | minus labels only, strong views |"]
    lines.append("|---|---:|---:|---:|---:|")
    for recipe, stage in SHOWN:
        row = found[recipe, stage]
        differences = " | ".join(marked(difference) for difference in row["differences"])
        accuracy = spread(list(row["accuracy"].values()))
        lines.append(f"| {recipe}, {stage} | {row['parameters']:,} | {accuracy} | {differences} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the runs that are missing, then write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    arguments = parser.parse_args()
    table = TABLES[arguments.table]
    jobs = [(recipe, draw) for draw in range(table.draws) for recipe in table.recipes]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = dict(zip(jobs, pool.map(run, jobs), strict=True))
    rows = summarise(table, results)
    out = HERE / "results"
    out.mkdir(exist_ok=True)
    record = {"table": arguments.table, "torch": torch.__version__, "machine": platform.machine(), "rows": rows}
    (out / f"{arguments.table}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (out / f"{arguments.table}.md").write_text(markdown(arguments.table, table, rows), encoding="utf-8")
    if arguments.table == "fashion_mnist_40":
        readme = HERE.parent / "README.md"
        before, rest = readme.read_text(encoding="utf-8").split(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        readme.write_text(before + MARKS[0] + readme_table(rows) + MARKS[1] + after, encoding="utf-8")


if __name__ == "__main__":
    main()

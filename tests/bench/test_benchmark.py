"""A suite from the command to its tables, on a real Dask cluster of two worker processes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from distributed import Client, LocalCluster

from semisup.bench.execution.benchmark import bench
from semisup.bench.results.rows import Row, read_rows
from semisup.bench.suites.suite import Suite
from semisup.errors import SemisupError
from semisup.tracking import replay
from tests import undrawn
from tests.bench.bench_small import FINETUNED_STEPS, PRETRAIN, small
from tests.nursery import Nursery


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Restored for the tests of other files: a cluster's nanny leaves in it what its workers are to inherit."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="module")
def scheduler() -> Iterator[Any]:
    """A scheduler of its own with two workers, as a person would start them; one is killed by a test."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50, memory_limit=0
    ) as cluster:
        with Client(cluster) as client:
            client.run(undrawn.replace, undrawn.BLANK)
        yield cluster


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, scheduler: Any) -> Path:
    """The small suite, run once; its second budget of everything is not."""
    folder = tmp_path_factory.mktemp("bench")
    bench(small(), out=folder / "small", scheduler=scheduler.scheduler_address, quiet=True)
    return folder


def rows(folder: Path) -> dict[tuple[str, str, int], Row]:
    return {(row.entry, row.labels, row.draw): row for row in read_rows(folder / "runs.csv")}


def test_every_run_is_a_row(shared: Path) -> None:
    found = rows(shared / "small")
    assert len(found) == 5 * 2 * 2 + 1
    assert {row.status for row in found.values()} == {"done"}
    for (_, labels, _), row in found.items():
        assert row.n_labels == {"20": 20, "10%": 144, "all": 1438}[labels]
        assert row.accuracy is not None and len(row.reliability) == 15 and len(row.per_class) == 10
        assert row.metrics["calibrated_seconds"] is None, "no key of the suite needs step times"
    assert found["finetuned", "20", 0].metrics["steps"] == 4 + FINETUNED_STEPS
    assert found["fixmatch", "20", 0].metrics["coverage"] is not None
    splits = {(labels, draw): set() for _, labels, draw in found}
    for (_, labels, draw), row in found.items():
        splits[labels, draw].add(row.split_hash)
    assert all(len(hashes) == 1 for hashes in splits.values()), "every method sees the same draws"


def test_tables_and_page_are_written(shared: Path) -> None:
    summary = json.loads((shared / "small" / "leaderboard.json").read_text())
    assert [entry["entry"] for entry in summary["entries"]] == list(small().entries)
    assert summary["saved"]["stages"] == 2 * 2 * 5 + 1 + 1 and summary["saved"]["stages_needed"] == 5 * 4 + 8 + 1
    assert summary["provenance"]["data hash"] and "semisup bench small" in summary["command"]
    text = (shared / "small" / "leaderboard.md").read_text()
    assert all(name in text for name in small().entries)
    assert "<html" in (shared / "small" / "report.html").read_text()


def test_a_second_command_runs_nothing_and_says_the_same(shared: Path, scheduler: Any) -> None:
    before = {row.entry + row.labels + str(row.draw): row for row in read_rows(shared / "small" / "runs.csv")}
    shown = bench(small(), out=shared / "small", dry_run=True, quiet=True)
    assert (shown["runs"], shown["stages_left"]) == (21, 0)
    bench(small(), out=shared / "small", scheduler=scheduler.scheduler_address, quiet=True)
    assert {row.entry + row.labels + str(row.draw): row for row in read_rows(shared / "small" / "runs.csv")} == before


def test_tables_of_another_command_are_replaced_with_a_word(
    shared: Path, scheduler: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = shared / "small" / "suite.json"
    own = facts.read_text()
    other = own.replace("semisup bench", "semisup bench x")
    for text, said in ((own, ""), (other, "`semisup bench x"), ("{", "`an unknown command`")):
        facts.write_text(text)
        bench(small(), out=shared / "small", scheduler=scheduler.scheduler_address, quiet=True)
        told = capsys.readouterr().err
        assert f"tables of {said}" in told if said else "tables of" not in told
        assert json.loads(facts.read_text())["command"] == json.loads(own)["command"]


def test_runs_that_a_changed_suite_no_longer_has_leave_with_a_word(
    shared: Path, scheduler: Any, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, suite = shared / "changed", tmp_path_factory.mktemp("suite") / "s.yaml"
    for labels, said in (("[20, 40]", ""), ("[20, 40]", ""), ("[20]", ": 1 of logistic")):
        suite.write_text(
            f"{{name: s, data: {{source: digits}}, labels: {labels}, draws: 1, tracking: {{mlflow: false}}, "
            "entries: {logistic: {baseline: {name: logistic_regression}}}}"
        )
        bench(suite, out=folder, scheduler=scheduler.scheduler_address, quiet=True)
        told = capsys.readouterr().err
        assert f"no longer in it leave them, and are kept{said}" in told if said else told == ""
    assert len(rows(folder)) == 1


def test_more_draws_run_only_what_is_new(shared: Path) -> None:
    shown = bench(small("draws=3"), out=shared / "small", dry_run=True, quiet=True)
    assert (shown["runs"], shown["stages_left"]) == (31, 10), "the pretraining serves the new draw too"


def test_local_workers_share_the_folder_of_a_recipe(nursery: Nursery, tmp_path: Path) -> None:
    """Own workers; what `semisup run` has trained below the same folder is not trained again."""
    words = ["digits/quickstart", "model.width=4", "threads=1", "tracking.mlflow=false", *PRETRAIN]
    words += [f"stages.{stage}.steps=1" for stage in ("supervised", "finetune", "selftrain", "student")]
    code, output = nursery.run(tmp_path, "run", *words, "--out", "run")
    assert code == 0, output
    suite = small("labels=[20]", "draws=1", only=("supervised", "finetuned"))
    shown = bench(suite, out=tmp_path / "small", dry_run=True, quiet=True)
    assert shown["stages_left"] == 2
    summary = bench(suite, out=tmp_path / "small", workers=1, quiet=True)
    assert [cell["accuracy"]["n"] for cell in summary["cells"]] == [1, 1]
    stages = {path.name for path in (tmp_path / ".semisup" / "stages").iterdir()}
    assert {row.fingerprint for row in read_rows(tmp_path / "small" / "runs.csv")} <= stages


def failing() -> Suite:
    suite = small("labels=[20]", only=("supervised", "fixmatch", "finetuned"))
    suite.entries["fixmatch"].train["optimizer"] = {"lr": 1.0e18}
    return suite


def test_an_oracle_is_asked_for(shared: Path, tmp_path: Path, scheduler: Any) -> None:
    assert all(row.metrics["oracle_accuracy"] is None for row in read_rows(shared / "small" / "runs.csv"))
    assert "oracle" not in (shared / "small" / "leaderboard.md").read_text()
    suite = small("labels=[20]", "oracle_every=2", only=("supervised",))
    bench(suite, out=tmp_path / "small", scheduler=scheduler.scheduler_address, quiet=True)
    for row in read_rows(tmp_path / "small" / "runs.csv"):
        best = row.metrics["oracle_accuracy"]
        assert row.accuracy is not None and best is not None and best >= row.accuracy
    assert "selected on the test set" in (tmp_path / "small" / "leaderboard.md").read_text()


def test_a_failing_run_stops_no_other(tmp_path: Path, scheduler: Any) -> None:
    summary = bench(failing(), out=tmp_path / "small", scheduler=scheduler.scheduler_address, quiet=True)
    found = rows(tmp_path / "small")
    assert {key[0] for key, row in found.items() if row.status == "failed"} == {"fixmatch"}
    assert sum(row.status == "done" for row in found.values()) == 4
    assert "not finite" in found["fixmatch", "20", 0].error
    assert len(summary["failures"]) == 2 and "not finite" in (tmp_path / "small" / "leaderboard.md").read_text()


def test_a_search_tries_equally_often_and_keeps_the_best(tmp_path: Path, scheduler: Any) -> None:
    searched = {
        "supervised": {
            "train": {"method": {"name": "supervised"}, "optimizer": {"name": "adamw"}, "steps": 30},
            "search": {"optimizer.lr": [1e-6, 2e-6, 0.01]},
        },
        "logistic": {"baseline": {"name": "logistic_regression"}, "search": {"C": [1e-9, 1e-8, 1.0]}},
    }
    suite = small(labels=[100], draws=2, entries=searched, search={"trials": 3, "validation": 0.3})
    bench(suite, out=tmp_path / "small", scheduler=scheduler.scheduler_address, quiet=True)
    found = rows(tmp_path / "small")
    assert len(found) == 4, "trials are no rows"
    assert {row.n_labels for row in found.values()} == {100}, "validation labels are charged to the budget"
    assert [row.chosen for (entry, _, _), row in found.items() if entry == "supervised"] == ["optimizer.lr=0.01"] * 2
    assert {row.chosen for (entry, _, _), row in found.items() if entry == "logistic"} == {"C=1.0"}
    log = [json.loads(line) for line in (tmp_path / "small" / "events.jsonl").read_text().splitlines()]
    started = [event["stage"] for event in log if event["event"] == "stage_start"]
    assert sum("trial" in name for name in started) == 3 * 4 and len(started) == 16


def test_probe_and_knn_stages_are_evaluated(tmp_path: Path, scheduler: Any) -> None:
    """Few-label results of frozen features: one pretraining for all, and a search chooses by validation labels."""
    recipe = tmp_path / "judges.yaml"
    recipe.write_text(
        """
name: judges
stages:
  pretrain: {method: {name: simclr}, batch: {unlabeled: 32}, steps: 4}
  probe: {kind: probe, of: pretrain}
  knn: {kind: knn, of: pretrain, k: 5}
  every: {kind: knn, of: pretrain, bank: all}
"""
    )
    entries: dict[str, Any] = {name: {"recipe": str(recipe), "stage": name} for name in ("probe", "knn", "every")}
    suite = small(entries=entries, baseline="probe")
    summary = bench(suite, out=tmp_path / "small", scheduler=scheduler.scheduler_address, quiet=True)
    assert summary["saved"]["stages"] == 1 + 4 + 4 + 1, "the pretraining and every label's kNN serve all budgets"
    knn: dict[str, set[float | None]] = {name: set() for name in entries}
    for (entry, labels, _), row in rows(tmp_path / "small").items():
        assert (row.status, row.method) == ("done", "probe" if entry == "probe" else "knn")
        assert row.n_labels == {"20": 20, "10%": 144}[labels]
        assert (row.accuracy is None) == (entry == "every")
        knn[entry].add(row.metrics["knn"])
        assert row.metrics["probe"] is None and row.parameters > 0 and row.metrics["steps"] == 4
        assert len(row.reliability) == (0 if entry == "every" else 15)
    assert knn["probe"] == knn["knn"] and len(knn["probe"]) == 1 and None not in knn["probe"], "what the encoder said"
    assert len(knn["every"]) == 1 and None not in knn["every"]
    entries["probe"]["search"] = {"stages.pretrain.optimizer.lr": [0.1, 0.01]}
    entries["knn"]["search"] = {"stages.knn.k": [1, 3]}
    del entries["every"]
    searched = small(entries=entries, baseline="probe", labels=[100], search={"trials": 2, "validation": 0.3})
    bench(searched, out=tmp_path / "search", scheduler=scheduler.scheduler_address, quiet=True)
    chosen = [row.chosen for row in rows(tmp_path / "search").values()]
    assert len(chosen) == 4 and all("=" in text for text in chosen)
    entries["every"] = {"recipe": str(recipe), "stage": "every", "search": {"stages.every.k": [1, 3]}}
    searched = small(entries=entries, baseline="probe", labels=[100], search={"trials": 2, "validation": 0.3})
    with pytest.raises(SemisupError, match="every: search: stage 'every' classifies nothing"):
        bench(searched, out=tmp_path / "wrong", dry_run=True, quiet=True)


def test_everything_is_in_mlflow(tmp_path: Path, scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent run for the suite, a child for every run, the failed ones too."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/tracked.db"
    bench(failing(), out=tmp_path / "small", scheduler=scheduler.scheduler_address, quiet=True)
    replay(tmp_path / "small", uri)
    client = MlflowClient(tracking_uri=uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "semisup"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert parent.info.run_name == "small" and len(children) == 6
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    child = children["supervised 20 draw 1"]
    (row,) = [r for r in read_rows(tmp_path / "small" / "runs.csv") if (r.entry, r.draw) == ("supervised", 1)]
    assert child.data.metrics["test/accuracy"] == row.accuracy
    assert child.data.params["labels"] == "20" and child.info.status == "FINISHED"
    assert children["fixmatch 20 draw 0"].info.status == "FAILED"
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert names == {"runs.csv", "suite.json", "leaderboard.json", "leaderboard.md", "report.html"}


@pytest.mark.slow
def test_a_killed_worker_costs_its_run_in_flight_only(tmp_path: Path, scheduler: Any) -> None:
    suite = small("labels=[20]", "draws=2", "defaults.steps=400", only=("supervised",))
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(bench, suite, out=tmp_path / "small", scheduler=scheduler.scheduler_address, quiet=True)
        victim = busy_worker(scheduler)
        assert victim != os.getpid()
        os.kill(victim, signal.SIGKILL)
        done.result(120)
    found = rows(tmp_path / "small")
    assert {row.status for row in found.values()} == {"done"} and len(found) == 2
    with Client(scheduler) as client:
        assert victim not in client.run(os.getpid).values(), "it had died, and its nanny has started another"


def busy_worker(cluster: Any) -> int:
    """Process id of a worker that is at a stage."""
    with Client(cluster) as client:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for address, tasks in client.processing().items():
                if any("train" in str(task) for task in tasks):
                    return int(client.run(os.getpid, workers=[address])[address])
            time.sleep(0.05)
    raise AssertionError("no worker has become busy")


def test_no_place_and_too_many_workers_are_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for dry_run in (True, False):
        with pytest.raises(SemisupError, match=r"out: .*file cannot be a folder, .*file is a file"):
            bench(small("draws=1"), out=tmp_path / "file", dry_run=dry_run, quiet=True)
        with pytest.raises(SemisupError, match=r"--workers: must be at most \d+, not 100000"):
            bench(small("draws=1"), out=tmp_path / "x", dry_run=dry_run, workers=100_000, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for name in ("runs.csv", "report.html", "step_times.json"):
        (tmp_path / name / name).mkdir(parents=True)
        with pytest.raises(SemisupError, match=f"out: .*{name} is a folder, where a file is to be written"):
            bench(small("draws=1"), out=tmp_path / name, quiet=True)


def test_nobody_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semisup.bench.execution.cluster.CONNECT_SECONDS", 1)
    with pytest.raises(SemisupError, match=r"--scheduler tcp://127\.0\.0\.1:1: nobody answers there"):
        bench(small("draws=1"), scheduler="tcp://127.0.0.1:1", out=tmp_path / "x", quiet=True)
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", silence_logs=50) as empty:
        address = empty.scheduler_address
        with pytest.raises(SemisupError, match=f"--scheduler {address}: has no workers; start some with: dask worker"):
            bench(small("draws=1"), scheduler=address, out=tmp_path / "x", quiet=True)


@pytest.mark.slow
def test_tables_are_there_while_the_suite_runs_and_a_lost_scheduler_is_no_failed_run(
    tmp_path: Path, scheduler: Any
) -> None:
    """The first run is in the tables while the second goes on; then the command ends with a message.

    The last test here: its cluster is closed.
    """
    suite = small("labels=[20]", "draws=1", only=("supervised", "logistic"))
    suite.entries["supervised"].train["steps"] = 1_000_000
    table = tmp_path / "small" / "runs.csv"
    seen: list[str] = []

    def watch() -> None:
        deadline = time.monotonic() + 120
        while not table.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        seen.extend(row.entry for row in read_rows(table))
        scheduler.close()

    killer = threading.Thread(target=watch)
    killer.start()
    try:
        with pytest.raises(SemisupError, match="the connection to the Dask scheduler was lost"):
            bench(suite, out=tmp_path / "small", scheduler=scheduler.scheduler_address, quiet=True)
    finally:
        killer.join()
    assert seen == ["logistic"]
    assert [row.entry for row in read_rows(table)] == ["logistic"]

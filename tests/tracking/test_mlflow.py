"""Events reach a real MLflow, exactly once, whatever dies on the way."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semisup.errors import SemisupError
from semisup.stages.artifact import finish
from semisup.tracking import EventLog, MlflowUploader, replay, resolve_uri
from tests.nursery import Nursery


class Server:
    """``mlflow server`` on loopback, read back through its REST API."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        extra = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=os.environ | extra, stdout=output, stderr=output, start_new_session=True
            )
        wait_for(self.answers, 60)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self, how: signal.Signals) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, how)
            self.process.wait(20)
            self.process = None

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/2.0/{path}?{urllib.parse.urlencode(query)}", timeout=20) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/api/2.0/{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def runs(self, experiment: str) -> list[dict[str, Any]]:
        """All runs of an experiment, oldest first, with params, tags and metrics as plain dicts."""
        try:
            found = self.get("mlflow/experiments/get-by-name", experiment_name=experiment)
        except urllib.error.HTTPError as error:
            error.close()
            return []
        body = {"experiment_ids": [found["experiment"]["experiment_id"]], "max_results": 1000}
        runs = self.post("mlflow/runs/search", body).get("runs", [])
        for run in runs:
            for kind in ("params", "tags", "metrics"):
                run[kind] = {item["key"]: item["value"] for item in run["data"].get(kind, [])}
        return sorted(runs, key=lambda run: (run["info"]["start_time"], "mlflow.parentRunId" in run["tags"]))

    def history(self, run: dict[str, Any], key: str) -> list[tuple[int, float]]:
        answer = self.get("mlflow/metrics/get-history", run_id=run["info"]["run_id"], metric_key=key)
        return sorted((int(point.get("step", 0)), float(point["value"])) for point in answer.get("metrics", []))

    def artifact(self, run: dict[str, Any], path: str) -> bytes:
        root = run["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/")
        with urllib.request.urlopen(
            f"{self.url}/api/2.0/mlflow-artifacts/artifacts/{root}/{path}", timeout=20
        ) as answer:
            return bytes(answer.read())


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow_server"))
    try:
        server.start()
        yield server
    finally:
        server.kill(signal.SIGKILL)


@pytest.fixture(autouse=True)
def no_configured_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def write_run(folder: Path, steps: int = 5, end: bool = True) -> EventLog:
    log = EventLog(folder)
    log.run_start("recipe", {"seed": 1}, {})
    log.stage_start("train", {"lr": 0.1}, {})
    for step in range(steps):
        log.metrics("train", step, {"loss": 1.0 / (step + 1)})
    if end:
        log.stage_end("train", "trained", {"test/accuracy": 0.75})
        log.run_end("finished")
    return log


def test_a_run_is_read_back_from_a_server(server: Server, tmp_path: Path) -> None:
    warnings: list[str] = []
    uploader = MlflowUploader(tmp_path, server.url, "whole", warnings.append)
    log = EventLog(tmp_path)
    log.run_start(
        "digits/quickstart",
        {"data": {"source": "digits", "labels": "10%"}, "seed": 3},
        {"data (hash)": "abc", "long": "x" * 9000},
    )
    log.stage_start("pretrain", {f"p{i}": i for i in range(250)}, {"fingerprint": "f00d"})
    for step in range(1200):  # more metrics than one call may carry
        log.metrics("pretrain", step, {"loss": step / 10, "images/s": 5.0})
    log.metrics("pretrain", 1200, {"bad": math.nan, "high": math.inf, "low": -math.inf})
    log.metrics(None, 0, {"students": 2})
    (tmp_path / "plot.txt").write_text("a plot")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "deep.txt").write_text("deep")
    log.artifact("pretrain", tmp_path / "plot.txt", "plots")
    log.artifact(None, tmp_path / "plot.txt", "")
    log.artifact(None, tmp_path / "sub", "folders")
    log.stage_end("pretrain", "trained", {"test/accuracy": 0.75})
    log.stage_start("student", {"steps": 400}, {})  # killed after its training: nothing but its end is told again
    log.stage_end("student", "failed", {"test/accuracy": 0.5})
    log.run_end("failed")
    assert uploader.close(60)
    assert warnings == []

    parent, pretrain, student = server.runs("whole")
    assert parent["info"]["run_name"] == "digits/quickstart"
    assert parent["params"] == {"data.source": "digits", "data.labels": "10%", "seed": "3"}
    assert parent["tags"]["data _hash_"] == "abc"
    assert parent["tags"]["long"] == "x" * 5000
    assert parent["metrics"]["students"] == 2
    assert [run["info"]["status"] for run in (parent, pretrain, student)] == ["FAILED", "FINISHED", "FAILED"]
    assert [run["info"]["run_name"] for run in (pretrain, student)] == ["pretrain", "student"]
    assert {run["tags"]["mlflow.parentRunId"] for run in (pretrain, student)} == {parent["info"]["run_id"]}
    assert pretrain["tags"]["fingerprint"] == "f00d" and pretrain["tags"]["semisup.status"] == "trained"
    assert pretrain["params"] == {f"p{i}": str(i) for i in range(250)}
    assert server.history(pretrain, "loss") == [(step, step / 10) for step in range(1200)]
    assert server.history(pretrain, "test/accuracy") == [(1200, 0.75)]  # filed at the last step, so it is "latest"
    assert server.history(student, "test/accuracy") == [(400, 0.5)]
    assert math.isnan(server.history(pretrain, "bad")[0][1])
    assert server.history(pretrain, "high")[0][1] > 1e308 and server.history(pretrain, "low")[0][1] < -1e308
    assert pretrain["info"]["end_time"] >= pretrain["info"]["start_time"]
    assert server.artifact(pretrain, "plots/plot.txt") == b"a plot"
    assert server.artifact(parent, "plot.txt") == b"a plot"
    assert server.artifact(parent, "folders/sub/deep.txt") == b"deep"


def test_delivering_twice_changes_nothing(server: Server, tmp_path: Path) -> None:
    """Losing the cursor is what a kill between any call and the saving of the cursor amounts to."""
    log = write_run(tmp_path, end=False)
    first = replay(tmp_path, server.url)
    assert (first.runs, first.stages, first.metrics) == (1, 1, 5)
    before = server.runs("semisup")
    old = json.loads((tmp_path / "mlflow.json").read_text())
    for offset in (0, len(log.path.read_bytes().splitlines(keepends=True)[0])):
        # Killed after the run (then: the stage) was created on the server, before the cursor said so.
        (writer,) = old["writers"]
        cursor = old | {"offset": offset, "open": [old["run"]] if offset else []}
        cursor["writers"] = {writer: {"run": old["run"]}} if offset else {}
        cursor["run"] = old["run"] if offset else None
        (tmp_path / "mlflow.json").write_text(json.dumps(cursor))
        replay(tmp_path, server.url)
        after = server.runs("semisup")
        assert after == before
        assert server.history(after[1], "loss") == [(step, 1.0 / (step + 1)) for step in range(5)]
    again = replay(tmp_path, server.url)
    assert (again.runs, again.stages, again.metrics) == (0, 0, 0)


def write_model(folder: Path) -> EventLog:
    """A run with a stage that has a model, data sets and a result."""
    stage = folder / "train"
    stage.mkdir()
    np.save(stage / "example.npy", np.zeros((2, 8, 8, 1), np.uint8))
    (stage / "model.json").write_text(json.dumps({"classes": ["bag", "boot"], "spec": {}}))
    fields = {"name": "train", "method": "m", "fingerprint": "f00d", "steps": 1, "seconds": 1.0, "parameters": 1}
    finish(stage, ["example.npy", "model.json"], {**fields, "metrics": {}})
    log = EventLog(folder)
    log.run_start("recipe", {}, {})
    for split in ("training", "test"):
        log.dataset(None, "digits", split, "ab" * 32, 1438, {"split_hash": "cd" * 32})
    log.stage_start("train", {}, {})
    log.model("train", stage, stage / "example.npy", 2)
    log.stage_end("train", "trained", {"test/accuracy": 0.75})
    log.metrics(None, 0, {"test/accuracy": 0.75})
    log.final_model("train")
    log.run_end("finished")
    return log


def test_models_and_data_arrive_once_whatever_is_sent_again(server: Server, tmp_path: Path) -> None:
    write_model(tmp_path)
    sent = replay(tmp_path, server.url)
    assert sent.models == 1 and sent.refused == []

    def arrived() -> tuple[list[Any], list[Any]]:
        runs = [run for run in server.runs("semisup") if "test/accuracy" in run["metrics"] and run.get("outputs")]
        body = {"experiment_ids": [runs[0]["info"]["experiment_id"]]}
        models = server.post("mlflow/logged-models/search", body)["models"]
        for model in models:
            del model["info"]["last_updated_timestamp_ms"]
        return models, [[run["outputs"], run.get("inputs"), run["metrics"]] for run in runs]

    before = arrived()
    (model,), (parent, child) = before
    assert model["info"]["name"] == "train" and model["info"]["status"] == "LOGGED_MODEL_READY"
    assert [metric["value"] for metric in model["data"]["metrics"]] == [0.75]
    assert [one["model_id"] for one in parent[0]["model_outputs"]] == [model["info"]["model_id"]]
    assert [one["model_id"] for one in child[0]["model_outputs"]] == [model["info"]["model_id"]]
    assert {one["dataset"]["name"] for one in parent[1]["dataset_inputs"]} == {"digits-training", "digits-test"}
    cursor = json.loads((tmp_path / "mlflow.json").read_text())
    (tmp_path / "mlflow.json").write_text(json.dumps(cursor | {"offset": 0, "open": [], "writers": {}, "run": None}))
    replay(tmp_path, server.url)
    assert arrived() == before


def test_killed_run_is_marked_and_continued(server: Server, tmp_path: Path) -> None:
    uploader = MlflowUploader(tmp_path, server.url, "killed", pytest.fail)
    write_run(tmp_path, end=False)
    assert uploader.close(30)
    assert [run["info"]["status"] for run in server.runs("killed")] == ["RUNNING", "RUNNING"]

    uploader = MlflowUploader(tmp_path, server.url, "killed", pytest.fail)
    write_run(tmp_path)
    assert uploader.close(30)
    old, old_stage, new, new_stage = server.runs("killed")
    assert [old["info"]["status"], old_stage["info"]["status"]] == ["KILLED", "KILLED"]
    assert [new["info"]["status"], new_stage["info"]["status"]] == ["FINISHED", "FINISHED"]
    assert new["tags"]["semisup.continues"] == old["info"]["run_id"]
    assert old["info"]["end_time"] <= new["info"]["start_time"]
    assert "semisup.continues" not in old["tags"]

    uploader = MlflowUploader(tmp_path, server.url, "killed", pytest.fail)
    write_run(tmp_path)  # the one before ended properly
    assert uploader.close(30)
    assert "semisup.continues" not in server.runs("killed")[4]["tags"]


def delivered(folder: Path) -> bool:
    """Whether the upload's cursor stands at the end of the folder's events."""
    cursor = json.loads((folder / "mlflow.json").read_text(encoding="utf-8"))
    return bool(cursor["offset"] == (folder / "events.jsonl").stat().st_size)


def test_server_killed_mid_run(server: Server, tmp_path: Path) -> None:
    left, stays = tmp_path / "left", tmp_path / "stays"
    logs = [write_run(folder, steps=1, end=False) for folder in (left, stays)]
    warnings: list[str] = []
    uploader = MlflowUploader(left, server.url, "left", warnings.append, retry_seconds=0.2)
    other = MlflowUploader(stays, server.url, "stays", lambda sentence: None, retry_seconds=0.2)
    # Step 0 too must be there, and known to be: runs exist a moment before their first metrics.
    wait_for(lambda: all(delivered(folder) for folder in (left, stays)), 30)
    assert len(server.runs("left")) == 2 and len(server.runs("stays")) == 2
    server.kill(signal.SIGKILL)
    try:
        seconds = []
        for step in range(1, 600):
            for log in logs:
                start = time.perf_counter()
                log.metrics("train", step, {"loss": 1.0 / (step + 1)})
                seconds.append(time.perf_counter() - start)
        assert sorted(seconds)[-3] < 0.1  # a busy machine may stop us for that long once or twice in 1200 calls
        wait_for(lambda: warnings, 20)
        time.sleep(1.5)  # several more attempts
        assert len(warnings) == 1
        assert f"MLflow at {server.url} does not answer" in warnings[0]
        assert f"semisup track {left}" in warnings[0] and "\n" not in warnings[0]
        logs[0].stage_end("train", "trained", {})
        logs[0].run_end("finished")
        start = time.perf_counter()
        assert not uploader.close(20)
        assert time.perf_counter() - start < 3
        assert len(warnings) == 1
        with pytest.raises(SemisupError, match=f"MLflow at {server.url} does not answer"):
            replay(left, server.url)
    finally:
        server.start()
    expected = [(step, 1.0 / (step + 1)) for step in range(600)]
    # The uploader that is still running notices by itself, within the same run.
    wait_for(lambda: len(server.history(server.runs("stays")[1], "loss")) == 600, 30)
    assert server.history(server.runs("stays")[1], "loss") == expected
    logs[1].run_end("finished")
    assert other.close(20)
    # The one that was closed left the rest for a replay.
    assert replay(left, server.url).metrics == 599
    runs = server.runs("left")
    assert len(runs) == 2 and server.history(runs[1], "loss") == expected
    assert [run["info"]["status"] for run in runs] == ["FINISHED", "FINISHED"]
    assert replay(left, server.url).metrics == 0


def test_silent_server_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """One that takes the connection and never answers: the worst kind, for only a timeout ends it."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(30)
        uploader = MlflowUploader(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}", "e", lambda sentence: None)
        write_run(tmp_path)
        connection, _ = silent.accept()
        with connection:
            start = time.perf_counter()
            assert not uploader.close(0.5)
            assert 0.5 <= time.perf_counter() - start < 1.0
    wait_for(lambda: not uploader._thread.is_alive(), 20)


def test_what_can_never_be_delivered_is_named_and_passed_over(server: Server, tmp_path: Path) -> None:
    warnings: list[str] = []
    log = EventLog(tmp_path)
    log.run_start("recipe", {}, {})
    (tmp_path / "gone.txt").write_text("x")
    log.artifact(None, tmp_path / "gone.txt", "")
    (tmp_path / "gone.txt").unlink()
    log.metrics(None, 0, {"loss": 1.0})
    uploader = MlflowUploader(tmp_path, server.url, "refused", warnings.append)
    wait_for(lambda: any(run["metrics"] for run in server.runs("refused")), 30)
    assert len(warnings) == 1
    assert "gone.txt, which is left out: it is no longer there" in warnings[0]
    (run,) = server.runs("refused")
    assert run["metrics"] == {"loss": 1.0}

    server.post("mlflow/runs/delete", {"run_id": run["info"]["run_id"]})  # as somebody may do in the browser
    log.metrics(None, 1, {"loss": 1.0})
    log.metrics(None, 2, {"loss": 1.0})
    log.run_start("next", {}, {})
    log.run_end("finished")
    assert uploader.close(30)
    assert "metrics of run" in warnings[1] and "must be in the 'active' state" in warnings[1]
    assert [run["info"]["run_name"] for run in server.runs("refused")] == ["next"]


def test_the_default_database_keeps_to_its_folder(nursery: Nursery, tmp_path: Path) -> None:
    """Two processes at once, in a folder of their own: one database, nothing printed, nothing in the current folder."""
    root, cwd = tmp_path / "all runs", tmp_path / "cwd"
    root.mkdir()
    cwd.mkdir()
    code = (
        "import sys; from pathlib import Path\n"
        "from semisup.tracking import EventLog, MlflowUploader, resolve_uri\n"
        "root = Path(sys.argv[1]); folder = root / sys.argv[2]\n"
        "uploader = MlflowUploader(folder, resolve_uri(root), 'shared', print)\n"
        "log = EventLog(folder); log.run_start(sys.argv[2], {}, {}); log.metrics(None, 0, {'a': 1.0})\n"
        "log.artifact(None, log.path, ''); log.run_end('finished')\n"
        "sys.exit(0 if uploader.close(60) else 3)\n"
    )
    processes = [nursery.start(cwd, str(root), name, code=code, log=tmp_path / name) for name in ("one", "two")]
    assert [process.wait() for process in processes] == [0, 0]
    assert [process.log.read_text() for process in processes] == ["", ""]
    assert list(cwd.iterdir()) == []
    assert {path.name for path in root.iterdir()} == {"mlflow.db", "mlflow.db.lock", "mlartifacts", "one", "two"}

    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as database:
        locations = dict(database.execute("SELECT name, artifact_location FROM experiments").fetchall())
        names = {name for (name,) in database.execute("SELECT name FROM runs")}
    artifacts = (root / "mlartifacts").as_uri()
    assert locations == {"Default": f"{artifacts}/0", "shared": artifacts}
    assert names == {"one", "two"}
    files = sorted(path.name for path in (root / "mlartifacts").rglob("*") if path.is_file())
    assert files == ["events.jsonl", "events.jsonl"]


def test_another_or_an_emptied_store_gets_everything(server: Server, tmp_path: Path) -> None:
    write_run(tmp_path)
    assert replay(tmp_path, server.url).metrics == 6
    assert replay(tmp_path, server.url).metrics == 0
    other = f"http://localhost:{server.port}"  # another address: nothing is known to be there
    sent = replay(tmp_path, other)
    assert str(sent) == f"sent to http://localhost:{server.port}: 1 runs, 1 stages, 6 metrics, 0 artifacts, 0 models"
    cursor = json.loads((tmp_path / "mlflow.json").read_text())
    (tmp_path / "mlflow.json").write_text(json.dumps(cursor | {"run": "0" * 32}))  # a run the store no longer has
    assert replay(tmp_path, other).metrics == 6
    assert replay(tmp_path, other).metrics == 0


def test_replay_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SemisupError, match=r"no events\.jsonl in this folder"):
        replay(tmp_path)
    EventLog(tmp_path).run_start("a", {}, {})
    with pytest.raises(SemisupError, match="the MLflow URI must be given"):
        replay(tmp_path)
    with socket.socket() as taken:  # bound, not listening: refuses every connection, and nobody else can take it
        taken.bind(("127.0.0.1", 0))
        uri = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SemisupError, match=r"MLflow at http://user@127\.0\.0\.1:\d+ does not answer") as caught:
            replay(tmp_path, uri)
    assert "secret" not in str(caught.value)
    assert not MlflowUploader(tmp_path / "run", uri, "e", lambda sentence: None).close(20)
    assert "secret" not in (tmp_path / "run" / "mlflow.json").read_text()
    with pytest.raises(SemisupError, match="does not take the run's records"):
        replay(tmp_path, "no-such-scheme://x")
    (tmp_path / "mlflow.json").write_text("{}")
    with pytest.raises(SemisupError, match=r"mlflow\.json: not a record of uploads"):
        replay(tmp_path)


def test_a_key_that_mlflow_does_not_take_costs_no_other(server: Server, tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.run_start("keys", {"k" * 400: 1, "": 2, "seed": 3}, {"t" * 400: "x"})
    log.run_end("finished")
    assert replay(tmp_path, server.url).refused == []
    (run,) = [run for run in server.runs("semisup") if run["info"]["run_name"] == "keys"]
    assert run["params"] == {"k" * 250: "1", "_": "2", "seed": "3"}


def test_a_deleted_experiment_is_told_and_gets_everything_once_it_is_back(server: Server, tmp_path: Path) -> None:
    write_run(tmp_path)
    assert replay(tmp_path, server.url).runs == 1
    write_run(tmp_path)
    found = server.get("mlflow/experiments/get-by-name", experiment_name="semisup")["experiment"]
    number = {"experiment_id": found["experiment_id"]}
    server.post("mlflow/experiments/delete", number)
    with pytest.raises(SemisupError, match=r"experiment 'semisup' was deleted there; restore it by `mlflow exper"):
        replay(tmp_path, server.url)
    server.post("mlflow/experiments/restore", number)
    assert replay(tmp_path, server.url).runs == 1


def test_an_artifact_store_with_errors_of_its_own_holds_the_delivery_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ForeignError(Exception):
        """As botocore's, which are no OSErrors."""

    def refuse(*args: object) -> None:
        raise ForeignError("An error occurred (AccessDenied)\nmore")

    log = write_run(tmp_path, end=False)
    log.artifact(None, log.path, "")
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_artifact", refuse)
        with pytest.raises(SemisupError, match=r"records \(its artifact store: An error occurred \(AccessDenied\)\)"):
            replay(tmp_path, server.url)
        warnings: list[str] = []
        assert not MlflowUploader(tmp_path, server.url, "semisup", warnings.append).close(30)
        assert len(warnings) == 1 and "AccessDenied" in warnings[0] and "broken off" not in warnings[0]
    assert replay(tmp_path, server.url).artifacts == 1


def test_replay_leaves_a_folder_at_work_alone(server: Server, tmp_path: Path) -> None:
    uploader = MlflowUploader(tmp_path, server.url, "busy", pytest.fail)
    write_run(tmp_path)
    wait_for((tmp_path / "mlflow.json.lock").exists, 5)
    time.sleep(0.2)
    with pytest.raises(SemisupError, match="a running process is already sending"):
        replay(tmp_path, server.url)
    assert uploader.close(60)
    assert replay(tmp_path, server.url).runs == 0


def test_the_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert resolve_uri(tmp_path) == "http://tracker:5000"

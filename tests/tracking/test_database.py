"""The database next to the runs: whole or not there, whatever the folder is called; nothing is sent unasked."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from pathlib import Path

import pytest

from semisup.errors import SemisupError
from semisup.tracking import EventLog, MlflowUploader, replay, resolve_uri
from semisup.tracking.database import absolute, database_path, database_uri
from semisup.tracking.delivery import Cursor


@pytest.fixture(autouse=True)
def no_configured_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def run_in(folder: Path) -> None:
    log = EventLog(folder)
    log.run_start(folder.name, {}, {})
    log.metrics(None, 0, {"a": 1.0})
    log.artifact(None, log.path, "")
    log.run_end("finished")


def rows(database: Path, query: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b", "a b", "50%", "ä"])
def test_a_path_is_not_pasted_into_a_uri(name: str, tmp_path: Path) -> None:
    from sqlalchemy.engine import make_url

    path = tmp_path / name / "m.db"
    assert database_path(database_uri(path)) == path
    assert database_path(absolute(database_uri(path) + "?timeout=5")) == path
    assert make_url(database_uri(path) + "?timeout=5").database == str(path)


@pytest.mark.parametrize(
    "uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"]
)
def test_a_database_in_memory_is_refused(uri: str) -> None:
    with pytest.raises(SemisupError, match="in memory ends with the process"):
        database_path(absolute(uri))


def test_two_new_databases_at_once_next_to_half_made_ones(tmp_path: Path) -> None:
    """In folders whose names mean something in a URI: next to what a kill left, then and now."""
    roots = [tmp_path / "a?b", tmp_path / "a%20b"]
    for root in roots:
        root.mkdir()
    with contextlib.closing(sqlite3.connect(roots[0] / "mlflow.db")) as broken:
        broken.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT)")
        broken.execute("CREATE TABLE runs (run_uuid TEXT)")
    (roots[1] / ".mlflow.db.123.tmp").write_bytes(b"half")
    warnings: list[str] = []

    def track(root: Path) -> None:
        uploader = MlflowUploader(root / "run", resolve_uri(root), "e", warnings.append)
        run_in(root / "run")
        assert uploader.close(300)

    threads = [threading.Thread(target=track, args=(root,)) for root in roots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings == []
    for root in roots:
        assert rows(root / "mlflow.db", "SELECT name, status FROM runs") == [("run", "FINISHED")]
        assert len(list((root / "mlartifacts").rglob("events.jsonl"))) == 1
    assert (roots[0] / "mlflow.db.half-made").exists()
    assert not list(roots[1].glob(".*.tmp"))
    astray(roots[1])


def astray(root: Path) -> None:
    """Two processes that write at once, and one whose beginning is lost: each metric is with its own run.

    Part of the test above, for the sake of the seconds that a database takes.
    """
    folder = root / "both"
    one, two = EventLog(folder), EventLog(folder)
    one.run_start("one", {}, {})
    one.stage_start("train", {}, {})
    two.run_start("two", {}, {})
    two.stage_start("train", {}, {})
    for step in range(3):
        one.metrics("train", step, {"loss": 1.0})
        two.metrics("train", step, {"loss": 2.0})
    two.stage_end("train", "trained", {})
    two.run_end("finished")
    one.stage_end("train", "trained", {})
    one.run_end("finished")
    lost = folder / "events.jsonl"
    event = json.loads(lost.read_text().splitlines()[-3]) | {"writer": "nobody", "id": "0"}
    with lost.open("a") as file:
        file.write(json.dumps(event) + "\n")
    summary = replay(folder, resolve_uri(root))
    assert (summary.runs, summary.stages, summary.metrics) == (2, 2, 6)
    assert len(summary.refused) == 1 and "before the start of its run" in summary.refused[0]
    found = rows(
        root / "mlflow.db",
        "SELECT p.name, m.value, count(*), r.status FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid "
        "JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = 'mlflow.parentRunId' JOIN runs p ON p.run_uuid = t.value "
        "GROUP BY p.name, m.value",
    )
    assert sorted(found) == [("one", 1.0, 3, "FINISHED"), ("two", 2.0, 3, "FINISHED")]
    elsewhere(root)


def elsewhere(root: Path) -> None:
    """Files outside the folder of a run, by name or by a link, and files that were changed, are not sent."""
    folder, secret = root / "received", root / "secret.txt"
    secret.write_text("secret")
    log = EventLog(folder)
    (folder / "links").mkdir()
    (folder / "links" / "innocent.txt").symlink_to(secret)
    log.run_start("received", {}, {})
    log.artifact(None, folder / "links", "")
    log.artifact(None, log.path, "")
    text = log.path.read_text()
    last = json.loads(text.splitlines()[-1])
    paths = [str(secret), "../secret.txt", "links/innocent.txt"]
    log.path.write_text(
        text + "".join(json.dumps(last | {"path": path, "id": f"x{i}"}) + "\n" for i, path in enumerate(paths))
    )
    log.run_end("finished")
    summary = replay(folder, resolve_uri(root))
    assert summary.artifacts == 1
    assert len(summary.refused) == 4 and all("not in the folder of the run" in why for why in summary.refused)
    assert not [path for path in (root / "mlartifacts").rglob("*") if path.name in ("secret.txt", "innocent.txt")]


def test_the_address_is_never_taken_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "received"
    run_in(folder)
    Cursor(uri="http://evil.example", experiment="e").save(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mine.example")
    with pytest.raises(SemisupError, match=r"tracked at http://evil\.example, .* http://mine\.example; .*--uri URI"):
        replay(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(SemisupError, match="--uri URI"):
        replay(folder)


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "3", "{", "[" * 9999),
        '{"uri": 3, "experiment": "e"}',
        '{"uri": "x", "experiment": "e", "offset": -1}',
        '{"uri": "x", "experiment": "e", "offset": "3"}',
        '{"uri": "x", "experiment": "e", "writers": {"a": 3}}',
    ],
)
def test_a_damaged_cursor_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "mlflow.json").write_text(content)
    with pytest.raises(SemisupError, match=r"mlflow\.json: .*without this file everything is sent again"):
        Cursor.load(tmp_path)


def test_what_is_no_address_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:secret@[::1")
    with pytest.raises(SemisupError, match=r"MLflow cannot be read \(.*\); mend MLFLOW_TRACKING_URI") as caught:
        MlflowUploader(tmp_path, resolve_uri(tmp_path), "e", pytest.fail)
    EventLog(tmp_path).run_start("recipe", {}, {})
    with pytest.raises(SemisupError, match="or the one after --uri"):
        replay(tmp_path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("postgresql://u:secret@127.0.0.1:1/db", "psycopg"),
        ("sqlite://", "in memory"),
        ("nonsense", "nonsense"),
        (" ", "must be an address"),
    ],
)
def test_an_uploader_that_cannot_work_says_so(uri: str, why: str, tmp_path: Path) -> None:
    warnings: list[str] = []
    uploader = MlflowUploader(tmp_path, uri, "e", warnings.append)
    run_in(tmp_path)
    assert not uploader.close(120)
    assert len(warnings) == 1 and why in warnings[0] and "secret" not in warnings[0]

"""A folder in an S3 bucket of a real local server that is slow, fails, hangs and vanishes, and keys nobody sees."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from werkzeug.serving import make_server

from semisup.data import load_data
from semisup.data.remote import Remote
from semisup.errors import SemisupError
from tests.data.data_folders import make_root, settings
from tests.faults.faults_process import environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SECRET = "sEcReT0123456789abcdefghijklmnopqrstuvwx"
KEY = "AKIAPLANTED123456789"


class Bucket:
    """Moto's S3 server with one bucket, and what may go wrong with it.

    Attributes:
        trouble: gets the number of the request for an image, from 1 on; True: it fails with 500.
        delay: seconds before each answer.
        lives: requests for images after which the server is gone; None: it stays.
        got: how often each image was asked for.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self.app = DomainDispatcherApplication(create_backend_app)
        self.trouble: Callable[[int], bool] = lambda number: False
        self.delay = 0.0
        self.lives: int | None = None
        self.got: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.port = 0
        self.start()

    def start(self) -> None:
        self.server: Any = make_server("127.0.0.1", self.port, self._answer, threaded=True)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def _answer(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        time.sleep(self.delay)
        if environ["REQUEST_METHOD"] == "GET" and path.endswith(".png"):
            with self.lock:
                self.got[path] += 1
                number = self.got.total()
            if self.lives is not None and number > self.lives:
                threading.Thread(target=self.server.shutdown, daemon=True).start()
                self.server.socket.close()  # whoever asks from here on is not even heard
                start("500 Gone", [])
                return []
            if self.trouble(number):
                start("500 Internal Server Error", [])
                return []
        return self.app(environ, start)  # type: ignore[no-any-return]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A server with 18 images below s3://photos/mine, and 240 more unlabeled ones."""
    server = Bucket()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    root = make_root(tmp_path / "r", labeled=6, unlabeled=248, test=4)
    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")
    for path in root.rglob("*.png"):
        client.upload_file(str(path), "photos", f"mine/{path.relative_to(root)}")
    client.close()
    server.got.clear()
    yield server
    server.stop()


URL = "s3://photos/mine"


def read(tmp_path: Path, **others: object) -> Any:
    return load_data(settings(tmp_path / "r", path=URL, **others))


def problem(tmp_path: Path) -> str:
    with pytest.raises(SemisupError) as caught:
        read(tmp_path)
    assert str(caught.value).count("\n") == 0 and SECRET not in str(caught.value)
    return str(caught.value)


def in_blocks_of_64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semisup.data.store.BLOCK", 64)
    monkeypatch.setattr("semisup.data.store.CHUNK", 0)


def test_a_slow_server_is_waited_for(bucket: Bucket, tmp_path: Path) -> None:
    bucket.delay = 0.1
    data = read(tmp_path)
    assert data.hash == load_data(settings(tmp_path / "r")).hash
    assert set(bucket.got.values()) == {1}


def test_a_server_that_fails_for_every_other_image_is_asked_again(
    bucket: Bucket, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semisup.data.remote.PAUSES", (0.1, 0.1, 0.1, 0.1))
    draws = random.Random(0)
    bucket.trouble = lambda number: draws.random() < 0.5
    data = read(tmp_path)
    assert data.hash == load_data(settings(tmp_path / "r")).hash
    words = capfd.readouterr().err
    assert f"warning: {URL}: " in words and "files of a shard did not arrive" in words and "trying again in" in words
    assert SECRET not in words and KEY not in words


def test_a_server_that_hangs_is_given_up(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semisup.data.remote.PAUSES", (0.1,))
    monkeypatch.setattr("semisup.data.remote.SILENCE", 1.0)
    bucket.delay = 5.0
    began = time.monotonic()
    assert "tried 2 times" in problem(tmp_path)
    assert time.monotonic() - began < 30


def test_a_server_that_vanishes_leaves_what_is_read_and_the_same_goes_on(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_blocks_of_64(monkeypatch)
    monkeypatch.setattr("semisup.data.remote.PAUSES", (0.1, 0.1))
    bucket.lives = 150
    text = problem(tmp_path)
    assert f"data.path: {URL}: " in text and "tried 3 times" in text and "the same command goes on" in text
    assert "cannot be listed" in problem(tmp_path), "it is still away"
    bucket.server.server_close()
    bucket.lives = None
    bucket.got.clear()
    bucket.start()
    data = read(tmp_path)
    assert data.hash == load_data(settings(tmp_path / "r")).hash
    assert bucket.got.total() == 258 - 128, "two blocks of 64 were kept"


def test_a_bucket_of_more_than_one_page_is_listed_the_same_each_time(bucket: Bucket) -> None:
    client = boto3.client("s3")
    for i in range(1_100):
        client.put_object(Bucket="photos", Key=f"many/labeled/{i % 7}/{i * 7919 % 1_100:04}.png", Body=b"")
    client.close()
    listings = [[file.path for file in Remote("s3://photos/many").images("labeled")] for _ in range(2)]
    assert listings[0] == listings[1] == sorted(listings[0]) and len(listings[0]) == 1_100


def test_wrong_keys_and_no_bucket_are_told_at_once(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SemisupError, match="s3://nowhere/mine does not exist"):
        load_data(settings(tmp_path / "r", path="s3://nowhere/mine"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    began = time.monotonic()
    assert "credentials" in problem(tmp_path) and time.monotonic() - began < 10


def semisup(folder: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "semisup", *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1500,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_run_of_two_processes_fetches_once_and_keeps_no_secret(bucket: Bucket, tmp_path: Path) -> None:
    keys = [f"data.path={URL}", "data.size=24", f"data.cache={tmp_path / 'cache'}", "model={name: cnn, width: 4}"]
    keys += ["stages.labels_alone.steps=2", "stages.train.steps=2"]
    code, output = semisup(tmp_path, "run", "folder/small", *keys, "--processes", "2", "--out", "out")
    assert code == 0, output
    assert set(bucket.got.values()) == {1}, "one rank decodes, under the lock; the other finds it done"
    for path in tmp_path.rglob("*"):
        if path.is_file() and tmp_path / "r" not in path.parents:
            content = path.read_bytes()
            assert SECRET.encode() not in content and KEY.encode() not in content, path
    assert SECRET not in output and KEY not in output
    code, output = semisup(tmp_path, "report", "out")
    assert code == 0 and "is not followed" in output, output
    code, output = semisup(tmp_path, "distill", "out/train", "--student", "cnn,width=2", "--dry-run")
    assert code == 2 and "is not followed; name a folder of images: --data FOLDER" in output, output

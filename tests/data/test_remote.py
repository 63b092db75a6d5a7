"""Folders behind addresses: the same data as from a disk, through servers that fail, and no address but the user's."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from semisup.data import ImageData, load_data
from semisup.data.addresses import refuse_recorded
from semisup.data.remote import Remote
from semisup.data.sources import check_source
from semisup.errors import SemisupError
from semisup.settings import DataConfig
from tests.data.data_folders import make_root, picture, save, settings


class Site(ThreadingHTTPServer):
    """A web server of a folder, whose images fail or come short as often as it is told."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Pages, directory=str(root)))
        self.failures = 0
        self.refused: set[str] = set()
        self.short = 0
        self.sent: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Pages(SimpleHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        if not self.path.endswith(".png"):
            return super().do_GET()
        if self.path in self.server.refused:
            return self.send_error(403)
        if self.server.failures > 0:
            self.server.failures -= 1
            return self.send_error(500)
        self.server.sent.append(self.path)
        if self.server.short > 0:
            self.server.short -= 1
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:-10])
            self.close_connection = True
            return None
        return super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server of `tmp_path / "r"`."""
    monkeypatch.setattr("semisup.data.remote.PAUSES", (0.01, 0.01))
    make_root(tmp_path / "r")
    server = Site(tmp_path / "r")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def read(url: str, folder: Path, **others: object) -> ImageData:
    return load_data(settings(folder / "r", path=url, **others))


def problem(url: str, folder: Path, **others: object) -> str:
    with pytest.raises(SemisupError) as caught:
        read(url, folder, **others)
    return str(caught.value)


def assert_same(one: ImageData, other: ImageData) -> None:
    assert one.hash == other.hash and one.classes == other.classes and one.notes == other.notes
    for name in ("x_train", "y_train", "x_test", "y_test"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def test_an_address_is_the_same_data_as_the_folder(tmp_path: Path, site: Site) -> None:
    here = load_data(settings(tmp_path / "r"))
    assert_same(read(site.url, tmp_path), here)
    assert_same(read(f"file://{tmp_path}/r/", tmp_path), here)
    site.sent.clear()
    assert_same(read(site.url, tmp_path), here)
    assert not site.sent, "what is decoded is not fetched again"
    assert not list((tmp_path / "cache").glob("*/shard"))


def test_what_the_server_lists_in_any_order_is_one_listing(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    root = make_root(tmp_path / "r")
    files = [path for path in root.rglob("*") if path.is_file()]
    found = []
    for name, order in (("one", files), ("two", files[::-1])):
        for path in order:
            memory.pipe(f"/{name}/{path.relative_to(root)}", path.read_bytes())
        memory.pipe(f"/{name}/labeled/.hidden/a.png", b"")
        memory.pipe(f"/{name}/labeled/ant/notes.txt", b"")
        remote = Remote(f"memory://{name}")
        assert remote.folders() == ["labeled", "test", "unlabeled"] and remote.folders("labeled") == [
            "ant",
            "bee",
            "cat",
        ]
        others: list[str] = []
        found.append([file.path for file in remote.images("labeled", others)])
        assert others == ["labeled/ant/notes.txt"]
    assert found[0] == found[1] == sorted(found[0]) and len(found[0]) == 6
    memory.pipe("/two/a.png", b"")
    assert Remote("memory://two").images_right_in() == ["a.png"]
    data = read("memory://two", tmp_path)
    assert data.hash == load_data(settings(root)).hash
    assert data.notes[0].startswith("not read: a.png in memory://two")
    assert data.notes[1:] == ("1 file that is no image, by name or content, not read: labeled/ant/notes.txt",)
    memory.pipe("/two/labeled/ant/0000.png", (root / "labeled/bee/0001.png").read_bytes())
    assert "same picture as one of another class" in problem("memory://two", tmp_path), (
        "what has changed at the server is fetched anew"
    )


def test_a_server_that_fails_for_a_while_is_asked_again_in_words(
    tmp_path: Path, site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    site.failures, site.short = 20, 3
    data = read(site.url, tmp_path)
    assert data.hash == load_data(settings(tmp_path / "r")).hash
    words = capfd.readouterr().err
    assert "warning: http" in words and "trying again in" in words and "500" in words


def test_a_server_that_goes_on_failing_is_one_message_and_the_same_goes_on(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semisup.data.store.BLOCK", 4)
    monkeypatch.setattr("semisup.data.store.CHUNK", 0)
    monkeypatch.setattr("semisup.data.remote.AT_ONCE", 2)
    site.refused = {"/unlabeled/deep/1/0003.png"}
    text = problem(site.url, tmp_path)
    assert "403" in text and "the same command goes on" in text and "tried" not in text
    first = len(site.sent)
    assert first >= 4
    site.refused, site.sent, site.failures = set(), [], 10**6
    text = problem(site.url, tmp_path)
    assert "500" in text and "tried 3 times" in text and text.count("\n") == 0
    site.failures = 0
    data = read(site.url, tmp_path)
    assert data.hash == load_data(settings(tmp_path / "r")).hash
    assert len(site.sent) <= 18 - first + 3, "the shards that were whole are kept"


def test_links_that_sort_a_list_are_no_files(tmp_path: Path, site: Site) -> None:
    """As Apache's lists have them."""
    (tmp_path / "r/unlabeled/index.html").write_text('<a href="?C=N;O=D">Name</a> <a href="more.png">more.png</a>')
    save(tmp_path / "r/unlabeled/more.png", picture(100))
    save(tmp_path / "r/test/ant/what?.png", picture(101))
    data = read(site.url, tmp_path)
    assert (len(data.x_train), len(data.x_test), data.notes) == (7, 5, ())


def test_a_table_of_a_server_that_lists_nothing(tmp_path: Path, site: Site) -> None:
    rows = [f"labeled/{name}/{i:04}.png,{name}" for i, name in enumerate(("ant", "bee", "cat"))]
    table = tmp_path / "t.csv"
    table.write_text("path,label\n" + "\n".join([*rows, "./labeled/ant/0000.png,ant", "labeled/ant/9999.png,ant"]))
    data = read(site.url, tmp_path, csv=str(table), max_bad=0.5)
    assert data.y_train.tolist() == [0, 1, 2]
    assert any("labeled/ant/9999.png (no such file)" in note for note in data.notes)
    assert any("1 row says again" in note for note in data.notes)


def test_names_of_a_table_are_those_of_files(tmp_path: Path, site: Site) -> None:
    names = ["a#b.png", "5%20.png", "it's ü.png"]
    for i, name in enumerate(names):
        save(tmp_path / "r" / name, picture(100 + i))
    rows = [f"{name},{label}\n" for name, label in zip(names, ("ant", "bee", "ant"), strict=True)]
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(rows))
    assert len(read(site.url, tmp_path, csv=str(tmp_path / "t.csv")).x_train) == 3


def test_a_table_names_a_file_that_a_server_that_lists_does_not_have(tmp_path: Path) -> None:
    root = make_root(tmp_path / "r")
    (tmp_path / "t.csv").write_text("path,label\nlabeled/ant/0000.png,ant\nlabeled/bee/0001.png,bee\nnowhere.png,bee\n")
    data = read(f"FILE://{root}", tmp_path, csv=str(tmp_path / "t.csv"), max_bad=0.9)
    assert len(data.x_train) == 2 and any("nowhere.png (no such file)" in note for note in data.notes)


def test_what_is_not_there(tmp_path: Path, site: Site) -> None:
    assert problem(f"{site.url}/nowhere", tmp_path) == f"data.path: {site.url}/nowhere does not exist"
    assert "memory://void" in problem("memory://void", tmp_path)
    site.shutdown()
    site.server_close()
    text = problem(site.url, tmp_path)
    assert "cannot be listed" in text and "tried 3 times" in text


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("s4://bucket/photos", "did you mean 's3'"),
        ("s3://me:hunter2@bucket/photos", "no user name"),
        ("https://me:hunter2@host/photos", "no user name"),
        ("https://host/photos?token=hunter2", "no user name"),
        ("simplecache::s3://bucket/photos", "unknown kind of address"),
        ("s3://", "followed by nothing"),
        ("s3://bucket//photos", "must not be empty"),
        ("gs://bucket/photos", "pip install gcsfs"),
    ],
)
def test_addresses_that_are_refused(path: str, words: str) -> None:
    if "gcsfs" in words:
        import importlib.util

        if importlib.util.find_spec("gcsfs") is not None:
            pytest.skip("gcsfs is installed")
    with pytest.raises(SemisupError) as caught:
        check_source(DataConfig(source="folder", path=path, size=24))
    assert words in str(caught.value) and "hunter2" not in str(caught.value)


def test_only_folders_are_read_from_addresses() -> None:
    with pytest.raises(SemisupError, match=r"data\.path: source npz reads files on this machine"):
        check_source(DataConfig(source="npz", path="s3://bucket/x.npz"))


def test_an_address_of_a_record_is_not_followed() -> None:
    refuse_recorded("photos", "...")
    refuse_recorded(None, "...")
    with pytest.raises(SemisupError, match="the record names the address http://h/x, which is not followed; give it"):
        refuse_recorded("http://h/x", "give it")


def test_what_a_provider_refuses_is_told_in_full_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    botocore = pytest.importorskip("botocore.exceptions")
    remote = Remote("s3://A_b!/x")
    error = botocore.ParamValidationError(report='Invalid bucket name "A_b!"')
    monkeypatch.setattr("semisup.data.remote.time.sleep", lambda seconds: pytest.fail("is asked again"))
    with pytest.raises(
        SemisupError, match=r'cannot be listed \(Parameter validation failed: Invalid bucket name "A_b!"\)$'
    ):
        remote._patiently("cannot be listed", lambda: raised(error))


def raised(error: Exception) -> None:
    raise error

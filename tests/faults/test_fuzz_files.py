"""Files with random damage, for every reader: each works or is refused in one message."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from semisup.bench.results.facts import read_facts
from semisup.bench.results.rows import header, read_rows
from semisup.data.decode import BadImageError, can_read_heif, decode
from semisup.data.entries import Entry
from semisup.data.npz import read_images, read_npz, without_duplicates
from semisup.data.store import _read as read_store
from semisup.data.store import prepare
from semisup.data.table import list_csv, read_paths
from semisup.data.walk import walk
from semisup.engine.checkpoint import load_checkpoint, save_checkpoint
from semisup.labeling.folder import list_pictures
from semisup.labeling.merge import merge, read_answers
from semisup.models.foreign import file_shapes
from semisup.models.weights import load_weights, read_shapes
from semisup.pipeline.page.curves import logged
from semisup.pipeline.page.read import last_model, read_run
from semisup.records import DIGEST, digest, file_digest, read_json
from semisup.settings import DataConfig
from semisup.stages.artifact import read_artifact
from semisup.stages.predictor import load_predictor
from semisup.tracking.delivery import Cursor
from semisup.tracking.events import EventLog, iter_events
from semisup.tracking.packages import read_images as read_example
from tests.faults.fuzzing import damaged, fuzz, mutated, outcome, outcomes_of, watched, with_checksums
from tests.stages.stages_small import run_stages, small_data, train_stage

SEED = 20261130


def sizes(few: int, many: int) -> pytest.MarkDecorator:
    slow = pytest.param(many, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])
    return pytest.mark.parametrize("cases", [few, slow])


# Images --------------------------------------------------------------------------------------------------------------


def images() -> dict[str, bytes]:
    """Small files of every kind that may be read, and of some that may not."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    color = Image.fromarray(pixels).resize((48, 40))
    found: dict[str, bytes] = {}

    def add(name: str, image: Image.Image, kind: str, **options: Any) -> None:
        file = io.BytesIO()
        image.save(file, kind, **options)
        found[f"{kind}-{name}"] = file.getvalue()

    deep = Image.fromarray(np.asarray(color.convert("L")).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x112] = 6
    for mode in ("RGB", "L", "1", "P", "RGBA", "LA"):
        add(mode, color.convert(mode), "PNG")
    for mode in ("RGB", "L", "1", "P", "RGBA", "CMYK", "F"):
        add(mode, color.convert(mode), "TIFF")
    for mode in ("RGB", "L", "1", "P"):
        add(mode, color.convert(mode), "BMP")
    for kind in ("PNG", "TIFF"):
        add("deep", deep, kind)
    for packing in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        add(packing, color, "TIFF", compression=packing)
    add("group4", color.convert("1"), "TIFF", compression="group4")
    for kind in ("PNG", "JPEG", "WEBP"):
        add("turned", color, kind, exif=turned)
    for kind in ("PNG", "TIFF", "WEBP", "MPO"):
        add("several", color, kind, save_all=True, append_images=[color.rotate(90)])
    add("progressive", color, "JPEG", progressive=True)
    for mode in ("CMYK", "L", "RGB"):
        add(mode, color.convert(mode), "JPEG", quality=60)
    add("lossless", color.convert("RGBA"), "WEBP", lossless=True)
    add("no", color.convert("P"), "GIF")
    if can_read_heif():
        add("color", color, "HEIF")
    return found


@sizes(60, 6000)
def test_images(cases: int, tmp_path: Path) -> None:
    seeds, draws, outcomes = images(), random.Random(SEED), Counter[str]()
    names, path = sorted(seeds), tmp_path / "image"
    for n in range(cases):
        name = names[n % len(names)]
        content = mutated(seeds[name], draws, list(seeds.values()))
        path.write_bytes(with_checksums(content) if name.startswith("PNG") and draws.random() < 0.7 else content)
        size, channels, fit = draws.choice((8, 32, 224)), draws.choice((1, 3)), draws.choice(("crop", "pad", "stretch"))
        with watched(tmp_path, 66):
            outcomes[outcome(check_image, path, size, channels, fit, refusals=BadImageError)] += 1
    outcomes_of(outcomes)


@sizes(20, 2000)
def test_images_by_strips(cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each were too large to be read whole; what both ways read is the same picture."""
    seeds = {name: content for name, content in images().items() if name.startswith(("PNG", "HEIF"))}
    draws, outcomes = random.Random(SEED), Counter[str]()
    names, path = sorted(seeds), tmp_path / "image"
    for n in range(cases):
        name = names[n % len(names)]
        content = mutated(seeds[name], draws, list(seeds.values()))
        path.write_bytes(with_checksums(content) if name.startswith("PNG") and draws.random() < 0.7 else content)
        with watched(tmp_path, 66), monkeypatch.context() as patch:
            patch.setattr("semisup.data.decode.decoding_bytes", lambda image, whole: 2**60)
            patch.setattr("semisup.data.strips._PIECE", 1000)
            by_strips = read_image(path)
        outcomes["refused" if by_strips is None else "works"] += 1
        whole = read_image(path)
        if by_strips is not None and whole is not None and name != "PNG-turned":
            np.testing.assert_array_equal(by_strips, whole)
    outcomes_of(outcomes)


def read_image(path: Path) -> np.ndarray[Any, Any] | None:
    """A picture in color of 32 px, or None."""
    try:
        return decode(path, 32, 3)
    except BadImageError:
        return None


def check_image(path: Path, size: int, channels: int, fit: Any) -> None:
    image = decode(path, size, channels, fit)
    assert image.shape == (size, size, channels) and image.dtype == np.uint8


# Arrays --------------------------------------------------------------------------------------------------------------

TYPES = ("u1", "i1", "i8", "u8", "f4", "f8", "f2", "U3", "S3", "?", "c8", "M8[s]", "V4", ">i4", "U0", "S0", "O")


def arrays(draws: random.Random) -> dict[str, Any]:
    """What an .npz file of images may hold."""
    shape = (6, 8, 8, *draws.choice(((), (1,), (3,))))
    x = np.random.default_rng(draws.randrange(9)).integers(0, 256, shape, dtype=np.uint8)
    found: dict[str, Any] = {"x_train": x, "y_train": np.array([0, 1, -1, 1, 0, 1])}
    if draws.random() < 0.5:
        found |= {"x_test": 255 - x[:2], "y_test": np.array([0, 1])}
    if draws.random() < 0.3:
        found["classes"] = np.array(["a", "b"])
    if draws.random() < 0.2:
        found["y_train"] = np.array(["a", "b", "NA", "b", "a", "b"])
    return found


def strange(draws: random.Random) -> Any:
    """An array of any type and shape, with any bytes in it."""
    kind, shape = draws.choice(TYPES), tuple(draws.choice((0, 1, 2, 6, 8)) for _ in range(draws.randrange(5)))
    if kind == "O":
        return np.full(shape, None)
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer(draws.randbytes(size), kind).reshape(shape) if size else np.zeros(shape, kind)


def rewritten(content: bytes, draws: random.Random) -> bytes:
    """Return a zip file with damage in its members, and right checksums around them."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members of one name
        for name in old.namelist():
            body = old.read(name)
            if draws.random() < 0.5 or name.endswith("data.pkl"):
                body = mutated(body[:128], draws) + body[128:] if draws.random() < 0.6 else mutated(body, draws)
            new.writestr(draws.choice(["../x.npy", "/x.npy", "y_train.npy"]) if draws.random() < 0.03 else name, body)
    return file.getvalue()


@sizes(45, 3000)
def test_npz(cases: int, tmp_path: Path) -> None:
    draws, outcomes, path = random.Random(SEED), Counter[str](), tmp_path / "a.npz"
    config = DataConfig(source="npz", path=str(path))
    for n in range(cases):
        content, file = arrays(draws), io.BytesIO()
        if n % 3 == 0:
            for _ in range(draws.choice((1, 2))):
                content[draws.choice([*content, "x_test", "y_test", "y_val", "classes", "train_images"])] = strange(
                    draws
                )
        np.savez_compressed(file, **content)
        damage = (lambda b, d: b, mutated, rewritten)[n % 3]
        path.write_bytes(damage(file.getvalue(), draws))
        with watched(tmp_path, 200):
            outcomes[outcome(lambda: without_duplicates(read_npz(path), config))] += 1
            outcome(lambda: read_images(path))
    outcomes_of(outcomes)


# Tables --------------------------------------------------------------------------------------------------------------

TABLES = [
    b"path,label\n0.png,a\n1.png,b\n2.png,\n",
    b"path;label;split\n0.png;a;train\n1.png;b;val\n2.png;;\n3.png;a;test\n",
    b"file\tclass\n0.png\ta\n",
    b"0.png,a\n1.png,b\n",
    b'"path","label"\n"0.png","a"\n"1.png","b, ""c"""\n',
    "path,label\n0.png,é\n".encode("utf-16"),
]
TOKENS = [
    *(
        b'"',
        b'""',
        b",",
        b";",
        b"\t",
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"=1",
        b"../",
        b"-1",
        b"NA",
        b"val",
        b"0.png",
        b"\xc3",
    ),
    *(b'"' * 50, b"a" * 200_000, b"\xef\xbb\xbf", b"/etc/passwd", b"1e999", b"nan", b"1" * 5000, b"[" * 3000),
]


def with_tokens(content: bytes, draws: random.Random) -> bytes:
    for _ in range(draws.randrange(4)):
        at = draws.randrange(len(content) + 1)
        content = content[:at] + draws.choice(TOKENS) + content[at:]
    return content


@sizes(40, 2000)
def test_tables_of_labels(cases: int, tmp_path: Path) -> None:
    draws, outcomes, table, root = random.Random(SEED), Counter[str](), tmp_path / "a.csv", tmp_path / "images"
    root.mkdir()
    for i in range(4):
        Image.new("L", (8, 8), i).save(root / f"{i}.png")
    for _ in range(cases):
        content = draws.choice(TABLES)
        table.write_bytes(with_tokens(mutated(content, draws, TABLES) if draws.random() < 0.6 else content, draws))
        with watched(tmp_path, 200):
            outcomes[outcome(lambda: list_csv(root, table))] += 1
            outcome(lambda: read_paths(table))
            outcome(lambda: merge(list_pictures(root), read_answers(table, root)[0], "labels"))
    outcomes_of(outcomes)


@sizes(20, 1000)
def test_tables_of_runs(cases: int, tmp_path: Path) -> None:
    results = sorted((Path(__file__).parents[2] / "benchmarks/results").rglob("runs.csv"))
    seeds = [b"".join(path.read_bytes().splitlines(keepends=True)[:5]) for path in results[:8]]
    assert seeds and len(header()) > 10
    draws, table = random.Random(SEED), tmp_path / "runs.csv"
    for _ in range(cases):
        content = draws.choice(seeds)
        table.write_bytes(with_tokens(mutated(content, draws, seeds) if draws.random() < 0.5 else content, draws))
        with watched(tmp_path, 200):
            outcome(lambda: read_rows(table))


# Records -------------------------------------------------------------------------------------------------------------

EXPORT = [
    {"data": {"path": "0.png"}, "annotations": [{"result": [{"from_name": "label", "value": {"choices": ["a"]}}]}]},
    {"path": "1.png", "label": "b"},
]
CURSOR = {"uri": "sqlite:///x", "experiment": "e", "offset": 3, "run": "r", "open": ["r"], "time": 5}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished stage."""
    return run_stages({"train": train_stage("supervised")}, small_data(), tmp_path_factory.mktemp("run"))[
        "train"
    ].folder


def dump(path: Path, tree: Any) -> bytes:
    content = json.dumps(tree, default=str).encode("utf-8", "surrogatepass")
    path.write_bytes(content)
    return content


@sizes(10, 1500)
def test_records_of_a_stage(cases: int, home: Path) -> None:
    """Its record, with a right checksum half of the time, and its network's description, with one always."""
    record, model = (json.loads((home / name).read_text()) for name in ("stage.json", "model.json"))
    image = np.load(home / "example.npy")

    def one(data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            changed = damaged(data, record, [model])
            if isinstance(changed, dict) and data.draw(st.booleans()):
                changed[DIGEST] = digest(json.loads(json.dumps(changed, default=str)))
        else:
            dump(home / "model.json", damaged(data, model, [record]))
            changed = json.loads(json.dumps(record))
            changed["files"]["model.json"] = file_digest(home / "model.json")
            changed[DIGEST] = digest(changed)
        dump(home / "stage.json", changed)
        with watched(home, 400):
            outcome(lambda: read_artifact(home))
            outcome(lambda: load_predictor(home).predict_proba(image))
        dump(home / "model.json", model)

    fuzz(cases, one)
    dump(home / "stage.json", record)


@sizes(10, 1500)
def test_other_json(cases: int, tmp_path: Path) -> None:
    """Events, records of uploads, exports of Label Studio, facts of a suite, stores of images."""
    log = EventLog(tmp_path)
    log.run_start("r", {"a": {"b": 1}}, {"t": "x"})
    log.stage_start("train", {}, {})
    log.metrics("train", 3, {"loss": 0.5})
    log.stage_end("train", "trained", {"accuracy": 0.5})
    log.run_end("finished")
    events = [json.loads(line) for line in log.path.read_text().splitlines()]
    facts = {"suite": "s", "command": "c", "baselines": [], "entries": ["a"], "targets": [0.9], "classes": ["a"]}
    facts |= {"num_test": 3, "provenance": {}, "settings": "", "saved": {}}
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    store = tmp_path / "store"
    prepare(tmp_path, [Entry("train", file.path[1:], None, *file[1:]) for file in walk(tmp_path, "")], 8, 1, store)
    index = json.loads((store / "index.json").read_text())

    def one(data: st.DataObject) -> None:
        lines = damaged(data, events, [facts])
        content = [json.dumps(line, default=str) for line in (lines if isinstance(lines, list) else [lines])]
        log.path.write_bytes("".join(f"{line}\n" for line in content).encode("utf-8", "surrogatepass"))
        dump(tmp_path / "export.json", damaged(data, EXPORT, [events]))
        dump(tmp_path / "mlflow.json", damaged(data, CURSOR, [events]))
        dump(tmp_path / "suite.json", damaged(data, facts, [events]))
        dump(store / "index.json", damaged(data, index, [events]))
        with watched(tmp_path, 200):
            outcome(lambda: list(iter_events(log.path, 0)))
            outcome(lambda: logged(tmp_path))
            outcome(lambda: read_answers(tmp_path / "export.json", tmp_path))
            outcome(lambda: Cursor.load(tmp_path))
            outcome(lambda: read_facts(tmp_path))
            found = read_store(store, 8, 1)
            assert found is None or found.images(mapped=False).shape == (len(found.good), 8, 8, 1)

    fuzz(cases, one)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_results(single: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(single / "out", tmp_path / "out"))
    result = json.loads((out / "result.json").read_text())

    def one(data: st.DataObject) -> None:
        dump(out / "result.json", damaged(data, result, [EXPORT]))
        with watched(tmp_path, 200):
            outcome(lambda: last_model(out, read_run(out)[0]))

    fuzz(1000, one)


@sizes(30, 1500)
def test_tensors(cases: int, home: Path, tmp_path: Path) -> None:
    """Safetensors, checkpoints with a right checksum, files of torch.save of both kinds, arrays, and JSON by bytes."""
    draws, outcomes = random.Random(SEED), Counter[str]()
    small = {"a": torch.zeros(3, 2), "b.c": torch.arange(4), "n": torch.tensor(2.5)}
    weights, example, record = save(small), (home / "example.npy").read_bytes(), (home / "stage.json").read_bytes()
    state = {"step": 3, "last_log": {}, "method": small, "x": [1, "a", None, True, (2, 3)]}
    save_checkpoint(tmp_path / "c.pt", state)
    checkpoint = (tmp_path / "c.pt").read_bytes()[32:]
    old, new = io.BytesIO(), io.BytesIO()
    torch.save(small, old, _use_new_zipfile_serialization=False)
    torch.save(small, new)
    for _ in range(cases):
        length = int.from_bytes(weights[:8], "little")
        head = mutated(weights[8 : 8 + length], draws)
        whole = len(head).to_bytes(8, "little") + head + weights[8 + length :]
        (tmp_path / "m.safetensors").write_bytes(whole if draws.random() < 0.5 else mutated(weights, draws))
        content = rewritten(checkpoint, draws) if draws.random() < 0.7 else mutated(checkpoint, draws)
        (tmp_path / "c.pt").write_bytes(hashlib.sha256(content).digest() + content)
        both = rewritten(new.getvalue(), draws) if draws.random() < 0.5 else mutated(old.getvalue(), draws)
        (tmp_path / "w.pth").write_bytes(both)
        (tmp_path / "e.npy").write_bytes(mutated(example, draws))
        (tmp_path / "r.json").write_bytes(mutated(record, draws))
        with watched(tmp_path, 200):
            outcomes[
                outcome(lambda: (read_shapes(tmp_path / "m.safetensors"), load_weights(tmp_path / "m.safetensors")))
            ] += 1
            outcome(lambda: file_shapes(str(tmp_path / "m.safetensors")))
            outcome(lambda: load_checkpoint(tmp_path / "c.pt", torch.device("cpu")))
            outcome(lambda: file_shapes(str(tmp_path / "w.pth")))
            outcome(lambda: read_example(tmp_path / "e.npy"))
            outcome(lambda: read_json(tmp_path / "r.json"))
    outcomes_of(outcomes)


def test_a_checkpoint_of_another_pickle_protocol_is_refused_without_a_warning(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"step": 3}, file, pickle_protocol=4)
    (tmp_path / "c.pt").write_bytes(hashlib.sha256(file.getvalue()).digest() + file.getvalue())
    assert outcome(load_checkpoint, tmp_path / "c.pt", torch.device("cpu")) == "refused"

"""Weights on disk: round trips, reports, refusals, and files that are not what they should be."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from semisup.errors import SemisupError
from semisup.models import ModelSpec, WeightsReport, build_classifier, load_into, load_weights, save_weights
from semisup.models.weights import compare, read_shapes


def classifier(classes: int = 3, neck: list[int] | None = None) -> nn.Module:
    return build_classifier(ModelSpec("cnn", {"width": 4}, 1, 8, classes, neck=neck or []))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_round_trip_of_a_channels_last_network(tmp_path: Path) -> None:
    source = classifier().to(memory_format=torch.channels_last)
    source(torch.randn(4, 1, 8, 8))
    assert not source.backbone.layer2[0].weight.is_contiguous()
    path = tmp_path / "model.safetensors"
    save_weights(path, source.state_dict())
    assert read_shapes(path) == {k: tuple(v.shape) for k, v in source.state_dict().items()}
    target = classifier().to(memory_format=torch.channels_last)
    pointers = [p.data_ptr() for p in target.parameters()]
    report = load_into(target, path)
    assert report.fraction == 1
    assert not report.missing + report.unexpected
    assert [p.data_ptr() for p in target.parameters()] == pointers  # filled in place: optimizers keep their tensors
    assert target.backbone.layer2[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in target.state_dict().items())
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(source.eval()(images), target.eval()(images))
    assert list(tmp_path.iterdir()) == [path]


def test_every_dtype_and_layout_round_trips(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    state = {
        "transposed": base.transpose(0, 2),
        "strided": base[:, ::2],
        "part": base[1],
        "whole": base,
        "tied": base,
        "bf16": base.bfloat16(),
        "half": base.half(),
        "double": base.double(),
        "int": torch.tensor(7),
        "bool": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "gradient": nn.Parameter(base + 1),
        "expanded": torch.ones(1).expand(5),
    }
    save_weights(tmp_path / "w", state)
    loaded = load_weights(tmp_path / "w")
    assert set(loaded) == set(state)
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor.detach())
        assert loaded[name].dtype == tensor.dtype


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(2)})
    with pytest.raises((ValueError, TypeError)):
        save_weights(path, {3: torch.zeros(2)})  # type: ignore[dict-item]
    assert load_weights(path)["a"].tolist() == [1, 1]
    assert list(tmp_path.iterdir()) == [path]
    save_weights(path, {"a": torch.zeros(2)})
    assert load_weights(path)["a"].tolist() == [0, 0]
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(SemisupError, match="folder: cannot be written"):  # renaming fails, after the writing
        save_weights(folder, {"a": torch.zeros(2)})
    assert set(tmp_path.iterdir()) == {path, folder}


def test_compare_counts_elements_and_names_everything() -> None:
    report = compare({"a": (2, 3), "b": (4,), "c": ()}, {"a": (2, 3), "b": (5,), "d": (1,)})
    assert report == WeightsReport(["a"], ["c"], ["d"], {"b": ((4,), (5,))}, 6 / 11)
    text = str(report)
    assert "54.55 % of the network's weights found (1 of 3 tensors)" in text
    assert "missing: c" in text
    assert "mismatched: b (network (4,), file (5,))" in text
    assert "unexpected: d" in text
    assert compare({}, {}).fraction == 1


def test_a_long_report_is_cut() -> None:
    text = str(compare({f"w{i}": (1,) for i in range(20)}, {}))
    assert "w7 and 12 more" in text
    assert "w8" not in text


def test_too_few_matches_are_refused_before_anything_changes(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", classifier(classes=5).state_dict())
    target = classifier(classes=3)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(SemisupError) as error:
        load_into(target, tmp_path / "w")
    text = str(error.value)
    assert str(tmp_path / "w") in text
    assert "at least 100 % must match" in text
    assert "head.weight (network (3, 16), file (5, 16))" in text
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
    report = load_into(target, tmp_path / "w", minimum_match=0.9)
    assert set(report.mismatched) == {"head.weight", "head.bias"}
    assert torch.equal(target.head.weight, before["head.weight"])
    assert not torch.equal(target.backbone.layer1[0].weight, before["backbone.layer1.0.weight"])


def test_only_the_header_is_read_for_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(tmp_path / "w", classifier(classes=5).state_dict())

    def refuse(path: object) -> None:
        raise AssertionError("tensor data was read")

    monkeypatch.setattr("semisup.models.weights.load_file", refuse)
    with pytest.raises(SemisupError, match="do not fit"):
        load_into(classifier(classes=3), tmp_path / "w")


def test_a_projection_head_becomes_a_neck(tmp_path: Path) -> None:
    from semisup.models import Encoder, ProjectionHead, build_backbone

    backbone = build_backbone("cnn", {"width": 4}, in_channels=1, image_size=8)
    encoder = Encoder(backbone, ProjectionHead(16, 16, 6, 3))
    save_weights(tmp_path / "w", encoder.state_dict())
    target = classifier(neck=[16])
    rename = {"projector.layers.": "neck.", "projector.": None}
    with pytest.raises(SemisupError, match=r"missing: head\.weight, head\.bias"):
        load_into(target, tmp_path / "w", rename=rename)
    report = load_into(target, tmp_path / "w", rename=rename, minimum_match=0.9)
    assert report.missing == ["head.weight", "head.bias"]
    assert all(name.startswith(("neck.1.", "neck.2.")) for name in report.unexpected)
    assert torch.equal(target.neck[0][0].weight, encoder.projector.layers[0][0].weight)
    only = load_into(target.backbone, encoder.state_dict(), rename={"backbone.": "", "projector.": None})
    assert only.fraction == 1
    assert only.unexpected == []


def test_rename_may_not_merge_two_tensors() -> None:
    state = {"a.w": torch.zeros(1), "b.w": torch.ones(1)}
    with pytest.raises(SemisupError, match=r"turns both 'a\.w' and 'b\.w' into 'w'"):
        load_into(nn.Linear(1, 1), state, rename={"a.": "", "b.": ""})


def test_dtypes_are_converted_on_the_way_in() -> None:
    target = nn.Linear(2, 1)
    load_into(target, {"weight": torch.full((1, 2), 0.5, dtype=torch.float16), "bias": torch.ones(1).double()})
    assert target.weight.dtype == torch.float32
    assert target.weight.tolist() == [[0.5, 0.5]]


def broken_files(folder: Path) -> list[Path]:
    whole = folder / "whole"
    save_weights(whole, {"a": torch.ones(100)})
    content = whole.read_bytes()
    pickled = folder / "pickle.pt"
    torch.save({"a": torch.ones(3)}, pickled)
    files = {"cut_in_data": content[:-10], "cut_in_header": content[:20], "empty": b"", "text": b"not weights at all"}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [*(folder / name for name in files), pickled]


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    for path in broken_files(tmp_path):
        for read in (load_weights, read_shapes, lambda p: load_into(nn.Linear(1, 1), p)):
            with pytest.raises(SemisupError, match=f"weights .*{path.name}: not a readable safetensors file"):
                read(path)


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SemisupError, match="nothing-here: no such file"):
        load_weights(tmp_path / "nothing-here")
    with pytest.raises(SemisupError, match="no such file"):
        read_shapes(str(tmp_path / "nothing-here"))
    with pytest.raises(SemisupError, match="not a readable safetensors file"):
        load_into(nn.Linear(1, 1), tmp_path)


def test_weights_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_weights(tmp_path / "a.safetensors", {"a": torch.ones(2)})
        os.umask(0o027)
        save_weights(tmp_path / "b.safetensors", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / f"{name}.safetensors").stat().st_mode) for name in "ab"]
    assert modes == [0o644, 0o640]

"""Weights files as other libraries write them: one file of each layout, made here."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from semisup.config import parse_recipe
from semisup.errors import SemisupError
from semisup.models import ModelSpec, save_weights
from semisup.models.foreign import file_shapes, file_tensors, finite_tensors, fit_names
from semisup.models.from_torchvision import drop_last_layer
from semisup.models.origin import file_origin
from semisup.models.prepared import NORMALIZATIONS
from semisup.settings import InitConfig
from semisup.stages.initial import load_initial_weights
from semisup.stages.networks import build_method
from tests.stages.stages_small import small_data, train_stage

State = dict[str, Tensor]


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def scrambled(state: State) -> State:
    return {name: tensor + 1 for name, tensor in state.items()}


def without_fc(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def sequential(state: State) -> State:
    """`nn.Sequential(*list(resnet.children())[:-1])`: what lightly's examples call the backbone."""
    network = torchvision.models.resnet18(num_classes=5)
    network.load_state_dict(state)
    return nn.Sequential(*list(network.children())[:-1]).state_dict()


def elsewhere(state: State) -> State:
    """As kuangliu/pytorch-cifar, SupContrast and lightly's own ResNets call the same."""
    return {name.replace(".downsample.", ".shortcut."): tensor for name, tensor in state.items()}


def without_counts(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def without_pooling(state: State) -> State:
    """`nn.Sequential` of a ResNet's children but for its pooling, as some have it for CIFAR's images."""
    network = torchvision.models.resnet18(num_classes=5)
    network.load_state_dict(state)
    parts = [part for name, part in network.named_children() if name not in ("maxpool", "fc")]
    return nn.Sequential(*parts).state_dict()


HEAD = {"projection_head.layers.0.weight": torch.zeros(8, 512), "projection_head.layers.0.bias": torch.zeros(8)}
# Layout: (suffix, content) of a torchvision ResNet-18's state dict, and the prefix that is to be found.
LAYOUTS: dict[str, tuple[str, Callable[[State], Any], str]] = {
    "torchvision": (".pth", lambda s: s, ""),
    "safetensors": (".safetensors", lambda s: s, ""),
    "hugging face .bin": (".bin", lambda s: s, ""),
    "timm": (
        ".pt",
        lambda s: {"epoch": 3, "arch": "resnet18", "state_dict": s, "args": argparse.Namespace(lr=1)},
        "state_dict.",
    ),
    "timm's average": (".pth.tar", lambda s: {"state_dict": scrambled(s), "state_dict_ema": s}, "state_dict_ema."),
    "torchvision's average": (
        ".pth",
        lambda s: {"model": scrambled(s), "model_ema": prefixed("module.", s) | {"n_averaged": torch.tensor(3)}},
        "model_ema.module.",
    ),
    "DataParallel": (".pth", lambda s: prefixed("module.", s), "module."),
    "torch.compile": (".pth", lambda s: prefixed("_orig_mod.", s), "_orig_mod."),
    "lightly": (".ckpt", lambda s: {"state_dict": prefixed("backbone.", sequential(s)) | HEAD}, "state_dict.backbone."),
    "lightly-train": (".pt", without_fc, ""),
    "lightly-train's checkpoint": (
        ".ckpt",
        lambda s: {
            "state_dict": prefixed("student_embedding_model.wrapped_model._model.", scrambled(s))
            | prefixed("teacher_embedding_model.wrapped_model._model.", s)
        },
        "state_dict.teacher_embedding_model.wrapped_model._model.",
    ),
    "MoCo": (
        ".pth.tar",
        lambda s: {
            "epoch": 1,
            "state_dict": prefixed("module.encoder_k.", scrambled(s)) | prefixed("module.encoder_q.", s),
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        },
        "state_dict.module.encoder_q.",
    ),
    "DINO": (
        ".pth",
        lambda s: {
            "student": prefixed("module.backbone.", scrambled(without_fc(s))),
            "teacher": prefixed("backbone.", without_fc(s)) | {"head.mlp.0.weight": torch.zeros(4, 512)},
            "args": argparse.Namespace(arch="resnet18"),
        },
        "teacher.backbone.",
    ),
    "DINOv2": (".pth", lambda s: {"teacher": prefixed("backbone.", without_fc(s))}, "teacher.backbone."),
    "Barlow Twins": (
        ".pth",
        lambda s: {"model": prefixed("module.backbone.", without_fc(s))},
        "model.module.backbone.",
    ),
    "VICReg": (".pth", without_fc, ""),
    "solo-learn": (
        ".ckpt",
        lambda s: {
            "state_dict": prefixed("momentum_backbone.", scrambled(without_fc(s)))
            | prefixed("backbone.", without_fc(s))
            | {"projector.0.weight": torch.zeros(8, 512)},
            "pytorch-lightning_version": "2.1",
        },
        "state_dict.backbone.",
    ),
    "VISSL": (
        ".torch.pth",
        lambda s: {"classy_state_dict": {"base_model": {"model": {"trunk": prefixed("_feature_blocks.", s)}}}},
        "classy_state_dict.base_model.model.trunk._feature_blocks.",
    ),
    "torchvision's first": (".pth", without_counts, ""),
    "FixMatch-pytorch": (
        ".pth.tar",
        lambda s: {"state_dict": scrambled(s), "ema_state_dict": s, "optimizer": {}},
        "ema_state_dict.",
    ),
    "TorchSSL": (".pth", lambda s: {"model": scrambled(s), "ema_model": s, "it": 3}, "ema_model."),
    "I-JEPA": (
        ".pth.tar",
        lambda s: {
            "encoder": prefixed("module.", scrambled(s)),
            "predictor": {"module.mask_token": torch.zeros(3)},
            "target_encoder": prefixed("module.", s),
        },
        "target_encoder.module.",
    ),
    "byol-pytorch": (
        ".pt",
        lambda s: prefixed("target_encoder.net.", scrambled(s)) | prefixed("online_encoder.net.", s),
        "online_encoder.net.",
    ),
    "SupContrast": (".pth", lambda s: {"model": prefixed("encoder.module.", elsewhere(s))}, "model.encoder.module."),
    "counted without pooling": (".pth", lambda s: prefixed("f.", without_pooling(s)), "f."),
    "compiled part": (
        ".pth",
        lambda s: {
            "model": {
                n.replace("layer1.", "layer1._orig_mod.").replace("layer2.", "layer2.module."): t for n, t in s.items()
            }
        },
        "model.",
    ),
    "own": (".safetensors", lambda s: prefixed("backbone.network.", without_fc(s)), "backbone.network."),
}


def write(path: Path, content: Any) -> None:
    if path.suffix == ".safetensors":
        save_weights(path, content)
    else:
        torch.save(content, path)


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(3)
    return torchvision.models.resnet18(num_classes=5).state_dict()


def fresh(name: str = "torchvision/resnet18", **options: Any) -> Any:
    recipe = parse_recipe({"name": "x", "stages": {"s": train_stage("supervised")}})
    spec = ModelSpec(name, options, 3, 32, 3)
    return build_method(recipe.stages["s"], spec, [], num_images=60, num_labeled=6, statistics=([0.5] * 3, [0.2] * 3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_fills_the_backbone(layout: str, state: State, tmp_path: Path) -> None:
    suffix, make, prefix = LAYOUTS[layout]
    path = tmp_path / f"weights{suffix}"
    write(path, make(state))
    method = fresh()
    report = load_initial_weights(method, InitConfig(), path, small_data().classes)
    assert report.fraction == 1
    said = [note for note in report.notes if "begin with" in note]
    assert said == ([f"names in the file begin with '{prefix}'"] if prefix and layout != "own" else [])
    loaded = method.model.backbone.network.state_dict()
    for name, tensor in without_fc(state).items():
        counts = name.endswith("num_batches_tracked")  # 0 where nobody has counted
        assert torch.equal(loaded[name], tensor) or (counts and loaded[name] == 0), name


def test_lightlys_own_resnet_fills_ours(tmp_path: Path) -> None:
    """Its parts are counted, without any of ReLU or pooling, and its shortcuts have that name."""
    theirs = fresh("resnet18").model.backbone.state_dict()
    parts = list(dict.fromkeys(name.partition(".")[0] for name in theirs))
    counted = {f"{parts.index(first)}.{rest}": t for n, t in theirs.items() for first, _, rest in [n.partition(".")]}
    torch.save({"state_dict": prefixed("backbone.", elsewhere(counted))}, tmp_path / "w.ckpt")
    method = fresh("resnet18")
    assert load_initial_weights(method, InitConfig(), tmp_path / "w.ckpt", []).fraction == 1
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in method.model.backbone.state_dict().items())


def test_the_names_of_published_densenets_are_found() -> None:
    network = torchvision.models.DenseNet(growth_rate=4, block_config=(1, 1), num_init_features=8, num_classes=2)
    state = network.state_dict()
    shapes = {re.sub(r"(denselayer\d\.[a-z]+)(\d)", r"\1.\2", name): tuple(t.shape) for name, t in state.items()}
    fit = fit_names(network, shapes)
    assert sorted(fit.names.values()) == sorted(shapes)
    assert all(shapes[theirs] == tuple(state[ours].shape) for ours, theirs in fit.names.items())


@pytest.mark.parametrize("counted", [False, True])
def test_a_deeper_network_is_no_start_for_one_that_has_its_first_blocks(counted: bool, tmp_path: Path) -> None:
    deeper = torchvision.models.resnet34(num_classes=5)
    network = nn.Sequential(*deeper.children()) if counted else deeper
    write(tmp_path / "w.pth", prefixed("backbone.", network.state_dict()))
    rule = rf"are of a deeper network, which has backbone\.{4 if counted else 'layer1'}\.2\.conv1\.weight"
    for name, options in (("torchvision/resnet18", {}), ("resnet18", {"stem": "imagenet"})):
        method, asked = fresh(name, **options), InitConfig(minimum_match=0.9)
        with pytest.raises(SemisupError, match=rf"init\.weights .*{rule}; init\.minimum_match below 1"):
            load_initial_weights(method, InitConfig(), tmp_path / "w.pth", [])
        assert load_initial_weights(method, asked, tmp_path / "w.pth", []).fraction == 1
    with pytest.raises(SemisupError, match=rf"model torchvision/resnet18: weights .*{rule}"):
        fresh(weights=str(tmp_path / "w.pth"))


def test_gray_kernels_see_in_three_equal_channels_what_they_saw(state: State, tmp_path: Path) -> None:
    gray = state | {"conv1.weight": state["conv1.weight"][:, :1]}
    write(tmp_path / "w.pth", gray)
    method = fresh()
    report = load_initial_weights(method, InitConfig(), tmp_path / "w.pth", [])
    assert report.fraction == 1 and any("takes gray images" in note for note in report.notes)
    images = torch.rand(2, 1, 16, 16)
    for network in (method.model.backbone.network, fresh(weights=str(tmp_path / "w.pth")).model.backbone.network):
        seen = network.conv1(images.expand(-1, 3, -1, -1))
        torch.testing.assert_close(seen, nn.functional.conv2d(images, gray["conv1.weight"], stride=2, padding=3))


def test_positions_of_another_grid_are_told_in_patches(tmp_path: Path) -> None:
    theirs = fresh("vit", patch=8, class_token=True, learned_grid=7).model.backbone.state_dict()
    write(tmp_path / "w.pth", theirs)
    said = r"pos_embed: positions of 7 x 7 \+ 1 tokens in the file, 4 x 4 \+ 1 in the network"
    with pytest.raises(SemisupError, match=said):
        method = fresh("vit", patch=8, class_token=True, learned_grid=4)
        load_initial_weights(method, InitConfig(), tmp_path / "w.pth", [])


def test_a_torchvision_transformer_takes_the_size_of_its_weights(tmp_path: Path) -> None:
    write(tmp_path / "w.pth", {"encoder.pos_embedding": torch.zeros(1, 197, 768)})
    sizes = {
        name: file_origin(name, tmp_path / "w.pth", 64) for name in ("torchvision/vit_b_16", "torchvision/resnet18")
    }
    assert {name: found.size for name, found in sizes.items() if found} == {
        "torchvision/vit_b_16": 224,
        "torchvision/resnet18": 64,
    }


@pytest.mark.parametrize("per_chunk", [1, 2])
def test_blocks_that_dinov2_trained_in_chunks_are_found(per_chunk: int) -> None:
    network = fresh("vit", depth=4).model.backbone
    shapes, origins = {}, {}
    for name, tensor in network.state_dict().items():
        theirs = re.sub(r"^blocks\.(\d)", lambda at: f"blocks.{int(at[1]) // per_chunk}.{at[1]}", name)
        origins[name] = f"teacher.backbone.{theirs}"
        shapes[origins[name]] = tuple(tensor.shape)
    assert fit_names(network, shapes).names == origins
    shapes["teacher.backbone.blocks.2.4.norm1.bias"] = (96,)
    assert fit_names(network, shapes).deeper == "teacher.backbone.blocks.2.4.norm1.bias"


def test_a_longer_head_is_no_deeper_network() -> None:
    network = torchvision.models.squeezenet1_1(num_classes=2)
    drop_last_layer(network)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes |= {"classifier.5.weight": (2, 7)}
    assert fit_names(network, shapes).deeper == ""
    assert fit_names(network, shapes | {"features.13.expand1x1.bias": (64,)}).deeper == "features.13.expand1x1.bias"


def test_a_file_with_another_wrappers_backbone_expects_what_others_weights_do(state: State, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    save_weights(theirs, prefixed("backbone.", state))
    save_weights(ours, prefixed("backbone.network.", state))
    origin = file_origin("torchvision/resnet18", theirs, 32)
    assert origin is not None and origin.mean == NORMALIZATIONS["imagenet"][0]
    assert file_origin("torchvision/resnet18", ours, 32) is None


def test_our_own_resnet_takes_torchvisions_numbers(state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": prefixed("backbone.", sequential(state))}, path)
    method = fresh("resnet18", stem="imagenet")
    report = load_initial_weights(method, InitConfig(), path, small_data().classes)
    assert report.fraction == 1 and any("counts the parts" in note for note in report.notes)
    assert torch.equal(method.model.backbone.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])


def test_our_own_resnet_takes_torchvisions_names(state: State, tmp_path: Path) -> None:
    write(tmp_path / "w.pth", state)
    method = fresh("resnet18", stem="imagenet")
    report = load_initial_weights(method, InitConfig(), tmp_path / "w.pth", small_data().classes)
    assert report.fraction == 1
    assert report.unexpected == ["fc.weight", "fc.bias"]


def test_other_names_are_replaced_by_rename(state: State, tmp_path: Path) -> None:
    strange = {name.replace("layer", "stage_"): tensor for name, tensor in without_fc(state).items()}
    write(tmp_path / "w.pt", strange)
    with pytest.raises(SemisupError, match="do not fit"):
        load_initial_weights(fresh(), InitConfig(), tmp_path / "w.pt", [])
    rename = {f"stage_{i}": f"layer{i}" for i in range(1, 5)}
    assert load_initial_weights(fresh(), InitConfig(rename=rename), tmp_path / "w.pt", []).fraction == 1


@pytest.mark.parametrize("name", ["weights.PTH", "weights", "weights.model"])
def test_what_a_file_is_its_bytes_say(name: str, tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2, 3)}
    for zipped in (True, False):
        torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert file_shapes(tmp_path / name) == {"a": (2, 3)}
    save_file(tensors, tmp_path / "weights.pth")
    assert torch.equal(file_tensors(tmp_path / "weights.pth", {"b": "a"})["b"], tensors["a"])


def test_a_file_that_has_nothing_of_the_network_says_how_to_rename(tmp_path: Path) -> None:
    write(tmp_path / "w.pt", {"a": torch.zeros(2)})
    with pytest.raises(SemisupError) as caught:
        load_initial_weights(fresh(), InitConfig(), tmp_path / "w.pt", [])
    assert "init.rename" in str(caught.value)
    assert "unexpected: a" in str(caught.value)


class _Trap:
    """What runs code when it is unpickled: it makes a file."""

    def __init__(self, file: Path, function: Callable[..., Any] = open) -> None:
        self.file, self.function = file, function

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.function, (str(self.file), "w"))


class _Mine:
    """What a script of one's own keeps next to the weights."""


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (pickle.dumps({"weight": _Trap(Path("/dev/null"))}), "could run code"),
        (b"<html>404", "neither a file of torch.save nor one of safetensors"),
        (None, "no such file"),
    ],
    ids=["pickle", "nonsense", "missing"],
)
def test_a_file_that_is_not_plain_tensors_is_refused(content: bytes | None, rule: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SemisupError, match=rule):
        file_shapes(path)


def test_objects_next_to_the_weights_are_not_made(tmp_path: Path) -> None:
    """What Lightning, timm and one's own scripts keep there: figures of NumPy, paths, settings."""
    others = {"best": np.float64(0.9), "losses": np.arange(3.0), "args": argparse.Namespace(out=tmp_path, kind=int)}
    torch.save({"state_dict": {"weight": torch.ones(2)}, **others, "mine": _Mine()}, tmp_path / "w.pth")
    assert file_shapes(tmp_path / "w.pth") == {"state_dict.weight": (2,)}


@pytest.mark.parametrize(
    "function", [open, exec, subprocess.call, shutil.rmtree], ids=lambda function: function.__name__
)
def test_a_file_that_would_run_something_next_to_its_weights_is_refused(
    function: Callable[..., Any], tmp_path: Path
) -> None:
    trap = _Trap(tmp_path / "ran", function)
    torch.save({"state_dict": {"weight": torch.ones(2)}, "trap": trap}, tmp_path / "w.pth")
    with pytest.raises(SemisupError, match=rf"could run code; .*\.{function.__name__}\)"):
        file_shapes(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ({"model": nn.Linear(2, 2), "optimizer": {0: torch.ones(2)}}, r"save its state_dict alone \(.*a whole network"),
        ({"weight": np.ones(2)}, r"holds no tensors, and objects that are not read \(numpy"),
        (
            {"weight": torch.ones(2), "log": defaultdict(list, a=[1])},
            r"alone \(among it builtins\.list, collections\.defaultdict\)",
        ),
    ],
    ids=["network", "arrays", "what is filled"],
)
def test_weights_within_objects_are_refused_by_what_they_are(content: Any, rule: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(SemisupError, match=rf"^weights .*w\.pth: .*{rule}"):
        file_shapes(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_folder_and_a_program_are_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SemisupError, match=r"is a folder; name a file, e\.g\. .*model\.safetensors"):
        file_shapes(tmp_path)
    os.mkfifo(tmp_path / "pipe.pth")  # which nobody writes to: opening it would wait for ever
    with pytest.raises(SemisupError, match=r"weights .*pipe\.pth: cannot be read \(a pipe or a device, not a file\)"):
        file_shapes(tmp_path / "pipe.pth")
    torch.jit.save(torch.jit.script(nn.Linear(2, 3)), tmp_path / "program.pt")
    with pytest.raises(SemisupError, match="TorchScript"):
        file_shapes(tmp_path / "program.pt")


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        (lambda t: t.to(torch.int8), "not torch.int8"),
        (lambda t: t.to(torch.float8_e4m3fn), "not torch.float8"),
        (lambda t: t.to(torch.complex64), "not torch.complex64"),
        (lambda t: t.to_sparse(), "not torch.sparse_coo"),
        (lambda t: t.to("meta"), "not a shape without any, of the meta device"),
        (lambda t: torch.full_like(t, 1e300, dtype=torch.float64), "NaN or infinite"),
    ],
    ids=["int8", "float8", "complex", "sparse", "meta", "too large"],
)
def test_numbers_that_are_not_the_weights_themselves_are_refused(
    changed: Callable[[Tensor], Tensor], rule: str, tmp_path: Path
) -> None:
    network = nn.BatchNorm1d(3)
    state = network.state_dict() | {"num_batches_tracked": torch.tensor(2.0)}
    names = {name: name for name in state}
    torch.save(state, tmp_path / "w.pth")
    assert finite_tensors(tmp_path / "w.pth", names, "w", network.state_dict()).keys() == state.keys()
    torch.save(state | {"weight": changed(state["weight"])}, tmp_path / "w.pth")
    with pytest.raises(SemisupError, match=f"w: weight .*{rule}"):
        finite_tensors(tmp_path / "w.pth", names, "w", network.state_dict())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_what_has_no_shape_is_left_out_and_what_holds_itself_is_read_once(tmp_path: Path) -> None:
    inner: dict[str, Any] = {"weight": torch.ones(2)}
    inner["again"] = inner
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(1)])
    torch.save({"model": inner, "ragged": nested}, tmp_path / "w.pth")
    assert file_shapes(tmp_path / "w.pth") == {"model.weight": (2,)}


def test_a_prefix_to_rename_that_no_name_has_is_said(state: State, tmp_path: Path) -> None:
    write(tmp_path / "w.pt", prefixed("trunk.", state))
    report = load_initial_weights(fresh(), InitConfig(rename={"trunck.": ""}), tmp_path / "w.pt", [])
    assert "init.rename: no name of the file begins with 'trunck.'" in report.notes


def test_a_cut_file_and_one_without_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "w.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:2000])
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    for name, rule in (("cut", "cut short|could run code"), ("none", "no tensors")):
        with pytest.raises(SemisupError, match=rule):
            file_shapes(tmp_path / f"{name}.pt")


def test_some_tensors_of_a_file_are_read(tmp_path: Path) -> None:
    state = {name: torch.full((2,), float(i)) for i, name in enumerate("abcdef")}
    for name in ("w.safetensors", "w.pt"):
        write(tmp_path / name, state)
        assert {k: v.tolist() for k, v in file_tensors(tmp_path / name, {"x": "c"}).items()} == {"x": [2, 2]}


def test_the_prefix_with_most_fitting_weights_is_taken() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    shapes = {"a.0.weight": (3, 2), "b.0.weight": (3, 2), "b.1.weight": (4, 3), "c.0.weight": (9, 9), "c.1.bias": (9,)}
    fit = fit_names(network, shapes)
    assert (fit.prefix, fit.names) == ("b.", {"0.weight": "b.0.weight", "1.weight": "b.1.weight"})

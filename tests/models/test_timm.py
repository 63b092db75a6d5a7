"""timm's networks as backbones: convolutional and of tokens, random, from a file, and from a local hub folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis.strategies import DataObject

from semisup.errors import SemisupError
from semisup.models import ModelSpec, build_backbone, build_classifier, check_model, load_weights, save_weights
from semisup.models.from_timm import _source, fill_from_file, timm_ends, timm_takes, weights_of
from semisup.models.hub_description import read_description
from semisup.models.origin import weights_origin
from semisup.stages.initial import check_model_weights
from tests.faults.fuzzing import damaged, fuzz, outcome
from tests.nursery import Nursery

timm = pytest.importorskip("timm")
VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8}


def test_features_are_what_timms_classifier_would_see() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    for name, width, channels in (("resnet10t", 512, 512), ("mobilenetv3_small_050", 1024, 288)):
        backbone = build_backbone(f"timm/{name}", {}, in_channels=3, image_size=32).eval()
        features = backbone(images)
        assert features.shape == (2, backbone.num_features) == (2, width)
        theirs = backbone.network.forward_head(backbone.network.forward_features(images), pre_logits=True)
        assert torch.equal(features, theirs)
        maps = backbone.maps(images)
        assert maps[-1].shape[:2] == (2, channels)


def test_a_token_network_takes_another_size_than_its_own() -> None:
    backbone = build_backbone("timm/vit_tiny_patch16_224", {}, in_channels=1, image_size=48).eval()
    images = torch.randn(2, 1, 48, 48)
    assert backbone(images).shape == (2, 192)
    assert backbone.maps(images)[-1].shape == (2, 192, 3, 3)


def test_which_sizes_and_ends_a_network_has(tmp_path: Path) -> None:
    takes = {
        "resnet10t": True,
        "test_vit": True,
        "mixer_s32_224": False,
        "vit_small_patch32_224": False,
        "nonet": False,
    }
    assert {name: timm_takes(name, 112) for name in takes} == takes
    assert {name: timm_ends(name, 8) for name in ("tf_efficientnet_lite0", "mixer_s32_224")} == {
        "tf_efficientnet_lite0": 8,
        "mixer_s32_224": 4,
    }
    save_weights(tmp_path / "w.safetensors", timm.create_model("mixer_s32_224").state_dict())
    with pytest.raises(SemisupError, match=r"do not fit; the network's own size is 224 px \(resize\)"):
        build_backbone("timm/mixer_s32_224", {"weights": str(tmp_path / "w.safetensors")}, in_channels=3, image_size=96)


def test_a_file_fills_it_and_its_own_input_is_used(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = timm.create_model("resnet10t", num_classes=7)
    torch.save({"state_dict": {f"module.{n}": t for n, t in network.state_dict().items()}}, tmp_path / "w.pth")
    options = {"weights": str(tmp_path / "w.pth")}
    backbone = build_backbone("timm/resnet10t", options, in_channels=3, image_size=32)
    assert torch.equal(backbone.network.conv1[0].weight, network.conv1[0].weight)
    origin = weights_origin("timm/resnet10t", options)
    assert origin is not None
    assert (origin.size, origin.mean[0]) == (176, 0.485)
    again = build_classifier(ModelSpec("timm/resnet10t", options, 3, 32, 2), pretrained=False)
    assert not torch.equal(again.backbone.network.conv1[0].weight, network.conv1[0].weight)


@pytest.mark.parametrize(
    ("name", "options", "rule"),
    [
        ("timm/resnet10", {}, "did you mean 'resnet10t'"),
        ("timm/resnet10t.c3_in1", {}, "did you mean 'resnet10t.c3_in1k'"),
        ("timm/resnet10t", {"weights": 3}, "weights: must be"),
        ("timm/resnet10t", {"weights": "no.safetensors"}, "no such file"),
        ("timm/resnet10t", {"depth": 3}, "depth: unknown key"),
    ],
)
def test_wrong_names_and_options_are_named(name: str, options: dict[str, object], rule: str) -> None:
    assert rule in " ".join(check_model({"name": name, **options}, "model"))


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", timm.create_model("resnet18").state_dict())
    with pytest.raises(SemisupError, match="do not fit"):
        build_backbone("timm/resnet10t", {"weights": str(tmp_path / "w.safetensors")}, in_channels=3, image_size=32)


def test_a_file_with_nan_is_refused_before_it_is_used(tmp_path: Path) -> None:
    state = timm.create_model("resnet10t").state_dict()
    state["bn1.running_var"][0] = torch.nan
    save_weights(tmp_path / "w.safetensors", state)
    network, file = timm.create_model("resnet10t"), tmp_path / "w.safetensors"
    spec = ModelSpec("timm/resnet10t", {"weights": str(file)}, in_channels=3, image_size=32, num_classes=2)
    for use in (
        lambda: fill_from_file(network, file, "model timm/resnet10t"),
        lambda: check_model_weights(network, spec),
    ):
        with pytest.raises(SemisupError, match=r"resnet10t: weights .*: bn1\.running_var holds NaN or infinite values"):
            use()


def local_hub(home: Path, repository: str, config: dict[str, object], state: dict[str, torch.Tensor]) -> None:
    """A repository as the hub's own client leaves it in its cache."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text(json.dumps(config))
    save_weights(snapshot / "model.safetensors", state)


GIVEN = {"input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.3] * 3}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ([1], "Described"),
        ({"architecture": 3}, "architecture: "),
        ({"architecture": "resnet10t", "pretrained_cfg": None}, "Pretrained"),
        ({"architecture": "resnet10t", **GIVEN, "input_size": ["x", 1], "std": [0.0]}, "input_size.*std"),
        ({"architecture": "resnet10t", **GIVEN, "mean": [float("nan")]}, "mean"),
        ({"architecture": "resnet10", **GIVEN}, "did you mean 'resnet10t'"),
        (
            {"architecture": "resnet10t", **GIVEN, "model_args": {"checkpoint_path": "x.pth"}},
            "not have checkpoint_path",
        ),
    ],
)
def test_a_damaged_description_is_refused(config: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(SemisupError, match=rf"(?s)model timm/x: .*config\.json: .*{said}"):
        read_description(path, "model timm/x")


def test_random_damage_to_a_description(tmp_path: Path) -> None:
    path, config = tmp_path / "config.json", {"architecture": "vit_tiny_patch16_224", "model_args": VIT, **GIVEN}

    def build() -> None:
        described, images = read_description(path, "x")
        source = _source(described.architecture, described.model_args, None, images.model_dump())
        assert source.size >= 1 and min(source.std) > 0

    def one(data: DataObject) -> None:
        path.write_bytes(json.dumps(damaged(data, config, [{}])).encode("utf-8", "surrogatepass"))
        outcome(build)

    fuzz(20, one)


RUN = """
import sys, semisup
from semisup.config import parse_recipe
recipe = {
    "name": "hub", "device": "cpu", "tracking": {"mlflow": False},
    "data": {"source": "digits", "labels": 40},
    "model": {"name": "timm/hf-hub:someone/tiny", "weights": "pretrained"},
    "stages": {"train": {"method": {"name": "supervised"}, "steps": 1, "ema": None, "freeze": True,
                         "optimizer": {"lr": 1e-30, "weight_decay": 0.0}, "batch": {"labeled": 4}}},
}
semisup.run(parse_recipe(recipe), out=sys.argv[1])
"""


def test_weights_come_from_the_hubs_cache_without_a_network(nursery: Nursery, tmp_path: Path) -> None:
    torch.manual_seed(2)
    state = timm.create_model("vit_tiny_patch16_224", **VIT).state_dict()
    cfg = {"input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.3] * 3, "fixed_input_size": True, "license": "mit"}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": VIT, "pretrained_cfg": cfg}
    local_hub(tmp_path / "home", "someone/tiny", config, state)
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    code, output = nursery.run(tmp_path, str(tmp_path / "runs" / "hub"), code=RUN, environment=environment)
    assert code == 0, output
    said = " ".join(output.split())
    assert "license mit" in said
    assert "32 px, 3 channels, mean 0.4 0.4 0.4" in said
    record = json.loads((tmp_path / "runs" / "hub" / "train" / "stage.json").read_text())
    assert record["weights"] == "someone/tiny of the hub, license mit"
    logged = (tmp_path / "runs" / "hub" / "events.jsonl").read_text()
    assert "someone/tiny of the hub, license mit" in logged, "the tracker is told, too"
    assert "the backbone frozen; 0 of the backbone's" in said
    assert "BatchNorm statistics" not in output
    trained = load_weights(tmp_path / "runs" / "hub" / "train" / "model.safetensors")
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(trained[f"backbone.network.network.{name}"], state[name])


def test_the_hub_is_asked_once_for_what_it_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def fetch(repository: str, file: str) -> str:
        asked.append(f"{repository}/{file}")
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    monkeypatch.setattr("semisup.models.from_timm._MISSED", {})
    rule = r"model timm/resnet10t: model.safetensors of timm/resnet10t.c3_in1k .* fetched \(Name or service not known\)"
    for _ in range(3):
        with pytest.raises(SemisupError, match=rule):
            weights_of("resnet10t")
    assert asked == ["timm/resnet10t.c3_in1k/model.safetensors"]
    monkeypatch.setattr("semisup.models.from_timm.ASK_AGAIN", -1.0)
    with pytest.raises(SemisupError, match=rule):
        weights_of("resnet10t")
    assert len(asked) == 2


def test_features_are_the_class_token_or_the_mean_of_the_patches() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    name, sizes = "timm/vit_tiny_patch16_224", {"in_channels": 3, "image_size": 32}
    given, mean = build_backbone(name, {}, **sizes).eval(), build_backbone(name, {"pool": "mean"}, **sizes).eval()
    mean.load_state_dict(given.state_dict())
    tokens = given.network.forward_features(images)
    assert torch.equal(given(images), tokens[:, 0])
    torch.testing.assert_close(mean(images), tokens[:, 1:].mean(1))
    named = build_backbone(name, {"pool": "class"}, **sizes).eval()
    named.load_state_dict(given.state_dict())
    assert torch.equal(named(images), given(images))
    with pytest.raises(SemisupError, match="pool: only a network of tokens has a choice"):
        build_backbone("timm/resnet10t", {"pool": "mean"}, **sizes)
    assert "pool: must be one of mean, class" in check_model({"name": name, "pool": "token"}, "model")[0]


def test_a_network_may_end_after_its_first_blocks(tmp_path: Path) -> None:
    """The small one has the large one's weights: its features are the means of what the next block is given."""
    torch.manual_seed(0)
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    save_weights(tmp_path / "lite0.safetensors", whole.state_dict())
    options = {"weights": str(tmp_path / "lite0.safetensors"), "blocks": 8}
    backbone = build_backbone("timm/tf_efficientnet_lite0", options, in_channels=3, image_size=64).eval()
    given: list[torch.Tensor] = []
    whole.blocks[4].register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        whole(images)
        assert torch.allclose(backbone(images), given[0].mean((2, 3)), atol=1e-6)
    assert backbone.num_features == 80
    assert sum(p.numel() for p in backbone.parameters()) < 300_000
    with pytest.raises(SemisupError, match="blocks: must be less than the network's 16 blocks, not 16"):
        build_backbone("timm/tf_efficientnet_lite0", {"blocks": 16}, in_channels=3, image_size=64)
    tokens = build_backbone("timm/vit_tiny_patch16_224", {"blocks": 2}, in_channels=3, image_size=32)
    assert tokens(images[:, :, :32, :32]).shape == (2, 192)

"""Names, options and specs: what is refused, in which words, and that building needs no more than the spec."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from semisup.errors import SemisupError
from semisup.models import (
    BACKBONES,
    Classifier,
    Encoder,
    ModelSpec,
    ProjectionHead,
    build_backbone,
    build_classifier,
    check_model,
    image_channels,
    model_signature,
)
from semisup.models.from_torchvision import TorchvisionBackbone, classifier_names
from semisup.options import option_defaults
from semisup.stages.initial import check_model_weights


def test_every_backbone_stands_under_its_name_and_its_defaults_are_valid() -> None:
    for name, cls in BACKBONES.items():
        assert cls.name == name
        assert check_model({"name": name, **option_defaults(cls)}, "model") == []


def test_signatures_give_options_and_defaults_only() -> None:
    assert {k: p.default for k, p in model_signature("wrn").items()} == {"depth": 28, "width": 2, "bn_momentum": 0.001}
    assert {k: p.default for k, p in model_signature("resnet50").items()} == {
        "width": 1.0,
        "stem": "cifar",
        "sk": False,
    }
    assert list(model_signature("cnn")) == ["width"]
    assert list(model_signature("torchvision/resnet18")) == ["weights"]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("wnr", {}, "unknown model 'wnr'; did you mean 'wrn'?"),
        ("resnet51", {}, "unknown model 'resnet51'; did you mean 'resnet5"),
        ("mobilenet_v2", {}, "unknown model 'mobilenet_v2'; did you mean 'torchvision/mobilenet_v2'?"),
        ("zzz", {}, "unknown model 'zzz'; valid: cnn, resnet18, resnet34, resnet50, timm/<name>, torchvision/<name>"),
        (7, {}, "name: must be text, not 7"),
        ("cnn", {"widht": 3}, "widht: unknown key; did you mean 'width'?"),
        ("cnn", {"width": 0}, "width: must be at least 1, not 0"),
        ("cnn", {"width": True}, "width: must be a whole number, not true"),
        ("wrn", {"depth": 27}, "depth: must be 6n+4, not 27; the nearest are 22 and 28"),
        ("wrn", {"bn_momentum": 0}, "bn_momentum: must be greater than 0, not 0"),
        ("wrn", {"bn_momentum": float("nan")}, "bn_momentum: must be a finite number, not nan"),
        ("resnet18", {"sk": True}, "sk: needs the bottleneck blocks of resnet50: resnet18 has none, not true"),
        ("resnet50", {"stem": "imagnet"}, "did you mean 'imagenet'?"),
        ("vit", {"width": 90}, "width: must be a multiple of 4 (sine and cosine of row and column), not 90"),
        ("vit", {"width": 100}, "width: must be a multiple of heads=3, not 100"),
        ("vit", {"depth": 2}, "depth: must be at least 3, not 2"),
        ("vit", {"mlp_ratio": 0}, "mlp_ratio: must be greater than 0, not 0"),
        ("torchvision/resnet81", {}, "resnet81 is no classifier of torchvision; did you mean 'resnet18'?"),
        ("torchvision/inception_v3", {}, "auxiliary outputs"),
        ("torchvision/googlenet", {}, "auxiliary outputs"),
        ("torchvision/resnet18", {"weights": "IMAGENET1K_V9"}, "did you mean 'IMAGENET1K_V1'?"),
        ("torchvision/resnet18", {"width": 2}, "width: unknown key"),
        ("torchvision/resnet18", {"size": 2}, "size: unknown key; did you mean 'resize'?"),
        ("resnet18", {"weights": "w.pth"}, "weights: unknown key; `init: {weights: FILE}` of a stage starts this"),
    ],
)  # fmt: skip
def test_one_mistake_gives_one_sentence(name: str, options: dict[str, object], expected: str) -> None:
    problems = check_model({"name": name, **options}, "model")
    assert len(problems) == 1
    assert expected in problems[0]
    if isinstance(name, str):
        with pytest.raises(SemisupError) as error:
            build_backbone(name, options, in_channels=3, image_size=32)
        assert expected in str(error.value)


def test_all_mistakes_are_listed() -> None:
    assert len(check_model({"name": "wrn", "depth": 9, "width": 0, "wdth": 1}, "model")) == 3
    with pytest.raises(SemisupError, match="4 problems"):
        build_backbone("cnn", {"width": -1, "depth": 3}, in_channels=0, image_size=7)


def test_huge_models_are_checked_without_being_built() -> None:
    assert check_model({"name": "wrn", "depth": 6 * 166 + 4, "width": 10**6}, "model") == []
    assert check_model({"name": "wrn", "depth": 10**6}, "model") == ["model.depth: must be at most 1000, not 1000000"]


def test_torchvision_weights_are_known_by_either_spelling() -> None:
    for weights in (None, "DEFAULT", "IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"):
        assert check_model({"name": "torchvision/resnet18", "weights": weights}, "model") == []


# ---------------------------------------------------------------------------------------------------------- ModelSpec


def test_a_spec_survives_json_and_rebuilds_the_same_network() -> None:
    spec = ModelSpec("resnet50", {"width": 0.25, "sk": True}, 1, 28, 7, neck=[24, 16], neck_final=True)
    again = ModelSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    first, second = build_classifier(spec), build_classifier(again)
    assert {k: v.shape for k, v in first.state_dict().items()} == {k: v.shape for k, v in second.state_dict().items()}
    assert first.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 7)


def test_a_spec_without_a_neck_need_not_say_so() -> None:
    spec = ModelSpec.from_json({"name": "cnn", "options": {}, "in_channels": 1, "image_size": 8, "num_classes": 10})
    assert spec.neck == []
    assert not spec.neck_final


def test_a_broken_spec_is_refused_in_full() -> None:
    good = ModelSpec("cnn", {}, 1, 8, 10).to_json()
    with pytest.raises(SemisupError, match="nam: unknown key; did you mean 'name'"):
        ModelSpec.from_json({**good, "nam": 1})
    with pytest.raises(SemisupError, match="num_classes: missing"):
        ModelSpec.from_json({k: v for k, v in good.items() if k != "num_classes"})
    bad = {"options": None, "in_channels": "1", "image_size": 4, "num_classes": 0, "neck": [0], "neck_final": 1}
    with pytest.raises(SemisupError) as error:
        ModelSpec.from_json({**good, **bad})
    assert "6 problems" in str(error.value)
    assert all(key in str(error.value) for key in bad)
    with pytest.raises(SemisupError, match="neck: must be a list, not 3"):
        ModelSpec.from_json({**good, "neck": 3})
    with pytest.raises(SemisupError, match="num_classes"):
        build_classifier(ModelSpec("cnn", {}, 1, 8, 0))


# ------------------------------------------------------------------------------------------- heads, encoder, classifier


def test_projection_head_is_simclr_v2s() -> None:
    head = ProjectionHead(20, 12, 8, 3)
    assert [[type(m) for m in block] for block in head.layers] == [
        [nn.Linear, nn.BatchNorm1d, nn.ReLU],
        [nn.Linear, nn.BatchNorm1d, nn.ReLU],
        [nn.Linear, nn.BatchNorm1d],
    ]
    assert [(b[0].in_features, b[0].out_features, b[0].bias) for b in head.layers] == [
        (20, 12, None),
        (12, 12, None),
        (12, 8, None),
    ]
    assert [name for name, _ in head.layers[2].named_parameters()] == ["0.weight", "1.weight"]
    assert head.layers[0][1].bias is not None
    torch.manual_seed(0)
    projections = head(torch.randn(64, 20))
    assert projections.min() < 0  # no ReLU at the end
    torch.testing.assert_close(projections.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    projections.square().sum().backward()
    assert all(p.grad is not None for p in head.parameters())


def test_truncating_the_head_gives_its_first_blocks() -> None:
    torch.manual_seed(0)
    head = ProjectionHead(20, 12, 8, 3).eval()
    x = torch.randn(4, 20)
    assert torch.equal(head.truncate(0)(x), x)
    assert head.truncate(1)(x).shape == (4, 12)
    assert (head.truncate(1)(x) >= 0).all()
    assert torch.equal(head.truncate(3)(x), head(x))
    assert head.truncate(2)[1] is head.layers[1]
    for n in (-1, 4):
        with pytest.raises(SemisupError, match="n must be between 0 and 3"):
            head.truncate(n)
    with pytest.raises(SemisupError, match="needs a layer"):
        ProjectionHead(20, 0, 8, 0)


def test_a_kept_head_layer_rebuilds_from_the_spec() -> None:
    """SimCLRv2: pretrain with three layers, fine-tune from the first; also keeping all three."""
    torch.manual_seed(0)
    backbone = build_backbone("cnn", {"width": 4}, in_channels=1, image_size=8)
    encoder = Encoder(backbone, ProjectionHead(16, 16, 6, 3)).eval()
    images = torch.randn(3, 1, 8, 8)
    assert encoder.num_features == 16
    assert encoder(images).shape == (3, 16)
    for kept, widths in ((1, [16]), (3, [16, 16, 6])):
        classifier = build_classifier(ModelSpec("cnn", {"width": 4}, 1, 8, 5, neck=widths, neck_final=kept == 3)).eval()
        classifier.backbone.load_state_dict(backbone.state_dict())
        classifier.neck.load_state_dict(encoder.projector.truncate(kept).state_dict())
        torch.testing.assert_close(classifier.features(images), encoder.projector.truncate(kept)(encoder(images)))
        assert classifier.num_features == widths[-1]
        torch.testing.assert_close(classifier(images), classifier.head(classifier.features(images)))


def test_the_head_starts_glorot_or_at_zero() -> None:
    torch.manual_seed(0)
    spec = ModelSpec("cnn", {"width": 64}, 1, 8, 100)
    head = build_classifier(spec).head
    assert abs(head.weight.std().item() / (2 / (256 + 100)) ** 0.5 - 1) < 0.03
    assert not head.bias.any()
    zero = build_classifier(spec, zero_head=True)
    assert not zero.eval()(torch.randn(2, 1, 8, 8)).any()


def test_a_backbone_must_say_its_width() -> None:
    with pytest.raises(SemisupError, match="backbone Flatten must have a whole number num_features"):
        Classifier(nn.Flatten(), nn.Sequential(), 3)
    with pytest.raises(SemisupError, match="num_features"):
        Encoder(nn.Flatten())
    with pytest.raises(SemisupError, match="backbone Flatten must have a whole number in_channels"):
        image_channels(nn.Flatten())
    with pytest.raises(ValueError, match="no projector"):
        Encoder(build_backbone("cnn", {}, in_channels=1, image_size=8)).project(torch.zeros(2, 1, 8, 8))


# ---------------------------------------------------------------------------------------------------------- torchvision


@pytest.mark.parametrize(
    ("name", "size", "features"),
    [
        ("mobilenet_v3_small", 32, 1024),
        ("squeezenet1_1", 64, 512),
        ("shufflenet_v2_x0_5", 32, 1024),
        ("vit_b_16", 32, 768),
    ],
)
def test_torchvision_features(name: str, size: int, features: int) -> None:
    backbone = build_backbone(f"torchvision/{name}", {}, in_channels=1, image_size=size).eval()
    with torch.no_grad():
        assert backbone(torch.randn(2, 1, size, size)).shape == (2, features)
    assert backbone.num_features == features


def test_torchvision_gray_input_is_the_same_as_three_equal_channels() -> None:
    torch.manual_seed(0)
    gray = TorchvisionBackbone("mobilenet_v3_small", in_channels=1, image_size=32)
    assert image_channels(gray) == 1
    torch.manual_seed(0)
    rgb = TorchvisionBackbone("mobilenet_v3_small", in_channels=3, image_size=32)
    images = torch.randn(2, 1, 32, 32)
    # At the first convolution: all later layers have equal weights, and shrink random signals to nothing.
    first, theirs = gray.network.features[0][0], rgb.network.features[0][0]
    torch.testing.assert_close(first(images), theirs(images.expand(2, 3, 32, 32)))
    pairs = zip(gray.named_parameters(), rgb.parameters(), strict=True)
    assert [name for (name, a), b in pairs if not torch.equal(a, b)] == ["network.features.0.0.weight"]


def test_torchvision_features_are_what_its_classifier_saw() -> None:
    from torchvision import models

    torch.manual_seed(0)
    theirs = models.mobilenet_v3_small().eval()
    torch.manual_seed(0)
    ours = TorchvisionBackbone("mobilenet_v3_small", image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(theirs.classifier[3](ours(images)), theirs(images))
    # Trying the size took eval mode; every layer must be back in train mode.
    assert all(m.training for m in TorchvisionBackbone("squeezenet1_1", image_size=64).modules())


def test_torchvision_refuses_sizes_and_channels_it_cannot_process() -> None:
    with pytest.raises(SemisupError, match="torchvision/squeezenet1_1: cannot process images of 8 px"):
        build_backbone("torchvision/squeezenet1_1", {}, in_channels=3, image_size=8)
    with pytest.raises(SemisupError, match="torchvision/vit_b_16: cannot be built for 40 px images"):
        build_backbone("torchvision/vit_b_16", {}, in_channels=3, image_size=40)
    with pytest.raises(SemisupError, match="in_channels: must be 1 or 3, not 4"):
        build_backbone("torchvision/resnet18", {}, in_channels=4, image_size=32)


def test_torchvision_weights_are_fetched_only_when_wanted(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # An empty cache and a proxy that refuses: what a machine without a network sees.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    options = {"weights": "DEFAULT"}
    with pytest.raises(SemisupError, match=r"squeezenet1_1: weights of .* could not be fetched"):
        build_backbone("torchvision/squeezenet1_1", options, in_channels=3, image_size=64)
    spec = ModelSpec("torchvision/squeezenet1_1", options, 3, 64, 4)
    classifier = build_classifier(spec, pretrained=False)
    assert classifier.num_features == 512
    with pytest.raises(SemisupError, match=r"squeezenet1_1: weights of .* could not be fetched"):
        check_model_weights(classifier.backbone, spec)  # when a stage is planned


def test_all_torchvision_classifiers_are_offered() -> None:
    names = classifier_names()
    assert len(names) > 70
    assert "googlenet" not in names

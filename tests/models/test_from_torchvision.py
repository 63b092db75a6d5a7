"""Pretrained weights from torch hub's cache: compared before they are read, and read without running anything."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch

from semisup.errors import SemisupError
from semisup.models import from_torchvision
from semisup.models.from_torchvision import TorchvisionBackbone, check_torchvision, fetch_published, weights_name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch hub's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


class Planted:
    """Its pickle makes a folder when it is read."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.victim),)


def in_cache(cache: Path, content: bytes) -> str:
    """Put a file there under a name with its checksum, and return an address that has it."""
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (cache / name).write_bytes(content)
    return f"https://nowhere.example/models/{name}"


def test_a_planted_pickle_in_the_cache_is_not_run(cache: Path, tmp_path: Path) -> None:
    planted = pickle.dumps(Planted(tmp_path / "ran"), protocol=2)
    (cache / "squeezenet1_1-b8a52dc0.pth").write_bytes(planted)
    with pytest.raises(SemisupError, match=r"squeezenet1_1-b8a52dc0\.pth is damaged or another file"):
        TorchvisionBackbone("squeezenet1_1", "DEFAULT", image_size=64)
    with pytest.raises(SemisupError, match="holds no weights"):  # eight digits of a checksum can be found by trying
        fetch_published(in_cache(cache, planted), "model")
    torch.save({"a": Planted(tmp_path / "ran")}, tmp_path / "zip.pth")
    with pytest.raises(SemisupError, match="holds no weights"):
        fetch_published(in_cache(cache, (tmp_path / "zip.pth").read_bytes()), "model")
    assert not (tmp_path / "ran").exists()
    pickle.loads(planted)  # noqa: S301 (what the test guards against)
    assert (tmp_path / "ran").exists(), "it would have"


def test_a_file_with_its_checksum_is_read(cache: Path, tmp_path: Path) -> None:
    torch.save({"denselayer1.norm.1.weight": torch.ones(3)}, tmp_path / "net.pth")
    state = fetch_published(in_cache(cache, (tmp_path / "net.pth").read_bytes()), "model")
    assert list(state) == ["denselayer1.norm1.weight"] and torch.equal(state["denselayer1.norm1.weight"], torch.ones(3))


def test_a_file_that_cannot_be_fetched_is_one_message(cache: Path) -> None:
    with pytest.raises(SemisupError, match="could not be fetched"):
        fetch_published(
            (cache / "nosuch-12345678.pth").with_name("elsewhere").as_uri() + "/nosuch-12345678.pth", "model"
        )


def test_the_network_has_the_weights_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    state = models.get_model("squeezenet1_1").state_dict()
    monkeypatch.setattr(from_torchvision, "fetch_published", lambda url, subject: state)
    network = TorchvisionBackbone("squeezenet1_1", "IMAGENET1K_V1", image_size=64).network.state_dict()
    assert network and all(torch.equal(network[name], state[name]) for name in network)


def test_pretrained_is_torchvisions_default_and_a_file_is_one_by_its_content(tmp_path: Path) -> None:
    assert check_torchvision("squeezenet1_1", weights="pretrained") == []
    assert check_torchvision("squeezenet1_1", weights="pretraind")[0].endswith("did you mean 'pretrained'?")
    assert weights_name("pretrained") == "DEFAULT"
    assert weights_name("SqueezeNet1_1_Weights.IMAGENET1K_V1") == "IMAGENET1K_V1"
    own = TorchvisionBackbone("squeezenet1_1", image_size=64).state_dict()
    for name in ("W.PTH", "w"):
        torch.save({key.removeprefix("network."): value for key, value in own.items()}, tmp_path / name)
        assert check_torchvision("squeezenet1_1", weights=str(tmp_path / name)) == []
        read = TorchvisionBackbone("squeezenet1_1", str(tmp_path / name), image_size=64).state_dict()
        assert all(torch.equal(own[key], value) for key, value in read.items())


def test_weights_of_another_image_size_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    state = models.get_model("vit_b_16").state_dict()
    monkeypatch.setattr(from_torchvision, "fetch_published", lambda url, subject: state)
    with pytest.raises(SemisupError, match="do not fit images of 64 px"):
        TorchvisionBackbone("vit_b_16", "IMAGENET1K_V1", image_size=64)

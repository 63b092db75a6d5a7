"""Classes from outside the package: registered, fingerprinted by their source, missed by name."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import semisup
from semisup.augment import POLICIES
from semisup.config import parse_recipe
from semisup.errors import SemisupError
from semisup.methods import METHODS
from semisup.models import BACKBONES
from semisup.pipeline import run
from semisup.pipeline.plan import make_plan
from semisup.plugins import _REGISTERED, load_plugins, registered
from semisup.stages import load_predictor
from tests.nursery import Nursery

MODULE = '''
from dataclasses import dataclass
from typing import ClassVar
import torch
from torch import nn
import torch.nn.functional as F
from semisup.augment.policies.views import Weak
from semisup.methods import Method, Update, Views
from semisup.options import Count, NonNegative


class Mine(Method):
    """Cross-entropy."""

    name = "mine"
    family = "supervised"
    summary = "Cross-entropy."
    citation = "arXiv:0"
    views = Views(labeled={"weak": "mine_weak"})

    def __init__(self, model, *, weight: NonNegative = 1.0):
        super().__init__()
        self.model, self.weight = model, weight

    def step(self, batch, progress):
        yield Update(self.weight * F.cross_entropy(self.model(batch.labeled["weak"]), batch.labeled.y))

    def predictor(self):
        return self.model


class Net(nn.Module):
    """One layer."""

    name = "mine_net"

    def __init__(self, width: Count = 4, *, in_channels: int = 3):
        super().__init__()
        self.num_features, self.in_channels = width, in_channels
        self.conv = nn.Conv2d(in_channels, width, 3)

    def forward(self, images):
        return self.conv(images).mean((2, 3))


@dataclass(frozen=True, kw_only=True)
class MyWeak(Weak):
    """The same."""

    name: ClassVar = "mine_weak"
'''


def load(folder: Path, text: str = MODULE) -> Any:
    """The module, written anew and imported anew."""
    path = folder / "my_plugin.py"
    path.write_text(text)
    sys.modules.pop("my_plugin", None)
    importlib.invalidate_caches()
    return importlib.import_module("my_plugin")


def register_all(module: Any) -> None:
    for cls in (module.Mine, module.Net, module.MyWeak):
        semisup.register(cls)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for table in (METHODS, POLICIES, BACKBONES):
        for name in ("mine", "mine_net", "mine_weak"):
            table.pop(name, None)  # type: ignore[attr-defined]
    _REGISTERED.clear()
    sys.modules.pop("my_plugin", None)


def recipe(**method: object) -> dict[str, Any]:
    stage = {"method": {"name": "mine", **method}, "steps": 2, "batch": {"labeled": 8}}
    data = {"source": "digits", "labels": 20}
    tracking = {"mlflow": False}
    return {"name": "x", "data": data, "model": {"name": "mine_net"}, "stages": {"a": stage}, "tracking": tracking}


def test_a_registered_method_backbone_and_policy_run_and_their_source_counts(folder: Path) -> None:
    register_all(load(folder))
    with pytest.raises(SemisupError, match=r"stages\.a\.method\.weigth: unknown key; did you mean 'weight'"):
        make_plan(parse_recipe(recipe(weigth=1)))
    (first,) = run(parse_recipe(recipe()), out=folder / "out", quiet=True).stages
    assert run(parse_recipe(recipe()), out=folder / "out", quiet=True).stages[0].status == "reused"
    register_all(load(folder, MODULE.replace("self.weight * F", "0 * self.weight * F")))
    (again,) = run(parse_recipe(recipe()), out=folder / "out", quiet=True).stages
    assert (first.status, again.status) == ("trained", "trained")
    load_predictor(folder / "out" / "a")
    del BACKBONES["mine_net"]
    with pytest.raises(SemisupError, match="'mine_net' is one of the package my_plugin, which is not installed"):
        load_predictor(folder / "out" / "a")


def test_what_cannot_be_registered(folder: Path) -> None:
    module = load(folder)
    module.Mine.name = "fixmatch"
    with pytest.raises(SemisupError, match="there is a method 'fixmatch' already"):
        semisup.register(module.Mine)
    module.Mine.name = ""
    with pytest.raises(SemisupError, match="needs a class attribute `name`"):
        semisup.register(module.Mine)
    with pytest.raises(SemisupError, match="takes a class of a method, a backbone or a policy"):
        semisup.register(int)
    assert METHODS["fixmatch"].__module__ == "semisup.methods.fixmatch"


def install(folder: Path) -> None:
    """What an installed distribution looks like that names its classes as plugins."""
    (folder / "my_plugin.py").write_text(MODULE)
    info = folder / "my_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_plugin\nVersion: 1.0\n")
    names = "".join(f"{name} = my_plugin:{name}\n" for name in ("Mine", "Net", "MyWeak"))
    (info / "entry_points.txt").write_text(f"[semisup.plugins]\n{names}")


def test_installed_plugins_are_found(folder: Path) -> None:
    install(folder)
    importlib.invalidate_caches()
    load_plugins.cache_clear()
    plan = make_plan(parse_recipe(recipe()))
    assert plan.stages[0].network is not None and plan.stages[0].network.spec.name == "mine_net"
    assert {plugin.cls.__name__ for plugin in registered()} == {"Mine", "Net", "MyWeak"}


def test_workers_get_what_was_registered_where_the_job_was_planned(nursery: Nursery, folder: Path) -> None:
    register_all(load(folder))
    fingerprint = make_plan(parse_recipe(recipe())).stages[0].fingerprint
    code = (
        "import pickle; from pathlib import Path; from semisup.plugins import register;"
        "from semisup.config import parse_recipe; from semisup.pipeline.plan import make_plan;"
        "plugins, recipe = pickle.loads(Path('job').read_bytes());"
        "[register(plugin.cls, plugin.source) for plugin in plugins];"
        "print(make_plan(parse_recipe(recipe)).stages[0].fingerprint)"
    )
    (folder / "job").write_bytes(pickle.dumps((registered(), recipe())))
    assert nursery.run(folder, code=code) == (0, f"{fingerprint}\n")


@pytest.mark.slow
def test_a_suite_with_an_installed_method_runs_on_workers(folder: Path) -> None:
    install(folder)
    entry = {"train": {"method": {"name": "mine"}, "steps": 2, "batch": {"labeled": 8}}}
    suite = {"name": "x", "data": {"source": "digits"}, "labels": [20], "draws": 1, "model": {"name": "mine_net"}}
    suite |= {"entries": {"mine": entry}, "tracking": {"mlflow": False}}
    (folder / "suite.yaml").write_text(json.dumps(suite))
    done = subprocess.run(
        [sys.executable, "-m", "semisup", "bench", "suite.yaml", "--workers", "1", "--out", "out"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "mine" in (folder / "out" / "runs.csv").read_text()

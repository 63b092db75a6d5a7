from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from semisup.engine.deterministic import deterministic
from semisup.errors import SemisupError
from semisup.pipeline import execute, make_plan
from tests.pipeline.pipeline_small import SMALL, run_small, small

RUN = f"""
import sys, semisup
from semisup.config import parse_recipe
recipe = {SMALL!r} | {{"deterministic": True, "threads": 1}}
recipe["stages"] = {{"pretrain": recipe["stages"]["pretrain"]}}
semisup.run(parse_recipe(recipe), out=sys.argv[1], quiet=True)
"""


@pytest.mark.slow
def test_two_processes_end_with_the_same_bits(tmp_path: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path / f"{i}" / "out")]) for i in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    one, other = ((tmp_path / f"{i}" / "out" / "pretrain" / "model.safetensors").read_bytes() for i in range(2))
    assert one == other


def test_a_stage_runs_with_torchs_own_switch_and_leaves_it_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    kinds = execute.kind_of

    def watched(name: str) -> object:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return kinds(name)

    monkeypatch.setattr(execute, "kind_of", watched)
    run_small(tmp_path / "out", "deterministic=true")
    assert seen and all(seen)
    assert not torch.are_deterministic_algorithms_enabled()


def test_it_makes_another_stage() -> None:
    one, other = (make_plan(small(*keys), trial=False).stages for keys in ((), ("deterministic=true",)))
    assert one[0].fingerprint != other[0].fingerprint


def test_what_has_no_deterministic_form_is_said() -> None:
    said = r"deterministic: put_ does not .*; remove `deterministic: true`"
    with pytest.raises(SemisupError, match=said), deterministic(True):
        raise RuntimeError("put_ does not have a deterministic implementation, but you set ...\nmore")
    with pytest.raises(RuntimeError, match="other"), deterministic(True):
        raise RuntimeError("other")
    assert not torch.are_deterministic_algorithms_enabled()

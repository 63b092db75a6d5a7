from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.faults_process import FEW, write_recipe
from tests.nursery import Nursery


def finished(forks: Nursery, folder: Path, *stages: str) -> Path:
    """Folder of one uninterrupted run of these stages, by default all; its output is in `out`."""
    write_recipe(folder, *stages)
    code, output = forks.run(folder, "run", "recipe.yaml", "--out", "out")
    assert code == 0, output
    return folder


@pytest.fixture(scope="session")
def few(forks: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind of state that a stage can have."""
    return finished(forks, tmp_path_factory.mktemp("few"), *FEW)


@pytest.fixture(scope="session")
def whole(forks: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every method."""
    return finished(forks, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def single(forks: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of one stage."""
    return finished(forks, tmp_path_factory.mktemp("single"), "train")

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.faults_process import Nursery, write_recipe


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="session")
def second_nursery() -> Iterator[Nursery]:
    """For two processes at once."""
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="session")
def whole(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one uninterrupted run of every method; its output is in `whole/out`."""
    folder = tmp_path_factory.mktemp("whole")
    write_recipe(folder)
    code, output = nursery.run(folder, "run", "recipe.yaml", "--out", "out")
    assert code == 0, output
    return folder


@pytest.fixture(scope="session")
def single(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one uninterrupted run of the recipe of one stage."""
    folder = tmp_path_factory.mktemp("single")
    write_recipe(folder, "train")
    code, output = nursery.run(folder, "run", "recipe.yaml", "--out", "out")
    assert code == 0, output
    return folder

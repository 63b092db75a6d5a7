"""A cluster of this machine's own workers leaves the process that asked for it as it was."""

from __future__ import annotations

import copy
import os

import dask
import distributed  # noqa: F401 - has its part of dask's settings
import pytest

from semisup.bench.execution.cluster import MALLOC, cluster


def malloc_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}


def test_settings_reach_the_workers_and_stay_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in malloc_settings():
        monkeypatch.delenv(name)
    environment, dask_settings = dict(os.environ), copy.deepcopy(dask.config.config)
    with cluster(None, workers=1, retries=0) as client:
        (found,) = client.run(malloc_settings).values()
    assert found == {name: str(value) for name, value in MALLOC.items()}
    assert dict(os.environ) == environment
    assert dask.config.config == dask_settings

"""The benchmark of NT-Xent in chunks."""

from __future__ import annotations

import chunked
import pytest


def test_chunks_change_no_figure() -> None:
    whole, parts = chunked.measured(64, 0), chunked.measured(64, 16)
    assert parts[2:] == pytest.approx(whole[2:], rel=1e-5)
    assert min(whole[:2]) >= 0

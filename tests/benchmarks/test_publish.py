from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from publish import join

from semisup.bench.results.facts import FACTS, read_facts
from semisup.bench.results.rows import Row, read_rows, write_rows
from semisup.errors import SemisupError
from semisup.stages import write_json
from tests.bench.bench_rows import facts, row


def results(folder: Path, rows: Sequence[Row], machine: str, **changed: Any) -> Path:
    """A suite's result folder, as `semisup bench` leaves it, of runs on one machine."""
    folder.mkdir()
    origin = {"semisup": "0.1.0", "machines": [machine], "written": f"on {machine}", "data hash": "d"}
    saved = {"stages": len(rows), "stages_needed": 4, "seconds": 1.0, "seconds_needed": 1.5}
    write_rows(folder / "runs.csv", rows)
    write_json(folder / FACTS, facts(rows, entries=["supervised", "simclr"], saved=saved, provenance=origin) | changed)
    return folder


def test_a_part_of_a_suite_joins_what_is_committed(tmp_path: Path) -> None:
    before = [row("simclr", accuracy=0.1), row("supervised"), row("simclr", draw=1, accuracy=0.2), row("gone")]
    whole = results(tmp_path / "whole", before, "A")
    anew = [row("simclr", accuracy=0.3), row("simclr", init=1, accuracy=0.4)]
    join(results(tmp_path / "part", anew, "B"), whole)
    found = [(r.entry, r.init, r.draw, r.accuracy) for r in read_rows(whole / "runs.csv")]
    assert found == [("supervised", 0, 0, 0.5), ("simclr", 0, 0, 0.3), ("simclr", 0, 1, 0.2), ("simclr", 1, 0, 0.4)]
    together = read_facts(whole)
    assert together.provenance["machines"] == ["A", "B"]
    assert together.provenance["written"] == "on A; on B"
    assert together.provenance["semisup"] == "0.1.0"
    assert together.saved == {"stages": 6, "stages_needed": 8, "seconds": 2.0, "seconds_needed": 3.0}
    assert "on A; on B" in (whole / "leaderboard.md").read_text(encoding="utf-8")


def test_a_part_of_other_data_joins_nothing(tmp_path: Path) -> None:
    whole = results(tmp_path / "whole", [row("supervised")], "A")
    part = results(tmp_path / "part", [row("supervised")], "B", provenance={"data hash": "e"})
    with pytest.raises(SemisupError, match="of other data"):
        join(part, whole)

"""No function of the package is longer than the plan of the code allows."""

from __future__ import annotations

from pathlib import Path

from structure import ROOT, bodies, percentile, too_long


def test_no_body_is_too_long() -> None:
    assert [f"{body.where} {body.name}: {body.lines} lines" for body in too_long(ROOT / "semisup")] == []


def test_docstring_and_signature_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    signature = 'def f(\n    a,\n):\n    """Say it.\n\n    At length.\n    """\n'
    source = signature + '    x = a\n\n    return x\n\n\ndef g():\n    """Nothing."""\n'
    (tmp_path / "package" / "m.py").write_text(source + "def h():\n" + "    pass\n" * 61)
    found = {body.name: body.lines for body in bodies(tmp_path / "package")}
    assert found == {"f": 3, "g": 0, "h": 61}
    assert [body.name for body in too_long(tmp_path / "package")] == ["h"]


def test_percentiles_are_values() -> None:
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([3, 1, 2], 0.95) == 3
    assert percentile(list(range(1, 21)), 0.95) == 19

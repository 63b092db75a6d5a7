"""The notebooks of examples/ run from top to bottom, with short settings in the cell that is tagged for it."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = {
    "quickstart": 'overrides = ["tracking.mlflow=false", "stages.pretrain.epochs=1", "stages.student.steps=2"]',
    "own_photos": "minutes = 0.1",
    "label_budget": 'overrides = ["draws=2", "labels=[10, 20]", "defaults.steps=2"]',
}


def test_every_notebook_has_short_settings() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(SHORT)


@pytest.mark.parametrize("name", sorted(SHORT))
def test_one_cell_has_the_settings_and_outputs_are_small(name: str) -> None:
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells) == 1
    assert (EXAMPLES / f"{name}.ipynb").stat().st_size < 50_000
    assert "/root/" not in str(notebook)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SHORT))
def test_a_notebook_runs(name: str, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = SHORT[name]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    texts = [str(output) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("accuracy" in text or "labels_alone" in text for text in texts)

"""Label Studio's own validation accepts the tasks: its package, 500 MB with all that it needs, is asked for here alone.

pip install label-studio-sdk
pytest -m reference tests/reference/test_label_studio.py
"""

from __future__ import annotations

import pytest

from semisup.labeling.label_studio import labeling_interface, tasks

pytestmark = pytest.mark.reference


def test_tasks_and_predictions_are_valid() -> None:
    module = pytest.importorskip("label_studio_sdk.label_interface")
    interface = module.LabelInterface(labeling_interface(["cat", 'a "quoted" & <tagged>']))
    interface.validate()
    for task in tasks([("a b/ü.png", "cat", 0.75), ("c.png", 'a "quoted" & <tagged>', 0.5), ("d.png", "", 0.0)]):
        assert interface.validate_task(
            {"data": task["data"]}
        )  # of version 2.1 fails in itself where there are predictions
        assert all(interface.validate_prediction(found) for found in task["predictions"])
    wrong = tasks([("a.png", "dog", 0.75)])[0]["predictions"][0]
    assert not interface.validate_prediction(wrong)

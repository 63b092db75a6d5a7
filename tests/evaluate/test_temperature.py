"""Temperature scaling finds the temperature that the labels were drawn with."""

from __future__ import annotations

import pytest
import torch

from semisup.evaluate import fit_temperature
from semisup.evaluate.temperature import LIMITS


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_of_the_labels_is_found(true: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(20_000, 5, generator=generator)
    y = torch.multinomial((logits / true).softmax(1), 1, generator=generator).flatten()
    assert fit_temperature(logits, y) == pytest.approx(true, rel=0.03)


def test_a_dozen_correct_predictions_are_no_certainty() -> None:
    logits = 3 * torch.eye(3).repeat(4, 1)
    found = fit_temperature(logits, logits.argmax(1))
    assert 0.3 < found < 1  # without the prior it is the lower limit
    assert fit_temperature(logits.repeat(10_000, 1), logits.argmax(1).repeat(10_000)) < 0.3


def test_it_stays_within_limits() -> None:
    wrong = 1e4 * torch.eye(2)
    assert fit_temperature(wrong, torch.tensor([1, 0])) == pytest.approx(LIMITS[1], rel=0.01)

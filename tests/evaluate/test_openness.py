"""Foreign images are far from labeled ones: by hand, and on digits."""

from __future__ import annotations

import pytest
import torch

from semisup.data import ImageData, load_data
from semisup.errors import SemisupError
from semisup.evaluate.openness import kept, openness
from semisup.settings import DataConfig


def test_distance_by_hand() -> None:
    torch.manual_seed(0)
    x, labeled = torch.randn(12, 5), torch.tensor([0, 3, 4, 7, 9])
    z = (x - x.mean(0)) / x.std(0)
    z = z / z.norm(dim=1, keepdim=True)
    for i, found in enumerate(openness(x, labeled)):
        distances = sorted(1 - float(z[i] @ z[j]) for j in labeled.tolist() if j != i)
        assert float(found) == pytest.approx(sum(distances[:3]) / 3, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 7.3, 1000.7])
def test_a_constant_feature_changes_nothing(value: float) -> None:
    torch.manual_seed(0)
    x, labeled = torch.randn(20_000, 8), torch.arange(40)
    more = torch.cat([x, torch.full((len(x), 1), value)], 1)
    torch.testing.assert_close(openness(more, labeled), openness(x, labeled))
    assert torch.equal(openness(torch.full((9, 2), value), torch.arange(3)), torch.ones(9))


def test_what_is_kept() -> None:
    scores, labeled = torch.tensor([0.9, 0.1, 0.2, 0.3, 0.4, 0.5]), torch.tensor([0, 1])
    assert kept(scores, labeled, 0.5).tolist() == [True, True, True, True, False, False]
    few = torch.arange(100) / 100
    assert kept(few, torch.arange(50), "auto").sum() == 50


def test_foreign_digits_are_left_out() -> None:
    data: ImageData = load_data(DataConfig(source="digits", foreign=3))
    pixels = torch.from_numpy(data.x_train[:900].reshape(900, -1) / 255)
    y = torch.from_numpy(data.y_train[:900])
    labeled = torch.cat([torch.nonzero(y == k).flatten()[:10] for k in range(7)])
    stays = kept(openness(pixels, labeled), labeled, "auto")
    assert stays[y >= 0].float().mean() > 0.7 and stays[y < 0].float().mean() < 0.4


def test_one_label_is_not_enough() -> None:
    with pytest.raises(SemisupError, match="two labeled images or more"):
        openness(torch.randn(4, 2), torch.tensor([0]))

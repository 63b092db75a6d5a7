"""The ramps at their known points."""

from __future__ import annotations

import math

import pytest

from semisup.methods import Progress
from semisup.methods.parts.ramps import cosine_to_one, gaussian_ramp, linear_ramp


@pytest.mark.parametrize(("step", "value"), [(0, 0.0), (99, 0.0), (100, 0.0), (350, 0.5), (600, 1.0), (999, 1.0)])
def test_linear_ramp_of_lee(step: int, value: float) -> None:
    """T1 = 100, T2 = 600: with a final value of 3, a(350) is 1.5."""
    assert linear_ramp(Progress(step, 1000), 0.5, 0.1) == pytest.approx(value)


def test_linear_ramp_without_a_start() -> None:
    assert [linear_ramp(Progress(step, 8), 0.5) for step in range(8)] == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]


@pytest.mark.parametrize(("start", "values"), [(0.0, [1, 1, 1, 1]), (0.5, [0, 0, 1, 1]), (1.0, [0, 0, 0, 0])])
def test_linear_ramp_of_no_length_jumps(start: float, values: list[float]) -> None:
    assert [linear_ramp(Progress(step, 4), 0.0, start) for step in range(4)] == values


def test_gaussian_ramp() -> None:
    assert gaussian_ramp(Progress(0, 100), 0.4) == pytest.approx(math.exp(-5)) == pytest.approx(0.0067, rel=0.01)
    assert gaussian_ramp(Progress(20, 100), 0.4) == pytest.approx(math.exp(-1.25)) == pytest.approx(0.2865, rel=1e-4)
    assert gaussian_ramp(Progress(39, 100), 0.4) < 1
    assert gaussian_ramp(Progress(40, 100), 0.4) == gaussian_ramp(Progress(0, 100), 0.0) == 1


def test_cosine_to_one() -> None:
    """The teacher momentum of BYOL and DINO: .996, .998, 1 at the start, half-way and at the end."""
    assert cosine_to_one(Progress(0, 100), 0.996) == pytest.approx(0.996, abs=1e-12)
    assert cosine_to_one(Progress(50, 100), 0.996) == pytest.approx(0.998, abs=1e-12)
    assert cosine_to_one(Progress(25, 100), 0.0) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert 1 - 1e-6 < cosine_to_one(Progress(9999, 10000), 0.996) < 1

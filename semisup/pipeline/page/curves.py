"""Logged numbers as lines: what stands in the event log, and where its points lie in a small chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from semisup.tracking.events import EVENTS_FILE, iter_events

__all__ = ["HEIGHT", "WIDTH", "Curve", "curve", "logged", "reliability_dots"]

WIDTH, HEIGHT = 240.0, 96.0
MOST_POINTS = 240
Steps = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Curve:
    """A line in a box of `WIDTH` x `HEIGHT`: its points as SVG has them, and the numbers at its edges."""

    title: str
    points: str
    low: float
    high: float
    last: float
    steps: int


def logged(folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return stage -> term -> (step, value), by the event log of a run; of a step logged twice the later value.

    A stage that was trained in another run's folder has none here.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    for event, _ in iter_events(folder / EVENTS_FILE, 0):
        if event["event"] == "metrics" and event["stage"] is not None:
            terms = found.setdefault(event["stage"], {})
            for name, value in event["values"].items():
                terms.setdefault(name, {})[event["step"]] = value
    return {stage: {name: sorted(v.items()) for name, v in terms.items()} for stage, terms in found.items()}


def curve(title: str, values: Steps, bounds: tuple[float, float] | None = None) -> Curve | None:
    """Place a term's values over its steps; of many, every so many are drawn.

    Args:
        title: of the term.
        values: (step, value), by step; those that are not finite are left out.
        bounds: of the vertical axis; None: those of the values.

    Returns:
        None of fewer than two points.
    """
    known = [(step, value) for step, value in values if value - value == 0]
    if len(known) < 2:
        return None
    heights = [value for _, value in known]
    low, high = bounds or (min(heights), max(heights))
    span, steps = high - low or 1.0, known[-1][0]
    shown = [*known[:-1][:: len(known) // MOST_POINTS + 1], known[-1]]
    points = " ".join(f"{WIDTH * step / steps:.1f},{HEIGHT * (1 - (value - low) / span):.1f}" for step, value in shown)
    return Curve(title, points, low, high, known[-1][1], steps)


def reliability_dots(bins: Sequence[Sequence[float]], side: float) -> list[Mapping[str, float]]:
    """Return where the filled bins (count, confidence, accuracy) stand in a square, the area of a dot by its count."""
    total = sum(count for count, _, _ in bins)
    return [
        {
            "x": side * confidence,
            "y": side * (1 - accuracy),
            "r": side * (0.012 + 0.05 * (count / total) ** 0.5),
            "count": count,
            "confidence": confidence,
            "accuracy": accuracy,
        }
        for count, confidence, accuracy in bins
        if count
    ]

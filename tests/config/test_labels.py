from __future__ import annotations

from fractions import Fraction

import pytest

from semisup.errors import SemisupError
from semisup.settings.labels import Labels, parse_labels


@pytest.mark.parametrize(
    ("value", "kind", "amount"),
    [
        ("all", "all", 1),
        (" all ", "all", 1),
        (40, "total", 40),
        ("40", "total", 40),
        ("4/class", "per_class", 4),
        ("4 / class", "per_class", 4),
        ("4 per class", "per_class", 4),
        ("10%", "fraction", Fraction(1, 10)),
        ("0.5 %", "fraction", Fraction(1, 200)),
        ("100%", "fraction", 1),
        (0.1, "fraction", Fraction(1, 10)),
        ("0.1", "fraction", Fraction(1, 10)),
    ],
)
def test_forms(value: object, kind: str, amount: Fraction) -> None:
    assert parse_labels(value) == Labels(kind, Fraction(amount), str(value).strip())  # type: ignore[arg-type]


FORMS = "must be 'all', a number of images (40), images per class ('4/class' or '4 per class') or a percentage ('10%')"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("ten", f"{FORMS}, not 'ten'"),
        ("", f"{FORMS}, not ''"),
        (None, f"{FORMS}, not null"),
        (True, f"{FORMS}, not true"),
        ([40], f"{FORMS}, not [40]"),
        ("40 labels", f"{FORMS}, not '40 labels'"),
        ("1e3", f"{FORMS}, not '1e3'"),
        (float("nan"), f"{FORMS}, not nan"),
        ("9" * 13, f"{FORMS}, not '{'9' * 13}'"),
        ("٣%", f"{FORMS}, not '٣%'"),
        (-4, "must be more than 0, not -4"),
        ("-1%", "must be more than 0, not -1%"),
        (0, "must be more than 0, not 0"),
        ("0%", "must be more than 0, not 0%"),
        ("0/class", "must be more than 0, not 0/class"),
        ("101%", "must be at most 100%, not 101%"),
        (1.0, "a number of images must be whole, not 1.0; a percentage ends in %"),
        ("2.5", "a number of images must be whole, not 2.5; a percentage ends in %"),
        ("0.5/class", "a number of images must be whole, not 0.5/class; a percentage ends in %"),
    ],
)
def test_mistakes(value: object, problem: str) -> None:
    with pytest.raises(SemisupError) as caught:
        parse_labels(value)
    assert str(caught.value) == f"data.labels: {problem}"

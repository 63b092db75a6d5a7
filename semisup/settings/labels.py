"""The label budget as a recipe writes it (`data.labels`); the draw itself is in `semisup.data.budget`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from semisup.errors import SemisupError
from semisup.options import show

__all__ = ["Labels", "parse_labels"]

_FORMS = "'all', a number of images (40), images per class ('4/class' or '4 per class') or a percentage ('10%')"


@dataclass(frozen=True)
class Labels:
    """A parsed budget.

    Attributes:
        kind: `all`; `total` (images, class-balanced); `per_class` (images of each class); `fraction`
            (of all labeled images, class-proportional).
        amount: exact; a whole number > 0 for `total` and `per_class`, in (0, 1] for `fraction`, 1 for `all`.
        text: the budget as written, for messages.
    """

    kind: Literal["all", "total", "per_class", "fraction"]
    amount: Fraction
    text: str

    @property
    def everything(self) -> bool:
        """Whether it is all labels, however it is written."""
        return self.kind in ("all", "fraction") and self.amount == 1


def parse_labels(value: Any) -> Labels:
    """Read a label budget.

    Args:
        value: `"all"`; `40` or `"40"`; `"4/class"` or `"4 per class"`; `"10%"` or `"0.5%"`; a plain
            fraction strictly between 0 and 1 (`0.1` or `"0.1"`), the same as a percentage.

    Raises:
        SemisupError: for anything else; the message starts with `data.labels`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise SemisupError(f"data.labels: must be {_FORMS}, not {show(value)}")
    text = str(value).strip().lower()
    if text == "all":
        return Labels("all", Fraction(1), text)
    if re.fullmatch(r"-\s*[0-9.]+.*", text):
        raise SemisupError(f"data.labels: must be more than 0, not {text}")
    # At most 12 digits: no data set is larger, and int() of a very long text is slow.
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*(%|percent|/\s*class|per\s+class)?", text)
    if match is None:
        raise SemisupError(f"data.labels: must be {_FORMS}, not {show(value)}")
    amount, unit = Fraction(match[1]), {"percent": "%"}.get(match[2] or "", match[2])
    if amount == 0:
        raise SemisupError(f"data.labels: must be more than 0, not {text}")
    if unit == "%":
        if amount > 100:
            raise SemisupError(f"data.labels: must be at most 100%, not {text}")
        return Labels("fraction", amount / 100, text)
    if unit is None and "." in match[1] and amount < 1:
        return Labels("fraction", amount, text)
    if "." in match[1]:
        raise SemisupError(f"data.labels: a number of images must be whole, not {text}; a percentage ends in %")
    return Labels("per_class" if unit else "total", amount, text)

"""A suite's data: where there are no test images, each draw leaves out another part of the labeled ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from semisup.bench.suites.suite import Suite
from semisup.data import ImageData, load_data
from semisup.data.shaped import held_out

__all__ = ["Folds", "load_folds"]


@dataclass(frozen=True)
class Folds:
    """The data of a suite.

    Attributes:
        parts: by number of the part of the labels that is left out to test; one alone where there are test images.
        count: in how many parts the labels are.
    """

    parts: Mapping[int, ImageData]
    count: int = 1

    def of(self, draw: int) -> ImageData:
        """Return what the runs of a draw learn from and are tested on."""
        return self.parts[draw % self.count]

    @property
    def first(self) -> ImageData:
        """That of the first draw."""
        return next(iter(self.parts.values()))

    @property
    def num_test(self) -> int:
        """Images that are tested, over all parts."""
        return sum(len(part.x_test) for part in self.parts.values())


def load_folds(suite: Suite) -> tuple[Suite, Folds]:
    """Load a suite's data, and return the suite without `data.holdout` where there are test images.

    Raises:
        SemisupError: as of `load_data`.
    """
    holdout, count = suite.data.holdout, suite.data.folds
    plain = suite.data.model_copy(update={"holdout": None})
    data = load_data(plain)
    if holdout is None or len(data.x_test):
        return suite.model_copy(update={"data": plain}), Folds({0: data})
    wanted = dict.fromkeys(draw % count for draw in suite.draws)
    return suite, Folds({fold: held_out(data, holdout, fold) for fold in wanted}, count)

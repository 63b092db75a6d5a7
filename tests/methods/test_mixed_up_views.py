"""One mistake for all methods that read several views: they take one for another, and their equation notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from semisup.methods import (
    METHODS,
    Batch,
    Method,
    Progress,
    Unlabeled,
    Update,
)
from tests.methods import test_adamatch as adamatch
from tests.methods import test_comatch as comatch
from tests.methods import test_fixmatch as fixmatch
from tests.methods import test_flexmatch as flexmatch
from tests.methods import test_freematch as freematch
from tests.methods import test_mean_teacher as mean_teacher
from tests.methods import test_moco as moco
from tests.methods import test_pi_model as pi_model
from tests.methods import test_remixmatch as remixmatch
from tests.methods import test_simmatch as simmatch
from tests.methods import test_softmatch as softmatch
from tests.methods import test_uda as uda

WEAK_IS_STRONG = {"weak": "strong"}
Check = Callable[[type[Any]], object]


def seeing(cls: type[Method], views: dict[str, str]) -> type[Method]:
    """A class that is given the unlabeled view `views[name]` under `name`."""

    class Mixed(cls):  # type: ignore[misc, valid-type]
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            u = batch.unlabeled
            mixed = u.views | {name: u.views[other] for name, other in views.items()}
            yield from super().step(Batch(batch.labeled, Unlabeled(mixed, u.index, u.target)), progress)

    return Mixed


@pytest.mark.parametrize(
    ("name", "check", "views"),
    [
        ("fixmatch", partial(fixmatch.check_equation, threshold=0.7), WEAK_IS_STRONG),
        ("fixmatch", partial(fixmatch.check_equation, threshold=0.7), {"strong": "weak"}),
        ("fixmatch", fixmatch.check_labels_come_from_the_weak_view, WEAK_IS_STRONG),
        ("uda", uda.check_equation, WEAK_IS_STRONG),
        ("flexmatch", partial(flexmatch.check_equation, threshold=0.9, warmup=False), WEAK_IS_STRONG),
        ("freematch", partial(freematch.check_equation, momentum=0.5), WEAK_IS_STRONG),
        ("softmatch", partial(softmatch.check_equation, momentum=0.3), WEAK_IS_STRONG),
        ("adamatch", adamatch.check_equation, WEAK_IS_STRONG),
        ("comatch", comatch.check_equation, WEAK_IS_STRONG),
        ("comatch", comatch.check_equation, {"strong": "second", "second": "strong"}),
        ("simmatch", simmatch.check_equation, WEAK_IS_STRONG),
        ("remixmatch", remixmatch.check_equation, {"weak": "strong_1"}),
        ("pi_model", pi_model.check_equation, {"first": "second", "second": "first"}),
        ("mean_teacher", mean_teacher.check_equation, {"student": "teacher", "teacher": "student"}),
        ("moco", moco.check_steps, {"query": "key", "key": "query"}),
    ],
)
def test_a_view_in_the_place_of_another_is_noticed(name: str, check: Check, views: dict[str, str]) -> None:
    check(seeing(METHODS[name], {}))
    with pytest.raises(AssertionError):
        check(seeing(METHODS[name], views))

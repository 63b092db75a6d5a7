from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from semisup.data.budget import LabelBudget, draw_budget
from semisup.errors import SemisupError

FASHION = np.repeat(np.arange(10), 6000)  # Fashion-MNIST's label counts; order does not matter to a stratified draw

PINNED_INDEX = [3860, 10253, 17263, 20198, 29922, 31825, 40371, 44694, 48012, 57229]
PINNED_HASH = "9052a3cc4d06e8fb9693d2e4396bec8e67d8550cf4375e1b6d8edd5a2b0c333f"


def is_part(small: LabelBudget, large: LabelBudget) -> bool:
    return set(small.index.tolist()) <= set(large.index.tolist())


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_budgets_of_one_seed_are_nested(seed: int) -> None:
    y = np.random.RandomState(3).permutation(FASHION)
    budgets = [draw_budget(y, labels, seed, 10) for labels in (10, 40, 250, "1%", "100/class", "10%", "50%", "all")]
    assert [len(budget.index) for budget in budgets] == [10, 40, 250, 600, 1000, 6000, 30000, 60000]
    assert all(is_part(small, large) for small, large in pairwise(budgets))


def test_budgets_are_nested_on_mildly_imbalanced_classes() -> None:
    y = np.random.RandomState(4).permutation(np.repeat(np.arange(10), np.arange(4600, 7400, 280)))
    budgets = [draw_budget(y, labels, 0, 10) for labels in (40, 250, "1%", "10%")]
    assert all(is_part(small, large) for small, large in pairwise(budgets))


@pytest.mark.parametrize("case", range(12))
def test_nesting_on_random_labels(case: int) -> None:
    """Within a form, on any class sizes: every budget is part of every larger one, and grows as asked."""
    random = np.random.RandomState(case)
    num_classes = random.randint(2, 12)
    sizes = random.geometric(0.02, num_classes)  # strongly imbalanced
    y = random.permutation(np.concatenate([np.repeat(np.arange(num_classes), sizes), np.full(20, -1)]))
    scarce, total = int(sizes.min()), int(sizes.sum())
    balanced = [draw_budget(y, k, case, num_classes) for k in range(num_classes, scarce * num_classes + 1)]
    assert [len(budget.index) for budget in balanced] == list(range(num_classes, scarce * num_classes + 1))
    assert all(max(budget.per_class) - min(budget.per_class) <= 1 for budget in balanced)
    percents = [p for p in range(1, 101) if int(p * total / 100 + 0.5) >= num_classes]
    shares = [draw_budget(y, f"{p}%", case, num_classes) for p in percents]
    assert [len(budget.index) for budget in shares] == [(p * total + 50) // 100 for p in percents]
    for row in (balanced, shares):
        assert all(is_part(small, large) for small, large in pairwise(row))
        assert all(min(budget.per_class) >= 1 and (y[budget.index] >= 0).all() for budget in row)


def test_a_percentage_follows_the_classes_sizes() -> None:
    y = np.repeat(np.arange(3), [1000, 300, 10])
    assert draw_budget(y, "10%", 0, 3).per_class == [100, 30, 1]
    # Sainte-Laguë by hand: 13 images, quotas 9.92, 2.98, 0.10, and one image for the smallest class.
    assert draw_budget(y, "1%", 0, 3).per_class == [9, 3, 1]
    y = np.repeat(np.arange(2), [3, 1])
    assert draw_budget(y, "50%", 0, 2).per_class == [1, 1]


def test_the_remainder_is_spread_over_seeded_classes() -> None:
    lucky = Counter(
        k for seed in range(40) for k, n in enumerate(draw_budget(FASHION, 43, seed, 10).per_class) if n == 5
    )
    assert sum(lucky.values()) == 3 * 40 and set(lucky) == set(range(10))


def test_the_form_does_not_matter_only_the_counts() -> None:
    expected = draw_budget(FASHION, 40, 0, 10)
    for labels in ("40", "4/class", "4 per class"):
        assert draw_budget(FASHION, labels, 0, 10).hash == expected.hash


def test_seeds_draw_different_images_and_repeat() -> None:
    assert draw_budget(FASHION, 40, 0, 10).hash == draw_budget(FASHION, 40, 0, 10).hash
    assert len({draw_budget(FASHION, 40, seed, 10).hash for seed in range(20)}) == 20


def test_the_draw_never_changes() -> None:
    """A pinned draw: published results name splits by hash, so a change here breaks them."""
    budget = draw_budget(FASHION, 10, 0, 10)
    assert budget.index.tolist() == PINNED_INDEX
    assert budget.hash == PINNED_HASH


def test_the_index_is_sorted_int64_without_repeats() -> None:
    budget = draw_budget(np.random.RandomState(0).permutation(FASHION), "1%", 5, 10)
    assert budget.index.dtype == np.int64
    assert (np.diff(budget.index) > 0).all()
    assert budget.per_class == [60] * 10


def test_unlabeled_images_are_never_drawn() -> None:
    y = np.array([0, -1, 1, -1, 0, 1, -1])
    assert draw_budget(y, "all", 0, 2).index.tolist() == [0, 2, 4, 5]
    assert draw_budget(y, "100%", 0, 2).index.tolist() == [0, 2, 4, 5]
    assert draw_budget(y, 4, 0, 2).index.tolist() == [0, 2, 4, 5]


def test_the_hash_tells_data_sets_of_different_length_apart() -> None:
    y = np.array([0, 1, -1])
    assert draw_budget(y, "all", 0, 2).hash != draw_budget(y[:2], "all", 0, 2).hash


def test_draws_are_uniform_within_a_class() -> None:
    y = np.repeat(np.arange(2), 5)
    count = sum(np.bincount(draw_budget(y, 2, seed, 2).index, minlength=10) for seed in range(500))
    # 100 draws each expected, standard deviation 9
    assert count.min() > 60 and count.max() < 140


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ("ten", None),
        (-4, "must be more than 0, not -4"),
        (0, "must be more than 0, not 0"),
        ("101%", "must be at most 100%, not 101%"),
        (100000, "100000 needs 100000 labeled images, but there are only 60"),
        ("31/class", "31/class needs 93 labeled images, but there are only 60"),
        (2, "2 is 2 labeled images, fewer than one for each of 3 classes"),
        ("1%", "1% is 1 labeled images, fewer than one for each of 3 classes"),
        (
            "11/class",
            "11/class takes 11 images of a class, but class 2 has only 10 labeled; take at most 10/class, or a "
            "percentage, which follows the classes' sizes",
        ),
        (
            34,
            "34 takes 12 images of a class, but class 2 has only 10 labeled; take at most 10/class, or a percentage, "
            "which follows the classes' sizes",
        ),
    ],
)
def test_mistakes(labels: object, problem: str | None) -> None:
    y = np.repeat(np.arange(3), [30, 20, 10])
    with pytest.raises(SemisupError) as caught:
        draw_budget(y, labels, 1, 3)
    assert problem is None or str(caught.value) == f"data.labels: {problem}"


def test_a_class_without_labels() -> None:
    with pytest.raises(SemisupError, match=r"data.labels: 3 classes, but no labeled image of class 1$"):
        draw_budget(np.array([0, 0, 2, 2]), 4, 0, 3)


@pytest.mark.parametrize("labels", [9, "5/class", "40%", "all"])
def test_validation_labels_are_part_of_the_budget(labels: object) -> None:
    y = np.repeat(np.arange(3), [30, 20, 10])
    whole, split = draw_budget(y, labels, 1, 3), draw_budget(y, labels, 1, 3, validation=0.25)
    assert np.array_equal(np.sort(np.concatenate([split.index, split.validation])), whole.index)
    assert not set(split.index) & set(split.validation)
    shares = np.bincount(y[whole.index], minlength=3)
    held = np.bincount(y[split.validation], minlength=3)
    assert held.tolist() == [max(1, int(share / 4 + 0.5)) for share in shares]
    assert split.per_class == (shares - held).tolist()
    assert whole.validation.size == 0
    assert split.hash != whole.hash != draw_budget(y, labels, 1, 3, validation=0.5).hash != split.hash


def test_training_parts_with_validation_are_nested() -> None:
    y = np.random.RandomState(0).randint(4, size=400)
    parts = [set(draw_budget(y, f"{n}/class", 3, 4, validation=0.2).index) for n in (2, 3, 5, 8, 13, 40)]
    assert all(small < large for small, large in pairwise(parts))


def test_one_label_per_class_cannot_validate() -> None:
    with pytest.raises(SemisupError, match=r"data\.validation: .* class 0 has 1 in this budget; ask for more labels"):
        draw_budget(np.repeat(np.arange(3), 9), 3, 0, 3, validation=0.1)


def test_messages_name_a_class_by_its_name() -> None:
    y = np.repeat(np.arange(3), [30, 20, 10])
    with pytest.raises(SemisupError, match="but class 'cat' has only 10 labeled"):
        draw_budget(y, "11/class", 1, 3, classes=["ant", "bee", "cat"])
    with pytest.raises(SemisupError, match="no labeled image of class 'bee'"):
        draw_budget(y[y != 1], 20, 1, 3, classes=["ant", "bee", "cat"])


@pytest.mark.parametrize(("one", "other"), [("ALL", "all"), ("10 Percent", "10%"), ("4/Class", "4/class")])
def test_capitals_and_words_mean_the_same(one: str, other: str) -> None:
    y = np.repeat(np.arange(3), [30, 20, 10])
    assert draw_budget(y, one, 1, 3).hash == draw_budget(y, other, 1, 3).hash

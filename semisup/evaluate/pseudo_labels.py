"""How good pseudo-labels were, against labels the learner never saw."""

from __future__ import annotations

from torch import Tensor

from semisup.errors import SemisupError

__all__ = ["pseudo_label_quality"]


def pseudo_label_quality(labels: Tensor, mask: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    """Return coverage and accuracy of pseudo-labels as 0-d float32 tensors, without host synchronization.

    Only for the evaluator's log: nothing a method learns from may come from `hidden`.

    Args:
        labels: (N,) int64 pseudo-labels.
        mask: (N,) bool, which were kept; float weights in [0, 1] weigh instead.
        hidden: (N,) int64 true labels; samples with -1 (unknown) are left out of everything.

    Returns:
        `coverage`, the kept fraction; `kept_accuracy` among the kept, NaN if none was kept; `accuracy` of all
        pseudo-labels, kept or not. All are NaN if no true label is known.

    Raises:
        SemisupError: the three shapes differ.
    """
    if not labels.shape == mask.shape == hidden.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (labels, mask, hidden))
        raise SemisupError(f"labels, mask and hidden must have the same shape, got {shapes}")
    known = (hidden != -1).float()
    kept = mask.float() * known
    right = (labels == hidden).float()
    return {
        "coverage": kept.sum() / known.sum(),
        "kept_accuracy": (kept * right).sum() / kept.sum(),
        "accuracy": (known * right).sum() / known.sum(),
    }

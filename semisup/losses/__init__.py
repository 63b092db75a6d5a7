"""Loss functions on tensors, by family: no state, no configuration, float32 inside autocast, no host synchronization.

Plain cross-entropy with integer labels is `torch.nn.functional.cross_entropy`; it has no wrapper here.
"""

from __future__ import annotations

from semisup.losses.alignment import align_distribution
from semisup.losses.classification import (
    annealed_cross_entropy,
    entropy,
    pseudo_label_cross_entropy,
    soft_cross_entropy,
)
from semisup.losses.clusters import cross_view_cross_entropy, self_distillation, sinkhorn
from semisup.losses.consistency import kl_consistency, mse_consistency, sharpen
from semisup.losses.contrastive import info_nce, n_pair, nce, nt_xent, sup_con
from semisup.losses.count_features import counting
from semisup.losses.distillation import (
    feature_cosine,
    feature_mse,
    hinton_kd,
    queue_distillation,
    soft_target_distillation,
)
from semisup.losses.fairness import self_adaptive_fairness
from semisup.losses.imbalance import LabelLoss
from semisup.losses.joint_embedding import barlow_twins, covariance_penalty, negative_cosine, variance_hinge
from semisup.losses.masked import masked_mse
from semisup.losses.metric import batch_hard_triplet, contrastive_margin, soft_nearest_neighbor, triplet
from semisup.losses.positive_unlabeled import positive_unlabeled
from semisup.losses.similarity import neighbor_predictions, pseudo_label_graph, similarity, unfold_classes

__all__ = [
    "LabelLoss",
    "align_distribution",
    "annealed_cross_entropy",
    "barlow_twins",
    "batch_hard_triplet",
    "contrastive_margin",
    "counting",
    "covariance_penalty",
    "cross_view_cross_entropy",
    "entropy",
    "feature_cosine",
    "feature_mse",
    "hinton_kd",
    "info_nce",
    "kl_consistency",
    "masked_mse",
    "mse_consistency",
    "n_pair",
    "nce",
    "negative_cosine",
    "neighbor_predictions",
    "nt_xent",
    "positive_unlabeled",
    "pseudo_label_cross_entropy",
    "pseudo_label_graph",
    "queue_distillation",
    "self_adaptive_fairness",
    "self_distillation",
    "sharpen",
    "similarity",
    "sinkhorn",
    "soft_cross_entropy",
    "soft_nearest_neighbor",
    "soft_target_distillation",
    "sup_con",
    "triplet",
    "unfold_classes",
    "variance_hinge",
]

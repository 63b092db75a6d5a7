"""Learning algorithms, one class in one file each."""

from __future__ import annotations

from semisup.methods.base import Batch, Labeled, Method, Progress, PseudoLabels, Unlabeled, Update, Views
from semisup.methods.distill import Distill
from semisup.methods.fixmatch import FixMatch
from semisup.methods.mean_teacher import MeanTeacher
from semisup.methods.meta_pseudo_labels import MetaPseudoLabels
from semisup.methods.noisy_student import NoisyStudent
from semisup.methods.s4l_exemplar import S4LExemplar
from semisup.methods.s4l_rotation import S4LRotation
from semisup.methods.simclr import SimCLR
from semisup.methods.simclr_v2 import SimCLRv2
from semisup.methods.supervised import Supervised

__all__ = [
    "METHODS",
    "Batch",
    "Labeled",
    "Method",
    "Progress",
    "PseudoLabels",
    "Unlabeled",
    "Update",
    "Views",
]

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "simclr": SimCLR,
    "simclr_v2": SimCLRv2,
    "fixmatch": FixMatch,
    "mean_teacher": MeanTeacher,
    "noisy_student": NoisyStudent,
    "meta_pseudo_labels": MetaPseudoLabels,
    "s4l_rotation": S4LRotation,
    "s4l_exemplar": S4LExemplar,
    "distill": Distill,
}

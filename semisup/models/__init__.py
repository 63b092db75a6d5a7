"""Networks: backbones, heads, averages of weights, and weights on disk."""

from semisup.models.build import (
    BACKBONES,
    ModelSpec,
    build_backbone,
    build_classifier,
    check_model,
    count_parameters,
    model_signature,
)
from semisup.models.classifier import Classifier, Encoder, backbone_core, feature_width, image_channels
from semisup.models.ema import EMA, stage_decay
from semisup.models.frozen_statistics import frozen_statistics
from semisup.models.heads import ProjectionHead, build_neck
from semisup.models.refresh import initial_share, refresh_statistics
from semisup.models.weights import WeightsReport, load_into, load_weights, save_weights

__all__ = [
    "BACKBONES",
    "EMA",
    "Classifier",
    "Encoder",
    "ModelSpec",
    "ProjectionHead",
    "WeightsReport",
    "backbone_core",
    "build_backbone",
    "build_classifier",
    "build_neck",
    "check_model",
    "count_parameters",
    "feature_width",
    "frozen_statistics",
    "image_channels",
    "initial_share",
    "load_into",
    "load_weights",
    "model_signature",
    "refresh_statistics",
    "save_weights",
    "stage_decay",
]

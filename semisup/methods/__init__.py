"""Learning algorithms, one class in one file each."""

from __future__ import annotations

from semisup.methods.adamatch import AdaMatch
from semisup.methods.aet import AET
from semisup.methods.barlow_twins import BarlowTwins
from semisup.methods.base import Batch, Labeled, Method, Progress, PseudoLabels, Unlabeled, Update, Views
from semisup.methods.byol import BYOL
from semisup.methods.cmc import CMC
from semisup.methods.colorization import Colorization
from semisup.methods.comatch import CoMatch
from semisup.methods.context_prediction import ContextPrediction
from semisup.methods.counting import Counting
from semisup.methods.cpc import CPC
from semisup.methods.decoupled_rotation import DecoupledRotation
from semisup.methods.deepcluster import DeepCluster
from semisup.methods.denoising_autoencoder import DenoisingAutoencoder
from semisup.methods.dino import DINO
from semisup.methods.distill import Distill
from semisup.methods.distill_features import DistillFeatures
from semisup.methods.enaet import EnAET
from semisup.methods.entropy_minimization import EntropyMinimization
from semisup.methods.exemplar import Exemplar
from semisup.methods.fixmatch import FixMatch
from semisup.methods.flexmatch import FlexMatch
from semisup.methods.freematch import FreeMatch
from semisup.methods.instance_discrimination import InstanceDiscrimination
from semisup.methods.jigsaw import Jigsaw
from semisup.methods.mae import MAE
from semisup.methods.maskfeat import MaskFeat
from semisup.methods.mean_teacher import MeanTeacher
from semisup.methods.meta_pseudo_labels import MetaPseudoLabels
from semisup.methods.mixmatch import MixMatch
from semisup.methods.moco import MoCo
from semisup.methods.multi_task import MultiTask
from semisup.methods.noisy_student import NoisyStudent
from semisup.methods.pi_model import PiModel
from semisup.methods.pixel_cnn import PixelCNN
from semisup.methods.pseudo_label import PseudoLabel
from semisup.methods.remixmatch import ReMixMatch
from semisup.methods.rotation import Rotation
from semisup.methods.s4l_exemplar import S4LExemplar
from semisup.methods.s4l_rotation import S4LRotation
from semisup.methods.simclr import SimCLR
from semisup.methods.simclr_v2 import SimCLRv2
from semisup.methods.simmatch import SimMatch
from semisup.methods.simsiam import SimSiam
from semisup.methods.softmatch import SoftMatch
from semisup.methods.supervised import Supervised
from semisup.methods.swav import SwAV
from semisup.methods.temporal_ensembling import TemporalEnsembling
from semisup.methods.uda import UDA
from semisup.methods.vat import VAT
from semisup.methods.vicreg import VICReg

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
    cls.name: cls
    for cls in (
        Supervised,
        InstanceDiscrimination,
        Rotation,
        DecoupledRotation,
        Jigsaw,
        ContextPrediction,
        Counting,
        Exemplar,
        AET,
        MultiTask,
        SimCLR,
        SimCLRv2,
        MoCo,
        BYOL,
        SimSiam,
        BarlowTwins,
        VICReg,
        CPC,
        CMC,
        DeepCluster,
        SwAV,
        DINO,
        MAE,
        MaskFeat,
        DenoisingAutoencoder,
        Colorization,
        PixelCNN,
        PseudoLabel,
        EntropyMinimization,
        PiModel,
        TemporalEnsembling,
        VAT,
        UDA,
        MixMatch,
        ReMixMatch,
        EnAET,
        FixMatch,
        FlexMatch,
        FreeMatch,
        SoftMatch,
        AdaMatch,
        CoMatch,
        SimMatch,
        MeanTeacher,
        NoisyStudent,
        MetaPseudoLabels,
        S4LRotation,
        S4LExemplar,
        Distill,
        DistillFeatures,
    )
}
"""Every method by its name; `semisup.register` adds one."""

"""Methods with classic mistakes planted in them: each must fail the check that is there to find it."""

from __future__ import annotations

import copy
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semisup.losses import entropy, info_nce, mse_consistency
from semisup.methods import Batch, Labeled, Method, Progress, PseudoLabels, Unlabeled, Update, Views
from semisup.methods.adamatch import AdaMatch
from semisup.methods.aet import AET
from semisup.methods.barlow_twins import BarlowTwins
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
from semisup.methods.parts.learned_rates import learn_rates
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
from semisup.models.vit import require_vit
from tests.contract import contract_checks as checks
from tests.contract.contract_settings import CASES, DATA, Case

# --- views -----------------------------------------------------------------------------------------------------------


class UsbMeanTeacher(MeanTeacher):
    """USB's meanteacher.py: the student's answers are taken from the teacher, so that the two always agree."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        with torch.no_grad():
            logits_teacher = self.teacher.module(batch.unlabeled["teacher"])
        logits, _ = self.model(torch.cat([batch.labeled["weak"], batch.unlabeled["student"]])).split([8, 12])
        supervised = F.cross_entropy(logits, batch.labeled.y)
        consistency = mse_consistency(logits_teacher, logits_teacher.softmax(1))
        yield Update(supervised + 50 * consistency, log={"supervised": supervised, "consistency": consistency})
        self.teacher.update(self.model)


class StrongGuesses(FixMatch):
    """Guesses and learns on the same view; the weak one is never seen."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(
            Batch(batch.labeled, Unlabeled({"weak": u["strong"], "strong": u["strong"]}, u.index)), progress
        )


class OneView(SimCLR):
    """Contrasts a view with itself."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(
            Batch(batch.labeled, Unlabeled({"first": u["first"], "second": u["first"]}, u.index)), progress
        )


class OneClusteredView(DeepCluster):
    """Learns the clusters of the first view from the first view."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(
            Batch(batch.labeled, Unlabeled({"first": u["first"], "second": u["first"]}, u.index)), progress
        )


class BlindToTheImage(CPC):
    """All patches are the same."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(
            Batch(batch.labeled, Unlabeled({"image": torch.ones_like(u["image"])}, u.index)), progress
        )


class LargeCropsOnly(SwAV):
    """Asks for small crops and takes a large one in place of the last."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(Batch(batch.labeled, Unlabeled({**u.views, "local_2": u["first"]}, u.index)), progress)


class LargeViewsTwice(DINO):
    """The student sees the first view in place of the second small one."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(Batch(batch.labeled, Unlabeled({**u.views, "local_2": u["first"]}, u.index)), progress)


class WrongView(Supervised):
    """Is told to train on the strong view, asks for both, trains on the weak one."""

    views = Views(labeled=("weak", "strong"))

    def __init__(self, model: nn.Module, **options: object) -> None:
        super().__init__(model)  # type: ignore[arg-type]
        self.views = type(self).views


class NoUda(MetaPseudoLabels):
    """Sharpened answers of the strong view instead of the weak one."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(
            Batch(batch.labeled, Unlabeled({"weak": u["strong"], "strong": u["strong"]}, u.index)), progress
        )


class NoLabels(NoisyStudent):
    """Labeled images are forgotten."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        assert batch.unlabeled.target is not None
        loss = F.cross_entropy(self.model(batch.unlabeled["strong"]), batch.unlabeled.target)
        yield Update(loss, log={"supervised": loss.detach(), "unlabeled": loss})


class OwnAnswers(Distill):
    """The teacher answers to the labeled images only."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        x = batch.labeled["weak"]
        loss = self.distillation_loss(self.model(x), self.teacher(x).detach(), self.temperature)
        yield Update(loss, log={"supervised": loss, "distillation": loss})


class OneLook(PiModel):
    """Both answers come from the first view: only dropout is left to disagree."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(
            Batch(batch.labeled, Unlabeled({"first": u["first"], "second": u["first"]}, u.index)), progress
        )


class OneGuess(MixMatch):
    """Guesses from one view and learns from it alone."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(
            Batch(batch.labeled, Unlabeled({"first": u["first"], "second": u["first"]}, u.index)), progress
        )


class OneDecodedView(EnAET):
    """Guesses, mixes and transforms the first view alone."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(
            Batch(batch.labeled, Unlabeled({"first": u["first"], "second": u["first"]}, u.index)), progress
        )


class WeakLabels(AdaMatch):
    """Learns the labels of weak views twice."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        x = batch.labeled
        labeled = replace(x, views={"weak": x["weak"], "strong": x["weak"]})
        yield from super().step(Batch(labeled, batch.unlabeled), progress)


class LabeledOnly(VAT):
    """Labeled images are made robust, unlabeled ones forgotten."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = Unlabeled(batch.labeled.views, batch.unlabeled.index)
        yield from super().step(Batch(batch.labeled, u), progress)


class StrongTarget(UDA):
    """The target is the sharpened answer to the strong view itself."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(
            Batch(batch.labeled, Unlabeled({"weak": u["strong"], "strong": u["strong"]}, u.index)), progress
        )


class NoAnchor(ReMixMatch):
    """The strong view's own answer labels it."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        views = batch.unlabeled.views
        yield from super().step(
            Batch(batch.labeled, Unlabeled({**views, "weak": views["strong_1"]}, batch.unlabeled.index)), progress
        )


class LabeledRotations(S4LRotation):
    """Turns the labeled images only."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        yield from super().step(
            Batch(batch.labeled, Unlabeled({"weak": batch.labeled["weak"]}, batch.unlabeled.index)), progress
        )


class FewerViews(S4LExemplar):
    """Asks for all views and takes the first one in place of the last."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        repeated = {**u.views, self.copies[-1]: u[self.copies[0]]}
        yield from super().step(Batch(batch.labeled, Unlabeled(repeated, u.index)), progress)


class OneStrongView(CoMatch):
    """Contrasts the strong view with itself."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(Batch(batch.labeled, Unlabeled({**u.views, "second": u["strong"]}, u.index)), progress)


class StrongTeacher(SimMatch):
    """Guesses and neighbors come from the strong view itself."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(Batch(batch.labeled, Unlabeled({**u.views, "weak": u["strong"]}, u.index)), progress)


class OwnProbe(FixMatch):
    """The weak view stands in for the probe."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        x = batch.labeled
        labeled = replace(x, views={**x.views, "probe": x["weak"]})
        yield from super().step(Batch(labeled, batch.unlabeled), progress)


class QueryIsKey(MoCo):
    """Both networks see one view."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(
            Batch(batch.labeled, Unlabeled({"query": u["query"], "key": u["query"]}, u.index)), progress
        )


class OwnTarget(BYOL):
    """The target sees the first view alone, and so does the predictor."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(
            Batch(batch.labeled, Unlabeled({"first": u["first"], "second": u["first"]}, u.index)), progress
        )


class OneSiamese(SimSiam):
    """Predicts a view from itself."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(
            Batch(batch.labeled, Unlabeled({"first": u["first"], "second": u["first"]}, u.index)), progress
        )


class OneTwin(BarlowTwins):
    """Correlates a view with itself."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(
            Batch(batch.labeled, Unlabeled({"first": u["first"], "second": u["first"]}, u.index)), progress
        )


class OneSpread(VICReg):
    """Keeps apart the images of one view."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(
            Batch(batch.labeled, Unlabeled({"first": u["second"], "second": u["second"]}, u.index)), progress
        )


BLIND = {
    OwnProbe: "fixmatch-ctaugment",
    StrongTarget: "uda-annealed",
    LabeledOnly: "vat-entropy",
    OneLook: "pi_model-plain",
    UsbMeanTeacher: "mean_teacher-plain",
    StrongGuesses: "fixmatch-plain",
    OneView: "simclr-plain",
    QueryIsKey: "moco-v2",
    OwnTarget: "byol-plain",
    OneSiamese: "simsiam-plain",
    OneTwin: "barlow_twins-plain",
    OneSpread: "vicreg-plain",
    OneGuess: "mixmatch-plain",
    NoAnchor: "remixmatch-plain",
    OneClusteredView: "deepcluster-plain",
    BlindToTheImage: "cpc-plain",
    LargeCropsOnly: "swav-crops",
    LargeViewsTwice: "dino-plain",
    WrongView: "supervised-strong",
    NoUda: "meta_pseudo_labels-hard",
    NoLabels: "noisy_student-plain",
    OwnAnswers: "distill-labeled",
    LabeledRotations: "s4l_rotation-plain",
    FewerViews: "s4l_exemplar-plain",
    OneStrongView: "comatch-plain",
    OneDecodedView: "enaet-plain",
    WeakLabels: "adamatch-plain",
    StrongTeacher: "simmatch-plain",
}


@pytest.mark.parametrize("cls", BLIND)
def test_view_check_finds_unused_views(cls: type[Method]) -> None:
    with pytest.raises(AssertionError, match="noise in place of"):
        checks.check_views_matter(planted(cls, BLIND[cls]))


def planted(cls: type[Method], name: str) -> Case:
    """The case `name` with a sabotaged class."""
    return replace(CASES[name], cls=cls)


# --- gradients and groups --------------------------------------------------------------------------------------------


class TeacherWithGradient(MeanTeacher):
    """The teacher's weights can be trained."""

    def __init__(self, model: nn.Module, **options: float) -> None:
        super().__init__(model, **options)  # type: ignore[arg-type]
        self.teacher.module.requires_grad_(True)


class GradientThroughTeacher(TeacherWithGradient):
    """... and the consistency term does it."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            target = self.teacher.module(batch.unlabeled["teacher"]).softmax(1)
            consistency = mse_consistency(self.model(batch.unlabeled["student"]), target)
            yield replace(update, loss=update.loss + consistency)


class StudentInTeachersUpdate(MetaPseudoLabels):
    """The loss of the moved student keeps its graph, so the teacher's update reaches into the student."""

    moved = False

    def student_loss(self, batch: Batch) -> torch.Tensor:
        with torch.set_grad_enabled(self.moved):
            loss = F.cross_entropy(self.student(batch.labeled["weak"]), batch.labeled.y)
        self.moved = not self.moved
        return loss


class SoftMpl(MetaPseudoLabels):
    """The official code: the feedback term compares the teacher's soft answers with themselves."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            if update.group == "student":
                yield update
                continue
            logits = self.teacher(batch.unlabeled["strong"])
            soft = F.cross_entropy(logits, logits.detach().softmax(1))
            feedback = update.log["help"] * (soft - soft.detach())
            yield replace(update, log={**update.log, "feedback": 0 * feedback + feedback.detach()})


class GradientThroughKeys(MoCo):
    """The key network is trained as well."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.target.requires_grad_(True)
        for _ in super().step(batch, progress):
            queries, keys = self.online(batch.unlabeled["query"]), self.target(batch.unlabeled["key"])
            loss = info_nce(queries, keys, self.temperature, self.queue)
            yield Update(loss, log={"contrastive": loss})


class GradientIntoTarget(BYOL):
    """The target is trained as well."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.target.requires_grad_(True)
        for _ in super().step(batch, progress):
            loss = self.distance(self.online(batch.unlabeled["first"]), self.target(batch.unlabeled["second"]))
            yield Update(loss, log={"prediction": loss})


class StillEmbeddings(InstanceDiscrimination):
    """The proximal term is taken of embeddings without gradient."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            yield replace(update, log={**update.log, "proximal": update.log["proximal"].detach()})


class BothSidesStopped(SimSiam):
    """The stop-gradient covers predictions and targets alike."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            yield replace(update, log={"prediction": update.loss.detach()})


class NoSpread(VICReg):
    """Variance and covariance are measured on what does not learn."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            log = {name: term if name == "invariance" else term.detach() for name, term in update.log.items()}
            yield Update(self.invariance_weight * log["invariance"], log=log)


class GuessesOnly(PseudoLabel):
    """The stop-gradient of the guess covers the answer too."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            unlabeled = update.log["unlabeled"].detach()
            yield replace(update, loss=update.log["supervised"] + unlabeled, log={**update.log, "unlabeled": unlabeled})


class EntropyOfTargets(EntropyMinimization):
    """The predictions are detached, as if they were targets."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            with torch.no_grad():
                unlabeled = entropy(self.model(batch.unlabeled["weak"]))
            yield replace(update, loss=update.log["supervised"] + unlabeled, log={**update.log, "entropy": unlabeled})


class FrozenSimilarity(SimMatch):
    """The stop-gradient of the bank covers the strong view's similarities too."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            instance = update.log["instance"].detach()
            unlabeled = update.log["supervised"] + update.log["unlabeled"]
            yield replace(update, loss=unlabeled + instance, log={**update.log, "instance": instance})


class OwnPrediction(TemporalEnsembling):
    """The target is the prediction that it should teach."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.seen.zero_()
        return super().step(batch, progress)


class HeadOnly(Rotation):
    """Rotations are learned from features that do not learn from them."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        with torch.no_grad():
            features = [self.encoder(torch.rot90(batch.unlabeled["weak"], k, (2, 3))) for k in range(4)]
        turns = torch.arange(4, device=features[0].device).repeat_interleave(len(features[0]))
        loss = F.cross_entropy(self.task.head(torch.cat(features)), turns)
        yield Update(loss, log={"rotation": loss})


class TargetWithoutFeatures(DecoupledRotation):
    """The stop-gradient of the bank covers the new embedding too."""

    @functools.wraps(DecoupledRotation.__init__)  # what a method is given is read from its signature
    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        compare = self.bank.nce_loss
        self.bank.nce_loss = lambda v, *rest: compare(v.detach(), *rest)  # type: ignore[method-assign]


class DecoderOnly(AET):
    """The decoder learns from features that do not learn from it."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        with torch.no_grad():
            features = self.encoder(batch.unlabeled["weak"])
        loss = self.task.decoder(torch.cat([features, features], 1)).square().mean()
        yield Update(loss, log={"transformation": loss})


class ForgottenTask(MultiTask):
    """One of the tasks is logged and not learned."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            yield replace(update, loss=update.loss - self.weights["aet"] * update.log["aet"])


class FrozenDecoders(EnAET):
    """Decoders learn from features that do not learn from them."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            transformation = update.log["transformation"].detach()
            loss = update.loss - update.log["transformation"] + transformation
            yield replace(update, loss=loss, log={**update.log, "transformation": transformation})


class FrozenCodes(MAE):
    """The decoder paints from codes that do not learn from it."""

    def __init__(self, model: nn.Module, **options: object) -> None:
        super().__init__(model, **options)  # type: ignore[arg-type]
        self.enter.register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(),))


class ForgottenToken(MaskFeat):
    """Hidden patches are 0; the token is made and never used."""

    def guess(self, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        vit = require_vit(self.encoder.backbone, "maskfeat")
        tokens = vit.patches(images) * ~mask[:, :, None] + vit.positions(images)
        guesses: torch.Tensor = self.predict(vit.encode(tokens))
        return guesses


class CopiedImage(DenoisingAutoencoder):
    """The loss compares the damaged image with the clean one: nothing is learned."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            yield replace(update, log={"reconstruction": update.loss.detach()})


class PixelsAlone(PixelCNN):
    """The decoder does without the code: nothing teaches the encoder."""

    def logits(self, targets: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return super().logits(targets, torch.zeros_like(codes))


class PerturbedTarget(VAT):
    """The stop-gradient is on the perturbed images' side."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            adversarial = update.log["adversarial"].detach()
            yield replace(
                update, loss=update.log["supervised"] + adversarial, log={**update.log, "adversarial": adversarial}
            )


class DetachedScores(SwAV):
    """The stop-gradient of the codes covers the predictions too."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            yield replace(update, log={"swapped": update.loss.detach()})


class ForgottenPrototypes(SwAV):
    """The prototypes stay frozen for the whole run."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.freeze = 2.0
        yield from super().step(batch, progress)


class TrainedTeacher(DINO):
    """The teacher's answers have a gradient, and its weights take it."""

    def __init__(self, model: nn.Module, **options: object) -> None:
        super().__init__(model, **options)  # type: ignore[arg-type]
        self.teacher.module.requires_grad_(True)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            yield replace(update, loss=update.loss + self.teacher(batch.unlabeled["first"]).square().mean())


class OneDirection(CMC):
    """Lightness is looked for by color, and never the other way round."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            second = update.log["from_second"].detach()
            yield replace(update, loss=update.log["from_first"] + second, log={**update.log, "from_second": second})


class PredictedTargets(CPC):
    """The stop-gradient is on the predictions: only targets learn."""

    def predict(self, latents: torch.Tensor) -> list[torch.Tensor]:
        return [prediction.detach() for prediction in super().predict(latents)]


class MeanTeacherAllParameters(TeacherWithGradient):
    """The optimizer gets the teacher too."""

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"main": list(self.parameters())}


class FrozenInGroup(Supervised):
    """Lists what it froze."""

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"main": list(self.parameters())}


def test_group_check_finds_a_trainable_teacher() -> None:
    with pytest.raises(AssertionError, match="requires_grad True, in a group False"):
        checks.check_groups_move(planted(TeacherWithGradient, "mean_teacher-plain"))


def test_group_check_finds_a_parameter_that_never_moves() -> None:
    with pytest.raises(AssertionError, match="idle did not move"):
        checks.check_groups_move(planted(_with_idle_layer(Supervised), "supervised-weak"))


def test_group_check_finds_a_task_that_is_not_learned() -> None:
    with pytest.raises(AssertionError, match=r"tasks\.aet\.decoder.* did not move"):
        checks.check_groups_move(planted(ForgottenTask, "multi_task-five"))


def test_group_check_finds_frozen_parameters_in_a_group() -> None:
    with pytest.raises(AssertionError, match="requires_grad False, in a group True"):
        checks.check_groups_move(planted(FrozenInGroup, "supervised-frozen"))


def _with_idle_layer(base: type[Supervised]) -> type[Method]:
    class Idle(base):  # type: ignore[misc, valid-type]
        def __init__(self, model: nn.Module, **options: object) -> None:
            super().__init__(model, **options)
            self.idle = nn.Parameter(torch.ones(1))

    return Idle


@pytest.mark.parametrize(
    ("cls", "name", "message"),
    [
        (UsbMeanTeacher, "mean_teacher-plain", "consistency has no gradient"),
        (OwnPrediction, "temporal_ensembling-plain", "consistency: all gradients are 0"),
        (PerturbedTarget, "vat-plain", "adversarial has no gradient"),
        (FrozenSimilarity, "simmatch-plain", "embed.*gradient from the update of 'main'"),
        (HeadOnly, "rotation-plain", "encoder.*gradient from the update of 'main'"),
        (TargetWithoutFeatures, "decoupled_rotation-plain", "embed.*gradient from the update of 'main'"),
        (DecoderOnly, "aet-affine", "encoder.*gradient from the update of 'main'"),
        (FrozenDecoders, "enaet-plain", "transformation has no gradient"),
        (GradientThroughKeys, "moco-v2", "target.*gradient from the update of 'main'"),
        (GradientIntoTarget, "byol-plain", "target.*gradient from the update of 'main'"),
        (StillEmbeddings, "instance_discrimination-softmax", "proximal has no gradient"),
        (BothSidesStopped, "simsiam-plain", "prediction has no gradient"),
        (NoSpread, "vicreg-plain", "(variance|covariance) has no gradient"),
        (FrozenCodes, "mae-plain", "encoder.*gradient from the update of 'main'"),
        (ForgottenToken, "maskfeat-plain", "mask_token"),
        (PixelsAlone, "pixel_cnn-gray", "encoder.*gradient from the update of 'main'"),
        (CopiedImage, "denoising_autoencoder-masking", "reconstruction has no gradient"),
        (GuessesOnly, "pseudo_label-plain", "unlabeled has no gradient"),
        (DetachedScores, "swav-plain", "swapped has no gradient"),
        (ForgottenPrototypes, "swav-crops", "prototypes: gradient from the update of 'main'"),
        (TrainedTeacher, "dino-plain", "teacher.module"),
        (OneDirection, "cmc-plain", "from_second has no gradient"),
        (PredictedTargets, "cpc-plain", "read.*gradient from the update of 'main'"),
        (EntropyOfTargets, "entropy_minimization-plain", "entropy has no gradient"),
        (GradientThroughTeacher, "mean_teacher-plain", "teacher.module"),
        (StudentInTeachersUpdate, "meta_pseudo_labels-drawn", "student.*gradient from the update of 'teacher'"),
        (MeanTeacherAllParameters, "mean_teacher-plain", "teacher.module"),
        (SoftMpl, "meta_pseudo_labels-drawn", "feedback: all gradients are 0"),
        (NoLabels, "noisy_student-plain", "supervised has no gradient"),
    ],
)
def test_gradient_check_finds_wrong_paths(cls: type[Method], name: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        checks.check_gradient_paths(planted(cls, name))


class NoisyTeacher(Distill):
    """The teacher follows train(): its BatchNorm learns."""

    def train(self, mode: bool = True) -> NoisyTeacher:
        nn.Module.train(self, mode)
        return self


class LeakyFreeze(Supervised):
    """Frozen weights, but BatchNorm in train mode."""

    def train(self, mode: bool = True) -> LeakyFreeze:
        nn.Module.train(self, mode)
        return self


@pytest.mark.parametrize(
    ("cls", "name", "part"),
    [
        (NoisyTeacher, "distill-unlabeled", lambda method: method.teacher),
        (LeakyFreeze, "supervised-frozen", lambda method: method.model.backbone),
    ],
)
def test_frozen_check_finds_moving_statistics(
    cls: type[Method], name: str, part: Callable[[Method], nn.Module]
) -> None:
    with pytest.raises(AssertionError, match=r"running_mean"):
        checks.check_frozen_stays(planted(cls, name), part)


# --- what is logged and reported -------------------------------------------------------------------------------------


def changing(change: Callable[[Update, Batch], Update]) -> type[Method]:
    """A FixMatch whose updates are altered by `change` before they are handed out."""

    class Changed(FixMatch):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            for update in super().step(batch, progress):
                yield change(update, batch)

    return Changed


def with_term(value: object) -> type[Method]:
    return changing(lambda update, batch: replace(update, log={**update.log, "kept": value}))  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(1), r"shape \(1,\)"),
        (torch.tensor(float("nan")), "kept is nan"),
        (torch.ones((), dtype=torch.float64), "float64"),
        (0.5, "kept"),
    ],
)
def test_log_check_finds_bad_terms(value: object, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        checks.check_logged_terms(planted(with_term(value), "fixmatch-plain"))


def test_log_check_finds_terms_that_nobody_classified() -> None:
    extra = changing(lambda update, batch: replace(update, log={**update.log, "extra": torch.zeros(())}))
    with pytest.raises(AssertionError, match="extra"):
        checks.check_logged_terms(planted(extra, "fixmatch-plain"))


def test_log_check_finds_losses_in_half_precision() -> None:
    class Half(Supervised):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            loss = self.model(batch.labeled["weak"]).square().mean(1).sum() / 8
            yield Update(loss, log={"supervised": loss})

    case = planted(Half, "supervised-weak")
    checks.check_logged_terms(case)
    with pytest.raises(AssertionError, match="bfloat16"):
        checks.check_logged_terms(case, precision=torch.bfloat16)


@pytest.mark.parametrize(
    "report",
    [
        lambda r: replace(r, index=r.index.flip(0)),
        lambda r: replace(r, labels=r.labels + 5),
        lambda r: replace(r, mask=r.mask * 2),
        lambda r: replace(r, mask=r.mask.mean()),
        lambda r: None,
    ],
)
def test_pseudo_label_check_finds_wrong_reports(report: Callable[[PseudoLabels | None], PseudoLabels | None]) -> None:
    cls = changing(lambda update, batch: replace(update, pseudo_labels=report(update.pseudo_labels)))
    with pytest.raises(AssertionError):
        checks.check_pseudo_labels(planted(cls, "fixmatch-plain"))


@pytest.mark.parametrize(
    ("hand_over", "message"),
    [
        (lambda first, second: (first[:-1], second[:-1]), "not a row for each image"),
        (lambda first, second: (torch.cat([first, second]), torch.cat([second, first])), "not a row for each image"),
        (lambda first, second: (first, first), "one view twice"),
        (lambda first, second: (first.detach(), second), "the network that is trained"),
        (lambda first, second: (first, second[:, :-1]), "not of one shape"),
        (lambda first, second: (first.unsqueeze(2), second.unsqueeze(2)), r"not \(N, D\)"),
    ],
)
def test_embedding_check_finds_wrong_reports(
    hand_over: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]], message: str
) -> None:
    class Planted(SimCLR):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            for update in super().step(batch, progress):
                assert update.embeddings is not None
                yield replace(update, embeddings=hand_over(*update.embeddings))

    with pytest.raises(AssertionError, match=message):
        checks.check_embeddings(planted(Planted, "simclr-plain"))


# --- the device ------------------------------------------------------------------------------------------------------


class OnePlace(ContextPrediction):
    """Judges one of the eight places a step, which it draws on the device and reads on the host."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        place = int(torch.randint(8, (), device=batch.unlabeled["weak"].device))
        for update in super().step(batch, progress):
            extra = self.task.head[1].bias[place]
            yield replace(update, loss=update.loss + 0 * extra)


class SelectedHinge(Counting):
    """The hinge is taken of those images alone that are within the margin."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            counts = self.task.head(self.encoder(batch.unlabeled["weak"]))
            distance = (counts - counts.roll(1, 0)).square().sum(1)
            near = distance[distance < self.task.margin]
            yield replace(update, loss=update.loss + near.sum())


class CountedSeeds(Exemplar):
    """How many seeds there are is asked of the device."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        if int((self.seeds != 0).flatten(1).any(1).sum()) < len(self.seeds):
            yield from super().step(batch, progress)


class Item(FixMatch):
    """Asks for a value, which stops a GPU."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            if update.log["kept"].item() >= 0:
                yield update


class LateItem(MetaPseudoLabels):
    """... but only at the end of the run."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            if progress.fraction > 0.5:
                update = replace(update, loss=update.loss * (1 + 0 * float(update.loss.detach())))
            yield update


class BooleanIndex(FixMatch):
    """Picks the kept images."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            assert update.pseudo_labels is not None
            mask = update.pseudo_labels.mask > 0
            kept = self.model(batch.unlabeled["strong"][mask])
            yield replace(
                update, loss=update.loss + F.cross_entropy(kept, update.pseudo_labels.labels[mask], reduction="sum")
            )


class PythonCounter(FlexMatch):
    """TorchSSL's flexmatch.py: guesses are counted on the host."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        counts = Counter(self.latest.tolist())
        for update in super().step(batch, progress):
            yield replace(update, log={**update.log, "threshold": torch.full((), counts[0] / DATA)})


class HostMean(SoftMatch):
    """USB's softmatch: the batch's mean confidence goes over the host."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            self.mean.lerp_(torch.full((), update.log["confidence"].item()), 0.001)
            yield update


class HostClusters(DeepCluster):
    """main_deepclusterv2.py: who is in which cluster is found on the host."""

    def cluster(self) -> None:
        super().cluster()
        self.sizes[0].copy_(torch.bincount(self.memory.argmax(1).cpu(), minlength=10)[:4])


class CpuTensor(FixMatch):
    """Makes a tensor without saying where."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            yield replace(update, loss=update.loss + (torch.arange(5) * self.model.head.bias).mean())


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (OnePlace, "context_prediction-plain"),
        (SelectedHinge, "counting-plain"),
        (CountedSeeds, "exemplar-plain"),
        (Item, "fixmatch-plain"),
        (LateItem, "meta_pseudo_labels-drawn"),
        (BooleanIndex, "fixmatch-plain"),
        (PythonCounter, "flexmatch-plain"),
        (HostMean, "softmatch-plain"),
        (HostClusters, "deepcluster-plain"),
        (CpuTensor, "fixmatch-plain"),
    ],
)
def test_meta_check_finds_host_synchronization(cls: type[Method], name: str) -> None:
    case = planted(cls, name)
    checks.check_logged_terms(case)  # nothing else is wrong with it
    with pytest.raises(AssertionError, match="needs values on the host"):
        checks.check_runs_on_meta(case)


# --- CTAugment -------------------------------------------------------------------------------------------------------


class TrainModeProbe(FixMatch):
    """Answers the probe in train mode: its images reach the BatchNorm statistics."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        yield from super().step(batch, progress)
        with torch.no_grad():
            self.model(batch.labeled["probe"])


class TrainedProbe(ReMixMatch):
    """Learns the labels on the probe too."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            extra = F.cross_entropy(self.model(batch.labeled["probe"]), batch.labeled.y)
            yield replace(update, loss=update.loss + extra)


class GuessedRates(FixMatch):
    """The network's own guess of the probe's class stands in for the label."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.model.eval()
        guesses = self.model(batch.labeled["probe"]).argmax(1)
        self.model.train()
        learned, self.rates = self.rates, None
        assert learned is not None
        learn_rates(learned, self.model, replace(batch.labeled, y=guesses))
        yield from super().step(batch, progress)
        self.rates = learned


class AllRates(FixMatch):
    """Moves the rates of all bins of an operation together."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        yield from super().step(batch, progress)
        assert self.rates is not None
        self.rates.copy_(torch.where(self.rates < 0, self.rates, self.rates.amin(1, keepdim=True).clamp(min=0)))


@pytest.mark.parametrize(
    ("cls", "name", "message"),
    [
        (TrainModeProbe, "fixmatch-ctaugment", "running_mean"),
        (TrainedProbe, "remixmatch-ctaugment", "model"),
        (GuessedRates, "fixmatch-ctaugment", "true labels have no part"),
        (AllRates, "fixmatch-ctaugment", "other bins than the probed"),
    ],
)
def test_probe_check_finds_what_the_probe_must_not_do(cls: type[Method], name: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        checks.check_probe_moves_rates_alone(planted(cls, name))


# --- the generator, the predictor, memory, seeds ---------------------------------------------------------------------


def test_protocol_check_finds_a_yield_inside_a_context() -> None:
    class Inside(Supervised):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            with torch.no_grad():
                yield from super().step(batch, progress)

    with pytest.raises(AssertionError, match="no_grad"):
        checks.check_generator_protocol(planted(Inside, "supervised-weak"))


def test_protocol_check_finds_an_unknown_group() -> None:
    cls = changing(lambda update, batch: replace(update, group="teacher"))
    with pytest.raises(AssertionError, match="unknown group 'teacher'"):
        checks.check_generator_protocol(planted(cls, "fixmatch-plain"))


def test_protocol_check_finds_silence() -> None:
    class Silent(Supervised):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            yield from ()

    with pytest.raises(AssertionError, match="no update"):
        checks.check_generator_protocol(planted(Silent, "supervised-weak"))


def test_protocol_check_finds_images_changed_in_place() -> None:
    class InPlace(Supervised):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            batch.labeled["weak"].mul_(0.5)
            yield from super().step(batch, progress)

    with pytest.raises(AssertionError, match="in place"):
        checks.check_generator_protocol(planted(InPlace, "supervised-weak"))


def test_predictor_check_finds_a_network_that_never_learns() -> None:
    class Stale(Supervised):
        def __init__(self, model: nn.Module, **options: object) -> None:
            super().__init__(model, **options)  # type: ignore[arg-type]
            self.first = copy.deepcopy(model)

        def predictor(self) -> nn.Module:
            return self.first

    with pytest.raises(AssertionError, match="leaves the predictor as it was"):
        checks.check_predictor_learns(planted(Stale, "supervised-weak"))


def test_predictor_check_finds_a_wrapper() -> None:
    class Wrapped(MeanTeacher):
        def predictor(self) -> nn.Module:
            return self.teacher

    with pytest.raises(AssertionError):
        checks.check_predictor_learns(planted(Wrapped, "mean_teacher-plain"))


def forgetting(base: type[Method], buffer: str) -> type[Method]:
    """The method with a buffer that is kept out of the checkpoint."""

    class Forgetful(base):  # type: ignore[misc, valid-type]
        @functools.wraps(base.__init__)  # what a method is given is read from its signature
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            owner, _, name = buffer.rpartition(".")
            self.get_submodule(owner).register_buffer(name, self.get_buffer(buffer), persistent=False)

    return Forgetful


@pytest.mark.parametrize(
    ("cls", "buffer", "name"),
    [
        (InstanceDiscrimination, "bank.rows", "instance_discrimination-softmax"),
        (InstanceDiscrimination, "bank.place", "instance_discrimination-fresh"),
        (InstanceDiscrimination, "bank.log_mean", "instance_discrimination-nce"),
        (SimCLRv2, "queue", "simclr_v2-memory"),
        (MoCo, "queue", "moco-v2"),
        (MoCo, "written", "moco-v1"),
        (SwAV, "queues", "swav-crops"),
        (SwAV, "written", "swav-crops"),
        (CMC, "banks", "cmc-plain"),
        (CMC, "row_in_bank", "cmc-plain"),
        (DeepCluster, "memory", "deepcluster-plain"),
        (DeepCluster, "known", "deepcluster-plain"),
        (DeepCluster, "centroids", "deepcluster-plain"),
        (DeepCluster, "sizes", "deepcluster-plain"),
        (DINO, "center", "dino-plain"),
        (Colorization, "frequencies", "colorization-plain"),
        (Colorization, "batches", "colorization-plain"),
        (ReMixMatch, "alignment.recent", "remixmatch-plain"),
        (ReMixMatch, "alignment.prior.counts", "remixmatch-plain"),
        (SoftMatch, "alignment.prior.frequencies", "softmatch-estimated"),
        (ReMixMatch, "rates", "remixmatch-ctaugment"),
        (FixMatch, "rates", "fixmatch-ctaugment"),
        (FlexMatch, "latest", "flexmatch-plain"),
        (FreeMatch, "expected", "freematch-plain"),
        (SoftMatch, "mean", "softmatch-plain"),
        (SimMatch, "bank", "simmatch-plain"),
        (Exemplar, "seeds", "exemplar-plain"),
        (Exemplar, "places", "exemplar-plain"),
        (DecoupledRotation, "bank.rows", "decoupled_rotation-plain"),
        (DecoupledRotation, "bank.log_mean", "decoupled_rotation-plain"),
        (AdaMatch, "of_labeled.value", "adamatch-plain"),
        (CoMatch, "alignment.recent", "comatch-plain"),
        (CoMatch, "memory_probs", "comatch-plain"),
        (CoMatch, "memory_embeddings", "comatch-plain"),
        (TemporalEnsembling, "ensemble", "temporal_ensembling-plain"),
        (TemporalEnsembling, "seen", "temporal_ensembling-plain"),
    ],
)
def test_resume_check_finds_memory_outside_of_buffers(
    cls: type[Method], buffer: str, name: str, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError):
        checks.check_resumes(planted(forgetting(cls, buffer), name), tmp_path)


def test_resume_check_finds_permutations_that_a_resumed_run_draws_anew(tmp_path: Path) -> None:
    class Redrawn(Jigsaw):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[arg-type]
            order = torch.randperm(len(self.task.permutations))
            self.task.register_buffer("permutations", self.task.permutations[order], persistent=False)

    with pytest.raises(AssertionError):
        checks.check_resumes(planted(Redrawn, "jigsaw-plain"), tmp_path)


def test_resume_check_finds_a_step_counter_in_python(tmp_path: Path) -> None:
    class Counting(Supervised):
        steps = 0

        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            self.steps += 1
            for update in super().step(batch, progress):
                yield replace(update, loss=update.loss * self.steps)

    with pytest.raises(AssertionError):
        checks.check_resumes(planted(Counting, "supervised-weak"), tmp_path)


def test_seed_check_finds_draws_of_its_own() -> None:
    count = itertools.count()

    class Unseeded(Supervised):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            for update in super().step(batch, progress):
                yield replace(update, loss=update.loss * (1 + 0.01 * next(count)))

    with pytest.raises(AssertionError):
        checks.check_seeds(planted(Unseeded, "supervised-weak"))


def test_seed_check_finds_undeclared_randomness() -> None:
    class Dropping(Supervised):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            images = F.dropout(batch.labeled["weak"], 0.5)
            yield from super().step(Batch(Labeled({"weak": images}, batch.labeled.y), batch.unlabeled), progress)

    with pytest.raises(AssertionError, match="random draws"):
        checks.check_seeds(planted(Dropping, "supervised-weak"))


@pytest.mark.parametrize(
    "method", ["cmc", "deepcluster", "flexmatch", "instance_discrimination", "temporal_ensembling"]
)
def test_memory_check_finds_rows_in_the_order_of_the_batch(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "parts.instance_bank" if method == "instance_discrimination" else method
    monkeypatch.setattr(f"semisup.methods.{module}.last_of", lambda places: torch.arange(len(places)))
    with pytest.raises(AssertionError, match="one place is written twice"):
        checks.check_writes_once(next(case for name, case in CASES.items() if name.startswith(f"{method}-")))

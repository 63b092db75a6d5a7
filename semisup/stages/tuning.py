"""What of a stage's network learns, and how its gradients are computed: `freeze`, `train`, `lora` and their kin."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from semisup.errors import SemisupError, raise_all
from semisup.methods import Method
from semisup.models import Classifier, Encoder
from semisup.models.blocks import blocks_of
from semisup.models.freeze import all_but, first_blocks, freeze
from semisup.models.lora import add_lora, lora_targets, merge_lora
from semisup.models.recompute import recompute_blocks
from semisup.settings import TrainConfig
from semisup.stages.initial import networks_within

__all__ = ["check_tuning", "frozen_until", "merge", "tune", "tuning_note"]


def frozen_until(stage: TrainConfig, steps: int) -> tuple[int | None, int] | None:
    """Return the blocks (None: all) that are frozen for a part of a stage, and the step that frees them."""
    if stage.freeze is None or stage.freeze.until is None:
        return None
    until = stage.freeze.until
    return stage.freeze.blocks, max(1, round(until * steps)) if until < 1 else int(until)


def check_tuning(method: Method, stage: TrainConfig, steps: int, *, pretrained: bool, compiled: bool) -> None:
    """Refuse keys that ask for what the method or its network does not have; others were refused without these.

    Args:
        method: freshly built, perhaps without memory for its weights.
        stage: its settings.
        steps: its length.
        pretrained: it starts from weights that somebody has trained.
        compiled: the recipe has `compile: true`.

    Raises:
        SemisupError: all of it.
    """
    problems = list(_problems(method, stage, steps, pretrained=pretrained))
    if stage.activation_checkpointing and compiled:
        problems.append(
            "activation_checkpointing: with compile: true torch decides what to keep; remove one of the two"
        )
    raise_all(problems)


def _problems(method: Method, stage: TrainConfig, steps: int, *, pretrained: bool) -> Iterator[str]:
    asked = [key for key in ("freeze", "lora") if getattr(stage, key) is not None]
    asked += ["train"] if stage.train != "all" else []
    blocks = len(blocks_of(networks_within(method)[0].backbone).modules)
    for key in asked if not pretrained else ():
        yield f"{key}: the network starts from random weights, which would stay; give init or model.weights"
    if asked and stage.method.get("freeze"):
        yield f"{asked[0]}: method.freeze leaves nothing but the head to learn; keep one of the two"
    if stage.freeze is not None and stage.freeze.blocks is not None and stage.freeze.blocks > blocks:
        yield f"freeze.blocks: the network has {blocks} blocks, not {stage.freeze.blocks}"
    until = frozen_until(stage, steps)
    if until is not None and until[1] >= steps:
        yield f"freeze.until: must be less than the stage's {steps:,} steps, not {until[1]:,}; without it all is frozen"
    if stage.gradient_accumulation > 1 and len(method.groups()) > 1:
        names = ", ".join(method.groups())
        yield f"gradient_accumulation: method '{stage.method['name']}' makes updates one after the other ({names})"


def tune(method: Method, stage: TrainConfig, key: str) -> None:
    """Have a method's networks learn as a stage asks for, in place, when they have their first weights.

    What is frozen for a part of the stage is not frozen here: that is the engine's (`FitSettings.frozen_until`).

    Args:
        method: as `build_method` made it; not its teacher.
        stage: what it asks for.
        key: of random numbers, the same for all of a method's networks: averages begin as what they follow.

    Raises:
        SemisupError: a target of LoRA is no layer, or something that is to be trained has nothing left that learns.
    """
    for network in networks_within(method):
        _tune_network(network, stage, key)
    empty = [name for name, group in method.groups().items() if not any(p.requires_grad for p in group)]
    if empty:
        raise SemisupError(f"freeze: leaves nothing to learn for the method's {' and '.join(empty)} parameters")


def _tune_network(network: Classifier | Encoder, stage: TrainConfig, key: str) -> None:
    backbone = network.backbone
    to_the_end = stage.freeze is not None and stage.freeze.until is None
    frozen = first_blocks(backbone, stage.freeze.blocks) if stage.freeze is not None and to_the_end else set()
    if stage.activation_checkpointing:
        recompute_blocks(backbone)
    if stage.lora is not None:
        wanted = None if stage.lora.targets == "auto" else stage.lora.targets
        targets = lora_targets(backbone, wanted, frozen)
        add_lora(backbone, targets, stage.lora.rank, stage.lora.alpha, key)
        frozen |= all_but(backbone, "bias" if stage.train == "bias" else "none")
    elif stage.train != "all":
        frozen |= all_but(backbone, stage.train)
    if frozen:
        freeze(network, frozen)


def merge(stage: TrainConfig, *modules: nn.Module) -> None:
    """Put what LoRA has learned into the weights, so that whoever reads them knows nothing of it."""
    for module in modules if stage.lora is not None else ():
        merge_lora(module)


def tuning_note(method: Method, stage: TrainConfig, steps: int) -> str | None:
    """Say what of a tuned method's network is frozen and trained; None of one that learns as a whole.

    Args:
        method: after `tune`.
        stage: what it asks for.
        steps: its length.
    """
    network = networks_within(method)[0]
    said = list(_said(stage, network, steps))
    if not said:
        return None
    backbone = list(network.backbone.parameters())
    learn, there = sum(p.numel() for p in backbone if p.requires_grad), sum(p.numel() for p in backbone)
    heads = sum(p.numel() for p in method.parameters() if p.requires_grad) - learn
    return f"{'; '.join(said)}; {learn:,} of the backbone's {there:,} parameters learn, and {heads:,} outside it"


def _said(stage: TrainConfig, network: Classifier | Encoder, steps: int) -> Iterator[str]:
    blocks = len(blocks_of(network.backbone).modules)
    if stage.freeze is not None:
        what = "the backbone" if stage.freeze.blocks is None else f"the first {stage.freeze.blocks} of {blocks} blocks"
        until = frozen_until(stage, steps)
        yield f"{what} frozen" + ("" if until is None else f" until step {until[1]:,}")
    if stage.lora is not None:
        layers = sum(name.endswith(".0.down") for name, _ in network.backbone.named_parameters())
        yield f"LoRA of rank {stage.lora.rank} in {layers} layers"
    if stage.train != "all":
        yield f"of the backbone {'biases' if stage.train == 'bias' else 'norms'} alone learn"
    if stage.optimizer.lr_decay < 1:
        yield f"learning rate times {stage.optimizer.lr_decay:g} from block to block, {blocks} of them"
    if stage.gradient_accumulation > 1:
        yield f"{stage.gradient_accumulation} batches per step"
    if stage.activation_checkpointing:
        yield f"activations of {blocks} blocks computed twice"

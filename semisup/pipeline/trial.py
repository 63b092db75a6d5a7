"""A step of a stage on the meta device: whether it can be made, and what memory it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from semisup.augment import POLICIES
from semisup.augment.policies.adaptive import Probe
from semisup.data import ImageData
from semisup.errors import SemisupError, first_line
from semisup.methods import Batch, Labeled, Method, Progress, Unlabeled
from semisup.models.recompute import recomputed
from semisup.settings import TrainConfig
from semisup.stages.views import view_policy

__all__ = ["available_memory", "step_memory"]


def step_memory(method: Method, stage: TrainConfig, data: ImageData, precision: str) -> int:
    """Peak bytes of a step: data, weights, gradients, optimizer and activations. Runs it, on the meta device.

    The step is made in fp32; under autocast about half is kept.
    """
    with torch.device("meta"):
        try:
            activations, embeds = _try_step(method, stage, data)
        except (RuntimeError, ValueError, AssertionError) as error:  # torch's words for shapes that do not fit
            sizes = (("labeled", stage.batch.labeled), ("unlabeled", stage.batch.unlabeled))
            asked = " and ".join(f"{size} {part}" for part, size in sizes if getattr(method.views, part))
            raise SemisupError(
                f"batch: method '{stage.method['name']}' cannot make a step of {asked} images of "
                f"{data.size}x{data.size}: {first_line(error)}"
            ) from error
    if stage.stop_on_collapse and not embeds:
        raise SemisupError(
            f"stop_on_collapse: method '{stage.method['name']}' hands over no embeddings that could collapse; remove it"
        )
    trained = sum(p.numel() for group in method.groups().values() for p in group if p.requires_grad)
    everything: int = sum(t.numel() for t in method.state_dict().values())
    kept = activations if precision == "fp32" else activations // 2
    return data.resident_bytes + kept + 4 * (everything + 3 * trained)


def _try_step(method: Method, stage: TrainConfig, data: ImageData) -> tuple[int, bool]:
    """Make one step; returns the bytes that backward would have to keep, and whether it hands over embeddings.

    Of a block whose activations are recomputed that is its input; what one such block takes meanwhile is not counted.
    """
    shapes = {view: (data.channels, *size) for view, size in _sizes(method, stage, data.size).items()}
    labeled, unlabeled = method.views.policies("labeled"), method.views.policies("unlabeled")
    b, u = stage.batch.labeled if labeled else 0, stage.batch.unlabeled if unlabeled else 0
    batch = Batch(
        Labeled(
            {view: torch.zeros(b, *shapes[view]) for view in labeled},
            torch.zeros(b, dtype=torch.long),
            torch.zeros(b, dtype=torch.long),
            _trace(labeled, b),
        ),
        Unlabeled(
            {view: torch.zeros(u, *shapes[view]) for view in unlabeled},
            torch.zeros(u, dtype=torch.long),
            torch.zeros(u, data.num_classes) if stage.pseudo_labels is not None else None,
        ),
    )
    kept: dict[int, int] = {}
    peak, embeds = 0, False

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = tensor.numel() * tensor.element_size()
        return tensor

    def keep_input(block: nn.Module, given: tuple[Tensor, ...]) -> None:
        for tensor in given if torch.is_grad_enabled() else ():
            keep(tensor)

    for block in recomputed(method):
        block.register_forward_pre_hook(keep_input)
    method.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for update in method.step(batch, Progress(1, 2)):
            peak = max(peak, sum(kept.values()))
            embeds = embeds or update.embeddings is not None
    return peak, embeds


def _sizes(method: Method, stage: TrainConfig, side: int) -> dict[str, tuple[int, int]]:
    """Return the height and width of each view: small crops are smaller than the images."""
    return {
        view: view_policy(stage.augment, view, default, flip=False)[1].result_size(side, side)
        for view, default in method.views.defaults.items()
    }


def _trace(policies: Mapping[str, str], images: int) -> Tensor | None:
    """Return an empty trace of a probe, if one of the policies is one."""
    for policy in policies.values():
        if issubclass(cls := POLICIES[policy], Probe):
            return torch.zeros(images, cls.trace_width, dtype=torch.long)
    return None


def available_memory(device: torch.device) -> float:
    """Bytes of memory that `device` has, in a container its share; infinite where nobody knows."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    if device.type != "cpu":
        return math.inf
    physical = int(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")
    share = limit.read_text(encoding="ascii").strip() if limit.exists() else "max"
    return physical if share == "max" else min(physical, int(share))

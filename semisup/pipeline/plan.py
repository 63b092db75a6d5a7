"""From a recipe to a graph of stages that is known to run: everything is checked before anything is trained."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semisup._version import __version__
from semisup.config import Recipe, StageConfig
from semisup.data import ImageData, LabelBudget, draw_budget, load_data
from semisup.engine import resolve_device, resolve_precision
from semisup.errors import SemisupError, nearest, raise_all
from semisup.methods import Batch, Labeled, Method, Progress, Unlabeled
from semisup.models import count_parameters
from semisup.pipeline.check import check_recipe
from semisup.stages import channel_statistics
from semisup.stages.networks import Network, build_method, check_weights_file, projector_widths, stage_network

__all__ = ["Plan", "StagePlan", "make_plan"]


@dataclass(frozen=True)
class StagePlan:
    """One stage, ready to run."""

    name: str
    config: StageConfig
    inputs: tuple[str, ...]
    """Earlier stages that it reads."""
    fingerprint: str
    """Hash of everything that can change its result."""
    steps: int
    images_per_step: int
    parameters: int
    """Of the network that it leaves."""
    network: Network | None
    """None for a relabel stage."""
    memory: int
    """Estimated peak bytes: data, weights, optimizer, saved activations."""


@dataclass(frozen=True)
class Plan:
    """A recipe with its data, its label draw and its stages in order."""

    recipe: Recipe
    data: ImageData
    budget: LabelBudget
    device: torch.device
    precision: str
    statistics: tuple[list[float], list[float]]
    stages: list[StagePlan]


def make_plan(recipe: Recipe) -> Plan:
    """Check the whole recipe, load its data, draw its labels, and try one step of every stage on the meta device.

    Raises:
        SemisupError: everything that is wrong, in one message.
    """
    subject = f"recipe '{recipe.name}'"
    raise_all(check_recipe(recipe), subject)
    device = resolve_device(recipe.device)
    precision = resolve_precision(recipe.precision, device)
    data = load_data(recipe.data)
    split_seed = recipe.seed if recipe.data.split_seed is None else recipe.data.split_seed
    budget = draw_budget(data.y_train, recipe.data.labels, split_seed, data.num_classes)
    plan = Plan(recipe, data, budget, device, precision, channel_statistics(data.x_train), [])
    planned: dict[str, StagePlan] = {}
    problems = []
    for name, stage in recipe.stages.items():
        try:
            planned[name] = _plan_stage(plan, name, stage, planned)
        except SemisupError as error:
            problems.append(f"stages.{name}.{error}")
            break  # later stages may need this one
    raise_all(problems, subject)
    plan.stages.extend(planned.values())
    _check_memory(plan)
    return plan


def _inputs(stage: StageConfig) -> tuple[str, ...]:
    names = [stage.init.source if stage.init is not None else None, *stage.teacher, stage.pseudo_labels]
    return tuple(dict.fromkeys(name for name in names if name is not None))


def _plan_stage(plan: Plan, name: str, stage: StageConfig, planned: dict[str, StagePlan]) -> StagePlan:
    inputs = _inputs(stage)
    if stage.kind == "relabel":
        for teacher in stage.teacher:
            _require_classifier(planned[teacher], "teacher")
        fingerprint = _fingerprint(plan, name, stage, None, 0, True, [planned[i].fingerprint for i in inputs])
        return StagePlan(name, stage, inputs, fingerprint, 0, 0, 0, None, plan.data.x_train.nbytes)

    data = plan.data
    networks = {i: network for i in inputs if (network := planned[i].network) is not None}
    spec = stage_network(
        stage,
        plan.recipe.model,
        networks,
        in_channels=data.channels,
        image_size=data.size,
        num_classes=data.num_classes,
    )
    if stage.init is not None and stage.init.source is not None:
        source = networks[stage.init.source].spec
        if (source.name, source.options) != (spec.name, spec.options):
            raise SemisupError(
                f"init: the weights of '{stage.init.source}' are those of {source.name} {source.options}, this stage "
                f"trains {spec.name} {spec.options}; remove its `model:` or its `init:`"
            )
    # On the meta device everything has a shape and nothing has a value: a whole step costs milliseconds.
    with torch.device("meta"):
        offline = dataclasses.replace(spec, options={k: v for k, v in spec.options.items() if k != "weights"})
        teachers = []
        for teacher in stage.teacher:
            _require_classifier(planned[teacher], "teacher")
            network = planned[teacher].network
            if network is not None:
                teachers.append(network.build().eval())
        try:
            method = build_method(stage, offline, teachers)
            activations = _try_step(method, stage, data)
        except RuntimeError as error:  # torch's word for shapes that do not fit
            first = str(error).splitlines()[0]
            raise SemisupError(
                f"model: '{spec.name}' cannot make a step on {data.size}x{data.size} images: {first}"
            ) from error
    if stage.init is not None and stage.init.weights is not None:
        check_weights_file(method, Path(stage.init.weights), stage.init.minimum_match)
    predictor = method.predictor()
    labeled, unlabeled = method.views.policies("labeled"), method.views.policies("unlabeled")
    for view in stage.augment:
        if view not in labeled and view not in unlabeled:
            raise SemisupError(
                f"augment.{view}: method '{stage.method['name']}' asks for no such view"
                f"{nearest(view, [*labeled, *unlabeled])}"
            )
    images = (stage.batch.labeled if labeled else 0) + (stage.batch.unlabeled if unlabeled else 0)
    if stage.steps is not None:
        steps = stage.steps
    else:
        epoch = len(data.x_train) / stage.batch.unlabeled if unlabeled else len(plan.budget.index) / stage.batch.labeled
        steps = max(1, math.ceil((stage.epochs or 0) * epoch))
    trained = sum(p.numel() for group in method.groups().values() for p in group)
    everything = sum(t.numel() for t in method.state_dict().values())
    memory = data.x_train.nbytes + data.x_test.nbytes + activations + 4 * (everything + 3 * trained)
    fingerprint = _fingerprint(
        plan,
        name,
        stage,
        spec.to_json(),
        steps,
        method.trains == "classifier",
        [planned[i].fingerprint for i in inputs],
    )
    network = Network(spec, method.trains, projector_widths(predictor))
    parameters = count_parameters(predictor)
    return StagePlan(name, stage, inputs, fingerprint, steps, images, parameters, network, memory)


def _require_classifier(stage: StagePlan, key: str) -> None:
    if stage.network is None or stage.network.kind != "classifier":
        raise SemisupError(f"{key}: '{stage.name}' trains an encoder and cannot answer; fine-tune it first")


def _try_step(method: Method, stage: StageConfig, data: ImageData) -> int:
    """Run one step on the meta device; returns the bytes that backward would have to keep."""
    shape = (data.channels, data.size, data.size)
    labeled, unlabeled = method.views.policies("labeled"), method.views.policies("unlabeled")
    b, u = stage.batch.labeled if labeled else 0, stage.batch.unlabeled if unlabeled else 0
    batch = Batch(
        Labeled({view: torch.zeros(b, *shape) for view in labeled}, torch.zeros(b, dtype=torch.long)),
        Unlabeled(
            {view: torch.zeros(u, *shape) for view in unlabeled},
            torch.zeros(u, dtype=torch.long),
            torch.zeros(u, data.num_classes) if stage.pseudo_labels is not None else None,
        ),
    )
    kept: dict[int, int] = {}
    peak = 0

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = tensor.numel() * tensor.element_size()
        return tensor

    method.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for _ in method.step(batch, Progress(1, 2)):
            peak = max(peak, sum(kept.values()))
    return peak


def _fingerprint(
    plan: Plan,
    name: str,
    stage: StageConfig,
    model: dict[str, Any] | None,
    steps: int,
    reads_labels: bool,
    inputs: list[str],
) -> str:
    """Hash of all that can change the stage's result. A stage without labels is shared by every label budget.

    The device is left out on purpose: its rounding differs, what is learned does not, and a stage trained on a GPU
    machine should serve on a laptop.
    """
    recipe = plan.recipe
    settings = dataclasses.asdict(stage)
    for key in ("epochs", "steps", "model"):
        del settings[key]
    content = {
        "version": __version__,
        "name": name,
        "stage": settings,
        "model": model,
        "steps": steps,
        "seed": recipe.seed,
        "init_seed": recipe.init_seed,
        "precision": plan.precision,
        "channels_last": recipe.channels_last,
        "data": plan.data.hash,
        "flip": plan.data.flip,
        "split": plan.budget.hash if reads_labels else None,
        "inputs": inputs,
        "weights_file": _file_hash(stage),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def _file_hash(stage: StageConfig) -> str | None:
    if stage.init is None or stage.init.weights is None:
        return None
    with Path(stage.init.weights).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_memory(plan: Plan) -> None:
    if plan.device.type == "cuda":
        available = torch.cuda.mem_get_info(plan.device)[1]
    elif plan.device.type == "cpu":
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    for stage in plan.stages:
        if stage.memory > available:
            raise SemisupError(
                f"stages.{stage.name}.batch: a step needs about {stage.memory / 2**30:.1f} GiB and {plan.device} has "
                f"{available / 2**30:.1f}; use smaller batches or a smaller model"
            )

"""From a recipe to a graph of stages that is known to run: everything is checked before anything is trained."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from semisup._version import __version__
from semisup.augment import POLICIES
from semisup.augment.policies.ctaugment import CTAugment, CTAugmentProbe
from semisup.config import Recipe, StageConfig
from semisup.data import ImageData, LabelBudget, draw_budget, load_data, take
from semisup.data.store import Watch, unwatched
from semisup.engine import check_compiler, resolve_device, resolve_precision
from semisup.engine.optim import check_group_lr
from semisup.errors import SemisupError, first_line, nearest, raise_all
from semisup.evaluate.knn import SIMILARITIES
from semisup.methods import METHODS, Batch, Labeled, Method, Progress, Unlabeled, Views
from semisup.methods.base import options_of
from semisup.models import Classifier, WeightsReport, count_parameters
from semisup.pipeline.check import check_recipe
from semisup.pipeline.notes import stage_notes
from semisup.stages.initial import check_weights_file
from semisup.stages.networks import Network, build_method, projector_widths, stage_network
from semisup.stages.train import policy_names, stage_backend

__all__ = [
    "Plan",
    "StagePlan",
    "make_plan",
    "needed_stages",
    "plan_stages",
    "recipe_budget",
    "stage_inputs",
    "stage_settings",
]

LATER_KEYS = {"probe": ("grid",), "knn": ("grid",), "propagate": ("grid", "components", "balance", "mirror")}
"""Keys that a kind of stage has got later. A fingerprint has them only where they are not at their defaults, so that
stages from before are still found."""


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
    """None for a stage that does not train."""
    memory: int
    """Estimated peak bytes: data, weights, optimizer, saved activations."""
    loaded: WeightsReport | None = None
    """How the file of `init.weights` fits."""
    views: Views | None = None
    """What its method asks for; None for a stage that does not train."""
    notes: tuple[str, ...] = ()
    """What to tell whoever starts it, see `stage_notes`."""


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


def make_plan(recipe: Recipe, data: ImageData | None = None, *, trial: bool = True, watch: Watch = unwatched) -> Plan:
    """Check the whole recipe, load its data, draw its labels, and try one step of every stage on the meta device.

    Args:
        recipe: with every reference between its stages checked, as `load_recipe` returns it.
        data: what `load_data(recipe.data)` returned before; None: it is loaded here.
        trial: False skips the trial steps and leaves the stages' memory at 0: for many recipes that differ in what no
            step can tell.
        watch: shows the progress of decoding a folder of images for the first time.

    Raises:
        SemisupError: everything that is wrong, in one message.
    """
    subject = f"recipe '{recipe.name}'"
    problems = check_recipe(recipe)
    with _collecting(problems):
        device = resolve_device(recipe.device)
        precision = resolve_precision(recipe.precision, device)
        if recipe.compile:
            check_compiler(device)
    with _collecting(problems):
        data = load_data(recipe.data, watch) if data is None else data
        budget = recipe_budget(recipe, data)
    raise_all(problems, subject)
    assert data is not None
    return plan_stages(Plan(recipe, data, budget, device, precision, data.statistics, []), trial=trial)


def recipe_budget(recipe: Recipe, data: ImageData) -> LabelBudget:
    """Draw the labels that a recipe asks for.

    Raises:
        SemisupError: the data do not have them.
    """
    split_seed = recipe.seed if recipe.data.split_seed is None else recipe.data.split_seed
    return draw_budget(data.y_train, recipe.data.labels, split_seed, data.num_classes, recipe.data.validation)


def plan_stages(plan: Plan, *, trial: bool = True) -> Plan:
    """Plan the stages of a recipe whose data, labels and device are known; `trial` as in :func:`make_plan`.

    Raises:
        SemisupError: every stage that cannot run, in one message.
    """
    problems: list[str] = []
    planned: dict[str, StagePlan] = {}
    methods: dict[str, Method] = {}
    for name, stage in plan.recipe.stages.items():
        if not all(needed in planned for needed in stage_inputs(stage)):
            continue  # the stage that is missing was complained about
        with _collecting(problems, f"stages.{name}."):
            if stage.kind == "train":
                planned[name], methods[name] = _plan_train(plan, name, stage, planned)
            elif stage.of is None:
                planned[name] = _plan_targets(plan, name, stage, planned)
            else:
                planned[name] = _plan_judgment(plan, name, stage, planned[stage.of])
    subject = f"recipe '{plan.recipe.name}'"
    raise_all(problems, subject)  # before the trial steps, for which torch imports its tracer: 2 s
    if not trial:
        return dataclasses.replace(plan, stages=list(planned.values()))
    available = _available_memory(plan.device)
    for name, method in methods.items():
        with _collecting(problems, f"stages.{name}."):
            memory = _step_memory(method, planned[name].config, plan.data, plan.precision)
            planned[name] = dataclasses.replace(planned[name], memory=memory)
            if memory > available:
                raise SemisupError(
                    f"batch: a step needs about {memory / 2**30:.1f} GiB and {plan.device} has "
                    f"{available / 2**30:.1f}; use smaller batches or a smaller model"
                )
    raise_all(problems, subject)
    return dataclasses.replace(plan, stages=list(planned.values()))


@contextmanager
def _collecting(problems: list[str], prefix: str = "") -> Iterator[None]:
    try:
        yield
    except SemisupError as error:
        problems.append(f"{prefix}{error}")


class _Uninitialized(TorchFunctionMode):
    """Skips random initialization, which costs 2 s of imports on the meta device, where no weight has a value."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in ("normal_", "uniform_", "trunc_normal_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def stage_inputs(stage: StageConfig) -> tuple[str, ...]:
    """Names of the earlier stages that a stage reads."""
    names = [stage.init.source if stage.init is not None else None, *stage.teacher, stage.pseudo_labels, stage.of]
    return tuple(dict.fromkeys(name for name in names if name is not None))


def needed_stages(stages: dict[str, StageConfig], name: str) -> dict[str, StageConfig]:
    """A recipe's stage and all that it depends on, in the recipe's order."""
    needed = {name}
    for earlier in reversed(stages):
        if earlier in needed:
            needed.update(stage_inputs(stages[earlier]))
    return {key: stage for key, stage in stages.items() if key in needed}


def _plan_targets(plan: Plan, name: str, stage: StageConfig, planned: dict[str, StagePlan]) -> StagePlan:
    """The plan of a relabel or propagate stage."""
    memory = plan.data.resident_bytes
    if stage.kind == "relabel":
        for teacher in stage.teacher:
            _require_classifier(planned[teacher], "teacher")
    else:
        _require_labels(plan, "kind", stage.kind)
        if stage.propagate.mirror and not plan.data.flip:
            raise SemisupError(
                f"propagate.mirror: a mirrored image of '{plan.data.name}' may be of another class; leave it false"
            )
        memory += 48 * len(plan.data.x_train) * stage.propagate.neighbors  # each edge both ways, 12 bytes, and a copy
        for teacher in stage.teacher:
            features = _features(planned[teacher])
            _check_grid(stage.kind, stage.propagate.grid, planned[teacher], features)
            numbers = stage.propagate.grid**2 * features.num_features * len(plan.data.x_train)
            memory += (8 if stage.propagate.components is None else 24) * numbers  # once more, and twice in doubles
    inputs = stage_inputs(stage)
    fingerprint = _fingerprint(plan, name, stage, None, 0, True, [planned[i].fingerprint for i in inputs])
    return StagePlan(name, stage, inputs, fingerprint, 0, 0, 0, None, memory)


def _plan_judgment(plan: Plan, name: str, stage: StageConfig, judged: StagePlan) -> StagePlan:
    """The plan of a probe or knn stage. What reads every label whatever the budget is shared by all budgets."""
    _require_labels(plan, "kind", stage.kind)
    features = _features(judged)
    if stage.probe.layers and not hasattr(features.backbone, "maps"):
        raise SemisupError(f"probe.layers: the network of '{judged.name}', {_model(judged)}, names no layers")
    grid = stage.probe.grid if stage.kind == "probe" else stage.knn.grid
    _check_grid(stage.kind, grid, judged, features)
    every_label = stage.kind == "knn" and stage.knn.bank == "all"
    fingerprint = _fingerprint(plan, name, stage, None, 0, not every_label, [judged.fingerprint])
    memory = plan.data.resident_bytes
    if stage.kind == "knn":
        bank = len(plan.data.x_train) if every_label else len(plan.budget.index)
        memory += 4 * grid**2 * features.num_features * (bank + len(plan.data.x_test)) + 4 * SIMILARITIES
    return StagePlan(name, stage, stage_inputs(stage), fingerprint, 0, 0, judged.parameters, None, memory)


def _features(judged: StagePlan) -> Classifier:
    """The network of a planned stage, without memory for its weights."""
    assert judged.network is not None
    with torch.device("meta"), _Uninitialized():
        return judged.network.build_classifier()


def _model(judged: StagePlan) -> str:
    assert judged.network is not None
    return judged.network.spec.name


def _check_grid(kind: str, grid: int, judged: StagePlan, features: Classifier) -> None:
    """Refuse a grid where there is no map for it."""
    if grid == 1:
        return
    at = f"{kind}.grid: the network of '{judged.name}'"
    if not hasattr(features.backbone, "maps"):
        raise SemisupError(f"{at}, {_model(judged)}, has no maps to average in parts; leave it at 1")
    if len(list(features.neck.children())):
        raise SemisupError(f"{at} keeps layers of a projection head, which take one mean; leave it at 1")


def _plan_train(plan: Plan, name: str, stage: StageConfig, planned: dict[str, StagePlan]) -> tuple[StagePlan, Method]:
    """The stage's plan, without its memory, and its method on the meta device."""
    data, inputs = plan.data, stage_inputs(stage)
    networks = {i: network for i in inputs if (network := planned[i].network) is not None}
    spec = stage_network(
        stage,
        plan.recipe.model,
        networks,
        in_channels=data.channels,
        image_size=data.size,
        num_classes=data.num_classes,
    )
    for teacher in stage.teacher:
        _require_classifier(planned[teacher], "teacher")
    # On the meta device everything has a shape and nothing has a value.
    with torch.device("meta"), _Uninitialized():
        teachers = [networks[teacher].build_classifier().eval() for teacher in stage.teacher]
        try:
            method = build_method(
                stage,
                spec,
                teachers,
                num_images=len(data.x_train),
                num_labeled=len(plan.budget.index),
                statistics=plan.statistics,
                pretrained=False,
            )
        except (RuntimeError, AssertionError) as error:  # torch's words for shapes that do not fit
            raise SemisupError(
                f"model: '{spec.name}' cannot be built for {data.size}x{data.size} images: {first_line(error)}"
            ) from error
    check_group_lr(method, stage.optimizer)
    loaded = None
    if stage.init is not None and stage.init.weights is not None:
        loaded = check_weights_file(method, stage.init, Path(stage.init.weights), data.classes)
    labeled, unlabeled = method.views.policies("labeled"), method.views.policies("unlabeled")
    for view in stage.view_settings:
        if view not in labeled and view not in unlabeled:
            raise SemisupError(
                f"augment.{view}: method '{stage.method['name']}' asks for no such view"
                f"{nearest(view, [*labeled, *unlabeled, 'backend'])}"
            )
    _require_rates(method, stage)
    _try_own_transforms(stage, data)
    # As resolved, for all that follows: in the log a person reads what is used, not "auto".
    backend = stage_backend(stage, method.views, plan.device, data.size)
    stage = stage.model_copy(update={"augment": {**stage.augment, "backend": backend}})
    if labeled:
        _require_labels(plan, "method", stage.method["name"])
    steps = _steps(stage, len(data.x_train), len(plan.budget.index), reads_unlabeled=bool(unlabeled))
    return StagePlan(
        name,
        stage,
        inputs,
        fingerprint=_fingerprint(
            plan,
            name,
            stage,
            spec.to_json(),
            steps,
            method.trains == "classifier",
            [planned[i].fingerprint for i in inputs],
        ),
        steps=steps,
        images_per_step=(stage.batch.labeled if labeled else 0) + (stage.batch.unlabeled if unlabeled else 0),
        parameters=count_parameters(method.predictor()),
        network=Network(spec, method.trains, projector_widths(method.predictor())),
        memory=0,
        loaded=loaded,
        views=method.views,
        notes=tuple(stage_notes(method, stage, steps)),
    ), method


def _steps(stage: StageConfig, images: int, labels: int, *, reads_unlabeled: bool) -> int:
    """Length in steps. An epoch is one pass over the images, of a method that reads labeled ones alone over those."""
    if stage.steps is not None:
        return stage.steps
    images = min(images, stage.batch.pool or images)
    epoch = images / stage.batch.unlabeled if reads_unlabeled else labels / stage.batch.labeled
    return max(1, math.ceil((stage.epochs or 0) * epoch))


def _require_rates(method: Method, stage: StageConfig) -> None:
    """Refuse CTAugment where no rates are learned, and another policy where they are learned from."""
    name = stage.method["name"]
    defaults = {**method.views.policies("labeled"), **method.views.policies("unlabeled")}
    for view, policy in policy_names(stage, method.views).items():
        default = defaults[view]
        probes = issubclass(POLICIES[policy], CTAugmentProbe)
        if probes != issubclass(POLICIES[default], CTAugmentProbe):
            what = "is for the view 'probe' of methods that learn rates" if probes else "must be 'ctaugment_probe'"
            raise SemisupError(f"augment.{view}.policy: {what}, got '{policy}'")
        if issubclass(POLICIES[policy], CTAugment) and method.cta_rates() is None:
            learners = [other for other, cls in METHODS.items() if "ctaugment" in options_of(cls)]
            raise SemisupError(
                f"augment.{view}.policy: method '{name}' learns no rates to draw by as it is set here; "
                f"{' and '.join(learners)} do with `ctaugment: true`; got '{policy}'"
            )


def _try_own_transforms(stage: StageConfig, data: ImageData) -> None:
    """Run the recipe's own albumentations transforms on one training image.

    Raises:
        SemisupError: some fail, or change what the network is fed: size, channels or type.
    """
    problems: list[str] = []
    for view, settings in stage.view_settings.items():
        if "albumentations" in settings:
            from semisup.augment.policies.own import OwnTransforms  # which takes a second to import

            found = OwnTransforms(settings["albumentations"]).try_on(take(data.x_train, slice(1))[0])
            problems += [f"{view}.albumentations{problem}" for problem in found]
    raise_all(problems, "augment")


def _require_classifier(stage: StagePlan, key: str) -> None:
    if stage.network is None or stage.network.kind != "classifier":
        raise SemisupError(f"{key}: '{stage.name}' trains an encoder and cannot answer; fine-tune it first")


def _require_labels(plan: Plan, key: str, name: str) -> None:
    if not len(plan.budget.index):
        raise SemisupError(
            f"{key}: '{name}' learns from labels, but no image of '{plan.data.name}' has one that "
            f"data.labels={plan.recipe.data.labels} allows"
        )


def _step_memory(method: Method, stage: StageConfig, data: ImageData, precision: str) -> int:
    """Peak bytes of a step: data, weights, gradients, optimizer and activations. Runs it, on the meta device.

    The step is made in fp32; under autocast about half is kept.
    """
    with torch.device("meta"):
        try:
            activations, embeds = _try_step(method, stage, data)
        except (RuntimeError, ValueError, AssertionError) as error:  # torch's words for shapes that do not fit
            raise SemisupError(
                f"batch: method '{stage.method['name']}' cannot make a step of {stage.batch.labeled} labeled and "
                f"{stage.batch.unlabeled} unlabeled images of {data.size}x{data.size}: {first_line(error)}"
            ) from error
    if stage.stop_on_collapse and not embeds:
        raise SemisupError(
            f"stop_on_collapse: method '{stage.method['name']}' hands over no embeddings that could collapse; remove it"
        )
    trained = sum(p.numel() for group in method.groups().values() for p in group)
    everything: int = sum(t.numel() for t in method.state_dict().values())
    kept = activations if precision == "fp32" else activations // 2
    return data.resident_bytes + kept + 4 * (everything + 3 * trained)


def _try_step(method: Method, stage: StageConfig, data: ImageData) -> tuple[int, bool]:
    """Make one step; returns the bytes that backward would have to keep, and whether it hands over embeddings."""
    shape = (data.channels, data.size, data.size)
    labeled, unlabeled = method.views.policies("labeled"), method.views.policies("unlabeled")
    b, u = stage.batch.labeled if labeled else 0, stage.batch.unlabeled if unlabeled else 0
    batch = Batch(
        Labeled(
            {view: torch.zeros(b, *shape) for view in labeled},
            torch.zeros(b, dtype=torch.long),
            torch.zeros(b, dtype=torch.long),
            None if method.cta_rates() is None else torch.zeros(b, 2, dtype=torch.long),
        ),
        Unlabeled(
            {view: torch.zeros(u, *shape) for view in unlabeled},
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

    method.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for update in method.step(batch, Progress(1, 2)):
            peak = max(peak, sum(kept.values()))
            embeds = embeds or update.embeddings is not None
    return peak, embeds


def stage_settings(stage: StageConfig) -> dict[str, Any]:
    """A planned stage's settings as they are hashed: views made on the device go without saying, so that stages made
    before there was a choice are still found."""
    settings = stage.model_dump()
    if settings["augment"].get("backend") != "albumentations":
        settings["augment"].pop("backend", None)
    if stage.init is not None and not stage.init.rename:  # likewise
        del settings["init"]["rename"]
    if not stage.refresh_batchnorm:
        del settings["refresh_batchnorm"]
    if stage.batch.pool is None:
        del settings["batch"]["pool"]
    return settings


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
    settings = stage_settings(stage)
    # Steps, model and the judged stage are hashed as resolved; what only a stage of another kind reads changes nothing.
    others = {"relabel", "propagate", "probe", "knn"} - {stage.kind}
    unwatched = [] if stage.stop_on_collapse else ["stop_on_collapse"]  # a watched stage may have failed
    for key in ("epochs", "steps", "model", "of", *others, *unwatched):
        del settings[key]
    if stage.kind in LATER_KEYS:
        config = getattr(stage, stage.kind)
        for key in LATER_KEYS[stage.kind]:
            if getattr(config, key) == getattr(type(config)(), key):
                del settings[stage.kind][key]
    content = {
        "version": __version__,
        "name": name,
        "stage": settings,
        "model": model,
        "steps": steps,
        "seed": recipe.seed,
        "init_seed": recipe.seed if recipe.init_seed is None else recipe.init_seed,
        "precision": plan.precision,
        "data": plan.data.hash,
        "flip": plan.data.flip,
        "split": plan.budget.hash if reads_labels else None,
        "inputs": inputs,
        "weights_file": _file_hash(stage),
        "oracle_every": recipe.oracle_every if model is not None and reads_labels else None,  # where looks are made
    }
    if recipe.compile and model is not None:  # other rounding; without the key, stages of earlier recipes stay valid
        content["compile"] = True
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def _file_hash(stage: StageConfig) -> str | None:
    if stage.init is None or stage.init.weights is None:
        return None
    with Path(stage.init.weights).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _available_memory(device: torch.device) -> float:
    """Bytes of memory that `device` has, in a container its share; infinite where nobody knows."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    if device.type != "cpu":
        return math.inf
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    share = limit.read_text(encoding="ascii").strip() if limit.exists() else "max"
    return physical if share == "max" else min(physical, int(share))

"""A recipe that is known to run, and each of its stages."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from semisup.data import ImageData, LabelBudget
from semisup.methods import Method, Views
from semisup.models import WeightsReport
from semisup.settings import Recipe, StageConfig, TrainConfig
from semisup.stages.networks import Network

__all__ = ["Plan", "StagePlan"]


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage, ready to run."""

    name: str
    config: StageConfig
    """As resolved: in the log a person reads what is used, not "auto"."""
    inputs: tuple[str, ...]
    """Earlier stages that it reads."""
    fingerprint: str = ""
    """Hash of everything that can change its result."""
    reads_labels: bool = True
    """Whether the budget's labels have a part in it; if not, it is shared by all budgets."""
    steps: int = 0
    images_per_step: int = 0
    parameters: int = 0
    """Of the network that it leaves or evaluates."""
    network: Network | None = None
    """That it trains; None for a stage that does not train."""
    memory: int = 0
    """Estimated peak bytes: data, weights, optimizer, saved activations."""
    loaded: WeightsReport | None = None
    """How the file of `init.weights` fits."""
    weights: str | None = None
    """What published weights or file the model's own options start it from, and their license."""
    tuning: str | None = None
    """What of the network is frozen and trained; None: all of it learns alike."""
    short_trainings: bool = False
    """Whether `augment: auto` makes some before it, to choose its views."""
    choice: str | None = None
    """What is chosen first, and how; None: nothing."""
    trials: tuple[int, tuple[str, ...]] = (0, ())
    """How many times at most the choice runs which earlier stages again, with those below them that read labels."""
    views: Views | None = None
    """What its method asks for; None for a stage that does not train."""
    notes: tuple[str, ...] = ()
    """What to tell whoever starts it."""
    method: Method | None = field(default=None, repr=False, compare=False)
    """On the meta device, where everything has a shape and nothing has a value, for a trial step; else None."""

    @property
    def training(self) -> TrainConfig:
        """The settings of a stage that trains."""
        assert isinstance(self.config, TrainConfig)
        return self.config


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

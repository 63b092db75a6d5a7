"""One rank of a pair: trains methods alone and together, and writes how the results differ."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from semisup.augment import POLICIES, Normalize, build_policy
from semisup.augment.kernels.opencv import has_form
from semisup.augment.policies.backend import HostFirst, ImageByImage
from semisup.augment.policies.ctaugment import new_rates
from semisup.augment.policies.policy import Drawn
from semisup.augment.policies.views import NoAugment, Weak
from semisup.engine import Batches, Checkpoints, FitSettings, TrainingImages, fit, ranks
from semisup.engine.observers import Looks, Observer
from semisup.engine.training import Training
from semisup.errors import SemisupError
from semisup.methods import Update
from semisup.models.build import build_backbone
from semisup.pipeline.several import check_same_plan
from semisup.settings import OptimizerConfig, ScheduleConfig, TrainConfig
from semisup.stages.tuning import tune
from tests.contract.contract_settings import CASES, Source, train


def in_doubles() -> None:
    """Compute everything in float64, where no rounding grows to what a mistake makes."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    torch.float32 = torch.float64  # type: ignore[misc]


DIVERGING = [f"denoising_autoencoder-{corruption}" for corruption in ("gaussian", "masking", "salt_and_pepper")]
LEARNING_RATES = dict.fromkeys([*DIVERGING, "vicreg-plain"], 0.01)
"""Of cases that the contract suite's, 0.05, drives to infinity within 50 steps, on one process too."""


def weights(name: str, steps: int) -> dict[str, Tensor]:
    """Train a case of the contract suite, and return all that it remembers."""
    method = CASES[name].build()
    train(method, Source(method), steps, lr=LEARNING_RATES.get(name, 0.05))
    return {key: value.clone() for key, value in method.state_dict().items()}


def difference(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Length of the difference of two states over that of the second."""
    assert mine.keys() == theirs.keys()
    pairs = [(mine[key].double(), theirs[key].double()) for key in mine]
    squares = [((a - b).square(), b.square()) for a, b in pairs]
    return float(sum(a.nansum() for a, _ in squares) / sum(b.nansum() for _, b in squares)) ** 0.5


def methods(names: list[str], steps: int) -> dict[str, float]:
    """Case -> difference between this rank alone and all of them."""
    alone = {name: weights(name, steps) for name in names}
    with ranks.joined():
        return {name: difference(weights(name, steps), alone[name]) for name in names}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted(Weak):
    """The weak view, which says how many images it is made of."""

    seen: ClassVar[list[int]] = []

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        self.seen.append(len(images))
        return super().apply(images, drawn)


def _views(part: int) -> Any:
    images = torch.randint(0, 256, (30, 12, 12, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    policies: dict[str, Any] = {name: build_policy(name, {}, flip=True) for name in POLICIES}
    forms = {f"{name} by image": policy for name, policy in policies.items() if has_form(type(policy))}
    host = {name: HostFirst(ImageByImage([], policy), NoAugment()) for name, policy in forms.items()}
    own = HostFirst(ImageByImage([{"name": "GaussNoise", "p": 1}], None), policies["ctaugment_probe"])
    learned = {name: policies[name].bound(new_rates() * 0.5) for name in ("ctaugment", "ctaugment_cutout")}
    batches = Batches(
        TrainingImages(images, torch.arange(10), torch.arange(10) % 3),
        labeled={"weak": Counted(), "probe": own},
        unlabeled=policies | host | learned,
        labeled_size=part,
        unlabeled_size=7,
        normalize=Normalize([0.5], [0.25]),
        device=torch.device("cpu"),
        key=(0, "views"),
    )
    return batches(3)


def views() -> dict[str, Any]:
    """Which views the ranks make otherwise together than alone, and of how many of 9 images and of 1 each makes them.

    Of parts that cannot be halved, too.
    """
    alone = [_views(part) for part in (9, 1)]
    Counted.seen.clear()
    with ranks.joined(), ranks.step_together():
        together = [_views(part) for part in (9, 1)]
    pairs = [pair for a, b in zip(alone, together, strict=True) for pair in _pairs(a, b)]
    return {"others": [name for name, mine, theirs in pairs if not torch.equal(mine, theirs)], "seen": Counted.seen}


def _pairs(a: Any, b: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    yield "trace", a.labeled.trace, b.labeled.trace
    for mine, theirs in ((a.labeled, b.labeled), (a.unlabeled, b.unlabeled)):
        for view in mine.views:
            yield view, mine[view], theirs[view]


@dataclass
class Dies(Observer):
    """Ends a run in its midst, on every rank."""

    at: int

    def measures(self, run: Training, update: Update) -> dict[str, Tensor]:
        if run.step == self.at:
            raise KeyboardInterrupt
        return {}


def resumed(folder: Path) -> dict[str, float]:
    """How far a run that was ended in its midst and resumed, by two ranks and by one, is from one that was not."""
    with ranks.joined():
        whole = weights("fixmatch-aligned", 9)
        for path in ("two.pt", "one.pt"):
            method = CASES["fixmatch-aligned"].build()
            checkpoint = [Checkpoints(folder / path, seconds=0)] if ranks.rank() == 0 else []
            with contextlib.suppress(KeyboardInterrupt):
                fit_case(method, 9, [Dies(6), *checkpoint])
        again = CASES["fixmatch-aligned"].build(seed=1 + ranks.rank())  # what is not in the checkpoint would show
        fit_case(again, 9, [Checkpoints(folder / "two.pt")] if ranks.rank() == 0 else [])
    alone = CASES["fixmatch-aligned"].build(seed=3)
    if ranks_number() == 0:
        fit_case(alone, 9, [Checkpoints(folder / "one.pt")])
    else:
        alone.load_state_dict(whole)
    return {"two": difference(again.state_dict(), whole), "one": difference(alone.state_dict(), whole)}


def ranks_number() -> int:
    return int(os.environ["RANK"])


def norms() -> float:
    """How far BatchNorm of each rank's own images leads from that of all."""
    alone = weights("supervised-weak", 4)
    with ranks.joined():
        method = CASES["supervised-weak"].build()
        fit_case(method, 4, [], sync_batchnorm=False)
    return difference(method.state_dict(), alone)


TUNED: dict[str, dict[str, Any]] = {
    "freeze": {"freeze": {"blocks": 2}},
    "lora": {"lora": {"rank": 2, "targets": ["0"]}},
    "bias": {"train": "bias"},
}


def _tuned(keys: dict[str, Any]) -> tuple[dict[str, Tensor], float]:
    """Train a case of which a part learns; what it remembers, and the share of its tensors that did not move."""
    method = CASES["fixmatch-aligned"].build()
    tune(method, TrainConfig(method={"name": "fixmatch"}, **keys), "key")
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    fit_case(method, 4, [])
    kept = [torch.equal(p, before[name]) for name, p in method.named_parameters()]
    return {name: value.clone() for name, value in method.state_dict().items()}, sum(kept) / len(kept)


def tuned() -> dict[str, list[float]]:
    """How far this rank alone is from all of them where a part of the network learns, and how much of it does not."""
    alone = {name: _tuned(keys) for name, keys in TUNED.items()}
    with ranks.joined():
        return {name: [difference(_tuned(keys)[0], alone[name][0]), alone[name][1]] for name, keys in TUNED.items()}


class Windows(nn.Module):
    """Cuts images into four windows, which dropout and BatchNorm see as rows, as in transformers of windows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width
        self.conv, self.norm, self.drop = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.conv(x).unflatten(3, (2, 5)).unflatten(2, (2, 5))
        rows = grid.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        return self.drop(self.norm(rows)).relu().unflatten(0, (-1, 4)).mean((1, 3, 4))


SETTINGS: dict[str, dict[str, Any]] = {
    "accumulated": {"accumulate": 2},
    "frozen at first": {"frozen_until": (2, 2)},
    "clipped": {"optimizer": OptimizerConfig(name="sgd", lr=0.05, clip=0.1)},
    "lars": {"optimizer": OptimizerConfig(name="lars", lr=0.5)},
    "adamw": {"optimizer": OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.05)},
}
"""Ways to train that look at a whole gradient, or at which step it is."""


def settings(case: str) -> dict[str, float]:
    """How far this rank alone is from all of them, however a case is trained."""

    def learned(more: dict[str, Any]) -> dict[str, Tensor]:
        method = CASES[case].build()
        fit_case(method, 4, [], **more)
        return {name: value.clone() for name, value in method.state_dict().items()}

    alone = {name: learned(more) for name, more in SETTINGS.items()}
    with ranks.joined():
        return {name: difference(learned(more), alone[name]) for name, more in SETTINGS.items()}


def layers() -> dict[str, float]:
    """How far this rank alone is from all of them with networks whose layers do more than ours do."""
    networks: dict[str, Callable[[int], nn.Module]] = {"windows": Windows}
    if find_spec("timm") is not None:  # its BatchNorm has an activation of its own
        networks["timm"] = lambda width: build_backbone("timm/test_efficientnet", {}, in_channels=1, image_size=12)

    def learned(backbone: Callable[[int], nn.Module]) -> dict[str, Tensor]:
        plain = CASES["supervised-weak"]
        method = dataclasses.replace(plain, setting=dataclasses.replace(plain.setting, backbone=backbone)).build()
        fit_case(method, 3, [])
        return {name: value.clone() for name, value in method.state_dict().items()}

    alone = {name: learned(backbone) for name, backbone in networks.items()}
    with ranks.joined():
        return {name: difference(learned(backbone), alone[name]) for name, backbone in networks.items()}


def fit_case(method: Any, steps: int, observers: list[Observer], **more: Any) -> None:
    usual = FitSettings(
        steps=steps,
        optimizer=OptimizerConfig(name="sgd", lr=0.05, weight_decay=5e-4),
        schedule=ScheduleConfig(name="cosine"),
        ema=0.9,
        device=torch.device("cpu"),
        log_every=2,
    )
    fit(method, Source(method), dataclasses.replace(usual, **more), observers)


def told() -> str:
    """What this rank hears of a mistake of the second one."""
    try:
        with ranks.joined(), ranks.agreeing():
            if ranks.rank() == 1:
                raise SemisupError("data: not here")
    except SemisupError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def diverged() -> str:
    """What this rank hears of a loss that is finite on none."""
    with ranks.joined():
        method = CASES["rotation-plain"].build()
        try:
            train(method, Source(method), 5, lr=1e300)
        except SemisupError as error:
            return f"{type(error).__name__}: {error}"
    return "nothing"


class Mistaken(Observer):
    """Fails at one moment on one rank; a mistake is a SemisupError, what nobody foresaw is not."""

    def __init__(self, moment: str, rank: int = 0, *, foreseen: bool = True) -> None:
        self.moment, self.rank, self.foreseen = moment, rank, foreseen

    def begins(self, run: Training) -> None:
        self.at("begins")

    def measures(self, run: Training, update: Update) -> dict[str, Tensor]:
        self.at("measures")
        return {}

    def reports(self, run: Training) -> None:
        self.at("reports")

    def steps(self, run: Training) -> None:
        self.at("steps")

    def at(self, moment: str) -> None:
        if moment == self.moment and ranks.rank() == self.rank:
            raise (SemisupError if self.foreseen else RuntimeError)(f"{moment}: not on rank {self.rank}")


def mistaken(mistake: Mistaken) -> tuple[str, float]:
    """What this rank hears of a mistake of one of them while they train or between stages; when it goes on.

    The first one takes its time to end, as where it sends what it has recorded.
    """
    try:
        with ranks.joined():
            method = CASES["rotation-plain"].build()
            try:
                mistake.at("between")
                if mistake.moment == "between":
                    ranks.hear()
                fit_case(method, 4, [mistake])
            finally:
                time.sleep(1 - ranks.rank())
    except SemisupError as error:
        return f"{type(error).__name__}: {error}", time.time()
    return "nothing", time.time()


def patient() -> int:
    """What this rank hears of a first one that takes longer than a step may; agreeing, too, it waits."""
    with ranks.joined():
        impatient()
        if ranks.rank() == 0:
            time.sleep(LONGER)
            ranks.tell(7)
            heard = 7
        else:
            heard = ranks.hear()
        with ranks.agreeing():
            time.sleep(LONGER * ranks.rank())
        return heard


WAIT, LONGER = 3.0, 4.0
"""Seconds that messages are waited for, here, and that somebody takes: a busy machine may be slow to bring one."""


def impatient() -> None:
    """From here on, messages of the hosts are waited for no longer; within a step it stays as it was."""
    ranks._Process.words = dist.new_group(backend="gloo", timeout=timedelta(seconds=WAIT))


def looked() -> float:
    """How far this rank alone is from both of them, where the first one takes its time to look on and to say a word."""
    alone, method = (CASES["rotation-plain"].build() for _ in range(2))
    fit_case(alone, 2, [])
    with ranks.joined():
        impatient()
        look = Looks(1, lambda step, network: time.sleep(LONGER))
        fit_case(method, 2, [look] if ranks.rank() == 0 else [])
        assert ranks.same_everywhere(lambda: time.sleep(LONGER) or b"word") == b"word"
    return difference(method.state_dict(), alone.state_dict())


def own_norms(folder: Path) -> dict[str, Any]:
    """What a rank's network is after BatchNorm of each rank's own images, and how far a resumed run is from it."""
    with ranks.joined():
        whole = CASES["fixmatch-aligned"].build()
        fit_case(whole, 9, [], sync_batchnorm=False)
        method = CASES["fixmatch-aligned"].build()
        checkpoint = [Checkpoints(folder / "own.pt", seconds=0)] if ranks.rank() == 0 else []
        with contextlib.suppress(KeyboardInterrupt):
            fit_case(method, 9, [Dies(6), *checkpoint], sync_batchnorm=False)
        again = CASES["fixmatch-aligned"].build(seed=1 + ranks.rank())
        fit_case(again, 9, [Checkpoints(folder / "own.pt")] if ranks.rank() == 0 else [], sync_batchnorm=False)
    sums = {name: float(value.double().sum()) for name, value in whole.state_dict().items()}
    return {"sums": sums, "resumed": difference(again.state_dict(), whole.state_dict())}


def others() -> str:
    """What this rank hears of a second one that has planned another stage."""
    try:
        with ranks.joined(), ranks.agreeing():
            check_same_plan(SimpleNamespace(stages=[SimpleNamespace(fingerprint=f"stage{ranks.rank()}")]))
    except SemisupError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def slow_to_go() -> str:
    """What this rank hears of a second one that fails, and takes its time to end its groups."""

    def slowly(*groups: Any) -> None:
        destroy(*groups)
        time.sleep(2 * ranks.SAYING)

    destroy = dist.destroy_process_group
    if ranks_number() == 1:
        dist.destroy_process_group = slowly
    try:
        return mistaken(Mistaken("measures", 1, foreseen=False))[0]
    finally:
        dist.destroy_process_group = destroy


JOBS: dict[str, Callable[[dict[str, Any], Path], Any]] = {
    "methods": lambda job, folder: methods(job["names"], job["steps"]),
    "views": lambda job, folder: views(),
    "resumed": lambda job, folder: resumed(folder),
    "norms": lambda job, folder: norms(),
    "tuned": lambda job, folder: tuned(),
    "settings": lambda job, folder: settings(job["case"]),
    "told": lambda job, folder: told(),
    "layers": lambda job, folder: layers(),
    "patient": lambda job, folder: patient(),
    "diverged": lambda job, folder: diverged(),
    "mistaken": lambda job, folder: mistaken(Mistaken(job["moment"])),
    "failed": lambda job, folder: mistaken(Mistaken(job["moment"], job["rank"], foreseen=False)),
    "looked": lambda job, folder: looked(),
    "own_norms": lambda job, folder: own_norms(folder),
    "others": lambda job, folder: others(),
    "slow_to_go": lambda job, folder: slow_to_go(),
}


def main() -> None:
    """Do the jobs of a file, and write what comes of them."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    in_doubles()
    folder = Path(sys.argv[1])
    jobs = json.loads((folder / "jobs.json").read_text())
    found = {}
    for number, job in enumerate(jobs):
        # A store for each group: two that follow each other would read each other's keys.
        os.environ["MASTER_PORT"] = str(job["port"])
        found[f"{number} {job['do']}"] = JOBS[job["do"]](job, folder)
    (folder / f"found{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

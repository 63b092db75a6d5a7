"""What a Dask worker does: run one job in a folder of stages, and hand back what it left."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from semisup.augment import Normalize
from semisup.bench.execution.jobs import Job, baseline_fingerprint
from semisup.bench.execution.together import gpu_problems, train_together
from semisup.bench.suites.baselines import choose_unlabeled, fit_baseline
from semisup.data import ImageData, load_data, take
from semisup.engine import Stopped
from semisup.errors import SemisupError
from semisup.evaluate import classification_metrics, predict_logits
from semisup.files import write_atomically
from semisup.pipeline.execute import execute, locked
from semisup.pipeline.plan import Plan, make_plan
from semisup.pipeline.timing import seconds_and_load
from semisup.plugins import Plugin, register
from semisup.records import RECORD, check_record
from semisup.settings import Recipe
from semisup.settings.schema import DataConfig
from semisup.signals import asked_to_stop
from semisup.stages import Artifact, read_artifact, write_json
from semisup.stages.artifact import finish
from semisup.stages.context import clean_batches
from semisup.stages.features import Layers, look, stored_features

__all__ = ["Failed", "Pack", "at_work", "device_name", "machine", "measure", "open_pack", "run_job", "write_pack"]

_ONE_AT_A_TIME = threading.Lock()
"""torch's generator and number of threads belong to the process: of a worker with many threads only one is at work."""


STOPPED = "stopped; the same command goes on"


@dataclass(frozen=True)
class Pack:
    """A finished job on its way between machines: its record and, where they share no folder, its files."""

    record: dict[str, Any]
    files: dict[str, bytes] | None = None


@dataclass(frozen=True)
class Failed:
    """A job that fails however often it is tried: the recipe's own fault, such as a loss that became NaN."""

    error: str


def run_job(job: Job, inputs: Mapping[str, Pack], store: str | None, plugins: Sequence[Plugin] = ()) -> Pack | Failed:
    """Run a job, or find it finished.

    Args:
        job: what to run.
        inputs: finished jobs that it reads, by stage name.
        store: folder of stages that this process shares with whoever asks; None: a folder of the worker's own, and
            the files travel with the answer.
        plugins: what was registered where the job was planned.

    Raises:
        Exception: what may be gone at the next attempt (a full disk, no memory).
    """
    with _ONE_AT_A_TIME:
        for plugin in plugins:
            register(plugin.cls, plugin.source)
        if asked_to_stop():
            return Failed(STOPPED)
        try:
            return _run_job(job, inputs, store)
        except Stopped:  # to Dask, a KeyboardInterrupt would be the end of the worker
            return Failed(STOPPED)


def _run_job(job: Job, inputs: Mapping[str, Pack], store: str | None) -> Pack | Failed:
    other = Failed("the worker has another version of semisup, or other data, than the command")
    try:
        plan = _plan(job.recipe)
        folder = _own_store() if store is None else Path(store)
        finished = {name: open_pack(inputs[name], folder / fingerprint) for name, fingerprint in job.inputs}
        home = folder / job.fingerprint
        with locked(home):
            if job.baseline:
                if baseline_fingerprint(plan, job.baseline, job.inputs) != job.fingerprint:
                    return other
                artifact = read_artifact(home) or _run_baseline(job, plan, home, finished)
            else:
                (stage,) = [stage for stage in plan.stages if stage.name == job.stage]
                if stage.fingerprint != job.fingerprint:
                    return other
                if job.processes > 1 and read_artifact(home) is None:
                    said = _together(job, folder)
                    if said:
                        return Failed(said)
                artifact, _ = execute(plan, stage, home, finished)
    except SemisupError as error:
        if isinstance(error.__cause__, OSError):  # a file that could not be written or read
            raise
        return Failed(str(error))
    return Pack(artifact.record, None if store is not None else _read_files(artifact))


def _together(job: Job, folder: Path) -> str:
    """Train a job's stage as several ranks, on GPUs of this worker's own; return why it cannot be trained, or ""."""
    assert job.stage is not None
    said = "\n".join(gpu_problems(job.processes))  # of a machine that is not the command's
    if said:
        return said
    first, here = _worker_number() * job.processes, torch.cuda.device_count()
    gpus = [(first + i) % here for i in range(min(job.processes, here))]
    fingerprints = {job.stage: job.fingerprint, **dict(job.inputs)}
    try:
        return train_together(job.recipe, job.stage, fingerprints, folder, job.processes, gpus)
    except KeyboardInterrupt:
        raise Stopped from None


def at_work() -> bool:
    """Whether a job is being run in this process."""
    return _ONE_AT_A_TIME.locked()


def measure(recipe: Recipe, stage: str) -> tuple[float, float]:
    """Return the seconds of one step of a stage on this machine, and how many cores other programs kept busy."""
    with _ONE_AT_A_TIME:
        plan = _plan(recipe)
        (found,) = [planned for planned in plan.stages if planned.name == stage]
        return seconds_and_load(plan, found)


def device_name() -> str:
    """Return what computes here: the GPU, else the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(_worker_number() % torch.cuda.device_count())
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def machine() -> str:
    """Processor, GPU and the versions that can change a result, in a line."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "scikit-learn", "numpy"))
    return f"{os.cpu_count()} cores, {device_name()}; Python {platform.python_version()}, {versions}"


def _plan(recipe: Recipe) -> Plan:
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    if recipe.device == "auto" and torch.cuda.is_available():
        recipe = recipe.model_copy(update={"device": f"cuda:{_worker_number() % torch.cuda.device_count()}"})
    return make_plan(recipe, _load(_data_key(recipe.data)), trial=False)


def _data_key(config: DataConfig) -> str:
    plain = config.model_copy(update={"labels": "all", "split_seed": None, "validation": 0.0})
    return json.dumps(plain.model_dump(), sort_keys=True)


@functools.lru_cache(maxsize=1)
def _load(key: str) -> ImageData:
    """Return the data set, kept between the jobs of a process."""
    return load_data(DataConfig(**json.loads(key)))


def _worker_number() -> int:
    """Return the number of this worker of a local cluster, which decides its GPU; 0 for a worker with a name."""
    from distributed import get_worker

    try:
        return int(get_worker().name)
    except (ValueError, TypeError):  # no worker at all, or one that its owner has named
        return 0


def _own_store() -> Path:
    from distributed import get_worker

    return Path(get_worker().local_directory) / "stages"


def _read_files(artifact: Artifact) -> dict[str, bytes]:
    return {name: (artifact.folder / name).read_bytes() for name in artifact.record["files"]}


def open_pack(pack: Pack, home: Path) -> Artifact:
    """Return the artifact of a finished job in the folder `home`, written there if it is not there yet.

    Raises:
        SemisupError: it came without its files and is not there; or it is damaged.
    """
    with locked(home):
        artifact = read_artifact(home)
        if artifact is None:
            artifact = write_pack(pack, home)
    return artifact


def write_pack(pack: Pack, home: Path) -> Artifact:
    """Write a finished job's files, and its record last.

    Nothing is written before the names are found to be plain ones and the contents those that the record lists.

    Raises:
        SemisupError: it has no files, it is of another job, or one of its files is not what its record says.
    """
    if pack.files is None:
        raise SemisupError(f"{home}: a finished stage should be here and is not; run the suite again")
    record = check_record(pack.record, f"{home}: a worker's answer")
    sent = {name: hashlib.sha256(content).hexdigest() for name, content in pack.files.items()}
    if record["fingerprint"] != home.name or sent != record["files"]:
        raise SemisupError(f"{home}: a worker's answer: its files are not those of its record")
    home.mkdir(parents=True, exist_ok=True)
    for name, content in pack.files.items():
        write_atomically(home / name, content)
    write_json(home / RECORD, record)
    artifact = read_artifact(home)
    assert artifact is not None
    return artifact


def _run_baseline(job: Job, plan: Plan, home: Path, finished: Mapping[str, Artifact]) -> Artifact:
    """Fit a baseline on pixels, or on the features of the one finished stage; its record is that of a stage."""
    data, budget = plan.data, plan.budget
    started = time.perf_counter()
    given = np.concatenate([budget.index, budget.validation])
    others = choose_unlabeled(np.setdiff1d(np.arange(len(data.x_train)), given), plan.recipe.seed)
    (source,) = finished.values() or (None,)
    vectors = (
        _pixels
        if source is None
        else functools.partial(_features, plan, source.folder, look(source.folder, plan.device))
    )
    labeled = vectors(data.x_train, "train", budget.index)
    asked = {"test": (vectors(data.x_test, "test", None), data.y_test)} if len(data.x_test) else {}
    images, rows, y = data.validation(budget.validation)
    if len(rows):
        part = "train" if images is data.x_train else "validation"
        asked["validation"] = (vectors(images, part, rows), y)
    predictions = fit_baseline(
        job.baseline,
        labeled,
        data.y_train[budget.index],
        vectors(data.x_train, "train", others) if len(others) else np.empty((0, labeled.shape[1])),
        [x for x, _ in asked.values()],
        data.num_classes,
    )
    metrics: dict[str, Any] = {}
    for (name, (_, y)), probs in zip(asked.items(), predictions, strict=True):
        # Classes without a label have probability 0; the logarithm needs more.
        logits = torch.from_numpy(probs).clamp(min=1e-12).log()
        found = classification_metrics(logits, torch.from_numpy(y), data.num_classes)
        metrics |= {f"{name}/{key}": value for key, value in found.items()}
    record = {
        "name": job.name,
        "method": job.baseline["name"],
        "fingerprint": job.fingerprint,
        "steps": 0,
        "seconds": time.perf_counter() - started,
        "parameters": 0,
        "metrics": metrics,
    }
    return finish(home, [], record)


def _pixels(images: NDArray[np.uint8], part: str, rows: NDArray[np.int64] | None) -> NDArray[np.float64]:
    chosen = take(images, slice(None) if rows is None else rows)
    return chosen.reshape(len(chosen), -1) / 255.0


def _features(
    plan: Plan, folder: Path, network: Layers, images: NDArray[np.uint8], part: str, rows: NDArray[np.int64] | None
) -> NDArray[np.float64]:
    """Return what a features stage has stored of a part's images, else what the network sees in them."""
    stored = stored_features(folder, network, part, rows)
    if stored is None:
        normalize = Normalize(*plan.statistics).to(plan.device)
        stored = predict_logits(network, clean_batches(images, normalize, plan.device, rows)).cpu()
    return stored.double().numpy()

"""One train stage of a suite as several ranks of this machine: a GPU each, or a part of the cores.

A Dask worker has one run at a time; where the suite says `gpus_per_run: 2`, it starts torchrun for a train stage and
waits for it. The ranks plan the stage anew and find the same fingerprint, so that its folder is the same whether one
process has trained it or several.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from semisup.config import parse_recipe
from semisup.engine import ranks
from semisup.errors import SaidElsewhereError, SemisupError, raise_all
from semisup.pipeline.execute import execute, help_to_execute
from semisup.pipeline.plan import make_plan
from semisup.pipeline.several import not_shared
from semisup.settings import Recipe
from semisup.signals import asked_to_stop, catching, end_with, grace
from semisup.stages import read_artifact

__all__ = ["gpu_problems", "train_together"]

GLANCE = 0.1
"""Seconds between looks at the ranks."""


def gpu_problems(processes: int) -> Iterator[str]:
    """Yield what is wrong with runs of so many processes on this machine.

    Runs whose number of processes does not divide the GPUs would share one, or leave some idle.
    """
    gpus = torch.cuda.device_count()
    if gpus % processes:
        valid = ", ".join(str(count) for count in range(1, gpus + 1) if gpus % count == 0)
        yield f"gpus_per_run: must divide the {gpus} GPUs of this machine, not {processes}; valid: {valid}"
    elif why := ranks.crowd(processes):
        yield f"gpus_per_run: {why}"


def train_together(
    recipe: Recipe, stage: str, fingerprints: Mapping[str, str], store: Path, processes: int, gpus: Sequence[int] = ()
) -> str:
    """Train a stage in its folder in the store, which the caller has locked; return "", or why it cannot be trained.

    Args:
        recipe: planned.
        stage: its name.
        fingerprints: of it and of the stages that it reads, by name; these are finished.
        store: folder of stages.
        processes: how many ranks.
        gpus: a number for each; none: they share the cores.

    Raises:
        KeyboardInterrupt: this process was asked to stop, and the ranks have written a checkpoint.
        ChildProcessError: the ranks ended without a word, as killed ones do.
    """
    with tempfile.TemporaryDirectory() as folder:
        job, answer = Path(folder) / "job.json", Path(folder) / "answer.txt"
        content: dict[str, Any] = {"recipe": recipe.model_dump(by_alias=True), "stage": stage}
        content |= {"fingerprints": dict(fingerprints), "store": str(store.resolve())}
        content |= {"answer": str(answer), "asked_by": os.getpid()}
        job.write_text(json.dumps(content), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        environment = ranks.with_grace(grace()) | os.environ | {"OMP_NUM_THREADS": str(recipe.threads or 1)}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        command += ["-m", __name__, str(job)]
        quiet = subprocess.DEVNULL
        launched = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)  # nosec B603
        with _ended(launched):
            while launched.poll() is None and not asked_to_stop():
                time.sleep(GLANCE)
        if asked_to_stop():
            raise KeyboardInterrupt
        said = answer.read_text(encoding="utf-8") if answer.exists() else ""
        if launched.returncode and not said:
            raise ChildProcessError(f"{stage}: its {processes} processes ended without a word")
        return said


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let a process and what it has started end with the context, after the grace."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace())
        process.kill()
        process.wait()


def _rank(job: Mapping[str, Any]) -> None:
    """Be one of the ranks."""
    store, fingerprints = Path(job["store"]), job["fingerprints"]
    with ranks.joined():
        with ranks.agreeing():
            recipe = parse_recipe(job["recipe"])
            raise_all(not_shared(recipe, ranks.size()), "gpus_per_run")
            if recipe.threads is not None:
                torch.set_num_threads(recipe.threads)
            plan = make_plan(recipe, trial=False)
            (stage,) = [stage for stage in plan.stages if stage.name == job["stage"]]
            if stage.fingerprint != fingerprints[stage.name]:
                raise SemisupError("gpus_per_run: a rank has other data, or another version of semisup")
            found = {name: read_artifact(store / fingerprints[name]) for name in stage.inputs}
            finished = {name: artifact for name, artifact in found.items() if artifact is not None}
            raise_all([f"{store / fingerprints[name]}: is not finished" for name in found if name not in finished])
        take_part = execute if ranks.rank() == 0 else help_to_execute
        take_part(plan, stage, store / stage.fingerprint, finished)


def main() -> int:
    """Read the job, take part in it; rank 0 says what is wrong."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    end_with(job["asked_by"])
    with catching(grace()):
        try:
            _rank(job)
        except SaidElsewhereError:
            return 2
        except SemisupError as error:
            if os.environ.get("RANK") == "0" and not isinstance(error, ranks.LostRankError):
                Path(job["answer"]).write_text(str(error), encoding="utf-8")
            return 2
        except KeyboardInterrupt:
            return 143
    return 0


if __name__ == "__main__":
    sys.exit(main())

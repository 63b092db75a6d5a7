"""The `semisup` command as a process of its own that can be watched, killed and started again.

Importing torch takes seconds. `Nursery` imports everything once and forks: each start is then a fresh process that is
at work within a tenth of a second, and the tests can afford a kill per stage. `command` is the slow, plain way.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TRAIN = {"method": {"name": "supervised"}, "batch": {"labeled": 16}, "ema": 0.9}
BOTH = {"labeled": 8, "unlabeled": 16}
VIT = {"name": "vit", "width": 8, "depth": 3, "heads": 2}
STAGES: dict[str, dict[str, Any]] = {
    "pretrain": {"method": {"name": "simclr_v2", "out_features": 8, "memory": 64}, "batch": {"unlabeled": 16}},
    "contrast": {
        "method": {"name": "simclr", "out_features": 8},
        "optimizer": {"name": "lars", "lr": 0.5},
        "schedule": {"name": "cosine", "warmup": 0.2},
        "batch": {"unlabeled": 16},
    },
    "queue": {"method": {"name": "moco", "memory": 48, "bn_splits": 2}, "batch": {"unlabeled": 16}},
    "latent": {"method": {"name": "byol", "hidden": 16}, "batch": {"unlabeled": 16}},
    "siamese": {"method": {"name": "simsiam", "hidden": 16, "out_features": 16}, "batch": {"unlabeled": 16}},
    "twins": {"method": {"name": "barlow_twins", "hidden": 16, "out_features": 16}, "batch": {"unlabeled": 16}},
    "spread": {"method": {"name": "vicreg", "hidden": 16, "out_features": 16}, "batch": {"unlabeled": 16}},
    "instances": {
        "method": {"name": "instance_discrimination", "noise": 64, "out_features": 8},
        "batch": {"unlabeled": 16},
    },
    "patches": {
        "method": {"name": "cpc", "grid": 2, "nearest": 1, "farthest": 1, "context": 8},
        "batch": {"unlabeled": 16},
    },
    "edges": {"method": {"name": "cmc", "negatives": 50, "out_features": 8}, "batch": {"unlabeled": 16}},
    "clustered": {
        "method": {"name": "deepcluster", "clusters": 5, "interval": 0.1, "out_features": 8},
        "batch": {"unlabeled": 16},
    },
    "swapped": {
        "method": {"name": "swav", "prototypes": 6, "out_features": 8, "crops": 1, "queue": 48, "queue_start": 0.2},
        "batch": {"unlabeled": 16},
    },
    "centered": {
        "method": {"name": "dino", "out_features": 16, "hidden": 8, "bottleneck": 6, "crops": 1, "freeze": 0.2},
        "batch": {"unlabeled": 16},
    },
    "upright": {"method": {"name": "rotation"}, "batch": {"unlabeled": 16}},
    "puzzle": {"method": {"name": "jigsaw", "permutations": 10}, "batch": {"unlabeled": 16}},
    "context": {"method": {"name": "context_prediction"}, "batch": {"unlabeled": 16}},
    "count": {"method": {"name": "counting", "counts": 50}, "batch": {"unlabeled": 16}},
    "halves": {"method": {"name": "decoupled_rotation", "negatives": 50}, "batch": {"unlabeled": 16}},
    "seeds": {"method": {"name": "exemplar", "surrogates": 40}, "batch": {"unlabeled": 16}},
    "warped": {"method": {"name": "aet", "transformation": "affine"}, "batch": {"unlabeled": 16}},
    "tasks": {"method": {"name": "multi_task", "tasks": {"rotation": 1.0, "aet": 0.5}}, "batch": {"unlabeled": 16}},
    "painted": {
        "model": VIT,
        "method": {"name": "mae", "decoder_width": 8, "decoder_heads": 2},
        "batch": {"unlabeled": 16},
    },
    "gradients": {"model": VIT, "method": {"name": "maskfeat"}, "batch": {"unlabeled": 16}},
    "repaired": {"method": {"name": "denoising_autoencoder", "decoder_width": 4}, "batch": {"unlabeled": 16}},
    "read": {"method": {"name": "pixel_cnn", "levels": 3, "decoder_width": 4}, "batch": {"unlabeled": 16}},
    "finetune": {"init": {"from": "pretrain", "head_layer": 1}, **TRAIN},
    "match": {
        "init": "finetune",
        "method": {"name": "fixmatch", "threshold": 0.2, "align": True},
        "optimizer": {"name": "adamw", "lr": 1e-3, "clip": 1.0},
        "batch": BOTH,
        "ema": 0.9,
    },
    "pseudo": {"method": {"name": "pseudo_label", "threshold": 0.2, "ramp": 0.0}, "batch": BOTH},
    "entropy": {"method": {"name": "entropy_minimization"}, "batch": BOTH},
    "pi": {"method": {"name": "pi_model", "ramp": 0.0}, "batch": BOTH},
    "temporal": {"method": {"name": "temporal_ensembling", "ramp": 0.0}, "batch": BOTH},
    "vat": {"method": {"name": "vat", "ramp": 0.0, "entropy_weight": 0.1}, "batch": BOTH},
    "uda": {"method": {"name": "uda", "threshold": 0.2}, "batch": BOTH},
    "mix": {"method": {"name": "mixmatch"}, "batch": BOTH},
    "remix": {"method": {"name": "remixmatch", "ctaugment": True}, "batch": BOTH},
    "decode": {"method": {"name": "enaet"}, "batch": BOTH},
    "flex": {"method": {"name": "flexmatch", "threshold": 0.2, "warmup": False}, "batch": BOTH},
    "free": {"method": {"name": "freematch", "momentum": 0.9}, "batch": BOTH},
    "soft": {"method": {"name": "softmatch", "momentum": 0.9}, "batch": BOTH},
    "adapt": {"method": {"name": "adamatch", "threshold": 0.5}, "batch": BOTH},
    "graphs": {"method": {"name": "comatch", "threshold": 0.2, "memory": 48, "embedding": 8}, "batch": BOTH},
    "neighbors": {"method": {"name": "simmatch", "threshold": 0.2, "embedding": 8}, "batch": BOTH},
    "turned": {"method": {"name": "s4l_rotation"}, "batch": BOTH},
    "copied": {"method": {"name": "s4l_exemplar", "embedding": 8}, "batch": BOTH},
    "mean": {"method": {"name": "mean_teacher"}, "batch": BOTH},
    "meta": {"method": {"name": "meta_pseudo_labels", "student_start": 0.2}, "batch": BOTH},
    "probed": {"kind": "probe", "of": "contrast", "probe": {"layers": True}},
    "labels": {"kind": "relabel", "teacher": ["match", "mean"], "relabel": {"per_class": 20, "balance": True}},
    "noisy": {"pseudo_labels": "labels", "method": {"name": "noisy_student"}, "batch": BOTH},
    "student": {
        "teacher": "noisy",
        "model": {"name": "cnn", "width": 3},
        "method": {"name": "distill", "alpha": 0.5},
        "batch": BOTH,
    },
}
"""Every method for gray images once, with every optimizer, and what has a state: memory, averages, networks, tables."""

ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
PATIENCE = 240.0
"""Seconds after which a process that does nothing has failed the test."""

SERVER = """
import json, os, resource, signal, sys, tempfile
from pathlib import Path
import sklearn.linear_model, sklearn.pipeline, torch._dynamo, semisup.pipeline
from semisup.cli.app import main
from semisup.evaluate import confusion_figure

with tempfile.TemporaryDirectory() as folder:  # looks for fonts, which takes a second
    confusion_figure(torch.eye(2, dtype=torch.long), ["0", "1"], Path(folder) / "warm.png")

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(job["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1)
        os.dup2(1, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(job["cwd"])
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell has it ignored
        if job["largest_file"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"], job["largest_file"]))
        sys.argv = ["semisup", *job["args"]]
        main()
        sys.exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def command(*args: str) -> list[str]:
    """The command line of `semisup` in this Python."""
    return [sys.executable, "-c", "from semisup.cli.app import main; main()", *args]


def write_recipe(folder: Path, *stages: str, steps: int = 12) -> None:
    """Write `recipe.yaml`: the named stages of `STAGES` ("train" is one without a past), by default all of them."""
    chosen = {name: {"train": TRAIN, **STAGES}[name] for name in stages or STAGES}
    recipe = {
        "name": "faults",
        "seed": 3,
        "threads": 1,
        "checkpoint_seconds": 0,
        "log_every": 5,
        "data": {"source": "digits", "labels": "10/class"},
        "model": {"name": "cnn", "width": 4},
        "tracking": {"mlflow": False},
        "stages": {n: s if "kind" in s else {"steps": steps, **s} for n, s in chosen.items()},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def environment() -> dict[str, str]:
    """One thread: as fast for tiny networks, and the sums are always in one order."""
    return os.environ | ENVIRONMENT


class Nursery:
    """Starts `semisup` processes, one at a time, without the seconds that importing torch takes."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )
        self.child: Child | None = None

    def start(self, cwd: Path, *args: str, largest_file: int = 0, log: Path | None = None) -> Child:
        """Start `semisup ARGS` in `cwd`; no file may grow beyond `largest_file` bytes, if given: a full disk."""
        if self.child is not None and self.child.code is None:  # its test has failed
            self.child.kill()
            self.child.wait()
        log = log or cwd / "output.log"
        job = {"cwd": str(cwd), "args": args, "log": str(log), "largest_file": largest_file}
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        self.child = Child(self.number(), log, self)
        return self.child

    def number(self) -> int:
        """The next number that the server says."""
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())

    def run(self, cwd: Path, *args: str, largest_file: int = 0, log: Path | None = None) -> tuple[int, str]:
        """Start and wait: exit status and everything printed."""
        child = self.start(cwd, *args, largest_file=largest_file, log=log)
        return child.wait(), child.log.read_text()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait(PATIENCE)
        self.server.stdout.close()


@dataclass
class Child:
    """One process of a nursery."""

    pid: int
    log: Path
    nursery: Nursery
    code: int | None = None
    """Exit status, negative the number of the signal that ended it; None before `wait`."""

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; a process that has ended already is left alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for the end and return the exit status."""
        self.code = self.nursery.number()
        return self.code

    def has_said(self, words: str) -> bool:
        """Whether its output has these words so far."""
        return self.log.exists() and words in self.log.read_text()

    def alive(self) -> bool:
        """Whether the server has not reaped it yet."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def wait_for(self, what: str, condition: Callable[[], object]) -> None:
        """Poll every millisecond until `condition()`; the process must not end before."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if not self.alive() and not condition():
                raise AssertionError(f"the process ended before {what}:\n{self.log.read_text()}")
            if time.monotonic() > end:
                raise TimeoutError(f"waited {PATIENCE:g} s for {what}:\n{self.log.read_text()}")
            time.sleep(0.001)


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    """Complete events of one kind, as the run wrote them."""
    path = out / "events.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in found if event["event"] == kind]


def homes(out: Path) -> dict[str, Path]:
    """Stage -> the folder of the store in which a finished run's stage was trained."""
    content = json.loads((out / "result.json").read_text())
    return {stage["name"]: out.parent / ".semisup" / "stages" / stage["fingerprint"] for stage in content["stages"]}


def statuses(out: Path) -> dict[str, str]:
    """Stage -> trained, reused or resumed, of a finished run."""
    return {stage["name"]: stage["status"] for stage in json.loads((out / "result.json").read_text())["stages"]}


def tensors(out: Path) -> dict[str, bytes]:
    """The bytes of every file of tensors that a run left, by stage."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("*/*.safetensors"))}


def timeless(result: Path) -> dict[str, Any]:
    """`result.json` without what a clock measured, without where it is, and without how each stage came about."""
    content: dict[str, Any] = json.loads(result.read_text())
    del content["final"]["path"]
    for stage in content["stages"]:
        for key in ("seconds", "images_per_second", "status"):
            del stage[key]
    return content

"""`semisup`, and other code, as processes that can be watched, killed and started again.

Importing torch takes seconds. `Nursery` imports everything once and forks: each start is then a fresh process that is
at work within a tenth of a second, and the tests can afford a kill per stage.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""One thread: as fast for tiny networks, and the sums are always in one order."""
PATIENCE = 240.0
"""Seconds after which a process that does nothing has failed the test."""

SERVER = '''
import atexit, gc, json, os, resource, signal, sys, tempfile, threading
from pathlib import Path
import mlflow, mlflow.store.tracking.sqlalchemy_store, sklearn.linear_model, sklearn.pipeline, torch._dynamo
import semisup.pipeline
from semisup.cli.app import main
from semisup.evaluate import confusion_figure
from tests import undrawn

with tempfile.TemporaryDirectory() as folder:  # looks for fonts, which takes a second
    confusion_figure(torch.eye(2, dtype=torch.long), ["0", "1"], Path(folder) / "warm.png")
undrawn.replace(undrawn.BLANK)

def work(job):
    os.dup2(os.open(job["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1)
    os.dup2(1, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["cwd"])
    os.environ.update(job["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell has it ignored
    if job["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"], job["largest_file"]))
    sys.argv = [job["name"], *job["args"]]
    sys.path.insert(0, job["cwd"])
    try:
        if job["code"] is None:
            main()
        else:
            exec(compile(job["code"], "<code>", "exec"), {"__name__": "__main__"})
    except SystemExit as stopped:
        return stopped.code or 0
    return 0

def end(code):
    """As Python ends, without taking every module apart, which would cost more than all before."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

gc.collect()
gc.freeze()  # a collection in a child would copy every page of these
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child == 0:
        end(work(job))
    print(child, flush=True)
'''


class Nursery:
    """Starts processes without the seconds that importing torch takes."""

    def __init__(self) -> None:
        environment = os.environ | ENVIRONMENT | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.children: list[Child] = []

    def start(
        self,
        cwd: Path,
        *args: str,
        code: str | None = None,
        largest_file: int = 0,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Start `semisup ARGS`, or Python's `code` with these arguments, in `cwd`.

        No file may grow beyond `largest_file` bytes, if given: a full disk.
        """
        log = log or cwd / "output.log"
        job = {"cwd": str(cwd), "args": args, "code": code, "log": str(log), "largest_file": largest_file}
        job |= {"name": "semisup" if code is None else "-c", "environment": dict(environment or {})}
        child = Child(self.ask(job), log, self)
        self.children.append(child)
        return child

    def run(
        self,
        cwd: Path,
        *args: str,
        code: str | None = None,
        largest_file: int = 0,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> tuple[int, str]:
        """Start and wait: exit status and everything printed."""
        child = self.start(cwd, *args, code=code, largest_file=largest_file, log=log, environment=environment)
        return child.wait(), child.log.read_text()

    def ask(self, job: Mapping[str, object]) -> int:
        """Give the server a line; return the number it answers."""
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def clear(self) -> None:
        """End what a failed test has left."""
        for child in self.children:
            if child.code is None:
                child.kill()
                child.wait()
        self.children.clear()

    def close(self) -> None:
        """End the server."""
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
        self.code = self.nursery.ask({"wait": self.pid})
        return self.code

    def has_said(self, words: str) -> bool:
        """Whether its output has these words so far."""
        return self.log.exists() and words in self.log.read_text()

    def alive(self) -> bool:
        """Whether it has not ended."""
        return psutil.pid_exists(self.pid) and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE

    def wait_for(self, what: str, condition: Callable[[], object]) -> None:
        """Poll every millisecond until `condition()`; the process must not end before."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if not self.alive() and not condition():
                raise AssertionError(f"the process ended before {what}:\n{self.log.read_text()}")
            if time.monotonic() > end:
                raise TimeoutError(f"waited {PATIENCE:g} s for {what}:\n{self.log.read_text()}")
            time.sleep(0.001)

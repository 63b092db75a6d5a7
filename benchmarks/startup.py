"""What a person waits for, and the memory a run takes: three commands, each in a process of its own.

    python benchmarks/startup.py            # writes benchmarks/results/startup.json and .md
    python benchmarks/startup.py --quick    # each command once; writes nothing

`semisup --help` from start to end; `semisup run digits/quickstart` from its start to the end of its first training
step, by the time in its event log; and the most memory that `semisup run fashion_mnist/fixmatch` of a few steps ever
held, evaluation on the 10,000 test images and the upload to MLflow included. The median of five.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from speed_results import circumstances, show, write

SEMISUP = Path(sys.executable).with_name("semisup")
REPEATS = 5
PATIENCE = 300.0
"""Seconds after which a command that has not come to its first step is given up."""


def help_seconds() -> float:
    """Seconds of `semisup --help`."""
    begun = time.perf_counter()
    subprocess.run([SEMISUP, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def first_step_seconds() -> float:
    """Seconds from the quickstart's command to the end of its first training step.

    Raises:
        TimeoutError: there was none.
    """
    with tempfile.TemporaryDirectory() as folder:
        begun = time.time()
        command = [str(SEMISUP), "run", "digits/quickstart", "log_every=1", "--out", f"{folder}/run"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while time.time() - begun < PATIENCE:
                step = first_step(Path(folder, "run", "events.jsonl"))
                if step is not None:
                    return step - begun
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    raise TimeoutError(f"no training step within {PATIENCE:.0f} s")


def first_step(events: Path) -> float | None:
    """When the first number of a training step was logged, seconds since 1970; None: not yet."""
    if not events.exists():
        return None
    whole = events.read_text(encoding="utf-8").rpartition("\n")[0]
    found = [event for event in map(json.loads, whole.splitlines()) if event["event"] == "metrics" and event["stage"]]
    return float(found[0]["time"]) if found else None


def fixmatch_bytes() -> float:
    """Most bytes of resident memory of a short run, by the operating system's account.

    It begins with those of the process that starts it, here 0.5 GB: no figure is less.

    Raises:
        RuntimeError: the run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [str(SEMISUP), "run", "fashion_mnist/fixmatch", "stages.train.steps=20", "--out", f"{folder}/run"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {process.returncode}")
    return usage.ru_maxrss * (1024.0 if sys.platform.startswith("linux") else 1.0)


FIGURES: dict[str, tuple[Callable[[], float], float, str]] = {
    "semisup --help, s": (help_seconds, 0.5, "{:.2f}"),
    "first training step of digits/quickstart, s": (first_step_seconds, 6.0, "{:.1f}"),
    "peak memory of fashion_mnist/fixmatch, GB": (lambda: fixmatch_bytes() / 1e9, 1.2, "{:.2f}"),
}
"""What is measured, by what, its goal (less than that), and how it is printed."""


def main() -> None:
    """Measure, print, and write unless asked to be quick."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="each once; write nothing")
    quick = parser.parse_args().quick
    record, lines = {}, []
    for name, (measure, goal, form) in FIGURES.items():
        found = median(measure() for _ in range(1 if quick else REPEATS))
        record[name] = {"measured": round(found, 3), "goal": goal}
        lines.append([name, form.format(found), f"< {goal:g}"])
    note = circumstances()
    header = ["", "measured", "goal"]
    show(header, lines, note)
    if not quick:
        write("startup", {"figures": record, "machine": note}, header, lines, note)


if __name__ == "__main__":
    main()

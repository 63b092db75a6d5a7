"""A suite on two machines: network namespaces with an address of their own, which do not see the command's folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from semisup.bench.results.rows import read_rows

SEMISUP = Path(sys.executable).with_name("semisup")
HOSTS = {"semisuph1": "10.77.1", "semisuph2": "10.77.2"}
"""Name of a network namespace -> its network; .1 is this machine's end of the cable, .2 the other one."""
SUITE = {
    "name": "hosts",
    "data": {"source": "digits"},
    "model": {"name": "cnn", "width": 4},
    "labels": [20, 40],
    "draws": 2,
    "tracking": {"mlflow": False},
    "entries": {
        "finetuned": {
            "recipe": "digits/quickstart",
            "stage": "finetune",
            "overrides": ["stages.pretrain.steps=10", "stages.finetune.steps=20"],
        },
    },
}

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None,
    reason="network namespaces need root, iproute2 and unshare",
)


def call(*words: str, check: bool = True) -> None:
    subprocess.run(words, check=check, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two namespaces, each with a cable to this one."""
    for name in HOSTS:
        call("ip", "netns", "del", name, check=False)
    try:
        for number, (name, network) in enumerate(HOSTS.items()):
            here, there = f"ssveth{number}a", f"ssveth{number}b"
            call("ip", "netns", "add", name)
            call("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
            call("ip", "addr", "add", f"{network}.1/30", "dev", here)
            call("ip", "link", "set", here, "up")
            call("ip", "-n", name, "addr", "add", f"{network}.2/30", "dev", there)
            call("ip", "-n", name, "link", "set", there, "up")
            call("ip", "-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in HOSTS:
            call("ip", "netns", "del", name, check=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow  # on one host files travel in tests/bench, too
def test_two_hosts_with_folders_of_their_own(hosts: None, tmp_path: Path) -> None:
    mine, theirs = tmp_path / "command", tmp_path / "hosts"
    mine.mkdir()
    port = free_port()
    dask = [sys.executable, "-m"]
    scheduler = subprocess.Popen(
        [*dask, "distributed.cli.dask_scheduler", "--host", "0.0.0.0", "--port", str(port), "--no-dashboard"],
        stderr=subprocess.DEVNULL,
    )
    workers = []
    try:
        for name, network in HOSTS.items():
            (theirs / name).mkdir(parents=True)
            # In the worker's own mount namespace the command's folder is an empty one.
            hide = f"mount --make-rprivate / && mount -t tmpfs none {mine} && exec"
            worker = (
                f"{sys.executable} -m distributed.cli.dask_worker tcp://{network}.1:{port} --nthreads 1 --no-dashboard"
            )
            shell = f"{hide} {worker} --local-directory {theirs / name}"
            words = ["ip", "netns", "exec", name, "unshare", "--mount", "sh", "-c", shell]
            workers.append(subprocess.Popen(words, stderr=subprocess.DEVNULL, cwd=theirs / name))
        (tmp_path / "suite.yaml").write_text(yaml.safe_dump(SUITE), encoding="utf-8")
        wait_for_workers(port)
        done = subprocess.run(
            [
                SEMISUP,
                "bench",
                tmp_path / "suite.yaml",
                "--out",
                mine / "hosts",
                "--scheduler",
                f"tcp://127.0.0.1:{port}",
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        rows = read_rows(mine / "hosts" / "runs.csv")
        assert [row.status for row in rows] == ["done"] * 4
        fingerprints = {row.fingerprint for row in rows}
        for fingerprint in fingerprints:
            assert (mine / ".semisup" / "stages" / fingerprint / "model.safetensors").is_file(), "sent to the command"
        kept = {name: {path.parent.name for path in (theirs / name).rglob("stage.json")} for name in HOSTS}
        assert set.union(*kept.values()) >= fingerprints
        assert all(stages & fingerprints for stages in kept.values()), "both hosts have worked"
        assert all(stages - fingerprints for stages in kept.values()), "and had the pretraining sent or made"
    finally:
        for process in [*workers, scheduler]:
            process.terminate()
        for process in [*workers, scheduler]:
            process.wait(30)


def wait_for_workers(port: int) -> None:
    from distributed import Client

    deadline = time.monotonic() + 60
    while True:  # the scheduler may still be starting
        try:
            with Client(f"tcp://127.0.0.1:{port}", timeout=5) as client:
                client.wait_for_workers(len(HOSTS), timeout=60)
            return
        except (OSError, TimeoutError):
            if time.monotonic() > deadline:
                raise

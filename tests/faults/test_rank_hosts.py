"""One run on two hosts: network namespaces with an address of their own, which meet by torchrun's rendezvous."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.faults.faults_process import environment, tensors
from tests.faults.test_ranks import RECIPE, finished, wait_for_a_checkpoint

HOSTS = {"semisupr1": "10.78.0.1", "semisupr2": "10.78.0.2"}
"""Network namespace -> its address; a cable goes from one to the other."""
PATIENCE = 15
"""Seconds that a rank waits for the others."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and iproute2"
    ),
]


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


def cable(state: str) -> None:
    """Plug it in ("up") or pull it ("down")."""
    ip("-n", "semisupr2", "link", "set", "ssrank1", state)


@pytest.fixture
def hosts() -> Iterator[None]:
    for name in HOSTS:
        ip("netns", "del", name, check=False)
    try:
        for name in HOSTS:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", "semisupr1", "link", "add", "ssrank0", "type", "veth", "peer", "name", "ssrank1", "netns", "semisupr2")
        for number, (name, address) in enumerate(HOSTS.items()):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", f"ssrank{number}")
            ip("-n", name, "link", "set", f"ssrank{number}", "up")
        yield
    finally:
        for name in HOSTS:
            ip("netns", "del", name, check=False)


def job(folder: Path, number: int) -> list[subprocess.Popen[str]]:
    """The same torchrun command on both hosts."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    variables = {"OMP_NUM_THREADS": "1", "SEMISUP_RANKS_TIMEOUT": str(PATIENCE)}
    meet = f"--rdzv-backend=c10d --rdzv-endpoint=10.78.0.1:29533 --rdzv-id=run{number} --nnodes=2 --nproc-per-node=1"
    processes = []
    for host, (name, address) in enumerate(HOSTS.items()):
        meets = f"{meet} --rdzv-conf=is_host={1 - host} --local-addr={address}"
        torchrun = f"{sys.executable} -m torch.distributed.run {meets}"
        words = f"ip netns exec {name} {torchrun} -m semisup run recipe.yaml --out out"
        processes.append(
            subprocess.Popen(
                words.split(),
                cwd=folder,
                env={**environment(), **variables, "GLOO_SOCKET_IFNAME": f"ssrank{host}"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


def test_two_hosts_run_one_job_and_outlive_their_cable(hosts: None, tmp_path: Path) -> None:
    one, cut = tmp_path / "one", tmp_path / "cut"
    for process in job(one, 1):
        code, output = finished(process)
        assert code == 0, output

    first, second = job(cut, 2)  # the cable is out for a while: nobody minds
    wait_for_a_checkpoint(cut, first)
    cable("down")
    time.sleep(5)
    cable("up")
    for process in (first, second):
        code, output = finished(process)
        assert code == 0, output
    assert tensors(cut / "out") == tensors(one / "out")

    shutil.rmtree(cut)
    shutil.rmtree(tmp_path / "cut" / ".semisup", ignore_errors=True)
    first, second = job(cut, 3)  # for good: both end with a message
    wait_for_a_checkpoint(cut, first)
    cable("down")
    for process in (first, second):
        code, output = finished(process, 3 * PATIENCE + 60)
        assert code != 0
        assert "lost touch with the other ranks" in output, output
    cable("up")
    for process in job(cut, 4):  # and the same command goes on
        code, output = finished(process)
        assert code == 0, output
    assert tensors(cut / "out") == tensors(one / "out")

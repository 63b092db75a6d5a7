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

from semisup.files import locked
from tests.faults.faults_process import environment, tensors
from tests.faults.test_ranks import RECIPE, wait_for_a_checkpoint

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
    """The same torchrun command on both hosts; what each says is in HOST.log."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    variables = {"OMP_NUM_THREADS": "1", "SEMISUP_RANKS_TIMEOUT": str(PATIENCE)}
    meet = f"--rdzv-backend=c10d --rdzv-endpoint=10.78.0.1:29533 --rdzv-id=run{number} --nnodes=2 --nproc-per-node=1"
    processes = []
    for host, (name, address) in enumerate(HOSTS.items()):
        meets = f"{meet} --rdzv-conf=is_host={1 - host} --local-addr={address}"
        torchrun = f"{sys.executable} -m torch.distributed.run {meets}"
        with (folder / f"{host}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    f"ip netns exec {name} {torchrun} -m semisup run recipe.yaml --out out".split(),
                    cwd=folder,
                    env={**environment(), **variables, "GLOO_SOCKET_IFNAME": f"ssrank{host}"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
    return processes


def ends_well(folder: Path, processes: list[subprocess.Popen[str]]) -> None:
    for host, process in enumerate(processes):
        try:
            assert process.wait(400) == 0, (folder / f"{host}.log").read_text()
        finally:
            process.kill()


def says(file: Path, words: str, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while words not in file.read_text() and time.monotonic() < until:
        time.sleep(0.2)
    return words in file.read_text()


def test_two_hosts_run_one_job_and_a_cable_out_for_a_while_is_waited_for(hosts: None, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ends_well(whole, job(whole, 1))
    processes = job(cut, 2)
    wait_for_a_checkpoint(cut, processes[0])
    cable("down")
    time.sleep(5)
    cable("up")
    ends_well(cut, processes)
    assert tensors(cut / "out") == tensors(whole / "out")


def test_a_cable_out_for_good_is_told_and_the_job_goes_on_when_it_is_back(hosts: None, tmp_path: Path) -> None:
    """The ranks say so and end. torchrun itself may look for the other host for much longer, and is ended here."""
    processes = job(tmp_path, 1)
    try:
        wait_for_a_checkpoint(tmp_path, processes[0])
        cable("down")
        for host in range(len(HOSTS)):
            assert says(tmp_path / f"{host}.log", "lost touch with the other ranks", 4 * PATIENCE), host
    finally:
        for process in processes:
            process.kill()
            process.wait()
    cable("up")
    ends_well(tmp_path, job(tmp_path, 2))
    assert "goes on" in (tmp_path / "0.log").read_text()


def test_a_cable_cut_while_rank_0_works_alone_is_told_by_the_other(hosts: None, tmp_path: Path) -> None:
    """Rank 0 waits for a lock, for as long as it takes; what the other one waits for will never come."""
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", lambda: None):
        processes = job(tmp_path, 1)
        logs = [tmp_path / f"{host}.log" for host in range(len(HOSTS))]
        try:
            assert any(says(log, "is running in this folder; waiting for it", PATIENCE) for log in logs * 10)
            time.sleep(2 * PATIENCE)
            assert [process.poll() for process in processes] == [None, None], "longer than a step may take"
            cable("down")
            assert any(says(log, "lost touch with the other ranks", PATIENCE) for log in logs * 2), "within a minute"
        finally:
            for process in processes:
                process.kill()
                process.wait()

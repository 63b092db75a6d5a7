"""The workers of a command listen to that command alone."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path

import psutil
import pytest
from distributed import Client
from distributed.security import Security

from semisup.bench.execution.cluster import cluster
from tests.nursery import Nursery


def test_nobody_else_can_submit_work_to_own_workers() -> None:
    """Neither in plain words nor with a certificate of one's own, to the scheduler as to a worker."""
    with cluster(None, 1, 0) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        scheduler = client.scheduler.address
        (worker,) = client.scheduler_info(n_workers=-1)["workers"]
        assert scheduler.startswith("tls://") and worker.startswith("tls://")
        others = [Security(), Security.temporary()]  # type: ignore[no-untyped-call]
        for address in (scheduler, worker):
            for scheme, security in (("tcp", others[0]), ("tls", others[1])):
                place = f"{scheme}://{address.partition('://')[2]}"
                with pytest.raises(OSError):
                    Client(place, security=security, timeout=3, set_as_default=False)  # type: ignore[no-untyped-call]


OTHER_USER = """
import errno, json, os, sys, warnings
from pathlib import Path
from distributed import Client
from distributed.security import Security

warnings.simplefilter("ignore")
places, processes, folders = json.loads(sys.argv[1])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)

def read(path):
    try:
        with open(path, "rb") as file:
            return "the key" if b"PRIVATE KEY" in file.read(2**20) else "no key"
    except OSError as error:
        return errno.errorcode[error.errno]

submitted = {}
for place in places:
    for scheme, security in (("tcp", Security()), ("tls", Security.temporary())):
        try:
            with Client(f"{scheme}://{place}", security=security, timeout=3, set_as_default=False) as client:
                submitted[f"{scheme}://{place}"] = client.submit(os.getuid).result(10)
        except OSError:
            submitted[f"{scheme}://{place}"] = "refused"
secrets = {f"/proc/{pid}/{name}": read(f"/proc/{pid}/{name}") for pid in processes for name in ("environ", "mem")}
open_to_all = {f"/proc/{pid}/cmdline": read(f"/proc/{pid}/cmdline") for pid in processes}
files = {str(path): read(path) for folder in folders for path in Path(folder).rglob("*") if path.is_file()}
print(json.dumps([os.getuid(), submitted, secrets, open_to_all, files]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_of_the_machine_is_shut_out(nursery: Nursery, tmp_path: Path) -> None:
    """Nobody, uid 65534, asks scheduler and workers to work, and looks for the key where processes and files show."""
    with cluster(None, 2, 0) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        places = [address.partition("://")[2] for address in (client.scheduler.address, *workers)]
        own = psutil.Process()
        processes = [own.pid, *(child.pid for child in own.children(recursive=True))]
        folders = [
            str(Path(tempfile.gettempdir()) / "dask-scratch-space"),
            *(w["local_directory"] for w in workers.values()),
        ]
        code, output = nursery.run(tmp_path, json.dumps([places, processes, folders]), code=OTHER_USER)
        assert code == 0, output
        uid, submitted, secrets, open_to_all, files = json.loads(output.splitlines()[-1])
        assert client.submit(os.getuid).result() == 0, "its own command is still listened to"
    assert uid == 65534
    assert len(submitted) == 6 and set(submitted.values()) == {"refused"}
    refused = {errno.errorcode[number] for number in (errno.EACCES, errno.EPERM)}
    assert len(secrets) >= 6 and set(secrets.values()) <= refused
    assert set(open_to_all.values()) == {"no key"} and "the key" not in files.values()
